"""Proofs on Bochs: what is compared, what is said when it cannot be, and kernels whose fate is known."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from cli import IMAGES, call, fitting, refused
from kernels import GUARD, IST, MAPPINGS, TOP, gate, kernel
from mutated import CHANGES, linux

from x86tables import Tss
from x86tables.delivery.scenarios import ScenarioOptions, run_scenario
from x86tables.machine.machine import Machine
from x86tables.machine.registers import LA57
from x86tables.prove import bochs, workers
from x86tables.prove.event_log import COMPARED, EventLog, Observation, differences
from x86tables.prove.run import Proof, compare, prove, trials

bochscpu = pytest.mark.needs("bochscpu")
ENTRY = Observation("entered", 8, 0, 0x1000, 0x2000, 0x3000, 2, 8, 16, bytes(48))


def proved(machine: Machine, scenario: str = "stack-overflow") -> Proof:
    return prove(machine, [run_scenario(scenario, machine)], ScenarioOptions(), bochs.run)


# Comparing


@pytest.mark.parametrize("name", COMPARED)
def test_no_field_may_differ(name: str) -> None:
    other = ENTRY.replace(**{name: {"what": "raised", "frame": b"\1" + bytes(47)}.get(name, 77)})
    assert differences(EventLog((ENTRY,), "runs"), EventLog((ENTRY,), "runs")) == []
    (found, *_) = differences(EventLog((ENTRY,), "runs"), EventLog((other,), "runs"))
    assert f"0: {name}: " in found


def test_what_we_do_not_know_is_not_compared() -> None:
    assert differences(EventLog((ENTRY.replace(ss=None, frame=None),), "runs"), EventLog((ENTRY,), "runs")) == []


@pytest.mark.parametrize(
    ("theirs", "found"),
    [
        (EventLog((ENTRY,), "shutdown", {}), "1: runs predicted, shutdown seen"),
        (EventLog((ENTRY, Observation("raised", 14, 2, 0x10)), "runs", {}), "1: runs predicted, #PF(0x2) at 0x10 seen"),
        (EventLog((), "runs", {}), "0: handler of #DF entered at 0x2000, RSP 0x3000 predicted, runs seen"),
        (EventLog((ENTRY,), "runs", {5: 2}), "memory at 0x5: no change predicted, 0x2 seen"),
    ],
)
def test_end_and_memory_have_to_be_the_same(theirs: EventLog, found: str) -> None:
    assert differences(EventLog((ENTRY,), "runs", {}), theirs) == [found]


def test_memory_that_was_to_be_written() -> None:
    ours = EventLog((ENTRY,), "runs", {5: 1, 6: None})
    assert differences(ours, EventLog((ENTRY,), "runs", {5: 1, 6: 9})) == []
    assert differences(ours, EventLog((ENTRY,), "runs", {})) == ["memory at 0x5: 0x1 predicted, no change seen"]


def test_rounds_that_are_left_out() -> None:
    one, other, last = (ENTRY.replace(rsp=rsp) for rsp in (1, 2, 3))
    ours = EventLog((one, last), "runs", None, 1)
    assert differences(ours, EventLog((one, other, other, last), "runs")) == []
    assert differences(ours, EventLog((one, other, other), "runs")) != []


# Children


def _work(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item * 2


def test_a_child_that_dies_takes_only_its_item_with_it() -> None:
    results = dict(workers.run(lambda: _work, range(6), workers=2, size=4))
    assert results.pop(3) == workers.Crashed("SIGKILL")
    assert results == {0: 0, 1: 2, 2: 4, 4: 8, 5: 10}
    assert str(workers.Crashed("SIGABRT")) == "the emulator's process ended: SIGABRT"


# Kernels


def mappings(name: str, permissions: str) -> Any:
    """The areas of a good kernel, one of them with other permissions."""
    return tuple(mapping.replace(permissions=permissions) if mapping.name == name else mapping for mapping in MAPPINGS)


@bochscpu
@pytest.mark.parametrize(
    ("machine", "verdict"),
    [
        (kernel(), "survives"),
        (kernel(ring=3), "survives"),
        (kernel(cr4=0x620 | LA57), "survives"),
        (kernel(vendor="amd"), "survives"),
        (kernel(gates=gate(8, ist=0)), "triple-fault"),
        (kernel(gates=gate(8, p=False)), "triple-fault"),
        (kernel(gates=gate(8, selector=0)), "triple-fault"),
        (kernel(gates=gate(14, selector=0)), "survives"),
        (kernel(tss=Tss(rsp0=TOP, ist1=0)), "triple-fault"),
        (kernel(tss=Tss(rsp0=TOP, ist1=1 << 47)), "triple-fault"),
        (kernel(mappings=mappings("IST1", "r")), "triple-fault"),
        (kernel(mappings=mappings("code", "r")), "loops"),
        (kernel(gates=gate(8, offset=GUARD)), "survives"),
        (kernel(gates=gate(14, ist=1)), "survives"),
    ],
)
def test_kernels(machine: Machine, verdict: str) -> None:
    made = proved(machine)
    assert (made.predicted, made.verdict) == (verdict, verdict)
    assert [
        result.differs for result in made.scenarios["stack-overflow"] if result.differs and not result.deviations
    ] == []
    assert made.agrees


@bochscpu
@pytest.mark.parametrize("room", [40, 48, 64, 128, 175, 176, 177])
def test_room_for_the_frame_and_the_handler(room: int) -> None:
    """IST1 a few bytes above a page that is not there: the frame takes 48, the handler 128."""
    made = proved(kernel(tss=Tss(rsp0=TOP, ist1=(IST - 0x5000 + room))))
    assert made.agrees
    assert made.verdict == ("triple-fault" if room < 48 else "survives" if room >= 176 else "loops")


@bochscpu
def test_what_cannot_be_known_is_not_run() -> None:
    made = proved(kernel(mappings=tuple(mapping for mapping in MAPPINGS if mapping.name != "IST1"), complete=False))
    assert (made.predicted, made.verdict, made.agrees) == ("unknown", "unknown", True)
    (result, *_) = made.scenarios["stack-overflow"]
    assert result.event_log is None and "says nothing of" in result.trial.why


@bochscpu
def test_a_physical_address_of_more_than_40_bits() -> None:
    machine = kernel()
    entries: list[Any] = []
    machine.space.walk(IST - 8, entries.append)
    memory = machine.memory.copy()
    memory.overlay(entries[-1].address, (entries[-1].value | 1 << 45).to_bytes(8, "little"))
    (result, *_) = proved(machine.replace(memory=memory)).scenarios["stack-overflow"]
    assert result.event_log is None
    assert "physical" in result.trial.why


@bochscpu
def test_a_stack_in_the_page_of_the_local_apic_is_not_known() -> None:
    """Bochs writes there itself: what was pushed is in no memory."""
    machine = kernel()
    entries: list[Any] = []
    machine.space.walk(IST - 8, entries.append)
    memory = machine.memory.copy()
    entry = entries[-1].value & ~0x000F_FFFF_FFFF_F000 | 0xFEE0_0000
    memory.overlay(entries[-1].address, entry.to_bytes(8, "little"))
    proof = proved(machine.replace(memory=memory))
    assert proof.verdict == "unknown"
    assert any("physical page 0xfee00000 is not in this image" in reason for reason in proof.reasons)
    assert all(result.differs == "" for result in proof.scenarios["stack-overflow"])


@bochscpu
def test_what_a_foreign_cpu_needs_is_no_difference() -> None:
    """As far as it came all has to agree, and no further."""
    machine = kernel()
    (trial, *_) = trials(machine, run_scenario("stack-overflow", machine), ScenarioOptions())
    seen = trial.event_log.observations
    cut = EventLog(seen[:1], "unknown", {}, needs="a page")
    result = compare(trial, cut, lambda trial: (trial.event_log, set()))
    assert (result.verdict, result.differs) == ("unknown", "")
    other = cut.replace(observations=(seen[0].replace(error_code=7),))
    assert compare(trial, other, lambda trial: (trial.event_log, set())).differs.startswith(
        "0: error_code: 0x2 predicted"
    )


# Images


@bochscpu
@pytest.mark.parametrize("name", ["", *CHANGES])
def test_linux_with_one_thing_changed(name: str) -> None:
    made = proved(linux(name).machines[0])
    verdict = CHANGES[name].verdict if name else "survives"
    assert (made.predicted, made.verdict, made.agrees) == (verdict, verdict, True)
    assert all(result.event_log for result in made.scenarios["stack-overflow"])


@bochscpu
def test_the_command(tmp_path: Path) -> None:
    status, out, err = call("prove", IMAGES / "linux.core", "--on", "bochs")
    assert (status, err) == (0, "")
    assert "CPU 0  survives, as predicted" in out and "20 of 20 variants agree" in out
    assert call("prove", IMAGES / "linux.core", "--on", "bochs", "--expect", "triple-fault")[0] == 1
    assert call("prove", IMAGES / "ovmf.core", "--on", "bochs")[0] == 1
    status, out, err = call("prove", IMAGES / "ovmf.core", "--on", "bochs", "--expect", "triple-fault")
    assert (status, err) == (0, "") and "CPU 0  triple-fault, as predicted" in out
    assert call("prove", IMAGES / "grub.core", "--on", "bochs")[0] == 1


@bochscpu
def test_the_command_in_json() -> None:
    argv = ("prove", IMAGES / "linux.core", "--on", "bochs", "--cpu", "1", "--scenario", "syscall-gap")
    status, out, err = call(*argv, "--reg", "efer=0xd01", "--format", "json")
    assert (status, err) == (0, "")
    document = fitting("prove", out)
    (cpu,) = document["cpus"]
    assert (document["schema"], cpu["cpu"], cpu["verdict"], cpu["agrees"]) == (1, 1, "survives", True)
    (scenario,) = cpu["scenarios"]
    assert scenario["name"] == "syscall-gap"
    raised, entered = scenario["ways"][-1]["events"]
    assert (raised["what"], raised["vector"], raised["error_code"]) == ("raised", 18, 0)
    assert entered["cs"] == 0x10 and len(entered["frame"]) == 80


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bochs, "find_spec", lambda name: None)
    said = refused("prove", IMAGES / "linux.core", "--on", "bochs")
    assert "pip install bochscpu-python==" in said


def test_a_scenario_that_is_ours_alone() -> None:
    said = refused("prove", IMAGES / "linux.core", "--on", "bochs", "--scenario", "double-fault-questions")
    assert "handlers away" in said


@bochscpu
def test_a_scenario_that_is_ours_alone_is_mentioned_among_all() -> None:
    words = ("prove", IMAGES / "linux.core", "--on", "bochs", "--cpu", "0", "--scenario", "all")
    _, out, _ = call(*words)
    assert "  double-fault-questions: not run: it takes handlers away, which cannot be done on another CPU model" in out
    (cpu,) = fitting("prove", call(*words, "--format", "json")[1])["cpus"]
    assert cpu["agrees"] and cpu["scenarios"][-1]["ways"] == []
    assert "handlers away" in cpu["scenarios"][-1]["not_run"]
    assert [scenario["name"] for scenario in cpu["scenarios"] if "not_run" in scenario] == ["double-fault-questions"]


@bochscpu
def test_a_machine_of_32_bits() -> None:
    status, out, _ = call("prove", IMAGES / "grub.core", "--on", "bochs")
    assert (status, out.splitlines()[2:]) == (1, ["CPU 0  not-applicable", "  the CPU is in protected32 mode"])
