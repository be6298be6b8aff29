r"""Does a supernet learn? The mean loss of its weights in fifths of a run; chance is log(classes).

    python bench/learn.py --dataset folder --data DIR --image-size 16 \
        --channels 8 --batch-size 32 --samples 1

The flags are those of `train.py search`, and --steps. --last says what comes after the last cell:
"gdas", a batch norm with scale and shift and a ReLU, as in the program; "plain", the same without
scale and shift; "darts", nothing. alpha and beta stay uniform, tau is the first epoch's.
"""

import argparse
import itertools
import sys
from pathlib import Path

import torch
import torch.nn as nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rome  # noqa: E402
import train  # noqa: E402


def batches(images, config, index):
    for epoch in itertools.count():
        yield from train.stream(
            images, config, index, train.seed_of(config, "weights", epoch), "search"
        )


def fifths(values):
    parts = torch.tensor(values).tensor_split(5)
    return " ".join(f"{part.mean():.2f}" for part in parts)


def main(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--last", choices=("gdas", "plain", "darts"), default="gdas")
    options, words = parser.parse_known_args(words)
    config = train.configure("search", words)
    device = train.set_up(config)
    about, images = train.prepare(config, None, device, train.load_data(config, "train"))
    index = train.halves(images.labels.cpu(), 0.5, train.seed_of(config, "halves"))[0]
    torch.manual_seed(config["seed"])
    net = train.make_supernet(
        config["space"], config["channels"], config["cells"], len(about["classes"]),
        train.TOPOLOGY[config["method"]],
    ).to(device)  # fmt: skip
    for p in net.architecture_parameters():
        p.data.zero_()
    if options.last == "darts":
        net.body.last = nn.Identity()
    elif options.last == "plain":
        channels = net.body.classifier.in_features
        norm = nn.BatchNorm2d(channels, affine=False, track_running_stats=False)
        net.body.last = nn.Sequential(norm, nn.ReLU()).to(device)
    generator = torch.Generator().manual_seed(config["seed"])
    architect = rome.Architect(net, config["samples"][0], config["clip"], generator)
    sgd = train.make_sgd(net.weights(), config)
    losses, norms = [], []
    for x, y in itertools.islice(batches(images, config, index), options.steps):
        losses.append(architect.weight_step(x, y, config["tau"][0], sgd).item())
        norms.append(architect.gradient_norm.item())
    clipped = 100 * sum(norm > config["clip"] for norm in norms) / len(norms)
    print(f"loss {fifths(losses)}; gradient norm {fifths(norms)}; {clipped:.0f}% of steps clipped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
