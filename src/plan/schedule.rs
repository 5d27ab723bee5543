//! The number of sites that are processed at the same time under a memory limit.

use super::cost::Memory;
use crate::storage::Problem;

/// The largest number of narrow sites that can be processed at the same time: at most one for each thread, and so many that the run
/// needs at most `max_memory` bytes. `cheaper` names other options that need less memory.
///
/// # Errors
/// A usage problem with the required memory, if already one site needs too much.
pub(super) fn side_by_side(
    memory: &Memory,
    threads: usize,
    max_memory: Option<u64>,
    cheaper: &str,
) -> Result<usize, Problem> {
    let most = threads.min(memory.narrow.len()).max(1);
    let Some(max_memory) = max_memory else { return Ok(most) };
    let fits = |count: &usize| memory.peak(*count) <= max_memory;
    (1..=most).rev().find(fits).ok_or_else(|| {
        const MEBIBYTE: u64 = 1 << 20;
        let needed = memory.peak(1).div_ceil(MEBIBYTE);
        Problem::usage(format!(
            "the run needs at least {needed} MiB of memory, but the limit is {} MiB",
            max_memory / MEBIBYTE
        ))
        .help(format!("give --max-memory {needed}MiB or more{cheaper}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::shown;
    use expect_test::expect;
    use quickcheck::quickcheck;
    use std::path::Path;

    quickcheck! {
        /// The number is the largest that fits into the limit.
        fn number_of_sites_is_the_largest_that_fits(narrow: Vec<u32>, wide: u32, kept: (u32, u32), threads: u8, max_memory: u32) -> bool {
            let (kept, writing) = kept;
            let mut narrow: Vec<u64> = narrow.into_iter().map(u64::from).collect();
            narrow.sort_unstable_by(|a, b| b.cmp(a));
            let most = usize::from(threads).min(narrow.len()).max(1);
            let memory = Memory { narrow, wide: wide.into(), kept: kept.into(), writing: writing.into() };
            let max_memory = u64::from(max_memory);
            let unlimited = side_by_side(&memory, threads.into(), None, "").unwrap() == most;
            unlimited && match side_by_side(&memory, threads.into(), Some(max_memory), "") {
                Ok(count) => {
                    memory.peak(count) <= max_memory
                        && (count == most || memory.peak(count + 1) > max_memory)
                }
                Err(_) => memory.peak(1) > max_memory,
            }
        }
    }

    /// The advised limit is sufficient.
    #[test]
    fn advised_memory_limit_is_sufficient() {
        let memory = Memory { narrow: vec![3 << 20, 2 << 20], wide: 0, kept: 5, writing: 6 };
        let problem = side_by_side(&memory, 2, Some(50 << 20), "; so").unwrap_err();
        let needed = memory.peak(1).div_ceil(1 << 20);
        let text = shown(&problem.into(), Path::new("-")).replace(&needed.to_string(), "NEEDED");
        expect![[r#"
            Usage: the run needs at least NEEDED MiB of memory, but the limit is 50 MiB
                help: give --max-memory NEEDEDMiB or more; so
        "#]]
        .assert_eq(&text);
        assert_eq!(side_by_side(&memory, 2, Some(needed << 20), "").unwrap(), 1);
    }
}
