"""Measuring on a shared machine: interleaved timings, peak memory of a child process, and aligned tables."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BLOCK_SECONDS = 0.02


@dataclass(frozen=True)
class Timing:
    """Seconds a call of each contender, one entry a block; blocks of equal index ran next to each other."""

    blocks: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Seconds."""
        return float(np.median(self.blocks[name]))

    def ratio(self, name: str, other: str) -> tuple[float, float, float]:
        """Median, 10th and 90th percentile of the ratio of neighbouring blocks."""
        ratios = np.asarray(self.blocks[name]) / np.asarray(self.blocks[other])
        return float(np.median(ratios)), *(float(np.percentile(ratios, p)) for p in (10, 90))


def interleaved(
    contenders: dict[str, Callable[[], object]], *, blocks: int = 40, block_seconds: float = BLOCK_SECONDS
) -> Timing:
    """Time each contender in short blocks, one after the other in changing order, so that noise hits all alike."""
    calls = {name: _calls(call, block_seconds) for name, call in contenders.items()}
    found: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for index in range(blocks):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            found[name].append(_block(contenders[name], calls[name]))
    return Timing(found)


def _calls(call: Callable[[], object], seconds: float) -> int:
    call()
    return max(1, int(seconds / min(_block(call, 1) for _ in range(3))))


def _block(call: Callable[[], object], calls: int) -> float:
    call()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def in_child(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """What a fresh process returns from ``function(*args)``, and its peak memory in bytes.

    Raises:
        SystemExit: the child ended without an answer.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(sender, function, args))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise SystemExit(f"{function.__name__} ended without an answer") from None
    finally:
        child.join()


def _answer(sender: Any, function: Callable[..., Any], args: Sequence[Any]) -> None:
    result = function(*args)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    sender.send((result, float(peak)))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, aligned: the first column to the left, numbers to the right."""
    text = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[i]) for row in text) for i in range(len(columns))]
    rule = [("-" if i == 0 else "-" * (w - 1)) + ("-" * (w - 1) if i == 0 else ":") for i, w in enumerate(widths)]
    lines = [text[0], rule, *text[1:]]
    return "\n".join(_line(cells, widths) for cells in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return f"| {' | '.join(padded)} |"
