"""Search and retrain with ROME: protocols, data, the folder of a run, the two loops, the command line.

    python train.py search  --space darts --dataset cifar10 --retrain
    python train.py retrain --genotype GDAS_V1 --dataset cifar10
    python train.py predict RUN IMAGE...

Every random draw is keyed by its place (seed, epoch, step, role, rank, sample). So a resumed run repeats the
uninterrupted one bit for bit, and the number of workers changes nothing.
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
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group, which its default arguments would keep alive at exit
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import genotypes
import rome

# The program that was started: rome.py, train.py, or a user's own that adds to rome.SPACES and calls train.main.
START = sys.argv[0] if sys.argv[0].endswith(".py") else os.path.relpath(__file__)
PROGRAM = Path(START).name

# ----------------------------------------------------------------------------------------------------------------------
# 1. Protocols. Each row lists only what differs from "default". Flags override.

SEARCH = {
    # The paper's Section 4; what it leaves open is from DARTS's code, the temperature from GDAS's.
    "default": dict(
        cells=8, channels=16, epochs=50, batch_size=64, samples=7, lr=0.05, lr_min=0.001, momentum=0.9,
        weight_decay=3e-4, clip=5.0, alpha_lr=3e-4, alpha_weight_decay=1e-3, alpha_clip=0.0, tau_max=10.0, tau_min=0.1,
        fraction=0.5, cutout=0,
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
        cells=3, channels=8, epochs=6, batch_size=32, samples=2, alpha_lr=2e-2, steps_per_epoch=50,
        image_size=16, evaluation_images=500,
    ),
    "retrain": dict(
        cells=3, channels=8, epochs=3, batch_size=64, lr=0.05, drop_path=0.0, cutout=0, auxiliary=0.0,
        steps_per_epoch=60, image_size=16,
    ),
}  # fmt: skip
# Settings of the retrain that `search --retrain` takes as --retrain-NAME; the others it shares with the search.
RETRAIN_FLAGS = (*RETRAIN["default"], "steps_per_epoch", "compile")
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
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)  # it takes 63 bits


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
FOLDERS = ("folder", "imagenet")  # they are read from DIR/train and DIR/test
PIXELS_32 = ("cifar10", "cifar100", "svhn")  # their images have 32 x 32 pixels


def load_data(config: dict, split: str) -> Images:
    """The "train" or "test" images of config["dataset"]. ValueError says what is missing and what to do."""
    name, size = config["dataset"], config["image_size"]
    if name == "shapes":
        from tools.shapes import SHAPES, draw_shapes

        count, seed = (8000, 0) if split == "train" else (2000, 1)
        return Images(*draw_shapes(count, seed, size), [], list(SHAPES))
    if name in FOLDERS:
        from tools.folders import list_folder, read_images

        data = list_folder(config, split)
        files = [path for path, _ in data.samples]
        fits = config["stem"] != "imagenet" and len(files) * size * size * 3 <= config["cache_gib"] * 2**30
        return Images(read_images(files, config) if fits else None, torch.tensor(data.targets), files, data.classes)
    from torchvision.datasets import CIFAR10, CIFAR100, SVHN

    kind, (rank, world) = {"cifar10": CIFAR10, "cifar100": CIFAR100, "svhn": SVHN}[name], rank_and_world()
    if rank > 0:
        dist.barrier()  # rank 0 downloads first
    try:
        data = kind(config["data"], split if name == "svhn" else split == "train", download=True)
        if rank == 0 and world > 1:
            dist.barrier()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"no {name} ({first_line(error)}); put its archive into the folder {config['data']}") from None
    if name == "svhn":
        pixels, labels = torch.tensor(data.data).permute(0, 2, 3, 1), torch.tensor(data.labels)
        return Images(pixels.contiguous(), labels.long(), [], list("0123456789"))
    return Images(torch.tensor(data.data), torch.tensor(data.targets), [], list(data.classes))


def outlive_one_signal(worker: int) -> None:
    """In a worker: a scheduler's first SIGTERM goes to every process, and is for the main one to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


class Stream:
    """Batches of the images `index`, shuffled anew every epoch, augmented on the device.

    role: "weights", "architecture", "retrain"; "evaluation", "test": not augmented. steps: of an epoch.
    """

    def __init__(self, images: Images, index: Tensor, config: dict, role: str, device, statistics):
        self.images, self.index, self.config, self.role, self.device = images, index, config, role, device
        self.augment = role not in ("evaluation", "test")
        self.rank, self.world = rank_and_world()
        if self.augment and len(index) // self.world < 2:
            raise ValueError(f"{len(index)} images are too few for {self.world} processes, which need two each")
        self.labels = images.labels.to(device)
        self.mean, self.std = torch.tensor(statistics, device=device).view(2, 3, 1, 1)
        self.steps = len(self._batches(0, 0))

    def epoch(self, epoch: int, start: int = 0, stop: int | None = None):
        """Yields images (N, 3, H, W), normalised, channels-last, and labels (N,), for the steps from start to stop."""
        stop = stop or self.steps
        turns = range(math.ceil(stop / self.steps))  # how often the images come round
        batches = [batch for turn in turns for batch in self._batches(epoch, turn)][start:stop]
        places = [(self.config["seed"], self.role, epoch, step, self.rank) for step in range(start, stop)]
        read = None
        if self.images.pixels is None:
            from tools.folders import Files

            items = [[(index, place) for index in batch.tolist()] for batch, place in zip(batches, places)]
            read = iter(torch.utils.data.DataLoader(
                Files(self.images.files, self.config, self.role), batch_sampler=items,
                num_workers=self.config["workers"], worker_init_fn=outlive_one_signal,
                pin_memory=on_cuda(self.device),
                generator=torch.Generator(),  # its own, so that starting workers does not advance torch's default one
            ))  # fmt: skip
        for batch, place in zip(batches, places):
            index, generator = to_device(batch, self.device), keyed(*place)
            pixels = self.images.pixels[index] if read is None else to_device(next(read), self.device)
            if self.augment and self.config["stem"] != "imagenet":
                pixels = crop_and_flip(pixels, generator)
            images = ((pixels.permute(0, 3, 1, 2).float() / 255) - self.mean) / self.std  # channels-last
            if self.augment and self.config["cutout"]:
                images = cut_out(images, self.config["cutout"], generator)
            yield images, self.labels[index]

    def _batches(self, epoch: int, turn: int) -> list[Tensor]:
        """This rank's images in batches. turn: how often the images came round in this epoch before.

        Evaluation is shuffled too: files come class by class, and the supernet's batch norm needs mixed batches.
        """
        order = torch.randperm(len(self.index), generator=keyed(self.config["seed"], self.role, epoch, turn))
        if self.augment:  # all ranks train on the same number of images
            order = order[: len(order) // self.world * self.world]
        batches = list(self.index[order[self.rank :: self.world]].split(self.config["batch_size"]))
        if len(batches) > 1 and len(batches[-1]) == 1:  # too few for batch norm
            batches[-2:] = [torch.cat(batches[-2:])]
        return batches


def crop_and_flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Random crops of the zero-padded images (N, S, S, 3), half of them flipped. Padding: 4 pixels at 32, 2 at 16."""
    count, size, pad = len(pixels), pixels.shape[1], pixels.shape[1] // 8
    shift = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    line = torch.arange(size)
    columns = shift[1] + torch.where(flip, line.flip(0), line)  # (N, S)
    place = to_device(torch.stack([shift[0] + line, columns]), pixels.device)
    number = torch.arange(count, device=pixels.device)[:, None, None]
    padded = F.pad(pixels, (0, 0, pad, pad, pad, pad))
    return padded[number, place[0][:, :, None], place[1][:, None, :]]


def cut_out(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Sets a square of every image (N, 3, S, S) to 0, the mean. Its centre is any pixel."""
    count, size = len(images), images.shape[2]
    centre = to_device(torch.randint(0, size, (2, count, 1), generator=generator), images.device)
    distance = torch.arange(size, device=images.device) - centre  # (2, N, S)
    near = (distance >= -(side // 2)) & (distance < side // 2)
    return images.masked_fill_((near[0][:, :, None] & near[1][:, None, :])[:, None], 0.0)


def statistics_of(images: Images, config: dict) -> tuple:
    """Mean and deviation per channel of the training pixels: the published ones, or computed in float64."""
    if config["dataset"] in STATISTICS:
        return STATISTICS[config["dataset"]]
    if images.pixels is None:
        from tools.folders import read_images
    total, squares, count = 0, 0, 0
    for numbers in torch.arange(len(images.labels)).split(1000):
        files = [images.files[number] for number in numbers] if images.pixels is None else []
        part = read_images(files, config) if files else images.pixels[numbers]
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
    return torch.cat(weights).sort().values, torch.cat(architecture).sort().values


# ----------------------------------------------------------------------------------------------------------------------
# 3. The folder of a run

CHECKPOINT_FORMAT = 4
# Settings that may change when a run is resumed: they do not change its result.
FREE = set("resume out device workers data quiet save_minutes cache_gib retrain config table baseline".split())
FREE |= {f"retrain_{name}" for name in RETRAIN_FLAGS}


class Stop:
    """signal: the number of the one that asked this process to stop. folder: of the run in progress, which ends at its
    next step; without one a signal stops the program at once."""

    signal, folder = None, None

    @classmethod
    def ask(cls, number, frame) -> None:
        cls.signal = number
        if cls.folder is None:
            raise KeyboardInterrupt


class Run:
    """A search or a retrain in progress, and its folder. It counts, checks, times, logs and saves the steps.

    epoch, step: where to go on. rows: of metrics.csv. state: the checkpoint that it goes on from. Rank 0 alone writes.
    """

    def __init__(self, stage: str, config: dict):
        self.stage, self.config, self.device, self.folder = stage, config, set_up(config), Path(config["out"])
        self.rank, self.world = rank_and_world()
        self.epoch, self.step, self.rows, self.state = 0, 0, [], None
        Stop.folder = None
        if Stop.signal:
            raise KeyboardInterrupt
        path = self.folder / "last.pt"
        if (path.exists() or (self.folder / "config.json").exists()) and not config["resume"]:
            raise ValueError(f"{self.folder} holds a run already; --resume goes on with it, --out names another")
        if path.exists():
            self.state = load_checkpoint(path, stage)
            old, new = self.state["settings"] | {"processes": self.state["world"]}, config | {"processes": self.world}
            changed = [name for name in sorted(new.keys() - FREE) if old.get(name) != new[name]]
            if changed:
                text = ", ".join(f"--{name.replace('_', '-')} {old.get(name)} (now {new[name]})" for name in changed)
                raise ValueError(f"{path} was made with {text}; resume with the same, or use another --out")

    def start(self, command: list[str], text: str, parts: dict, names: tuple, steps: int, **about):
        """Goes on from the checkpoint, if there is one; then writes config.json and logs `text`.

        parts: what has a state_dict. names: of the numbers of a step. steps: of an epoch. about: more to save, with the
        `classes` of the images.
        """
        self.parts, self.names, self.steps, self.about = parts, names, steps, about
        self.sums = torch.zeros(len(names), device=self.device)  # of the numbers of this epoch
        if self.state:
            self._restore(self.state)
        on = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        text += f", seed {self.config['seed']}, on {on}, {torch.get_num_threads()} threads"
        if self.world > 1:
            dist.barrier()  # every rank has looked at the folder before rank 0 writes into it
            text += f", in {self.world} processes, {self.world * self.config['batch_size']} images a step in all"
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            content = dict(stage=self.stage, command=command, processes=self.world, settings=self.config)
            content = json.dumps(content | dict(versions=versions()), indent=1) + "\n"
            genotypes.write(self.folder / "config.json", content.encode())
        self.log(text)
        if self.state:
            place = f"resumed at epoch {self.epoch + 1}, step {self.step + 1}"
            self.log("already finished" if self.epoch >= self.config["epochs"] else place)
        self.done, self.images = 0, 0  # since this start; in this epoch
        self.begin = self.epoch_begin = self.saved = time.perf_counter()
        Stop.folder = self.folder

    def _restore(self, state: dict) -> None:
        if state["classes"] != self.about["classes"]:
            classes = f"{', '.join(state['classes']):.200} (now {', '.join(self.about['classes']):.200})"
            raise ValueError(f"{self.folder} was made with images of {classes}; resume with the same --data")
        try:
            for name, part in self.parts.items():
                saved = state[name]
                if isinstance(part, torch.optim.Optimizer):  # the groups are this device's: fused or not
                    saved = saved | {"param_groups": part.state_dict()["param_groups"]}
                part.load_state_dict(saved)
            self.sums.copy_(state["totals"])
            torch.set_rng_state(state["rng"])
            self.epoch, self.step, self.rows = int(state["epoch"]), int(state["step"]), [dict(r) for r in state["rows"]]
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{self.folder} holds a checkpoint of another network: {first_line(error)}") from None

    def add(self, images: int, **numbers: Tensor) -> None:
        """Counts a step of so many images. Saves if it is time. Raises KeyboardInterrupt after a signal.

        The numbers stay on the device, which so never waits; every 50 steps they are checked.
        """
        self.step, self.images, self.done = self.step + 1, self.images + images, self.done + 1
        self.sums += torch.stack([numbers[name].detach().float() for name in self.names])
        now = time.perf_counter()
        if self.done == 1:
            self.begin = now  # the first step also warms up
        if self.done == 4:
            self.log(f"about {self.time_left()} left; peak memory {peak_mib(self.device):.0f} MiB")
        if self.done % 50 == 0:
            self.means()
        if self.rank == 0 and not self.config["quiet"] and sys.stdout.isatty():  # the next line replaces it
            print(f"\r\033[K{self.place()}, {self.time_left()} left", end="", flush=True)
        if self.world > 1:  # every rank learns of a signal at the same step
            number = torch.tensor([Stop.signal or 0])  # on the CPU: nobody waits for the device
            dist.all_reduce(number, op=dist.ReduceOp.MAX)
            Stop.signal = int(number) or None
        if Stop.signal or now - self.saved > 60 * self.config["save_minutes"]:
            self.save()
            if Stop.signal:
                raise KeyboardInterrupt

    def place(self) -> str:
        return f"epoch {self.epoch + 1}/{self.config['epochs']}, step {self.step}/{self.steps}"

    def means(self) -> dict:
        """The means of a step's numbers over this epoch. FloatingPointError if one is not finite."""
        means = {name: total / self.steps for name, total in zip(self.names, self.sums.tolist())}
        for name, mean in means.items():
            if not math.isfinite(mean):
                hint = "is not finite; lower --lr or --clip, or go without --amp"
                raise FloatingPointError(f"{self.place()}: {name.replace('_', ' ')} {hint}")
        return means

    def end_epoch(self, row: dict) -> str:
        """Writes a row of metrics.csv and a checkpoint. Returns the end of the epoch's line in the log."""
        seconds, peak = time.perf_counter() - self.epoch_begin, round(peak_mib(self.device), 2)
        speed = round(self.images / seconds, 2) if self.images else ""  # "": resumed after the last step
        row = dict(epoch=self.epoch + 1) | row | dict(images_per_second=speed, seconds=round(seconds, 2), peak_mib=peak)
        self.rows.append(row)
        self.epoch, self.step, self.images = self.epoch + 1, 0, 0
        self.epoch_begin = time.perf_counter()
        self.sums.zero_()
        if self.rank == 0:
            text = io.StringIO()
            columns = dict.fromkeys(name for row in self.rows for name in row)  # a resumed run may have gained --table
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            genotypes.write(self.folder / "metrics.csv", text.getvalue().encode())
        self.save()
        shown = f"{speed:.0f}" if speed else "-"
        return f"{shown} images/s, {peak:.0f} MiB, {self.time_left()} left"

    def time_left(self) -> str:
        left = (self.config["epochs"] - self.epoch) * self.steps - self.step
        seconds = (time.perf_counter() - self.begin) / max(1, self.done - 1) * left
        if seconds < 120:
            return f"{seconds:.0f} s"
        return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

    def save(self) -> None:
        """Writes last.pt, unless a number went wrong."""
        self.means()
        self.saved = time.perf_counter()
        if self.rank == 0:
            state = {name: part.state_dict() for name, part in self.parts.items()} | self.about
            state |= dict(format=CHECKPOINT_FORMAT, stage=self.stage, settings=self.config, world=self.world)
            state |= dict(epoch=self.epoch, step=self.step, rows=self.rows, totals=self.sums, rng=torch.get_rng_state())
            content = io.BytesIO()
            torch.save(state, content)
            genotypes.write(self.folder / "last.pt", content.getvalue())

    def write_genotype(self, genotype, **more) -> None:
        if self.rank == 0:
            genotypes.save(genotype, self.folder / "genotype.json", **more)
            genotypes.draw(genotype, self.folder / "cells.svg")

    def log(self, text: str) -> None:
        if self.rank == 0:
            with open(self.folder / "log.txt", "a") as file:
                file.write(text + "\n")
            if not self.config["quiet"]:
                print(("\r\033[K" if sys.stdout.isatty() else "") + text, flush=True)


def load_checkpoint(path: Path, stage: str = "search") -> dict:
    """The checkpoint of a search or retrain. ValueError if it is broken."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["stage"], state["format"]
    except Exception:  # whatever a broken file leads to; torch's own message advises to trust it
        raise ValueError(f"{path} cannot be used as checkpoint: missing, broken, or not written by a run") from None
    if found != (stage, CHECKPOINT_FORMAT):
        raise ValueError(f"{path} cannot be used as checkpoint: it is of a {found[0]}, in format {found[1]}")
    return state


def versions() -> dict:
    found = dict(torch=torch.__version__, python=platform.python_version(), platform=platform.platform())
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
        found["commit"] = subprocess.run(git, capture_output=True, text=True, timeout=5).stdout.strip()
    return found


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


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = lines[-1].partition(": ")[2] if lines[0].startswith("Caught ") else lines[0]  # from a worker
    return f"{line:.500}"


# ----------------------------------------------------------------------------------------------------------------------
# 4. Search


def on_cuda(device: torch.device) -> bool:
    """Only there optimizers are fused, batches pinned, and copies to the device do not wait."""
    return device.type == "cuda"


def to_device(x: Tensor, device: torch.device) -> Tensor:
    return x.to(device, non_blocking=on_cuda(device))


def set_up(config: dict) -> torch.device:
    """The device, the process group of torchrun, and the numerical switches of the whole process."""
    found = dict(cuda=torch.cuda.is_available(), mps=torch.backends.mps.is_available(), cpu=True)
    name = next(kind for kind in found if found[kind]) if config["device"] == "auto" else config["device"]
    if not found[name]:
        raise ValueError(f"--device {name}: this PyTorch ({torch.__version__}) finds no such device; use --device cpu")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if name == "cuda" else "gloo")
    device = torch.device(name, int(os.environ.get("LOCAL_RANK", 0)) if name == "cuda" else None)
    if name == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = not config["deterministic"]
        if config["amp"] and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ValueError("--amp: this device does not compute in bfloat16")
    if config["deterministic"]:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config["deterministic"])
    return device


def make_sgd(parameters, config: dict, fused: bool) -> torch.optim.SGD:
    """SGD whose momentum starts from zeros, which changes no step.

    An operation may get its first gradient at a later step than another; there fused SGD takes no missing buffer.
    """
    sgd = torch.optim.SGD(
        parameters, config["lr"], config["momentum"], weight_decay=config["weight_decay"],
        nesterov=config.get("nesterov", False), fused=fused,
    )  # fmt: skip
    for p in sgd.param_groups[0]["params"] if config["momentum"] else ():
        sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


def reseed(config: dict, *place) -> None:
    """Seeds torch's default generators (first weights, the noise op, drop path) for one place in the run."""
    torch.manual_seed(keyed(config["seed"], *place).initial_seed())


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
    return lr * left / ((epochs - tail) * tail)


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


def build_search(config: dict, classes: int, device: torch.device, place: list) -> tuple:
    """Supernet, architect, and the two optimizers. place: [epoch, step], which key the samples."""
    reseed(config, "weights of the supernet", 0)  # the same on every rank
    net = rome.Supernet(
        config["space"], config["channels"], config["cells"], classes, METHODS[config["method"]], config["recompute"],
        imagenet=config["stem"] == "imagenet",
    ).to(device)  # fmt: skip
    architect = rome.Architect(
        net, (config["samples_alpha"], config["samples_theta"]), config["clip"],
        lambda role, k: keyed(config["seed"], "sample", role, *place, rank_and_world()[0], k),
        architecture_clip=config["alpha_clip"], architecture_reduction=config["alpha_reduction"],
        weight_reduction=config["theta_reduction"], autocast=torch.bfloat16 if config["amp"] else None,
    )  # fmt: skip
    sgd = make_sgd(net.weights(), config, on_cuda(device))
    adam = torch.optim.Adam(
        net.architecture_parameters(), config["alpha_lr"], (0.5, 0.999), weight_decay=config["alpha_weight_decay"],
        fused=on_cuda(device),
    )  # fmt: skip
    return net, architect, sgd, adam


def certainty(net: rome.Supernet) -> tuple[dict, dict]:
    """The probabilities of alpha's rows and beta's nodes by cell type; and, as columns of metrics.csv, the means of
    their entropies (nats), of their largest probabilities, and of how many times uniform alpha's largest ones are."""
    tables, columns = {"alpha": {}, "beta": {}}, {}
    for kind, alpha in net.alpha.items():
        choices = {"alpha": list(alpha), "beta": net.beta_by_node(kind) if net.topology != "none" else []}
        for name, logits in choices.items():
            rows = [row.detach().cpu().double().softmax(0) for row in logits]
            tables[name][kind] = [row.round(decimals=4).tolist() for row in rows]
            rows = [row for row in rows if len(row) > 1]  # a single candidate is no choice
            if rows:
                entropies = [-row.xlogy(row).sum().item() for row in rows]
                columns[f"entropy_{name}_{kind}"] = statistics.fmean(entropies)
                columns[f"top_{name}_{kind}"] = statistics.fmean(row.max().item() for row in rows)
    tops = [max(row) * len(row) for rows in tables["alpha"].values() for row in rows]
    return tables, columns | dict(times_uniform=statistics.fmean(tops))


def search(config: dict, command: list[str]):
    """Algorithm 1 over the epochs of a configuration. Returns the derived genotype, argmax p(z)."""
    run = Run("search", config)
    train = load_data(config, "train")  # the test images are never looked at
    mean_and_std = run.state["statistics"] if run.state else statistics_of(train, config)
    device, classes, epochs = run.device, len(train.classes), config["epochs"]
    train = train.to(device)
    true_accuracy = None
    if config["table"]:
        from tools.nasbench201 import look_up

        true_accuracy = look_up(config["table"], classes, config["method"])
    weight_half, architecture_half = halves(train.labels, config["fraction"], config["seed"])
    order = torch.randperm(len(architecture_half), generator=keyed(config["seed"], "evaluation"))
    some = architecture_half[order[: config["evaluation_images"] or None]]
    weight_data = Stream(train, weight_half, config, "weights", device, mean_and_std)
    architecture_data = Stream(train, architecture_half, config, "architecture", device, mean_and_std)
    evaluation_data = Stream(train, some, config, "evaluation", device, mean_and_std)

    place = [0, 0]  # epoch, step
    net, architect, sgd, adam = build_search(config, classes, device, place)
    parts = dict(net=net, sgd=sgd, adam=adam)
    names = ("loss_alpha", "loss_theta", "gradient_norm_alpha", "gradient_norm", "clipped")
    steps = config["steps_per_epoch"] or weight_data.steps
    text = (
        f"search of {config['space']} on {config['dataset']} ({classes} classes, {len(weight_half)} images for the "
        f"weights, {len(architecture_half)} for alpha and beta), {config['method']}, K = {config['samples_alpha']} for "
        f"alpha and {config['samples_theta']} for the weights; {sum(p.numel() for p in net.weights()):,} weights"
    )
    run.start(command, text, parts, names, steps, classes=train.classes, statistics=mean_and_std)

    for epoch in range(run.epoch, epochs):
        share, lr = epoch / max(1, epochs - 1), learning_rate(config, epoch)
        tau = (1 - share) * config["tau_max"] + share * config["tau_min"]  # linear
        sgd.param_groups[0]["lr"] = lr
        first = run.step
        batches = zip(architecture_data.epoch(epoch, first, steps), weight_data.epoch(epoch, first, steps), strict=True)
        for step, ((x_s, y_s), (x_t, y_t)) in enumerate(batches, first):
            place[:] = epoch, step
            reseed(config, epoch, step, run.rank)
            # Algorithm 1: alpha and beta on D_s first, then the weights on D_t.
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
        reseed(config, epoch, "evaluation", run.rank)  # of the noise op
        loss, accuracy = evaluate(functools.partial(net, arch=net.architecture(genotype)), evaluation_data)
        free, sure = genotypes.parameter_free(genotype), certainty(net)[1]
        true = true_accuracy(genotype) if true_accuracy else {}
        row = dict(tau=tau, lr=lr) | means | dict(supernet_loss=loss, supernet_accuracy=accuracy)
        row |= {f"parameter_free_{kind}": count for kind, count in free.items()}
        end = run.end_epoch(row | sure | true | dict(genotype=str(genotype)))
        known = "true test accuracy {table_test:.2f}% (rank {table_rank}), ".format(**true) if true else ""
        run.log(
            f"epoch {epoch + 1}/{epochs}: loss {means['loss_theta']:.3f} (alpha {means['loss_alpha']:.3f}), supernet "
            f"accuracy {accuracy:.1f}% (of the derived cell, not a result), parameter-free ops "
            f"{', '.join(f'{count} {kind}' for kind, count in free.items())}, alpha {sure['times_uniform']:.2f} x "
            f"uniform, tau {tau:.2f}, {known}{end}"
        )

    genotype, (tables, sure) = net.genotype(config["derive"]), certainty(net)
    run.write_genotype(genotype, space=config["space"], dataset=config["dataset"], epoch=epochs, **tables)
    run.log(f"found {genotype}\n{genotypes.describe(genotype)}")
    if sure["times_uniform"] < 1.1:
        text = f"alpha is near uniform (its largest probability is {sure['times_uniform']:.2f} x the uniform one): "
        run.log(text + "this cell is close to a random draw; run more steps or raise --alpha-lr")
    run.log(f"files in {run.folder}: genotype.json, cells.svg, metrics.csv, last.pt")
    if not config["retrain"]:
        settings = retrain_config(config, genotype)
        parameters, operations = size_of(build_network(genotype, settings, classes), settings["image_size"])
        words = ["python", START, *(["search"] if PROGRAM != "rome.py" else [])]
        words = shlex.join([*words, "--out", str(run.folder), "--resume", "--retrain"])
        run.log(
            f"next: {words}\n  {settings['cells']} cells, {settings['channels']} channels, {parameters / 1e6:.3f} M "
            f"parameters, {operations / 1e6:.1f} M multiply-adds an image, for {settings['epochs']} epochs"
        )
    return genotype


# ----------------------------------------------------------------------------------------------------------------------
# 5. Retrain


def build_network(genotype, config: dict, classes: int) -> rome.Network:
    """The retrain network of a configuration."""
    return rome.Network(
        genotype, config["channels"], config["cells"], classes, config["auxiliary"] > 0, config["drop_path"],
        config["stem"] == "imagenet",
    )  # fmt: skip


def size_of(model: nn.Module, image_size: int) -> tuple[int, int]:
    """Parameters without the auxiliary head, and multiply-adds of convolutions and linear layers for one image."""
    image = torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    model.train()
    own = [p.numel() for name, p in model.named_parameters() if not name.startswith("body.auxiliary.")]
    return sum(own), counter.get_total_flops() // 2


def retrain(config: dict, command: list[str]) -> float:
    """Trains the network of a genotype from scratch. Returns its test accuracy at the last epoch, in percent."""
    run, genotype = Run("retrain", config), genotypes.load(config["genotype"])
    test, train = load_data(config, "test"), load_data(config, "train")
    mean_and_std = run.state["statistics"] if run.state else statistics_of(train, config)
    device, classes, epochs = run.device, len(train.classes), config["epochs"]
    train, test = train.to(device), test.to(device)
    train_data = Stream(train, torch.arange(len(train.labels)), config, "retrain", device, mean_and_std)
    test_data = Stream(test, torch.arange(len(test.labels)), config, "test", device, mean_and_std)

    reseed(config, "weights of the network", 0)  # the same on every rank
    network = build_network(genotype, config, classes).to(device)
    sgd = make_sgd(network.parameters(), config, on_cuda(device))
    parts = dict(network=network, sgd=sgd)
    names, steps = ("loss_train", "accuracy_train", "gradient_norm"), config["steps_per_epoch"] or train_data.steps
    count, operations = size_of(network, config["image_size"])
    text = (
        f"retrain on {config['dataset']} ({classes} classes, {len(train.labels)} training and {len(test.labels)} test "
        f"images) of {config['cells']} cells, {config['channels']} channels, {count / 1e6:.3f} M parameters, "
        f"{operations / 1e6:.1f} M multiply-adds an image: {genotype}"
    )
    run.start(command, text, parts, names, steps, classes=train.classes, statistics=mean_and_std)
    run.write_genotype(genotype, space=config["space"])
    parameters = list(network.parameters())
    # dynamic=False: a smaller last batch leaves the graph of the full ones alone.
    model = torch.compile(network, dynamic=False) if config["compile"] else network
    criterion = functools.partial(F.cross_entropy, label_smoothing=config["label_smoothing"])

    for epoch in range(run.epoch, epochs):
        lr, drop_path = learning_rate(config, epoch), config["drop_path"] * epoch / epochs
        sgd.param_groups[0]["lr"] = lr
        network.set_drop_path(drop_path)
        model.train()
        first = run.step
        for step, (images, labels) in enumerate(train_data.epoch(epoch, first, steps), first):
            reseed(config, epoch, step, run.rank)
            sgd.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=config["amp"]):
                logits, logits_auxiliary = model(images)
                loss = criterion(logits, labels)
                if logits_auxiliary is not None:
                    loss = loss + config["auxiliary"] * criterion(logits_auxiliary, labels)
            loss.backward()
            loss = rome.average_over_ranks(parameters, loss.detach())
            norm = nn.utils.clip_grad_norm_(parameters, config["clip"] or math.inf)
            sgd.step()
            correct = 100 * (logits.argmax(1) == labels).float().mean()
            run.add(len(images), loss_train=loss, accuracy_train=correct, gradient_norm=norm)

        means = run.means()
        network.eval()
        for buffer in network.buffers() if dist.is_initialized() else ():
            dist.broadcast(buffer, 0)  # each rank has running statistics of its own images; the checkpoint has rank 0's
        reseed(config, epoch, "evaluation", run.rank)
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


# ----------------------------------------------------------------------------------------------------------------------
# 6. Command line


def number(kind, least: float, most: float = 10**9) -> dict:
    """argparse's keywords of a number from least to most. kind: int or float."""

    def parse(text: str):
        with contextlib.suppress(ValueError):
            if least <= kind(text) <= most:
                return kind(text)
        whole = "whole " if kind is int else ""
        raise argparse.ArgumentTypeError(f"must be a {whole}number from {least:g} to {most:g}, not {text!r:.60}")

    return dict(type=parse, metavar="N")


def one_of(*names) -> dict:
    return dict(choices=names)


COUNT, POSITIVE, TWO = number(int, 0), number(int, 1), number(int, 2)
AMOUNT, RATE, SHARE = number(float, 0), number(float, 1e-9), number(float, 0, 1)
SWITCH, DIR, FILE = dict(action=argparse.BooleanOptionalAction), dict(metavar="DIR"), dict(metavar="FILE")
# Stages (s: search, r: retrain), name, argparse's keywords, default, help. Where the default is None here, the protocol
# or `configure` has one, or there is none.
FLAGS = [
    ("sr", "space", dict(choices=rome.SPACES), None, "search space [darts, or the genotype's]"),
    ("r", "genotype", dict(metavar="NAME|FILE|TEXT"), None, "published name, JSON file, or printed genotype"),
    ("sr", "dataset", one_of(*DATASETS), None, "folder: DIR/{train,test}/CLASS/* [cifar10]"),
    ("sr", "data", DIR, "data", "where the images are, or are downloaded to"),
    ("s", "method", one_of(*METHODS), "rome-v2", "gdas: no topology sampling, one sample"),
    ("s", "retrain", SWITCH, None, "then retrain the cell; --retrain-epochs etc.: see retrain --help"),
    ("s", "baseline", COUNT, 0, "with --retrain: retrain N random cells too"),
    ("s", "samples", POSITIVE, None, "K, the sub-networks accumulated per step"),
    ("s", "samples_alpha", POSITIVE, None, "K of the architecture step alone (default: K)"),
    ("s", "samples_theta", POSITIVE, None, "K of the weight step alone (default: K)"),
    ("s", "equal_passes", SWITCH, False, "epochs such that K * epochs is the protocol's (Table 5)"),
    ("sr", "epochs", POSITIVE, None, "epochs"),
    ("sr", "batch_size", TWO, None, "images per batch (per process)"),
    ("sr", "channels", TWO, None, "initial channels"),
    ("sr", "cells", POSITIVE, None, "cells (nb201: per stage)"),
    ("sr", "steps_per_epoch", POSITIVE, None, "steps in an epoch, instead of all images"),
    ("sr", "image_size", POSITIVE, 32, "pixels, of folder and shapes (224 with ImageNet's stem)"),
    ("sr", "stem", one_of("small", "imagenet"), None, "stride 1 or 8 (default by data set)"),
    ("sr", "lr", RATE, None, "initial learning rate of the weights (SGD)"),
    ("sr", "lr_min", AMOUNT, None, "last learning rate of the cosine"),
    ("r", "schedule", one_of("cosine", "linear"), None, "learning rate schedule"),
    ("r", "lr_warmup", COUNT, None, "epochs of a linear warm-up of the learning rate"),
    ("sr", "momentum", SHARE, None, "of SGD"),
    ("r", "nesterov", SWITCH, None, "Nesterov momentum"),
    ("sr", "weight_decay", AMOUNT, None, "of the weights"),
    ("sr", "clip", AMOUNT, None, "bound on the norm of the weights' gradient; 0: none"),
    ("s", "theta_reduction", one_of("sum", "mean"), "sum", "over the K gradients of the weights, Eq. 12"),
    ("sr", "cutout", COUNT, None, "side of the erased square in pixels; 0: none"),
    ("r", "drop_path", number(float, 0, 0.99), None, "drop path rate of the last epoch"),
    ("r", "auxiliary", AMOUNT, None, "weight of the auxiliary loss; 0: no such head"),
    ("r", "label_smoothing", SHARE, None, "label smoothing"),
    ("s", "alpha_lr", RATE, None, "learning rate of alpha and beta (Adam)"),
    ("s", "alpha_weight_decay", AMOUNT, None, "of alpha and beta"),
    ("s", "alpha_clip", AMOUNT, None, "bound on the norm of alpha's and beta's gradient; 0: none"),
    ("s", "alpha_reduction", one_of("mean", "sum"), "mean", "over the K gradients of alpha and beta, Eq. 11"),
    ("s", "tau_max", RATE, None, "temperature of the first epoch"),
    ("s", "tau_min", RATE, None, "temperature of the last epoch"),
    ("s", "fraction", number(float, 1e-9, 0.5), None, "of every class, for each of two halves"),
    ("s", "derive", one_of("joint", "sequential", "exact"), "joint", "argmax of Eq. 9; or beta first"),
    ("s", "evaluation_images", COUNT, 2000, "of the supernet accuracy; 0: all of alpha's"),
    ("s", "table", FILE, None, "CSV of NAS-Bench-201: log the derived cell's true accuracy"),
    ("sr", "seed", COUNT, 0, "of everything random"),
    ("sr", "device", one_of("auto", "cpu", "cuda", "mps"), "auto", "where to compute"),
    ("sr", "amp", SWITCH, False, "mixed precision in bfloat16"),
    ("s", "recompute", SWITCH, False, "recompute cells in the backward pass: least memory"),
    ("r", "compile", SWITCH, False, "torch.compile the network"),
    ("sr", "deterministic", SWITCH, False, "deterministic kernels"),
    ("sr", "workers", COUNT, 2, "processes that read images"),
    ("sr", "cache_gib", AMOUNT, 4.0, "GiB up to which a folder's images are kept in memory"),
    ("sr", "out", DIR, None, "where it writes (default: a folder in runs/)"),
    ("sr", "resume", SWITCH, False, "go on from the folder's last checkpoint"),
    ("sr", "config", FILE, None, "settings of a config.json; flags override them"),
    ("sr", "save_minutes", AMOUNT, 10.0, "minutes between checkpoints"),
    ("sr", "quick", SWITCH, False, "small numbers; shapes if no --dataset"),
    ("sr", "quiet", SWITCH, False, "print nothing but errors"),
]
TABLES = {"search": SEARCH, "retrain": RETRAIN}


def defaults_of(stage: str) -> dict:
    """Every setting of a stage with its default in FLAGS."""
    defaults = {name: default for stages, name, _, default, _ in FLAGS if stage[0] in stages}
    return defaults | {f"retrain_{name}": None for name in RETRAIN_FLAGS if stage == "search"}


class Parser(argparse.ArgumentParser):
    """argparse whose errors are a ValueError of one line."""

    def error(self, message: str):
        message = message.removeprefix("argument ").replace(": must be", " must be", 1)
        raise ValueError(f"{message:.500} (see {self.prog} --help)")


def make_parser() -> Parser:
    """Of a search or retrain it returns only the flags that were given: `configure` has the defaults."""
    parser = Parser(PROGRAM, description="Search and retrain with ROME.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for stage, help in dict(search="search a cell", retrain="train the network of a cell from scratch").items():
        usual = defaults_of(stage) | protocol(TABLES[stage], "darts", "cifar10")
        command = commands.add_parser(stage, help=help, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        for stages, name, keywords, _, text in FLAGS:
            flag, has_default = name.replace("_", "-"), usual.get(name) is not None and usual[name] is not False
            if stage[0] in stages:
                command.add_argument(f"--{flag}", help=f"{text} [{usual[name]}]" if has_default else text, **keywords)
            if stage == "search" and name in RETRAIN_FLAGS:
                command.add_argument(f"--retrain-{flag}", help=argparse.SUPPRESS, **keywords)
    command = commands.add_parser("predict", help="classify images with a retrained network")
    command.add_argument("run", metavar="RUN", help="folder of a retrain, or of a search with --retrain")
    command.add_argument("images", nargs="+", metavar="IMAGE")
    commands.add_parser("list", help="every benchmark: flags, settings, the paper's numbers")
    report = commands.add_parser("report", help="what runs found, beside the paper's numbers")
    plot = commands.add_parser("plot", help="draw the curves of runs")
    plot.add_argument("--out", metavar="FILE", help="a picture (.svg, .png, ...); default: curves.svg in the first RUN")
    for command in (report, plot):
        command.add_argument("folders", nargs="+", metavar="RUN", help="folder of a search or a retrain")
    return parser


def words_of(settings: dict) -> list[str]:
    """Settings as flags."""
    words = []
    for name, value in settings.items():
        name = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            words.append(f"--{name}={value}")
    return words


def configure(stage: str, settings: dict, words: list[str] = ()) -> dict:
    """The whole configuration of "search" or "retrain": protocol < --quick < settings < words of a command line."""
    given = vars(make_parser().parse_args([stage, *words_of(settings), *words]))
    del given["command"]
    quick, source, home = given.get("quick", False), given.get("genotype"), "darts"
    if stage == "retrain":
        home = home_space(source)
    elif quick:
        home = "s2"
    space = given.setdefault("space", home)
    dataset = given.setdefault("dataset", "shapes" if quick else "cifar10")
    stem = given.setdefault("stem", "imagenet" if dataset == "imagenet" else "small")
    usual = protocol(TABLES[stage], space, dataset, stem)
    row = defaults_of(stage) | usual | (QUICK[stage] if quick else {})
    if stem == "imagenet" or dataset in PIXELS_32:
        row["image_size"] = 224 if stem == "imagenet" else 32
    if stage == "search":
        passes = row["samples"] * row["epochs"]
        row["samples"] = 1 if given.get("method") == "gdas" else row["samples"]
        row["samples_alpha"] = row["samples_theta"] = given.get("samples", row["samples"])
        if given.get("equal_passes"):
            row["epochs"] = max(1, passes // given.get("samples_theta", row["samples_theta"]))
    config = row | given
    refuse_contradictions(config, row)
    if stage == "retrain":
        if rome.SPACES[home].family != rome.SPACES[space].family:
            raise ValueError(f"--space {space} is not of the genotype's family, {rome.SPACES[home].family}")
        config["genotype"] = str(genotypes.load(source))
    config["out"] = config["out"] or default_folder(config, usual, source)
    return config


def refuse_contradictions(config: dict, row: dict) -> None:
    """ValueError for settings that clash or have no effect. row: the defaults of this configuration."""
    c, search = argparse.Namespace(**config), "method" in config
    family, cifar, step = rome.SPACES[c.space].family, c.dataset in PIXELS_32, 32 if c.stem == "imagenet" else 4
    wrong = {
        "--stem imagenet is for imagenet and folder": c.stem == "imagenet" and (cifar or c.dataset == "shapes"),
        f"--image-size: the images of {c.dataset} have 32 pixels": cifar and c.image_size != 32,
        f"--image-size must be a multiple of {step}, at most 4096": c.image_size % step or c.image_size > 4096,
        "--data: the program draws the shapes itself": c.dataset == "shapes" and c.data != "data",
        "--cache-gib is for --dataset folder": c.dataset != "folder" and c.cache_gib != 4.0,
        "--auxiliary: only the darts spaces have an auxiliary head": not search and c.auxiliary and family != "darts",
    }
    if search:
        unused = {name for name in config if name.startswith("retrain_") and config[name] is not None}
        replaced = c.samples not in (row["samples"], c.samples_alpha, c.samples_theta)
        wrong |= {
            "--retrain-... has no effect without --retrain": unused and c.retrain is None,
            "--baseline has no effect without --retrain": c.baseline and c.retrain is None,
            "--samples has no effect beside --samples-alpha and --samples-theta": replaced,
            "--equal-passes sets the epochs": c.equal_passes and c.epochs != row["epochs"],
            "--table is for nb201": c.table and family != "nb201",
            "--derive has no effect beside --method gdas": c.method == "gdas" and c.derive != "joint",
        }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(message)


def home_space(source: str | None) -> str:
    """The space whose protocol a genotype is retrained by: the one named in its file, else the first of its family."""
    if not source:
        raise ValueError("retrain needs --genotype NAME, FILE or TEXT; published: " + ", ".join(genotypes.PUBLISHED))
    family = rome.family_of(genotypes.load(source))
    related = [name for name, space in rome.SPACES.items() if rome.FAMILIES[space.family] is family]
    named = json.loads(Path(source).read_bytes()).get("space") if source.endswith(".json") else None
    return named if named in related else related[0]


def default_folder(config: dict, usual: dict, source: str | None) -> str:
    """runs/..., named after what differs from the protocol. source: of a retrain, the genotype as it was given."""
    if source:
        cell = hashlib.blake2b(config["genotype"].encode(), digest_size=3).hexdigest()
        name = source if source in genotypes.PUBLISHED else f"cell-{cell}"
        return f"runs/retrain-{name}-{config['dataset']}-s{config['seed']}"
    name = f"{config['space']}-{config['dataset']}-{config['method']}"
    alpha, theta = config["samples_alpha"], config["samples_theta"]
    if {alpha, theta} != {1 if config["method"] == "gdas" else usual["samples"]}:
        name += f"-k{alpha}" if alpha == theta else f"-k{alpha}.{theta}"
    name += f"-e{config['epochs']}" if config["epochs"] != usual["epochs"] else ""
    return f"runs/{name}-s{config['seed']}"


def retrain_config(config: dict, genotype, **more) -> dict:
    """The configuration of a retrain that follows a search."""
    shared = "space dataset data image_size stem seed device amp deterministic workers cache_gib save_minutes resume"
    settings = {name: config[name] for name in (*shared.split(), "quick", "quiet")}
    settings |= {name: config[f"retrain_{name}"] for name in RETRAIN_FLAGS if config[f"retrain_{name}"] is not None}
    settings |= dict(genotype=str(genotype), out=str(Path(config["out"]) / "retrain"))
    return configure("retrain", settings | more)


def stored_settings(path: Path, stage: str) -> dict:
    """The settings of a config.json, without those that follow from others."""
    try:
        text = json.loads(path.read_bytes())
        if text["stage"] != stage:
            raise ValueError(f"it is of a {text['stage']}")
        settings = {name: text["settings"][name] for name in defaults_of(stage)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no configuration of a {stage}: {first_line(error)}") from None
    follow = ["out", "resume", "config"] + (["epochs"] if settings.get("equal_passes") else [])
    follow += [name for name in ("samples_alpha", "samples_theta") if settings.get(name) == settings.get("samples")]
    return {name: value for name, value in settings.items() if name not in follow}


def run_stage(stage: str, words: list[str]) -> None:
    """Runs a search, the retrains that follow it, or a retrain."""
    args, stored = vars(make_parser().parse_args([stage, *words])), {}
    if "config" in args:
        stored = stored_settings(Path(args["config"]), stage)
    elif args.get("resume"):  # flags need not be repeated
        out = args["out"] if "out" in args else configure(stage, {}, words)["out"]
        if (Path(out) / "config.json").exists():
            stored = stored_settings(Path(out) / "config.json", stage) | dict(out=out)
    config, command = configure(stage, stored, words), [PROGRAM, stage, *words]
    if stage == "retrain":
        retrain(config, command)
        return
    retrain_config(config, genotypes.random_cell(config["space"]))  # what is wrong there is said before the search
    if config["retrain"] and config["dataset"] in FOLDERS:
        from tools.folders import list_folder

        list_folder(config, "test")
    genotype = search(config, command)
    if config["retrain"]:
        from tools.baseline import retrain_and_compare

        retrain_and_compare(config, genotype, command)


def main(argv: list[str] | None = None) -> int:
    """The command line. Exit status: 0 done; 2 bad input; 3 numbers went wrong; 130, 143 interrupted, state saved;
    1: another process of torchrun was lost. What went wrong is printed in one line."""
    words, status = sys.argv[1:] if argv is None else argv, 0
    handlers = {number: signal.signal(number, Stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        args = vars(make_parser().parse_args(words))
        command = args.pop("command")
        if command in ("search", "retrain"):
            run_stage(command, words[1:])
        elif command == "predict":
            from tools.predict import predict

            predict(**args)
        else:
            from tools import report

            function = dict(list=report.list_benchmarks, report=report.report, plot=report.plot)[command]
            print(function(**args).rstrip("\n"))
    except SystemExit as error:  # --help
        status = error.code
    except (Exception, KeyboardInterrupt) as error:
        status, text = explain(error)
        print(f"{PROGRAM}: {text}", file=sys.stderr)
    finally:
        Stop.signal = Stop.folder = None
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if dist.is_initialized() and (status != 1 or not torch.cuda.is_initialized()):  # NCCL might wait for a lost rank
        # torch 2.6 joins gloo's threads while it holds the GIL, which they need to free the last tensors: a deadlock.
        time.sleep(0.2)  # they do so first
        dist.destroy_process_group()
    return status


def explain(error: BaseException) -> tuple[int, str]:
    """Exit status and text of what stopped the program. Raises it again if it is an error of the program's own."""
    text, status = first_line(error), 2
    if isinstance(error, KeyboardInterrupt):
        saved = "the state is saved; the same command with --resume goes on" if Stop.folder else "stopped"
        return 128 + Stop.signal, f"{signal.Signals(Stop.signal).name}: {saved}"
    if isinstance(error, FloatingPointError):
        status = 3
    elif isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in text:
        text = "the memory is full; lower --batch-size or --channels, or add --recompute or --amp"
    elif isinstance(error, ModuleNotFoundError):
        text = f"the module {error.name} is missing: pip install {error.name}"
    elif "DataLoader" in text:  # torch raises it at any place
        text = f"a process that reads images was lost ({text}); fewer --workers need less memory"
    elif isinstance(error, RuntimeError) and dist.is_initialized():
        status, text = 1, f"rank {rank_and_world()[0]} lost the others ({text})"
    elif not isinstance(error, (OSError, ValueError)):
        raise error
    saved = Stop.folder and (Stop.folder / "last.pt").exists()
    kept = f"; {Stop.folder} keeps its last checkpoint, from which --resume goes on" if saved else ""
    return status, f"error: {text}{kept}"


if __name__ == "__main__":
    import train  # this file, as the one module that tools/ imports too

    sys.exit(train.main())
