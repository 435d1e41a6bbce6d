//! The messages and service traits of `proto/`, as the build generates them.
#![allow(missing_docs, clippy::all)]

connectrpc::include_generated!();
