//! Carries out a measurement: reads rows and writes a moments file, without a model.

use super::many_sums::ManySums;
use super::moments::Reading;
use super::observer::check_stop;
use super::partial::PartialRun;
use super::saved_sums::Extent;
use super::side_by_side::{Threads, with_threads, work_side_by_side};
use super::site_statistics::site_of;
use super::{Event, Observer};
use crate::activations::{ActivationSet, Site};
use crate::moments_file::{Content, MeasuredSite, SiteSums, write};
use crate::plan::{Measurement, SiteRows};
use crate::report::zero_rows;
use crate::simd::Precision;
use crate::storage::{Problem, Problems};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

/// Measures the moments of all sites and writes them to a moments file. Returns the content of the file.
///
/// The moments of a site are in memory while it is measured, and then in `partial`. Token counts were read when the files were opened.
/// The caller discards `partial`.
///
/// # Errors
/// As [`run`](super::run()), and I/O problems of writing.
pub fn measure(
    measurement: &Measurement,
    set: &ActivationSet,
    out: &Path,
    observer: &dyn Observer,
    partial: &PartialRun,
) -> Result<Content, Problems> {
    let reading = |threads| Reading {
        nonfinite: measurement.nonfinite,
        precision: measurement.precision,
        threads,
        observer,
        partial: Some(partial),
    };
    let many = ManySums::open(partial, measurement)?;
    let work = |site, threads| measure_site(reading(threads), set, site, many.as_ref());
    let threads = Threads { all: measurement.threads, side_by_side: measurement.side_by_side };
    let sites: Vec<&SiteRows> = measurement.sites.iter().collect();
    let measured =
        with_threads(measurement.threads, || work_side_by_side(&sites, |site| site.width, threads, work));
    if let (Err(_), Some(many)) = (&measured, &many) {
        many.save()?;
    }
    let measured = measured?;
    set.check_unchanged()?;
    let content = Content {
        precision: measurement.precision,
        sites: measured.into_iter().collect::<BTreeMap<_, _>>(),
        sources: measurement.sources.clone(),
        part: measurement.part.clone(),
    };
    let extents: BTreeMap<&str, Extent<'_>> = measurement
        .sites
        .iter()
        .map(|site| (site.name.as_str(), extent(site, measurement.precision)))
        .collect();
    let many = many.map(ManySums::finish);
    partial.begin_writing(&[out])?;
    let sums_of = |site: &str| {
        if let Some(counts) = set.site(site).and_then(Site::counts) {
            return Ok(counts.into());
        }
        if let Some(sums) = many.as_ref().map(|many| many.sums(site)).transpose()?.flatten() {
            return Ok(sums);
        }
        let sums = partial.sums(site, KIND).load(&extents[site])?;
        let sums = sums.ok_or_else(|| {
            Problem::environment("the saved moments of a measured site are missing")
                .in_file(partial.folder())
                .in_tensor(site)
        })?;
        Ok(SiteSums::from(sums.moments))
    };
    // The writer asks for the sums of every site.
    let zeros = RefCell::new(BTreeMap::new());
    write(out, &content, &|site| {
        let sums = sums_of(site)?;
        if !sums.0.is_tokens() {
            zeros.borrow_mut().insert(site.to_owned(), (sums.count(), sums.zero_rows()));
        }
        Ok(sums)
    })?;
    let zeros = zeros.into_inner();
    let sites = zeros.iter().map(|(site, (rows, zero))| (site.as_str(), *rows, *zero));
    if let Some(message) = zero_rows::sentence("measured", sites) {
        observer.event(Event::Warning { message });
    }
    Ok(content)
}

/// The kind of the saved sums.
const KIND: &str = "rows";

fn extent(site: &SiteRows, precision: Precision) -> Extent<'_> {
    let SiteRows { name, width, rows, .. } = site;
    Extent { site: name, width: *width, rows: rows.clone(), precision }
}

/// Measures a site and saves its sums. Token counts need no measurement.
fn measure_site(
    reading: Reading<'_>,
    set: &ActivationSet,
    planned: &SiteRows,
    many: Option<&ManySums<'_>>,
) -> Result<(String, MeasuredSite), Problem> {
    check_stop(reading.observer)?;
    let SiteRows { name, width, counts, modules, rows, .. } = planned;
    reading.observer.event(Event::SiteStarted { site: name, rows: planned.rows_to_read() });
    let measured = |skipped_rows| MeasuredSite {
        width: *width,
        counts: *counts,
        modules: modules.clone(),
        skipped_rows,
    };
    if *counts {
        reading.observer.event(Event::MomentsReady { site: name });
        return Ok((name.clone(), measured(0)));
    }
    if let Some(many) = many
        && let Some(skipped_rows) = many.skipped_rows(&extent(planned, reading.precision))?
    {
        reading.observer.event(Event::Resumed { site: name, rows: planned.rows_to_read() });
        reading.observer.event(Event::MomentsReady { site: name });
        return Ok((name.clone(), measured(skipped_rows)));
    }
    let site = site_of(set, name)?;
    let sums = reading.measure(set, site, rows.clone(), KIND)?;
    let skipped_rows = sums.skipped_rows;
    if let (Some(many), false) = (many, sums.saved) {
        many.keep(name, sums.moments, skipped_rows)?;
    } else if let (Some(partial), false) = (reading.partial, sums.saved) {
        let extent = extent(planned, reading.precision);
        partial.sums(name, KIND).save(&extent, &sums.moments, rows.end, sums.skipped_rows)?;
    }
    reading.observer.event(Event::MomentsReady { site: name });
    Ok((name.clone(), measured(skipped_rows)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{MeasurementRequest, Nonfinite, Selection, SideBySide, plan_measurement};
    use crate::run::Job;
    use crate::storage::{Access, safetensors};
    use std::fs::{self, File};
    use std::time::Duration;

    /// Wide sites that are measured side by side give the bytes of one thread.
    #[test]
    fn wide_sites_side_by_side_give_the_bytes_of_one_thread() {
        const WIDTH: u64 = 2050;
        let folder = tempfile::tempdir().unwrap();
        let rows = |site: u64| {
            let numbers = (0..3 * WIDTH).map(|at| ((at * 37 + site * 11) % 101) as f32 / 7.0);
            ("F32".to_owned(), vec![3, WIDTH], numbers.flat_map(f32::to_le_bytes).collect())
        };
        let tensors = (0..3).map(|site| (format!("{site}.in"), rows(site))).collect();
        let recording = folder.path().join("rows.safetensors");
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        safetensors::write(&mut File::create(&recording).unwrap(), &metadata, &tensors).unwrap();
        let measured = |threads, max_memory| {
            let request = MeasurementRequest {
                activations: vec![recording.clone()],
                selection: Selection::default(),
                nonfinite: Nonfinite::Refuse,
                precision: Precision::F32,
                shard: None,
                access: Access::Auto,
                threads,
                max_memory,
                room: None,
            };
            let (measurement, set) = plan_measurement(&request).unwrap();
            let job = Job::of_measurement(&measurement, &set);
            let partial = folder.path().join(format!("partial-{threads}"));
            let partial = PartialRun::open(&partial, &job, Duration::from_secs(3600), false).unwrap();
            let out = folder.path().join("out");
            measure(&measurement, &set, &out, &(), &partial).unwrap();
            (measurement.side_by_side, fs::read(out).unwrap())
        };
        let (one, expected) = measured(1, None);
        assert_eq!(one, SideBySide::ONE);
        let (several, found) = measured(12, Some(1 << 32));
        assert_eq!(several, SideBySide { narrow: 1, wide: 3 });
        assert!(found == expected);
    }
}
