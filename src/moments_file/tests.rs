//! Written files read back; damaged, newer and other files are refused; sums of files add up, and no row counts twice.

mod refusals;

use super::content::Stated;
use super::stored::Stored;
use super::*;
use crate::moments::{Counts, Moments};
use crate::random::gaussian;
use crate::simd::Precision;
use crate::storage::safetensors::Header;
use crate::storage::shown;
use crate::storage::{Access, Problem, Problems, Source, safetensors};
use expect_test::{Expect, expect};
use faer::Mat;
use quickcheck::quickcheck;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn moments(rows: usize, width: usize, seed: u64) -> Moments {
    Moments::of(gaussian::<f32>(rows, width, seed, "rows").as_ref()).unwrap()
}

/// Counts of this number of tokens. The last token has most of them.
fn counts(tokens: u64, width: usize) -> Counts {
    let mut counts: Vec<u64> = (0..width as u64).map(|token| token % 2).collect();
    counts[width - 1] = tokens - counts[..width - 1].iter().sum::<u64>();
    Counts::new(counts).unwrap()
}

/// A folder for files. Sites whose names begin with "tokens" are inputs of embeddings.
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
    fn refused(&self, names: &[&str], expected: &Expect) {
        expected.assert_eq(&shown(&self.set(names).unwrap_err(), self.folder.path()));
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

/// A file with this metadata, and the right tensors for the site "s" of width 2.
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
    content.to_text(&BTreeMap::from([("s", Stated { sha256: "0".repeat(64), zero_rows: 0 })]))
}

quickcheck! {
    /// Moments read back with the same bits, for all names of sites.
    fn written_files_read_back(names: Vec<String>, seed: u64) -> bool {
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

    /// Every change of the sums is detected, and no change of a byte causes a panic.
    fn damage_is_detected(at: usize, bit: u8) -> bool {
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

    /// The moments of a set are the sum over its files, in the given order.
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

/// A merged file can be merged again, and knows all its rows.
#[test]
fn merged_files_list_all_rows() {
    let fixture = Fixture::new();
    fixture.write("1", &[("a", "r", 0..4, 2)]);
    fixture.write("2", &[("a", "s", 0..4, 2)]);
    fixture.write("3", &[("a", "s", 4..6, 2)]);
    let set = fixture.set(&["1", "2"]).unwrap();
    write(&fixture.path("merged"), set.content(), &|site| set.sums(site)).unwrap();
    fixture.refused(
        &["merged", "2"],
        &expect![[r#"
            Data: 2: tensor "a": rows 0 to 3 of the recording "s.safetensors" are counted twice, also in "merged"
                help: remove one of the two: every row must count once
        "#]],
    );
    let all = fixture.set(&["merged", "3"]).unwrap();
    assert_eq!(all.read("a").unwrap(), fixture.set(&["1", "2", "3"]).unwrap().read("a").unwrap());
    assert_eq!(all.content().rows("a"), 10);
}

#[test]
fn incompatible_files_are_refused() {
    let fixture = Fixture::new();
    let base: [Entry<'_>; 1] = [("a", "r", 0..4, 2)];
    fixture.write("base", &base);
    fixture.refused(
        &[],
        &expect![[r#"
            Usage: no moments files were given
        "#]],
    );
    fixture.refused(
        &["base", "base"],
        &expect![[r#"
            Data: base: tensor "a": rows 0 to 3 of the recording "r.safetensors" are counted twice, also in "base"
                help: remove one of the two: every row must count once
        "#]],
    );
    fixture.write("overlapping", &[("a", "s", 0..1, 2), ("b", "r", 0..1, 2), ("a", "r", 3..9, 2)]);
    fixture.refused(
        &["base", "overlapping"],
        &expect![[r#"
            Data: overlapping: tensor "a": rows 3 to 3 of the recording "r.safetensors" are counted twice, also in "base"
                help: remove one of the two: every row must count once
        "#]],
    );
    fixture.write_changed("renamed", &base, |content| content.sources[0].path = "copy.safetensors".into());
    fixture.refused(
        &["base", "renamed"],
        &expect![[r#"
            Data: renamed: tensor "a": rows 0 to 3 of the recording "copy.safetensors" are counted twice, also in "base"
                help: remove one of the two: every row must count once
        "#]],
    );
    fixture.write_changed("itself", &[("a", "r", 0..2, 2)], |content| {
        content.sources.push(content.sources[0].clone());
        content.sites.get_mut("a").unwrap().skipped_rows = 2;
    });
    fixture.refused(
        &["itself"],
        &expect![[r#"
            Data: itself: tensor "a": rows 0 to 1 of the recording "r.safetensors" are counted twice in this file
                help: remove one of the two: every row must count once
        "#]],
    );
    fixture.write("wide", &[("a", "s", 0..4, 3)]);
    fixture.refused(
        &["base", "wide"],
        &expect![[r#"
        Data: wide: tensor "a": expected rows of 2 numbers as in the files before, found rows of 3 numbers
    "#]],
    );
    fixture.write_changed("other", &[("a", "s", 0..4, 2)], |content| {
        content.sites.get_mut("a").unwrap().modules = vec!["k".into()];
    });
    fixture.refused(
        &["base", "other"],
        &expect![[r#"
        Data: other: tensor "a": expected the modules "a.q", "a.v" as in the files before, found "k"
    "#]],
    );
    fixture.write_changed("bf16", &[("a", "s", 0..4, 2)], |content| content.precision = Precision::Bf16);
    fixture.refused(
        &["base", "bf16"],
        &expect![[r#"
        Data: bf16: expected moments in precision f32 as in "base", found bf16
            help: measure all of them with the same --precision
    "#]],
    );
    fixture.refused(
        &["missing", "nowhere"],
        &expect![[r#"
        Io: missing: cannot open: No such file or directory (os error 2)
            help: check the path
        Io: nowhere: cannot open: No such file or directory (os error 2)
            help: check the path
    "#]],
    );
}

/// Counts of all files add up, and no token counts twice.
#[test]
fn counts_add_up() {
    let fixture = Fixture::new();
    fixture.write("1", &[("tokens", "r", 0..9, 4), ("a", "r", 0..4, 2)]);
    fixture.write("2", &[("tokens", "s", 0..7, 4)]);
    let set = fixture.set(&["1", "2"]).unwrap();
    assert_eq!(set.counts("tokens").unwrap().counts(), [0, 2, 0, 14]);
    assert_eq!((set.counts("a"), set.content().rows("tokens"), set.bytes("tokens")), (None, 16, 64));
    let problem = set.read("tokens").unwrap_err();
    expect![[r#"
        Data: 1: tensor "tokens": expected sums of rows, found token counts
    "#]]
    .assert_eq(&shown(&problem.into(), fixture.folder.path()));
    write(&fixture.path("merged"), set.content(), &|site| set.sums(site)).unwrap();
    assert_eq!(fixture.set(&["merged"]).unwrap().counts("tokens"), set.counts("tokens"));
    fixture.refused(
        &["merged", "2"],
        &expect![[r#"
            Data: 2: tensor "tokens": rows 0 to 6 of the recording "s.safetensors" are counted twice, also in "merged"
                help: remove one of the two: every row must count once
        "#]],
    );

    fixture.write_changed("rows", &[("a", "s", 0..4, 4)], |_| {});
    fixture.write("other", &[("tokens", "t", 0..7, 5)]);
    fixture.refused(&["1", "other"], &expect![[r#"
        Data: other: tensor "tokens": expected counts of 4 tokens as in the files before, found counts of 5 tokens
    "#]]);
    fixture.write("many", &[("tokens", "t", 0..u64::MAX - 8, 4)]);
    fixture.refused(&["1", "many"], &expect![[r#"
        Data: many: tensor "tokens": the sum of its counts and those of other files is too large: the number of tokens is 18446744073709552000, but must be below 2^64
    "#]]);
}

/// Numbers of zero rows are saved and added. Files with them have version 3; other files keep their bytes, and have none.
#[test]
fn zero_rows_are_saved() {
    let fixture = Fixture::new();
    let moments = |zeros: usize| {
        Moments::of(Mat::from_fn(4, 2, |i, j| if i < zeros { 0.0 } else { (1 + i + j) as f32 }).as_ref())
            .unwrap()
    };
    let put = |name: &str, rows, zeros| {
        let content = content_of(&[("s", "r", rows, 2)]);
        write(&fixture.path(name), &content, &|_| Ok(moments(zeros).into())).unwrap();
        MomentsFile::open(&fixture.path(name), Access::Auto).unwrap()
    };
    assert_eq!(put("without", 0..4, 0).moments("s").unwrap().zero_rows(), 0);
    assert!(!String::from_utf8_lossy(&fs::read(fixture.path("without")).unwrap()).contains("zero_rows"));
    assert_eq!(put("three", 4..8, 3).moments("s").unwrap(), moments(3));
    let text = String::from_utf8_lossy(&fs::read(fixture.path("three")).unwrap()).into_owned();
    assert!(text.contains(r#"\"version\":3"#) && text.contains(r#"\"zero_rows\":3"#), "{text}");
    put("two", 8..12, 2);
    let set = fixture.set(&["without", "three", "two"]).unwrap();
    assert_eq!(set.read("s").unwrap().zero_rows(), 5);
}

/// Files of rows have version 1, which older readers accept. Files with token counts have version 2. A site has either rows or counts.
#[test]
fn files_with_counts_have_another_version() {
    assert!(text_of(&content_of(&[("s", "r", 0..4, 2)])).contains("\"version\":1"));
    let mut content = content_of(&[("s", "r", 0..4, 2)]);
    content.sites.get_mut("s").unwrap().counts = true;
    let text = text_of(&content);
    assert!(text.contains("\"version\":2") && text.contains("\"counts\":true"), "{text}");
    let refused = |text: &str, stored: &[Stored], expected: &Expect| {
        let problem = with_tensors(Some(text.into()), stored).unwrap_err();
        expected.assert_eq(&shown(&problem.into(), Path::new("-")));
    };
    assert!(with_tensors(Some(text.clone()), &[Stored::Counts]).is_ok());
    refused(
        &text,
        &[Stored::Counts, Stored::Gram],
        &expect![[r#"
            Data: x.safetensors: expected 1 tensors for its sites, found 2
        "#]],
    );
    refused(
        &text,
        &ROWS,
        &expect![[r#"
            Data: x.safetensors: tensor "s/counts": expected U64 of shape [2], found no tensor
        "#]],
    );
    refused(
        &text.replace("\"width\":2", "\"width\":20000000"),
        &[Stored::Counts],
        &expect![[r#"
        Data: x.safetensors: tensor "s": expected counts of at most 16777216 tokens, found 20000000
    "#]],
    );
    let rows = text_of(&content_of(&[("s", "r", 0..4, 2)]));
    refused(
        &rows,
        &[Stored::Counts],
        &expect![[r#"
            Data: x.safetensors: tensor "s/count": expected U64 of shape [], found no tensor
        "#]],
    );

    // A tensor of another format.
    let tensor = ("s/counts".to_owned(), ("I64".to_owned(), vec![2], vec![0; 16]));
    let metadata = [(METADATA.to_owned(), text)].into();
    let mut bytes = Vec::new();
    safetensors::write(&mut bytes, &metadata, &[tensor].into()).unwrap();
    let problem = MomentsFile::from_source(Source::from_bytes("x", bytes)).unwrap_err();
    expect![[r#"x: tensor "s/counts": expected U64 of shape [2], found "I64" of shape [2]"#]]
        .assert_eq(&problem.to_string());
}

/// Sums of rows far from zero keep their covariance in files. Files of recordings with different means add up.
#[test]
fn covariances_are_exact_after_writing_and_merging() {
    const ROWS: usize = 1500;
    const WIDTH: usize = 6;
    let fixture = Fixture::new();
    let recordings = [("near", 300.0f32), ("far", 1e4)].map(|(name, mean)| {
        let rows = gaussian::<f32>(ROWS, WIDTH, 1, name);
        let rows = Mat::from_fn(ROWS, WIDTH, |i, j| rows[(i, j)] + if j < 3 { mean } else { 1e4 });
        let content = content_of(&[("s", name, 0..ROWS as u64, WIDTH)]);
        write(&fixture.path(name), &content, &|_| Ok(Moments::of(rows.as_ref()).unwrap().into())).unwrap();
        rows
    });
    let check = |names: &[&str], recordings: &[Mat<f32>]| {
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
