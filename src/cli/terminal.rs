//! The output of the tool: data on stdout, everything else on stderr. All text goes through [`crate::storage::visible`], so that no name in
//! a file can move the cursor of the terminal or change the text around it.

use super::args::{GlobalArgs, ProgressStyle, When};
use super::command_line;
use super::interrupt::Interruption;
use super::variables::Variable;
use crate::storage::visible;
use clap::ColorChoice;
use clap::builder::styling::{AnsiColor, Style};
use serde::Serialize;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, registry, reload};

/// The process in which the tool runs.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    command_line: String,
    variables: Vec<Variable>,
    interruption: Option<Interruption>,
}

impl Process {
    /// A process with these words as its command line, and the variables that give further options. `interruption` is given if another
    /// thread passes interrupts on.
    pub(crate) fn new(
        words: &[OsString],
        variables: Vec<Variable>,
        interruption: Option<Interruption>,
    ) -> Self {
        let assignments = variables.iter().map(Variable::assignment);
        let command_line = assignments.chain([command_line::join(words)]).collect::<Vec<_>>().join(" ");
        Self { command_line, variables, interruption }
    }

    /// The variables that give options.
    pub(crate) fn variables(&self) -> &[Variable] {
        &self.variables
    }

    /// The command line, as a shell reads it, after the variables that give further options.
    pub(crate) fn command_line(&self) -> &str {
        &self.command_line
    }

    /// The interrupts that another thread passes on, inside another process.
    pub(crate) fn interruption(&self) -> Option<&Interruption> {
        self.interruption.as_ref()
    }
}

/// Where and how the tool prints, from the global options.
#[derive(Clone, Debug)]
pub(crate) struct Terminal {
    json: bool,
    quiet: bool,
    coloured: bool,
    progress: ProgressStyle,
    process: Process,
}

impl Terminal {
    /// Reads the options and the environment, and starts tracing to stderr.
    pub(crate) fn new(options: &GlobalArgs, process: Process) -> Self {
        let coloured = match options.color {
            When::Always => true,
            When::Never => false,
            When::Auto => colours_wanted(io::stderr().is_terminal(), |name| std::env::var(name).ok()),
        };
        let level = match (options.quiet, options.verbose) {
            (true, _) => LevelFilter::ERROR,
            (false, 0) => LevelFilter::WARN,
            (false, 1) => LevelFilter::INFO,
            (false, _) => LevelFilter::DEBUG,
        };
        trace(level, coloured);
        let progress = match options.progress {
            _ if options.quiet => ProgressStyle::None,
            ProgressStyle::Auto if io::stderr().is_terminal() && options.verbose == 0 => ProgressStyle::Bar,
            ProgressStyle::Auto => ProgressStyle::Plain,
            style => style,
        };
        Self { json: options.json, quiet: options.quiet, coloured, progress, process }
    }

    /// The process.
    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// True if only errors are printed on stderr.
    pub(crate) fn quiet(&self) -> bool {
        self.quiet
    }

    /// Returns whether messages are coloured.
    pub(crate) fn coloured(&self) -> bool {
        self.coloured
    }

    /// Returns whether the result of a command is printed as JSON.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// The way to show progress. Never `Auto`.
    pub(crate) fn progress(&self) -> ProgressStyle {
        self.progress
    }

    /// Prints the result of a command: the value as JSON, or its rendering as text.
    pub(crate) fn result<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> io::Result<()> {
        if self.json {
            let json = serde_json::to_string_pretty(value)? + "\n";
            self.data(visible::json(&json).as_bytes())
        } else {
            self.data(visible::lines(&text(value)).as_bytes())
        }
    }

    /// Writes to stdout, without any change.
    pub(crate) fn data(&self, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    /// Prints a message on stderr, unless the tool is quiet.
    pub(crate) fn note(&self, words: &str) {
        if !self.quiet {
            write_stderr(&format!("{}\n", visible::message(words)));
        }
    }

    /// Prints a warning on stderr, unless the tool is quiet.
    pub(crate) fn warning(&self, words: &str) {
        if !self.quiet {
            write_stderr(&labelled("warning:", words, self.coloured));
        }
    }

    /// Prints why the command failed on stderr.
    pub(crate) fn error(&self, text: &str) {
        write_stderr(text);
    }
}

/// Starts tracing to stderr. Later calls in the same process change the level only.
fn trace(level: LevelFilter, coloured: bool) {
    static LEVEL: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();
    if let Some(handle) = LEVEL.get() {
        // This fails only if the subscriber is gone, and it is never dropped.
        let _ = handle.reload(level);
        return;
    }
    let (filter, handle) = reload::Layer::new(level);
    let lines = fmt::layer()
        .with_ansi(coloured)
        .with_writer(move || Log { coloured })
        .with_target(false)
        .without_time();
    // The process can have a subscriber of its own. Then it receives the events.
    if registry().with(filter).with(lines).try_init().is_ok() {
        let _ = LEVEL.set(handle);
    }
}

/// A message that begins with `error:`, `warning:` or `help:`, which has a colour if `coloured`.
pub(crate) fn labelled(label: &str, words: &str, coloured: bool) -> String {
    let colour = match label {
        "error:" => AnsiColor::Red,
        "warning:" => AnsiColor::Yellow,
        _ => AnsiColor::Cyan,
    };
    let style = if coloured { Style::new().bold().fg_color(Some(colour.into())) } else { Style::new() };
    format!("{style}{label}{style:#} {}\n", visible::message(words))
}

/// Decides on colours from NO_COLOR, CLICOLOR_FORCE, CLICOLOR and TERM, in the same order as clap does for its help.
fn colours_wanted(is_terminal: bool, variable: impl Fn(&str) -> Option<String>) -> bool {
    let set = |name| variable(name).is_some_and(|value| !value.is_empty());
    let is = |name, wanted| variable(name).is_some_and(|value| value == wanted);
    if set("NO_COLOR") {
        false
    } else if set("CLICOLOR_FORCE") && !is("CLICOLOR_FORCE", "0") {
        true
    } else {
        is_terminal && !is("CLICOLOR", "0") && !is("TERM", "dumb")
    }
}

/// Finds `--color` for help and for errors in arguments, which clap prints before the arguments are parsed.
pub(crate) fn colours_of_help(words: impl Iterator<Item = OsString>) -> ColorChoice {
    let words: Vec<OsString> = words.take_while(|word| word != "--").collect();
    let after_option = words.windows(2).filter(|pair| pair[0] == "--color").map(|pair| &pair[1]);
    let joined = words.iter().filter_map(|word| word.to_str()?.strip_prefix("--color="));
    let mut values = joined.chain(after_option.filter_map(|word| word.to_str()));
    match values.next() {
        Some("always") => ColorChoice::Always,
        Some("never") => ColorChoice::Never,
        _ => ColorChoice::Auto,
    }
}

/// Writes the lines of a log to stderr.
struct Log {
    coloured: bool,
}

impl Write for Log {
    /// Writes a whole event.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let safe = match self.coloured {
            // The library of the log escapes names, and adds the colours.
            true => visible::short_lines(&text),
            false => visible::message(&text),
        };
        io::stderr().lock().write_all(safe.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes to stderr. A failure is ignored, because there is no other place to report it.
pub(crate) fn write_stderr(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NO_COLOR comes before CLICOLOR_FORCE, and both before the terminal. An empty variable counts as not set.
    #[test]
    fn colours_follow_the_environment() {
        let wanted = |is_terminal, variables: &[(&str, &str)]| {
            colours_wanted(is_terminal, |name| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into())
            })
        };
        assert!(wanted(true, &[]) && !wanted(false, &[]));
        assert!(!wanted(true, &[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")]));
        assert!(wanted(true, &[("NO_COLOR", "")]));
        assert!(wanted(false, &[("CLICOLOR_FORCE", "1"), ("TERM", "dumb")]));
        assert!(!wanted(false, &[("CLICOLOR_FORCE", "0")]));
        assert!(!wanted(true, &[("CLICOLOR", "0")]) && !wanted(true, &[("TERM", "dumb")]));
    }

    #[test]
    fn help_has_the_colours_of_the_option() {
        let choice = |line: &str| colours_of_help(line.split(' ').map(OsString::from));
        assert_eq!(choice("cntlora init --color always --help"), ColorChoice::Always);
        assert_eq!(choice("cntlora --color=never init"), ColorChoice::Never);
        assert_eq!(choice("cntlora init -- --color=always"), ColorChoice::Auto);
    }
}
