//! Helpers for the tests of this folder.

use super::{Adapter, Contents, Format, PeftContents, write_adapter};
use crate::element::Element;
use crate::factors::Factors;
use crate::storage::Problems;
use crate::storage::{Access, Checkpoint, safetensors};
use faer::Mat;
use quickcheck::{Arbitrary, Gen};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;

/// Factors with fixed values in [-1, 1) that bf16 can represent exactly.
pub(super) fn factors(outputs: usize, inputs: usize, rank: usize) -> Factors {
    let value = |i: usize, j: usize| ((i * 37 + j * 11 + 5) % 64) as f32 / 32.0 - 1.0;
    Factors {
        a: Mat::from_fn(rank, inputs, value),
        b: Mat::from_fn(outputs, rank, |i, j| value(j + 3, i + 1)),
    }
}

pub(super) fn adapter(layers: impl IntoIterator<Item = (&'static str, Factors)>) -> Adapter {
    let layers = layers.into_iter().map(|(module, factors)| (module.into(), factors)).collect();
    Adapter { layers, shapes: BTreeMap::new(), components: BTreeMap::new(), scale: 2.0, base: "tiny".into() }
}

/// A record as callers give it, with a start.
pub(super) fn provenance(start: &str, layers: &[(&str, &str)]) -> Map<String, Value> {
    let layers: Vec<Value> = layers
        .iter()
        .map(|(module, tensor)| json!({"module": module, "tensor": tensor, "rank": 1}))
        .collect();
    let record = json!({
        "format": "cntlora-adapter", "version": 1, "method": {"start": start}, "layers": layers,
    });
    record.as_object().cloned().unwrap()
}

/// Writes an adapter with this record, and no other files.
pub(super) fn try_write(
    folder: &Path,
    adapter: &Adapter,
    element: Element,
    record: &Map<String, Value>,
    format: Format,
) -> Result<(), Problems> {
    let other_modules = &BTreeSet::new();
    let peft = PeftContents::default();
    let contents = Contents { adapter, element, provenance: record, other_modules, beside: &[], peft };
    write_adapter(folder, &contents, format)
}

/// Writes a PEFT adapter in f32 with the start `update`.
pub(super) fn write(folder: &Path, adapter: &Adapter) {
    try_write(folder, adapter, Element::F32, &provenance("update", &[]), Format::Peft).unwrap();
}

/// Writes tensors of f64 values, each in its number format.
pub(super) fn write_tensors(path: &Path, tensors: &[(&str, Element, Vec<u64>, Vec<f64>)]) {
    let tensors: BTreeMap<String, (String, Vec<u64>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, element, shape, values)| {
            let mut bytes = Vec::new();
            element.encode(values.iter().copied(), &mut bytes);
            ((*name).to_owned(), (element.name().to_owned(), shape.clone(), bytes))
        })
        .collect();
    safetensors::write(&mut File::create(path).unwrap(), &BTreeMap::new(), &tensors).unwrap();
}

pub(super) fn checkpoint(path: &Path) -> Checkpoint {
    Checkpoint::open(path, Access::Auto).unwrap()
}

/// The names and bytes of the files in a folder.
pub(super) fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap())
        })
        .collect()
}

/// The values of a matrix, row by row.
pub(super) fn rows(matrix: &Mat<f32>) -> Vec<f32> {
    (0..matrix.nrows()).flat_map(|i| (0..matrix.ncols()).map(move |j| matrix[(i, j)])).collect()
}

/// A module name of a few difficult parts: names often end with one another, and look like regular expressions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ModuleName(pub(super) String);

impl Arbitrary for ModuleName {
    fn arbitrary(g: &mut Gen) -> Self {
        let parts = ["q", "x", "0", "10", "a+b", "(c", "[d", "e$", "^f", "g|h", "i\\d", "j-k", "l*", "é"];
        let count = 1 + usize::arbitrary(g) % 3;
        let parts: Vec<&str> = (0..count).map(|_| *g.choose(&parts).unwrap()).collect();
        Self(parts.join("."))
    }
}

/// An adapter with such names, and any ranks and shapes.
#[derive(Clone, Debug)]
pub(super) struct AnyLayers(pub(super) BTreeMap<ModuleName, (usize, usize, usize)>);

impl Arbitrary for AnyLayers {
    fn arbitrary(g: &mut Gen) -> Self {
        let length = |g: &mut Gen| 1 + usize::arbitrary(g) % 5;
        let count = length(g);
        Self((0..count).map(|_| (ModuleName::arbitrary(g), (length(g), length(g), length(g)))).collect())
    }
}

impl AnyLayers {
    pub(super) fn adapter(&self) -> Adapter {
        let layers = self.0.iter().map(|(ModuleName(name), &(outputs, inputs, rank))| {
            (name.as_str().into(), factors(outputs, inputs, rank))
        });
        Adapter {
            layers: layers.collect(),
            shapes: BTreeMap::new(),
            components: BTreeMap::new(),
            scale: 0.3,
            base: "any".into(),
        }
    }
}
