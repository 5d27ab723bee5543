//! compressed-tensors (llm-compressor): packed integers, NVFP4 and MXFP4. Codes of one byte are in `fp8`.
//!
//! Packed integers: `X.weight_packed`, I32 `[outputs, words]`, with fields of 1 to 8 bits that follow one another along the inputs without
//! gaps; `X.weight_scale` for each row or group; `X.weight_shape`; perhaps `X.weight_zero_point`, packed along the outputs, and
//! `X.weight_g_idx`, the group of each input. A field is a number plus 2^(bits − 1).
//!
//! NVFP4 and MXFP4: `X.weight_packed`, U8, and `X.weight_scale` for each 16 inputs (F8_E4M3, divided by `X.weight_global_scale`) or 32
//! (powers of two).
//!
//! Source: the `compressors` of compressed-tensors 0.20.

use super::super::{Problem, product, quoted};
use super::bits::{field, field_down, words};
use super::codes::Code;
use super::fp4::Fp4;
use super::grid::Grid;
use super::mxfp4;
use super::parts::{Files, Part};
use super::recognize::Stored;
use super::weight::{Decoder, Quantized};
use std::ops::Range;

/// The weight of a module with packed codes.
///
/// # Errors
/// A data problem for missing tensors, and for shapes, number formats and schemes that do not fit.
pub(super) fn weight(stored: &Stored<'_>, module: &str, codes: Part) -> Result<Quantized, Problem> {
    let files = stored.files;
    let part = |end: &str| stored.part(&format!("{module}.{end}"));
    if part("meta").is_some() || part("bitmask").is_some() {
        return Err(codes
            .problem(files, "sparse weights are not read")
            .help("give the checkpoint that it was compressed from"));
    }
    let Some(scale) = part("weight_scale") else {
        let what = format!(
            "the scale of this packed weight is missing: {}",
            quoted(&format!("{module}.weight_scale"))
        );
        return Err(codes.problem(files, what).help("download or convert the checkpoint again"));
    };
    match codes.dtype() {
        "U8" => fp4(stored, module, codes, scale),
        "I32" => integers(stored, module, codes, scale),
        _ => Err(codes.problem(files, "packed codes are I32 for integers, or U8 for NVFP4 and MXFP4")),
    }
}

fn fp4(stored: &Stored<'_>, module: &str, codes: Part, scale: Part) -> Result<Quantized, Problem> {
    const NVFP4_GROUP: u64 = 16;
    let files = stored.files;
    let &[rows, bytes] = codes.shape() else {
        return Err(codes.wrong_shape(files, "[outputs, inputs / 2]"));
    };
    let columns = bytes.saturating_mul(2);
    let global = stored.part(&format!("{module}.weight_global_scale"));
    let code = scale.scale_code(files)?;
    let (format, group) = match (code, &global) {
        (Code::E8m0, None) => ("MXFP4", mxfp4::GROUP),
        (Code::E8m0, Some(global)) => return Err(global.problem(files, "MXFP4 has no global scale")),
        (_, Some(_)) => ("NVFP4", NVFP4_GROUP),
        (_, None) => {
            let name = quoted(&format!("{module}.weight_global_scale"));
            let what = format!("the scale of the scales of this NVFP4 weight is missing: {name}");
            return Err(codes.problem(files, what).help("download or convert the checkpoint again"));
        }
    };
    let expected = [rows, columns.div_ceil(group)];
    if scale.shape() != expected || columns == 0 {
        return Err(scale
            .wrong_shape(files, &format!("{expected:?}, one scale for each {group} of {columns} inputs")));
    }
    let number = |global: &Part| match global.count() {
        1 => Ok((global.clone(), global.scale_code(files)?)),
        _ => Err(global.wrong_shape(files, "[1]")),
    };
    let scale_of_scales = global.as_ref().map(number).transpose()?;
    let parts = [Some(codes.clone()), Some(scale.clone()), global];
    let scales = Grid { part: scale, code, block: [1, group], rows, columns };
    Ok(Quantized {
        format: format.into(),
        matrix: [rows, columns],
        count: 1,
        transposed: false,
        stacked: false,
        parts: parts.into_iter().flatten().collect(),
        decoder: Box::new(Fp4 { codes, columns, scales, scale_of_scales }),
    })
}

fn integers(stored: &Stored<'_>, module: &str, codes: Part, scale: Part) -> Result<Quantized, Problem> {
    let files = stored.files;
    let part = |end: &str| stored.part(&format!("{module}.{end}"));
    let Some(shape) = part("weight_shape") else {
        let name = quoted(&format!("{module}.weight_shape"));
        return Err(codes.problem(files, format!("the shape of this packed weight is missing: {name}")));
    };
    let [rows, columns] = shape_in(files, &shape)?;
    let bits = width(stored, &codes, [rows, columns])?;
    let block = match *scale.shape() {
        [] | [1] | [1, 1] => [rows, columns],
        [found] | [found, 1] if found == rows => [1, columns],
        [found, groups] if found == rows && groups > 0 && columns.is_multiple_of(groups) => {
            [1, columns / groups]
        }
        _ => {
            let expected = format!(
                "[1], [{rows}, 1] or [{rows}, groups], with groups of equal size of {columns} inputs"
            );
            return Err(scale.wrong_shape(files, &expected));
        }
    };
    let [_, groups] = Grid::shape(rows, columns, block);
    let g_idx = part("weight_g_idx");
    if let Some(g_idx) = &g_idx {
        g_idx.require_dtype(files, "I32")?;
        if g_idx.shape() != [columns] {
            return Err(g_idx.wrong_shape(files, &format!("[{columns}], the group of each input")));
        }
        // Also refuses groups that do not exist, before the work.
        g_idx.indices(files, groups)?;
    }
    let zeros = part("weight_zero_point");
    if let Some(zeros) = &zeros {
        zeros.require_dtype(files, "I32")?;
        let expected = [words(rows, bits), groups];
        if zeros.shape() != expected || block[0] != 1 {
            return Err(zeros.wrong_shape(
                files,
                &format!("{expected:?}, the zero points of {rows} outputs in {bits} bits"),
            ));
        }
    }
    let layout = match block {
        [1, size] if size == columns => "one scale per row".to_owned(),
        [1, size] => format!("groups of {size}"),
        _ => "one scale".to_owned(),
    };
    let scales = Grid { part: scale.clone(), code: scale.scale_code(files)?, block, rows, columns };
    let parts = [Some(codes.clone()), Some(scale), Some(shape), zeros.clone(), g_idx.clone()];
    Ok(Quantized {
        format: format!("INT{bits}, {layout}"),
        matrix: [rows, columns],
        count: 1,
        transposed: false,
        stacked: false,
        parts: parts.into_iter().flatten().collect(),
        decoder: Box::new(Integers { codes, bits, columns, scales, zeros, g_idx, groups }),
    })
}

/// The numbers of `weight_shape`.
fn shape_in(files: Files<'_>, shape: &Part) -> Result<[u64; 2], Problem> {
    let bytes = shape.all(files)?;
    let wide = |bytes: &[u8]| bytes.first_chunk().map(|bytes| i64::from_le_bytes(*bytes));
    let narrow = |bytes: &[u8]| bytes.first_chunk().map(|bytes| i64::from(i32::from_le_bytes(*bytes)));
    let numbers: Vec<Option<i64>> = match shape.dtype() {
        "I64" => bytes.chunks(8).map(wide).collect(),
        "I32" => bytes.chunks(4).map(narrow).collect(),
        _ => Vec::new(),
    };
    let lengths: Option<Vec<u64>> = numbers.into_iter().map(|number| u64::try_from(number?).ok()).collect();
    let lengths = lengths.and_then(|lengths| <[u64; 2]>::try_from(lengths).ok());
    let lengths = lengths.filter(|lengths| product(lengths).is_some_and(|count| count > 0));
    lengths
        .ok_or_else(|| shape.problem(files, "expected the outputs and the inputs of a weight, as I64 or I32"))
}

/// The bits of a number, from the words of a row. If several widths give as many words, the configuration decides.
fn width(stored: &Stored<'_>, codes: &Part, [rows, columns]: [u64; 2]) -> Result<u32, Problem> {
    let files = stored.files;
    let &[found, length] = codes.shape() else {
        return Err(codes.wrong_shape(files, "[outputs, words]"));
    };
    let fits = |bits: &u32| words(columns, *bits) == length;
    let mut candidates: Vec<u32> = (1..=8).filter(fits).filter(|_| found == rows).collect();
    if candidates.len() > 1 {
        let told: Vec<u64> = stored.config.schemes.iter().filter_map(|scheme| scheme.bits).collect();
        candidates.retain(|bits| told.contains(&u64::from(*bits)));
    }
    match candidates[..] {
        [bits] => Ok(bits),
        _ => {
            let expected = format!(
                "[{rows}, words], with the words of {columns} numbers of 1 to 8 bits, as config_groups in config.json says"
            );
            Err(codes.wrong_shape(files, &expected))
        }
    }
}

/// `W = (field − zero) · scale`, where the zero is 2^(bits − 1) unless it is stored.
#[derive(Debug)]
struct Integers {
    codes: Part,
    bits: u32,
    columns: u64,
    scales: Grid,
    zeros: Option<Part>,
    g_idx: Option<Part>,
    groups: u64,
}

impl Decoder for Integers {
    fn decode(
        &self,
        files: Files<'_>,
        rows: Range<u64>,
        columns: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), Problem> {
        let row_bytes = words(self.columns, self.bits) * 4;
        let bytes = self.codes.rows(files, &rows, row_bytes)?;
        let width = (columns.end - columns.start) as usize;
        for (line, bytes) in out.chunks_mut(width).zip(bytes.chunks(row_bytes as usize)) {
            for (column, value) in (columns.start as usize..).zip(line) {
                *value = f32::from(field(bytes, column, self.bits));
            }
        }
        let scales = self.scales.read(files, &rows)?;
        let zeros = self.zeros.as_ref().map(|zeros| zeros.all(files)).transpose()?;
        let middle = f32::from(1u8 << (self.bits - 1));
        let zero = |row: u64, group: usize| match &zeros {
            Some(words) => f32::from(field_down(
                words,
                self.groups as usize,
                group,
                row as usize * self.bits as usize,
                self.bits,
            )),
            None => middle,
        };
        let g_idx = self.g_idx.as_ref().map(|g_idx| g_idx.indices(files, self.groups)).transpose()?;
        let block = self.scales.block[1] as usize;
        for (row, line) in rows.zip(out.chunks_mut(width)) {
            let scales = scales.of_row(row);
            let zeros: Vec<f32> = (0..scales.len()).map(|group| zero(row, group)).collect();
            let dequantize = |value: &mut f32, group: usize| *value = (*value - zeros[group]) * scales[group];
            let columns = columns.start as usize..;
            match &g_idx {
                Some(g_idx) => columns.zip(line).for_each(|(column, value)| dequantize(value, g_idx[column])),
                None => columns.zip(line).for_each(|(column, value)| dequantize(value, column / block)),
            }
        }
        Ok(())
    }
}
