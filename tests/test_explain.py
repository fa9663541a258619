"""explain: a rule, a table's rules, and what it says of names that are neither."""

import json

import pytest
from cli import output, refused

from x86tables.checks import RULES, TABLES


@pytest.mark.parametrize("table", TABLES)
def test_the_letters_of_a_table_list_its_rules(table: str) -> None:
    wanted = [rule.id for rule in RULES if rule.table == table]
    text = output("explain", table.lower())
    assert [line.split()[0] for line in text.splitlines() if line.startswith("  ")] == wanted
    assert [rule["rule"] for rule in json.loads(output("explain", table, "--format", "json"))["rules"]] == wanted


def test_all_tables_are_listed_without_one() -> None:
    lines = output("explain").splitlines()
    assert [line[:3] for line in lines if line[3:5] == "  "] == list(TABLES)


@pytest.mark.parametrize("name", ["TSS99", "idt04", "IDX", "GDT1", "ST"])
def test_what_is_suggested_can_be_explained(name: str) -> None:
    said = refused("explain", name)
    assert said.startswith(f"no rule {name!r}; did you mean ")
    meant = said.partition("did you mean ")[2].partition("?")[0]
    assert meant in output("explain", meant)
    assert any(letter.isdigit() for letter in meant) == any(letter.isdigit() for letter in name)
