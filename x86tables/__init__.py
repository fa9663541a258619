"""x86-64 descriptor tables: made, shown, judged and proved."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .api import Image, open, open_config
    from .assessment import Assessment
    from .errors import ImageError, NotThere, UsageError, X86TablesError
    from .machine.probe import Absent
    from .tables.gdt import CallGate, Gdt, LegacySystemDescriptor, SegmentDescriptor, SystemDescriptor
    from .tables.idt import Gate, Idt
    from .tables.layout import Layout, bits
    from .tables.legacy import LegacyGate, RealModeVector, Tss32, VectorTable
    from .tables.pseudo import ErrorFrame, Frame, PseudoDescriptor, PseudoDescriptor32
    from .tables.selector import PageFaultErrorCode, Selector, SelectorErrorCode, Star
    from .tables.tss import IoMap, Tss
    from .tables.vectors import EXCEPTIONS, Vector

__version__ = "0.1.0"

__all__ = [
    "EXCEPTIONS",
    "Absent",
    "Assessment",
    "CallGate",
    "ErrorFrame",
    "Frame",
    "Gate",
    "Gdt",
    "Idt",
    "Image",
    "ImageError",
    "IoMap",
    "Layout",
    "LegacyGate",
    "LegacySystemDescriptor",
    "NotThere",
    "PageFaultErrorCode",
    "PseudoDescriptor",
    "PseudoDescriptor32",
    "RealModeVector",
    "SegmentDescriptor",
    "Selector",
    "SelectorErrorCode",
    "Star",
    "SystemDescriptor",
    "Tss",
    "Tss32",
    "UsageError",
    "Vector",
    "VectorTable",
    "X86TablesError",
    "bits",
    "open",
    "open_config",
]

# Each public name is imported when it is first asked for: a command pays only for what it uses.
_NAMES = {
    "api": "Image open open_config",
    "assessment": "Assessment",
    "errors": "ImageError NotThere UsageError X86TablesError",
    "machine.probe": "Absent",
    "tables.gdt": "CallGate Gdt LegacySystemDescriptor SegmentDescriptor SystemDescriptor",
    "tables.idt": "Gate Idt",
    "tables.layout": "Layout bits",
    "tables.legacy": "LegacyGate RealModeVector Tss32 VectorTable",
    "tables.pseudo": "ErrorFrame Frame PseudoDescriptor PseudoDescriptor32",
    "tables.selector": "PageFaultErrorCode Selector SelectorErrorCode Star",
    "tables.tss": "IoMap Tss",
    "tables.vectors": "EXCEPTIONS Vector",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = f"{__name__}.{_HOME[name]}"
    __import__(module)
    globals()[name] = value = getattr(sys.modules[module], name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
