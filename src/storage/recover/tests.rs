use super::super::AtomicFile;
use super::super::staged_folder::StagedFolder;
use super::*;

fn names_of(folder: &Path) -> Vec<OsString> {
    let mut names = names(folder);
    names.sort();
    names
}

#[test]
fn only_unfinished_files_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("notes.tmp"), "mine").unwrap();
    fs::write(folder.path().join(".hidden"), "mine").unwrap();
    let unfinished = AtomicFile::create(&folder.path().join("adapter_model.safetensors")).unwrap();
    assert_eq!(names_of(folder.path()).len(), 3);
    remove_unfinished(&folder.path().join("other"));
    assert_eq!(names_of(folder.path()).len(), 3, "another output's file");
    remove_unfinished(&folder.path().join("adapter_model.safetensors"));
    assert_eq!(names_of(folder.path()), [".hidden", "notes.tmp"]);
    drop(unfinished);
    let unfinished = AtomicFile::create(&folder.path().join("cntlora.json")).unwrap();
    remove_unfinished(folder.path());
    drop(unfinished);
    assert_eq!(names_of(folder.path()), [".hidden", "notes.tmp"]);
}

/// Only folders that this tool made are removed, whatever their names are.
#[test]
fn folders_with_other_files_are_not_removed() {
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("out");
    for container in [".out.tmpAbC123", "out/.cntlora.tmpAbC123", "out/.other.tmpAbC123"] {
        fs::create_dir_all(parent.path().join(container).join("new")).unwrap();
        fs::write(parent.path().join(container).join("mine"), "").unwrap();
    }
    fs::create_dir_all(parent.path().join(".outer.tmpAbC123/new")).unwrap();
    fs::create_dir_all(parent.path().join(".out.tmpDeF456/new")).unwrap();
    remove_unfinished(&out);
    assert_eq!(names_of(parent.path()), [".out.tmpAbC123", ".outer.tmpAbC123", "out"]);
    assert_eq!(names_of(&out).len(), 2);
}

/// A folder from a stranger must not make us change files outside of it.
#[test]
fn plans_stay_in_their_folder() {
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("out");
    let container = out.join(".cntlora.tmpAbC123");
    fs::create_dir_all(container.join(NEW)).unwrap();
    fs::write(parent.path().join("kept"), "").unwrap();
    for path in ["../kept", "/kept", ""] {
        let text = format!("cntlora-replacement 1\0in place\x001\0-{path}\0end");
        fs::write(container.join(PLAN), text).unwrap();
        assert_eq!(Plan::read(&container), None, "{path:?}");
    }
    remove_unfinished(&out);
    assert!(parent.path().join("kept").exists() && !container.exists());
}

#[test]
fn plans_are_read_back_and_incomplete_ones_are_not() {
    let parent = tempfile::tempdir().unwrap();
    let container = StagedFolder::create(&parent.path().join("out")).unwrap().container.clone();
    fs::create_dir_all(container.join(NEW)).unwrap();
    let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect();
    let plan = Plan { in_place: true, remove: paths(&["a", "base/b"]), place: paths(&["a", "c"]) };
    plan.write(&container).unwrap();
    let inode = fs::metadata(container.join(NEW)).unwrap().ino();
    assert_eq!(Plan::read(&container), Some((plan, inode)));
    let text = fs::read(container.join(PLAN)).unwrap();
    for length in 0..text.len() {
        fs::write(container.join(PLAN), &text[..length]).unwrap();
        assert_eq!(Plan::read(&container), None, "{length}");
    }
}

/// A process was killed between the two moves that replace a folder.
#[test]
fn the_old_folder_is_found_and_put_back() {
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("out");
    let container = parent.path().join(".out.tmpAbC123");
    for name in [NEW, OLD] {
        fs::create_dir_all(container.join(name)).unwrap();
        fs::write(container.join(name).join("a"), name).unwrap();
    }
    let plan = Plan { in_place: false, remove: vec!["a".into()], place: vec!["a".into()] };
    plan.write(&container).unwrap();
    assert_eq!(interrupted_replacement(&out), Some(container.join(OLD)));
    remove_unfinished(&out);
    assert_eq!(interrupted_replacement(&out), None);
    assert_eq!(fs::read(out.join("a")).unwrap(), b"old");
    assert_eq!(names_of(parent.path()), ["out"]);
}
