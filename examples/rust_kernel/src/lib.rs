//! A kernel's interrupt tables in Rust: what kernel.toml declares, and the one handler that all stubs lead to.

#![no_std]

use core::arch::global_asm;

mod tables {
    include!(concat!(env!("OUT_DIR"), "/tables.rs"));
}

global_asm!(include_str!(concat!(env!("OUT_DIR"), "/stubs.s")), options(att_syntax));

global_asm!(
    ".pushsection .bss",
    ".balign 4096",
    ".skip 8192",
    "boot_stack: .skip 16 * 1024",
    ".skip 4096",
    "double_fault_stack: .skip 20 * 1024",
    ".popsection",
    ".globl boot_stack, double_fault_stack",
    "interrupt_common:",
    "push rax; push rcx; push rdx; push rsi; push rdi; push r8; push r9; push r10; push r11",
    "lea rdi, [rsp + 72]",
    "cld",
    "call interrupt",
    "pop r11; pop r10; pop r9; pop r8; pop rdi; pop rsi; pop rdx; pop rcx; pop rax",
    "add rsp, 16",
    "iretq",
);

/// What a stub and the processor have pushed.
#[repr(C)]
pub struct Frame {
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

#[no_mangle]
extern "C" fn interrupt(frame: &mut Frame) {
    if frame.vector != 3 {
        loop {} // a real kernel prints the frame here
    }
}

extern "C" {
    fn load_tables();
}

/// Loads GDT, TSS and IDT.
///
/// # Safety
/// Once, in ring 0, with interrupts off.
pub unsafe fn init() {
    tables::fill_tables();
    load_tables();
}
