"""`dump`: the whole text of every image, and one machine at a time bent into what real ones do."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import specimens
from cli import IMAGES, call, dumped, output, refused, validator
from specimens import BASE, FRAME, STACK, TABLES, TSS

from x86tables import CallGate, Gate, Gdt, IoMap, LegacyGate, SegmentDescriptor, SystemDescriptor, Tss, Tss32
from x86tables.machine.memory import Memory
from x86tables.machine.registers import Registers, Segment, TableRegister
from x86tables.readers import elfcore
from x86tables.tables.gdt import Entry

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in IMAGES.glob("*.txt"))
SCHEMA = validator("dump")
CORE = IMAGES / "linux.core"
MAP = IMAGES / "linux.map"


def arguments(name: str) -> list[str]:
    symbols = IMAGES / f"{name}.map"
    return [f"tests/images/{name}.core", *(["--symbols", f"tests/images/{name}.map"] if symbols.exists() else [])]


@pytest.mark.parametrize("name", NAMES)
def test_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another text is welcome when it is better: `python tests/images/shrink.py` writes it, the diff shows it."""
    monkeypatch.chdir(ROOT)
    assert output("dump", *arguments(name)) == (IMAGES / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_text_fits_a_terminal(name: str) -> None:
    assert max(map(len, (IMAGES / f"{name}.txt").read_text().splitlines())) <= 100


def valid(document: Any) -> Any:
    errors = [f"{error.json_path}: {error.message}" for error in SCHEMA.iter_errors(document)]
    assert not errors
    return document


@pytest.mark.parametrize("name", NAMES)
def test_json_fits_the_schema(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    document = valid(dumped(*arguments(name)))
    assert document["image"]["path"] == f"tests/images/{name}.core"
    for wrong in ("gdt", "registers", "mode", "cpu"):
        broken = json.loads(json.dumps(document))
        broken["cpus"][0][wrong] = {"base": 0}
        assert not SCHEMA.is_valid(broken)


def test_numbers_are_written_as_promised() -> None:
    """Addresses and registers are 0x, lower case, unpadded; raw bytes are plain hex."""
    hexadecimal = re.compile(r"0x(0|[1-9a-f][0-9a-f]*)")

    def visit(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                visit(item, name)
        elif isinstance(value, list):
            for item in value:
                visit(item, key)
        elif key in ("base", "offset", "rip", "rsp", "rflags", "cr0", "cr2", "cr3", "cr4", "ist", "top", "bottom"):
            assert type(value) is int if key == "ist" and not isinstance(value, str) else hexadecimal.fullmatch(value)
        elif key == "raw":
            assert bytes.fromhex(value).hex() == value
        elif key in ("selector", "limit", "index", "vector", "dpl", "iopb", "cpl", "cpu"):
            assert type(value) is int
        elif key in ("p", "s", "g", "l", "d_b", "avl", "truncated"):
            assert type(value) is bool

    visit(dumped(CORE), "")


# Options


def test_one_cpu() -> None:
    both, one = dumped(CORE)["cpus"], dumped(CORE, "--cpu", 1)["cpus"]
    assert one == both[1:]
    assert output("dump", CORE, "--cpu", 1).count("\nCPU ") == 1
    assert refused("dump", CORE, "--cpu", 2) == f"--cpu 2: {CORE} has CPUs 0..1"


def test_an_idt_is_shown_once() -> None:
    text = output("dump", CORE)
    assert text.count("#DF") == 1
    assert "IDT  base 0xfffffe0000000000, limit 0xfff: shared with CPU 0, shown there" in text
    assert output("dump", CORE, "--cpu", 1).count("#DF") == 1


def test_a_gdt_is_shown_once(image: Callable[..., Path]) -> None:
    """A second CPU with the same GDT and a third with one slot less; JSON has all of all."""
    one, less = specimens.registers(), TableRegister(BASE, 0x2F)
    path = image(cpus=[one, one, one.replace(gdtr=less)])
    text = output("dump", path)
    assert f"GDT  base {BASE:#x}, limit 0x37: shared with CPU 0, shown there\n" in text
    assert f"GDT  base {BASE:#x}, limit 0x2f: 6 slots\n" in text and text.count("64-bit code, ring 0") == 2
    gdts = [cpu["gdt"] for cpu in valid(dumped(path))["cpus"]]
    assert gdts[0] == gdts[1] and len(gdts[1]["entries"]) == len(gdts[2]["entries"]) + 1


def test_what_is_shown_of_a_large_gdt_is_for_the_cpu(image: Callable[..., Path]) -> None:
    """Of three CPUs with one GDT of three pages, the last has a selector into a page that the others do not name."""
    one = specimens.registers().replace(gdtr=TableRegister(BASE, 0x2FFF))
    text = output("dump", image(cpus=[one, one, one.replace(fs=Segment(0x1008))]))
    assert text.count("GDT ") == 3 and text.count("limit 0x2fff: shared with CPU 0") == 1
    assert text.count("limit 0x2fff: 1536 slots") == 2


def test_a_gdt_is_walked_once_for_all_gates(image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every gate has a selector behind 4096 slots: looking up what it names does not decode them."""
    gates = b"".join(bytes(Gate.interrupt(BASE + vector * vector, 0x2FF8)) for vector in range(8))
    path = image({FRAME + specimens.IDT: gates}, gdtr=TableRegister(BASE, 0x2FFF))
    walks, entries = 0, Gdt.entries

    def counted(gdt: Gdt, **which: Any) -> Iterator[Entry]:
        nonlocal walks
        walks += 1
        return entries(gdt, **which)

    monkeypatch.setattr(Gdt, "entries", counted)
    assert output("dump", path).count("0x2ff8:") == 8
    assert walks == 1


def test_some_tables() -> None:
    (cpu, _) = dumped(CORE, "--table", "tss,gdt")["cpus"]
    assert {"gdt", "idt", "tss", "ldt"} & cpu.keys() == {"gdt", "tss"}
    text = output("dump", CORE, "--table", "idt")
    assert "\nIDT " in text and "\nGDT " not in text and "\nTSS " not in text
    assert refused("dump", CORE, "--table", "gdt,ivt") == "--table ivt: one of gdt, idt, tss, ldt"


def test_absent_gates(image: Callable[..., Path]) -> None:
    path = image({FRAME + specimens.IDT + 3 * 16: bytes(32)})
    text, everything = output("dump", path), output("dump", path, "--all")
    assert "2 absent gates not shown (--all shows them)" in text
    assert not re.search(r"^ +3 #BP", text, re.M)
    assert re.search(r"^ +3 #BP +-$", everything, re.M) and "absent gate" not in everything
    gates = dumped(path)["cpus"][0]["idt"]["gates"]
    assert [gate["vector"] for gate in gates] == list(range(8)), "JSON has all of them"
    assert (gates[3]["kind"], gates[3]["p"], gates[3]["raw"]) == ("absent", False, "00" * 16)


# Machines that are not what one expects


def flowing(text: str) -> str:
    """The text in one line."""
    return " ".join(text.split())


@pytest.fixture
def image(tmp_path: Path) -> Callable[..., Path]:
    """A core of the specimen's machine: `patches` over its physical memory, `changes` to its registers."""

    def make(
        patches: dict[int, bytes] = {},  # noqa: B006
        pages: set[int] | None = None,
        cpus: Iterable[Registers] = (specimens.registers(),),
        ram: str = "",
        **changes: Any,
    ) -> Path:
        data = specimens.memory()
        memory = Memory([(FRAME, len(data), data, 0)])
        for address, content in patches.items():
            memory.overlay(address, content)
        path = tmp_path / "made.core"
        kept = pages or {page for known in memory.ranges for page in range(known.start & -0x1000, known.stop, 0x1000)}
        notes = b"".join(elfcore.state_note(registers.replace(**changes)) for registers in cpus)
        notes += elfcore.note(b"x86tables", 0, f"ram={ram}".encode()) if ram else b""
        elfcore.write(str(path), memory, kept, notes)
        return path

    return make


def cpu(path: Path, *more: object) -> Any:
    (one,) = valid(dumped(path, *more))["cpus"]
    return one


def test_the_specimen(image: Callable[..., Path]) -> None:
    found = cpu(image())
    assert (found["mode"], found["tss"]["rsp"][0], found["tss"]["ist"][0]) == (
        "long64",
        hex(BASE + 0x3000),
        hex(BASE + 0x2000),
    )
    assert [entry["kind"] for entry in found["gdt"]["entries"]] == [
        "null",
        "code64",
        "data",
        "tss-available",
        "null",
        "null",
    ]


def test_tr_never_loaded(image: Callable[..., Path]) -> None:
    path = image(tr=Segment(0, 0, 0xFFFF, 0x8B00))
    assert cpu(path)["tss"] == {"base": "0x0", "limit": 0xFFFF, "error": "never loaded: TR is null"}
    assert "TSS  none: TR is null: never loaded" in output("dump", path)


def test_a_table_that_goes_beyond_its_last_mapped_page(image: Callable[..., Path]) -> None:
    """The specimen maps three pages, then one is missing: the GDT's last 24 bytes are not there."""
    path = image(gdtr=TableRegister(BASE + 0x2FF0, 0x27))
    found = cpu(path)["gdt"]
    assert [entry["index"] for entry in found["entries"]] == [0, 1]
    assert found["missing"] == [{"from": 16, "to": 40, "error": f"page fault at {BASE + 0x3000:#x}: PTE not present"}]
    text = output("dump", path)
    assert f"  bytes 0x10 to 0x27 cannot be read: page fault at {BASE + 0x3000:#x}: PTE not present" in text


def test_a_gate_that_is_half_there_is_not_shown(image: Callable[..., Path]) -> None:
    found = cpu(image(idtr=TableRegister(BASE + 0x2FE8, 0xFF)))["idt"]
    assert [gate["vector"] for gate in found["gates"]] == [0]
    assert found["missing"][0]["from"] == 24


def test_a_hole_in_the_middle_of_a_table(image: Callable[..., Path]) -> None:
    """Page 3 is not mapped and page 4 is again the first: what lies behind the gap is shown."""
    found = cpu(image(idtr=TableRegister(BASE + 0x2F00, 0x1200 - 1)))["idt"]
    vectors = [gate["vector"] for gate in found["gates"]]
    assert vectors == [*range(0x10)] and found["missing"][0]["to"] == 0x1100
    found = cpu(image(gdtr=TableRegister(BASE + 0x2F00, 0x1200 - 1)))["gdt"]
    assert {entry["index"] for entry in found["entries"]} >= {0x1100 // 8, 0x1100 // 8 + 1}


def test_a_table_of_which_nothing_is_there(image: Callable[..., Path]) -> None:
    path = image(gdtr=TableRegister(BASE + 0x3000, 0x37), idtr=TableRegister(0x8000_0000_0000, 0xFFF))
    found = cpu(path)
    assert found["gdt"] == {
        "base": hex(BASE + 0x3000), "limit": 0x37, "error": f"page fault at {BASE + 0x3000:#x}: PTE not present"
    }  # fmt: skip
    assert found["idt"]["error"] == "0x800000000000 is not canonical"
    assert "\n  cannot be read: 0x800000000000 is not canonical\n" in output("dump", path)


@pytest.mark.parametrize(("kept", "page"), [(set(range(TABLES, specimens.END, 0x1000)), FRAME), ({FRAME}, TABLES)])
def test_tables_whose_pages_are_not_in_the_image(image: Callable[..., Path], kept: set[int], page: int) -> None:
    """Of the tables themselves, or of the page tables on the way: all is shown that is known, and the status is 2."""
    status, out, err = call("dump", image(pages=kept), "--format", "json")
    why = f"physical page {page:#x} is not in this image"
    assert status == 2 and err.rstrip().endswith(why)
    (found,) = valid(json.loads(out))["cpus"]
    assert {found[table]["error"] for table in ("gdt", "idt", "tss")} == {why}


def test_an_idt_limit_of_0xffff(image: Callable[..., Path]) -> None:
    path = image(idtr=TableRegister(BASE, 0xFFFF))
    found = cpu(path)["idt"]
    assert found["limit"] == 0xFFFF
    assert [gate["vector"] for gate in found["gates"]] == list(range(256)), "256 are read, no more"
    assert "IDT  base 0xffff800000000000, limit 0xffff: 4096 gates (256 are read)" in output("dump", path)


def test_compatibility_mode(image: Callable[..., Path]) -> None:
    """A 32-bit CS under long mode: gates and system descriptors keep their 16 bytes."""
    path = image(cs=Segment(0x23, 0, 0xFFFF_FFFF, 0x00CF_FB00), rip=0x8048000, efer=None)
    found = cpu(path)
    assert found["mode"] == "compat"
    assert found["assumed"][0] == "EFER.LME=1 (a table lies above 4 GiB)"
    assert (len(found["idt"]["gates"]), len(found["idt"]["gates"][0]["raw"])) == (8, 32)
    assert found["tss"]["ist"][0] == hex(BASE + 0x2000)
    assert "CPU 0  compatibility mode (32-bit code in long mode), ring 3" in output("dump", path)


def test_a_descriptor_whose_second_half_is_beyond_the_limit(image: Callable[..., Path]) -> None:
    path = image(gdtr=TableRegister(BASE, 0x1F))
    last = cpu(path)["gdt"]["entries"][-1]
    assert (last["kind"], last["truncated"], len(last["raw"])) == ("tss-available", True, 16)
    assert "truncated: its second half is beyond the limit" in flowing(output("dump", path))


def test_a_table_cut_in_the_middle_of_an_entry(image: Callable[..., Path]) -> None:
    path = image(gdtr=TableRegister(BASE, 0x14), idtr=TableRegister(BASE + specimens.IDT, 0x18))
    found = cpu(path)
    assert found["gdt"]["tail"] == bytes(specimens.tables()[0x10:0x15]).hex()
    assert len(found["idt"]["gates"]) == 1
    text = output("dump", path)
    assert "limit 0x14: 2 slots and 5 bytes" in text and "limit 0x18: 1 gates and 9 bytes" in text


def test_a_null_descriptor_that_is_not_zero(image: Callable[..., Path]) -> None:
    path = image({FRAME: b"x86\0abcd"})
    assert "null, but not zero: 7838360061626364 (legal: the CPU never reads it)" in output("dump", path)
    assert cpu(path)["gdt"]["entries"][0]["raw"] == b"x86\0abcd".hex()


def test_a_selector_into_the_upper_half_of_a_descriptor(image: Callable[..., Path]) -> None:
    path = image({FRAME + specimens.IDT: bytes(Gate.interrupt(BASE, 0x20))})
    text = flowing(output("dump", path))
    assert "selector 0x20 is the upper half of the tss-available at 0x18; taken alone: " in text


def test_types_that_64_bit_mode_refuses(image: Callable[..., Path]) -> None:
    task = bytes(Gate.interrupt(0, 0x18).replace(type=5))
    path = image({FRAME + specimens.IDT + 8 * 7: task, FRAME + 8: bytes(SegmentDescriptor(p=True, type=0x5))})
    path = image({FRAME + specimens.IDT + 16: task, FRAME + 0x10: bytes(SegmentDescriptor(p=True, type=0x5))})
    found, text = cpu(path), output("dump", path)
    assert (found["idt"]["gates"][1]["kind"], found["gdt"]["entries"][2]["kind"]) == ("refused", "refused")
    assert task.hex() in text and "task gate" in text


def test_an_ldt_and_a_call_gate(image: Callable[..., Path]) -> None:
    ldt = Gdt()
    ldt.append(SegmentDescriptor.user_code())
    ldt.append(CallGate.to(BASE + 0x1234, 8, dpl=3))
    path = image({FRAME + 0x800: bytes(ldt)}, ldtr=Segment(0x28, BASE + 0x800, 0x1F, 0x8200))
    found = cpu(path)["ldt"]
    assert (found["base"], [entry["kind"] for entry in found["entries"]]) == (
        hex(BASE + 0x800),
        ["null", "code64", "call-gate"],
    )
    assert (found["entries"][2]["offset"], found["entries"][2]["target"]) == (hex(BASE + 0x1234), 8)
    assert f"LDT  base {BASE + 0x800:#x}, limit 0x1f: 4 slots" in output("dump", path)


def test_open_ports(image: Callable[..., Path]) -> None:
    ports = bytes(IoMap.allowing([0x3F8, 0x3F9, 0x60]))
    tss = bytes(Tss(rsp0=BASE + 0x2000)) + ports
    path = image({FRAME + 0x400: tss}, tr=Segment(0x18, BASE + 0x400, len(tss) - 1, 0x8B00))
    assert cpu(path)["tss"]["open_ports"] == [[0x60, 0x60], [0x3F8, 0x3F9]]
    assert "I/O map  base 0x68: open to ring 3: 0x60, 0x3f8-0x3f9" in output("dump", path)


def test_a_tss_that_ends_early(image: Callable[..., Path]) -> None:
    path = image(tr=Segment(0x18, BASE + TSS, 0x2B, 0x8B00))
    tss = cpu(path)["tss"]
    assert (tss["rsp"][0], tss["ist"], tss["iopb"]) == (hex(BASE + 0x3000), [hex(BASE + 0x2000), *[None] * 6], None)
    assert "IST2  beyond the limit" in output("dump", path)


def test_whatever_is_wrong_fits_a_terminal(image: Callable[..., Path]) -> None:
    """Refused descriptors and gates, causes of faults, a selector into an upper half, many open ports."""
    odd = bytes(Gate.interrupt(BASE, 0x20).replace(type=5))
    ports = bytes(IoMap.allowing(range(0x1000, 0x1100, 3)))
    patches = {
        FRAME + 8: bytes(SegmentDescriptor(p=True, type=0xF)) * 2,
        FRAME + specimens.IDT + 16: odd,
        FRAME + 0x400: bytes(Tss()) + ports,
        TABLES + 0x3008: (1 << 63 | STACK | 3).to_bytes(8, "little"),
    }
    tables = {"gdtr": TableRegister(BASE, 0x17FF), "ldtr": Segment(0x28, BASE + 0x1000, 0xF, 0x8200)}
    path = image(patches, tr=Segment(0x18, BASE + 0x400, 103 + len(ports), 0x8B00), **tables)
    text = output("dump", path, "--reg", "efer=0x500")
    assert [line for line in text.splitlines()[1:] if len(line) > 100] == []
    said = flowing(text)
    assert "not a system descriptor (type 0xf: trap gate); raw" in said
    assert f"raw {odd.hex()}; selector 0x20 is the" in said
    assert said.count(f"read: page fault at {BASE + 0x1000:#x}: PTE has reserved bits {1 << 63:#x} set") == 2
    assert "open to ring 3: 0x1000, 0x1003, " in said and "0x1021 and 74 more" in said


def test_a_tss_of_which_a_part_cannot_be_read(image: Callable[..., Path]) -> None:
    """It begins 40 bytes before the page that is missing, behind IST1's first half."""
    tss = bytes(Tss(rsp0=BASE + 0x2000))[:40]
    path = image({FRAME + 0x2FD8: tss}, tr=Segment(0x18, BASE + 0x2FD8, 0xFFF, 0x8B00))
    found, text = cpu(path)["tss"], output("dump", path)
    assert (found["rsp"], found["ist"]) == ([hex(BASE + 0x2000), "0x0", "0x0"], [None] * 7)
    assert (found["iopb"], found["open_ports"]) == (None, None)
    assert "  IST1  cannot be read\n" in text and "  zero: RSP1, RSP2\n" in text
    assert "  I/O map  base cannot be read\n" in text


def test_an_io_map_of_which_a_part_cannot_be_read(image: Callable[..., Path]) -> None:
    path = image({FRAME + 0x2F98: bytes(Tss())}, tr=Segment(0x18, BASE + 0x2F98, 0xFFF, 0x8B00))
    found = cpu(path)["tss"]
    assert (found["iopb"], found["open_ports"]) == (0x68, None)
    assert "  I/O map  base 0x68: not known: not all of the I/O map can be read\n" in output("dump", path)


def test_a_tss_that_ends_in_the_base_of_the_io_map(image: Callable[..., Path]) -> None:
    path = image(tr=Segment(0x18, BASE + TSS, 0x66, 0x8B00))
    found = cpu(path)["tss"]
    assert (found["iopb"], found["open_ports"]) == (None, None)
    assert "  I/O map  base beyond the limit: ring 3 has no ports\n" in output("dump", path)


PROTECTED = {"cr0": 0x11, "cr4": 0, "cs": Segment(8, 0, 0xFFFF_FFFF, 0x00CF_9B00), "rip": FRAME}
PROTECTED |= {"gdtr": TableRegister(FRAME, 0x37), "idtr": TableRegister(FRAME + specimens.IDT, 0x7F)}


def test_a_32_bit_tss_of_which_a_part_cannot_be_read(image: Callable[..., Path]) -> None:
    """ESP0 and SS0 are the last bytes of the image's memory; what follows is not known."""
    tail = bytes(Tss32(link=0x30, esp0=0xC000_1000, ss0=0x10))[:12]
    path = image({specimens.END - 12: tail}, tr=Segment(0x18, specimens.END - 12, 0x67, 0x8B00), **PROTECTED)
    found, text = cpu(path)["tss"], output("dump", path)
    assert (found["esp0"], found["ss0"], found["link"]) == ("0xc0001000", 0x10, 0x30)
    assert {found[name] for name in ("esp1", "ss1", "esp2", "ss2", "cr3", "eip", "eflags", "ldt", "iopb")} == {None}
    assert "  ring 0 stack  0x10:0xc0001000\n  ring 1 stack  cannot be read\n" in text
    assert "  task         eip cannot be read, cr3 cannot be read, ldt cannot be read, link 0x30\n" in text
    short = image({FRAME + 0x400: tail}, tr=Segment(0x18, FRAME + 0x400, 0x9, 0x8B00), **PROTECTED)
    assert cpu(short)["tss"]["ss1"] is None and "ring 1 stack  beyond the limit\n" in output("dump", short)


@pytest.mark.parametrize("kind", [1, 3])
def test_a_16_bit_tss(image: Callable[..., Path], kind: int) -> None:
    """Words as the figure has them: link, SP0, SS0 .. SS2, IP, FLAGS, eight registers, four segments, LDT."""
    words = [0x48, 0x1000, 0x10, 0x2000, 0x19, 0x3000, 0x22, 0x1234, 0x202, *range(12), 0x28]
    tss = b"".join(word.to_bytes(2, "little") for word in words)
    path = image({FRAME + 0x400: tss}, tr=Segment(0x18, FRAME + 0x400, 0x2B, 0x8000 | kind << 8), **PROTECTED)
    assert cpu(path)["tss"] == {
        "base": hex(FRAME + 0x400), "limit": 0x2B, "link": 0x48, "sp0": "0x1000", "ss0": 0x10, "sp1": "0x2000",
        "ss1": 0x19, "sp2": "0x3000", "ss2": 0x22, "ip": "0x1234", "flags": "0x202", "ldt": 0x28, "raw": tss.hex(),
    }  # fmt: skip
    text = output("dump", path)
    assert "limit 0x2b: 44 bytes, a 16-bit TSS\n  ring 0 stack  0x10:0x1000\n  ring 1 stack  0x19:0x2000\n" in text
    assert "  task         ip 0x1234, flags 0x202, ldt 0x28, link 0x48\n\nLDT" in text


def test_stacks(image: Callable[..., Path]) -> None:
    stacks = {stack["name"]: stack for stack in cpu(image())["tss"]["stacks"]}
    end = BASE + TSS + 0x68
    assert (stacks["IST1"]["bottom"], stacks["IST1"]["size"]) == (hex(end), 0x2000 - TSS - 0x68)
    assert (stacks["IST1"]["below"], stacks["IST1"]["above"]) == ("the TSS", None), "the tables lie in that stack"
    assert stacks["RSP0"]["above"] == "PTE not present"


def test_stacks_without_page_tables(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(specimens.kernel())
    text = output("dump", path, "--tss", "cpu_tss")
    assert f"RSP0  {BASE + 0x3000:#x}: its size is not known: no page tables without CR3" in text
    assert "guard" not in text and "MiB" not in text
    assert cpu(path, "--tss", "cpu_tss")["tss"]["stacks"][0]["size"] == 0


@pytest.mark.parametrize(("field", "top", "above"), [("rsp0", 0x40_0000, "PDE not present"), ("ist1", 0x3F_FFF8, "")])
def test_a_stack_without_a_guard(image: Callable[..., Path], field: str, top: int, above: str) -> None:
    """In a page of 2 MiB the search ends before a fault."""
    tss = Tss(**{field: BASE + top})
    large = (0x83).to_bytes(8, "little")
    text = output("dump", image({TABLES + 0x2008: large, FRAME + TSS: bytes(tss)}, ram="0x0-0x200000"))
    ending = f"        above: {above}\n" if above else ""
    assert re.search(rf"{field.upper()} .*: more than 1 MiB down .*\n +no guard below\n{ending}  zero", text)


def test_a_page_that_is_not_in_the_image_is_no_guard(image: Callable[..., Path]) -> None:
    """One page directory entry names a page table that is not there, the next the page table that is."""
    directory = b"".join(entry.to_bytes(8, "little") for entry in (0x7F_F003, TABLES + 0x3003))
    tss = Tss(rsp0=BASE + 0x20_1000, ist1=BASE + 0x40_2000)
    text = output("dump", image({TABLES + 0x2008: directory, FRAME + TSS: bytes(tss)}))
    why = "not known: physical page 0x7ff000 is not in this image"
    assert f"RSP0  {BASE + 0x20_1000:#x}: its size is {why}\n" in text
    assert f"IST1  {BASE + 0x40_2000:#x}: 8 KiB down to {BASE + 0x40_0000:#x}\n        below: {why}\n" in text
    assert "guard" not in text and "no stack" not in text


def test_real_mode(image: Callable[..., Path]) -> None:
    path = image(
        {0: bytes(range(256)) * 16}, cr0=0x10, cs=Segment(0xF000, 0xF0000, 0xFFFF, 0x9B00), idtr=TableRegister(0, 0x3FF)
    )
    found = cpu(path)
    assert found["mode"] == "real" and not {"idt", "tss", "ldt"} & found.keys()
    assert found["ivt"][1] == {"vector": 1, "segment": 0x0706, "offset": "0x504", "raw": "04050607"}
    assert "0x01        0706:0504  (0x7564)" in output("dump", path)


def test_a_vector_table_of_which_a_part_is_not_there(image: Callable[..., Path]) -> None:
    """The last 16 bytes of the image's memory: four vectors, and no page behind."""
    path = image(cr0=0x10, cs=Segment(0xF000, 0xF0000, 0xFFFF, 0x9B00), idtr=TableRegister(specimens.END - 16, 0x3FF))
    found = cpu(path)
    why = f"physical page {specimens.END:#x} is not in this image"
    assert [row["vector"] for row in found["ivt"]] == [0, 1, 2, 3]
    assert found["ivt_missing"] == [{"from": 16, "to": 0x400, "error": why}]
    assert f"  bytes 0x10 to 0x3ff cannot be read: {why}\n" in output("dump", path)


def test_virtual_8086_mode(image: Callable[..., Path]) -> None:
    """The tables are those of protected mode; there is no 64-bit stack to judge."""
    changes = PROTECTED | {"cs": Segment(0xF000, 0xF0000, 0xFFFF, 0xF300), "rip": 0xFFF0, "rflags": 0x2_0202}
    path = image(tr=Segment(0), **changes)
    found = cpu(path)
    assert (found["mode"], found["registers"]["cpl"]) == ("virtual8086", 3)
    assert {len(gate["raw"]) for gate in found["idt"]["gates"]} == {16}
    assert "CPU 0  virtual-8086 mode, ring 3, at 0xf000:0xfff0\n" in output("dump", path)
    status, text, _ = call("check", path)
    assert status == 1 and "CPU 0  not-applicable" in text


# Symbols


def test_symbols(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = dumped(CORE, "--symbols", MAP)["cpus"][0]["idt"]["gates"]
    assert (gates[8]["handler"], gates[14]["handler"]) == ("asm_exc_double_fault", "asm_exc_page_fault")
    assert "handler" not in dumped(CORE)["cpus"][0]["idt"]["gates"][0]


def test_the_kernel_was_moved(tmp_path: Path) -> None:
    """KASLR: with symbols as linked, the offset is worked out from the gates, or given."""
    offset = 0xE00_0000
    lines = [line.split() for line in MAP.read_text().splitlines()]
    linked = [f"{(int(a, 16) - offset) % 2**64:016x} {t} {n}\n" for a, t, n in lines if a.startswith("ffffffff")]
    (tmp_path / "System.map").write_text("".join(linked))
    expected = dumped(CORE, "--symbols", MAP)["cpus"][0]["idt"]
    found = dumped(CORE, "--symbols", tmp_path / "System.map")
    assert [gate["handler"] for gate in found["cpus"][0]["idt"]["gates"][:20]] == [
        gate["handler"] for gate in expected["gates"][:20]
    ]
    assert found["image"]["remarks"] == [f"the kernel was moved by {offset:#x}: the one offset that fits its gates"]
    given = dumped(CORE, "--symbols", tmp_path / "System.map", "--kaslr-offset", hex(offset))
    assert given["cpus"] == found["cpus"] and given["image"]["remarks"] == []
    wrong = dumped(CORE, "--symbols", tmp_path / "System.map", "--kaslr-offset", 0)
    assert wrong["cpus"][0]["idt"]["gates"][8]["handler"] != "asm_exc_double_fault"


def test_registers_are_those_of_the_machine(image: Callable[..., Path]) -> None:
    found = cpu(image(), "--reg", "cr2=0xdead", "--reg", "star=0x23001000000000")["registers"]
    assert (found["cr2"], found["star"], found["efer"]) == ("0xdead", "0x23001000000000", None)
    assert Registers().cpl is None and found["cpl"] == 0


def test_system_descriptors_show_their_size(image: Callable[..., Path]) -> None:
    path = image({FRAME + 0x18: bytes(SystemDescriptor.tss(BASE + TSS).replace(g=True))})
    assert cpu(path)["gdt"]["entries"][3]["effective_limit"] == 0x67FFF


def test_8_byte_gates_in_long_mode(tmp_path: Path) -> None:
    """Two in each 16 bytes: shown as what they are, and said to be wrong; JSON has them as the CPU reads them."""
    gates = b"".join(bytes(LegacyGate(offset=0x10_0000 + 16 * n, selector=8, p=True, type=0xE)) for n in range(64))
    (tmp_path / "memory").write_bytes(gates)
    options = ["--idt", "0,0x1ff", "--image-format", "raw"]
    text = output("dump", tmp_path / "memory", *options)
    assert "it holds 8-byte gates of 32-bit mode" in text and "0x8:0x1001f0" in text
    assert "every 16 bytes" in text and not re.search(r"every \d{4,} bytes", text)
    (cpu,) = dumped(tmp_path / "memory", *options)["cpus"]
    assert len(cpu["idt"]["gates"]) == 32
