//! The product of a strip of a matrix and a panel, with the instructions of the processor.

use faer::{ColRef, MatRef};
use pulp::{Arch, Simd, WithSimd};

/// Numbers in a row of a panel at most: two vectors of 64 bytes.
pub(crate) const fn widest<T>() -> usize {
    128 / size_of::<T>()
}

/// `C += A X`, or `C −= A X`. `X` and `C` are stored row after row.
pub struct Accumulate<'a, T> {
    /// `A`. One of its strides is 1.
    pub a: MatRef<'a, T>,
    /// `X`: so many rows as `A` has columns.
    pub x: &'a [T],
    /// `C`: so many rows as `A`.
    pub c: &'a mut [T],
    /// Numbers in a row of `X` and `C`: those of one or two vectors of 64 bytes.
    pub stride: usize,
    pub is_negative: bool,
    /// Columns of `A` that are added at a time.
    pub depth: usize,
}

/// A type of number with the kernel.
pub trait Kernel: Sized {
    /// Does the task with the instructions of the processor.
    fn accumulate(task: Accumulate<'_, Self>);
}

/// Rows of a tile where 24 sums, a line of `X` and a number of `A` fit in the registers.
pub(crate) const TILE: usize = 12;

/// The numbers of a column or a row that is contiguous.
fn slice<T>(column: ColRef<'_, T>) -> &[T] {
    column.try_as_col_major().expect("a stride of 1").as_slice()
}

macro_rules! accumulate {
    ($number:ty, $lanes:ident, $as_simd:ident, $as_mut_simd:ident, $splat:ident, $mul_add:ident) => {
        impl Kernel for $number {
            fn accumulate(task: Accumulate<'_, Self>) {
                Arch::new().dispatch(task);
            }
        }

        impl WithSimd for Accumulate<'_, $number> {
            type Output = ();

            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                let Self { a, x, c, stride, is_negative, depth } = self;
                for (k, x) in (0..a.ncols()).step_by(depth).zip(x.chunks(depth * stride)) {
                    let a = a.subcols(k, depth.min(a.ncols() - k));
                    let mut part = Accumulate { a, x, c: &mut *c, stride, is_negative, depth };
                    let mut first = 0;
                    if S::REGISTER_COUNT >= 32 {
                        first = part.tiles::<S, TILE>(simd, first);
                    }
                    first = part.tiles::<S, 4>(simd, first);
                    part.tiles::<S, 1>(simd, first);
                }
            }
        }

        impl Accumulate<'_, $number> {
            /// Handles all whole tiles of so many rows from a row on. Returns the next row.
            #[inline(always)]
            fn tiles<S: Simd, const ROWS: usize>(&mut self, simd: S, mut first: usize) -> usize {
                let vectors = self.stride / S::$lanes;
                while first + ROWS <= self.a.nrows() {
                    if vectors == 1 {
                        self.tile::<S, ROWS, 1>(simd, first, 0);
                    } else {
                        (0..vectors).step_by(2).for_each(|skip| self.tile::<S, ROWS, 2>(simd, first, skip));
                    }
                    first += ROWS;
                }
                first
            }

            #[inline(always)]
            fn tile<S: Simd, const ROWS: usize, const V: usize>(
                &mut self,
                simd: S,
                first: usize,
                skip: usize,
            ) {
                let rows = self.a.subrows(first, ROWS);
                let vectors = self.stride / S::$lanes;
                let lines = S::$as_simd(self.x).0.chunks_exact(vectors);
                let mut tile = [[simd.$splat(0.0); V]; ROWS];
                let mut add = |factors: [$number; ROWS], line: &[_]| {
                    let line = &line[skip..skip + V];
                    for (sums, factor) in tile.iter_mut().zip(factors) {
                        let factor = simd.$splat(factor);
                        for (sum, &numbers) in sums.iter_mut().zip(line) {
                            *sum = simd.$mul_add(factor, numbers, *sum);
                        }
                    }
                };
                if rows.row_stride() == 1 {
                    for (column, line) in rows.col_iter().zip(lines) {
                        let factors: [_; ROWS] = slice(column).try_into().expect("the rows of a tile");
                        add(factors, line);
                    }
                } else {
                    let depth = rows.ncols();
                    let rows: [&[_]; ROWS] =
                        std::array::from_fn(|i| &slice(rows.row(i).transpose())[..depth]);
                    for (k, line) in (0..depth).zip(lines) {
                        add(std::array::from_fn(|i| rows[i][k]), line);
                    }
                }
                let sums = S::$as_mut_simd(&mut self.c[first * self.stride..]).0;
                let sign = simd.$splat(if self.is_negative { -1.0 } else { 1.0 });
                for (sums, tile) in sums.chunks_exact_mut(vectors).zip(tile) {
                    for (sum, found) in sums[skip..skip + V].iter_mut().zip(tile) {
                        *sum = simd.$mul_add(sign, found, *sum);
                    }
                }
            }
        }
    };
}

accumulate!(f32, F32_LANES, as_simd_f32s, as_mut_simd_f32s, splat_f32s, mul_add_f32s);
accumulate!(f64, F64_LANES, as_simd_f64s, as_mut_simd_f64s, splat_f64s, mul_add_f64s);

#[cfg(test)]
mod tests {
    use super::*;
    use faer::Mat;

    /// A number for each place.
    fn number(i: usize, j: usize) -> f64 {
        ((7 * i + 3 * j + i * j) % 11) as f64 - 5.0
    }

    /// For numbers of rows around those of a tile, one and two vectors, both layouts, and parts of the columns. Sums of integers are exact.
    fn check(accumulate: impl Fn(Accumulate<'_, f64>)) {
        for (rows, columns, depth) in [(0, 3, 3), (1, 0, 1), (3, 5, 8), (4, 7, 2), (13, 9, 4), (41, 20, 8)] {
            for (stride, is_negative) in [(8, false), (16, true)] {
                let by_columns = Mat::from_fn(rows, columns, number);
                let by_rows = Mat::from_fn(columns, rows, |i, j| number(j, i));
                let x: Vec<f64> = (0..columns * stride).map(|at| number(at, 2)).collect();
                let before: Vec<f64> = (0..rows * stride).map(|at| number(at, 4)).collect();
                let sum = |i: usize, j: usize| -> f64 {
                    (0..columns).map(|k| number(i, k) * x[k * stride + j]).sum()
                };
                let sign = if is_negative { -1.0 } else { 1.0 };
                let wanted: Vec<f64> = before
                    .iter()
                    .enumerate()
                    .map(|(at, c)| c + sign * sum(at / stride, at % stride))
                    .collect();
                for a in [by_columns.as_ref(), by_rows.transpose()] {
                    let mut c = before.clone();
                    accumulate(Accumulate { a, x: &x, c: &mut c, stride, is_negative, depth });
                    assert_eq!(c, wanted, "{rows} × {columns}, {stride}");
                }
            }
        }
    }

    /// With every set of instructions that the processor has, and without any.
    #[test]
    fn products_are_those_of_the_definition() {
        check(|task| pulp::Scalar::new().vectorize(task));
        check(f64::accumulate);
        #[cfg(target_arch = "x86_64")]
        {
            use pulp::x86::{V3, V4};
            if let Some(simd) = V3::try_new() {
                check(|task| Simd::vectorize(simd, task));
            }
            if let Some(simd) = V4::try_new() {
                check(|task| Simd::vectorize(simd, task));
            }
        }
    }
}
