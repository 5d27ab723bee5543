//! SC-LoRA: Luo, Kuang, Wang, Liu & He, *SC-LoRA: Balancing Efficient Fine-tuning and Knowledge Preservation via
//! Subspace-Constrained LoRA*, 2025, arXiv 2505.23724.
//!
//! With the second moments `C` of the fine-tuning and `S` of the pre-training activations, the columns of `Q` are the `r` leading
//! eigenvectors of `(1 − β) W C Wᵀ − β W S Wᵀ`: the directions in which the outputs of the layer are large for the fine-tuning data and
//! small for the pre-training data. `B = Q`, `A = Qᵀ W`, and the base becomes `W − s B A`. As in OLoRA, nothing is divided by `s`.
//!
//! The authors choose `β` by task. The default is 0.5, which weighs both kinds of activations alike.
//!
//! The matrix is indefinite, and its leading eigenvalues can be small beside the others, for example if a loud channel is in both kinds of
//! activations. So it is formed and decomposed in f64: of the smaller side of the weight, because its other eigenvalues are zero. If fewer
//! than `r` eigenvalues are positive, the next columns of `Q` are directions that the weight does not reach, if there are any; their rows
//! of `A` are zero. PEFT does not have the method.

use super::definition::{
    Basis, Bytes, Definition, Form, LayerSize, RankRule, SiteSize, Uses, Weight, check_width,
};
use super::{Draft, Nested, Options};
use crate::constraint::SiteEvidence;
use crate::dense;
use crate::error::{Error, Result};
use crate::factors::{Factors, LayerShape, Start, sign_of_largest};
use crate::low_rank;
use crate::moments::{Counts, Moments, RowsOrTokens};
use crate::random;
use faer::{Mat, MatRef, Par};

/// The weight `β` of the pre-training activations, unless another is given.
pub const DEFAULT_BETA: f64 = 0.5;

/// The method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScLora;

impl Definition for ScLora {
    fn description(&self) -> &'static str {
        "The outputs that are large for fine-tuning and small for pre-training activations; the base keeps the rest"
    }

    fn rank_rule(&self) -> RankRule {
        RankRule::Fixed
    }

    fn form(&self, _: Start, _: &LayerShape) -> Form {
        Form::OrthonormalUp
    }

    fn uses(&self) -> Uses {
        Uses::Both
    }

    fn has_beta(&self) -> bool {
        true
    }

    fn basis(
        &self,
        evidence: Option<SiteEvidence<'_>>,
        _: &str,
        options: &Options,
        _: Par,
    ) -> Result<Box<dyn Basis>> {
        let missing = Error::NeedsSource { method: options.method.name() };
        let beta = options.beta.unwrap_or(DEFAULT_BETA);
        let balance = match evidence.ok_or(Error::NoRows)? {
            RowsOrTokens::Rows(rows) => {
                let mut balance = Symmetric::of_rows(rows.target, TARGET)?;
                balance.mix(beta, Symmetric::of_rows(rows.source.ok_or(missing)?, SOURCE)?)?;
                balance
            }
            RowsOrTokens::Tokens(tokens) => {
                let mut balance = Symmetric::of_tokens(tokens.target);
                balance.mix(beta, Symmetric::of_tokens(tokens.source.ok_or(missing)?))?;
                balance
            }
        };
        Ok(Box::new(Balance(balance)))
    }

    fn basis_memory(&self, site: SiteSize, _: &Options) -> Bytes {
        // Two matrices until they are mixed.
        let held = Symmetric::memory(site);
        Bytes { peak: held.saturating_mul(2), held }
    }

    fn layer_work(&self, layer: LayerSize) -> f64 {
        low_rank::dense_work(layer.outputs, layer.inputs)
    }

    fn layer_memory(&self, outputs: u64, inputs: u64, _: u64) -> u64 {
        low_rank::dense_memory(outputs, inputs)
    }
}

/// `(1 − β) C − β S` of a site.
#[derive(Debug)]
struct Balance(Symmetric);

impl Basis for Balance {
    fn decompose(&self, weight: Weight<'_>, options: &Options, par: Par) -> Result<Draft> {
        let rank = options.components(weight.full_rank());
        let leading = LeadingOutputs::of(&self.0, &weight, rank, options.seed, par)?;
        let factors = leading.factors;
        // B is orthonormal, so the rows of A hold the energy of the product.
        let spectrum = (0..rank).map(|row| f64::from(factors.a.row(row).norm_l2())).collect();
        let energy = f64::from(weight.numbers.norm_l2()).powi(2);
        Ok(Draft::Nested(Nested { factors, spectrum, energy, effective_rank: None }))
    }
}

/// The reasons to refuse rows that are all zero.
const TARGET: &str = "all activations are zero";
pub(super) const SOURCE: &str = "all pre-training activations are zero";

/// A symmetric matrix of the width of a site.
#[derive(Debug)]
pub(super) enum Symmetric {
    /// From rows.
    Dense(Mat<f64>),
    /// Of an embedding.
    Diagonal(Vec<f64>),
}

impl Symmetric {
    /// The second moment of rows, which are refused as `silent` if all of them are zero.
    ///
    /// # Errors
    /// [`Error::NoRows`]; [`Error::NoVariation`]; [`Error::NonFinite`] if the squares are too large.
    fn of_rows(moments: &Moments, silent: &'static str) -> Result<Self> {
        second_moment(moments, silent).map(Self::Dense)
    }

    /// The second moment of the fine-tuning activations of a site.
    ///
    /// # Errors
    /// As [`Self::of_rows`].
    pub(super) fn of_target(evidence: Option<SiteEvidence<'_>>) -> Result<Self> {
        match evidence.ok_or(Error::NoRows)? {
            RowsOrTokens::Rows(rows) => Self::of_rows(rows.target, TARGET),
            RowsOrTokens::Tokens(tokens) => Ok(Self::of_tokens(tokens.target)),
        }
    }

    /// The second moment of tokens: the share of each.
    fn of_tokens(counts: &Counts) -> Self {
        Self::Diagonal(counts.frequencies())
    }

    /// `(1 − β) M − β N`, in place of `M`.
    ///
    /// # Errors
    /// [`Error::Shape`] for a matrix of another width.
    fn mix(&mut self, beta: f64, other: Self) -> Result<()> {
        let (expected, found) = (self.width(), other.width());
        if expected != found {
            return Err(Error::Shape { what: "width of the pre-training activations", expected, found });
        }
        let mixed = |m: &mut f64, n: &f64| *m = (1.0 - beta) * *m - beta * n;
        match (self, other) {
            (Self::Dense(m), Self::Dense(n)) => {
                for (m, n) in m.col_iter_mut().zip(n.col_iter()) {
                    m.iter_mut().zip(n.iter()).for_each(|(m, n)| mixed(m, n));
                }
            }
            (Self::Diagonal(m), Self::Diagonal(n)) => m.iter_mut().zip(&n).for_each(|(m, n)| mixed(m, n)),
            _ => unreachable!("both kinds of activations of a site are rows, or both are tokens"),
        }
        Ok(())
    }

    fn width(&self) -> usize {
        match self {
            Self::Dense(matrix) => matrix.nrows(),
            Self::Diagonal(diagonal) => diagonal.len(),
        }
    }

    /// Bytes of a matrix of a site.
    pub(super) fn memory(SiteSize { width, classes, .. }: SiteSize) -> u64 {
        let numbers = if classes.is_some() { width } else { width.saturating_mul(width) };
        numbers.saturating_mul(8)
    }

    /// `R M Rᵀ`.
    fn congruent(&self, r: MatRef<'_, f64>, par: Par) -> Mat<f64> {
        let moved = match self {
            Self::Dense(matrix) => dense::product(r, matrix.as_ref(), par),
            Self::Diagonal(diagonal) => Mat::from_fn(r.nrows(), r.ncols(), |i, j| r[(i, j)] * diagonal[j]),
        };
        dense::product(moved.as_ref(), r.transpose(), par)
    }
}

/// The second moment of rows, which are refused as `silent` if all of them are zero.
///
/// # Errors
/// [`Error::NoRows`]; [`Error::NoVariation`]; [`Error::NonFinite`] if the squares are too large.
pub(super) fn second_moment(moments: &Moments, silent: &'static str) -> Result<Mat<f64>> {
    let matrix = moments.second_moment()?;
    dense::check_finite("second moment of the activations", matrix.as_ref())?;
    if matrix.diagonal().column_vector().iter().all(|square| *square <= 0.0) {
        return Err(Error::NoVariation { what: silent });
    }
    Ok(matrix)
}

/// The leading eigenvectors of `W M Wᵀ`, and the factors that follow from them.
pub(super) struct LeadingOutputs {
    /// `B = Q` and `A = Qᵀ W`.
    pub factors: Factors,
    /// The eigenvalues of `W M Wᵀ` in descending order, as many as the smaller side of the weight; the others are zero.
    pub eigenvalues: Vec<f64>,
}

impl LeadingOutputs {
    /// Those of a weight, `rank ≤ min(m, d)`. `O(min(m, d)² max(m, d))` operations in f64.
    ///
    /// # Errors
    /// [`Error::Shape`] if the weight does not read activations of this width; the errors of the decompositions.
    pub(super) fn of(
        matrix: &Symmetric,
        weight: &Weight<'_>,
        rank: usize,
        seed: u64,
        par: Par,
    ) -> Result<Self> {
        const WHAT: &str = "the second moment of the outputs";
        check_width(weight.numbers, matrix.width())?;
        let wide = dense::to_f64(weight.numbers);
        let (outputs, inputs) = wide.shape();
        // With W = Q R, the eigenvectors of W M Wᵀ for eigenvalues other than zero are Q times those of R M Rᵀ.
        let (reach, core) = match outputs <= inputs {
            true => (None, matrix.congruent(wide.as_ref(), par)),
            false => {
                let (q, r) = dense::thin_qr("the weight", wide.clone(), par)?;
                (Some(q), matrix.congruent(r.as_ref(), par))
            }
        };
        let (mut eigenvalues, vectors) = dense::self_adjoint_eigen(WHAT, core.as_ref(), par)?;
        eigenvalues.reverse();
        let vectors = vectors.reverse_cols();
        // The columns of B that the weight does not reach.
        let mut zero = 0..0;
        let b = match reach {
            None => vectors.subcols(0, rank).to_owned(),
            Some(q) => {
                let positive = eigenvalues.iter().take_while(|value| **value > 0.0).count().min(rank);
                let unreached = (rank - positive).min(outputs - inputs);
                let inside = dense::product(q.as_ref(), vectors.subcols(0, rank - unreached), par);
                zero = positive..positive + unreached;
                let outside = outside(&q, unreached, seed, weight.name, par)?;
                // Directions that the weight does not reach come before those of negative eigenvalues.
                Mat::from_fn(outputs, rank, |i, j| match j {
                    _ if j < zero.start => inside[(i, j)],
                    _ if j < zero.end => outside[(i, j - zero.start)],
                    _ => inside[(i, j - unreached)],
                })
            }
        };
        let signs: Vec<f64> = b.col_iter().map(|column| sign_of_largest(column.iter().copied())).collect();
        let b = Mat::from_fn(outputs, rank, |i, j| signs[j] * b[(i, j)]);
        let mut a = dense::product(b.transpose(), wide.as_ref(), par);
        zero.for_each(|row| a.row_mut(row).fill(0.0));
        let factors = Factors { a: dense::to_f32(a.as_ref()), b: dense::to_f32(b.as_ref()) };
        Ok(Self { factors, eigenvalues })
    }
}

/// Orthonormal columns that are orthogonal to those of `q`. There must be enough room for them.
fn outside(q: &Mat<f64>, count: usize, seed: u64, name: &str, par: Par) -> Result<Mat<f64>> {
    if count == 0 {
        return Ok(Mat::zeros(q.nrows(), 0));
    }
    let mut columns: Mat<f64> = random::gaussian(q.nrows(), count, seed, &format!("{name} outside"));
    // The second pass removes the rounding errors of the first.
    for _ in 0..2 {
        let along = dense::product(q.transpose(), columns.as_ref(), par);
        dense::add_product(columns.as_mut(), -1.0, q.as_ref(), along.as_ref(), par);
        columns = dense::thin_qr("directions outside the weight", columns, par)?.0;
    }
    Ok(columns)
}

#[cfg(test)]
mod tests;
