//! Finds the weight of a module in the checkpoint by the module's runtime name.
//!
//! The names differ if the model was saved with or without a head (prefix `bert.`), or if transformers renames modules at load
//! time. The lookup tries these names in order and takes the first match:
//!
//! 1. the name itself, `<module>.weight`;
//! 2. the name after all renames of the user, in order; the result is a module or a full tensor name;
//! 3. if the model type is known, the name among the names that transformers gives to the tensors, see [`families`](super::families);
//! 4. the name with an additional prefix, or without a part of its own prefix, also among those of step 3;
//! 5. the names from [`presets`].
//!
//! The renames of the user come before all guesses, so that they can correct a wrong guess.

use super::nearest::{list, similar};
use super::presets;
use super::renames::{LONGEST, Renames};
use crate::storage::{Problem, quoted};
use std::collections::{BTreeMap, BTreeSet};

/// The tensors of a checkpoint, ready for lookups.
pub(super) struct Names<'a> {
    /// The stored names by name.
    tensors: BTreeMap<&'a str, &'a str>,
    stored: BTreeSet<&'a str>,
    /// For each key, the tensors whose names end in a dot and the key.
    by_ending: BTreeMap<&'a str, Vec<Tensor<'a>>>,
    /// The only prefix with which all modules that need a prefix are found.
    common_prefix: Option<&'a str>,
    renames: &'a Renames<'a>,
    /// The same tensors under the names that a known model type has at run time.
    at_run_time: Option<&'a Names<'a>>,
}

/// A tensor of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tensor<'a> {
    /// The name that a module is compared with: without the parts of wrappers.
    pub(super) name: &'a str,
    /// The name in the file.
    pub(super) stored: &'a str,
}

impl<'a> From<&'a str> for Tensor<'a> {
    fn from(name: &'a str) -> Self {
        Self { name, stored: name }
    }
}

/// Why a module has no tensor.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unresolved<'a> {
    /// No tensor matches. Holds the name of the last lookup, for a list of similar names.
    Missing(String),
    /// Several tensors match equally well.
    Ambiguous(Vec<&'a str>),
    /// The renames of the user make the name too long.
    TooLong,
}

impl<'a> Names<'a> {
    /// `modules` are all recorded modules. They determine the prefix where it is ambiguous.
    pub(super) fn new<'m>(
        tensors: impl IntoIterator<Item = impl Into<Tensor<'a>>>,
        modules: impl IntoIterator<Item = &'m str>,
        renames: &'a Renames<'a>,
    ) -> Self {
        let tensors = tensors.into_iter().map(Into::into);
        let tensors: BTreeMap<&str, &str> = tensors.map(|tensor| (tensor.name, tensor.stored)).collect();
        let stored = tensors.values().copied().collect();
        let mut by_ending: BTreeMap<&str, Vec<Tensor<'_>>> = BTreeMap::new();
        for (&name, &stored) in &tensors {
            for (dot, _) in name.match_indices('.') {
                by_ending.entry(&name[dot + 1..]).or_default().push(Tensor { name, stored });
            }
        }
        let mut names = Self { tensors, stored, by_ending, common_prefix: None, renames, at_run_time: None };
        names.common_prefix = names.find_common_prefix(modules);
        names
    }

    /// Also finds tensors under the names that a known model type has at run time.
    pub(super) fn with_names_at_run_time(self, names: &'a Names<'a>) -> Self {
        Self { at_run_time: Some(names), ..self }
    }

    fn find_common_prefix<'m>(&self, modules: impl IntoIterator<Item = &'m str>) -> Option<&'a str> {
        let mut common: Option<BTreeSet<&str>> = None;
        for module in modules {
            let weight = weight(module);
            let longer = self.longer(&weight);
            if self.tensors.contains_key(weight.as_str()) || longer.is_empty() {
                continue;
            }
            let prefixes =
                longer.iter().map(|tensor| &tensor.name[..tensor.name.len() - weight.len()]).collect();
            common = Some(match common {
                Some(common) => &common & &prefixes,
                None => prefixes,
            });
        }
        let mut common = common?.into_iter();
        common.next().filter(|_| common.next().is_none())
    }

    /// The tensor that holds the weight of a module.
    pub(super) fn resolve(&self, module: &str) -> Result<&'a str, Unresolved<'a>> {
        if let Some(tensor) = self.exact(&weight(module)) {
            return Ok(tensor);
        }
        let renamed = self.renames.apply(module).ok_or(Unresolved::TooLong)?;
        if renamed != module
            && let Some(tensor) = self.exact(&renamed).map_or_else(|| self.find(&renamed), |t| Ok(Some(t)))?
        {
            return Ok(tensor);
        }
        if let Some(tensor) = self.at_run_time.and_then(|names| names.exact(&weight(module))) {
            return Ok(tensor);
        }
        if let Some(tensor) = self.find(module)? {
            return Ok(tensor);
        }
        if let Some(Ok(Some(tensor))) = self.at_run_time.map(|names| names.find(module)) {
            return Ok(tensor);
        }
        let mut found = BTreeSet::new();
        for name in presets::names_on_disk(module) {
            found.extend(self.find(&name)?);
        }
        let found: Vec<_> = found.into_iter().collect();
        match found[..] {
            [tensor] => Ok(tensor),
            [] => Err(Unresolved::Missing(weight(&renamed))),
            _ => Err(Unresolved::Ambiguous(found)),
        }
    }

    /// The tensor with the name of a parameter, without `.weight`.
    pub(super) fn parameter(&self, name: &str) -> Result<Option<&'a str>, Unresolved<'a>> {
        match self.find_tensor(name)? {
            None => self.find_tensor(&self.renames.apply(name).ok_or(Unresolved::TooLong)?),
            found => Ok(found),
        }
    }

    /// The weight of a module.
    fn find(&self, name: &str) -> Result<Option<&'a str>, Unresolved<'a>> {
        self.find_tensor(&weight(name))
    }

    /// A tensor with this name, with an additional prefix, or without a part of its own prefix.
    fn find_tensor(&self, name: &str) -> Result<Option<&'a str>, Unresolved<'a>> {
        if let Some(tensor) = self.exact(name) {
            return Ok(Some(tensor));
        }
        match self.longer(name) {
            [] => Ok(name.match_indices('.').find_map(|(dot, _)| self.exact(&name[dot + 1..]))),
            [tensor] => Ok(Some(tensor.stored)),
            several => {
                let expected = self.common_prefix.map(|prefix| format!("{prefix}{name}"));
                match expected.and_then(|expected| self.exact(&expected)) {
                    Some(tensor) => Ok(Some(tensor)),
                    None => Err(Unresolved::Ambiguous(several.iter().map(|tensor| tensor.stored).collect())),
                }
            }
        }
    }

    fn exact(&self, tensor: &str) -> Option<&'a str> {
        self.tensors.get(tensor).or_else(|| self.stored.get(tensor)).copied()
    }

    /// The tensors whose names are a prefix and `weight`.
    fn longer(&self, weight: &str) -> &[Tensor<'a>] {
        self.by_ending.get(weight).map_or(&[], Vec::as_slice)
    }
}

fn weight(module: &str) -> String {
    format!("{module}.weight")
}

impl Unresolved<'_> {
    /// The problem for the user. Similar names are searched in `names`, if they are given.
    pub(super) fn problem(&self, module: &str, names: Option<&Names<'_>>) -> Problem {
        let expected = format!("expected the weight of module {} in the checkpoint", quoted(module));
        match self {
            Self::Missing(_) if names.is_some_and(|names| names.tensors.is_empty()) => {
                Problem::data(format!("{expected}, but the checkpoint has no tensors"))
            }
            Self::Missing(name) => Problem::data(match names {
                None => format!("{expected}, found no match"),
                Some(names) => {
                    format!("{expected}, found no match{}", similar(name, names.tensors.values().copied()))
                }
            })
            .help("map the name to the one in the checkpoint with --rename 'REGEX=REPLACEMENT', or exclude the module with --exclude"),
            Self::Ambiguous(tensors) => Problem::data(format!(
                "{expected}, found several matches: {}",
                list(tensors.iter().copied())
            ))
            .help("choose one with --rename, for example --rename '^=PREFIX.' for a prefix"),
            Self::TooLong => Problem::usage(format!(
                "--rename turns the module {} into a name of more than {LONGEST} bytes",
                quoted(module)
            ))
            .help("remove rules that repeat the matched text"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Rename;
    use super::*;
    use crate::storage::shown;
    use expect_test::expect;
    use quickcheck::quickcheck;
    use std::path::Path;

    /// The tensor of each module, or the reason why there is none.
    fn resolve(tensors: &[&str], modules: &[&str], renames: &[&str]) -> Vec<Result<String, String>> {
        let renames: Vec<Rename> = renames.iter().map(|rename| rename.parse().unwrap()).collect();
        let renames = Renames::new(&renames).unwrap();
        let names = Names::new(tensors.iter().copied(), modules.iter().copied(), &renames);
        let resolved = modules.iter().map(|module| names.resolve(module));
        resolved
            .map(|found| found.map(str::to_owned).map_err(|unresolved| format!("{unresolved:?}")))
            .collect()
    }

    fn resolve_one(tensors: &[&str], module: &str, renames: &[&str]) -> Result<String, String> {
        resolve(tensors, &[module], renames).remove(0)
    }

    /// Module names of up to three parts, all different.
    fn modules(seeds: &[(u8, u8)]) -> Vec<String> {
        let part = |seed: u8| ["q", "k", "0", "1", "layers"][usize::from(seed % 5)];
        let name = |&(parts, seed): &(u8, u8)| {
            let parts = (0..=parts % 3).map(|at| part(seed / 5_u8.pow(u32::from(at))));
            parts.collect::<Vec<_>>().join(".")
        };
        let distinct: BTreeSet<String> = seeds.iter().map(name).collect();
        distinct.into_iter().collect()
    }

    quickcheck! {
        /// Every module finds its own weight if only one side has a prefix, or both have the same. The order of tensors and modules
        /// does not matter.
        fn modules_resolve_to_themselves_under_any_prefix(seeds: Vec<(u8, u8)>, on_disk: u8, at_run_time: u8) -> bool {
            let prefix = |parts: u8| ["", "model.", "model.base."][usize::from(parts % 3)];
            let (on_disk, at_run_time) = (prefix(on_disk), prefix(at_run_time));
            if !on_disk.is_empty() && !at_run_time.is_empty() && on_disk != at_run_time {
                return true;
            }
            let modules = modules(&seeds);
            let with = |prefix: &str, ending: &str| -> Vec<String> {
                modules.iter().map(|module| format!("{prefix}{module}{ending}")).collect()
            };
            let tensors = with(on_disk, ".weight");
            let names = with(at_run_time, "");
            let tensors: Vec<&str> = tensors.iter().map(String::as_str).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let reversed: Vec<&str> = tensors.iter().rev().copied().collect();
            let backwards: Vec<&str> = names.iter().rev().copied().collect();
            let mut again = resolve(&reversed, &backwards, &[]);
            again.reverse();
            let found = resolve(&tensors, &names, &[]);
            found == again && found.iter().map(|found| found.as_deref()).eq(tensors.iter().map(|&tensor| Ok(tensor)))
        }
    }

    #[test]
    fn prefix_must_be_unique_or_common_to_all_modules() {
        let tensors = ["text.layers.0.q.weight", "text.layers.1.q.weight", "vision.layers.0.q.weight"];
        assert_eq!(
            resolve_one(&tensors, "layers.0.q", &[]).unwrap_err(),
            r#"Ambiguous(["text.layers.0.q.weight", "vision.layers.0.q.weight"])"#
        );
        let both = resolve(&tensors, &["layers.0.q", "layers.1.q"], &[]);
        assert_eq!(both, [Ok(tensors[0].to_owned()), Ok(tensors[1].to_owned())]);
    }

    #[test]
    fn prefixes_are_whole_parts_of_names() {
        let missing = resolve_one(&["unq.weight", "q.bias"], "q", &[]).unwrap_err();
        assert_eq!(missing, r#"Missing("q.weight")"#);
        let missing = resolve_one(&["q.weight"], "unq", &[]).unwrap_err();
        assert_eq!(missing, r#"Missing("unq.weight")"#);
    }

    #[test]
    fn renames_come_before_guesses_and_can_give_a_tensor_name() {
        let tensors = ["a.q.weight", "b.q.weight", "c.k.weight", "experts.gate_up"];
        assert_eq!(resolve_one(&tensors, "q", &["^=b."]).unwrap(), "b.q.weight");
        assert_eq!(resolve_one(&tensors, "k", &["k=q", "^=a."]).unwrap(), "a.q.weight");
        assert_eq!(resolve_one(&tensors, "gate", &["^gate$=experts.gate_up"]).unwrap(), "experts.gate_up");
        assert_eq!(resolve_one(&tensors, "x.9.y", &[r"x\.(\d)\.y=c.k"]).unwrap(), "c.k.weight");
        // A rename without a match does not prevent other lookups.
        assert_eq!(resolve_one(&tensors, "k", &["k=nowhere"]).unwrap(), "c.k.weight");
        // An exact match needs no rename.
        assert_eq!(resolve_one(&tensors, "a.q", &["a=b"]).unwrap(), "a.q.weight");
    }

    #[test]
    fn unresolved_modules_have_a_message() {
        let message = |tensors: &[&'static str], rename: &str| {
            let rename: Rename = rename.parse().unwrap();
            let renames = vec![rename; 13];
            let renames = Renames::new(&renames).unwrap();
            let names = Names::new(tensors.iter().copied(), ["q"], &renames);
            shown(&names.resolve("q").unwrap_err().problem("q", Some(&names)).into(), Path::new("-"))
        };
        let messages = [
            message(&[], "x=y"),
            message(&["k.weight"], "x=y"),
            message(&["a.q.weight", "b.q.weight"], "x=y"),
            message(&["k.weight"], "^(.*)$=$1$1"),
        ];
        expect![[r#"
            Data: expected the weight of module "q" in the checkpoint, but the checkpoint has no tensors
            Data: expected the weight of module "q" in the checkpoint, found no match; similar names are "k.weight"
                help: map the name to the one in the checkpoint with --rename 'REGEX=REPLACEMENT', or exclude the module with --exclude
            Data: expected the weight of module "q" in the checkpoint, found several matches: "a.q.weight", "b.q.weight"
                help: choose one with --rename, for example --rename '^=PREFIX.' for a prefix
            Usage: --rename turns the module "q" into a name of more than 4096 bytes
                help: remove rules that repeat the matched text
        "#]].assert_eq(&messages.concat());
    }
}
