"""Retrains random cells as the found cell was, and fits a linear model to the pixels.

    python -m tools.baseline RUN [--cells N]

RUN is a search. The settings are those of RUN/retrain; if it is not there, the found cell is
retrained first, by its benchmark's row. The cells go into RUN/random-1, RUN/random-2, ... The same
command goes on after an interruption, or with a larger N.
"""

import sys

import torch
import torch.nn.functional as F

import genotypes
import train
from tools import common


def compare(run, cells):
    """Retrains random cells of a search's space, and compares them with the found cell."""
    search, *retrains = common.read_run(run)
    settings = search.settings
    if settings["stage"] != "search":
        raise ValueError(f"{run} is a retrain: give the folder of its search")
    if not search.finished:
        raise ValueError(f"{run} is not finished: --resume goes on with the search")
    if retrains:
        config = retrains[0].settings
    else:
        config = train.configure("retrain", train.words_of_retrain(settings | dict(out=run)))
    config |= dict(out=str(run / "retrain"), resume=True)
    found, random = train.retrain(config), []
    for number in range(1, cells + 1):
        train.say(f"\nrandom cell {number} of {cells}")
        generator = torch.Generator().manual_seed(train.seed_of(settings, "random cell", number))
        cell = str(genotypes.random_cell(settings["space"], generator))
        out = run / f"random-{number}"
        config |= dict(genotype=cell, out=str(out), resume=out.exists())
        random.append(train.retrain(config))

    table = [dict(cell="found", accuracy=[found]), dict(cell="random", accuracy=random)]
    known, test = train.load_data(config, "train"), train.load_data(config, "test")
    if known.pixels is not None and test.pixels is not None:
        table.append(dict(cell="none: a linear model", accuracy=[linear_accuracy(known, test)]))
    better = sum(found > accuracy for accuracy in random)
    train.log(
        config | dict(out=str(run)),
        f"test accuracy in % (all cells retrained alike):\n\n{common.tabulate(table)}\n\n"
        f"The found cell is better than {better} of {cells} random cells, which have "
        f"{min(random):.2f}%\nto {max(random):.2f}%.",
    )


def linear_accuracy(known, test) -> float:
    """Test accuracy in % of ridge regression from pixels to one-hot labels, (X'X + N) W = X'Y.

    known, test: Images of extra/images.py. N: how many are known.
    """
    x, x_test = pixels_of(known), pixels_of(test)
    y = F.one_hot(known.labels, len(known.classes)).float()
    mean, share = x.mean(0), y.mean(0)
    x -= mean
    square = x.T @ x + len(x) * torch.eye(x.shape[1])
    weight = torch.linalg.solve(square, x.T @ (y - share))
    scores = (x_test - mean) @ weight + share
    return 100 * (scores.argmax(1) == test.labels).double().mean().item()


def pixels_of(images):
    """Pixels / 64, so that their deviation is about 1: (N, values).

    Images of more than 32 pixels are averaged down, 1,000 at a time.
    """
    size = min(32, images.pixels.shape[1])
    parts = images.pixels.permute(0, 3, 1, 2).split(1000)
    return torch.cat([F.adaptive_avg_pool2d(part / 64, size) for part in parts]).flatten(1)


CELLS = dict(
    type=train.number(int, 1), default=4, metavar="N", help="random cells; each is a whole retrain"
)
main = common.program("baseline", compare, {"run": common.RUN, "--cells": CELLS})

if __name__ == "__main__":
    sys.exit(main())
