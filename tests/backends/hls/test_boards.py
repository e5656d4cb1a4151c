"""The boards as data, and boards of which only the resources are known."""

import pytest

from qcomp.backends.hls import boards
from qcomp.backends.hls.boards import EXAMPLE, Board
from qcomp.errors import OptionError

KNOWN = ["pynq-z2", "ultra96-v2", "kv260", "zcu104", "zcu102", "alveo-u250"]


def test_boards_are_in_order_of_size():
    assert [board.name for board in boards.ALL] == KNOWN
    for smaller, larger in zip(boards.ALL, boards.ALL[1:], strict=False):
        assert (smaller.dsp, smaller.lut, smaller.ff) < (larger.dsp, larger.lut, larger.ff)
        assert smaller.clock_mhz <= larger.clock_mhz


@pytest.mark.parametrize("board", boards.ALL, ids=lambda board: board.name)
def test_the_numbers_fit_each_other(board: Board):
    assert boards.find(board.name) is board
    assert board.ff == 2 * board.lut
    assert board.bram18 % 2 == 0
    assert (board.dsp_kind == "DSP48E1") == (board.processing_system == "zynq") == board.part.startswith("xc7")
    assert (board.processing_system is None) == (board.name == "alveo-u250")
    assert board.clock_ns * board.clock_mhz == 1000
    assert board.board_part.count(":") == 3


def test_the_pynq_z2_is_an_xc7z020():
    board = boards.find("pynq-z2")
    assert (board.dsp, board.bram18, board.uram, board.lut, board.ff) == (220, 280, 0, 53200, 106400)
    assert board.part == "xc7z020clg400-1"


def test_a_generic_board():
    board = boards.find(EXAMPLE)
    pynq = boards.find("pynq-z2")
    assert board == Board("generic", pynq.part, None, 220, 280, 0, 53200, 106400, 100.0, "DSP48E1", None)
    other = boards.parse_generic("part=xczu5ev-sfvc784-1-e, dsp=1248,bram18=0,lut=1,ff=2,clock=333.3")
    assert (other.uram, other.bram18, other.clock_mhz, other.dsp_kind) == (0, 0, 333.3, "DSP48E2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pynq-z3", "unknown board 'pynq-z3' (did you mean 'pynq-z2'? "),
        (f"{EXAMPLE},bram=3", "unknown resource 'bram' (did you mean 'bram18'? "),
        (f"{EXAMPLE},dsp=3", "dsp is given twice"),
        ("dsp=1,part=x", "a generic board needs bram18, lut, ff, clock (for example "),
        (EXAMPLE.replace("dsp=220", "dsp=-3"), "dsp='-3' is not a number"),
        (EXAMPLE.replace("lut=53200", "lut=0"), "lut='0' is not a number"),
        (EXAMPLE.replace("ff=106400", "ff=many"), "ff='many' is not a number"),
        (EXAMPLE.replace("ff=106400", "ff=٣"), "is not a number"),
        (EXAMPLE.replace("clock=100", "clock=0"), "clock='0' is not a clock"),
        (EXAMPLE.replace("clock=100", "clock=nan"), "clock='nan' is not a clock"),
        (EXAMPLE.replace("xc7z020", "x}; exit; {"), "is not the name of a part"),
    ],
)
def test_wrong_boards_are_refused(text, said):
    with pytest.raises(OptionError) as error:
        boards.find(text)
    assert str(error.value).startswith("option board: ")
    assert said in str(error.value)
