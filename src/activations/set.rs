//! The files of a recording, and the sites in them.

use super::counts::Sums;
use super::headers::{FileContent, StoredRows};
use super::{Blocks, Part, Site, Span, copies, files};
use crate::moments::RowsOrTokens;
use crate::storage::{Access, Problem, Problems, Source, quoted};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// Open files with recorded activations, with checked headers.
#[derive(Debug)]
pub struct ActivationSet {
    /// Shared with the threads that read the files.
    pub(super) files: Arc<[Source]>,
    sites: BTreeMap<String, Site>,
}

impl ActivationSet {
    /// Opens files and folders, sorted by path. All headers are checked, and all problems are reported together.
    ///
    /// A folder stands for its `.safetensors` and `.npy` files. Folders inside it are not searched.
    ///
    /// # Errors
    /// A usage problem if there are no paths, a folder has no such file, or a file is given twice, also through a link; an I/O
    /// problem if a file cannot be read; data problems for invalid content, and for a file that is a copy of another one.
    pub fn open(paths: &[PathBuf], access: Access) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let sources = files::open(paths, access, &mut problems);
        if !problems.0.is_empty() {
            // The content of the other files is still checked, but not the combination.
            for source in &sources {
                problems.collect(FileContent::read(source));
            }
            return Err(problems);
        }
        let set = Self::from_sources(sources)?;
        copies::refuse(&set)?;
        Ok(set)
    }

    /// A set of open files, read in this order. Files with names that end in `.npy` have this format, all others are safetensors
    /// files.
    ///
    /// # Errors
    /// As [`open`](Self::open), for the content of the files.
    pub fn from_sources(files: Vec<Source>) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let contents: Vec<_> =
            files.iter().map(|source| problems.collect(FileContent::read(source))).collect();
        if !problems.0.is_empty() {
            return Err(problems);
        }
        let mut sites = BTreeMap::new();
        let mut sums = Sums::default();
        let mut named = BTreeMap::new();
        for (file, content) in contents.into_iter().flatten().enumerate() {
            for tensor in content.tensors {
                match tensor {
                    RowsOrTokens::Rows(rows) => join_rows(&mut sites, file, rows, &files, &mut problems),
                    RowsOrTokens::Tokens(counts) => {
                        problems.collect(sums.add(file, counts, &files));
                    }
                }
            }
            join_names(&mut named, file, content.sites, &files, &mut problems);
        }
        sums.into_sites(&mut sites, &files, &mut problems);
        if !problems.0.is_empty() {
            // A site can be missing because of these problems, so its names cannot be checked.
            return Err(problems);
        }
        assign_modules(&mut sites, named, &files, &mut problems);
        if sites.is_empty() && problems.0.is_empty() {
            let empty = Problem::data("the files contain no tensors");
            problems.push(match files.first() {
                Some(source) => empty.in_file(source.path()),
                None => empty,
            });
        }
        // If only some sites have no rows, they are skipped later.
        if sites.values().all(|site| site.rows() == 0) {
            for site in sites.values() {
                let file = &files[site.first_file];
                problems.push(
                    Problem::data("this site has no rows in any file")
                        .in_file(file.path())
                        .in_tensor(&site.name),
                );
            }
        }
        problems.or_ok(Self { files: files.into(), sites })
    }

    /// The files, in reading order.
    pub fn files(&self) -> &[Source] {
        &self.files
    }

    /// The sites, sorted by name.
    pub fn sites(&self) -> impl Iterator<Item = &Site> {
        self.sites.values()
    }

    /// A site by name.
    pub fn site(&self, name: &str) -> Option<&Site> {
        self.sites.get(name)
    }

    /// The rows of these spans of a site, read ahead by a separate thread.
    pub fn blocks<'a>(
        &'a self,
        site: &'a Site,
        spans: impl Iterator<Item = Span> + Send + 'static,
    ) -> Blocks<'a> {
        Blocks::new(self, site, spans)
    }

    /// Returns an error if a file changed since it was opened.
    ///
    /// # Errors
    /// A data problem for each changed file; an I/O problem for a file that cannot be checked.
    pub fn check_unchanged(&self) -> Result<(), Problems> {
        let mut problems = Problems::default();
        for source in self.files.iter() {
            problems.collect(source.check_unchanged());
        }
        problems.or_ok(())
    }
}

/// Appends rows of a file to their site. The width must match.
fn join_rows(
    sites: &mut BTreeMap<String, Site>,
    file: usize,
    rows: StoredRows,
    files: &[Source],
    problems: &mut Problems,
) {
    let part = Part { file, ..rows.part };
    let site = sites.entry(rows.site).or_insert_with_key(|name| Site {
        name: name.clone(),
        width: rows.width,
        modules: Vec::new(),
        recorded: RowsOrTokens::Rows(Vec::new()),
        first_file: file,
    });
    if site.width != rows.width {
        let first = files[site.first_file].path().display().to_string();
        let what = format!(
            "expected rows of {} numbers as in {}, found rows of {}",
            site.width,
            quoted(&first),
            rows.width
        );
        problems.push(Problem::data(what).in_file(files[file].path()).in_tensor(&part.tensor));
    }
    if let RowsOrTokens::Rows(parts) = &mut site.recorded {
        parts.push(part);
    }
}

/// Modules of a site, and the file with this metadata.
type Named = (BTreeSet<String>, usize);

/// Adds the modules of sites from the metadata of a file, which must match those of earlier files.
fn join_names(
    named: &mut BTreeMap<String, Named>,
    file: usize,
    sites: BTreeMap<String, BTreeSet<String>>,
    files: &[Source],
    problems: &mut Problems,
) {
    for (site, modules) in sites {
        match named.entry(site) {
            Entry::Vacant(entry) => {
                entry.insert((modules, file));
            }
            Entry::Occupied(entry) => {
                let (before, first) = entry.get();
                if *before != modules {
                    let what = format!(
                        "expected the modules {} of site {} as in {}, found {}",
                        list(before),
                        quoted(entry.key()),
                        quoted(&files[*first].path().display().to_string()),
                        list(&modules)
                    );
                    problems.push(Problem::data(what).in_file(files[file].path()));
                }
            }
        }
    }
}

/// Assigns the modules to each site. A site without metadata is read by the module with its name.
fn assign_modules(
    sites: &mut BTreeMap<String, Site>,
    named: BTreeMap<String, Named>,
    files: &[Source],
    problems: &mut Problems,
) {
    for (name, (modules, file)) in named {
        match sites.get_mut(&name) {
            Some(site) => site.modules = modules.into_iter().collect(),
            None => problems.push(
                Problem::data(format!(
                    "the metadata contains the site {}, but no file has a tensor with this name",
                    quoted(&name)
                ))
                .in_file(files[file].path())
                .help("give all files that were recorded together"),
            ),
        }
    }
    let mut site_of: BTreeMap<String, &str> = BTreeMap::new();
    for site in sites.values_mut() {
        if site.modules.is_empty() {
            site.modules.push(site.name.clone());
        }
        for module in &site.modules {
            if let Some(other) = site_of.insert(module.clone(), &site.name) {
                let what = format!(
                    "the module {} belongs to two sites, {} and {}, but it has only one input",
                    quoted(module),
                    quoted(other),
                    quoted(&site.name)
                );
                problems.push(Problem::data(what).in_file(files[site.first_file].path()));
            }
        }
    }
}

fn list(names: &BTreeSet<String>) -> String {
    names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")
}
