//! The memory that the system leaves to this process: its own limits (`ulimit`), and those of its control groups.
//!
//! A limit on address space counts reserved memory, whether it is used or not. Each thread reserves a stack, an arena of the allocator,
//! and the workspace of the linear algebra. A limit of a control group counts only memory that is used.

use super::terminal::Terminal;
use crate::dense::workspace;
use crate::plan::Room;
use crate::storage::{Problem, visible};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

const MEBIBYTE: u64 = 1 << 20;

/// The stack of a thread.
const STACK: u64 = 2 * MEBIBYTE;
/// Address space that glibc's allocator reserves for a thread. Other allocators reserve none.
const ARENA: u64 = if cfg!(target_env = "gnu") { 64 * MEBIBYTE } else { 0 };
/// Memory of the program itself.
const PROGRAM: u64 = 64 * MEBIBYTE;

/// The number of threads to use if the user asks for `threads`, and the memory that the system leaves to them.
pub(crate) fn of_run(threads: usize, terminal: &Terminal) -> (usize, Option<Room>) {
    let processors = available_parallelism().map_or(threads, usize::from);
    let (used, warning) = useful(threads, processors);
    if let Some(warning) = warning {
        terminal.warning(&warning);
    }
    (used, room(used))
}

/// The number of threads to use on these processors, with a warning if it is too large. The result is the same for any number. A few
/// threads too many cost little, and the user may have a reason for them.
pub(crate) fn useful(threads: usize, processors: usize) -> (usize, Option<String>) {
    /// Threads for each processor.
    const MOST: usize = 4;
    let used = threads.min(MOST.saturating_mul(processors));
    if threads <= processors {
        return (used, None);
    }
    let waiting = match used < threads {
        true => format!("only {used} threads are used, and they will wait for each other"),
        false => "threads will wait for each other".into(),
    };
    let more =
        format!("--threads {threads} is more than the {processors} processors that this process may use");
    (used, Some(format!("{more}: {waiting}")))
}

/// The memory that the system leaves to work with this number of threads. `None` if the system sets no limit.
pub(crate) fn room(threads: usize) -> Option<Room> {
    of_system(threads as u64, &|path| fs::read_to_string(path).ok())
}

/// Refuses work of the main thread that the system leaves too little memory for. `bytes` are those that grow with the files.
///
/// # Errors
/// A problem of the environment with the numbers.
pub(crate) fn refuse_below(bytes: u64) -> Result<(), Problem> {
    let needed = bytes.saturating_add(PROGRAM);
    match room(0) {
        Some(Room { bytes, limit, help }) if bytes < needed => {
            let needed = needed.div_ceil(MEBIBYTE);
            Err(Problem::environment(format!("this needs about {needed} MiB of memory, but {limit}"))
                .help(help))
        }
        _ => Ok(()),
    }
}

/// Reads a file of the system.
type Read<'a> = &'a dyn Fn(&Path) -> Option<String>;

fn of_system(threads: u64, read: Read<'_>) -> Option<Room> {
    // Every thread that works can have two that read for it, and two more open the files of a run.
    let all = threads.saturating_mul(3).saturating_add(2);
    let kept =
        || threads.saturating_add(1).saturating_mul(workspace()).saturating_add(all.saturating_mul(STACK));
    let mapped = || kept().saturating_add(all.saturating_mul(ARENA));
    let fewer = if threads > 1 { ", or give fewer --threads" } else { "" };
    let own = [
        own_limit(
            "address space",
            "VmSize:",
            &mapped,
            read,
            format!("raise the limit with `ulimit -v`{fewer}"),
        ),
        own_limit("data size", "VmData:", &kept, read, format!("raise the limit with `ulimit -d`{fewer}")),
    ];
    own.into_iter().flatten().chain(of_control_groups(read)).min_by_key(|room| room.bytes)
}

/// A limit of this process, less the memory in use, and less the bytes that the threads will reserve.
fn own_limit(
    what: &str,
    used: &str,
    reserved: &dyn Fn() -> u64,
    read: Read<'_>,
    help: String,
) -> Option<Room> {
    let limits = read(Path::new("/proc/self/limits"))?;
    let most = limits.lines().find_map(|line| line.strip_prefix("Max ")?.strip_prefix(what))?;
    let most: u64 = most.split_whitespace().next()?.parse().ok()?;
    let status = read(Path::new("/proc/self/status"))?;
    let used = status.lines().find_map(|line| line.strip_prefix(used))?.trim().strip_suffix(" kB")?;
    let used = used.parse::<u64>().ok()? << 10;
    let reserved = reserved();
    Some(Room {
        bytes: most.saturating_sub(used).saturating_sub(reserved),
        limit: format!(
            "the {what} of this process is limited to {} MiB, {} MiB are in use, and its threads can reserve {} MiB",
            most / MEBIBYTE,
            used / MEBIBYTE,
            reserved / MEBIBYTE,
        ),
        help,
    })
}

/// The smallest limit of the control group of this process and of the groups above it.
fn of_control_groups(read: Read<'_>) -> Option<Room> {
    /// Version 1 has a number in place of no limit: the largest multiple of a page.
    const UNLIMITED: u64 = 1 << 62;
    let (groups, mounts) = (read(Path::new("/proc/self/cgroup"))?, read(Path::new("/proc/self/mountinfo"))?);
    let hierarchies = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        if number == "0" && controllers.is_empty() {
            return Some((path, "cgroup2", "", "memory.max"));
        }
        let memory = controllers.split(',').any(|name| name == "memory");
        memory.then_some((path, "cgroup", "memory", "memory.limit_in_bytes"))
    });
    let files = hierarchies.filter_map(|(path, kind, controller, file)| {
        let mount =
            mounts.lines().find_map(|line| Mount::parse(line).filter(|mount| mount.is(kind, controller)))?;
        Some(mount.folders(path).into_iter().map(move |folder| folder.join(file)))
    });
    let limit = |file: PathBuf| {
        let bytes: u64 = read(&file)?.trim().parse().ok()?;
        (bytes < UNLIMITED).then_some((bytes, file))
    };
    let (bytes, file) = files.flatten().filter_map(limit).min()?;
    Some(Room {
        bytes,
        limit: format!(
            "the control group of this process is limited to {} MiB ({})",
            bytes / MEBIBYTE,
            visible(&file.to_string_lossy()),
        ),
        help: "raise the limit of the job or container".into(),
    })
}

/// A mounted file system, from a line of `/proc/self/mountinfo`.
struct Mount<'a> {
    /// The folder of the file system that is mounted.
    root: &'a Path,
    /// Where it is mounted.
    place: &'a Path,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let mut file_system = file_system.split(' ');
        Some(Self {
            root: Path::new(mount.next()?),
            place: Path::new(mount.next()?),
            kind: file_system.next()?,
            options: file_system.nth(1)?,
        })
    }

    /// True if it is of this kind, and has this option, if one is given.
    fn is(&self, kind: &str, option: &str) -> bool {
        self.kind == kind && (option.is_empty() || self.options.split(',').any(|given| given == option))
    }

    /// The folder of a control group, and of those above it. In a container the path of the group can be unknown here: then the group
    /// is the mounted folder.
    fn folders(&self, group: &str) -> Vec<PathBuf> {
        let below = Path::new(group).strip_prefix(self.root).unwrap_or(Path::new(""));
        below.ancestors().map(|below| self.place.join(below)).collect()
    }
}

#[cfg(test)]
mod tests;
