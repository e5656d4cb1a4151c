"""Images as samples: what pixels become, which part of the image is used, and what is refused."""

import sys

import numpy as np
import pytest
from PIL import Image

from qcomp.calibration.data import PRESETS, InputSpec, Preprocess, open_data
from qcomp.errors import DataError, OptionError

RGB = ("N", 3, 32, 32)


def spec(shape=RGB, dtype="float32"):
    return InputSpec("x", np.dtype(dtype), shape)


def pixels(height, width, channels=3):
    y, x = np.mgrid[:height, :width]
    planes = [y * 5 % 256, x * 7 % 256, (x + y) % 256][:channels]
    return np.stack(planes, axis=-1).astype("uint8")


def save(path, array):
    Image.fromarray(array.squeeze()).save(path, lossless=True)
    return array


def first(folder, preprocess="raw", shape=RGB, dtype="float32"):
    if isinstance(preprocess, str):
        preprocess = Preprocess.preset(preprocess)
    return next(open_data(folder, [spec(shape, dtype)], preprocess=preprocess).batches(1))["x"][0]


def refused(folder, preprocess, *, match, error=OptionError, shape=RGB, dtype="float32"):
    with pytest.raises(error, match=match) as caught:
        first(folder, preprocess, shape, dtype)
    assert "\n" not in str(caught.value)
    assert caught.value.where
    assert caught.value.hint


def test_images_in_the_order_of_their_names(tmp_path):
    for i, name in enumerate(["b.PNG", "a.png", "c.webp", "d.bmp"]):
        save(tmp_path / name, np.full((32, 32, 3), i, "uint8"))
    (tmp_path / "labels.txt").write_text("a.png 1")
    samples = open_data(tmp_path, [spec(dtype="uint8")], preprocess=PRESETS["raw"])
    assert samples.names == ("a.png", "b.PNG", "c.webp", "d.bmp")
    assert samples.count == 4
    for _ in range(2):
        batches = [b["x"] for b in samples.batches(3)]
        assert [len(b) for b in batches] == [3, 1]
        assert all(b.flags.c_contiguous and b.dtype == np.uint8 for b in batches)
        assert np.concatenate(batches)[:, 0, 0, 0].tolist() == [1, 0, 2, 3]
    assert [len(b["x"]) for b in samples.batches(3, limit=2)] == [2]


@pytest.mark.parametrize("shape", [RGB, ("N", 32, 32, 3), ("N", 3, None, "W"), (1, None, None, 3)])
@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_and_layouts(tmp_path, shape, preset):
    raw = save(tmp_path / "a.png", pixels(32, 32)).astype(float)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    want = {"imagenet": (raw / 255 - mean) / std, "tf": raw / 127.5 - 1, "unit": raw / 255, "raw": raw}[preset]
    got = first(tmp_path, Preprocess(**{**vars(PRESETS[preset]), "size": (32, 32)}), shape)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got if shape[-1] == 3 else got.transpose(1, 2, 0), want, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_modes_become_rgb_or_grey(tmp_path, mode, channels):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new(mode, (32, 32)).save(tmp_path / f"a.{suffix}")
    value = first(tmp_path, shape=("N", channels, 32, 32))
    assert value.shape == (channels, 32, 32)
    assert np.ptp(value) <= 1


@pytest.mark.parametrize("size", [(32, 32), (33, 32), (36, 35)])
def test_cover_only_crops_what_is_nearly_the_size(tmp_path, size):
    raw = save(tmp_path / "a.png", pixels(*size))
    top, left = (size[0] - 32) // 2, (size[1] - 32) // 2
    want = raw[top : top + 32, left : left + 32]
    np.testing.assert_array_equal(first(tmp_path, dtype="uint8").transpose(1, 2, 0), want)


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (20, 31), (224, 300), (257, 300)])
def test_cover_resizes_the_short_side_to_256_of_224_then_crops(tmp_path, size):
    raw = save(tmp_path / "a.png", (pixels(*size) // 2 + 60).astype("uint8"))
    scale = 256 / min(size)
    full = round(size[1] * scale), round(size[0] * scale)
    left, top = (full[0] - 224) // 2, (full[1] - 224) // 2
    want = np.asarray(Image.fromarray(raw).resize(full, Image.Resampling.BILINEAR))
    got = first(tmp_path, shape=("N", 224, 224, 3)).astype(int)
    assert np.abs(got - want[top : top + 224, left : left + 224]).max() <= 1


def test_crop_and_squash(tmp_path):
    raw = save(tmp_path / "a.png", pixels(100, 60))
    got = first(tmp_path, Preprocess(resize="crop"), ("N", 32, 40, 3))
    np.testing.assert_array_equal(got, raw[34:66, 10:50])
    got = first(tmp_path, Preprocess(resize="squash"), ("N", 32, 40, 3))
    np.testing.assert_array_equal(got, np.asarray(Image.fromarray(raw).resize((40, 32), Image.Resampling.BILINEAR)))
    refused(tmp_path, Preprocess(resize="crop"), match="100 x 60 pixels", error=DataError, shape=("N", 3, 101, 8))


def test_a_long_thin_image_takes_no_memory(tmp_path):
    Image.new("RGB", (60000, 1), "red").save(tmp_path / "a.png")
    assert first(tmp_path, shape=("N", 3, 224, 224))[0].min() == 255


@pytest.mark.parametrize(
    ("options", "shape", "dtype", "match"),
    [
        ({}, ("N", None, 8, None), "float32", "without a layout"),
        ({}, ("N", 3, 8, None), "float32", "no size for images"),
        ({"size": (8, 9)}, ("N", 3, 8, 8), "float32", "images of .C, H, W. .3, 8, 9"),
        ({"channels": 1}, ("N", 3, 8, 8), "float32", "images of .C, H, W. .1, 8, 8"),
        ({"layout": "nhwc"}, ("N", 3, 8, 8), "float32", "8 channels"),
        ({"mean": (1.0, 2.0)}, RGB, "float32", "mean or std that is not for 3 channels"),
        (vars(PRESETS["imagenet"]), ("N", 1, 8, 8), "float32", "not for 1 channels"),
        (vars(PRESETS["unit"]), RGB, "uint8", "fractions for an input"),
    ],
)
def test_preprocessing_that_contradicts_the_input(tmp_path, options, shape, dtype, match):
    save(tmp_path / "a.png", pixels(9, 9))
    refused(tmp_path, Preprocess(**options), match=match, shape=shape, dtype=dtype)


@pytest.mark.parametrize(
    "options",
    [{"layout": "chw"}, {"resize": "fit"}, {"channels": 4}, {"size": (0, 8)}, {"std": (0.0,)}, {"scale": np.nan}],
)
def test_impossible_preprocessing(options):
    with pytest.raises(OptionError, match="cannot use"):
        Preprocess(**options)


def test_an_unknown_preset_lists_the_choices():
    with pytest.raises(OptionError, match=r"unknown preset 'torch' \(known: imagenet, tf, unit, raw\)"):
        Preprocess.preset("torch")


def test_a_preprocessing_is_needed_and_must_be_for_images(tmp_path):
    save(tmp_path / "a.png", pixels(32, 32))
    refused(tmp_path, None, match="images without a preprocessing")
    refused(tmp_path, "raw", match="not images", error=DataError, shape=("N", 3))
    refused(tmp_path, "raw", match="sample 0: a value that int8 cannot hold", error=DataError, dtype="int8")
    with pytest.raises(DataError, match="one folder of images for the inputs x, x"):
        open_data(tmp_path, [spec(), spec()], preprocess=Preprocess())
    np.save(tmp_path / "x.npy", np.ones((1, *RGB[1:]), "float32"))
    assert first(tmp_path, None).max() == 1
    assert first(tmp_path, "raw").max() > 1


def test_files_that_are_not_whole_images(tmp_path):
    save(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 255, (64, 64, 3), "uint8"))
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "whole.png").unlink()
    path = tmp_path / "a.jpg"
    for content in (
        b"",
        b"not an image",
        whole[:4000],
        whole[:20],
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"GIF89a" + bytes(20),
    ):
        path.write_bytes(content)
        refused(tmp_path, "raw", match=r"a\.jpg: not a whole", error=DataError)


def test_images_of_16_bits(tmp_path):
    Image.fromarray(np.full((32, 32), 40000, "uint16")).save(tmp_path / "a.png")
    refused(tmp_path, "raw", match="more than 8 bits", error=DataError)


@pytest.mark.parametrize("limit", [600, 1000])
def test_decompression_bombs(tmp_path, monkeypatch, limit):
    save(tmp_path / "a.png", pixels(32, 32 + 6))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    refused(tmp_path, "raw", match="larger than the largest image that Pillow reads", error=DataError)


def test_pillow_is_optional(tmp_path, monkeypatch):
    save(tmp_path / "a.png", pixels(32, 32))
    monkeypatch.setitem(sys.modules, "PIL", None)
    refused(tmp_path, "raw", match=r"pip install 'qcomp\[images\]'")


def test_spread_decodes_only_what_it_takes(tmp_path):
    for i in range(6):
        save(tmp_path / f"{i}.png", np.full((32, 32, 3), i, "uint8"))
    (tmp_path / "1.png").write_bytes(b"not an image")
    samples = open_data(tmp_path, [spec(dtype="uint8")], preprocess=PRESETS["raw"]).spread(3)
    assert samples.names == ("0.png", "2.png", "4.png")
    found = np.concatenate([b["x"] for b in samples.batches(2)])
    np.testing.assert_array_equal(found[:, 0, 0, 0], [0, 2, 4])
