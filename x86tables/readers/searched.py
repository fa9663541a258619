"""What an image's registers do not say, found in its memory: `scan` searches, and here it becomes registers."""

from __future__ import annotations

from .. import scan
from ..errors import ImageError
from ..machine.registers import FRED, Registers
from ..records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..machine.memory import Memory

    Progress = Callable[[int], Callable[[int], object]] | None


class Searched(Record):
    """Registers with what they lack, for each CPU what is assumed with that, and what is remarked of the image.

    `extra` is what a small image has to say of it.
    """

    registers: tuple[Registers, ...]
    assumed: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...] = ()
    extra: dict[str, str] = {}  # noqa: RUF012 - never changed


def search(
    path: str,
    memory: Memory,
    registers: Sequence[Registers],
    lacks: str,
    progress: Progress = None,
    counted: bool = True,
) -> Searched:
    """The tables that registers do not name, as they are found; ImageError when nothing is known of any table.

    `lacks` says why they have to be found; `progress` is as in OpenOptions. `counted` is whether the image says how
    many CPUs there are; else there are as many as are found, and what is known is known of each.
    """
    known = next((r.cr3 for r in registers if r.cr3 is not None), None)
    found = scan.scan(memory, known, note=progress and progress(memory.written))
    if not found.machines:
        if not any(r.gdtr or r.idtr or r.tr for r in registers):
            raise ImageError(
                f"{path}: {lacks}, and none were found in its memory: "
                "give --registers FILE, or --cr3 ADDR, --gdt ADDR,LIMIT, --idt ADDR,LIMIT and --tss ADDR"
            )
        return Searched(tuple(registers), ((),) * len(registers))
    machine, others = found.machines[0], found.machines[1:]
    filled = scan.fill(registers if counted else list(registers) * len(machine.cpus), machine)
    remarks = []
    if others:
        them = "another machine was" if len(others) == 1 else f"{len(others)} other machines were"
        remarks.append(f"{them} found in this image: x86tables scan shows where")
    if any((known.cr4 or 0) & FRED for known, _ in filled):
        remarks.append("CR4.FRED is set: the CPU uses no IDT, and the one that was found is that of before")
    return Searched(
        tuple(known for known, _ in filled),
        tuple(_assumed(known, names, machine.score) for known, names in filled),
        tuple(remarks),
        {"found": f"{machine.score}:{','.join(filled[0][1])}"}
        | ({"levels": "5"} if machine.root is not None and machine.root.mode == "5-level" else {}),
    )


def repeated(said: str, registers: Registers) -> tuple[str, ...]:
    """What is assumed with registers of a small image, of which it says that they were found."""
    score, _, names = said.partition(":")
    known = tuple(name for name in names.split(",") if name in ("cr0", "cr3", "gdtr", "idtr", "tr"))
    return _assumed(registers, known, int(score)) if score.isdecimal() and len(score) < 4 else ()


def _assumed(registers: Registers, names: tuple[str, ...], score: int) -> tuple[str, ...]:
    null = "tr" in names and registers.tr is not None and registers.tr.null
    found = ", ".join(name.upper() for name in names if not (null and name == "tr"))
    said = (f"{found} (found in memory, not given; score {score} of 100)",) if found else ()
    return (*said, "TR null (the GDT that was found has no TSS descriptor)") if null else said
