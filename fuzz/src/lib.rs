//! What must hold of any bytes. The fuzzer tries to find some for which it does not; the tests of lib/snap and lib/uffd replay
//! what it found before, on any toolchain.

mod images;
mod traces;

pub use images::{header, removed, sums, workingset};
pub use traces::trace;
