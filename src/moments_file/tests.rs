//! What is written reads back; what is damaged, newer or foreign is refused in words; files add up, and nothing counts twice.

use super::*;
use crate::random::gaussian;
use crate::simd::Precision;
use crate::storage::{Category, Problems, safetensors};
use quickcheck::quickcheck;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use tempfile::TempDir;

fn moments(rows: usize, width: usize, seed: u64) -> Moments {
    Moments::of(gaussian::<f32>(rows, width, seed, "rows").as_ref()).unwrap()
}

/// This many tokens, of which the last was met most.
fn counts(tokens: u64, width: usize) -> Counts {
    let mut counts: Vec<u64> = (0..width as u64).map(|token| token % 2).collect();
    counts[width - 1] = tokens - counts[..width - 1].iter().sum::<u64>();
    Counts::new(counts).unwrap()
}

/// A file under construction: its sites, and the rows that they have of one recording each. Sites whose names begin with "tokens" are
/// inputs of embeddings.
struct Fixture {
    folder: TempDir,
}

type Entry<'a> = (&'a str, &'a str, Range<u64>, usize);

impl Fixture {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file with rows of recordings: site, recording, rows, width.
    fn write(&self, name: &str, entries: &[Entry<'_>]) -> MomentsFile {
        self.write_changed(name, entries, |_| {})
    }

    fn write_changed(&self, name: &str, entries: &[Entry<'_>], change: impl Fn(&mut Content)) -> MomentsFile {
        let content = content_of(entries);
        let read = |site: &str| -> Result<SiteSums<'static>, Problem> {
            let (_, _, rows, width) = entries.iter().find(|entry| entry.0 == site).unwrap();
            match content.sites[site].counts {
                true => Ok(counts(rows.end - rows.start, *width).into()),
                false => Ok(moments((rows.end - rows.start) as usize, *width, rows.start).into()),
            }
        };
        let mut changed = content.clone();
        change(&mut changed);
        write(&self.path(name), &changed, &read).unwrap();
        MomentsFile::open(&self.path(name), Access::Auto).unwrap()
    }

    fn set(&self, names: &[&str]) -> Result<MomentsSet, Problems> {
        MomentsSet::open(&names.iter().map(|name| self.path(name)).collect::<Vec<_>>(), Access::Auto)
    }

    #[track_caller]
    fn refused(&self, names: &[&str], words: &str) {
        let problems = self.set(names).map(|_| ()).expect_err(words);
        assert!(problems.to_string().contains(words), "expected {words:?} in: {problems}");
    }
}

fn content_of(entries: &[Entry<'_>]) -> Content {
    let mut content =
        Content { precision: Precision::F32, sites: BTreeMap::new(), sources: Vec::new(), part: None };
    for (site, recording, rows, width) in entries {
        let measured = MeasuredSite {
            width: *width,
            counts: site.starts_with("tokens"),
            modules: vec![format!("{site}.q"), format!("{site}.v")],
            skipped_rows: 0,
        };
        content.sites.insert((*site).into(), measured);
        content.sources.push(MeasuredSource {
            path: format!("{recording}.safetensors"),
            bytes: 1000,
            fingerprint: (*recording).into(),
            rows: BTreeMap::from([((*site).into(), RowRanges::from_iter([rows.clone()]))]),
        });
    }
    content
}

/// A file whose header says this of its metadata, with the right tensors for the site "s" of width 2.
fn with_metadata(text: Option<String>) -> Result<MomentsFile, Problem> {
    with_tensors(text, &ROWS)
}

/// As [`with_metadata`], with other tensors.
fn with_tensors(text: Option<String>, stored: &[Stored]) -> Result<MomentsFile, Problem> {
    let tensors = stored.iter().map(|sum| {
        let shape = sum.shape(2);
        let length = shape.iter().product::<u64>() as usize * if *sum == Stored::AbsMax { 4 } else { 8 };
        (sum.tensor("s"), (sum.dtype().to_owned(), shape, vec![0; length]))
    });
    let metadata = text.map(|text| (METADATA.to_owned(), text)).into_iter().collect();
    let mut bytes = Vec::new();
    safetensors::write(&mut bytes, &metadata, &tensors.collect()).unwrap();
    MomentsFile::from_source(Source::from_bytes("x.safetensors", bytes))
}

const ROWS: [Stored; 4] = [Stored::Count, Stored::Sum, Stored::Gram, Stored::AbsMax];

fn text_of(content: &Content) -> String {
    content.to_text(&BTreeMap::from([("s", "0".repeat(64))]))
}

quickcheck! {
    /// Moments come back with the same bits, whatever the names of the sites.
    fn what_is_written_reads_back(names: Vec<String>, seed: u64) -> bool {
        let fixture = Fixture::new();
        let both = names.into_iter().flat_map(|name| [format!("tokens{name}"), name]);
        let names: BTreeMap<String, usize> = both.zip((0..5).cycle()).collect();
        let entries: Vec<Entry<'_>> =
            names.iter().map(|(name, size)| (name.as_str(), name.as_str(), 0..*size as u64 + 1, size + 1)).collect();
        let content = content_of(&entries);
        let of = |site: &str| -> SiteSums<'static> {
            let size = names[site] + 1;
            match site.starts_with("tokens") {
                true => counts(size as u64, size).into(),
                false => moments(size, size, seed).into(),
            }
        };
        write(&fixture.path("m"), &content, &|site| Ok(of(site))).unwrap();
        let again = fs::read(fixture.path("m")).unwrap();
        write(&fixture.path("m"), &content, &|site| Ok(of(site))).unwrap();
        let file = MomentsFile::open(&fixture.path("m"), Access::Auto).unwrap();
        file.content() == &content
            && names.keys().all(|site| file.read(site).unwrap() == of(site))
            && again == fs::read(fixture.path("m")).unwrap()
    }

    /// No byte of the sums changes without notice, and no change of any byte panics.
    fn damage_is_noticed(at: usize, bit: u8) -> bool {
        let fixture = Fixture::new();
        fixture.write("m", &[("a", "r", 0..3, 2), ("b", "r", 0..3, 3), ("tokens", "r", 0..3, 4)]);
        let mut bytes = fs::read(fixture.path("m")).unwrap();
        let data = Header::read(&Source::from_bytes("m", bytes.clone())).unwrap().data_start as usize;
        let at = at % bytes.len();
        bytes[at] ^= 1 << (bit % 8);
        let read = || {
            let file = MomentsFile::from_source(Source::from_bytes("m", bytes.clone()))?;
            file.read("a")?;
            file.read("tokens")?;
            file.moments("b")
        };
        read().is_err() || at < data
    }

    /// The set is the sum of its files, in the order given.
    fn sets_add_up(seed: u64) -> bool {
        let fixture = Fixture::new();
        let rows = seed % 1000;
        fixture.write("1", &[("a", "r", 0..rows + 1, 3), ("only", "r", 5..9, 2)]);
        fixture.write("2", &[("a", "r", rows + 1..rows + 9, 3)]);
        let set = fixture.set(&["2", "1"]).unwrap();
        let mut sum = moments(8, 3, rows + 1);
        sum.merge(&moments(rows as usize + 1, 3, 0)).unwrap();
        set.read("a").unwrap() == sum
            && set.read("only").unwrap() == moments(4, 2, 5)
            && set.content().rows("a") == rows + 9
            && set.content().sources.len() == 1
    }
}

/// A merged file can itself be merged, and remembers every row.
#[test]
fn merged_files_know_their_rows() {
    let fixture = Fixture::new();
    fixture.write("1", &[("a", "r", 0..4, 2)]);
    fixture.write("2", &[("a", "s", 0..4, 2)]);
    fixture.write("3", &[("a", "s", 4..6, 2)]);
    let set = fixture.set(&["1", "2"]).unwrap();
    write(&fixture.path("merged"), set.content(), &|site| set.sums(site)).unwrap();
    fixture.refused(&["merged", "2"], "rows 0 to 3 of the recording \"s.safetensors\" are counted in");
    let all = fixture.set(&["merged", "3"]).unwrap();
    assert_eq!(all.read("a").unwrap(), fixture.set(&["1", "2", "3"]).unwrap().read("a").unwrap());
    assert_eq!(all.content().rows("a"), 10);
}

#[test]
fn files_that_do_not_fit_together_are_refused() {
    let fixture = Fixture::new();
    let base: [Entry<'_>; 1] = [("a", "r", 0..4, 2)];
    fixture.write("base", &base);
    fixture.refused(&[], "expected at least one moments file, found none");
    fixture.refused(
        &["base", "base"],
        "tensor \"a\": rows 0 to 3 of the recording \"r.safetensors\" are counted in",
    );
    fixture.write("overlapping", &[("a", "s", 0..1, 2), ("b", "r", 0..1, 2), ("a", "r", 3..9, 2)]);
    fixture.refused(&["base", "overlapping"], "rows 3 to 3 of the recording");
    fixture.write_changed("renamed", &base, |content| content.sources[0].path = "copy.safetensors".into());
    fixture.refused(&["base", "renamed"], "of the recording \"copy.safetensors\" are counted in");
    fixture.write_changed("itself", &[("a", "r", 0..2, 2)], |content| {
        content.sources.push(content.sources[0].clone());
        content.sites.get_mut("a").unwrap().skipped_rows = 2;
    });
    fixture.refused(&["itself"], "are counted twice in this file");
    fixture.write("wide", &[("a", "s", 0..4, 3)]);
    fixture.refused(&["base", "wide"], "expected rows of 2 numbers as in the files before, found rows of 3");
    fixture.write_changed("other", &[("a", "s", 0..4, 2)], |content| {
        content.sites.get_mut("a").unwrap().modules = vec!["k".into()];
    });
    fixture.refused(
        &["base", "other"],
        r#"expected the modules "a.q", "a.v" as in the files before, found "k""#,
    );
    fixture.write_changed("bf16", &[("a", "s", 0..4, 2)], |content| content.precision = Precision::Bf16);
    fixture.refused(&["base", "bf16"], "expected moments in precision f32 as in");
    let problems = fixture.set(&["missing", "nowhere"]).unwrap_err();
    assert_eq!((problems.0.len(), problems.category()), (2, Category::Io));
}

/// Counts of all files are added, and their tokens count once.
#[test]
fn counts_add_up() {
    let fixture = Fixture::new();
    fixture.write("1", &[("tokens", "r", 0..9, 4), ("a", "r", 0..4, 2)]);
    fixture.write("2", &[("tokens", "s", 0..7, 4)]);
    let set = fixture.set(&["1", "2"]).unwrap();
    assert_eq!(set.counts("tokens").unwrap().counts(), [0, 2, 0, 14]);
    assert_eq!((set.counts("a"), set.content().rows("tokens"), set.bytes("tokens")), (None, 16, 64));
    assert!(set.read("tokens").unwrap_err().to_string().contains("expected sums over rows, found counts"));
    write(&fixture.path("merged"), set.content(), &|site| set.sums(site)).unwrap();
    assert_eq!(fixture.set(&["merged"]).unwrap().counts("tokens"), set.counts("tokens"));
    fixture.refused(&["merged", "2"], "rows 0 to 6 of the recording \"s.safetensors\" are counted in");

    fixture.write_changed("rows", &[("a", "s", 0..4, 4)], |_| {});
    fixture.write("other", &[("tokens", "t", 0..7, 5)]);
    fixture.refused(
        &["1", "other"],
        "tensor \"tokens\": expected counts of 4 tokens as in the files before, found counts of 5 tokens",
    );
    fixture.write("many", &[("tokens", "t", 0..u64::MAX - 8, 4)]);
    fixture.refused(&["1", "many"], "are too large to be added: the number of tokens is 1844");
}

/// A file of rows is of the version that readers before counts know; one of counts they refuse. A site has either.
#[test]
fn files_of_counts_are_of_another_version() {
    assert!(text_of(&content_of(&[("s", "r", 0..4, 2)])).contains("\"version\":1"));
    let mut content = content_of(&[("s", "r", 0..4, 2)]);
    content.sites.get_mut("s").unwrap().counts = true;
    let text = text_of(&content);
    assert!(text.contains("\"version\":2") && text.contains("\"counts\":true"), "{text}");
    let refused = |text: &str, stored: &[Stored], words: &str| {
        let problem = with_tensors(Some(text.into()), stored).map(|_| ()).expect_err(words);
        assert!(problem.to_string().contains(words), "expected {words:?} in: {problem}");
    };
    assert!(with_tensors(Some(text.clone()), &[Stored::Counts]).is_ok());
    let both = "expected the 1 tensors of its sites, found 2 tensors";
    refused(&text, &[Stored::Counts, Stored::Gram], both);
    refused(&text, &ROWS, "tensor \"s/counts\": expected U64 of shape [2], found no such tensor");
    refused(
        &text.replace("\"width\":2", "\"width\":20000000"),
        &[Stored::Counts],
        "expected counts of at most 16777216 tokens, found 20000000",
    );
    let rows = text_of(&content_of(&[("s", "r", 0..4, 2)]));
    refused(&rows, &[Stored::Counts], "tensor \"s/count\": expected U64 of shape [], found no such tensor");

    // Of another format.
    let tensor = ("s/counts".to_owned(), ("I64".to_owned(), vec![2], vec![0; 16]));
    let metadata = [(METADATA.to_owned(), text)].into();
    let mut bytes = Vec::new();
    safetensors::write(&mut bytes, &metadata, &[tensor].into()).unwrap();
    let problem = MomentsFile::from_source(Source::from_bytes("x", bytes)).unwrap_err();
    assert!(problem.to_string().contains("expected U64 of shape [2], found \"I64\""), "{problem}");
}

/// Parts come in their order, whatever that of their files, and only when all are there.
#[test]
fn parts_are_put_in_order_and_must_be_complete() {
    let fixture = Fixture::new();
    let part = |name: &str, index: u64, count: u64, whole: &str| {
        let entries: &[Entry<'_>] = &[("a", "r", 10 * index..10 * index + 10, 2)];
        // The last part has no rows, as happens where there are more parts than blocks.
        let entries = if index == 2 { &[] } else { entries };
        let part = Part { index, count, whole: whole.into() };
        fixture.write_changed(name, entries, |content| content.part = Some(part.clone()));
    };
    for index in 0..3 {
        part(&format!("{index}.moments.safetensors"), index, 3, "whole");
    }
    let name =
        |index: usize| ["0.moments.safetensors", "1.moments.safetensors", "2.moments.safetensors"][index];
    let forwards = fixture.set(&[name(0), name(1), name(2)]).unwrap();
    let backwards = fixture.set(&[name(2), name(1), name(0)]).unwrap();
    let mut sum = moments(10, 2, 0);
    sum.merge(&moments(10, 2, 10)).unwrap();
    assert_eq!(forwards.read("a").unwrap(), sum);
    assert_eq!(backwards.read("a").unwrap(), sum);
    assert_eq!((forwards.content().part.clone(), forwards.content().rows("a")), (None, 20));
    assert_eq!(fixture.set(&[""]).unwrap().read("a").unwrap(), sum, "found in the folder");

    fixture.refused(&[name(1)], "of its 3 parts, counted from 0, 2 are missing: 0, 2");
    fixture.refused(&[name(0), name(2)], "of its 3 parts, counted from 0, 1 is missing: 1");
    fixture.refused(&[name(0), name(0), name(1)], "part 0 of 3 is given twice, also as");
    fixture.write("whole", &[("a", "s", 0..4, 2)]);
    fixture.refused(&["whole", name(0)], "whole: expected a part of the measurement of");
    part("other", 1, 3, "other");
    fixture.refused(&[name(0), "other", name(2)], "found one of another");
    part("more", 1, 4, "whole");
    fixture.refused(&[name(0), "more", name(2)], "found one of another");
    part("many", 0, 20, "whole");
    fixture.refused(&["many"], "8, 9, 10, and 9 more");
    part("countless", 0, u64::MAX, "whole");
    fixture.refused(&["countless"], "18446744073709551614 are missing: 1, 2,");
    fs::create_dir(fixture.path("empty")).unwrap();
    fixture.refused(
        &["empty"],
        "expected files whose names end in .moments.safetensors in the folder, found none",
    );
}

#[test]
fn foreign_newer_and_contradictory_files_are_refused() {
    let content = content_of(&[("s", "r", 0..4, 2)]);
    let text = text_of(&content);
    assert!(with_metadata(Some(text.clone())).is_ok());
    let refused = |text: Option<String>, words: &str| {
        let problem = with_metadata(text).map(|_| ()).expect_err(words);
        assert!(problem.to_string().contains(words), "expected {words:?} in: {problem}");
        assert!(problem.to_string().starts_with("x.safetensors: "), "{problem}");
        assert_eq!(problem.category(), Category::Data);
    };
    let replaced = |from: &str, to: &str| {
        assert!(text.contains(from), "{from} in {text}");
        Some(text.replace(from, to))
    };
    refused(
        replaced("}]}", "}],\"part\":{\"index\":2,\"count\":2,\"whole\":\"\"}}"),
        "expected a part below 2, found part 2",
    );
    refused(None, "without the metadata of one");
    refused(Some("[]".into()), "is not that of a moments file");
    refused(replaced("\"moments\"", "\"activations\""), "found one of \"activations\"");
    refused(
        replaced("\"version\":1", "\"version\":3"),
        "expected version 2 of the moments file or an older one, found 3",
    );
    refused(replaced("\"f32\"", "\"f8\""), "unknown variant `f8`");
    refused(replaced("\"bytes\"", "\"size\""), "unknown field `size`");
    refused(replaced("\"s\":[[0,4]]", "\"s\":[[0,4]],\"s\":[[0,4]]"), "duplicate key \"s\"");
    refused(replaced("[[0,4]]", "[[4,0]]"), "ranges of rows must ascend");
    refused(replaced("[[0,4]]", "[]"), "tensor \"s\": expected rows of this site in its sources, found none");
    refused(
        replaced("\"s\":[[0,4]]", "\"s\":[[0,4]],\"t\":[[0,1]]"),
        "rows of the site \"t\", which it does not hold",
    );
    refused(
        replaced("\"width\":2", "\"width\":0"),
        "expected a width of at least 1 that fits in memory, found 0",
    );
    refused(
        replaced("\"width\":2", "\"width\":3"),
        "tensor \"s/sum\": expected F64 of shape [3], found \"F64\" of shape [2]",
    );
    refused(replaced("[\"s.q\",\"s.v\"]", "[]"), "expected at least one module");
    refused(Some(text_of(&content_of(&[]))), "expected the 0 tensors of its sites, found 4 tensors");
    refused(
        Some(text_of(&content_of(&[("t", "r", 0..4, 2)]))),
        "tensor \"t/count\": expected U64 of shape [], found no such tensor",
    );
}

#[test]
fn sums_that_are_not_what_they_were_are_refused() {
    let fixture = Fixture::new();
    let file = fixture.write("m", &[("a", "r", 0..4, 2)]);
    assert!(file.read("b").unwrap_err().to_string().contains("tensor \"b\": expected this site, found none"));
    let file = fixture.write_changed("m", &[("a", "r", 0..4, 2)], |content| {
        content.sites.get_mut("a").unwrap().skipped_rows = 1;
    });
    let problem = file.read("a").unwrap_err();
    assert!(
        problem.to_string().contains("expected the 4 rows of its sources, found 4 and 1 skipped ones"),
        "{problem}"
    );
    let damaged = |value: f64| {
        let mut bytes = fs::read(fixture.path("m")).unwrap();
        let offset = file.tensors["a/sum"].offset as usize;
        bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        MomentsFile::from_source(Source::from_bytes("m", bytes)).unwrap().read("a").unwrap_err().to_string()
    };
    assert!(damaged(1.0).contains("tensor \"a\": its sums are not those that were written"));
    assert!(
        damaged(f64::NAN).contains("tensor \"a\": a sum over activations holds a value that is not finite")
    );
}

/// Sums of rows far from zero keep their covariance in files, and files of recordings with different means add up.
#[test]
fn covariances_survive_files_and_their_merging() {
    const ROWS: usize = 1500;
    const WIDTH: usize = 6;
    let fixture = Fixture::new();
    let recordings = [("near", 300.0f32), ("far", 1e4)].map(|(name, mean)| {
        let rows = gaussian::<f32>(ROWS, WIDTH, 1, name);
        let rows = faer::Mat::from_fn(ROWS, WIDTH, |i, j| rows[(i, j)] + if j < 3 { mean } else { 1e4 });
        let content = content_of(&[("s", name, 0..ROWS as u64, WIDTH)]);
        write(&fixture.path(name), &content, &|_| Ok(Moments::of(rows.as_ref()).unwrap().into())).unwrap();
        rows
    });
    let check = |names: &[&str], recordings: &[faer::Mat<f32>]| {
        let x = |i: usize, j: usize| f64::from(recordings[i / ROWS][(i % ROWS, j)]);
        let count = recordings.len() * ROWS;
        let mean = |j: usize| (0..count).map(|i| x(i, j)).sum::<f64>() / count as f64;
        let found = fixture.set(names).unwrap().read("s").unwrap().covariance().unwrap();
        for (i, j) in (0..WIDTH).flat_map(|i| (0..WIDTH).map(move |j| (i, j))) {
            let product = |a: usize, b: usize| {
                let (mean_a, mean_b) = (mean(a), mean(b));
                (0..count).map(|row| (x(row, a) - mean_a) * (x(row, b) - mean_b)).sum::<f64>() / count as f64
            };
            let error = (found[(i, j)] - product(i, j)).abs() / (product(i, i) * product(j, j)).sqrt();
            assert!(error < 2e-6, "{names:?} {i} {j}: {error:e}");
        }
    };
    check(&["near"], &recordings[..1]);
    check(&["near", "far"], &recordings);
}
