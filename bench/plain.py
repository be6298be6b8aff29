"""DARTS's retrain network as people write it: the one that bench/speed.py network compares rome.Network with.

NCHW, eager, a ReLU inside every operation, FactorizedReduce as two strided convolutions. It is written independently of
rome.py; its parameters come in the same order, so that both can be given the same ones.
"""

import torch
import torch.nn.functional as F
from torch import nn


def conv(c_in: int, c: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1):
    return nn.Conv2d(c_in, c, kernel, stride, padding, dilation, groups, bias=False)


def relu_conv_norm(c_in: int, c: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(), conv(c_in, c, 1), nn.BatchNorm2d(c))


def dil_conv(c: int, kernel: int, stride: int, dilation: int) -> nn.Module:
    depthwise = conv(c, c, kernel, stride, dilation * (kernel // 2), dilation, groups=c)
    return nn.Sequential(nn.ReLU(), depthwise, conv(c, c, 1), nn.BatchNorm2d(c))


def sep_conv(c: int, kernel: int, stride: int) -> nn.Module:
    return nn.Sequential(dil_conv(c, kernel, stride, 1), dil_conv(c, kernel, 1, 1))


class FactorizedReduce(nn.Module):
    def __init__(self, c_in: int, c: int):
        super().__init__()
        self.conv_1, self.conv_2 = conv(c_in, c // 2, 1, 2), conv(c_in, c // 2, 1, 2)
        self.norm = nn.BatchNorm2d(c)

    def forward(self, x):
        x = F.relu(x)
        return self.norm(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], 1))


OPS = {  # of DARTS_V2
    "max_pool_3x3": lambda c, stride: nn.MaxPool2d(3, stride, 1),
    "skip_connect": lambda c, stride: nn.Identity() if stride == 1 else FactorizedReduce(c, c),
    "sep_conv_3x3": lambda c, stride: sep_conv(c, 3, stride),
    "dil_conv_3x3": lambda c, stride: dil_conv(c, 3, stride, 2),
}


class Cell(nn.Module):
    def __init__(self, genotype, c_prev_prev: int, c_prev: int, c: int, reduction: bool, reduction_prev: bool):
        super().__init__()
        self.preprocess0 = FactorizedReduce(c_prev_prev, c) if reduction_prev else relu_conv_norm(c_prev_prev, c)
        self.preprocess1 = relu_conv_norm(c_prev, c)
        pairs = genotype.reduce if reduction else genotype.normal
        nodes = [sorted(pairs[j : j + 2], key=lambda pair: pair[1]) for j in range(0, len(pairs), 2)]
        self.inputs = [[i for _, i in node] for node in nodes]
        self.ops = nn.ModuleList(OPS[op](c, 2 if reduction and i < 2 else 1) for node in nodes for op, i in node)
        self.concat = genotype.reduce_concat if reduction else genotype.normal_concat

    def forward(self, s0, s1):
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for j, inputs in enumerate(self.inputs):
            states.append(self.ops[2 * j](states[inputs[0]]) + self.ops[2 * j + 1](states[inputs[1]]))
        return torch.cat([states[i] for i in self.concat], 1)


class Network(nn.Module):
    """With the auxiliary head, without drop path."""

    def __init__(self, genotype, c: int, cells: int, classes: int):
        super().__init__()
        self.auxiliary_at = 2 * cells // 3
        self.stem = nn.Sequential(conv(3, 3 * c, 3, 1, 1), nn.BatchNorm2d(3 * c))
        self.cells, c_prev_prev, c_prev, reduction_prev = (nn.ModuleList(), 3 * c, 3 * c, False)
        for index in range(cells):
            reduction = index in (cells // 3, 2 * cells // 3)
            c *= 2 if reduction else 1
            self.cells.append(Cell(genotype, c_prev_prev, c_prev, c, reduction, reduction_prev))
            c_prev_prev, c_prev, reduction_prev = (c_prev, c * len(self.cells[-1].concat), reduction)
            if index == self.auxiliary_at:
                c_auxiliary = c_prev
        self.classifier = nn.Linear(c_prev, classes)
        pool = nn.AvgPool2d(5, 3, count_include_pad=False)
        layers = [nn.ReLU(), pool, conv(c_auxiliary, 128, 1), nn.BatchNorm2d(128), nn.ReLU(), conv(128, 768, 2)]
        layers += [nn.BatchNorm2d(768), nn.ReLU(), nn.Flatten(), nn.Linear(768, classes)]
        self.auxiliary = nn.Sequential(*layers)

    def forward(self, x):
        s0 = s1 = self.stem(x)
        for index, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1)
            if index == self.auxiliary_at:
                auxiliary = self.auxiliary(s1)
        return self.classifier(F.adaptive_avg_pool2d(s1, 1).flatten(1)), auxiliary
