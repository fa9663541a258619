"""The table of budgets in docs/reliability.md is that of the module, and what meets one is told its number."""

import re
from pathlib import Path

from x86tables import budgets

ROOT = Path(__file__).parent.parent


def table() -> str:
    """The rows of the document, as budgets.py has them: section, name, value, and what it counts."""
    rows, section = ["| budget | limit | counts |", "|---|---|---|"], ""
    for line in Path(budgets.__file__).read_text().splitlines():
        if line.startswith("# "):
            section = line[2:]
        elif row := re.fullmatch(r"([A-Z_]+) = (.+?)  # (.+)", line):
            value = getattr(budgets, row[1])
            shown = (
                f"{value:,}" if value < 1 << 20 else f"{value >> 20:,} Mi" if value < 1 << 30 else f"{value >> 30} Gi"
            )
            rows.append(f"| `{row[1]}` | {shown} | {section[:1].lower()}{section[1:]}: {row[3]} |")
    return "\n".join(rows) + "\n"


def test_the_table_of_the_document() -> None:
    assert table() in (ROOT / "docs/reliability.md").read_text(), f"it should be\n{table()}"
    names = {name for name in vars(budgets) if name.isupper()}
    assert len(re.findall("^\\| `", table(), re.M)) == len(names), "each has a comment"


def test_every_budget_is_used() -> None:
    used = " ".join(path.read_text() for path in (ROOT / "x86tables").rglob("*.py") if path.name != "budgets.py")
    for name in vars(budgets):
        assert not name.isupper() or f"budgets.{name}" in used or re.search(rf"import .*\b{name}\b", used), name
