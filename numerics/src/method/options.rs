//! The options that decide the factors.

use super::definition::LayerSize;
use super::{Bytes, Method, RankRule, SiteSize};
use crate::constraint::{ChannelScale, Coupling, Norm, Shrinkage, Terms};
use crate::factors::{LayerShape, Start, Strength};
use crate::rank::{Limits, Policy};

/// All options that decide the factors.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Options {
    /// How an adapter is initialized.
    pub method: Method,
    /// How the two kinds of activations correspond.
    pub coupling: Coupling,
    /// Weight `ρ_p` of the preservation of pre-training inputs.
    pub preserve: f64,
    /// Damping `ρ`, relative to the scale of a channel.
    pub ridge: f64,
    /// The scale of a channel, for [`Method::Cntlora`]. Options that were saved before this field existed have the mean.
    #[serde(default = "mean")]
    pub channel_scale: ChannelScale,
    /// How covariances are corrected for few rows, for [`Method::Cntlora`].
    #[serde(default)]
    pub shrinkage: Shrinkage,
    /// Weight `β` of the pre-training activations, from 0 to 1, for [`Method::ScLora`];
    /// [`DEFAULT_BETA`](super::sc_lora::DEFAULT_BETA) if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// The norm of the truncation.
    pub norm: Norm,
    /// How much of the update is taken.
    pub strength: Strength,
    /// The model before the first step.
    pub start: Start,
    /// How ranks are chosen.
    pub ranks: Policy,
    /// The limits of every rank.
    pub limits: Limits,
    /// `s`: the adapter adds `s · B A`; PEFT's `lora_alpha` of a layer is `s` times its rank.
    pub scale: f64,
    /// Seed of the randomized decompositions.
    pub seed: u64,
}

impl Default for Options {
    /// [`Method::Cntlora`], [`Coupling::Uncorrelated`], [`Start::Zero`], rank 16.
    fn default() -> Self {
        Self {
            method: Method::default(),
            coupling: Coupling::default(),
            preserve: 0.0,
            ridge: 0.01,
            channel_scale: ChannelScale::default(),
            shrinkage: Shrinkage::default(),
            beta: None,
            norm: Norm::default(),
            strength: Strength::default(),
            start: Method::default().starts()[0],
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

/// Singular values that are computed and reported at least, if a layer has so many.
const SPECTRUM: usize = 16;

impl Options {
    /// The options of the constraints.
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
            RankRule::Spectrum | RankRule::Shared | RankRule::Proportional => {
                used(self.limits.max).max(SPECTRUM).min(full_rank)
            }
        }
    }

    /// Largest rank of an adapter of a layer of this full rank: the next even number if units come in mirrored pairs.
    pub fn largest_rank(&self, full_rank: usize) -> usize {
        full_rank.next_multiple_of(self.start.rank_per_component())
    }

    /// The options of one part of a layer that divides its rank among parts.
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

    /// True if the units of rank come in pairs, so that ranks are even.
    pub fn has_pairs(&self) -> bool {
        self.method.definition().has_pairs() || self.start == Start::Mirrored
    }

    /// Least step between two ranks of a layer that divides them among parts.
    pub fn rank_step(&self, parts: usize) -> usize {
        let of_part = if self.has_pairs() { 2 } else { 1 };
        self.limits.step(of_part * parts)
    }

    /// The rank of a layer of this full rank if all layers have one rank.
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
        self.method.definition().layer_memory(outputs, inputs, components)
    }

    /// Floating-point operations of the decomposition of a weight, without those of its site.
    pub fn layer_work(&self, outputs: u64, inputs: u64, shape: &LayerShape) -> f64 {
        let components = self.components(outputs.min(inputs) as usize) as u64;
        let is_embedding = *shape == LayerShape::Embedding;
        self.method.definition().layer_work(LayerSize { outputs, inputs, components, is_embedding })
    }

    /// Bytes that the computations of a site need, without its weights, and that their result holds.
    pub fn site_memory(&self, site: SiteSize) -> Bytes {
        self.method.definition().basis_memory(site, self)
    }

    /// Floating-point operations of the computations of a site, without its weights.
    pub fn site_work(&self, site: SiteSize) -> f64 {
        let side = site.classes.unwrap_or(site.width) as f64;
        self.method.definition().basis_cubes(site, self) * side.powi(3)
    }
}
