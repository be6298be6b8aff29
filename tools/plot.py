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
    found = {}
    for run in runs:
        found[run] = [row for stage in common.read_run(run) for row in stage.rows]
    panels = [name for name in CURVES if any(name in row for row in sum(found.values(), []))]
    if not panels:
        raise ValueError("no epoch of these runs has ended yet")
    height = (len(panels) + 2) // 3  # three panels side by side
    canvas = genotypes.figure((13, 3 * height + 1), layout="constrained")
    for place, name in enumerate(panels, 1):
        axes = canvas.add_subplot(height, 3, place, title=CURVES[name], xlabel="epoch")
        axes.locator_params("x", integer=True)
        for run, rows in found.items():
            points = [(float(row["epoch"]), float(row[name])) for row in rows if name in row]
            axes.plot([x for x, _ in points], [y for _, y in points], ".-", label=str(run))
        if name.startswith("parameter_free"):
            axes.set_ylim(bottom=0)
    canvas.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    out = out or runs[0] / "curves.svg"
    canvas.savefig(out, dpi=150)
    train.say(f"drawn: {out}")


OUT = dict(
    type=common.path, metavar="FILE", help=".svg, .png, .pdf; default: curves.svg in the first RUN"
)
main = common.program("plot", plot, {"runs": common.RUNS, "--out": OUT})

if __name__ == "__main__":
    sys.exit(main())
