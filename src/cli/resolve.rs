//! From arguments to what the library understands. Reads no file but to see where an output may go.

use super::args::{self, InputArgs, JobArgs, MethodArgs, MomentsArgs, RankArgs, ReadingArgs, RunArgs};
use super::byte_size::ByteSize;
use super::threads;
use cntlora::adapter::{Component, Format, SingleFile, anchor_of, default_base};
use cntlora::constraint::{ChannelScale, Coupling, Norm, Shrinkage};
use cntlora::element::Element;
use cntlora::factors::{Start, Strength};
use cntlora::method::{Method, Options};
use cntlora::plan::{MeasurementRequest, Nonfinite, Request, Selection, Shard};
use cntlora::rank::{Limits, Policy};
use cntlora::run::{Output, Writing};
use cntlora::simd::Precision;
use cntlora::storage::Access;
use std::path::Path;

/// Largest rank when the ranks follow from `--energy` and `--max-rank` is not given.
const MAX_RANK_OF_ENERGY: usize = 128;

/// Largest rank when `--budget` is given and `--max-rank` is not: this many times `--rank`.
const MAX_RANK_OF_BUDGET: usize = 4;

/// EVA's largest rank, as a multiple of `--rank`, when `--rho` is not given: that of PEFT.
const RHO: f64 = 2.0;

/// What is asked for. Ranges are checked by the plan, together with everything else.
pub fn request(job: &JobArgs) -> Request {
    let InputArgs { activations, moments, source, source_moments, rename, reading } = &job.inputs;
    Request {
        model: job.model.clone(),
        activations: activations.clone(),
        moments: moments.clone(),
        source: source.clone(),
        source_moments: source_moments.clone(),
        selection: Selection {
            targets: job.layers.target.clone(),
            include: job.layers.include.clone(),
            exclude: job.layers.exclude.clone(),
        },
        renames: rename.clone(),
        method: method(&job.method, &job.ranks),
        nonfinite: nonfinite(reading),
        precision: precision(&job.run),
        element: element(job.output.dtype),
        access: access(reading),
        threads: threads::of(&job.run),
        max_memory: job.run.max_memory.map(|ByteSize(bytes)| bytes),
        strict: job.strict,
    }
}

/// What is asked for of a measurement.
pub fn measurement(args: &MomentsArgs, shard: Option<Shard>) -> MeasurementRequest {
    MeasurementRequest {
        activations: args.activations.clone(),
        selection: Selection {
            targets: Vec::new(),
            include: args.include.clone(),
            exclude: args.exclude.clone(),
        },
        nonfinite: nonfinite(&args.reading),
        precision: precision(&args.run),
        shard,
        access: access(&args.reading),
        threads: threads::of(&args.run),
        max_memory: args.run.max_memory.map(|ByteSize(bytes)| bytes),
    }
}

pub fn nonfinite(reading: &ReadingArgs) -> Nonfinite {
    match reading.nonfinite {
        args::Nonfinite::Refuse => Nonfinite::Refuse,
        args::Nonfinite::SkipRows => Nonfinite::SkipRows,
    }
}

fn precision(run: &RunArgs) -> Precision {
    match run.precision {
        args::Precision::F32 => Precision::F32,
        args::Precision::Bf16 => Precision::Bf16,
    }
}

fn access(reading: &ReadingArgs) -> Access {
    match reading.io {
        args::Io::Auto => Access::Auto,
        args::Io::Read => Access::Read,
        args::Io::Mmap => Access::Mmap,
    }
}

fn method(method: &MethodArgs, ranks: &RankArgs) -> Options {
    let defaults = Options::default();
    let shift = method.max_shift.map_or(defaults.strength, Strength::MaxShift);
    let policy = match (ranks.energy, ranks.budget) {
        (Some(share), _) => Policy::Energy(share),
        (None, Some(Some(parameters))) => Policy::Budget(parameters),
        (None, Some(None)) => Policy::BudgetOfRank(ranks.rank),
        (None, None) if kind(method) == Method::Eva => Policy::Shared(ranks.rank),
        (None, None) => Policy::Fixed(ranks.rank),
    };
    Options {
        method: kind(method),
        coupling: method.coupling.map_or(defaults.coupling, |coupling| match coupling {
            args::Coupling::Transport => Coupling::Transport,
            args::Coupling::Uncorrelated => Coupling::Uncorrelated,
            args::Coupling::Paired => Coupling::Paired,
        }),
        preserve: method.preserve.unwrap_or(defaults.preserve),
        ridge: method.ridge.unwrap_or(defaults.ridge),
        channel_scale: method.channel_scale.map_or(defaults.channel_scale, |scale| match scale {
            args::ChannelScale::Mean => ChannelScale::Mean,
            args::ChannelScale::Median => ChannelScale::Median,
        }),
        shrinkage: method.shrinkage.map_or(defaults.shrinkage, |shrinkage| match shrinkage {
            args::Shrinkage::None => Shrinkage::None,
            args::Shrinkage::Oas => Shrinkage::Oas,
        }),
        norm: method.norm.map_or(defaults.norm, |norm| match norm {
            args::Norm::Activations => Norm::Activations,
            args::Norm::Weights => Norm::Weights,
        }),
        strength: method.strength.map_or(shift, Strength::Fixed),
        start: start(method),
        ranks: policy,
        limits: Limits {
            min: ranks.min_rank,
            max: ranks.max_rank.unwrap_or(match policy {
                Policy::Energy(_) => MAX_RANK_OF_ENERGY,
                Policy::Budget(_) | Policy::BudgetOfRank(_) => ranks.rank.saturating_mul(MAX_RANK_OF_BUDGET),
                // Halves go to the even number, as in PEFT.
                Policy::Shared(rank) => (rank as f64 * ranks.rho.unwrap_or(RHO)).round_ties_even() as usize,
                Policy::Fixed(rank) => rank,
            }),
            multiple: ranks.rank_multiple,
        },
        scale: ranks.scale,
        seed: method.seed,
    }
}

pub fn kind(method: &MethodArgs) -> Method {
    match method.method {
        args::Method::Cntlora => Method::Cntlora,
        args::Method::Pissa => Method::Pissa,
        args::Method::Milora => Method::Milora,
        args::Method::Olora => Method::Olora,
        args::Method::CordaIpm => Method::CordaIpm,
        args::Method::CordaKpm => Method::CordaKpm,
        args::Method::Eva => Method::Eva,
        args::Method::Lora => Method::Lora,
        args::Method::Gaussian => Method::Gaussian,
        args::Method::Orthogonal => Method::Orthogonal,
    }
}

/// The start that is asked for, or the usual one of the method.
pub fn start(method: &MethodArgs) -> Start {
    match method.start {
        Some(args::Start::Mirrored) => Start::Mirrored,
        Some(args::Start::Update) => Start::Update,
        Some(args::Start::Residual) => Start::Residual,
        Some(args::Start::Zero) => Start::Zero,
        None => kind(method).starts()[0],
    }
}

/// Where the results of a job go.
pub fn output(folder: &Path, job: &JobArgs) -> Output {
    Output { page: job.output.report.clone(), ..output_of(folder, start(&job.method), writing(job)) }
}

/// Where the results of a job go that does not make a page.
pub fn output_of(folder: &Path, start: Start, writing: Writing) -> Output {
    let Writing { format, base, anchored } = writing;
    let residual = start == Start::Residual;
    Output {
        folder: folder.into(),
        base: (residual && !anchored).then(|| base.unwrap_or_else(|| default_base(folder))),
        anchor: (residual && anchored).then(|| anchor_of(folder)),
        format,
        page: None,
    }
}

/// How the results of a job are written.
pub fn writing(job: &JobArgs) -> Writing {
    Writing {
        format: format(job.output.format, job.output.component),
        base: job.output.base_out.clone(),
        anchored: job.output.residual == Some(args::Residual::Anchor),
    }
}

/// How an adapter is written.
pub fn format(format: args::Format, component: Option<args::Component>) -> Format {
    let component = match component {
        None | Some(args::Component::Unet) => Component::Unet,
        Some(args::Component::Transformer) => Component::Transformer,
        Some(args::Component::TextEncoder) => Component::TextEncoder,
        Some(args::Component::TextEncoder2) => Component::TextEncoder2,
    };
    match format {
        args::Format::Peft => Format::Peft,
        args::Format::Diffusers => Format::SingleFile(SingleFile::Diffusers, component),
        args::Format::Kohya => Format::SingleFile(SingleFile::Kohya, component),
    }
}

/// The number format of the factors.
pub fn element(dtype: args::Dtype) -> Element {
    match dtype {
        args::Dtype::F32 => Element::F32,
        args::Dtype::Bf16 => Element::Bf16,
        args::Dtype::F16 => Element::F16,
    }
}

#[cfg(test)]
mod tests {
    use super::super::args::{Cli, Command, init_args};
    use super::*;
    use clap::{CommandFactory, Parser};
    use cntlora::plan::Rename;
    use std::path::PathBuf;

    fn request_of(options: &str) -> Request {
        request(&init_args(options).job)
    }

    fn output_of(options: &str) -> Output {
        let args = init_args(options);
        output(&args.out, &args.job)
    }

    /// clap's own checks of the whole description: no clash of names, no default that does not parse.
    #[test]
    fn the_description_is_sound() {
        Cli::command().debug_assert();
    }

    /// The defaults are those of the method, and say so in one place.
    #[test]
    fn defaults() {
        let request = request_of("");
        assert_eq!(request.model, Path::new("model"));
        assert_eq!(request.activations, [Path::new("acts")]);
        assert!(request.source.is_empty() && request.renames.is_empty());
        assert_eq!(request.selection, Selection::default());
        assert_eq!(request.nonfinite, Nonfinite::default());
        assert_eq!(request.access, Access::default());
        let expected = Options {
            method: Method::Cntlora,
            coupling: Coupling::default(),
            preserve: 0.0,
            ridge: 0.01,
            channel_scale: ChannelScale::Median,
            shrinkage: Shrinkage::None,
            norm: Norm::default(),
            strength: Strength::default(),
            start: Start::default(),
            ranks: Policy::Fixed(16),
            limits: Limits { min: 0, max: 16, multiple: 1 },
            scale: 1.0,
            seed: 0,
        };
        assert_eq!(request.method, expected);
        assert_eq!(expected, Options::default());
        let expected =
            Output { folder: "out".into(), base: None, anchor: None, format: Format::Peft, page: None };
        assert_eq!(output_of(""), expected);
    }

    #[test]
    fn inputs() {
        let request = request_of("--activations more -a last --source z1 z2 --rename ^a=b=c --rename x=");
        assert_eq!(request.activations, ["acts", "more", "last"].map(PathBuf::from));
        assert_eq!(request.source, ["z1", "z2"].map(PathBuf::from));
        let rename = |pattern: &str, replacement: &str| Rename {
            pattern: pattern.into(),
            replacement: replacement.into(),
        };
        assert_eq!(request.renames, [rename("^a", "b=c"), rename("x", "")]);
        assert_eq!(request_of("--io auto").access, Access::Auto);
        assert_eq!(request_of("--io read").access, Access::Read);
        assert_eq!(request_of("--io mmap").access, Access::Mmap);
        assert_eq!(request_of("--nonfinite refuse").nonfinite, Nonfinite::Refuse);
        assert_eq!(request_of("--nonfinite skip-rows").nonfinite, Nonfinite::SkipRows);
        assert_eq!(request_of("").precision, Precision::F32);
        assert_eq!(request_of("--precision bf16").precision, Precision::Bf16);
        assert!(request_of("--strict").strict && !request_of("").strict);
    }

    /// Moments take the place of rows, on either side.
    #[test]
    fn moments_in_place_of_rows() {
        let parse = |options: &str| {
            Cli::try_parse_from("cntlora init model -o out".split(' ').chain(options.split(' ')))
        };
        let Command::Init(args) = parse("--moments a b --source-moments c").unwrap().command else {
            panic!("expected init")
        };
        let both = request(&args.job);
        assert!(both.activations.is_empty() && both.source.is_empty());
        assert_eq!(both.moments, ["a", "b"].map(PathBuf::from));
        assert_eq!(both.source_moments, ["c"].map(PathBuf::from));
        for options in ["--moments a -a acts", "-a acts --source z --source-moments c"] {
            assert!(parse(options).is_err(), "{options}");
        }
    }

    #[test]
    fn measurements() {
        let words =
            "cntlora moments a b -o m --include q --exclude k --nonfinite skip-rows --threads 2 --io read";
        let Command::Moments(args) = Cli::try_parse_from(words.split(' ')).unwrap().command else {
            panic!("expected moments")
        };
        let request = measurement(&args, None);
        assert_eq!(request.activations, ["a", "b"].map(PathBuf::from));
        assert_eq!(
            (request.selection.include, request.selection.exclude),
            (vec!["q".into()], vec!["k".into()])
        );
        assert_eq!((request.nonfinite, request.precision), (Nonfinite::SkipRows, Precision::F32));
        assert_eq!((request.access, request.threads), (Access::Read, 2));
        assert_eq!((args.progress.checkpoint_every, args.progress.restart, args.force), (300, false, false));
    }

    #[test]
    fn layers() {
        let selection = request_of("--target q,v --target o --include a,b --include c --exclude d").selection;
        assert_eq!(selection.targets, ["q", "v", "o"]);
        assert_eq!(selection.include, ["a,b", "c"], "a regular expression may hold a comma");
        assert_eq!(selection.exclude, ["d"]);
    }

    #[test]
    fn method_options() {
        let method = |options| request_of(options).method;
        assert_eq!(method("--coupling transport").coupling, Coupling::Transport);
        assert_eq!(method("--coupling uncorrelated").coupling, Coupling::Uncorrelated);
        assert_eq!(method("--coupling paired").coupling, Coupling::Paired);
        assert_eq!(method("--preserve 0.5").preserve, 0.5);
        assert_eq!(method("--ridge 0.1").ridge, 0.1);
        assert_eq!(method("--channel-scale mean").channel_scale, ChannelScale::Mean);
        assert_eq!(method("--channel-scale median").channel_scale, ChannelScale::Median);
        assert_eq!(method("--shrinkage none").shrinkage, Shrinkage::None);
        assert_eq!(method("--shrinkage oas").shrinkage, Shrinkage::Oas);
        assert_eq!(method("--ridge -1").ridge, -1.0, "the range is checked with everything else");
        assert_eq!(method("--norm activations").norm, Norm::Activations);
        assert_eq!(method("--norm weights").norm, Norm::Weights);
        assert_eq!(method("--max-shift 0.2").strength, Strength::MaxShift(0.2));
        assert_eq!(method("--strength 0.3").strength, Strength::Fixed(0.3));
        assert_eq!(method("--start mirrored").start, Start::Mirrored);
        assert_eq!(method("--method pissa --start mirrored").start, Start::Mirrored);
        assert_eq!(method("--start update").start, Start::Update);
        assert_eq!(method("--start residual").start, Start::Residual);
        assert_eq!(method("--start zero").start, Start::Zero);
        assert_eq!(method("--seed 7").seed, 7);
        assert_eq!(method("--scale 2").scale, 2.0);
    }

    /// A method brings its own start and its own rule for ranks.
    #[test]
    fn methods() {
        for method in Method::ALL {
            let request = request_of(&format!("--method {}", method.name()));
            assert_eq!((request.method.method, request.method.start), (method, method.starts()[0]));
            assert_eq!(request.method.complaints(), []);
        }
        let ranks = |options| {
            let method = request_of(options).method;
            (method.ranks, method.limits.max)
        };
        assert_eq!(ranks("--method eva --rank 5"), (Policy::Shared(5), 10));
        assert_eq!(ranks("--method eva --rank 5 --rho 1.5"), (Policy::Shared(5), 8));
        assert_eq!(output_of("--method pissa").base, Some("out/base".into()));
    }

    /// The largest rank follows from the policy unless it is given.
    #[test]
    fn ranks() {
        let ranks = |options| {
            let method = request_of(options).method;
            (method.ranks, method.limits.max)
        };
        assert_eq!(ranks("--rank 8"), (Policy::Fixed(8), 8));
        assert_eq!(ranks("--energy 0.9"), (Policy::Energy(0.9), 128));
        assert_eq!(ranks("--energy 0.9 --max-rank 64"), (Policy::Energy(0.9), 64));
        assert_eq!(ranks("--budget=1000"), (Policy::Budget(1000), 64));
        assert_eq!(ranks("--rank 8 --budget"), (Policy::BudgetOfRank(8), 32));
        assert_eq!(ranks("--budget --max-rank 20"), (Policy::BudgetOfRank(16), 20));
        let limits = request_of("--min-rank 2 --rank-multiple 4").method.limits;
        assert_eq!(limits, Limits { min: 2, max: 16, multiple: 4 });
    }

    #[test]
    fn outputs() {
        assert_eq!(request_of("--dtype bf16").element, Element::Bf16);
        assert_eq!(request_of("--dtype f16").element, Element::F16);
        assert_eq!(request_of("--dtype f32").element, Element::F32);
        assert_eq!(output_of("--report page.html").page, Some("page.html".into()));
        assert_eq!(output_of("--start residual").base, Some("out/base".into()));
        assert_eq!(output_of("--start residual --base-out b").base, Some("b".into()));
        let anchored = output_of("--method pissa --residual anchor");
        assert_eq!((anchored.base, anchored.anchor), (None, Some("out/anchor".into())));
        assert_eq!(output_of("--start residual --residual checkpoint").base, Some("out/base".into()));
    }

    #[test]
    fn threads_are_as_asked_or_all() {
        assert_eq!(threads::of(&init_args("--threads 3").job.run), 3);
        assert!(threads::of(&init_args("").job.run) >= 1);
    }
}
