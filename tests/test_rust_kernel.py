"""examples/rust_kernel: built as cargo builds it, and its boots."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cli import call, output
from linking import Linked, run

from x86tables import config

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples/rust_kernel"
pytestmark = pytest.mark.needs("rustc", "as", "gcc")
DECLARED = (FOLDER / "kernel.toml").read_text()
SETTINGS = tomllib.loads((FOLDER / ".cargo/config.toml").read_text())["build"]
PROFILE = tomllib.loads((FOLDER / "Cargo.toml").read_text())["profile"]
RUSTC = ["rustc", "--edition", "2021", "-D", "warnings"]


def compiled(out: Path, *flags: str) -> Path:
    """The kernel, as cargo has rustc build it: `flags` are those that the build script asks for."""
    kernel = out / "kernel.elf"
    options = ["--target", SETTINGS["target"], *SETTINGS["rustflags"], "-C", f"panic={PROFILE['dev']['panic']}"]
    options += ["-C", f"opt-level={PROFILE['dev']['opt-level']}", "-g", *flags]
    run(FOLDER, *RUSTC, *options, "-o", str(kernel), "src/main.rs", env={**os.environ, "OUT_DIR": str(out)})
    return kernel


def build_script(out: Path, manifest: Path) -> "subprocess.CompletedProcess[str]":
    """What the build script does and says in a package's folder; `x86tables` is this one."""
    run(FOLDER, *RUSTC, "-o", str(out / "build-script"), "build.rs")
    command = out / "bin/x86tables"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m x86tables "$@"\n')
    command.chmod(0o755)
    environment = {"OUT_DIR": str(out), "CARGO_MANIFEST_DIR": str(manifest), "RUST_BACKTRACE": "0"}
    environment["PATH"] = f"{command.parent}:{os.environ['PATH']}"
    return subprocess.run(
        [out / "build-script"], cwd=manifest, env={**os.environ, **environment}, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rust")
    script = build_script(out, FOLDER)
    assert script.returncode == 0, script.stderr
    assert "CPU 0  survives: the #DF handler runs on IST1\n" in script.stdout
    asked = [line.removeprefix("cargo:rustc-") for line in script.stdout.splitlines() if line.startswith("cargo:rustc")]
    assert all(line.startswith("link-arg=") for line in asked)
    return compiled(out, *(word for line in asked for word in ("-C", line)))


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory, kernel: Path) -> Path:
    """The same kernel without the double fault's stack: the build script refuses it, so that we insist."""
    out = tmp_path_factory.mktemp("without")
    (out / "kernel.toml").write_text(DECLARED.replace(', ist = "double_fault"', ""))
    script = build_script(out, out)
    assert script.returncode == 101 and "the checks refuse kernel.toml" in script.stderr
    assert "CPU 0  triple-fault: " in script.stdout and not (out / "tables.rs").exists()
    call("build", out / "kernel.toml", "-o", out, "--emit", "rust,stubs", "--no-check")
    return compiled(out, "-C", f"link-args=-nostdlib -static -no-pie -T{FOLDER}/kernel.ld")


def test_the_tables_at_the_linkers_addresses(kernel: Path) -> None:
    linked = Linked(kernel)
    tables = config.load(str(FOLDER / "kernel.toml"))
    for table in (*tables.tss, tables.gdtr, tables.idtr):
        assert linked.read(linked.symbols[table.name], table.size) == table.build(linked.symbols.__getitem__)
    image = config.image(tables, *config.resolve(tables, str(kernel)))
    assert "made-up" not in str(image.remarks)
    said = output("check", FOLDER / "kernel.toml", "--symbols", kernel)
    assert "CPU 0  survives if a guard page is hit; the stack in use is guarded\n" in said
    assert "the #DF handler runs on IST1 (asm_df)" in said


@pytest.mark.needs("qemu-system-x86_64")
def test_a_breakpoint_returns(kernel: Path) -> None:
    said = call("prove", kernel, "--on", "qemu", "--append", "breakpoint", "--expect", "unknown")[1]
    assert "a breakpoint\n" in said and "execution goes on\n" in said and "QEMU ended with status 33\n" in said


@pytest.mark.needs("qemu-system-x86_64")
def test_a_stack_overflow_is_survived(kernel: Path) -> None:
    said = output("prove", kernel, "--on", "qemu", "--append", "overflow")
    assert "\nsurvives\n" in said and "  a double fault\n" in said
    assert f"QEMU ended with status {2 * 8 + 1}\n" in said


@pytest.mark.needs("qemu-system-x86_64")
def test_without_the_stack_it_is_a_triple_fault_as_check_says(without: Path) -> None:
    status, said, _ = call("check", without.parent / "kernel.toml", "--symbols", without)
    assert status == 1 and "CPU 0  triple-fault if a guard page is hit" in said and "error    IDT004" in said
    said = output("prove", without, "--on", "qemu", "--append", "overflow", "--expect", "triple-fault")
    assert "\ntriple-fault\n" in said and "a double fault\n" not in said
