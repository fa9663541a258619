"""docs/api.md lists what is public: of each module that it has, exactly its `__all__`."""

import importlib
import re
from pathlib import Path

import pytest

API = (Path(__file__).parent.parent / "docs/api.md").read_text()
MODULES = dict(re.findall(r"^## `([\w.]+)`\n(.*?)(?=^## |\Z)", API, re.M | re.S))


def test_modules() -> None:
    assert set(MODULES) == {
        "x86tables",
        "x86tables.config",
        "x86tables.delivery.events",
        "x86tables.errors",
        "x86tables.schemas",
        "x86tables.strategies",
    }


@pytest.mark.parametrize("name", MODULES)
def test_names(name: str) -> None:
    module = importlib.import_module(name)
    heads = re.findall(r"^- ([^:\n]*)", MODULES[name], re.M)
    listed = [word for head in heads for word in re.findall(r"`(\w+)`", head)]
    assert sorted(listed) == sorted(module.__all__)
    assert all(hasattr(module, word) for word in listed)
