//! The page of all options, `docs/options.md`, from the definitions of the commands.

use super::variables;
use clap::{Arg, Command};
use std::collections::BTreeMap;
use std::fmt::Write as _;

const HEAD: &str = "\
# Options

`cntlora generate options` prints this page, from the definitions of the commands. Do not change it by hand.

`cntlora COMMAND -h` shows the common options of a command, and `cntlora COMMAND --help` shows all options.

Environment variables can give options too: `CNTLORA_MAX_RANK=32` stands for `--max-rank 32`. The name is `CNTLORA_` and the name of the
option in capitals, with `_` for `-`. If an option has another meaning than that of the same name in an earlier command on this page, its
variable is named in its row, so that a variable for one command does not change another one.

- An option on the command line wins over its variable, and over variables of options that it cannot be used with.
- Options without a value take `true` or `false`, and `--verbose` takes a number. Several values are separated like the words of a shell:
  `CNTLORA_ACTIVATIONS='monday \"two words\"'`. An empty variable counts as not set.
- Values that cannot be used are refused with the name of the variable. Reports show the variables before the command.
- The functions of the Python package, and `cntlora record`, do not read these variables. Variables that begin with `CNTLORA_TEST_` belong
  to the tests of the tool.

";

/// The page for the [built](Command::build) definition of the tool.
pub(crate) fn page(mut tool: Command) -> String {
    let whole = tool.clone();
    let mut page = HEAD.to_owned();
    page.push_str("## All commands\n\nEvery command takes these options:\n\n");
    let global: Vec<String> =
        tool.get_arguments().filter(|arg| arg.is_global_set()).map(|arg| row(&whole, "", arg)).collect();
    table(&mut page, &global);
    section(&mut page, (&whole, &mut tool), "", &mut Known::new());
    page
}

/// The options that are on the page so far: row, command and spelling.
type Known = Vec<(String, String, String)>;

/// Writes the sections of the subcommands of a command of the tool, or of the command itself if it has none.
fn section(page: &mut String, (tool, command): (&Command, &mut Command), name: &str, known: &mut Known) {
    if command.has_subcommands() {
        for part in command.get_subcommands_mut().filter(|part| part.get_name() != "help") {
            let name = format!("{name} {}", part.get_name());
            section(page, (tool, part), name.trim_start(), known);
        }
        return;
    }
    let usage = command.render_usage().to_string();
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    _ = write!(page, "\n## {name}\n\n{about}\n\n    {}\n", usage.trim_start_matches("Usage: "));

    let mut own: BTreeMap<usize, (Option<&str>, Vec<String>)> = BTreeMap::new();
    let mut shared: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut new = Known::new();
    let mut arguments: Vec<&Arg> = command.get_arguments().filter(|arg| is_own(arg)).collect();
    let headings: Vec<_> = arguments.iter().map(|arg| arg.get_help_heading()).collect();
    // A heading is placed with its first argument.
    let place = |arg: &Arg| {
        headings.iter().position(|heading| *heading == arg.get_help_heading()).unwrap_or_default()
    };
    arguments.sort_by_key(|arg| (place(arg), !arg.is_positional(), arg.get_display_order()));
    for arg in arguments {
        let row = row(tool, name, arg);
        match known.iter().find(|(known, _, _)| *known == row && !arg.is_positional()) {
            Some((_, command, spelling)) => shared.entry(command).or_default().push(spelling.clone()),
            None => {
                new.push((row.clone(), name.to_owned(), format!("`{arg}`")));
                own.entry(place(arg)).or_insert((arg.get_help_heading(), Vec::new())).1.push(row);
            }
        }
    }
    for (heading, rows) in own.values() {
        match heading {
            Some(heading) => _ = write!(page, "\n### {name}: {heading}\n\n"),
            None => page.push('\n'),
        }
        table(page, rows);
    }
    for (command, options) in &shared {
        let anchor = command.replace(' ', "-");
        let left_out =
            known.iter().filter(|(_, place, spelling)| place == *command && !options.contains(spelling));
        let left_out = left_out.filter(|(_, _, spelling)| new.iter().all(|(_, _, new)| new != spelling));
        let left_out: Vec<&str> = left_out.map(|(_, _, spelling)| spelling.as_str()).collect();
        // The shorter of the two lists.
        let (all, list) = match left_out.len() {
            0 => ("all options", String::new()),
            few if few < options.len() => ("all options", format!(", except {}", left_out.join(", "))),
            _ => ("these options", format!(": {}", options.join(", "))),
        };
        _ = writeln!(page, "\nAnd {all} of [{command}](#{anchor}){list}.");
    }
    known.extend(new);
}

/// Returns whether an option is neither `--help` nor an option of all commands.
fn is_own(arg: &Arg) -> bool {
    !arg.is_global_set() && arg.get_id() != "help" && arg.get_id() != "version"
}

fn table(page: &mut String, rows: &[String]) {
    page.push_str("| option | effect | default |\n|---|---|---|\n");
    rows.iter().for_each(|row| page.push_str(row));
}

/// The row of an argument of a command.
fn row(tool: &Command, command: &str, arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    // Some defaults are in the text, because they depend on another option.
    let (mut text, in_text) =
        match help.split_once(" [default: ").and_then(|(before, rest)| Some((before, rest.split_once(']')?)))
        {
            Some((before, (default, after))) => (format!("{before}{after}"), default.to_owned()),
            None => (help, String::new()),
        };
    let mut plain = Vec::new();
    for value in arg.get_possible_values().iter().filter(|_| arg.get_action().takes_values()) {
        match value.get_help() {
            Some(help) => _ = write!(text, "\n`{}`: {help}", value.get_name()),
            None => plain.push(format!("`{}`", value.get_name())),
        }
    }
    if !plain.is_empty() {
        _ = write!(text, "\n{}", plain.join(", "));
    }
    let path: Vec<&str> = command.split_whitespace().collect();
    if let Some(variable) =
        variables::name_of(tool, &path, arg).filter(|name| *name != variables::usual_name(arg))
    {
        _ = write!(text, "\nVariable: `{variable}`");
    }
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let default = if defaults.is_empty() || !arg.get_action().takes_values() {
        in_text
    } else {
        format!("`{}`", defaults.join(" "))
    };
    let spelling = match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(_)) => format!("`-{short}`, `{arg}`"),
        _ => format!("`{arg}`"),
    };
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let cells = [spelling, lines.join("<br>"), default].map(|cell| cell.replace('|', "\\|"));
    format!("| {} |\n", cells.join(" | ")).replace("|  |", "| |")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Cli;
    use crate::cli::generate::tool;
    use clap::Parser;

    /// The page in `docs` is the generated page. `UPDATE_EXPECT=1 cargo test` refreshes it.
    #[test]
    fn the_page_is_up_to_date() {
        expect_test::expect_file!["../../docs/options.md"].assert_eq(&page(tool()));
    }

    /// Every option of every command is on the page, and no row is repeated.
    #[test]
    fn the_page_is_complete() {
        let page = page(tool());
        assert!(
            page.contains("\nAnd all options of [init](#init), except `--dry-run`, `--shard <I/N>`.\n"),
            "plan takes the options of init"
        );
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `-")).collect();
        let mut different = rows.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(rows.len(), different.len());
        for command in tool().get_subcommands().filter(|command| !command.has_subcommands()) {
            for arg in command.get_arguments().filter(|arg| is_own(arg)) {
                let name = command.get_name();
                assert!(page.contains(&format!("`{arg}`")), "{name} {arg}");
            }
        }
    }

    #[test]
    fn commands_in_the_documentation_parse() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
        let mut count = 0;
        // The page of options shows usages, not commands. Folders hold drawings.
        let pages = docs.filter(|path| path.is_file() && !path.ends_with("options.md"));
        for path in pages.chain([root.join("README.md")]) {
            let page = std::fs::read_to_string(&path).unwrap();
            for line in page.lines().filter_map(|line| line.strip_prefix("    cntlora ")) {
                let words = line.split(" #").next().unwrap_or_default().split_whitespace();
                let parsed = Cli::try_parse_from(["cntlora"].into_iter().chain(words));
                assert!(parsed.is_ok(), "{}: cntlora {line}", path.display());
                count += 1;
            }
        }
        assert!(count > 10, "only {count} commands were found");
    }
}
