//! Replacements in names, by regular expressions.

use crate::storage::{Problem, Problems, quoted};
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::borrow::Borrow;

/// `pattern` in a module name is replaced to give the checkpoint name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rename {
    /// A regular expression.
    pub pattern: String,
    /// Its replacement, with `$1` for groups.
    pub replacement: String,
}

impl std::str::FromStr for Rename {
    type Err = String;
    /// Parses `REGEX=REPLACEMENT`. The first `=` separates them; a regular expression that holds one writes it as `\x3D`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((pattern, replacement)) if !pattern.is_empty() => {
                Ok(Self { pattern: pattern.into(), replacement: replacement.into() })
            }
            _ => Err("expected REGEX=REPLACEMENT, such as '^layers\\.=encoder.layer.'".into()),
        }
    }
}

/// The longest name that renames may make, in bytes.
pub(super) const LONGEST: usize = 4096;

/// The user's renames, compiled.
pub(super) struct Renames<'a>(Vec<(Regex, &'a str)>);

impl<'a> Renames<'a> {
    /// Compiles the patterns, and reports all that are no regular expressions.
    pub(super) fn new(renames: &'a [Rename]) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let compiled = renames
            .iter()
            .filter_map(|rename| {
                let pattern = problems.collect(regular_expression("--rename", &rename.pattern))?;
                Some((pattern, rename.replacement.as_str()))
            })
            .collect();
        problems.or_ok(Self(compiled))
    }

    /// A name with all of them applied; `None` if that becomes too long.
    pub(super) fn apply(&self, name: &str) -> Option<String> {
        rename(&self.0, name)
    }
}

/// Compiles a regular expression that was given with an option.
pub(super) fn regular_expression(option: &str, pattern: &str) -> Result<Regex, Problem> {
    Regex::new(pattern).map_err(|error| {
        // The last line says what is wrong, those before it show where.
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
        Problem::usage(format!("{option}: {} is no regular expression: {reason}", quoted(pattern)))
            .help("a dot or a bracket that stands for itself is written with a backslash before it")
    })
}

/// Applies replacements in order. `None` for a name that they make longer than [`LONGEST`]: forty that each double it would fill
/// any memory.
pub(super) fn rename<R: Borrow<str>>(renames: &[(Regex, R)], name: &str) -> Option<String> {
    let longest = LONGEST.max(name.len());
    renames.iter().try_fold(name.to_owned(), |name, (pattern, replacement)| {
        let name = pattern.replace_all(&name, replacement.borrow()).into_owned();
        (name.len() <= longest).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many rules double a name, the third beyond the limit is not reached; and long names are no fault of theirs.
    #[test]
    fn rules_that_double_names_end() {
        let doubling: Vec<Rename> = (0..64).map(|_| "^(.*)$=$1$1".parse().unwrap()).collect();
        let apply = |rules: &[Rename], name: &str| Renames::new(rules).unwrap().apply(name);
        assert_eq!(apply(&doubling, "q"), None);
        assert_eq!(apply(&doubling[..12], "q").map(|name| name.len()), Some(LONGEST));
        let long = "q".repeat(10 * LONGEST);
        assert_eq!(apply(&["q$=v".parse().unwrap()], &long).map(|name| name.len()), Some(long.len()));
    }
}
