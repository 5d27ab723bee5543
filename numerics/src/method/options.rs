//! The options that decide the factors, and which of them are legal together.

use super::{Method, RankRule};
use crate::constraint::{ChannelScale, Coupling, Norm, Shrinkage, Terms};
use crate::error::{Error, Result};
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
    /// Damping `ρ`, relative to the scale of a channel.
    pub ridge: f64,
    /// The scale of a channel, for [`Method::Cntlora`]. Options that were saved before there was a choice have the mean.
    #[serde(default = "mean")]
    pub channel_scale: ChannelScale,
    /// How covariances are corrected for few rows, for [`Method::Cntlora`].
    #[serde(default)]
    pub shrinkage: Shrinkage,
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
            channel_scale: ChannelScale::default(),
            shrinkage: Shrinkage::default(),
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

fn mean() -> ChannelScale {
    ChannelScale::Mean
}

/// Singular values that are computed and reported at least, where a layer has so many.
const SPECTRUM: usize = 16;

impl Options {
    /// The part that concerns a site.
    pub fn terms(&self) -> Terms {
        Terms {
            coupling: self.coupling,
            preserve: self.preserve,
            ridge: self.ridge,
            channel_scale: self.channel_scale,
            shrinkage: self.shrinkage,
        }
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
            Method::Milora | Method::CordaKpm => low_rank::dense_memory(outputs, inputs),
            // The columns and their orthonormal basis, or what is drawn.
            Method::Olora | Method::Eva | Method::Lora | Method::Gaussian | Method::Orthogonal => {
                2 * 4 * components * (outputs + inputs)
            }
        }
    }

    /// Refuses options that have a complaint, with the first.
    ///
    /// # Errors
    /// [`Error::Option`], [`Error::OddRank`], [`Error::Combination`].
    pub fn check(&self) -> Result<()> {
        self.complaints().into_iter().next().map_or(Ok(()), Err)
    }

    /// Every option whose value is outside its range, or does not go with another.
    pub fn complaints(&self) -> Vec<Error> {
        let mut complaints = self.terms().complaints();
        let mut require = |legal: bool, what, expected, found| {
            if !legal {
                complaints.push(Error::Option { what, expected, found });
            }
        };
        let positive = |x: f64| x.is_finite() && x > 0.0;
        const POSITIVE: &str = "a positive number";
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
        if let Policy::Fixed(rank) = self.ranks {
            require(rank <= max, "the rank", "at most the largest rank", rank as f64);
            if self.has_pairs() && !rank.is_multiple_of(2) {
                let is_orthogonal = self.method == Method::Orthogonal;
                let what = if is_orthogonal { "the method orthogonal" } else { "the mirrored start" };
                complaints.push(Error::OddRank { rank, what });
            }
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

    /// Options that were saved before there were a scale and a shrinkage are read as what they meant.
    #[test]
    fn older_options_are_read() {
        let now = Options { channel_scale: ChannelScale::Mean, ..Options::default() };
        let mut value = serde_json::to_value(&now).unwrap();
        for field in ["channel_scale", "shrinkage"] {
            assert!(value.as_object_mut().unwrap().remove(field).is_some(), "{field}");
        }
        assert_eq!(serde_json::from_value::<Options>(value).unwrap(), now);
    }

    /// No entrance of the numerics takes options that have a complaint.
    #[test]
    fn options_with_complaints_are_refused_everywhere() {
        use crate::constraint::{Constraint, Evidence};
        use crate::factors::LayerShape;
        use crate::method::{Basis, cntlora, eva};
        use crate::moments::{Counts, Moments};
        use faer::Par;

        let rows = crate::random::gaussian::<f32>(50, 6, 1, "rows");
        let weight = crate::random::gaussian::<f32>(8, 6, 1, "weight");
        let (moments, counts) = (Moments::of(rows.as_ref()).unwrap(), Counts::new(vec![1, 2, 3]).unwrap());
        let evidence = Evidence { target: &moments, source: None, change: None };
        let limits = Limits { min: 0, max: 4, multiple: 1 };
        let legal = Options { ranks: Policy::Fixed(4), limits, ..Options::default() };
        let constraint = Constraint::new(evidence, legal.terms(), Par::Seq).unwrap();
        let basis = Basis::new(Some(evidence), "s", &legal, Par::Seq).unwrap();
        let shape = LayerShape::Linear;
        let draft = basis.decompose(weight.as_ref(), &shape, "w", &legal, Par::Seq).unwrap();
        let over =
            Options { ranks: Policy::Fixed(32), limits: Limits { max: 16, ..limits }, ..legal.clone() };
        assert_eq!(
            over.complaints().iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["the rank is 32, but must be at most the largest rank"]
        );
        for bad in [
            over,
            Options { method: Method::Pissa, start: Start::Update, ..legal.clone() },
            Options { method: Method::Eva, start: Start::Update, ..legal.clone() },
            Options { scale: 0.0, ..legal.clone() },
        ] {
            let wanted = bad.complaints().remove(0);
            assert_eq!(bad.check(), Err(wanted.clone()));
            let refusals = [
                Basis::new(Some(evidence), "s", &bad, Par::Seq).map(drop),
                Basis::of_tokens(&counts, None, &bad, Par::Seq).map(drop),
                basis.decompose(weight.as_ref(), &shape, "w", &bad, Par::Seq).map(drop),
                draft.initialize(4, &bad).map(drop),
                cntlora::decompose(&constraint, weight.as_ref(), "w", &bad, Par::Seq).map(drop),
                cntlora::initialize(evidence, weight.as_ref(), "w", &bad, Par::Seq).map(drop),
                eva::Directions::new(&moments, "s", &bad, Par::Seq).map(drop),
            ];
            for (entrance, refusal) in refusals.into_iter().enumerate() {
                assert_eq!(refusal, Err(wanted.clone()), "entrance {entrance}");
            }
        }
    }
}
