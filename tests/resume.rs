//! Interrupted runs that are resumed give the same bits as uninterrupted runs.

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

/// Runs with one kind of activations, with both kinds, and with pairs; runs that also write a base; and a run that writes moments.
const JOBS: [(&str, &str); 5] = [
    ("adapter", "init model.safetensors -a target -o adapter --rank 4 --start mirrored --threads 2"),
    ("base", "init model.safetensors -a target --source source -o base --rank 4 --start residual"),
    (
        "elsewhere",
        "init model.safetensors -a target -o elsewhere --rank 4 --start residual --base-out changed --report page.html",
    ),
    (
        "paired",
        "init model.safetensors -a target --source source -o paired --rank 4 --start mirrored --coupling paired",
    ),
    ("t.moments.safetensors", "moments target -o t.moments.safetensors"),
];

fn is_complete(small: &Small, out: &str) -> bool {
    let path = small.path(out);
    path.is_file() || path.join("adapter_config.json").is_file()
}

/// Returns the bytes of an output, and of a base that is written to another folder.
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

/// Returns the temporary files below a folder.
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

/// Returns the next random number below 1. The sequence is always the same.
fn random(state: &mut u64) -> f64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 11) as f64 / (1u64 << 53) as f64
}

/// Kills the real binary more than a hundred times, at random moments from its start to its end. After each kill, the same command runs
/// again until it ends by itself.
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
                    // The kill came when only the lock was left to remove.
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

/// Runs a command that must be refused because of its options. Returns the text of stderr.
fn refusal(small: &Small, words: &str) -> String {
    let output = small.run(words);
    assert_eq!(output.status.code(), Some(2), "{words}");
    String::from_utf8(output.stderr).unwrap()
}

/// If a run is killed between its last rename and its end, the same command finishes it without `--force`. Any other command is refused.
#[test]
fn a_complete_output_of_an_unfinished_run_needs_no_force() {
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

/// Stops a run after each block in turn, and saves progress only at the stop. The test uses the library, so that it misses no block.
#[test]
fn runs_stopped_after_any_block_resume_to_the_same_bits() {
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
        // There are two sites. A block of pairs ends where a file of either side ends, and the source is one file.
        let target: usize = small::ROWS.iter().map(|rows| rows.div_ceil(BLOCK_ROWS)).sum();
        let source = small::ROWS.iter().sum::<usize>().div_ceil(BLOCK_ROWS);
        assert_eq!(stopped, 2 * if coupling == Coupling::Paired { target } else { target + source });
    }
}

/// A run that is stopped when the sums of a site are complete, but its layers are not, saves all rows of the site. The checkpoint
/// interval does not matter.
#[test]
fn a_stop_during_the_decomposition_saves_the_sums() {
    /// Waits after the first rows of each side, because sites that take little time are not saved.
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

/// Starts a run and passes it to `signal` as soon as it has saved progress. Repeats this until a run is interrupted and its stderr is
/// `wanted`. Returns that stderr.
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
        // This has no effect on a run that has ended.
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

/// The commands that save their progress, each with its output.
const SAVING: [(&str, &str); 3] = [
    JOBS[0],
    JOBS[4],
    ("parts/part-00000-of-00001", "init model.safetensors -a target -o parts --rank 4 --shard 0/1"),
];

/// Returns the bytes of the output of a command of [`SAVING`]. For a part, these are the bytes of the merged adapter.
fn result(small: &Small, out: &str) -> BTreeMap<String, Vec<u8>> {
    if out.starts_with("parts") {
        small.succeed("merge parts -o joined");
        return small.bytes("joined");
    }
    small.bytes(out)
}

/// A signal ends a run after the current block. The run saves its progress and reports this.
#[test]
fn runs_ended_by_a_signal_save_their_progress_and_report_it() {
    for ((out, words), signal) in SAVING.into_iter().zip([Signal::TERM, Signal::INT, Signal::TERM]) {
        let words = &format!("{words} --checkpoint-every 0");
        let whole = Small::new();
        whole.succeed(words);
        let small = Small::new();
        let stopped = format!("{out}.partial: interrupted; the progress is saved here");
        let stderr =
            signalled(&small, (out, words), |child| send(child, signal), |stderr| stderr.contains(&stopped));
        assert!(stderr.contains("give the same command again to continue"), "{stderr}");
        assert!(!is_complete(&small, out));
        let output = small.succeed(words);
        let going_on = format!("Continuing from the progress in \"{out}.partial\"");
        assert!(String::from_utf8_lossy(&output.stderr).contains(&going_on));
        assert!(result(&small, out) == result(&whole, out), "{words}");
    }
}

/// A second signal ends a run at once. The progress that was saved before stays valid, and no temporary file is left.
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
            stderr.contains("Saving the progress, then stopping")
                && !stderr.contains("interrupted; the progress")
        });
        assert!(leftovers(&small.path("")).is_empty(), "{words}: {:?}", leftovers(&small.path("")));
        small.succeed(words);
        assert!(result(&small, out) == result(&whole, out), "{words}");
    }
}

/// A run that is refused at its very end keeps its progress. Here the numbers do not fit their format.
#[test]
fn numbers_too_large_for_their_format_cost_no_progress() {
    let words = "init model.safetensors -a target -o out --rank 4 --start update --strength 1e12";
    let whole = Small::new();
    whole.succeed(words);
    let small = Small::new();
    small.refused(&format!("{words} --dtype f16"), 1, expect![[r#"
        3 layers at 2 sites, 787.2 kB of activations to read, about [size] of memory
        error: tensor "base_model.model.block.mlp.lora_A.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.mlp.lora_B.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.query.lora_A.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.query.lora_B.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.value.lora_A.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.value.lora_B.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        6 problems were found
    "#]]);
    let output = small.succeed(words);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("Continuing from the progress in \"out.partial\"")
    );
    assert!(small.bytes("out") == whole.bytes("out"));
}

/// A run that was refused because of a row that is not finite can be resumed with `--nonfinite skip-rows`. Progress that was made with
/// `skip-rows` cannot be resumed without it.
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
        error: target/2.safetensors: tensor "block.mlp": row 1899, column 23 is not a finite f32 number
          help: record these activations again, or skip such rows with --nonfinite skip-rows; `cntlora inspect --values` counts such numbers
    "#]]);
    let output = small.succeed(&format!("{words} --nonfinite skip-rows"));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("Continuing from the progress in \"t.m.partial\"")
    );
    // The two recordings are different files with different times, so only the adapters are compared.
    let sums = |small: &Small| {
        small.succeed("init model.safetensors --moments t.m -o out --rank 4");
        small.bytes("out")["adapter_model.safetensors"].clone()
    };
    assert!(sums(&small) == sums(&whole));

    leave_progress(&small, &format!("{words} --force --nonfinite skip-rows"), "t.m");
    small.refused(&format!("{words} --force"), 2, expect![[r#"
        2 sites, 787.2 kB of activations to read, about [size] of memory
        error: t.m.partial: contains the progress of another run: options.nonfinite was "skip-rows" and is now "refuse"
          help: give the options and inputs of that run to continue it, or --restart to start again
    "#]]);
}

/// Saved progress does not permit replacing another folder. A model that this run did not begin to write is replaced only with `--force`.
#[test]
fn progress_does_not_permit_replacing_another_model() {
    let small = Small::new();
    let words =
        "init model.safetensors -a target -o out --rank 4 --start residual --checkpoint-every 0 --base-out";
    fs::create_dir(small.path("other")).unwrap();
    fs::write(small.path("other/model.safetensors"), "mine").unwrap();
    leave_progress(&small, &format!("{words} b1"), "out");
    let commands = ["", " --restart"].map(|options| format!("{words} other{options}"));
    small.all_refused(commands, 2, expect![[r#"
        $ cntlora init model.safetensors -a target -o out --rank 4 --start residual --checkpoint-every 0 --base-out other
        error: other: output folder already contains an adapter or a model: "model.safetensors"
          help: choose another folder, or give --force to replace it
        $ cntlora init model.safetensors -a target -o out --rank 4 --start residual --checkpoint-every 0 --base-out other --restart
        error: other: output folder already contains an adapter or a model: "model.safetensors"
          help: choose another folder, or give --force to replace it
    "#]]);
    // The other model stays safe also after a run began to write its output.
    small.refused(&format!("{words} b1 --scale 1e-14 --dtype f16 --restart"), 1, expect![[r#"
        3 layers at 2 sites, 787.2 kB of activations to read, about [size] of memory
        error: tensor "base_model.model.block.mlp.lora_A.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.mlp.lora_B.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.query.lora_A.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.query.lora_B.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.value.lora_A.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.value.lora_B.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        6 problems were found
    "#]]);
    assert!(small.path("out.partial/writing").exists());
    let commands = ["", " --restart"].map(|options| format!("{words} other --scale 1e-14{options}"));
    small.all_refused(commands, 2, expect![[r#"
        $ cntlora init model.safetensors -a target -o out --rank 4 --start residual --checkpoint-every 0 --base-out other --scale 1e-14
        error: other: output folder already contains an adapter or a model: "model.safetensors"
          help: choose another folder, or give --force to replace it
        $ cntlora init model.safetensors -a target -o out --rank 4 --start residual --checkpoint-every 0 --base-out other --scale 1e-14 --restart
        error: other: output folder already contains an adapter or a model: "model.safetensors"
          help: choose another folder, or give --force to replace it
    "#]]);
    assert_eq!(fs::read(small.path("other/model.safetensors")).unwrap(), b"mine");
    small.succeed(&format!("{words} b1 --restart"));
}

/// Progress belongs to one recording. A run with another recording is refused with the difference, and needs `--restart`.
#[test]
fn progress_of_another_recording_is_refused_with_the_difference() {
    let small = Small::new();
    let words = "init model.safetensors -a target -o adapter --rank 4 --checkpoint-every 0";
    leave_progress(&small, words, "adapter");
    let refused = |options: &str, message: Expect| small.refused(&format!("{words} {options}"), 2, message);
    refused(
        "--source source",
        expect![[r#"
            3 layers at 2 sites, 1.6 MB of activations to read, about [size] of memory
            error: adapter.partial: contains the progress of another run: inputs.source.source/0.safetensors is new
              help: give the options and inputs of that run to continue it, or --restart to start again
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
            error: adapter.partial: contains the progress of another run: inputs.activations.target/1.safetensors.modified was "[time]" and is now "0"
              help: give the options and inputs of that run to continue it, or --restart to start again
        "#]],
    );
    small.succeed(&format!("{words} --force --restart"));
    assert!(!small.path("adapter.partial").exists());
}

/// A run never continues from damaged progress, or from progress of a later version. The message names the file or the version.
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
        1,
        expect![[r#"
            2 sites, 787.2 kB of activations to read, about [size] of memory
            Continuing from the progress in "t.m.partial"; --restart starts again
            error: t.m.partial/[sums]: tensor "[site]": checksum mismatch: the file is damaged
              help: remove this file to process its site again, or give --restart to start again
        "#]],
    );
    refused(
        &sums,
        halve,
        1,
        expect![[r#"
            2 sites, 787.2 kB of activations to read, about [size] of memory
            Continuing from the progress in "t.m.partial"; --restart starts again
            error: t.m.partial/[sums]: the file is truncated: its tensors have 2696 bytes, but [number] follow the header
              help: remove this file to process its site again, or give --restart to start again
        "#]],
    );
    refused(
        "job.json",
        halve,
        1,
        expect![[r#"
            2 sites, 787.2 kB of activations to read, about [size] of memory
            error: t.m.partial/job.json: invalid job file: EOF while parsing a value at line 27 column 0
              help: give --restart to start again
        "#]],
    );
    refused(
        "job.json",
        renew,
        2,
        expect![[r#"
            2 sites, 787.2 kB of activations to read, about [size] of memory
            error: t.m.partial: contains the progress of another run: version was 9 and is now 2
              help: give the options and inputs of that run to continue it, or --restart to start again
        "#]],
    );
    small.succeed(words);
}

/// Damaged layers are refused like damaged sums, and the run can begin again. Numbers that are too large for --dtype fail after all
/// layers were saved.
#[test]
fn damaged_layers_are_refused() {
    let small = Small::new();
    let words = "init model.safetensors -a target -o adapter --rank 4 --start residual --scale 1e-14";
    let refused = || small.run(&format!("{words} --dtype f16"));
    assert_eq!(refused().status.code(), Some(1));
    let layers = names(&small.path("adapter.partial"));
    let layers: Vec<_> = layers.iter().filter(|name| name.ends_with(".layers.safetensors")).collect();
    assert_eq!(layers.len(), 2);
    for name in &layers {
        let path = small.path(&format!("adapter.partial/{name}"));
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let output = refused();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    let told = "checksum mismatch: the file is damaged\n  help: remove this file to process its site again";
    assert!(stderr.contains(told) && stderr.contains(".layers.safetensors: "), "{stderr}");
    assert!(!stderr.contains("The progress is kept"), "{stderr}");
    small.succeed(&format!("{words} --restart"));
}

/// Two runs cannot write one output at the same time. The second run is refused.
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
            error: t.m.partial: another run is using this output
              help: wait until it ends, or choose another name for the output
        "#]],
    );
    small.refused(
        &format!("{words} --restart"),
        3,
        expect![[r#"
            2 sites, 787.2 kB of activations to read, about [size] of memory
            error: t.m.partial: another run is using this output
              help: wait until it ends, or choose another name for the output
        "#]],
    );
    lock.unlock().unwrap();
    small.succeed(words);
}
