//! A kernel in Rust that survives its stack overflow: what kernel.toml declares, and the one handler that all stubs
//! lead to. Its command line says what it shall do, and it ends QEMU with a status:
//!
//!     breakpoint   int3; its handler returns, and execution goes on
//!     overflow     the stack runs into its guard

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;

mod tables {
    include!(concat!(env!("OUT_DIR"), "/tables.rs"));
}

global_asm!(
    include_str!(concat!(env!("OUT_DIR"), "/stubs.s")),
    options(att_syntax)
);
global_asm!(include_str!("boot.s"), options(att_syntax));
const _: () = assert!(tables::KERNEL_CODE_SELECTOR == 8); // what boot.s loads CS with

extern "C" {
    fn load_tables();
}

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

/// The PVH start structure, as far as it is used.
#[repr(C)]
pub struct Start {
    unused: [u64; 3],
    command_line: u64,
}

const DONE: u8 = 0x10; // QEMU ends with twice this, plus 1; a fault's is that of its vector

fn out(port: u16, value: u8) {
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

fn print(text: &str) {
    text.bytes().for_each(|byte| out(0x3f8, byte));
}

fn end(status: u8) -> ! {
    out(0xf4, status);
    loop {
        unsafe { asm!("cli", "hlt") }
    }
}

#[no_mangle]
extern "C" fn interrupt(frame: &mut Frame) {
    match frame.vector {
        3 => return print("a breakpoint\n"),
        8 => print("a double fault\n"),
        _ => print("a fault\n"),
    }
    end(frame.vector as u8)
}

/// Its frames fill the stack; what is volatile keeps the compiler from making a loop of it.
#[inline(never)]
fn overflow(depth: &u64) -> u64 {
    let deeper = unsafe { core::ptr::read_volatile(depth) } + 1;
    if deeper == 0 {
        return 0;
    }
    overflow(&deeper) + unsafe { core::ptr::read_volatile(&deeper) }
}

/// Whether the command line is this word, which ends with a NUL.
unsafe fn told(start: &Start, word: &[u8]) -> bool {
    let text = start.command_line as *const u8;
    word.iter()
        .enumerate()
        .all(|(at, byte)| *text.add(at) == *byte)
}

#[no_mangle]
unsafe extern "C" fn kernel_main(start: &Start) -> ! {
    tables::fill_tables();
    load_tables();
    if told(start, b"breakpoint\0") {
        asm!("int3");
        print("execution goes on\n");
    } else if told(start, b"overflow\0") {
        overflow(&0);
    }
    end(DONE)
}

/// What libcore names for unwinding, which there is none of here.
#[no_mangle]
extern "C" fn rust_eh_personality() {}

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    print("a panic\n");
    end(1)
}
