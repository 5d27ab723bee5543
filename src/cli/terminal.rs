//! The two streams: data on stdout, everything else on stderr.

use super::args::{GlobalArgs, ProgressStyle, When};
use clap::builder::styling::{AnsiColor, Style};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use tracing::level_filters::LevelFilter;

/// What the global options say about output.
#[derive(Clone, Debug)]
pub struct Terminal {
    json: bool,
    quiet: bool,
    coloured: bool,
    progress: ProgressStyle,
}

impl Terminal {
    /// Reads the options and the environment, and starts tracing to stderr.
    pub fn new(options: &GlobalArgs) -> Self {
        let coloured = match options.color {
            When::Always => true,
            When::Never => false,
            When::Auto => io::stderr().is_terminal() && colours_wanted(),
        };
        let level = match (options.quiet, options.verbose) {
            (true, _) => LevelFilter::ERROR,
            (false, 0) => LevelFilter::WARN,
            (false, 1) => LevelFilter::INFO,
            (false, 2) => LevelFilter::DEBUG,
            (false, _) => LevelFilter::TRACE,
        };
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(coloured)
            .with_writer(io::stderr)
            .without_time()
            .init();
        let progress = match options.progress {
            _ if options.quiet => ProgressStyle::None,
            ProgressStyle::Auto if io::stderr().is_terminal() => ProgressStyle::Bar,
            ProgressStyle::Auto => ProgressStyle::Plain,
            style => style,
        };
        Self { json: options.json, quiet: options.quiet, coloured, progress }
    }

    /// Whether messages are coloured.
    pub fn coloured(&self) -> bool {
        self.coloured
    }

    /// How progress is shown: never `Auto`.
    pub fn progress(&self) -> ProgressStyle {
        self.progress
    }

    /// Prints the result of a command: the value as JSON, or its rendering as text.
    pub fn result<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> io::Result<()> {
        if self.json {
            let mut json = serde_json::to_vec_pretty(value)?;
            json.push(b'\n');
            self.data(&json)
        } else {
            self.data(text(value).as_bytes())
        }
    }

    /// Writes to stdout.
    pub fn data(&self, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    /// Says something that is good to know.
    pub fn note(&self, words: &str) {
        if !self.quiet {
            write_stderr(&format!("{words}\n"));
        }
    }

    /// Says something that may be amiss.
    pub fn warning(&self, words: &str) {
        if !self.quiet {
            let style = if self.coloured {
                Style::new().bold().fg_color(Some(AnsiColor::Yellow.into()))
            } else {
                Style::new()
            };
            write_stderr(&format!("{style}warning:{style:#} {words}\n"));
        }
    }

    /// Says why the command failed.
    pub fn error(&self, text: &str) {
        write_stderr(text);
    }
}

/// The conventions of NO_COLOR and TERM.
fn colours_wanted() -> bool {
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    !no_colour && !dumb
}

/// A closed stderr leaves nobody to tell.
fn write_stderr(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}
