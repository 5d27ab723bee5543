//! The interface between a method and the rest of the program: each method implements [`Definition`] in its own file.

use super::{Draft, Options};
use crate::constraint::SiteEvidence;
use crate::error::{Error, Result};
use crate::factors::{LayerShape, Start};
use crate::low_rank;
#[cfg(doc)]
use crate::rank::Policy;
use faer::{MatRef, Par};
use std::fmt::Debug;

/// How a method chooses ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RankRule {
    /// From singular values: every policy but [`Policy::Shared`] and [`Policy::Proportional`].
    Spectrum,
    /// [`Policy::Shared`], or one rank for all layers.
    Shared,
    /// [`Policy::Proportional`], or one rank for all layers.
    Proportional,
    /// One rank for all layers.
    Fixed,
}

/// A property that the factors of a method have, apart from rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// `BᵀB = A Aᵀ`.
    Balanced,
    /// `BᵀB = I`.
    OrthonormalUp,
    /// `BᵀB = A Aᵀ = I`.
    Orthonormal,
    /// `BᵀB = I`, and `A = 0`.
    OrthonormalUpZeroDown,
    /// `B = 0`, and the rows of `A` are orthonormal.
    OrthonormalDown,
    /// `B = 0`.
    ZeroUp,
    /// `A = 0`.
    ZeroDown,
    /// `B A = 0`, and neither factor is zero.
    ZeroProduct,
    /// `B A = 0`: the rows of `A` are opposite in pairs, and the columns of `B` equal.
    Mirrored,
}

/// The statistics of activations that a method uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Uses {
    /// None: the method uses weights alone.
    Weights,
    /// The fine-tuning activations.
    Target,
    /// The pre-training activations.
    Source,
    /// The fine-tuning and the pre-training activations.
    Both,
    /// The fine-tuning activations and, if there are any, the pre-training activations, with the options of
    /// [`Terms`](crate::constraint::Terms).
    Constraints,
}

/// The size of a site, from which its memory and its work follow.
#[derive(Clone, Copy, Debug)]
pub struct SiteSize {
    /// Numbers per row; of an embedding, the number of tokens.
    pub width: u64,
    /// Of an embedding, the number of [classes](crate::constraint::token_classes) of its tokens.
    pub classes: Option<u64>,
    /// True if pre-training activations were measured.
    pub measured_source: bool,
}

/// The size of a layer, from which its work follows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerSize {
    pub(crate) outputs: u64,
    pub(crate) inputs: u64,
    pub(crate) components: u64,
    pub(crate) is_embedding: bool,
}

impl LayerSize {
    /// Operations of a truncated decomposition of the weight times a matrix of the site, if a product of that matrix with a vector needs
    /// this multiple of its entries. Those of tokens are diagonal.
    pub(crate) fn truncated(self, of_site: f64) -> f64 {
        let Self { outputs, inputs, components, is_embedding } = self;
        let (m, d) = (outputs as f64, inputs as f64);
        let of_site = if is_embedding { d } else { of_site * d * d };
        low_rank::work(outputs, inputs, components, 2.0 * m * d + of_site)
    }
}

/// Bytes of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// At the peak of the computation.
    pub peak: u64,
    /// Of the result.
    pub held: u64,
}

/// One method.
pub(crate) trait Definition: Sync {
    /// A line for the help.
    fn description(&self) -> &'static str;

    /// The starts that the method has, the default first: those of directions of the weight, unless the method has others.
    fn starts(&self) -> &'static [Start] {
        &[Start::Residual, Start::Mirrored]
    }

    /// How the method chooses ranks.
    fn rank_rule(&self) -> RankRule;

    /// The form of the factors of a layer of this shape, for every start but [`Start::Mirrored`].
    fn form(&self, start: Start, shape: &LayerShape) -> Form;

    /// The statistics that the method uses.
    fn uses(&self) -> Uses {
        Uses::Weights
    }

    /// True if the method damps the second moment.
    fn has_ridge(&self) -> bool {
        false
    }

    /// True if the method itself makes pairs of units of rank.
    fn has_pairs(&self) -> bool {
        false
    }

    /// True if the method weighs pre-training against fine-tuning activations with [`Options::beta`].
    fn has_beta(&self) -> bool {
        false
    }

    /// True if training must not change `B`.
    fn keeps_up(&self) -> bool {
        false
    }

    /// The reason why the method does not adapt layers of a shape, if it does not.
    fn reason_against(&self, _shape: &LayerShape) -> Option<&'static str> {
        None
    }

    /// The part of the work that depends on the activations of a site alone. There is `evidence` if [`Self::uses`] asks for it. It is
    /// never of tokens if there is a [`Self::reason_against`] embeddings. `name` selects the site's random stream.
    fn basis(
        &self,
        evidence: Option<SiteEvidence<'_>>,
        name: &str,
        options: &Options,
        par: Par,
    ) -> Result<Box<dyn Basis>>;

    /// Bytes that [`Self::basis`] needs, and that its result holds.
    fn basis_memory(&self, _site: SiteSize, _options: &Options) -> Bytes {
        Bytes::default()
    }

    /// Operations of [`Self::basis`], in units of the cube of the site's width, or of the number of its classes.
    fn basis_cubes(&self, _site: SiteSize, _options: &Options) -> f64 {
        0.0
    }

    /// Floating-point operations of the decomposition of a weight.
    fn layer_work(&self, layer: LayerSize) -> f64 {
        // A QR decomposition of the factors.
        4.0 * (layer.outputs as f64 + layer.inputs as f64) * (layer.components as f64).powi(2)
    }

    /// Bytes that the decomposition of a weight into so many components needs at its peak, besides the weight and the basis.
    fn layer_memory(&self, outputs: u64, inputs: u64, components: u64) -> u64 {
        // The factors, and as much again.
        outputs.saturating_add(inputs).saturating_mul(components).saturating_mul(2 * 4)
    }
}

/// A weight `W (m × d)` with finite numbers, and the layer that it belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weight<'a> {
    pub numbers: MatRef<'a, f32>,
    pub shape: &'a LayerShape,
    /// Selects the layer's random stream.
    pub name: &'a str,
}

impl Weight<'_> {
    /// The largest rank of a matrix of this shape, `min(m, d)`.
    pub(crate) fn full_rank(&self) -> usize {
        self.numbers.nrows().min(self.numbers.ncols())
    }
}

/// The result of [`Definition::basis`]: the part of a method that depends on the activations of a site alone.
pub(crate) trait Basis: Debug + Send + Sync {
    /// Decomposes a weight. The rank of the options is that of this weight: of a part, its share.
    fn decompose(&self, weight: Weight<'_>, options: &Options, par: Par) -> Result<Draft>;

    /// The relative dampings that were used, each with the name of its matrix.
    fn dampings(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }

    /// The distance between both kinds of activations: see
    /// [`Constraint::frechet_distance`](crate::constraint::Constraint::frechet_distance).
    fn frechet_distance(&self) -> Option<f64> {
        None
    }
}

/// Refuses a weight that does not read activations of this width.
pub(super) fn check_width(weight: MatRef<'_, f32>, expected: usize) -> Result<()> {
    let found = weight.ncols();
    if found == expected {
        return Ok(());
    }
    Err(Error::Shape { what: "input features of the weight", expected, found })
}
