"""Registers as regs.json: those of two published snapshots, in each way that segment attributes are written."""

import json
from pathlib import Path
from typing import Any

import pytest
import recast
from cli import output, refused

from x86tables.machine.registers import Registers
from x86tables.readers import read_registers

CODE = {"selector": "0x33", "present": True, "base": "0x0"}


def document(r: Registers) -> dict[str, Any]:
    """What bdump writes of a CPU."""
    found: dict[str, Any] = {name: hex(value) for name, value in (r.general | {"rsp": r.rsp or 0}).items()}
    for name in ("rip", "rflags", "cr0", "cr2", "cr3", "cr4", "efer", "star"):
        found[name] = hex(getattr(r, name))
    for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldtr"):
        s = getattr(r, name)
        limit_bits = (s.flags or 0) >> 8 & 0xF00
        found[name] = {"present": bool((s.flags or 0) & 0x8000), "selector": hex(s.selector), "base": hex(s.base)}
        found[name] |= {"limit": hex(s.limit), "attr": hex((s.flags or 0) >> 8 & 0xF0FF | limit_bits)}
    for name in ("gdtr", "idtr"):
        found[name] = {"base": hex(getattr(r, name).base), "limit": hex(getattr(r, name).limit)}
    return found | {"fpst": ["0x-Infinity"] * 8, "mxcsr": "0x1f80", "xcr0": "0x1"}


def test_a_snapshot_with_its_registers_is_the_machine(tmp_path: Path) -> None:
    """mem.dmp and regs.json together give what a core of the same CPU gives."""
    memory, cpus = recast.machine("ovmf", 0xD00, core := tmp_path / "qemu.core")
    (dump := tmp_path / "mem.dmp").write_bytes(recast.crashdump(memory, cpus[0], 5))
    (registers := tmp_path / "regs.json").write_text(json.dumps(document(cpus[0])))
    assert recast.said(dump, "--registers", registers) == recast.said(core)
    output("extract", dump, "--registers", registers, "-o", small := tmp_path / "small.core")
    assert recast.said(small)[0] == recast.said(core)[0]


@pytest.mark.parametrize(
    ("attr", "limit", "flags"),
    [
        ("0x22fb", "0x0", 0x20FB00),  # bdump, of a descriptor whose limit is said to be 0
        ("0x2fb", "0x0", 0x20FB00),  # WinDbg
        ("0xcf3", "0xffffffff", 0xCFF300),
        ("0xcff3", "0xffffffff", 0xCFF300),
        ("0xaffb00", "0xffffffff", 0xAFFB00),  # QEMU, through wtf's linux_mode
        ("0x8b", "0x67", 0x8B00),
        ("0x10000", "0x0", 0),
        ("0x0", "0x0", 0),
    ],
)
def test_attributes(attr: str, limit: str, flags: int, tmp_path: Path) -> None:
    segment = CODE | {"attr": attr, "limit": limit}
    (path := tmp_path / "regs.json").write_text(json.dumps({"cr3": "0x1000", "cs": segment}))
    (registers,) = read_registers(str(path))
    assert registers.cs is not None and registers.cs.flags is not None
    assert registers.cs.flags & ~0x1_0000 == flags & ~0x1_0000 and registers.cs.selector == 0x33


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "this is not JSON at line 1"),
        ("{" + '"a":[' * 100_000, "this is not JSON"),
        ('{"rip": "0x0"}', "no registers: a regs.json has gdtr, idtr, cr3"),
        ('{"cr3": "seven"}', "cr3: 'seven' is not a number"),
        ('{"cr3": true}', "cr3: 'True' is not a number"),
        ('{"cr3": "0x10000000000000000"}', "more than 64 bits hold"),
        ('{"gdtr": 7}', "gdtr: an object with base and limit expected"),
        ('{"gdtr": {"base": "0x0"}}', "gdtr.limit: 'None' is not a number"),
        ('{"cr3": "0x0", "cs": {"selector": "0x12345"}}', "cs.selector: 0x12345 is more than 16 bits hold"),
    ],
)
def test_damaged(text: str, sentence: str, tmp_path: Path) -> None:
    (path := tmp_path / "regs.json").write_text(text)
    (image := tmp_path / "image").write_bytes(bytes(0x1000))
    said = refused("dump", image, "--registers", path)
    assert sentence in said and str(path) in said


def test_given_as_an_image(tmp_path: Path) -> None:
    (path := tmp_path / "regs.json").write_text('{\n  "gdtr": {"base": "0x0"}}')
    assert "give it as --registers FILE with the IMAGE" in refused("dump", path)
