"""Assemble the code that is kept as bytes: python tests/assemble.py writes NAME_code.py beside each NAME.S."""

import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = [*ROOT.glob("x86tables/prove/*.S"), *ROOT.glob("differential/*.S")]


def module(source: Path) -> str:
    """The module that holds a source, assembled with GNU as."""
    with tempfile.TemporaryDirectory() as folder:
        there, flat = Path(folder) / "code.o", Path(folder) / "code.bin"
        subprocess.run(["as", "-o", there, source], check=True)
        subprocess.run(["objcopy", "-O", "binary", there, flat], check=True)
        code = flat.read_bytes().rstrip(b"\0")
        names = subprocess.run(["nm", "-n", there], check=True, capture_output=True, text=True).stdout.splitlines()
    rows = [line.split() for line in names]
    lines = [f'"""{source.name}, assembled by tests/assemble.py."""', "", "CODE = bytes.fromhex("]
    lines += [f'    "{code[at : at + 48].hex()}"' for at in range(0, len(code), 48)]
    lines += [")", "LABELS = {"]
    lines += [f'    "{label}": 0x{int(value, 16):X},' for value, kind, label in rows if kind in "tT"]
    lines += ["}", *(f"{label} = 0x{int(value, 16):X}" for value, kind, label in rows if kind == "a")]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for each in SOURCES:
        each.with_name(f"{each.stem}_code.py").write_text(module(each))
