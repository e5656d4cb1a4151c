"""The scales of channels by which the weights before and after them have equal ranges.

With ``r1`` the range of the weights that make a channel and ``r2`` that of the weights that read it, each over the
range of its whole tensor, scaling the channel by ``s = sqrt(r2 / r1)`` makes them equal, ``r1 s = r2 / s``, which
maximizes the precision ``sum r1 r2`` that one scale a tensor leaves (Nagel et al. 2019, arXiv:1906.04721, section 4.1).
Blocks of channels are relaxed one after the other until nothing moves: a descent by coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np

from qcomp import graph
from qcomp.equalization.free_channels import FreeChannels, Site
from qcomp.graph import Array

SWEEPS = 200
CONVERGED = 1e-3
"""The largest step, in powers of two, at which a sweep is the last."""
SETTLED = 1e-2
"""Scales within so many powers of two of 1 are left alone: the network is equalized."""
LARGEST = 10.0
"""No channel is scaled by more than so many powers of two."""
HUGE = 1e30
"""Weights and biases above this are not touched, so that nothing overflows."""


def balance(found: FreeChannels, most: Array) -> Array:
    """Choose the scale of every variable.

    Args:
        found: the variables.
        most: the largest scale a variable may have, at least 1, float64 ``(variables,)``.

    Returns:
        The scales, float64 ``(variables,)``; all 1 where they would hardly change anything.
    """
    logs = np.zeros(found.count)
    upper = np.minimum(np.log2(most), LARGEST)
    blocks = _blocks(found)
    for _ in range(SWEEPS):
        if max((block.relax(logs, upper) for block in blocks), default=0.0) < CONVERGED:
            break
    return np.exp2(logs) if np.abs(logs).max(initial=0.0) > SETTLED else np.ones(found.count)


@dataclass(frozen=True)
class _Weights:
    """The largest weights between channels of a site, float32 ``(groups, outputs, inputs)`` of a group."""

    site: Site
    magnitudes: Array

    def scaled(self, logs: Array) -> Array:
        """Under the scales found so far, over the largest of all."""
        groups, outputs, inputs = self.magnitudes.shape
        result = self.magnitudes * np.exp2(logs[self.site.outputs]).reshape(groups, outputs, 1)
        if self.site.inputs is not None:
            result *= np.exp2(-logs[self.site.inputs]).reshape(groups, 1, inputs)
        return result / max(float(result.max()), 1e-300)


@dataclass(frozen=True)
class _Block:
    """Variables that are chosen together, and who makes and reads them.

    Args:
        variables: those that may move, sorted.
        makers, readers: the weights, and for each channel its place in ``variables``, or their number where it is held.
        step: how much of the way to balance is taken; less where weights make and read variables of one block.
    """

    variables: Array
    makers: Sequence[tuple[_Weights, Array]]
    readers: Sequence[tuple[_Weights, Array]]
    step: float

    def relax(self, logs: Array, upper: Array) -> float:
        """Balance the block in place; the largest step taken. Dead channels stay."""
        before, after = np.zeros((2, len(self.variables) + 1))
        for weights, places in self.makers:
            np.maximum.at(before, places, weights.scaled(logs).max(axis=2).reshape(-1))
        for weights, places in self.readers:
            np.maximum.at(after, places, weights.scaled(logs).max(axis=1).reshape(-1))
        before, after = before[:-1], after[:-1]
        alive = (before > 0) & (after > 0)
        step = self.step * np.log2(np.where(alive, after, 1.0) / np.where(alive, before, 1.0))
        old = logs[self.variables]
        new = np.clip(old + step, -LARGEST, np.where(alive, upper[self.variables], old))
        logs[self.variables] = new
        return float(np.abs(new - old).max(initial=0.0))


def _blocks(found: FreeChannels) -> list[_Block]:
    """The blocks that can move, in the order of the graph."""
    makers = np.full(found.count, -1)
    for index, site in enumerate(found.sites):
        makers[site.outputs] = index
    links: nx.Graph[int] = nx.Graph()
    links.add_nodes_from(range(len(found.sites)))
    readers: dict[int, list[int]] = {}
    for index, site in enumerate(found.sites):
        links.add_edges_from((index, maker) for maker in _distinct(makers[site.outputs]))
        made_by = _distinct(makers[site.inputs]) if site.inputs is not None else []
        if made_by:
            links.add_edges_from((made_by[0], maker) for maker in made_by[1:])
            readers.setdefault(made_by[0], []).append(index)
    parts = sorted(sorted(component) for component in nx.connected_components(links))
    weights: dict[int, _Weights] = {}
    read_by = [sorted({r for m in part for r in readers.get(m, ())}) for part in parts]
    blocks = [_block(found, part, reading, weights) for part, reading in zip(parts, read_by, strict=True)]
    return [block for block in blocks if block is not None]


def _distinct(makers: Array) -> list[int]:
    return [int(maker) for maker in np.unique(makers) if maker >= 0]


def _block(found: FreeChannels, makers: list[int], readers: list[int], weights: dict[int, _Weights]) -> _Block | None:
    """The block, or None where nothing of it can move: all is held, nobody reads it, or weights are no numbers.

    Args:
        weights: by the index of the site; those that are missing are added.
    """
    variables = np.unique(np.concatenate([found.sites[m].outputs for m in makers]))
    variables = variables[~found.held[variables]]
    if not variables.size or not readers or not all(_is_sound(found.sites[i]) for i in (*makers, *readers)):
        return None
    for index in {*makers, *readers} - weights.keys():
        weights[index] = _Weights(found.sites[index], found.sites[index].linear.magnitudes())
    return _Block(
        variables,
        [(weights[i], _places(found.sites[i].outputs, variables)) for i in makers],
        [(weights[i], _places(found.sites[i].inputs, variables)) for i in readers],
        step=0.25 if set(makers) & set(readers) else 0.5,
    )


def _places(channels: Array | None, variables: Array) -> Array:
    assert channels is not None
    places = np.searchsorted(variables, channels)
    there = variables[np.minimum(places, len(variables) - 1)] == channels
    return np.where(there, places, len(variables))


def _is_sound(site: Site) -> bool:
    arrays = (site.linear.weight, graph.constant(site.linear.bias))
    return all(bool((np.abs(a) < HUGE).all()) for a in arrays if a is not None)
