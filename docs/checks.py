"""Two checks of the paper's Section 3.5 and Eq. 7 on one node with five possible inputs: `python docs/checks.py`.

Without matplotlib and without a search; it takes half a minute on one core.
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


def pair_probability(beta: Tensor, pair: tuple) -> Tensor:
    return rome.log_p_inputs("v2", beta, 5, pair, exact=True).exp()


def draw_pairs(draws: int = 200_000) -> float:
    """How often rome.gumbel_top_k draws each pair, beside the formula of Section 3.5. Returns the largest error."""
    p = torch.tensor([0.4, 0.25, 0.2, 0.1, 0.05], dtype=torch.float64)
    noise = rome.gumbel_noise((draws, 5), torch.Generator().manual_seed(0))
    drawn = rome.gumbel_top_k(p.log(), 2, 1.0, noise)  # (draws, 5), two ones in a row
    print("Section 3.5: how often two inputs are drawn, and p_i p_k (1 / (1 - p_i) + 1 / (1 - p_k))")
    errors = []
    for i, k in PAIRS:
        share = (drawn[:, i] * drawn[:, k]).mean().item()
        exact = (p[i] * p[k] * (1 / (1 - p[i]) + 1 / (1 - p[k]))).item()
        print(f"  {i}, {k}: {share:.4f} {exact:.4f}")
        errors.append(abs(share - exact))
    return max(errors)


def successive(logits: Tensor, tau: float, noise: Tensor) -> Tensor:
    """Top-2 whose second draw has a softmax of its own, over what the first has left: a k-hot vector."""
    scores = F.log_softmax(logits, -1) + noise
    order = scores.topk(2, -1).indices
    first, second = F.one_hot(order[..., 0], 5), F.one_hot(order[..., 1], 5)
    relaxed = first * F.softmax(scores / tau, -1)
    relaxed = relaxed + second * F.softmax(scores.masked_fill(first.bool(), -torch.inf) / tau, -1)
    return first + second + relaxed - relaxed.detach()


def cosine(draw, deviation: float, nodes: int, draws: int = 10_000) -> float:
    """Mean cosine between the expected gradient of beta and the exact one, over random nodes.

    The loss of a pair is the sum of two costs, one per input, from N(0, 1). beta is from N(0, deviation^2). As in the
    supernet, the gates of inputs that were not drawn are not in the graph. tau is 1.
    """
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(nodes):
        beta = (deviation * torch.randn(5, generator=generator)).double().requires_grad_()
        cost = torch.randn(5, generator=generator).double()
        exact = sum(pair_probability(beta, pair) * cost[list(pair)].sum() for pair in PAIRS)
        gates = draw(beta, 1.0, rome.gumbel_noise((draws, 5), generator).double())
        loss = (gates * gates.detach() * cost).sum(-1).mean()
        (wanted,), (gradient,) = torch.autograd.grad(exact, beta), torch.autograd.grad(loss, beta)
        found.append(F.cosine_similarity(wanted, gradient, dim=0).item())
    return sum(found) / nodes


def compare_gradients(nodes: int = 200) -> list:
    """The cosines at four deviations of beta: a row for each, of Eq. 7 and of the successive softmax."""
    print(f"Eq. 7, 8: cosine to the exact gradient of beta, mean over {nodes} nodes")
    print("  deviation of beta   one softmax (Eq. 7)   successive softmax")
    rows = []
    for deviation in (0.001, 0.3, 1.0, 2.0):
        one = cosine(lambda beta, tau, noise: rome.gumbel_top_k(beta, 2, tau, noise), deviation, nodes)
        rows.append((one, cosine(successive, deviation, nodes)))
        print(f"  {deviation:<17} {one:>21.3f} {rows[-1][1]:>20.3f}")
    return rows


if __name__ == "__main__":
    draw_pairs()
    compare_gradients()
