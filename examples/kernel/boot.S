# From QEMU's -kernel to C: 64-bit mode, page tables with a guard page below the kernel's stack, the declared tables.
#
# QEMU enters at the address that the PVH note names, in 32-bit protected mode without paging; EBX points at a structure
# that holds the command line. The kernel is linked where it is loaded, so that linear and physical addresses are equal.

        .include "constants.inc"

.section .note.pvh, "a", @note
        .long   4, 4, 18                        # XEN_ELFNOTE_PHYS32_ENTRY
        .asciz  "Xen"
        .long   start

.text
.code32
.globl start
start:  cli
        mov     $kernel_stack_top, %esp
        mov     $page_table, %edi               # the first 2 MiB, mapped to themselves in pages of 4 KiB,
        mov     $3, %eax                        # present and writable,
        mov     $512, %ecx
1:      mov     %eax, (%edi)
        add     $0x1000, %eax
        add     $8, %edi
        loop    1b
        mov     $kernel_stack, %eax             # but for the guard pages below the stacks
        shr     $12, %eax
        movl    $0, page_table - 8(, %eax, 8)
        mov     $double_fault_stack, %eax
        shr     $12, %eax
        movl    $0, page_table - 8(, %eax, 8)
        movl    $page_table + 3, page_directory
        movl    $page_directory + 3, pdpt
        movl    $pdpt + 3, pml4
        mov     $pml4, %eax
        mov     %eax, %cr3
        mov     $1 << 5, %eax                   # CR4.PAE
        mov     %eax, %cr4
        mov     $0xc0000080, %ecx               # EFER.LME
        rdmsr
        or      $1 << 8, %eax
        wrmsr
        mov     %cr0, %eax
        or      $1 << 31 | 1 << 16, %eax        # CR0.PG, CR0.WP
        mov     %eax, %cr0
        lgdt    gdtr                            # complete since the kernel was built; here as far as 32 bits need it
        ljmp    $KERNEL_CODE_SELECTOR, $long_mode

.code64
long_mode:
        call    load_tables                     # GDT, CS and the other segments, TR, IDT
        mov     %ebx, %edi
        call    kernel_main
        ud2

# Every entry stub comes here, with the vector and an error code (0 where the CPU pushes none) on the stack.
.globl interrupt_common
interrupt_common:
        push    %rax
        push    %rcx
        push    %rdx
        push    %rsi
        push    %rdi
        push    %r8
        push    %r9
        push    %r10
        push    %r11
        mov     %rsp, %rdi
        cld
        call    interrupt                       # RSP is a multiple of 16 here: 5 + 2 + 9 pushes from one that was
        pop     %r11
        pop     %r10
        pop     %r9
        pop     %r8
        pop     %rdi
        pop     %rsi
        pop     %rdx
        pop     %rcx
        pop     %rax
        add     $16, %rsp                       # vector and error code
        iretq

.bss
.balign 4096
pml4:           .skip 4096
pdpt:           .skip 4096
page_directory: .skip 4096
page_table:     .skip 4096
.globl kernel_stack, kernel_stack_top, double_fault_stack
                .skip 4096                      # a guard page
kernel_stack:   .skip 16 * 1024
kernel_stack_top:
                .skip 4096                      # a guard page
double_fault_stack:
                .skip 20 * 1024

.section .note.GNU-stack, "", @progbits
