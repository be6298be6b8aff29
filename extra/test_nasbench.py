"""Tests of extra/nasbench.py, against published counts, plain code, enumeration and brute force."""

import itertools
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import grad
from torch.testing import assert_close

from extra import nasbench


def tiny(space, seed=0):
    """A small supernet. alpha and beta are drawn from N(0, 1)."""
    torch.manual_seed(seed)
    net = nasbench.Supernet(space, 2, 3, 3)
    for p in net.architecture_parameters():
        torch.nn.init.normal_(p)
    return net


def gates(logits):
    """1, with the gradient of the softmax: Eq. 3 and 7 without noise."""
    soft = F.softmax(logits / 0.7, 0)
    return 1 + soft - soft.detach()


def nb201_cell(cell, x, choice, A, B):
    states = [x]
    for j, inputs in enumerate(choice.inputs):
        total = 0
        for i in inputs:
            edge = j * (j + 1) // 2 + i
            name, state = choice.ops[edge], states[i]
            if "conv" in name:
                state = F.relu(state)
            total = total + A[edge] * B[j][i] * cell.edges[edge][name](state)
        states.append(total)
    return total


def one_shot_cell(cell, x, choice, A, B):
    states = [x]
    for j, inputs in enumerate(choice.inputs):
        states[0] = cell.project[j](x)
        read = {i: B[j][i] * states[i] for i in inputs}
        if j < len(choice.ops):
            y = cell.ops[j][choice.ops[j]](sum(read.values()))
            states.append(A[j] * y)
    parts = [read.get(i, torch.zeros_like(state)) for i, state in enumerate(states)]
    return torch.cat(parts[1:], 1) + read.get(0, 0)


@pytest.mark.parametrize("space, seed", [*itertools.product(nasbench.SPACES, range(4))])
def test_cells_follow_their_equations_and_what_did_not_run_gets_no_gradient(
    space, seed, monkeypatch
):
    monkeypatch.setattr(nasbench, "gumbel_noise", lambda logits, _: torch.zeros_like(logits))
    net = tiny(space, seed).double()
    alpha, beta = net.architecture_parameters()
    cell, choice = net.body.layers[0], net.sample(0.7)["cell"]
    A = [gates(row)[net.ops.index(name)] for row, name in zip(alpha, choice.ops)]
    B = [gates(row[: j + 1]) for j, row in enumerate(beta)]
    plain = nb201_cell if space == "nb201" else one_shot_cell
    x = torch.randn(4, 2, 5, 5).double()
    outputs = cell(x, choice), plain(cell, x, choice, A, B)
    assert_close(*outputs)
    leaves = [alpha, beta, *cell.parameters()]
    grads = [grad(y.square().sum(), leaves, allow_unused=True) for y in outputs]
    assert_close(*grads)


def test_nb201_has_3072_cells_and_derives_the_most_probable_one():
    net, cells = tiny("nb201", seed=3), []
    for ops in itertools.product(("none", *net.ops), repeat=6):
        with suppress(ValueError):
            z = net.architecture(nasbench.FORM.format(*ops))
            cells.append(net.cell(z))
    assert len(set(cells)) == 3072
    assert net.genotype() == max(cells, key=net.log_prob)


def test_1shot1_cells_have_the_published_numbers_of_inputs():
    for number, parents in enumerate(("12222", "11223", "111222"), 1):
        net = tiny(f"1shot1-{number}")
        for _ in range(50):
            cell = net.cell(net.sample(1.0))
            assert "".join(str(len(node)) for node in cell.inputs) == parents
            assert net.log_prob(cell) <= net.log_prob(net.genotype())


def test_a_nb201_network_has_the_tables_number_of_parameters():
    net = nasbench.Network(nasbench.FORM.format(*["nor_conv_3x3"] * 6), 16, 5, 10)
    assert sum(p.numel() for p in net.parameters()) == 1_531_546


def test_what_is_not_in_a_space_is_refused():
    with pytest.raises(ValueError):
        tiny("1shot1-1").architecture(tiny("1shot1-2").genotype())
