"""The captured Linux with one thing changed in CPU 0: the verdict, why, and the finding that names the cause."""

from collections.abc import Callable

from cli import IMAGES

from x86tables import Gate, Tss
from x86tables.delivery.extent import extent
from x86tables.machine.image import Snapshot
from x86tables.machine.machine import Machine
from x86tables.machine.probe import PageEntry
from x86tables.readers import open_image
from x86tables.records import Record

NX = 1 << 63
UNMAPPED = 0xFFFF_8FFF_0000_0000  # nothing is mapped there


class Mutated(Record):
    """One change: the verdict of CPU 0, a piece of its reason, and (rule, severity, where) of the one new finding.

    `shared` is whether CPU 1 has the change too and with it the same finding; `gone` are the rules of the unchanged
    image that have nothing to look at any more.
    """

    change: Callable[[Machine], Machine]
    verdict: str
    reason: str
    finding: tuple[str, str, str] | None
    shared: bool = False
    gone: tuple[str, ...] = ()


def linux(name: str = "") -> Snapshot:
    """The captured Linux, with one of CHANGES made to it."""
    image = open_image(str(IMAGES / "linux.core"))
    if not name:
        return image
    first, second = image.machines
    mutated = CHANGES[name].change(first)
    return image.replace(memory=mutated.memory, machines=(mutated, second.replace(memory=mutated.memory)))


def _write(machine: Machine, physical: int, data: bytes) -> Machine:
    memory = machine.memory.copy()
    memory.overlay(physical, data)
    return machine.replace(memory=memory)


def _gate(**fields: int) -> Callable[[Machine], Machine]:
    """Other fields in gate 8."""

    def change(machine: Machine) -> Machine:
        assert machine.registers.idtr is not None
        place = machine.translate(machine.registers.idtr.base + 8 * Gate.size)
        return _write(machine, place, bytes(machine.idt[8].replace(**fields)))

    return change


def _ist1(top: Callable[[Machine], int]) -> Callable[[Machine], Machine]:
    def change(machine: Machine) -> Machine:
        assert machine.registers.tr is not None
        place = machine.translate(machine.registers.tr.base + Tss.field("ist1").offset)
        return _write(machine, place, top(machine).to_bytes(8, "little"))

    return change


def _room(size: int) -> Callable[[Machine], Machine]:
    """IST1 so many bytes above the end of its stack."""
    return _ist1(lambda machine: extent(machine, machine.tss.ist1).bottom + size)


def _limit(register: str, limit: int) -> Callable[[Machine], Machine]:
    def change(machine: Machine) -> Machine:
        loaded = getattr(machine.registers, register)
        return machine.replace(machine.registers.replace(**{register: loaded.replace(limit=limit)}))

    return change


def _not_executable(machine: Machine) -> Machine:
    """NX in the entry that maps the page of the #DF handler."""
    entries: list[PageEntry] = []
    machine.space.walk(machine.idt[8].offset, entries.append)
    return _write(machine, entries[-1].address, (entries[-1].value | NX).to_bytes(8, "little"))


CHANGES = {
    # Gates: the IDT is one for both CPUs, so that both have the finding.
    "gate 8 without IST": Mutated(
        _gate(ist=0), "triple-fault", "on the same stack (no IST)", ("IDT004", "error", "idt[8].ist"), shared=True
    ),
    "gate 8 not present": Mutated(
        _gate(p=0), "triple-fault", "gate P: P 0", ("IDT001", "error", "idt[8].p"), shared=True
    ),
    "gate 8 with a null selector": Mutated(
        _gate(selector=0), "triple-fault", "gate selector: 0x0", ("IDT005", "error", "idt[8].selector"), shared=True
    ),
    # The overflow is survived, in a way: #PF finds that the #DF handler is not there, and runs on the #DF stack. The
    # finding is an error all the same, for the handler that was to report the overflow does not run.
    "gate 8 leads nowhere": Mutated(
        _gate(offset=UNMAPPED),
        "survives",
        "the #PF handler runs on the current stack (IST1)",
        ("IDT007", "error", "idt[8].offset"),
        shared=True,
    ),
    # Handlers 0 to 19, 29 and 32 to 255 begin in one page, that of gate 8; the others are those that a clean image
    # names already. CPU 1 is in a program and has page tables of its own, where nothing was changed.
    "the handler's page not executable": Mutated(
        _not_executable,
        "loops",
        "fetch from a page with execute-disable set",
        ("IDT007", "error", "idt[0..19,29,32..255].offset"),
    ),
    # IST1: each CPU has its own TSS. A zero is judged as a slot that was forgotten, not as a stack at memory's end.
    "IST1 zero": Mutated(
        _ist1(lambda machine: 0),
        "triple-fault",
        "push SS at 0xfffffffffffffff8 on IST1",
        ("TSS013", "error", "tss.ist1"),
    ),
    "IST1 in an unmapped page": Mutated(
        _ist1(lambda machine: UNMAPPED),
        "triple-fault",
        f"push SS at {UNMAPPED - 8:#x} on IST1",
        ("STK001", "error", "tss.ist1"),
    ),
    "IST1 with no room": Mutated(_room(0), "triple-fault", "on IST1: PTE not present", ("STK001", "error", "tss.ist1")),
    # 40 is aligned down to 32, where a frame of 48 bytes breaks off: the exception is lost, an error; that 40 is not
    # aligned is the same mistake. 48 and 64 take the frame but not the handler's pushes: a warning, as for any stack
    # without room, while the verdict says that it loops. 176 is what a frame and 128 bytes for the handler take.
    "IST1 with 40 bytes": Mutated(
        _room(40), "triple-fault", "on IST1: PTE not present", ("STK003", "error", "tss.ist1")
    ),
    "IST1 with 48 bytes": Mutated(
        _room(48), "loops", "handler cannot run (PTE not present)", ("STK003", "error", "tss.ist1")
    ),
    "IST1 with 64 bytes": Mutated(
        _room(64), "loops", "handler cannot run (PTE not present)", ("STK003", "error", "tss.ist1")
    ),
    "IST1 with 176 bytes": Mutated(_room(176), "survives", "the #DF handler runs on IST1", None),
    # A limit in a register of CPU 0. 0x8e is one byte short of gate 8; 0x8f covers it, and an overflow comes as #GP
    # (gate 14 is beyond the limit) and then #DF; both leave out #PF, which no kernel means. Gates and stacks beyond the
    # limit are not reached any more, and the notes on them are gone.
    "IDT limit 0x8e": Mutated(
        _limit("idtr", 0x8E),
        "triple-fault",
        "IDT limit: limit 0x8e, entry 8 ends at 0x8f",
        ("IDT011", "error", "idtr.limit"),
        gone=("IDT007", "STK001"),
    ),
    "IDT limit 0x8f": Mutated(
        _limit("idtr", 0x8F),
        "survives",
        "the #DF handler runs on IST1",
        ("IDT011", "error", "idtr.limit"),
        gone=("IDT007", "STK001"),
    ),
    # 0xef covers gates 0 to 14; CPU 1 has all of them.
    "IDT limit 0xef": Mutated(
        _limit("idtr", 0xEF),
        "survives",
        "the #DF handler runs on IST1",
        ("IDT018", "warning", "idtr.limit"),
        gone=("IDT007", "STK001"),
    ),
    # 0x2a is one byte short of IST1; 0x2b has it, but not IST2 to IST5, which NMI, #DB and #MC need.
    "TSS limit 0x2a": Mutated(
        _limit("tr", 0x2A),
        "triple-fault",
        "TSS limit: limit 0x2a, IST1 ends at 0x2b",
        ("TSS006", "error", "tr.limit"),
        gone=("STK001",),
    ),
    "TSS limit 0x2b": Mutated(
        _limit("tr", 0x2B),
        "survives",
        "the #DF handler runs on IST1",
        ("TSS006", "error", "tr.limit"),
        gone=("STK001",),
    ),
}
