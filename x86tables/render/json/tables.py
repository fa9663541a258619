"""The tables of a CPU: the declarations."""

from __future__ import annotations

from ...documents import LEFT_OUT, Document, one_of
from ...tables.tss import STACKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...documents import U2, U3, U4, U8, U16, U20, U32, Hex, Natural, Raw

AT_LEAST_ONE = {"minItems": 1}


class MissingJson(Document):
    """Bytes of a table that cannot be read, counted from its base; entries that lie in them are left out.

    to: the first byte behind
    """

    from_: Natural
    to: Natural
    error: str


class UnreadableJson(Document):
    """A table of which nothing can be read, or a TR that was never loaded."""

    base: Hex
    limit: Natural
    error: str


class DescriptorJson(
    Document,
    kind=one_of(
        *("null", "code64", "code32", "code16", "data", "ldt", "tss-available", "tss-busy", "call-gate", "refused"),
        *("tss16-available", "tss16-busy", "call-gate16", "task-gate", "interrupt-gate16", "trap-gate16"),
        *("tss32-available", "tss32-busy", "call-gate32", "interrupt-gate32", "trap-gate32"),
    ),
    oneOf=[
        {"required": ["base", "limit", "effective_limit", "g", "avl"], "not": {"required": ["offset"]}},
        {"required": ["offset", "target"], "not": {"required": ["base"]}},
    ],
):
    """A descriptor of a GDT or LDT.

    index: slot
    selector: with RPL 0
    kind: those with a 16 or 32 in their name, but for code, in protected mode only; refused: a type that the mode lacks
    offset: of a 64-bit call gate
    target: the selector in a 64-bit call gate
    limit: as stored
    effective_limit: in bytes
    truncated: the second half is beyond the limit
    """

    index: U16
    selector: U16
    kind: str
    offset: Hex = LEFT_OUT
    target: U16 = LEFT_OUT
    base: Hex = LEFT_OUT
    limit: U20 = LEFT_OUT
    effective_limit: U32 = LEFT_OUT
    g: bool = LEFT_OUT
    d_b: bool = LEFT_OUT
    l: bool = LEFT_OUT  # noqa: E741 - the manual's name
    type: U4
    s: bool
    dpl: U2
    p: bool
    avl: bool = LEFT_OUT
    truncated: bool
    raw: Raw


class DescriptorTableJson(Document, missing=AT_LEAST_ONE):
    """A GDT or LDT.

    entries: in order, two-slot descriptors once
    tail: up to 7 bytes behind the last slot
    """

    base: Hex
    limit: Natural
    entries: list[DescriptorJson]
    tail: Raw = LEFT_OUT
    missing: list[MissingJson] = LEFT_OUT


class TaskJson(Document):
    """Where a task gate leads: the 32-bit TSS that it names."""

    cs: U16
    eip: Hex
    ss: U16
    esp: Hex
    cr3: Hex


class GateJson(
    Document,
    kind=one_of(
        *("interrupt", "trap", "absent", "refused", "task-gate", "interrupt-gate16", "trap-gate16"),
        *("interrupt-gate32", "trap-gate32", "call-gate16", "call-gate32"),
    ),
):
    """A gate of an IDT.

    kind: interrupt, trap: 16-byte gates; -gate16, -gate32, task-gate: 8-byte gates; absent: all zero; refused: by #GP
    ist: 1..7 as the manual counts; 0 is no switch
    task: null when it cannot be read
    handler: the symbol, when symbols are given
    line: file:line of the handler, when the symbols come from an ELF file; null without debugging information
    """

    vector: U8
    kind: str
    offset: Hex
    selector: U16
    ist: U3
    dpl: U2
    p: bool
    task: TaskJson | None = LEFT_OUT
    handler: str | None = LEFT_OUT
    line: str | None = LEFT_OUT
    raw: Raw


class IdtJson(Document, gates={"maxItems": 256}, missing=AT_LEAST_ONE):
    """An IDT."""

    base: Hex
    limit: Natural
    gates: list[GateJson]
    missing: list[MissingJson] = LEFT_OUT


class StackJson(Document, name=one_of(*map(str.upper, STACKS))):
    """A stack that a 64-bit TSS names.

    top: the end: the first push goes below it
    bottom: the lowest byte that a push is known to reach; top when there is none
    below: why a push to the page below faults; null when none did in 1 MiB; `not known: ...` when the image lacks it
    above: the same for the page that begins at the top
    """

    name: str
    top: Hex
    bottom: Hex
    size: Natural
    below: str | None
    above: str | None


class TssJson(Document, rsp={"minItems": 3, "maxItems": 3}, ist={"minItems": 7, "maxItems": 7}, missing=AT_LEAST_ONE):
    """A 64-bit TSS; null is: beyond the limit, or it cannot be read.

    ist: IST1 first
    open_ports: first and last port of each range open to ring 3; null without a bitmap that can be read as a whole
    raw: at most 104 bytes: the bitmap is not in it
    """

    base: Hex
    limit: Natural
    rsp: list[Hex | None]
    ist: list[Hex | None]
    stacks: list[StackJson]
    iopb: U16 | None
    open_ports: list[list[U16]] | None
    raw: Raw
    missing: list[MissingJson] = LEFT_OUT


class Tss32Json(Document, missing=AT_LEAST_ONE):
    """A 32-bit TSS; null is: beyond the limit, or it cannot be read.

    open_ports: first and last port of each range open to ring 3; null without a bitmap that can be read as a whole
    raw: at most 104 bytes: the bitmap is not in it
    """

    base: Hex
    limit: Natural
    esp0: Hex | None
    esp1: Hex | None
    esp2: Hex | None
    cr3: Hex | None
    eip: Hex | None
    eflags: Hex | None
    ss0: U16 | None
    ss1: U16 | None
    ss2: U16 | None
    link: U16 | None
    ldt: U16 | None
    iopb: U16 | None
    open_ports: list[list[U16]] | None
    raw: Raw
    missing: list[MissingJson] = LEFT_OUT


class Tss16Json(Document, missing=AT_LEAST_ONE):
    """The 16-bit TSS of a CPU in protected mode; null is: beyond the limit, or it cannot be read."""

    base: Hex
    limit: Natural
    sp0: Hex | None
    sp1: Hex | None
    sp2: Hex | None
    ip: Hex | None
    flags: Hex | None
    ss0: U16 | None
    ss1: U16 | None
    ss2: U16 | None
    link: U16 | None
    ldt: U16 | None
    raw: Raw
    missing: list[MissingJson] = LEFT_OUT


class VectorJson(Document):
    """A vector of real mode."""

    vector: U8
    segment: U16
    offset: Hex
    raw: Raw
