//! A weight that was decomposed.

use crate::error::{Error, Result};
use crate::factors::{Factors, Initialization, LayerName, Start};
use crate::method::{Draft, Options, RankRule};
use crate::rank::{self, Policy};
use faer::Mat;
use std::sync::Arc;

/// One weight, decomposed: it gives the factors of every rank up to [`Self::largest_rank`] without the data. Methods with
/// [`RankRule::Fixed`] have the factors of one rank.
///
/// ```
/// use cntlora_numerics::factors::Start;
/// use cntlora_numerics::initializer::{Initializer, Statistics};
/// use faer::Mat;
///
/// let mut statistics = Statistics::new(6);
/// statistics.add(&Mat::from_fn(100, 6, |i, j| ((i * i + 3 * j) % 11) as f32))?;
/// let weight = Mat::from_fn(8, 6, |i, j| ((2 * i + j * j) % 5) as f32);
/// let initializer = Initializer::builder().rank(4).start(Start::Update).build()?;
/// let layer = initializer.site(&statistics)?.layer("q_proj", weight.as_ref())?;
///
/// let made = layer.initialize(layer.rank()?)?;
/// println!("{:.0} % of the update, moves the output by {:.1} %", 100.0 * layer.energy_kept(4), 100.0 * made.shift);
/// # Ok::<(), cntlora_numerics::error::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Layer {
    name: LayerName,
    draft: Draft,
    parts: usize,
    options: Arc<Options>,
}

impl Layer {
    pub(super) fn new(name: LayerName, draft: Draft, parts: usize, options: Arc<Options>) -> Self {
        Self { name, draft, parts, options }
    }

    /// The name of the layer.
    pub fn name(&self) -> &LayerName {
        &self.name
    }

    /// Outputs `m` and inputs `d` of the layer.
    pub fn shape(&self) -> (usize, usize) {
        self.draft.shape()
    }

    /// The rank of this layer by the policy of the options, where the rank depends on this layer alone.
    ///
    /// # Errors
    /// [`Error::SharedRanks`] for a policy that shares ranks out among layers.
    pub fn rank(&self) -> Result<usize> {
        match (self.options.ranks, self.name.block) {
            (Policy::Fixed(_), _) | (Policy::Energy(_), None) => {
                let layer = ((), self.as_rank_layer(self.options.start));
                Ok(rank::allocate_by_module(self.options.ranks, self.options.limits, &[layer])?[0])
            }
            _ => Err(Error::SharedRanks),
        }
    }

    /// The factors of [`Self::rank`].
    ///
    /// # Errors
    /// As [`Self::rank`] and [`Self::initialize`].
    pub fn factors(&self) -> Result<Factors> {
        self.factors_of_rank(self.rank()?)
    }

    /// The factors of a rank, such as one of [`Initializer::ranks`](super::Initializer::ranks).
    ///
    /// # Errors
    /// As [`Self::initialize`].
    pub fn factors_of_rank(&self, rank: usize) -> Result<Factors> {
        Ok(self.initialize(rank)?.factors)
    }

    /// The factors of a rank, and how much they change the layer. Rank 0 gives empty factors.
    ///
    /// # Errors
    /// [`Error::Option`] for a rank above [`Self::largest_rank`], or another than that of the options for a method with
    /// [`RankRule::Fixed`]; [`Error::OddRank`] for an odd rank if units come in pairs; [`Error::NonFinite`], [`Error::NoConvergence`].
    pub fn initialize(&self, rank: usize) -> Result<Initialization> {
        let largest = self.largest_rank();
        if rank > largest {
            let expected = "at most the largest rank of the layer";
            return Err(Error::Option { what: "the rank", expected, found: rank as f64 });
        }
        let per_component = self.options.start.rank_per_component();
        if !rank.is_multiple_of(per_component) {
            return Err(Error::OddRank { rank, what: format!("the {} start", self.options.start) });
        }
        // The factors of other methods are not nested: those of a smaller rank are not a part of them.
        if self.options.method.rank_rule() == RankRule::Fixed && ![0, self.rank()?].contains(&rank) {
            let expected = "the rank of the options, because the method has no other";
            return Err(Error::Option { what: "the rank", expected, found: rank as f64 });
        }
        if rank == 0 {
            let (outputs, inputs) = self.shape();
            let factors = Factors { a: Mat::zeros(0, inputs), b: Mat::zeros(outputs, 0) };
            return Ok(Initialization { factors, strength: 0.0, shift: 0.0, empty_units: 0 });
        }
        self.draft.initialize(rank, &self.options)
    }

    /// The largest rank that was computed.
    pub fn largest_rank(&self) -> usize {
        self.draft.spectrum().len() * self.options.start.rank_per_component()
    }

    /// The share of the energy that a rank keeps, from 0 to 1; 1 if there is no energy.
    ///
    /// # Panics
    /// If the rank is above [`Self::largest_rank`].
    pub fn energy_kept(&self, rank: usize) -> f64 {
        self.draft.as_layer(self.options.start).energy_kept(rank)
    }

    /// The leading singular values, or the values that the method orders its directions by.
    pub fn spectrum(&self) -> &[f64] {
        self.draft.spectrum()
    }

    /// The result of the decomposition.
    pub fn draft(&self) -> &Draft {
        &self.draft
    }

    /// As [`Self::draft`], without a copy.
    pub fn into_draft(self) -> Draft {
        self.draft
    }

    pub(super) fn as_rank_layer(&self, start: Start) -> rank::Layer<'_> {
        rank::Layer { parts: self.parts, ..self.draft.as_layer(start) }
    }
}
