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
use progress::leave_progress;
use rustix::process::{Pid, Signal, kill_process};
use small::{Small, names};
use std::fs;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Every way to measure: one kind of activations, both, and pairs; and a run that writes a base as well.
const JOBS: [(&str, &str); 4] = [
    ("adapter", "init model.safetensors -a target -o adapter --rank 4 --threads 2"),
    ("base", "init model.safetensors -a target --source source -o base --rank 4 --start residual"),
    ("paired", "init model.safetensors -a target --source source -o paired --rank 4 --coupling paired"),
    ("t.moments.safetensors", "moments target -o t.moments.safetensors"),
];

fn is_complete(small: &Small, out: &str) -> bool {
    let path = small.path(out);
    path.is_file() || path.join("adapter_config.json").is_file()
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
            assert!(small.bytes(out) == whole.bytes(out), "{words}: other bytes after {kills} kills");
            assert!(!small.path(&format!("{out}.partial")).exists());
            let path = small.path(out);
            if path.is_dir() {
                assert!(names(&path).iter().all(|name| !name.contains(".tmp")), "{:?}", names(&path));
                fs::remove_dir_all(path).unwrap();
            } else {
                fs::remove_file(path).unwrap();
            }
            assert_eq!(names(&small.path("")), ["model.safetensors", "source", "target"], "{words}");
        }
    }
    assert!(saved >= 20, "only {saved} of the kills left something to go on from");
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
                fs::write(partial.join("writing"), "").unwrap();
            }
        };
        unfinished(false);
        small.refused(&words, 2, "--force");
        unfinished(true);
        let other = format!("{words} --nonfinite skip-rows");
        small.refused(&other, 2, "holds the progress of another run");
        small.succeed(&words);
        assert!(small.bytes(out) == complete && !partial.exists());
        small.refused(&words, 2, "--force");
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

/// SIGTERM ends a run after the block that it is at, with its progress saved whatever the interval.
#[test]
fn terminated_runs_save_and_say_so() {
    let (out, words) = JOBS[0];
    let whole = Small::new();
    whole.succeed(words);
    let small = Small::new();
    for attempt in 0.. {
        assert!(attempt < 100, "every run ended before the signal came");
        let mut command = small.command(words);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let job = small.path("adapter.partial/job.json");
        while !job.exists() && !is_complete(&small, out) {
            sleep(Duration::from_micros(200));
        }
        // Without effect on a run that has ended.
        let _ = kill_process(Pid::from_child(&child), Signal::TERM);
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        if output.status.code() == Some(130)
            && stderr.contains("adapter.partial: stopped before it was finished")
        {
            assert!(stderr.contains("give the same command again to go on"), "{stderr}");
            break;
        }
        let _ = fs::remove_dir_all(small.path(out));
        let _ = fs::remove_dir_all(small.path("adapter.partial"));
    }
    assert!(!is_complete(&small, out));
    let output = small.succeed(words);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("Going on from the progress in \"adapter.partial\"")
    );
    assert!(small.bytes(out) == whole.bytes(out));
}

/// Progress is of one job: others are refused by what differs, and go on only when they begin anew.
#[test]
fn progress_of_another_job_is_refused_by_name() {
    let small = Small::new();
    let words = "init model.safetensors -a target -o adapter --rank 4 --checkpoint-every 0";
    leave_progress(&small, words, "adapter");
    let refused = |options: &str, difference: &str| {
        let words = format!("{words} {options}");
        small.refused(
            &words,
            2,
            &format!("adapter.partial: holds the progress of another run: {difference}"),
        );
    };
    refused("--ridge 0.5", "options.method.ridge was 0.01, and is 0.5 now");
    refused("--nonfinite skip-rows", "options.nonfinite was \"refuse\", and is \"skip-rows\" now");
    refused("--exclude mlp", "sites.block.mlp is missing now");
    refused("--source source", "inputs.source.source/0.safetensors was not there");
    small.succeed(&format!("{words} --dtype bf16 --threads 1"));
    assert!(!small.path("adapter.partial").exists());

    leave_progress(&small, &format!("{words} --force"), "adapter");
    let touched = fs::File::options().append(true).open(small.path("target/1.safetensors")).unwrap();
    touched.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    refused("--force", "inputs.activations.target/1.safetensors.modified was");
    small.succeed(&format!("{words} --force --restart"));
    assert!(!small.path("adapter.partial").exists());
}

/// Damaged progress is told by name, never gone on from.
#[test]
fn damaged_progress_is_refused() {
    let small = Small::new();
    let words = "moments target -o t.m --checkpoint-every 0";
    leave_progress(&small, words, "t.m");
    let folder = small.path("t.m.partial");
    let saved = names(&folder).into_iter().find(|name| name.ends_with(".moments.safetensors")).unwrap();
    let mut bytes = fs::read(folder.join(&saved)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(folder.join(&saved), bytes).unwrap();
    let output = small.run(words);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(
        stderr.contains("their hash is another") && stderr.contains("remove this file to do its site again"),
        "{stderr}"
    );
    assert!(folder.exists(), "the rest is still good");
    fs::remove_file(folder.join(&saved)).unwrap();
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
    small.refused(words, 3, "t.m.partial: another run is at work on this output");
    small.refused(&format!("{words} --restart"), 3, "another run is at work");
    lock.unlock().unwrap();
    small.succeed(words);
}
