//! Corrections to products of bf16, for differences that bf16 does not hold.
//!
//! With `y = h + l`, where the panels hold the bf16 `h`, `Σ y_i y_j = Σ h_i h_j + Σ l_i h_j + Σ h_i l_j`. The last term, `Σ l_i l_j`, is
//! left out: at most 2⁻¹⁶ of a product, for the few rows with an `l`.

use super::pack::Lost;
use super::packed::{Correction, Packed};
use super::pairs::{WIDTH, earlier, later};
use super::threads::share;

impl Correction {
    fn new(lost: &[Lost], packed: &Packed<u32>, width: usize) -> Self {
        let mut products = vec![0.0; width.next_multiple_of(WIDTH)];
        for (panel, products) in products.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate() {
            let lines = packed.panel(panel).as_chunks::<WIDTH>().0;
            for lost in lost {
                let half = if lost.row.is_multiple_of(2) { earlier } else { later };
                for (product, &word) in products.iter_mut().zip(&lines[lost.row / 2]) {
                    *product += f64::from(lost.part) * f64::from(half(word));
                }
            }
        }
        Self { column: lost[0].column, products }
    }
}

impl Packed<u32> {
    /// Computes the corrections of a packed block.
    pub(super) fn correct(&mut self, width: usize, threads: usize) {
        let mut lost: Vec<Lost> = self.lost.iter_mut().flat_map(std::mem::take).collect();
        lost.sort_by_key(|lost| (lost.column, lost.row));
        let columns: Vec<&[Lost]> = lost.chunk_by(|left, right| left.column == right.column).collect();
        let mut corrections: Vec<Option<Correction>> = columns.iter().map(|_| None).collect();
        share(threads, corrections.iter_mut().zip(columns), |(correction, lost)| {
            *correction = Some(Correction::new(lost, self, width));
        });
        self.corrections = corrections.into_iter().flatten().collect();
    }
}

impl<W> Packed<W> {
    /// Adds the corrections of some columns of a row of the triangle.
    #[inline(always)]
    pub(super) fn add_corrections(&self, row: usize, first_column: usize, to: &mut [f64]) {
        for correction in &self.corrections {
            if correction.column == row {
                for (to, product) in to.iter_mut().zip(&correction.products[first_column..]) {
                    *to += product;
                }
            }
            // The diagonal element is reached by both, since its product has two of these terms.
            if let Some(to) = correction.column.checked_sub(first_column).and_then(|index| to.get_mut(index))
            {
                *to += correction.products[row];
            }
        }
    }
}
