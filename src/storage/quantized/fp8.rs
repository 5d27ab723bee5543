//! Float8 with one scale for each tensor, row, group of inputs or block.
//!
//! `X.weight` is F8_E4M3 or F8_E5M2. The scale is `X.weight_scale_inv` (`fp8` of transformers, DeepSeek) or `X.weight_scale`
//! (compressed-tensors, fbgemm, others); despite its name, the first one is multiplied too. Fused experts `P` have `P_scale_inv`.
//!
//! The size of blocks comes from the configuration. It does not follow from the grid of scales: 576 rows can be 5 blocks of 128, or of 116
//! to 143.
//!
//! Sources: `finegrained_fp8.py` of transformers 5.24, `naive_quantized/base.py` of compressed-tensors 0.20.

use super::super::{Problem, quoted};
use super::codes::Code;
use super::config::Config;
use super::grid::Grid;
use super::parts::{Files, Part};
use super::scaled::Scaled;
use super::weight::Quantized;

/// The blocks if no configuration tells their size.
const USUAL: [u64; 2] = [128, 128];

/// The weight with these codes and scales. `scale` is its name if it is missing.
///
/// # Errors
/// A data problem for a missing scale, and for shapes and number formats that do not fit.
pub(super) fn weight(
    files: Files<'_>,
    config: &Config,
    codes: Part,
    scale: Option<Part>,
    zero: Option<Part>,
) -> Result<Quantized, Problem> {
    let code = Code::of_codes(codes.dtype());
    let code = code.ok_or_else(|| codes.problem(files, "codes of this format are not read"))?;
    let name = if code == Code::I8 { "INT8" } else { "FP8" };
    let Some(scale) = scale else {
        let [scale, inverse] = ["_scale", "_scale_inv"].map(|end| quoted(&format!("{}{end}", codes.name)));
        let what = format!("the scale of this {name} weight is missing: {scale} or {inverse}");
        return Err(codes
            .problem(files, what)
            .help("download or convert the checkpoint again: without its scale, the weight is wrong"));
    };
    let (count, matrix, stacked) = match *codes.shape() {
        [rows, columns] => (1, [rows, columns], false),
        [count, rows, columns] => (count, [rows, columns], true),
        _ => return Err(codes.wrong_shape(files, "[outputs, inputs]")),
    };
    let (block, all, layout) = blocks(files, config, &scale, (count, matrix, stacked))?;
    let [rows, columns] = matrix;
    let rows = if all { rows.saturating_mul(count) } else { rows };
    let block = if all { [rows, columns] } else { block };
    let grid = |part: Part, code: Code| Grid { part, code, block, rows, columns };
    let zeros = match zero {
        None => None,
        Some(zero) if zero.count() == scale.count() && zero.dtype() == "I8" => Some(grid(zero, Code::I8)),
        Some(zero) => return Err(zero.wrong_shape(files, &format!("{:?} of I8", scale.shape()))),
    };
    let scales = grid(scale.clone(), scale.scale_code(files)?);
    let parts = [Some(codes.clone()), Some(scale), zeros.as_ref().map(|zeros| zeros.part.clone())];
    Ok(Quantized {
        format: format!("{name}, {layout}"),
        matrix,
        count,
        transposed: false,
        stacked,
        parts: parts.into_iter().flatten().collect(),
        decoder: Box::new(Scaled { codes, code, columns, scales, zeros, factor: None }),
    })
}

/// The rows and columns of a block, true if all matrices have one scale together, and the layout in words.
fn blocks(
    files: Files<'_>,
    config: &Config,
    scale: &Part,
    (count, [rows, columns], stacked): (u64, [u64; 2], bool),
) -> Result<([u64; 2], bool, String), Problem> {
    let shape = scale.shape();
    if scale.count() == 1 {
        return Ok(([rows, columns], true, "one scale".into()));
    }
    // The axis of the matrices comes first.
    let of_matrix = match (stacked, shape) {
        (false, shape) => shape,
        (true, [first, rest @ ..]) if *first == count => rest,
        (true, _) => return Err(scale.wrong_shape(files, &format!("[{count}, …], one grid for each expert"))),
    };
    if matches!(of_matrix, [] | [1] | [1, 1]) {
        return Ok(([rows, columns], false, "one scale per expert".into()));
    }
    if matches!(of_matrix, [one] | [one, 1] if *one == rows) {
        return Ok(([1, columns], false, "one scale per row".into()));
    }
    let sizes = || config.schemes.iter().filter_map(|scheme| scheme.block).chain(config.block);
    let fits = |block: &[u64; 2]| of_matrix == Grid::shape(rows, columns, *block);
    let in_words = |[rows, columns]: [u64; 2]| format!("blocks of {rows} × {columns}");
    if let Some(block) = sizes().find(fits) {
        return Ok((block, false, in_words(block)));
    }
    let groups = config.schemes.iter().filter_map(|scheme| scheme.group_size);
    if let Some(group) = groups.into_iter().find(|group| fits(&[1, *group])) {
        return Ok(([1, group], false, format!("groups of {group}")));
    }
    let known = sizes().next();
    if known.is_none() && fits(&USUAL) {
        return Ok((USUAL, false, in_words(USUAL)));
    }
    let block = known.unwrap_or(USUAL);
    let grid = Grid::shape(rows, columns, block);
    let expected = format!(
        "{grid:?}, one scale for each block of {} × {} of a weight of {rows} × {columns}",
        block[0], block[1]
    );
    let problem = scale.wrong_shape(files, &expected);
    Err(problem.help("weight_block_size in config.json tells the size of the blocks: use the config.json of this checkpoint"))
}
