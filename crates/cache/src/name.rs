//! The grammar of scheme names: `head(argument=value)+part(argument=value)@artefacts`.

use crate::Window;

/// The first characters of the head `csr+@B`. The level follows them.
pub const PLUS: &str = "csr+@";

/// The parts of a scheme's name. Their meaning is not checked yet.
///
/// `kivi-2(group=64)+window(recent=32)` has the head `kivi-2` with one argument and the part `window` with one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemeName<'a> {
    /// Everything before `@`. Results are stored under this registered name.
    pub base: &'a str,
    /// The method and its level, for example `kivi-2`.
    pub head: &'a str,
    /// Arguments of the head.
    pub arguments: Arguments<'a>,
    /// What follows the head, in the same order.
    pub parts: Vec<Part<'a>>,
    /// The trained artefacts to use: what follows `@`.
    pub artefacts: Option<&'a str>,
}

/// One `+part(arguments)` of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its arguments.
    pub arguments: Arguments<'a>,
}

/// `(name=value,name=value)`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arguments<'a>(Vec<(&'a str, &'a str)>);

impl<'a> SchemeName<'a> {
    /// Splits `name` into its parts.
    ///
    /// # Errors
    /// A sentence that says what is malformed.
    pub fn parse(name: &'a str) -> Result<Self, String> {
        // In `csr+@2`, the `+` and the `@` belong to the head.
        let start = if name.starts_with(PLUS) { PLUS.len() } else { 0 };
        let (base, artefacts) = match name[start..].find('@') {
            Some(at) => (&name[..start + at], Some(&name[start + at + 1..])),
            None => (name, None),
        };
        let head = start + base[start..].find('+').unwrap_or(base.len() - start);
        let rest = base.get(head + 1..).map(|rest| rest.split('+')).into_iter().flatten();
        let mut pieces = std::iter::once(&base[..head]).chain(rest).map(|piece| {
            let Some((name, rest)) = piece.split_once('(') else {
                return Ok(Part { name: piece, arguments: Arguments::default() });
            };
            let arguments = rest.strip_suffix(')').ok_or_else(|| format!("`{piece}` lacks a closing parenthesis"))?;
            Ok::<_, String>(Part { name, arguments: Arguments::parse(arguments)? })
        });
        let Part { name: head, arguments } = pieces.next().expect("split gives at least one piece")?;
        let parts = pieces.collect::<Result<Vec<_>, _>>()?;
        for (at, part) in parts.iter().enumerate() {
            if parts[..at].iter().any(|before| before.name == part.name) {
                return Err(format!("`+{}` was given before", part.name));
            }
        }
        if let Some(artefacts) = artefacts.filter(|name| !is_plain(name)) {
            return Err(format!("`@{artefacts}`: artefacts are called by letters, digits and `._+-`"));
        }
        Ok(Self { base, head, arguments, parts, artefacts })
    }

    /// What follows `method-` in the head, for example `2` in `kivi-2`. `None` if the head belongs to another method.
    pub fn level(&self, method: &str) -> Option<&'a str> {
        self.head.strip_prefix(method)?.strip_prefix('-')
    }

    /// The part `+name`, if it is given.
    pub fn part(&self, name: &str) -> Option<&Part<'a>> {
        self.parts.iter().find(|part| part.name == name)
    }

    /// Whether the part `+name` is given. It takes no arguments.
    ///
    /// # Errors
    /// If it has arguments.
    pub fn flag(&self, name: &str) -> Result<bool, String> {
        match self.part(name) {
            None => Ok(false),
            Some(part) => part.arguments.only(&[]).map(|()| true).map_err(|e| format!("`+{name}`: {e}")),
        }
    }

    /// The window sizes of `+window(sinks=4,recent=128,graded=0)`. All are zero without this part.
    ///
    /// # Errors
    /// If it has unknown arguments.
    pub fn window(&self) -> Result<Window, String> {
        let Some(part) = self.part("window") else { return Ok(Window::default()) };
        part.arguments.only(&["sinks", "recent", "graded"])?;
        let tokens = |name, default| part.arguments.tokens(name, default);
        Ok(Window { sinks: tokens("sinks", 4)?, recent: tokens("recent", 128)?, graded: tokens("graded", 0)? })
    }

    /// Whether the mean is subtracted from keys before they are coded: `+centre`.
    ///
    /// # Errors
    /// If it has arguments.
    pub fn centred(&self) -> Result<bool, String> {
        self.flag("centre")
    }

    /// Refuses all parts except `window` and those in `known`.
    ///
    /// # Errors
    /// A sentence that names the first unknown part and the possible parts.
    pub fn only_parts(&self, known: &[&str]) -> Result<(), String> {
        match self.parts.iter().find(|part| part.name != "window" && !known.contains(&part.name)) {
            None => Ok(()),
            Some(part) => {
                let known: Vec<&str> = known.iter().copied().chain(["window"]).collect();
                Err(format!("`{}` has no part `{}`; it has {}", self.head, part.name, known.join(", ")))
            }
        }
    }

    /// Refuses artefacts, for schemes that need none.
    ///
    /// # Errors
    /// If artefacts are given.
    pub fn no_artefacts(&self) -> Result<(), String> {
        match self.artefacts {
            None => Ok(()),
            Some(_) => Err("this scheme takes no dictionaries".to_owned()),
        }
    }
}

/// Whether the name can be used as a file name: the results of a scheme are in a folder with its name.
pub(crate) fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && name.chars().all(|c| c.is_ascii_alphanumeric() || "._+-".contains(c))
}

impl<'a> Arguments<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        let pair = |argument: &'a str| {
            let (name, value) = argument.split_once('=').ok_or_else(|| format!("`{argument}` is not `name=value`"))?;
            Ok::<_, String>((name.trim(), value.trim()))
        };
        let all: Vec<(&str, &str)> = text.split(',').map(pair).collect::<Result<_, _>>()?;
        match all.iter().enumerate().find(|(at, (name, _))| all[..*at].iter().any(|(before, _)| before == name)) {
            Some((_, (name, _))) => Err(format!("`{name}` was given before")),
            None => Ok(Self(all)),
        }
    }

    /// The value given for `name`.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(given, _)| *given == name).map(|(_, value)| *value)
    }

    /// Refuses all arguments except those in `known`.
    ///
    /// # Errors
    /// A sentence that names the first unknown argument and the possible arguments.
    pub fn only(&self, known: &[&str]) -> Result<(), String> {
        match self.0.iter().find(|(name, _)| !known.contains(name)) {
            None => Ok(()),
            Some((name, _)) if known.is_empty() => Err(format!("no argument `{name}`: there are none")),
            Some((name, _)) => Err(format!("no argument `{name}`; there are {}", known.join(", "))),
        }
    }

    /// A number of tokens or channels. `default` if it is not given.
    ///
    /// # Errors
    /// If the value is not a number up to 2^24.
    pub fn tokens(&self, name: &str, default: usize) -> Result<usize, String> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value
            .parse()
            .ok()
            .filter(|&n| n <= 1 << 24)
            .ok_or_else(|| format!("{name}: `{value}` is not a number up to 2^24"))
    }

    /// A fraction of one. `default` if it is not given.
    ///
    /// # Errors
    /// If the value is not between 0 and 1.
    pub fn fraction(&self, name: &str, default: f64) -> Result<f64, String> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value
            .parse()
            .ok()
            .filter(|x| (0.0..=1.0).contains(x))
            .ok_or_else(|| format!("{name}: `{value}` is not a number from 0 to 1"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_come_apart() {
        let name = SchemeName::parse("kivi-2(group=64)+window(recent=32)+x@set").unwrap();
        assert_eq!((name.head, name.level("kivi"), name.artefacts), ("kivi-2", Some("2"), Some("set")));
        assert_eq!(name.base, "kivi-2(group=64)+window(recent=32)+x");
        assert_eq!(name.arguments.tokens("group", 32), Ok(64));
        assert_eq!(name.arguments.tokens("window", 128), Ok(128));
        assert_eq!(name.window(), Ok(Window { sinks: 4, recent: 32, graded: 0 }));
        assert_eq!(name.flag("x"), Ok(true));
        assert_eq!(name.level("kiv"), None);
        assert!(name.only_parts(&["x"]).is_ok());
        assert!(name.only_parts(&["y"]).unwrap_err().contains("it has y, window"));
        assert!(name.no_artefacts().is_err());
    }

    #[test]
    fn malformed_names_say_what_is_wrong() {
        for (name, reason) in [
            ("a(", "closing parenthesis"),
            ("a+b(c)", "not `name=value`"),
            ("a()", "`` is not `name=value`"),
            ("a(x=1,)", "`` is not `name=value`"),
            ("a+b+b", "given before"),
            ("a(x=../../y,x=1)", "`x` was given before"),
            ("a@../../b", "artefacts are called by letters"),
            ("a@", "artefacts are called by letters"),
            ("a@.b", "artefacts are called by letters"),
        ] {
            let error = SchemeName::parse(name).unwrap_err();
            assert!(error.contains(reason), "{name}: {error}");
        }
        let window = |name: &str| SchemeName::parse(name).unwrap().window().unwrap_err();
        assert!(window("a+window(size=1)").contains("sinks, recent"));
        assert!(window("a+window(recent=-1)").contains("not a number"));
        let name = SchemeName::parse("a(f=2)").unwrap();
        assert!(name.arguments.fraction("f", 0.5).unwrap_err().contains("0 to 1"));
        assert!(name.arguments.only(&[]).unwrap_err().contains("there are none"));
    }
}
