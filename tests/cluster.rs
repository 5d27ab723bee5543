//! Tests of real launchers on one machine: a Slurm cluster of three nodes, and `mpirun`. These tests are in the slow set and need the
//! MiniLM data. A test prints a message and is skipped if its programs are not installed.
//!
//! ```text
//! apt-get install slurmctld slurmd slurm-client munge openmpi-bin
//! CNTLORA_MINILM=../shared/minilm cargo test --test cluster -- --ignored --nocapture
//! ```
//!
//! Only root can start the daemons. They keep all files in a temporary folder and end with the test.

use cntlora::moments_file::MomentsSet;
use cntlora::storage::Access;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The time limit of each wait.
const PATIENCE: Duration = Duration::from_secs(180);

#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(50));
    }
}

/// True if all programs are installed. Prints the missing programs.
fn installed(programs: &[&str]) -> bool {
    let there = |program: &&str| {
        let search = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
        search.is_ok_and(|output| output.status.success())
    };
    let missing: Vec<_> = programs.iter().filter(|program| !there(program)).collect();
    if !missing.is_empty() {
        println!("skipped: not installed: {missing:?}");
    }
    missing.is_empty()
}

/// A temporary folder for commands that use the tool and the data.
struct Work {
    folder: TempDir,
    data: PathBuf,
}

impl Work {
    fn new() -> Self {
        let data = std::env::var_os("CNTLORA_MINILM").expect("CNTLORA_MINILM names the folder with the data");
        let data = fs::canonicalize(data).expect("the data are there");
        Self { folder: tempfile::tempdir().expect("a temporary folder"), data }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns a command that runs in the folder, with the tool in the search path. The words `MODEL` and `ACTIVATIONS` stand for the
    /// paths of the data.
    fn command(&self, program: &str, words: &str) -> Command {
        let tool = Path::new(env!("CARGO_BIN_EXE_cntlora")).parent().expect("the tool is in a folder");
        let path = format!("{}:{}", tool.display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(program);
        let data = |word: &str| match word {
            "MODEL" => self.data.join("model").display().to_string(),
            "ACTIVATIONS" => self.data.join("activations").display().to_string(),
            other => other.to_owned(),
        };
        command.args(words.split_whitespace().map(data)).env("PATH", path).current_dir(self.folder.path());
        command
    }

    fn run(&self, program: &str, words: &str) -> Output {
        self.command(program, words).output().expect("the program starts")
    }

    /// Runs a program that must succeed. Returns its standard output.
    #[track_caller]
    fn succeed(&self, program: &str, words: &str) -> String {
        let output = self.run(program, words);
        assert!(output.status.success(), "{program} {words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("the file is there")
    }

    /// Writes activations of 200 000 rows of 384 numbers.
    fn write_long(&self, name: &str) {
        let header = "{'descr': '<f2', 'fortran_order': False, 'shape': (200000, 384), }";
        let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        bytes.extend(format!("{header:117}\n").bytes());
        let mut state = 1u32;
        for _ in 0..200_000 * 384 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Each number is finite, has either sign, and is below 2 in magnitude.
            bytes.extend((((state >> 16) & 0xbfff) as u16).to_le_bytes());
        }
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("it has a folder")).expect("the folder can be made");
        fs::write(path, bytes).expect("the file can be written");
    }

    /// Measures the parts one after another, without a launcher. Writes `alone-N.moments.safetensors`, and the adapter from it in
    /// `alone-N`.
    fn alone(&self, parts: usize) {
        for index in 0..parts {
            self.succeed(
                "cntlora",
                &format!("moments ACTIVATIONS --shard {index}/{parts} --out alone-{parts}.parts"),
            );
        }
        let moments = format!("alone-{parts}.moments.safetensors");
        self.succeed("cntlora", &format!("merge alone-{parts}.parts --out {moments}"));
        self.succeed("cntlora", &format!("init MODEL --moments {moments} --out alone-{parts} --rank 4"));
    }

    /// Checks that the moments of a file agree with the moments of an undivided measurement. The tolerance is 1e-12 of the largest
    /// value of the same kind.
    fn agrees_with_the_whole(&self, name: &str) {
        let whole = self.path("whole.moments.safetensors");
        if !whole.exists() {
            self.succeed("cntlora", "moments ACTIVATIONS --out whole.moments.safetensors");
        }
        let open = |path: PathBuf| MomentsSet::open(&[path], Access::Auto).expect("a moments file");
        let (parts, whole) = (open(self.path(name)), open(whole));
        assert_eq!(parts.content().sites, whole.content().sites);
        for site in whole.content().sites.keys() {
            let (parts, whole) = (parts.read(site).expect("moments"), whole.read(site).expect("moments"));
            assert_eq!(parts.count(), whole.count());
            for (a, b) in [(parts.sum(), whole.sum()), (parts.gram_triangle(), whole.gram_triangle())] {
                let largest = b.iter().fold(0.0f64, |largest, b| largest.max(b.abs()));
                let error = a.iter().zip(b).fold(0.0f64, |error, (a, b)| error.max((a - b).abs()));
                assert!(error <= 1e-12 * largest, "{site}: {error} of {largest}");
            }
        }
    }
}

/// Daemons that end with the test.
struct Cluster {
    daemons: Vec<Child>,
    configuration: PathBuf,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for daemon in self.daemons.iter_mut().rev() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

impl Cluster {
    /// Starts munge, the controller, and three nodes with one processor each. They write all files into one folder.
    fn start(work: &Work) -> Self {
        let folder = work.path("slurm");
        fs::create_dir_all(folder.join("state")).expect("a folder");
        let here = folder.display();
        let host = work.succeed("hostname", "-s");
        let host = host.trim();
        // These ports avoid the ports of other tests, and of a cluster that this machine may belong to.
        let port = 20_000 + std::process::id() % 10_000 * 4;
        let configuration = folder.join("slurm.conf");
        let text = format!(
            "ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser=root\nSlurmdUser=root\n\
             AuthType=auth/munge\nAuthInfo=socket={here}/munge.socket\nCredType=cred/munge\n\
             SlurmctldPort={port}\nStateSaveLocation={here}/state\nSlurmdSpoolDir={here}/spool.%n\n\
             SlurmctldPidFile={here}/slurmctld.pid\nSlurmdPidFile={here}/slurmd.%n.pid\n\
             SlurmctldLogFile={here}/slurmctld.log\nSlurmdLogFile={here}/slurmd.%n.log\n\
             ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nMpiDefault=none\nReturnToService=2\n\
             SelectType=select/cons_tres\nSelectTypeParameters=CR_Core\n\
             SchedulerParameters=sched_interval=1,batch_sched_delay=0\n\
             NodeName=n[1-3] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{}-{}] CPUs=1 State=UNKNOWN\n\
             PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n",
            port + 1,
            port + 3
        );
        fs::write(&configuration, text).expect("the folder can be written to");
        let key = folder.join("munge.key");
        fs::write(&key, [7; 1024]).expect("the folder can be written to");
        work.succeed("chmod", &format!("400 {}", key.display()));

        let mut cluster = Self { daemons: Vec::new(), configuration };
        cluster.daemon(work, "munged", &format!(
            "--force --foreground --key-file={here}/munge.key --socket={here}/munge.socket --pid-file={here}/munge.pid \
             --log-file={here}/munge.log --seed-file={here}/munge.seed"
        ));
        wait_until("munge", || folder.join("munge.socket").exists());
        let configuration = cluster.configuration.display().to_string();
        cluster.daemon(work, "slurmctld", &format!("-D -c -f {configuration}"));
        for node in ["n1", "n2", "n3"] {
            cluster.daemon(work, "slurmd", &format!("-D -N {node} -f {configuration}"));
        }
        wait_until("three idle nodes", || {
            let nodes = cluster.command(work, "sinfo", "-h -o %T:%D").output().expect("sinfo starts");
            String::from_utf8_lossy(&nodes.stdout).contains("idle:3")
        });
        cluster
    }

    fn daemon(&mut self, work: &Work, program: &str, words: &str) {
        let mut command = self.command(work, program, words);
        let daemon = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.daemons.push(daemon.expect("the daemon starts"));
    }

    fn command(&self, work: &Work, program: &str, words: &str) -> Command {
        let mut command = work.command(program, words);
        command.env("SLURM_CONF", &self.configuration);
        command
    }

    #[track_caller]
    fn succeed(&self, work: &Work, program: &str, words: &str) -> String {
        let output = self.command(work, program, words).output().expect("the program starts");
        assert!(output.status.success(), "{program} {words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    /// Waits until no job is waiting or running.
    fn wait_for_jobs(&self, work: &Work) {
        wait_until("all jobs", || self.succeed(work, "squeue", "-h").is_empty());
    }
}

const SLURM: [&str; 7] = ["slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol", "scancel"];

/// Slurm runs the generated script for several numbers of parts. The result has the same bits as parts that are measured without
/// Slurm. If one part is killed, `merge` names the missing part, and a requeue measures only this part again.
#[test]
#[ignore = "slow set: needs the MiniLM data and Slurm, see the head of this file"]
fn slurm_gives_the_same_bits_as_one_process() {
    if !installed(&SLURM) {
        return;
    }
    let work = Work::new();
    let cluster = Cluster::start(&work);
    for parts in [1, 2, 3, 8] {
        work.alone(parts);
        let out = format!("slurm-{parts}");
        let words =
            format!("generate slurm MODEL --activations ACTIVATIONS --out {out} --parts {parts} -- --rank 4");
        fs::write(work.path("job.sh"), work.succeed("cntlora", &words))
            .expect("the folder can be written to");
        cluster.succeed(&work, "sh", "job.sh");
        cluster.wait_for_jobs(&work);
        let moments = format!("{out}.target.moments.safetensors");
        assert!(
            work.bytes(&moments) == work.bytes(&format!("alone-{parts}.moments.safetensors")),
            "{parts} parts"
        );
        for file in ["adapter_model.safetensors", "adapter_config.json"] {
            let bytes = |folder: &str| work.bytes(&format!("{folder}/{file}"));
            assert!(bytes(&out) == bytes(&format!("alone-{parts}")), "{file} of {parts} parts");
        }
        work.agrees_with_the_whole(&moments);
        println!("Slurm, {parts} parts: the bits of one process");
    }

    // These activations take long enough that the job can be killed while it runs.
    work.write_long("long/site.npy");
    fs::write(
        work.path("measure.sh"),
        "#!/bin/sh\nexec cntlora moments long --shard auto --out killed --checkpoint-every 0 --threads 1\n",
    )
    .expect("the folder can be written to");
    let job = cluster.succeed(&work, "sbatch", "--parsable --array=0-2 --requeue measure.sh");
    let saved = work.path("killed/part-00001-of-00003.moments.safetensors.partial");
    wait_until("progress of the second part", || {
        let names = fs::read_dir(&saved).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.into_iter().any(|name| name.to_string_lossy().ends_with(".moments.safetensors"))
    });
    cluster.succeed(&work, "scancel", &format!("--full --signal=KILL {job}_1"));
    cluster.wait_for_jobs(&work);
    assert!(saved.exists(), "it was killed before it had ended");
    let refused = work.run("cntlora", "merge killed --out killed.moments.safetensors");
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("1 of 3 parts missing (numbered from 0): 1"), "{stderr}");
    cluster.succeed(&work, "scontrol", &format!("requeue {job}_1"));
    // Without this update, Slurm waits for two minutes.
    cluster.succeed(&work, "scontrol", &format!("update JobId={job}_1 StartTime=now"));
    cluster.wait_for_jobs(&work);
    work.succeed("cntlora", "merge killed --out killed.moments.safetensors");
    for index in 0..3 {
        work.succeed("cntlora", &format!("moments long --shard {index}/3 --out long.parts"));
    }
    work.succeed("cntlora", "merge long.parts --out long.moments.safetensors");
    assert!(work.bytes("killed.moments.safetensors") == work.bytes("long.moments.safetensors"));
    println!("Slurm, one part killed and requeued: the same bits");
}

/// `mpirun` starts one process for each part. The result has the same bits as parts that are measured without `mpirun`.
#[test]
#[ignore = "slow set: needs the MiniLM data and mpirun, see the head of this file"]
fn mpirun_gives_the_same_bits_as_one_process() {
    if !installed(&["mpirun"]) {
        return;
    }
    let work = Work::new();
    for parts in [1, 2, 3, 8] {
        work.alone(parts);
        let words = format!(
            "--allow-run-as-root --oversubscribe -n {parts} cntlora moments ACTIVATIONS --shard auto --out mpi-{parts} --threads 1"
        );
        work.succeed("mpirun", &words);
        work.succeed("cntlora", &format!("merge mpi-{parts} --out mpi.moments.safetensors --force"));
        assert!(
            work.bytes("mpi.moments.safetensors")
                == work.bytes(&format!("alone-{parts}.moments.safetensors"))
        );
        work.agrees_with_the_whole("mpi.moments.safetensors");
        println!("mpirun, {parts} parts: the bits of one process");
    }
}
