"""Tests of extra/nasbench.py, against published counts, plain code, enumeration and brute force."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import rome
from extra import nasbench

NB201_OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
CELL = nasbench.OneShotGenotype(
    ops=("conv3x3-bn-relu",) * 4,
    inputs=((0,), (0, 1), (0, 2), (1, 3), (0, 4)),
)


def tiny(space, topology="v2", seed=0):
    """A small supernet. alpha and beta are drawn from N(0, 1)."""
    torch.manual_seed(seed)
    cells = 1 if space == "nb201" else 3
    net = nasbench.Supernet(space, 2, cells, 3, topology)
    for p in net.architecture_parameters():
        torch.nn.init.normal_(p)
    return net


def gates_of(choice):
    """(from, to) -> the gate of the edge, or 0 if the node does not keep it. In order."""
    gates = {}
    for j, inputs in enumerate(choice.inputs, 1):
        for i in range(j):
            gates[i, j] = choice.edge_gates[len(gates)] if i in inputs else 0
    return gates


def op(name, x, modules):
    """An operation of either benchmark, with its weight among the modules."""
    if "pool" in name:
        average = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return average if "avg" in name else F.max_pool2d(x, 3, 1, 1)
    if "skip" in name:
        return x
    if "nor" in name:
        return conv(F.relu(x), modules[name])
    return F.relu(conv(x, modules[name]))


def conv(x, module):
    [weight] = module.parameters()
    x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    return F.batch_norm(x, None, None, training=True)


def nb201_cell(cell, x, ops, A, B):
    states = [x, 0, 0, 0]
    for name, modules, (i, j) in zip(ops, cell.edges, B):
        states[j] = states[j] + B[i, j] * op(name, states[i], modules)
    return states[3]


def one_shot_cell(cell, x, ops, A, B):
    states, last = {}, len(ops) + 1
    projected = [F.relu(conv(x, module)) for module in cell.project]
    for j, name in enumerate(ops, 1):
        inputs = [B[i, j] * states[i] for i in states]
        total = sum(inputs, B[0, j] * projected[j - 1])
        states[j] = A[j - 1] * op(name, total, cell.ops[j - 1])
    output = torch.cat([B[i, last] * states[i] for i in states], 1)
    return output + B[0, last] * projected[-1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("space", nasbench.SPACES)
def test_cells_follow_their_equations_with_every_gate_at_its_place(space, seed):
    net = tiny(space, seed=seed)
    A, B = gates = torch.rand(2, 21, dtype=torch.float64, requires_grad=True)
    choice = net.sample(1.0)["cell"]._replace(edge_gates=B, node_gates=A)
    cell, results = net.body.layers[0].double(), []
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    plain = nb201_cell if space == "nb201" else one_shot_cell
    expected = plain(cell, x, choice.ops, A, gates_of(choice))
    for y in (cell(x, choice), expected):
        leaves = [gates, *cell.parameters()]
        grads = torch.autograd.grad(y.square().sum(), leaves, materialize_grads=True)
        results.append((y, *grads))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("space", nasbench.SPACES)
def test_gates_are_one_with_the_gradient_of_the_softmax_and_keep_16_bits(space):
    net, generator = tiny(space), torch.Generator().manual_seed(5)
    parameters = net.architecture_parameters()
    alpha, beta = [p + rome.gumbel_noise(p, generator) for p in parameters]
    choice = net.sample(0.7, generator.manual_seed(5))["cell"]
    A = F.softmax(alpha / 0.7, -1)  # Eq. 3
    A = [row[net.ops.index(name)] for row, name in zip(A, choice.ops)]
    hard = list(choice.node_gates or ())
    soft = A[: len(hard)]
    for e, ((i, j), gate) in enumerate(gates_of(choice).items()):
        if i in choice.inputs[j - 1]:
            B = F.softmax(beta[j - 1, :j] / 0.7, 0)  # Eq. 7
            hard.append(gate)
            soft.append(B[i] + A[e] if space == "nb201" else B[i])
    assert hard == [1] * len(hard)
    grads = [torch.autograd.grad(sum(gates), parameters) for gates in (hard, soft)]
    torch.testing.assert_close(*grads)
    with torch.autocast("cpu", torch.bfloat16):
        y = net.body.layers[0](torch.randn(4, 2, 8, 8).bfloat16(), choice)
    assert y.dtype == torch.bfloat16


def test_operations_that_did_not_run_get_no_gradient():
    net = tiny("nb201", "none")
    z = net.sample(1.0)
    net(torch.randn(4, 3, 8, 8), z).sum().backward()
    for modules, ran in zip(net.body.layers[0].edges, z["cell"].ops):
        for name, module in modules.items():
            for p in module.parameters():
                assert (p.grad is None) == (name != ran)


def test_nb201_has_3072_cells_and_derives_the_most_probable_one():
    net, cells = tiny("nb201"), []
    for ops in itertools.product(NB201_OPS, repeat=6):
        text = nasbench.FORM.format(*ops)
        try:
            assert net.cell(net.architecture(text)) == text
            cells.append(text)
        except ValueError:
            pass
    assert len(cells) == 3072
    assert net.genotype() == max(cells, key=net.log_prob)


def test_1shot1_cells_have_the_published_numbers_of_inputs():
    for number, parents in enumerate(("12222", "11223", "111222"), 1):
        net = tiny(f"1shot1-{number}")
        for _ in range(50):
            cell = net.cell(net.sample(1.0))
            assert "".join(str(len(node)) for node in cell.inputs) == parents
            assert net.log_prob(cell) <= net.log_prob(net.genotype())


def test_nb201_networks_have_the_tables_numbers_of_parameters():
    for digits, count in {"333333": 1_531_546, "222222": 241_306, "323114": 587_386}.items():
        genotype = nasbench.FORM.format(*[NB201_OPS[int(digit)] for digit in digits])
        parameters = nasbench.Network(genotype, channels=16, cells=5, classes=10).parameters()
        assert sum(p.numel() for p in parameters) == count


def test_bad_arguments_are_refused_in_one_line():
    net = tiny("1shot1-1")
    for function, *arguments in (
        (net, torch.randn(2, 3, 10, 10), net.sample(1.0)),
        (net.architecture, CELL._replace(inputs=((1,), *CELL.inputs[1:]))),
        (nasbench.Network, CELL, 2, 1, 0),
        (nasbench.Supernet, "1shot1-1", 2, 1, 2, "none"),
        (tiny("nb201").log_prob, nasbench.FORM.format(*["none"] * 6)),
    ):
        with pytest.raises(ValueError) as error:
            function(*arguments)
        assert "\n" not in str(error.value)
