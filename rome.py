"""ROME: memory-efficient architecture search by topology disentanglement and gradient accumulation.

An open implementation of "ROME: Robustifying Memory-Efficient NAS via Topology Disentanglement and Gradient
Accumulation" (Wang et al., ICCV 2023, arXiv 2011.11233), in one module on torch alone. Equation numbers are
the paper's.

A search keeps one sampled sub-network in memory. The two edges of a node (beta, Gumbel-Top2) are sampled apart from the
operations on the edges (alpha, Gumbel-Softmax). Gradients are accumulated over K sampled sub-networks: their mean moves
alpha and beta, their sum the weights.

    python rome.py --quick                               every stage in three minutes, no download
    python rome.py --space darts --dataset cifar10       the paper's search on CIFAR-10
    python train.py retrain --genotype GDAS_V1 --dataset cifar10

This file also works alone, copied into another project; its Architect is driven by a loop of your own:

    net = rome.Supernet("darts", channels=16, cells=8, classes=10)
    architect = rome.Architect(net, samples=7)
    for (x_s, y_s), (x_t, y_t) in zip(architecture_half, weight_half):
        architect.architecture_step(x_s, y_s, tau, adam)     # Eq. 11
        architect.weight_step(x_t, y_t, tau, sgd)            # Eq. 12
    print(net.genotype())                                    # argmax p(z; alpha, beta), Eq. 9

The paper leaves much open (cells sharing a sample, temperature, gates, derivation); README.md lists what we chose.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# ----------------------------------------------------------------------------------------------------------------------
# Genotypes and spaces


class Genotype(NamedTuple):
    """A DARTS cell pair: [(op, input), ...] with two entries per intermediate node, and the nodes that are output."""

    normal: list
    normal_concat: list
    reduce: list
    reduce_concat: list


class OneShotGenotype(NamedTuple):
    """A NAS-Bench-1Shot1 cell: an op per node, and the inputs of every node, the output last (0: the cell's input)."""

    ops: tuple
    inputs: tuple


class Space(NamedTuple):
    """A search space: node j keeps `picks[j]` of `candidates[j]` inputs; `ops` holds the choices, a row per edge.

    `ops` maps a cell type to its rows. In the families "darts" and "nb201" a row belongs to an edge, in the order
    (0->first node), (1->first node), ..., node by node; in the family "1shot1" it belongs to a node.
    """

    family: str
    candidates: tuple
    picks: tuple
    ops: dict


def _darts(normal: tuple, reduce: tuple) -> Space:
    return Space("darts", (2, 3, 4, 5), (2, 2, 2, 2), {"normal": normal, "reduce": reduce})


def _one_shot(*picks: int) -> Space:
    return Space("1shot1", tuple(range(1, len(picks) + 1)), picks, {"cell": (ONE_SHOT_OPS[:3],) * (len(picks) - 1)})


def _rows(text: str) -> tuple:
    """Rows of op names from R-DARTS's shorthand, one edge per word: "skip,dil3 max,avg"."""
    short = dict(skip="skip_connect", max="max_pool_3x3", avg="avg_pool_3x3", sep3="sep_conv_3x3")
    short |= dict(dil3="dil_conv_3x3", dil5="dil_conv_5x5")
    return tuple(tuple(short[op] for op in row.split(",")) for row in text.split())


# S0: DARTS's ops without `none`, which the paper leaves out so that Eq. 1 holds.
_S0 = (
    "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
)  # fmt: skip
# S1 to S4: R-DARTS, src/spaces.py. S1 has two ops of its own on every edge.
_S1_NORMAL = _rows(
    "skip,dil3 skip,dil5  skip,dil5 skip,sep3 skip,dil3  max,skip skip,sep3 skip,sep3 skip,dil3 "
    "skip,sep3 max,skip skip,dil3 dil3,dil5 dil3,dil5"
)
_S1_REDUCE = _rows(
    "max,avg max,dil3  max,avg max,avg skip,dil5  max,avg max,sep3 skip,dil3 skip,dil5 "
    "max,avg max,avg skip,dil5 skip,dil5 skip,dil5"
)
_S2 = (("skip_connect", "sep_conv_3x3"),) * 14
_S4 = (("noise", "sep_conv_3x3"),) * 14
_NB201 = (("skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"),) * 6
# The paper's op set (its Figure 4) and, last, the table's own op that the skip connection replaces there.
ONE_SHOT_OPS = ("maxpool3x3", "conv3x3-bn-relu", "skip-connect", "conv1x1-bn-relu")

SPACES = {
    "darts": _darts((_S0,) * 14, (_S0,) * 14),
    "s1": _darts(_S1_NORMAL, _S1_REDUCE),
    "s2": _darts(_S2, _S2),
    "s3": _darts(_S2, _S2),  # R-DARTS's S3 is S2 and `none`; without `none` (Eq. 1) the two are one
    "s4": _darts(_S4, _S4),
    "1shot1-1": _one_shot(1, 2, 2, 2, 2),
    "1shot1-2": _one_shot(1, 1, 2, 2, 3),
    "1shot1-3": _one_shot(1, 1, 1, 2, 2, 2),
    "nb201": Space("nb201", (1, 2, 3), (1, 2, 2), {"cell": _NB201}),
}


def _to_genotype(family: str, nodes: dict):
    """From cell type -> [(inputs, ops) per node] to the family's genotype."""
    if family == "darts":
        pairs = {kind: [pair for node in cell for pair in zip(node[1], node[0])] for kind, cell in nodes.items()}
        concat = list(range(2, 2 + len(nodes["normal"])))
        return Genotype(pairs["normal"], concat, pairs["reduce"], list(concat))
    if family == "1shot1":
        return OneShotGenotype(
            tuple(ops[0] for _, ops in nodes["cell"] if ops), tuple(tuple(inputs) for inputs, _ in nodes["cell"])
        )
    edges = [{i: op for i, op in zip(*node)} for node in nodes["cell"]]
    texts = ["".join(f"{edge.get(i, 'none')}~{i}|" for i in range(n + 1)) for n, edge in enumerate(edges)]
    return "+".join("|" + text for text in texts)


def _from_genotype(genotype) -> dict:
    """The inverse of _to_genotype; inputs ascend within a node, and nb201's `none` edges are left out."""
    if isinstance(genotype, Genotype):
        cells = {"normal": genotype.normal, "reduce": genotype.reduce}
        nodes = {
            kind: [sorted((i, op) for op, i in cell[j : j + 2]) for j in range(0, len(cell), 2)]
            for kind, cell in cells.items()
        }
        return {kind: [([i for i, _ in node], [op for _, op in node]) for node in cell] for kind, cell in nodes.items()}
    if isinstance(genotype, OneShotGenotype):
        ops = [[op] for op in genotype.ops] + [[]]
        return {"cell": [(sorted(inputs), op) for inputs, op in zip(genotype.inputs, ops, strict=True)]}
    if isinstance(genotype, str) and genotype.count("~") == 6 and genotype.count("+") == 2:
        cell = [[text.rsplit("~", 1) for text in node.strip("|").split("|")] for node in genotype.split("+")]
        kept = [[(int(i), op) for op, i in node if op != "none"] for node in cell]
        return {"cell": [([i for i, _ in node], [op for _, op in node]) for node in kept]}
    raise ValueError(f"{genotype!r} is no genotype; genotypes.load reads one from a name, a file or text")


# ----------------------------------------------------------------------------------------------------------------------
# Primitives. A primitive is a module called as op(x, gate). `gate`, (C,) equal numbers or None, scales the output; the
# last batch norm applies it as its scale, where it costs neither memory nor time. `rectified` ops want relu(x), which a
# cell computes once for all of them.


class Norm(nn.BatchNorm2d):
    """Batch norm. Without `affine` (supernet) it keeps no running statistics either: every pass uses the batch's."""

    def __init__(self, channels: int, affine: bool):
        super().__init__(channels, affine=affine, track_running_stats=affine)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        if gate is None:
            return super().forward(x)
        return F.batch_norm(x, None, None, gate, training=True, eps=self.eps)


class TurnedGradient(torch.autograd.Function):
    """A depthwise convolution of stride 1; the gradient of its input is the convolution with the turned filter.

    On a CPU, oneDNN's own gradient takes up to ten times as long where the convolution is dilated.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, *settings) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        ctx.settings = settings
        return F.conv2d(x, weight, None, *settings)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        (x, weight), (for_x, for_weight, *_) = ctx.saved_tensors, ctx.needs_input_grad
        grad_x = F.conv2d(grad, weight.flip(2, 3), None, *ctx.settings) if for_x else None
        grad_weight = torch.nn.grad.conv2d_weight(x, weight.shape, grad, *ctx.settings) if for_weight else None
        return grad_x, grad_weight, None, None, None, None


class DepthwiseConv(nn.Conv2d):
    """A kxk depthwise convolution."""

    def __init__(self, channels: int, kernel: int, stride: int, dilation: int):
        self.thinned = stride == dilation == 2  # reads every second pixel alone: undilated on those
        stride, dilation = (1, 1) if self.thinned else (stride, dilation)
        padding = dilation * (kernel // 2)
        super().__init__(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)
        self.slow = dilation > 1 or (kernel > 3 and stride == 1)  # oneDNN's gradient

    def forward(self, x: Tensor) -> Tensor:
        if self.thinned:
            x = x.permute(0, 2, 3, 1)[:, ::2, ::2].permute(0, 3, 1, 2)  # a gradient in channels-last
        if not self.slow or x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
            return super().forward(x)
        return TurnedGradient.apply(x, self.weight, self.stride, self.padding, self.dilation, self.groups)


class SeparableConv(nn.Module):
    """(depthwise kxk, 1x1, batch norm) once (dil_conv) or twice with a ReLU between (sep_conv), after a ReLU."""

    rectified = True

    def __init__(self, channels: int, stride: int, affine: bool, kernel: int, dilation: int = 1, repeats: int = 1):
        super().__init__()
        self.blocks = nn.ModuleList()
        for step in (stride, 1)[:repeats]:
            depthwise = DepthwiseConv(channels, kernel, step, dilation)
            pointwise = nn.Conv2d(channels, channels, 1, bias=False)
            self.blocks.append(nn.ModuleList([depthwise, pointwise, Norm(channels, affine)]))

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        *first, (depthwise, pointwise, norm) = self.blocks
        for depthwise_1, pointwise_1, norm_1 in first:
            x = F.relu_(norm_1(pointwise_1(depthwise_1(x))))
        return norm(pointwise(depthwise(x)), gate)


class ConvNorm(nn.Module):
    """kxk convolution and batch norm, after a ReLU; in NAS-Bench-1Shot1 (`relu_last`) the ReLU follows them."""

    def __init__(self, channels_in: int, channels: int, kernel: int, affine: bool, stride: int = 1, relu_last=False):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, bias=False)
        self.norm = Norm(channels, affine)
        self.rectified, self.relu_last = not relu_last, relu_last

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        x = self.norm(self.conv(x), gate)
        return F.relu_(x) if self.relu_last else x  # relu(gate * x) = gate * relu(x), as the gate is 1


class FactorizedReduce(nn.Module):
    """Halves the resolution: two 1x1 convolutions of stride 2, one shifted by a pixel; batch norm; after a ReLU."""

    rectified = True

    def __init__(self, channels_in: int, channels: int, affine: bool):
        super().__init__()
        self.even = nn.Conv2d(channels_in, channels // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(channels_in, channels // 2, 1, 2, bias=False)
        self.norm = Norm(channels, affine)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        # The pixels that the two read are the diagonal of every 2x2 block; one view takes both. (oneDNN's own gradient
        # of a 1x1 convolution with stride 2 writes past its memory for a few shapes, seen with torch 2.14.1.)
        x = x.permute(0, 2, 3, 1).unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).diagonal(0, 2, 4)  # (N, H/2, W/2, C, 2)
        weight = torch.stack([self.even.weight.flatten(1), self.odd.weight.flatten(1)])
        x = torch.einsum("nhwcp,poc->nhwpo", x, weight).flatten(3)
        return self.norm(x.permute(0, 3, 1, 2), gate)


class Pool(nn.Module):
    """3x3 pooling; in DARTS's supernet with a batch norm behind it, which its derived network has not."""

    def __init__(self, kind: str, stride: int, norm: Norm | None):
        super().__init__()
        self.pool = nn.MaxPool2d(3, stride, 1) if kind == "max" else nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        self.norm = norm

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return self.norm(self.pool(x), gate) if self.norm is not None else scaled(self.pool(x), gate)


class Identity(nn.Module):
    """skip_connect at stride 1; drop path leaves it alone."""

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return scaled(x, gate)


class Noise(nn.Module):
    """Fresh N(0, 1) of the input's shape, in training and evaluation; the input gets no gradient (R-DARTS, S4)."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return scaled(torch.randn_like(x[:, :, :: self.stride, :: self.stride]), gate)


def scaled(x: Tensor, gate: Tensor | None) -> Tensor:
    return x if gate is None else x * gate.view(-1, 1, 1)


def _dropped_path(x: Tensor, rate: Tensor) -> Tensor:
    """Drop path: every image's x is zeroed with probability `rate`, the others scaled to keep the mean."""
    kept = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= rate
    return x * (kept / (1 - rate)).to(x.dtype)


# op name -> constructor(channels, stride, affine)
PRIMITIVES: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "max_pool_3x3": lambda c, stride, affine: Pool("max", stride, None if affine else Norm(c, affine)),
    "avg_pool_3x3": lambda c, stride, affine: Pool("avg", stride, None if affine else Norm(c, affine)),
    "skip_connect": lambda c, stride, affine: Identity() if stride == 1 else FactorizedReduce(c, c, affine),
    "sep_conv_3x3": lambda c, stride, affine: SeparableConv(c, stride, affine, 3, repeats=2),
    "sep_conv_5x5": lambda c, stride, affine: SeparableConv(c, stride, affine, 5, repeats=2),
    "dil_conv_3x3": lambda c, stride, affine: SeparableConv(c, stride, affine, 3, dilation=2),
    "dil_conv_5x5": lambda c, stride, affine: SeparableConv(c, stride, affine, 5, dilation=2),
    "noise": lambda c, stride, affine: Noise(stride),
}
NB201_PRIMITIVES: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "skip_connect": lambda c, stride, affine: Identity(),
    "nor_conv_1x1": lambda c, stride, affine: ConvNorm(c, c, 1, affine),
    "nor_conv_3x3": lambda c, stride, affine: ConvNorm(c, c, 3, affine),
    "avg_pool_3x3": lambda c, stride, affine: Pool("avg", 1, None),
}
ONE_SHOT_PRIMITIVES: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "maxpool3x3": lambda c, stride, affine: Pool("max", 1, None),
    "conv3x3-bn-relu": lambda c, stride, affine: ConvNorm(c, c, 3, affine, relu_last=True),
    "conv1x1-bn-relu": lambda c, stride, affine: ConvNorm(c, c, 1, affine, relu_last=True),
    "skip-connect": lambda c, stride, affine: Identity(),
}

# ----------------------------------------------------------------------------------------------------------------------
# Sampling, Eq. 2 to 8


def gumbel_noise(count: int, generator: torch.Generator | None = None) -> Tensor:
    """`count` draws of Gumbel(0, 1), -log(-log u), on the generator's device (the CPU without one)."""
    exponential = torch.empty(count, device="cpu" if generator is None else generator.device)
    exponential.exponential_(generator=generator)
    return -exponential.clamp_min_(torch.finfo(exponential.dtype).tiny).log_()


def straight_through(relaxed: Tensor) -> Tensor:
    """Exactly 1 forward, the gradient of `relaxed` backward."""
    return 1 + (relaxed - relaxed.detach())


def _perturbed(logits: Tensor, tau: float, noise: Tensor) -> tuple[Tensor, Tensor]:
    """(log p + g) and its softmax at temperature tau, over the last dimension (Eq. 3, 7)."""
    scores = F.log_softmax(logits, -1) + noise
    return scores, F.softmax(scores / tau, -1)


def gumbel_top_k(
    logits: Tensor, k: int, tau: float, generator: torch.Generator | None = None, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draws k entries of the last dimension without replacement: Eq. 7 and 8, and with k=1 Eq. 2 and 3.

    logits: (..., n). noise: Gumbel noise that broadcasts against it, drawn from `generator` when not given.
    Returns gates (..., k), exactly 1 forward with the gradient of the relaxed softmax (Eq. 7) at the drawn entries, and
    indices (..., k), ascending. ValueError for k outside 1..n or tau <= 0.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"cannot draw {k} of {logits.shape[-1]} entries without replacement")
    if not tau > 0:
        raise ValueError(f"tau is {tau}; it must be positive")
    if noise is None:
        noise = gumbel_noise(logits.numel(), generator).to(logits).view(logits.shape)
    scores, relaxed = _perturbed(logits, tau, noise)
    # The order is taken from the scores: at a low tau several relaxed entries underflow to the same 0.
    indices = scores.detach().topk(k, -1).indices.sort(-1).values
    return straight_through(relaxed.gather(-1, indices)), indices


@functools.cache
def _subsets(n: int, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """All k-subsets of n inputs: (subsets, k) ascending indices, and (subsets, n) membership."""
    members = torch.tensor(list(itertools.combinations(range(n), k)), device=device)
    return members, F.one_hot(members, n).sum(1)


def gumbel_subset(logits: Tensor, n: int, k: int, tau: float, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Topology v1, Eq. 4 to 6: one of all k-subsets of n inputs (the paper's pairs) by Gumbel-Max.

    logits, noise: (..., subsets). Returns gates (..., k), whose gradient is that of Eq. 6 with the relaxed choice (the
    sum over all subsets that hold the input), and the ascending inputs (..., k).
    """
    members, membership = _subsets(n, k, logits.device)
    scores, relaxed = _perturbed(logits, tau, noise)
    inputs = members[scores.detach().argmax(-1)]
    return straight_through((relaxed @ membership.to(relaxed.dtype)).gather(-1, inputs)), inputs


class Architecture(NamedTuple):
    """One sampled z. picks: cell type -> per node a list of (input, row of alpha, op). gates: cell type -> (picks,).

    A gate belongs to a pick (B * A); in the family "1shot1" the picks' gates (B) are followed by the nodes' (A).
    """

    picks: dict
    gates: dict | None = None


# ----------------------------------------------------------------------------------------------------------------------
# Cells


class Concat(torch.autograd.Function):
    """torch.cat over channels whose gradients are dense: batch norm's backward pass is slow on slices of a tensor."""

    @staticmethod
    def forward(ctx, *states: Tensor) -> Tensor:
        ctx.widths = [state.shape[1] for state in states]
        return torch.cat(states, 1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.contiguous(memory_format=torch.channels_last) for part in grad.split(ctx.widths, 1))


def _per_channel(gates: Tensor | None, channels: int):
    """The gates one by one, each as a batch norm's scale (C,); without gates as many None as are asked for."""
    return itertools.repeat(None) if gates is None else iter(gates[:, None].repeat(1, channels).unbind())


class Cell(nn.Module):
    """A DARTS or NAS-Bench-201 cell: every node is the sum of the picked ops on its picked inputs.

    edges: (source, row of op names) of every edge; in a reduction cell those from its two inputs have stride 2.
    channels_in: channels of the cell's inputs, which a 1x1 convolution brings to `channels` (a FactorizedReduce where
    the cell before the last one reduced); empty: the input is used as it is.
    """

    def __init__(
        self, primitives, edges, channels, concat, affine, reduction=False, channels_in=(), previous_reduced=False
    ):
        super().__init__()
        self.channels, self.concat = channels, concat
        self.preprocess = nn.ModuleList(ConvNorm(c, channels, 1, affine) for c in channels_in)
        if previous_reduced:
            self.preprocess[0] = FactorizedReduce(channels_in[0], channels, affine)
        self.edges = nn.ModuleList(
            nn.ModuleList(primitives[name](channels, 2 if reduction and source < 2 else 1, affine) for name in row)
            for source, row in edges
        )

    def forward(self, s0: Tensor, s1: Tensor, picks, gates: Tensor | None = None, drop_path: Tensor | None = None):
        """s0, s1: the outputs of the two cells before, rectified where they are preprocessed."""
        states = [preprocess(s) for preprocess, s in zip(self.preprocess, (s0, s1))] or [s1]
        rectified = {}  # state number -> its ReLU, one tensor for all the convolutions that read it
        gate = _per_channel(gates, self.channels)
        for node in picks:
            total = None
            for source, edge, choice in node:
                op, x = self.edges[edge][choice], states[source]
                if getattr(op, "rectified", False):
                    if source not in rectified:
                        rectified[source] = F.relu(x)
                    x = rectified[source]
                y = op(x, next(gate))
                if drop_path is not None and not isinstance(op, Identity):
                    y = _dropped_path(y, drop_path)
                total = y if total is None else total + y
            states.append(torch.zeros_like(s1) if total is None else total)  # a node of `none` alone
        kept = [states[i] for i in self.concat]
        if torch.compiler.is_compiling():  # to which a Function of our own means nothing
            return torch.cat(kept, 1)
        return Concat.apply(*kept) if len(kept) > 1 else kept[0]


class OneShotCell(nn.Module):
    """A NAS-Bench-1Shot1 cell: ops sit on nodes, every node has its own projection of the cell's input.

    The output node concatenates its picked nodes (zeros for the others) and adds a projection of the input if picked.
    """

    def __init__(self, nodes, channels_in: int, channels: int, affine: bool):
        super().__init__()
        self.channels, widths = channels, [channels] * len(nodes) + [channels * len(nodes)]
        self.project = nn.ModuleList(ConvNorm(channels_in, width, 1, affine, relu_last=True) for width in widths)
        self.nodes = nn.ModuleList(
            nn.ModuleList(ONE_SHOT_PRIMITIVES[name](channels, 1, affine) for name in row) for row in nodes
        )

    def forward(self, s0: Tensor, s1: Tensor, picks, gates: Tensor | None = None, drop_path: Tensor | None = None):
        gate = _per_channel(gates, self.channels)
        *nodes, output = [[(source, choice, next(gate)) for source, _, choice in node] for node in picks]
        states = [s1]
        for number, (node, project) in enumerate(zip(nodes, self.project)):
            inputs = [scaled(states[i] if i else project(s1), g) for i, _, g in node]
            op = self.nodes[number][node[0][1]]
            y = op(functools.reduce(torch.add, inputs), next(gate))
            if drop_path is not None and not isinstance(op, Identity):
                y = _dropped_path(y, drop_path)
            states.append(y)
        kept = {source: g for source, _, g in output}
        total = torch.cat(
            [scaled(s, kept[i]) if i in kept else torch.zeros_like(s) for i, s in enumerate(states) if i], 1
        )
        if 0 not in kept:
            return total
        return total + scaled(self.project[-1](s1), None if kept[0] is None else kept[0].repeat(len(nodes)))


class ResidualBlock(nn.Module):
    """NAS-Bench-201's block between stages: two 3x3 convolutions, the first of stride 2, beside a pooled 1x1 one."""

    def __init__(self, channels_in: int, channels: int, affine: bool):
        super().__init__()
        self.conv_a = ConvNorm(channels_in, channels, 3, affine, stride=2)
        self.conv_b = ConvNorm(channels, channels, 3, affine)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(channels_in, channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv_b(F.relu_(self.conv_a(F.relu(x))))


class Macro(nn.Module):
    """Stem, cells and classifier around cells of given edges: the part that supernet and derived network share.

    edges: cell type -> as for the cell; concat: cell type -> output nodes; affine: as for Norm; stem_width: channels
    of DARTS's stem. Layouts: DARTS (reductions at a third and two thirds of the cells), NAS-Bench-201 (`cells` per
    stage), NAS-Bench-1Shot1 (three stacks).
    """

    def __init__(self, family, edges, concat, channels, cells, classes, affine, imagenet, stem_width):
        super().__init__()
        for name, value in dict(channels=channels, cells=cells, classes=classes).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a positive whole number")
        if channels % 2:
            raise ValueError(f"channels is {channels}; it must be even, as a reduction joins two halves")
        if imagenet and family != "darts":
            raise ValueError(f"the ImageNet stem belongs to the DARTS spaces, not to {family}")
        self.family, self.imagenet = family, imagenet

        def norm(c: int) -> nn.BatchNorm2d:  # the stem's has a scale in the supernet too
            return nn.BatchNorm2d(c, track_running_stats=affine)

        def conv(c_in: int, c: int, stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(c_in, c, 3, stride, 1, bias=False)

        width = stem_width if family == "darts" else channels
        self.stems = nn.ModuleList([nn.Sequential(conv(3, width), norm(width))])
        if imagenet:
            half = width // 2
            stem0 = [conv(3, half, 2), norm(half), nn.ReLU(inplace=True), conv(half, width, 2), norm(width)]
            self.stems = nn.ModuleList([nn.Sequential(*stem0), nn.Sequential(conv(width, width, 2), norm(width))])

        self.cells, self.types, self.auxiliary_at = nn.ModuleList(), [], 2 * cells // 3
        previous, last = width, width  # channels of the two cells before
        if family == "darts":
            previous_reduced = imagenet
            for index in range(cells):
                kind = "reduce" if index in (cells // 3, 2 * cells // 3) else "normal"
                channels = 2 * channels if kind == "reduce" else channels
                arguments = edges[kind], channels, concat[kind], affine, kind == "reduce", (previous, last)
                self.cells.append(Cell(PRIMITIVES, *arguments, previous_reduced))
                self.types.append(kind)
                previous_reduced = kind == "reduce"
                previous, last = last, channels * len(concat[kind])
                if index == self.auxiliary_at:
                    self.auxiliary_channels = last
        elif family == "nb201":
            for stage in range(3):
                if stage:
                    self.cells.append(ResidualBlock(channels, 2 * channels, affine))
                    channels *= 2
                for _ in range(cells):
                    self.cells.append(Cell(NB201_PRIMITIVES, edges["cell"], channels, (3,), affine))
            last = channels
            self.last_norm = norm(last)
        else:
            for index in range(cells):
                if index in (cells // 3, 2 * cells // 3) and index:
                    self.cells.append(nn.MaxPool2d(2, 2, 1))
                    channels *= 2
                self.cells.append(OneShotCell(edges["cell"], last, channels, affine))
                last = channels * len(edges["cell"])
            self.postprocess = ConvNorm(last, channels, 1, affine)
            last = channels
        self.classifier = nn.Linear(last, classes)

    def stem(self, images: Tensor) -> tuple[Tensor, ...]:
        """The cells' input(s) from images (N, 3, H, W): one tensor, or ImageNet's two; rectified, but for nb201."""
        x = self.stems[0](images.contiguous(memory_format=torch.channels_last))
        x = x if self.family == "nb201" else F.relu_(x)
        return (x, F.relu_(self.stems[1](x))) if self.imagenet else (x,)

    def run_cells(self, stem: tuple[Tensor, ...], arch: Architecture, each=None, drop_path: Tensor | None = None):
        """From the stem's output to (features (N, C), the tensor that the auxiliary head reads)."""
        s0, s1, auxiliary = stem[0], stem[-1], None
        gates = arch.gates or {}
        types = iter(self.types) if self.family == "darts" else itertools.repeat("cell")
        for index, cell in enumerate(self.cells):
            if isinstance(cell, (Cell, OneShotCell)):
                kind = next(types)
                arguments = s0, s1, arch.picks[kind], gates.get(kind), drop_path
            else:
                arguments = (s1,)
            out = each(cell, *arguments) if each else cell(*arguments)
            if self.family == "darts" and index + 1 < len(self.cells):
                out = F.relu_(out)  # whoever reads it, reads its ReLU
            s0, s1 = s1, out
            if index == self.auxiliary_at:
                auxiliary = out
        if self.family == "nb201":
            s1 = F.relu_(self.last_norm(s1))
        elif self.family == "1shot1":
            s1 = self.postprocess(F.relu(s1))
        return s1.mean((2, 3)), auxiliary


# ----------------------------------------------------------------------------------------------------------------------
# The supernet


class Supernet(Macro):
    """All candidate operations of a space; a forward pass runs the ones of one sampled architecture.

    space: a name in SPACES, or a Space. cells: cells in all (nb201: per stage). topology: "v2" (a logit per edge,
    Gumbel-Top2), "v1" (a logit per pair), "none" (every edge kept: GDAS). recompute: cells are computed again in the
    backward pass instead of being kept. imagenet: the stem of stride 8. `alpha` and `beta` are parameters by cell type:
    alpha (rows, ops), beta flat, node by node: a logit per candidate input (v2) or per pair of them (v1).
    """

    def __init__(
        self, space="darts", channels=16, cells=8, classes=10, topology="v2", recompute=False, *, imagenet=False
    ):
        if isinstance(space, str) and space not in SPACES:
            raise ValueError(f"no space {space!r}; there are {', '.join(SPACES)}")
        space = SPACES[space] if isinstance(space, str) else space
        if topology not in ("v2", "v1", "none"):
            raise ValueError(f"no topology {topology!r}; there are v2, v1, none")
        if topology == "none" and space.family == "1shot1":
            raise ValueError("a 1shot1 cell cannot be derived without topology parameters; use topology v2 or v1")
        on_edges = space.family != "1shot1"  # where the ops are
        sources = [source for count in space.candidates for source in range(count)]
        edges = {kind: list(zip(sources, rows)) if on_edges else rows for kind, rows in space.ops.items()}
        concat = {kind: tuple(range(2, 2 + len(space.candidates))) for kind in space.ops}
        super().__init__(space.family, edges, concat, channels, cells, classes, False, imagenet, 3 * channels)
        self.space, self.topology, self.recompute, self.on_edges = space, topology, recompute, on_edges
        # Per node: how many inputs it may have, how many it keeps, and how many logits say which.
        keeps = space.candidates if topology == "none" else space.picks
        logits = math.comb if topology == "v1" else lambda n, k: n
        self.nodes = [(n, k, logits(n, k)) for n, k in zip(space.candidates, keeps)]
        rows = {kind: (len(ops), len(ops[0])) for kind, ops in space.ops.items()}
        self.alpha = nn.ParameterDict({kind: 1e-3 * torch.randn(shape) for kind, shape in rows.items()})
        if topology != "none":
            size = sum(count for _, _, count in self.nodes)
            self.beta = nn.ParameterDict({kind: 1e-3 * torch.randn(size) for kind in space.ops})
        self.noisy = any("noise" in row for ops in space.ops.values() for row in ops)
        self.to(memory_format=torch.channels_last)

    def architecture_parameters(self) -> list[nn.Parameter]:
        """alpha and beta, as one list."""
        return [p for name, p in self.named_parameters() if name.startswith(("alpha.", "beta."))]

    def weights(self) -> list[nn.Parameter]:
        """Every parameter that is not alpha or beta (the paper's theta)."""
        return [p for name, p in self.named_parameters() if not name.startswith(("alpha.", "beta."))]

    def forward(self, images: Tensor, arch: Architecture) -> Tensor:
        """Logits (N, classes) of the sub-network `arch` on images (N, 3, H, W); no other op is run."""
        return self.from_stem(self._each(self.stem, images), arch)

    def from_stem(self, stem: tuple[Tensor, ...], arch: Architecture) -> Tensor:
        """The part of `forward` that depends on the architecture; the stem does not."""
        return self.classifier(self.run_cells(stem, arch, self._each)[0])

    def _each(self, function, *arguments):
        if not (self.recompute and torch.is_grad_enabled()):
            return function(*arguments)
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=self.noisy)

    # Sampling z: one draw of noise per architecture, shared by all cells of a type.

    def sample(self, tau: float, generator: torch.Generator | None = None) -> Architecture:
        """One architecture at temperature tau. Its gates carry the gradient to alpha and beta."""
        return self.sample_many(tau, [generator])[0]

    def sample_many(self, tau: float, generators: list) -> list[Architecture]:
        """K architectures, one for each generator. Their indices reach the host in one transfer."""
        first = next(iter(self.alpha.values()))
        size = sum(p.numel() for group in (self.alpha, getattr(self, "beta", {})) for p in group.values())
        noise = torch.stack([gumbel_noise(size, generator) for generator in generators]).to(first)  # (K, size)
        gates, chosen = {}, []
        for kind, alpha in self.alpha.items():
            noise_alpha, noise = noise.tensor_split([alpha.numel()], 1)
            gate, op = gumbel_top_k(alpha, 1, tau, noise=noise_alpha.unflatten(1, alpha.shape))  # Eq. 3
            gate, op = gate[..., 0], op[..., 0]  # (K, rows)
            gates_beta, inputs = [], []
            for node, (n, k, count) in enumerate(self.nodes):
                if self.topology == "none":
                    inputs.append(torch.arange(n, device=op.device).expand(len(op), n))
                    continue
                noise_beta, noise = noise.tensor_split([count], 1)
                if self.topology == "v2":
                    drawn = gumbel_top_k(self._beta(kind, node), k, tau, noise=noise_beta)  # Eq. 7, 8
                else:
                    drawn = gumbel_subset(self._beta(kind, node), n, k, tau, noise_beta)  # Eq. 4 to 6
                gates_beta.append(drawn[0])
                inputs.append(drawn[1])
            inputs = torch.cat(inputs, 1)  # (K, picks)
            starts = [self._row(node, 0) for node, (_, k, _) in enumerate(self.nodes) for _ in range(k)]
            rows = torch.tensor(starts).to(op.device, non_blocking=True) + (inputs if self.on_edges else 0 * inputs)
            op = F.pad(op, (0, 1)).gather(1, rows)  # the pad: 1shot1's output node has no op
            if self.on_edges:
                gate = gate.gather(1, rows)
                gates[kind] = torch.cat(gates_beta, 1) * gate if gates_beta else gate  # B * A
            else:
                gates[kind] = torch.cat([*gates_beta, gate], 1)
            chosen.append(torch.stack([inputs, op], -1))  # (K, picks, 2)
        samples = torch.cat(chosen, 1).tolist()  # the one wait for the device
        return [
            Architecture(self._picks(iter(pairs)), {kind: gate[k] for kind, gate in gates.items()})
            for k, pairs in enumerate(samples)
        ]

    def _picks(self, pairs) -> dict:
        """The picks of an Architecture from (input, op) pairs in the order of cell types and nodes."""
        nodes = list(enumerate(self.nodes))
        return {
            kind: [[(i, self._row(node, i), op) for i, op in itertools.islice(pairs, k)] for node, (_, k, _) in nodes]
            for kind in self.alpha
        }

    def _row(self, node: int, i: int) -> int:
        """The row of alpha that says the op on the edge from input i to the node (1shot1: the op of the node)."""
        return sum(self.space.candidates[:node]) + i if self.on_edges else node

    def _beta(self, kind: str, node: int) -> Tensor:
        counts = [count for _, _, count in self.nodes]
        return self.beta[kind].split(counts)[node]

    # p(z; alpha, beta) and its argmax

    def _log_topology(self, kind: str, node: int, exact: bool) -> tuple[Tensor, Tensor]:
        """Subsets of the node's inputs (subsets, k) that a genotype may keep, and log p of each (subsets,)."""
        n, k, _ = self.nodes[node]
        k = self.space.picks[node] if self.space.family == "darts" else k
        members, _ = _subsets(n, k, self.alpha[kind].device)
        if self.topology == "none":
            return members, self.alpha[kind].new_zeros(len(members))
        log_p = F.log_softmax(self._beta(kind, node), -1)
        if self.topology == "v1":
            return members, log_p
        if not exact:
            return members, log_p[members].sum(-1)
        orders = members[:, list(itertools.permutations(range(k)))]  # (subsets, k!, k)
        drawn = F.one_hot(orders, n)
        drawn = (drawn.cumsum(-2) - drawn).bool()  # (subsets, k!, k, n): the inputs gone before each draw
        left = log_p.expand(drawn.shape).masked_fill(drawn, -math.inf).logsumexp(-1)
        return members, (log_p[orders] - left).sum(-1).logsumexp(-1)

    @torch.no_grad()
    def genotype(self, rule: str = "joint"):
        """The derived cell, argmax p(z; alpha, beta) of Eq. 9.

        rule: "joint" (as Eq. 9 is printed), "exact" (with the true probability of an unordered draw in place of v2's
        product), "sequential" (the best inputs by beta alone, then the best ops). topology "none": per node the inputs
        with the largest best-op probability (DARTS's rule); nb201 keeps every edge there.
        """
        if rule not in ("joint", "exact", "sequential"):
            raise ValueError(f"no derivation rule {rule!r}; there are joint, exact, sequential")
        chosen = {}
        for kind, alpha in self.alpha.items():
            best, op = F.log_softmax(alpha, -1).max(-1)
            names = [row[i] for row, i in zip(self.space.ops[kind], op.tolist())]
            chosen[kind] = []
            for node in range(len(self.nodes)):
                members, score = self._log_topology(kind, node, rule == "exact")
                if self.on_edges and (rule != "sequential" or self.topology == "none"):
                    score = score + best[self._row(node, 0) + members].sum(-1)
                inputs = members[score.argmax()].tolist()
                rows = [self._row(node, i) for i in inputs[: None if self.on_edges else 1]]
                chosen[kind].append((inputs, [names[row] for row in rows if row < len(names)]))
        return _to_genotype(self.space.family, chosen)

    def log_prob(self, genotype, exact: bool = False) -> Tensor:
        """log p(genotype; alpha, beta), 0-dim: Eq. 9 as printed, the product of p(e) p(o|e) over the picked edges.

        For v2 the printed product over two edges does not sum to one over pairs: an unordered draw has the probability
        p_i p_k (1 / (1 - p_i) + 1 / (1 - p_k)), which `exact` uses. ValueError for topology "none", which has no p(e),
        and for a genotype outside the space.
        """
        if self.topology == "none":
            raise ValueError('topology "none" keeps every edge: p(z) of Eq. 9 needs beta')
        terms = []
        for kind, nodes in self.architecture(genotype).picks.items():
            log_alpha = F.log_softmax(self.alpha[kind], -1)
            for node, picks in enumerate(nodes):
                members, topology = self._log_topology(kind, node, exact)
                terms.append(topology[(members == members.new_tensor([i for i, _, _ in picks])).all(-1)].sum())
                terms += [log_alpha[row, op] for row, op in {pick[1:] for pick in picks} if row < len(log_alpha)]
        return torch.stack(terms).sum()

    def architecture(self, genotype) -> Architecture:
        """The genotype as an Architecture without gates, to run it in the supernet. ValueError outside the space."""
        cells, picks = _from_genotype(genotype), {}
        if set(cells) != set(self.alpha) or any(len(cell) != len(self.nodes) for cell in cells.values()):
            raise ValueError(f"{genotype} has not the cells and nodes of this space")
        for kind, cell in cells.items():
            picks[kind] = []
            for node, (inputs, ops) in enumerate(cell):
                n, k, _ = self.nodes[node]
                rows = [self._row(node, i) for i in inputs]
                names = ops if self.on_edges else ops * len(inputs)  # a 1shot1 node has one op for all its inputs
                fits = len(set(inputs)) == len(inputs) in (k, self.space.picks[node]) and set(inputs) <= set(range(n))
                if not (fits and all(name in self.space.ops[kind][row] for row, name in zip(rows, names))):
                    raise ValueError(f"node {node} of the {kind} cell, {ops} from {inputs}, is not in this space")
                choices = [self.space.ops[kind][row].index(name) for row, name in zip(rows, names)] or [0] * len(rows)
                picks[kind].append(list(zip(inputs, rows, choices)))
        return Architecture(picks)

    def cell(self, arch: Architecture):
        """The genotype of a sampled architecture."""
        nodes = {}
        for kind, picks in arch.picks.items():
            ops, nodes[kind] = self.space.ops[kind], []
            for node in picks:
                rows = [(row, op) for _, row, op in (node if self.on_edges else node[:1]) if row < len(ops)]
                nodes[kind].append(([i for i, _, _ in node], [ops[row][op] for row, op in rows]))
        return _to_genotype(self.space.family, nodes)


# ----------------------------------------------------------------------------------------------------------------------
# The architect: Algorithm 1


@contextlib.contextmanager
def _frozen(parameters: list[nn.Parameter]):
    """No gradient for these parameters inside: neither time nor memory is spent on it."""
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def _gradient(leaf: Tensor) -> Tensor:
    """The leaf's gradient, zero where no path led to it (S4's noise passes none on)."""
    return leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)


def _average_over_ranks(parameters: list[nn.Parameter], loss: Tensor) -> Tensor:
    """Gradients and loss averaged over the ranks of torch.distributed, if any, in one all-reduce of one flat buffer.

    A gradient that no rank has stays None.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return loss
    present = torch.tensor([p.grad is not None for p in parameters]).to(loss)
    grads = [_gradient(p).flatten() for p in parameters]
    buffer = torch.cat([*grads, present, loss.view(1)])
    torch.distributed.all_reduce(buffer)
    sizes = [grad.numel() for grad in grads]
    *grads, present, total = buffer.split([*sizes, len(parameters), 1])
    world = torch.distributed.get_world_size()
    for p, grad, ranks in zip(parameters, grads, present.tolist()):
        p.grad = (grad / world).view_as(p) if ranks else None
    return total[0] / world


class Architect:
    """One iteration of Algorithm 1, in two steps that each accumulate gradients over K sampled sub-networks.

    samples: K, or (K for alpha and beta, K for the weights). clip: bound on the L2 norm of the reduced weight gradient,
    or None; architecture_clip likewise for alpha and beta. generator: a torch.Generator, or a function (role, k) that
    returns one, role being "architecture" or "weights"; None: torch's default. architecture_reduction,
    weight_reduction: "mean" or "sum" over K. autocast: the dtype of mixed precision, or None; with float16 the losses
    are scaled.

    After a step, `gradient_norm` holds the norm before the clip (0-dim tensor), and `last`, by role, the architecture
    and the loss of every sample.
    """

    def __init__(
        self,
        net: Supernet,
        samples: int | tuple[int, int] = 7,
        clip: float | None = 5.0,
        generator=None,
        *,
        architecture_clip: float | None = None,
        architecture_reduction: str = "mean",
        weight_reduction: str = "sum",
        autocast: torch.dtype | None = None,
    ):
        samples = tuple(samples) if isinstance(samples, (tuple, list)) else (samples, samples)
        if len(samples) != 2 or any(type(k) is not int or k < 1 for k in samples):
            raise ValueError(f"samples is {samples}; it must be a positive whole number, or two of them")
        if not {architecture_reduction, weight_reduction} <= {"mean", "sum"}:
            raise ValueError("a reduction is mean or sum")
        self.net, self.samples, self.generator, self.autocast = net, samples, generator, autocast
        self.parameters = {"architecture": net.architecture_parameters(), "weights": net.weights()}
        self.clips = {"architecture": architecture_clip, "weights": clip}
        self.reductions = {"architecture": architecture_reduction, "weights": weight_reduction}
        device = next(net.parameters()).device.type
        self.scalers = {
            role: torch.amp.GradScaler(device, enabled=autocast is torch.float16)
            for role in ("architecture", "weights")
        }
        self.gradient_norm, self.last = None, {}

    def architecture_step(self, images: Tensor, labels: Tensor, tau: float, optimizer) -> Tensor:
        """Eq. 11: one step of alpha and beta along the mean gradient of K sampled sub-networks on one batch.

        images (N, 3, H, W), labels (N,). Nothing but alpha and beta changes. Returns the mean loss (0-dim, detached).
        """
        net, role = self.net, "architecture"
        archs = self._sample(role, self.samples[0], tau)
        # Every backward pass ends at the gates; the small graph from there to alpha and beta is walked once, last.
        leaves = [Architecture(z.picks, {t: g.detach().requires_grad_() for t, g in z.gates.items()}) for z in archs]
        optimizer.zero_grad(set_to_none=True)
        with _frozen(self.parameters["weights"]):
            with torch.no_grad(), self._precision(images):
                stem = net.stem(images)  # the same for all samples
            loss = self._accumulate(role, stem, labels, leaves)
        pairs = [(z.gates[kind], leaf.gates[kind]) for z, leaf in zip(archs, leaves) for kind in z.gates]
        torch.autograd.backward([gate for gate, _ in pairs], [_gradient(leaf) for _, leaf in pairs])
        return self._step(role, loss, optimizer)

    def weight_step(self, images: Tensor, labels: Tensor, tau: float, optimizer) -> Tensor:
        """Eq. 12: one step of the weights along the sum of the gradients of K sampled sub-networks, clipped once.

        images (N, 3, H, W), labels (N,). Nothing but the weights changes; the ops that no sample ran keep no gradient
        (None), so neither decay nor momentum moves them. Returns the mean loss (0-dim, detached).
        """
        net, role = self.net, "weights"
        with torch.no_grad():
            archs = [Architecture(z.picks) for z in self._sample(role, self.samples[1], tau)]
            with self._precision(images):
                stem = net.stem(images)
        for s in stem:
            s.requires_grad_()
        optimizer.zero_grad(set_to_none=True)
        loss = self._accumulate(role, stem, labels, archs)
        with self._precision(images):  # the stem's own gradient, once for all samples
            again = net.stem(images)
        torch.autograd.backward(again, [_gradient(s) for s in stem])
        return self._step(role, loss, optimizer)

    def _sample(self, role: str, count: int, tau: float) -> list[Architecture]:
        """All K architectures of a step, before the first of them runs."""
        each = self.generator if callable(self.generator) else lambda role, k: self.generator
        return self.net.sample_many(tau, [each(role, k) for k in range(count)])

    def _precision(self, images: Tensor):
        return torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None)

    def _accumulate(self, role: str, stem, labels: Tensor, archs: list[Architecture]) -> Tensor:
        """Forward and backward of one sub-network after the other; gradients add up, memory does not."""
        total, self.last[role] = 0, []
        for arch in archs:
            with self._precision(labels):
                loss = F.cross_entropy(self.net.from_stem(stem, arch), labels)
            self.scalers[role].scale(loss).backward()
            total = total + loss.detach()
            self.last[role].append((Architecture(arch.picks), loss.detach()))
        return total / len(archs)

    def _step(self, role: str, loss: Tensor, optimizer) -> Tensor:
        """Reduce over K, average over ranks, clip once, step."""
        parameters, scaler, count = self.parameters[role], self.scalers[role], self.samples[role == "weights"]
        if self.reductions[role] == "mean" and count > 1:
            torch._foreach_div_([p.grad for p in parameters if p.grad is not None], count)
        loss = _average_over_ranks(parameters, loss)
        scaler.unscale_(optimizer)
        clip = self.clips[role] if self.clips[role] is not None else math.inf
        self.gradient_norm = nn.utils.clip_grad_norm_(parameters, clip).detach()
        scaler.step(optimizer)
        scaler.update()
        return loss

    def state_dict(self) -> dict:
        return {role: scaler.state_dict() for role, scaler in self.scalers.items()}

    def load_state_dict(self, state: dict) -> None:
        for role, scaler in self.scalers.items():
            scaler.load_state_dict(state[role])


# ----------------------------------------------------------------------------------------------------------------------
# The derived network


class AuxiliaryHead(nn.Module):
    """DARTS's auxiliary classifier: a ReLU, 2x2 pooled features, 1x1 and 2x2 convolutions."""

    def __init__(self, channels: int, classes: int, imagenet: bool):
        super().__init__()
        self.pool = nn.AvgPool2d(5, 2 if imagenet else 3, count_include_pad=False)
        self.size = 7 if imagenet else 8  # of the maps that the published pooling was made for
        convs = [nn.Conv2d(channels, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(inplace=True)]
        convs += [nn.Conv2d(128, 768, 2, bias=False)]
        convs += [] if imagenet else [nn.BatchNorm2d(768)]  # left out on ImageNet, as published
        self.convs = nn.Sequential(*convs, nn.ReLU(inplace=True))
        self.classifier = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        x = self.pool(x) if x.shape[2:] == (self.size, self.size) else F.adaptive_avg_pool2d(x, 2)
        return self.classifier(self.convs(x).flatten(1))


class Network(Macro):
    """The network of a genotype, trained from scratch: DARTS's evaluation network, or NAS-Bench-201's or 1Shot1's.

    genotype: a Genotype, a NAS-Bench-201 arch string, or a OneShotGenotype (genotypes.load reads all of them). cells:
    cells in all (nb201: per stage). auxiliary: a second classifier after two thirds of the cells, in training only; the
    DARTS family alone has one. drop_path: its rate; `model.drop_path.fill_(rate)` changes it during training.
    imagenet: the stem of stride 8 and ImageNet's auxiliary head.
    """

    def __init__(self, genotype, channels=36, cells=20, classes=10, auxiliary=True, drop_path=0.2, imagenet=False):
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path is {drop_path}; it must be at least 0 and below 1")
        nodes, concat = _from_genotype(genotype), {}
        family = {Genotype: "darts", OneShotGenotype: "1shot1", str: "nb201"}[type(genotype)]
        if family == "darts":
            concat = {"normal": tuple(genotype.normal_concat), "reduce": tuple(genotype.reduce_concat)}
        primitives = {"darts": PRIMITIVES, "1shot1": ONE_SHOT_PRIMITIVES, "nb201": NB201_PRIMITIVES}[family]
        unknown = {op for cell in nodes.values() for _, ops in cell for op in ops} - set(primitives)
        if unknown:
            raise ValueError(f"no op is called {', '.join(sorted(unknown))}; there are {', '.join(primitives)}")
        edges, picks = {}, {}
        for kind, cell in nodes.items():
            number = itertools.count()
            picks[kind] = [[(i, next(number), 0) for i in inputs] for inputs, _ in cell]
            edges[kind] = [(i, [op]) for inputs, ops in cell for i, op in zip(inputs, ops)]
            if family == "1shot1":
                edges[kind] = [ops for _, ops in cell if ops]
        width = channels * (1 if imagenet else 3)
        super().__init__(family, edges, concat, channels, cells, classes, True, imagenet, width)
        self.picks = Architecture(picks)
        self.drops = drop_path > 0
        self.register_buffer("drop_path", torch.tensor(float(drop_path)), persistent=False)
        auxiliary = auxiliary and family == "darts"
        self.auxiliary = AuxiliaryHead(self.auxiliary_channels, classes, imagenet) if auxiliary else None
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """logits (N, classes) and, in training with an auxiliary head, its logits; else None."""
        drop_path = self.drop_path if self.drops and self.training else None
        features, middle = self.run_cells(self.stem(images), self.picks, drop_path=drop_path)
        with_auxiliary = self.auxiliary is not None and self.training
        return self.classifier(features), self.auxiliary(middle) if with_auxiliary else None


if __name__ == "__main__":
    import sys

    try:
        import train
    except ModuleNotFoundError as error:
        if error.name not in ("train", "genotypes", "torchvision"):
            raise
        sys.exit(f"rome.py: {error.name} is missing: the search program is train.py, with genotypes.py and torchvision")
    sys.exit(train.main(["search", *sys.argv[1:]]))
