//! Selects the modules that get an adapter.

use super::Selection;
use super::nearest::similar;
use super::renames::regular_expressions;
use crate::activations::Site;
use crate::storage::expressions::ends_of;
use crate::storage::{Problem, Problems, quoted};
use regex::RegexSet;
use std::collections::BTreeSet;

/// The target that selects all modules, as in PEFT.
const ALL: &str = "all-linear";

/// A [`Selection`] with compiled patterns.
pub(super) struct Selector<'a> {
    targets: BTreeSet<&'a str>,
    /// The targets in the order of the user.
    in_order: &'a [String],
    include: RegexSet,
    exclude: RegexSet,
}

impl<'a> Selector<'a> {
    /// Compiles the patterns, and reports all invalid regular expressions.
    pub(super) fn new(selection: &'a Selection) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let include = problems.collect(regular_expressions("--include", &selection.include));
        let exclude = problems.collect(regular_expressions("--exclude", &selection.exclude));
        match (include, exclude) {
            (Some(include), Some(exclude)) => {
                let targets = selection.targets.iter().map(String::as_str).collect();
                Ok(Self { targets, in_order: &selection.targets, include, exclude })
            }
            _ => Err(problems),
        }
    }

    /// Returns whether a module is selected.
    pub(super) fn selects(&self, module: &str) -> bool {
        (self.targets.is_empty() || self.targets.contains(ALL) || self.names(module))
            && (self.include.is_empty() || self.include.is_match(module))
            && !self.exclude.is_match(module)
    }

    /// Returns whether a site is measured: one of its modules is selected. Patterns can also match the name of the site.
    pub(super) fn selects_site(&self, site: &Site) -> bool {
        let found =
            |patterns: &RegexSet, module: &str| patterns.is_match(module) || patterns.is_match(&site.name);
        site.modules.iter().any(|module| {
            (self.include.is_empty() || found(&self.include, module)) && !found(&self.exclude, module)
        })
    }

    /// Returns whether a target names the module, so that it must not be skipped silently.
    pub(super) fn names(&self, module: &str) -> bool {
        // PEFT's rule for a list of target modules: the whole name, or its last parts.
        ends_of(module).any(|end| self.targets.contains(end))
    }

    /// Reports targets without a module, and an empty selection.
    pub(super) fn check<'m>(&self, modules: impl Iterator<Item = &'m str>, problems: &mut Problems) {
        let modules: BTreeSet<&str> = modules.collect();
        let named: BTreeSet<&str> = modules
            .iter()
            .flat_map(|module| ends_of(module))
            .filter(|end| self.targets.contains(end))
            .collect();
        let mut all_found = true;
        for target in self.in_order.iter().filter(|target| *target != ALL && !named.contains(target.as_str()))
        {
            all_found = false;
            // A target of two parts is compared with the last two parts of each module.
            let parts = target.matches('.').count();
            let endings: BTreeSet<&str> = modules.iter().map(|module| last_parts(module, parts)).collect();
            let similar = similar(target, endings);
            let what = format!("--target: no module is named {}{similar}", quoted(target));
            problems.push(Problem::usage(what).help(
                "give the name of a module, or the end of its name, such as q_proj or self_attn.q_proj",
            ));
        }
        if all_found && !modules.iter().any(|module| self.selects(module)) {
            let what = format!(
                "no module is selected: --target, --include and --exclude together exclude all {} modules",
                modules.len()
            );
            problems.push(Problem::usage(what).help("relax one of them"));
        }
    }
}

/// The last `dots + 1` parts of a name, or the whole name if it has fewer.
fn last_parts(module: &str, dots: usize) -> &str {
    module.rmatch_indices('.').nth(dots).map_or(module, |(dot, _)| &module[dot + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::shown;
    use expect_test::expect;
    use std::path::Path;

    const MODULES: [&str; 4] = ["layers.0.q_proj", "layers.0.k_proj", "layers.1.q_proj", "q"];

    fn selected(targets: &[&str], include: &[&str], exclude: &[&str]) -> Result<Vec<&'static str>, Problems> {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let selection =
            Selection { targets: owned(targets), include: owned(include), exclude: owned(exclude) };
        let selector = Selector::new(&selection)?;
        let mut problems = Problems::default();
        selector.check(MODULES.into_iter(), &mut problems);
        problems.or_ok(MODULES.into_iter().filter(|module| selector.selects(module)).collect())
    }

    #[test]
    fn targets_are_names_or_ends_of_names() {
        assert_eq!(selected(&[], &[], &[]).unwrap(), MODULES);
        assert_eq!(selected(&["all-linear"], &[], &[]).unwrap(), MODULES);
        assert_eq!(selected(&["q_proj"], &[], &[]).unwrap(), ["layers.0.q_proj", "layers.1.q_proj"]);
        assert_eq!(selected(&["0.q_proj", "q"], &[], &[]).unwrap(), ["layers.0.q_proj", "q"]);
    }

    #[test]
    fn patterns_match_anywhere_in_the_name() {
        assert_eq!(selected(&[], &[r"\.0\."], &["k_"]).unwrap(), ["layers.0.q_proj"]);
        assert_eq!(selected(&["q_proj"], &["s.1", "never"], &[]).unwrap(), ["layers.1.q_proj"]);
    }

    #[test]
    fn problems_show_similar_names_and_come_together() {
        let refused = |targets: &[&str], include: &[&str], exclude: &[&str]| {
            shown(&selected(targets, include, exclude).unwrap_err(), Path::new("-"))
        };
        expect![[r#"
            Usage: --target: no module is named "q_porj"; similar names are "q_proj", "k_proj", "q"
                help: give the name of a module, or the end of its name, such as q_proj or self_attn.q_proj
            Usage: --target: no module is named "proj"; similar names are "k_proj", "q_proj", "q"
                help: give the name of a module, or the end of its name, such as q_proj or self_attn.q_proj
            Usage: --target: no module is named "0.v_proj"; similar names are "0.k_proj", "0.q_proj", "1.q_proj"
                help: give the name of a module, or the end of its name, such as q_proj or self_attn.q_proj
        "#]].assert_eq(&refused(&["q_porj", "proj", "0.v_proj"], &[], &[]));
        expect![[r#"
            Usage: --include: "(" is not a regular expression: unclosed group
                help: write a backslash before a literal dot or bracket
            Usage: --exclude: "[" is not a regular expression: unclosed character class
                help: write a backslash before a literal dot or bracket
        "#]]
        .assert_eq(&refused(&[], &["("], &["[", "layers"]));
        expect![[r#"
            Usage: no module is selected: --target, --include and --exclude together exclude all 4 modules
                help: relax one of them
        "#]]
        .assert_eq(&refused(&["q_proj"], &["k_proj"], &[]));
    }
}
