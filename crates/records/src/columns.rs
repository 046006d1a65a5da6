//! The columns of a row. They come from serde, so no separate list of names is needed.

use serde::{
    Deserializer, Serialize,
    de::{DeserializeOwned, Error, Visitor, value},
    forward_to_deserialize_any,
};

/// A struct of numbers, texts and names that serde can write and read. Every such struct is a row.
pub trait Row: Serialize + DeserializeOwned {}

impl<R: Serialize + DeserializeOwned> Row for R {}

/// The names of a row's fields, in their order. Empty if the type is not a struct.
pub fn names<R: Row>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // Only the names are needed: reading stops with an error when it has them.
    let _ = R::deserialize(Names(&mut names));
    names
}

struct Names<'n>(&'n mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Names<'_> {
    type Error = value::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        Err(Error::custom("only the names of the fields are read"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(Error::custom("a row is a struct"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct
        seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryPoint;

    #[test]
    fn names_stand_in_the_order_of_the_fields() {
        assert_eq!(names::<MemoryPoint>(), ["model", "scheme", "tokens", "bytes"]);
        assert!(names::<Vec<usize>>().is_empty());
    }
}
