"""Captured systems: everything that QEMU's monitor said of them, beside what we read out of their memory.

The monitor's facts are in images/NAME.json (capture.py there says how they were taken). Fields are decoded from the
monitor's bytes by the declarations of these tests, which share nothing with the package.
"""

import json
import lzma
import re
from functools import cache
from typing import Any

import pytest
from cli import IMAGES, dumped, output
from declarations import whole

from x86tables.machine.image import Snapshot
from x86tables.machine.machine import Machine
from x86tables.machine.mappings import mappings
from x86tables.machine.paging import Access, Page
from x86tables.machine.probe import Fault, Ok
from x86tables.readers import open_image

NAMES = sorted(path.stem for path in IMAGES.glob("*.json"))
PAGED = sorted(path.name.removesuffix("-tables.core.xz") for path in IMAGES.glob("*-tables.core.xz"))
LISTED = sorted(path.name.removesuffix(".tlb.xz") for path in IMAGES.glob("*.tlb.xz"))
GATES = {0x5: "task-gate", 0xE: "interrupt", 0xF: "trap"}
SYSTEM = {0x2: "ldt", 0x9: "tss-available", 0xB: "tss-busy"}
ANY = Access(ac=True)  # gva2gpa asks for no rights; with RFLAGS.AC the supervisor may read user pages, too


@cache
def facts(name: str) -> Any:
    return json.loads((IMAGES / f"{name}.json").read_text())


@cache
def shown(name: str) -> Any:
    return dumped(IMAGES / f"{name}.core")


@cache
def tables(name: str) -> Snapshot:
    """The image that has all page tables; without paging the small one."""
    path = IMAGES / f"{name}-tables.core.xz"
    return open_image(str(path if path.exists() else IMAGES / f"{name}.core"))


def cpus(name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(the monitor's facts, what dump says) of each CPU."""
    return list(zip(facts(name)["cpus"], shown(name)["cpus"], strict=True))


def number(text: str, name: str) -> int:
    found = re.search(rf"\b{name} *=([0-9a-f]+)", text)
    assert found, name
    return int(found[1], 16)


def plain(value: Any) -> Any:
    return int(value, 16) if isinstance(value, str) else value


def test_the_set_is_complete() -> None:
    assert NAMES == ["cloud", "grub", "linux", "linux32", "memtest", "ovmf", "rust", "seabios", "xen"]
    assert PAGED == ["cloud", "linux", "linux32", "memtest", "ovmf", "rust", "xen"]
    assert LISTED == ["cloud", "linux", "memtest", "ovmf", "rust", "xen"]


@pytest.mark.parametrize("name", NAMES)
def test_registers(name: str) -> None:
    for fact, cpu in cpus(name):
        text, registers = fact["info_registers"], cpu["registers"]
        for register, names in {"rip": "[RE]IP", "rsp": "[RE]SP", "rflags": "(?:RFL|EFL)"}.items():
            assert int(registers[register], 16) == number(text, names), register
        for register in ("cr0", "cr2", "cr3", "cr4"):
            assert int(registers[register], 16) == number(text, register.upper()), register
        for register in ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldtr"):
            title = register.upper().replace("LDTR", "LDT")
            found = re.search(rf"^{title} *=(\w+) (\w+) (\w+) (\w+)", text, re.M)
            assert found, register
            said = registers[register]
            held = [said["selector"], *(plain(said[key]) for key in ("base", "limit", "flags"))]
            held[3] &= 0x00FFFF00  # the monitor leaves the base bits out
            assert held == [int(word, 16) for word in found.groups()], register
        for register in ("gdtr", "idtr"):
            found = re.search(rf"^{register[:3].upper()}= +(\w+) (\w+)", text, re.M)
            assert found
            assert [plain(registers[register][key]) for key in ("base", "limit")] == [
                int(w, 16) for w in found.groups()
            ]
        assert registers["cpl"] == number(text, "CPL")
        assert registers["efer"] is None and registers["star"] is None, "a core does not hold them"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_assumed_is_so(name: str) -> None:
    for fact, cpu in cpus(name):
        efer, cr0 = number(fact["info_registers"], "EFER"), number(fact["info_registers"], "CR0")
        assert cpu["mode"] == ("long64" if efer & 1 << 10 else "protected32" if cr0 & 1 else "real")
        said = " ".join(cpu["assumed"])
        paged = cr0 >> 31
        assert ("EFER.LME=1" in said) == (paged and efer >> 8 & 1), "the mode was not told by the image"
        # where nothing tells, it decides nothing but bit I/D of a fetch's error code: memtest has it clear
        assert "EFER.NXE=1" not in said or efer & 1 << 11 or "EFER.NXE=1 (no entry on the walks" in said


@pytest.mark.parametrize("name", NAMES)
def test_every_byte_of_every_table(name: str) -> None:
    for fact, cpu in cpus(name):
        for table, rows in (("gdt", "entries"), ("idt", "gates"), ("ldt", "entries")):
            if (said := fact[table]) is None or table not in cpu:
                assert cpu.get(table) is None
                continue
            held = cpu[table]
            assert (held["base"], held["limit"]) == (said["base"], said["limit"])
            size = {"gdt": 8, "idt": 16 if cpu["mode"] == "long64" else 8, "ldt": 8}[table]
            whole_rows = len(said["raw"]) // (2 * size) * 2 * size
            assert "".join(row["raw"] for row in held[rows]) == said["raw"][:whole_rows].replace("??", "")
        if fact["tss"] is not None:
            assert (cpu["tss"]["base"], cpu["tss"]["limit"]) == (fact["tss"]["base"], fact["tss"]["limit"])
            assert cpu["tss"]["raw"] == fact["tss"]["raw"][:208]
        elif cpu["mode"] != "real":
            assert cpu["tss"]["error"] == "never loaded: TR is null"
        if "ivt" in fact:
            assert "".join(row["raw"] for row in cpu["ivt"]) == fact["ivt"]["raw"]


@pytest.mark.parametrize("name", NAMES)
def test_every_field_of_every_descriptor(name: str) -> None:
    for _, cpu in cpus(name):
        wide = cpu["mode"] == "long64"
        index = 0
        for row in cpu["gdt"]["entries"]:
            raw = bytes.fromhex(row["raw"])
            if row["kind"] in ("refused", "call-gate"):  # below Xen's own descriptors is memory that is no table
                assert name == "xen" and row["selector"] < 0xE000
                index += len(raw) // 8
                continue
            system = not raw[5] & 0x10 and any(raw) and index > 0
            layout = "SegmentDescriptor" if not system else "SystemDescriptor" if wide else "LegacySystemDescriptor"
            fields = whole(layout, raw)
            assert (row["index"], row["selector"], row["truncated"]) == (index, index * 8, False)
            for key in ("base", "limit", "g", "type", "s", "dpl", "p", "avl", *(() if system else ("d_b", "l"))):
                assert plain(row[key]) == fields[key], (row["selector"], key)
            assert row["effective_limit"] == (fields["limit"] << 12 | 0xFFF if fields["g"] else fields["limit"])
            assert row["kind"] == kind(fields, wide, system and any(raw), not any(raw) or index == 0)
            index += len(raw) // 8


def kind(fields: dict[str, int], wide: bool, system: bool, null: bool) -> str:
    if null:
        return "null"
    if system:
        return SYSTEM[fields["type"]].replace("tss", "tss" if wide else "tss32")
    if not fields["type"] & 8:
        return "data"
    return "code64" if fields["l"] else "code32" if fields["d_b"] else "code16"


@pytest.mark.parametrize("name", NAMES)
def test_every_field_of_every_gate(name: str) -> None:
    for _, cpu in cpus(name):
        for vector, row in enumerate(cpu.get("idt", {"gates": ()})["gates"]):
            wide = cpu["mode"] == "long64"
            fields = whole("Gate" if wide else "LegacyGate", bytes.fromhex(row["raw"]))
            expected = {key: fields[key] for key in ("offset", "selector", "dpl", "p")} | {"ist": fields.get("ist", 0)}
            assert {key: plain(row[key]) for key in expected} == expected
            assert (row["vector"], row["kind"].removesuffix("-gate32")) == (vector, GATES[fields["type"]])
        for vector, row in enumerate(cpu.get("ivt", ())):
            fields = whole("RealModeVector", bytes.fromhex(row["raw"]))
            assert (row["vector"], row["segment"], plain(row["offset"])) == (
                vector,
                fields["segment"],
                fields["offset"],
            )


@pytest.mark.parametrize("name", NAMES)
def test_every_field_of_the_tss(name: str) -> None:
    for fact, cpu in cpus(name):
        if fact["tss"] is None:
            continue
        raw, tss = bytes.fromhex(fact["tss"]["raw"])[:104], cpu["tss"]
        if cpu["mode"] == "long64":
            fields = whole("Tss", raw)
            assert [plain(value) for value in tss["rsp"]] == [fields[f"rsp{n}"] for n in range(3)]
            assert [plain(value) for value in tss["ist"]] == [fields[f"ist{n}"] for n in range(1, 8)]
        else:
            fields = whole("Tss32", raw)
            for key in ("esp0", "esp1", "esp2", "ss0", "ss1", "ss2", "cr3", "eip", "eflags", "link", "ldt"):
                assert plain(tss[key]) == fields[key]
        assert tss["iopb"] == fields["iopb"]
        assert tss["open_ports"] is None and fields["iopb"] > tss["limit"], "these systems open no ports"


@pytest.mark.parametrize("name", NAMES)
def test_every_translation(name: str) -> None:
    for fact, machine in zip(facts(name)["cpus"], tables(name).machines, strict=True):
        for linear, physical in fact["gva2gpa"].items():
            assert translation(machine, int(linear, 16)) == physical, linear


def translation(machine: Machine, linear: int) -> str | None:
    answer = machine.space.probe(linear, ANY)
    if isinstance(answer, Ok):
        return hex(answer.physical)
    assert isinstance(answer, Fault)
    assert not answer.error_code, "not present, or not canonical, is all that is wrong with any of these"
    return None


@pytest.mark.parametrize("name", NAMES)
def test_stacks_end_where_the_monitor_has_no_mapping(name: str) -> None:
    for fact, cpu in cpus(name):
        for stack in (cpu.get("tss") or {}).get("stacks", ()):
            if not stack["name"].startswith("IST"):
                continue
            if "not canonical" in stack["below"]:
                assert (int(stack["top"], 16) >> 47) + 1 not in (1, 1 << 17)
                continue
            if stack["below"].startswith("the stack of"):
                neighbour = stack["below"].removeprefix("the stack of ")
                assert [other["top"] for other in cpu["tss"]["stacks"] if other["name"] == neighbour] == [
                    stack["bottom"]
                ]
                continue
            if stack["below"] == "the TSS":
                assert int(stack["bottom"], 16) == int(fact["tss"]["base"], 16) + fact["tss"]["limit"] + 1
                continue
            mapped = fact["gva2gpa"]
            pages = {page: mapped[page] for page in mapped if page.endswith("000")}
            top, bottom = int(stack["top"], 16), int(stack["bottom"], 16)
            assert all(pages[hex(page)] for page in range(bottom, top, 0x1000)), stack
            assert (pages[hex(bottom - 0x1000)] is None) != ("read-only" in stack["below"]), stack
            assert (stack["size"] == 0) == (pages[hex(top - 1 & -0x1000)] is None)


@pytest.mark.parametrize("name", LISTED)
def test_all_mappings(name: str) -> None:
    text = lzma.decompress((IMAGES / f"{name}.tlb.xz").read_bytes()).decode()
    blocks = re.split(r"^# CPU \d+\n", text, flags=re.M)[1:]
    for block, machine in zip(blocks, tables(name).machines, strict=True):
        lines = [line.split() for line in block.splitlines()]
        pages = {page.linear: page for page in mappings(machine.space)}
        assert list(pages) == sorted(pages) and len(pages) > (400 if name in ("memtest", "rust", "xen") else 2000)
        assert [(f"{linear:016x}:", f"{page.physical:016x}") for linear, page in pages.items()] == [
            (linear, physical) for linear, physical, _ in lines
        ]
        wrong = [flags for page, (_, _, flags) in zip(pages.values(), lines, strict=True) if not allowed(page, flags)]
        assert not wrong
        end = 0
        for linear, page in pages.items():
            assert linear >= end
            end = linear + page.size


def allowed(page: Page, flags: str) -> bool:
    """Whether the combined permissions fit the last level's, which is all that `info tlb` shows."""
    return (
        (page.size > 0x1000) == ("P" in flags)
        and page.writable <= ("W" in flags)
        and page.user <= ("U" in flags)
        and page.executable <= ("X" not in flags)
    )


@pytest.mark.parametrize("name", LISTED)
def test_a_listed_mapping_is_what_a_walk_finds(name: str) -> None:
    for machine in tables(name).machines:
        for page in list(mappings(machine.space))[::97]:
            assert machine.space.walk(page.linear + page.size - 1) == page


def test_flat_memory_of_firmware() -> None:
    (cpu,) = shown("ovmf")["cpus"]
    both: list[object] = []
    for flat in facts("ovmf")["flat"]:
        (table,) = [option[2:] for option in flat["options"] if option in ("--gdt", "--idt")]
        (found,) = dumped(IMAGES / flat["file"], *flat["options"])["cpus"]
        assert found[table] == cpu[table]
        both += ["--map", f"{IMAGES / flat['file']}@{flat['address']}", *flat["options"][2:]]
    (found,) = dumped(IMAGES / "ovmf-gdt.bin", "--base", facts("ovmf")["flat"][0]["address"], *both)["cpus"]
    assert (found["gdt"], found["idt"]) == (cpu["gdt"], cpu["idt"])


@pytest.mark.parametrize("name", NAMES)
def test_registers_may_come_from_the_monitor(name: str, tmp_path: Any) -> None:
    """`info registers` instead of the notes: the same tables, and nothing is assumed of EFER."""
    text = "\n".join(cpu["info_registers"] for cpu in facts(name)["cpus"])
    (tmp_path / "registers").write_text(text)
    found = dumped(IMAGES / f"{name}.core", "--registers", tmp_path / "registers")["cpus"]
    for (fact, cpu), other in zip(cpus(name), found, strict=True):
        for key in ("mode", "gdt", "idt", "ldt", "tss", "ivt"):
            assert other.get(key) == cpu.get(key), key
        assert int(other["registers"]["efer"], 16) == number(fact["info_registers"], "EFER")
        assert not [text for text in other["assumed"] if "EFER" in text]


def test_a_task_gate_shows_its_task() -> None:
    """The 32-bit Linux handles #DF by a task."""
    for machine, cpu in zip(open_image(str(IMAGES / "linux32.core")).machines, shown("linux32")["cpus"], strict=True):
        gate = cpu["idt"]["gates"][8]
        fields = whole("Tss32", machine.read(plain(cpu["gdt"]["entries"][-1]["base"]), 104))
        assert (gate["kind"], gate["selector"]) == ("task-gate", 0xF8)
        assert {name: plain(value) for name, value in gate["task"].items()} == {n: fields[n] for n in gate["task"]}
        assert [machine.task(selector) for selector in (0x60, 0xFFF8)] == [None, None]
    assert "0xf8 to 0x60:0xc5932638" in output("dump", IMAGES / "linux32.core")
