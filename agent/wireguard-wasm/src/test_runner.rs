//! The crate's tests inside WebAssembly: the compiler hands what `#[test]` has collected to `run`, and the
//! host calls one after the other by number, each in an instance of its own, since a panic is a trap.
//! Of the feature `wasm-tests` alone, with a standard library; `test.mjs` builds it and calls it.

use std::string::String;
use std::sync::OnceLock;
use std::vec::Vec;
use test::{TestDescAndFn, TestFn};

struct Test {
    name: String,
    is_ignored: bool,
    run: fn() -> Result<(), String>,
}

static TESTS: OnceLock<Vec<Test>> = OnceLock::new();

#[link(wasm_import_module = "host")]
unsafe extern "C" {
    /// The words of a panic.
    fn panicked(pointer: *const u8, length: usize);
}

/// What the compiler calls in the place of libtest's own.
pub fn run(tests: &[&TestDescAndFn]) {
    std::panic::set_hook(std::boxed::Box::new(|info| {
        let words = std::format!("{info}");
        unsafe { panicked(words.as_ptr(), words.len()) }
    }));
    let all = tests.iter().map(|one| match one.testfn {
        TestFn::StaticTestFn(run) => {
            let name = std::format!("{}", one.desc.name);
            Test { name, is_ignored: one.desc.ignore, run }
        }
        _ => panic!("found a test that is no function"),
    });
    assert!(TESTS.set(all.collect()).is_ok());
}

fn test(number: usize) -> &'static Test {
    &TESTS.get().expect("main comes first")[number]
}

#[unsafe(no_mangle)]
extern "C" fn test_count() -> usize {
    TESTS.get().expect("main comes first").len()
}

#[unsafe(no_mangle)]
extern "C" fn test_name(number: usize) -> *const u8 {
    test(number).name.as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn test_name_bytes(number: usize) -> usize {
    test(number).name.len()
}

#[unsafe(no_mangle)]
extern "C" fn test_is_ignored(number: usize) -> bool {
    test(number).is_ignored
}

/// Traps where the test fails.
#[unsafe(no_mangle)]
extern "C" fn test_run(number: usize) {
    (test(number).run)().unwrap();
}
