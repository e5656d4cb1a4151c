"""Who writes and who reads every stream of a design, from its intermediate code."""

from __future__ import annotations

import re
from collections.abc import Container

from llvm_ir import Call, Function, Module, Report

KINDS = {f"lint_stream_{kind}": kind for kind in ("create", "read", "write", "poll")}
"""The functions of ``synthesis/hls_stream.h`` that stand for what is done to a stream."""

Effects = dict[str, list[set[str]]]
"""For each function what is done to the streams its parameters name, directly or in what it calls."""


def effects_of(module: Module) -> Effects:
    """Grown until nothing is new, so that recursion does no harm."""
    effects: Effects = {name: [{kind}] for name, kind in KINDS.items()}
    effects |= {name: [set() for _ in function.parameters] for name, function in module.functions.items()}
    changed = True
    while changed:
        changed = False
        for name, function in module.functions.items():
            roots = aliases(function)
            for call in function.calls:
                for value, kinds in done(call, effects, roots):
                    if value in function.parameters:
                        known = effects[name][function.parameters.index(value)]
                        changed |= not kinds <= known
                        known |= kinds
    return effects


def aliases(function: Function) -> dict[str, str]:
    """Values that point into what another value points to."""
    found: dict[str, str] = {}
    for line in function.lines:
        copied = re.match(r"\s+(%\S+) = getelementptr .*?ptr (%[\w.]+|@[\w.$]+)", line)
        if copied:
            found[copied[1]] = found.get(copied[2], copied[2])
    return found


def done(call: Call, effects: Effects, roots: dict[str, str]) -> list[tuple[str, set[str]]]:
    """The streams that a call is given, and what it does to them."""
    known = effects.get(call.callee or "", [])
    pairs = zip(call.arguments, known, strict=False)
    return [(roots.get(value, value), kinds) for value, kinds in pairs if value and kinds]


def check(function: Function, effects: Effects, is_top: bool, report: Report) -> None:
    """One producer and one consumer for every stream that a function declares, one of either for those it is given.

    Args:
        is_top: whether every pointer it is given is a port. Else those are to which something is done, and only where
            the function declares streams itself.
    """
    users = _users(function, effects)
    local = [value for value, uses in users.items() if any("create" in kinds for _, kinds in uses)]
    for value in local:
        _check_ends(function, value, users[value], report)
    if local and sum(re.match(r"[\w.]+:", line) is not None for line in function.lines) > 1:
        report(
            function.place, "dataflow", "a function that declares streams branches; it may only call, one after another"
        )
    ports = function.pointers if is_top else [value for value in function.pointers if local and value in users]
    for value in ports:
        _check_port(function, value, users.get(value, []), report)


def check_waits(function: Function, effects: Effects, own: Container[str], report: Report) -> None:
    """Nothing but read() and write(), in calls of functions that are not the design's own."""
    for call in function.calls:
        if call.callee not in own and any("poll" in kinds for _, kinds in done(call, effects, {})):
            report(call.place, "stream", "only read() and write(), which wait, may be used on streams")


def _users(function: Function, effects: Effects) -> dict[str, list[tuple[Call, set[str]]]]:
    roots, users = aliases(function), {}
    for call in function.calls:
        merged: dict[str, set[str]] = {}
        for value, kinds in done(call, effects, roots):
            merged[value] = merged.get(value, set()) | kinds
        for value, kinds in merged.items():
            users.setdefault(value, []).append((call, kinds))
    return users


def _check_ends(function: Function, value: str, users: list[tuple[Call, set[str]]], report: Report) -> None:
    name, place = function.variable(value)
    for kind, end in (("write", "producer"), ("read", "consumer")):
        count = sum(kind in kinds for _, kinds in users)
        if count != 1:
            report(place, "stream", f"stream {name} has {count or 'no'} {end}{'s' if count > 1 else ''}")
    for call, kinds in users:
        if {"read", "write"} <= kinds:
            report(call.place, "stream", f"stream {name} is written and read by one call")


def _check_port(function: Function, value: str, users: list[tuple[Call, set[str]]], report: Report) -> None:
    """A stream is read or written by one call; memory is given to one call."""
    name, place = function.variable(value)
    if function.is_raw(value):
        count = sum(value in call.arguments for call in function.calls)
        if count != 1:
            report(place, "stream", f"memory {name} is given to {count} calls")
        return
    used = [kind for _, kinds in users for kind in sorted(kinds & {"read", "write"})]
    if len(used) != 1:
        report(place, "stream", f"port {name} is used {len(used)} times: {', '.join(used)}".rstrip(": "))
