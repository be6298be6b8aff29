"""The pictures of docs/: `python docs/figures.py [subnetwork gumbel_top2 search cells ...]`; without a name, all.

matplotlib draws them. `search` runs a search of a few minutes on a CPU and leaves its cell in docs/search.json.
"""

import itertools
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib import figure, patches, path, rc_context

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import genotypes  # noqa: E402
import rome  # noqa: E402
import train  # noqa: E402

INK, PAPER, GREY = genotypes._INK, genotypes._PAPER, "#c6cbd1"
EDGES = [(i, j) for j in (2, 3, 4, 5) for i in range(j)]  # of a DARTS cell, in the order of alpha's rows
# The cell of cells.svg: the README's search on 8,000 CIFAR-10 images.
CIFAR = """Genotype(normal=[('sep_conv_5x5', 0), ('dil_conv_5x5', 1), ('avg_pool_3x3', 0), ('dil_conv_5x5', 1),
    ('skip_connect', 0), ('max_pool_3x3', 3), ('max_pool_3x3', 0), ('dil_conv_3x3', 1)], normal_concat=[2, 3, 4, 5],
    reduce=[('dil_conv_5x5', 0), ('sep_conv_3x3', 1), ('avg_pool_3x3', 0), ('sep_conv_5x5', 2), ('max_pool_3x3', 0),
    ('avg_pool_3x3', 1), ('max_pool_3x3', 0), ('dil_conv_5x5', 2)], reduce_concat=[2, 3, 4, 5])"""


def save(canvas: figure.Figure, name: str) -> None:
    canvas.set_facecolor(PAPER)  # opaque: the same on a light and on a dark page
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "rome"}):
        canvas.savefig(HERE / name, dpi=110, metadata={"Date": None} if name.endswith("svg") else None)
    print(f"{HERE / name}, {(HERE / name).stat().st_size / 1000:.0f} kB")


def short(op: str) -> str:
    return op.replace("_conv_", " ").replace("_pool_", " ").replace("_connect", "")


def draw_cell(axes, picked: dict, title: str, widths: dict | None = None) -> None:
    """A DARTS cell on a line, every edge an arc: all candidates in grey, the picked {(i, j): op} in their op's colour.

    widths: of the arcs, by edge.
    """
    for i, j in sorted(EDGES, key=lambda edge: edge in picked):
        op, top = picked.get((i, j)), 0.36 * (j - i)
        points = [(i, 0), (i + 0.15 * (j - i), 4 / 3 * top), (j - 0.15 * (j - i), 4 / 3 * top), (j, 0)]
        colour = genotypes._COLOUR[op[:3]] if op else GREY
        width = widths[i, j] if widths else 2.4 if op else 1.2
        axes.add_patch(
            patches.PathPatch(path.Path(points, [1, 4, 4, 4]), fill=False, edgecolor=colour, linewidth=width)
        )
        if op:
            box = dict(boxstyle="round,pad=0.25,rounding_size=0.8", facecolor=colour, edgecolor="none")
            axes.text((i + j) / 2, top, short(op), color="white", size=8, ha="center", va="center", bbox=box, zorder=3)
    for n, name in enumerate(("$c_{k-2}$", "$c_{k-1}$", *(f"$x_{j}$" for j in (2, 3, 4, 5)))):
        axes.add_patch(patches.Circle((n, 0), 0.2, facecolor=INK if n < 2 else PAPER, edgecolor=INK, zorder=4))
        axes.text(n, 0, name, color=PAPER if n < 2 else INK, size=8, ha="center", va="center", zorder=5)
    axes.set(xlim=(-0.4, 5.4), ylim=(-0.3, 2.1), aspect="equal")
    axes.set_title(title, size=10, color=INK)
    axes.set_axis_off()


def picked(picks: list) -> dict:
    """{(i, j): op} of a cell in S0 from an Architecture's picks."""
    ops = rome.SPACES["darts"].ops["normal"][0]
    return {(i, j): ops[op] for j, node in enumerate(picks, 2) for i, _, op in node}


def subnetwork() -> None:
    canvas = figure.Figure((10, 2.6), layout="constrained")
    titles = {"none": "GDAS: one operation on each of 14 edges", "v2": "ROME: 8 of the 14 edges, one operation on each"}
    for axes, (topology, title) in zip(canvas.subplots(1, 2), titles.items()):
        torch.manual_seed(0)
        net = rome.Supernet("darts", channels=2, cells=1, topology=topology)
        draw_cell(axes, picked(net.sample(1.0, torch.Generator().manual_seed(3)).picks["normal"]), title)
    save(canvas, "subnetwork.svg")


def gumbel_top2() -> None:
    p, draws = torch.tensor([0.4, 0.25, 0.2, 0.1, 0.05], dtype=torch.float64), 20_000
    _, indices = rome.gumbel_top_k(p.log().expand(draws, 5), 2, 1.0, torch.Generator().manual_seed(0))
    pairs = list(itertools.combinations(range(5), 2))
    found = {pair: 0 for pair in pairs}
    for pair in map(tuple, indices.tolist()):
        found[pair] += 1 / draws
    exact = {(i, k): (p[i] * p[k] * (1 / (1 - p[i]) + 1 / (1 - p[k]))).item() for i, k in pairs}
    canvas = figure.Figure((9, 3), layout="constrained")
    left, right = canvas.subplots(1, 2, width_ratios=(2, 1))
    panels = [(left, pairs, exact, found, "pair of edges")]
    for shares in (exact, found):
        shares |= {
            e: sum(share for pair, share in shares.items() if isinstance(pair, tuple) and e in pair) for e in range(5)
        }
    panels.append((right, range(5), exact, found, "edge, and its p"))
    for axes, keys, exact, found, title in panels:
        axes.bar(range(len(keys)), [exact[key] for key in keys], color=GREY, label="exact, without replacement")
        error = [4 * (exact[key] * (1 - exact[key]) / draws) ** 0.5 for key in keys]
        axes.errorbar(
            range(len(keys)),
            [found[key] for key in keys],
            error,
            fmt=".",
            color="#2563a8",
            capsize=3,
            label=f"{draws:,} draws of gumbel_top_k, ±4 deviations",
        )
        names = [f"{key[0]}, {key[1]}" if isinstance(key, tuple) else f"{key}\n{p[key]:.2f}" for key in keys]
        axes.set_xticks(range(len(keys)), names)
        axes.set(xlabel=title, ylabel="probability to be drawn", facecolor=PAPER)
    left.legend(frameon=False)
    save(canvas, "gumbel_top2.svg")


def search(epochs: int = 9, steps: int = 100, batch: int = 32) -> None:
    pixels, labels = train.draw_shapes(8000, seed=0, size=16)
    images = pixels.permute(0, 3, 1, 2).float()
    images = (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True)
    torch.manual_seed(0)
    net = rome.Supernet("darts", channels=8, cells=3)
    architect = rome.Architect(net, samples=2)
    adam = torch.optim.Adam(net.architecture_parameters(), lr=1e-2, betas=(0.5, 0.999), weight_decay=1e-3)
    sgd = torch.optim.SGD(net.weights(), lr=0.03, momentum=0.9, weight_decay=3e-4)
    frames, halves = [], torch.randperm(8000).view(2, 4000)

    def frame(epoch: int) -> None:
        beta = [F.softmax(part, 0) for part in net.beta["normal"].detach().split([2, 3, 4, 5])]
        frames.append((epoch, torch.cat(beta), F.softmax(net.alpha["normal"].detach(), 1), net.genotype()))

    frame(0)
    for epoch in range(epochs):
        tau = 10 - 9.9 * epoch / (epochs - 1)
        for _ in range(steps):
            s, t = (half[torch.randint(4000, (batch,))] for half in halves)
            architect.architecture_step(images[s], labels[s], tau, adam)
            loss = architect.weight_step(images[t], labels[t], tau, sgd)
        print(f"epoch {epoch + 1}/{epochs}: loss {loss:.3f}", flush=True)
        frame(epoch + 1)
    genotypes.save(frames[-1][3], HERE / "search.json", space="darts", made_by="python docs/figures.py search")

    draw_frames([frames[0], frames[2 * epochs // 3], frames[-1]])


def draw_frames(frames: list) -> None:
    ops = rome.SPACES["darts"].ops["normal"][0]
    canvas = figure.Figure((13, 5.6), layout="constrained")
    panels = canvas.subplots(2, len(frames), height_ratios=(1, 1.6))
    most = max(alpha.max() for _, _, alpha, _ in frames)
    for axes, heat, (epoch, beta, alpha, genotype) in zip(*panels, frames):
        kept = {(i, 2 + n // 2): op for n, (op, i) in enumerate(genotype.normal)}
        title = f"epoch {epoch}, parameter-free: {genotypes.parameter_free(genotype)['normal']}"
        draw_cell(axes, kept, title, {edge: 7 * share.item() for edge, share in zip(EDGES, beta)})
        heat.imshow(alpha.tolist(), cmap="Greys", vmin=0, vmax=most, aspect="auto")
        heat.set_xticks(range(len(ops)), [short(op) for op in ops], size=8)
        heat.set_yticks(range(14), [f"{i} → {j}" for i, j in EDGES], size=8)
        for edge, op in kept.items():
            colour = genotypes._COLOUR[op[:3]]
            heat.plot(ops.index(op), EDGES.index(edge), "o", color=colour, markersize=8, markeredgecolor="white")
    panels[1, 0].set_ylabel(f"softmax of alpha; white: 0, black: {most:.2f}")
    save(canvas, "search.svg")


def cells() -> None:
    found = {"found: 8,000 CIFAR-10 images (README)": CIFAR, "found: drawn shapes (search.svg)": HERE / "search.json"}
    shown = {title: genotypes.load(source) for title, source in found.items()}
    shown |= {name: genotypes.load(name) for name in ("DARTS_V2", "PC_DARTS_cifar", "PDARTS", "GDAS_V1")}
    canvas = figure.Figure((13, 5.2), layout="constrained")
    for axes, (title, genotype) in zip(canvas.subplots(2, 3).flat, shown.items()):
        edges = {(i, 2 + n // 2): op for n, (op, i) in enumerate(genotype.normal)}
        draw_cell(axes, edges, f"{title}, parameter-free: {genotypes.parameter_free(genotype)['normal']}")
    save(canvas, "normal_cells.svg")


if __name__ == "__main__":
    for name in sys.argv[1:] or ("subnetwork", "gumbel_top2", "search", "cells"):
        globals()[name]()
