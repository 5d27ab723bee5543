//! MXFP4 experts of gpt-oss.
//!
//! A parameter `P` of fused experts is stored as `P_blocks`, U8 `[experts, outputs, groups, 16]`, and `P_scales`, U8
//! `[experts, outputs, groups]`. A group is 32 inputs. At run time the parameter has the shape `[experts, inputs, outputs]`; the rows of
//! `gate_up_proj` alternate between gate and up, on disk as at run time.
//!
//! Source: `mxfp4.py` of transformers 5.24.

use super::super::{Problem, quoted};
use super::codes::Code;
use super::fp4::Fp4;
use super::grid::Grid;
use super::parts::{Files, Part};
use super::weight::Quantized;

/// Inputs of a group.
pub(super) const GROUP: u64 = 32;

/// The parameter with these blocks and scales.
///
/// # Errors
/// A data problem for missing scales, and for shapes and number formats that do not fit.
pub(super) fn experts(
    files: Files<'_>,
    blocks: Part,
    scales: Option<Part>,
    scales_name: &str,
) -> Result<Quantized, Problem> {
    let Some(scales) = scales else {
        let what = format!("the scales of these MXFP4 experts are missing: {}", quoted(scales_name));
        return Err(blocks
            .problem(files, what)
            .help("download the checkpoint again: without its scales, the weight is wrong"));
    };
    let &[count, outputs, groups, bytes] = blocks.shape() else {
        return Err(blocks.wrong_shape(files, "[experts, outputs, groups, 16]"));
    };
    if bytes != GROUP / 2 || groups == 0 || outputs == 0 || count == 0 {
        return Err(blocks.wrong_shape(files, "[experts, outputs, groups, 16]"));
    }
    scales.require_dtype(files, "U8")?;
    if scales.shape() != [count, outputs, groups] {
        return Err(
            scales.wrong_shape(files, &format!("[{count}, {outputs}, {groups}], one scale for each block"))
        );
    }
    let columns = groups * GROUP;
    let grid = Grid { part: scales.clone(), code: Code::E8m0, block: [1, GROUP], rows: outputs, columns };
    Ok(Quantized {
        format: "MXFP4".into(),
        matrix: [outputs, columns],
        count,
        transposed: true,
        stacked: true,
        parts: vec![blocks.clone(), scales],
        decoder: Box::new(Fp4 { codes: blocks, columns, scales: grid, scale_of_scales: None }),
    })
}
