# init of the guest `linux32`:
# write(1, text, 9); if (fork()) for (;;) pause(); sched_setaffinity(0, 4, &mask); for (;;) ;
        .globl _start
_start: mov $4, %eax; mov $1, %ebx; mov $text, %ecx; mov $9, %edx; int $0x80
        mov $2, %eax; int $0x80; test %eax, %eax; jz child
idle:   mov $29, %eax; int $0x80; jmp idle
child:  mov $241, %eax; xor %ebx, %ebx; mov $4, %ecx; mov $mask, %edx; int $0x80
spin:   jmp spin
text:   .ascii "complete\n"
mask:   .long 2
