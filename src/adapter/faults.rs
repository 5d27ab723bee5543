//! Each step of the writers fails in turn, once or from then on. The folder holds the old files or the new ones, as a whole.

use super::replace::BaseRecord;
use super::testing::{adapter, factors, files, provenance, try_write, write_tensors};
use super::*;
use crate::element::Element;
use crate::storage::faults::{Faults, Step, folder, inject};
use crate::storage::{Access, Category, Checkpoint, Problems, real, remove_unfinished, snapshot};
use expect_test::expect;
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The files and folders below a folder, by their relative paths. Folders have no content.
type Tree = BTreeMap<PathBuf, Option<Vec<u8>>>;

fn tree(root: &Path) -> Tree {
    let mut found = Tree::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let content = if path.is_dir() { None } else { Some(fs::read(&path).unwrap()) };
            found.insert(path.strip_prefix(root).unwrap().to_owned(), content);
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    found
}

/// The ways of replacing a folder.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Exchange,
    /// As in file systems that cannot exchange folders.
    Move,
    /// As for a folder that cannot be renamed.
    InPlace,
}

/// A subfolder of the user.
const MINE: &str = "mine/deep";

/// Calls `write` for a folder that `prepare` filled, with each of its steps failing in turn.
fn all_faults(prepare: impl Fn(&Path), write: impl Fn(&Path) -> Result<(), Problems>) {
    for way in [Way::Exchange, Way::Move, Way::InPlace] {
        let outcome = |faults: Faults| {
            let parent = folder();
            let folder = parent.path().join("out");
            fs::create_dir_all(folder.join(MINE)).unwrap();
            fs::write(folder.join(MINE).join("state"), "of the user").unwrap();
            fs::write(folder.join("notes"), "of the user").unwrap();
            prepare(&folder);
            let old = tree(parent.path());
            // The name of the folder is not in this path, so it is not renamed.
            let path = if way == Way::InPlace { folder.join("mine/..") } else { folder.clone() };
            let faults = Faults { exchange: way == Way::Exchange, ..faults };
            let (result, faults) = inject(faults, parent.path(), || write(&path));
            let left = tree(parent.path());
            remove_unfinished(&folder);
            (result, faults, old, left, tree(parent.path()))
        };
        let (result, all, old, new, recovered) = outcome(Faults::none());
        result.unwrap();
        assert!(old != new && new == recovered);
        for step in
            [Step::Create, Step::Write, Step::Flush, Step::Sync, Step::Rename, Step::SyncFolder, Step::Remove]
        {
            assert!(all.met.iter().any(|(met, _)| *met == step), "{way:?}: {step:?} does not occur");
        }
        for pass in 0..all.met.len() {
            for (sticky, kind) in [(false, ErrorKind::Other), (true, ErrorKind::StorageFull)] {
                let (result, met, old, left, recovered) = outcome(Faults::after(pass, sticky, kind));
                let place = format!("{way:?}, {:?} number {pass}, sticky: {sticky}", all.met[pass]);
                assert!(met.first().is_some(), "{place}");
                let problems = result.expect_err(&place);
                assert_eq!(problems.category(), Category::Io, "{place}: {problems}");
                assert!(recovered == old || recovered == new, "{place}: {:?}", recovered.keys());
                let is_whole = |expected: &Tree| {
                    let of_output = |tree: &Tree| {
                        let mut tree = tree.clone();
                        tree.retain(|path, _| path.starts_with("out") && !path.starts_with("out/mine"));
                        tree
                    };
                    of_output(&left) == of_output(expected)
                };
                assert!(
                    way == Way::InPlace || is_whole(&old) || is_whole(&new),
                    "{place}: {:?}",
                    left.keys()
                );
                // Only what could not be put back is left to the next run.
                assert!(sticky || way == Way::InPlace || left == recovered, "{place}: {:?}", left.keys());
            }
        }
        // Calls that a signal interrupts are repeated.
        for pass in (0..all.met.len()).filter(|&pass| all.met[pass].0 == Step::Write) {
            let (result, _, _, left, _) = outcome(Faults::after(pass, false, ErrorKind::Interrupted));
            result.unwrap();
            assert!(left == new);
        }
    }
}

fn write_adapter(folder: &Path, module: &'static str) -> Result<(), Problems> {
    let adapter = adapter([(module, factors(2, 3, 1))]);
    try_write(folder, &adapter, Element::F32, &provenance("update", &[]), Format::Peft)
}

fn write_kohya(folder: &Path, module: &'static str) -> Result<(), Problems> {
    let adapter = adapter([(module, factors(2, 3, 1))]);
    let format = Format::SingleFile(SingleFile::Kohya, Component::Unet);
    try_write(folder, &adapter, Element::F32, &provenance("update", &[]), format)
}

#[test]
fn an_adapter_is_the_old_one_or_the_new_one() {
    all_faults(|folder| write_adapter(folder, "old").unwrap(), |folder| write_adapter(folder, "new"));
}

/// An adapter in one format also replaces an adapter in another format completely.
#[test]
fn a_single_file_adapter_is_the_old_one_or_the_new_one() {
    all_faults(|folder| write_adapter(folder, "old").unwrap(), |folder| write_kohya(folder, "new"));
    all_faults(|folder| write_kohya(folder, "old").unwrap(), |folder| write_kohya(folder, "new"));

    let folder = tempfile::tempdir().unwrap();
    write_adapter(folder.path(), "old").unwrap();
    write_kohya(folder.path(), "new").unwrap();
    let left: Vec<String> = files(folder.path()).into_keys().collect();
    assert_eq!(left, [RECORD_FILE, SingleFile::Kohya.file_name()]);
    assert!(is_complete(folder.path()));
    fs::write(folder.path().join(SingleFile::Diffusers.file_name()), "older").unwrap();
    write_adapter(folder.path(), "new").unwrap();
    let left: Vec<String> = files(folder.path()).into_keys().collect();
    assert_eq!(left, [CONFIG_FILE, TENSORS_FILE, RECORD_FILE]);
}

/// All files of an output are in its folder.
#[test]
fn an_adapter_with_its_base_is_the_old_one_or_the_new_one() {
    let write = |folder: &Path, module: &'static str, sharded: bool| -> Result<(), Problems> {
        let mut staged = Staged::create(&[folder, &default_base(folder)])?;
        let adapter = adapter([(module, factors(2, 3, 1))]);
        let (provenance, other_modules) = (provenance("residual", &[]), &Default::default());
        let contents = Contents {
            adapter: &adapter,
            element: Element::F32,
            provenance: &provenance,
            other_modules,
            beside: &[(REPORT_FILE, b"{}")],
            peft: PeftContents::default(),
        };
        let hash = staged.adapter(folder, &contents, Format::Peft)?;
        let (checkpoint, weights) = adapted_model(folder, sharded)?;
        let base = Base { folder: &default_base(folder), format: Default::default() };
        staged.base(base, &checkpoint, &weights, (1.0, Element::F32), Some(hash))?;
        staged.commit_adapter(folder)
    };
    let prepare = |folder: &Path| {
        adapted_model(folder, false).unwrap();
        write(folder, "old", true).unwrap();
        fs::write(folder.join("base/notes"), "of the user").unwrap();
    };
    all_faults(prepare, |folder| write(folder, "new", false));
    // An adapter without a base removes the old base.
    let plain = |folder: &Path| -> Result<(), Problems> {
        let mut staged = Staged::create(&[folder])?;
        let adapter = adapter([("new", factors(2, 3, 1))]);
        let (provenance, other_modules) = (provenance("update", &[]), &Default::default());
        let contents = Contents {
            adapter: &adapter,
            element: Element::F32,
            provenance: &provenance,
            other_modules,
            beside: &[],
            peft: PeftContents::default(),
        };
        staged.adapter(folder, &contents, Format::Peft)?;
        staged.commit_adapter(folder)
    };
    all_faults(prepare, plain);
    let parent = folder();
    let out = parent.path().join("out");
    fs::create_dir(&out).unwrap();
    prepare(&out);
    plain(&out).unwrap();
    let left: Vec<PathBuf> = tree(&out).into_keys().collect();
    let expected = [CONFIG_FILE, TENSORS_FILE, "base", "base/notes", RECORD_FILE];
    assert_eq!(left, expected.map(PathBuf::from));
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

/// A model beside the folder of an output, and an adapted weight of it.
fn adapted_model(folder: &Path, sharded: bool) -> Result<(Checkpoint, Vec<AdaptedWeight>), Problems> {
    let checkpoint = model(&real(folder).with_file_name(format!("model-{sharded}")), sharded)?;
    let pieces = checkpoint.whole("q").into_iter().collect();
    let layers = vec![AdaptedWeight { pieces, factors: factors(2, 3, 1) }];
    Ok((checkpoint, layers))
}

fn write_base(folder: &Path, sharded: bool) -> Result<(), Problems> {
    let (checkpoint, layers) = adapted_model(folder, sharded)?;
    write_residual_base(folder, &checkpoint, &layers, 1.0, Element::F32).map(drop)
}

/// The weights of an old base with shards must not stay beside a single file, and the reverse.
#[test]
fn a_base_is_the_old_one_or_the_new_one() {
    for sharded in [false, true] {
        let prepare = |folder: &Path| {
            adapted_model(folder, sharded).unwrap();
            write_base(folder, !sharded).unwrap();
        };
        all_faults(prepare, |folder| write_base(folder, sharded));

        let parent = tempfile::tempdir().unwrap();
        let (replaced, fresh) = (parent.path().join("replaced"), parent.path().join("fresh"));
        prepare(&replaced);
        fs::write(replaced.join("notes.txt"), "of the user").unwrap();
        write_base(&replaced, sharded).unwrap();
        write_base(&fresh, sharded).unwrap();
        let mut left = files(&replaced);
        assert_eq!(left.remove("notes.txt").unwrap(), b"of the user", "other files stay");
        assert_eq!(left, files(&fresh), "the old base is removed completely");
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
    "#]].assert_eq(&snapshot(BaseRecord::of(&folder).err().unwrap()));
    assert!(write_base(&folder, false).is_err());
    assert!(parent.path().join("kept").exists());
}
