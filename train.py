"""Search and retrain with ROME: data sets, protocols, the two loops, checkpoints, command line.

    python train.py search  --space darts --dataset cifar10 --retrain
    python train.py retrain --genotype GDAS_V1 --dataset cifar10
    python train.py list
    python train.py report runs/*

Every random draw is keyed by its place (seed, epoch, step, role, rank, sample), so a resumed run goes on exactly where
the interrupted one would have gone, and the number of workers changes nothing.
"""

import argparse
import contextlib
import csv
import functools
import hashlib
import io
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

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
    "search": dict(cells=3, channels=8, epochs=6, batch_size=32, samples=2, steps_per_epoch=25),
    "retrain": dict(cells=3, channels=8, epochs=6, batch_size=64, steps_per_epoch=60),
}
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

    Position, radius, rotation and colours are random, the background is crossed by a line of another colour, and every
    pixel is noisy. Returns images (count, size, size, 3) uint8 and labels (count,) int64, indices into SHAPES; the same
    for the same arguments.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    labels = torch.randperm(count, generator=generator) % len(SHAPES)
    centres = (2 * torch.arange(size) + 1) / size - 1  # of the pixels; the image spans -1 to 1
    images = torch.empty(count, size, size, 3, dtype=torch.uint8)
    for part, out in zip(labels.split(1000), images.split(1000)):  # bounds the memory
        n = len(part)
        radius = uniform(0.4, 0.75, n, 1, 1)
        column, row = (centres - (1 - radius) * uniform(-1, 1, n, 1, 1) for _ in range(2))
        row = row.transpose(1, 2)
        turn, slant, slope = (uniform(0, 2 * math.pi, n, 1, 1) for _ in range(3))
        x = (column * turn.cos() + row * turn.sin()) / radius  # (n, size, size)
        y = (row * turn.cos() - column * turn.sin()) / radius
        distance = torch.empty_like(x)
        for label, shape in enumerate(SHAPES.values()):
            drawn = part == label
            distance[drawn] = shape(x[drawn], y[drawn])
        line = (centres * slant.cos() + centres[:, None] * slant.sin() - uniform(-0.7, 0.7, n, 1, 1)).abs() - 0.05
        ramp = 0.15 * (centres * slope.cos() + centres[:, None] * slope.sin())

        # Every channel of the two colours differs by at least 0.3, in either direction.
        background = uniform(0, 1, n, 1, 1, 3)
        foreground = (background + uniform(0.3, 0.7, n, 1, 1, 3)) % 1
        picture = torch.lerp(background, uniform(0, 1, n, 1, 1, 3), (0.5 - line * size / 2).clamp(0, 1)[..., None])
        coverage = (0.5 - distance * radius * size / 2).clamp(0, 1)  # an edge one pixel wide
        picture = torch.lerp(picture, foreground, coverage[..., None]) + ramp[..., None]
        picture += 0.08 * torch.randn(picture.shape, generator=generator)
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
    labels, files = torch.tensor(data.targets), [path for path, _ in data.samples]
    if config["stem"] == "imagenet" or len(files) * size * size * 3 > config["cache_gib"] * 2**30:
        return Images(None, labels, files, data.classes)
    pixels = torch.empty(len(files), size, size, 3, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:
        for index, image in enumerate(pool.map(lambda path: read_image(path, size), files)):
            pixels[index] = image
    return Images(pixels, labels, files, data.classes)


def read_image(path: str, size: int, transform=None) -> Tensor:
    """uint8 (size, size, 3): RGB, the shorter side resized to `size` (bilinear, antialiased), the centre cropped."""
    from PIL import Image
    from torchvision.transforms.v2 import functional

    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no readable image: {first_line(error)}") from None
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


class Stream:
    """Batches of one role: the images `index` of a split, shuffled anew every epoch, augmented on the device.

    The order and the augmentation depend on (seed, role, epoch, step, rank) alone. Augmentation: random crop with 4
    pixels of padding, flip, cutout of config["cutout"] pixels; with the ImageNet stem the workers' random resized crop.
    """

    PAD = 4

    def __init__(self, images: Images, index: Tensor, config: dict, role: str, device, statistics, augment: bool):
        self.index, self.config, self.role, self.device, self.augment = index, config, role, device, augment
        self.rank, self.world = rank_and_world()
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
            Files(images, size, transform if config["stem"] == "imagenet" else None), batch_sampler=_Plan(self),
            num_workers=workers, persistent_workers=workers > 0, pin_memory=device.type == "cuda",
        )  # fmt: skip

    def __len__(self) -> int:
        """Batches in an epoch, the last one smaller; in training a single image left over is none (batch norm)."""
        if not self.augment:
            return math.ceil(len(self.index[self.rank :: self.world]) / self.config["batch_size"])
        count, batch = len(self.index) // self.world, self.config["batch_size"]
        return max(1, count // batch + (count % batch > 1))

    def epoch(self, epoch: int, start: int = 0, stop: int | None = None):
        """Yields images (N, 3, H, W), normalised, channels-last, and labels (N,), for the steps from start to stop.

        Past the last batch the images come round again, in another order.
        """
        steps = range(start, len(self) if stop is None else stop)
        self.plan = [(step, self._indices(epoch, step)) for step in steps] if self.loader is not None else []
        self.plan = [[(i, self._place(epoch, step)) for i in index.tolist()] for step, index in self.plan]
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
            order = torch.arange(len(self.index))
            if self.augment:
                order = torch.randperm(len(order), generator=keyed(self.config["seed"], self.role, epoch, turn))
                order = order[: len(order) // self.world * self.world]  # equal shares
            self.order = (epoch, turn), self.index[order[self.rank :: self.world]]
        return self.order[1][batch * self.config["batch_size"] :][: self.config["batch_size"]]

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


class _Plan:
    """The batch sampler of a Stream's workers: what the stream planned for the epoch."""

    def __init__(self, stream: Stream):
        self.stream = stream

    def __iter__(self):
        return iter(self.stream.plan)

    def __len__(self) -> int:
        return len(self.stream.plan)


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
        cut = [math.ceil(fraction * len(members)), math.ceil(2 * fraction * len(members))]
        parts[0].append(members[: cut[0]])
        parts[1].append(members[cut[0] : cut[1]])
    weights, architecture = (torch.cat(part).sort().values for part in parts)
    if min(len(weights), len(architecture)) < 2:
        raise ValueError(f"{len(labels)} training images are too few: both halves of the search need two at least")
    return weights, architecture


# ----------------------------------------------------------------------------------------------------------------------
# A run: its folder, log and checkpoints


class NumbersError(ArithmeticError):
    """A loss or gradient is NaN or infinite."""


class Interrupted(Exception):
    """SIGINT or SIGTERM; the state has been saved."""


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class Run:
    """A run's folder. Only rank 0 writes."""

    def __init__(self, stage: str, config: dict):
        self.stage, self.config, self.folder = stage, config, Path(config["out"])
        self.lead, self.progressing = rank_and_world()[0] == 0, False

    def checkpoint(self) -> dict | None:
        """The newest whole checkpoint of a resumed run, or None. ValueError where the folder does not fit."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; name another folder with --out")
        paths = [path for path in (self.folder / "last.pt", self.folder / "previous.pt") if path.exists()]
        if (paths or (self.folder / "config.json").exists()) and not self.config["resume"]:
            raise ValueError(f"{self.folder} holds a run already; --resume goes on with it, --out names another")
        reasons = []
        for path in paths:
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                if (state["format"], state["stage"]) != (CHECKPOINT_FORMAT, self.stage):
                    raise ValueError(f"it has format {state['format']} and is of a {state['stage']}")
            except Exception as error:  # whatever torch.load makes of a broken file
                reasons.append(f"{path} cannot be used ({first_line(error)})")
                continue
            old, new = state["settings"], self.config
            odd = sorted(k for k in old.keys() | new.keys() if k not in FREE and old.get(k) != new.get(k))
            if odd:
                names = ", ".join(f"--{k.replace('_', '-')} {old.get(k)} (now {new.get(k)})" for k in odd)
                raise ValueError(f"{path} was made with {names}; resume with the same, or use another --out")
            for reason in reasons:
                print(f"{reason}; going on from {path}", file=sys.stderr)
            return state
        if reasons:
            raise ValueError("; ".join(reasons) + "; start anew with another --out")
        return None

    def start(self, command: list[str]) -> None:
        if self.lead:
            self.folder.mkdir(parents=True, exist_ok=True)
            text = dict(stage=self.stage, command=command, settings=self.config, versions=versions())
            genotypes.write(self.folder / "config.json", (json.dumps(text, indent=1) + "\n").encode())

    def save(self, parts: dict, epoch: int, step: int, totals: Tensor, rows: list, **more) -> None:
        """last.pt, keeping the one before as previous.pt. epoch, step: where to go on."""
        if not self.lead:
            return
        state = {name: part.state_dict() for name, part in parts.items()} | more
        state |= dict(format=CHECKPOINT_FORMAT, stage=self.stage, settings=self.config, epoch=epoch, step=step)
        content = io.BytesIO()
        torch.save(dict(state, totals=totals, rows=rows, rng=torch.get_rng_state()), content)
        last = self.folder / "last.pt"
        if last.exists():
            os.replace(last, self.folder / "previous.pt")
        genotypes.write(last, content.getvalue())

    def restore(self, state: dict | None, parts: dict, totals: Tensor) -> tuple[int, int, list]:
        """Fills the parts and the totals from a checkpoint, if any; the epoch and step to go on at, and the rows."""
        if state is None:
            return 0, 0, []
        for name, part in parts.items():
            part.load_state_dict(state[name])
        totals.copy_(state["totals"])
        torch.set_rng_state(state["rng"])
        done = state["epoch"] >= self.config["epochs"]
        self.log("already finished" if done else f"resumed at epoch {state['epoch'] + 1}, step {state['step'] + 1}")
        return state["epoch"], state["step"], state["rows"]

    def write_metrics(self, rows: list[dict]) -> None:
        if self.lead and rows:
            text = io.StringIO()
            writer = csv.DictWriter(text, rows[0], lineterminator="\n")
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


CHECKPOINT_FORMAT = 1
# Settings that may change when a run is resumed: they do not change its result.
FREE = {"resume", "out", "device", "workers", "data", "quiet", "save_minutes", "cache_gib", "retrain", "config"}


def versions() -> dict:
    folder = Path(__file__).resolve().parent
    commit = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5)
        commit = git.stdout.strip() or None
    return dict(torch=torch.__version__, python=platform.python_version(), platform=platform.platform(), commit=commit)


class Stop:
    """The signal that asked to stop, or None. Its handlers are set by `main` alone."""

    signal: int | None = None

    @classmethod
    def ask(cls, number, frame) -> None:
        cls.signal = number

    @classmethod
    def asked(cls, device) -> bool:
        """Whether any rank was asked to stop."""
        if not dist.is_initialized():
            return cls.signal is not None
        flag = torch.tensor([cls.signal or 0], device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        cls.signal = int(flag) or None
        return cls.signal is not None


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
        dist.init_process_group("nccl" if name == "cuda" else "gloo")
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
    return (
        torch.bfloat16
        if device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported())
        else torch.float16
    )


def reseed(config: dict, *place) -> None:
    """torch's default generators (the noise op, drop path), for one place in the run."""
    torch.manual_seed(keyed(config["seed"], *place, rank_and_world()[0]).initial_seed())


def learning_rate(config: dict, epoch: int) -> float:
    """The rate of an epoch: cosine from lr to lr_min, or PC-DARTS's linear decay; after a linear warm-up."""
    lr, low, epochs, warmup = config["lr"], config["lr_min"], config["epochs"], config.get("lr_warmup", 0)
    if config.get("schedule") == "linear":  # to a fifth-of-an-epoch tail: PC-DARTS, train_imagenet.py
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
def evaluate(predict, stream: Stream) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in percent over a stream, over all ranks."""
    totals = torch.zeros(3, device=stream.device)
    for images, labels in stream.epoch(0):
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
        weight = module.weight
        positions = output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
        total += positions * weight.numel()

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            hooks.append(module.register_forward_hook(count))
    training, model = model.training, model.eval()
    with torch.no_grad():
        model(torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device))
    model.train(training)
    for hook in hooks:
        hook.remove()
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("auxiliary.")), total


def build_network(genotype, config: dict, classes: int) -> rome.Network:
    """The retrain network of a configuration."""
    return rome.Network(
        genotype, config["channels"], config["cells"], classes, config["auxiliary"] > 0, config["drop_path"],
        config["stem"] == "imagenet",
    )  # fmt: skip


def network_size(genotype, config: dict, classes: int) -> tuple[int, int]:
    """Parameters and multiply-adds of the retrain network, without allocating it."""
    with torch.device("meta"):
        return size_of(build_network(genotype, config, classes), config["image_size"])


def finite(numbers: Tensor, scaled: bool, where: str, net: rome.Supernet | None = None) -> Tensor:
    """The numbers of a step and, last, whether loss scaling skipped it. NumbersError if one of them went wrong."""
    good = torch.isfinite(numbers)
    if not (good.all() or (scaled and good[:2].all())):
        cell = f" (derived cell: {net.genotype()})" if net is not None else ""
        raise NumbersError(
            f"{where}: the loss or its gradient is not finite{cell}; the last checkpoint is kept; lower --lr or "
            "--clip, or go without --amp"
        )
    return torch.cat([numbers.nan_to_num(0, 0, 0), (~good.all()).view(1)])


class Clock:
    """Time, steps and images since this process began on the run; `steps` are left of it then."""

    def __init__(self, run: Run, device: torch.device, steps: int):
        self.run, self.device, self.steps, self.done, self.images = run, device, steps, 0, 0
        self.start = self.epoch_start = self.saved = self.first = time.perf_counter()

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
        columns[f"entropy_alpha_{kind}"] = (
            torch.distributions.Categorical(logits=alpha.detach()).entropy().mean().item()
        )
        if net.topology != "none":
            parts = net.beta[kind].detach().split([count for _, _, count in net.nodes])
            each = [torch.distributions.Categorical(logits=part).entropy() for part in parts if len(part) > 1]
            columns[f"entropy_beta_{kind}"] = torch.stack(each).mean().item()
    return columns


def search(config: dict, command: list[str]):
    """Algorithm 1 over the epochs of a configuration. Returns the derived genotype, argmax p(z)."""
    device, run = set_up(config), Run("search", config)
    state = run.checkpoint()
    train = load_data(config, "train")  # the test images are never looked at
    statistics, train = statistics_of(train, config["dataset"]), train.to(device)
    classes, seed, epochs = len(train.classes), config["seed"], config["epochs"]
    weight_half, architecture_half = halves(train.labels.cpu(), config["fraction"], seed)
    weight_data = Stream(train, weight_half, config, "weights", device, statistics, augment=True)
    architecture_data = Stream(train, architecture_half, config, "architecture", device, statistics, augment=True)
    evaluation_data = Stream(train, architecture_half, config, "evaluation", device, statistics, augment=False)

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
    parts, totals = dict(net=net, architect=architect, sgd=sgd, adam=adam), torch.zeros(6, device=device)
    run.start(command)
    run.log(
        f"search of {config['space']} on {config['dataset']} ({classes} classes, {len(weight_half)} images for the "
        f"weights, {len(architecture_half)} for alpha and beta), {config['method']}, K = {config['samples_alpha']} for "
        f"alpha and {config['samples_theta']} for the weights, seed {seed}, on {device_name(device)}; "
        f"supernet {sum(p.numel() for p in net.weights()) / 1e6:.3f} M weights"
    )
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
            totals += finite(numbers, architect.autocast is torch.float16, where, net)
            if clock.step(len(x_s) + len(x_t), where):
                run.save(parts, epoch, step + 1, totals, rows)
            if Stop.signal:
                raise Interrupted

        genotype = net.genotype(config["derive"])
        loss, accuracy = evaluate(functools.partial(net, arch=net.architecture(genotype)), evaluation_data)
        loss_alpha, loss_theta, norm_alpha, norm, clipped, skipped = (totals / steps).tolist()
        free = genotypes.parameter_free(genotype)
        row = dict(epoch=epoch + 1, tau=tau, lr=lr, loss_alpha=loss_alpha, loss_theta=loss_theta, supernet_loss=loss)
        row |= dict(supernet_accuracy=accuracy, gradient_norm_alpha=norm_alpha, gradient_norm=norm, clipped=clipped)
        row |= dict(skipped=skipped) | {f"parameter_free_{kind}": count for kind, count in free.items()}
        row |= entropies(net) | dict(genotype=str(genotype)) | clock.columns()
        rows.append(row)
        first_step = 0
        run.write_metrics(rows)
        run.save(parts, epoch + 1, 0, totals.zero_(), rows)
        run.log(
            f"epoch {epoch + 1}/{epochs}: loss {loss_theta:.3f} (alpha {loss_alpha:.3f}), supernet accuracy "
            f"{accuracy:.1f}% (of the derived cell, not a result), parameter-free ops "
            f"{', '.join(f'{count} {kind}' for kind, count in free.items())}, tau {tau:.2f}, "
            f"{row['images_per_second']:.0f} images/s, {row['peak_mib']:.0f} MiB, {clock.left()} left"
        )

    genotype = net.genotype(config["derive"])
    run.write_metrics(rows)
    run.write_genotype(genotype, space=config["space"], dataset=config["dataset"], epoch=epochs)
    network = resolve("retrain", retrain_flags(config, genotype))
    parameters, operations = network_size(genotype, network, classes)
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
    dtype = precision(config, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    parts, totals = dict(network=network, sgd=sgd, scaler=scaler), torch.zeros(4, device=device)
    parameters, operations = network_size(genotype, config, classes)
    run.start(command)
    run.write_genotype(genotype, space=config["space"])
    run.log(
        f"retrain on {config['dataset']} ({classes} classes, {len(train.labels)} training and {len(test.labels)} test "
        f"images), {config['cells']} cells, {config['channels']} channels, {parameters / 1e6:.3f} M parameters, "
        f"{operations / 1e6:.1f} M multiply-adds, seed {config['seed']}, on {device_name(device)}: {genotype}"
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
                run.save(parts, epoch, step + 1, totals, rows, classes=train.classes)
            if Stop.signal:
                raise Interrupted

        network.eval()
        loss_test, accuracy_test = evaluate(lambda images: network(images)[0], test_data)
        loss_train, accuracy_train, norm, skipped = (totals / steps).tolist()
        row = dict(epoch=epoch + 1, lr=lr, drop_path=drop_path, loss_train=loss_train, loss_test=loss_test)
        row |= dict(accuracy_train=100 * accuracy_train, accuracy_test=accuracy_test, gradient_norm=norm)
        row |= dict(skipped=skipped) | clock.columns()
        rows.append(row)
        first_step = 0
        run.write_metrics(rows)
        run.save(parts, epoch + 1, 0, totals.zero_(), rows, classes=train.classes)
        run.log(
            f"epoch {epoch + 1}/{epochs}: loss {loss_train:.3f}, training accuracy {100 * accuracy_train:.1f}%, test "
            f"accuracy {accuracy_test:.2f}%, {row['images_per_second']:.0f} images/s, {row['peak_mib']:.0f} MiB, "
            f"{clock.left()} left"
        )

    run.write_metrics(rows)
    accuracy = rows[-1]["accuracy_test"]
    run.log(f"test accuracy {accuracy:.2f}% (error {100 - accuracy:.2f}%) at the last epoch, {epochs}")
    run.log(f"files: {run.folder / 'metrics.csv'}, {run.folder / 'last.pt'} (weights; train.load_network reads it)")
    return accuracy


def load_network(path: str | Path) -> tuple[rome.Network, list[str]]:
    """The trained network of a retrain's last.pt, in evaluation mode, and its class names."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    config, classes = state["settings"], state["classes"]
    network = build_network(genotypes.load(config["genotype"]), config, len(classes))
    network.load_state_dict(state["network"])
    return network.eval(), classes


def short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


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


SWITCH = dict(action="store_true")
# flag -> (stages: s(earch), r(etrain); default where no protocol has one, argparse's arguments)
FLAGS = {
    "space": ("sr", "darts", dict(choices=list(rome.SPACES), help="search space; in retrain: its protocol")),
    "genotype": ("r", None, dict(metavar="NAME|FILE|TEXT", help="published name, JSON file, or printed genotype")),
    "dataset": ("sr", "cifar10", dict(choices=DATASETS, help="images; folder: DIR/train|test/CLASS/*")),
    "data": ("sr", "data", dict(metavar="DIR", help="where the images are, or are downloaded to")),
    "method": ("s", "rome-v2", dict(choices=list(METHODS), help="gdas: no topology sampling, one sample")),
    "samples": ("s", None, dict(type=whole(), metavar="K", help="sub-networks accumulated per step")),
    "samples_alpha": ("s", None, dict(type=whole(), metavar="K", help="K of the architecture step alone")),
    "samples_theta": ("s", None, dict(type=whole(), metavar="K", help="K of the weight step alone")),
    "epochs": ("sr", None, dict(type=whole(), help="epochs")),
    "equal_passes": ("s", False, dict(SWITCH, help="epochs such that K * epochs is the protocol's (Table 5)")),
    "batch_size": ("sr", None, dict(type=whole(2), help="images per batch (per process)")),
    "channels": ("sr", None, dict(type=whole(2), help="initial channels")),
    "cells": ("sr", None, dict(type=whole(), help="cells (nb201: per stage)")),
    "steps_per_epoch": ("sr", 0, dict(type=whole(), metavar="N", help="steps in an epoch, instead of all images")),
    "image_size": ("sr", None, dict(type=whole(), metavar="PIXELS", help="of folder and shapes")),
    "stem": ("sr", None, dict(choices=("small", "imagenet"), help="stem: stride 1 or 8")),
    "lr": ("sr", None, dict(type=real(least_excluded=True), help="initial learning rate of the weights")),
    "lr_min": ("sr", None, dict(type=real(), help="last learning rate of the cosine")),
    "schedule": ("r", None, dict(choices=("cosine", "linear"), help="learning rate schedule")),
    "lr_warmup": ("r", None, dict(type=whole(0), metavar="EPOCHS", help="linear warm-up of the learning rate")),
    "momentum": ("sr", None, dict(type=real(0, 1), help="of SGD")),
    "nesterov": ("r", None, dict(action=argparse.BooleanOptionalAction, help="Nesterov momentum")),
    "weight_decay": ("sr", None, dict(type=real(), help="of the weights")),
    "clip": ("sr", None, dict(type=real(), help="bound on the gradient's norm; 0: none")),
    "alpha_lr": ("s", None, dict(type=real(least_excluded=True), help="Adam's rate for alpha and beta")),
    "alpha_weight_decay": ("s", None, dict(type=real(), help="of alpha and beta")),
    "alpha_clip": ("s", None, dict(type=real(), help="bound on the norm of their gradient; 0: none")),
    "alpha_reduction": ("s", "mean", dict(choices=("mean", "sum"), help="over the K gradients, Eq. 11")),
    "theta_reduction": ("s", "sum", dict(choices=("sum", "mean"), help="over the K gradients, Eq. 12")),
    "tau_max": ("s", None, dict(type=real(least_excluded=True), help="temperature of the first epoch")),
    "tau_min": ("s", None, dict(type=real(least_excluded=True), help="temperature of the last epoch")),
    "warmup": ("s", None, dict(type=whole(0), metavar="EPOCHS", help="epochs before alpha and beta move")),
    "fraction": ("s", None, dict(type=real(0, 0.5, True), help="of every class, for each of the two halves")),
    "derive": ("s", "joint", dict(choices=("joint", "sequential", "exact"), help="argmax of Eq. 9; or beta first")),
    "one_shot_ops": ("s", "paper", dict(choices=("paper", "table"), help="op set of the 1shot1 spaces")),
    "cutout": ("sr", None, dict(type=whole(0), metavar="PIXELS", help="side of the erased square; 0: none")),
    "drop_path": ("r", None, dict(type=real(0, 0.99), help="drop path rate of the last epoch")),
    "auxiliary": ("r", None, dict(type=real(), metavar="WEIGHT", help="of the auxiliary loss; 0: no such head")),
    "label_smoothing": ("r", None, dict(type=real(0, 1), help="label smoothing")),
    "seed": ("sr", 0, dict(type=whole(0), help="of everything random")),
    "device": ("sr", "auto", dict(choices=("auto", "cpu", "cuda", "mps"), help="device")),
    "amp": ("sr", False, dict(SWITCH, help="mixed precision: bfloat16, or float16 with loss scaling")),
    "recompute": ("s", False, dict(SWITCH, help="recompute cells in the backward pass: least memory")),
    "compile": ("r", False, dict(SWITCH, help="torch.compile the network")),
    "deterministic": ("sr", False, dict(SWITCH, help="deterministic kernels")),
    "workers": ("sr", 2, dict(type=whole(0), help="processes that read images which memory does not hold")),
    "cache_gib": ("sr", 4.0, dict(type=real(), help="keep the images in memory up to this size")),
    "save_minutes": ("sr", 10.0, dict(type=real(), help="minutes between checkpoints within an epoch")),
    "out": ("sr", None, dict(metavar="DIR", help="the run's folder")),
    "resume": ("sr", False, dict(SWITCH, help="go on from the folder's last checkpoint")),
    "quick": ("sr", False, dict(SWITCH, help="small numbers, about three minutes; shapes if no --dataset")),
    "quiet": ("sr", False, dict(SWITCH, help="print nothing but errors")),
    "config": ("sr", None, dict(metavar="FILE", help="settings of a config.json; flags override them")),
    "retrain": ("s", False, dict(SWITCH, help="then retrain the cell; --retrain-epochs etc. set how")),
}  # fmt: skip
# Settings of the retrain that `search --retrain` takes as --retrain-NAME; the others it shares with the search.
RETRAIN_FLAGS = (*RETRAIN["default"], "steps_per_epoch", "compile")


class Parser(argparse.ArgumentParser):
    """argparse with a one-line error."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def make_parser() -> Parser:
    parser = Parser("train.py", description="Search and retrain with ROME.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{search,retrain,list,report}")
    for stage, text in (("search", "search a cell"), ("retrain", "train the network of a cell from scratch")):
        sub = commands.add_parser(
            stage, help=text, description=text, allow_abbrev=False, argument_default=argparse.SUPPRESS
        )
        for name, (stages, _, arguments) in FLAGS.items():
            if stage[0] in stages:
                sub.add_argument("--" + name.replace("_", "-"), **arguments)
        for name in RETRAIN_FLAGS if stage == "search" else ():
            sub.add_argument("--retrain-" + name.replace("_", "-"), **dict(FLAGS[name][2], help=argparse.SUPPRESS))
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
    config["image_size"] = config["image_size"] or (224 if config["stem"] == "imagenet" else 32)
    least = 32 if config["stem"] == "imagenet" else 4
    if config["image_size"] % least or config["image_size"] > 4096:
        raise ValueError(f"--image-size {config['image_size']}: it must be a multiple of {least}, at most 4096")
    if stage == "search":
        for half in ("samples_alpha", "samples_theta"):
            config[half] = config[half] or config["samples"]
        if config["equal_passes"]:
            config["epochs"] = max(1, row["samples"] * row["epochs"] // config["samples_theta"])
    config["out"] = config["out"] or default_folder(stage, config, row, given)
    if stage == "retrain":
        if config["genotype"] is None:
            raise ValueError(
                "retrain needs --genotype NAME, FILE or TEXT; published: " + ", ".join(genotypes.PUBLISHED)
            )
        config["genotype"] = str(genotypes.load(config["genotype"]))
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
    if family == "1shot1" and config.get("method") == "gdas":
        refuse("method", "gdas keeps every edge, from which no 1shot1 cell can be derived")


def default_folder(stage: str, config: dict, row: dict, given: dict) -> str:
    seed = f"s{config['seed']}"
    if stage == "retrain":
        name = given.get("genotype") or "cell"
        if name not in genotypes.PUBLISHED:
            path = Path(name[:200])
            name = path.parent.name if path.stem == "genotype" else path.stem if path.suffix == ".json" else ""
            name = (
                name or "cell-" + hashlib.blake2b(given["genotype"].encode(errors="replace"), digest_size=3).hexdigest()
            )
        return f"runs/retrain-{name}-{config['dataset']}-{seed}"
    parts = [config["space"], config["dataset"], config["method"]]
    if (config["samples_alpha"], config["samples_theta"]) != (row["samples"],) * 2 and config["method"] != "gdas":
        parts.append(f"k{config['samples_alpha']}.{config['samples_theta']}")
    if config["epochs"] != row["epochs"]:
        parts.append(f"e{config['epochs']}")
    return "runs/" + "-".join([*parts, seed])


def retrain_flags(config: dict, genotype) -> dict:
    """The retrain's flags that follow from a search's configuration."""
    shared = ("space", "dataset", "data", "image_size", "stem", "seed", "device", "amp", "deterministic", "workers")
    shared += ("cache_gib", "save_minutes", "resume", "quick", "quiet")
    flags = {name: config[name] for name in shared}
    for name in ("image_size", "data", "cache_gib", "stem"):  # given again only where they mean something
        if config["dataset"] not in ("folder",) and not (name == "data" and config["dataset"] != "shapes"):
            flags.pop(name)
    flags |= {name.removeprefix("retrain_"): value for name, value in config.items() if name.startswith("retrain_")}
    return flags | dict(genotype=str(genotype), out=str(Path(config["out"]) / "retrain"))


def stored_flags(path: Path, stage: str, parser: Parser) -> dict:
    """The flags of a config.json, checked as if they had been typed."""
    try:
        text = json.loads(path.read_bytes())
        if text["stage"] != stage:
            raise ValueError(f"it is of a {text['stage']}")
        words = [stage]
        for name, value in text["settings"].items():
            flag = "--" + str(name).replace("_", "-")
            if isinstance(value, bool):
                words += [flag] if value else []
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
    stage = given.pop("command")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, Stop.ask)
    try:
        run_stage(stage, given, [Path(sys.argv[0]).name, *words], parser)
    except Interrupted:
        name = signal.Signals(Stop.signal).name
        print(f"{name}: the state is saved; the same command with --resume goes on", file=sys.stderr)
        return 128 + Stop.signal
    except NumbersError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 3
    except torch.cuda.OutOfMemoryError:
        print(
            "train.py: the device's memory is full; lower --batch-size or --channels, or add --recompute or --amp",
            file=sys.stderr,
        )
        return 2
    except (ValueError, OSError) as error:
        print(f"train.py: error: {first_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
