//! Driver side.
