# A small hypervisor that runs one machine after the other for qemu_batch.py, by AMD's VMRUN: it loads every register
# with its hidden part from a VMCB, injects interrupts, and ends at VMMCALL, at a shutdown, or when an NMI comes.
#
# It is entered as a PVH kernel and lies in memory that QEMU shares with the host: page 0 is this code, the others are
# listed below, and page 16 and what follows hold contents for pages of the machine. The host asks by setting `request`; the
# answer is a byte on the debug console. tests/assemble.py makes batch_code.py of this file.

        .set    BASE, 0x1000000
        .set    MAILBOX, BASE + 0x1000          # request, RCX, count of pages to be copied; destinations from 0x100 on
        .set    VMCB, BASE + 0x2000
        .set    HOST_SAVE, BASE + 0x3000
        .set    PML4, BASE + 0x4000             # one entry each in PML4 and PDPT: the first GiB, 2 MiB a page
        .set    STAGED, BASE + 0x100000
        .set    DEBUG_CONSOLE, 0xe9

        .text
        .code32
start:  mov     $0x20, %eax                     # PAE
        mov     %eax, %cr4
        mov     $PML4, %eax
        mov     %eax, %cr3
        mov     $0xc0000080, %ecx               # EFER: SVME, LME, SCE
        mov     $0x1101, %eax
        xor     %edx, %edx
        wrmsr
        mov     %cr0, %eax
        or      $0x80000000, %eax
        mov     %eax, %cr0
        lgdt    BASE + gdtr - start
        ljmp    $8, $BASE + long - start

        .code64
long:   mov     $BASE + 0x1000, %esp
        mov     $0x10, %eax
        mov     %eax, %ss
        lidt    idtr(%rip)
        mov     $0xc0010117, %ecx               # VM_HSAVE_PA
        mov     $HOST_SAVE, %eax
        xor     %edx, %edx
        wrmsr
        mov     $MAILBOX, %ebp
answer: mov     $'.', %al
        out     %al, $DEBUG_CONSOLE
wait:   pause
        cmpq    $0, (%rbp)
        je      wait
        movq    $0, (%rbp)
        # what the host writes itself, QEMU's translated code would not notice
        mov     16(%rbp), %edx
        mov     $STAGED, %esi
        lea     0x100(%rbp), %ebx
copy:   test    %edx, %edx
        jz      run
        mov     (%rbx), %rdi
        mov     $512, %ecx
        rep movsq
        add     $8, %ebx
        dec     %edx
        jmp     copy
run:    mov     8(%rbp), %rcx
        mov     $VMCB, %eax
        clgi
        vmload
        vmrun
        vmsave
        stgi                                    # an NMI that ended it is taken now
        jmp     answer

nmi:    iretq

        .balign 16
gdt:    .quad   0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdtr:   .word   23
        .long   BASE + gdt - start
        .balign 8
idt:    .fill   4, 8, 0                         # vectors 0 and 1
        .word   nmi - start                     # BASE has no low 16 bits
        .word   8, 0x8e00, BASE >> 16
        .quad   0
idtr:   .word   47
        .quad   BASE + idt - start
