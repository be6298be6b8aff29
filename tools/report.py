"""The benchmarks, and what reads runs: `train.py list`, `train.py report RUN...`, `train.py plot RUN...`."""

import csv
import io
import json
import math
import shlex
import statistics
from pathlib import Path

import genotypes
import rome
import train

# Test error in % and Num, the parameter-free ops of the normal cell: mean, deviation, mean, deviation (Tables 1 to 4).
PAPER = {
    "darts/cifar10": {"rome-v2": (2.58, 0.07), "gdas": (3.48, 0.07)},
    "darts/cifar100": {"rome-v2": (17.71, 0.11), "gdas": (18.38,)},
    "darts/imagenet": {"rome-v2": (24.5,)},  # top-1 error, searched on ImageNet
    "s1/cifar10": {"rome-v2": (2.66, 0.06, 1.3, 0.4), "gdas": (2.89, 0.09, 3.8, 0.4)},
    "s2/cifar10": {"rome-v2": (3.14, 0.14, 2.0, 0.0), "gdas": (3.89, 0.17, 6.0, 0.7)},
    "s3/cifar10": {"rome-v2": (2.61, 0.00, 2.0, 0.0), "gdas": (3.04, 0.10, 6.5, 0.5)},
    "s4/cifar10": {"rome-v2": (3.21, 0.12, 0.0, 0.0), "gdas": (3.34, 0.10, 0.0, 0.0)},
    "s1/cifar100": {"rome-v2": (22.71, 0.71, 2.3, 0.4), "gdas": (24.49, 0.08, 4.0, 0.0)},
    "s2/cifar100": {"rome-v2": (22.91, 0.75, 3.5, 0.5), "gdas": (24.57, 0.47, 6.3, 0.4)},
    "s3/cifar100": {"rome-v2": (22.43, 0.36, 2.5, 0.5), "gdas": (22.86, 0.17, 3.0, 0.7)},
    "s4/cifar100": {"rome-v2": (20.95, 0.45, 0.0, 0.0), "gdas": (24.14, 0.89, 2.3, 1.1)},
    "s1/svhn": {"rome-v2": (2.34, 0.06, 0.8, 0.4), "gdas": (2.48, 0.04, 2.8, 0.4)},
    "s2/svhn": {"rome-v2": (2.41, 0.07, 1.0, 0.0), "gdas": (3.05, 0.02, 7.8, 0.4)},
    "s3/svhn": {"rome-v2": (2.56, 0.03, 1.5, 0.5), "gdas": (3.62, 0.36, 7.5, 0.5)},
    "s4/svhn": {"rome-v2": (2.34, 0.00, 0.0, 0.0), "gdas": (2.51, 0.06, 1.5, 1.5)},
}
# The paper's other searches in S0: error, deviation (printed as accuracies in Tables 4 to 6). TD: topology
# disentanglement; GA: gradient accumulation. Table 5 states its epochs; in Table 6 we keep K of the weights * epochs.
VARIANTS = [
    ("Table 2, ROME-v1", dict(dataset="cifar10", method="rome-v1"), 2.63, 0.09),
    ("Table 3, ROME-v1", dict(dataset="cifar100", method="rome-v1"), 17.41, 0.12),
    ("Table 4, GDAS", dict(dataset="imagenet", method="gdas", equal_passes=True), 100 - 72.5, None),
    ("Tables 5, 6, K = 1, TD, no GA", dict(samples=1, equal_passes=True), 100 - 97.12, 0.06),
    ("Table 5, K = 4", dict(samples=4, equal_passes=True), 100 - 97.28, 0.07),
    ("Tables 5, 6, K = 7, TD, both GA", dict(samples=7), 100 - 97.42, 0.07),
    ("Table 5, K = 10", dict(samples=10, equal_passes=True), 100 - 97.46, 0.12),
    ("Table 6, TD, GA of alpha", dict(samples_theta=1, equal_passes=True), 100 - 97.22, 0.07),
    ("Table 6, TD, GA of theta", dict(samples_alpha=1), 100 - 97.34, 0.07),
    ("Table 6, no TD, no GA", dict(method="gdas", equal_passes=True), 100 - 96.52, 0.07),
    ("Table 6, no TD, GA of alpha", dict(method="gdas", samples_alpha=7, equal_passes=True), 100 - 96.85, 0.31),
    ("Table 6, no TD, GA of theta", dict(method="gdas", samples_theta=7), 100 - 96.98, 0.05),
    ("Table 6, no TD, both GA", dict(method="gdas", samples=7), 100 - 97.14, 0.05),
]
S0 = dict(space="darts", dataset="cifar10", method="rome-v2")  # of VARIANTS, where they say nothing else
NOTES = """\
ROME's error in s1/cifar10, s1/cifar100, s3/cifar100, s1/svhn and s4/svhn: the first digit is lost in the text that the
    table was read from, and restored.
GDAS: --method gdas. In darts/cifar10 its 3.48 is the paper's rerun of GDAS's own code (Table 2 quotes 2.93); 18.38 is
    quoted.
s3: R-DARTS's S2 and the op none, which is left out here (Eq. 1). The search of s3 is that of s2.
s1 to s4: the paper follows R-DARTS, whose sources disagree on the retrain. Here: its appendix, as later papers restate
    it. Its code: 8/16 everywhere (--retrain-cells 8 --retrain-channels 16). DARTS-PT: 20/36 on all of CIFAR-10.
nb201, 1shot1: no number in the paper, which shows NAS-Bench-1Shot1 in pictures. folder: ImageNet16-120.
"""
TITLE = """\
python train.py search --space S --dataset D --retrain. search, retrain: cells/channels (nb201: cells of a
stage), epochs, batch size, learning rate, K. ROME, GDAS: the paper's test error in % and Num, the parameter-free ops of
the normal cell; mean±deviation over searches.
"""
ABOUT = """\
Num: parameter-free ops of the normal cell, or of the only one. supernet %: of the derived cell, not a result.
Test errors are of the last epoch. Random cells: cells of the same space, retrained by the same protocol.
Our ± is the sample deviation (n - 1); the paper's fits the population deviation (n) of four searches.
"""
OTHERS = "nb201/cifar10 nb201/cifar100 nb201/folder 1shot1-1/cifar10 1shot1-2/cifar10 1shot1-3/cifar10".split()
MORE = {"imagenet": dict(data="data/imagenet"), "folder": dict(data="data/ImageNet16-120", image_size=16)}  # flags


def spread(numbers, digits: int = 2) -> str:
    """(mean, deviation) or (mean,) as text; nothing for ()."""
    return "±".join(f"{number:.{digits}f}" for number in numbers if number is not None)


def with_count(values: list, digits: int = 2) -> str:
    """Mean, sample deviation from two values on, and their number as text; nothing for no values."""
    deviation = [statistics.stdev(values)] if len(values) > 1 else []
    return f"{spread([statistics.fmean(values), *deviation], digits)} (n={len(values)})" if values else ""


def tabulate(rows: list[dict], style: str = "text") -> str:
    """Rows as a table in text or markdown, without the columns that are empty."""
    names = dict.fromkeys(name for row in rows for name in row)
    names = [name for name in names if any(str(row.get(name, "")) for row in rows)]
    cells = [names] + [[str(row.get(name, "")) for name in names] for row in rows]
    if style == "markdown":
        cells.insert(1, ["---"] * len(names))
        return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in cells)
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in cells)


def list_benchmarks(commands: bool = False, seeds: tuple = (0,)) -> str:
    """Every benchmark: flags, settings, the paper's numbers. With `commands` a shell line for each and every seed."""
    lines, rows, variants = [], [], []
    for place in [*PAPER, *OTHERS]:
        space, dataset = place.split("/")
        flags = dict(space=space, dataset=dataset) | MORE.get(dataset, {})
        retrain = ["--retrain"] if place in PAPER else []
        words = ["python", "train.py", "search", *train.words_of(flags), *retrain]
        lines += [shlex.join([*words, "--seed", str(seed)]) for seed in seeds]
        row, form = {"--space": space, "--dataset": dataset}, "{cells}/{channels}, {epochs}, {batch_size}, {lr}"
        row["search"] = (form + ", {samples}").format(**train.protocol(train.SEARCH, space, dataset))
        row["retrain"] = form.format(**train.protocol(train.RETRAIN, space, dataset))
        for title, method in (("ROME", "rome-v2"), ("GDAS", "gdas")):
            numbers = PAPER.get(place, {}).get(method, ())
            row[f"{title}; Num"] = "; ".join(filter(None, [spread(numbers[:2]), spread(numbers[2:], 1)]))
        rows.append(row)
    for name, settings, *numbers in VARIANTS:
        flags = " ".join(train.words_of(settings))
        variants.append({"darts in the paper": name, "error": spread(numbers), "flags": flags})
    return "\n".join(lines if commands else [TITLE, tabulate(rows), NOTES, tabulate(variants)])


# Settings that leave the protocol of a run as it is, or that others stand for.
SAME = "seed genotype quick samples equal_passes recompute deterministic compile evaluation_images".split()
SAME_SEARCH = "space dataset method samples_alpha samples_theta epochs".split()  # what a number of the paper is of


def settings_of(config: dict) -> dict:
    """The settings that make a run's protocol; of a folder of images also where it is, which says what they are."""
    kept = {name: value for name, value in config.items() if name not in {*SAME, *train.FREE}}
    return kept | ({"data": config["data"]} if config["dataset"] == "folder" else {})


def differences(config: dict, other: dict) -> list[str]:
    """The settings in which two configurations differ, the second's value in brackets."""
    a, b = settings_of(config), settings_of(other)
    names = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name) and name != "data")
    return [f"{name} {a.get(name)} ({b.get(name)})" for name in names]


def compare(run: dict) -> tuple:
    """The paper's numbers for a run, () if it has none, and remarks on what differs from the protocol."""
    numbers, remark, odd = (), "", []
    if "search" in run:
        config = run["search"]["config"]
        place = {name: config[name] for name in ("space", "dataset", "method")}
        plans = [(name, S0 | settings, *values) for name, settings, *values in VARIANTS]
        known = PAPER.get(f"{config['space']}/{config['dataset']}", {}).get(config["method"])
        plans += [("", place, *known)] if known else []  # the last that fits counts
        remark, usual = "no number in the paper for these settings", train.configure("search", place)
        for title, settings, *values in plans:
            plan = train.configure("search", settings)
            if all(config[key] == plan[key] for key in SAME_SEARCH):
                remark, usual, numbers = title, plan, values
        odd = differences(config, usual)
    if "retrain" in run:
        config = run["retrain"]["config"]
        usual = train.configure("retrain", {name: config[name] for name in ("space", "dataset", "genotype")})
        odd += [f"retrain {text}" for text in differences(config, usual)]
    differing = f"differs from the protocol: {', '.join(odd)}" if odd else ""
    return numbers, "; ".join(filter(None, [remark, differing]))


def read_stage(folder: Path) -> dict:
    """One stage of a run: its settings, the rows of metrics.csv, and the test error if it is finished."""
    text, metrics = json.loads((folder / "config.json").read_bytes()), folder / "metrics.csv"
    stage, config = text["stage"], text["settings"]
    if text.get("processes", 1) > 1:
        config["processes"] = text["processes"]
    if config["space"] not in rome.SPACES:
        raise ValueError(f"its space {config['space']!r:.80} is not in rome.SPACES; register it there first")
    rows = list(csv.DictReader(metrics.read_text().splitlines())) if metrics.exists() else []
    done = int(rows[-1]["epoch"]) if rows else 0
    finished = done >= config["epochs"]
    error = 100 - float(rows[-1]["accuracy_test"]) if finished and stage == "retrain" else None
    state = f"{stage} " + ("finished" if finished else f"epoch {done} of {config['epochs']}")
    return dict(stage=stage, config=config, rows=rows, finished=finished, error=error, state=state)


def read_run(folder: Path) -> dict:
    """A run: its stages by name, its row of the report, the errors of its random cells. ValueError if it is broken."""
    try:
        places = [place for place in (folder, folder / "retrain") if (place / "config.json").exists()]
        stages, random = [read_stage(place) for place in places], []
        run = {stage["stage"]: stage for stage in stages}
        if list(run) not in (["search"], ["retrain"], ["search", "retrain"]):
            raise ValueError("no config.json of a search or a retrain")
        for place in folder.glob("random-*/config.json") if "retrain" in run else ():
            other = read_stage(place.parent)
            if other["finished"] and not differences(other["config"], run["retrain"]["config"]):
                random.append(other["error"])
        config, end = stages[0]["config"], [{}, *stages[0]["rows"]][-1]
        text = config.get("genotype") or end.get("genotype")
        cell = genotypes.load(text) if text else ""
        counts = genotypes.parameter_free(cell) if text else {}
        row = {"run": folder} | {name: config.get(name, "") for name in ("space", "dataset", "method", "seed")}
        row["K"] = "/".join(dict.fromkeys(str(config.get(f"samples_{name}", "")) for name in ("alpha", "theta")))
        row["Num"] = counts.get("normal", counts.get("cell", ""))
        for name, title in dict(supernet_accuracy="supernet %", table_test="table %", table_regret="regret").items():
            row[title] = f"{float(end[name]):.5g}" if end.get(name) else ""
        row |= {"test error %": spread([stages[-1]["error"]]), "error of random cells %": with_count(random)}
        row["hours"] = f"{sum(float(epoch['seconds']) for stage in stages for epoch in stage['rows']) / 3600:.2f}"
        row |= dict(state=", ".join(stage["state"] for stage in stages), cell=cell)
        return run | dict(folder=folder, stages=stages, random=random, row=row)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise ValueError(f"{folder} holds no readable run: {train.first_line(error)}") from None


def means(runs: list[dict]) -> list[dict]:
    """A row for each protocol: mean and deviation over its runs, beside the paper's numbers."""
    groups, rows = {}, []
    for run in runs:
        protocol = [settings_of(stage["config"]) for stage in run["stages"]]
        protocol += [] if "search" in run else [str(run["row"]["cell"])]  # a retrain alone is of its cell
        groups.setdefault(json.dumps(protocol, sort_keys=True), []).append(run)
    for group in groups.values():
        row = {name: group[0]["row"][name] for name in ("space", "dataset", "method", "K")}
        numbers, remarks = compare(group[0])
        nums = [run["row"]["Num"] for run in group if "search" in run and run["search"]["finished"]]
        errors = [run["stages"][-1]["error"] for run in group if run["stages"][-1]["error"] is not None]
        row |= {"ours: Num": with_count(nums, 1), "paper: Num": spread(numbers[2:], 1)}
        row |= {"ours: error": with_count(errors), "paper: error": spread(numbers[:2])}
        row["random cells: error"] = with_count([error for run in group for error in run["random"]])
        if len({run["row"]["seed"] for run in group}) < len(group):
            remarks += "; some seeds are there twice"
        rows.append(row | dict(remarks=remarks.removeprefix("; ")))
    return rows


def report(folders: list[str], style: str = "text") -> str:
    """What runs found, and means over the runs of each protocol beside the paper's. style: text or markdown."""
    runs, text = [read_run(folder) for folder in dict.fromkeys(map(Path, folders))], ABOUT
    for rows, below in (([run["row"] for run in runs], "cell"), (means(runs), "remarks")):
        rows = [{"#": number} | row for number, row in enumerate(rows, 1)]
        text += "\n" + tabulate([{name: row[name] for name in row if name != below} for row in rows], style) + "\n"
        text += "".join(f"{row['#']}. {row[below]}\n" for row in rows if row[below])
    return text


# The panels of `plot`: column of metrics.csv, or its beginning before the cell type -> title and unit.
CURVES = {
    "loss_theta": ("Loss of the weights' half", "cross-entropy (nats)"),
    "loss_alpha": ("Loss of alpha and beta's half", "cross-entropy (nats)"),
    "supernet_accuracy": ("Supernet accuracy of the derived cell", "accuracy (%)"),
    "table_test": ("Test accuracy in NAS-Bench-201", "accuracy (%)"),
    "parameter_free_": ("Parameter-free operations, {} cell", "operations"),
    "entropy_alpha_": ("Entropy of alpha, {} cell", "nats, mean over edges"),
    "entropy_beta_": ("Entropy of beta, {} cell", "nats, mean over nodes"),
    "loss_train": ("Training loss", "cross-entropy (nats)"),
    "loss_test": ("Test loss", "cross-entropy (nats)"),
    "accuracy_train": ("Training accuracy", "accuracy (%)"),
    "accuracy_test": ("Test accuracy", "accuracy (%)"),
}


def uniform_entropy(config: dict, name: str) -> float:
    """The mean entropy in nats of alpha's rows, or of beta's nodes, where all choices are equally probable."""
    space = rome.SPACES[config["space"]]
    counts = [len(row) for row in next(iter(space.ops.values()))]
    if name == "entropy_beta_":
        pairs = zip(space.candidates, space.picks)
        counts = [math.comb(n, k) for n, k in pairs] if config["method"] == "rome-v1" else space.candidates
    return statistics.fmean(math.log(count) for count in counts if count > 1)


def draw_curves(stage: str, runs: list[dict], path: Path) -> None:
    """One picture of the searches, or of the retrains, of runs: a panel for each column, a colour for each run."""
    try:
        from matplotlib import figure
    except ImportError:
        raise ValueError("curves need matplotlib: pip install matplotlib") from None
    filled = [name for name, value in runs[0][stage]["rows"][0].items() if value]
    panels = [(name, begin) for begin in CURVES for name in filled if name.startswith(begin)]
    if not panels:
        raise ValueError(f"{runs[0]['folder']}: metrics.csv has no column to draw")
    down = (len(panels) + 2) // 3  # three panels side by side
    canvas = figure.Figure((13, 3 * down + 0.4 + 0.2 * len(runs)), layout="constrained")
    for place, (name, begin) in enumerate(panels, 1):
        title, unit = CURVES[begin]
        axes = canvas.add_subplot(
            down, 3, place, title=title.format(name.removeprefix(begin)), xlabel="epoch", ylabel=unit
        )
        for run in runs:
            rows = [row for row in run[stage]["rows"] if row.get(name)]
            epochs, values = [int(row["epoch"]) for row in rows], [float(row[name]) for row in rows]
            axes.plot(epochs, values, ".-", label=str(run["folder"]))
        axes.locator_params("x", integer=True)
        axes.locator_params("y", integer=unit == "operations")
        if begin.startswith("entropy_"):  # from 0, so that a small change looks small
            uniform = uniform_entropy(runs[0][stage]["config"], begin)
            axes.axhline(uniform, color="0.6", linewidth=0.8)
            axes.annotate("uniform", (epochs[-1], uniform), (0, 3), textcoords="offset points", ha="right", color="0.4")
            axes.set_ylim(0, 1.2 * uniform)
    canvas.suptitle(f"{stage.capitalize()}: {runs[0]['row']['space']} on {runs[0]['row']['dataset']}")
    canvas.legend(*axes.get_legend_handles_labels(), loc="outside lower center", frameon=False, ncols=2)
    picture = io.BytesIO()
    canvas.savefig(picture, format=path.suffix[1:].lower(), dpi=150)
    genotypes.write(path, picture.getvalue())


def plot(folders: list[str], out: str | None = None) -> str:
    """Draws the searches of runs of one space and data set, and in NAME-retrain their retrains, as an .svg or a .png.
    By default NAME is curves.svg in the folder of the first run."""
    out, written = Path(out or Path(folders[0]) / "curves.svg"), []
    if out.suffix.lower() not in (".svg", ".png"):
        raise ValueError(f"{out}: the name of a picture ends in .svg or .png")
    runs = [read_run(folder) for folder in dict.fromkeys(map(Path, folders))]
    kinds = sorted({f"{run['row']['space']} on {run['row']['dataset']}" for run in runs})
    if len(kinds) > 1:
        raise ValueError(f"plot draws runs of one space and data set at a time; these are {', '.join(kinds)}")
    for stage, path in (("search", out), ("retrain", out.with_stem(f"{out.stem}-retrain"))):
        begun = [run for run in runs if stage in run and run[stage]["rows"]]
        if begun:
            draw_curves(stage, begun, path)
            written.append(str(path))
    if not written:
        raise ValueError(f"{', '.join(map(str, folders))}: no epoch has ended yet")
    return "drawn: " + ", ".join(written)
