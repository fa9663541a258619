//! Declares the kernel's tables once: tables.rs and stubs.s come from kernel.toml, checked before they are written.

use std::{env, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=kernel.toml");
    let out = env::var("OUT_DIR").unwrap();
    let status = Command::new("x86tables")
        .args(["build", "kernel.toml", "-o", &out, "--emit", "rust,stubs"])
        .status()
        .expect("x86tables: pip install 'x86tables[config]'");
    assert!(status.success(), "the checks refuse kernel.toml");
}
