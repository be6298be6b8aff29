"""Search and retrain with ROME: settings, data, the two loops, the command line.

    python train.py search  --space darts --dataset cifar10 --retrain
    python train.py retrain --genotype GDAS_V1 --dataset cifar10

A run saves a checkpoint after every epoch; the same command with --resume goes on from it. Every
draw follows from the seed and the epoch. So a resumed run repeats the uninterrupted one: on a CPU
to the bit, on CUDA with --deterministic.
"""

import argparse
import csv
import functools
import hashlib
import io
import itertools
import json
import math
import os
import random
import shlex
import signal
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import genotypes
import rome

# --------------------------------------------------------------------------------------------------
# 1. Settings. A row lists what differs from "default". What has a flag can be changed by it.

SEARCH = {
    # The paper's Section 4; what it leaves open is from DARTS's code, the temperature from GDAS's.
    "default": dict(
        cells=8, channels=16, epochs=50, batch_size=64, samples=[7], lr=0.05, lr_min=0.001,
        weight_decay=3e-4, clip=5.0, alpha_lr=3e-4, alpha_weight_decay=1e-3, tau=[10.0, 0.1],
        fraction=0.5, cutout=0, image_size=32,
    ),
    # The paper's search on ImageNet, on 10% + 10% of its images. A folder keeps both halves.
    "imagenet stem": dict(epochs=30, batch_size=256, samples=[3], image_size=224),
    "imagenet": dict(fraction=0.1),
    # nasbench-1shot1's code for what the paper leaves open; it has 100 epochs, lr 0.025 for GDAS.
    "1shot1": dict(cells=9, batch_size=96, tau=[10.0, 1.0]),
    # Beyond the paper: NAS-Bench-201's network, five cells a stage.
    "nb201": dict(cells=5),
    # Drawn images, to try the program: minutes on a CPU.
    "shapes": dict(
        cells=3, channels=8, epochs=6, batch_size=32, samples=[2], alpha_lr=2e-2, image_size=16,
    ),
}  # fmt: skip
RETRAIN = {
    # The paper's Section 4: "as DARTS".
    "default": dict(
        cells=20, channels=36, epochs=600, batch_size=96, lr=0.025, lr_min=0.0, schedule="cosine",
        lr_warmup=0, nesterov=False, weight_decay=3e-4, clip=5.0, drop_path=0.2, cutout=16,
        auxiliary=0.4, label_smoothing=0.0, image_size=32,
    ),
    # 250 epochs, batch 1024, lr 0.5 are the paper's; the rest is PC-DARTS's code.
    "imagenet stem": dict(
        cells=14, channels=48, epochs=250, batch_size=1024, lr=0.5, schedule="linear", lr_warmup=5,
        weight_decay=3e-5, drop_path=0.0, cutout=0, label_smoothing=0.1, image_size=224,
    ),
    # S1 to S4 "strictly follow R-DARTS": later papers restate its appendix as 16 channels for S2
    # and S4 on CIFAR-10. Its code has 8 cells and 16 channels everywhere, which we take for
    # CIFAR-100 and SVHN. DARTS-PT has 36 channels for S2 and S4 too.
    "s2/cifar10": dict(channels=16),
    "s4/cifar10": dict(channels=16),
    "s1-s4/cifar100": dict(cells=8, channels=16),
    "s1-s4/svhn": dict(cells=8, channels=16),
    # NAS-Bench-201's own training, which does not clip; the paper retrains no 1Shot1 cells.
    "nb201": dict(
        cells=5, channels=16, epochs=200, batch_size=256, lr=0.1, nesterov=True, weight_decay=5e-4,
        clip=0.0, drop_path=0.0, cutout=0, auxiliary=0.0,
    ),
    "1shot1": dict(cells=9, channels=16, drop_path=0.0, auxiliary=0.0),
    "shapes": dict(
        cells=3, channels=8, epochs=5, batch_size=64, lr=0.05, drop_path=0.0, cutout=0,
        auxiliary=0.0, image_size=16,
    ),
}  # fmt: skip
TOPOLOGY = {"rome-v2": "v2", "rome-v1": "v1", "gdas": "none"}
NASBENCH = ("nb201", "1shot1-1", "1shot1-2", "1shot1-3")  # spaces of extra/nasbench.py
# Mean and deviation of the training pixels, as R-DARTS has them; of other images they are computed.
STATISTICS = {
    "cifar10": ((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
DATASETS = (*STATISTICS, "folder", "shapes")


def settings_of(table: dict, space: str, dataset: str, imagenet: bool = False) -> dict:
    """The rows that apply, the special after the general. imagenet: with the stem of stride 8."""
    stem = "imagenet stem" if imagenet or dataset == "imagenet" else ""
    group = "s1-s4" if space in ("s1", "s2", "s3", "s4") else space.partition("-")[0]
    row = {}
    for name in ("default", stem, group, f"{group}/{dataset}", f"{space}/{dataset}", dataset):
        row |= table.get(name, {})
    return row


def seed_of(config, name, epoch=0):
    """The seed of one kind of draw in one epoch."""
    return random.Random(f"{config['seed']} {name} {epoch}").getrandbits(62)


# --------------------------------------------------------------------------------------------------
# 2. Data


class Images(NamedTuple):
    """A split of N images."""

    pixels: Tensor | None  # uint8 (N, H, W, 3); None where worker processes read the files
    labels: Tensor  # (N,)
    classes: list
    files: list
    statistics: tuple = ()  # mean and deviation per channel of the training pixels


def load_data(config: dict, split: str) -> Images:
    """The "train" or "test" images of config["dataset"]. ValueError if they are not there."""
    name, size = config["dataset"], config["image_size"]
    if name == "shapes":
        from extra.shapes import SHAPES, draw_shapes

        count, seed = (3200, 0) if split == "train" else (2000, 1)
        return Images(*draw_shapes(count, seed, size), list(SHAPES), [])
    if name in ("folder", "imagenet"):
        from extra import folders

        found, pixels = folders.list_folder(config["data"], split), None
        if not config["imagenet"] and len(found.files) * size**2 * 3 <= 4 * 2**30:  # bytes
            pixels = folders.read_images(found.files, size)
        else:  # to decode all of ImageNet would take hours
            folders.check_images(found.files, whole=name == "folder")
        if found.note:
            log(config, f"{split} images: {found.note}")
        return Images(pixels, found.labels, found.classes, found.files)
    from torchvision import datasets

    kind = dict(cifar10=datasets.CIFAR10, cifar100=datasets.CIFAR100, svhn=datasets.SVHN)[name]
    rank, processes = rome.rank_and_world()
    try:
        if rank > 0:
            dist.barrier()  # the first process downloads
        data = kind(config["data"], split if name == "svhn" else split == "train", download=True)
        if rank == 0 and processes > 1:
            dist.barrier()
    except (OSError, RuntimeError) as error:
        place = f"put its archive into the folder {config['data']}"
        raise ValueError(f"no {name} ({last_line(error)}); {place}") from None
    if name == "svhn":
        pixels = torch.tensor(data.data).permute(0, 2, 3, 1).contiguous()
        return Images(pixels, torch.tensor(data.labels).long(), list("0123456789"), [])
    return Images(torch.tensor(data.data), torch.tensor(data.targets), list(data.classes), [])


def fingerprint(config, *splits):
    """Tells other images: a hash of the classes, and of the names and sizes of the files."""
    text = [repr(split.classes) for split in splits]
    for split in splits:
        for path in split.files:
            text.append(f"{os.path.relpath(path, config['data'])} {os.path.getsize(path)}")
    return hashlib.sha256("\n".join(text).encode(errors="surrogateescape")).hexdigest()


def statistics_of(images, config):
    """Mean and deviation per channel: the published ones, or those of the training pixels.

    Of files that are not kept in memory they are those of 2,000 images.
    """
    if config["dataset"] in STATISTICS:
        return STATISTICS[config["dataset"]]
    pixels = images.pixels
    if pixels is None:
        from extra import folders

        some = images.files[:: math.ceil(len(images.files) / 2000)]
        pixels = folders.read_images(some, config["image_size"], config["imagenet"])
    counts = [torch.bincount(channel.flatten(), minlength=256) for channel in pixels.unbind(-1)]
    share = torch.stack(counts).double() / pixels[..., 0].numel()  # (3, 256), of every value
    values = torch.arange(256).double() / 255
    mean = share @ values
    deviation = (share @ values**2 - mean**2).clamp_min(1 / 255**2).sqrt()
    return mean.tolist(), deviation.tolist()


def prepare(config, state, device, *splits):
    """What a checkpoint says of the images, and the splits on the device. The first is train."""
    about = dict(classes=splits[0].classes, images=fingerprint(config, *splits))
    about["statistics"] = state["statistics"] if state else statistics_of(splits[0], config)
    placed = []
    for split in splits:
        pixels = None if split.pixels is None else split.pixels.to(device)
        more = dict(labels=split.labels.to(device), statistics=about["statistics"])
        placed.append(split._replace(pixels=pixels, **more))
    return about, *placed


def plan(config, index, share=False, generator=None):
    """The numbers of the images in each batch, shuffled. share: the processes share every batch."""
    rank, processes = rome.rank_and_world() if share else (0, 1)
    if len(index) < 2 * processes:
        raise ValueError(f"{len(index)} images are too few: every process needs two")
    order = index[torch.randperm(len(index), generator=generator)]
    batches = list(order.split(config["batch_size"]))
    if len(batches) > 1 and len(batches[-1]) < 2 * processes:  # too few for batch norm
        batches[-2:] = [torch.cat(batches[-2:])]
    whole = [batch[: len(batch) // processes * processes] for batch in batches]
    return [batch[rank::processes] for batch in whole]


def stream(images: Images, config: dict, index: Tensor, seed: int, augment: str = ""):
    """Yields batches of the images `index`: (N, 3, H, W), normalised; and labels (N,).

    Their order and augmentation follow from the seed. augment: "search", "retrain", or not.
    """
    device, generator = images.labels.device, torch.Generator().manual_seed(seed)
    batches = plan(config, index, augment == "retrain", generator)
    if augment == "retrain":
        generator.manual_seed(seed + rome.rank_and_world()[0])  # each process has other images
    mean, std = torch.tensor(images.statistics, device=device).view(2, 3, 1, 1)
    if images.pixels is None:
        from extra import folders

        imagenet = config["imagenet"]
        crops = augment if imagenet and augment else None
        files = folders.Files(images.files, config["image_size"], crops, imagenet)
        items = [[(n, seed + n) for n in numbers.tolist()] for numbers in batches]  # index, seed
        loader = torch.utils.data.DataLoader(
            files, batch_sampler=items, num_workers=config["workers"], generator=generator,
            worker_init_fn=ignore_interrupt,
        )  # fmt: skip
        read = iter(loader)
    for numbers in batches:
        numbers = numbers.to(device)
        pixels = next(read).to(device) if images.pixels is None else images.pixels[numbers]
        x = pixels.permute(0, 3, 1, 2)
        if augment and not config["imagenet"]:
            x = crop_and_flip(x, generator)
        x = (x.float() / 255 - mean) / std
        if augment and config["cutout"]:
            x = cut_out(x, config["cutout"], generator)
        yield x, images.labels[numbers]


def ignore_interrupt(worker):
    """Ctrl-C is for the main process to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def crop_and_flip(images, generator):
    """Random crops of the images (N, 3, S, S), padded with zeros, half of them flipped.

    The padding has 4 pixels at a size of 32, 2 at 16.
    """
    count, size, pad = len(images), images.shape[-1], images.shape[-1] // 8
    windows = F.pad(images, [pad] * 4).unfold(2, size, 1).unfold(3, size, 1)
    shift = torch.randint(2 * pad + 1, (2, count), generator=generator).to(images.device)
    number = torch.arange(count, device=images.device)
    crops = windows[number, :, shift[0], shift[1]]  # of (N, 3, shifts, shifts, S, S), a view
    flip = torch.rand(count, 1, 1, 1, generator=generator).to(images.device) < 0.5
    return torch.where(flip, crops.flip(3), crops)


def cut_out(images, side, generator):
    """Sets a square of every image (N, 3, S, S) to 0, the mean. Its centre is any pixel."""
    count, size = len(images), images.shape[2]
    centre = torch.randint(size, (2, count, 1), generator=generator).to(images.device)
    distance = torch.arange(size, device=images.device) - centre  # (2, N, S)
    rows, columns = (distance >= -(side // 2)) & (distance < side - side // 2)
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0.0)


def halves(labels, fraction, seed):
    """Disjoint random parts (weights, architecture), each with `fraction` of every class."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]  # class by class, each in random order
    step = round(1 / fraction)
    order = order[: len(order) // step * step]  # so that both parts have as many images
    return order[::step], order[1::step]


# --------------------------------------------------------------------------------------------------
# 3. The folder of a run

# Settings that change no result: a resumed run may have others.
FREE = {"out", "data", "device", "workers", "resume", "retrain"}


@contextmanager
def claimed(config):
    """Inside, the run's folder is this run's own. Yields the checkpoint to go on from, or None.

    ValueError if another run has the folder, or has left its files in it, or had other settings.
    """
    folder, state = Path(config["out"]), None
    folder.mkdir(parents=True, exist_ok=True)
    used = (folder / "config.json").exists() or (folder / "last.pt").exists()
    if used and not config["resume"]:
        other = "--resume goes on with it, --out names another folder"
        raise ValueError(f"{folder} holds a run already; {other}")
    if (folder / "last.pt").exists():
        state = load_checkpoint(folder / "last.pt", config["stage"])
        old = state["settings"]
        changed = [name for name in sorted(config.keys() - FREE) if old.get(name) != config[name]]
        if changed:
            text = ", ".join(f"{name} {old.get(name)} (now {config[name]})" for name in changed)
            raise ValueError(f"{folder} was made with {text}; use the same, or another --out")
    if dist.is_initialized():
        dist.barrier()  # all have looked before the first one writes
    if rome.rank_and_world()[0] > 0:
        yield state
        return
    with genotypes.open_text(folder / "log.txt", "a") as file:
        lock(file, folder)
        versions = dict(torch=torch.__version__, python=sys.version.split()[0])
        text = dict(command=shlex.join(sys.argv), versions=versions, settings=config)
        genotypes.write(folder / "config.json", json.dumps(text, indent=1).encode())
        try:
            yield state
        finally:
            if not (folder / "last.pt").exists():  # no epoch has ended: the folder is free again
                (folder / "config.json").unlink(missing_ok=True)


def lock(file, folder):
    """Until the file is closed no other run can lock it. ValueError if another one has."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another run writes into {folder}; --out names another folder") from None
    except OSError:  # a file system without locks
        pass


def load_checkpoint(path, stage):
    """The checkpoint of a search or a retrain. ValueError if it is broken."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["settings"]["stage"] == stage:
            return state
    except Exception:  # whatever a broken file leads to; torch's own message advises to trust it
        pass
    raise ValueError(f"{path} is no checkpoint of a {stage}, or broken")


def restore(config, state, about, parts):
    """Loads the checkpoint, if there is one, into `parts`. Returns the rows of metrics.csv."""
    if state is None:
        return []
    if state["images"] != about["images"]:
        other = "was made with other images; resume with the same, or use another --out"
        raise ValueError(f"{config['out']} {other}")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    log(config, f"resumed after epoch {len(state['rows'])}")
    return state["rows"]


def end_epoch(config, rows, row, parts, about, images, seconds, device):
    """Writes metrics.csv and the checkpoint. FloatingPointError if a number is not finite.

    images: trained on in so many seconds of the epoch.
    """
    row |= dict(images_per_second=images / seconds, seconds=seconds, peak_mib=peak_mib(device))
    check_finite(torch.tensor([value for value in row.values() if isinstance(value, float)]))
    rows.append(row)
    if rome.rank_and_world()[0] == 0:
        folder, text, content = Path(config["out"]), io.StringIO(), io.BytesIO()
        writer = csv.DictWriter(text, row, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        genotypes.write(folder / "metrics.csv", text.getvalue().encode())
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | about | dict(rows=rows, settings=config), content)
        genotypes.write(folder / "last.pt", content.getvalue())


def check_finite(numbers):
    if not numbers.isfinite().all():
        raise FloatingPointError("a loss or a gradient is not finite")


def log(config, text):
    """Prints and keeps a line. Of several processes the first one speaks."""
    if rome.rank_and_world()[0] == 0:
        with genotypes.open_text(Path(config["out"]) / "log.txt", "a") as file:
            file.write(text + "\n")
        say(("\r\033[K" if is_terminal() else "") + text)


def say(text, end="\n", error=False):
    """Prints. No stream stops a run: one that is closed, or absent, or has another alphabet."""
    stream = sys.stderr if error else sys.stdout
    try:
        if stream:
            letters = getattr(stream, "encoding", None) or "utf-8"
            text = text.encode(letters, "backslashreplace").decode(letters)
            print(text, end=end, file=stream, flush=True)
    except (OSError, ValueError):
        if not error:
            sys.stdout = None  # nobody reads it: `| head`


def is_terminal():
    return getattr(sys.stdout, "isatty", bool)()


def watcher(config, device, steps):
    """A function to call after each of so many steps, with the sums of the losses.

    It says how long it will take and how much memory, shows the step on a terminal, and looks every
    50 steps whether the losses are finite.
    """
    begin, count = time.perf_counter(), itertools.count(1)

    def watch(sums):
        done = next(count)
        if done % 50 == 0:
            check_finite(sums)
        minutes = (time.perf_counter() - begin) / done * (steps - done) / 60
        left = f"{minutes:.1f} min left" if minutes < 100 else f"{minutes / 60:.1f} h left"
        if done == 4:
            log(config, f"about {left}; peak memory {peak_mib(device):.0f} MiB")
        elif is_terminal() and rome.rank_and_world()[0] == 0:
            say(f"\r\033[Kstep {done}/{steps}, {left}", end="")

    return watch


def peak_mib(device):
    """Peak memory so far: allocated on a CUDA device, resident in the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def last_line(error):
    """In the text of an error in a worker process the last line is the error's own."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


# --------------------------------------------------------------------------------------------------
# 4. Search


def set_up(config):
    """The device, the process group of torchrun, and the numerical switches of the process."""
    found = dict(cuda=torch.cuda.is_available(), mps=torch.backends.mps.is_available(), cpu=True)
    name = config["device"]
    if name == "auto":
        name = next(kind for kind in found if found[kind])
    if not found[name]:
        raise ValueError(f"--device {name}: this PyTorch finds no such device; use --device cpu")
    gpus = torch.cuda.device_count() if name == "cuda" else 0
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        own_gpu = gpus >= int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        dist.init_process_group("nccl" if own_gpu else "gloo")
    if config["deterministic"]:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config["deterministic"])
    if name != "cuda":
        return torch.device(name)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % gpus)
    torch.cuda.set_device(device)
    torch.cuda.reset_peak_memory_stats(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = not config["deterministic"]
    return device


def make_supernet(
    space, channels, cells, classes, topology="v2", recompute=False, imagenet=False
) -> nn.Module:
    """The supernet of any space, of rome.py or extra/nasbench.py."""
    if space not in NASBENCH:
        sizes = channels, cells, classes
        return rome.Supernet(space, *sizes, topology, recompute, imagenet=imagenet)
    from extra import nasbench

    return nasbench.Supernet(space, channels, cells, classes, topology)


def make_sgd(parameters, config):
    decay, nesterov = config["weight_decay"], config.get("nesterov", False)
    return torch.optim.SGD(parameters, config["lr"], 0.9, weight_decay=decay, nesterov=nesterov)


def learning_rate(config, epoch):
    """Cosine from lr to lr_min, or PC-DARTS's linear decay; after a linear warm-up."""
    lr, epochs = config["lr"], config["epochs"]
    low = min(lr, config["lr_min"])
    warmup, left = config.get("lr_warmup", 0), epochs - epoch
    if epoch < warmup:
        return lr * (epoch + 1) / warmup
    if config.get("schedule") != "linear":
        return low + 0.5 * (lr - low) * (1 + math.cos(math.pi * epoch / epochs))
    tail = min(5, epochs - 1)  # a flatter line at the end: PC-DARTS, train_imagenet.py
    if left > tail:
        return lr * (left - tail) / (epochs - tail)
    return lr * left / ((epochs - tail) * tail)


@torch.no_grad()
def evaluate(predict, batches):
    """Mean cross-entropy, and accuracy in percent."""
    loss, correct, count = 0, 0, 0
    for images, labels in batches:
        logits = predict(images).float()
        loss += F.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
        count += len(labels)
    return loss.item() / count, 100 * correct.item() / count


def certainty(net):
    """How sure alpha and beta are: their probabilities by cell type, and columns of metrics.csv.

    The columns are means over the rows that have a choice: the entropy in nats and the largest
    probability. times_uniform: the largest probability of alpha times the number of operations.
    """
    tables, columns, times = dict(alpha={}, beta={}), {}, []
    picks = getattr(net, "picks", 1 if net.topology == "v1" else 2)  # logits drawn per node
    for kind, alpha in net.alpha.items():
        logits = dict(alpha=alpha.detach().cpu())
        if kind in net.beta:
            logits["beta"] = net.logits_of_inputs(kind).detach()
        for name, rows in logits.items():
            p = rows.double().softmax(-1)
            tables[name][kind] = p.round(decimals=4).tolist()
            kept = torch.as_tensor(picks) if name == "beta" else 1
            p = p[rows.isfinite().sum(-1) > kept]
            if len(p) > 0:
                columns[f"entropy_{name}_{kind}"] = -p.xlogy(p).sum(-1).mean().item()
                columns[f"top_{name}_{kind}"] = p.max(-1).values.mean().item()
        times.append(alpha.softmax(-1).max(-1).values.mean().item() * alpha.shape[1])
    return tables, columns | dict(times_uniform=sum(times) / len(times))


def search(config: dict):
    """Algorithm 1 over the epochs of a configuration. Returns the genotype, argmax p(z)."""
    device, epochs, seed = set_up(config), config["epochs"], functools.partial(seed_of, config)
    samples = config["samples"][0], config["samples"][-1]  # K of alpha, K of the weights
    rank, processes = rome.rank_and_world()
    if processes > max(samples):
        raise ValueError(f"{processes} processes share K = {max(samples)} sub-networks: use fewer")
    if config["retrain"]:
        later = settings_of(RETRAIN, config["space"], config["dataset"], config["imagenet"])
        check_shares(later, processes)
    with claimed(config) as state:
        train = load_data(config, "train")  # the search never looks at the test images
        if config["retrain"]:
            load_data(config, "test")  # but what the retrain will need is checked first
        fraction = config["fraction"]
        weight_half, architecture_half = halves(train.labels, fraction, seed("halves"))
        about, train = prepare(config, state, device, train)
        some = torch.Generator().manual_seed(seed("evaluation"))
        some = architecture_half[torch.randperm(len(architecture_half), generator=some)[:2000]]
        steps = len(plan(config, weight_half))

        torch.manual_seed(seed("first weights"))
        net = make_supernet(
            config["space"], config["channels"], config["cells"], len(train.classes),
            TOPOLOGY[config["method"]], config["recompute"], config["imagenet"],
        ).to(device)  # fmt: skip
        draws = torch.Generator()
        architect = rome.Architect(net, samples, config["clip"] or math.inf, draws)
        sgd = make_sgd(net.weights(), config)
        alpha, decay = net.architecture_parameters(), config["alpha_weight_decay"]
        adam = torch.optim.Adam(alpha, config["alpha_lr"], (0.5, 0.999), weight_decay=decay)
        log(
            config,
            f"search of {config['space']} on {config['dataset']} ({len(train.classes)} classes, "
            f"{len(weight_half)} images for the weights, {len(architecture_half)} for alpha and "
            f"beta), {config['method']}, K = {samples[0]} for alpha and {samples[1]} for the "
            f"weights, {sum(p.numel() for p in net.weights()):,} weights, {epochs} epochs of "
            f"{steps} steps, on {device}, processes: {processes}",
        )
        parts = dict(net=net, sgd=sgd, adam=adam)
        rows = restore(config, state, about, parts)
        watch = watcher(config, device, (epochs - len(rows)) * steps)

        for epoch in range(len(rows), epochs):
            start, lr = time.perf_counter(), learning_rate(config, epoch)
            share = epoch / max(1, epochs - 1)
            tau = (1 - share) * config["tau"][0] + share * config["tau"][1]  # linear
            sgd.param_groups[0]["lr"] = lr
            draws.manual_seed(seed("sub-networks", epoch))
            torch.manual_seed(seed(f"operations {rank}", epoch))
            D_s = stream(train, config, architecture_half, seed("architecture", epoch), "search")
            D_t = stream(train, config, weight_half, seed("weights", epoch), "search")
            sums = torch.zeros(4, device=device)
            for (x_s, y_s), (x_t, y_t) in zip(D_s, D_t):
                # Algorithm 1: alpha and beta on D_s first, then the weights on D_t.
                with torch.autocast(device.type, torch.bfloat16, enabled=config["amp"]):
                    loss_alpha = architect.architecture_step(x_s, y_s, tau, adam)
                    norm_alpha = architect.gradient_norm
                    loss_theta = architect.weight_step(x_t, y_t, tau, sgd)
                    norm_theta = architect.gradient_norm
                sums += torch.stack([loss_alpha, loss_theta, norm_alpha, norm_theta])
                watch(sums)

            loss_alpha, loss_theta, norm_alpha, norm_theta = (sums / steps).tolist()
            seconds = time.perf_counter() - start
            genotype, (_, sure) = net.genotype(), certainty(net)
            z, free = net.architecture(genotype), genotypes.parameter_free(genotype)
            loss, accuracy = evaluate(functools.partial(net, z=z), stream(train, config, some, 0))
            row = dict(
                epoch=epoch + 1, tau=tau, lr=lr, loss_alpha=loss_alpha, loss_theta=loss_theta,
                gradient_norm_alpha=norm_alpha, gradient_norm=norm_theta, supernet_loss=loss,
                supernet_accuracy=accuracy, genotype=str(genotype), **sure,
                **{f"parameter_free_{kind}": count for kind, count in free.items()},
            )  # fmt: skip
            seen = len(weight_half) + len(architecture_half)
            end_epoch(config, rows, row, parts, about, seen, seconds, device)
            counts = ", ".join(f"{count} {kind}" for kind, count in free.items())
            log(
                config,
                f"epoch {epoch + 1}/{epochs}: loss {loss_theta:.3f} (alpha {loss_alpha:.3f}), "
                f"supernet accuracy {accuracy:.1f}% (of the derived cell, not a result), "
                f"parameter-free ops {counts}, alpha {sure['times_uniform']:.2f} x uniform, tau "
                f"{tau:.2f}, {row['images_per_second']:,.1f} images/s, {row['peak_mib']:.0f} MiB",
            )

        genotype, (tables, sure), folder = net.genotype(), certainty(net), Path(config["out"])
        if rank == 0:
            source = dict(space=config["space"], dataset=config["dataset"], epoch=epochs)
            genotypes.save(genotype, folder / "genotype.json", **source, **tables)
            genotypes.draw(genotype, folder / "cells.svg")
        log(config, f"found {genotype}\n{genotypes.describe(genotype)}")
        if sure["times_uniform"] < 1.1:
            log(config, "alpha is near uniform: the cell is close to a random draw; search longer")
        log(config, f"files in {folder}: genotype.json, cells.svg, metrics.csv, last.pt")
    return genotype


# --------------------------------------------------------------------------------------------------
# 5. Retrain


def make_network(genotype, config, classes):
    """The network of a genotype of any space, by the settings of a retrain."""
    sizes = config["channels"], config["cells"], classes
    if isinstance(genotype, rome.Genotype):
        return rome.Network(genotype, *sizes, config["auxiliary"] > 0, config["imagenet"])
    from extra import nasbench

    return nasbench.Network(genotype, *sizes)


def check_shares(config, processes):
    if config["batch_size"] % processes:
        text = f"{config['batch_size']} images among {processes} processes"
        raise ValueError(f"a retrain's batch is shared: {text} are no equal shares")


def retrain(config: dict) -> float:
    """Trains the network of a genotype from scratch. Returns its last test accuracy in percent."""
    device, epochs, seed = set_up(config), config["epochs"], functools.partial(seed_of, config)
    genotype, (rank, processes) = genotypes.load(config["genotype"]), rome.rank_and_world()
    check_shares(config, processes)
    config = config | dict(processes=processes)  # each has batch norms of its own
    with claimed(config) as state:
        train, test = load_data(config, "train"), load_data(config, "test")
        about, train, test = prepare(config, state, device, train, test)
        train_index, test_index = torch.arange(len(train.labels)), torch.arange(len(test.labels))
        steps = len(plan(config, train_index, share=True))

        torch.manual_seed(seed("first weights"))
        network = make_network(genotype, config, len(train.classes)).to(device)
        model = torch.compile(network, dynamic=False) if config["compile"] else network
        parameters = list(network.parameters())
        sgd = make_sgd(parameters, config)
        own = [p for name, p in network.named_parameters() if "auxiliary" not in name]
        millions = sum(p.numel() for p in own) / 1e6
        criterion = functools.partial(F.cross_entropy, label_smoothing=config["label_smoothing"])
        log(
            config,
            f"retrain on {config['dataset']} ({len(train.classes)} classes, {len(train.labels)} "
            f"training and {len(test.labels)} test images) of {config['cells']} cells, "
            f"{config['channels']} channels, {millions:.3f} M parameters, "
            f"{epochs} epochs of {steps} steps, on {device}, processes: {processes}; "
            f"{genotype}",
        )
        if config["dataset"] == "folder" and epochs == RETRAIN["default"]["epochs"]:
            text = "these are the paper's settings, for 50,000 images"
            log(config, f"{text}; --epochs, --cells and --channels change them")
        parts = dict(network=network, sgd=sgd)
        rows = restore(config, state, about, parts)
        watch = watcher(config, device, (epochs - len(rows)) * steps)

        for epoch in range(len(rows), epochs):
            start, lr = time.perf_counter(), learning_rate(config, epoch)
            drop_path = config["drop_path"] * epoch / epochs
            sgd.param_groups[0]["lr"] = lr
            if drop_path:
                network.set_drop_path(drop_path)
            torch.manual_seed(seed(f"drop path {rank}", epoch))
            batches = stream(train, config, train_index, seed("order", epoch), "retrain")
            sums = torch.zeros(3, device=device)
            model.train()
            for images, labels in batches:
                with torch.autocast(device.type, torch.bfloat16, enabled=config["amp"]):
                    logits, logits_auxiliary = model(images)
                    loss = criterion(logits, labels)
                    if logits_auxiliary is not None:
                        loss = loss + config["auxiliary"] * criterion(logits_auxiliary, labels)
                sgd.zero_grad(set_to_none=True)
                (loss / processes).backward()
                accuracy = 100 * (logits.argmax(1) == labels).float().mean()
                means = torch.stack([loss.detach(), accuracy]) / processes
                rome.sum_over_processes(parameters, means)
                norm = nn.utils.clip_grad_norm_(parameters, config["clip"] or math.inf)
                sgd.step()
                sums += torch.cat([means, norm[None]])
                watch(sums)

            loss_train, accuracy_train, norm = (sums / steps).tolist()
            seconds = time.perf_counter() - start
            batches = stream(test, config, test_index, 0)
            network.eval()
            loss, accuracy = evaluate(lambda images: network(images)[0], batches)
            row = dict(
                epoch=epoch + 1, lr=lr, drop_path=drop_path, loss_train=loss_train,
                accuracy_train=accuracy_train, gradient_norm=norm, loss_test=loss,
                accuracy_test=accuracy,
            )  # fmt: skip
            end_epoch(config, rows, row, parts, about, len(train.labels), seconds, device)
            log(
                config,
                f"epoch {epoch + 1}/{epochs}: loss {loss_train:.3f}, training accuracy "
                f"{accuracy_train:.1f}%, test accuracy {accuracy:.2f}%, "
                f"{row['images_per_second']:,.1f} images/s, {row['peak_mib']:.0f} MiB",
            )

        accuracy = rows[-1]["accuracy_test"]
        log(
            config,
            f"test accuracy {accuracy:.2f}% (error {100 - accuracy:.2f}%) at the last epoch, "
            f"{epochs}; files in {config['out']}: metrics.csv, last.pt",
        )
    return accuracy


# --------------------------------------------------------------------------------------------------
# 6. Command line


class Parser(argparse.ArgumentParser):
    """argparse whose errors are a ValueError of one line."""

    def error(self, message):
        raise ValueError(f"{message.removeprefix('argument '):.500} (see {self.prog} --help)")


def number(kind, least, most=1e9):
    """An argparse type: a number from least to most."""

    def parse(text):
        with suppress(ValueError):
            if least <= kind(text) <= most:
                return kind(text)
        whole = "whole " if kind is int else ""
        text = f"must be a {whole}number from {least:g} to {most:g}, not {text!r:.60}"
        raise argparse.ArgumentTypeError(text)

    return parse


def make_parser(stage):
    """The flags of "search" or "retrain". `configure` sets their defaults, rows of the tables."""
    form, switch = argparse.ArgumentDefaultsHelpFormatter, argparse.BooleanOptionalAction
    parser = Parser(f"train.py {stage}", add_help=False, allow_abbrev=False, formatter_class=form)
    add, path = parser.add_argument, os.path.expanduser
    whole, rate, amount = number(int, 1), number(float, 1e-9), number(float, 0)
    add("--space", choices=[*rome.SPACES, *NASBENCH], default="darts", help="search space")
    if stage == "search":
        add("--method", choices=TOPOLOGY, default="rome-v2", help="gdas: without beta, K = 1")
        add("--samples", type=whole, nargs="+", metavar="K", help="sub-networks of a step; or two")
        add("--alpha-lr", type=rate, help="learning rate of alpha and beta")
        add("--alpha-weight-decay", type=amount, help="of alpha and beta")
        add("--tau", type=rate, nargs=2, metavar=("FIRST", "LAST"), help="temperature")
        add("--recompute", action=switch, default=False, help="recompute cells, to save memory")
        add("--retrain", action=switch, default=False, help="then retrain the found cell")
    else:
        add(
            "--genotype",
            type=path,
            default="",
            help="published name, JSON file, or printed genotype",
        )
        add("--drop-path", type=number(float, 0, 0.99), help="its rate after the last epoch")
        add("--auxiliary", type=amount, help="weight of the auxiliary loss; 0: no such head")
        add("--compile", action=switch, default=False, help="torch.compile the network")
    add("--dataset", choices=DATASETS, default="cifar10", help="folder: DIR/{train,test}/CLASS/*")
    add("--data", type=path, default="data", help="where images are, or are downloaded to")
    add("--image-size", type=whole, help="pixels; folder: with ImageNet's stem from 128 on")
    add("--epochs", type=whole, help="epochs")
    add("--batch-size", type=number(int, 2), help="images of a step")
    add("--channels", type=number(int, 2), help="initial channels")
    add("--cells", type=whole, help="cells (nb201: of a stage)")
    add("--lr", type=rate, help="initial learning rate of the weights")
    add("--weight-decay", type=amount, help="of the weights")
    add("--clip", type=amount, help="bound on the norm of the weights' gradient; 0: none")
    add("--cutout", type=number(int, 0), help="side of the erased square; 0: none")
    add("--seed", type=number(int, 0), default=0, help="of everything random")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute")
    add("--amp", action=switch, default=False, help="mixed precision in bfloat16")
    add("--deterministic", action=switch, default=False, help="deterministic kernels")
    add("--workers", type=number(int, 0), default=2, help="processes that read images")
    add("--out", type=path, help="the run's folder")
    add("--resume", action=switch, default=False, help="go on from the folder's last checkpoint")
    return parser


def configure(stage: str, words: list[str]) -> dict:
    """All settings of a stage: the flags, over the rows of its table. ValueError if they clash."""
    parser = make_parser(stage)
    given = parser.parse_known_args(words)[0]
    if stage == "retrain" and given.genotype:
        genotype = genotypes.load(given.genotype)
        home = {rome.Genotype: "darts", str: "nb201"}.get(type(genotype), "1shot1-1")
        parser.set_defaults(space=genotypes.space_of(given.genotype) or home)
        given = parser.parse_known_args(words)[0]
    imagenet = given.dataset == "imagenet"
    if given.dataset == "folder" and given.image_size:
        imagenet = given.image_size >= 128
    table = SEARCH if stage == "search" else RETRAIN
    row = settings_of(table, given.space, given.dataset, imagenet)
    if stage == "search":
        row["samples"] = [1] if given.method == "gdas" else row["samples"]
        row["out"] = f"runs/{given.space}-{given.dataset}-{given.method}-s{given.seed}"
    elif os.path.isfile(given.genotype):
        row["out"] = str(Path(given.genotype).parent / "retrain")
    else:
        name = given.genotype if given.genotype in genotypes.PUBLISHED else "cell"
        row["out"] = f"runs/retrain-{name}-{given.dataset}-s{given.seed}"
    parser.set_defaults(**row)
    parser.add_argument("-h", "--help", action="help", help="show this and stop")
    config = vars(parser.parse_args(words)) | dict(stage=stage, imagenet=imagenet)
    if stage == "retrain":
        if not given.genotype:
            known = ", ".join(genotypes.PUBLISHED)
            raise ValueError(f"retrain needs --genotype: a file, text, or a name: {known}")
        config["genotype"] = str(genotype)
        family = config["space"] if config["space"] in NASBENCH else "darts"
        if family.partition("-")[0] != home.partition("-")[0]:
            raise ValueError(f"--space {config['space']}: the genotype is not of this space")
    refuse(config)
    return config


def refuse(config):
    """ValueError for a flag that would change the result and cannot be honoured."""
    size, multiple = config["image_size"], 32 if config["imagenet"] else 4
    if config["dataset"] in ("cifar10", "cifar100", "svhn") and size != 32:
        raise ValueError(f"--image-size: the images of {config['dataset']} have 32 pixels")
    if size % multiple or size > 4096:
        raise ValueError(f"--image-size must be a multiple of {multiple}, at most 4096")
    if len(config.get("samples", [])) > 2:
        raise ValueError("--samples takes one or two numbers")
    if config["space"] in NASBENCH:
        only = dict(imagenet="ImageNet's stem", recompute="--recompute", auxiliary="--auxiliary")
        only |= dict(drop_path="--drop-path")
        for name, flag in only.items():
            if config.get(name):
                raise ValueError(f"{flag} is for the spaces darts and s1 to s4")
        if "method" in config:  # ValueError for a method that the space has not
            make_supernet(config["space"], 2, 1, 2, TOPOLOGY[config["method"]])


def words_of_retrain(config):
    """The flags that retrain what a search found."""
    words = ["--genotype", str(Path(config["out"]) / "genotype.json")]
    for name in ("space", "dataset", "data", "image_size", "seed", "device", "workers"):
        words += [f"--{name.replace('_', '-')}", str(config[name])]
    return words + [f"--{name}" for name in ("amp", "deterministic") if config[name]]


def run(words, program):
    if not words or words[0] not in ("search", "retrain"):
        raise ValueError(f"{program} search or {program} retrain, with flags; --help lists them")
    config = configure(words[0], words[1:])
    if words[0] == "retrain":
        retrain(config)
        return
    search(config)
    then = words_of_retrain(config)
    if config["retrain"]:
        if dist.is_initialized():
            dist.barrier()  # until the first process has written the genotype
        retrain(configure("retrain", then + ["--resume"] * config["resume"]))
    else:
        log(config, f"next: {shlex.join(['python', program, 'retrain', *then])}")


def guarded(name: str, function, *arguments) -> int:
    """Calls a program's function. What goes wrong is one line, which begins with the name.

    Exit status: 0 done; 2 bad input; 3 a loss is not finite; 130 Ctrl-C; 1 another process is lost.
    """
    status, text = 2, ""
    try:
        status = function(*arguments) or 0
    except SystemExit:  # --help
        status = 0
    except KeyboardInterrupt:
        status, text = 130, "interrupted; the same command with --resume goes on"
    except FloatingPointError as error:
        status, text = 3, f"{error}; lower --lr or leave out --amp; the last checkpoint is kept"
    except ModuleNotFoundError as error:
        text = f"the module {error.name} is missing: pip install {error.name}"
    except (OSError, ValueError) as error:
        text = last_line(error)
    except (RuntimeError, MemoryError) as error:
        line, text = last_line(error), "the memory is full; lower --batch-size, or add --amp"
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "allocate" not in line:
            status, text = 1, f"a process was lost: {line}"
            if not dist.is_initialized() and "DataLoader" not in line:
                raise
    if text:
        say(("\n" if is_terminal() else "") + f"{name}: error: {text}", error=True)
    if dist.is_initialized():
        # torch 2.6 joins gloo's threads while it holds the GIL, which they need to end.
        time.sleep(0.2)
        dist.destroy_process_group()
    return status


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit status, see `guarded`."""
    if argv is None:  # of train.py, or of a user's own program that adds operations and spaces
        return guarded("train.py", run, sys.argv[1:], sys.argv[0])
    return guarded("train.py", run, list(argv), os.path.relpath(__file__))


if __name__ == "__main__":
    sys.exit(main())
