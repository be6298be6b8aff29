"""Tests of extra/nasbench.py, against published counts, plain code, enumeration and brute force."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import rome
from extra import nasbench

# How many inputs each node keeps: ROME's Eq. 1 on NAS-Bench-201, the paper of 1Shot1.
PARENTS = {"nb201": "122", "1shot1-1": "12222", "1shot1-2": "11223", "1shot1-3": "111222"}


def tiny(space, topology="v2"):
    """A small supernet. alpha and beta are drawn from N(0, 1)."""
    torch.manual_seed(0)
    net = nasbench.Supernet(space, 2, 1, 3, topology)
    for p in net.architecture_parameters():
        torch.nn.init.normal_(p)
    return net


def conv(x, module):
    [weight] = module.parameters()
    x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    return F.batch_norm(x, None, None, training=True)


def op(name, x, modules):
    """An operation of either benchmark, with its weight among the modules."""
    if "conv" in name:
        module = modules[name]
        return conv(F.relu(x), module) if "nor" in name else F.relu(conv(x, module))
    average = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return x if "skip" in name else average if "avg" in name else F.max_pool2d(x, 3, 1, 1)


def nb201_cell(cell, x, choice, A, B):
    states, names = [x], choice.ops
    for j, inputs in enumerate(choice.inputs):
        edges = [(i, j * (j + 1) // 2 + i) for i in inputs]
        terms = [B[j, i] * A[e] * op(names[e], states[i], cell.edges[e]) for i, e in edges]
        states.append(sum(terms))
    return states[-1]


def one_shot_cell(cell, x, choice, A, B):
    states, projected = [x], [F.relu(conv(x, module)) for module in cell.project]
    for j, name in enumerate(choice.ops):
        states[0] = projected[j]
        total = sum(B[j, i] * states[i] for i in choice.inputs[j])
        states.append(A[j] * op(name, total, cell.ops[j]))
    output = torch.cat([b * y for b, y in zip(B[-1, 1:], states[1:])], 1)
    return output + B[-1, 0] * projected[-1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("space", PARENTS)
def test_a_drawn_cell_is_its_equation_with_the_gradients_of_the_softmaxes(space, seed):
    net, generator = tiny(space).double(), torch.Generator().manual_seed(seed)
    alpha, beta = net.architecture_parameters()
    z = net.sample(0.7, generator)
    choice = z["cell"]
    assert "".join(str(len(inputs)) for inputs in choice.inputs) == PARENTS[space]
    assert net.log_prob(net.cell(z)) <= net.log_prob(net.genotype())
    generator.manual_seed(seed)
    A = F.softmax((alpha + rome.gumbel_noise(alpha, generator)) / 0.7, -1)  # Eq. 3
    A = A[range(len(A)), [net.ops.index(name) for name in choice.ops]]
    noise, B = rome.gumbel_noise(beta, generator), torch.zeros_like(beta)
    for j, inputs in enumerate(choice.inputs):
        p = F.softmax((beta + noise)[j, : j + 1] / 0.7, 0)[inputs]  # Eq. 7
        B[j, inputs] = 1 + p - p.detach()
    cell, x = net.body.layers[0], torch.randn(4, 2, 5, 5).double()
    plain = nb201_cell if space == "nb201" else one_shot_cell
    results, leaves = [], [alpha, beta, *cell.parameters()]
    for y in (cell(x, choice), plain(cell, x, choice, 1 + A - A.detach(), B)):
        grads = torch.autograd.grad(y.square().sum(), leaves, materialize_grads=True)
        results.append((y, *grads))
    torch.testing.assert_close(*results)


def test_operations_that_did_not_run_get_no_gradient_and_16_bits_stay():
    net = tiny("nb201", "none")
    choice, cell = net.sample(1.0)["cell"], net.body.layers[0]
    with torch.autocast("cpu", torch.bfloat16):
        y = cell(torch.randn(4, 2, 8, 8).bfloat16(), choice)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    for name, p in cell.edges.named_parameters():
        edge, op, *_ = name.split(".")
        assert (p.grad is None) == (op != choice.ops[int(edge)])


def test_nb201_has_3072_cells_and_derives_the_most_probable_one():
    net, cells = tiny("nb201"), []
    for ops in itertools.product(("none", *nasbench.NB201), repeat=6):
        text = nasbench.FORM.format(*ops)
        try:
            assert net.cell(net.architecture(text)) == text
            cells.append(text)
        except ValueError:
            pass
    assert len(cells) == 3072
    assert net.genotype() == max(cells, key=net.log_prob)


def test_a_network_of_nb201_has_the_tables_number_of_parameters():
    ops = "nor_conv_3x3 nor_conv_1x1 nor_conv_3x3 skip_connect skip_connect avg_pool_3x3"
    net = nasbench.Network(nasbench.FORM.format(*ops.split()), channels=16, cells=5, classes=10)
    assert sum(p.numel() for p in net.parameters()) == 587_386


def test_bad_arguments_are_refused_in_one_line():
    net = tiny("1shot1-1")
    for function, *arguments in (
        (net, torch.randn(2, 3, 10, 10), net.sample(1.0)),
        (net.architecture, net.genotype()._replace(inputs=())),
        (nasbench.Supernet, "1shot1-1", 2, 1, 2, "none"),
    ):
        with pytest.raises(ValueError, match=r"\A.+\Z"):
            function(*arguments)
