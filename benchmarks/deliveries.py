"""How many deliveries a second, and how long every vector of a Linux core takes: `python -m benchmarks.deliveries`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time

from x86tables import Gate, Gdt, Idt, SegmentDescriptor, SystemDescriptor, Tss
from x86tables.delivery.deliver import deliver
from x86tables.delivery.events import Event
from x86tables.delivery.scenarios import run_scenario
from x86tables.delivery.simulate import simulate
from x86tables.machine.machine import Machine
from x86tables.machine.registers import Registers
from x86tables.machine.synthetic import Mapping, synthetic_machine
from x86tables.readers import open_image

ROOT = Path(__file__).parent.parent
LINUX = ROOT / "tests/images/linux.core"
K = 0xFFFF_FFFF_8000_0000
STACK, IST, CODE = K + 0x1_0000, K + 0x2_0000, K + 0x10_0000
DELIVERIES_WANTED, MATRIX_SECONDS_WANTED = 5_000, 2.0


def machine(rsp: int) -> Machine:
    """A kernel whose double fault has IST1, with a guard page below its stack."""
    gdt, idt = Gdt(), Idt()
    code = gdt.append(SegmentDescriptor.kernel_code())
    gdt.append(SystemDescriptor.tss(K + 0x3000))
    for vector in range(256):
        idt[vector] = Gate.interrupt(CODE + 16 * vector, code, ist=int(vector == 8))
    mappings = [Mapping("stack", STACK, 0x4000), Mapping("IST1", IST, 0x4000), Mapping("code", CODE, 0x1000, "rx")]
    registers = Registers(rip=CODE, rsp=rsp)
    tss = Tss(ist1=IST + 0x4000)
    return synthetic_machine(
        mappings, gdt=(K, gdt), idt=(K + 0x1000, idt), tss=(K + 0x3000, tss), registers=registers, complete=True
    )


def a_second(work: Callable[[], object], slices: int = 9, length: float = 0.2) -> float:
    """How often `work` is done in a second of this process: the best of some slices, for others only slow it down."""
    rates = []
    for _ in range(slices):
        count, start = 0, process_time()
        while (spent := process_time() - start) < length:
            work()
            count += 1
        rates.append(count / spent)
    return max(rates)


def main() -> None:
    """Print the table."""
    good, full = machine(STACK + 0x2000), machine(STACK)
    works: dict[str, Callable[[], object]] = {
        "an interrupt": partial(deliver, good, Event.interrupt(0x20)),
        "#PF, then #DF on IST1": partial(deliver, full, Event.exception("#PF", 2, STACK - 8)),
        "the same, and its handler": partial(simulate, full, Event.exception("#PF", 2, STACK - 8)),
    }
    for name, work in works.items():
        rate = a_second(work)
        met = "met" if rate >= DELIVERIES_WANTED else "MISSED"
        print(f"{name:<40} {rate:>10,.0f} a second   >= {DELIVERIES_WANTED:,}   {met}")
    image = open_image(str(LINUX))
    start = process_time()
    variants = [variant for cpu in image.machines for variant in run_scenario("survival-matrix", cpu).variants]
    seconds = process_time() - start
    met = "met" if seconds <= MATRIX_SECONDS_WANTED else "MISSED"
    name = f"{len(variants):,} simulations of a Linux core"
    print(f"{name:<40} {seconds:>10.2f} seconds    <= {MATRIX_SECONDS_WANTED:g}       {met}")


if __name__ == "__main__":
    main()
