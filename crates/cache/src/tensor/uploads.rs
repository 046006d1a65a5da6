//! Tables that are copied to a device. Each table is copied once, however many layers share it.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::e4m3::E4m3;
use super::packed::Fields;
use crate::CacheError;

/// The tables of one scheme on one device.
pub struct Uploads {
    device: Device,
    tables: HashMap<(usize, usize), Tensor>,
    fields: Option<Arc<Fields>>,
    e4m3: Option<Arc<E4m3>>,
    bytes: usize,
}

impl Uploads {
    /// An empty set of tables for `device`.
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone(), tables: HashMap::new(), fields: None, e4m3: None, bytes: 0 }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The number of bytes copied.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// `numbers` as `(rows, width)`. The same numbers are copied only once. They are recognised by their address, so
    /// they must stay at this address as long as `self` is used.
    ///
    /// # Errors
    /// If the device does not have enough memory.
    pub fn table(&mut self, numbers: &[f32], rows: usize, width: usize) -> Result<Tensor, CacheError> {
        let place = (numbers.as_ptr() as usize, numbers.len());
        if let Some(made) = self.tables.get(&place) {
            return Ok(made.reshape((rows, width))?);
        }
        let made = self.own(numbers, rows, width)?;
        self.tables.insert(place, made.clone());
        Ok(made)
    }

    /// `numbers` as `(rows, width)`. They are copied in every call.
    ///
    /// # Errors
    /// If the device does not have enough memory.
    pub fn own(&mut self, numbers: &[f32], rows: usize, width: usize) -> Result<Tensor, CacheError> {
        self.bytes += size_of_val(numbers);
        Ok(Tensor::from_slice(numbers, (rows, width), &self.device)?)
    }

    /// The tables that unpack small codes.
    ///
    /// # Errors
    /// If the device does not have enough memory.
    pub fn fields(&mut self) -> Result<Arc<Fields>, CacheError> {
        match &self.fields {
            Some(fields) => Ok(fields.clone()),
            None => {
                let fields = Arc::new(Fields::new(&self.device)?);
                self.bytes += fields.bytes();
                Ok(self.fields.insert(fields).clone())
            }
        }
    }

    /// The tables for numbers of eight bits.
    ///
    /// # Errors
    /// If the device does not have enough memory.
    pub fn e4m3(&mut self) -> Result<Arc<E4m3>, CacheError> {
        match &self.e4m3 {
            Some(e4m3) => Ok(e4m3.clone()),
            None => {
                let e4m3 = Arc::new(E4m3::new(&self.device)?);
                self.bytes += e4m3.bytes();
                Ok(self.e4m3.insert(e4m3).clone())
            }
        }
    }
}
