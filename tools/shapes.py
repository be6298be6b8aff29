"""The data set `shapes`: drawn images of ten classes; a linear model on the pixels gets about 30% of them right."""

import math

import torch
from torch import Tensor


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
    """Images (count, size, size, 3) uint8 and labels (count,) int64, places in SHAPES, determined by the arguments.

    The classes are as even as `count` allows. A shape is brighter than its background; every pixel is noisy.
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
        column = centres - (1 - radius) * uniform(-1, 1, n, 1, 1)  # (n, 1, size), from the shape's middle
        row = (centres - (1 - radius) * uniform(-1, 1, n, 1, 1)).transpose(1, 2)  # (n, size, 1)
        turn = uniform(0, 2 * math.pi, n, 1, 1)
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
