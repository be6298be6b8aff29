"""The study of the paper's claims: its searches, what became of them, and the page's tables.

    python evidence/study.py images SOURCE DIR    the images of the study
    python evidence/study.py run --arm s0-rome-k7 --seed 0 --data DIR    a search, or its rest
    python evidence/study.py collect RUNS --surrogate FILE.onnx    runs -> results/*.csv
    python evidence/study.py retrain CELL... --seeds 0 1 --data DIR --surrogate FILE.onnx
    python evidence/study.py gradients RUN --data DIR    alpha's and beta's, beside Adam's decay
    python evidence/study.py figures    results/*.csv -> the page's tables and percentiles.svg

SOURCE/train/CLASS/* are all 50,000 training images of CIFAR-10, SOURCE/test/CLASS/* its test
images. A run's folder is RUNS/ARM-sSEED. `collect` takes seconds. It also reads runs that have not
ended, and keeps the rows of runs that it does not find, so runs can be made on several machines.
With --supernets it asks each supernet of S0 about 214 cells, which takes minutes.

FILE.onnx is a surrogate of NAS-Bench-301 (slds-lmu/yahpo_data, v2_final). It predicts the
validation accuracy of a cell of S0. Its encoding lies beside it as FILE_encoding.json, and so does
random_cells.csv: 214 random cells (genotype) and their test accuracies (test_accuracy_last) after
600 epochs, by Yang et al., ICLR 2020 (antoyang/NAS-Benchmark).
"""

import argparse
import csv
import functools
import json
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

PAGE, RESULTS = HERE / "README.md", HERE / "results"
CELLS, IMAGES = 200, 2000  # of a measurement

# --------------------------------------------------------------------------------------------------
# 1. The searches. What a row does not name has the program's default.

# S0 and S2 five times shorter than the paper's search: 3,910 steps in place of 19,550, or at K = 1
# 27,370 in place of 136,850. alpha's rate is five times the paper's, so that its way is as long.
SHORT = "--image-size 16 --channels 8 --cells 8 --batch-size 32 --alpha-lr 1.5e-3"
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
}
# What if alpha may move? Without its decay, or with a temperature that begins low, or both.
CHANGES = {
    "-decay0": "--alpha-weight-decay 0",
    "-tau1": "--tau 1 0.1",
    "-decay0-tau1": "--alpha-weight-decay 0 --tau 1 0.1",
    "-decay0-late": "--alpha-weight-decay 0",  # see `late`
}
for name in list(ARMS):
    for ending, words in CHANGES.items():
        ARMS[name + ending] = f"{ARMS[name]} {words}"


def arm_of(run: str) -> str:
    """The arm in ARM-sSEED, the name of a run."""
    return run.rpartition("-s")[0]


def images(options) -> int:
    """Copies the first 2,500 training images of each class, and all test images."""
    source, folder = Path(options.source), Path(options.folder)
    for place in sorted((source / "train").iterdir()):
        files = sorted(place.iterdir())[:2500]
        if len(files) < 2500:
            raise ValueError(f"{place} has {len(files)} images; it needs 2,500")
        (folder / "train" / place.name).mkdir(parents=True)
        for file in files:
            shutil.copy(file, folder / "train" / place.name)
    shutil.copytree(source / "test", folder / "test")
    return 0


def words_of(arm: str, seed: int, data: str, out: str) -> list[str]:
    """The flags of `train.py search`."""
    words = ["--dataset", "folder", "--data", data, "--seed", str(seed), "--out", out, "--resume"]
    return ARMS[arm].split() + words


def run(options) -> int:
    """One search. Returns its exit status."""
    out = options.out or f"runs/evidence/{options.arm}-s{options.seed}"
    if options.arm.endswith("-late"):
        rome.Architect.architecture_step = late
    return train.main(["search", *words_of(options.arm, options.seed, options.data, out)])


STEP = rome.Architect.architecture_step


def late(architect, images, labels, tau, optimizer):
    """A diagnosis: alpha and beta stay as they are in the first four epochs of ten, tau 10 to 6.7.

    If K = 1 then no longer collapses, it was the untrained supernet that prefers skips and pools.
    """
    if tau > 6:
        optimizer = torch.optim.SGD(architect.net.architecture_parameters(), 0.0)
    return STEP(architect, images, labels, tau, optimizer)


# --------------------------------------------------------------------------------------------------
# 2. What a cell is worth


class Judge(NamedTuple):
    """Accuracies of cells of S0 or S2 in %, as the surrogate predicts them."""

    score: Callable  # genotypes -> their accuracies
    others: list  # the accuracies of the 214 random cells, for percentiles
    cells: list  # those of them that the space has, ...
    true: list  # ... and their test accuracies

    def percentile(self, accuracy: float) -> float:
        """The share of random cells with a lower accuracy, in %."""
        return 100 * sum(other < accuracy for other in self.others) / len(self.others)


def judge_of(space: str, path: str) -> Judge:
    predict, rows = surrogate(path), read(Path(path).with_name("random_cells.csv"))
    cells = [genotypes.load(row["genotype"]) for row in rows]
    others = predict(cells)
    if space != "darts":  # the 214 cells are not in S2
        return Judge(predict, others, [], [])
    return Judge(predict, others, cells, [float(row["test_accuracy_last"]) for row in rows])


def surrogate(path: str) -> Callable:
    """A function from genotypes to predicted validation accuracies in %, after 98 epochs."""
    import numpy
    import onnxruntime

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


def all_of(op: str) -> rome.Genotype:
    """The cells with one operation everywhere, on the two inputs of the cell."""
    pairs, concat = [(op, 0), (op, 1)] * 4, [2, 3, 4, 5]
    return rome.Genotype(pairs, concat, pairs, concat)


def worth(cells: list, judge: Judge) -> tuple[str, str]:
    """The mean accuracy of cells, and the mean of their percentiles."""
    accuracies = judge.score(cells)
    places = [judge.percentile(accuracy) for accuracy in accuracies]
    return f"{statistics.fmean(accuracies):.4f}", f"{statistics.fmean(places):.1f}"


# --------------------------------------------------------------------------------------------------
# 3. Reading runs

KEPT = ("loss_", "parameter_free_", "entropy_", "top_", "supernet_")  # columns of metrics.csv


def collect(options) -> int:
    """Adds the runs of a folder to results/: rows of epochs, and a row of a finished run.

    A row of a finished run stays as it is; it may lack Spearman, which --supernets adds.
    """
    judges = {space: judge_of(space, options.surrogate) for space in ("darts", "s2")}
    epochs, runs = kept_rows("epochs"), {row["run"]: row for row in kept_rows("runs")}
    for folder in sorted(path.parent for path in Path(options.runs).glob("*-s*/metrics.csv")):
        settings = json.loads((folder / "config.json").read_text())["settings"]
        check(folder, settings)
        name, judge = folder.name, judges[settings["space"]]
        rows = progress(folder, judge)
        epochs = [row for row in epochs if row["run"] != name] + rows
        if (folder / "genotype.json").exists():  # written last
            row = runs[name] = runs.get(name) or summary(folder, rows[-1], settings, judge)
            if options.supernets and judge.cells and not row.get("spearman"):
                row["spearman"] = ask(folder, settings, judge)
        write("epochs", epochs)
        write("runs", list(runs.values()))
    return 0


def check(folder: Path, settings: dict) -> None:
    """ValueError unless the run has the settings of the arm in its name."""
    arm = arm_of(folder.name)
    if arm not in ARMS:
        raise ValueError(f"{folder}: there is no arm {arm}; a run's folder is called ARM-sSEED")
    wanted = train.configure("search", words_of(arm, 0, "", ""))
    names = wanted.keys() & settings.keys() - train.MAY_DIFFER - {"seed"}
    wrong = [name for name in sorted(names) if settings[name] != wanted[name]]
    if wrong:
        raise ValueError(f"{folder} is no run of {arm}: it has another {', '.join(wrong)}")


def progress(folder: Path, judge: Judge) -> list[dict]:
    """A row per epoch: some columns of metrics.csv, and what its derived cell is worth.

    edges: how many of its 16 edges the derived cell of the epoch before does not have.
    """
    rows, before = [], None
    for row in read(folder / "metrics.csv"):
        cell = genotypes.load(row["genotype"])
        accuracy, percentile = worth([cell], judge)
        edges = edges_of(cell)
        changed = "" if before is None else len(edges - before)
        kept = {name: f"{float(row[name]):.5g}" for name in row if name.startswith(KEPT)}
        found = dict(accuracy=accuracy, percentile=percentile, edges=changed)
        rows.append(dict(run=folder.name, epoch=row["epoch"]) | found | kept)
        before = edges
    return rows


def edges_of(genotype: rome.Genotype) -> set:
    """The edges of both cells: (number of the node, operation, input)."""
    pairs = [*genotype.normal, *genotype.reduce]  # two a node
    return {(number // 2, op, i) for number, (op, i) in enumerate(pairs)}


def summary(folder: Path, last: dict, settings: dict, judge: Judge) -> dict:
    """A finished run: settings, last epoch, and what 200 cells drawn from p(z) are worth."""
    row = {"run": last["run"]} | {name: settings[name] for name in ("space", "method", "epochs")}
    row |= dict(samples=settings["samples"][0], free=last["parameter_free_normal"])
    row["free_reduce"] = last["parameter_free_reduce"]
    same = ("accuracy", "percentile", "loss_theta", "loss_alpha")
    row |= {name: last[name] for name in same}
    net, state = supernet_of(folder)
    hours = sum(epoch["seconds"] for epoch in state["rows"]) / 3600
    row |= dict(genotype=state["rows"][-1]["genotype"], hours=f"{hours:.2f}")
    generator = torch.Generator().manual_seed(0)
    drawn, place = worth([draw_cell(net, generator) for _ in range(CELLS)], judge)
    return row | dict(drawn=drawn, drawn_percentile=place)


def supernet_of(folder: Path) -> tuple:
    """The supernet of a run's last checkpoint, and the checkpoint."""
    state = train.load_checkpoint(Path(folder, "last.pt"), "search")
    settings = state["settings"]
    sizes = settings["channels"], settings["cells"], len(state["classes"])
    net = train.make_supernet(settings["space"], *sizes, train.TOPOLOGY[settings["method"]])
    net.load_state_dict(state["net"])
    return net, state


def images_of_alpha(settings: dict, state: dict) -> tuple:
    """The images of a run, and which of them train alpha and beta, in random order."""
    data = train.load_data(settings, "train")._replace(statistics=state["statistics"])
    half = train.halves(data.labels, settings["fraction"], train.seed_of(settings, "halves"))[1]
    return data, half[torch.randperm(len(half), generator=torch.Generator().manual_seed(0))]


def ask(folder: Path, settings: dict, judge: Judge) -> str:
    """Spearman between what a supernet and the truth say of cells: its loss, and their accuracy.

    The loss is taken on images of alpha's half, and its sign is turned.
    """
    print(f"{folder.name}: {len(judge.cells)} cells in its supernet", flush=True)
    net, state = supernet_of(folder)
    data, half = images_of_alpha(settings, state)
    batches = list(train.stream(data, settings | dict(batch_size=100), half[:IMAGES], 0))
    losses = []
    for cell in judge.cells:
        predict = functools.partial(net, z=net.architecture(cell))
        losses.append(train.evaluate(predict, batches)[0])
    return f"{-spearman(losses, judge.true):.4f}"


def draw_cell(net, generator: torch.Generator):
    """A cell from p(z). GDAS's has no topology: two random inputs of a node stay."""
    z = net.sample(1.0, generator)
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
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write(name: str, rows: list[dict]) -> None:
    names = dict.fromkeys(name for row in rows for name in row)
    with open(RESULTS / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(names), "", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# --------------------------------------------------------------------------------------------------
# 4. Cells judged by training them, and the gradients of alpha and beta

# Small networks, trained shortly: what is meant against overfitting would only slow them.
RECIPE = (
    "--dataset folder --image-size 16 --channels 8 --cells 8 --epochs 20 --batch-size 96 "
    "--drop-path 0 --auxiliary 0 --cutout 0"
)


def retrain(options) -> int:
    """Retrains each cell with each seed, and adds its test accuracy to results/trained.csv.

    What is there already is left out; an interrupted retrain goes on.
    """
    judge = judge_of("darts", options.surrogate)
    cells = {name: cell_of(name) for name in options.cells}
    for seed in options.seeds:
        for name, cell in cells.items():
            known = [(row["cell"], row["seed"]) for row in kept_rows("trained")]
            if (name, str(seed)) in known:
                continue
            words = [*RECIPE.split(), "--genotype", str(cell), "--data", options.data]
            words += ["--seed", str(seed), "--out", f"{options.out}/{name}-s{seed}", "--resume"]
            accuracy = train.retrain(train.configure("retrain", words))
            free, (_, place) = genotypes.parameter_free(cell)["normal"], worth([cell], judge)
            row = dict(cell=name, seed=seed, free=free, percentile=place, accuracy=accuracy)
            write("trained", [*kept_rows("trained"), row])
    return 0


def cell_of(name: str) -> rome.Genotype:
    """Of a run in runs.csv the found cell; random-N; or an operation's name: it everywhere."""
    kind, _, number = name.partition("-")
    if kind == "random":
        return genotypes.random_cell("darts", torch.Generator().manual_seed(int(number)))
    if name in rome.PRIMITIVES:
        return all_of(name)
    found = {row["run"]: row["genotype"] for row in kept_rows("runs")}
    if name not in found:
        raise ValueError(f"{name} is no run of runs.csv, no random-N and no operation")
    return genotypes.load(found[name])


def gradients(options) -> int:
    """How strong are the gradients of a finished search beside their noise and Adam's decay?

    At the last weights, alpha and beta, over the steps of one epoch, nothing is changed. `step`:
    root mean square of an entry in one step, of K sub-networks. `mean`: that of its mean over the
    steps, with the noise's share taken off (0: not seen); `noise`: the deviation of this mean.
    Adam adds 1e-3 times alpha to the gradient. So this decay holds an entry below 1000 x mean, and
    Adam forgets in step / (rate x 1e-3) steps.
    """
    net, state = supernet_of(options.run)
    settings = state["settings"] | dict(data=options.data)
    data, half = images_of_alpha(settings, state)
    architect = rome.Architect(net, settings["samples"][0], generator=torch.Generator())
    still = torch.optim.SGD(net.architecture_parameters(), 0.0)
    for tau in (10.0, 3.0, 1.0, 0.3, 0.1):
        found = {}
        for x, y in train.stream(data, settings, half, 0, augment=True):
            architect.architecture_step(x, y, tau, still)
            for table, kinds in (("alpha", net.alpha), ("beta", net.beta)):
                for kind, values in kinds.items():
                    found.setdefault((table, kind), []).append(values.grad.flatten().clone())
        for (table, kind), rows in found.items():
            entries = torch.stack(rows)  # (steps, entries)
            entries = entries[:, entries.abs().sum(0) > 0]  # without inputs that a node has not
            noise = entries.var(0).mean() / len(entries)
            mean = (entries.mean(0).square().mean() - noise).clamp_min(0).sqrt()
            step = entries.square().mean().sqrt()
            print(
                f"tau {tau}, {table} {kind}: step {step:.1e}, mean {mean:.1e}, noise "
                f"{noise.sqrt():.1e}, held below {1000 * mean:.3f}, forgotten in "
                f"{1000 * step / settings['alpha_lr']:,.0f} steps",
                flush=True,
            )
    return 0


# --------------------------------------------------------------------------------------------------
# 5. The page's tables and the figure

SEARCHES = {  # heading: column of runs.csv, digits
    "mean free": ("mean_free", 1),
    "mean percentile": ("mean_percentile", 1),
    "swing": ("swing", 1),
    "edges": ("edges", 1),
    "free": ("free", 1),
    "percentile": ("percentile", 1),
    "drawn, percentile": ("drawn_percentile", 1),
    "accuracy %": ("accuracy", 2),
    "loss": ("loss_theta", 2),
    "Spearman": ("spearman", 2),
    "hours": ("hours", 2),
}
TRAINED = {"free": ("free", 0), "percentile": ("percentile", 1), "accuracy %": ("accuracy", 2)}


def figures(_) -> int:
    """Renews the page's tables, between their markers, and percentiles.svg."""
    PAGE.write_text(page())
    draw(kept_rows("epochs"))
    return 0


def page() -> str:
    """The text of the page with new tables."""
    text = PAGE.read_text()
    tables = dict(
        searches=table("search", with_means(kept_rows("runs")), SEARCHES),
        trained=table("cell", kept_rows("trained"), TRAINED),
    )
    for name, new in tables.items():
        marker = f"<!-- {name} -->"
        before, _, after = text.split(marker)
        text = f"{before}{marker}\n\n{new}\n\n{marker}{after}"
    return text


def with_means(runs: list[dict]) -> list[dict]:
    """Adds means over the second half of a search's epochs, because its cell goes on changing."""
    epochs, rows = kept_rows("epochs"), []
    for row in runs:
        own = [other for other in epochs if other["run"] == row["run"]]
        free = "parameter_free_cell" if row["space"] == "nb201" else "parameter_free_normal"
        rows.append(row | means(own[len(own) // 2 :], free))
    return rows


def means(late: list[dict], free: str) -> dict:
    """Of epochs in a row. swing and edges: of the changes from one of them to the next."""
    places = [float(row["percentile"]) for row in late]
    changes = [abs(after - before) for before, after in zip(places, places[1:])]
    found = dict(
        mean_free=statistics.fmean(float(row[free]) for row in late),
        mean_percentile=statistics.fmean(places), swing=statistics.fmean(changes), edges="",
    )  # fmt: skip
    if late[-1].get("edges"):  # the first runs did not keep the cell of each epoch
        found["edges"] = statistics.fmean(float(row["edges"]) for row in late[1:])
    return {name: str(value) for name, value in found.items()}


def table(what: str, rows: list[dict], columns: dict) -> str:
    """A line an arm, or a retrained cell, with all its seeds."""
    groups, lines = {}, [[what, "n", *columns], ["---"] * (len(columns) + 2)]
    for row in rows:
        groups.setdefault(row.get("cell") or arm_of(row["run"]), []).append(row)
    for name, group in groups.items():
        values = [
            show([row.get(column) for row in group], digits) for column, digits in columns.values()
        ]
        lines.append([name, str(len(group)), *values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(values: list, digits: int) -> str:
    """One or two values, or the mean ± sample deviation (n - 1); one value if all are equal."""
    if not all(values):
        return ""  # a value is missing
    values = [float(value) for value in values]
    values = values if len(set(values)) > 1 else values[:1]
    if len(values) < 3:
        return ", ".join(f"{value:.{digits}f}" for value in values)
    return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


DRAWN = {  # ending of an arm: its panel
    "": "decay 1e-3,\n$\\tau$ 10 to 0.1",
    "-decay0": "decay 0,\n$\\tau$ 10 to 0.1",
    "-tau1": "decay 1e-3,\n$\\tau$ 1 to 0.1",
    "-decay0-tau1": "decay 0,\n$\\tau$ 1 to 0.1",
}
STYLES = dict(gdas=dict(linestyle="--", color="#0072B2"), rome=dict(color="#D55E00"))


def draw(epochs: list[dict]) -> None:
    """The percentile of the derived cell by epoch in S0 at equal steps, a line a run.

    A filled dot is a cell with at least six parameter-free operations: it has collapsed.
    """
    import matplotlib.figure

    runs = {}
    for row in epochs:
        runs.setdefault(row["run"], []).append(row)
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "rome", "font.size": 8})
    fig = matplotlib.figure.Figure(figsize=(8.4, 4.6), facecolor="white", layout="constrained")
    axes = fig.subplots(2, 4, sharey=True)
    for row, samples in zip(axes, ("k7", "k1-steps")):
        for axis, ending in zip(row, DRAWN):
            axis.set_title(f"K = {samples[1]}, {DRAWN[ending]}")
            for method, style in STYLES.items():
                arm = f"s0-{method}-{samples}{ending}"
                for run, rows in runs.items():
                    if arm_of(run) == arm:
                        line(rows, axis, style)
                axis.plot([], [], label=method.upper(), **style)
            axis.set_visible(len(axis.collections) > 0)
    fig.supxlabel("epoch")
    fig.supylabel("percentile of the derived cell")
    axes[0, 0].legend(frameon=False)
    fig.savefig(HERE / "percentiles.svg", metadata={"Date": None})


def line(rows: list[dict], axis, style: dict) -> None:
    """One run."""
    numbers, places = ([float(row[name]) for row in rows] for name in ("epoch", "percentile"))
    axis.plot(numbers, places, **style)
    colour = style["color"]
    faces = [colour if int(row["parameter_free_normal"]) >= 6 else "white" for row in rows]
    axis.scatter(numbers, places, 16, c=faces, edgecolors=colour, zorder=2)


def main(words: list[str] | None = None) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = train.Parser(prog="study.py", description=__doc__, formatter_class=form)
    commands = parser.add_subparsers(dest="command", required=True)
    parts = {}
    for action in (images, run, collect, retrain, gradients, figures):
        parts[action] = commands.add_parser(action.__name__)
        parts[action].set_defaults(action=action)
    parts[images].add_argument("source")
    parts[images].add_argument("folder")
    parts[run].add_argument("--arm", required=True, choices=ARMS, metavar="ARM")
    parts[run].add_argument("--seed", required=True, type=int)
    parts[run].add_argument("--out", help="default: runs/evidence/ARM-sSEED")
    parts[collect].add_argument("runs", help="the folder of folders ARM-sSEED")
    parts[collect].add_argument("--supernets", action="store_true", help="ask them about 214 cells")
    parts[retrain].add_argument("cells", nargs="+", metavar="CELL", help="see `cell_of`")
    parts[retrain].add_argument("--seeds", nargs="+", type=int, default=[0])
    parts[retrain].add_argument("--out", default="runs/trained")
    parts[gradients].add_argument("run", help="the folder of a finished search")
    for action in (run, retrain, gradients):
        parts[action].add_argument("--data", required=True, help="from `images`")
    for action in (collect, retrain):
        parts[action].add_argument("--surrogate", required=True)
    options = parser.parse_args(words)
    return options.action(options)


if __name__ == "__main__":
    sys.exit(train.guarded("study.py", main))
