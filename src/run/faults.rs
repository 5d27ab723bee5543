//! Runs in which each operation on a file fails in turn, once or permanently. Each run ends with an error that names the file, leaves no
//! incomplete output, and continues from its saved progress to the same bytes.

use super::{
    Event, Job, Observer, Output, Part, PartialRun, Parts, Writing, measure, progress_folder, run_part,
    run_resumable, write,
};
use crate::adapter::{Component, Format, SingleFile, is_complete, record_heading};
use crate::element::Element;
use crate::factors::Start;
use crate::plan::{
    Inputs, MeasurementRequest, Nonfinite, Plan, Request, Selection, Shard, plan, plan_measurement,
};
use crate::random::gaussian;
use crate::rank::{Limits, Policy};
use crate::simd::Precision;
use crate::storage::faults::{Faults, Step, folder, inject};
use crate::storage::{Access, Category, Problems, is_unfinished, safetensors};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;

const WIDTH: usize = 3;

/// The rows of a site in each of two files.
const ROWS: usize = 5;

/// Two layers with one site each, recorded in two files of different formats, in a folder with injected failures.
pub(super) struct Small {
    folder: TempDir,
}

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// The outputs beside an adapter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing.
    Plain,
    /// A changed base, and a page.
    Residual,
    /// An anchor, both in one file, and a page.
    Anchored,
}

impl Small {
    pub(super) fn new() -> Self {
        let small = Self { folder: folder() };
        let tensors = |rows, names: [&str; 2]| {
            names.map(|name| {
                let matrix = gaussian::<f32>(rows, WIDTH, 1, name);
                let mut bytes = Vec::new();
                let numbers = (0..rows * WIDTH).map(|i| f64::from(matrix[(i / WIDTH, i % WIDTH)]));
                Element::F32.encode(numbers, &mut bytes);
                (name.to_owned(), ("F32".to_owned(), vec![rows as u64, WIDTH as u64], bytes))
            })
        };
        let write = |name: &str, tensors: [_; 2]| {
            let mut file = File::create(small.path(name)).unwrap();
            safetensors::write(&mut file, &BTreeMap::new(), &BTreeMap::from(tensors)).unwrap();
        };
        fs::create_dir(small.path("rows")).unwrap();
        write("model.safetensors", tensors(WIDTH, ["q.weight", "v.weight"]));
        write("rows/0.safetensors", tensors(ROWS, ["q", "v"]));
        for name in ["q", "v"] {
            // Column after column.
            let dictionary =
                format!("{{'descr': '<f8', 'fortran_order': True, 'shape': ({ROWS}, {WIDTH}), }}\n");
            let numbers = gaussian::<f64>(ROWS, WIDTH, 2, name);
            let mut bytes = [b"\x93NUMPY\x01\0", &(dictionary.len() as u16).to_le_bytes()[..]].concat();
            bytes.extend(dictionary.as_bytes());
            let columns = (0..WIDTH).flat_map(|column| (0..ROWS).map(move |row| (row, column)));
            bytes.extend(columns.flat_map(|place| numbers[place].to_le_bytes()));
            fs::write(small.path(&format!("rows/{name}.1.npy")), bytes).unwrap();
        }
        small
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn request(&self) -> Request {
        let mut request = Request::new(self.path("model.safetensors"), vec![self.path("rows")]);
        request.method.ranks = Policy::Fixed(2);
        request.method.limits = Limits { min: 0, max: 2, multiple: 1 };
        request
    }

    /// An adapter, from the rows or, if there are any, from moments.
    fn adapter(&self, kind: Kind, moments: &[&str], observer: &dyn Observer) -> Result<(), Problems> {
        let mut request = self.request();
        request.moments = moments.iter().map(|name| self.path(name)).collect();
        if kind != Kind::Plain {
            request.method.start = Start::Residual;
        }
        let (plan, inputs) = plan(&request)?;
        let partial = self.open(&Job::of_run(&plan, &inputs), "out")?;
        let outcome = run_resumable(&plan, &inputs, observer, &partial)?;
        partial.begin_writing(&self.output(kind).all())?;
        self.write(kind, outcome, &plan, &inputs)?;
        Ok(partial.discard()?)
    }

    fn output(&self, kind: Kind) -> Output {
        let folder = self.path("out");
        let (base, anchor, format) = match kind {
            Kind::Plain => (None, None, Format::Peft),
            Kind::Residual => (Some(folder.join("base")), None, Format::Peft),
            Kind::Anchored => {
                let format = Format::SingleFile(SingleFile::Kohya, Component::Unet);
                (None, Some(folder.join("anchor")), format)
            }
        };
        let page = (kind != Kind::Plain).then(|| self.path("out.html"));
        Output { folder, base, anchor, format, page, ..Output::default() }
    }

    /// The moments of all rows.
    pub(super) fn moments(&self, out: &str, observer: &dyn Observer) -> Result<(), Problems> {
        let (measurement, set) = plan_measurement(&MeasurementRequest {
            activations: vec![self.path("rows")],
            selection: Selection::default(),
            nonfinite: Nonfinite::Refuse,
            precision: Precision::F32,
            shard: None,
            access: Access::Read,
            threads: 1,
            max_memory: None,
            room: None,
        })?;
        let partial = self.open(&Job::of_measurement(&measurement, &set), out)?;
        measure(&measurement, &set, &self.path(out), observer, &partial)?;
        Ok(partial.discard()?)
    }

    /// An adapter in two parts, which are joined. Parts that are complete are left as they are.
    pub(super) fn parts(&self) -> Result<(), Problems> {
        let request = self.request();
        let (plan, inputs) = plan(&request)?;
        let job = Job::of_run(&plan, &inputs);
        let folders = [0, 1].map(|index| self.path(&format!("out-{index}")));
        for (index, folder) in (0..).zip(&folders).filter(|(_, folder)| !folder.exists()) {
            let shard = Shard::new(index, 2).unwrap();
            let partial = PartialRun::open(&progress_folder(folder), &job, Duration::ZERO, false)?;
            run_part(&plan, &inputs, shard, &(), &partial)?;
            partial.complete(&Part::new(shard, request.clone(), Writing::default()), folder)?;
        }
        self.write(Kind::Plain, Parts::open(&folders)?.join(&plan, &inputs)?, &plan, &inputs)
    }

    fn open(&self, job: &Job, out: &str) -> Result<PartialRun, Problems> {
        PartialRun::open(&progress_folder(&self.path(out)), job, Duration::ZERO, false)
    }

    fn write(
        &self,
        kind: Kind,
        mut outcome: super::Outcome,
        plan: &Plan,
        inputs: &Inputs,
    ) -> Result<(), Problems> {
        write(&mut outcome, record_heading(), &self.output(kind), plan, inputs).map(drop)
    }

    /// All files of outputs, and of what is saved, by their path from here.
    fn outputs(&self) -> Files {
        let mut found = Files::new();
        let mut folders = vec![self.path("")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let name = path.strip_prefix(self.folder.path()).unwrap().to_owned();
                if name.to_str().unwrap().trim_start_matches('.').starts_with("out") {
                    found.insert(name, fs::read(&path).unwrap());
                }
            }
        }
        found
    }

    /// Puts these files in the place of all outputs.
    fn restore(&self, files: &Files) {
        for name in ["out", "out.html", "out.partial", "out-0", "out-1", "out-0.partial", "out-1.partial"] {
            let path = self.path(name);
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
        for (name, bytes) in files {
            let path = self.folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    /// The output, if it is complete, without what is not the same every time.
    fn complete(&self) -> Option<Files> {
        let mut files = self.outputs();
        files.retain(|name, _| name.starts_with("out") || name.as_os_str() == "out.html");
        for (name, bytes) in &mut files {
            if name.ends_with("report.json") || name.ends_with("out.html") {
                bytes.clear();
            }
        }
        (self.path("out").is_file() || is_complete(&self.path("out"))).then_some(files)
    }
}

/// Asks to stop after this many blocks of rows.
struct StopAfter(AtomicUsize);

impl Observer for StopAfter {
    fn event(&self, event: Event<'_>) {
        if let Event::RowsAdded { .. } = event {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    fn stop_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }
}

fn reads(step: Step) -> bool {
    matches!(step, Step::Open | Step::Read)
}

/// Does `work` from each of `states`, outputs that an earlier run left, with every step failing in turn that `counts`, in each of these
/// ways. Afterwards it has to end as if nothing had been. An output that was complete stays until the new one is in its place.
fn all_faults(
    small: &Small,
    states: &[Files],
    counts: fn(Step) -> bool,
    ways: &[(ErrorKind, bool)],
    work: &dyn Fn() -> Result<(), Problems>,
) {
    small.restore(&Files::new());
    work().unwrap();
    let expected = small.complete().unwrap();
    assert!(!small.path("out.partial").exists());
    for (state, (kind, sticky)) in states.iter().flat_map(|state| ways.iter().map(move |way| (state, *way))) {
        for pass in 0.. {
            small.restore(state);
            let old = small.complete();
            let faults = Faults { counts, ..Faults::after(pass, sticky, kind) };
            let (result, faults) = inject(faults, small.folder.path(), work);
            let Some((step, path)) = faults.first() else {
                result.unwrap();
                assert!(pass > 0 && small.complete().unwrap() == expected);
                break;
            };
            let place = format!("{step:?} number {pass} fails, {kind:?}, sticky: {sticky}, at {path:?}");
            let problems = result.expect_err(&place);
            assert_eq!(problems.category(), Category::Io, "{place}: {problems}");
            assert!(problems.to_string().contains(path.to_str().unwrap()), "{place}: {problems}");
            let left = small.complete();
            let is_new = !counts(Step::Read) && left.as_ref() == Some(&expected);
            assert!(left == old || is_new, "{place}: neither the old output nor the new one is left");
            let unfinished = |name: &PathBuf| name.iter().any(|part| is_unfinished(&part.to_string_lossy()));
            assert!(!small.outputs().keys().any(unfinished), "{place}: {:?}", small.outputs().keys());

            work().unwrap_or_else(|problems| panic!("{place}, and then: {problems}"));
            assert!(small.complete().unwrap() == expected, "{place}: other bytes afterwards");
            assert!(!small.path("out.partial").exists(), "{place}: progress is left");
        }
    }
}

/// The files that `work` leaves if it is stopped after one block, two blocks, and so on.
fn stopped(small: &Small, work: &dyn Fn(&dyn Observer) -> Result<(), Problems>) -> Vec<Files> {
    let mut states = Vec::new();
    for blocks in 1.. {
        small.restore(&Files::new());
        match work(&StopAfter(blocks.into())) {
            Ok(()) => break,
            Err(problems) => assert_eq!(problems.category(), Category::Interrupted, "{problems}"),
        }
        states.push(small.outputs());
    }
    // Two sites of two files each.
    assert_eq!(states.len(), 4);
    states
}

/// The kind of a fault only changes words: so each goes with one of the two ways.
const READING: [(ErrorKind, bool); 2] = [(ErrorKind::Other, true), (ErrorKind::UnexpectedEof, false)];

const WRITING: [(ErrorKind, bool); 2] = [(ErrorKind::Other, false), (ErrorKind::StorageFull, true)];

/// Reads of headers, rows, weights and hashes, and of what was saved.
#[test]
fn reads_of_a_run_fail() {
    let small = Small::new();
    let stopped = stopped(&small, &|observer| small.adapter(Kind::Plain, &[], observer));
    // Nothing, sums, and layers beside sums.
    let states = [Files::new(), stopped[0].clone(), stopped[2].clone()];
    all_faults(&small, &states, reads, &READING, &|| small.adapter(Kind::Plain, &[], &()));
}

/// Reads of the checkpoint for its changed base, and writes of all that belongs to an adapter, in the place of another with what
/// belongs to that.
#[test]
fn operations_on_all_that_belongs_to_an_adapter_fail() {
    let small = Small::new();
    let left_by = |kind| {
        small.restore(&Files::new());
        small.adapter(kind, &[], &()).unwrap();
        small.outputs()
    };
    let old = [left_by(Kind::Residual), left_by(Kind::Anchored)];
    let [residual, anchored] = [Kind::Residual, Kind::Anchored].map(|kind| {
        let small = &small;
        move || small.adapter(kind, &[], &())
    });
    all_faults(&small, &old[1..], reads, &READING, &residual);
    let writes = |step| !reads(step);
    all_faults(&small, &[Files::new(), old[1].clone()], writes, &WRITING, &residual);
    all_faults(&small, &[Files::new(), old[0].clone()], writes, &WRITING, &anchored);
    // A page is named by the user, and stays.
    let without_page = old.map(|mut files| {
        files.remove(&PathBuf::from("out.html"));
        files
    });
    all_faults(&small, &without_page, writes, &WRITING, &|| small.adapter(Kind::Plain, &[], &()));
}

/// Reads of rows, and of the sums of all sites when they are put together.
#[test]
fn reads_of_a_measurement_fail() {
    let small = Small::new();
    let stopped = stopped(&small, &|observer| small.moments("out", observer));
    let states = [Files::new(), stopped[2].clone()];
    all_faults(&small, &states, reads, &READING, &|| small.moments("out", &()));
}

/// The tests above need this: injected failures also reach the thread that reads ahead.
#[test]
fn reads_ahead_count() {
    let small = Small::new();
    let reads_of = |work: &dyn Fn() -> Result<(), Problems>| {
        let (result, faults) = inject(Faults::none(), small.folder.path(), work);
        result.unwrap();
        let rows = small.path("rows/q.1.npy");
        faults.met.into_iter().filter(|met| *met == (Step::Read, rows.clone())).count()
    };
    let planned = reads_of(&|| plan(&small.request()).map(drop));
    let run = reads_of(&|| small.adapter(Kind::Plain, &[], &()));
    assert_eq!(run, planned + WIDTH + 1, "one for each column, and one for the hash in the report");
}

/// Reads of moments files.
#[test]
fn reads_of_moments_fail() {
    let small = Small::new();
    small.moments("m.moments.safetensors", &()).unwrap();
    let work = || small.adapter(Kind::Plain, &["m.moments.safetensors"], &());
    all_faults(&small, &[Files::new()], reads, &READING, &work);
}

/// Reads and writes of parts.
#[test]
fn operations_on_parts_fail() {
    let small = Small::new();
    all_faults(&small, &[Files::new()], reads, &READING, &|| small.parts());
    all_faults(&small, &[Files::new()], |step| !reads(step), &WRITING, &|| small.parts());
}

/// Writes of saved sums and layers, of the adapter, and the removal of what is saved.
#[test]
fn writes_of_a_run_fail() {
    let small = Small::new();
    all_faults(&small, &[Files::new()], |step| !reads(step), &WRITING, &|| {
        small.adapter(Kind::Plain, &[], &())
    });
}

/// Writes of saved sums, and of the moments of all sites.
#[test]
fn writes_of_a_measurement_fail() {
    let small = Small::new();
    all_faults(&small, &[Files::new()], |step| !reads(step), &WRITING, &|| small.moments("out", &()));
}

/// A run that is asked to stop and cannot save: the error names the file, and what was saved before is still there to go on from.
#[test]
fn the_progress_before_survives_when_saving_at_the_stop_fails() {
    let small = Small::new();
    let work = |observer: &dyn Observer| small.adapter(Kind::Plain, &[], observer);
    small.restore(&Files::new());
    work(&()).unwrap();
    let expected = small.complete();
    let states = stopped(&small, &work);
    // From what one block left, the next block is the last.
    for (kind, sticky) in WRITING {
        for pass in 0.. {
            small.restore(&states[0]);
            let faults = Faults { counts: |step| !reads(step), ..Faults::after(pass, sticky, kind) };
            let (result, faults) = inject(faults, &small.path("out.partial"), || work(&StopAfter(1.into())));
            let problems = result.unwrap_err();
            let Some((step, path)) = faults.first() else {
                assert_eq!(problems.category(), Category::Interrupted);
                assert!(pass > 0);
                break;
            };
            let place = format!("{step:?} number {pass} fails, {kind:?}, sticky: {sticky}, at {path:?}");
            assert_eq!(problems.category(), Category::Io, "{place}: {problems}");
            assert!(problems.to_string().contains(path.to_str().unwrap()), "{place}: {problems}");
            // The sums of one block or, if only a folder could not be brought to the disk, of both.
            let sums = &small.outputs();
            assert_eq!(sums.keys().collect::<Vec<_>>(), states[0].keys().collect::<Vec<_>>(), "{place}");
            assert!(*sums == states[0] || *sums == states[1], "{place}");
            work(&()).unwrap();
            assert!(small.complete() == expected, "{place}: other bytes afterwards");
        }
    }
}
