//! Reading and writing `adapter_config.json`, the configuration of an adapter for PEFT 0.21.
//!
//! The matching rules are those of PEFT: `check_target_module_exists` for `target_modules`, `get_pattern_key` for
//! `rank_pattern` and `alpha_pattern`.

use super::loading::MICA;
use super::modules::Module;
use super::patterns::{Patterns, listed_names, refusal};
use super::{Adapter, Loading};
use crate::factors::LayerShape;
use crate::storage::expressions::{compile, ends_of};
use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The keys of `adapter_config.json` that determine the meaning of the tensors. Other keys are ignored.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// The type of the adapter. Only `LORA` is supported.
    pub peft_type: String,
    /// The model of the adapter.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// The rank of layers that `rank_pattern` does not match.
    #[serde(default = "default_rank")]
    pub r: u64,
    /// Scale times rank, for the layers that `alpha_pattern` does not match.
    #[serde(default = "default_alpha")]
    pub lora_alpha: f64,
    /// True if the scale is `alpha / √rank` instead of `alpha / rank`.
    #[serde(default)]
    pub use_rslora: bool,
    /// True if weights are stored as `[inputs, outputs]`. Such a model can also have linear layers.
    #[serde(default)]
    pub fan_in_fan_out: bool,
    /// How PEFT initialized the adapter.
    #[serde(default)]
    pub init_lora_weights: Option<Value>,
    /// The task of the model.
    #[serde(default)]
    pub task_type: Option<String>,
    /// The class of the model and its library.
    #[serde(default)]
    pub auto_mapping: Option<Value>,
    /// The adapted modules.
    #[serde(default)]
    pub target_modules: Option<Targets>,
    /// The adapted parameters of fused experts: complete names, or the ends of names after a dot.
    #[serde(default)]
    pub target_parameters: Option<BTreeSet<String>>,
    /// Ranks that differ from `r`.
    #[serde(default)]
    pub rank_pattern: Option<Patterns<u64>>,
    /// Alphas that differ from `lora_alpha`.
    #[serde(default)]
    pub alpha_pattern: Option<Patterns<f64>>,
}

fn default_rank() -> u64 {
    8
}

fn default_alpha() -> f64 {
    8.0
}

impl Config {
    /// True if PEFT does not change `B` during training.
    pub fn keeps_up(&self) -> bool {
        let init = self.init_lora_weights.as_ref().and_then(Value::as_str);
        init.is_some_and(|init| init.eq_ignore_ascii_case(MICA))
    }

    /// The rank of a module.
    pub fn rank(&self, module: &str) -> u64 {
        self.rank_pattern
            .as_ref()
            .and_then(|patterns| patterns.first_match(module))
            .copied()
            .unwrap_or(self.r)
    }

    /// The scale `s` of a module. Infinite or NaN if its rank is 0.
    pub fn scale(&self, module: &str) -> f64 {
        let patterns = self.alpha_pattern.as_ref();
        let alpha = patterns.and_then(|patterns| patterns.first_match(module)).unwrap_or(&self.lora_alpha);
        let rank = self.rank(module) as f64;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }
}

/// `target_modules`.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "TargetsText")]
pub enum Targets {
    /// A list: modules whose name is one of these, or ends with a dot and one of these.
    Names(BTreeSet<String>),
    /// A string that lists complete names, as this program writes it if a list would match other modules too.
    Complete(BTreeSet<String>),
    /// Another string: modules whose complete name matches.
    Pattern(Regex),
    /// The string `all-linear`: all linear layers of the model.
    AllLinear,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "target_modules must be a list of names, or a string")]
enum TargetsText {
    Names(BTreeSet<String>),
    Text(String),
}

impl TryFrom<TargetsText> for Targets {
    type Error = String;

    fn try_from(text: TargetsText) -> Result<Self, String> {
        match text {
            TargetsText::Names(names) => Ok(Self::Names(names)),
            TargetsText::Text(text) if text.eq_ignore_ascii_case("all-linear") => Ok(Self::AllLinear),
            TargetsText::Text(text) => match listed_names(&text) {
                Some(names) => Ok(Self::Complete(names)),
                None => {
                    let compiled = compile(&format!("^(?:{text})$"));
                    compiled.map(Self::Pattern).map_err(|unusable| refusal(&text, &unusable))
                }
            },
        }
    }
}

impl Targets {
    /// Returns whether a module is adapted.
    pub fn contain(&self, module: &str) -> bool {
        match self {
            Self::Names(names) => ends_of(module).any(|end| names.contains(end)),
            Self::Complete(names) => names.contains(module),
            Self::Pattern(pattern) => pattern.is_match(module),
            Self::AllLinear => true,
        }
    }
}

/// The configuration of an adapter. It has only keys of PEFT 0.21, which warns about others.
///
/// All layers have the same scale, because readers without `alpha_pattern` support only one. `target_modules` is a list of complete
/// names. PEFT also adapts modules whose name ends with a listed name. If a module in `other_modules` would be adapted, a regular
/// expression for complete names replaces the list. If there are parameters, `r` is their rank, because PEFT 0.21 warns about patterns
/// for parameters, although it applies them.
pub(super) fn to_json(
    adapter: &Adapter,
    modules: &BTreeMap<&str, Module<'_>>,
    other_modules: &BTreeSet<String>,
    loading: &Loading,
) -> Value {
    let (parameters, modules): (Vec<_>, Vec<_>) =
        modules.iter().partition(|(_, module)| module.is_parameter());
    let by_name = |modules: &[(&&str, &Module<'_>)]| -> BTreeMap<String, usize> {
        modules.iter().map(|(name, module)| ((**name).to_owned(), module.rank())).collect()
    };
    let (parameters, ranks) = (by_name(&parameters), by_name(&modules));
    let usual = parameters.values().max().or(ranks.values().max()).copied().unwrap_or(0);
    let alpha = |rank: usize| number(adapter.scale * rank as f64);
    let exceptions = || ranks.iter().chain(&parameters).filter(|&(_, &rank)| rank != usual);
    let pattern = |module: &str| format!("^{}", regex::escape(module));
    let rank_pattern: Map<_, _> =
        exceptions().map(|(module, &rank)| (pattern(module), json!(rank))).collect();
    let alpha_pattern: Map<_, _> =
        exceptions().map(|(module, &rank)| (pattern(module), alpha(rank))).collect();

    let over_matches = other_modules
        .iter()
        .filter(|other| !ranks.contains_key(*other))
        .any(|other| ends_of(other).skip(1).any(|end| ranks.contains_key(end)));
    let target_modules = if over_matches {
        let names: Vec<String> = ranks.keys().map(|module| regex::escape(module)).collect();
        json!(format!("^(?:{})$", names.join("|")))
    } else {
        json!(ranks.keys().collect::<Vec<_>>())
    };

    let mut config = json!({
        "alpha_pattern": alpha_pattern,
        "base_model_name_or_path": loading.base_name.as_ref().unwrap_or(&adapter.base),
        "bias": "none",
        "fan_in_fan_out": adapter.shapes.values().any(|shape| *shape == LayerShape::Transposed),
        "inference_mode": false,
        "init_lora_weights": loading.init_lora_weights(),
        "lora_alpha": alpha(usual),
        "lora_dropout": 0.0,
        "modules_to_save": loading.saved(),
        "peft_type": "LORA",
        "r": usual,
        "rank_pattern": rank_pattern,
        "revision": null,
        "target_modules": target_modules,
        "task_type": loading.task_type(),
        "use_dora": false,
        "use_rslora": false,
    });
    if let Some(class) = loading.auto_mapping() {
        config["auto_mapping"] = class.clone();
    }
    if !parameters.is_empty() {
        config["target_parameters"] = parameters.into_keys().collect();
    }
    config
}

/// A JSON integer if the value is one, because some readers expect an integer `lora_alpha`.
fn number(value: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < EXACT { json!(value as i64) } else { json!(value) }
}

#[cfg(test)]
mod tests {
    use super::super::modules::modules;
    use super::super::testing::{AnyLayers, ModuleName, adapter, factors};
    use super::*;
    use expect_test::expect;
    use quickcheck::quickcheck;

    fn json(adapter: &Adapter, other_modules: &BTreeSet<String>) -> Value {
        to_json(adapter, &modules(adapter).unwrap(), other_modules, &Loading::default())
    }

    fn written(adapter: &Adapter, other_modules: &BTreeSet<String>) -> Config {
        serde_json::from_value(json(adapter, other_modules)).unwrap()
    }

    fn parse(text: &str) -> Result<Config, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    quickcheck! {
        /// By the rules of PEFT, patterns and targets match their layers and no other module of the model.
        fn patterns_and_targets_match_exactly_their_layers(layers: AnyLayers, others: BTreeSet<ModuleName>) -> bool {
            let adapter = layers.adapter();
            let others: BTreeSet<String> = others.into_iter().map(|name| name.0).collect();
            let config = written(&adapter, &others);
            let targets = config.target_modules.clone().unwrap();
            adapter.layers.iter().all(|(name, factors)| {
                let module = name.module.as_str();
                targets.contain(module)
                    && config.rank(module) == factors.a.nrows() as u64
                    && (config.scale(module) - adapter.scale).abs() < 1e-15
            }) && others.iter().filter(|other| !adapter.layers.contains_key(&other.as_str().into())).all(|other| {
                !targets.contain(other)
                    && config.rank_pattern.as_ref().unwrap().first_match(other).is_none()
                    && config.alpha_pattern.as_ref().unwrap().first_match(other).is_none()
            })
        }
    }

    #[test]
    fn the_configuration_of_a_small_adapter_is_complete() {
        let adapter = adapter([("layers.0.q", factors(4, 4, 2)), ("layers.0.v", factors(4, 4, 3))]);
        expect![[r#"
            {
              "alpha_pattern": {
                "^layers\\.0\\.q": 4
              },
              "base_model_name_or_path": "tiny",
              "bias": "none",
              "fan_in_fan_out": false,
              "inference_mode": false,
              "init_lora_weights": true,
              "lora_alpha": 6,
              "lora_dropout": 0.0,
              "modules_to_save": null,
              "peft_type": "LORA",
              "r": 3,
              "rank_pattern": {
                "^layers\\.0\\.q": 2
              },
              "revision": null,
              "target_modules": [
                "layers.0.q",
                "layers.0.v"
              ],
              "task_type": null,
              "use_dora": false,
              "use_rslora": false
            }"#]]
        .assert_eq(&format!("{:#}", json(&adapter, &BTreeSet::new())));
    }

    /// With `q` in a list, PEFT would adapt `x.q` too.
    #[test]
    fn targets_become_an_expression_only_if_a_list_would_match_more_modules() {
        let adapter = adapter([("q", factors(2, 2, 1)), ("x.v", factors(2, 2, 1))]);
        let targets = |others: &[&str]| {
            let others: BTreeSet<String> = others.iter().map(|&other| other.to_owned()).collect();
            json(&adapter, &others)["target_modules"].clone()
        };
        assert_eq!(targets(&[]), json!(["q", "x.v"]));
        assert_eq!(targets(&["xq", "v", "q.x"]), json!(["q", "x.v"]));
        assert_eq!(targets(&["x.q"]), json!(r"^(?:q|x\.v)$"));
    }

    #[test]
    fn alpha_is_written_as_an_integer_if_it_is_one() {
        assert_eq!(number(16.0).to_string(), "16");
        assert_eq!(number(3.5).to_string(), "3.5");
        assert_eq!(number(1e300).to_string(), "1e+300");
    }

    #[test]
    fn the_defaults_are_those_of_peft() {
        let config = parse(r#"{"peft_type":"LORA","rank_pattern":null,"megatron_core":"ignored"}"#).unwrap();
        assert_eq!((config.r, config.lora_alpha, config.scale("any")), (8, 8.0, 1.0));
        assert!(!config.use_rslora && config.target_modules.is_none());
    }

    /// The first matching key in the file decides.
    #[test]
    fn patterns_keep_the_order_of_the_file() {
        let config = parse(r#"{"peft_type":"LORA","rank_pattern":{"z.*q":2,"q":3,".*q":5}}"#).unwrap();
        assert_eq!(["zq", "a.zq", "q", "a.q", "aq", "q.a"].map(|name| config.rank(name)), [2, 2, 3, 3, 5, 8]);
    }

    #[test]
    fn rank_stabilized_scale_divides_by_the_square_root() {
        let config = parse(r#"{"peft_type":"LORA","r":4,"lora_alpha":3,"use_rslora":true}"#).unwrap();
        assert_eq!(config.scale("any"), 1.5);
    }

    #[test]
    fn targets_match_as_peft_matches_them() {
        let targets = |json: &str| {
            let config = parse(&format!(r#"{{"peft_type":"LORA","target_modules":{json}}}"#)).unwrap();
            config.target_modules.unwrap()
        };
        let names = targets(r#"["q","x.v"]"#);
        assert!(["q", "a.q", "x.v", "a.x.v"].iter().all(|name| names.contain(name)));
        assert!(["aq", "v", "q.a", "ax.v"].iter().all(|name| !names.contain(name)));
        let pattern = targets(r#""q|.*\\.v""#);
        assert!(pattern.contain("q") && pattern.contain("a.v"));
        assert!(!pattern.contain("a.q") && !pattern.contain("v"));
        assert!(targets(r#""All-Linear""#).contain("whatever"));
    }

    #[test]
    fn invalid_configurations_are_refused() {
        let texts = [
            r#"{"r":8}"#,
            r#"{"peft_type":"LORA","r":-1}"#,
            r#"{"peft_type":"LORA","r":2,"r":4}"#,
            r#"{"peft_type":"LORA","lora_alpha":NaN}"#,
            r#"{"peft_type":"LORA","rank_pattern":{"q":2,"q":4}}"#,
            r#"{"peft_type":"LORA","rank_pattern":[2]}"#,
            r#"{"peft_type":"LORA","alpha_pattern":{"(q":2}}"#,
            r#"{"peft_type":"LORA","target_modules":"(q"}"#,
            r#"{"peft_type":"LORA","target_modules":3}"#,
            r#"{"peft_type":"LORA"} x"#,
        ];
        expect![[r#"
            missing field `peft_type` at line 1 column 7
            invalid value: integer `-1`, expected u64 at line 1 column 26
            duplicate field `r` at line 1 column 29
            expected value at line 1 column 34
            duplicate pattern "q" at line 1 column 48
            invalid type: sequence, expected an object with regular expressions as keys at line 1 column 35
            invalid or unsupported regular expression "(q" at line 1 column 44
            invalid or unsupported regular expression "(q" at line 1 column 42
            target_modules must be a list of names, or a string at line 1 column 39
            trailing characters at line 1 column 22"#]]
        .assert_eq(&texts.map(|text| parse(text).unwrap_err()).join("\n"));
    }
}
