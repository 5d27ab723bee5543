//! The number of sites that are processed at the same time under a memory limit.

use super::Room;
use super::cost::Memory;
use crate::storage::Problem;

/// The limits on the memory of a run.
#[derive(Clone, Copy, Default)]
pub(super) struct Limits<'a> {
    /// The limit of the user, in bytes.
    pub(super) max_memory: Option<u64>,
    /// The limit of the system.
    pub(super) room: Option<&'a Room>,
}

/// The largest number of narrow sites that can be processed at the same time: at most one for each thread, and so many that the run
/// keeps to its limits. `cheaper` names other options that need less memory.
///
/// # Errors
/// If already one site needs too much: a usage problem for the limit of the user, a problem of the environment for that of the system,
/// each with the required memory.
pub(super) fn side_by_side(
    memory: &Memory,
    threads: usize,
    limits: Limits<'_>,
    cheaper: &str,
) -> Result<usize, Problem> {
    const MEBIBYTE: u64 = 1 << 20;
    let most = threads.min(memory.narrow.len()).max(1);
    let max_memory = limits.max_memory.unwrap_or(u64::MAX);
    let room = limits.room.map_or(u64::MAX, |room| room.bytes);
    let fits = |count: &usize| memory.peak(*count) <= max_memory.min(room);
    (1..=most).rev().find(fits).ok_or_else(|| {
        let needed = memory.peak(1).div_ceil(MEBIBYTE);
        let needs = format!("the run needs at least {needed} MiB of memory");
        match limits.room {
            Some(Room { bytes, limit, help }) if *bytes < memory.peak(1) => {
                Problem::environment(format!("{needs}, but {limit}")).help(format!("{help}{cheaper}"))
            }
            _ => Problem::usage(format!("{needs}, but the limit is {} MiB", max_memory / MEBIBYTE))
                .help(format!("give --max-memory {needed}MiB or more{cheaper}")),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::shown;
    use expect_test::expect;
    use quickcheck::quickcheck;
    use std::path::Path;

    fn room(bytes: u64) -> Room {
        Room { bytes, limit: "the system allows little".into(), help: "raise it".into() }
    }

    quickcheck! {
        /// The number is the largest that fits into the limit.
        fn number_of_sites_is_the_largest_that_fits(narrow: Vec<u32>, wide: u32, kept: (u32, u32), threads: u8, limits: (u32, u32)) -> bool {
            let (kept, writing) = kept;
            let mut narrow: Vec<u64> = narrow.into_iter().map(u64::from).collect();
            narrow.sort_unstable_by(|a, b| b.cmp(a));
            let most = usize::from(threads).min(narrow.len()).max(1);
            let memory = Memory { narrow, wide: wide.into(), kept: kept.into(), writing: writing.into() };
            let (max_memory, room) = (u64::from(limits.0), room(limits.1.into()));
            let limit = max_memory.min(room.bytes);
            let unlimited = side_by_side(&memory, threads.into(), Limits::default(), "").unwrap() == most;
            let limits = Limits { max_memory: Some(max_memory), room: Some(&room) };
            unlimited && match side_by_side(&memory, threads.into(), limits, "") {
                Ok(count) => {
                    memory.peak(count) <= limit && (count == most || memory.peak(count + 1) > limit)
                }
                Err(_) => memory.peak(1) > limit,
            }
        }
    }

    /// The advised limit is sufficient.
    #[test]
    fn advised_memory_limit_is_sufficient() {
        let memory = Memory { narrow: vec![3 << 20, 2 << 20], wide: 0, kept: 5, writing: 6 };
        let limits = |max_memory| Limits { max_memory: Some(max_memory), room: None };
        let problem = side_by_side(&memory, 2, limits(50 << 20), "; so").unwrap_err();
        let needed = memory.peak(1).div_ceil(1 << 20);
        let text = shown(&problem.into(), Path::new("-")).replace(&needed.to_string(), "NEEDED");
        expect![[r#"
            Usage: the run needs at least NEEDED MiB of memory, but the limit is 50 MiB
                help: give --max-memory NEEDEDMiB or more; so
        "#]]
        .assert_eq(&text);
        assert_eq!(side_by_side(&memory, 2, limits(needed << 20), "").unwrap(), 1);
    }

    /// The limit of the system is a matter of the environment, also if the user gave a larger one.
    #[test]
    fn limits_of_the_system_are_named() {
        let memory = Memory { narrow: vec![3 << 20], wide: 0, kept: 5, writing: 6 };
        let room = room(50 << 20);
        let limits = Limits { max_memory: Some(60 << 20), room: Some(&room) };
        let problem = side_by_side(&memory, 2, limits, "; so").unwrap_err();
        let needed = memory.peak(1).div_ceil(1 << 20);
        let text = shown(&problem.into(), Path::new("-")).replace(&needed.to_string(), "NEEDED");
        expect![[r#"
            Io: the run needs at least NEEDED MiB of memory, but the system allows little
                help: raise it; so
        "#]]
        .assert_eq(&text);
    }
}
