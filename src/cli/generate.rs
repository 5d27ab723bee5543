//! The command generate: manual pages, shell completions and the page of all options, from the definitions of the commands.

use super::args::{Cli, GenerateCommand};
use super::options_page;
use super::prepare::{create_folder, refuse_existing};
use super::slurm;
use super::terminal::Terminal;
use crate::storage::{Problems, write_atomically};
use clap::CommandFactory;
use clap_mangen::Man;
use std::path::Path;

/// Generates a page, a script or completions.
pub(crate) fn run(command: &GenerateCommand, terminal: &Terminal) -> anyhow::Result<()> {
    match command {
        GenerateCommand::Man { out: Some(folder), force } => {
            let pages = pages()?;
            write_pages(folder, &pages, *force)?;
            terminal.note(&format!("{} pages in {}", pages.len(), folder.display()));
        }
        GenerateCommand::Man { out: None, .. } => terminal.data(&rendered(&Man::new(tool()))?)?,
        GenerateCommand::Slurm(args) => slurm::run(args, terminal)?,
        GenerateCommand::Options => terminal.data(options_page::page(tool()).as_bytes())?,
        GenerateCommand::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "cntlora", &mut script);
            terminal.data(&script)?;
        }
    }
    Ok(())
}

/// The definition of the tool, with global options in every command and full names of subcommands.
pub(crate) fn tool() -> clap::Command {
    let mut tool = Cli::command();
    tool.build();
    tool
}

/// The pages of the tool and of each command, by file name.
fn pages() -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut pages = Vec::new();
    let mut waiting = vec![tool()];
    while let Some(command) = waiting.pop() {
        waiting.extend(command.get_subcommands().filter(|sub| sub.get_name() != "help").cloned());
        let page = Man::new(command);
        pages.push((page.get_filename(), rendered(&page)?));
    }
    pages.sort();
    Ok(pages)
}

fn rendered(page: &Man) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    page.render(&mut text)?;
    Ok(text)
}

fn write_pages(folder: &Path, pages: &[(String, Vec<u8>)], force: bool) -> Result<(), Problems> {
    let mut problems = Problems::default();
    for (name, _) in pages {
        problems.collect(refuse_existing(&folder.join(name), force));
    }
    problems.or_ok(())?;
    create_folder(folder)?;
    for (name, page) in pages {
        write_atomically(&folder.join(name), page)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_replaced_only_if_forced() {
        let folder = tempfile::tempdir().unwrap();
        let page = [("cntlora.1".to_owned(), b"new".to_vec())];
        std::fs::write(folder.path().join("cntlora.1"), "old").unwrap();
        let problems = write_pages(folder.path(), &page, false).unwrap_err();
        assert!(problems.to_string().ends_with("cntlora.1: this file exists"), "{problems}");
        assert_eq!(std::fs::read(folder.path().join("cntlora.1")).unwrap(), b"old");
        write_pages(folder.path(), &page, true).unwrap();
        assert_eq!(std::fs::read(folder.path().join("cntlora.1")).unwrap(), b"new");
    }

    /// There is one page per command, and none is empty.
    #[test]
    fn every_command_has_a_page() {
        let pages = pages().unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for name in ["cntlora.1", "cntlora-init.1", "cntlora-verify.1", "cntlora-generate-man.1"] {
            assert!(names.contains(&name), "{name} is missing from {names:?}");
        }
        for (name, page) in &pages {
            assert!(page.starts_with(b".ie"), "{name} is not a manual page");
        }
    }
}
