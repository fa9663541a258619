"""The log that QEMU writes with `-d int,cpu_reset`: its entries, the chains of faults in it, and why they happened."""
