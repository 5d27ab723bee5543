//! Makes an adapter from a residual start into one for the original base, and cuts adapters to smaller rank.

use super::args::{self, ConvertArgs};
use super::effects;
use super::interrupt::Interruption;
use super::prepare::{refuse_file_in_place, refuse_input_folder};
use super::resolve;
use super::saved::Outputs;
use super::terminal::Terminal;
use cntlora::adapter::{
    Contents, Origin, PeftAdapter, Staged, convert, record_heading, refuse_occupied, stage_adapter,
};
use cntlora::factors::Start;
use cntlora::report::table::{Align, Table, count, percent};
use cntlora::run::Output;
use cntlora::storage::{Problem, Problems};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// What was written.
#[derive(Debug, Serialize)]
struct Converted {
    /// The model that the adapter is for.
    base: String,
    layers: Vec<ConvertedLayer>,
}

#[derive(Debug, Serialize)]
struct ConvertedLayer {
    module: String,
    rank_before: usize,
    rank: usize,
    /// Share of the square of the update that is left.
    kept: f64,
}

/// Converts, writes, and says what was lost.
pub fn run(args: &ConvertArgs, terminal: &Terminal) -> anyhow::Result<()> {
    let mut problems = Problems::default();
    if args.init.is_none() && args.rank.is_none() && args.format == args::Format::Peft {
        problems.push(
            Problem::usage(
                "expected something to convert to, found neither --init, --rank nor another --format",
            )
            .help("give --init with the adapter that the training started from, or --rank, or --format"),
        );
    }
    let format = resolve::format(args.format, args.component);
    let output = Output { folder: args.out.clone(), base: None, anchor: None, format, page: None };
    for folder in output.changed_folders() {
        problems.collect(refuse_input_folder(&folder, [&args.adapter].into_iter().chain(&args.init)));
    }
    problems.collect(effects::check_component(args.format, args.component));
    let check_folder = || match args.force {
        true => refuse_file_in_place(&args.out),
        false => refuse_occupied(&args.out),
    };
    problems.collect(check_folder());
    let trained = problems.collect(PeftAdapter::open(&args.adapter));
    let initial = args.init.as_ref().map(|folder| problems.collect(open_initial(folder)));
    let (Some(trained), false) = (trained, matches!(initial, Some(None))) else {
        return Err(problems.into());
    };
    problems.or_ok(())?;
    let (initial, origin) = initial.flatten().unzip();
    Interruption::handle(terminal)?;
    let _locks = Outputs::of(&output).lock()?;
    check_folder()?;

    let mut conversion = convert(&trained, initial.as_ref(), args.rank.map(usize::from))?;
    if let Some(model) = origin.as_ref().and_then(|origin: &Origin| origin.model.clone()) {
        conversion.adapter.base = model;
    }
    let record = record(args, origin.as_ref(), &conversion.adapter.base);
    let element = resolve::element(args.dtype);
    // The names of other modules are not known here: the list of targets is what PEFT itself would write.
    let other_modules = &BTreeSet::new();
    let contents =
        Contents { adapter: &conversion.adapter, element, provenance: &record, other_modules, beside: &[] };
    let adapter = stage_adapter(&args.out, &contents, format)?;
    for read in [&trained].into_iter().chain(&initial) {
        read.source().check_unchanged()?;
    }
    Staged { adapter, base: None, anchor: None, page: None }.commit()?;

    let layer = |(module, factors): (&String, &cntlora::factors::Factors)| ConvertedLayer {
        module: module.clone(),
        rank_before: trained.layers().get(module).map_or(0, |layer| layer.rank),
        rank: factors.a.nrows(),
        kept: conversion.kept.get(module).copied().unwrap_or(1.0),
    };
    let layers = conversion.adapter.layers.iter().map(layer).collect();
    terminal.result(&Converted { base: conversion.adapter.base.clone(), layers }, render)?;
    Ok(())
}

/// The adapter that training started from, and what is recorded of it.
fn open_initial(folder: &Path) -> Result<(PeftAdapter, Origin), Problems> {
    let mut problems = Problems::default();
    let adapter = problems.collect(PeftAdapter::open(folder));
    let origin = problems.collect(Origin::read(folder));
    if let Some(start) = origin.as_ref().and_then(|origin| origin.start)
        && start != Start::Residual
    {
        let what =
            format!("expected an adapter from a residual start, found one from the start {}", start.name());
        problems.push(
            Problem::usage(what)
                .in_file(folder)
                .help("what was trained from it is for the original base as it is: leave --init out"),
        );
    }
    match (adapter, origin) {
        (Some(adapter), Some(origin)) => problems.or_ok((adapter, origin)),
        _ => Err(problems),
    }
}

fn record(args: &ConvertArgs, origin: Option<&Origin>, base: &str) -> Map<String, Value> {
    let layers = origin.map_or(&[][..], |origin| &origin.layers);
    let path = |path: &Path| path.display().to_string();
    let mut entries = record_heading();
    entries.extend([
        ("model".into(), json!(base)),
        (
            "converted".into(),
            json!({
                "adapter": path(&args.adapter),
                "init": args.init.as_deref().map(path),
                "rank": args.rank,
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
            layer.module.escape_debug().to_string(),
            layer.rank_before.to_string(),
            layer.rank.to_string(),
            percent(layer.kept),
        ]);
    }
    let least = converted.layers.iter().map(|layer| layer.kept).fold(1.0, f64::min);
    format!(
        "{}\n{} for {}; what is lost of an update is {} of its square at most\n",
        table.render(),
        count(converted.layers.len() as u64, "layer"),
        converted.base.escape_debug(),
        percent(1.0 - least),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is lost is said of each layer, and the worst of them in the last line.
    #[test]
    fn the_text_is_this() {
        let layer =
            |module: &str, kept| ConvertedLayer { module: module.into(), rank_before: 8, rank: 4, kept };
        let converted = Converted { base: "model".into(), layers: vec![layer("q", 0.975), layer("v", 1.0)] };
        let expected = "\
module  rank before  rank     kept
q                 8     4   97.5 %
v                 8     4  100.0 %

2 layers for model; what is lost of an update is 2.5 % of its square at most
";
        assert_eq!(render(&converted), expected);
    }
}
