//! A residual base whose weights have other formats than those of the model: F32 in place of BF16 and F16, and F32 or BF16 in place of
//! quantized weights. Then all quantized weights are written under their plain names, without the tensors that they consist of.

use super::super::numbers::decode;
use super::{BaseFormat, Residual, block_of, copy, is_index, relative};
use crate::element::Element;
use crate::storage::json::read_value;
use crate::storage::safetensors::Layout;
use crate::storage::{Checkpoint, NewFile, Piece, Problem, Source, StoredTensor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::ffi::OsStr;

/// The number formats of a weight: as it is read, and as it is written.
#[derive(Clone, Copy)]
struct Formats {
    read: Element,
    written: Element,
}

impl Formats {
    /// Those of a changed weight, or of a quantized one.
    fn new(checkpoint: &Checkpoint, tensor: &str, read: Element, format: BaseFormat) -> Self {
        let is_quantized = checkpoint.quantized(tensor).is_some();
        let written = match (format, read) {
            (BaseFormat::F32, Element::F16 | Element::Bf16) => Element::F32,
            (BaseFormat::Bf16, _) if is_quantized => Element::Bf16,
            (_, read) => read,
        };
        Self { read, written }
    }
}

/// Writes the weights of a file. Tensors that are neither adapted nor quantized keep their bytes. Returns the length of all tensors in
/// bytes.
pub(super) fn write_weights(
    checkpoint: &Checkpoint,
    (number, metadata): (usize, &BTreeMap<String, String>),
    adapted: &[Residual<'_>],
    format: BaseFormat,
    file: &mut NewFile,
) -> Result<u64, Problem> {
    let of_tensor =
        |name: &str| -> Vec<&Residual<'_>> { adapted.iter().filter(|one| one.name == name).collect() };
    let formats_of = |name: &str| {
        let quantized = checkpoint.quantized(name).map(|_| Element::F32);
        let read = of_tensor(name).first().map(|one| one.element).or(quantized)?;
        Some(Formats::new(checkpoint, name, read, format))
    };
    let tensors = checkpoint.names().filter_map(|name| Some((name, checkpoint.get(name)?)));
    let tensors: BTreeMap<&str, &StoredTensor> =
        tensors.filter(|(_, stored)| stored.file == number).collect();
    let placed = tensors.iter().map(|(name, stored)| {
        let written = formats_of(name).map(|formats| formats.written.name().to_owned());
        let dtype = written.unwrap_or_else(|| stored.tensor.dtype.clone());
        ((*name).to_owned(), (dtype, stored.tensor.shape.clone()))
    });
    let layout = Layout::new(metadata, &placed.collect());
    file.put(layout.header())?;
    for name in layout.in_file_order() {
        let stored = tensors[name.as_str()];
        match formats_of(name) {
            Some(formats) => write_tensor(checkpoint, name, &of_tensor(name), formats, file)?,
            None => {
                checkpoint.check_quantized(name)?;
                let tensor = &stored.tensor;
                copy(checkpoint.source(stored), tensor.offset, tensor.offset + tensor.length, file)?;
            }
        }
    }
    Ok(layout.file_length() - layout.header().len() as u64)
}

/// Writes a tensor with the adapted weights in it, which are sorted by place.
fn write_tensor(
    checkpoint: &Checkpoint,
    name: &str,
    adapted: &[&Residual<'_>],
    formats: Formats,
    file: &mut NewFile,
) -> Result<(), Problem> {
    let end = checkpoint.whole(name).map_or(0, |whole| whole.count);
    let mut done = 0;
    for residual in adapted {
        convert(checkpoint, (name, done, residual.numbers.start), formats, file)?;
        residual.write(checkpoint, formats.written, file)?;
        done = residual.numbers.end;
    }
    convert(checkpoint, (name, done, end), formats, file)
}

/// Copies numbers of a tensor into another format.
fn convert(
    checkpoint: &Checkpoint,
    (name, mut from, to): (&str, u64, u64),
    formats: Formats,
    file: &mut NewFile,
) -> Result<(), Problem> {
    let mut encoded = Vec::new();
    while from < to {
        let end = (from + block_of(checkpoint, name, formats.read)).min(to);
        encoded.clear();
        let bytes = checkpoint.read_piece(&Piece::of(name, from..end))?;
        formats.written.encode(decode(&bytes, formats.read)?, &mut encoded);
        file.put(&encoded)?;
        from = end;
    }
    Ok(())
}

/// The new content of a file beside the weights that describes their number format; `None` if the file does not.
pub(super) fn companion(
    checkpoint: &Checkpoint,
    name: &OsStr,
    source: &Source,
    weight_bytes: u64,
    format: BaseFormat,
) -> Result<Option<Value>, Problem> {
    if name == "config.json" {
        let mut config = read_value(source, "model configuration")?;
        let new = if format == BaseFormat::Bf16 { "bfloat16" } else { "float32" };
        name_format(&mut config, new);
        if let Some(config) = config.as_object_mut() {
            // Without a name, programs take the format of the first weight.
            if !config.contains_key("dtype") {
                config.entry("torch_dtype").or_insert(json!(new));
            }
            if checkpoint.quantized_names().next().is_some() {
                forget_quantization(config);
            }
        }
        return Ok(Some(config));
    }
    if is_index(checkpoint, name) {
        let mut index = read_value(source, "index of shards")?;
        if let Some(size) = index.pointer_mut("/metadata/total_size") {
            *size = json!(weight_bytes);
        }
        if checkpoint.quantized_names().next().is_some()
            && let Some(map) = index.get_mut("weight_map")
        {
            let file = |stored: &StoredTensor| relative(checkpoint.source(stored).path(), checkpoint);
            let entry =
                |name: &str| Some((name.to_owned(), json!(file(checkpoint.get(name)?).to_string_lossy())));
            *map = checkpoint.names().filter_map(entry).collect::<Map<_, _>>().into();
        }
        return Ok(Some(index));
    }
    Ok(None)
}

/// Names the format in a configuration, and in those inside it, so that a program does not round the weights when it loads them.
fn name_format(config: &mut Value, new: &str) {
    let Some(config) = config.as_object_mut() else { return };
    for (key, value) in config {
        if ["torch_dtype", "dtype"].contains(&key.as_str()) && (value == "bfloat16" || value == "float16") {
            *value = json!(new);
        }
        name_format(value, new);
    }
}

/// Removes the quantization from a configuration, and from those of the models inside it.
fn forget_quantization(config: &mut Map<String, Value>) {
    ["quantization_config", "compression_config"].into_iter().for_each(|key| drop(config.remove(key)));
    config.values_mut().filter_map(Value::as_object_mut).for_each(forget_quantization);
}
