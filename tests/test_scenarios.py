"""Scenarios: every way off a stack, the stack in use, and the questions that texts on double faults ask."""

from pathlib import Path

import pytest
from cli import IMAGES
from kernels import CODE, GUARD, IST, MAPPINGS, STACK, TOP, gate, kernel
from mutated import linux

from x86tables import Tss
from x86tables.assessment import assess
from x86tables.checks import Report
from x86tables.delivery.events import Event
from x86tables.delivery.rings import in_ring0
from x86tables.delivery.scenarios import SCENARIOS, Scenario, ScenarioOptions, Situation, run_scenario
from x86tables.delivery.simulate import simulate
from x86tables.delivery.stacks import guard_below, interrupt_stacks, stack_in_use
from x86tables.delivery.state import StepBudget
from x86tables.delivery.syscall import isolated_pair
from x86tables.errors import UsageError
from x86tables.machine.machine import Machine
from x86tables.machine.memory import Memory
from x86tables.machine.registers import CET, PAE, SMAP, Registers, Segment, TableRegister
from x86tables.machine.synthetic import Mapping
from x86tables.readers import open_image

GONE = CODE + 0x9000


def overflow(machine: Machine, **options: int) -> Scenario:
    return run_scenario("stack-overflow", machine, ScenarioOptions(**options))


def mappings(name: str, permissions: str) -> tuple[Mapping, ...]:
    return tuple(mapping.replace(permissions=permissions) if mapping.name == name else mapping for mapping in MAPPINGS)


def test_a_good_kernel_survives_in_every_way() -> None:
    scenario = overflow(kernel())
    assert (scenario.verdict, scenario.handled_by) == ("survives", (8, "IST1"))
    assert [variant.name for variant in scenario.variants] == [
        "push at the guard's edge",
        "call at the guard's edge",
        *(
            f"{event}, {n} bytes above the guard"
            for event in ("interrupt 0x20", "NMI", "#UD")
            for n in (8, 16, 24, 32, 40)
        ),
        "push 8 bytes inside of the guard",
        "push 2048 bytes inside of the guard",
        "push 4088 bytes inside of the guard",
    ]
    assert {variant.verdict for variant in scenario.variants} == {"survives"}


@pytest.mark.parametrize(
    ("mutated", "verdict", "reason"),
    [
        (kernel(gates=gate(8, ist=0)), "triple-fault", f"push SS at {STACK - 8:#x} on the same stack (no IST)"),
        (kernel(gates=gate(8, p=0)), "triple-fault", "gate P: P 0"),
        (kernel(gates=gate(8, selector=0)), "triple-fault", "gate selector: 0x0"),
        (kernel(gates=gate(8, offset=0x8000_0000_0000)), "triple-fault", "gate offset: 0x800000000000"),
        (kernel(tss=Tss(rsp0=TOP)), "triple-fault", "push SS at 0xfffffffffffffff8 on IST1"),
        (kernel(tss=Tss(rsp0=TOP, ist1=GUARD)), "triple-fault", "on IST1: PTE not present"),
        (kernel(tss=Tss(rsp0=TOP, ist1=IST - 0x5000 + 40)), "triple-fault", "push RIP"),
        (kernel(tss=Tss(rsp0=TOP, ist1=IST - 0x5000 + 48)), "loops", "cannot run (PTE not present)"),
        (kernel(tss=Tss(rsp0=TOP, ist1=IST - 0x5000 + 64)), "loops", "cannot run (PTE not present)"),
        (kernel(idtr=TableRegister(MAPPINGS[1].address, 0x8E)), "triple-fault", "IDT limit"),
        (kernel(tr=Segment(0x28, MAPPINGS[2].address, 0x2A)), "triple-fault", "TSS limit: limit 0x2a, IST1 ends"),
        (kernel(tr=Segment(0x28, MAPPINGS[2].address, 0x2B)), "survives", "the #DF handler runs on IST1"),
        (kernel(gates=gate(8, offset=GONE)), "survives", "the #PF handler runs on the current stack (IST1)"),
        (kernel(mappings=mappings("code", "r")), "loops", "cannot run"),
        (kernel(gates=gate(14, ist=2), tss=Tss(rsp0=TOP, ist1=IST, ist2=IST - 0x1000)), "survives", "#PF handler runs"),
    ],
)  # fmt: skip
def test_one_thing_changed(mutated: Machine, verdict: str, reason: str) -> None:
    scenario = overflow(mutated)
    assert scenario.verdict == verdict
    assert reason in scenario.reason


def test_the_worst_way_counts() -> None:
    # the page fault handler has a stack of its own; NMI does not, and its double fault has none either
    gates = {**gate(14, ist=1), **gate(8, ist=0), **gate(2, ist=3)}
    scenario = overflow(kernel(gates=gates))
    assert scenario.verdict == "survives"  # NMI on IST3 = 0: its #PF is handled on IST1
    gates = {**gate(14, ist=1), **gate(8, ist=0), **gate(2, p=0), **gate(11, p=0)}
    scenario = overflow(kernel(gates=gates))
    assert scenario.verdict == "triple-fault"
    assert scenario.reason.startswith("NMI, 8 bytes above the guard: #DF cannot be delivered")


def test_handler_stack() -> None:
    machine = kernel(tss=Tss(rsp0=TOP, ist1=IST - 0x5000 + 0x200))
    assert overflow(machine).verdict == "survives"
    assert overflow(machine, handler_stack=0x200).verdict == "loops"


def test_a_stack_named() -> None:
    stack = stack_in_use(kernel(), IST - 0x100)
    assert (stack.verdict, stack.distance) == ("guarded", 0x4F00)
    assert overflow(kernel(), stack=IST - 0x100).verdict == "survives"


def test_no_guard_near() -> None:
    # 2 MiB of writable memory below: the overflow is judged at its end, and the stack has no guard
    wide = (*MAPPINGS, Mapping("wide", 0x4000_0000, 0x20_0000))
    machine = kernel(mappings=wide, rsp=0x4020_0000)
    assert stack_in_use(machine).verdict == "silent-corruption"
    scenario = overflow(machine)
    assert scenario.verdict == "survives"
    assert scenario.remarks == ("no page within 1 MiB below RSP refuses a push: the nearest is below 0x40000000",)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "unmapped"),
        ({"mappings": mappings("guard", "r")}, "read-only"),
        ({"mappings": mappings("guard", "rwu"), "cr4": PAE | SMAP}, "user page"),
    ],
)
def test_kinds_of_guard(changes: dict[str, object], kind: str) -> None:
    machine = kernel(**changes)  # type: ignore[arg-type]
    stack = stack_in_use(machine)
    assert stack.guard is not None
    assert (stack.verdict, stack.guard.kind.value, stack.guard.top) == ("guarded", kind, STACK)
    assert stack.distance == TOP - 0x100 - STACK
    assert overflow(machine).verdict == "survives"


def test_a_read_only_page_is_no_guard_without_wp() -> None:
    machine = kernel(mappings=mappings("guard", "r"), cr0=0x8000_0001)
    guard = guard_below(machine, machine.registers)
    assert guard is not None and guard.top == GUARD
    low, read_only, own = 0x4000_0000, 0x4020_0000, 0x4020_1000
    wide = (
        Mapping("below", low, 0x20_0000),
        Mapping("read-only", read_only, 0x1000, "r"),
        Mapping("own", own, 0x4000),
    )
    told = {}
    for cr0 in (0x8001_0001, 0x8000_0001):
        stack = stack_in_use(kernel(mappings=(*MAPPINGS, *wide), cr0=cr0, rsp=own + 0x3000))
        told[stack.verdict] = stack.reason
    assert told == {
        "guarded": "write to a read-only page with CR0.WP set",
        "silent-corruption": "the 1 MiB below it are writable; the read-only page below 0x40201000 guards nothing on "
        "this CPU: CR0.WP is clear",
    }


@pytest.mark.parametrize(
    ("rsp", "cr2", "reason"),
    [
        (STACK - 8, 0, "this stack has overflowed"),
        (GUARD + 8, 0, "this stack has overflowed"),
        (STACK, STACK - 8, "this stack has overflowed"),
        (STACK, 0, "this stack is full: the next push overflows it"),
        (STACK + 8, STACK - 8, "PTE not present"),
        (GUARD, 0, "this stack has overflowed"),
    ],
)
def test_a_core_caught_in_the_guard(rsp: int, cr2: int, reason: str) -> None:
    stack = stack_in_use(kernel(rsp=rsp, cr2=cr2))
    assert (stack.verdict, stack.reason) == ("guarded", reason)
    assert stack_in_use(kernel(cr2=cr2), rsp).reason == "PTE not present", "an address given is nobody's RSP"


def test_a_frame_that_steps_over_the_guard() -> None:
    below = (*MAPPINGS, Mapping("below", GUARD - 0x1000, 0x1000))
    assert stack_in_use(kernel(mappings=below), frame=0x1000).beyond is None
    assert stack_in_use(kernel(mappings=below), frame=0x1800).beyond == (
        f"a frame of 6144 bytes steps over the guard of 4096: {STACK - 0x1800:#x} is writable"
    )


def test_tables_in_the_way() -> None:
    low = tuple(mapping.replace(permissions="rw") if mapping.name == "guard" else mapping for mapping in MAPPINGS)
    filled = (
        *low,
        Mapping("filler", MAPPINGS[0].address + 0x4000, 0xC000),
        Mapping("more", MAPPINGS[0].address + 0x2000, 0x1000),
    )
    stack = stack_in_use(kernel(mappings=filled))
    assert stack.verdict == "silent-corruption"
    assert "the TSS at 0xffffffff80003000, the IDT at 0xffffffff80001000, the GDT at 0xffffffff80000000" in stack.reason


def test_in_user_mode_rsp0s_stack_is_judged() -> None:
    machine = kernel(ring=3)
    registers, remark = in_ring0(machine)
    assert (registers.cpl, registers.rsp) == (0, TOP)
    assert remark.startswith("caught in ring 3")
    judgement = assess(Report(machine))
    assert (judgement.verdict, judgement.stack.verdict, judgement.stack.distance) == ("survives", "guarded", 0x4000)
    assert judgement.overflow.remarks == (remark,)


def test_interrupt_stacks() -> None:
    found = interrupt_stacks(kernel(tss=Tss(rsp0=TOP, ist1=IST - 8, ist3=STACK), gates=gate(2, ist=2)))
    assert [(stack.pointer.name, stack.extent.size, stack.pointer.vectors) for stack in found] == [
        ("IST1", 0x5000 - 16, (8,)),
        ("IST2", 0, (2,)),
        ("IST3", 0, ()),
    ]


def test_the_four_questions() -> None:
    variants = {variant.name: variant for variant in run_scenario("double-fault-questions", kernel()).variants}
    handlers = [
        variant.simulation and (variant.simulation.vector, variant.simulation.stack) for variant in variants.values()
    ]
    assert handlers == [(14, "current"), (8, "IST1"), (14, "current"), (8, "IST1")]
    swapped = variants["a page fault, its handler swapped out"].simulation
    assert swapped is not None and swapped.loop is not None and swapped.loop.stride == 48


def test_the_gap_after_syscall() -> None:
    star = 0x08 << 32
    bad = run_scenario("syscall-gap", kernel(ring=3, star=star, gates=gate(8, ist=0)))
    assert (bad.verdict, len(bad.variants)) == ("triple-fault", 6)
    on_program = run_scenario("syscall-gap", kernel(ring=3, star=star)).variants[0]
    assert on_program.verdict == "survives"
    assert "which user code chose" in on_program.reason
    good = run_scenario(
        "syscall-gap", kernel(ring=3, star=star, gates={**gate(1, ist=1), **gate(2, ist=1), **gate(18, ist=1)})
    )
    assert {variant.reason for variant in good.variants} == {
        "the NMI handler runs on IST1",
        "the #MC handler runs on IST1",
        "the #DB handler runs on IST1",
    }
    unknown = kernel(ring=3)
    unknown = unknown.replace(unknown.registers.replace(efer=None))
    told = run_scenario("syscall-gap", unknown)
    assert (told.verdict, told.needs) == ("unknown", "EFER is not known (bit SCE: is SYSCALL in use)")
    assumed = unknown.replace(unknown.registers.replace(star=star))
    assert run_scenario("syscall-gap", assumed).verdict != "unknown"
    off = run_scenario("syscall-gap", kernel(efer=0xD00))
    assert (off.verdict, off.reason) == ("not-applicable", "SYSCALL is off (EFER.SCE)")


def test_sysret_with_a_bad_address() -> None:
    """Intel raises #GP in ring 0 on the program's stack, AMD in ring 3, from where delivery switches to RSP0."""
    changes = {"star": 0x08 << 32, "ring": 3, "gates": {**gate(2, ist=1), **gate(18, ist=1)}}
    intel, amd = kernel(**changes), kernel(**changes, vendor="amd")  # type: ignore[arg-type]
    found = {variant.name: variant for variant in run_scenario("sysret", intel).variants}
    assert len(found) == 6
    own = found["#GP on the program's stack"]
    assert own.reason.startswith("the #GP handler runs on the current stack, which user code chose")
    assert found["#GP on a pointer that is not canonical"].reason == "the #DF handler runs on IST1"
    first, *others = run_scenario("sysret", amd).variants
    assert (first.name, first.reason) == ("#GP of SYSRET in ring 3", "the #GP handler runs on RSP0")
    assert [variant.name.split()[0] for variant in others] == ["NMI", "NMI", "#MC", "#MC"]
    assert first.simulation is not None and first.simulation.start is not None
    assert first.simulation.start.rip == 0x8000_0000_1000
    off = run_scenario("sysret", kernel(efer=0xD00))
    assert (off.verdict, off.reason) == ("not-applicable", "SYSCALL is off (EFER.SCE)")


def test_both_page_tables_of_a_kernel_with_isolation() -> None:
    """What the user's page tables of Linux lack is a fault before SYSRET only there."""
    machine = linux().machines[0]
    machine = machine.replace(machine.registers.replace(efer=0xD01))
    assert {variant.verdict for variant in run_scenario("sysret", machine).variants} == {"survives"}
    assert machine.registers.cr3 is not None
    memory = machine.memory.copy()
    memory.overlay((machine.registers.cr3 & ~0x1FFF) + 0x1000 + 511 * 8, bytes(8))  # the kernel's code
    verdicts = {v.name: v.verdict for v in run_scenario("sysret", machine.replace(memory=memory)).variants}
    assert {name for name, verdict in verdicts.items() if verdict == "survives"} == {
        f"{event} on a pointer that is not canonical, the kernel's page tables" for event in ("#GP", "NMI", "#MC")
    }
    assert len(verdicts) == 6
    for name in ("cloud", "ovmf", "xen", "memtest"):
        assert isolated_pair(open_image(str(IMAGES / f"{name}.core")).machines[0]) is None, name


def test_survival_matrix() -> None:
    scenario = run_scenario("survival-matrix", kernel())
    assert len(scenario.variants) == 3 * 256
    assert {variant.verdict for variant in scenario.variants} == {"survives"}
    mutated = run_scenario("survival-matrix", kernel(tss=Tss(rsp0=0, ist1=IST)))
    assert mutated.verdict == "survives"  # #DF has its own stack from ring 3, too
    mutated = run_scenario("survival-matrix", kernel(gates=gate(8, ist=0)))
    dead = {variant.name.partition(" from ")[2] for variant in mutated.variants if variant.verdict != "survives"}
    assert dead == {"ring 0 at the guard"}


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_is_not_known(name: str) -> None:
    machine = kernel()
    nowhere = machine.replace(memory=Memory())
    assert run_scenario(name, nowhere).verdict == "unknown"
    assert run_scenario(name, machine.replace(Registers(cr0=0x10))).verdict == "not-applicable"


def test_unknown_says_what_is_needed() -> None:
    machine = kernel(complete=False)
    scenario = overflow(machine, stack=MAPPINGS[-1].address + 0x10)  # nothing is declared below it
    assert scenario.verdict == "unknown"
    assert scenario.needs == f"the configuration says nothing of {MAPPINGS[-1].address - 0x1000:#x}"
    assert overflow(kernel(cr4=PAE | CET, general={"s_cet": 1})).verdict == "unknown"


def test_a_scenario_that_is_none() -> None:
    with pytest.raises(UsageError, match="scenario 'x': one of stack-overflow"):
        run_scenario("x", kernel())


@pytest.mark.parametrize("name", ["stack-overflow", "double-fault-questions"])
def test_an_idt_that_is_not_mapped_is_a_shutdown(name: str) -> None:
    """It is known that the IDT's page is not there: nothing can be delivered."""
    machine = kernel()
    nowhere = machine.registers.replace(idtr=TableRegister(0xFFFF_8FFF_0000_0000, 0xFFF))
    scenario = run_scenario(name, machine.replace(nowhere))
    assert scenario.verdict == "triple-fault"
    assert "IDT entry" in scenario.reason


@pytest.mark.parametrize("path", sorted(IMAGES.glob("*.core")), ids=lambda path: path.stem)
def test_ordinary_images_take_a_fraction_of_the_steps(path: Path) -> None:
    for machine in open_image(str(path)).machines:
        situation = Situation(machine)
        for name in SCENARIOS:
            situation.run(name)
        assert situation.budget.steps - situation.budget.left < situation.budget.steps // 10


def test_all_scenarios_of_a_cpu_share_the_steps() -> None:
    # each simulation consumes a stack frame by frame: the first ones are told to their ends, the rest is not known
    machine = kernel(gates={**gate(14, offset=GONE), **gate(8, offset=GONE)}, rsp=TOP)
    told = run_scenario("survival-matrix", machine)
    assert "unknown" not in {variant.verdict for variant in told.variants}
    situation = Situation(machine)
    situation.budget = StepBudget(1000)
    scenario = situation.run("survival-matrix")
    assert situation.budget.left < 0
    number = [variant.verdict for variant in scenario.variants].index("unknown")
    assert number > 0 and scenario.variants[:number] == told.variants[:number]
    variant = scenario.variants[number]
    assert (variant.reason, variant.needs) == ("no end within 1000 steps",) * 2
    # what the first delivery decides is known all the same
    for now, before in zip(scenario.variants[number:], told.variants[number:], strict=True):
        assert now.verdict == "unknown" or now == before


def test_a_handlers_stack_takes_steps() -> None:
    big = (*MAPPINGS, Mapping("big", 0x4000_0000, 0x10_0000))
    machine = kernel(mappings=big, rsp=0x4010_0000)
    simulation = simulate(machine, Event.int3(), 0x8_0000, budget=StepBudget(64))
    assert (simulation.outcome, simulation.needs) == ("unknown", "no end within 64 steps")
    assert simulate(machine, Event.int3(), 0x8_0000, budget=StepBudget(200)).outcome == "survives"
