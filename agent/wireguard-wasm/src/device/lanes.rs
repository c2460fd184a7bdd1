//! Four words side by side: one vector register in WebAssembly, an array elsewhere, so that the
//! code over it runs under native tests too.

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod real {
    use core::arch::wasm32::*;

    #[derive(Clone, Copy)]
    pub struct Lanes(v128);

    impl Lanes {
        #[inline(always)]
        pub fn splat(word: u32) -> Lanes {
            Lanes(u32x4_splat(word))
        }

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

        /// Rotations by whole bytes are shuffles. (A multiplication in place of the left shift of the
        /// others was measured no faster.)
        #[inline(always)]
        pub fn rotate_left<const BITS: u32>(self) -> Lanes {
            let x = self.0;
            Lanes(match BITS {
                16 => i8x16_shuffle::<2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13>(x, x),
                8 => i8x16_shuffle::<3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14>(x, x),
                _ => v128_or(u32x4_shl(x, BITS), u32x4_shr(x, 32 - BITS)),
            })
        }

        /// Rows become columns.
        #[inline(always)]
        pub fn transpose(rows: [Lanes; 4]) -> [Lanes; 4] {
            let [a, b, c, d] = rows.map(|row| row.0);
            let low_ab = i32x4_shuffle::<0, 4, 1, 5>(a, b);
            let high_ab = i32x4_shuffle::<2, 6, 3, 7>(a, b);
            let low_cd = i32x4_shuffle::<0, 4, 1, 5>(c, d);
            let high_cd = i32x4_shuffle::<2, 6, 3, 7>(c, d);
            [
                Lanes(i64x2_shuffle::<0, 2>(low_ab, low_cd)),
                Lanes(i64x2_shuffle::<1, 3>(low_ab, low_cd)),
                Lanes(i64x2_shuffle::<0, 2>(high_ab, high_cd)),
                Lanes(i64x2_shuffle::<1, 3>(high_ab, high_cd)),
            ]
        }
    }
}

#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
mod real {
    #[derive(Clone, Copy)]
    pub struct Lanes([u32; 4]);

    impl Lanes {
        pub fn splat(word: u32) -> Lanes {
            Lanes([word; 4])
        }

        pub fn of(words: [u32; 4]) -> Lanes {
            Lanes(words)
        }

        pub fn load(bytes: &[u8; 16]) -> Lanes {
            Lanes(core::array::from_fn(|i| super::super::message::u32_at(bytes, i * 4)))
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

        pub fn rotate_left<const BITS: u32>(self) -> Lanes {
            Lanes(self.0.map(|word| word.rotate_left(BITS)))
        }

        pub fn transpose(rows: [Lanes; 4]) -> [Lanes; 4] {
            core::array::from_fn(|column| Lanes(rows.map(|row| row.0[column])))
        }
    }
}

pub use real::Lanes;
