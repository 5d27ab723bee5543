//! The parts of a measurement that was divided: all of them, each once, and in their order.

use super::{MomentsFile, Part};
use crate::storage::{Problem, Problems, quoted};
use std::collections::BTreeMap;

/// Files in the order given or, where they are parts, in that of the parts.
///
/// # Errors
/// Data problems for parts that are missing or given twice, for parts of different measurements, and for parts beside other files.
pub(super) fn in_order(mut files: Vec<MomentsFile>) -> Result<Vec<MomentsFile>, Problems> {
    let Some((first, Part { count, whole, .. })) =
        files.iter().find_map(|file| Some((file, file.content.part.clone()?)))
    else {
        return Ok(files);
    };
    let shown = |file: &MomentsFile| quoted(&file.source.path().to_string_lossy());
    let mut problems = Problems::default();
    let mut found: BTreeMap<u64, &MomentsFile> = BTreeMap::new();
    for file in &files {
        let refuse = |what: String| Problem::data(what).in_file(file.source.path());
        match &file.content.part {
            None => problems.push(
                refuse(format!("expected a part of the measurement of {}, found a whole one", shown(first)))
                    .help("merge the parts first, and then the results"),
            ),
            Some(part) if (part.count, &part.whole) != (count, &whole) => problems.push(
                refuse(format!(
                    "expected a part of the measurement of {}, found one of another",
                    shown(first)
                ))
                .help("measure all parts of the same inputs with the same options and number of parts"),
            ),
            Some(part) => {
                if let Some(earlier) = found.insert(part.index, file) {
                    let what =
                        format!("part {} of {count} is given twice, also as {}", part.index, shown(earlier));
                    problems.push(refuse(what).help("leave one of the two out"));
                }
            }
        }
    }
    if found.len() as u64 != count && problems.0.is_empty() {
        problems.push(missing_parts(&found, count).in_file(first.source.path()));
    }
    problems.or_ok(())?;
    files.sort_by_key(|file| file.content.part.as_ref().map(|part| part.index));
    Ok(files)
}

/// Says which parts are not there; parts are counted from 0.
fn missing_parts(found: &BTreeMap<u64, &MomentsFile>, count: u64) -> Problem {
    const SHOWN: usize = 10;
    let missing = count - found.len() as u64;
    // No more steps than there are parts to find and to show, whatever the number in the file.
    let shown = (0..count).filter(|index| !found.contains_key(index)).take(SHOWN);
    let mut names: Vec<String> = shown.map(|index| index.to_string()).collect();
    if missing > SHOWN as u64 {
        names.push(format!("and {} more", missing - SHOWN as u64));
    }
    let are = if missing == 1 { "is" } else { "are" };
    let what = format!("of its {count} parts, counted from 0, {missing} {are} missing: {}", names.join(", "));
    Problem::data(what).help("make the missing parts by the same command with --shard, and give all of them")
}
