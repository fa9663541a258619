"""`x86tables decode`: what people paste, what they get, and one sentence when it is no value."""

import io
import json
import re
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from x86tables import Gate, Layout, UsageError
from x86tables.commands import main
from x86tables.decode import KINDS, decode, read

GATE = Gate.interrupt(0xFFFF_FFFF_8100_0000, 8, ist=1)
Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *arguments: str) -> str:
    """What `decode` prints."""
    assert main(["decode", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def refusal(capsys: Capture, *arguments: str) -> str:
    """The sentence with which `decode` refuses."""
    assert main(["decode", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line.removeprefix("x86tables: ")


SEGMENT = r"""
segment    0x00af9b000000ffff
bytes      ff ff 00 00 00 9b af 00
meaning    64-bit code, ring 0, readable, accessed
           base 0x0, limit 0xffffffff (4 GiB), both ignored by 64-bit code
anomalies  none

 31   24 23  22 21  20 19 16 15 14 13 12 11 8 7     0
+-------+--+---+--+---+-----+--+-----+--+----+-------+
|  base |g |d_b|l |avl|limit|p | dpl |s |type|  base |
| 31:24 |  |   |  |   |19:16|  |     |  |    | 23:16 |
|  0x0  |1 | 0 |1 | 0 | 0xf |1 |  0  |1 |0xb |  0x0  | +0x4
+-------+--+---+--+---+-----+--+-----+--+----+-------+
 31                       16 15                     0
+---------------------------+------------------------+
|            base           |         limit          |
|            15:0           |          15:0          |
|            0x0            |         0xffff         | +0x0
+---------------------------+------------------------+
"""

ERROR_CODE = r"""
error-code  0x00000402
bytes       02 04 00 00
meaning     IDT vector 128 (0x80)
anomalies   none

 31                           16 15                      3 2   1   0
+-------------------------------+-------------------------+--+---+---+
|            reserved           |          index          |ti|idt|ext|
|              0x0              |           0x80          |0 | 1 | 0 |
+-------------------------------+-------------------------+--+---+---+
"""

SYSTEM = r"""
system     0x000001000000000000c0890030000067
bytes      67 00 00 30 00 89 c0 00 00 00 00 00 00 01 00 00
meaning    available 64-bit TSS, base 0x3000, limit 0x67fff (416 KiB), ring 0
anomalies  G set on a TSS: it would have 416 KiB
           zero (bits 108:104) is 0x1, expected 0
           reserved0 (bits 54:53) is 0x2, expected 0

 31                                   13 12    8 7       0
+---------------------------------------+-------+---------+
|               reserved2               |  zero |reserved1|
|                  0x0                  |  0x1  |   0x0   | +0xc
+---------------------------------------+-------+---------+
 31                                                      0
+---------------------------------------------------------+
|                     base 63:32 = 0x0                    | +0x8
+---------------------------------------------------------+
 31   24 23 22     21  20 19 16 15 14 13 12 11 8 7       0
+-------+--+---------+---+-----+--+-----+--+----+---------+
|  base |g |reserved0|avl|limit|p | dpl |s |type|   base  |
| 31:24 |  |         |   |19:16|  |     |  |    |  23:16  |
|  0x0  |1 |    2    | 0 | 0x0 |1 |  0  |0 |0x9 |   0x0   | +0x4
+-------+--+---------+---+-----+--+-----+--+----+---------+
 31                          16 15                       0
+------------------------------+--------------------------+
|             base             |          limit           |
|             15:0             |           15:0           |
|            0x3000            |           0x67           | +0x0
+------------------------------+--------------------------+
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["0x00af9b000000ffff"], SEGMENT),
        (["--as", "error-code", "0x402"], ERROR_CODE),
        (["67000030 0089c000 00000000 00010000"], SYSTEM),
    ],
    ids=["segment", "error-code", "system"],
)
def test_text(capsys: Capture, arguments: list[str], expected: str) -> None:
    assert run(capsys, *arguments) == expected.lstrip("\n")


GDB = """0xfffffe0000000080 <idt_table+128>:\t0x00080000\t0x81008e01
0xfffffe0000000088 <std::vector<int>::at(int)+136>:\t0xffffffff\t0x00000000
"""
WRITTEN = {
    "number": "0x00000000ffffffff81008e0100080000",
    "bytes": "00000800018e0081ffffffff00000000",
    "spaced bytes": "00 00 08 00 01 8e 00 81 FF FF FF FF 00 00 00 00",
    "xxd": "00000080: 0000 0800 018e 0081 ffff ffff 0000 0000",
    "x/16bx": " ".join(f"0x{byte:02x}" for byte in bytes(GATE)),
    "x/8hx": "0x0000 0x0008 0x8e01 0x8100 0xffff 0xffff 0x0000 0x0000",
    "x/4wx": "0x00080000 0x81008e01 0xffffffff 0x00000000",
    "x/2gx": "0x81008E0100080000 0x00000000FFFFFFFF",
    "c array": "0x00080000, 0x81008e01, 0xffffffff, 0x00000000",
    "gdb": GDB,
    "qemu": "ffff800000001080: 0x00080000 0x81008e01 0xffffffff 0x00000000\n",
    "gdb on one line": GDB.replace("\n", " "),
}


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN)
def test_ways_to_write_a_gate(text: str) -> None:
    assert decode(text) == ("gate", GATE)


def test_words_as_separate_arguments(capsys: Capture) -> None:
    assert run(capsys, *WRITTEN["x/4wx"].split()) == run(capsys, WRITTEN["number"])


def test_standard_input(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(GDB))
    assert run(capsys, "-") == run(capsys, GDB)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\x00"), encoding="utf-8"))
    assert refusal(capsys, "-").startswith("standard input is not text: write 0x00af9b000000ffff")


GUESSES = [
    ("0x0033", "selector"),
    ("3300", "selector"),
    ("0x0000000000000000", "segment"),
    ("0x00cf93000000ffff", "segment"),
    ("0x0000850000280000", "legacy-gate"),
    ("0x0000810010000067", "legacy-system"),
    ("67000030008900000000000000000000", "system"),
    ("67000030008b00000000000000000000", "system"),
    ("67000030008200000000000000000000", "system"),
    ("00000800008c00000000000000000000", "call-gate"),
    ("00000800008f00000000000000000000", "gate"),
    ("ff0000100000", "pseudo-descriptor32"),
    ("ff000010000000000000", "pseudo-descriptor"),
    ("00" * 40, "frame"),
    ("00" * 48, "error-frame"),
]


@pytest.mark.parametrize(("text", "expected"), GUESSES)
def test_guess(text: str, expected: str) -> None:
    assert decode(text)[0] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0xaf9b000000ffff", "segment"),
        ("0x0", "segment"),
        ("0x0000890010000067", "legacy-system"),
        ("0x00008e0000081000", "legacy-gate"),
        ("0x000000000000000000008b0010000067", "system"),
        ("0x1000000000000cc0000081000", "call-gate"),
        ("00000800008e00000000000000000000", "system"),
    ],
)
def test_descriptor_by_its_own_bits(text: str, expected: str) -> None:
    assert decode(text, "descriptor")[0] == expected


@pytest.mark.parametrize(("kind", "layout"), KINDS.items(), ids=KINDS)
def test_every_kind(capsys: Capture, kind: str, layout: type[Layout]) -> None:
    raw = bytes(range(1, layout.size + 1))
    number = "0x" + raw[::-1].hex()
    out = run(capsys, "--as", kind, raw.hex())
    assert out == run(capsys, "--as", kind, number)
    assert max(map(len, out.splitlines())) <= 80
    told = json.loads(run(capsys, "--as", kind, raw.hex(), "--format", "json"))
    assert list(told) == ["schema", "kind", "raw", "fields", "meaning", "odd"]
    assert (told["schema"], told["kind"], told["raw"]) == (1, kind, raw.hex())
    read_back = {name: int(value, 16) if isinstance(value, str) else value for name, value in told["fields"].items()}
    assert bytes(layout(**read_back)) == raw


def test_help_names_every_kind() -> None:
    from x86tables.commands import module

    assert all(re.search(rf"(?<![\w-]){kind}(?![\w-])", module("decode").__doc__) for kind in KINDS)


def test_json(capsys: Capture) -> None:
    assert json.loads(run(capsys, "--format", "json", WRITTEN["number"])) == {
        "schema": 1,
        "kind": "gate",
        "raw": "00000800018e0081ffffffff00000000",
        "fields": {
            "reserved1": "0x0",
            "offset": "0xffffffff81000000",
            "p": True,
            "dpl": 0,
            "s": False,
            "type": 14,
            "reserved0": 0,
            "ist": 1,
            "selector": 8,
        },
        "meaning": "interrupt gate -> 0x8:0xffffffff81000000, IST1, ring 0",
        "odd": [],
    }
    tss = json.loads(run(capsys, "--format", "json", "--as", "tss", "00" * 102 + "6800"))
    assert (tss["fields"]["ist1"], tss["fields"]["rsp0"], tss["fields"]["iopb"]) == ("0x0", "0x0", 0x68)
    segment = json.loads(run(capsys, "--format", "json", "0x00af9b000000ffff"))["fields"]
    assert (segment["base"], segment["limit"], segment["l"]) == ("0x0", 0xFFFFF, True)
    frame = json.loads(run(capsys, "--format", "json", "--as", "frame", "10" * 40))["fields"]
    assert (frame["rip"], frame["rflags"], frame["cs"]) == ("0x1010101010101010", "0x1010101010101010", 0x1010)


SHOWN_AS = "0x00af9b000000ffff, or bytes in memory order such as ff ff 00 00 00 9b af 00"
REFUSED = [
    ([""], f"nothing to decode: write a value, {SHOWN_AS}"),
    (["0xffff800000001000:"], f"nothing to decode: write a value, {SHOWN_AS}"),
    (["zz"], f"'zz': neither a 0x number nor hex digits; write {SHOWN_AS}"),
    (["0x"], f"'0x': neither a 0x number nor hex digits; write {SHOWN_AS}"),
    (["0x_1"], f"'0x_1': neither a 0x number nor hex digits; write {SHOWN_AS}"),
    (["\u0661\u0662"], f"'\u0661\u0662': neither a 0x number nor hex digits; write {SHOWN_AS}"),
    (["0x8:0xffff"], f"'0x8:0xffff': neither a 0x number nor hex digits; write {SHOWN_AS}"),
    (["123"], "'123': 3 hex digits are not whole bytes; a number begins with 0x"),
    (["0x11", "22"], "'0x11' is mixed with plain hex bytes: write all with 0x, or none"),
    (
        ["0x12", "0x345"],
        "'0x345': words must all have one width, 2, 4, 8 or 16 digits, as a debugger's x command prints them",
    ),
    (
        ["0x12", "0x3456"],
        "'0x3456': words must all have one width, 2, 4, 8 or 16 digits, as a debugger's x command prints them",
    ),
    (
        ["0x33"],
        "a number of 1 byte may be several structures: "
        "say --as selector, error-code, page-fault-error or real-mode-vector",
    ),
    (
        ["0xaf9b000000ffff"],
        "a number of 7 bytes may be several structures: say --as segment, legacy-gate, legacy-system or star",
    ),
    (
        ["0x00000402"],
        "4 bytes may be several structures: say --as error-code, page-fault-error or real-mode-vector",
    ),
    (
        ["0x00008e0000081234"],
        "8 bytes with S=0 and type 0xe, in 64-bit mode the first half of 16, may be several structures: "
        "say --as legacy-gate, legacy-system or star",
    ),
    (
        ["0x00cf93000000ffff00af9b000000ffff"],
        "16 bytes with S=1 and type 0xb, perhaps two segment descriptors, may be several structures: "
        "say --as system, call-gate or gate",
    ),
    (
        ["00" * 16],
        "16 bytes with S=0 and type 0x0 may be several structures: say --as system, call-gate or gate",
    ),
    (["00" * 104], "104 bytes may be several structures: say --as tss or tss32"),
    (["112233"], "3 bytes: no structure has this size; known sizes are 2, 4, 6, 8, 10, 16, 40, 48, 104 bytes"),
    (
        ["0x" + "1" * 33],
        "a number of 17 bytes: no structure has this size; known sizes are 2, 4, 6, 8, 10, 16, 40, 48, 104 bytes",
    ),
    (["--as", "selector", "33"], "selector: 2 bytes expected, 1 found; a number begins with 0x"),
    (["--as", "selector", "0x12345"], "selector: 2 bytes expected, 3 found"),
    (["--as", "gate", "200d"], "gate: 16 bytes expected, 2 found; a number begins with 0x"),
    (["--as", "descriptor", "00" * 12], "descriptor: 16 bytes expected, 12 found; a number begins with 0x"),
    (["00" * 40000], f"more than 65536 characters are not a single value: write one, {SHOWN_AS}"),
    (["--as", "frob", "1"], f"--as 'frob': no such kind; one of descriptor, {', '.join(KINDS)}"),
]


@pytest.mark.parametrize(("arguments", "expected"), REFUSED, ids=[text[:40] for _, text in REFUSED])
def test_refusal(capsys: Capture, arguments: list[str], expected: str) -> None:
    assert refusal(capsys, *arguments) == expected


@given(st.binary(min_size=2, max_size=104), st.sampled_from([1, 2, 4, 8]))
def test_words_join_in_ascending_order(data: bytes, width: int) -> None:
    data = data[: max(len(data) // width, 2) * width].ljust(2 * width, b"\0")
    words = [f"0x{int.from_bytes(data[at : at + width], 'little'):0{width * 2}x}" for at in range(0, len(data), width)]
    assert read(" ".join(words)) == (data, False)


NOISE = st.text(max_size=60) | st.text("0123456789abcdefxX:<>,+- \t\n", max_size=60) | st.binary(max_size=110).map(
    lambda data: data.hex()
) | st.integers(min_value=0, max_value=1 << 140).map(hex)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(NOISE.filter(lambda text: text != "-"), st.none() | st.sampled_from(["descriptor", *KINDS]), st.booleans())
def test_any_text(capsys: Capture, text: str, kind: str | None, as_json: bool) -> None:
    """Whatever is written, there is an answer or one sentence."""
    status = main(["decode", *(["--as", kind] if kind else []), *(["--format", "json"] if as_json else []), "--", text])
    captured = capsys.readouterr()
    if status == 0:
        assert captured.out.isascii() and captured.err == ""
    else:
        assert (status, captured.out) == (2, "")
        assert captured.err.startswith("x86tables: ") and captured.err.count("\n") == 1


def test_hostile_paste_is_quick() -> None:
    """Unclosed `<` everywhere must not make the search for address columns quadratic."""
    with pytest.raises(UsageError):
        read("0 <" * 20000)
