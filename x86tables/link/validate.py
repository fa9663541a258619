"""What is wrong with a kernel's segments for its tables, and what is assumed of the boot code."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .plan import Plan


def assumptions(plan: Plan) -> Iterator[str]:
    """What is assumed of the boot code."""
    yield "assumes that the boot code maps the kernel as its program headers say"
    if plan.kernel.relocations:
        yield "assumes that the kernel is not moved when it is loaded (KASLR): the tables hold addresses as linked"
    for stack in plan.tables.stacks:
        top = stack.top.at(plan.find)
        bottom = top - (stack.size or 1)
        loaded = any(load.start <= bottom and top <= load.stop for load in plan.kernel.loads)
        if not loaded and not _declared(plan, bottom, top):
            yield f"assumes that the boot code maps [{bottom:#x}, {top:#x}) ({stack.name} of CPU {stack.cpu})"


def problems(plan: Plan) -> list[str]:
    """What is wrong with the kernel's segments and symbols for the tables, a sentence each."""
    return list(dict.fromkeys((*_table(plan), *_handlers(plan), *_stacks(plan))))


def _declared(plan: Plan, start: int, stop: int) -> bool:
    """Whether the declaration says what that memory is: its word counts for more than the program headers'."""
    memory = plan.tables.memory
    return any(declared.start.at(plan.find) <= start and stop <= declared.stop.at(plan.find) for declared in memory)


def _without(plan: Plan, start: int, stop: int, letter: str) -> str:
    """In which segment some of that memory lacks a permission; "" when none does."""
    if not _declared(plan, start, stop):
        for load in plan.kernel.loads:
            if load.start < stop and start < load.stop and letter not in load.permissions:
                return f"in a segment with permissions {load.permissions!r}"
    return ""


def _table(plan: Plan) -> Iterator[str]:
    gdt = plan.patches[0]
    if where := _without(plan, gdt.address, gdt.address + len(gdt.data), "w"):
        yield f"{gdt.table.name} at {gdt.address:#x} is {where}: LTR could not mark the TSS busy; put it in .data"


def _handlers(plan: Plan) -> Iterator[str]:
    for entry in plan.tables.handlers:
        start = entry.address.at(plan.find)
        if where := _without(plan, start, start + 1, "x"):
            yield f"the handler {entry.address} at {start:#x} is {where}: it cannot be executed; put it in .text"
        loaded = any(load.start <= start < load.stop for load in plan.kernel.loads)
        if not loaded and entry.address.symbol in plan.kernel.names and not _declared(plan, start, start + 1):
            yield f"the handler {entry.address} at {start:#x} is in no segment of the kernel"


def _stacks(plan: Plan) -> Iterator[str]:
    for stack in plan.tables.stacks:
        top = stack.top.at(plan.find)
        if where := _without(plan, top - (stack.size or 1), top, "w"):
            yield f"the stack {stack.name} below {top:#x} is {where}: it cannot be pushed to; put it in .bss"
        symbol = stack.bottom.symbol if stack.bottom is not None else None
        held = max((size for _, size in plan.kernel.names.get(symbol or "", ())), default=0)
        if 0 < held < (stack.size or 0):
            yield f"the stack {stack.name} is declared with {stack.size} bytes, but {symbol} has {held}"
