//! Saved sums of a site that is being measured: a moments file with one site and one source. The source stands for all rows of the site,
//! and its fingerprint is the identity of the job.

use super::Observer;
use super::observer::check_stop;
use crate::moments::Moments;
use crate::moments_file::{Content, MeasuredSite, MeasuredSource, MomentsFile, write};
use crate::simd::Precision;
use crate::storage::{Access, Problem};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The place of the saved sums of a site, and the interval between saves.
#[derive(Clone, Debug)]
pub(super) struct SavedSums {
    pub path: PathBuf,
    pub job: String,
    pub interval: Duration,
}

/// Sums over the first rows of a range.
pub(super) struct Sums {
    pub moments: Moments,
    /// The first row that is not in the sums.
    pub next_row: u64,
    pub skipped_rows: u64,
}

/// The rows of a site to measure.
#[derive(Clone)]
pub(super) struct Extent<'a> {
    pub site: &'a str,
    /// Numbers per row; for pairs, those of both sides together.
    pub width: usize,
    pub rows: Range<u64>,
    pub precision: Precision,
}

impl SavedSums {
    /// Loads the saved sums. `None` if there are none.
    pub(super) fn load(&self, extent: &Extent<'_>) -> Result<Option<Sums>, Problem> {
        if !self.path.exists() {
            return Ok(None);
        }
        let file = MomentsFile::open(&self.path, Access::Read).map_err(damaged)?;
        let content = file.content();
        let foreign = || foreign(&self.path);
        let [MeasuredSource { fingerprint, .. }] = content.sources.as_slice() else { return Err(foreign()) };
        let Some(measured) = content.sites.get(extent.site) else { return Err(foreign()) };
        let next_row =
            extent.rows.start.checked_add(content.rows(extent.site)).filter(|row| *row <= extent.rows.end);
        let (Some(next_row), true) = (next_row, *fingerprint == self.job && measured.width == extent.width)
        else {
            return Err(foreign());
        };
        let moments = file.moments(extent.site).map_err(damaged)?;
        Ok(Some(Sums { moments, next_row, skipped_rows: measured.skipped_rows }))
    }

    /// Saves the sums of at least one row.
    pub(super) fn save(
        &self,
        extent: &Extent<'_>,
        moments: &Moments,
        next_row: u64,
        skipped_rows: u64,
    ) -> Result<(), Problem> {
        let site = SavedSite {
            name: extent.site,
            width: extent.width,
            rows: extent.rows.start..next_row,
            skipped_rows,
        };
        let content = content_of(extent.site, &self.job, extent.precision, std::iter::once(site));
        write(&self.path, &content, &|_| Ok(moments.into()))
    }
}

/// A site of a file with saved sums.
pub(super) struct SavedSite<'a> {
    pub name: &'a str,
    /// As in [`Extent`].
    pub width: usize,
    /// The rows in the sums, also those that were skipped.
    pub rows: Range<u64>,
    pub skipped_rows: u64,
}

/// The metadata of a file with saved sums: each site has its own name as its module, and the rows of all sites have one source, whose
/// fingerprint is the identity of the job.
pub(super) fn content_of<'a>(
    path: &str,
    job: &str,
    precision: Precision,
    saved: impl IntoIterator<Item = SavedSite<'a>>,
) -> Content {
    let (mut sites, mut rows) = (BTreeMap::new(), BTreeMap::new());
    for site in saved {
        let SavedSite { name, width, skipped_rows, .. } = site;
        let measured = MeasuredSite { width, counts: false, modules: vec![name.to_owned()], skipped_rows };
        sites.insert(name.to_owned(), measured);
        rows.insert(name.to_owned(), std::iter::once(site.rows).collect());
    }
    let source = MeasuredSource { path: path.into(), bytes: 0, fingerprint: job.into(), rows };
    Content { precision, sites, sources: vec![source], part: None }
}

/// The problem of a file whose sums belong to another job or to other rows.
pub(super) fn foreign(path: &Path) -> Problem {
    damaged(Problem::data("contains moments of another run").in_file(path))
}

/// Sums that took less time than this are not saved at the end of their site: with many small sites, saving would take longer than
/// measuring again.
const SHORT: Duration = Duration::from_millis(500);

/// Saves sums at intervals, and stops the run on request.
pub(super) struct Keeper<'a> {
    saved: Option<&'a SavedSums>,
    extent: &'a Extent<'a>,
    observer: &'a dyn Observer,
    /// Time of the last save, or of the start.
    last: Instant,
    /// True if rows were added since the last save.
    unsaved: bool,
}

impl<'a> Keeper<'a> {
    pub(super) fn new(
        saved: Option<&'a SavedSums>,
        extent: &'a Extent<'a>,
        observer: &'a dyn Observer,
    ) -> Self {
        Self { saved, extent, observer, last: Instant::now(), unsaved: false }
    }

    /// Call this after every block.
    pub(super) fn block_added(
        &mut self,
        moments: &Moments,
        next_row: u64,
        skipped_rows: u64,
    ) -> Result<(), Problem> {
        self.unsaved = true;
        let stop = check_stop(self.observer);
        if let Some(saved) = self.saved
            && (stop.is_err() || self.last.elapsed() >= saved.interval)
        {
            self.save(saved, moments, next_row, skipped_rows)?;
        }
        stop
    }

    /// Call this after the last block, because the next step can take long. Returns whether all rows are saved.
    pub(super) fn all_added(
        &mut self,
        moments: &Moments,
        next_row: u64,
        skipped_rows: u64,
    ) -> Result<bool, Problem> {
        let Some(saved) = self.saved else { return Ok(false) };
        if self.unsaved && self.last.elapsed() >= SHORT {
            self.save(saved, moments, next_row, skipped_rows)?;
        }
        Ok(next_row > self.extent.rows.start && !self.unsaved)
    }

    fn save(
        &mut self,
        saved: &SavedSums,
        moments: &Moments,
        next_row: u64,
        skipped_rows: u64,
    ) -> Result<(), Problem> {
        saved.save(self.extent, moments, next_row, skipped_rows)?;
        self.last = Instant::now();
        self.unsaved = false;
        Ok(())
    }
}

/// The problem of a damaged saved file. Other saved files can still be used.
pub(super) fn damaged(problem: Problem) -> Problem {
    problem.help("remove this file to process its site again, or give --restart to start again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::gaussian;
    use crate::storage::shown;
    use expect_test::expect;
    use std::fs;

    fn moments(rows: usize) -> Moments {
        Moments::of(gaussian::<f32>(rows, 3, 0, "rows").as_ref()).unwrap()
    }

    fn extent(rows: Range<u64>, width: usize) -> Extent<'static> {
        Extent { site: "s", width, rows, precision: Precision::F32 }
    }

    #[test]
    fn saved_sums_are_loaded_with_their_next_row() {
        let folder = tempfile::tempdir().unwrap();
        let saved = SavedSums { path: folder.path().join("s"), job: "job".into(), interval: Duration::ZERO };
        let rows = extent(10..30, 3);
        assert!(saved.load(&rows).unwrap().is_none());
        saved.save(&rows, &moments(5), 17, 2).unwrap();
        let Sums { moments: loaded, next_row, skipped_rows } = saved.load(&rows).unwrap().unwrap();
        assert_eq!((loaded, next_row, skipped_rows), (moments(5), 17, 2));
    }

    /// Sums of another job, site or range of rows are refused.
    #[test]
    fn other_sums_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let saved = SavedSums { path: folder.path().join("s"), job: "job".into(), interval: Duration::ZERO };
        saved.save(&extent(10..30, 3), &moments(15), 25, 0).unwrap();
        let refused = |saved: &SavedSums, extent: &Extent<'_>| {
            let problem = saved.load(extent).map(|_| ()).unwrap_err();
            shown(&problem.into(), folder.path())
        };
        let refusals = [
            refused(&SavedSums { job: "other".into(), ..saved.clone() }, &extent(10..30, 3)),
            refused(&saved, &extent(10..30, 2)),
            refused(&saved, &extent(10..24, 3)),
            refused(&saved, &Extent { site: "t", ..extent(10..30, 3) }),
        ];
        assert!(refusals.iter().all(|refusal| *refusal == refusals[0]), "{refusals:?}");
        expect![[r#"
            Data: s: contains moments of another run
                help: remove this file to process its site again, or give --restart to start again
        "#]]
        .assert_eq(&refusals[0]);
        let mut bytes = fs::read(&saved.path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&saved.path, bytes).unwrap();
        expect![[r#"
            Data: s: tensor "s": checksum mismatch: the file is damaged
                help: remove this file to process its site again, or give --restart to start again
        "#]]
        .assert_eq(&refused(&saved, &extent(10..30, 3)));
    }
}
