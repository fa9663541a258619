"""A small kernel and its stack overflow: first as it is often written, then with a stack for the double fault.

The kernel has a handler for breakpoints and one for double faults, a guard page below its stack, and 20 KiB set aside
for double faults. Everything here is declared in Python; `x86tables check` does the same with a memory dump.
"""

from x86tables import Gate, Gdt, Idt, SegmentDescriptor, SystemDescriptor, Tss
from x86tables.delivery.events import Event
from x86tables.delivery.scenarios import Scenario, run_scenario
from x86tables.delivery.simulate import simulate
from x86tables.machine.machine import Machine
from x86tables.machine.registers import Registers
from x86tables.machine.synthetic import Mapping, synthetic_machine
from x86tables.tables.vectors import label

KERNEL = 0xFFFF_FFFF_8000_0000
GDT, IDT, TSS = KERNEL, KERNEL + 0x1000, KERNEL + 0x2000
STACK = KERNEL + 0x11000  # the lowest byte of the kernel's stack: 16 KiB, with a guard page below
TOP = STACK + 16 * 1024
DOUBLE_FAULT_STACK = KERNEL + 0x20000
DOUBLE_FAULT_TOP = DOUBLE_FAULT_STACK + 20 * 1024
CODE = KERNEL + 0x10_0000
BREAKPOINT, DOUBLE_FAULT, PAGE_FAULT = CODE + 0x100, CODE + 0x200, CODE + 0x300

MAPPINGS = [
    Mapping("kernel code", CODE, 0x1000, "rx"),
    Mapping("guard page", STACK - 0x1000, 0x1000, ""),
    Mapping("kernel stack", STACK, 16 * 1024, "rw"),
    Mapping("guard page", DOUBLE_FAULT_STACK - 0x1000, 0x1000, ""),
    Mapping("double fault stack", DOUBLE_FAULT_STACK, 20 * 1024, "rw"),
]


def kernel(*, ist: int = 0, page_fault: int | None = None, rsp: int = TOP - 0x200) -> Machine:
    """The kernel, its double fault gate naming this IST; with a page fault handler or without."""
    gdt = Gdt()
    code = gdt.append(SegmentDescriptor.kernel_code())
    gdt.append(SegmentDescriptor.kernel_data())
    gdt.append(SystemDescriptor.tss(TSS))
    idt = Idt()
    idt["#BP"] = Gate.interrupt(BREAKPOINT, code)
    idt["#DF"] = Gate.interrupt(DOUBLE_FAULT, code, ist=ist)
    if page_fault is not None:
        idt["#PF"] = Gate.interrupt(page_fault, code)
    return synthetic_machine(
        MAPPINGS,
        gdt=(GDT, gdt),
        idt=(IDT, idt),
        tss=(TSS, Tss(rsp0=TOP, ist1=DOUBLE_FAULT_TOP)),
        registers=Registers(rip=CODE + 0x40, rsp=rsp),
        complete=True,
    )


def tell(title: str, scenario: Scenario) -> None:
    """The verdict, and the events that led to it."""
    print(f"{title}\n  {scenario.verdict}: {scenario.reason}")
    simulation = scenario.worst.simulation if scenario.worst else None
    for delivery in simulation.deliveries if simulation else ():
        for attempt in delivery.attempts:
            step = attempt.steps[-1]
            where = "" if step.address is None else f" at {step.address:#x}"
            print(f"    {attempt.event.label}: {step.step}{where}: {step.found}")
    print()


breakpoint_ = simulate(kernel(), Event.int3())
print(f"int3: {breakpoint_.outcome}: {breakpoint_.reason}\n")

tell("The stack overflows. The double fault gate has no IST:", run_scenario("stack-overflow", kernel()))
tell("The stack overflows. The double fault gate has IST1:", run_scenario("stack-overflow", kernel(ist=1)))

# Without a page fault handler every page fault is a double fault: gate 14 is not present.
wild = simulate(kernel(ist=1), Event.exception("#PF", error_code=2, cr2=0xDEADBEEF))
print(f"A wild pointer, no page fault handler: {wild.outcome}: {wild.reason}")
for attempt in wild.deliveries[0].attempts:
    print(f"    {attempt.event.label}: {attempt.steps[-1].step}: {attempt.steps[-1].found}")

# With one whose page is missing, no double fault comes of it at first: the page fault is delivered, and its handler
# faults at its first instruction, again and again, until its frames reach the guard page.
missing = simulate(kernel(ist=1, page_fault=CODE + 0x5000), Event.exception("#PF", error_code=2, cr2=0xDEADBEEF))
print(f"\nA wild pointer, the page fault handler swapped out: {missing.outcome}: {missing.reason}")
if (loop := missing.loop) is not None:
    print(f"    {label(loop.vectors[0])} comes {loop.rounds} times, {loop.stack_consumed} bytes of stack\n")

# 48 bytes for the frame, and not one for the handler: it is entered, and cannot push anything, for ever.
tiny = kernel(ist=1)
tss = Tss(ist1=DOUBLE_FAULT_STACK + 48)
memory = tiny.memory.copy()
memory.overlay(tiny.translate(TSS), bytes(tss))
tell(
    "The stack overflows. The double fault stack has 48 bytes:",
    run_scenario("stack-overflow", tiny.replace(memory=memory)),
)
