"""The same machine on a CPU that somebody else wrote: `bochs` runs in this process's children."""
