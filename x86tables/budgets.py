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
