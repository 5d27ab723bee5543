//! The names of modules in the adapter: those of the recording without the parts of wrappers, after the renames of the user.
//!
//! All options and the lookup in the checkpoint use these names.

use super::recording::RecordedSite;
use super::renames::Renames;
use crate::storage::wrappers::{self, Wrapped};
use crate::storage::{Checkpoint, Problem, Problems, quoted};
use std::collections::BTreeMap;

/// The rules for names.
pub(super) struct Naming<'a> {
    renames: Renames<'a>,
    /// True if the names are those of a model in memory, which has the same names later.
    is_exact: bool,
}

/// The modules of sites under their names in the adapter.
#[derive(Default)]
pub(super) struct Named {
    /// The sorted modules of each site, in the order of the sites.
    pub(super) modules: Vec<Vec<String>>,
    /// The names before the renames of the user, by name in the adapter.
    pub(super) before: BTreeMap<String, String>,
    /// Notes for the user.
    pub(super) notes: Vec<String>,
}

impl<'a> Naming<'a> {
    /// The rules for a checkpoint, if it could be opened.
    pub(super) fn new(renames: Renames<'a>, checkpoint: Option<&Checkpoint>) -> Self {
        Self { renames, is_exact: checkpoint.is_some_and(Checkpoint::is_in_memory) }
    }

    /// The name of a recorded module in the adapter.
    ///
    /// # Errors
    /// A usage problem if the renames make it too long or empty.
    pub(super) fn name(&self, recorded: &str) -> Result<String, Problem> {
        self.renames.adapter_name(&self.without_wrappers(recorded))
    }

    /// The name of a recorded module without the parts of wrappers.
    fn without_wrappers(&self, recorded: &str) -> String {
        match self.is_exact {
            true => recorded.to_owned(),
            false => wrappers::of_recorded(recorded).into_owned(),
        }
    }

    /// The names of all modules of sites.
    ///
    /// # Errors
    /// Problems for modules that would have one name in the adapter.
    pub(super) fn of_sites(&self, sites: &[RecordedSite<'_>], problems: &mut Problems) -> Named {
        let mut named = Named::default();
        let mut recorded: BTreeMap<String, &str> = BTreeMap::new();
        let mut wrapped = Wrapped::default();
        for site in sites {
            let mut modules = Vec::with_capacity(site.modules.len());
            for module in site.modules {
                let inner = self.without_wrappers(module);
                let Some(name) = problems.collect(self.renames.adapter_name(&inner)) else { continue };
                wrapped.add(module, &inner);
                if let Some(other) = recorded.insert(name.clone(), module) {
                    let [other, module, name] = [other, module, &name].map(quoted);
                    let what = format!(
                        "the recorded modules {other} and {module} have the same name {name} in the adapter"
                    );
                    problems.push(Problem::data(what).in_file(site.path).help(
                        "record the model once, or give them different names with --adapter-name-rename",
                    ));
                    continue;
                }
                if name != inner {
                    named.before.insert(name.clone(), inner);
                }
                modules.push(name);
            }
            modules.sort();
            named.modules.push(modules);
        }
        named.notes.extend(wrapped.note(["recorded module", "recorded modules"]));
        named
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fixture, sites, write};
    use super::super::{Plan, plan};
    use expect_test::expect;

    /// A fixture whose recorded modules and tensors have these names.
    fn fixture(recorded: &[&str], tensors: &[&str]) -> Fixture {
        let fixture = Fixture::bert();
        let tensors: Vec<String> = tensors.iter().map(|name| format!("{name}.weight")).collect();
        let tensors: Vec<(&str, &str, &[u64])> =
            tensors.iter().map(|name| (name.as_str(), "F32", [6, 6].as_slice())).collect();
        fixture.model(&tensors);
        write(
            &fixture.request.activations[0],
            Some(&sites(&[("input", recorded)])),
            [("input", "F32", [8, 6].as_slice())],
        );
        fixture
    }

    fn modules(plan: &Plan) -> Vec<(String, String)> {
        plan.layers().map(|layer| (layer.name.to_string(), layer.tensors())).collect()
    }

    /// PEFT finds modules under the names that a loaded model has, whatever wrapped the model while it was recorded or saved.
    #[test]
    fn adapters_have_names_without_wrappers() {
        for recorded in
            ["a.q", "module.a.q", "_orig_mod.a.q", "module._orig_mod.a.q", "base_model.model.a.q.base_layer"]
        {
            for tensor in ["a.q", "module.a.q", "_orig_mod.a.q", "a._fsdp_wrapped_module.q", "a.q.base_layer"]
            {
                let plan = fixture(&[recorded], &[tensor, "a.v"]).plan();
                let expected = ("a.q".to_owned(), format!("{tensor}.weight"));
                assert_eq!(modules(&plan), [expected], "{recorded} {tensor}");
                assert_eq!(plan.notes.len(), usize::from(recorded != "a.q") + usize::from(tensor != "a.q"));
            }
        }
        let plan = fixture(&["_orig_mod.a.q", "_orig_mod.a.v"], &["module.a.q", "module.a.v"]).plan();
        expect![[r#"
            parts of wrappers are left out of the names of 2 recorded modules: "_orig_mod.a.q" is "a.q" here
            parts of wrappers are left out of the names of 2 tensors of the checkpoint: "module.a.q.weight" is "a.q.weight" here"#]].assert_eq(&plan.notes.join("\n"));
    }

    /// The renames of the user change the names in the adapter, and the weights are found under the old names and the new ones.
    #[test]
    fn users_rename_modules_of_the_adapter() {
        for tensors in [["old.q", "old.v"], ["new.q", "new.v"]] {
            let mut fixture = fixture(&["module.old.q", "module.old.v"], &tensors);
            fixture.request.adapter_renames = vec!["^old=new".parse().unwrap()];
            fixture.request.selection.targets = vec!["new.q".into()];
            assert_eq!(modules(&fixture.plan()), [("new.q".to_owned(), format!("{}.weight", tensors[0]))]);
        }
    }

    #[test]
    fn names_that_are_equal_or_unusable_are_refused() {
        let mut fixture = fixture(&["module.q", "q", "v"], &["q", "v"]);
        fixture.check_refusal(&expect![[r#"
            Data: target.safetensors: the recorded modules "module.q" and "q" have the same name "q" in the adapter
                help: record the model once, or give them different names with --adapter-name-rename
        "#]]);
        fixture.request.adapter_renames = vec!["^v$=".parse().unwrap(), "(=".parse().unwrap()];
        fixture.check_refusal(&expect![[r#"
            Usage: --adapter-name-rename: "(" is not a regular expression: unclosed group
                help: write a backslash before a literal dot or bracket
        "#]]);
        fixture.request.adapter_renames.pop();
        fixture.check_refusal(&expect![[r#"
            Data: target.safetensors: the recorded modules "module.q" and "q" have the same name "q" in the adapter
                help: record the model once, or give them different names with --adapter-name-rename
            Usage: --adapter-name-rename turns the module "v" into an empty name, or one of more than 4096 bytes
                help: correct the replacement
        "#]]);
    }

    /// Without activations, the names come from the checkpoint.
    #[test]
    fn names_from_checkpoints_have_no_wrappers() {
        use crate::factors::Start;
        use crate::method::{Method, Options};
        let mut fixture = fixture(&["q"], &["_orig_mod.a.q", "_orig_mod.a.v"]);
        fixture.request.activations.clear();
        fixture.request.selection.targets = vec!["all-linear".into()];
        let method = &fixture.request.method;
        fixture.request.method = Options { start: Start::Residual, method: Method::Pissa, ..method.clone() };
        let (plan, _) = plan(&fixture.request).unwrap();
        let expected = ["q", "v"].map(|name| (format!("a.{name}"), format!("_orig_mod.a.{name}.weight")));
        assert_eq!(modules(&plan), expected);
    }
}
