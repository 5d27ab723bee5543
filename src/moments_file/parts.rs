//! The parts of divided work: each part must be given exactly once.

use super::{MomentsFile, Part};
use crate::storage::{Problem, Problems, quoted};
use std::collections::BTreeMap;
use std::path::Path;

/// Checks that parts 0 to `count - 1` are all given, each once. `parts` holds the number and the path of each part that is given.
///
/// # Errors
/// A data problem for each part that is given twice, and one for all missing parts together.
pub(crate) fn check_all_once<'a>(
    count: u64,
    parts: impl Iterator<Item = (u64, &'a Path)>,
) -> Result<(), Problems> {
    const SHOWN: usize = 10;
    let mut problems = Problems::default();
    let mut found: BTreeMap<u64, &Path> = BTreeMap::new();
    for (index, path) in parts {
        if let Some(earlier) = found.insert(index, path) {
            let earlier = quoted(&earlier.to_string_lossy());
            let what = format!("part {index}/{count} is given twice, also as {earlier}");
            problems.push(Problem::data(what).in_file(path).help("remove one of the two"));
        }
    }
    let missing = count.saturating_sub(found.len() as u64);
    if missing > 0 {
        // The loop ends after SHOWN missing parts, however large the count in the file is.
        let shown = (0..count).filter(|index| !found.contains_key(index)).take(SHOWN);
        let mut names: Vec<String> = shown.map(|index| index.to_string()).collect();
        if missing > SHOWN as u64 {
            names.push(format!("and {} more", missing - SHOWN as u64));
        }
        let what = format!("{missing} of {count} parts missing (numbered from 0): {}", names.join(", "));
        problems.push(
            Problem::data(what)
                .help("make the missing parts by the same command with --shard, and give all of them"),
        );
    }
    problems.or_ok(())
}

/// Sorts files by their part number where they are parts of a measurement. Other files keep their order.
///
/// # Errors
/// Data problems for parts that are missing or given twice, for parts of different measurements, and for parts beside other files.
pub(super) fn in_order(mut files: Vec<MomentsFile>) -> Result<Vec<MomentsFile>, Problems> {
    let Some((first, Part { count, whole, .. })) =
        files.iter().find_map(|file| Some((file.source.path(), file.content.part.as_ref()?)))
    else {
        return Ok(files);
    };
    let first = quoted(&first.to_string_lossy());
    let mut problems = Problems::default();
    for file in &files {
        let refuse = |what: String| Problem::data(what).in_file(file.source.path());
        match &file.content.part {
            None => problems.push(
                refuse(format!("is a whole measurement, but {first} is a part of one"))
                    .help("merge the parts first, and then the results"),
            ),
            Some(part) if (part.count, &part.whole) != (*count, whole) => problems.push(
                refuse(format!("is a part of another measurement than {first}"))
                    .help("measure all parts of the same inputs with the same options and number of parts"),
            ),
            Some(_) => {}
        }
    }
    problems.or_ok(())?;
    let index = |file: &MomentsFile| file.content.part.as_ref().map_or(0, |part| part.index);
    check_all_once(*count, files.iter().map(|file| (index(file), file.source.path())))?;
    files.sort_by_key(index);
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn every_part_must_be_given_once() {
        let check = |count, indices: &[u64]| {
            let paths: Vec<_> = indices.iter().enumerate().map(|(at, _)| format!("f{at}")).collect();
            let parts = indices.iter().zip(&paths).map(|(index, path)| (*index, Path::new(path)));
            check_all_once(count, parts)
        };
        assert!(check(3, &[2, 0, 1]).is_ok());
        expect![[r#"
            f1: part 1/3 is given twice, also as "f0"
            2 of 3 parts missing (numbered from 0): 0, 2"#]]
        .assert_eq(&check(3, &[1, 1]).unwrap_err().to_string());
        expect!["18446744073709551614 of 18446744073709551615 parts missing (numbered from 0): 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, and 18446744073709551604 more"].assert_eq(&check(u64::MAX, &[1]).unwrap_err().to_string());
    }
}
