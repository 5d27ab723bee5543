//! Matrices for tests, and a singular value decomposition that shares no code with those of the crate.

use crate::dense;
use crate::random::gaussian;
use faer::{Mat, MatRef, Par};

/// A random matrix with orthonormal columns.
pub(crate) fn orthonormal(rows: usize, columns: usize, seed: u64, name: &str) -> Mat<f64> {
    dense::thin_qr("q", gaussian(rows, columns, seed, name), Par::Seq).unwrap().0
}

/// One-sided Jacobi rotations in f64 (Hestenes 1958): `U`, singular values in descending order, `V`, with as many triplets
/// as the matrix has columns. Accurate for small singular values too. `O(m n²)` operations for each of about ten sweeps, so matrices must
/// be small or have few columns.
///
/// Columns of `U` that belong to zeros are zero.
pub(crate) fn jacobi(matrix: MatRef<'_, f64>) -> (Mat<f64>, Vec<f64>, Mat<f64>) {
    let (m, n) = matrix.shape();
    // Each column of the matrix, and below it that of the identity, which becomes V.
    let mut columns: Vec<Vec<f64>> = (0..n)
        .map(|j| {
            let unit = (0..n).map(|i| f64::from(u8::from(i == j)));
            (0..m).map(|i| matrix[(i, j)]).chain(unit).collect()
        })
        .collect();
    let dot = |a: &[f64], b: &[f64]| a[..m].iter().zip(&b[..m]).map(|(x, y)| x * y).sum::<f64>();
    let mut rotated = true;
    for _ in 0..60 {
        if !rotated {
            break;
        }
        rotated = false;
        for i in 0..n {
            for j in i + 1..n {
                let (left, right) = columns.split_at_mut(j);
                let (a, b) = (&mut left[i], &mut right[0]);
                let (aa, bb, ab) = (dot(a, a), dot(b, b), dot(a, b));
                if ab.abs() <= 1e-14 * (aa * bb).sqrt() {
                    continue;
                }
                rotated = true;
                let zeta = (bb - aa) / (2.0 * ab);
                let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                let sine = cosine * tangent;
                for (x, y) in a.iter_mut().zip(b.iter_mut()) {
                    (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
                }
            }
        }
    }
    assert!(!rotated, "the Jacobi iteration does not end");
    columns.sort_by(|a, b| dot(b, b).total_cmp(&dot(a, a)));
    let s: Vec<f64> = columns.iter().map(|column| dot(column, column).sqrt()).collect();
    let u = Mat::from_fn(m, n, |i, j| if s[j] > 0.0 { columns[j][i] / s[j] } else { 0.0 });
    let v = Mat::from_fn(n, n, |i, j| columns[j][m + i]);
    (u, s, v)
}
