//! How the tool ends: exit codes, and errors in words.

use super::terminal::Terminal;
use cntlora::storage::{Category, Problem, Problems};
use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;

const DATA: u8 = 1;
const USAGE: u8 = 2;
const IO: u8 = 3;
/// A bug of this program.
pub const BUG: u8 = 4;
/// Interrupted from outside.
pub const INTERRUPTED: u8 = 130;

/// Says that a panic is a bug, and asks for a report.
pub fn announce_panics() {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("error: this is a bug of cntlora {}: {panic}", env!("CARGO_PKG_VERSION"));
        eprintln!("  help: please report it, with the command line and the lines above");
    }));
}

/// Prints what clap has to say, be it help or a complaint.
pub fn of_arguments(error: &clap::Error) -> ExitCode {
    let code = if error.use_stderr() { USAGE } else { 0 };
    match error.print() {
        Err(failure) if failure.kind() != io::ErrorKind::BrokenPipe => IO.into(),
        _ => code.into(),
    }
}

/// Prints an error on stderr, unless it is only that nobody reads our output any more.
pub fn of_error(error: &anyhow::Error, terminal: &Terminal) -> ExitCode {
    let code = code(error);
    if code != 0 {
        terminal.error(&in_words(error, terminal.coloured()));
    }
    code.into()
}

fn code(error: &anyhow::Error) -> u8 {
    if let Some(problems) = error.downcast_ref::<Problems>() {
        return of_category(problems.category());
    }
    if let Some(problem) = error.downcast_ref::<Problem>() {
        return of_category(problem.category());
    }
    match error.downcast_ref::<io::Error>() {
        Some(failure) if failure.kind() == io::ErrorKind::BrokenPipe => 0,
        Some(_) => IO,
        None => BUG,
    }
}

fn of_category(category: Category) -> u8 {
    match category {
        Category::Data => DATA,
        Category::Usage => USAGE,
        Category::Io => IO,
        Category::Interrupted => INTERRUPTED,
    }
}

/// Every problem with its next step, and their number when there are several.
fn in_words(error: &anyhow::Error, coloured: bool) -> String {
    let mut text = String::new();
    match (error.downcast_ref::<Problems>(), error.downcast_ref::<Problem>()) {
        (Some(problems), _) => {
            for problem in &problems.0 {
                push_problem(&mut text, problem, coloured);
            }
            if problems.0.len() > 1 {
                let _ = writeln!(text, "{} problems were found", problems.0.len());
            }
        }
        (None, Some(problem)) => push_problem(&mut text, problem, coloured),
        (None, None) => push(&mut text, "error:", coloured, &format!("{error:#}")),
    }
    text
}

fn push_problem(text: &mut String, problem: &Problem, coloured: bool) {
    push(text, "error:", coloured, &problem.to_string());
    if let Some(step) = problem.next_step() {
        text.push_str("  ");
        push(text, "help:", coloured, step);
    }
}

fn push(text: &mut String, label: &str, coloured: bool, words: &str) {
    use clap::builder::styling::{AnsiColor, Style};
    let colour = if label == "error:" { AnsiColor::Red } else { AnsiColor::Cyan };
    let style = if coloured { Style::new().bold().fg_color(Some(colour.into())) } else { Style::new() };
    let _ = writeln!(text, "{style}{label}{style:#} {words}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io_error(kind: io::ErrorKind) -> anyhow::Error {
        anyhow::Error::new(io::Error::from(kind))
    }

    /// The codes are a promise to scripts.
    #[test]
    fn codes_follow_the_category() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(code(&Problem::data("a").into()), 1);
        assert_eq!(code(&Problem::usage("a").into()), 2);
        assert_eq!(code(&Problem::io("writing", &full).into()), 3);
        assert_eq!(code(&Problem::interrupted("a").into()), 130);
        assert_eq!(code(&Problems(vec![Problem::data("a"), Problem::usage("b")]).into()), 2);
        assert_eq!(code(&io_error(io::ErrorKind::StorageFull)), 3);
        assert_eq!(code(&io_error(io::ErrorKind::BrokenPipe)), 0);
        assert_eq!(code(&anyhow::anyhow!("unforeseen")), 4);
    }

    /// All problems appear, each with its next step, and are counted.
    #[test]
    fn problems_are_listed_together() {
        let problems =
            Problems(vec![Problem::data("too wide").help("cut it"), Problem::usage("no such layer")]);
        let expected = "error: too wide\n  help: cut it\nerror: no such layer\n\
                        2 problems were found\n";
        assert_eq!(in_words(&problems.into(), false), expected);
    }

    /// One problem needs no count.
    #[test]
    fn one_problem_is_not_counted() {
        assert_eq!(in_words(&Problem::data("too wide").into(), false), "error: too wide\n");
        assert_eq!(in_words(&Problems(vec![Problem::data("too wide")]).into(), false), "error: too wide\n");
    }

    /// Colours are escape sequences around the label only.
    #[test]
    fn colours_surround_the_label() {
        let text = in_words(&Problem::data("too wide").into(), true);
        assert!(text.starts_with('\u{1b}') && text.ends_with(" too wide\n"), "{text:?}");
    }
}
