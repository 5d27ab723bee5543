//! The script that divides a job over a Slurm cluster.

use super::args::{Cli, SlurmArgs};
use super::command_line::join;
use super::terminal::Terminal;
use crate::moments_file::ENDING;
use crate::storage::{Problem, quoted};
use clap::Parser;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Prints the script.
pub(crate) fn run(args: &SlurmArgs, terminal: &Terminal) -> anyhow::Result<()> {
    let script = Names::new(args)?.script(args)?;
    terminal.data(script.as_bytes())?;
    Ok(())
}

/// The files and folders that the jobs make.
struct Names {
    out: PathBuf,
    /// The folder of the parts and the file of their sum, for the fine-tuning activations.
    target: (PathBuf, PathBuf),
    /// The same for the pre-training activations.
    source: (PathBuf, PathBuf),
}

impl Names {
    fn new(args: &SlurmArgs) -> Result<Self, Problem> {
        let name = args.out.file_name().ok_or_else(|| {
            Problem::usage("the output folder needs a name")
                .in_file(&args.out)
                .help("give --out a name, such as ../adapter")
        })?;
        let beside = |ending: &str| {
            let mut name = OsString::from(name);
            name.push(ending);
            args.out.with_file_name(name)
        };
        let kind = |kind: &str| (beside(&format!(".{kind}-parts")), beside(&format!(".{kind}{ENDING}")));
        Ok(Self { out: args.out.clone(), target: kind("target"), source: kind("source") })
    }

    fn script(&self, args: &SlurmArgs) -> Result<String, Problem> {
        let parts = args.parts;
        let last = parts.get() - 1;
        let options: String = args.sbatch.iter().map(|option| format!(" {}", join([option]))).collect();
        let cpus = args.cpus;
        let submit = |name: &str, more: &str| {
            format!(
                "sbatch --parsable --job-name=cntlora-{name} --cpus-per-task={cpus}{options}{more} <<'JOB'\n#!/bin/sh\n"
            )
        };
        let array = format!(" --array=0-{last} --requeue --open-mode=append");
        let mut text = format!(
            "#!/bin/sh\n\
             # Submits an array job that measures the activations in {parts} parts, and a job that waits for it and computes the adapter.\n\
             # Run it in the folder that the paths below refer to. The last job names parts that are missing. To make one part again, run\n\
             #     scontrol requeue JOB_PART\n\
             # It continues from its saved progress. Requeue the last job after it.\n\
             set -eu\n\n"
        );
        let mut jobs = vec!["target"];
        self.push_array(&mut text, &submit("target", &array), &args.activations, "target")?;
        if !args.source.is_empty() {
            self.push_array(&mut text, &submit("source", &array), &args.source, "source")?;
            jobs.push("source");
        }
        let after: String = jobs.iter().map(|job| format!(":${job}")).collect();
        text.push_str(&format!(
            "init=$({}",
            submit("init", &format!(" --requeue --open-mode=append --dependency=afterany{after}"))
        ));
        text.push_str("set -eu\n");
        for job in &jobs {
            let (parts, sum) = self.of(job);
            text.push_str(&format!("cntlora merge {} --out {} --force\n", path(parts)?, path(sum)?));
        }
        text.push_str(&format!("exec {} --threads \"$SLURM_CPUS_PER_TASK\"\nJOB\n)\n", self.init(args)?));
        let said: Vec<String> = jobs.iter().map(|job| format!("parts of {job} ${job}, ")).collect();
        text.push_str(&format!("echo \"submitted: {}adapter $init\"\n", said.concat()));
        Ok(text)
    }

    fn of(&self, job: &str) -> &(PathBuf, PathBuf) {
        if job == "source" { &self.source } else { &self.target }
    }

    /// The array job that measures one kind of activations.
    fn push_array(
        &self,
        text: &mut String,
        submit: &str,
        inputs: &[PathBuf],
        job: &str,
    ) -> Result<(), Problem> {
        let inputs = inputs.iter().map(|input| path(input)).collect::<Result<Vec<_>, _>>()?.join(" ");
        let parts = path(&self.of(job).0)?;
        text.push_str(&format!(
            "{job}=$({submit}exec cntlora moments {inputs} --shard auto --out {parts} --force --threads \"$SLURM_CPUS_PER_TASK\"\nJOB\n)\n"
        ));
        Ok(())
    }

    /// The command of the last job. It is parsed here, so that wrong options are found before jobs wait in the queue.
    fn init(&self, args: &SlurmArgs) -> Result<String, Problem> {
        let mut words = vec!["cntlora".to_owned(), "init".into(), text(&args.model)?.into()];
        words.extend(["--moments".into(), text(&self.target.1)?.into()]);
        if !args.source.is_empty() {
            words.extend(["--source-moments".into(), text(&self.source.1)?.into()]);
        }
        words.extend(["--out".into(), text(&self.out)?.into()]);
        words.extend(args.options.iter().cloned());
        Cli::try_parse_from(&words).map_err(|error| {
            let error = error.to_string();
            let first = error.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            Problem::usage(format!("cntlora init does not accept the options after --: {first}"))
                .help("give only options of cntlora init after --")
        })?;
        Ok(join(words))
    }
}

fn text(path: &Path) -> Result<&str, Problem> {
    path.to_str().ok_or_else(|| Problem::usage("the path is not valid UTF-8").in_file(path).help("rename it"))
}

fn path(path: &Path) -> Result<String, Problem> {
    let text = text(path)?;
    // A shell script with them would be hard to read.
    if text.contains(char::is_control) {
        return Err(Problem::usage(format!("the path has control characters: {}", quoted(text))));
    }
    // A path that begins with a dash would be taken for an option.
    Ok(join([if text.starts_with('-') { format!("./{text}") } else { text.into() }]))
}

#[cfg(test)]
mod tests {
    use super::super::args::{Command, GenerateCommand};
    use super::*;
    use crate::storage::snapshot;
    use expect_test::expect;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    fn script(words: &[&str]) -> Result<String, String> {
        let words = ["cntlora", "generate", "slurm"].iter().chain(words);
        let Command::Generate(GenerateCommand::Slurm(args)) = Cli::try_parse_from(words).unwrap().command
        else {
            panic!("this is not generate slurm")
        };
        Names::new(&args).and_then(|names| names.script(&args)).map_err(snapshot)
    }

    #[test]
    fn the_script_submits_the_parts_and_then_the_adapter() {
        let words = "model --activations acts -o out/adapter --parts 8 --cpus 4 --sbatch=--time=60 -- --rank 8 --strict";
        expect![[r##"
            #!/bin/sh
            # Submits an array job that measures the activations in 8 parts, and a job that waits for it and computes the adapter.
            # Run it in the folder that the paths below refer to. The last job names parts that are missing. To make one part again, run
            #     scontrol requeue JOB_PART
            # It continues from its saved progress. Requeue the last job after it.
            set -eu

            target=$(sbatch --parsable --job-name=cntlora-target --cpus-per-task=4 '--time=60' --array=0-7 --requeue --open-mode=append <<'JOB'
            #!/bin/sh
            exec cntlora moments acts --shard auto --out out/adapter.target-parts --force --threads "$SLURM_CPUS_PER_TASK"
            JOB
            )
            init=$(sbatch --parsable --job-name=cntlora-init --cpus-per-task=4 '--time=60' --requeue --open-mode=append --dependency=afterany:$target <<'JOB'
            #!/bin/sh
            set -eu
            cntlora merge out/adapter.target-parts --out out/adapter.target.moments.safetensors --force
            exec cntlora init model --moments out/adapter.target.moments.safetensors --out out/adapter --rank 8 --strict --threads "$SLURM_CPUS_PER_TASK"
            JOB
            )
            echo "submitted: parts of target $target, adapter $init"
        "##]].assert_eq(&script(&words.split(' ').collect::<Vec<_>>()).unwrap());
    }

    #[test]
    fn paths_are_quoted() {
        let words = [
            "m",
            "--activations=-dash",
            "--activations",
            "a b",
            "--source",
            "z's",
            "-o",
            "out",
            "--parts",
            "1",
        ];
        expect![[r##"
            #!/bin/sh
            # Submits an array job that measures the activations in 1 parts, and a job that waits for it and computes the adapter.
            # Run it in the folder that the paths below refer to. The last job names parts that are missing. To make one part again, run
            #     scontrol requeue JOB_PART
            # It continues from its saved progress. Requeue the last job after it.
            set -eu

            target=$(sbatch --parsable --job-name=cntlora-target --cpus-per-task=1 --array=0-0 --requeue --open-mode=append <<'JOB'
            #!/bin/sh
            exec cntlora moments ./-dash 'a b' --shard auto --out out.target-parts --force --threads "$SLURM_CPUS_PER_TASK"
            JOB
            )
            source=$(sbatch --parsable --job-name=cntlora-source --cpus-per-task=1 --array=0-0 --requeue --open-mode=append <<'JOB'
            #!/bin/sh
            exec cntlora moments "z's" --shard auto --out out.source-parts --force --threads "$SLURM_CPUS_PER_TASK"
            JOB
            )
            init=$(sbatch --parsable --job-name=cntlora-init --cpus-per-task=1 --requeue --open-mode=append --dependency=afterany:$target:$source <<'JOB'
            #!/bin/sh
            set -eu
            cntlora merge out.target-parts --out out.target.moments.safetensors --force
            cntlora merge out.source-parts --out out.source.moments.safetensors --force
            exec cntlora init m --moments out.target.moments.safetensors --source-moments out.source.moments.safetensors --out out --threads "$SLURM_CPUS_PER_TASK"
            JOB
            )
            echo "submitted: parts of target $target, parts of source $source, adapter $init"
        "##]].assert_eq(&script(&words).unwrap());
    }

    #[test]
    fn what_the_jobs_would_refuse_is_refused_at_once() {
        let refusal = |activations, out, options: &[&str]| {
            let words = ["m", "--activations", activations, "-o", out, "--parts", "2", "--"];
            script(&[&words, options].concat()).unwrap_err()
        };
        let refusals =
            [refusal("a", "o", &["--rnk", "8"]), refusal("a", "..", &[]), refusal("a\nb", "o", &[])];
        let name = Path::new(OsStr::from_bytes(b"\xff"));
        expect![[r#"
            cntlora init does not accept the options after --: unexpected argument '--rnk' found; help: give only options of cntlora init after --
            ..: the output folder needs a name; help: give --out a name, such as ../adapter
            the path has control characters: "a\nb"
            �: the path is not valid UTF-8; help: rename it
        "#]].assert_eq(&(refusals.concat() + &snapshot(path(name).unwrap_err())));
    }
}
