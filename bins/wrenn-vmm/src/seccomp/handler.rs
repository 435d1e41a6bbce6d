//! The last words of a program whose thread asked the kernel for something it may not.

use std::io;

/// Firecracker's exit status for it.
const STATUS: i32 = 148;

/// Has SIGSYS handled.
pub(super) fn install() -> io::Result<()> {
    let handle: extern "C" fn(i32, *const libc::siginfo_t, *const libc::c_void) = handle;
    // SAFETY: an all-zero sigaction is a valid one: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
    // SAFETY: the handler has the type that SA_SIGINFO wants, and does only what a handler may (write, _exit).
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Where the kernel puts the call's number in siginfo (`_sigsys._syscall`, asm-generic/siginfo.h).
const NUMBER: usize = 24;

extern "C" fn handle(_: i32, info: *const libc::siginfo_t, _: *const libc::c_void) {
    // SAFETY: the kernel passes a whole siginfo (128 bytes), which holds an int at this offset for SIGSYS.
    let number = unsafe { info.byte_add(NUMBER).cast::<i32>().read() };
    let mut text =
        *b"Error: system call 000 is not in this thread's seccomp filter (--no-seccomp runs without)\n";
    let mut rest = number.unsigned_abs();
    for digit in text[19..22].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    // SAFETY: the buffer is there for the call; _exit ends the program without running anything of it.
    unsafe {
        libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
        libc::_exit(STATUS);
    }
}
