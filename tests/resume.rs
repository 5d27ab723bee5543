//! Runs that are interrupted end with the bits of runs that are not.

#[path = "small/progress.rs"]
mod progress;
mod small;

use cntlora::constraint::Coupling;
use cntlora::method::Options;
use cntlora::plan::{Request, plan};
use cntlora::rank::{Limits, Policy};
use cntlora::run::{Event, Job, Observer, PartialRun, run, run_resumable};
use cntlora::simd::BLOCK_ROWS;
use cntlora::storage::Category;
use expect_test::{Expect, expect};
use progress::leave_progress;
use rustix::process::{Pid, Signal, kill_process};
use small::{Small, names, on_any_machine};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Every way to measure: one kind of activations, both, and pairs; and a run that writes a base as well.
const JOBS: [(&str, &str); 5] = [
    ("adapter", "init model.safetensors -a target -o adapter --rank 4 --threads 2"),
    ("base", "init model.safetensors -a target --source source -o base --rank 4 --start residual"),
    (
        "elsewhere",
        "init model.safetensors -a target -o elsewhere --rank 4 --start residual --base-out changed --report page.html",
    ),
    ("paired", "init model.safetensors -a target --source source -o paired --rank 4 --coupling paired"),
    ("t.moments.safetensors", "moments target -o t.moments.safetensors"),
];

fn is_complete(small: &Small, out: &str) -> bool {
    let path = small.path(out);
    path.is_file() || path.join("adapter_config.json").is_file()
}

/// The bytes of an output, and of the base that is written elsewhere with it.
fn bytes(small: &Small, out: &str) -> Vec<BTreeMap<String, Vec<u8>>> {
    let mut found = vec![small.bytes(out)];
    if out == "elsewhere" {
        found.push(BTreeMap::from([(
            String::new(),
            fs::read(small.path("changed/model.safetensors")).unwrap(),
        )]));
    }
    found
}

/// The files below a folder whose names are those of unfinished ones.
fn leftovers(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in names(folder) {
        let path = folder.join(&name);
        if path.is_dir() {
            found.append(&mut leftovers(&path));
        } else if name.contains(".tmp") {
            found.push(path);
        }
    }
    found
}

/// A random number below 1, of a sequence that is the same every time.
fn random(state: &mut u64) -> f64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 11) as f64 / (1u64 << 53) as f64
}

/// The real binary, killed at a hundred and more moments from its start to its end, and begun again with the same command
/// until it ends by itself.
#[test]
fn killed_runs_resume_to_the_same_bytes() {
    let mut state = 1;
    let mut saved = 0;
    for (out, words) in JOBS {
        let whole = Small::new();
        let begun = Instant::now();
        whole.succeed(&format!("{words} --checkpoint-every 0"));
        let duration = begun.elapsed();

        let small = Small::new();
        let mut kills = 0;
        while kills < 26 {
            let mut progress = 0;
            loop {
                let mut command = small.command(&format!("{words} --checkpoint-every 0"));
                let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                sleep(duration.mul_f64(random(&mut state)));
                child.kill().unwrap();
                if child.wait().unwrap().success() {
                    break;
                }
                kills += 1;
                progress += 1;
                let partial = small.path(&format!("{out}.partial"));
                saved += usize::from(
                    partial.is_dir() && names(&partial).iter().any(|name| name.ends_with(".safetensors")),
                );
                let begun = small.path(&format!("{out}.partial/job.json")).exists();
                if is_complete(&small, out) && !begun {
                    // Killed when nothing was left to be done but to remove the lock.
                    small.succeed(&format!("{words} --force"));
                    break;
                }
                assert!(progress < 1000, "{words}: no progress in all these runs");
            }
            assert!(bytes(&small, out) == bytes(&whole, out), "{words}: other bytes after {kills} kills");
            assert!(!small.path(&format!("{out}.partial")).exists());
            assert!(leftovers(&small.path("")).is_empty(), "{words}: {:?}", leftovers(&small.path("")));
            for written in [out, "changed", "page.html"].map(|name| small.path(name)) {
                let _ = if written.is_dir() { fs::remove_dir_all(written) } else { fs::remove_file(written) };
            }
            assert_eq!(names(&small.path("")), ["model.safetensors", "source", "target"], "{words}");
        }
    }
    assert!(saved >= 20, "only {saved} of the kills left something to go on from");
}

/// Runs a command that must be refused for its options, and returns the text of stderr.
fn refusal(small: &Small, words: &str) -> String {
    let output = small.run(words);
    assert_eq!(output.status.code(), Some(2), "{words}");
    String::from_utf8(output.stderr).unwrap()
}

/// Killed between the last rename and the end: the same command, without `--force`, ends what there is to end. Another one is refused.
#[test]
fn a_complete_output_of_an_unfinished_run_is_its_own() {
    for (out, words) in JOBS {
        let small = Small::new();
        let words = format!("{words} --checkpoint-every 0");
        leave_progress(&small, &words, out);
        let partial = small.path(&format!("{out}.partial"));
        let saved: Vec<_> =
            names(&partial).into_iter().map(|name| (fs::read(partial.join(&name)).unwrap(), name)).collect();
        small.succeed(&words);
        let complete = small.bytes(out);
        let unfinished = |writing: bool| {
            fs::create_dir_all(&partial).unwrap();
            saved.iter().for_each(|(bytes, name)| fs::write(partial.join(name), bytes).unwrap());
            if writing {
                let outputs = [out, &format!("{out}/base"), "changed", "page.html"];
                let outputs = outputs.map(|name| format!("{}\0", small.path(name).display()));
                fs::write(partial.join("writing"), outputs.concat()).unwrap();
            }
        };
        unfinished(false);
        assert!(refusal(&small, &words).contains("--force"));
        unfinished(true);
        assert!(refusal(&small, &format!("{words} --exclude mlp")).contains("--force"));
        unfinished(true);
        small.succeed(&words);
        assert!(small.bytes(out) == complete && !partial.exists());
        assert!(refusal(&small, &words).contains("--force"));
    }
}

/// Stopped after every block in turn, with nothing saved but at the stop; through the library, so that no block is missed.
#[test]
fn runs_stopped_after_any_block_go_on_to_the_same_bits() {
    struct StopAfter {
        blocks: AtomicU64,
        resumed: AtomicU64,
    }
    impl Observer for StopAfter {
        fn event(&self, event: Event<'_>) {
            match event {
                Event::RowsAdded { .. } => {
                    let _ = self.blocks.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
                }
                Event::Resumed { rows, .. } => {
                    self.resumed.fetch_add(rows, SeqCst);
                }
                _ => {}
            }
        }
        fn stop_requested(&self) -> bool {
            self.blocks.load(SeqCst) == 0
        }
    }
    let small = Small::new();
    for coupling in [Coupling::Transport, Coupling::Paired] {
        let method = Options {
            coupling,
            ranks: Policy::Fixed(4),
            limits: Limits { min: 0, max: 4, multiple: 1 },
            ..Options::default()
        };
        let request = Request {
            source: vec![small.path("source")],
            method,
            ..Request::new(small.path("model.safetensors"), vec![small.path("target")])
        };
        let (plan, inputs) = plan(&request).unwrap();
        let whole = run(&plan, &inputs, &()).unwrap();
        let job = Job::of_run(&plan, &inputs);
        let folder = small.path("out.partial");
        let mut stopped = 0;
        for blocks in 1.. {
            let partial = PartialRun::open(&folder, &job, Duration::MAX, false).unwrap();
            let observer = StopAfter { blocks: blocks.into(), resumed: 0.into() };
            let end = run_resumable(&plan, &inputs, &observer, &partial);
            let resumed = match end {
                Ok(_) => 0,
                Err(problems) => {
                    assert_eq!(problems.category(), Category::Interrupted, "{problems}");
                    stopped += 1;
                    let observer = StopAfter { blocks: u64::MAX.into(), resumed: 0.into() };
                    let outcome = run_resumable(&plan, &inputs, &observer, &partial).unwrap();
                    for (module, factors) in &whole.adapter.layers {
                        let resumed = &outcome.adapter.layers[module];
                        assert!(
                            resumed.a == factors.a && resumed.b == factors.b,
                            "{module} after {blocks} blocks"
                        );
                    }
                    observer.resumed.load(SeqCst)
                }
            };
            partial.discard().unwrap();
            if resumed == 0 {
                break;
            }
        }
        // Two sites. Pairs end where a file of either side does, and there is one file of the source.
        let target: usize = small::ROWS.iter().map(|rows| rows.div_ceil(BLOCK_ROWS)).sum();
        let source = small::ROWS.iter().sum::<usize>().div_ceil(BLOCK_ROWS);
        assert_eq!(stopped, 2 * if coupling == Coupling::Paired { target } else { target + source });
    }
}

/// Stopped when the sums of a site are complete and its layers are not: all of its rows are saved, whatever the interval.
#[test]
fn sums_outlive_a_stop_during_the_decomposition() {
    /// Takes its time with the first rows of each side, so that the site is not too small to be saved.
    #[derive(Default)]
    struct StopWhenReady {
        rows: AtomicU64,
        ready: AtomicBool,
        resumed: AtomicU64,
    }
    impl Observer for StopWhenReady {
        fn event(&self, event: Event<'_>) {
            match event {
                Event::RowsAdded { rows, .. } => {
                    let before = self.rows.fetch_add(rows, SeqCst);
                    if before.is_multiple_of(small::ROWS.iter().sum::<usize>() as u64) {
                        sleep(Duration::from_millis(600));
                    }
                }
                Event::MomentsReady { .. } => self.ready.store(true, SeqCst),
                Event::Resumed { rows, .. } => {
                    self.resumed.fetch_add(rows, SeqCst);
                }
                _ => {}
            }
        }
        fn stop_requested(&self) -> bool {
            self.ready.load(SeqCst)
        }
    }
    let small = Small::new();
    for coupling in [Coupling::Transport, Coupling::Paired] {
        let mut request = Request {
            source: vec![small.path("source")],
            method: Options { coupling, ..Options::default() },
            threads: 1,
            ..Request::new(small.path("model.safetensors"), vec![small.path("target")])
        };
        request.method.ranks = Policy::Fixed(4);
        request.method.limits = Limits { min: 0, max: 4, multiple: 1 };
        let (plan, inputs) = plan(&request).unwrap();
        let job = Job::of_run(&plan, &inputs);
        let partial = PartialRun::open(&small.path("out.partial"), &job, Duration::MAX, false).unwrap();
        let problems = run_resumable(&plan, &inputs, &StopWhenReady::default(), &partial).err().unwrap();
        assert_eq!(problems.category(), Category::Interrupted, "{problems}");
        let observer = StopWhenReady::default();
        run_resumable(&plan, &inputs, &observer, &partial).err().unwrap();
        let rows = 2 * small::ROWS.iter().sum::<usize>() as u64;
        assert_eq!(observer.resumed.load(SeqCst), rows, "both sides of the first site, {coupling:?}");
        partial.discard().unwrap();
    }
}

/// Starts a run, and gives it to `signal` when it has saved something, until it ends as `wanted`. Returns what it said.
fn signalled(
    small: &Small,
    (out, words): (&str, &str),
    signal: impl Fn(&Child),
    wanted: impl Fn(&str) -> bool,
) -> String {
    let partial = small.path(&format!("{out}.partial"));
    let saved = || partial.is_dir() && names(&partial).iter().any(|name| name.ends_with(".safetensors"));
    for _ in 0..100 {
        let mut command = small.command(words);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        while !saved() && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_micros(200));
        }
        // Without effect on a run that has ended.
        signal(&child);
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        if status.code() == Some(130) && wanted(&stderr) {
            return stderr;
        }
        for left in [small.path(out), partial.clone()] {
            let _ = if left.is_dir() { fs::remove_dir_all(left) } else { fs::remove_file(left) };
        }
    }
    panic!("no run was met by the signal as it should be");
}

fn send(child: &Child, signal: Signal) {
    let _ = kill_process(Pid::from_child(child), signal);
}

/// Every command that saves its progress, with the output that it is for.
const SAVING: [(&str, &str); 3] = [
    JOBS[0],
    JOBS[4],
    ("parts/part-00000-of-00001", "init model.safetensors -a target -o parts --rank 4 --shard 0/1"),
];

/// What came of a command of [`SAVING`]: of a part, the adapter that it joins to.
fn result(small: &Small, out: &str) -> BTreeMap<String, Vec<u8>> {
    if out.starts_with("parts") {
        small.succeed("merge parts -o joined");
        return small.bytes("joined");
    }
    small.bytes(out)
}

/// A signal ends a run after the block that it is at, with its progress saved.
#[test]
fn terminated_runs_save_and_say_so() {
    for ((out, words), signal) in SAVING.into_iter().zip([Signal::TERM, Signal::INT, Signal::TERM]) {
        let words = &format!("{words} --checkpoint-every 0");
        let whole = Small::new();
        whole.succeed(words);
        let small = Small::new();
        let stopped = format!("{out}.partial: stopped before it was finished");
        let stderr =
            signalled(&small, (out, words), |child| send(child, signal), |stderr| stderr.contains(&stopped));
        assert!(stderr.contains("give the same command again to go on"), "{stderr}");
        assert!(!is_complete(&small, out));
        let output = small.succeed(words);
        let going_on = format!("Going on from the progress in \"{out}.partial\"");
        assert!(String::from_utf8_lossy(&output.stderr).contains(&going_on));
        assert!(result(&small, out) == result(&whole, out), "{words}");
    }
}

/// A second signal ends a run at once. What was saved before is good, and nothing unfinished is left.
#[test]
fn a_second_signal_ends_a_run_at_once() {
    for (out, words) in SAVING {
        let words = &format!("{words} --checkpoint-every 0");
        let whole = Small::new();
        whole.succeed(words);
        let small = Small::new();
        let twice = |child: &Child| {
            send(child, Signal::INT);
            send(child, Signal::TERM);
        };
        signalled(&small, (out, words), twice, |stderr| {
            stderr.contains("stopping, and saving") && !stderr.contains("stopped before it was finished")
        });
        assert!(leftovers(&small.path("")).is_empty(), "{words}: {:?}", leftovers(&small.path("")));
        small.succeed(words);
        assert!(result(&small, out) == result(&whole, out), "{words}");
    }
}

/// What is refused at the very end costs no progress: here numbers that do not fit their format.
#[test]
fn a_format_that_is_too_small_costs_no_progress() {
    let words = "init model.safetensors -a target -o out --rank 4 --start update --strength 1e12";
    let whole = Small::new();
    whole.succeed(words);
    let small = Small::new();
    small.refused(&format!("{words} --dtype f16"), 1, expect![[r#"
        3 layers at 2 sites, 787.2 kB of activations to read, about [size] of memory
        The progress is kept in "out.partial": a run of the same activations goes on from it; for others give --restart
        error: tensor "base_model.model.block.mlp.lora_A.weight": row 0, column 0: expected a finite F16 number, found [number], which is too large for it
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.mlp.lora_B.weight": row 0, column 0: expected a finite F16 number, found [number], which is too large for it
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.query.lora_A.weight": row 0, column 0: expected a finite F16 number, found [number], which is too large for it
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.query.lora_B.weight": row 0, column 0: expected a finite F16 number, found [number], which is too large for it
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.value.lora_A.weight": row 0, column 0: expected a finite F16 number, found [number], which is too large for it
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.value.lora_B.weight": row 0, column 0: expected a finite F16 number, found [number], which is too large for it
          help: write the factors as f32 or bf16
        6 problems were found
    "#]]);
    let output = small.succeed(words);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("Going on from the progress in \"out.partial\"")
    );
    assert!(small.bytes("out") == whole.bytes("out"));
}

/// Sums of rows that were refused for the first that is not finite go on when such rows are skipped, and not the other way round.
#[test]
fn refused_rows_cost_no_progress() {
    let words = "moments target -o t.m --checkpoint-every 0";
    let spoil = |small: &Small| {
        let path = small.path("target/2.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(path, bytes).unwrap();
    };
    let (whole, small) = (Small::new(), Small::new());
    spoil(&whole);
    spoil(&small);
    whole.succeed(&format!("{words} --nonfinite skip-rows"));
    small.refused(words, 1, expect![[r#"
        2 sites, 787.2 kB of activations to read, about [size] of memory
        The progress is kept in "t.m.partial": a run of the same activations goes on from it; for others give --restart
        error: target/2.safetensors: tensor "block.mlp": row 1899, column 23 is not a finite f32 number
          help: record these activations again, or leave such rows out with --nonfinite skip-rows; `cntlora inspect --values` counts such numbers
    "#]]);
    let output = small.succeed(&format!("{words} --nonfinite skip-rows"));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("Going on from the progress in \"t.m.partial\"")
    );
    // The recordings are other files here, with other times.
    let sums = |small: &Small| {
        small.succeed("init model.safetensors --moments t.m -o out --rank 4");
        small.bytes("out")["adapter_model.safetensors"].clone()
    };
    assert!(sums(&small) == sums(&whole));

    leave_progress(&small, &format!("{words} --force --nonfinite skip-rows"), "t.m");
    small.refused(&format!("{words} --force"), 2, expect![[r#"
        2 sites, 787.2 kB of activations to read, about [size] of memory
        error: t.m.partial: holds the progress of another run: options.nonfinite was "skip-rows", and is "refuse" now
          help: give the options and inputs of that run to continue it, or --restart to begin anew
    "#]]);
}

/// Progress makes no other folder this run's own: a base that another run did not begin to write is not replaced without force.
#[test]
fn progress_is_no_leave_to_replace_another_model() {
    let small = Small::new();
    let words =
        "init model.safetensors -a target -o out --rank 4 --start residual --checkpoint-every 0 --base-out";
    fs::create_dir(small.path("other")).unwrap();
    fs::write(small.path("other/model.safetensors"), "mine").unwrap();
    leave_progress(&small, &format!("{words} b1"), "out");
    let commands = ["", " --restart"].map(|options| format!("{words} other{options}"));
    small.all_refused(commands, 2, expect![[r#"
        $ cntlora init model.safetensors -a target -o out --rank 4 --start residual --checkpoint-every 0 --base-out other
        error: other: expected an output folder without an adapter or a model, found "model.safetensors"
          help: choose another folder, or give --force to replace what is there
        $ cntlora init model.safetensors -a target -o out --rank 4 --start residual --checkpoint-every 0 --base-out other --restart
        error: other: expected an output folder without an adapter or a model, found "model.safetensors"
          help: choose another folder, or give --force to replace what is there
    "#]]);
    // Nor when the output was begun.
    small.refused(&format!("{words} b1 --scale 1e-14 --dtype f16 --restart"), 1, expect![[r#"
        3 layers at 2 sites, 787.2 kB of activations to read, about [size] of memory
        The progress is kept in "out.partial": a run of the same activations goes on from it; for others give --restart
        error: tensor "base_model.model.block.mlp.lora_A.weight": row 0, column 0: expected a finite F16 number, found [number], which is too large for it
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.mlp.lora_B.weight": row 0, column 0: expected a finite F16 number, found [number], which is too large for it
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.query.lora_A.weight": row 0, column 0: expected a finite F16 number, found [number], which is too large for it
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.query.lora_B.weight": row 0, column 0: expected a finite F16 number, found [number], which is too large for it
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.value.lora_A.weight": row 0, column 0: expected a finite F16 number, found [number], which is too large for it
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.value.lora_B.weight": row 0, column 0: expected a finite F16 number, found [number], which is too large for it
          help: write the factors as f32 or bf16
        6 problems were found
    "#]]);
    assert!(small.path("out.partial/writing").exists());
    let commands = ["", " --restart"].map(|options| format!("{words} other --scale 1e-14{options}"));
    small.all_refused(commands, 2, expect![[r#"
        $ cntlora init model.safetensors -a target -o out --rank 4 --start residual --checkpoint-every 0 --base-out other --scale 1e-14
        error: other: expected an output folder without an adapter or a model, found "model.safetensors"
          help: choose another folder, or give --force to replace what is there
        $ cntlora init model.safetensors -a target -o out --rank 4 --start residual --checkpoint-every 0 --base-out other --scale 1e-14 --restart
        error: other: expected an output folder without an adapter or a model, found "model.safetensors"
          help: choose another folder, or give --force to replace what is there
    "#]]);
    assert_eq!(fs::read(small.path("other/model.safetensors")).unwrap(), b"mine");
    small.succeed(&format!("{words} b1 --restart"));
}

/// Progress is of one recording: others are refused by what differs, and go on only when they begin anew.
#[test]
fn progress_of_another_recording_is_refused_by_name() {
    let small = Small::new();
    let words = "init model.safetensors -a target -o adapter --rank 4 --checkpoint-every 0";
    leave_progress(&small, words, "adapter");
    let refused = |options: &str, message: Expect| small.refused(&format!("{words} {options}"), 2, message);
    refused(
        "--source source",
        expect![[r#"
            3 layers at 2 sites, 1.6 MB of activations to read, about [size] of memory
            error: adapter.partial: holds the progress of another run: inputs.source.source/0.safetensors was not there
              help: give the options and inputs of that run to continue it, or --restart to begin anew
        "#]],
    );
    small.succeed(&format!("{words} --dtype bf16 --threads 1"));
    assert!(!small.path("adapter.partial").exists());

    leave_progress(&small, &format!("{words} --force"), "adapter");
    let touched = fs::File::options().append(true).open(small.path("target/1.safetensors")).unwrap();
    touched.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    refused(
        "--force",
        expect![[r#"
            3 layers at 2 sites, 787.2 kB of activations to read, about [size] of memory
            error: adapter.partial: holds the progress of another run: inputs.activations.target/1.safetensors.modified was "[time]", and is "0" now
              help: give the options and inputs of that run to continue it, or --restart to begin anew
        "#]],
    );
    small.succeed(&format!("{words} --force --restart"));
    assert!(!small.path("adapter.partial").exists());
}

/// Damaged progress is told by name, never gone on from; nor is that of a later version.
#[test]
fn damaged_progress_is_refused() {
    let small = Small::new();
    let words = "moments target -o t.m --checkpoint-every 0";
    leave_progress(&small, words, "t.m");
    let folder = small.path("t.m.partial");
    let sums = names(&folder).into_iter().find(|name| name.ends_with(".moments.safetensors")).unwrap();
    let refused = |name: &str, change: fn(&mut Vec<u8>), code: i32, message: Expect| {
        let path = folder.join(name);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        change(&mut bad);
        fs::write(&path, bad).unwrap();
        let output = small.run(words);
        assert_eq!(output.status.code(), Some(code));
        // The site that has progress depends on the moment of the kill.
        let stderr = on_any_machine(&String::from_utf8(output.stderr).unwrap()).replace(&sums, "[sums]");
        message.assert_eq(
            &["block.attention", "block.mlp"]
                .into_iter()
                .fold(stderr, |text, site| text.replace(site, "[site]")),
        );
        fs::write(&path, good).unwrap();
    };
    let flip = |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1;
    let halve = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2);
    let renew = |bytes: &mut Vec<u8>| {
        let text = String::from_utf8_lossy(bytes).replace("\"version\": 2", "\"version\": 9");
        *bytes = text.into_bytes();
    };
    refused(
        &sums,
        flip,
        3,
        expect![[r#"
            2 sites, 787.2 kB of activations to read, about [size] of memory
            Going on from the progress in "t.m.partial"; --restart begins anew
            error: t.m.partial/[sums]: tensor "[site]": its sums are not those that were written: their hash is another
              help: remove this file to do its site again, or give --restart to begin anew
        "#]],
    );
    refused(
        &sums,
        halve,
        3,
        expect![[r#"
            2 sites, 787.2 kB of activations to read, about [size] of memory
            Going on from the progress in "t.m.partial"; --restart begins anew
            error: t.m.partial/[sums]: its tensors have 2696 bytes, but 948 follow the header: the file ends too early
              help: remove this file to do its site again, or give --restart to begin anew
        "#]],
    );
    refused(
        "job.json",
        halve,
        1,
        expect![[r#"
            2 sites, 787.2 kB of activations to read, about [size] of memory
            error: t.m.partial/job.json: cannot be understood: EOF while parsing a value at line 27 column 0
              help: give --restart to begin anew
        "#]],
    );
    refused(
        "job.json",
        renew,
        2,
        expect![[r#"
            2 sites, 787.2 kB of activations to read, about [size] of memory
            error: t.m.partial: holds the progress of another run: version was 9, and is 2 now
              help: give the options and inputs of that run to continue it, or --restart to begin anew
        "#]],
    );
    small.succeed(words);
}

/// Two runs into one output do not mix: the second is told of the first.
#[test]
fn a_second_run_is_refused_while_the_first_works() {
    let small = Small::new();
    let words = "moments target -o t.m --checkpoint-every 0";
    leave_progress(&small, words, "t.m");
    let lock = fs::File::options().append(true).open(small.path("t.m.partial/lock")).unwrap();
    lock.lock().unwrap();
    small.refused(
        words,
        3,
        expect![[r#"
            2 sites, 787.2 kB of activations to read, about [size] of memory
            error: t.m.partial: another run is at work on this output
              help: wait until it has ended, or choose another name for the output
        "#]],
    );
    small.refused(
        &format!("{words} --restart"),
        3,
        expect![[r#"
            2 sites, 787.2 kB of activations to read, about [size] of memory
            error: t.m.partial: another run is at work on this output
              help: wait until it has ended, or choose another name for the output
        "#]],
    );
    lock.unlock().unwrap();
    small.succeed(words);
}
