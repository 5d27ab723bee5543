//! What measuring moments is going to do: the sites whose rows are read. Needs no checkpoint.

use super::cost::Memory;
use super::options::check_precision;
use super::select::Selector;
use super::{Nonfinite, Selection, cost, is_narrow, schedule};
use crate::activations::{ActivationSet, Site};
use crate::moments_file::MeasuredSource;
use crate::simd::Precision;
use crate::storage::{Access, Problem, Problems, fingerprint, quoted};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

/// What a user asks for.
#[derive(Clone, Debug)]
pub struct MeasurementRequest {
    /// Activations: files and folders.
    pub activations: Vec<PathBuf>,
    /// Which sites: those that one of the selected modules reads, where patterns are searched for in the names of both.
    /// [`targets`](Selection::targets) is about layers, and has to be empty.
    pub selection: Selection,
    /// What happens to rows with NaN or infinity.
    pub nonfinite: Nonfinite,
    /// What Gram matrices are computed with.
    pub precision: Precision,
    /// How files are read.
    pub access: Access,
    /// Threads to work with.
    pub threads: usize,
    /// Bytes that the run may hold, if that is limited.
    pub max_memory: Option<u64>,
}

/// What measuring is going to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The rows that are read, site by site, in order of name.
    pub sites: Vec<SiteRows>,
    /// The files that they are read from, in reading order.
    pub sources: Vec<MeasuredSource>,
    /// What happens to rows with NaN or infinity.
    pub nonfinite: Nonfinite,
    /// What Gram matrices are computed with.
    pub precision: Precision,
    /// Threads to work with.
    pub threads: usize,
    /// How many narrow sites are worked on side by side.
    pub side_by_side: usize,
    /// Bytes that the run will hold at its peak, estimated from the shapes.
    pub peak_memory: u64,
}

/// Rows of a site that are read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteRows {
    /// Name of the site.
    pub name: String,
    /// Numbers per row.
    pub width: usize,
    /// The modules that read it.
    pub modules: Vec<String>,
    /// Its rows, counted over all files together.
    pub rows: Range<u64>,
    /// Their bytes.
    pub bytes: u64,
}

impl SiteRows {
    fn all(site: &Site) -> Self {
        let Site { name, width, modules, .. } = site.clone();
        Self { name, width, modules, rows: 0..site.rows(), bytes: site.bytes() }
    }

    /// Floating-point operations.
    pub fn work(&self) -> f64 {
        cost::work_of_rows(self.rows.end - self.rows.start, self.width)
    }

    /// Whether this site is worked on beside others, on one thread.
    pub fn is_narrow(&self) -> bool {
        is_narrow(self.width)
    }
}

/// Opens the activations, checks everything that headers and options can tell, and plans the measurement.
///
/// # Errors
/// All complaints about the options and the files; a data problem if two files have the same content.
pub fn plan_measurement(request: &MeasurementRequest) -> Result<(Measurement, ActivationSet), Problems> {
    let mut problems = Problems::default();
    problems.collect(check_precision(request.precision));
    let selector = problems.collect(Selector::new(&request.selection));
    let set = problems.collect(ActivationSet::open(&request.activations, request.access));
    let (Some(selector), Some(set)) = (selector, set) else { return Err(problems) };

    let sites: Vec<SiteRows> =
        set.sites().filter(|site| selector.selects_site(site)).map(SiteRows::all).collect();
    if sites.is_empty() {
        let what = format!(
            "nothing is selected: --include and --exclude leave out all {} sites",
            set.sites().count()
        );
        problems.push(Problem::usage(what).help("loosen one of them"));
    }
    let sources = problems.collect(sources(&set, &sites));
    let memory = Memory::of_moments(sites.iter().map(|site| site.width));
    let side_by_side = schedule::side_by_side(&memory, request.threads, request.max_memory);
    let Some(side_by_side) = problems.collect(side_by_side) else { return Err(problems) };
    problems.or_ok(())?;
    let measurement = Measurement {
        peak_memory: memory.peak(side_by_side),
        sites,
        sources: sources.unwrap_or_default(),
        nonfinite: request.nonfinite,
        precision: request.precision,
        threads: request.threads,
        side_by_side,
    };
    Ok((measurement, set))
}

/// The files that rows are read from, and which rows of each. Copies of a file would count its rows twice.
fn sources(set: &ActivationSet, sites: &[SiteRows]) -> Result<Vec<MeasuredSource>, Problems> {
    let mut problems = Problems::default();
    let mut rows = vec![BTreeMap::new(); set.files().len()];
    for SiteRows { name, rows: read, .. } in sites {
        for (file, range) in set.site(name).into_iter().flat_map(|site| site.in_files(read.clone())) {
            rows[file].insert(name.clone(), std::iter::once(range).collect());
        }
    }
    let mut sources: Vec<MeasuredSource> = Vec::new();
    for (file, rows) in set.files().iter().zip(rows).filter(|(_, rows)| !rows.is_empty()) {
        let Some(fingerprint) = problems.collect(fingerprint(file)) else { continue };
        let path = file.path().display().to_string();
        let source = MeasuredSource { path, bytes: file.length(), fingerprint, rows };
        let copied = |known: &&MeasuredSource| {
            known.fingerprint == source.fingerprint && known.first_in_common(&source).is_some()
        };
        if let Some(known) = sources.iter().find(copied) {
            let what = format!("its rows would count twice: it has the content of {}", quoted(&known.path));
            problems.push(Problem::data(what).in_file(file.path()).help("leave one of the two out"));
        }
        sources.push(source);
    }
    problems.or_ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::safetensors;
    use std::fs::{self, File};
    use std::path::Path;

    /// Two sites, of which the first is shared by two modules, and one that is named after its module.
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
            access: Access::Auto,
            threads: 1,
            max_memory: None,
        }
    }

    #[test]
    fn sites_are_selected_by_their_name_and_by_their_modules() {
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
        let problems = selected(&["k"], &["in"]).unwrap_err();
        assert!(problems.to_string().contains("--include and --exclude leave out all 2 sites"), "{problems}");
        assert_eq!(selected(&["("], &["["]).unwrap_err().0.len(), 2);
    }

    #[test]
    fn sources_know_their_rows_and_copies_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        write(&path("a.safetensors"), 5);
        write(&path("b.safetensors"), 7);
        let (plan, _) = plan_measurement(&request(folder.path(), &["out"], &[])).unwrap();
        let rows: Vec<_> =
            plan.sources.iter().map(|source| serde_json::to_string(&source.rows).unwrap()).collect();
        assert_eq!(rows, [r#"{"0.out":[[0,5]]}"#, r#"{"0.out":[[0,7]]}"#]);
        assert_eq!(plan.sites[0].rows, 0..12);

        fs::copy(path("a.safetensors"), path("c.safetensors")).unwrap();
        let problems = plan_measurement(&request(folder.path(), &[], &[])).unwrap_err();
        let words = "c.safetensors: its rows would count twice: it has the content of";
        assert!(problems.to_string().contains(words), "{problems}");
    }
}
