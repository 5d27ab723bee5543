//! Manual pages, shell completions and the page of all options, from the same description as `--help`.

use super::args::{Cli, GenerateCommand};
use super::options_page;
use super::prepare::{create_folder, refuse_existing};
use super::slurm;
use super::terminal::Terminal;
use clap::CommandFactory;
use clap_mangen::Man;
use cntlora::storage::{Problems, write_atomically};
use std::path::Path;

/// Generates what is asked for.
pub fn run(command: &GenerateCommand, terminal: &Terminal) -> anyhow::Result<()> {
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

/// The tool with its global options passed on and its subcommands named in full.
pub(super) fn tool() -> clap::Command {
    let mut tool = Cli::command();
    tool.build();
    tool
}

/// A page of the tool and of each of its commands, by file name.
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

    /// What is there is replaced only by force.
    #[test]
    fn pages_are_replaced_only_by_force() {
        let folder = tempfile::tempdir().unwrap();
        let page = [("cntlora.1".to_owned(), b"new".to_vec())];
        std::fs::write(folder.path().join("cntlora.1"), "old").unwrap();
        let problems = write_pages(folder.path(), &page, false).unwrap_err();
        assert!(problems.0[0].next_step().unwrap().contains("--force"), "{problems}");
        assert_eq!(std::fs::read(folder.path().join("cntlora.1")).unwrap(), b"old");
        write_pages(folder.path(), &page, true).unwrap();
        assert_eq!(std::fs::read(folder.path().join("cntlora.1")).unwrap(), b"new");
    }

    /// One page per command, none empty, and each says how the command ends.
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
