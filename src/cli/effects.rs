//! Refuses options that contradict each other, or that would have no effect.

use super::args::{self, InputArgs, JobArgs, MethodArgs};
use super::events::is_stdout;
use super::resolve;
use cntlora::factors::Start;
use cntlora::method::Method;
use cntlora::plan::Nonfinite;
use cntlora::storage::{Problem, Problems};

/// Refuses options that would have no effect.
pub fn check(job: &JobArgs) -> Result<(), Problems> {
    let mut problems = Problems::default();
    let start = resolve::start(&job.method);
    // The method may not have the start that gives the option an effect.
    let or_start = |option: &str, needed: Start| match resolve::kind(&job.method).starts().contains(&needed) {
        true => format!("leave {option} out, or give --start {}", needed.name()),
        false => format!("leave {option} out"),
    };
    if job.output.base_out.is_some() && start != Start::Residual {
        problems.push(
            Problem::usage("--base-out is given, but only --start residual changes the base")
                .help(or_start("--base-out", Start::Residual)),
        );
    }
    if job.output.residual.is_some() && start != Start::Residual {
        problems.push(
            Problem::usage("--residual is given, but only --start residual has one")
                .help(or_start("--residual", Start::Residual)),
        );
    }
    if job.output.base_out.is_some() && job.output.residual == Some(args::Residual::Anchor) {
        problems.push(
            Problem::usage("--base-out is given, but --residual anchor leaves the base as it is")
                .help("leave --base-out out, or use --residual checkpoint"),
        );
    }
    let InputArgs { moments, source, reading, .. } = &job.inputs;
    if !moments.is_empty() && source.is_empty() && resolve::nonfinite(reading) == Nonfinite::SkipRows {
        problems.push(
            Problem::usage("--nonfinite is given, but no rows are read: the moments are known")
                .help("give it to the command that measures the moments"),
        );
    }
    problems.collect(check_component(job.output.format, job.output.component));
    let MethodArgs { coupling, preserve, ridge, channel_scale, shrinkage, norm, max_shift, strength, .. } =
        &job.method;
    for (option, given) in [("--strength", strength.is_some()), ("--max-shift", max_shift.is_some())] {
        if given && start != Start::Update {
            let what = format!("{option} is given, but only --start update has a strength to choose");
            problems.push(Problem::usage(what).help(or_start(option, Start::Update)));
        }
    }
    let method = resolve::kind(&job.method);
    let is_eva = method == Method::Eva;
    for (option, given, has_effect) in [
        ("--coupling", coupling.is_some(), method == Method::Cntlora),
        ("--preserve", preserve.is_some(), method == Method::Cntlora),
        ("--norm", norm.is_some(), method == Method::Cntlora),
        ("--ridge", ridge.is_some(), method.has_ridge()),
        ("--channel-scale", channel_scale.is_some(), method == Method::Cntlora),
        ("--shrinkage", shrinkage.is_some(), method == Method::Cntlora),
        ("--rho", job.ranks.rho.is_some(), is_eva),
        ("--max-rank", job.ranks.max_rank.is_some(), !is_eva),
    ] {
        if given && !has_effect {
            let what = format!("{option} is given, but the method {} has no use for it", method.name());
            problems.push(Problem::usage(what).help(format!("leave {option} out")));
        }
    }
    if job.ranks.rho.is_some_and(|rho| !(rho >= 1.0 && rho.is_finite())) {
        problems.push(Problem::usage("expected --rho to be 1 or more").help("1 gives every layer --rank"));
    }
    problems.or_ok(())
}

/// Refuses two kinds of data on one stdout.
pub fn check_streams(job: &JobArgs, json: bool) -> Result<(), Problem> {
    if json && job.run.events.as_deref().is_some_and(is_stdout) {
        return Err(Problem::usage("--json and --events - would both write to stdout")
            .help("leave --json out: the last event holds the report"));
    }
    Ok(())
}

/// Refuses a part of a pipeline where the format knows none.
pub fn check_component(format: args::Format, component: Option<args::Component>) -> Result<(), Problem> {
    if component.is_none() || format != args::Format::Peft {
        return Ok(());
    }
    Err(Problem::usage("--component is given, but only --format diffusers and kohya have components")
        .help("leave --component out, or add --format"))
}

#[cfg(test)]
mod tests {
    use super::super::args::{Cli, Command, init_args};
    use super::*;
    use clap::Parser;

    /// Two programs that read one stream would both be misled.
    #[test]
    fn stdout_holds_one_kind_of_data() {
        let refused = |options, json| check_streams(&init_args(options).job, json).is_err();
        assert!(refused("--events -", true));
        assert!(!refused("--events -", false) && !refused("--events file", true) && !refused("", true));
    }

    /// Options that contradict each other never reach the library.
    #[test]
    fn contradictions_are_refused() {
        for options in [
            "--energy 0.9 --budget",
            "--energy 0.9 --rank 8",
            "--strength 1 --max-shift 0.1",
            "--threads 0",
            "--rename nothing",
            "--target q,,v",
        ] {
            let words = "cntlora init model -a acts -o out".split(' ').chain(options.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{options}");
        }
        for options in [
            "--base-out b",
            "--start zero --strength 1",
            "--start residual --strength 1",
            "--residual anchor",
            "--component unet",
            "--method pissa --residual anchor --base-out b",
        ] {
            assert!(check(&init_args(options).job).is_err(), "{options}");
        }
        for (options, option) in [
            ("--method pissa --coupling transport", "--coupling"),
            ("--method eva --preserve 0", "--preserve"),
            ("--method corda-ipm --norm weights", "--norm"),
            ("--method lora --ridge 0.1", "--ridge"),
            ("--method corda-ipm --channel-scale mean", "--channel-scale"),
            ("--method eva --shrinkage oas", "--shrinkage"),
            ("--method olora --max-shift 0.1", "--max-shift"),
            ("--method pissa --rho 2", "--rho"),
            ("--method eva --max-rank 8", "--max-rank"),
        ] {
            let problems = check(&init_args(options).job).unwrap_err();
            assert_eq!(problems.0.len(), 1, "{problems}");
            assert!(problems.to_string().starts_with(&format!("{option} is given, but ")), "{problems}");
            assert_eq!(problems.0[0].next_step().map(|help| help.contains(option)), Some(true));
        }
        // No start is advised that the method does not have.
        for (options, help) in [
            ("--method olora --max-shift 0.1", "leave --max-shift out"),
            ("--start zero --max-shift 0.1", "leave --max-shift out, or give --start update"),
            ("--method eva --base-out b", "leave --base-out out"),
            ("--start zero --base-out b", "leave --base-out out, or give --start residual"),
        ] {
            let problems = check(&init_args(options).job).unwrap_err();
            assert_eq!(problems.0[0].next_step(), Some(help), "{options}");
        }
        let problems = check(&init_args("--method eva --rho 0.5").job).unwrap_err();
        assert_eq!(problems.to_string(), "expected --rho to be 1 or more");
        for options in [
            "--start residual --base-out b",
            "--start update --strength 1",
            "--method corda-kpm --ridge 0.1 --base-out b",
            "--method eva --rho 1.5",
        ] {
            assert!(check(&init_args(options).job).is_ok(), "{options}");
        }
        let both = check(&init_args("--start zero --base-out b --strength 1").job).unwrap_err();
        assert_eq!(both.0.len(), 2, "all complaints come together");
    }

    /// No rows are left out of moments that are known.
    #[test]
    fn rows_are_skipped_where_some_are_read() {
        for (inputs, sound) in [("--moments a", false), ("--moments a --source z", true), ("-a a", true)] {
            let words = format!("cntlora init model -o out --nonfinite skip-rows {inputs}");
            let Command::Init(args) = Cli::try_parse_from(words.split(' ')).unwrap().command else {
                panic!("expected init")
            };
            assert_eq!(check(&args.job).is_ok(), sound, "{inputs}");
        }
    }
}
