"""What asking memory answers: Ok, Fault or Unknown; a fault's kind is an enum, never read back out of a sentence."""

from __future__ import annotations

from enum import Enum

from ..errors import NotThere
from ..records import Record
from ..tables.selector import PageFaultErrorCode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    Probe: TypeAlias = "Ok | Fault | Unknown"

# Bits of a page-fault error code
PRESENT, WRITE, USER, RESERVED, FETCH = (
    1 << PageFaultErrorCode.field(name).pieces[0][1] for name in ("p", "wr", "us", "rsvd", "id")
)


class FaultKind(Enum):
    """Why the processor refuses an access; the value is the word that output uses."""

    UNMAPPED = "unmapped"
    RESERVED_BITS = "reserved bits"
    READ_ONLY = "read-only"
    SUPERVISOR_PAGE = "supervisor page"
    USER_PAGE = "user page"  # SMAP or SMEP
    EXECUTE_DISABLE = "execute-disable"
    SWAPPED_OUT = "swapped out"
    NON_CANONICAL = "not canonical"  # #GP or #SS, not #PF


class PageEntry(Record):
    """One paging-structure entry that a walk read: its name (`PDPTE`), physical address and value."""

    name: str
    address: int
    value: int


class Ok(Record):
    """The access is allowed, and leads to this physical address."""

    physical: int


class Fault(Record):
    """The access is refused: `address` would be in CR2, `entry` is the paging-structure entry that decided.

    `reserved` are the reserved bits that are set in it.
    """

    kind: FaultKind
    address: int
    error_code: int = 0
    entry: PageEntry | None = None
    reserved: int = 0

    @property
    def why(self) -> str:
        """Why in a few words."""
        entry = "entry" if self.entry is None else self.entry.name
        match self.kind:
            case FaultKind.UNMAPPED:
                return f"{entry} not present"
            case FaultKind.RESERVED_BITS:
                return f"{entry} has reserved bits {self.reserved:#x} set"
            case FaultKind.READ_ONLY:
                return "write to a read-only page" + ("" if self.error_code & USER else " with CR0.WP set")
            case FaultKind.SUPERVISOR_PAGE:
                return "user access to a supervisor page"
            case FaultKind.USER_PAGE if self.error_code & FETCH:
                return "fetch from a user page with CR4.SMEP set"
            case FaultKind.USER_PAGE:
                return "supervisor access to a user page with CR4.SMAP set"
            case FaultKind.EXECUTE_DISABLE:
                return "fetch from a page with execute-disable set"
            case FaultKind.NON_CANONICAL:
                return f"{self.address:#x} is not canonical"
        return str(self.kind.value)

    def __str__(self) -> str:
        return self.why if self.kind is FaultKind.NON_CANONICAL else f"page fault at {self.address:#x}: {self.why}"


class Unknown(Record):
    """Not known: `needs` says what is missing, in a few words."""

    needs: str

    @property
    def why(self) -> str:
        """As a fault's, in a few words."""
        return f"not known: {self.needs}"

    def __str__(self) -> str:
        return self.needs


class Inaccessible(NotThere):
    """Raised instead of an address or bytes: `probe` is the Fault or the Unknown."""

    def __init__(self, probe: Fault | Unknown) -> None:
        super().__init__(probe)
        self.probe = probe

    def __str__(self) -> str:  # put into words only where it is read
        return str(self.probe)


class Absent(Inaccessible):
    """Physical memory that the image does not hold; `address` is the first byte that is missing."""

    def __init__(self, address: int) -> None:
        super().__init__(unbacked(address))
        self.address = address


def unbacked(physical: int) -> Unknown:
    """The answer for physical memory that the image does not hold, or that is a device's."""
    return Unknown(f"physical page {physical & ~0xFFF:#x} is not in this image")
