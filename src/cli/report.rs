//! The command report.

use super::args::ReportArgs;
use super::prepare::{check_page, create_parent};
use super::terminal::Terminal;
use crate::report::{REPORT_FILE, Report, html};
use crate::storage::{Access, Problem, Problems, Source, quoted, read_json, write_atomically};
use std::path::Path;

/// Reads the report of an adapter, and writes its page.
pub(crate) fn run(args: &ReportArgs, terminal: &Terminal) -> anyhow::Result<()> {
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

/// The message after a page was written.
pub(crate) fn page_written(path: &Path) -> String {
    format!("The report is in {}", quoted(&path.display().to_string()))
}

/// The report in a file, or in an adapter folder.
fn read(path: &Path) -> Result<Report, Problem> {
    let path = if path.is_dir() { path.join(REPORT_FILE) } else { path.into() };
    let report = read_json(&Source::open(&path, Access::Auto)?, "report");
    report.map_err(|problem| {
        problem.help(format!(
            "give an adapter folder of this version of cntlora, its {REPORT_FILE}, or the output of init --json"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use std::fs;

    #[test]
    fn other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(REPORT_FILE), "{}").unwrap();
        let problem = read(folder.path()).unwrap_err();
        let text = format!("{problem}; help: {}", problem.next_step().unwrap());
        let newer = read_json::<Report>(
            &Source::from_bytes("r.json", br#"{"schema_version": 2}"#.to_vec()),
            "report",
        );
        let older = read_json::<Report>(
            &Source::from_bytes("r.json", br#"{"schema_version": 0}"#.to_vec()),
            "report",
        );
        let refusals = [newer, older].map(|report| report.unwrap_err().to_string());
        let texts = refusals.map(|text| text.split(" at line").next().unwrap().to_owned());
        expect![[r#"
            r.json: invalid report: unsupported schema_version 2: this version of cntlora reads 1
            r.json: invalid report: unsupported schema_version 0: this version of cntlora reads 1"#]]
        .assert_eq(&texts.join("\n"));
        expect!["FOLDER/report.json: invalid report: missing field `schema_version` at line 1 column 2; help: give an adapter folder of this version of cntlora, its report.json, or the output of init --json"].assert_eq(&text.replace(folder.path().to_str().unwrap(), "FOLDER"));
    }
}
