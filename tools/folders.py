"""Data sets that are folders of image files: DIR/train/CLASS/*, and DIR/test/CLASS/* or DIR/val/CLASS/*."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from numpy import asarray
from PIL import Image
from torchvision.datasets import ImageFolder, folder
from torchvision.transforms import v2

from train import first_line, keyed

FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF", "WEBP", "GIF")  # no PostScript, for which Pillow runs a program


def list_folder(config: dict, split: str):
    """torchvision's ImageFolder of the "train" or "test" images; it reads no image. ValueError if they do not fit."""
    root = Path(config["data"])
    place = root / "val" if split == "test" and not (root / "test").is_dir() else root / split
    if not place.is_dir():
        raise ValueError(f"no folder {root / split}: --data DIR wants DIR/{{train,test}}/CLASS/ with image files")
    endings = (*folder.IMG_EXTENSIONS, ".gif")  # torchvision's own leave out GIF
    data = ImageFolder(place, is_valid_file=lambda path: path.lower().endswith(endings))
    if len(data.classes) < 2:
        raise ValueError(f"{place} has one class, {data.classes[0]}; a classifier needs two at least")
    odd = set(data.classes) ^ set(folder.find_classes(root / "train")[0])
    if odd:
        raise ValueError(f"{root}: only train or {place.name} has images of {', '.join(sorted(odd)):.200}")
    return data


class Files(torch.utils.data.Dataset):
    """Image files of a role. An item (index, place) is augmented with the randomness of its place."""

    def __init__(self, files: list, config: dict, role: str):
        self.files, size, imagenet = files, config["image_size"], config["stem"] == "imagenet"
        if imagenet and role in ("weights", "architecture", "retrain"):
            jitter = [v2.ColorJitter(0.4, 0.4, 0.4, 0.2)] if role == "retrain" else []
            steps = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *jitter]
        else:
            side = size * 256 // 224 if imagenet else size  # of the shorter side; a long strip is padded
            steps = [v2.Resize(side, max_size=8 * side), v2.CenterCrop(size)]
        self.transform = v2.Compose([*steps, v2.PILToTensor()])

    def read(self, path: str) -> torch.Tensor:
        """uint8 (size, size, 3), RGB."""
        try:
            with Image.open(path, formats=FORMATS) as file:
                if file.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
                    file = Image.fromarray((asarray(file) >> 8).clip(0, 255).astype("uint8"))
                return self.transform(file.convert("RGB")).permute(1, 2, 0)
        except Exception as error:  # whatever Pillow makes of a broken file
            raise ValueError(f"{path} is no readable image: {first_line(error)}") from None

    def __getitem__(self, item) -> torch.Tensor:
        index, place = item
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed(*place, index).initial_seed())
            return self.read(self.files[index])


def read_images(files: list, config: dict) -> torch.Tensor:
    """uint8 (N, size, size, 3), read by threads, not augmented."""
    pixels = torch.empty(len(files), config["image_size"], config["image_size"], 3, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:
        for index, image in enumerate(pool.map(Files(files, config, "test").read, files)):
            pixels[index] = image
    return pixels
