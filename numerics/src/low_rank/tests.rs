//! Both methods against the dense decomposition, on spectra whose answer is known.

use super::krylov::FALLBACK_ENTRIES;
use super::svd::*;
use super::*;
use crate::dense;
use crate::random::gaussian;
use faer::{Mat, MatRef, Par};
use quickcheck::quickcheck;

mod structured;

/// `m × n` with random singular vectors and the given singular values.
fn with_spectrum(m: usize, n: usize, spectrum: impl Fn(usize) -> f64) -> Mat<f32> {
    let side = m.min(n);
    let q = |rows, name| crate::oracle::orthonormal(rows, side, 0, name);
    let scaled = q(m, "left") * Mat::from_fn(side, side, |i, j| if i == j { spectrum(i + 1) } else { 0.0 });
    let full = scaled * q(n, "right").transpose();
    Mat::from_fn(m, n, |i, j| full[(i, j)] as f32)
}

/// `|M − U Σ Vᵀ|_F` in f64.
fn truncation_error(matrix: &Mat<f32>, svd: &TruncatedSvd) -> f64 {
    let single = |a: &Mat<f32>| Mat::from_fn(a.nrows(), a.ncols(), |i, j| f64::from(a[(i, j)]));
    let (u, v) = (single(&svd.u), single(&svd.v));
    let scaled = Mat::from_fn(u.nrows(), u.ncols(), |i, j| u[(i, j)] * svd.s[j]);
    (single(matrix) - scaled * v.transpose()).norm_l2()
}

fn orthonormal(q: &Mat<f32>) -> bool {
    (q.transpose() * q - Mat::<f32>::identity(q.ncols(), q.ncols())).norm_max() < 1e-5
}

/// The truncation error is within 1e-4 of the optimal one, on spectra that decay fast and slowly.
#[test]
fn truncation_is_optimal_on_decaying_spectra() {
    for (power, k) in [(-1.0, 16), (-0.5, 16), (-1.0, 24)] {
        let spectrum = |i: usize| (i as f64).powf(power);
        let matrix = with_spectrum(700, 600, spectrum);
        let svd = truncated_svd(&matrix.as_ref(), k, 0, "layer", Par::Seq).unwrap();
        let optimal = (k + 1..=600).map(|i| spectrum(i).powi(2)).sum::<f64>().sqrt();
        let excess = truncation_error(&matrix, &svd) / optimal - 1.0;
        assert!(excess < 1e-4, "i^{power}, rank {k}: {excess:e} above the optimum");
        assert!(!svd.energy_exact && orthonormal(&svd.u) && orthonormal(&svd.v));
        for (i, s) in svd.s.iter().enumerate() {
            assert!((s / spectrum(i + 1) - 1.0).abs() < 1e-3, "i^{power}: singular value {i} is {s}");
        }
        let energy: f64 = (1..=600).map(|i| spectrum(i).powi(2)).sum();
        assert!((svd.energy / energy - 1.0).abs() < 0.02, "{} for {energy}", svd.energy);
    }
}

quickcheck! {
    /// Small operators of any shape agree with the truncated dense decomposition.
    fn small_operators_agree_with_the_dense_decomposition(m: u8, n: u8, k: u8, seed: u64) -> bool {
        let (m, n) = (usize::from(m % 40) + 1, usize::from(n % 40) + 1);
        let k = usize::from(k) % m.min(n) + 1;
        let matrix = gaussian::<f32>(m, n, seed, "matrix");
        let svd = truncated_svd(&matrix.as_ref(), k, seed, "layer", Par::Seq).unwrap();
        let full = dense::thin_svd("matrix", dense::to_f64(matrix.as_ref()).as_ref(), Par::Seq).unwrap();
        let tail = full.s[k..].iter().map(|s| s * s).sum::<f64>().sqrt();
        svd.energy_exact
            && svd.residual == 0.0
            && svd.s.iter().zip(&full.s).all(|(a, b)| (a - b).abs() < 1e-4)
            && (truncation_error(&matrix, &svd) - tail).abs() < 1e-3
    }
}

/// Matrices of a few hundred rows or columns are iterated in memory: for spectra that decay fast, slowly or not at all, of low rank and with
/// repeated values, in both orientations, the result is that of the dense decomposition.
#[test]
fn matrices_of_medium_size_agree_with_their_spectrum() {
    type Spectrum = fn(usize) -> f64;
    let spectra: [(&str, Spectrum); 5] = [
        ("fast", |i| (i as f64).recip()),
        ("slow", |i| (i as f64).powf(-0.3)),
        ("flat", |i| 1.0 - 1e-4 * i as f64),
        ("low rank", |i| if i <= 5 { 1.0 / i as f64 } else { 0.0 }),
        ("repeated", |i| if i <= 20 { 1.0 } else { 0.5 / i as f64 }),
    ];
    for (name, spectrum) in spectra {
        let matrix = with_spectrum(420, 360, spectrum);
        let optimal = (17..=360).map(|i| spectrum(i).powi(2)).sum::<f64>().sqrt();
        let energy: f64 = (1..=360).map(|i| spectrum(i).powi(2)).sum();
        for (matrix, transposed) in [(matrix.clone(), false), (matrix.transpose().to_owned(), true)] {
            let svd = truncated_svd(&matrix.as_ref(), 16, 0, "layer", Par::Seq).unwrap();
            let excess = truncation_error(&matrix, &svd) - optimal;
            assert!(excess < 1e-5, "{name}, {transposed}: {excess:e} above the optimum");
            assert!(svd.energy_exact && (svd.energy / energy - 1.0).abs() < 1e-5, "{name}: {}", svd.energy);
            assert!(svd.residual <= 1e-3 && orthonormal(&svd.u) && orthonormal(&svd.v), "{name}");
            for (i, s) in svd.s.iter().enumerate() {
                assert!((s - spectrum(i + 1)).abs() < 1e-5, "{name}: singular value {i} is {s}");
            }
        }
    }
}

/// The last triplets are the rest after the first ones.
#[test]
fn first_and_last_components_make_the_whole() {
    for (m, n) in [(30, 20), (20, 30), (20, 20)] {
        let matrix = gaussian::<f32>(m, n, 1, "matrix");
        let wide = dense::to_f64(matrix.as_ref());
        let first = truncated_svd(&matrix.as_ref(), 13, 0, "layer", Par::Seq).unwrap();
        let last = last_components(wide.as_ref(), 7, Par::Seq).unwrap();
        let product = |u: Mat<f64>, s: &[f64], v: Mat<f64>| {
            Mat::from_fn(m, s.len(), |i, j| u[(i, j)] * s[j]) * v.transpose()
        };
        let leading = product(dense::to_f64(first.u.as_ref()), &first.s, dense::to_f64(first.v.as_ref()));
        assert!((leading + product(last.u, &last.s, last.v) - &wide).norm_max() < 1e-4, "{m}×{n}");
        assert!(last.s.is_sorted_by(|a, b| a >= b) && last.s[0] <= first.s[12]);
        assert!((last.energy / first.energy - 1.0).abs() < 1e-5);
    }
}

/// If the operator has a lower rank than the answer, the remaining blocks are rounding errors: the bases must stay orthonormal, and the
/// missing singular values must be zero.
#[test]
fn operators_of_low_rank_and_zero_operators() {
    for rank in [0, 5] {
        let matrix = with_spectrum(600, 620, |i| if i <= rank { 1.0 / i as f64 } else { 0.0 });
        let svd = truncated_svd(&matrix.as_ref(), 12, 3, "layer", Par::Seq).unwrap();
        assert!(svd.s[rank..].iter().all(|s| *s < 1e-5), "rank {rank}: {:?}", svd.s);
        assert!(svd.s[..rank].iter().zip(1..).all(|(s, i)| (s - 1.0 / f64::from(i)).abs() < 1e-5));
        assert!(orthonormal(&svd.u) && orthonormal(&svd.v), "rank {rank}");
    }
}

/// A spectrum without decay does not converge, and the iteration must report that and stop.
#[test]
fn a_flat_spectrum_is_returned_with_its_residual() {
    let matrix = gaussian::<f32>(600, 600, 0, "noise");
    let svd = truncated_svd(&matrix.as_ref(), 16, 0, "layer", Par::Seq).unwrap();
    assert!(svd.residual > 1e-3, "{}", svd.residual);
    assert!((svd.energy / 36e4 - 1.0).abs() < 0.02, "{}", svd.energy);
}

/// The same seed and name give the same bits; another name gives another start.
#[test]
fn reproducible_for_a_seed_and_a_name() {
    let matrix = with_spectrum(600, 640, |i| 1.0 / i as f64);
    let u = |name| truncated_svd(&matrix.as_ref(), 4, 9, name, Par::Seq).unwrap().u;
    assert_eq!(u("a"), u("a"));
    assert_ne!(u("a"), u("b"));
}

#[test]
fn operators_with_nan_are_refused() {
    for side in [20, 600] {
        let mut matrix = gaussian::<f32>(side, side, 0, "matrix");
        matrix[(3, 4)] = f32::NAN;
        assert!(truncated_svd(&matrix.as_ref(), 4, 0, "layer", Par::Seq).is_err());
    }
}

/// A diagonal operator with a wrong transpose: no result can pass the check.
struct Inconsistent {
    rows: usize,
    columns: usize,
}

impl Inconsistent {
    fn scaled(&self, block: MatRef<'_, f32>, rows: usize, scale: impl Fn(usize) -> f32) -> Mat<f32> {
        let side = self.rows.min(self.columns);
        Mat::from_fn(rows, block.ncols(), |i, j| if i < side { scale(i) * block[(i, j)] } else { 0.0 })
    }
}

impl Operator for Inconsistent {
    fn rows(&self) -> usize {
        self.rows
    }
    fn columns(&self) -> usize {
        self.columns
    }
    fn apply(&self, block: MatRef<'_, f32>, _: Par) -> Mat<f32> {
        self.scaled(block, self.rows, |i| 1.0 / (i + 1) as f32)
    }
    fn apply_transpose(&self, block: MatRef<'_, f32>, _: Par) -> Mat<f32> {
        let side = self.rows.min(self.columns);
        self.scaled(block, self.columns, |i| 1.0 / (side - i) as f32)
    }
}

/// If a result does not pass the check, the operator is decomposed densely at any size.
#[test]
fn a_failed_check_leads_to_a_dense_decomposition() {
    for (rows, columns) in [(600, 600), (7400, 580)] {
        assert_eq!(rows * columns > FALLBACK_ENTRIES, rows == 7400);
        let svd = truncated_svd(&Inconsistent { rows, columns }, 4, 0, "layer", Par::Seq).unwrap();
        assert!(svd.energy_exact, "it is decomposed densely");
        for (i, s) in svd.s.iter().enumerate() {
            assert!((s - 1.0 / (i + 1) as f64).abs() < 1e-5, "singular value {i} is {s}");
        }
    }
}

/// Plans count a dense decomposition only if it is likely.
#[test]
fn memory_counts_likely_decompositions() {
    assert!(memory(600, 600, 4) >= dense_memory(600, 600));
    assert!(memory(2100, 2100, 4) < dense_memory(2100, 2100));
}
