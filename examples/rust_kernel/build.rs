//! Declares the kernel's tables once: tables.rs and stubs.s come from kernel.toml, checked before they are written.

use std::{env, process::Command};

fn main() {
    for file in ["kernel.toml", "kernel.ld"] {
        println!("cargo:rerun-if-changed={}", file);
    }
    let out = env::var("OUT_DIR").unwrap();
    let status = Command::new("x86tables")
        .args(["build", "kernel.toml", "-o", &out, "--emit", "rust,stubs"])
        .status()
        .expect("x86tables: pip install x86tables");
    assert!(status.success(), "the checks refuse kernel.toml");
    let folder = env::var("CARGO_MANIFEST_DIR").unwrap();
    for argument in [
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        &format!("-T{}/kernel.ld", folder),
    ] {
        println!("cargo:rustc-link-arg={}", argument);
    }
}
