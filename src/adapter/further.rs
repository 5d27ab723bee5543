//! The tensors of an adapter on which no product of factors depends: heads, resized embeddings, new tokens and biases.

use super::contents::{Entries, Entry, Values};
use super::keys::Further;
use super::names::PREFIX;
use super::numbers::{decode, element_of, first_nonfinite};
use crate::element::Element;
use crate::factors::LayerName;
use crate::storage::safetensors::Tensor;
use crate::storage::{Problem, Source, product, quoted};
use faer::Mat;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A tensor that is not a factor.
#[derive(Clone, Debug)]
pub(super) struct FurtherTensor {
    pub(super) kind: Further,
    /// The module that it belongs to.
    pub(super) module: String,
    /// The name of the tensor in a PEFT adapter.
    pub(super) key: String,
    pub(super) tensor: Tensor,
}

impl FurtherTensor {
    pub(super) fn new(kind: Further, module: String, end: &str, tensor: Tensor) -> Self {
        Self { kind, key: format!("{PREFIX}{module}{end}"), module, tensor }
    }
}

/// The tensors of an adapter that a converted adapter gets unchanged, and the keys of its configuration that belong to them.
#[derive(Clone, Debug, Default)]
pub struct Carried<'a> {
    /// The tensors by name. Each has the factor by which it is multiplied.
    pub(super) tensors: BTreeMap<String, (Tensor, f64)>,
    pub(super) config: Map<String, Value>,
    pub(super) source: Option<&'a Source>,
}

impl Carried<'_> {
    /// Refuses tensors for a format that has no place for them.
    ///
    /// # Errors
    /// A usage problem if there are any.
    pub(crate) fn refuse(&self) -> Result<(), Problem> {
        let Some((first, _)) = self.tensors.first_key_value() else { return Ok(()) };
        let what = format!(
            "this format has no place for tensors that are not factors: the adapter has {}, such as {}",
            self.tensors.len(),
            quoted(first)
        );
        Err(Problem::usage(what).help("give --format peft"))
    }

    /// The tensors for the file of an adapter. Those that are multiplied by a factor get the number format of the adapter.
    ///
    /// # Errors
    /// A data problem for such a tensor without floating-point numbers; an I/O problem if it cannot be read.
    pub(super) fn entries(&self, element: Element) -> Result<Entries<'_>, Problem> {
        let Some(source) = self.source else { return Ok(Entries::new()) };
        let mut entries = Entries::new();
        for (key, (tensor, factor)) in &self.tensors {
            let entry = entry(tensor, *factor, source, element)
                .map_err(|problem| problem.in_file(source.path()).in_tensor(key))?;
            entries.insert(key.clone(), entry);
        }
        Ok(entries)
    }
}

/// A tensor for the file of an adapter, multiplied by a factor.
fn entry<'a>(
    tensor: &'a Tensor,
    factor: f64,
    source: &'a Source,
    element: Element,
) -> Result<Entry<'a>, Problem> {
    let values = match factor {
        1.0 => Values::Copied(source, tensor),
        factor => {
            let stored = element_of(&tensor.dtype)?;
            let numbers = decode(&source.read_vec(tensor.offset, tensor.length)?, stored)?;
            let value = move |i: usize, _| (numbers[i] * factor) as f32;
            let rows = product(&tensor.shape).unwrap_or(0) as usize;
            Values::Computed(element, Box::new(move || Mat::from_fn(rows, 1, &value)))
        }
    };
    Ok(Entry { shape: tensor.shape.clone(), values })
}

/// The keys of `adapter_config.json` that belong to tensors other than factors.
const KEYS: [&str; 8] = [
    "auto_mapping",
    "bias",
    "ensure_weight_tying",
    "lora_bias",
    "modules_to_save",
    "revision",
    "task_type",
    "trainable_token_indices",
];

/// The further tensors of an adapter, for a conversion.
///
/// `factor` gives the factor by which `B` of a layer is multiplied. With `without_copies`, copies of base weights are left out: the base
/// changes.
pub(super) fn carried<'a>(
    further: &'a [FurtherTensor],
    source: &'a Source,
    config: &Map<String, Value>,
    without_copies: bool,
    factor: impl Fn(&LayerName) -> f64,
) -> Carried<'a> {
    let kept = further.iter().filter(|tensor| !(without_copies && tensor.kind == Further::BaseCopy));
    let tensors: BTreeMap<_, _> = kept
        .map(|further| {
            let factor = match further.kind {
                Further::Bias => factor(&LayerName::of_module(further.module.as_str())),
                Further::Module | Further::BaseCopy | Further::Tokens => 1.0,
            };
            (further.key.clone(), (further.tensor.clone(), factor))
        })
        .collect();
    if tensors.is_empty() {
        return Carried::default();
    }
    let known = config.iter().filter(|(key, value)| KEYS.contains(&key.as_str()) && !value.is_null());
    let config = known.map(|(key, value)| (key.clone(), value.clone())).collect();
    Carried { tensors, config, source: Some(source) }
}

/// A line for each kind of tensors other than factors, with their number and the first name.
pub(super) fn notes(further: &[FurtherTensor]) -> Vec<String> {
    let mut kinds: BTreeMap<Further, Vec<&str>> = BTreeMap::new();
    for tensor in further {
        kinds.entry(tensor.kind).or_default().push(&tensor.key);
    }
    kinds
        .into_iter()
        .map(|(kind, keys)| {
            let [one, several] = kind.words();
            match keys[..] {
                [only] => format!("besides the factors, the adapter has 1 {one}: {}", quoted(only)),
                _ => format!(
                    "besides the factors, the adapter has {} {several}, such as {}",
                    keys.len(),
                    quoted(keys[0])
                ),
            }
        })
        .collect()
}

/// Checks that a tensor has only finite numbers, as far as its format is known.
///
/// # Errors
/// A data problem for the first number that is not finite; an I/O problem if the tensor cannot be read.
pub(super) fn check_finite(further: &FurtherTensor, source: &Source) -> Result<(), Problem> {
    let Ok(element) = element_of(&further.tensor.dtype) else { return Ok(()) };
    let Tensor { offset, length, .. } = further.tensor;
    let mut first = 0;
    source.for_each_block(offset..offset + length, |bytes| {
        if let Some((_, place, value)) = first_nonfinite(decode(&bytes, element)?, usize::MAX) {
            let index = first + place as u64;
            let what = format!("expected a finite number, found {value} at index {index}");
            return Err(Problem::data(what).in_file(source.path()).in_tensor(&further.key));
        }
        first += (bytes.len() / element.size()) as u64;
        Ok(())
    })
}
