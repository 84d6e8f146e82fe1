//! Out of memory: one line and exit status 1, where Rust would abort the program.

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, until it has nothing left.
///
/// An allocation that fails can't become an error further up: most of Rust takes memory for granted. Decoders that would
/// cope say the same thing in other words.
pub struct OrExit;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for OrExit {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by the caller's promise, here and below.
        unsafe { or_exit(System.alloc(layout), layout.size()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { or_exit(System.alloc_zeroed(layout), layout.size()) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        unsafe { or_exit(System.realloc(pointer, layout, size), size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[inline]
fn or_exit(pointer: *mut u8, bytes: usize) -> *mut u8 {
    if pointer.is_null() && bytes > 0 {
        exit(bytes);
    }
    pointer
}

/// Says it without memory of its own, and without the destructors, which may want some.
#[cold]
fn exit(bytes: usize) {
    #[cfg(unix)]
    {
        use std::io::Write;
        let mut line = [0u8; 256];
        let mut rest = &mut line[..];
        let _ = writeln!(rest, "engine: {} ({} MiB more were needed)", crate::commands::OUT_OF_MEMORY, bytes >> 20);
        let left = rest.len();
        let length = line.len() - left;
        // SAFETY: `line` holds `length` bytes. No code of ours runs after `_exit`.
        unsafe {
            libc::write(2, line.as_ptr().cast(), length);
            libc::_exit(1);
        }
    }
    #[cfg(not(unix))]
    let _ = bytes;
}
