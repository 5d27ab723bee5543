//! Several moments files together: their sums are added, and no row counts twice.

use super::file::not_rows;
use super::{Collected, Content, ENDING, MomentsFile, RowRanges, SiteSums, memory, parts};
use crate::moments::{Counts, Moments, RowsOrTokens};
use crate::storage::{Access, Problem, Problems, Source, quoted};
use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Compatible moments files, or moments in memory. The moments of a site are the sums over all files with this site, added in the order of the files: the same
/// files in the same order give the same bits.
#[derive(Debug)]
pub struct MomentsSet {
    files: Vec<MomentsFile>,
    content: Content,
    /// The token counts, which are small.
    counts: BTreeMap<String, Counts>,
    /// Moments in memory, in place of files.
    collected: Option<Arc<Collected>>,
}

impl MomentsSet {
    /// Opens files, and the files in folders whose names end in `.moments.safetensors`, sorted by name. All problems are reported
    /// together. The parts of a divided measurement are sorted.
    ///
    /// # Errors
    /// A usage problem if there are no paths, or no moments files in a folder; I/O and data problems of each file; data problems for files
    /// with different widths, kinds or modules of a site, or different precisions, for rows of a recording that are counted twice, also
    /// under another name, and for parts that are missing, given twice, or from different measurements.
    pub fn open(paths: &[PathBuf], access: Access) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let paths: Vec<PathBuf> =
            paths.iter().filter_map(|path| problems.collect(files_of(path))).flatten().collect();
        let open = |path: &PathBuf| MomentsFile::from_source(Source::open_one_of(paths.len(), path, access)?);
        let files = paths.iter().filter_map(|path| problems.collect(open(path))).collect();
        problems.or_ok(files).and_then(Self::from_files)
    }

    /// A set of open files.
    ///
    /// # Errors
    /// As [`open`](Self::open), for the combination of the files.
    pub fn from_files(files: Vec<MomentsFile>) -> Result<Self, Problems> {
        let files = parts::in_order(files)?;
        let Some((first, others)) = files.split_first() else {
            return Err(Problem::usage("no moments files were given").into());
        };
        let mut problems = Problems::default();
        refuse_double_counting(&files, &mut problems);
        let mut content = Content { part: None, ..first.content.clone() };
        for other in others {
            join(&mut content, first, other, &mut problems);
        }
        problems.or_ok(())?;
        let mut problems = Problems::default();
        let sites = content.sites.iter().filter(|(_, site)| site.counts);
        let counts = sites
            .filter_map(|(name, _)| Some((name.clone(), problems.collect(counts_of(&files, name))??)))
            .collect();
        problems.or_ok(Self { files, content, counts, collected: None })
    }

    /// Moments in memory. With `all`, sites without rows count too.
    ///
    /// # Errors
    /// A data problem if the moments cannot be used.
    pub fn in_memory(collected: Arc<Collected>, all: bool) -> Result<Self, Problems> {
        let content = collected.content(Collected::NAME, all)?;
        let mut counts = BTreeMap::new();
        for (name, _) in content.sites.iter().filter(|(name, site)| site.counts && content.rows(name) > 0) {
            if let RowsOrTokens::Tokens(tokens) = collected.sums(name)?.0 {
                counts.insert(name.clone(), tokens.into_owned());
            }
        }
        Ok(Self { files: Vec::new(), content, counts, collected: Some(collected) })
    }

    /// The files, in the given order.
    pub fn files(&self) -> impl Iterator<Item = &Source> {
        self.files.iter().map(MomentsFile::source)
    }

    /// The combined metadata of all files.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The path of the first file with a site.
    pub fn path_of(&self, site: &str) -> Option<&Path> {
        if self.collected.is_some() {
            return Some(Path::new(Collected::NAME));
        }
        let file = self.files.iter().find(|file| file.content.sites.contains_key(site))?;
        Some(file.source.path())
    }

    /// Bytes of the sums of a site in all files.
    pub fn bytes(&self, site: &str) -> u64 {
        let holders = self.files.iter().filter_map(|file| file.content.sites.get(site));
        holders.map(|site| memory(site.width as u64, site.counts)).fold(0, u64::saturating_add)
    }

    /// The token counts of a site, summed over all files, if it has them.
    pub fn counts(&self, site: &str) -> Option<&Counts> {
        self.counts.get(site)
    }

    /// The sums of a site over all files.
    ///
    /// # Errors
    /// As [`MomentsFile::read`].
    pub fn sums(&self, site: &str) -> Result<SiteSums<'_>, Problem> {
        match self.counts(site) {
            Some(counts) => Ok(counts.into()),
            None => self.read(site).map(Into::into),
        }
    }

    /// The moments of a site: the sum over all files, in order.
    ///
    /// # Errors
    /// As [`MomentsFile::moments`].
    pub fn read(&self, site: &str) -> Result<Moments, Problem> {
        if let Some(collected) = &self.collected {
            let sums = collected.sums(site)?.0.rows();
            return sums.map(Cow::into_owned).ok_or_else(|| not_rows().in_site(site));
        }
        let mut holders = self.files.iter().filter(|file| file.content.sites.contains_key(site));
        let first = holders
            .next()
            .ok_or_else(|| Problem::data("the moments files have no site with this name").in_tensor(site))?;
        let mut moments = first.moments(site)?;
        for file in holders {
            moments.merge(&file.moments(site)?).map_err(|error| {
                Problem::data(error.to_string()).in_file(file.source.path()).in_tensor(site)
            })?;
        }
        Ok(moments)
    }

    /// Returns an error if a file changed since it was opened.
    ///
    /// # Errors
    /// As [`Source::check_unchanged`].
    pub fn check_unchanged(&self) -> Result<(), Problems> {
        let mut problems = Problems::default();
        for source in self.files() {
            problems.collect(source.check_unchanged());
        }
        problems.or_ok(())
    }
}

/// The token counts of a site, summed over all files.
fn counts_of(files: &[MomentsFile], site: &str) -> Result<Option<Counts>, Problem> {
    let mut sum: Option<Counts> = None;
    for file in files.iter().filter(|file| file.content.sites.contains_key(site)) {
        let Some(counts) = file.read(site)?.0.tokens() else { continue };
        match &mut sum {
            None => sum = Some(counts.into_owned()),
            Some(sum) => sum.merge(&counts).map_err(|error| {
                let what = format!("the sum of its counts and those of other files is too large: {error}");
                Problem::data(what).in_file(file.source.path()).in_tensor(site)
            })?,
        }
    }
    Ok(sum)
}

/// The file itself, or the moments files in a folder, sorted by name.
fn files_of(path: &Path) -> Result<Vec<PathBuf>, Problem> {
    if !path.is_dir() {
        return Ok(vec![path.into()]);
    }
    let failed = |error| Problem::io("cannot list the folder", &error).in_file(path);
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with(ENDING) && !name.starts_with('.') {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        let what = format!("the folder contains no files with names that end in {ENDING}");
        return Err(Problem::usage(what).in_file(path).help("give the moments files themselves"));
    }
    Ok(files)
}

/// Adds the metadata of another file, which must match that of the files before.
fn join(content: &mut Content, first: &MomentsFile, other: &MomentsFile, problems: &mut Problems) {
    let refuse = |what: String| Problem::data(what).in_file(other.source.path());
    if other.content.precision != content.precision {
        let (expected, found) = (content.precision.name(), other.content.precision.name());
        let what = format!(
            "expected moments in precision {expected} as in {}, found {found}",
            shown(first.source.path())
        );
        problems.push(refuse(what).help("measure all of them with the same --precision"));
    }
    for (name, site) in &other.content.sites {
        match content.sites.entry(name.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(site.clone());
            }
            Entry::Occupied(mut entry) => {
                let known = entry.get_mut();
                if let Err(what) = known.check_same(site, "in the files before") {
                    problems.push(refuse(what).in_tensor(name));
                }
                known.skipped_rows = known.skipped_rows.saturating_add(site.skipped_rows);
            }
        }
    }
    // The first source of several with one fingerprint counts.
    let known = content.sources.iter().enumerate().rev();
    let mut places: BTreeMap<String, usize> =
        known.map(|(place, source)| (source.fingerprint.clone(), place)).collect();
    for source in &other.content.sources {
        match places.entry(source.fingerprint.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(content.sources.len());
                content.sources.push(source.clone());
            }
            Entry::Occupied(entry) => content.sources[*entry.get()].extend(source),
        }
    }
}

/// Reports each pair of files that count the same rows, with the first of these rows.
fn refuse_double_counting(files: &[MomentsFile], problems: &mut Problems) {
    let mut seen: BTreeMap<&str, Vec<(usize, usize)>> = BTreeMap::new();
    // The rows so far, of each site of each recording. Without an overlap, no pair of files needs a comparison.
    let mut rows_so_far: BTreeMap<(&str, &str), RowRanges> = BTreeMap::new();
    let mut refused: BTreeSet<(usize, usize)> = BTreeSet::new();
    for (index, file) in files.iter().enumerate() {
        for (place, source) in file.content.sources.iter().enumerate() {
            let mut overlaps = false;
            for (site, rows) in &source.rows {
                let so_far = rows_so_far.entry((&source.fingerprint, site)).or_default();
                overlaps |= so_far.overlap(rows).is_some();
                so_far.extend(rows);
            }
            let counted = seen.entry(&source.fingerprint).or_default();
            if !overlaps {
                counted.push((index, place));
                continue;
            }
            for &(earlier, earlier_place) in counted.iter() {
                let twice = files[earlier].content.sources[earlier_place].first_in_common(source);
                if let Some((site, rows)) = twice
                    && refused.insert((earlier, index))
                {
                    problems.push(counted_twice(site, &rows, &source.path, &files[earlier], file));
                }
            }
            counted.push((index, place));
        }
    }
}

fn counted_twice(
    site: &str,
    rows: &Range<u64>,
    recording: &str,
    earlier: &MomentsFile,
    file: &MomentsFile,
) -> Problem {
    let (first, last) = (rows.start, rows.end - 1);
    let where_else = match std::ptr::eq(earlier, file) {
        true => " in this file".into(),
        false => format!(", also in {}", shown(earlier.source.path())),
    };
    Problem::data(format!(
        "rows {first} to {last} of the recording {} are counted twice{where_else}",
        quoted(recording)
    ))
    .in_file(file.source.path())
    .in_tensor(site)
    .help("remove one of the two: every row must count once")
}

fn shown(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}
