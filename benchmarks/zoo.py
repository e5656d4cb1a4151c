"""The models and labelled data that the benchmarks and the slow tests run on: what each reads, and what is correct.

The folder of real models and data comes from ``--data`` or the environment variable ``QCOMP_DATA``; README.md in this
folder says what lies in it. The two digits models are part of qcomp and need no folder.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcomp import files, runtime
from qcomp.calibration.data import PRESETS, Preprocess, Samples, load_labels, open_data
from qcomp.compiler import DEFAULT_BATCH
from qcomp.models import digits
from qcomp.report.outputs import sqnr

Array = np.ndarray[Any, np.dtype[Any]]
Feeds = dict[str, Array]
Outputs = dict[str, Array]

CALIBRATION_SAMPLES = 256
_BATCH = 20
_PAIRS = 160
"""Sentence pairs that calibrate; the others measure."""
_FACES = 4
"""Photos that calibrate, with their mirror images; the others measure."""


def top1(outputs: list[Outputs]) -> Array:
    """The class of every sample."""
    return np.concatenate([next(iter(out.values())).argmax(-1) for out in outputs])


def same(answers: Array, truth: Array) -> float:
    """The share of equal answers, in percent; there may be more truth than answers."""
    return 100 * float((answers == truth[: len(answers)]).mean())


@dataclass(frozen=True)
class Model:
    """A model, its data and what 'correct' means.

    Args:
        name: as ``--models`` selects it.
        file: the model's path below ``models/`` of the data folder, or of the digits models.
        calibration: DATA as `qcomp.compile` takes it, from the data folder.
        evaluation: batches, from the data folder and the model's inputs.
        truth: labels or scores of the evaluation samples; None where there are none.
        preprocess: of images.
        answers: what the model says of every sample, from the outputs of the batches.
        score: how right the answers are, in percent.
        agreement: how far two models' answers agree, in percent.
    """

    name: str
    file: str
    calibration: Callable[[Path], Any]
    evaluation: Callable[[Path, Model], list[Feeds]]
    truth: Callable[[Path], Any] | None
    preprocess: Preprocess | None = None
    answers: Callable[[list[Outputs]], Array] = top1
    score: Callable[[Array, Any], float] = same
    agreement: Callable[[Array, Array], float] = same

    def path(self, data: Path) -> Path:
        """Of the ONNX file."""
        return digits.load(self.file) if self.file in digits.NAMES else data / "models" / self.file

    def samples(self, data: Path) -> Samples:
        """The calibration samples, opened as `qcomp.compile` opens them."""
        specs = runtime.input_specs(files.read(self.path(data)))
        return open_data(self.calibration(data), specs, preprocess=self.preprocess)

    def compile_options(self) -> dict[str, Any]:
        """What `qcomp.compile` needs to know besides model and data."""
        return {"preprocess": self.preprocess, "samples": CALIBRATION_SAMPLES}


@dataclass(frozen=True)
class Outcome:
    """What a model gave on the evaluation samples.

    Args:
        answers: as `Model.answers`.
        outputs: every float output of every batch, flat.
        score: in percent; NaN where there is no truth.
    """

    answers: Array
    outputs: list[Array]
    score: float

    def sqnr(self, actual: Outcome) -> float:
        """dB of the worst output, this one being the reference."""
        return min(sqnr(a, b) for a, b in zip(self.outputs, actual.outputs, strict=True))


def evaluate(model: Model, runner: Any, batches: Sequence[Feeds], truth: Any) -> Outcome:
    """Run a session on the evaluation samples."""
    names = [output.name for output in runner.get_outputs()]
    outputs = [dict(zip(names, runner.run(names, feeds), strict=True)) for feeds in batches]
    answers = model.answers(outputs)
    flat = [np.concatenate([out[name].ravel() for out in outputs]) for name in names]
    score = float("nan") if truth is None else model.score(answers, truth)
    return Outcome(answers, flat, score)


def chance(model: Model, truth: Any, one: Outcome, other: Outcome) -> float:
    """One standard error of the difference of top-1, in points; 0 for other scores."""
    if model.answers is not top1 or truth is None:
        return 0.0
    either = (one.answers == truth) != (other.answers == truth)
    return 100 * float(np.sqrt(either.sum())) / len(truth)


# Images: folders of files with a list of labels beside them.


def _validation(data: Path, model: Model) -> list[Feeds]:
    specs = runtime.input_specs(files.read(model.path(data)))
    opened = open_data(data / "imagenet" / "validation", specs, preprocess=model.preprocess)
    return list(opened.batches(_BATCH))


def _imagenet_labels(shift: int) -> Callable[[Path], Array]:
    def labels(data: Path) -> Array:
        folder = data / "imagenet" / "validation"
        names = sorted(file.name for file in folder.iterdir())
        return load_labels(data / "imagenet" / "validation.txt", names) + shift

    return labels


def _imagenet(name: str, file: str, preset: str, shift: int = 0) -> Model:
    return Model(
        name,
        file,
        lambda data: data / "imagenet" / "calibration",
        _validation,
        _imagenet_labels(shift),
        PRESETS[preset],
    )


# Arrays: one of inputs and one of labels in an .npz.


def _array(data: Path, file: str, key: str) -> Array:
    with np.load(data / file, allow_pickle=False) as stored:
        return np.asarray(stored[key])


def _shuffled(array: Array) -> Array:
    """In a fixed random order: some sets are stored class by class, and the first samples must be like all."""
    return array[np.random.default_rng(0).permutation(len(array))]


def _batches(array: Array, model: Model, data: Path) -> list[Feeds]:
    spec = runtime.input_specs(files.read(model.path(data)))[0]
    size = spec.shape[0] if isinstance(spec.shape[0], int) else 100
    return [{spec.name: array[i : i + size]} for i in range(0, len(array), size)]


def _arrays(
    name: str, file: str, stored: str, keys: tuple[str, str, str], make: Callable[[Array], Array] = np.asarray
) -> Model:
    """A model of one input with `keys`: calibration inputs, evaluation inputs, evaluation labels."""
    return Model(
        name,
        file,
        lambda data: [make(_shuffled(_array(data, stored, keys[0])))],
        lambda data, model: _batches(make(_array(data, stored, keys[1])), model, data),
        lambda data: _array(data, stored, keys[2]).astype(np.int64),
    )


def _pixels(preset: str) -> Callable[[Array], Array]:
    """uint8 NHWC to what `preset` makes of images, NCHW."""
    how = PRESETS[preset]

    def make(images: Array) -> Array:
        scaled = images.astype(np.float32) * np.float32(how.scale) - np.asarray(how.mean, np.float32)
        return np.ascontiguousarray((scaled / np.asarray(how.std, np.float32)).transpose(0, 3, 1, 2))

    return make


def _unit(images: Array) -> Array:
    return images.astype(np.float32) / np.float32(255)


# Faces: photos without labels; a face is an anchor with a score above one half.

_FACE = Preprocess(mean=(127.0,), std=(128.0,), resize="squash")


def _photos(data: Path, model: Model) -> list[Feeds]:
    specs = runtime.input_specs(files.read(model.path(data)))
    return list(open_data(data / "faces", specs, preprocess=_FACE).batches(1))


def _face_calibration(data: Path) -> list[Feeds]:
    given = _photos(data, _ULTRAFACE)[:_FACES]
    return [*given, *({k: np.ascontiguousarray(v[..., ::-1]) for k, v in feeds.items()} for feeds in given)]


def _is_face(outputs: list[Outputs]) -> Array:
    return np.concatenate([out["scores"][..., 1].ravel() > 0.5 for out in outputs])


def _overlap(reference: Array, actual: Array) -> float:
    """Intersection over union of the anchors called faces."""
    return 100 * float((reference & actual).sum()) / max(float((reference | actual).sum()), 1.0)


_ULTRAFACE = Model(
    "ultraface",
    "ultraface_version-RFB-320.onnx",
    _face_calibration,
    lambda data, model: _photos(data, model)[_FACES:],
    None,
    answers=_is_face,
    agreement=_overlap,
)


# Sentence pairs: batches of equal length, the answer is the cosine of a pair's mean vectors.


def _sentences(data: Path) -> Iterator[Array]:
    """Each sentence's token ids, int64 [length]; two in a row make a pair."""
    for row, length in zip(_array(data, _TOKENS, "ids"), _array(data, _TOKENS, "length"), strict=True):
        yield row[:length].astype(np.int64)


_TOKENS = "stsb_dev_tokens.npz"
_TOKEN_BATCH = DEFAULT_BATCH


def _order(sentences: list[Array]) -> Array:
    """The sentences' indices, by length."""
    return np.argsort([len(s) for s in sentences], kind="stable")


def _by_length(sentences: list[Array], rows: int) -> list[Feeds]:
    """Batches of at most `rows` sentences of one length in the order of `_order`, so that nothing is padded."""
    groups = itertools.groupby((sentences[i] for i in _order(sentences)), key=len)
    found = [np.stack(list(group)) for _, group in groups]
    return [_tokens(ids[i : i + rows]) for ids in found for i in range(0, len(ids), rows)]


def _token_batches(data: Path, _: Model) -> list[Feeds]:
    return _by_length(list(_sentences(data))[2 * _PAIRS :], 32)


def _token_calibration(data: Path) -> list[Feeds]:
    """Whole batches of the size that calibration uses, since samples of one batch must have one length.

    They are spread over all lengths, so that the first few are as good as any.
    """
    found = _by_length(list(_sentences(data))[: 2 * _PAIRS], _TOKEN_BATCH)
    whole = [feeds for feeds in found if len(feeds["input_ids"]) == _TOKEN_BATCH]
    return [whole[i] for i in np.random.default_rng(0).permutation(len(whole))]


def _tokens(ids: Array) -> Feeds:
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def _token_truth(data: Path) -> tuple[Array, Array]:
    """The order of the rows, and the score of each pair."""
    return _order(list(_sentences(data))[2 * _PAIRS :]), _array(data, _TOKENS, "score")[_PAIRS:]


def _vectors(outputs: list[Outputs]) -> Array:
    """The mean vector of every sentence, normalized."""
    vectors = np.concatenate([out["last_hidden_state"].mean(axis=1) for out in outputs])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _spearman(vectors: Array, truth: tuple[Array, Array]) -> float:
    """Of the cosine of each pair against its score."""
    rows, scores = truth
    ordered = vectors[np.argsort(rows)]
    cosines = np.sum(ordered[::2] * ordered[1::2], axis=1)
    return 100 * float(np.corrcoef(_ranks(cosines), _ranks(scores))[0, 1])


def _ranks(values: Array) -> Array:
    """Average ranks, as Spearman's correlation needs them where values are equal."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def _mean_cosine(reference: Array, actual: Array) -> float:
    return 100 * float(np.sum(reference * actual, axis=1).mean())


_MINILM = Model(
    "minilm",
    "minilm_l6_v2.onnx",
    _token_calibration,
    _token_batches,
    _token_truth,
    answers=_vectors,
    score=_spearman,
    agreement=_mean_cosine,
)


def _digits(name: str) -> Model:
    def batches(_: Path, __: Model) -> list[Feeds]:
        images = digits.data()["test"]
        return [{"image": images[i : i + 100]} for i in range(0, len(images), 100)]

    def labels(_: Path) -> Array:
        return digits.data()["test_labels"]

    return Model(f"digits_{name}", name, lambda _: [digits.data()["train"]], batches, labels)


_CIFAR = ("x_cal", "x_test", "y_test")
_KWT = ("mfcc_kwt_cal", "mfcc_kwt_test", "y_kwt_test")
_TINY = ("mfcc_tiny_cal", "mfcc_tiny_test", "y_tiny_test")

MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        _imagenet("mobilenetv2", "mobilenetv2_1.0_224.onnx", "tf", shift=1),
        _imagenet("squeezenet1.1", "squeezenet1.1.onnx", "imagenet"),
        _arrays("cifar10_resnet20_bn", "cifar10_resnet20_bn.onnx", "cifar10.npz", _CIFAR, _pixels("imagenet")),
        _arrays("mlperf_ic_resnet8", "mlperf_ic_resnet8.onnx", "cifar10.npz", _CIFAR, _pixels("raw")),
        _arrays("mlperf_kws_dscnn", "mlperf_kws_dscnn.onnx", "speech_commands.npz", _TINY),
        _arrays("mnist_cntk_opt", "mnist_cntk_opt.onnx", "mnist.npz", _CIFAR, _unit),
        _ULTRAFACE,
        _arrays("kwt1", "kwt1.onnx", "speech_commands.npz", _KWT),
        _MINILM,
        _digits("cnn"),
        _digits("vit"),
    )
}


def one_sample(model: Model, data: Path) -> Feeds:
    """A single sample, for latency; of sentences one of the longest."""
    return {name: array[:1].copy() for name, array in model.evaluation(data, model)[-1].items()}


def fewer(batches: Sequence[Feeds], count: int) -> list[Feeds]:
    """The first batches that hold `count` samples; for models whose samples are independent."""
    kept: list[Feeds] = []
    for feeds in batches:
        if count <= 0:
            break
        kept.append({name: array[:count] for name, array in feeds.items()})
        count -= len(next(iter(feeds.values())))
    return kept


def selected(text: str | None, among: Sequence[str] = tuple(MODELS)) -> list[Model]:
    """The models of ``--models a,b``, or all of `among`."""
    names = text.split(",") if text else list(among)
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise SystemExit(f"unknown model {unknown[0]!r}; known: {', '.join(MODELS)}")
    return [MODELS[name] for name in names]


def find_data(given: str | None = None) -> Path | None:
    """The data folder: the argument, or QCOMP_DATA; None where neither is a folder."""
    text = given or os.environ.get("QCOMP_DATA")
    return Path(text) if text and (Path(text) / "models").is_dir() else None


def arguments(description: str | None, *, models: bool = True) -> argparse.ArgumentParser:
    """A parser with ``--data`` and ``--models``."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--data", help="folder of real models and data (default: $QCOMP_DATA)")
    if models:
        parser.add_argument("--models", help=f"comma-separated, of: {', '.join(MODELS)}")
    return parser


def data_of(options: argparse.Namespace) -> Path:
    """The data folder of parsed arguments, or a clear end."""
    data = find_data(options.data)
    if data is None and options.models and all(model.file in digits.NAMES for model in selected(options.models)):
        return Path()  # the digits models bring their data
    if data is None:
        raise SystemExit("no data: give --data or set QCOMP_DATA to the folder that holds models/ (see README.md)")
    return data
