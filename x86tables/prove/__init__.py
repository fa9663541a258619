"""The same machine on an independent CPU model: Bochs in child processes of this one, QEMU outside."""
