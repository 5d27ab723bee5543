//! The script that divides a job over a Slurm cluster.

use super::args::{Cli, SlurmArgs};
use super::terminal::Terminal;
use clap::Parser;
use cntlora::moments_file::ENDING;
use cntlora::storage::{Problem, quoted};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Prints the script.
pub fn run(args: &SlurmArgs, terminal: &Terminal) -> anyhow::Result<()> {
    let script = Names::new(args)?.script(args)?;
    terminal.data(script.as_bytes())?;
    Ok(())
}

/// What the jobs make, beside the adapter.
struct Names {
    out: PathBuf,
    /// Parts, and their sum, of each kind of activations.
    target: (PathBuf, PathBuf),
    source: (PathBuf, PathBuf),
}

impl Names {
    fn new(args: &SlurmArgs) -> Result<Self, Problem> {
        let name = args.out.file_name().ok_or_else(|| {
            Problem::usage("expected a folder with a name of its own")
                .in_file(&args.out)
                .help("name it, as in ../adapter")
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
        let options: String = args.sbatch.iter().map(|option| format!(" {}", word(option))).collect();
        let cpus = args.cpus;
        let submit = |name: &str, more: &str| {
            format!(
                "sbatch --parsable --job-name=cntlora-{name} --cpus-per-task={cpus}{options}{more} <<'JOB'\n#!/bin/sh\n"
            )
        };
        let array = format!(" --array=0-{last} --requeue --open-mode=append");
        let mut text = format!(
            "#!/bin/sh\n\
             # Submits the measurement of activations in {parts} parts, and a job that waits for all of them and computes the adapter.\n\
             # Run it where the paths below are good. The last job refuses parts that are missing, by number. Such a part is made alone by\n\
             #     scontrol requeue JOB_PART\n\
             # and goes on from the progress that it saved; requeue the last job after it.\n\
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

    /// The command of the last job, which has to be one that `init` understands.
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
            Problem::usage(format!("cntlora init would refuse what follows --: {first}"))
                .help("give after -- only options of cntlora init")
        })?;
        Ok(words.iter().map(|part| word(part)).collect::<Vec<_>>().join(" "))
    }
}

fn text(path: &Path) -> Result<&str, Problem> {
    path.to_str()
        .ok_or_else(|| Problem::usage("expected a path of UTF-8 text").in_file(path).help("rename it"))
}

fn path(path: &Path) -> Result<String, Problem> {
    let text = text(path)?;
    // A shell script has no way to write them that is worth reading.
    if text.contains(char::is_control) {
        return Err(Problem::usage(format!(
            "expected a path without control characters, found {}",
            quoted(text)
        )));
    }
    // An argument that begins with a dash would be an option.
    Ok(word(&if text.starts_with('-') { format!("./{text}") } else { text.into() }))
}

/// A word as a POSIX shell reads it back.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./=:,+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::args::{Command, GenerateCommand};
    use super::*;

    fn script(words: &[&str]) -> Result<String, String> {
        let words = ["cntlora", "generate", "slurm"].iter().chain(words);
        let Command::Generate(GenerateCommand::Slurm(args)) = Cli::try_parse_from(words).unwrap().command
        else {
            panic!("expected generate slurm")
        };
        Names::new(&args).and_then(|names| names.script(&args)).map_err(|problem| problem.to_string())
    }

    /// The whole script, byte for byte.
    #[test]
    fn the_script_is_this() {
        let words =
            "model --activations acts -o out/adapter --parts 8 --cpus 4 --sbatch=--time=60 -- --rank 8";
        let expected = "\
#!/bin/sh
# Submits the measurement of activations in 8 parts, and a job that waits for all of them and computes the adapter.
# Run it where the paths below are good. The last job refuses parts that are missing, by number. Such a part is made alone by
#     scontrol requeue JOB_PART
# and goes on from the progress that it saved; requeue the last job after it.
set -eu

target=$(sbatch --parsable --job-name=cntlora-target --cpus-per-task=4 --time=60 --array=0-7 --requeue --open-mode=append <<'JOB'
#!/bin/sh
exec cntlora moments acts --shard auto --out out/adapter.target-parts --force --threads \"$SLURM_CPUS_PER_TASK\"
JOB
)
init=$(sbatch --parsable --job-name=cntlora-init --cpus-per-task=4 --time=60 --requeue --open-mode=append --dependency=afterany:$target <<'JOB'
#!/bin/sh
set -eu
cntlora merge out/adapter.target-parts --out out/adapter.target.moments.safetensors --force
exec cntlora init model --moments out/adapter.target.moments.safetensors --out out/adapter --rank 8 --threads \"$SLURM_CPUS_PER_TASK\"
JOB
)
echo \"submitted: parts of target $target, adapter $init\"
";
        assert_eq!(script(&words.split(' ').collect::<Vec<_>>()).unwrap(), expected);
    }

    /// Words of any content reach the shell as one word each.
    #[test]
    fn words_are_quoted() {
        for text in ["", "a b", "$HOME", "it's", "a\\b", "*", "`id`", "ä"] {
            let printed =
                std::process::Command::new("sh").args(["-c", &format!("printf %s {}", word(text))]).output();
            assert_eq!(printed.unwrap().stdout, text.as_bytes(), "{text}");
        }
        let text =
            script(&["m", "--activations", "a b", "--source", "z's", "-o", "out", "--parts", "1"]).unwrap();
        assert!(
            text.contains("cntlora moments 'a b' --shard")
                && text.contains(r"cntlora moments 'z'\''s' --shard"),
            "{text}"
        );
        assert!(text.contains("--dependency=afterany:$target:$source"), "{text}");
        assert!(text.contains("--source-moments out.source.moments.safetensors"), "{text}");
    }

    /// Options of init reach it.
    #[test]
    fn strict_is_passed_on() {
        let text = script(&["m", "--activations", "a", "-o", "o", "--parts", "2", "--", "--strict"]).unwrap();
        assert!(text.contains("--out o --strict --threads"), "{text}");
    }

    #[test]
    fn what_init_would_refuse_is_refused_now() {
        let refusal =
            script(&["m", "--activations", "a", "-o", "o", "--parts", "2", "--", "--rnk", "8"]).unwrap_err();
        assert!(
            refusal.contains("cntlora init would refuse what follows --: unexpected argument '--rnk' found"),
            "{refusal}"
        );
        let refusal = script(&["m", "--activations", "a", "-o", "..", "--parts", "2"]).unwrap_err();
        assert!(refusal.contains("expected a folder with a name of its own"), "{refusal}");
        let refusal = script(&["m", "--activations", "a\nb", "-o", "o", "--parts", "2"]).unwrap_err();
        assert!(refusal.contains("expected a path without control characters"), "{refusal}");
    }
}
