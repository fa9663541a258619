"""Rules: a clean machine has no finding; each mutation trips one rule and nothing else; real systems, argued."""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli import IMAGES, call, output, refused
from mutated import CHANGES, linux

from x86tables import Gate, Gdt, Idt, SegmentDescriptor, SystemDescriptor, Tss
from x86tables.checks import RULES, SEVERITIES, TABLES, USUAL, Report, judge
from x86tables.checks.selection import find, read_baseline, select, without
from x86tables.checks.stacks import has_red_zone
from x86tables.delivery.scenarios import run_scenario
from x86tables.errors import UsageError
from x86tables.machine.coverage import Coverage
from x86tables.machine.image import OpenOptions, Snapshot
from x86tables.machine.machine import Machine
from x86tables.machine.registers import (
    LMA,
    LME,
    MCE,
    PAE,
    PE,
    PG,
    SCE,
    SMAP,
    SMEP,
    UMIP,
    Registers,
    Segment,
    TableRegister,
)
from x86tables.machine.symbols import Symbols
from x86tables.machine.synthetic import Mapping, synthetic_machine
from x86tables.readers import open_image
from x86tables.render import findings
from x86tables.render.json.check import FindingJson, NotCheckedJson
from x86tables.tables.gdt import LegacySystemDescriptor
from x86tables.tables.legacy import LegacyGate

ROOT = Path(__file__).parent.parent
K = 0xFFFF_FFFF_8000_0000
GDT, IDT, TSS, CODE = K, K + 0x1000, K + 0x2000, K + 0x10_0000
NEXT = 0x20_0000  # from a CPU's tables and stacks to those of the next
CS, DS, UDS, UCS, TR, LDT = 0x08, 0x10, 0x18, 0x20, 0x28, 0x38
STAR = 0x0013_0008 << 32
IST = {1: 2, 2: 3, 8: 1, 18: 4}  # vector -> stack


def stack(number: int, cpu: int = 0) -> int:
    """The end of stack `number` of a CPU, 16 KiB above a guard; 0 is that of RSP0."""
    return K + 0x2_0000 + number * 0x5000 + 0x5000 + cpu * NEXT


def handler(vector: int) -> int:
    return CODE + vector * 16


class Kernel:
    """A kernel without a fault, with one CPU or two, for a mutation to spoil."""

    def __init__(self, cpus: int = 1) -> None:
        self.mappings = {
            "code": Mapping("code", CODE, 0x2000, "rx"),
            "program": Mapping("program", 0x40_0000, 0x1000, "rxu"),
        }
        self.idt = Idt()
        for vector in range(256):
            dpl = 3 if vector in (3, 4, 0x80) else 0
            self.idt[vector] = Gate.interrupt(handler(vector), CS, ist=IST.get(vector, 0), dpl=dpl)
        self.gdt, self.tss = [], []
        for cpu in range(cpus):
            names = ("GDT", "IDT", "TSS") if not cpu else ("GDT1", "IDT1", "TSS1")
            for name, base in zip(names, (GDT, IDT, TSS), strict=True):
                self.mappings[name] = Mapping(name, base + cpu * NEXT, 0x1000)
            for number in range(6):
                self.mappings[f"guard{number}" + "'" * cpu] = Mapping("guard", stack(number, cpu) - 0x5000, 0x1000, "")
                self.mappings[f"stack{number}" + "'" * cpu] = Mapping("stack", stack(number, cpu) - 0x4000, 0x4000)
            gdt = Gdt()
            gdt.append(SegmentDescriptor.kernel_code())
            gdt.append(SegmentDescriptor.kernel_data())
            gdt.append(SegmentDescriptor.user_data())
            gdt.append(SegmentDescriptor.user_code())
            gdt.append(SystemDescriptor.tss(TSS + cpu * NEXT).replace(type=0xB))
            self.gdt.append(gdt)
            tops = {f"ist{number}": stack(number, cpu) for number in range(1, 5)}
            self.tss.append(Tss(rsp0=stack(0, cpu), **tops))
        self.registers: list[dict[str, Any]] = [{"rsp": stack(0, cpu) - 0x100, "star": STAR} for cpu in range(cpus)]
        self.symbols = {handler(vector): f"isr{vector}" for vector in range(256)}
        self.below_rsp: list[str] = []
        self.producers = {"kernel.c": "GNU C17 12.2.0 -mno-red-zone -mtune=generic -g"}
        self.format, self.vendor, self.own_idt = "elfcore", "intel", False

    def mapping(self, name: str, permissions: str) -> None:
        self.mappings[name] = self.mappings[name].replace(permissions=permissions)

    def gate(self, *vectors: int, **changes: Any) -> None:
        for vector in vectors:
            self.idt[vector] = self.idt[vector].replace(**changes)

    def code(self, **changes: Any) -> None:
        self.gdt[0][CS] = SegmentDescriptor.kernel_code().replace(**changes)

    def descriptor(self, cpu: int = 0, **changes: Any) -> None:
        found = self.gdt[cpu][TR]
        assert isinstance(found, SystemDescriptor)
        self.gdt[cpu][TR] = found.replace(**changes)

    def pointers(self, cpu: int = 0, **changes: Any) -> None:
        self.tss[cpu] = self.tss[cpu].replace(**changes)

    def image(self) -> Snapshot:
        for cpu in range(1, len(self.gdt)):
            for name, data in (("GDT1", self.gdt[cpu]), ("TSS1", self.tss[cpu]), ("IDT1", self.idt)):
                if not self.mappings[name].data:
                    self.mappings[name] = self.mappings[name].replace(data=bytes(data))
        first = synthetic_machine(
            self.mappings.values(),
            gdt=(GDT, self.gdt[0]),
            idt=(IDT, self.idt),
            tss=(TSS, self.tss[0]),
            registers=Registers(**self.registers[0]),
            complete=True,
            vendor=self.vendor,
        )
        machines = [first]
        for cpu in range(1, len(self.gdt)):
            tr = self.gdt[cpu][TR]
            assert isinstance(tr, SystemDescriptor)
            own = {
                "gdtr": TableRegister(GDT + cpu * NEXT, self.gdt[cpu].limit),
                "idtr": TableRegister(IDT + (cpu * NEXT if self.own_idt else 0), self.idt.limit),
                "tr": Segment(TR, tr.base, tr.effective_limit, int.from_bytes(bytes(tr)[4:8], "little")),
            }
            registers = first.registers.replace(**own | self.registers[cpu])
            machines.append(Machine(registers, first.memory, cpu=cpu, vendor=self.vendor))
        symbols = Symbols(self.symbols.items(), compiled=self.compiled, below_rsp=lambda: tuple(self.below_rsp))
        return Snapshot("kernel", self.format, first.memory, tuple(machines), symbols)

    def compiled(self, how: Callable[[str], bool]) -> tuple[str, ...] | None:
        return tuple(name for name, producer in self.producers.items() if how(producer)) if self.producers else None


def found(reports: list[Report]) -> list[tuple[int, str, str, str]]:
    """(CPU, rule, severity, where) of every finding."""
    return [(r.machine.cpu, f.rule, f.severity, f.where) for r in reports for f in r.findings]


def as_json(report: Report) -> dict[str, Any]:
    """What `check --format json` has of it."""
    rows = {
        "findings": [FindingJson.of(finding) for finding in report.findings],
        "not_checked": [NotCheckedJson.of(gap) for gap in report.not_checked],
    }
    return dict(json.loads(json.dumps(rows)))


Mutation = Callable[[Kernel], object]


def tr(**changes: Any) -> Segment:
    """TR as it is in the clean machine, changed."""
    return Segment(TR, TSS, 0x67, 0x8B00).replace(**changes)


def set_register(**changes: Any) -> Mutation:
    return lambda k: k.registers[0].update(changes)


def declared(k: Kernel) -> None:
    """The same as a configuration: before LTR."""
    k.format = "config"
    k.descriptor(type=9)


def both(*mutations: Mutation) -> Mutation:
    return lambda k: [mutation(k) for mutation in mutations]


def shifted_tss(k: Kernel) -> None:
    """A structure without the reserved quadword before IST1."""
    k.pointers(reserved1=stack(1), ist1=stack(2), ist2=stack(3), ist3=stack(4), ist4=0)


def second_idt(k: Kernel) -> None:
    k.own_idt = True
    other = Idt.parse(bytes(k.idt))
    other[14] = other[14].replace(offset=handler(300))
    k.mappings["IDT1"] = k.mappings["IDT1"].replace(data=bytes(other))


def no_guard_at_all(k: Kernel) -> None:
    k.mappings["heap"] = Mapping("heap", K + 0x100_0000, 0x20_0000)
    k.pointers(ist1=K + 0x120_0000)


def fault_stack(k: Kernel) -> None:
    """#PF on a stack of its own: an overflow never becomes #DF."""
    k.gate(14, ist=5)
    k.pointers(ist5=stack(5))


def next_cpu_above(k: Kernel) -> None:
    """CPU 1's #DF stack right above that of CPU 0, whose guard is far below."""
    k.mappings["more"] = Mapping("more", stack(5), 0x1000)
    k.pointers(0, ist1=stack(5))
    k.pointers(1, ist1=stack(5) + 0x1000)


def machine_checks(k: Kernel) -> None:
    """CR4.MCE, without which no #MC is raised."""
    k.registers[0]["cr4"] = PAE | MCE


def bitmap(k: Kernel) -> None:
    """An I/O permission bitmap of 32 zero bytes."""
    k.descriptor(limit=0x87)


def odd_gdt(k: Kernel) -> None:
    k.mappings["odd"] = Mapping("odd", K + 0x4000, 0x1000, data=b"\0" + bytes(k.gdt[0]))
    k.registers[0]["gdtr"] = TableRegister(K + 0x4001, k.gdt[0].limit)


def odd_idt(k: Kernel) -> None:
    k.mappings["odd"] = Mapping("odd", K + 0x4000, 0x2000, data=b"\0" + bytes(k.idt))
    k.registers[0]["idtr"] = TableRegister(K + 0x4001, k.idt.limit)


def local_table(k: Kernel) -> None:
    """An LDT of two slots behind the TSS."""
    k.mappings["LDT"] = Mapping("LDT", K + 0x4000, 0x2000)
    k.gdt[0].append(SystemDescriptor.ldt(K + 0x4000, 0xF))


def narrow_idt(k: Kernel) -> None:
    """A table of 8-byte gates, as 32-bit code builds it: 256 of them in 2 KiB."""
    one = LegacyGate(selector=CS, p=True, type=0xE)
    k.idt = Idt.parse(b"".join(bytes(one.replace(offset=0x10_0000 + 16 * vector)) for vector in range(256)))


def narrow_tss(k: Kernel) -> None:
    """TSS descriptors of 8 bytes, one a CPU, in slots in a row; TR was loaded while the next one was empty."""
    upper = LegacySystemDescriptor(base=TSS + 0x80 & 0xFFFF_FFFF, limit=0x67, type=9, p=True)
    k.gdt[0] = Gdt.parse(bytes(k.gdt[0])[: TR + 8] + bytes(upper))


# rule, mutation, where, severity where it is not the rule's own, CPUs
MUTATIONS: list[tuple[str, Mutation, str, str, int]] = [
    ("GDT001", lambda k: k.mapping("GDT", ""), "gdt", "", 1),
    ("GDT002", lambda k: k.mapping("GDT", "rwu"), "gdt", "", 1),
    ("GDT003", both(lambda k: k.mapping("GDT", "r"), lambda k: k.code(type=0xA)), "gdt[1].type", "", 1),
    ("GDT004", both(declared, lambda k: k.mapping("GDT", "r")), "gdt[5].type", "", 1),
    ("GDT005", set_register(gdtr=TableRegister(GDT, 0x38)), "gdtr.limit", "", 1),
    ("GDT006", set_register(gdtr=TableRegister(GDT, 0xFFFF)), "gdtr.limit", "", 1),
    ("GDT007", set_register(gdtr=TableRegister(GDT, 0x27)), "gdtr.limit", "", 1),
    ("GDT007", set_register(gdtr=TableRegister(GDT, 0x2F)), "gdtr.limit", "", 1),
    ("GDT007", set_register(gdtr=TableRegister(GDT, 0x7)), "gdtr.limit", "", 1),
    ("GDT008", lambda k: k.code(d_b=True), "gdt[1].d_b", "", 1),
    ("GDT009", lambda k: k.code(p=False), "gdt[1]", "", 1),
    ("GDT009", lambda k: k.code(s=False), "gdt[1]", "", 1),
    ("GDT009", lambda k: k.code(l=False, d_b=True), "gdt[1]", "", 1),
    ("GDT010", lambda k: k.gdt[1].__setitem__(CS, SegmentDescriptor.kernel_code().replace(avl=True)), "gdt[1]", "", 2),
    ("GDT011", set_register(gdtr=TableRegister(stack(5) - 0x1000, 0x37)), "gdtr", "", 1),
    ("GDT011", set_register(gdtr=TableRegister(0, 0)), "gdtr", "", 1),
    ("GDT011", set_register(gdtr=TableRegister(IDT, 0x7F)), "gdtr", "", 1),
    ("GDT012", both(set_register(tr=tr()), narrow_tss), "gdt[5,6]", "", 1),
    ("GDT012", both(set_register(tr=tr(base=0x68_8000_2080)), narrow_tss), "gdt[5,6]", "", 1),
    ("GDT013", odd_gdt, "gdtr.base", "", 1),
    ("IDT001", lambda k: k.gate(8, p=False), "idt[8].p", "", 1),
    ("IDT001", both(fault_stack, lambda k: k.gate(8, p=False)), "idt[8].p", "warning", 1),
    ("IDT001", lambda k: k.gate(*range(256), p=False), "idt", "", 1),
    ("IDT002", lambda k: k.gate(13, 14, p=False), "idt[13,14].p", "", 1),
    ("IDT003", lambda k: k.gate(33, s=True), "idt[33].type", "", 1),
    ("IDT003", lambda k: k.gate(*range(40, 50), type=5), "idt[40..49].type", "", 1),
    ("IDT004", lambda k: k.gate(8, ist=0), "idt[8].ist", "", 1),
    ("IDT004", both(fault_stack, lambda k: k.gate(8, ist=0)), "idt[8].ist", "warning", 1),
    ("IDT005", lambda k: k.gate(40, selector=DS), "idt[40].selector", "", 1),
    ("IDT005", lambda k: k.gate(40, selector=0x58), "idt[40].selector", "", 1),
    ("IDT005", lambda k: k.gate(40, selector=3), "idt[40].selector", "", 1),
    ("IDT005", lambda k: k.gate(40, selector=UCS), "idt[40].selector", "", 1),
    ("IDT005", lambda k: k.gate(40, selector=CS | 4), "idt[40].selector", "", 1),
    ("IDT006", lambda k: k.gate(14, offset=handler(14) & (1 << 48) - 1), "idt[14].offset", "", 1),
    ("IDT007", lambda k: k.gate(14, offset=K + 0x100_0000), "idt[14].offset", "", 1),
    ("IDT007", lambda k: k.gate(14, offset=IDT), "idt[14].offset", "", 1),
    ("IDT007", lambda k: k.gate(40, offset=IDT), "idt[40].offset", "warning", 1),
    ("IDT007", lambda k: k.gate(22, offset=IDT), "idt[22].offset", "note", 1),
    ("IDT007", lambda k: k.gate(18, offset=IDT), "idt[18].offset", "note", 1),
    ("IDT007", both(machine_checks, lambda k: k.gate(18, offset=IDT)), "idt[18].offset", "", 1),
    ("IDT008", lambda k: k.gate(14, dpl=3), "idt[14].dpl", "", 1),
    ("IDT009", lambda k: k.gate(3, dpl=0), "idt[3].dpl", "", 1),
    ("IDT010", set_register(idtr=TableRegister(IDT, 0xFFE)), "idtr.limit", "", 1),
    ("IDT011", set_register(idtr=TableRegister(IDT, 7)), "idtr.limit", "", 1),
    ("IDT011", set_register(idtr=TableRegister(0, 0)), "idtr.limit", "", 1),
    ("IDT012", lambda k: k.mapping("IDT", ""), "idt", "", 1),
    ("IDT013", lambda k: k.mapping("IDT", "rwu"), "idt", "", 1),
    ("IDT014", lambda k: k.gate(2, ist=0), "idt[2].ist", "", 1),
    ("IDT014", both(machine_checks, lambda k: k.gate(18, ist=0)), "idt[18].ist", "", 1),
    ("IDT015", both(lambda k: k.gate(6, ist=5, type=0xF), lambda k: k.gate(48, ist=5), lambda k: k.pointers(ist5=stack(5))), "idt[6].type", "", 1),  # noqa: E501
    ("IDT016", lambda k: k.gate(0, offset=handler(14)), "idt[0,14].offset", "", 1),
    ("IDT016", lambda k: k.gate(9, 15, *range(20, 32), offset=handler(15)), "idt[9,15,20..31].offset", "note", 1),
    ("IDT017", lambda k: k.symbols.update({handler(8): "timer_irq"}), "idt[8].offset", "", 1),
    ("IDT017", lambda k: k.symbols.update({handler(8): "_ZN6Kernel12timerHandlerEv"}), "idt[8].offset", "", 1),
    ("IDT017", lambda k: k.symbols.update({handler(9): "handleIRQ1"}), "idt[9].offset", "", 1),
    ("IDT017", lambda k: k.symbols.update({handler(9): "KeyboardISR"}), "idt[9].offset", "", 1),
    ("IDT018", second_idt, "idt[14]", "", 2),
    ("IDT018", lambda k: k.registers[1].update(idtr=TableRegister(IDT, 0x1FF)), "idtr.limit", "", 2),
    ("IDT019", lambda k: k.gate(2, p=False), "idt[2].p", "", 1),
    ("IDT020", narrow_idt, "idt", "", 1),
    ("IDT021", odd_idt, "idtr.base", "", 1),
    ("TSS001", set_register(tr=Segment(0, 0, 0xFFFF)), "tr", "", 1),
    ("TSS002", both(set_register(tr=tr()), lambda k: k.descriptor(type=1)), "tr", "", 1),
    ("TSS002", set_register(tr=tr(selector=0x48)), "tr", "", 1),
    ("TSS002", both(set_register(tr=tr()), lambda k: k.descriptor(p=False)), "tr", "", 1),
    ("TSS003", both(set_register(tr=tr()), lambda k: k.descriptor(base=TSS & 0xFFFF_FFFF)), "tr.base", "", 1),
    ("TSS003", both(set_register(tr=tr(limit=0x77)), lambda k: k.pointers(iopb=0xFFFF)), "tr.limit", "", 1),
    ("TSS003", both(set_register(tr=tr()), lambda k: k.descriptor(limit=0x77)), "tr.limit", "note", 1),
    ("TSS004", both(declared, lambda k: k.descriptor(type=0xB)), "gdt[5].type", "", 1),
    ("TSS005", lambda k: k.descriptor(type=9), "gdt[5].type", "", 1),
    ("TSS006", lambda k: k.descriptor(limit=0x2A), "tr.limit", "", 1),
    ("TSS006", lambda k: k.descriptor(limit=0x4F), "tr.limit", "warning", 1),
    ("TSS006", both(lambda k: k.descriptor(limit=0x4A), lambda k: k.gate(29, ist=5)), "tr.limit", "warning", 1),
    ("TSS007", lambda k: k.descriptor(g=True), "gdt[5].g", "", 1),
    ("TSS008", lambda k: k.mapping("TSS", ""), "tss", "", 1),
    ("TSS008", both(set_register(tr=tr(base=TSS & 0xFFFF_FFFF)), lambda k: k.descriptor(base=TSS & 0xFFFF_FFFF)), "tss", "", 1),  # noqa: E501
    ("TSS009", lambda k: k.mapping("TSS", "rwu"), "tss", "", 1),
    ("TSS010", lambda k: k.pointers(iopb=0), "tss.iopb", "", 1),
    ("TSS011", bitmap, "tss.iopb", "", 1),
    ("TSS012", lambda k: k.descriptor(1, base=TSS), "tr.base", "", 2),
    ("TSS013", lambda k: k.pointers(ist1=0), "tss.ist1", "", 1),
    ("TSS013", lambda k: k.pointers(rsp0=0), "tss.rsp0", "warning", 1),
    ("TSS013", lambda k: k.gate(29, ist=5), "tss.ist5", "note", 1),
    ("TSS013", both(fault_stack, lambda k: k.pointers(ist1=0)), "tss.ist1", "warning", 1),
    ("TSS014", shifted_tss, "tss.reserved1", "", 1),
    ("TSS014", lambda k: k.pointers(reserved2=1), "tss.reserved2", "warning", 1),
    ("TSS015", lambda k: k.pointers(ist1=stack(1) & (1 << 48) - 1), "tss.ist1", "", 1),
    ("STK001", lambda k: k.pointers(ist1=stack(1) - 0x4000), "tss.ist1", "", 1),
    ("STK001", lambda k: k.mapping("stack1", "r"), "tss.ist1", "", 1),
    ("STK001", lambda k: k.mapping("stack4", "r"), "tss.ist4", "note", 1),
    ("STK001", both(machine_checks, lambda k: k.mapping("stack4", "r")), "tss.ist4", "", 1),
    ("STK001", both(lambda k: k.gate(29, ist=5), lambda k: k.pointers(ist5=CODE)), "tss.ist5", "note", 1),
    ("STK001", both(fault_stack, lambda k: k.mapping("stack1", "")), "tss.ist1", "warning", 1),
    ("STK002", lambda k: k.mapping("guard2", "rw"), "tss.ist2", "", 1),
    ("STK002", no_guard_at_all, "tss.ist1", "", 1),
    ("STK002", next_cpu_above, "tss.ist1", "", 2),
    ("STK003", lambda k: k.pointers(ist1=IDT + 0x1000), "tss.ist1", "error", 1),
    ("STK003", lambda k: k.pointers(ist1=GDT + 0x40), "tss.ist1", "error", 1),
    ("STK003", lambda k: k.pointers(rsp0=TSS + 0x70), "tss.rsp0", "error", 1),
    ("STK003", lambda k: k.pointers(ist2=stack(1) - 64), "tss.ist1", "", 1),
    ("STK003", lambda k: k.pointers(ist1=stack(1) - 0x4000 + 64), "tss.ist1", "error", 1),
    ("STK003", lambda k: k.pointers(ist2=stack(2) - 0x4000 + 64), "tss.ist2", "", 1),
    ("STK004", lambda k: k.pointers(ist1=stack(1) - 8), "tss.ist1", "", 1),
    ("STK005", lambda k: k.gate(2, ist=1), "tss.ist1", "", 1),
    ("STK005", lambda k: k.pointers(ist2=stack(4), ist4=stack(4)), "tss.ist2,ist4", "note", 1),
    ("STK005", both(machine_checks, lambda k: k.pointers(ist2=stack(4), ist4=stack(4))), "tss.ist2,ist4", "warning", 1),
    ("STK005", lambda k: k.gate(18, ist=1), "tss.ist1", "note", 1),
    ("STK005", both(machine_checks, lambda k: k.gate(18, ist=1)), "tss.ist1", "", 1),
    ("STK005", lambda k: k.pointers(rsp0=stack(2)), "tss.rsp0,ist2", "", 1),
    ("STK005", lambda k: k.pointers(rsp0=stack(1)), "tss.rsp0,ist1", "warning", 1),
    ("STK005", lambda k: k.gate(13, ist=1), "tss.ist1", "warning", 1),
    ("STK005", both(lambda k: k.pointers(ist5=stack(5)), lambda k: k.gate(48, 49, ist=5)), "tss.ist5", "note", 1),
    ("STK006", lambda k: k.pointers(1, ist1=stack(1)), "tss.ist1", "", 2),
    ("STK007", lambda k: k.mapping("stack1", "rwu"), "tss.ist1", "", 1),
    ("STK008", lambda k: k.producers.update({"string.c": "GNU C17 12.2.0 -mtune=generic -g -O2"}), "rsp", "", 1),
    ("STK008", both(lambda k: k.producers.clear(), lambda k: k.below_rsp.append("core::fmt::write")), "rsp", "", 1),
    ("REG001", set_register(cs=Segment(DS, flags=0xAF9B00)), "cs", "", 1),
    ("REG001", set_register(cs=Segment(UCS, flags=0xAF9B00)), "cs", "", 1),
    ("REG002", set_register(ss=Segment(CS)), "ss", "", 1),
    ("REG003", set_register(ds=Segment(TR)), "ds", "", 1),
    ("REG002", lambda k: k.gdt[0].__setitem__(DS, SegmentDescriptor.kernel_data().replace(type=1)), "ss", "", 1),
    ("REG004", lambda k: k.registers[1].update(cr0=PE | PG), "cr0.wp", "", 2),
    ("REG004", both(set_register(cr4=PAE | SMEP | SMAP | UMIP), lambda k: k.registers[1].update(cr4=PAE | SMAP)), "cr4.umip,smep", "", 2),  # noqa: E501
    ("REG005", set_register(cs=Segment(CS, flags=0xAF9F00)), "cs.conforming", "", 1),
    ("REG005", both(local_table, set_register(ldtr=Segment(LDT, K + 0x5000, 0xF, 0x8200))), "ldtr.base", "", 1),
    ("REG005", both(local_table, set_register(ldtr=Segment(LDT, K + 0x4000, 0xFF, 0x8200))), "ldtr.limit", "", 1),
    ("REG005", set_register(ldtr=Segment(DS, K + 0x4000, 0xF, 0x8200)), "ldtr", "", 1),
    ("SYS001", set_register(star=0x0013_0010 << 32), "star[47:32]", "", 1),
    ("SYS001", set_register(star=0), "star[47:32]", "", 1),
    ("SYS002", set_register(star=0x000B_0008 << 32), "star[63:48]", "", 1),
    ("SYS003", set_register(star=0x0010_0008 << 32), "star[63:48]", "warning", 1),
    ("SYS003", both(set_register(star=0x0010_0008 << 32), lambda k: setattr(k, "vendor", "amd")), "star[63:48]", "", 1),
    ("SYS003", set_register(star=0x0013_000B << 32), "star[47:32]", "", 1),
]  # fmt: skip


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("vendor", ["intel", "amd"])
def test_clean(cpus: int, vendor: str) -> None:
    kernel = Kernel(cpus)
    kernel.vendor = vendor
    for report in judge(kernel.image()):
        assert report.findings == ()
        assert report.not_checked == ()


def test_without_a_tss_what_is_never_raised_is_a_note() -> None:
    kernel = Kernel()
    set_register(tr=Segment(0, 0, 0xFFFF), star=0)(kernel)
    kernel.gdt[0] = Gdt()
    kernel.gdt[0].append(SegmentDescriptor.kernel_code())
    kernel.gdt[0].append(SegmentDescriptor.kernel_data())
    kernel.gate(*range(256), ist=0, dpl=0)
    kernel.gate(29, ist=5)
    assert [row for row in found(judge(kernel.image())) if row[1] == "TSS001"] == [(0, "TSS001", "note", "tr")]
    kernel.gate(2, ist=1)
    assert (0, "TSS001", "error", "tr") in found(judge(kernel.image()))


def test_a_monitor_needs_tr() -> None:
    """Only where that is asked for: firmware runs without."""
    kernel = Kernel()
    clean = kernel.image()
    set_register(tr=Segment(0, 0, 0xFFFF))(kernel)
    kernel.gate(*range(256), ist=0)
    null = kernel.image()
    for image, rows in ((clean, []), (null, [(0, "TSS016", "note", "tr")])):
        before, after = (found(judge(image, rules=select((), (), profile))) for profile in (None, "vmx-root"))
        assert [row for row in after if row not in before] == rows
    machine = clean.machines[0]
    unknown = clean.replace(machines=(machine.replace(machine.registers.replace(tr=None)),))
    (report,) = judge(unknown, rules=select(["TSS016"], (), "vmx-root"))
    assert [gap.needs for gap in report.not_checked] == ["TR is not known"]


def test_copies_in_compatibility_mode() -> None:
    """There base, limit and size of CS and SS count, and the bits that SYSCALL sets do not; in 64-bit mode none do."""
    kernel = Kernel()
    kernel.gdt[0].append(SystemDescriptor.ldt(K + 0x4000, 0xF))
    flat = int(SegmentDescriptor.kernel_code().replace(l=False, d_b=True)) >> 32
    kernel.gdt[0].append(SegmentDescriptor.kernel_code().replace(l=False, d_b=True))
    selector = 0x48
    for flags, base, limit, expected in (
        (flat | 0x10_0000, 0, 0xFFFFFFFF, []),  # AVL
        (flat, 0x1000, 0xFFFFF, ["cs.base,limit"]),
        (flat & ~0x40_0000, 0, 0xFFFFFFFF, ["cs.d_b"]),
    ):
        set_register(cs=Segment(selector, base, limit, flags))(kernel)
        (report,) = judge(kernel.image())
        assert report.machine.mode == "compat"
        assert [finding.where for finding in report.findings if finding.rule == "REG005"] == expected
    set_register(cs=Segment(CS, 0x1000, 0xFFF, int(SegmentDescriptor.kernel_code().replace(type=9)) >> 32))(kernel)
    assert found(judge(kernel.image())) == []


def test_execute_disable_off_on_one_cpu() -> None:
    kernel = Kernel(2)
    kernel.registers[1]["efer"] = SCE | LME | LMA
    first, second = judge(kernel.image())
    assert first.findings == ()
    (finding,) = (finding for finding in second.findings if finding.rule == "REG004")
    assert (finding.where, finding.message) == ("efer.nxe", "EFER.NXE is clear, but set on CPU 0")
    kernel.registers[1]["efer"] = None
    assert ("REG004", "EFER is not known") in [(gap.rule, gap.needs) for gap in judge(kernel.image())[1].not_checked]


@pytest.mark.parametrize(
    ("producer", "expected"),
    [
        ("GNU C17 12.2.0 -mtune=generic -march=x86-64 -g -O2 -ffreestanding", True),
        ("GNU C17 12.2.0 -mno-red-zone -mtune=generic -march=x86-64", False),
        ("GNU C17 12.2.0 -mno-red-zone -mred-zone -march=x86-64", True),
        ("GNU C17 12.2.0 -m32 -mtune=generic", False),
        ("GNU C17 12.2.0 -mabi=ms -mtune=generic", False),
        ("clang version 16.0.6 /usr/bin/clang -c -g -ffreestanding kernel.c", True),
        ("clang version 16.0.6 /usr/bin/clang -c -g -mno-red-zone kernel.c", False),
        ("clang version 16.0.6 /usr/bin/clang --target=x86_64-unknown-windows -c kernel.c", False),
        ("clang version 16.0.6", False),
        ("clang LLVM (rustc version 1.75.0 (82e1608df 2023-12-21))", False),
    ],
)
def test_what_tells_of_a_red_zone(producer: str, expected: bool) -> None:
    assert has_red_zone(producer) == expected


def test_clean_configuration() -> None:
    kernel = Kernel()
    declared(kernel)
    assert found(judge(kernel.image())) == []


def test_pages_of_a_large_gdt_that_nobody_names_are_not_judged() -> None:
    kernel = Kernel()
    kernel.mappings["other"] = Mapping("other", K + 0x3000, 0x1000, data=b"\xff" * 0x1000)
    set_register(gdtr=TableRegister(GDT, 0x3FFF))(kernel)
    assert found(judge(kernel.image())) == []
    kernel.code(d_b=True)
    assert {(rule, where) for _, rule, _, where in found(judge(kernel.image()))} == {("GDT008", "gdt[1].d_b")}


@pytest.mark.parametrize(
    ("rule", "mutate", "where", "severity", "cpus"), MUTATIONS, ids=[f"{m[0]}-{n}" for n, m in enumerate(MUTATIONS)]
)
def test_mutation(rule: str, mutate: Mutation, where: str, severity: str, cpus: int) -> None:
    """The rule, at its place, and nothing unrelated; and the JSON of it."""
    kernel = Kernel(cpus)
    mutate(kernel)
    reports = judge(kernel.image())
    assert found(reports) == [(cpus - 1, rule, severity or find(rule).severity, where)]
    finding = reports[-1].findings[0]
    assert as_json(reports[-1])["findings"] == [
        {"rule": rule, "severity": finding.severity, "where": where, "message": finding.message}
    ]
    assert reports[-1].failed == (finding.severity == "error")


def test_every_rule_is_documented_tested_unique_and_in_order() -> None:
    identifiers = [rule.id for rule in RULES]
    assert len(set(identifiers)) == len(identifiers)
    order = list(TABLES)
    assert identifiers == sorted(identifiers, key=lambda name: (order.index(name[:3]), name))
    assert {m[0] for m in MUTATIONS} == {rule.id for rule in USUAL}, (
        "a rule without a mutation in MUTATIONS, or the reverse"
    )
    for rule in RULES:
        assert re.fullmatch(f"({'|'.join(TABLES)})[0-9]{{3}}", rule.id)
        assert rule.severity in SEVERITIES
        assert list(rule.sections) == ["Why", "Fix", "Bad", "Good"], rule.id
        assert all(rule.sections.values()), rule.id
        assert re.search(r"SDM Vol\. [123][ABC]?, ", rule.sections["Why"]), f"{rule.id} cites nothing"
        assert rule.sections["Bad"] != rule.sections["Good"]
        assert rule.title[0] not in ". " and not rule.title.endswith(".") and len(rule.title) < 100


def test_docs_are_generated() -> None:
    """`make docs` writes the page again."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-m", "x86tables.checks"]
    page = subprocess.run(run, capture_output=True, text=True, check=True, env=environment, timeout=60).stdout
    assert (ROOT / "docs/rules.md").read_text() == page, "docs/rules.md is stale: make docs"


# What the messages tell


def message(*mutations: Mutation) -> str:
    kernel = Kernel()
    both(*mutations)(kernel)
    (finding,) = judge(kernel.image())[0].findings
    return str(finding.message)


def test_messages_name_handlers_and_hints() -> None:
    assert "(isr8)" in message(lambda k: k.gate(8, ist=0))
    assert "did you mean IST4?" in message(lambda k: k.gate(18, ist=5))
    assert "is it the stack's lowest address?" in message(lambda k: k.pointers(ist1=stack(1) - 0x4000))
    assert "8-byte gates of 32-bit mode, 256 of them present" in message(narrow_idt)
    assert "with base 0x80002080: 64-bit mode takes both for one" in message(set_register(tr=tr()), narrow_tss)
    assert "0x68 is at offset 0x40, in IST4: was it meant for offset 0x66?" in message(
        lambda k: k.pointers(iopb=0, ist4=0x68 << 32), lambda k: k.gate(18, ist=0)
    )
    assert "0x68 is" not in message(lambda k: k.pointers(iopb=0))
    assert "bits 63:32 are lost" in message(set_register(tr=tr()), lambda k: k.descriptor(base=TSS & 0xFFFF_FFFF))
    low = both(set_register(tr=tr(base=TSS & 0xFFFF_FFFF)), lambda k: k.descriptor(base=TSS & 0xFFFF_FFFF))
    assert f"{TSS:#x} is mapped: bits 63:32 of the base are lost" in message(low)
    assert message(set_register(tr=Segment(0, 0, 0xFFFF))) == (
        "gate #DF asks for IST1, but no TSS is loaded: TR is null"
    )
    assert "leaves out 0x28 (TR)" in message(set_register(gdtr=TableRegister(GDT, 0x27)))


def test_one_finding_for_a_stack_of_many_vectors() -> None:
    kernel = Kernel()
    kernel.gate(*range(32), ist=1)
    kernel.mapping("stack1", "")
    rules = [rule for _, rule, _, _ in found(judge(kernel.image()))]
    assert rules.count("STK001") == 1


# What can be reached, and what is not known


def test_nothing_is_said_of_what_nobody_uses() -> None:
    kernel = Kernel()
    kernel.pointers(ist6=0x1234, ist7=1 << 63, rsp1=3, rsp2=0x7FFD_6968_3138)
    kernel.gdt[0].append(SegmentDescriptor.kernel_data())
    kernel.mappings["GDT"] = kernel.mappings["GDT"].replace(size=0x1000)
    kernel.registers[0]["gdtr"] = TableRegister(GDT, 0x1FFF)  # its second page is the IDT, which nothing names
    assert found(judge(kernel.image())) == []


def test_a_table_whose_first_pages_nobody_uses() -> None:
    """A GDT whose descriptors start in its second page; the first is not mapped."""
    kernel = Kernel()
    kernel.gate(*range(256), selector=CS + 0x1000)
    kernel.registers[0].update(
        gdtr=TableRegister(GDT - 0x1000, 0x1037),
        cs=Segment(CS + 0x1000, flags=0xAF9B00),
        ss=Segment(DS + 0x1000),
        tr=tr(selector=TR + 0x1000),
        star=STAR + (0x1000_1000 << 32),
    )
    assert found(judge(kernel.image())) == []


@pytest.mark.parametrize(
    ("name", "irq"),
    [
        ("timer_irq", True),
        ("default_irq_handler", True),
        ("_ZN6kernel23keyboard_interrupt_handler17h0123456789abcdefE", True),
        ("asm_exc_machine_check", False),
        ("page_fault_timer", False),
        ("spit", False),
        ("irrelevant", False),
    ],
)
def test_names_of_interrupt_handlers(name: str, irq: bool) -> None:
    kernel = Kernel()
    kernel.symbols[handler(9)] = name
    assert [rule for _, rule, _, _ in found(judge(kernel.image()))] == ["IDT017"] * irq


def test_without_ring_3_its_rules_are_silent() -> None:
    kernel = Kernel()
    kernel.gdt[0][UCS] = kernel.gdt[0][UDS] = SegmentDescriptor()
    kernel.registers[0].update(star=0, efer=0xD00)
    for name in ("GDT", "IDT", "TSS", "stack1"):
        kernel.mapping(name, "rwu")
    kernel.pointers(rsp0=0, iopb=0)
    kernel.gate(3, dpl=0)
    kernel.gate(2, ist=0)
    assert found(judge(kernel.image())) == []


def test_a_null_tr_is_fine_where_nothing_needs_one() -> None:
    kernel = Kernel()
    kernel.gdt[0][UCS] = kernel.gdt[0][UDS] = SegmentDescriptor()
    kernel.registers[0].update(star=0, efer=0xD00, tr=Segment(0, 0, 0xFFFF))
    kernel.gate(*IST, ist=0)
    assert found(judge(kernel.image())) == [(0, "IDT004", "error", "idt[8].ist")]


@pytest.mark.parametrize(
    ("mutate", "rule", "where", "severity"),
    [
        (lambda k: k.descriptor(g=True), "TSS007", "gdt[5].g", "error"),
        (lambda k: k.pointers(reserved2=1), "TSS014", "tss.reserved2", "warning"),
    ],
)
def test_a_flaw_of_a_tss_that_nothing_uses_is_a_note(mutate: Mutation, rule: str, where: str, severity: str) -> None:
    """No gate has an IST and there is no ring 3, as in a boot loader or a decompressor."""
    kernel = Kernel()
    kernel.gdt[0][UCS] = kernel.gdt[0][UDS] = SegmentDescriptor()
    kernel.registers[0].update(star=0, efer=0xD00)
    kernel.gate(*IST, ist=0)
    mutate(kernel)
    assert found(judge(kernel.image())) == [(0, "IDT004", "error", "idt[8].ist"), (0, rule, "note", where)]
    kernel.gdt[0][UCS] = SegmentDescriptor.user_code()
    assert (0, rule, severity, where) in found(judge(kernel.image())), "RSP0 is used when ring 3 is interrupted"


def test_a_host_that_has_run_a_virtual_machine_has_notes_only() -> None:
    """A VM exit leaves limit 0x67 in TR, and 0xffff in GDTR and IDTR."""
    kernel = Kernel()
    kernel.descriptor(limit=0x4087)
    kernel.registers[0].update(tr=tr(), gdtr=TableRegister(GDT, 0xFFFF), idtr=TableRegister(IDT, 0xFFFF))
    (report,) = judge(kernel.image())
    assert found([report]) == [(0, "GDT006", "note", "gdtr.limit"), (0, "TSS003", "note", "tr.limit")]
    assert all("VM exit" in finding.message for finding in report.findings)
    assert not report.failed
    kernel.registers[0].update(tr=tr(limit=0x4086), gdtr=TableRegister(GDT, kernel.gdt[0].limit))
    kernel.pointers(iopb=0xFFFF)
    assert found(judge(kernel.image())) == [(0, "TSS003", "error", "tr.limit")]


def test_an_idt_limit_of_0_on_purpose_can_be_accepted_as_explain_says(tmp_path: Path) -> None:
    kernel = Kernel()
    kernel.registers[0]["idtr"] = TableRegister(IDT, 0)
    reports = judge(kernel.image())
    text = find("IDT011").sections["Why"]
    assert "`--ignore IDT011`" in text
    known = tmp_path / "known.json"
    known.write_text(text[text.index("{") : text.rindex("}") + 1])
    assert [rule for _, rule, _, _ in found(reports)] == ["IDT011"]
    assert found(without(reports, read_baseline(str(known)))) == []


def lacking(kernel: Kernel, **registers: Any) -> dict[str, str]:
    """Rule -> what it needs, with some registers not known."""
    image = kernel.image()
    (machine,) = image.machines
    told = machine.registers.replace(**registers)
    (report,) = judge(image.replace(machines=(machine.replace(registers=told, declared=None),)))
    assert report.findings == ()
    return {gap.rule: gap.needs for gap in report.not_checked}


def test_what_is_not_known_is_not_checked() -> None:
    assert set(lacking(Kernel(), star=None)) == {"SYS001", "SYS002", "SYS003"}
    assert lacking(Kernel(), efer=None, star=0) == dict.fromkeys(
        ("SYS001", "SYS002", "SYS003"), "EFER is not known (bit SCE: is SYSCALL in use)"
    )
    assert lacking(Kernel(), cs=None)["REG001"] == "CS is not known"
    unknown = lacking(Kernel(), tr=None)
    assert {"TSS001", "TSS002", "TSS006", "STK001"} <= set(unknown) and unknown["TSS001"] == "TR is not known"
    assert {"IDT001", "IDT012", "GDT001"} <= set(lacking(Kernel(), idtr=None))
    kernel = Kernel()
    kernel.symbols = {}
    assert list(lacking(kernel)) == ["IDT017"]


def test_what_another_cpu_lacks() -> None:
    image = Kernel(2).image()
    first, second = image.machines
    first = first.replace(registers=first.registers.replace(tr=None))
    reports = judge(image.replace(machines=(first, second)))
    assert {gap.rule: gap.needs for gap in reports[1].not_checked} == dict.fromkeys(
        ("TSS012", "STK002", "STK003", "STK006"), "CPU 0: TR is not known"
    )


def test_with_fred_there_is_no_idt_to_judge() -> None:
    kernel = Kernel()
    kernel.gate(8, ist=0)
    image = kernel.image()
    (machine,) = image.machines
    fred = machine.registers.replace(cr4=machine.registers.cr4 | 1 << 32 if machine.registers.cr4 else 1 << 32)
    (report,) = judge(image.replace(machines=(machine.replace(registers=fred),)))
    assert report.findings == ()
    assert {gap.rule[:3] for gap in report.not_checked} == {"IDT", "TSS", "STK"}


def test_an_idt_limit_of_0xffff_is_no_finding() -> None:
    kernel = Kernel()
    kernel.registers[0]["idtr"] = TableRegister(IDT, 0xFFFF)
    assert found(judge(kernel.image())) == []


def test_efer_is_asked_for_only_where_it_decides() -> None:
    kernel = Kernel()
    assert "IDT014" not in lacking(kernel, efer=None)
    kernel.gate(2, ist=0)
    assert "IDT014" in lacking(kernel, efer=None, star=None)
    (machine,) = kernel.image().machines
    told = machine.replace(machine.registers.replace(efer=None), declared=None)
    assert "EFER.SCE=1 (STAR names segments)" in told.assumed
    assert [f.rule for f in judge(kernel.image().replace(machines=(told,)))[0].findings] == ["IDT014"]


def test_undeclared_memory_below_a_stack() -> None:
    kernel = Kernel()
    del kernel.mappings["guard1"]
    image = kernel.image()
    known = Coverage(range(mapping.address, mapping.address + mapping.size) for mapping in kernel.mappings.values())
    (report,) = judge(image.replace(machines=(image.machines[0].replace(declared=known),)))
    assert report.findings == ()
    assert {gap.rule for gap in report.not_checked} == {"STK002", "STK003"}
    assert "the configuration says nothing of" in report.not_checked[0].needs


def test_a_table_that_the_image_does_not_hold() -> None:
    """The page tables are there, the IDT's page is not."""
    kernel = Kernel()
    image = kernel.image()
    (machine,) = image.machines
    frame = machine.translate(IDT) & -0x1000
    memory = type(image.memory)(
        (piece.start, len(piece), image.memory.read(piece.start, len(piece)), 0)
        for whole in image.memory.ranges
        for piece in (range(whole.start, frame), range(frame + 0x1000, whole.stop))
        if whole.start <= frame < whole.stop
    )
    (report,) = judge(image.replace(machines=(machine.replace(memory=memory),)))
    assert report.findings == ()
    assert {gap.rule for gap in report.not_checked} >= {"IDT001", "IDT004", "IDT005", "TSS013", "STK001"}
    assert all(f"physical page {frame:#x}" in gap.needs for gap in report.not_checked)


def test_two_cpus_share_what_is_theirs_to_share() -> None:
    """RSP0 belongs to whoever runs now: the same on two CPUs is no finding unless both are at ring 3."""
    kernel = Kernel(2)
    kernel.pointers(1, rsp0=stack(0))
    assert found(judge(kernel.image())) == []


def test_a_cpu_can_be_judged_alone_and_is_still_seen_beside_the_others() -> None:
    kernel = Kernel(2)
    kernel.descriptor(1, base=TSS)
    image = kernel.image()
    assert found(judge(image, image.machines[:1])) == []
    assert found(judge(image, image.machines[1:])) == [(1, "TSS012", "error", "tr.base")]


@pytest.mark.parametrize("seed", range(60))
def test_damaged_machines_are_judged(seed: int) -> None:
    """Whatever is in the tables and registers, the rules have an answer; what they find can be read."""
    draw = random.Random(seed)
    kernel = Kernel(2)
    gdt, idt, tss = bytearray(bytes(kernel.gdt[0])), bytearray(bytes(kernel.idt)), bytearray(bytes(kernel.tss[0]))
    for table in (gdt, idt[: 32 * 16], tss):
        for _ in range(draw.randrange(6)):
            table[draw.randrange(len(table))] = draw.randrange(256)
    for _ in range(draw.randrange(40)):
        idt[draw.randrange(4096)] ^= 1 << draw.randrange(8)
    kernel.gdt[0], kernel.idt, kernel.tss[0] = Gdt.parse(gdt), Idt.parse(idt), Tss.parse(tss)
    for name in draw.sample(sorted(kernel.mappings), 3):
        kernel.mapping(name, draw.choice(["", "r", "rw", "rwu", "rwxu"]))
    image = kernel.image()
    r = image.machines[0].registers
    changes: dict[str, Any] = {}
    for name in draw.sample(sorted(r.asdict()), 4):
        value = getattr(r, name)
        if isinstance(value, TableRegister):
            limits = (0, 7, 0x27, 0x1000, 0xFFFF, value.limit)
            changes[name] = TableRegister(draw.choice([value.base, draw.getrandbits(64)]), draw.choice(limits))
        elif isinstance(value, Segment):
            changes[name] = value.replace(selector=draw.randrange(0x50), base=draw.choice([value.base, 1 << 63]))
        elif isinstance(value, int) and name not in ("cr0", "cr4"):
            changes[name] = draw.choice([None, 0, draw.getrandbits(64)])
    machines = (image.machines[0].replace(registers=r.replace(**changes)), image.machines[1])
    for report in judge(image.replace(machines=machines)):
        for line in findings.lines(report):
            assert line.isprintable()
        assert as_json(report)


@pytest.mark.parametrize("seed", range(40))
def test_what_does_not_survive_has_an_error(seed: int) -> None:
    """A bit or two wrong in a table, drawn until a stack overflow ends badly: some rule says why."""
    draw = random.Random(seed)
    while run_scenario("stack-overflow", (image := _with_wrong_bits(draw)).machines[0]).verdict == "survives":
        pass
    (report,) = judge(image)
    assert report.failed


def _with_wrong_bits(draw: random.Random) -> Snapshot:
    """Most in what the delivery of #DF reads: its code segment, its gate, IST1; the others anywhere."""
    kernel = Kernel()
    gdt, idt, tss = bytearray(bytes(kernel.gdt[0])), bytearray(bytes(kernel.idt)), bytearray(bytes(kernel.tss[0]))
    read = [(gdt, range(CS, CS + 8)), (idt, range(8 * 16, 9 * 16)), (tss, range(0x24, 0x2C))]
    anywhere = [(gdt, range(len(gdt))), (idt, range(8 * 16, 15 * 16)), (tss, range(104))]
    for _ in range(draw.randrange(1, 3)):
        table, places = draw.choice(draw.choice([read, read, anywhere]))
        table[draw.choice(places)] ^= 1 << draw.randrange(8)
    kernel.gdt[0], kernel.idt, kernel.tss[0] = Gdt.parse(gdt), Idt.parse(idt), Tss.parse(tss)
    kernel.registers[0]["tr"] = tr()
    return kernel.image()


# Selection


def test_select_and_ignore() -> None:
    assert [rule.id for rule in select(["SYS,STK002"])] == ["STK002", "SYS001", "SYS002", "SYS003"]
    assert {rule.table for rule in select(ignore=["GDT", "idt"])} == {"TSS", "STK", "REG", "SYS"}
    assert [rule.id for rule in select(["GDT00"], ["GDT001,GDT002", "GDT003"])][:2] == ["GDT004", "GDT005"]
    assert select() == USUAL
    assert [rule.id for rule in select(["TSS01"], profile="vmx-root")][-1] == "TSS016"
    with pytest.raises(UsageError, match="--profile kvm: one of vmx-root"):
        select(profile="kvm")
    with pytest.raises(UsageError, match="no rule 'IDT099'; did you mean IDT0"):
        select(["IDT099"])
    with pytest.raises(UsageError, match="no rule ''"):
        select(["IDT,"])


def test_baseline(tmp_path: Path) -> None:
    kernel = Kernel(2)
    kernel.gate(8, ist=0)
    kernel.gate(3, dpl=0)
    reports = judge(kernel.image())
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"accepted": [{"rule": "IDT004", "where": "idt[8].ist"}]}))
    assert [rule for _, rule, _, _ in found(without(reports, read_baseline(str(own))))] == ["IDT009", "IDT009"]
    own.write_text(json.dumps({"accepted": [{"rule": "IDT004", "where": "idt[8].ist", "cpu": 1}]}))
    left = without(reports, read_baseline(str(own)))
    assert [report.accepted for report in left] == [0, 1]
    own.write_text(json.dumps({"cpus": [{"cpu": r.machine.cpu, **as_json(r)} for r in reports]}))
    assert found(without(reports, read_baseline(str(own)))) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", '{"cpus": [1]}', '{"accepted": [{"rule": "IDT001"}]}'])
def test_what_is_no_baseline(tmp_path: Path, text: str) -> None:
    path = tmp_path / "baseline"
    path.write_text(text)
    assert "baseline" in refused("check", IMAGES / "ovmf.core", "--baseline", path)


# The commands


def test_check_prints_findings_below_the_verdict(tmp_path: Path) -> None:
    ovmf = IMAGES / "ovmf.core"
    status, out, _ = call("check", ovmf)
    assert status == 1
    assert out.index("triple-fault") < out.index("  findings\n    error    IDT004  idt[8].ist\n")
    assert "  not checked: SYS001..SYS003 (STAR and EFER are not known)\n" in out
    status, out, _ = call("check", ovmf, "--format", "json")
    (cpu,) = json.loads(out)["cpus"]
    assert [finding["rule"] for finding in cpu["findings"]] == ["IDT004"]
    assert {"rule": "SYS001", "needs": "STAR and EFER are not known"} in cpu["not_checked"]
    known = tmp_path / "known.json"
    known.write_text(out)
    out = call("check", ovmf, "--baseline", known)[1]
    assert "  no findings (1 known, not shown)\n" in out
    assert "  no findings\n" in call("check", ovmf, "--select", "TSS,STK")[1]
    assert "did you mean IDT0" in refused("check", ovmf, "--ignore", "IDT04")


def test_an_error_finding_is_exit_status_1() -> None:
    linux = IMAGES / "linux.core"
    assert call("check", linux)[0] == 0
    assert call("check", linux, "--reg", "star=0x0023001000000000")[0] == 0
    status, out, _ = call("check", linux, "--reg", "star=0x0023001800000000")
    assert status == 1
    assert "error    SYS001  star[47:32]" in out
    for star, cs in (
        ("0xfff8fff800000000", "CS 0xfff8 is beyond the limit"),
        ("0xffffffff00000000", "CS 0xfffc is in"),
    ):
        status, out, _ = call("check", linux, "--reg", f"star={star}", "--reg", "efer=0xd01")
        assert status == 1 and f"SYSCALL: {cs}" in out, "selectors of 16 bits, also in sums"


def test_explain() -> None:
    out = output("explain", "idt001")
    assert out.startswith("IDT001  error: there is no gate for #DF\n\nWhy: ")
    assert "\nFix: set gate 8" in out and "\nBad:\n  idt[8] is all zero\n\nGood:\n  idt[8] = " in out
    assert max(map(len, out.splitlines())) <= 100
    listing = output("explain")
    assert all(f"  {rule.id}  {rule.severity:<8} {rule.title}\n" in listing for rule in RULES)
    assert max(map(len, listing.splitlines())) <= 100
    document = json.loads(output("explain", "--format", "json"))
    assert [row["rule"] for row in document["rules"]] == [rule.id for rule in RULES]
    assert refused("explain", "STK99").startswith("no rule 'STK99'; did you mean STK")


# Real systems


ARGUED = sorted(path.stem for path in IMAGES.glob("*.findings"))


@pytest.mark.parametrize("name", ARGUED)
def test_findings_on_real_systems_are_argued(name: str) -> None:
    """images/NAME.findings holds every finding, and why it is true."""
    options = OpenOptions(symbols=str(IMAGES / f"{name}.map")) if (IMAGES / f"{name}.map").exists() else OpenOptions()
    expected = json.loads((IMAGES / f"{name}.findings").read_text())
    assert all(len(row["why it is true"]) > 40 for row in expected["findings"])
    wanted = [tuple(row[key] for key in ("cpu", "rule", "severity", "where")) for row in expected["findings"]]
    reports = judge(open_image(str(IMAGES / f"{name}.core"), options))
    assert found(reports) == wanted
    gaps = {gap.rule for report in reports for gap in report.not_checked}
    assert sorted(gaps) == expected["not_checked"]


@pytest.mark.parametrize("name", CHANGES)
def test_linux_with_one_thing_changed(name: str) -> None:
    """What a change adds is one finding, at its cause; the others stay, but those on what is out of reach now."""
    mutated = CHANGES[name]
    clean = found(judge(linux()))
    expected = {row for row in clean if row[0] == 1 or row[1] not in mutated.gone}
    if mutated.finding is not None:
        expected |= {(cpu, *mutated.finding) for cpu in range(1 + mutated.shared)}
    told = found(judge(linux(name)))
    assert len(told) == len(set(told))
    assert set(told) == expected


def test_every_real_system_is_argued() -> None:
    assert sorted(path.stem for path in IMAGES.glob("*.core")) == ARGUED


def test_linux_in_userland_has_no_error() -> None:
    linux = json.loads((IMAGES / "linux.findings").read_text())
    assert not [row for row in linux["findings"] if row["severity"] == "error"]
