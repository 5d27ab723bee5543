//! The files of an adapter, found from the path that the user gives: a folder, or a file with tensors.

use super::names::MLX_FILE;
use super::{CONFIG_FILE, SingleFile, TENSORS_FILE};
use crate::storage::safetensors::Header;
use crate::storage::{
    Access, Problem, Source, folder_of, interrupted_replacement, is_missing, is_sidecar, model_folder,
    names_in, quoted, unread_format,
};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// The files of an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// The file with the tensors.
    pub(super) tensors: PathBuf,
    /// The configuration, of an adapter of PEFT or mlx-lm.
    pub(super) config: Option<PathBuf>,
    /// True for a file of any name: a record in its folder may belong to another file.
    pub(super) has_any_name: bool,
}

impl Location {
    /// Finds the files of the adapter at a path.
    ///
    /// # Errors
    /// A problem if the path cannot be opened, has a format that is not read, or is a folder with several files and without known names.
    pub(super) fn of(path: &Path) -> Result<Self, Problem> {
        let path = &*model_folder(path)?;
        let metadata = fs::metadata(path).map_err(|error| cannot_open(path, &error))?;
        if metadata.is_dir() { Self::in_folder(path) } else { Self::of_file(path) }
    }

    /// The folder with the adapter and its record.
    pub(super) fn folder(&self) -> &Path {
        folder_of(&self.tensors)
    }

    /// The name of the file with the tensors.
    pub(super) fn file_name(&self) -> &str {
        self.tensors.file_name().and_then(OsStr::to_str).unwrap_or_default()
    }

    /// An adapter with a configuration, of PEFT or of mlx-lm.
    fn configured(folder: &Path) -> Self {
        let is_mlx = !is_missing(&folder.join(MLX_FILE)) && is_missing(&folder.join(TENSORS_FILE));
        Self {
            tensors: folder.join(if is_mlx { MLX_FILE } else { TENSORS_FILE }),
            config: Some(folder.join(CONFIG_FILE)),
            has_any_name: false,
        }
    }

    fn of_file(path: &Path) -> Result<Self, Problem> {
        let folder = folder_of(path);
        if let Some(problem) = unread_format(path) {
            return Err(problem);
        }
        let is = |name: &str| path.file_name() == Some(OsStr::new(name));
        if is(CONFIG_FILE) || ((is(TENSORS_FILE) || is(MLX_FILE)) && !is_missing(&folder.join(CONFIG_FILE))) {
            return Ok(Self::configured(folder));
        }
        if path.extension() == Some(OsStr::new("safetensors")) {
            return Ok(Self { tensors: path.into(), config: None, has_any_name: true });
        }
        Err(Problem::environment("the path of an adapter must be a folder or a .safetensors file")
            .in_file(path)
            .help(format!("give the folder that contains {CONFIG_FILE}, or the file with the tensors")))
    }

    fn in_folder(folder: &Path) -> Result<Self, Problem> {
        let holds = |name: &str| !is_missing(&folder.join(name));
        if holds(CONFIG_FILE) || holds(TENSORS_FILE) || holds(MLX_FILE) {
            return Ok(Self::configured(folder));
        }
        let known = SingleFile::ALL.into_iter().map(SingleFile::file_name).find(|name| holds(name));
        if let Some(name) = known {
            return Ok(Self { tensors: folder.join(name), config: None, has_any_name: false });
        }
        let names = names_in(folder)?;
        let names: Vec<&str> = names.iter().filter_map(|name| name.to_str()).collect();
        let is_tensors = |name: &&&str| name.ends_with(".safetensors") && !is_sidecar(OsStr::new(name));
        match names.iter().filter(is_tensors).collect::<Vec<_>>()[..] {
            [only] => Ok(Self { tensors: folder.join(only), config: None, has_any_name: true }),
            [] => match names.iter().find_map(|name| unread_format(&folder.join(name))) {
                Some(problem) => Err(problem),
                None => Ok(Self::configured(folder)),
            },
            ref several => {
                let names: Vec<String> = several.iter().map(|name| quoted(name)).collect();
                let what = format!(
                    "the folder has no {CONFIG_FILE}, and several files that could be the adapter: {}",
                    names.join(", ")
                );
                Err(Problem::data(what).in_file(folder).help("give one of the files"))
            }
        }
    }
}

/// True if a path leads to an adapter in a single file of any name. Problems with the file count as no.
pub fn is_single_file_adapter(path: &Path) -> bool {
    let header =
        |location: &Location| Header::read(&Source::open(&location.tensors, Access::Auto).ok()?).ok();
    let location = Location::of(path).ok().filter(|location| location.config.is_none());
    location.as_ref().and_then(header).is_some_and(|header| SingleFile::claims(&header))
}

fn cannot_open(path: &Path, error: &std::io::Error) -> Problem {
    let problem = Problem::io("cannot open the folder", error).in_file(path);
    match interrupted_replacement(path) {
        Some(old) => problem.help(format!(
            "a run was killed while it replaced this folder: give its command again, or rename {} to get the old folder back",
            quoted(&old.display().to_string())
        )),
        None => problem,
    }
}

/// Opens a file with the tensors of an adapter.
///
/// # Errors
/// A data problem if it is missing or damaged; I/O problems.
pub(super) fn open_tensors(path: &Path) -> Result<(Source, Header), Problem> {
    if is_missing(path) {
        let problem = Problem::data("the tensors of the PEFT adapter are missing").in_file(path);
        return Err(if path.with_file_name("adapter_model.bin").exists() {
            problem
                .help("adapter_model.bin is not read, because it can run arbitrary code: save the adapter as safetensors")
        } else {
            problem
        });
    }
    let source = Source::open(path, Access::Auto)?;
    let header = Header::read(&source)?;
    Ok((source, header))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::snapshot;
    use expect_test::expect;

    /// A process was killed between the two moves that replace a folder: the message names the old one.
    #[test]
    fn an_interrupted_replacement_has_a_way_back() {
        let parent = tempfile::tempdir().unwrap();
        let out = parent.path().join("out");
        fs::create_dir_all(parent.path().join(".out.tmpAbC123/old")).unwrap();
        expect![[r#"
            FOLDER/out: cannot open the folder: No such file or directory (os error 2); help: a run was killed while it replaced this folder: give its command again, or rename "FOLDER/.out.tmpAbC123/old" to get the old folder back
        "#]].assert_eq(&snapshot(Location::of(&out).unwrap_err()));
    }
}
