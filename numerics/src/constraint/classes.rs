//! Matrices over a vocabulary that do not change when tokens with the same counts are exchanged.
//!
//! Tokens with the same counts form a class. Let `Q (V × k)` hold a unit vector for each class, constant on its tokens and zero
//! elsewhere. A matrix that does not change under permutations within classes is `Q M Qᵀ` with a `k × k` matrix `M`, plus a number `o_c`
//! times the identity on the vectors that are zero outside class `c` and sum to zero. Sums, products, inverses and roots of such matrices
//! follow from `M` and the numbers `o_c`; no matrix of size `V × V` is formed.

use crate::dense;
use crate::moments::Counts;
use faer::{Mat, MatMut, MatRef, Par};
use std::collections::BTreeMap;

/// The classes of the tokens of a vocabulary.
#[derive(Clone, Debug)]
pub(super) struct Classes {
    /// The class of each token.
    of_token: Vec<u32>,
    /// A token of each class.
    pub(super) representatives: Vec<usize>,
    /// How many tokens each class has.
    pub(super) sizes: Vec<f64>,
}

/// The number of classes of tokens. Tokens that occurred equally often in both recordings are in one class.
pub fn token_classes(target: &Counts, source: Option<&Counts>) -> usize {
    Classes::of(target, source).sizes.len()
}

impl Classes {
    /// The classes of tokens with these counts.
    pub(super) fn of(target: &Counts, source: Option<&Counts>) -> Self {
        let source = |token: usize| source.and_then(|source| source.counts().get(token)).copied();
        let key = |token: usize| (target.counts()[token], source(token));
        let mut numbers: BTreeMap<_, u32> = (0..target.width()).map(|token| (key(token), 0)).collect();
        numbers.values_mut().zip(0..).for_each(|(number, next)| *number = next);
        let of_token: Vec<u32> = (0..target.width()).map(|token| numbers[&key(token)]).collect();
        let mut representatives = vec![0; numbers.len()];
        let mut sizes = vec![0.0; numbers.len()];
        for (token, &class) in of_token.iter().enumerate() {
            representatives[class as usize] = token;
            sizes[class as usize] += 1.0;
        }
        Self { of_token, representatives, sizes }
    }

    /// The value of each class, of values that are the same for all tokens of a class.
    pub(super) fn values(&self, of_tokens: &[f64]) -> Vec<f64> {
        self.representatives.iter().map(|&token| of_tokens[token]).collect()
    }
}

/// A matrix that is the same for the tokens of a class.
#[derive(Debug)]
pub(super) struct ClassMatrix {
    of_token: Vec<u32>,
    roots: Vec<f64>,
    /// `M − diag(o)`: the part that acts on the means of classes only.
    beyond: Mat<f64>,
    outside: Vec<f64>,
}

impl ClassMatrix {
    /// From `M` and `o`.
    pub(super) fn new(classes: Classes, mut inside: Mat<f64>, outside: Vec<f64>) -> Self {
        for (class, outside) in outside.iter().enumerate() {
            inside[(class, class)] -= outside;
        }
        let roots = classes.sizes.iter().map(|size| size.sqrt()).collect();
        Self { of_token: classes.of_token, roots, beyond: inside, outside }
    }

    /// `Qᵀ V (k × b)` for a thin block `V`.
    pub(super) fn fold(&self, block: MatRef<'_, f32>) -> Mat<f64> {
        let mut folded = Mat::zeros(self.roots.len(), block.ncols());
        for j in 0..block.ncols() {
            let mut sums = vec![0.0; self.roots.len()];
            for (value, &class) in block.col(j).iter().zip(&self.of_token) {
                sums[class as usize] += f64::from(*value);
            }
            for (class, sum) in sums.iter().enumerate() {
                folded[(class, j)] = sum / self.roots[class];
            }
        }
        folded
    }

    /// The product with a folded block, for [`Self::unfold`].
    pub(super) fn apply(&self, folded: &Mat<f64>, par: Par) -> Mat<f64> {
        dense::product(self.beyond.as_ref(), folded.as_ref(), par)
    }

    /// As [`Self::apply`], of the transpose.
    pub(super) fn apply_transpose(&self, folded: &Mat<f64>, par: Par) -> Mat<f64> {
        dense::product(self.beyond.transpose(), folded.as_ref(), par)
    }

    /// Entry `token` of the product of this matrix and column `j` of a block, whose own entry is `value`.
    pub(super) fn unfold(&self, image: &Mat<f64>, j: usize, token: usize, value: f64) -> f64 {
        let class = self.of_token[token] as usize;
        self.outside[class] * value + image[(class, j)] / self.roots[class]
    }
}

/// Applies a function to each column of a block, in f64.
pub(super) fn map_columns(mut block: MatMut<'_, f32>, mut map: impl FnMut(usize, &mut [f64])) {
    let mut column = vec![0.0; block.nrows()];
    for j in 0..block.ncols() {
        for (value, single) in column.iter_mut().zip(block.as_ref().col(j).iter()) {
            *value = f64::from(*single);
        }
        map(j, &mut column);
        for (single, value) in block.as_mut().col_mut(j).iter_mut().zip(&column) {
            *single = *value as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::gaussian;
    use quickcheck::quickcheck;

    quickcheck! {
        /// `Q M Qᵀ + Σ o_c (I_c − q_c q_cᵀ)` by its definition, applied to a block; and its transpose.
        fn agrees_with_the_definition(counts: Vec<u8>, seed: u64) -> bool {
            let counts: Vec<u64> = counts.iter().map(|count| u64::from(count % 4)).chain([1, 1, 2]).collect();
            let tokens = counts.len();
            let classes = Classes::of(&Counts::new(counts.clone()).unwrap(), None);
            let k = classes.sizes.len();
            let inside = gaussian::<f64>(k, k, seed, "inside");
            let outside: Vec<f64> = (0..k).map(|class| class as f64 - 1.5).collect();
            let class = |token: usize| classes.of_token[token] as usize;
            let dense = Mat::from_fn(tokens, tokens, |i, j| {
                let roots = (classes.sizes[class(i)] * classes.sizes[class(j)]).sqrt();
                let same = f64::from(u8::from(class(i) == class(j)));
                let own = f64::from(u8::from(i == j));
                inside[(class(i), class(j))] / roots + outside[class(i)] * (own - same / roots)
            });
            let block = gaussian::<f32>(tokens, 3, seed, "block");
            let wide = Mat::from_fn(tokens, 3, |i, j| f64::from(block[(i, j)]));
            let (wanted, transposed) = (&dense * &wide, dense.transpose() * &wide);
            let matrix = ClassMatrix::new(classes.clone(), inside, outside);
            let folded = matrix.fold(block.as_ref());
            let image = matrix.apply(&folded, Par::Seq);
            let backwards = matrix.apply_transpose(&folded, Par::Seq);
            k == counts.iter().collect::<std::collections::BTreeSet<_>>().len()
                && (0..tokens).all(|i| (0..3).all(|j| {
                    (matrix.unfold(&image, j, i, wide[(i, j)]) - wanted[(i, j)]).abs() < 1e-10
                        && (matrix.unfold(&backwards, j, i, wide[(i, j)]) - transposed[(i, j)]).abs() < 1e-10
                }))
        }
    }
}
