//! A set of files as streams of row blocks, one per site. Knows nothing of linear algebra.
//!
//! # Files
//!
//! A **safetensors** file holds one tensor per site, `[rows, d]` or `[…, d]`: all axes but the last are flattened to rows. The
//! metadata entry `cntlora`, `{"format":"activations","version":1,"sites":{"<site>":["<module>", …]}}`, says which modules
//! read a site, for all files of the set. A tensor that no file names a site is the site of the module of its own name.
//!
//! The inputs of a convolution are given as rows of unfolded patches, `channels · Π kernel` numbers each in the order of the weight,
//! or as they are, `[images, channels, space…]`: then the metadata has an entry
//! `"convolutions":{"<site>":{"kernel":[3,3],"stride":[1,1],"padding":[1,1]}}`, and patches are unfolded while they are read.
//! `dilation` and `groups` may be told too: what PEFT cannot adapt is refused, and kernel and groups must be those of the weight.
//!
//! The activations of an **embedding** are how often each token was met: one axis with a whole number for each token of the
//! vocabulary, in any format of integers or floating point numbers; of at most 2²⁴ tokens. Counts of several files add up.
//!
//! A **`.npy`** file `<module>.npy` holds the site of one module, in C order or, with two axes, in Fortran order, of either
//! byte order. `<module>.<part>.npy` holds a part of it. Whatever stands after the last dot is a part number if it is all
//! digits: a module whose own name ends in a number, such as `layers.3`, is stored as `layers.3.0.npy`.
//!
//! Numbers of rows are `F64`, `F32`, `F16` or `BF16`, and may differ in format from file to file. The rows of a site are those of all
//! files one after the other, in order of path, where parts are ordered by their number.
//!
//! # Where things are
//!
//! `files` finds the files, `headers` says what one of them holds, this module puts the sites together, `copies` refuses rows that
//! would count twice, `spans` cuts rows into blocks, and `blocks` reads these, with the patches that `unfold` makes.
//! `counts` is about those of tokens.

mod blocks;
mod copies;
mod counts;
mod files;
mod headers;
mod spans;
mod unfold;

pub use blocks::{Block, Blocks};
pub use counts::SiteCounts;
pub use spans::Span;

use crate::element::Element;
use crate::moments::Counts;
use crate::storage::{Access, Problem, Problems, Source, quoted};
use counts::Sums;
use headers::{FileContent, Stored};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use unfold::Unfolding;

/// Files with recorded activations, opened and checked by their headers.
#[derive(Debug)]
pub struct ActivationSet {
    /// Shared with the threads that read them.
    files: Arc<[Source]>,
    sites: BTreeMap<String, Site>,
}

/// A place where activations were measured: the input of one or more weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its name in the files.
    pub name: String,
    /// Numbers per row, at least one; of an embedding the tokens of its vocabulary.
    pub width: usize,
    /// Runtime names of the modules that read it, in order.
    pub modules: Vec<String>,
    /// What was recorded of it.
    pub recorded: Recorded,
    /// Index of the first file in [`ActivationSet::files`] that holds some of it.
    pub(crate) first_file: usize,
}

/// What was recorded of a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// Rows, and where they are stored, in the order in which they are read.
    Rows(Vec<Part>),
    /// How often each token was met: the site is the input of an embedding.
    Counts(SiteCounts),
}

/// Consecutive rows of a site in one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Index of the file in [`ActivationSet::files`].
    pub file: usize,
    /// Number of rows.
    pub rows: u64,
    /// Format of the numbers.
    pub element: Element,
    /// Name of the tensor in the file, or the stem of the `.npy` file.
    tensor: String,
    /// Where the first number is, in bytes from the start of the file.
    offset: u64,
    /// Whether numbers are stored with the most significant byte first.
    big_endian: bool,
    /// Whether columns are stored one after the other, and not rows.
    fortran_order: bool,
    /// How rows are made of the inputs of a convolution.
    unfolding: Option<Unfolding>,
}

impl Part {
    /// Of rows that are unfolded while they are read, the kernel of the convolution, and its groups if they are told.
    pub(crate) fn convolution(&self) -> Option<(Vec<u64>, Option<u64>)> {
        self.unfolding.as_ref().map(|unfolding| (unfolding.kernel(), unfolding.groups))
    }

    /// Numbers that are stored.
    fn numbers(&self, width: usize) -> u64 {
        match &self.unfolding {
            None => self.rows * width as u64,
            Some(unfolding) => self.rows / unfolding.patches().unwrap_or(1) * unfolding.image() as u64,
        }
    }
}

impl Site {
    /// Where its rows are stored; nowhere if tokens were counted.
    pub fn parts(&self) -> &[Part] {
        match &self.recorded {
            Recorded::Rows(parts) => parts,
            Recorded::Counts(_) => &[],
        }
    }

    /// How often each token was met, if they were counted.
    pub fn counts(&self) -> Option<&Counts> {
        match &self.recorded {
            Recorded::Rows(_) => None,
            Recorded::Counts(site) => Some(&site.counts),
        }
    }

    /// Rows in all parts, or tokens that were met.
    pub fn rows(&self) -> u64 {
        match &self.recorded {
            Recorded::Rows(parts) => parts.iter().map(|part| part.rows).fold(0, u64::saturating_add),
            Recorded::Counts(site) => site.counts.total(),
        }
    }

    /// The files that hold some of it, in reading order: their index in [`ActivationSet::files`], and rows or tokens.
    fn holders(&self) -> Vec<(usize, u64)> {
        match &self.recorded {
            Recorded::Rows(parts) => parts.iter().map(|part| (part.file, part.rows)).collect(),
            Recorded::Counts(site) => site.files.clone(),
        }
    }

    /// Where these rows, or tokens, are, in reading order: file by file, its index in [`ActivationSet::files`] and its rows.
    pub fn in_files(&self, rows: Range<u64>) -> Vec<(usize, Range<u64>)> {
        let mut first = 0u64;
        let mut found = Vec::new();
        for (file, held) in self.holders() {
            let inside = |row: u64| row.saturating_sub(first).min(held);
            let within = inside(rows.start)..inside(rows.end);
            if !within.is_empty() {
                found.push((file, within));
            }
            first = first.saturating_add(held);
        }
        found
    }

    /// Bytes of the largest image that patches are cut from, which is held while they are; 0 if rows are stored as such.
    pub fn image_bytes(&self) -> u64 {
        let images = self.parts().iter().filter_map(|part| {
            let numbers = part.unfolding.as_ref()?.image() as u64;
            Some(numbers.saturating_mul(part.element.size() as u64))
        });
        images.max().unwrap_or(0)
    }

    /// Bytes in all files.
    pub fn bytes(&self) -> u64 {
        let bytes = |part: &Part| part.numbers(self.width) * part.element.size() as u64;
        match &self.recorded {
            Recorded::Rows(parts) => parts.iter().map(bytes).fold(0, u64::saturating_add),
            Recorded::Counts(site) => site.bytes,
        }
    }
}

impl ActivationSet {
    /// Opens files and folders, in sorted path order; all headers are checked and all complaints reported together.
    ///
    /// A folder contributes its `.safetensors` and `.npy` files, and not those of folders in it.
    ///
    /// # Errors
    /// A usage problem if there are no paths, a folder has no such file, or a file is given twice, also by a link; an I/O
    /// problem if a file cannot be read; a data problem for what the files hold, and for a file whose rows another one holds as well.
    pub fn open(paths: &[PathBuf], access: Access) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let sources = files::open(paths, access, &mut problems);
        if !problems.0.is_empty() {
            // What the other files hold is still worth a look, but not how they fit together.
            for source in &sources {
                problems.collect(FileContent::read(source));
            }
            return Err(problems);
        }
        let set = Self::from_sources(sources)?;
        copies::refuse(&set)?;
        Ok(set)
    }

    /// A set of opened files, read in the order in which they are given. A name that ends in `.npy` says which format a
    /// file has; any other is safetensors.
    ///
    /// # Errors
    /// As [`open`](Self::open), for what the files hold.
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
                    Stored::Rows(rows) => join_rows(&mut sites, file, rows, &files, &mut problems),
                    Stored::Counts(counts) => {
                        problems.collect(sums.add(file, counts, &files));
                    }
                }
            }
            join_names(&mut named, file, content.sites, &files, &mut problems);
        }
        sums.into_sites(&mut sites, &files, &mut problems);
        if !problems.0.is_empty() {
            // A site may be missing, and its names would be complained of in vain.
            return Err(problems);
        }
        assign_modules(&mut sites, named, &files, &mut problems);
        if sites.is_empty() && problems.0.is_empty() {
            let empty = Problem::data("expected activations, found no tensor in any file");
            problems.push(match files.first() {
                Some(source) => empty.in_file(source.path()),
                None => empty,
            });
        }
        // A site without rows among others is left out later, by those who need rows of it.
        if sites.values().all(|site| site.rows() == 0) {
            for site in sites.values() {
                let file = &files[site.first_file];
                problems.push(
                    Problem::data("expected at least one row in all files together, found none")
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

    /// The sites, in order of name.
    pub fn sites(&self) -> impl Iterator<Item = &Site> {
        self.sites.values()
    }

    /// A site by name.
    pub fn site(&self, name: &str) -> Option<&Site> {
        self.sites.get(name)
    }

    /// The rows of these spans of a site, read ahead by a thread of its own.
    pub fn blocks<'a>(
        &'a self,
        site: &'a Site,
        spans: impl Iterator<Item = Span> + Send + 'static,
    ) -> Blocks<'a> {
        Blocks::new(self, site, spans)
    }

    /// Refuses files that changed since they were opened.
    ///
    /// # Errors
    /// A data problem for each file that changed; an I/O problem for one that cannot be looked at any more.
    pub fn check_unchanged(&self) -> Result<(), Problems> {
        let mut problems = Problems::default();
        for source in self.files.iter() {
            problems.collect(source.check_unchanged());
        }
        problems.or_ok(())
    }
}

/// Appends rows of a file to their site, whose width they must have.
fn join_rows(
    sites: &mut BTreeMap<String, Site>,
    file: usize,
    rows: headers::StoredRows,
    files: &[Source],
    problems: &mut Problems,
) {
    let part = Part { file, ..rows.part };
    let site = sites.entry(rows.site).or_insert_with_key(|name| Site {
        name: name.clone(),
        width: rows.width,
        modules: Vec::new(),
        recorded: Recorded::Rows(Vec::new()),
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
    if let Recorded::Rows(parts) = &mut site.recorded {
        parts.push(part);
    }
}

/// Modules of a site, and the file that says so.
type Named = (BTreeSet<String>, usize);

/// Adds what the metadata of a file says of sites, which must agree with what earlier files say.
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

/// Gives each site its modules; a site that no file names is read by the module of its own name.
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
                    "the metadata names the site {}, but no file has such a tensor",
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
                    "the module {} is named by two sites, {} and {}, but has one input",
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

#[cfg(test)]
mod tests;
