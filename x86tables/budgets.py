"""Bounds on what a file can make us do, and on what may be asked for; docs/reliability.md has them as a table.

Ordinary files stay far below each. A refusal names the limit that it met.
"""

from __future__ import annotations

# Steps
STEPS = 100_000  # of all simulations of one CPU: a check of a delivery, or a page looked at on the way down a stack
LOOP_EVENTS = 32  # handlers that `prove` watches in a loop at one stack
DEEPENING_EVENTS = 20_000  # and in one that goes deeper each time
READS = 1 << 24  # of DWARF that any file may cost; a large kernel without .debug_aranges takes 8 million
READS_ANY_FILE = 1 << 17  # of DWARF that a file of any size may cost
READS_PER_BYTE = 16  # of DWARF, and so many more for each byte of the file

# Bytes of files and texts
FILE_WITHOUT_SIZE = 1 << 28  # of a file that does not say how many it has, as those in /proc
FILE_UNPACKED = 1 << 29  # other than zeros that any compressed file may unpack to; what is larger, FILE_RATIO times it
FILE_RATIO = 4096  # a machine that runs has a kernel beside what repeats, and stays far below
DICTIONARY = 128 << 20  # of memory that xz and zstd may ask for
ANY_FILE = 1 << 20  # that an ELF file of any size may make of its own: names, and what is unpacked
SECTIONS_RATIO = 64  # and so many times its size, for all compressed sections together
NAMES_RATIO = 4  # and so many times its string table, for all names together
NAME = 4096  # of one name; Linux allows its symbols 512
SYMBOL_TEXT = 1 << 28  # of a System.map; a kernel with all its debug symbols has a tenth of that
LINE_PROGRAM = 1 << 20  # of one unit's line table, of which pyelftools makes 600 each
COMPILER_OPTIONS = 1 << 14  # of the options that a unit was compiled with
NOTES = 1 << 22  # of a core's notes: those of thousands of CPUs
REGISTER_TEXT = 1 << 22  # of `info registers`: those of a thousand CPUs
LOG_LINE = 1 << 12  # of a line of a log that are looked at; QEMU's have 130
CONFIGURATION = 1 << 20  # of a TOML file
VALUE_TEXT = 1 << 16  # of a value that `decode` is given; the largest structure is 104 bytes
STREAM_DESCRIPTION = 1 << 23  # at the end of a migration stream; a CPU takes about 7,000
BITMAP = 1 << 26  # of a crash dump's bitmap of pages, a bit each: those of 2 TiB
PACKET = 1 << 20  # of what a gdb stub answers
OUTPUT = 1 << 20  # of what a guest prints that are kept

# Bytes of memory
DECLARED_MEMORY = 256 << 20  # that a declared machine may have
FARTHEST = 1 << 30  # that a stack is followed downwards while it is consumed; beyond them it has no end
HANDLER_STACK = 16 << 20  # that a handler may be said to push
FRAME = 1 << 30  # that a function's frame may be said to have
STACK_SIZE = 1 << 30  # that a stack may be said to have

# Entries
DIAGRAMS = 1 << 12  # whose bits a page draws
CPUS = 1 << 12  # that are read from one file
RANGES = 1024  # of memory, held or not, that a note names
RECORDS = 1 << 22  # of a flattened dump
UNPACKED_PAGES = 1 << 10  # of a dump of compressed pages that are kept
REMARKS = 64  # that are made of one file
ALIKE_SYMBOLS = 1 << 13  # at one place within their pages: more of them tell nothing of how far a kernel was moved
NAMED_FILES = 4  # source files, or functions, that are named as compiled in some way
DECODED_CODE = 1 << 20  # bytes of functions that may store below RSP
PIECES = 1 << 18  # of memory apart in one file
VMWARE_GROUPS = 1 << 12  # of tags in a state file of VMware's; it has about a hundred
VMWARE_TAGS = 1 << 18  # in one group
KEPT_PAGES = 1 << 16  # translations of one address space that are remembered; then it begins anew
KEPT_TABLES = 1 << 12  # page tables of one address space that are kept; then it begins anew

# Scanning
CANDIDATES = 1 << 18  # of each kind that are remembered: what looks like a table in an image of anything
CONFIRMED_IDTS = 64  # candidates that are compared with the rest of the image
SCANNED_WALKS = 1 << 17  # of candidates for page tables to the handlers of an IDT
ALIASES = 4096  # linear addresses of the pages that matter, in one set of page tables
SCANNED_TABLES = 1 << 17  # page tables that are read to find these: those of 256 GiB in 4 KiB pages
HANDLER_PAGES = 16  # that are looked up in each candidate for page tables: those that most gates lead to
