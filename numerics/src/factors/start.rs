//! The start and the strength of factors.

#[cfg(doc)]
use super::mirrored;
use crate::names::names;

/// The model before the first training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// `W`: the base is untouched and `B A = 0`. Mostly `B = 0`, and for an update `A` spans the row space of `Δ_r`.
    Zero,
    /// `W`: the base is untouched, and `B A = 0` although neither factor is zero. See [`mirrored`].
    Mirrored,
    /// `W + Δ_r η`: the base is untouched and both factors are non-zero.
    Update,
    /// `W`: the base is rewritten to `W − s B A`.
    Residual,
}

names!(Start, "start": Zero = "zero", Mirrored = "mirrored", Update = "update", Residual = "residual");

impl Start {
    /// Units of rank that each component of an update takes: 2 for [`Self::Mirrored`], otherwise 1.
    pub fn rank_per_component(self) -> usize {
        if self == Self::Mirrored { 2 } else { 1 }
    }
}

/// The share of the update that is taken.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strength {
    /// `η` such that the output of the one layer moves by at most this share of its own root mean square. Changes of consecutive layers
    /// add up. So `run` takes it as the share of a whole model and divides it by the square root of the number of layers.
    MaxShift(f64),
    /// `η` itself.
    Fixed(f64),
}

impl Default for Strength {
    fn default() -> Self {
        Self::MaxShift(0.05)
    }
}
