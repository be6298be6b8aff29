"""Tests. Each holds the program to a source of truth of its own: enumeration, plain code, numbers.

rome.py, genotypes.py, train.py, the documents. The tests of extra/, tools/, bench/ and evidence/
stand in those folders.
"""

import csv
import datetime
import fcntl
import functools
import importlib
import inspect
import io
import itertools
import json
import math
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from multiprocessing.pool import ThreadPool
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn
from torch.autograd import grad
from torch.testing import assert_close

import genotypes
import rome
import train
from extra import nasbench

HERE = Path(rome.__file__).resolve().parent
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start

# --------------------------------------------------------------------------------------------------
# rome.py

torch.set_num_threads(1)  # the tensors here are tiny
SKIP, SEP = OPS = ("skip_connect", "sep_conv_3x3")
EDGES = [(i, j) for j in range(4) for i in range(j + 2)]  # input i of computing node j
HALVES = ("architecture", "weight")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cells_of(nodes, *ops):
    """A space with these operations on every edge."""
    rows = (ops,) * rome.first_edge(nodes)
    return dict(normal=rows, reduce=rows)


def tiny(space="darts", topology="v2", seed=0, **settings):
    """A small supernet in float64, with alpha and beta from N(0, 1)."""
    torch.manual_seed(seed)
    settings = dict(channels=2, cells=3, classes=5) | settings
    net = rome.Supernet(space, topology=topology, **settings).double()
    for p in net.architecture_parameters():
        nn.init.normal_(p)
    return net


def batch(count=4, size=8):
    images = torch.randn(count, 3, size, size, generator=generator()).double()
    return images, torch.arange(count) % 5


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def refused(function, *args, **settings):
    """The message of a refusal, which is one line."""
    with pytest.raises(ValueError) as error:
        function(*args, **settings)
    text = str(error.value)
    assert text.isprintable() and len(text) < 800
    return text


def assert_frequent(counts, probabilities):
    """Every event is as frequent as it should be, within four standard deviations."""
    total = sum(counts)
    for count, p in zip(counts, probabilities):
        deviation = math.sqrt(total * p * (1 - p))
        assert abs(count - total * p) <= 4 * deviation


# --------------------------------------------------------------------------------------------------
# Sampling


def test_gumbel_noise_is_gumbel_and_comes_from_its_generator():
    logits = torch.zeros(100_000).double()
    noise = rome.gumbel_noise(logits, generator(8))
    assert noise.dtype == logits.dtype
    assert torch.equal(noise, rome.gumbel_noise(logits, generator(8)))
    uniform = torch.exp(-torch.exp(-noise))  # the distribution function of Gumbel(0, 1)
    counts = torch.histc(uniform, 20, 0, 1)
    assert_frequent(counts.tolist(), [0.05] * 20)


def test_top_2_draws_without_replacement():
    p = [0.4, 0.1, 0.25, 0.2, 0.05]
    logits = torch.tensor(p).log().expand(40_000, 5)
    B = rome.gumbel_top_k(logits, 2, 0.5, rome.gumbel_noise(logits, generator(1)))
    counts, exact = Counter(map(tuple, B.tolist())), Counter()
    for i, k in itertools.permutations(range(5), 2):  # i is drawn first
        row = tuple(float(n in (i, k)) for n in range(5))
        exact[row] += p[i] * p[k] / (1 - p[i])
    assert set(counts) == set(exact)
    assert_frequent([counts[row] for row in exact], exact.values())


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("tau", [10, 0.1, 1e-3])
def test_gates_are_0_or_1_and_have_the_gradient_of_the_softmax(k, tau):
    logits = torch.randn(50, 6, generator=generator(2)).double()
    logits.requires_grad_()
    noise, factor = rome.gumbel_noise(logits, generator(3)), torch.arange(6.0)
    gates = rome.gumbel_top_k(logits, k, tau, noise)
    scores = (logits + noise).detach()
    last = scores.topk(k).values[:, -1:]
    assert torch.equal(gates, (scores >= last).double())
    p = (scores / tau).softmax(-1)
    mean = (p * factor).sum(-1, keepdim=True)
    expected = p * (factor - mean) / tau
    found = grad((gates * factor).sum(), logits)[0]
    assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_a_gate_learns_from_its_own_edge_and_from_all_inputs_of_its_node():
    net = tiny("s1")
    choice, options = net.sample(0.7)["normal"], dict(retain_graph=True, allow_unused=True)
    for j, node in enumerate(choice.nodes):
        for i, op in node:
            edge = EDGES.index((i, j))
            gate = choice.gates[edge]
            alpha, _, beta, _ = grad(gate, net.architecture_parameters(), **options)
            assert gate == 1 and alpha[edge, op] > 0 and beta[j, i] > 0
            assert alpha.any(1).nonzero().tolist() == [[edge]]
            assert beta.nonzero().tolist() == [[j, n] for n in range(j + 2)]


def test_v1_draws_a_pair_of_inputs():
    net, factor = tiny("s1", "v1"), torch.arange(5.0).double()
    beta = net.beta["normal"]
    pairs = list(itertools.combinations(range(5), 2))
    B = net.draw_inputs("normal", 0.7, generator(1))[3]  # of the last node, which has all pairs
    noise = rome.gumbel_noise(beta, generator(1))
    soft = ((beta + noise)[3] / 0.7).softmax(0)  # Eq. 4, 5
    best = pairs[soft.argmax()]
    assert B.tolist() == [float(i in best) for i in range(5)]
    relaxed = soft @ torch.stack([factor[i] + factor[k] for i, k in pairs])  # Eq. 6
    assert_close(grad((B * factor).sum(), beta), grad(relaxed, beta))


# --------------------------------------------------------------------------------------------------
# Networks


def darts(parameters, derived, ops, z, images, cells, imagenet=False):
    """DARTS's networks in plain torch: the logits, and the auxiliary ones of a derived network.

    The parameters come in the order of their use. derived: all batch norms have scale and shift,
    and pools have no norm behind them. ops: per cell type the names of every edge's operations.
    """
    left = iter(parameters)

    def norm(x, affine=derived):
        scale, shift = (next(left), next(left)) if affine else (None, None)
        return F.batch_norm(x, None, None, scale, shift, training=True)

    def conv(x, stride=1, dilation=1):
        weight = next(left)
        padding = dilation * (weight.shape[2] // 2)
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(x, weight, None, stride, padding, dilation, groups)

    def halve(x):
        x = F.relu(x)
        even, odd = conv(x, 2), conv(x[:, :, 1:, 1:], 2)
        return norm(torch.cat([even, odd], 1))

    def run(name, x, stride):
        if name == SKIP:
            return x if stride == 1 else halve(x)
        if name == "max_pool_3x3":
            x = F.max_pool2d(x, 3, stride, 1)
        if name == "avg_pool_3x3":
            x = F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
        if "pool" in name:
            return x if derived else norm(x)
        dilation, strides = (2, [stride]) if "dil" in name else (1, [stride, 1])
        for stride in strides:
            x = norm(conv(conv(F.relu(x), stride, dilation)))
        return x

    if imagenet:
        s0 = norm(conv(images, 2), True)
        s0 = norm(conv(F.relu(s0), 2), True)
        s1 = norm(conv(F.relu(s0), 2), True)
    else:
        s0 = s1 = norm(conv(images), True)
    outputs, reduction = [], imagenet
    for index in range(cells):
        first = halve(s0) if reduction else norm(conv(F.relu(s0)))
        states = [first, norm(conv(F.relu(s1)))]
        reduction = index in (cells // 3, 2 * cells // 3)
        kind = "reduce" if reduction else "normal"
        gates = [1] * len(EDGES) if derived else z[kind].gates
        for j, node in enumerate(z[kind].nodes):
            total = 0
            for i, op in node:
                edge = EDGES.index((i, j))
                x = run(ops[kind][edge][op], states[i], 2 if reduction and i < 2 else 1)
                total = total + gates[edge] * x
            states.append(total)
        s0, s1 = s1, torch.cat(states[2:], 1)
        outputs.append(s1)
    logits_auxiliary = []
    if derived:
        x = F.relu(outputs[2 * cells // 3])
        if x.shape[2] == (7 if imagenet else 8):
            x = F.avg_pool2d(x, 5, 2 if imagenet else 3)
        x = F.relu(norm(conv(F.adaptive_avg_pool2d(x, 2))))
        x = F.conv2d(x, next(left))
        x = F.relu(x if imagenet else norm(x)).flatten(1)
        logits_auxiliary = [F.linear(x, next(left), next(left))]
    else:
        s1 = F.relu(norm(s1, True))
    logits = F.linear(s1.mean((2, 3)), next(left), next(left))
    assert next(left, None) is None
    return [logits, *logits_auxiliary]


def assert_same(found, expected, parameters):
    """Equal outputs and gradients."""
    results = []
    for outputs in (found, expected):
        total = sum(y.square().sum() for y in outputs)
        results.append([*outputs, *grad(total, parameters)])
    assert_close(*results, rtol=1e-6, atol=1e-8)


NETS = [("darts", "none", 8, seed) for seed in range(4)]  # all operations at both strides
NETS += [("darts", "v2", 32, 0), ("s1", "v2", 8, 0), ("s2", "v1", 8, 0)]


@pytest.mark.parametrize("space, topology, size, seed", NETS)
def test_sub_network_is_that_of_darts_with_a_gate_at_every_operation(space, topology, size, seed):
    imagenet, gates = size == 32, []
    net = tiny(space, topology, seed, imagenet=imagenet)
    images, z = batch(4, size)[0], net.sample(1.0, generator(seed))
    for kind, choice in z.items():
        assert len(choice.nodes[3]) == (5 if topology == "none" else 2)  # Eq. 1
        gate = torch.linspace(0.5, 1.5, len(choice.gates)).double()
        z[kind] = choice._replace(gates=gate.requires_grad_())
        gates.append(gate)
    logits = net(images, z)
    logits.sum().backward(retain_graph=True)
    used = [p for p in net.weights() if p.grad is not None]
    expected = darts(used, False, net.table, z, images, 3, imagenet)
    assert_same([logits], expected, used + gates)


@pytest.mark.parametrize("size", [32, 12, 4, 224])
def test_derived_network_is_that_of_darts(size):
    net, images, imagenet = tiny(seed=size), batch(3, size)[0], size == 224
    z = net.sample(1.0, generator(size))
    model = rome.Network(net.cell(z), 2, 4, 5, imagenet=imagenet).double()
    parameters = list(model.parameters())
    expected = darts(parameters, True, net.table, z, images, 4, imagenet)
    assert_same(model(images), expected, parameters)
    assert model.eval()(images)[1] is None


def test_networks_have_the_published_numbers_of_parameters():
    cell = genotypes.PUBLISHED["DARTS_V2"]
    counts = {
        rome.Network(cell, auxiliary=False): 3_349_342,
        rome.Network(cell): 3_825_768,
        rome.Network(cell, 48, 14, 1000, auxiliary=False, imagenet=True): 4_718_752,
        rome.Supernet("darts").body: 1_930_618 + 512,  # 512: the last batch norm is ours
    }
    for module, count in counts.items():
        assert sum(p.numel() for p in module.parameters()) == count


S1 = """
skip dil3 | skip dil5 | skip dil5 | skip sep3 | skip dil3 | max skip | skip sep3 |
skip sep3 | skip dil3 | skip sep3 | max skip | skip dil3 | dil3 dil5 | dil3 dil5

max avg | max dil3 | max avg | max avg | skip dil5 | max avg | max sep3 |
skip dil3 | skip dil5 | max avg | max avg | skip dil5 | skip dil5 | skip dil5
"""  # R-DARTS's src/spaces.py, edge by edge: the normal cell, then the reduction cell


def test_spaces_hold_the_published_operations():
    names = dict(skip=SKIP, max="max_pool_3x3", avg="avg_pool_3x3", sep3=SEP)
    names |= dict(dil3="dil_conv_3x3", dil5="dil_conv_5x5", sep5="sep_conv_5x5")
    for kind, text in zip(("normal", "reduce"), S1.split("\n\n")):
        rows = [edge.split() for edge in text.split("|")]
        assert rome.SPACES["s1"][kind] == tuple(tuple(names[op] for op in row) for row in rows)
        assert rome.SPACES["s2"][kind] == rome.SPACES["s3"][kind] == (OPS,) * 14
        assert rome.SPACES["s4"][kind] == (("noise", SEP),) * 14
        assert [set(row) for row in rome.SPACES["darts"][kind]] == [set(names.values())] * 14


def test_average_pools_do_not_see_channels_last_on_cuda():
    """Their gradient is wrong there: pytorch#188344."""
    x = mock.Mock(device=torch.device("cuda"))
    with mock.patch("torch.nn.AvgPool2d.forward") as pool:
        rome.AvgPool(1)(x)
    x.clone.assert_called_once_with(memory_format=torch.contiguous_format)
    pool.assert_called_once_with(x.clone())


def test_noise_does_not_depend_on_its_input():
    op, x = rome.PRIMITIVES["noise"](8, 2, False), torch.ones(4, 8, 6, 6, requires_grad=True)
    noise = op(x)
    assert noise.shape == (4, 8, 3, 3) and not noise.requires_grad
    assert not torch.equal(noise, op(x))


def test_state_is_alpha_beta_and_the_weights_and_a_pass_changes_none():
    net, images = tiny(), batch()[0]
    parts = net.architecture_parameters() + net.weights()
    assert sorted(map(id, parts)) == sorted(map(id, net.parameters()))
    assert net.state_dict().keys() == dict(net.named_parameters()).keys()
    z = net.sample(1.0)
    logits = net(images, z)
    assert torch.equal(net.eval()(images, z), logits)  # by the batch's statistics


def test_drop_path_follows_its_rate_keeps_the_mean_and_spares_the_identity():
    nodes = [("avg_pool_3x3", 0), (SKIP, 1)]
    model = rome.Network(rome.Genotype(nodes, [2], nodes, [2]), 2, 3)
    cell, rate = model.body.cells[0], model.body.drop_path
    s0, s1 = torch.randn(2, 1000, 6, 4, 4)
    run = functools.partial(cell, s0, s1, model.z["normal"])
    skipped = cell.preprocess1(s1)
    pooled = run(None) - skipped
    assert_close(run(rate), pooled + skipped)  # at first it is 0
    model.set_drop_path(0.25)  # in the same tensor, so a compiled network stays as it is
    dropped = run(rate)
    kept = (dropped != skipped).flatten(1).any(1)
    assert_close(dropped, skipped + pooled * kept.view(-1, 1, 1, 1) * 4 / 3)
    assert_frequent([kept.sum(), (~kept).sum()], [0.75, 0.25])


# --------------------------------------------------------------------------------------------------
# The two steps of Algorithm 1


def parameters_of(net, half):
    return net.architecture_parameters() if half == "architecture" else net.weights()


def separate_gradients(net, half, count, images, labels, autocast=False):
    """The mean or the sum of the gradients of sub-networks, each by plain autograd; the losses."""
    options, g = dict(allow_unused=True, materialize_grads=True), generator(5)
    rows, losses = [], []
    torch.manual_seed(0)  # of the noise in S4
    for _ in range(count):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = net(images, net.sample(1.0, g))
            losses.append(F.cross_entropy(logits, labels))
        grads = grad(losses[-1], parameters_of(net, half), **options)
        rows.append(flat(grads))
    total = sum(rows) / (count if half == "architecture" else 1)  # Eq. 11, 12
    return total, sum(losses).detach() / count


def step(net, half, samples, data, rate=0.0, decay=0.0, clip=0, **settings):
    """One step of SGD. Returns the loss and the norm before the clip."""
    torch.manual_seed(0)
    architect = rome.Architect(net, samples, clip, generator(5), **settings)
    sgd = torch.optim.SGD(parameters_of(net, half), rate, weight_decay=decay)
    return getattr(architect, f"{half}_step")(*data, 1.0, sgd), architect.gradient_norm


def gradient(net, half, *args, **settings):
    step(net, half, *args, **settings)
    parameters = parameters_of(net, half)
    return flat(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)


STEPS = [("darts", "v2"), ("darts", "v1"), ("s2", "none"), ("s4", "v2")]


@pytest.mark.parametrize("space, topology", STEPS)
@pytest.mark.parametrize("half", HALVES)
def test_a_step_moves_what_its_sub_networks_use_and_nothing_else(space, topology, half):
    net, data = tiny(space, topology), batch()
    samples = (3, 1) if half == "architecture" else (1, 3)
    total, loss = separate_gradients(net, half, 3, *data)
    own = parameters_of(net, half)
    before = {p: p.detach().clone() for p in net.parameters()}
    found = step(net, half, samples, data, rate=1.0, decay=0.1)
    assert_close(found, (loss, total.norm()))
    for p, expected in zip(own, total.split([p.numel() for p in own])):
        old = before.pop(p)
        if half == "weight" and not expected.any():  # no sub-network used it
            assert p.grad is None and torch.equal(p, old)
        else:
            assert_close(old - p, expected.view_as(p) + 0.1 * old)
    for p, old in before.items():
        assert torch.equal(p, old) and p.grad is None


def test_the_sum_of_the_weights_gradients_is_clipped_once_and_a_loss_may_be_ones_own():
    net, data = tiny("s2"), batch()
    mean, total = [gradient(net, half, 5, data) for half in HALVES]
    norm = total.norm()
    assert_close(gradient(net, "weight", 5, data, clip=norm / 10), total / 10, rtol=1e-4, atol=1e-9)
    assert_close(gradient(net, "architecture", 5, data, clip=1e-9), mean)
    assert_close(step(net, "weight", 5, data, clip=0.1)[1], norm)
    own = gradient(net, "weight", 5, data, loss=lambda *pair: 3 * F.cross_entropy(*pair))
    assert_close(own, 3 * total)


def test_what_the_user_froze_stays_frozen():
    net = tiny("s2")
    for half in HALVES:
        step(net, half, 2, batch())  # leaves gradients behind
    frozen = [*net.body.stem0.parameters(), *net.beta.values()]
    for p in frozen:
        p.requires_grad_(False)
    before = flat(frozen)
    for half in HALVES:
        step(net, half, 2, batch(), rate=1.0, decay=0.1)
    assert torch.equal(flat(frozen), before) and not any(p.requires_grad for p in frozen)
    net.requires_grad_(False)
    for half in HALVES:
        refused(step, net, half, 2, batch())


def test_recomputed_cells_give_the_same_gradients_and_keep_less():
    results, kept, data = [], [], batch(8, 16)
    for recompute in (False, True):
        net, saved = tiny("s4", recompute=recompute), []  # its noise is drawn twice
        results.append([gradient(net, half, 2, data) for half in HALVES])
        with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
            net(data[0], net.sample(1.0, generator()))
        kept.append(sum(t.nbytes for t in saved))
    assert_close(*results, rtol=1e-12, atol=1e-12)
    assert kept[1] < 0.5 * kept[0]


def test_autocast_around_a_step_gives_its_gradients_and_keeps_cells_in_16_bits():
    net, (images, labels) = tiny().float(), batch(8)
    data, types, classifier = (images.float(), labels), set(), net.body.classifier
    for cell in net.body.cells:
        cell.register_forward_hook(lambda *a: types.add(a[2].dtype))
    expected = [separate_gradients(net, half, 2, *data, True)[0] for half in HALVES]
    x = torch.ones(1, classifier.in_features)
    with torch.autocast("cpu", torch.bfloat16):  # the passes share the weights' 16-bit copies
        found = [gradient(net, half, 2, data) for half in HALVES]
        before = classifier(x)
        step(net, "weight", 1, data, rate=1.0)
        assert not torch.equal(before, classifier(x))  # a step renews the copies
    assert_close(found, expected, rtol=1e-2, atol=1e-4)
    assert types == {torch.bfloat16}


# --------------------------------------------------------------------------------------------------
# Several processes


def both_steps(topology, samples):
    """The gradients and the losses of one step of each kind."""
    net, data = tiny(topology=topology), batch(2, 4)
    losses = [step(net, half, samples, data)[0] for half in HALVES]
    return [p.grad for p in net.parameters()] + losses


def cell_after_a_step(seed):
    """A cell that is drawn after a step without a generator, in S4, whose noise is torch's own."""
    net = tiny("s4")
    torch.manual_seed(seed)
    architect = rome.Architect(net, 3)
    architect.weight_step(*batch(), 1.0, torch.optim.SGD(net.weights(), 0.0))
    return net.cell(net.sample(1.0, architect.generator))


def test_without_a_generator_torchs_seed_draws():
    first, second, other = [cell_after_a_step(seed) for seed in (1, 1, 2)]
    assert first == second != other


def compare_with_one_process(rank, path):
    torch.set_num_threads(1)
    cases = [("v2", 7), ("none", (7, 1))]  # with K = 1 some processes have no sub-network
    alone = [both_steps(*case) for case in cases]
    for world in (3, 2):
        if rank < world:
            url = f"file://{path}{world}"
            dist.init_process_group("gloo", init_method=url, rank=rank, world_size=world)
            shared = [both_steps(*case) for case in cases]
            assert_close(shared, alone, rtol=0, atol=1e-12)
            dist.all_gather_object(cells := [None] * world, cell_after_a_step(rank))
            assert cells == cells[:1] * world
            dist.barrier()
            dist.destroy_process_group()


def test_two_and_three_processes_give_the_gradients_and_losses_of_one(tmp_path):
    torch.multiprocessing.spawn(compare_with_one_process, (tmp_path / "store",), 3)


# --------------------------------------------------------------------------------------------------
# The derived cell


def log_p(net, kind, cell):
    """Eq. 9 of a cell, as it is printed. Without beta it ranks cells by DARTS's rule."""
    total = 0
    for k, (op, i) in enumerate(cell):
        j = k // 2
        alpha = net.alpha[kind][EDGES.index((i, j))]
        total = total + alpha.log_softmax(0)[OPS.index(op)]
        if net.topology == "v2":
            beta = net.beta[kind][j, : j + 2]
            total = total + beta.log_softmax(0)[i]
        if net.topology == "v1" and k % 2 == 1:
            pairs = list(itertools.combinations(range(j + 2), 2))
            columns = [net.pairs.index(pair) for pair in pairs]
            beta = net.beta[kind][j, columns]
            pair = cell[k - 1][1], i
            total = total + beta.log_softmax(0)[pairs.index(pair)]
    return total.item()


@pytest.mark.parametrize("topology", ["v2", "v1", "none"])
def test_genotype_and_log_prob_are_those_of_equation_9_over_all_cells(topology):
    nodes = [], []
    for ops in itertools.product(OPS, OPS):
        nodes[0].append(list(zip(ops, (0, 1))))
        for pair in ((0, 1), (0, 2), (1, 2)):
            nodes[1].append(list(zip(ops, pair)))
    cells = [first + second for first, second in itertools.product(*nodes)]
    for seed in range(8):
        net = tiny(cells_of(2, *OPS), topology, seed, cells=1)
        normal = [log_p(net, "normal", cell) for cell in cells]
        reduce = [log_p(net, "reduce", cell) for cell in cells]
        with torch.device("meta"):  # the tables are on the CPU
            best = net.genotype()
        assert best.normal == cells[normal.index(max(normal))]
        assert best.reduce == cells[reduce.index(max(reduce))]
        for cell, expected in zip(cells, normal):
            genotype = best._replace(normal=cell)
            assert net.cell(net.architecture(genotype)) == genotype
            if topology != "none":
                assert net.log_prob(genotype).item() == pytest.approx(expected + max(reduce))


# --------------------------------------------------------------------------------------------------
# A space of one's own, and what is refused


def test_a_bad_supernet_is_refused_in_one_line():
    rows = (OPS,) * 14
    refused(tiny, "x")
    refused(tiny, dict(normal=rows, reduce=rows[1:]))
    refused(tiny, dict(normal=rows, reduce=(*rows[1:], (SEP,))))
    refused(tiny, cells_of(2, "x"))
    refused(tiny, topology="x")
    refused(tiny, channels=3)
    refused(tiny, cells=0)


def test_a_cell_outside_the_space_is_refused_in_one_line():
    net, nodes = tiny("s2"), [(SEP, 0), (SKIP, 1)] * 3
    bad = [[(SEP, 0), second] for second in (("noise", 1), (SEP, 2), (SEP, 0))]
    for first in (*bad, []):  # without a first node the cell has three
        refused(net.architecture, net.genotype()._replace(normal=first + nodes))


def test_other_bad_input_is_refused_in_one_line():
    net = tiny("s2", "none")
    model = rome.Network(net.genotype(), 2, 1)
    refused(net.log_prob, net.genotype())
    refused(net.cell, net.sample(1.0))
    refused(net.sample, 0)
    for samples in (0, True, (2,)):
        refused(rome.Architect, net, samples)
    refused(model.set_drop_path, 1.0)
    for shape in ((2, 1, 8, 8), (2, 3, 10, 8), (3, 8, 8)):
        refused(model, torch.zeros(shape))
    model.body.stem0[0] = nn.Conv2d(1, 6, 3)
    assert model(torch.zeros(2, 1, 8, 8))
    refused(tiny(imagenet=True), torch.zeros(2, 3, 48, 48), None)


def test_a_state_of_another_topology_and_logits_that_are_not_numbers_are_refused():
    v1, v2 = [tiny(cells_of(2, *OPS), topology) for topology in ("v1", "v2")]
    with pytest.raises(RuntimeError):  # with two nodes beta has one shape in both
        v2.load_state_dict(v1.state_dict())
    nn.init.constant_(v2.beta["reduce"], math.nan)
    with pytest.raises(FloatingPointError):
        v2.genotype()


# --------------------------------------------------------------------------------------------------
# The file alone

ALONE = """
import sys, torch
state = torch.get_rng_state()
import rome
assert torch.equal(state, torch.get_rng_state()) and "train" not in sys.modules
net = rome.Supernet("s2", channels=2, cells=3, classes=2)
architect = rome.Architect(net, samples=2)
adam = torch.optim.Adam(net.architecture_parameters(), 3e-4, (0.5, 0.999), weight_decay=1e-3)
sgd = torch.optim.SGD(net.weights(), 0.05, 0.9, weight_decay=3e-4)
images, labels = torch.randn(4, 3, 8, 8), torch.randint(2, (4,))
watched = net.architecture_parameters() + [net.body.classifier.weight]
before = [p.detach().clone() for p in watched]
architect.architecture_step(images, labels, 1.0, adam)
architect.weight_step(images, labels, 1.0, sgd)
assert not any(map(torch.equal, before, watched))
rome.Network(net.genotype(), 2, 3, 2)(images)
"""


def test_rome_alone_searches_silently_and_says_what_its_command_line_needs(tmp_path):
    shutil.copy(rome.__file__, tmp_path / "rome.py")
    results = []
    for arguments in (["-c", ALONE], ["rome.py"]):
        options = dict(capture_output=True, text=True, env=dict(OMP_NUM_THREADS="1"))
        options["cwd"] = tmp_path
        results.append(subprocess.run([sys.executable, *arguments], **options))
    search, command = results
    assert (search.returncode, search.stdout, search.stderr) == (0, "", "")
    assert command.returncode and "train is missing" in command.stderr
    assert command.stderr.count("\n") == 1


# --------------------------------------------------------------------------------------------------
# genotypes.py

ARCH = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|nor_conv_3x3~2|"
ONE_SHOT = nasbench.OneShotGenotype(  # its nodes 2 and 3 are unused
    ("conv3x3-bn-relu", "maxpool3x3", "skip-connect", "conv3x3-bn-relu"),
    ((0,), (0, 1), (0, 1), (0, 1), (0, 4)),
)
V2 = genotypes.PUBLISHED["DARTS_V2"]
PRINTED = (  # from quark0/darts
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), "
    "('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)


def test_published_cells_are_the_published_ones():
    assert str(genotypes.load("DARTS_V2")) == PRINTED
    cells = [*genotypes.PUBLISHED.values(), ARCH, ONE_SHOT]
    free = [list(genotypes.parameter_free(cell).values())[0] for cell in cells]
    assert free == [3, 2, 2, 2, 2, 4, 2, 0]


@pytest.mark.parametrize("space", [*rome.SPACES, *nasbench.SPACES])
def test_cells_of_every_space_are_saved_printed_and_read_as_they_were(space, tmp_path):
    genotype, path = genotypes.random_cell(space, generator()), tmp_path / "cell.json"
    genotypes.save(genotype, path, space=space, note="[a,   b]")
    for source in (path, path.read_text(), f" {genotype}\n"):
        assert str(genotypes.load(source, space)) == str(genotype)
    assert genotypes.space_of(path) == space


def test_text_of_other_programs_is_read(tmp_path):
    text = PRINTED.replace("[2, 3, 4, 5]", "range(2, 6)").replace(", 0)", ", np.int64(0))")
    (tmp_path / "cell").write_text(f"\ufeffFOUND = {text}  # epoch 50", "utf-8")
    for source in (tmp_path / "cell", f"rome.Genotype{tuple(V2)}"):
        assert genotypes.load(source) == V2


CODE = "__import__('os').system('touch ran')"  # leaves a file behind if anything runs it
EDITS = {  # of a good text, what replaces what
    "Genotype(": f"{CODE} or Genotype(", "'dil_conv_3x3'": CODE, "[2, 3, 4, 5]": "[]",
    "dil_conv_3x3": "none", ", 1)": ", True)", ", ('dil_conv_3x3', 2)": "",
}  # fmt: skip
HOSTILE = [PRINTED.replace(*edit) for edit in EDITS.items()] + [
    ARCH.replace("none", "zero"), str(ONE_SHOT).replace("maxpool3x3", "concat"), 3, "\ud800", CODE,
    '{"schema": 2}', '{"schema": 1, "kind": "nb201"}', '{"a":' * 100_000, "x" * 1_000_000,
    "a" * 19_000 + "Genotype(", "Genotype(" + "[" * 9_000 + "]" * 9_000 + ")",
]  # fmt: skip


def test_hostile_text_and_files_are_refused_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    start = time.process_time()
    for source in (*HOSTILE, "pipe", "missing"):
        refused(genotypes.load, source)
    assert os.listdir() == ["pipe"] and time.process_time() - start < 5


def test_errors_name_the_place_and_the_choices():
    text = refused(genotypes.load, PRINTED.replace("dil_conv_3x3", "dil_conv_7x7"))
    assert "normal, x_5: unknown 'dil_conv_7x7'" in text and "dil_conv_5x5" in text
    assert "DARTS_V1" in refused(genotypes.load, "darts_v2")


def test_cells_outside_a_space_are_refused():
    one_shot = str(ONE_SHOT)
    cases = (PRINTED, "s2"), (PRINTED, "nb201"), (ARCH, "darts"), (one_shot, "1shot1-2")
    for source, space in (*cases, (ARCH, "moon")):
        refused(genotypes.load, source, space)


def test_random_cells_leave_torchs_own_generator_and_the_default_device_alone():
    torch.manual_seed(3)
    with torch.device("meta"):
        cells = {str(genotypes.random_cell("s2", generator(seed))) for seed in (1, 1, 2)}
    assert len(cells) == 2 and torch.rand(1) == torch.rand(1, generator=generator(3))


def test_pictures_show_every_op(tmp_path):
    for cell in (V2, ONE_SHOT, genotypes.random_cell("nb201")):
        genotypes.draw(cell, tmp_path / "cell.svg")
        shapes = ElementTree.parse(tmp_path / "cell.svg").findall("{*}text")
        texts = [text.text for text in shapes]
        for op in (*rome.PRIMITIVES, *nasbench.NB201_OPS, *nasbench.ONE_SHOT_OPS):
            assert texts.count(op) == len(re.findall(rf"\W{op}['~]", str(cell)))
    refused(genotypes.draw, ARCH, tmp_path / "cell.pdf")
    pytest.importorskip("matplotlib")
    genotypes.draw(ONE_SHOT, tmp_path / "cell.PNG")
    assert (tmp_path / "cell.PNG").read_bytes().startswith(b"\x89PNG")


# --------------------------------------------------------------------------------------------------
# train.py and extra/images.py

SMALL = "--dataset shapes --image-size 8 --cells 1 --channels 2 --batch-size 800 --device cpu"
SEARCH = f"search {SMALL} --epochs 2 --samples 3".split()
RETRAIN = f"retrain {SMALL} --epochs 2 --genotype DARTS_V2".split()
TINY = dict(cells=1, channels=2, epochs=2, image_size=8)  # for the rows of "shapes"


def start(words, out, *more):
    """The exit status of train.py, with this folder of the run."""
    return train.main([*words, *more, "--out", str(out)])


def failed(capsys, words, out, *more, status=2):
    """The last line that a failed run printed to stderr."""
    assert start(words, out, *more) == status
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: error: ")
    return line


def state_of(folder):
    return torch.load(folder / "last.pt", weights_only=True)


def rows_of(folder):
    """The rows of metrics.csv."""
    return state_of(folder)["rows"]


def shorten(folder):
    """Makes a finished run one that was interrupted after its first epoch."""
    state = state_of(folder)
    torch.save(state | dict(rows=state["rows"][:1]), folder / "last.pt")


def log_of(folder):
    return genotypes.open_text(folder / "log.txt").read()


def assert_same_bits(one, two):
    """Two runs have the same weights, optimizers and rows, but for times and memory."""
    one, two = map(state_of, (one, two))
    for name in {"net", "network", "sgd", "adam"} & one.keys():
        assert_close(one[name], two[name], rtol=0, atol=0)
    for row, other in zip(one["rows"], two["rows"], strict=True):
        differences = {name for name in row if row[name] != other[name]}
        assert differences <= {"images_per_second", "seconds", "peak_mib"}


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The folder of a search with its retrain."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with mock.patch.dict(train.RETRAIN, shapes=TINY):
        assert start(SEARCH, folder, "--retrain") == 0
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Images of two classes in DIR/{train,test}."""
    root = tmp_path_factory.mktemp("images")
    for folder in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (root / folder).mkdir(parents=True)
        for number in range(12):
            Image.effect_noise((40, 24), 50).save(root / folder / f"{number}.jpg")
    return root


def search_of(root):
    """A short search on a folder of images."""
    words = f"search --dataset folder --data {root} --image-size 8 --cells 1 --channels 2"
    return f"{words} --epochs 1 --batch-size 6 --samples 1 --device cpu".split()


# The recipes, by hand


def normalised(pixels, statistics):
    mean, deviation = torch.tensor(statistics).view(2, 3, 1, 1)
    return (pixels.permute(0, 3, 1, 2) / 255 - mean) / deviation


def by_sums(images):
    """Tells the same images in any order."""
    return images.flatten(1).double().sum(1).sort().values


def assert_same_images(found, expected):
    assert_close(by_sums(found), by_sums(expected), rtol=1e-4, atol=1e-3)


@pytest.fixture
def judged(monkeypatch):
    """The images of every evaluation of a run."""
    found, evaluate = [], train.evaluate

    def judge(predict, batches):
        batches = list(batches)
        found.append(torch.cat([x for x, _ in batches]))
        return evaluate(predict, batches)

    monkeypatch.setattr(train, "evaluate", judge)
    return found


def test_a_search_is_algorithm_1_on_two_halves(judged, tmp_path, monkeypatch):
    calls = []

    def watch(name):
        step = getattr(rome.Architect, name)

        def spy(self, x, y, tau, optimizer):
            group = dict(optimizer.param_groups[0])
            calls.append((name, x, tau, group, step(self, x, y, tau, optimizer), self.clip))
            return calls[-1][4]

        monkeypatch.setattr(rome.Architect, name, spy)

    watch("architecture_step")
    watch("weight_step")
    monkeypatch.setattr(train.images, "crop_and_flip", lambda images, generator: 255 - images)
    words = [*SEARCH, *"--samples 1 --batch-size 600 --epochs 3 --alpha-weight-decay 1e-3".split()]
    assert start(words, tmp_path) == 0
    names, images, taus, groups, losses, clips = zip(*calls)
    assert names == ("architecture_step", "weight_step") * 9 and set(clips) == {5}
    assert taus == (10.0,) * 6 + (5.05,) * 6 + (0.1,) * 6
    adam, sgd, *_ = groups
    assert (adam["lr"], adam["betas"], adam["weight_decay"]) == (2e-2, (0.5, 0.999), 1e-3)
    assert (sgd["momentum"], sgd["weight_decay"], sgd["nesterov"]) == (0.9, 3e-4, False)
    rates = [0.05, 0.001 + 0.049 * 3 / 4, 0.001 + 0.049 / 4]  # half a cosine
    assert [group["lr"] for group in groups[1::6]] == pytest.approx(rates)
    config = train.configure("search", words[1:])
    data = train.load_data(config, "train")
    augmented = normalised(255 - data.pixels, data.statistics)
    parts = train.halves(data.labels, 0.5, train.seed_of(config, "halves"))
    for first, part, name in ((1, parts[0], "loss_theta"), (0, parts[1], "loss_alpha")):
        assert_same_images(torch.cat(images[first:6:2]), augmented[part])
        sums = [len(x) * loss for x, loss in zip(images[first:6:2], losses[first:6:2])]
        assert rows_of(tmp_path)[0][name] == pytest.approx(sum(sums).item() / 1600)
    assert_same_images(judged[0], normalised(data.pixels, data.statistics)[parts[1]])


def test_a_retrain_is_sgd_by_hand(judged, tmp_path, monkeypatch):
    monkeypatch.setitem(train.RETRAIN["shapes"], "label_smoothing", 0.1)
    traced = mock.Mock(wraps=functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(torch, "compile", traced)  # without inductor, which would take a minute
    words = [*RETRAIN, *"--cells 3 --clip 1 --auxiliary 0.4 --lr 0.06 --weight-decay 0.01".split()]
    words += "--cutout 3 --batch-size 1000 --drop-path 0.4 --compile".split()
    assert start(words, tmp_path) == 0 and traced.call_count == 1
    rows, config = rows_of(tmp_path), train.configure("retrain", words[1:])
    data, test = train.load_data(config, "train"), train.load_data(config, "test")
    torch.manual_seed(train.seed_of(config, "first weights"))
    net = rome.Network(V2, 2, 3, 10)
    parameters = list(net.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    for epoch, row in enumerate(rows):
        torch.manual_seed(train.seed_of(config, "drop path 0", epoch))
        net.set_drop_path(0.4 * epoch / 2)
        total, correct = 0, 0
        for x, y in train.stream(data, config, torch.arange(3200), "retrain", epoch, True, True):
            assert (x == 0).all(1).flatten(1).any(1).all()  # cutout
            logits, auxiliary = net(x)
            loss = F.cross_entropy(logits, y, label_smoothing=0.1)
            loss = loss + 0.4 * F.cross_entropy(auxiliary, y, label_smoothing=0.1)
            grads = grad(loss, parameters)
            scale = min(1, 1 / flat(grads).norm())
            total += len(y) * loss.item()
            correct += (logits.argmax(1) == y).sum().item()
            with torch.no_grad():
                for p, g, v in zip(parameters, grads, velocity):
                    v.mul_(0.9).add_(scale * g + 0.01 * p)
                    p -= 0.03 * (1 + math.cos(math.pi * epoch / 2)) * v
        assert row["loss_train"] == pytest.approx(total / 3200, rel=1e-4)
        assert row["accuracy_train"] == pytest.approx(correct / 32, abs=0.2)
    whole = normalised(test.pixels, data.statistics)  # of the training images
    logits = net.eval()(whole)[0]
    assert_same_images(judged[1], whole)
    loss, right = F.cross_entropy(logits, test.labels), (logits.argmax(1) == test.labels).sum()
    assert rows[1]["loss_test"] == pytest.approx(loss.item(), abs=0.01)
    assert rows[1]["accuracy_test"] == pytest.approx(right.item() / 20, abs=1)


# A run and its folder


def test_a_run_writes_what_it_promises(run):
    row, text = rows_of(run)[-1], log_of(run)
    with genotypes.open_text(run / "metrics.csv") as file:
        *_, written = csv.DictReader(file)
    assert written == {name: str(value) for name, value in row.items()}
    mean = (math.log(3) + math.log(4) + math.log(5)) / 3  # the first node has no choice
    assert row["entropy_beta_normal"] == pytest.approx(mean, abs=0.01)
    assert row["top_beta_reduce"] == pytest.approx(47 / 180, abs=0.02)
    saved = json.loads((run / "genotype.json").read_bytes())
    assert str(genotypes.load(run / "genotype.json")) == row["genotype"]
    assert saved["space"] == "darts" and len(saved["alpha"]["normal"]) == 14
    assert sum(saved["beta"]["reduce"][3]) == pytest.approx(1, abs=1e-3)
    settings = json.loads((run / "config.json").read_bytes())["settings"]
    assert settings.items() <= state_of(run)["settings"].items()
    for words in ("not a result", "alpha is near uniform", f"next: python -m tools.baseline {run}"):
        assert words in text
    assert (run / "cells.svg").stat().st_size > 1000


def test_the_memory_of_alpha_is_that_of_adam_with_its_decay():
    p = torch.ones(1, requires_grad=True)
    adam = torch.optim.Adam([p], 0.01, (0.5, 0.999), weight_decay=1e-3)
    p.grad = torch.full((1,), 0.5)
    adam.step()
    assert train.memory_of(adam, 10**6) == pytest.approx(0.5 / (0.01 * 1e-3), rel=0.01)
    assert train.memory_of(adam, 7) == 7


@pytest.mark.parametrize("words", [SEARCH, RETRAIN])
def test_an_interrupted_run_goes_on_to_the_same_bits(words, tmp_path, monkeypatch, capsys):
    end_epoch = train.end_epoch

    def interrupt(*arguments):
        end_epoch(*arguments)
        raise KeyboardInterrupt

    assert start(words, tmp_path / "whole") == 0
    monkeypatch.setattr(train, "end_epoch", interrupt)
    assert "--resume" in failed(capsys, words, tmp_path / "part", status=130)
    monkeypatch.undo()
    torch.rand(3)  # no draw outside the run changes it
    assert start(words, tmp_path / "part", "--resume") == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "part")


@mock.patch.dict(train.RETRAIN, shapes=TINY)
def test_the_printed_command_does_what_retrain_does(run, tmp_path):
    assert start(SEARCH, tmp_path) == 0
    *_, line = log_of(tmp_path).splitlines()
    python, program, *words = shlex.split(line.removeprefix("next: "))
    assert (python, program) == ("python", "train.py") and train.main(words) == 0
    assert_same_bits(run / "retrain", tmp_path / "retrain")


def test_a_folder_belongs_to_one_run(run, tmp_path, capsys):
    assert "holds a run" in failed(capsys, SEARCH, run)
    before = log_of(run)
    assert "lr 0.05 (now 1.0)" in failed(capsys, SEARCH, run, "--resume", "--lr", "1")
    assert log_of(run) == before
    assert "Not a directory" in failed(capsys, SEARCH, "/dev/null/x")
    with open(tmp_path / "log.txt", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another run" in failed(capsys, SEARCH, tmp_path, "--resume")
    (tmp_path / "last.pt").write_bytes((run / "last.pt").read_bytes()[:-999])
    assert "broken" in failed(capsys, SEARCH, tmp_path, "--resume")


def test_a_search_needs_no_test_images_and_a_resumed_one_the_same_images(photos, tmp_path, capsys):
    shutil.copytree(photos / "train", tmp_path / "images/train")
    assert start(search_of(tmp_path / "images"), tmp_path / "run") == 0
    assert "the retrain will refuse this: no folder" in log_of(tmp_path / "run")
    shutil.move(tmp_path / "images", tmp_path / "moved")
    words = [*search_of(tmp_path / "moved"), "--resume"]
    assert start(words, tmp_path / "run") == 0  # the same images elsewhere
    (tmp_path / "moved/train/cat/0.jpg").unlink()
    assert "made with images" in failed(capsys, words, tmp_path / "run")


@pytest.mark.parametrize("words", [SEARCH, RETRAIN])
def test_a_nan_ends_with_status_3_and_keeps_the_checkpoint(words, tmp_path, monkeypatch, capsys):
    rates = {0: 0.01}
    monkeypatch.setattr(train, "learning_rate", lambda config, epoch: rates.get(epoch, 1e38))
    assert "another --out" in failed(capsys, words, tmp_path / "a", status=3)
    assert len(state_of(tmp_path / "a")["rows"]) == 1
    rates.clear()
    monkeypatch.setattr(train, "end_epoch", None)
    assert start(words, tmp_path / "b") == 3  # within an epoch


class Terminal(io.StringIO):
    """It spells ASCII alone, and after a while nobody reads it."""

    encoding, isatty = "ascii", lambda self: True

    def write(self, text):
        if "2/2" in text:
            raise BrokenPipeError
        return super().write(text.encode("ascii").decode())


def test_no_stream_ends_a_run_in_a_thread(tmp_path, monkeypatch):
    terminal, out = Terminal(), tmp_path / "実験"
    monkeypatch.setattr(sys, "stdout", terminal)
    assert ThreadPool(1).apply(start, (SEARCH, out, "--batch-size", "200")) == 0
    assert "実験" in log_of(out) and "\r" not in log_of(out)
    assert re.search(r"\r\x1b\[Kstep 7/16, \d", terminal.getvalue())


# What is refused

BAD = [
    ("search --epochs 0", "--epochs: must be a whole number from 1"),
    ("search --lr nan", "--lr: must be a number"),
    ("search --sapce s1", "unrecognized arguments: --sapce"),
    ("search --image-size 64", "the images of cifar10 have 32 pixels"),
    ("search --dataset shapes --image-size 18", "multiple of 4"),
    ("search --samples 1 2 3", "one or two numbers"),
    ("retrain --genotype DARTS_V2 --dataset shapes --image-size 8 --cutout 8", "erase a whole"),
    ("search --space nb201 --method rome-v1", "nb201 has no topology 'v1'"),
    ("search --space nb201 --recompute", "--recompute is for the spaces darts"),
    ("search --dataset folder --data nowhere", "no folder nowhere/train"),
    ("search --dataset shapes --channels 3 --device cpu", "channels 3"),
    ("retrain --dataset cifar10", "retrain needs --genotype"),
    ("retrain --genotype DARTS_V2 --space nb201", "not of this space"),
    ("report", "train.py search or train.py retrain"),
]  # fmt: skip


@pytest.mark.parametrize("words, says", BAD)
def test_bad_input_is_one_line_and_status_2(words, says, tmp_path, capsys):
    assert says in failed(capsys, words.split(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_everything_is_checked_before_a_search(photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "images")
    (tmp_path / "images/test/cat/2.jpg").write_bytes(b"")
    words = search_of(tmp_path / "images")
    assert "test/cat/2.jpg" in failed(capsys, words, tmp_path / "run", "--retrain")
    assert start(words, tmp_path / "run") == 0  # the folder was left free


ERRORS = [
    (RuntimeError("unable to write to file </torch_1>: No space left on device (28)"), "/dev/shm"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "the memory is full"),
    (RuntimeError("operator torchvision::nms does not exist"), "do not fit each other"),
]


def test_an_error_names_its_cause(tmp_path, monkeypatch, capsys):
    for error, says in ERRORS:
        with mock.patch.object(train, "search", side_effect=error):
            assert says in failed(capsys, SEARCH, tmp_path)
    with mock.patch.object(train, "search", side_effect=RuntimeError), pytest.raises(RuntimeError):
        start(SEARCH, tmp_path)  # a mistake of the program's own
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert "WORLD_SIZE of the shell is 'many': unset it" in failed(capsys, SEARCH, tmp_path)


# Settings


def values(words, *names):
    stage, *flags = words.split()
    config = train.configure(stage, flags)
    return [config[name] for name in names]


def test_special_rows_win_over_general_ones():
    names = "epochs", "samples", "fraction"
    assert values("search --method gdas", *names) == [50, [1], 0.5]
    assert values("search --dataset imagenet", *names) == [30, [3], 0.1]
    assert values("search --dataset folder --image-size 128", *names) == [30, [3], 0.5]
    words = "retrain --genotype GDAS_V1 --space s2 --dataset"
    names = "cells", "channels", "cutout"
    assert values(f"{words} cifar10", *names) == [20, 16, 16]
    assert values(f"{words} cifar100", *names) == [8, 16, 16]
    assert values(f"{words} folder --image-size 20", *names) == [20, 36, 10]


def test_a_retrain_follows_the_file_of_its_genotype(tmp_path):
    path = tmp_path / "genotype.json"
    genotypes.save(V2, path, space="s2")
    found = values(f"retrain --genotype {path}", "space", "channels", "out")
    assert found == ["s2", 16, str(tmp_path / "retrain")]


def test_help_shows_the_defaults_of_the_benchmark(capsys):
    assert train.main(["retrain", "--dataset", "imagenet", "--help"]) == 0
    assert "epochs (default: 250)" in " ".join(capsys.readouterr().out.split())


def test_the_linear_rate_is_that_of_the_published_code_and_ends_low():
    config = dict(lr=0.5, lr_min=0.0, epochs=250, schedule="linear", lr_warmup=5)
    expected = {0: 0.1, 5: 0.5 * 240 / 245, 244: 0.5 / 245, 249: 0.5 / 245 / 5}
    for epoch, rate in expected.items():
        assert train.learning_rate(config, epoch) == pytest.approx(rate)
    assert train.learning_rate(config | dict(epochs=20), 19) < 0.6 / 20


# Images


def test_crops_are_shifted_flipped_and_padded_with_zeros():
    image = torch.arange(1, 257).view(1, 1, 16, 16)
    windows = F.pad(image, [2] * 4).unfold(2, 16, 1).unfold(3, 16, 1).reshape(25, 16, 16)
    views = torch.cat([windows, windows.flip(2)])
    crops = train.images.crop_and_flip(image.expand(500, 3, -1, -1), generator())
    same = (crops == views[:, None, None]).flatten(2).all(2)  # (views, crops)
    assert same.any(0).all() and same.any(1).all()


def test_crops_do_not_depend_on_the_image():
    """Chi-square of each image's vertical shifts over many epochs: 8 degrees of freedom."""
    pixels = torch.arange(1, 33).view(1, 32, 1, 1).expand(60, 32, 32, 3).byte()  # rows 1 to 32
    data = train.images.Images(pixels, torch.arange(60), [], [], ((0.0,) * 3, (1 / 255,) * 3))
    config, table = dict(seed=3, batch_size=20, imagenet=False, cutout=0), torch.zeros(60, 9)
    for epoch in range(300):
        for x, y in train.stream(data, config, torch.arange(60), "retrain", epoch, True, True):
            rows = x[:, 1, 16, 16].round().long()  # row 17 of the image, shifted
            table[y, rows - 13] += 1
    chi = (table - 300 / 9).square().sum(1) / (300 / 9)
    assert abs(chi.mean() - 8) < 4 * math.sqrt(16 / 60) and chi.max() < 40


def test_cutout_erases_a_square_whose_centre_is_any_pixel():
    images = train.images.cut_out(torch.ones(500, 3, 12, 12), 4, generator())
    erased = (images[:, 0] == 0).sum((1, 2))
    assert erased.max() == 16 and erased.min() == 4  # whole, and in a corner
    assert (images == 0).any(0).all() and torch.equal(images[:, 0], images[:, 2])


@pytest.mark.parametrize("fraction, size", [(0.5, 50), (0.1, 10)])
def test_halves_are_disjoint_and_have_every_class(fraction, size):
    labels = torch.arange(999) % 10
    parts = train.halves(labels, fraction, 0)
    for part in parts:
        assert (labels[part].bincount() - size).abs().max() <= 1
    assert len(parts[0]) == len(parts[1]) == len(torch.cat(parts).unique()) / 2
    few = torch.tensor([0] * 45 + [1] * 4 + [2] * 41)
    assert "class b has 4 images" in refused(train.halves, few, 0.1, 0, "abc")


def test_batches_hold_every_image_once_and_never_one_alone():
    for count in (7, 8, 9, 17):
        batches = train.shuffle(torch.arange(count), 8)
        assert sorted(torch.cat(batches).tolist()) == list(range(count))
        assert min(map(len, batches)) > 1


def test_statistics_are_those_of_the_pixels():
    pixels = torch.randint(256, (250, 4, 4, 3), dtype=torch.uint8)
    found = torch.tensor(train.images.statistics_of(train.images.Images(pixels, None, []), {}))
    values = pixels.view(-1, 3) / 255
    expected = torch.stack([values.mean(0), values.std(0, correction=0)])
    assert_close(found, expected)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_data_of_torchvision_becomes_pixels_and_labels(name, monkeypatch):
    rows, labels = torch.rand(2, 32, 32, 3).numpy(), [3, 1]
    data = rows.transpose(0, 3, 1, 2) if name == "svhn" else rows
    made = mock.Mock(data=data, targets=labels, labels=labels, classes="ab")
    monkeypatch.setattr(torchvision.datasets, name.upper(), mock.Mock(return_value=made))
    images = train.load_data(dict(dataset=name, data="", image_size=32), "train")
    assert torch.equal(images.pixels, torch.tensor(rows)) and images.labels.tolist() == labels


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_an_archive_that_is_absent_or_broken_is_named(name, tmp_path, monkeypatch):
    (tmp_path / "other").touch()
    monkeypatch.setattr("urllib.request.urlopen", mock.Mock(side_effect=OSError("no network")))
    config = dict(dataset=name, data=str(tmp_path), image_size=32)
    text = refused(train.load_data, config, "train")
    path = re.search(r"(\S+) is not there, .*no network.*; put http\S+ there", text)[1]
    Path(path).write_bytes(b"half of it")
    assert f"{path} is incomplete or broken" in refused(train.load_data, config, "train")


def test_the_number_of_workers_changes_nothing(photos, tmp_path):
    words = [*search_of(photos), "--image-size", "128"]
    for workers in "02":
        assert start(words, tmp_path / workers, "--workers", workers) == 0
    assert_same_bits(tmp_path / "0", tmp_path / "2")


# Several processes


def torchrun(words, out, *more):
    """train.py in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    command += ["2", "train.py", *words, *more, "--out", str(out)]
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True)


def test_processes_share_a_search_and_change_nothing(run, tmp_path, capsys):
    done = torchrun(SEARCH, tmp_path / "run", "--retrain")
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "run/retrain")) == 4  # by the row of shapes
    for one, two in zip(rows_of(run), rows_of(tmp_path / "run")):
        assert one["genotype"] == two["genotype"]
        for name in ("loss_alpha", "loss_theta", "gradient_norm", "supernet_loss"):
            assert one[name] == pytest.approx(two[name], rel=1e-3)
    shorten(tmp_path / "run")
    assert start(SEARCH, tmp_path / "run", "--resume") == 0  # by one process
    with mock.patch.object(rome, "rank_and_world", return_value=(0, 2)):
        line = failed(capsys, SEARCH, tmp_path, "--samples", "1")
    assert "2 processes share K = 1 sub-networks" in line


def test_processes_share_the_batches_of_a_retrain(tmp_path, capsys):
    words = [*RETRAIN, "--epochs", "1", "--cells", "2"]
    assert start(words, tmp_path / "one") == 0
    done = torchrun(words, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    one, two = [rows_of(tmp_path / name)[0]["loss_train"] for name in ("one", "two")]
    assert one == pytest.approx(two, rel=0.02)  # other batch norms and crops, so nearly the same
    assert "processes 2 (now 1)" in failed(capsys, words, tmp_path / "two", "--resume")


def start_with(rank, cases, place):
    """One of two processes, each with flags of its own, as on nodes without a shared disk."""
    torch.set_num_threads(1)
    for name, words in cases.items():
        url = f"file://{place}/store-{name}"
        minute = datetime.timedelta(seconds=60)
        dist.init_process_group("gloo", url, minute, rank=rank, world_size=2)
        with open(place / f"{name}-{rank}", "w") as sys.stderr:
            sys.stderr.write(str(train.main(words[rank])))


def test_unequal_processes_are_told_in_one_line_each(photos, tmp_path):
    base = [*search_of(photos), "--samples", "2", "--epochs", "2"]
    assert start(base, tmp_path / "epoch") == 0
    shorten(tmp_path / "epoch")
    shutil.copytree(photos, tmp_path / "fewer")
    (tmp_path / "fewer/train/cat/3.jpg").unlink()
    more = dict(epoch=[], seed=["--seed", "1"], images=["--data", str(tmp_path / "fewer")])
    cases = {}
    for name, own in more.items():
        words = [*base, "--resume", "--out", str(tmp_path / name)]
        cases[name] = words, [*words, *own, "--out", str(tmp_path / f"{name} of 1")]
    torch.multiprocessing.spawn(start_with, (cases, tmp_path), 2)
    for name, rank in itertools.product(cases, range(2)):
        line, status = (tmp_path / f"{name}-{rank}").read_text().splitlines()
        assert f"process 1 has another {name}: " in line and status == "2"


def test_mixed_precision_and_recomputation_run(tmp_path):
    more = ["--amp", "--epochs", "1"]
    assert start(SEARCH, tmp_path / "a", *more, "--recompute", "--deterministic") == 0
    assert start(RETRAIN, tmp_path / "b", *more) == 0
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("space", ["s1", "s4", "nb201", "1shot1-3"])
@mock.patch.dict(train.RETRAIN, shapes=TINY | dict(epochs=1))
def test_every_kind_of_space_is_searched_and_retrained(space, tmp_path):
    words = ["--space", space, "--epochs", "1", "--samples", "1", "2", "--retrain"]
    assert start(SEARCH, tmp_path, *words) == 0
    assert genotypes.load(tmp_path / "genotype.json", space)


# --------------------------------------------------------------------------------------------------
# The documents

PATHS = [HERE / "README.md", *HERE.glob("docs/*.md")]
PAGES = {path.stem: path.read_text("utf-8") for path in PATHS}


def commands(text):
    """The command lines in a text, as words after "python" or torchrun's own flags."""
    text = text.replace("\\\n", " ")
    found = re.findall(r"^ *(?:\w+=\S+ )*(?:python|torchrun --\w+ \d) (.+)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in found]


def test_companion_quotes_rome_py_to_the_letter():
    texts = inspect.getsource(rome), PAGES["companion"]
    source, page = [re.sub(r"\n\s+", "\n", text) for text in texts]  # without indentation
    quotes = re.findall(r"```python(\n.+?\n)```", page, re.DOTALL)
    assert len(quotes) >= 6
    for quote in quotes:
        assert quote in source


def test_commands_and_links_of_the_documents_are_right():
    for path in PATHS:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", PAGES[path.stem]):
            assert (path.parent / link).exists(), f"{path}: {link}"
    readme = PAGES["README"].replace("runs/mine/genotype.json", "GDAS_V1")
    for program, *words in commands(readme):
        if program == "rome.py":
            train.configure("search", words)
        if program == "train.py":
            train.configure(words[0], words[1:])
    for row in re.findall(r"^\| Tables? .+?\| `(.+?)` \|", PAGES["examples"], re.MULTILINE):
        train.configure("search", row.split())


@mock.patch.dict(rome.PRIMITIVES)
@mock.patch.dict(rome.SPACES)
def test_examples_run(photos, tmp_path, monkeypatch):
    """Programs and commands of docs/examples.md, at small sizes, in the order of the page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("photos").symlink_to(photos)
    small, names = "--channels 2 --cells 3 --epochs 1 --batch-size 6 --device cpu".split(), {}
    blocks = r"```(?:python\n# (\w+\.py)|sh)\n(.+?)```"
    for program, text in re.findall(blocks, PAGES["examples"], re.DOTALL):
        if program:
            Path(program).write_text(text)
            names |= runpy.run_path(program)
            continue
        for _, *words in commands(text):
            if "photos" in words:
                assert train.main([*words, *small]) == 0, words
            elif "runs/photos" in words:
                assert importlib.import_module(words[0]).main(words[1:]) == 0
    assert names["loss"] < math.log(2) / 2  # of loop.py
    assert names["found"][-1] < names["found"][0]  # of tasks.py
