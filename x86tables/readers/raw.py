"""A flat image: memory from one address on, without registers; or a file that is just one table."""

from __future__ import annotations

from ..errors import UsageError
from ..machine.image import OpenOptions
from ..machine.memory import Memory
from ..machine.paging import canonical
from ..machine.registers import Registers, Segment, TableRegister
from ..tables.gdt import Gdt
from ..tables.idt import Idt
from ..tables.tss import Tss
from . import Contents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..machine.files import Data


def matches(data: Data) -> bool:
    """Any file may be flat memory: this reader is asked last."""
    return True


def read(path: str, data: Data, options: OpenOptions) -> Contents:
    """The file as memory at `--base`; a file that is a table as a whole is taken as that when no option says more."""
    base = options.base or 0
    if base + len(data) > 1 << 64:
        raise UsageError(f"--base {base:#x}: {path} with its {len(data):#x} bytes reaches beyond 64 bits")
    memory = Memory([(base, len(data), data, 0)])
    if options.registers or options.gdt or options.idt or options.tss:
        return Contents(memory)
    kind = guess(data)
    if kind is None:
        return Contents(memory, lacks="a flat image does not say where its tables are")
    limit = len(data) - 1
    registers = {
        "gdt": Registers(gdtr=TableRegister(base, limit)),
        "idt": Registers(idtr=TableRegister(base, limit)),
        "tss": Registers(tr=Segment(0xFFF8, base, limit)),
    }[kind]
    return Contents(
        memory,
        (registers,),
        remarks=(f"the whole file looks like one {kind.upper()} and is read as that",),
        running=False,
    )


def guess(data: Data) -> str | None:
    """`idt`, `gdt` or `tss` when all of `data` is plausible as that, else None."""
    if not 8 <= len(data) <= 0x10000 or not any(data[: len(data)]):
        return None
    content = data[: len(data)]
    if len(content) % 16 == 0 and _plausible_idt(Idt.parse(content)):
        return "idt"
    if len(content) % 8 == 0 and _plausible_gdt(Gdt.parse(content)):
        return "gdt"
    if len(content) >= Tss.size and _plausible_tss(Tss.parse(content[: Tss.size]), len(content)):
        return "tss"
    return None


def _plausible_idt(idt: Idt) -> bool:
    """Every gate empty, or one that 64-bit mode takes with nothing reserved set; and at least one present."""
    return any(gate.p for gate in idt) and all(
        gate.kind == "absent"
        or (gate.kind != "refused" and not gate.reserved0 and not gate.reserved1 and canonical(gate.offset))
        for gate in idt
    )


def _plausible_gdt(gdt: Gdt) -> bool:
    """A null slot first, then descriptors of kinds that 64-bit mode has; and at least one segment present."""
    entries = list(gdt.entries())
    return (
        gdt.slot(0) == 0
        and any(e.descriptor.p and e.descriptor.s for e in entries)
        and all(e.kind != "refused" and not e.truncated for e in entries)
    )


def _plausible_tss(tss: Tss, size: int) -> bool:
    """Reserved fields zero, stacks canonical, an I/O map base that is beyond the fixed part."""
    reserved = tss.reserved0 | tss.reserved1 | tss.reserved2 | tss.reserved3
    pointers = tss.rsp + tss.ist
    return not reserved and any(pointers) and all(map(canonical, pointers)) and tss.iopb >= Tss.size and size <= 0x2069
