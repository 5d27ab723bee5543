//! How many sites are worked on at a time, under a limit of memory.

use super::cost::Memory;
use crate::storage::Problem;

/// The most narrow sites that may be worked on side by side: one for each thread, or fewer if there are no more, or if the
/// run would otherwise hold more than `max_memory` bytes. `cheaper` says which other options need less memory.
///
/// # Errors
/// A usage problem, with the number of bytes that is needed, if one site at a time is too much.
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
            "the run needs {needed} MiB of memory even with one site at a time, but may use {} MiB",
            max_memory / MEBIBYTE
        ))
        .help(format!("give --max-memory {needed}MiB or more{cheaper}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Category;
    use quickcheck::quickcheck;

    quickcheck! {
        /// As many as fit: they stay under the limit, and one more would not, or is not there to be done.
        fn as_many_as_fit(narrow: Vec<u32>, wide: u32, kept: (u32, u32), threads: u8, max_memory: u32) -> bool {
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

    /// Who is refused is told a limit that is enough.
    #[test]
    fn a_refusal_names_the_limit_to_give() {
        let memory = Memory { narrow: vec![3 << 20, 2 << 20], wide: 0, kept: 5, writing: 6 };
        let problem = side_by_side(&memory, 2, Some(50 << 20), "; so").unwrap_err();
        assert_eq!(problem.category(), Category::Usage);
        let needed = memory.peak(1).div_ceil(1 << 20);
        let expected =
            format!("the run needs {needed} MiB of memory even with one site at a time, but may use 50 MiB");
        assert_eq!(problem.to_string(), expected);
        assert_eq!(problem.next_step().unwrap(), format!("give --max-memory {needed}MiB or more; so"));
        assert_eq!(side_by_side(&memory, 2, Some(needed << 20), "").unwrap(), 1);
    }
}
