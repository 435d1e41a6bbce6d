//! A machine on disk: a state file and a memory file.

pub mod state_file;
