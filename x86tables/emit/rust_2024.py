"""Rust from edition 2024 on: the module of `rust` with `unsafe` where that edition wants it, and Rust 1.82 knows it.

    #[unsafe(export_name = "idt")]
    pub static mut IDT: Idt = {

    unsafe extern "C" {

The rest is as it was.
"""

from __future__ import annotations

import re

from . import rust

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..config.compiled import CompiledTables, Lookup


def emit(tables: CompiledTables, find: Lookup) -> dict[str, str]:
    """One module."""
    text = re.sub(r"^#\[(export_name = .*)\]$", r"#[unsafe(\1)]", rust.emit(tables, find)["tables.rs"], flags=re.M)
    return {"tables.rs": re.sub(r"^extern ", "unsafe extern ", text, flags=re.M)}
