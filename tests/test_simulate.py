"""After delivery: the handler's first instruction, its stack, and events that come again and again."""

import pytest
from kernels import CODE, IST, MAPPINGS, STACK, TOP, gate, handler, kernel

from x86tables import Tss
from x86tables.delivery.events import Event
from x86tables.delivery.simulate import simulate
from x86tables.delivery.state import CpuState
from x86tables.machine.machine import Machine
from x86tables.machine.registers import AC, PAE, SMAP, SMEP
from x86tables.machine.synthetic import Mapping

PF, BP, IRQ = Event.exception(14, 2, STACK - 8), Event.int3(), Event.interrupt(0x20)
GONE = CODE + 0x9000  # where no page is


def test_a_handler_that_runs() -> None:
    simulation = simulate(kernel(), IRQ)
    assert (simulation.outcome, simulation.vector, simulation.stack, simulation.loop) == (
        "survives",
        0x20,
        "current",
        None,
    )
    assert [step.step for step in simulation.handlers[0].steps] == ["fetch", "handler's stack"]
    assert simulation.registers.rip == handler(0x20)


def test_what_a_handler_pushed_is_not_known() -> None:
    state = CpuState(kernel(rsp=TOP - 0x200))
    simulate(state, IRQ)
    with pytest.raises(LookupError, match="overwritten by a handler's stack"):
        state.read(TOP - 0x200 - 40 - 8, 8)
    assert state.read(TOP - 0x200 - 40, 8) == (CODE + 0x1800).to_bytes(8, "little")
    assert state.read(TOP - 0x200 - 40 - 136, 8) == bytes(8)


def mappings(name: str, permissions: str) -> tuple[Mapping, ...]:
    return tuple(mapping.replace(permissions=permissions) if mapping.name == name else mapping for mapping in MAPPINGS)


# without NXE bit 63 is reserved; the pages of the tables are made from these
EXECUTABLE = tuple(mapping.replace(permissions=mapping.permissions and "rwx") for mapping in MAPPINGS)


@pytest.mark.parametrize(
    ("machine", "code"),
    [
        (kernel(gates=gate(3, offset=GONE)), 0x10),
        (kernel(gates=gate(3, offset=STACK)), 0x11),  # no-execute
        (kernel(mappings=EXECUTABLE, gates=gate(3, offset=GONE), efer=0x501), 0),  # without NXE and SMEP, no I/D bit
        (kernel(mappings=mappings("program", "rxu"), gates=gate(3, offset=0x40_0000), cr4=PAE | SMEP), 0x11),
    ],
    ids=["missing", "no-execute", "no I/D bit", "SMEP"],
)
def test_a_fetch_that_faults_is_a_new_event(machine: Machine, code: int) -> None:
    simulation = simulate(machine, BP)
    rip = machine.idt[3].offset
    assert simulation.handlers[0].fault == Event.exception(14, code, rip)
    assert (simulation.outcome, simulation.vector) == ("survives", 14)
    assert len(simulation.deliveries) == 2
    pushed = simulation.deliveries[1].pushed
    assert pushed is not None and pushed.rip == rip  # of the handler, not of the INT3


def test_a_supervisor_page_under_a_conforming_handler() -> None:
    simulation = simulate(kernel(ring=3, gates=gate(3, selector=0x38)), BP)
    assert simulation.handlers[0].fault == Event.exception(14, 0x15, handler(3))


def test_smap_and_ac_of_the_handlers_own_stack() -> None:
    user = (*MAPPINGS, Mapping("user", 0x60_0000, 0x1000, "rwu"))
    machine = kernel(mappings=user, rsp=0x60_1000, cr4=PAE | SMAP, rflags=0x202 | AC)
    assert simulate(machine, IRQ).outcome == "survives"


def test_page_fault_handler_swapped_out() -> None:
    # not at once a double fault: each #PF is delivered, 48 bytes deeper, until the guard page makes it one
    simulation = simulate(kernel(rsp=TOP, gates=gate(14, offset=GONE)), Event.exception(14, 0, 0x1000))
    assert (simulation.outcome, simulation.vector, simulation.stack) == ("survives", 8, "IST1")
    assert simulation.loop is not None
    assert (simulation.loop.vectors, simulation.loop.stride) == ((14,), 48)
    # the first delivery and those of the rounds that fit: the next frame breaks off at the guard page
    assert simulation.loop.rounds == (TOP - STACK) // 48
    assert [delivery.vector for delivery in simulation.deliveries] == [14, 14, 14, 14, 8]


def test_skipped_rounds_change_nothing() -> None:
    for size in (0x4000, 0x3000, 0x1000, 0x200):
        simulation = simulate(kernel(rsp=STACK + size, gates=gate(14, offset=GONE)), Event.exception(14, 0, 0x1000))
        last = simulation.deliveries[-1].pushed
        rounds = size // 48
        assert last is not None and last.rsp == STACK + size - rounds * 48
        assert simulation.loop is not None and simulation.loop.rounds == rounds


def test_page_fault_handler_swapped_out_on_an_ist() -> None:
    simulation = simulate(kernel(gates=gate(14, offset=GONE, ist=1)), PF)
    assert (simulation.outcome, simulation.loop and simulation.loop.rounds) == ("loops", None)
    assert simulation.reason == "#PF is delivered, but its handler cannot run (PTE not present): repeats indefinitely"


@pytest.mark.parametrize(
    ("room", "outcome"), [(32, "triple-fault"), (47, "triple-fault"), (48, "loops"), (64, "loops"), (176, "survives")]
)
def test_room_on_the_double_fault_stack(room: int, outcome: str) -> None:
    base = IST - 0x5000
    simulation = simulate(kernel(rsp=STACK, tss=Tss(rsp0=TOP, ist1=base + room)), PF)
    assert simulation.outcome == outcome


def test_room_is_what_is_asked_for() -> None:
    machine = kernel(rsp=STACK, tss=Tss(rsp0=TOP, ist1=IST - 0x5000 + 64))
    assert simulate(machine, PF, handler_stack=16).outcome == "survives"
    assert simulate(machine, PF, handler_stack=17).outcome == "loops"


def test_a_double_fault_handler_that_is_missing() -> None:
    # #PF then runs on the #DF stack: no shutdown
    simulation = simulate(kernel(rsp=STACK, gates=gate(8, offset=GONE)), PF)
    assert (simulation.outcome, simulation.vector, simulation.stack) == ("survives", 14, "current")
    assert simulation.deliveries[1].registers.rsp == IST - 48 - 48


def test_double_faults_that_go_round() -> None:
    # each #PF becomes a #DF, for gate 14 is not present, and the handler of #DF is missing
    gates = {**gate(14, p=0), **gate(8, offset=GONE)}
    simulation = simulate(kernel(gates=gates), PF)
    assert (simulation.outcome, simulation.loop and simulation.loop.vectors) == ("loops", (8,))
    simulation = simulate(kernel(gates={**gates, **gate(8, offset=GONE, ist=0)}), PF)
    assert (simulation.outcome, simulation.loop and simulation.loop.vectors) == ("triple-fault", (8,))
    assert simulation.loop is not None and simulation.loop.rounds == (TOP - 0x100 - STACK) // 48


def test_a_stack_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("x86tables.budgets.FARTHEST", 0x2000)
    simulation = simulate(kernel(gates=gate(14, offset=GONE)), PF)
    assert (simulation.outcome, simulation.loop and simulation.loop.rounds) == ("loops", None)
    assert "48 bytes deeper each time" in simulation.reason


def test_rounds_that_run_over_a_table() -> None:
    # the stack descends over the IDT: gate 14, not the guard page below, is what ends it
    idt, below = MAPPINGS[1].address, MAPPINGS[0].address
    simulation = simulate(kernel(rsp=idt + 0x1000, gates=gate(14, offset=GONE)), Event.exception(14, 0, 0x1000))
    assert simulation.loop is not None and simulation.loop.rounds is not None
    last = simulation.deliveries[-2].registers.rsp
    assert last is not None and below < idt + 14 * 16 - 48 < last < idt + 16 * 16
    assert simulation.outcome != "survives" or simulation.vector != 14


def test_unknown_travels() -> None:
    simulation = simulate(kernel(gates=gate(3, offset=GONE), complete=False), BP)
    assert (simulation.outcome, simulation.needs) == ("unknown", f"the configuration says nothing of {GONE:#x}")
    assert simulation.handlers[0].fault is None
