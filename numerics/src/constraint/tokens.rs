//! The constraints of an embedding, whose activations are unit vectors: one for each token of a vocabulary of size `V`.
//!
//! With the shares `p` of the tokens among the fine-tuning ones, `μ = p`, `C = diag(p)` and `Σ = diag(p) − p pᵀ`; with their
//! shares `q` among the pre-training ones, `S` is diagonal as well, and so are `F` and `L = C + ρ_p S + λI`, except for a multiple of `p
//! pᵀ` if the source is isotropic. Only the transport `T Σ` is dense. It is the same for all tokens with the same counts, and
//! [`ClassMatrix`] holds it. The formulas are those of [`Constraint`](super::Constraint) with
//! [`ChannelScale::Mean`](super::ChannelScale::Mean) over all `V` tokens, for all terms: most tokens of a vocabulary never occur, so the
//! median means nothing. Counts are exact: there is no noise to remove, and nothing is shrunk.

use super::classes::{ClassMatrix, Classes, map_columns};
use super::damped::Damped;
use super::ladder::Ladder;
use super::transport::Target;
use super::{Coupling, Dampings, Norm, SiteOperator, Terms, TokenEvidence, transport};
use crate::dense;
use crate::error::{Error, Result};
use faer::{ColRef, Mat, MatMut, MatRef, Par};

/// The constraints of an embedding, factored. In f64, since it is small.
#[derive(Debug)]
pub struct TokenConstraint {
    /// `p`: mean, and diagonal of `C`.
    shares: Vec<f64>,
    /// `μ_z`.
    source_mean: Vec<f64>,
    /// `T Σ`, in [`Coupling::Transport`].
    transport: Option<ClassMatrix>,
    /// `λ`: `F` is the diagonal root of `C + λI`.
    lambda: f64,
    /// Diagonal `D` of `L`.
    denominator: Vec<f64>,
    /// If `L` is not diagonal but `D + ρ_p p pᵀ`, `w` in `L⁻¹ = D⁻¹ − w D⁻¹ p pᵀ D⁻¹` (Sherman and Morrison 1950).
    along_mean: Option<f64>,
    dampings: Dampings,
    frechet_distance: Option<f64>,
}

/// Measured shares of pre-training tokens.
struct Source {
    /// `q = μ_z`.
    shares: Vec<f64>,
    /// `tr Σ_z`.
    variance: f64,
    /// Target of `Σ_z`.
    lambda: f64,
}

impl TokenConstraint {
    /// Factors the constraints of an embedding: `O(V)` operations, and `O(k³)` in [`Coupling::Transport`] with `k` classes
    /// of tokens, see [`token_classes`](super::token_classes).
    ///
    /// # Errors
    /// [`Error::Option`] for terms outside their ranges; [`Error::Shape`] for vocabularies of different size;
    /// [`Error::NoVariation`] if only one token occurred; [`Error::NoPairs`] for [`Coupling::Paired`];
    /// [`Error::NotPositiveDefinite`] if even the largest damping does not help.
    pub fn new(evidence: TokenEvidence<'_>, terms: Terms, par: Par) -> Result<Self> {
        let TokenEvidence { target, source } = evidence;
        terms.check()?;
        if terms.coupling == Coupling::Paired {
            return Err(Error::NoPairs);
        }
        if let Some(source) = source
            && source.width() != target.width()
        {
            let (expected, found) = (target.width(), source.width());
            return Err(Error::Shape { what: "tokens of the source activations", expected, found });
        }
        if target.variance() <= 0.0 {
            return Err(Error::NoVariation { what: "all rows of activations are equal" });
        }
        let ridge = terms.ridge;
        let width = target.width() as f64;
        let shares = target.frequencies();
        // tr C = 1.
        let lambda = ridge / width;
        let isotropic = target.variance() / width;
        let measured = source.map(|source| Source {
            shares: source.frequencies(),
            variance: source.variance(),
            lambda: ridge * source.variance() / width,
        });
        let mut dampings = Dampings { covariance: None, denominator: ridge, metric: None };
        let (transport, frechet_distance) = match terms.coupling {
            Coupling::Transport => {
                let classes = Classes::of(target, source);
                let ladder = Ladder::new(ridge, target.width(), true);
                let ((matrix, distance), damping) =
                    ladder.climb("covariance of the activations", |damping| {
                        let measured = measured.as_ref();
                        move_classes(classes.clone(), &shares, target.variance(), measured, damping, par)
                    })?;
                dampings.covariance = Some(damping);
                (Some(matrix), distance)
            }
            Coupling::Uncorrelated | Coupling::Paired => (None, None),
        };
        let preserved = |token: usize| match &measured {
            Some(source) => source.shares[token] + source.lambda,
            None => isotropic,
        };
        let diagonal = |(token, share): (usize, &f64)| share + lambda + terms.preserve * preserved(token);
        let denominator: Vec<f64> = shares.iter().enumerate().map(diagonal).collect();
        let along_mean = (measured.is_none() && terms.preserve > 0.0).then(|| {
            let inside: f64 = shares.iter().zip(&denominator).map(|(share, d)| share * share / d).sum();
            terms.preserve / (1.0 + terms.preserve * inside)
        });
        let source_mean = measured.map_or_else(|| shares.clone(), |source| source.shares);
        Ok(Self {
            shares,
            source_mean,
            transport,
            lambda,
            denominator,
            along_mean,
            dampings,
            frechet_distance,
        })
    }

    /// Bytes that [`Self::new`] needs at its peak for `V` tokens in `k` classes, and bytes that its result holds.
    pub fn memory(tokens: u64, classes: u64, terms: Terms, measured_source: bool) -> (u64, u64) {
        // Shares, those of the source, the diagonal and a copy of counts; classes of tokens.
        let vectors = tokens.saturating_mul(8 * 4 + 2 * 4);
        let squares = match terms.coupling {
            Coupling::Transport if measured_source => 10,
            Coupling::Transport => 7,
            Coupling::Uncorrelated | Coupling::Paired => return (vectors, vectors),
        };
        // While classes are determined, there is an entry of a map for each.
        let square = classes.saturating_mul(classes).saturating_mul(8);
        let peak = square.saturating_mul(squares).saturating_add(classes.saturating_mul(64));
        (vectors.saturating_add(peak), vectors.saturating_add(square))
    }

    /// The relative dampings that were used.
    pub fn dampings(&self) -> Dampings {
        self.dampings
    }

    /// As [`Constraint::frechet_distance`](super::Constraint::frechet_distance).
    pub fn frechet_distance(&self) -> Option<f64> {
        self.frechet_distance
    }

    /// `L⁻¹ x`, in place.
    fn solve(&self, x: &mut [f64]) {
        x.iter_mut().zip(&self.denominator).for_each(|(x, denominator)| *x /= denominator);
        if let Some(weight) = self.along_mean {
            let overlap = weight * dot(&self.shares, x);
            for ((x, share), denominator) in x.iter_mut().zip(&self.shares).zip(&self.denominator) {
                *x -= overlap * share / denominator;
            }
        }
    }

    /// `F x`, in place.
    fn enter_norm(&self, norm: Norm, x: &mut [f64]) {
        if norm == Norm::Activations {
            x.iter_mut().zip(&self.shares).for_each(|(x, share)| *x *= (share + self.lambda).sqrt());
        }
    }

    /// `(T Σ + b aᵀ − C) V` in place, where `moved` are the classes of `T Σ V`.
    fn change(&self, block: MatMut<'_, f32>, moved: Option<&Mat<f64>>, [b, a]: [&[f64]; 2]) {
        map_columns(block, |j, x| {
            let along = dot(a, x);
            for (token, x) in x.iter_mut().enumerate() {
                let transported = match (&self.transport, moved) {
                    (Some(transport), Some(moved)) => transport.unfold(moved, j, token, *x),
                    _ => 0.0,
                };
                *x = transported + b[token] * along - self.shares[token] * *x;
            }
        });
    }
}

impl SiteOperator for TokenConstraint {
    fn width(&self) -> usize {
        self.shares.len()
    }

    fn apply(&self, norm: Norm, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        let mut x = block.to_owned();
        map_columns(x.as_mut(), |_, x| {
            self.enter_norm(norm, x);
            self.solve(x);
        });
        let moved = self.transport.as_ref().map(|matrix| matrix.apply(&matrix.fold(x.as_ref()), par));
        self.change(x.as_mut(), moved.as_ref(), [&self.source_mean, &self.shares]);
        x
    }

    fn apply_transpose(&self, norm: Norm, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        let mut x = block.to_owned();
        let moved = self.transport.as_ref().map(|matrix| matrix.apply_transpose(&matrix.fold(block), par));
        self.change(x.as_mut(), moved.as_ref(), [&self.shares, &self.source_mean]);
        map_columns(x.as_mut(), |_, x| {
            self.solve(x);
            self.enter_norm(norm, x);
        });
        x
    }

    fn leave_norm(&self, norm: Norm, block: MatMut<'_, f32>, _: Par) {
        if norm == Norm::Activations {
            map_columns(block, |_, x| {
                x.iter_mut().zip(&self.shares).for_each(|(x, share)| *x /= (share + self.lambda).sqrt());
            });
        }
    }

    fn activation_energy(&self, block: MatRef<'_, f32>, _: Par) -> Vec<f64> {
        let energy = |j: usize| {
            let column = block.col(j);
            column.iter().zip(&self.shares).map(|(a, share)| share * f64::from(*a).powi(2)).sum()
        };
        (0..block.ncols()).map(energy).collect()
    }

    /// `Σ pᵢ |W eᵢ|²`: `O(m V)` operations.
    fn output_energy(&self, weight: MatRef<'_, f32>, _: Par) -> f64 {
        let energy = |token: usize| weight.col(token).iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
        self.shares.iter().enumerate().filter(|(_, share)| **share > 0.0).map(|(i, p)| p * energy(i)).sum()
    }

    fn mean_and_covariance(&self) -> Option<(ColRef<'_, f64>, f64, MatRef<'_, f32>)> {
        None
    }
}

/// `T Σ`, and the Fréchet distance if a source was measured. `None` if the damped covariance is not positive definite.
fn move_classes(
    classes: Classes,
    shares: &[f64],
    variance: f64,
    source: Option<&Source>,
    ridge: f64,
    par: Par,
) -> Result<Option<(ClassMatrix, Option<f64>)>> {
    let width = shares.len() as f64;
    let lambda = ridge * variance / width;
    let p = classes.values(shares);
    let covariance = covariance(&classes.sizes, &p);
    let target = Target { covariance: covariance.as_ref(), lambda };
    let Some(source) = source else {
        let isotropic = variance / width;
        let Some(moved) = transport::isotropic(target, isotropic, 0.0, par)? else { return Ok(None) };
        let outside = p.iter().map(|p| (isotropic / (p + lambda)).sqrt() * p).collect();
        return Ok(Some((ClassMatrix::new(classes, moved.cross, outside), None)));
    };
    let q = classes.values(&source.shares);
    let mut other = self::covariance(&classes.sizes, &q);
    other.add_to_diagonal(source.lambda);
    let Some(moved) = transport::measured(target, other.as_ref(), source.lambda, par)? else {
        return Ok(None);
    };
    dense::check_finite("transported covariance", moved.cross.as_ref())?;
    let outside = p.iter().zip(&q).map(|(p, q)| ((q + source.lambda) / (p + lambda)).sqrt() * p).collect();
    let distance = moved.overlap.map(|inside| {
        let beside = p.iter().zip(&q).zip(&classes.sizes);
        let beside = beside.map(|((p, q), size)| (size - 1.0) * ((p + lambda) * (q + source.lambda)).sqrt());
        let means: f64 = shares.iter().zip(&source.shares).map(|(p, q)| (p - q).powi(2)).sum();
        let traces = (1.0 + ridge) * variance + source.variance + width * source.lambda;
        (means + traces - 2.0 * (inside + beside.sum::<f64>())).max(0.0).sqrt()
    });
    Ok(Some((ClassMatrix::new(classes, moved.cross, outside), distance)))
}

/// `diag(p) − p pᵀ` on the unit vectors of the classes.
fn covariance(sizes: &[f64], p: &[f64]) -> Mat<f64> {
    let mean: Vec<f64> = sizes.iter().zip(p).map(|(size, p)| size.sqrt() * p).collect();
    Mat::from_fn(p.len(), p.len(), |i, j| f64::from(u8::from(i == j)) * p[i] - mean[i] * mean[j])
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests;
