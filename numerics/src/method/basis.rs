//! What a method makes of the activations of a site, and of each weight on that.

use super::{Draft, Method, Options, cntlora, corda, eva, lora, milora, olora, orthogonal, pissa};
use crate::constraint::{Constraint, Evidence, SiteOperator, TokenConstraint};
use crate::error::{Error, Result};
use crate::factors::LayerShape;
use crate::moments::Counts;
use faer::{MatRef, Par};

/// What a method makes of the activations of a site, for all weights that read it.
#[derive(Debug)]
pub enum Basis {
    /// Nothing: the method looks at weights alone.
    None,
    /// The constraints of [`cntlora`].
    Constraint(Constraint),
    /// The constraints of [`cntlora`] for an embedding.
    Tokens(TokenConstraint),
    /// The second moment of [`corda`].
    Covariance(corda::Covariance),
    /// The directions of [`eva`].
    Directions(eva::Directions),
}

impl Basis {
    /// What the method of the options makes of a site. Only [`cntlora`] looks at more than the target. `name` gives the
    /// site's random stream.
    ///
    /// # Errors
    /// The first complaint of the options; what the constructors of the variants return; [`Error::NoRows`] without evidence where
    /// the method needs some.
    pub fn new(evidence: Option<Evidence<'_>>, name: &str, options: &Options, par: Par) -> Result<Self> {
        options.check()?;
        if !options.method.reads_activations() {
            return Ok(Self::None);
        }
        let evidence = evidence.ok_or(Error::NoRows)?;
        match options.method {
            Method::CordaIpm | Method::CordaKpm => {
                let part = corda_part(options.method);
                corda::Covariance::new(evidence.target, options.ridge, part, par).map(Self::Covariance)
            }
            Method::Eva => eva::Directions::new(evidence.target, name, options, par).map(Self::Directions),
            _ => Constraint::new(evidence, options.terms(), par).map(Self::Constraint),
        }
    }

    /// What the method of the options makes of the tokens that an embedding met.
    ///
    /// # Errors
    /// As [`Self::new`]; [`Error::Combination`] for a method that adapts no embeddings.
    pub fn of_tokens(target: &Counts, source: Option<&Counts>, options: &Options, par: Par) -> Result<Self> {
        options.check()?;
        let method = options.method;
        if let Some(reason) = method.reason_against_embeddings() {
            let (method, what) = (method.name(), "embeddings".to_owned());
            return Err(Error::Combination { method, what, instead: reason.into() });
        }
        match method {
            Method::Cntlora => TokenConstraint::new(target, source, options.terms(), par).map(Self::Tokens),
            Method::CordaIpm | Method::CordaKpm => {
                corda::Covariance::of_tokens(target, options.ridge, corda_part(method)).map(Self::Covariance)
            }
            _ => Ok(Self::None),
        }
    }

    /// The relative dampings that were used, each with the name of its matrix; none where nothing is damped.
    pub fn dampings(&self) -> Vec<(&'static str, f64)> {
        match self {
            Self::Constraint(constraint) => constraint.dampings().named().collect(),
            Self::Tokens(constraint) => constraint.dampings().named().collect(),
            Self::Covariance(covariance) => vec![("second moment of the activations", covariance.damping())],
            Self::None | Self::Directions(_) => Vec::new(),
        }
    }

    /// The largest of [`Self::dampings`], if there is any.
    pub fn damping(&self) -> Option<f64> {
        self.dampings().into_iter().map(|(_, damping)| damping).reduce(f64::max)
    }

    /// Distance between both kinds of activations: see [`Constraint::frechet_distance`].
    pub fn frechet_distance(&self) -> Option<f64> {
        match self {
            Self::Constraint(constraint) => constraint.frechet_distance(),
            Self::Tokens(constraint) => constraint.frechet_distance(),
            Self::None | Self::Covariance(_) | Self::Directions(_) => None,
        }
    }

    /// What [`cntlora`] asks of the constraints of a site, whatever its activations are.
    fn constraint(&self) -> Option<&dyn SiteOperator> {
        match self {
            Self::Constraint(constraint) => Some(constraint),
            Self::Tokens(constraint) => Some(constraint),
            Self::None | Self::Covariance(_) | Self::Directions(_) => None,
        }
    }

    /// Decomposes one weight, `W (m × d)`, of a layer of this shape: one of the parts among which its module divides the rank of
    /// the options, if it does. `name` gives its random stream.
    ///
    /// # Errors
    /// The first complaint of the options; [`Error::Shape`] if the weight does not read activations of this width; [`Error::NonFinite`] for a weight with NaN
    /// or infinity; [`Error::Combination`] for a rank that the method cannot have; what the decomposition returns.
    ///
    /// # Panics
    /// If the basis was made for another method.
    pub fn decompose(
        &self,
        weight: MatRef<'_, f32>,
        shape: &LayerShape,
        name: &str,
        options: &Options,
        par: Par,
    ) -> Result<Draft> {
        options.check()?;
        let options = &options.of_part(shape.parts());
        // It looks at the whole weight itself.
        if let (Method::Cntlora, Some(constraint)) = (options.method, self.constraint()) {
            return Ok(Draft::Update(cntlora::decompose_part(constraint, weight, name, options, par)?));
        }
        let (outputs, inputs) = weight.shape();
        crate::dense::check_finite("the weight", weight)?;
        Ok(match (options.method, self) {
            (Method::CordaIpm | Method::CordaKpm, Self::Covariance(covariance)) => {
                Draft::Update(corda::decompose(covariance, weight, name, options, par)?)
            }
            (Method::Eva, Self::Directions(directions)) => Draft::Nested(eva::decompose(directions, weight)?),
            (Method::Pissa, _) => Draft::Update(pissa::decompose(weight, name, options, par)?),
            (Method::Milora, _) => Draft::Update(milora::decompose(weight, options, par)?),
            (Method::Olora, _) => Draft::Nested(olora::decompose(weight, options, par)?),
            (Method::Lora | Method::Gaussian, _) if *shape == LayerShape::Embedding => {
                Draft::Nested(lora::embedding(outputs, inputs, name, options))
            }
            (Method::Lora, _) => Draft::Nested(lora::kaiming(outputs, inputs, name, options)),
            (Method::Gaussian, _) => {
                Draft::Nested(lora::gaussian(outputs, inputs, shape.parts(), name, options))
            }
            (Method::Orthogonal, _) => Draft::Nested(orthogonal::decompose(outputs, inputs, name, options)?),
            (method, basis) => panic!("{basis:?} is no basis of {method:?}"),
        })
    }

    /// Bytes that [`Self::new`] needs at its peak for a site of width `d`, and bytes that its result holds.
    pub fn memory(width: u64, options: &Options, measured_source: bool) -> (u64, u64) {
        match options.method {
            Method::Cntlora => Constraint::memory(width, options.terms(), measured_source),
            Method::CordaIpm | Method::CordaKpm => {
                corda::Covariance::memory(width, corda_part(options.method))
            }
            Method::Eva => eva::Directions::memory(width, options),
            _ => (0, 0),
        }
    }

    /// As [`Self::memory`], for an embedding of `V` tokens in `k` [classes](crate::constraint::token_classes).
    pub fn memory_of_tokens(
        tokens: u64,
        classes: u64,
        options: &Options,
        measured_source: bool,
    ) -> (u64, u64) {
        match options.method {
            Method::Cntlora => TokenConstraint::memory(tokens, classes, options.terms(), measured_source),
            Method::CordaIpm | Method::CordaKpm => {
                corda::Covariance::memory_of_tokens(tokens, corda_part(options.method))
            }
            _ => (0, 0),
        }
    }
}

/// The part of the triplets that a mode of [`corda`] takes.
fn corda_part(method: Method) -> corda::Part {
    if method == Method::CordaKpm { corda::Part::Last } else { corda::Part::First }
}
