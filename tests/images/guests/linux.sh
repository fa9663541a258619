#!/busybox sh
# init of the guests `linux` and `cloud`: symbols go to the second serial port, then CPU 1 spins: in user mode, or as
# load=... on the kernel's command line says.
/busybox mkdir -p /proc /dev
/busybox mount -t proc proc /proc
/busybox mount -t devtmpfs dev /dev
echo 0 > /proc/sys/kernel/kptr_restrict
/busybox grep -E > /dev/ttyS1 /proc/kallsyms \
    -e ' (asm|exc|sysvec|early_idt|native_irq_return|paranoid|swapgs)_[A-Za-z0-9_]+$' \
    -e ' entry_(SYS|INT)[A-Za-z0-9_]+$' \
    -e ' (common_interrupt|error_(entry|return)|idt_(table|descr)|do_syscall_64|default_idle|handle_stack_overflow|native_safe_halt)$' \
    -e ' (_s?text|_etext|_[se]inittext|_[se]data|_end|__bss_(start|stop)|__init_(begin|end)|__(start|end)_rodata|__entry_text_[a-z]+)$' \
    -e ' ((irq|spurious)_entries_start|cpu_tss_rw|gdt_page|exception_stacks|init_(task|top_pgt)|(page_offset|v[a-z]+)_base)$'
/busybox taskset 2 /busybox sh -c "${load:-while :; do :; done}" &
echo complete > /dev/ttyS1
wait
