//! The folder that files are written to.

use super::{CONFIG_FILE, TENSORS_FILE};
use crate::storage::faults::{Step, step};
use crate::storage::{AtomicFile, Problem, quoted};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// A folder that exists. If it had to be created and stays empty, it is removed again.
///
/// Files are first all written, then all committed: a failure before that leaves the folder as it was.
pub(super) struct OutputFolder<'a> {
    path: &'a Path,
    created: bool,
}

impl<'a> OutputFolder<'a> {
    /// Creates the folder if it does not exist; its parent must.
    pub(super) fn open(path: &'a Path) -> Result<Self, Problem> {
        let failed = |error: io::Error| Problem::io("cannot create this folder", &error).in_file(path);
        match step(Step::CreateFolder, path).and_then(|()| fs::create_dir(path)) {
            Ok(()) => Ok(Self { path, created: true }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if path.is_dir() {
                    return Ok(Self { path, created: false });
                }
                Err(Problem::environment("expected a folder to write to, or nothing; found something else")
                    .in_file(path)
                    .help("choose another name for the output"))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(failed(error).help("create the folder that it is to be in"))
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    /// Starts a file, with the folders below this one that its name asks for.
    pub(super) fn create(&self, name: impl AsRef<Path>) -> Result<AtomicFile, Problem> {
        let path = self.path.join(name);
        if let Some(parent) = path.parent() {
            step(Step::CreateFolder, parent)
                .and_then(|()| fs::create_dir_all(parent))
                .map_err(|error| Problem::io("cannot create this folder", &error).in_file(parent))?;
        }
        AtomicFile::create(&path)
    }

    /// Removes a file, if it is there, and makes sure that it stays removed.
    pub(super) fn remove(&self, name: &str) -> Result<(), Problem> {
        let path = self.path.join(name);
        match step(Step::Remove, &path).and_then(|()| fs::remove_file(&path)) {
            Ok(()) => {
                let failed =
                    |error| Problem::io("cannot bring its removal to the disk", &error).in_file(&path);
                step(Step::SyncFolder, &path).and_then(|()| File::open(self.path)?.sync_all()).map_err(failed)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Problem::io("cannot remove the old file", &error).in_file(&path)),
        }
    }
}

impl Drop for OutputFolder<'_> {
    fn drop(&mut self) {
        if self.created {
            // Fails, as it should, if anything is in it.
            let _ = fs::remove_dir(self.path);
        }
    }
}

/// Writes to a file under construction.
pub(super) fn write_all(file: &mut AtomicFile, bytes: &[u8]) -> Result<(), Problem> {
    file.write_all(bytes).map_err(|error| Problem::io("cannot write", &error).in_file(file.path()))
}

/// Refuses an output folder that holds an adapter or a model already, whole or in part.
///
/// To be asked before heavy work. The writers themselves replace what they find.
///
/// # Errors
/// A usage problem, with the way to force it, if an adapter or model files are there; a usage or I/O problem for a path that is no folder.
pub fn refuse_occupied(folder: &Path) -> Result<(), Problem> {
    let failed = |error: io::Error| Problem::io("cannot look into this folder", &error).in_file(folder);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error).help("choose another name for the output")),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let occupies = |name: &&String| {
        [CONFIG_FILE, TENSORS_FILE, "config.json"].contains(&name.as_str())
            || name.ends_with(".safetensors")
            || name.ends_with(".safetensors.index.json")
    };
    match names.iter().find(occupies) {
        None => Ok(()),
        Some(name) => Err(Problem::usage(format!(
            "expected an output folder without an adapter or a model, found {}",
            quoted(name)
        ))
        .in_file(folder)
        .help("choose another folder, or give --force to replace what is there")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Category;

    #[test]
    fn a_created_folder_goes_when_nothing_was_written_and_stays_otherwise() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("new");
        drop(OutputFolder::open(&path).unwrap());
        assert!(!path.exists());

        let folder = OutputFolder::open(&path).unwrap();
        let mut file = folder.create("below/it").unwrap();
        write_all(&mut file, b"text").unwrap();
        file.commit().unwrap();
        drop(folder);
        assert_eq!(fs::read(path.join("below/it")).unwrap(), b"text");

        let empty = parent.path().join("empty");
        fs::create_dir(&empty).unwrap();
        drop(OutputFolder::open(&empty).unwrap());
        assert!(empty.exists(), "a folder of the user is not removed");
    }

    #[test]
    fn a_missing_parent_and_a_file_in_the_way_are_problems_of_the_environment() {
        let parent = tempfile::tempdir().unwrap();
        let missing = parent.path().join("missing/new");
        let problem = OutputFolder::open(&missing).err().unwrap();
        assert_eq!(problem.category(), Category::Io);
        assert_eq!(problem.next_step(), Some("create the folder that it is to be in"));
        let file = parent.path().join("file");
        fs::write(&file, b"").unwrap();
        let problem = OutputFolder::open(&file).err().unwrap();
        assert_eq!(problem.category(), Category::Io);
        assert!(problem.to_string().contains("expected a folder"), "{problem}");
    }

    #[test]
    fn adapters_and_models_occupy_a_folder_and_notes_do_not() {
        let parent = tempfile::tempdir().unwrap();
        assert!(refuse_occupied(&parent.path().join("missing")).is_ok());
        fs::write(parent.path().join("notes.txt"), b"").unwrap();
        assert!(refuse_occupied(parent.path()).is_ok());
        for name in
            [CONFIG_FILE, TENSORS_FILE, "config.json", "x.safetensors", "model.safetensors.index.json"]
        {
            let path = parent.path().join(name);
            fs::write(&path, b"").unwrap();
            let problem = refuse_occupied(parent.path()).unwrap_err();
            assert_eq!(problem.category(), Category::Usage);
            assert!(problem.to_string().contains(name), "{problem}");
            assert!(problem.next_step().unwrap().contains("--force"));
            fs::remove_file(path).unwrap();
        }
        let file = parent.path().join("notes.txt");
        assert_eq!(refuse_occupied(&file).unwrap_err().category(), Category::Io);
    }
}
