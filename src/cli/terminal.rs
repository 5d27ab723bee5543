//! The two streams: data on stdout, everything else on stderr.

use super::args::{GlobalArgs, ProgressStyle, When};
use clap::ColorChoice;
use clap::builder::styling::{AnsiColor, Style};
use serde::Serialize;
use std::ffi::OsString;
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
            When::Auto => colours_wanted(io::stderr().is_terminal(), |name| std::env::var(name).ok()),
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

    /// Whether the result of a command is printed as JSON.
    pub fn json(&self) -> bool {
        self.json
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

/// The conventions of NO_COLOR, CLICOLOR_FORCE, CLICOLOR and TERM, in the order in which clap honours them for its help.
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

/// What `--color` says for help and complaints about arguments, which are written before arguments are understood.
pub fn colours_of_help(words: impl Iterator<Item = OsString>) -> ColorChoice {
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

/// A closed stderr leaves nobody to tell.
fn write_stderr(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NO_COLOR stands above CLICOLOR_FORCE, that above what the terminal is; empty is as good as absent.
    #[test]
    fn colours_follow_the_conventions() {
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
    fn help_is_coloured_as_asked() {
        let choice = |line: &str| colours_of_help(line.split(' ').map(OsString::from));
        assert_eq!(choice("cntlora init --color always --help"), ColorChoice::Always);
        assert_eq!(choice("cntlora --color=never init"), ColorChoice::Never);
        assert_eq!(choice("cntlora init -- --color=always"), ColorChoice::Auto);
    }
}
