//! Tests of the resolved arguments.

use super::*;
use crate::adapter::SingleFile;
use crate::cli::args::{Cli, Command, laid_out};
use crate::constraint::{ChannelScale, Coupling, Norm, Shrinkage};
use crate::method::Method;
use crate::plan::Rename;
use crate::rank::Limits;
use crate::simd::Precision;
use crate::storage::Access;
use clap::{CommandFactory, Parser};
use expect_test::expect;

fn parse(words: &str) -> Result<Command, clap::Error> {
    Cli::try_parse_from(words.split_whitespace()).map(|cli| cli.command)
}

/// The task of init with these arguments.
fn resolved(words: &str, json: bool) -> InitTask {
    match parse(&format!("cntlora init {words}")).unwrap() {
        Command::Init(args) => init(*args, json).unwrap(),
        other => panic!("{other:?} is not init"),
    }
}

fn task(options: &str) -> InitTask {
    resolved(&format!("model --activations acts --out out {options}"), false)
}

fn request(options: &str) -> Request {
    task(options).job.request
}

/// Refused options, a line each, with their help.
fn refusals(task: &InitTask) -> String {
    let line = |problem: &Problem| format!("{problem}; help: {}\n", problem.next_step().unwrap());
    task.job.refused.0.iter().map(line).collect()
}

/// Runs the checks of clap: no clash of names, no default that does not parse.
#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
    laid_out(Cli::command(), true).debug_assert();
}

#[test]
fn defaults_are_those_of_the_library() {
    let task = task("");
    let request = &task.job.request;
    assert_eq!(request.model, Path::new("model"));
    assert_eq!(request.activations, [Path::new("acts")]);
    assert!(request.source.is_empty() && request.renames.is_empty());
    assert_eq!(request.selection, Selection::default());
    assert_eq!(request.nonfinite, Nonfinite::default());
    assert_eq!(request.access, Access::default());
    assert_eq!(request.precision, Precision::default());
    assert_eq!(request.method, Options::default());
    assert!(!request.strict && request.threads >= 1);
    assert_eq!(task.job.writing, Writing::default());
    assert_eq!(task.output, Output { folder: "out".into(), ..Output::default() });
    assert_eq!(task.saving, Saving { every: Duration::from_secs(300), restart: false });
    assert_eq!(refusals(&task), "");
}

#[test]
fn inputs() {
    let inputs = request("--activations more -a last --source z1 z2 --rename ^a=b=c --rename x=");
    assert_eq!(inputs.activations, ["acts", "more", "last"].map(PathBuf::from));
    assert_eq!(inputs.source, ["z1", "z2"].map(PathBuf::from));
    let rename = |pattern: &str, replacement: &str| Rename {
        pattern: pattern.into(),
        replacement: replacement.into(),
    };
    assert_eq!(inputs.renames, [rename("^a", "b=c"), rename("x", "")]);
    assert_eq!(request("--io auto").access, Access::Auto);
    assert_eq!(request("--io read").access, Access::Read);
    assert_eq!(request("--io mmap").access, Access::Mmap);
    assert_eq!(request("--nonfinite refuse").nonfinite, Nonfinite::Refuse);
    assert_eq!(request("--nonfinite skip-rows").nonfinite, Nonfinite::SkipRows);
    assert_eq!(request("--precision bf16").precision, Precision::Bf16);
    assert_eq!(request("--threads 3").threads, 3);
    assert_eq!(request("--max-memory 2GiB").max_memory, Some(2 << 30));
    assert!(request("--strict").strict);
}

#[test]
fn moments_replace_activations() {
    let both = resolved("model -o out --moments a b --source-moments c", false).job.request;
    assert!(both.activations.is_empty() && both.source.is_empty());
    assert_eq!(both.moments, ["a", "b"].map(PathBuf::from));
    assert_eq!(both.source_moments, ["c"].map(PathBuf::from));
    for options in ["--moments a -a acts", "-a acts --source z --source-moments c"] {
        assert!(parse(&format!("cntlora init model -o out {options}")).is_err(), "{options}");
    }
}

#[test]
fn measurements() {
    let measured = |words: &str| match parse(&format!("cntlora moments a b -o m {words}")).unwrap() {
        Command::Moments(args) => moments(args).unwrap(),
        other => panic!("{other:?} is not moments"),
    };
    let task = measured("--include q --exclude k --nonfinite skip-rows --threads 2 --io read");
    let request = &task.request;
    assert_eq!(request.activations, ["a", "b"].map(PathBuf::from));
    assert_eq!(
        (&request.selection.include, &request.selection.exclude),
        (&vec!["q".to_owned()], &vec!["k".to_owned()])
    );
    assert_eq!((request.nonfinite, request.precision), (Nonfinite::SkipRows, Precision::F32));
    assert_eq!((request.access, request.threads), (Access::Read, 2));
    assert_eq!((task.out, task.force, request.shard), ("m".into(), false, None));
    let part = measured("--shard 1/3 --checkpoint-every 5 --restart --force");
    assert_eq!(part.out, Path::new("m/part-00001-of-00003.moments.safetensors"));
    assert_eq!((part.force, part.request.shard), (true, Shard::new(1, 3)));
    assert_eq!(part.saving, Saving { every: Duration::from_secs(5), restart: true });
}

#[test]
fn layers() {
    let selection = request("--target q,v --target o --include a,b --include c --exclude d").selection;
    assert_eq!(selection.targets, ["q", "v", "o"]);
    assert_eq!(selection.include, ["a,b", "c"], "a regular expression may hold a comma");
    assert_eq!(selection.exclude, ["d"]);
}

#[test]
fn method_options() {
    let method = |options| request(options).method;
    assert_eq!(method("--coupling paired").coupling, Coupling::Paired);
    assert_eq!(method("--preserve 0.5").preserve, 0.5);
    assert_eq!(method("--ridge 0.1").ridge, 0.1);
    assert_eq!(method("--channel-scale mean").channel_scale, ChannelScale::Mean);
    assert_eq!(method("--shrinkage oas").shrinkage, Shrinkage::Oas);
    assert_eq!(method("--ridge -1").ridge, -1.0, "the plan checks the range");
    assert_eq!(method("--method sc-lora --beta 0.8").beta, Some(0.8));
    assert_eq!(method("--method sc-lora").beta, Some(0.5), "the record tells the default");
    assert_eq!(method("--method astra").beta, None);
    assert_eq!(method("--norm weights").norm, Norm::Weights);
    assert_eq!(method("--start update --max-shift 0.2").strength, Strength::MaxShift(0.2));
    assert_eq!(method("--start update --strength 0.3").strength, Strength::Fixed(0.3));
    assert_eq!(method("--start zero").start, Start::Zero);
    assert_eq!(method("--seed 7").seed, 7);
    assert_eq!(method("--scale 2").scale, 2.0);
}

#[test]
fn a_method_has_its_own_start_and_rule_for_ranks() {
    for method in Method::ALL {
        let options = request(&format!("--method {}", method.name())).method;
        assert_eq!((options.method, options.start), (method, method.starts()[0]));
        assert_eq!(options.complaints(), []);
    }
    assert_eq!(ranks("--method eva --rank 5"), (Policy::Shared(5), 10));
    assert_eq!(ranks("--method eva --rank 5 --rho 1.5"), (Policy::Shared(5), 8));
    assert_eq!(ranks("--method astra --rank 5"), (Policy::Proportional(5), 10));
    assert_eq!(ranks("--method astra --rank 5 --rho 1"), (Policy::Proportional(5), 5));
    assert_eq!(task("--method pissa").output.base, Some("out/base".into()));
}

fn ranks(options: &str) -> (Policy, usize) {
    let method = request(options).method;
    (method.ranks, method.limits.max)
}

#[test]
fn the_largest_rank_follows_from_the_policy() {
    assert_eq!(ranks("--rank 8"), (Policy::Fixed(8), 8));
    assert_eq!(ranks("--energy 0.9"), (Policy::Energy(0.9), 128));
    assert_eq!(ranks("--energy 0.9 --max-rank 64"), (Policy::Energy(0.9), 64));
    assert_eq!(ranks("--budget=1000"), (Policy::Budget(1000), 64));
    assert_eq!(ranks("--rank 8 --budget"), (Policy::BudgetOfRank(8), 32));
    assert_eq!(ranks("--budget --max-rank 20"), (Policy::BudgetOfRank(16), 20));
    let limits = request("--min-rank 2 --rank-multiple 4").method.limits;
    assert_eq!(limits, Limits { min: 2, max: 16, multiple: 4 });
}

#[test]
fn outputs() {
    assert_eq!(request("--dtype bf16").element, Element::Bf16);
    assert_eq!(request("--dtype f16").element, Element::F16);
    assert_eq!(request("--dtype f32").element, Element::F32);
    let output = |options| task(options).output;
    assert_eq!(output("--report page.html").page, Some("page.html".into()));
    assert_eq!(output("--start residual").base, Some("out/base".into()));
    assert_eq!(output("--start residual --base-out b").base, Some("b".into()));
    let anchored = output("--method pissa --residual anchor");
    assert_eq!((anchored.base, anchored.anchor), (None, Some("out/anchor".into())));
    assert_eq!(output("--start residual --residual checkpoint").base, Some("out/base".into()));
    let single_file = Format::SingleFile(SingleFile::Kohya, Component::TextEncoder2);
    assert_eq!(output("--format kohya --component text-encoder-2").format, single_file);
    let usual = Format::SingleFile(SingleFile::Diffusers, Component::Unet);
    assert_eq!(output("--format diffusers").format, usual);
}

/// The options that loaders read need an adapter of PEFT. Modules that are trained whole get no factors.
#[test]
fn loaders_are_told_about_the_model() {
    let writing =
        task("--modules-to-save a.b,head --task-type SEQ_CLS --base-name org/m --uniform-rank=4").job.writing;
    assert_eq!(writing.uniform, Some(UniformRank::Of(4)));
    assert_eq!(task("--uniform-rank").output.uniform, Some(UniformRank::Largest));
    let Loading { base_name, task: named, modules_to_save, auto_mapping, keeps_up } = writing.loading;
    assert!(!keeps_up && task("--method mica").job.writing.loading.keeps_up);
    assert_eq!(
        (base_name.as_deref(), named.as_deref(), auto_mapping),
        (Some("org/m"), Some("SEQ_CLS"), None)
    );
    assert_eq!(modules_to_save.into_iter().collect::<Vec<_>>(), ["a.b", "head"]);
    let left_out = request("--modules-to-save a.b --task-type QUESTION_ANS --exclude x").selection.exclude;
    assert_eq!(left_out, ["x", r"a\.b(?:\.|$)", r"qa_outputs(?:\.|$)"]);
    assert_eq!(task("--format mlx --uniform-rank --base-name org/m").output.format, Format::Mlx);
    let all = [
        "--format kohya --modules-to-save head --task-type CAUSAL_LM --base-name m",
        "--format mlx --task-type CAUSAL_LM --component unet",
        "--format mlx --start residual --residual anchor",
        "--start residual --base-name m",
        "--start residual --residual anchor --task-type SEQ_CLS --base-name m",
        "--target head,q --modules-to-save head",
        "--target score --task-type TOKEN_CLS",
        "--method mica --format mlx",
        "--method mica --format kohya",
        "--method mica --uniform-rank",
    ];
    let refused: Vec<String> = all.iter().map(|options| refusals(&task(options))).collect();
    expect![[r#"
        --modules-to-save has no effect with this --format: only adapters of PEFT have a place for it; help: remove --modules-to-save
        --task-type has no effect with this --format: only adapters of PEFT have a place for it; help: remove --task-type
        --base-name has no effect with this --format: only adapters of PEFT have a place for it; help: remove --base-name
        --task-type has no effect with this --format: only adapters of PEFT have a place for it; help: remove --task-type
        --component has no effect with --format mlx; help: remove --component, or give --format diffusers or kohya
        mlx-lm loads one adapter, and an adapter with an anchor needs both; help: give --residual checkpoint, or another --start
        --base-name would name another base: this adapter works only with the changed base that is written with it; help: remove --base-name, or give --residual anchor
        PEFT cannot use an adapter and its anchor together with modules that are trained whole; help: give --residual checkpoint, or remove --modules-to-save and --task-type
        "head" is in --target, but --modules-to-save trains it whole; help: remove one of the two
        "score" is in --target, but --task-type trains it whole; help: remove one of the two
        --method mica keeps B as it is during training, and of all formats only that of PEFT has a place for it; help: remove --format
        --method mica keeps B as it is during training, and of all formats only that of PEFT has a place for it; help: remove --format
        --uniform-rank has no use with --method mica: training keeps B, so that units with zeros in B would do nothing; help: remove --uniform-rank
    "#]]
    .assert_eq(&refused.concat());
    assert!(parse("cntlora init model -o out --task-type LM").is_err());
    assert!(parse("cntlora init model -o out --uniform-rank=0").is_err());
}

#[test]
fn the_parser_refuses_contradictions() {
    for options in [
        "--energy 0.9 --budget",
        "--energy 0.9 --rank 8",
        "--strength 1 --max-shift 0.1",
        "--threads 0",
        "--rename nothing",
        "--target q,,v",
        "--max-memory 0",
    ] {
        let words = format!("cntlora init model -a acts -o out {options}");
        assert!(parse(&words).is_err(), "{options}");
    }
}

#[test]
fn options_without_effect_are_refused() {
    let all = [
        "--base-out b",
        "--start zero --strength 1",
        "--start residual --max-shift 1",
        "--residual anchor",
        "--component unet",
        "--method pissa --residual anchor --base-out b",
        "--method pissa --coupling transport",
        "--method eva --preserve 0",
        "--method corda-ipm --norm weights",
        "--method lora --ridge 0.1",
        "--method corda-ipm --channel-scale mean",
        "--method eva --shrinkage oas",
        "--method olora --max-shift 0.1",
        "--method astra --beta 0.5",
        "--beta 0.5",
        "--method sc-lora --preserve 1",
        "--method lora-null --ridge 0.1",
        "--method astra --max-rank 8",
        "--method pissa --rho 2",
        "--method eva --max-rank 8",
        "--method eva --base-out b",
        "--method eva --rho 0.5",
        "--shard 0/2 --report page.html",
        "--start zero --base-out b --strength 1",
    ];
    let refused: Vec<String> = all.iter().map(|options| refusals(&task(options))).collect();
    expect![[r#"
        --base-out has no effect with --start zero: it needs --start residual; help: remove --base-out, or give --start residual
        --strength has no effect with --start zero: it needs --start update; help: remove --strength, or give --start update
        --max-shift has no effect with --start residual: it needs --start update; help: remove --max-shift, or give --start update
        --residual has no effect with --start zero: it needs --start residual; help: remove --residual, or give --start residual
        --component has no effect with --format peft; help: remove --component, or give --format diffusers or kohya
        --base-out has no effect with --residual anchor, which keeps the base as it is; help: remove --base-out, or give --residual checkpoint
        --coupling has no effect with --method pissa; help: remove --coupling
        --preserve has no effect with --method eva; help: remove --preserve
        --norm has no effect with --method corda-ipm; help: remove --norm
        --ridge has no effect with --method lora; help: remove --ridge
        --channel-scale has no effect with --method corda-ipm; help: remove --channel-scale
        --shrinkage has no effect with --method eva; help: remove --shrinkage
        --max-shift has no effect with --start residual: it needs --start update; help: remove --max-shift; --method olora does not have this start
        --beta has no effect with --method astra; help: remove --beta
        --beta has no effect with --method cntlora; help: remove --beta
        --preserve has no effect with --method sc-lora; help: remove --preserve
        --ridge has no effect with --method lora-null; help: remove --ridge
        --max-rank has no effect with --method astra; help: remove --max-rank
        --rho has no effect with --method pissa; help: remove --rho
        --max-rank has no effect with --method eva; help: remove --max-rank
        --base-out has no effect with --start zero: it needs --start residual; help: remove --base-out; --method eva does not have this start
        --rho is 0.5, but must be at least 1; help: with --rho 1 every layer gets --rank
        --report has no effect with --shard: the page is about all parts together; help: remove --report, and give it to the `cntlora merge` that joins the parts
        --base-out has no effect with --start zero: it needs --start residual; help: remove --base-out, or give --start residual
        --strength has no effect with --start zero: it needs --start update; help: remove --strength, or give --start update
    "#]].assert_eq(&refused.concat());
    for options in [
        "--start residual --base-out b",
        "--start update --strength 1",
        "--method corda-kpm --ridge 0.1 --base-out b",
        "--method eva --rho 1.5",
    ] {
        assert_eq!(refusals(&task(options)), "", "{options}");
    }
}

#[test]
fn rows_are_skipped_only_if_some_are_read() {
    let refused =
        |inputs| refusals(&resolved(&format!("model -o out --nonfinite skip-rows {inputs}"), false));
    expect![[r#"
        --nonfinite has no effect with --moments: no rows are read; help: give --nonfinite to the `cntlora moments` that measures the moments
    "#]].assert_eq(&refused("--moments a"));
    assert_eq!(refused("--moments a --source z"), "");
    assert_eq!(refused("-a a"), "");
}

#[test]
fn json_and_events_do_not_share_stdout() {
    let refused = |options, json| refusals(&resolved(&format!("model -a acts -o out {options}"), json));
    expect![[r#"
        --json and --events - both write to stdout; help: remove --json: the last event holds the report
    "#]]
    .assert_eq(&refused("--events -", true));
    assert_eq!(refused("--events -", false) + &refused("--events file", true) + &refused("", true), "");
}

#[test]
fn options_of_a_conversion_are_resolved() {
    let task = |options: &str| match parse(&format!("cntlora convert adapter -o out {options}")).unwrap() {
        Command::Convert(args) => convert(args),
        other => panic!("{other:?} is not convert"),
    };
    assert!(["", "--rank 8", "--format kohya"].iter().all(|options| task(options).refused.0.is_empty()));
    assert_eq!(task("--adapter-name-rename ^a=b").renames, ["^a=b".parse().unwrap()]);
    assert_eq!(task("--rank 8 --init first").init, Some("first".into()));
}
