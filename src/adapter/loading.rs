//! The facts about the model in `adapter_config.json`, for the loaders of PEFT: its name, its class, its task, and the modules that are
//! trained whole.
//!
//! PEFT loads the tensors of modules in `modules_to_save` from the adapter, and fails if they are missing. For some tasks it adds the
//! names of heads itself. So the adapter holds the tensors of these modules, as the checkpoint has them.
//!
//! Source: `auto.py`, `_set_trainable` in `utils/other.py` and the classes in `peft_model.py` of PEFT 0.21.2.

use super::names::PREFIX;
use crate::storage::safetensors::Tensor;
use crate::storage::{Checkpoint, Problem, Problems, Source, quoted};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The facts about the model for loaders of the adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Loading {
    /// The name of the base, in place of the path that it was read from.
    pub base_name: Option<String>,
    /// The task: a name of [`TASKS`].
    pub task: Option<String>,
    /// The names of modules that are trained whole, or their ends.
    pub modules_to_save: BTreeSet<String>,
    /// The class of the model and its library, for adapters without a task.
    pub auto_mapping: Option<Value>,
    /// True if PEFT must not change `B` during training: the factors are those of MiCA.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub keeps_up: bool,
}

/// The value of `init_lora_weights` for adapters whose `B` is not trained.
pub(super) const MICA: &str = "mica";

/// A task of PEFT.
pub struct Task {
    /// Its name.
    pub name: &'static str,
    /// The model that it is for.
    pub model: &'static str,
    /// The heads that PEFT trains whole for this task, as far as the model has them.
    pub heads: &'static [&'static str],
}

/// The tasks of PEFT.
pub const TASKS: [Task; 6] = [
    Task { name: "CAUSAL_LM", model: "A language model that continues text", heads: &[] },
    Task { name: "SEQ_2_SEQ_LM", model: "A language model with an encoder and a decoder", heads: &[] },
    Task { name: "SEQ_CLS", model: "A classifier of texts", heads: &["classifier", "score"] },
    Task { name: "TOKEN_CLS", model: "A classifier of tokens", heads: &["classifier", "score"] },
    Task { name: "QUESTION_ANS", model: "A model that finds answers in a text", heads: &["qa_outputs"] },
    Task { name: "FEATURE_EXTRACTION", model: "A model whose hidden states are used", heads: &[] },
];

/// Tensors that are written as they are stored, by their names in the adapter.
pub type StoredWholes<'a> = BTreeMap<String, (&'a Source, &'a Tensor)>;

impl Loading {
    /// The names of heads that PEFT trains whole because of the task.
    pub fn heads_of_task(&self) -> &'static [&'static str] {
        let task = TASKS.iter().find(|task| Some(task.name) == self.task.as_deref());
        task.map_or(&[], |task| task.heads)
    }

    /// True if a module of the model may be trained whole.
    pub fn saves_modules(&self) -> bool {
        !self.modules_to_save.is_empty() || !self.heads_of_task().is_empty()
    }

    /// The same for one checkpoint: with the class of its model, and with the heads of the task that it has. Also returns the tensors
    /// of the modules that are trained whole.
    ///
    /// # Errors
    /// A data problem for each module that the checkpoint does not have, and for a task whose head it does not have.
    pub fn of_checkpoint<'a>(
        &self,
        checkpoint: &'a Checkpoint,
    ) -> Result<(Self, StoredWholes<'a>), Problems> {
        let mut problems = Problems::default();
        let mut loading = self.clone();
        for name in &self.modules_to_save {
            if !checkpoint.names().any(|tensor| is_in(tensor, name)) {
                problems
                    .push(without_head(checkpoint, &format!("module {} of --modules-to-save", quoted(name))));
            }
        }
        let heads = self.heads_of_task();
        let has = |head: &&&str| checkpoint.names().any(|tensor| is_in(tensor, head));
        let found: Vec<String> = heads.iter().filter(has).map(|&head| head.to_owned()).collect();
        if let (Some(task), true, false) = (&self.task, found.is_empty(), heads.is_empty()) {
            let names: Vec<String> = heads.iter().map(|head| quoted(head)).collect();
            let head = format!("the head of --task-type {task}, {}", names.join(" or "));
            problems.push(without_head(checkpoint, &head));
        }
        loading.modules_to_save.extend(found);
        loading.auto_mapping = self.auto_mapping.clone().or_else(|| class_of(checkpoint));
        let saved = |tensor: &&str| loading.modules_to_save.iter().any(|name| is_in(tensor, name));
        let mut wholes = StoredWholes::new();
        for name in checkpoint.names().filter(saved) {
            let Some(stored) = checkpoint.get(name) else { continue };
            wholes.insert(format!("{PREFIX}{name}"), (checkpoint.source(stored), &stored.tensor));
        }
        problems.or_ok((loading, wholes))
    }

    /// The value of `init_lora_weights`. With `mica`, PEFT does not change `B` during training. Other values than `true` and `mica`
    /// would initialize the factors anew or change the base weights when the adapter is loaded.
    pub(super) fn init_lora_weights(&self) -> Value {
        if self.keeps_up { json!(MICA) } else { json!(true) }
    }

    /// The value of `task_type`.
    pub(super) fn task_type(&self) -> Value {
        json!(self.task)
    }

    /// The value of `auto_mapping`. As in PEFT, only adapters without a task have one.
    pub(super) fn auto_mapping(&self) -> Option<&Value> {
        self.auto_mapping.as_ref().filter(|_| self.task.is_none())
    }

    /// The value of `modules_to_save`.
    pub(super) fn saved(&self) -> Value {
        if self.modules_to_save.is_empty() { Value::Null } else { json!(self.modules_to_save) }
    }
}

fn without_head(checkpoint: &Checkpoint, what: &str) -> Problem {
    Problem::data(format!("the checkpoint has no tensors of {what}, and PEFT loads them from the adapter"))
        .in_file(checkpoint.path())
        .help("load the model with this head, save it with model.save_pretrained(FOLDER), and give FOLDER: see docs/training.md")
}

/// True if a tensor belongs to a module with this name. As in PEFT, the name is the end of the module's name, without regard to dots.
fn is_in(tensor: &str, name: &str) -> bool {
    tensor.match_indices('.').any(|(dot, _)| tensor[..dot].ends_with(name))
}

/// The class of the model, as its configuration has it.
fn class_of(checkpoint: &Checkpoint) -> Option<Value> {
    let config = checkpoint.config()?;
    // The code of such a model lies beside its weights, and not in a library.
    if config.get("auto_map").is_some() {
        return None;
    }
    let of_transformers = || Some((config.get("architectures")?.get(0)?.as_str()?, "transformers"));
    let of_diffusers = || Some((config.get("_class_name")?.as_str()?, "diffusers"));
    let (class, library) = of_transformers().or_else(of_diffusers)?;
    Some(json!({ "base_model_class": class, "parent_library": library }))
}

#[cfg(test)]
mod tests;
