"""What stands beside a found cell (`search --retrain --baseline N`): random cells, and a linear model on the pixels."""

import statistics
from pathlib import Path

import torch
import torch.nn.functional as F

import genotypes
import train


def retrain_and_compare(config: dict, genotype, command: list[str]) -> None:
    """Retrains the found cell and --baseline random ones by one protocol; prints their test accuracies."""
    found, random = train.retrain(train.retrain_config(config, genotype), command), []
    for number in range(1, config["baseline"] + 1):
        cell = genotypes.random_cell(config["space"], train.keyed(config["seed"], "random cell", number))
        out = str(Path(config["out"]) / f"random-{number}")
        random.append(train.retrain(train.retrain_config(config, cell, out=out), command))
    if not random or config["quiet"]:
        return
    known, test = train.load_data(config, "train"), train.load_data(config, "test")
    if train.rank_and_world()[0]:
        return
    spread = f" ± {statistics.stdev(random):.2f} ({min(random):.2f} to {max(random):.2f})" if len(random) > 1 else ""
    print(f"test accuracy in %, retrained by one protocol:\n  found cell {found:15.2f}")
    print(f"  random cells, {len(random):<3} {statistics.fmean(random):8.2f}{spread}")
    if known.pixels is not None and test.pixels is not None:
        linear = linear_accuracy(known.pixels, known.labels, test.pixels, test.labels, len(known.classes))
        print(f"  linear model {linear:13.2f} on the same pixels")


def linear_accuracy(train_images, train_labels, test_images, test_labels, classes: int) -> float:
    """Test accuracy in % of ridge regression to one-hot labels, (X'X + N) W = X'Y. Images: uint8 (N, H, W, 3)."""
    x, x_test, y = inputs(train_images), inputs(test_images), F.one_hot(train_labels, classes).float()
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp_min(1.0)  # a pixel that hardly changes stays small
    x.sub_(mean).div_(deviation)
    weight = torch.linalg.solve(x.T @ x + len(x) * torch.eye(x.shape[1]), x.T @ (y - y.mean(0)))
    scores = (x_test - mean) / deviation @ weight + y.mean(0)
    return 100 * (scores.argmax(1) == test_labels).double().mean().item()


def inputs(images: torch.Tensor) -> torch.Tensor:
    """Float (N, values) from uint8 (N, H, W, 3); images larger than 32 pixels are averaged down, 1,000 at a time."""
    size = min(32, images.shape[1])
    parts = [F.adaptive_avg_pool2d(part.float(), size) for part in images.permute(0, 3, 1, 2).split(1000)]
    return torch.cat(parts).flatten(1)
