//! The address space that products of matrices reserve.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use std::{fs, path::Path};

/// Bytes of address space that a thread reserves, at most, with its first product of matrices, and keeps until it ends. Most of them are
/// never touched, so they need no memory.
///
/// On x86-64 the kernels (private-gemm-x86) reserve room for two packed matrices, each as large as the third-level caches of the whole
/// machine. Elsewhere the kernels (gemm) reserve one second-level cache.
pub fn workspace() -> u64 {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    let caches = largest_block(Path::new("/sys/devices/system/cpu")).unwrap_or(UNKNOWN);
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    let caches = UNKNOWN;
    2 * caches
}

/// Bytes of caches where the system does not tell them.
const UNKNOWN: u64 = 64 << 20;

/// The sum of the third-level caches, but at least 2 MiB and four second-level caches, as the kernels compute it from the description of
/// the processors in `folder`. `None` if there is none.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn largest_block(folder: &Path) -> Option<u64> {
    const SMALLEST: u64 = 2 << 20;
    let (mut shares, mut second) = (None, 0);
    for processor in fs::read_dir(folder).ok()?.flatten() {
        for cache in fs::read_dir(processor.path().join("cache")).into_iter().flatten().flatten() {
            let text = |name| fs::read_to_string(cache.path().join(name)).ok();
            let (Some(level), Some(size)) = (text("level"), text("size").and_then(|size| bytes(size.trim())))
            else {
                continue;
            };
            match level.trim() {
                "2" => second = size.max(second),
                "3" => {
                    let sharing = text("shared_cpu_list").map_or(1, |list| count(list.trim())).max(1);
                    shares = Some(shares.unwrap_or(0.0) + size as f64 / sharing as f64);
                }
                _ => {}
            }
        }
    }
    shares.map(|sum| (sum.ceil() as u64).max(4 * second).max(SMALLEST))
}

/// A size such as `512K`.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn bytes(text: &str) -> Option<u64> {
    let (digits, factor) = match text.char_indices().last()? {
        (end, 'K') => (&text[..end], 1 << 10),
        (end, 'M') => (&text[..end], 1 << 20),
        (end, 'G') => (&text[..end], 1 << 30),
        _ => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// The length of a list of numbers and ranges such as `0-3,8`.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn count(list: &str) -> u64 {
    let number = |text: &str| text.parse::<u64>().unwrap_or(0);
    let range = |range: &str| match range.split_once('-') {
        Some((first, last)) => number(last).saturating_sub(number(first)).saturating_add(1),
        None => 1,
    };
    list.split(',').map(range).fold(0, u64::saturating_add)
}

#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod tests {
    use super::*;
    use faer::{Mat, Par};

    /// Bytes of address space of this process.
    fn address_space() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
    }

    /// The limits of the process are compared with this number before a run, so it must not be too small; a number that is much too
    /// large would refuse runs for nothing. A new version of the kernels that reserves more fails here.
    #[test]
    fn a_product_reserves_what_is_stated() {
        let child = std::env::var_os("CNTLORA_WORKSPACE").is_some();
        if !child {
            // Other tests of this process reserve address space at the same time.
            let test = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "workspace::tests::a_product_reserves_what_is_stated", "--nocapture"])
                .env("CNTLORA_WORKSPACE", "1")
                .status();
            return assert!(test.unwrap().success());
        }
        let matrix = Mat::<f64>::identity(512, 512);
        let before = address_space();
        let product = crate::product(matrix.as_ref(), matrix.as_ref(), Par::Seq);
        assert_eq!(product[(511, 511)], 1.0);
        let reserved = address_space() - before;
        let (stated, slack) = (workspace(), 16 << 20);
        assert!(reserved <= stated + slack, "{reserved} bytes were reserved, {stated} are stated");
        // Kernels of processors without AVX2 reserve less.
        if std::arch::is_x86_feature_detected!("avx2") {
            assert!(2 * reserved + slack >= stated, "{reserved} bytes were reserved, {stated} are stated");
        }
    }

    #[test]
    fn sizes_and_lists_are_read() {
        assert_eq!(
            ["32", "48K", "2M", "1G", "", "K", "x"].map(bytes),
            [Some(32), Some(48 << 10), Some(2 << 20), Some(1 << 30), None, None, None]
        );
        assert_eq!(["0", "0-3", "0-3,8", "0,2-3", ""].map(count), [1, 4, 5, 3, 1]);
    }

    /// Two processors with their own second-level caches share a third-level cache.
    #[test]
    fn caches_are_added() {
        let folder = std::env::temp_dir().join(format!("cntlora-caches-{}", std::process::id()));
        for processor in ["cpu0", "cpu1"] {
            for (index, level, size, shared) in
                [("index2", "2", "1024K", "0"), ("index3", "3", "32768K", "0-1")]
            {
                let cache = folder.join(processor).join("cache").join(index);
                fs::create_dir_all(&cache).unwrap();
                for (name, text) in [("level", level), ("size", size), ("shared_cpu_list", shared)] {
                    fs::write(cache.join(name), format!("{text}\n")).unwrap();
                }
            }
        }
        let sum = largest_block(&folder);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(sum, Some(32 << 20));
        assert_eq!(largest_block(&folder), None);
    }
}
