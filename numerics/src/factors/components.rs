//! The components of an update, and the factors that are made from them.

use super::{Factors, Initialization, Start, Strength, mirrored};
use crate::dense;
use crate::error::Result;
use faer::{Mat, Par};

/// The leading components of an update, `Δ_r = Σ_{i<r} σᵢ uᵢ aᵢᵀ`, from which factors of any rank up to their number
/// can be made without the data.
#[derive(Clone, Debug)]
pub struct Components {
    /// Orthonormal `uᵢ`, `m × k`.
    pub u: Mat<f32>,
    /// `σᵢ`, descending.
    pub sigma: Vec<f64>,
    /// `aᵢ` as columns, `d × k`.
    pub a: Mat<f32>,
    /// `E (aᵢᵀ x)²`, so that `E|Δ_r x|² = Σ σᵢ² E (aᵢᵀ x)²`; empty for starts that do not limit the update.
    pub activation_energy: Vec<f64>,
    /// `E|W x|²`, the mean square of the layer's own output; 0 for starts that do not limit the update.
    pub output_energy: f64,
}

/// A singular value at or below this share of the largest one is a rounding error of a matrix in f32.
pub(crate) const ROUNDING: f64 = 8.0 * f32::EPSILON as f64;

impl Components {
    /// The share `η` of the update of this rank that is taken.
    ///
    /// A trust region bounds the root mean square of the change by a share of that of the output. Without data in the update's row space,
    /// or with an update of zero, `η = 1`.
    pub fn strength(&self, rank: usize, strength: Strength) -> f64 {
        match strength {
            Strength::Fixed(strength) => strength,
            Strength::MaxShift(share) => {
                let change = self.change_energy(rank);
                if change > 0.0 { (share * (self.output_energy / change).sqrt()).min(1.0) } else { 1.0 }
            }
        }
    }

    /// `E|Δ_r x|²`.
    fn change_energy(&self, rank: usize) -> f64 {
        let energies = self.sigma.iter().zip(&self.activation_energy).take(rank);
        energies.map(|(sigma, energy)| sigma * sigma * energy).sum()
    }

    /// The factors of this rank. The adapter adds `scale · B A`.
    ///
    /// The factors are balanced: `BᵀB = A Aᵀ` is diagonal, and the entry of largest magnitude in every row of `A` is positive. A unit
    /// without a singular value of its own has a zero column in `B` and an orthonormal row in `A`: the product does not change, and the
    /// unit can be trained. For [`Start::Zero`], `B = 0` and the rows of `A` are the right singular vectors of the product. For
    /// [`Start::Mirrored`], the factors of half the rank are [mirrored](fn@mirrored).
    ///
    /// # Errors
    /// [`Error::NonFinite`](crate::error::Error::NonFinite), [`Error::NoConvergence`](crate::error::Error::NoConvergence).
    ///
    /// # Panics
    /// If there are fewer components than the rank needs, or if the rank of mirrored factors is odd.
    pub fn initialize(
        &self,
        rank: usize,
        strength: Strength,
        start: Start,
        scale: f64,
    ) -> Result<Initialization> {
        let per_component = start.rank_per_component();
        assert!(rank.is_multiple_of(per_component), "mirrored factors of the odd rank {rank}");
        let components = rank / per_component;
        let eta = match start {
            Start::Update => self.strength(components, strength),
            Start::Residual | Start::Mirrored => 1.0,
            Start::Zero => 0.0,
        };
        let singular = self.product_svd(components)?;
        let largest = singular.sigma.first().copied().unwrap_or(0.0);
        let is_empty = |sigma: f64| sigma <= ROUNDING * largest;
        let empty_units = singular.sigma.iter().filter(|sigma| is_empty(**sigma)).count() * per_component;
        let balanced = || {
            singular.factors(|sigma| {
                let root = (sigma * eta / scale).sqrt();
                if is_empty(sigma) { (0.0, 1.0) } else { (root, root) }
            })
        };
        let factors = match start {
            Start::Zero => singular.factors(|_| (0.0, 1.0)),
            Start::Update | Start::Residual => balanced(),
            Start::Mirrored => mirrored(&balanced()),
        };
        dense::check_finite("the factors", factors.a.as_ref())?;
        dense::check_finite("the factors", factors.b.as_ref())?;
        let shift = match start {
            Start::Update if self.output_energy > 0.0 => {
                eta * (self.change_energy(rank) / self.output_energy).sqrt()
            }
            _ => 0.0,
        };
        Ok(Initialization { factors, strength: eta, shift, empty_units })
    }

    /// Singular value decomposition of `Δ_r`, from that of the small matrix `diag(σ) Rᵀ` with `[a₁ … a_r] = Q R`. A component whose `σ`
    /// is a rounding error counts as zero, because its `a` may be large.
    fn product_svd(&self, rank: usize) -> Result<ProductSvd> {
        let single = |matrix: &Mat<f32>| Mat::from_fn(matrix.nrows(), rank, |i, j| f64::from(matrix[(i, j)]));
        let (q, r) = dense::thin_qr("the rows of the down matrix", single(&self.a), Par::Seq)?;
        let least = ROUNDING * self.sigma.first().copied().unwrap_or(0.0);
        let sigma = |i: usize| if self.sigma[i] > least { self.sigma[i] } else { 0.0 };
        let core = Mat::from_fn(rank, rank, |i, j| sigma(i) * r[(j, i)]);
        let small = dense::thin_svd("the core of the update", core.as_ref(), Par::Seq)?;
        let product = |a: Mat<f64>, b: Mat<f64>| dense::product(a.as_ref(), b.as_ref(), Par::Seq);
        let (u, v) = (product(single(&self.u), small.u), product(q, small.v));
        Ok(ProductSvd { u, sigma: small.s, v })
    }
}

struct ProductSvd {
    u: Mat<f64>,
    sigma: Vec<f64>,
    v: Mat<f64>,
}

impl ProductSvd {
    /// `B = U diag(b)`, `A = diag(a) Vᵀ`, with `(b, a)` from each singular value, and the signs of `A`'s rows fixed.
    fn factors(&self, sides: impl Fn(f64) -> (f64, f64)) -> Factors {
        let sides: Vec<(f64, f64)> = self
            .sigma
            .iter()
            .enumerate()
            .map(|(i, sigma)| {
                let (b, a) = sides(*sigma);
                let sign = sign_of_largest(self.v.col(i).iter().copied());
                (sign * b, sign * a)
            })
            .collect();
        let rank = sides.len();
        Factors {
            a: Mat::from_fn(rank, self.v.nrows(), |i, j| (sides[i].1 * self.v[(j, i)]) as f32),
            // The sum has no negative zeros.
            b: Mat::from_fn(self.u.nrows(), rank, |i, j| (self.u[(i, j)] * sides[j].0) as f32 + 0.0),
        }
    }
}

/// Sign of the first entry of largest magnitude; 1 for a row of zeros.
pub(crate) fn sign_of_largest(entries: impl Iterator<Item = f64>) -> f64 {
    let largest =
        entries.fold(0.0f64, |largest, entry| if entry.abs() > largest.abs() { entry } else { largest });
    if largest < 0.0 { -1.0 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::gaussian;
    use quickcheck::quickcheck;

    fn components(m: usize, d: usize, k: usize, seed: u64) -> Components {
        let u = dense::to_f32(crate::oracle::orthonormal(m, k, seed, "u").as_ref());
        let a = gaussian::<f32>(d, k, seed, "a");
        let sigma = (1..=k).map(|i| 3.0 / i as f64).collect();
        // Activations with C = I.
        let activation_energy = (0..k).map(|i| f64::from(a.col(i).squared_norm_l2())).collect();
        Components { u, sigma, a, activation_energy, output_energy: 40.0 }
    }

    fn update(components: &Components, rank: usize) -> Mat<f64> {
        Mat::from_fn(components.u.nrows(), components.a.nrows(), |i, j| {
            (0..rank)
                .map(|k| {
                    components.sigma[k] * f64::from(components.u[(i, k)]) * f64::from(components.a[(j, k)])
                })
                .sum()
        })
    }

    fn product(factors: &Factors) -> Mat<f64> {
        let double = |m: &Mat<f32>| Mat::from_fn(m.nrows(), m.ncols(), |i, j| f64::from(m[(i, j)]));
        double(&factors.b) * double(&factors.a)
    }

    quickcheck! {
        /// The factors multiply to `Δ_r η / s`, are balanced, and have the signs that make them unique.
        fn balanced_with_the_product_unchanged(m: u8, d: u8, rank: u8, seed: u64, scale: u8) -> bool {
            let (m, d) = (usize::from(m % 12) + 4, usize::from(d % 12) + 4);
            let rank = usize::from(rank % 4) + 1;
            let scale = f64::from(scale % 7) + 0.5;
            let components = components(m, d, 4, seed);
            let made = components.initialize(rank, Strength::Fixed(0.5), Start::Update, scale).unwrap();
            let Factors { a, b } = &made.factors;
            let wanted = update(&components, rank) * faer::Scale(0.5 / scale);
            let (left, right) = (b.transpose() * b, a * a.transpose());
            let diagonal = (0..rank).all(|i| (0..rank).all(|j| i == j || right[(i, j)].abs() < 1e-4));
            let signs = (0..rank).all(|i| {
                let row: Vec<f32> = (0..d).map(|j| a[(i, j)]).collect();
                let largest = row.iter().fold(0.0f32, |x, y| x.max(y.abs()));
                row.contains(&largest)
            });
            made.strength == 0.5
                && (product(&made.factors) - &wanted).norm_max() < 1e-5 * (1.0 + wanted.norm_max())
                && (left - &right).norm_max() < 1e-4
                && diagonal
                && signs
        }

        /// The trust region is reached exactly where it binds, and does nothing where it does not.
        fn trust_region_bounds_the_shift(seed: u64, share: u8) -> bool {
            let share = f64::from(share.max(1)) / 64.0;
            let components = components(8, 9, 3, seed);
            let made = components.initialize(3, Strength::MaxShift(share), Start::Update, 1.0).unwrap();
            // With C = I the change of the output is the Frobenius norm of the product.
            let shift = product(&made.factors).norm_l2() / 40f64.sqrt();
            (made.shift - shift).abs() < 1e-4 * shift
                && (made.shift - share).abs() < 1e-6 * share || (made.strength == 1.0 && made.shift < share)
        }

        /// A zero start changes nothing, and keeps the row space of the update with orthonormal rows.
        fn zero_start_keeps_the_row_space(seed: u64, rank: u8) -> bool {
            let rank = usize::from(rank % 4) + 1;
            let components = components(8, 9, 4, seed);
            let made = components.initialize(rank, Strength::default(), Start::Zero, 2.0).unwrap();
            let a = Mat::from_fn(rank, 9, |i, j| f64::from(made.factors.a[(i, j)]));
            let update = update(&components, rank);
            let projected = &update * a.transpose() * &a;
            made.factors.b.col_iter().all(|column| column.iter().all(|entry| entry.to_bits() == 0))
                && (made.strength, made.shift) == (0.0, 0.0)
                && (&a * a.transpose() - Mat::<f64>::identity(rank, rank)).norm_max() < 1e-5
                && (projected - &update).norm_max() < 1e-4
        }
    }

    /// The residual start takes the whole update, for every strength: the base compensates for it.
    #[test]
    fn residual_start_takes_the_whole_update() {
        let components = components(6, 5, 2, 0);
        let made = components.initialize(2, Strength::MaxShift(0.01), Start::Residual, 2.0).unwrap();
        assert_eq!((made.strength, made.shift), (1.0, 0.0));
        let wanted = update(&components, 2) * faer::Scale(0.5);
        assert!((product(&made.factors) - wanted).norm_max() < 1e-5);
    }

    /// Units whose singular value is zero or a rounding error can be trained: their column of B is zero, and their row of A
    /// is a unit vector that is orthogonal to the others. The product does not change.
    #[test]
    fn units_without_a_singular_value_can_be_trained() {
        for (sigma, empty) in [([3.0, 2e-8, 0.0], 2), ([0.0; 3], 3), ([3.0, 1.0, 0.5], 0)] {
            let mut components = components(8, 9, 3, 5);
            // A direction without activations is long, and must not make a rounding error larger than the others.
            for i in 0..9 {
                components.a[(i, 1)] *= 1e4;
            }
            components.sigma = sigma.to_vec();
            for start in [Start::Update, Start::Residual, Start::Mirrored] {
                let rank = 3 * start.rank_per_component();
                let made = components.initialize(rank, Strength::Fixed(1.0), start, 2.0).unwrap();
                let Factors { a, b } = &made.factors;
                assert_eq!(made.empty_units, empty * start.rank_per_component(), "{sigma:?} {start:?}");
                for unit in 0..rank {
                    let is_empty = b.col(unit).norm_l2() == 0.0;
                    assert_eq!(is_empty, unit >= rank - made.empty_units, "{sigma:?} {start:?}");
                    let wanted = if start == Start::Mirrored { 0.5f32.sqrt() } else { 1.0 };
                    assert!(!is_empty || (a.row(unit).norm_l2() - wanted).abs() < 1e-6);
                    assert!(a.row(unit).norm_l2() > 0.0);
                }
                if start == Start::Update {
                    let overlap = a * a.transpose();
                    assert!((0..3).all(|i| (0..i).all(|j| overlap[(i, j)].abs() < 1e-4)));
                    let mut exact = components.clone();
                    exact
                        .sigma
                        .iter_mut()
                        .for_each(|sigma| *sigma = if *sigma < 1e-7 { 0.0 } else { *sigma });
                    let wanted = update(&exact, 3) * faer::Scale(0.5);
                    assert!(
                        (product(&made.factors) - wanted).norm_max() <= 1e-3 * (sigma[0] + sigma[1] * 1e4)
                    );
                }
            }
        }
    }

    /// An update of zero has factors whose product is zero.
    #[test]
    fn an_update_of_zero() {
        let mut components = components(6, 5, 2, 0);
        components.sigma = vec![0.0; 2];
        let made = components.initialize(2, Strength::default(), Start::Update, 1.0).unwrap();
        assert_eq!((made.strength, made.shift), (1.0, 0.0));
        assert_eq!(product(&made.factors).norm_max(), 0.0);
    }
}
