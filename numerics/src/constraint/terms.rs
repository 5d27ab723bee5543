//! The options of the constraints.

use super::ladder::check_ridge;
use crate::error::{Error, Result};
use crate::names::names;

/// How fine-tuning activations `x` and pre-training activations `z` correspond (method.md, "Constraints").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coupling {
    /// `z` and `x` are independent; only their means align.
    #[default]
    Uncorrelated,
    /// `z` is the least-moved linear image of `x` that has the source statistics.
    Transport,
    /// Row i of both files is the same input.
    Paired,
}

/// The norm in which an update is cut to low rank (method.md, "Decomposition").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Norm {
    /// The error of the layer's output, `E|(Δ − BA) x|² = |(Δ − BA) F|²_F` with `F Fᵀ = C + λ I`.
    #[default]
    Activations,
    /// The Frobenius norm of the update itself.
    Weights,
}

/// The mean square of a channel that damping and an isotropic source are measured by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChannelScale {
    /// The mean over all channels, which is the mean eigenvalue: `tr C / d`. A few loud channels decide it.
    Mean,
    /// The median over the channels that are not silent.
    #[default]
    Median,
}

/// How covariances are corrected for the number of rows that they come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shrinkage {
    /// No correction.
    #[default]
    None,
    /// Oracle Approximating Shrinkage of the correlations between channels (Chen, Wiesel, Eldar & Hero 2010).
    Oas,
}

names!(Coupling, "coupling": Uncorrelated = "uncorrelated", Transport = "transport", Paired = "paired");
names!(Norm, "norm": Activations = "activations", Weights = "weights");
names!(ChannelScale, "channel scale": Mean = "mean", Median = "median");
names!(Shrinkage, "shrinkage": None = "none", Oas = "oas");

/// The constraints and their weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// How the two kinds of activations correspond.
    pub coupling: Coupling,
    /// Weight `ρ_p` of the preservation of pre-training inputs.
    pub preserve: f64,
    /// Damping `ρ`, above 0 and at most 1: every `λ` is `ρ` times the scale of a channel of the matrix that it damps.
    pub ridge: f64,
    /// The scale of a channel. An embedding always uses the mean, because most tokens of a vocabulary never occur.
    pub channel_scale: ChannelScale,
    /// How covariances are corrected. Covariances from counts of tokens are not corrected.
    pub shrinkage: Shrinkage,
}

impl Terms {
    /// Every value that is outside its range.
    pub fn complaints(&self) -> Vec<Error> {
        let (what, expected) = ("the preservation weight", "0 or a positive number");
        let legal = self.preserve.is_finite() && self.preserve >= 0.0;
        let preserve = (!legal).then_some(Error::Option { what, expected, found: self.preserve });
        check_ridge(self.ridge).err().into_iter().chain(preserve).collect()
    }

    /// Refuses values outside their range.
    pub(super) fn check(&self) -> Result<()> {
        self.complaints().into_iter().next().map_or(Ok(()), Err)
    }
}
