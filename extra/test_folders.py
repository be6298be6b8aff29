"""Tests of folders.py and shapes.py: the pixels and the lists that they must give, by value."""

import re
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from extra import folders, shapes


def save(path, pixels=(0, 255), dtype="uint8", mode=None, **options):
    """Writes an image, and its folder. pixels: one row, or an array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(numpy.atleast_2d(numpy.array(pixels, dtype)))
    image.convert(mode or image.mode).save(path, **options)
    return str(path)


def read(path):
    return numpy.asarray(folders.read_image(path)).tolist()


CLEAR = [[(0, 0, 0, 255), (0, 0, 0, 0)]]  # a black pixel and a transparent one
BLACK_AND_WHITE = [
    ("rgba.png", CLEAR, {}),
    ("rgb.png", [[(0, 0, 0), (9, 9, 9)]], {"transparency": (9, 9, 9)}),
    ("p.gif", [0, 9], {"mode": "P", "transparency": 9}),
    ("cmyk.tiff", [[(0, 0, 0), (255, 255, 255)]], {"mode": "CMYK"}),
]


@pytest.mark.parametrize("name, pixels, options", BLACK_AND_WHITE)
def test_black_stays_black_and_transparent_is_white(name, pixels, options, tmp_path):
    path = save(tmp_path / name, pixels, **options)
    assert read(path) == [[[0, 0, 0], [255, 255, 255]]]


DEEP = [
    ("0.tiff", "float32", [0, 0.5, 1], [0, 128, 255]),
    ("0.tiff", "float32", [0, 0.5, 1.5], None),
    ("0.tiff", "int32", [0, 7, 255], [0, 7, 255]),
    ("0.png", "uint16", [0, 257, 6553], [0, 1, 25]),  # a dark image of a bright set stays dark
    ("0.png", "uint16", [0, 7, 4095], None),
]


@pytest.mark.parametrize("name, dtype, row, gray", DEEP)
def test_more_than_8_bits_are_scaled_or_refused(name, dtype, row, gray, tmp_path):
    path = save(tmp_path / name, row, dtype)
    if gray:
        assert read(path) == [[[value] * 3 for value in gray]]
    else:
        with pytest.raises(ValueError, match=re.escape(path) + ".* mode (I|F|I;16) with values"):
            read(path)


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_a_photo_stands_as_its_exif_orientation_says(ending, tmp_path):
    upright, exif = numpy.arange(6).reshape(2, 3), Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    path = save(tmp_path / f"0.{ending}", numpy.rot90(upright), exif=exif)
    assert read(path) == numpy.stack([upright] * 3, 2).tolist()


def test_what_is_data(tmp_path):
    train, cat = tmp_path / "train", tmp_path / "train" / "cat"
    shown = ["cat/2.png", "cat/in/10.jfif"]
    hidden = [".a/1.png", "cat/.0.png", "cat/.b/2.png", "cat/in/.c/d/2.png"]
    for name in [*shown, *hidden, "in_no_class.png", "../more/1.GIF"]:
        save(train / name)
    for name in ("a.heic", "b.heic", "c.eps"):
        (cat / name).touch()
    (cat / "all").symlink_to(".")
    (cat / "more").symlink_to(cat / "in")
    (cat / "once more.png").symlink_to(cat / "2.png")
    (train / "犬").symlink_to(tmp_path / "more")
    files, labels, classes, note = folders.list_folder(str(tmp_path), "train")
    assert files == [str(train / name) for name in [*shown, "犬/1.GIF"]]
    assert labels.tolist() == [0, 0, 1] and classes == ["cat", "犬"]
    assert note == "files left out: 2 .heic, 1 in no class, 1 .eps"


def test_what_is_no_data_set_is_refused(tmp_path):
    def refused(words, split="train"):
        with pytest.raises(ValueError, match=words):
            folders.list_folder(str(tmp_path), split)

    train, val = tmp_path / "train", tmp_path / "val"
    image = save(train / "1" / "0.png")
    refused("no folder .*train with two classes.*DIR/train/CLASS/")
    save(train / "10" / "0.png")
    save(val / "1" / "0.png")
    save(val / "2" / "0.png")
    refused("same classes; .*val lacks 10", "test")
    save(val / "10" / "0.png")
    refused("same classes; train lacks 2", "test")
    told = []
    folders.look_at_test(str(tmp_path), told.append)
    assert len(told) == 1 and "will refuse this" in told[0] and "train lacks 2" in told[0]
    shutil.rmtree(val / "2")
    save(train / "cafe\u0301" / "0.png")  # as macOS writes it
    save(val / "caf\u00e9" / "0.png")  # as Linux does
    assert folders.list_folder(str(tmp_path), "test").classes == ["1", "10", "caf\u00e9"]
    (train / "2").mkdir()
    refused("train/2 has no image")
    (train / "2" / "link.png").symlink_to(image)
    refused("2/link.png is in class 1 too")
    save(train / "caf\u00e9" / "0.png")
    refused("only look alike")


def test_up_to_ten_broken_files_are_named(tmp_path):
    whole = save(tmp_path / "whole.bmp", range(100))
    kinds = [b"", b"%!PS-Adobe-3.0 EPSF-3.0", (tmp_path / "whole.bmp").read_bytes()[:-20]]
    files = [whole, *(str(tmp_path / f"{number:02}.png") for number in range(12))]
    for path, content in zip(files[1:], 4 * kinds):
        Path(path).write_bytes(content)
    with pytest.raises(ValueError, match="^12 of 13 files cannot be read: ") as error:
        folders.check_images(files, whole=True)
    assert re.findall(r"\S+(?= is no)", str(error.value)) == files[1:11]
    with pytest.raises(ValueError, match="^8 of 13"):  # a cut file can be opened
        folders.check_images(files, whole=False)


def test_pixels_are_those_of_the_central_square(tmp_path):
    wide = numpy.zeros((16, 48), int)
    wide[:, 16:32] = range(16)
    pixels = folders.read_images([save(tmp_path / "wide.png", wide)], 16)
    assert pixels.shape == (1, 16, 16, 3) and pixels.dtype == torch.uint8
    assert pixels[0, :, :, 1].tolist() == wide[:, 16:32].tolist()


@pytest.mark.parametrize("augment", [None, "search", "retrain"])
def test_the_seed_of_an_item_is_all_its_randomness(augment, tmp_path):
    path = save(tmp_path / "0.png", numpy.arange(6000).reshape(40, 50, 3) % 251)
    data = folders.Files([path], 32, augment)
    state = torch.get_rng_state()
    first, second, third = data[0, 3], data[0, 4], data[0, 3]
    assert torch.equal(first, third)
    assert torch.equal(first, second) == (augment is None)
    assert torch.equal(torch.get_rng_state(), state)


def test_shapes_are_determined_by_their_arguments():
    images, labels = shapes.draw_shapes(1500, 0, 16)
    assert images.shape == (1500, 16, 16, 3) and labels.bincount().tolist() == [150] * 10
    # The README's numbers have these images. Machines may round a few pixels differently.
    assert abs(images.double().mean() - 91.974) < 0.01
