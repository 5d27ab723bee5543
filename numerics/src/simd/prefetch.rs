//! Prefetching memory, which pulp does not provide.

/// Prefetches these numbers. Does nothing if the standard library has no such instruction.
#[inline(always)]
pub(super) fn prefetch<T>(numbers: &[T]) {
    for line in numbers.chunks(64 / size_of::<T>()) {
        prefetch_line(line.as_ptr().cast());
    }
}

/// Numbers that are prefetched in small steps between other work: many prefetches at once would delay the loads that follow them.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    start: *const u8,
    /// Bytes of a step.
    bytes: usize,
}

impl Steps {
    /// Divides numbers into so many steps.
    #[inline(always)]
    pub(super) fn of<T>(numbers: &[T], steps: usize) -> Self {
        Self { start: numbers.as_ptr().cast(), bytes: size_of_val(numbers).div_ceil(steps.max(1)) }
    }

    /// Prefetches one cache line of a step.
    #[inline(always)]
    pub(super) fn prefetch(self, step: usize) {
        prefetch_line(self.start.wrapping_add(step * self.bytes));
    }
}

#[inline(always)]
fn prefetch_line(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is part of x86-64, and a prefetch of any address only moves memory between caches.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
