//! Regular expressions from files and options, whose memory has a limit, and the ends of names that they match.

use regex::{Error, Regex, RegexBuilder, RegexSet, RegexSetBuilder};

/// The most memory of the compiled expressions of one key or option, in bytes. A few characters can need gigabytes.
const LARGEST: usize = 4 << 20;

/// The longest text of the expressions of one key or option, in bytes. Parsing needs memory too.
const LONGEST: usize = 1 << 18;

/// The reason why expressions are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// An expression has no valid syntax, for this reason.
    Invalid(String),
    /// All expressions together are too large.
    TooLarge,
}

impl Unusable {
    /// The reason in words.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Invalid(reason) => reason.clone(),
            Self::TooLarge => {
                format!("too large: compiled, expressions may take at most {} MiB together", LARGEST >> 20)
            }
        }
    }

    fn of(error: &Error) -> Self {
        match error {
            Error::CompiledTooBig(_) => Self::TooLarge,
            // The last line is the reason. The lines before it show the place.
            error => {
                let error = error.to_string();
                let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
                Self::Invalid(reason.into())
            }
        }
    }
}

/// Checks the syntax of an expression, without the memory that compiling needs.
///
/// # Errors
/// The expression is invalid or too long.
pub(crate) fn check_syntax(pattern: &str) -> Result<(), Unusable> {
    if pattern.len() > LONGEST {
        return Err(Unusable::TooLarge);
    }
    match RegexBuilder::new(pattern).size_limit(0).build() {
        Ok(_) | Err(Error::CompiledTooBig(_)) => Ok(()),
        Err(error) => Err(Unusable::of(&error)),
    }
}

/// Compiles one expression.
///
/// # Errors
/// The expression is invalid or too large.
pub(crate) fn compile(pattern: &str) -> Result<Regex, Unusable> {
    if pattern.len() > LONGEST {
        return Err(Unusable::TooLarge);
    }
    RegexBuilder::new(pattern).size_limit(LARGEST).build().map_err(|error| Unusable::of(&error))
}

/// Compiles several expressions into one set.
///
/// # Errors
/// An expression is invalid, or all together are too large.
pub(crate) fn compile_set<S: AsRef<str>>(patterns: &[S]) -> Result<RegexSet, Unusable> {
    if patterns.iter().map(|pattern| pattern.as_ref().len()).sum::<usize>() > LONGEST {
        return Err(Unusable::TooLarge);
    }
    RegexSetBuilder::new(patterns).size_limit(LARGEST).build().map_err(|error| Unusable::of(&error))
}

/// The name itself, and its ends after each dot: `a.b.c`, `b.c`, `c`.
pub(crate) fn ends_of(name: &str) -> impl Iterator<Item = &str> {
    std::iter::once(name).chain(name.match_indices('.').map(|(dot, _)| &name[dot + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_a_name_follow_its_dots() {
        assert_eq!(ends_of("a.b.c").collect::<Vec<_>>(), ["a.b.c", "b.c", "c"]);
        assert_eq!(ends_of(".").collect::<Vec<_>>(), [".", ""]);
        assert_eq!(ends_of("").collect::<Vec<_>>(), [""]);
    }

    /// An expression of eleven characters can need megabytes, and a thousand of them gigabytes.
    #[test]
    fn the_memory_of_all_expressions_together_has_a_limit() {
        let heavy = r"(?:\w{60})i";
        assert!(compile(heavy).is_ok() && compile_set(&[heavy; 1]).is_ok());
        assert_eq!(compile_set(&[heavy; 1000]).unwrap_err(), Unusable::TooLarge);
        assert_eq!(compile(r"(?:\w{60}){1000}").unwrap_err(), Unusable::TooLarge);
        assert!(compile_set(&["q"; 1000]).is_ok());
        let long = "q".repeat(LONGEST + 1);
        assert_eq!(compile(&long).unwrap_err(), Unusable::TooLarge);
        assert_eq!(compile_set(&["q".repeat(LONGEST), "q".into()]).unwrap_err(), Unusable::TooLarge);
    }

    #[test]
    fn the_syntax_is_checked_without_compiling() {
        assert_eq!(check_syntax(r"(?:\w{60}){1000}"), Ok(()));
        assert_eq!(check_syntax("(q"), Err(Unusable::Invalid("unclosed group".into())));
        assert_eq!(compile("(q").unwrap_err(), Unusable::Invalid("unclosed group".into()));
        let nested = "(".repeat(100_000) + &")".repeat(100_000);
        assert!(check_syntax(&nested).is_err());
    }
}
