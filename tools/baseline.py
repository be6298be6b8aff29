"""What stands beside a found cell (`search --retrain --baseline N`): random cells, and a linear model on the pixels."""

import statistics
from pathlib import Path

import genotypes
import train
from tools.linear import linear_accuracy


def retrain_and_compare(config: dict, genotype, command: list[str]) -> None:
    """Retrains the found cell and --baseline random ones by one protocol; prints their test accuracies."""
    found, random = train.retrain(train.retrain_config(config, genotype), command), []
    for number in range(1, config["baseline"] + 1):
        cell = genotypes.random_cell(config["space"], train.keyed(config["seed"], "random cell", number))
        out = str(Path(config["out"]) / f"random-{number}")
        random.append(train.retrain(train.retrain_config(config, cell, out=out), command))
    if not random or train.rank_and_world()[0] or config["quiet"]:
        return
    spread = f" ± {statistics.stdev(random):.2f} ({min(random):.2f} to {max(random):.2f})" if len(random) > 1 else ""
    print(f"test accuracy in %, retrained by one protocol:\n  found cell {found:15.2f}")
    print(f"  random cells, {len(random):<3} {statistics.fmean(random):8.2f}{spread}")
    known, test = train.load_data(config, "train"), train.load_data(config, "test")
    if known.pixels is not None and test.pixels is not None:
        linear = linear_accuracy(known.pixels, known.labels, test.pixels, test.labels, len(known.classes))
        print(f"  linear model {linear:13.2f} on the same pixels")
