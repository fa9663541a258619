# From QEMU's -kernel to Rust: 64-bit mode, page tables with guard pages below both stacks.
#
# QEMU enters at the address that the PVH note names, in 32-bit protected mode without paging; EBX points at a structure
# that holds the command line. The kernel is linked where it is loaded, so that linear and physical addresses are equal.

        .pushsection .note.pvh, "a", @note
        .long   4, 4, 18                        # XEN_ELFNOTE_PHYS32_ENTRY
        .asciz  "Xen"
        .long   start
        .popsection

        .pushsection .boot, "ax"
        .code32
        .globl  start
start:  cli
        movl    $page_table, %edi               # the first 2 MiB, mapped to themselves in pages of 4 KiB,
        movl    $3, %eax                        # present and writable,
        movl    $512, %ecx
1:      movl    %eax, (%edi)
        addl    $0x1000, %eax
        addl    $8, %edi
        decl    %ecx
        jnz     1b
        movl    $0x100000, %eax                 # but for the code, which is read-only,
2:      movl    %eax, %edi
        shrl    $12, %edi
        andb    $0xfd, page_table(, %edi, 8)
        addl    $0x1000, %eax
        cmpl    $text_end, %eax
        jb      2b
        movl    $boot_stack, %eax               # and the guards below the stacks, of 8 KiB and of 4
        shrl    $12, %eax
        movl    $0, page_table - 16(, %eax, 8)
        movl    $0, page_table - 8(, %eax, 8)
        movl    $double_fault_stack, %eax
        shrl    $12, %eax
        movl    $0, page_table - 8(, %eax, 8)
        movl    $page_table + 3, page_directory
        movl    $page_directory + 3, pdpt
        movl    $pdpt + 3, pml4
        movl    $pml4, %eax
        movl    %eax, %cr3
        movl    $0x620, %eax                    # CR4.PAE; OSFXSR and OSXMMEXCPT for SSE, which Rust's code uses
        movl    %eax, %cr4
        movl    $0xc0000080, %ecx               # EFER.LME
        rdmsr
        orl     $0x100, %eax
        wrmsr
        movl    %cr0, %eax
        andl    $~4, %eax                       # CR0.EM
        orl     $0x80010002, %eax               # CR0.PG, CR0.WP, CR0.MP
        movl    %eax, %cr0
        lgdt    gdtr                            # its code segment is complete since the link
        ljmp    $8, $long_mode

        .code64
long_mode:
        movq    $boot_stack + 16 * 1024, %rsp
        movl    %ebx, %edi
        call    kernel_main
        ud2

# Every entry stub comes here, with the vector and an error code (0 where the CPU pushes none) on the stack.
interrupt_common:
        pushq   %rax
        pushq   %rcx
        pushq   %rdx
        pushq   %rsi
        pushq   %rdi
        pushq   %r8
        pushq   %r9
        pushq   %r10
        pushq   %r11
        pushq   %rbx
        leaq    80(%rsp), %rdi
        movq    %rsp, %rbx
        subq    $512, %rsp
        andq    $-16, %rsp
        fxsave64 (%rsp)                         # x86_64-unknown-none needs none of this
        cld
        call    interrupt
        fxrstor64 (%rsp)
        movq    %rbx, %rsp
        popq    %rbx
        popq    %r11
        popq    %r10
        popq    %r9
        popq    %r8
        popq    %rdi
        popq    %rsi
        popq    %rdx
        popq    %rcx
        popq    %rax
        addq    $16, %rsp                       # vector and error code
        iretq
        .popsection

        .pushsection .bss
        .balign 4096
pml4:           .skip 4096
pdpt:           .skip 4096
page_directory: .skip 4096
page_table:     .skip 4096
        .globl  boot_stack, double_fault_stack
                .skip 8192                      # a guard
        .type   boot_stack, @object
        .size   boot_stack, 16 * 1024
boot_stack:     .skip 16 * 1024
                .skip 4096                      # a guard
        .type   double_fault_stack, @object
        .size   double_fault_stack, 20 * 1024
double_fault_stack:
                .skip 20 * 1024
        .popsection
