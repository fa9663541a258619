"""x86-64 descriptor tables: made, shown, judged and proved."""

from .errors import Absent, ImageError, NotThere, UsageError, X86TablesError
from .gdt import CallGate, Gdt, LegacySystemDescriptor, SegmentDescriptor, SystemDescriptor
from .idt import Gate, Idt
from .layout import Layout, bits
from .legacy import LegacyGate, RealModeVector, Tss32, VectorTable
from .pseudo import ErrorFrame, Frame, PseudoDescriptor, PseudoDescriptor32
from .selector import PageFaultErrorCode, Selector, SelectorErrorCode
from .tss import IoMap, Tss
from .vectors import EXCEPTIONS, Vector

__version__ = "0.1.0"

__all__ = [
    "EXCEPTIONS",
    "Absent",
    "CallGate",
    "ErrorFrame",
    "Frame",
    "Gate",
    "Gdt",
    "Idt",
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
    "SystemDescriptor",
    "Tss",
    "Tss32",
    "UsageError",
    "Vector",
    "VectorTable",
    "X86TablesError",
    "bits",
]
