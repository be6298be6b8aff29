"""`python docs/figures.py` draws docs/subnetwork.svg, a sub-network of GDAS beside one of ROME. It needs matplotlib."""

import sys
from pathlib import Path

import torch
from matplotlib import figure, patches, path, rc_context

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import rome  # noqa: E402

INK, PAPER, GREY = "#22272e", "#fcfcfa", "#c6cbd1"
COLOURS = dict(sep="#2563a8", dil="#6f42ab", max="#1b7a5e", avg="#1b7a5e", ski="#b35a06")  # by an operation's letters


def draw_cell(axes, kept: dict, title: str) -> None:
    """A DARTS cell on a line, each edge an arc: the kept ones {(i, j): op} in their op's colour, others in grey."""
    edges = [(i, j) for j in (2, 3, 4, 5) for i in range(j)]
    for i, j in sorted(edges, key=lambda edge: edge in kept):  # grey ones first
        op, top = kept.get((i, j)), 0.36 * (j - i)
        colour = COLOURS[op[:3]] if op else GREY
        points = [(i, 0), (i + 0.15 * (j - i), 4 / 3 * top), (j - 0.15 * (j - i), 4 / 3 * top), (j, 0)]
        arc = path.Path(points, [path.Path.MOVETO, *[path.Path.CURVE4] * 3])
        axes.add_patch(patches.PathPatch(arc, fill=False, edgecolor=colour, linewidth=2.4 if op else 1.2))
        if op:
            box = dict(boxstyle="round,pad=0.25,rounding_size=0.8", facecolor=colour, edgecolor="none")
            name = op.replace("_conv_", " ").replace("_pool_", " ").replace("_connect", "")
            axes.text((i + j) / 2, top, name, color="white", size=8, ha="center", va="center", bbox=box, zorder=3)
    for n in range(6):
        axes.add_patch(patches.Circle((n, 0), 0.2, facecolor=INK if n < 2 else PAPER, edgecolor=INK, zorder=4))
        axes.text(n, 0, str(n), color=PAPER if n < 2 else INK, size=9, ha="center", va="center", zorder=5)
    axes.set(xlim=(-0.4, 5.4), ylim=(-0.3, 2.1), aspect="equal")
    axes.set_title(title, size=10, color=INK)
    axes.set_axis_off()


def subnetwork() -> None:
    ops, canvas = rome.SPACES["darts"].ops["normal"][0], figure.Figure((10, 2.6), layout="constrained")
    titles = {"none": "GDAS: one operation on each of 14 edges", "v2": "ROME: 8 of the 14 edges, one operation on each"}
    for axes, (topology, title) in zip(canvas.subplots(1, 2), titles.items()):
        torch.manual_seed(0)
        net = rome.Supernet("darts", channels=2, cells=1, topology=topology)
        z, kept, first = net.sample(1.0, torch.Generator().manual_seed(3))["normal"], {}, 0
        for j, inputs in enumerate(z.inputs, 2):
            kept |= {(i, j): ops[z.ops[first + i]] for i in inputs}
            first += j
        draw_cell(axes, kept, title)
    canvas.set_facecolor(PAPER)  # opaque: the same on a light and on a dark page
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "rome"}):
        canvas.savefig(HERE / "subnetwork.svg", metadata={"Date": None})


if __name__ == "__main__":
    subnetwork()
