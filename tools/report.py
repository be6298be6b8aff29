"""What reads benchmarks and finished runs: `train.py list`, `train.py report RUN...`, `train.py plot RUN...`."""

import argparse
import csv
import io
import json
import math
import re
import shlex
import statistics
import textwrap
from pathlib import Path

import genotypes
import train

# ----------------------------------------------------------------------------------------------------------------------
# The paper's numbers, and the benchmarks

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
RESTORED = ("s1/cifar10", "s1/cifar100", "s3/cifar100", "s1/svhn", "s4/svhn")  # ROME's error, see note a
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
a  The first digit of ROME's error is lost in the text that the table was read from, and restored [?a].
b  GDAS: --method gdas. 3.48 is the paper's rerun of GDAS's own code (its Table 2 quotes 2.93); 18.38 is quoted.
c  S3 is R-DARTS's S2 and the op none, which is left out here (Eq. 1): the search of S3 is that of S2.
d  The paper follows R-DARTS, whose sources disagree on the retrain. Here: its appendix, as later papers restate it. Its
   code: 8/16 everywhere (--retrain-cells 8 --retrain-channels 16). DARTS-PT: 20/36 on all of CIFAR-10.
e  No number in the paper, which has NAS-Bench-1Shot1 in pictures and not NAS-Bench-201; folder: ImageNet16-120.
"""
TITLE = """\
python train.py search --space S --dataset D --retrain. Networks: cells/channels (nb201: cells of a stage).
Paper: test error in %, Num (parameter-free ops of the normal cell); mean±deviation over searches.

"""
ABOUT = """\
Num: parameter-free ops of the normal cell, or of the only one. supernet %: of the derived cell, not a result.
Test errors are of the last epoch. Random cells: cells of the same space, retrained by the same protocol.
Our ± is the sample deviation (n - 1); the paper's fits the population deviation (n) of four searches.
"""
MORE = {"imagenet": dict(data="data/imagenet"), "folder": dict(data="data/ImageNet16-120", image_size=16)}  # flags


def spread(numbers, digits: int = 2) -> str:
    """(mean, deviation) or (mean,) as text; nothing for ()."""
    return "±".join(f"{number:.{digits}f}" for number in numbers if number is not None)


def mean_and_deviation(values: list) -> list:
    """[mean, sample deviation]; without the latter for one value, [] for none."""
    if len(values) < 2:
        return values
    return [statistics.fmean(values), statistics.stdev(values)]


def with_count(values: list) -> str:
    return f"{spread(mean_and_deviation(values))} (n={len(values)})" if values else ""


def tabulate(rows: list[dict], style: str = "text") -> str:
    """Rows as a table in text, markdown or csv, without the columns that are empty."""
    names = dict.fromkeys(name for row in rows for name in row)
    names = [name for name in names if any(str(row.get(name, "")) for row in rows)]
    cells = [names] + [[str(row.get(name, "")) for name in names] for row in rows]
    if style == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(cells)
        return text.getvalue()
    if style == "markdown":
        cells.insert(1, ["---"] * len(names))
        return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in cells)
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in cells)


def benchmarks() -> list[dict]:
    """The settings that make each benchmark: the paper's tables, then NAS-Bench-201 and -1Shot1."""
    more = "nb201/cifar10 nb201/cifar100 nb201/folder 1shot1-1/cifar10 1shot1-2/cifar10 1shot1-3/cifar10".split()
    found = []
    for place in [*PAPER, *more]:
        space, dataset = place.split("/")
        found.append(dict(space=space, dataset=dataset) | MORE.get(dataset, {}))
        if place in PAPER:
            found[-1]["retrain"] = True
    return found


def list_benchmarks(commands: bool = False, seeds: tuple = (0,)) -> str:
    """Every benchmark: flags, settings, the paper's numbers. With `commands` a shell line for each and every seed."""
    if commands:
        words = [["python", "train.py", "search", *train.words_of(settings)] for settings in benchmarks()]
        return "\n".join(shlex.join([*line, "--seed", str(seed)]) for line in words for seed in seeds)
    tables, rows = dict(search=train.SEARCH, retrain=train.RETRAIN), []
    for settings in benchmarks():
        space, dataset = settings["space"], settings["dataset"]
        place, row = f"{space}/{dataset}", {"--space": space, "--dataset": dataset}
        for stage, table in tables.items():
            p = train.protocol(table, space, dataset)
            size = f"{p['cells']}/{p['channels']}"
            text = f"{size:<7} {p['epochs']:>3} {p['batch_size']:>5} {p['lr']:<5} {p.get('samples', '')}"
            row[f"{stage:7} ep. batch lr{'    K' if stage == 'search' else ''}"] = text.rstrip()
        for title, method in (("ROME", "rome-v2"), ("GDAS", "gdas")):
            numbers = PAPER.get(place, {}).get(method, ())
            row[f"paper: {title}; Num"] = "; ".join(filter(None, [spread(numbers[:2]), spread(numbers[2:], 1)]))
        notes = dict(a=place in RESTORED, b=space == "darts", c=space == "s3", d=space[0] == "s", e=place not in PAPER)
        rows.append(row | dict(note="".join(note for note, applies in notes.items() if applies)))
    text = TITLE + tabulate(rows) + "\n" + NOTES
    for stage, table in tables.items():
        text += f"\nAll settings of the {stage}; the rows after the first hold what differs from it:\n"
        for name, row in table.items():
            line = f"  {name}: " + ", ".join(f"{setting} {value}" for setting, value in row.items())
            text += textwrap.fill(line, 120, subsequent_indent="    ") + "\n"
    rows = []
    for name, settings, *numbers in VARIANTS:
        config = train.configure("search", settings)
        row = {"S0 in the paper": name, "paper: error": spread(numbers)}
        row |= {"K alpha": config["samples_alpha"], "theta": config["samples_theta"], "epochs": config["epochs"]}
        rows.append(row | {"flags (epochs of Table 6: inferred)": " ".join(train.words_of(settings))})
    return text + "\n" + tabulate(rows)


# ----------------------------------------------------------------------------------------------------------------------
# Runs

# Settings that leave the protocol of a run as it is, or that others stand for.
SAME = {*train.FREE, "seed", "genotype", "quick", "samples", "equal_passes", "recompute", "deterministic", "compile"}
SAME.add("evaluation_images")


def settings_of(config: dict) -> dict:
    """The settings that make a run's protocol; of a folder of images also where it is, which says what they are."""
    kept = {name: value for name, value in config.items() if name not in SAME and not name.startswith("retrain_")}
    return kept | ({"data": config["data"]} if config["dataset"] == "folder" else {})


def differences(config: dict, other: dict) -> list[str]:
    """The settings in which two configurations differ, the second's value in brackets."""
    a, b = settings_of(config), settings_of(other)
    names = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name) and name != "data")
    return [f"{name} {a.get(name)} ({b.get(name)})" for name in names]


def compare(run: dict) -> tuple:
    """The paper's numbers for its protocol that is nearest to a run's, and remarks on what differs."""
    numbers, remarks, odd = (), [], []
    if "search" in run:
        config = run["search"]["config"]
        place = {name: config[name] for name in ("space", "dataset", "method")}
        known = PAPER.get(f"{place['space']}/{place['dataset']}", {}).get(place["method"], ())
        searches = [("" if known else "no number in the paper", place, *known)]
        searches += [(name, S0 | settings, *values) for name, settings, *values in VARIANTS]
        near = []
        for name, settings, *values in searches:
            if place.items() <= settings.items():
                near.append((differences(config, train.configure("search", settings)), name, values))
        odd, name, numbers = min(near, key=lambda entry: len(entry[0]))
        remarks.append(name)
    if "retrain" in run:
        config = run["retrain"]["config"]
        usual = train.configure("retrain", {name: config[name] for name in ("space", "dataset", "genotype")})
        odd += [f"retrain {text}" for text in differences(config, usual)]
    if odd:
        remarks.append(f"not {'the paper' if numbers else 'this program'}'s protocol: {', '.join(odd)}")
    return numbers, "; ".join(filter(None, remarks))


def read_stage(folder: Path) -> dict:
    """One stage of a run: its settings, the rows of metrics.csv, the network's size, and the test error if finished."""
    text = json.loads((folder / "config.json").read_bytes())
    stage, config = text["stage"], text["settings"]
    if text.get("processes", 1) > 1:
        config["processes"] = text["processes"]
    if ".py:" in config["space"]:  # a user's own, with its operations
        train.space_name(config["space"])
    metrics, log = folder / "metrics.csv", folder / "log.txt"
    rows = list(csv.DictReader(io.StringIO(metrics.read_text()))) if metrics.exists() else []
    sizes = re.findall(r"([\d.]+) M parameters", log.read_text() if log.exists() else "")
    done = int(rows[-1]["epoch"]) if rows else 0
    finished = done >= config["epochs"]
    error = 100 - float(rows[-1]["accuracy_test"]) if finished and stage == "retrain" else None
    state = f"{stage} " + ("finished" if finished else f"epoch {done} of {config['epochs']}")
    return dict(stage=stage, config=config, rows=rows, sizes=sizes, finished=finished, error=error, state=state)


def read_run(folder: Path) -> dict:
    """A run: its stages by name, its cell, its row of the report, and the errors of its random cells.

    ValueError, in one line, for whatever a broken folder leads to.
    """
    try:
        places = [place for place in (folder, folder / "retrain") if (place / "config.json").exists()]
        stages = [read_stage(place) for place in places]
        run = {stage["stage"]: stage for stage in stages} | dict(folder=folder, stages=stages, random=[])
        if [stage["stage"] for stage in stages] not in (["search"], ["retrain"], ["search", "retrain"]):
            raise ValueError("no config.json of a search or a retrain")
        first, last = stages[0], stages[-1]
        config, end = first["config"], first["rows"][-1] if first["rows"] else {}
        text = config.get("genotype") or end.get("genotype")
        run["cell"] = genotypes.load(text) if text else None
        for place in folder.glob("random-*/config.json") if "retrain" in run else ():
            random = read_stage(place.parent)
            if random["finished"] and not differences(random["config"], run["retrain"]["config"]):
                run["random"].append(random["error"])
        row = {"run": folder} | {name: config.get(name, "") for name in ("space", "dataset", "method", "seed")}
        row["K"] = "/".join(dict.fromkeys(str(config.get(f"samples_{name}", "")) for name in ("alpha", "theta")))
        counts = genotypes.parameter_free(run["cell"]) if text else {}
        row["Num"] = counts.get("normal", counts.get("cell", ""))
        titles = dict(supernet_accuracy="supernet %", table_test="table %", table_rank="rank", table_regret="regret")
        for name, title in titles.items():
            row[title] = f"{float(end[name]):.5g}" if end.get(name) else ""
        row |= {"test error %": spread([last["error"]]), "error of random cells %": with_count(run["random"])}
        row["M parameters"] = "".join(last["sizes"][-1:])
        row["hours"] = f"{sum(float(epoch['seconds']) for stage in stages for epoch in stage['rows']) / 3600:.2f}"
        row["state"] = ", ".join(stage["state"] for stage in stages)
        return run | dict(row=row | dict(cell=run["cell"] or ""))
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error, argparse.ArgumentTypeError
    ) as error:  # fmt: skip
        raise ValueError(f"{folder} holds no readable run: {train.first_line(error)}") from None


def group_row(runs: list[dict]) -> dict:
    """Mean and deviation over runs of one protocol, beside the paper's numbers."""
    row = {name: runs[0]["row"][name] for name in ("space", "dataset", "method", "K")}
    numbers, remarks = compare(runs[0])
    restored = row["method"] == "rome-v2" and f"{row['space']}/{row['dataset']}" in RESTORED
    nums = [run["row"]["Num"] for run in runs if "search" in run and run["search"]["finished"]]
    errors = [run["stages"][-1]["error"] for run in runs if run["stages"][-1]["error"] is not None]
    for name, digits, values, paper in (("Num", 1, nums, numbers[2:]), ("error", 2, errors, numbers[:2])):
        ours = mean_and_deviation(values)
        row |= {f"n of {name}": len(values), f"ours: {name}": spread(ours, digits)}
        row[f"paper: {name}"] = spread(paper, digits) + (" [?a]" if restored and name == "error" else "")
        row[f"ours - paper: {name}"] = f"{ours[0] - paper[0]:+.{digits}f}" if ours and paper else ""
    row["random cells: error"] = with_count([error for run in runs for error in run["random"]])
    if len({run["row"]["seed"] for run in runs}) < len(runs):
        remarks += "; some seeds are there twice"
    return row | dict(remarks=remarks.removeprefix("; "))


def report(folders: list[str], style: str = "text") -> str:
    """What runs found, and means over the runs of each protocol beside the paper's. style: text, markdown or csv."""
    runs, groups = [read_run(folder) for folder in dict.fromkeys(map(Path, folders))], {}
    for run in runs:
        protocol = [settings_of(stage["config"]) for stage in run["stages"]]
        protocol += [] if "search" in run else [str(run["cell"])]  # a retrain alone is of its cell
        groups.setdefault(json.dumps(protocol, sort_keys=True), []).append(run)
    found, means = [run["row"] for run in runs], [group_row(members) for members in groups.values()]
    if style == "csv":
        return tabulate([{"row": "run"} | row for row in found] + [{"row": "mean"} | row for row in means], style)
    text = ABOUT
    for rows, below in ((found, "cell"), (means, "remarks")):
        rows = [{"#": number} | row for number, row in enumerate(rows, 1)]
        text += "\n" + tabulate([{name: row[name] for name in row if name != below} for row in rows], style) + "\n"
        text += "".join(f"{row['#']}. {row[below]}\n" for row in rows if row[below])
    return text


# ----------------------------------------------------------------------------------------------------------------------
# Curves

# Panels of `plot`: title, axis, what the columns of metrics.csv begin with. Gradient norms stay in metrics.csv.
PANELS = {
    "search": [
        ("Loss on the training images", "cross-entropy (nats)", ("loss_theta", "loss_alpha")),
        ("Supernet accuracy of the derived cell", "accuracy (%)", ("supernet_accuracy",)),
        ("Parameter-free operations of the derived cell", "operations", ("parameter_free_",)),
        ("Entropy of alpha, mean over its rows", "entropy (nats)", ("entropy_alpha_",)),
        ("Entropy of beta, mean over the nodes", "entropy (nats)", ("entropy_beta_",)),
        ("Test accuracy in NAS-Bench-201", "accuracy (%)", ("table_test",)),
    ],
    "retrain": [
        ("Loss", "cross-entropy (nats)", ("loss_train", "loss_test")),
        ("Accuracy", "accuracy (%)", ("accuracy_train", "accuracy_test")),
    ],
}
WORDS = dict(theta="weights", alpha="alpha and beta", train="training", reduce="reduction")


def uniform_entropy(config: dict, name: str) -> float:
    """The mean entropy in nats of alpha's rows, or of beta's nodes, where all choices are equally probable."""
    space = train.space_of(config)
    counts = [len(row) for row in next(iter(space.ops.values()))]
    if name == "entropy_beta_":
        counts = list(space.candidates)
        if config["method"] == "rome-v1":
            counts = [math.comb(n, k) for n, k in zip(space.candidates, space.picks)]
    return statistics.fmean(math.log(count) for count in counts if count > 1)


def draw_curves(stage: str, runs: list[dict], title: str, out: Path) -> None:
    """One picture of the searches, or of the retrains, of these runs: a colour for each run."""
    try:
        from matplotlib import cm, figure
    except ImportError:
        raise ValueError("curves need matplotlib: pip install matplotlib; cells.svg is drawn without it") from None
    columns = dict.fromkeys(name for run in runs for name in run[stage]["rows"][0])
    panels = [(*texts, [c for c in columns if c.startswith(names)], names) for *texts, names in PANELS[stage]]
    panels = [panel for panel in panels if panel[2]]
    across, down = min(3, len(panels)), math.ceil(len(panels) / 3)
    canvas = figure.Figure((4.4 * across, 3.3 * down + 0.4 + 0.2 * len(runs)), layout="constrained")
    places = canvas.subplots(down, across, squeeze=False).flatten()
    for axes, (text, unit, found, names) in zip(places, panels):
        words = [WORDS.get(name.split("_")[-1], name.split("_")[-1]) for name in found]
        text += f"\n{words[0]} solid, {words[1]} dashed" if len(found) > 1 else "\n"
        axes.set_title(text, size="medium")
        axes.set(xlabel="epoch", ylabel=unit)
        axes.locator_params("x", integer=True)
        for number, run in enumerate(runs):
            for name, style in zip(found, ("-", "--")):
                points = [(int(row["epoch"]), float(row[name])) for row in run[stage]["rows"] if row.get(name)]
                axes.plot(*zip(*points), style, color=cm.tab10(number % 10)) if points else None
        if names[0].startswith("entropy"):  # from 0, so that a small change looks small
            level = uniform_entropy(runs[0][stage]["config"], names[0])
            axes.axhline(level, color="0.5", linewidth=0.8)
            axes.text(1, level, "uniform", ha="right", va="bottom", color="0.4", transform=axes.get_yaxis_transform())
            axes.set_ylim(0, 1.15 * level)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    canvas.suptitle(title)
    handles = [places[0].plot([], [], color=cm.tab10(number % 10))[0] for number in range(len(runs))]
    canvas.legend(handles, [str(run["folder"]) for run in runs], loc="outside lower center", frameon=False, ncols=2)
    picture = io.BytesIO()
    canvas.savefig(picture, format=out.suffix[1:].lower(), dpi=150)
    genotypes.write(out, picture.getvalue())


def plot(folders: list[str], out: str | None = None) -> str:
    """Draws cells.svg of every run, and the curves of all: one picture of their searches, one of their retrains.

    out: an .svg or .png file; by default curves.svg in the first run's folder. The retrains' picture has -retrain in
    its name. ValueError for runs of different spaces or data sets.
    """
    out, written = Path(out or Path(folders[0]) / "curves.svg"), []
    if out.suffix.lower() not in (".svg", ".png"):
        raise ValueError(f"{out}: the name of a picture ends in .svg or .png")
    runs = [read_run(folder) for folder in dict.fromkeys(map(Path, folders))]
    titles = sorted({f"{run['row']['space']} on {run['row']['dataset']}" for run in runs})
    if len(titles) > 1:
        raise ValueError(f"plot draws runs of one space and data set at a time; these are {', '.join(titles)}")
    for run in runs:
        if run["cell"]:
            genotypes.draw(run["cell"], run["folder"] / "cells.svg")
            written.append(run["folder"] / "cells.svg")
    for stage, path in (("search", out), ("retrain", out.with_stem(f"{out.stem}-retrain"))):
        begun = [run for run in runs if stage in run and run[stage]["rows"]]
        if begun:
            draw_curves(stage, begun, f"{stage.capitalize()}, {titles[0]}", path)
            written.append(path)
    if not any(stage["rows"] for run in runs for stage in run["stages"]):
        raise ValueError(f"{', '.join(map(str, folders))}: no epoch has ended yet")
    return "drawn: " + ", ".join(map(str, written))
