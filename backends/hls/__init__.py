"""FPGA: the integer graph as an HLS C++ project, bit for bit what the other forms give."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from qcomp.backend import Backend, Runner
from qcomp.errors import OptionError
from qcomp.runtime import Feeds


@dataclass(frozen=True)
class Hls(Backend):
    """A dataflow design in HLS C++ with its C simulation, for Vitis HLS.

    Args:
        board: one of pynq-z2, zcu104, zcu102, kv260, ultra96-v2, alveo-u250; or resources, in quotes:
            ``"dsp=220,bram18=280,lut=53200,ff=106400,clock=100,part=xc7z020clg400-1"``.
        rate: samples a second that the design must reach, in as little hardware as that takes; 0 for the fastest that
            fits.
        ports: of the top: AXI streams with TLAST, or pointers into memory (``m_axi``, set over ``s_axilite``).
    """

    board: str = "pynq-z2"
    rate: float = 0.0
    ports: Literal["stream", "memory"] = "stream"

    @property
    def recipe(self) -> str:
        return "dyadic-rescale"

    @property
    def takes_integers_only(self) -> bool:
        return True

    def check_place(self, out: Path, others: Sequence[str | os.PathLike[str] | None] = ()) -> None:
        from qcomp.backends.hls import project

        project.check(out, others)

    def emit(self, model: ir.Model, out: Path, feeds: Sequence[Feeds] = ()) -> list[Path]:
        from qcomp.backends.hls import boards, folding, lowering, project

        if not (math.isfinite(self.rate) and self.rate >= 0):
            raise OptionError(f"{self.rate} samples a second", where="rate", hint="give a positive number")
        board = boards.find(self.board)
        cycles = min(board.clock_mhz * 1e6 / self.rate, folding.LONGEST) if self.rate > 0 else 0
        interval = max(int(cycles), 1) if self.rate > 0 else None
        network = lowering.lower(model)
        design, flow = folding.fold(network, board, interval)
        return project.write(design, flow, board, model, feeds, out, self.ports)

    @classmethod
    def opened(cls, path: Path, *, integers: bool = False) -> Runner | None:
        from qcomp.backends.hls import csim

        return csim.opened(path, integers=integers)
