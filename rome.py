"""
ROME: differentiable architecture search that trains one sampled sub-network at a time.

An independent implementation of Wang et al., "ROME: Robustifying Memory-Efficient NAS via Topology
Disentanglement and Gradient Accumulation", ICCV 2023, https://arxiv.org/abs/2011.11233, on torch
alone. Equation numbers are the paper's. docs/companion.md puts every equation beside its lines and
lists what the paper leaves open.

A cell is a small graph. Nodes 0 and 1 are its inputs. Nodes 2 to 5 compute: each adds up two
operations, which read two earlier nodes. An edge (i, j) may carry one of several operations. The
search learns two choices, each from logits of its own (topology disentanglement):

    B   which two inputs a node keeps      from beta    drawn by Gumbel-Top2    Eq. 7, 8
    A   which operation runs on an edge    from alpha   drawn by Gumbel-Max     Eq. 2, 3

One draw of A and B is a sub-network, z. A step draws K of them and runs them one after the other
(gradient accumulation). alpha and beta take the mean of the K gradients, Eq. 11. The weights take
the sum, Eq. 12, clipped once as in DARTS; the paper does not mention a clip.

    python rome.py --space darts --dataset cifar10      # the paper's search; needs train.py

Or copy this file alone and write the loop yourself. It is all of Algorithm 1:

    net = rome.Supernet("darts", channels=16, cells=8, classes=10)
    architect = rome.Architect(net, samples=7)
    adam = torch.optim.Adam(net.architecture_parameters(), 3e-4, (0.5, 0.999), weight_decay=1e-3)
    sgd = torch.optim.SGD(net.weights(), 0.05, 0.9, weight_decay=3e-4)
    for epoch in range(50):
        tau = 10 - 9.9 * epoch / 49  # GDAS's; the paper gives no numbers
        for (x_s, y_s), (x_t, y_t) in zip(D_s, D_t):  # batches of two halves of the training set
            architect.architecture_step(x_s, y_s, tau, adam)  # Eq. 11
            architect.weight_step(x_t, y_t, tau, sgd)  # Eq. 12
    print(net.genotype())  # argmax of p(z; alpha, beta), Eq. 9

1 Sampling   2 Algorithm 1   3 The supernet   4 Operations   5 Their layers   6 Cells
7 The derived network   8 Search spaces   9 Several processes
"""

import itertools
import math
import numbers
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# --------------------------------------------------------------------------------------------------
# 1. Sampling


def gumbel_noise(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Gumbel(0, 1) noise of the logits' shape, type and device: -log E, E exponential."""
    exponential = torch.empty_like(logits).exponential_(generator=generator)
    return -exponential.clamp_min(torch.finfo(exponential.dtype).tiny).log()


def gumbel_top_k(logits: Tensor, k: int, tau: float, noise: Tensor) -> Tensor:
    """Draws k entries of every row without replacement: exactly 1 where drawn, else 0.

    k = 1 draws an operation (Eq. 2, 3) or a pair of edges (Eq. 4, 5), k = 2 the inputs of a node
    (Eq. 7, 8). The gradient is that of the softmax at temperature tau (straight-through).
    logits, noise: (rows, n). ValueError for a tau that is not above 0.
    """
    if not tau > 0:
        raise ValueError(f"tau is {tau}; it must be above 0")
    scores = log_softmax(logits) + noise  # the brackets of Eq. 2, 3, 5 and 7
    relaxed = F.softmax(scores / tau, -1)  # Eq. 3, 7
    top = scores.topk(k, -1).indices  # the largest scores have the largest softmax, too
    hard = torch.zeros_like(relaxed).scatter(-1, top, 1.0)  # Eq. 2, 5, 8
    return hard + (relaxed - relaxed.detach())  # the bracket is exactly 0


def log_softmax(logits: Tensor) -> Tensor:
    """log p of every row (v1: Eq. 4). FloatingPointError for alpha or beta that is not a number."""
    log_p = F.log_softmax(logits, -1)
    if log_p.isnan().any():
        raise FloatingPointError("alpha or beta is not a number")
    return log_p


# --------------------------------------------------------------------------------------------------
# 2. Algorithm 1


class Architect:
    """The two steps of Algorithm 1, which take turns at Eq. 10, first order.

    Each runs K sub-networks, one after the other, on one batch.

    net: a Supernet, or any module with sample(tau, generator), forward(images, z), weights() and
    architecture_parameters(); not wrapped in DDP. samples: K, or (K of the architecture step, K of
    the weight step). clip: bound on the norm of the weights' summed gradient; 0: none. generator:
    of the draws, a CPU one; without it the first step makes one from torch's seed. loss: a function
    (logits, labels) -> 0-dim. After a step `gradient_norm` is the norm before the clip.

    The processes of torch.distributed share the K sub-networks. In all of them must be equal: the
    weights, alpha and beta at the start, the batch, the samples, and the generator, if one is given
    (else rank 0 seeds all).
    """

    def __init__(self, net, samples=7, clip=5.0, generator=None, loss=F.cross_entropy):
        self.net, self.clip, self.generator, self.loss = net, clip or math.inf, generator, loss
        self.samples = samples if isinstance(samples, (tuple, list)) else (samples, samples)
        self.gradient_norm = None
        good = [isinstance(k, numbers.Integral) and k is not True and k > 0 for k in self.samples]
        if len(good) != 2 or not all(good):
            raise ValueError(f"samples is {samples!r:.80}; it is K or (K, K), of at least 1")

    def architecture_step(self, images: Tensor, labels: Tensor, tau: float, optimizer) -> Tensor:
        """Eq. 11: alpha and beta descend the mean gradient of K sub-networks, at fixed weights.

        images: (N, 3, H, W), labels: (N,). Returns the mean loss, 0-dim.
        """
        parameters = clear_gradients(self.net.architecture_parameters(), "alpha and beta")
        for p in parameters:
            p.grad = torch.zeros_like(p)  # not None: Adam moves all of alpha and beta every step
        losses = images.new_zeros(self.samples[0])
        with frozen(self.net.weights()):  # so the backward pass needs less memory
            for k, z in self._draw(self.samples[0], tau, images.device):
                loss = self.loss(self.net(images, z), labels)
                (loss / self.samples[0]).backward()  # adds to the gradients, frees sub-network k
                losses[k] = loss.detach()
        return self._update(parameters, losses, math.inf, optimizer)

    def weight_step(self, images: Tensor, labels: Tensor, tau: float, optimizer) -> Tensor:
        """Eq. 12: the weights descend the summed gradient of K sub-networks, clipped once.

        An operation that no sub-network ran keeps the gradient None: neither momentum nor decay
        moves its weights. Returns the mean loss, 0-dim.
        """
        parameters = clear_gradients(self.net.weights(), "the weights")
        losses = images.new_zeros(self.samples[1])
        with torch.no_grad():  # alpha and beta get no gradient
            drawn = self._draw(self.samples[1], tau, images.device)
        for k, z in drawn:
            loss = self.loss(self.net(images, z), labels)
            loss.backward()  # adds to the gradients, frees sub-network k
            losses[k] = loss.detach()
        return self._update(parameters, losses, self.clip, optimizer)

    def _draw(self, count, tau, device):
        """(k, z_k) of the sub-networks that this process runs, all drawn before the first runs."""
        if self.generator is None:  # one for z alone: S4's noise draws from torch's own
            self.generator = shared_generator(device)
        drawn = [self.net.sample(tau, self.generator) for _ in range(count)]
        rank, processes = rank_and_world()
        return list(enumerate(drawn))[rank::processes]  # rank, rank + processes, ...

    def _update(self, parameters, losses, clip, optimizer):
        sum_over_processes(parameters, losses)
        self.gradient_norm = nn.utils.clip_grad_norm_(parameters, clip).detach()
        optimizer.step()
        torch.clear_autocast_cache()  # it has 16-bit copies of the weights before the step
        return losses.mean()


def clear_gradients(parameters, what):
    """Sets every gradient to None. Returns those that are not frozen; ValueError for none."""
    for p in parameters:
        p.grad = None
    found = [p for p in parameters if p.requires_grad]
    if not found:
        raise ValueError(f"{what} are all frozen: let some require gradients, or skip this step")
    return found


@contextmanager
def frozen(parameters):
    """Inside, these parameters get no gradient. What a user froze stays frozen afterwards."""
    changed = [p for p in parameters if p.requires_grad]
    for p in changed:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in changed:
            p.requires_grad_(True)


# --------------------------------------------------------------------------------------------------
# 3. The supernet. In its code computing nodes are j = 0, 1, ...: node j has the inputs i < j + 2.


class Choice(NamedTuple):
    """What the cells of one type run. A sub-network z has one of them per cell type."""

    nodes: list  # per computing node: (input, index of the operation) of each edge that it keeps
    gates: Tensor | None = None  # (edges,): A_ij B_ij, 1 on kept edges and 0 on others


class Supernet(nn.Module):
    """All candidate operations of a space, and alpha and beta. A forward pass runs one sub-network.

    space: a name in SPACES, or a table like those there: {"normal": edges, "reduce": edges}, where
    an edge is a tuple of op names. topology: "v2" (a logit beta per edge), "v1" (one per pair of
    edges) or "none" (no beta, all edges run: GDAS). recompute: the backward pass computes each cell
    again, to save memory. imagenet: a stem of stride 8. ValueError for what does not fit.

    `alpha` and `beta` are parameters by cell type. alpha: (edges, ops), the edges in the order
    0->2, 1->2, 0->3, 1->3, 2->3, 0->4, ... beta: (nodes, inputs), for v1 (nodes, pairs); entries of
    inputs that a node does not have are masked.
    """

    def __init__(
        self, space="darts", channels=16, cells=8, classes=10, topology="v2", recompute=False,
        *, imagenet=False,
    ):  # fmt: skip
        super().__init__()
        self.table, self.topology = table_of(space), topology
        self.node_count = count = nodes_in(self.table["normal"])
        self.pairs = list(itertools.combinations(range(count + 1), 2))  # of inputs
        columns = dict(v2=count + 1, v1=len(self.pairs), none=0)  # of beta
        if topology not in columns:
            raise ValueError(f"no topology {topology!r}; there are {', '.join(columns)}")
        self.picks = 1 if topology == "v1" else 2  # how many columns a node draws
        self.body = Body(
            self.table, channels, cells, classes,
            derived=False, imagenet=imagenet, recompute=recompute,
        )  # fmt: skip
        self.alpha, self.beta = nn.ParameterDict(), nn.ParameterDict()
        for kind, edges in self.table.items():
            self.alpha[kind] = nn.Parameter(1e-3 * torch.randn(len(edges), len(edges[0])))
            if columns[topology] > 0:
                self.beta[kind] = nn.Parameter(1e-3 * torch.randn(count, columns[topology]))
        if topology == "v1":  # persistent, so that no v2 loads this state: beta can have one shape
            holds = F.one_hot(torch.tensor(self.pairs, device="cpu")).sum(1)
            self.register_buffer("holds", holds)  # (pairs, inputs): 1 where a pair has the input
        all_inputs = torch.ones(count, count + 1, dtype=torch.bool, device="cpu")
        self.is_edge = all_inputs.tril(1)  # (nodes, inputs)
        self.to(memory_format=torch.channels_last)

    def architecture_parameters(self):
        """alpha and beta."""
        return [*self.alpha.values(), *self.beta.values()]

    def weights(self):
        """All other parameters, the paper's theta."""
        return list(self.body.parameters())

    def forward(self, images: Tensor, z) -> Tensor:
        """Logits (N, classes) of the sub-network z on images (N, 3, H, W)."""
        return self.body(images, z)[0]

    def sample(self, tau: float, generator: torch.Generator | None = None) -> dict:
        """A sub-network z: cell type -> Choice. All cells of a type share it.

        It is drawn on the CPU, whatever the device: the logits are a few hundred numbers, and the
        program must know what to run.
        """
        z = {}
        for kind, alpha in self.alpha.items():
            logits = alpha.cpu()
            A = gumbel_top_k(logits, 1, tau, gumbel_noise(logits, generator))  # Eq. 2, 3
            B = self.draw_inputs(kind, tau, generator)  # (nodes, inputs)
            index = A.argmax(-1, keepdim=True)  # (edges, 1): of the drawn operation
            nodes = []
            for j, row in enumerate(B.tolist()):
                inputs = [i for i, kept in enumerate(row) if kept]
                nodes.append([(i, index[first_edge(j) + i].item()) for i in inputs])
            B = B.masked_select(self.is_edge)  # (edges,): row by row, as edges are ordered
            gates = A.gather(-1, index)[:, 0] * B  # (edges,)
            # A step of the weights needs no gates: there they are 1, without a gradient.
            z[kind] = Choice(nodes, gates.to(alpha.device) if gates.requires_grad else None)
        return z

    def draw_inputs(self, kind, tau, generator):
        """B (nodes, inputs): two ones in every row, Eq. 1. Without beta: every edge."""
        if self.topology == "none":
            return self.is_edge.to(self.alpha[kind].dtype)
        beta = self.logits_of_inputs(kind)
        noise = gumbel_noise(beta, generator)
        drawn = gumbel_top_k(beta, self.picks, tau, noise)  # v2: Eq. 7, 8; v1: Eq. 4, 5
        return drawn if self.topology == "v2" else drawn @ self.holds.to(drawn)  # Eq. 6

    def logits_of_inputs(self, kind):
        """beta on the CPU, with -inf where a node has no such input, or no such pair of inputs."""
        exists = self.is_edge
        if self.topology == "v1":  # a pair i < k exists where the input k does
            exists = exists[:, [k for _, k in self.pairs]]
        return self.beta[kind].cpu().masked_fill(~exists, -math.inf)

    @torch.no_grad()
    def genotype(self):
        """The derived cell, argmax p(z; alpha, beta) of Eq. 9, node by node.

        Without beta: DARTS's rule, the two inputs with the most probable operations.
        """
        z = {}
        for kind, alpha in self.alpha.items():
            best, z[kind] = alpha.argmax(-1).tolist(), Choice([])
            for j in range(self.node_count):
                candidates = [(i, best[first_edge(j) + i]) for i in range(j + 2)]
                pairs = itertools.combinations(candidates, 2)
                pair = max(pairs, key=lambda pair: self.log_p_of_node(kind, j, pair))  # Eq. 9
                z[kind].nodes.append(list(pair))
        return self.cell(z)

    def log_prob(self, genotype) -> Tensor:
        """log p(genotype; alpha, beta) of Eq. 9, 0-dim. ValueError without beta.

        In v2 it is as printed, p(e_1) p(e_2) of a node's edges, which does not sum to 1 over pairs
        of edges: see the companion. In v1 it has the probability of the pair.
        """
        if self.topology == "none":
            raise ValueError('topology "none" keeps every edge: p(z) of Eq. 9 needs beta')
        total = 0
        for kind, choice in self.architecture(genotype).items():
            for j, node in enumerate(choice.nodes):
                total = total + self.log_p_of_node(kind, j, node)
        return total

    def log_p_of_node(self, kind, j, node):
        """log of the factors of node j in Eq. 9: p(e) p(o|e) of its edges; without beta p(o|e)."""
        log_p_op = log_softmax(self.alpha[kind].cpu())  # (edges, ops)
        log_p = sum(log_p_op[first_edge(j) + i, index] for i, index in node)
        if self.topology == "none":
            return log_p
        inputs = [i for i, _ in node]
        columns = [self.pairs.index(tuple(inputs))] if self.topology == "v1" else inputs
        return log_p + log_softmax(self.logits_of_inputs(kind))[j, columns].sum()

    def architecture(self, genotype: "Genotype") -> dict:
        """The genotype as a sub-network without gates. ValueError if it is not in the space.

        The concat of a genotype is not read: the supernet's cells concatenate all nodes.
        """
        z = {}
        for kind, edges in self.table.items():
            z[kind], nodes = Choice([]), nodes_of(getattr(genotype, kind))
            if len(nodes) != self.node_count:
                text = f"here it has {self.node_count}"
                raise ValueError(f"{len(nodes)} nodes in the {kind} cell; {text}")
            for j, node in enumerate(nodes):
                z[kind].nodes.append([])
                for i in sorted(node):
                    names = edges[first_edge(j) + i]
                    if node[i] not in names:
                        raise ValueError(f"{kind} cell, node {j + 2}: {node} is not in this space")
                    z[kind].nodes[j].append((i, names.index(node[i])))
        return z

    def cell(self, z: dict) -> "Genotype":
        """The genotype of a sub-network. ValueError if a node keeps more than two inputs."""
        entries, concat = {}, list(range(2, 2 + self.node_count))
        for kind, choice in z.items():
            entries[kind] = []
            for j, node in enumerate(choice.nodes):
                for i, index in node:
                    entries[kind].append((self.table[kind][first_edge(j) + i][index], i))
            if len(entries[kind]) != 2 * self.node_count:
                raise ValueError("a genotype has two inputs per node; this sub-network has all")
        return Genotype(entries["normal"], concat, entries["reduce"], list(concat))


def table_of(space):
    """The table of a space. ValueError if it is no name, and no table of two cells' edges."""
    table = SPACES.get(space) if isinstance(space, str) else space
    if not isinstance(table, dict) or set(table) != {"normal", "reduce"}:
        known = f"one of {', '.join(SPACES)}, or {{'normal': edges, 'reduce': edges}} of op names"
        raise ValueError(f"{space!r:.80} is no space, which is {known}")
    count = first_edge(nodes_in(table["normal"]))  # of edges: where those of one more node begin
    for kind, edges in table.items():
        widths = {len(names) for names in edges}
        if len(widths) != 1 or 0 in widths or len(edges) != count:
            sizes = "2, 5, 9, 14, ... edges, all with equally many op names"
            raise ValueError(f"the {kind} cell of a space has {sizes}: {edges!r:.200}")
    return table


def first_edge(j):
    """The index of computing node j's first edge: the nodes before have 2, 3, ... edges."""
    return j * (j + 3) // 2


def nodes_in(edges):
    """How many computing nodes a cell has: 14 edges are 2 + 3 + 4 + 5, so 4 nodes."""
    nodes = 0
    while first_edge(nodes) < len(edges):
        nodes += 1
    return nodes


class Genotype(NamedTuple):
    """A DARTS cell pair: [(op, input), ...] with two entries per node, and the output nodes."""

    normal: list
    normal_concat: list
    reduce: list
    reduce_concat: list


def nodes_of(entries):
    """[(op, input), ...] as a dict, input -> op, per node."""
    nodes = [{i: op for op, i in entries[k : k + 2]} for k in range(0, len(entries), 2)]
    for j, node in enumerate(nodes):
        if len(node) != 2 or not set(node) <= set(range(j + 2)):
            raise ValueError(f"every node needs two different earlier inputs: {entries!r:.200}")
    return nodes


# --------------------------------------------------------------------------------------------------
# 4. Operations. `derived` is True in the derived network. There batch norms have scale, shift and
# running statistics, and a pool has no norm behind it.


class Norm(nn.BatchNorm2d):
    """Batch norm. In the supernet it always uses the batch's statistics: running averages would mix
    sub-networks. There the gate is its scale. So gate * norm(x) needs no memory for a product."""

    def __init__(self, c, derived):
        super().__init__(c, affine=derived, track_running_stats=derived)
        if not derived:
            self.register_buffer("one", torch.ones(c), persistent=False)
            self.register_buffer("zero", torch.zeros(c), persistent=False)

    def forward(self, x, gate=None):
        if self.affine:
            return super().forward(x)
        # A scale is given without a gate, too: only then CUDA uses cuDNN's single kernel.
        scale = self.one if gate is None else gate
        return F.batch_norm(x, None, None, scale, self.zero, training=True, eps=self.eps)


class Op(nn.Module):
    """An operation: gate * last(layers(x)). The last layer, a Norm or a Gate, takes the gate.

    gate: (C,) copies of A_ij B_ij. rectified: x is relu(input), which the cell computes once for
    all of its operations, so the layers need no ReLU at their beginning. drop_path: see `drop`.
    """

    def __init__(self, *layers: nn.Module, rectified=True):
        super().__init__()
        self.layers, self.norm, self.rectified = nn.Sequential(*layers[:-1]), layers[-1], rectified
        self.is_identity = isinstance(layers[0], nn.Identity)

    def forward(self, x, gate=None, drop_path=None):
        x = self.norm(self.layers(x), gate)
        if drop_path is None or self.is_identity:  # DARTS drops no identity
            return x
        return drop(x, drop_path)


class Gate(nn.Module):
    """The last layer of an operation without a norm: gate * x, which needs memory for a product."""

    def forward(self, x, gate=None):
        return x if gate is None else x * gate.view(-1, 1, 1).to(x.dtype)


def drop(x, rate):
    """Drop path: sets a random share `rate` of the images to 0, and scales up the others."""
    kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= rate
    return x * (kept / (1 - rate)).to(x.dtype)


def conv_norm(c_in, c, kernel, stride, derived):
    conv = nn.Conv2d(c_in, c, kernel, stride, kernel // 2, bias=False)
    return Op(conv, Norm(c, derived))


def separable_conv(c, kernel, stride, derived, dilation=1):
    depthwise = DepthwiseConv(c, kernel, stride, dilation)
    return [depthwise, nn.Conv2d(c, c, 1, bias=False), Norm(c, derived)]


def sep_conv(kernel, c, stride, derived):
    first = separable_conv(c, kernel, stride, derived)
    return Op(*first, nn.ReLU(inplace=True), *separable_conv(c, kernel, 1, derived))


def dil_conv(kernel, c, stride, derived):
    return Op(*separable_conv(c, kernel, stride, derived, dilation=2))


def pool(layer, c, derived):
    return layer if derived else Op(layer, Norm(c, derived), rectified=False)


def factorized_reduce(c_in, c, derived):
    return Op(Halve(c_in, c), Norm(c, derived))


# Name -> function (channels, stride, derived) that makes a module,
# (N, C, H, W) -> (N, C, H / stride, W / stride). To add an operation, add an entry:
#     lambda c, stride, derived: Op(nn.Conv2d(c, c, 3, stride, 1, groups=2), Norm(c, derived))
# The last layer of an Op is a Norm, whose scale is the gate. An Op reads relu(x), or x if
# rectified=False. Any other module reads x, and its output is multiplied by the gate, which needs
# more memory. None must write to its input, which others read.
PRIMITIVES = {
    "max_pool_3x3": lambda c, stride, derived: pool(nn.MaxPool2d(3, stride, 1), c, derived),
    "avg_pool_3x3": lambda c, stride, derived: pool(AvgPool(stride), c, derived),
    "skip_connect": lambda c, stride, derived: (
        nn.Identity() if stride == 1 else factorized_reduce(c, c, derived)
    ),
    "sep_conv_3x3": partial(sep_conv, 3),
    "sep_conv_5x5": partial(sep_conv, 5),
    "dil_conv_3x3": partial(dil_conv, 3),
    "dil_conv_5x5": partial(dil_conv, 5),
    "noise": lambda c, stride, derived: Noise(stride),
}

# --------------------------------------------------------------------------------------------------
# 5. The layers of the operations: DARTS's, in forms that a CPU computes fast


class Halve(nn.Module):
    """Half the resolution, by two 1x1 convolutions: of the even pixels and of the odd ones."""

    def __init__(self, c_in, c):
        super().__init__()
        self.even = nn.Conv2d(c_in, c // 2, 1, bias=False)
        self.odd = nn.Conv2d(c_in, c // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.even(every_second(x)), self.odd(every_second(x, 1))], 1)


class DepthwiseConv(nn.Conv2d):
    """With stride 2 and dilation 2 it is an undilated convolution of every second pixel (as one
    with both, a CPU takes 1.2 times as long for a pass)."""

    def __init__(self, c, kernel, stride, dilation):
        self.thinned = stride == dilation == 2
        if self.thinned:
            stride, dilation = 1, 1
        padding = dilation * (kernel // 2)
        super().__init__(c, c, kernel, stride, padding, dilation, groups=c, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.thinned:
            x = every_second(x)
        if self.dilation == (2, 2) and x.device.type == "cpu":
            if x.shape[2] % 2 == x.shape[3] % 2 == 0 and not torch.jit.is_tracing():
                return DilatedConv.apply(x, self.weight)
            x = x.contiguous()  # else torch's gradient is random in bfloat16
        return super().forward(x)


class DilatedConv(torch.autograd.Function):
    """A depthwise convolution with dilation 2 of images with even sides, with an own gradient.

    torch's own takes 1 to 4 times as long on a CPU (AMD EPYC, torch 2.14, one core), and is random
    in bfloat16 and channels-last. A pixel meets only pixels whose row and column are even or odd
    like its own. So an image falls into four, on which the convolution is not dilated. They are
    stacked along the batch.
    """

    @staticmethod
    def forward(x, weight):
        return F.conv2d(x, weight, None, 1, weight.shape[2] - 1, 2, len(weight))

    @staticmethod
    def setup_context(context, inputs, output):
        context.save_for_backward(*inputs)

    @staticmethod
    def backward(context, grad):
        x, weight = context.saved_tensors
        grads, wanted = by_parity(grad), context.needs_input_grad[1]
        images = by_parity(x).to(grad.dtype) if wanted else grads  # then only their shape is read
        padding = [weight.shape[2] // 2] * 2
        parts, grad_weight, _ = torch.ops.aten.convolution_backward(
            grads, images, weight.to(grad.dtype), None, [1, 1], padding, [1, 1], False, [0, 0],
            len(weight), [True, wanted, False],
        )  # fmt: skip
        grad_x = torch.empty_like(x, dtype=grad.dtype)
        for part, (row, column) in zip(parts.unflatten(0, (4, len(x))), CORNERS):
            grad_x[:, :, row::2, column::2] = part
        return grad_x, grad_weight


CORNERS = (0, 0), (0, 1), (1, 0), (1, 1)


def by_parity(x):
    """The pixels of even and odd rows and columns as four images, along the batch."""
    return torch.cat([x[:, :, row::2, column::2] for row, column in CORNERS])


def every_second(x, start=0):
    """x[:, :, start::2, start::2], whose gradient is channels-last (else operations with stride 2
    take 1.5 to 2 times as long on a CPU)."""
    return x.permute(0, 2, 3, 1)[:, start::2, start::2].permute(0, 3, 1, 2)


class AvgPool(nn.AvgPool2d):
    """3x3 averages without the padding. On CUDA they are computed in NCHW: there torch's backward
    kernel forgets the padding of channels-last images (pytorch#188344; torch 2.6 to 2.13)."""

    def __init__(self, stride):
        super().__init__(3, stride, 1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cuda":
            x = x.clone(memory_format=torch.contiguous_format)
        return super().forward(x)


class Noise(nn.Module):
    """Fresh N(0, 1) in place of the input (S4)."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.randn_like(x[:, :, :: self.stride, :: self.stride])


# --------------------------------------------------------------------------------------------------
# 6. Cells, and the network of cells that the supernet and the derived network share


class Cell(nn.Module):
    """x_j = sum of A_ij B_ij o_ij(x_i) over the kept inputs i. The output concatenates nodes.

    edges: per edge the names of its operations, one of which runs if the edge is kept. The inputs
    are rectified: DARTS's cells begin with a ReLU, which the body computes once for both readers.
    """

    def __init__(self, edges, concat, c_prev_prev, c_prev, c, derived, reduction, reduction_prev):
        super().__init__()
        self.concat, self.channels = concat, c
        if reduction_prev:
            self.preprocess0 = factorized_reduce(c_prev_prev, c, derived)
        else:
            self.preprocess0 = conv_norm(c_prev_prev, c, 1, 1, derived)
        self.preprocess1 = conv_norm(c_prev, c, 1, 1, derived)
        self.edges = nn.ModuleList()
        inputs = [i for j in range(nodes_in(edges)) for i in range(j + 2)]
        for i, names in zip(inputs, edges):
            stride = 2 if reduction and i < 2 else 1
            ops = [make_op(name, c, stride, derived) for name in names]
            self.edges.append(nn.ModuleList(ops))

    def forward(self, s0, s1, choice, drop_path):
        states, rectified = [self.preprocess0(s0), self.preprocess1(s1)], {}
        gates = [None] * len(self.edges)
        if choice.gates is not None:
            gates = choice.gates[:, None].repeat(1, self.channels).unbind()  # per edge (C,) copies
        for j, node in enumerate(choice.nodes):  # it becomes states[j + 2]
            terms = []
            for i, index in node:
                edge = first_edge(j) + i
                op = self.edges[edge][index]
                if op.rectified and i not in rectified:  # computed once for all that read it
                    rectified[i] = F.relu(states[i])
                x = rectified[i] if op.rectified else states[i]
                terms.append(op(x, gates[edge], drop_path))  # A_ij B_ij o_ij(x_i)
            states.append(sum(terms[1:], terms[0]))  # sum(terms) would first add 0
        return concatenate([states[i] for i in self.concat])


def make_op(name, c, stride, derived):
    if name not in PRIMITIVES:
        raise ValueError(f"no op is called {name!r:.80}; there are {', '.join(PRIMITIVES)}")
    op = PRIMITIVES[name](c, stride, derived)
    return op if isinstance(op, Op) else Op(op, Gate(), rectified=False)


def concatenate(states):
    """torch.cat over channels, with dense gradients in place of slices (with which a pass takes 1.2
    times as long on a CPU)."""
    for x in states:
        if x.requires_grad and not torch.compiler.is_compiling():
            x.register_hook(lambda grad: grad.contiguous(memory_format=torch.channels_last))
    return torch.cat(states, 1)


def conv3x3(c_in, c, stride, derived):
    """Layers of a stem. Its batch norm has scale and shift in the supernet, too."""
    conv = nn.Conv2d(c_in, c, 3, stride, 1, bias=False)
    return [conv, nn.BatchNorm2d(c, track_running_stats=derived)]


def check_images(images, stem, multiple):
    """The images in channels-last. ValueError for those that the network cannot halve or read.

    A stem whose first convolution was changed decides how many channels they have.
    """
    convs = [layer for layer in stem.modules() if isinstance(layer, nn.Conv2d)]
    channels, sides = convs[0].in_channels if convs else 3, images.shape[2:]
    good = images.dim() == 4 and images.shape[1] == channels
    if not good or any(side < 1 or side % multiple for side in sides):
        text = "; x.expand(-1, 3, -1, -1) makes gray ones such" if channels == 3 else ""
        raise ValueError(
            f"expected images (N, {channels}, H, W) whose sides are multiples of {multiple}, "
            f"not {tuple(images.shape)}{text}"
        )
    return images.contiguous(memory_format=torch.channels_last)


class Body(nn.Module):
    """DARTS's network: a stem, cells, and a classifier. The cells at a third and two thirds of the
    depth are reductions: they halve the resolution and double the channels."""

    def __init__(
        self, table, channels, cells, classes, *, derived, imagenet, auxiliary=False, concat=None,
        recompute=False,
    ):  # fmt: skip
        super().__init__()
        if channels % 2 or min(channels, cells, classes) < 1:
            raise ValueError(
                f"channels {channels}, cells {cells}, classes {classes}: they must be at least 1, "
                "and channels even"
            )
        self.recompute, self.multiple = recompute, 32 if imagenet else 4  # of the images' sides
        c = channels if derived and imagenet else 3 * channels  # of the stem, as in DARTS
        self.stem1 = None
        if imagenet:
            half = [*conv3x3(3, c // 2, 2, derived), nn.ReLU(inplace=True)]
            self.stem0 = nn.Sequential(*half, *conv3x3(c // 2, c, 2, derived))
            self.stem1 = nn.Sequential(*conv3x3(c, c, 2, derived))
        else:
            self.stem0 = nn.Sequential(*conv3x3(3, c, 1, derived))
        self.cells, self.kinds = nn.ModuleList(), []
        self.auxiliary, self.auxiliary_at = None, 2 * cells // 3
        c_prev_prev, c_prev, reduction_prev = c, c, imagenet  # stem1 halves like a reduction
        for index in range(cells):
            reduction = index in (cells // 3, 2 * cells // 3)
            kind = "reduce" if reduction else "normal"
            channels *= 2 if reduction else 1
            output_nodes = concat[kind] if concat else range(2, 2 + nodes_in(table[kind]))
            cell = Cell(
                table[kind], output_nodes, c_prev_prev, c_prev, channels, derived, reduction,
                reduction_prev,
            )  # fmt: skip
            self.cells.append(cell)
            self.kinds.append(kind)
            c_prev_prev, c_prev = c_prev, channels * len(output_nodes)
            reduction_prev = reduction
            if auxiliary and index == self.auxiliary_at:
                self.auxiliary = AuxiliaryHead(c_prev, classes, imagenet)
        # The supernet ends like GDAS's code, not like DARTS's: the scale of the last cell's output
        # changes with every draw, and a classifier that reads it as it is does not learn.
        last = [nn.BatchNorm2d(c_prev, track_running_stats=False), nn.ReLU(inplace=True)]
        self.last = nn.Identity() if derived else nn.Sequential(*last)
        self.classifier = nn.Linear(c_prev, classes)
        self.register_buffer("drop_path", torch.zeros(()) if derived else None, persistent=False)

    def run(self, module, *arguments):
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(module, *arguments, use_reentrant=False)
        return module(*arguments)

    def forward(self, images, z):
        """Logits, and in training the auxiliary head's, or None."""
        images = check_images(images, self.stem0, self.multiple)
        drop_path = self.drop_path if self.training else None
        logits_auxiliary = None
        s0 = F.relu_(self.run(self.stem0, images))  # the ReLU with which the next cells would begin
        s1 = s0 if self.stem1 is None else F.relu_(self.run(self.stem1, s0))
        for index, (cell, kind) in enumerate(zip(self.cells, self.kinds)):
            output = self.run(cell, s0, s1, z[kind], drop_path)
            if index + 1 < len(self.cells):  # no cell reads the last output
                output = F.relu_(output)
            s0, s1 = s1, output
            if index == self.auxiliary_at and self.auxiliary is not None and self.training:
                logits_auxiliary = self.auxiliary(s1)
        return self.classifier(self.last(s1).mean((2, 3))), logits_auxiliary


class AuxiliaryHead(nn.Module):
    """DARTS's second classifier after two thirds of the cells."""

    def __init__(self, c, classes, imagenet):
        super().__init__()
        # DARTS's maps have this side here, and its pool has this stride.
        self.side, self.stride = (7, 2) if imagenet else (8, 3)
        layers = [nn.Conv2d(c, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU()]
        layers += [nn.Conv2d(128, 768, 2, bias=False), nn.BatchNorm2d(768), nn.ReLU()]
        if imagenet:  # as published, without the second norm
            layers[4] = nn.Identity()
        self.layers, self.classifier = nn.Sequential(*layers), nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = 5, self.stride
        if x.shape[2:] != (self.side, self.side):
            # F.adaptive_avg_pool2d(x, 2), whose own gradient is not deterministic on CUDA
            kernel = [(side + 1) // 2 for side in x.shape[2:]]
            stride = [max(1, side // 2) for side in x.shape[2:]]
        x = F.avg_pool2d(F.relu(x), kernel, stride)  # (N, C, 2, 2)
        x = x.expand(-1, -1, 2, 2)  # maps of side 1 have one value
        return self.classifier(self.layers(x).flatten(1))


# --------------------------------------------------------------------------------------------------
# 7. The derived network


class Network(nn.Module):
    """The network of a genotype, to be trained from scratch.

    auxiliary: with a second classifier in training. imagenet: a stem of stride 8. ValueError for
    arguments that do not fit.
    """

    def __init__(
        self, genotype: Genotype, channels=36, cells=20, classes=10, auxiliary=True, imagenet=False
    ):
        super().__init__()
        table, self.z = {}, {}
        for kind in ("normal", "reduce"):
            nodes = nodes_of(getattr(genotype, kind))
            table[kind] = []  # kept edges have one operation, others none
            for j, node in enumerate(nodes):
                table[kind] += [[node[i]] if i in node else [] for i in range(j + 2)]
            self.z[kind] = Choice([[(i, 0) for i in sorted(node)] for node in nodes])
        self.body = Body(
            table, channels, cells, classes, derived=True, imagenet=imagenet, auxiliary=auxiliary,
            concat=dict(normal=genotype.normal_concat, reduce=genotype.reduce_concat),
        )  # fmt: skip
        self.to(memory_format=torch.channels_last)

    def set_drop_path(self, rate: float) -> None:
        """The share of images that lose the output of an operation in training: 0 at first.

        It is a buffer, so a compiled or captured network stays as it is.
        """
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path is {rate}; it must be at least 0 and below 1")
        self.body.drop_path.fill_(rate)

    def forward(self, images: Tensor) -> tuple:
        """Logits (N, classes) of images (N, 3, H, W) and, in training, the auxiliary head's.

        The second is None in evaluation or without an auxiliary head.
        """
        return self.body(images, self.z)


# --------------------------------------------------------------------------------------------------
# 8. Search spaces: for each cell type, the operations on each edge, here 14


def parse(text):
    """Op names edge by edge, from R-DARTS's shorthand "skip,dil3 max,avg ..."."""
    short = dict(skip="skip_connect", max="max_pool_3x3", avg="avg_pool_3x3", sep3="sep_conv_3x3")
    short |= dict(dil3="dil_conv_3x3", dil5="dil_conv_5x5")
    return tuple(tuple(short[op] for op in edge.split(",")) for edge in text.split())


S0 = (tuple(op for op in PRIMITIVES if op != "noise"),) * 14  # no `none`: two inputs a node, Eq. 1
S1_NORMAL = parse(
    "skip,dil3 skip,dil5  skip,dil5 skip,sep3 skip,dil3  max,skip skip,sep3 skip,sep3 skip,dil3 "
    "skip,sep3 max,skip skip,dil3 dil3,dil5 dil3,dil5"
)
S1_REDUCE = parse(
    "max,avg max,dil3  max,avg max,avg skip,dil5  max,avg max,sep3 skip,dil3 skip,dil5 "
    "max,avg max,avg skip,dil5 skip,dil5 skip,dil5"
)
S2 = parse("skip,sep3") * 14
S4 = (("noise", "sep_conv_3x3"),) * 14
SPACES = {
    "darts": dict(normal=S0, reduce=S0),
    "s1": dict(normal=S1_NORMAL, reduce=S1_REDUCE),  # S1 to S4: R-DARTS, src/spaces.py
    "s2": dict(normal=S2, reduce=S2),
    "s3": dict(normal=S2, reduce=S2),  # R-DARTS's S3 is S2 and `none`, which Eq. 1 rules out
    "s4": dict(normal=S4, reduce=S4),
}


# --------------------------------------------------------------------------------------------------
# 9. Several processes (torchrun)


def rank_and_world():
    """The number of this process, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def sum_over_processes(parameters: list, losses: Tensor) -> None:
    """Adds up the gradients and the losses of all processes, in one all-reduce.

    A gradient that no process has stays None.
    """
    if rank_and_world()[1] == 1:
        return
    owners = torch.tensor([float(p.grad is not None) for p in parameters]).to(losses)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    tensors = [*grads, owners, losses]
    buffer = torch.cat([t.flatten() for t in tensors])
    torch.distributed.all_reduce(buffer)
    for t, total in zip(tensors, buffer.split([t.numel() for t in tensors])):
        t.copy_(total.view(t.shape))  # in the strides of t
    for p, grad, count in zip(parameters, grads, owners.tolist()):
        p.grad = grad if count > 0 else None


def shared_generator(device) -> torch.Generator:
    """A CPU generator with a seed from torch's own, in all processes that of rank 0."""
    seed = torch.randint(2**62, (), device="cpu").to(device)
    if rank_and_world()[1] > 1:
        torch.distributed.broadcast(seed, 0)
    return torch.Generator().manual_seed(seed.item())


if __name__ == "__main__":
    import sys

    try:
        import train
    except ModuleNotFoundError as error:
        sys.exit(f"rome.py: {error.name} is missing: the search is train.py, with its neighbours")
    sys.exit(train.main(["search", *sys.argv[1:]]))
