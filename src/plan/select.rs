//! Which modules get an adapter.

use super::Selection;
use super::nearest::{list, nearest};
use super::renames::regular_expression;
use crate::activations::Site;
use crate::storage::{Problem, Problems, quoted};
use regex::Regex;
use std::collections::BTreeSet;

/// The target that stands for all modules, as in PEFT.
const ALL: &str = "all-linear";

/// A [`Selection`] with its patterns compiled.
pub(super) struct Selector<'a> {
    targets: &'a [String],
    include: Vec<Regex>,
    exclude: Vec<Regex>,
}

impl<'a> Selector<'a> {
    /// Compiles the patterns, and reports all that are no regular expressions.
    pub(super) fn new(selection: &'a Selection) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let mut compile = |option: &str, patterns: &[String]| {
            let compiled = patterns.iter().map(|pattern| regular_expression(option, pattern));
            compiled.filter_map(|pattern| problems.collect(pattern)).collect()
        };
        let include = compile("--include", &selection.include);
        let exclude = compile("--exclude", &selection.exclude);
        problems.or_ok(Self { targets: &selection.targets, include, exclude })
    }

    /// Whether a module gets an adapter.
    pub(super) fn selects(&self, module: &str) -> bool {
        let found = |patterns: &[Regex]| patterns.iter().any(|pattern| pattern.is_match(module));
        (self.targets.is_empty()
            || self.targets.iter().any(|target| target == ALL || is_named(module, target)))
            && (self.include.is_empty() || found(&self.include))
            && !found(&self.exclude)
    }

    /// Whether a site is measured: whether one of its modules is selected, where patterns are searched for in its own name as well.
    pub(super) fn selects_site(&self, site: &Site) -> bool {
        let found = |patterns: &[Regex], module: &str| {
            patterns.iter().any(|pattern| pattern.is_match(module) || pattern.is_match(&site.name))
        };
        site.modules.iter().any(|module| {
            (self.include.is_empty() || found(&self.include, module)) && !found(&self.exclude, module)
        })
    }

    /// Whether a target names the module, so that it may not be left out silently.
    pub(super) fn names(&self, module: &str) -> bool {
        self.targets.iter().any(|target| is_named(module, target))
    }

    /// Reports targets that name no module, and a selection that leaves nothing.
    pub(super) fn check<'m>(&self, modules: impl Iterator<Item = &'m str>, problems: &mut Problems) {
        let modules: BTreeSet<&str> = modules.collect();
        let mut all_found = true;
        for target in self.targets.iter().filter(|target| *target != ALL) {
            if modules.iter().any(|module| is_named(module, target)) {
                continue;
            }
            all_found = false;
            // Compare like with like: a target of two parts with the last two parts of each module.
            let parts = target.matches('.').count();
            let endings: BTreeSet<&str> = modules.iter().map(|module| last_parts(module, parts)).collect();
            let what = format!(
                "--target: no module is named {}; the nearest names are {}",
                quoted(target),
                list(nearest(target, endings))
            );
            problems
                .push(Problem::usage(what).help(
                    "give the name of a module, or its last parts, such as q_proj or self_attn.q_proj",
                ));
        }
        if all_found && !modules.iter().any(|module| self.selects(module)) {
            let what = format!(
                "nothing is selected: --target, --include and --exclude together leave out all {} modules",
                modules.len()
            );
            problems.push(Problem::usage(what).help("loosen one of them"));
        }
    }
}

/// PEFT's rule for a list of target modules: the whole name, or its last parts.
fn is_named(module: &str, target: &str) -> bool {
    module.strip_suffix(target).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// What follows the last dot but `dots`; the whole name if it has no more than that.
fn last_parts(module: &str, dots: usize) -> &str {
    module.rmatch_indices('.').nth(dots).map_or(module, |(dot, _)| &module[dot + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn targets_are_whole_names_or_last_parts() {
        assert_eq!(selected(&[], &[], &[]).unwrap(), MODULES);
        assert_eq!(selected(&["all-linear"], &[], &[]).unwrap(), MODULES);
        assert_eq!(selected(&["q_proj"], &[], &[]).unwrap(), ["layers.0.q_proj", "layers.1.q_proj"]);
        assert_eq!(selected(&["0.q_proj", "q"], &[], &[]).unwrap(), ["layers.0.q_proj", "q"]);
    }

    #[test]
    fn patterns_are_searched_anywhere_in_the_name() {
        assert_eq!(selected(&[], &[r"\.0\."], &["k_"]).unwrap(), ["layers.0.q_proj"]);
        assert_eq!(selected(&["q_proj"], &["s.1", "never"], &[]).unwrap(), ["layers.1.q_proj"]);
    }

    #[test]
    fn complaints_show_the_nearest_names_and_come_together() {
        let problems = selected(&["q_porj", "proj", "0.v_proj"], &[], &[]).unwrap_err();
        let texts: Vec<_> = problems.0.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 3, "{problems}");
        assert!(
            texts[0].contains(r#""q_porj"; the nearest names are "q_proj", "k_proj", "q""#),
            "{problems}"
        );
        assert!(texts[2].contains(r#"the nearest names are "0.k_proj", "0.q_proj""#), "{problems}");
        let problems = selected(&[], &["("], &["[", "layers"]).unwrap_err();
        assert_eq!(problems.0.len(), 2, "{problems}");
        assert!(problems.to_string().contains(r#"--include: "(" is no regular expression: unclosed group"#));
        let problems = selected(&["q_proj"], &["k_proj"], &[]).unwrap_err();
        assert!(problems.to_string().contains("leave out all 4 modules"), "{problems}");
    }
}
