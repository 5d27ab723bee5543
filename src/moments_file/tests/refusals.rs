//! Messages about files and parts that are refused.

use super::*;
use crate::moments_file::write::check_header;
use crate::storage::safetensors::Header;

/// Parts are sorted, and all must be given.
#[test]
fn parts_are_sorted_and_must_be_complete() {
    let fixture = Fixture::new();
    let part = |name: &str, index: u64, count: u64, whole: &str| {
        let entries: &[Entry<'_>] = &[("a", "r", 10 * index..10 * index + 10, 2)];
        // The last part has no rows, as if there were more parts than blocks.
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

    fixture.refused(
        &[name(1)],
        &expect![[r#"
            Data: 2 of 3 parts missing (numbered from 0): 0, 2
                help: make the missing parts by the same command with --shard, and give all of them
        "#]],
    );
    fixture.refused(
        &[name(0), name(2)],
        &expect![[r#"
            Data: 1 of 3 parts missing (numbered from 0): 1
                help: make the missing parts by the same command with --shard, and give all of them
        "#]],
    );
    fixture.refused(
        &[name(0), name(0), name(1)],
        &expect![[r#"
            Data: 0.moments.safetensors: part 0/3 is given twice, also as "0.moments.safetensors"
                help: remove one of the two
            Data: 1 of 3 parts missing (numbered from 0): 2
                help: make the missing parts by the same command with --shard, and give all of them
        "#]],
    );
    fixture.write("whole", &[("a", "s", 0..4, 2)]);
    fixture.refused(
        &["whole", name(0)],
        &expect![[r#"
        Data: whole: is a whole measurement, but "0.moments.safetensors" is a part of one
            help: merge the parts first, and then the results
    "#]],
    );
    part("other", 1, 3, "other");
    fixture.refused(
        &[name(0), "other", name(2)],
        &expect![[r#"
        Data: other: is a part of another measurement than "0.moments.safetensors"
            help: measure all parts of the same inputs with the same options and number of parts
    "#]],
    );
    part("more", 1, 4, "whole");
    fixture.refused(
        &[name(0), "more", name(2)],
        &expect![[r#"
        Data: more: is a part of another measurement than "0.moments.safetensors"
            help: measure all parts of the same inputs with the same options and number of parts
    "#]],
    );
    part("many", 0, 20, "whole");
    fixture.refused(
        &["many"],
        &expect![[r#"
            Data: 19 of 20 parts missing (numbered from 0): 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, and 9 more
                help: make the missing parts by the same command with --shard, and give all of them
        "#]],
    );
    part("countless", 0, u64::MAX, "whole");
    fixture.refused(&["countless"], &expect![[r#"
        Data: 18446744073709551614 of 18446744073709551615 parts missing (numbered from 0): 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, and 18446744073709551604 more
            help: make the missing parts by the same command with --shard, and give all of them
    "#]]);
    fs::create_dir(fixture.path("empty")).unwrap();
    fixture.refused(
        &["empty"],
        &expect![[r#"
            Usage: empty: the folder contains no files with names that end in .moments.safetensors
                help: give the moments files themselves
        "#]],
    );
}

#[test]
fn other_newer_and_inconsistent_files_are_refused() {
    let content = content_of(&[("s", "r", 0..4, 2)]);
    let text = text_of(&content);
    assert!(with_metadata(Some(text.clone())).is_ok());
    let refused = |text: Option<String>, expected: &Expect| {
        expected.assert_eq(&shown(&with_metadata(text).unwrap_err().into(), Path::new("-")));
    };
    let replaced = |from: &str, to: &str| {
        assert!(text.contains(from), "{from} in {text}");
        Some(text.replace(from, to))
    };
    refused(
        replaced("}]}", "}],\"part\":{\"index\":2,\"count\":2,\"whole\":\"\"}}"),
        &expect![[r#"
        Data: x.safetensors: expected a part below 2, found part 2
    "#]],
    );
    refused(
        None,
        &expect![[r#"
            Data: x.safetensors: not a moments file: the metadata entry "cntlora" is missing
                help: measure activations with `cntlora moments`
        "#]],
    );
    refused(
        Some("[]".into()),
        &expect![[r#"
            Data: x.safetensors: invalid moments metadata: invalid length 0, expected an object with format and version at line 1 column 2
                help: measure activations with `cntlora moments`
        "#]],
    );
    refused(
        replaced("\"moments\"", "\"activations\""),
        &expect![[r#"
            Data: x.safetensors: invalid moments metadata: expected format "moments", found "activations"
                help: measure activations with `cntlora moments`
        "#]],
    );
    refused(
        replaced("\"version\":1", "\"version\":4"),
        &expect![[r#"
            Data: x.safetensors: unsupported version 4 of the moments metadata: the newest known version is 3
                help: use the version of cntlora that wrote it, or a newer one
        "#]],
    );
    refused(
        replaced("\"f32\"", "\"f8\""),
        &expect![[r#"
            Data: x.safetensors: invalid moments metadata: unknown variant `f8`, expected `f32` or `bf16` at line 1 column 71
                help: measure activations with `cntlora moments`
        "#]],
    );
    refused(
        replaced("\"bytes\"", "\"size\""),
        &expect![[r#"
            Data: x.safetensors: invalid moments metadata: unknown field `size`, expected one of `path`, `bytes`, `fingerprint`, `rows` at line 1 column 257
                help: measure activations with `cntlora moments`
        "#]],
    );
    refused(
        replaced("\"s\":[[0,4]]", "\"s\":[[0,4]],\"s\":[[0,4]]"),
        &expect![[r#"
            Data: x.safetensors: invalid moments metadata: duplicate key "s" at line 1 column 314
                help: measure activations with `cntlora moments`
        "#]],
    );
    refused(
        replaced("[[0,4]]", "[[4,0]]"),
        &expect![[r#"
            Data: x.safetensors: invalid moments metadata: "s": ranges of rows must be sorted, and must neither touch nor overlap at line 1 column 302
                help: measure activations with `cntlora moments`
        "#]],
    );
    refused(
        replaced("[[0,4]]", "[]"),
        &expect![[r#"
            Data: x.safetensors: tensor "s": the sources contain no rows of this site
        "#]],
    );
    refused(
        replaced("\"s\":[[0,4]]", "\"s\":[[0,4]],\"t\":[[0,1]]"),
        &expect![[r#"
            Data: x.safetensors: the sources contain rows of the site "t", which is not in the file
        "#]],
    );
    refused(
        replaced("\"width\":2", "\"width\":0"),
        &expect![[r#"
        Data: x.safetensors: tensor "s": expected a width of at least 1 that fits in memory, found 0
    "#]],
    );
    refused(
        replaced("\"width\":2", "\"width\":3"),
        &expect![[r#"
        Data: x.safetensors: tensor "s/sum": expected F64 of shape [3], found "F64" of shape [2]
    "#]],
    );
    refused(
        replaced("[\"s.q\",\"s.v\"]", "[]"),
        &expect![[r#"
            Data: x.safetensors: tensor "s": this site has no modules
        "#]],
    );
    refused(
        Some(text_of(&content_of(&[]))),
        &expect![[r#"
            Data: x.safetensors: expected 0 tensors for its sites, found 4
        "#]],
    );
    refused(
        Some(text_of(&content_of(&[("t", "r", 0..4, 2)]))),
        &expect![[r#"
            Data: x.safetensors: tensor "t/count": expected U64 of shape [], found no tensor
        "#]],
    );
}

#[test]
fn damaged_sums_are_refused() {
    let fixture = Fixture::new();
    let file = fixture.write("m", &[("a", "r", 0..4, 2)]);
    let refused = |problem: Problem, expected: Expect| {
        expected.assert_eq(&shown(&problem.into(), fixture.folder.path()));
    };
    refused(
        file.read("b").unwrap_err(),
        expect![[r#"
            Data: m: tensor "b": the file has no site with this name
        "#]],
    );
    let file = fixture.write_changed("m", &[("a", "r", 0..4, 2)], |content| {
        content.sites.get_mut("a").unwrap().skipped_rows = 1;
    });
    refused(
        file.read("a").unwrap_err(),
        expect![[r#"
            Data: m: tensor "a": inconsistent numbers of rows: 4 in the sources, but 4 in the sums and 1 skipped
                help: copy the file again, or measure again
        "#]],
    );
    let damaged = |value: f64| {
        let mut bytes = fs::read(fixture.path("m")).unwrap();
        let offset = file.tensors["a/sum"].offset as usize;
        bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        MomentsFile::from_source(Source::from_bytes("m", bytes)).unwrap().read("a").unwrap_err()
    };
    refused(
        damaged(1.0),
        expect![[r#"
            Data: m: tensor "a": checksum mismatch: the file is damaged
                help: copy the file again, or measure again
        "#]],
    );
    refused(
        damaged(f64::NAN),
        expect![[r#"
        Data: m: tensor "a": a sum over activations holds a value that is not finite
    "#]],
    );
}

#[test]
fn a_missing_site_and_missing_memory_are_reported() {
    let fixture = Fixture::new();
    let mut file = fixture.write("m", &[("a", "r", 0..3, 2)]);
    let missing = fixture.set(&["m"]).unwrap().read("b").unwrap_err();
    file.tensors.get_mut(&Stored::Gram.tensor("a")).unwrap().length = u64::MAX;
    let no_memory = file.read("a").unwrap_err();
    let problems = Problems(vec![missing, no_memory]);
    expect![[r#"
        Data: tensor "b": the moments files have no site with this name
        Io: m: tensor "a/gram": not enough memory for 18446744073709551608 bytes
    "#]]
    .assert_eq(&shown(&problems, fixture.folder.path()));
}

/// A file that cannot be read again is not written.
#[test]
fn moments_of_too_many_sites_are_refused() {
    check_header(Header::LONGEST).unwrap();
    let problems = Problems(vec![check_header(Header::LONGEST + 1).unwrap_err()]);
    expect![[r#"
        Data: too many sites for one moments file: its header would have 268435457 bytes, the limit is 268435456
            help: measure in parts with --shard, and pass all parts to --moments
    "#]]
    .assert_eq(&shown(&problems, Path::new("")));
}
