//! The kernel's random numbers. The agent's only unsafe code: docs/decisions/004.md says why it is here.
#![allow(unsafe_code)]

use std::{ffi::c_int, fs::File, io};

use rustix::ioctl::{NoArg, Opcode, Setter, ioctl, opcode};

/// linux/random.h
const RNDADDENTROPY: Opcode = opcode::write::<[c_int; 2]>(b'R', 0x03);
const RNDRESEEDCRNG: Opcode = opcode::none(b'R', 0x07);

/// What one `RNDADDENTROPY` carries here.
const CHUNK: usize = 64;

/// `struct rand_pool_info`: the length of `buf` is whatever `buf_size` says.
#[repr(C)]
#[derive(Debug)]
struct PoolInfo {
    entropy_count: c_int,
    buf_size: c_int,
    buf: [u8; CHUNK],
}

/// Mixes these bytes into the pool, counts them as entropy, and has the generator draw its key anew from the pool at once:
/// whoever reads random numbers from here on reads none that another copy of this guest reads. (A write to /dev/urandom is
/// mixed in too and reaches the readers with the next reseed, within a minute.)
pub fn reseed(entropy: &[u8]) -> io::Result<()> {
    let device = File::open("/dev/urandom")?;
    for chunk in entropy.chunks(CHUNK) {
        let mut info = PoolInfo {
            entropy_count: chunk.len() as c_int * 8,
            buf_size: chunk.len() as c_int,
            buf: [0; CHUNK],
        };
        info.buf[..chunk.len()].copy_from_slice(chunk);
        // SAFETY: the opcode is linux/random.h's, and the kernel reads two integers and then `buf_size` bytes, which are at
        // most the CHUNK that follow.
        unsafe { ioctl(&device, Setter::<RNDADDENTROPY, PoolInfo>::new(info)) }?;
    }
    // SAFETY: the opcode is linux/random.h's and takes no argument.
    unsafe { ioctl(&device, NoArg::<RNDRESEEDCRNG>::new()) }?;
    Ok(())
}
