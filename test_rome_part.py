"""Tests of rome.py, each against a source of truth of its own: enumeration, plain equations, F.conv2d, counts."""

import itertools
import math
import os
import random
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import genotypes
import rome

torch.set_num_threads(1)  # the tensors here are tiny
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


class Plain:
    """The published networks, from the parameters of one of rome's, in order; what no path needs has none.

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
    grads = torch.autograd.grad(logits.square().sum(), net.weights(), allow_unused=True, retain_graph=True)
    used = [p for p, grad in zip(net.weights(), grads) if grad is not None]
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


def assert_same_network(model, outputs, expected, plain):
    """Equal outputs and gradients; every parameter has a gradient, and the plain network has taken each."""
    assert next(plain.parameters, None) is None
    results = []
    for y in (outputs, expected):
        results.append((*y, *torch.autograd.grad(sum(part.square().sum() for part in y), list(model.parameters()))))
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
    assert_same_network(model, model(images), (logits, plain.auxiliary(middle, imagenet)), plain)
    assert model.eval()(images)[1] is None


def test_nb201_networks_are_the_published_ones_without_what_no_path_needs():
    draw, images, dead = random.Random(0), batch(size=16)[0], 0
    for _ in range(30):
        ops = [draw.choice(NB201_OPS) for _ in NB201_EDGES]
        edges = [edge for edge, op in zip(NB201_EDGES, ops) if op != "none"]
        if not reaches(edges, 0, 3):
            continue
        dead += not (reaches(edges, 1, 3) and reaches(edges, 2, 3))
        model = rome.Network(NB201_TEXT.format(*ops), channels=4, cells=1, classes=5, drop_path=0.0).double()
        plain = Plain(model.parameters(), affine=True)
        assert_same_network(model, model(images)[:1], [plain.nb201(nb201_nodes(ops), images)], plain)
    assert dead > 3


@pytest.mark.parametrize("space", ["1shot1-1", "1shot1-2", "1shot1-3"])
def test_1shot1_networks_are_the_published_ones_without_what_no_path_needs(space):
    net, images = tiny(space, cells=1, channels=2), batch(size=16)[0]
    for seed in range(6):
        genotype = net.cell(net.sample(1.0, generator(seed)))
        genotype = genotype._replace(ops=("conv1x1-bn-relu", *genotype.ops[1:]))  # the table's own, of no space
        model = rome.Network(genotype, channels=4, cells=3, classes=5, drop_path=0.0).double()
        plain = Plain(model.parameters(), affine=True)
        A, B = [1.0] * len(genotype.ops), defaultdict(lambda: 1.0)
        expected = plain.one_shot(*genotype, images, 3, A, B)
        assert_same_network(model, model(images)[:1], [expected], plain)


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
    "unknown op": lambda: tiny(S2._replace(ops={"normal": (("x", SEP),) * 14, "reduce": ROWS}), cells=1),
    "rows without ops": lambda: tiny(S2._replace(ops={"normal": ((),) * 14, "reduce": ((),) * 14})),
    "one input": lambda: tiny(S2._replace(picks=(1, 1, 1, 1))),
    "three inputs": lambda: tiny(S2._replace(picks=(2, 3, 3, 3))),
    "family": lambda: tiny(S2._replace(family="x")),
    "no input": lambda: tiny(rome.SPACES["nb201"]._replace(picks=(0, 1, 1))),
    "space": lambda: tiny("x"),
    "topology": lambda: tiny("s2", "x"),
    "GDAS in 1shot1": lambda: tiny("1shot1-1", "none"),
    "odd channels": lambda: tiny("s2", channels=3),
    "stem": lambda: tiny("nb201", imagenet=True),
    "tau": lambda: tiny("s2").sample(1e-40),
    "tau 0": lambda: rome.gumbel_top_k(torch.zeros(3), 2, 0.0, torch.zeros(3)),
    "no samples": lambda: rome.Architect(tiny("s2"), (2, 0)),
    "half a sample": lambda: rome.Architect(tiny("s2"), 1.5),
    "two and a half": lambda: rome.Architect(tiny("s2"), (1, 2.5)),
    "generator": lambda: rome.Architect(tiny("s2"), generator=[generator()]),
    "reduction": lambda: rome.Architect(tiny("s2"), weight_reduction="max"),
    "no beta": lambda: tiny("s2", "none").log_prob(tiny("s2").genotype()),
    "op of another space": lambda: s2_cell("log_prob", normal=[("max_pool_3x3", 0), (SEP, 1), *G.normal[2:]]),
    "an input twice": lambda: s2_cell("architecture", normal=[(SEP, 0), (SEP, 0), *[(SEP, 0), (SEP, 1)] * 3]),
    "another family": lambda: tiny("s2").architecture(NB201_TEXT.format(*[SKIP] * 6)),
    "a name": lambda: rome.Network("DARTS_V2"),
    "unknown op to train": lambda: rome.Network(G._replace(normal=[("x", 0), *G.normal[1:]])),
    "an input twice to train": lambda: rome.Network(G._replace(normal=[(SEP, 0), (SKIP, 0), *G.normal[2:]])),
    "no such input to train": lambda: rome.Network(G._replace(normal=[(SEP, 0), (SKIP, 2), *G.normal[2:]])),
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
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 16])
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
