//! bitsandbytes: NF4 and FP4, also with nested scales, and INT8.
//!
//! The codes of 4 bits are a sequence of bytes, the high half first. They follow the numbers of the weight row by row; each block of 64
//! numbers, or of another size, has one scale, whatever the length of the rows. A state in JSON tells shape and sizes. Nested scales are
//! bytes: places in a table of 256 numbers, with scales of their own and one offset.
//!
//! INT8 has a matrix of I8 and one scale for each row: `W = code · SCB / 127`.
//!
//! Source: `functional.py` of bitsandbytes 0.50.

use super::super::json::parse_json;
use super::super::{Problem, product, quoted};
use super::codes::Code;
use super::grid::Grid;
use super::parts::{Files, Part};
use super::recognize::Stored;
use super::scaled::Scaled;
use super::weight::{Decoder, Quantized};
use crate::element::Element;
use serde::Deserialize;
use std::ops::Range;

/// The ends of the names of states, and the names of the formats.
pub(super) const STATES: [(&str, &str); 2] =
    [(".quant_state.bitsandbytes__nf4", "NF4"), (".quant_state.bitsandbytes__fp4", "FP4")];

const AGAIN: &str = "download or save the checkpoint again";

/// The state of a weight.
#[derive(Deserialize)]
struct State {
    blocksize: u64,
    shape: Vec<u64>,
    nested_blocksize: Option<u64>,
    nested_offset: Option<f64>,
}

/// A weight of 4 bits, from its codes and its state.
///
/// # Errors
/// A data problem for missing tensors, and for shapes and number formats that do not fit.
pub(super) fn four_bits(
    stored: &Stored<'_>,
    codes: Part,
    state: Part,
    name: &str,
) -> Result<Quantized, Problem> {
    let files = stored.files;
    let text = state.all(files)?;
    let read: State = parse_json(&text, "quantization state")
        .map_err(|problem| problem.in_file(files[state.file].0.path()).in_tensor(&state.name).help(AGAIN))?;
    let part = |end: &str| {
        let name = format!("{}.{end}", codes.name);
        let missing = || {
            codes
                .problem(files, format!("{}, which a weight in 4 bits needs, is missing", quoted(&name)))
                .help(AGAIN)
        };
        stored.part(&name).ok_or_else(missing)
    };
    let (absmax, map) = (part("absmax")?, part("quant_map")?);
    let &[rows, columns] = read.shape.as_slice() else {
        return Err(state.problem(files, format!("expected a weight of two axes, found {:?}", read.shape)));
    };
    let numbers = product(&read.shape).unwrap_or(u64::MAX);
    if codes.tensor.length != numbers.div_ceil(2) || rows == 0 || columns == 0 {
        let what = format!(
            "expected the codes of a weight of {rows} × {columns} in {} bytes, found {}",
            numbers.div_ceil(2),
            codes.tensor.length
        );
        return Err(codes.problem(files, what).help(AGAIN));
    }
    if read.blocksize == 0 {
        return Err(state.problem(files, "the size of the blocks is 0"));
    }
    let blocks = numbers.div_ceil(read.blocksize);
    if absmax.count() != blocks {
        return Err(
            absmax.wrong_shape(files, &format!("[{blocks}], one scale for each {} numbers", read.blocksize))
        );
    }
    let table = |part: &Part, length: u64| {
        part.require_dtype(files, "F32")?;
        match part.count() == length {
            true => part.scales(files, Code::Float(Element::F32), 0..length),
            false => Err(part.wrong_shape(files, &format!("[{length}]"))),
        }
    };
    let map_values = table(&map, 16)?;
    let mut parts = vec![codes.clone(), absmax.clone(), map, state.clone()];
    let nested = match (absmax.dtype(), read.nested_blocksize, read.nested_offset) {
        ("U8", Some(block), Some(offset)) if block > 0 => {
            let (scales, nested_map) = (part("nested_absmax")?, part("nested_quant_map")?);
            let expected = blocks.div_ceil(block);
            if scales.count() != expected {
                return Err(
                    scales.wrong_shape(files, &format!("[{expected}], one scale for each {block} scales"))
                );
            }
            scales.require_dtype(files, "F32")?;
            let nested = Nested {
                map: table(&nested_map, 256)?,
                scales: scales.clone(),
                block,
                offset: offset as f32,
            };
            parts.extend([scales, nested_map]);
            Some(nested)
        }
        ("U8", _, _) => {
            return Err(state
                .problem(files, "its scales are nested, but it does not tell their blocks and offset")
                .help(AGAIN));
        }
        _ => {
            absmax.require_dtype(files, "F32")?;
            None
        }
    };
    let decoder = FourBits { codes, absmax, map: map_values, block: read.blocksize, columns, nested };
    Ok(Quantized {
        format: name.into(),
        matrix: [rows, columns],
        count: 1,
        transposed: false,
        stacked: false,
        parts,
        decoder: Box::new(decoder),
    })
}

/// Scales that are stored as bytes.
#[derive(Debug)]
struct Nested {
    map: Vec<f32>,
    scales: Part,
    block: u64,
    offset: f32,
}

#[derive(Debug)]
struct FourBits {
    codes: Part,
    absmax: Part,
    map: Vec<f32>,
    /// Numbers with one scale.
    block: u64,
    columns: u64,
    nested: Option<Nested>,
}

impl FourBits {
    /// The scales of consecutive blocks.
    fn scales(&self, files: Files<'_>, blocks: Range<u64>) -> Result<Vec<f32>, Problem> {
        let Some(Nested { map, scales, block, offset }) = &self.nested else {
            return self.absmax.scales(files, Code::Float(Element::F32), blocks);
        };
        let bytes = self.absmax.bytes(files, blocks.clone())?;
        let first = blocks.start / block;
        let outer = scales.scales(files, Code::Float(Element::F32), first..blocks.end.div_ceil(*block))?;
        let scale = |(index, byte): (u64, &u8)| {
            map[usize::from(*byte)] * outer[(index / block - first) as usize] + offset
        };
        Ok(blocks.zip(&bytes).map(scale).collect())
    }

    /// Decodes consecutive numbers.
    fn run(&self, files: Files<'_>, first: u64, out: &mut [f32]) -> Result<(), Problem> {
        let end = first + out.len() as u64;
        let bytes = self.codes.bytes(files, first / 2..end.div_ceil(2))?;
        let first_block = first / self.block;
        let scales = self.scales(files, first_block..end.div_ceil(self.block))?;
        let (mut at, mut rest) = (first, out);
        while !rest.is_empty() {
            let block = at / self.block;
            // At most the length of the rest.
            let count = ((block + 1).saturating_mul(self.block) - at).min(rest.len() as u64);
            let (now, later) = rest.split_at_mut(count as usize);
            let scale = scales[(block - first_block) as usize];
            for (index, value) in (at..).zip(now) {
                let byte = bytes[(index / 2 - first / 2) as usize];
                let half = if index % 2 == 0 { byte >> 4 } else { byte & 15 };
                *value = self.map[usize::from(half)] * scale;
            }
            (at, rest) = (at + count, later);
        }
        Ok(())
    }
}

impl Decoder for FourBits {
    fn decode(
        &self,
        files: Files<'_>,
        rows: Range<u64>,
        columns: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), Problem> {
        if columns == (0..self.columns) {
            return self.run(files, rows.start * self.columns, out);
        }
        let width = (columns.end - columns.start) as usize;
        rows.zip(out.chunks_mut(width))
            .try_for_each(|(row, line)| self.run(files, row * self.columns + columns.start, line))
    }
}

/// A weight of 8 bits.
///
/// # Errors
/// A data problem for missing scales, and for shapes, number formats and layouts that do not fit.
pub(super) fn eight_bits(
    stored: &Stored<'_>,
    codes: Part,
    scales: Option<Part>,
    module: &str,
) -> Result<Quantized, Problem> {
    let files = stored.files;
    let Some(scales) = scales else {
        let what =
            format!("the scales of this INT8 weight are missing: {}", quoted(&format!("{module}.SCB")));
        return Err(codes.problem(files, what).help(AGAIN));
    };
    let &[rows, columns] = codes.shape() else {
        return Err(codes.wrong_shape(files, "[outputs, inputs]"));
    };
    scales.require_dtype(files, "F32")?;
    if scales.count() != rows {
        return Err(scales.wrong_shape(files, &format!("[{rows}], one scale for each row")));
    }
    if let Some(layout) = stored.part(&format!("{module}.weight_format")) {
        // 0 stands for rows. The other layouts are those of old graphics processors.
        if layout.all(files)?.iter().any(|byte| *byte != 0) {
            return Err(layout
                .problem(files, "the codes have the layout of a graphics processor, which is not read")
                .help("save the checkpoint again with bitsandbytes 0.43 or newer"));
        }
    }
    let grid =
        Grid { part: scales.clone(), code: Code::Float(Element::F32), block: [1, columns], rows, columns };
    let factor = Some(1.0 / 127.0);
    let decoder = Scaled { codes: codes.clone(), code: Code::I8, columns, scales: grid, zeros: None, factor };
    Ok(Quantized {
        format: "INT8 of bitsandbytes".into(),
        matrix: [rows, columns],
        count: 1,
        transposed: false,
        stacked: false,
        parts: vec![codes, scales],
        decoder: Box::new(decoder),
    })
}
