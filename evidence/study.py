"""The study of the paper's claims: its searches, what became of them, and the page's tables.

    python evidence/study.py images SOURCE DIR    the first 2,500 training images of each class
    python evidence/study.py run --arm s0-rome-k7 --seed 0 --data DIR    a search, or its rest
    python evidence/study.py collect RUNS --surrogate FILE.onnx --table CSV    runs -> results/*.csv
    python evidence/study.py figures    results/*.csv -> the pages' tables and fit.svg

SOURCE/train/CLASS/* are all 50,000 training images of CIFAR-10. A run's folder is RUNS/ARM-sSEED.
`collect` keeps the rows of runs that it does not find, so runs can be made on several machines.

FILE.onnx is a surrogate of NAS-Bench-301 (slds-lmu/yahpo_data, v2_final). It predicts the
validation accuracy of a cell of S0. Its encoding lies beside it as FILE_encoding.json, and so does
random_cells.csv: 214 random cells (genotype) and their test accuracies (test_accuracy_last) after
600 epochs, by Yang et al., ICLR 2020 (antoyang/NAS-Benchmark). A run takes minutes to measure.
CSV is the table of NAS-Bench-201, with the columns ops, params and c10_test.
"""

import argparse
import csv
import functools
import gzip
import json
import random
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import genotypes  # noqa: E402
import rome  # noqa: E402
import train  # noqa: E402
from extra import nasbench  # noqa: E402

RESULTS = HERE / "results"
CELLS, IMAGES = 200, 2000  # of a measurement

# --------------------------------------------------------------------------------------------------
# 1. The searches. What a row does not name has the program's default.

# S0 and S2 five times shorter than the paper's search: 3,910 steps in place of 19,550, or at K = 1
# 27,370 in place of 136,850. alpha's rate is five times the paper's, so that its way is as long.
SHORT = "--image-size 16 --channels 8 --cells 8 --batch-size 32 --alpha-lr 1.5e-3"
NB201 = "--space nb201 --image-size 16 --channels 8 --cells 1 --batch-size 32 --epochs 175"
ARMS = {
    "s0-gdas-k1-steps": f"--space darts --method gdas --samples 1 --epochs 10 {SHORT}",
    "s0-rome-k1-steps": f"--space darts --method rome-v2 --samples 1 --epochs 10 {SHORT}",
    "s0-gdas-k1": f"--space darts --method gdas --samples 1 --epochs 70 {SHORT}",
    "s0-rome-k1": f"--space darts --method rome-v2 --samples 1 --epochs 70 {SHORT}",
    "s0-gdas-k7": f"--space darts --method gdas --samples 7 --epochs 10 {SHORT}",
    "s0-rome-k7": f"--space darts --method rome-v2 --samples 7 --epochs 10 {SHORT}",
    "s2-gdas-k1": f"--space s2 --method gdas --samples 1 --epochs 70 {SHORT}",
    "s2-rome-k1": f"--space s2 --method rome-v2 --samples 1 --epochs 70 {SHORT}",
    "s2-gdas-k7": f"--space s2 --method gdas --samples 7 --epochs 10 {SHORT}",
    "s2-rome-k7": f"--space s2 --method rome-v2 --samples 7 --epochs 10 {SHORT}",
    # All 50,000 images: can a supernet that sees each image 175 times do without overfitting?
    "nb201-gdas-k1": f"{NB201} --method gdas --samples 1",
    "nb201-rome-k1": f"{NB201} --method rome-v2 --samples 1",
}
# What if alpha may move? Without its decay, or with a temperature that begins low, or both.
for name, base, words in (
    ("s0-rome-k7-decay0", "s0-rome-k7", "--alpha-weight-decay 0"),
    ("s0-gdas-k7-decay0", "s0-gdas-k7", "--alpha-weight-decay 0"),
    ("s0-rome-k1-steps-decay0", "s0-rome-k1-steps", "--alpha-weight-decay 0"),
    ("s0-gdas-k1-steps-decay0", "s0-gdas-k1-steps", "--alpha-weight-decay 0"),
    ("s0-rome-k7-tau1", "s0-rome-k7", "--tau 1 0.1"),
    ("s0-rome-k7-decay0-tau1", "s0-rome-k7", "--alpha-weight-decay 0 --tau 1 0.1"),
    ("s0-rome-k1-decay0", "s0-rome-k1", "--alpha-weight-decay 0"),
    ("s2-rome-k7-decay0", "s2-rome-k7", "--alpha-weight-decay 0"),
    ("s0-rome-k1-steps-decay0-late", "s0-rome-k1-steps", "--alpha-weight-decay 0"),
):
    ARMS[name] = f"{ARMS[base]} {words}"


def arm_of(run: str) -> str:
    """The arm in ARM-sSEED, the name of a run."""
    return run.rpartition("-s")[0]


def images(options) -> int:
    """Links (or copies, where links are not allowed) the first 2,500 images of each class."""
    count = 0
    for place in sorted(Path(options.source, "train").iterdir()):
        files = sorted(place.iterdir())[:2500]
        if len(files) < 2500:
            raise ValueError(f"{place} has {len(files)} images; it needs 2,500")
        target = Path(options.folder, "train", place.name)
        target.mkdir(parents=True)
        for file in files:
            try:
                (target / file.name).symlink_to(file.resolve())
            except OSError:  # Windows
                shutil.copy(file, target)
            count += 1
    print(f"{count} images in {options.folder}")
    return 0


def words_of(arm: str, seed: int, data: str, out: str) -> list[str]:
    """The flags of `train.py search`."""
    words = ["--dataset", "folder", "--data", data, "--seed", str(seed), "--out", out, "--resume"]
    return ARMS[arm].split() + words


def run(options) -> int:
    """One search. Returns its exit status."""
    out = options.out or f"runs/evidence/{options.arm}-s{options.seed}"
    if options.arm.endswith("-late"):
        rome.Architect.architecture_step = late(rome.Architect.architecture_step)
    return train.main(["search", *words_of(options.arm, options.seed, options.data, out)])


def late(architecture_step: Callable) -> Callable:
    """A diagnosis: alpha and beta stay as they are in the first four epochs of ten, tau 10 to 6.7.

    If K = 1 then no longer collapses, it was the untrained supernet that prefers skips and pools.
    """

    def step(architect, images, labels, tau, optimizer):
        if tau > 6:
            optimizer = torch.optim.SGD(architect.net.architecture_parameters(), 0.0)
        return architecture_step(architect, images, labels, tau, optimizer)

    return step


# --------------------------------------------------------------------------------------------------
# 2. What a cell is worth


class Judge(NamedTuple):
    """Accuracies of cells in %: the surrogate's for S0 and S2, the table's for NAS-Bench-201."""

    score: Callable  # genotypes -> their accuracies
    others: list  # the accuracies of random cells, for percentiles
    cells: list  # cells whose test accuracy is known, ...
    true: list  # ... this accuracy, ...
    sizes: list  # ... and their parameters

    def percentile(self, accuracy: float) -> float:
        """The share of random cells with a lower accuracy, in %."""
        return 100 * sum(other < accuracy for other in self.others) / len(self.others)


def judge_of(space: str, options) -> Judge:
    if space == "nb201":
        return judge_by_table(options.table)
    predict = surrogate(options.surrogate)
    rows = read(Path(options.surrogate).with_name("random_cells.csv"))
    cells = [genotypes.load(row["genotype"]) for row in rows]
    if space != "darts":  # the 214 cells are not in S2
        return Judge(predict, predict(cells), [], [], [])
    true = [float(row["test_accuracy_last"]) for row in rows]
    return Judge(predict, predict(cells), cells, true, [parameters(cell) for cell in cells])


def judge_by_table(path: str) -> Judge:
    """NAS-Bench-201: percentiles among all cells that ROME can find, Spearman over 200 of them."""
    names, true, sizes, found = ("none", *nasbench.NB201), {}, {}, []
    for row in sorted(read(path), key=lambda row: row["ops"]):  # six digits, one per edge
        cell = nasbench.FORM.format(*[names[int(digit)] for digit in row["ops"]])
        true[cell], sizes[cell] = float(row["c10_test"]), float(row["params"])
        if "0" not in row["ops"][:3] and row["ops"][3:].count("0") == 1:
            found.append(cell)
    some = random.Random(0).sample(found, CELLS)

    def score(cells):
        return [true[cell] for cell in cells]

    return Judge(score, score(found), some, score(some), [sizes[cell] for cell in some])


def surrogate(path: str) -> Callable:
    """A function from genotypes to predicted validation accuracies in %, after 98 epochs."""
    try:
        import numpy
        import onnxruntime
    except ImportError:
        raise ValueError("the surrogate needs onnxruntime: pip install onnxruntime") from None
    codes = Path(path).with_name(Path(path).stem + "_encoding.json").read_text()
    session = onnxruntime.InferenceSession(path)
    codes = {name.rpartition("_COLON_")[2]: code for name, code in json.loads(codes).items()}

    def predict(cells):
        numbers = numpy.array([encode(cell, codes) for cell in cells], numpy.int32)
        epochs = numpy.full((len(cells), 1), 98, numpy.float32)
        output = session.run(None, dict(x_cat=numbers, x_cont=epochs))[0]
        return (100 * output[:, 0]).tolist()

    return predict


def encode(genotype: rome.Genotype, codes: dict) -> list[int]:
    """The 34 numbers that the surrogate reads: each edge's operation and each node's inputs."""
    words = {}
    for kind in ("normal", "reduce"):
        for j, node in enumerate(rome.nodes_of(getattr(genotype, kind))):
            words[f"inputs_node_{kind}_{j + 2}"] = "_".join(map(str, sorted(node)))
            for i, op in node.items():
                words[f"edge_{kind}_{rome.first_edge(j) + i}"] = op
    columns = [f"edge_{kind}_{edge}" for kind in ("normal", "reduce") for edge in range(14)]
    columns += [f"inputs_node_{kind}_{j}" for kind in ("normal", "reduce") for j in (3, 4, 5)]
    return [codes[column][words.get(column, "#na#")] for column in columns]


def parameters(genotype: rome.Genotype) -> int:
    """Of the derived network, with 20 cells and 36 channels."""
    with torch.device("meta"):
        network = rome.Network(genotype, auxiliary=False)
    return sum(p.numel() for p in network.parameters())


def all_of(op: str) -> rome.Genotype:
    """The cells with one operation everywhere, on the two inputs of the cell."""
    pairs, concat = [(op, 0), (op, 1)] * 4, [2, 3, 4, 5]
    return rome.Genotype(pairs, concat, pairs, concat)


def two_inputs(cell: str, judge: Judge) -> dict:
    """The worst and the best accuracy if GDAS's cell keeps two inputs of its last node."""
    accuracies = judge.score(with_two_inputs(cell))
    low, high = min(accuracies), max(accuracies)
    return dict(two_inputs_low=f"{low:.4f}", two_inputs_high=f"{high:.4f}")


def with_two_inputs(cell: str) -> list[str]:
    """The cells that a cell of NAS-Bench-201 becomes if its last node loses one of three inputs."""
    first, _, last = cell.rpartition("+")
    edges = last.strip("|").split("|")
    return [f"{first}+{last.replace(edge, 'none' + edge[-2:])}" for edge in edges]


def baselines(judges: dict) -> list[dict]:
    """What needs no search: the largest cell of each space, and a random cell."""
    rows, s2 = [], judges["s2"]
    generator = torch.Generator().manual_seed(0)
    by_chance = [genotypes.random_cell("s2", generator) for _ in range(CELLS)]
    every = nasbench.FORM.format(*["nor_conv_3x3"] * 6)
    for space, name, accuracies in (
        ("darts", "S0: sep_conv_5x5 everywhere", judges["darts"].score([all_of("sep_conv_5x5")])),
        ("darts", "S0: a random cell, mean of 214", judges["darts"].others),
        ("s2", "S2: sep_conv_3x3 everywhere", s2.score([all_of("sep_conv_3x3")])),
        ("s2", f"S2: a random cell, mean of {CELLS}", s2.score(by_chance)),
        ("nb201", "NAS-Bench-201: 3x3 everywhere, 6 edges", judges["nb201"].score([every])),
        ("nb201", "the same, 5 edges, mean of 3", judges["nb201"].score(with_two_inputs(every))),
        ("nb201", "a random cell with 5 edges, exact mean", judges["nb201"].others),
    ):
        places = [judges[space].percentile(accuracy) for accuracy in accuracies]
        mean, place = statistics.fmean(accuracies), statistics.fmean(places)
        rows.append(dict(space=space, cell=name, accuracy=f"{mean:.4f}", percentile=f"{place:.1f}"))
    return rows


# --------------------------------------------------------------------------------------------------
# 3. Reading runs

KEPT = ("loss_", "parameter_free_", "entropy_", "top_", "supernet_")  # columns of metrics.csv


def collect(options) -> int:
    """Adds the runs of a folder to results/: rows of epochs, and a row of a finished run."""
    judges = {space: judge_of(space, options) for space in ("darts", "s2", "nb201")}
    epochs, runs = kept_rows("epochs"), kept_rows("runs")
    write("baselines", baselines(judges))
    for folder in sorted(path.parent for path in Path(options.runs).glob("*-s*/metrics.csv")):
        settings = json.loads((folder / "config.json").read_text())["settings"]
        check(folder, settings)
        judge = judges[settings["space"]]
        rows = progress(folder, judge)
        epochs = [row for row in epochs if row["run"] != folder.name] + rows
        known = [row["run"] for row in runs]
        if len(rows) == settings["epochs"] and folder.name not in known:
            print(f"{folder.name}: {len(judge.cells)} cells in its supernet", flush=True)
            runs.append(summary(rows[-1], settings) | measure(folder, settings, judge))
        write("epochs", epochs)
        runs.sort(key=lambda row: (list(ARMS).index(arm_of(row["run"])), row["run"]))
        write("runs", runs)
    return 0


def check(folder: Path, settings: dict) -> None:
    """ValueError unless the run has the settings of the arm in its name."""
    arm = arm_of(folder.name)
    if arm not in ARMS:
        raise ValueError(f"{folder}: there is no arm {arm}; a run's folder is called ARM-sSEED")
    wanted = train.configure("search", words_of(arm, 0, "", ""))
    names = wanted.keys() & settings.keys() - train.FREE - {"seed"}
    wrong = [name for name in sorted(names) if settings[name] != wanted[name]]
    if wrong:
        raise ValueError(f"{folder} is no run of {arm}: it has another {', '.join(wrong)}")


def progress(folder: Path, judge: Judge) -> list[dict]:
    """A row per epoch: some columns of metrics.csv, and what its derived cell is worth."""
    rows = []
    for row in read(folder / "metrics.csv"):
        accuracy = judge.score([genotypes.load(row["genotype"])])[0]
        kept = {name: f"{float(row[name]):.5g}" for name in row if name.startswith(KEPT)}
        worth = dict(accuracy=f"{accuracy:.4f}", percentile=f"{judge.percentile(accuracy):.1f}")
        rows.append(dict(run=folder.name, epoch=row["epoch"]) | worth | kept)
    return rows


def summary(last: dict, settings: dict) -> dict:
    """A finished run's settings and last epoch, under names that serve all spaces."""
    row = {"run": last["run"]} | {name: settings[name] for name in ("space", "method", "epochs")}
    row["samples"] = settings["samples"][0]
    row["free"] = last.get("parameter_free_normal", last.get("parameter_free_cell"))
    row["ops"] = 8
    if settings["space"] == "nb201":
        row["ops"] = 6 if settings["method"] == "gdas" else 5
    row["free_reduce"] = last.get("parameter_free_reduce", "")
    same = ("accuracy", "percentile", "loss_theta", "loss_alpha")
    return row | {name: last[name] for name in same}


def measure(folder: Path, settings: dict, judge: Judge) -> dict:
    """What a supernet knows: of cells with a known accuracy, by its loss; and of cells from p(z).

    The loss is taken on images of alpha's half. The supernets of both methods are asked about the
    same cells. Beside them stands a predictor without training: the number of parameters.
    """
    state = train.load_checkpoint(folder / "last.pt", "search")
    data = train.load_data(settings, "train")
    data = data._replace(statistics=state["statistics"])
    half = train.halves(data.labels, settings["fraction"], train.seed_of(settings, "halves"))[1]
    generator = torch.Generator().manual_seed(0)
    some = half[torch.randperm(len(half), generator=generator)[:IMAGES]]
    batches = list(train.stream(data, settings | dict(batch_size=100), some, 0))
    sizes = settings["channels"], settings["cells"], len(data.classes)
    net = train.make_supernet(settings["space"], *sizes, train.TOPOLOGY[settings["method"]])
    net.load_state_dict(state["net"])

    drawn = judge.score([draw_cell(net, generator) for _ in range(CELLS)])
    places = [judge.percentile(accuracy) for accuracy in drawn]
    hours = sum(row["seconds"] for row in state["rows"]) / 3600
    found = dict(
        images=len(data.labels), genotype=state["rows"][-1]["genotype"], hours=f"{hours:.2f}",
        drawn=f"{statistics.fmean(drawn):.4f}", drawn_percentile=f"{statistics.fmean(places):.1f}",
    )  # fmt: skip
    if judge.cells:
        losses = []
        for cell in judge.cells:
            predict = functools.partial(net, z=net.architecture(cell))
            losses.append(train.evaluate(predict, batches)[0])
        found["spearman"] = f"{-spearman(losses, judge.true):.4f}"
        found["spearman_size"] = f"{spearman(judge.sizes, judge.true):.4f}"
    if settings["space"] == "nb201" and settings["method"] == "gdas":
        found |= two_inputs(found["genotype"], judge)
    return found


def draw_cell(net, generator: torch.Generator):
    """A cell from p(z). GDAS's has no topology: in DARTS's spaces two inputs of a node stay."""
    z = net.sample(1.0, generator)
    if not isinstance(net, rome.Supernet):
        return net.cell(z)
    for kind, choice in z.items():
        nodes = []
        for node in choice.nodes:
            two = torch.randperm(len(node), generator=generator)[:2]
            nodes.append([node[number] for number in sorted(two.tolist())])
        z[kind] = rome.Choice(nodes)
    return net.cell(z)


def ranks(values: list) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs."""
    return [
        sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values
    ]


def spearman(a: list, b: list) -> float:
    return statistics.correlation(ranks(a), ranks(b))


def kept_rows(name: str) -> list[dict]:
    """What earlier calls wrote; nothing at first."""
    path = RESULTS / f"{name}.csv"
    return read(path) if path.exists() else []


def read(path) -> list[dict]:
    """The rows of a CSV file, packed or not."""
    with (gzip.open if str(path).endswith(".gz") else open)(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def write(name: str, rows: list[dict]) -> None:
    names = dict.fromkeys(name for row in rows for name in row)
    with open(RESULTS / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(names), "", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# --------------------------------------------------------------------------------------------------
# 4. The pages' tables and the figure

COLUMNS = {  # heading: column of runs.csv, digits
    "free": ("free", 1),
    "mean free": ("mean_free", 1),
    "reduction": ("free_reduce", 1),
    "percentile": ("percentile", 1),
    "mean percentile": ("mean_percentile", 1),
    "drawn, percentile": ("drawn_percentile", 1),
    "accuracy %": ("accuracy", 2),
    "two inputs: worst": ("two_inputs_low", 2),
    "best": ("two_inputs_high", 2),
    "drawn %": ("drawn", 2),
    "loss": ("loss_theta", 2),
    "Spearman": ("spearman", 2),
}


def figures(_) -> int:
    """Renews the tables between the markers of both pages, and fit.svg."""
    for path, text in pages().items():
        path.write_text(text)
    draw(kept_rows("nb201-8000/runs") + kept_rows("runs"))
    return 0


def pages() -> dict:
    """Path -> its text with new tables."""
    by_chance, texts = kept_rows("baselines"), {}
    old = [row for row in by_chance if row["space"] == "nb201"]
    for path, rows, beside in (
        (HERE / "README.md", with_means(kept_rows("runs")), by_chance),
        (RESULTS / "README.md", kept_rows("nb201-8000/runs"), old),
    ):
        marker = "<!-- table -->"
        before, _, after = path.read_text().split(marker)
        texts[path] = f"{before}{marker}\n\n{table(rows, beside)}\n\n{marker}{after}"
    return texts


def with_means(runs: list[dict]) -> list[dict]:
    """Adds means over the second half of a search's epochs, because its cell goes on changing."""
    epochs, rows = kept_rows("epochs"), []
    for row in runs:
        late = [other for other in epochs if other["run"] == row["run"]]
        late = late[len(late) // 2 :]
        free = "parameter_free_cell" if row["space"] == "nb201" else "parameter_free_normal"
        columns = dict(mean_free=free, mean_percentile="percentile")
        for name, column in columns.items():
            row = row | {name: str(statistics.fmean(float(other[column]) for other in late))}
        rows.append(row)
    return rows


def table(runs: list[dict], by_chance: list[dict]) -> str:
    """Finished runs, a line an arm, and the baselines; no empty columns."""
    lines, arms = [], {}
    for row in runs:
        arms.setdefault(arm_of(row["run"]), []).append(row)
    for arm, rows in arms.items():
        values = [
            show([row.get(name) for row in rows], digits) for name, digits in COLUMNS.values()
        ]
        lines.append([arm, str(len(rows)), *values])
    for row in by_chance:
        values = [show([row.get(name)], digits) for name, digits in COLUMNS.values()]
        lines.append([row["cell"], "", *values])
    head = ["search", "n", *COLUMNS]
    filled = [column for column in range(len(head)) if any(line[column] for line in lines)]
    lines = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(line[column] for column in filled)} |" for line in lines)


def show(values: list, digits: int) -> str:
    """One or two values, or the mean ± sample deviation (n - 1); nothing if a value is missing."""
    if not all(values):
        return ""
    values = [float(value) for value in values]
    if len(values) < 3:
        return ", ".join(f"{value:.{digits}f}" for value in values)
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(set(values)) > 1:
        return f"{mean} ± {statistics.stdev(values):.{digits}f}"
    return f"{mean}, {len(values)} times"


def draw(runs: list[dict]) -> None:
    """The supernet's training loss against the share of parameter-free ops, a dot a run."""
    import matplotlib.figure

    style = {"svg.fonttype": "none", "svg.hashsalt": "rome", "font.size": 9}
    matplotlib.rcParams.update(style)
    panels = {}
    for row in runs:
        panels.setdefault((row["space"], row["images"]), []).append(row)
    fig = matplotlib.figure.Figure(figsize=(7.2, 5.6), facecolor="white", layout="constrained")
    axes = fig.subplots(2, 2, sharex=True, sharey=True).flat
    for axis, ((space, images), rows) in zip(axes, panels.items(), strict=True):
        most = max(passes(row) for row in rows)
        for row in rows:
            colour = "#0072B2" if row["method"] == "gdas" else "#D55E00"
            share, full = float(row["free"]) / float(row["ops"]), passes(row) == most
            form = dict(marker="o" if row["samples"] == "1" else "s", edgecolor=colour)
            axis.scatter(float(row["loss_theta"]), share, c=colour if full else "white", **form)
        axis.set(title=f"{space}, {images} images, n = {len(rows)}", ylim=(-0.05, 1.05))
    fig.supxlabel("training loss of the supernet")
    fig.supylabel("share of parameter-free ops")
    for name, colour, marker in (("ROME", "#D55E00", "."), ("GDAS", "#0072B2", ".")):
        axes[0].scatter([], [], c=colour, marker=marker, label=name)
    for name, marker in (("K = 1", "o"), ("K = 7", "s")):
        axes[0].scatter([], [], c="#555555", marker=marker, label=name)
    axes[0].legend(frameon=False)
    fig.savefig(HERE / "fit.svg", metadata={"Date": None})


def passes(row: dict) -> int:
    return int(row["samples"]) * int(row["epochs"])


def main(words: list[str] | None = None) -> int:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("images")
    first.add_argument("source", metavar="SOURCE")
    first.add_argument("folder", metavar="DIR")
    one = commands.add_parser("run")
    one.add_argument("--arm", required=True, choices=ARMS)
    one.add_argument("--seed", required=True, type=int)
    one.add_argument("--data", required=True, metavar="DIR", help="with train/CLASS/*")
    one.add_argument("--out", metavar="DIR", help="default: runs/evidence/ARM-sSEED")
    some = commands.add_parser("collect")
    some.add_argument("runs", metavar="RUNS", help="the folder of folders ARM-sSEED")
    some.add_argument("--surrogate", required=True, metavar="FILE.onnx")
    some.add_argument("--table", required=True, metavar="CSV", help="of NAS-Bench-201")
    commands.add_parser("figures")
    options = parser.parse_args(words)
    actions = dict(images=images, run=run, collect=collect, figures=figures)
    return actions[options.command](options)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"study.py: error: {error}", file=sys.stderr)
        sys.exit(2)
