//! The options that decide the factors, and which of them are legal together.

use super::{Method, RankRule};
use crate::constraint::{Coupling, Norm, Terms};
use crate::error::Error;
use crate::factors::{Start, Strength};
use crate::low_rank;
use crate::rank::{Limits, Policy};

/// Everything but the data that decides the factors.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Options {
    /// How an adapter is initialized.
    pub method: Method,
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
    /// [`Method::Cntlora`], [`Coupling::Uncorrelated`], [`Start::Mirrored`], rank 16.
    fn default() -> Self {
        Self {
            method: Method::default(),
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

    /// Number of components of an update that are computed for a layer of this full rank, `min(m, d)`.
    pub fn components(&self, full_rank: usize) -> usize {
        let used = |rank: usize| rank.div_ceil(self.start.rank_per_component());
        match self.method.rank_rule() {
            RankRule::Fixed => used(self.fixed_rank(full_rank)),
            RankRule::Spectrum | RankRule::Shared => used(self.limits.max).max(SPECTRUM).min(full_rank),
        }
    }

    /// Largest rank of an adapter of a layer of this full rank: the next even one where units come in mirrored pairs.
    pub fn largest_rank(&self, full_rank: usize) -> usize {
        full_rank.next_multiple_of(self.start.rank_per_component())
    }

    /// The options of one of the parts among which a layer divides its rank.
    pub fn of_part(&self, parts: usize) -> Self {
        let Limits { min, max, .. } = self.limits;
        let multiple = self.limits.step(parts) / parts;
        let ranks = match self.ranks {
            Policy::Fixed(rank) => Policy::Fixed(rank / parts),
            other => other,
        };
        Self {
            ranks,
            limits: Limits { min: min.div_ceil(parts), max: max / parts, multiple },
            ..self.clone()
        }
    }

    /// Whether the units of rank come in pairs, so that ranks are even.
    pub fn has_pairs(&self) -> bool {
        self.method == Method::Orthogonal || self.start == Start::Mirrored
    }

    /// Least step between two ranks of a layer that divides them among parts.
    pub fn rank_step(&self, parts: usize) -> usize {
        let of_part = if self.has_pairs() { 2 } else { 1 };
        self.limits.step(of_part * parts)
    }

    /// The rank of a layer of this full rank where all layers have one rank.
    pub fn fixed_rank(&self, full_rank: usize) -> usize {
        let largest = self.largest_rank(full_rank);
        match self.ranks {
            Policy::Fixed(rank) => rank.min(largest),
            _ => self.limits.max.min(largest),
        }
    }

    /// Bytes that the decomposition of a weight needs at its peak, besides the weight and the basis.
    pub fn memory(&self, outputs: u64, inputs: u64) -> u64 {
        let components = self.components(outputs.min(inputs) as usize) as u64;
        match self.method {
            Method::Cntlora | Method::Pissa | Method::CordaIpm => {
                low_rank::memory(outputs, inputs, components)
            }
            Method::Milora | Method::CordaKpm => low_rank::last_components_memory(outputs, inputs),
            // The columns and their orthonormal basis, or what is drawn.
            Method::Olora | Method::Eva | Method::Lora | Method::Gaussian | Method::Orthogonal => {
                2 * 4 * components * (outputs + inputs)
            }
        }
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
            Policy::Fixed(rank) | Policy::BudgetOfRank(rank) | Policy::Shared(rank) => {
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
        if let (true, Policy::Fixed(rank)) = (self.has_pairs(), self.ranks)
            && !rank.is_multiple_of(2)
        {
            let is_orthogonal = self.method == Method::Orthogonal;
            let what = if is_orthogonal { "the method orthogonal" } else { "the mirrored start" };
            complaints.push(Error::OddRank { rank, what });
        }
        complaints.extend(self.missing_combinations());
        complaints
    }

    /// What the method does not have.
    fn missing_combinations(&self) -> impl Iterator<Item = Error> {
        let method = self.method.name();
        let starts = self.method.starts();
        let start = (!starts.contains(&self.start)).then(|| Error::Combination {
            method,
            what: format!("start {}", self.start.name()),
            instead: format!(
                "it has {}",
                starts.iter().map(|start| start.name()).collect::<Vec<_>>().join(", ")
            ),
        });
        let legal = match (self.method.rank_rule(), self.ranks) {
            (RankRule::Spectrum, policy) => !matches!(policy, Policy::Shared(_)),
            (RankRule::Shared, policy) => matches!(policy, Policy::Fixed(_) | Policy::Shared(_)),
            (RankRule::Fixed, policy) => matches!(policy, Policy::Fixed(_)),
        };
        let ranks = (!legal).then(|| Error::Combination {
            method,
            what: "ranks by this rule".into(),
            instead: match self.method.rank_rule() {
                RankRule::Spectrum => "it has one rank for all layers, a share of the energy, or a budget",
                RankRule::Shared => "it has a rank that layers share out, or one for all",
                RankRule::Fixed => "it has one rank for all layers",
            }
            .into(),
        });
        start.into_iter().chain(ranks)
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
