//! Dry runs: a command makes all its checks, and prints what it would do and write. It writes nothing.

use super::terminal::Terminal;
use crate::storage::visible;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The result of a dry run.
#[derive(Debug, Serialize)]
struct DryRun<'a, T> {
    /// The work that the command would do.
    plan: &'a T,
    /// The files and folders that it would write.
    writes: Vec<Written>,
}

/// A file or folder that a command would write.
#[derive(Debug, Serialize)]
struct Written {
    path: PathBuf,
    /// True if something is in its place now.
    exists: bool,
}

/// Prints the result of a dry run: the plan, and the files and folders that the command would write.
pub(crate) fn print<T: Serialize>(
    plan: &T,
    text: impl FnOnce(&T) -> String,
    paths: &[&Path],
    terminal: &Terminal,
) -> anyhow::Result<()> {
    let written = |path: &&Path| Written { path: (*path).to_owned(), exists: path.exists() };
    let result = DryRun { plan, writes: paths.iter().map(written).collect() };
    terminal.result(&result, |result| render(&text(result.plan), &result.writes))?;
    Ok(())
}

fn render(plan: &str, writes: &[Written]) -> String {
    let mut text =
        format!("{plan}\nDry run: nothing was written. Without --dry-run, the command would write\n");
    for Written { path, exists } in writes {
        let replaced = if *exists { ", in place of what is there" } else { "" };
        let _ = writeln!(text, "  {}{replaced}", visible(&path.to_string_lossy()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn existing_outputs_are_named() {
        let written = |path: &str, exists| Written { path: path.into(), exists };
        expect![[r#"
            2 layers

            Dry run: nothing was written. Without --dry-run, the command would write
              adapter
              adapter/base, in place of what is there
        "#]]
        .assert_eq(&render("2 layers\n", &[written("adapter", false), written("adapter/base", true)]));
    }
}
