"""Assemble the code that x86tables/proof ships as bytes: python tests/assemble.py writes NAME_code.py beside NAME.S."""

import subprocess
import tempfile
from pathlib import Path

PROOF = Path(__file__).parent.parent / "x86tables/proof"
NAMES = [path.stem for path in sorted(PROOF.glob("*.S"))]


def module(name: str) -> str:
    """The module that holds NAME.S, assembled with GNU as."""
    with tempfile.TemporaryDirectory() as folder:
        there, flat = Path(folder) / "code.o", Path(folder) / "code.bin"
        subprocess.run(["as", "-o", there, PROOF / f"{name}.S"], check=True)
        subprocess.run(["objcopy", "-O", "binary", there, flat], check=True)
        code = flat.read_bytes().rstrip(b"\0")
        names = subprocess.run(["nm", "-n", there], check=True, capture_output=True, text=True).stdout.splitlines()
    rows = [line.split() for line in names]
    lines = [f'"""{name}.S, assembled by tests/assemble.py."""', "", "CODE = bytes.fromhex("]
    lines += [f'    "{code[at : at + 48].hex()}"' for at in range(0, len(code), 48)]
    lines += [")", "LABELS = {"]
    lines += [f'    "{label}": 0x{int(value, 16):X},' for value, kind, label in rows if kind in "tT"]
    lines += ["}", *(f"{label} = 0x{int(value, 16):X}" for value, kind, label in rows if kind == "a")]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for each in NAMES:
        (PROOF / f"{each}_code.py").write_text(module(each))
