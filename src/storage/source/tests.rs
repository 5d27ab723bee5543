use super::super::faults::{Faults, inject};
use super::super::{Category, snapshot};
use super::*;
use expect_test::expect;
use quickcheck::quickcheck;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

fn refused(path: &Path) -> Problem {
    Source::open(path, Access::Auto).expect_err("must be refused")
}

quickcheck! {
    /// The result of a run must not depend on the way of reading.
    fn all_ways_of_reading_agree(content: Vec<u8>, offset: u16, length: u16) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("content");
        fs::write(&path, &content).unwrap();
        let offset = usize::from(offset) % (content.len() + 2);
        let length = usize::from(length) % (content.len() + 2);
        let expected = content.get(offset..offset + length);
        [Access::Auto, Access::Read, Access::Mmap]
            .map(|access| Source::open(&path, access).unwrap())
            .into_iter()
            .chain([Source::open_one_of(MOST_OPEN + 1, &path, Access::Auto).unwrap()])
            .chain([Source::from_bytes("content", content.clone())])
            .all(|source| {
                let mut buffer = vec![0; length];
                let read = source.read(&mut buffer, offset as u64).is_ok();
                let vec = source.read_vec(offset as u64, length as u64).ok();
                source.length() == content.len() as u64
                    && vec.as_deref() == expected
                    // An empty read beyond the end may succeed or not.
                    && (length == 0 || read == expected.is_some())
                    && (!read || expected.is_none_or(|expected| expected == buffer))
            })
    }
}

#[test]
fn offsets_beyond_the_end_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("content");
    fs::write(&path, b"12345").unwrap();
    let mut texts = String::new();
    for access in [Access::Read, Access::Mmap] {
        let source = Source::open(&path, access).unwrap();
        assert!(source.read(&mut [0; 1], u64::MAX).is_err());
        for read in [source.read_vec(3, 3), source.read_vec(u64::MAX, 2)] {
            texts += &snapshot(read.unwrap_err());
        }
    }
    expect![[r#"
            FOLDER/content: file is too short: it has 5 bytes, but at least 6 are needed
            FOLDER/content: file is too short: it has 5 bytes, but at least 18446744073709551615 are needed
            FOLDER/content: file is too short: it has 5 bytes, but at least 6 are needed
            FOLDER/content: file is too short: it has 5 bytes, but at least 18446744073709551615 are needed
        "#]]
    .assert_eq(&texts);
}

#[test]
fn irregular_and_missing_files_are_refused_without_blocking() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let socket = folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let circle = folder.path().join("circle");
    symlink(&circle, &circle).unwrap();
    let (missing, pattern) = (folder.path().join("missing"), folder.path().join("*.npy"));
    let mut texts = String::new();
    for path in [folder.path(), &pipe, &socket, Path::new("/dev/null"), &missing, &pattern, &circle] {
        let problem = refused(path);
        assert_eq!(problem.category(), Category::Io);
        texts += &snapshot(problem);
    }
    expect![[r#"
            FOLDER: not a regular file but a folder; help: give the path of a regular file
            FOLDER/pipe: not a regular file but a pipe; help: give the path of a regular file
            FOLDER/socket: not a regular file but a socket; help: give the path of a regular file
            /dev/null: not a regular file but a device; help: give the path of a regular file
            FOLDER/missing: cannot open: No such file or directory (os error 2); help: check the path
            FOLDER/*.npy: cannot open: No such file or directory (os error 2); help: the shell expands patterns: remove the quotes, and check that files match
            FOLDER/circle: cannot open: Too many levels of symbolic links (os error 40)
        "#]].assert_eq(&texts);
}

#[test]
fn files_that_cannot_be_opened_or_mapped_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("content");
    fs::write(&path, b"12345").unwrap();
    let faults = [
        (io::ErrorKind::PermissionDenied, Access::Read, 0),
        (io::ErrorKind::Other, Access::Read, 0),
        (io::ErrorKind::Unsupported, Access::Mmap, 1),
    ];
    let texts = faults.map(|(kind, access, pass)| {
        let faults = Faults::after(pass, false, kind);
        let (opened, _) = inject(faults, folder.path(), || Source::open(&path, access));
        snapshot(opened.unwrap_err())
    });
    expect![[r#"
            FOLDER/content: cannot open: permission denied; help: give this user read permission to the file and its folder
            FOLDER/content: cannot open: other error
            FOLDER/content: cannot map the file into memory: unsupported; help: read it with --io read
        "#]].assert_eq(&texts.concat());
}

#[test]
fn missing_memory_is_reported() {
    struct Huge;
    impl ReadAt for Huge {
        fn len(&self) -> u64 {
            u64::MAX
        }
        fn read_exact_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
            Ok(())
        }
    }
    let source = Source::from_reader("huge".into(), Box::new(Huge));
    let problem = source.read_vec(0, u64::MAX).unwrap_err();
    assert_eq!(problem.category(), Category::Io);
    expect![[r#"
            huge: not enough memory for 18446744073709551615 bytes
        "#]]
    .assert_eq(&snapshot(problem));
}

#[test]
fn links_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("blob"), b"12345").unwrap();
    symlink("blob", folder.path().join("link")).unwrap();
    let source = Source::open(&folder.path().join("link"), Access::Auto).unwrap();
    assert_eq!(source.read_vec(0, 5).unwrap(), b"12345");
    assert!(source.check_unchanged().is_ok());
}

#[test]
fn a_file_truncated_during_the_run_is_an_environment_problem() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("content");
    fs::write(&path, b"1234567890").unwrap();
    let source = Source::open(&path, Access::Auto).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(4).unwrap();
    let problem = source.read(&mut [0; 3], 2).unwrap_err();
    assert_eq!(problem.category(), Category::Io);
    expect![[r#"
            FOLDER/content: file is too short: it has 4 bytes, but at least 5 are needed; perhaps it was truncated during the run
        "#]].assert_eq(&snapshot(problem));
}

#[test]
fn interrupted_and_short_reads_are_repeated() {
    struct Halting {
        content: Vec<u8>,
        calls: AtomicUsize,
    }
    impl FileExt for Halting {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            if self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let rest = self.content.get(offset as usize..).unwrap_or_default();
            let given = rest.len().min(buffer.len()).min(3);
            buffer[..given].copy_from_slice(&rest[..given]);
            Ok(given)
        }
        fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
    let file = Halting { content: (0..20).collect(), calls: AtomicUsize::new(0) };
    let reader = Positioned { file, length: 20 };
    let source = Source::from_reader("halting".into(), Box::new(reader));
    assert_eq!(source.read_vec(2, 18).unwrap(), (2..20).collect::<Vec<u8>>());
    assert!(source.read(&mut [0; 4], 18).is_err());
}

#[test]
fn every_change_of_a_file_is_detected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("content");
    let another = folder.path().join("another");
    let changes: [&dyn Fn(); 3] = [
        &|| fs::write(&path, b"123456").unwrap(),
        &|| {
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        },
        &|| fs::rename(&another, &path).unwrap(),
    ];
    let mut texts = String::new();
    for change in changes {
        fs::write(&path, b"12345").unwrap();
        fs::write(&another, b"12345").unwrap();
        let source = Source::open(&path, Access::Auto).unwrap();
        source.check_unchanged().unwrap();
        change();
        let problem = source.check_unchanged().unwrap_err();
        assert!(problem.category() == Category::Data && problem.is_change());
        texts += &snapshot(problem);
    }
    let source = Source::open(&path, Access::Auto).unwrap();
    fs::remove_file(&path).unwrap();
    let problem = source.check_unchanged().unwrap_err();
    assert_eq!(problem.category(), Category::Io);
    texts += &snapshot(problem);
    expect![[r#"
            FOLDER/content: file changed while it was read: its length changed from 5 to 6 bytes; help: make sure that no program writes to it, and run again
            FOLDER/content: file changed while it was read: its time of modification changed; help: make sure that no program writes to it, and run again
            FOLDER/content: file changed while it was read: it was replaced by another file; help: make sure that no program writes to it, and run again
            FOLDER/content: cannot check whether the file changed while it was read: No such file or directory (os error 2)
        "#]].assert_eq(&texts);
}

#[test]
fn a_failing_reader_is_an_environment_problem() {
    struct Broken;
    impl ReadAt for Broken {
        fn len(&self) -> u64 {
            10
        }
        fn read_exact_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
            Err(io::Error::other("disk on fire"))
        }
    }
    let source = Source::from_reader("broken".into(), Box::new(Broken));
    let problem = source.read_vec(0, 10).unwrap_err();
    assert_eq!(problem.to_string(), "broken: cannot read: disk on fire");
    assert_eq!(problem.category(), Category::Io);
}

/// Blocks follow one another without gaps, and a range that is too long for the file is refused.
#[test]
fn a_range_is_read_block_by_block() {
    let bytes: Vec<u8> = (0..(2u32 << 20) + 9).map(|at| (at % 251) as u8).collect();
    let source = Source::from_bytes("x", bytes.clone());
    for range in [3..bytes.len() - 1, 5..5, 0..1 << 20] {
        let (mut read, mut lengths) = (Vec::new(), Vec::new());
        let each = |block: Vec<u8>| {
            lengths.push(block.len());
            read.extend(block);
            Ok(())
        };
        source.for_each_block(range.start as u64..range.end as u64, each).unwrap();
        assert!(read == bytes[range.clone()], "{range:?}");
        assert!(lengths.iter().rev().skip(1).all(|&length| length == 1 << 20), "{lengths:?}");
    }
    assert!(source.for_each_block(0..source.length() + 1, |_| Ok(())).is_err());
}
