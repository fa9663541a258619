"""After delivery: the handler's first instruction, its stack, and events that come again and again."""

import pytest
from kernels import AREAS, CODE, IST, STACK, TOP, gate, handler, kernel

from x86tables import Tss
from x86tables.declared import Area
from x86tables.events import Event
from x86tables.machine import Machine
from x86tables.registers import AC, PAE, SMAP, SMEP
from x86tables.state import State
from x86tables.story import run

PF, BP, IRQ = Event.exception(14, 2, STACK - 8), Event.int3(), Event.interrupt(0x20)
GONE = CODE + 0x9000  # where no page is


def test_a_handler_that_runs() -> None:
    story = run(kernel(), IRQ)
    assert (story.outcome, story.vector, story.stack, story.loop) == ("survives", 0x20, "current", None)
    assert [step.step for step in story.handlers[0].steps] == ["fetch", "handler's stack"]
    assert story.registers.rip == handler(0x20)


def test_what_a_handler_pushed_is_not_known() -> None:
    state = State(kernel(rsp=TOP - 0x200))
    run(state, IRQ)
    with pytest.raises(LookupError, match="overwritten by a handler's stack"):
        state.read(TOP - 0x200 - 40 - 8, 8)
    assert state.read(TOP - 0x200 - 40, 8) == (CODE + 0x1800).to_bytes(8, "little")
    assert state.read(TOP - 0x200 - 40 - 136, 8) == bytes(8)


def areas(name: str, permissions: str) -> tuple[Area, ...]:
    return tuple(area.replace(permissions=permissions) if area.name == name else area for area in AREAS)


# without NXE bit 63 is reserved; the pages of the tables are made from these
EXECUTABLE = tuple(area.replace(permissions=area.permissions and "rwx") for area in AREAS)


@pytest.mark.parametrize(
    ("machine", "code"),
    [
        (kernel(gates=gate(3, offset=GONE)), 0x10),
        (kernel(gates=gate(3, offset=STACK)), 0x11),  # no-execute
        (kernel(areas=EXECUTABLE, gates=gate(3, offset=GONE), efer=0x501), 0),  # without NXE and SMEP, no I/D bit
        (kernel(areas=areas("program", "rxu"), gates=gate(3, offset=0x40_0000), cr4=PAE | SMEP), 0x11),
    ],
    ids=["missing", "no-execute", "no I/D bit", "SMEP"],
)
def test_a_fetch_that_faults_is_a_new_event(machine: Machine, code: int) -> None:
    story = run(machine, BP)
    rip = machine.idt[3].offset
    assert story.handlers[0].fault == Event.exception(14, code, rip)
    assert (story.outcome, story.vector) == ("survives", 14)
    assert len(story.deliveries) == 2
    pushed = story.deliveries[1].pushed
    assert pushed is not None and pushed.rip == rip  # of the handler, not of the INT3


def test_a_supervisor_page_under_a_conforming_handler() -> None:
    story = run(kernel(ring=3, gates=gate(3, selector=0x38)), BP)
    assert story.handlers[0].fault == Event.exception(14, 0x15, handler(3))


def test_smap_and_ac_of_the_handlers_own_stack() -> None:
    user = (*AREAS, Area("user", 0x60_0000, 0x1000, "rwu"))
    machine = kernel(areas=user, rsp=0x60_1000, cr4=PAE | SMAP, rflags=0x202 | AC)
    assert run(machine, IRQ).outcome == "survives"


def test_page_fault_handler_swapped_out() -> None:
    # not at once a double fault: each #PF is delivered, 48 bytes deeper, until the guard page makes it one
    story = run(kernel(rsp=TOP, gates=gate(14, offset=GONE)), Event.exception(14, 0, 0x1000))
    assert (story.outcome, story.vector, story.stack) == ("survives", 8, "IST1")
    assert story.loop is not None
    assert (story.loop.vectors, story.loop.stride) == ((14,), 48)
    # the first delivery and those of the rounds that fit: the next frame breaks off at the guard page
    assert story.loop.rounds == (TOP - STACK) // 48
    assert [delivery.vector for delivery in story.deliveries] == [14, 14, 14, 14, 8]


def test_skipped_rounds_change_nothing() -> None:
    for size in (0x4000, 0x3000, 0x1000, 0x200):
        story = run(kernel(rsp=STACK + size, gates=gate(14, offset=GONE)), Event.exception(14, 0, 0x1000))
        last = story.deliveries[-1].pushed
        rounds = size // 48
        assert last is not None and last.rsp == STACK + size - rounds * 48
        assert story.loop is not None and story.loop.rounds == rounds


def test_page_fault_handler_swapped_out_on_an_ist() -> None:
    story = run(kernel(gates=gate(14, offset=GONE, ist=1)), PF)
    assert (story.outcome, story.loop and story.loop.rounds) == ("loops", None)
    assert story.reason == "#PF is delivered, but its handler cannot run (PTE not present): the same again for ever"


@pytest.mark.parametrize(
    ("room", "outcome"), [(32, "triple-fault"), (47, "triple-fault"), (48, "loops"), (64, "loops"), (176, "survives")]
)
def test_room_on_the_double_fault_stack(room: int, outcome: str) -> None:
    base = IST - 0x5000
    story = run(kernel(rsp=STACK, tss=Tss(rsp0=TOP, ist1=base + room)), PF)
    assert story.outcome == outcome


def test_room_is_what_is_asked_for() -> None:
    machine = kernel(rsp=STACK, tss=Tss(rsp0=TOP, ist1=IST - 0x5000 + 64))
    assert run(machine, PF, handler_stack=16).outcome == "survives"
    assert run(machine, PF, handler_stack=17).outcome == "loops"


def test_a_double_fault_handler_that_is_missing() -> None:
    # #PF then runs on the #DF stack: no shutdown
    story = run(kernel(rsp=STACK, gates=gate(8, offset=GONE)), PF)
    assert (story.outcome, story.vector, story.stack) == ("survives", 14, "current")
    assert story.deliveries[1].registers.rsp == IST - 48 - 48


def test_double_faults_that_go_round() -> None:
    # each #PF becomes a #DF, for gate 14 is not present, and the handler of #DF is missing
    gates = {**gate(14, p=0), **gate(8, offset=GONE)}
    story = run(kernel(gates=gates), PF)
    assert (story.outcome, story.loop and story.loop.vectors) == ("loops", (8,))
    story = run(kernel(gates={**gates, **gate(8, offset=GONE, ist=0)}), PF)
    assert (story.outcome, story.loop and story.loop.vectors) == ("triple-fault", (8,))
    assert story.loop is not None and story.loop.rounds == (TOP - 0x100 - STACK) // 48


def test_a_stack_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("x86tables.story.FARTHEST", 0x2000)
    story = run(kernel(gates=gate(14, offset=GONE)), PF)
    assert (story.outcome, story.loop and story.loop.rounds) == ("loops", None)
    assert "48 bytes deeper each time" in story.reason


def test_rounds_that_run_over_a_table() -> None:
    # the stack descends over the IDT: gate 14, not the guard page below, is what ends it
    idt, below = AREAS[1].address, AREAS[0].address
    story = run(kernel(rsp=idt + 0x1000, gates=gate(14, offset=GONE)), Event.exception(14, 0, 0x1000))
    assert story.loop is not None and story.loop.rounds is not None
    last = story.deliveries[-2].registers.rsp
    assert last is not None and below < idt + 14 * 16 - 48 < last < idt + 16 * 16
    assert story.outcome != "survives" or story.vector != 14


def test_unknown_travels() -> None:
    story = run(kernel(gates=gate(3, offset=GONE), complete=False), BP)
    assert (story.outcome, story.needs) == ("unknown", f"the configuration says nothing of {GONE:#x}")
    assert story.handlers[0].fault is None
