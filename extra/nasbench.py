"""
NAS-Bench-201 and NAS-Bench-1Shot1: supernets for rome.Architect, derived networks, genotypes.

    net = nasbench.Supernet("nb201", channels=16, cells=5, classes=10)
    architect = rome.Architect(net, samples=7)  # and the loop of rome.py

A cell has one input, x_0. Its nodes compute x_1, x_2, ..., each from some of the states before it.
As in rome.py, alpha chooses operations and beta chooses inputs. What differs from DARTS:

    NAS-Bench-201    x_j = sum of A_ij B_ij o_ij(x_i)    alpha has a row per edge
    1Shot1           x_j = A_j o_j(sum of B_ij x_i)      alpha has a row per node

There is one type of cell, so alpha, beta and z have one entry, "cell".

Sources: Dong and Yang, "NAS-Bench-201", ICLR 2020; Zela, Siems and Hutter, "NAS-Bench-1Shot1", ICLR
2020. The operations of 1Shot1 are those of ROME's Fig. 4: a skip connection replaces the 1x1
convolution.

1 Spaces and genotypes   2 NAS-Bench-201   3 NAS-Bench-1Shot1   4 The supernet
5 The derived network
"""

import itertools
import math
import re
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from rome import (
    AvgPool,
    Gate,
    Op,
    check_images,
    conv3x3,
    conv_norm,
    gumbel_noise,
    gumbel_top_k,
    log_softmax,
)

# --------------------------------------------------------------------------------------------------
# 1. Spaces and genotypes

NB201 = ("skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
ONE_SHOT = ("maxpool3x3", "conv3x3-bn-relu", "skip-connect")
# Name -> the operations that every row of alpha chooses from, and how many inputs every node keeps.
# The nodes have 1, 2, 3, ... candidates. The last node of 1Shot1 is the output.
SPACES = {
    "nb201": (NB201, (1, 2, 2)),
    "1shot1-1": (ONE_SHOT, (1, 2, 2, 2, 2)),
    "1shot1-2": (ONE_SHOT, (1, 1, 2, 2, 3)),
    "1shot1-3": (ONE_SHOT, (1, 1, 1, 2, 2, 2)),
}
FORM = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|"  # NAS-Bench-201's genotype, "none" where no edge is


class OneShotGenotype(NamedTuple):
    """A cell of 1Shot1."""

    ops: tuple  # per node its operation
    inputs: tuple  # per node its inputs, and then those of the output


class Choice(NamedTuple):
    """What the cells run. A row is an edge (NAS-Bench-201) or a node (1Shot1).

    Edges are numbered node by node, then by input. The gates carry the gradient to alpha and beta.
    Without them (None) the forward pass is the same.
    """

    inputs: list  # per node: the inputs that it keeps, ascending
    ops: list  # per row: the name of its operation; None if the genotype does not keep the edge
    edge_gates: tuple | None = None  # per edge: A_ij B_ij (NAS-Bench-201) or B_ij (1Shot1)
    node_gates: tuple | None = None  # per node: A_j (1Shot1)


def first_edge(j):
    """The number of the first edge of node j = 0, 1, ...: the nodes before have 1, 2, ... edges."""
    return j * (j + 1) // 2


def read(genotype):
    """The choice that a genotype stands for. ValueError if it is no genotype."""
    return read_nb201(genotype) if isinstance(genotype, str) else read_one_shot(genotype)


def read_nb201(genotype):
    names = re.findall(r"(\w+)~", genotype)
    complete = len(names) == 6 and FORM.format(*names) == genotype
    if not complete or not set(names) <= {"none", *NB201}:
        form, known = FORM.format(*["op"] * 6), ", ".join(NB201)
        raise ValueError(f"{genotype!r:.99} is no genotype {form}, where an op is none, {known}")
    ops = [None if name == "none" else name for name in names]
    inputs = [[i for i in range(j + 1) if ops[first_edge(j) + i]] for j in range(3)]
    return Choice(inputs, ops)


def read_one_shot(genotype):
    counts = [picks for ops, picks in SPACES.values() if ops is ONE_SHOT]
    try:
        ops, inputs = list(genotype.ops), [sorted(node) for node in genotype.inputs]
        good = tuple(map(len, inputs)) in counts and len(ops) == len(inputs) - 1
        good = good and set(ops) <= set(ONE_SHOT_OPS)
        for j, node in enumerate(inputs if good else []):
            good = good and tuple(node) in itertools.combinations(range(j + 1), len(node))
    except (AttributeError, TypeError):
        good = False
    if not good:
        raise ValueError(
            f"{genotype!r:.200} is no genotype: expected a string, or OneShotGenotype(ops, inputs) "
            f"with ops of {', '.join(ONE_SHOT_OPS)}, and {counts} earlier inputs per node"
        )
    return Choice(inputs, ops)


def write(choice):
    """The genotype of a choice."""
    if len(choice.ops) == len(choice.inputs) - 1:  # 1Shot1, whose output has no operation
        return OneShotGenotype(tuple(choice.ops), tuple(map(tuple, choice.inputs)))
    kept = [i in inputs for j, inputs in enumerate(choice.inputs) for i in range(j + 1)]
    return FORM.format(*[op if keep else "none" for op, keep in zip(choice.ops, kept)])


# --------------------------------------------------------------------------------------------------
# 2. NAS-Bench-201. `derived` is True in the derived network, as in rome.py

NB201_OPS = {
    "skip_connect": lambda c, derived: Op(nn.Identity(), Gate(), rectified=False),
    "nor_conv_1x1": lambda c, derived: conv_norm(c, c, 1, 1, derived),
    "nor_conv_3x3": lambda c, derived: conv_norm(c, c, 3, 1, derived),
    "avg_pool_3x3": lambda c, derived: Op(AvgPool(1), Gate(), rectified=False),
}


def make_ops(table, rows, c, derived):
    """Per row a dict, op name -> module."""
    rows = [{name: table[name](c, derived) for name in row} for row in rows]
    return nn.ModuleList(nn.ModuleDict(row) for row in rows)


def scaled(x, gates, number):
    """x times one of the gates; x without gates. A gate is 0-dim, so x keeps its precision."""
    return x if gates is None else x * gates[number]


class NB201Cell(nn.Module):
    """x_j = sum of A_ij B_ij o_ij(x_i) over the kept inputs i, or 0 without any. The output is x_3.

    All convolutions of x_i share relu(x_i), as in rome.py.
    """

    def __init__(self, rows, c, derived):
        super().__init__()
        self.edges, self.channels = make_ops(NB201_OPS, rows, c, derived), c

    def forward(self, x, choice):
        states, rectified, gates = [x], {}, choice.edge_gates
        for j, inputs in enumerate(choice.inputs):
            terms = []
            for i in inputs:
                edge = first_edge(j) + i
                op = self.edges[edge][choice.ops[edge]]
                gate = None if gates is None else gates[edge].repeat(self.channels)
                if op.rectified and i not in rectified:
                    rectified[i] = F.relu(states[i])
                terms.append(op(rectified[i] if op.rectified else states[i], gate))
            states.append(sum(terms[1:], terms[0]) if terms else torch.zeros_like(x))
        return states[-1]


class ResidualBlock(nn.Module):
    """Between two stages: two 3x3 convolutions, the first of stride 2, beside a pooled 1x1 one."""

    def __init__(self, c_in, c, derived):
        super().__init__()
        first, second = conv_norm(c_in, c, 3, 2, derived), conv_norm(c, c, 3, 1, derived)
        self.convs = nn.Sequential(nn.ReLU(), first, nn.ReLU(), second)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(c_in, c, 1, bias=False))

    def forward(self, x):
        return self.shortcut(x) + self.convs(x)


class Body(nn.Module):
    """A network of cells, with residual blocks or poolings between some of them."""

    def __init__(self, stem, layers, head, c, classes):
        super().__init__()
        self.stem, self.layers = nn.Sequential(*stem), nn.ModuleList(layers)
        self.head, self.classifier = nn.Sequential(*head), nn.Linear(c, classes)

    def forward(self, images, choice):
        x = self.stem(check_images(images, self.stem, 4))
        for layer in self.layers:
            between = isinstance(layer, (ResidualBlock, nn.MaxPool2d))
            x = layer(x) if between else layer(x, choice)
        return self.classifier(self.head(x).mean((2, 3)))


def make_body(on_edges, rows, channels, cells, classes, derived):
    """rows: the names of the operations that each row has. on_edges: NAS-Bench-201."""
    if min(channels, cells, classes) < 1:
        numbers = f"channels {channels}, cells {cells}, classes {classes}"
        raise ValueError(f"{numbers}: they must be at least 1")
    make = nb201_body if on_edges else one_shot_body
    return make(rows, channels, cells, classes, derived)


def nb201_body(rows, c, cells, classes, derived):
    """Three stages of `cells` cells."""
    stem, layers = conv3x3(3, c, 1, derived), []
    for stage in range(3):
        if stage > 0:
            layers.append(ResidualBlock(c, 2 * c, derived))
            c *= 2
        layers += [NB201Cell(rows, c, derived) for _ in range(cells)]
    head = [nn.BatchNorm2d(c, track_running_stats=derived), nn.ReLU()]
    return Body(stem, layers, head, c, classes)


# --------------------------------------------------------------------------------------------------
# 3. NAS-Bench-1Shot1


def conv_norm_relu(c_in, c, kernel, derived):
    return nn.Sequential(conv_norm(c_in, c, kernel, 1, derived), nn.ReLU())


ONE_SHOT_OPS = {
    "maxpool3x3": lambda c, derived: nn.MaxPool2d(3, 1, 1),
    "conv3x3-bn-relu": lambda c, derived: conv_norm_relu(c, c, 3, derived),
    "skip-connect": lambda c, derived: nn.Identity(),
    "conv1x1-bn-relu": lambda c, derived: conv_norm_relu(c, c, 1, derived),  # not searched
}


class OneShotCell(nn.Module):
    """x_j = A_j o_j(sum of B_ij x_i over the kept inputs i). Every node has a projection of x_0.

    The output concatenates the nodes, with zeros for those that it does not keep. If it keeps x_0,
    it adds a projection of its own.
    """

    def __init__(self, rows, c_in, c, derived):
        super().__init__()
        widths = [c] * len(rows) + [c * len(rows)]  # of the nodes and of the output
        self.project = nn.ModuleList(conv_norm_relu(c_in, width, 1, derived) for width in widths)
        self.ops = make_ops(ONE_SHOT_OPS, rows, c, derived)

    def forward(self, x, choice):
        *nodes, output = choice.inputs
        states, gates = [x], choice.edge_gates
        for j, inputs in enumerate(nodes):
            terms = []
            for i in inputs:
                state = states[i] if i > 0 else self.project[j](x)
                terms.append(scaled(state, gates, first_edge(j) + i))
            op = self.ops[j][choice.ops[j]]
            states.append(scaled(op(sum(terms[1:], terms[0])), choice.node_gates, j))
        parts, last = [], first_edge(len(nodes))  # the first edge of the output
        for i, state in enumerate(states[1:], 1):
            kept = i in output
            parts.append(scaled(state, gates, last + i) if kept else torch.zeros_like(state))
        total = torch.cat(parts, 1)
        if 0 in output:
            total = total + scaled(self.project[-1](x), gates, last)
        return total


def one_shot_body(rows, c, cells, classes, derived):
    """Three stacks of cells, `cells` in all, with a pooling between them."""
    stem, layers, c_in = [*conv3x3(3, c, 1, derived), nn.ReLU()], [], c
    for index in range(cells):
        if index > 0 and index in (cells // 3, 2 * cells // 3):
            layers.append(nn.MaxPool2d(2, 2, 1))
            c *= 2
        layers.append(OneShotCell(rows, c_in, c, derived))
        c_in = c * len(rows)
    head = [nn.ReLU(), conv_norm(c_in, c, 1, 1, derived)]
    return Body(stem, layers, head, c, classes)


# --------------------------------------------------------------------------------------------------
# 4. The supernet


class Supernet(nn.Module):
    """All candidate operations of a space, and alpha and beta. A forward pass runs one sub-network.

    space: a name in SPACES. cells: per stage for nb201, else in all. topology: "v2" (a logit beta
    per edge) or, for nb201, "none" (no beta, all edges run: GDAS). ValueError for what does not
    fit. Images have sides that are multiples of 4.

    `alpha` and `beta` are parameters by cell type. alpha: (rows, ops), a row per edge for nb201,
    else per node. beta: (nodes, inputs).
    """

    def __init__(self, space, channels, cells, classes, topology="v2"):
        super().__init__()
        if space not in SPACES:
            raise ValueError(f"no space {space!r}; there are {', '.join(SPACES)}")
        if topology != "v2" and (space, topology) != ("nb201", "none"):
            raise ValueError(f"{space} has no topology {topology!r}; it is v2, or none for nb201")
        self.space, self.topology, self.on_edges = space, topology, space == "nb201"
        self.ops, self.picks = SPACES[space]
        nodes = len(self.picks)
        rows = first_edge(nodes) if self.on_edges else nodes - 1
        self.body = make_body(self.on_edges, [self.ops] * rows, channels, cells, classes, False)
        self.alpha, self.beta = nn.ParameterDict(), nn.ParameterDict()
        self.alpha["cell"] = 1e-3 * torch.randn(rows, len(self.ops))
        if topology == "v2":
            self.beta["cell"] = 1e-3 * torch.randn(nodes, nodes)
        else:
            self.picks = (1, 2, 3)
        all_inputs = torch.ones(nodes, nodes, dtype=torch.bool, device="cpu")
        self.is_edge = all_inputs.tril()  # (nodes, inputs)
        self.to(memory_format=torch.channels_last)

    def architecture_parameters(self):
        """alpha and beta."""
        return [*self.alpha.values(), *self.beta.values()]

    def weights(self):
        """All other parameters, the paper's theta."""
        return list(self.body.parameters())

    def forward(self, images, z):
        """Logits (N, classes) of the sub-network z on images (N, 3, H, W)."""
        return self.body(images, z["cell"])

    def sample(self, tau, generator=None):
        """A sub-network z, drawn on the CPU. All cells share it."""
        device, alpha = self.alpha["cell"].device, self.alpha["cell"].cpu()
        A = gumbel_top_k(alpha, 1, tau, gumbel_noise(alpha, generator))  # Eq. 2, 3
        index = A.argmax(-1, keepdim=True)  # (rows, 1): of the drawn operation
        A = A.gather(-1, index)[:, 0]  # (rows,)
        B = self.is_edge.to(alpha.dtype)  # (nodes, inputs)
        if self.beta:
            beta = self.logits_of_inputs("cell")
            noise = gumbel_noise(beta, generator)
            drawn = [gumbel_top_k(beta[j], k, tau, noise[j]) for j, k in enumerate(self.picks)]
            B = torch.stack(drawn)  # Eq. 1, 7, 8
        inputs = [row.nonzero()[:, 0].tolist() for row in B]
        names, gates = [self.ops[i] for i in index.flatten().tolist()], []
        if A.requires_grad or B.requires_grad:
            B = B.masked_select(self.is_edge)  # (edges,)
            gates = [A * B] if self.on_edges else [B, A]
        return {"cell": Choice(inputs, names, *[gate.to(device).unbind() for gate in gates])}

    def logits_of_inputs(self, kind):
        """beta (nodes, inputs) on the CPU, with -inf where a node has no such input. "none": 0."""
        beta = self.beta[kind] if self.beta else self.alpha[kind].new_zeros(self.is_edge.shape)
        return beta.cpu().masked_fill(~self.is_edge, -math.inf)

    @torch.no_grad()
    def genotype(self):
        """argmax p(z; alpha, beta) of Eq. 9, node by node. Without beta a node keeps all inputs."""
        best, index = log_softmax(self.alpha["cell"].cpu()).max(-1)  # (rows,)
        scores = log_softmax(self.logits_of_inputs("cell"))  # (nodes, inputs)
        if self.on_edges:  # the operation of a 1Shot1 node does not depend on its inputs
            scores = scores + torch.zeros_like(scores).masked_scatter(self.is_edge, best)
        inputs = [sorted(row.topk(k).indices.tolist()) for row, k in zip(scores, self.picks)]
        return self.cell({"cell": Choice(inputs, [self.ops[i] for i in index.tolist()])})

    def log_prob(self, genotype):
        """log p(genotype; alpha, beta), Eq. 9 as printed. ValueError for topology "none"."""
        if not self.beta:
            raise ValueError('topology "none" keeps every edge: p(z) of Eq. 9 needs beta')
        choice = self.architecture(genotype)["cell"]
        log_alpha = log_softmax(self.alpha["cell"].cpu())
        log_beta = log_softmax(self.logits_of_inputs("cell"))
        total = sum(log_beta[j, inputs].sum() for j, inputs in enumerate(choice.inputs))
        for row, name in enumerate(choice.ops):
            if name is not None:
                total = total + log_alpha[row, self.ops.index(name)]
        return total

    def architecture(self, genotype):
        """The genotype as a sub-network without gates. ValueError outside the space."""
        choice, picks = read(genotype), SPACES[self.space][1]
        counts = tuple(map(len, choice.inputs))
        if counts not in (picks, self.picks) or not set(choice.ops) <= {None, *self.ops}:
            raise ValueError(
                f"{genotype} is not in {self.space}, whose nodes keep {picks} inputs and whose "
                f"operations are {', '.join(self.ops)}"
            )
        return {"cell": choice}

    def cell(self, z):
        """The genotype of a sub-network."""
        return write(z["cell"])


# --------------------------------------------------------------------------------------------------
# 5. The derived network


class Network(nn.Module):
    """The network of a genotype, to be trained from scratch. cells: per stage for NAS-Bench-201.

    ValueError for what is no genotype, or numbers below 1.
    """

    def __init__(self, genotype, channels, cells, classes):
        super().__init__()
        self.choice = read(genotype)
        rows = [[name] if name else [] for name in self.choice.ops]
        on_edges = isinstance(genotype, str)
        self.body = make_body(on_edges, rows, channels, cells, classes, True)
        self.to(memory_format=torch.channels_last)

    def forward(self, images):
        """Logits (N, classes), and None: there is no auxiliary head."""
        return self.body(images, self.choice), None
