//! The layers of an adapter, and their checks: names, shapes and number formats of the factors.

use super::format::{Component, SingleFile};
use super::names::{affixes, suffixes};
use super::numbers::{decode, element_of};
use super::sorting::Tensors;
use super::{CONFIG_FILE, Config};
use crate::element::Element;
use crate::factors::{LayerName, LayerShape, MOST_BLOCKS};
use crate::storage::safetensors::Tensor;
use crate::storage::{Problem, Source, product, quoted};

/// Gives the name of a module in the adapter.
pub(crate) type Renaming<'a> = dyn Fn(&str) -> Result<String, Problem> + 'a;

/// A layer of an adapter, without its numbers.
#[derive(Clone, Debug)]
pub struct PeftLayer {
    /// Rank `r`, at least 1.
    pub rank: usize,
    /// Input features `d`.
    pub inputs: usize,
    /// Output features `m`.
    pub outputs: usize,
    /// How the weight is stored. Without a configuration, linear and transposed layers cannot be distinguished: both are linear here.
    pub shape: LayerShape,
    /// Scale `s`.
    pub scale: f64,
    /// Number format of both factors.
    pub element: Element,
    /// The component of a pipeline that the layer belongs to, if the names of a single file tell it.
    pub component: Option<Component>,
    /// True if the name of its module has `_` for `.`, as in kohya's format, and nothing tells the name itself.
    pub is_flattened: bool,
    pub(super) a: Tensor,
    pub(super) b: Tensor,
    /// True if both factors are stored transposed.
    pub(super) is_transposed: bool,
    /// Which block of its module this is. The tensors contain all blocks.
    pub(super) block: usize,
}

/// The layers of a module: one, or one per block.
pub(super) fn layers_of(
    [a, b, alpha]: Tensors,
    (name, is_embedding): (&str, bool),
    (module, in_adapter): (&str, &str),
    is_parameter: bool,
    (config, format, source): (Option<&Config>, Option<SingleFile>, &Source),
) -> Result<Vec<(LayerName, PeftLayer)>, Problem> {
    let (prefix, affixes) = affixes(format);
    let [down, up] = if is_embedding { suffixes(&LayerShape::Embedding) } else { affixes };
    let key = |tensor: &Option<(String, Tensor)>, end: &str| {
        tensor.as_ref().map_or_else(|| format!("{prefix}{name}{end}"), |(key, _)| key.clone())
    };
    let (a_key, b_key) = (key(&a, down), key(&b, up));
    let missing = |key: &str| {
        Problem::data("the tensor is missing, but others of the same layer are present").in_tensor(key)
    };
    let (_, a) = a.ok_or_else(|| missing(&a_key))?;
    let (_, b) = b.ok_or_else(|| missing(&b_key))?;
    let (rows, inputs) =
        matrix_shape(&a, "A must have shape [rank, inputs]").map_err(|p| p.in_tensor(&a_key))?;
    let (outputs, columns) =
        matrix_shape(&b, "B must have shape [outputs, rank]").map_err(|p| p.in_tensor(&b_key))?;
    let kernel = a.shape.get(2..).unwrap_or_default();
    if b.shape.get(2..) != Some(&vec![1; kernel.len()][..]) {
        let ones = ", 1".repeat(kernel.len());
        let what = format!("B must have shape [outputs, rank{ones}], found {:?}", b.shape);
        return Err(Problem::data(what).in_tensor(&b_key));
    }
    if is_embedding && !kernel.is_empty() {
        let what = format!("A of an embedding must have shape [rank, tokens], found {:?}", a.shape);
        return Err(Problem::data(what).in_tensor(&a_key));
    }
    let expected = config.map(|config| config.rank(module) as usize);
    // The groups of a convolution share the rows of A.
    let groups = rows / columns.min(rows).max(1);
    let (rank, outputs, shape) = match kernel {
        [] if is_parameter => {
            let rank = expected.filter(|&rank| rank > 0 && rows.is_multiple_of(rank)).unwrap_or(rows);
            (rank, outputs, LayerShape::Expert { count: rows / rank, transposed: false })
        }
        [] if is_embedding => (rows, outputs, LayerShape::Embedding),
        [] if config.is_some_and(|config| config.fan_in_fan_out) => (rows, outputs, LayerShape::Transposed),
        [] => (rows, outputs, LayerShape::Linear),
        kernel if groups > 1 && rows == groups * columns && outputs.is_multiple_of(groups) => {
            (columns, outputs / groups, LayerShape::Group { count: groups, kernel: kernel.into() })
        }
        kernel => (rows, outputs, LayerShape::Convolution(kernel.into())),
    };
    if !matches!(shape, LayerShape::Group { .. }) && columns != rows {
        return Err(
            Problem::data(format!("A has rank {rows}, but B has {columns} columns")).in_tensor(&b_key)
        );
    }
    if let Some(expected) = expected.filter(|&expected| expected != rank * shape.parts()) {
        return Err(
            Problem::data(format!("A has rank {rows}, but {CONFIG_FILE} says {expected}")).in_tensor(&a_key)
        );
    }
    if a.dtype != b.dtype {
        let (a, b) = (quoted(&a.dtype), quoted(&b.dtype));
        return Err(Problem::data(format!("B has number format {b}, but A has {a}")).in_tensor(&b_key));
    }
    let element = element_of(&a.dtype).map_err(|p| p.in_tensor(&a_key))?;
    let scale = match (config, &alpha) {
        (Some(config), None) => config.scale(module),
        (_, Some((_, alpha))) => read_number(alpha, source).map_err(|p| p.in_tensor(name))? / rows as f64,
        (None, None) => 1.0,
    };
    let count = shape.blocks();
    if let Some(count) = count.filter(|&count| count > MOST_BLOCKS) {
        let what = format!("A has {count} blocks of rank {rank}, but at most {MOST_BLOCKS} are supported");
        return Err(Problem::data(what).in_tensor(&a_key));
    }
    let layer = PeftLayer {
        rank,
        inputs,
        outputs,
        shape,
        scale,
        element,
        component: None,
        is_flattened: false,
        a,
        b,
        is_transposed: false,
        block: 0,
    };
    Ok(match count {
        None => vec![(LayerName::of_module(in_adapter), layer)],
        Some(count) => (0..count)
            .map(|block| (LayerName::of_block(in_adapter, block), PeftLayer { block, ..layer.clone() }))
            .collect(),
    })
}

/// Reads a tensor with a single number.
fn read_number(tensor: &Tensor, source: &Source) -> Result<f64, Problem> {
    let element = element_of(&tensor.dtype)?;
    match product(&tensor.shape) {
        Some(1) => Ok(decode(&source.read_vec(tensor.offset, tensor.length)?, element)?[0]),
        _ => Err(Problem::data(format!("alpha must be a single number, found shape {:?}", tensor.shape))),
    }
}

/// Rows and columns. The axes of a kernel count as columns.
pub(super) fn matrix_shape(tensor: &Tensor, rule: &str) -> Result<(usize, usize), Problem> {
    let positive = |count: u64| usize::try_from(count).ok().filter(|&count| count > 0);
    match tensor.shape.as_slice() {
        [rows, rest @ ..] if (1..=4).contains(&rest.len()) => {
            positive(*rows).zip(product(rest).and_then(positive))
        }
        _ => None,
    }
    .ok_or_else(|| Problem::data(format!("{rule}, found {:?}", tensor.shape)))
}
