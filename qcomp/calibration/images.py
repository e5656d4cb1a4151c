"""Images made to what an input of a model takes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from qcomp.calibration.fit import InputSpec, kind
from qcomp.errors import DataError, OptionError, unknown

if TYPE_CHECKING:
    from PIL import Image

Array = NDArray[Any]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_MARGIN = 256 / 224  # the short side of an image to that of its crop, as ImageNet is evaluated
_NEAR = 1.15  # an image up to this much larger than the crop is only cropped


@dataclass(frozen=True)
class Preprocess:
    """How an 8-bit image becomes a sample: (pixel * scale - mean) / std, float32, in RGB or grey.

    EXIF is ignored; an alpha channel is dropped. With 'raw' (no change of value) pixels stay uint8.

    Attributes:
        mean, std: one value for each channel, or one for all.
        scale: a factor applied first, to pixels 0..255.
        size: height and width, those of the model's input when None.
        layout: the model's input is [batch, C, H, W] or [batch, H, W, C]; when None, the axis of 1 or 3.
        channels: 3 for RGB, 1 for grey; when None, those of the model's input (3 when it leaves it open).
        resize: 'cover' leaves an image that is no smaller, and at most 15 % larger, than `size` in both
            axes; it resizes any other, bilinearly and in its proportions, to just cover `size` * 256/224;
            then it crops the centre. 'crop' only crops the centre. 'squash' resizes to `size` itself.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1.0
    size: tuple[int, int] | None = None
    layout: Literal["nchw", "nhwc"] | None = None
    channels: int | None = None
    resize: Literal["cover", "crop", "squash"] = "cover"

    def __post_init__(self) -> None:
        """Raise an OptionError for values that no image can be made with."""
        _require(self.layout in (None, "nchw", "nhwc"), f"layout {self.layout!r}", "nchw or nhwc")
        _require(self.resize in ("cover", "crop", "squash"), f"resize {self.resize!r}", "cover, crop or squash")
        _require(self.channels in (None, 1, 3), f"{self.channels} channels", "1 or 3")
        _require(self.size is None or min(self.size) > 0, f"size {self.size}", "a height and a width")
        numbers = (*self.mean, *self.std, self.scale)
        _require(bool(np.isfinite(numbers).all()) and 0 not in self.std, "mean, std or scale", "std above 0")

    @classmethod
    def preset(cls, name: str) -> Preprocess:
        """One of PRESETS by its name; OptionError for any other."""
        if name not in PRESETS:
            raise unknown("preset", name, PRESETS, where="preprocess")
        return PRESETS[name]

    @property
    def is_raw(self) -> bool:
        """Whether pixels keep their values."""
        return self.scale == 1 and not any(self.mean) and all(std == 1 for std in self.std)

    def fitted(self, spec: InputSpec) -> Preprocess:
        """This with layout, channels and size as the input [batch, C, H, W] or [batch, H, W, C] wants them.

        Raises:
            DataError: the input is not one for images.
            OptionError: they contradict the input, or are given neither here nor by the input.
        """
        if len(spec.shape) != 4:
            hint = "give arrays for this model"
            raise DataError(f"input {spec.name!r} takes {spec}, not images", where="model", hint=hint)
        layout = self.layout or _layout(spec)
        c, h, w = spec.shape[1:] if layout == "nchw" else (spec.shape[3], *spec.shape[1:3])
        channels = self.channels or (c if isinstance(c, int) else 3)
        size = self.size or ((h, w) if isinstance(h, int) and isinstance(w, int) else None)
        _require(size is not None, f"no size for images, the input takes {spec}", "a height and a width")
        result = replace(self, layout=layout, channels=channels, size=size)
        result._check(spec, (c, h, w))
        return result

    def _check(self, spec: InputSpec, wanted: tuple[int | str | None, ...]) -> None:
        have = (self.channels, *(self.size or ()))
        agree = all(h == w for h, w in zip(have, wanted, strict=True) if isinstance(w, int))
        _require(agree, f"images of [C, H, W] {list(have)} for {spec}", "the size and channels of the input")
        lengths = {len(self.mean), len(self.std)} <= {1, self.channels}
        _require(lengths, f"a mean or std that is not for {self.channels} channels", "one value, or one each")
        floating = kind(spec.dtype) == "float" or self.is_raw
        _require(floating, f"fractions for an input that takes {spec}", "the preset 'raw'")


def _require(condition: bool, what: str, wanted: str) -> None:
    if not condition:
        raise OptionError(f"cannot use {what}", where="preprocess", hint=f"use {wanted}")


PRESETS: dict[str, Preprocess] = {
    "imagenet": Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), scale=1 / 255),
    "tf": Preprocess(mean=(1.0,), scale=1 / 127.5),
    "unit": Preprocess(scale=1 / 255),
    "raw": Preprocess(),
}


def _layout(spec: InputSpec) -> Literal["nchw", "nhwc"]:
    if spec.shape[1] in (1, 3):
        return "nchw"
    _require(spec.shape[3] in (1, 3), f"an input that takes {spec} without a layout", "layout nchw or nhwc")
    return "nhwc"


def image_pieces(files: Sequence[Path], preprocess: Preprocess, rows: int) -> Iterator[Array]:
    """Blocks [<= rows, C, H, W] or [<= rows, H, W, C], uint8 or float32, decoded one block at a time."""
    for start in range(0, len(files), rows):
        yield np.stack([load_image(file, preprocess) for file in files[start : start + rows]])


def load_image(file: Path, preprocess: Preprocess) -> Array:
    """One sample [C, H, W] or [H, W, C], with a `fitted` preprocess: uint8 when it is raw, else float32.

    Raises:
        OptionError: Pillow is not installed.
        DataError: not an image of 8 bits, truncated, larger than Pillow's limit, or too small to crop.
    """
    pixels = _decode(file, preprocess)
    if not preprocess.is_raw:
        scaled = pixels * np.float32(preprocess.scale) - np.array(preprocess.mean, np.float32)
        pixels = scaled / np.array(preprocess.std, np.float32)
    return pixels if preprocess.layout == "nhwc" else pixels.transpose(2, 0, 1)


def _decode(file: Path, preprocess: Preprocess) -> Array:
    """The pixels, uint8 [H, W, C]."""
    try:
        from PIL import Image
    except ImportError:
        raise OptionError("images need Pillow", where=str(file), hint="pip install 'qcomp[images]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                if image.mode.startswith(("I", "F")):
                    raise DataError("more than 8 bits a channel", where=str(file), hint="save it with 8 bits")
                coloured = image.convert("L" if preprocess.channels == 1 else "RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        hint = "make it smaller, or leave it out"
        raise DataError("larger than the largest image that Pillow reads", where=str(file), hint=hint) from error
    except DataError:
        raise
    except Exception as error:
        hint = "correct it, or leave it out"
        raise DataError("not a whole jpg, png, bmp or webp image", where=str(file), hint=hint) from error
    return np.asarray(_sized(coloured, preprocess, str(file))).reshape(*(preprocess.size or ()), -1)


def _sized(image: Image.Image, preprocess: Preprocess, where: str) -> Image.Image:
    """The image in the size of a fitted preprocess, as its `resize` says."""
    from PIL.Image import Resampling

    height, width = preprocess.size or (0, 0)
    full = _full_size(image.size, (width, height), preprocess.resize)
    left, top = (full[0] - width) // 2, (full[1] - height) // 2
    if left < 0 or top < 0:
        what = f"{image.height} x {image.width} pixels, less than the {height} x {width} to crop"
        raise DataError(what, where=where, hint="resize with 'cover', or leave it out")
    x, y = image.width / full[0], image.height / full[1]
    right, bottom = min((left + width) * x, image.width), min((top + height) * y, image.height)
    return image.resize((width, height), Resampling.BILINEAR, box=(left * x, top * y, right, bottom))


def _full_size(have: tuple[int, int], want: tuple[int, int], resize: str) -> tuple[int, int]:
    """The size, width and height, that an image of the size `have` gets before it is cropped to `want`."""
    if resize == "squash":
        return want
    near = all(w <= h <= w * _NEAR for h, w in zip(have, want, strict=True))
    if resize == "crop" or near:
        return have
    factor = max(round(w * _MARGIN) / h for h, w in zip(have, want, strict=True))
    return round(have[0] * factor), round(have[1] * factor)
