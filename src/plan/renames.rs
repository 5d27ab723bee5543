//! Replacements in names by regular expressions.

use crate::storage::expressions::{Unusable, check_syntax, compile, compile_set};
use crate::storage::{Problem, Problems, quoted};
use regex::{Regex, RegexSet};
use serde::{Deserialize, Serialize};
use std::borrow::Borrow;

/// A rule that replaces `pattern` in a module name, to get the name in the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rename {
    /// A regular expression.
    pub pattern: String,
    /// The replacement, with `$1` for groups.
    pub replacement: String,
}

impl std::str::FromStr for Rename {
    type Err = String;
    /// Parses `REGEX=REPLACEMENT`, which the first `=` separates. In the regular expression, `\x3D` stands for `=`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((pattern, replacement)) if !pattern.is_empty() => {
                Ok(Self { pattern: pattern.into(), replacement: replacement.into() })
            }
            _ => Err("expected REGEX=REPLACEMENT, for example '^layers\\.=encoder.layer.'".into()),
        }
    }
}

/// Maximum length of a name after renames, in bytes.
pub(super) const LONGEST: usize = 4096;

/// The compiled renames of the user.
pub(crate) struct Renames<'a>(Vec<(Regex, &'a str)>);

impl<'a> Renames<'a> {
    /// Compiles the patterns of `--rename`, and reports all invalid regular expressions.
    pub(super) fn new(renames: &'a [Rename]) -> Result<Self, Problems> {
        Self::of_option("--rename", renames)
    }

    /// Compiles the patterns of `--adapter-name-rename`, and reports all invalid regular expressions.
    pub(crate) fn of_adapter(renames: &'a [Rename]) -> Result<Self, Problems> {
        Self::of_option("--adapter-name-rename", renames)
    }

    /// A module name of an adapter after all renames.
    ///
    /// # Errors
    /// A usage problem if it becomes empty or too long.
    pub(crate) fn adapter_name(&self, name: &str) -> Result<String, Problem> {
        self.apply(name).filter(|renamed| !renamed.is_empty()).ok_or_else(|| {
            let what = format!(
                "--adapter-name-rename turns the module {} into an empty name, or one of more than {LONGEST} bytes",
                quoted(name)
            );
            Problem::usage(what).help("correct the replacement")
        })
    }

    fn of_option(option: &str, renames: &'a [Rename]) -> Result<Self, Problems> {
        let patterns: Vec<&str> = renames.iter().map(|rename| rename.pattern.as_str()).collect();
        regular_expressions(option, &patterns)?;
        let compiled = renames.iter().map(|rename| {
            let pattern =
                compile(&rename.pattern).map_err(|unusable| refusal(option, &rename.pattern, &unusable))?;
            Ok((pattern, rename.replacement.as_str()))
        });
        Ok(Self(compiled.collect::<Result<_, Problem>>()?))
    }

    /// A name after all renames. `None` if it becomes too long.
    pub(crate) fn apply(&self, name: &str) -> Option<String> {
        rename(&self.0, name)
    }
}

/// Compiles the regular expressions of an option into one set.
///
/// # Errors
/// Usage problems for all invalid expressions, or if all together need too much memory.
pub(super) fn regular_expressions<S: AsRef<str>>(option: &str, patterns: &[S]) -> Result<RegexSet, Problems> {
    let mut problems = Problems::default();
    for pattern in patterns.iter().map(AsRef::as_ref) {
        problems.collect(check_syntax(pattern).map_err(|unusable| refusal(option, pattern, &unusable)));
    }
    problems.or_ok(())?;
    compile_set(patterns).map_err(|unusable| {
        let what = format!("{option}: the regular expressions are {}", unusable.reason());
        Problem::usage(what).help("give fewer or simpler expressions").into()
    })
}

fn refusal(option: &str, pattern: &str, unusable: &Unusable) -> Problem {
    let (pattern, reason) = (quoted(pattern), unusable.reason());
    match unusable {
        Unusable::Invalid(_) => {
            Problem::usage(format!("{option}: {pattern} is not a regular expression: {reason}"))
                .help("write a backslash before a literal dot or bracket")
        }
        Unusable::TooLarge => {
            Problem::usage(format!("{option}: {pattern} is {reason}")).help("give a simpler expression")
        }
    }
}

/// Applies replacements in order. Returns `None` if the name becomes longer than [`LONGEST`]: forty rules that double the name would
/// fill the memory.
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
    use expect_test::expect;

    /// Rules that double a name end at the limit. A name that was long before is no error.
    #[test]
    fn renamed_names_have_a_limit() {
        let doubling: Vec<Rename> = (0..64).map(|_| "^(.*)$=$1$1".parse().unwrap()).collect();
        let apply = |rules: &[Rename], name: &str| Renames::new(rules).unwrap().apply(name);
        assert_eq!(apply(&doubling, "q"), None);
        assert_eq!(apply(&doubling[..12], "q").map(|name| name.len()), Some(LONGEST));
        let long = "q".repeat(10 * LONGEST);
        assert_eq!(apply(&["q$=v".parse().unwrap()], &long).map(|name| name.len()), Some(long.len()));
    }

    #[test]
    fn first_equals_sign_separates_a_rename() {
        let rename = |pattern: &str, replacement: &str| {
            Ok(Rename { pattern: pattern.into(), replacement: replacement.into() })
        };
        assert_eq!("^a=b=c".parse(), rename("^a", "b=c"));
        assert_eq!(r"a\x3Db=".parse(), rename(r"a\x3Db", ""));
        let errors = ["a", "=a"].map(|text| text.parse::<Rename>().unwrap_err());
        assert_eq!(errors[0], errors[1]);
        expect![[r#"expected REGEX=REPLACEMENT, for example '^layers\.=encoder.layer.'"#]]
            .assert_eq(&errors[0]);
    }
}
