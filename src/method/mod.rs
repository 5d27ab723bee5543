//! The methods, each a short file in the vocabulary of the other rooms, and the options that decide the factors.

pub mod cntlora;

use crate::constraint::{Coupling, Norm, Terms};
use crate::error::Error;
use crate::factors::{Start, Strength};
use crate::rank::{Limits, Policy};

/// Everything but the data that decides the factors.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Options {
    /// How the two kinds of activations correspond.
    pub coupling: Coupling,
    /// Weight `ρ_p` of "pre-training inputs are left alone".
    pub preserve: f64,
    /// Damping `ρ`, relative to the mean eigenvalue.
    pub ridge: f64,
    /// The norm of the truncation.
    pub norm: Norm,
    /// How much of the update is taken.
    pub strength: Strength,
    /// What the model computes before the first step.
    pub start: Start,
    /// How ranks are chosen.
    pub ranks: Policy,
    /// What every choice of ranks honours.
    pub limits: Limits,
    /// `s`: the adapter adds `s · B A`; PEFT's `lora_alpha` of a layer is `s` times its rank.
    pub scale: f64,
    /// Seed of the randomized decompositions.
    pub seed: u64,
}

impl Default for Options {
    /// Transport, rank 16, a shift of at most 0.05, the base untouched.
    fn default() -> Self {
        Self {
            coupling: Coupling::default(),
            preserve: 0.0,
            ridge: 0.01,
            norm: Norm::default(),
            strength: Strength::default(),
            start: Start::default(),
            ranks: Policy::Fixed(16),
            limits: Limits { min: 0, max: 16, multiple: 1 },
            scale: 1.0,
            seed: 0,
        }
    }
}

/// Singular values that are computed and reported at least, where a layer has so many.
const SPECTRUM: usize = 16;

impl Options {
    /// The part that concerns a site.
    pub fn terms(&self) -> Terms {
        Terms { coupling: self.coupling, preserve: self.preserve, ridge: self.ridge }
    }

    /// How many components of an update are computed for a layer of this full rank, `min(m, d)`.
    pub fn components(&self, full_rank: usize) -> usize {
        self.limits.max.max(SPECTRUM).min(full_rank)
    }

    /// Every option whose value is outside its range.
    pub fn complaints(&self) -> Vec<Error> {
        let mut complaints = Vec::new();
        let mut require = |legal: bool, what, expected, found| {
            if !legal {
                complaints.push(Error::Option { what, expected, found });
            }
        };
        let positive = |x: f64| x.is_finite() && x > 0.0;
        const POSITIVE: &str = "a positive number";
        require(positive(self.ridge) && self.ridge <= 1.0, "the ridge", "above 0 and at most 1", self.ridge);
        require(
            self.preserve.is_finite() && self.preserve >= 0.0,
            "the preservation weight",
            "0 or a positive number",
            self.preserve,
        );
        match self.strength {
            Strength::MaxShift(share) => require(positive(share), "the largest shift", POSITIVE, share),
            Strength::Fixed(strength) => require(positive(strength), "the strength", POSITIVE, strength),
        }
        require(positive(self.scale), "the scale", POSITIVE, self.scale);
        match self.ranks {
            Policy::Fixed(rank) | Policy::BudgetOfRank(rank) => {
                require(rank > 0, "the rank", "at least 1", rank as f64);
            }
            Policy::Energy(share) => {
                require(share > 0.0 && share <= 1.0, "the energy share", "above 0 and at most 1", share);
            }
            Policy::Budget(parameters) => {
                require(parameters > 0, "the parameter budget", "at least 1", parameters as f64);
            }
        }
        let Limits { min, max, multiple } = self.limits;
        require(multiple > 0, "the rank multiple", "at least 1", multiple as f64);
        require(max > 0, "the largest rank", "at least 1", max as f64);
        require(min <= max, "the least rank", "at most the largest rank", min as f64);
        complaints
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_legal() {
        assert_eq!(Options::default().complaints(), []);
    }

    /// Every option that has a range complains outside it, and all complaints come together.
    #[test]
    fn every_range_is_checked() {
        let options = Options {
            preserve: -1.0,
            ridge: 0.0,
            strength: Strength::MaxShift(f64::NAN),
            ranks: Policy::Energy(1.5),
            limits: Limits { min: 3, max: 0, multiple: 0 },
            scale: f64::INFINITY,
            ..Options::default()
        };
        let texts: Vec<String> = options.complaints().iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "the ridge is 0, but must be above 0 and at most 1",
                "the preservation weight is -1, but must be 0 or a positive number",
                "the largest shift is NaN, but must be a positive number",
                "the scale is inf, but must be a positive number",
                "the energy share is 1.5, but must be above 0 and at most 1",
                "the rank multiple is 0, but must be at least 1",
                "the largest rank is 0, but must be at least 1",
                "the least rank is 3, but must be at most the largest rank",
            ]
        );
        for (ranks, text) in [
            (Policy::Fixed(0), "the rank is 0, but must be at least 1"),
            (Policy::BudgetOfRank(0), "the rank is 0, but must be at least 1"),
            (Policy::Budget(0), "the parameter budget is 0, but must be at least 1"),
        ] {
            let complaints = Options { ranks, ..Options::default() }.complaints();
            assert_eq!(complaints.iter().map(ToString::to_string).collect::<Vec<_>>(), [text]);
        }
        let strength = Options { strength: Strength::Fixed(0.0), ..Options::default() }.complaints();
        assert_eq!(strength[0].to_string(), "the strength is 0, but must be a positive number");
    }
}
