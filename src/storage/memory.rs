//! Memory whose size a file decides. If there is not enough, that is a problem of the environment, and not the end of the process.

use super::Problem;
use crate::dense::Buffer;
use bytemuck::Pod;

/// Returns a vector of zeros.
///
/// # Errors
/// A problem of the environment if there is not enough memory.
pub(crate) fn zeros<T: Copy + Default>(length: u64) -> Result<Vec<T>, Problem> {
    let mut values = Vec::new();
    reserve(&mut values, length)?;
    // It is a length of memory now.
    values.resize(length as usize, T::default());
    Ok(values)
}

/// Returns zeros in memory for large matrices.
///
/// # Errors
/// As [`zeros`].
pub(crate) fn buffer<T: Pod>(length: u64) -> Result<Buffer<T>, Problem> {
    usize::try_from(length).ok().and_then(Buffer::zeros).ok_or_else(|| not_enough::<T>(length))
}

/// Makes room for more values at the end of a vector.
///
/// # Errors
/// As [`zeros`].
pub(crate) fn reserve<T>(values: &mut Vec<T>, more: u64) -> Result<(), Problem> {
    let reserved = usize::try_from(more).ok().map(|more| values.try_reserve_exact(more));
    match reserved {
        Some(Ok(())) => Ok(()),
        _ => Err(not_enough::<T>(more)),
    }
}

fn not_enough<T>(length: u64) -> Problem {
    let bytes = length.saturating_mul(size_of::<T>() as u64);
    Problem::environment(format!("not enough memory for {bytes} bytes"))
}

#[cfg(test)]
mod tests {
    use super::super::{Category, snapshot};
    use super::*;
    use expect_test::expect;

    #[test]
    fn missing_memory_is_a_problem() {
        let mut values = vec![1u64, 2];
        let problems = [
            zeros::<u8>(u64::MAX).unwrap_err(),
            zeros::<f64>(1 << 60).unwrap_err(),
            buffer::<f32>(1 << 61).unwrap_err(),
            reserve(&mut values, u64::MAX).unwrap_err(),
        ];
        assert!(problems.iter().all(|problem| problem.category() == Category::Io));
        expect![[r#"
            not enough memory for 18446744073709551615 bytes
            not enough memory for 9223372036854775808 bytes
            not enough memory for 9223372036854775808 bytes
            not enough memory for 18446744073709551615 bytes
        "#]]
        .assert_eq(&problems.map(snapshot).concat());
        reserve(&mut values, 2).unwrap();
        assert_eq!((values.len(), values.capacity() >= 4, zeros::<u16>(3).unwrap()), (2, true, vec![0; 3]));
        assert_eq!(buffer::<f32>(2).unwrap()[..], [0.0; 2]);
    }
}
