"""Rules of the directives in preprocessed C++: which there may be, their arguments, places and variables."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate

from llvm_ir import Place, Report

NAME = r"[A-Za-z_][\w.]*"
COUNT = r"[1-9]\d*|(\w+::)+\w+"


@dataclass(frozen=True)
class Rule:
    """What a directive may look like.

    Args:
        arguments: each with the expression its value must match; a word without a value is its own key.
        needed: those that must be there.
        inside: "loop" (directly in its body), "function" (in its body, in no loop), or "any".
    """

    arguments: dict[str, str]
    needed: frozenset[str] = frozenset()
    inside: str = "any"


def _rule(inside: str, needed: str = "", **arguments: str) -> Rule:
    return Rule(arguments, frozenset(needed.split()), inside)


ALLOWED = {
    "PIPELINE": _rule("loop", "II style", II="1", style="flp"),
    "LOOP_FLATTEN": _rule("loop"),
    "UNROLL": _rule("loop"),
    "INLINE": _rule("function", off=""),
    "DATAFLOW": _rule("function"),
    "ARRAY_PARTITION": _rule("any", "variable type dim", variable=NAME, type="complete", dim=r"\d+"),
    "ARRAY_RESHAPE": _rule("any", "variable type dim", variable=NAME, type="complete", dim=r"\d+"),
    "BIND_STORAGE": _rule(
        "any",
        "variable type",
        variable=NAME,
        type="rom_1p|rom_2p|rom_np|ram_1p|ram_s2p|ram_2p|ram_t2p|fifo",
        impl="bram|lutram|uram|srl",
    ),
    "BIND_OP": _rule("any", "variable op impl", variable=NAME, op="mul|add|sub", impl="dsp|fabric"),
    "AGGREGATE": _rule("any", "variable compact", variable=NAME, compact="bit"),
    "STREAM": _rule("function", "variable depth", variable=NAME, depth=COUNT),
    "DEPENDENCE": _rule(
        "any",
        "variable type dependent",
        variable=NAME,
        type="inter|intra",
        direction="RAW|WAR|WAW",
        distance=COUNT,
        dependent="true|false",
    ),
    "INTERFACE": _rule(
        "function",
        "mode port",
        mode="axis|s_axilite|ap_ctrl_none|m_axi",
        port=NAME,
        bundle=NAME,
        offset="slave",
        depth=rf"{COUNT}|{NAME}",
    ),
}
"""The directives of Vitis HLS that designs use, all spelled NAME key=value.

Source: UG1399, and XlxPragmaOption.td of Xilinx's hls-llvm-project, the front end of Vitis HLS: numbers may be constant
expressions, of template arguments too.
"""


@dataclass
class Block:
    """Braces that are open.

    Args:
        header: what stands before the brace: ``for (...)``, a function's signature, a namespace.
        start: where the header begins in the text.
    """

    header: str
    start: int
    place: Place
    pragmas: list[str] = field(default_factory=list)
    has_loop: bool = False

    @property
    def is_loop(self) -> bool:
        return re.match(r"(for|while|do)\b", self.header) is not None

    @property
    def is_scope(self) -> bool:
        """Whether it holds declarations and no statements."""
        return (
            re.match(r"(template\s*<.*>\s*)?(namespace|struct|class|union|enum|extern)\b[^()]*$", self.header)
            is not None
        )


class Reader:
    """Walks through preprocessed text and checks every directive.

    Args:
        own: whether a file is one of the design's; the others' lines are left out.
        report: takes place, rule and text of a finding.
    """

    def __init__(self, own: Callable[[str], bool], report: Report):
        self.own, self.report = cache(own), report
        self.blocks: list[Block] = []
        self.text, self.statement = "", 0

    def read(self, preprocessed: str) -> None:
        """Check one file with all it includes."""
        located = [(place, _without_texts(line)) for place, line in located_lines(preprocessed) if self.own(place.file)]
        starts = list(accumulate((len(line) + 1 for _, line in located), initial=0))
        self.text = "".join(line + "\n" for _, line in located)
        for token in re.finditer(r"[{};]|^[ \t]*#pragma(.*)$", self.text, re.MULTILINE):
            place = located[bisect_right(starts, token.start()) - 1][0]
            if token[1] is not None:
                self._pragma(place, token.start(), token[1].split())
            else:
                self._code(place, token.start(), token[0])

    def _code(self, place: Place, at: int, letter: str) -> None:
        if letter == "{":
            self._open(place, at)
        elif letter == "}":
            self._close()
        if letter != ";" or self._ends_a_statement(at):
            self.statement = at + 1

    def _ends_a_statement(self, at: int) -> bool:
        """Whether a semicolon stands in no parentheses, unlike those of ``for (...)``."""
        return self.text.count("(", self.statement, at) == self.text.count(")", self.statement, at)

    def _open(self, place: Place, at: int) -> None:
        block = Block(_without_pragmas(self.text[self.statement : at]).strip(), self.statement, place)
        if block.is_loop:
            for outer in self.blocks:
                outer.has_loop = True
        self.blocks.append(block)

    def _close(self) -> None:
        if not self.blocks:
            return
        block = self.blocks.pop()
        around = [block, *(outer for outer in self.blocks if outer.is_loop)]
        constant = any(re.search(r"\bconstexpr\b", outer.header) for outer in self.blocks)
        done = {pragma for each in around for pragma in each.pragmas} & {"PIPELINE", "UNROLL"}
        if block.is_loop and not block.has_loop and not done and not constant:
            self.report(block.place, "pipeline", "an innermost loop is neither pipelined nor unrolled")

    def _pragma(self, place: Place, at: int, words: list[str]) -> None:
        if words[:1] == ["once"]:
            return
        if words[:1] != ["HLS"] or len(words) < 2 or words[1] not in ALLOWED:
            self.report(place, "pragma", f"no such directive is allowed: {' '.join(words)}")
            return
        name, rule = words[1], ALLOWED[words[1]]
        if self.blocks:
            self.blocks[-1].pragmas.append(name)
        given = dict(word.partition("=")[::2] for word in words[2:])
        for key, value in given.items():
            if key not in rule.arguments or not re.fullmatch(rule.arguments[key], value):
                self.report(place, "pragma", f"{name} takes no {key}{'=' + value if value else ''}")
        for key in sorted(rule.needed - set(given)):
            self.report(place, "pragma", f"{name} needs {key}=")
        self._check_place(place, name, rule)
        variable = given.get("variable", given.get("port", "return"))
        if variable != "return" and not re.search(rf"\b{re.escape(variable.split('.')[0])}\b", self._visible(at)):
            self.report(place, "pragma", f"{name} names {variable}, which is not declared in this function")

    def _check_place(self, place: Place, name: str, rule: Rule) -> None:
        inner = self.blocks[-1] if self.blocks else None
        in_function = inner is not None and not any(block.is_loop for block in self.blocks) and not inner.is_scope
        if rule.inside == "loop" and not (inner and inner.is_loop):
            self.report(place, "pragma", f"{name} does not stand in the body of a loop")
        if rule.inside == "function" and not in_function:
            self.report(place, "pragma", f"{name} does not stand in the body of a function")

    def _visible(self, at: int) -> str:
        """The text of the function around, from its signature to here."""
        start = next((block.start for block in self.blocks if not block.is_scope), at)
        return _without_pragmas(self.text[start:at])


def _without_pragmas(text: str) -> str:
    return re.sub(r"(?m)^[ \t]*#pragma.*$", "", text)


def _without_texts(line: str) -> str:
    return re.sub(r'"(\\.|[^"\\])*"|\'(\\.|[^\'\\])+\'', '""', line)


def located_lines(preprocessed: str) -> Iterator[tuple[Place, str]]:
    """Every line of the preprocessor's output and where it comes from."""
    file, number = "", 1
    for line in preprocessed.splitlines():
        if marker := re.match(r'# (\d+) "((?:\\.|[^"\\])*)"', line):
            file, number = marker[2], int(marker[1])
        else:
            yield Place(file, number), line
            number += 1
