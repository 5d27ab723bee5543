//! Plans the measurement of moments. It needs no checkpoint.

use super::cost::Memory;
use super::schedule::Limits;
use super::select::Selector;
use super::shard::part_of;
use super::{Nonfinite, Room, Selection, Shard, SideBySide, cost, schedule};
use crate::activations::{ActivationSet, Site};
use crate::initializer;
use crate::moments_file::{MeasuredSource, Part, memory};
use crate::simd::Precision;
use crate::storage::{Access, Hashing, Problem, Problems, fingerprint};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

/// The request of a user.
#[derive(Clone, Debug)]
pub struct MeasurementRequest {
    /// Activations: files and folders.
    pub activations: Vec<PathBuf>,
    /// Selects the sites by the modules that read them. Patterns can also match the name of the site.
    /// [`targets`](Selection::targets) must be empty, because it selects layers.
    pub selection: Selection,
    /// The treatment of rows with NaN or infinity.
    pub nonfinite: Nonfinite,
    /// Precision of the Gram matrices.
    pub precision: Precision,
    /// The part of the work, if it is divided.
    pub shard: Option<Shard>,
    /// The way to read files.
    pub access: Access,
    /// Number of threads.
    pub threads: usize,
    /// Memory limit in bytes, if there is one.
    pub max_memory: Option<u64>,
    /// The memory that the system leaves to this process, if it limits it.
    pub room: Option<Room>,
}

/// The plan of a measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The rows to read, for each site, sorted by name.
    pub sites: Vec<SiteRows>,
    /// Selected sites without rows, sorted by name. They are skipped.
    pub empty: Vec<String>,
    /// The files to read, in reading order.
    pub sources: Vec<MeasuredSource>,
    /// The part of the measurement, if it is divided.
    pub part: Option<Part>,
    /// The treatment of rows with NaN or infinity.
    pub nonfinite: Nonfinite,
    /// Precision of the Gram matrices.
    pub precision: Precision,
    /// Number of threads.
    pub threads: usize,
    /// Numbers of sites that are processed at the same time.
    #[serde(flatten)]
    pub side_by_side: SideBySide,
    /// Peak memory in bytes, estimated from the shapes.
    pub peak_memory: u64,
}

/// Rows to read of a site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteRows {
    /// Name of the site.
    pub name: String,
    /// Numbers per row, or tokens of the vocabulary.
    pub width: usize,
    /// True if the site has token counts and no rows. Counts are read when the files are opened.
    pub counts: bool,
    /// The modules that read it.
    pub modules: Vec<String>,
    /// The range of rows, over all files together.
    pub rows: Range<u64>,
    /// Bytes of these rows, as an average.
    pub bytes: u64,
    /// Bytes of one image, if patches are cut from images.
    pub image_bytes: u64,
}

impl SiteRows {
    /// The given rows of a site.
    pub(super) fn of(site: &Site, rows: Range<u64>) -> Self {
        let bytes =
            u128::from(site.bytes()) * u128::from(rows.end - rows.start) / u128::from(site.rows().max(1));
        Self {
            name: site.name.clone(),
            width: site.width,
            counts: site.counts().is_some(),
            modules: site.modules.clone(),
            rows,
            bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
            image_bytes: site.image_bytes(),
        }
    }

    /// Number of rows to read; 0 for token counts.
    pub fn rows_to_read(&self) -> u64 {
        if self.counts { 0 } else { self.rows.end - self.rows.start }
    }

    /// Floating-point operations.
    pub fn work(&self) -> f64 {
        cost::work_of_rows(self.rows_to_read(), self.width)
    }

    /// Bytes of their sums.
    pub(super) fn sums(&self) -> u64 {
        memory(self.width as u64, self.counts)
    }

    /// True if the decompositions of this site use one thread.
    pub fn is_narrow(&self) -> bool {
        initializer::is_narrow(self.width)
    }
}

/// Opens the activations, checks headers and options, and plans the measurement.
///
/// # Errors
/// All problems of the options and the files together.
pub fn plan_measurement(request: &MeasurementRequest) -> Result<(Measurement, ActivationSet), Problems> {
    let mut problems = Problems::default();
    let selector = problems.collect(Selector::new(&request.selection));
    let set = problems.collect(ActivationSet::open(&request.activations, request.access));
    let (Some(selector), Some(set)) = (selector, set) else { return Err(problems) };

    let selected = set.sites().filter(|site| selector.selects_site(site));
    let (selected, empty): (Vec<&Site>, Vec<&Site>) = selected.partition(|site| site.rows() > 0);
    if selected.is_empty() && !empty.is_empty() {
        let what = "the selected sites have no rows";
        problems.push(Problem::data(what).help("select other sites with --include and --exclude"));
    } else if selected.is_empty() {
        let what = format!(
            "no site is selected: --include and --exclude together exclude all {} sites",
            set.sites().count()
        );
        problems.push(Problem::usage(what).help("relax one of them"));
    }
    let all: Vec<SiteRows> = selected.iter().map(|site| SiteRows::of(site, 0..site.rows())).collect();
    let memory = Memory::of_moments(&all);
    let limits = Limits { max_memory: request.max_memory, room: request.room.as_ref() };
    let side_by_side = schedule::side_by_side(&memory, request.threads, limits, "");
    let side_by_side = problems.collect(side_by_side);
    let fingerprints = problems.collect(fingerprints(&set));
    let (Some(side_by_side), Some(fingerprints)) = (side_by_side, fingerprints) else { return Err(problems) };
    problems.or_ok(())?;

    let (sites, part) = match request.shard {
        None => (all, None),
        Some(shard) => {
            let whole = identity(request, &all, &sources(&set, &all, &fingerprints), shard.count);
            (part_of(shard, &selected), Some(Part { index: shard.index, count: shard.count, whole }))
        }
    };
    let measurement = Measurement {
        peak_memory: Memory::of_moments(&sites).peak(side_by_side),
        sources: sources(&set, &sites, &fingerprints),
        sites,
        empty: empty.into_iter().map(|site| site.name.clone()).collect(),
        part,
        nonfinite: request.nonfinite,
        precision: request.precision,
        threads: request.threads,
        side_by_side,
    };
    Ok((measurement, set))
}

fn fingerprints(set: &ActivationSet) -> Result<Vec<String>, Problems> {
    let mut problems = Problems::default();
    let fingerprints = set.files().iter().filter_map(|file| problems.collect(fingerprint(file))).collect();
    problems.or_ok(fingerprints)
}

/// Identifies a divided measurement: a hash of its rows, its options and the number of parts.
fn identity(
    request: &MeasurementRequest,
    sites: &[SiteRows],
    sources: &[MeasuredSource],
    count: u64,
) -> String {
    let rows: Vec<_> = sources.iter().map(|source| (&source.fingerprint, &source.rows)).collect();
    let widths: Vec<_> = sites.iter().map(|site| (&site.name, site.width, &site.modules)).collect();
    let whole = json!([rows, widths, request.nonfinite, request.precision, count]);
    let mut hashing = Hashing::default();
    hashing.update(whole.to_string().as_bytes());
    hashing.finish()
}

/// The files, and the rows to read of each.
fn sources(set: &ActivationSet, sites: &[SiteRows], fingerprints: &[String]) -> Vec<MeasuredSource> {
    let mut rows = vec![BTreeMap::new(); set.files().len()];
    for SiteRows { name, rows: read, .. } in sites {
        for (file, range) in set.site(name).into_iter().flat_map(|site| site.in_files(read.clone())) {
            rows[file].insert(name.clone(), std::iter::once(range).collect());
        }
    }
    let sources = set.files().iter().zip(rows).zip(fingerprints).map(|((file, rows), fingerprint)| {
        let path = file.path().display().to_string();
        MeasuredSource { path, bytes: file.length(), fingerprint: fingerprint.clone(), rows }
    });
    sources.filter(|source| !source.rows.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::safetensors;
    use crate::storage::shown;
    use expect_test::expect;
    use std::fs::File;
    use std::path::Path;

    /// A site with two modules, and a site with the name of its module.
    fn write(path: &Path, rows: u64) {
        let tensor = |width: u64| ("F32".to_owned(), vec![rows, width], vec![0; (4 * rows * width) as usize]);
        let sites = r#"{"format":"activations","version":1,"sites":{"0.in":["0.q","0.k"]}}"#;
        let metadata = [("cntlora".to_owned(), sites.to_owned())].into();
        let tensors = [("0.in".to_owned(), tensor(2)), ("0.out".to_owned(), tensor(3))].into();
        safetensors::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
    }

    fn request(folder: &Path, include: &[&str], exclude: &[&str]) -> MeasurementRequest {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        MeasurementRequest {
            activations: vec![folder.into()],
            selection: Selection { targets: vec![], include: owned(include), exclude: owned(exclude) },
            nonfinite: Nonfinite::Refuse,
            precision: Precision::F32,
            shard: None,
            access: Access::Auto,
            threads: 1,
            max_memory: None,
            room: None,
        }
    }

    #[test]
    fn patterns_select_sites_by_site_and_module_names() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("a.safetensors"), 5);
        let selected = |include: &[&str], exclude: &[&str]| {
            let (plan, _) = plan_measurement(&request(folder.path(), include, exclude))?;
            Ok::<_, Problems>(plan.sites.into_iter().map(|site| site.name).collect::<Vec<_>>())
        };
        assert_eq!(selected(&[], &[]).unwrap(), ["0.in", "0.out"]);
        assert_eq!(selected(&["k$"], &[]).unwrap(), ["0.in"]);
        assert_eq!(selected(&["out"], &[]).unwrap(), ["0.out"]);
        assert_eq!(selected(&[], &["k"]).unwrap(), ["0.in", "0.out"], "the other module still needs it");
        assert_eq!(selected(&[], &["k", "q"]).unwrap(), ["0.out"]);
        assert_eq!(selected(&[], &["in"]).unwrap(), ["0.out"]);
        let refused = |include: &[&str], exclude: &[&str]| {
            shown(&selected(include, exclude).unwrap_err(), folder.path())
        };
        expect![[r#"
            Usage: no site is selected: --include and --exclude together exclude all 2 sites
                help: relax one of them
            Usage: --include: "(" is not a regular expression: unclosed group
                help: write a backslash before a literal dot or bracket
            Usage: --exclude: "[" is not a regular expression: unclosed character class
                help: write a backslash before a literal dot or bracket
        "#]]
        .assert_eq(&(refused(&["k"], &["in"]) + &refused(&["("], &["["])));
        write(&folder.path().join("a.safetensors"), 0);
        expect![[r#"
            Data: a.safetensors: tensor "0.in": this site has no rows in any file
            Data: a.safetensors: tensor "0.out": this site has no rows in any file
        "#]]
        .assert_eq(&refused(&[], &[]));
    }

    /// The whole image is in memory, even if only few patches are cut from it.
    #[test]
    fn memory_includes_images() {
        let folder = tempfile::tempdir().unwrap();
        let convolutions = r#"{"format":"activations","version":1,"sites":{"conv":["conv"]},"convolutions":
            {"conv":{"kernel":[2,2],"stride":[500,500],"padding":[0,0]}}}"#;
        let metadata = [("cntlora".to_owned(), convolutions.to_owned())].into();
        let tensor = ("F32".to_owned(), vec![1, 1, 1000, 1000], vec![0; 4_000_000]);
        let mut file = File::create(folder.path().join("a.safetensors")).unwrap();
        safetensors::write(&mut file, &metadata, &[("conv".to_owned(), tensor)].into()).unwrap();
        let (plan, _) = plan_measurement(&request(folder.path(), &[], &[])).unwrap();
        let rows_alone = SiteRows { image_bytes: 0, ..plan.sites[0].clone() };
        let without = Memory::of_moments(&[rows_alone]).peak(SideBySide::ONE);
        assert!(plan.peak_memory >= without + 4_000_000, "{} and {without}", plan.peak_memory);
    }

    #[test]
    fn sources_list_their_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        write(&path("a.safetensors"), 5);
        write(&path("b.safetensors"), 7);
        let (plan, _) = plan_measurement(&request(folder.path(), &["out"], &[])).unwrap();
        let rows: Vec<_> =
            plan.sources.iter().map(|source| serde_json::to_string(&source.rows).unwrap()).collect();
        assert_eq!(rows, [r#"{"0.out":[[0,5]]}"#, r#"{"0.out":[[0,7]]}"#]);
        assert_eq!(plan.sites[0].rows, 0..12);
    }
}
