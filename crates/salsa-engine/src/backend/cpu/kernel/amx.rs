//! Products of bfloat16 on Intel's tile registers (AMX).
//!
//! One instruction multiplies sixteen rows of sixteen words by sixteen words of sixteen columns. Inside such a *group*
//! of words the first terms of the words are summed, and so are the second terms; the two sums are added, and the
//! result is added to the accumulator:
//!
//! ```text
//! first  = fma(a[15].0, b[15].0, ... fma(a[1].0, b[1].0, fma(a[0].0, b[0].0, 0)))
//! second = the same of the second terms
//! sum    = sum + (first + second)
//! ```
//!
//! Subnormal numbers are read and written as zero. Groups begin at multiples of [`GROUP`] words, and the last one is
//! zero-padded, so an element's bits depend on its row, its column and the depth alone, as in all kernels. They differ
//! from those of the vector kernels, which have one sum of all terms.
//!
//! A block uses two tiles of the left factor and two of the right one for four sums of 16 x 16: 32 rows of a panel's 32
//! columns. A group of words then costs four loads for four products.

use super::{GROUP, Prefetch, Store, Tile, WIDTH};
use std::arch::{asm, x86_64::*};
use std::mem::MaybeUninit;

/// The most rows of a block.
pub(super) const ROWS: usize = 2 * GROUP;

/// Distance of two words in a panel, in bytes.
const PANEL_STRIDE: usize = WIDTH * 4;
/// How far ahead of the products the right factor is prefetched, in bytes: two groups. The best distance, and whether
/// [`Prefetch`] is better, have not been measured.
const AHEAD: usize = 2 * GROUP * PANEL_STRIDE;

/// The shape of the eight tile registers, in the format of `ldtilecfg`.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All of them have sixteen rows of 64 bytes: the maximum.
static SHAPES: Shapes = Shapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// While this is alive, the thread's tile registers are configured. Configuring is slow, so it is done once for a block
/// of a product and not for every tile. Dropping it releases the registers, which the system then need not save.
pub(super) struct Tiles {
    /// The registers belong to the thread: not `Send`.
    _thread: std::marker::PhantomData<*const ()>,
}

impl Tiles {
    /// # Safety
    ///
    /// The CPU must have AMX and the system must have permitted its use: [`available`].
    pub(super) unsafe fn set_up() -> Tiles {
        // SAFETY: guaranteed by the caller; the instruction reads the 64 bytes of `SHAPES`.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, readonly, preserves_flags)) };
        Tiles { _thread: std::marker::PhantomData }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: `set_up` ran on this thread, so AMX exists. The registers hold nothing between blocks.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// Whether the CPU has tiles for bfloat16 and the system lets this process use them. The first call requests the
/// permission.
pub(crate) fn available() -> bool {
    const TILE: u32 = 1 << 24;
    const BF16: u32 = 1 << 22;
    let leaf = if __cpuid_count(0, 0).eax >= 7 { __cpuid_count(7, 0).edx } else { 0 };
    leaf & TILE != 0 && leaf & BF16 != 0 && is_x86_feature_detected!("xsave") && saved_by_system() && permitted()
}

/// Whether the system saves the registers on a context switch, according to XCR0 (17: shapes, 18: contents).
fn saved_by_system() -> bool {
    const BITS: u64 = 0b11 << 17;
    // OSXSAVE: without it `xgetbv` is an illegal instruction. The detection of `xsave` checks the CPU only.
    if __cpuid(1).ecx & 1 << 27 == 0 {
        return false;
    }
    // SAFETY: the system has enabled the instruction.
    let states = unsafe { xgetbv() };
    states & BITS == BITS
}

#[target_feature(enable = "xsave")]
fn xgetbv() -> u64 {
    // SAFETY: register 0 always exists where the instruction does.
    unsafe { _xgetbv(0) }
}

/// Linux grants a process the registers on request, for all its threads.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const REQUEST: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: a request that touches no memory of this process. A kernel that does not know it returns an error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
}

/// Other systems are not supported.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

macro_rules! tiles {
    ($($height:literal)*) => { [$(bf16::<$height>),*] };
}

/// The tile of R rows is at index R - 1.
pub(super) static TILES: [Tile; ROWS] =
    tiles!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32);

/// The tile of R rows, see [`super::Tile`], with a left factor as in [`super::Items::Groups`].
///
/// # Safety
///
/// The calling thread must hold [`Tiles`]. `a` must hold R rows of `steps` words in that layout, `b` `steps` times
/// [`WIDTH`] words, and `out` R rows of [`WIDTH`].
#[target_feature(enable = "avx512f")]
unsafe fn bf16<const R: usize>(
    steps: usize,
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    _: Prefetch,
    out: *mut f32,
    stride: usize,
    store: Store,
) {
    const { assert!(0 < R && R <= ROWS) };
    let (groups, rest) = (steps / GROUP, steps % GROUP);
    let mut last = MaybeUninit::<[f32; GROUP * WIDTH]>::uninit();
    let last = last.as_mut_ptr().cast::<f32>();
    if rest > 0 {
        // Memory after the words of the sum is not ours to read: the last group is a copy.
        // SAFETY: `rest` words of the panel follow the whole groups; both together fill `last`.
        unsafe {
            last.copy_from_nonoverlapping(b.add(groups * GROUP * WIDTH), rest * WIDTH);
            last.add(rest * WIDTH).write_bytes(0, (GROUP - rest) * WIDTH);
        }
    }
    let products = if R > GROUP { two_by_two } else { one_by_two };
    // SAFETY: guaranteed by the caller for `a`, `b` and the tiles; where whole tiles are written, `out` has their rows.
    unsafe {
        if store == Store::Replace && R.is_multiple_of(GROUP) {
            return products(groups, rest.min(1), a, a_stride * 4, b, last, out, stride * 4);
        }
        let mut sums = MaybeUninit::<[f32; ROWS * WIDTH]>::uninit();
        let sums = sums.as_mut_ptr().cast::<f32>();
        products(groups, rest.min(1), a, a_stride * 4, b, last, sums, PANEL_STRIDE);
        for r in 0..R {
            for half in [0, GROUP] {
                let (sum, at) = (_mm512_loadu_ps(sums.add(r * WIDTH + half)), out.add(r * stride + half));
                let new = if store == Store::Add { _mm512_add_ps(_mm512_loadu_ps(at), sum) } else { sum };
                _mm512_storeu_ps(at, new);
            }
        }
    }
}

/// Prefetches the sixteen words of a panel that are [`AHEAD`] of the ones being multiplied, line by line.
macro_rules! prefetch {
    ($($line:literal)*) => { concat!($("prefetcht0 [{b} + {ahead} + 64 * ", $line, "]\n"),*) };
}

/// Runs `$body` for `groups` groups of words from `b` on, and then, if `more` is 1, for one from `last` on.
macro_rules! groups {
    ($($body:literal)*) => {
        concat!(
            "test {groups}, {groups}\n",
            "jz 3f\n",
            "2:\n",
            $($body, "\n",)*
            prefetch!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31),
            "add {a}, 64\n",
            "add {b}, {group}\n",
            "dec {groups}\n",
            "jnz 2b\n",
            "3:\n",
            "mov {b}, {last}\n",
            "mov {groups}, {more}\n",
            "xor {more:e}, {more:e}\n",
            "test {groups}, {groups}\n",
            "jnz 2b\n",
        )
    };
}

/// 32 rows of 32 columns, written to `out`. Rows of the left factor are `a_stride` bytes apart, those of `out` `stride`.
///
/// # Safety
///
/// The thread must hold [`Tiles`]. `a` must hold 32 rows of a left factor, `b` `groups` groups of words of a panel,
/// `last` one if `more` is 1 (not more), and `out` 32 rows.
#[inline(never)]
unsafe fn two_by_two(
    groups: usize,
    more: usize,
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    last: *const f32,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: guaranteed by the caller; prefetching is allowed anywhere. All tile registers are declared as clobbered.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            groups!(
                "tileloadd tmm6, [{b} + {b_stride} * 1]"
                "tileloadd tmm4, [{a} + {a_stride} * 1]"
                "tdpbf16ps tmm0, tmm4, tmm6"
                "tileloadd tmm7, [{b} + {b_stride} * 1 + 64]"
                "tdpbf16ps tmm1, tmm4, tmm7"
                "tileloadd tmm5, [{below} + {a_stride} * 1]"
                "add {below}, 64"
                "tdpbf16ps tmm2, tmm5, tmm6"
                "tdpbf16ps tmm3, tmm5, tmm7"
            ),
            "tilestored [{out} + {stride} * 1], tmm0",
            "tilestored [{out} + {stride} * 1 + 64], tmm1",
            "tilestored [{under} + {stride} * 1], tmm2",
            "tilestored [{under} + {stride} * 1 + 64], tmm3",
            groups = inout(reg) groups => _,
            more = inout(reg) more => _,
            a = inout(reg) a => _,
            below = inout(reg) a.cast::<u8>().wrapping_add(GROUP * a_stride) => _,
            b = inout(reg) b => _,
            last = in(reg) last,
            out = in(reg) out,
            under = in(reg) out.cast::<u8>().wrapping_add(GROUP * stride),
            stride = in(reg) stride,
            a_stride = in(reg) a_stride,
            b_stride = in(reg) PANEL_STRIDE,
            group = const GROUP * PANEL_STRIDE,
            ahead = const AHEAD,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// As [`two_by_two`], for sixteen rows of 32 columns.
///
/// # Safety
///
/// As [`two_by_two`], with sixteen rows.
#[inline(never)]
unsafe fn one_by_two(
    groups: usize,
    more: usize,
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    last: *const f32,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: as in `two_by_two`.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            groups!(
                "tileloadd tmm6, [{b} + {b_stride} * 1]"
                "tileloadd tmm4, [{a} + {a_stride} * 1]"
                "tdpbf16ps tmm0, tmm4, tmm6"
                "tileloadd tmm7, [{b} + {b_stride} * 1 + 64]"
                "tdpbf16ps tmm1, tmm4, tmm7"
            ),
            "tilestored [{out} + {stride} * 1], tmm0",
            "tilestored [{out} + {stride} * 1 + 64], tmm1",
            groups = inout(reg) groups => _,
            more = inout(reg) more => _,
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            last = in(reg) last,
            out = in(reg) out,
            stride = in(reg) stride,
            a_stride = in(reg) a_stride,
            b_stride = in(reg) PANEL_STRIDE,
            group = const GROUP * PANEL_STRIDE,
            ahead = const AHEAD,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests;
