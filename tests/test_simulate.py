"""After delivery: the handler's first instruction, its stack, and events that come again and again."""

from itertools import pairwise

import pytest
from kernels import CODE, GUARD, IST, MAPPINGS, STACK, TOP, gate, handler, kernel

from x86tables import Tss
from x86tables.delivery.deliver import deliver
from x86tables.delivery.events import Delivery, Event
from x86tables.delivery.extent import descent
from x86tables.delivery.simulate import Loop, LoopDetector, simulate, start_handler
from x86tables.delivery.state import CpuState, StepBudget
from x86tables.machine.machine import Machine
from x86tables.machine.paging import PS, PUSH, READ, RW, P
from x86tables.machine.probe import PageEntry
from x86tables.machine.registers import AC, PAE, SMAP, SMEP, Segment
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
    assert (simulation.reason, simulation.needs) == ("the 0x20 handler runs on the current stack", None)
    assert simulation.start == kernel().registers
    rsp = TOP - 0x100 - 40
    assert simulation.handlers[0].steps[1].found == f"128 bytes below {rsp:#x}", "15 registers and a return address"


def test_an_outline_has_no_addresses() -> None:
    """The same overflow of another stack is alike; another end is not."""
    gates = gate(8, ist=0)
    here, there = (simulate(kernel(gates=gates, rsp=rsp), Event.exception("#UD")) for rsp in (STACK, IST - 0x5000))
    assert here.outline == there.outline and here.reason != there.reason
    outcome, vector, stack, attempts = here.outline
    assert (outcome, vector, stack) == ("triple-fault", None, None)
    assert attempts == tuple(
        (label, *(step.step for step in attempt.steps))
        for label, attempt in zip(("#UD", "#PF", "#DF"), here.deliveries[0].attempts, strict=True)
    )
    assert simulate(kernel(rsp=STACK), Event.exception("#UD")).outline[:3] == ("survives", 8, "IST1")


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
    assert len(simulation.deliveries) == len(simulation.handlers) == 2
    step = simulation.handlers[0].steps[-1]
    assert (step.step, step.address) == ("fetch", rip) and step.rule.endswith(f"#PF({code:#x})")
    assert simulation.deliveries[1].cr2 == rip
    pushed = simulation.deliveries[1].pushed
    assert pushed is not None and pushed.rip == rip  # of the handler, not of the INT3


def test_a_supervisor_page_under_a_conforming_handler() -> None:
    simulation = simulate(kernel(ring=3, gates=gate(3, selector=0x38)), BP)
    assert simulation.handlers[0].fault == Event.exception(14, 0x15, handler(3))


def test_smap_and_ac_of_the_handlers_own_stack() -> None:
    user = (*MAPPINGS, Mapping("user", 0x60_0000, 0x1000, "rwu"))
    machine = kernel(mappings=user, rsp=0x60_1000, cr4=PAE | SMAP, rflags=0x202 | AC)
    assert [one.vector for one in simulate(machine, IRQ).deliveries] == [0x20]
    # the frame is in a supervisor's page, and the handler's own pushes go on into the user's
    above = (*user, Mapping("above", 0x60_1000, 0x1000))
    for flags, fault in ((AC, None), (0, Event.exception(14, 3, 0x60_0FF8))):
        machine = kernel(mappings=above, rsp=0x60_1040, cr4=PAE | SMAP, rflags=0x202 | flags)
        assert simulate(machine, IRQ).handlers[0].fault == fault


BOTTOM = 0xFFFF_8000_0000_0000  # the lowest canonical address of the upper half
ENDS = (*MAPPINGS, Mapping("lowest", BOTTOM, 0x1000), Mapping("zero", 0, 0x1000))


@pytest.mark.parametrize(
    ("end", "fault", "found"),
    [
        (STACK, Event.exception(14, 2, STACK - 8), "PTE not present"),
        (BOTTOM, Event.exception(12, 0), "not canonical"),
        (0, Event.exception(14, 2, (1 << 64) - 8), "PDPTE not present"),
    ],
)
def test_a_handlers_stack_that_ends(end: int, fault: Event, found: str) -> None:
    """What a push of the handler's own code raises, with CR2, and RSP as before that push."""
    room = 16 if end else 0
    machine = kernel(mappings=ENDS, tss=Tss(ist1=end + 48 + room), gates=gate(fault.vector, ist=2))
    simulation = simulate(machine.replace(machine.registers.replace(cr2=0x77)), Event.exception(8), handler_stack=0x40)
    fetch, step = simulation.handlers[0].steps
    assert (fetch.step, step.step) == ("fetch", "handler's stack")
    assert (step.address, step.found) == ((end - 8) % (1 << 64), found)
    assert simulation.handlers[0].fault == simulation.deliveries[1].attempts[0].event == fault
    assert simulation.deliveries[0].cr2 == 0x77
    first_push = simulation.deliveries[1].attempts[0].fault  # on IST2, which is null
    assert first_push == Event.exception(14, 2, (1 << 64) - 8)
    state = CpuState(machine)
    deliver(state, Event.exception(8))
    start_handler(state, 8, 0x40, StepBudget())
    assert (state.registers.rsp, state.cr2) == (end, fault.cr2 or 0)


@pytest.mark.parametrize("size", [1, 8, 0x1000, 0x17F8, 0x1801])
def test_the_handlers_stack_is_touched_to_its_end(size: int) -> None:
    simulation = simulate(kernel(), IRQ, handler_stack=size)
    rsp, step = TOP - 0x100 - 40, simulation.handlers[0].steps[-1]
    assert (step.address, step.found) == (rsp - (size + 7 & ~7), f"{size} bytes below {rsp:#x}")
    state = CpuState(kernel())
    simulate(state, IRQ, handler_stack=size)
    changed = {physical for physical, value in state.changes() if value is None}
    touched = {rsp - at for at in range(1, 0x2000) if state.translate(rsp - at, READ) in changed}
    assert touched == set(range(step.address or 0, rsp))


def test_a_handler_at_address_0() -> None:
    simulation = simulate(kernel(gates=gate(3, offset=0)), BP)
    assert simulation.handlers[0].fault == Event.exception(14, 0x10, 0)


def test_a_simulation_that_is_too_long() -> None:
    machine, needs = kernel(gates=gate(14, offset=GONE)), "no end within 40 steps"
    simulation = simulate(machine, PF, budget=StepBudget(40))
    assert (simulation.outcome, simulation.reason, simulation.needs) == ("unknown", needs, needs)
    # each round takes the twelve steps of its delivery; the third also looks at the pages below, and is the last
    assert [len(delivery.attempts[0].steps) for delivery in simulation.deliveries] == [12, 12, 12]


def test_page_fault_handler_swapped_out() -> None:
    # not at once a double fault: each #PF is delivered, 48 bytes deeper, until the guard page makes it one
    simulation = simulate(kernel(rsp=TOP, gates=gate(14, offset=GONE)), Event.exception(14, 0, 0x1000))
    assert (simulation.outcome, simulation.vector, simulation.stack) == ("survives", 8, "IST1")
    assert simulation.loop is not None
    assert (simulation.loop.vectors, simulation.loop.stride) == ((14,), 48)
    # the first delivery and those of the rounds that fit: the next frame breaks off at the guard page
    assert simulation.loop.rounds == (TOP - STACK) // 48
    assert simulation.reason == "the #DF handler runs on IST1"
    assert [delivery.vector for delivery in simulation.deliveries] == [14, 14, 14, 14, 8]
    assert [handler.vector for handler in simulation.handlers] == [14, 14, 14, 14, 8]
    assert simulation.loop.stack_consumed == 48 * simulation.loop.rounds
    assert simulation.deliveries[-2].registers.rsp == TOP - 48 * simulation.loop.rounds


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
    assert simulation.loop is not None and (simulation.loop.vectors, simulation.loop.stack_consumed) == ((14,), 0)
    assert len(simulation.deliveries) == len(simulation.handlers) == 3  # the first frame is another one


def test_a_round_of_two_events() -> None:
    # #PF's handler runs off the canonical addresses: #SS, whose handler is missing: #PF
    gates = {**gate(14, ist=1), **gate(12, ist=2, offset=GONE)}
    tss = Tss(ist1=BOTTOM + 64, ist2=IST)
    simulation = simulate(kernel(mappings=ENDS, gates=gates, tss=tss), PF)
    assert (simulation.outcome, simulation.loop and simulation.loop.vectors) == ("loops", (14, 12))


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
    simulation = simulate(machine, PF, handler_stack=17)
    assert (simulation.outcome, simulation.reason) == (
        "loops",
        "#DF is delivered, but its handler cannot run (PTE not present): repeats indefinitely",
    )


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
    monkeypatch.setattr("x86tables.budgets.FARTHEST", 1 << 20)
    deep = (*MAPPINGS, Mapping("deep", 0x4000_0000, 0x20_0000))
    for size, outcome in ((0x20_0000, "loops"), (0x10_1000, "loops"), (0xF_F000, "survives")):
        simulation = simulate(kernel(mappings=deep, rsp=0x4000_0000 + size, gates=gate(14, offset=GONE)), PF)
        assert (simulation.outcome, simulation.loop and simulation.loop.stride) == (outcome, 48)
        if outcome == "loops":
            assert simulation.loop is not None
            assert (simulation.loop.rounds, simulation.loop.stack_consumed) == (None, 48)
            assert simulation.reason.endswith("48 bytes deeper each time, with no end within 1 MiB")
            assert len(simulation.deliveries) == len(simulation.handlers) == 3


def test_a_search_for_the_end_goes_on_where_an_earlier_one_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops a MiB below the first stack pointer; the second simulation begins lower, and asks further down."""
    monkeypatch.setattr("x86tables.budgets.FARTHEST", 1 << 20)
    deep = (*MAPPINGS, Mapping("deep", 0x4000_0000, 0x18_0000))
    machine, budget = kernel(mappings=deep, rsp=0x4018_0000, gates=gate(14, offset=GONE)), StepBudget()
    assert simulate(machine, PF, budget=budget).outcome == "loops"
    lower = machine.registers.replace(rsp=0x400C_0000)
    second = simulate(CpuState(machine, lower), PF, budget=budget)
    assert (second.outcome, second.loop) == ("survives", simulate(CpuState(machine, lower), PF).loop)


def test_rounds_that_run_over_a_table() -> None:
    # the stack descends over the IDT: gate 14, not the guard page below, is what ends it
    idt = MAPPINGS[1].address
    simulation = simulate(kernel(rsp=idt + 0x1000, gates=gate(14, offset=GONE)), Event.exception(14, 0, 0x1000))
    # the last frame covers gates 13 to 15, so that the next #PF meets #GP for gate 14: a double fault
    assert simulation.deliveries[-2].registers.rsp == idt + 0xD0
    assert simulation.loop is not None and simulation.loop.rounds == (0x1000 - 0xD0) // 48
    assert [attempt.fault for attempt in simulation.deliveries[-1].attempts] == [Event.exception(13, 0x73), None]
    assert (simulation.outcome, simulation.vector, simulation.stack) == ("survives", 8, "IST1")


def without(machine: Machine, *names: str) -> Machine:
    """The machine with some registers not known."""
    return machine.replace(machine.registers.replace(**dict.fromkeys(names)))


K1 = 0xFFFF_FFFF_9000_0000
MISSING = gate(14, offset=GONE)
EATEN = {  # stacks that are eaten up: what ends each, and how much of it the loop's rounds are
    "a stack": kernel(rsp=TOP, gates=MISSING),
    "not aligned": kernel(rsp=TOP - 0x101, gates=MISSING),
    "over the IDT": kernel(rsp=MAPPINGS[1].address + 0x1000, gates=MISSING),
    "over the GDT": kernel(rsp=MAPPINGS[0].address + 0x1000, gates=MISSING),
    "over the TSS": kernel(rsp=MAPPINGS[2].address + 0x1000, gates=MISSING),
    "over the end of the #DF stack": kernel(rsp=IST, gates=MISSING),
    "over the page below the #DF stack": kernel(rsp=TOP, tss=Tss(ist1=STACK + 0x2000), gates=MISSING),
    "double faults": kernel(gates={**gate(14, p=0), **gate(8, offset=GONE, ist=0)}),
    "without any guard": kernel(mappings=(*MAPPINGS, Mapping("more", GUARD - 0x8000, 0x9000)), gates=MISSING),
    "over the null LDT": kernel(mappings=(*MAPPINGS, Mapping("zero", 0, 0x4000)), rsp=0x4000, gates=MISSING),
    "down to address 0": kernel(
        mappings=(*MAPPINGS, Mapping("zero", 0, 0x8000)), rsp=0x8000, gates=MISSING, ldtr=Segment(0, IST, 0)
    ),
    "SS is not known": without(kernel(rsp=TOP, gates=MISSING), "ss"),
    "user pages under SMAP, AC set": kernel(
        mappings=(*MAPPINGS, Mapping("high", K1, 0x8000), Mapping("users", K1 - 0x8000, 0x8000, "rwu")),
        rsp=K1 + 0x8000,
        rflags=0x4_0202,
        cr4=PAE | SMAP,
        gates=MISSING,
    ),
    "user pages under SMAP, AC clear": kernel(
        mappings=(*MAPPINGS, Mapping("high", K1, 0x8000), Mapping("users", K1 - 0x8000, 0x8000, "rwu")),
        rsp=K1 + 0x8000,
        rflags=0x202,
        cr4=PAE | SMAP,
        gates=MISSING,
    ),
    "a program's, down to the kernel's": kernel(
        ring=3,
        rsp=0x7000_8000,
        gates=gate(14, offset=GONE, selector=0x38),
        mappings=(*MAPPINGS, Mapping("large", 0x7000_0000, 0x8000, "rwu"), Mapping("below", 0x6FFF_0000, 0x1_0000)),
    ),
    # #DF's handler is missing, too: its stack is eaten up next, down to the GDT, but the rounds are those of the first
    "two stacks": kernel(
        rsp=TOP, tss=Tss(ist1=MAPPINGS[0].address + 0x1000), gates={**MISSING, **gate(8, offset=GONE)}
    ),
    "a program's": kernel(ring=3, gates=gate(14, offset=GONE, selector=0x38)),
}


def test_rounds_are_those_on_the_first_stack() -> None:
    simulation = simulate(EATEN["two stacks"], Event.exception(14, 0, 0x1000))
    assert (simulation.outcome, simulation.loop and simulation.loop.rounds) == ("triple-fault", (TOP - STACK) // 48)


def watched(*comings: tuple[int, int], vector: int = 0) -> LoopDetector:
    """A detector that saw #DE's handler fail again and again: (RSP, what memory holds) each time."""
    state = CpuState(kernel())
    detector, deliveries = LoopDetector(state, 128, StepBudget()), list[Delivery]()
    for rsp, held in comings:
        deliveries.append(Delivery((), "delivered", "", state.registers, vector=vector))
        state.registers, state.written = state.registers.replace(rsp=rsp), {0: (bytes([held]), b"\1")}
        detector.loop_reason(PF, deliveries)
    return detector


@pytest.mark.parametrize(
    ("comings", "loop"),
    [
        (((TOP - 48, 1), (TOP - 96, 2), (TOP - 144, 3)), Loop((0,), 48, 0, 3)),
        (((TOP - 48, 1), (TOP - 96, 2), (TOP - 160, 3)), None),  # not alike
        (((TOP - 48, 1), (TOP - 112, 2), (TOP - 160, 3)), None),
        (((TOP - 144, 1), (TOP - 96, 2), (TOP - 48, 3)), None),  # upwards
        (((TOP - 48, 1), (TOP - 48, 2), (TOP - 48, 3), (TOP - 48, 4), (TOP - 48, 5)), None),  # memory changes
        (((TOP - 48, 1), (TOP - 48, 1)), Loop((0,), 0, None, 2)),
        (((TOP - 48, 1), (TOP - 64, 1)), None),
        (((TOP, 1), (TOP, 2), (TOP, 3), (TOP - 64, 4), (TOP - 48, 5), (TOP - 48, 6), (TOP - 48, 6)), None),
        (tuple((TOP, held) for held in (1, 2, 3, 4, 5, 6, 7, 8, 8)), Loop((0,), 0, None, 4)),
    ],
)
def test_what_a_loop_is(comings: tuple[tuple[int, int], ...], loop: Loop | None) -> None:
    """Three times the same event, each time as much deeper; or twice the same registers and memory."""
    assert watched(*comings)._loop == loop


@pytest.mark.parametrize("room", [8, 128, 0x1008])
@pytest.mark.parametrize("name", EATEN)
def test_rounds_that_are_left_out_are_like_the_others(name: str, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same end, at the same place, as when every round is gone through."""
    short = simulate(EATEN[name], Event.exception(14, 0, 0x1000), room)
    monkeypatch.setattr(LoopDetector, "_ahead", lambda self, loop: "")
    long = simulate(EATEN[name], Event.exception(14, 0, 0x1000), room)
    assert short.loop == long.loop and short.loop is not None
    assert short.replace(deliveries=(), handlers=()) == long.replace(deliveries=(), handlers=())
    assert short.deliveries == long.deliveries and short.handlers == long.handlers


def test_rounds_on_a_second_stack_are_left_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """#DF's handler is missing as well; its stack lies above the TSS, and takes the next loop. The end is the same, and
    so are the rounds, which are those of the first stack."""
    task = MAPPINGS[2].address + 0x1000
    machine = kernel(
        rsp=TOP,
        tss=Tss(ist1=GUARD),
        gates={**MISSING, **gate(8, offset=GONE)},
        mappings=(*MAPPINGS, Mapping("more", task, GUARD - task)),
    )
    short = simulate(machine, Event.exception(14, 0, 0x1000))
    monkeypatch.setattr(LoopDetector, "_ahead", lambda self, loop: "")
    long = simulate(machine, Event.exception(14, 0, 0x1000))
    assert len(short.deliveries) < len(long.deliveries) / 4
    assert short.replace(deliveries=(), handlers=()) == long.replace(deliveries=(), handlers=())
    assert short.loop is not None and short.loop.rounds == (TOP - STACK) // 48
    assert short.deliveries[-1] == long.deliveries[-1]


@pytest.mark.parametrize("room", [48, 96, 128, 144])
def test_where_rounds_are_left_out_rsp_moves_further_than_a_handler_pushes(room: int) -> None:
    """So that the deliveries tell, however the simulation goes on: here #DF's handler is missing, too, without end."""
    gaps = []
    for rounds in range(4, 12):
        machine = kernel(rsp=STACK + rounds * 48, gates={**MISSING, **gate(8, offset=GONE)})
        deliveries = simulate(machine, Event.exception(14, 0, 0x1000), room).deliveries
        moved = [
            one.registers.rsp - other.pushed.rsp
            for one, other in pairwise(deliveries)
            if one.registers.rsp is not None and other.pushed is not None
        ]
        gaps += [size for size in moved if size > 0]
    assert gaps and min(gaps) > room and min(gaps) <= room + 48


def test_rounds_that_are_left_out_take_no_steps() -> None:
    """A stack of 16 KiB and one of 1 MiB take the same steps, but for the pages that are looked at."""
    used = []
    for size in (0x4000, 0x10_0000):
        deep = (*MAPPINGS, Mapping("deep", K1, size))
        budget = StepBudget()
        simulation = simulate(kernel(mappings=deep, rsp=K1 + size, gates=MISSING), PF, budget=budget)
        assert simulation.loop is not None and simulation.loop.rounds == size // 48
        used.append(budget.steps - budget.left - size // 0x1000)
    assert used[0] == used[1]


@pytest.mark.parametrize(
    ("mapping", "rsp", "task", "found"),
    [
        (Mapping("small", K1, 0x4000), K1 + 0x4000 - 8, None, range(K1, K1 + 0x4000)),
        (Mapping("small", K1, 0x4000), K1 + 0x2000, None, range(K1, K1 + 0x3000)),
        (Mapping("small", K1, 0x4000), K1 + 0x4000, None, range(K1 + 0x5000, K1 + 0x5000)),
        (Mapping("small", K1, 0x4000), K1 + 0x3FF8, K1 + 0x1000, range(K1 + 0x2000, K1 + 0x4000)),
        (Mapping("large", K1, 0x40_0000), K1 + 0x30_0008, None, range(K1, K1 + 0x30_1000)),
        (Mapping("large", K1, 0x40_0000), K1 + 0x30_0008, K1 + 0x20_0000, range(K1 + 0x20_1000, K1 + 0x30_1000)),
        (Mapping("large", K1, 0x40_0000), K1 + 0x30_0008, K1 + 0x28_0F00, range(K1 + 0x28_1000, K1 + 0x30_1000)),
        (Mapping("large", K1, 0x40_0000), K1 + 0x30_0008, K1 + 0x30_1000, range(K1, K1 + 0x30_1000)),
        (Mapping("large", K1, 0x40_0000), K1 + 0x30_0008, K1 + 0x30_0000, range(K1 + 0x30_1000, K1 + 0x30_1000)),
        (Mapping("zero", 0, 0x3000), 0x2008, None, range(0x3000)),
    ],
)  # fmt: skip
def test_how_far_a_stack_can_be_consumed(mapping: Mapping, rsp: int, task: int | None, found: range) -> None:
    """Page by page or in large pages, down to what refuses a push, to a page with a table in it, or to address 0."""
    aligned = Mapping("so that large pages fit", K1 + 0x1000_0000, 0x10_0000)
    machine = kernel(mappings=(aligned, mapping, *MAPPINGS), ldtr=Segment(0, GONE, 0))
    if mapping.size >= 0x20_0000:
        memory, entries = machine.memory.copy(), list[PageEntry]()
        machine.space.walk(mapping.address, entries.append)
        frame = machine.translate(mapping.address)
        for number in range(mapping.size // 0x20_0000):
            entry = (frame + number * 0x20_0000) | PS | RW | P
            memory.overlay(entries[2].address + 8 * number, entry.to_bytes(8, "little"))
        machine = machine.replace(memory=memory)
    if task is not None:
        machine = machine.replace(machine.registers.replace(tr=Segment(0x28, task, 0x67)))
    assert machine.space.page(mapping.address).size == (0x1000 if mapping.size < 0x20_0000 else 0x20_0000)
    assert descent(machine, rsp, PUSH, StepBudget()) == found


def test_how_far_a_stack_can_be_consumed_is_found_once() -> None:
    """The second simulation of the same budget does not look at the pages again."""
    deep = (*MAPPINGS, Mapping("deep", K1, 0x40_000))
    machine, budget, used = kernel(mappings=deep, rsp=K1 + 0x40_000, gates=MISSING), StepBudget(), []
    for _ in range(2):
        before = budget.left
        simulate(machine, PF, budget=budget)
        used.append(before - budget.left)
    assert used[0] - used[1] == 0x40 + 1, "and the page that ends them"


def test_how_far_is_far(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = kernel(mappings=(*MAPPINGS, Mapping("deep", K1, 0x4000)))
    for most, found in ((0x3FF8, None), (0x3FF9, range(K1, K1 + 0x4000))):
        monkeypatch.setattr("x86tables.budgets.FARTHEST", most)
        assert descent(machine, K1 + 0x3FF8, PUSH, StepBudget()) == found


@pytest.mark.parametrize(("size", "pages"), [(8, 0), (0x100, 0), (0x101, 1), (0x1100, 1), (0x1101, 2)])
def test_a_page_of_a_handlers_stack_is_a_step(size: int, pages: int) -> None:
    """The first is that of the frame, 0x100 bytes above the page's start."""
    state = CpuState(kernel(rsp=TOP - 0xF00))
    budget = StepBudget()
    assert start_handler(state, 0x20, size, budget).fault is None
    assert budget.steps - budget.left == pages


@pytest.mark.parametrize(
    ("known", "assumed", "said"),
    [
        ({"efer": None}, 0x10, "a new event: #PF(0x10, or 0x0 if EFER.NXE=0)"),
        ({"efer": None, "cr4": PAE | SMEP}, 0, "a new event: #PF(0x10)"),
        ({}, 0, "a new event: #PF(0x10)"),
    ],
)
def test_a_fetch_fault_whose_code_rests_on_nxe(known: dict[str, int | None], assumed: int, said: str) -> None:
    executable = tuple(each.replace(permissions=each.permissions and each.permissions + "x") for each in MAPPINGS)
    machine = kernel(gates=gate(3, offset=GONE), mappings=executable)
    machine = machine.replace(machine.registers.replace(**known))
    first = simulate(machine, BP).handlers[0]
    assert first.fault is not None and (first.fault.error_code, first.fault.assumed) == (0x10, assumed)
    assert first.steps[-1].rule == said
    on_the_edge = machine.registers.replace(rsp=STACK + 8, rip=CODE)
    stack = start_handler(CpuState(machine, on_the_edge), 3, 16, StepBudget())
    assert stack.fault is not None and (stack.fault.error_code, stack.fault.assumed) == (2, 0)


def test_unknown_travels() -> None:
    simulation = simulate(kernel(rsp=GONE, complete=False), IRQ)
    needs = f"the configuration says nothing of {GONE - 40:#x}"
    assert (simulation.outcome, simulation.needs) == ("unknown", needs)
    assert (simulation.reason, simulation.handlers) == (f"while delivering interrupt 0x20: {needs}", ())
    simulation = simulate(kernel(gates=gate(3, offset=GONE), complete=False), BP)
    assert (simulation.outcome, simulation.needs) == ("unknown", f"the configuration says nothing of {GONE:#x}")
    assert simulation.handlers[0].fault is None
