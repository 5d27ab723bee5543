//! Kills of the commands that replace an adapter. Each kill leaves a whole adapter: the old one or the new one.
//!
//! A debug build of the tool sends itself a signal before a chosen operation on a file (see `src/storage/faults.rs`). Other kills come
//! at random moments.

#[allow(dead_code, reason = "this test needs few of them")]
mod small;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use small::Small;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The commands that replace an adapter.
const COMMANDS: [&str; 3] = ["init", "convert", "merge"];

/// The ways of writing an adapter, with their options.
const WAYS: [(&str, &str); 8] = [
    ("peft", "--start mirrored"),
    ("kohya", "--start mirrored --format kohya --component unet"),
    ("diffusers", "--start mirrored --format diffusers --component unet"),
    ("base", "--start residual"),
    ("diffusers-base", "--start residual --format diffusers --component unet"),
    ("anchor", "--start residual --residual anchor"),
    ("kohya-anchor", "--start residual --residual anchor --format kohya --component unet"),
    ("base-elsewhere", "--start residual --base-out changed"),
];

/// The place of the output, and the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Folder,
    /// The folder is the current one, so that it cannot be renamed.
    Here,
    /// The file system cannot exchange folders.
    WithoutExchange,
}

/// Two commands that replace the same adapter, alternately.
struct Case {
    command: &'static str,
    ways: [&'static str; 2],
    place: Place,
}

impl Case {
    const fn new(command: &'static str, ways: [&'static str; 2], place: Place) -> Self {
        Self { command, ways, place }
    }

    fn name(&self) -> String {
        format!("{}-{}-{}-{:?}", self.command, self.ways[0], self.ways[1], self.place)
    }
}

/// All commands with all ways of writing, and with changes between them.
fn all_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for command in COMMANDS {
        // Convert does not write a base or an anchor.
        let ways = WAYS.into_iter().take(if command == "convert" { 3 } else { WAYS.len() });
        cases.extend(ways.map(|(way, _)| Case::new(command, [way, way], Place::Folder)));
        let changes = if command == "convert" { ["peft", "kohya"] } else { ["base", "kohya-anchor"] };
        let places = [Place::Folder, Place::Here, Place::WithoutExchange];
        cases.extend(places.map(|place| Case::new(command, changes, place)));
    }
    cases
}

/// The files of an output by their paths, without those of others. The report is represented by its command line, because it contains
/// times.
type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// The inputs of all commands, and a folder for each case.
struct Inputs {
    small: Small,
}

impl Inputs {
    fn new() -> Self {
        let small = Small::new();
        small.succeed("moments target -o m.moments.safetensors");
        let inputs = Self { small };
        let root = inputs.small.path("");
        for (way, options) in WAYS {
            for rank in RANKS {
                let init = format!("{} -o parts-{way}-{rank} --shard 0/1", inputs.init(options, rank));
                inputs.run(&root, &init);
            }
        }
        inputs.run(&root, &format!("{} -o trained", inputs.init("", 4)));
        inputs
    }

    /// The words of a command that computes an adapter.
    fn init(&self, options: &str, rank: usize) -> String {
        let [model, moments] =
            ["model.safetensors", "m.moments.safetensors"].map(|name| self.small.path(name));
        let (model, moments) = (model.display(), moments.display());
        format!("init {model} --moments {moments} --rank {rank} --threads 1 {options}")
    }

    /// The words of both commands of a case.
    fn commands(&self, case: &Case) -> [String; 2] {
        let out = if case.place == Place::Here { "." } else { "out" };
        let options = |way: &str| WAYS.into_iter().find(|(name, _)| *name == way).unwrap().1;
        let words = |index: usize| {
            let (way, rank) = (case.ways[index], RANKS[index]);
            match case.command {
                "init" => format!("{} --restart", self.init(options(way), rank)),
                "merge" => format!("merge {}", self.small.path(&format!("parts-{way}-{rank}")).display()),
                _ => {
                    let options = options(way).trim_start_matches("--start mirrored");
                    format!("convert {} --rank {rank} {options}", self.small.path("trained").display())
                }
            }
        };
        [0, 1].map(|index| format!("{} -o {out} --force", words(index)))
    }

    fn command(&self, folder: &Path, words: &str) -> Command {
        let mut command = self.small.command(words);
        command.current_dir(folder).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Runs the tool, which must succeed.
    fn run(&self, folder: &Path, words: &str) {
        let output = self.command(folder, words).output().unwrap();
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The ranks of the two adapters that replace each other.
const RANKS: [usize; 2] = [2, 4];

/// The files of the user in the output folder.
const MINE: [&str; 3] = ["README.md", "checkpoint-1/optimizer.pt", "checkpoint-1/deep/state"];

/// A case with its folder. One of its two adapters is in place, or was until the last kill.
struct Scene<'a> {
    inputs: &'a Inputs,
    case: Case,
    folder: PathBuf,
    out: PathBuf,
    commands: [String; 2],
    /// The adapters, each with its base in another folder.
    adapters: [[Tree; 2]; 2],
    /// The index of the adapter in place.
    current: usize,
    kills: usize,
    /// Kills that left the old adapter, the new one, and one that the next run puts in place.
    left: [usize; 3],
    state: u64,
}

fn tree(root: &Path) -> Tree {
    let mut found = Tree::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_owned();
            let text = name.to_str().unwrap();
            if MINE.contains(&text) || text.contains("cntlora.tmp") || text.starts_with("cntlora.partial") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = fs::read(&path).unwrap();
                let is_report = text == "report.json";
                found.insert(name, if is_report { command_of(&bytes) } else { bytes });
            }
        }
    }
    found
}

/// The command line in a report.
fn command_of(report: &[u8]) -> Vec<u8> {
    let report: Value = serde_json::from_slice(report).unwrap();
    report["command"].as_str().unwrap().into()
}

impl<'a> Scene<'a> {
    fn new(inputs: &'a Inputs, case: Case) -> Self {
        let folder = inputs.small.path(&format!("case-{}", case.name()));
        let out = folder.join("out");
        for name in MINE {
            let path = out.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        let commands = inputs.commands(&case);
        let seed = case.name().bytes().map(u64::from).sum();
        let mut scene = Self {
            inputs,
            case,
            folder,
            out,
            commands,
            adapters: Default::default(),
            current: 1,
            kills: 0,
            left: [0; 3],
            state: seed,
        };
        for index in [0, 1] {
            scene.finish(index);
            scene.adapters[index] = scene.found();
            assert!(scene.adapters[index][0].len() > 1, "{}", scene.commands[index]);
        }
        assert_ne!(scene.adapters[0][0], scene.adapters[1][0]);
        scene
    }

    /// The folder in which the commands run.
    fn current_folder(&self) -> &Path {
        if self.case.place == Place::Here { &self.out } else { &self.folder }
    }

    fn command(&self, index: usize) -> Command {
        let mut command = self.inputs.command(self.current_folder(), &self.commands[index]);
        if self.case.place == Place::WithoutExchange {
            command.env("CNTLORA_TEST_NO_EXCHANGE", "1");
        }
        command
    }

    /// The adapter in place, and the base in another folder.
    fn found(&self) -> [Tree; 2] {
        [tree(&self.out), tree(&self.folder.join("changed"))]
    }

    /// Runs a command to its end. Nothing of earlier runs is left then.
    fn finish(&mut self, index: usize) {
        let output = self.command(index).output().unwrap();
        let words = &self.commands[index];
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        self.current = index;
        if !self.adapters[index][0].is_empty() {
            assert!(self.found() == self.adapters[index], "{words}: {:?}", self.found()[0].keys());
        }
        assert!(self.left_behind().is_empty(), "{words}: {:?}", self.left_behind());
        let names = small::names(&self.folder);
        assert!(names.iter().all(|name| ["out", "changed"].contains(&&**name)), "{words}: {names:?}");
        for name in MINE {
            assert_eq!(fs::read_to_string(self.out.join(name)).unwrap(), name, "{words}: {name}");
        }
    }

    /// The temporary files and folders, and the files of the user that are not in their place.
    fn left_behind(&self) -> BTreeSet<String> {
        let names = |folder: &Path| small::names(folder).into_iter().filter(|name| name.contains(".tmp"));
        let missing = MINE.into_iter().filter(|name| !self.out.join(name).exists()).map(str::to_owned);
        let within = self.out.exists().then(|| names(&self.out));
        names(&self.folder).chain(within.into_iter().flatten()).chain(missing).collect()
    }

    /// The operations of the next command: all of them, and the number of the first one that may change the old adapter.
    fn steps(&mut self) -> (usize, usize) {
        let list = self.folder.join("steps");
        let next = 1 - self.current;
        let status = self.command(next).env("CNTLORA_TEST_STEPS", &list).status().unwrap();
        assert!(status.success());
        self.current = next;
        let text = fs::read_to_string(&list).unwrap();
        fs::remove_file(list).unwrap();
        let steps: Vec<&str> = text.lines().collect();
        let last = steps.iter().rposition(|step| step.starts_with("Create ") && !step.ends_with("/plan"));
        (steps.len(), last.unwrap())
    }

    /// Runs the next command, kills it at an operation, and checks what is left.
    fn kill_at(&mut self, signal: &str, step: usize) {
        let place = format!("{}: {signal} at operation {step}", self.case.name());
        let before = self.left_behind();
        let mut command = self.command(1 - self.current);
        let status = command.env("CNTLORA_TEST_KILL", format!("{signal}:{step}")).status().unwrap();
        self.check(status, signal == "KILL", &before, &place);
    }

    /// Runs the next command, and kills it at a random moment of its usual time.
    fn kill_at_random(&mut self, duration: Duration) {
        let moment = duration.mul_f64(random(&mut self.state));
        let kill = random(&mut self.state) < 0.5;
        let place = format!("{}: {} after {moment:?}", self.case.name(), if kill { "KILL" } else { "TERM" });
        let before = self.left_behind();
        let mut command = self.command(1 - self.current);
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        sleep(moment);
        let _ = kill_process(Pid::from_child(&child), if kill { Signal::KILL } else { Signal::TERM });
        let status = child.wait().unwrap();
        self.check(status, kill, &before, &place);
    }

    /// Checks what a run left. `before` is what was left behind before it.
    fn check(&mut self, status: ExitStatus, killed: bool, before: &BTreeSet<String>, place: &str) {
        let ended = matches!(status.code(), Some(0 | 130)) || status.signal().is_some();
        assert!(ended, "{place}: {status}");
        self.kills += 1;
        let next = 1 - self.current;
        let found = self.found();
        assert!(
            self.out.join(MINE[0]).exists() || !self.out.exists(),
            "{place}: a file of the user is missing"
        );
        if !killed {
            // A signal can come before the run removes what an earlier one left behind.
            let left = self.left_behind();
            assert!(left.is_subset(before), "{place}: {left:?}");
        }
        if found == self.adapters[self.current] {
            self.left[0] += 1;
        } else if found == self.adapters[next] {
            self.left[1] += 1;
            self.current = next;
        } else {
            assert!(killed, "{place}: no whole adapter is left: {:?}", found[0].keys());
            self.left[2] += 1;
            self.check_left_to_the_next_run(&found, place);
            self.finish(next);
        }
    }

    /// Checks a state that only the next run completes, or that only `verify` refuses.
    fn check_left_to_the_next_run(&self, found: &[Tree; 2], place: &str) {
        let next = 1 - self.current;
        let container = |folder: &Path, prefix: &str| {
            let mut names = small::names(folder).into_iter().filter(|name| name.starts_with(prefix));
            names.next().map(|name| folder.join(name))
        };
        match self.case.place {
            Place::WithoutExchange => {
                let old = container(&self.folder, ".out.tmp").unwrap().join("old");
                assert!(!self.out.exists() && tree(&old) == self.adapters[self.current][0], "{place}");
                let output = self.inputs.command(&self.folder, "verify out").output().unwrap();
                let stderr = String::from_utf8_lossy(&output.stderr);
                assert!(stderr.contains("give its command again, or rename"), "{place}: {stderr}");
            }
            Place::Here => {
                let plan = container(&self.out, ".cntlora.tmp").map(|container| container.join("plan"));
                assert!(plan.is_some_and(|plan| plan.exists()), "{place}: no plan");
            }
            Place::Folder => {
                let pair = [&self.adapters[self.current][0], &self.adapters[next][1]];
                assert!(self.case.ways[0] == "base-elsewhere", "{place}: no whole adapter is left");
                assert!(pair == [&found[0], &found[1]], "{place}: neither pair nor new base");
                let output = self.inputs.command(&self.folder, "verify out --base changed").output().unwrap();
                let stderr = String::from_utf8_lossy(&output.stderr);
                assert!(stderr.contains("written together with another adapter"), "{place}: {stderr}");
            }
        }
    }
}

/// Returns the next random number below 1.
fn random(state: &mut u64) -> f64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 11) as f64 / (1u64 << 53) as f64
}

const SIGNALS: [&str; 4] = ["KILL", "TERM", "INT", "HUP"];

/// Works on the cases in two threads. Returns the number of kills by command.
fn each_case(
    inputs: &Inputs,
    cases: Vec<Case>,
    work: impl Fn(&mut Scene<'_>) + Sync,
) -> BTreeMap<&'static str, usize> {
    let cases: Vec<Mutex<Option<Case>>> = cases.into_iter().map(|case| Mutex::new(Some(case))).collect();
    let (next, kills) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let worker = || {
        while let Some(case) = cases.get(next.fetch_add(1, SeqCst)) {
            let case = case.lock().unwrap().take().unwrap();
            let begun = Instant::now();
            let mut scene = Scene::new(inputs, case);
            work(&mut scene);
            scene.finish(1 - scene.current);
            let [old, new, later] = scene.left;
            println!(
                "{}: {} kills in {:.1} s left {old} old and {new} new adapters, and {later} for the next run",
                scene.case.name(),
                scene.kills,
                begun.elapsed().as_secs_f64()
            );
            *kills.lock().unwrap().entry(scene.case.command).or_insert(0) += scene.kills;
        }
    };
    std::thread::scope(|scope| {
        let threads = [(); 2].map(|()| scope.spawn(worker));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    kills.into_inner().unwrap()
}

/// Kills at operations of the commit, for each command and each way of replacing a folder.
#[test]
fn a_kill_at_an_operation_of_the_commit_leaves_a_whole_adapter() {
    let inputs = Inputs::new();
    let cases = vec![
        Case::new("init", ["base", "kohya-anchor"], Place::Folder),
        Case::new("init", ["base-elsewhere", "base-elsewhere"], Place::Folder),
        Case::new("convert", ["peft", "kohya"], Place::WithoutExchange),
        Case::new("merge", ["diffusers", "peft"], Place::Here),
    ];
    let kills = each_case(&inputs, cases, |scene| {
        let (steps, commit) = scene.steps();
        for (step, signal) in (commit..steps).zip(SIGNALS.into_iter().cycle()) {
            scene.kill_at("KILL", step);
            if signal != "KILL" {
                scene.kill_at(signal, step);
            }
        }
    });
    assert!(kills.values().all(|&kills| kills > 20), "{kills:?}");
}

/// 1000 kills of each command: by signals at every operation of the commit, at operations before it, and at random moments.
#[test]
#[ignore = "takes some minutes"]
fn a_thousand_kills_of_each_command_leave_whole_adapters() {
    let inputs = Inputs::new();
    let count = |command| all_cases().iter().filter(|case| case.command == command).count();
    let kills = each_case(&inputs, all_cases(), |scene| {
        let (steps, commit) = scene.steps();
        for step in (0..commit).step_by(8) {
            scene.kill_at("KILL", step);
            scene.kill_at(SIGNALS[1 + step / 8 % 3], step);
        }
        for step in commit..steps {
            SIGNALS.into_iter().for_each(|signal| scene.kill_at(signal, step));
        }
        let begun = Instant::now();
        scene.finish(1 - scene.current);
        let duration = begun.elapsed();
        let wanted = 1000usize.div_ceil(count(scene.case.command)).max(scene.kills + 10);
        while scene.kills < wanted {
            scene.kill_at_random(duration);
        }
    });
    println!("kills: {kills:?}");
    assert!(COMMANDS.iter().all(|command| kills[command] >= 1000), "{kills:?}");
}
