"""Tables patched into a linked ELF, in place: the kernel is linked once, with space reserved, and no address moves.

plan = link.plan(link.read("kernel.elf"), config.load("kernel.toml"))  # ImageError where a table cannot be put
link.problems(plan)                                                    # what is wrong with the kernel's segments
config.image(plan.tables, plan.find, plan.kernel.segments)             # machines, for the checks
link.write(plan, "kernel.elf")
link.stale(plan)                                                       # what a file holds that is not as declared
"""

from __future__ import annotations

from .kernel import Kernel, read
from .plan import Patch, Plan, plan
from .validate import assumptions, problems
from .writing import patched, stale, write

__all__ = ["Kernel", "Patch", "Plan", "assumptions", "patched", "plan", "problems", "read", "stale", "write"]
