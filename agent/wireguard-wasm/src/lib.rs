//! WireGuard without I/O: the protocol as a device that is given datagrams, packets, the time and
//! entropy, and gives back datagrams, packets and the time of its next deadline.
//!
//! `device` is the protocol (whitepaper: <https://www.wireguard.com/papers/wireguard.pdf>). It
//! needs `alloc` and nothing else, opens no socket, reads no clock. `stack` is TCP, UDP and ICMP over
//! packets, usable alone; `tunnel` joins the two. `device_abi` is the face that
//! WebAssembly shows to its host; ABI.md describes each export.
#![no_std]
#![deny(unsafe_op_in_unsafe_fn)]
#![cfg_attr(feature = "wasm-tests", feature(test))]

extern crate alloc;
#[cfg(feature = "wasm-tests")]
extern crate std;
#[cfg(feature = "wasm-tests")]
extern crate test;

pub mod device;
pub mod stack;
#[cfg(target_arch = "wasm32")]
pub mod stack_abi;
pub mod tunnel;
#[cfg(target_arch = "wasm32")]
pub mod device_abi;
#[cfg(feature = "wasm-tests")]
pub mod test_runner;
#[cfg(all(target_arch = "wasm32", not(feature = "wasm-tests")))]
mod wasm;
