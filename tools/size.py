"""Counts the parameters and the multiply-adds of a cell's network.

python -m tools.size GENOTYPE [--dataset D] [other flags of train.py retrain]
"""

import sys

import torch
from torch.utils.flop_counter import FlopCounterMode

import genotypes
import train
from tools import common

CLASSES = dict(cifar100=100, imagenet=1000)  # the others: 10


def show(words):
    """Prints the size without the auxiliary head. Multiply-adds: convolutions, linear layers."""
    config = train.configure("retrain", ["--genotype", *words])
    classes, size = CLASSES.get(config["dataset"], 10), config["image_size"]
    genotype = genotypes.load(config["genotype"])
    with torch.device("meta"), FlopCounterMode(display=False) as counter:  # nothing is computed
        network = train.make_network(genotype, config | dict(auxiliary=0), classes).eval()
        network(torch.empty(1, 3, size, size))
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    train.say(
        f"{millions:.3f} M parameters, {counter.get_total_flops() / 2e6:.1f} M multiply-adds for "
        f"an image of {size} pixels; {config['cells']} cells, {config['channels']} channels, "
        f"{classes} classes, no auxiliary head"
    )


HELP = "GENOTYPE and flags of train.py retrain, such as --dataset"
main = common.program("size", show, {"words": dict(nargs="...", metavar="GENOTYPE", help=HELP)})

if __name__ == "__main__":
    sys.exit(main())
