//! Exit codes, and errors as messages.

use super::terminal::{Terminal, labelled, write_stderr};
use super::variables;
use crate::storage::{Category, Problem, Problems, visible};
use signal_hook::consts::SIGABRT;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const DATA: u8 = 1;
const USAGE: u8 = 2;
const IO: u8 = 3;
/// A bug of this program.
pub(crate) const BUG: u8 = 4;
/// Interrupted from outside.
pub(crate) const INTERRUPTED: u8 = 130;

/// Ends the process with an exit code in place of SIGABRT, which the standard library raises if an allocation fails. It has then printed
/// "memory allocation of … bytes failed". Allocations whose size a file decides return errors, and do not get here.
pub(crate) fn exit_if_aborted() {
    let always = Arc::new(AtomicBool::new(true));
    // This signal can be handled. If it could not, it would still end the process.
    let _ = signal_hook::flag::register_conditional_shutdown(SIGABRT, IO.into(), always);
}

/// Makes every panic print that it is a bug, and ask for a report.
pub(crate) fn announce_panics() {
    set_hook(Box::new(announce));
}

fn announce(panic: &PanicHookInfo<'_>) {
    let panic = visible::message(&panic.to_string());
    eprintln!("error: this is a bug of cntlora {}: {panic}", env!("CARGO_PKG_VERSION"));
    eprintln!("  help: please report it, with the command line and the lines above");
}

/// Does work. A panic is announced as by [`announce_panics`], and gives `None`. Afterwards panics of the process are handled as before.
pub(crate) fn catch_announced<T>(work: impl FnOnce() -> T) -> Option<T> {
    let before = take_hook();
    set_hook(Box::new(announce));
    // The state of the work is dropped, so nobody sees it half changed.
    let done = catch_unwind(AssertUnwindSafe(work));
    set_hook(before);
    done.ok()
}

/// Prints the problem of a variable that gives an option.
pub(crate) fn of_variable(problem: &Problem) -> u8 {
    let mut text = String::new();
    push_problem(&mut text, problem, false);
    write_stderr(&text);
    of_category(problem.category())
}

/// Prints help, or an error in the arguments. `origin` says where an argument comes from that is not on the command line.
pub(crate) fn of_arguments(error: &clap::Error, origin: Option<&str>) -> u8 {
    let code = if error.use_stderr() { USAGE } else { 0 };
    let words = error.to_string();
    let safe = visible::message(&words);
    let printed = match safe == words {
        true => error.print(),
        // An argument can be the name of a file from outside. Without colours, everything in the message can be escaped.
        false => io::stderr().lock().write_all(safe.as_bytes()),
    };
    if let Some(origin) = origin {
        write_stderr(&format!("\n  {}", labelled("help:", origin, false)));
    }
    match printed {
        Err(failure) if failure.kind() != io::ErrorKind::BrokenPipe => IO,
        _ => code,
    }
}

/// Prints an error on stderr, unless the reader of stdout only closed the pipe.
pub(crate) fn of_error(error: &anyhow::Error, terminal: &Terminal) -> u8 {
    let code = code(error);
    if code != 0 {
        let mut text = in_words(error, terminal.coloured());
        // The command line alone does not show these options.
        if code == USAGE
            && let Some(origin) = variables::origin(terminal.process().variables())
        {
            text += &format!("  {}", labelled("help:", &origin, terminal.coloured()));
        }
        terminal.error(&text);
    }
    code
}

/// Problems in words, with their help: the text of an error in another program.
pub fn message(problems: &Problems) -> String {
    let mut lines = Vec::new();
    for problem in &problems.0 {
        lines.push(problem.to_string());
        lines.extend(problem.next_step().map(|step| format!("  help: {step}")));
    }
    if problems.0.len() > 1 {
        lines.push(format!("{} problems were found", problems.0.len()));
    }
    lines.join("\n")
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

/// Every problem with its help, and the number of problems if there are several.
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
        (None, None) => text = labelled("error:", &format!("{error:#}"), coloured),
    }
    text
}

fn push_problem(text: &mut String, problem: &Problem, coloured: bool) {
    text.push_str(&labelled("error:", &problem.to_string(), coloured));
    if let Some(step) = problem.next_step() {
        text.push_str(&format!("  {}", labelled("help:", step, coloured)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn io_error(kind: io::ErrorKind) -> anyhow::Error {
        anyhow::Error::new(io::Error::from(kind))
    }

    /// Scripts rely on the codes.
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

    #[test]
    fn problems_are_listed_and_counted() {
        let one = Problem::data("too wide").help("cut it");
        let two = Problems(vec![one.clone(), Problem::usage("no such layer")]);
        let text = [
            in_words(&two.into(), false),
            in_words(&one.clone().into(), false),
            in_words(&Problems(vec![one]).into(), false),
            in_words(&anyhow::anyhow!("unforeseen").context("in a test"), false),
        ];
        expect![[r#"
            error: too wide
              help: cut it
            error: no such layer
            2 problems were found

            error: too wide
              help: cut it

            error: too wide
              help: cut it

            error: in a test: unforeseen
        "#]]
        .assert_eq(&text.join("\n"));
    }

    #[test]
    fn only_the_label_is_coloured() {
        let text = in_words(&Problem::data("too wide").help("cut it").into(), true);
        expect![[
            r#"\u{1b}[1m\u{1b}[31merror:\u{1b}[0m too wide\n  \u{1b}[1m\u{1b}[36mhelp:\u{1b}[0m cut it\n"#
        ]]
        .assert_eq(&text.escape_debug().to_string());
    }
}
