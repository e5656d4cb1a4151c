"""The boards that a design is sized for: their resources, as data in ``boards.toml``."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qcomp.errors import OptionError, unknown

WHERE = "option board"
NUMBERS = ("dsp", "bram18", "lut", "ff", "clock")
"""What a generic board must say, besides its part."""
EXAMPLE = "dsp=220,bram18=280,lut=53200,ff=106400,clock=100,part=xc7z020clg400-1"


@dataclass(frozen=True)
class Board:
    """A device and what it holds.

    Args:
        part: the device with its package and speed grade, as Vivado names it.
        board_part: the board's files in Vivado, where it has them.
        dsp: multipliers of kind ``dsp_kind``.
        bram18: block RAMs of 18 Kbit.
        uram: UltraRAMs of 288 Kbit; no design uses them yet.
        lut: look-up tables of 6 inputs.
        ff: flip-flops.
        clock_mhz: the clock a design aims at.
        dsp_kind: DSP48E1 multiplies 25 by 18 bits, DSP48E2 27 by 18; costs count with the smaller.
        processing_system: "zynq" (7-series), "zynqmp" (UltraScale+), or none.
    """

    name: str
    part: str
    board_part: str | None
    dsp: int
    bram18: int
    uram: int
    lut: int
    ff: int
    clock_mhz: float
    dsp_kind: Literal["DSP48E1", "DSP48E2"]
    processing_system: Literal["zynq", "zynqmp"] | None

    @property
    def clock_ns(self) -> float:
        """The clock's period in nanoseconds."""
        return 1000 / self.clock_mhz


def _read(path: Path) -> tuple[Board, ...]:
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    none = {"board_part": None, "processing_system": None}
    boards = [Board(**{"name": name} | none | table) for name, table in tables.items()]
    return tuple(sorted(boards, key=lambda board: board.lut))


ALL = _read(Path(__file__).with_name("boards.toml"))
"""Every board, the smallest first."""


def find(name: str) -> Board:
    """The board of that name, or the one that ``dsp=...,bram18=...`` describes.

    Raises:
        OptionError: if there is none, or its description is not complete.
    """
    first, separator, _ = name.partition(",")
    if separator and first in {board.name for board in ALL}:
        raise OptionError(
            f"{name!r} is no board", where=WHERE, hint="separate options by blanks: hls{board=... rate=...}"
        )
    if "=" in name:
        return parse_generic(name)
    for board in ALL:
        if board.name == name:
            return board
    raise unknown("board", name, [board.name for board in ALL], where=WHERE)


def parse_generic(text: str) -> Board:
    """A board of which only the resources are known, from ``dsp=...,bram18=...,lut=...,ff=...,clock=...,part=...``.

    Args:
        text: the clock in MHz.

    Raises:
        OptionError: for keys that are unknown, twice or missing, and for values that are no positive numbers.
    """
    values = _values(text)
    missing = [key for key in (*NUMBERS, "part") if key not in values]
    if missing:
        raise OptionError(f"a generic board needs {', '.join(missing)}", where=WHERE, hint=f"for example {EXAMPLE}")
    part = values["part"]
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", part):
        raise OptionError(f"{part!r} is not the name of a part", where=WHERE, hint="for example xc7z020clg400-1")
    return Board(
        name="generic",
        part=part,
        board_part=None,
        **{key: _count(key, values[key]) for key in ("dsp", "bram18", "lut", "ff")},
        uram=0,
        clock_mhz=_clock(values["clock"]),
        dsp_kind="DSP48E1" if part.lower().startswith("xc7") else "DSP48E2",
        processing_system=None,
    )


def _values(text: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for pair in filter(None, text.split(",")):
        key, _, value = (word.strip() for word in pair.partition("="))
        if key not in (*NUMBERS, "part"):
            raise unknown("resource", key, (*NUMBERS, "part"), where=WHERE)
        if key in values:
            raise OptionError(f"{key} is given twice", where=WHERE, hint=f"for example {EXAMPLE}")
        values[key] = value
    return values


def _count(key: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value) or (int(value) == 0 and key in ("lut", "ff")):
        raise OptionError(f"{key}={value!r} is not a number of resources", where=WHERE, hint=f"for example {EXAMPLE}")
    return int(value)


def _clock(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", value) or float(value) == 0:
        raise OptionError(f"clock={value!r} is not a clock in MHz", where=WHERE, hint="for example clock=100")
    return float(value)
