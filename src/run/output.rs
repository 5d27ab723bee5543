//! Where the results of a run go, and how they get there.

use super::Outcome;
use crate::adapter::{
    AdaptedWeight, Adapter, Contents, Format, REPORT_FILE, Staged, StagedAdapter, StagedBase, anchor_of,
    default_base, other_modules, stage_adapter, stage_residual_base,
};
use crate::plan::{Inputs, Plan, PlannedLayer};
use crate::report::{Report, html};
use crate::storage::{AtomicFile, Problem, Problems, StagedFile};
use serde_json::{Map, Value};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Where the results of a run go, and how they are written.
#[derive(Debug, PartialEq, Eq)]
pub struct Output {
    /// Folder of the adapter.
    pub folder: PathBuf,
    /// Folder of the changed base, if it is changed.
    pub base: Option<PathBuf>,
    /// Folder of the adapter that takes the update away, in place of a changed base.
    pub anchor: Option<PathBuf>,
    /// How the adapter is written.
    pub format: Format,
    /// Page about the run.
    pub page: Option<PathBuf>,
}

impl Output {
    /// The folders that are written to.
    pub fn folders(&self) -> Vec<&Path> {
        let folders = [Some(&self.folder), self.base.as_ref(), self.anchor.as_ref()];
        folders.into_iter().flatten().map(PathBuf::as_path).collect()
    }

    /// The files and folders that are written.
    pub fn all(&self) -> Vec<&Path> {
        self.folders().into_iter().chain(self.page.as_deref()).collect()
    }

    /// The folders in which anything changes: also those from which an earlier run's base and anchor go.
    pub fn changed_folders(&self) -> Vec<PathBuf> {
        let mut folders = vec![default_base(&self.folder), anchor_of(&self.folder)];
        folders.extend(self.folders().into_iter().map(Path::to_path_buf));
        folders.sort();
        folders.dedup();
        folders
    }

    /// What is written outside of the folder of the adapter.
    pub fn elsewhere(&self) -> Vec<&Path> {
        let base = self.base.as_ref().filter(|base| **base != default_base(&self.folder));
        base.into_iter().chain(&self.page).map(PathBuf::as_path).collect()
    }
}

/// Writes what a run gave: the changed base or the anchor, if there is one, the page, if it is asked for, and the adapter, whose presence
/// says that all is there. Everything is on the disk before anything old is replaced. `provenance` is the record of the adapter. Returns
/// what was left out of the base.
///
/// # Errors
/// A data problem if no layer has a rank, or a number does not fit its format; I/O problems of reading the checkpoint and of writing.
pub fn write(
    outcome: &mut Outcome,
    mut provenance: Map<String, Value>,
    output: &Output,
    plan: &Plan,
    inputs: &Inputs,
) -> Result<Vec<String>, Problems> {
    let Outcome { adapter, report } = outcome;
    if adapter.layers.is_empty() {
        return Err(Problem::data("every layer got rank 0, so there is no adapter to write")
            .help("give --min-rank 1, or a larger --energy, at most 1")
            .into());
    }
    let base = output.base.as_ref().unwrap_or(&plan.model);
    adapter.base = base.display().to_string();
    if output.anchor.is_some() {
        provenance.insert("residual".into(), "anchor".into());
    }
    // Layers that are planned and got no adapter are among the others: PEFT must not adapt them.
    let adapted = plan.layers().filter(|layer| adapter.layers.contains_key(&layer.module));
    let tensors = adapted.flat_map(|layer| &layer.weight).map(|piece| piece.tensor.as_str()).collect();
    let others = other_modules(&inputs.checkpoint, &tensors);
    // Numbers and words of our own always become JSON.
    let json = serde_json::to_vec_pretty(report).map_err(|error| Problem::data(error.to_string()))?;
    let contents = Contents {
        adapter,
        element: plan.element,
        provenance: &provenance,
        other_modules: &others,
        beside: &[(REPORT_FILE, json.as_slice())],
    };
    // First, since the folders of the others may be in its own.
    let staged_adapter = stage_adapter(&output.folder, &contents, output.format)?;
    let staged = Staged {
        adapter: staged_adapter,
        base: output.base.as_ref().map(|base| stage_base(base, adapter, plan, inputs)).transpose()?,
        anchor: output
            .anchor
            .as_ref()
            .map(|anchor| stage_anchor(anchor, &contents, output.format))
            .transpose()?,
        page: output.page.as_ref().map(|page| stage_page(page, report)).transpose()?,
    };
    staged.commit()
}

fn stage_base<'a>(
    folder: &'a Path,
    adapter: &Adapter,
    plan: &Plan,
    inputs: &Inputs,
) -> Result<StagedBase<'a>, Problems> {
    let adapted = |layer: &PlannedLayer| {
        let factors = layer.shape.of_stored_weight(adapter.layers.get(&layer.module)?);
        Some(AdaptedWeight { pieces: layer.weight.clone(), factors })
    };
    let weights: Vec<_> = plan.layers().filter_map(adapted).collect();
    stage_residual_base(folder, &inputs.checkpoint, &weights, adapter.scale, plan.element)
}

fn stage_anchor<'a>(
    folder: &'a Path,
    contents: &Contents<'_>,
    format: Format,
) -> Result<StagedAdapter<'a>, Problems> {
    let adapter = &contents.adapter.negated();
    stage_adapter(folder, &Contents { adapter, beside: &[], ..*contents }, format)
}

fn stage_page(path: &Path, report: &Report) -> Result<StagedFile, Problem> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(html::render(report).as_bytes())
        .map_err(|error| Problem::io("cannot write", &error).in_file(path))?;
    file.stage()
}
