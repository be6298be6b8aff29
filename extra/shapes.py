"""The data set `shapes`: drawn patterns of ten classes. A linear model gets about 15% right."""

from math import cos, pi, sqrt

import torch
from torch import hypot, maximum, minimum


def star(x, y):
    # The angle to the nearest of five tips. There the edge of a pentagram is a line whose normal is
    # at 72 degrees.
    turn = 0.4 * pi
    angle = (torch.atan2(y, x).remainder(turn) - turn / 2).abs()
    return hypot(x, y) * torch.cos(angle - turn) - cos(turn)


def box(x, y, width, height):
    return maximum(x.abs() - width, y.abs() - height)


# class -> signed distance from the shape's edge, in units of its radius, negative inside
SHAPES = {
    "disc": lambda x, y: hypot(x, y) - 0.8,
    "square": lambda x, y: box(x, y, 0.75, 0.75),
    "triangle": lambda x, y: maximum(x.abs() * sqrt(0.75) + y / 2, -y) - 0.5,
    "star": star,
    "plus": lambda x, y: minimum(box(x, y, 0.25, 0.95), box(x, y, 0.95, 0.25)),
    "crescent": lambda x, y: maximum(hypot(x, y) - 0.9, 0.75 - hypot(x - 0.6, y)),
    "ring": lambda x, y: (hypot(x, y) - 0.7).abs() - 0.2,
    "frame": lambda x, y: box(x, y, 0.65, 0.65).abs() - 0.2,
    "bars": lambda x, y: box(x.abs() - 0.55, y, 0.25, 0.85),
    "dots": lambda x, y: hypot(x.abs() - 0.55, y) - 0.4,
}


def draw_shapes(count: int, seed: int, size: int = 32) -> tuple:
    """Images (count, size, size, 3) uint8 and labels (count,) int64, places in SHAPES.

    The arguments determine them. The classes are as even as `count` allows. An image repeats one
    small shape in a turned grid. The shape is brighter than its background. Every pixel is noisy.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randperm(count, generator=generator) % len(SHAPES)
    parts = [draw(part, size, generator) for part in labels.split(1000)]  # bounds the memory
    return torch.cat(parts), labels


def draw(labels, size, generator):
    """Images (N, size, size, 3) uint8 of the labels (N,)."""

    def uniform(low, high, *channels):
        shape = (len(labels), 1, 1, *channels)
        return low + (high - low) * torch.rand(shape, generator=generator)

    column = (4 * torch.arange(size) + 2) / size - 2  # of the pixels; the image spans -2 to 2
    row = column[:, None]
    turn, radius = uniform(0, 2 * pi), uniform(0.7, 0.95)
    x = column * turn.cos() + row * turn.sin() + uniform(-1, 1)  # (N, size, size)
    y = row * turn.cos() - column * turn.sin() + uniform(-1, 1)
    x, y = (x.remainder(2) - 1) / radius, (y.remainder(2) - 1) / radius  # the grid's side is 2
    distance = torch.empty_like(x)
    for label, shape in enumerate(SHAPES.values()):
        drawn = labels == label
        distance[drawn] = shape(x[drawn], y[drawn])
    background = uniform(0, 0.5, 3)
    foreground = background + uniform(0.25, 0.5, 3)
    coverage = (0.5 - distance * radius * size / 4).clamp(0, 1)  # an edge one pixel wide
    slope = uniform(0, 2 * pi)
    ramp = 0.075 * (column * slope.cos() + row * slope.sin())
    images = torch.lerp(background, foreground, coverage[..., None]) + ramp[..., None]
    images += 0.08 * torch.randn(images.shape, generator=generator)
    return (255 * images).clamp(0, 255).byte()
