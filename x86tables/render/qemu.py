"""What QEMU did: a configuration's stack overflow, or a whole guest."""

from __future__ import annotations

from ..qemulog.report import report
from ..tables.vectors import label
from . import log
from .lines import wrap
from .verdict import coloured

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..machine.image import Image
    from ..machine.symbols import Symbols
    from ..prove.overflow import Overflow
    from ..prove.qemu import Ending

OUTPUT = 12  # lines of a guest's own output that are shown, the last ones


def text(image: Image, found: Sequence[Overflow], cpu: str) -> Iterator[str]:
    """A stack overflow on each CPU of a configuration."""
    yield f"{image.path}: {image.format}, a stack overflow on {cpu} (TCG)"
    for remark in image.remarks:
        yield from wrap(f"  note: {remark}", "    ")
    for one in found:
        agree = f", NOT AS PREDICTED: {one.differs}" if one.differs else ", as predicted"
        yield ""
        yield f"CPU {one.machine.cpu}  {coloured(one.verdict)}{agree if one.guard else ''}"
        yield from wrap(f"  {one.reason}", "    ")
        if one.guard is None or one.initial_rsp is None:
            continue
        yield f"  recursion from RSP {one.initial_rsp:#x} down to the guard [{one.guard[0]:#x}, {one.guard[1]:#x})"
        if one.cr2 is not None:
            inside = one.guard[0] <= one.cr2 < one.guard[1]
            yield f"  the first page fault: CR2 {one.cr2:#x}{', in the guard' if inside else ', NOT in the guard'}"
        if one.vector is not None:
            code = "" if one.error_code is None else f", error code {one.error_code:#x}"
            where = "the current stack" if one.stack == "current" else one.stack
            yield f"  the handler of {label(one.vector)}: on {where}, RSP {one.rsp or 0:#x}{code}"


def guest_text(title: str, ending: Ending, symbols: Symbols, cpu: str) -> Iterator[str]:
    """A guest's end, and what its log shows."""
    yield f"{title}: on {cpu} (TCG)"
    yield ""
    yield coloured(ending.verdict)
    yield from wrap(f"  {ending.reason}", "    ")
    yield f"  {'stopped by x86tables' if ending.status is None else f'QEMU ended with status {ending.status}'}"
    lines = ending.output.decode(errors="replace").splitlines()
    if lines:
        yield ""
        yield "its output" + (f", the last {OUTPUT} lines" if len(lines) > OUTPUT else "")
        yield from (f"  {''.join(c if c.isprintable() else ' ' for c in line)[:96]}" for line in lines[-OUTPUT:])
    yield ""
    yield from log.text("its log", report(ending.log), symbols)
