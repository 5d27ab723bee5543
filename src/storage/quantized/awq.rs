//! AWQ with 4 bits, in the layout of the kernel GEMM.
//!
//! `X.qweight`, I32 `[inputs, outputs / 8]`: a word has the fields of eight outputs in the order 0 2 4 6 1 3 5 7. `X.qzeros`,
//! `[groups, outputs / 8]`, has the zero points in the same order, and `X.scales` is `[groups, outputs]`.
//! `W[k, n] = (field − zero) · scale`.
//!
//! Source: `packing_utils.py` of AutoAWQ 0.2.

use super::super::{Problem, quoted};
use super::bits::field;
use super::gptq::{Groups, scales_of};
use super::parts::{Files, Part};
use super::recognize::Stored;
use super::weight::{Decoder, Quantized};
use std::ops::Range;

/// Outputs in a word.
const FIELDS: u64 = 8;

/// The place in its word of each of eight consecutive outputs.
const PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// True if `qweight` and `scales` have the shapes of AWQ.
pub(super) fn is_layout(codes: &Part, scales: &Part) -> bool {
    matches!((codes.shape(), scales.shape()), (&[_, words], &[_, outputs]) if words.checked_mul(FIELDS) == Some(outputs) && words > 0)
}

/// The weight of a module with these tensors.
///
/// # Errors
/// A data problem for shapes, number formats and layouts that are not known.
pub(super) fn weight(
    stored: &Stored<'_>,
    codes: Part,
    scales: Part,
    zeros: Part,
) -> Result<Quantized, Problem> {
    let (files, config) = (stored.files, stored.config);
    if let Some(bits) = config.bits.filter(|bits| *bits != 4) {
        return Err(codes.problem(files, format!("AWQ with {bits} bits is not read, only with 4")));
    }
    if let Some(version) =
        config.version.as_ref().filter(|version| config.is("awq") && !version.eq_ignore_ascii_case("gemm"))
    {
        return Err(
            codes.problem(files, format!("the AWQ layout {} is not read, only \"gemm\"", quoted(version)))
        );
    }
    let (&[inputs, length], &[groups, outputs]) = (codes.shape(), scales.shape()) else {
        return Err(codes.wrong_shape(files, "[inputs, outputs / 8]"));
    };
    zeros.require_dtype(files, "I32")?;
    if zeros.shape() != [groups, length] {
        return Err(
            zeros.wrong_shape(files, &format!("[{groups}, {length}], the zero points of {groups} groups"))
        );
    }
    if inputs == 0 {
        return Err(codes.wrong_shape(files, "[inputs, outputs / 8]"));
    }
    let group_of = Groups::new(stored, (None, &scales), inputs, groups)?;
    Ok(Quantized {
        format: "AWQ, 4 bits".into(),
        matrix: [inputs, outputs],
        count: 1,
        transposed: true,
        stacked: false,
        parts: vec![codes.clone(), scales.clone(), zeros.clone()],
        decoder: Box::new(Awq { codes, scales, zeros, outputs, group_of }),
    })
}

#[derive(Debug)]
struct Awq {
    codes: Part,
    scales: Part,
    zeros: Part,
    outputs: u64,
    group_of: Groups,
}

impl Decoder for Awq {
    fn decode(
        &self,
        files: Files<'_>,
        rows: Range<u64>,
        columns: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), Problem> {
        let row_bytes = self.outputs / FIELDS * 4;
        let bytes = self.codes.rows(files, &rows, row_bytes)?;
        let groups = self.group_of.of_range(&rows);
        let zeros = self.zeros.rows(files, &groups, row_bytes)?;
        let scales = scales_of(files, &self.scales, &groups, self.outputs)?;
        let number = |bytes: &[u8], column: usize| {
            let fields = FIELDS as usize;
            f32::from(field(bytes, column / fields * fields + PLACES[column % fields], 4))
        };
        let width = (columns.end - columns.start) as usize;
        for ((row, line), bytes) in rows.zip(out.chunks_mut(width)).zip(bytes.chunks(row_bytes as usize)) {
            let group = self.group_of.of(row) - groups.start as usize;
            let (zeros, scales) =
                (&zeros[group * row_bytes as usize..], &scales[group * self.outputs as usize..]);
            for (column, value) in (columns.start as usize..).zip(line) {
                *value = (number(bytes, column) - number(zeros, column)) * scales[column];
            }
        }
        Ok(())
    }
}
