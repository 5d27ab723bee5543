//! Energies of weights and activations.

use faer::{ColRef, MatRef};

/// `|W μ|²`.
pub(crate) fn energy_of_mean(weight: MatRef<'_, f32>, mean: ColRef<'_, f64>) -> f64 {
    let mut image = vec![0.0; weight.nrows()];
    for (column, mean) in weight.col_iter().zip(mean.iter()) {
        for (image, weight) in image.iter_mut().zip(column.iter()) {
            *image += f64::from(*weight) * mean;
        }
    }
    image.iter().map(|image| image * image).sum()
}

/// Sum of the products of corresponding entries, in f64.
pub(super) fn dot(a: MatRef<'_, f32>, b: MatRef<'_, f32>) -> f64 {
    let column = |j: usize| a.col(j).iter().zip(b.col(j).iter()).map(|(a, b)| f64::from(*a) * f64::from(*b));
    (0..a.ncols()).map(|j| column(j).sum::<f64>()).sum()
}
