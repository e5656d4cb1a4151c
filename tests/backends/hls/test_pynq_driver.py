"""The driver of a board, with a fake of PYNQ."""

import ast
import sys
import types

import numpy as np
import pytest
from hls_project import project

from qcomp.backends.hls.text import render
from qcomp.quantization.qparams import QParams
from qcomp.quantization.qtype import QType


def driver(values: dict, path: str = "/nowhere/pynq_driver.py") -> types.ModuleType:
    text = render("pynq_driver.py", project=values)
    ast.parse(text)
    module = types.ModuleType("pynq_driver")
    module.__file__ = path
    exec(compile(text, path, "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("seed", range(3))
def test_the_driver_quantizes_as_qcomp_does(seed):
    rng = np.random.default_rng(seed)
    scale, zero = float(np.float32(rng.uniform(0.001, 2))), int(rng.integers(0, 256))
    changed = {port: project()[port] | {"scale": scale, "zero_point": zero} for port in ("input", "output")}
    found = driver(project(**changed))
    params = QParams(QType(8, signed=False), np.float32(scale), np.int64(zero))
    real = (rng.normal(0, 100 * scale, 1000)).astype(np.float32)
    real[:500] = (np.arange(500) - 250 + 0.5).astype(np.float32) * np.float32(scale)
    integers = found.quantize(real)
    assert integers.dtype == np.uint8
    np.testing.assert_array_equal(integers, params.quantize(real))
    back = found.dequantize(integers)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, params.dequantize(integers))


def test_narrow_and_wide_integers():
    changed = {"input": project()["input"] | {"bits": 3}, "output": project()["output"] | {"bits": 16, "scale": None}}
    found = driver(project(**changed))
    assert set(found.quantize(np.linspace(-1, 1, 200))) == set(range(8))
    words = np.array([0, 1, 256, 65535, 4, 5, 6, 7, 8, 9], np.uint16)
    assert found.unpack(words).dtype == np.uint16
    np.testing.assert_array_equal(found.dequantize(found.unpack(words)), words)


def test_packing_keeps_the_order_of_channels():
    found = driver(project())
    sample = np.arange(120, dtype=np.uint8).reshape(5, 4, 6)
    np.testing.assert_array_equal(found.pack(sample), np.arange(120))
    np.testing.assert_array_equal(found.pack(np.asfortranarray(sample)[None]), np.arange(120))
    with pytest.raises(ValueError, match=r"shape \[5, 4, 6\], channels last; this one has \(6, 5, 4\)"):
        found.pack(sample.transpose(2, 0, 1))


class Buffer(np.ndarray):
    """Memory that the device sees only after a flush, and the processor only after invalidate."""

    def flush(self):
        self.log.append("flush")

    def invalidate(self):
        self.log.append("invalidate")

    def freebuffer(self):
        self.log.append("free")


class Channel:
    def __init__(self, log, name, work=lambda buffer: None):
        self.log, self.name, self.work = log, name, work

    def transfer(self, buffer):
        self.log.append(f"{self.name} {buffer.size}")
        self.work(buffer)

    def wait(self):
        self.log.append(f"wait {self.name}")


def fake_pynq(log: list, core: bool) -> types.ModuleType:
    """A device that answers with the first ten integers it gets, times two."""
    module, device = types.ModuleType("pynq"), types.SimpleNamespace(received=None)

    def allocate(shape, dtype):
        buffer = np.zeros(shape, dtype).view(Buffer)
        buffer.log = log
        return buffer

    def arm(buffer):
        device.received = buffer

    def answer(buffer):
        device.received[:] = 2 * buffer[:10]

    dma = types.SimpleNamespace(sendchannel=Channel(log, "send", answer), recvchannel=Channel(log, "receive", arm))
    registers = types.SimpleNamespace(write=lambda offset, value: log.append(f"write {offset} {value}"))

    def overlay(bitfile):
        log.append(bitfile)
        return types.SimpleNamespace(dma=dma, core=registers, ip_dict={"core": {}} if core else {})

    module.Overlay, module.allocate = overlay, allocate
    return module


@pytest.mark.parametrize("core", [False, True])
def test_the_driver_runs_samples(monkeypatch, tmp_path, core):
    log = []
    monkeypatch.setitem(sys.modules, "pynq", fake_pynq(log, core))
    found = driver(project(), str(tmp_path / "pynq_driver.py"))
    batch = np.random.default_rng(0).uniform(0, 4, (2, 5, 4, 6)).astype(np.float32)
    np.save(tmp_path / "samples.npy", batch)
    found.main(tmp_path / "samples.npy", tmp_path / "results.npy")
    expected = found.dequantize((2 * found.quantize(batch).reshape(2, -1)[:, :10]).astype(np.uint8))
    np.testing.assert_array_equal(np.load(tmp_path / "results.npy"), expected)
    once = ["flush", "receive 10", "send 120", "wait send", "wait receive", "invalidate"]
    started = ["write 0 129"] if core else []
    assert log == [str(tmp_path / "bitstream" / "qcomp.bit"), *started, *once, *once, "free", "free"]
