//! Messages about progress, parts and weights that do not fit a run.

use super::faults::Small;
use super::saved_layers::SavedLayers;
use super::weight::{describe, read_weight};
use super::{Event, Job, Observer, PartialRun, Parts, site};
use crate::dense::Buffer;
use crate::error::Error;
use crate::plan::plan;
use crate::storage::{Access, Source, snapshot};
use expect_test::expect;
use std::fs;
use std::path::{Path, PathBuf};

/// The files in a folder whose names have this ending, sorted.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.to_str().unwrap().ends_with(ending)).collect();
    files.sort();
    files
}

#[test]
fn layers_of_another_run_are_refused() {
    let small = Small::new();
    small.parts().unwrap();
    let (plan, inputs) = plan(&small.request()).unwrap();
    let folders = ["out-0", "out-1"].map(|name| small.path(name));
    let [first, second] = folders.each_ref().map(|folder| files(folder, ".layers.safetensors")[0].clone());
    let join = || Parts::open(&folders).unwrap().join(&plan, &inputs);

    let sound = fs::read(&first).unwrap();
    fs::copy(&second, &first).unwrap();
    let mut texts = snapshot(join().err().unwrap());
    fs::write(&first, sound).unwrap();

    let mut saved = SavedLayers::read(&Source::open(&first, Access::Read).unwrap()).unwrap();
    saved.layers.clear();
    saved.write(&first).unwrap();
    let planned =
        plan.sites.iter().find(|planned| PartialRun::layers_in(&folders[0], &planned.name) == first);
    let loaded = site::load(planned.unwrap(), &first, &Job::of_run(&plan, &inputs));
    texts += &snapshot(loaded.err().unwrap());
    texts += &snapshot(Parts::open(&[]).unwrap_err());
    expect![[r#"
        FOLDER/out-0/8e35c2cd3bf6641b.layers.safetensors: contains layers of another run; help: remove this part, make it again by the same command with --shard, and give all of them
        FOLDER/out-0/8e35c2cd3bf6641b.layers.safetensors: contains layers of another run
        no parts of a run were given
    "#]].assert_eq(&texts);
}

#[test]
fn weights_that_cannot_be_used_are_reported() {
    let small = Small::new();
    let (plan, inputs) = plan(&small.request()).unwrap();
    let mut layer = plan.sites[0].layers[0].clone();
    let no_convergence = describe(Error::NoConvergence { what: "weight" }, &layer);
    layer.outputs = usize::MAX / layer.inputs;
    let no_memory = read_weight(&inputs.checkpoint, &layer, &mut Buffer::default()).unwrap_err();
    expect![[r#"
        the weight did not converge; help: inspect its weight with `cntlora inspect FILE --values`, or exclude this layer with --exclude '^q$'
        FOLDER/model.safetensors: tensor "q.weight": not enough memory for 18446744073709551615 bytes
    "#]].assert_eq(&(snapshot(no_convergence) + &snapshot(no_memory)));
}

/// Removes all saved sums when the last site is measured.
struct Removing(PathBuf);

impl Observer for Removing {
    fn event(&self, event: Event<'_>) {
        if let Event::MomentsReady { site: "v" } = event {
            for path in files(&self.0, ".moments.safetensors") {
                fs::remove_file(path).unwrap();
            }
        }
    }
}

#[test]
fn removed_sums_are_reported() {
    let small = Small::new();
    let removing = Removing(small.path("out.partial"));
    expect![[r#"
        FOLDER/out.partial: tensor "q": the saved moments of a measured site are missing
    "#]]
    .assert_eq(&snapshot(small.moments("out", &removing).unwrap_err()));
}
