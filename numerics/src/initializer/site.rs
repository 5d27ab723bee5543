//! The work that depends on the activations of a site alone.

use super::threads::parallelism;
use super::{Activations, Layer};
use crate::dense;
use crate::error::{Error, Result};
use crate::factors::{LayerName, LayerShape};
use crate::method::{Basis, Options, Weight};
use crate::moments::RowsOrTokens;
use faer::{MatRef, Par};
use std::sync::Arc;

/// A place in a model whose input several weights read, with the part of the work that depends on the activations alone.
///
/// ```
/// use cntlora_numerics::initializer::Initializer;
/// use cntlora_numerics::method::Method;
/// use faer::Mat;
///
/// // A method that uses weights alone.
/// let initializer = Initializer::builder().method(Method::Pissa).rank(2).build()?;
/// let site = initializer.site_without_activations()?;
/// let weight = Mat::from_fn(8, 6, |i, j| ((2 * i + j * j) % 5) as f32);
/// for name in ["q_proj", "v_proj"] {
///     assert_eq!(site.layer(name, weight.as_ref())?.factors()?.a.shape(), (2, 6));
/// }
/// # Ok::<(), cntlora_numerics::error::Error>(())
/// ```
#[derive(Debug)]
pub struct Site {
    options: Arc<Options>,
    basis: Box<dyn Basis>,
    is_embedding: bool,
}

impl Site {
    pub(super) fn new(
        options: Arc<Options>,
        name: &str,
        activations: Option<Activations<'_>>,
    ) -> Result<Self> {
        let method = options.method;
        let evidence = activations.as_ref().map(Activations::evidence);
        let is_embedding = matches!(evidence, Some(RowsOrTokens::Tokens(_)));
        if is_embedding {
            check_shape(&options, &LayerShape::Embedding)?;
        }
        if evidence.is_none() && method.reads_activations() {
            return Err(Error::NoRows);
        }
        let par = evidence.as_ref().map_or(Par::Seq, |evidence| parallelism(evidence.width()));
        let basis = method.definition().basis(evidence, name, &options, par)?;
        Ok(Self { options, basis, is_embedding })
    }

    /// Decomposes the weight `W (m × d)` of a linear layer. At a site of tokens it is that of an embedding: one column for each
    /// token.
    ///
    /// The name of the layer selects its random numbers, besides the seed.
    ///
    /// # Errors
    /// [`Error::Shape`] if the weight does not read activations of this width; [`Error::NonFinite`] for a weight with NaN or infinity;
    /// [`Error::Combination`] for a rank or a kind of layer that the method does not have; [`Error::NoConvergence`].
    pub fn layer(&self, name: impl Into<LayerName>, weight: MatRef<'_, f32>) -> Result<Layer> {
        let shape = if self.is_embedding { LayerShape::Embedding } else { LayerShape::Linear };
        self.layer_of_shape(name, weight, &shape)
    }

    /// Decomposes the weight `W (m × d)` of a layer of any shape. Of a convolution, `d` is the length of an unfolded patch.
    ///
    /// # Errors
    /// As [`Self::layer`].
    pub fn layer_of_shape(
        &self,
        name: impl Into<LayerName>,
        weight: MatRef<'_, f32>,
        shape: &LayerShape,
    ) -> Result<Layer> {
        check_shape(&self.options, shape)?;
        dense::check_finite("the weight", weight)?;
        let name = name.into();
        let options = self.options.of_part(shape.parts());
        let par = parallelism(weight.ncols());
        let input = Weight { numbers: weight, shape, name: &name.to_string() };
        let draft = self.basis.decompose(input, &options, par)?;
        Ok(Layer::new(name, draft, shape.parts(), self.options.clone()))
    }

    /// The relative dampings that were used, each with the name of its matrix; none if nothing was damped. They are above the
    /// ridge of the options if a matrix could not be factored with it.
    pub fn dampings(&self) -> Vec<(&'static str, f64)> {
        self.basis.dampings()
    }

    /// Distance between fine-tuning and pre-training activations: see
    /// [`Constraint::frechet_distance`](crate::constraint::Constraint::frechet_distance).
    pub fn frechet_distance(&self) -> Option<f64> {
        self.basis.frechet_distance()
    }
}

/// Refuses a method that does not adapt layers of a shape.
fn check_shape(options: &Options, shape: &LayerShape) -> Result<()> {
    match options.method.reason_against(shape) {
        None => Ok(()),
        Some(reason) => Err(Error::Combination {
            method: options.method.name(),
            what: shape.plural().to_owned(),
            instead: reason.into(),
        }),
    }
}
