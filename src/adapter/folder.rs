//! The output folder.

use super::{CONFIG_FILE, TENSORS_FILE};
use crate::storage::faults::{Step, step};
use crate::storage::{AtomicFile, Problem, is_missing, names_in, quoted};
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// An existing output folder. If it was created here and stays empty, dropping it removes the folder.
///
/// Callers write all files before they commit the first one. A failure before that leaves the folder unchanged.
pub(super) struct OutputFolder<'a> {
    path: &'a Path,
    created: bool,
}

impl<'a> OutputFolder<'a> {
    /// Creates the folder if it does not exist. Its parent must exist.
    pub(super) fn open(path: &'a Path) -> Result<Self, Problem> {
        let failed = |error: io::Error| Problem::io("cannot create the folder", &error).in_file(path);
        match step(Step::CreateFolder, path).and_then(|()| fs::create_dir(path)) {
            Ok(()) => Ok(Self { path, created: true }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if path.is_dir() {
                    return Ok(Self { path, created: false });
                }
                Err(Problem::environment("the output path is not a folder")
                    .in_file(path)
                    .help("choose another name for the output"))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(failed(error).help("create its parent folder first"))
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// The path of the folder.
    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    /// Starts a file. Creates the folders below this one that are part of its name.
    pub(super) fn create(&self, name: impl AsRef<Path>) -> Result<AtomicFile, Problem> {
        let path = self.path.join(name);
        if let Some(parent) = path.parent() {
            step(Step::CreateFolder, parent)
                .and_then(|()| fs::create_dir_all(parent))
                .map_err(|error| Problem::io("cannot create the folder", &error).in_file(parent))?;
        }
        AtomicFile::create(&path)
    }

    /// Creates a file with this content.
    pub(super) fn write(&self, name: impl AsRef<Path>, bytes: &[u8]) -> Result<AtomicFile, Problem> {
        let mut file = self.create(name)?;
        file.put(bytes)?;
        Ok(file)
    }

    /// Removes a file, if it exists, and syncs the folder.
    pub(super) fn remove(&self, name: &str) -> Result<(), Problem> {
        let path = self.path.join(name);
        match step(Step::Remove, &path).and_then(|()| fs::remove_file(&path)) {
            Ok(()) => {
                let failed =
                    |error| Problem::io("removed, but cannot sync its folder to disk", &error).in_file(&path);
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
            // Fails, as intended, if the folder is not empty.
            let _ = fs::remove_dir(self.path);
        }
    }
}

/// Checks that an output folder does not contain an adapter or a model, complete or not.
///
/// Callers check this before long computations, because the writers replace existing files.
///
/// # Errors
/// A usage problem if the folder contains files of an adapter or model; an I/O problem if the path is not a folder.
pub fn refuse_occupied(folder: &Path) -> Result<(), Problem> {
    if is_missing(folder) {
        return Ok(());
    }
    let names = names_in(folder).map_err(|problem| problem.help("choose another name for the output"))?;
    let names: Vec<String> = names.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    let occupies = |name: &&String| {
        [CONFIG_FILE, TENSORS_FILE, "config.json"].contains(&name.as_str())
            || name.ends_with(".safetensors")
            || name.ends_with(".safetensors.index.json")
    };
    match names.iter().find(occupies) {
        None => Ok(()),
        Some(name) => Err(Problem::usage(format!(
            "output folder already contains an adapter or a model: {}",
            quoted(name)
        ))
        .in_file(folder)
        .help("choose another folder, or give --force to replace it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::faults::{self, Faults};
    use crate::storage::{Category, snapshot};
    use expect_test::expect;

    #[test]
    fn a_created_folder_is_removed_only_if_it_stays_empty() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("new");
        drop(OutputFolder::open(&path).unwrap());
        assert!(!path.exists());

        let folder = OutputFolder::open(&path).unwrap();
        folder.write("below/it", b"text").unwrap().commit().unwrap();
        drop(folder);
        assert_eq!(fs::read(path.join("below/it")).unwrap(), b"text");

        let empty = parent.path().join("empty");
        fs::create_dir(&empty).unwrap();
        drop(OutputFolder::open(&empty).unwrap());
        assert!(empty.exists(), "a folder of the user is not removed");
    }

    #[test]
    fn a_missing_parent_and_a_file_in_place_of_the_folder_are_refused() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join("file"), b"").unwrap();
        let texts = ["missing/new", "file"].map(|name| {
            let problem = OutputFolder::open(&parent.path().join(name)).err().unwrap();
            assert_eq!(problem.category(), Category::Io);
            snapshot(problem)
        });
        expect![[r#"
            FOLDER/missing/new: cannot create the folder: No such file or directory (os error 2); help: create its parent folder first
            FOLDER/file: the output path is not a folder; help: choose another name for the output
        "#]].assert_eq(&texts.concat());
    }

    #[test]
    fn failed_removals_name_the_file() {
        let parent = faults::folder();
        let path = parent.path().join("out");
        fs::create_dir(&path).unwrap();
        let texts = [0, 1].map(|pass| {
            fs::write(path.join("old"), b"").unwrap();
            let remove = || OutputFolder::open(&path).unwrap().remove("old");
            // The first step opens the folder.
            let faults = Faults::after(pass + 1, false, io::ErrorKind::PermissionDenied);
            snapshot(faults::inject(faults, &path, remove).0.unwrap_err())
        });
        expect![[r#"
            FOLDER/out/old: cannot remove the old file: permission denied
            FOLDER/out/old: removed, but cannot sync its folder to disk: permission denied
        "#]]
        .assert_eq(&texts.concat());
    }

    #[test]
    fn adapters_and_models_occupy_a_folder_and_notes_do_not() {
        let parent = tempfile::tempdir().unwrap();
        assert!(refuse_occupied(&parent.path().join("missing")).is_ok());
        fs::write(parent.path().join("notes.txt"), b"").unwrap();
        assert!(refuse_occupied(parent.path()).is_ok());
        let names =
            [CONFIG_FILE, TENSORS_FILE, "config.json", "x.safetensors", "model.safetensors.index.json"];
        let mut texts = String::new();
        for name in names {
            let path = parent.path().join(name);
            fs::write(&path, b"").unwrap();
            let problem = refuse_occupied(parent.path()).unwrap_err();
            assert_eq!(problem.category(), Category::Usage);
            texts += &snapshot(problem);
            fs::remove_file(path).unwrap();
        }
        texts += &snapshot(refuse_occupied(&parent.path().join("notes.txt")).unwrap_err());
        expect![[r#"
            FOLDER: output folder already contains an adapter or a model: "adapter_config.json"; help: choose another folder, or give --force to replace it
            FOLDER: output folder already contains an adapter or a model: "adapter_model.safetensors"; help: choose another folder, or give --force to replace it
            FOLDER: output folder already contains an adapter or a model: "config.json"; help: choose another folder, or give --force to replace it
            FOLDER: output folder already contains an adapter or a model: "x.safetensors"; help: choose another folder, or give --force to replace it
            FOLDER: output folder already contains an adapter or a model: "model.safetensors.index.json"; help: choose another folder, or give --force to replace it
            FOLDER/notes.txt: cannot list the folder: Not a directory (os error 20); help: choose another name for the output
        "#]].assert_eq(&texts);
    }
}
