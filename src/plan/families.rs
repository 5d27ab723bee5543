//! The renames that transformers makes when it loads a checkpoint, for models whose type is known: from names on disk to names at run
//! time.
//!
//! The table is generated from `conversion_mapping.py` of transformers by `tests/golden/renames.py`. Splits and joins of tensors are in
//! `stored`; models of unknown type have the guesses in `presets`.

use super::renames::LONGEST;
use regex::Regex;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Keys of models, and their rules in order.
#[derive(Deserialize)]
struct Entry(Vec<String>, Vec<Vec<String>>);

/// Replaces the first match of a pattern, unless the name matches the last expression.
struct Rule {
    pattern: Regex,
    replacement: String,
    unless: Option<Regex>,
}

/// The most parts before a model inside another model: `model.vision_tower.` has two.
const DEEPEST: usize = 3;

/// The names at run time of the tensors of a checkpoint with this configuration, with the names on disk, as far as the table has its
/// model type. Names that stay as they are, and names that several tensors would have, are left out.
pub(super) fn names_at_run_time<'a>(config: &Value, tensors: &[(String, &'a str)]) -> Vec<(String, &'a str)> {
    let (root, inner) = rules(config);
    if root.is_empty() && inner.iter().all(Vec::is_empty) {
        return Vec::new();
    }
    let mut names: BTreeMap<String, Option<&str>> = BTreeMap::new();
    for (name, stored) in tensors {
        let renamed = apply(&root, name);
        let mut found = BTreeSet::from([renamed.clone()]);
        for rules in inner.iter().filter(|rules| !rules.is_empty()) {
            // A model inside another one has a prefix that the configuration does not tell.
            let starts = [0].into_iter().chain(renamed.match_indices('.').map(|(dot, _)| dot + 1));
            for (before, after) in starts.take(DEEPEST + 1).map(|start| renamed.split_at(start)) {
                let after = apply(rules, after);
                found.insert(format!("{before}{after}"));
            }
        }
        for found in found.into_iter().filter(|found| found != name && found.len() <= LONGEST.max(name.len()))
        {
            names
                .entry(found)
                .and_modify(|other| *other = other.filter(|other| other == stored))
                .or_insert(Some(stored));
        }
    }
    names.into_iter().filter_map(|(name, stored)| Some((name, stored?))).collect()
}

/// The rules of the whole model, and those of each model inside it.
fn rules(config: &Value) -> (Vec<Rule>, Vec<Vec<Rule>>) {
    let entries: Vec<Entry> =
        serde_json::from_str(include_str!("renames.json")).expect("the table is valid, see the test");
    let of_key = |key: &str| entries.iter().find(|Entry(keys, _)| keys.iter().any(|other| other == key));
    let compiled = |entry: &Entry| entry.1.iter().map(|rule| Rule::new(rule)).collect::<Vec<_>>();
    let classes: Vec<&str> = config
        .get("architectures")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let model_type = config.get("model_type").and_then(Value::as_str);
    // As in transformers, the class of the model has precedence.
    let root = classes.iter().copied().chain(model_type).find_map(of_key);
    let mut keys: BTreeSet<String> =
        classes.iter().filter_map(|class| Some(format!("{}Model", class.split_once("For")?.0))).collect();
    nested_types(config, 0, &mut keys);
    let mut inner: Vec<&Entry> = keys.iter().filter_map(|key| of_key(key)).collect();
    inner.retain(|entry| root.is_none_or(|root| !std::ptr::eq(root, *entry)));
    (root.map(compiled).unwrap_or_default(), inner.into_iter().map(compiled).collect())
}

/// The model types of the configurations inside a configuration. `depth` counts the configurations around it.
fn nested_types(config: &Value, depth: usize, types: &mut BTreeSet<String>) {
    for value in config.as_object().into_iter().flatten().map(|(_, value)| value).filter(|_| depth < DEEPEST)
    {
        if let Some(model_type) = value.get("model_type").and_then(Value::as_str) {
            types.insert(model_type.to_owned());
        }
        nested_types(value, depth + 1, types);
    }
}

impl Rule {
    fn new(rule: &[String]) -> Self {
        let compile = |pattern: &String| Regex::new(pattern).expect("the table is valid, see the test");
        Self { pattern: compile(&rule[0]), replacement: rule[1].clone(), unless: rule.get(2).map(compile) }
    }
}

fn apply(rules: &[Rule], name: &str) -> String {
    rules.iter().fold(name.to_owned(), |name, Rule { pattern, replacement, unless }| {
        match unless.as_ref().is_some_and(|unless| unless.is_match(&name)) {
            true => name,
            false => pattern.replace(&name, replacement.as_str()).into_owned(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Every rule of the generated table is a pattern, a replacement and perhaps an exception, for keys that occur once.
    #[test]
    fn the_table_is_valid() {
        let entries: Vec<Entry> = serde_json::from_str(include_str!("renames.json")).unwrap();
        let mut seen = BTreeSet::new();
        for Entry(keys, rules) in &entries {
            assert!(keys.iter().all(|key| seen.insert(key)), "{keys:?}");
            for rule in rules {
                assert!((2..=3).contains(&rule.len()), "{keys:?} {rule:?}");
                Rule::new(rule);
            }
        }
        assert!(seen.len() > 200, "{}", seen.len());
    }

    fn renamed(config: &Value, name: &str) -> Vec<String> {
        names_at_run_time(config, &[(name.to_owned(), name)]).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn tensors_get_their_names_at_run_time() {
        let nemotron = json!({"model_type": "nemotron_h", "architectures": ["NemotronHForCausalLM"]});
        let name = "backbone.layers.0.mixer.q_proj.weight";
        assert_eq!(renamed(&nemotron, name), ["model.layers.0.mixer.q_proj.weight"]);
        assert!(renamed(&json!({"model_type": "llama"}), name).is_empty());
        assert!(renamed(&json!({}), name).is_empty());
        // A name that has its prefix already does not get it again.
        let qwen = json!({"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"]});
        let text = renamed(&qwen, "model.layers.0.self_attn.q_proj.weight");
        assert!(
            text.contains(&"model.language_model.layers.0.self_attn.q_proj.weight".to_owned()),
            "{text:?}"
        );
        assert!(renamed(&qwen, "model.language_model.layers.0.self_attn.q_proj.weight").is_empty());
    }

    /// A model inside another one, below a prefix.
    #[test]
    fn models_inside_others_are_renamed() {
        let config = json!({"model_type": "other", "text_config": {"model_type": "nemotron_h"}});
        let names = renamed(&config, "language_model.backbone.layers.0.q.weight");
        assert_eq!(names, ["language_model.model.layers.0.q.weight"]);
    }

    /// Two tensors never get one name.
    #[test]
    fn names_of_several_tensors_are_left_out() {
        let config = json!({"model_type": "nemotron_h"});
        let names = ["backbone.q.weight", "model.backbone.q.weight", "backbone.v.weight"];
        let found = names_at_run_time(&config, &names.map(|name| (name.to_owned(), name)));
        let found: Vec<_> = found.iter().map(|(name, stored)| (name.as_str(), *stored)).collect();
        assert_eq!(
            found,
            [
                ("model.model.q.weight", "model.backbone.q.weight"),
                ("model.q.weight", "backbone.q.weight"),
                ("model.v.weight", "backbone.v.weight")
            ]
        );
    }
}
