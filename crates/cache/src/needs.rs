//! What a scheme needs before it can be built, known from its name alone.

use std::sync::Arc;

use kvcsr_codec::{CodebookSet, DictionarySet, Encoder};

use crate::entry::KeysCoded;
use crate::schemes::csr_plus::BitPlan;
use crate::{Budget, CacheError, Geometry, SchemeContext};

/// What has to be learned for a scheme before it can be built: see [`crate::registry::needs`].
///
/// Whoever runs schemes reads this to find out which stages to run; building a scheme checks the same data.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Needs {
    /// Where the scheme codes keys: what it needs for keys is learned from keys as they are there.
    pub keys_coded: KeysCoded,
    /// The dictionary set, by the name that [`SchemeContext::with_dictionaries`] gives it.
    pub dictionaries: Option<String>,
    /// The codebooks, by the name that [`SchemeContext::with_codebooks`] gives them.
    pub codebooks: Option<String>,
    /// The level whose budget by layer and kind is spent.
    pub budget: Option<usize>,
    /// The plan, by the name that [`SchemeContext::with_plan`] gives it.
    pub plan: Option<String>,
}

impl Needs {
    /// Nothing but a model.
    pub fn nothing(keys_coded: KeysCoded) -> Self {
        Self { keys_coded, dictionaries: None, codebooks: None, budget: None, plan: None }
    }

    /// A dictionary set.
    pub fn dictionaries(keys_coded: KeysCoded, name: &str) -> Self {
        Self { dictionaries: Some(name.to_owned()), ..Self::nothing(keys_coded) }
    }

    /// Codebooks.
    pub fn codebooks(keys_coded: KeysCoded, name: &str) -> Self {
        Self { codebooks: Some(name.to_owned()), ..Self::nothing(keys_coded) }
    }

    /// Whether a model is enough.
    pub fn is_nothing(&self) -> bool {
        *self == Self::nothing(self.keys_coded)
    }

    /// Checks that `cx` has everything, for the scheme called `scheme`.
    ///
    /// # Errors
    /// As [`SchemeContext::dictionaries`], [`SchemeContext::codebooks`], [`SchemeContext::budget`] and [`SchemeContext::plan`].
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

/// What a scheme is built with: its name, and of a context what it said that it needs.
#[derive(Clone, Copy)]
pub struct Binding<'a> {
    /// The registered name.
    pub scheme: &'a str,
    needs: &'a Needs,
    cx: &'a SchemeContext,
}

impl<'a> Binding<'a> {
    /// `needs` of the scheme called `scheme`, found in `cx`.
    ///
    /// # Errors
    /// As [`Needs::check`].
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

    /// The dictionary set that is needed, with the encoder of each of its groups and its name.
    ///
    /// # Errors
    /// [`CacheError::MissingDictionaries`] if the scheme did not say that it needs one.
    pub fn dictionaries(&self) -> Result<(&'a str, &'a DictionarySet, &'a [Arc<Encoder>]), CacheError> {
        let name = self.needs.dictionaries.as_deref().unwrap_or_default();
        let (set, encoders) = self.cx.dictionaries(name, self.scheme)?;
        Ok((name, set, encoders))
    }

    /// The codebooks that are needed.
    ///
    /// # Errors
    /// [`CacheError::MissingCodebooks`] if the scheme did not say that it needs them.
    pub fn codebooks(&self) -> Result<&'a CodebookSet, CacheError> {
        self.cx.codebooks(self.needs.codebooks.as_deref().unwrap_or_default(), self.scheme)
    }

    /// The budget, if one is needed.
    ///
    /// # Errors
    /// As [`SchemeContext::budget`].
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

    /// The model cannot have this scheme.
    pub fn unsuitable(&self, reason: String) -> CacheError {
        CacheError::Unsuitable { scheme: self.scheme.to_owned(), reason }
    }
}
