//! The data that schemes are built from.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Device;
use kvcsr_codec::{CodebookSet, DictionarySet, Encoder};

use crate::schemes::csr_plus::BitPlan;
use crate::tensor::Attention;
use crate::{Budget, Budgets, CacheError, Geometry, Scheme};

/// The model's shape, and everything that was learned for it, by name: dictionary sets, codebooks, budgets.
///
/// Encoders (with their Gram matrices) are made once per set. All schemes that use the set share them.
pub struct SchemeContext {
    geometry: Geometry,
    sets: BTreeMap<String, (DictionarySet, Vec<Arc<Encoder>>)>,
    budgets: Budgets,
    codebooks: BTreeMap<String, CodebookSet>,
    plans: BTreeMap<String, BitPlan>,
    attention: Attention,
    device: Device,
}

impl SchemeContext {
    /// A context without dictionaries.
    pub fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            sets: BTreeMap::new(),
            codebooks: BTreeMap::new(),
            plans: BTreeMap::new(),
            budgets: Budgets::new(),
            attention: Attention::default(),
            device: Device::Cpu,
        }
    }

    /// Sets the device of the model, and how schemes run there.
    pub fn with_attention(mut self, attention: Attention, device: &Device) -> Self {
        self.attention = attention;
        self.device = device.clone();
        self
    }

    /// Places `scheme` so that it runs on the model's device.
    ///
    /// # Errors
    /// The errors of [`Attention::place`].
    pub(crate) fn place(&self, scheme: Box<dyn Scheme>) -> Result<Box<dyn Scheme>, CacheError> {
        self.attention.place(scheme, &self.device)
    }

    /// Adds a dictionary set under `name`.
    pub fn with_dictionaries(mut self, name: &str, set: DictionarySet) -> Self {
        let encoders = set.groups.iter().map(|g| Arc::new(Encoder::new(g.dictionary.clone()))).collect();
        self.sets.insert(name.to_owned(), (set, encoders));
        self
    }

    /// Adds the levels per layer that `csr-S+budget` uses.
    pub fn with_budgets(mut self, budgets: Budgets) -> Self {
        self.budgets = budgets;
        self
    }

    /// Adds the codebooks of a calibrated method under `name`.
    pub fn with_codebooks(mut self, name: &str, set: CodebookSet) -> Self {
        self.codebooks.insert(name.to_owned(), set);
        self
    }

    /// Adds the plan of `csr+@B(plan=name)`.
    pub fn with_plan(mut self, name: &str, plan: BitPlan) -> Self {
        self.plans.insert(name.to_owned(), plan);
        self
    }

    /// The model's shape.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The dictionary set called `name`, and the encoder of each of its groups.
    ///
    /// # Errors
    /// [`CacheError::MissingDictionaries`], with the name `scheme`.
    pub fn dictionaries(&self, name: &str, scheme: &str) -> Result<(&DictionarySet, &[Arc<Encoder>]), CacheError> {
        self.sets
            .get(name)
            .map(|(set, encoders)| (set, &encoders[..]))
            .ok_or_else(|| CacheError::MissingDictionaries { scheme: scheme.to_owned(), dictionaries: name.to_owned() })
    }

    /// The codebooks called `name`. They must be for this model's shape.
    ///
    /// # Errors
    /// [`CacheError::MissingCodebooks`], with the name `scheme`, or [`CacheError::Unsuitable`] if they belong to
    /// another model.
    pub fn codebooks(&self, name: &str, scheme: &str) -> Result<&CodebookSet, CacheError> {
        let set = self
            .codebooks
            .get(name)
            .ok_or_else(|| CacheError::MissingCodebooks { scheme: scheme.to_owned(), codebooks: name.to_owned() })?;
        let Geometry { layers, kv_heads, head_dim } = self.geometry;
        set.validate_for(layers, kv_heads, head_dim)
            .map_err(|e| CacheError::Unsuitable { scheme: scheme.to_owned(), reason: e.to_string() })?;
        Ok(set)
    }

    /// The plan called `name`.
    ///
    /// # Errors
    /// [`CacheError::MissingPlan`], naming `scheme`.
    pub fn plan(&self, name: &str, scheme: &str) -> Result<&BitPlan, CacheError> {
        self.plans.get(name).ok_or_else(|| CacheError::MissingPlan { scheme: scheme.to_owned(), plan: name.to_owned() })
    }

    /// The budget that spends as many atoms as `level`. It is checked against the model.
    ///
    /// # Errors
    /// [`CacheError::Budget`], with the name `scheme`, if there is no such budget or if it does not fit.
    pub fn budget(&self, level: usize, scheme: &str) -> Result<&Budget, CacheError> {
        let refuse = |reason: String| CacheError::Budget { scheme: scheme.to_owned(), reason };
        let budget = self.budgets.get(&level).ok_or_else(|| {
            let known: Vec<String> = self.budgets.keys().map(usize::to_string).collect();
            match known.is_empty() {
                true => refuse("no budgets were given: measure sensitivities first (`just allocate`)".into()),
                false => refuse(format!("there are budgets for the levels {}, none for {level}", known.join(", "))),
            }
        })?;
        budget.check(level, self.geometry.layers).map_err(refuse)?;
        Ok(budget)
    }
}
