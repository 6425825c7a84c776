//! Which instruction set the scan and the hash may use, decided once per [`crate::ChainHasher`].

/// Selects the code path, not the result: every path gives the same chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Simd {
    /// Use the widest instruction set that this crate has code for and this CPU reports.
    #[default]
    Detect,
    /// Use no instructions beyond those the build was compiled for. For tests, and to rule the fast path
    /// out while chasing a fault.
    Portable,
}

/// The chosen code path. A value of the AVX2 arm is a proof that the CPU has the features.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cpu {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
}

impl Cpu {
    pub(crate) fn select(simd: Simd) -> Self {
        match simd {
            Simd::Portable => Self::Portable,
            Simd::Detect => Self::detect(),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn detect() -> Self {
        Avx2::detect().map_or(Self::Portable, Self::Avx2)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detect() -> Self {
        Self::Portable
    }
}

/// Proof that this CPU has AVX2, BMI1, BMI2 and POPCNT: [`Avx2::detect`] is the only way to get one.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

#[cfg(target_arch = "x86_64")]
impl Avx2 {
    fn detect() -> Option<Self> {
        let all = std::is_x86_feature_detected!("avx2")
            && std::is_x86_feature_detected!("bmi1")
            && std::is_x86_feature_detected!("bmi2")
            && std::is_x86_feature_detected!("popcnt");
        all.then_some(Self(()))
    }
}
