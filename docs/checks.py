"""Checks of the paper's Section 3.5, Eq. 7 and Eq. 9 on one node with five possible inputs.

`python docs/checks.py` takes about a minute on one core. It needs neither matplotlib nor a search.
"""

import itertools
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rome  # noqa: E402

PAIRS = list(itertools.combinations(range(5), 2))


def pair_probability(p: Tensor, i: int, k: int) -> Tensor:
    """Exact probability that two draws without replacement from p (5,) give i and k."""
    return p[i] * p[k] * (1 / (1 - p[i]) + 1 / (1 - p[k]))


def draw_pairs(draws: int = 200_000) -> float:
    """How often gumbel_top_k draws each pair, beside the exact probability and Eq. 9's p_i p_k.

    Returns the largest difference between the first two.
    """
    p = torch.tensor([0.4, 0.25, 0.2, 0.1, 0.05], dtype=torch.float64)
    logits = p.log().expand(draws, 5)
    noise = rome.gumbel_noise(logits, torch.Generator().manual_seed(0))
    drawn = rome.gumbel_top_k(logits, 2, 1.0, noise)  # (draws, 5), two ones in a row
    rows = []
    for i, k in PAIRS:
        share = (drawn[:, i] * drawn[:, k]).mean()
        rows.append(torch.stack([share, pair_probability(p, i, k), p[i] * p[k]]))
    rows = torch.stack(rows)  # (pairs, 3)
    print("pair of inputs: share of the draws, exact probability (Sec. 3.5), p_i p_k (Eq. 9)")
    for (i, k), row in zip(PAIRS, rows.tolist()):
        print(f"  {i}, {k}  {row[0]:.4f}  {row[1]:.4f}  {row[2]:.4f}")
    print("  sum   {:.4f}  {:.4f}  {:.4f}".format(*rows.sum(0).tolist()))
    return (rows[:, 0] - rows[:, 1]).abs().max().item()


def successive(logits: Tensor, k: int, tau: float, noise: Tensor) -> Tensor:
    """Top-2 whose second draw has a softmax of its own, over the inputs that the first left."""
    scores = F.log_softmax(logits, -1) + noise
    order = scores.topk(k, -1).indices
    first, second = F.one_hot(order[..., 0], 5), F.one_hot(order[..., 1], 5)
    left = scores.masked_fill(first.bool(), -torch.inf)
    relaxed = first * F.softmax(scores / tau, -1) + second * F.softmax(left / tau, -1)
    return first + second + relaxed - relaxed.detach()


def cosine(draw, deviation: float, nodes: int, draws: int = 10_000) -> float:
    """Mean cosine between the expected gradient of beta and the exact one, over random nodes.

    The loss of a pair is the sum of two costs, one per input, from N(0, 1). beta is from
    N(0, deviation^2). tau is 1. As in the supernet, only the gates of drawn inputs are used.
    """
    generator, cosines = torch.Generator().manual_seed(0), []
    for _ in range(nodes):
        beta, cost = torch.randn(2, 5, generator=generator, dtype=torch.float64)
        beta = (deviation * beta).requires_grad_()
        p = beta.softmax(-1)
        exact = sum(pair_probability(p, i, k) * (cost[i] + cost[k]) for i, k in PAIRS)
        noise = rome.gumbel_noise(beta.detach().expand(draws, 5), generator)
        gates = draw(beta, 2, 1.0, noise)
        loss = (gates * gates.detach() * cost).sum(-1).mean()
        wanted, found = torch.autograd.grad(exact, beta), torch.autograd.grad(loss, beta)
        cosines.append(F.cosine_similarity(wanted[0], found[0], dim=0).item())
    return sum(cosines) / nodes


def compare_gradients(nodes: int = 200) -> list:
    """The cosines at four deviations of beta: (of Eq. 7, of the successive softmax) for each."""
    print(f"cosine to the exact gradient of beta, mean over {nodes} nodes")
    print("  deviation of beta   one softmax (Eq. 7)   successive softmax")
    rows = []
    for deviation in (0.001, 0.3, 1.0, 2.0):
        row = [cosine(draw, deviation, nodes) for draw in (rome.gumbel_top_k, successive)]
        rows.append(row)
        print(f"  {deviation:<17} {row[0]:>21.3f} {row[1]:>20.3f}")
    return rows


if __name__ == "__main__":
    draw_pairs()
    compare_gradients()
