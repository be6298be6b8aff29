"""Images of every data set, from archives or files to batches: (N, 3, H, W), normalised."""

import hashlib
import os
import random
from contextlib import suppress
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import rome

# Mean and deviation of the training pixels, as R-DARTS has them; of other images they are computed.
STATISTICS = {
    "cifar10": ((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Images(NamedTuple):
    """A split of N images."""

    pixels: Tensor | None  # uint8 (N, H, W, 3); None where worker processes read the files
    labels: Tensor  # (N,)
    classes: list
    files: list = []
    statistics: tuple = ()  # mean and deviation per channel of the pixels / 255


def seed_of(config, name, number=0):
    """The seed of one kind of draw: of its name, the run's seed, and a number such as the epoch."""
    return random.Random(f"{config['seed']} {name} {number}").getrandbits(62)


def barrier():
    """Waits for the other processes, if there are any."""
    if dist.is_initialized():
        dist.barrier()


# --------------------------------------------------------------------------------------------------
# 1. Data sets


def load_data(config: dict, split: str, device="cpu", tell=lambda text: None) -> Images:
    """The "train" or "test" images of config["dataset"]. ValueError if they are not there.

    tell: is called with a line of text when files are read: how many, and which were left out.
    """
    name, size = config["dataset"], config["image_size"]
    if name == "shapes":
        from extra.shapes import SHAPES, draw_shapes

        count, seed = (3200, 0) if split == "train" else (2000, 1)
        images = Images(*draw_shapes(count, seed, size), list(SHAPES))
    elif name in ("folder", "imagenet"):
        from extra import folders

        files, labels, classes, note = folders.list_folder(config["data"], split)
        tell(f"reading {len(files):,} {split} images from {config['data']}")
        if note:
            tell(note)
        pixels = None
        if not config["imagenet"] and len(files) * size**2 * 3 <= 4 * 2**30:  # bytes
            pixels = folders.read_images(files, size, tell=tell)
        else:  # to decode all of ImageNet would take hours
            folders.check_images(files, name == "folder", tell)
        images = Images(pixels, labels, classes, files)
    else:
        images = load_torchvision(name, config["data"], split)
    pixels = None if images.pixels is None else images.pixels.to(device)
    statistics = STATISTICS.get(name) or statistics_of(images, config)
    return images._replace(pixels=pixels, labels=images.labels.to(device), statistics=statistics)


def load_torchvision(name, folder, split):
    """CIFAR or SVHN, which the first process downloads."""
    from torchvision import datasets

    kind = dict(cifar10=datasets.CIFAR10, cifar100=datasets.CIFAR100, svhn=datasets.SVHN)[name]
    part = split if name == "svhn" else split == "train"
    try:
        data = None
        if rome.rank_and_world()[0] == 0:
            data = kind(folder, part, download=True)
        barrier()
        if data is None:
            data = kind(folder, part, download=True)
    except (OSError, RuntimeError) as error:
        url, file = kind.split_list[split][:2] if name == "svhn" else (kind.url, kind.filename)
        archive = os.path.join(folder, file)
        state = "is incomplete or broken" if os.path.exists(archive) else "is not there"
        with suppress(OSError):
            os.rmdir(folder)  # if it is empty
        text = f"no {name}: {archive} {state}, and the download failed ({error!s:.200})"
        raise ValueError(f"{text}; put {url} there") from None
    if name == "svhn":
        pixels = torch.tensor(data.data).permute(0, 2, 3, 1).contiguous()
        return Images(pixels, torch.tensor(data.labels).long(), list("0123456789"))
    return Images(torch.tensor(data.data), torch.tensor(data.targets), list(data.classes))


def statistics_of(images, config):
    """Mean and deviation per channel of the pixels; of files that workers read, those of 2,000."""
    pixels = images.pixels
    if pixels is None:
        from extra import folders

        some = images.files[:: 1 + len(images.files) // 2000]
        pixels = folders.read_images(some, config["image_size"], config["imagenet"])
    moments = torch.zeros(2, 3, dtype=torch.double)  # sums of the values, and of their squares
    for part in pixels.split(100):
        values = part.flatten(0, 2).double() / 255  # (values, 3)
        moments += torch.stack([values.sum(0), values.square().sum(0)])
    mean, square = moments / (pixels.numel() / 3)
    deviation = (square - mean**2).clamp_min(1 / 255**2).sqrt()
    return mean.tolist(), deviation.tolist()


def fingerprint(config, *splits):
    """A text that differs for other images: their number, and a hash of the classes and files."""
    text = [repr(split.classes) for split in splits]
    for split in splits:
        for path in split.files:
            text.append(f"{os.path.relpath(path, config['data'])} {os.path.getsize(path)}")
    digest = hashlib.sha256("\n".join(text).encode(errors="surrogateescape")).hexdigest()
    return f"{sum(len(split.labels) for split in splits)}, digest {digest[:16]}"


# --------------------------------------------------------------------------------------------------
# 2. Which images


def halves(labels, fraction, seed, classes=None):
    """Disjoint random parts (weights, architecture), each with `fraction` of every class.

    ValueError if a part has no image of a class; classes: their names.
    """
    labels = labels.cpu()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]  # class by class, each in random order
    step = round(1 / fraction)  # every step-th image of this order is a like share of each class
    order = order[: len(order) // step * step]  # so that both parts have as many images
    parts = order[::step], order[1::step]
    for label, count in enumerate(labels.bincount().tolist()):
        if not all((labels[part] == label).any() for part in parts):
            name = classes[label] if classes else label
            text = f"class {name} has {count} images, and a part of the search gets"
            raise ValueError(f"{text} 1/{step} of them, here none: it needs {2 * step}")
    return parts


def shuffle(index, size, generator=None, share=False):
    """The images `index` in batches of `size`, shuffled. share: this process's part of each."""
    rank, processes = rome.rank_and_world() if share else (0, 1)
    if len(index) < 2 * processes:
        raise ValueError(f"{len(index)} images are too few: every process needs two")
    order = index[torch.randperm(len(index), generator=generator)]
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) < 2 * processes:  # too few for batch norm
        last = batches.pop()
        batches[-1] = torch.cat([batches[-1], last])
    parts = []
    for batch in batches:
        equal = len(batch) // processes * processes
        parts.append(batch[rank:equal:processes])
    return parts


# --------------------------------------------------------------------------------------------------
# 3. Batches


def stream(images, config, index, role, epoch=0, augment=False, share=False):
    """Yields batches of the images `index`: (N, 3, H, W), normalised; and labels (N,).

    Order and augmentation have seeds of their own, of the run's seed, the role and the epoch.
    share: the processes share every batch.
    """
    device, rank = images.labels.device, rome.rank_and_world()[0] if share else 0
    orders, changes = torch.Generator(), torch.Generator()
    orders.manual_seed(seed_of(config, f"{role} order", epoch))
    changes.manual_seed(seed_of(config, f"{role} augmentation {rank}", epoch))
    batches = shuffle(index, config["batch_size"], orders, share)
    mean, deviation = torch.tensor(images.statistics, device=device).view(2, 3, 1, 1)
    if images.pixels is None:
        from extra import folders

        # The crops of a search are not those of a retrain. None: the centre.
        crops = config["stage"] if augment and config["imagenet"] else None
        files = folders.Files(images.files, config["image_size"], crops, config["imagenet"])
        first = seed_of(config, f"{role} files", epoch)
        read = folders.read_batches(files, batches, first, config["workers"], changes)
    else:
        read = (images.pixels[part.to(device)] for part in batches)
    for part, pixels in zip(batches, read):
        x = pixels.to(device).permute(0, 3, 1, 2)
        if augment and not config["imagenet"]:
            x = crop_and_flip(x, changes)
        x = (x.float() / 255 - mean) / deviation
        if augment and config["cutout"]:
            x = cut_out(x, config["cutout"], changes)
        yield x, images.labels[part.to(device)]


def crop_and_flip(images, generator):
    """Random crops of the images (N, 3, S, S), padded with zeros, half of them flipped.

    The padding has 4 pixels at a size of 32, 2 at 16.
    """
    count, size, pad = len(images), images.shape[-1], images.shape[-1] // 8
    shift = torch.randint(2 * pad + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    rows, columns = shift + torch.arange(size)  # (N, S), places in the padded image
    columns = torch.where(flip, columns.flip(1), columns)
    crops = F.pad(images, [pad] * 4).take_along_dim(rows[:, None, :, None].to(images.device), 2)
    return crops.take_along_dim(columns[:, None, None, :].to(images.device), 3)


def cut_out(images, side, generator):
    """Sets a square of every image (N, 3, S, S) to 0, the mean. Its centre is any pixel."""
    count, size = len(images), images.shape[2]
    centre = torch.randint(size, (2, count, 1), generator=generator)
    place = torch.arange(size) - centre + side // 2  # (2, N, S): 0 in the first row of the square
    rows, columns = (place >= 0) & (place < side)
    square = rows[:, None, :, None] & columns[:, None, None, :]
    return images.masked_fill(square.to(images.device), 0.0)
