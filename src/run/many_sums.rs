//! The sums of a measurement with many sites. To save each site in a file of its own would take much longer than to measure it, so the sums
//! stay in memory, and are saved together: many sites in one moments file.

use super::partial::PartialRun;
use super::saved_sums::{Extent, SavedSite, content_of, damaged, foreign};
use crate::moments::Moments;
use crate::moments_file::{MeasuredSource, MomentsFile, SiteSums, write};
use crate::plan::{MANY_SITES, MANY_SUMS, Measurement};
use crate::storage::{Access, Problem, Source};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// The measured sums of many sites.
pub(super) struct ManySums<'a> {
    partial: &'a PartialRun,
    measurement: &'a Measurement,
    kept: Mutex<Kept>,
}

struct Kept {
    /// Sums that are only in memory, and the number of skipped rows.
    sums: BTreeMap<String, (Moments, u64)>,
    /// Bytes of these sums.
    bytes: u64,
    /// Time of the last save, or of the start.
    last: Instant,
    files: Vec<MomentsFile>,
    /// The file of each saved site.
    places: BTreeMap<String, usize>,
}

impl<'a> ManySums<'a> {
    /// Opens the saved sums of an earlier run. `None` for a measurement of few sites, each of which has a file of its own.
    pub(super) fn open(
        partial: &'a PartialRun,
        measurement: &'a Measurement,
    ) -> Result<Option<Self>, Problem> {
        if measurement.sites.len() < MANY_SITES {
            return Ok(None);
        }
        let mut kept = Kept {
            sums: BTreeMap::new(),
            bytes: 0,
            last: Instant::now(),
            files: Vec::new(),
            places: BTreeMap::new(),
        };
        let paths = partial.many_sums()?;
        for path in &paths {
            kept.open(Source::open_one_of(paths.len(), path, Access::Read)?, partial).map_err(damaged)?;
        }
        Ok(Some(Self { partial, measurement, kept: Mutex::new(kept) }))
    }

    /// The number of skipped rows of a site whose sums over all rows are saved.
    pub(super) fn skipped_rows(&self, extent: &Extent<'_>) -> Result<Option<u64>, Problem> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(&place) = kept.places.get(extent.site) else { return Ok(None) };
        let file = &kept.files[place];
        let content = file.content();
        let measured = &content.sites[extent.site];
        let rows = extent.rows.end - extent.rows.start;
        match measured.width == extent.width && file.rows(extent.site) == rows {
            true => Ok(Some(measured.skipped_rows)),
            false => Err(foreign(file.source().path())),
        }
    }

    /// Keeps the sums of a site over all its rows. Saves all of them if it is time, or if they take much memory.
    pub(super) fn keep(&self, site: &str, moments: Moments, skipped_rows: u64) -> Result<(), Problem> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes = kept.bytes.saturating_add(Moments::memory(moments.width() as u64));
        kept.sums.insert(site.to_owned(), (moments, skipped_rows));
        if kept.bytes >= MANY_SUMS || kept.last.elapsed() >= self.partial.interval() {
            self.save_all(&mut kept)?;
        }
        Ok(())
    }

    /// Saves all sums that are only in memory.
    pub(super) fn save(&self) -> Result<(), Problem> {
        self.save_all(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn save_all(&self, kept: &mut Kept) -> Result<(), Problem> {
        let Some(first) = kept.sums.keys().next() else { return Ok(()) };
        let path = self.partial.many_sums_path(first);
        let planned = self.measurement.sites.iter().filter_map(|site| {
            let (_, skipped_rows) = kept.sums.get(&site.name)?;
            Some(SavedSite {
                name: &site.name,
                width: site.width,
                rows: site.rows.clone(),
                skipped_rows: *skipped_rows,
            })
        });
        let content = content_of("", self.partial.of_sums(), self.measurement.precision, planned);
        write(&path, &content, &|site| Ok((&kept.sums[site].0).into()))?;
        kept.open(Source::open(&path, Access::Read)?, self.partial)?;
        (kept.sums, kept.bytes, kept.last) = (BTreeMap::new(), 0, Instant::now());
        Ok(())
    }

    /// The sums of all measured sites.
    pub(super) fn finish(self) -> Finished {
        Finished(self.kept.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Kept {
    fn open(&mut self, source: Source, partial: &PartialRun) -> Result<(), Problem> {
        let file = MomentsFile::from_source(source)?;
        match file.content().sources.as_slice() {
            [MeasuredSource { fingerprint, .. }] if fingerprint == partial.of_sums() => {}
            _ => return Err(foreign(file.source().path())),
        }
        let place = self.files.len();
        self.places.extend(file.content().sites.keys().map(|site| (site.clone(), place)));
        self.files.push(file);
        Ok(())
    }
}

/// The sums of all sites of a finished measurement.
pub(super) struct Finished(Kept);

impl Finished {
    /// The sums of a site. `None` if it has a file of its own.
    ///
    /// # Errors
    /// Problems of reading.
    pub(super) fn sums(&self, site: &str) -> Result<Option<SiteSums<'_>>, Problem> {
        if let Some((moments, _)) = self.0.sums.get(site) {
            return Ok(Some(moments.into()));
        }
        let Some(&place) = self.0.places.get(site) else { return Ok(None) };
        self.0.files[place].moments(site).map(|moments| Some(moments.into())).map_err(damaged)
    }
}

#[cfg(test)]
mod tests;
