//! The shapes of panels and tiles.

/// Width of a right panel and of a tile, in vectors.
pub(super) const VECTORS: usize = 2;

/// Rows of a tile for vectors of so many numbers: as many as the registers hold beside one line of the right panel and one broadcast.
pub(super) const fn height(lanes: usize) -> usize {
    match lanes {
        // 12 × 2 of the 32 registers of AVX-512 and NEON.
        16 | 4 => 12,
        // 6 × 2 of the 16 registers of AVX2, or of any processor.
        _ => 6,
    }
}

/// Columns that are packed together, by one thread: whole panels of each kind, for all widths of vectors.
pub(super) const GROUP: usize = 192;

/// Right panels whose sums are added to the triangle together.
pub(super) const PANELS: usize = 4;
