"""Tests. Each holds the program to a source of truth of its own: enumeration, plain code, a published number.

rome.py, genotypes.py, train.py, the documents. The tests of tools/, bench/ and evidence/ stand in those folders.
"""

import csv
import itertools
import json
import math
import os
import random
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import types
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn  # noqa: F401  as in train.set_up
import torch.multiprocessing
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import genotypes
import rome
import train
from tools import folders, nasbench201, predict

HERE = Path(__file__).resolve().parent

# ----------------------------------------------------------------------------------------------------------------------
# rome.py

torch.set_num_threads(1)  # the tensors here are tiny
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start: the same number, so the same bits
SKIP, SEP = "skip_connect", "sep_conv_3x3"

# ----------------------------------------------------------------------------------------------------------------------
# Helpers


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small_space(nodes, *ops):
    """A DARTS cell pair with fewer nodes and these ops on every edge."""
    rows = (ops,) * sum(range(2, 2 + nodes))
    return rome.Space("darts", tuple(range(2, 2 + nodes)), (2,) * nodes, {"normal": rows, "reduce": rows})


def tiny(space="darts", topology="v2", seed=0, scale=1.0, **settings):
    """A small supernet with alpha and beta drawn from N(0, scale^2)."""
    torch.manual_seed(seed)
    settings = dict(channels=4, cells=1 if space == "nb201" else 3, classes=5) | settings
    net = rome.Supernet(space, topology=topology, **settings)
    with torch.no_grad():
        for p in net.architecture_parameters():
            p.normal_(0, scale)
    return net


def batch(count=4, size=8, classes=5, dtype=torch.float64, seed=0):
    g = generator(seed)
    return torch.randn(count, 3, size, size, generator=g).to(dtype), torch.randint(classes, (count,), generator=g)


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def softmax(values):
    powers = [math.exp(v - max(values)) for v in values]
    return [power / sum(powers) for power in powers]


def draw_probability(p, subset):
    """The probability that draws from p without replacement give this subset: a sum over the orders."""
    total = 0
    for order in itertools.permutations(subset):
        product, left = 1, 1
        for i in order:
            product, left = product * p[i] / left, left - p[i]
        total += product
    return total


def assert_frequent(counts, probabilities):
    """Every event is as frequent as it should be, within four standard deviations."""
    total = sum(counts)
    for count, p in zip(counts, probabilities, strict=True):
        assert abs(count - total * p) <= 4 * (total * p * (1 - p)) ** 0.5


def without_gates(arch):
    return {kind: rome.Choice(z.inputs, z.ops) for kind, z in arch.items()}


def cells_of(net):
    return [m for m in net.modules() if isinstance(m, (rome.DartsCell, rome.NB201Cell, rome.OneShotCell))]


def saved_bytes(net, run):
    """Bytes of the distinct storages of floats that run() keeps for the backward pass, parameters left out."""
    storages, alive = {}, []

    def pack(t):
        alive.append(t.detach())  # so that no address is used twice
        if t.is_floating_point():
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run()
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    return sum(size for storage, size in storages.items() if storage not in own)


# ----------------------------------------------------------------------------------------------------------------------
# Sampling


@pytest.mark.parametrize("n, k", [(5, 2), (5, 3), (4, 1), (2, 2)])
def test_top_k_draws_as_without_replacement(n, k):
    logits = torch.tensor([0.5, -1.0, 1.2, 0.0, -0.4])[:n]
    B = rome.gumbel_top_k(logits, k, 0.5, rome.gumbel_noise((40_000, n), generator(1)))
    counts = Counter(tuple(i for i, hot in enumerate(row) if hot) for row in B.tolist())
    p, subsets = softmax(logits.tolist()), list(itertools.combinations(range(n), k))
    assert set(counts) == set(subsets)
    assert_frequent([counts[s] for s in subsets], [draw_probability(p, s) for s in subsets])


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("tau", [10, 0.1, 1e-30])
def test_gates_are_exact_and_their_gradient_is_finite_at_any_temperature(k, tau):
    noise = rome.gumbel_noise((3, 100, 6), generator(3))  # two dimensions more than the logits
    logits = torch.tensor([0.0, -20.0, -40.0, -60.0, -80.0, -81.0], requires_grad=True)  # the softmax underflows
    B = rome.gumbel_top_k(logits, k, tau, noise)
    (B * torch.arange(6.0)).sum().backward()
    kth = (logits + noise).sort(-1).values[..., -k]
    assert torch.equal(B, (logits + noise >= kth[..., None]).float()) and logits.grad.isfinite().all()


def test_gumbel_noise_is_gumbel_and_keyed_by_its_generator():
    noise = rome.gumbel_noise(200_000, generator(8))
    assert torch.equal(noise, rome.gumbel_noise(200_000, generator(8)))
    assert not torch.equal(noise, rome.gumbel_noise(200_000, generator(9)))
    cells = Counter((torch.exp(-torch.exp(-noise)) * 20).long().clamp(0, 19).tolist())  # uniform by its own CDF
    assert_frequent([cells[i] for i in range(20)], [0.05] * 20)


def equations(net, kind, noise, tau):
    """Eq. 2 to 8 in plain code: inputs, ops, the relaxed B (edges,) and A (rows,). noise: of alpha, then of beta."""
    inputs, ops, B, A = [], [], [], []

    def relax(logits, g):
        scores = logits - torch.log(torch.exp(logits).sum()) + g
        powers = torch.exp(scores / tau)
        return scores.tolist(), powers / powers.sum()

    for row, g in zip(net.alpha[kind], noise[0].view_as(net.alpha[kind])):
        scores, soft = relax(row, g)
        ops.append(scores.index(max(scores)))
        A.append(soft[ops[-1]])
    first = 0
    for n, k in zip(net.space.candidates, net.space.picks):
        if net.topology == "none":
            inputs.append(list(range(n)))
            B.append(torch.ones(n, dtype=torch.float64))
            continue
        subsets = list(itertools.combinations(range(n), k))
        last = first + (n if net.topology == "v2" else len(subsets))
        scores, soft = relax(net.beta[kind][first:last], noise[1][first:last])
        if net.topology == "v2":
            inputs.append(sorted(sorted(range(n), key=scores.__getitem__)[-k:]))
        else:
            inputs.append(list(subsets[scores.index(max(scores))]))
            soft = torch.stack([sum(p for p, s in zip(soft, subsets) if i in s) for i in range(n)])  # Eq. 6
        B.append(soft)
        first = last
    assert net.topology == "none" or first == len(net.beta[kind])
    return inputs, ops, torch.cat(B), torch.stack(A)


@pytest.mark.parametrize("tau", [0.7, 3.0])
@pytest.mark.parametrize("space, topology", [("s1", "v2"), ("s1", "v1"), ("s1", "none"), ("1shot1-2", "v2")])
def test_sample_follows_the_equations_and_their_gradient(space, topology, tau):
    net = tiny(space, topology, cells=1, channels=2).double()
    parts = {kind: [part[kind] for part in (net.alpha, net.beta) if kind in part] for kind in net.alpha}
    sizes = [p.numel() for own in parts.values() for p in own]
    noise = list(rome.gumbel_noise(sum(sizes), generator(11)).double().split(sizes))  # in the order of its use
    for kind, z in net.sample(tau, generator(11)).items():
        own_noise = [noise.pop(0) for _ in parts[kind]]
        inputs, ops, B, A = equations(net, kind, own_noise, tau)
        assert (z.inputs, z.ops) == (inputs, ops)
        hot = [float(i in kept) for n, kept in zip(net.space.candidates, inputs) for i in range(n)]
        assert z.B.tolist() == hot and z.A.tolist() == [1.0] * len(ops)
        factor = torch.linspace(-1, 2, len(B) + len(A), dtype=torch.float64)
        both = [torch.autograd.grad((torch.cat(gates) * factor).sum(), parts[kind]) for gates in ((z.B, z.A), (B, A))]
        torch.testing.assert_close(*both, rtol=1e-9, atol=1e-12)


class Waits(TorchFunctionMode):
    """Counts the reads of tensors that no earlier read brought to the host: on a GPU each waits for the device."""

    reads = {torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.item, torch.Tensor.nonzero, torch.Tensor.__bool__}
    count, host = 0, ()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        on_host = any(tensor is args[0] for tensor in self.host) if args else False
        if function in self.reads and not on_host:
            self.count += 1
        if on_host or function is torch.Tensor.cpu:
            parts = result if isinstance(result, (tuple, list)) else [result]
            self.host = [*self.host, *(t for t in parts if isinstance(t, torch.Tensor))]
        return result


@pytest.mark.parametrize("space, topology", [("s1", "v2"), ("s1", "v1"), ("s1", "none"), ("nb201", "v2")])
def test_all_samples_of_a_step_reach_the_host_in_one_transfer(space, topology):
    net = tiny(space, topology, cells=1)
    with Waits() as waits:
        net.sample_many(1.0, [None] * 7)
    assert waits.count == 1


# ----------------------------------------------------------------------------------------------------------------------
# Networks against their definitions, written with torch.nn.functional


def reaches(edges, start, end):
    """Whether a path of edges (from, to) leads from start to end."""
    return start == end or any(reaches(edges, to, end) for source, to in edges if source == start)


def used_by(y, parameters):
    """The parameters on which y depends."""
    parameters = list(parameters)
    grads = torch.autograd.grad(y.sum(), parameters, allow_unused=True, retain_graph=True)
    return [p for p, grad in zip(parameters, grads) if grad is not None]


class Plain:
    """The published networks, from those parameters of one of rome's that its output needs, in order.

    affine: the derived network, whose batch norms have scales; else the supernet. A node: a list of (op, input, gate).
    """

    def __init__(self, parameters, affine):
        self.parameters, self.affine = iter(parameters), affine

    def conv(self, x, **settings):
        return F.conv2d(x, next(self.parameters), **settings)

    def norm(self, x, affine=False):
        pair = [next(self.parameters), next(self.parameters)] if affine or self.affine else [None, None]
        return F.batch_norm(x, None, None, *pair, training=True)

    def conv_norm(self, x, stride=1, affine=False):
        weight = next(self.parameters)
        return self.norm(F.conv2d(x, weight, None, stride, weight.shape[-1] // 2), affine)

    def reduced(self, x):
        x = F.relu(x)
        return self.norm(torch.cat([self.conv(x, stride=2), self.conv(x[:, :, 1:, 1:], stride=2)], 1))

    def op(self, name, x, stride=1, norm=lambda x: x):
        if name in (SKIP, "skip-connect"):
            return self.reduced(x) if stride == 2 else x
        if "max" in name:
            return norm(F.max_pool2d(x, 3, stride, 1))
        if "avg" in name:
            return norm(F.avg_pool2d(x, 3, stride, 1, count_include_pad=False))
        if "nor_conv" in name:
            return self.conv_norm(F.relu(x))
        if "bn-relu" in name:
            return F.relu(self.conv_norm(x))
        dilation, kernel = 2 if "dil" in name else 1, int(name[-1])
        for step in [stride] if dilation == 2 else [stride, 1]:
            x, padding = F.relu(x), dilation * (kernel // 2)
            x = self.conv(x, stride=step, padding=padding, dilation=dilation, groups=x.shape[1])
            x = self.norm(self.conv(x))
        return x

    def darts(self, nodes, images, cells, imagenet=False):
        """Logits, and the cell output that the auxiliary head reads."""
        if imagenet:
            half = F.relu(self.norm(self.conv(images, stride=2, padding=1), True))
            s0 = self.norm(self.conv(half, stride=2, padding=1), True)
            s1 = self.norm(self.conv(F.relu(s0), stride=2, padding=1), True)
        else:
            s0 = s1 = self.conv_norm(images, affine=True)
        previous_reduced, pool_norm = imagenet, (lambda x: x) if self.affine else self.norm
        for index in range(cells):
            reduces = index in (cells // 3, 2 * cells // 3)
            states = [self.reduced(s0) if previous_reduced else self.conv_norm(F.relu(s0))]
            states.append(self.conv_norm(F.relu(s1)))
            for node in nodes["reduce" if reduces else "normal"]:
                strides = [2 if reduces and i < 2 else 1 for _, i, _ in node]
                terms = [g * self.op(op, states[i], s, pool_norm) for (op, i, g), s in zip(node, strides)]
                states.append(sum(terms))
            s0, s1, previous_reduced = s1, torch.cat(states[2:], 1), reduces
            if index == 2 * cells // 3:
                middle = s1
        return F.linear(s1.mean((2, 3)), next(self.parameters), next(self.parameters)), middle

    def auxiliary(self, x, imagenet):
        x = F.avg_pool2d(F.relu(x), 5, 2 if imagenet else 3, count_include_pad=False)
        x = self.conv(F.relu(self.norm(self.conv(x))))
        x = F.relu(x if imagenet else self.norm(x))
        return F.linear(x.flatten(1), next(self.parameters), next(self.parameters))

    def nb201(self, nodes, x):
        """With one cell a stage."""
        x = self.conv_norm(x, affine=True)
        edges = [(i, j) for j, node in enumerate(nodes, 1) for _, i, _ in node]
        for stage in range(3):
            if stage:
                y = self.conv_norm(F.relu(self.conv_norm(F.relu(x), 2)))
                x = y + self.conv(F.avg_pool2d(x, 2, 2))
            states = [x]
            for j, node in enumerate(nodes, 1):
                terms = [g * self.op(op, states[i]) for op, i, g in node] if reaches(edges, j, 3) else []
                states.append(sum(terms, torch.zeros_like(x)))
            x = states[3]
        x = F.relu(self.norm(x, True)).mean((2, 3))
        return F.linear(x, next(self.parameters), next(self.parameters))

    def one_shot(self, ops, inputs, x, cells, A, B):
        """A: a gate per node; B: (input, node) -> gate."""
        x, last = F.relu(self.conv_norm(x, affine=True)), len(inputs)
        edges = [(i, j) for j, kept in enumerate(inputs, 1) for i in kept]
        needed = [j for j in range(1, last + 1) if reaches(edges, j, last)]
        for index in range(cells):
            if index in (cells // 3, 2 * cells // 3):
                x = F.max_pool2d(x, 2, 2, 1)
            projected = {j: F.relu(self.conv_norm(x)) for j in needed if (0, j) in edges}
            states = {}
            for j in needed[:-1]:
                total = sum(B[i, j] * (states[i] if i else projected[j]) for i in inputs[j - 1])
                states[j] = A[j - 1] * self.op(ops[j - 1], total)
            parts = [B[i, last] * states[i] if (i, last) in edges else torch.zeros_like(total) for i in range(1, last)]
            x = torch.cat(parts, 1) + (B[0, last] * projected[last] if last in projected else 0)
        x = self.conv_norm(F.relu(x)).mean((2, 3))
        return F.linear(x, next(self.parameters), next(self.parameters))


def with_random_gates(net, arch):
    """The same sub-network with gates between 0.5 and 1.5, which take gradients."""
    gated, g = {}, generator(29)
    for kind, z in arch.items():
        sizes = sum(net.space.candidates), len(z.ops)
        B, A = (torch.rand(size, generator=g, dtype=torch.float64) + 0.5 for size in sizes)
        gated[kind] = rome.Choice(z.inputs, z.ops, B.requires_grad_(), A.requires_grad_())
    return gated


@pytest.mark.parametrize("space", ["darts", "nb201", "1shot1-1", "1shot1-2", "1shot1-3"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sub_network_is_the_published_one_with_every_gate_at_its_op(space, seed):
    net, images = tiny(space, "none" if (space, seed) == ("darts", 2) else "v2", seed).double(), batch(size=16)[0]
    arch = with_random_gates(net, net.sample(1.0, generator(seed)))
    gates = [gate for z in arch.values() for gate in (z.B, z.A)]
    logits = net(images, arch)
    used = used_by(logits, net.weights())
    plain, nodes = Plain(used, affine=False), {}
    for kind, z in arch.items():
        names = [row[op] for row, op in zip(net.space.ops[kind], z.ops)]
        nodes[kind], first = [], 0
        for n, kept in zip(net.space.candidates, z.inputs):
            if not space.startswith("1shot1"):
                nodes[kind].append([(names[first + i], i, z.A[first + i] * z.B[first + i]) for i in kept])
            first += n
    if space == "darts":
        expected = plain.darts(nodes, images, 3)[0]
    elif space == "nb201":
        expected = plain.nb201(nodes["cell"], images)
    else:
        B = dict(zip([(i, j) for j in range(1, len(z.inputs) + 1) for i in range(j)], z.B))
        expected = plain.one_shot(names, z.inputs, images, 3, z.A, B)
    assert next(plain.parameters, None) is None
    results = []
    for y in (logits, expected):
        grads = torch.autograd.grad(y.square().sum(), used + gates, allow_unused=True, materialize_grads=True)
        results.append((y, *grads))
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-9)


NB201_OPS = ("none", SKIP, "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NB201_TEXT = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|"
NB201_EDGES = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]


def nb201_nodes(ops):
    return [[(op, i, 1) for (i, to), op in zip(NB201_EDGES, ops) if to == j and op != "none"] for j in (1, 2, 3)]


def assert_same_network(used, outputs, expected, plain):
    """Equal outputs and gradients of the used parameters, each of which the plain network has taken."""
    assert next(plain.parameters, None) is None
    results = []
    for y in (outputs, expected):
        results.append((*y, *torch.autograd.grad(sum(part.square().sum() for part in y), used)))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name, imagenet", [("DARTS_V2", False), ("GDAS_V1", False), ("PC_DARTS_image", True)])
def test_darts_network_is_the_published_one(name, imagenet):
    torch.manual_seed(0)
    genotype, nodes = genotypes.PUBLISHED[name], {}
    for kind in ("normal", "reduce"):
        pairs = [(op, i, 1) for op, i in getattr(genotype, kind)]
        nodes[kind] = [sorted(pairs[j : j + 2], key=lambda pair: pair[1]) for j in range(0, 8, 2)]
    model = rome.Network(genotype, channels=4, cells=5, classes=7, drop_path=0.0, imagenet=imagenet).double()
    images = batch(2, 224 if imagenet else 32)[0]
    plain = Plain(model.parameters(), affine=True)
    logits, middle = plain.darts(nodes, images, 5, imagenet)
    assert_same_network(list(model.parameters()), model(images), (logits, plain.auxiliary(middle, imagenet)), plain)
    assert model.eval()(images)[1] is None


def test_nb201_networks_are_the_published_ones():
    draw, images, dead = random.Random(0), batch(size=16)[0], 0
    for _ in range(30):
        ops = [draw.choice(NB201_OPS) for _ in NB201_EDGES]
        edges = [edge for edge, op in zip(NB201_EDGES, ops) if op != "none"]
        if not reaches(edges, 0, 3):
            continue
        dead += not (reaches(edges, 1, 3) and reaches(edges, 2, 3))
        model = rome.Network(NB201_TEXT.format(*ops), channels=4, cells=1, classes=5, drop_path=0.0).double()
        outputs = model(images)[:1]
        plain = Plain(used := used_by(outputs[0], model.parameters()), affine=True)
        assert_same_network(used, outputs, [plain.nb201(nb201_nodes(ops), images)], plain)
    assert dead > 3


@pytest.mark.parametrize("space", ["1shot1-1", "1shot1-2", "1shot1-3"])
def test_1shot1_networks_are_the_published_ones(space):
    net, images = tiny(space, cells=1, channels=2), batch(size=16)[0]
    for seed in range(6):
        genotype = net.cell(net.sample(1.0, generator(seed)))
        genotype = genotype._replace(ops=("conv1x1-bn-relu", *genotype.ops[1:]))  # the table's own, of no space
        model = rome.Network(genotype, channels=4, cells=3, classes=5, drop_path=0.0).double()
        outputs = model(images)[:1]
        plain = Plain(used := used_by(outputs[0], model.parameters()), affine=True)
        A, B = [1.0] * len(genotype.ops), defaultdict(lambda: 1.0)
        expected = plain.one_shot(*genotype, images, 3, A, B)
        assert_same_network(used, outputs, [expected], plain)


# ----------------------------------------------------------------------------------------------------------------------
# The architect


def architect(net, samples, seed=15, **settings):
    torch.manual_seed(0)  # for the `noise` op
    return rome.Architect(net, samples, generator=generator(seed), **settings)


def moved(net, role, steps, data):
    """What a step subtracts at a learning rate of 1, flat, and its loss. Nothing else moves, and all is put back."""
    own, other = net.architecture_parameters(), net.weights()
    own, other = (own, other) if role == "architecture" else (other, own)
    before, grads = [p.detach().clone() for p in own], [p.grad for p in other]
    rest = {name: value.clone() for name, value in net.state_dict().items()}
    loss = getattr(steps, role + "_step")(*data, torch.optim.SGD(own, lr=1.0))
    assert loss.shape == () and not loss.requires_grad
    difference = flat(old - p for old, p in zip(before, own))
    with torch.no_grad():
        for p, old in zip(own, before):
            p.copy_(old)
    assert all(torch.equal(value, rest[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters()) and all(p.grad is g for p, g in zip(other, grads))
    return difference, loss


def separate_gradients(net, role, count, images, labels, tau):
    """The gradients of `count` sampled sub-networks, each by plain autograd: (count, size), and their losses."""
    torch.manual_seed(0)  # for the `noise` op
    parameters = net.architecture_parameters() if role == "architecture" else net.weights()
    g, rows, losses = generator(15), [], []
    for arch in [net.sample(tau, g) for _ in range(count)]:
        losses.append(F.cross_entropy(net(images, arch), labels))
        grads = torch.autograd.grad(losses[-1], parameters, materialize_grads=True, allow_unused=True)
        rows.append(flat(grads))
    return torch.stack(rows), torch.stack(losses).detach()


CASES = [("darts", "v2", 3), ("darts", "v1", 3), ("s2", "none", 1), ("s4", "v2", 2), ("1shot1-2", "v2", 3)]


@pytest.mark.parametrize("space, topology, cells", CASES)  # with one or two cells none is normal
@pytest.mark.parametrize("role, reduction, other", [("architecture", "mean", "sum"), ("weight", "sum", "mean")])
def test_a_step_reduces_the_gradients_of_its_samples_and_moves_nothing_else(
    space, topology, cells, role, reduction, other
):
    net, data = tiny(space, topology, cells=cells).double(), (*batch(), 0.8)
    rows, losses = separate_gradients(net, role, 3, *data)
    samples = (3, 1) if role == "architecture" else (1, 3)
    step, loss = moved(net, role, architect(net, samples, clip=None), data)
    torch.testing.assert_close(step, getattr(rows, reduction)(0), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(loss, losses.mean(), rtol=1e-10, atol=0)
    assert rows.abs().sum() > 1e-3
    turned = architect(net, samples, clip=None, **{role + "_reduction": other})
    torch.testing.assert_close(moved(net, role, turned, data)[0], getattr(rows, other)(0), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("space, topology", [("darts", "v2"), ("darts", "none"), ("nb201", "v2")])
def test_weights_that_no_sample_uses_have_no_gradient_and_do_not_move(space, topology):
    net = tiny(space, topology)
    sgd = torch.optim.SGD(net.weights(), 0.1, 0.9, weight_decay=0.1)
    before, used, data = [p.detach().clone() for p in net.weights()], set(), batch(dtype=torch.float32)
    for arch in net.sample_many(1.0, [generator(14), generator(15)]):
        grads = torch.autograd.grad(net(data[0], arch).sum(), net.weights(), allow_unused=True)
        used |= {i for i, grad in enumerate(grads) if grad is not None}
    rome.Architect(net, 2, generator=lambda role, k: generator(14 + k)).weight_step(*data, 1.0, sgd)
    moved = [not torch.equal(p, old) for p, old in zip(net.weights(), before)]  # by decay neither
    assert moved == [p.grad is not None for p in net.weights()] == [i in used for i in range(len(before))]
    assert not all(moved)


@pytest.mark.parametrize("share", [2.0, 0.8, 0.1, None])
@pytest.mark.parametrize("role", ["architecture", "weight"])
def test_the_clip_acts_once_on_the_whole_gradient(role, share):
    net, data = tiny("s2").double(), (*batch(), 1.0)
    with torch.no_grad():
        net.body.classifier.weight.mul_(100)
    rows, _ = separate_gradients(net, role, 4, *data)
    total = rows.sum(0)
    clip = {} if share is None else {"architecture_clip": share * total.norm(), "clip": share * total.norm()}
    steps = architect(net, 4, architecture_reduction="sum", **clip)
    step, _ = moved(net, role, steps, data)
    bound = {"architecture": math.inf, "weight": 5.0}[role] if share is None else clip["clip"]  # unless told
    torch.testing.assert_close(step, total * min(1, bound / total.norm()), rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(steps.gradient_norm, total.norm(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("space", ["darts", "s4", "nb201"])
def test_recomputed_cells_give_the_same_gradients_and_keep_less(space):
    results, kept, data = [], [], (*batch(8, 16), 0.9)
    for recompute in (False, True):
        net = tiny(space, recompute=recompute).double()
        results.append([moved(net, role, architect(net, 2), data) for role in ("architecture", "weight")])
        arch = net.sample(1.0, generator(17))
        kept.append(saved_bytes(net, lambda net=net, arch=arch: net(data[0], arch)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    assert kept[1] < 0.4 * kept[0]


def test_fused_sgd_takes_the_steps_of_plain_sgd():
    results = []
    for fused in (False, True):
        net = tiny("darts", channels=2)
        sgd = torch.optim.SGD(net.weights(), 0.05, 0.9, weight_decay=3e-4, fused=fused)
        for p in net.weights() if fused else ():  # fused SGD fails where a first gradient comes later than others'
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
        steps = architect(net, 1)
        for _ in range(5):
            steps.weight_step(*batch(dtype=torch.float32), 1.0, sgd)
        results.append([p.detach() for p in net.weights()])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("space", sorted(rome.SPACES))
@pytest.mark.parametrize("role", ["architecture", "weight"])
def test_mixed_precision_keeps_every_cell_in_16_bits(space, role):
    net, data, kept, types = tiny(space, channels=8), (*batch(16, 16, dtype=torch.float32), 1.0), [], []
    for cell in cells_of(net):
        cell.register_forward_hook(lambda *a: types[-1].add(a[2].dtype))
    for own, callers in ((None, None), (torch.bfloat16, None), (None, torch.bfloat16)):
        step, sgd = getattr(architect(net, 1, autocast=own), role + "_step"), torch.optim.SGD(net.parameters(), 0.0)
        types.append(set())
        with torch.autocast("cpu", callers, enabled=callers is not None):
            kept.append(saved_bytes(net, lambda step=step, sgd=sgd: step(*data, sgd)))
    assert types == [{torch.float32}, {torch.bfloat16}, {torch.bfloat16}]
    assert max(kept[1:]) <= 0.56 * kept[0]  # the indices of a max pooling, whole numbers, are not counted


def test_what_the_user_froze_stays_frozen():
    net, data = tiny("s2"), (*batch(dtype=torch.float32), 1.0)
    frozen = [*net.body.stem0.parameters(), *cells_of(net)[0].parameters(), *net.beta.values()]
    for p in frozen:
        p.requires_grad_(False)
    before, flags = [p.clone() for p in frozen], [p.requires_grad for p in net.parameters()]
    steps, sgd, alpha = architect(net, 2), torch.optim.SGD(net.parameters(), 0.1), flat(net.alpha.values())
    steps.architecture_step(*data, sgd)
    steps.weight_step(*data, sgd)
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(map(torch.equal, frozen, before)) and not torch.equal(alpha, flat(net.alpha.values()))


def test_the_clip_sees_no_stale_gradient_and_every_new_parameter():
    net, data, norms = tiny("s2").double(), (*batch(), 1.0), []
    steps = rome.Architect(net, 2, clip=1e-3, generator=lambda role, k: generator(k))
    head, alpha = list(net.body.classifier.parameters()), list(net.alpha.values())
    for step, some in ((steps.weight_step, head), (steps.architecture_step, alpha)):
        for _ in range(2):
            step(*data, torch.optim.SGD(some, 0.0))
            norms.append(steps.gradient_norm.item())
    assert norms[0] == norms[1] and norms[2] == norms[3]
    net.load_state_dict({name: value.clone() for name, value in net.state_dict().items()}, assign=True)
    assert moved(net, "weight", steps, data)[0].norm().item() == pytest.approx(1e-3, rel=1e-2)
    assert steps.gradient_norm.item() == pytest.approx(norms[0])
    net.body.classifier = nn.Linear(net.body.classifier.in_features, 5).double()
    assert moved(net, "weight", steps, data)[0].norm().item() == pytest.approx(1e-3, rel=1e-2)


# ----------------------------------------------------------------------------------------------------------------------
# The derived cell and p(z)


def cells_by_equation_9(net, kind, exact):
    """Every cell of a space with two ops, in plain code: (op, input) pairs -> log p of the inputs, log p of the ops."""
    alpha, ops = [softmax(row) for row in net.alpha[kind].tolist()], net.space.ops[kind][0]
    nodes, cells, first = [], {}, 0
    for beta, n in zip(net.beta_by_node(kind), net.space.candidates):
        p, node = softmax(beta.tolist()), {}
        for number, (i, k) in enumerate(itertools.combinations(range(n), 2)):
            p_inputs = p[number] if net.topology == "v1" else p[i] * p[k]
            if exact and net.topology == "v2":
                p_inputs = draw_probability(p, (i, k))
            for a, b in itertools.product((0, 1), repeat=2):
                p_ops = alpha[first + i][a] * alpha[first + k][b]
                node[(ops[a], i), (ops[b], k)] = math.log(p_inputs), math.log(p_ops)
        nodes.append(node)
        first += n
    for choice in itertools.product(*nodes):
        values = [node[pairs] for node, pairs in zip(nodes, choice)]
        cells[sum(choice, ())] = sum(value[0] for value in values), sum(value[1] for value in values)
    return cells


@pytest.mark.parametrize("topology", ["v2", "v1"])
def test_genotype_and_log_prob_are_those_of_equation_9_over_all_cells(topology):
    found, concat = {"joint": [], "exact": [], "sequential": []}, [2, 3, 4]
    for seed, rule in itertools.product(range(15), found):
        net = tiny(small_space(3, SKIP, SEP), topology, seed, scale=0.5, cells=1, channels=2).double()
        normal, reduce = (cells_by_equation_9(net, kind, rule == "exact") for kind in ("normal", "reduce"))
        best = []
        for cells in (normal, reduce):
            order = {cell: values if rule == "sequential" else sum(values) for cell, values in cells.items()}
            best.append(list(max(order, key=order.get)))
        genotype = net.genotype(rule)
        assert genotype == rome.Genotype(best[0], concat, best[1], concat) == net.cell(net.architecture(genotype))
        found[rule].append(genotype)
        for a, b in random.Random(seed).sample(list(zip(normal, reduce)), 20):
            log_p = net.log_prob(rome.Genotype(list(a), concat, list(b), concat), exact=rule == "exact")
            assert log_p.item() == pytest.approx(sum(normal[a]) + sum(reduce[b]), abs=1e-9)
    joint, exact, sequential = found.values()
    assert joint != sequential and (joint != exact) == (topology == "v2")  # the draws tell the rules apart
    with torch.inference_mode():
        genotype = net.genotype()
    assert torch.autograd.gradcheck(lambda *_: net.log_prob(genotype), net.architecture_parameters())
    assert torch.autograd.gradcheck(lambda *_: net.log_prob(genotype, exact=True), net.architecture_parameters())


@pytest.mark.parametrize("k", [1, 2, 3])
def test_exact_log_prob_survives_a_dominant_input(k):
    p = [Fraction(1), Fraction(1, 10**9), Fraction(1, 10**18), Fraction(1, 10**26)]
    beta = torch.tensor([math.log(value) for value in p], dtype=torch.float64).float()
    for subset in itertools.combinations(range(4), k):
        expected = math.log(draw_probability([value / sum(p) for value in p], subset))
        log_p = rome.log_p_inputs("v2", beta, 4, subset, exact=True).item()
        assert log_p == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_without_topology_parameters_the_cell_follows_the_rule_of_darts():
    for seed in range(30):
        net, expected = tiny("s1", "none", seed, cells=1, channels=2), []
        for kind in ("normal", "reduce"):
            p, cell, start = [softmax(row) for row in net.alpha[kind].tolist()], [], 0
            for n in (2, 3, 4, 5):
                for i in sorted(sorted(range(n), key=lambda i: -max(p[start + i]))[:2]):
                    cell.append((net.space.ops[kind][start + i][p[start + i].index(max(p[start + i]))], i))
                start += n
            expected.append(cell)
        genotype = net.genotype()
        assert [genotype.normal, genotype.reduce] == expected and not len(net.beta)


def test_nb201_has_3072_reachable_cells_in_the_tables_notation():
    net, reachable = tiny("nb201", channels=2), set()
    for ops in itertools.product(NB201_OPS, repeat=6):
        text = NB201_TEXT.format(*ops)
        try:
            assert net.cell(net.architecture(text)) == text
        except ValueError:
            continue
        reachable.add(text)
    assert len(reachable) == 3072 == 4 * 4**2 * 3 * 4**2
    assert net.genotype() == max(reachable, key=net.log_prob)


@pytest.mark.parametrize("name, parents", [("1shot1-1", "12222"), ("1shot1-2", "11223"), ("1shot1-3", "111222")])
def test_1shot1_nodes_keep_their_published_number_of_inputs(name, parents):
    for seed in range(10):
        net = tiny(name, seed=seed, cells=1, channels=2)
        genotype, inputs = net.genotype(), []
        for beta, count in zip(net.beta_by_node("cell"), parents, strict=True):  # of nodes 1..N and the output
            inputs.append(tuple(sorted(beta.topk(int(count)).indices.tolist())))
        ops = [("maxpool3x3", "conv3x3-bn-relu", "skip-connect")[best] for best in net.alpha["cell"].argmax(1)]
        assert genotype == (tuple(ops), tuple(inputs)) and net.cell(net.architecture(genotype)) == genotype


# ----------------------------------------------------------------------------------------------------------------------
# What is refused, and a space of a user's own

ROWS, S2, G = ((SKIP, SEP),) * 14, rome.SPACES["s2"], genotypes.PUBLISHED["DARTS_V2"]


def s2_cell(function, **changes):
    net = tiny("s2", cells=1)
    getattr(net, function)(net.genotype()._replace(**changes))


REFUSED = {
    "rows of unequal length": lambda: tiny(S2._replace(ops={"normal": ROWS[1:] + ((SEP,),), "reduce": ROWS})),
    "unknown op": lambda: tiny(S2._replace(ops={"normal": (("x", SEP),) * 14, "reduce": ROWS})),
    "one input": lambda: tiny(S2._replace(picks=(1, 1, 1, 1))),
    "three inputs": lambda: tiny(S2._replace(picks=(2, 3, 3, 3))),
    "a random cell": lambda: genotypes.random_cell(S2._replace(candidates=(1, 2, 3, 4))),
    "family": lambda: tiny(S2._replace(family="x")),
    "no input": lambda: tiny(rome.SPACES["nb201"]._replace(picks=(0, 1, 1))),
    "four nodes": lambda: tiny(rome.Space("nb201", (1, 2, 3, 4), (1, 2, 2, 2), {"cell": ((SKIP,),) * 10})),
    "space": lambda: tiny("x"),
    "topology": lambda: tiny("s2", "x"),
    "GDAS in 1shot1": lambda: tiny("1shot1-1", "none"),
    "odd channels": lambda: tiny("s2", channels=3),
    "stem": lambda: tiny("nb201", imagenet=True),
    "tau": lambda: tiny("s2").sample(1e-40),
    "tau 0": lambda: rome.gumbel_top_k(torch.zeros(3), 2, 0.0, torch.zeros(3)),
    "no samples": lambda: rome.Architect(tiny("s2"), (2, 0)),
    "reduction": lambda: rome.Architect(tiny("s2"), weight_reduction="max"),
    "no beta": lambda: tiny("s2", "none").log_prob(tiny("s2").genotype()),
    "op of another space": lambda: s2_cell("log_prob", normal=[("max_pool_3x3", 0), (SEP, 1), *G.normal[2:]]),
    "an input twice": lambda: s2_cell("architecture", normal=[(SEP, 0), (SEP, 0), *[(SEP, 0), (SEP, 1)] * 3]),
    "another family": lambda: tiny("s2").architecture(NB201_TEXT.format(*[SKIP] * 6)),
    "a name": lambda: rome.Network("DARTS_V2"),
    "unknown op to train": lambda: rome.Network(G._replace(normal=[("x", 0), *G.normal[1:]])),
    "an input twice to train": lambda: rome.Network(G._replace(normal=[(SEP, 0), (SKIP, 0), *G.normal[2:]])),
    "drop path": lambda: rome.Network(G, drop_path=1.0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused_in_one_line(name):
    with pytest.raises(ValueError) as error:
        REFUSED[name]()
    assert "\n" not in str(error.value)


def test_a_space_with_own_ops_is_searched_derived_and_trained(monkeypatch):
    ops = {
        "plain": lambda c, stride, affine: nn.Conv2d(c, c, 1, stride),  # it knows nothing of gates
        "normed": lambda c, stride, affine: rome.Op(nn.Conv2d(c, c, 3, stride, 1), rome.Norm(c, affine), True),
    }
    for name, make in ops.items():
        monkeypatch.setitem(rome.PRIMITIVES, name, make)
    monkeypatch.setitem(rome.SPACES, "mine", small_space(3, *ops))
    net, data = tiny("mine").double(), (*batch(), 0.9)
    x, gate = torch.randn(4, 4, 8, 8).double(), torch.full((4,), 0.3).double()
    for op in cells_of(net)[0].edges[0]:
        torch.testing.assert_close(op(x, gate), 0.3 * op(x))
    for role in ("architecture", "weight"):
        assert moved(net, role, architect(net, 2), data)[0].norm() > 0
    genotype = net.genotype()
    assert {op for op, _ in genotype.normal + genotype.reduce} == set(ops) and len(genotype.normal) == 6
    assert net.cell(net.architecture(genotype)) == genotype
    model = rome.Network(genotype, channels=4, cells=3, classes=5, auxiliary=False, drop_path=0.0).double()
    sgd, losses = torch.optim.SGD(model.parameters(), 0.05, 0.9), []
    for _ in range(12):
        losses.append(F.cross_entropy(model(data[0])[0], data[1]))
        sgd.zero_grad()
        losses[-1].backward()
        sgd.step()
    assert losses[-1] < 0.8 * losses[0] and all(p.grad is not None for p in model.parameters())


# ----------------------------------------------------------------------------------------------------------------------
# Published counts, ops, and what else the networks promise

LARGE = {"channels": 48, "cells": 14, "classes": 1000, "imagenet": True}
COUNTS = [
    ("DARTS_V2", {"auxiliary": False}, 3_349_342),
    ("DARTS_V2", {}, 3_825_768),
    ("DARTS_V2", {"channels": 16, "cells": 8, "auxiliary": False}, 246_106),
    ("PC_DARTS_cifar", {"auxiliary": False}, 3_634_678),
    ("GDAS_V1", {"auxiliary": False}, 3_368_782),
    ("PC_DARTS_image", {"auxiliary": False} | LARGE, 5_342_464),
    ("DARTS_V2", LARGE, 5_979_528),
]


@pytest.mark.parametrize("name, settings, count", COUNTS)
def test_network_has_the_published_number_of_parameters(name, settings, count):
    model = rome.Network(genotypes.PUBLISHED[name], **settings)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(
    "digits, count", [("333333", 1_531_546), ("222222", 241_306), ("323114", 587_386)]
)  # of the table
def test_nb201_network_has_the_tables_number_of_parameters(digits, count):
    genotype = NB201_TEXT.format(*(NB201_OPS[int(digit)] for digit in digits))
    assert sum(p.numel() for p in rome.Network(genotype, channels=16, cells=5).parameters()) == count


@pytest.mark.parametrize("space, count", [("darts", 1_930_618), ("s1", 405_146), ("s2", 665_466)])
def test_supernet_has_the_published_number_of_weights(space, count):
    assert sum(p.numel() for p in rome.Supernet(space, channels=16, cells=8, classes=10).weights()) == count


# R-DARTS's S1 edge by edge
S1_TABLE = {
    "normal": "skip dil3, skip dil5, skip dil5, skip sep3, skip dil3, max skip, skip sep3, skip sep3, skip dil3, "
    "skip sep3, max skip, skip dil3, dil3 dil5, dil3 dil5",
    "reduce": "max avg, max dil3, max avg, max avg, skip dil5, max avg, max sep3, skip dil3, skip dil5, max avg, "
    "max avg, skip dil5, skip dil5, skip dil5",
}


def test_spaces_hold_the_published_ops():
    names = dict(skip=SKIP, max="max_pool_3x3", avg="avg_pool_3x3", dil3="dil_conv_3x3", dil5="dil_conv_5x5", sep3=SEP)
    for kind, text in S1_TABLE.items():
        rows = tuple(tuple(names[op] for op in edge.split()) for edge in text.split(", "))
        assert rome.SPACES["s1"].ops[kind] == rows
        assert rome.SPACES["s2"].ops[kind] == rome.SPACES["s3"].ops[kind] == ((SKIP, SEP),) * 14
        assert rome.SPACES["s4"].ops[kind] == (("noise", SEP),) * 14
        assert set(rome.SPACES["darts"].ops[kind][0]) == {*names.values(), "sep_conv_5x5"}


class AveragePools(TorchDispatchMode):
    """Notes of every average pool whether its image is channels-last, and its padding.

    The backward kernel is handed the same image.
    """

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ == "avg_pool2d":
            padding = args[3] if len(args) > 3 else [0, 0]
            self.seen.append((args[0].stride(3) > 1, max(padding)))  # the last stride of NCHW is 1
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("size", [8, 1])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_no_padded_average_pool_sees_channels_last_on_cuda(size, affine, stride):
    """Its gradient is wrong there (pytorch#188344). The device is simulated: its tensors have strides and no values."""
    with FakeTensorMode(), AveragePools() as pools:
        image = torch.empty_strided((2, 4, size, size), (4 * size * size, 1, 4 * size, 4), device="cuda")
        y = rome.PRIMITIVES["avg_pool_3x3"](4, stride, affine).layers(image)
    assert pools.seen == [(False, 1)] and y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("space, imagenet", [("darts", False), ("darts", True), ("nb201", False), ("1shot1-1", False)])
def test_only_the_operation_avg_pool_has_padding(space, imagenet, monkeypatch):
    monkeypatch.setattr(rome.AvgPool, "forward", lambda self, x: x[:, :, :: self.stride, :: self.stride])
    net = rome.Supernet(space, 4, 3, 2, imagenet=imagenet)
    model = rome.Network(net.genotype(), 4, 3, 2, auxiliary=space == "darts", imagenet=imagenet)
    images = torch.randn(2, 3, *((64, 64) if imagenet else (16, 16)))
    with AveragePools() as pools:
        for seed in range(8):
            net(images, net.sample(1.0, torch.Generator().manual_seed(seed)))
        model(images)
    assert all(padding == 0 for _, padding in pools.seen)


@pytest.mark.parametrize("mode", [True, False])
def test_noise_does_not_depend_on_its_input(mode):
    op, x = rome.PRIMITIVES["noise"](8, 2, False).train(mode), torch.randn(16, 8, 32, 32, requires_grad=True)
    results = []
    for arguments in ((x,), (1000 * x,), (x, torch.full((8,), 0.3))):
        torch.manual_seed(1)
        results.append(op(*arguments))
    assert torch.equal(results[0], results[1]) and torch.allclose(results[2], 0.3 * results[0])
    assert not results[0].requires_grad and not torch.equal(results[0], op(x))
    assert results[0].shape == (16, 8, 16, 16) and abs(results[0].mean()) < 0.02 and abs(results[0].std() - 1) < 0.02


@pytest.mark.parametrize("space", sorted(rome.SPACES))
def test_state_is_the_parameters_and_evaluation_uses_the_batchs_statistics(space):
    net, other, images = tiny(space), tiny(space, seed=1), batch(dtype=torch.float32)[0]
    ids = [id(p) for p in net.architecture_parameters() + net.weights()]
    assert len(set(ids)) == len(ids) and set(ids) == {id(p) for p in net.parameters()}
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}
    other.load_state_dict(net.state_dict())
    results, before = [], [b.clone() for b in net.buffers()]
    for module in (net.train(), other.eval()):
        torch.manual_seed(0)  # for the `noise` op
        results.append(module(images, module.sample(1.0, generator(24))))
    assert torch.equal(*results) and all(map(torch.equal, before, net.buffers()))


def test_drop_path_follows_its_rate_keeps_the_mean_and_spares_identities():
    genotype = rome.Genotype([("avg_pool_3x3", 0), (SKIP, 1)], [2], [("max_pool_3x3", 0), ("max_pool_3x3", 1)], [2])
    torch.manual_seed(0)
    model, rate = rome.Network(genotype, channels=2, cells=3, auxiliary=False, drop_path=0), 0.25
    images, cell, seen = torch.randn(400, 3, 8, 8), cells_of(model)[0], {}  # the first cell is a normal one
    for module in (cell, *(m for m in cell.modules() if isinstance(m, nn.AvgPool2d))):
        module.register_forward_hook(lambda m, _, output: seen.update({type(m): output.detach().clone()}))
    model(images)
    plain, pooled = seen[type(cell)], seen[nn.AvgPool2d]
    model.set_drop_path(rate)
    model(images)
    kept = (seen[type(cell)] - plain - pooled * rate / (1 - rate)).abs().amax((1, 2, 3)) < 1e-5
    gone = (seen[type(cell)] - plain + pooled).abs().amax((1, 2, 3)) < 1e-5
    assert (kept ^ gone).all()  # an image's pooling is gone, or scaled by 1 / (1 - rate): the mean stays
    assert abs(kept.sum() - 400 * (1 - rate)) < 4 * (400 * rate * (1 - rate)) ** 0.5
    first = model.eval()(images)[0]  # off in evaluation
    model.set_drop_path(0.0)
    assert torch.equal(first, model(images)[0])


@pytest.mark.parametrize("imagenet", [False, True])
@pytest.mark.parametrize("size", [2, 3, 5, 7, 8, 16])
def test_auxiliary_head_pools_as_published_or_adaptively(monkeypatch, size, imagenet):
    head, x, pooled = rome.AuxiliaryHead(4, 5, imagenet), torch.randn(3, 4, size, size, requires_grad=True), []
    head.layers.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    expected = F.adaptive_avg_pool2d(F.relu(x), 2)
    if size == (7 if imagenet else 8):
        expected = F.avg_pool2d(F.relu(x), 5, 2 if imagenet else 3)
    monkeypatch.delattr(F, "adaptive_avg_pool2d")  # its backward pass is not deterministic on CUDA
    assert head(x).shape == (3, 5)
    both = [(y, *torch.autograd.grad(y.square().sum(), x)) for y in (pooled[0], expected)]
    torch.testing.assert_close(*both)


# ----------------------------------------------------------------------------------------------------------------------
# The file by itself

ALONE = """
import os, random, sys
import torch
sys.argv, state, python_state, listing = ["x", "--unknown"], torch.get_rng_state(), random.getstate(), os.listdir()
import rome
assert torch.equal(state, torch.get_rng_state()) and python_state == random.getstate() and listing == os.listdir()
assert os.path.dirname(os.path.abspath(rome.__file__)) == os.getcwd() and "train" not in sys.modules
torch.manual_seed(0)
net = rome.Supernet("s2", channels=4, cells=3, classes=2)
architect = rome.Architect(net, samples=2)
adam = torch.optim.Adam(net.architecture_parameters(), lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
sgd = torch.optim.SGD(net.weights(), lr=0.05, momentum=0.9)
images, labels = torch.randn(32, 3, 8, 8), torch.randint(2, (32,))
losses = []
for step in range(10):
    architect.architecture_step(images, labels, 10 - step, adam)
    losses.append(architect.weight_step(images, labels, 10 - step, sgd).item())
assert losses[-1] < losses[0]
rome.Network(net.genotype(), channels=4, cells=3, classes=2)(torch.randn(2, 3, 32, 32))
"""


def test_rome_alone_searches_silently_and_says_what_its_command_line_needs(tmp_path):
    shutil.copy(rome.__file__, tmp_path / "rome.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONDONTWRITEBYTECODE": "1"}
    results = []
    for arguments in (["-c", ALONE], ["rome.py", "--quick"]):
        command, options = [sys.executable, *arguments], dict(cwd=tmp_path, env=environment, timeout=60)
        results.append(subprocess.run(command, **options, capture_output=True, text=True, check=False))
    assert (results[0].returncode, results[0].stdout, results[0].stderr) == (0, "", "")
    assert results[1].returncode and "train is missing" in results[1].stderr and "Traceback" not in results[1].stderr


# ----------------------------------------------------------------------------------------------------------------------
# genotypes.py

ARCH = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|nor_conv_3x3~2|"
ONE_SHOT = rome.OneShotGenotype(
    ops=("conv3x3-bn-relu", "maxpool3x3", "skip-connect", "conv3x3-bn-relu"),
    inputs=((0,), (0, 1), (0, 2), (1, 3), (0, 4)),
)
KINDS = {"darts": genotypes.PUBLISHED["PDARTS"], "1shot1": ONE_SHOT, "nb201": ARCH}
PRINTED = str(genotypes.PUBLISHED["DARTS_V2"])


def test_published_cells_equal_the_published_code():
    v2 = (  # from quark0/darts
        "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
        "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], "
        "normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), "
        "('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], "
        "reduce_concat=[2, 3, 4, 5])"
    )
    assert str(genotypes.load("DARTS_V2")) == v2
    assert " ".join(genotypes.PUBLISHED) == "DARTS_V1 DARTS_V2 PC_DARTS_cifar PC_DARTS_image PDARTS GDAS_V1"
    assert all(genotypes.check(cell) == cell for cell in genotypes.PUBLISHED.values())


def test_parameter_free_counts_of_published_cells():
    counts = {name: genotypes.parameter_free(cell) for name, cell in genotypes.PUBLISHED.items()}
    assert {name: count["normal"] for name, count in counts.items()} == {
        "DARTS_V1": 3, "DARTS_V2": 2, "PC_DARTS_cifar": 2, "PC_DARTS_image": 2, "PDARTS": 2, "GDAS_V1": 4,
    }  # fmt: skip
    assert counts["DARTS_V2"]["reduce"] == 8
    arch = NB201_TEXT.format(SKIP, "none", "avg_pool_3x3", "none", *NB201_OPS[2:4])
    assert genotypes.parameter_free(arch) == {"cell": 2}  # `none` is no operation
    assert genotypes.parameter_free(ONE_SHOT) == {"cell": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_printed_genotypes_load_as_they_were(kind, tmp_path):
    genotype = KINDS[kind]
    genotypes.save(genotype, tmp_path / "cell.json", space="s1", note='"[a,   b], "', nested={"epoch": [1, None]})
    data = json.loads((tmp_path / "cell.json").read_text())
    assert (data["schema"], data["kind"], data["note"]) == (1, kind, '"[a,   b], "')
    text = (tmp_path / "cell.json").read_text()
    for source in (tmp_path / "cell.json", str(tmp_path / "cell.json"), text, str(genotype), f" {genotype}\n"):
        assert genotypes.load(source) == genotype
        assert type(genotypes.load(source)) is type(genotype)


def test_text_printed_by_other_code_loads():
    genotype = genotypes.PUBLISHED["DARTS_V2"]
    assert genotypes.load(f"FOUND = {PRINTED}  # epoch 50") == genotype
    assert genotypes.load(PRINTED.replace("[2, 3, 4, 5]", "range(2, 6)")) == genotype
    assert genotypes.load(PRINTED.replace("'", '"').replace(", ", ",\n")) == genotype
    assert genotypes.load(f"rome.Genotype{tuple(genotype)}") == genotype
    assert genotypes.check(genotype._replace(normal_concat=range(5, 1, -1), reduce=tuple(genotype.reduce))) == genotype


CODE = "__import__('os').system('touch ran')"  # leaves a file behind if anything runs it
SAVED = json.dumps({"schema": 1, "kind": "darts", "genotype": genotypes.PUBLISHED["DARTS_V2"]._asdict()})
HOSTILE_TEXTS = {
    "empty": "", "wrong case": "darts_v2", "no text": 3, "bytes": b"DARTS_V2", "long": "x" * 1_000_000,
    "NUL": PRINTED + "\0", "NUL in a path": "cell\0.json", "surrogate": "\ud800", "code": CODE,
    "code before": f"{CODE} or {PRINTED}", "code after": f"{PRINTED}; {CODE}",
    "code for an op": PRINTED.replace("'dil_conv_3x3'", CODE), "code in JSON": SAVED.replace("[2,", f"[{CODE},"),
    "called twice": PRINTED.replace("Genotype(", "Genotype()("), "deep JSON": '{"a":' * 100_000,
    "deep brackets": "Genotype(" + "[" * 9_000 + "]" * 9_000 + ")", "huge number": f"Genotype({'9' * 15_000})",
    "huge range": PRINTED.replace("[2, 3, 4, 5]", "range(2, 10**9)"), "fields missing": "Genotype([], [], [])",
    "none": PRINTED.replace("dil_conv_3x3", "none"), "op named concat": str(ONE_SHOT).replace("maxpool3x3", "concat"),
    "later input": PRINTED.replace("'dil_conv_3x3', 2", "'dil_conv_3x3', 5"),
    "same input twice": PRINTED.replace("'dil_conv_3x3', 2", "'dil_conv_3x3', 0"),
    "seven pairs": PRINTED.replace(", ('dil_conv_3x3', 2)", ""), "empty concat": PRINTED.replace("[2, 3, 4, 5]", "[]"),
    "many nodes": PRINTED.replace("normal=[", "normal=[" + "('skip_connect', 0), ('skip_connect', 1), " * 99),
    "cells of two sizes": PRINTED.replace(", ('skip_connect', 0), ('dil_conv_3x3', 2)]", "]").replace(", 5]", "]", 1),
    "arch in another order": ARCH.replace("none~0|avg_pool_3x3~1", "none~1|avg_pool_3x3~0"),
    "arch without a bar": ARCH.replace("+|", "+"), "short arch": ARCH[:60], "arch op": ARCH.replace("none", "zero"),
    "schema 2": SAVED.replace("1", "2", 1), "schema missing": "{}", "wrong kind": SAVED.replace("darts", "nb201"),
    "unhashable kind": SAVED.replace('"darts"', "[{}]"), "odd field": SAVED.replace("normal_concat", "a\\nb\\ud800"),
    "no genotype": '{"schema": 1, "kind": "darts"}', "inputs of no space": str(ONE_SHOT).replace("(0, 4)", "(4,)"),
}  # fmt: skip


def assert_refused(source):
    start = time.process_time()
    with pytest.raises(ValueError) as caught:
        genotypes.load(source)
    message = str(caught.value)
    assert type(caught.value) is ValueError
    assert message.isprintable() and 10 < len(message) < 400, message  # isprintable: no line break
    assert time.process_time() - start < 1


@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_hostile_text_is_refused_in_one_line_and_never_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(HOSTILE_TEXTS[name])
    assert os.listdir(tmp_path) == []


def test_hostile_files_are_refused_in_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    contents = dict(binary=bytes(range(256)), huge=b"{" * (3 << 20), code=CODE.encode(), empty=b"")
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in ("pipe", "folder", *contents, "missing"):
        assert_refused(tmp_path / name)
        assert_refused(str(tmp_path / name))


def test_errors_name_the_place_and_the_choices(tmp_path):
    def error(source, space=None):
        with pytest.raises(ValueError) as caught:
            genotypes.load(source, space)
        return str(caught.value)

    text = error(PRINTED.replace("dil_conv_3x3", "dil_conv_7x7"))
    assert re.search(r"normal, x_5: unknown operation 'dil_conv_7x7'; known: .*dil_conv_5x5", text)
    assert "normal, x_2: unknown operation 'sep_conv_3x3'; known: skip_connect, dil_conv_3x3" in error(PRINTED, "s1")
    assert re.search("no published cell .DARTS_V1, .*GDAS_V1. and no file", error("darts_v2"))
    assert error(SAVED.replace("darts", "nasnet")) == "kind 'nasnet' is unknown; known: darts, 1shot1, nb201"
    (tmp_path / "cell.json").write_text(SAVED[:60])
    assert "cell.json': not complete JSON" in error(tmp_path / "cell.json")


def test_a_space_admits_its_own_nodes_and_ops_alone(monkeypatch):
    v2, rows = genotypes.PUBLISHED["DARTS_V2"], (("skip_connect", "mine"),) * 5
    monkeypatch.setitem(rome.PRIMITIVES, "mine", rome.PRIMITIVES["skip_connect"])
    monkeypatch.setitem(rome.SPACES, "mine", rome.Space("darts", (2, 3), (2, 2), dict(normal=rows, reduce=rows)))
    cell = rome.Genotype(pairs := [("mine", 0), ("mine", 1), ("mine", 2), ("skip_connect", 0)], [2, 3], pairs, [3])
    assert genotypes.load(str(cell), "mine") == genotypes.check(cell) == cell
    assert genotypes.load("DARTS_V2", rome.SPACES["darts"]) == v2
    assert genotypes.parameter_free(cell)["normal"] == 1
    for genotype, space in ((v2, "mine"), (cell, "darts"), (v2, "s2"), (ARCH, "darts"), (ONE_SHOT, "1shot1-2")):
        with pytest.raises(ValueError):
            genotypes.check(genotype, space)
    with pytest.raises(ValueError, match="no space 'moon'; known: darts, s1"):
        genotypes.check(v2, "moon")


@pytest.mark.parametrize("space", rome.SPACES)
def test_random_cells_lie_in_their_space_and_follow_the_generator(space):
    first, again = (torch.Generator().manual_seed(7) for _ in range(2))
    cells = [genotypes.random_cell(space, first) for _ in range(20)]
    assert cells == [genotypes.random_cell(rome.SPACES[space], again) for _ in range(20)]
    assert all(genotypes.check(cell, space) == cell for cell in cells) and len(set(map(str, cells))) > 10
    assert genotypes.random_cell(space) != genotypes.random_cell(space)
    if "1shot1" not in space:
        net = rome.Supernet(space, channels=2, cells=1, classes=2)
        assert all(net.cell(net.architecture(cell)) == cell for cell in cells)


def test_random_cells_are_uniform():
    rows = (("skip_connect", "sep_conv_3x3"),) * 5
    space = rome.Space("darts", (2, 3), (2, 2), {"normal": rows, "reduce": rows})
    generator, counts = torch.Generator().manual_seed(0), Counter()
    for _ in range(4800):
        counts[str(genotypes.random_cell(space, generator).normal)] += 1
    # One pair of inputs for the first node, three for the second, two operations on each of the four edges.
    expected = 4800 / (3 * 2**4)
    assert len(counts) == 48
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 82.7  # chi-square, 47 degrees, p = 0.001


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "cell.json"
    genotypes.save(KINDS["darts"], path)
    for attribute in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, attribute, lambda *_: (_ for _ in ()).throw(OSError("disk full")))
            with pytest.raises(OSError, match="disk full"):
                genotypes.save(ARCH, path)
    for extra in ({"value": float("nan")}, {"value": object()}, {"kind": "mine"}):
        with pytest.raises((TypeError, ValueError)):
            genotypes.save(ARCH, path, **extra)
    assert genotypes.load(path) == KINDS["darts"]
    assert os.listdir(tmp_path) == ["cell.json"]


@pytest.mark.parametrize("kind", KINDS)
def test_picture_is_xml_and_shows_every_op(kind, tmp_path):
    genotypes.draw(KINDS[kind], tmp_path / "cell.svg")
    root = ElementTree.parse(tmp_path / "cell.svg").getroot()
    shown = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    cells = {"darts": KINDS["darts"].normal + KINDS["darts"].reduce, "1shot1": [(op, 0) for op in ONE_SHOT.ops]}
    ops = [op for op, _ in cells.get(kind, ())] or re.findall(r"([^|~+]+)~", ARCH)
    assert all(shown.count(op) == ops.count(op) for op in ops)
    assert all(genotypes.describe(KINDS[kind]).count(op) >= ops.count(op) for op in ops)


def test_pictures_have_no_overlapping_labels_and_no_line_through_a_label():
    generator = torch.Generator().manual_seed(0)
    cells = [genotypes.random_cell(space, generator) for space in rome.SPACES for _ in range(3)]
    for genotype in (*genotypes.PUBLISHED.values(), ARCH, ONE_SHOT, *cells):
        width, height, lines, boxes = genotypes._layout(genotype)
        boxes = [(x, y, w, h) for x, y, w, h, *_, text in boxes if w and text]
        for (x, y, w, h), (x1, y1, w1, h1) in itertools.combinations(boxes, 2):
            assert 2 * abs(x - x1) > w + w1 or 2 * abs(y - y1) > h + h1
        assert all(w / 2 <= x <= width - w / 2 and h / 2 <= y <= height - h / 2 for x, y, w, h in boxes)
        segments = [(*a, *b) for _, points in lines for a, b in itertools.pairwise(points)]
        for (x0, y0, x1, y1), (x, y, w, h) in itertools.product(segments, boxes):
            assert x0 == x1 or y0 == y1  # a line may end in a box or pass through its middle, along it
            if x0 == x1 and h == 24:
                assert not (abs(x0 - x) < w / 2 and min(y0, y1) < y + h / 2 and max(y0, y1) > y - h / 2)
            if y0 == y1 and y0 != y:
                assert not (abs(y0 - y) < h / 2 + 1 and min(x0, x1) < x - w / 2 and max(x0, x1) > x + w / 2)


def test_a_dot_marks_where_an_edge_leaves_its_input():
    genotype, boxes = KINDS["darts"], genotypes._layout(KINDS["darts"])[3]
    names, x_of = ["c_k-2", "c_k-1", "x_2", "x_3", "x_4", "x_5"], {text: x for x, *_, text in boxes}
    inputs = [i for _, i in genotype.normal] + genotype.normal_concat
    inputs += [i for _, i in genotype.reduce] + genotype.reduce_concat
    assert [x for x, _, w, *_, text in boxes if w and not text] == [x_of[names[i]] for i in inputs]


def test_png_needs_matplotlib_and_other_suffixes_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"\.svg or \.png"):
        genotypes.draw(ONE_SHOT, tmp_path / "cell.pdf")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ValueError, match="pip install matplotlib"):
            genotypes.draw(ARCH, tmp_path / "cell.png")
    pytest.importorskip("matplotlib")
    genotypes.draw(ONE_SHOT, tmp_path / "cell.PNG")
    assert (tmp_path / "cell.PNG").read_bytes().startswith(b"\x89PNG")


# ----------------------------------------------------------------------------------------------------------------------
# train.py

TIMES = ("images_per_second", "seconds", "peak_mib")
CPU = torch.device("cpu")
SMALL = dict(stem="small", image_size=16)
DEAD_NODES = "|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|+|skip_connect~0|none~1|none~2|"
ONE_SHOT_TEXT = "OneShotGenotype(ops=('conv3x3-bn-relu', 'maxpool3x3', 'skip-connect', 'conv3x3-bn-relu'), "
ONE_SHOT_TEXT += "inputs=((0,), (0, 1), (1, 2), (0, 2), (0, 4)))"
RETRAIN = ["--retrain", *"--retrain-epochs 2 --retrain-cells 3 --retrain-channels 2 --retrain-batch-size 6".split()]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Twelve training and four test images in each of three classes: noise around a colour of the class."""
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 12), ("test", 4)):
        for label in range(3):
            path = root / split / f"class{label}"
            path.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 256, (16, 16, 3), generator=generator, dtype=torch.uint8)
                pixels[..., label] = 200
                Image.fromarray(pixels.numpy()).save(path / f"{number}.png")
    return root


def flags(folder, out, *more, stage="search"):
    words = f"{stage} --dataset folder --data {folder} --image-size 16 --cells 3 --channels 2 --batch-size 6 --epochs 2"
    words += " --samples 2" if stage == "search" else " --genotype GDAS_V1"
    return [*words.split(), "--out", str(out), *map(str, more)]


def process(*words, **kwargs):
    """A command in a process of its own: (status, stdout, stderr)."""
    words = [sys.executable, *map(str, words)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, **kwargs)
    return done.returncode, done.stdout, done.stderr


def metrics_of(out):
    with open(out / "metrics.csv") as file:
        return list(csv.DictReader(file))


def result(out):
    """All of a run that must not depend on time: rows without the time columns, checkpoint tensors, genotype."""
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in metrics_of(out)]
    state, tensors = torch.load(out / "last.pt", weights_only=True), {}

    def collect(value, name):
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif isinstance(value, dict):
            for key in value:
                collect(value[key], f"{name}.{key}")

    for part in ("net", "network", "sgd", "adam", "totals", "rng"):
        collect(state.get(part), part)
    return rows, tensors, (out / "genotype.json").read_bytes()


def assert_equal_runs(one, other):
    (rows, tensors, genotype), (rows_2, tensors_2, genotype_2) = result(one), result(other)
    assert rows == rows_2
    assert tensors.keys() == tensors_2.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], tensors_2[name])] == []
    assert genotype == genotype_2


def one_line_error(capsys, words, status=2):
    code = train.main([str(word) for word in words])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (status, 1), error
    assert "Traceback" not in error
    return error


@pytest.fixture(scope="session")
def searched(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train.main(flags(folder, out, *RETRAIN)) == 0
    return out


# --- runs -------------------------------------------------------------------------------------------------------------


def test_search_and_retrain_write_what_they_promise(searched, capsys):
    for name in ("config.json", "metrics.csv", "genotype.json", "cells.svg", "last.pt", "log.txt"):
        assert (searched / name).stat().st_size > 0
        assert (searched / "retrain" / name).stat().st_size > 0
    columns = "loss_alpha loss_theta supernet_accuracy tau parameter_free_normal entropy_alpha_normal top_alpha_reduce"
    columns += " entropy_beta_normal top_beta_normal images_per_second peak_mib gradient_norm clipped times_uniform"
    rows, saved = metrics_of(searched), json.loads((searched / "genotype.json").read_text())
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(row[column] != "" for row in rows for column in columns.split())
    assert [float(row["tau"]) for row in rows] == [10.0, 0.1]
    p = torch.load(searched / "last.pt", weights_only=True)["net"]["alpha.normal"].softmax(1)
    assert torch.tensor(saved["alpha"]["normal"]) == pytest.approx(p.numpy(), abs=1e-4)
    assert float(rows[-1]["top_alpha_normal"]) == pytest.approx(p.amax(1).mean().item(), rel=1e-5)
    assert [len(node) for node in saved["beta"]["reduce"]] == [2, 3, 4, 5]
    assert "alpha is near uniform (its largest probability is 1.00 x" in (searched / "log.txt").read_text()
    assert train.main(["search", "--out", str(searched), "--resume", "--no-retrain"]) == 0
    assert "already finished" in capsys.readouterr().out


def test_a_seed_gives_one_run_and_another_seed_another(folder, searched, tmp_path):
    """The first run has its settings from a config.json, and a folder of images without test images."""
    shutil.copytree(folder / "train", tmp_path / "data" / "train")
    words = ["search", "--config", searched / "config.json", "--no-retrain", "--data", tmp_path / "data"]
    assert train.main([*map(str, words), "--out", str(tmp_path / "again")]) == 0
    assert_equal_runs(searched, tmp_path / "again")
    assert train.main(flags(folder, tmp_path / "other", "--seed", 1)) == 0
    assert result(searched)[0] != result(tmp_path / "other")[0]


def interrupting(folder):
    """train.py as a script whose last two arguments are a signal and the number of the step that it comes in."""
    script = folder / "interrupted" / "train.py"
    script.parent.mkdir(exist_ok=True)
    script.write_text(
        f"import os, sys; sys.path.insert(0, {str(HERE)!r}); import train\n"
        "at, number, add, calls = int(sys.argv.pop()), int(sys.argv.pop()), train.Run.add, []\n"
        "def stopped(*arguments, **numbers):\n"
        "    calls.append(1)\n"
        "    if len(calls) == at:\n"
        "        os.kill(os.getpid(), number)\n"
        "    add(*arguments, **numbers)\n"
        "train.Run.add = stopped\n"
        "sys.exit(train.main())\n"
    )
    return script


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_stopped_in_mid_epoch_goes_on_to_the_same_bits(number, folder, searched, tmp_path):
    """In the fifth step of the search, then in the eighth of the retrain. SIGKILL leaves the checkpoint before it."""
    out, script = tmp_path / "run", interrupting(tmp_path)
    words = flags(folder, out, *RETRAIN, "--save-minutes", 0)
    for at, more in ((5, ()), (10 if number == signal.SIGKILL else 9, ("--resume",))):
        status, _, error = process(script, *words, *more, int(number), at)
        assert status == (-9 if number == signal.SIGKILL else 143), error
        assert number == signal.SIGKILL or "SIGTERM: the state is saved" in error
    state = torch.load(out / "retrain" / "last.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 1 if number == signal.SIGKILL else 2)
    assert train.main([*flags(folder, out, *RETRAIN), "--resume"]) == 0
    assert_equal_runs(searched, out)
    assert_equal_runs(searched / "retrain", out / "retrain")


@pytest.mark.parametrize("damage", ["half", "format", "code", "other network"])
def test_a_broken_checkpoint_is_refused_in_one_line(damage, folder, searched, tmp_path, capsys):
    out = tmp_path / "broken"
    shutil.copytree(searched, out)
    data, state = (out / "last.pt").read_bytes(), torch.load(out / "last.pt", weights_only=True)
    if damage == "half":
        (out / "last.pt").write_bytes(data[: len(data) // 2])
    elif damage == "format":
        torch.save(state | {"format": 1}, out / "last.pt")
    elif damage == "code":
        torch.save({"format": 4, "stage": Path}, out / "last.pt")
    else:
        torch.save(state | {"net": dict(list(state["net"].items())[1:])}, out / "last.pt")
    before = (out / "last.pt").read_bytes()
    error = one_line_error(capsys, [*flags(folder, out), "--resume"])
    assert ("another network" if damage == "other network" else "last.pt cannot be used") in error
    assert (out / "last.pt").read_bytes() == before


def test_other_settings_other_images_and_an_occupied_folder_are_refused(folder, searched, tmp_path, capsys):
    before = {path: path.read_bytes() for path in searched.glob("*.*")}
    other = shutil.copytree(folder, tmp_path / "other")
    for split in ("train", "test"):
        (other / split / "class0").rename(other / split / "cats")
    assert "class0, class1, class2 (now cats, class1" in one_line_error(capsys, [*flags(other, searched), "--resume"])
    assert "--lr 0.05 (now 0.1)" in one_line_error(capsys, [*flags(folder, searched), "--resume", "--lr", "0.1"])
    assert "holds a run already" in one_line_error(capsys, flags(folder, searched))
    assert before == {path: path.read_bytes() for path in searched.glob("*.*")}


def test_two_processes_share_the_work_and_resume(folder, tmp_path):
    """torchrun on the CPU: search and retrain end, a resumed run ends with the same bits, one process is refused."""
    whole, out = tmp_path / "whole", tmp_path / "resumed"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = flags(folder, whole, "--device", "cpu", "--save-minutes", 0, *RETRAIN)
    status, text, error = process(*torchrun, HERE / "train.py", *words)
    assert status == 0, error
    assert "in 2 processes, 12 images a step in all" in text and "test accuracy" in text
    words = flags(folder, out, "--device", "cpu", *RETRAIN)
    status, _, error = process(*torchrun, interrupting(tmp_path), *words, int(signal.SIGTERM), 4)
    assert status != 0 and error.count("SIGTERM: the state is saved") == 2
    script = tmp_path / "train.py"  # what is left of the process group's threads may abort while Python exits
    script.write_text(
        f"import pathlib, sys; sys.path.insert(0, {str(HERE)!r}); import train; status = train.main()\n"
        "print([path.read_text() for path in pathlib.Path('/proc/self/task').glob('*/comm')]); sys.exit(status)"
    )
    status, text, error = process(*torchrun, script, *flags(folder, out, "--device", "cpu", "--resume"))
    assert status == 0, error
    assert "gloo" not in text
    assert_equal_runs(whole, out)
    assert_equal_runs(whole / "retrain", out / "retrain")
    status, _, error = process(HERE / "train.py", *flags(folder, out, "--resume"))
    assert status == 2 and "--processes 2 (now 1)" in error


@pytest.mark.parametrize("genotype", [DEAD_NODES, ONE_SHOT_TEXT])
def test_two_processes_retrain_a_cell_with_nodes_that_lead_nowhere(genotype, folder, tmp_path):
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", HERE / "train.py", "retrain"]
    words += f"--dataset folder --data {folder} --image-size 16 --cells 1 --channels 2 --batch-size 6".split()
    words += ["--epochs", 1, "--device", "cpu", "--genotype", genotype, "--out", tmp_path / "run"]
    status, text, error = process(*words)
    assert status == 0, error
    assert "test accuracy" in text


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["search", "retrain"])
def test_fused_optimizers_as_on_cuda_take_the_same_steps(stage, folder, tmp_path, monkeypatch):
    words = ("--steps-per-epoch", 6, "--epochs", 1)
    assert train.main(flags(folder, tmp_path / "plain", *words, stage=stage)) == 0
    monkeypatch.setattr(train, "on_cuda", lambda device: True)
    assert train.main(flags(folder, tmp_path / "fused", *words, stage=stage)) == 0
    plain, fused = result(tmp_path / "plain")[1], result(tmp_path / "fused")[1]
    assert plain.keys() == fused.keys() and all(value.isfinite().all() for value in fused.values())
    for name in (name for name in plain if name.startswith("net")):
        assert torch.allclose(plain[name], fused[name], rtol=1e-3, atol=1e-4), name


def test_amp_is_refused_where_the_hardware_has_no_bfloat16(monkeypatch):
    for name, value in dict(is_available=True, set_device=None).items():
        monkeypatch.setattr(torch.cuda, name, lambda *device, value=value: value)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    with pytest.raises(ValueError, match="bfloat16"):
        train.set_up(train.configure("search", dict(device="cuda", amp=True)))


@pytest.mark.parametrize("stage", ["search", "retrain"])
def test_a_nan_ends_in_status_3_and_no_checkpoint_holds_it(stage, folder, tmp_path, capsys, monkeypatch):
    out, calls, cross_entropy = tmp_path / "run", [], torch.nn.functional.cross_entropy

    def sometimes_nan(logits, *rest, **more):
        calls.append(1)
        bad = logits.requires_grad and len(calls) == (21 if stage == "search" else 11)
        return cross_entropy(logits, *rest, **more) * (math.nan if bad else 1)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", sometimes_nan)
    words = flags(folder, out, "--save-minutes", 0, *([] if stage == "search" else ["--auxiliary", 0]), stage=stage)
    error = one_line_error(capsys, words, status=3)
    assert "is not finite" in error and "epoch 2/2, step " in error and "loss" in error
    state = torch.load(out / "last.pt", weights_only=True)
    place = int(re.search(r"step (\d+)", error)[1])
    assert (state["epoch"], state["step"]) == (1, place - 1)
    assert all(value.isfinite().all() for value in state["net" if stage == "search" else "network"].values())


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, says",
    [
        ("search --nonsense", "--nonsense"),
        ("search --space s9", "choose from"),
        ("search --dataset cifr10", "cifar10"),
        ("search --epochs 0", "--epochs must be a whole number from 1 to"),
        ("search --lr nan", "--lr must be a number from"),
        ("search --quick --retrain-epochs 3", "without --retrain"),
        ("search --quick --retrain --retrain-epochs x", "whole number"),
        ("search --quick --baseline 2", "without --retrain"),
        ("search --quick --samples 5 --samples-alpha 3 --samples-theta 4", "--samples has no effect"),
        ("search --equal-passes --epochs 3", "--equal-passes"),
        ("search --quick --data x", "--data"),
        ("search --quick --image-size 30", "multiple of 4"),
        ("search --dataset cifar10 --image-size 64", "32 pixels"),
        ("search --quick --space nb201 --retrain --retrain-auxiliary 0.4", "auxiliary"),
        ("search --quick --space 1shot1-1 --method gdas", "1shot1"),
        ("search --quick --stem imagenet", "--stem"),
        ("search --quick --config nowhere.json", "No such file"),
        ("search --quick --config stored.json", "is no configuration of a search"),
        ("retrain --quick", "retrain needs --genotype"),
        ("retrain --quick --genotype DARTS_V3", "DARTS_V2"),
        ("retrain --quick --genotype __import__('os').system('true')", "no file"),
        ("retrain --quick --genotype GDAS_V1 --space nb201", "family"),
        ("predict nowhere image.png", "nowhere"),
    ],
)
def test_bad_flags_end_in_one_line_and_status_2(words, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("stored.json").write_text(json.dumps(dict(stage="search", settings={"help": True, "epochs": "x"})))
    assert says in one_line_error(capsys, words.split(" "))
    assert len(list(tmp_path.iterdir())) == 1


def test_bad_data_folders_end_in_one_line(folder, tmp_path, capsys):
    assert "no folder" in one_line_error(capsys, flags(tmp_path / "missing", tmp_path / "run"))
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    image = data / "train" / "class1" / "3.png"
    image.write_bytes(image.read_bytes()[:60])
    assert str(image) in one_line_error(capsys, flags(data, tmp_path / "run"))
    (data / "train" / "empty").mkdir()
    assert "empty" in one_line_error(capsys, flags(data, tmp_path / "run"))
    for name in ("class1", "class2", "empty"):
        shutil.rmtree(data / "train" / name)
    assert "one class" in one_line_error(capsys, flags(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_what_the_retrain_lacks_is_said_before_the_search(folder, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    (data / "test" / "class0").rename(data / "test" / "other")
    assert "other" in one_line_error(capsys, flags(data, tmp_path / "run", "--retrain"))
    shutil.rmtree(data / "test")
    assert "no folder" in one_line_error(capsys, flags(data, tmp_path / "run", "--retrain"))
    assert not (tmp_path / "run").exists()


def test_errors_carry_the_name_of_the_program_that_was_started():
    for name, words in (("rome.py", ()), ("train.py", ("search",))):
        status, _, error = process(HERE / name, *words, "--epochs", "x")
        assert status == 2 and error.startswith(f"{name}: error: --epochs must be")


# --- the way in -------------------------------------------------------------------------------------------------------


def test_random_cells_and_a_linear_model_stand_beside_the_found_cell(folder, searched, tmp_path, capsys):
    out, words = tmp_path / "run", ["--baseline", 2, *RETRAIN]
    shutil.copytree(searched, out)  # only the random cells are left to train
    assert train.main([*flags(folder, out, *words), "--resume"]) == 0
    found, random, linear = re.findall(r"^  (\w+) .*?([\d.]+\.\d\d)", capsys.readouterr().out, re.MULTILINE)[-3:]
    accuracies = [float(metrics_of(out / f"random-{number}")[-1]["accuracy_test"]) for number in (1, 2)]
    assert (found[0], random[0], linear[0]) == ("found", "random", "linear")
    assert float(random[1]) == pytest.approx(sum(accuracies) / 2, abs=0.01)
    cells = [genotypes.load(out / f"random-{number}" / "genotype.json", "darts") for number in (1, 2)]
    assert cells[0] != cells[1]
    before = (out / "random-1" / "last.pt").read_bytes()
    assert train.main([*flags(folder, out, *words), "--resume"]) == 0
    assert (out / "random-1" / "last.pt").read_bytes() == before


def test_the_printed_command_does_the_retrain_that_retrain_would_have_done(folder, searched, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "START", str(HERE / "train.py"))
    out = tmp_path / "a run"
    words = [word for word in RETRAIN if word != "--retrain"]
    assert train.main(flags(folder, out)) == 0
    log = (out / "log.txt").read_text()
    assert re.search(
        r"20 cells, 36 channels, [\d.]+ M parameters, [\d.]+ M multiply-adds an image, for 600 epochs", log
    )
    python, script, *command = shlex.split(re.search(r"next: (.*)", log)[1])
    assert python == "python" and Path(script).resolve() == HERE / "train.py"
    assert train.main([*command, *words]) == 0
    assert_equal_runs(searched / "retrain", out / "retrain")


def test_a_users_own_space_and_operation_go_all_the_way(folder, tmp_path):
    """A script that registers them and calls train.main is the whole program."""
    script, out = tmp_path / "own.py", tmp_path / "run"
    script.write_text(f"import sys\nsys.path.insert(0, {str(HERE)!r})\n" + SCRIPTS["own.py"])
    status, text, error = process(script, *flags(folder, out, "--space", "small"))
    assert status == 0, error
    assert len(genotypes.load((out / "genotype.json").read_text().replace("grouped", SEP)).normal) == 6
    command = shlex.split(re.search(r"next: python (.*)", text)[1])
    status, text, error = process(*command, *[word for word in RETRAIN if word != "--retrain"])
    assert status == 0, error
    status, text, error = process(script, "predict", out, folder / "test" / "class1" / "0.png")
    assert status == 0 and re.fullmatch(r".*0\.png  class\d  [01]\.\d{4}\n", text), error
    status, text, error = process(script, "report", out)
    assert status == 0 and "small" in text, error
    status, _, error = process(HERE / "train.py", "report", out)
    assert status == 2 and error.count("\n") == 1 and "small" in error


def test_predict_uses_the_statistics_of_the_checkpoint(folder, searched, capsys):
    files = sorted((folder / "test").glob("*/*.png"))
    assert train.main(["predict", str(searched), *map(str, files)]) == 0
    predicted = [line.split() for line in capsys.readouterr().out.splitlines()]
    network, state = predict.load_network(searched / "retrain" / "last.pt")
    mean, std = torch.tensor(state["statistics"])
    pixels = torch.stack([folders.Files([], SMALL, "test").read(str(file)) for file in files]).float() / 255
    p, labels = network(((pixels - mean) / std).permute(0, 3, 1, 2))[0].softmax(1).max(1)
    assert [name for _, name, _ in predicted] == [state["classes"][label] for label in labels]
    assert [float(probability) for *_, probability in predicted] == pytest.approx(p.tolist(), abs=1e-4)
    right = sum(file.parent.name == name for file, (_, name, _) in zip(files, predicted))
    assert 100 * right / len(files) == pytest.approx(state["rows"][-1]["accuracy_test"])


def test_progress_is_a_line_on_a_terminal_and_quiet_prints_nothing(folder, tmp_path, capsys, monkeypatch):
    texts = {}
    for name, terminal, more in (("piped", False, ()), ("terminal", True, ()), ("quiet", True, ("--quiet",))):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        assert train.main(flags(folder, tmp_path / name, *more)) == 0
        texts[name] = capsys.readouterr()
    assert texts["quiet"] == ("", "")
    assert "\r" not in texts["piped"].out
    assert len(re.findall(r"^epoch \d/2: .* left$", texts["piped"].out, re.MULTILINE)) == 2
    assert re.search(r"\r\033\[Kepoch 1/2, step 2/3, \d+ s left\r\033\[K", texts["terminal"].out)


@pytest.mark.parametrize("stage", ["search", "retrain"])
def test_help_says_the_defaults(stage, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert train.main([stage, "--help"]) == 0
    text = capsys.readouterr().out
    for name, value in train.protocol(train.SEARCH if stage == "search" else train.RETRAIN, "darts", "cifar10").items():
        shown = re.search(rf"^  --{name.replace('_', '-')}\b.*\n?(?:    .*\n)*", text, re.MULTILINE)[0]
        assert f"[{value}]" in shown or value is False


@pytest.mark.parametrize("space", list(rome.SPACES))
def test_every_space_searches_derives_and_retrains(space, folder, tmp_path):
    cells, out = 1 if space == "nb201" else 3, tmp_path / "run"
    more = ["--space", space, *RETRAIN, "--retrain-epochs", 1, "--epochs", 1, "--cells", cells, "--quiet"]
    assert train.main(flags(folder, out, *more, "--retrain-cells", cells)) == 0
    rome.Supernet(space, 2, cells, 3).architecture(genotypes.load(out / "genotype.json", space))
    assert (out / "retrain" / "metrics.csv").exists()


@pytest.mark.parametrize("more", ["--method gdas", "--method rome-v1", "--amp", "--recompute", "--derive exact"])
def test_variants_of_the_search_run(more, folder, tmp_path):
    assert train.main(flags(folder, tmp_path / "run", "--epochs", 1, "--steps-per-epoch", 2, *more.split())) == 0


# --- data -------------------------------------------------------------------------------------------------------------


def stream_of(pixels, role="weights", **config):
    labels = torch.arange(len(pixels)) % 3
    config = dict(seed=0, batch_size=4, stem="small", cutout=0, workers=0, image_size=pixels.shape[1]) | config
    images = train.Images(pixels, labels, [], ["a", "b", "c"])
    return train.Stream(images, torch.arange(len(pixels)), config, role, CPU, ((0.0,) * 3, (1.0,) * 3))


@pytest.mark.parametrize("size, pad", [(16, 2), (32, 4)])
def test_augmentation_is_crop_flip_and_cutout(size, pad):
    """Every augmented image is a crop or flipped crop of its zero-padded original, outside the erased square."""
    pixels = torch.randint(1, 256, (4, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shifts = set()
    for epoch in range(6):
        for images, labels in stream_of(pixels, cutout=4).epoch(epoch):
            for image, label in zip(images, labels, strict=True):
                erased, found = (image == 0).all(0), []
                for number, y, x in itertools.product(range(4), range(2 * pad + 1), range(2 * pad + 1)):
                    padded = torch.nn.functional.pad(pixels[number].permute(2, 0, 1) / 255, (pad,) * 4)
                    crop = padded[:, y : y + size, x : x + size]
                    for candidate in (crop, crop.flip(2)):
                        difference = (candidate != image).any(0)
                        if not (difference & ~erased).any() and difference.sum() <= 16:
                            found.append(number % 3 == label)
                            shifts |= {y, x}
                assert any(found)
    assert min(shifts) == 0 and max(shifts) == 2 * pad


def test_evaluation_sees_every_image_once_in_mixed_batches():
    pixels = torch.arange(25, dtype=torch.uint8).view(25, 1, 1, 1).expand(25, 4, 4, 3).contiguous()
    stream = stream_of(pixels, role="test", batch_size=8)
    stream.labels = torch.arange(25) // 10  # class by class, as folders are read
    batches = list(stream.epoch(0))
    assert [len(labels) for _, labels in batches] == [8, 8, 9]  # a single image is too few for batch norm
    assert all(len(labels.unique()) > 1 for _, labels in batches)
    seen = torch.cat([(images[:, 0, 0, 0] * 255).round() for images, _ in batches])
    assert sorted(seen.tolist()) == list(range(25))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_data_of_torchvision_becomes_pixels_and_labels(name, monkeypatch):
    """In place of the archives, which need a download: objects with torchvision's documented attributes."""
    import numpy
    import torchvision

    pixels = numpy.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=numpy.uint8)

    class Stub:
        classes = [str(label) for label in range(10)]
        data, targets, labels = pixels, [0, 1, 2, 3, 4, 5], numpy.arange(6)

        def __init__(self, *arguments, download):
            assert arguments == ("data", "test" if name == "svhn" else False)

    if name == "svhn":
        Stub.data = pixels.transpose(0, 3, 1, 2)
    monkeypatch.setattr(torchvision.datasets, name.upper(), Stub)
    images = train.load_data(dict(dataset=name, data="data", image_size=32), "test")
    assert torch.equal(images.pixels, torch.from_numpy(pixels)) and images.labels.tolist() == list(range(6))
    config = dict(seed=0, batch_size=4, stem="small", cutout=0, workers=0, image_size=32)
    statistics = train.statistics_of(images, dict(dataset=name))
    batch, _ = next(train.Stream(images, torch.arange(6), config, "test", CPU, statistics).epoch(0))
    assert batch.shape == (4, 3, 32, 32) and batch.is_contiguous(memory_format=torch.channels_last)


def test_halves_are_disjoint_and_stratified():
    labels = torch.randint(0, 5, (1001,), generator=torch.Generator().manual_seed(0))
    weights, architecture = train.halves(labels, 0.5, seed=3)
    assert not set(weights.tolist()) & set(architecture.tolist())
    for label in range(5):
        count = (labels == label).sum()
        assert abs((labels[weights] == label).sum() - count / 2) <= 1
        assert abs((labels[architecture] == label).sum() - count / 2) <= 1
    assert torch.equal(weights, train.halves(labels, 0.5, seed=3)[0])
    assert not torch.equal(weights, train.halves(labels, 0.5, seed=4)[0])
    assert all(95 <= len(part) <= 105 for part in train.halves(labels, 0.1, seed=0))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_neither_the_cache_nor_the_number_of_workers_changes_a_bit(folder, tmp_path):
    """In S4, whose noise op draws from torch's default generator."""
    for name, workers, cache in (("cached", 0, 4), ("0", 0, 0), ("3", 3, 0)):
        more = ("--space", "s4", "--workers", workers, "--cache-gib", cache, "--quiet")
        assert train.main(flags(folder, tmp_path / name, *more)) == 0
    assert_equal_runs(tmp_path / "cached", tmp_path / "0")
    assert_equal_runs(tmp_path / "cached", tmp_path / "3")


def test_statistics_are_those_of_the_training_images_and_stay(folder, searched, tmp_path):
    config = train.configure("search", dict(dataset="folder", data=folder, image_size=16))
    values = train.load_data(config, "train").pixels.double().view(-1, 3) / 255
    mean, std = torch.load(searched / "last.pt", weights_only=True)["statistics"]
    assert mean == pytest.approx(values.mean(0).tolist()) and std == pytest.approx(values.std(0, correction=0).tolist())
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(folder, data)
    assert process(interrupting(tmp_path), *flags(data, out), int(signal.SIGTERM), 4)[0] == 143
    for file in (data / "train").glob("*/*.png"):
        Image.new("RGB", (16, 16)).save(file)
    assert train.main(flags(data, out, "--resume", "--no-retrain")) == 0
    assert tuple(torch.load(out / "last.pt", weights_only=True)["statistics"]) == (mean, std)


@pytest.mark.parametrize("mode, size, name", [
    ("L", (5, 9), "a.png"), ("RGBA", (40, 16), "a.png"), ("CMYK", (16, 16), "a.tif"), ("P", (1, 1), "a.gif"),
    ("RGB", (400, 30), "a.png"),
])  # fmt: skip
def test_images_of_any_kind_and_size_are_read(mode, size, name, tmp_path):
    Image.new(mode, size, 0).save(tmp_path / name)
    image = folders.Files([], SMALL, "test").read(str(tmp_path / name))
    assert image.shape == (16, 16, 3) and image.dtype == torch.uint8


def test_16_bits_keep_their_shades_and_a_program_is_no_image(tmp_path):
    read = folders.Files([], SMALL, "test").read
    Image.frombytes("I;16", (16, 16), b"".join(bytes((0, shade)) for shade in range(256))).save(tmp_path / "a.png")
    assert read(str(tmp_path / "a.png"))[..., 0].flatten().tolist() == list(range(256))
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(ValueError, match="script.png is no readable image"):
        read(str(tmp_path / "script.png"))


def test_imagenet_searches_a_tenth_twice_and_retrains(tmp_path, capsys):
    for label, number in itertools.product(range(20), range(11)):
        path = tmp_path / "data" / ("train" if number else "val") / f"n{label:08d}"
        path.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + number, 50), (12 * label, 255 - 12 * label, 100)).save(path / f"{number}.JPEG")
    words = f"search --dataset imagenet --data {tmp_path / 'data'} --image-size 64 --channels 2 --cells 3 --epochs 1"
    words += " --batch-size 10 --samples 1 --workers 1 --retrain --retrain-channels 2 --retrain-cells 3"
    assert train.main([*words.split(), "--retrain-epochs", "1", "--out", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert "(20 classes, 20 images for the weights, 20 for alpha and beta)" in text
    assert "(20 classes, 200 training and 20 test images)" in text


# --- protocols --------------------------------------------------------------------------------------------------------


def test_protocols_follow_the_published_code():
    assert train.protocol(train.RETRAIN, "nb201", "cifar10")["clip"] == 0  # NAS-Bench-201 does not clip
    folder = dict(dataset="folder", stem="imagenet")
    retrain, imagenet = (train.configure("retrain", dict(genotype="GDAS_V1") | more)
                         for more in (folder, dict(dataset="imagenet")))  # fmt: skip
    for name in train.RETRAIN["default"]:
        assert retrain[name] == imagenet[name]
    search, imagenet = train.configure("search", folder), train.configure("search", dict(dataset="imagenet"))
    assert (search["batch_size"], search["samples"], search["fraction"]) == (256, 3, 0.5)
    assert (imagenet["batch_size"], imagenet["samples"], imagenet["fraction"]) == (256, 3, 0.1)
    assert search["image_size"] == imagenet["image_size"] == 224


def test_schedules_follow_the_published_code():
    config = dict(lr=0.025, lr_min=0.001, epochs=50)
    rates = [train.learning_rate(config, epoch) for epoch in range(50)]
    assert rates[0] == 0.025 and rates[1] == pytest.approx(2.4976e-2, abs=1e-6)  # as an R-DARTS log prints them
    linear = dict(lr=0.5, lr_min=0.0, epochs=250, schedule="linear", lr_warmup=5)
    rates = [train.learning_rate(linear, epoch) for epoch in range(250)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert rates[5] == pytest.approx(0.5 * (245 - 5) / 245)
    assert rates[245:] == pytest.approx([0.5 * left / (245 * 5) for left in (5, 4, 3, 2, 1)])


@pytest.mark.parametrize("name, dataset, parameters, operations", [
    ("DARTS_V2", "cifar10", 3_349_342, 528.36e6), ("DARTS_V2", "imagenet", 4_718_752, 529.91e6),
    ("PC_DARTS_image", "imagenet", 5_342_464, 581.63e6),
])  # fmt: skip
def test_parameters_and_multiply_adds_are_the_published_ones(name, dataset, parameters, operations):
    config = train.configure("retrain", dict(genotype=name, dataset=dataset))
    network = train.build_network(genotypes.load(name), config, 1000 if dataset == "imagenet" else 10)
    counted = train.size_of(network, config["image_size"])
    assert counted[0] == parameters
    assert counted[1] == pytest.approx(operations, abs=0.01e6)


def test_default_folders_tell_apart_what_differs_from_the_protocol():
    def out(**given):
        return train.configure("search", given)["out"]

    assert out() == "runs/darts-cifar10-rome-v2-s0"
    assert out(space="s2", dataset="svhn", method="gdas", seed=3) == "runs/s2-svhn-gdas-s3"
    assert out(samples=4, equal_passes=True) == "runs/darts-cifar10-rome-v2-k4-e87-s0"
    assert out(method="gdas", samples_theta=7) == "runs/darts-cifar10-gdas-k1.7-s0"
    retrain = train.configure("retrain", dict(genotype="GDAS_V1", dataset="cifar100", seed=2))
    assert retrain["out"] == "runs/retrain-GDAS_V1-cifar100-s2"


def test_flags_come_before_stored_settings_before_quick_before_the_protocol():
    assert train.configure("search", {})["epochs"] == 50
    assert train.configure("search", dict(quick=True))["epochs"] == train.QUICK["search"]["epochs"]
    assert train.configure("search", dict(quick=True, epochs=7))["epochs"] == 7
    config = train.configure("search", dict(quick=True, epochs=7, amp=True), ["--epochs", "8", "--no-amp"])
    assert (config["epochs"], config["amp"], config["dataset"]) == (8, False, "shapes")
    whole = train.configure("search", dict(samples=4))
    assert train.configure("search", whole) == whole


def test_equal_passes_keeps_k_times_epochs():
    epochs = {k: train.configure("search", dict(samples=k, equal_passes=True))["epochs"] for k in (1, 4, 7, 10)}
    assert epochs == {1: 350, 4: 87, 7: 50, 10: 35}  # the paper's Table 5


def test_a_retrain_follows_the_space_that_the_genotype_file_names(tmp_path):
    path = tmp_path / "genotype.json"
    genotypes.save(genotypes.PUBLISHED["GDAS_V1"], path, space="s2")
    assert train.configure("retrain", dict(genotype=str(path)))["channels"] == 16
    assert train.configure("retrain", dict(genotype=str(path), space="darts"))["channels"] == 36
    assert train.configure("retrain", dict(genotype=DEAD_NODES))["space"] == "nb201"
    assert train.configure("retrain", dict(genotype=ONE_SHOT_TEXT))["space"] == "1shot1-1"


# ----------------------------------------------------------------------------------------------------------------------
# Documents

PAGES = {path.stem: path.read_text("utf-8") for path in (HERE / "README.md", *(HERE / "docs").glob("*.md"))}
SCRIPTS = {name: code for code, name in re.findall(r"```python\n(# (\w+\.py)\n.+?)```", PAGES["examples"], re.DOTALL)}


def commands(page):
    """The command lines of a page as (program, words)."""
    found = re.findall(r"^ *(?:python|torchrun --nproc_per_node 4) (\S+\.py)([^\n]*)", PAGES[page], re.MULTILINE)
    return [(program, shlex.split(text.split("   ")[0])) for program, text in found]  # what follows explains


def test_companion_quotes_rome_py_to_the_letter():
    lines, quotes = Path(rome.__file__).read_text("utf-8").splitlines(), []
    for quote in re.findall(r"```python\n(.+?)\n```", PAGES["companion"], re.DOTALL):
        parts = [textwrap.dedent("\n".join(lines[n : n + 1 + quote.count("\n")])) for n in range(len(lines))]
        assert quote in parts, f"docs/companion.md quotes what is not in rome.py: {quote}"
        quotes.append(quote)
    assert len(quotes) >= 6
    assert re.findall(r"\\tag\{(\d+)\}", PAGES["companion"]) == [str(number) for number in range(1, 13)]


def test_flags_and_commands_of_the_documents_exist(tmp_path, monkeypatch):
    parser = train.make_parser()
    known = set()
    for each in parser._subparsers._group_actions[0].choices.values():
        known |= set(re.findall(r"--[a-z-]+", each.format_help()))
    for page in ("README", "companion", "examples"):
        named = {flag.replace("--retrain-", "--") for flag in re.findall(r"`(--[a-z-]+)", PAGES[page])}
        assert named <= known, page
    monkeypatch.chdir(tmp_path)
    found = Path("runs/darts-cifar10-rome-v2-s0/genotype.json")  # of the README's search
    found.parent.mkdir(parents=True)
    genotypes.save(genotypes.PUBLISHED["GDAS_V1"], found)
    stages = [["search", *words] if program == "rome.py" else words for program, words in commands("README")]
    stages = [words for words in stages if words[0] in ("search", "retrain") and "--help" not in words]
    assert len(stages) >= 6
    for words in stages:
        assert train.configure(words[0], {}, words[1:])["epochs"] > 0
    for words in commands("README"):
        if words[0] == "train.py" and words[1][0] in ("list", "report", "plot", "predict"):
            parser.parse_args(words[1])


def test_links_of_the_documents_lead_somewhere():
    for page in (HERE / "README.md", *HERE.glob("docs/*.md"), *HERE.glob("evidence/*.md")):
        text = re.sub(r"```.+?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\((?!https?:)([^)]*)\)", text):
            name, _, part = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), f"{page.name}: {link}"
            titles = re.findall(r"^#+ (.+)", target.read_text("utf-8"), re.MULTILINE) if part else []
            assert not part or part in [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles], link


def test_checks_of_the_companion_hold(capsys):
    checks = runpy.run_path(str(HERE / "docs" / "checks.py"))
    assert checks["draw_pairs"](40_000) < 0.01  # four standard deviations
    rows = checks["compare_gradients"](40)
    assert min(rows[0]) > 0.999 and rows[0] > rows[1] > rows[2] > rows[3]
    assert rows[3][1] > rows[3][0] + 0.03  # the successive softmax is nearer


def test_figure_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    figures = runpy.run_path(str(HERE / "docs" / "figures.py"))
    figures["subnetwork"].__globals__["HERE"] = tmp_path
    figures["subnetwork"]()
    text = (tmp_path / "subnetwork.svg").read_text()
    assert len(re.findall(r">(?:sep|dil|max|avg|skip)[ \dx]*<", text)) == 14 + 8


def test_examples_run(tmp_path, monkeypatch, capsys):
    """All commands and programs of docs/examples.md, at small sizes, in the order of the page."""
    monkeypatch.chdir(tmp_path)
    for place in ("train/cat", "train/dog", "test/cat", "test/dog"):
        Path("photos", place).mkdir(parents=True)
        for number in range(1, 13):
            Image.new("RGB", (40, 24), (16 * number, 100 * place.endswith("dog"), 0)).save(
                f"photos/{place}/{number}.jpg"
            )
    for name, code in SCRIPTS.items():
        Path(name).write_text(code)
    runpy.run_path("loop.py")
    runpy.run_path("own.py")
    losses = re.findall(r"loss ([\d.]+)", capsys.readouterr().out)
    assert float(losses[-1]) < float(losses[0]) / 2
    small = "--channels 2 --cells 3 --epochs 1 --batch-size 6 --samples 1 --quiet".split()
    shrink = " --retrain-channels 2 --retrain-cells 3 --retrain-epochs 4 --retrain-batch-size 6".split()
    for _, words in commands("examples"):
        if "shapes" not in words:
            more = small + shrink * ("--retrain" in words) if words[0] == "search" else []
            assert train.main(words + more) == 0, words
    shown = capsys.readouterr().out
    assert len(re.findall(r"^photos/test/\S+  (?:cat|dog)  [01]\.\d{4}$", shown, re.MULTILINE)) == 2
    assert rome.SPACES.pop("small") and rome.PRIMITIVES.pop("grouped") and Path("runs/own/retrain/last.pt").exists()
    runpy.run_path("export.py")
    images = torch.randn(5, 3, 32, 32)
    exported, _ = torch.export.load("photos.pt2").module()(images)
    assert torch.allclose(exported, predict.load_network("runs/photos/retrain/last.pt")[0](images)[0], atol=1e-5)


def test_the_table_of_nasbench201_is_made_as_the_page_says(tmp_path, monkeypatch):
    """With a stand-in for the API, which the tests do not install."""
    cells = [f"|{op}~0|+|{op}~0|{op}~1|+|{op}~0|{op}~1|{op}~2|" for op in ("none", "skip_connect")]
    api = types.SimpleNamespace(meta_archs=cells, arch2infos_dict={0: {}, 1: {}})
    api.get_more_info = lambda index, dataset, hp, is_random: {"test-accuracy": 10.0 * index + len(dataset)}
    monkeypatch.setitem(sys.modules, "nats_bench", types.SimpleNamespace(create=lambda *a, **k: api))
    monkeypatch.setattr(sys, "argv", ["script", "folder"])
    monkeypatch.chdir(tmp_path)
    Path("make.py").write_text(re.search(r"```python\n(.+?)```", PAGES["nasbench201"], re.DOTALL)[1])
    runpy.run_path("make.py")
    table = nasbench201.read_table("nasbench201.csv")
    assert table["c100_test"] == {"000000": 8.0, "111111": 18.0} and api.arch2infos_dict == {}


# ----------------------------------------------------------------------------------------------------------------------
# Two processes

ROLES = ("architecture", "weights")
ROLE_CASES = [(topology, role) for topology in ("v2", "v1", "none") for role in ROLES]


def step_of_rank(topology, role, rank):
    """Loss, gradients before a clip, and strides of the parameters, of one step on a rank's own images and samples."""
    torch.manual_seed(0)
    net = rome.Supernet("darts", 4, 3, topology=topology).double()
    data = torch.Generator().manual_seed(rank)
    images, labels = torch.randn(4, 3, 8, 8, generator=data).double(), torch.randint(10, (4,), generator=data)
    architect = rome.Architect(net, 2, None, lambda role, k: torch.Generator().manual_seed(10 * rank + k))
    parameters = net.weights() if role == "weights" else net.architecture_parameters()
    step = architect.weight_step if role == "weights" else architect.architecture_step
    loss = step(images, labels, 1.0, torch.optim.SGD(parameters, 0.0))
    return loss, [p.grad for p in parameters], [p.stride() for p in parameters]


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save({case: step_of_rank(*case, rank) for case in ROLE_CASES}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_mean_gradients_in_the_strides_of_the_parameters(tmp_path):
    torch.multiprocessing.spawn(worker, (str(tmp_path),), 2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for case in ROLE_CASES:
        (loss_0, grads_0, _), (loss_1, grads_1, _) = (step_of_rank(*case, rank) for rank in (0, 1))
        kinds = set()
        for loss, grads, strides in (rank[case] for rank in ranks):
            torch.testing.assert_close(loss, (loss_0 + loss_1) / 2, rtol=1e-6, atol=0)
            for grad, stride, *alone in zip(grads, strides, grads_0, grads_1):
                present = [g for g in alone if g is not None]
                kinds |= {len(present), "other strides" if present and not grad.is_contiguous() else "plain"}
                assert (grad is None) == (not present)
                if present:
                    torch.testing.assert_close(grad, sum(present) / 2, rtol=1e-6, atol=1e-12)
                    assert grad.stride() == stride
        if case[1] == "weights":  # operations of both processes, of one and of none; channels-last weights
            assert kinds == {0, 1, 2, "other strides", "plain"}
