//! Sorts the tensors of an adapter file by their meaning.

use super::Config;
use super::format::{Component, SingleFile};
use super::keys::{self, Further, Key, Kind, Refused};
use super::location::Location;
use super::modules::Parameters;
use super::names::{PREFIX, affixes};
use super::single_file::MODULES_KEY;
use crate::storage::json::{UniqueKeys, parse_json, read_value};
use crate::storage::safetensors::{Header, Tensor};
use crate::storage::wrappers::{self, Wrapped};
use crate::storage::{Access, Problem, Problems, Source, quoted};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The modules by the names of their tensors, as far as the metadata has them.
pub(super) fn module_names(header: &Header) -> Result<BTreeMap<String, String>, Problem> {
    let Some(text) = header.metadata.get(MODULES_KEY) else { return Ok(BTreeMap::new()) };
    let names = parse_json(text.as_bytes(), &format!("metadata entry {}", quoted(MODULES_KEY)));
    names.map(|UniqueKeys(names)| names).map_err(|problem| problem.help("write the adapter again"))
}

/// The tensors `A`, `B` and `alpha` of a module with their names, as far as they are present.
pub(super) type Tensors = [Option<(String, Tensor)>; 3];

pub(super) fn count_of(tensors: usize) -> String {
    if tensors == 1 { "1 tensor".to_owned() } else { format!("{tensors} tensors") }
}

/// The tensors by module. A module with the tensor names of an embedding (`true`) and of another layer (`false`) occurs twice.
pub(super) type Pairs = BTreeMap<(String, bool), Tensors>;

/// The tensors of an adapter by their meaning.
#[derive(Default)]
pub(super) struct Sorted {
    pub(super) pairs: Pairs,
    pub(super) further: Vec<(Key, Further, Tensor)>,
    /// Names that PEFT does not find.
    pub(super) wrapped: Wrapped,
    /// Names with the name of the adapter, `default`.
    pub(super) adapter_names: Wrapped,
}

pub(super) fn sorted(
    header: Header,
    format: Option<SingleFile>,
    parameters: &Parameters<'_>,
    source: &Source,
    problems: &mut Problems,
) -> Sorted {
    let mut sorted = Sorted::default();
    let mut unknown = Vec::new();
    let mut refused: BTreeMap<Refused, Vec<String>> = BTreeMap::new();
    let mut empty = Vec::new();
    for (name, tensor) in header.tensors {
        let Some(key) = keys::read(&name, format) else {
            unknown.push(name);
            continue;
        };
        if tensor.shape == [0] {
            empty.push(name);
            continue;
        }
        let is_parameter = parameters.named(&key.module).is_ok_and(|parameter| parameter.is_some());
        let inner = unwrapped(&key.module, format, is_parameter);
        let expected = match format {
            None => format!("{PREFIX}{inner}{}", key.end),
            Some(_) => name.replacen(&key.module, &inner, 1),
        };
        // PEFT reads names with the name of the adapter too.
        match name.replacen(".default", "", 1) == expected {
            true => sorted.adapter_names.add(&name, &expected),
            false => sorted.wrapped.add(&name, &expected),
        }
        match key.kind {
            Kind::Factor(is_embedding, index) => {
                let place = &mut sorted.pairs.entry((key.module, is_embedding)).or_default()[index];
                if let Some((other, _)) = place.replace((name.clone(), tensor)) {
                    let what =
                        format!("another tensor, {}, is the same factor of the same layer", quoted(&other));
                    problems.push(Problem::data(what).in_file(source.path()).in_tensor(&name));
                }
            }
            Kind::Further(kind) => sorted.further.push((key, kind, tensor)),
            Kind::Refused(kind) => refused.entry(kind).or_default().push(name),
        }
    }
    // Copies of the base are known by the factors of their module.
    let Sorted { pairs, further, .. } = &mut sorted;
    further.retain(|(key, kind, _)| {
        let is_known = *kind != Further::BaseCopy
            || [true, false].into_iter().any(|kind| pairs.contains_key(&(key.module.clone(), kind)));
        if !is_known {
            unknown.push(format!("{PREFIX}{}{}", key.module, key.end));
        }
        is_known
    });
    let mut complain = |problem: Problem| problems.push(problem.in_file(source.path()));
    let named = |names: &[String]| match names {
        [only] => format!("the tensor {}", quoted(only)),
        several => format!("{} tensors, such as {}", several.len(), quoted(&several[0])),
    };
    for (kind, names) in refused {
        let what = format!("this is {} ({})", kind.words(), named(&names));
        complain(Problem::data(what).help(kind.help()));
    }
    if !empty.is_empty() {
        let what = format!("the adapter is empty: {} of shape [0]", named(&empty));
        complain(Problem::data(what).help(EMPTY));
        // The rest of a module is no further problem.
        let lost: Vec<Key> = empty.iter().filter_map(|name| keys::read(name, format)).collect();
        sorted.pairs.retain(|(module, _), _| !lost.iter().any(|key| key.module == *module));
    }
    let (prefix, [down, up]) = affixes(format);
    for key in unknown {
        let what = format!(
            "unsupported tensor name: expected {prefix}MODULE{down} or {prefix}MODULE{up} of a linear layer, convolution \
             or embedding"
        );
        complain(Problem::data(what).in_tensor(&key));
    }
    sorted
}

/// The way out for an adapter without numbers.
pub(super) const EMPTY: &str = "DeepSpeed ZeRO-3 saves such adapters if it does not gather the parameters: set \
    stage3_gather_16bit_weights_on_model_save, or save with state_dict=accelerator.get_state_dict(model)";

/// The name of a module without the parts of wrappers. The component of a pipeline stays before it.
pub(super) fn unwrapped(module: &str, format: Option<SingleFile>, is_parameter: bool) -> String {
    let inner = format.and_then(|format| format.component_of(module)).map_or(module, |(_, inner)| inner);
    let component = &module[..module.len() - inner.len()];
    let inner = match is_parameter || format.is_some() {
        true => wrappers::without_wrappers(inner),
        false => wrappers::of_recorded(inner),
    };
    format!("{component}{inner}")
}

/// The configurations in the metadata of a file of diffusers, by component. `None` is for names without a component.
pub(super) fn stored_config(
    header: &Header,
    format: Option<SingleFile>,
) -> Result<BTreeMap<Option<Component>, Config>, Problem> {
    const ENTRY: &str = "lora_adapter_metadata";
    let text = header.metadata.get(ENTRY).zip(format);
    let Some((text, format)) = text else { return Ok(BTreeMap::new()) };
    let what = format!("metadata entry {}", quoted(ENTRY));
    let UniqueKeys(all): UniqueKeys<Value> = parse_json(text.as_bytes(), &what)?;
    let mut configs: BTreeMap<Option<Component>, Map<String, Value>> = BTreeMap::new();
    for (key, value) in all {
        let found = format.component_of(&key);
        let (component, key) = found.map_or((None, &*key), |(component, rest)| (Some(component), rest));
        configs.entry(component).or_default().insert(key.to_owned(), value);
    }
    configs
        .into_iter()
        .map(|(component, mut config)| {
            config.entry("peft_type").or_insert_with(|| "LORA".into());
            let text = Value::Object(config).to_string();
            Ok((component, parse_json(text.as_bytes(), &what)?))
        })
        .collect()
}

/// All keys of the configuration of a PEFT adapter.
pub(super) fn further_config(location: &Location) -> Result<Map<String, Value>, Problem> {
    let Some(path) = &location.config else { return Ok(Map::new()) };
    match read_value(&Source::open(path, Access::Read)?, "configuration of a PEFT adapter")? {
        Value::Object(config) => Ok(config),
        _ => Ok(Map::new()),
    }
}
