"""The whole job from Python: open a memory dump, ask for the verdict of every CPU, and say why.

Only names of `x86tables` itself are used; `x86tables check` prints the same.
"""

from pathlib import Path

import x86tables

IMAGES = Path(__file__).parent.parent / "tests/images"

for name in ("linux", "ovmf", "seabios"):
    symbols = IMAGES / f"{name}.map"
    image = x86tables.open(str(IMAGES / f"{name}.core"), symbols=str(symbols) if symbols.exists() else None)
    for cpu in image.check(scenarios=["current-stack"]):
        print(f"{name}, CPU {cpu.cpu}: {cpu.verdict}: {cpu.reason}")
        print(f"  the stack in use: {cpu.stack.verdict}")
        for stack in cpu.interrupt_stacks:
            print(f"  {stack.pointer.name}: {stack.extent.size} bytes")
        for finding in cpu.findings:
            print(f"  {finding.severity}: {finding.rule} at {finding.where}")
