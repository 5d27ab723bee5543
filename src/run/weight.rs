//! The weight of a layer, read as f32, and the problems that name it.

use super::unusable;
use crate::dense::Buffer;
use crate::error::Error;
use crate::factors::LayerShape;
use crate::plan::PlannedLayer;
use crate::storage::{Checkpoint, Piece, Problem, buffer, quoted};
use rayon::prelude::*;

/// Reads a weight as f32, in stored order. The weight of a group of a convolution has the width of the patches of all groups, with zeros
/// outside its own channels. The memory can be that of the last weight.
pub(super) fn read_weight<'a>(
    checkpoint: &Checkpoint,
    layer: &PlannedLayer,
    memory: &'a mut Buffer<f32>,
) -> Result<&'a [f32], Problem> {
    let no_memory = |problem| in_weight(problem, checkpoint, layer);
    let length = layer.outputs * layer.inputs;
    if memory.len() != length {
        // The old one first, so that both are never held.
        *memory = Buffer::default();
        *memory = buffer(length as u64).map_err(no_memory)?;
    }
    let weight = &mut memory[..];
    let (LayerShape::Group { count, .. }, Some(group)) = (&layer.shape, layer.name.block) else {
        read_numbers(checkpoint, layer, weight)?;
        return Ok(weight);
    };
    let own = layer.inputs / count;
    let mut numbers = buffer((layer.outputs * own) as u64).map_err(no_memory)?;
    read_numbers(checkpoint, layer, &mut numbers)?;
    weight.fill(0.0);
    for (row, numbers) in weight.chunks_mut(layer.inputs).zip(numbers.chunks(own)) {
        row[group * own..][..own].copy_from_slice(numbers);
    }
    Ok(weight)
}

/// Reads the numbers of all pieces: blocks of them side by side, and quantized pieces one after the other, each of them whole.
fn read_numbers(checkpoint: &Checkpoint, layer: &PlannedLayer, numbers: &mut [f32]) -> Result<(), Problem> {
    /// Numbers that are read together.
    const TOGETHER: usize = 1 << 18;
    let mut rest = numbers;
    let mut pieces = layer.weight.iter().map(|piece| {
        let count = rest.len().min(piece.count as usize);
        let (now, later) = std::mem::take(&mut rest).split_at_mut(count);
        rest = later;
        (piece, now)
    });
    if layer.quantization.is_some() {
        return pieces.try_for_each(|(piece, numbers)| checkpoint.dequantize(piece, numbers));
    }
    let blocks = pieces.flat_map(|(piece, numbers)| {
        let first = (piece.first..).step_by(TOGETHER);
        first
            .zip(numbers.chunks_mut(TOGETHER))
            .map(|(first, block)| (Piece::of(&piece.tensor, first..first + block.len() as u64), block))
    });
    let read = |(piece, block): (Piece, &mut [f32])| {
        layer.element.decode_f32(&checkpoint.read_piece(&piece)?, block);
        Ok(())
    };
    // The first problem is that of the first block.
    blocks.collect::<Vec<_>>().into_par_iter().map(read).collect::<Vec<_>>().into_iter().collect()
}

/// The problem of a weight with NaN or infinity: the place of the first one in the stored matrix, and the number of others.
pub(super) fn first_nonfinite(weight: &[f32], layer: &PlannedLayer) -> Option<Problem> {
    let place = weight.iter().position(|value| !value.is_finite())?;
    let others = weight[place + 1..].iter().filter(|value| !value.is_finite()).count();
    let columns = if layer.shape.is_transposed() { layer.outputs } else { layer.inputs };
    let problem = Problem::data(format!(
        "the weight contains a value that is not finite: {} in row {}, column {} of module {}, and {others} more",
        weight[place],
        place / columns,
        place % columns,
        quoted(&layer.name.to_string())
    ));
    Some(problem.help(format!(
        "download or convert the checkpoint again, or exclude this layer with {}",
        unusable::exclusion(layer)
    )))
}

pub(super) fn in_weight(problem: Problem, checkpoint: &Checkpoint, layer: &PlannedLayer) -> Problem {
    let problem = problem.in_tensor(&layer.tensors());
    match layer.weight.first().and_then(|piece| checkpoint.get(&piece.tensor)) {
        Some(stored) => problem.in_file(checkpoint.source(stored).path()),
        None => problem,
    }
}

/// The problem for an error of the numerics in a layer, with help.
pub(super) fn describe(error: Error, layer: &PlannedLayer) -> Problem {
    let problem = Problem::data(error.to_string());
    match error {
        Error::NonFinite { .. } | Error::NoConvergence { .. } => problem.help(format!(
            "inspect its weight with `cntlora inspect FILE --values`, or exclude this layer with {}",
            unusable::exclusion(layer)
        )),
        _ => problem,
    }
}
