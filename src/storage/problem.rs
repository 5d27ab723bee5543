//! What is wrong with an input or an option, in words for the person who can mend it.

use std::fmt;
use std::path::{Path, PathBuf};

/// Who has to act, and so with which code the tool exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Category {
    /// Data was refused: exit code 1.
    Data,
    /// The command or its options: exit code 2.
    Usage,
    /// Reading, writing or the environment: exit code 3.
    Io,
    /// Nobody: it was asked to stop. Exit code 130.
    Interrupted,
}

/// One complaint: where, what was expected and found, and the next step.
#[derive(Clone, Debug)]
pub struct Problem {
    category: Category,
    file: Option<PathBuf>,
    tensor: Option<String>,
    what: String,
    help: Option<String>,
    is_change: bool,
}

impl Problem {
    /// Data that cannot be used. `what` says what was expected and what was found.
    pub fn data(what: impl Into<String>) -> Self {
        Self::new(Category::Data, what.into())
    }
    /// A command or option that cannot be carried out.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Category::Usage, what.into())
    }
    /// A failure of reading, writing or the environment.
    pub fn io(doing: &str, error: &std::io::Error) -> Self {
        Self::new(Category::Io, format!("{doing}: {error}"))
    }

    /// A failure of the environment that was not met as an [`std::io::Error`], such as a folder where a file
    /// is needed.
    pub fn environment(what: impl Into<String>) -> Self {
        Self::new(Category::Io, what.into())
    }

    /// An input that was written to while it was read: data, and what was made of it is of no use.
    pub fn change(what: impl Into<String>) -> Self {
        Self { is_change: true, ..Self::data(what) }
    }

    /// An end before the work was done, because it was asked for.
    pub fn interrupted(what: impl Into<String>) -> Self {
        Self::new(Category::Interrupted, what.into())
    }

    fn new(category: Category, what: String) -> Self {
        Self { category, file: None, tensor: None, what, help: None, is_change: false }
    }
    /// Names the file.
    #[must_use]
    pub fn in_file(mut self, path: &Path) -> Self {
        self.file = Some(path.into());
        self
    }
    /// Names the tensor.
    #[must_use]
    pub fn in_tensor(mut self, name: &str) -> Self {
        self.tensor = Some(name.into());
        self
    }
    /// Says what to do next.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
    /// Who has to act.
    pub fn category(&self) -> Category {
        self.category
    }
    /// Whether it is a [`change`](Self::change).
    pub fn is_change(&self) -> bool {
        self.is_change
    }
    /// The next step, if one is known.
    pub fn next_step(&self) -> Option<&str> {
        self.help.as_deref()
    }
}

/// A name from outside between quotes, with control characters escaped.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.escape_debug())
}

/// Words that quote a file, such as a parser's complaint: control characters escaped, and cut after 300
/// characters.
pub(super) fn printable(text: &str) -> String {
    const LONGEST: usize = 300;
    let mut printable = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == LONGEST {
            printable.push('…');
            break;
        }
        if character.is_control() {
            printable.extend(character.escape_debug());
        } else {
            printable.push(character);
        }
    }
    printable
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display().to_string().escape_debug())?;
        }
        if let Some(tensor) = &self.tensor {
            write!(f, "tensor {}: ", quoted(tensor))?;
        }
        f.write_str(&self.what)
    }
}
impl std::error::Error for Problem {}

/// Several complaints, found together. Never empty when returned as an error.
#[derive(Clone, Debug, Default)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// The most severe category: an interruption over I/O over usage over data.
    pub fn category(&self) -> Category {
        self.0.iter().map(Problem::category).max().unwrap_or(Category::Data)
    }
    /// Adds a complaint.
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }
    /// Keeps the value of a success, or the complaints of a failure.
    pub fn collect<T>(&mut self, result: Result<T, impl Into<Problems>>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(problems) => {
                self.0.extend(problems.into().0);
                None
            }
        }
    }
    /// `value` if there was no complaint.
    ///
    /// # Errors
    /// The complaints, if there are any.
    pub fn or_ok<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}
impl From<Problem> for Problems {
    fn from(p: Problem) -> Self {
        Self(vec![p])
    }
}
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}
impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    #[test]
    fn a_problem_says_where_then_what_and_keeps_the_next_step_apart() {
        let problem = Problem::data("expected 2, found 3").help("count again");
        assert_eq!(problem.to_string(), "expected 2, found 3");
        let problem = problem.in_tensor("a\tb").in_file(Path::new("x.npy"));
        assert_eq!(problem.to_string(), r#"x.npy: tensor "a\tb": expected 2, found 3"#);
        assert_eq!(problem.next_step(), Some("count again"));
        assert_eq!(Problem::usage("no").next_step(), None);
    }

    #[test]
    fn constructors_set_the_category() {
        let error = std::io::Error::other("disk on fire");
        assert_eq!(Problem::data("").category(), Category::Data);
        assert_eq!(Problem::usage("").category(), Category::Usage);
        assert_eq!(Problem::environment("").category(), Category::Io);
        assert_eq!(Problem::interrupted("").category(), Category::Interrupted);
        assert_eq!(Problem::io("cannot read", &error).category(), Category::Io);
        assert_eq!(Problem::io("cannot read", &error).to_string(), "cannot read: disk on fire");
    }

    quickcheck! {
        /// A tensor name must not move the cursor of a terminal or start a new line of a log.
        fn no_control_character_of_a_name_reaches_the_message(name: String) -> bool {
            let problem = Problem::data("bad").in_tensor(&name).in_file(Path::new(&name));
            !problem.to_string().contains(char::is_control) && !printable(&name).contains(char::is_control)
        }
    }

    #[test]
    fn long_quotations_are_cut() {
        assert_eq!(printable(&"é".repeat(300)), "é".repeat(300));
        assert_eq!(printable(&"é".repeat(301)), "é".repeat(300) + "…");
        assert_eq!(printable("\u{1b}[31m \"a\""), "\\u{1b}[31m \"a\"");
    }

    #[test]
    fn problems_are_collected_and_the_most_severe_decides() {
        let mut problems = Problems::default();
        assert_eq!(problems.collect(Ok::<_, Problem>(1)), Some(1));
        assert!(problems.clone().or_ok(()).is_ok());
        assert_eq!(problems.collect(Err::<(), _>(Problem::data("one"))), None);
        assert_eq!(problems.category(), Category::Data);
        problems.push(Problem::usage("two"));
        assert_eq!(problems.category(), Category::Usage);
        let more = Problems::from(Problem::environment("three"));
        assert_eq!(problems.collect(Err::<(), _>(more)), None);
        assert_eq!(problems.category(), Category::Io);
        assert_eq!(problems.or_ok(()).unwrap_err().to_string(), "one\ntwo\nthree");
    }
}
