; A small 64-bit kernel that meets one fate, chosen with -d: what the logs beside it were captured from (capture.sh).
;
;   SURVIVES  the stack runs into its guard page; gate 8 has an interrupt stack, so its handler runs
;   TRIPLE    the same, but gate 8 has none: the frame of #DF has no place, and the processor shuts down
;   TIMER     interrupts on, with the PIC as the firmware left it: IRQ 0 arrives as vector 8
;   NOGATE    INT 0x30, for which there is no gate
;   NOIDT     an invalid instruction before any IDT was loaded
;
; QEMU starts it by its PVH note: 32-bit protected mode, paging off, at the address that the note names.

%define EXIT 0xf4                       ; where capture.sh puts isa-debug-exit

section .note.pvh note alloc noexec nowrite align=4
        dd 4, 8, 18                     ; XEN_ELFNOTE_PHYS32_ENTRY
        db "Xen", 0
        dq start

section .text
bits 32
global start
start:  cli
        mov esp, stack_top
        mov edi, page_table             ; 2 MiB mapped to themselves, 4 KiB each
        mov eax, 3
        mov ecx, 512
.page:  mov [edi], eax
        add eax, 0x1000
        add edi, 8
        loop .page
        mov eax, guard                  ; all but one page
        shr eax, 12
        mov dword [page_table + eax * 8], 0
        mov dword [pml4], pdpt + 3
        mov dword [pdpt], page_directory + 3
        mov dword [page_directory], page_table + 3
        mov eax, pml4
        mov cr3, eax
        mov eax, 1 << 5                 ; CR4.PAE
        mov cr4, eax
        mov ecx, 0xc0000080             ; EFER.LME
        rdmsr
        or eax, 1 << 8
        wrmsr
        mov eax, cr0
        or eax, 1 << 31 | 1 << 16       ; CR0.PG, CR0.WP
        mov cr0, eax
        lgdt [gdtr]
        jmp 8:long_mode

bits 64
global long_mode
long_mode:
        mov ax, 0x10
        mov ss, ax
        mov ds, ax
        mov es, ax
        mov rax, tss
        mov [gdt.tss + 2], ax
        shr rax, 16
        mov [gdt.tss + 4], al
        mov [gdt.tss + 7], ah
        mov ax, 0x18
        ltr ax
        mov rcx, 6
        mov rax, invalid_opcode
        call set_gate
        mov rcx, 8
        mov rax, double_fault
        call set_gate
        mov rcx, 13
        mov rax, general_protection
        call set_gate
        mov rcx, 14
        mov rax, page_fault
        call set_gate
%ifdef SURVIVES
        mov byte [idt + 8 * 16 + 4], 1  ; IST1
%endif
%ifndef NOIDT
        lidt [idtr]
%endif
%ifdef TIMER
        sti
.wait:  hlt
        jmp .wait
%elifdef NOGATE
        int 0x30
        jmp exit
%elifdef NOIDT
        ud2
%else
        jmp overflow
%endif

global overflow
overflow:
        call overflow

; rcx the vector, rax the handler: an interrupt gate
set_gate:
        shl rcx, 4
        lea rdi, [idt + rcx]
        mov [rdi], ax
        mov word [rdi + 2], 8
        mov word [rdi + 4], 0x8e00
        shr rax, 16
        mov [rdi + 6], ax
        ret

global invalid_opcode, double_fault, general_protection, page_fault
invalid_opcode:
        mov al, 6
        jmp exit
double_fault:
        mov al, 8
        jmp exit
general_protection:
        mov al, 13
        jmp exit
page_fault:
        mov al, 14
exit:   out EXIT, al
        hlt
        jmp exit

section .data
align 8
gdt:    dq 0
        dq 0x00af9b000000ffff           ; 0x08: 64-bit code
        dq 0x00cf93000000ffff           ; 0x10: data
.tss:   dq 0x0000890000000067, 0        ; 0x18: the TSS, its base filled in above
gdtr:   dw $ - gdt - 1
        dq gdt
idtr:   dw 32 * 16 - 1
        dq idt
align 16
global tss
tss:    dd 0
        dq 0, 0, 0, 0
        dq fault_stack_top              ; IST1
        dq 0, 0, 0, 0, 0, 0, 0
        dw 0, 0x68

section .bss nobits alloc noexec write align=4096
pml4:           resb 4096
pdpt:           resb 4096
page_directory: resb 4096
page_table:     resb 4096
global idt
idt:            resb 4096
                resb 4096
fault_stack_top:
global guard
guard:          resb 4096
                resb 4096
stack_top:
