"""The benchmarks, and what reads runs: `train.py list`, `train.py report RUN...`, `train.py plot RUN...`."""

import csv
import io
import json
import statistics
from pathlib import Path

import genotypes
import rome
import train

LIST = """\
python train.py search --space SPACE --dataset DATASET --method rome-v2 --retrain; ablations: docs/examples.md
rome-v2, gdas: the paper's test error in %, and Num, the parameter-free ops of the normal cell. search, retrain:
cells/channels (nb201: cells of a stage), epochs, batch size, learning rate, K. nb201 on folder: ImageNet16-120.
"""
REPORT = """\
Num: parameter-free ops of the normal cell, or of the only one. supernet %: of the derived cell, not a result.
error %: on the test images, in the last epoch. random %: the same of random cells, retrained by the same protocol.
Our ± is the sample deviation, n - 1; the paper's fits n = 4 and the population deviation.
"""


def benchmarks() -> dict:
    """The paper's test error in % and Num for each method, as text: (space, data set) -> row of paper.csv."""
    with open(Path(__file__).with_name("paper.csv"), newline="", encoding="utf-8") as file:
        return {(row["space"], row["dataset"]): row for row in csv.DictReader(file)}


def text_of(value) -> str:
    """A list of numbers as its mean, from two on with sample deviation and count; anything else as it is."""
    if not isinstance(value, list):
        return str(value)
    text = f"{statistics.fmean(value):.2f}" if value else ""
    return f"{text}±{statistics.stdev(value):.2f} (n={len(value)})" if len(value) > 1 else text


def tabulate(rows: list[dict]) -> str:
    """Rows as a table of text, without the columns that are empty."""
    columns = [[name, *(text_of(row[name]) for row in rows)] for name in rows[0]]
    columns = [column for column in columns if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return "".join("  ".join(map(str.ljust, line, widths)).rstrip() + "\n" for line in zip(*columns))


def list_benchmarks() -> str:
    """Every benchmark: the paper's numbers, and the settings of its search and retrain."""
    rows, form = benchmarks(), "{cells}/{channels}, {epochs}, {batch_size}, {lr}"
    for place, row in rows.items():
        row["search"] = (form + ", {samples}").format(**train.protocol(train.SEARCH, *place))
        row["retrain"] = form.format(**train.protocol(train.RETRAIN, *place))
    return LIST + "\n" + tabulate(list(rows.values()))


# Settings that leave the protocol of a run as it is, or that others stand for.
SAME = set("seed genotype quick samples equal_passes recompute deterministic compile evaluation_images".split())


def read_stage(folder: Path) -> dict:
    """A search or a retrain: its settings, how they differ from the protocol (`odd`), and the rows of metrics.csv."""
    text, metrics = json.loads((folder / "config.json").read_bytes()), folder / "metrics.csv"
    name, config = text["stage"], text["settings"] | dict(processes=text.get("processes", 1))
    place = {key: config[key] for key in ("space", "dataset", "method", "genotype") if key in config}
    usual = train.configure(name, place) | dict(processes=1)
    odd = [key for key in sorted(config.keys() - train.FREE - SAME) if config[key] != usual.get(key)]
    odd = {key: f"{name} {key} {config[key]} ({usual.get(key)})" for key in odd}
    rows = list(csv.DictReader(metrics.read_text().splitlines(), restkey="more")) if metrics.exists() else []
    epoch = int(rows[-1]["epoch"]) if rows else 0
    finished = epoch >= config["epochs"]
    errors = [100 - float(rows[-1]["accuracy_test"])] if finished and name == "retrain" else []
    return dict(config=config, odd=odd, rows=rows, epoch=epoch, finished=finished, errors=errors)


def read_run(folder: Path) -> dict:
    """A run: its row of the report, whose results are lists, and what goes with it. ValueError if it is broken."""
    try:
        stages = [read_stage(folder)]
        if (folder / "retrain" / "config.json").exists():
            stages.append(read_stage(folder / "retrain"))
        others = [read_stage(path.parent) for path in folder.glob("random-*/config.json")]
        first, last, rows = stages[0], stages[-1], [row for stage in stages for row in stage["rows"]]
        config, end = first["config"], first["rows"][-1] if first["rows"] else {}
        cell = config.get("genotype") or end.get("genotype", "")
        counts = genotypes.parameter_free(genotypes.load(cell)) if cell else {}
        row = {"run": folder} | {name: config.get(name, "") for name in ("space", "dataset", "method", "seed")}
        row |= {"K": config.get("samples_alpha", ""), "Num": list(counts.values())[:1]}  # the normal cell comes first
        for title, name in (("supernet %", "supernet_accuracy"), ("table %", "table_test"), ("regret", "table_regret")):
            row[title] = [float(end[name])] if end.get(name) else []
        row["error %"] = last["errors"]
        row["random %"] = [error for stage in others if stage["odd"] == last["odd"] for error in stage["errors"]]
        row["hours"] = [sum(float(epoch["seconds"]) for epoch in rows) / 3600]
        row["epochs"] = ", ".join(f"{stage['epoch']} of {stage['config']['epochs']}" for stage in stages)
        changed = first["odd"].keys() & {"samples_alpha", "samples_theta", "epochs"}
        paper = {} if changed else benchmarks().get((row["space"], row["dataset"]), {})
        row["paper: error %"] = paper.get(row["method"]) or "no number for these settings"
        row["paper: Num"] = paper.get(f"{row['method']} Num", "")
        odd = ", ".join(text for stage in stages for text in stage["odd"].values())
        notes = f"\n{folder}: {cell}\n" + (f"    differs from the protocol: {odd}\n" if odd else "")
        images = config["data"] if config["dataset"] == "folder" else ""
        protocol = str([row["space"], row["dataset"], images, row["method"], config.get("genotype"), odd])
        return dict(row=row, rows=rows, notes=notes, config=config, protocol=protocol, finished=last["finished"])
    except Exception as error:  # whatever a broken folder leads to
        raise ValueError(f"{folder} holds no readable run: {train.first_line(error)}") from None


def report(folders: list[str]) -> str:
    """Every run, and the mean over the finished runs of each protocol, beside the paper's numbers."""
    runs = [read_run(folder) for folder in dict.fromkeys(map(Path, folders))]
    rows, groups = [run["row"] for run in runs], {}
    for run in runs:
        if run["finished"]:
            groups.setdefault(run["protocol"], []).append(run["row"])
    for group in [group for group in groups.values() if len(group) > 1]:
        mean = dict(group[0], run="mean", seed=", ".join(str(row["seed"]) for row in group))
        for name, value in group[0].items():
            if isinstance(value, list):
                mean[name] = [number for row in group for number in row[name]]
        rows.append(mean)
    return REPORT + "\n" + tabulate(rows) + "".join(run["notes"] for run in runs)


# The panels of `plot`: the beginning of columns of metrics.csv -> title, with the rest of the column's name.
CURVES = {
    "loss_theta": "Loss of the weights' half (nats)",
    "loss_alpha": "Loss of alpha and beta's half (nats)",
    "supernet_accuracy": "Supernet accuracy of the derived cell (%)",
    "table_test": "Test accuracy in NAS-Bench-201 (%)",
    "parameter_free_": "Parameter-free operations: {}",
    "entropy_": "Mean entropy: {} (nats)",
    "loss_train": "Retrain: training loss (nats)",
    "loss_test": "Retrain: test loss (nats)",
    "accuracy_": "Retrain: {} accuracy (%)",
}


def plot(folders: list[str], out: str | None = None) -> str:
    """Draws runs, by default into curves.svg in the first: a panel for each column in CURVES, a colour for each run."""
    from matplotlib.figure import Figure

    path, picture = Path(out or Path(folders[0]) / "curves.svg"), io.BytesIO()
    runs = {str(folder): read_run(Path(folder)) for folder in folders}
    names = dict.fromkeys(name for run in runs.values() for row in run["rows"] for name in row)
    panels = [(begin, name) for begin in CURVES for name in names if name.startswith(begin)]
    if not panels:
        raise ValueError(f"{', '.join(folders)}: no epoch has ended yet")
    height = (len(panels) + 2) // 3  # three panels side by side
    canvas, lines = Figure((13, 3 * height + 0.4 + 0.2 * len(runs)), layout="constrained"), {}
    for place, (begin, name) in enumerate(panels, 1):
        title = CURVES[begin].format(name.removeprefix(begin).replace("_", " "))
        axes = canvas.add_subplot(height, 3, place, title=title, xlabel="epoch")
        axes.locator_params("x", integer=True)
        axes.locator_params("y", integer=begin == "parameter_free_")
        for number, (folder, run) in enumerate(runs.items()):
            rows = [row for row in run["rows"] if row.get(name)]
            epochs, values = [int(row["epoch"]) for row in rows], [float(row[name]) for row in rows]
            lines[folder] = axes.plot(epochs, values, ".-", color=f"C{number}")[0]
            if rows and begin == "entropy_":  # in a new supernet alpha and beta are uniform
                net = rome.Supernet(run["config"]["space"], 4, 3, 2, train.METHODS[run["config"]["method"]])
                uniform = train.certainty(net)[1].get(name, float("nan"))
                lines["uniform probabilities"] = axes.axhline(uniform, color="0.6", linestyle="--")
                axes.set_ylim(0, 1.2 * uniform)  # so that a small change looks small
    canvas.legend(lines.values(), lines.keys(), loc="outside lower center", frameon=False, ncols=2)
    canvas.savefig(picture, format=path.suffix[1:], dpi=150)
    genotypes.write(path, picture.getvalue())
    return f"drawn: {path}"
