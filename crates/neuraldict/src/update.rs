//! The update rules, which compute new atoms from one batch and its codes, and their state.

use tch::{Device, Tensor};

use crate::{
    closed::Closed,
    config::{Optimiser, TrainConfig, Trainer},
    error::Result,
    optimiser::Adam,
};

/// The state of the update rule.
#[derive(Debug)]
pub(crate) enum Updater {
    Adam(Adam),
    Closed(Box<Closed>),
}

impl Updater {
    pub(crate) fn new(config: &TrainConfig, atoms: &Tensor) -> Result<Self> {
        let (count, width) = atoms.size2()?;
        Ok(match (config.trainer, config.optimiser) {
            (Trainer::NeuralDict | Trainer::Lexico, Optimiser::Adam) => Self::Adam(Adam::new(atoms)?),
            (Trainer::Mod, _) => Self::Closed(Box::new(Closed::new(count as usize, width as usize))),
        })
    }

    /// Resets the state of some atoms.
    pub(crate) fn forget(&mut self, atoms: &[usize], device: Device) -> Result<()> {
        match self {
            Self::Adam(adam) => adam.forget(atoms, device),
            Self::Closed(closed) => {
                atoms.iter().for_each(|&atom| closed.forget(atom));
                Ok(())
            }
        }
    }
}

/// The vectors that an epoch fitted worst, worst first. Dead atoms are replaced by them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Worst {
    room: usize,
    pub(crate) found: Vec<(f32, u32)>,
}

impl Worst {
    pub(crate) fn new(room: usize) -> Self {
        Self { room, found: Vec::new() }
    }

    /// Adds the squared errors of a batch and the numbers of its vectors. Among equal errors the lower number comes first.
    pub(crate) fn count(&mut self, errors: &[f32], numbers: &[u32]) {
        if self.room == 0 {
            return;
        }
        let least = if self.found.len() < self.room { 0.0 } else { self.found[self.room - 1].0 };
        self.found.extend(errors.iter().copied().zip(numbers.iter().copied()).filter(|&(error, _)| error > least));
        self.found.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        self.found.truncate(self.room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_are_kept_in_order() {
        let mut worst = Worst::new(3);
        worst.count(&[1.0, 5.0, 0.0], &[10, 11, 12]);
        worst.count(&[4.0, 0.5, 5.0], &[20, 21, 9]);
        assert_eq!(worst.found, [(5.0, 9), (5.0, 11), (4.0, 20)]);
        let mut none = Worst::new(0);
        none.count(&[1.0], &[1]);
        assert!(none.found.is_empty());
    }
}
