//! A decomposed layer, which gives the factors of every rank.

use super::Options;
use crate::dense;
use crate::error::Result;
use crate::factors::{Components, Factors, Initialization, Start, mirrored};
use crate::rank::Layer;

/// A decomposed layer, before its rank is known.
#[derive(Clone, Debug)]
pub enum Draft {
    /// The leading components of an update. Factors follow from them by balance, strength and start.
    Update(Decomposition),
    /// Factors that the method defines itself.
    Nested(Nested),
}

/// The leading part of a layer's update.
#[derive(Clone, Debug)]
pub struct Decomposition {
    /// The components.
    pub components: Components,
    /// Square of the Frobenius norm of the whole update, in the norm of the truncation.
    pub energy: f64,
    /// True if the energy is exact; otherwise a part is estimated from random probes.
    pub energy_exact: bool,
    /// Largest residual of a component, relative to the first singular value.
    pub residual: f64,
}

/// Factors of every rank at once: those of rank `r` are the first `r` columns of `B` and the first `r` rows of `A`.
#[derive(Clone, Debug)]
pub struct Nested {
    /// Factors of the largest rank.
    pub factors: Factors,
    /// Root of the energy that each unit of rank holds.
    pub spectrum: Vec<f64>,
    /// The energy of all ranks together.
    pub energy: f64,
    /// The [effective rank](Layer::effective_rank), if the method chooses ranks by it.
    pub effective_rank: Option<f64>,
}

impl Decomposition {
    /// The layer as the choice of ranks sees it, for factors of this start.
    pub fn as_layer(&self, start: Start) -> Layer<'_> {
        let cost = (self.components.u.nrows() + self.components.a.nrows()) as u64;
        let rank_per_component = start.rank_per_component();
        Layer {
            spectrum: &self.components.sigma,
            energy: self.energy,
            cost,
            rank_per_component,
            parts: 1,
            effective_rank: None,
        }
    }
}

impl Nested {
    /// Factors whose product is zero for every rank.
    pub(super) fn of_no_energy(factors: Factors) -> Self {
        let spectrum = vec![0.0; factors.a.nrows()];
        Self { factors, spectrum, energy: 0.0, effective_rank: None }
    }

    fn initialize(&self, rank: usize, start: Start) -> Result<Initialization> {
        let components = rank / start.rank_per_component();
        let leading = Factors {
            a: self.factors.a.subrows(0, components).to_owned(),
            b: self.factors.b.subcols(0, components).to_owned(),
        };
        let factors = if start == Start::Mirrored { mirrored(&leading) } else { leading };
        dense::check_finite("the factors", factors.a.as_ref())?;
        dense::check_finite("the factors", factors.b.as_ref())?;
        let strength = if start == Start::Zero { 0.0 } else { 1.0 };
        Ok(Initialization { factors, strength, shift: 0.0, empty_units: 0 })
    }
}

impl Draft {
    /// The layer as the choice of ranks sees it, for factors of this start.
    pub fn as_layer(&self, start: Start) -> Layer<'_> {
        match self {
            Self::Update(update) => update.as_layer(start),
            Self::Nested(nested) => {
                let Factors { a, b } = &nested.factors;
                let cost = (a.ncols() + b.nrows()) as u64;
                let rank_per_component = start.rank_per_component();
                let Nested { spectrum, energy, effective_rank, .. } = nested;
                let (energy, effective_rank) = (*energy, *effective_rank);
                Layer { spectrum, energy, cost, rank_per_component, parts: 1, effective_rank }
            }
        }
    }

    /// Outputs and inputs of the layer.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::Update(update) => (update.components.u.nrows(), update.components.a.nrows()),
            Self::Nested(nested) => (nested.factors.b.nrows(), nested.factors.a.ncols()),
        }
    }

    /// Leading singular values, or the values that the method orders its directions by.
    pub fn spectrum(&self) -> &[f64] {
        match self {
            Self::Update(update) => &update.components.sigma,
            Self::Nested(nested) => &nested.spectrum,
        }
    }

    /// Square of the norm of the matrix that is cut to low rank.
    pub fn energy(&self) -> f64 {
        match self {
            Self::Update(update) => update.energy,
            Self::Nested(nested) => nested.energy,
        }
    }

    /// True if the energy is exact; otherwise a part is estimated from random probes.
    pub fn energy_exact(&self) -> bool {
        match self {
            Self::Update(update) => update.energy_exact,
            Self::Nested(_) => true,
        }
    }

    /// Largest residual of a component, relative to the first singular value.
    pub fn residual(&self) -> f64 {
        match self {
            Self::Update(update) => update.residual,
            Self::Nested(_) => 0.0,
        }
    }

    /// The factors of this rank.
    ///
    /// # Errors
    /// The first complaint of the options; the errors of [`Components::initialize`].
    ///
    /// # Panics
    /// If the spectrum is shorter than `rank`.
    pub fn initialize(&self, rank: usize, options: &Options) -> Result<Initialization> {
        options.check()?;
        match self {
            Self::Update(update) => {
                update.components.initialize(rank, options.strength, options.start, options.scale)
            }
            Self::Nested(nested) => nested.initialize(rank, options.start),
        }
    }
}
