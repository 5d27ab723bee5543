use super::super::snapshot;
use super::*;
use crate::storage::faults::{Faults, folder, inject};
use crate::storage::remove_unfinished;
use quickcheck::{Arbitrary, Gen, quickcheck};
use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

/// The files below a folder, by their relative paths.
type Files = BTreeMap<PathBuf, Vec<u8>>;

fn files(root: &Path) -> Files {
    let mut found = Files::new();
    for below in folders_in(root).unwrap() {
        for entry in fs::read_dir(root.join(&below)).unwrap() {
            let entry = entry.unwrap();
            if !entry.file_type().unwrap().is_dir() {
                found.insert(below.join(entry.file_name()), fs::read(entry.path()).unwrap());
            }
        }
    }
    found
}

/// Stages new files for a folder.
fn staged(path: &Path, new: &[&str], remove: &[&str]) -> Replacement {
    let folder = StagedFolder::create(path).unwrap();
    for name in new {
        let mut file = folder.file(Path::new(name), &path.join(name)).unwrap();
        file.put(b"new").unwrap();
        file.finish().unwrap();
    }
    let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect();
    Replacement::new(folder, paths(remove), paths(new))
}

/// Old files, and which of them are ours: in a folder, in folders of it, and in folders of the user.
#[derive(Clone, Debug)]
struct Old(BTreeMap<&'static str, bool>);

const NAMES: [&str; 7] = ["a", "b", "base/a", "base/c", "base/deep/a", "mine/a", "mine/deep/b"];

impl Arbitrary for Old {
    fn arbitrary(g: &mut Gen) -> Self {
        let names = NAMES.into_iter().filter(|_| bool::arbitrary(g)).collect::<Vec<_>>();
        Self(names.into_iter().map(|name| (name, bool::arbitrary(g) && !name.starts_with("mine"))).collect())
    }
}

quickcheck! {
    /// In every way of replacing a folder, the new files and those of others are left, and nothing else.
    fn new_files_and_those_of_others_are_left(old: Old, new: Vec<bool>, way: u8) -> bool {
        let parent = folder();
        let out = parent.path().join("out");
        fs::create_dir_all(out.join("x")).unwrap();
        for name in old.0.keys() {
            fs::create_dir_all(folder_of(&out.join(name))).unwrap();
            fs::write(out.join(name), b"old").unwrap();
        }
        let path = if way.is_multiple_of(3) { out.join("x/..") } else { out.clone() };
        let new: Vec<&str> = NAMES.into_iter().zip(new).filter_map(|(name, new)| new.then_some(name)).collect();
        let remove: Vec<&str> = old.0.iter().filter_map(|(name, ours)| ours.then_some(*name)).collect();
        let faults = Faults { exchange: way % 3 == 1, ..Faults::none() };
        inject(faults, parent.path(), || replace(vec![staged(&path, &new, &remove)])).0.unwrap();
        let mut expected: Files = old.0.iter().filter(|(_, ours)| !**ours).map(|(name, _)| (name.into(), b"old".to_vec())).collect();
        expected.extend(new.iter().map(|name| (name.into(), b"new".to_vec())));
        files(&out) == expected && fs::read_dir(parent.path()).unwrap().count() == 1
    }
}

/// If the second of two folders cannot be replaced, the first is put back.
#[test]
fn several_folders_are_replaced_together_or_not_at_all() {
    for exchange in [true, false] {
        let mut failures = 0;
        for pass in 0.. {
            let parent = folder();
            for name in ["one", "two"] {
                fs::create_dir_all(parent.path().join(name).join("mine")).unwrap();
                fs::write(parent.path().join(name).join("mine/notes"), b"").unwrap();
                fs::write(parent.path().join(name).join("a"), b"old").unwrap();
            }
            let old = files(parent.path());
            let all = ["one", "two"].map(|name| staged(&parent.path().join(name), &["a"], &["a"]));
            let faults = Faults {
                exchange,
                counts: |step| matches!(step, Step::Exchange | Step::Rename),
                ..Faults::after(pass, false, io::ErrorKind::StorageFull)
            };
            let (result, _) = inject(faults, parent.path(), || replace(all.into()));
            match result {
                Ok(()) => break,
                Err(_) => assert_eq!(files(parent.path()), old, "number {pass}"),
            }
            failures += 1;
        }
        assert!(failures > 4, "{failures}");
    }
}

/// The second folder cannot be replaced, so the first, new one is taken back.
#[test]
fn a_new_folder_is_taken_back() {
    let parent = folder();
    fs::create_dir(parent.path().join("two")).unwrap();
    let all = ["one", "two"].map(|name| staged(&parent.path().join(name), &["a"], &[]));
    let faults = Faults {
        counts: |step| step == Step::Exchange,
        ..Faults::after(0, true, io::ErrorKind::StorageFull)
    };
    inject(faults, parent.path(), || replace(all.into())).0.unwrap_err();
    assert!(files(parent.path()).is_empty() && !parent.path().join("one").exists());
}

#[test]
fn the_permissions_of_the_folder_and_links_of_the_user_are_kept() {
    let parent = folder();
    let out = parent.path().join("out");
    fs::create_dir_all(out.join("base")).unwrap();
    fs::write(out.join("mine"), b"mine").unwrap();
    symlink("nowhere", out.join("link")).unwrap();
    fs::set_permissions(&out, Permissions::from_mode(0o2750)).unwrap();
    fs::set_permissions(out.join("base"), Permissions::from_mode(0o711)).unwrap();
    let inode = fs::metadata(out.join("mine")).unwrap().ino();
    replace(vec![staged(&out, &["a", "base/a"], &[])]).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&out), mode(&out.join("base"))), (0o2750, 0o711));
    assert_eq!(fs::read_link(out.join("link")).unwrap(), Path::new("nowhere"));
    let mine = fs::metadata(out.join("mine")).unwrap();
    assert_eq!((mine.ino(), mine.nlink()), (inode, 1));
}

/// Access control lists are attributes, too.
#[test]
fn the_attributes_of_the_folder_are_kept() {
    use rustix::fs::{XattrFlags, getxattr, setxattr};
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("out");
    fs::create_dir(&out).unwrap();
    setxattr(&out, "user.note", b"mine", XattrFlags::empty()).unwrap();
    replace(vec![staged(&out, &["a"], &[])]).unwrap();
    let mut value = [0; 4];
    assert_eq!(getxattr(&out, "user.note", &mut value).unwrap(), 4);
    assert_eq!(&value, b"mine");
}

/// A new folder never replaces one that another program made in the meantime.
#[test]
fn a_folder_that_appears_is_not_replaced() {
    let parent = folder();
    let out = parent.path().join("out");
    let new = staged(&out, &["a"], &[]);
    fs::create_dir(&out).unwrap();
    fs::write(out.join("a"), b"of another program").unwrap();
    expect_test::expect![[r#"
        FOLDER/out: cannot replace the folder: File exists (os error 17)
    "#]]
    .assert_eq(&snapshot(replace(vec![new]).unwrap_err()));
    assert_eq!(fs::read(out.join("a")).unwrap(), b"of another program");
}

/// Another program writes a file while the new folder is written.
#[test]
fn files_that_others_write_meanwhile_are_kept() {
    let parent = folder();
    let out = parent.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("log"), b"1").unwrap();
    let mut new = staged(&out, &["a"], &[]);
    new.prepare().unwrap();
    fs::write(out.join("late"), b"2").unwrap();
    fs::write(out.join("log.new"), b"3").unwrap();
    fs::rename(out.join("log.new"), out.join("log")).unwrap();
    let mut held = hold();
    new.put_in_place(&mut held).unwrap();
    drop(held);
    new.finish().unwrap();
    let found = files(&out);
    assert_eq!(found[Path::new("late")], b"2");
    assert_eq!(found[Path::new("log")], b"3");
}

/// A failure while files are put in place one by one: the next run completes it.
#[test]
fn files_that_are_put_in_place_one_by_one_are_completed_later() {
    for pass in 0.. {
        let parent = folder();
        let out = parent.path().join("out");
        fs::create_dir_all(out.join("x")).unwrap();
        for name in ["a", "b", "mine"] {
            fs::write(out.join(name), b"old").unwrap();
        }
        let old = files(&out);
        let new = staged(&out.join("x/.."), &["a", "c/d"], &["a", "b"]);
        let faults = Faults::after(pass, false, io::ErrorKind::StorageFull);
        let (result, _) = inject(faults, &out, || replace(vec![new]));
        remove_unfinished(&out);
        let found = files(&out);
        let complete: Files = [("a", "new"), ("c/d", "new"), ("mine", "old")]
            .map(|(name, text)| (name.into(), text.into()))
            .into();
        if result.is_ok() {
            assert!(pass > 5 && found == complete);
            break;
        }
        assert!(found == old || found == complete, "{pass}: {:?}", found.keys());
    }
}
