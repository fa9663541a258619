"""Entry stubs and the routine that loads the tables: stubs.s for GNU as, stubs.asm for NASM.

A stub makes all frames alike: where the processor pushes no error code it pushes 0, then the vector, and goes to one
common symbol. That finds, from RSP upwards: vector, error code, RIP, CS, RFLAGS, RSP, SS.

    asm_bp:
        # #BP
        pushq $0
        pushq $0x3
        jmp interrupt_common

The other routine loads GDTR, then CS by a far return, the other segments, TR and IDTR: in this order nothing that is
loaded refers to a table that is not there yet.
"""

from __future__ import annotations

from itertools import groupby, pairwise

from ..errors import UsageError
from ..records import Record
from ..tables.vectors import EXCEPTIONS, label
from . import headline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..config.compiled import CompiledTables, Lookup, VectorHandler


class StubDialect(Record):
    """How an assembler writes code; `public` and `end` give a name its type and size."""

    comment: str
    public: str
    outside: str
    align: str
    start: str
    push: str
    jump: str
    at: str
    end: str
    load: str
    which: tuple[str, str]
    note: str


GAS = StubDialect(
    comment="#",
    public="    .globl {0}\n    .type {0}, @function",
    outside="",
    align="    .balign 16, 0xcc",
    start="    .text",
    push="    pushq ${}",
    jump="    jmp {}",
    at="    .org {} + {:#x}, 0xcc",
    end="    .size {0}, . - {0}",
    load="""\
    lgdt {gdtr}(%rip)
    pushq ${code:#x}
    leaq 1f(%rip), %rax
    pushq %rax
    lretq
1:  movl ${data:#x}, %eax
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
{which}
    ltr %ax
    lidt {idtr}(%rip)
    ret""",
    which=("    movl ${:#x}, %eax", "    movl %edi, %eax\n    shll $4, %eax\n    addl ${:#x}, %eax"),
    note='    .section .note.GNU-stack, "", @progbits',
)
NASM = StubDialect(
    comment=";",
    public="    global {0}:function ({0}.end - {0})",
    outside="    extern {}",
    align="    align 16, db 0xcc",
    start="    section .text",
    push="    push {}",
    jump="    jmp {}",
    at="    times {1:#x} - ($ - {0}) db 0xcc",
    end=".end:",
    load="""\
    lgdt [rel {gdtr}]
    push {code:#x}
    lea rax, [rel .loaded]
    push rax
    retfq
.loaded:
    mov eax, {data:#x}
    mov ss, eax
    xor eax, eax
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
{which}
    ltr ax
    lidt [rel {idtr}]
    ret""",
    which=("    mov eax, {:#x}", "    mov eax, edi\n    shl eax, 4\n    add eax, {:#x}"),
    note="    section .note.GNU-stack noalloc noexec nowrite progbits",
)


def emit(tables: CompiledTables, find: Lookup) -> dict[str, str]:
    """The same for both assemblers. UsageError when two vectors have one handler: a stub knows one vector."""
    return {file: "\n".join(_lines(tables, d)) + "\n" for file, d in (("stubs.s", GAS), ("stubs.asm", NASM))}


def _lines(tables: CompiledTables, dialect: StubDialect) -> Iterator[str]:
    names, note = tables.config.stubs, dialect.comment
    yield f"{note} {headline(tables)}"
    yield dialect.note
    yield dialect.start
    if dialect.outside:
        yield from (dialect.outside.format(name) for name in (names.common, tables.gdtr.name, tables.idtr.name))
    for symbol, entries in groupby(_stubs(tables), lambda entry: entry.address.symbol):
        yield from ("", dialect.public.format(symbol), dialect.align, f"{symbol}:")
        for entry in entries:
            if entry.address.offset:
                yield dialect.at.format(symbol, entry.address.offset)
            yield f"    {note} {label(entry.vector)}"
            if not _pushes_error_code(entry.vector):
                yield dialect.push.format(0)
            yield dialect.push.format(hex(entry.vector))
            yield dialect.jump.format(names.common)
        yield dialect.end.format(symbol)
    several = len(tables.tss) > 1
    which = dialect.which[several].format(tables.selectors["tss0" if several else "tss"])
    yield ""
    yield f"{note} void {names.load}({'unsigned cpu' if several else 'void'}): with interrupts off, and before the"
    yield f"{note} bases of FS and GS are set; once per CPU, because LTR refuses a TSS that is busy."
    yield dialect.public.format(names.load)
    yield f"{names.load}:"
    names_of = {"gdtr": tables.gdtr.name, "idtr": tables.idtr.name, "code": tables.code, "data": tables.data}
    yield dialect.load.format(which=which, **names_of)
    yield dialect.end.format(names.load)


def _pushes_error_code(vector: int) -> bool:
    return vector < len(EXCEPTIONS) and EXCEPTIONS[vector].error_code


def _stubs(tables: CompiledTables) -> list[VectorHandler]:
    """The handlers that get a stub, those of one base together and upwards."""
    found: dict[tuple[str, int], VectorHandler] = {}
    for handler in tables.handlers:
        if handler.stub and handler.address.symbol is not None:
            key = handler.address.symbol, handler.address.offset
            if handler.address.offset < 0:
                raise UsageError(
                    f"--emit stubs: the stub of vector {label(handler.vector)} would lie before its symbol, at "
                    f"{handler.address}: give it one of its own, or stub = false"
                )
            if key in found:
                raise UsageError(
                    f"--emit stubs: vectors {label(found[key].vector)} and {label(handler.vector)} have one handler, "
                    f"{handler.address}, but a stub knows one vector: give each its own, or stub = false"
                )
            found[key] = handler
    bases = list(dict.fromkeys(symbol for symbol, _ in found))
    ordered = sorted(found.values(), key=lambda h: (bases.index(h.address.symbol or ""), h.address.offset))
    for handler, following in pairwise(ordered):
        room = following.address.offset - handler.address.offset
        if following.address.symbol == handler.address.symbol and room < _size(handler.vector):
            raise UsageError(
                f"--emit stubs: the stub of vector {label(handler.vector)} at {handler.address} needs "
                f"{_size(handler.vector)} bytes, but that of {label(following.vector)} follows after {room}: "
                "a stride of 16 has room for any"
            )
    return ordered


def _size(vector: int) -> int:
    """Bytes of a stub: PUSH 0 unless there is an error code, PUSH imm8 (sign-extended) or imm32, JMP rel32."""
    return (0 if _pushes_error_code(vector) else 2) + (2 if vector < 0x80 else 5) + 5
