//! The outputs of a run, and writing them.

use super::Outcome;
use super::side_by_side::with_threads;
use crate::adapter::{
    AdaptedWeight, Base, BaseFormat, Contents, Format, Loading, PeftContents, REPORT_FILE, Staged,
    UniformRank, anchor_of, default_base, other_modules,
};
use crate::plan::{Inputs, Plan, PlannedLayer};
use crate::report::{Report, card, html};
use crate::storage::{AtomicFile, Problem, Problems, StagedFile};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The outputs of a run: paths and format.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Folder of the adapter.
    pub folder: PathBuf,
    /// Folder of the changed base, if the run changes the base.
    pub base: Option<PathBuf>,
    /// The number format of the changed base.
    pub base_format: BaseFormat,
    /// Folder of the adapter that subtracts the initial update, in place of a changed base.
    pub anchor: Option<PathBuf>,
    /// Format of the adapter.
    pub format: Format,
    /// Path of the HTML report.
    pub page: Option<PathBuf>,
    /// The rank that all layers get, if they get the same one.
    pub uniform: Option<UniformRank>,
    /// The facts about the model for loaders of the adapter.
    pub loading: Loading,
}

impl Output {
    /// The folders to write to.
    pub fn folders(&self) -> Vec<&Path> {
        let folders = [Some(&self.folder), self.base.as_ref(), self.anchor.as_ref()];
        folders.into_iter().flatten().map(PathBuf::as_path).collect()
    }

    /// The files and folders to write.
    pub fn all(&self) -> Vec<&Path> {
        self.folders().into_iter().chain(self.page.as_deref()).collect()
    }

    /// The folders that change, including those of the base and the anchor of an earlier run, which are removed.
    pub fn changed_folders(&self) -> Vec<PathBuf> {
        let mut folders = vec![default_base(&self.folder), anchor_of(&self.folder)];
        folders.extend(self.folders().into_iter().map(Path::to_path_buf));
        folders.sort();
        folders.dedup();
        folders
    }

    /// The outputs outside of the folder of the adapter.
    pub fn elsewhere(&self) -> Vec<&Path> {
        let base = self.base.as_ref().filter(|base| **base != default_base(&self.folder));
        base.into_iter().chain(&self.page).map(PathBuf::as_path).collect()
    }
}

/// Writes the result of a run: the adapter, the changed base or the anchor if there is one, and the HTML report if requested. The folder of
/// the adapter is put in place last, as a whole. All new files are on the disk before an old one is replaced. `provenance` is the record
/// of the adapter. Returns the files that were not copied to the base.
///
/// # Errors
/// A data problem if all ranks are 0, or a number is too large for its format; I/O problems of reading the checkpoint and of writing.
pub fn write(
    outcome: &mut Outcome,
    mut provenance: Map<String, Value>,
    output: &Output,
    plan: &Plan,
    inputs: &Inputs,
) -> Result<Vec<String>, Problems> {
    let Outcome { adapter, report } = outcome;
    if adapter.layers.is_empty() {
        return Err(Problem::data("all layers have rank 0, so there is no adapter to write")
            .help("give --min-rank 1, or a larger --energy, at most 1")
            .into());
    }
    let base = output.base.as_ref().unwrap_or(&plan.model);
    adapter.base = base.display().to_string();
    if output.anchor.is_some() {
        provenance.insert("residual".into(), "anchor".into());
    }
    let uniform = output.uniform.map(|uniform| adapter.pad(uniform)).transpose()?;
    if let Some(rank) = uniform {
        provenance.insert("uniform_rank".into(), rank.into());
    }
    let (loading, wholes) = output.loading.of_checkpoint(&inputs.checkpoint)?;
    // Planned layers without an adapter count as other modules: PEFT must not adapt them.
    let adapted = plan.layers().filter(|layer| adapter.layers.contains_key(&layer.name));
    let tensors = adapted.flat_map(|layer| &layer.weight).map(|piece| piece.tensor.as_str()).collect();
    let others = other_modules(&inputs.checkpoint, &tensors);
    // The report consists of numbers and text, which always become JSON.
    let json = serde_json::to_vec_pretty(report).map_err(|error| Problem::data(error.to_string()))?;
    let text = card::render(report, output.anchor.is_some(), uniform);
    let contents = Contents {
        adapter,
        element: plan.element,
        provenance: &provenance,
        other_modules: &others,
        beside: &[(REPORT_FILE, json.as_slice())],
        peft: PeftContents {
            loading: Some(&loading),
            wholes: Some(&wholes),
            card: Some(&text),
            carried: None,
        },
    };
    let mut staged = Staged::create(&output.folders())?;
    let hash = staged.adapter(&output.folder, &contents, output.format)?;
    let left_out = match &output.base {
        None => Vec::new(),
        Some(base) => {
            let adapted = |layer: &PlannedLayer| {
                let factors = layer.shape.of_stored_weight(adapter.layers.get(&layer.name)?);
                Some(AdaptedWeight { pieces: layer.weight.clone(), factors })
            };
            let weights: Vec<_> = plan.layers().filter_map(adapted).collect();
            with_threads(plan.threads, || {
                let base = Base { folder: base, format: output.base_format };
                staged.base(base, &inputs.checkpoint, &weights, (adapter.scale, plan.element), Some(hash))
            })?
        }
    };
    if let Some(anchor) = &output.anchor {
        let adapter = &adapter.negated();
        let peft = PeftContents { card: Some(card::ANCHOR), ..contents.peft };
        staged.anchor(anchor, &Contents { adapter, beside: &[], peft, ..contents }, output.format)?;
    }
    if let Some(page) = &output.page {
        staged.page(stage_page(page, report)?);
    }
    staged.commit_adapter(&output.folder)?;
    Ok(left_out)
}

fn stage_page(path: &Path, report: &Report) -> Result<StagedFile, Problem> {
    let mut file = AtomicFile::create(path)?;
    file.put(html::render(report).as_bytes())?;
    file.stage()
}
