//! The rule of threads.

use faer::Par;

/// True if the computations of a site of this width use one thread. Several such sites are best worked on side by side.
pub fn is_narrow(width: usize) -> bool {
    const WIDEST: usize = 2048;
    width <= WIDEST
}

/// The parallelism of decompositions at this width.
pub(super) fn parallelism(width: usize) -> Par {
    // Factorizations round differently for different numbers of parts, so that number is fixed, for any number of threads.
    const PARTS: usize = 16;
    if is_narrow(width) { Par::Seq } else { Par::rayon(PARTS) }
}
