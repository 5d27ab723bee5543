//! The identity of a run, so that saved progress is never continued with other inputs or options.

use crate::activations::ActivationSet;
use crate::plan::{Inputs, Measurement, Nonfinite, Plan, Recording};
use crate::storage::{Hashing, Problem, Source, read_json, visible};
use serde_json::{Map, Value, json};
use std::sync::OnceLock;

/// Version of saved progress. Since version 2, the rows of pairs are differences and fine-tuning rows, and sums within a block are centred.
const VERSION: u64 = 2;

/// The place of the treatment of rows that are not finite, in a job.
const NONFINITE: &str = "/options/nonfinite";

/// Everything that determines the result of a run: its inputs, by path, length and time of modification, and its options.
#[derive(Clone, Debug, PartialEq)]
pub struct Job(Value, Shared);

/// The hash of what the layers of all sites depend on, once it was computed. With many inputs, it takes much longer than the rest.
#[derive(Debug, Default)]
struct Shared(OnceLock<Hashing>);

impl Clone for Shared {
    /// A copy of a job computes the hash again.
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Shared {
    /// It follows from the job.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Job {
    /// The job of a run.
    pub fn of_run(plan: &Plan, inputs: &Inputs) -> Self {
        let model = inputs.checkpoint.files().iter().map(|(source, _)| source).collect();
        let [activations, source] = [&inputs.target, &inputs.source]
            .map(|side| side.as_ref().map(Recording::files).unwrap_or_default());
        let sites = plan.sites.iter().map(|site| {
            let layers = site.layers.iter().map(|layer| (layer.name.to_string(), json!(layer)));
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
        let job = json!({
            "version": VERSION,
            "tool_version": env!("CARGO_PKG_VERSION"),
            "command": command,
            "options": options,
            "sites": sites,
            "inputs": Map::from_iter(inputs),
        });
        Self(job, Shared::default())
    }

    /// The text of the saved file.
    pub(super) fn text(&self) -> String {
        format!("{:#}\n", self.0)
    }

    /// Identifies what saved sums depend on: the recordings, and how their rows are added.
    pub(super) fn of_sums(&self) -> String {
        hash(&self.measured())
    }

    /// Identifies what the saved layers of a site depend on: the dependencies of its sums, the method, the model, and the layers of the
    /// site. Other sites have no influence.
    pub(super) fn of_layers(&self, site: &str) -> String {
        let part = |place: &str| self.0.pointer(place).cloned();
        // The hash of one object: the entries of all sites, which are sorted first, and the entries of this site.
        let shared = self.1.0.get_or_init(|| {
            let shared = json!({
                "measured": self.measured(),
                "method": part("/options/method"),
                "model": part("/inputs/model"),
            });
            let mut hashing = Hashing::default();
            let text = shared.to_string();
            hashing.update(text.strip_suffix('}').unwrap_or(&text).as_bytes());
            hashing
        });
        let site = json!({ "name": site, "site": self.0.get("sites").and_then(|sites| sites.get(site)) })
            .to_string();
        let mut hashing = shared.clone();
        hashing.update(b",");
        hashing.update(&site.as_bytes()[1..]);
        hashing.finish()
    }

    /// The dependencies of sums, without the treatment of rows that are not finite, which `obstacles` compares.
    fn measured(&self) -> Value {
        let keep = |object: &Value, names: &[&str]| -> Value {
            let entries = object.as_object().into_iter().flatten();
            let kept = entries.filter(|(name, _)| names.contains(&name.as_str()));
            kept.map(|(name, value)| (name.clone(), value.clone())).collect::<Map<_, _>>().into()
        };
        let mut measured = keep(&self.0, &["version", "tool_version", "command", "options", "inputs"]);
        for (place, names) in [("options", ["precision", "part"]), ("inputs", ["activations", "source"])] {
            if let Some(object) = measured.get_mut(place) {
                *object = keep(object, &names);
            }
        }
        measured
    }

    /// Reads a saved job.
    ///
    /// # Errors
    /// An I/O problem if the file cannot be read, a data problem if it is invalid.
    pub fn read(source: &Source) -> Result<Self, Problem> {
        let job =
            read_json(source, "job file").map_err(|problem| problem.help("give --restart to start again"))?;
        Ok(Self(Value::Object(job), Shared::default()))
    }

    /// The reasons not to use the sums of an earlier job, in words. Jobs with other methods, models and layers can use the same sums.
    pub(super) fn obstacles(&self, earlier: &Self) -> Vec<String> {
        let with_nonfinite = |job: &Self, nonfinite: Option<&Value>| {
            let mut measured = job.measured();
            if let (Some(options), Some(value)) = (measured.get_mut("options"), nonfinite) {
                options["nonfinite"] = value.clone();
            }
            Self(measured, Shared::default())
        };
        let (before, now) = (earlier.0.pointer(NONFINITE), self.0.pointer(NONFINITE));
        // If all rows were finite, skipping rows makes no difference.
        let before = if before == Some(&json!(Nonfinite::Refuse)) { now } else { before };
        with_nonfinite(self, now).differences(&with_nonfinite(earlier, before))
    }

    /// The differences from an earlier job, in words; only the first ones if there are many.
    pub(super) fn differences(&self, earlier: &Self) -> Vec<String> {
        const SHOWN: usize = 5;
        let mut found = differences(&earlier.0, &self.0);
        if found.len() > SHOWN {
            let more = found.len() - SHOWN;
            found.truncate(SHOWN);
            found.push(format!("and {more} more differences"));
        }
        found
    }
}

fn hash(value: &Value) -> String {
    let mut hashing = Hashing::default();
    hashing.update(value.to_string().as_bytes());
    hashing.finish()
}

/// Input files by path, each with its length and time of modification.
fn files(kind: &str, sources: Vec<&Source>) -> (String, Value) {
    let entry = |source: &&Source| {
        let modified = source.identity().map(|identity| identity.modified.to_string());
        let path = source.path().display().to_string();
        (path, json!({ "bytes": source.length(), "modified": modified }))
    };
    (kind.into(), Value::Object(sources.iter().map(entry).collect()))
}

/// The differences between two values, in words.
pub(super) fn differences(before: &Value, now: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", Some(before), Some(now), &mut found);
    found
}

/// Adds the differences between two values at a place.
fn compare(place: &str, before: Option<&Value>, now: Option<&Value>, found: &mut Vec<String>) {
    let name = || visible(place);
    match (before, now) {
        _ if before == now => {}
        (Some(Value::Object(before)), Some(Value::Object(now))) => {
            let mut keys: Vec<&String> = before.keys().chain(now.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let separator = if place.is_empty() { "" } else { "." };
                compare(&format!("{place}{separator}{key}"), before.get(key), now.get(key), found);
            }
        }
        (Some(before), Some(now)) => found.push(format!("{} was {before} and is now {now}", name())),
        (Some(_), None) => found.push(format!("{} is now missing", name())),
        (None, Some(_)) => found.push(format!("{} is new", name())),
        (None, None) => {}
    }
}

#[cfg(test)]
impl Job {
    /// A job whose recording has this length in bytes.
    pub(super) fn example(recording: u64) -> Self {
        let files = ("activations".to_owned(), json!({ "a.npy": { "bytes": recording } }));
        Self::new("init", json!({ "method": { "ridge": 0.1 } }), Map::new(), [files])
    }

    pub(super) fn example_of(nonfinite: Nonfinite) -> Self {
        Self::new("moments", json!({ "nonfinite": nonfinite }), Map::new(), [])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::shown;
    use expect_test::expect;
    use std::path::Path;

    fn job(inputs: &[(&str, usize)], options: Value) -> Job {
        let sources: Vec<Source> =
            inputs.iter().map(|(name, bytes)| Source::from_bytes(name, vec![0; *bytes])).collect();
        Job::new("init", options, Map::new(), [files("activations", sources.iter().collect())])
    }

    #[test]
    fn differences_have_names() {
        let before = job(&[("a.npy", 10), ("b.npy", 10)], json!({ "method": { "ridge": 0.1, "seed": 1 } }));
        let now = job(&[("a.npy", 12), ("c\n.npy", 10)], json!({ "method": { "ridge": 0.2, "seed": 1 } }));
        expect![[r#"
            inputs.activations.a.npy.bytes was 10 and is now 12
            inputs.activations.b.npy is now missing
            inputs.activations.c\n.npy is new
            options.method.ridge was 0.1 and is now 0.2"#]]
        .assert_eq(&now.differences(&before).join("\n"));
        assert!(now.differences(&now).is_empty());
        let many: Vec<String> = (0..9).map(|index| format!("{index}.npy")).collect();
        let many: Vec<(&str, usize)> = many.iter().map(|name| (name.as_str(), 1)).collect();
        let differences = job(&many, Value::Null).differences(&job(&[], Value::Null));
        assert_eq!(differences.len(), 6);
        expect!["and 4 more differences"].assert_eq(&differences[5]);
    }

    /// Sums of an older version have another meaning and are not continued.
    #[test]
    fn progress_of_an_older_version_is_refused() {
        let now = job(&[], json!({ "ridge": 0.1 }));
        let mut older = now.clone();
        older.0["version"] = json!(1);
        expect!["version was 1 and is now 2"].assert_eq(&now.obstacles(&older).join("\n"));
        assert_ne!(now.of_sums(), older.of_sums());
    }

    /// A saved job reads back equal, for all numbers.
    #[test]
    fn saved_jobs_read_back_equal() {
        for ridge in [0.1, 1e-300, 0.3 - 0.1, f64::MIN_POSITIVE] {
            let job = job(&[("a.npy", 10)], json!({ "ridge": ridge }));
            let read = Job::read(&Source::from_bytes("job.json", job.text().into_bytes())).unwrap();
            assert!(job.differences(&read).is_empty());
            assert_eq!((job.of_sums(), job.of_layers("s")), (read.of_sums(), read.of_layers("s")));
        }
    }

    /// Saved layers of earlier versions have the hash of one object.
    #[test]
    fn the_identity_of_layers_is_the_hash_of_one_object() {
        let job = job(&[("a.npy", 10)], json!({ "ridge": 0.1 }));
        for site in ["s", "\"}", ""] {
            let part = |place: &str| job.0.pointer(place).cloned();
            let whole = json!({
                "measured": job.measured(),
                "method": part("/options/method"),
                "model": part("/inputs/model"),
                "name": site,
                "site": job.0.get("sites").and_then(|sites| sites.get(site)),
            });
            assert_eq!(job.of_layers(site), hash(&whole), "{site}");
        }
    }

    /// Sums depend on recordings and precision. Layers also depend on the method, the model and their own site, but not on other sites.
    #[test]
    fn identities_depend_on_the_right_inputs() {
        let job = |options: Value, sites: Value, model: u64, rows: u64| {
            let file = |kind: &str, bytes: u64| (kind.to_owned(), json!({ "file": { "bytes": bytes } }));
            let Value::Object(sites) = sites else { panic!("expected sites") };
            Job::new("init", options, sites, [file("model", model), file("activations", rows)])
        };
        let options = |ridge: f64, precision: &str| json!({ "method": { "ridge": ridge }, "nonfinite": "refuse", "precision": precision });
        let sites = || json!({ "a": [1], "b": [2] });
        let first = job(options(0.1, "f32"), sites(), 1, 1);
        let same =
            |other: &Job| (first.of_sums() == other.of_sums(), first.of_layers("a") == other.of_layers("a"));
        assert_eq!(same(&job(options(0.1, "f32"), sites(), 1, 1)), (true, true));
        assert_eq!(same(&job(options(0.1, "f32"), json!({ "a": [1] }), 1, 1)), (true, true));
        assert_eq!(same(&job(options(0.1, "f32"), json!({ "a": [3], "b": [2] }), 1, 1)), (true, false));
        assert_eq!(same(&job(options(0.2, "f32"), sites(), 1, 1)), (true, false));
        assert_eq!(same(&job(options(0.1, "f32"), sites(), 2, 1)), (true, false));
        assert_eq!(same(&job(options(0.1, "f32"), sites(), 1, 2)), (false, false));
        assert_eq!(same(&job(options(0.1, "bf16"), sites(), 1, 1)), (false, false));
        assert!(first.of_layers("a") != first.of_layers("b"));
        for other in [job(options(0.2, "f32"), json!({}), 2, 1), first.clone()] {
            assert!(other.obstacles(&first).is_empty());
        }
        let obstacles = job(options(0.1, "bf16"), sites(), 1, 2).obstacles(&first);
        assert_eq!(obstacles.len(), 2, "{obstacles:?}");
    }

    #[test]
    fn invalid_job_files_are_refused() {
        let problems = ["", "[1]", "{\"a\":"].map(|text| {
            let problem = Job::read(&Source::from_bytes("job.json", text.into())).unwrap_err();
            shown(&problem.into(), Path::new("-"))
        });
        expect![[r#"
            Data: job.json: invalid job file: EOF while parsing a value at line 1 column 0
                help: give --restart to start again
            Data: job.json: invalid job file: invalid type: sequence, expected a map at line 1 column 0
                help: give --restart to start again
            Data: job.json: invalid job file: EOF while parsing a value at line 1 column 5
                help: give --restart to start again
        "#]]
        .assert_eq(&problems.concat());
    }
}
