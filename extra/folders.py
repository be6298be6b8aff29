"""Data sets of image files, DIR/{train,test}/CLASS/**, and the one way from a file to pixels."""

import re
import signal
import time
import unicodedata
import warnings
from collections import Counter
from functools import partial
from multiprocessing.pool import ThreadPool
from os.path import realpath
from pathlib import Path
from typing import NamedTuple

import torch
from numpy import asarray
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

# Formats that Pillow names and does not decode. For EPS it would run another program.
NOT_READ = ("EPS", "PDF", "PALM", "MPEG", "WMF", "HDF5", "GRIB", "BUFR")

# --------------------------------------------------------------------------------------------------
# 1. What is data


class Folder(NamedTuple):
    """One split. files: paths. labels: int64 (N,), places in classes. note: what was left out."""

    files: list
    labels: Tensor
    classes: list
    note: str


def list_folder(root: str, split: str) -> Folder:
    """Lists the images of DIR/train or DIR/test, or of DIR/val where there is no DIR/test.

    A class is a folder, with the folders in it. Names that begin with a dot are no data. A file
    counts once, however many symbolic links lead to it. No image is opened. The names of classes
    are in Unicode's form NFC, whatever wrote the folder. ValueError for fewer than two classes, a
    class without images, a file in two classes, and for a test split whose classes are not those
    of train.
    """
    place = Path(root, split)
    if split == "test" and not place.is_dir():
        place = Path(root, "val")
    folders = class_folders(place)
    classes = list(folders)
    known = class_folders(Path(root, "train"))
    for one, others, where in ((folders, known, place), (known, folders, "train")):
        lost = ", ".join(sorted(others.keys() - one.keys()))
        if lost:
            raise ValueError(f"train and {place} need the same classes; {where} lacks {lost:.200}")
    left_out = Counter({"in no class": len(visible(place)) - len(classes)})
    formats = Image.registered_extensions()
    files, labels, label_of = [], [], {}
    for label, name in enumerate(classes):
        for path in files_under(folders[name], set()):
            file, ending = realpath(path), path.suffix.lower()
            if formats.get(ending, "PDF") in NOT_READ:
                left_out[ending or "without an ending"] += 1
            elif file not in label_of:
                label_of[file] = label
                files.append(str(path))
                labels.append(label)
            elif label_of[file] != label:
                other = classes[label_of[file]]
                raise ValueError(f"{path} is in class {other} too: remove it from one of them")
        if label not in labels[-1:]:
            raise ValueError(
                f"{folders[name]} has no image that Pillow reads: add some or remove it"
            )
    note = ", ".join(f"{count} {kind}" for kind, count in (+left_out).most_common(9))
    return Folder(files, torch.tensor(labels), classes, note and f"files left out: {note}")


def visible(folder):
    """The sorted paths in a folder whose names do not begin with a dot."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def look_at_test(root, tell):
    """Tells why a retrain would refuse the test images, if it would. No image is opened."""
    try:
        list_folder(root, "test")
    except ValueError as error:
        tell(f"the retrain will refuse this: {error}")


def class_folders(place):
    """Class -> its folder in train, test or val. ValueError if there are fewer than two."""
    paths = visible(place) if place.is_dir() else []
    folders = {}
    for path in paths:
        name = unicodedata.normalize("NFC", path.name)
        if path.is_dir():
            if name in folders:
                raise ValueError(f"{place} has two folders {name}, whose letters only look alike")
            folders[name] = path
    if len(folders) < 2:
        layout = "DIR/train/CLASS/ and DIR/test/CLASS/ (or val) with image files"
        raise ValueError(f"no folder {place} with two classes at least: --data DIR wants {layout}")
    return dict(sorted(folders.items()))


def files_under(folder, entered):
    """Yields the files in a folder and in its folders. A link that leads back is not followed."""
    real = realpath(folder)
    if real not in entered:
        entered.add(real)
        for path in visible(folder):
            if path.is_dir():
                yield from files_under(path, entered)
            else:
                yield path


# --------------------------------------------------------------------------------------------------
# 2. From a file to pixels


def read_image(path: str, whole: bool = True) -> Image.Image:
    """The image in 8-bit RGB, as a viewer shows it. ValueError names the file in one line.

    EXIF orientation is applied, transparency is blended on white, palettes and every colour space
    of Pillow are converted. Colour profiles are not applied. Of an animation it is the first frame.
    A gray image of more than 8 bits has the scale of its type. Its own values do not set it, so
    that the images of a data set keep their relative brightness:
        float            0 to 1 become 0 to 255
        16-bit integer   0 to 65535 become 0 to 255
        32-bit integer   as 8-bit if no value is above 255, else as 16-bit
    Values outside are refused. So are 16-bit images that a viewer would show as almost black, with
    no value above 16 of 255: they hold 8 or 12 bits. (Gray that is 0 everywhere is black.) Of
    16-bit colour Pillow keeps the upper 8 bits. Pillow refuses more than 179 million pixels.

    whole=False only opens the file.
    """
    warnings.filterwarnings("ignore", module="PIL")  # of what Pillow can read all the same
    Image.init()
    formats = [name for name in Image.ID if name not in NOT_READ]
    try:
        # Given a path, Pillow maps gray TIFFs into memory and turns them wrongly by their EXIF.
        with open(path, "rb") as stream, Image.open(stream, formats=formats) as file:
            return to_rgb(file) if whole else file
    except Exception as error:  # whatever Pillow makes of a broken file
        cause = str(error).partition(" <_io")[0]  # without the name of the stream
        raise ValueError(f"{path} is no readable image: {cause:.300}") from None


def to_rgb(file):
    """The rules of read_image, for a file that has just been opened."""
    stored = str(file.tile)  # names the type in the file, such as RGB;16B, until pixels are read
    image = ImageOps.exif_transpose(file)
    if image.mode[0] in "IF":
        image = to_gray(image, ";32" in stored)
    elif re.search(";16[BLN]|65535", stored) and asarray(image).max() <= 16:
        raise ValueError(f"mode {image.mode} of 16 bits is almost black; convert it to 8 bits")
    if image.mode == "P" or image.mode[-1] in "Aa" or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def to_gray(image, is_32_bit):
    """8 bits of an image with more, by the rule of read_image."""
    values = asarray(image).astype("float64")
    low, high, full = values.min(), values.max(), 65535
    if image.mode == "F":
        full = 1
    elif is_32_bit and high < 256:
        full = 255
    is_faint = full == 65535 and 0 < high / 257 <= 16
    if is_faint or not 0 <= low <= high <= full:  # not a number is outside too
        span = f"mode {image.mode} with values from {low:g} to {high:g}"
        raise ValueError(f"{span} has no sure scale; convert it to 8 bits")
    values[values == image.info.get("transparency")] = full
    return Image.fromarray((values * (255 / full)).round().astype("uint8"))


def read_images(files: list, size: int, imagenet=False, tell=lambda text: None) -> Tensor:
    """uint8 (N, size, size, 3), not augmented. ValueError names up to ten unreadable files.

    tell: is called every ten seconds with a line of text.
    """
    pixels = torch.empty(len(files), size, size, 3, dtype=torch.uint8)

    def read(index):
        image = centre(read_image(files[index]), size, imagenet)
        pixels[index] = torch.tensor(asarray(image))

    by_threads(read, len(files), tell)
    return pixels


def check_images(files: list, whole: bool, tell=lambda text: None) -> None:
    """The error of read_images, before the images are needed. whole=False only opens the files."""
    by_threads(lambda index: read_image(files[index], whole), len(files), tell)


def by_threads(function, count, tell):
    """Calls function(0), function(1), ... What these calls raise becomes one ValueError."""

    def attempt(index):
        try:
            function(index)
        except ValueError as error:
            return str(error)

    errors, last = [], time.monotonic()
    with ThreadPool(16) as pool:
        for done, error in enumerate(pool.imap_unordered(attempt, range(count)), 1):
            errors += [error] if error else []
            if time.monotonic() - last > 10:
                last = time.monotonic()
                tell(f"{done:,} of {count:,} images read")
    if errors:
        first = "; ".join(sorted(errors)[:10])
        raise ValueError(f"{len(errors)} of {count} files cannot be read: {first}")


def centre(image, size, imagenet):
    """The central square, resized. ImageNet's is 224 / 256 of the shorter side."""
    bleed = 1 / 16 if imagenet else 0  # the part left out at each side
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR, bleed)


class Files(torch.utils.data.Dataset):
    """Images that workers read. An item (index, seed) is uint8 (size, size, 3).

    augment: None; "search", a random crop and flip; "retrain", colours changed too. The seed of an
    item is all its randomness.
    """

    def __init__(self, files, size, augment, imagenet=True):
        self.files = files
        self.transform = partial(centre, size=size, imagenet=imagenet)
        if augment:
            steps = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
            steps += [v2.ColorJitter(0.4, 0.4, 0.4, 0.2)] if augment == "retrain" else []
            self.transform = v2.Compose(steps)

    def __getitem__(self, item):
        index, seed = item
        image = read_image(self.files[index])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPU
            return torch.tensor(asarray(self.transform(image)))


def read_batches(files, batches, seed, workers, generator):
    """Yields the pixels of every batch of numbers, read by worker processes."""
    items = [[(n, seed + n) for n in numbers.tolist()] for numbers in batches]  # index, seed
    return iter(
        torch.utils.data.DataLoader(
            files, batch_sampler=items, num_workers=workers, generator=generator,
            worker_init_fn=ignore_interrupt,
        )
    )  # fmt: skip


def ignore_interrupt(worker):
    """Ctrl-C is for the main process to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
