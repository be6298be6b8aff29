"""Search and retrain with ROME: protocols, data, the folder of a run, the two loops, the command line.

    python train.py search  --space darts --dataset cifar10 --retrain
    python train.py retrain --genotype GDAS_V1 --dataset cifar10
    python train.py predict RUN IMAGE...

Every random draw is keyed by its place (seed, epoch, step, role, rank, sample). So a resumed run repeats the
uninterrupted one bit for bit, and the number of workers changes nothing.
"""

import os

if __name__ == "__main__":  # before torch starts its threads: those that wait sleep, so that others can compute
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import contextlib
import csv
import difflib
import functools
import hashlib
import importlib.util
import io
import json
import math
import pickle
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import time
import warnings
import zipfile
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
# 1. Protocols. Each row lists only what differs from "default". Flags override.

SEARCH = {
    # The paper's Section 4; what it leaves open is from DARTS's code, the temperature from GDAS's.
    "default": dict(
        cells=8, channels=16, epochs=50, batch_size=64, samples=7, lr=0.05, lr_min=0.001, momentum=0.9,
        weight_decay=3e-4, clip=5.0, alpha_lr=3e-4, alpha_weight_decay=1e-3, alpha_clip=0.0, tau_max=10.0, tau_min=0.1,
        fraction=0.5, cutout=0, warmup=0,
    ),
    # Table 4, with 10% + 10% of ImageNet's training images. A folder with ImageNet's stem keeps both halves.
    "imagenet stem": dict(epochs=30, batch_size=256, samples=3),
    "imagenet": dict(fraction=0.1),
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
    "imagenet stem": dict(
        cells=14, channels=48, epochs=250, batch_size=1024, lr=0.5, schedule="linear", weight_decay=3e-5, drop_path=0.0,
        cutout=0, label_smoothing=0.1, lr_warmup=5,
    ),
    # S1 to S4 "strictly follow R-DARTS": its paper has 16 channels for S2 and S4 on CIFAR-10, its code 8 cells and 16
    # channels everywhere, which we take for CIFAR-100 and SVHN. DARTS-PT has 36 channels for S2 and S4 too.
    "s2/cifar10": dict(channels=16),
    "s4/cifar10": dict(channels=16),
    "s1-s4/cifar100": dict(cells=8, channels=16),
    "s1-s4/svhn": dict(cells=8, channels=16),
    # NAS-Bench-201's own training, which does not clip; 1Shot1 cells are not retrained in the paper.
    "nb201": dict(
        cells=5, channels=16, epochs=200, batch_size=256, lr=0.1, nesterov=True, weight_decay=5e-4, clip=0.0,
        drop_path=0.0, cutout=0, auxiliary=0.0,
    ),
    "1shot1": dict(cells=9, channels=16, auxiliary=0.0),
}  # fmt: skip
# --quick: smaller numbers, same code.
QUICK = {
    "search": dict(
        cells=3, channels=8, epochs=6, batch_size=32, samples=2, lr=0.05, alpha_lr=2e-2, steps_per_epoch=50,
        image_size=16, evaluation_images=500,
    ),
    "retrain": dict(
        cells=3, channels=8, epochs=3, batch_size=64, lr=0.05, drop_path=0.0, cutout=0, auxiliary=0.0,
        steps_per_epoch=60, image_size=16,
    ),
}  # fmt: skip
METHODS = {"rome-v2": "v2", "rome-v1": "v1", "gdas": "none"}  # to the supernet's topology


def protocol(table: dict, space: str, dataset: str, stem: str | None = None) -> dict:
    """The settings of a space and data set: the rows that apply, the special after the general."""
    names = ["default", "imagenet stem"] if "imagenet" in (dataset, stem) else ["default"]
    names += [dataset, rome.SPACES[space].family, f"{space}/{dataset}"]
    names += [f"s1-s4/{dataset}"] if space in ("s1", "s2", "s3", "s4") else []
    row = {}
    for name in names:
        row |= table.get(name, {})
    return row


# ----------------------------------------------------------------------------------------------------------------------
# 2. Data


def keyed(*place) -> torch.Generator:
    """A CPU generator for one place in the run, such as (seed, "weights", epoch, step)."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


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
PIXELS_32 = ("cifar10", "cifar100", "svhn")  # their images have 32 x 32 pixels
SHAPES_IMAGES = {"train": (8000, 0), "test": (2000, 1)}  # how many are drawn, and their seed


def load_data(config: dict, split: str) -> Images:
    """The "train" or "test" images of config["dataset"]. ValueError says what is missing and what to do."""
    name, size = config["dataset"], config["image_size"]
    if name == "shapes":
        from tools.shapes import SHAPES, draw_shapes

        count, seed = SHAPES_IMAGES[split]
        return Images(*draw_shapes(count, seed, size), [], list(SHAPES))
    if name in ("folder", "imagenet"):
        data = list_folder(config, split)
        files = [path for path, _ in data.samples]
        fits = config["stem"] != "imagenet" and len(files) * size * size * 3 <= config["cache_gib"] * 2**30
        return Images(read_images(files, size) if fits else None, torch.tensor(data.targets), files, data.classes)
    from torchvision.datasets import CIFAR10, CIFAR100, SVHN

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100, "svhn": SVHN}[name]
    try:
        data = kind(config["data"], split if name == "svhn" else split == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{name} is not in {config['data']!r} and could not be downloaded ({first_line(error)}); "
            "put its archive there, or use --dataset folder --data DIR"
        ) from None
    if name == "svhn":
        pixels, labels = torch.tensor(data.data).permute(0, 2, 3, 1), torch.tensor(data.labels)
        return Images(pixels.contiguous(), labels.long(), [], list("0123456789"))
    return Images(torch.tensor(data.data), torch.tensor(data.targets), [], list(data.classes))


def list_folder(config: dict, split: str):
    """torchvision's ImageFolder of DIR/train, or of DIR/test or DIR/val: it lists the files and reads none."""
    from torchvision.datasets import ImageFolder, folder

    places = [Path(config["data"]) / name for name in (["train"] if split == "train" else ["test", "val"])]
    place = next((place for place in places if place.is_dir()), None)
    if place is None:
        raise ValueError(f"no folder {places[0]}: --data DIR wants DIR/{{train,test}}/CLASS/ with image files")
    endings = (*folder.IMG_EXTENSIONS, ".gif")  # torchvision's own leave out GIF
    try:
        data = ImageFolder(place, is_valid_file=lambda path: path.lower().endswith(endings))
    except FileNotFoundError as error:
        raise ValueError(f"{place}: {first_line(error)}") from None
    if len(data.classes) < 2:
        raise ValueError(f"{place} has one class, {data.classes[0]}; a classifier needs two at least")
    return data


def check_test_folder(config: dict) -> None:
    """ValueError if a retrain could not test: no test images, or other classes than those of the training images."""
    if config["dataset"] in ("folder", "imagenet"):
        train, test = list_folder(config, "train").classes, list_folder(config, "test").classes
        if train != test:
            odd = ", ".join(sorted(set(train) ^ set(test))[:5])
            raise ValueError(f"{config['data']}: the classes of train and test differ: {odd}")


def read_images(files: list, size: int) -> Tensor:
    """uint8 (N, size, size, 3), read by threads."""
    pixels = torch.empty(len(files), size, size, 3, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:
        for index, image in enumerate(pool.map(lambda path: read_image(path, size), files)):
            pixels[index] = image
    return pixels


FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF", "WEBP", "GIF")  # no PostScript, for which Pillow runs a program
MOST_PIXELS = 80_000_000  # of one image, which Pillow decodes at once; it warns from 89 million on


def read_image(path: str, size: int, transform=None) -> Tensor:
    """uint8 (size, size, 3): RGB, the shorter side resized to `size` (bilinear, antialiased), the centre cropped."""
    import numpy
    from PIL import Image
    from torchvision.transforms.v2 import functional

    try:
        with Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > MOST_PIXELS or file.mode == "F":
                raise ValueError(f"{file.width}x{file.height} pixels are too many, or they are floating-point numbers")
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

    def __init__(self, files: list, config: dict, role: str):
        self.files, self.size, self.transform = files, config["image_size"], image_transform(config, role)

    def __getitem__(self, item) -> Tensor:
        index, place = item
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed(*place, index).initial_seed())
            return read_image(self.files[index], self.size, self.transform)


def image_transform(config: dict, role: str):
    """With ImageNet's stem, how an image is resized and augmented when it is read; else None."""
    from torchvision.transforms import v2

    size = config["image_size"]
    if config["stem"] != "imagenet":
        return None
    if role in ("evaluation", "test"):
        return v2.Compose([v2.Resize(size * 256 // 224), v2.CenterCrop(size)])
    jitter = [v2.ColorJitter(0.4, 0.4, 0.4, 0.2)] if role == "retrain" else []
    return v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *jitter])


def outlive_one_signal(worker: int) -> None:
    """In a worker: a scheduler's first SIGTERM goes to every process, and is for the main one to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


class Stream:
    """Batches of the images `index`, shuffled anew every epoch, augmented on the device.

    role: "weights", "architecture", "retrain"; "evaluation", "test": not augmented. Order and augmentation depend on
    (seed, role, epoch, step, rank) alone.
    """

    def __init__(self, images: Images, index: Tensor, config: dict, role: str, device, statistics):
        self.images, self.index, self.config, self.role, self.device = images, index, config, role, device
        self.augment = role not in ("evaluation", "test")
        self.rank, self.world = rank_and_world()
        if self.augment and len(index) // self.world < 2:
            raise ValueError(f"{len(index)} images are too few for {self.world} processes, which need two each")
        self.labels, self.order = images.labels.to(device), (None, None)
        self.mean, self.std = torch.tensor(statistics, device=device).view(2, 3, 1, 1)

    def __len__(self) -> int:
        """Steps of an epoch. Batch norm needs two images: a single one left over is dropped in training, and joins the
        batch before in evaluation."""
        count, size = len(self._share(self.index)), self.config["batch_size"]
        steps = math.ceil(count / size)
        return steps - 1 if steps > 1 and count % size == 1 else steps

    def epoch(self, epoch: int, start: int = 0, stop: int | None = None):
        """Yields images (N, 3, H, W), normalised, channels-last, and labels (N,), for the steps from start to stop.

        Past the last batch the images come round again, in another order.
        """
        steps = range(start, len(self) if stop is None else stop)
        non_blocking = device_settings(self.device)["non_blocking"]
        read = self._read(epoch, steps) if self.images.pixels is None else None
        for step in steps:
            index = self._indices(epoch, step).to(self.device, non_blocking=non_blocking)
            pixels = self.images.pixels[index] if read is None else next(read)
            pixels = pixels.to(self.device, non_blocking=non_blocking)
            yield self._finish(pixels, keyed(*self._place(epoch, step))), self.labels[index]

    def _read(self, epoch: int, steps: range):
        """Has workers read the images of these steps."""
        workers, items = self.config["workers"], []
        for step in steps:
            items.append([(index, self._place(epoch, step)) for index in self._indices(epoch, step).tolist()])
        loader = torch.utils.data.DataLoader(
            Files(self.images.files, self.config, self.role), batch_sampler=items, num_workers=workers,
            pin_memory=device_settings(self.device)["pin_memory"], worker_init_fn=outlive_one_signal,
            timeout=600 if workers else 0,
            generator=torch.Generator(),  # its own, so that starting workers does not advance torch's default one
        )  # fmt: skip
        return iter(loader)

    def _place(self, epoch: int, step: int) -> tuple:
        return self.config["seed"], self.role, epoch, step, self.rank

    def _share(self, index: Tensor) -> Tensor:
        """This rank's part of the images. In training all ranks have the same number."""
        if self.augment:
            index = index[: len(index) // self.world * self.world]
        return index[self.rank :: self.world]

    def _indices(self, epoch: int, step: int) -> Tensor:
        """The images of one batch."""
        turn, batch = divmod(step, len(self))
        if self.order[0] != (epoch, turn):
            # Evaluation is shuffled too: files come class by class, and the supernet's batch norm needs mixed batches.
            order = torch.randperm(len(self.index), generator=keyed(self.config["seed"], self.role, epoch, turn))
            self.order = (epoch, turn), self._share(self.index[order])
        start = batch * self.config["batch_size"]
        stop = None if batch + 1 == len(self) and not self.augment else start + self.config["batch_size"]
        return self.order[1][start:stop]

    def _finish(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Crop and flip, normalise, cut out."""
        if self.augment and self.config["stem"] != "imagenet":
            pixels = crop_and_flip(pixels, generator)
        images = ((pixels.permute(0, 3, 1, 2).float() / 255) - self.mean) / self.std  # channels-last
        return cut_out(images, self.config["cutout"], generator) if self.augment and self.config["cutout"] else images


def crop_and_flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Random crops of the zero-padded images (N, S, S, 3), half of them flipped. Padding: 4 pixels at 32, 2 at 16."""
    count, size, pad = len(pixels), pixels.shape[1], pixels.shape[1] // 8
    shift = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    line = torch.arange(size)
    columns = shift[1] + torch.where(flip, line.flip(0), line)  # (N, S)
    place = torch.stack([shift[0] + line, columns]).to(pixels.device, non_blocking=True)
    number = torch.arange(count, device=pixels.device)[:, None, None]
    padded = F.pad(pixels, (0, 0, pad, pad, pad, pad))
    return padded[number, place[0][:, :, None], place[1][:, None, :]]


def cut_out(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Sets a square of every image (N, 3, S, S) to 0, the mean. Its centre is any pixel."""
    count, size = len(images), images.shape[2]
    centre = torch.randint(0, size, (2, count, 1), generator=generator).to(images.device, non_blocking=True)
    distance = torch.arange(size, device=images.device) - centre  # (2, N, S)
    near = (distance >= -(side // 2)) & (distance < side // 2)
    return images.masked_fill_((near[0][:, :, None] & near[1][:, None, :])[:, None], 0.0)


def statistics_of(images: Images, config: dict) -> tuple:
    """Mean and deviation per channel of the training pixels: the published ones, or computed in float64."""
    if config["dataset"] in STATISTICS:
        return STATISTICS[config["dataset"]]
    total, squares, count = 0, 0, 0
    for numbers in torch.arange(len(images.labels)).split(1000):
        files = [images.files[number] for number in numbers] if images.pixels is None else []
        part = read_images(files, config["image_size"]) if files else images.pixels[numbers]
        part = part.reshape(-1, 3).double() / 255
        total, squares, count = total + part.sum(0), squares + part.square().sum(0), count + len(part)
    mean = total / count
    deviation = (squares / count - mean**2).clamp_min(0).sqrt().clamp_min(1 / 255)
    return mean.tolist(), deviation.tolist()


def halves(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Disjoint parts (weights, architecture), each with `fraction` of every class, drawn from the seed."""
    weights, architecture = [], []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=keyed(seed, "split", label))]
        cut = math.ceil(fraction * len(members))
        weights.append(members[:cut])
        architecture.append(members[cut : 2 * cut])
    weights, architecture = torch.cat(weights).sort().values, torch.cat(architecture).sort().values
    if min(len(weights), len(architecture)) < 2:
        raise ValueError(f"{len(labels)} training images are too few: both halves of the search need two at least")
    return weights, architecture


# ----------------------------------------------------------------------------------------------------------------------
# 3. The folder of a run

CHECKPOINT_FORMAT = 2
# Settings that may change when a run is resumed: they do not change its result.
FREE = set("resume out device workers data quiet save_minutes cache_gib retrain config table baseline".split())


class NumbersError(ArithmeticError):
    """A loss or gradient is NaN or infinite."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM; the state has been saved. No `except Exception` catches it."""


class Stop:
    """signal: the number of the signal that asked this process to stop, or None.

    folder: of the run in progress, which ends at its next step. Without one, a signal stops the program at once.
    """

    signal, folder = None, None

    @classmethod
    def ask(cls, number, frame) -> None:
        cls.signal = number
        if cls.folder is None:
            raise Interrupted

    @classmethod
    def asked(cls) -> bool:
        """Whether any rank was asked to stop; every rank learns of it at the same step."""
        if dist.is_initialized():
            flag = torch.tensor([cls.signal or 0])  # on the CPU: nobody waits for the device
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            cls.signal = int(flag) or None
        return cls.signal is not None


class Run:
    """A search or a retrain in progress, and its folder. It counts, checks, times, logs and saves the steps.

    The folder: config.json, log.txt, metrics.csv, last.pt, previous.pt. Rank 0 alone writes. parts: what has a
    state_dict. epoch, step: where to go on. rows: of metrics.csv.
    """

    def __init__(self, stage: str, config: dict, device: torch.device):
        self.stage, self.config, self.device, self.folder = stage, config, device, Path(config["out"])
        (self.rank, self.world), self.whole, Stop.folder = rank_and_world(), False, None  # whole: last.pt is readable
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
                changes = self._changes(state)
            except Exception as error:  # whatever torch.load makes of a broken file
                reasons.append(f"{path} cannot be used ({first_line(error)})")
                continue
            if changes:
                raise ValueError(f"{path} was made with {changes}; resume with the same, or use another --out")
            for reason in reasons:
                print(f"{reason}; going on from {path}", file=sys.stderr)
            self.whole = path.name == "last.pt"
            return state
        if reasons:
            raise ValueError("; ".join(reasons) + "; start anew with another --out")
        return None

    def _changes(self, state: dict) -> str:
        """The settings in which a checkpoint differs from this run. ValueError if it is no checkpoint of this stage."""
        if (state["format"], state["stage"]) != (CHECKPOINT_FORMAT, self.stage):
            made = f"{short(str(state['stage']))} in format {short(str(state['format']))}"
            raise ValueError(f"it is of a {made}; this version goes on with format {CHECKPOINT_FORMAT}")
        epochs, step = [row["epoch"] for row in state["rows"]], state["step"]
        if epochs != list(range(1, state["epoch"] + 1)) or type(step) is not int or step < 0:
            raise ValueError("it has no place to go on at")
        if torch.tensor(state["statistics"]).shape != (2, 3):
            raise ValueError("it has no mean and deviation of the images")
        old, changes = state["settings"] | {"processes": state["world"]}, []
        new = self.config | {"processes": self.world}
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name) and name not in FREE and not name.startswith("retrain_"):
                changes.append(f"--{name.replace('_', '-')} {old.get(name)} (now {new.get(name)})")
        return ", ".join(changes)

    def start(self, command: list[str], text: str, state: dict | None, parts: dict, names: tuple, steps: int, **about):
        """Writes config.json, logs `text`, and goes on from the checkpoint `state`, if there is one.

        names: of the numbers of a step; steps: of an epoch; about: more for the checkpoints.
        """
        self.parts, self.names, self.steps, self.about, self.unchecked = parts, names, steps, about, None
        self.scaled = parts["scaler"].is_enabled()
        self.epoch, self.step, self.rows, epochs = 0, 0, [], self.config["epochs"]
        self.sums = torch.zeros(len(names) + 1, device=self.device)  # the last one counts skipped steps
        if dist.is_initialized():
            dist.barrier()  # every rank has looked at the folder before rank 0 writes into it
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left_over in self.folder.glob(".*.tmp"):  # of a write that was killed
                left_over.unlink()
            origin = dict(stage=self.stage, command=command, processes=self.world, settings=self.config)
            content = json.dumps(origin | dict(versions=versions()), indent=1) + "\n"
            genotypes.write(self.folder / "config.json", content.encode())
        images = self.world * self.config["batch_size"]
        self.log(text + (f", in {self.world} processes, {images} images a step in all" if self.world > 1 else ""))
        if state is not None:
            try:
                for name, part in parts.items():
                    old = state[name]
                    if isinstance(part, torch.optim.Optimizer):
                        old = old | {"param_groups": part.state_dict()["param_groups"]}  # the run's own settings
                    part.load_state_dict(old)
                self.sums.copy_(state["totals"])
                torch.set_rng_state(state["rng"])
            except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
                text = f"the checkpoint in {self.folder} is of another network: {first_line(error)}"
                raise ValueError(text) from None
            self.epoch, self.step, self.rows = state["epoch"], state["step"], state["rows"]
            place = f"resumed at epoch {self.epoch + 1}, step {self.step + 1}"
            self.log("already finished" if self.epoch >= epochs else place)
        self.left, self.done, self.images = (epochs - self.epoch) * steps - self.step, 0, 0  # steps, of this process
        self.begin = self.epoch_begin = self.saved = time.perf_counter()
        Stop.folder = self.folder

    def add(self, images: int, **numbers: Tensor) -> None:
        """Counts a step of so many images. Saves if it is time. Raises NumbersError, and Interrupted after a signal.

        The numbers of a step travel to the host while the next one is computed. They are checked then, so that the
        device never waits for the check.
        """
        self.step, self.images, self.done, self.left = self.step + 1, self.images + images, self.done + 1, self.left - 1
        place = f"epoch {self.epoch + 1}/{self.config['epochs']}, step {self.step}/{self.steps}"
        values = torch.stack([numbers[name].detach().float() for name in self.names])
        self.sums += torch.cat([values.nan_to_num(0, 0, 0), ~values.isfinite().all()[None]])
        host, copied = values.to("cpu", non_blocking=device_settings(self.device)["non_blocking"]), None
        if self.device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record()
        self.check()  # the step before
        self.unchecked = place, host, copied

        now = time.perf_counter()
        if self.done == 1:
            self.begin = now  # the first step also warms up
        elif self.done == 4:
            total = (now - self.begin) / 3 * (self.done + self.left)
            self.log(f"estimated total time {duration(total)}; peak memory {peak_mib(self.device):.0f} MiB")
            if total > 24 * 3600 and self.device.type == "cpu":
                self.log("too long for a CPU: use a GPU, or lower --channels, --cells, --epochs; or see --quick")
        if self.rank == 0 and not self.config["quiet"] and sys.stdout.isatty():
            print(f"\r\033[K{place}, {self.time_left()} left", end="", flush=True)  # the next line replaces it
        if Stop.asked() or now - self.saved > 60 * self.config["save_minutes"]:
            self.save()
            if Stop.signal:
                raise Interrupted

    def check(self) -> None:
        """Raises NumbersError if a number of the last step is not finite."""
        if self.unchecked is None:
            return
        (place, host, copied), self.unchecked = self.unchecked, None
        if copied is not None:
            copied.synchronize()
        for name, value in zip(self.names, host.tolist()):
            if not math.isfinite(value) and not (self.scaled and name.startswith("gradient")):  # a skipped step
                raise NumbersError(
                    f"{place}: {name.replace('_', ' ')} is not finite; the last checkpoint is kept; lower --lr or "
                    "--clip, or go without --amp, in another --out"
                )

    def means(self) -> dict:
        """Column -> mean over the steps of this epoch."""
        self.check()
        return dict(zip((*self.names, "skipped"), (self.sums / self.steps).tolist()))

    def end_epoch(self, row: dict) -> str:
        """Writes a row of metrics.csv and a checkpoint. Returns the end of the epoch's line in the log."""
        seconds, images = time.perf_counter() - self.epoch_begin, self.images
        speed = round(images / seconds, 2) if images else ""  # of this process; "": resumed after the last step
        self.epoch_begin, self.images = time.perf_counter(), 0
        row = dict(epoch=self.epoch + 1) | row | dict(images_per_second=speed, seconds=round(seconds, 2))
        row["peak_mib"] = round(peak_mib(self.device), 2)
        self.epoch, self.step, self.rows = self.epoch + 1, 0, [*self.rows, row]
        self.sums.zero_()
        if self.rank == 0:
            text = io.StringIO()
            columns = dict.fromkeys(name for row in self.rows for name in row)  # a resumed run may have gained --table
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            genotypes.write(self.folder / "metrics.csv", text.getvalue().encode())
        self.save()
        skipped = f"{round(row['skipped'] * self.steps)} of {self.steps} steps skipped by loss scaling, "
        speed = f"{speed:.0f} images/s, " if speed else ""
        return f"{skipped if row['skipped'] else ''}{speed}{row['peak_mib']:.0f} MiB, {self.time_left()} left"

    def time_left(self) -> str:
        return duration((time.perf_counter() - self.begin) / max(1, self.done - 1) * self.left)

    def save(self) -> None:
        """Writes last.pt and keeps the one before as previous.pt."""
        self.check()  # a checkpoint holds no number that went wrong
        self.saved = time.perf_counter()
        if self.rank:
            return
        state = {name: part.state_dict() for name, part in self.parts.items()} | self.about
        state |= dict(format=CHECKPOINT_FORMAT, stage=self.stage, settings=self.config, world=self.world)
        state |= dict(epoch=self.epoch, step=self.step, rows=self.rows, totals=self.sums, rng=torch.get_rng_state())
        content, last, new = io.BytesIO(), self.folder / "last.pt", self.folder / ".last.pt.tmp"
        torch.save(state, content)
        genotypes.write(new, content.getvalue())
        if self.whole:  # a broken one does not replace the one before
            os.replace(last, self.folder / "previous.pt")
        os.replace(new, last)
        self.whole = True

    def write_genotype(self, genotype, **more) -> None:
        if self.rank == 0:
            genotypes.save(genotype, self.folder / "genotype.json", **more)
            genotypes.draw(genotype, self.folder / "cells.svg")

    def log(self, text: str) -> None:
        if self.rank == 0 and not self.config["quiet"]:
            print(("\r\033[K" if sys.stdout.isatty() else "") + text, flush=True)
        if self.rank == 0:
            with open(self.folder / "log.txt", "a") as file:
                file.write(text + "\n")


def load_checkpoint(path: Path) -> dict:
    """torch.load of a checkpoint, after a check of its sums, which torch.load leaves out. Raises what comes."""
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


def versions() -> dict:
    commit, folder = "", Path(__file__).resolve().parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5)
        commit = git.stdout.strip()
    return dict(torch=torch.__version__, python=platform.python_version(), platform=platform.platform(), commit=commit)


def rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def peak_mib(device: torch.device) -> float:
    """Peak memory so far: allocated on a CUDA device, resident in the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return math.nan
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes:.0f} min" if minutes < 120 else f"{hours:.1f} h"


def short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = lines[-1].partition(": ")[2] if lines[0].startswith("Caught ") else lines[0]  # raised by a worker
    return short(line, 500)


# ----------------------------------------------------------------------------------------------------------------------
# 4. Search


def device_settings(device: torch.device) -> dict:
    """What a kind of device gets: fused optimizers, and copies to it that do not wait."""
    cuda = device.type == "cuda"
    return dict(fused=cuda, pin_memory=cuda, non_blocking=cuda)


def set_up(config: dict) -> torch.device:
    """The device, the process group of torchrun, and the numerical switches of the whole process."""
    name = config["device"]
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    backends = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if name in backends and not backends[name]():
        raise ValueError(f"--device {name}: this PyTorch ({torch.__version__}) finds no such device; use --device cpu")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        # Python handlers do not run while init_process_group blocks, so restore the default ones: nothing needs saving.
        handlers = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
        # An optimizer imports torch.distributed.nn. If that happens once the group exists, its default arguments keep
        # the group alive after destroy_process_group, with threads that may abort while Python exits.
        from torch.distributed import nn as _  # noqa: F401

        dist.init_process_group("cpu:gloo,cuda:nccl" if name == "cuda" else "gloo")
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


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def precision(config: dict, device: torch.device) -> torch.dtype | None:
    """The dtype of --amp: bfloat16 where the hardware has it, else float16."""
    if not config["amp"]:
        return None
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bfloat16 = device.type == "cpu"
    return torch.bfloat16 if has_bfloat16 else torch.float16


def make_sgd(parameters, config: dict, fused: bool) -> torch.optim.SGD:
    """SGD whose momentum starts from zeros, which changes no step.

    An operation may get its first gradient at a later step than another, and loss scaling may skip the first step.
    Fused SGD takes no missing buffer in the first case, and leaves an uninitialised one in the second.
    """
    sgd = torch.optim.SGD(
        parameters, config["lr"], config["momentum"], weight_decay=config["weight_decay"],
        nesterov=config.get("nesterov", False), fused=fused,
    )  # fmt: skip
    for p in sgd.param_groups[0]["params"] if config["momentum"] else ():
        sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


def reseed(config: dict, *place) -> None:
    """Seeds torch's default generators (the noise op, drop path) for one place in the run."""
    torch.manual_seed(keyed(config["seed"], *place, rank_and_world()[0]).initial_seed())


def learning_rate(config: dict, epoch: int) -> float:
    """The rate of an epoch: cosine from lr to lr_min, or PC-DARTS's linear decay; after a linear warm-up."""
    lr, low, epochs, warmup = config["lr"], config["lr_min"], config["epochs"], config.get("lr_warmup", 0)
    if epoch < warmup:
        return lr * (epoch + 1) / warmup
    if config.get("schedule") != "linear":
        return low + 0.5 * (lr - low) * (1 + math.cos(math.pi * epoch / epochs))
    tail, left = min(5, epochs - 1), epochs - epoch  # a flatter line at the end: PC-DARTS, train_imagenet.py
    if left > tail:
        return lr * (left - tail) / (epochs - tail)
    return lr * left / ((epochs - tail) * max(tail, 1))


def ramp(first: float, last: float, epoch: int, epochs: int) -> float:
    """Linear over the epochs, `last` in the last one."""
    share = epoch / max(1, epochs - 1)
    return (1 - share) * first + share * last


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


def space_of(config: dict) -> rome.Space:
    space = rome.SPACES[config["space"]]
    if config["one_shot_ops"] == "table":  # the op set of NAS-Bench-1Shot1's table: a 1x1 convolution, no skip
        row = ("maxpool3x3", "conv3x3-bn-relu", "conv1x1-bn-relu")
        return space._replace(ops={"cell": (row,) * len(space.ops["cell"])})
    return space


def build_search(config: dict, classes: int, device: torch.device, place: list) -> tuple:
    """Supernet, architect, and the two optimizers. place: [epoch, step], which key the samples."""
    reseed(config, "weights of the supernet")
    net = rome.Supernet(
        space_of(config), config["channels"], config["cells"], classes, METHODS[config["method"]], config["recompute"],
        imagenet=config["stem"] == "imagenet",
    ).to(device)  # fmt: skip
    for p in net.parameters() if dist.is_initialized() else ():  # ranks start from the same numbers
        dist.broadcast(p.data, 0)
    architect = rome.Architect(
        net, (config["samples_alpha"], config["samples_theta"]), config["clip"] or None,
        lambda role, k: keyed(config["seed"], "sample", role, *place, rank_and_world()[0], k),
        architecture_clip=config["alpha_clip"] or None, architecture_reduction=config["alpha_reduction"],
        weight_reduction=config["theta_reduction"], autocast=precision(config, device),
    )  # fmt: skip
    fused = device_settings(device)["fused"]
    sgd = make_sgd(net.weights(), config, fused)
    adam = torch.optim.Adam(
        net.architecture_parameters(), config["alpha_lr"], (0.5, 0.999), weight_decay=config["alpha_weight_decay"],
        fused=fused,
    )  # fmt: skip
    return net, architect, sgd, adam


def certainty(net: rome.Supernet) -> tuple[dict, float, float, dict]:
    """How sure the choices are: columns of metrics.csv, with the mean entropy (nats) and the mean largest probability
    of the rows of alpha and the nodes of beta; the latter of all alpha, and its uniform value; all probabilities."""
    columns, tops, uniform, tables = {}, [], [], {"alpha": {}, "beta": {}}
    for kind, alpha in net.alpha.items():
        choices = {"alpha": list(alpha), "beta": net.beta_by_node(kind) if net.topology != "none" else []}
        for name, logits in choices.items():
            table = [row.detach().softmax(0).cpu() for row in logits]
            tables[name][kind] = [[round(p, 4) for p in row.tolist()] for row in table]
            table = [row for row in table if len(row) > 1]  # a single candidate is no choice
            if table:
                entropy = statistics.fmean(-row.xlogy(row).sum().item() for row in table)
                top = statistics.fmean(row.max().item() for row in table)
                columns |= {f"entropy_{name}_{kind}": entropy, f"top_{name}_{kind}": top}
        tops.append(alpha.detach().softmax(1).amax(1).mean().item())
        uniform.append(1 / alpha.shape[1])
    return columns, statistics.fmean(tops), statistics.fmean(uniform), tables


def true_accuracy(config: dict, classes: int):
    """A function from a genotype to its columns of NAS-Bench-201's table (--table), or to none."""
    if not config["table"]:
        return lambda genotype: {}
    from tools.nasbench201 import TABLE_DATA, read_table, table_row

    table, dataset = read_table(config["table"]), {10: "cifar10", 100: "cifar100", 120: "folder"}.get(classes)
    if dataset is None or not table.get(f"{TABLE_DATA[dataset]}_test"):
        raise ValueError(f"{config['table']} has no test accuracies for these {classes} classes")
    return lambda genotype: table_row(table, genotype, dataset, config["method"])


def search(config: dict, command: list[str]):
    """Algorithm 1 over the epochs of a configuration. Returns the derived genotype, argmax p(z)."""
    device = set_up(config)
    run = Run("search", config, device)
    state = run.checkpoint()
    train = load_data(config, "train")  # the test images are never looked at
    mean_and_std = state["statistics"] if state else statistics_of(train, config)
    train, classes, epochs = train.to(device), len(train.classes), config["epochs"]
    look_up = true_accuracy(config, classes)
    weight_half, architecture_half = halves(train.labels.cpu(), config["fraction"], config["seed"])
    order = torch.randperm(len(architecture_half), generator=keyed(config["seed"], "evaluation"))
    some = architecture_half[order[: config["evaluation_images"] or None]]
    weight_data = Stream(train, weight_half, config, "weights", device, mean_and_std)
    architecture_data = Stream(train, architecture_half, config, "architecture", device, mean_and_std)
    evaluation_data = Stream(train, some, config, "evaluation", device, mean_and_std)

    place = [0, 0]  # epoch, step
    net, architect, sgd, adam = build_search(config, classes, device, place)
    parts = dict(net=net, scaler=architect.scaler, sgd=sgd, adam=adam)
    names = ("loss_alpha", "loss_theta", "gradient_norm_alpha", "gradient_norm", "clipped")
    text = (
        f"search of {config['space']} on {config['dataset']} ({classes} classes, {len(weight_half)} images for the "
        f"weights, {len(architecture_half)} for alpha and beta), {config['method']}, K = {config['samples_alpha']} for "
        f"alpha and {config['samples_theta']} for the weights, seed {config['seed']}, on {device_name(device)}; "
        f"supernet {sum(p.numel() for p in net.weights()) / 1e6:.3f} M weights"
    )
    steps = config["steps_per_epoch"] or len(weight_data)
    run.start(command, text, state, parts, names, steps, statistics=mean_and_std)

    for epoch in range(run.epoch, epochs):
        tau, lr = ramp(config["tau_max"], config["tau_min"], epoch, epochs), learning_rate(config, epoch)
        sgd.param_groups[0]["lr"] = lr
        first = run.step
        batches = zip(architecture_data.epoch(epoch, first, steps), weight_data.epoch(epoch, first, steps), strict=True)
        for step, ((x_s, y_s), (x_t, y_t)) in enumerate(batches, first):
            place[:] = epoch, step
            reseed(config, epoch, step)
            # Algorithm 1: alpha and beta on D_s first, then the weights on D_t.
            loss_alpha = norm_alpha = torch.zeros((), device=device)
            if epoch >= config["warmup"]:
                loss_alpha = architect.architecture_step(x_s, y_s, tau, adam)
                norm_alpha = architect.gradient_norm
            loss_theta = architect.weight_step(x_t, y_t, tau, sgd)
            norm = architect.gradient_norm
            run.add(
                len(x_s) + len(x_t), loss_alpha=loss_alpha, loss_theta=loss_theta, gradient_norm_alpha=norm_alpha,
                gradient_norm=norm, clipped=norm > (config["clip"] or math.inf),
            )  # fmt: skip

        means = run.means()
        genotype = net.genotype(config["derive"])
        reseed(config, epoch, "evaluation")  # of the noise op
        loss, accuracy = evaluate(functools.partial(net, arch=net.architecture(genotype)), evaluation_data)
        free, true = genotypes.parameter_free(genotype), look_up(genotype)
        sure, top, uniform, _ = certainty(net)
        row = dict(tau=tau, lr=lr) | means | dict(supernet_loss=loss, supernet_accuracy=accuracy)
        row |= {f"parameter_free_{kind}": count for kind, count in free.items()}
        end = run.end_epoch(row | sure | true | dict(genotype=str(genotype)))
        known = "true test accuracy {table_test:.2f}% (rank {table_rank}), ".format(**true) if true else ""
        run.log(
            f"epoch {epoch + 1}/{epochs}: loss {means['loss_theta']:.3f} (alpha {means['loss_alpha']:.3f}), supernet "
            f"accuracy {accuracy:.1f}% (of the derived cell, not a result), parameter-free ops "
            f"{', '.join(f'{count} {kind}' for kind, count in free.items())}, alpha {top / uniform:.2f} x uniform, "
            f"tau {tau:.2f}, {known}{end}"
        )

    genotype, (_, top, uniform, tables) = net.genotype(config["derive"]), certainty(net)
    run.write_genotype(genotype, space=config["space"], dataset=config["dataset"], epoch=epochs, **tables)
    run.log(f"found {genotype}\n{genotypes.describe(genotype)}")
    if top < 1.1 * uniform:
        run.log(
            f"alpha is near uniform (largest probability {top:.3f}, uniform {uniform:.3f}): this cell is close to a "
            "random draw; run more steps or raise --alpha-lr"
        )
    files = [str(run.folder / name) for name in ("genotype.json", "cells.svg", "metrics.csv", "last.pt")]
    run.log("files: " + ", ".join(files))

    settings = configure("retrain", retrain_settings(config, genotype))
    parameters, operations = size_of(build_network(genotype, settings, classes), settings["image_size"])
    text = f"retrain: {settings['cells']} cells, {settings['channels']} channels, {settings['epochs']} epochs, "
    text += f"{parameters / 1e6:.3f} M parameters and {operations / 1e6:.1f} M multiply-adds an image"
    if speed := run.rows[-1]["images_per_second"]:
        _, searched = size_of(net, config["image_size"], net.architecture(genotype))
        speed *= searched * (config["samples_alpha"] + config["samples_theta"]) / 2  # multiply-adds a second
        steps = settings["steps_per_epoch"] or len(train.labels) / settings["batch_size"]
        work = settings["epochs"] * steps * settings["batch_size"] * operations
        text += f", about {duration(work / speed)} at the speed of the search"
    run.log(text)
    if not config["retrain"]:
        run.log(f"next: {next_command(config)}")
    return genotype


# ----------------------------------------------------------------------------------------------------------------------
# 5. Retrain


def build_network(genotype, config: dict, classes: int) -> rome.Network:
    """The retrain network of a configuration."""
    return rome.Network(
        genotype, config["channels"], config["cells"], classes, config["auxiliary"] > 0, config["drop_path"],
        config["stem"] == "imagenet",
    )  # fmt: skip


def size_of(model: nn.Module, image_size: int, *arguments) -> tuple[int, int]:
    """Parameters without the auxiliary head, and multiply-adds of convolutions and linear layers for one image."""
    total, hooks = 0, []

    def count(module, inputs, output):
        nonlocal total
        positions = 1 if isinstance(module, nn.Linear) else output[0, 0].numel()
        total += positions * module.weight.numel()

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            hooks.append(module.register_forward_hook(count))
    image = torch.zeros(2, 3, image_size, image_size, device=next(model.parameters()).device)
    with torch.no_grad():
        model.eval()(image, *arguments)
    model.train()
    for hook in hooks:
        hook.remove()
    own = [p.numel() for name, p in model.named_parameters() if not name.startswith("body.auxiliary.")]
    return sum(own), total


def retrain(config: dict, command: list[str]) -> float:
    """Trains the network of a genotype from scratch. Returns its test accuracy at the last epoch, in percent."""
    device, genotype = set_up(config), genotypes.load(config["genotype"])
    run = Run("retrain", config, device)
    state = run.checkpoint()
    check_test_folder(config)
    train, test = load_data(config, "train"), load_data(config, "test")
    mean_and_std = state["statistics"] if state else statistics_of(train, config)
    train, test, classes, epochs = train.to(device), test.to(device), len(train.classes), config["epochs"]
    train_data = Stream(train, torch.arange(len(train.labels)), config, "retrain", device, mean_and_std)
    test_data = Stream(test, torch.arange(len(test.labels)), config, "test", device, mean_and_std)

    reseed(config, "weights of the network")
    network = build_network(genotype, config, classes).to(device)
    sgd, dtype = make_sgd(network.parameters(), config, device_settings(device)["fused"]), precision(config, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    parts = dict(network=network, sgd=sgd, scaler=scaler)
    parameters, operations = size_of(network, config["image_size"])
    text = (
        f"retrain on {config['dataset']} ({classes} classes, {len(train.labels)} training and {len(test.labels)} test "
        f"images), {config['cells']} cells, {config['channels']} channels, {parameters / 1e6:.3f} M parameters, "
        f"{operations / 1e6:.1f} M multiply-adds, seed {config['seed']}, on {device_name(device)}: {genotype}"
    )
    names, steps = ("loss_train", "accuracy_train", "gradient_norm"), config["steps_per_epoch"] or len(train_data)
    about = dict(classes=train.classes, statistics=mean_and_std)  # what a user of the network needs
    run.start(command, text, state, parts, names, steps, **about)
    run.write_genotype(genotype, space=config["space"])
    model = network
    if dist.is_initialized():
        devices = [device.index] if device.type == "cuda" else None
        model = nn.parallel.DistributedDataParallel(model, devices, broadcast_buffers=False)
    if config["compile"]:
        model = torch.compile(model, dynamic=False)  # a smaller last batch leaves the graph of the full ones alone
    criterion = functools.partial(F.cross_entropy, label_smoothing=config["label_smoothing"])

    for epoch in range(run.epoch, epochs):
        lr, drop_path = learning_rate(config, epoch), config["drop_path"] * epoch / epochs
        sgd.param_groups[0]["lr"] = lr
        network.set_drop_path(drop_path)
        model.train()
        first = run.step
        for step, (images, labels) in enumerate(train_data.epoch(epoch, first, steps), first):
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

            correct = 100 * (logits.argmax(1) == labels).float().mean()
            run.add(len(images), loss_train=loss, accuracy_train=correct, gradient_norm=norm)

        means = run.means()
        network.eval()
        for buffer in network.buffers() if dist.is_initialized() else ():
            dist.broadcast(buffer, 0)  # each rank has running statistics of its own images; the checkpoint has rank 0's
        loss_test, accuracy_test = evaluate(lambda images: network(images)[0], test_data)
        row = dict(lr=lr, drop_path=drop_path, loss_test=loss_test, accuracy_test=accuracy_test)
        end = run.end_epoch(row | means)
        run.log(
            f"epoch {epoch + 1}/{epochs}: loss {means['loss_train']:.3f}, training accuracy "
            f"{means['accuracy_train']:.1f}%, test accuracy {accuracy_test:.2f}%, {end}"
        )

    accuracy = run.rows[-1]["accuracy_test"]
    run.log(f"test accuracy {accuracy:.2f}% (error {100 - accuracy:.2f}%) at the last epoch, {epochs}")
    run.log(f"files: {run.folder}/metrics.csv, {run.folder}/last.pt, for train.py predict {run.folder} IMAGE...")
    return accuracy


def retrain_and_compare(config: dict, genotype, command: list[str]) -> None:
    """Retrains the found cell and --baseline random ones by one protocol; prints their accuracies."""
    settings, random = retrain_settings(config, genotype), []
    found = retrain(configure("retrain", settings), command)
    for number in range(1, config["baseline"] + 1):
        cell = genotypes.random_cell(space_of(config), keyed(config["seed"], "random cell", number))
        more = dict(genotype=str(cell), out=str(Path(config["out"]) / f"random-{number}"))
        random.append(retrain(configure("retrain", settings | more), command))
    if not random:
        return
    spread = f" ± {statistics.stdev(random):.2f} (n - 1)" if len(random) > 1 else ""
    text = f"test accuracy in %, retrained by one protocol:\n  found cell {found:15.2f}\n"
    text += f"  random cells, {len(random):<3} {statistics.fmean(random):8.2f}{spread}"
    train, test = load_data(config, "train"), load_data(config, "test")
    if train.pixels is not None and test.pixels is not None:
        from tools.linear import linear_accuracy

        linear = linear_accuracy(train.pixels, train.labels, test.pixels, test.labels, len(train.classes))
        text += f"\n  linear model {linear:13.2f} on the same pixels"
    Run("search", config, None).log(text)


def load_network(path: str | Path) -> tuple[rome.Network, dict]:
    """The trained network of a retrain's last.pt, in evaluation mode, and the checkpoint: its "classes", the images'
    "statistics" (mean and deviation), and its "settings"."""
    try:
        state = load_checkpoint(Path(path))
        config = state["settings"]
        space_name(config["space"])  # it may have a user's own operations
        network = build_network(genotypes.load(config["genotype"]), config, len(state["classes"]))
        network.load_state_dict(state["network"])
    except (OSError, KeyError, TypeError, AttributeError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no checkpoint of a retrain: {first_line(error)}") from None
    return network.eval(), state


@torch.no_grad()
def predict(run: str, images: list[str]) -> str:
    """The most probable class of every image, and its probability, from the network that RUN retrained."""
    paths = [Path(run) / "retrain" / "last.pt", Path(run) / "last.pt", Path(run)]
    path = next((path for path in paths if path.is_file()), paths[1])
    network, state = load_network(path)
    config, (mean, deviation) = state["settings"], torch.tensor(state["statistics"])
    lines = []
    for name in images:
        pixels = read_image(name, config["image_size"], image_transform(config, "test"))
        image = ((pixels.float() / 255 - mean) / deviation).permute(2, 0, 1)
        probability, label = network(image[None])[0].softmax(1)[0].max(0)
        lines.append(f"{name}  {state['classes'][label]}  {probability:.4f}")
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------------------
# 6. Command line


class BadValue(argparse.ArgumentTypeError, ValueError):
    """argparse shows its text; elsewhere it is a ValueError."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are a ValueError of one line."""

    def error(self, message: str):
        text = " ".join(message.removeprefix("argument ").replace(": must be", " must be", 1).split())
        raise ValueError(f"{short(text, 500)} (see {self.prog} --help)")


def number(kind=int, least: float = 1, most: float = 10**12, above: bool = False):
    """A parser of numbers from least (if `above`, without it) to most."""

    def parse(text: str):
        try:
            value = kind(text[:20])
            good = least <= value <= most and not (above and value == least)
        except ValueError:
            good = False
        if not good:
            bound = f"{'above' if above else 'of at least'} {least:g}"
            bound += f", at most {most:g}" if most < 10**12 else ""
            raise BadValue(f"must be a {'whole ' if kind is int else ''}number {bound}, not {short(text)!r}")
        return value

    return parse


def one_of(names):
    def parse(text: str) -> str:
        if text not in names:
            close = difflib.get_close_matches(text, names, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise BadValue(f"must be one of {', '.join(names)}, not {short(text)!r}{hint}")
        return text

    return parse


def space_name(text: str) -> str:
    """A name in rome.SPACES. FILE.py:NAME runs FILE.py, a user's own, and adds its rome.Space NAME under that name."""
    path, _, name = text.rpartition(":")
    if not path.endswith(".py"):
        return one_of(rome.SPACES)(text)
    path = Path(path).resolve()
    text = f"{path}:{name}"
    if text not in rome.SPACES:
        try:
            spec = importlib.util.spec_from_file_location(path.stem, path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            rome.check_space(getattr(module, name))
        except Exception as error:  # whatever the user's file raises
            raise BadValue(f"must be one that works; {path}: {type(error).__name__}: {first_line(error)}") from None
        rome.SPACES[text] = getattr(module, name)
    return text


# Settings of the retrain that `search --retrain` takes as --retrain-NAME; the others it shares with the search.
RETRAIN_FLAGS = (*RETRAIN["default"], "steps_per_epoch", "compile")


def add_flags(parser: Parser, stage: str) -> None:
    """The flags of a stage. The help's [N] is the default of darts on cifar10."""
    usual = protocol(SEARCH if stage == "search" else RETRAIN, "darts", "cifar10")
    count, amount, rate = number(least=0), number(float, 0), number(float, 0, above=True)
    group = parser

    def add(stages: str, name: str, kind, text: str, default=None, metavar: str = "N") -> None:
        """stages: s(earch), r(etrain). kind: a function from text to a value, a tuple of choices, or bool."""
        if stage[0] not in stages:
            return
        default = usual.get(name, default)
        more = dict(default=default, help=text if default is None or default is False else text + " [%(default)s]")
        if kind is bool:
            more |= dict(action=argparse.BooleanOptionalAction)
        elif isinstance(kind, tuple):
            more |= dict(type=one_of(kind), metavar="{" + ",".join(kind) + "}")
        else:
            more |= dict(type=kind, metavar=metavar)
        group.add_argument("--" + name.replace("_", "-"), **more)

    group = parser.add_argument_group("what to search or train, on what")
    add("s", "space", space_name, "search space; FILE.py:NAME runs FILE.py and takes its Space NAME", "darts", "SPACE")
    add("r", "space", space_name, "space whose protocol is used (default: the genotype's)", None, "SPACE")
    add("r", "genotype", str, "published name, JSON file, or printed genotype", None, "NAME|FILE|TEXT")
    add("sr", "dataset", DATASETS, "images; folder: DIR/{train,test}/CLASS/*", "cifar10")
    add("sr", "data", str, "where the images are, or are downloaded to", "data", "DIR")
    add("s", "method", tuple(METHODS), "gdas: no topology sampling, one sample", "rome-v2")
    add("s", "retrain", bool, "then retrain the cell; --retrain-epochs etc.: see retrain --help")
    add("s", "baseline", count, "with --retrain: retrain N random cells too", 0)
    group = parser.add_argument_group("sizes")
    add("s", "samples", number(), "K, the sub-networks accumulated per step")
    add("s", "samples_alpha", number(), "K of the architecture step alone (default: K)")
    add("s", "samples_theta", number(), "K of the weight step alone (default: K)")
    add("s", "equal_passes", bool, "epochs such that K * epochs is the protocol's (Table 5)", False)
    add("sr", "epochs", number(), "epochs")
    add("sr", "batch_size", number(least=2), "images per batch (per process)")
    add("sr", "channels", number(least=2), "initial channels")
    add("sr", "cells", number(), "cells (nb201: per stage)")
    add("sr", "steps_per_epoch", number(), "steps in an epoch, instead of all images")
    add("sr", "image_size", number(), "pixels, of folder and shapes (default: 32, or 224 with ImageNet's stem)")
    add("sr", "stem", ("small", "imagenet"), "stride 1 or 8 (default by data set)")
    group = parser.add_argument_group("weights (SGD)")
    add("sr", "lr", rate, "initial learning rate")
    add("sr", "lr_min", amount, "last learning rate of the cosine")
    add("r", "schedule", ("cosine", "linear"), "learning rate schedule")
    add("r", "lr_warmup", count, "epochs of a linear warm-up of the learning rate")
    add("sr", "momentum", number(float, 0, 1), "of SGD")
    add("r", "nesterov", bool, "Nesterov momentum")
    add("sr", "weight_decay", amount, "of the weights")
    add("sr", "clip", amount, "bound on the gradient's norm; 0: none")
    add("s", "theta_reduction", ("sum", "mean"), "over the K gradients, Eq. 12", "sum")
    add("sr", "cutout", count, "side of the erased square in pixels; 0: none")
    add("r", "drop_path", number(float, 0, 0.99), "drop path rate of the last epoch")
    add("r", "auxiliary", amount, "weight of the auxiliary loss; 0: no such head")
    add("r", "label_smoothing", number(float, 0, 1), "label smoothing")
    if stage == "search":
        group = parser.add_argument_group("alpha and beta (Adam), temperature, derivation")
    add("s", "alpha_lr", rate, "Adam's learning rate")
    add("s", "alpha_weight_decay", amount, "of alpha and beta")
    add("s", "alpha_clip", amount, "bound on the gradient's norm; 0: none")
    add("s", "alpha_reduction", ("mean", "sum"), "over the K gradients, Eq. 11", "mean")
    add("s", "tau_max", rate, "temperature of the first epoch")
    add("s", "tau_min", rate, "temperature of the last epoch")
    add("s", "warmup", count, "epochs before alpha and beta move")
    add("s", "fraction", number(float, 0, 0.5, above=True), "of every class, for each of two halves")
    add("s", "derive", ("joint", "sequential", "exact"), "argmax of Eq. 9; or beta first", "joint")
    add("s", "evaluation_images", count, "of the supernet accuracy; 0: all of alpha's", 2000)
    add("s", "one_shot_ops", ("paper", "table"), "op set of the 1shot1 spaces", "paper")
    add("s", "table", str, "CSV of NAS-Bench-201: log the derived cell's true accuracy", None, "FILE")
    group = parser.add_argument_group("how to run")
    add("sr", "seed", count, "of everything random", 0)
    add("sr", "device", ("auto", "cpu", "cuda", "mps"), "where to compute", "auto")
    add("sr", "amp", bool, "mixed precision: bfloat16, or float16 with loss scaling", False)
    add("s", "recompute", bool, "recompute cells in the backward pass: least memory", False)
    add("r", "compile", bool, "torch.compile the network", False)
    add("sr", "deterministic", bool, "deterministic kernels", False)
    add("sr", "workers", count, "processes that read images", 2)
    add("sr", "cache_gib", amount, "GiB up to which a folder's images are kept in memory", 4.0)
    group = parser.add_argument_group("the run's folder")
    add("sr", "out", str, "where it writes (default: a folder in runs/)", None, "DIR")
    add("sr", "resume", bool, "go on from the folder's last checkpoint", False)
    add("sr", "config", str, "settings of a config.json; flags override them", None, "FILE")
    add("sr", "save_minutes", amount, "minutes between checkpoints", 10.0)
    add("sr", "quick", bool, "small numbers; shapes if no --dataset", False)
    add("sr", "quiet", bool, "print nothing but errors", False)
    for name in RETRAIN_FLAGS if stage == "search" else ():
        action = argparse.BooleanOptionalAction if name in ("nesterov", "compile") else "store"
        parser.add_argument("--retrain-" + name.replace("_", "-"), action=action, help=argparse.SUPPRESS)


def make_parser() -> tuple[Parser, dict]:
    """The parser, and those of its commands by name."""
    commands = {
        "search": "search a cell",
        "retrain": "train the network of a cell from scratch",
        "predict": "classify images with a retrained network",
        "list": "every benchmark: flags, settings, the paper's numbers",
        "report": "what runs found, beside the paper's numbers",
        "plot": "draw the curves and cells of runs",
    }
    parser = Parser(program(), description="Search and retrain with ROME.", allow_abbrev=False)
    sub, parsers = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(commands) + "}"), {}
    for name, text in commands.items():
        parsers[name] = sub.add_parser(name, help=text, description=text, allow_abbrev=False)
    for stage in ("search", "retrain"):
        parsers[stage].usage = f"{program()} {stage} [flags]"
        add_flags(parsers[stage], stage)
    parsers["predict"].add_argument("run", metavar="RUN", help="folder of a retrain, or of a search with --retrain")
    parsers["predict"].add_argument("images", nargs="+", metavar="IMAGE")
    parsers["list"].add_argument("--commands", action="store_true", help="only a shell line for each")
    seeds = parsers["list"].add_argument("--seeds", default=(0,), metavar="S,S,...", help="of the commands; default 0")
    seeds.type = lambda text: tuple(number(least=0)(seed) for seed in text.split(","))
    for name in ("report", "plot"):
        parsers[name].add_argument("folders", nargs="+", metavar="RUN", help="folder of a search or a retrain")
    parsers["report"].add_argument("--format", type=one_of(("text", "markdown", "csv")), default="text", dest="style")
    parsers["plot"].add_argument("--out", metavar="FILE", help=".svg or .png; default: curves.svg in the first RUN")
    return parser, parsers


def program() -> str:
    """The program that was started."""
    return "rome.py" if Path(sys.argv[0]).name == "rome.py" else "train.py"


def words_of(settings: dict) -> list[str]:
    """Settings as flags."""
    words = []
    for name, value in settings.items():
        flag = "--" + str(name).replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        elif value is not None:
            words.append(f"{flag}={value}")
    return words


def configure(stage: str, settings: dict, words: list[str] = ()) -> dict:
    """The whole configuration of "search" or "retrain": protocol < --quick < settings < words of a command line.

    ValueError for settings that are wrong or contradict each other.
    """
    parser, parsers = make_parser()
    words, table = [stage, *words_of(settings), *words], SEARCH if stage == "search" else RETRAIN
    change = parsers[stage].set_defaults
    args = parser.parse_args(words)  # which protocol?
    if args.quick:
        change(dataset="shapes", space="s2")
    if stage == "retrain":
        change(space=home_space(args.genotype))
    args = parser.parse_args(words)
    stem = args.stem or ("imagenet" if args.dataset == "imagenet" else "small")
    usual = protocol(table, args.space, args.dataset, stem)
    row = usual | dict(image_size=32) | (QUICK[stage] if args.quick else {}) | dict(stem=stem)
    if stem == "imagenet" or args.dataset in PIXELS_32:
        row["image_size"] = 224 if stem == "imagenet" else 32
    if stage == "search" and args.method == "gdas":
        row["samples"] = 1
    change(**row)
    args = parser.parse_args(words)  # now the protocol is the default
    if stage == "search" and args.equal_passes:
        row["epochs"] = max(1, usual["samples"] * usual["epochs"] // (args.samples_theta or args.samples))
        change(epochs=row["epochs"])
    config = vars(parser.parse_args(words))
    del config["command"]
    refuse_contradictions(config, row)
    if stage == "search":
        config["samples_alpha"] = config["samples_alpha"] or config["samples"]
        config["samples_theta"] = config["samples_theta"] or config["samples"]
    else:
        own_space = config["space"] if ".py:" in config["space"] else None
        config["genotype"] = str(genotypes.load(args.genotype, own_space))
    config["out"] = config["out"] or default_folder(stage, config, usual, getattr(args, "genotype", None))
    return config


def refuse_contradictions(config: dict, row: dict) -> None:
    """ValueError for settings that clash or have no effect. row: the defaults of this configuration."""
    c = argparse.Namespace(**config)
    family, alone = rome.SPACES[c.space].family, config.get("retrain", True) is None
    gdas, cifar = config.get("method") == "gdas", c.dataset in PIXELS_32
    step, larger = 32 if c.stem == "imagenet" else 4, ("cifar100", "svhn", "imagenet")
    unused = [name for name, value in config.items() if name.startswith("retrain_") and value is not None and alone]
    both = {config.get("samples_alpha"), config.get("samples_theta")}.isdisjoint({None, config.get("samples")})
    cells = rome.SPACES[home_space(c.genotype)].family if "genotype" in config else family
    wrong = {
        f"--{''.join(unused[:1]).replace('_', '-')} has no effect without --retrain": unused,
        "--baseline has no effect without --retrain": config.get("baseline") and alone,
        "--samples has no effect beside --samples-alpha and --samples-theta": both and c.samples != row["samples"],
        "--equal-passes sets the epochs": config.get("equal_passes") and c.epochs != row["epochs"],
        "--one-shot-ops is for the 1shot1 spaces": config.get("one_shot_ops") == "table" and family != "1shot1",
        "--table is for nb201": config.get("table") and family != "nb201",
        "--stem imagenet is for the darts spaces": c.stem == "imagenet" and family != "darts",
        "--stem imagenet is for imagenet and folder": c.stem == "imagenet" and (cifar or c.dataset == "shapes"),
        "--stem small does not go with imagenet": c.stem == "small" and c.dataset == "imagenet",
        f"--image-size: the images of {c.dataset} have 32 pixels": cifar and c.image_size != 32,
        f"--image-size must be a multiple of {step}, at most 4096": c.image_size % step or c.image_size > 4096,
        "--data: the program draws the shapes itself": c.dataset == "shapes" and c.data != "data",
        "--cache-gib is for --dataset folder": c.dataset != "folder" and c.cache_gib != 4.0,
        f"{c.dataset} is no data set of NAS-Bench-1Shot1": family == "1shot1" and c.dataset in larger,
        f"{c.dataset} is no data set of NAS-Bench-201": family == "nb201" and c.dataset in ("svhn", "imagenet"),
        f"--space {c.space} is not of the genotype's family, {cells}": cells != family,
        "--auxiliary: only the darts spaces have an auxiliary head": config.get("auxiliary") and family != "darts",
        "--derive has no effect beside --method gdas": gdas and c.derive != "joint",
        "--method gdas keeps every edge, from which no 1shot1 cell can be derived": gdas and family == "1shot1",
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(message)


def home_space(source: str | None) -> str:
    """The space whose protocol a genotype is retrained by: the one that its file names, else the first of its kind."""
    if not source:
        raise ValueError("retrain needs --genotype NAME, FILE or TEXT; published: " + ", ".join(genotypes.PUBLISHED))
    named = None
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError, RecursionError):
        if Path(source).is_file() and Path(source).stat().st_size <= genotypes.LARGEST:
            named = str(json.loads(Path(source).read_bytes()).get("space"))
    if named in rome.SPACES or ".py:" in (named or ""):
        named = space_name(named)  # before the genotype is read, which may have its operations
    genotype = genotypes.load(source)
    family = rome.family_of(genotype)
    if named in rome.SPACES and rome.FAMILIES[rome.SPACES[named].family] is family:
        return named
    picks = tuple(len(inputs) for inputs in genotype.inputs) if isinstance(genotype, rome.OneShotGenotype) else None
    for name, space in rome.SPACES.items():
        if rome.FAMILIES[space.family] is family and picks in (None, space.picks):
            return name


def default_folder(stage: str, config: dict, row: dict, label: str | None) -> str:
    """runs/..., named after what differs from the protocol `row`. label: the genotype as it was given."""
    if stage == "retrain":
        path, digest = Path(label[:200]), hashlib.blake2b(config["genotype"].encode(), digest_size=3).hexdigest()
        name = path.parent.name if path.name == "genotype.json" else path.stem if path.suffix == ".json" else ""
        name = label if label in genotypes.PUBLISHED else name or f"cell-{digest}"
        return f"runs/retrain-{name}-{config['dataset']}-s{config['seed']}"
    name = "-".join([Path(config["space"]).name.replace(".py:", "-"), config["dataset"], config["method"]])
    alpha, theta, usual = config["samples_alpha"], config["samples_theta"], row["samples"]
    if {alpha, theta} != {1 if config["method"] == "gdas" else usual}:
        name += f"-k{alpha}" if alpha == theta else f"-k{alpha}.{theta}"
    name += f"-e{config['epochs']}" if config["epochs"] != row["epochs"] else ""
    return f"runs/{name}-s{config['seed']}"


def retrain_settings(config: dict, genotype) -> dict:
    """The settings of the retrain that follows a search."""
    shared = "space dataset data image_size stem seed device amp deterministic workers cache_gib save_minutes resume"
    settings = {name: config[name] for name in (*shared.split(), "quick", "quiet")}
    settings |= {name: config[f"retrain_{name}"] for name in RETRAIN_FLAGS if config[f"retrain_{name}"] is not None}
    return settings | dict(genotype=str(genotype), out=str(Path(config["out"]) / "retrain"))


def next_command(config: dict) -> str:
    """The retrain that --retrain would have done, as a command to paste."""
    settings = retrain_settings(config, Path(config["out"]) / "genotype.json") | dict(resume=False)
    same = {name: settings.pop(name) for name in ("genotype", "dataset", "quick")}
    usual, wanted = configure("retrain", same), configure("retrain", same | settings)
    changed = {name: value for name, value in settings.items() if usual[name] != wanted[name]}
    script = Path(__file__).resolve()
    script = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script
    same["quick"] = same["quick"] or None
    return shlex.join(["python", str(script), "retrain", *words_of(same | changed)])


def stored_settings(path: Path, stage: str) -> dict:
    """The settings of a config.json, without those that follow from others."""
    try:
        if not path.is_file() or path.stat().st_size > genotypes.LARGEST:
            raise ValueError("no such file" if not path.exists() else "not a regular file, or too large")
        text, parser = json.loads(path.read_bytes()), make_parser()[0]
        if text["stage"] != stage:
            raise ValueError(f"it is of a {short(str(text['stage']))}")
        settings = {**text["settings"]}
        if unknown := settings.keys() - vars(parser.parse_args([stage])).keys():
            raise ValueError(f"no setting is called {short(repr(sorted(unknown)[0]))}")
        parser.parse_args([stage, *words_of(settings)])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no configuration of a {stage}: {first_line(error)}") from None
    follow = ["out", "resume", "config"] + (["epochs"] if settings.get("equal_passes") else [])
    follow += [name for name in ("samples_alpha", "samples_theta") if settings.get(name) == settings.get("samples")]
    return {name: value for name, value in settings.items() if name not in follow}


def run_stage(stage: str, words: list[str]) -> None:
    """Runs a search, the retrains that follow it, or a retrain."""
    args, stored = make_parser()[0].parse_args([stage, *words]), {}
    if args.config:
        stored = stored_settings(Path(args.config), stage)
    elif args.resume:
        out = args.out or configure(stage, {}, words)["out"]
        if (Path(out) / "config.json").exists():
            stored = stored_settings(Path(out) / "config.json", stage) | dict(out=out)  # flags need not be repeated
    config, command = configure(stage, stored, words), [program(), stage, *words]
    if stage == "retrain":
        retrain(config, command)
        return
    any_cell = genotypes.random_cell(space_of(config))
    configure("retrain", retrain_settings(config, any_cell))  # what is wrong there is said before the search
    if config["retrain"]:
        check_test_folder(config)
    genotype = search(config, command)
    if config["retrain"]:
        retrain_and_compare(config, genotype, command)


def main(argv: list[str] | None = None) -> int:
    """The command line. Exit status: 0 done; 2 bad input; 3 numbers went wrong; 130, 143 interrupted, state saved.

    What went wrong is printed in one line. Status 1: another process of torchrun was lost.
    """
    words, status, text = sys.argv[1:] if argv is None else argv, 2, None
    Stop.signal, Stop.folder = None, None
    handlers = {number: signal.signal(number, Stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        args = vars(make_parser()[0].parse_args(words))
        command = args.pop("command")
        if command in ("search", "retrain"):
            run_stage(command, words[1:])
        elif command == "predict":
            print(predict(**args))
        else:
            from tools import report

            commands = dict(list=report.list_benchmarks, report=report.report, plot=report.plot)
            print(commands[command](**args).rstrip("\n"), flush=True)
        status = 0
    except SystemExit as error:  # --help
        status = error.code
    except Interrupted:
        saved = "the state is saved; the same command with --resume goes on"
        text = f"{signal.Signals(Stop.signal).name}: {saved if words[:1] in (['search'], ['retrain']) else 'stopped'}"
        status = 128 + Stop.signal
    except NumbersError as error:
        status, text = 3, str(error)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except ModuleNotFoundError as error:
        text = f"error: the module {error.name} is missing; requirements.txt lists what the program needs"
    except ValueError as error:
        text = f"error: {first_line(error)}"
    except (OSError, MemoryError, RuntimeError) as error:
        status, text = explain(error)
    finally:
        Stop.signal = None
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if text:
        print(f"{program()}: {text}", file=sys.stderr)
    if dist.is_initialized() and (status != 1 or not torch.cuda.is_initialized()):  # NCCL might wait for a lost rank
        dist.destroy_process_group()
    return status


def explain(error: Exception) -> tuple[int, str]:
    """Exit status and text for an error that is not the input's. Raises it again if it is the program's."""
    text = first_line(error)
    kept = f"; {Stop.folder} keeps its last checkpoint, from which --resume goes on" if Stop.folder else ""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in text:
        text = "the memory is full; lower --batch-size or --channels, or add --recompute or --amp"
    elif "DataLoader" in text and Stop.signal:  # a worker that was just starting took the signal, too
        return 128 + Stop.signal, f"{signal.Signals(Stop.signal).name}{kept}"
    elif "DataLoader" in text:  # torch raises it at any place
        text = f"a process that reads images was lost ({text}); out of memory? Fewer --workers need less"
    elif isinstance(error, RuntimeError) and dist.is_initialized():
        return 1, f"rank {rank_and_world()[0]} lost the others ({text}); --resume goes on"
    elif isinstance(error, RuntimeError):
        raise error
    return 2, f"error: {text}{kept}"


if __name__ == "__main__":
    sys.exit(main())
