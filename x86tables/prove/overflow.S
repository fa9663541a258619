# The boot image's code and its parameters, one page: into 64-bit mode, onto the declared tables, off the end of the stack.
#
# It lies at a physical page P, and at a linear page L of the machine's page tables too. boot_image.py chooses both, fills
# in the parameters, and adds the machine. tests/assemble.py makes overflow_code.py of this file.

        .set    DEBUG_CONSOLE, 0xe9
        .set    DEBUG_EXIT, 0xf4
        .set    ENTERED, 0x2a

        .text
        .code32
page:
start:  mov     $0x11111111, %esp               # P, filled in
        mov     boot_cr4 - page(%esp), %eax
        mov     %eax, %cr4
        mov     boot_cr3 - page(%esp), %eax
        mov     %eax, %cr3
        mov     $0xc0000080, %ecx
        mov     boot_efer - page(%esp), %eax
        xor     %edx, %edx
        wrmsr
        mov     boot_cr0 - page(%esp), %eax
        mov     %eax, %cr0
        lgdt    boot_gdtr - page(%esp)
        ljmp    *far - page(%esp)

        .code64
long:   mov     %esp, %esp
        jmp     *there - page(%rsp)

# At L now. Nothing of the machine is used before its page tables are.
loads: lea     end(%rip), %rsp
        mov     cr3(%rip), %rax
        mov     %rax, %cr3
        lgdt    gdtr(%rip)
        movzwl  cs(%rip), %eax
        push    %rax
        lea     1f(%rip), %rax
        push    %rax
        lretq                                   # CS
1:      movzwl  ss(%rip), %eax
        mov     %eax, %ss
        movzwl  tr(%rip), %eax
        ltr     %ax
        lidt    idtr(%rip)
        mov     $1, %al
        out     %al, $DEBUG_CONSOLE             # all is loaded: what comes now is the overflow
        mov     rsp(%rip), %rsp
recurse:
        call    recurse

# Every handler is a call of this: the return address tells which. It uses the stack that a handler needs, then reports.
handler:
        mov     %rsp, entered(%rip)
        mov     pushes(%rip), %ecx
        jrcxz   2f
1:      push    %rax
        loop    1b
2:      mov     %cr2, %rax
        mov     %rax, fault(%rip)
        mov     entered(%rip), %rbx
        cld
        mov     $DEBUG_CONSOLE, %edx
        lea     entered(%rip), %rsi
        mov     $16, %ecx
        rep outsb
        mov     %rbx, %rsi
        mov     $48, %ecx                       # the return address, and a frame without an error code, or most of one
        rep outsb
        mov     $ENTERED, %al
        out     %al, $DEBUG_EXIT
3:      hlt
        jmp     3b

        .balign 16
boot_gdt:
        .quad   0, 0x00af9b000000ffff           # 64-bit code

# The parameters. Names with boot_ are for the way into 64-bit mode, the others are the machine's.
        .org    0x200
parameters:
boot_gdtr:
        .word   15
        .long   0                               # boot_gdt
far:    .long   0                               # long
        .word   8
boot_cr0: .long 0
boot_cr3: .long 0
boot_cr4: .long 0
boot_efer: .long 0
there:  .quad   0                               # loads
cr3:    .quad   0
gdtr:   .word   0
        .quad   0
idtr:   .word   0
        .quad   0
cs:     .word   0
ss:     .word   0
tr:     .word   0
rsp:    .quad   0
pushes: .long   0
        .org    0x280
common: .quad   0                               # handler, at L: where the calls find it
entered: .quad  0
fault:  .quad   0
        .org    0x400
end:
