//! What a scheme needs before it can be built. Its name alone determines this.

use std::sync::Arc;

use kvcsr_codec::{CodebookSet, DictionarySet, Encoder};

use crate::entry::KeysCoded;
use crate::schemes::csr_plus::BitPlan;
use crate::{Budget, CacheError, Geometry, SchemeContext};

/// What must be learned for a scheme before it can be built: see [`crate::registry::needs`].
///
/// A program that runs schemes reads this to find out which stages it must run. Building a scheme checks the same data.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Needs {
    /// Where the scheme codes keys. What it needs for keys is learned from keys at the same place.
    pub keys_coded: KeysCoded,
    /// The dictionary set, under the name used in [`SchemeContext::with_dictionaries`].
    pub dictionaries: Option<String>,
    /// The codebooks, under the name used in [`SchemeContext::with_codebooks`].
    pub codebooks: Option<String>,
    /// The level whose budget by layer and kind the scheme spends.
    pub budget: Option<usize>,
    /// The plan, by the name that [`SchemeContext::with_plan`] gives it.
    pub plan: Option<String>,
}

impl Needs {
    /// Needs of a scheme that needs only a model.
    pub fn nothing(keys_coded: KeysCoded) -> Self {
        Self { keys_coded, dictionaries: None, codebooks: None, budget: None, plan: None }
    }

    /// Needs of a scheme that needs a dictionary set.
    pub fn dictionaries(keys_coded: KeysCoded, name: &str) -> Self {
        Self { dictionaries: Some(name.to_owned()), ..Self::nothing(keys_coded) }
    }

    /// Needs of a scheme that needs codebooks.
    pub fn codebooks(keys_coded: KeysCoded, name: &str) -> Self {
        Self { codebooks: Some(name.to_owned()), ..Self::nothing(keys_coded) }
    }

    /// Whether a model alone is enough.
    pub fn is_nothing(&self) -> bool {
        *self == Self::nothing(self.keys_coded)
    }

    /// Checks that `cx` has everything that the scheme called `scheme` needs.
    ///
    /// # Errors
    /// The errors of [`SchemeContext::dictionaries`], [`SchemeContext::codebooks`], [`SchemeContext::budget`] and
    /// [`SchemeContext::plan`].
    pub fn check(&self, scheme: &str, cx: &SchemeContext) -> Result<(), CacheError> {
        if let Some(name) = &self.dictionaries {
            cx.dictionaries(name, scheme)?;
        }
        if let Some(name) = &self.codebooks {
            cx.codebooks(name, scheme)?;
        }
        if let Some(level) = self.budget {
            cx.budget(level, scheme)?;
        }
        if let Some(name) = &self.plan {
            cx.plan(name, scheme)?;
        }
        Ok(())
    }
}

/// What a scheme is built from: its name, and those parts of a context that its needs name.
#[derive(Clone, Copy)]
pub struct Binding<'a> {
    /// The registered name.
    pub scheme: &'a str,
    needs: &'a Needs,
    cx: &'a SchemeContext,
}

impl<'a> Binding<'a> {
    /// The binding of the scheme called `scheme`, with its `needs` found in `cx`.
    ///
    /// # Errors
    /// The errors of [`Needs::check`].
    pub fn new(scheme: &'a str, needs: &'a Needs, cx: &'a SchemeContext) -> Result<Self, CacheError> {
        needs.check(scheme, cx)?;
        Ok(Self { scheme, needs, cx })
    }

    /// The model's shape.
    pub fn geometry(&self) -> Geometry {
        self.cx.geometry()
    }

    /// Where keys are coded.
    pub fn keys_coded(&self) -> KeysCoded {
        self.needs.keys_coded
    }

    /// The dictionary set that the scheme needs: its name, the set, and the encoder of each of its groups.
    ///
    /// # Errors
    /// [`CacheError::MissingDictionaries`] if the scheme's needs do not name a set.
    pub fn dictionaries(&self) -> Result<(&'a str, &'a DictionarySet, &'a [Arc<Encoder>]), CacheError> {
        let name = self.needs.dictionaries.as_deref().unwrap_or_default();
        let (set, encoders) = self.cx.dictionaries(name, self.scheme)?;
        Ok((name, set, encoders))
    }

    /// The codebooks that the scheme needs.
    ///
    /// # Errors
    /// [`CacheError::MissingCodebooks`] if the scheme's needs do not name codebooks.
    pub fn codebooks(&self) -> Result<&'a CodebookSet, CacheError> {
        self.cx.codebooks(self.needs.codebooks.as_deref().unwrap_or_default(), self.scheme)
    }

    /// The budget, if the scheme needs one.
    ///
    /// # Errors
    /// The errors of [`SchemeContext::budget`].
    pub fn budget(&self) -> Result<Option<&'a Budget>, CacheError> {
        self.needs.budget.map(|level| self.cx.budget(level, self.scheme)).transpose()
    }

    /// The plan, if one is needed.
    ///
    /// # Errors
    /// As [`SchemeContext::plan`].
    pub fn plan(&self) -> Result<Option<&'a BitPlan>, CacheError> {
        self.needs.plan.as_deref().map(|name| self.cx.plan(name, self.scheme)).transpose()
    }

    /// The error for a scheme that does not fit the model.
    pub fn unsuitable(&self, reason: String) -> CacheError {
        CacheError::Unsuitable { scheme: self.scheme.to_owned(), reason }
    }
}
