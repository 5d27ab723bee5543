//! What a run is about, so that progress is never continued with other inputs or options.

use crate::activations::ActivationSet;
use crate::plan::{Inputs, Measurement, Nonfinite, Plan, Recording};
use crate::storage::{Hashing, Problem, Source};
use serde_json::{Map, Value, json};

/// Version of what runs save.
const VERSION: u64 = 1;

/// Where a job says what happens to rows that are not finite.
const NONFINITE: &str = "/options/nonfinite";

/// The longest `job.json`, in bytes.
const LONGEST: u64 = 1 << 30;

/// Everything that decides what a run computes: its inputs, by path, length and time of modification, and its options.
#[derive(Clone, Debug, PartialEq)]
pub struct Job(Value);

impl Job {
    /// The job of a run.
    pub fn of_run(plan: &Plan, inputs: &Inputs) -> Self {
        let model = inputs.checkpoint.files().iter().map(|(source, _)| source).collect();
        let [activations, source] = [&inputs.target, &inputs.source]
            .map(|side| side.as_ref().map(Recording::files).unwrap_or_default());
        let sites = plan.sites.iter().map(|site| {
            let layers = site.layers.iter().map(|layer| (layer.module.clone(), json!(layer)));
            let rows = json!([site.rows, site.source_rows]);
            (site.name.clone(), json!({ "rows": rows, "layers": Map::from_iter(layers) }))
        });
        Self::new(
            "init",
            json!({ "method": plan.method, "nonfinite": plan.nonfinite, "precision": plan.precision }),
            Map::from_iter(sites),
            [files("model", model), files("activations", activations), files("source", source)],
        )
    }

    /// The job of a measurement.
    pub fn of_measurement(measurement: &Measurement, set: &ActivationSet) -> Self {
        let sites = measurement.sites.iter().map(|site| (site.name.clone(), json!(site)));
        Self::new(
            "moments",
            json!({
                "nonfinite": measurement.nonfinite,
                "precision": measurement.precision,
                "part": measurement.part,
            }),
            Map::from_iter(sites),
            [files("activations", set.files().iter().collect())],
        )
    }

    fn new<const N: usize>(
        command: &str,
        options: Value,
        sites: Map<String, Value>,
        inputs: [(String, Value); N],
    ) -> Self {
        Self(json!({
            "version": VERSION,
            "tool_version": env!("CARGO_PKG_VERSION"),
            "command": command,
            "options": options,
            "sites": sites,
            "inputs": Map::from_iter(inputs),
        }))
    }

    /// As it is saved.
    pub(super) fn text(&self) -> String {
        format!("{:#}\n", self.0)
    }

    /// What tells it from jobs that cannot go on from its progress.
    pub(super) fn identity(&self) -> String {
        let mut job = self.clone();
        // Whether a run may go on that differs only in this, `obstacles` says.
        if let Some(nonfinite) = job.0.pointer_mut(NONFINITE) {
            *nonfinite = Value::Null;
        }
        let mut hashing = Hashing::default();
        hashing.update(job.text().as_bytes());
        hashing.finish()
    }

    /// Reads a saved job.
    ///
    /// # Errors
    /// An I/O problem if it cannot be read, a data problem if it cannot be understood.
    pub fn read(source: &Source) -> Result<Self, Problem> {
        let refused = |what: String| {
            Problem::data(format!("cannot be understood: {what}"))
                .in_file(source.path())
                .help("give --restart to begin anew")
        };
        if source.length() > LONGEST {
            return Err(refused(format!("it has {} bytes", source.length())));
        }
        match serde_json::from_slice(&source.read_vec(0, source.length())?) {
            Ok(job @ Value::Object(_)) => Ok(Self(job)),
            Ok(_) => Err(refused("expected an object".into())),
            Err(error) => Err(refused(error.to_string())),
        }
    }

    /// What keeps it from going on from the progress of an earlier job, in words.
    pub(super) fn obstacles(&self, earlier: &Self) -> Vec<String> {
        let mut earlier = earlier.clone();
        // Rows that were all finite are the same rows where others may be left out.
        if let (Some(before), Some(now)) = (earlier.0.pointer_mut(NONFINITE), self.0.pointer(NONFINITE))
            && *before == json!(Nonfinite::Refuse)
        {
            *before = now.clone();
        }
        self.differences(&earlier)
    }

    /// What differs from an earlier job, in words; the first few things of many.
    pub(super) fn differences(&self, earlier: &Self) -> Vec<String> {
        const SHOWN: usize = 5;
        let mut found = differences(&earlier.0, &self.0);
        if found.len() > SHOWN {
            let more = found.len() - SHOWN;
            found.truncate(SHOWN);
            found.push(format!("{more} other things differ as well"));
        }
        found
    }
}

/// Input files by path, each with what changes when it is written to.
fn files(kind: &str, sources: Vec<&Source>) -> (String, Value) {
    let entry = |source: &&Source| {
        let modified = source.identity().map(|identity| identity.modified.to_string());
        let path = source.path().display().to_string();
        (path, json!({ "bytes": source.length(), "modified": modified }))
    };
    (kind.into(), Value::Object(sources.iter().map(entry).collect()))
}

/// What differs between two values, in words.
pub(super) fn differences(before: &Value, now: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", Some(before), Some(now), &mut found);
    found
}

/// Adds what differs between two values at a place.
fn compare(place: &str, before: Option<&Value>, now: Option<&Value>, found: &mut Vec<String>) {
    let name = || place.escape_debug();
    match (before, now) {
        (Some(Value::Object(before)), Some(Value::Object(now))) => {
            let mut keys: Vec<&String> = before.keys().chain(now.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let separator = if place.is_empty() { "" } else { "." };
                compare(&format!("{place}{separator}{key}"), before.get(key), now.get(key), found);
            }
        }
        (Some(before), Some(now)) if before == now => {}
        (Some(before), Some(now)) => found.push(format!("{} was {before}, and is {now} now", name())),
        (Some(_), None) => found.push(format!("{} is missing now", name())),
        (None, Some(_)) => found.push(format!("{} was not there", name())),
        (None, None) => {}
    }
}

#[cfg(test)]
impl Job {
    pub(super) fn example(seed: u64) -> Self {
        Self::new("init", json!({ "seed": seed, "ridge": 0.1 }), Map::new(), [])
    }

    pub(super) fn example_of(nonfinite: Nonfinite) -> Self {
        Self::new("moments", json!({ "nonfinite": nonfinite }), Map::new(), [])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(inputs: &[(&str, usize)], options: Value) -> Job {
        let sources: Vec<Source> =
            inputs.iter().map(|(name, bytes)| Source::from_bytes(name, vec![0; *bytes])).collect();
        Job::new("init", options, Map::new(), [files("activations", sources.iter().collect())])
    }

    #[test]
    fn every_difference_is_named() {
        let before = job(&[("a.npy", 10), ("b.npy", 10)], json!({ "method": { "ridge": 0.1, "seed": 1 } }));
        let now = job(&[("a.npy", 12), ("c\n.npy", 10)], json!({ "method": { "ridge": 0.2, "seed": 1 } }));
        let expected = [
            "inputs.activations.a.npy.bytes was 10, and is 12 now",
            "inputs.activations.b.npy is missing now",
            r"inputs.activations.c\n.npy was not there",
            "options.method.ridge was 0.1, and is 0.2 now",
        ];
        assert_eq!(now.differences(&before), expected);
        assert!(now.differences(&now).is_empty());
        let many: Vec<String> = (0..9).map(|index| format!("{index}.npy")).collect();
        let many: Vec<(&str, usize)> = many.iter().map(|name| (name.as_str(), 1)).collect();
        let differences = job(&many, Value::Null).differences(&job(&[], Value::Null));
        assert_eq!(differences.len(), 6);
        assert_eq!(differences[5], "4 other things differ as well");
    }

    /// A job that was saved is the same job again, whatever its numbers.
    #[test]
    fn jobs_survive_their_text() {
        for ridge in [0.1, 1e-300, 0.3 - 0.1, f64::MIN_POSITIVE] {
            let job = job(&[("a.npy", 10)], json!({ "ridge": ridge }));
            let read = Job::read(&Source::from_bytes("job.json", job.text().into_bytes())).unwrap();
            assert!(job.differences(&read).is_empty());
            assert_eq!(job.identity(), read.identity());
        }
    }

    #[test]
    fn what_is_no_job_is_refused() {
        for text in ["", "[1]", "{\"a\":"] {
            let problem = Job::read(&Source::from_bytes("job.json", text.into())).unwrap_err();
            assert!(problem.to_string().starts_with("job.json: cannot be understood: "), "{problem}");
            assert_eq!(problem.next_step(), Some("give --restart to begin anew"));
        }
    }
}
