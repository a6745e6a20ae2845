//! The instruction set of the kernels: detected once, overridden by `SALSA_ISA`.

use std::sync::OnceLock;

/// An instruction set with dedicated kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AMX tiles for products of bfloat16, AVX-512 as in [`Isa::Avx512Bf16`] for everything else. On Linux only.
    Amx,
    /// AVX-512 with the dot product of bfloat16 pairs.
    Avx512Bf16,
    /// AVX-512 F/VL/BW/DQ with FMA.
    Avx512,
    /// AVX2 with FMA.
    Avx2,
    /// AArch64's 128-bit vectors.
    Neon,
    /// Portable code for every machine.
    Scalar,
}

impl Isa {
    /// The name in reports and in `SALSA_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Amx => "amx-bf16",
            Isa::Avx512Bf16 => "avx512-bf16",
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Neon => "neon",
            Isa::Scalar => "scalar",
        }
    }

    /// Whether this machine can run it.
    pub fn available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Isa::Avx512Bf16.available() && super::kernel::amx::available(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Isa::Avx512.available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("fma")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Isa::Neon => cfg!(target_arch = "aarch64"),
            Isa::Scalar => true,
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Whether this build contains its kernels: those of the target architecture, and the scalar ones.
    pub fn is_compiled(self) -> bool {
        match self {
            Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 | Isa::Avx2 => cfg!(target_arch = "x86_64"),
            Isa::Neon => cfg!(target_arch = "aarch64"),
            Isa::Scalar => true,
        }
    }

    /// All instruction sets, fastest first.
    pub const ALL: [Isa; 6] = [Isa::Amx, Isa::Avx512Bf16, Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Scalar];

    /// Whether products of bfloat16 numbers are faster than those of f32; elsewhere they only save memory.
    pub fn fast_bf16(self) -> bool {
        matches!(self, Isa::Amx | Isa::Avx512Bf16)
    }

    fn detect() -> Isa {
        Isa::ALL.into_iter().find(|isa| isa.available()).expect("the scalar kernels run everywhere")
    }
}

/// The instruction set in use in this process: the fastest available one, or the one `SALSA_ISA` names.
///
/// # Panics
///
/// On first use, when `SALSA_ISA` names an unknown instruction set or one that this machine lacks. Programs call
/// [`check`] first, which returns this as an error.
pub fn isa() -> Isa {
    static CHOSEN: OnceLock<Isa> = OnceLock::new();
    *CHOSEN.get_or_init(|| check().unwrap_or_else(|message| panic!("{message}")))
}

/// Returns the instruction set that [`isa`] will choose, or why `SALSA_ISA` cannot be honoured.
pub fn check() -> Result<Isa, String> {
    let Some(name) = std::env::var_os("SALSA_ISA") else { return Ok(Isa::detect()) };
    let name = name.to_string_lossy();
    let known = Isa::ALL.map(Isa::name).join(", ");
    let isa = Isa::ALL.into_iter().find(|isa| isa.name() == name);
    let isa = isa.ok_or_else(|| format!("SALSA_ISA={name}: unknown; one of {known}"))?;
    if !isa.available() {
        return Err(format!(
            "SALSA_ISA={name}: this machine does not have it; unset SALSA_ISA to use the fastest it has"
        ));
    }
    Ok(isa)
}

/// Compiles one function body for every instruction set and calls the one in use.
///
/// The body is ordinary Rust that the compiler vectorises. Rust never fuses `a * b + c`, so every version gives the
/// same bits.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
            fn avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            match $crate::backend::cpu::isa::isa() {
                #[cfg(target_arch = "x86_64")]
                $crate::backend::cpu::isa::Isa::Amx
                | $crate::backend::cpu::isa::Isa::Avx512Bf16
                | $crate::backend::cpu::isa::Isa::Avx512 => {
                    // SAFETY: `isa` returns only what this machine has.
                    unsafe { avx512($($arg),*) }
                }
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::backend::cpu::isa::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => body($($arg),*),
            }
        }
    };
}
pub(crate) use multiversion;
