"""Tests of ROME, each against a source of truth of its own: enumeration, brute force, finite differences, counts."""

import copy
import csv
import gzip
import importlib.util
import io
import itertools
import json
import math
import os
import random
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import genotypes
import rome
import train

torch.set_num_threads(1)  # the tensors here are tiny
HERE = Path(__file__).resolve().parent
TOPOLOGIES = ["v2", "v1", "none"]


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
    net = rome.Supernet(space, topology=topology, **({"channels": 4, "cells": 3, "classes": 5} | settings))
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
    total = 0.0
    for order in itertools.permutations(subset):
        product, left = 1.0, 1.0
        for i in order:
            product, left = product * p[i] / left, left - p[i]
        total += product
    return total


def chi_square(counts, probabilities):
    """The p-value of Pearson's chi-square test."""
    counts, probabilities = (torch.tensor(list(v), dtype=torch.float64) for v in (counts, probabilities))
    expected = probabilities * counts.sum()
    assert abs(probabilities.sum() - 1) < 1e-6 and expected.min() > 5
    half = ((counts - expected) ** 2 / expected).sum() / 2
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2, dtype=torch.float64), half).item()


def finite_difference(function, x, step=1e-6):
    """The gradient of function(x), x a flat float64 vector, by central differences."""
    slopes = []
    for unit in torch.eye(len(x), dtype=x.dtype) * step:
        slopes.append((function(x + unit) - function(x - unit)) / (2 * step))
    return torch.stack(slopes)


def beta_by_node(net, kind, beta=None):
    """beta as one vector per node: a logit per candidate input, in v1 per pair of them."""
    sizes = [math.comb(n, k) if net.topology == "v1" else n for n, k in zip(net.space.candidates, net.space.picks)]
    return (net.beta[kind].detach() if beta is None else beta).split(sizes)


def ops_of(net):
    """(cell, edge, choice) -> op module, for the cells of the DARTS and NAS-Bench-201 families."""
    cells = [cell for cell in net.cells if hasattr(cell, "edges")]
    return {
        (c, e, o): op for c, cell in enumerate(cells) for e, row in enumerate(cell.edges) for o, op in enumerate(row)
    }


def run_op(op, x, *gate):
    """The op on x; its first ReLU is the caller's where the op says so."""
    return op(F.relu(x) if getattr(op, "rectified", False) else x, *gate)


def normalised(x):
    """Batch norm without scale, from its definition."""
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt()


def size_of(module):
    return sum(p.numel() for p in module.parameters())


# ----------------------------------------------------------------------------------------------------------------------
# Sampling


@pytest.mark.parametrize("n, k", [(5, 2), (5, 3), (4, 1), (2, 2)])
def test_top_k_draws_as_without_replacement(n, k):
    logits = torch.tensor([0.5, -1.0, 1.2, 0.0, -0.4])[:n]
    _, indices = rome.gumbel_top_k(logits.expand(40_000, n), k, 0.5, generator(1))
    counts, p = Counter(map(tuple, indices.tolist())), softmax(logits.tolist())
    subsets = list(itertools.combinations(range(n), k))  # ascending, as the indices must be
    assert set(counts) == set(subsets)
    if len(subsets) > 1:
        assert chi_square([counts[s] for s in subsets], [draw_probability(p, s) for s in subsets]) > 0.001


def test_top_2_marginals_are_those_of_section_3_5():
    logits, draws = torch.tensor([1.0, 0.0, -0.5, 0.3]), 40_000
    _, indices = rome.gumbel_top_k(logits.expand(draws, 4), 2, 1.0, generator(2))
    p = softmax(logits.tolist())
    for edge, count in enumerate(indices.flatten().bincount().tolist()):
        marginal = p[edge] + sum(p[i] * p[edge] / (1 - p[i]) for i in range(4) if i != edge)
        assert abs(count / draws - marginal) < 4 * (marginal * (1 - marginal) / draws) ** 0.5


@pytest.mark.parametrize("k", [1, 2, 3])
def test_temperature_does_not_change_the_hard_sample(k):
    noise = rome.gumbel_noise(300 * 6, generator(3)).view(300, 6)
    logits = torch.tensor([0.0, -20.0, -40.0, -60.0, -80.0, -81.0])  # the relaxed sample underflows
    scores = (F.log_softmax(logits, -1) + noise).tolist()
    expected = [sorted(sorted(range(6), key=row.__getitem__)[-k:]) for row in scores]
    for tau in (10, 1, 0.1, 0.01):
        gates, indices = rome.gumbel_top_k(logits, k, tau, noise=noise)
        assert indices.tolist() == expected
        assert torch.equal(gates, torch.ones(300, k))


def test_top_k_keeps_batch_dimensions_and_samples_them_apart():
    logits = torch.randn(3, 1, 5, generator=generator(4)).expand(3, 50, 5)
    gates, indices = rome.gumbel_top_k(logits, 2, 1.0, generator(5))
    assert gates.shape == indices.shape == (3, 50, 2)
    assert (indices[..., 0] < indices[..., 1]).all()
    noise = rome.gumbel_noise(750, generator(5)).view(3, 50, 5)
    for a, b in itertools.product(range(3), range(50)):
        assert rome.gumbel_top_k(logits[a, b], 2, 1.0, noise=noise[a, b])[1].tolist() == indices[a, b].tolist()


def test_top_k_is_keyed_by_its_generator_alone():
    logits = torch.zeros(100, 5)
    first, second = (rome.gumbel_top_k(logits, 2, 1.0, generator(6))[1] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, rome.gumbel_top_k(logits, 2, 1.0, generator(7))[1])


@pytest.mark.parametrize("k, tau", [(4, 1.0), (0, 1.0), (2, 0.0), (2, -1.0), (2, float("nan"))])
def test_top_k_refuses_what_cannot_be_drawn(k, tau):
    with pytest.raises(ValueError):
        rome.gumbel_top_k(torch.zeros(3), k, tau)


def test_gumbel_noise_is_gumbel():
    noise = rome.gumbel_noise(200_000, generator(8)).double()
    assert abs(noise.mean() - 0.5772157) < 4 * math.pi / 6**0.5 / 200_000**0.5
    cells = Counter((torch.exp(-torch.exp(-noise)) * 20).long().clamp(0, 19).tolist())  # uniform by its own CDF
    assert chi_square([cells[i] for i in range(20)], [0.05] * 20) > 0.001


@pytest.mark.parametrize("topology", ["v2", "v1"])
def test_supernet_samples_inputs_and_ops_from_beta_and_alpha(topology):
    net, draws = tiny(small_space(3, "skip_connect", "max_pool_3x3", "noise"), topology, cells=1, channels=2), 4000
    archs = net.sample_many(1.0, [generator(9)] * draws)
    levels = []
    for kind in ("normal", "reduce"):
        for node, beta in enumerate(beta_by_node(net, kind)):
            pairs, p = list(itertools.combinations(range(node + 2), 2)), softmax(beta.tolist())
            counts = Counter(tuple(i for i, _, _ in z.picks[kind][node]) for z in archs)
            assert set(counts) <= set(pairs)
            if len(pairs) > 1:
                expected = p if topology == "v1" else [draw_probability(p, pair) for pair in pairs]
                levels.append(chi_square([counts[pair] for pair in pairs], expected))
        ops = Counter((edge, op) for z in archs for node in z.picks[kind] for _, edge, op in node)
        for edge, alpha in enumerate(net.alpha[kind].tolist()):
            levels.append(chi_square([ops[edge, op] for op in range(3)], softmax(alpha)))
    assert min(levels) > 0.001 / len(levels)


def test_default_generator_samples_architectures_apart():
    net = tiny("s2", channels=2, cells=1)
    torch.manual_seed(0)
    assert len({str(net.sample(1.0).picks) for _ in range(20)}) == 20


# ----------------------------------------------------------------------------------------------------------------------
# Gates and their gradients


@pytest.mark.parametrize("k, tau", [(1, 0.5), (2, 0.5), (2, 2.0), (3, 1.0)])
def test_top_k_gates_are_one_with_the_relaxed_gradient(k, tau):
    g = generator(10)
    logits, noise = (torch.randn(5, generator=g, dtype=torch.float64) for _ in range(2))
    factor = torch.arange(1.0, k + 1, dtype=torch.float64)
    logits.requires_grad_()
    gates, indices = rome.gumbel_top_k(logits, k, tau, noise=noise)
    assert torch.equal(gates, torch.ones(k, dtype=torch.float64))
    (gates * factor).sum().backward()

    def relaxed(x):  # Eq. 7
        powers = torch.exp((x - torch.log(torch.exp(x).sum()) + noise) / tau)
        return (factor * powers[indices] / powers.sum()).sum()

    torch.testing.assert_close(logits.grad, finite_difference(relaxed, logits.detach()), rtol=1e-6, atol=1e-8)


def equations(net, values, noise, tau):
    """Eq. 2 to 8 in plain code. values, noise: name -> (rows, ops) or (beta,). Returns picks, relaxed A and B."""
    picks, relaxed_a, relaxed_b = {}, [], []

    def relax(logits, g):
        scores = logits - torch.log(torch.exp(logits).sum()) + g
        powers = torch.exp(scores / tau)
        return scores.tolist(), powers / powers.sum()

    for kind in net.alpha:
        picks[kind], start = [], 0
        for node, n in enumerate(net.space.candidates):
            b = torch.ones(n, dtype=torch.float64)
            inputs = range(n)
            if net.topology != "none":
                beta, g = (beta_by_node(net, kind, v["beta." + kind])[node] for v in (values, noise))
                scores, soft = relax(beta, g)
                if net.topology == "v2":
                    inputs, b = sorted(sorted(range(n), key=scores.__getitem__)[-2:]), soft
                else:
                    pairs = list(itertools.combinations(range(n), 2))
                    inputs = pairs[scores.index(max(scores))]
                    b = [sum(soft[number] for number, pair in enumerate(pairs) if i in pair) for i in range(n)]  # Eq. 6
            picks[kind].append([])
            for i in inputs:
                scores, soft = relax(values["alpha." + kind][start + i], noise["alpha." + kind][start + i])
                op = scores.index(max(scores))
                picks[kind][-1].append((i, start + i, op))
                relaxed_a.append(soft[op])
                relaxed_b.append(b[i])
            start += n
    return picks, torch.stack(relaxed_a), torch.stack(relaxed_b)


@pytest.mark.parametrize("tau", [0.7, 3.0])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_sample_follows_the_equations_and_their_gradient(topology, tau):
    net = tiny(small_space(3, "skip_connect", "max_pool_3x3", "noise"), topology, cells=1, channels=2).double()
    names = [f"{part}.{kind}" for kind in net.alpha for part in ("alpha", "beta")[: 1 + (topology != "none")]]
    parameters = dict(net.named_parameters())
    sizes = [parameters[name].numel() for name in names]

    def split(vector):
        return {name: part.view_as(parameters[name]) for name, part in zip(names, vector.split(sizes))}

    noise = split(rome.gumbel_noise(sum(sizes), generator(11)).double())  # the order in which a sample uses it
    arch = net.sample(tau, generator(11))
    x = flat(parameters[name] for name in names)
    picks, a, b = equations(net, split(x), noise, tau)
    assert {kind: [list(map(tuple, node)) for node in cell] for kind, cell in arch.picks.items()} == picks
    gates = torch.cat([arch.gates[kind] for kind in net.alpha])
    assert torch.equal(gates, torch.ones(len(a), dtype=torch.float64))

    factor = torch.linspace(-1, 2, len(a), dtype=torch.float64)
    (gates * factor).sum().backward()

    def product(x):  # A and B pass as 1 and change as their relaxed selves
        _, a_x, b_x = equations(net, split(x), noise, tau)
        return (factor * (1 + a_x - a) * (1 + b_x - b)).sum()

    gradient = flat(parameters[name].grad for name in names)
    torch.testing.assert_close(gradient, finite_difference(product, x), rtol=1e-5, atol=1e-8)


def test_1shot1_gates_are_the_picks_by_beta_and_then_the_nodes_by_alpha():
    net = tiny("1shot1-2", cells=1)
    parameters, gates = [net.alpha["cell"], net.beta["cell"]], net.sample(1.0, generator(27)).gates["cell"]
    expected = [("beta", node) for node, parents in enumerate((1, 1, 2, 2, 3)) for _ in range(parents)]
    expected += [("alpha", node) for node in range(4)]
    for (name, node), gate in zip(expected, gates, strict=True):
        alpha, beta = torch.autograd.grad(
            gate, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        moved_by = {("alpha", row) for row, slope in enumerate(alpha) if slope.any()}
        moved_by |= {("beta", n) for n, slopes in enumerate(beta_by_node(net, "cell", beta)) if slopes.any()}
        assert moved_by == (set() if (name, node) == ("beta", 0) else {(name, node)})  # its only input is certain


@pytest.mark.parametrize("name", sorted(rome.SPACES))
def test_sample_of_a_certain_distribution_is_the_derived_cell(name):
    net = tiny(name, scale=1000.0, channels=2, cells=1)
    assert net.sample(1.0, generator(12)).picks == net.architecture(net.genotype()).picks


# ----------------------------------------------------------------------------------------------------------------------
# Only the sampled sub-network is run


def counted(net):
    """A counter of the calls of every op of the net, filled as it runs."""
    calls = Counter()
    for key, op in ops_of(net).items():
        op.register_forward_hook(lambda *_, key=key: calls.update([key]))
    return calls


@pytest.mark.parametrize(
    "space, topology, picks", [("darts", t, 14 if t == "none" else 8) for t in TOPOLOGIES] + [("nb201", "v2", 5)]
)
def test_exactly_the_sampled_ops_run_in_every_cell(space, topology, picks):
    net = tiny(space, topology, cells=6 if space == "darts" else 2)
    calls, arch = counted(net), net.sample(1.0, generator(13))
    types = ["reduce" if c in (2, 4) else "normal" for c in range(6)] if space == "darts" else ["cell"] * 6
    net(batch(dtype=torch.float32)[0], arch)
    assert set(calls.values()) == {1}
    for c, kind in enumerate(types):
        sampled = {(edge, op) for node in arch.picks[kind] for _, edge, op in node}
        assert {(edge, op) for cell, edge, op in calls if cell == c} == sampled
        assert len(sampled) == picks
    assert len(calls) == 6 * picks


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_weight_step_gives_gradients_to_the_sampled_ops_alone(topology):
    net = tiny("darts", topology)
    calls = counted(net)
    optimizer = torch.optim.SGD(net.weights(), 0.1, momentum=0.9, weight_decay=0.1)
    before = copy.deepcopy(net.state_dict())
    rome.Architect(net, 2, generator=generator(14)).weight_step(*batch(dtype=torch.float32), 1.0, optimizer)
    assert 0 < len(calls) < len(ops_of(net))
    for key, op in ops_of(net).items():
        assert all((p.grad is not None) == (key in calls) for p in op.parameters())
    after = net.state_dict()
    for name, p in net.named_parameters():  # what has no gradient does not move, by decay either
        assert torch.equal(before[name], after[name]) == (p.grad is None)


# ----------------------------------------------------------------------------------------------------------------------
# The architect


def moved(parameters, step, *arguments):
    """What a step subtracts from the parameters at a learning rate of 1, flat, and its loss; nothing stays changed."""
    before = [p.detach().clone() for p in parameters]
    loss = step(*arguments, torch.optim.SGD(parameters, lr=1.0))
    difference = flat(old - p for old, p in zip(before, parameters))
    with torch.no_grad():
        for p, old in zip(parameters, before):
            p.copy_(old)
    return difference, loss


def separate_gradients(net, parameters, count, images, labels, tau, seed):
    """The gradients of `count` sampled sub-networks, each by plain autograd: (count, size), and their losses."""
    torch.manual_seed(0)  # for the `noise` op
    g, rows, losses = generator(seed), [], []
    for arch in [net.sample(tau, g) for _ in range(count)]:
        losses.append(F.cross_entropy(net(images, arch), labels))
        grads = torch.autograd.grad(losses[-1], parameters, allow_unused=True, retain_graph=True)
        rows.append(flat(torch.zeros_like(p) if grad is None else grad for p, grad in zip(parameters, grads)))
    return torch.stack(rows), torch.stack(losses).detach()


def architect(net, samples, seed=15, **settings):
    torch.manual_seed(0)  # for the `noise` op
    return rome.Architect(net, samples, generator=generator(seed), **settings)


@pytest.mark.parametrize(
    "space, topology", [("darts", "v2"), ("darts", "v1"), ("s2", "none"), ("s4", "v2"), ("1shot1-2", "v2")]
)
def test_architecture_step_is_the_mean_gradient(space, topology):
    net, data = tiny(space, topology).double(), (*batch(), 0.8)
    rows, losses = separate_gradients(net, net.architecture_parameters(), 3, *data, seed=15)
    step, loss = moved(net.architecture_parameters(), architect(net, 3).architecture_step, *data)
    torch.testing.assert_close(step, rows.mean(0), rtol=1e-8, atol=1e-10)
    assert rows.abs().sum() > 1e-3 and loss.shape == () and not loss.requires_grad
    torch.testing.assert_close(loss, losses.mean(), rtol=1e-10, atol=0)
    step, _ = moved(
        net.architecture_parameters(), architect(net, 3, architecture_reduction="sum").architecture_step, *data
    )
    torch.testing.assert_close(step, rows.sum(0), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "space, topology", [("darts", "v2"), ("darts", "v1"), ("s2", "none"), ("s4", "v2"), ("1shot1-2", "v2")]
)
def test_weight_step_is_the_summed_gradient(space, topology):
    net, data = tiny(space, topology).double(), (*batch(), 0.8)
    rows, losses = separate_gradients(net, net.weights(), 3, *data, seed=15)
    step, loss = moved(net.weights(), architect(net, 3, clip=None).weight_step, *data)
    torch.testing.assert_close(step, rows.sum(0), rtol=1e-8, atol=1e-10)
    assert loss.shape == () and not loss.requires_grad
    torch.testing.assert_close(loss, losses.mean(), rtol=1e-10, atol=0)
    step, _ = moved(net.weights(), architect(net, 3, clip=None, weight_reduction="mean").weight_step, *data)
    torch.testing.assert_close(step, rows.mean(0), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("share", [2.0, 0.8, 0.1])
def test_the_clip_acts_once_on_the_sum(share):
    net, data = tiny("s2").double(), (*batch(), 1.0)
    rows, _ = separate_gradients(net, net.weights(), 4, *data, seed=15)
    total, clip = rows.sum(0), share * rows.sum(0).norm().item()
    assert (rows.norm(dim=1).max() < clip) == (share > 0.5)  # at 0.8 the sum is clipped, though no part of it would be
    step, _ = moved(net.weights(), architect(net, 4, clip=clip).weight_step, *data)
    torch.testing.assert_close(step, total * min(1, share), rtol=1e-5, atol=1e-8)


def test_the_clip_is_five_unless_told():
    net, data = tiny("s2").double(), (*batch(), 1.0)
    with torch.no_grad():
        net.classifier.weight.mul_(100)
    step, _ = moved(net.weights(), architect(net, 4).weight_step, *data)
    assert step.norm().item() == pytest.approx(5, rel=1e-5)


def test_two_sample_counts_belong_to_the_two_steps():
    net, data = tiny("s2").double(), (*batch(), 1.0)
    pair = architect(net, (2, 5), clip=None)
    step, _ = moved(net.architecture_parameters(), pair.architecture_step, *data)
    rows, _ = separate_gradients(net, net.architecture_parameters(), 2, *data, seed=15)
    torch.testing.assert_close(step, rows.mean(0), rtol=1e-8, atol=1e-10)
    pair = architect(net, (2, 5), clip=None)
    step, _ = moved(net.weights(), pair.weight_step, *data)
    rows, _ = separate_gradients(net, net.weights(), 5, *data, seed=15)
    torch.testing.assert_close(step, rows.sum(0), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("samples", [0, -1, (2, 0), (1, 2, 3)])
def test_architect_refuses_sample_counts(samples):
    with pytest.raises(ValueError):
        rome.Architect(tiny("s2", cells=1), samples)


def test_each_step_leaves_the_other_half_untouched():
    net, data = tiny("s2"), (*batch(dtype=torch.float32), 1.0)
    parts = {"architecture": net.architecture_parameters(), "weight": net.weights()}
    optimizers = {
        "architecture": torch.optim.Adam(parts["architecture"], 3e-4, weight_decay=1e-3),
        "weight": torch.optim.SGD(parts["weight"], 0.05, momentum=0.9, weight_decay=3e-4),
    }
    steps = rome.Architect(net, 2, generator=generator(16))
    steps.architecture_step(*data, optimizers["architecture"])
    steps.weight_step(*data, optimizers["weight"])

    def snapshot(half):
        grads = [None if p.grad is None else p.grad.clone() for p in parts[half]]
        return copy.deepcopy([[p.detach() for p in parts[half]], grads, optimizers[half].state_dict()["state"]])

    def same(a, b):
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b)
        if isinstance(a, (list, dict)):
            keys = range(max(len(a), len(b))) if isinstance(a, list) else a.keys() | b.keys()
            return all(same(a[key], b[key]) for key in keys)
        return a == b

    for half, other in (("architecture", "weight"), ("weight", "architecture")):
        own, kept = snapshot(half), snapshot(other)
        getattr(steps, half + "_step")(*data, optimizers[half])
        assert same(kept, snapshot(other)) and not same(own[0], snapshot(half)[0])
        assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("space", ["darts", "s4", "nb201"])
def test_recomputed_cells_give_the_same_gradients(space):
    results, data = [], (*batch(), 0.9)
    for recompute in (False, True):
        net = tiny(space, recompute=recompute, cells=1 if space == "nb201" else 3).double()
        results.append(moved(net.architecture_parameters(), architect(net, 2).architecture_step, *data))
        results.append(moved(net.weights(), architect(net, 2).weight_step, *data))
    for plain, again in zip(results[:2], results[2:]):
        torch.testing.assert_close(again, plain, rtol=1e-12, atol=1e-12)


def test_recomputation_keeps_less_for_the_backward_pass():
    kept = []
    for recompute in (False, True):
        net, storages = tiny(recompute=recompute), {}

        def pack(t, storages=storages):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t.detach()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = net(batch(16, 16, dtype=torch.float32)[0], net.sample(1.0, generator(17))).sum()  # noqa: F841
        own = {p.untyped_storage().data_ptr() for p in net.parameters()}
        kept.append(sum(size for storage, size in storages.items() if storage not in own))
    assert kept[1] < 0.4 * kept[0]


@pytest.mark.parametrize("cells", [1, 2])
def test_steps_work_where_no_cell_is_normal(cells):
    net, data = tiny("s2", cells=cells).double(), (*batch(), 1.0)
    for half, reduction in (("architecture", "mean"), ("weight", "sum")):
        parameters = net.architecture_parameters() if half == "architecture" else net.weights()
        rows, _ = separate_gradients(net, parameters, 2, *data, seed=15)
        step, _ = moved(parameters, getattr(architect(net, 2, clip=None), half + "_step"), *data)
        torch.testing.assert_close(step, getattr(rows, reduction)(0), rtol=1e-8, atol=1e-10)


def test_variance_of_the_architecture_gradient_falls_as_one_over_k():
    ops = (("maxpool3x3", "skip-connect"),) * 2
    net = tiny(rome.Space("1shot1", (1, 2, 3), (1, 1, 2), {"cell": ops}), cells=1, channels=2, classes=3)
    data, variance = (*batch(4, 4, 3, dtype=torch.float32), 1.0), {}
    for samples in (1, 8):
        steps = rome.Architect(net, samples, generator=generator(18))
        rows = [moved(net.architecture_parameters(), steps.architecture_step, *data)[0] for _ in range(120)]
        variance[samples] = torch.stack(rows).var(0).sum()
    assert 5.5 < variance[1] / variance[8] < 11


# ----------------------------------------------------------------------------------------------------------------------
# Convolutions with gradients of our own, against torch's


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_depthwise_convolution_has_torchs_values_and_gradients(kernel, stride, dilation, trained):
    x = torch.randn(2, 6, 8, 12, generator=generator(32), dtype=torch.float64, requires_grad=True)
    conv = rome.DepthwiseConv(6, kernel, stride, dilation).double().requires_grad_(trained)
    expected = F.conv2d(x, conv.weight, None, stride, dilation * (kernel // 2), dilation, 6)
    leaves = (x, conv.weight) if trained else (x,)
    upstream = torch.randn(expected.shape, generator=generator(33), dtype=torch.float64)
    both = [(y, *torch.autograd.grad(y, leaves, upstream)) for y in (conv(x), expected)]
    torch.testing.assert_close(*both, rtol=1e-12, atol=1e-12)


def test_factorized_reduce_is_two_shifted_convolutions_of_stride_2():
    x = torch.randn(2, 4, 8, 6, generator=generator(34), dtype=torch.float64, requires_grad=True)
    op = rome.FactorizedReduce(4, 6, affine=False).double()
    halves = [F.conv2d(x, op.even.weight, stride=2), F.conv2d(x[:, :, 1:, 1:], op.odd.weight, stride=2)]
    leaves = x, op.even.weight, op.odd.weight
    upstream = torch.randn(2, 6, 4, 3, generator=generator(35), dtype=torch.float64)
    both = [(y, *torch.autograd.grad(y, leaves, upstream)) for y in (op(x), normalised(torch.cat(halves, 1)))]
    torch.testing.assert_close(*both, rtol=1e-9, atol=1e-9)


# ----------------------------------------------------------------------------------------------------------------------
# The gate as the scale of a batch norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_norm_multiplies_by_its_gate(layout, dtype):
    g, results = generator(19), []
    x, upstream = (torch.randn(4, 16, 6, 6, generator=g).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    for function in (rome.Norm(16, affine=False), lambda x, gate: normalised(x) * gate.view(-1, 1, 1)):
        x_leaf, gates = x.clone().requires_grad_(), torch.tensor([5.0, 0.3, -7.0], dtype=dtype, requires_grad=True)
        y = function(x_leaf, gates[:, None].repeat(1, 16).unbind()[1])
        results.append((y.detach(), *torch.autograd.grad((y * upstream).sum(), (x_leaf, gates))))
    rtol, atol = (1e-4, 1e-4) if dtype is torch.float32 else (1e-9, 1e-9)
    torch.testing.assert_close(*results, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folded_gates_train_the_supernet_as_explicit_ones(monkeypatch, dtype):
    images, labels = batch(dtype=dtype)
    net, results = tiny("darts").to(dtype), []

    def gradients():
        loss = F.cross_entropy(net(images, net.sample(0.9, generator(20))), labels)
        grads = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
        return flat(torch.zeros_like(p) if g is None else g for p, g in zip(net.parameters(), grads))

    results.append(gradients())
    explicit = lambda self, x, gate=None: normalised(x) * (1 if gate is None else gate.view(-1, 1, 1))  # noqa: E731
    monkeypatch.setattr(rome.Norm, "forward", explicit)
    results.append(gradients())
    error = (results[0] - results[1]).norm() / results[1].norm()
    assert error < (1e-4 if dtype is torch.float32 else 1e-10)


@pytest.mark.parametrize("space", ["darts", "nb201"])
def test_every_gate_scales_its_own_op(space):
    net, images = tiny(space, cells=3 if space == "darts" else 1).double(), batch()[0]
    types = ["normal", "reduce", "reduce"] if space == "darts" else ["cell"] * 3
    arch, factors = net.sample(1.0, generator(28)), {}
    plain = net(images, rome.Architecture(arch.picks))
    gates = {kind: torch.rand(len(gate), generator=generator(29)).double() + 0.5 for kind, gate in arch.gates.items()}
    gated = net(images, rome.Architecture(arch.picks, gates))
    for kind, cell in arch.picks.items():
        factors |= {
            (kind, edge, op): gate for (_, edge, op), gate in zip(itertools.chain(*cell), gates[kind], strict=True)
        }
    for (c, edge, choice), op in ops_of(net).items():
        op.register_forward_hook(lambda *a, key=(types[c], edge, choice): a[2] * factors[key])
    torch.testing.assert_close(net(images, rome.Architecture(arch.picks)), gated, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(gated, plain, rtol=1e-3)


@pytest.mark.parametrize("name", ["1shot1-1", "1shot1-2", "1shot1-3"])
def test_1shot1_gates_scale_their_inputs_and_nodes(name):
    net, seen = tiny(name, cells=1).double(), []
    arch, cell = net.sample(1.0, generator(30)), net.cells[0]
    gates = torch.rand(len(arch.gates["cell"]), generator=generator(31)).double() + 0.5
    handle = cell.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[1], output]))
    net(batch()[0], rome.Architecture(arch.picks, {"cell": gates}))
    handle.remove()
    *nodes, output = arch.picks["cell"]
    on_inputs, on_nodes = iter(gates[:9]), gates[9:].tolist()  # nine edges
    states = [seen[0]]
    for node, project, ops, scale in zip(nodes, cell.project, cell.nodes, on_nodes, strict=False):
        x = sum((states[i] if i else project(states[0])) * next(on_inputs) for i, _, _ in node)
        states.append(scale * ops[node[0][2]](x))
    kept = {i: next(on_inputs) for i, _, _ in output}
    expected = torch.cat([states[i] * kept.get(i, 0) for i in range(1, len(states))], 1)
    expected = expected + (cell.project[-1](states[0]) * kept[0] if 0 in kept else 0)
    torch.testing.assert_close(seen[1], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stride", [1, 2])
def test_every_primitive_is_scaled_by_its_gate(stride):
    x, gate = torch.randn(4, 4, 6, 6, generator=generator(21)), torch.full((4,), 0.3)
    for name, make in rome.PRIMITIVES.items():
        op, results = make(4, stride, False), []
        for arguments in ((), (gate,)):
            torch.manual_seed(0)
            results.append(run_op(op, x, *arguments))
        torch.testing.assert_close(results[1], 0.3 * results[0], msg=name)


# ----------------------------------------------------------------------------------------------------------------------
# The derived cell and p(z)


def node_choices(net, kind, exact=False):
    """Per node every (inputs, ops, log p of the inputs, log p of the ops), by Eq. 9 in plain code."""
    nodes, start = [], 0
    for node, n in enumerate(net.space.candidates):
        alpha = [softmax(row) for row in net.alpha[kind].double().tolist()][start : start + n]
        rows, pairs = net.space.ops[kind][start : start + n], list(itertools.combinations(range(n), 2))
        beta = softmax(beta_by_node(net, kind)[node].double().tolist())
        p = (
            beta
            if net.topology == "v1"
            else [draw_probability(beta, s) if exact else beta[s[0]] * beta[s[1]] for s in pairs]
        )
        nodes.append([])
        for pair, p_pair in zip(pairs, p):
            for ops in itertools.product(*(range(len(rows[i])) for i in pair)):
                log_ops = sum(math.log(alpha[i][op]) for i, op in zip(pair, ops))
                nodes[-1].append((pair, [rows[i][op] for i, op in zip(pair, ops)], math.log(p_pair), log_ops))
        start += n
    return nodes


def genotype_of(normal, reduce):
    """The Genotype of two cells, each a list of node choices."""
    concat = list(range(2, 2 + len(normal)))
    pairs = [[pair for inputs, ops, *_ in cell for pair in zip(ops, inputs)] for cell in (normal, reduce)]
    return rome.Genotype(pairs[0], concat, pairs[1], concat)


@pytest.mark.parametrize("topology", ["v2", "v1"])
def test_genotype_is_the_best_of_all_cells(topology):
    space, found = small_space(3, "skip_connect", "sep_conv_3x3"), {"joint": [], "exact": [], "sequential": []}
    for seed in range(15):
        net = tiny(space, topology, seed, scale=0.5, cells=1, channels=2)
        for rule, derived in found.items():
            best = []
            for kind in ("normal", "reduce"):
                cells = list(itertools.product(*node_choices(net, kind, rule == "exact")))
                assert len(cells) == 4 * 12 * 24

                def value(cell, rule=rule):
                    on_inputs, on_ops = (sum(choice[part] for choice in cell) for part in (2, 3))
                    return (on_inputs, on_ops) if rule == "sequential" else on_inputs + on_ops

                best.append(max(cells, key=value))
            derived.append(net.genotype(rule))
            assert derived[-1] == genotype_of(*best)
        assert net.genotype() == found["joint"][-1]
    rules = (found["joint"], found["exact"], found["sequential"])
    assert rules[0] != rules[2] and (rules[0] != rules[1]) == (topology == "v2")  # the draws tell the rules apart


@pytest.mark.parametrize("topology", ["v2", "v1"])
@pytest.mark.parametrize("exact", [False, True])
def test_log_prob_is_equation_9_of_every_cell(topology, exact):
    net = tiny(small_space(2, "skip_connect", "sep_conv_3x3"), topology, scale=1.5, cells=1, channels=2)
    values, expected = [], []
    halves = [itertools.product(*node_choices(net, kind, exact)) for kind in ("normal", "reduce")]
    for normal, reduce in itertools.product(*halves):
        values.append(net.log_prob(genotype_of(normal, reduce), exact=exact).item())
        expected.append(sum(choice[2] + choice[3] for choice in (*normal, *reduce)))
    assert len(values) == 48**2 and values == pytest.approx(expected, abs=1e-4)
    if exact or topology == "v1":
        assert sum(map(math.exp, values)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("gap", [5.0, 20.0, 60.0])
def test_exact_log_prob_survives_a_dominant_edge(gap):
    net = tiny(small_space(2, "skip_connect", "sep_conv_3x3"), cells=1, channels=2)
    with torch.no_grad():
        for p in net.architecture_parameters():
            p.zero_()
        net.beta["normal"][2] = gap  # input 0 of the second node
    fixed = [("skip_connect", 0), ("skip_connect", 1)]
    small = math.exp(-gap)  # p is (1, small, small) / (1 + 2 small)
    small_pair = small / (1 + 2 * small) * small / (1 + small) * 2
    for inputs, p in {(0, 1): (1 - small_pair) / 2, (1, 2): small_pair}.items():
        genotype = rome.Genotype(fixed + [("skip_connect", i) for i in inputs], [2, 3], fixed * 2, [2, 3])
        expected = math.log(p) + 8 * math.log(1 / 2) + math.log(1 / 3)  # reduction cell: uniform pairs
        assert net.log_prob(genotype, exact=True).item() == pytest.approx(expected, abs=1e-3)


def test_log_prob_carries_the_gradient_to_alpha_and_beta():
    net = tiny(small_space(2, "skip_connect", "sep_conv_3x3"), cells=1, channels=2).double()
    parameters, genotype = net.architecture_parameters(), net.genotype()
    for exact in (False, True):
        gradient = flat(torch.autograd.grad(net.log_prob(genotype, exact=exact), parameters))

        def value(x, exact=exact):
            with torch.no_grad():
                for p, part in zip(parameters, x.split([p.numel() for p in parameters])):
                    p.copy_(part.view_as(p))
                return net.log_prob(genotype, exact=exact)

        torch.testing.assert_close(gradient, finite_difference(value, flat(parameters)), rtol=1e-6, atol=1e-8)


def test_log_prob_refuses_where_it_means_nothing():
    none, net = tiny("s2", "none", cells=1), tiny("s2", cells=1)
    genotype = net.genotype()
    with pytest.raises(ValueError):
        none.log_prob(none.genotype())
    for wrong in (
        genotype._replace(normal=[("max_pool_3x3", 0), *genotype.normal[1:]]),  # no op of S2
        genotype._replace(normal=[("skip_connect", 0), ("skip_connect", 0), *genotype.normal[2:]]),  # twice one input
        genotype._replace(reduce=[("skip_connect", 0), ("skip_connect", 2), *genotype.reduce[2:]]),  # no such input
        genotype._replace(reduce=genotype.reduce[2:]),
        "|skip_connect~0|",
    ):
        with pytest.raises(ValueError):
            net.log_prob(wrong)
        with pytest.raises(ValueError):
            net.architecture(wrong)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_derived_nodes_have_two_distinct_inputs(topology):
    net = tiny("s1", topology, cells=1, channels=2)
    for seed, rule in itertools.product(range(200), ("joint", "exact", "sequential")):
        with torch.no_grad():
            for p in net.architecture_parameters():
                p.normal_(0, 3, generator=generator(seed))
        genotype = net.genotype(rule)
        for kind in ("normal", "reduce"):
            cell = getattr(genotype, kind)
            assert len(cell) == 8
            for node in range(4):
                (op_1, i), (op_2, k) = cell[2 * node : 2 * node + 2]
                assert 0 <= i < k < node + 2
                start = sum(range(2, node + 2))
                assert op_1 in net.space.ops[kind][start + i] and op_2 in net.space.ops[kind][start + k]


def test_without_topology_parameters_the_cell_follows_the_rule_of_darts():
    for seed in range(50):
        net, expected = tiny("s1", "none", seed, cells=1, channels=2), []
        for kind in ("normal", "reduce"):
            p, cell, start = [softmax(row) for row in net.alpha[kind].tolist()], [], 0
            for n in (2, 3, 4, 5):
                kept = sorted(range(n), key=lambda i: -max(p[start + i]))[:2]
                best = {i: p[start + i].index(max(p[start + i])) for i in kept}
                cell += [(net.space.ops[kind][start + i][best[i]], i) for i in sorted(kept)]
                start += n
            expected.append(cell)
        genotype = net.genotype()
        assert [genotype.normal, genotype.reduce] == expected
        assert not hasattr(net, "beta") or not len(net.beta)


def test_nb201_has_3072_reachable_cells_in_the_tables_notation():
    net = tiny("nb201", cells=1, channels=2)
    ops = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    reachable = set()
    for a, b, c, d, e, f in itertools.product(ops, repeat=6):
        text = f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"
        try:
            net.architecture(text)
        except ValueError:
            continue
        reachable.add(text)
    assert len(reachable) == 3072 == 4 * 4**2 * 3 * 4**2
    for seed in range(50):
        net = tiny("nb201", seed=seed, scale=3.0, cells=1, channels=2)
        assert net.genotype() in reachable
        beta, alpha, cell = beta_by_node(net, "cell"), net.alpha["cell"].tolist(), []
        for edge, (node, i) in enumerate([(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]):
            p, q = softmax(alpha[edge]), softmax(beta[node].tolist())
            cell.append((node, i, max(p) * q[i], ops[1 + p.index(max(p))]))
        dropped = min((entry for entry in cell if entry[0] == 2), key=lambda entry: entry[2])
        names = ["none" if entry is dropped else entry[3] for entry in cell]
        assert net.genotype() == "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*names)


@pytest.mark.parametrize("name, parents", [("1shot1-1", "12222"), ("1shot1-2", "11223"), ("1shot1-3", "111222")])
def test_1shot1_nodes_have_their_parents(name, parents):
    parents = [int(count) for count in parents]  # paper.md, D.5: nodes 1..N and the output
    assert sum(parents) == 9
    for seed in range(20):
        net = tiny(name, seed=seed, cells=1, channels=2)
        genotype, betas = net.genotype(), [b.tolist() for b in beta_by_node(net, "cell")]
        assert [len(node) for node in net.sample(1.0, generator(seed)).picks["cell"]] == parents
        for node, (inputs, count) in enumerate(zip(genotype.inputs, parents, strict=True)):
            assert list(inputs) == sorted(sorted(range(node + 1), key=betas[node].__getitem__)[-count:])
        ops = ("maxpool3x3", "conv3x3-bn-relu", "skip-connect")
        assert genotype.ops == tuple(ops[row.index(max(row))] for row in net.alpha["cell"].tolist())


def test_1shot1_exact_probabilities_sum_to_one_with_three_parents():
    net, total = tiny("1shot1-2", cells=1, channels=2), 0.0
    with torch.no_grad():
        net.alpha["cell"].zero_()  # every choice of ops has probability 3^-4
    subsets = [itertools.combinations(range(n), k) for n, k in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 3))]
    for inputs in itertools.product(*subsets):
        total += math.exp(net.log_prob(rome.OneShotGenotype(("skip-connect",) * 4, inputs), exact=True).item()) * 3**4
    assert total == pytest.approx(1, abs=1e-4)


# ----------------------------------------------------------------------------------------------------------------------
# Published counts, ops and networks


@pytest.mark.parametrize("space, count", [("darts", 1_930_618), ("s1", 405_146), ("s2", 665_466)])
def test_supernet_has_the_published_number_of_weights(space, count):
    net = rome.Supernet(space, channels=16, cells=8, classes=10)
    assert sum(p.numel() for p in net.weights()) == count


@pytest.mark.parametrize(
    "name, settings, count",
    [
        ("DARTS_V2", {"auxiliary": False}, 3_349_342),
        ("DARTS_V2", {"auxiliary": True}, 3_825_768),
        ("DARTS_V2", {"channels": 16, "cells": 8, "auxiliary": False}, 246_106),
        ("DARTS_V1", {"auxiliary": False}, 3_169_414),
        ("PC_DARTS_cifar", {"auxiliary": False}, 3_634_678),
        ("GDAS_V1", {"auxiliary": False}, 3_368_782),
        ("DARTS_V2", {"channels": 48, "cells": 14, "classes": 1000, "auxiliary": False, "imagenet": True}, 4_718_752),
        ("DARTS_V2", {"channels": 48, "cells": 14, "classes": 1000, "auxiliary": True, "imagenet": True}, 5_979_528),
        (
            "PC_DARTS_image",
            {"channels": 48, "cells": 14, "classes": 1000, "auxiliary": False, "imagenet": True},
            5_342_464,
        ),
        ("GDAS_V1", {"channels": 48, "cells": 14, "classes": 1000, "auxiliary": False, "imagenet": True}, 4_969_216),
    ],
)
def test_network_has_the_published_number_of_parameters(name, settings, count):
    assert size_of(rome.Network(genotypes.PUBLISHED[name], **settings)) == count


def test_nb201_networks_have_the_tables_number_of_parameters():
    table = Path(rome.__file__).resolve().parent / "../shared/data/nasbench201.csv.gz"
    if not table.exists():
        pytest.skip(f"no table of NAS-Bench-201 at {table}")
    names = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    with gzip.open(table, "rt") as file:
        rows = random.Random(0).sample(list(csv.DictReader(file)), 100)
    for row in rows:
        arch = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*(names[int(digit)] for digit in row["ops"]))
        assert size_of(rome.Network(arch, channels=16, cells=5, classes=10)) == int(row["params"]), arch


# paper.md, D.2: edge by edge, normal / reduction
S1_TABLE = """
skip dil3 / max avg
skip dil5 / max dil3
skip dil5 / max avg
skip sep3 / max avg
skip dil3 / skip dil5
max skip / max avg
skip sep3 / max sep3
skip sep3 / skip dil3
skip dil3 / skip dil5
skip sep3 / max avg
max skip / max avg
skip dil3 / skip dil5
dil3 dil5 / skip dil5
dil3 dil5 / skip dil5
"""


def test_spaces_hold_the_published_ops():
    short = {
        "skip": "skip_connect",
        "max": "max_pool_3x3",
        "avg": "avg_pool_3x3",
        "sep3": "sep_conv_3x3",
        "sep5": "sep_conv_5x5",
    }
    short |= {"dil3": "dil_conv_3x3", "dil5": "dil_conv_5x5", "noise": "noise"}
    expected = {
        "darts": [["max avg skip sep3 sep5 dil3 dil5"] * 14] * 2,
        "s1": list(zip(*(line.split(" / ") for line in S1_TABLE.split("\n") if line))),
        "s2": [["skip sep3"] * 14] * 2,
        "s3": [["skip sep3"] * 14] * 2,
        "s4": [["noise sep3"] * 14] * 2,
    }
    for name, cells in expected.items():
        space = rome.SPACES[name]
        assert (space.candidates, space.picks) == ((2, 3, 4, 5), (2, 2, 2, 2))
        for kind, rows in zip(("normal", "reduce"), cells):
            assert [list(row) for row in space.ops[kind]] == [[short[op] for op in row.split()] for row in rows]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("affine", [False, True])
def test_primitives_match_their_definitions(affine, stride):
    x, ones = torch.randn(4, 6, 9, 9, generator=generator(22)), torch.ones(1, 1, 9, 9)

    def separable(x, depthwise, pointwise, stride, padding, dilation):
        x = F.conv2d(F.relu(x), depthwise, None, stride, padding, dilation, groups=6)
        return normalised(F.conv2d(x, pointwise))

    for name, make in rome.PRIMITIVES.items():
        op = make(6, stride, affine)
        weights, size = [m.weight for m in op.modules() if isinstance(m, nn.Conv2d)], int(name[-1] in "35" and name[-1])
        if name.startswith("sep_conv"):
            first = separable(x, *weights[:2], stride, size // 2, 1)
            expected = separable(first, *weights[2:], 1, size // 2, 1)
        elif name.startswith("dil_conv"):
            expected = separable(x, *weights, stride, size - 1, 2)
        elif name == "max_pool_3x3":
            expected = F.pad(x, (1, 1, 1, 1), value=-math.inf).unfold(2, 3, stride).unfold(3, 3, stride).amax((4, 5))
        elif name == "avg_pool_3x3":
            expected = F.avg_pool2d(x, 3, stride, 1) / F.avg_pool2d(ones, 3, stride, 1)  # the padding is not counted
        elif name == "skip_connect" and stride == 1:
            expected = x
        elif name == "skip_connect":  # an even size, as in the networks
            x = x[:, :, :8, :8]
            parts = [F.conv2d(F.relu(x)[:, :, shift::2, shift::2], w) for shift, w in enumerate(weights)]
            expected = normalised(torch.cat(parts, 1))
        else:
            assert name == "noise"
            continue
        if "pool" in name and not affine:  # the supernet's alone
            expected = normalised(expected)
        torch.testing.assert_close(run_op(op, x), expected, rtol=1e-4, atol=1e-5, msg=name)
        norms = [m for m in op.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all((m.weight is not None) == affine and m.track_running_stats == affine for m in norms)
        x = torch.randn(4, 6, 9, 9, generator=generator(22))


@pytest.mark.parametrize("mode", [True, False])
def test_noise_does_not_depend_on_its_input(mode):
    op, x = rome.PRIMITIVES["noise"](8, 2, False).train(mode), torch.randn(16, 8, 32, 32, requires_grad=True)
    torch.manual_seed(1)
    first = op(x)
    torch.manual_seed(1)
    assert torch.equal(first, op(1000 * x)) and not first.requires_grad
    assert not torch.equal(first, op(x))
    assert first.shape == (16, 8, 16, 16)
    assert abs(first.mean()) < 0.02 and abs(first.std() - 1) < 0.02


def test_supernet_has_no_buffers_and_uses_batch_statistics_in_evaluation():
    images, _ = batch(dtype=torch.float32)
    for space in rome.SPACES:
        net = tiny(space, cells=1)
        assert not list(net.buffers())
        if space != "s4":  # whose noise is new in every pass
            arch = net.sample(1.0, generator(23))
            assert torch.equal(net.train()(images, arch), net.eval()(images, arch))


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_parameters_are_weights_or_architecture_and_all_are_saved(topology):
    net = tiny("darts", topology)
    weights, architecture = ({id(p) for p in part} for part in (net.weights(), net.architecture_parameters()))
    assert not weights & architecture and weights | architecture == {id(p) for p in net.parameters()}
    sizes = {"v2": 2 * (14 * 7 + 14), "v1": 2 * (14 * 7 + 20), "none": 2 * 14 * 7}
    assert sum(p.numel() for p in net.architecture_parameters()) == sizes[topology]
    saved = {name for name in net.state_dict() if name.startswith(("alpha.", "beta."))}
    parts = ("alpha",) if topology == "none" else ("alpha", "beta")
    assert saved == {f"{part}.{kind}" for part in parts for kind in ("normal", "reduce")}
    other = tiny("darts", topology, seed=1)
    other.load_state_dict(net.state_dict())
    assert other.sample(1.0, generator(24)).picks == net.sample(1.0, generator(24)).picks


def darts_network(genotype, images, parameters, cells, imagenet=False):
    """DARTS's evaluation network in training, as published, from its parameters in order: (logits, auxiliary)."""
    p = iter(parameters)

    def conv(x, **settings):
        return F.conv2d(x, next(p), **settings)

    def norm(x):
        return F.batch_norm(x, None, None, next(p), next(p), training=True)

    def reduced(x):
        x = F.relu(x)
        return norm(torch.cat([conv(x, stride=2), conv(x[:, :, 1:, 1:], stride=2)], 1))

    def run(op, x, stride):
        size = int(op[-1]) if "conv" in op else 3
        if op == "skip_connect":
            return reduced(x) if stride == 2 else x
        if op == "max_pool_3x3":
            return F.max_pool2d(x, 3, stride, 1)
        if op == "avg_pool_3x3":
            return F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
        dilation = 2 if op.startswith("dil") else 1
        for step in (stride, 1)[: 3 - dilation]:
            x = F.relu(x)
            x = conv(x, stride=step, padding=dilation * (size // 2), dilation=dilation, groups=x.shape[1])
            x = norm(conv(x))
        return x

    if imagenet:
        s0 = norm(conv(F.relu(norm(conv(images, stride=2, padding=1))), stride=2, padding=1))
        s1 = norm(conv(F.relu(s0), stride=2, padding=1))
    else:
        s0 = s1 = norm(conv(images, padding=1))
    previous_reduced, middle = imagenet, None
    for index in range(cells):
        reduces = index in (cells // 3, 2 * cells // 3)
        states = [reduced(s0) if previous_reduced else norm(conv(F.relu(s0))), norm(conv(F.relu(s1)))]
        entries = genotype.reduce if reduces else genotype.normal
        for node in range(4):
            entry = sorted(entries[2 * node : 2 * node + 2], key=lambda pair: pair[1])  # as the parameters are ordered
            states.append(sum(run(op, states[i], 2 if reduces and i < 2 else 1) for op, i in entry))
        s0, s1 = s1, torch.cat(states[2:], 1)
        previous_reduced, middle = reduces, s1 if index == 2 * cells // 3 else middle
    logits = F.linear(s1.mean((2, 3)), next(p), next(p))
    x = F.avg_pool2d(F.relu(middle), 5, 2 if imagenet else 3, count_include_pad=False)
    x = conv(F.relu(norm(conv(x))))
    x = F.relu(x if imagenet else norm(x))
    logits_auxiliary = F.linear(x.flatten(1), next(p), next(p))
    assert next(p, None) is None
    return logits, logits_auxiliary


@pytest.mark.parametrize("name, imagenet", [("DARTS_V2", False), ("GDAS_V1", False), ("PC_DARTS_image", True)])
def test_network_is_the_published_one(name, imagenet):
    genotype = genotypes.PUBLISHED[name]
    torch.manual_seed(0)
    model = rome.Network(genotype, channels=4, cells=5, classes=7, drop_path=0.0, imagenet=imagenet).double()
    images = torch.randn(2, 3, *(224, 224) if imagenet else (32, 32), generator=generator(25)).double()
    results = []
    for logits in (model(images), darts_network(genotype, images, model.parameters(), 5, imagenet)):
        loss = F.cross_entropy(logits[0], torch.tensor([0, 3])) + 0.4 * F.cross_entropy(logits[1], torch.tensor([0, 3]))
        results.append((*logits, *torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-9)


def conv_norm(x, p, stride=1):
    """Convolution and batch norm (training) of the next three parameters."""
    weight = next(p)
    x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2)
    return F.batch_norm(x, None, None, next(p), next(p), training=True)


def nb201_network(arch, x, parameters):
    """NAS-Bench-201's network with one cell a stage, as published, from its parameters in order."""
    p = iter(parameters)
    x = conv_norm(x, p)
    for stage in range(3):
        if stage:
            y = conv_norm(F.relu(conv_norm(F.relu(x), p, 2)), p)
            x = y + F.conv2d(F.avg_pool2d(x, 2, 2), next(p))
        states = [x]
        for node in arch.split("+"):
            total = torch.zeros_like(x)
            for entry in node.strip("|").split("|"):
                op, source = entry.split("~")[0], states[int(entry.split("~")[1])]
                if op == "skip_connect":
                    total = total + source
                elif op == "avg_pool_3x3":
                    total = total + F.avg_pool2d(source, 3, 1, 1, count_include_pad=False)
                elif op != "none":
                    total = total + conv_norm(F.relu(source), p)
            states.append(total)
        x = states[3]
    x = F.relu(F.batch_norm(x, None, None, next(p), next(p), training=True)).mean((2, 3))
    return F.linear(x, next(p), next(p))


def one_shot_network(genotype, x, parameters, cells):
    """NAS-Bench-1Shot1's network (paper.md, D.5) from its parameters in order."""
    p = iter(parameters)
    x = F.relu(conv_norm(x, p))
    for index in range(cells):
        if index in (cells // 3, 2 * cells // 3):
            x = F.max_pool2d(x, 2, 2, 1)
        projected = [F.relu(conv_norm(x, p)) for _ in genotype.inputs]
        states = [x]
        for op, inputs, projection in zip(genotype.ops, genotype.inputs, projected):
            total = sum(states[i] if i else projection for i in inputs)
            if op == "maxpool3x3":
                total = F.max_pool2d(total, 3, 1, 1)
            elif op != "skip-connect":
                total = F.relu(conv_norm(total, p))
            states.append(total)
        parts = [s if i in genotype.inputs[-1] else torch.zeros_like(s) for i, s in enumerate(states) if i]
        x = torch.cat(parts, 1) + (projected[-1] if 0 in genotype.inputs[-1] else 0)
    x = conv_norm(F.relu(x), p).mean((2, 3))
    return F.linear(x, next(p), next(p))


@pytest.mark.parametrize(
    "arch",
    [
        "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|skip_connect~0|nor_conv_3x3~1|avg_pool_3x3~2|",
        "|none~0|+|nor_conv_3x3~0|none~1|+|nor_conv_1x1~0|skip_connect~1|nor_conv_1x1~2|",
        "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|skip_connect~1|none~2|",
    ],
)
def test_nb201_network_is_the_published_one(arch):
    torch.manual_seed(0)
    model, images = rome.Network(arch, channels=4, cells=1, classes=5, drop_path=0.0).double(), batch(size=16)[0]
    expected = nb201_network(arch, images, model.parameters())
    torch.testing.assert_close(model(images)[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("output", [(0, 1, 3), (2, 3, 4)])
def test_1shot1_network_is_the_published_one(output):
    ops = ("conv3x3-bn-relu", "maxpool3x3", "conv1x1-bn-relu", "skip-connect")
    genotype = rome.OneShotGenotype(ops, ((0,), (1,), (0, 2), (1, 3), output))
    torch.manual_seed(0)
    model, images = rome.Network(genotype, channels=4, cells=3, classes=5, drop_path=0.0).double(), batch(size=16)[0]
    expected = one_shot_network(genotype, images, model.parameters(), 3)
    torch.testing.assert_close(model(images)[0], expected, rtol=1e-9, atol=1e-9)


def drop_path_case(ops, rate):
    """Outputs of a cell with these two ops with and without drop path, and what its pooling gave."""
    genotype = rome.Genotype([(ops[0], 0), (ops[1], 1)], [2], [("max_pool_3x3", 0), ("max_pool_3x3", 1)], [2])
    torch.manual_seed(0)
    model = rome.Network(genotype, channels=2, cells=3, auxiliary=False, drop_path=rate)
    images, cell, seen, outputs = torch.randn(400, 3, 8, 8), model.cells[0], {}, []  # the first cell is a normal one
    for module in (cell, *(m for m in cell.modules() if isinstance(m, nn.AvgPool2d))):
        module.register_forward_hook(lambda module, _, output: seen.update({type(module): output.detach().clone()}))
    for value in (rate, 0.0):
        model.drop_path.fill_(value)
        model(images)
        outputs.append(seen[type(cell)])
    return *outputs, seen.get(nn.AvgPool2d)


def test_drop_path_keeps_the_mean():
    rate = 0.25
    dropped, plain, pooled = drop_path_case(("avg_pool_3x3", "skip_connect"), rate)
    kept = (dropped - plain - pooled * rate / (1 - rate)).abs().amax((1, 2, 3)) < 1e-5
    gone = (dropped - plain + pooled).abs().amax((1, 2, 3)) < 1e-5
    assert (kept ^ gone).all()  # an image's path is gone, or scaled by 1 / (1 - rate): the mean stays
    assert abs(kept.sum() - 400 * (1 - rate)) < 4 * (400 * rate * (1 - rate)) ** 0.5


def test_drop_path_leaves_identities_alone():
    dropped, plain, _ = drop_path_case(("skip_connect", "skip_connect"), 0.5)
    assert torch.equal(dropped, plain)


def test_drop_path_is_off_in_evaluation():
    model = rome.Network(genotypes.PUBLISHED["DARTS_V2"], channels=4, cells=3, drop_path=0.9)
    images = torch.randn(2, 3, 32, 32)
    first, _ = model.eval()(images)
    assert torch.equal(first, model(images)[0])
    model.drop_path.fill_(0.0)
    assert torch.equal(first, model(images)[0])


@pytest.mark.parametrize("size", [32, 48, 64])
def test_auxiliary_head_is_for_training_at_any_size(size):
    images = torch.randn(2, 3, size, size)
    for auxiliary in (True, False):
        model = rome.Network(genotypes.PUBLISHED["DARTS_V2"], channels=4, cells=3, classes=7, auxiliary=auxiliary)
        logits, logits_auxiliary = model.train()(images)
        assert logits.shape == (2, 7)
        assert logits_auxiliary.shape == (2, 7) if auxiliary else logits_auxiliary is None
        assert model.eval()(images)[1] is None


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
labels = torch.randint(2, (64,))
images = torch.randn(64, 3, 8, 8) + 2 * labels.view(-1, 1, 1, 1)
losses = []
for step in range(10):
    s, t = torch.randint(64, (2, 16))
    architect.architecture_step(images[s], labels[s], 10 - step, adam)
    losses.append(architect.weight_step(images[t], labels[t], 10 - step, sgd).item())
assert losses[-1] < losses[0]
model = rome.Network(net.genotype(), channels=4, cells=3, classes=2)
assert model(torch.randn(2, 3, 32, 32))[0].shape == (2, 2)
"""


def run_alone(folder, *arguments):
    shutil.copy(rome.__file__, folder / "rome.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_rome_alone_imports_silently_and_searches(tmp_path):
    result = run_alone(tmp_path, "-c", ALONE)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_rome_alone_says_what_its_command_line_needs(tmp_path):
    result = run_alone(tmp_path, "rome.py", "--quick")
    assert result.returncode != 0 and "train" in result.stderr and "Traceback" not in result.stderr
    assert re.search(r"missing|needs|not found|no module", result.stderr, re.IGNORECASE)


# ----------------------------------------------------------------------------------------------------------------------
# Genotypes

ARCH = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|nor_conv_3x3~2|"
ONE_SHOT = rome.OneShotGenotype(
    ops=("conv3x3-bn-relu", "maxpool3x3", "skip-connect", "conv3x3-bn-relu"),
    inputs=((0,), (0, 1), (0, 2), (1, 3), (0, 4)),
)
KINDS = {"darts": genotypes.PUBLISHED["PDARTS"], "1shot1": ONE_SHOT, "nb201": ARCH}
PRINTED = str(genotypes.PUBLISHED["DARTS_V2"])


def random_darts(generator):
    def cell():
        edges = [i for node in (2, 3, 4, 5) for i in generator.sample(range(node), 2)]
        return [(generator.choice(genotypes.DARTS_OPS), i) for i in edges]

    concat = [sorted(generator.sample((2, 3, 4, 5), generator.randint(1, 4))) for _ in range(2)]
    return rome.Genotype(cell(), concat[0], cell(), concat[1])


def test_published_cells_equal_the_published_code():
    v2 = rome.Genotype(  # quark0/darts
        normal=[
            ("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
            ("sep_conv_3x3", 1), ("skip_connect", 0), ("skip_connect", 0), ("dil_conv_3x3", 2),
        ],
        normal_concat=[2, 3, 4, 5],
        reduce=[
            ("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 1),
            ("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 2), ("max_pool_3x3", 1),
        ],
        reduce_concat=[2, 3, 4, 5],
    )  # fmt: skip
    gdas = rome.Genotype(  # D-X-Y/GDAS
        normal=[
            ("skip_connect", 0), ("skip_connect", 1), ("skip_connect", 0), ("sep_conv_5x5", 2),
            ("sep_conv_3x3", 3), ("skip_connect", 0), ("sep_conv_5x5", 4), ("sep_conv_3x3", 3),
        ],
        normal_concat=[2, 3, 4, 5],
        reduce=[
            ("sep_conv_5x5", 0), ("sep_conv_3x3", 1), ("sep_conv_5x5", 2), ("sep_conv_5x5", 1),
            ("dil_conv_5x5", 2), ("sep_conv_3x3", 1), ("sep_conv_5x5", 0), ("sep_conv_5x5", 1),
        ],
        reduce_concat=[2, 3, 4, 5],
    )  # fmt: skip
    assert genotypes.load("DARTS_V2") == v2
    assert genotypes.load("GDAS_V1") == gdas
    assert list(genotypes.PUBLISHED) == [
        "DARTS_V1",
        "DARTS_V2",
        "PC_DARTS_cifar",
        "PC_DARTS_image",
        "PDARTS",
        "GDAS_V1",
    ]
    assert all(genotypes.check(cell) == cell for cell in genotypes.PUBLISHED.values())


def test_parameter_free_counts_of_published_cells():
    counts = {name: genotypes.parameter_free(cell) for name, cell in genotypes.PUBLISHED.items()}
    assert {name: count["normal"] for name, count in counts.items()} == {
        "DARTS_V1": 3, "DARTS_V2": 2, "PC_DARTS_cifar": 2, "PC_DARTS_image": 2, "PDARTS": 2, "GDAS_V1": 4,
    }  # fmt: skip
    assert counts["DARTS_V2"]["reduce"] == 8
    assert genotypes.parameter_free(ARCH) == {"cell": 3}
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
    assert genotypes.check(genotype._replace(normal_concat=range(2, 6), reduce=tuple(genotype.reduce))) == genotype


CODE = "__import__('os').system('touch ran')"  # leaves a file behind if anything runs it
SAVED = json.dumps({"schema": 1, "kind": "darts", "genotype": genotypes.PUBLISHED["DARTS_V2"]._asdict()})
HOSTILE_TEXTS = {
    "empty": "", "unknown name": "DARTS_V9", "wrong case": "darts_v2", "no text": 3, "bytes": b"DARTS_V2",
    "missing file": "missing.json", "long": "x" * 1_000_000, "NUL": PRINTED + "\0", "NUL in a path": "cell\0.json",
    "surrogate": "\ud800", "surrogate inside": PRINTED + "\ud800", "code": CODE, "code before": f"{CODE} or {PRINTED}",
    "code after": f"{PRINTED}; {CODE}", "code for an op": PRINTED.replace("'dil_conv_3x3'", CODE),
    "code for a list": PRINTED.replace("[2, 3, 4, 5]", f"{CODE} or [2]"),
    "code in JSON": SAVED.replace("[2,", f"[{CODE},"),
    "called twice": PRINTED.replace("Genotype(", "Genotype()("), "unpacked": "Genotype(*[1, 2, 3, 4])",
    "deep brackets": "Genotype(" + "[" * 9_000 + "]" * 9_000 + ")", "deep JSON": '{"a":' * 100_000,
    "many signs": "Genotype(" + "-" * 9_000 + "1)", "many lists": "Genotype(" + "[]," * 6_000 + ")",
    "huge number": f"Genotype({'9' * 15_000})", "huge input": PRINTED.replace("2)", "9" * 4_000 + ")"),
    "huge range": PRINTED.replace("[2, 3, 4, 5]", "range(2, 10**9)"), "unfinished": PRINTED[:-1],
    "field twice": PRINTED.replace("reduce=", "normal="), "fields missing": "Genotype([], [], [])",
    "unknown op": PRINTED.replace("dil_conv_3x3", "dil_conv_7x7"), "none": PRINTED.replace("dil_conv_3x3", "none"),
    "later input": PRINTED.replace("'dil_conv_3x3', 2", "'dil_conv_3x3', 5"),
    "negative input": PRINTED.replace("'dil_conv_3x3', 2", "'dil_conv_3x3', -1"),
    "bool input": PRINTED.replace("'dil_conv_3x3', 2", "'dil_conv_3x3', True"),
    "same input twice": PRINTED.replace("'dil_conv_3x3', 2", "'dil_conv_3x3', 0"),
    "seven pairs": PRINTED.replace(", ('dil_conv_3x3', 2)", ""), "empty concat": PRINTED.replace("[2, 3, 4, 5]", "[]"),
    "concat of an input": PRINTED.replace("[2, 3, 4, 5]", "[1, 2]"),
    "concat order": PRINTED.replace("[2, 3,", "[3, 2,"),
    "schema 2": SAVED.replace("1", "2", 1), "schema true": SAVED.replace("1", "true", 1), "schema missing": "{}",
    "huge schema": SAVED.replace("1", "1" * 9_000, 1), "NaN": SAVED.replace(", 2]", ", NaN]"),
    "float input": SAVED.replace(", 2]", ", 2.0]"), "wrong kind": SAVED.replace("darts", "nb201"),
    "unknown kind": SAVED.replace("darts", "nasnet"), "unhashable kind": SAVED.replace('"darts"', "[{}]"),
    "no genotype": '{"schema": 1, "kind": "darts"}', "odd field": SAVED.replace("normal_concat", "a\\nb\\ud800"),
    "unfinished JSON": SAVED[:-1], "short arch": ARCH[:60], "unknown arch op": ARCH.replace("none", "zero"),
    "arch input": ARCH.replace("none~0", "none~1"), "inputs of no space": str(ONE_SHOT).replace("(0, 4)", "(4,)"),
    "unknown one-shot op": str(ONE_SHOT).replace("maxpool", "minpool"),
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
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "huge").write_bytes(b"{" * (3 << 20))
    (tmp_path / "deep").write_text('{"a":' * 100_000)
    (tmp_path / "code").write_text(CODE)
    (tmp_path / "empty").write_text("")
    for name in ("pipe", "folder", "binary", "huge", "deep", "code", "empty", "missing"):
        assert_refused(tmp_path / name)
        assert_refused(str(tmp_path / name))


def test_errors_name_the_place_and_the_choices():
    with pytest.raises(
        ValueError, match=r"normal cell, node 5: unknown operation 'dil_conv_7x7'; known: .*dil_conv_5x5"
    ):
        genotypes.load(PRINTED.replace("dil_conv_3x3", "dil_conv_7x7"))
    with pytest.raises(ValueError, match="did you mean DARTS_V2"):
        genotypes.load("darts_v2")


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
    shown = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    cells = {"darts": lambda g: [op for op, _ in g.normal + g.reduce], "1shot1": lambda g: g.ops}
    ops = (
        cells[kind](KINDS[kind])
        if kind in cells
        else [op.split("~")[0] for op in ARCH.replace("+", "").split("|") if op]
    )
    assert all(shown.count(op) >= list(ops).count(op) for op in ops)
    lines = genotypes.describe(KINDS[kind])
    assert all(lines.count(op) >= list(ops).count(op) for op in ops)


def test_pictures_have_no_overlapping_labels_and_no_line_through_a_label():
    generator = random.Random(0)
    for genotype in (*genotypes.PUBLISHED.values(), ARCH, ONE_SHOT, *(random_darts(generator) for _ in range(20))):
        width, height, curves, boxes = genotypes._layout(genotype)
        boxes = {box[:4] for box in boxes if box[2]}  # an op on a node is drawn once per input
        for (x, y, w, h), (x1, y1, w1, h1) in itertools.combinations(boxes, 2):
            assert 2 * abs(x - x1) >= w + w1 or 2 * abs(y - y1) > h + h1
        assert all(w / 2 <= x <= width - w / 2 and h / 2 <= y <= height - h / 2 for x, y, w, h in boxes)
        pills = [box for box in boxes if box[3] == 26]
        for _, points in curves:
            for piece in range(0, len(points) - 1, 3):
                a, b, c, d = points[piece : piece + 4]
                for s in (k / 20 for k in range(21)):
                    weights = ((1 - s) ** 3, 3 * s * (1 - s) ** 2, 3 * s * s * (1 - s), s**3)
                    px, py = (
                        sum(weight * p[axis] for weight, p in zip(weights, (a, b, c, d), strict=True))
                        for axis in (0, 1)
                    )
                    assert not any(abs(px - x) < w / 2 - 1 and abs(py - y) < h / 2 + 2 for x, y, w, h in pills)


def test_png_is_drawn_and_other_suffixes_are_refused(tmp_path):
    pytest.importorskip("matplotlib")
    genotypes.draw(ONE_SHOT, tmp_path / "cell.PNG")
    assert (tmp_path / "cell.PNG").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"\.svg or \.png"):
        genotypes.draw(ONE_SHOT, tmp_path / "cell.pdf")


def test_png_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        genotypes.draw(ARCH, tmp_path / "cell.png")
    genotypes.draw(ARCH, tmp_path / "cell.svg")


# ----------------------------------------------------------------------------------------------------------------------
# train.py


TIMES = ("images_per_second", "seconds", "peak_mib")


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


def run(words, **kwargs):
    """The command in a process of its own: (status, stdout, stderr)."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | kwargs
    done = subprocess.run(
        [sys.executable, HERE / "train.py", *words], capture_output=True, text=True, env=environment, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


def result(out):
    """All of a run that must not depend on time: rows without the time columns, checkpoint tensors, genotype."""
    with open(out / "metrics.csv") as file:
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    state = torch.load(out / "last.pt", weights_only=True)
    tensors = {}

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
    assert (
        train.main(
            flags(folder, out, "--retrain", "--retrain-epochs", 2, "--retrain-cells", 3, "--retrain-channels", 2)
        )
        == 0
    )
    return out


def test_search_and_retrain_write_what_they_promise(searched):
    for name in ("config.json", "metrics.csv", "genotype.json", "cells.svg", "last.pt", "log.txt"):
        assert (searched / name).stat().st_size > 0
        assert (searched / "retrain" / name).stat().st_size > 0
    genotypes.load(searched / "genotype.json")
    with open(searched / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    columns = (
        "loss_alpha loss_theta supernet_accuracy tau parameter_free_normal parameter_free_reduce entropy_alpha_normal"
    )
    columns += " entropy_beta_normal images_per_second peak_mib gradient_norm clipped"
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(row[column] != "" for row in rows for column in columns.split())
    assert [float(row["tau"]) for row in rows] == [10.0, 0.1]


def test_same_seed_gives_the_same_run(folder, searched, tmp_path):
    assert train.main(flags(folder, tmp_path / "again")) == 0
    assert_equal_runs(searched, tmp_path / "again")


def test_another_seed_gives_another_run(folder, searched, tmp_path):
    assert train.main(flags(folder, tmp_path / "other", "--seed", 1)) == 0
    assert result(searched)[0] != result(tmp_path / "other")[0]


@pytest.mark.parametrize("name", ["faults", "fuzz", "soak"])
def test_small_version_of_the_bench_passes(name, tmp_path):
    """Runs killed and broken at random moments and resumed; generated inputs; memory and open files."""
    words = [sys.executable, HERE / "bench" / f"{name}.py", "--quick", "--out", tmp_path / "result.json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert all(row["passed"] is not False for row in rows) and len(rows) >= 8


def test_broken_checkpoint_falls_back_to_the_one_before(folder, searched, tmp_path, capsys):
    out = tmp_path / "broken"
    shutil.copytree(searched, out)
    whole = (out / "last.pt").read_bytes()
    (out / "last.pt").write_bytes(whole[: len(whole) // 2])
    assert train.main([*flags(folder, out), "--resume"]) == 0
    assert "last.pt cannot be used" in capsys.readouterr().err
    assert_equal_runs(searched, out)


def test_two_broken_checkpoints_are_refused(folder, searched, tmp_path, capsys):
    out = tmp_path / "broken"
    shutil.copytree(searched, out)
    for name in ("last.pt", "previous.pt"):
        (out / name).write_bytes(b"nothing")
    assert "cannot be used" in one_line_error(capsys, [*flags(folder, out), "--resume"])


def test_checkpoint_of_another_network_is_refused(folder, searched, tmp_path, capsys):
    out = tmp_path / "other"
    shutil.copytree(searched, out)
    for name in ("last.pt", "previous.pt"):
        state = torch.load(out / name, weights_only=True)
        state["net"].pop("classifier.bias")
        torch.save(state, out / name)
    assert "another network" in one_line_error(capsys, [*flags(folder, out), "--resume"])


def test_resume_of_a_finished_run_says_so(folder, searched, capsys):
    assert train.main([*flags(folder, searched), "--resume"]) == 0
    assert "already finished" in capsys.readouterr().out


def test_resume_takes_the_settings_of_the_run(searched, capsys):
    assert train.main(["search", "--out", str(searched), "--resume"]) == 0
    assert "already finished" in capsys.readouterr().out


def test_two_processes_share_the_work_and_resume(folder, tmp_path):
    """torchrun on the CPU: search and retrain end, a resumed run ends with the same bits, one process is refused."""
    whole, out = tmp_path / "whole", tmp_path / "resumed"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", HERE / "train.py"]

    def run(*words):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, timeout=200)

    retrain = ["--retrain", "--retrain-epochs", 1, "--retrain-cells", 3, "--retrain-channels", 2]
    done = run(*torchrun, *flags(folder, whole, "--device", "cpu", "--save-minutes", 0, *retrain))
    assert done.returncode == 0, done.stderr
    assert "x 2 processes, 12 images a step in all" in done.stdout and "test accuracy" in done.stdout
    shutil.copytree(whole, out)
    for part in (out, out / "retrain"):
        (part / "last.pt").unlink()  # previous.pt: after the last step, before the evaluation
    script = tmp_path / "train.py"  # what is left of the process group's threads may abort while Python exits
    script.write_text(
        f"import pathlib, sys; sys.path.insert(0, {str(HERE)!r}); import train; status = train.main()\n"
        "print([path.read_text() for path in pathlib.Path('/proc/self/task').glob('*/comm')]); sys.exit(status)"
    )
    done = run(*torchrun[:-1], script, *flags(folder, out, "--device", "cpu", "--resume"))
    assert done.returncode == 0, done.stderr
    assert "gloo" not in done.stdout
    assert_equal_runs(whole, out)
    assert_equal_runs(whole / "retrain", out / "retrain")
    done = run(HERE / "train.py", *flags(folder, out, "--resume"))
    assert done.returncode == 2 and "--processes 2 (now 1)" in done.stderr


def test_config_file_is_enough_to_run_again(searched, tmp_path):
    out = tmp_path / "again"
    assert train.main(["search", "--config", str(searched / "config.json"), "--out", str(out)]) == 0
    assert_equal_runs(searched, out)


def test_resume_with_other_settings_is_refused(folder, searched, capsys):
    error = one_line_error(capsys, [*flags(folder, searched), "--resume", "--lr", "0.1"])
    assert "--lr 0.05 (now 0.1)" in error


def test_occupied_folder_is_refused_and_left_alone(folder, searched, capsys):
    before = {path: path.read_bytes() for path in searched.glob("*.*")}
    assert "holds a run already" in one_line_error(capsys, flags(folder, searched))
    assert before == {path: path.read_bytes() for path in searched.glob("*.*")}


def test_search_never_reads_the_test_images(folder, searched, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    shutil.rmtree(data / "test")
    assert train.main(flags(data, tmp_path / "run")) == 0
    assert_equal_runs(searched, tmp_path / "run")


def test_bad_data_folders_end_in_one_line(folder, tmp_path, capsys):
    assert "no folder" in one_line_error(capsys, flags(tmp_path / "missing", tmp_path / "run"))
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    image = data / "train" / "class1" / "3.png"
    image.write_bytes(image.read_bytes()[:60])
    assert str(image) in one_line_error(capsys, flags(data, tmp_path / "run"))
    (data / "train" / "empty").mkdir()
    assert "empty" in one_line_error(capsys, flags(data, tmp_path / "run"))
    shutil.rmtree(data / "train")
    (data / "train").mkdir()
    assert "class" in one_line_error(capsys, flags(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_one_class_is_refused(folder, tmp_path, capsys):
    shutil.copytree(folder / "train" / "class0", tmp_path / "data" / "train" / "only")
    assert "one class" in one_line_error(capsys, flags(tmp_path / "data", tmp_path / "run"))


def test_test_classes_must_be_the_training_classes(folder, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    (data / "test" / "class0").rename(data / "test" / "other")
    assert "other" in one_line_error(capsys, flags(data, tmp_path / "run", stage="retrain"))


@pytest.mark.parametrize(
    "words",
    [
        "search --nonsense",
        "search --space s9",
        "search --epochs 0",
        "search --epochs 1e3",
        "search --lr nan",
        "search --lr -1",
        "search --tau-min 0",
        "search --batch-size 1",
        "search --quick --channels 3",
        "search --quick --retrain-epochs 3",
        "search --quick --samples 2 --samples-alpha 3 --samples-theta 4",
        "search --quick --equal-passes --epochs 3",
        "search --quick --data x",
        "search --quick --image-size 30",
        "search --dataset cifar10 --image-size 64",
        "search --quick --one-shot-ops table",
        "search --quick --method gdas --derive exact",
        "search --quick --space s2 --table x.csv",
        "search --quick --space nb201 --retrain --retrain-auxiliary 0.4",
        "search --quick --space 1shot1-1 --method gdas",
        "search --space 1shot1-1 --dataset svhn",
        "search --space nb201 --dataset imagenet",
        "search --quick --stem imagenet",
        "search --quick --config /nowhere/config.json",
        "retrain --quick",
        "retrain --quick --genotype DARTS_V3",
        "retrain --quick --genotype __import__('os').system('true')",
        "retrain --quick --genotype GDAS_V1 --drop-path 1",
        "retrain --quick --genotype GDAS_V1 --space nb201",
        "retrain --quick --genotype |nor_conv_3x3~0|+|skip_connect~0|none~1|+|none~0|none~1|odd~2|",
    ],
)
def test_bad_flags_end_in_one_line_and_status_2(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one_line_error(capsys, words.split(" "))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", ["search --config {}", "search --space nb201 --table {}", "report {}"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(words, kind, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    path = "/dev/zero" if kind == "device" else tmp_path / kind
    (tmp_path / "folder").mkdir()
    one_line_error(capsys, words.format(path).split() + ["--out", tmp_path / "run"] * ("report" not in words))


def test_nan_loss_ends_in_status_3_and_keeps_the_checkpoint(folder, tmp_path, capsys, monkeypatch):
    out, step = tmp_path / "run", rome.Architect.weight_step
    calls = []

    def weight_step(self, images, *rest):
        calls.append(1)
        return step(self, images * (math.nan if len(calls) > 4 else 1), *rest)

    monkeypatch.setattr(rome.Architect, "weight_step", weight_step)
    error = one_line_error(capsys, flags(folder, out, "--steps-per-epoch", 3), status=3)
    assert "epoch 2/2, step 2/3" in error and "Genotype(" in error
    state = torch.load(out / "last.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 0)
    assert all(value.isfinite().all() for value in state["net"].values())


@pytest.mark.parametrize("space", ["darts", "nb201", "1shot1-1"])
def test_infinite_gradient_of_alpha_names_the_sampled_cell(space, folder, tmp_path, capsys, monkeypatch):
    def accumulate(self, role, *rest, original=rome.Architect._accumulate):
        loss = original(self, role, *rest)
        for leaf in rest[-1] if role == "architecture" else ():
            next(iter(leaf.gates.values())).grad.fill_(math.inf)
        return loss

    monkeypatch.setattr(rome.Architect, "_accumulate", accumulate)
    cells = ["--space", space, "--cells", 1 if space == "nb201" else 3]
    error = one_line_error(capsys, flags(folder, tmp_path / "run", *cells), status=3)
    assert "epoch 1/2, step 1/3: the gradient is not finite in the architecture step" in error
    cell = genotypes.load(re.search(r"sampled cell: (.*)\); the last", error)[1])
    assert rome.Supernet(space, 2, 1, 3).architecture(cell).picks


def test_infinite_loss_stops_the_retrain(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train.F, "cross_entropy", lambda *_, **__: torch.tensor(math.inf, requires_grad=True))
    error = one_line_error(capsys, flags(folder, tmp_path / "run", stage="retrain"), status=3)
    assert "epoch 1/2, step 1/6: the loss is not finite" in error and "--lr" in error


@pytest.mark.parametrize("stage", ["search", "retrain"])
def test_steps_skipped_by_loss_scaling_are_counted_and_shown(stage, folder, tmp_path, capsys, monkeypatch):
    """float16 on a CPU, whose first scale, 65536, is too large for the gradients."""
    monkeypatch.setattr(train, "precision", lambda config, device: torch.float16)
    assert train.main(flags(folder, tmp_path / "run", "--amp", "--steps-per-epoch", 4, stage=stage)) == 0
    with open(tmp_path / "run" / "metrics.csv") as file:
        share = [float(row["skipped"]) for row in csv.DictReader(file)]
    assert share[0] in (0.25, 0.5, 0.75, 1.0)
    assert f"{round(4 * share[0])} of 4 steps skipped by loss scaling" in capsys.readouterr().out


def test_trained_network_loads_to_the_same_accuracy(folder, searched):
    network, classes = train.load_network(searched / "retrain" / "last.pt")
    assert classes == ["class0", "class1", "class2"]
    state = torch.load(searched / "retrain" / "last.pt", weights_only=True)
    config = state["settings"]
    images, training = train.load_data(config, "test"), train.load_data(config, "train")
    stream = train.Stream(
        images, torch.arange(len(images.labels)), config, "test", torch.device("cpu"),
        train.statistics_of(training, "folder"), augment=False,
    )  # fmt: skip
    _, accuracy = train.evaluate(lambda x: network(x)[0], stream)
    assert accuracy == state["rows"][-1]["accuracy_test"]


@pytest.mark.parametrize("stage", ["search", "retrain"])
def test_help_says_the_defaults_in_groups_that_fit_a_screen(stage, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert train.main([stage, "--help"]) == 0
    text = capsys.readouterr().out
    assert max(len(group.splitlines()) for group in text.split("\n\n")) <= 24
    assert max(map(len, text.splitlines())) <= 80
    usual = train.protocol(train.SEARCH if stage == "search" else train.RETRAIN, "darts", "cifar10")
    for name, (stages, default, _) in train.FLAGS.items():
        shown = re.search(rf"^  --{name.replace('_', '-')}\b.*\n?(?:    .*\n)*", text, re.MULTILINE)
        assert (shown is not None) == (stage[0] in stages)
        if shown and (name in usual or default not in (None, False)):
            assert f"[{usual[name]}]" in shown[0] if name in usual else f"{default})" in shown[0].replace("\n", "")


def test_progress_is_a_line_with_time_left_on_a_terminal_and_a_line_per_epoch_elsewhere(
    folder, tmp_path, capsys, monkeypatch
):
    """And --quiet prints nothing."""
    texts = {}
    for name, terminal, more in (("piped", False, ""), ("terminal", True, ""), ("quiet", True, "--quiet")):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        more += " --retrain --retrain-epochs 1 --retrain-cells 1 --retrain-channels 2"
        assert train.main(flags(folder, tmp_path / name, *more.split())) == 0
        texts[name] = capsys.readouterr()
    assert texts["quiet"] == ("", "")
    assert "\r" not in texts["piped"].out and "\033" not in texts["piped"].out
    assert len(re.findall(r"^epoch \d/\d: .* left$", texts["piped"].out, re.MULTILINE)) == 3
    assert re.search(r"\r\033\[Kepoch 1/2, step 2/3, \d+ s left", texts["terminal"].out)
    without = re.sub(r"\r\033\[K(epoch \d/\d, step \d/\d, \d+ s left)?", "", texts["terminal"].out)
    assert without.count("\n") == texts["piped"].out.count("\n")  # every progress line was wiped


@pytest.mark.parametrize("space", list(rome.SPACES))
def test_every_space_searches_derives_and_retrains(space, folder, tmp_path):
    more = ["--space", space, "--retrain", "--retrain-epochs", 1, "--retrain-channels", 2, "--epochs", 1]
    cells = 1 if space == "nb201" else 3
    out = tmp_path / "run"
    assert train.main(flags(folder, out, *more, "--cells", cells, "--retrain-cells", cells, "--quiet")) == 0
    genotype = genotypes.load(out / "genotype.json")
    assert rome.Supernet(space, 2, cells, 3).architecture(genotype).picks
    assert (out / "retrain" / "metrics.csv").exists()


@pytest.mark.parametrize(
    "more", ["--method gdas", "--method rome-v1", "--amp", "--recompute", "--warmup 1", "--derive exact"]
)
def test_variants_of_the_search_run(more, folder, tmp_path):
    assert train.main(flags(folder, tmp_path / "run", "--epochs", 1, "--steps-per-epoch", 2, *more.split())) == 0


# --- data -------------------------------------------------------------------------------------------------------------


def stream_of(pixels, augment=True, **config):
    labels = torch.arange(len(pixels)) % 3
    config = dict(seed=0, batch_size=4, stem="small", cutout=0, workers=0, image_size=pixels.shape[1]) | config
    images = train.Images(pixels, labels, [], ["a", "b", "c"])
    return train.Stream(
        images, torch.arange(len(pixels)), config, "weights", torch.device("cpu"), ((0.0,) * 3, (1.0,) * 3), augment
    )


def test_augmentation_is_crop_flip_and_cutout():
    """Every augmented image is a crop or flipped crop of its zero-padded original, outside the erased square."""
    pixels = torch.randint(1, 256, (8, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stream = stream_of(pixels, cutout=4)
    for images, labels in stream.epoch(0):
        for image, label in zip(images, labels, strict=True):
            erased = (image == 0).all(0)
            found = []
            for number in range(len(pixels)):
                padded = torch.nn.functional.pad(pixels[number].permute(2, 0, 1) / 255, (4, 4, 4, 4))
                for y, x, flip in itertools.product(range(9), range(9), (0, 1)):
                    crop = padded[:, y : y + 8, x : x + 8]
                    crop = crop.flip(2) if flip else crop
                    difference = (crop != image).any(0)
                    if not (difference & ~erased).any() and difference.sum() <= 16:
                        found.append(number % 3 == label)
            assert any(found)


def test_a_stream_repeats_itself_and_can_start_anywhere():
    pixels = torch.randint(0, 256, (10, 8, 8, 3), dtype=torch.uint8)
    whole = list(stream_of(pixels).epoch(3))
    assert len(whole) == 3 and [len(labels) for _, labels in whole] == [4, 4, 2]
    rest = list(stream_of(pixels).epoch(3, start=1))
    assert all(
        torch.equal(a, b) for pair, other in zip(whole[1:], rest, strict=True) for a, b in zip(pair, other, strict=True)
    )
    assert not torch.equal(whole[0][0], next(iter(stream_of(pixels).epoch(4)))[0])


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_data_of_torchvision_becomes_pixels_and_labels(name, monkeypatch, tmp_path):
    """In place of the archives, which need a download: objects with torchvision's documented attributes."""
    import numpy
    import torchvision

    pixels = numpy.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=numpy.uint8)
    calls = []

    class Stub:
        classes = [str(label) for label in range(10)]
        data, targets, labels = pixels, [0, 1, 2, 3, 4, 5], numpy.arange(6)

        def __init__(self, *arguments, download):
            calls.append(arguments)

    if name == "svhn":
        Stub.data = pixels.transpose(0, 3, 1, 2)
    monkeypatch.setattr(torchvision.datasets, name.upper(), Stub)
    images = train.load_data(dict(dataset=name, data="data", image_size=32), "test")
    assert calls == [("data", "test" if name == "svhn" else False)]
    assert torch.equal(images.pixels, torch.from_numpy(pixels)) and images.labels.tolist() == list(range(6))
    config = dict(seed=0, batch_size=4, stem="small", cutout=0, workers=0, image_size=32)
    statistics = train.statistics_of(images, name)
    stream = train.Stream(images, torch.arange(6), config, "test", torch.device("cpu"), statistics, augment=False)
    batch, _ = next(stream.epoch(0))
    assert batch.shape == (4, 3, 32, 32) and batch.is_contiguous(memory_format=torch.channels_last)


def test_evaluation_sees_every_image_once_in_mixed_batches():
    pixels = torch.arange(30, dtype=torch.uint8).view(30, 1, 1, 1).expand(30, 4, 4, 3).contiguous()
    stream = stream_of(pixels, augment=False, batch_size=8)
    stream.labels = torch.arange(30) // 10  # class by class, as folders are read
    batches = list(stream.epoch(0))
    assert all(len(labels.unique()) > 1 for _, labels in batches)
    seen = torch.cat([(images[:, 0, 0, 0] * 255).round() for images, _ in batches])
    assert sorted(seen.tolist()) == list(range(30))


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
    tenth = train.halves(labels, 0.1, seed=0)
    assert all(95 <= len(part) <= 105 for part in tenth)


@pytest.mark.parametrize(
    "mode, size", [("L", (5, 9)), ("RGBA", (40, 16)), ("CMYK", (16, 16)), ("P", (1, 1)), ("RGB", (400, 30))]
)
def test_images_of_any_kind_and_size_are_read(mode, size, tmp_path):
    path = tmp_path / ("image.png" if mode != "CMYK" else "image.tif")
    Image.new(mode, size, 0).save(path)
    image = train.read_image(str(path), 16)
    assert image.shape == (16, 16, 3) and image.dtype == torch.uint8


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_the_number_of_workers_changes_no_bit(folder, tmp_path):
    """In S4, whose noise op draws from torch's default generator."""
    for workers in (0, 1, 3):
        words = flags(
            folder, tmp_path / str(workers), "--space", "s4", "--cache-gib", 0, "--workers", workers, "--quiet"
        )
        assert train.main(words) == 0
    for workers in (1, 3):
        assert_equal_runs(tmp_path / "0", tmp_path / str(workers))


def test_images_of_16_bits_keep_their_shades(tmp_path):
    Image.frombytes("I;16", (16, 16), b"".join(bytes((0, shade)) for shade in range(256))).save(tmp_path / "a.png")
    assert train.read_image(str(tmp_path / "a.png"), 16)[..., 0].flatten().tolist() == list(range(256))


def test_an_image_that_would_run_a_program_or_fill_the_memory_is_refused(tmp_path):
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    Image.new("1", (10000, 9000)).save(tmp_path / "large.png")
    for name in ("script.png", "large.png"):
        with warnings.catch_warnings(), pytest.raises(ValueError, match=f"{name} is no readable image"):
            warnings.simplefilter("ignore")
            train.read_image(str(tmp_path / name), 16)


def test_a_single_image_left_over_is_evaluated_with_the_batch_before():
    """Batch norm cannot take it by itself where the maps have one pixel."""
    batches = list(stream_of(torch.zeros(10, 4, 4, 3, dtype=torch.uint8), augment=False, batch_size=3).epoch(0))
    assert [len(labels) for _, labels in batches] == [3, 3, 4]


def test_shapes_are_the_same_for_a_seed_and_even_over_classes():
    images, labels = train.draw_shapes(200, seed=5)
    again, _ = train.draw_shapes(200, seed=5)
    other, _ = train.draw_shapes(200, seed=6)
    assert torch.equal(images, again) and not torch.equal(images, other)
    assert images.shape == (200, 32, 32, 3) and labels.bincount().tolist() == [20] * 10


# --- schedules and sizes ----------------------------------------------------------------------------------------------


def test_schedules_follow_the_published_code():
    config = dict(lr=0.025, lr_min=0.001, epochs=50)
    rates = [train.learning_rate(config, epoch) for epoch in range(50)]
    assert rates[0] == 0.025 and rates[1] == pytest.approx(2.4976e-2, abs=1e-6)  # as an R-DARTS log prints them
    linear = dict(lr=0.5, lr_min=0.0, epochs=250, schedule="linear", lr_warmup=5)
    rates = [train.learning_rate(linear, epoch) for epoch in range(250)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert rates[5] == pytest.approx(0.5 * (245 - 5) / 245)
    assert rates[245:] == pytest.approx([0.5 * left / (245 * 5) for left in (5, 4, 3, 2, 1)])
    assert [train.ramp(10.0, 0.1, epoch, 3) for epoch in range(3)] == pytest.approx([10, 5.05, 0.1])
    assert train.ramp(10.0, 0.1, 0, 1) == 10.0


@pytest.mark.parametrize(
    "name, dataset, parameters, operations",
    [
        ("DARTS_V2", "cifar10", 3_349_342, 528.36e6),
        ("DARTS_V2", "imagenet", 4_718_752, 529.91e6),
        ("PC_DARTS_image", "imagenet", 5_342_464, 581.63e6),
    ],
)
def test_parameters_and_multiply_adds_are_the_published_ones(name, dataset, parameters, operations):
    config = train.resolve("retrain", dict(genotype=name, dataset=dataset))
    network = train.build_network(genotypes.load(name), config, 1000 if dataset == "imagenet" else 10)
    counted = train.size_of(network, config["image_size"])
    assert counted[0] == parameters
    assert counted[1] == pytest.approx(operations, abs=0.01e6)


def test_default_folders_tell_apart_what_differs_from_the_protocol():
    def out(**given):
        return train.resolve("search", given)["out"]

    assert out() == "runs/darts-cifar10-rome-v2-s0"
    assert out(space="s2", dataset="svhn", method="gdas", seed=3) == "runs/s2-svhn-gdas-s3"
    assert out(samples=4, equal_passes=True) == "runs/darts-cifar10-rome-v2-k4-e87-s0"
    assert out(method="gdas", samples_theta=7) == "runs/darts-cifar10-gdas-k1.7-s0"
    retrain = train.resolve("retrain", dict(genotype="GDAS_V1", dataset="cifar100", seed=2))
    assert retrain["out"] == "runs/retrain-GDAS_V1-cifar100-s2"


def test_equal_passes_keeps_k_times_epochs():
    epochs = {k: train.resolve("search", dict(samples=k, equal_passes=True))["epochs"] for k in (1, 4, 7, 10)}
    assert epochs == {1: 350, 4: 87, 7: 50, 10: 35}  # the paper's Table 5


def test_a_retrain_follows_the_space_that_the_genotype_file_names(tmp_path):
    path = tmp_path / "genotype.json"
    genotypes.save(genotypes.PUBLISHED["GDAS_V1"], path, space="s2")
    assert train.resolve("retrain", dict(genotype=str(path)))["channels"] == 16
    assert train.resolve("retrain", dict(genotype=str(path), space="darts"))["channels"] == 36
    arch = "|nor_conv_3x3~0|+|skip_connect~0|none~1|+|none~0|none~1|nor_conv_1x1~2|"
    assert train.resolve("retrain", dict(genotype=arch))["space"] == "nb201"


# ----------------------------------------------------------------------------------------------------------------------
# README, and the benchmarks' own layouts

README = (HERE / "README.md").read_text()


@pytest.mark.parametrize("genotype", ["DARTS_V2", "|a~0|", None, "|odd~0|+|none~0|none~1|+|none~0|none~1|none~2|"])
def test_network_refuses_what_is_no_genotype(genotype):
    with pytest.raises(ValueError, match="no genotype|no op"):
        rome.Network(genotype, channels=4, cells=1)


def test_readme_snippet_runs(tmp_path):
    """The example of rome.py in another project, in a folder that holds rome.py alone."""
    shutil.copy(HERE / "rome.py", tmp_path)
    (snippet,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    (tmp_path / "example.py").write_text(snippet)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Genotype(") == 2


def test_readme_commands_resolve_to_a_protocol(tmp_path):
    commands = re.findall(r"(?:python|nproc_per_node 4) (rome\.py|train\.py)([^\n&`]*)", README)
    assert len(commands) > 5
    found = tmp_path / "genotype.json"
    genotypes.save(genotypes.PUBLISHED["GDAS_V1"], found, space="darts")
    for script, text in commands:
        text = text.replace("runs/darts-cifar10-rome-v2-s0/genotype.json", str(found)).replace("DIR", "dir")
        text = text.split("  ")[0]  # what follows explains
        if "--help" in text or "runs/*" in text:
            continue
        given = vars(train.make_parser().parse_args(["search"] * (script == "rome.py") + text.split()))
        if given.pop("command") in ("list", "report"):
            continue
        assert train.resolve("retrain" if "genotype" in given else "search", given)["epochs"] > 0


# --- docs -------------------------------------------------------------------------------------------------------------

COMPANION = (HERE / "docs" / "companion.md").read_text(encoding="utf-8")


def test_companion_quotes_the_code_as_it_is():
    text, lost = runpy.run_path(str(HERE / "docs" / "quotes.py"))["requoted"](
        COMPANION, (HERE / "rome.py").read_text("utf-8")
    )
    assert not lost, f"no longer in rome.py; quote docs/companion.md anew: {lost}"
    moved = [(a, b) for a, b in zip(COMPANION.splitlines(), text.splitlines()) if a != b]
    assert not moved, f"python docs/quotes.py brings these lines of docs/companion.md up to date: {moved}"
    assert len(re.findall(r"\[rome\.py, lines", text)) == text.count("```python") - 1 > 12  # all blocks but one


def test_companion_covers_every_equation_and_names_flags_that_exist():
    assert re.findall(r"\\tag\{(\d+)\}", COMPANION) == [str(number) for number in range(1, 13)]
    flags_named = set(re.findall(r"`--([a-z-]+)", COMPANION))
    assert len(flags_named) > 10 and {name.replace("-", "_") for name in flags_named} <= set(train.FLAGS)


def test_section_3_5_holds_as_the_companion_runs_it(tmp_path):
    (snippet,) = (code for code in re.findall(r"```python\n(.+?)```", COMPANION, re.DOTALL) if "import rome" in code)
    (tmp_path / "section.py").write_text(snippet)
    done = run_alone(tmp_path, "section.py")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("tensor") == 3


def test_links_between_documents_lead_somewhere():
    for page in (HERE / "README.md", *(HERE / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        titles = {
            re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in re.findall(r"^#+ (.+)", text, re.MULTILINE)
        }
        for link in re.findall(r"\]\((?!https?:)([^)]*)\)", text):
            name, _, part = link.partition("#")
            assert (page.parent / name).exists() if name else part in titles, f"{page.name}: {link}"


def test_figures_are_drawn(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="the pictures of docs/ need matplotlib")
    spec = importlib.util.spec_from_file_location("figures", HERE / "docs" / "figures.py")
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    monkeypatch.setattr(figures, "HERE", tmp_path)
    figures.search(epochs=3, steps=1, batch=4)
    for draw in (figures.subnetwork, figures.gumbel_top2, figures.cells):
        draw()
    for path in tmp_path.iterdir():
        assert (HERE / "docs" / path.name).stat().st_size < 150_000
    assert len(list(tmp_path.iterdir())) == 5
    text = (tmp_path / "subnetwork.svg").read_text()
    assert len(re.findall(r">(?:sep|dil|max|avg|skip)[ \dx]*<", text)) == 14 + 8


EXAMPLES = (HERE / "docs" / "examples.md").read_text(encoding="utf-8")
SCRIPTS = {name: code for code, name in re.findall(r"```python\n(# (\w+\.py)\n.+?)```", EXAMPLES, re.DOTALL)}


def test_example_searches_own_images_and_exports_the_network(folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(folder, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    (commands,) = re.findall(r"```sh\n(.+?)```", EXAMPLES, re.DOTALL)
    for words in map(shlex.split, commands.replace("--image-size 32", "--image-size 16").splitlines()):
        assert words.pop(0) == "python" and words.pop(0) == "train.py"
        small = "--channels 2 --cells 2 --epochs 1 --batch-size 6 --samples 1 --quiet"
        small += " --retrain-channels 2 --retrain-cells 2 --retrain-epochs 6 --retrain-batch-size 6"
        if words[0] == "plot" and importlib.util.find_spec("matplotlib") is None:
            continue
        assert train.main(words + small.split() * (words[0] == "search")) == 0
    photo = tmp_path / "photo.png"
    with Image.open("photos/test/class1/0.png") as image:
        image.resize((40, 24)).save(photo)
    monkeypatch.setattr(sys, "argv", ["predict.py", photo.name])
    for name in ("export.py", "predict.py"):
        Path(name).write_text(SCRIPTS[name])
        capsys.readouterr()
        runpy.run_path(name)
    assert not re.search(r"^(import|from) (train|rome|genotypes)", SCRIPTS["predict.py"], re.MULTILINE)
    network, classes = train.load_network("runs/photos/retrain/last.pt")
    config = train.resolve("search", dict(dataset="folder", data="photos", image_size=16))
    statistics = train.statistics_of(train.load_data(config, "train"), "folder")
    mean, std = (torch.tensor(row).view(3, 1, 1) for row in statistics)
    image = ((train.read_image(photo, 16).permute(2, 0, 1) / 255 - mean) / std)[None]
    probabilities = network(image)[0].softmax(1)[0]
    name, probability = capsys.readouterr().out.split()
    assert name == classes[probabilities.argmax()]
    assert float(probability) == pytest.approx(probabilities.max().item(), abs=1e-4)


@pytest.mark.parametrize("name", ["own.py", "space.py"])
def test_example_runs_with_rome_alone(name, tmp_path):
    (tmp_path / name).write_text(SCRIPTS[name])
    done = run_alone(tmp_path, name)
    assert (done.returncode, done.stderr) == (0, "")
    if name == "own.py":
        losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", done.stdout)]
        assert losses[-1] < losses[0] / 2 and "grouped_conv_3x3" in done.stdout


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    """ImageNet's layout: 50 classes with names like its own, ten training images each of odd sizes, val."""
    root = tmp_path_factory.mktemp("imagenet")
    for split, count in (("train", 10), ("val", 1)):
        for label in range(50):
            path = root / split / f"n{label:08d}"
            path.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (40 + number, 50), (5 * label, 255 - 5 * label, 100)).save(path / f"{number}.JPEG")
    return root


def test_imagenet_searches_a_tenth_twice_and_retrains(imagenet, tmp_path, capsys):
    out = tmp_path / "run"
    words = (
        f"search --dataset imagenet --data {imagenet} --image-size 64 --channels 2 --cells 3 --epochs 1 --batch-size 32"
    )
    words += f" --samples 1 --workers 1 --retrain --retrain-channels 2 --retrain-cells 3 --retrain-epochs 1 --out {out}"
    assert train.main([*words.split(), "--retrain-batch-size", "64"]) == 0
    text = capsys.readouterr().out
    assert "(50 classes, 50 images for the weights, 50 for alpha and beta)" in text
    assert "(50 classes, 500 training and 50 test images)" in text
    config = json.loads((out / "retrain" / "config.json").read_text())["settings"]
    assert (config["stem"], config["label_smoothing"], config["schedule"]) == ("imagenet", 0.1, "linear")


def test_a_supernet_learns_shapes(tmp_path):
    """A linear model cannot: it stays near the loss of chance, ln 10."""
    out = tmp_path / "run"
    words = "search --dataset shapes --space nb201 --image-size 16 --channels 8 --cells 1 --samples 1 --batch-size 32"
    words += f" --epochs 4 --steps-per-epoch 375 --quiet --out {out}"
    assert train.main(words.split()) == 0
    with open(out / "metrics.csv") as file:
        losses = [float(row["loss_theta"]) for row in csv.DictReader(file)]
    assert losses[-1] < 0.7 * math.log(10)


def test_a_linear_model_fails_on_shapes():
    images, labels = train.draw_shapes(4000, seed=0, size=16)
    held_out, held_out_labels = train.draw_shapes(1000, seed=1, size=16)
    x, x_test = (part.flatten(1).float() / 255 for part in (images, held_out))
    mean, deviation = x.mean(0), x.std(0)
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    best = 0
    for decay in (1e-2, 1e-1, 1):  # ridge regression on one-hot labels, in closed form
        gram = x.T @ x / len(x) + decay * torch.eye(x.shape[1])
        weight = torch.linalg.solve(gram, x.T @ F.one_hot(labels, 10).float() / len(x))
        best = max(best, ((x_test @ weight).argmax(1) == held_out_labels).float().mean().item())
    assert 0.1 < best < 0.35


# ----------------------------------------------------------------------------------------------------------------------
# list, report, NAS-Bench-201

TABLE = Path(train.__file__).resolve().parent / "../shared/data/nasbench201.csv.gz"
SKIPS = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"


def fake_run(folder, seed=0, error=None, cell="DARTS_V2", epochs=None, retrain=(), **flags):
    """A run's folder as `search --retrain` leaves it; error: the retrain's test error in %."""

    def write(place, stage, config, row):
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(dict(stage=stage, settings=config)))
        text = io.StringIO()
        writer = csv.DictWriter(text, row)
        writer.writeheader()
        writer.writerow(row)
        (place / "metrics.csv").write_text(text.getvalue())

    config = train.resolve("search", dict(flags, seed=seed, out=str(folder)))
    genotype = str(genotypes.load(cell))
    row = dict(epoch=epochs or config["epochs"], supernet_accuracy=50, genotype=genotype, seconds=3600)
    write(folder, "search", config, row)
    if error is not None:
        config = train.resolve("retrain", train.retrain_flags(config, genotype) | dict(retrain))
        write(
            folder / "retrain", "retrain", config, dict(epoch=config["epochs"], accuracy_test=100 - error, seconds=1800)
        )
    return str(folder)


def means(folders):
    rows = csv.DictReader(io.StringIO(train.report(folders, "csv")))
    return [row for row in rows if row["row"] == "mean"]


@pytest.mark.parametrize(
    ("benchmark", "rome", "gdas"),
    [
        ("s2/cifar10", "3.14±0.14 2.0±0.0", "3.89±0.17 6.0±0.7"),
        ("s3/cifar10", "2.61±0.00 2.0±0.0", "3.04±0.10 6.5±0.5"),
        ("s1/cifar100", "22.71±0.71 2.3±0.4", "24.49±0.08 4.0±0.0"),
        ("s4/cifar100", "20.95±0.45 0.0±0.0", "24.14±0.89 2.3±1.1"),
        ("s2/svhn", "2.41±0.07 1.0±0.0", "3.05±0.02 7.8±0.4"),
        ("s4/svhn", "2.34±0.00 0.0±0.0", "2.51±0.06 1.5±1.5"),
        ("darts/cifar10", "2.58±0.07 ", "3.48±0.07 "),
    ],
)
def test_published_numbers_are_the_papers(benchmark, rome, gdas):
    assert len(train.PAPER) == 15
    for text, numbers in ((rome, train.PAPER[benchmark]["rome-v2"]), (gdas, train.PAPER[benchmark]["gdas"])):
        assert f"{train.spread(numbers[:2])} {train.spread(numbers[2:], 1)}" == text


def test_variants_keep_the_papers_epochs():
    found = {name: train.resolve("search", settings) for name, settings, *_ in train.VARIANTS}
    epochs = {config["samples"]: config["epochs"] for name, config in found.items() if "Table 5, K" in name}
    assert epochs == {4: 87, 10: 35}
    assert found["Table 4, GDAS"]["epochs"] == 90
    alone = found["Table 6, TD, GA of alpha"]
    assert (alone["samples_alpha"], alone["samples_theta"], alone["epochs"]) == (7, 1, 350)


def test_listed_commands_are_valid():
    lines = train.list_benchmarks(commands=True, seeds=(0, 3)).split("\n")
    assert len(lines) == len(set(lines)) == 2 * 21
    for line in lines:
        python, script, *words = shlex.split(line)
        given = vars(train.make_parser().parse_args(words))
        config = train.resolve(given.pop("command"), given)
        assert config["seed"] in (0, 3)
    text = train.list_benchmarks()
    assert max(map(len, text.split("\n"))) <= 120 and "22.71±0.71" in text


def test_report_gives_population_deviation_beside_the_paper(tmp_path):
    runs = [fake_run(tmp_path / str(s), s, e, space="s2") for s, e in enumerate((3.0, 3.2, 3.4))]
    (row,) = means(runs)
    assert (row["n of error"], row["ours: error"], row["paper: error"]) == ("3", "3.20±0.16", "3.14±0.14")
    assert row["ours - paper: error"] == "+0.06" and row["ours: Num"] == "2.0±0.0" and "remarks" not in row
    text = train.report(runs)
    assert "1.50" in text and "search finished, retrain finished" in text


def test_runs_of_different_protocols_are_not_averaged(tmp_path):
    runs = [fake_run(tmp_path / "a", 0, 2.5), fake_run(tmp_path / "b", 1, 2.7, clip=1.0)]
    runs += [fake_run(tmp_path / "c", 2, 2.9, retrain=dict(channels=16)), fake_run(tmp_path / "d", 3, quick=True)]
    rows = means(runs)
    assert [row["n of error"] for row in rows] == ["1", "1", "1", "0"]
    assert rows[0]["remarks"] == "" and rows[1]["remarks"] == "not the paper's protocol: clip 1.0 (5.0)"
    assert rows[2]["remarks"] == "not the paper's protocol: retrain channels 16 (36)"
    assert "no number in the paper" in rows[3]["remarks"] and rows[3]["paper: error"] == ""
    device = fake_run(tmp_path / "e", 4, 2.7, device="cpu", workers=5)
    assert means([runs[0], device])[0]["ours: error"] == "2.60±0.10"


def test_report_names_the_ablation_and_leaves_out_what_is_not_final(tmp_path):
    runs = [fake_run(tmp_path / "a", samples=1, equal_passes=True), fake_run(tmp_path / "b", 1, epochs=3)]
    ablation, running = means(runs)
    assert "K = 1" in ablation["remarks"] and ablation["paper: error"] == "2.88±0.06"
    assert running["n of Num"] == "0" and "search epoch 3 of 50" in train.report(runs)


def test_report_shows_skips_and_loose_ends_of_1shot1(tmp_path):
    ops = "('skip-connect', 'maxpool3x3', 'skip-connect', 'conv3x3-bn-relu')"
    cell = f"OneShotGenotype(ops={ops}, inputs=((0,), (0, 1), (0, 1), (0, 1), (0, 2)))"
    (run, _) = csv.DictReader(io.StringIO(train.report([fake_run(tmp_path / "a", cell=cell, space="1shot1-1")], "csv")))
    assert (run["skips"], run["loose ends"]) == ("2", "2")  # nodes 3 and 4 lead nowhere


@pytest.mark.parametrize("name, content", [("config.json", "{}"), ("metrics.csv", "epoch,genotype\nx,y\n"), ("", "")])
def test_a_broken_run_is_one_line(tmp_path, name, content):
    folder = tmp_path / "run"
    if name:
        fake_run(folder)
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match="run holds no readable run: ") as error:
        train.report([str(folder)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_plot_draws_the_curves_and_cells_of_runs(searched, tmp_path, suffix, capsys):
    pytest.importorskip("matplotlib", reason="curves need matplotlib")
    gdas = fake_run(tmp_path / "gdas", space="s2", method="gdas")
    out = tmp_path / f"curves{suffix}"
    assert train.main(["plot", str(searched), gdas, "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert (tmp_path / "gdas" / "cells.svg").read_text().count("sep_conv_3x3") == 5  # of DARTS_V2
    if suffix == ".png":
        assert out.read_bytes().startswith(b"\x89PNG")
    else:
        assert ElementTree.parse(out).getroot().tag.endswith("svg")
        for text in ("search: parameter-free ops", "retrain: accuracy, %", "entropy_beta_normal", gdas, str(searched)):
            assert f"<!-- {text} -->" in out.read_text()  # matplotlib notes every text


def test_plot_says_what_it_lacks(searched, tmp_path, monkeypatch, capsys):
    fake = fake_run(tmp_path / "run")
    assert "ends in .svg or .png" in one_line_error(capsys, ["plot", fake, "--out", "curves.txt"])
    assert "holds no readable run" in one_line_error(capsys, ["plot", tmp_path])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in one_line_error(capsys, ["plot", fake])
    assert (tmp_path / "run" / "cells.svg").exists()  # needs nothing
    (tmp_path / "run" / "metrics.csv").unlink()
    assert "no epoch has ended" in one_line_error(capsys, ["plot", fake])


def test_table_accepts_either_key_and_ranks(tmp_path):
    plain, packed = tmp_path / "a.csv", tmp_path / "b.csv.gz"
    plain.write_text(f"arch,c10_test,more\n{SKIPS},54.3,x\n{SKIPS.replace('skip_connect~0', 'none~0', 1)},60,\n")
    packed.write_bytes(gzip.compress(b"ops,c10_test,c10_val\n111111,54.3,50\n011111,60,60\n111011,57,55\n"))
    assert train.read_table(plain)["c10_test"] == {"111111": 54.3, "011111": 60}
    row = train.table_row(train.read_table(packed), SKIPS, "cifar10")
    assert (row["table_test"], row["table_val"], row["table_rank"]) == (54.3, 50, 3)
    assert row["table_regret"] == pytest.approx(5.7) and row["table_regret_own"] == pytest.approx(2.7)
    with pytest.raises(ValueError, match="no c100_test"):
        train.table_row(train.read_table(packed), SKIPS, "cifar100")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "it needs a column"),
        ("ops,c10_val\n111111,50\n", "it needs a column"),
        ("ops,c10_test\n111111,50\n11111,50\n", "row 2: "),
        ("ops,c10_test\n111111,50\n111112,x\n", "row 2: "),
        ("ops,c10_test\n111111,150\n", "row 1: c10_test '150' is no accuracy"),
        ("ops,c10_test\n111111,nan\n", "row 1: "),
        ("ops,c10_test\n111111\n", "row 1: "),
        ("ops,c10_test\n111111,50\n111111,50\n", "row 2: .*twice"),
        ("ops,c10_test\n", "it has no rows"),
        ("\x1f\x8bbroken", "no table"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path, content, message):
    path = tmp_path / "table.csv"
    path.write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError, match=message) as error:
        train.read_table(path)
    assert "\n" not in str(error.value)


def test_a_table_that_unpacks_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "TABLE_BYTES", 1000)
    (tmp_path / "t.gz").write_bytes(gzip.compress(b"ops,c10_test\n" + b" " * 100_000))
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        train.read_table(tmp_path / "t.gz")


@pytest.mark.skipif(not TABLE.exists(), reason="the table of NAS-Bench-201 is not beside the repository")
def test_table_has_the_published_values():
    table = train.read_table(TABLE)
    ops = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    for name, dataset, cell, best in (
        ("c10", "cifar10", "333132", 94.37),
        ("c100", "cifar100", "333133", 73.51),
        ("in16", "folder", "223133", 47.31),
    ):
        a, b, c, d, e, f = (ops[int(digit)] for digit in cell)
        row = train.table_row(table, f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|", dataset, "gdas")
        assert len(table[f"{name}_test"]) == 15625 and row["table_test"] == pytest.approx(best, abs=0.005)
        assert (row["table_rank"], row["table_regret"], row["table_regret_own"]) == (1, 0, 0)
    # What ROME can find, counted without the module's own pattern.
    own = [a for k, a in table["c10_test"].items() if "0" not in k[:3] and k[3:].count("0") == 1]
    assert len(own) == 3072 and sum(own) / 3072 == pytest.approx(89.4, abs=0.05) and max(own) == 94.09
    row = train.table_row(table, SKIPS, "cifar10")
    assert row["table_regret_own"] == pytest.approx(94.09 - row["table_test"])


# ----------------------------------------------------------------------------------------------------------------------
# bench/evidence.py


@pytest.fixture(scope="module")
def evidence():
    spec = importlib.util.spec_from_file_location("evidence", HERE / "bench" / "evidence.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def evidence_runs(tmp_path_factory):
    return str(tmp_path_factory.mktemp("evidence"))


@pytest.mark.parametrize("study", ["truth", "rows", "curves", "ranking", "variance", "collapse", "cells"])
def test_a_tiny_study_runs_once_and_is_analysed(evidence, evidence_runs, capsys, study):
    words = [study, "--tiny", "--runs", evidence_runs]  # one folder: the studies share runs
    assert evidence.main(["run", *words]) == 0 and "all runs are finished" in capsys.readouterr().out
    assert evidence.main(["run", *words]) == 0 and capsys.readouterr().out == "all runs are finished\n"
    assert evidence.main(["analyse", *words]) == 0
    with open(Path(evidence_runs) / f"{study}.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) >= 2
    drawn = "drew " if importlib.util.find_spec("matplotlib") else "matplotlib is not installed"
    assert drawn in capsys.readouterr().out


def test_searches_of_a_study_have_equal_passes_an_epoch(evidence):
    for study in ("collapse", "truth", "rows", "ranking"):
        passes = set()
        for run in evidence.STUDIES[study](evidence.FULL):
            if run.kind == "search":
                f = run.flags
                moving = f["epochs"] - f.get("warmup", 0)
                each = f["samples_alpha"] * moving + f["samples_theta"] * f["epochs"]
                passes.add(f["steps_per_epoch"] * each / f["epochs"])
        odd = [count for count in passes if count > 1.02 * min(passes)]
        assert odd == ([4 * 560] if study == "rows" else []), study  # the ninth row: K=7 of alpha, steps of K=1


def test_spearman_averages_the_ranks_of_ties(evidence):
    assert evidence.ranks([5, 1, 5, 2]).tolist() == [3.5, 1, 3.5, 2]
    assert evidence.spearman([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)


def test_a_run_that_another_process_has_claimed_is_passed_over(evidence, tmp_path, capsys):
    fcntl = pytest.importorskip("fcntl")
    words = ["run", "variance", "--tiny", "--runs", str(tmp_path)]
    (tmp_path / "locks").mkdir()
    with open(tmp_path / "locks" / "nb201-rome-v2-k7.7-a0.03-s0", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert evidence.main(words) == 0 and "left to other processes: nb201" in capsys.readouterr().out
    assert evidence.main(words) == 0 and "all runs are finished" in capsys.readouterr().out
