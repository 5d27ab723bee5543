use super::super::{Category, snapshot};
use super::*;
use expect_test::expect;
use std::os::unix::fs::symlink;

#[test]
fn a_missing_parent_and_a_file_in_place_of_the_folder_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    fs::write(parent.path().join("file"), b"").unwrap();
    symlink("nowhere", parent.path().join("dangling")).unwrap();
    let texts = ["missing/new", "file", "dangling", "file/below"].map(|name| {
        let problem = StagedFolder::create(&parent.path().join(name)).unwrap_err();
        assert_eq!(problem.category(), Category::Io);
        snapshot(problem)
    });
    expect![[r#"
        FOLDER/missing/new: cannot create the folder: No such file or directory (os error 2); help: create its parent folder first
        FOLDER/file: the output path is not a folder; help: choose another name for the output
        FOLDER/dangling: the output path is not a folder; help: choose another name for the output
        FOLDER/file/below: cannot create the folder: Not a directory (os error 20)
    "#]]
    .assert_eq(&texts.concat());
}

/// A folder without a name of its own in the path is perhaps the current folder of a shell, so it is not renamed.
#[test]
fn the_new_folder_lies_beside_the_old_one_or_in_it() {
    let parent = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(parent.path()).unwrap();
    fs::create_dir_all(root.join("out/below")).unwrap();
    symlink("out", root.join("link")).unwrap();
    let place = |path: &str| {
        let staged = StagedFolder::create(&parent.path().join(path)).unwrap();
        assert!(staged.new_folder().is_dir());
        let container = staged.container.clone();
        drop(staged);
        assert!(!container.exists());
        let place = container.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        place[..place.len() - 6].to_owned()
    };
    assert_eq!(place("new"), ".new.tmp");
    assert_eq!(place("out"), ".out.tmp");
    assert_eq!(place("link"), ".out.tmp");
    assert_eq!(place("out/."), ".out.tmp");
    assert_eq!(place("out/below/.."), "out/.cntlora.tmp");
}

/// Folders and pipes are never replaced by files.
#[test]
fn files_replace_only_files() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("out");
    fs::create_dir_all(path.join("folder")).unwrap();
    fs::write(path.join("file"), b"").unwrap();
    let staged = StagedFolder::create(&path).unwrap();
    let file = |name: &str| staged.file(Path::new(name), &path.join(name));
    let texts = ["folder", "file/below"].map(|name| snapshot(file(name).unwrap_err()));
    expect![[r#"
        FOLDER/out/folder: cannot replace it with a file, because it is not a regular file; help: choose another name for the output
        FOLDER/out/file: the output path is not a folder; help: choose another name for the output
    "#]]
    .assert_eq(&texts.concat());
    assert!(file("file").is_ok() && file("folder/below").is_ok() && file("new/below").is_ok());
}
