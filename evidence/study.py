"""The study of the paper's claims: full-length searches, whose cells a table knows the true accuracy of.

    python evidence/study.py run --arm rome-k7 --seed 0 --data DIR --table CSV    one search; again: it goes on
    python evidence/study.py collect runs/evidence --table CSV                    runs -> results/*.csv
    python evidence/study.py figures                                  results/*.csv -> *.svg, tables of README.md

DIR/train/CLASS/* and DIR/test/CLASS/* hold the images. CSV is a table of NAS-Bench-201 with c10_test and c10_val
(docs/nasbench201.md). A run's folder is called ARM-sSEED. `collect` keeps the rows of runs that it does not find, so
missing runs can be made elsewhere. `figures` needs matplotlib and the CSV files only.
"""

import argparse
import csv
import itertools
import json
import math
import random
import re
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
RESULTS = HERE / "results"

# ----------------------------------------------------------------------------------------------------------------------
# The searches: a study is a set of arms, an arm is what differs from the program's defaults

NB201 = dict(space="nb201", image_size=16, channels=8, cells=1, batch_size=32, steps_per_epoch=391)
ROME_K7 = NB201 | dict(method="rome-v2", samples=7)
# K = 1 in steps as large as K = 7's: rate (7 mean + decay w) = 7 rate (mean + decay / 7 w).
RATE7 = dict(lr=0.35, lr_min=0.007, weight_decay=0.0003 / 7)
# Few images and many steps: the supernet can fit them, which is when GDAS is said to collapse.
S2 = dict(space="s2", image_size=16, channels=16, cells=8, batch_size=25, steps_per_epoch=60, fraction=0.03125)
STUDIES = {
    "length": {
        "rome-k7": ROME_K7,
        "rome-k1": NB201 | dict(method="rome-v2", samples=1, equal_passes=True),
        "rome-k1-rate7": NB201 | RATE7 | dict(method="rome-v2", samples=1, equal_passes=True),
        "gdas-k7": NB201 | dict(method="gdas", samples=7),
        "gdas-k1": NB201 | dict(method="gdas", equal_passes=True),
        "gdas-k1-rate7": NB201 | RATE7 | dict(method="gdas", equal_passes=True),
    },
    "steps": {  # K = 1 with as many steps as K = 7, so a seventh of the passes
        "rome-k1-50": NB201 | dict(method="rome-v2", samples=1),
        "gdas-k1-50": NB201 | dict(method="gdas"),
        "rome-k1-50-rate7": NB201 | RATE7 | dict(method="rome-v2", samples=1),
    },
    "clip": {  # Eq. 12's sum and the clip
        "rome-k7": ROME_K7,  # sum, clip 5
        "sum-noclip": ROME_K7 | dict(clip=0),
        "sum-clip35": ROME_K7 | dict(clip=35),
        "mean-clip5": ROME_K7 | dict(theta_reduction="mean"),
    },
    "collapse": {
        "s2-rome-k7": S2 | dict(method="rome-v2", samples=7, epochs=35),
        "s2-gdas-k1": S2 | dict(method="gdas", epochs=7 * 35),
    },
}
ARMS = {arm: settings for arms in STUDIES.values() for arm, settings in arms.items()}


def run(options) -> int:
    """One search through train.py's command line. Returns its exit status."""
    import train

    settings = dict(ARMS[options.arm], dataset="folder", data=options.data, seed=options.seed)
    if (settings["space"] == "nb201") != bool(options.table):
        raise ValueError("--table is needed by the arms in NAS-Bench-201, and only by them")
    if options.table:
        settings["table"] = options.table
    settings["out"] = options.out or f"runs/evidence/{options.arm}-s{options.seed}"
    words = ["search", "--resume"]
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, str(value)]
    return train.main(words)


# ----------------------------------------------------------------------------------------------------------------------
# The table of NAS-Bench-201, as tools/nasbench201.py reads it. A cell is six digits

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


def digits_of(arch: str) -> str:
    return "".join(str(OPS.index(op)) for op in re.findall(r"(\w+)~\d", arch))


def arch_of(digits: str) -> str:
    return "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*(OPS[int(digit)] for digit in digits))


def cells_of(space: str, table: dict) -> list[str]:
    """The cells that "rome" or "gdas" can find."""
    from tools.nasbench201 import found_by

    return [cell for cell in sorted(table["c10_test"]) if found_by(space, cell)]


def chance(table: dict) -> list[dict]:
    """Random search in both spaces; n = all: the best cell there is."""
    rows = []
    for space in ("rome", "gdas"):
        cells = cells_of(space, table)
        best = max(table["c10_test"][cell] for cell in cells)
        for n, accuracy in ((1, best_of(1, cells, table)), (10, best_of(10, cells, table)), ("all", best)):
            row = dict(space=space, cells=len(cells), n=n, accuracy=round(accuracy, 4))
            rows.append(row | dict(regret_own=round(best - accuracy, 4)))
    return rows


def best_of(n: int, cells: list[str], table: dict) -> float:
    """Expected test accuracy of the best of n uniformly drawn cells, the best being chosen by validation accuracy."""
    order = sorted(cells, key=lambda cell: table["c10_val"][cell], reverse=True)
    count, expected = len(order), 0.0
    for place, cell in enumerate(order):
        # This cell is chosen if none of the `place` better ones is among the n, and it is.
        probability = ((count - place) / count) ** n - ((count - place - 1) / count) ** n
        expected += probability * table["c10_test"][cell]
    return expected


# ----------------------------------------------------------------------------------------------------------------------
# Reading runs

COLUMNS = (
    "table_test", "table_rank", "table_regret", "table_regret_own", "parameter_free_{kind}", "parameter_free_reduce",
    "entropy_alpha_{kind}", "entropy_beta_{kind}", "loss_alpha", "loss_theta", "supernet_accuracy", "gradient_norm",
    "clipped",
)  # fmt: skip
CELLS, IMAGES, BATCH = 200, 2000, 100


def collect(options) -> int:
    """Adds the runs of a folder to results/*.csv. Supernets are measured again only if they went on since."""
    import torch

    from tools.nasbench201 import read_table

    table = read_table(options.table)
    epochs, supernets = read(RESULTS / "epochs.csv"), read(RESULTS / "supernets.csv")
    for folder in sorted(path.parent for path in Path(options.runs).glob("*-s*/metrics.csv")):
        config = json.loads((folder / "config.json").read_text())
        settings, arm = config["settings"], folder.name.rpartition("-s")[0]
        wrong = [name for name, value in ARMS.get(arm, {"method": ""}).items() if settings.get(name) != value]
        if wrong:
            raise ValueError(f"{folder} is no run of an arm {arm}: it has another {', '.join(wrong)}")
        rows = progress(folder, settings)
        epochs = [row for row in epochs if row["run"] != folder.name] + rows
        state = torch.load(folder / "last.pt", map_location="cpu", weights_only=True)
        known = [row["epoch"] for row in supernets if row["run"] == folder.name]
        if settings["space"] == "nb201" and known != [str(state["epoch"])]:
            print(f"{folder.name}: {CELLS} cells in its supernet ...", flush=True)
            row = dict(run=folder.name, epoch=state["epoch"], commit=(config["versions"]["commit"] or "")[:7])
            row |= measure(state["net"], settings, table)
            supernets = [other for other in supernets if other["run"] != folder.name] + [row]
    write("epochs", sorted(epochs, key=lambda row: (row["run"], int(row["epoch"]))))
    write("supernets", sorted(supernets, key=lambda row: row["run"]))
    write("random", chance(table))
    return 0


def progress(folder: Path, settings: dict) -> list[dict]:
    """The rows of metrics.csv that the page needs."""
    every = 7 if settings["epochs"] > 50 else 1  # K = 1 at equal passes: seven epochs have those of one with K = 7
    passes = settings["steps_per_epoch"] * (settings["samples_alpha"] + settings["samples_theta"])
    kind = "cell" if settings["space"] == "nb201" else "normal"
    kept = []
    for row in read(folder / "metrics.csv"):
        epoch = int(row["epoch"])
        if epoch % every == 0:
            new = dict(run=folder.name, epoch=epoch, epochs=settings["epochs"], passes=epoch * passes)
            for name in COLUMNS:
                value = row.get(name.format(kind=kind))  # GDAS has no beta, the table no cells of S2
                new[name.replace("_{kind}", "")] = f"{float(value):.6g}" if value else ""
            if kind == "cell":  # some versions of the program counted `none`, a missing edge, in metrics.csv
                digits = digits_of(row["genotype"])
                new["parameter_free"] = digits.count("1") + digits.count("4")
            kept.append(new)
    return kept


def measure(weights: dict, settings: dict, table: dict) -> dict:
    """What a supernet knows: of uniformly drawn cells, by its loss; and of cells drawn from p(z).

    The loss is taken on images of alpha's half, with batch statistics. All supernets are asked about the same
    cells of ROME's space (GDAS's runs them without the edge left out), GDAS's also about cells of its own.
    """
    import torch

    import rome
    import train

    data = train.load_data(settings, "train")
    pixels = data.pixels.permute(0, 3, 1, 2).float() / 255  # (N, 3, H, W)
    images = (pixels - pixels.mean((0, 2, 3), True)) / pixels.std((0, 2, 3), keepdim=True)
    half = train.halves(data.labels, settings["fraction"], settings["seed"])[1]
    generator = torch.Generator().manual_seed(0)
    half = half[torch.randperm(len(half), generator=generator)[:IMAGES]]  # batches of mixed classes
    batches = [(images[part], data.labels[part]) for part in half.split(BATCH)]

    topology = "none" if settings["method"] == "gdas" else "v2"
    net = rome.Supernet(settings["space"], settings["channels"], settings["cells"], len(data.classes), topology)
    net.load_state_dict(weights)

    def loss_of(cell: str) -> float:
        arch = net.architecture(arch_of(cell))
        with torch.no_grad():
            losses = [torch.nn.functional.cross_entropy(net(x, arch), y).item() for x, y in batches]
        return statistics.fmean(losses)

    true = table["c10_test"]
    drawn = [true[digits_of(net.cell(net.sample(1.0, generator)))] for _ in range(CELLS)]
    found = dict(drawn_mean=round(statistics.fmean(drawn), 4))
    for space in ("rome", "gdas") if topology == "none" else ("rome",):
        cells = random.Random(0).sample(cells_of(space, table), CELLS)  # the same ones for every run
        correlation = spearman([-loss_of(cell) for cell in cells], [true[cell] for cell in cells])
        found[f"spearman_{space}"] = round(correlation, 4)
    return {"spearman_gdas": ""} | found


def ranks(values: list) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs."""
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]


def spearman(a: list, b: list) -> float:
    return statistics.correlation(ranks(a), ranks(b))


def read(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write(name: str, rows: list[dict]) -> None:
    with open(RESULTS / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# ----------------------------------------------------------------------------------------------------------------------
# The page's tables and figures


def show(values: list, digits: int = 2) -> str:
    """Mean ± sample deviation (n - 1); one value alone; nothing if a value is missing."""
    if not values or "" in values:
        return ""
    values = [float(value) for value in values]
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def runs_of(arm: str, epochs: list[dict]) -> list[list[dict]]:
    """The rows of each run of an arm."""
    rows = [row for row in epochs if row["run"].rpartition("-s")[0] == arm]
    names = dict.fromkeys(row["run"] for row in rows)  # each once, in order
    return [[row for row in rows if row["run"] == name] for name in names]


def finished(rows: list[dict]) -> bool:
    return rows[-1]["epoch"] == rows[-1]["epochs"]


CHANCE = {"1": "a random cell", "10": "best of ten random cells", "all": "best cell"}
OF_SEARCH = {  # heading: column of epochs.csv, digits
    "true accuracy %": ("table_test", 2),
    "rank": ("table_rank", 0),
    "regret": ("table_regret_own", 2),
    "free": ("parameter_free", 1),
    "free, reduction": ("parameter_free_reduce", 1),
    "loss": ("loss_theta", 2),
    "entropy": ("entropy_alpha", 2),
}
OF_NET = {"Spearman": "spearman_rome", "Spearman, own space": "spearman_gdas", "drawn %": "drawn_mean"}  # supernets.csv
HEAD = [*OF_SEARCH, *OF_NET]


def numbers(last: list[dict], supernets: list[dict]) -> list[str]:
    """The cells of a table's row: means over the last epochs of some runs."""
    names = [row["run"] for row in last]
    nets = [row for row in supernets if row["run"] in names]
    shown = [show([row[name] for row in last], digits) for name, digits in OF_SEARCH.values()]
    return shown + [show([row[name] for row in nets]) for name in OF_NET.values()]


def tables(study: str, epochs: list[dict], supernets: list[dict], by_chance: list[dict]) -> str:
    """Finished runs, averaged, and random search beside them; then each run that is not finished."""
    done, going = [["search", "n", *HEAD]], [["unfinished run", "epoch", *HEAD]]
    for arm in STUDIES[study]:
        last = [rows[-1] for rows in runs_of(arm, epochs) if finished(rows)]
        if last:
            done.append([arm, len(last), *numbers(last, supernets)])
        for row in (rows[-1] for rows in runs_of(arm, epochs) if not finished(rows)):
            going.append([row["run"], f"{row['epoch']} of {row['epochs']}", *numbers([row], supernets)])
    for row in by_chance:
        values = [show([row["accuracy"]]), "", show([row["regret_own"]]), *[""] * (len(HEAD) - 3)]
        done.append([f"{CHANCE[row['n']]}, {row['space'].upper()}'s space", "exact", *values])
    return "\n\n".join(markdown(rows) for rows in (done, going) if len(rows) > 1)


def markdown(rows: list[list]) -> str:
    """A table without its empty columns."""
    filled = [any(row[column] != "" for row in rows[1:]) for column in range(len(rows[0]))]
    rows = [list(itertools.compress(row, filled)) for row in rows]
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's, for every kind of sight


def draw(path: Path, study: str, epochs: list[dict], column: str, label: str, limits: tuple, lines: list) -> None:
    """Panels of arms: finished seeds thin, their mean thick, unfinished ones dotted. lines: of random search."""
    import matplotlib.figure

    style = {"svg.fonttype": "none", "svg.hashsalt": "rome", "font.size": 9, "axes.titlesize": 9}
    matplotlib.rcParams.update(style | {"axes.spines.top": False, "axes.spines.right": False})
    colours = dict(zip(STUDIES[study], COLOURS))
    arms = [arm for arm in STUDIES[study] if runs_of(arm, epochs)]
    down, across = math.ceil(len(arms) / 3), min(3, len(arms))
    size = (0.8 + 2.9 * across, 3 * down)
    fig = matplotlib.figure.Figure(figsize=size, facecolor="white", layout="constrained")
    axes = fig.subplots(down, across, sharey=True, squeeze=False)
    end = max(float(row["passes"]) * float(row["epochs"]) / float(row["epoch"]) for row in epochs) / 1000
    for axis in axes.flat[len(arms) :]:
        axis.remove()
    for axis, arm in zip(axes.flat, arms):
        runs, complete, colour = runs_of(arm, epochs), [], colours[arm]
        for rows in runs:
            x, y = [float(row["passes"]) / 1000 for row in rows], [float(row[column]) for row in rows]
            axis.plot(x, y, "-" if finished(rows) else ":", color=colour, lw=1)
            if finished(rows):
                complete.append(y)
        if complete:
            axis.plot(x, [statistics.fmean(values) for values in zip(*complete)], color=colour, lw=2.5)
        for row in lines:
            if row["space"] in ARMS[arm]["method"]:
                height = float(row["accuracy"])
                axis.axhline(height, color="#555555", lw=0.8, ls="--")
                place = dict(xytext=(0, 2), textcoords="offset points", fontsize=7, ha="right")
                axis.annotate(CHANCE[row["n"]], (end, height), **place)
        unfinished = len(runs) - len(complete)
        title = f"{arm}, n = {len(complete)}" + (f", {unfinished} unfinished" if unfinished else "")
        axis.set(title=title, xlabel="thousand sub-network passes", xlim=(0, end))
    axes[0][0].set(ylim=limits)  # once all panels have their lines, since they share the axis
    for row in axes:
        row[0].set(ylabel=label)
    fig.savefig(path, metadata={"Date": None})


def figures(_) -> int:
    """Of every study that has runs of two arms: its tables, between its two markers in README.md, and its figures."""
    epochs, supernets, by_chance = (read(RESULTS / f"{name}.csv") for name in ("epochs", "supernets", "random"))
    page = (HERE / "README.md").read_text()
    for study, arms in STUDIES.items():
        rows = [row for arm in arms for run in runs_of(arm, epochs) for row in run]
        marker = f"<!-- table {study} -->"
        if sum(bool(runs_of(arm, epochs)) for arm in arms) < 2:  # nothing to compare yet
            continue
        text = tables(study, rows, supernets, by_chance if study == "length" else [])
        before, _, after = page.split(marker)
        page = f"{before}{marker}\n\n{text}\n\n{marker}{after}"
        if study in ("length", "clip"):
            path, label = HERE / f"{study}-accuracy.svg", "true accuracy of the derived cell, %"
            draw(path, study, rows, "table_test", label, (None, 95), by_chance)
        if study in ("length", "collapse"):
            cell, most = ("cell", 6.2) if study == "length" else ("normal cell", 8.2)
            path, label = HERE / f"{study}-parameter-free.svg", f"parameter-free ops of the {cell}"
            draw(path, study, rows, "parameter_free", label, (-0.2, most), [])
    (HERE / "README.md").write_text(page)
    return 0


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one, some, _ = (commands.add_parser(name) for name in ("run", "collect", "figures"))
    one.add_argument("--arm", required=True, choices=list(ARMS))
    one.add_argument("--seed", required=True, type=int)
    one.add_argument("--data", required=True, metavar="DIR", help="images in folders")
    one.add_argument("--table", metavar="CSV", help="of NAS-Bench-201, for the arms in it")
    one.add_argument("--out", metavar="DIR", help="the run's folder (runs/evidence/ARM-sSEED)")
    some.add_argument("runs", metavar="RUNS_DIR", help="holds folders ARM-sSEED")
    some.add_argument("--table", required=True, metavar="CSV", help="of NAS-Bench-201")
    for command in (one, some):
        command.add_argument("--code", default=str(HERE.parent), metavar="DIR", help="the program that makes the runs")
    options = parser.parse_args(words)
    if "code" in options:
        sys.path.insert(0, options.code)
    return {"run": run, "collect": collect, "figures": figures}[options.command](options)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"study.py: error: {error}", file=sys.stderr)
        sys.exit(2)
