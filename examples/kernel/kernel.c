/* A kernel that does what its command line says, and tells how it went on the serial port and by QEMU's exit status.
 *
 *   breakpoint   int3; its handler returns, and execution goes on
 *   write        a write to 0xdeadbeef, where nothing is mapped; there is no handler for page faults
 *   overflow     the stack runs into its guard page
 *
 * With "wait" behind it the kernel stands still in its double fault handler, so that its memory can be dumped.
 */

#include <stdint.h>

/* What interrupt_common has pushed, the stub, and the CPU: the lowest address first. */
struct interrupt {
    uint64_t r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax;
    uint64_t vector, error_code;
    uint64_t rip, cs, rflags, rsp, ss;
};

/* The PVH start structure, as far as it is used. */
struct start {
    uint32_t magic, version, flags, modules;
    uint64_t module_list, command_line;
};

enum { BREAKPOINT = 3, DOUBLE_FAULT = 8, PAGE_FAULT = 14 };
enum { SERIAL = 0x3f8, EXIT = 0xf4 };
enum { DONE = 0x10 }; /* the status that QEMU ends with is 2 * this + 1; a fault's is that of its vector */

extern char double_fault_stack[], kernel_stack[];
static const char *command;

static void out(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }

static void print(const char *text) {
    while (*text) out(SERIAL, *text++);
}

static void print_hex(const char *name, uint64_t value) {
    print(name);
    print("0x");
    int shift = 60;
    while (shift && !(value >> shift)) shift -= 4;
    for (; shift >= 0; shift -= 4) out(SERIAL, "0123456789abcdef"[value >> shift & 15]);
}

static int told_to(const char *word) {
    for (const char *at = command; *at; at++) {
        const char *here = at, *there = word;
        while (*there && *here == *there) here++, there++;
        if (!*there) return 1;
    }
    return 0;
}

static void __attribute__((noreturn)) end(uint8_t code) {
    if (told_to("wait")) print("waiting\n");
    else out(EXIT, code);
    for (;;) __asm__ volatile("cli; hlt");
}

void interrupt(struct interrupt *frame) {
    uint64_t cr2;
    __asm__ volatile("mov %%cr2, %0" : "=r"(cr2));
    if (frame->vector == BREAKPOINT) {
        print_hex("breakpoint before ", frame->rip);
        print("\n");
        return;
    }
    const char *name = "an exception";
    if (frame->vector == DOUBLE_FAULT) name = "double fault";
    if (frame->vector == PAGE_FAULT) name = "page fault";
    print(name);
    char *stack = (char *)frame;
    print(stack > double_fault_stack ? " on IST1\n" : " on the kernel's stack\n");
    print_hex("  vector ", frame->vector);
    print_hex(", error code ", frame->error_code);
    print_hex(", CR2 ", cr2);
    print(cr2 >= (uintptr_t)kernel_stack - 4096 && cr2 < (uintptr_t)kernel_stack ? " (guard page)\n" : "\n");
    print_hex("  RIP ", frame->rip);
    print_hex(", CS ", frame->cs);
    print_hex(", RFLAGS ", frame->rflags);
    print_hex(", RSP ", frame->rsp);
    print_hex(", SS ", frame->ss);
    print("\n");
    end(frame->vector);
}

/* Its frames fill the stack; volatile keeps the compiler from making a loop of it. */
static int overflow(volatile int depth) { return depth < 0 ? 0 : overflow(depth + 1) + depth; }

void kernel_main(const struct start *start) {
    command = (const char *)start->command_line;
    print("the kernel runs: ");
    print(command);
    print("\n");
    if (told_to("breakpoint")) {
        __asm__ volatile("int3");
        print("execution goes on\n");
    } else if (told_to("write")) {
        *(volatile uint32_t *)0xdeadbeef = 42;
    } else if (told_to("overflow")) {
        overflow(0);
    }
    end(DONE);
}
