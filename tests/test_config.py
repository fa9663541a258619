"""Configurations: what is written becomes tables; a mistake is told by file, line, key and what would be right."""

import itertools
import json
import tomllib
from pathlib import Path

import jsonschema
import pytest
from cli import call, output, refused

from x86tables import Gate, Gdt, Idt, NotThere, SegmentDescriptor, SystemDescriptor, Tss, UsageError, checks, config
from x86tables.assessment import assess
from x86tables.config import machines
from x86tables.config.compiled import CompiledTable
from x86tables.config.lines import key_lines, shown, tokens
from x86tables.config.validate import problems
from x86tables.delivery.scenarios import run_scenario
from x86tables.delivery.stacks import stack_in_use
from x86tables.machine.symbols import Symbols
from x86tables.machine.synthetic import Mapping

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.toml"))
DOUBLE_FAULT = next(path for path in EXAMPLES if path.name == "double_fault.toml")


def loaded(tmp_path: Path, text: str) -> config.CompiledTables:
    path = tmp_path / "kernel.toml"
    path.write_text(text)
    return config.load(str(path))


# What is written becomes tables


def test_the_example_is_what_one_would_write_by_hand() -> None:
    tables = config.load(str(DOUBLE_FAULT))
    find = config.lookup(tables)
    gdt = Gdt()
    code = gdt.append(SegmentDescriptor.kernel_code())
    gdt.append(SegmentDescriptor.kernel_data())
    gdt.append(SystemDescriptor.tss(0xFFFFFFFF80202000))
    idt = Idt()
    idt["#BP"] = Gate.interrupt(0xFFFFFFFF80100040, code)
    idt["#DF"] = Gate.interrupt(0xFFFFFFFF80100080, code, ist=1)
    assert tables.gdt.build(find) == bytes(gdt)
    assert tables.idt.build(find) == bytes(idt)
    assert tables.tss[0].build(find) == bytes(Tss(ist1=0xFFFFFFFF80221000 + 20 * 1024))
    assert tables.gdtr.build(find).hex() == "2700" + "00002080ffffffff"
    assert tables.idtr.build(find).hex() == "ff0f" + "00102080ffffffff"
    constants = {"KERNEL_CODE_SELECTOR": 8, "KERNEL_DATA_SELECTOR": 16, "TSS_SELECTOR": 24, "DOUBLE_FAULT_IST": 1}
    assert tables.constants == constants


def test_the_same_in_python() -> None:
    """Objects say the same as the file, and are validated like it."""
    made = config.compile(
        config.Config(
            cpu=config.CpuConfig(
                stack=config.StackConfig(bottom="boot_stack", size="16 KiB", guard=4096),
                ist1=config.StackConfig(name="double_fault", bottom="double_fault_stack", size="20 KiB", guard=4096),
            ),
            idt={"#BP": "asm_bp", "#DF": config.GateConfig(handler="asm_df", ist="double_fault")},
        )
    )
    read = config.load(str(DOUBLE_FAULT))
    assert [table.items for table in made.all] == [table.items for table in read.all]
    assert made.stacks == read.stacks
    with pytest.raises(UsageError, match=r'^configuration: idt\."#DF"\.dpl: expected 0\.\.3; found 4$'):
        config.compile(config.Config(idt={"#DF": config.GateConfig(handler="asm_df", dpl=4)}))


def test_gates(tmp_path: Path) -> None:
    """Vectors, mnemonics and ranges; patterns, strides and addresses; one vector overrides a range."""
    text = """
        tables.gates = 0x81
        syscall.vectors = ["0x80"]
        [idt]
        "0..31" = "isr_{vector}"
        "0x20..0x2f" = { handler = { base = "irqs", stride = 16 }, type = "trap" }
        "#PF" = { handler = 0xffffffff80000010, dpl = 3 }
        "128" = "0x1000"
    """
    idt = loaded(tmp_path, text).idt
    assert len(idt.items) == 0x81
    address = {vector: str(item.addresses["offset"]) for vector, item in enumerate(idt.items) if item.addresses}
    assert address == {
        **{vector: f"isr_{vector}" for vector in range(32)},
        **{0x20 + n: "irqs" + (f" + {n * 16:#x}" if n else "") for n in range(16)},
        14: "0xffffffff80000010",
        128: "0x1000",
    }
    gates = {vector: item.value for vector, item in enumerate(idt.items)}
    assert gates[13] == Gate.interrupt(0, 8)
    assert gates[14] == Gate.interrupt(0, 8, dpl=3)
    assert gates[0x2F] == Gate.trap(0, 8)
    assert gates[0x80] == Gate.interrupt(0, 8, dpl=3)
    assert gates[0x30] == Gate()


def test_segments(tmp_path: Path) -> None:
    """Intentions, raw fields over them, raw fields alone; STAR from the names of segments."""
    text = """
        [gdt]
        segments = ["null", "kernel_code", "kernel_data", "code32", { name = "low", kind = "kernel_data", limit = 0xff, g = false },
            { name = "odd", base = 0x12345678, limit = 1, type = 3, s = true, p = true }, "tss", "user_data", "user_code"]
        [syscall]
        kernel = "kernel_code"
        user = "user_code"
    """  # noqa: E501 - a line as people write them
    tables = loaded(tmp_path, text)
    values = [item.value for item in tables.gdt.items]
    low = SegmentDescriptor.kernel_data().replace(limit=0xFF, g=False)
    odd = SegmentDescriptor(base=0x12345678, limit=1, type=3, s=True, p=True)
    assert values[:2] == [SegmentDescriptor(), SegmentDescriptor()]
    assert values[4] == SegmentDescriptor.code32()
    assert values[5:8] == [low, odd, SystemDescriptor.tss(0)]
    assert tables.selectors == {
        "kernel_code": 0x10, "kernel_data": 0x18, "code32": 0x20, "low": 0x28, "odd": 0x30, "tss": 0x38,
        "user_data": 0x4B, "user_code": 0x53,
    }  # fmt: skip
    assert tables.star == 0x0043_0010_0000_0000


def test_one_tss_per_cpu() -> None:
    """Every CPU has its TSS in the one GDT, and its own stacks in the same slots."""
    tables = config.load(str(next(path for path in EXAMPLES if path.name == "two_cpus.toml")))
    assert [table.name for table in tables.tss] == ["tss0", "tss1"]
    assert tables.selectors["tss1"] == tables.selectors["tss0"] + 16
    assert tables.ists == {"double_fault": 1, "nmi": 2, "machine_check": 3, "debug": 4}
    assert str(tables.tss[1].items[0].addresses["ist2"]) == "nmi_stack_1 + 0x2000"


def test_a_symbol_and_an_offset(tmp_path: Path) -> None:
    """Wherever an address may be a symbol, hexadecimal or decimal, with blanks or without."""
    text = """
[cpu]
rsp0 = { top = "stack_end - 16" }
ist1 = { name = "df", bottom = "arena+0x2000", size = 0x1000 }
[idt]
"32..33" = "irq_{vector}+4"
[[memory]]
start = "arena -0x1000"
end = "arena"
permissions = ""
"""
    tables = loaded(tmp_path, text)
    addresses = tables.tss[0].items[0].addresses
    assert (str(addresses["rsp0"]), str(addresses["ist1"])) == ("stack_end - 0x10", "arena + 0x3000")
    assert [str(tables.idt.items[number].addresses["offset"]) for number in (32, 33)] == [
        "irq_32 + 0x4",
        "irq_33 + 0x4",
    ]
    assert (str(tables.memory[0].start), str(tables.memory[0].stop)) == ("arena - 0x1000", "arena")
    assert tables.memory[0].start.at({"arena": 0x800}.__getitem__) == (1 << 64) - 0x800


def test_a_count_of_cpus(tmp_path: Path) -> None:
    """What stands once for all of them is what stands for each: {cpu} counts all CPUs, a stride those of its entry."""
    once = """
[[cpu]]
tss = "boot_tss"
stack = { bottom = "boot_stack", size = 0x1000 }
ist1 = { name = "df", bottom = "df_0", size = 0x1000 }
[[cpu]]
count = 2
tss = "tss_of_{cpu}"
stack = { bottom = { base = "stacks", stride = 0x2000 }, size = 0x1000 }
ist1 = { name = "df", bottom = "df_{cpu}", size = 0x1000 }
[idt]
"#DF" = { handler = "asm_df", ist = "df" }
"""
    each = (
        once.partition("[[cpu]]\ncount")[0]
        + """
[[cpu]]
tss = "tss_of_1"
stack = { bottom = "stacks", size = 0x1000 }
ist1 = { name = "df", bottom = "df_1", size = 0x1000 }
[[cpu]]
tss = "tss_of_2"
stack = { bottom = "stacks + 0x2000", size = 0x1000 }
ist1 = { name = "df", bottom = "df_2", size = 0x1000 }
[idt]
"#DF" = { handler = "asm_df", ist = "df" }
"""
    )
    made, expected = loaded(tmp_path, once), loaded(tmp_path, each)

    def contents(table: CompiledTable) -> object:
        return table.name, table.place, [item.replace(path=()) for item in table.items]

    assert [contents(table) for table in made.all] == [contents(table) for table in expected.all]
    assert [stack.replace(path=()) for stack in made.stacks] == [stack.replace(path=()) for stack in expected.stacks]
    assert made.selectors == expected.selectors
    # TSSs without a name of theirs, as without a count
    assert [table.name for table in loaded(tmp_path, "cpu.count = 3\n").tss] == ["tss0", "tss1", "tss2"]


def test_stacks_that_are_not_declared_are_said_once(tmp_path: Path) -> None:
    tables = loaded(tmp_path, "[[cpu]]\nstack.top = 4096\n[[cpu]]\ncount = 60\n")
    said = machines.image(tables, config.lookup(tables)).remarks
    assert [remark for remark in said if "not declared" in remark] == [
        "the kernel's stack is not declared: add stack = { bottom = SYMBOL, size = N } to the [[cpu]] of CPUs 1..60"
    ]


# Mistakes

CPU = "[cpu]\n"
IST = CPU + 'ist1 = { name = "double_fault", top = "df_top" }\n'
MISTAKES = {
    "invalid TOML": ("[cpu\n", "1:5: invalid TOML: Expected ']' at the end of a table declaration"),
    "unknown key": ("[idt]\n\n[stub]\n", "3: stub: unknown key; did you mean stubs?"),
    "unknown key below": (
        CPU + 'ist1 = { bottom = "s", sise = 5 }\n',
        "2: cpu.ist1.sise: unknown key; did you mean size?",
    ),
    "unknown key of a gate": (
        '[idt]\n"#DF" = {\n handler = "a", its = "b" }'.replace("\n handler", " handler"),
        '2: idt."#DF".its: unknown key; did you mean ist?',
    ),
    "no key like it": (
        "[[memory]]\nxyzzy = 1\nstart = 0\n",
        "2: memory[0].xyzzy: unknown key; the keys here are name, start, end, size, permissions",
    ),
    "missing key": ('[idt]\n8 = { ist = "a" }\n', "2: idt.8: the key handler is missing"),
    "type of value": ('[tables]\ngates = "all"\n', "2: tables.gates: expected 1..256; found 'all'"),
    "word": (
        '[idt]\n8 = { handler = "a", type = "tarp" }\n',
        "2: idt.8.type: expected one of interrupt, trap; found 'tarp'",
    ),
    "segment": (
        '[gdt]\nsegments = [\n "kernel_code",\n "kernel_date",\n]\n',
        "4: gdt.segments[1]: expected one of code32, kernel_code, kernel_data, null, tss, "
        "user_code, user_code32, user_data or a kind of segment, or a table {name = ..., kind = ...} with raw fields"
        "; found 'kernel_date'",
    ),
    "bare symbol for a stack": (
        CPU + '\nist1 = "df_stack"\n',
        "3: cpu.ist1: expected {bottom = SYMBOL, size = N} or {top = SYMBOL}: a symbol alone "
        "does not say which end it is; found 'df_stack'",
    ),
    "stack without a size": (
        CPU + 'ist1.bottom = "s"\n',
        "2: cpu.ist1: {bottom = SYMBOL, size = N} or {top = SYMBOL} expected, bottom found",
    ),
    "stack with both ends": (
        CPU + 'ist1 = { bottom = "s", top = "t", size = 1 }\n',
        "2: cpu.ist1: {bottom = SYMBOL, size = N} or {top = SYMBOL} expected, bottom and size and top found",
    ),
    "guard without a bottom": (
        CPU + 'ist1 = { top = "s", guard = 4096 }\n',
        "2: cpu.ist1.guard: a guard lies below the bottom: {bottom = SYMBOL, size = N} expected",
    ),
    "guard of a part of a page": (
        CPU + 'ist1 = { bottom = "s", size = 4096, guard = 100 }\n',
        "2: cpu.ist1.guard: 100 bytes: a guard is whole pages, a multiple of 4,096",
    ),
    "size": (
        CPU + 'rsp0 = { bottom = "s", size = "20 kB" }\n',
        "2: cpu.rsp0.size: '20 kB' is not a size: a number of bytes, or \"20 KiB\" expected",
    ),
    "symbol": (
        CPU + 'rsp0 = { top = "a-b" }\n',
        "2: cpu.rsp0.top: 'a-b' is not a symbol: a name of letters, digits, _, . and $ expected",
    ),
    "symbol of a table": (
        '[tables]\ngdt = "tables + 0x40"\n',
        "2: tables.gdt: a table has a symbol of its own, or an address: 'tables + 0x40' is neither",
    ),
    "number of CPUs": ("[[cpu]]\ncount = 4096\n[[cpu]]\n", "1: cpu: 4,097 CPUs: 1 to 4,096 expected"),
    "no CPU": ("cpu = []\n", "1: cpu: 0 CPUs: 1 to 4,096 expected"),
    "no count": ("[cpu]\ncount = 0\n", "2: cpu.count: expected a number from 1; found 0"),
    "stride of a stack": (
        CPU + 'rsp0.top = { base = "s", strid = 8 }\n',
        "2: cpu.rsp0.top.strid: unknown key; did you mean stride?",
    ),
    "TSSs of one name": (
        '[cpu]\ncount = 2\ntss = "t"\n',
        "3: cpu.tss: two tables are called t; {cpu} in the name is the number of the CPU",
    ),
    "octal size": (
        CPU + 'rsp0 = { bottom = "s", size = "0123" }\n',
        "2: cpu.rsp0.size: '0123' is not a size: a number of bytes, or \"20 KiB\" expected",
    ),
    "location counter": (
        '[idt]\n8 = "."\n',
        "2: idt.8: '.' is not a symbol: a name of letters, digits, _, . and $ expected",
    ),
    "NASM's location counter": (
        '[idt]\n8 = "$"\n',
        "2: idt.8: '$' is not a symbol: a name of letters, digits, _, . and $ expected",
    ),
    "constant of two segments": (
        '[gdt]\nsegments = ["kernel_code", { name = "Foo", kind = "code32" },\n{ name = "foo", kind = "code32" }]\n',
        "3: gdt.segments[2]: 'foo' and 'Foo' make one constant, FOO_SELECTOR",
    ),
    "constant of two stacks": (
        CPU + 'ist1 = { name = "df", top = "t" }\nist2 = { name = "DF", top = "u" }\n',
        "3: cpu.ist2: 'DF' and 'df' make one constant, DF_IST",
    ),
    "address": ('[idt]\n8 = "0xfffg"\n', "2: idt.8: '0xfffg' is not an address: 0x..., decimal, or a symbol expected"),
    "large address": ("[idt]\n8 = 0x10000000000000000\n", "2: idt.8: 0x10000000000000000 is not an address of 64 bits"),
    "number of a stack": (
        IST + '[idt]\n"#DF" = { handler = "df", ist = 1 }\n',
        '4: idt."#DF".ist: expected the name of a stack; found 1: IST1 is \'double_fault\'',
    ),
    "number of a stack of two CPUs": (
        '[[cpu]]\n[[cpu]]\nist2.top = "t"\n[idt]\n8 = { handler = "df", ist = 2 }\n',
        "5: idt.8.ist: expected the name of a stack; found 2: IST2 is 'ist2'",
    ),
    "number of no stack": (
        IST + '[idt]\n"#DF" = { handler = "df", ist = 2 }\n',
        '4: idt."#DF".ist: expected the name of a stack; found 2: IST2 is not declared: '
        "add ist2 = {name = ..., bottom = SYMBOL, size = N} to [cpu]",
    ),
    "number of no IST": (
        '[idt]\n8 = { handler = "df", ist = 8 }\n',
        "2: idt.8.ist: expected the name of a stack; found 8: a TSS has IST1..IST7",
    ),
    "IST 0": (
        '[idt]\n8 = { handler = "df", ist = 0 }\n',
        "2: idt.8.ist: expected the name of a stack; found 0: without ist, a gate does not switch stacks",
    ),
    "no such stack": (
        IST + '[idt]\n"#DF" = { handler = "df", ist = "fault" }\n',
        '4: idt."#DF".ist: no stack named "fault"; the TSS has "double_fault" (IST1)',
    ),
    "no stack at all": (
        '[idt]\n"#DF" = { handler = "df", ist = "fault" }\n',
        '2: idt."#DF".ist: no stack named "fault"; the TSS has no IST stack',
    ),
    "not on every CPU": (
        '[[cpu]]\nist1 = { name = "a", top = "t" }\n[[cpu]]\n[idt]\n8 = { handler = "df", ist = "a" }\n',
        '5: idt.8.ist: the TSS of CPU 1 has no stack named "a" (IST1)',
    ),
    "another slot": (
        '[[cpu]]\nist1 = { name = "a", top = "t" }\n[[cpu]]\nist2 = { name = "a", top = "u" }\n',
        "4: cpu[1].ist2: 'a' is IST1 of another CPU",
    ),
    "name twice": (
        IST + 'ist2 = { name = "double_fault", top = "u" }\n',
        "3: cpu.ist2.name: another stack of this CPU is called 'double_fault'",
    ),
    "mnemonic": ("[idt]\n\nPF = 1\n", "3: idt.PF: 'PF' is not a vector; did you mean \"#PF\"?"),
    "vector": ("[idt]\n256 = 1\n", '2: idt.256: vector 256: a vector is 0..255; "8", "#DF" or "32..47" expected'),
    "range": ('[idt]\n"47..32" = 1\n', '2: idt."47..32": a range ascends, both ends included: "32..47"'),
    "open range": ('[idt]\n"47.." = 1\n', '2: idt."47..": a range ascends, both ends included: "32..47"'),
    "vector twice": ('[idt]\n8 = 1\n"#DF" = 2\n', "3: idt.\"#DF\": vector 8 is in '8' already"),
    "ranges overlap": ('[idt]\n"0..9" = 1\n"9..10" = 2\n', "3: idt.\"9..10\": vector 9 is in '0..9' already"),
    "beyond the table": (
        'tables.gates = 32\n[idt]\n32 = "a"\n',
        "3: idt.32: the IDT has 32 gates (tables.gates): 0..32 needed",
    ),
    "no such segment": (
        '[idt]\n8 = { handler = "a", segment = "kernel_coda" }\n',
        "2: idt.8.segment: no segment 'kernel_coda'; did you mean kernel_code?",
    ),
    "no code": (
        '[gdt]\nsegments = ["kernel_data"]\n',
        "2: gdt.segments: no kernel_code: gates need a 64-bit code segment of ring 0",
    ),
    "segment twice": (
        '[gdt]\nsegments = ["kernel_code", "kernel_code"]\n',
        "2: gdt.segments[1]: 'kernel_code' is there already: give this one a name, {name = \"...\", kind = ...}",
    ),
    "raw field": (
        '[gdt]\nsegments = ["kernel_code", { name = "a", base = 0x100000000 }]\n',
        "2: gdt.segments[1].base: base=0x100000000: 32 bits hold 0..0xffffffff",
    ),
    "segment without a name": (
        '[gdt]\nsegments = ["kernel_code", { base = 1 }]\n',
        "2: gdt.segments[1]: a segment of raw fields needs a name",
    ),
    "SYSRET": (
        '[gdt]\nsegments = ["user_code", "kernel_code"]\n[syscall]\nkernel = "kernel_code"\nuser = "user_code"\n',
        "5: syscall.user: 'user_code' needs user_data before it, and a slot before that",
    ),
    "half of STAR": ('[syscall]\nuser = "user_code"\n', "1: syscall: STAR needs both segments: kernel is missing"),
    "system call": ("[syscall]\nvectors = [\n0x80]\n", "3: syscall.vectors[0]: vector 128 has no gate in [idt]"),
    "DPL of a system call": (
        '[syscall]\nvectors = [0x80]\n[idt]\n0x80 = { handler = "a", dpl = 0 }\n',
        "4: idt.0x80.dpl: vector 128 is a system call (syscall.vectors): its DPL is 3",
    ),
    "region": ("[[memory]]\nstart = 0\n", "1: memory[0]: either end or size expected"),
    "permissions": (
        '[[memory]]\nstart = 0\nsize = 4096\npermissions = "rwz"\n',
        "4: memory[0].permissions: expected text like ^r?w?x?u?$; found 'rwz'",
    ),
    "address of a symbol": (
        '[symbols]\na = "b"\n',
        "2: symbols.a: 'b' is not a number: the address of a expected",
    ),
    "rule": (
        '[check]\nignore = ["TSS001", "IDX"]\n',
        "2: check.ignore[1]: no rule 'IDX'; did you mean IDT? `x86tables explain` lists all",
    ),
    "tables of one name": ('[tables]\nidt = "gdt"\n', "2: tables.idt: two tables are called gdt"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes(what: str, tmp_path: Path) -> None:
    text, expected = MISTAKES[what]
    with pytest.raises(UsageError) as error:
        loaded(tmp_path, text)
    assert str(error.value) == f"{tmp_path}/kernel.toml:{expected}"


# Text that is no TOML, tomllib's message behind its place, and what is said of it
QUOTES = {
    '[cpu]\nist1 = { name = df, top = "t" }\n': '2:17: invalid TOML: Invalid value; text stands in quotes: "df"',
    "[idt]\r\n8 = double_fault # the\r\n": '2:5: invalid TOML: Invalid value; text stands in quotes: "double_fault"',
    "[idt]\n8 = isr_{vector}\n": '2:5: invalid TOML: Invalid value; text stands in quotes: "isr_{vector}"',
    "[gdt]\nsegments = [\n  tss,\n]\n": '3:3: invalid TOML: Invalid value; text stands in quotes: "tss"',
    '[cpu]\nist1 = { bottom = "s", size = 4 KiB }\n': (
        '2:33: invalid TOML: Unclosed inline table; text stands in quotes: "4 KiB"'
    ),
    "[cpu]\ntss = 0x10 KiB\n": (
        '2:12: invalid TOML: Expected newline or end of document after a statement; text stands in quotes: "0x10 KiB"'
    ),
    "[machine]\nsmep = True\n": "2:8: invalid TOML: Invalid value; in TOML it is true",
    '[idt]\n32..47 = "irq"\n': (
        '2:4: invalid TOML: Invalid initial character for a key part; a range stands in quotes: "32..47"'
    ),
    '[idt.#DF]\nhandler = "df"\n': (
        "1:6: invalid TOML: Invalid initial character for a key part; "
        'elsewhere # begins a comment, so the key stands in quotes: "#DF"'
    ),
    # Nothing is suggested where quotes would not help
    '[idt]\n8 = df"\n': "2:5: invalid TOML: Invalid value",
    "[idt]\n8 = 1 9 = 2\n": "2:7: invalid TOML: Expected newline or end of document after a statement",
    f"[idt]\n8 = {'a' * 65}\n": "2:5: invalid TOML: Invalid value",
}


@pytest.mark.parametrize("text", QUOTES)
def test_values_without_quotes(text: str, tmp_path: Path) -> None:
    """The line and column are tomllib's; the sentence shows what was meant, with its quotes."""
    path = tmp_path / "kernel.toml"
    path.write_bytes(text.encode())
    with pytest.raises(UsageError) as error:
        config.load(str(path))
    assert str(error.value) == f"{path}:{QUOTES[text]}"


def test_a_file_that_ends_in_a_value(tmp_path: Path) -> None:
    (tmp_path / "kernel.toml").write_text("[machine]\nsmep =")
    with pytest.raises(UsageError) as error:
        config.load(str(tmp_path / "kernel.toml"))
    assert str(error.value) == f"{tmp_path}/kernel.toml: invalid TOML: Invalid value at the end of the file"


def remarks(tmp_path: Path, text: str) -> list[str]:
    tables = loaded(tmp_path, text)
    return [said for said in machines.image(tables, config.lookup(tables)).remarks if "comment" in said]


def test_a_gate_in_a_comment(tmp_path: Path) -> None:
    """An unquoted #DF is a comment in TOML: said where its gate is missing."""
    assert remarks(tmp_path, '[idt]\n "#PF" = "pf"\n  #DF = "df"\n#DF = "d"\n') == [
        'line 3 is a comment, and gate 8 is missing: a key that begins with # stands in quotes, "#DF" = ...'
    ]


@pytest.mark.parametrize(
    "text",
    [
        '[idt]\n#DF = "old"\n"#DF" = "df"\n',  # the gate is there
        '[idt]\n#DF = "old"\n"0..31" = "all"\n',
        '[idt]\n"#PF" = "pf" #DF = "df"\n',  # behind a value
        '[idt]\n#XX = "df"\n#DF is missing\n',  # not a gate
        '[[memory]]\nname = """\n#DF = 1\n"""\nstart = 0\nsize = 1\n',  # in quotes
    ],
)
def test_comments_that_are_comments(text: str, tmp_path: Path) -> None:
    assert remarks(tmp_path, text) == []


def test_what_is_within_the_limits_is_read(tmp_path: Path) -> None:
    """Dots and brackets in strings and comments count for nothing."""
    dots = "a." * 40 + "b"
    tables = loaded(tmp_path, f'# {"[" * 40} {dots}\n[idt]\n8 = "{dots}"\n[symbols]\n"{dots}" = 0x{"0" * 46}1000\n')
    assert tables.idt.items[8].addresses["offset"].at(config.lookup(tables)) == 0x1000


def test_lines_of_keys() -> None:
    """Every key of every kind of TOML has its line."""
    text = '''a = 1
b.c = [1, 2,
  { x = 1.5, y = "]" },
  # comment ]
  1979-05-27 07:32:00]
[idt]
"#DF" = { handler = "df", ist = \'\'\'double
fault\'\'\' }
'32..47' = 1
[[cpu]]
s = """
multi = "\\"" 1
"""
ist1 = 3
[[cpu]]
ist1 = 4
[cpu.sub]
"k.\\u00e4" = 0x10'''
    assert {shown(path): line for path, line in key_lines(tokens(text)).items()} == {
        "a": 1, "b": 2, "b.c": 2, "b.c[0]": 2, "b.c[1]": 2, "b.c[2]": 3, "b.c[2].x": 3, "b.c[2].y": 3, "b.c[3]": 5,
        "idt": 6, 'idt."#DF"': 7, 'idt."#DF".handler': 7, 'idt."#DF".ist': 7, 'idt."32..47"': 9,
        "cpu": 10, "cpu[0]": 10, "cpu[0].s": 11, "cpu[0].ist1": 14, "cpu[1]": 15, "cpu[1].ist1": 16, "cpu[1].sub": 17,
        'cpu[1].sub."k.ä"': 18,
    }  # fmt: skip


# Machines


def test_the_examples_survive() -> None:
    for path in EXAMPLES:
        tables = config.load(str(path))
        image = config.image(tables, config.lookup(tables))
        assert [machine.cpu for machine in image.machines] == list(range(len(tables.tss)))
        assert {assess(checks.Report(machine)).verdict for machine in image.machines} == {"survives"}, path
        assert not any(report.failed for report in checks.judge(image)), path


def test_check_on_a_configuration(tmp_path: Path) -> None:
    """`check CONFIG` says what is assumed of the boot code; without IST the same kernel is lost."""
    text = output("check", DOUBLE_FAULT)
    assert "CPU 0  survives if a guard page is hit; the stack in use is guarded\n" in text
    assumed = "assumes that the boot code unmaps [0xffffffff80210000, 0xffffffff80211000), [0xffffffff80220000,"
    assert assumed in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100
    broken = tmp_path / "kernel.toml"
    broken.write_text(DOUBLE_FAULT.read_text().replace(', ist = "double_fault"', ""))
    status, out, _ = call("check", broken, "--format", "json")
    (cpu,) = json.loads(out)["cpus"]
    assert status == 1
    assert cpu["verdict"] == "triple-fault"
    assert [finding["rule"] for finding in cpu["findings"] if finding["severity"] == "error"] == ["IDT004"]


def test_rules_are_chosen_by_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "kernel.toml"
    path.write_text(DOUBLE_FAULT.read_text() + '\n[check]\nignore = ["IDT002"]\n')
    assert "IDT002" not in output("check", path)
    assert "IDT002" in output("check", path, "--ignore", "TSS")


def test_what_an_image_takes_is_refused() -> None:
    assert (
        refused("check", DOUBLE_FAULT, "--gdt", "0x1000") == f"--gdt is for images; {DOUBLE_FAULT} declares it itself"
    )


def test_memory(tmp_path: Path) -> None:
    """A guard counts for more than a region, a region for more than the kernel's segments; the rest is unknown."""
    text = """
        [cpu]
        stack = { bottom = 0x10000, size = 0x2000 }
        [[memory]]
        start = 0x10000
        size = 0x1000
        permissions = "r"
        [[memory]]
        name = "hole"
        start = 0x11000
        size = 0x1000
        permissions = ""
        [tables]
        gdt = 0x1000
        idt = 0x2000
        gdtr = 0x4000
        idtr = 0x4010
    """.replace("        ", "")
    tables = loaded(tmp_path, text.replace("[cpu]", "[cpu]\ntss = 0x5000"))
    image = config.image(tables, config.lookup(tables), [Mapping("kernel", 0x11000, 0xF000, "rwx")])
    space = image.machines[0].space
    assert [space.page(at).writable for at in (0x10000, 0x12000)] == [False, True]
    with pytest.raises(Exception, match="PTE not present"):
        space.page(0x11000)
    with pytest.raises(NotThere, match="the configuration says nothing of 0x20000"):
        space.page(0x20000)
    assert image.remarks == ("assumes that the boot code unmaps [0x11000, 0x12000); confirm with check on a dump",)


def test_symbols_without_addresses_are_made_up(tmp_path: Path) -> None:
    tables = loaded(tmp_path, IST + '[idt]\n"#DF" = { handler = "df", ist = "double_fault" }\n')
    find = config.lookup(tables)
    with pytest.raises(NotThere, match=r"^no address for df_top: give it in \[symbols\], or --symbols KERNEL\.elf$"):
        tables.tss[0].build(find)
    image = config.image(tables, find)
    assert "judged at placeholder addresses, for lack of real ones: df, df_top, gdt, gdtr and 3 more" in image.remarks
    machine = image.machines[0]
    assert image.symbols.name(machine.tss.ist1) == "df_top"
    assert machine.registers.rsp is None
    assert image.symbols.name(machine.idt["#DF"].offset) == "df"


def test_made_up_addresses_do_not_overlap() -> None:
    tables = config.load(str(next(path for path in EXAMPLES if path.name == "two_cpus.toml")))
    image = config.image(tables, config.lookup(tables))
    stacks = [(image.symbols.address(s.bottom.symbol or ""), s) for s in tables.stacks if s.bottom]
    ranges = sorted((at - stack.guard, at + (stack.size or 0)) for at, stack in stacks)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(ranges))


def test_symbols_of_a_kernel_must_not_contradict(tmp_path: Path) -> None:
    """An address in the file that the kernel has elsewhere is out of date, and would be a wild gate."""
    tables = loaded(tmp_path, "[symbols]\na = 1\nb = 2\n")
    find = config.lookup(tables, Symbols([(1, "a"), (3, "b"), (7, "c"), (8, "d"), (9, "d")]), "kernel.elf")
    assert (find("a"), find("c")) == (1, 7)
    with pytest.raises(UsageError, match=r"kernel\.toml:3: symbols\.b: 0x2 here, but 0x3 in kernel\.elf: take "):
        find("b")
    with pytest.raises(NotThere, match=r"^kernel\.elf: symbol 'd' is ambiguous: 0x8, 0x9$"):
        find("d")
    with pytest.raises(NotThere, match=r"^kernel\.elf: no symbol 'e'$"):
        find("e")


def test_a_declared_stack_ends_where_it_ends(tmp_path: Path) -> None:
    """CPU 1's stack lies right above CPU 0's, or above an interrupt stack of its own: it has no guard."""
    tables = """[gdt]
segments = ["kernel_code", "kernel_data", "tss"]
[[cpu]]
stack = { bottom = 0x211000, size = "16 KiB", guard = 8192 }
ist1 = { name = "df", bottom = 0x222000, size = "8 KiB", guard = 8192 }
[[cpu]]
stack = { bottom = BOTTOM, size = "16 KiB" }
ist1 = { name = "df", bottom = 0x242000, size = "8 KiB", guard = 8192 }
[idt]
"#DF" = { handler = "asm_df", ist = "df" }
"""
    for bottom, verdict in ((0x215000, "silent-corruption"), (0x244000, "silent-corruption"), (0x250000, "unknown")):
        declared = loaded(tmp_path, tables.replace("BOTTOM", hex(bottom)))
        machines = config.image(declared, config.lookup(declared)).machines
        stack = stack_in_use(machines[1])
        assert (stack.verdict, stack_in_use(machines[0]).verdict) == (verdict, "guarded")
        if verdict != "unknown":
            assert stack.reason == f"it ends at {bottom:#x}, and the page below can be written"
        assert run_scenario("stack-overflow", machines[0]).verdict == "survives"


def test_a_guard_is_whole_pages(tmp_path: Path) -> None:
    text = CPU + "ist1 = { bottom = 0x10010, size = 0x2000, guard = 4096 }\n"
    tables = loaded(tmp_path, text)
    with pytest.raises(UsageError, match=r"\.ist1\.guard: a guard is whole pages, and the stack begins 0x10 bytes "):
        config.image(tables, config.lookup(tables))


def test_cpus_that_share_a_stack(tmp_path: Path) -> None:
    """The machines of one configuration lie in one physical memory, so that rules about several CPUs see it."""
    two = next(path for path in EXAMPLES if path.name == "two_cpus.toml")
    tables = loaded(tmp_path, two.read_text().replace("nmi_stack_1", "nmi_stack_0"))
    reports = checks.judge(config.image(tables, config.lookup(tables)))
    found = [[(f.rule, f.where) for f in report.findings if f.severity == "error"] for report in reports]
    assert found == [[], [("STK006", "tss.ist2")]]


def test_a_stack_that_is_missing_is_asked_for(tmp_path: Path) -> None:
    tables = loaded(tmp_path, '[[cpu]]\nrsp0 = { top = "a" }\n[[cpu]]\n')
    remarks = config.image(tables, config.lookup(tables)).remarks
    asked = "the kernel's stack is not declared: add stack = { bottom = SYMBOL, size = N } to the [[cpu]] of CPU 1"
    assert [remark for remark in remarks if "add stack" in remark] == [asked]


def test_a_table_that_no_cpu_can_reach_is_refused(tmp_path: Path) -> None:
    """An address that is not canonical cannot be mapped; below five levels it can."""
    text = DOUBLE_FAULT.read_text().replace("idt = 0xffffffff80201000", "idt = 0x800000000000")
    tables = loaded(tmp_path, text)
    with pytest.raises(UsageError, match=r"kernel\.toml: idt at 0x800000000000: not a canonical address$"):
        config.image(tables, config.lookup(tables))
    tables = loaded(tmp_path, text + "\n[machine]\nla57 = true\n")
    machine = config.image(tables, config.lookup(tables)).machines[0]
    assert machine.idt["#DF"].offset == 0xFFFFFFFF80100080


def test_cpus_share_one_memory_with_all_their_tables() -> None:
    """It is laid out once, whatever the number of CPUs."""
    tables = config.load(str(next(path for path in EXAMPLES if path.name == "two_cpus.toml")))
    image = config.image(tables, config.lookup(tables))
    first, second = image.machines
    assert first.memory is second.memory is image.memory
    assert first.registers.cr3 == second.registers.cr3
    assert [machine.tss.ist2 for machine in image.machines] == [
        image.symbols.address(f"nmi_stack_{n}") + 0x2000 for n in (0, 1)
    ]


NEIGHBOURS = """
[[cpu]]
stack = { bottom = 0x10000, size = 0x4000, guard = 4096 }
ist1 = { bottom = 0x20000, size = 0x1000, guard = 4096 }
[[cpu]]
rsp0 = { bottom = 0x14000, size = 0x4000 }
ist1 = { bottom = 0x2100c, size = 0x1000 }
ist2 = { bottom = 0x30000, size = 0x1000 }
[tables]
gdt = 0x40000
[symbols]
"""


def test_a_stack_without_a_guard_and_its_neighbour(tmp_path: Path) -> None:
    """An overflow of it goes unseen into the stack or the table right below; what is further away is not its own."""
    tables = loaded(tmp_path, NEIGHBOURS)
    overwritten = ", which an overflow overwrites: leave a page between them, and declare guard = 4096"
    first = "the stack rsp0 of CPU 1 has no guard, and right below it lies the stack of CPU 0" + overwritten
    second = "the stack ist1 of CPU 1 has no guard, and right below it lies the stack ist1 of CPU 0" + overwritten
    assert list(problems(tables, config.lookup(tables))) == [first, second]
    path = tmp_path / "kernel.toml"
    path.write_text(NEIGHBOURS + "idt = 0x2f000\n")
    tables = config.load(str(path))
    third = "the stack ist2 of CPU 1 has no guard, and right below it lies the table idt" + overwritten
    assert list(problems(tables, config.lookup(tables))) == [first, second, third]
    status, out, _ = call("build", path, "-o", tmp_path / "out", "--emit", "ld")
    assert status == 1
    assert f"nothing was written: {first}; {second}; {third}" in " ".join(out.split())
    status, out, _ = call("check", path)
    assert status == 1
    assert f"error: {first} error: {second} error: {third}" in " ".join(out.split())
    assert json.loads(call("check", path, "--format", "json")[1])["problems"] == [first, second, third]
    (run,) = json.loads(call("check", path, "--format", "sarif")[1])["runs"]
    results = [result for result in run["results"] if result["ruleId"] == "unguarded-neighbour"]
    assert [result["message"]["text"] for result in results] == [first, second, third]
    assert {run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] for result in results} == {"unguarded-neighbour"}
    path.write_text(NEIGHBOURS.replace("size = 0x4000 }", "size = 0x4000, guard = 4096 }"))
    tables = config.load(str(path))
    assert list(problems(tables, config.lookup(tables))) == [second]


def test_a_problem_alone_fails_the_check(tmp_path: Path) -> None:
    """Tables that survive, and a stack of another CPU that nothing guards: `check` refuses it, as `build` does."""
    text = next(path for path in EXAMPLES if path.name == "double_fault.toml").read_text()
    path = tmp_path / "kernel.toml"
    path.write_text(text.replace('size = "20 KiB", guard = 4096', 'size = "20 KiB"'))
    status, out, _ = call("check", path)
    assert (status, "error: " in out) == (0, False)
    path.write_text(
        path.read_text().replace("double_fault_stack = 0xffffffff80221000", "double_fault_stack = 0xffffffff80215000")
    )
    status, out, _ = call("check", path)
    assert status == 1 and "CPU 0  survives" in out
    assert "error: the stack double_fault has no guard, and right below it lies the stack, which an" in out


def test_placeholders_are_named_not_shown(tmp_path: Path) -> None:
    """What nobody wrote and no kernel has tells nobody anything; a declared address is shown."""
    text = (
        '[cpu]\nstack = { bottom = "boot_stack", size = "16 KiB" }\nist1 = { name = "df", top = 0x8000 }\n'
        '[idt]\n"#DF" = { handler = "df", ist = "df" }\n'
    )
    tables = loaded(tmp_path, text)
    machine = config.image(tables, config.lookup(tables)).machines[0]
    assert machine.tss.ist1 == 0x8000 and machine.registers.rsp
    with pytest.raises(NotThere, match=r"^the configuration says nothing of the memory below the stack$"):
        machine.space.page(machine.registers.rsp - 0x4008)
    with pytest.raises(NotThere, match=r"^the configuration says nothing of the memory above the table tss$"):
        machine.space.page(machine.registers.tr.base + 0x1000 if machine.registers.tr else 0)
    with pytest.raises(NotThere, match=r"^the configuration says nothing of 0x8000$"):
        machine.space.page(0x8000)
    assert (
        "the configuration says nothing of the memory below the stack\n" in call("check", tmp_path / "kernel.toml")[1]
    )


# The schema


@pytest.fixture(scope="module")
def validator() -> jsonschema.protocols.Validator:
    document = json.loads(output("schema"))
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_schema_takes_the_examples(path: Path, validator: jsonschema.protocols.Validator) -> None:
    validator.validate(tomllib.loads(path.read_text()))


FORM = [
    "unknown key", "unknown key below", "unknown key of a gate", "no key like it", "missing key", "type of value",
    "word", "segment", "bare symbol for a stack", "stack without a size", "stack with both ends",
    "guard without a bottom", "mnemonic", "open range", "region", "permissions", "number of a stack",
    "number of a stack of two CPUs", "number of no stack", "number of no IST", "IST 0", "no count", "stride of a stack",
]  # fmt: skip


@pytest.mark.parametrize("what", FORM)
def test_the_schema_refuses_mistakes_of_form(what: str, validator: jsonschema.protocols.Validator) -> None:
    assert not validator.is_valid(tomllib.loads(MISTAKES[what][0]))


@pytest.mark.parametrize("what", sorted(MISTAKES.keys() - {*FORM, "invalid TOML"}))
def test_the_schema_knows_no_more_than_form(what: str, validator: jsonschema.protocols.Validator) -> None:
    """Anything else is for the program to say: a schema that refuses more than it could explain is in the way."""
    validator.validate(tomllib.loads(MISTAKES[what][0]))
