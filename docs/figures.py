"""`python docs/figures.py` draws subnetwork.svg and cells.svg beside this file. Needs matplotlib.

subnetwork.svg: a sub-network of GDAS and one of ROME. cells.svg: the published cell DARTS_V2.
"""

import sys
from pathlib import Path

import torch
from matplotlib import patches, rc_context
from matplotlib.figure import Figure
from matplotlib.path import Path as Line

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import genotypes  # noqa: E402
import rome  # noqa: E402

INK, PAPER, GREY = "#22272e", "#fcfcfa", "#c6cbd1"
BLUE, VIOLET, GREEN, ORANGE = "#2563a8", "#6f42ab", "#1b7a5e", "#b35a06"
COLOURS = {"sep": BLUE, "dil": VIOLET, "max": GREEN, "avg": GREEN, "ski": ORANGE}
TITLES = {
    "none": "GDAS: one operation on each of 14 edges",
    "v2": "ROME: 8 of the 14 edges, one operation on each",
}


def draw_edge(axes, i: int, j: int, op: str | None) -> None:
    """An arc from node i to node j, in the colour of its operation; grey without one."""
    length, height = j - i, 0.36 * (j - i)
    colour = COLOURS[op[:3]] if op else GREY
    left, right = (i + 0.15 * length, 4 / 3 * height), (j - 0.15 * length, 4 / 3 * height)
    arc = Line([(i, 0), left, right, (j, 0)], [Line.MOVETO, Line.CURVE4, Line.CURVE4, Line.CURVE4])
    width = 2.4 if op else 1.2
    axes.add_patch(patches.PathPatch(arc, fill=False, edgecolor=colour, linewidth=width))
    if op:
        box = dict(boxstyle="round,pad=0.25,rounding_size=0.8", facecolor=colour, edgecolor="none")
        name = op.replace("_conv_", " ").replace("_pool_", " ").replace("_connect", "")
        middle = dict(ha="center", va="center", size=8, zorder=3)
        axes.text((i + j) / 2, height, name, color="white", bbox=box, **middle)


def draw_cell(axes, kept: dict, title: str) -> None:
    """A DARTS cell on a line. kept: (i, j) -> operation of the edges that run."""
    edges = [(i, j) for j in (2, 3, 4, 5) for i in range(j)]
    for i, j in sorted(edges, key=lambda edge: edge in kept):  # the grey ones first
        draw_edge(axes, i, j, kept.get((i, j)))
    for n in range(6):
        face, text = (INK, PAPER) if n < 2 else (PAPER, INK)
        axes.add_patch(patches.Circle((n, 0), 0.2, facecolor=face, edgecolor=INK, zorder=4))
        axes.text(n, 0, str(n), color=text, size=9, ha="center", va="center", zorder=5)
    axes.set(xlim=(-0.4, 5.4), ylim=(-0.3, 2.1), aspect="equal")
    axes.set_title(title, size=10, color=INK)
    axes.set_axis_off()


def sampled_edges(topology: str) -> dict:
    """(i, j) -> operation of the normal cell of one drawn sub-network of S0."""
    torch.manual_seed(0)
    net = rome.Supernet("darts", channels=2, cells=1, topology=topology)
    z = net.sample(1.0, torch.Generator().manual_seed(3))
    kept = {}
    for j, node in enumerate(z["normal"].nodes, 2):
        for i, number in node:
            kept[i, j] = rome.S0[0][number]
    return kept


def draw_subnetworks(path) -> None:
    canvas = Figure((10, 2.6), layout="constrained", facecolor=PAPER)  # opaque, for dark pages
    for axes, (topology, title) in zip(canvas.subplots(1, 2), TITLES.items()):
        draw_cell(axes, sampled_edges(topology), title)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "rome"}):
        canvas.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw_subnetworks(HERE / "subnetwork.svg")
    genotypes.draw(genotypes.load("DARTS_V2"), HERE / "cells.svg")
