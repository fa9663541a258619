"""Rust from edition 2024 on: the module of `rust` with `unsafe` where that edition wants it, and Rust 1.82 knows it.

    #[unsafe(export_name = "idt")]
    pub static mut IDT: Idt = {

    unsafe extern "C" {

The rest is as it was.
"""

from __future__ import annotations

from . import rust

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..config.compiled import CompiledTables, Lookup


def emit(tables: CompiledTables, find: Lookup) -> dict[str, str]:
    """One module."""
    return rust.module(tables, unsafe=True)
