//! Tests of the README and the pages in `docs`: their length, their links, and their tables of methods.

use cntlora::method::{Method, RankRule};
use std::fs;
use std::path::{Path, PathBuf};

/// Returns the path and text of each page in `docs`, and of the README at the end.
fn pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let paths = docs
        .filter(|path| path.extension().is_some_and(|ending| ending == "md"))
        .chain([root.join("README.md")]);
    paths.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// Returns the anchors that GitHub makes for the headings of a page.
fn anchors(page: &str) -> Vec<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().chars();
        kept.filter(|char| char.is_alphanumeric() || " -_".contains(*char))
            .collect::<String>()
            .to_lowercase()
            .replace(' ', "-")
    };
    headings.map(anchor).collect()
}

/// The README stays short, so that people read it.
#[test]
fn the_readme_is_short() {
    let bytes = fs::metadata(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap().len();
    assert!(bytes <= 11_000, "{bytes} bytes: move details to a page in docs");
}

/// Every link to a file of the project, or to a heading in a file, has a target. The README links to every page.
#[test]
fn links_lead_to_existing_files_and_headings() {
    let pages = pages();
    for (path, page) in &pages {
        for target in page.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(file.exists(), "{}: {target}", path.display());
            let found = heading.is_empty()
                || anchors(&fs::read_to_string(&file).unwrap()).iter().any(|anchor| anchor == heading);
            assert!(found, "{}: no heading for {target}", path.display());
        }
    }
    let (_, readme) = pages.last().unwrap();
    for (path, _) in &pages {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(
            name == "README.md" || readme.contains(&format!("(docs/{name})")),
            "the README does not link to {name}"
        );
    }
}

/// The cells of the rows of the table below a heading of a page, without the heading of the table.
fn table(page: &str, heading: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
    let (_, below) = text.split_once(&format!("\n{heading}\n")).expect(heading);
    let rows =
        below.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    rows.skip(2).map(cells).collect()
}

/// The words in backquotes.
fn words(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The table of methods says of each method what the program itself says: the activations, the starts and the choices of ranks.
#[test]
fn the_table_of_methods_is_that_of_the_program() {
    let rows = table("docs/methods.md", "## Other methods, to compare");
    let mut left: Vec<&str> = Method::ALL.iter().map(|method| method.name()).collect();
    for row in &rows {
        let [name, _, uses, starts, ranks, _] = &row[..] else { panic!("{row:?}") };
        let [name] = words(name)[..] else { panic!("{name}") };
        let method: Method = name.parse().unwrap();
        left.retain(|other| *other != name);
        let reads = uses.replace("pre-training activations", "");
        let reads_target = method.reads_activations() && !method.reads_only_source();
        assert_eq!(reads.contains("activations"), reads_target, "{name}");
        assert_eq!(uses.contains("pre-training activations"), method.reads_source(), "{name}");
        assert_eq!(uses.contains("perhaps"), method.reads_source() && !method.needs_source(), "{name}");
        assert_eq!(uses.contains("alone"), method.reads_only_source(), "{name}");
        let wanted: Vec<&str> = method.starts().iter().map(|start| start.name()).collect();
        assert_eq!(words(starts), wanted, "{name}");
        let wanted: &[&str] = match method.rank_rule() {
            RankRule::Spectrum => &["--rank", "--energy", "--budget"],
            RankRule::Shared | RankRule::Proportional => &["--rank", "--rho"],
            RankRule::Fixed => &["--rank"],
        };
        assert_eq!(words(ranks), wanted, "{name}");
        assert_eq!(ranks.contains("effective rank"), method.rank_rule() == RankRule::Proportional, "{name}");
        assert_eq!(ranks.contains("explained variance"), method.rank_rule() == RankRule::Shared, "{name}");
    }
    assert_eq!(left, Vec::<&str>::new(), "methods that the table does not have");
}

/// The README names every method once, in the row of the data that it needs.
#[test]
fn the_readme_lists_the_methods_by_their_data() {
    let rows = table("README.md", "## Which method");
    let kind = |method: Method| match (method.reads_activations(), method.needs_source()) {
        _ if method.reads_only_source() => 3,
        (false, _) => 0,
        (true, false) => 1,
        (true, true) => 2,
    };
    for (index, row) in rows.iter().enumerate() {
        let mut named = words(&row[1]);
        named.sort_unstable();
        let of_kind = Method::ALL.into_iter().filter(|method| kind(*method) == index);
        let mut wanted: Vec<&str> = of_kind.map(|method| method.name()).collect();
        wanted.sort_unstable();
        assert_eq!(named, wanted, "{}", row[0]);
    }
    assert_eq!(rows.len(), 4);
}
