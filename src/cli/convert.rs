//! The command convert.

use super::dry_run;
use super::interrupt::Interruption;
use super::limits;
use super::prepare::{refuse_file_in_place, refuse_input_folder};
use super::resolve::ConvertTask;
use super::saved::Outputs;
use super::terminal::Terminal;
use crate::adapter::{
    Contents, Conversion, Format, Loading, Named, Naming, Origin, PeftAdapter, PeftContents, PeftLayer,
    Renaming, Staged, UniformRank, convert, named, record_heading, refuse_occupied,
    refuse_shapes_without_place,
};
use crate::factors::{Factors, LayerName, Start};
use crate::plan::Renames;
use crate::report::format::{count, percent};
use crate::report::table::{Align, Table};
use crate::run::Output;
use crate::storage::visible::one_line;
use crate::storage::{Problem, Problems, visible};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// The result of a conversion.
#[derive(Debug, Serialize)]
struct Converted {
    /// The base model of the adapter.
    base: String,
    /// The number of layers that were left out, because they belong to other components.
    left_out: usize,
    layers: Vec<ConvertedLayer>,
}

#[derive(Debug, Serialize)]
struct ConvertedLayer {
    #[serde(flatten)]
    name: LayerName,
    rank_before: usize,
    rank: usize,
    /// Share of the squared norm of the update that is kept.
    kept: f64,
}

/// Converts an adapter, and prints the share of each update that is kept.
pub(crate) fn run(task: &ConvertTask, terminal: &Terminal) -> anyhow::Result<()> {
    let output = &task.output;
    let mut problems = task.refused.clone();
    for folder in output.changed_folders() {
        let inputs = [&task.adapter].into_iter().chain(&task.init).chain(&task.base);
        problems.collect(refuse_input_folder(&folder, inputs));
    }
    let check_folder = || match task.force {
        true => refuse_file_in_place(&output.folder),
        false => refuse_occupied(&output.folder),
    };
    problems.collect(check_folder());
    let Some(renames) = problems.collect(Renames::of_adapter(&task.renames)) else {
        return Err(problems.into());
    };
    let rename = |name: &str| renames.adapter_name(name);
    let trained = problems.collect(PeftAdapter::open_renamed(&task.adapter, &rename));
    let initial = task.init.as_ref().map(|folder| problems.collect(open_initial(folder, &rename)));
    if let Some(trained) = &trained {
        problems.collect(refuse_nothing_to_do(task, trained));
    }
    let (Some(trained), false) = (trained, matches!(initial, Some(None))) else {
        return Err(problems.into());
    };
    problems.or_ok(())?;
    let (initial, origin) = match initial.flatten() {
        Some((initial, origin)) => (Some(initial), Some(origin)),
        None => (None, origin_of(task)?),
    };
    limits::refuse_below(memory([Some(&trained), initial.as_ref()].into_iter().flatten(), output.uniform))?;
    if task.dry_run {
        let done = converted(task, &trained, initial.as_ref(), origin.as_ref())?;
        let adapter = &done.conversion.adapter;
        let shapes = adapter.layers.keys().map(|name| (name, adapter.shape(name)));
        refuse_shapes_without_place(done.named.format, shapes)?;
        if done.named.format != Format::Peft {
            done.conversion.carried.refuse()?;
        }
        return dry_run::print(&Converted::of(&done, &trained), render, &output.all(), terminal);
    }
    Interruption::handle(terminal)?;
    let _locks = Outputs::of(output).lock()?;
    check_folder()?;

    let done = converted(task, &trained, initial.as_ref(), origin.as_ref())?;
    let (conversion, format) = (&done.conversion, done.named.format);
    let mut record = record(task, origin.as_ref(), &conversion.adapter.base);
    if let Some(rank) = done.uniform {
        record.insert("uniform_rank".into(), rank.into());
    }
    let loading = loading(&trained, task);
    let card = card(terminal.process().command_line());
    // The names of other modules are not known here, so the list of targets is that of PEFT itself.
    let other_modules = &BTreeSet::new();
    let contents = Contents {
        adapter: &conversion.adapter,
        element: task.element,
        provenance: &record,
        other_modules,
        beside: &[],
        peft: PeftContents {
            loading: Some(&loading),
            card: Some(&card),
            carried: Some(&conversion.carried),
            ..PeftContents::default()
        },
    };
    let mut staged = Staged::create(&[&output.folder])?;
    staged.adapter(&output.folder, &contents, format)?;
    for read in [&trained].into_iter().chain(&initial) {
        read.source().check_unchanged()?;
    }
    staged.commit_adapter(&output.folder)?;

    trained.notes().iter().for_each(|note| terminal.note(&format!("note: {note}")));
    if initial.is_some() && trained.has_base_copies() {
        terminal.note("note: copies of base weights are left out, because they belong to the changed base");
    }
    terminal.result(&Converted::of(&done, &trained), render)?;
    Ok(())
}

/// A converted adapter in memory.
struct Done<'a> {
    conversion: Conversion<'a>,
    named: Named,
    /// The rank that all layers were padded to.
    uniform: Option<usize>,
}

/// Converts an adapter in memory. The original base is that of the initial adapter. A format without the name of a base leaves it to the
/// record.
fn converted<'a>(
    task: &ConvertTask,
    trained: &'a PeftAdapter,
    initial: Option<&PeftAdapter>,
    origin: Option<&Origin>,
) -> Result<Done<'a>, Problems> {
    let mut conversion = convert(trained, initial, task.rank)?;
    if let Some(model) = origin.and_then(|origin| origin.model.clone())
        && (initial.is_some() || conversion.adapter.base.is_empty())
    {
        conversion.adapter.base = model;
    }
    let Output { format, uniform, .. } = task.output;
    let naming = Naming { format, component: task.component, base: task.base.as_deref() };
    let named = named(&mut conversion.adapter, trained, naming)?;
    let uniform = uniform.map(|uniform| conversion.adapter.pad(uniform)).transpose()?;
    Ok(Done { conversion, named, uniform })
}

impl Converted {
    fn of(done: &Done<'_>, trained: &PeftAdapter) -> Self {
        let Done { conversion, named, .. } = done;
        let layer = |(name, factors): (&LayerName, &Factors)| {
            let old = named.old.get(name).unwrap_or(name);
            ConvertedLayer {
                name: name.clone(),
                rank_before: trained.layers().get(old).map_or(0, |layer| layer.rank),
                rank: factors.a.nrows(),
                kept: conversion.kept.get(old).copied().unwrap_or(1.0),
            }
        };
        let layers = conversion.adapter.layers.iter().map(layer).collect();
        Self { base: conversion.adapter.base.clone(), left_out: named.left_out, layers }
    }
}

/// Bytes of a conversion. The factors of all layers are in memory, then also their bytes to write, and those of one layer several times,
/// in f64, while it is cut to a rank.
fn memory<'a>(adapters: impl Iterator<Item = &'a PeftAdapter>, uniform: Option<UniformRank>) -> u64 {
    let layers: Vec<_> = adapters.flat_map(|adapter| adapter.layers().values()).collect();
    let padded = match uniform {
        None => 0,
        Some(UniformRank::Of(rank)) => rank,
        Some(UniformRank::Largest) => layers.iter().map(|layer| layer.rank).max().unwrap_or(0),
    };
    let rank = |layer: &PeftLayer| layer.rank.max(padded) as u64;
    let numbers = layers
        .into_iter()
        .map(|layer| rank(layer).saturating_mul(layer.outputs as u64 + layer.inputs as u64));
    let (all, largest) =
        numbers.fold((0u64, 0), |(all, largest), layer| (all.saturating_add(layer), layer.max(largest)));
    all.saturating_mul(2 * 4).saturating_add(largest.saturating_mul(8 * 8))
}

/// Refuses a conversion that would change nothing.
fn refuse_nothing_to_do(task: &ConvertTask, trained: &PeftAdapter) -> Result<(), Problem> {
    let Output { format, uniform, .. } = task.output;
    let is_other_format = format != Format::Peft || trained.config().is_none();
    let changes_ranks = task.rank.is_some() || uniform.is_some();
    let changes_names = !task.renames.is_empty() || trained.has_other_names();
    let chooses = task.component.is_some() || task.base.is_some();
    if task.init.is_some() || changes_ranks || is_other_format || changes_names || chooses {
        return Ok(());
    }
    Err(Problem::usage(
        "nothing to do: give --init, --rank, --uniform-rank, --adapter-name-rename or another --format",
    )
    .help("--init takes the adapter that the training started from"))
}

/// The origin of an adapter that keeps its base, so that the converted adapter has the fingerprints of the weights. A changed base has
/// other weights than those in the record.
fn origin_of(task: &ConvertTask) -> Result<Option<Origin>, Problem> {
    // A record beside a file of any name can belong to another adapter.
    if !task.adapter.is_dir() {
        return Ok(None);
    }
    let origin = Origin::read(&task.adapter)?;
    Ok(Some(origin).filter(|origin| origin.start != Some(Start::Residual)))
}

/// Opens the adapter that the training started from, and its record.
fn open_initial(folder: &Path, rename: &Renaming<'_>) -> Result<(PeftAdapter, Origin), Problems> {
    let mut problems = Problems::default();
    let adapter = problems.collect(PeftAdapter::open_renamed(folder, rename));
    let origin = problems.collect(Origin::read(folder));
    if let Some(start) = origin.as_ref().and_then(|origin| origin.start)
        && start != Start::Residual
    {
        let what = format!(
            "--init needs an adapter with --start residual, but this one has --start {}",
            start.name()
        );
        problems.push(
            Problem::usage(what)
                .in_file(folder)
                .help("remove --init: an adapter that was trained from it fits the original base already"),
        );
    }
    match (adapter, origin) {
        (Some(adapter), Some(origin)) => problems.or_ok((adapter, origin)),
        _ => Err(problems),
    }
}

/// The facts about the model in the trained adapter.
fn loading(trained: &PeftAdapter, task: &ConvertTask) -> Loading {
    let config = trained.config();
    let keeps_factors = task.init.is_none() && task.rank.is_none() && task.output.uniform.is_none();
    Loading {
        task: config.and_then(|config| config.task_type.clone()),
        auto_mapping: config.and_then(|config| config.auto_mapping.clone()),
        keeps_up: keeps_factors && config.is_some_and(|config| config.keeps_up()),
        ..Loading::default()
    }
}

/// The text of the model card.
fn card(command: &str) -> String {
    format!(
        "# LoRA adapter\n\nConverted from another adapter by cntlora {}.\n\n## Command\n\n    {}\n",
        env!("CARGO_PKG_VERSION"),
        one_line(command)
    )
}

fn record(task: &ConvertTask, origin: Option<&Origin>, base: &str) -> Map<String, Value> {
    let layers = origin.map_or(&[][..], |origin| &origin.layers);
    let path = |path: &Path| path.display().to_string();
    let mut entries = record_heading();
    entries.extend([
        ("model".into(), json!(base)),
        (
            "converted".into(),
            json!({
                "adapter": path(&task.adapter),
                "init": task.init.as_deref().map(path),
                "rank": task.rank,
            }),
        ),
        ("layers".into(), json!(layers)),
    ]);
    entries
}

fn render(converted: &Converted) -> String {
    let mut table = Table::new([
        ("module", Align::Left),
        ("rank before", Align::Right),
        ("rank", Align::Right),
        ("kept", Align::Right),
    ]);
    for layer in &converted.layers {
        table.row([
            visible(&layer.name.to_string()),
            layer.rank_before.to_string(),
            layer.rank.to_string(),
            percent(layer.kept),
        ]);
    }
    let left_out = match converted.left_out {
        0 => String::new(),
        layers => format!("left out: {} of other components\n", count(layers as u64, "layer")),
    };
    let least = converted.layers.iter().map(|layer| layer.kept).fold(1.0, f64::min);
    // A single file has no name of its base.
    let base = match converted.base.as_str() {
        "" => String::new(),
        base => format!(" for {}", visible(base)),
    };
    format!(
        "{}\n{}{base}; at most {} of the squared norm of an update is lost\n{left_out}",
        table.render(),
        count(converted.layers.len() as u64, "layer"),
        percent(1.0 - least),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::{Adapter, write_adapter};
    use crate::element::Element;
    use crate::storage::snapshot;
    use expect_test::expect;
    use std::collections::BTreeMap;

    #[test]
    fn the_initial_adapter_needs_the_residual_start() {
        let factors = Factors { a: faer::Mat::zeros(1, 2), b: faer::Mat::zeros(2, 1) };
        let adapter = Adapter {
            layers: BTreeMap::from([("q".into(), factors)]),
            shapes: BTreeMap::new(),
            scale: 1.0,
            components: BTreeMap::new(),
            base: "model".into(),
        };
        let mut record = record_heading();
        record.insert("layers".into(), json!([]));
        record.insert("method".into(), json!({ "start": "mirrored" }));
        let other_modules = &BTreeSet::new();
        let element = Element::F32;
        let contents = Contents {
            adapter: &adapter,
            element,
            provenance: &record,
            other_modules,
            beside: &[],
            peft: PeftContents::default(),
        };
        let folder = tempfile::tempdir().unwrap();
        write_adapter(folder.path(), &contents, Format::Peft).unwrap();
        expect![[r#"
            FOLDER: --init needs an adapter with --start residual, but this one has --start mirrored; help: remove --init: an adapter that was trained from it fits the original base already
        "#]].assert_eq(&snapshot(open_initial(folder.path(), &|name| Ok(name.to_owned())).err().unwrap()));
    }

    #[test]
    fn the_kept_share_of_each_layer_is_shown() {
        let layer =
            |module: &str, kept| ConvertedLayer { name: module.into(), rank_before: 8, rank: 4, kept };
        let converted =
            Converted { base: "model".into(), left_out: 3, layers: vec![layer("q", 0.975), layer("v", 1.0)] };
        expect![[r#"
            module  rank before  rank     kept
            q                 8     4   97.5 %
            v                 8     4  100.0 %

            2 layers for model; at most 2.5 % of the squared norm of an update is lost
            left out: 3 layers of other components
        "#]]
        .assert_eq(&render(&converted));
        let nameless = Converted { base: String::new(), left_out: 0, layers: converted.layers };
        let text = render(&nameless);
        expect!["2 layers; at most 2.5 % of the squared norm of an update is lost"]
            .assert_eq(text.lines().last().unwrap());
    }
}
