"""Time of the retrain network against the same network written plainly.

Claim: rome.Network (DARTS_V2, 36 channels, 20 cells, auxiliary head, drop path 0.2, batch 96, float32) takes at most
0.7 of the time of the plain one for forward and backward pass. The plain network is DARTS's, as people run it: NCHW,
eager, a ReLU inside every op, every input of a cell preprocessed with its own ReLU, FactorizedReduce as two
convolutions and a slice. It is written here independently; before timing, both get the same parameters and must give
the same logits and gradients.

    python bench/network.py                    some ten minutes on one core
    python bench/network.py --quick
    python bench/network.py --compile          torch.compile of rome.Network as a third variant; it compiles for
                                               minutes on a CPU, with --cells 5 --channels 16 for fewer
"""

import sys

import torch
import torch.nn as nn
import torch.nn.functional as F
from common import CLOCK, arguments, batch, interleaved, ratios, report, row

import genotypes
import rome

# ----------------------------------------------------------------------------------------------------------------------
# The plain network


def conv(c_in: int, c: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1):
    return nn.Conv2d(c_in, c, kernel, stride, padding, dilation, groups, bias=False)


def relu_conv_bn(c_in: int, c: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Module:
    return nn.Sequential(nn.ReLU(), conv(c_in, c, kernel, stride, padding), nn.BatchNorm2d(c))


def dil_conv(c: int, kernel: int, stride: int, padding: int, dilation: int) -> nn.Module:
    depthwise = conv(c, c, kernel, stride, padding, dilation, groups=c)
    return nn.Sequential(nn.ReLU(), depthwise, conv(c, c, 1), nn.BatchNorm2d(c))


def sep_conv(c: int, kernel: int, stride: int, padding: int) -> nn.Module:
    return nn.Sequential(dil_conv(c, kernel, stride, padding, 1), dil_conv(c, kernel, 1, padding, 1))


class FactorizedReduce(nn.Module):
    def __init__(self, c_in: int, c: int):
        super().__init__()
        self.conv_1, self.conv_2 = conv(c_in, c // 2, 1, 2), conv(c_in, c // 2, 1, 2)
        self.bn = nn.BatchNorm2d(c)

    def forward(self, x):
        x = F.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], 1))


PLAIN_OPS = {
    "max_pool_3x3": lambda c, stride: nn.MaxPool2d(3, stride, 1),
    "avg_pool_3x3": lambda c, stride: nn.AvgPool2d(3, stride, 1, count_include_pad=False),
    "skip_connect": lambda c, stride: nn.Identity() if stride == 1 else FactorizedReduce(c, c),
    "sep_conv_3x3": lambda c, stride: sep_conv(c, 3, stride, 1),
    "sep_conv_5x5": lambda c, stride: sep_conv(c, 5, stride, 2),
    "dil_conv_3x3": lambda c, stride: dil_conv(c, 3, stride, 2, 2),
    "dil_conv_5x5": lambda c, stride: dil_conv(c, 5, stride, 4, 2),
}


class PlainCell(nn.Module):
    def __init__(self, genotype, before_last: int, last: int, c: int, reduction: bool, reduction_previous: bool):
        super().__init__()
        reduce_0 = FactorizedReduce(before_last, c) if reduction_previous else relu_conv_bn(before_last, c, 1)
        self.preprocess = nn.ModuleList([reduce_0, relu_conv_bn(last, c, 1)])
        pairs = genotype.reduce if reduction else genotype.normal
        self.inputs = [i for _, i in pairs]
        self.ops = nn.ModuleList(PLAIN_OPS[op](c, 2 if reduction and i < 2 else 1) for op, i in pairs)
        self.concat = genotype.reduce_concat if reduction else genotype.normal_concat

    def forward(self, s0, s1, drop_path: float):
        states = [self.preprocess[0](s0), self.preprocess[1](s1)]
        for node in range(len(self.ops) // 2):
            ys = []
            for edge in (2 * node, 2 * node + 1):
                y = self.ops[edge](states[self.inputs[edge]])
                if drop_path > 0 and self.training and not isinstance(self.ops[edge], nn.Identity):
                    mask = torch.empty(len(y), 1, 1, 1, device=y.device).bernoulli_(1 - drop_path)
                    y = y / (1 - drop_path) * mask
                ys.append(y)
            states.append(ys[0] + ys[1])
        return torch.cat([states[i] for i in self.concat], 1)


class PlainNetwork(nn.Module):
    def __init__(self, genotype, c: int, cells: int, classes: int, drop_path: float):
        super().__init__()
        self.drop_path, self.auxiliary_at = drop_path, 2 * cells // 3
        self.stem = nn.Sequential(conv(3, 3 * c, 3, 1, 1), nn.BatchNorm2d(3 * c))
        self.cells, before_last, last, reduction_previous = nn.ModuleList(), 3 * c, 3 * c, False
        for index in range(cells):
            reduction = index in (cells // 3, 2 * cells // 3)
            c *= 2 if reduction else 1
            self.cells.append(PlainCell(genotype, before_last, last, c, reduction, reduction_previous))
            before_last, last, reduction_previous = last, c * len(self.cells[-1].concat), reduction
            if index == self.auxiliary_at:
                auxiliary = last
        self.classifier = nn.Linear(last, classes)
        self.auxiliary = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, 3, count_include_pad=False),
            conv(auxiliary, 128, 1),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            conv(128, 768, 2),
            nn.BatchNorm2d(768),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(768, classes),
        )

    def forward(self, x):
        s0 = s1 = self.stem(x)
        for index, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path)
            if index == self.auxiliary_at:
                auxiliary = self.auxiliary(s1)
        return self.classifier(F.adaptive_avg_pool2d(s1, 1).flatten(1)), auxiliary


# ----------------------------------------------------------------------------------------------------------------------


def loss_of(model, images, labels):
    logits, auxiliary = model(images)
    return F.cross_entropy(logits, labels) + 0.4 * F.cross_entropy(auxiliary, labels)


def one_pass(model, images, labels) -> None:
    for p in model.parameters():
        p.grad = None
    loss_of(model, images, labels).backward()


def same(genotype) -> float:
    """Copies parameters in order, and returns the largest relative difference of logits and gradients (float64)."""
    ours = rome.Network(genotype, 8, 6, 10, True, 0.0).double()
    plain = PlainNetwork(genotype, 8, 6, 10, 0.0).double()
    pairs = list(zip(ours.parameters(), plain.parameters(), strict=True))
    # In both, a cell's parameters come in the order preprocessing, then the ops edge by edge.
    with torch.no_grad():
        for p, q in pairs:
            if p.shape != q.shape:
                raise ValueError("the parameters of the two networks do not correspond")
            q.copy_(p)
    images, labels = batch(4)
    outputs = []
    for model in (ours, plain):
        model.train()
        one_pass(model, images.double(), labels)
        outputs.append([*(x.detach() for x in model(images.double())), *(p.grad for p in model.parameters())])
    return max(((a - b).abs().max() / (b.abs().max() + 1e-12)).item() for a, b in zip(*outputs, strict=True))


def main() -> int:
    options = arguments(
        __doc__,
        rounds=dict(type=int, default=5, help="rounds (5)"),
        batch=dict(type=int, default=96, help="batch (96)"),
        channels=dict(type=int, default=36, help="channels (36)"),
        cells=dict(type=int, default=20, help="cells (20)"),
        genotype=dict(default="DARTS_V2", help="a published cell or a genotype file (DARTS_V2)"),
        compile=dict(action="store_true", help="also torch.compile"),
        clock=CLOCK,
    )
    genotype = genotypes.load(options.genotype)
    sizes = options.channels, options.cells, options.rounds, options.batch
    channels, cells, rounds, size = (8, 6, 2, 4) if options.quick else sizes
    rows = [row("largest relative difference, logits and gradients", same(genotype), "", 1e-8, note="float64")]
    ours = rome.Network(genotype, channels, cells, 10, True, 0.2).train()
    plain = PlainNetwork(genotype, channels, cells, 10, 0.2).train()
    images, labels = batch(size)
    plain_images = images.contiguous()
    variants = {
        "plain": lambda _: one_pass(plain, plain_images, labels),
        "rome.Network": lambda _: one_pass(ours, plain_images, labels),
    }
    if options.compile:
        compiled = torch.compile(ours)
        variants["rome.Network, compiled"] = lambda _: one_pass(compiled, plain_images, labels)
    times = interleaved(variants, rounds, options.clock)
    rows += [row(f"forward and backward, {name}", values, "s") for name, values in times.items()]
    rows.append(row("rome.Network / plain", ratios(times["rome.Network"], times["plain"]), "", 0.7))
    if options.compile:
        name = "rome.Network, compiled"
        rows.append(row(f"{name} / plain", ratios(times[name], times["plain"])))
        rows.append(row(f"{name} / eager", ratios(times[name], times["rome.Network"])))
    settings = dict(genotype=options.genotype, channels=channels, cells=cells, batch=size, rounds=rounds)
    return report("network", options, rows, clock=options.clock, **settings)


if __name__ == "__main__":
    sys.exit(main())
