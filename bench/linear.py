"""A linear classifier on the pixels: the floor that a searched and retrained cell must clear.

    python bench/linear.py --dataset folder --data DIR --image-size 32
    python bench/linear.py --dataset shapes

Multinomial logistic regression on standardised pixels, L-BFGS, at several weight decays. The best of their test
accuracies flatters the linear model.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import train  # noqa: E402


def fit(x: torch.Tensor, labels: torch.Tensor, classes: int, decay: float) -> torch.nn.Linear:
    model = torch.nn.Linear(x.shape[1], classes)
    torch.nn.init.zeros_(model.weight)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels) + decay / 2 * model.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="shapes", choices=train.DATASETS)
    parser.add_argument("--data", default=None)
    parser.add_argument("--image-size", type=int, default=None)
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    config = train.resolve("search", given)
    splits = [train.load_data(config, split) for split in ("train", "test")]
    (x, y), (x_test, y_test) = ((s.pixels.flatten(1).float() / 255, s.labels) for s in splits)
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-3)
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    for decay in (1e-3, 1e-2, 1e-1, 1.0):
        model = fit(x, y, len(splits[0].classes), decay)
        with torch.no_grad():
            accuracies = [100 * (model(a).argmax(1) == b).float().mean().item() for a, b in ((x, y), (x_test, y_test))]
        print(f"weight decay {decay:g}: training accuracy {accuracies[0]:.1f}%, test accuracy {accuracies[1]:.1f}%")


if __name__ == "__main__":
    main()
