"""explain: a rule, a table's rules, and what it says of names that are neither."""

import json

import pytest
from cli import fitting, output, refused

from x86tables import decode
from x86tables.checks import RULES, TABLES
from x86tables.delivery.scenarios import ORDER
from x86tables.delivery.scenarios import SCENARIOS as PLAYED
from x86tables.render import glossary
from x86tables.tables import vectors


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


@pytest.mark.parametrize(
    ("word", "title", "said"),
    [
        ("#df", "#DF: vector 8", "shuts the processor down"),
        ("14", "#PF: vector 14", "class for the double-fault decision is 'page fault'."),
        ("#VC", "#VC: vector 29", "'benign' with Intel, 'contributory' with AMD"),
        ("0x402", "0x402 as the error code of #TS, #NP, #SS or #GP", "IDT vector 128 (0x80)"),
        ("#GP(0x63)", "0x63 as the error code of #TS, #NP, #SS or #GP", "IDT vector 12"),
        ("#PF(0x11)", "0x11 as the error code of #PF", "fetch"),
        ("idt[8].ist", "gate.ist: bits 34:32 of 16 bytes", "seven interrupt stacks"),
        ("idt[3,14].type", "gate.type: bits 43:40 of 16 bytes", "trap gate"),
        ("tss.ist2,ist7", "tss.ist7: bits 735:672 of 104 bytes", "[6]"),
        ("tr.base", "system.base: bits 95:56, 39:16 of 16 bytes", "bits 63:32"),
        ("idtr.limit", "pseudo-descriptor.limit: bits 15:0 of 10 bytes", "0xfff"),
        ("GATE", "gate: 16 bytes", "where the handler is"),
        ("loops", "loops", "hangs"),
    ],
)
def test_words(word: str, title: str, said: str) -> None:
    text = output("explain", word)
    assert title in text.splitlines()
    assert said in " ".join(text.split())
    document = fitting("explain", output("explain", word, "--format", "json"))
    assert title in {topic["title"] for topic in document["topics"]} and not document["rules"]


def test_all_that_output_names_is_explained() -> None:
    """Verdicts, scenarios, mnemonics, registers of a machine, every field of every structure that findings name."""
    words = [*ORDER, *PLAYED, *vectors.BY_MNEMONIC, *glossary.names()]
    words += [f"{kind}.{field.name}" for kind, layout in glossary.STRUCTURES.items() for field in layout.fields]
    for word in words:
        for topic in glossary.find(word):
            assert topic.text.endswith((".", "[0]")) and topic.source, word
    assert {"cr0", "cr3", "cr4", "efer", "star", "lstar", "gdtr", "idtr", "tr", "ldtr"} <= glossary.REGISTERS.keys()
    assert all(decode.KINDS[kind] is layout for kind, layout in glossary.STRUCTURES.items())
    fields = {f"{kind}.{field.name}" for kind, layout in glossary.STRUCTURES.items() for field in layout.fields}
    assert glossary.FIELDS.keys() <= fields


@pytest.mark.parametrize("word", ["nonsense", "gate.nothing", "0x123456789", "#XX", "999", ""])
def test_words_that_nobody_knows(word: str) -> None:
    refused("explain", word)
