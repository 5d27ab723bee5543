//! Options from environment variables: `CNTLORA_THREADS` for `--threads`.
//!
//! The words of a command line are completed by those of the variables, so that both are parsed and checked in the same way. An option on
//! the command line wins over its own variable, and over the variables of options that it conflicts with.

use super::args::Cli;
use super::command_line;
use crate::storage::{Problem, quoted, visible};
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};

/// The beginning of the names of all variables.
pub(crate) const PREFIX: &str = "CNTLORA_";

/// Variables of tests begin like this. They belong to no option.
const OF_TESTS: &str = "CNTLORA_TEST_";

/// The most typing errors in a name that is similar to another one.
const TYPING_ERRORS: usize = 2;

/// A variable that gives an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variable {
    /// Its name.
    pub(crate) name: String,
    /// Its value.
    pub(crate) value: String,
    /// The option, such as `--threads`.
    option: String,
    /// The words that it stands for.
    words: Vec<OsString>,
}

/// A command line that is completed by variables.
#[derive(Debug)]
pub(crate) struct Completed {
    /// All words.
    pub(crate) words: Vec<OsString>,
    /// The variables that were used.
    pub(crate) used: Vec<Variable>,
    /// The variables that belong to no option of any command.
    pub(crate) unknown: Vec<Unknown>,
}

/// A variable that belongs to no option.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unknown {
    name: String,
    /// A variable of nearly the same name that belongs to one.
    similar: String,
}

/// Completes a command line by the variables of this process.
///
/// # Errors
/// Usage problems for variables that cannot be read.
pub(crate) fn complete(words: &[OsString]) -> Result<Completed, Problem> {
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok().filter(|name| name.starts_with(PREFIX))?;
        Some((name, value))
    });
    complete_by(words, &variables.collect::<Vec<_>>())
}

fn complete_by(words: &[OsString], variables: &[(String, OsString)]) -> Result<Completed, Problem> {
    let plain = Completed { words: words.to_vec(), used: Vec::new(), unknown: Vec::new() };
    // An empty variable counts as not set.
    let variables: Vec<_> =
        variables.iter().filter(|(name, value)| !value.is_empty() && !name.starts_with(OF_TESTS)).collect();
    if variables.is_empty() {
        return Ok(plain);
    }
    let mut tool = Cli::command();
    tool.build();
    let all = names(&tool);
    // Programs around the tool can have variables of their own.
    let similar =
        |name: &String| all.iter().find(|known| strsim::damerau_levenshtein(known, name) <= TYPING_ERRORS);
    let unknown = variables.iter().map(|(name, _)| name).filter(|name| !all.contains(*name));
    let unknown =
        unknown.filter_map(|name| Some(Unknown { name: name.clone(), similar: similar(name)?.clone() }));
    let unknown: Vec<Unknown> = unknown.collect();
    // Help, and words that are no command line of the tool, need no variables.
    let Ok(matches) = Cli::command().ignore_errors(true).try_get_matches_from(words) else {
        return Ok(Completed { unknown, ..plain });
    };
    let Some((command, matches, path)) = leaf(&tool, &matches) else {
        return Ok(Completed { unknown, ..plain });
    };
    // The words of `record` belong to the Python package.
    if path == ["record"] {
        return Ok(Completed { unknown, ..plain });
    }
    let is_given = |id: &str| {
        matches.try_contains_id(id).is_ok() && matches.value_source(id) == Some(ValueSource::CommandLine)
    };
    let given: Vec<&Arg> = command.get_arguments().filter(|arg| is_given(arg.get_id().as_str())).collect();
    let mut used = Vec::new();
    for arg in command.get_arguments().filter(|arg| is_option(arg)) {
        let Some(name) = name_of(&tool, &path, arg) else { continue };
        let Some((_, value)) = variables.iter().find(|(variable, _)| *variable == name) else { continue };
        let id = |arg: &&Arg| arg.get_id().clone();
        let conflicts = |one: &Arg, other: &Arg| {
            command.get_arg_conflicts_with(one).iter().map(id).any(|found| found == *other.get_id())
        };
        let loses =
            |other: &&Arg| other.get_id() == arg.get_id() || conflicts(arg, other) || conflicts(other, arg);
        if !given.iter().any(loses) {
            used.push(Variable::new(name, value, arg)?);
        }
    }
    let more: Vec<OsString> = used.iter().flat_map(|variable| variable.words.clone()).collect();
    let mut words = words.to_vec();
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    words.splice(end..end, more);
    Ok(Completed { words, used, unknown })
}

impl Variable {
    /// The words of an option.
    fn new(name: String, value: &OsStr, arg: &Arg) -> Result<Self, Problem> {
        let refused = |what: String| Problem::usage(format!("the variable {name}: {what}"));
        let Some(value) = value.to_str() else {
            return Err(refused(format!("expected UTF-8, found {}", quoted(&value.to_string_lossy()))));
        };
        let long = arg.get_long().unwrap_or_default();
        let option = format!("--{long}");
        let with = |value: &str| OsString::from(format!("{option}={value}"));
        let words = match arg.get_action() {
            ArgAction::SetTrue => match value.to_lowercase().as_str() {
                "1" | "true" | "yes" | "on" => vec![option.clone().into()],
                "0" | "false" | "no" | "off" => Vec::new(),
                _ => {
                    let what = format!("expected true or false for {option}, found {}", quoted(value));
                    return Err(refused(what));
                }
            },
            ArgAction::Count => match value.parse::<u8>() {
                Ok(count) if count <= 9 => vec![option.clone().into(); count.into()],
                _ => {
                    let what = format!("expected a number from 0 to 9 for {option}, found {}", quoted(value));
                    return Err(refused(what));
                }
            },
            // Several values are separated as the words of a shell.
            ArgAction::Append => {
                let values = shlex::split(value);
                let values =
                    values.ok_or_else(|| refused(format!("a quote is not closed in {}", quoted(value))))?;
                values.iter().map(|value| with(value)).collect()
            }
            _ => vec![with(value)],
        };
        Ok(Self { option, value: value.into(), words, name })
    }

    /// The assignment before a command line, as a shell reads it.
    pub(crate) fn assignment(&self) -> String {
        format!("{}={}", self.name, command_line::join([&self.value]))
    }
}

/// The help that names the variables that options come from.
pub(crate) fn origin<'a>(used: impl IntoIterator<Item = &'a Variable>) -> Option<String> {
    let one = |variable: &Variable| format!("{} comes from the variable {}", variable.option, variable.name);
    let origins: Vec<String> = used.into_iter().map(one).collect();
    (!origins.is_empty()).then(|| origins.join(", "))
}

/// The help that names the variables of the options that an error in the arguments is about.
pub(crate) fn origin_of_argument(error: &clap::Error, used: &[Variable]) -> Option<String> {
    let named: Vec<&String> = [ContextKind::InvalidArg, ContextKind::PriorArg]
        .into_iter()
        .flat_map(|kind| match error.get(kind) {
            Some(ContextValue::String(argument)) => vec![argument],
            Some(ContextValue::Strings(several)) => several.iter().collect(),
            _ => Vec::new(),
        })
        .collect();
    let is_named = |variable: &&Variable| {
        named.iter().any(|argument| argument.split([' ', '=', '[']).next() == Some(variable.option.as_str()))
    };
    origin(used.iter().filter(is_named))
}

/// The warning about variables that belong to no option, but have nearly the name of one.
pub(crate) fn warning(unknown: &[Unknown]) -> Option<String> {
    let one = |Unknown { name, similar }: &Unknown| {
        format!("{} has no effect; a similar variable is {similar}", visible(name))
    };
    (!unknown.is_empty()).then(|| unknown.iter().map(one).collect::<Vec<_>>().join("\n"))
}

/// True for options. Neither help nor the version has a variable.
fn is_option(arg: &Arg) -> bool {
    arg.get_long().is_some()
        && !matches!(
            arg.get_action(),
            ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
        )
}

/// The command that was called, its matches, and its names below that of the tool.
fn leaf<'c, 'm>(
    tool: &'c Command,
    matches: &'m ArgMatches,
) -> Option<(&'c Command, &'m ArgMatches, Vec<&'c str>)> {
    let (mut command, mut matches, mut path) = (tool, matches, Vec::new());
    while let Some((name, inner)) = matches.subcommand() {
        command = command.find_subcommand(name)?;
        matches = inner;
        path.push(command.get_name());
    }
    (!command.has_subcommands()).then_some((command, matches, path))
}

/// The names of the variables of all options.
fn names(tool: &Command) -> BTreeSet<String> {
    let of_leaf = |(path, command): (Vec<&str>, &Command)| {
        let options = command.get_arguments().filter(|arg| is_option(arg));
        options.filter_map(|arg| name_of(tool, &path, arg)).collect::<Vec<_>>()
    };
    leaves(tool, &[]).into_iter().flat_map(of_leaf).collect()
}

/// The commands without subcommands, in order, with their names below that of the tool.
fn leaves<'c>(command: &'c Command, path: &[&'c str]) -> Vec<(Vec<&'c str>, &'c Command)> {
    if !command.has_subcommands() {
        return vec![(path.to_vec(), command)];
    }
    let below = command.get_subcommands().filter(|below| below.get_name() != "help");
    below.flat_map(|below| leaves(below, &[path, &[below.get_name()]].concat())).collect()
}

/// The name of the variable of an option of a command: `CNTLORA_` and the name of the option. If an earlier command has an option of
/// the same name with another meaning, the name of the command comes in between, so that a variable for one command does not change
/// another one.
pub(crate) fn name_of(tool: &Command, path: &[&str], arg: &Arg) -> Option<String> {
    let long = arg.get_long().filter(|_| is_option(arg))?;
    let meaning = |arg: &Arg| arg.get_long_help().or(arg.get_help()).map(ToString::to_string);
    let mut same_name = leaves(tool, &[]).into_iter().flat_map(|(_, command)| command.get_arguments());
    let first = same_name.find(|other| other.get_long() == Some(long))?;
    Some(match meaning(first) == meaning(arg) {
        true => usual_name(arg),
        false => named(path.iter().copied().chain([long])),
    })
}

/// The name of the variable of an option that has one meaning in all commands.
pub(crate) fn usual_name(arg: &Arg) -> String {
    named(arg.get_long())
}

fn named<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<&str> = words.into_iter().collect();
    format!("{PREFIX}{}", words.join("_").replace('-', "_").to_uppercase())
}

#[cfg(test)]
mod tests;
