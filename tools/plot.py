"""Draws the curves of runs, from metrics.csv. It needs matplotlib: pip install matplotlib.

python -m tools.plot RUN... [--out FILE]
"""

import sys

import genotypes
import train
from tools import common

# A panel for each of these columns of metrics.csv: its title.
CURVES = {
    "loss_theta": "Loss of the weights' half (nats)",
    "loss_alpha": "Loss of alpha and beta's half (nats)",
    "supernet_accuracy": "Supernet accuracy, not a result (%)",
    "times_uniform": "Largest probability of alpha, times uniform",
    "parameter_free_normal": "Parameter-free operations, normal cell",
    "parameter_free_reduce": "Parameter-free operations, reduction cell",
    "parameter_free_cell": "Parameter-free operations",
    "loss_train": "Retrain: training loss (nats)",
    "loss_test": "Retrain: test loss (nats)",
    "accuracy_train": "Retrain: training accuracy (%)",
    "accuracy_test": "Retrain: test accuracy (%)",
}


def plot(runs, out):
    """Draws the curves of runs: a panel for each column, a colour for each run."""
    found, names = {}, set()
    for folder in runs:
        found[folder] = []
        for stage in common.read_run(folder):
            found[folder] += stage.rows
            names.update(*stage.rows)
    panels = [name for name in CURVES if name in names]
    if not panels:
        raise ValueError("no epoch of these runs has ended yet")
    height, lines = (len(panels) + 2) // 3, {}  # three panels side by side
    canvas = genotypes.figure((13, 3 * height + 1), layout="constrained")
    for place, name in enumerate(panels, 1):
        axes = canvas.add_subplot(height, 3, place, title=CURVES[name], xlabel="epoch")
        axes.locator_params("x", integer=True)
        for number, (folder, rows) in enumerate(found.items()):
            points = [(row["epoch"], row[name]) for row in rows if name in row]
            if points:
                lines[folder] = axes.plot(*zip(*points), ".-", color=f"C{number}")[0]
        if name.startswith("parameter_free"):
            axes.set_ylim(bottom=0)
    canvas.legend(lines.values(), map(str, lines), loc="outside lower center", ncols=2)
    out = out or runs[0] / "curves.svg"
    canvas.savefig(out, dpi=150)
    train.say(f"drawn: {out}")


HELP = "a picture (.svg, .png, .pdf); default: curves.svg in the first RUN"
OUT = dict(type=common.path, metavar="FILE", help=HELP)
main = common.program("plot", plot, {"runs": common.RUNS, "--out": OUT})

if __name__ == "__main__":
    sys.exit(main())
