//! The schemes of one file: how they are described, and how their names are read.

use crate::entry::Entry;
use crate::name::SchemeName;
use crate::needs::{Binding, Needs};
use crate::{CacheError, Scheme, SchemeContext};

/// The schemes of one file or folder.
#[derive(Clone, Copy)]
pub struct Family {
    /// The descriptions of its schemes.
    pub entries: &'static [Entry],
    /// Reads a name.
    pub read: fn(&SchemeName<'_>) -> Read,
}

/// A plan; `None` if the name belongs to another family; or a sentence that says what is wrong with the name.
pub type Read = Result<Option<Plan>, String>;

/// A scheme as its name describes it. It is not yet bound to a model.
pub struct Plan {
    needs: Needs,
    bind: Box<Bind>,
}

type Bind = dyn FnOnce(Binding<'_>) -> Result<Box<dyn Scheme>, CacheError>;

impl Plan {
    /// A scheme with the given `needs`. `bind` builds it from them.
    pub fn new(needs: Needs, bind: impl FnOnce(Binding<'_>) -> Result<Box<dyn Scheme>, CacheError> + 'static) -> Self {
        Self { needs, bind: Box::new(bind) }
    }

    /// What it needs.
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// Builds the scheme under the name `scheme`.
    ///
    /// # Errors
    /// If `cx` lacks something, or the scheme does not fit the model.
    pub fn build(self, scheme: &str, cx: &SchemeContext) -> Result<Box<dyn Scheme>, CacheError> {
        (self.bind)(Binding::new(scheme, &self.needs, cx)?)
    }
}
