//! A residual base whose changed weights are wider than those of the model: F32 in place of BF16 and F16.

use super::super::numbers::decode;
use super::{BLOCK, Residual, copy};
use crate::element::Element;
use crate::storage::json::read_value;
use crate::storage::safetensors::{Header, Layout, Tensor};
use crate::storage::{NewFile, Problem, Source};
use serde_json::{Value, json};
use std::ffi::OsStr;

/// The number format of a changed weight.
fn widened(element: Element) -> Element {
    match element {
        Element::F16 | Element::Bf16 => Element::F32,
        wide => wide,
    }
}

/// Copies a file, and replaces the adapted weights by wider ones. Tensors with no adapted weight keep their bytes. Returns the length of
/// all tensors in bytes.
pub(super) fn write_weights(
    source: &Source,
    header: &Header,
    adapted: &[Residual<'_>],
    file: &mut NewFile,
) -> Result<u64, Problem> {
    let of_tensor =
        |name: &str| -> Vec<&Residual<'_>> { adapted.iter().filter(|one| one.name == name).collect() };
    let formats = header.tensors.iter().map(|(name, tensor)| {
        let format = of_tensor(name).first().map(|one| widened(one.element).name().to_owned());
        (name.clone(), (format.unwrap_or_else(|| tensor.dtype.clone()), tensor.shape.clone()))
    });
    let layout = Layout::new(&header.metadata, &formats.collect());
    file.put(layout.header())?;
    for name in layout.in_file_order() {
        write_tensor(source, &header.tensors[name], &of_tensor(name), file)?;
    }
    Ok(layout.file_length() - layout.header().len() as u64)
}

/// Writes a tensor with the adapted weights in it, which are sorted by place.
fn write_tensor(
    source: &Source,
    tensor: &Tensor,
    adapted: &[&Residual<'_>],
    file: &mut NewFile,
) -> Result<(), Problem> {
    let end = tensor.offset + tensor.length;
    let Some(element) = adapted.first().map(|one| one.element) else {
        return copy(source, tensor.offset, end, file);
    };
    let format = widened(element);
    let mut done = tensor.offset;
    for residual in adapted {
        convert(source, (done, residual.bytes.start), (element, format), file)?;
        residual.write(source, format, file)?;
        done = residual.bytes.end;
    }
    convert(source, (done, end), (element, format), file)
}

/// Copies numbers into another format.
fn convert(
    source: &Source,
    (mut from, to): (u64, u64),
    (element, format): (Element, Element),
    file: &mut NewFile,
) -> Result<(), Problem> {
    let mut encoded = Vec::new();
    while from < to {
        // A block is a whole number of numbers.
        let length = BLOCK.min(to - from);
        encoded.clear();
        format.encode(decode(&source.read_vec(from, length)?, element)?, &mut encoded);
        file.put(&encoded)?;
        from += length;
    }
    Ok(())
}

/// The new content of a file beside the weights that describes their number format; `None` if the file does not.
pub(super) fn companion(name: &OsStr, source: &Source, weight_bytes: u64) -> Result<Option<Value>, Problem> {
    if name == "config.json" {
        let mut config = read_value(source, "model configuration")?;
        name_format(&mut config);
        // Without a name, programs take the format of the first weight.
        if let Some(config) = config.as_object_mut()
            && !config.contains_key("dtype")
        {
            config.entry("torch_dtype").or_insert(json!("float32"));
        }
        return Ok(Some(config));
    }
    if name.to_str().is_some_and(|name| name.ends_with(".index.json")) {
        let mut index = read_value(source, "index of shards")?;
        if let Some(size) = index.pointer_mut("/metadata/total_size") {
            *size = json!(weight_bytes);
        }
        return Ok(Some(index));
    }
    Ok(None)
}

/// Names the format in a configuration, and in those inside it, so that a program does not round the weights when it loads them.
fn name_format(config: &mut Value) {
    let Some(config) = config.as_object_mut() else { return };
    for (key, value) in config {
        if ["torch_dtype", "dtype"].contains(&key.as_str()) && (value == "bfloat16" || value == "float16") {
            *value = json!("float32");
        }
        name_format(value);
    }
}
