"""x86-64 descriptor tables: made, shown, judged and proved."""

from .api import Assessment, Image, open, open_config
from .errors import ImageError, NotThere, UsageError, X86TablesError
from .machine.probe import Absent
from .tables.gdt import CallGate, Gdt, LegacySystemDescriptor, SegmentDescriptor, SystemDescriptor
from .tables.idt import Gate, Idt
from .tables.layout import Layout, bits
from .tables.legacy import LegacyGate, RealModeVector, Tss32, VectorTable
from .tables.pseudo import ErrorFrame, Frame, PseudoDescriptor, PseudoDescriptor32
from .tables.selector import PageFaultErrorCode, Selector, SelectorErrorCode
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
