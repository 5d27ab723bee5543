//! Structured weights in the iteration: their images lie in few coordinates, or their singular values repeat.
//!
//! The expected singular values come from closed forms, or from a one-sided Jacobi iteration in f64 on a small core that
//! has the same singular values. No check here uses the decompositions of the crate.

use super::*;
use crate::dense::to_f64;
use crate::oracle::jacobi;

/// Singular values, descending.
fn values(matrix: MatRef<'_, f32>) -> Vec<f64> {
    jacobi(to_f64(matrix).as_ref()).1
}

/// Largest entry of `QᵀQ − I`, in f64.
fn defect(q: &Mat<f32>) -> f64 {
    let q = to_f64(q.as_ref());
    (q.transpose() * &q - Mat::<f64>::identity(q.ncols(), q.ncols())).norm_max()
}

/// Checks `k` triplets of a matrix with these singular values. Missing values are zero.
///
/// It checks the singular values, the orthonormality of both bases, both residuals, the reported residual, and the energy.
fn check(label: &str, matrix: &Mat<f32>, k: usize, expected: &[f64]) {
    let label = format!("{label}, {} × {}, rank {k}", matrix.nrows(), matrix.ncols());
    let svd = truncated_svd(&matrix.as_ref(), k, 0, "layer", Par::Seq).unwrap();
    let first = expected.first().copied().unwrap_or(0.0);
    for i in 0..k {
        let wanted = expected.get(i).copied().unwrap_or(0.0);
        let error = (svd.s[i] - wanted).abs();
        assert!(error <= 2e-4 * first, "{label}: singular value {i} is {}, not {wanted}", svd.s[i]);
    }
    let (left, right) = (defect(&svd.u), defect(&svd.v));
    assert!(left < 2e-5 && right < 2e-5, "{label}: bases are orthonormal up to {left:e} and {right:e}");
    let (m, u, v) = (to_f64(matrix.as_ref()), to_f64(svd.u.as_ref()), to_f64(svd.v.as_ref()));
    let scaled = |q: &Mat<f64>| Mat::from_fn(q.nrows(), k, |i, j| q[(i, j)] * svd.s[j]);
    let (forward, backward) = (&m * &v - scaled(&u), m.transpose() * &u - scaled(&v));
    let largest = |rest: &Mat<f64>| rest.col_iter().map(|column| column.norm_l2()).fold(0.0, f64::max);
    let residual = largest(&forward).max(largest(&backward)) / first.max(f64::MIN_POSITIVE);
    assert!(residual < 1.5e-2, "{label}: the residual is {residual:e}");
    assert!((svd.residual - residual).abs() < 2e-5, "{label}: it says {:e} for {residual:e}", svd.residual);
    let energy = m.squared_norm_l2();
    assert!((svd.energy - energy).abs() <= 0.02 * energy, "{label}: energy {} for {energy}", svd.energy);
    let captured: f64 = svd.s.iter().map(|s| s * s).sum();
    assert!(captured <= svd.energy * (1.0 + 1e-5), "{label}: {captured} of an energy of {}", svd.energy);
}

/// Features that are exactly zero: few columns of the operator are not zero.
#[test]
fn inputs_that_are_zero() {
    for (live, ranks) in [(33, [1, 16, 64]), (50, [1, 16, 48]), (100, [16, 64, 75])] {
        let core = gaussian::<f32>(640, live, 1, "core");
        let expected = values(core.as_ref());
        // Spread over all inputs.
        let matrix = Mat::from_fn(640, 600, |i, j| {
            if j % (600 / live) == 0 && j / (600 / live) < live { core[(i, j / (600 / live))] } else { 0.0 }
        });
        for k in ranks {
            check(&format!("{live} inputs that are not zero"), &matrix, k, &expected);
        }
    }
}

/// Few outputs are not zero.
#[test]
fn outputs_that_are_zero() {
    for live in [1, 10, 40] {
        let core = gaussian::<f32>(640, live, 2, "core");
        let expected = values(core.as_ref());
        let matrix =
            Mat::from_fn(600, 640, |i, j| if i % 15 == 0 && i / 15 < live { core[(j, i / 15)] } else { 0.0 });
        for k in [1, 16, 64] {
            check(&format!("{live} outputs that are not zero"), &matrix, k, &expected);
        }
    }
}

/// Few outputs and few inputs are not zero.
#[test]
fn few_outputs_and_few_inputs() {
    let core = gaussian::<f32>(12, 7, 3, "core");
    let expected = values(core.as_ref());
    let matrix = Mat::from_fn(1100, 1030, |i, j| {
        if i % 90 == 5 && i / 90 < 12 && j % 140 == 1 && j / 140 < 7 { core[(i / 90, j / 140)] } else { 0.0 }
    });
    for k in [1, 16, 128] {
        check("12 × 7 live entries", &matrix, k, &expected);
    }
}

/// `σ₁ = √(m n)`, and all other singular values are zero.
#[test]
fn weights_of_ones() {
    for (m, n, k) in [(513, 600, 16), (600, 600, 1), (700, 650, 64), (1030, 1100, 128), (2048, 2048, 128)] {
        check("ones", &Mat::from_fn(m, n, |_, _| 1.0), k, &[((m * n) as f64).sqrt()]);
    }
}

/// Integers, so that products are exact and remainders are zero or rounding errors of a few coordinates.
#[test]
fn integer_weights_of_low_rank() {
    for rank in [1, 2, 5] {
        let left = |i: usize, t: usize| ((i * (2 * t + 3) + t) % 7) as f32 - 3.0;
        let right = |j: usize, t: usize| ((j * (3 * t + 5) + 2 * t) % 5) as f32 - 2.0;
        let matrix = Mat::from_fn(600, 640, |i, j| (0..rank).map(|t| left(i, t) * right(j, t)).sum::<f32>());
        // With L = U S Vᵀ, L Rᵀ and R V S have the same singular values.
        let double = |entry: &dyn Fn(usize, usize) -> f32, rows| {
            Mat::from_fn(rows, rank, |i, t| f64::from(entry(i, t)))
        };
        let (_, s, v) = jacobi(double(&left, 600).as_ref());
        let rotated = double(&right, 640) * v;
        let (_, expected, _) = jacobi(Mat::from_fn(640, rank, |i, t| rotated[(i, t)] * s[t]).as_ref());
        for k in [1, 16, 64] {
            check(&format!("integers of rank {rank}"), &matrix, k, &expected);
        }
    }
}

/// All singular values are 1.
#[test]
fn permutations_and_the_identity() {
    for (side, k) in [(600, 1), (600, 16), (640, 64), (1031, 128)] {
        // 7 divides none of these sides.
        let permutation = Mat::from_fn(side, side, |i, j| if (7 * i + 3) % side == j { 1.0 } else { 0.0 });
        check("permutation", &permutation, k, &vec![1.0; side]);
        check("identity", &Mat::identity(side, side), k, &vec![1.0; side]);
    }
}

/// Different blocks on the diagonal: their singular values together.
#[test]
fn block_diagonal_weights() {
    const BLOCK: usize = 20;
    let core = gaussian::<f32>(640, BLOCK, 4, "core");
    let mut expected: Vec<f64> =
        (0..32).flat_map(|block| values(core.subrows(block * BLOCK, BLOCK))).collect();
    expected.sort_by(|a, b| b.total_cmp(a));
    let matrix =
        Mat::from_fn(640, 640, |i, j| if i / BLOCK == j / BLOCK { core[(i, j % BLOCK)] } else { 0.0 });
    for k in [1, 16] {
        check("different blocks", &matrix, k, &expected);
    }
}

/// The same block many times: every singular value has more copies than a block of the iteration has columns.
#[test]
fn repeated_blocks() {
    for (side, repeats, k) in [(640, 40, 64), (640, 40, 16), (1200, 150, 128), (1200, 50, 100)] {
        let size = side / repeats;
        let core = gaussian::<f32>(size, size, 5, "core");
        let expected: Vec<f64> =
            values(core.as_ref()).into_iter().flat_map(|value| vec![value; repeats]).collect();
        let matrix =
            Mat::from_fn(
                side,
                side,
                |i, j| if i / size == j / size { core[(i % size, j % size)] } else { 0.0 },
            );
        check(&format!("{repeats} equal blocks"), &matrix, k, &expected);
    }
}

/// A diagonal of this length with forty consecutive equal entries.
struct RepeatedDiagonal(usize);

impl RepeatedDiagonal {
    fn entry(i: usize) -> f64 {
        0.8f64.powi((i / 40) as i32)
    }
}

impl Operator for RepeatedDiagonal {
    fn rows(&self) -> usize {
        self.0
    }
    fn columns(&self) -> usize {
        self.0
    }
    fn apply(&self, block: MatRef<'_, f32>, _: Par) -> Mat<f32> {
        Mat::from_fn(block.nrows(), block.ncols(), |i, j| Self::entry(i) as f32 * block[(i, j)])
    }
    fn apply_transpose(&self, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        self.apply(block, par)
    }
}

/// The same at a size that is not decomposed densely: a wider block finds all copies.
#[test]
fn repeated_values_of_a_large_operator() {
    let svd = truncated_svd(&RepeatedDiagonal(2100), 64, 0, "layer", Par::Seq).unwrap();
    assert!(!svd.energy_exact, "it is not decomposed densely");
    for (i, s) in svd.s.iter().enumerate() {
        let wanted = RepeatedDiagonal::entry(i);
        assert!((s - wanted).abs() < 5e-3, "singular value {i} is {s}, not {wanted}");
    }
    assert!(defect(&svd.u) < 2e-5 && defect(&svd.v) < 2e-5 && svd.residual < 2e-2, "{}", svd.residual);
}

/// A zero matrix: singular values are zero, and the vectors orthonormal.
#[test]
fn the_zero_weight() {
    for (m, n, k) in [(513, 600, 1), (600, 600, 16), (1030, 1100, 128)] {
        check("zero", &Mat::zeros(m, n), k, &[]);
    }
}

/// Very large and very small scales.
#[test]
fn structured_weights_of_any_scale() {
    for scale in [1e-18f32, 1e-6, 1e6, 1e17] {
        let matrix =
            Mat::from_fn(600, 640, |i, j| if j % 16 == 3 { scale * (1 + i % 2) as f32 } else { 0.0 });
        let expected = f64::from(scale) * (300.0f64 * 5.0 * 40.0).sqrt();
        check("two kinds of rows", &matrix, 16, &[expected]);
    }
}

/// Small sides, which are decomposed densely.
#[test]
fn structured_weights_on_the_dense_path() {
    check("ones", &Mat::from_fn(60, 50, |_, _| 1.0), 20, &[3000f64.sqrt()]);
    check("identity", &Mat::identity(60, 60), 20, &[1.0; 20]);
    check("zero", &Mat::zeros(40, 60), 20, &[]);
    let core = gaussian::<f32>(300, 10, 6, "core");
    let matrix = Mat::from_fn(300, 280, |i, j| if j % 28 == 0 { core[(i, j / 28)] } else { 0.0 });
    check("10 inputs that are not zero", &matrix, 32, &values(core.as_ref()));
}

/// The bits do not depend on the number of threads, also with deflation.
#[test]
fn deflation_is_reproducible() {
    let core = gaussian::<f32>(640, 33, 1, "core");
    let matrix = Mat::from_fn(640, 600, |i, j| if j < 33 { core[(i, j)] } else { 0.0 });
    let with_threads = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| truncated_svd(&matrix.as_ref(), 64, 0, "layer", Par::rayon(4)).unwrap())
    };
    let (one, three) = (with_threads(1), with_threads(3));
    assert_eq!((one.u, one.s, one.v), (three.u, three.s, three.v));
    assert_eq!((one.energy, one.residual), (three.energy, three.residual));
}
