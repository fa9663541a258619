"""The three tables of a small kernel, with a stack of its own for the double fault.

A kernel build would write the bytes into an object file; here they are printed as a debugger shows them.
"""

from x86tables import Gate, Gdt, Idt, PseudoDescriptor, SegmentDescriptor, SystemDescriptor, Tss

KERNEL = 0xFFFF_FFFF_8000_0000
GDT_AT, IDT_AT, TSS_AT = KERNEL + 0x1000, KERNEL + 0x2000, KERNEL + 0x3000
DOUBLE_FAULT_STACK_TOP = KERNEL + 0x8000  # the page at 0x6000 stays unmapped: its guard
DIVIDE_ERROR, BREAKPOINT, DOUBLE_FAULT, PAGE_FAULT = (KERNEL + 0x10_0000 + n * 0x40 for n in range(4))

gdt = Gdt()
code = gdt.append(SegmentDescriptor.kernel_code())
data = gdt.append(SegmentDescriptor.kernel_data())
task = gdt.append(SystemDescriptor.tss(base=TSS_AT))

tss = Tss(rsp0=KERNEL + 0x6000, ist1=DOUBLE_FAULT_STACK_TOP)

idt = Idt()
idt["#DE"] = Gate.interrupt(DIVIDE_ERROR, code)
idt["#BP"] = Gate.trap(BREAKPOINT, code, dpl=3)  # int3 is for user programs too
idt["#DF"] = Gate.interrupt(DOUBLE_FAULT, code, ist=1)
idt["#PF"] = Gate.interrupt(PAGE_FAULT, code)

print("GDT")
for slot in range(len(gdt)):
    print(f"  {slot * 8:#04x}  {gdt.slot(slot):016x}")

print("IDT, the gates that are present")
for vector, gate in enumerate(idt):
    if gate.p:
        print(f"  {vector:>2}  {int(gate):032x}  {gate.kind} at {gate.offset:#x}, ist {gate.ist}, dpl {gate.dpl}")

print("TSS")
print(f"  {len(bytes(tss))} bytes, rsp0 {tss.rsp0:#x}, ist1 {tss.ist1:#x}, I/O map base {tss.iopb:#x}")

print("operands")
print(f"  lgdt  {bytes(PseudoDescriptor(base=GDT_AT, limit=gdt.limit)).hex()}")
print(f"  lidt  {bytes(PseudoDescriptor(base=IDT_AT, limit=idt.limit)).hex()}")
print(f"  ltr   {int(task):#x}")
