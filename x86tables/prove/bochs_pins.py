"""What the Bochs binding has no call for, by C++ symbols that it exports: NMI, INTR, LA57, the choice of CPU model."""

from __future__ import annotations

import ctypes
import re

import bochscpu

from ..errors import NotThere
from ..machine.registers import LA57, PAE

MODELS = {"intel": 28, "amd": 20}  # Sapphire Rapids (with LA57) and Ryzen, by their places in Bochs' own list
_MODEL_PARAMETER, _SET_MODEL = b"cpu.model", "_ZN15bx_param_enum_c3setEl"
_DELIVER_NMI, _RAISE_INTR = "_ZN8BX_CPU_C11deliver_NMIEv", "_ZN8BX_CPU_C10raise_INTREv"
_SET_CR4 = "_ZN8BX_CPU_C6SetCR4EP15bxInstruction_cm"
_CLEAR_INTR = "_ZN8BX_CPU_C10clear_INTREv"
_ACKNOWLEDGE = "_ZN8BX_CPU_C21interrupt_acknowledgeEv"
_PIC_CALL = re.compile(rb"\x48\x8b\x78(.)\x48\x8b\x07\x48\x8b\x40(.)", re.DOTALL)  # pic = devices->?; pic->vtable->?()


class Pins:
    """The NMI and INTR pins, with an interrupt controller that answers, and the choice of CPU model.

    Bochs asks its 8259 for the vector, and this build has none: an object with that one method is put in its place.
    Where the place is, and which method, is read from the instructions that use them; a build that does it in another
    way is refused.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(bochscpu._bochscpu.__file__)
        self._vector = 0
        start = ctypes.cast(self._library[_ACKNOWLEDGE], ctypes.c_void_p).value or 0
        found = _PIC_CALL.search(ctypes.string_at(start, 64))
        if found is None:
            raise NotThere(
                "this build of bochscpu acknowledges interrupts in a way that is not known here; 0.3.1 works"
            )
        # all of these are kept: Bochs has only their addresses
        self._answer = ctypes.CFUNCTYPE(ctypes.c_uint8, ctypes.c_void_p)(lambda _: self._acknowledge())
        self._vtable = (ctypes.c_void_p * 32)()
        self._vtable[found[2][0] // 8] = ctypes.cast(self._answer, ctypes.c_void_p).value
        self._pic = (ctypes.c_void_p * 1)(ctypes.addressof(self._vtable))
        devices = ctypes.addressof(ctypes.c_char.in_dll(self._library, "bx_devices"))
        ctypes.c_void_p.from_address(devices + found[1][0]).value = ctypes.addressof(self._pic)

    def _acknowledge(self) -> int:
        self._library[_CLEAR_INTR]()
        return self._vector

    def nmi(self) -> None:
        """Raise NMI."""
        self._library[_DELIVER_NMI]()

    def interrupt(self, vector: int) -> None:
        """Raise INTR; the controller will answer with `vector`."""
        self._vector = vector
        self._library[_RAISE_INTR]()

    def widen(self) -> None:
        """Make linear addresses 57 bits wide: loading a state with CR4.LA57 does not. CR4 has to be loaded again."""
        self._library[_SET_CR4](None, ctypes.c_uint64(PAE | LA57))

    def model(self, vendor: str) -> None:
        """Make the next session's CPU one of this vendor's."""
        parameter = self._library["sim_get_param_enum"]
        parameter.restype = ctypes.c_void_p
        self._library[_SET_MODEL](ctypes.c_void_p(parameter(_MODEL_PARAMETER)), ctypes.c_int64(MODELS[vendor]))
