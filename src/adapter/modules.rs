//! Assembles the modules of PEFT from layers: the fused experts of a module, and the groups of a convolution, share its tensors.
//!
//! Source: `ParamWrapper` and `_ConvNd` in `tuners/lora/layer.py`, and `_inject_parameters` in `tuners/tuners_utils.py`, of PEFT
//! 0.21.2.

use super::numbers::in_module;
use super::{Adapter, CONFIG_FILE};
use crate::factors::{Factors, LayerShape};
use crate::storage::expressions::ends_of;
use crate::storage::{Problem, Problems, quoted};
use faer::Mat;
use std::collections::{BTreeMap, BTreeSet};

/// PEFT appends this to the name of a module, once per parameter that is wrapped around another.
const WRAPPED: &str = ".base_layer";

/// The order of the parameters of experts in models. PEFT wraps the first one innermost.
const ORDER: [&str; 3] = ["gate_up_proj", "up_proj", "down_proj"];

/// One of the two factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// `A`.
    Down,
    /// `B`.
    Up,
}

/// A module with its blocks in order. A module that is not divided has one block.
#[derive(Debug)]
pub(super) struct Module<'a> {
    shape: &'a LayerShape,
    blocks: Vec<&'a Factors>,
}

/// The modules of an adapter, by name.
///
/// # Errors
/// A data problem if a block is missing or does not fit the others, or if there are both experts and transposed weights.
pub(super) fn modules(adapter: &Adapter) -> Result<BTreeMap<&str, Module<'_>>, Problems> {
    let mut blocks: BTreeMap<&str, BTreeMap<usize, (&LayerShape, &Factors)>> = BTreeMap::new();
    for (name, factors) in &adapter.layers {
        let shape = adapter.shape(name);
        let block = name.block.unwrap_or(0);
        blocks.entry(&name.module).or_default().insert(block, (shape, factors));
    }
    let mut problems = Problems::default();
    let mut modules = BTreeMap::new();
    for (name, blocks) in blocks {
        if let Some(module) = problems.collect(Module::new(name, &blocks)) {
            modules.insert(name, module);
        }
    }
    let has = |wanted: fn(&LayerShape) -> bool| modules.values().any(|module| wanted(module.shape));
    if has(|shape| *shape == LayerShape::Transposed)
        && has(|shape| matches!(shape, LayerShape::Expert { .. }))
    {
        problems.push(
            Problem::data(
                "PEFT cannot load an adapter with both fused experts and weights stored as [inputs, outputs]",
            )
            .help("write one adapter per kind, with --target or --exclude"),
        );
    }
    problems.or_ok(modules)
}

impl<'a> Module<'a> {
    fn new(name: &str, blocks: &BTreeMap<usize, (&'a LayerShape, &'a Factors)>) -> Result<Self, Problem> {
        let complain = |what: String| in_module(name, what);
        let mut all = blocks.values();
        let &(shape, first) = all.next().ok_or_else(|| complain("it has no factors".into()))?;
        let count = shape.blocks().unwrap_or(1);
        if blocks.len() != count || blocks.last_key_value().is_none_or(|(last, _)| last + 1 != count) {
            return Err(complain(format!("expected {count} blocks, found {}", blocks.len())));
        }
        let size = |factors: &Factors| (factors.b.nrows(), factors.a.ncols());
        if all.any(|(other, factors)| *other != shape || size(factors) != size(first)) {
            return Err(complain("its blocks have different shapes".into()));
        }
        Ok(Self { shape, blocks: blocks.values().map(|(_, factors)| *factors).collect() })
    }

    /// How the weights of its blocks are stored.
    pub(super) fn shape(&self) -> &LayerShape {
        self.shape
    }

    /// The rank in the configuration.
    pub(super) fn rank(&self) -> usize {
        self.block_rank() * self.shape.parts()
    }

    /// True if PEFT adapts it as a parameter and not as a module.
    pub(super) fn is_parameter(&self) -> bool {
        matches!(self.shape, LayerShape::Expert { .. })
    }

    /// The rank of its blocks. Blocks of smaller rank are padded with zeros.
    fn block_rank(&self) -> usize {
        self.blocks.iter().map(|factors| factors.a.nrows()).max().unwrap_or(0)
    }

    /// The shape of a factor in the file.
    pub(super) fn shape_of(&self, side: Side) -> Vec<u64> {
        let Factors { a, b } = self.blocks[0];
        let (rank, count) = (self.block_rank(), self.blocks.len());
        let (rows, columns) = match side {
            Side::Down => return self.shape.of_down((rank * count) as u64, a.ncols() as u64),
            Side::Up if self.is_parameter() => (b.nrows(), rank * count),
            Side::Up => (b.nrows() * count, rank),
        };
        self.shape.of_up(rows as u64, columns as u64)
    }

    /// A factor. `A` has the blocks one below the other. So has `B` of groups; `B` of experts has the first columns of all experts, then
    /// the second columns, and so on.
    pub(super) fn factor(&self, side: Side) -> Mat<f32> {
        if let [factors] = self.blocks[..] {
            return match side {
                Side::Down => factors.a.clone(),
                Side::Up => factors.b.clone(),
            };
        }
        let Factors { a, b } = self.blocks[0];
        let (rank, inputs, outputs, count) = (self.block_rank(), a.ncols(), b.nrows(), self.blocks.len());
        let down = |block: usize, i: usize, j: usize| {
            let a = &self.blocks[block].a;
            if i < a.nrows() { a[(i, j)] } else { 0.0 }
        };
        let up = |block: usize, i: usize, j: usize| {
            let b = &self.blocks[block].b;
            if j < b.ncols() { b[(i, j)] } else { 0.0 }
        };
        match side {
            Side::Down => Mat::from_fn(rank * count, inputs, |i, j| down(i / rank, i % rank, j)),
            Side::Up if self.is_parameter() => {
                Mat::from_fn(outputs, rank * count, |i, j| up(j % count, i, j / count))
            }
            Side::Up => Mat::from_fn(outputs * count, rank, |i, j| up(i / outputs, i % outputs, j)),
        }
    }
}

/// The names of modules in the names of tensors.
///
/// # Errors
/// A data problem for several parameters of one parent in an unknown order.
pub(super) fn keys<'a>(
    modules: &BTreeMap<&'a str, Module<'_>>,
) -> Result<BTreeMap<&'a str, String>, Problem> {
    let mut keys = BTreeMap::new();
    let mut parameters: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (&name, module) in modules {
        if module.is_parameter() {
            parameters.entry(parent_of(name)).or_default().push(name);
        } else {
            keys.insert(name, name.to_owned());
        }
    }
    for (parent, mut siblings) in parameters {
        in_order(&mut siblings)?;
        // PEFT wraps the first one innermost.
        for (depth, name) in siblings.into_iter().rev().enumerate() {
            keys.insert(name, format!("{parent}{}", WRAPPED.repeat(depth)));
        }
    }
    Ok(keys)
}

/// The module of a parameter: its name up to the last dot.
fn parent_of(parameter: &str) -> &str {
    parameter.rsplit_once('.').map_or("", |(parent, _)| parent)
}

/// Sorts the parameters of a parent, starting with the innermost.
///
/// # Errors
/// A data problem for several parameters in an unknown order.
fn in_order(parameters: &mut [&str]) -> Result<(), Problem> {
    let place = |name: &str| {
        let last = name.rsplit('.').next().unwrap_or(name);
        ORDER.iter().position(|known| *known == last)
    };
    if parameters.len() > 1
        && let Some(unknown) = parameters.iter().find(|name| place(name).is_none())
    {
        let what = format!(
            "experts with several parameters may have only gate_up_proj, up_proj and down_proj, found {}",
            quoted(unknown)
        );
        return Err(Problem::data(what).help("write one adapter per parameter, with --target"));
    }
    parameters.sort_by_key(|name| place(name));
    Ok(())
}

/// The parameters of fused experts in `target_parameters`, by the name of their module or its end.
pub(super) struct Parameters<'a>(BTreeMap<&'a str, Vec<&'a str>>);

impl<'a> Parameters<'a> {
    /// The parameters of a configuration.
    pub(super) fn new(targets: Option<&'a BTreeSet<String>>) -> Self {
        let mut by_module: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for target in targets.into_iter().flatten() {
            by_module.entry(parent_of(target)).or_default().push(target);
        }
        Self(by_module)
    }

    /// The parameter that has this name in tensors. `None` if there is no parameter of this module.
    ///
    /// # Errors
    /// A data problem for tensors of more parameters than there are, and for several parameters in an unknown order.
    pub(super) fn named(&self, name: &str) -> Result<Option<String>, Problem> {
        let mut parent = name;
        let mut depth = 0;
        while let Some(outer) = parent.strip_suffix(WRAPPED) {
            (parent, depth) = (outer, depth + 1);
        }
        let ends = ends_of(parent).filter_map(|end| self.0.get(end));
        let mut siblings: Vec<&str> = ends.flatten().copied().collect();
        if siblings.is_empty() {
            return Ok(None);
        }
        siblings.sort_unstable();
        in_order(&mut siblings)?;
        let target = siblings.len().checked_sub(depth + 1).map(|place| siblings[place]).ok_or_else(|| {
            Problem::data(format!(
                "target_parameters in {CONFIG_FILE} has {} of the parameters of {}, but there are tensors for more",
                siblings.len(),
                quoted(parent)
            ))
        })?;
        let last = target.rsplit('.').next().unwrap_or(target);
        Ok(Some(format!("{parent}.{last}")))
    }
}

#[cfg(test)]
mod tests;
