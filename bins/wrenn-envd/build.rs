//! Messages and service traits from `proto/`, made anew by every build: neither protoc nor generated code is kept.
#![forbid(unsafe_code)]

use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 2] = ["process.proto", "filesystem.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    // The generated clients hide behind a feature that this crate, a server only, does not have.
    println!("cargo::rustc-check-cfg=cfg(feature, values(\"client\"))");

    let descriptors = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?).join("envd.fds");
    fs::write(&descriptors, protox_bytes()?)?;
    connectrpc_build::Config::new()
        .descriptor_set(&descriptors)
        .files(&FILES)
        .gate_client_feature(true)
        .emit_register_fn(false)
        .emit_rerun_directives(false) // it would name the descriptors, which are newer than their own build
        .include_file("_connectrpc.rs")
        .compile()?;
    Ok(())
}

fn protox_bytes() -> Result<Vec<u8>, protox::Error> {
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES)?;
    Ok(compiler.encode_file_descriptor_set())
}
