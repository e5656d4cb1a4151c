"""Passes as they are written on the command line, and read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_pass import Plain

from qcomp import pipeline, registry
from qcomp.errors import OptionError


@dataclass(frozen=True)
class Options(Plain):
    """A field of every type."""

    flag: bool = False
    count: int = 3
    ratio: float = 0.5
    text: str = "a"
    choice: Literal["one", "two"] = "one"
    names: tuple[str, ...] = ()
    maybe: str | None = "b"
    limit: int | None = None


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    """``plain`` and ``options`` are passes too."""
    known, find = {"plain": Plain, "options": Options}, registry.find
    monkeypatch.setattr(registry, "find", lambda kind, name: known.get(name) or find(kind, name))


class TestLines:
    """Text to passes and back."""

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("flag=true", Options(flag=True)),
            ("flag=false", Options()),
            ("count=-7", Options(count=-7)),
            ("ratio=1e-3", Options(ratio=0.001)),
            ("text=x=y", Options(text="x=y")),
            ("text=", Options(text="")),
            ("choice=two", Options(choice="two")),
            ("names=a|b*|c", Options(names=("a", "b*", "c"))),
            ("names=", Options()),
            ("maybe=none", Options(maybe=None)),
            ("maybe=c", Options(maybe="c")),
            ("limit=4", Options(limit=4)),
            ("limit=none", Options()),
            ("flag=true   count=1", Options(flag=True, count=1)),
            ("", Options()),
        ],
    )
    def test_options(self, text, expected):
        assert pipeline.parse(f"options{{{text}}}") == [expected]

    @pytest.mark.parametrize(
        ("line", "names"),
        [
            ("", []),
            ("plain", ["plain"]),
            ("plain,options", ["plain", "options"]),
            (" plain , options{} ,plain{}", ["plain", "options", "plain"]),
            ("plain,", ["plain"]),
            ("options{count=1 text=a,b},plain", ["options", "plain"]),
            ("fold_batchnorm", ["fold-batchnorm"]),
        ],
    )
    def test_lines(self, line, names):
        assert [step.name() for step in pipeline.parse(line)] == names

    @pytest.mark.parametrize(
        "line",
        ["a b", "plain{", "plain}", "plain{count=1", ",plain", "plain,,plain", "plain{a={}}", "pla!n", " ", "{}"],
    )
    def test_malformed_lines(self, line):
        with pytest.raises(OptionError, match=r"cannot read .*write name\{key=value key=value\},name"):
            pipeline.parse(line)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("count=1.5", r"options\{count\}: '1.5' is not of type int"),
            ("ratio=much", r"options\{ratio\}: 'much' is not of type float"),
            ("flag=yes", r"options\{flag\}: 'yes' is not true or false"),
            ("choice=three", r"options\{choice\}: unknown value 'three' \(known: one, two\)"),
            ("limit=few", r"options\{limit\}: 'few' is not of type int"),
            ("unknown=1", r"options: unknown option 'unknown' \(known: flag, count, "),
            ("count", r"options: cannot read the option 'count' \(write key=value\)"),
            ("count=1 count=2", r"options: the option 'count' is given twice"),
        ],
    )
    def test_wrong_options(self, text, message):
        with pytest.raises(OptionError, match=f"^{message}"):
            pipeline.parse(f"options{{{text}}}")

    def test_a_pass_without_options(self):
        with pytest.raises(OptionError, match=r"plain: unknown option 'x' \(it has no options\)"):
            pipeline.parse("plain{x=1}")

    def test_an_unknown_pass(self):
        with pytest.raises(OptionError, match=r"unknown pass 'clean-upp' \(did you mean 'clean-up'\?"):
            pipeline.parse("clean-upp")

    word = st.text("abcxyz019*_-./", min_size=1).filter(lambda text: text != "none")

    @given(
        st.builds(
            Options,
            flag=st.booleans(),
            count=st.integers(),
            ratio=st.floats(allow_nan=False),
            text=word,
            choice=st.sampled_from(["one", "two"]),
            names=st.lists(word).map(tuple),
            maybe=st.none() | word,
            limit=st.none() | st.integers(),
        )
    )
    def test_what_is_written_is_read_again(self, step):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry, "find", lambda kind, name: Options)
            assert pipeline.parse(str(step)) == [step]
            assert pipeline.parse(f"{step},{step}") == [step, step]

    def test_only_what_differs_is_written(self):
        assert str(Options()) == "options"
        assert str(Options(flag=True, names=("a", "b"), maybe=None)) == "options{flag=true names=a|b maybe=none}"

    def test_presets(self):
        for level in range(4):
            line = pipeline.parse(pipeline.preset(level))
            assert line
            assert pipeline.parse(",".join(map(str, line))) == line
        for level in (-1, 4):
            with pytest.raises(OptionError, match=f"unknown optimization level -O{level}"):
                pipeline.preset(level)

    def test_backends(self):
        assert pipeline.parse_backend("onnxruntime").name() == "onnxruntime"
        for spec in ("", "onnxruntime,onnxruntime"):
            with pytest.raises(OptionError, match="one backend is needed"):
                pipeline.parse_backend(spec)
        with pytest.raises(OptionError, match="onnxruntime: unknown option 'x'"):
            pipeline.parse_backend("onnxruntime{x=1}")


class TestOverride:
    """Options of the command line over those of the line."""

    def test_every_pass_that_has_it(self):
        line = [Options(), Plain(), Options(count=9)]
        assert pipeline.override(line, count="4", maybe=None) == [Options(count=4), Plain(), Options(count=4)]
        assert pipeline.override(line, names=("a",))[0].names == ("a",)
        assert line[0] == Options()

    def test_one_that_no_pass_has(self):
        with pytest.raises(OptionError, match="plain, options: no pass of this line has the option 'group'"):
            pipeline.override([Plain(), Options()], group=3)

    def test_a_value_of_the_wrong_type(self):
        with pytest.raises(OptionError, match="is not of type int"):
            pipeline.override([Options()], count="many")


@pytest.mark.parametrize("pattern", ["a b", "x|y", "{1}", "a,b", "head/*", "it's", "[ab]=?"])
def test_patterns_of_any_characters_survive_the_line(pattern):
    line = pipeline.override(pipeline.parse("choose-precision,insert-qdq"), keep=(pattern, "c"))
    written = ",".join(map(str, line))
    assert pipeline.parse(written) == line


def test_a_quote_in_a_pattern_is_any_character():
    line = pipeline.override(pipeline.parse("choose-precision"), keep=('say "a"',))
    assert pipeline.parse(str(line[0]))[0].keep == ("say ?a?",)


def test_a_quote_that_is_not_closed_cannot_be_read():
    with pytest.raises(OptionError, match="cannot read"):
        pipeline.parse('choose-precision{keep="a b}')
