//! The output folder, and the names of its files.

use super::{CONFIG_FILE, TENSORS_FILE};
use crate::storage::{NewFile, Problem, StagedFolder, is_missing, names_in, quoted};
use std::path::{Path, PathBuf};

/// A folder of an output that is being written: a staged folder, or a folder in it.
pub(super) struct OutputFolder<'a> {
    staged: &'a StagedFolder,
    /// The path in the staged folder.
    below: PathBuf,
    /// The path as the user gave it.
    path: &'a Path,
}

impl<'a> OutputFolder<'a> {
    pub(super) fn new(staged: &'a StagedFolder, below: PathBuf, path: &'a Path) -> Self {
        Self { staged, below, path }
    }

    /// The path of the folder that will be replaced.
    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    /// Starts a file. Creates the folders below this one that are part of its name.
    pub(super) fn create(&self, name: impl AsRef<Path>) -> Result<NewFile, Problem> {
        let name = name.as_ref();
        self.staged.file(&self.below.join(name), &self.path.join(name))
    }

    /// Creates a file with this content.
    pub(super) fn write(&self, name: impl AsRef<Path>, bytes: &[u8]) -> Result<NewFile, Problem> {
        let mut file = self.create(name)?;
        file.put(bytes)?;
        Ok(file)
    }
}

/// The names of the files of a part.
pub(super) struct Names {
    /// Old files that are not kept, in the order in which they are removed.
    pub(super) old: Vec<PathBuf>,
    /// New files, in the order in which they are put in place. The presence of the last one means that all are complete.
    pub(super) new: Vec<PathBuf>,
}

/// The paths of files in a folder.
pub(super) fn names_of(files: &[NewFile], folder: &Path) -> Vec<PathBuf> {
    files.iter().filter_map(|file| file.path().strip_prefix(folder).ok().map(Path::to_owned)).collect()
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
    use crate::storage::{Category, snapshot};
    use expect_test::expect;
    use std::fs;

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
