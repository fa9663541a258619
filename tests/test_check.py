"""The `check` command: its exit status, its first lines, its JSON, on captured systems and with one thing changed."""

from pathlib import Path
from typing import Any

import pytest
import specimens
from cli import IMAGES, call, fitting, output, refused
from mutated import CHANGES, linux

import x86tables
from x86tables.checks import Finding, Report
from x86tables.delivery.extent import extent
from x86tables.delivery.scenarios import SCENARIOS, run_scenario
from x86tables.readers import elfcore, open_image
from x86tables.render import findings, verdict

LINUX = IMAGES / "linux.core"
KEYS = {"cpu", "verdict", "reason", "handled_by", "assumed", "stack", "scenarios", "findings", "not_checked"}


def checked(*argv: object) -> Any:
    """The JSON of `check`, whatever its exit status; it fits the published schema."""
    return fitting("check", call("check", *argv, "--format", "json")[1])


def test_linux_survives() -> None:
    document = checked(LINUX)
    assert document["schema"] == 1
    assert [(cpu["verdict"], cpu["stack"]["verdict"], cpu["stack"]["kind"]) for cpu in document["cpus"]] == [
        ("survives", "guarded", "unmapped"),
        ("survives", "not-judged", "read-only"),  # page-table isolation: caught in ring 3
    ]
    for cpu in document["cpus"]:
        assert cpu.keys() >= KEYS
        assert (cpu["handled_by"]["vector"], cpu["handled_by"]["stack"]) == (8, "IST1")
        assert [room["size"] for room in cpu["rooms"]] == [8192, 8192, 8192, 8192, 0]
        (scenario,) = cpu["scenarios"]
        assert scenario.keys() >= {"name", "verdict", "reason", "needs", "handled_by", "trace"}
        for row in scenario["trace"]:
            assert row.keys() == {"event", "error_code", "step", "address", "found", "rule"}
        events = list(dict.fromkeys(row["event"] for row in scenario["trace"]))
        assert events == ["#PF", "#DF", "#DF handler"]


def test_linux_in_text() -> None:
    text = output("check", LINUX, "--symbols", IMAGES / "linux.map")
    lines = text.splitlines()
    assert lines[2] == "CPU 0  survives if a guard page is hit; the stack in use is guarded"
    assert lines[3] == "  why    the #DF handler runs on IST1 (asm_exc_double_fault)"
    assert max(map(len, lines)) <= 100
    assert "CPU 1  survives if a guard page is hit; the stack in use is not judged" in lines


@pytest.mark.parametrize("name", ["cloud", "memtest"])
def test_text_is_no_wider_than_100_columns(name: str) -> None:
    symbols = ["--symbols", IMAGES / f"{name}.map"] if (IMAGES / f"{name}.map").exists() else []
    lines = call("check", IMAGES / f"{name}.core", *symbols)[1].splitlines()
    assert max(map(len, lines)) <= 100
    first = next(at for at, line in enumerate(lines) if line.startswith("CPU 0"))
    told = " ".join(" ".join(lines[first : first + 2]).split())
    assert "the stack in use has none: an overflow silently corrupts memory" in told


def test_a_long_place_is_broken_at_its_commas() -> None:
    machine = open_image(str(LINUX)).machines[0]
    finding = Finding("idt", tuple(range(1, 256, 2)), "type", "bad", "error", "IDT003")
    lines = list(findings.lines(Report(machine, (finding,))))
    assert max(map(len, lines)) <= 100
    assert lines[2].startswith("    error    IDT003  idt[1,3,5,") and lines[2].endswith(",")
    assert finding.where in "".join(line.strip() for line in lines)


def test_ovmf_resets() -> None:
    """The first screen: what happens, why, and what to do."""
    status, text, _ = call("check", IMAGES / "ovmf.core")
    assert status == 1
    cpu = text.split("\n\n")[1].splitlines()
    assert cpu[0].startswith("CPU 0  triple-fault if a guard page is hit")
    assert " ".join("".join(cpu[1:3]).split()) == (
        "why #DF cannot be delivered: push SS at 0x7dffff8 on the same stack (no IST): write to a "
        "read-only page with CR0.WP set"
    )
    assert (
        cpu[3] == "  fix    IDT004: point an IST field of the TSS at the end of a mapped stack and put its number into"
    )


def test_what_to_fix_first() -> None:
    (ovmf,) = x86tables.open(str(IMAGES / "ovmf.core")).check()
    assert ovmf.first_to_fix in ovmf.findings and ovmf.first_to_fix.rule == "IDT004"
    linux, _ = x86tables.open(str(LINUX)).check()
    assert linux.findings and linux.first_to_fix is None, "notes ask for nothing"
    other = Finding("idt", (3, 14), "type", "bad", "error", "IDT003")
    about_another = ovmf.replace(findings=(other.replace(index=3), *ovmf.findings))
    assert about_another.first_to_fix == ovmf.first_to_fix, "the gate of the last event counts for more than order"
    assert ovmf.replace(findings=(other,)).first_to_fix == other


def test_cpus_that_fare_alike_are_shown_once(tmp_path: Path) -> None:
    path = tmp_path / "four.core"
    path.write_bytes(specimens.core(said=specimens.notes() * 4))
    heads = [line for line in output_of_check(path).splitlines() if line.startswith("CPU")]
    assert [line.split("  ")[0] for line in heads[:2]] == ["CPU 0", "CPU 1"], "CPU 1 shares a TSS with one before it"
    assert heads[2:] == ["CPUs 2,3  like CPU 1"]
    steps = output_of_check(path, "--steps").splitlines()
    assert [line.split("  ")[0] for line in steps if line.startswith("CPU")] == ["CPU 0", "CPU 1", "CPU 2", "CPU 3"]


def test_cpus_that_differ_by_the_stack_in_use() -> None:
    cpu = output_of_check(LINUX).split("\n\n")[-1].splitlines()
    assert cpu[0] == "CPU 1  survives if a guard page is hit; the stack in use is not judged"
    assert cpu[-1] == "  the rest is like CPU 0"


def output_of_check(*argv: object) -> str:
    """The text of `check`, whatever its exit status."""
    return call("check", *argv)[1]


def test_scenarios_that_end_alike_are_traced_once() -> None:
    image = x86tables.open(str(IMAGES / "ovmf.core"))
    (one,) = image.check(["double-fault-questions"])
    twice = one.replace(scenarios=(*one.scenarios, *one.scenarios))
    plain, steps = (list(verdict.check(image.snapshot, [twice], all_steps)) for all_steps in (False, True))
    assert sum("=> SHUTDOWN" in line for line in plain) == 2, "the overflow, and the scenario once"
    assert sum("=> SHUTDOWN" in line for line in steps) == 3


@pytest.mark.parametrize("name", ["grub", "seabios", "linux32"])
def test_not_applicable(name: str) -> None:
    document = checked(IMAGES / f"{name}.core")
    assert {cpu["verdict"] for cpu in document["cpus"]} == {"not-applicable"}
    assert call("check", IMAGES / f"{name}.core")[0] == 1


@pytest.mark.parametrize("name", CHANGES)
def test_one_thing_changed(name: str) -> None:
    mutated = CHANGES[name]
    scenario = run_scenario("stack-overflow", linux(name).machines[0])
    assert scenario.verdict == mutated.verdict
    assert mutated.reason in scenario.reason


def test_all_scenarios() -> None:
    document = checked(LINUX, "--scenario", "all")
    for cpu in document["cpus"]:
        assert [scenario["name"] for scenario in cpu["scenarios"]] == list(SCENARIOS)
        verdicts = {scenario["name"]: scenario["verdict"] for scenario in cpu["scenarios"]}
        assert verdicts.pop("current-stack") == cpu["stack"]["verdict"]
        assert {verdicts.pop(name) for name in ("syscall-gap", "sysret")} == {"unknown"}, "a core does not hold EFER"
        assert set(verdicts.values()) == {"survives"}
    text = output("check", LINUX, "--scenario", "all")
    assert "  survival-matrix: survives" in text
    assert "  current-stack: guarded: the page below refuses a push (PTE not present)\n" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", ["linux", "ovmf"])
def test_an_extract_is_judged_as_the_original(name: str, tmp_path: Path) -> None:
    small = tmp_path / f"{name}.core"
    output("extract", IMAGES / f"{name}.core", "-o", small)
    theirs, ours = (checked(path, "--scenario", "all") for path in (IMAGES / f"{name}.core", small))
    assert theirs.pop("image") != ours.pop("image")
    assert theirs == ours


def test_options() -> None:
    document = checked(LINUX, "--cpu", "0", "--handler-stack", "8192")
    assert document["cpus"][0]["verdict"] == "loops"
    assert call("check", LINUX, "--cpu", "0", "--handler-stack", "8192")[0] == 1
    top = document["cpus"][0]["rooms"][1]["top"]
    stack = checked(LINUX, "--cpu", "0", "--stack", top)["cpus"][0]["stack"]
    assert (stack["verdict"], stack["distance"]) == ("guarded", 8192)


def test_the_page_that_is_missing_is_named(tmp_path: Path) -> None:
    image = open_image(str(LINUX))
    pages = {address for known in image.memory.ranges for address in known[::0x1000]}
    guard = extent(image.machines[0], image.machines[0].registers.rsp or 0)
    assert guard.below is not None
    entry: list[int] = []
    image.machines[0].space.walk((image.machines[0].registers.rsp or 0) & -0x1000, lambda e: entry.append(e.address))
    missing = entry[-1] & -0x1000  # the page table of the stack
    small = tmp_path / "small.core"
    elfcore.write(str(small), image.memory, pages - {missing}, image.notes)
    cpu = checked(small, "--cpu", "0")["cpus"][0]
    assert (cpu["verdict"], cpu["stack"]["verdict"]) == ("unknown", "unknown")
    assert f"physical page {missing:#x} is not in this image" in cpu["reason"]
    assert cpu["scenarios"][0]["needs"] == f"physical page {missing:#x} is not in this image"
    assert call("check", small, "--cpu", "0")[0] == 1


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("--scenario", "overflow"), "--scenario overflow: one of stack-overflow, current-stack"),
        (("--handler-stack", "lots"), "'lots'"),
        (("--stack-size", "0x80000000"), "--stack-size: '0x80000000' is too large: at most 0x40000000"),
        (("--frame", "0x80000000"), "--frame: '0x80000000' is too large: at most 0x40000000"),
        (("--stack", "no_such_symbol"), "no_such_symbol"),
        (("--cpu", "7"), "--cpu 7"),
    ],
)
def test_usage(argv: tuple[str, ...], sentence: str) -> None:
    assert sentence in refused("check", LINUX, *argv)


def test_a_linked_kernel_says_how_to_get_an_answer(tmp_path: Path) -> None:
    (kernel := tmp_path / "my kernel").write_bytes(specimens.kernel())
    text = " ".join(call("check", kernel)[1].split())
    assert "Boot it and take a dump: `dump-guest-memory FILE` in QEMU's monitor" in text
    assert f"then `x86tables check FILE --symbols '{kernel}'`" in text
    assert "take a dump" not in call("check", LINUX)[1]


def test_an_error_code_that_rests_on_nxe_is_no_fact() -> None:
    """memtest has EFER.NXE clear, and its core does not tell: bit 4 of a fetch's error code is not known."""
    questions = ("--scenario", "double-fault-questions")
    _, text, _ = call("check", IMAGES / "memtest.core", *questions)
    assert "a new event: #PF(0x10, or 0x0 if EFER.NXE=0)" in text and "#PF(0x0 or 0x10) supervisor fetch" in text
    assert "if EFER.NXE=0" not in call("check", LINUX, *questions)[1]
