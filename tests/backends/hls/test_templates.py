"""The files around a design: the scripts run under Tcl with recorded commands, the Makefile with make."""

import shutil
import subprocess

import jinja2
import pytest
from hls_project import project

from qcomp.backends.hls import boards
from qcomp.backends.hls.text import render, sanitized

HOSTILE = 'a*/\nexit\r;[exec rm]$(shell rm)`rm`""" {{ 7 * 7 }} }{ ??/ \\ | <b> # \u2028é\x00' + "x" * 100 + "\\"
TEMPLATES = ("build_hls.tcl", "block_design.tcl", "pynq_driver.py", "Makefile", "README.md")
WITH_A_PROCESSOR = [board.name for board in boards.ALL if board.processing_system]


# ---- names -----------------------------------------------------------------------------------------------------------


def test_names_are_sanitized():
    assert sanitized("serving_default/input: 0.1-b") == "serving_default/input: 0.1-b"
    assert sanitized("") == ""
    found = sanitized(HOSTILE)
    assert found.startswith("a_/_exit__")
    assert len(found) == 80
    assert not set(found) & set("*\n\r\t\\?$`{}[]()\"'|<>#;&%")
    assert sanitized("a\\" * 100)[-1] == "_"
    assert sanitized("é??/*/") == "___/_/"


@pytest.mark.parametrize("name", TEMPLATES)
def test_hostile_names_do_not_get_out(name):
    ports = {port: project()[port] | {"name": HOSTILE} for port in ("input", "output")}
    text = render(name, project=project(**ports))
    empty = {port: project()[port] | {"name": ""} for port in ("input", "output")}
    assert text.replace(sanitized(HOSTILE), "") == render(name, project=project(**empty))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_missing_value_is_an_error(name):
    with pytest.raises(jinja2.UndefinedError, match="'dict object' has no attribute"):
        render(name, project={"top": "x"})


@pytest.mark.parametrize("board", [board.name for board in boards.ALL] + [boards.EXAMPLE])
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_renders_for_every_board(name, board):
    text = render(name, project=project(board))
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert not any(line != line.rstrip() for line in text.splitlines())
    assert not any(mark in text for mark in ("{%", "{{", "None,\n    bits"))


# ---- Tcl -------------------------------------------------------------------------------------------------------------

RECORD = """
set calls {}
rename exit really_exit
proc exit args {}
proc unknown args {
    lappend ::calls $args
    set arguments [lsearch -all -inline -not $args -*]
    switch -- [lindex $args 0] {
        get_ipdefs - get_board_parts {
            set pattern [lindex $arguments 1]
            return [list [string map {* 1.9} $pattern] [string map {* 1.10} $pattern]]
        }
        get_bd_intf_pins { if {[lindex $arguments 1] in $::absent} { return {} } else { return [lindex $arguments 1] } }
        get_bd_pins - get_runs { return [lindex $arguments 1] }
        create_bd_cell { return [lindex $args end] }
        get_property { return [dict get $::properties [lrange $args 1 2]] }
        default { return {} }
    }
}
proc puts_calls {} { foreach call $::calls { puts "CALL [join $call { }]" } }
"""


def calls(script, *, before: str = "") -> list[str]:
    """The commands that are none of Tcl's, as the script gives them; ``tclsh`` runs it."""
    if shutil.which("tclsh") is None:
        pytest.skip("tclsh is not installed")
    text = f"{RECORD}\n{before}\nsource {{{script}}}\nputs_calls\n"
    done = subprocess.run(["tclsh"], input=text, capture_output=True, text=True, timeout=60, check=False)
    if done.stderr:
        raise RuntimeError(done.stderr)
    return [line.removeprefix("CALL ") for line in done.stdout.splitlines() if line.startswith("CALL ")]


@pytest.mark.parametrize("board", ["pynq-z2", "zcu104"])
@pytest.mark.parametrize("name", ["build_hls.tcl", "block_design.tcl"])
def test_scripts_are_complete(name, board):
    tkinter = pytest.importorskip("tkinter", exc_type=ImportError)
    tcl = tkinter.Tcl()
    text = render(name, project=project(board))
    assert tcl.call("info", "complete", text)
    assert not tcl.call("info", "complete", text[: text.rindex("}")])


def hls_calls(folder, words: str = "", *, before: str = "") -> list[str]:
    (folder / "testbench").mkdir(exist_ok=True)
    (folder / "testbench" / "samples.txt").write_text("")
    (folder / "build_hls.tcl").write_text(render("build_hls.tcl", project=project()))
    return calls(folder / "build_hls.tcl", before=f"set argv {{-f build_hls.tcl -- {words}}}\n{before}")


STEPS = {"csim": "csim_design", "csynth": "csynth_design", "cosim": "cosim_design", "export": "export_design"}


def steps(found: list[str]) -> set[str]:
    return {name for name, command in STEPS.items() if any(call.split()[0] == command for call in found)}


def test_synthesis_is_the_default(tmp_path):
    found = hls_calls(tmp_path)
    flags = f"-std=c++14 -DQCOMP_HLS -I{tmp_path}/firmware"
    assert found == [
        "open_project -reset hls",
        "set_top qcomp_top",
        f"add_files {tmp_path}/firmware/qcomp_top.cpp -cflags {flags}",
        f"add_files {tmp_path}/firmware/weights_0.cpp -cflags {flags}",
        f"add_files -tb {tmp_path}/testbench/main.cpp -cflags {flags}",
        f"add_files -tb {tmp_path}/testbench/samples.txt",
        "open_solution -reset solution -flow_target vivado",
        "set_part xc7z020clg400-1",
        "create_clock -period 10.000 -name default",
        "csynth_design",
        "close_project",
    ]


@pytest.mark.parametrize("on", [(), ("csim",), ("csynth", "export"), ("cosim",), tuple(STEPS)], ids="+".join)
def test_steps_are_switched(tmp_path, on):
    words = " ".join(f"{name}={int(name in on)}" for name in STEPS)
    found = hls_calls(tmp_path, words)
    assert steps(found) == set(on)
    assert ("open_project -reset hls" in found) == ("csynth" in on)
    assert steps(hls_calls(tmp_path, before=f"set env(QCOMP_STEPS) {{{words}}}")) == set(on)


@pytest.mark.parametrize("word", ["csym=1", "csim=yes", "cosim="])
def test_unknown_steps_are_refused(tmp_path, word):
    with pytest.raises(RuntimeError, match=f"{word} is not a step"):
        hls_calls(tmp_path, word)


def design_calls(folder, values: dict, *, absent: str = "core/input core/output core/s_axi_control", width=6) -> list:
    """The block design's commands, for a core whose input stream has words of so many bytes."""
    for file in (
        "vivado/vivado.runs/impl_1/qcomp_wrapper.bit",
        "vivado/vivado.gen/bd/qcomp.hwh",
        "hls/solution/impl/ip/x",
    ):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(file)
    (folder / "block_design.tcl").write_text(render("block_design.tcl", project=values))
    widths = " ".join(f"{{CONFIG.TDATA_NUM_BYTES core/{name}}} {width}" for name in ("input", "input_r"))
    widths += " ".join(f" {{CONFIG.TDATA_NUM_BYTES core/{name}}} 2" for name in ("output", "output_r"))
    known = f"{widths} {{PROGRESS impl_1}} 100% {{STATS.WNS impl_1}} 0.5"
    return calls(folder / "block_design.tcl", before=f"set absent {{{absent}}}\nset properties {{{known}}}")


@pytest.mark.parametrize("board", WITH_A_PROCESSOR)
def test_the_block_design(tmp_path, board):
    found = design_calls(tmp_path, project(board))
    zynq = board == "pynq-z2"
    assert (tmp_path / "bitstream" / "qcomp.bit").read_text().endswith("wrapper.bit")
    assert (tmp_path / "bitstream" / "qcomp.hwh").read_text().endswith("qcomp.hwh")
    assert f"create_project -force vivado {tmp_path}/vivado -part {boards.find(board).part}" in found
    kind = "processing_system7" if zynq else "zynq_ultra_ps_e"
    assert f"create_bd_cell -type ip -vlnv xilinx.com:ip:{kind}:1.10 ps" in found
    assert "create_bd_cell -type ip -vlnv 1.10:hls:qcomp_top:1.10 core" in found
    links = [call.removeprefix("connect_bd_intf_net ") for call in found if call.startswith("connect_bd_intf_net")]
    master, slave = ("M_AXI_GP0", "S_AXI_HP0") if zynq else ("M_AXI_HPM0_FPD", "S_AXI_HP0_FPD")
    assert links == [
        "dma/M_AXIS_MM2S widen/S_AXIS",
        "widen/M_AXIS core/input_r",
        "core/output_r dma/S_AXIS_S2MM",
        "dma/M_AXI_MM2S memory/S00_AXI",
        "dma/M_AXI_S2MM memory/S01_AXI",
        f"memory/M00_AXI ps/{slave}",
        f"ps/{master} registers/S00_AXI",
        "registers/M00_AXI dma/S_AXI_LITE",
    ]
    dma = next(call for call in found if call.startswith("set_property") and call.endswith(" dma"))
    assert "CONFIG.c_m_axis_mm2s_tdata_width 16 CONFIG.c_m_axi_mm2s_data_width 32" in dma
    assert f"CONFIG.c_addr_width {32 if zynq else 40}" in dma
    assert "set_property -dict CONFIG.M_TDATA_NUM_BYTES 6 widen" in found
    clock = f"{boards.find(board).clock_mhz:.3f}"
    assert any(call.endswith(f"FREQMHZ {clock} ps") for call in found)
    order = [found.index(call) for call in ("assign_bd_address", "validate_bd_design", "save_bd_design")]
    assert order == sorted(order)


def wired(found: list[str]) -> dict[str, str]:
    """Every clock and reset input of the design, and what drives it."""
    pairs = (call.split()[1:] for call in found if call.startswith("connect_bd_net"))
    return {sink: source for source, sink in pairs}


def test_all_blocks_have_a_clock_and_a_reset(tmp_path):
    found = design_calls(tmp_path, project("zcu104"))
    wires = wired(found)
    cells = {call.split()[-1] for call in found if call.startswith("create_bd_cell")}
    assert cells == {"ps", "core", "dma", "reset", "memory", "registers", "widen"}
    assert {sink.split("/")[0] for sink, source in wires.items() if source == "ps/pl_clk0"} == cells
    driven = {sink.split("/")[0] for sink, source in wires.items() if source == "reset/peripheral_aresetn"}
    assert driven == cells - {"ps", "reset"}


def test_a_core_with_registers_and_words_that_fit(tmp_path):
    values = project("kv260", input=project()["input"] | {"lanes": 8, "words": 15})
    found = design_calls(tmp_path, values, absent="core/input_r core/output_r", width=8)
    assert "connect_bd_intf_net dma/M_AXIS_MM2S core/input" in found
    assert "connect_bd_intf_net registers/M01_AXI core/s_axi_control" in found
    assert "set_property -dict CONFIG.NUM_SI 1 CONFIG.NUM_MI 2 registers" in found
    assert not any(" widen" in call or " narrow" in call for call in found)


def test_a_core_of_another_width_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="stream input of the core has words of 8 bytes, not of 6"):
        design_calls(tmp_path, project(), width=8)


# ---- Makefile and README ---------------------------------------------------------------------------------------------


def write_sources(folder) -> dict:
    values = project()
    for source in values["sources"]:
        (folder / source).parent.mkdir(exist_ok=True)
        (folder / source).write_text("int unused_" + source.split("/")[1].replace(".", "_") + ";\n")
    (folder / "testbench" / "main.cpp").write_text(
        "#include <cstdio>\nint main(int count, char** words) { std::puts(words[count - 1]); return count - 2; }\n"
    )
    (folder / "Makefile").write_text(render("Makefile", project=values))
    return values


def make(folder, *words: str) -> str:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    return subprocess.run(["make", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout


def test_the_makefile_compiles_every_source_by_itself(tmp_path):
    values = write_sources(tmp_path)
    dry = make(tmp_path, "-n", "run")
    for source in values["sources"]:
        object_file = "build/" + source.replace(".cpp", ".o")
        assert any(f"-c {source} -o {object_file}" in line for line in dry.splitlines())
    assert dry.count("-std=c++14 ") == 3
    assert dry.count("-Ifirmware -Isimulation") == 3
    assert dry.count(" -O2 ") == 4
    assert "rm -rf build" in make(tmp_path, "-n", "clean")
    assert "clang++ " in make(tmp_path, "-n", "CXX=clang++")


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_make_builds_runs_and_cleans(tmp_path):
    write_sources(tmp_path)
    assert "\nhello\n" in make(tmp_path, "-j2", "run", "ARGS=hello")
    assert "up to date" in make(tmp_path, "build/simulate")
    make(tmp_path, "clean")
    assert not (tmp_path / "build").exists()


def test_the_readme_says_what_there_is():
    text = render("README.md", project=project())
    assert "| at 100 MHz | 8100.4 samples a second |" in text
    assert "| input | image | 5 x 4 x 6 | 8 | 20 x 6 |" in text
    assert "`block_design.tcl`" in text
    assert "pynq_driver.py" in text
    alone = render("README.md", project=project("alveo-u250"))
    assert "block_design" not in alone
    assert "pynq" not in alone
    assert "## Use the core" in alone
    assert "| DSP | 11 |" in alone
