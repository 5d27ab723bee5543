//! The instructions: detection, permission, configuration and products.

use super::super::shape::PANELS;
use super::{SIDE, STEP, Tile, VECTORS, WIDTH};
use std::arch::asm;
use std::arch::x86_64::{
    __cpuid, __cpuid_count, __m512i, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::mem::transmute;
use std::sync::OnceLock;

/// Proof that tiles can be used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permission(());

impl Permission {
    /// Asks the processor and the system once.
    pub(super) fn get() -> Option<Self> {
        static GRANTED: OnceLock<bool> = OnceLock::new();
        GRANTED
            .get_or_init(|| processor_has_tiles() && system_saves_tiles() && system_permits_tiles())
            .then_some(Self(()))
    }
}

/// Asks for tiles of bf16.
fn processor_has_tiles() -> bool {
    const TILES: u32 = 1 << 24;
    const BF16: u32 = 1 << 22;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (TILES | BF16) == TILES | BF16
}

/// Asks whether the system saves the registers of tiles.
fn system_saves_tiles() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const STATE: u32 = 0b11 << 17;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let enabled: u32;
    // SAFETY: OSXSAVE says that the instruction exists. It only reads a register.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") enabled, out("edx") _, options(nomem, nostack)) }
    enabled & STATE == STATE
}

/// Linux gives the memory for tiles only to processes that ask for it.
fn system_permits_tiles() -> bool {
    const ARCH_PRCTL: u64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call takes two numbers and touches no memory of the process. A system call changes rcx and r11 besides its result.
    unsafe {
        asm!("syscall", inout("rax") result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

/// The configuration of all eight tiles: 16 rows of 64 bytes.
static CONFIGURATION: [u8; 64] = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = SIDE as u8;
        tile += 1;
    }
    bytes
};

/// The tiles of this thread are configured while a value lives.
pub(in super::super) struct Configured(());

impl Configured {
    #[inline(always)]
    pub(super) fn new(_: Permission) -> Self {
        // SAFETY: the permission proves that the instruction exists. It reads 64 bytes, and changes tile registers only, which no compiled
        // code uses.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(readonly, nostack)) }
        Self(())
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: a value exists only where the instruction does. It changes tile registers only.
        unsafe { asm!("tilerelease", options(nomem, nostack)) }
    }
}

/// Transposes a tile. Only [`Permission`] leads here, and every processor with tiles has AVX-512.
pub(super) fn transpose(lines: [&[u32; SIDE]; SIDE], to: &mut Tile) {
    // SAFETY: see above; `Tiles::of` also asks for the tier of AVX-512.
    unsafe { transpose_by_vectors(lines, to) }
}

/// Three stages exchange numbers between ever more distant vectors.
#[target_feature(enable = "avx512f")]
fn transpose_by_vectors(lines: [&[u32; SIDE]; SIDE], to: &mut Tile) {
    let vector = |line: &[u32; SIDE]| {
        // SAFETY: both types are 64 bytes, and all bit patterns are valid.
        unsafe { transmute::<[u32; SIDE], __m512i>(*line) }
    };
    let mut pairs = [_mm512_setzero_si512(); SIDE];
    for i in 0..8 {
        let (upper, lower) = (vector(lines[2 * i]), vector(lines[2 * i + 1]));
        pairs[2 * i] = _mm512_unpacklo_epi32(upper, lower);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(upper, lower);
    }
    // Vector 4 i + j holds in its quarter q the column 4 q + j of the lines 4 i to 4 i + 3.
    let mut fours = pairs;
    for i in 0..4 {
        for half in 0..2 {
            let (upper, lower) = (pairs[4 * i + half], pairs[4 * i + 2 + half]);
            fours[4 * i + 2 * half] = _mm512_unpacklo_epi64(upper, lower);
            fours[4 * i + 2 * half + 1] = _mm512_unpackhi_epi64(upper, lower);
        }
    }
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;
    for j in 0..4 {
        let even = _mm512_shuffle_i32x4::<EVEN>(fours[j], fours[4 + j]);
        let odd = _mm512_shuffle_i32x4::<ODD>(fours[j], fours[4 + j]);
        let later_even = _mm512_shuffle_i32x4::<EVEN>(fours[8 + j], fours[12 + j]);
        let later_odd = _mm512_shuffle_i32x4::<ODD>(fours[8 + j], fours[12 + j]);
        let columns = [
            (j, _mm512_shuffle_i32x4::<EVEN>(even, later_even)),
            (4 + j, _mm512_shuffle_i32x4::<EVEN>(odd, later_odd)),
            (8 + j, _mm512_shuffle_i32x4::<ODD>(even, later_even)),
            (12 + j, _mm512_shuffle_i32x4::<ODD>(odd, later_odd)),
        ];
        for (index, column) in columns {
            // SAFETY: both types are 64 bytes, and all bit patterns are valid.
            to[index] = unsafe { transmute::<__m512i, [u32; SIDE]>(column) };
        }
    }
}

/// The products of [`Kernel::multiply`](super::Kernel::multiply) for whole tiles, while the tiles are configured.
#[inline(always)]
pub(super) fn multiply(_: Permission, left: &[u32], right: &[u32], sums: &mut [f32]) {
    /// Bytes between two rows of sums, two lines of a right panel, and two columns of a left one.
    const SUMS: usize = 4 * PANELS * VECTORS * SIDE;
    const RIGHT: usize = 4 * WIDTH;
    const LEFT: usize = 4 * SIDE;
    let steps = right.len() / STEP;
    assert!(steps > 0 && left.len() >= steps * STEP);
    assert!(sums.len() >= (WIDTH - 1) * SUMS / 4 + WIDTH);
    // SAFETY: the permission proves that the instructions exist, and callers have configured the tiles (if not, the processor stops the
    // program). The loads and stores are 16 rows of 64 bytes at the given distances. By the assertions they end inside the slices: the
    // sums after 32 rows, and both panels after `steps` times 16 lines.
    unsafe {
        asm!(
            "tileloadd tmm0, [{sums} + {sums_row}]",
            "tileloadd tmm1, [{sums} + {sums_row} + 64]",
            "tileloadd tmm2, [{more} + {sums_row}]",
            "tileloadd tmm3, [{more} + {sums_row} + 64]",
            "2:",
            "tileloadd tmm4, [{left} + {left_row}]",
            "tileloadd tmm6, [{right} + {right_row}]",
            "tileloadd tmm7, [{right} + {right_row} + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{left} + {left_row} + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {left}, 2048",
            "add {right}, 2048",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {sums_row}], tmm0",
            "tilestored [{sums} + {sums_row} + 64], tmm1",
            "tilestored [{more} + {sums_row}], tmm2",
            "tilestored [{more} + {sums_row} + 64], tmm3",
            sums = in(reg) sums.as_mut_ptr(),
            more = in(reg) sums.as_mut_ptr().add(SIDE * SUMS / 4),
            sums_row = in(reg) SUMS,
            left = inout(reg) left.as_ptr() => _,
            left_row = in(reg) LEFT,
            right = inout(reg) right.as_ptr() => _,
            right_row = in(reg) RIGHT,
            steps = inout(reg) steps => _,
            options(nostack),
        );
    }
}
