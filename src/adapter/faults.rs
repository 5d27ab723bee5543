//! Each step of the writers fails in turn, once or from then on. The files that are left are old, complete, or do not load.

use super::replace::BaseRecord;
use super::testing::{adapter, factors, files, provenance, try_write, write_tensors};
use super::*;
use crate::element::Element;
use crate::storage::faults::{Faults, Step, folder, inject};
use crate::storage::{Access, Category, Checkpoint, Problem, Problems, snapshot};
use expect_test::expect;
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

type Files = BTreeMap<String, Vec<u8>>;

/// Calls `write` for a folder that `prepare` filled, with each of its steps failing in turn. `loads` returns whether the files that are
/// left are taken for a complete output.
fn all_faults(
    prepare: impl Fn(&Path),
    write: impl Fn(&Path) -> Result<(), Problems>,
    loads: impl Fn(&Files) -> bool,
) {
    let outcome = |faults: Faults| {
        let parent = folder();
        let folder = parent.path().join("out");
        prepare(&folder);
        let old = files(&folder);
        let (result, faults) = inject(faults, parent.path(), || write(&folder));
        (result, faults, old, files(&folder))
    };
    let (result, all, old, new) = outcome(Faults::none());
    result.unwrap();
    assert!(loads(&new) && old != new);
    for step in
        [Step::Create, Step::Write, Step::Flush, Step::Sync, Step::Rename, Step::SyncFolder, Step::Remove]
    {
        assert!(all.met.iter().any(|(met, _)| *met == step), "{step:?} does not occur");
    }
    for pass in 0..all.met.len() {
        for sticky in [false, true] {
            for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
                let (result, met, old, left) = outcome(Faults::after(pass, sticky, kind));
                let place = format!("{:?} number {pass}, sticky: {sticky}", all.met[pass]);
                assert!(met.first().is_some(), "{place}");
                let problems = result.expect_err(&place);
                assert_eq!(problems.category(), Category::Io, "{place}: {problems}");
                assert!(!left.keys().any(|name| name.contains(".tmp")), "{place}: {:?}", left.keys());
                // The very last step syncs a folder, when everything is in place already.
                let complete = [&old, &new].map(loaded).contains(&loaded(&left));
                assert!(!loads(&left) || complete, "{place}: {:?}", left.keys());
            }
        }
    }
    // Calls that a signal interrupts are repeated.
    for pass in (0..all.met.len()).filter(|&pass| all.met[pass].0 == Step::Write) {
        let (result, _, _, left) = outcome(Faults::after(pass, false, ErrorKind::Interrupted));
        result.unwrap();
        assert!(left == new);
    }
}

/// The files without the record of a base, which changes earlier than the files and only lists files to remove.
fn loaded(files: &Files) -> Files {
    let mut files = files.clone();
    files.retain(|name, bytes| {
        name != RECORD_FILE || !String::from_utf8_lossy(bytes).contains("cntlora-base")
    });
    files
}

fn write_adapter(folder: &Path, module: &'static str) -> Result<(), Problems> {
    let adapter = adapter([(module, factors(2, 3, 1))]);
    try_write(folder, &adapter, Element::F32, &provenance("update", &[]), Format::Peft)
}

#[test]
fn an_adapter_is_old_complete_or_none() {
    let prepare = |folder: &Path| {
        fs::create_dir(folder).unwrap();
        write_adapter(folder, "old").unwrap();
    };
    all_faults(prepare, |folder| write_adapter(folder, "new"), |files| files.contains_key(CONFIG_FILE));
}

/// An adapter in one format also replaces an adapter in another format completely.
#[test]
fn a_single_file_adapter_is_old_complete_or_none() {
    let adapter = |module| adapter([(module, factors(2, 3, 1))]);
    let kohya = |folder: &Path, module| {
        let format = Format::SingleFile(SingleFile::Kohya, Component::Unet);
        try_write(folder, &adapter(module), Element::F32, &provenance("update", &[]), format)
    };
    let loads = |files: &Files| files.contains_key(CONFIG_FILE) || files.contains_key("lora.safetensors");
    let from_peft = |folder: &Path| {
        fs::create_dir(folder).unwrap();
        write_adapter(folder, "old").unwrap();
    };
    let from_kohya = |folder: &Path| {
        fs::create_dir(folder).unwrap();
        kohya(folder, "old").unwrap();
    };
    all_faults(from_peft, |folder| kohya(folder, "new"), loads);
    all_faults(from_kohya, |folder| kohya(folder, "new"), loads);

    let folder = tempfile::tempdir().unwrap();
    write_adapter(folder.path(), "old").unwrap();
    kohya(folder.path(), "new").unwrap();
    let left: Vec<String> = files(folder.path()).into_keys().collect();
    assert_eq!(left, [RECORD_FILE, SingleFile::Kohya.file_name()]);
    assert!(is_complete(folder.path()));
    retire(folder.path()).unwrap();
    assert!(!is_complete(folder.path()));
    kohya(folder.path(), "old").unwrap();
    fs::write(folder.path().join(SingleFile::Diffusers.file_name()), "older").unwrap();
    write_adapter(folder.path(), "new").unwrap();
    let left: Vec<String> = files(folder.path()).into_keys().collect();
    assert_eq!(left, [CONFIG_FILE, TENSORS_FILE, RECORD_FILE]);
}

/// A model of two shards or of one file, with a configuration that differs between them.
fn model(folder: &Path, sharded: bool) -> Result<Checkpoint, Problems> {
    fs::create_dir_all(folder).unwrap();
    let weight = |name| (name, Element::F32, vec![2, 3], vec![1.0; 6]);
    if sharded {
        write_tensors(&folder.join("one.safetensors"), &[weight("q")]);
        write_tensors(&folder.join("two.safetensors"), &[weight("v")]);
        let index = r#"{"weight_map":{"q":"one.safetensors","v":"two.safetensors"}}"#;
        fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
        fs::write(folder.join("vocabulary.txt"), "old").unwrap();
    } else {
        write_tensors(&folder.join("model.safetensors"), &[weight("q")]);
    }
    fs::write(folder.join("config.json"), format!("{{\"sharded\":{sharded}}}")).unwrap();
    Checkpoint::open(folder, Access::Read)
}

fn write_base(folder: &Path, sharded: bool) -> Result<(), Problems> {
    let checkpoint = model(&folder.with_file_name(format!("model-{sharded}")), sharded)?;
    let factors = factors(2, 3, 1);
    let pieces = checkpoint.whole("q").into_iter().collect();
    let layers = [AdaptedWeight { pieces, factors }];
    write_residual_base(folder, &checkpoint, &layers, 1.0, Element::F32).map(drop)
}

fn remove_base(folder: &Path) -> Result<(), Problem> {
    BaseRecord::of(folder)?.map_or(Ok(()), |record| record.remove_from(folder))
}

/// The weights of an old base with shards must not stay beside a single file, and the reverse.
#[test]
fn a_base_is_old_complete_or_does_not_load() {
    for sharded in [false, true] {
        let prepare = |folder: &Path| {
            fs::create_dir(folder).unwrap();
            write_base(folder, !sharded).unwrap();
            fs::write(folder.join("notes.txt"), "of the user").unwrap();
        };
        let loads = |files: &Files| {
            files.contains_key("model.safetensors") || files.contains_key("model.safetensors.index.json")
        };
        all_faults(prepare, |folder| write_base(folder, sharded), loads);

        let parent = tempfile::tempdir().unwrap();
        let (replaced, fresh) = (parent.path().join("replaced"), parent.path().join("fresh"));
        prepare(&replaced);
        write_base(&replaced, sharded).unwrap();
        write_base(&fresh, sharded).unwrap();
        let mut left = files(&replaced);
        assert_eq!(left.remove("notes.txt").unwrap(), b"of the user", "other files stay");
        assert_eq!(left, files(&fresh), "the old base is removed completely");

        remove_base(&replaced).unwrap();
        assert_eq!(files(&replaced).into_keys().collect::<Vec<_>>(), ["notes.txt"]);
        remove_base(&fresh).unwrap();
        assert!(!fresh.exists());
    }
}

/// A manipulated record must not make us remove files outside of the folder.
#[test]
fn a_record_cannot_list_files_of_other_folders() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("base");
    write_base(&folder, false).unwrap();
    fs::write(parent.path().join("kept"), "").unwrap();
    let record = r#"{"format":"cntlora-base","version":1,"files":["../kept"]}"#;
    fs::write(folder.join(RECORD_FILE), record).unwrap();
    expect![[r#"
        FOLDER/base/cntlora.json: the record must list files of its own folder, but it has the path "../kept"; help: choose another folder for the residual base
    "#]].assert_eq(&snapshot(remove_base(&folder).unwrap_err()));
    assert!(parent.path().join("kept").exists());
}
