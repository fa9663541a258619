"""Bounds on what a file can make a simulation work out, and on what may be asked for; those of the readers stand with
each of them.

Ordinary files stay far below each. A refusal names the limit that it met.
"""

from __future__ import annotations

# Steps
STEPS = 100_000  # of all simulations of one CPU: a check of a delivery, or a page looked at on the way down a stack
HANDLER_STACK = 16 << 20  # bytes that a handler may be said to push
FRAME = STACK_SIZE = 1 << 30  # bytes that a function's frame, or a stack, may be said to have

# Pages
FARTHEST = 1 << 30  # bytes that a stack is followed downwards while it is consumed; beyond them it has no end
KEPT_PAGES = 1 << 16  # translations of one address space that are remembered; then it begins anew

# Scanning
CANDIDATES = 1 << 18  # of each kind that are remembered: what looks like a table in an image of anything
CONFIRMED_IDTS, CONFIRMED_ROOTS = 64, 4096  # candidates that are compared with the rest of the image
ALIASES = 4096  # linear addresses of the pages that matter, in one set of page tables
SCANNED_TABLES = 1 << 17  # page tables that are read to find these: those of 256 GiB in 4 KiB pages
