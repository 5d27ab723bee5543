//! The number of sites that are processed at the same time under a memory limit.

use super::Room;
use super::cost::Memory;
use crate::storage::Problem;
use serde::{Deserialize, Serialize};

/// The numbers of sites that are processed at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SideBySide {
    /// Narrow sites.
    #[serde(rename = "side_by_side")]
    pub narrow: usize,
    /// Wide sites, which are processed after the narrow ones.
    #[serde(rename = "wide_side_by_side", default = "one", skip_serializing_if = "is_one")]
    pub wide: usize,
}

impl SideBySide {
    /// One site after another.
    pub const ONE: Self = Self { narrow: 1, wide: 1 };
}

fn one() -> usize {
    1
}

fn is_one(count: &usize) -> bool {
    *count == 1
}

/// The limits on the memory of a run.
#[derive(Clone, Copy, Default)]
pub(super) struct Limits<'a> {
    /// The limit of the user, in bytes.
    pub(super) max_memory: Option<u64>,
    /// The limit of the system.
    pub(super) room: Option<&'a Room>,
}

/// The largest numbers of sites that can be processed at the same time, so that the run keeps to its limits: at most one narrow site for
/// each thread, and one wide site for every four threads. Without a limit there is one wide site at a time, because nothing
/// tells how much memory there is. `cheaper` names other options that need less memory.
///
/// # Errors
/// If already one site needs too much: a usage problem for the limit of the user, a problem of the environment for that of the system,
/// each with the required memory.
pub(super) fn side_by_side(
    memory: &Memory,
    threads: usize,
    limits: Limits<'_>,
    cheaper: &str,
) -> Result<SideBySide, Problem> {
    const MEBIBYTE: u64 = 1 << 20;
    /// The decompositions of a wide site gain little from more threads: `docs/clusters.md` has the measurements.
    const THREADS_OF_WIDE: usize = 4;
    let max_memory = limits.max_memory.unwrap_or(u64::MAX);
    let room = limits.room.map_or(u64::MAX, |room| room.bytes);
    let limit = max_memory.min(room);
    let fits = |counts: SideBySide| memory.peak(counts) <= limit;
    if !fits(SideBySide::ONE) {
        let least = memory.peak(SideBySide::ONE);
        let needed = least.div_ceil(MEBIBYTE);
        let needs = format!("the run needs at least {needed} MiB of memory");
        return Err(match limits.room {
            Some(Room { bytes, limit, help }) if *bytes < least => {
                Problem::environment(format!("{needs}, but {limit}")).help(format!("{help}{cheaper}"))
            }
            _ => Problem::usage(format!("{needs}, but the limit is {} MiB", max_memory / MEBIBYTE))
                .help(format!("give --max-memory {needed}MiB or more{cheaper}")),
        });
    }
    let most_narrow = threads.min(memory.narrow.len());
    let most_wide = match limit {
        u64::MAX => 1,
        _ => (threads / THREADS_OF_WIDE).min(memory.wide.len()),
    };
    let most = |most: usize, counts: fn(usize) -> SideBySide| {
        (1..=most).rev().find(|&count| fits(counts(count))).unwrap_or(1)
    };
    Ok(SideBySide {
        narrow: most(most_narrow, |narrow| SideBySide { narrow, ..SideBySide::ONE }),
        wide: most(most_wide, |wide| SideBySide { wide, ..SideBySide::ONE }),
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
        fn numbers_of_sites_are_the_largest_that_fit(sites: (Vec<u32>, Vec<u32>), kept: (u32, u32), threads: u8, limits: (u32, u32)) -> bool {
            let (kept, writing) = kept;
            let sorted = |sites: Vec<u32>| {
                let mut sites: Vec<u64> = sites.into_iter().map(u64::from).collect();
                sites.sort_unstable_by(|a, b| b.cmp(a));
                sites
            };
            let (narrow, wide) = (sorted(sites.0), sorted(sites.1));
            let most_narrow = usize::from(threads).min(narrow.len()).max(1);
            let most_wide = (usize::from(threads) / 4).min(wide.len()).max(1);
            let memory = Memory { narrow, wide, kept: kept.into(), writing: writing.into() };
            let (max_memory, room) = (u64::from(limits.0), room(limits.1.into()));
            let limit = max_memory.min(room.bytes);
            let unlimited = side_by_side(&memory, threads.into(), Limits::default(), "").unwrap();
            let limits = Limits { max_memory: Some(max_memory), room: Some(&room) };
            unlimited == SideBySide { narrow: most_narrow, wide: 1 } && match side_by_side(&memory, threads.into(), limits, "") {
                Ok(counts) => {
                    let SideBySide { narrow, wide } = counts;
                    memory.peak(counts) <= limit
                        && (narrow == most_narrow || memory.peak(SideBySide { narrow: narrow + 1, wide }) > limit)
                        && (wide == most_wide || memory.peak(SideBySide { narrow, wide: wide + 1 }) > limit)
                }
                Err(_) => memory.peak(SideBySide::ONE) > limit,
            }
        }
    }

    /// A limit that is large enough lets wide sites use all threads, four each.
    #[test]
    fn wide_sites_are_side_by_side_below_a_limit() {
        let memory = Memory { narrow: vec![1 << 20; 3], wide: vec![100 << 20; 10], kept: 0, writing: 0 };
        let wide = |threads, limit: Option<u64>| {
            let limits = Limits { max_memory: limit.map(|mebibytes| mebibytes << 20), room: None };
            side_by_side(&memory, threads, limits, "").unwrap().wide
        };
        assert_eq!(wide(64, None), 1);
        assert_eq!(wide(64, Some(10_000)), 10);
        assert_eq!(wide(16, Some(10_000)), 4);
        assert_eq!(wide(7, Some(10_000)), 1);
        // The overheads are 80 MiB and an eighth.
        assert_eq!(wide(64, Some(320)), 2);
        assert_eq!(wide(64, Some(200)), 1);
    }

    /// Plans of one wide site at a time keep their form, and earlier plans can be read.
    #[test]
    fn one_wide_site_at_a_time_is_not_written() {
        let text = |counts: SideBySide| serde_json::to_string(&counts).unwrap();
        let (one, two) = (SideBySide { narrow: 3, wide: 1 }, SideBySide { narrow: 3, wide: 2 });
        assert_eq!(text(one), r#"{"side_by_side":3}"#);
        assert_eq!(text(two), r#"{"side_by_side":3,"wide_side_by_side":2}"#);
        for counts in [one, two] {
            assert_eq!(serde_json::from_str::<SideBySide>(&text(counts)).unwrap(), counts);
        }
    }

    /// The advised limit is sufficient.
    #[test]
    fn advised_memory_limit_is_sufficient() {
        let memory = Memory { narrow: vec![3 << 20, 2 << 20], wide: vec![], kept: 5, writing: 6 };
        let limits = |max_memory| Limits { max_memory: Some(max_memory), room: None };
        let problem = side_by_side(&memory, 2, limits(50 << 20), "; so").unwrap_err();
        let needed = memory.peak(SideBySide::ONE).div_ceil(1 << 20);
        let text = shown(&problem.into(), Path::new("-")).replace(&needed.to_string(), "NEEDED");
        expect![[r#"
            Usage: the run needs at least NEEDED MiB of memory, but the limit is 50 MiB
                help: give --max-memory NEEDEDMiB or more; so
        "#]]
        .assert_eq(&text);
        assert_eq!(side_by_side(&memory, 2, limits(needed << 20), "").unwrap(), SideBySide::ONE);
    }

    /// The limit of the system is a matter of the environment, also if the user gave a larger one.
    #[test]
    fn limits_of_the_system_are_named() {
        let memory = Memory { narrow: vec![3 << 20], wide: vec![], kept: 5, writing: 6 };
        let room = room(50 << 20);
        let limits = Limits { max_memory: Some(60 << 20), room: Some(&room) };
        let problem = side_by_side(&memory, 2, limits, "; so").unwrap_err();
        let needed = memory.peak(SideBySide::ONE).div_ceil(1 << 20);
        let text = shown(&problem.into(), Path::new("-")).replace(&needed.to_string(), "NEEDED");
        expect![[r#"
            Io: the run needs at least NEEDED MiB of memory, but the system allows little
                help: raise it; so
        "#]]
        .assert_eq(&text);
    }
}
