use super::*;
use crate::storage::snapshot;
use expect_test::expect;
use std::collections::BTreeMap;

/// Files of the system by path.
fn found(files: &[(&str, &str)], threads: u64) -> Option<Room> {
    let files: BTreeMap<&Path, &str> = files.iter().map(|(path, text)| (Path::new(*path), *text)).collect();
    of_system(threads, &|path| files.get(path).map(|text| (*text).to_owned()))
}

const STATUS: (&str, &str) =
    ("/proc/self/status", "Name:\tcntlora\nVmSize:\t  10240 kB\nVmData:\t  2048 kB\n");

fn limits(address_space: &str, data: &str) -> String {
    format!(
        "Limit                     Soft Limit           Hard Limit           Units\n\
         Max data size             {data}            unlimited            bytes\n\
         Max address space         {address_space}            unlimited            bytes\n"
    )
}

/// A process without limits has all memory.
#[test]
fn without_limits_there_is_no_room() {
    assert_eq!(found(&[], 1), None);
    assert_eq!(found(&[STATUS, ("/proc/self/limits", &limits("unlimited", "unlimited"))], 1), None);
    let groups = [
        ("/proc/self/cgroup", "0::/a\n"),
        ("/proc/self/mountinfo", V2),
        ("/sys/fs/cgroup/a/memory.max", "max\n"),
    ];
    assert_eq!(found(&groups, 1), None);
}

/// The memory that the threads will reserve is not left for the run. Data does not include the arenas of the allocator.
#[test]
fn limits_of_the_process_are_less_what_threads_reserve() {
    let most = 100 << 30;
    for threads in [1, 3] {
        let stacks = (3 * threads + 2) * STACK;
        let kept = (threads + 1) * workspace() + stacks;
        let arenas = (3 * threads + 2) * ARENA;
        let files = |address_space: &str, data: &str| {
            let limits = limits(address_space, data);
            found(&[STATUS, ("/proc/self/limits", &limits)], threads).unwrap()
        };
        let room = files(&most.to_string(), "unlimited");
        assert_eq!(room.bytes, most - (10 << 20) - kept - arenas);
        let data = files("unlimited", &most.to_string());
        assert_eq!(data.bytes, most - (2 << 20) - kept);
        // The smaller one counts.
        assert_eq!(files(&most.to_string(), &most.to_string()), room);
        assert_eq!(files("1000", "unlimited").bytes, 0);
        let reserved = ((kept + arenas) / MEBIBYTE).to_string();
        let text = format!("{}; {}\n", room.limit, room.help).replace(&reserved, "RESERVED");
        match threads {
            1 => expect![[r#"
                the address space of this process is limited to 102400 MiB, 10 MiB are in use, and its threads can reserve RESERVED MiB; raise the limit with `ulimit -v`
            "#]].assert_eq(&text),
            _ => expect![[r#"
                the address space of this process is limited to 102400 MiB, 10 MiB are in use, and its threads can reserve RESERVED MiB; raise the limit with `ulimit -v`, or give fewer --threads
            "#]].assert_eq(&text),
        }
    }
}

const V2: &str = "23 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

/// The limit of a group holds for all groups below it.
#[test]
fn the_smallest_limit_of_all_groups_counts() {
    let groups = |own: &str, above: &str, top: &str| {
        let files = [
            ("/proc/self/cgroup", "0::/user.slice/job\n"),
            ("/proc/self/mountinfo", V2),
            ("/sys/fs/cgroup/user.slice/job/memory.max", own),
            ("/sys/fs/cgroup/user.slice/memory.max", above),
            ("/sys/fs/cgroup/memory.max", top),
        ];
        found(&files, 1).map(|room| room.bytes)
    };
    assert_eq!(groups("1000\n", "max\n", "3000\n"), Some(1000));
    assert_eq!(groups("3000\n", "1000\n", "max\n"), Some(1000));
    assert_eq!(groups("max\n", "max\n", "1000\n"), Some(1000));
    assert_eq!(groups("max\n", "max\n", "max\n"), None);
    let room = found(
        &[
            ("/proc/self/cgroup", "0::/a\n"),
            ("/proc/self/mountinfo", V2),
            ("/sys/fs/cgroup/a/memory.max", "419430400\n"),
        ],
        1,
    );
    let room = room.unwrap();
    expect!["the control group of this process is limited to 400 MiB (/sys/fs/cgroup/a/memory.max); raise the limit of the job or container"]
        .assert_eq(&format!("{}; {}", room.limit, room.help));
}

/// Version 1, where each controller can have its own place, and where a huge number stands for no limit.
#[test]
fn groups_of_version_1_are_read() {
    let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw shared:1 - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    let groups = |own: &str, top: &str| {
        let files = [
            ("/proc/self/cgroup", "4:memory,hugetlb:/job\n1:cpu:/\n0::/\n"),
            ("/proc/self/mountinfo", mounts),
            ("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", own),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", top),
        ];
        found(&files, 1).map(|room| room.bytes)
    };
    assert_eq!(groups("1000\n", "9223372036854771712\n"), Some(1000));
    assert_eq!(groups("9223372036854771712\n", "9223372036854771712\n"), None);
}

/// In a container only the group of the container is mounted.
#[test]
fn groups_of_a_container_are_read() {
    let mounts = "30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
    for group in ["0::/docker/abc\n", "0::/elsewhere\n"] {
        let files = [
            ("/proc/self/cgroup", group),
            ("/proc/self/mountinfo", mounts),
            ("/sys/fs/cgroup/memory.max", "1000\n"),
        ];
        assert_eq!(found(&files, 1).map(|room| room.bytes), Some(1000), "{group}");
    }
}

/// This process has no limit that is too small for the tests, and this system is read without an error.
#[test]
fn this_system_is_read() {
    refuse_below(0).unwrap();
    if room(0).is_some() {
        let problem = refuse_below(u64::MAX).unwrap_err();
        assert!(snapshot(problem).starts_with("this needs about 17592186044416 MiB of memory, but the "));
    }
}

/// A thread too many costs a little, ten thousand cost minutes.
#[test]
fn threads_that_are_of_no_use_are_left_out() {
    let told = |threads, processors| {
        let (used, warning) = useful(threads, processors);
        format!("{used}: {}\n", warning.unwrap_or("none".into()))
    };
    expect![[r#"
        2: none
        3: --threads 3 is more than the 2 processors that this process may use: threads will wait for each other
        8: --threads 8 is more than the 2 processors that this process may use: threads will wait for each other
        8: --threads 9 is more than the 2 processors that this process may use: only 8 threads are used, and they will wait for each other
        18446744073709551615: none
    "#]]
        .assert_eq(&[told(2, 2), told(3, 2), told(8, 2), told(9, 2), told(usize::MAX, usize::MAX)].concat());
}
