"""What a stack is when something about it is not known, shared or at an edge: extent, guard, and the ring that asks."""

import pytest
from kernels import CODE, CS, GUARD, IST, LDT, MAPPINGS, STACK, TOP, TR, gate, idt, kernel

from x86tables import Gate, Tss
from x86tables.delivery import scenarios
from x86tables.delivery.events import Event
from x86tables.delivery.extent import extent
from x86tables.delivery.occupants import Occupants
from x86tables.delivery.rings import in_ring0, in_ring3
from x86tables.delivery.scenarios import ScenarioOptions, Situation, run_scenario
from x86tables.delivery.simulate import simulate
from x86tables.delivery.stacks import guard_below, stack_in_use
from x86tables.delivery.state import CpuState
from x86tables.delivery.syscall import isolated_pair
from x86tables.errors import NotThere
from x86tables.machine.probe import FaultKind
from x86tables.machine.registers import Registers, Segment, TableRegister
from x86tables.machine.synthetic import Mapping

BARE = tuple(mapping for mapping in MAPPINGS if mapping.name != "guard")


def test_a_known_stack_ends_where_it_is_known_to() -> None:
    machine = kernel().replace(stacks=(range(IST - 0x1000, IST),))
    stack = extent(machine, IST)
    assert (stack.size, stack.below and stack.below.why) == (0x1000, "memory that is not this stack's")


def test_what_lies_in_a_stack_ends_it() -> None:
    """IST2 points into the stack of IST1, 0x1000 below its end."""
    machine = kernel(gates=gate(2, ist=2), tss=Tss(rsp0=TOP, ist1=IST, ist2=IST - 0x1000))
    stack = extent(machine, IST, occupants=Occupants([machine]))
    assert (stack.size, stack.below and stack.below.why) == (0x1000, "the stack of IST2")


def test_an_idt_that_cannot_be_read_has_no_handlers_in_the_way() -> None:
    gone = kernel(idtr=TableRegister(CODE + 0x9000, 0xFFF))
    assert stack_in_use(gone, occupants=Occupants([gone])).verdict == "guarded"


# Whose registers


def test_a_cpu_whose_cs_is_not_known_is_judged_on_rsp() -> None:
    machine = kernel()
    unknown = machine.replace(machine.registers.replace(cs=None, ss=None))
    registers, said = in_ring0(unknown)
    assert said == f"CS is not known: judged in ring 0, from RSP {machine.registers.rsp:#x}"
    assert registers.cs is not None and (registers.cs.selector, registers.rip) == (CS, idt()[14].offset)
    assert registers.cpl == 0


def test_a_program_on_a_stack_that_was_given() -> None:
    registers, said = in_ring0(kernel(ring=3), TOP - 0x40)
    assert said.endswith(f"from the stack given {TOP - 0x40:#x}") and registers.rsp == TOP - 0x40


def test_the_kernels_code_segment_is_that_of_the_first_gate_with_one() -> None:
    """Gate 14 is absent, and gate 0 names a TSS."""
    gates = {**gate(14, p=0), **gate(0, selector=TR)}
    registers, _ = in_ring0(kernel(ring=3, gates=gates))
    assert registers.cs is not None and (registers.cs.selector, registers.rip) == (CS, idt()[1].offset)
    absent = {f"g{vector}": Gate() for vector in range(256)}
    registers, _ = in_ring0(kernel(ring=3, gates=absent))
    assert registers.cs is not None and (registers.cs.selector, registers.rip) == (8, None)
    registers, _ = in_ring0(kernel(ring=3, idtr=TableRegister(CODE + 0x9000, 0xFFF)))
    assert registers.cs is not None and (registers.cs.selector, registers.rip) == (8, None)


def test_without_rsp0_nothing_is_said_of_ring_0() -> None:
    machine = kernel(ring=3, tr=Segment(TR, CODE + 0x9000, 0x67))
    with pytest.raises(NotThere, match="RSP0 cannot be read from the TSS"):
        in_ring0(machine)
    stack = stack_in_use(machine)
    assert (stack.verdict, stack.reason) == (
        "unknown",
        "RSP is not known in ring 0, and RSP0 cannot be read from the TSS",
    )


def test_a_program_in_a_gdt_without_user_code() -> None:
    machine = kernel()
    assert machine.registers.gdtr is not None
    short = machine.replace(machine.registers.replace(gdtr=machine.registers.gdtr.replace(limit=0x17)))
    registers = in_ring3(short)
    assert registers.cs is not None and registers.cs.selector == 0x33 and registers.cpl == 3


# The stack in use


def test_what_a_stack_in_use_lacks() -> None:
    machine = kernel()
    nothing = machine.replace(Registers(gdtr=machine.registers.gdtr))
    assert stack_in_use(nothing).reason == "CR3 is not known"
    assert Situation(nothing).run("stack-overflow").verdict == "unknown"
    without = machine.replace(machine.registers.replace(rsp=None))
    assert stack_in_use(without).reason == "RSP is not known"
    assert (Situation(without).run("stack-overflow").verdict, Situation(without).run("stack-overflow").reason) == (
        "unknown",
        "RSP is not known",
    )


def test_a_guard_behind_the_search() -> None:
    """The page that refuses is the first one beyond what is searched."""
    registers = kernel().registers.replace(rsp=STACK + 0x2000)
    assert guard_below(kernel(), registers, most=0x2000) is None
    found = guard_below(kernel(), registers, most=0x3000)
    assert found is not None and (found.top, found.kind) == (STACK, FaultKind.UNMAPPED)


def test_a_stack_that_ends_without_a_guard() -> None:
    """Known to have 16 KiB, with memory below it that takes any push."""
    low = Mapping("below", LDT + 0x1000, STACK - LDT - 0x1000)
    machine = kernel(mappings=(*BARE, low)).replace(stacks=(range(STACK, TOP),))
    stack = stack_in_use(machine)
    assert (stack.verdict, stack.reason) == (
        "silent-corruption",
        f"it ends at {STACK:#x}, and the page below can be written",
    )


def test_a_frame_that_lands_on_what_is_not_known() -> None:
    """The guard is declared, and nothing of what lies below it."""
    machine = kernel(complete=False)
    stack = stack_in_use(machine, frame=0x3000)
    assert stack.beyond is not None
    assert stack.beyond.startswith(
        f"a frame of 12288 bytes steps over the guard of 4096: {STACK - 0x3000:#x} is not known: "
    )


def test_rsp_in_pages_that_refuse_altogether() -> None:
    """No stack lies above RSP: nothing has overflowed, it is simply not a stack."""
    stack = stack_in_use(kernel(rsp=GUARD - 0x20_0000))
    assert (stack.verdict, stack.reason) == ("guarded", "PDPTE not present")


def test_a_push_that_succeeds_is_no_fault() -> None:
    with pytest.raises(NotThere, match="can be pushed to"):
        scenarios.push_fault(CpuState(kernel()))
    wide = kernel(rsp=0x8000_0000_0000 + 8)
    assert scenarios.push_fault(CpuState(wide)) == Event.exception("#SS", error_code=0)


# Loops over memory that never ends


def test_a_loop_over_a_large_page_with_a_table_in_it() -> None:
    """A 2 MiB page in which the TSS takes 4 KiB: the loop is followed to that piece, not to the page's end."""
    wide = Mapping("wide", 0x4000_0000, 0x20_0000)
    machine = kernel(mappings=(*MAPPINGS, wide), gates=gate(14, offset=CODE + 0x9000), rsp=0x4020_0000)
    inside = machine.replace(machine.registers.replace(tr=Segment(TR, 0x4000_8000, 0x67)))
    simulation = simulate(inside, Event.exception("#PF", 0, 0))
    assert simulation.loop is not None and simulation.loop.vectors == (14,)
    assert simulation.deliveries[-1].registers.rsp is not None


def test_a_syscall_instruction_that_is_off_leaves_no_gap() -> None:
    scenario = run_scenario("syscall-gap", kernel(efer=0xD00))
    assert (scenario.verdict, scenario.reason) == ("not-applicable", "SYSCALL is off (EFER.SCE)")


def test_a_stack_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """No page refuses a push, as far as anybody looks."""
    monkeypatch.setattr("x86tables.delivery.scenarios.FAR", 1 << 13)
    on = Situation(kernel())
    monkeypatch.setattr(type(on), "guard", None)
    scenario = on.run("stack-overflow")
    assert (scenario.verdict, scenario.reason[:52]) == (
        "unknown",
        "a page below RSP that cannot be pushed to: none was ",
    )
    matrix = on.run("survival-matrix")
    assert len(matrix.variants) == 512 and not any("guard" in variant.name for variant in matrix.variants)


def test_what_lies_below_the_edge_is_not_known() -> None:
    with pytest.raises(NotThere, match="the configuration says nothing of"):
        scenarios.push_fault(CpuState(kernel(complete=False, rsp=IST - 0x5000)))


def test_no_pair_of_page_tables_without_an_idt() -> None:
    machine = kernel()
    assert isolated_pair(machine.replace(machine.registers.replace(idtr=None))) is None


def test_without_a_tss_and_without_a_known_stack_any_stack_is_judged() -> None:
    """As firmware is found in memory without registers: no IST, one stack ends like another."""
    machine = kernel(gates=gate(8, ist=0))
    bare = machine.replace(machine.registers.replace(rsp=None, cs=None, ss=None, tr=Segment(0, 0, 0xFFFF)))
    scenario = Situation(bare).run("stack-overflow")
    assert scenario.verdict == "triple-fault"
    assert scenario.remarks == (
        "RSP is not known in ring 0, and RSP0 cannot be read from the TSS: "
        "judged on a stack that ends with the address space",
    )
    task = bare.replace(bare.registers.replace(tr=Segment(TR, CODE + 0x9000, 0x67)))
    assert Situation(task).run("stack-overflow").verdict == "unknown"
    given = Situation(bare, ScenarioOptions(stack=TOP)).run("stack-overflow")
    said = f"CS is not known: judged in ring 0, from the stack given {TOP:#x}"
    assert (given.verdict, given.remarks) == ("triple-fault", (said,))


@pytest.mark.parametrize(("ist", "verdict"), [(1, "survives"), (0, "triple-fault")])
def test_an_rsp0_of_zero_is_no_stack(ist: int, verdict: str) -> None:
    """Of a kernel without programs, found in memory without registers: its TSS is there for IST1 alone."""
    machine = kernel(tss=Tss(ist1=IST), gates=gate(8, ist=ist))
    bare = machine.replace(machine.registers.replace(rsp=None, cs=None, ss=None))
    scenario = Situation(bare).run("stack-overflow")
    said = "RSP is not known in ring 0, and RSP0 is 0"
    assert (scenario.verdict, scenario.remarks) == (
        verdict, (f"{said}: judged on a stack that ends with the address space",)
    )  # fmt: skip
    assert (Situation(bare).stack.verdict, Situation(bare).stack.reason) == ("unknown", said)
    caught = bare.replace(bare.registers.replace(cs=Segment(0x33)))
    assert in_ring0(caught)[0].rsp == 0, "a CPU in ring 3 does use it"
