//! What a module without a standard library brings itself: an allocator and a panic handler.

use core::panic::PanicInfo;

#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// A panic is a bug. The instance is lost, and the host makes a new one; the last-error word stays
/// readable, since a trap leaves memory as it is.
#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    crate::device_abi::fail(crate::device_abi::Failure::Panic);
    core::arch::wasm32::unreachable()
}
