"""Search and retrain with ROME: data sets, protocols, the two loops, checkpoints, command line.

    python train.py search  --space darts --dataset cifar10 --retrain
    python train.py retrain --genotype GDAS_V1 --dataset cifar10
    python train.py list
    python train.py report runs/*
    python train.py plot runs/*

Every random draw is keyed by its place (seed, epoch, step, role, rank, sample), so a resumed run goes on exactly where
the interrupted one would have gone, and the number of workers changes nothing.
"""

import argparse
import contextlib
import csv
import functools
import gzip
import hashlib
import io
import itertools
import json
import math
import os
import pickle
import platform
import re
import shlex
import signal
import statistics
import subprocess
import sys
import textwrap
import time
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical

import genotypes
import rome

# ----------------------------------------------------------------------------------------------------------------------
# Protocols: one table for the search, one for the retrain. A row holds what differs from the first one; flags override.

SEARCH = {
    # The paper's Section 4; what it leaves open is from DARTS's code, the temperature from GDAS's.
    "default": dict(
        cells=8, channels=16, epochs=50, batch_size=64, samples=7, lr=0.05, lr_min=0.001, momentum=0.9,
        weight_decay=3e-4, clip=5.0, alpha_lr=3e-4, alpha_weight_decay=1e-3, alpha_clip=0.0, tau_max=10.0, tau_min=0.1,
        fraction=0.5, cutout=0, warmup=0,
    ),
    # Table 4: 10% + 10% of the training images.
    "imagenet": dict(epochs=30, batch_size=256, samples=3, fraction=0.1),
    # nasbench-1shot1's code for what the paper leaves open; it has 100 epochs and lr 0.025 for GDAS.
    "1shot1": dict(cells=9, batch_size=96, alpha_clip=5.0, tau_min=1.0),
    # Beyond the paper: NAS-Bench-201's network, five cells a stage.
    "nb201": dict(cells=5),
}  # fmt: skip
RETRAIN = {
    # The paper's Section 4: "as DARTS".
    "default": dict(
        cells=20, channels=36, epochs=600, batch_size=96, lr=0.025, lr_min=0.0, schedule="cosine", momentum=0.9,
        nesterov=False, weight_decay=3e-4, clip=5.0, drop_path=0.2, cutout=16, auxiliary=0.4, label_smoothing=0.0,
        lr_warmup=0,
    ),
    # 250 epochs, batch 1024, lr 0.5 are the paper's; the rest is PC-DARTS's code.
    "imagenet": dict(
        cells=14, channels=48, epochs=250, batch_size=1024, lr=0.5, schedule="linear", weight_decay=3e-5, drop_path=0.0,
        cutout=0, label_smoothing=0.1, lr_warmup=5,
    ),
    # S1 to S4 "strictly follow R-DARTS": its paper has 16 channels for S2 and S4 on CIFAR-10, its code 8 cells and 16
    # channels everywhere, which we take for CIFAR-100 and SVHN. DARTS-PT has 36 channels for S2 and S4 too.
    "s2/cifar10": dict(channels=16),
    "s4/cifar10": dict(channels=16),
    "s1-s4/cifar100": dict(cells=8, channels=16),
    "s1-s4/svhn": dict(cells=8, channels=16),
    # NAS-Bench-201's own training; 1Shot1 cells are not retrained in the paper.
    "nb201": dict(
        cells=5, channels=16, epochs=200, batch_size=256, lr=0.1, nesterov=True, weight_decay=5e-4, drop_path=0.0,
        cutout=0, auxiliary=0.0,
    ),
    "1shot1": dict(cells=9, channels=16, auxiliary=0.0),
}  # fmt: skip
# --quick: smaller numbers, same code.
QUICK = {
    "search": dict(
        cells=3, channels=8, epochs=9, batch_size=32, samples=2, lr=0.03, alpha_lr=3e-3, steps_per_epoch=100,
        image_size=16,
    ),
    "retrain": dict(cells=5, channels=8, epochs=6, batch_size=64, lr=0.05, auxiliary=0.0, cutout=4, image_size=16),
}  # fmt: skip
METHODS = {"rome-v2": "v2", "rome-v1": "v1", "gdas": "none"}  # to the supernet's topology


def protocol(table: dict, space: str, dataset: str) -> dict:
    """The settings of a space and data set: the rows that apply, the special after the general."""
    family = rome.SPACES[space].family
    names = ["default", dataset, family, f"{space}/{dataset}"]
    names += [f"s1-s4/{dataset}"] if space in ("s1", "s2", "s3", "s4") else []
    row = {}
    for name in names:
        row |= table.get(name, {})
    return row


# ----------------------------------------------------------------------------------------------------------------------
# Randomness by place


def keyed(*place) -> torch.Generator:
    """A CPU generator for one place in the run, such as (seed, "weights", epoch, step)."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


# ----------------------------------------------------------------------------------------------------------------------
# Data sets


class Images(NamedTuple):
    """One split. pixels: uint8 (N, H, W, 3), or None where the files are read batch by batch; labels (N,)."""

    pixels: Tensor | None
    labels: Tensor
    files: list
    classes: list

    def to(self, device: torch.device) -> "Images":
        return self if self.pixels is None else self._replace(pixels=self.pixels.to(device))


# Mean and deviation of the training pixels, as R-DARTS has them; of other data sets they are computed.
STATISTICS = {
    "cifar10": ((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
DATASETS = (*STATISTICS, "folder", "shapes")


def _star(x: Tensor, y: Tensor) -> Tensor:
    # The angle to the nearest of five tips; there the edge of a pentagram is a line whose normal is at 72 degrees.
    angle = (torch.atan2(y, x).remainder(0.4 * math.pi) - 0.2 * math.pi).abs()
    return torch.hypot(x, y) * torch.cos(angle - 0.4 * math.pi) - math.cos(0.4 * math.pi)


def _box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    return torch.maximum(x.abs() - width, y.abs() - height)


# class -> signed distance from the shape's edge, in units of its radius, negative inside
SHAPES = {
    "disc": lambda x, y: torch.hypot(x, y) - 0.8,
    "square": lambda x, y: _box(x, y, 0.75, 0.75),
    "triangle": lambda x, y: torch.maximum(x.abs() * math.sqrt(0.75) + y / 2, -y) - 0.5,
    "star": _star,
    "plus": lambda x, y: torch.minimum(_box(x, y, 0.25, 0.95), _box(x, y, 0.95, 0.25)),
    "crescent": lambda x, y: torch.maximum(torch.hypot(x, y) - 0.9, 0.75 - torch.hypot(x - 0.6, y)),
    "ring": lambda x, y: (torch.hypot(x, y) - 0.7).abs() - 0.2,
    "frame": lambda x, y: _box(x, y, 0.65, 0.65).abs() - 0.2,
    "bars": lambda x, y: _box(x.abs() - 0.55, y, 0.25, 0.85),
    "dots": lambda x, y: torch.hypot(x.abs() - 0.55, y) - 0.4,
}


def draw_shapes(count: int, seed: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """Draws one shape per image, of ten classes as even as `count` allows, in a random order.

    Position, radius, rotation and colours are random, a shape is brighter than its background, every pixel is noisy.
    Returns images (count, size, size, 3) uint8 and labels (count,) int64, indices into SHAPES, which the arguments
    determine.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    labels = torch.randperm(count, generator=generator) % len(SHAPES)
    centres = (2 * torch.arange(size) + 1) / size - 1  # of the pixels; the image spans -1 to 1
    images = torch.empty(count, size, size, 3, dtype=torch.uint8)
    for part, out in zip(labels.split(1000), images.split(1000)):  # bounds the memory
        n = len(part)
        radius = uniform(0.5, 0.8, n, 1, 1)
        column, row = (centres - (1 - radius) * uniform(-1, 1, n, 1, 1) for _ in range(2))
        row, turn = row.transpose(1, 2), uniform(0, 2 * math.pi, n, 1, 1)
        x = (column * turn.cos() + row * turn.sin()) / radius  # (n, size, size)
        y = (row * turn.cos() - column * turn.sin()) / radius
        distance = torch.empty_like(x)
        for label, shape in enumerate(SHAPES.values()):
            drawn = part == label
            distance[drawn] = shape(x[drawn], y[drawn])
        background = uniform(0, 0.5, n, 1, 1, 3)
        foreground = background + uniform(0.25, 0.5, n, 1, 1, 3)
        coverage = (0.5 - distance * radius * size / 2).clamp(0, 1)  # an edge one pixel wide
        slope = uniform(0, 2 * math.pi, n, 1, 1)
        ramp = 0.15 * (centres * slope.cos() + centres[:, None] * slope.sin())
        picture = torch.lerp(background, foreground, coverage[..., None]) + ramp[..., None]
        picture += 0.05 * torch.randn(picture.shape, generator=generator)
        out.copy_((255 * picture).clamp_(0, 255))
    return images, labels


SHAPES_IMAGES = {"train": (8000, 0), "test": (2000, 1)}  # how many, and their seed


def load_data(config: dict, split: str) -> Images:
    """The "train" or "test" images of config["dataset"]. ValueError says what is missing and what to do."""
    name = config["dataset"]
    if name == "shapes":
        return Images(*draw_shapes(*SHAPES_IMAGES[split], config["image_size"]), [], list(SHAPES))
    if name in ("folder", "imagenet"):
        return read_folder(config, ("train",) if split == "train" else ("test", "val"))
    from torchvision.datasets import CIFAR10, CIFAR100, SVHN

    try:
        if name == "svhn":
            data = SVHN(config["data"], split, download=True)
            pixels, labels, classes = data.data.transpose(0, 2, 3, 1), data.labels, "0123456789"
        else:
            data = (CIFAR10 if name == "cifar10" else CIFAR100)(config["data"], split == "train", download=True)
            pixels, labels, classes = data.data, data.targets, data.classes
    except ModuleNotFoundError:
        raise ValueError("SVHN's files need scipy: pip install scipy") from None
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{name} is not in {config['data']!r} and could not be downloaded ({first_line(error)}); "
            "put its archive there, or use --dataset folder --data DIR"
        ) from None
    return Images(torch.tensor(pixels), torch.tensor(labels, dtype=torch.long), [], list(classes))


def read_folder(config: dict, names: tuple) -> Images:
    """DIR/NAME/CLASS/* for the first of the names that exists. Pixels are kept where they fit, else read by workers."""
    import torchvision

    root, size = Path(config["data"]), config["image_size"]
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        raise ValueError(f"no folder {root / names[0]}: --data DIR wants DIR/{{train,test}}/CLASS/ with image files")
    try:
        data = torchvision.datasets.ImageFolder(folder)
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: {first_line(error)}") from None
    if len(data.classes) < 2:
        raise ValueError(f"{folder} has one class, {data.classes[0]}; a classifier needs two at least")
    labels, files = torch.tensor(data.targets), [path for path, _ in data.samples]
    if config["stem"] == "imagenet" or len(files) * size * size * 3 > config["cache_gib"] * 2**30:
        return Images(None, labels, files, data.classes)
    pixels = torch.empty(len(files), size, size, 3, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:
        for index, image in enumerate(pool.map(lambda path: read_image(path, size), files)):
            pixels[index] = image
    return Images(pixels, labels, files, data.classes)


FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF", "WEBP", "GIF")  # no PostScript, for which Pillow runs a program
PIXELS = 80_000_000  # of one image, which are decoded at once; Pillow itself warns from 89 million on


def read_image(path: str, size: int, transform=None) -> Tensor:
    """uint8 (size, size, 3): RGB, the shorter side resized to `size` (bilinear, antialiased), the centre cropped."""
    import numpy
    from PIL import Image
    from torchvision.transforms.v2 import functional

    try:
        with Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > PIXELS:
                raise ValueError(f"{file.width}x{file.height} pixels are too many; make it smaller")
            if file.mode == "F":
                raise ValueError("its pixels are floating-point numbers; save it with 8 bits")
            if file.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
                file = Image.fromarray((numpy.asarray(file) >> 8).clip(0, 255).astype("uint8"))
            image = file.convert("RGB")
    except Exception as error:  # whatever Pillow makes of a broken file
        raise ValueError(f"{path} is no readable image: {first_line(error)}") from None
    if max(image.size) > 8 * min(image.size):  # of a strip its middle: resized as a whole it may take gigabytes
        image = functional.center_crop(image, [min(side, 8 * min(image.size)) for side in image.size[::-1]])
    if transform is not None:
        image = transform(image)
    elif image.size != (size, size):
        image = functional.center_crop(functional.resize(image, [size], antialias=True), [size, size])
    return functional.pil_to_tensor(image).permute(1, 2, 0)


class Files(torch.utils.data.Dataset):
    """Images read by workers; an item (index, place) is transformed with the randomness of its place."""

    def __init__(self, images: Images, size: int, transform):
        self.files, self.size, self.transform = images.files, size, transform

    def __getitem__(self, item) -> Tensor:
        index, place = item
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed(*place, index).initial_seed())
            return read_image(self.files[index], self.size, self.transform)


def outlive_one_signal(worker: int) -> None:
    """In a worker: a scheduler's first SIGTERM goes to every process, and is for the main one to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


class Stream:
    """Batches of one role: the images `index` of a split, shuffled anew every epoch, augmented on the device.

    The order and the augmentation depend on (seed, role, epoch, step, rank) alone. Augmentation: random crop with 4
    pixels of padding, flip, cutout of config["cutout"] pixels; with the ImageNet stem the workers' random resized crop.
    """

    PAD = 4

    def __init__(self, images: Images, index: Tensor, config: dict, role: str, device, statistics, augment: bool):
        self.index, self.config, self.role, self.device, self.augment = index, config, role, device, augment
        self.rank, self.world = rank_and_world()
        if augment and len(index) // self.world < 2:
            raise ValueError(f"{len(index)} images are too few for {self.world} processes, which need two each")
        self.labels = images.labels.to(device)
        self.mean, self.std = (torch.tensor(row, device=device).view(3, 1, 1) for row in statistics)
        self.loader, self.plan, self.order = None, [], (None, None)
        self.pixels = images.pixels
        if images.pixels is not None:
            return
        from torchvision.transforms import v2

        size = config["image_size"]
        transform = v2.Compose([v2.Resize(size * 256 // 224), v2.CenterCrop(size)])
        if augment:
            jitter = [v2.ColorJitter(0.4, 0.4, 0.4, 0.2)] if role == "retrain" else []
            transform = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *jitter])
        workers = config["workers"]
        self.loader = torch.utils.data.DataLoader(
            Files(images, size, transform if config["stem"] == "imagenet" else None), batch_sampler=self.plan,
            num_workers=workers, persistent_workers=workers > 0, pin_memory=device.type == "cuda",
            worker_init_fn=outlive_one_signal, timeout=600 if workers else 0,
            generator=torch.Generator(),  # of the workers' seeds, which nothing reads: the noise op has the default one
        )  # fmt: skip

    def __len__(self) -> int:
        """Batches in an epoch, the last one smaller; a single image left over, which batch norm cannot take, is none in
        training and joins the batch before in evaluation."""
        batch = self.config["batch_size"]
        if not self.augment:
            count = len(self.index[self.rank :: self.world])
            return math.ceil(count / batch) - (count % batch == 1 < count)
        count = len(self.index) // self.world
        return max(1, count // batch + (count % batch > 1))

    def epoch(self, epoch: int, start: int = 0, stop: int | None = None):
        """Yields images (N, 3, H, W), normalised, channels-last, and labels (N,), for the steps from start to stop.

        Past the last batch the images come round again, in another order.
        """
        steps = range(start, len(self) if stop is None else stop)
        if self.loader is not None:  # the loader walks this very list
            self.plan[:] = [[(i, self._place(epoch, s)) for i in self._indices(epoch, s).tolist()] for s in steps]
        read = iter(self.loader) if self.loader is not None else None
        for step in steps:
            index = self._indices(epoch, step).to(self.device, non_blocking=True)
            pixels = next(read).to(self.device, non_blocking=True) if read else self.pixels[index]
            yield self._finish(pixels, keyed(*self._place(epoch, step))), self.labels[index]

    def _place(self, epoch: int, step: int) -> tuple:
        return self.config["seed"], self.role, epoch, step, self.rank

    def _indices(self, epoch: int, step: int) -> Tensor:
        """The images of one batch, of this rank's share."""
        turn, batch = divmod(step, len(self))
        if self.order[0] != (epoch, turn):
            # Evaluation is shuffled too: files come class by class, and the supernet's batch norm needs mixed batches.
            order = torch.randperm(len(self.index), generator=keyed(self.config["seed"], self.role, epoch, turn))
            if self.augment:
                order = order[: len(order) // self.world * self.world]  # equal shares
            self.order = (epoch, turn), self.index[order[self.rank :: self.world]]
        joined = not self.augment and batch == len(self) - 1
        return self.order[1][batch * self.config["batch_size"] :][: self.config["batch_size"] + joined]

    def _finish(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        count, size = len(pixels), pixels.shape[1]
        if self.augment and self.config["stem"] != "imagenet":
            shift = torch.randint(0, 2 * self.PAD + 1, (2, count, 1), generator=generator)
            flip = torch.rand(count, 1, generator=generator) < 0.5
            line = torch.arange(size)
            rows, columns = shift[0] + line, shift[1] + torch.where(flip, line.flip(0), line)
            rows, columns = rows.to(self.device, non_blocking=True), columns.to(self.device, non_blocking=True)
            padded = F.pad(pixels, (0, 0, self.PAD, self.PAD, self.PAD, self.PAD))
            number = torch.arange(count, device=self.device)[:, None, None]
            pixels = padded[number, rows[:, :, None], columns[:, None, :]]
        images = ((pixels.permute(0, 3, 1, 2).float() / 255) - self.mean) / self.std  # channels-last
        if self.augment and self.config["cutout"]:
            centre = torch.randint(0, size, (2, count, 1), generator=generator).to(self.device, non_blocking=True)
            half = self.config["cutout"] // 2
            near = torch.arange(size, device=self.device) - centre
            near = (near >= -half) & (near < half)  # (2, N, size)
            images.masked_fill_((near[0][:, :, None] & near[1][:, None, :])[:, None], 0.0)
        return images


def statistics_of(images: Images, dataset: str) -> tuple:
    """Mean and deviation per channel of the training pixels: the published ones, or computed."""
    if dataset in STATISTICS or images.pixels is None:
        return STATISTICS[dataset if dataset in STATISTICS else "imagenet"]
    total, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for part in images.pixels.split(1000):
        part = part.view(-1, 3).double() / 255
        total, squares = total + part.sum(0), squares + part.square().sum(0)
    mean = total / (images.pixels.numel() // 3)
    deviation = (squares / (images.pixels.numel() // 3) - mean**2).clamp_min(0).sqrt()
    return mean.tolist(), deviation.clamp_min(1 / 255).tolist()


def halves(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Disjoint parts (weights, architecture), each with `fraction` of every class, drawn from the seed."""
    parts = [], []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=keyed(seed, "split", label))]
        cut = math.ceil(fraction * len(members))
        parts[0].append(members[:cut])
        parts[1].append(members[cut : 2 * cut])
    weights, architecture = (torch.cat(part).sort().values for part in parts)
    if min(len(weights), len(architecture)) < 2:
        raise ValueError(f"{len(labels)} training images are too few: both halves of the search need two at least")
    return weights, architecture


# ----------------------------------------------------------------------------------------------------------------------
# A run: its folder, log and checkpoints


class NumbersError(ArithmeticError):
    """A loss or gradient is NaN or infinite."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM; the state has been saved. No `except Exception` catches it."""


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = lines[-1].partition(": ")[2] if lines[0].startswith("Caught ") else lines[0]  # raised by a worker
    return short(line, 500)


def rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class Run:
    """A run's folder. Only rank 0 writes."""

    def __init__(self, stage: str, config: dict):
        self.stage, self.config, self.folder = stage, config, Path(config["out"])
        (rank, self.world), self.progressing, Stop.folder = rank_and_world(), False, None
        self.lead, self.whole = rank == 0, False  # whether last.pt is known to be whole
        if Stop.signal:
            raise Interrupted

    def checkpoint(self) -> dict | None:
        """The newest whole checkpoint of a resumed run, or None. ValueError where the folder does not fit."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; name another folder with --out")
        paths = [path for path in (self.folder / "last.pt", self.folder / "previous.pt") if path.is_file()]
        if (paths or (self.folder / "config.json").exists()) and not self.config["resume"]:
            raise ValueError(f"{self.folder} holds a run already; --resume goes on with it, --out names another")
        reasons = []
        for path in paths:
            try:
                state = load_checkpoint(path)
                if (state["format"], state["stage"]) != (CHECKPOINT_FORMAT, self.stage):
                    made = f"{short(str(state['stage']))} in format {short(str(state['format']))}"
                    raise ValueError(f"it is of a {made}; this version goes on with format {CHECKPOINT_FORMAT}")
                if type(state["epoch"]) is not int or type(state["step"]) is not int:
                    raise ValueError("it has no place to go on at")
                if [row["epoch"] for row in state["rows"]] != list(range(1, state["epoch"] + 1)) or state["step"] < 0:
                    raise ValueError("its rows are not those of its epochs")
                old, new = state["settings"] | {"processes": state["world"]}, self.config | {"processes": self.world}
                odd = sorted(k for k in old.keys() | new.keys() if k not in FREE and old.get(k) != new.get(k))
                odd = [k for k in odd if not k.startswith("retrain_")]
                names = ", ".join(f"--{k.replace('_', '-')} {old.get(k)} (now {new.get(k)})" for k in odd)
            except Exception as error:  # whatever torch.load makes of a broken file
                reasons.append(f"{path} cannot be used ({first_line(error)})")
                continue
            if odd:
                raise ValueError(f"{path} was made with {names}; resume with the same, or use another --out")
            for reason in reasons:
                print(f"{reason}; going on from {path}", file=sys.stderr)
            self.whole = path.name == "last.pt"
            return state
        if reasons:
            raise ValueError("; ".join(reasons) + "; start anew with another --out")
        return None

    def start(self, command: list[str]) -> None:
        if dist.is_initialized():
            dist.barrier()  # every rank has looked at the folder before rank 0 writes into it
        if self.lead:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left_over in self.folder.glob(".*.tmp"):  # of a write that was killed
                left_over.unlink()
            text = dict(stage=self.stage, command=command, processes=self.world, settings=self.config)
            text |= dict(versions=versions())
            genotypes.write(self.folder / "config.json", (json.dumps(text, indent=1) + "\n").encode())

    def save(self, parts: dict, epoch: int, step: int, totals: Tensor, rows: list, **more) -> None:
        """last.pt, keeping the one before as previous.pt. epoch, step: where to go on."""
        if not self.lead:
            return
        state = {name: part.state_dict() for name, part in parts.items()} | more
        state |= dict(format=CHECKPOINT_FORMAT, stage=self.stage, settings=self.config, world=self.world)
        content = io.BytesIO()
        state |= dict(epoch=epoch, step=step, totals=totals, rows=rows, rng=torch.get_rng_state())
        torch.save(state, content)
        last, new = self.folder / "last.pt", self.folder / ".last.pt.tmp"
        genotypes.write(new, content.getvalue())
        if self.whole:  # a broken one does not replace the one before
            os.replace(last, self.folder / "previous.pt")
        os.replace(new, last)
        self.whole = True

    def restore(self, state: dict | None, parts: dict, totals: Tensor) -> tuple[int, int, list]:
        """Fills the parts and the totals from a checkpoint, if any; the epoch and step to go on at, and the rows."""
        if state is None:
            return 0, 0, []
        try:
            for name, part in parts.items():
                if not isinstance(part, torch.optim.Optimizer):
                    part.load_state_dict(state[name])
                    continue
                part.load_state_dict(state[name] | {"param_groups": part.state_dict()["param_groups"]})  # the run's own
                for p, row in part.state.items():
                    if any(b is not None and b.shape not in ((), p.shape) for b in row.values()):
                        raise ValueError(f"{name} has buffers of other shapes")
            totals.copy_(state["totals"])
            torch.set_rng_state(state["rng"])
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"the checkpoint in {self.folder} is of another network: {first_line(error)}") from None
        done = state["epoch"] >= self.config["epochs"]
        self.log("already finished" if done else f"resumed at epoch {state['epoch'] + 1}, step {state['step'] + 1}")
        return state["epoch"], state["step"], state["rows"]

    def processes(self) -> str:
        """What torchrun makes of the settings that count per process."""
        batch = self.config["batch_size"]
        return f" x {self.world} processes, {self.world * batch} images a step in all" if self.world > 1 else ""

    def write_metrics(self, rows: list[dict]) -> None:
        if self.lead and rows:
            text = io.StringIO()
            names = dict.fromkeys(name for row in rows for name in row)  # a resumed run may have gained --table
            writer = csv.DictWriter(text, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            genotypes.write(self.folder / "metrics.csv", text.getvalue().encode())

    def write_genotype(self, genotype, **more) -> None:
        if self.lead:
            genotypes.save(genotype, self.folder / "genotype.json", **more)
            genotypes.draw(genotype, self.folder / "cells.svg")

    def log(self, text: str) -> None:
        if not self.lead:
            return
        if not self.config["quiet"]:
            print(("\r\033[K" if self.progressing else "") + text, flush=True)
            self.progressing = False
        with open(self.folder / "log.txt", "a") as file:
            file.write(text + "\n")

    def progress(self, text: str) -> None:
        """A line that the next one replaces, on a terminal only."""
        if self.lead and not self.config["quiet"] and sys.stdout.isatty():
            print("\r\033[K" + text, end="", flush=True)
            self.progressing = True


def load_checkpoint(path: Path) -> dict:
    """torch.load of a checkpoint, once its sums are checked, which torch.load does not do. Raises what comes."""
    with zipfile.ZipFile(path) as file:
        if sum(entry.file_size for entry in file.infolist()) > path.stat().st_size:
            raise ValueError("it unpacks to more than its size")
        if broken := file.testzip():
            raise ValueError(f"its part {short(broken)} is corrupt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about files that it did not write
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # its own message advises to trust the file
            raise ValueError("it holds more than numbers and names, so no run wrote it") from None


CHECKPOINT_FORMAT = 1
# Settings that may change when a run is resumed: they do not change its result.
FREE = set("resume out device workers data quiet save_minutes cache_gib retrain config table".split())


def versions() -> dict:
    folder = Path(__file__).resolve().parent
    commit = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5)
        commit = git.stdout.strip() or None
    return dict(torch=torch.__version__, python=platform.python_version(), platform=platform.platform(), commit=commit)


class Stop:
    """Whether to stop: `signal` asked this process to, `agreed` is what all ranks know. `main` alone sets handlers.

    folder: of the run whose loop is running, which then ends at its next step; where none is, a signal ends it at once.
    """

    signal, agreed, folder = None, False, None

    @classmethod
    def ask(cls, number, frame) -> None:
        cls.signal = number
        if cls.folder is None:
            raise Interrupted

    @classmethod
    def asked(cls, device) -> bool:
        """Whether any rank was asked to stop; every rank learns of it at the same step."""
        if dist.is_initialized():
            flag = torch.tensor([cls.signal or 0], device=device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            cls.signal = int(flag) or None
        cls.agreed = cls.signal is not None
        return cls.agreed


# ----------------------------------------------------------------------------------------------------------------------
# What the loops share


def set_up(config: dict) -> torch.device:
    """The device, and the numerical switches of the whole process."""
    name = config["device"]
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    backends = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if name in backends and not backends[name]():
        raise ValueError(f"--device {name}: this PyTorch ({torch.__version__}) finds no such device; use --device cpu")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        # Waiting for the other processes hears no handler; there is nothing to save yet.
        handlers = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
        # Optimizers import torch.distributed.nn, whose default arguments would keep the group, and threads that may
        # abort while Python exits, after destroy_process_group. Imported now they hold None.
        from torch.distributed import nn as _  # noqa: F401

        dist.init_process_group("nccl" if name == "cuda" else "gloo")
        for number, handler in handlers.items():
            signal.signal(number, handler)
    device = torch.device(name, int(os.environ.get("LOCAL_RANK", 0)) if name == "cuda" else None)
    if name == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = not config["deterministic"]
    if config["deterministic"]:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config["deterministic"])
    return device


def precision(config: dict, device: torch.device) -> torch.dtype | None:
    """The dtype of --amp: bfloat16 where the device has it, else float16."""
    if not config["amp"]:
        return None
    has_bfloat16 = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported())
    return torch.bfloat16 if has_bfloat16 else torch.float16


def start_momentum(sgd: torch.optim.SGD) -> None:
    """Zeros as every parameter's first momentum: the step is the same, and fused SGD (CUDA) takes no missing buffer.

    An operation that gets its first gradient at a later step than another has none, nor has anything after a first step
    that loss scaling skips.
    """
    for group in sgd.param_groups:
        for p in group["params"] if group["momentum"] else ():
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)


def reseed(config: dict, *place) -> None:
    """torch's default generators (the noise op, drop path), for one place in the run."""
    torch.manual_seed(keyed(config["seed"], *place, rank_and_world()[0]).initial_seed())


def learning_rate(config: dict, epoch: int) -> float:
    """The rate of an epoch: cosine from lr to lr_min, or PC-DARTS's linear decay; after a linear warm-up."""
    lr, low, epochs, warmup = config["lr"], config["lr_min"], config["epochs"], config.get("lr_warmup", 0)
    if config.get("schedule") == "linear":  # and a flatter line over the last five epochs: PC-DARTS, train_imagenet.py
        tail = min(5, epochs - 1)
        left = epochs - epoch
        rate = lr * (left - tail) / (epochs - tail) if left > tail else lr * left / ((epochs - tail) * max(tail, 1))
    else:
        rate = low + 0.5 * (lr - low) * (1 + math.cos(math.pi * epoch / epochs))
    return lr * (epoch + 1) / warmup if epoch < warmup else rate


def ramp(first: float, last: float, epoch: int, epochs: int) -> float:
    """Linear over the epochs, `last` in the last one."""
    share = epoch / max(1, epochs - 1)
    return (1 - share) * first + share * last


def peak_mib(device: torch.device) -> float:
    """Peak memory so far: allocated on a CUDA device, resident in the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes:.0f} min" if minutes < 120 else f"{hours:.1f} h"


@torch.no_grad()
def evaluate(predict, stream: Stream, save=lambda: None) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in percent over a stream, over all ranks; a signal saves and ends it."""
    totals = torch.zeros(3, device=stream.device)
    for images, labels in stream.epoch(0):
        if Stop.signal and not dist.is_initialized():  # ranks have not the same number of batches to agree at
            save()
            raise Interrupted
        logits = predict(images).float()
        loss, correct = F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()
        totals += torch.stack([loss, correct, torch.full_like(loss, len(labels))])
    if dist.is_initialized():
        dist.all_reduce(totals)
    loss, correct, count = totals.tolist()
    return loss / count, 100 * correct / count


def size_of(model: nn.Module, image_size: int) -> tuple[int, int]:
    """Parameters without the auxiliary head, and multiply-adds of convolutions and linear layers for one image."""
    total, hooks = 0, []

    def count(module, inputs, output):
        nonlocal total
        weights = [module.even, module.odd] if isinstance(module, rome.FactorizedReduce) else [module]
        positions = 1 if isinstance(module, nn.Linear) else output[0, 0].numel()
        total += positions * sum(part.weight.numel() for part in weights)

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, rome.FactorizedReduce)):
            hooks.append(module.register_forward_hook(count))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device))
    model.train()
    for hook in hooks:
        hook.remove()
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("auxiliary.")), total


def build_network(genotype, config: dict, classes: int) -> rome.Network:
    """The retrain network of a configuration."""
    return rome.Network(
        genotype, config["channels"], config["cells"], classes, config["auxiliary"] > 0, config["drop_path"],
        config["stem"] == "imagenet",
    )  # fmt: skip


def finite(numbers: Tensor, scaled: bool, where: str, architect: rome.Architect | None = None) -> Tensor:
    """The numbers of a step and, last, whether loss scaling skipped it. NumbersError if one of them went wrong."""
    good = torch.isfinite(numbers)
    if not (good.all() or (scaled and good[:2].all())):
        what, cell = "gradient" if good[:2].all() else "loss", ""
        if architect is not None:  # numbers: the loss of alpha and beta, of the weights, and the two gradients' norms
            role = "weights" if good[0] and good[2] else "architecture"
            samples = architect.last[role]
            arch = next((arch for arch, loss in samples if not loss.isfinite()), samples[-1][0])
            cell = f" in the {role} step (sampled cell: {architect.net.cell(arch)})"
        raise NumbersError(
            f"{where}: the {what} is not finite{cell}; the last checkpoint is kept; lower --lr or --clip, or go "
            "without --amp, in another --out"
        )
    return torch.cat([numbers.nan_to_num(0, 0, 0), (~good.all()).view(1)])


def skipped_steps(share: float, steps: int) -> str:
    return f"{round(share * steps)} of {steps} steps skipped by loss scaling, " if share else ""


class Clock:
    """Time, steps and images since this process began on the run; `steps` are left of it then."""

    def __init__(self, run: Run, device: torch.device, steps: int):
        self.run, self.device, self.steps, self.done, self.images = run, device, steps, 0, 0
        self.start = self.epoch_start = self.saved = self.first = time.perf_counter()
        Stop.folder = run.folder

    def step(self, images: int, place: str) -> bool:
        """Counts one step and shows it; once, what the whole will take. Says whether a checkpoint is due now."""
        now = time.perf_counter()
        self.images, self.done = self.images + images, self.done + 1
        if self.done == 1:
            self.first = now
        elif self.done == min(4, self.steps):
            total = (now - self.first) / (self.done - 1) * self.steps
            self.run.log(f"estimated total time {duration(total)}; peak memory {peak_mib(self.device):.0f} MiB")
            if total > 24 * 3600 and self.device.type == "cpu":
                self.run.log("too long for a CPU: use a GPU, or lower --channels, --cells, --epochs; or see --quick")
        self.run.progress(f"{place}, {self.left()} left")
        due = Stop.asked(self.device) or now - self.saved > 60 * self.run.config["save_minutes"]
        self.saved = now if due else self.saved
        return due

    def left(self) -> str:
        return duration((time.perf_counter() - self.start) / max(1, self.done) * (self.steps - self.done))

    def columns(self) -> dict:
        """The time and memory columns of metrics.csv for the epoch that ends."""
        seconds, images = time.perf_counter() - self.epoch_start, self.images
        self.epoch_start, self.images = time.perf_counter(), 0
        numbers = dict(images_per_second=images / seconds, seconds=seconds, peak_mib=peak_mib(self.device))
        return {name: round(value, 2) for name, value in numbers.items()}


# ----------------------------------------------------------------------------------------------------------------------
# The search


def space_of(config: dict) -> rome.Space:
    space = rome.SPACES[config["space"]]
    if config["one_shot_ops"] == "table":  # the op set of NAS-Bench-1Shot1's table: a 1x1 convolution, no skip
        row = ("maxpool3x3", "conv3x3-bn-relu", "conv1x1-bn-relu")
        return space._replace(ops={"cell": (row,) * len(space.ops["cell"])})
    return space


def entropies(net: rome.Supernet) -> dict:
    """Mean entropy (nats) of the op choices and of the topology choices, by cell type."""
    columns = {}
    for kind, alpha in net.alpha.items():
        columns[f"entropy_alpha_{kind}"] = Categorical(logits=alpha.detach()).entropy().mean().item()
        if net.topology != "none":
            parts = net.beta[kind].detach().split([count for _, _, count in net.nodes])
            each = [Categorical(logits=part).entropy() for part in parts if len(part) > 1]
            columns[f"entropy_beta_{kind}"] = torch.stack(each).mean().item()
    return columns


def search(config: dict, command: list[str]):
    """Algorithm 1 over the epochs of a configuration. Returns the derived genotype, argmax p(z)."""
    device, run = set_up(config), Run("search", config)
    state = run.checkpoint()
    train = load_data(config, "train")  # the test images are never looked at
    statistics, train = statistics_of(train, config["dataset"]), train.to(device)
    classes, seed, epochs = len(train.classes), config["seed"], config["epochs"]
    table, known = None, {10: "cifar10", 100: "cifar100", 120: "folder"}.get(classes)  # the data sets of the table
    if config["table"]:
        table = read_table(config["table"])
        if known is None or not table.get(f"{TABLE_DATA[known]}_test"):
            raise ValueError(f"{config['table']} has no test accuracies for these {classes} classes")
    weight_half, architecture_half = halves(train.labels.cpu(), config["fraction"], seed)
    weight_data = Stream(train, weight_half, config, "weights", device, statistics, augment=True)
    architecture_data = Stream(train, architecture_half, config, "architecture", device, statistics, augment=True)
    part = torch.randperm(len(architecture_half), generator=keyed(seed, "evaluation"))
    part = architecture_half[part[: config["evaluation_images"] or None]]
    evaluation_data = Stream(train, part, config, "evaluation", device, statistics, augment=False)

    reseed(config, "weights of the supernet")
    net = rome.Supernet(
        space_of(config), config["channels"], config["cells"], classes, METHODS[config["method"]], config["recompute"],
        imagenet=config["stem"] == "imagenet",
    ).to(device)  # fmt: skip
    for p in net.parameters():  # ranks start from the same numbers
        if dist.is_initialized():
            dist.broadcast(p.data, 0)
    place = [0, 0]  # epoch, step
    architect = rome.Architect(
        net, (config["samples_alpha"], config["samples_theta"]), config["clip"] or None,
        lambda role, k: keyed(seed, "sample", role, *place, rank_and_world()[0], k),
        architecture_clip=config["alpha_clip"] or None, architecture_reduction=config["alpha_reduction"],
        weight_reduction=config["theta_reduction"], autocast=precision(config, device),
    )  # fmt: skip
    fused, decay = device.type == "cuda", config["alpha_weight_decay"]
    sgd = torch.optim.SGD(
        net.weights(), config["lr"], config["momentum"], weight_decay=config["weight_decay"], fused=fused
    )
    adam = torch.optim.Adam(
        net.architecture_parameters(), config["alpha_lr"], (0.5, 0.999), weight_decay=decay, fused=fused
    )
    start_momentum(sgd)
    parts, totals = dict(net=net, architect=architect, sgd=sgd, adam=adam), torch.zeros(6, device=device)
    run.start(command)
    run.log(
        f"search of {config['space']} on {config['dataset']} ({classes} classes, {len(weight_half)} images for the "
        f"weights, {len(architecture_half)} for alpha and beta), {config['method']}, K = {config['samples_alpha']} for "
        f"alpha and {config['samples_theta']} for the weights, seed {seed}, on {device_name(device)}{run.processes()}; "
        f"supernet {sum(p.numel() for p in net.weights()) / 1e6:.3f} M weights"
    )
    if table:
        cells = len(table[f"{TABLE_DATA[known]}_test"])
        run.log(f"table {config['table']}: {cells} of NAS-Bench-201's 15625 cells, column {TABLE_DATA[known]}_test")
    first_epoch, first_step, rows = run.restore(state, parts, totals)
    steps = config["steps_per_epoch"] or len(weight_data)
    clock = Clock(run, device, (epochs - first_epoch) * steps - first_step)

    for epoch in range(first_epoch, epochs):
        tau, lr = ramp(config["tau_max"], config["tau_min"], epoch, epochs), learning_rate(config, epoch)
        sgd.param_groups[0]["lr"] = lr
        batches = zip(
            architecture_data.epoch(epoch, first_step, steps),
            weight_data.epoch(epoch, first_step, steps),
            strict=True,
        )
        for step, ((x_s, y_s), (x_t, y_t)) in enumerate(batches, first_step):
            place[:] = epoch, step
            reseed(config, epoch, step)
            # Algorithm 1: alpha and beta on D_s first, then the weights on D_t.
            loss_alpha = norm_alpha = totals.new_zeros(())
            if epoch >= config["warmup"]:
                loss_alpha = architect.architecture_step(x_s, y_s, tau, adam)
                norm_alpha = architect.gradient_norm
            loss_theta = architect.weight_step(x_t, y_t, tau, sgd)
            norm = architect.gradient_norm
            numbers = torch.stack([loss_alpha, loss_theta, norm_alpha, norm, norm > (config["clip"] or math.inf)])
            where = f"epoch {epoch + 1}/{epochs}, step {step + 1}/{steps}"
            totals += finite(numbers, architect.autocast is torch.float16, where, architect)
            if clock.step(len(x_s) + len(x_t), where):
                run.save(parts, epoch, step + 1, totals, rows)
                if Stop.agreed:
                    raise Interrupted

        genotype = net.genotype(config["derive"])
        reseed(config, epoch, "evaluation")  # of the noise op
        save = functools.partial(run.save, parts, epoch, steps, totals, rows)
        loss, accuracy = evaluate(functools.partial(net, arch=net.architecture(genotype)), evaluation_data, save)
        loss_alpha, loss_theta, norm_alpha, norm, clipped, skipped = (totals / steps).tolist()
        free = genotypes.parameter_free(genotype)
        row = dict(epoch=epoch + 1, tau=tau, lr=lr, loss_alpha=loss_alpha, loss_theta=loss_theta, supernet_loss=loss)
        row |= dict(supernet_accuracy=accuracy, gradient_norm_alpha=norm_alpha, gradient_norm=norm, clipped=clipped)
        row |= dict(skipped=skipped) | {f"parameter_free_{kind}": count for kind, count in free.items()}
        true = table_row(table, genotype, known, config["method"]) if table else {}
        row |= entropies(net) | true | dict(genotype=str(genotype)) | clock.columns()
        rows.append(row)
        first_step = 0
        run.write_metrics(rows)
        run.save(parts, epoch + 1, 0, totals.zero_(), rows)
        run.log(
            f"epoch {epoch + 1}/{epochs}: loss {loss_theta:.3f} (alpha {loss_alpha:.3f}), supernet accuracy "
            f"{accuracy:.1f}% (of the derived cell, not a result), parameter-free ops "
            f"{', '.join(f'{count} {kind}' for kind, count in free.items())}, tau {tau:.2f}, "
            + ("true test accuracy {table_test:.2f}% (rank {table_rank}), ".format(**true) if true else "")
            + skipped_steps(skipped, steps)
            + f"{row['images_per_second']:.0f} images/s, {row['peak_mib']:.0f} MiB, {clock.left()} left"
        )

    genotype = net.genotype(config["derive"])
    run.write_metrics(rows)
    run.write_genotype(genotype, space=config["space"], dataset=config["dataset"], epoch=epochs)
    network = resolve("retrain", retrain_flags(config, genotype))
    parameters, operations = size_of(build_network(genotype, network, classes), network["image_size"])
    run.log(
        f"found {genotype}\n{genotypes.describe(genotype)}\nretrained at {network['cells']} cells and "
        f"{network['channels']} channels it has {parameters / 1e6:.3f} M parameters and {operations / 1e6:.1f} M "
        "multiply-adds an image"
    )
    files = [str(run.folder / name) for name in ("genotype.json", "cells.svg", "metrics.csv", "last.pt")]
    run.log("files: " + ", ".join(files))
    return genotype


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


# ----------------------------------------------------------------------------------------------------------------------
# The retrain


def retrain(config: dict, command: list[str]) -> float:
    """Trains the network of a genotype from scratch. Returns its test accuracy at the last epoch, in percent."""
    device, run, genotype = set_up(config), Run("retrain", config), genotypes.load(config["genotype"])
    state = run.checkpoint()
    train, test = load_data(config, "train"), load_data(config, "test")
    if train.classes != test.classes:
        odd = ", ".join(sorted(set(train.classes) ^ set(test.classes))[:5])
        raise ValueError(f"{config['data']}: the classes of train and test differ: {odd}")
    statistics, train, test = statistics_of(train, config["dataset"]), train.to(device), test.to(device)
    classes, epochs = len(train.classes), config["epochs"]
    train_data = Stream(train, torch.arange(len(train.labels)), config, "retrain", device, statistics, augment=True)
    test_data = Stream(test, torch.arange(len(test.labels)), config, "test", device, statistics, augment=False)

    reseed(config, "weights of the network")
    network = build_network(genotype, config, classes).to(device)
    sgd = torch.optim.SGD(
        network.parameters(), config["lr"], config["momentum"], weight_decay=config["weight_decay"],
        nesterov=config["nesterov"], fused=device.type == "cuda",
    )  # fmt: skip
    start_momentum(sgd)
    dtype = precision(config, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    parts, totals = dict(network=network, sgd=sgd, scaler=scaler), torch.zeros(4, device=device)
    about = dict(classes=train.classes, statistics=statistics)  # what a user of the network needs
    parameters, operations = size_of(network, config["image_size"])
    run.start(command)
    run.write_genotype(genotype, space=config["space"])
    run.log(
        f"retrain on {config['dataset']} ({classes} classes, {len(train.labels)} training and {len(test.labels)} test "
        f"images), {config['cells']} cells, {config['channels']} channels, {parameters / 1e6:.3f} M parameters, "
        f"{operations / 1e6:.1f} M multiply-adds, seed {config['seed']}, on {device_name(device)}{run.processes()}: "
        f"{genotype}"
    )
    first_epoch, first_step, rows = run.restore(state, parts, totals)
    model = network
    if dist.is_initialized():
        model = nn.parallel.DistributedDataParallel(model, [device.index] if device.type == "cuda" else None)
    model = torch.compile(model) if config["compile"] else model
    steps = config["steps_per_epoch"] or len(train_data)
    clock = Clock(run, device, (epochs - first_epoch) * steps - first_step)
    criterion = functools.partial(F.cross_entropy, label_smoothing=config["label_smoothing"])

    for epoch in range(first_epoch, epochs):
        lr, drop_path = learning_rate(config, epoch), config["drop_path"] * epoch / epochs
        sgd.param_groups[0]["lr"] = lr
        network.drop_path.fill_(drop_path)
        model.train()
        for step, (images, labels) in enumerate(train_data.epoch(epoch, first_step, steps), first_step):
            reseed(config, epoch, step)
            sgd.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                logits, logits_auxiliary = model(images)
                loss = criterion(logits, labels)
                if logits_auxiliary is not None:
                    loss = loss + config["auxiliary"] * criterion(logits_auxiliary, labels)
            scaler.scale(loss).backward()
            scaler.unscale_(sgd)
            norm = nn.utils.clip_grad_norm_(network.parameters(), config["clip"] or math.inf)
            scaler.step(sgd)
            scaler.update()
            numbers = torch.stack([loss.detach(), (logits.argmax(1) == labels).float().mean(), norm])
            where = f"epoch {epoch + 1}/{epochs}, step {step + 1}/{steps}"
            totals += finite(numbers, scaler.is_enabled(), where)
            if clock.step(len(images), where):
                run.save(parts, epoch, step + 1, totals, rows, **about)
                if Stop.agreed:
                    raise Interrupted

        network.eval()
        for buffer in network.buffers() if dist.is_initialized() else ():
            dist.broadcast(buffer, 0)  # each rank has running statistics of its own images; the checkpoint has rank 0's
        save = functools.partial(run.save, parts, epoch, steps, totals, rows, **about)
        loss_test, accuracy_test = evaluate(lambda images: network(images)[0], test_data, save)
        loss_train, accuracy_train, norm, skipped = (totals / steps).tolist()
        row = dict(epoch=epoch + 1, lr=lr, drop_path=drop_path, loss_train=loss_train, loss_test=loss_test)
        row |= dict(accuracy_train=100 * accuracy_train, accuracy_test=accuracy_test, gradient_norm=norm)
        row |= dict(skipped=skipped) | clock.columns()
        rows.append(row)
        first_step = 0
        run.write_metrics(rows)
        run.save(parts, epoch + 1, 0, totals.zero_(), rows, **about)
        run.log(
            f"epoch {epoch + 1}/{epochs}: loss {loss_train:.3f}, training accuracy {100 * accuracy_train:.1f}%, test "
            f"accuracy {accuracy_test:.2f}%, {skipped_steps(skipped, steps)}{row['images_per_second']:.0f} images/s, "
            f"{row['peak_mib']:.0f} MiB, {clock.left()} left"
        )

    run.write_metrics(rows)
    accuracy = rows[-1]["accuracy_test"]
    run.log(f"test accuracy {accuracy:.2f}% (error {100 - accuracy:.2f}%) at the last epoch, {epochs}")
    run.log(f"files: {run.folder / 'metrics.csv'}, {run.folder / 'last.pt'} (weights; train.load_network reads it)")
    return accuracy


def load_network(path: str | Path) -> tuple[rome.Network, list[str]]:
    """The trained network of a retrain's last.pt, in evaluation mode, and its class names."""
    state = load_checkpoint(Path(path))
    config, classes = state["settings"], state["classes"]
    network = build_network(genotypes.load(config["genotype"]), config, len(classes))
    network.load_state_dict(state["network"])
    return network.eval(), classes


def short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


# ----------------------------------------------------------------------------------------------------------------------
# The paper's numbers, and the benchmarks

# Test error in % and Num, the parameter-free ops of the normal cell: mean, deviation, mean, deviation (Tables 1 to 4).
PAPER = {
    "darts/cifar10": {"rome-v2": (2.58, 0.07), "gdas": (3.48, 0.07)},
    "darts/cifar100": {"rome-v2": (17.71, 0.11), "gdas": (18.38,)},
    "darts/imagenet": {"rome-v2": (24.5,)},  # top-1 error, searched on ImageNet
    "s1/cifar10": {"rome-v2": (2.66, 0.06, 1.3, 0.4), "gdas": (2.89, 0.09, 3.8, 0.4)},
    "s2/cifar10": {"rome-v2": (3.14, 0.14, 2.0, 0.0), "gdas": (3.89, 0.17, 6.0, 0.7)},
    "s3/cifar10": {"rome-v2": (2.61, 0.00, 2.0, 0.0), "gdas": (3.04, 0.10, 6.5, 0.5)},
    "s4/cifar10": {"rome-v2": (3.21, 0.12, 0.0, 0.0), "gdas": (3.34, 0.10, 0.0, 0.0)},
    "s1/cifar100": {"rome-v2": (22.71, 0.71, 2.3, 0.4), "gdas": (24.49, 0.08, 4.0, 0.0)},
    "s2/cifar100": {"rome-v2": (22.91, 0.75, 3.5, 0.5), "gdas": (24.57, 0.47, 6.3, 0.4)},
    "s3/cifar100": {"rome-v2": (22.43, 0.36, 2.5, 0.5), "gdas": (22.86, 0.17, 3.0, 0.7)},
    "s4/cifar100": {"rome-v2": (20.95, 0.45, 0.0, 0.0), "gdas": (24.14, 0.89, 2.3, 1.1)},
    "s1/svhn": {"rome-v2": (2.34, 0.06, 0.8, 0.4), "gdas": (2.48, 0.04, 2.8, 0.4)},
    "s2/svhn": {"rome-v2": (2.41, 0.07, 1.0, 0.0), "gdas": (3.05, 0.02, 7.8, 0.4)},
    "s3/svhn": {"rome-v2": (2.56, 0.03, 1.5, 0.5), "gdas": (3.62, 0.36, 7.5, 0.5)},
    "s4/svhn": {"rome-v2": (2.34, 0.00, 0.0, 0.0), "gdas": (2.51, 0.06, 1.5, 1.5)},
}
RESTORED = ("s1/cifar10", "s1/cifar100", "s3/cifar100", "s1/svhn", "s4/svhn")  # ROME's error, see note a
# The paper's other searches in S0: error, deviation (printed as accuracies in Tables 4 to 6). TD: topology
# disentanglement; GA: gradient accumulation. Table 5 states its epochs; in Table 6 we keep K of the weights * epochs.
VARIANTS = [
    ("Table 2, ROME-v1", dict(dataset="cifar10", method="rome-v1"), 2.63, 0.09),
    ("Table 3, ROME-v1", dict(dataset="cifar100", method="rome-v1"), 17.41, 0.12),
    ("Table 4, GDAS", dict(dataset="imagenet", method="gdas", equal_passes=True), 100 - 72.5, None),
    ("Tables 5, 6, K = 1, TD, no GA", dict(samples=1, equal_passes=True), 100 - 97.12, 0.06),
    ("Table 5, K = 4", dict(samples=4, equal_passes=True), 100 - 97.28, 0.07),
    ("Tables 5, 6, K = 7, TD, both GA", dict(samples=7), 100 - 97.42, 0.07),
    ("Table 5, K = 10", dict(samples=10, equal_passes=True), 100 - 97.46, 0.12),
    ("Table 6, TD, GA of alpha", dict(samples_theta=1, equal_passes=True), 100 - 97.22, 0.07),
    ("Table 6, TD, GA of theta", dict(samples_alpha=1), 100 - 97.34, 0.07),
    ("Table 6, no TD, no GA", dict(method="gdas", equal_passes=True), 100 - 96.52, 0.07),
    ("Table 6, no TD, GA of alpha", dict(method="gdas", samples_alpha=7, equal_passes=True), 100 - 96.85, 0.31),
    ("Table 6, no TD, GA of theta", dict(method="gdas", samples_theta=7), 100 - 96.98, 0.05),
    ("Table 6, no TD, both GA", dict(method="gdas", samples=7), 100 - 97.14, 0.05),
]
NOTES = """\
a  The first digit of ROME's error is lost in the text that the table was read from, and restored [?a].
b  GDAS: --method gdas. 3.48 is the paper's rerun of GDAS's own code (its Table 2 quotes 2.93); 18.38 is quoted.
c  S3 is R-DARTS's S2 and the op none, which is left out here (Eq. 1): the search of S3 is that of S2.
d  The paper follows R-DARTS, whose sources disagree on the retrain. Here: its appendix, as later papers restate it. Its
   code: 8/16 everywhere (--retrain-cells 8 --retrain-channels 16). DARTS-PT: 20/36 on all of CIFAR-10.
e  No number in the paper, which has NAS-Bench-1Shot1 in pictures and not NAS-Bench-201; folder: ImageNet16-120.
"""
MORE = {"imagenet": dict(data="data/imagenet"), "folder": dict(data="data/ImageNet16-120", image_size=16)}


def flags_of(settings: dict) -> list[str]:
    pairs = [("--" + name.replace("_", "-"), value) for name, value in settings.items()]
    return [word for flag, value in pairs for word in ([flag] if value is True else [flag, str(value)])]


def spread(numbers: tuple, digits: int = 2) -> str:
    mean, deviation = (*numbers, None, None)[:2]
    return "" if mean is None else f"{mean:.5g}" if deviation is None else f"{mean:.{digits}f}±{deviation:.{digits}f}"


def tabulate(rows: list[dict], style: str = "text") -> str:
    """Rows as a table in text, markdown or csv, without the columns that are empty."""
    names = [n for n in dict.fromkeys(n for row in rows for n in row) if any(str(row.get(n, "")) for row in rows)]
    cells = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    if style == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(cells)
        return text.getvalue()
    if style == "markdown":
        cells.insert(1, ["---"] * len(names))
        return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in cells)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in cells)


def list_benchmarks(commands: bool = False, seeds: tuple = (0,)) -> str:
    """Every benchmark: flags, settings, the paper's numbers. With `commands` a shell line for each and every seed."""
    places = [name.split("/") for name in PAPER] + [["nb201", name] for name in ("cifar10", "cifar100", "folder")]
    tables, rows, lines = dict(search=SEARCH, retrain=RETRAIN), [], []
    for space, dataset in places + [[f"1shot1-{number}", "cifar10"] for number in (1, 2, 3)]:
        paper, settings = PAPER.get(f"{space}/{dataset}", {}), dict(space=space, dataset=dataset)
        settings |= (dict(retrain=True) if paper else {}) | MORE.get(dataset, {})
        words = ["python", "train.py", "search", *flags_of(settings)]
        lines += [shlex.join([*words, "--seed", str(seed)]) for seed in seeds]
        row = {"--space": space, "--dataset": dataset}
        for stage, table in tables.items():
            p = protocol(table, space, dataset)
            size = f"{p['cells']}/{p['channels']}"
            text = f"{size:<7} {p['epochs']:>3} {p['batch_size']:>5} {p['lr']:<5} "
            row[f"{stage:7} ep. batch lr{'    K' * (stage == 'search')}"] = (text + str(p.get("samples", ""))).rstrip()
        for title, numbers in (("ROME", paper.get("rome-v2", ())), ("GDAS", paper.get("gdas", ()))):
            row[f"paper: {title}; Num"] = "; ".join(filter(None, [spread(numbers[:2]), spread(numbers[2:], 1)]))
        notes = "a" * (f"{space}/{dataset}" in RESTORED) + "b" * (space == "darts") + "c" * (space == "s3")
        rows.append(row | dict(note=notes + "d" * (space[0] == "s") + "e" * (not paper)))
    if commands:
        return "\n".join(lines)
    text = (
        "python train.py search --space S --dataset D --retrain. Networks: cells/channels (nb201: cells of a stage).\n"
    )
    text += "Paper: test error in %, Num (parameter-free ops of the normal cell); mean±deviation over searches.\n\n"
    text += tabulate(rows) + "\n" + NOTES
    for stage, table in tables.items():
        text += f"\nAll settings of the {stage}; the rows after the first hold what differs from it:\n"
        for name, row in table.items():
            line = f"  {name}: " + ", ".join(f"{setting} {value}" for setting, value in row.items())
            text += textwrap.fill(line, 120, subsequent_indent="    ") + "\n"
    rows = []
    for name, settings, *numbers in VARIANTS:
        config, row = resolve("search", settings), {"S0 in the paper": name, "paper: error": spread(numbers)}
        row |= {"K alpha": config["samples_alpha"], "theta": config["samples_theta"], "epochs": config["epochs"]}
        rows.append(row | {"flags (epochs of Table 6: inferred)": " ".join(flags_of(settings))})
    return text + "\n" + tabulate(rows)


# Settings that leave the protocol of a run as it is, or stand for others.
SAME = FREE | {"seed", "genotype", "quick", "samples", "equal_passes", "recompute", "deterministic", "compile", "table"}


def settings_of(config: dict) -> dict:
    """The settings that make the protocol of a run; for `folder`, its directory too, which says what the images are."""
    kept = {name: value for name, value in config.items() if name not in SAME and not name.startswith("retrain_")}
    return kept | ({"data": config["data"]} if config["dataset"] == "folder" else {})


def differences(config: dict, other: dict) -> list[str]:
    """The settings in which two configurations differ, the second's value in brackets."""
    a, b = settings_of(config), settings_of(other)
    names = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name) and name != "data")
    return [f"{name} {a.get(name)} ({b.get(name)})" for name in names]


def compare(stages: dict) -> tuple[tuple, str]:
    """The paper's numbers for its protocol that is nearest to a run's, and remarks on what differs."""
    numbers, remarks, odd = (), [], []
    if "search" in stages:
        place = {name: stages["search"][name] for name in ("space", "dataset", "method")}
        near = [("", place, PAPER.get(f"{place['space']}/{place['dataset']}", {}).get(place["method"], ()))]
        for name, settings, *values in VARIANTS:
            settings = dict(space="darts", dataset="cifar10", method="rome-v2") | settings
            near += [(name, settings, tuple(values))] if place.items() <= settings.items() else []
        near = [(differences(stages["search"], resolve("search", settings)), name, n) for name, settings, n in near]
        odd, name, numbers = min(near, key=lambda entry: len(entry[0]))
        remarks.append(name or ("" if numbers else "no number in the paper"))
    if "retrain" in stages:
        same = {name: stages["retrain"][name] for name in ("space", "dataset", "genotype")}
        odd += [f"retrain {text}" for text in differences(stages["retrain"], resolve("retrain", same))]
    remarks += [f"not {'the paper' if numbers else 'this program'}'s protocol: {', '.join(odd)}"] if odd else []
    return numbers, "; ".join(filter(None, remarks))


def read_part(folder: Path) -> dict:
    """One stage of a run, from its folder."""
    text = json.loads((folder / "config.json").read_bytes())
    config = text["settings"] | ({"processes": text["processes"]} if text.get("processes", 1) > 1 else {})
    metrics, log = folder / "metrics.csv", folder / "log.txt"
    rows = list(csv.DictReader(io.StringIO(metrics.read_text()))) if metrics.exists() else []
    done = int(rows[-1]["epoch"]) if rows else 0
    state = "finished" if done >= config["epochs"] else f"epoch {done} of {config['epochs']}"
    sizes = r"([\d.]+) M parameters(?:,| and) ([\d.]+) M multiply-adds"
    sizes = re.findall(sizes, log.read_text() if log.exists() else "") or [("", "")]
    return dict(stage=text["stage"], config=config, rows=rows, state=state, sizes=sizes[-1])


@contextlib.contextmanager
def reading(folder: Path):
    """Turns whatever a broken run's folder leads to into one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise ValueError(f"{folder} holds no readable run: {first_line(error)}") from None


def read_parts(folder: Path) -> list[dict]:
    """The stages of a run: the search, the retrain, or both. ValueError if there is none."""
    parts = [read_part(place) for place in (folder, folder / "retrain") if (place / "config.json").exists()]
    if [part["stage"] for part in parts] not in (["search"], ["retrain"], ["search", "retrain"]):
        raise ValueError("no config.json of a search or a retrain")
    return parts


def read_run(folder: Path) -> dict:
    """A run: its row of the report; error and Num, once final; what it is compared with. ValueError if broken."""
    with reading(folder):
        parts = read_parts(folder)
        stages = {part["stage"]: part["config"] for part in parts}
        config, rows, end = parts[0]["config"], parts[0]["rows"], parts[-1]
        final = {part["stage"] for part in parts if part["state"] == "finished"}
        row = {"run": folder} | {name: config.get(name, "") for name in ("space", "dataset", "method", "seed")}
        row["K"] = "/".join(dict.fromkeys(str(config.get(f"samples_{name}", "")) for name in ("alpha", "theta")))
        row["cell"] = config.get("genotype") or (rows[-1]["genotype"] if rows else "")
        if row["cell"]:
            cell = genotypes.load(row["cell"])
            free = genotypes.parameter_free(cell)
            row["Num"] = free.get("normal", free.get("cell"))
            if isinstance(cell, rome.OneShotGenotype):
                used = set(cell.inputs[-1])  # nodes from which a path leads to the output
                for node in range(len(cell.ops), 0, -1):
                    used |= set(cell.inputs[node - 1]) if node in used else set()
                row |= {"skips": cell.ops.count("skip-connect"), "loose ends": len(cell.ops) - len(used - {0})}
        titles = {"supernet_accuracy": "supernet %", "table_test": "table %", "table_rank": "rank"}
        titles |= {"table_regret": "regret", "table_regret_own": "own regret"}
        row |= {title: f"{float(rows[-1][name]):.5g}" for name, title in titles.items() if rows and rows[-1].get(name)}
        error = 100 - float(end["rows"][-1]["accuracy_test"]) if "retrain" in final else None
        row |= {"test error %": "" if error is None else f"{error:.2f}"}
        row |= {"M parameters": end["sizes"][0], "M multiply-adds": end["sizes"][1]}
        row["hours"] = f"{sum(float(epoch['seconds']) for part in parts for epoch in part['rows']) / 3600:.2f}"
        row["state"] = ", ".join(f"{part['stage']} {part['state']}" for part in parts)
        key = json.dumps([*map(settings_of, stages.values()), "search" in stages or row["cell"]])
        paper, free = compare(stages), row["Num"] if "search" in final else None
        return dict(row=row, key=key, error=error, Num=free, paper=paper)


def group_row(runs: list[dict]) -> dict:
    """Mean and deviation over runs of one protocol, beside the paper's numbers."""
    row = {name: runs[0]["row"][name] for name in ("space", "dataset", "method", "K")}
    numbers, remarks = runs[0]["paper"]
    restored = row["method"] == "rome-v2" and f"{row['space']}/{row['dataset']}" in RESTORED
    for name, digits, paper in (("Num", 1, numbers[2:]), ("error", 2, numbers[:2])):
        found = [run[name] for run in runs if run[name] is not None]
        ours = (statistics.fmean(found), statistics.pstdev(found)) if found[1:] else tuple(found)
        row |= {f"n of {name}": len(found), f"ours: {name}": spread(ours, digits)}
        row[f"paper: {name}"] = spread(paper, digits) + " [?a]" * (restored and name == "error")
        row[f"ours - paper: {name}"] = f"{ours[0] - paper[0]:+.{digits}f}" if ours and paper else ""
    twice = "; some seeds are there twice" * (len({run["row"]["seed"] for run in runs}) < len(runs))
    return row | {"remarks": (remarks + twice).removeprefix("; ")}


def report(folders: list[str], style: str = "text") -> str:
    """What the runs found, and means over the runs of each protocol beside the paper's; text, markdown or csv."""
    runs, groups = [read_run(folder) for folder in dict.fromkeys(map(Path, folders))], {}
    for run in runs:
        groups.setdefault(run["key"], []).append(run)
    found, means = [run["row"] for run in runs], [group_row(members) for members in groups.values()]
    if style == "csv":
        return tabulate([{"row": "run"} | row for row in found] + [{"row": "mean"} | row for row in means], style)
    text = (
        "Num: parameter-free ops of the normal cell, or of the only one. supernet %: of the derived cell, no result.\n"
    )
    text += "Test errors are of the last epoch; means±deviations (population) are over the runs of one protocol.\n"
    for rows, below in ((found, "cell"), (means, "remarks")):
        rows = [{"#": number} | row for number, row in enumerate(rows, 1)]
        text += "\n" + tabulate([{name: row[name] for name in row if name != below} for row in rows], style) + "\n"
        text += "".join(f"{row['#']}. {row[below]}\n" for row in rows if row[below])
    return text


# A panel of `plot` for each title: the columns of metrics.csv that share it.
CURVES = {
    "loss": "loss_theta loss_alpha supernet_loss loss_train loss_test",
    "accuracy, %": "supernet_accuracy table_test accuracy_train accuracy_test",
    "parameter-free ops": "parameter_free_normal parameter_free_reduce parameter_free_cell",
    "entropy of alpha, nats": "entropy_alpha_normal entropy_alpha_reduce entropy_alpha_cell",
    "entropy of beta, nats": "entropy_beta_normal entropy_beta_reduce entropy_beta_cell",
    "gradient norm": "gradient_norm gradient_norm_alpha",
    "share of clipped steps": "clipped",
    "images/s": "images_per_second",
}


def plot(folders: list[str], out: str | None = None) -> str:
    """Draws cells.svg of every run, as its last epoch has it, and the curves of all runs into one picture.

    out: an .svg or .png file; by default curves.svg in the folder of the first run.
    """
    out, runs, written = Path(out or Path(folders[0]) / "curves.svg"), {}, []
    if out.suffix.lower() not in (".svg", ".png"):
        raise ValueError(f"{out}: the name of a picture ends in .svg or .png")
    names = ["epoch", *" ".join(CURVES.values()).split()]
    for folder in dict.fromkeys(map(Path, folders)):
        with reading(folder):
            parts = read_parts(folder)
            runs[folder] = {
                part["stage"]: [{name: float(row[name]) for name in names if row.get(name)} for row in part["rows"]]
                for part in parts
            }
            cell = parts[0]["config"].get("genotype") or (parts[0]["rows"] or [{}])[-1].get("genotype")
        if cell:
            genotypes.draw(genotypes.load(cell), folder / "cells.svg")
            written.append(str(folder / "cells.svg"))
    panels = {}  # title -> column -> run -> points
    for stage, (title, columns) in itertools.product(("search", "retrain"), CURVES.items()):
        for name, (folder, stages) in itertools.product(columns.split(), runs.items()):
            if points := [(row["epoch"], row[name]) for row in stages.get(stage, ()) if name in row]:
                panels.setdefault(f"{stage}: {title}", {}).setdefault(name, {})[folder] = points
    if not panels:
        raise ValueError(f"{', '.join(folders)}: no epoch has ended yet")
    try:
        from matplotlib import cm, figure
    except ImportError:
        raise ValueError("curves need matplotlib: pip install matplotlib; cells.svg is drawn without it") from None
    rows = math.ceil(len(panels) / 3)
    canvas = figure.Figure((13, 3 * rows + 0.25 * len(runs)), layout="constrained", facecolor="white")
    colours = {folder: cm.tab10(number % 10) for number, folder in enumerate(runs)}
    for axes in canvas.subplots(rows, 3, squeeze=False).flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, columns) in zip(canvas.axes, panels.items()):
        axes.set(title=title, xlabel="epoch")
        axes.locator_params("x", integer=True)
        for style, (name, found) in zip(("-", "--", ":", "-."), columns.items()):
            for folder, points in found.items():
                axes.plot(*zip(*points), style, color=colours[folder], marker=".")
            axes.plot([], [], style, color="black", label=name)
        axes.legend(fontsize="small")
    handles = [canvas.axes[0].plot([], [], color=colour)[0] for colour in colours.values()]
    canvas.legend(handles, map(str, runs), loc="outside lower center")
    picture = io.BytesIO()
    canvas.savefig(picture, format=out.suffix[1:].lower())
    genotypes.write(out, picture.getvalue())
    return "drawn: " + ", ".join([*written, str(out)])


# ----------------------------------------------------------------------------------------------------------------------
# NAS-Bench-201's table

TABLE_DATA = {"cifar10": "c10", "cifar100": "c100", "folder": "in16"}
TABLE_BYTES = 20_000_000  # the most that is read


def table_key(arch: str) -> str:
    """The table's six digits for an arch string: the ops on the edges 0>1, 0>2, 1>2, 0>3, 1>3, 2>3."""
    ops = ("none", *rome.SPACES["nb201"].ops["cell"][0])
    return "".join(str(ops.index(op)) for op in re.fullmatch(genotypes.ARCH, genotypes.check(arch)).groups())


def read_table(path: str | Path) -> dict:
    """Accuracies of NAS-Bench-201's cells in %, column -> six digits -> accuracy, from a CSV file, plain or gzip.

    Its columns: ops (six digits) or arch, and c10_test, c10_val, c100_test, ..., in16_val, of which one test column at
    least; others are ignored. Cells may be missing. ValueError says what is wrong, and in which row.
    """
    where = ""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError("it is not a regular file")
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rb") as file:
            data = file.read(TABLE_BYTES + 1)
        if len(data) > TABLE_BYTES:
            raise ValueError(f"it has more than {TABLE_BYTES} bytes")
        reader = csv.DictReader(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=""), restval="", strict=True)
        names = reader.fieldnames or []
        table = {name: {} for name in names if re.fullmatch("(c10|c100|in16)_(test|val)", name)}
        key = "ops" if "ops" in names else "arch"
        if key not in names or not any(name.endswith("_test") for name in table):
            raise ValueError("it needs a column ops or arch, and one of c10_test, c100_test, in16_test")
        for number, row in enumerate(reader, 1):
            where = f"row {number}: "
            cell = row[key] if re.fullmatch("[0-4]{6}", row[key]) else table_key(row[key])
            for name, column in table.items():
                if cell in column or not 0 <= float(row[name]) <= 100:
                    raise ValueError(f"{name} {short(row[name])!r} is no accuracy in %, or the cell is there twice")
                column[cell] = float(row[name])
        if not where:
            raise ValueError("it has no rows")
    except (OSError, EOFError, zlib.error, csv.Error, ValueError) as error:
        raise ValueError(f"{path} is no table of NAS-Bench-201: {where}{first_line(error)}") from None
    return table


def table_row(table: dict, arch: str, dataset: str, method: str = "rome-v2") -> dict:
    """What the table says of a cell: test and validation accuracy, its rank by the former (1: best), and its regrets.

    A regret is the best test accuracy, of the table or of what the method can find, minus the cell's. NaN where the
    table has no such cell; ValueError where it has no such data set.
    """
    name, cell = TABLE_DATA[dataset], table_key(arch)
    # Node 3 keeps two of its three inputs in ROME, all in GDAS; `none` is no choice of either.
    own = re.compile("[1-4]{6}" if method == "gdas" else "[1-4]{3}(0[1-4][1-4]|[1-4]0[1-4]|[1-4][1-4]0)")
    if not table.get(f"{name}_test"):
        raise ValueError(f"the table has no {name}_test")
    test, mine = table[f"{name}_test"], table[f"{name}_test"].get(cell, math.nan)
    rank = 1 + sum(accuracy > mine for accuracy in test.values()) if cell in test else math.nan
    row = dict(table_test=mine, table_val=table.get(f"{name}_val", {}).get(cell, math.nan), table_rank=rank)
    best = max((accuracy for other, accuracy in test.items() if own.fullmatch(other)), default=math.nan)
    return row | dict(table_regret=max(test.values()) - mine, table_regret_own=best - mine)


# ----------------------------------------------------------------------------------------------------------------------
# Command line


def whole(low: int = 1):
    def parse(text: str) -> int:
        if not text.lstrip("-").isdecimal() or len(text) > 12 or int(text) < low:
            raise argparse.ArgumentTypeError(f"{short(text)!r} is no whole number of at least {low}")
        return int(text)

    return parse


def real(low: float = 0.0, high: float = math.inf, least_excluded: bool = False):
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high) or math.isinf(value) or (least_excluded and value == low):
            bound = f"{'above' if least_excluded else 'at least'} {low:g}" + (
                f", at most {high:g}" if high < math.inf else ""
            )
            raise argparse.ArgumentTypeError(f"{short(text)!r} is no number {bound}")
        return value

    return parse


def seed_list(text: str) -> tuple:
    return tuple(whole(0)(seed) for seed in text.split(","))


SWITCH = dict(action="store_true")
# flag -> (stages: s(earch), r(etrain); default where no protocol has one, argparse's arguments)
FLAGS = {
    "space": ("sr", "darts", dict(choices=list(rome.SPACES), help="search space; in retrain: its protocol")),
    "genotype": ("r", None, dict(metavar="NAME|FILE|TEXT", help="published name, JSON file, or printed genotype")),
    "dataset": ("sr", "cifar10", dict(choices=DATASETS, help="images; folder: DIR/{train,test}/CLASS/*")),
    "data": ("sr", "data", dict(metavar="DIR", help="where the images are, or are downloaded to")),
    "method": ("s", "rome-v2", dict(choices=list(METHODS), help="gdas: no topology sampling, one sample")),
    "samples": ("s", None, dict(type=whole(), metavar="K", help="sub-networks accumulated per step")),
    "samples_alpha": ("s", None, dict(type=whole(), metavar="K", help="K of the architecture step alone (default: K)")),
    "samples_theta": ("s", None, dict(type=whole(), metavar="K", help="K of the weight step alone (default: K)")),
    "epochs": ("sr", None, dict(type=whole(), metavar="N", help="epochs")),
    "equal_passes": ("s", False, dict(SWITCH, help="epochs such that K * epochs is the protocol's (Table 5)")),
    "batch_size": ("sr", None, dict(type=whole(2), metavar="N", help="images per batch (per process)")),
    "channels": ("sr", None, dict(type=whole(2), metavar="N", help="initial channels")),
    "cells": ("sr", None, dict(type=whole(), metavar="N", help="cells (nb201: per stage)")),
    "steps_per_epoch": ("sr", None, dict(type=whole(), metavar="N", help="steps in an epoch, instead of all images")),
    "image_size": ("sr", None, dict(type=whole(), metavar="PIXELS", help="of folder and shapes (default: 32 or 224)")),
    "stem": ("sr", None, dict(choices=("small", "imagenet"), help="stride 1 or 8 (default by data set)")),
    "lr": ("sr", None, dict(type=real(least_excluded=True), metavar="RATE", help="initial learning rate")),
    "lr_min": ("sr", None, dict(type=real(), metavar="RATE", help="last learning rate of the cosine")),
    "schedule": ("r", None, dict(choices=("cosine", "linear"), help="learning rate schedule")),
    "lr_warmup": ("r", None, dict(type=whole(0), metavar="EPOCHS", help="linear warm-up of the learning rate")),
    "momentum": ("sr", None, dict(type=real(0, 1), metavar="X", help="of SGD")),
    "nesterov": ("r", None, dict(action=argparse.BooleanOptionalAction, help="Nesterov momentum")),
    "weight_decay": ("sr", None, dict(type=real(), metavar="X", help="of the weights")),
    "clip": ("sr", None, dict(type=real(), metavar="NORM", help="bound on the gradient's norm; 0: none")),
    "theta_reduction": ("s", "sum", dict(choices=("sum", "mean"), help="over the K gradients, Eq. 12")),
    "alpha_lr": ("s", None, dict(type=real(least_excluded=True), metavar="RATE", help="Adam's learning rate")),
    "alpha_weight_decay": ("s", None, dict(type=real(), metavar="X", help="of alpha and beta")),
    "alpha_clip": ("s", None, dict(type=real(), metavar="NORM", help="bound on the gradient's norm; 0: none")),
    "alpha_reduction": ("s", "mean", dict(choices=("mean", "sum"), help="over the K gradients, Eq. 11")),
    "tau_max": ("s", None, dict(type=real(least_excluded=True), metavar="TAU", help="temperature of the first epoch")),
    "tau_min": ("s", None, dict(type=real(least_excluded=True), metavar="TAU", help="temperature of the last epoch")),
    "warmup": ("s", None, dict(type=whole(0), metavar="EPOCHS", help="epochs before alpha and beta move")),
    "fraction": ("s", None, dict(type=real(0, 0.5, True), metavar="X", help="of every class, for each of two halves")),
    "derive": ("s", "joint", dict(choices=("joint", "sequential", "exact"), help="argmax of Eq. 9; or beta first")),
    "evaluation_images": ("s", 2000, dict(type=whole(0), metavar="N", help="of the supernet accuracy; 0: all of alpha's")),
    "one_shot_ops": ("s", "paper", dict(choices=("paper", "table"), help="op set of the 1shot1 spaces")),
    "table": ("s", None, dict(metavar="FILE", help="CSV of NAS-Bench-201: log the derived cell's true accuracy")),
    "cutout": ("sr", None, dict(type=whole(0), metavar="PIXELS", help="side of the erased square; 0: none")),
    "drop_path": ("r", None, dict(type=real(0, 0.99), metavar="RATE", help="drop path rate of the last epoch")),
    "auxiliary": ("r", None, dict(type=real(), metavar="WEIGHT", help="of the auxiliary loss; 0: no such head")),
    "label_smoothing": ("r", None, dict(type=real(0, 1), metavar="X", help="label smoothing")),
    "seed": ("sr", 0, dict(type=whole(0), metavar="N", help="of everything random")),
    "device": ("sr", "auto", dict(choices=("auto", "cpu", "cuda", "mps"), help="where to compute")),
    "amp": ("sr", False, dict(SWITCH, help="mixed precision: bfloat16, or float16 with loss scaling")),
    "recompute": ("s", False, dict(SWITCH, help="recompute cells in the backward pass: least memory")),
    "compile": ("r", False, dict(SWITCH, help="torch.compile the network")),
    "deterministic": ("sr", False, dict(SWITCH, help="deterministic kernels")),
    "workers": ("sr", 2, dict(type=whole(0), metavar="N", help="processes that read images")),
    "cache_gib": ("sr", 4.0, dict(type=real(), metavar="GIB", help="images are kept in memory up to this size")),
    "save_minutes": ("sr", 10.0, dict(type=real(), metavar="N", help="minutes between checkpoints")),
    "out": ("sr", None, dict(metavar="DIR", help="where it writes (default: a folder in runs/)")),
    "resume": ("sr", False, dict(SWITCH, help="go on from the folder's last checkpoint")),
    "quick": ("sr", False, dict(SWITCH, help="small numbers, about three minutes; shapes if no --dataset")),
    "quiet": ("sr", False, dict(SWITCH, help="print nothing but errors")),
    "config": ("sr", None, dict(metavar="FILE", help="settings of a config.json; flags override them")),
    "retrain": ("s", False, dict(SWITCH, help="then retrain the cell; --retrain-epochs etc.: see retrain --help")),
}  # fmt: skip
# Titles of --help, over the flag that begins the group.
GROUPS = {
    "space": "what to search or train, on what", "samples": "sizes", "lr": "weights (SGD)",
    "alpha_lr": "alpha and beta (Adam), temperature, derivation", "cutout": "regularisation",
    "seed": "how to run", "out": "the run's folder",
}  # fmt: skip
# Settings of the retrain that `search --retrain` takes as --retrain-NAME; the others it shares with the search.
RETRAIN_FLAGS = (*RETRAIN["default"], "steps_per_epoch", "compile")


class Parser(argparse.ArgumentParser):
    """argparse with a one-line error."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {short(' '.join(message.split()), 500)} (see {self.prog} --help)\n")


def make_parser() -> Parser:
    parser = Parser("train.py", description="Search and retrain with ROME.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{search,retrain,list,report,plot}")
    for stage, text in (("search", "Search a cell."), ("retrain", "Train the network of a cell from scratch.")):
        usual = protocol(SEARCH if stage == "search" else RETRAIN, "darts", "cifar10")
        text += " [N] is the default of darts on cifar10; other spaces and data sets may have another: `train.py list`."
        sub = commands.add_parser(
            stage, help=text.split(".")[0].lower(), description=text, usage="%(prog)s [flags]", allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=functools.partial(argparse.HelpFormatter, max_help_position=28),
        )  # fmt: skip
        group = sub
        for name, (stages, default, arguments) in FLAGS.items():
            group = sub.add_argument_group(GROUPS[name]) if name in GROUPS else group
            if stage[0] in stages:
                known = f" [{usual[name]}]" if name in usual else f" (default {default})"
                known = "" if name not in usual and (default is None or default is False) else known
                group.add_argument("--" + name.replace("_", "-"), **arguments | dict(help=arguments["help"] + known))
        for name in RETRAIN_FLAGS if stage == "search" else ():
            sub.add_argument("--retrain-" + name.replace("_", "-"), **dict(FLAGS[name][2], help=argparse.SUPPRESS))
    sub = commands.add_parser("list", help="every benchmark: flags, settings, the paper's numbers", allow_abbrev=False)
    sub.add_argument("--commands", action="store_true", help="only a shell line for each")
    sub.add_argument("--seeds", type=seed_list, default=(0,), metavar="S,S,...", help="of the commands; default 0")
    sub = commands.add_parser("report", help="what runs found, beside the paper's numbers", allow_abbrev=False)
    sub.add_argument("folders", nargs="+", metavar="RUN", help="folder of a search or a retrain")
    sub.add_argument("--format", choices=("text", "markdown", "csv"), default="text", dest="style")
    sub = commands.add_parser("plot", help="draw the curves and cells of runs", allow_abbrev=False)
    sub.add_argument("folders", nargs="+", metavar="RUN", help="folder of a search or a retrain")
    sub.add_argument("--out", metavar="FILE", help=".svg or .png; default: curves.svg in the first RUN")
    return parser


def resolve(stage: str, given: dict, stored: dict | None = None) -> dict:
    """The whole configuration: the protocol, then --quick, then stored settings, then the given flags.

    ValueError for flags that clash.
    """
    stored = dict(stored or {})
    if given.keys() & {"samples", "method"}:
        stored = {name: value for name, value in stored.items() if not name.startswith("samples")}
    typed, given = given, stored | given
    if given.get("quick") and "dataset" not in given:
        given = given | {"dataset": "shapes"}
    label = given.get("genotype")
    if stage == "retrain":
        if not label:
            raise ValueError(
                "retrain needs --genotype NAME, FILE or TEXT; published: " + ", ".join(genotypes.PUBLISHED)
            )
        genotype = genotypes.load(label)
        given = dict(space=home_space(genotype, label)) | given | dict(genotype=str(genotype))
    config = {name: default for name, (stages, default, _) in FLAGS.items() if stage[0] in stages}
    config |= {name: given[name] for name in ("space", "dataset", "method") if name in given}
    space, dataset = config["space"], config["dataset"]
    row = protocol(SEARCH if stage == "search" else RETRAIN, space, dataset)
    config |= row | (QUICK[stage] if given.get("quick") else {})
    if config.get("method") == "gdas":
        config["samples"] = 1
    config |= given
    check_flags(typed, config)
    config["stem"] = config["stem"] or ("imagenet" if dataset == "imagenet" else "small")
    fixed = 32 if dataset in ("cifar10", "cifar100", "svhn") else None
    config["image_size"] = fixed or config["image_size"] or (224 if config["stem"] == "imagenet" else 32)
    least = 32 if config["stem"] == "imagenet" else 4
    if config["image_size"] % least or config["image_size"] > 4096:
        raise ValueError(f"--image-size {config['image_size']}: it must be a multiple of {least}, at most 4096")
    if stage == "search":
        for half in ("samples_alpha", "samples_theta"):
            config[half] = config[half] or config["samples"]
        if config["equal_passes"]:
            config["epochs"] = max(1, row["samples"] * row["epochs"] // config["samples_theta"])
    config["out"] = config["out"] or default_folder(stage, config, row, label)
    return config


def check_flags(given: dict, config: dict) -> None:
    """ValueError for flags that clash, or that have no effect beside the others."""
    family, dataset = rome.SPACES[config["space"]].family, config["dataset"]

    def refuse(flag: str, why: str) -> None:
        raise ValueError(f"--{flag.replace('_', '-')} {why}")

    without = [name for name in given if name.startswith("retrain_") and not given.get("retrain")]
    if without:
        refuse(without[0], "has no effect without --retrain")
    if {"samples", "samples_alpha", "samples_theta"} <= given.keys():
        refuse("samples", "has no effect beside --samples-alpha and --samples-theta")
    if given.get("equal_passes") and "epochs" in given:
        refuse("equal_passes", "sets the epochs; leave out --epochs")
    if "one_shot_ops" in given and family != "1shot1":
        refuse("one_shot_ops", "belongs to the 1shot1 spaces")
    if "table" in given and (family != "nb201" or dataset not in TABLE_DATA):
        refuse("table", f"is for nb201 on {', '.join(TABLE_DATA)} (ImageNet16-120)")
    if "image_size" in given and dataset in ("cifar10", "cifar100", "svhn"):
        refuse("image_size", f"has no effect on {dataset}, whose images have 32 pixels")
    if "data" in given and dataset == "shapes":
        refuse("data", "has no effect on shapes, which are drawn by the program")
    if "cache_gib" in given and dataset != "folder":
        refuse("cache_gib", "has an effect on --dataset folder alone")
    if config.get("stem") == "imagenet" and (family != "darts" or dataset not in ("imagenet", "folder")):
        refuse("stem", "imagenet goes with the darts spaces, and with the data sets imagenet and folder")
    if config.get("stem") == "small" and dataset == "imagenet":
        refuse("stem", "small does not go with imagenet")
    if family == "1shot1" and dataset in ("cifar100", "svhn", "imagenet"):
        refuse("dataset", f"{dataset} is no data set of NAS-Bench-1Shot1, which is on CIFAR-10")
    if family == "nb201" and dataset in ("svhn", "imagenet"):
        refuse("dataset", f"{dataset} is no data set of NAS-Bench-201; ImageNet16-120 goes through --dataset folder")
    if config.get("genotype") and rome.SPACES[home_space(genotypes.load(config["genotype"]), "")].family != family:
        refuse("space", f"{config['space']} is not the genotype's family of spaces")
    if given.get("auxiliary") and family != "darts":
        refuse("auxiliary", "has no effect: only the networks of the darts spaces have an auxiliary head")
    if "derive" in given and config["method"] == "gdas":
        refuse("derive", "has no effect beside --method gdas, which has a rule of its own")
    if family == "1shot1" and config.get("method") == "gdas":
        refuse("method", "gdas keeps every edge, from which no 1shot1 cell can be derived")


def home_space(genotype, source: str) -> str:
    """The space whose protocol a genotype is retrained by: the one that its file names, or the first of its kind."""
    if isinstance(genotype, str):
        return "nb201"
    if isinstance(genotype, rome.OneShotGenotype):
        picks = tuple(len(inputs) for inputs in genotype.inputs)
        return next(name for name, space in rome.SPACES.items() if space.picks == picks)
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        named = json.loads(Path(source).read_bytes()).get("space")
        if named in rome.SPACES and rome.SPACES[named].family == "darts":
            return named
    return "darts"


def default_folder(stage: str, config: dict, row: dict, label: str | None) -> str:
    seed = f"s{config['seed']}"
    if stage == "retrain":
        path = Path(label[:200])
        name = path.parent.name if path.name == "genotype.json" else path.stem if path.suffix == ".json" else ""
        digest = hashlib.blake2b(config["genotype"].encode(), digest_size=3).hexdigest()
        name = label if label in genotypes.PUBLISHED else name or f"cell-{digest}"
        return f"runs/retrain-{name}-{config['dataset']}-{seed}"
    parts = [config["space"], config["dataset"], config["method"]]
    usual = 1 if config["method"] == "gdas" else row["samples"]
    if (config["samples_alpha"], config["samples_theta"]) != (usual, usual):
        parts.append("k" + ".".join(dict.fromkeys(str(config[f"samples_{half}"]) for half in ("alpha", "theta"))))
    if config["epochs"] != row["epochs"]:
        parts.append(f"e{config['epochs']}")
    return "runs/" + "-".join([*parts, seed])


def retrain_flags(config: dict, genotype) -> dict:
    """The retrain's flags that follow from a search's configuration."""
    shared = ("space", "dataset", "data", "image_size", "stem", "seed", "device", "amp", "deterministic", "workers")
    shared += ("cache_gib", "save_minutes", "resume", "quick", "quiet")
    flags = {name: config[name] for name in shared}
    means = dict(image_size=("folder", "shapes", "imagenet"), data=[name for name in DATASETS if name != "shapes"])
    means |= dict(cache_gib=("folder",), stem=("folder",))  # the others are given again only where they have an effect
    flags = {name: value for name, value in flags.items() if config["dataset"] in means.get(name, DATASETS)}
    flags |= {name.removeprefix("retrain_"): value for name, value in config.items() if name.startswith("retrain_")}
    return flags | dict(genotype=str(genotype), out=str(Path(config["out"]) / "retrain"))


def stored_flags(path: Path, stage: str, parser: Parser) -> dict:
    """The flags of a config.json, checked as if they had been typed."""
    try:
        if not path.is_file() or path.stat().st_size > genotypes.LARGEST:
            raise ValueError("no such file" if not path.exists() else "not a regular file, or too large")
        text = json.loads(path.read_bytes())
        if text["stage"] != stage:
            raise ValueError(f"it is of a {text['stage']}")
        words = [stage]
        for name, value in text["settings"].items():
            if name.removeprefix("retrain_") not in FLAGS and name not in FLAGS:
                raise ValueError(f"no setting is called {short(repr(name))}")
            flag = "--" + str(name).replace("_", "-")
            if isinstance(value, bool):
                words += [flag] if value else ["--no-" + flag[2:]] if name.endswith("nesterov") else []
            elif value is not None:
                words.append(f"{flag}={value}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no configuration of a {stage}: {first_line(error)}") from None
    stored = vars(parser.parse_args(words))
    return {name: value for name, value in stored.items() if name not in ("command", "config", "out", "resume")}


def run_stage(stage: str, given: dict, command: list[str], parser: Parser) -> None:
    stored = stored_flags(Path(given["config"]), stage, parser) if "config" in given else {}
    config = resolve(stage, given, stored)
    earlier = Path(config["out"]) / "config.json"
    if config["resume"] and not stored and earlier.exists():  # flags that are not given again are as they were
        config = resolve(stage, given, stored_flags(earlier, stage, parser) | dict(out=config["out"]))
    if stage == "retrain":
        retrain(config, command)
        return
    any_cell = rome.Supernet(space_of(config), channels=2, cells=1, classes=2).genotype()
    resolve("retrain", retrain_flags(config, any_cell))  # what is wrong there is said before the search
    genotype = search(config, command)
    flags = retrain_flags(config, genotype)
    if config["retrain"]:
        retrain(resolve("retrain", flags), command)
    elif not config["quiet"]:
        print(
            f"next: python train.py retrain --genotype {config['out']}/genotype.json --dataset {config['dataset']}",
            end="",
        )
        print(f" --data {config['data']}" if config["dataset"] != "shapes" else "", end="")
        print(" --quick" if config["quick"] else "")


def main(argv: list[str] | None = None) -> int:
    """The command line. Exit status: 0 done; 2 bad input; 3 numbers went wrong; 130, 143 interrupted, state saved."""
    parser = make_parser()
    words = sys.argv[1:] if argv is None else argv
    try:
        given = vars(parser.parse_args(words))
    except SystemExit as error:
        return error.code
    stage, Stop.signal, Stop.agreed, Stop.folder = given.pop("command"), None, False, None
    handlers = {number: signal.signal(number, Stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = answer(stage, given, words, parser)
    except Interrupted:
        saved = "the state is saved; the same command with --resume goes on"
        then = saved if stage in ("search", "retrain") else "stopped"
        print(f"{signal.Signals(Stop.signal).name}: {then}", file=sys.stderr)
        status = 128 + Stop.signal
    finally:
        Stop.signal = None
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if dist.is_initialized() and (status != 1 or dist.get_backend() == "gloo"):  # NCCL might wait for a lost rank
        dist.destroy_process_group()
    return status


def answer(stage: str, given: dict, words: list[str], parser: Parser) -> int:
    """Runs a command and returns its exit status; what went wrong is printed in one line."""
    try:
        if stage in ("list", "report", "plot"):
            print(dict(list=list_benchmarks, report=report, plot=plot)[stage](**given).rstrip("\n"), flush=True)
        else:
            run_stage(stage, given, [Path(sys.argv[0]).name, *words], parser)
    except NumbersError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 3
    except torch.cuda.OutOfMemoryError:
        print(
            "train.py: the device's memory is full; lower --batch-size or --channels, or add --recompute or --amp",
            file=sys.stderr,
        )
        return 2
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        text, kept = first_line(error), ""
        if isinstance(error, RuntimeError):
            if "allocate memory" in text:
                text = "this needs more memory than there is; use smaller settings"
            elif "DataLoader" in text and Stop.signal:  # a worker that was just starting took the signal, too
                print(f"{signal.Signals(Stop.signal).name}: --resume goes on from the last checkpoint", file=sys.stderr)
                return 128 + Stop.signal
            elif "DataLoader" in text:  # torch raises it at any place
                text = f"a process that reads images was lost ({text}); out of memory? Fewer --workers need less"
            elif dist.is_initialized():
                rank = rank_and_world()[0]
                print(f"train.py: rank {rank} lost the others ({text}); --resume goes on", file=sys.stderr)
                return 1
            else:
                raise
        if Stop.folder and not isinstance(error, ValueError):
            kept = f"; {Stop.folder} keeps its last checkpoint, from which --resume goes on"
        print(f"train.py: error: {text}{kept}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
