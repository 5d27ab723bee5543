//! A saved report as a page.

use super::args::ReportArgs;
use super::prepare::{check_page, create_parent};
use super::terminal::Terminal;
use cntlora::report::{REPORT_FILE, Report, html};
use cntlora::storage::{Access, Problem, Problems, Source, quoted, write_atomically};
use std::path::Path;

/// Files of JSON that are larger are not ours.
const LARGEST: u64 = 1 << 28;

/// Reads the report of an adapter, and writes its page.
pub fn run(args: &ReportArgs, terminal: &Terminal) -> anyhow::Result<()> {
    let mut problems = Problems::default();
    problems.collect(check_page(&args.out, args.force));
    let report = problems.collect(read(&args.report));
    problems.or_ok(())?;
    if let Some(report) = report {
        write_page(&args.out, &report, terminal)?;
    }
    Ok(())
}

/// Writes the page of a report.
fn write_page(path: &Path, report: &Report, terminal: &Terminal) -> Result<(), Problem> {
    create_parent(path)?;
    write_atomically(path, html::render(report).as_bytes())?;
    terminal.note(&page_written(path));
    Ok(())
}

/// Where to find a page.
pub fn page_written(path: &Path) -> String {
    format!("The report is in {}", quoted(&path.display().to_string()))
}

/// The report in a file, or beside an adapter.
fn read(path: &Path) -> Result<Report, Problem> {
    let path = if path.is_dir() { path.join(REPORT_FILE) } else { path.into() };
    let source = Source::open(&path, Access::Auto)?;
    let refused = |found: String| {
        Problem::data(format!("expected the report of a run, found {found}")).in_file(&path).help(format!(
            "give an adapter folder of this version of cntlora, or its {REPORT_FILE}, or what init printed with --json"
        ))
    };
    if source.length() > LARGEST {
        return Err(refused(format!("{} bytes", source.length())));
    }
    let bytes = source.read_vec(0, source.length())?;
    serde_json::from_slice(&bytes).map_err(|error| refused(format!("other JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// What is no report is refused, with what is.
    #[test]
    fn other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(REPORT_FILE), "[]").unwrap();
        let problem = read(folder.path()).unwrap_err();
        assert!(problem.to_string().contains("expected the report of a run, found other JSON"), "{problem}");
        assert!(problem.next_step().unwrap().contains("report.json"));
    }
}
