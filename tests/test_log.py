"""What QEMU's log shows, on real boots (tests/logs/capture.sh makes them again), and what must not fool it."""

import io
import json
import lzma
import re
from pathlib import Path

import pytest
from cli import IMAGES, output, refused

from x86tables.checks import RULES as CATALOGUE
from x86tables.commands import main
from x86tables.prove import qemu as guest
from x86tables.qemulog import chains, entries

LOGS = Path(__file__).parent / "logs"
BLOCK = "RAX=0000000000000000\nRIP={rip:016x} RFL=00000002\nGDT=     0000000000100150 00000027\nIDT=     {idt}\n"
BLOCK += "CR0=80010011 CR2={cr2:016x} CR3=0000000000101000 CR4=00000020\nEFER=0000000000000500\n"
RESET = "CPU Reset (CPU 0)\nEAX=00000000\n"


def log(name: str) -> bytes:
    return lzma.decompress((LOGS / f"{name}.log.xz").read_bytes())


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:  # type: ignore[type-arg]
    assert main(["log", *arguments, "--format", "json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def read(text: bytes) -> chains.Log:
    return chains.read_log(entries.entries(iter(text.splitlines())))


def event(
    vector: int, rip: int = 0x1000, rsp: int = 0x8000, code: int = 0, soft: int = 0, cpl: int = 0, **more: object
) -> str:
    cr2 = int(str(more.get("cr2", 0)))
    block = BLOCK.format(rip=rip, cr2=more.get("after", cr2), idt=more.get("idt", "0000000000106000 000001ff"))
    tail = f"CR2={cr2:016x}" if vector == 14 else "env->regs[R_EAX]=0000000000000000"
    head = f"     0: v={vector:02x} e={code:04x} i={soft} cpl={cpl} IP=0008:{rip:016x} pc={rip:016x} SP=0010:{rsp:016x}"
    return f"{head} {tail}\n{block}"


def raised(old: int | None, new: int) -> str:
    return f"check_exception old: {0xFFFFFFFF if old is None else old:#x} new {new:#x}\n"


@pytest.mark.parametrize(
    ("name", "outcome", "rule", "events"),
    [
        ("survives", "survives", None, [(14, "exception", "same-stack"), (8, "exception", None)]),
        ("triple", "triple-fault", "IDT004", [(14, "exception", "same-stack"), (8, "exception", "page")]),
        ("timer", "irq-as-exception", "IDT017", [(8, "interrupt", None)]),
        ("nogate", "delivery-failed", None, [(48, "int", "idt-limit"), (13, "exception", None)]),
        ("noidt", "triple-fault", "IDT011", [(v, "exception", "no-idt") for v in (6, 13, 8)]),
    ],
)  # fmt: skip
def test_real_boots(
    capsys: pytest.CaptureFixture[str], name: str, outcome: str, rule: str | None, events: list[tuple[object, ...]]
) -> None:
    simulation = told(capsys, str(LOGS / f"{name}.log.xz"))
    assert simulation["outcome"] == outcome
    (only,) = simulation["stories"]
    assert only["rule"] == rule
    found = [(e["vector"], e["origin"], e["failure"] and e["failure"]["cause"]) for e in only["events"]]
    assert found == events


def test_whole_linux_boot(capsys: pytest.CaptureFixture[str]) -> None:
    """6633 events and the resets of two CPUs, and nothing wrong; the counts are those of grep and sort."""
    simulation = told(capsys, str(LOGS / "linux.log.xz"))
    text = log("linux").decode()
    assert (simulation["outcome"], simulation["stories"], simulation["resets"]) == (
        "nothing",
        [],
        text.count("CPU Reset"),
    )
    assert simulation["log"]["lines"] == text.count("\n")
    counted: dict[int, int] = {}
    for vector in re.findall(r"^ *\d+: v=(..)", text, re.MULTILINE):
        counted[int(vector, 16)] = counted.get(int(vector, 16), 0) + 1
    assert {count["vector"]: count["total"] for count in simulation["counts"]} == counted
    kinds = {count["vector"]: count["origin"] for count in simulation["counts"]}
    assert (kinds[3], kinds[14], kinds[0xEC]) == ("int", "exception", "interrupt")


def test_image_names_and_decides(capsys: pytest.CaptureFixture[str]) -> None:
    image = ["--in", str(LOGS / "triple.core.xz"), "--symbols", str(LOGS / "triple.elf.xz")]
    (simulation,) = told(capsys, str(LOGS / "triple.log.xz"), *image)["stories"]
    assert simulation["replayed"] is True
    fault, double = simulation["events"]
    assert (fault["name"], fault["line"]) == ("overflow", "kernel.asm:97")
    assert "<page_fault at kernel.asm:121>" in fault["gate"]
    assert "<double_fault at kernel.asm:115>" in double["gate"]
    assert "on the stack in use at 0x108ff8" in double["failure"]["why"]


def test_linked_kernel_as_image(capsys: pytest.CaptureFixture[str]) -> None:
    (simulation,) = told(capsys, str(LOGS / "triple.log.xz"), "--in", str(LOGS / "triple.elf.xz"))["stories"]
    assert simulation["events"][0]["name"] == "overflow"
    assert (simulation["replayed"], simulation["rule"]) == (False, "IDT004")


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    for name, wanted in (
        (
            "triple",
            ("Triple fault: the processor shut down, line 523.", "8 bytes below RSP 0x109000", "explain IDT004"),
        ),
        ("survives", ("no triple fault", "its handler was entered")),
        ("timer", ("IRQ 0 (the timer) arrived on vector 8", "the PIC is not remapped", "explain IDT017")),
        ("noidt", ("no IDT is loaded", "gate 6, written as vector*16+2")),
        ("linux", ("Nothing went wrong", "129322")),
    ):
        assert main(["log", str(LOGS / f"{name}.log.xz")]) == 0
        text = capsys.readouterr().out
        assert all(part in " ".join(text.split()) for part in wanted), name
        assert max(map(len, text.splitlines())) <= 100


def test_every_rule_exists() -> None:
    known = {rule.id for rule in CATALOGUE}
    named = set(re.findall(r"[A-Z]{3}\d{3}", Path(chains.__file__).read_text()))
    assert named and named <= known


# Not fooled


def test_reset_blocks_are_no_triple_fault() -> None:
    text = log("survives")
    assert text.count(b"CPU Reset") == 2
    assert read(text).outcome == "survives"
    assert read(text.replace(b"check_exception", b"cleared")).outcome != "triple-fault"


def test_boot_loop_is_one_story() -> None:
    """Without -no-reboot the machine starts again and again."""
    told_ = read(log("triple") * 50)
    (chain,) = told_.chains
    assert (chain.times, chain.end, chain.last) == (50, 523, 49 * 523 + 479)


def test_reboots() -> None:
    """A real boot loop: between the kernel's triple faults the firmware resets on purpose: INT3, and no IDT."""
    told_ = read(log("reboots"))
    kernel, firmware = told_.chains
    assert told_.outcome == "triple-fault"
    assert (kernel.rule, kernel.deliberate, firmware.rule, firmware.deliberate) == ("IDT004", False, None, True)
    end = kernel.attempts[-1].failure
    assert end is not None
    assert (end.cause, end.cr2) == ("same-stack", 0x108FF8)
    firmware_alone = log("reboots").split(b"\n")[kernel.end : firmware.end]
    assert read(b"\n".join(firmware_alone)).outcome == "reset"


def test_the_reset_block_tells_the_last_address() -> None:
    text = raised(None, 14) + event(14, code=2, cr2=0x7FF8) + raised(14, 14) + event(8, after=0x7FF8)
    text += raised(8, 14) + "Triple fault\nCPU Reset (CPU 0)\n" + BLOCK.format(rip=0x1000, cr2=0x20FF8, idt="0 0")
    (chain,) = read(text.encode()).chains
    end = chain.attempts[-1].failure
    assert end is not None
    assert (end.cause, end.cr2, chain.rule) == ("stack", 0x20FF8, "STK001")


def test_shutdown_without_cpu_reset() -> None:
    """`Triple fault` belongs to -d cpu_reset; where that was asked for and is silent, it was a guest of the guest."""
    text = raised(None, 14) + event(14, code=2, cr2=0x7FF8) + raised(14, 14) + event(8) + raised(8, 14)
    assert read(text.encode()).outcome == "triple-fault"
    after = read((RESET + text + event(0x30)).encode())
    assert (after.outcome, after.chains[0].outcome) == ("guest-shutdown", "guest-shutdown")


@pytest.mark.parametrize(("lines", "vectors"), [(500, [14]), (522, [14, 8])])
def test_a_log_that_ends_in_a_delivery(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, lines: int, vectors: list[int]
) -> None:
    """Cut off after a `check_exception` line: what came of it is not known, be it likely."""
    path = tmp_path / "log"
    path.write_bytes(b"".join(log("triple").splitlines(keepends=True)[:lines]))
    found = read(path.read_bytes())
    assert (found.outcome, found.chains[0].outcome) == ("unknown", "unknown")
    assert [a.event.vector for a in found.chains[0].attempts if a.failure] == vectors
    text = output("log", path)
    assert f"the log ends here, line {lines}: how it ended is not known" in text
    assert "guest" not in text and "SHUTDOWN" not in text
    if lines == 522:  # the memory, as it was after the end, tells it
        (simulation,) = told(capsys, str(path), "--in", str(LOGS / "triple.core.xz"))["stories"]
        assert simulation["replayed"] is True


def test_a_delivery_that_cannot_begin_again(tmp_path: Path) -> None:
    """Without CR3 in the log not even the first check is made with the memory: the log stands alone."""
    text = RESET + raised(None, 8) + event(8) + raised(8, 14) + event(0x30)
    (tmp_path / "log").write_text("".join(line for line in text.splitlines(True) if not line.startswith("CR0=")))
    assert "rule         STK001" in output("log", tmp_path / "log", "--in", LOGS / "triple.core.xz")


@pytest.mark.parametrize(
    "line",
    [
        b"CPU Reset (CPU %b)" % (b"9" * 5000),
        b"Servicing hardware INT=0x%b" % (b"2" * 5000),
        b"check_exception old: 0xe new 0x%b" % (b"d" * 5000),
        event(14).encode().replace(b"SP=0010:", b"SP=0010:" + b"8" * 5000),
    ],
    ids=lambda line: line[:20].decode(),
)
def test_numbers_that_qemu_does_not_print(line: bytes) -> None:
    """Such lines are somebody else's."""
    found = read(line + b"\n" + event(0x20).encode())
    assert (found.resets, found.chains, [count.vector for count in found.counts]) == (0, (), [0x20])


def test_interrupt_before_a_fault_of_its_instruction_was_delivered() -> None:
    """The handler returned, and then the instruction faulted by itself: two events, no chain."""
    text = "Servicing hardware INT=0x30\n" + event(0x30) + raised(None, 14) + event(14, code=2, cr2=0x123000)
    assert read(text.encode()).chains == ()


@pytest.mark.parametrize("code", [0x302, 0x182, 0x183])
def test_error_codes_of_old_and_new(code: int) -> None:
    """vector*16+2 up to QEMU 7.2, vector*8+2 after it, with EXT perhaps."""
    text = "Servicing hardware INT=0x30\n" + event(0x30) + raised(None, 13) + event(13, code=code)
    (chain,) = read(text.encode()).chains
    assert [(a.event.vector, a.origin) for a in chain.attempts] == [(0x30, "interrupt"), (13, "exception")]


def test_timer_in_the_firmware_is_fine() -> None:
    """In real mode vector 8 is the timer's own place, and QEMU prints no v= line there."""
    assert read(b"Servicing hardware INT=0x08\n" * 40).outcome == "nothing"


def test_a_table_that_is_not_mapped() -> None:
    text = raised(None, 6) + event(6) + raised(None, 14) + event(14, cr2=0x106060)
    (chain,) = read(text.encode()).chains
    failure = chain.attempts[0].failure
    assert failure is not None
    assert (failure.cause, chain.rule) == ("idt-page", "IDT012")


@pytest.mark.parametrize(("stride", "handled"), [(0, False), (48, False), (0, True)])
def test_going_round(stride: int, handled: bool) -> None:
    """The same fault at the same place; a page that changes each time is work, not a loop."""
    text = "".join(
        raised(None, 14) + event(14, rsp=0x8000 - n * stride, cr2=0x5000 + n * 0x1000 * handled) for n in range(40)
    )
    found = read(text.encode())
    assert found.outcome == ("nothing" if handled else "loops")
    if not handled:
        assert found.repeated is not None
        assert (found.repeated.times, found.repeated.stride) == (40, -stride)


def test_bounded_memory() -> None:
    """Many different chains are counted, not kept."""
    text = "".join(
        raised(None, 14) + event(14, rip=n, code=2, cr2=0x7FF8) + raised(14, 14) + event(8, rip=n) for n in range(200)
    )
    found = read(text.encode())
    assert (len(found.chains), found.others) == (chains.KINDS, 200 - chains.KINDS)
    reader = chains.Reader()
    for entry in entries.entries(iter(text.encode().splitlines())):
        reader.take(entry)
        assert len(reader.open) <= chains.OPEN
        assert len(reader.raised) <= chains.OPEN


def test_an_interrupt_is_one_chain_wherever_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join("Servicing hardware INT=0x08\n" + event(8, rip=0x1000 + n) for n in range(100)))
    (chain,) = read(path.read_bytes()).chains
    assert chain.times == 100
    text = output("log", path)
    assert text.count("IRQ 0 (the timer)") == 1
    assert "100 times" in text and "and 99 more times" in text and "more chains" not in text


def test_a_timer_is_no_loop() -> None:
    """`prove KERNEL` stops at an event that comes again and again, at an interrupt it does not."""
    watched = guest._Watched(io.BytesIO(), 0.0)
    for entry in entries.entries(iter(("Servicing hardware INT=0x08\n" + event(8)).encode().splitlines() * 400)):
        watched.reader.take(entry)
    assert watched._round() is None


def no_gate(rip: int) -> str:
    return raised(None, 6) + event(6, rip) + raised(None, 11) + event(11, rip, code=0x32)


@pytest.mark.parametrize(("places", "wanted"), [(1, "2000 times"), (20, "also at 0x8:0x1001, line 18 (100 times);")])
def test_the_same_story_is_told_once(tmp_path: Path, places: int, wanted: str) -> None:
    """An absent gate met two thousand times, at one instruction or at several."""
    path = tmp_path / "log"
    path.write_text("".join(no_gate(0x1000 + n % places) for n in range(2000)))
    text = " ".join(output("log", path).split())
    assert text.count("gate 6 is not present") == 1
    assert wanted in text
    assert ("and 11 more places" in text) == (places == 20)


def test_many_stories_hide_no_worse_one() -> None:
    text = "".join(map(no_gate, range(2 * chains.KINDS))).encode()
    found = read(text + log("triple"))
    assert (found.outcome, found.chains[-1].outcome) == ("triple-fault", "shutdown")


@pytest.mark.parametrize(
    "content", [b"hello\n", b"\0" * 100_000, b"v=0e e=", b"     0: v=zz e=0000\n", b"\xff\xfe\n" * 50]
)
def test_garbage_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    assert main(["log", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "not a QEMU log" in error


@pytest.mark.parametrize("cut", range(0, 24_000, 997))
def test_cut_off_anywhere(cut: int) -> None:
    whole = read(log("triple")).chains[0].kind
    for chain in read(log("triple")[:cut]).chains:
        assert chain.kind[1] == whole[1]


def test_standard_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    class Input:
        buffer = io.BytesIO(log("timer"))

    monkeypatch.setattr(sys, "stdin", Input())
    assert told(capsys, "-")["outcome"] == "irq-as-exception"


def test_a_kernel_that_was_moved(tmp_path: Path) -> None:
    """With --in the offset is worked out from the gates, as `check` does it; or it is given, with and without --in."""
    registers = json.loads((IMAGES / "linux.json").read_text())["cpus"][0]["info_registers"]
    rip = int(re.search(r"RIP=(\w+)", registers)[1], 16)  # type: ignore[index]
    (tmp_path / "log").write_text(RESET + raised(None, 14) + event(14, rip).partition("\n")[0] + "\n" + registers)
    offset = 0xE00_0000
    lines = [line.split() for line in (IMAGES / "linux.map").read_text().splitlines()]
    linked = [f"{(int(a, 16) - offset) % 2**64:016x} {t} {n}\n" for a, t, n in lines if a.startswith("ffffffff")]
    (tmp_path / "System.map").write_text("".join(linked))
    symbols, image = ["--symbols", tmp_path / "System.map"], ["--in", IMAGES / "linux.core"]
    text = output("log", tmp_path / "log", *symbols, *image)
    assert "native_safe_halt+0xb" in text
    assert f"note: the kernel was moved by {offset:#x}: the one offset that fits its gates" in text
    for given in ([], image):
        assert "native_safe_halt+0xb" in output(
            "log", tmp_path / "log", *symbols, *given, "--kaslr-offset", hex(offset)
        )
    assert "native_safe_halt+0xb" not in output("log", tmp_path / "log", *symbols)
    (tmp_path / "c.toml").write_text("")
    assert "a memory dump or a linked kernel" in refused("log", tmp_path / "log", "--in", tmp_path / "c.toml")
