//! Finds the quantized weights of a checkpoint by the names and number formats of its tensors.

use super::super::{Problem, StoredTensor, quoted};
use super::codes::Code;
use super::config::Config;
use super::parts::{Files, Part};
use super::weight::Quantized;
use super::{awq, bitsandbytes, compressed, fp8, gptq, mxfp4};
use std::collections::{BTreeMap, BTreeSet};

/// Ends of the names of tensors of a quantized module that concern its inputs, or that repeat what others say.
const BESIDE: [&str; 11] = [
    ".input_scale",
    ".input_zero_point",
    ".input_global_scale",
    ".output_scale",
    ".output_zero_point",
    ".activation_scale",
    ".weight_format",
    ".weight_zero_point",
    ".weight_g_idx",
    ".weight_shape",
    ".weight_global_scale",
];

/// The stored tensors of a checkpoint.
pub(super) struct Stored<'a> {
    pub(super) files: Files<'a>,
    pub(super) config: &'a Config,
    tensors: &'a BTreeMap<String, StoredTensor>,
}

impl Stored<'_> {
    /// The tensor of this name, if there is one.
    pub(super) fn part(&self, name: &str) -> Option<Part> {
        let StoredTensor { file, tensor } = self.tensors.get(name)?.clone();
        Some(Part { name: name.into(), file, tensor })
    }
}

/// The quantized weights of a checkpoint.
#[derive(Default)]
pub(in super::super) struct Found {
    /// By name: the tensor with the codes, and the weight or the problem with it.
    pub(in super::super) weights: BTreeMap<String, (String, Result<Quantized, Problem>)>,
    /// The names of all tensors that they consist of.
    pub(in super::super) taken: BTreeSet<String>,
}

/// Finds the quantized weights of a checkpoint.
///
/// Weights whose tensors do not fit together are among them, as problems. Reads only states and shapes.
pub(in super::super) fn recognize(
    files: Files<'_>,
    tensors: &BTreeMap<String, StoredTensor>,
    config: &Config,
) -> Found {
    let stored = Stored { files, config, tensors };
    let mut found = Found::default();
    for name in tensors.keys() {
        let Some((weight, result)) = weight(&stored, name) else { continue };
        let has_two =
            found.weights.contains_key(&weight) || (tensors.contains_key(&weight) && weight != *name);
        let result = match stored.part(name) {
            Some(codes) if has_two => {
                let problem = codes.problem(
                    files,
                    format!(
                        "the weight {} is in the checkpoint twice, in different formats",
                        quoted(&weight)
                    ),
                );
                Err(problem.help("download or convert the checkpoint again"))
            }
            _ => result,
        };
        found.taken.insert(name.clone());
        if let Ok(quantized) = &result {
            found.taken.extend(quantized.parts.iter().map(|part| part.name.clone()));
        }
        let module = weight.strip_suffix(".weight").unwrap_or(&weight);
        let beside = BESIDE.iter().map(|end| format!("{module}{end}"));
        let beside = beside.chain([format!("{weight}_activation_scale"), format!("{module}.bias_format")]);
        found.taken.extend(beside.filter(|name| tensors.contains_key(name)));
        found.weights.insert(weight, (name.clone(), result));
    }
    found
}

/// The name of the weight whose codes are in this tensor. `None` for other tensors.
fn weight(stored: &Stored<'_>, name: &str) -> Option<(String, Result<Quantized, Problem>)> {
    let codes = stored.part(name)?;
    let (files, config) = (stored.files, stored.config);
    if let Some(parameter) = name.strip_suffix("_blocks")
        && codes.dtype() == "U8"
        && codes.shape().len() == 4
    {
        let scales = format!("{parameter}_scales");
        return Some((parameter.into(), mxfp4::experts(files, codes, stored.part(&scales), &scales)));
    }
    if let Some(module) = name.strip_suffix(".qweight") {
        return Some((format!("{module}.weight"), packed_words(stored, module, codes)));
    }
    if let Some(module) = name.strip_suffix(".weight_packed") {
        return Some((format!("{module}.weight"), compressed::weight(stored, module, codes)));
    }
    let is_bitsandbytes = config.is("bitsandbytes");
    match codes.dtype() {
        "U8" => {
            for (end, format) in bitsandbytes::STATES {
                if let Some(state) = stored.part(&format!("{name}{end}")) {
                    return Some((name.into(), bitsandbytes::four_bits(stored, codes, state, format)));
                }
            }
            (is_bitsandbytes && name.ends_with(".weight")).then(|| {
                let what = "the quantization state of this weight of bitsandbytes is missing";
                let help = "save the checkpoint again with bitsandbytes 0.43 or newer: older versions do not save it";
                (name.to_owned(), Err(codes.problem(files, what).help(help)))
            })
        }
        dtype => {
            let code = Code::of_codes(dtype)?;
            let module = name.strip_suffix(".weight");
            let scale =
                ["_scale_inv", "_scale"].into_iter().find_map(|end| stored.part(&format!("{name}{end}")));
            if code == Code::I8 {
                let module = module?;
                let scales = stored.part(&format!("{module}.SCB"));
                if scales.is_some() || (is_bitsandbytes && scale.is_none()) {
                    return Some((name.into(), bitsandbytes::eight_bits(stored, codes, scales, module)));
                }
            }
            // Without scale and configuration, the numbers can be what they are.
            let is_scaled =
                scale.is_some() || (config.exists() && (module.is_some() || codes.shape().len() == 3));
            let zero = module.and_then(|module| stored.part(&format!("{module}.weight_zero_point")));
            is_scaled.then(|| (name.into(), fp8::weight(files, config, codes, scale, zero)))
        }
    }
}

/// A weight in GPTQ or AWQ, told apart by its shapes.
fn packed_words(stored: &Stored<'_>, module: &str, codes: Part) -> Result<Quantized, Problem> {
    let part = |end: &str| {
        let name = format!("{module}.{end}");
        let missing = || {
            let problem = codes.problem(
                stored.files,
                format!("{}, which a weight in GPTQ or AWQ needs, is missing", quoted(&name)),
            );
            problem.help("download or convert the checkpoint again")
        };
        stored.part(&name).ok_or_else(missing)
    };
    codes.require_dtype(stored.files, "I32")?;
    let (scales, zeros) = (part("scales")?, part("qzeros")?);
    if awq::is_layout(&codes, &scales) {
        return awq::weight(stored, codes, scales, zeros);
    }
    match (codes.shape(), scales.shape()) {
        (&[_, outputs], &[_, found]) if outputs == found => {
            gptq::weight(stored, module, codes, scales, zeros)
        }
        (codes_shape, found) => {
            let what = format!(
                "qweight {codes_shape:?} and scales {found:?} are neither in the layout of GPTQ nor in that of AWQ for the kernel GEMM"
            );
            Err(codes.problem(stored.files, what).help("give the checkpoint in one of these layouts"))
        }
    }
}
