"""What output names besides rules, in a few sentences: verdicts, scenarios, vectors, codes, fields, registers."""

from __future__ import annotations

import re

from ..errors import UsageError
from ..records import Record
from ..tables import vectors
from ..tables.gdt import CallGate, SegmentDescriptor, SystemDescriptor
from ..tables.idt import Gate
from ..tables.pseudo import ErrorFrame, Frame, PseudoDescriptor
from ..tables.selector import PageFaultErrorCode, Selector, SelectorErrorCode
from ..tables.tss import Tss

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..tables.layout import Layout


class Topic(Record):
    """Something explained: what it is called, sentences, a figure of bits or "", and where to read on."""

    name: str
    title: str
    text: str
    source: str
    figure: str = ""


STRUCTURES: dict[str, type[Layout]] = {
    "gate": Gate, "segment": SegmentDescriptor, "system": SystemDescriptor, "call-gate": CallGate,
    "selector": Selector, "error-code": SelectorErrorCode, "page-fault-error": PageFaultErrorCode,
    "pseudo-descriptor": PseudoDescriptor, "tss": Tss, "frame": Frame, "error-frame": ErrorFrame,
}  # fmt: skip
PLACES = {"idt": ("gate",), "gdt": ("segment", "system"), "ldt": ("segment", "system"), "idtr": ("pseudo-descriptor",),
          "gdtr": ("pseudo-descriptor",), "tr": ("system",)}  # fmt: skip

_P = "Present. A descriptor with P=0 that is used raises #NP (#SS for SS); for a gate the error code names the vector."
_S = "1 for code and data, 0 for system descriptors and gates, whose types mean something else."
_LIMIT = "The last byte that belongs to it, from its base: the size less one. With G=1 it counts pages of 4 KiB."
_G = "Granularity: with G=1 the limit counts 4 KiB pages, and its low 12 bits are ones."
_AVL = "Left to software: the processor does not look at it."
_RESERVED = "Reserved: zero is expected, and the processor may come to give it a meaning."
_BASE = "The linear address of its first byte, scattered over the descriptor; not checked until it is used."

FIELDS = {
    "gate.offset": "The linear address of the handler, in three pieces. One that is not canonical raises #GP when the "
    "event is delivered, after the gate has been read.",
    "gate.p": "Present. An event through a gate with P=0 raises #NP, whose error code names the vector.",
    "gate.dpl": "Who may reach the gate by INT n or INT3: CPL must not be greater, else #GP. Exceptions and "
    "hardware interrupts are not checked. 3 is meant for #BP and system calls, and for nothing else.",
    "gate.s": "Must be 0. With S=1 the gate is refused: #GP, naming the vector.",
    "gate.type": "0xE is an interrupt gate (IF is cleared), 0xF a trap gate (IF stays). Any other raises #GP in 64-bit "
    "mode, also the task gate of 32-bit mode.",
    "gate.ist": "Which of the TSS's seven interrupt stacks the handler gets, always and from its top; 0 keeps the "
    "current stack, or RSP0 when the privilege level changes. A second event through the same IST overwrites the "
    "frame of the first.",
    "gate.selector": "The code segment of the handler. It must name a present 64-bit code segment (L=1, D=0) whose DPL "
    "is not greater than CPL; a null selector raises #GP.",
    "segment.base": "The linear address where the segment begins. 64-bit code ignores it for CS, DS, ES and SS.",
    "segment.limit": "The last byte of the segment. 64-bit mode does not check it.",
    "segment.l": "1 makes a code segment a 64-bit one; D must be 0 then. An event's code segment needs it.",
    "segment.d_b": "Default operand size of code (1: 32 bits), size of the stack pointer of data. 0 in 64-bit code: "
    "L=1 with D=1 is reserved, and raises #GP.",
    "segment.dpl": "The privilege level of the segment. A handler's code segment has DPL 0; where a gate names a less "
    "privileged one, #GP.",
    "segment.type": "For code: 8 plus conforming 4, readable 2, accessed 1. For data: expand-down 4, writable 2, "
    "accessed 1. The processor sets accessed when it loads the segment, which needs a writable page.",
    "system.base": "The linear address of the TSS or LDT; the upper half of the descriptor has bits 63:32 of it.",
    "system.type": "2 is an LDT, 9 an available TSS, 0xB a busy one, 0xC a call gate. LTR takes type 9 only and makes "
    "it 0xB, which needs a writable page.",
    "system.limit": "0x67 or more for a TSS; a TSS pointer beyond the limit raises #TS. An I/O permission bitmap lies "
    "within the limit too.",
    "system.zero": "Bits 12:8 of the last dword must be zero: they are where a type would be if the upper half were a "
    "descriptor of its own.",
    "call-gate.offset": "Where the call enters, a canonical linear address.",
    "call-gate.selector": "The 64-bit code segment that is entered.",
    "selector.index": "The slot in the GDT or LDT: the descriptor lies at 8 times this number.",
    "selector.ti": "Table indicator: 0 the GDT, 1 the LDT.",
    "selector.rpl": "Requested privilege level. That of CS is CPL; a null selector may have any.",
    "error-code.index": "The slot of the GDT or LDT, or with IDT=1 the vector, that the processor refused.",
    "error-code.ti": "With IDT=0: 0 the GDT, 1 the LDT.",
    "error-code.idt": "The index is a vector: a gate of the IDT was refused.",
    "error-code.ext": "The fault came while an event was delivered that the program did not ask for: an exception or a "
    "hardware interrupt, not INT n.",
    "page-fault-error.p": "0: an entry was not present. 1: the page is there, and the access was refused.",
    "page-fault-error.wr": "1: a write. A push of a frame is a write.",
    "page-fault-error.us": "1: the access was made with CPL 3. What delivery reads and writes is a supervisor's.",
    "page-fault-error.rsvd": "1: an entry has a reserved bit set, such as NX with EFER.NXE=0, or an address bit beyond "
    "MAXPHYADDR.",
    "page-fault-error.id": "1: an instruction fetch. Reported only with EFER.NXE or CR4.SMEP set.",
    "page-fault-error.pk": "1: a protection key refused the access.",
    "page-fault-error.ss": "1: a shadow-stack access.",
    "page-fault-error.hlat": "1: the fault came in hypervisor-managed linear-address translation.",
    "page-fault-error.sgx": "1: the enclave page cache refused the access.",
    "page-fault-error.rmp": "1: AMD's reverse map table refused the access.",
    "pseudo-descriptor.base": "The linear address of the table; LGDT and LIDT raise #GP where it is not canonical.",
    "pseudo-descriptor.limit": "The size of the table less one: 8 n - 1 for a GDT, 16 n - 1 for an IDT, 0xfff for all "
    "256 gates. A vector or selector beyond it raises #GP.",
    "tss.rsp0": "The stack pointer for an event that leaves ring 3 for ring 0 without an IST stack: its top, from "
    "where the frame is pushed down.",
    "tss.rsp1": "The stack pointer for a change to ring 1, which 64-bit systems do not make.",
    "tss.rsp2": "The stack pointer for a change to ring 2, which 64-bit systems do not make.",
    "tss.iopb": "Where the I/O permission bitmap begins, in bytes from the TSS. At the limit or beyond there is none, "
    "and every port is refused to ring 3; 0x68 says so with the usual limit of 0x67.",
    "frame.ss": "SS before the event. In ring 0 it may be null: an event from ring 3 loads a null SS.",
    "frame.rsp": "RSP before the event: where the interrupted program's stack ended.",
    "frame.rflags": "RFLAGS before the event; RF is set in the frame of a fault.",
    "frame.cs": "CS before the event; its RPL is the privilege level that was interrupted.",
    "frame.rip": "Where the program goes on: the instruction itself for a fault, the next one for a trap.",
    "error-frame.error_code": "What the exception pushes last; the handler takes it off the stack before IRETQ.",
}
for _number in range(1, 8):
    FIELDS[f"tss.ist{_number}"] = (
        f"The top of interrupt stack {_number}, which a gate with IST={_number} switches to, whatever RSP is. Linear, "
        "canonical, in mapped and writable memory; Rust's `interrupt_stack_table` calls it "
        f"[{_number - 1}]."
    )
_SHARED = {"p": _P, "s": _S, "limit": _LIMIT, "g": _G, "avl": _AVL, "base": _BASE}

_DELIVERY = "docs/delivery.md"
VERDICTS = {
    "survives": "The stack runs into a page that cannot be pushed to, and in the end a handler is entered that can be "
    "fetched and has the stack that any handler needs (--handler-stack). It may still be too short to print a panic: "
    "see the sizes of the interrupt stacks.",
    "triple-fault": "A fault comes while #DF is delivered, and the processor shuts down: the machine resets without a "
    "word. The last step of the trace is the check that failed, with what it read.",
    "loops": "Deliveries succeed, but the handler cannot run (it cannot be fetched, or its stack is not there), so the "
    "same events follow one another without end and without a reset: the machine hangs.",
    "unknown": "A page or a register that decides it is not in the image. The reason names it; a dump with it, or an "
    "option such as --registers, gives an answer.",
    "not-applicable": "The CPU is not in 64-bit mode, or was never started.",
    "guarded": "The page below the stack in use refuses a push, and it is known or near enough to be this stack's: an "
    "overflow faults before it damages anything.",
    "silent-corruption": "Below the stack in use lies memory that takes every push: an overflow overwrites it, and the "
    "fault comes later, somewhere else.",
    "not-judged": "The stack in use is an entry trampoline, which the kernel leaves at once: its size says nothing "
    "about the kernel's stacks.",
    "shutdown": "What the processor does when a fault comes while #DF is delivered. Most boards answer with a reset: a "
    "triple fault.",
}
SCENARIOS = {
    "stack-overflow": "The stack has run into the page below it: a push, a call or an interrupt at its edge, in each "
    "variant that ends in another way. The verdict of a CPU is this scenario's.",
    "current-stack": "An exception, an NMI and an interrupt on the stack as it was captured.",
    "double-fault-questions": "What is often asked about #DF: a page fault whose handler is swapped out, a breakpoint "
    "whose handler is, a divide error whose handler hits a breakpoint.",
    "syscall-gap": "NMI, #MC and #DB in the instructions after SYSCALL, when RSP is still the user's and CPL is 0.",
    "sysret": "The same right before SYSRET, and the #GP that SYSRET raises where RCX is not canonical: in ring 0 on "
    "the user's stack with Intel, in ring 3 with AMD.",
    "survival-matrix": "Every vector from ring 0 on a good stack, from ring 0 at the guard, and from ring 3.",
}
REGISTERS = {
    "cr0": "PE, WP and PG matter here. With WP=0 the supervisor writes to read-only pages, so that a read-only guard "
    "page guards nothing.",
    "cr2": "The linear address of the last page fault; #DF keeps that of the #PF before it.",
    "cr3": "The physical address of the top page table; its low bits (PCID) and bit 63 are no part of it.",
    "cr4": "PAE and LA57 choose the page tables, SMEP and SMAP refuse user pages to the supervisor, UMIP refuses SGDT "
    "and SIDT to ring 3, CET adds shadow stacks, FRED replaces the IDT.",
    "efer": "LME and LMA are long mode, NXE makes bit 63 of a page-table entry mean no-execute, SCE turns SYSCALL on.",
    "star": "Bits 47:32 are the selector that SYSCALL puts into CS (SS is the next one); bits 63:48 are what SYSRET "
    "starts from: CS is 16 more, SS 8 more, both with RPL 3.",
    "lstar": "The address that SYSCALL jumps to.",
    "fmask": "The RFLAGS bits that SYSCALL clears.",
    "gdtr": "Base and limit of the GDT, as LGDT loaded them.",
    "idtr": "Base and limit of the IDT, as LIDT loaded them; a VM exit sets the limit to 0xffff.",
    "tr": "The selector of the TSS, and a cached copy of its descriptor, used until the next LTR.",
    "ldtr": "The selector of the LDT, with a cached copy of its descriptor; null means there is none.",
    "rsp": "The stack pointer. A frame is pushed below it, aligned down to 16.",
    "rip": "The next instruction.",
    "rflags": "IF lets interrupts in; AC lets the supervisor touch user pages under SMAP; RF keeps a breakpoint from "
    "stopping the same instruction twice.",
    "cs": "The code segment. The low two bits of its selector are CPL.",
    "ss": "The stack segment. 64-bit mode ignores its base and limit, and allows a null selector in ring 0.",
}


def names() -> list[str]:
    """Every name that is explained, but for numbers."""
    mnemonics = list(vectors.BY_MNEMONIC)
    return [*VERDICTS, *SCENARIOS, *mnemonics, *REGISTERS, *STRUCTURES, *FIELDS]


def find(name: str) -> list[Topic]:
    """What a name means; more than one topic where several structures have the field. UsageError when none does."""
    plain = name.strip()
    word = plain.lower()
    if re.fullmatch(r"(?:#[a-z]{2}|nmi)", word) or (word.isascii() and word.isdecimal()):
        return [_vector(int(word) if word.isdecimal() else plain)]
    if far := re.fullmatch(r"(#[a-z]{2})\((0x[0-9a-f]{1,8})\)", word):
        return [_vector(far[1]), _error_code(int(far[2], 16), far[1] == "#pf")]
    if re.fullmatch(r"0x[0-9a-f]{1,8}", word):
        return [_error_code(int(word, 16), False), _error_code(int(word, 16), True)]
    for table, source in ((VERDICTS, _DELIVERY), (SCENARIOS, _DELIVERY), (REGISTERS, "SDM Vol. 3A, chapter 2")):
        if word in table:
            return [Topic(word, word, table[word], source)]
    place, _, rest = re.sub(r"\[[^]]*\]", "", word).partition(".")
    kinds = PLACES.get(place, (place,) if place in STRUCTURES else ())
    fields = rest.split(",") if rest else []
    found = [topic for kind in kinds for field in fields or [""] if (topic := _structure(kind, field)) is not None]
    if not found:
        raise UsageError(f"nothing is explained under {name!r}; `x86tables explain` lists the rules")
    return found


def _structure(kind: str, field: str) -> Topic | None:
    from .diagram import diagram

    layout = STRUCTURES[kind]
    if not field:
        said = " ".join((layout.__doc__ or "").split())
        return Topic(kind, f"{kind}: {layout.size} bytes", said, layout.cite, diagram(layout()))
    declared = next((each for each in layout.fields if each.name == field), None)
    if declared is None:
        return None
    bits = ", ".join(f"{high}:{low}" if high > low else f"{high}" for high, low in declared.pieces)
    said = FIELDS.get(f"{kind}.{field}") or FIELDS.get(f"frame.{field}") or _SHARED.get(field, _RESERVED)
    title = f"{kind}.{field}: bit{'s' if declared.width > 1 else ''} {bits} of {layout.size} bytes"
    return Topic(f"{kind}.{field}", title, said, layout.cite, "" if layout.size > 16 else diagram(layout()))


_KINDS = {
    "fault": "a fault (RIP is the instruction's own)",
    "trap": "a trap (RIP is the next instruction's)",
    "fault/trap": "a fault or a trap, by its cause",
    "abort": "an abort (the program cannot go on)",
    "interrupt": "an interrupt (between two instructions)",
}


def _vector(given: int | str) -> Topic:
    number = vectors.number(given)
    if number >= 32:
        said = "An interrupt: what reaches it is up to the interrupt controllers and INT n. Benign for #DF."
        return Topic(str(number), f"vector {number} ({number:#x})", said, "SDM Vol. 3A, chapter 6")
    row = vectors.EXCEPTIONS[number]
    code = "pushes an error code" if row.error_code else "pushes no error code"
    said = f"{row.name[:1].upper()}{row.name[1:]}; reported as {_KINDS[row.kind]}, and {code}. "
    if row.intel == vectors.DOUBLE_FAULT:
        said += "Any fault while it is delivered shuts the processor down, so its gate needs an IST stack."
    elif row.amd == row.intel:
        said += f"Its class for the double-fault decision is {row.intel!r}."
    else:
        said += f"Its class for the double-fault decision is {row.intel!r} with Intel, {row.amd!r} with AMD."
    return Topic(vectors.label(number), f"{vectors.label(number)}: vector {number}", said, _DELIVERY)


def _error_code(number: int, page_fault: bool) -> Topic:
    from .describe import meaning
    from .diagram import diagram

    layout: type[Layout] = PageFaultErrorCode if page_fault else SelectorErrorCode
    value = layout.from_int(number)
    of = "#PF" if page_fault else "#TS, #NP, #SS or #GP"
    said = meaning(value)
    said = f"{said[:1].upper()}{said[1:]}. With --in IMAGE, `x86tables decode` looks it up in the tables."
    return Topic(f"{number:#x}", f"{number:#x} as the error code of {of}", said, layout.cite, diagram(value))
