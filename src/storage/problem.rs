//! `Problem`, the error type of everything that reads or writes files.

use super::visible::{one_line, quoted, visible};
use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The kind of a problem. It decides the exit code of the tool.
///
/// A higher category is more severe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Category {
    /// The content of an input is refused: exit code 1.
    Data,
    /// The command or its options are refused: exit code 2.
    Usage,
    /// The file system or the environment failed: exit code 3.
    Io,
    /// The user interrupted the run: exit code 130.
    Interrupted,
}

/// One error: its category, its message, the file and the tensor it is about, and the next step for the user.
///
/// The text of [`Display`](fmt::Display) is file, tensor and message, without the next step; the tool prints that on a line of its own.
/// [`source`](Error::source) is the [`io::Error`] if one caused the problem; the message contains its text.
///
/// ```
/// use cntlora::storage::{Access, Category, Source};
/// use std::{error::Error, io, path::Path};
///
/// let problem = Source::open(Path::new("missing.npy"), Access::Auto).unwrap_err();
/// assert_eq!((problem.category(), problem.next_step()), (Category::Io, Some("check the path")));
/// let cause = problem.source().and_then(|cause| cause.downcast_ref::<io::Error>());
/// assert_eq!(cause.unwrap().kind(), io::ErrorKind::NotFound);
/// ```
#[derive(Clone, Debug)]
pub struct Problem {
    category: Category,
    file: Option<PathBuf>,
    tensor: Option<String>,
    message: String,
    help: Option<String>,
    cause: Option<Arc<io::Error>>,
    is_change: bool,
}

impl Problem {
    /// An input whose content cannot be used.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(Category::Data, message.into())
    }

    /// A command or option that cannot be carried out.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Category::Usage, message.into())
    }

    /// A failed operation of the file system. `doing` says which one, for example "cannot open".
    pub fn io(doing: &str, error: &io::Error) -> Self {
        let cause = match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), error.to_string()),
        };
        Self { cause: Some(Arc::new(cause)), ..Self::environment(format!("{doing}: {error}")) }
    }

    /// A failure of the environment without an [`io::Error`], for example a folder in place of a file.
    pub fn environment(message: impl Into<String>) -> Self {
        Self::new(Category::Io, message.into())
    }

    /// A data problem: an input changed while it was read, so that results computed from it are invalid.
    pub fn change(message: impl Into<String>) -> Self {
        Self { is_change: true, ..Self::data(message) }
    }

    /// The user interrupted the run.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self::new(Category::Interrupted, message.into())
    }

    fn new(category: Category, message: String) -> Self {
        Self { category, file: None, tensor: None, message, help: None, cause: None, is_change: false }
    }

    /// Sets the file that the problem is about.
    #[must_use]
    pub fn in_file(mut self, path: &Path) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Sets the tensor that the problem is about.
    #[must_use]
    pub fn in_tensor(mut self, name: &str) -> Self {
        self.tensor = Some(name.into());
        self
    }

    /// Names the site of a recording in front of the message.
    #[must_use]
    pub(crate) fn in_site(mut self, name: &str) -> Self {
        self.message = format!("site {}: {}", quoted(name), self.message);
        self
    }

    /// Sets the next step for the user.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The kind of the problem.
    pub fn category(&self) -> Category {
        self.category
    }

    /// True if an input [changed](Self::change) while it was read.
    pub fn is_change(&self) -> bool {
        self.is_change
    }

    /// The file that the problem is about.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The tensor, site or module that the problem is about.
    pub fn tensor(&self) -> Option<&str> {
        self.tensor.as_deref()
    }

    /// The message, without file and tensor.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The next step for the user, if one is known.
    pub fn next_step(&self) -> Option<&str> {
        self.help.as_deref()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", visible(&file.to_string_lossy()))?;
        }
        if let Some(tensor) = &self.tensor {
            write!(f, "tensor {}: ", quoted(tensor))?;
        }
        f.write_str(&one_line(&self.message))
    }
}

impl Error for Problem {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

/// Several problems that were found together. Never empty if it is returned as an error.
#[derive(Clone, Debug, Default)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// The most severe category of the problems.
    pub fn category(&self) -> Category {
        self.0.iter().map(Problem::category).max().unwrap_or(Category::Data)
    }

    /// Adds a problem.
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// Returns the value of a success, or adds the problems of a failure.
    pub fn collect<T>(&mut self, result: Result<T, impl Into<Problems>>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(problems) => {
                self.0.extend(problems.into().0);
                None
            }
        }
    }

    /// Returns `value` if there are no problems.
    ///
    /// # Errors
    /// All problems, if there are any.
    pub fn or_ok<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
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

impl Error for Problems {}

/// Problems with their categories and next steps, for snapshot tests. Paths begin within `folder`.
#[cfg(test)]
pub(crate) fn shown(problems: &Problems, folder: &Path) -> String {
    let line = |problem: &Problem| {
        let help = problem.next_step().map_or(String::new(), |help| format!("\n    help: {help}"));
        format!("{:?}: {problem}{help}\n", problem.category())
    };
    let folder = format!("{}/", folder.display());
    problems.0.iter().map(line).collect::<String>().replace(&folder, "")
}

/// Problems with their next steps, one per line, for snapshot tests. `FOLDER` replaces temporary folders.
#[cfg(test)]
pub(crate) fn snapshot(problems: impl Into<Problems>) -> String {
    let line = |problem: &Problem| match problem.next_step() {
        Some(help) => format!("{problem}; help: {help}\n"),
        None => format!("{problem}\n"),
    };
    let text: String = problems.into().0.iter().map(line).collect();
    let temporary = regex::Regex::new(r#"[^\s"]*/\.tmp\w{6}"#).expect("a valid expression");
    temporary.replace_all(&text, "FOLDER").into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    #[test]
    fn the_text_is_file_tensor_and_message_without_the_next_step() {
        let problem = Problem::data("expected 2, found 3").help("count again");
        assert_eq!(problem.to_string(), "expected 2, found 3");
        let problem = problem.in_tensor("a\tb").in_file(Path::new("x.npy"));
        assert_eq!(problem.to_string(), r#"x.npy: tensor "a\tb": expected 2, found 3"#);
        assert_eq!((problem.file(), problem.tensor()), (Some(Path::new("x.npy")), Some("a\tb")));
        assert_eq!((problem.message(), problem.next_step()), ("expected 2, found 3", Some("count again")));
        assert_eq!(Problem::usage("no").next_step(), None);
    }

    #[test]
    fn constructors_set_the_category() {
        assert_eq!(Problem::data("").category(), Category::Data);
        assert_eq!(Problem::usage("").category(), Category::Usage);
        assert_eq!(Problem::environment("").category(), Category::Io);
        assert_eq!(Problem::interrupted("").category(), Category::Interrupted);
        assert!(Problem::change("").is_change() && !Problem::data("").is_change());
    }

    #[test]
    fn the_source_is_the_io_error() {
        for error in [io::Error::other("disk on fire"), io::Error::from_raw_os_error(28)] {
            let problem = Problem::io("cannot read", &error);
            assert_eq!(problem.category(), Category::Io);
            assert_eq!(problem.to_string(), format!("cannot read: {error}"));
            let source = problem.source().unwrap().downcast_ref::<io::Error>().unwrap();
            assert_eq!((source.kind(), source.to_string()), (error.kind(), error.to_string()));
        }
        assert!(Problem::environment("").source().is_none());
    }

    quickcheck! {
        /// A problem is one line without control characters, also where a caller forgot to quote a name.
        fn messages_have_no_control_characters(name: String) -> bool {
            let name = name + "\u{1b}\u{202e}\n";
            let problem = Problem::data(&name).in_tensor(&name).in_file(Path::new(&name));
            !problem.to_string().contains(|character: char| character.is_control() || character == '\u{202e}')
        }
    }

    #[test]
    fn problems_are_collected_and_have_the_most_severe_category() {
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
