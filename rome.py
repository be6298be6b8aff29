"""
ROME: architecture search with one sampled sub-network in memory, however many its supernet holds.

An independent implementation of Wang et al., "ROME: Robustifying Memory-Efficient NAS via Topology Disentanglement and
Gradient Accumulation", ICCV 2023, https://arxiv.org/abs/2011.11233: the method and its networks, on torch alone.
Equation numbers are the paper's. docs/companion.md lists what the paper leaves open and what we chose.

A sub-network z is drawn in two separate parts (topology disentanglement):
    B_ij, which two inputs i the node j keeps, from the logits beta,        by Gumbel-Top2;
    A_ij, which operation runs on the edge from i to j, from alpha,         by Gumbel-Softmax.
A step runs K sub-networks (gradient accumulation): alpha and beta descend the mean of the K gradients, the weights
their sum.

    python rome.py --quick                              # a small search, no download (this needs train.py)
    python rome.py --space darts --dataset cifar10      # the paper's search

Or copy this file and write the loop yourself:

    net = rome.Supernet("darts", channels=16, cells=8, classes=10)
    architect = rome.Architect(net, samples=7)
    adam = torch.optim.Adam(net.architecture_parameters(), 3e-4, (0.5, 0.999), weight_decay=1e-3)
    sgd = torch.optim.SGD(net.weights(), 0.05, 0.9, weight_decay=3e-4)
    for (x_s, y_s), (x_t, y_t) in zip(architecture_half, weight_half):
        architect.architecture_step(x_s, y_s, tau, adam)     # Eq. 11
        architect.weight_step(x_t, y_t, tau, sgd)            # Eq. 12
    print(net.genotype())                                    # argmax of p(z; alpha, beta), Eq. 9

1 Sampling   2 Algorithm 1   3 The supernet   4 DARTS   5 NAS-Bench-201   6 NAS-Bench-1Shot1   7 The derived network
"""

import itertools
import math
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MEMORY_FORMAT = torch.channels_last  # of images and weights

# ----------------------------------------------------------------------------------------------------------------------
# 1. Sampling: z = (A, B)


def gumbel_noise(size, generator: torch.Generator | None = None) -> Tensor:
    """Gumbel(0, 1) noise on the generator's device: -log E, where E = -log u is exponentially distributed."""
    exponential = torch.empty(size, device=generator.device if generator else "cpu").exponential_(generator=generator)
    return -exponential.clamp_min(torch.finfo(exponential.dtype).tiny).log()


def gumbel_top_k(logits: Tensor, k: int, tau: float, noise: Tensor) -> Tensor:
    """Draws k of n entries without replacement: a k-hot vector over the last dimension.

    k = 1 draws the operation of an edge (Eq. 2, 3), k = 2 the inputs of a node (Eq. 7, 8). Forward the entries are
    exactly 0 or 1, backward they are the softmax at temperature tau (straight-through).
    logits: (n,) or (rows, n). noise: Gumbel noise of the same shape, or with K in front for K draws. ValueError for a k
    or tau that does not fit.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"cannot draw {k} of {logits.shape[-1]} entries without replacement")
    if not torch.finfo(torch.float32).tiny <= tau < math.inf:
        raise ValueError(f"tau is {tau}; it must be a positive number, at least 1.2e-38")
    scores = F.log_softmax(logits, -1) + noise
    top = scores.detach().topk(k, -1)
    relaxed = F.softmax((scores - top.values[..., :1]) / tau, -1)  # Eq. 3, 7; scores / tau alone might overflow
    hard = torch.zeros_like(relaxed).scatter(-1, top.indices, 1.0)  # Eq. 2, 8
    return hard + (relaxed - relaxed.detach())


def choose_pair(beta: Tensor, holds: Tensor, tau: float, noise: Tensor) -> Tensor:
    """v1: B of a node (..., n) from a logit per pair of inputs. holds: (pairs, n), 1 where a pair has the input.

    Where a node keeps k inputs, and k is not 2, a "pair" is a set of k inputs.
    """
    pair = gumbel_top_k(beta, 1, tau, noise)  # Eq. 4, 5
    return (pair[..., None] * holds).sum(-2)  # Eq. 6


def log_p_inputs(topology: str, beta: Tensor, n: int, inputs: tuple, exact: bool) -> Tensor:
    """log p(e; beta): the probability that a node keeps these of its n possible inputs.

    In v2, with p = softmax(beta), Eq. 9 as printed gives p_i p_k. This does not sum to 1 over pairs. `exact` gives the
    probability of drawing i and k without replacement, in either order: p_i p_k (1 / (1 - p_i) + 1 / (1 - p_k)).
    """
    log_p = F.log_softmax(beta, -1)
    if topology == "v1":
        return log_p[list(itertools.combinations(range(n), len(inputs))).index(inputs)]
    if not exact:
        return log_p[list(inputs)].sum()
    orders = []
    for order in itertools.permutations(inputs):
        log_order = log_p[list(order)].sum()
        for drawn in range(len(order)):
            left = [i for i in range(n) if i not in order[:drawn]]
            log_order = log_order - log_p[left].logsumexp(-1)
        orders.append(log_order)
    return torch.stack(orders).logsumexp(-1)


class Choice(NamedTuple):
    """What the cells of one type run. A row of alpha is an edge (in NAS-Bench-1Shot1 a node).

    A and B carry the gradient to alpha and beta; without them (None) the forward pass is the same.
    """

    inputs: list  # per node: the inputs that it keeps, ascending
    ops: list  # per row: the number of the operation
    B: Tensor | None = None  # (edges,): 1 where the edge is kept, else 0
    A: Tensor | None = None  # (rows,): the entry of the drawn operation, 1


# ----------------------------------------------------------------------------------------------------------------------
# 2. Algorithm 1


class Architect:
    """The two steps of Algorithm 1. Each runs K sub-networks one after the other and adds up their gradients.

    samples: K, or (K of the architecture step, K of the weight step). clip, architecture_clip: bound on the L2 norm of
    the whole gradient of the weights, or of alpha and beta; None or 0: no bound. generator: a torch.Generator, or a
    function (role, k) that returns one, role being "architecture" or "weights". autocast: torch.bfloat16 for mixed
    precision; gradients are not scaled, as float16 would need. After a step `gradient_norm` is the norm before the
    clip. Parameters that you froze stay frozen.
    """

    def __init__(
        self, net, samples=7, clip=5.0, generator=None, *, architecture_clip=None, architecture_reduction="mean",
        weight_reduction="sum", autocast=None,
    ):  # fmt: skip
        self.samples = (samples, samples) if isinstance(samples, int) else tuple(samples)
        if min(self.samples) < 1:
            raise ValueError(f"samples is {samples}; it must be at least 1")
        if not {architecture_reduction, weight_reduction} <= {"mean", "sum"}:
            raise ValueError("a reduction is mean or sum")
        self.net, self.generator, self.autocast = net, generator, autocast
        self.architecture_clip, self.clip = architecture_clip, clip
        self.architecture_reduction, self.weight_reduction = architecture_reduction, weight_reduction
        self.gradient_norm = None

    def architecture_step(self, images: Tensor, labels: Tensor, tau: float, optimizer) -> Tensor:
        """Eq. 11: alpha and beta move along the mean gradient of K sub-networks. Returns the mean loss, 0-dim."""
        parameters = [p for p in self.net.architecture_parameters() if p.requires_grad]
        archs = self._sample("architecture", self.samples[0], tau)
        # The K sub-networks were drawn in one graph. The gradient of each loss stops at its own A and B, the gates,
        # which frees its activations. Then one backward pass goes on from all gates to alpha and beta.
        gates, gradients, losses = [], [], []
        with frozen(self.net.weights()):
            for arch in archs:
                loss = self._loss(images, labels, arch)
                losses.append(loss.detach())
                loss = loss / len(archs) if self.architecture_reduction == "mean" else loss
                its_gates = [gate for z in arch.values() for gate in (z.B, z.A) if gate.requires_grad]
                gradients += torch.autograd.grad(loss, its_gates, materialize_grads=True)
                gates += its_gates
        for p in parameters:  # Adam moves all entries of alpha and beta in every step
            p.grad = torch.zeros_like(p)
        torch.autograd.backward(gates, gradients)
        return self._update(parameters, losses, self.architecture_clip, optimizer)

    def weight_step(self, images: Tensor, labels: Tensor, tau: float, optimizer) -> Tensor:
        """Eq. 12: the weights move along the summed gradient of K sub-networks, clipped once. Returns the mean loss.

        An operation that no sub-network ran keeps the gradient None: neither momentum nor decay moves its weights.
        """
        parameters, losses = self.net.weights(), []
        for p in parameters:
            p.grad = None
        with torch.no_grad():
            archs = self._sample("weights", self.samples[1], tau)
        for arch in archs:  # without A and B
            loss = self._loss(images, labels, {kind: Choice(z.inputs, z.ops) for kind, z in arch.items()})
            losses.append(loss.detach())
            loss = loss / len(archs) if self.weight_reduction == "mean" else loss
            loss.backward()  # adds to .grad, and frees this sub-network
        return self._update(parameters, losses, self.clip, optimizer)

    def _sample(self, role: str, count: int, tau: float) -> list:
        generators = [self.generator(role, k) if callable(self.generator) else self.generator for k in range(count)]
        return self.net.sample_many(tau, generators)

    def _loss(self, images: Tensor, labels: Tensor, arch: dict) -> Tensor:
        with nullcontext() if self.autocast is None else torch.autocast(images.device.type, self.autocast):
            return F.cross_entropy(self.net(images, arch), labels)

    def _update(self, parameters: list, losses: list, clip: float | None, optimizer) -> Tensor:
        loss = average_over_ranks(parameters, torch.stack(losses).mean())
        self.gradient_norm = nn.utils.clip_grad_norm_(parameters, clip or math.inf).detach()
        optimizer.step()
        return loss


@contextmanager
def frozen(parameters: list):
    """Inside, no gradient is computed for these parameters."""
    before = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p, requires_grad in zip(parameters, before):
            p.requires_grad_(requires_grad)


def average_over_ranks(parameters: list, loss: Tensor) -> Tensor:
    """Averages gradients and loss over the processes of torch.distributed, if any, in one all-reduce.

    A gradient that no process has stays None.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return loss
    present = torch.tensor([float(p.grad is not None) for p in parameters]).to(loss)
    grads = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
    buffer = torch.cat([*grads, present, loss[None]]) / torch.distributed.get_world_size()
    torch.distributed.all_reduce(buffer)
    *grads, present, loss = buffer.split([*map(len, grads), len(present), 1])
    for p, grad, share in zip(parameters, grads, present.tolist()):
        if share > 0:
            p.grad = torch.empty_like(p) if p.grad is None else p.grad
            p.grad.copy_(grad.view_as(p))  # keeps its memory format, which fused optimizers compare with the weight's
    return loss[0]


# ----------------------------------------------------------------------------------------------------------------------
# 3. The supernet


class Space(NamedTuple):
    """A search space: node j keeps picks[j] of candidates[j] inputs; ops maps a cell type to its rows of op names.

    The inputs of a node are the cell's inputs (darts: two, else one) and all nodes before it, so candidates is
    (2, 3, ...) or (1, 2, ...). A row of ops, like one of alpha, belongs to an edge: first the edges into the first
    node, by their input, then those into the second. In the family "1shot1" it belongs to a node; there the last node
    is the cell's output, which has no row. All rows have as many ops.
    """

    family: str
    candidates: tuple
    picks: tuple
    ops: dict


class Supernet(nn.Module):
    """All candidate operations of a space, and alpha and beta. A forward pass runs one sub-network.

    space: a name in SPACES, or a Space. cells: in all; for nb201 per stage. topology: "v2" (a logit per edge), "v1" (a
    logit per pair of inputs), "none" (every edge: GDAS). recompute: the backward pass computes each cell again, for
    memory. imagenet: a stem of stride 8. ValueError for arguments that do not fit.

    `alpha` and `beta` are parameters by cell type: alpha (rows, ops), beta flat, node by node, empty for "none".
    """

    def __init__(
        self, space="darts", channels=16, cells=8, classes=10, topology="v2", recompute=False, *, imagenet=False
    ):
        super().__init__()
        if isinstance(space, str) and space not in SPACES:
            raise ValueError(f"no space {space!r}; there are {', '.join(SPACES)}")
        if topology not in ("v2", "v1", "none"):
            raise ValueError(f"no topology {topology!r}; there are v2, v1, none")
        self.space, self.topology = SPACES[space] if isinstance(space, str) else space, topology
        self.family = check_space(self.space)
        if topology == "none" and not self.family.ops_on_edges:
            raise ValueError("a 1shot1 cell cannot be derived without topology parameters; use topology v2 or v1")
        self.body = self.family(self.space.ops, channels, cells, classes, recompute=recompute, imagenet=imagenet)
        keeps = self.space.candidates if topology == "none" else self.space.picks
        firsts = itertools.accumulate(self.space.candidates, initial=0)
        self.nodes = list(zip(firsts, self.space.candidates, keeps))  # a node's first edge, its inputs, those it keeps
        self.sizes = [dict(v2=n, v1=math.comb(n, k), none=0)[topology] for _, n, k in self.nodes]  # of beta, by node
        self.alpha, self.beta = nn.ParameterDict(), nn.ParameterDict()
        for kind, rows in self.space.ops.items():
            self.alpha[kind] = 1e-3 * torch.randn(len(rows), len(rows[0]))
            if topology != "none":
                self.beta[kind] = 1e-3 * torch.randn(sum(self.sizes))
        for j, (_, n, k) in enumerate(self.nodes if topology == "v1" else ()):  # constants of Eq. 6
            holds = [[float(i in pair) for i in range(n)] for pair in itertools.combinations(range(n), k)]
            self.register_buffer(f"holds{j}", torch.tensor(holds), persistent=False)
        self.to(memory_format=MEMORY_FORMAT)

    def architecture_parameters(self) -> list:
        """alpha and beta."""
        return [*self.alpha.values(), *self.beta.values()]

    def weights(self) -> list:
        """All other parameters, the paper's theta."""
        return list(self.body.parameters())

    def beta_by_node(self, kind: str):
        """The logits of the inputs (v2) or of the pairs of inputs (v1) of each node."""
        return self.beta[kind].split(self.sizes)

    def forward(self, images: Tensor, arch: dict) -> Tensor:
        """Logits (N, classes) of the sub-network `arch` on images (N, 3, H, W); H and W are multiples of 4
        (ImageNet's stem: of 32)."""
        return self.body(images.contiguous(memory_format=MEMORY_FORMAT), arch)[0]

    def sample(self, tau: float, generator: torch.Generator | None = None) -> dict:
        """A sub-network z: cell type -> Choice. All cells of a type share it."""
        return self.sample_many(tau, [generator])[0]

    def sample_many(self, tau: float, generators: list) -> list:
        """K sub-networks, one per generator, with one copy from the device to the host for all of them."""
        counts = [alpha.numel() + sum(self.sizes) for alpha in self.alpha.values()]  # of logits, by cell type
        noise = torch.stack([gumbel_noise(sum(counts), generator) for generator in generators])  # (K, logits)
        alpha = next(iter(self.alpha.values()))
        noise = noise.to(alpha.device, alpha.dtype, non_blocking=alpha.is_cuda)
        drawn = [self._draw(kind, tau, part) for kind, part in zip(self.alpha, noise.split(counts, 1))]
        # In one row of floats, for a single copy: the ops' numbers of all rows, then 0 or 1 for all edges.
        picked = [torch.cat([ops, B.detach()], 1) for B, _, ops in drawn]
        picked = torch.cat(picked, 1).cpu().split([part.shape[1] for part in picked], 1)  # the one wait for the device
        archs = [{} for _ in generators]
        for kind, (B, A, _), rows in zip(self.alpha, drawn, picked):
            for arch, its_B, its_A, row in zip(archs, B, A, rows):
                ops, *kept = row.split([len(its_A), *self.space.candidates])
                inputs = [node.nonzero()[:, 0].tolist() for node in kept]
                arch[kind] = Choice(inputs, ops.long().tolist(), its_B, its_A)
        return archs

    def _draw(self, kind: str, tau: float, noise: Tensor) -> tuple:
        """B (K, edges), A (K, rows) and the operations' numbers (K, rows), from noise (K, logits of the cell type)."""
        alpha = self.alpha[kind]
        noise_alpha, *noise_beta = noise.split([alpha.numel(), *self.sizes], 1)
        A = gumbel_top_k(alpha, 1, tau, noise_alpha.unflatten(1, alpha.shape))  # Eq. 2, 3: (K, rows, ops)
        A, ops = A.max(-1)  # the drawn entry, with its gradient, and its number
        if self.topology == "none":  # GDAS runs every edge
            return A.new_ones(len(A), sum(self.space.candidates)), A, ops
        B = []
        for j, (beta, noise_j) in enumerate(zip(self.beta_by_node(kind), noise_beta)):
            if self.topology == "v2":
                B.append(gumbel_top_k(beta, self.space.picks[j], tau, noise_j))  # Eq. 1, 7, 8
            else:
                B.append(choose_pair(beta, getattr(self, f"holds{j}"), tau, noise_j))  # Eq. 1, 4 to 6
        return torch.cat(B, 1), A, ops

    @torch.no_grad()
    def genotype(self, rule: str = "joint"):
        """The derived cell, argmax p(z; alpha, beta) of Eq. 9, taken node by node.

        rule: "joint", p(e) p(o|e) as Eq. 9 is printed; "exact", with the true p(e); "sequential", the inputs by beta
        alone, then the operations. topology "none": the inputs with the most probable operations, DARTS's rule (nb201:
        every edge), whatever the rule.
        """
        if rule not in ("joint", "exact", "sequential"):
            raise ValueError(f"no derivation rule {rule!r}; there are joint, exact, sequential")
        cells = {}
        for kind, alpha in self.alpha.items():
            inputs, ops = [], alpha.argmax(-1).tolist()
            scored = None if rule == "sequential" and self.topology != "none" else ops
            for j, (_, n, k) in enumerate(self.nodes):
                if self.topology == "none" and not self.family.gdas_keeps_all_edges:
                    k = self.space.picks[j]  # the derived cell has fewer edges than GDAS runs
                subsets = itertools.combinations(range(n), k)
                best = max(subsets, key=lambda subset: self._log_p(kind, j, subset, scored, rule == "exact"))
                inputs.append(list(best))
            cells[kind] = Choice(inputs, ops)
        return self.cell(cells)

    def log_prob(self, genotype, exact: bool = False) -> Tensor:
        """log p(genotype; alpha, beta), 0-dim: Eq. 9 as printed, or with the true p(e) (`exact`).

        ValueError for topology "none", which has no p(e), and for a genotype outside the space.
        """
        if self.topology == "none":
            raise ValueError('topology "none" keeps every edge: p(z) of Eq. 9 needs beta')
        terms = []
        for kind, z in self.architecture(genotype).items():
            terms += [self._log_p(kind, j, inputs, z.ops, exact) for j, inputs in enumerate(z.inputs)]
        return torch.stack(terms).sum()

    def _log_p(self, kind: str, j: int, inputs, ops: list | None, exact: bool) -> Tensor:
        """log p(e) p(o|e) of node j: of its inputs, and of the operations on them. Without `ops`, log p(e) alone."""
        first, n, _ = self.nodes[j]
        log_alpha = F.log_softmax(self.alpha[kind], -1)
        log_p = log_alpha.new_zeros(())
        if self.topology != "none":
            log_p = log_p_inputs(self.topology, self.beta_by_node(kind)[j], n, tuple(inputs), exact)
        rows = [first + i for i in inputs] if self.family.ops_on_edges else [j]
        for row in rows if ops else ():
            if row < len(ops):  # the output node of 1shot1 has no operation
                log_p = log_p + log_alpha[row, ops[row]]
        return log_p

    def architecture(self, genotype) -> dict:
        """The genotype as a sub-network without A and B; its `concat` is ignored. ValueError outside the space."""
        if family_of(genotype) is not self.family:
            raise ValueError(f"{genotype} is not a cell of this space")
        arch = {}
        for kind, (inputs, names) in self.family.decode(genotype).items():
            rows = self.space.ops[kind]
            good = len(inputs) == len(self.nodes) and len(names) == len(rows)
            for kept, pick, (_, n, k) in zip(inputs, self.space.picks, self.nodes):
                good = good and len(kept) in (k, pick) and len(set(kept)) == len(kept) and set(kept) <= set(range(n))
            if not good or any(name and name not in row for name, row in zip(names, rows)):
                raise ValueError(f"the {kind} cell of {genotype} is not in this space")
            ops = [row.index(name) if name else 0 for name, row in zip(names, rows)]  # 0 where no edge is kept
            arch[kind] = Choice(inputs, ops)
        return arch

    def cell(self, arch: dict):
        """The genotype of a sub-network."""
        cells = {}
        for kind, z in arch.items():
            cells[kind] = z.inputs, [row[op] for row, op in zip(self.space.ops[kind], z.ops)]
        return self.family.encode(cells)


def check_space(space: Space):
    """The family of a space. ValueError if its fields do not fit together."""
    if space.family not in FAMILIES:
        raise ValueError(f"no family {space.family!r}; there are {', '.join(FAMILIES)}")
    family = FAMILIES[space.family]
    candidates = [family.cell_inputs + j for j in range(len(space.picks))]
    if list(space.candidates) != candidates or not all(1 <= k <= n for k, n in zip(space.picks, candidates)):
        raise ValueError(f"candidates must be {candidates}, and each of picks from 1 to its candidates")
    rows = sum(candidates) if family.ops_on_edges else len(candidates) - 1
    good = set(space.ops) == set(family.kinds)
    for ops in space.ops.values():
        good = good and len(ops) == rows and len(set(map(len, ops))) == 1 and all(ops)
    if not good:
        raise ValueError(f"ops must have {rows} rows of as many op names for each cell type: {', '.join(family.kinds)}")
    inputs = [list(range(k)) for k in space.picks]
    cell = {kind: (inputs, [row[0] for row in ops]) for kind, ops in space.ops.items()}
    family.decode(family.encode(cell))  # ValueError where such a cell has no genotype
    return family


class Body(nn.Module):
    """A network of cells with one or more operations in every row; `forward(images, arch)` runs one operation per row.

    The supernet uses it with all candidates, the derived network with one per row. `affine` says that this is the
    derived network: its batch norms have scale, shift and running statistics, its pools no norm, its operations drop
    path, and ImageNet's stem has a third of the channels, as in DARTS. A family of spaces is a subclass, with `encode`
    and `decode` between its genotypes and {cell type: (inputs per node, op name or None per row)}. Its constructor gets
    `ops`, the rows of op names by cell type.
    """

    primitives: dict  # op name -> constructor(channels, stride, affine) of a module
    kinds: tuple  # cell types
    cell_inputs = 1  # inputs of a cell, which come before its nodes
    ops_on_edges = True  # or on nodes
    gdas_keeps_all_edges = False  # in the cell that GDAS derives

    def __init__(self, channels: int, cells: int, classes: int, affine: bool, recompute: bool, imagenet: bool):
        super().__init__()
        numbers = dict(channels=channels, cells=cells, classes=classes)
        if any(type(number) is not int or number < 1 for number in numbers.values()) or channels % 2:
            raise ValueError(f"{numbers}: they must be positive whole numbers, and channels even")
        if imagenet and not isinstance(self, DartsBody):
            raise ValueError("the ImageNet stem belongs to the DARTS spaces")
        self.affine, self.recompute = affine, recompute

    def operations(self, rows, c: int, strides=None) -> nn.ModuleList:
        """The operations of every row."""
        strides = strides or [1] * len(rows)
        return nn.ModuleList(nn.ModuleList(self._make(op, c, s) for op in row) for row, s in zip(rows, strides))

    def _make(self, name: str, c: int, stride: int) -> nn.Module:
        if name not in self.primitives:
            raise ValueError(f"no op is called {name!r}; there are {', '.join(self.primitives)}")
        op = self.primitives[name](c, stride, self.affine)
        op = op if isinstance(op, Op) else Op(op)
        return DropPath(op) if self.affine and not isinstance(op.layers, nn.Identity) else op

    def conv3x3(self, c_in: int, c: int, stride: int = 1) -> list:
        """A convolution and a batch norm, which is affine in the supernet too."""
        conv = nn.Conv2d(c_in, c, 3, stride, 1, bias=False)
        return [conv, nn.BatchNorm2d(c, track_running_stats=self.affine)]

    def run(self, cell: nn.Module, *arguments) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(cell, *arguments, use_reentrant=False)
        return cell(*arguments)


# ----------------------------------------------------------------------------------------------------------------------
# 4. DARTS: the spaces S0 to S4. First the operations, of which the other two families use some


class Norm(nn.BatchNorm2d):
    """Batch norm times a gate. In the supernet (not `affine`) it has no state, and always the batch's statistics.

    The derived network (`affine`) has no gates.
    """

    def __init__(self, c: int, affine: bool):
        super().__init__(c, affine=affine, track_running_stats=affine)
        if not affine:
            self.register_buffer("one", torch.ones(c), persistent=False)
            self.register_buffer("zero", torch.zeros(c), persistent=False)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        if self.affine:
            return super().forward(x)
        # On CUDA only a batch norm with scale and shift goes through cuDNN, in one kernel in place of several.
        scale = self.one if gate is None else gate
        return F.batch_norm(x, None, None, scale, self.zero, training=True, eps=self.eps)


class Op(nn.Module):
    """A candidate operation: gate * norm(layers(x)).

    gate: (C,) copies of A_ij B_ij, or None. The norm applies it as its scale, so the product needs no memory.
    rectified: x is relu(input), which a cell computes once for all operations that want it.
    """

    def __init__(self, layers: nn.Module, norm: Norm | None = None, rectified: bool = False):
        super().__init__()
        self.layers, self.norm, self.rectified = layers, norm, rectified

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        x = self.layers(x)
        return scaled(x, gate) if self.norm is None else self.norm(x, gate)


def scaled(x: Tensor, gate: Tensor | None) -> Tensor:
    return x if gate is None else x * gate.view(-1, 1, 1).to(x.dtype)  # in mixed precision x stays in 16 bits


def conv_norm(c_in: int, c: int, kernel: int, affine: bool, stride: int = 1) -> Op:
    return Op(nn.Conv2d(c_in, c, kernel, stride, kernel // 2, bias=False), Norm(c, affine), rectified=True)


def separable_conv(c: int, stride: int, affine: bool, kernel: int, dilation: int = 1, repeats: int = 1) -> Op:
    """(depthwise, 1x1, norm) once (dil_conv) or twice with a ReLU between (sep_conv)."""
    layers = []
    for step in (stride, 1)[:repeats]:
        layers += [nn.ReLU(inplace=True)] if layers else []
        layers += [DepthwiseConv(c, kernel, step, dilation), nn.Conv2d(c, c, 1, bias=False), Norm(c, affine)]
    return Op(nn.Sequential(*layers[:-1]), layers[-1], rectified=True)


def pool(kind: str, stride: int, norm: Norm | None = None) -> Op:
    return Op(nn.MaxPool2d(3, stride, 1) if kind == "max" else AvgPool(stride), norm)


class AvgPool(nn.Module):
    """3x3 averages without the padding. On CUDA they are computed in NCHW: there torch's backward kernel forgets the
    padding of channels-last images, in float32 and bfloat16 (pytorch#188344; torch 2.6 to 2.13 at least)."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cuda":
            return F.avg_pool2d(x, 3, self.stride, 1, count_include_pad=False)
        x = x.clone(memory_format=torch.contiguous_format)  # .contiguous() keeps the strides of maps of side 1
        return F.avg_pool2d(x, 3, self.stride, 1, count_include_pad=False).contiguous(memory_format=MEMORY_FORMAT)


def factorized_reduce(c_in: int, c: int, affine: bool) -> Op:
    return Op(FactorizedReduce(c_in, c), Norm(c, affine), rectified=True)


class FactorizedReduce(nn.Module):
    """Half the resolution, by two 1x1 convolutions: of the even pixels and of the odd ones."""

    def __init__(self, c_in: int, c: int):
        super().__init__()
        self.even, self.odd = nn.Conv2d(c_in, c // 2, 1, bias=False), nn.Conv2d(c_in, c // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.even(every_second(x)), self.odd(every_second(x, 1))], 1)


class DepthwiseConv(nn.Conv2d):
    """Stride 2 with dilation 2 runs as an undilated convolution of every second pixel (else a CPU takes 1.2 times as
    long for a pass)."""

    def __init__(self, c: int, kernel: int, stride: int, dilation: int):
        self.thinned = stride == dilation == 2
        stride, dilation = (1, 1) if self.thinned else (stride, dilation)
        super().__init__(c, c, kernel, stride, dilation * (kernel // 2), dilation, groups=c, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(every_second(x) if self.thinned else x)


def every_second(x: Tensor, start: int = 0) -> Tensor:
    """Every second pixel of each side. Channels-last, also the gradient (else a CPU takes 1.11 times as long)."""
    return x.permute(0, 2, 3, 1)[:, start::2, start::2].permute(0, 3, 1, 2)


class Noise(nn.Module):
    """Fresh N(0, 1) in place of the input (S4)."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.randn_like(x[:, :, :: self.stride, :: self.stride])


# Name -> function (channels, stride, affine) that makes an operation, (N, C, H, W) -> (N, C, H / stride, W / stride).
# affine: for the derived network. To add an operation, add an entry: it makes any module, whose output is multiplied
# by the gate, or an Op with a Norm, whose scale the gate is, which saves memory. An Op with rectified=True receives
# relu(x), so it needs no ReLU at its beginning. No operation writes to its input, which other edges read.
PRIMITIVES = {
    "max_pool_3x3": lambda c, stride, affine: pool("max", stride, None if affine else Norm(c, affine)),
    "avg_pool_3x3": lambda c, stride, affine: pool("avg", stride, None if affine else Norm(c, affine)),
    "skip_connect": lambda c, stride, affine: Op(nn.Identity()) if stride == 1 else factorized_reduce(c, c, affine),
    "sep_conv_3x3": lambda c, stride, affine: separable_conv(c, stride, affine, 3, repeats=2),
    "sep_conv_5x5": lambda c, stride, affine: separable_conv(c, stride, affine, 5, repeats=2),
    "dil_conv_3x3": lambda c, stride, affine: separable_conv(c, stride, affine, 3, dilation=2),
    "dil_conv_5x5": lambda c, stride, affine: separable_conv(c, stride, affine, 5, dilation=2),
    "noise": lambda c, stride, affine: Op(Noise(stride)),
}


def add_nodes(states: list, edges: nn.ModuleList, z: Choice, c: int) -> list:
    """A cell's inputs and, behind them, its nodes: x_j = sum of A_ij B_ij o_ij(x_i) over the inputs i that j keeps."""
    gates = per_channel(None if z.A is None else z.A * z.B, len(edges), c)
    rectified = {}  # input -> its ReLU
    first = 0  # the node's first edge
    for inputs in z.inputs:
        terms = []
        for i in inputs:
            op = edges[first + i][z.ops[first + i]]
            if op.rectified and i not in rectified:
                rectified[i] = F.relu(states[i])
            terms.append(op(rectified[i] if op.rectified else states[i], gates[first + i]))
        first += len(states)
        # A genotype of NAS-Bench-201 may have a node without inputs.
        states.append(sum(terms[1:], terms[0]) if terms else torch.zeros_like(states[-1]))
    return states


def per_channel(gates: Tensor | None, count: int, c: int):
    """Each gate as (C,) copies; without gates `count` times None."""
    return [None] * count if gates is None else gates[:, None].repeat(1, c).unbind()


class DartsCell(nn.Module):
    """Reads the two cells before, which the body has rectified; its output concatenates the nodes."""

    def __init__(self, edges, concat, c_prev_prev, c_prev, c, affine, reduction_prev):
        super().__init__()
        before = factorized_reduce(c_prev_prev, c, affine) if reduction_prev else conv_norm(c_prev_prev, c, 1, affine)
        self.preprocess0, self.preprocess1, self.edges = before, conv_norm(c_prev, c, 1, affine), edges
        self.channels, self.concat = c, concat

    def forward(self, s0: Tensor, s1: Tensor, z: Choice) -> Tensor:
        states = add_nodes([self.preprocess0(s0), self.preprocess1(s1)], self.edges, z, self.channels)
        return concatenate([states[i] for i in self.concat])


def concatenate(states: list) -> Tensor:
    """torch.cat over channels, with dense gradients (with its own, slices, a CPU takes 1.2 to 1.3 times as long)."""
    for x in states if not torch.compiler.is_compiling() else ():
        if x.requires_grad:
            x.register_hook(lambda grad: grad.contiguous(memory_format=MEMORY_FORMAT))
    return torch.cat(states, 1)


class DartsBody(Body):
    """DARTS's network, with reduction cells at a third and two thirds of the depth."""

    primitives, kinds, cell_inputs = PRIMITIVES, ("normal", "reduce"), 2

    def __init__(
        self, ops, channels, cells, classes, affine=False, recompute=False, imagenet=False, auxiliary=False,
        concat=None,
    ):  # fmt: skip
        super().__init__(channels, cells, classes, affine, recompute, imagenet)
        c = channels if affine and imagenet else 3 * channels  # of the stem
        if imagenet:
            half = [*self.conv3x3(3, c // 2, 2), nn.ReLU(inplace=True), *self.conv3x3(c // 2, c, 2)]
            self.stem0, self.stem1 = nn.Sequential(*half), nn.Sequential(*self.conv3x3(c, c, 2))
        else:
            self.stem0, self.stem1 = nn.Sequential(*self.conv3x3(3, c)), None
        self.cells, self.kinds_of_cells, self.auxiliary_at = nn.ModuleList(), [], 2 * cells // 3
        c_prev_prev, c_prev, reduction_prev = c, c, imagenet
        for index in range(cells):
            kind = "reduce" if index in (cells // 3, 2 * cells // 3) else "normal"
            channels *= 2 if kind == "reduce" else 1
            strides, states = [], 2  # states: inputs of the cell and nodes so far; a node has an edge from each
            while len(strides) < len(ops[kind]):
                strides += [2 if kind == "reduce" and i < 2 else 1 for i in range(states)]
                states += 1
            edges = self.operations(ops[kind], channels, strides)
            output = concat[kind] if concat else range(2, states)
            self.cells.append(DartsCell(edges, output, c_prev_prev, c_prev, channels, affine, reduction_prev))
            self.kinds_of_cells.append(kind)
            c_prev_prev, c_prev, reduction_prev = c_prev, channels * len(output), kind == "reduce"
            if index == self.auxiliary_at:
                c_auxiliary = c_prev
        self.classifier = nn.Linear(c_prev, classes)
        self.auxiliary = AuxiliaryHead(c_auxiliary, classes, imagenet) if auxiliary else None

    def forward(self, images: Tensor, arch: dict) -> tuple:
        """Logits, and in training the auxiliary head's, or None."""
        s0 = F.relu_(self.run(self.stem0, images))
        s1, auxiliary = s0 if self.stem1 is None else F.relu_(self.run(self.stem1, s0)), None
        for index, (cell, kind) in enumerate(zip(self.cells, self.kinds_of_cells)):
            s0, s1 = s1, self.run(cell, s0, s1, arch[kind])
            if index + 1 < len(self.cells):
                s1 = F.relu_(s1)  # every reader applies a ReLU first
            if index == self.auxiliary_at and self.auxiliary is not None and self.training:
                auxiliary = self.auxiliary(s1)
        return self.classifier(s1.mean((2, 3))), auxiliary

    @staticmethod
    def encode(cells: dict) -> "Genotype":
        pairs = {}
        for kind, (inputs, names) in cells.items():
            if any(len(kept) != 2 for kept in inputs):
                raise ValueError("a DARTS genotype has two inputs per node")
            first, pairs[kind] = 0, []
            for j, kept in enumerate(inputs):
                pairs[kind] += [(names[first + i], i) for i in kept]
                first += 2 + j
        concat = list(range(2, 2 + len(inputs)))
        return Genotype(pairs["normal"], concat, pairs["reduce"], list(concat))

    @staticmethod
    def decode(genotype: "Genotype") -> dict:
        cells = {}
        for kind, pairs in (("normal", genotype.normal), ("reduce", genotype.reduce)):
            nodes = [{i: op for op, i in pairs[j : j + 2]} for j in range(0, len(pairs), 2)]
            if any(len(node) != 2 for node in nodes):
                raise ValueError(f"every node of the {kind} cell needs two different inputs: {pairs}")
            names = [node.get(i) for j, node in enumerate(nodes) for i in range(2 + j)]
            cells[kind] = [sorted(node) for node in nodes], names
        return cells


class Genotype(NamedTuple):
    """A DARTS cell pair: [(op, input), ...] with two entries per node, and the nodes that are output."""

    normal: list
    normal_concat: list
    reduce: list
    reduce_concat: list


class AuxiliaryHead(nn.Module):
    """DARTS's second classifier after two thirds of the cells."""

    def __init__(self, c: int, classes: int, imagenet: bool):
        super().__init__()
        self.size, stride = (7, 2) if imagenet else (8, 3)  # the side of the maps for which DARTS chose its pooling
        self.pool = nn.AvgPool2d(5, stride, count_include_pad=False)
        layers = [nn.Conv2d(c, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 768, 2, bias=False)]
        layers += [nn.ReLU()] if imagenet else [nn.BatchNorm2d(768), nn.ReLU()]  # no norm on ImageNet, as published
        self.layers, self.classifier = nn.Sequential(*layers), nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        x, sides = F.relu(x), x.shape[2:]
        if sides == (self.size, self.size):
            x = self.pool(x)
        else:  # F.adaptive_avg_pool2d(x, 2), whose own gradient is not deterministic on CUDA
            x = F.avg_pool2d(x, [(side + 1) // 2 for side in sides], [side // 2 for side in sides])
        return self.classifier(self.layers(x).flatten(1))


def darts_space(normal: tuple, reduce: tuple) -> Space:
    return Space("darts", (2, 3, 4, 5), (2, 2, 2, 2), {"normal": normal, "reduce": reduce})


def _rows(text: str) -> tuple:
    """Op names edge by edge, from R-DARTS's shorthand "skip,dil3 max,avg ..."."""
    short = dict(skip="skip_connect", max="max_pool_3x3", avg="avg_pool_3x3", sep3="sep_conv_3x3")
    short |= dict(dil3="dil_conv_3x3", dil5="dil_conv_5x5")
    return tuple(tuple(short[op] for op in row.split(",")) for row in text.split())


S0 = (tuple(op for op in PRIMITIVES if op != "noise"),) * 14  # no `none`: every node has two inputs, Eq. 1
S1_NORMAL = _rows(
    "skip,dil3 skip,dil5  skip,dil5 skip,sep3 skip,dil3  max,skip skip,sep3 skip,sep3 skip,dil3 "
    "skip,sep3 max,skip skip,dil3 dil3,dil5 dil3,dil5"
)
S1_REDUCE = _rows(
    "max,avg max,dil3  max,avg max,avg skip,dil5  max,avg max,sep3 skip,dil3 skip,dil5 "
    "max,avg max,avg skip,dil5 skip,dil5 skip,dil5"
)
S2 = (("skip_connect", "sep_conv_3x3"),) * 14
S4 = (("noise", "sep_conv_3x3"),) * 14
SPACES = {
    "darts": darts_space(S0, S0),
    "s1": darts_space(S1_NORMAL, S1_REDUCE),  # S1 to S4: R-DARTS, src/spaces.py
    "s2": darts_space(S2, S2),
    "s3": darts_space(S2, S2),  # R-DARTS's S3 is S2 and `none`, which Eq. 1 rules out
    "s4": darts_space(S4, S4),
}

# ----------------------------------------------------------------------------------------------------------------------
# 5. NAS-Bench-201: one cell type, and every node may have all nodes before it as inputs


class NB201Cell(nn.Module):
    def __init__(self, edges, c):
        super().__init__()
        self.edges, self.channels = edges, c

    def forward(self, x: Tensor, z: Choice) -> Tensor:
        return add_nodes([x], self.edges, z, self.channels)[-1]


class ResidualBlock(nn.Module):
    """Between two stages: two 3x3 convolutions, the first of stride 2, beside a pooled 1x1 one."""

    def __init__(self, c_in: int, c: int, affine: bool):
        super().__init__()
        self.conv_a, self.conv_b = conv_norm(c_in, c, 3, affine, stride=2), conv_norm(c, c, 3, affine)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(c_in, c, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv_b(F.relu_(self.conv_a(F.relu(x))))


class NB201Body(Body):
    """Three stages of `cells` cells. A genotype is the string |op~0|+|op~0|op~1|+|op~0|op~1|op~2|."""

    primitives = {
        "skip_connect": lambda c, stride, affine: Op(nn.Identity()),
        "nor_conv_1x1": lambda c, stride, affine: conv_norm(c, c, 1, affine),
        "nor_conv_3x3": lambda c, stride, affine: conv_norm(c, c, 3, affine),
        "avg_pool_3x3": lambda c, stride, affine: pool("avg", 1),
    }
    kinds, gdas_keeps_all_edges = ("cell",), True

    def __init__(self, ops, channels, cells, classes, affine=False, recompute=False, imagenet=False):
        super().__init__(channels, cells, classes, affine, recompute, imagenet)
        self.stem, self.stages = nn.Sequential(*self.conv3x3(3, channels)), nn.ModuleList()
        for stage in range(3):
            channels *= 2 if stage else 1
            entry = ResidualBlock(channels // 2, channels, affine) if stage else nn.Identity()
            own = [NB201Cell(self.operations(ops["cell"], channels), channels) for _ in range(cells)]
            self.stages.append(nn.ModuleList([entry, *own]))
        self.norm = nn.BatchNorm2d(channels, track_running_stats=affine)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor, arch: dict) -> tuple:
        x = self.run(self.stem, images)
        for entry, *cells in self.stages:
            x = self.run(entry, x)
            for cell in cells:
                x = self.run(cell, x, arch["cell"])
        return self.classifier(F.relu_(self.norm(x)).mean((2, 3))), None

    @staticmethod
    def encode(cells: dict) -> str:
        inputs, names = cells["cell"]
        first, nodes = 0, []
        for j, kept in enumerate(inputs):
            edges = [f"{names[first + i] if i in kept else 'none'}~{i}|" for i in range(j + 1)]
            nodes.append("|" + "".join(edges))
            first += j + 1
        return "+".join(nodes)

    @staticmethod
    def decode(genotype: str) -> dict:
        nodes = [[edge.split("~")[0] for edge in node.strip("|").split("|")] for node in genotype.split("+")]
        inputs = [[i for i, op in enumerate(node) if op != "none"] for node in nodes]
        cells = {"cell": (inputs, [None if op == "none" else op for node in nodes for op in node])}
        if [len(node) for node in nodes] != [1, 2, 3] or NB201Body.encode(cells) != genotype:
            raise ValueError(f"{genotype!r} is no genotype: expected |op~0|+|op~0|op~1|+|op~0|op~1|op~2|")
        return cells


SPACES["nb201"] = Space("nb201", (1, 2, 3), (1, 2, 2), {"cell": (tuple(NB201Body.primitives),) * 6})

# ----------------------------------------------------------------------------------------------------------------------
# 6. NAS-Bench-1Shot1: the operations are on the nodes


class OneShotGenotype(NamedTuple):
    """An op per node, and the inputs of every node, the output last (0: the cell's input)."""

    ops: tuple
    inputs: tuple


def conv_norm_relu(c_in: int, c: int, kernel: int, affine: bool) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, Norm(c, affine), nn.ReLU(inplace=True))


class OneShotCell(nn.Module):
    """x_j = A_j o_j(sum of B_ij x_i); every node has its own projection of the cell's input, x_0.

    The output concatenates the nodes, zeros for those that it does not keep, and adds its projection of x_0 if it
    keeps x_0.
    """

    def __init__(self, ops, c_in, c, affine):
        super().__init__()
        widths = [c] * len(ops) + [c * len(ops)]
        self.project = nn.ModuleList(conv_norm_relu(c_in, width, 1, affine) for width in widths)
        self.ops, self.channels = ops, c

    def forward(self, x: Tensor, z: Choice) -> Tensor:
        *nodes, output = z.inputs
        A = per_channel(z.A, len(nodes), self.channels)
        B = per_channel(z.B, sum(range(1, len(z.inputs) + 1)), self.channels)
        states, first = [x], 0  # first: the node's first edge
        for j, inputs in enumerate(nodes):
            terms = [scaled(states[i] if i else self.project[j](x), B[first + i]) for i in inputs]
            states.append(self.ops[j][z.ops[j]](sum(terms[1:], terms[0]), A[j]))
            first += j + 1
        blank = x.new_zeros(len(x), self.channels, *x.shape[2:]).contiguous(memory_format=MEMORY_FORMAT)
        kept = [blank if i not in output else scaled(states[i], B[first + i]) for i in range(1, len(states))]
        if 0 not in output:
            return torch.cat(kept, 1)
        gate = None if z.B is None else B[first].repeat(len(nodes))
        return torch.cat(kept, 1) + scaled(self.project[-1](x), gate)


class OneShotBody(Body):
    """Three stacks of cells with a pooling between them."""

    primitives = {
        "maxpool3x3": lambda c, stride, affine: pool("max", 1),
        "conv3x3-bn-relu": lambda c, stride, affine: Op(conv_norm_relu(c, c, 3, affine)),
        "skip-connect": lambda c, stride, affine: Op(nn.Identity()),
        "conv1x1-bn-relu": lambda c, stride, affine: Op(conv_norm_relu(c, c, 1, affine)),  # not searched
    }
    kinds, ops_on_edges = ("cell",), False

    def __init__(self, ops, channels, cells, classes, affine=False, recompute=False, imagenet=False):
        super().__init__(channels, cells, classes, affine, recompute, imagenet)
        self.stem, self.cells = nn.Sequential(*self.conv3x3(3, channels)), nn.ModuleList()
        c_in, rows = channels, ops["cell"]
        for index in range(cells):
            if index > 0 and index in (cells // 3, 2 * cells // 3):
                self.cells.append(nn.MaxPool2d(2, 2, 1))
                channels *= 2
            self.cells.append(OneShotCell(self.operations(rows, channels), c_in, channels, affine))
            c_in = channels * len(rows)
        self.postprocess = conv_norm(c_in, channels, 1, affine)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor, arch: dict) -> tuple:
        x = F.relu_(self.run(self.stem, images))
        for cell in self.cells:
            x = self.run(cell, x, arch["cell"]) if isinstance(cell, OneShotCell) else cell(x)
        return self.classifier(self.postprocess(F.relu(x)).mean((2, 3))), None

    @staticmethod
    def encode(cells: dict) -> OneShotGenotype:
        inputs, names = cells["cell"]
        return OneShotGenotype(tuple(names), tuple(map(tuple, inputs)))

    @staticmethod
    def decode(genotype: OneShotGenotype) -> dict:
        return {"cell": ([sorted(inputs) for inputs in genotype.inputs], list(genotype.ops))}


ONE_SHOT_OPS = tuple(OneShotBody.primitives)
for _name, _picks in {"1": (1, 2, 2, 2, 2), "2": (1, 1, 2, 2, 3), "3": (1, 1, 1, 2, 2, 2)}.items():
    _ops = (ONE_SHOT_OPS[:3],) * (len(_picks) - 1)
    SPACES["1shot1-" + _name] = Space("1shot1", tuple(range(1, 1 + len(_picks))), _picks, {"cell": _ops})
FAMILIES = {"darts": DartsBody, "nb201": NB201Body, "1shot1": OneShotBody}
FAMILY_OF = {Genotype: DartsBody, str: NB201Body, OneShotGenotype: OneShotBody}  # by the type of a genotype

# ----------------------------------------------------------------------------------------------------------------------
# 7. The derived network


def family_of(genotype):
    """The class of the network that a genotype belongs to. ValueError if it is no genotype."""
    if type(genotype) not in FAMILY_OF:
        raise ValueError(f"{genotype!r:.80} is no genotype; genotypes.load reads one from a name, a file or text")
    return FAMILY_OF[type(genotype)]


class DropPath(nn.Module):
    """In training an image loses the output of the operation with probability `rate`; the others are scaled up."""

    def __init__(self, op: Op):
        super().__init__()
        self.op, self.rectified, self.active = op, op.rectified, False
        self.register_buffer("rate", torch.tensor(0.0), persistent=False)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        x = self.op(x, gate)
        if not (self.training and self.active):
            return x
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)


class Network(nn.Module):
    """The network of a genotype, to be trained from scratch.

    cells: in all; for nb201 per stage. auxiliary: a second classifier in training (DARTS alone has one). drop_path: its
    rate, which set_drop_path changes. imagenet: the stem of stride 8. ValueError for arguments that do not fit.
    """

    def __init__(self, genotype, channels=36, cells=20, classes=10, auxiliary=True, drop_path=0.2, imagenet=False):
        super().__init__()
        family, ops, self.arch, settings = family_of(genotype), {}, {}, {}
        for kind, (inputs, names) in family.decode(genotype).items():
            ops[kind] = [() if name is None else (name,) for name in names]
            self.arch[kind] = Choice(inputs, [0] * len(names))
        if family is DartsBody:
            concat = dict(normal=genotype.normal_concat, reduce=genotype.reduce_concat)
            settings = dict(auxiliary=auxiliary, concat=concat)
        self.body = family(ops, channels, cells, classes, affine=True, imagenet=imagenet, **settings)
        self.set_drop_path(drop_path)
        self.to(memory_format=MEMORY_FORMAT)

    def set_drop_path(self, rate: float) -> None:
        """The rate from now on, at least 0 and below 1."""
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path is {rate}; it must be at least 0 and below 1")
        for module in self.modules():
            if isinstance(module, DropPath):
                module.rate.fill_(rate)
                module.active = rate > 0

    def forward(self, images: Tensor) -> tuple:
        """Logits (N, classes) and, in training with an auxiliary head, its logits; else None."""
        return self.body(images.contiguous(memory_format=MEMORY_FORMAT), self.arch)


if __name__ == "__main__":
    import sys

    try:
        import train
    except ModuleNotFoundError as error:
        sys.exit(f"rome.py: {error.name} is missing: the search program is train.py, with genotypes.py and torchvision")
    sys.exit(train.main(["search", *sys.argv[1:]]))
