//! The folders of an output, completely written before old folders are replaced.

use super::card::{self, Author, CARD_FILE};
use super::folder::{Names, OutputFolder, names_of};
use super::names::adapter_files;
use super::record::Record;
use super::replace::{BaseRecord, is_anchor};
use super::residual::Residuals;
use super::{
    AdaptedWeight, Base, BaseFormat, Contents, FileRecord, Format, RECORD_FILE, REPORT_FILE, mlx, peft,
    single_file,
};
use crate::element::Element;
use crate::storage::{
    Category, Checkpoint, NewFile, Problem, Problems, Replacement, StagedFile, StagedFolder, real, replace,
};
use std::path::{Path, PathBuf};

/// The default folder for the changed base of an adapter.
pub fn default_base(folder: &Path) -> PathBuf {
    folder.join("base")
}

/// The folder of the anchor: the adapter that subtracts the initial update of another adapter.
pub fn anchor_of(folder: &Path) -> PathBuf {
    folder.join("anchor")
}

/// The folders of an output, with all files of an adapter, its changed base or its anchor. Dropping it removes them.
///
/// Folders that lie in one another are replaced together, in one step. The others follow one another directly, the folder of the
/// adapter last.
pub struct Staged {
    roots: Vec<Root>,
    page: Option<StagedFile>,
}

/// A folder that is replaced as a whole.
struct Root {
    folder: StagedFolder,
    /// In the order in which they were written.
    parts: Vec<Part>,
}

/// The files of an adapter, a base or an anchor. Parts are put in place in the order of their kinds.
struct Part {
    kind: Kind,
    /// The old files that it does not keep, in the order of their removal, and its own. The paths are relative to the root.
    old: Vec<PathBuf>,
    new: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Files of an old base or anchor, without new ones.
    Old,
    Base,
    Anchor,
    Adapter,
}

impl Staged {
    /// Creates empty folders in the place of these. Their parent folders must exist, or be among them.
    ///
    /// # Errors
    /// An I/O problem if a folder cannot be created, or if there is a file in its place.
    pub fn create(folders: &[&Path]) -> Result<Self, Problem> {
        let mut staged = Self { roots: Vec::new(), page: None };
        let targets: Vec<PathBuf> = folders.iter().map(|folder| real(folder)).collect();
        for (folder, target) in folders.iter().zip(&targets) {
            let is_inner = targets.iter().any(|other| other != target && target.starts_with(other));
            if !is_inner && staged.root_of(target).is_none() {
                staged.add_root(folder)?;
            }
        }
        Ok(staged)
    }

    fn add_root(&mut self, folder: &Path) -> Result<usize, Problem> {
        self.roots.push(Root { folder: StagedFolder::create(folder)?, parts: Vec::new() });
        Ok(self.roots.len() - 1)
    }

    /// The index of the root that holds a folder, and the path of the folder in it.
    fn root_of(&self, target: &Path) -> Option<(usize, PathBuf)> {
        let roots = self.roots.iter().enumerate();
        roots.rev().find_map(|(index, root)| {
            Some((index, target.strip_prefix(root.folder.target()).ok()?.to_owned()))
        })
    }

    /// Writes the files of a part.
    fn part<T>(
        &mut self,
        kind: Kind,
        folder: &Path,
        write: impl FnOnce(&OutputFolder<'_>) -> Result<(Names, T), Problems>,
    ) -> Result<T, Problems> {
        let (index, below) = match self.root_of(&real(folder)) {
            Some(found) => found,
            None => (self.add_root(folder)?, PathBuf::new()),
        };
        let root = &mut self.roots[index];
        let output = OutputFolder::new(&root.folder, below.clone(), folder);
        let (Names { old, new }, result) = write(&output)?;
        let [old, new] = [old, new].map(|names| names.iter().map(|name| below.join(name)).collect());
        root.parts.push(Part { kind, old, new });
        Ok(result)
    }

    /// Writes an adapter, in any format. Returns the hash of its tensors.
    ///
    /// # Errors
    /// - Data: no layers, factors whose shapes do not fit, numbers that are not finite before or after rounding, modules whose names are
    ///   equal in the format.
    /// - Usage: a scale that is not positive, a number format other than F32, F16 and BF16, a layer that the format does not support.
    /// - I/O: problems of writing.
    pub fn adapter(
        &mut self,
        folder: &Path,
        contents: &Contents<'_>,
        format: Format,
    ) -> Result<FileRecord, Problems> {
        self.adapter_of(Kind::Adapter, folder, contents, format)
    }

    /// Writes an anchor as [`adapter`](Self::adapter) does.
    ///
    /// # Errors
    /// Those of [`adapter`](Self::adapter).
    pub fn anchor(&mut self, folder: &Path, contents: &Contents<'_>, format: Format) -> Result<(), Problems> {
        self.adapter_of(Kind::Anchor, folder, contents, format).map(drop)
    }

    fn adapter_of(
        &mut self,
        kind: Kind,
        folder: &Path,
        contents: &Contents<'_>,
        format: Format,
    ) -> Result<FileRecord, Problems> {
        self.part(kind, folder, |output| {
            let (files, hash) = match format {
                Format::Peft => peft::write(output, contents)?,
                Format::Mlx => mlx::write(output, contents)?,
                Format::SingleFile(format, component) => {
                    single_file::write(output, contents, (format, component))?
                }
            };
            Ok((finish_adapter(files, folder)?, hash))
        })
    }

    /// Writes a copy of the checkpoint with `W − s B A` in place of each adapted weight, as
    /// [`write_residual_base`](super::write_residual_base) does. `adapter` is the hash of the tensors of its adapter. Returns the names of
    /// files and folders of the model that were not copied.
    ///
    /// # Errors
    /// Those of [`write_residual_base`](super::write_residual_base).
    pub fn base(
        &mut self,
        base: Base<'_>,
        checkpoint: &Checkpoint,
        layers: &[AdaptedWeight],
        (scale, element): (f64, Element),
        adapter: Option<FileRecord>,
    ) -> Result<Vec<String>, Problems> {
        let residuals = Residuals::new(base, checkpoint, layers, scale, element)?;
        self.part(Kind::Base, base.folder, |output| residuals.write(output, adapter))
    }

    /// Adds a page, which is put in place before the folders.
    pub fn page(&mut self, page: StagedFile) {
        self.page = Some(page);
    }

    /// Puts everything in place, and removes the old files.
    ///
    /// # Errors
    /// An I/O problem if a step fails. The old folders are in place then, or the new ones.
    pub fn commit(self) -> Result<(), Problem> {
        let Self { mut roots, page } = self;
        // An old adapter keeps its base until the new one is in place.
        roots.sort_by_key(|root| {
            let last = root.parts.iter().map(|part| part.kind).max();
            (last == Some(Kind::Old), last)
        });
        page.map_or(Ok(()), StagedFile::commit)?;
        replace(roots.into_iter().map(Root::into_replacement).collect())
    }

    /// Does the same as [`commit`](Self::commit), and also removes the base and the anchor of an old adapter in `folder`.
    ///
    /// # Errors
    /// Those of [`commit`](Self::commit); a data problem if the record of the old base lists files outside of its folder.
    pub fn commit_adapter(mut self, folder: &Path) -> Result<(), Problems> {
        let base = default_base(folder);
        if let Some(old) = BaseRecord::of(&base)?
            && !self.has(Kind::Base, &base)
        {
            self.part(Kind::Old, &base, |_| Ok((Names { old: old.old_files(), new: Vec::new() }, ())))?;
        }
        let anchor = anchor_of(folder);
        if is_anchor(&anchor)? && !self.has(Kind::Anchor, &anchor) {
            let mut old: Vec<PathBuf> = adapter_files().chain([RECORD_FILE]).map(PathBuf::from).collect();
            old.extend(old_card(&anchor)?);
            self.part(Kind::Old, &anchor, |_| Ok((Names { old, new: Vec::new() }, ())))?;
        }
        Ok(self.commit()?)
    }

    /// True if a part of this kind was written to a folder.
    fn has(&self, kind: Kind, folder: &Path) -> bool {
        self.root_of(&real(folder)).is_some_and(|(index, below)| {
            let written = self.roots[index].parts.iter().filter(|part| part.kind == kind);
            written.flat_map(|part| &part.new).any(|file| file.parent() == Some(&below))
        })
    }
}

impl Root {
    fn into_replacement(self) -> Replacement {
        let Self { folder, mut parts } = self;
        parts.sort_by_key(|part| part.kind);
        // The file that completes the adapter is removed first, and put in place last.
        let old = parts.iter().rev().flat_map(|part| part.old.clone()).collect();
        let new = parts.iter().flat_map(|part| part.new.clone()).collect();
        Replacement::new(folder, old, new)
    }
}

/// Writes a copy of the checkpoint with `W − s B A` in place of each adapted weight, in the number format of the weight.
///
/// `element` is the number format of the adapter: the factors are first rounded to it, so that PEFT adds exactly what was subtracted.
/// The difference is computed in f64 and rounded to the format of the weight. All other bytes of the weights, the division into
/// shards and the index are copied. Other regular files of a model folder are copied too, except weights in other formats, which
/// would be the old ones. Returns the sorted names of files and folders that were not copied.
///
/// Memory: one block of a weight, and the factors. The folder is created if its parent exists. In it, files of the same names are
/// replaced; an old index, and the files in the record `cntlora.json` of an earlier base, are removed. Other files stay.
///
/// The folder is replaced as a whole: at every moment, it holds the old base or the new one.
///
/// # Errors
/// - Data: a tensor that is missing, is not a matrix of floating-point numbers, does not fit its factors, or has a number that is not
///   finite before or after the subtraction.
/// - Usage: the folder of the model itself, and a quantized weight.
/// - I/O: problems of reading and writing.
pub fn write_residual_base(
    folder: &Path,
    checkpoint: &Checkpoint,
    layers: &[AdaptedWeight],
    scale: f64,
    element: Element,
) -> Result<Vec<String>, Problems> {
    let mut staged = Staged::create(&[folder])?;
    let base = Base { folder, format: BaseFormat::Model };
    let left_out = staged.base(base, checkpoint, layers, (scale, element), None)?;
    staged.commit()?;
    Ok(left_out)
}

/// Syncs the files of an adapter. The last one completes it.
fn finish_adapter(files: Vec<NewFile>, folder: &Path) -> Result<Names, Problem> {
    let mut old: Vec<PathBuf> = adapter_files().map(PathBuf::from).collect();
    old.extend(old_card(folder)?);
    match Record::read(&folder.join(RECORD_FILE)) {
        // The report describes the old adapter.
        Ok(Some(_)) => old.push(REPORT_FILE.into()),
        Err(problem) if problem.category() == Category::Io => return Err(problem),
        _ => {}
    }
    let new = names_of(&files, folder);
    files.into_iter().try_for_each(NewFile::finish)?;
    Ok(Names { old, new })
}

/// The card of an old adapter, unless the user wrote or changed it.
fn old_card(folder: &Path) -> Result<Option<PathBuf>, Problem> {
    Ok((card::author(folder)? == Author::Us).then(|| CARD_FILE.into()))
}
