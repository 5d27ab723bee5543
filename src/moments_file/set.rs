//! Several moments files taken together: their sums are added, and no row counts twice.

use super::{Content, ENDING, MeasuredSite, MomentsFile, SiteSums, parts};
use crate::moments::{Counts, Moments};
use crate::storage::{Access, Problem, Problems, Source, quoted};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Moments files that fit together. A site's moments are the sums over all files that hold it, added in the order in which the
/// files were given: the same files in the same order give the same bits.
#[derive(Debug)]
pub struct MomentsSet {
    files: Vec<MomentsFile>,
    content: Content,
    /// The counts of tokens, which are small.
    counts: BTreeMap<String, Counts>,
}

impl MomentsSet {
    /// Opens files, and the files in folders whose names end in `.moments.safetensors`, in order of name; all complaints are reported
    /// together. The parts of a measurement that was divided are put in their order.
    ///
    /// # Errors
    /// A usage problem if there are no paths, or no moments files in a folder; I/O and data problems of each file; data problems if the
    /// files disagree on the width, the kind or the modules of a site, or on the precision, if rows of a recording are counted in two of them,
    /// be it under another name, and if parts are missing, given twice, or of different measurements.
    pub fn open(paths: &[PathBuf], access: Access) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let paths: Vec<PathBuf> =
            paths.iter().filter_map(|path| problems.collect(files_of(path))).flatten().collect();
        let files =
            paths.iter().filter_map(|path| problems.collect(MomentsFile::open(path, access))).collect();
        problems.or_ok(files).and_then(Self::from_files)
    }

    /// A set of opened files.
    ///
    /// # Errors
    /// As [`open`](Self::open), for how they fit together.
    pub fn from_files(files: Vec<MomentsFile>) -> Result<Self, Problems> {
        let files = parts::in_order(files)?;
        let Some((first, others)) = files.split_first() else {
            return Err(Problem::usage("expected at least one moments file, found none").into());
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
            .filter_map(|(name, _)| Some((name.clone(), problems.collect(counts_of(&files, name))?)))
            .collect();
        problems.or_ok(Self { files, content, counts })
    }

    /// The files, in the order given.
    pub fn files(&self) -> impl Iterator<Item = &Source> {
        self.files.iter().map(MomentsFile::source)
    }

    /// What all of them hold together.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The first file that holds a site.
    pub fn path_of(&self, site: &str) -> Option<&Path> {
        let file = self.files.iter().find(|file| file.content.sites.contains_key(site))?;
        Some(file.source.path())
    }

    /// Bytes of the sums of a site in all files.
    pub fn bytes(&self, site: &str) -> u64 {
        let holders = self.files.iter().filter_map(|file| file.content.sites.get(site));
        let memory = |width: u64, counts| if counts { Counts::memory(width) } else { Moments::memory(width) };
        holders.map(|site| memory(site.width as u64, site.counts)).fold(0, u64::saturating_add)
    }

    /// How often each token was met at a site, in all files together, if they were counted there.
    pub fn counts(&self, site: &str) -> Option<&Counts> {
        self.counts.get(site)
    }

    /// What all files together hold of a site.
    ///
    /// # Errors
    /// As [`MomentsFile::read`].
    pub fn sums(&self, site: &str) -> Result<SiteSums<'_>, Problem> {
        match self.counts(site) {
            Some(counts) => Ok(counts.into()),
            None => self.read(site).map(Into::into),
        }
    }

    /// The moments of a site: those of all files, added in order.
    ///
    /// # Errors
    /// As [`MomentsFile::moments`].
    pub fn read(&self, site: &str) -> Result<Moments, Problem> {
        let mut holders = self.files.iter().filter(|file| file.content.sites.contains_key(site));
        let first = holders.next().ok_or_else(|| {
            Problem::data("expected this site in the moments files, found none of its name").in_tensor(site)
        })?;
        let mut moments = first.moments(site)?;
        for file in holders {
            moments.merge(&file.moments(site)?).map_err(|error| {
                Problem::data(error.to_string()).in_file(file.source.path()).in_tensor(site)
            })?;
        }
        Ok(moments)
    }

    /// Refuses files that changed since they were opened.
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

/// The counts of a site: the sum over all files that hold it.
fn counts_of(files: &[MomentsFile], site: &str) -> Result<Counts, Problem> {
    let mut sum: Option<Counts> = None;
    for file in files.iter().filter(|file| file.content.sites.contains_key(site)) {
        let SiteSums::Tokens(counts) = file.read(site)? else { continue };
        match &mut sum {
            None => sum = Some(counts.into_owned()),
            Some(sum) => sum.merge(&counts).map_err(|error| {
                let what = format!("its counts and those of other files are too large to be added: {error}");
                Problem::data(what).in_file(file.source.path()).in_tensor(site)
            })?,
        }
    }
    sum.ok_or_else(|| Problem::data("expected counts of tokens, found none").in_tensor(site))
}

/// The file itself, or the moments files in a folder, in order of name.
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
        let what = format!("expected files whose names end in {ENDING} in the folder, found none");
        return Err(Problem::usage(what).in_file(path).help("give the moments files themselves"));
    }
    Ok(files)
}

/// Adds what another file says, which must agree with what the first one and those after it say.
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
                if (known.width, known.counts) != (site.width, site.counts) {
                    let (expected, found) = (kind_of(known), kind_of(site));
                    let what = format!("expected {expected} as in the files before, found {found}");
                    problems.push(refuse(what).in_tensor(name));
                } else if known.modules != site.modules {
                    let list = |modules: &[String]| {
                        modules.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")
                    };
                    let what = format!(
                        "expected the modules {} as in the files before, found {}",
                        list(&known.modules),
                        list(&site.modules)
                    );
                    problems.push(refuse(what).in_tensor(name));
                }
                known.skipped_rows = known.skipped_rows.saturating_add(site.skipped_rows);
            }
        }
    }
    for source in &other.content.sources {
        match content.sources.iter_mut().find(|known| known.fingerprint == source.fingerprint) {
            None => content.sources.push(source.clone()),
            Some(known) => {
                for (site, rows) in &source.rows {
                    known.rows.entry(site.clone()).or_default().extend(rows);
                }
            }
        }
    }
}

/// In words.
fn kind_of(site: &MeasuredSite) -> String {
    match site.counts {
        true => format!("counts of {} tokens", site.width),
        false => format!("rows of {} numbers", site.width),
    }
}

/// Complains of every two files that count the same rows, naming the first of them.
fn refuse_double_counting(files: &[MomentsFile], problems: &mut Problems) {
    let mut seen: BTreeMap<&str, Vec<(usize, usize)>> = BTreeMap::new();
    let mut refused: Vec<(usize, usize)> = Vec::new();
    for (index, file) in files.iter().enumerate() {
        for (place, source) in file.content.sources.iter().enumerate() {
            let counted = seen.entry(&source.fingerprint).or_default();
            for &(earlier, earlier_place) in counted.iter() {
                let twice = files[earlier].content.sources[earlier_place].first_in_common(source);
                if let Some((site, rows)) = twice
                    && !refused.contains(&(earlier, index))
                {
                    refused.push((earlier, index));
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
        true => "twice in this file".into(),
        false => format!("in {} as well", shown(earlier.source.path())),
    };
    Problem::data(format!(
        "rows {first} to {last} of the recording {} are counted {where_else}",
        quoted(recording)
    ))
    .in_file(file.source.path())
    .in_tensor(site)
    .help("leave one of the two out: every row counts once")
}

fn shown(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}
