//! The layout of help: `-h` shows the common options on one screen, `--help` all options with a line or two each. The manual pages and
//! `docs/options.md` have the full explanations.

use clap::{Arg, ArgAction, Command};

/// The beginning of an example.
const EXAMPLE: &str = "  cntlora ";

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    data was refused
  2    the command or its options cannot be carried out
  3    reading, writing or the environment failed
  4    a bug of this program
  130  interrupted";

/// The end of `--help`, with command lines as examples.
pub(super) fn end(examples: &[&str]) -> String {
    let examples: String = examples.iter().map(|words| format!("{EXAMPLE}{words}\n")).collect();
    format!(
        "Examples:\n{examples}\nEvery option and word explained: docs/options.md, or `cntlora generate options`\n\
         Options from environment variables: CNTLORA_THREADS=4 for --threads 4\n\n{EXIT_CODES}"
    )
}

/// Lays out the help of the tool and of its commands. If `all`, help shows all options, for `--help`; otherwise the common ones and one
/// example, for `-h`.
pub(crate) fn laid_out(command: Command, all: bool) -> Command {
    let name = command.get_name().to_owned();
    lay_out(command, &name, all)
}

fn lay_out(command: Command, path: &str, all: bool) -> Command {
    // clap's own long help has several lines per option and per word.
    let help = Arg::new("help").short('h').long("help").action(ArgAction::HelpShort);
    let help = help.help("Print help: -h for the common options, --help for all").help_heading("Terminal");
    let mut command = command.disable_help_flag(true).arg(help);
    let end = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    if all {
        // The first paragraph is the line at the top.
        let about = command.get_long_about().map(ToString::to_string).unwrap_or_default();
        let more = about.split_once("\n\n").map(|(_, more)| format!("{more}\n\n")).unwrap_or_default();
        command = command.mut_args(|arg| arg.hide_short_help(false)).after_help(more + &end);
    } else if let Some(example) = end.lines().find_map(|line| line.strip_prefix(EXAMPLE)) {
        command = command.after_help(format!(
            "Example: cntlora {example}\nAll options, more examples and the exit codes: {path} --help"
        ));
    }
    command.mut_subcommands(|part| {
        let path = format!("{path} {}", part.get_name());
        lay_out(part, &path, all)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn help_explains_its_own_option() {
        let help = laid_out(Command::new("tool"), false).render_help().to_string();
        expect![[r#"
            Usage: tool

            Terminal:
              -h, --help  Print help: -h for the common options, --help for all
        "#]]
        .assert_eq(&help);
    }
}
