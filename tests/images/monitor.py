"""What QEMU's monitor is asked: registers, memory, translations."""

import re
from dataclasses import dataclass

from qemu.qmp import QMPClient


@dataclass(frozen=True)
class Registers:
    """The text of `info registers` for one CPU, and the numbers in it."""

    text: str

    def number(self, pattern: str) -> int:
        match = re.search(pattern, self.text)
        if match is None:
            raise SystemExit(f"info registers: no {pattern} in\n{self.text}")
        return int(match[1], 16)

    def table(self, name: str) -> tuple[int, int] | None:
        """Base and limit of GDT, IDT, TR or LDT; None for a selector that is null."""
        if name in ("TR", "LDT") and self.number(rf"{name} *=(\w+)") == 0:
            return None
        before = rf"{name} *=(?: +|\w+ )"
        return self.number(rf"{before}(\w+)"), self.number(rf"{before}\w+ (\w+)")

    def cr(self, n: int) -> int:
        return self.number(rf"CR{n}=(\w+)")

    @property
    def cpl(self) -> int:
        return self.number(r"CPL=(\d)")

    @property
    def long(self) -> bool:
        return bool(self.number(r"EFER=(\w+)") & 1 << 10)

    def linear(self, segment: str, pointer: str) -> int:
        base = 0 if self.long else self.number(rf"{segment} *=\w+ (\w+)")
        return base + self.number(rf"[RE]{pointer}=(\w+)")


class Monitor(QMPClient):
    """QEMU's monitor for machines, and through it the one for people."""

    async def text(self, line: str, cpu: int = 0) -> str:
        answer = await self.execute("human-monitor-command", {"command-line": line, "cpu-index": cpu})
        return str(answer).replace("\r", "")

    async def registers(self, cpu: int = 0) -> Registers:
        return Registers(await self.text("info registers", cpu))

    async def read(self, address: int, size: int, cpu: int = 0) -> bytes:
        """Linear memory, as far as it can be read."""
        text = await self.text(f"x /{size}xb {address:#x}", cpu)
        return bytes(int(byte, 16) for byte in re.findall(r" 0x(\w\w)", text))

    async def hex(self, address: int, size: int, cpu: int = 0) -> str:
        """Linear memory in hex; `??` for each byte of a page that cannot be read."""
        text = ""
        for start in (address, *range((address & -0x1000) + 0x1000, address + size, 0x1000)):
            count = min((start & -0x1000) + 0x1000, address + size) - start
            text += (await self.read(start, count, cpu)).hex().ljust(2 * count, "?")
        return text

    async def physical(self, address: int, cpu: int = 0) -> int | None:
        answer = (await self.text(f"gva2gpa {address:#x}", cpu)).strip()
        return None if answer == "Unmapped" else int(answer.removeprefix("gpa: "), 16)
