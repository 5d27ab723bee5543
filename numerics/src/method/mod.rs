//! The methods, each a short file in the vocabulary of the other rooms, and the options that decide the factors.
//!
//! What depends on the activations of a site is computed once for it, as a [`Basis`]; each weight that reads the site is
//! decomposed on that basis into a [`Draft`]; and when the ranks are known, a draft gives the factors. [`Options`] say how.

mod basis;
pub mod cntlora;
pub mod corda;
mod draft;
pub mod eva;
pub mod lora;
pub mod milora;
pub mod olora;
mod options;
pub mod orthogonal;
pub mod pissa;

pub use basis::Basis;
pub use draft::{Decomposition, Draft, Nested};
pub use options::Options;

use crate::error::{Error, Result};
use crate::factors::{LayerShape, Start};
use crate::names::names;
#[cfg(doc)]
use crate::rank::Policy;
use faer::MatRef;

/// How an adapter is initialized. Each variant is described in the module of its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// [`cntlora`].
    #[default]
    Cntlora,
    /// [`pissa`].
    Pissa,
    /// [`milora`].
    Milora,
    /// [`olora`].
    Olora,
    /// [`corda`], instruction-previewed mode.
    CordaIpm,
    /// [`corda`], knowledge-preserved mode.
    CordaKpm,
    /// [`eva`].
    Eva,
    /// [`lora`], by Kaiming's rule.
    Lora,
    /// [`lora`], normally distributed.
    Gaussian,
    /// [`orthogonal`].
    Orthogonal,
}

/// How a method comes to its ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RankRule {
    /// From singular values: every policy but [`Policy::Shared`].
    Spectrum,
    /// [`Policy::Shared`], or one rank for all.
    Shared,
    /// One rank for all.
    Fixed,
}

/// What the factors of a method satisfy, apart from rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// `BᵀB = A Aᵀ`.
    Balanced,
    /// `BᵀB = I`.
    OrthonormalUp,
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

names!(Method, "method":
    Cntlora = "cntlora",
    Pissa = "pissa",
    Milora = "milora",
    Olora = "olora",
    CordaIpm = "corda-ipm",
    CordaKpm = "corda-kpm",
    Eva = "eva",
    Lora = "lora",
    Gaussian = "gaussian",
    Orthogonal = "orthogonal",
);

impl Method {
    /// What the method does, in one line.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Cntlora => "Constraints between pre-training and fine-tuning activations; variable ranks",
            Self::Pissa => "The principal singular triplets of the weight; the base keeps the rest",
            Self::Milora => "The minor singular triplets of the weight; the base keeps the rest",
            Self::Olora => "The first columns of an orthonormal basis of the weight; the base keeps the rest",
            Self::CordaIpm => {
                "The part of the weight that responds most to the activations; the base keeps the rest"
            }
            Self::CordaKpm => {
                "The part of the weight that responds least to the activations; the base keeps the rest"
            }
            Self::Eva => {
                "The directions in which the activations vary most, with ranks by explained variance"
            }
            Self::Lora => "Kaiming's uniform A, and B = 0: the default of PEFT",
            Self::Gaussian => "A normally distributed A, and B = 0",
            Self::Orthogonal => "Random factors whose product is zero",
        }
    }

    /// The starts that it has, the usual one first.
    pub fn starts(self) -> &'static [Start] {
        match self {
            Self::Cntlora => &[Start::Mirrored, Start::Update, Start::Residual, Start::Zero],
            Self::Pissa | Self::Milora | Self::Olora | Self::CordaIpm | Self::CordaKpm => {
                &[Start::Residual, Start::Mirrored]
            }
            Self::Eva | Self::Lora | Self::Gaussian | Self::Orthogonal => &[Start::Zero],
        }
    }

    /// Whether it looks at activations. The others look at weights alone.
    pub fn reads_activations(self) -> bool {
        matches!(self, Self::Cntlora | Self::CordaIpm | Self::CordaKpm | Self::Eva)
    }

    /// Why it adapts no embeddings, if it does not.
    pub fn reason_against_embeddings(self) -> Option<&'static str> {
        match self {
            Self::Eva => {
                Some("tokens that were met equally often vary alike, so that they have no leading directions")
            }
            Self::Orthogonal => {
                Some("PEFT has it for other layers, and gives embeddings the factors of lora in its place")
            }
            Self::Cntlora
            | Self::Pissa
            | Self::Milora
            | Self::Olora
            | Self::CordaIpm
            | Self::CordaKpm
            | Self::Lora
            | Self::Gaussian => None,
        }
    }

    /// Whether it damps the second moment.
    pub fn has_ridge(self) -> bool {
        matches!(self, Self::Cntlora | Self::CordaIpm | Self::CordaKpm)
    }

    /// How it comes to its ranks.
    pub fn rank_rule(self) -> RankRule {
        match self {
            Self::Cntlora | Self::Pissa | Self::CordaIpm => RankRule::Spectrum,
            Self::Eva => RankRule::Shared,
            Self::Milora | Self::Olora | Self::CordaKpm | Self::Lora | Self::Gaussian | Self::Orthogonal => {
                RankRule::Fixed
            }
        }
    }

    /// What its factors of a layer of this shape satisfy.
    pub fn form(self, start: Start, shape: &LayerShape) -> Form {
        match (self, start) {
            (_, Start::Mirrored) => Form::Mirrored,
            (Self::Cntlora, Start::Zero) | (Self::Eva, _) => Form::OrthonormalDown,
            (Self::Cntlora | Self::Pissa | Self::Milora | Self::CordaIpm | Self::CordaKpm, _) => {
                Form::Balanced
            }
            (Self::Olora, _) => Form::OrthonormalUp,
            (Self::Lora | Self::Gaussian, _) if *shape == LayerShape::Embedding => Form::ZeroDown,
            (Self::Lora | Self::Gaussian, _) => Form::ZeroUp,
            (Self::Orthogonal, _) => Form::ZeroProduct,
        }
    }
}

/// Refuses a weight that does not read activations of this width.
fn check_width(weight: MatRef<'_, f32>, expected: usize) -> Result<()> {
    let found = weight.ncols();
    if found == expected {
        return Ok(());
    }
    Err(Error::Shape { what: "input features of the weight", expected, found })
}
