#!/bin/sh
# Captures the logs in this folder again: ./capture.sh. Needs nasm, ld, xz and qemu-system-x86_64 (TCG, no KVM: -d int
# shows only what QEMU itself delivers). They were made with QEMU 7.2.22, its default machine (pc, with SeaBIOS) and CPU
# (qemu64). linux.log.xz is the whole boot that ../images/capture.py logs: `capture.py linux --log linux.log -o DIR`, with its
# machine and CPUs (two, Skylake-Client-v1), from power-on into userland.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
for fate in survives triple timer nogate noidt; do
    define=$(echo "$fate" | tr a-z A-Z)
    nasm -f elf64 -g -F dwarf "-D$define" -o "$work/$fate.o" kernel.asm
    ld -z noexecstack -z max-page-size=4096 --no-warn-rwx-segments -Ttext 0x100000 -e start -o "$work/$fate.elf" "$work/$fate.o"
    # 13 and the like is how the kernel says that a handler of its own ran; -no-reboot ends a triple fault
    timeout 60 qemu-system-x86_64 -accel tcg -m 128 -display none -no-reboot -device isa-debug-exit,iobase=0xf4 \
        -kernel "$work/$fate.elf" -d int,cpu_reset -D "$work/$fate.log" || echo "$fate: status $?"
    xz -9e <"$work/$fate.log" >"$fate.log.xz"
done

# the triple fault again and again: without -no-reboot the machine starts anew
timeout 4 qemu-system-x86_64 -accel tcg -m 128 -display none -kernel "$work/triple.elf" -d int,cpu_reset \
    -D "$work/reboots.log" || true
xz -9e <"$work/reboots.log" >reboots.log.xz

# the kernel of the triple fault, and the memory after it as a small core
fate=triple
xz -9e <"$work/$fate.elf" >"$fate.elf.xz"
(sleep 5; echo "dump-guest-memory $work/$fate.core"; sleep 2; echo quit) |
    qemu-system-x86_64 -accel tcg -m 128 -display none -no-reboot -no-shutdown -monitor stdio \
        -kernel "$work/$fate.elf" >/dev/null
PYTHONPATH=../.. python3 -m x86tables extract "$work/$fate.core" -o "$work/small.core"
xz -9e <"$work/small.core" >"$fate.core.xz"
