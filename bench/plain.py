"""DARTS_V2's network as people write it, to compare rome.Network with.

NCHW, a ReLU inside every operation, no drop path. It shares no code with rome.py. Its parameters
come in the same order.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F


def conv(c_in, c, kernel, stride=1, padding=0, dilation=1, groups=1):
    return nn.Conv2d(c_in, c, kernel, stride, padding, dilation, groups, bias=False)


def relu_conv_norm(c_in, c):
    return nn.Sequential(nn.ReLU(), conv(c_in, c, 1), nn.BatchNorm2d(c))


def depthwise_separable(c, stride, dilation):
    depthwise = conv(c, c, 3, stride, dilation, dilation, groups=c)
    return nn.Sequential(nn.ReLU(), depthwise, conv(c, c, 1), nn.BatchNorm2d(c))


def sep_conv(c, stride):
    return nn.Sequential(depthwise_separable(c, stride, 1), depthwise_separable(c, 1, 1))


class FactorizedReduce(nn.Module):
    def __init__(self, c_in, c):
        super().__init__()
        self.conv_1 = conv(c_in, c // 2, 1, 2)
        self.conv_2 = conv(c_in, c // 2, 1, 2)
        self.norm = nn.BatchNorm2d(c)

    def forward(self, x):
        x = F.relu(x)
        return self.norm(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], 1))


OPS = {  # of DARTS_V2
    "max_pool_3x3": lambda c, stride: nn.MaxPool2d(3, stride, 1),
    "skip_connect": lambda c, stride: nn.Identity() if stride == 1 else FactorizedReduce(c, c),
    "sep_conv_3x3": sep_conv,
    "dil_conv_3x3": lambda c, stride: depthwise_separable(c, stride, 2),
}


class Cell(nn.Module):
    def __init__(self, pairs, concat, c_prev_prev, c_prev, c, reduction, reduction_prev):
        super().__init__()
        before = FactorizedReduce if reduction_prev else relu_conv_norm
        self.preprocess0 = before(c_prev_prev, c)
        self.preprocess1 = relu_conv_norm(c_prev, c)
        self.inputs, self.concat, self.ops = [], concat, nn.ModuleList()
        for j in range(0, len(pairs), 2):
            for i, op in sorted((i, op) for op, i in pairs[j : j + 2]):
                self.inputs.append(i)
                self.ops.append(OPS[op](c, 2 if reduction and i < 2 else 1))

    def forward(self, s0, s1):
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for j in range(0, len(self.ops), 2):
            a, b = self.inputs[j], self.inputs[j + 1]
            states.append(self.ops[j](states[a]) + self.ops[j + 1](states[b]))
        return torch.cat([states[i] for i in self.concat], 1)


class Network(nn.Module):
    """Without the auxiliary head."""

    def __init__(self, genotype, c, cells, classes):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 3 * c, 3, 1, 1), nn.BatchNorm2d(3 * c))
        self.cells = nn.ModuleList()
        c_prev_prev, c_prev, reduction_prev = 3 * c, 3 * c, False
        for index in range(cells):
            reduction = index in (cells // 3, 2 * cells // 3)
            pairs, concat = genotype[2:] if reduction else genotype[:2]
            c *= 2 if reduction else 1
            widths = c_prev_prev, c_prev, c
            self.cells.append(Cell(pairs, concat, *widths, reduction, reduction_prev))
            c_prev_prev, c_prev, reduction_prev = c_prev, c * len(concat), reduction
        self.classifier = nn.Linear(c_prev, classes)

    def forward(self, x):
        s0 = s1 = self.stem(x)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1)
        return self.classifier(F.adaptive_avg_pool2d(s1, 1).flatten(1)), None
