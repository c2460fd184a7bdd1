//! Four words side by side: one vector register in WebAssembly, an array elsewhere, so that the
//! code over it runs under native tests too.

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod real {
    use core::arch::wasm32::*;

    #[derive(Clone, Copy)]
    pub struct Lanes(v128);

    impl Lanes {
        #[inline(always)]
        pub fn of(words: [u32; 4]) -> Lanes {
            Lanes(u32x4(words[0], words[1], words[2], words[3]))
        }

        #[inline(always)]
        pub fn load(bytes: &[u8; 16]) -> Lanes {
            // SAFETY: 16 readable bytes; v128.load has no alignment to keep.
            Lanes(unsafe { v128_load(bytes.as_ptr().cast()) })
        }

        #[inline(always)]
        pub fn store(self, bytes: &mut [u8; 16]) {
            // SAFETY: 16 writable bytes; v128.store has no alignment to keep.
            unsafe { v128_store(bytes.as_mut_ptr().cast(), self.0) }
        }

        #[inline(always)]
        pub fn add(self, other: Lanes) -> Lanes {
            Lanes(u32x4_add(self.0, other.0))
        }

        #[inline(always)]
        pub fn xor(self, other: Lanes) -> Lanes {
            Lanes(v128_xor(self.0, other.0))
        }

        /// Rotations by whole bytes are shuffles.
        #[inline(always)]
        pub fn rotate16(self) -> Lanes {
            let x = self.0;
            Lanes(i8x16_shuffle::<2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13>(x, x))
        }

        #[inline(always)]
        pub fn rotate8(self) -> Lanes {
            let x = self.0;
            Lanes(i8x16_shuffle::<3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14>(x, x))
        }

        /// 2^BITS in each word, hidden from the compiler, which would make a shift of it again: a
        /// shift is four instructions in JavaScriptCore, a multiplication one.
        pub fn factor<const BITS: u32>() -> Lanes {
            Lanes(u32x4_splat(core::hint::black_box(1 << BITS)))
        }

        /// To the left, with `factor::<BITS>()` at hand.
        #[inline(always)]
        pub fn rotate<const BITS: u32>(self, factor: Lanes) -> Lanes {
            Lanes(v128_or(i32x4_mul(self.0, factor.0), u32x4_shr(self.0, 32 - BITS)))
        }

        /// Words move down by 1, 2 or 3 places, those that fall out come back on top.
        #[inline(always)]
        pub fn turn<const WORDS: usize>(self) -> Lanes {
            let x = self.0;
            Lanes(match WORDS {
                1 => i32x4_shuffle::<1, 2, 3, 0>(x, x),
                2 => i32x4_shuffle::<2, 3, 0, 1>(x, x),
                _ => i32x4_shuffle::<3, 0, 1, 2>(x, x),
            })
        }
    }
}

#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
mod real {
    use super::super::message::u32_at;

    #[derive(Clone, Copy)]
    pub struct Lanes([u32; 4]);

    impl Lanes {
        pub fn of(words: [u32; 4]) -> Lanes {
            Lanes(words)
        }

        pub fn load(bytes: &[u8; 16]) -> Lanes {
            Lanes(core::array::from_fn(|i| u32_at(bytes, i * 4)))
        }

        pub fn store(self, bytes: &mut [u8; 16]) {
            for (place, word) in bytes.chunks_exact_mut(4).zip(self.0) {
                place.copy_from_slice(&word.to_le_bytes());
            }
        }

        pub fn add(self, other: Lanes) -> Lanes {
            Lanes(core::array::from_fn(|i| self.0[i].wrapping_add(other.0[i])))
        }

        pub fn xor(self, other: Lanes) -> Lanes {
            Lanes(core::array::from_fn(|i| self.0[i] ^ other.0[i]))
        }

        pub fn rotate16(self) -> Lanes {
            Lanes(self.0.map(|word| word.rotate_left(16)))
        }

        pub fn rotate8(self) -> Lanes {
            Lanes(self.0.map(|word| word.rotate_left(8)))
        }

        pub fn factor<const BITS: u32>() -> Lanes {
            Lanes([1 << BITS; 4])
        }

        pub fn rotate<const BITS: u32>(self, factor: Lanes) -> Lanes {
            Lanes(core::array::from_fn(|i| {
                self.0[i].wrapping_mul(factor.0[i]) | (self.0[i] >> (32 - BITS))
            }))
        }

        pub fn turn<const WORDS: usize>(self) -> Lanes {
            Lanes(core::array::from_fn(|i| self.0[(i + WORDS) % 4]))
        }
    }
}

impl Lanes {
    /// What is in memory, and read from there: no compiler may keep it in a register instead.
    #[inline(always)]
    pub fn fetch(&self) -> Lanes {
        // SAFETY: a reference is readable and aligned.
        unsafe { core::ptr::from_ref(self).read_volatile() }
    }

    /// Writes to memory now.
    #[inline(always)]
    pub fn put(&mut self, lanes: Lanes) {
        // SAFETY: a reference is writable and aligned.
        unsafe { core::ptr::from_mut(self).write_volatile(lanes) }
    }
}

pub use real::Lanes;
