//! Tests of the README and the pages in `docs`: their length and their links.

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
