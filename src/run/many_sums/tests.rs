use super::super::{Event, Job, Observer, PartialRun, measure};
use super::*;
use crate::plan::{MeasurementRequest, Nonfinite, Selection, plan_measurement};
use crate::simd::Precision;
use crate::storage::shown;
use expect_test::expect;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// As many sites as files stay open, and some more.
const SITES: usize = MANY_SITES + 200;

/// Counts sites, and stops after some of them.
struct Stopping {
    after: usize,
    ready: AtomicUsize,
    resumed: AtomicUsize,
}

impl Stopping {
    fn after(sites: usize) -> Self {
        Self { after: sites, ready: AtomicUsize::new(0), resumed: AtomicUsize::new(0) }
    }
}

impl Observer for Stopping {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::MomentsReady { .. } => self.ready.fetch_add(1, Ordering::Relaxed),
            Event::Resumed { .. } => self.resumed.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
    }

    fn stop_requested(&self) -> bool {
        self.ready.load(Ordering::Relaxed) >= self.after
    }
}

/// A folder with a small `.npy` file for each site. Many of them have the same content.
fn recorded() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("rows")).unwrap();
    let dictionary = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n";
    let start =
        [b"\x93NUMPY\x01\0", &(dictionary.len() as u16).to_le_bytes()[..], dictionary.as_bytes()].concat();
    for site in 0..SITES {
        let numbers = (0..6).flat_map(|at| ((site % 7 * 6 + at) as f32).to_le_bytes());
        let bytes: Vec<u8> = start.iter().copied().chain(numbers).collect();
        fs::write(folder.path().join(format!("rows/experts.{site}.in.npy")), bytes).unwrap();
    }
    folder
}

fn measured(
    folder: &Path,
    out: &str,
    observer: &Stopping,
    interval: Duration,
) -> Result<(), crate::storage::Problems> {
    let (measurement, set) = plan_measurement(&MeasurementRequest {
        activations: vec![folder.join("rows")],
        selection: Selection::default(),
        nonfinite: Nonfinite::Refuse,
        precision: Precision::F32,
        shard: None,
        access: Access::Auto,
        threads: 1,
        max_memory: None,
        room: None,
    })?;
    let job = Job::of_measurement(&measurement, &set);
    let partial = PartialRun::open(&folder.join("partial"), &job, interval, false)?;
    measure(&measurement, &set, &folder.join(out), observer, &partial)?;
    partial.discard().map_err(Into::into)
}

/// A measurement of many sites is saved in few files, and continues from them to the same bytes.
#[test]
fn many_sites_are_saved_together_and_resumed() {
    let folder = recorded();
    let hour = Duration::from_secs(3600);
    let whole = Stopping::after(usize::MAX);
    measured(folder.path(), "whole", &whole, hour).unwrap();
    assert_eq!((whole.ready.into_inner(), whole.resumed.into_inner()), (SITES, 0));

    let stopped = measured(folder.path(), "out", &Stopping::after(700), hour).unwrap_err();
    assert_eq!(stopped.category(), crate::storage::Category::Interrupted);
    let saved = fs::read_dir(folder.path().join("partial")).unwrap().map(|entry| entry.unwrap().file_name());
    let saved: Vec<_> =
        saved.filter(|name| name.to_string_lossy().ends_with(".many.moments.safetensors")).collect();
    assert_eq!(saved.len(), 1, "{saved:?}");
    // Without an interval, the sums of each site are saved at once.
    let again = Stopping::after(720);
    measured(folder.path(), "out", &again, Duration::ZERO).unwrap_err();

    let resumed = Stopping::after(usize::MAX);
    measured(folder.path(), "out", &resumed, hour).unwrap();
    let found = resumed.resumed.into_inner();
    assert!((700..SITES).contains(&found), "{found}");
    assert_eq!(resumed.ready.into_inner(), SITES);
    let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
    assert!(read("out") == read("whole"));
    assert!(!folder.path().join("partial").exists());
}

#[test]
fn damaged_and_foreign_sums_are_refused() {
    let folder = recorded();
    let hour = Duration::from_secs(3600);
    measured(folder.path(), "out", &Stopping::after(700), hour).unwrap_err();
    let partial = folder.path().join("partial");
    let mut entries = fs::read_dir(&partial).unwrap().map(|entry| entry.unwrap().path());
    let path = entries.find(|path| path.to_string_lossy().ends_with(".many.moments.safetensors")).unwrap();
    let sound = fs::read(&path).unwrap();
    let mut texts = String::new();
    let mut damaged = sound.clone();
    *damaged.last_mut().unwrap() ^= 1;
    // The metadata are JSON within JSON.
    const FINGERPRINT: &str = r#"\"fingerprint\":\""#;
    let text = String::from_utf8_lossy(&sound);
    let at = text.find(FINGERPRINT).unwrap() + FINGERPRINT.len();
    let mut foreign = sound.clone();
    foreign[at] = if foreign[at] == b'0' { b'1' } else { b'0' };
    for bytes in [&sound[..sound.len() - 1], &damaged, &foreign] {
        fs::write(&path, bytes).unwrap();
        let problems = measured(folder.path(), "out", &Stopping::after(usize::MAX), hour).unwrap_err();
        texts +=
            &shown(&problems, folder.path()).replace(path.file_name().unwrap().to_str().unwrap(), "[name]");
    }
    expect![[r#"
        Data: partial/[name]: the file is truncated: its tensors have 64400 bytes, but 64399 follow the header
            help: remove this file to process its site again, or give --restart to start again
        Data: partial/[name]: tensor "experts.548.in": checksum mismatch: the file is damaged
            help: remove this file to process its site again, or give --restart to start again
        Data: partial/[name]: contains moments of another run
            help: remove this file to process its site again, or give --restart to start again
    "#]]
    .assert_eq(&texts);
}
