"""Studies of the paper's claims at a size that a CPU can do: searches, retrains, and what they show.

A study is a list of runs (command lines of train.py, or a measurement on the checkpoint of one) and an analysis that
reads the runs' folders, writes CSV files and draws a figure. docs/evidence.md has the results.

    python bench/evidence.py list                                the runs of every study, as command lines
    python bench/evidence.py run collapse truth --data DIR       DIR/train/CLASS/*, DIR/test/CLASS/*: CIFAR-10's images
    python bench/evidence.py analyse collapse truth --table CSV  a table of NAS-Bench-201, see docs/nasbench201.md
    python bench/evidence.py run all --tiny                      smallest sizes, on drawn shapes: shows that it runs

Runs are done seed by seed. A finished one is left alone, an interrupted one goes on, and one that another process has
claimed (by a lock on a file) is passed over, so several processes may work side by side; --jobs starts them. A file
`stop` in the runs' folder ends them after the run that they are at. `analyse` works on the runs that are finished;
without any it draws the figures from the CSV files as they are.
"""

import argparse
import csv
import fcntl
import math
import random
import re
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import genotypes  # noqa: E402
import rome  # noqa: E402
import train  # noqa: E402

# ----------------------------------------------------------------------------------------------------------------------
# The runs


class Run(NamedTuple):
    """One piece of work, with a folder of its own. kind: "search", "retrain", "ranking" or "variance".

    flags: of train.py. needs: the run whose genotype or checkpoint it starts from.
    """

    name: str
    kind: str
    seed: int
    flags: dict
    needs: str = ""


# Every search of a study has the same number of epochs (temperatures, rows of metrics.csv) and of sub-network passes:
# `passes` is passes per epoch, so an epoch has passes / (K of alpha + K of theta) steps.
FULL = dict(
    collapse=dict(
        flags=dict(
            cells=4, channels=8, batch_size=16, image_size=12, fraction=0.0625, epochs=30, alpha_weight_decay=0,
        ),
        passes=112, seeds=(0, 1, 2, 3, 4), spaces=("s2", "darts", "s4"), rate=0.03,
        longer=(120, 0.005),
    ),
    truth=dict(
        flags=dict(space="nb201", cells=1, channels=8, batch_size=32, image_size=16, epochs=10, alpha_weight_decay=0),
        passes=560, seeds=(0, 1, 2, 3, 4), tuning_seeds=(100, 101), rate=0.03, longer=40,
    ),
    retrain=dict(
        cells=5, channels=8, batch_size=32, image_size=16, epochs=8, steps_per_epoch=125, lr=0.05, drop_path=0,
        auxiliary=0, cutout=4,
    ),
    published=("DARTS_V2", "PC_DARTS_cifar", "GDAS_V1"),
    ranking=dict(cells=200, batches=16), variance=dict(samples=(1, 2, 4, 7, 14), pool=336, tau=5.0),
)  # fmt: skip
TINY = dict(
    collapse=dict(
        flags=dict(cells=3, channels=2, batch_size=8, image_size=8, fraction=0.003, epochs=1), passes=4, seeds=(0,),
        spaces=("s2",), rate=0.03, longer=(2, 0.005),
    ),
    truth=dict(
        flags=dict(space="nb201", cells=1, channels=2, batch_size=8, image_size=8, fraction=0.003, epochs=1), passes=4,
        seeds=(0,), tuning_seeds=(), rate=0.03, longer=2,
    ),
    retrain=dict(
        cells=3, channels=2, batch_size=8, image_size=8, epochs=1, steps_per_epoch=1, lr=0.05, drop_path=0,
        auxiliary=0, cutout=0,
    ),
    published=("GDAS_V1",),
    ranking=dict(cells=5, batches=1), variance=dict(samples=(1, 2), pool=4, tau=5.0),
)  # fmt: skip
METHODS = ("gdas", "rome-v2")
PAIR = (("gdas", 1), ("rome-v2", 7))  # as the paper has them
LONGER = (("rome-v2", 7), ("gdas", 1), ("rome-v2", 1))  # of the searches in NAS-Bench-201
# Table 6: topology disentanglement, accumulation over K=7 of the weights, of alpha. Off: all edges, K=1.
ROWS = [(method, alpha, theta) for method in METHODS for theta in (1, 7) for alpha in (1, 7)]


def search(setting: dict, seed: int, method: str, samples: tuple, rate: float, **more) -> Run:
    """A search with K = samples of alpha and of the weights; the more of both, the fewer its steps."""
    warmup, epochs = more.get("warmup", 0), more.get("epochs", setting["flags"]["epochs"])
    passes = setting["passes"] * epochs / (samples[0] * (epochs - warmup) + samples[1] * epochs)
    flags = setting["flags"] | dict(method=method, samples_alpha=samples[0], samples_theta=samples[1])
    flags |= dict(steps_per_epoch=max(1, round(passes)), alpha_lr=rate) | more  # more epochs: more passes
    name = f"{flags['space']}-{method}-k{samples[0]}.{samples[1]}-a{rate:g}"
    name += "".join(f"-{key.replace('_', '-')}{value:g}" for key, value in more.items() if key != "space")
    return Run(f"{name}-s{seed}", "search", seed, flags)


def retrain(sizes: dict, seed: int, genotype: str, needs: str = "") -> Run:
    flags = sizes["retrain"] | dict(genotype=genotype)
    return Run(f"retrain-{needs or f'{genotype}-s{seed}'}", "retrain", seed, flags, needs)


def collapse(sizes: dict) -> list[Run]:
    """Parameter-free ops of the normal cell over the search; in the first space also ROME-v1 and longer searches."""
    setting, runs = sizes["collapse"], []
    epochs, slow = setting["longer"]
    for seed in setting["seeds"]:
        for space in setting["spaces"]:
            arms = [(*pair, setting["rate"], {}) for pair in PAIR]
            if space == setting["spaces"][0]:
                arms += [("rome-v1", 7, setting["rate"], {})] + [(*pair, slow, dict(epochs=epochs)) for pair in PAIR]
            runs += [search(setting, seed, m, (k, k), rate, space=space, **more) for m, k, rate, more in arms]
    return runs


def rows(sizes: dict) -> list[Run]:
    """Table 6: which part brings it, by the true accuracy of the cells found in NAS-Bench-201.

    Equal passes leave K=7 of alpha alone few steps; a ninth row gives it as many as K=1 of both has.
    """
    setting = sizes["truth"]
    arms = [(*row, {}) for row in ROWS] + [("rome-v2", 7, 1, dict(steps_per_epoch=setting["passes"] // 2))]
    return [
        search(setting, seed, method, (alpha, theta), setting["rate"], **more)
        for seed in setting["seeds"]
        for method, alpha, theta, more in arms
    ]


# What was tried with ROME's K=7 and GDAS, by c10_val on seeds of its own, before alpha's decay and rate were chosen.
CANDIDATES = [
    ("rome-v2", (7, 7), 0.03, dict(alpha_weight_decay=0.001)), ("gdas", (1, 1), 0.03, dict(alpha_weight_decay=0.001)),
    ("rome-v2", (7, 7), 0.1, dict(alpha_weight_decay=0.001)), ("gdas", (1, 1), 0.003, dict(alpha_weight_decay=0.001)),
    ("rome-v2", (7, 7), 0.1, dict(alpha_weight_decay=0.001, warmup=4)), ("rome-v2", (7, 7), 0.03, {}),
    ("gdas", (1, 1), 0.03, {}), ("rome-v2", (7, 7), 0.03, dict(tau_max=1)), ("rome-v2", (7, 7), 0.01, {}),
    ("rome-v2", (7, 7), 0.03, dict(warmup=4)), ("rome-v2", (7, 7), 0.03, dict(epochs=40)),
    ("rome-v2", (7, 7), 0.03, dict(epochs=40, warmup=20)),
]  # fmt: skip
TUNING = 100  # the least seed of tuning


def truth(sizes: dict) -> list[Run]:
    """True accuracy of the cells found in NAS-Bench-201."""
    setting = sizes["truth"]
    arms = [("rome-v2", 1, {}), ("rome-v2", 4, {}), ("rome-v2", 7, {}), ("gdas", 1, {}), ("gdas", 7, {})]
    arms += [(m, k, dict(epochs=setting["longer"])) for m, k in LONGER]
    arms += [("rome-v2", 7, dict(epochs=setting["longer"], warmup=setting["longer"] // 2))]
    return [search(setting, s, m, (k, k), setting["rate"], **more) for s in setting["seeds"] for m, k, more in arms]


def tuning(sizes: dict) -> list[Run]:
    """Settings tried for the arms of `truth`, judged by c10_val."""
    setting = sizes["truth"]
    return [search(setting, s, *arm[:3], **arm[3]) for s in setting["tuning_seeds"] for arm in CANDIDATES]


def curves(sizes: dict) -> list[Run]:
    """The derived cell over the search, of the runs of `truth` and `rows` that are reported."""
    return list({run.name: run for run in truth(sizes) + rows(sizes)}.values())


def on_checkpoints(kind: str, searches: list[Run]) -> list[Run]:
    return [Run(f"{kind}-{run.name}", kind, run.seed, {}, run.name) for run in searches]


def ranking(sizes: dict) -> list[Run]:
    """Loss of random cells in the supernet against their true accuracy."""
    setting = sizes["truth"]
    arms = [(method, k) for k in (1, 7) for method in METHODS]
    lengths = {}, dict(epochs=setting["longer"])
    searches = [
        search(setting, s, m, (k, k), setting["rate"], **more)
        for s in setting["seeds"]
        for more in lengths
        for m, k in arms
        if not more or (m, k) in LONGER
    ]
    return searches + on_checkpoints("ranking", searches)


def variance(sizes: dict) -> list[Run]:
    """Variance of alpha's and beta's gradient against K."""
    searches = [search(sizes["truth"], s, "rome-v2", (7, 7), sizes["truth"]["rate"]) for s in sizes["truth"]["seeds"]]
    return searches + on_checkpoints("variance", searches)


def cells(sizes: dict) -> list[Run]:
    """Retrains: the discretisation gap, and found cells beside published ones."""
    setting, runs = sizes["collapse"], []
    for seed in setting["seeds"]:
        for space in setting["spaces"][:2]:
            for method, k in PAIR:
                found = search(setting, seed, method, (k, k), setting["rate"], space=space)
                runs += [found, retrain(sizes, seed, "", found.name)]
        runs += [retrain(sizes, seed, name) for name in sizes["published"]]
    return runs


STUDIES = dict(
    collapse=collapse,
    rows=rows,
    truth=truth,
    tuning=tuning,
    curves=curves,
    ranking=ranking,
    variance=variance,
    cells=cells,
)


def planned(options: argparse.Namespace) -> list[Run]:
    """The runs of the studies asked for, each once, seed by seed; tuning's seeds 100, 101, ... are with 0, 1, ..."""
    sizes = TINY if options.tiny else FULL
    names = STUDIES if "all" in options.studies else options.studies
    runs = {run.name: run for name in names for run in STUDIES[name](sizes)}
    kept = [run for run in runs.values() if re.search(options.only, run.name)]
    return sorted(kept, key=lambda run: run.seed % TUNING)


def command(run: Run, options: argparse.Namespace) -> list[str]:
    """Its words for train.py; of a measurement, what is measured."""
    if run.kind not in ("search", "retrain"):
        return [run.kind, run.needs]
    data = dict(dataset="shapes") if options.tiny else dict(dataset="folder", data=options.data)
    flags = data | run.flags | dict(seed=run.seed, out=str(Path(options.runs) / run.name))
    if run.kind == "retrain" and run.needs:
        flags["genotype"] = str(Path(options.runs) / run.needs / "genotype.json")
    return [run.kind, *train.flags_of(flags)]


def finished(run: Run, options: argparse.Namespace) -> bool:
    folder = Path(options.runs) / run.name
    if run.kind not in ("search", "retrain"):
        return (folder / "measured.csv").exists()
    try:
        done = train.read_part(folder)["state"] == "finished"
        return done and (folder / "genotype.json").exists()
    except (OSError, ValueError, KeyError):
        return False


def perform(run: Run, options: argparse.Namespace) -> int:
    """Does a run, or goes on with it; its CPU time is added up in its folder. Returns an exit status."""
    folder = Path(options.runs) / run.name
    start = time.process_time()
    if run.kind in ("search", "retrain"):
        status = train.main([*command(run, options), "--resume", "--quiet"])
    else:
        status, measured = 0, MEASURES[run.kind](run, options)
        folder.mkdir(exist_ok=True)
        write(folder / "measured.csv", measured)
    if folder.is_dir():
        with open(folder / "cpu_seconds.txt", "a") as file:
            file.write(f"{time.process_time() - start:.1f}\n")
    return status


def work(options: argparse.Namespace) -> int:
    """Does what is left of the runs, in order; a run that waits for another, or is claimed, is looked at again."""
    locks = Path(options.runs) / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    moved = True
    while moved:
        moved = False
        for run in planned(options):
            needed = Path(options.runs) / run.needs / "genotype.json"
            if finished(run, options) or (run.needs and not needed.exists()):
                continue
            with open(locks / run.name, "w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    continue
                if finished(run, options):  # by another process, meanwhile
                    continue
                print(f"{run.name} ...", flush=True)
                start, status = time.process_time(), perform(run, options)
                if status:
                    return status
                print(f"{run.name}: {time.process_time() - start:.0f} s of CPU time", flush=True)
                moved = True
                if Path(options.runs, "stop").exists():
                    print(f"{options.runs}/stop exists: stopped after a whole run")
                    return 0
                break  # from the top: what was waiting may be ready
    left = [run.name for run in planned(options) if not finished(run, options)]
    print(f"left to other processes: {', '.join(left)}" if left else "all runs are finished")
    return 0


# ----------------------------------------------------------------------------------------------------------------------
# Measurements on the checkpoint of a search


def supernet(folder: Path) -> tuple[rome.Supernet, dict]:
    """The supernet of a search's last.pt, and the run's settings."""
    state = torch.load(folder / "last.pt", map_location="cpu", weights_only=True)
    config, classes = state["settings"], state["net"]["classifier.bias"].numel()
    topology = train.METHODS[config["method"]]
    net = rome.Supernet(config["space"], config["channels"], config["cells"], classes, topology)
    net.load_state_dict(state["net"])
    return net, config


def held_out(config: dict, role: str = "evaluation", augment: bool = False) -> train.Stream:
    """The half of the training images that the weights have not seen."""
    images = train.load_data(config, "train")
    statistics = train.statistics_of(images, config["dataset"])
    _, half = train.halves(images.labels, config["fraction"], config["seed"])
    return train.Stream(images, half, config, role, torch.device("cpu"), statistics, augment)


def arch_string(digits: str) -> str:
    """The arch string of the table's six digits."""
    ops = [("none", *rome.SPACES["nb201"].ops["cell"][0])[int(digit)] for digit in digits]
    return "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*ops)


def random_cells(space: str, count: int) -> list[str]:
    """Six digits of `count` different cells, the same at every call: "two", of ROME (two inputs per node), or "all"."""
    generator, found = random.Random(space), {}
    while len(found) < count:
        digits = [generator.choice("1234") for _ in range(6)]
        if space == "two":
            digits[generator.randrange(3, 6)] = "0"
        found["".join(digits)] = None
    return list(found)


def measure_ranking(run: Run, options: argparse.Namespace) -> list[dict]:
    """Loss and accuracy of random cells, with the supernet's weights, on held-out images (batch statistics).

    All supernets are asked about the same cells of ROME's space; in GDAS's, whose weights were trained with all edges,
    they run masked to their own edges. It is asked about cells with all edges too.
    """
    net, config = supernet(Path(options.runs) / run.needs)
    sizes = (TINY if options.tiny else FULL)["ranking"]
    stream, found = held_out(config), []
    batches = list(stream.epoch(0, 0, sizes["batches"]))
    images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    for space in ("two", "all") if net.topology == "none" else ("two",):
        for cell in random_cells(space, sizes["cells"]):
            arch = net.architecture(arch_string(cell))
            with torch.no_grad():
                logits = torch.cat([net(x, arch) for x in images.split(2 * config["batch_size"])])
            accuracy = 100 * (logits.argmax(1) == labels).float().mean().item()
            loss = F.cross_entropy(logits, labels).item()
            log_p = math.nan if net.topology == "none" else net.log_prob(arch_string(cell)).item()
            found.append(dict(space=space, cell=cell, loss=loss, accuracy=accuracy, log_p=log_p))
    return found


def measure_variance(run: Run, options: argparse.Namespace) -> list[dict]:
    """Variance of the mean gradient over K, summed over the entries of alpha and of beta.

    Every architecture step starts from the same trained weights (nothing moves: the rate is zero), with alpha and beta
    as they ended, or uniform. All K share one pool of sampled architectures, in groups of K: rare ones with a large
    gradient are in all of them. "fixed": all steps see one batch, so that only the sampling differs; "fresh": every
    step has a batch of its own, as in a search.
    """
    net, config = supernet(Path(options.runs) / run.needs)
    sizes, found, numbers = (TINY if options.tiny else FULL)["variance"], [], [0]
    batches = list(held_out(config, "variance", augment=True).epoch(0, 0, sizes["pool"]))
    still = torch.optim.SGD(net.architecture_parameters(), 0.0)
    for state in ("trained", "uniform"):
        for parameter in net.architecture_parameters() if state == "uniform" else ():
            parameter.data.zero_()
        for batch in ("fixed", "fresh"):
            for count in sizes["samples"]:
                gradients = dict(alpha=[], beta=[])
                architect = rome.Architect(
                    net, count, generator=lambda role, k, c=count: train.keyed(role, numbers[0] * c + k)
                )
                for numbers[0] in range(sizes["pool"] // count):
                    architect.architecture_step(*batches[numbers[0] if batch == "fresh" else 0], sizes["tau"], still)
                    for name, group in (("alpha", net.alpha), ("beta", net.beta)):
                        gradients[name].append(torch.cat([p.grad.flatten() for p in group.values()]))
                for name, each in gradients.items():
                    total, norm = torch.stack(each).var(0).sum().item(), torch.stack(each).mean(0).norm().item()
                    found.append(dict(state=state, batch=batch, of=name, K=count, variance=total, mean_norm=norm))
    return found


MEASURES = dict(ranking=measure_ranking, variance=measure_variance)


# ----------------------------------------------------------------------------------------------------------------------
# What the analyses share


def write(path: Path, found: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = [{name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()} for row in found]
    genotypes.write(path, train.tabulate(text, "csv").encode())


def read(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return [{name: number(text) for name, text in row.items()} for row in csv.DictReader(file)]


def number(text: str):
    """A CSV field as a number, if it is one; the table's six digits are none."""
    try:
        return text if re.fullmatch("[0-4]{6}", text) else float(text)
    except ValueError:
        return text


def mean_std(values) -> tuple[float, float]:
    """Mean and deviation (n - 1; not a number for one value)."""
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def show(values, digits: int = 2) -> str:
    values = [value for value in values if value != "" and not math.isnan(value)]
    if not values:
        return ""
    mean, deviation = mean_std(values)
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}" if len(values) > 1 else f"{mean:.{digits}f}"


def ranks(values) -> torch.Tensor:
    """Ranks from 1, the mean rank for ties."""
    values = torch.as_tensor(values, dtype=torch.float64)
    return ((values[:, None] > values).sum(1) + (values[:, None] >= values).sum(1) + 1) / 2


def spearman(a, b) -> float:
    return torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1].item()


def groups(found: list[dict], *names: str) -> dict:
    """Rows by the values of some columns, in the order of first appearance."""
    parts = {}
    for row in found:
        parts.setdefault(tuple(row[name] for name in names), []).append(row)
    return parts


def done(study: str, options: argparse.Namespace, kind: str = "search") -> list[tuple[Run, Path]]:
    """The finished runs of a study, with their folders."""
    runs = STUDIES[study](TINY if options.tiny else FULL)
    return [(run, Path(options.runs) / run.name) for run in runs if run.kind == kind and finished(run, options)]


def about(run: Run) -> dict:
    """The columns that say which search a row is of."""
    flags = run.flags
    row = dict(space=flags["space"], method=flags["method"], K_alpha=flags["samples_alpha"])
    row |= dict(K_theta=flags["samples_theta"], alpha_lr=flags["alpha_lr"], warmup=flags.get("warmup", 0))
    row |= dict(alpha_decay=flags.get("alpha_weight_decay", 1e-3), tau_max=flags.get("tau_max", 10))
    return row | dict(epochs=flags["epochs"], steps=flags["epochs"] * flags["steps_per_epoch"], seed=run.seed)


def minutes(folder: Path) -> float:
    """CPU time of a run."""
    path = folder / "cpu_seconds.txt"
    return sum(map(float, path.read_text().split())) / 60 if path.exists() else math.nan


def epochs_of(folder: Path) -> list[dict]:
    """metrics.csv, its numbers as numbers."""
    return read(folder / "metrics.csv")


def label_of(method: str) -> str:
    return "GDAS" if method == "gdas" else method.replace("rome", "ROME")


def label(row: dict) -> str:
    k = f"{row['K_alpha']:g}" if row["K_alpha"] == row["K_theta"] else f"{row['K_alpha']:g}/{row['K_theta']:g}"
    return f"{label_of(row['method'])}, K={k}"


def figure(columns: int, width: float = 3.4, height: float = 2.9):
    """A row of axes on white, and matplotlib's pyplot, which is needed here alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style = {"svg.fonttype": "none", "svg.hashsalt": "rome", "font.size": 9, "axes.spines.top": False}
    plt.rcParams.update(style | {"axes.spines.right": False, "legend.frameon": False, "font.family": "sans-serif"})
    fig, axes = plt.subplots(1, columns, figsize=(width * columns, height), squeeze=False, facecolor="white")
    return fig, axes[0]


def save(fig, name: str, options: argparse.Namespace) -> None:
    path = Path(options.figures) / f"evidence-{name}.{options.format}"
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.tight_layout()
    fig.savefig(path, facecolor="white", dpi=110, metadata={"Date": None} if options.format == "svg" else None)
    print(f"drew {path}")


COLOURS = {"gdas": "#c0392b", "rome-v2": "#1f5fa8", "rome-v1": "#2a9d62"}


def band(axis, curves: list[list[float]], x: list[float], name: str, colour: str, style: str = "-") -> None:
    """Mean over seeds, and the band of one deviation around it."""
    columns = [mean_std(column) for column in zip(*curves, strict=True)]
    mean = [m for m, _ in columns]
    axis.plot(x, mean, style, color=colour, label=f"{name} (n={len(curves)})")
    if len(curves) > 1:
        axis.fill_between(x, [m - d for m, d in columns], [m + d for m, d in columns], color=colour, alpha=0.15, lw=0)


# ----------------------------------------------------------------------------------------------------------------------
# The analyses: each returns its CSV files, draws its figure from them, and prints its table


def collect_collapse(options: argparse.Namespace) -> list[dict]:
    found = []
    for run, folder in done("collapse", options):
        flags, metrics = run.flags, epochs_of(folder)
        for row in metrics:
            active = flags["samples_alpha"] + flags["samples_theta"]
            found.append(
                about(run) | dict(epoch=int(row["epoch"]), passes=int(row["epoch"] * flags["steps_per_epoch"] * active))
            )
            names = "parameter_free_normal", "parameter_free_reduce", "supernet_accuracy", "loss_theta", "loss_alpha"
            found[-1] |= {name: row[name] for name in names}
        found[-1]["minutes"] = minutes(folder)
    return found


def last_epochs(found: list[dict]) -> list[dict]:
    """The last row of every run."""
    keys = "space", "method", "K_alpha", "K_theta", "alpha_lr", "epochs", "seed"
    return [rows[-1] for rows in groups(found, *keys).values()]


def free_table(found: list[dict], keys: tuple) -> list[dict]:
    """Final counts over seeds, and their mean over the whole search."""
    table = []
    for key, rows in groups(found, *keys).items():
        last = last_epochs(rows)
        row = {name: f"{v:g}" if isinstance(v, float) else v for name, v in zip(keys, key)}
        row |= dict(seeds=len(last), Num=show([r["parameter_free_normal"] for r in last], 1))
        row["Num, mean of the search"] = show([r["parameter_free_normal"] for r in rows], 1)
        row["reduction cell"] = show([r["parameter_free_reduce"] for r in last], 1)
        table.append(row | {"supernet accuracy %": show([r["supernet_accuracy"] for r in last], 1)})
    return table


def draw_collapse(found: list[dict], options: argparse.Namespace) -> None:
    print(train.tabulate(free_table(found, ("space", "method", "K_alpha", "alpha_lr", "epochs")), "markdown"))
    panels, rates = groups(found, "space", "epochs"), sorted({row["alpha_lr"] for row in found}, reverse=True)
    fig, axes = figure(len(panels), 3.6, 3.0)
    for axis, ((space, epochs), part) in zip(axes, panels.items()):
        for (method, rate), rows in groups(part, "method", "alpha_lr").items():
            each = list(groups(rows, "seed").values())
            counts = [[row["parameter_free_normal"] for row in curve] for curve in each]
            name = label(rows[0]) + (f", alpha at {rate:g}" if len(rates) > 1 else "")
            style = "-" if rate == rates[0] else "--"
            band(axis, counts, [row["passes"] / 1000 for row in each[0]], name, COLOURS[method], style)
        axis.set(title=f"{space}, {epochs:g} epochs", xlabel="sub-network passes (thousands)", ylim=(-0.2, 8.2))
        axis.legend(fontsize=7)
    axes[0].set_ylabel("parameter-free ops, normal cell")
    save(fig, "collapse", options)


# NAS-Bench-201


def matched(table: dict, space: str) -> list[str]:
    """The table's cells in ROME's space ("two") or GDAS's ("all")."""
    text = "[1-4]{6}" if space == "all" else "[1-4]{3}(0[1-4][1-4]|[1-4]0[1-4]|[1-4][1-4]0)"
    return [cell for cell in table["c10_test"] if re.fullmatch(text, cell)]


def made_up_table() -> dict:
    """For --tiny: convolutions are good, and a deterministic noise."""
    table = {name: {} for name in ("c10_test", "c10_val", "c100_test", "c100_val")}
    for value in range(5**6):
        cell = "".join(str(value // 5**place % 5) for place in range(6))
        for shift, column in enumerate(table.values()):
            column[cell] = 60 + 3 * cell.count("3") + 2 * cell.count("2") + (value * (7 + shift)) % 11 / 10
    return table


def table_of(options: argparse.Namespace) -> dict:
    return made_up_table() if options.tiny else train.read_table(options.table)


def collect_cells_found(study: str, options: argparse.Namespace) -> list[dict]:
    """The cell of every search in the table; and where its regret comes from, by the table.

    `ops` are the best ops on all six edges. best_ops: the best cell with the topology found; best_topology: the best
    choice of inputs for the ops found; of GDAS, whose cell has all edges, within ROME's space.
    """
    table, found = table_of(options), []
    test = table["c10_test"]
    best = {space: max(test[cell] for cell in matched(table, space)) for space in ("two", "all")}
    for run, folder in done(study, options):
        net, _ = supernet(folder)
        cell = train.table_key(net.genotype())
        ops = "".join(str(1 + op) for op in net.alpha["cell"].argmax(1).tolist())
        inside = [ops[:3] + "".join("0" if i == drop else ops[3 + i] for i in range(3)) for drop in range(3)]
        row = about(run) | dict(cell=cell, ops=ops, free=sum(cell.count(op) for op in "14"))
        row |= {name: table[name][cell] for name in table if name[0] == "c"}
        row |= dict(rank=1 + sum(a > test[cell] for a in test.values()), regret=max(test.values()) - test[cell])
        row["regret_own"] = best["all" if net.topology == "none" else "two"] - test[cell]
        if net.topology != "none":
            same = [c for c in matched(table, "two") if c[3:].index("0") == cell[3:].index("0")]
            row["best_ops"] = max(test[c] for c in same)
            row["sequential"] = test[train.table_key(net.genotype("sequential"))]
        row |= dict(best_topology=max(test[c] for c in inside), mean_topology=statistics.fmean(test[c] for c in inside))
        last = epochs_of(folder)[-1]
        row |= dict(
            entropy_alpha=last["entropy_alpha_cell"],
            supernet_accuracy=last["supernet_accuracy"],
            loss_theta=last["loss_theta"],
            clipped=last["clipped"],
        )
        found.append(row | dict(minutes=minutes(folder)))
    return found


def collect_truth(options: argparse.Namespace) -> list[dict]:
    """The cells found, and random sampling of both spaces: its expectation exactly, the best of n chosen by c10_val."""
    table, found = table_of(options), collect_cells_found("truth", options)
    test = table["c10_test"]
    for space in ("two", "all"):
        order = sorted(matched(table, space), key=lambda cell: table["c10_val"][cell], reverse=True)
        count, best = len(order), max(test[cell] for cell in order)
        for n in (1, 10, 100):
            # The i-th best by validation is chosen where it is drawn and none of the better ones is.
            shares = [((count - i) / count) ** n - ((count - i - 1) / count) ** n for i in range(count)]
            row = dict(space="nb201", method=f"random, {'two inputs' if space == 'two' else 'all edges'}, best of {n}")
            for name in ("c10_test", "c10_val", "c100_test", "c100_val"):
                row[name] = sum(share * table[name][cell] for share, cell in zip(shares, order))
            found.append(row | dict(regret=max(test.values()) - row["c10_test"], regret_own=best - row["c10_test"]))
    return found


SETTINGS = "method", "K_alpha", "K_theta", "alpha_lr", "warmup", "alpha_decay", "tau_max", "epochs"


def truth_table(found: list[dict], columns: tuple) -> list[dict]:
    """A row for each setting: means over seeds of some columns; settings that are the same everywhere are left out."""
    table, parts = [], groups(found, *SETTINGS)
    varying = [name for i, name in enumerate(SETTINGS) if i > 2 and len({key[i] for key in parts}) > 1]
    for rows in parts.values():
        row = dict(search=label(rows[0])) | {name: f"{rows[0][name]:g}" for name in varying} | dict(seeds=len(rows))
        table.append(row | {name: show([r[name] for r in rows], 0 if name == "rank" else 2) for name in columns})
    return table


def draw_tuning(found: list[dict], options: argparse.Namespace) -> None:
    print(train.tabulate(truth_table(found, ("c10_val", "entropy_alpha", "supernet_accuracy")), "markdown"))


def draw_truth(found: list[dict], options: argparse.Namespace) -> None:
    searches = [row for row in found if row["K_alpha"] != ""]
    columns = "c10_test", "c100_test", "rank", "regret_own", "regret", "free", "entropy_alpha", "supernet_accuracy"
    print(train.tabulate(truth_table(searches, columns), "markdown"))
    where = "c10_test", "best_ops", "best_topology", "mean_topology", "sequential"
    print(train.tabulate(truth_table(searches, where), "markdown"))
    by_chance = [row for row in found if row["K_alpha"] == ""]
    names = "method", "c10_test", "c100_test", "regret_own", "regret"
    table = [{n: f"{row[n]:.2f}" if isinstance(row[n], float) else row[n] for n in names} for row in by_chance]
    print(train.tabulate(table, "markdown"))
    fig, axes = figure(1, 7.6, 3.2)
    report = groups(searches, *SETTINGS)
    for place, (key, rows) in enumerate(report.items()):
        values = [row["c10_test"] for row in rows]
        axes[0].plot([place] * len(values), values, "o", color=COLOURS[key[0]], ms=4, alpha=0.7)
        axes[0].plot([place - 0.25, place + 0.25], [mean_std(values)[0]] * 2, "-", color=COLOURS[key[0]], lw=2)
    for row in by_chance:
        if row["method"].endswith(("best of 1", "best of 10")):
            colour, below = COLOURS["rome-v2" if "two" in row["method"] else "gdas"], "two" in row["method"]
            axes[0].axhline(row["c10_test"], color=colour, lw=0.8, ls=":" if row["method"].endswith("of 1") else "--")
            text = (
                row["method"]
                .removeprefix("random, ")
                .replace("best of 1", "mean" if row["method"][-1] == "1" else "best of 1")
            )
            axes[0].text(
                len(report) - 0.45, row["c10_test"], text, fontsize=6.5, color=colour, va="top" if below else "bottom"
            )
    usual = next(iter(report))
    names = []
    for key, rows in report.items():
        odd = [f"{name} {v:g}" for name, v, w in zip(SETTINGS[3:], key[3:], usual[3:]) if v != w]
        names.append("\n".join([*label(rows[0]).split(", "), *odd]))
    axes[0].set_xticks(range(len(names)), names, fontsize=7)
    axes[0].set_xlim(-0.5, len(report) - 0.5)
    axes[0].set_ylabel("true CIFAR-10 test accuracy, %")
    save(fig, "truth", options)


def collect_curves(options: argparse.Namespace) -> list[dict]:
    table, found = table_of(options)["c10_test"], []
    for run, folder in done("curves", options):
        for row in epochs_of(folder):
            epoch, warmup = int(row["epoch"]), run.flags.get("warmup", 0)
            each = run.flags["samples_alpha"] * max(0, epoch - warmup) + run.flags["samples_theta"] * epoch
            cell = train.table_key(row["genotype"])
            found.append(about(run) | dict(epoch=epoch, passes=run.flags["steps_per_epoch"] * each, cell=cell))
            found[-1] |= dict(c10_test=table[cell], skips=cell.count("1"), pools=cell.count("4"))
            found[-1] |= {name: row[name] for name in ("entropy_alpha_cell", "loss_theta", "supernet_accuracy")}
    return found


def draw_curves(found: list[dict], options: argparse.Namespace) -> None:
    """Equal K only, short and long searches. GDAS's cell has 6 edges and ROME's 5, so ops are counted in percent."""
    shown = [row for row in found if row["K_alpha"] == row["K_theta"] and row["K_alpha"] in (1, 7)]
    lengths = groups(shown, "epochs")
    fig, axes = figure(2 * len(lengths), 2.9, 2.9)
    for place, ((epochs,), part) in enumerate(lengths.items()):
        for (method, k, warmup), rows in groups(part, "method", "K_alpha", "warmup").items():
            name, style = label(rows[0]) + ", warm-up" * bool(warmup), ":" if warmup else "-" if k == 7 else "--"
            for axis, value in zip(axes[2 * place :], (free_share, lambda row: row["c10_test"])):
                each = list(groups(rows, "seed").values())
                values = [[value(row) for row in curve] for curve in each]
                x = [row["passes"] / 1000 for row in each[0]]
                band(axis, values, x, name, COLOURS[method], style)
        for axis, limits, name in zip(axes[2 * place :], ((0, 105), (70, 95)), ("parameter-free ops", "true accuracy")):
            axis.set(xlabel="passes (thousands)", ylim=limits, title=f"{name}, %; {epochs:g} epochs")
            axis.title.set_fontsize(8)
            axis.legend(fontsize=6, loc="upper right" if limits[0] == 0 else "lower right")
    save(fig, "curves", options)


def free_share(row: dict) -> float:
    """Skip connections and pools in percent of the edges of a cell of NAS-Bench-201."""
    return 100 * (row["skips"] + row["pools"]) / (6 if row["method"] == "gdas" else 5)


def draw_rows(found: list[dict], options: argparse.Namespace) -> None:
    keys, table = groups(found, "method", "K_theta", "K_alpha", "steps"), []
    for (method, theta, alpha, steps), rows in keys.items():
        row = {"topology sampled": "yes" if method != "gdas" else "no", "K of the weights": f"{theta:g}"}
        row |= {"K of alpha": f"{alpha:g}", "steps": f"{steps:g}", "seeds": len(rows)}
        for name, digits in (("c10_test", 2), ("c100_test", 2), ("regret_own", 2), ("rank", 0), ("free", 1)):
            row[name] = show([r[name] for r in rows], digits)
        table.append(row)
    print(train.tabulate(table, "markdown"))
    fig, axes = figure(2, 3.6, 3.0)
    for axis, (column, title) in zip(
        axes, [("c10_test", "true CIFAR-10 test accuracy, %"), ("free", "parameter-free ops of the cell")]
    ):
        for place, ((method, *_), rows) in enumerate(keys.items()):
            values = [row[column] for row in rows]
            axis.plot([place] * len(values), values, "o", color=COLOURS[method], ms=4, alpha=0.7)
            axis.plot([place - 0.3, place + 0.3], [mean_std(values)[0]] * 2, color=COLOURS[method], lw=2)
        names = [f"{alpha:g}/{theta:g}\n{steps:g}" for _, theta, alpha, steps in keys]
        axis.set_xticks(range(len(keys)), names, fontsize=7)
        axis.set(xlabel="K of alpha / of the weights; steps", ylabel=title)
    axes[1].set_ylim(top=7.5)  # room for the legend
    axes[1].plot([], [], "o", color=COLOURS["gdas"], label="all edges (GDAS)")
    axes[1].plot([], [], "o", color=COLOURS["rome-v2"], label="topology sampled (ROME-v2)")
    axes[1].legend(fontsize=8)
    save(fig, "rows", options)


def collect_ranking(options: argparse.Namespace) -> list[dict]:
    """Spearman's correlation with the true CIFAR-10 test accuracy, for every supernet and set of cells."""
    table, found = table_of(options)["c10_test"], []
    searches = {run.name: run for run, _ in done("ranking", options)}
    for run, folder in done("ranking", options, "ranking"):
        for (space,), rows in groups(read(folder / "measured.csv"), "space").items():
            true = [table[row["cell"]] for row in rows]
            row = about(searches[run.needs]) | dict(cells=space, count=len(rows))
            row["loss"] = spearman([-row["loss"] for row in rows], true)
            top = sorted(zip(true, rows), key=lambda pair: pair[0])[len(rows) // 2 :]  # the better half
            row["loss_top_half"] = spearman([-r["loss"] for _, r in top], [t for t, _ in top])
            row["accuracy"] = spearman([row["accuracy"] for row in rows], true)
            for left_out in range(3) if space == "two" else ():  # of node 3's inputs
                losses = [r["loss"] for r in rows if r["cell"][3 + left_out] == "0"]
                row[f"loss_without_{left_out}"] = statistics.fmean(losses) if losses else math.nan
            free = [sum(row["cell"].count(op) for op in "14") for row in rows]
            row["free"], row["free_true"] = spearman([-row["loss"] for row in rows], free), spearman(true, free)
            row["log_p"] = spearman([row["log_p"] for row in rows], true) if row["method"] != "gdas" else math.nan
            found.append(row | dict(best_by_loss=true[min(range(len(rows)), key=lambda i: rows[i]["loss"])]))
    return found


def draw_ranking(found: list[dict], options: argparse.Namespace) -> None:
    keys = groups(found, "epochs", "method", "K_alpha", "cells")
    table = []
    for (epochs, _, _, space), rows in keys.items():
        row = dict(supernet=label(rows[0]), epochs=f"{epochs:g}")
        row |= dict(cells=dict(two="ROME's space", all="all edges")[space], seeds=len(rows))
        for name in ("loss", "loss_top_half", "accuracy", "log_p", "free", "free_true", "best_by_loss"):
            row[name] = show([r[name] for r in rows])
        table.append(row)
    print(train.tabulate(table, "markdown"))
    pairs = []
    fig, axes = figure(1, 6.8, 3.2)
    found = [row for row in found if row["epochs"] == found[0]["epochs"]]
    for place, ((method, space), rows) in enumerate(groups(found, "method", "cells").items()):
        seeds = {k: {row["seed"]: row["loss"] for row in part} for (k,), part in groups(rows, "K_alpha").items()}
        both = [[values[seed] for values in seeds.values()] for seed in set.intersection(*map(set, seeds.values()))]
        x = [3 * place + i for i in range(len(seeds))]
        for values in both:
            axes[0].plot(x, values, "o-", color=COLOURS[method], ms=4, lw=0.8, alpha=0.5)
        axes[0].plot(x, [statistics.fmean(column) for column in zip(*both)], color=COLOURS[method], lw=3)
        name = f"{label_of(method)}'s supernet, {'two inputs' if space == 'two' else 'all edges'}"
        axes[0].text(x[0] + 0.5, 0.62, name.replace(", ", "\n"), ha="center", fontsize=8, color=COLOURS[method])
        gains = [values[-1] - values[0] for values in both]
        pairs.append(
            {"supernet and cells": name, "seeds": len(gains), "K=7 - K=1": show(gains), "least": f"{min(gains):.2f}"}
        )
    print(train.tabulate(pairs, "markdown"))
    ks = sorted({row["K_alpha"] for row in found})
    places = [3 * place + i for place in range(len(pairs)) for i in range(len(ks))]
    axes[0].set_xticks(places, [f"K={k:g}" for _ in pairs for k in ks])
    axes[0].set_ylim(-0.8, 0.8)
    axes[0].axhline(0, color="black", lw=0.6)
    axes[0].set_ylabel("Spearman's correlation, supernet loss\nagainst true accuracy")
    save(fig, "ranking", options)


def collect_variance(options: argparse.Namespace) -> list[dict]:
    searches = {run.name: run for run, _ in done("variance", options)}
    return [
        about(searches[run.needs]) | row
        for run, folder in done("variance", options, "variance")
        for row in read(folder / "measured.csv")
    ]


def draw_variance(found: list[dict], options: argparse.Namespace) -> None:
    """Every curve divided by its value at K=1, beside the line 1/K."""
    table, curves = [], {}
    for key, rows in groups(found, "state", "of", "batch").items():
        first = {row["seed"]: row["variance"] for row in rows if row["K"] == 1}
        curves[key] = {
            k[0]: [row["variance"] / first[row["seed"]] for row in part] for k, part in groups(rows, "K").items()
        }
        row = dict(zip(("state", "of", "batch"), key)) | dict(seeds=len(first))
        table.append(row | {f"K={k:g}, times K": show([k * v for v in values]) for k, values in curves[key].items()})
    print(train.tabulate(table, "markdown"))
    states = list(dict.fromkeys(key[0] for key in curves))
    fig, axes = figure(len(states), 3.6, 3.0)
    for axis, state in zip(axes, states):
        for (_, of, batch), curve in ((key, c) for key, c in curves.items() if key[0] == state):
            colour, style = COLOURS["rome-v2" if of == "alpha" else "rome-v1"], "o-" if batch == "fixed" else "s--"
            values = [statistics.fmean(curve[k]) for k in curve]
            axis.loglog(list(curve), values, style, color=colour, ms=4, lw=1, label=f"{of}, {batch} batch")
        ks = list(curve)
        axis.loglog(ks, [1 / k for k in ks], color="#888888", lw=0.8, label="1/K")
        axis.set_xticks(ks, [f"{k:g}" for k in ks])
        axis.minorticks_off()
        axis.set(title=f"alpha and beta {state}", xlabel="K")
        axis.legend(fontsize=7)
    axes[0].set_ylabel("variance of the gradient, K=1 is 1")
    save(fig, "variance", options)


def collect_cells(options: argparse.Namespace) -> list[dict]:
    """Test accuracy of every retrained cell, beside its accuracy with the weights of the supernet it comes from."""
    searches, found = {run.name: (run, folder) for run, folder in done("cells", options)}, []
    for run, folder in done("cells", options, "retrain"):
        part = train.read_part(folder)
        last = part["rows"][-1]
        row = dict(cell=run.flags["genotype"], space="", method="", seed=run.seed)
        if run.needs:
            of, place = searches[run.needs]
            row = dict(cell="found", space=of.flags["space"], method=of.flags["method"], seed=run.seed)
            end = epochs_of(place)[-1]
            row |= dict(free=end["parameter_free_normal"], supernet_accuracy=end["supernet_accuracy"])
        else:
            row |= dict(free=genotypes.parameter_free(genotypes.load(row["cell"]))["normal"])
        row |= dict(parameters_k=1000 * float(part["sizes"][0]), accuracy_test=float(last["accuracy_test"]))
        found.append(row | dict(accuracy_train=float(last["accuracy_train"]), minutes=minutes(folder)))
    return found


def draw_cells(found: list[dict], options: argparse.Namespace) -> None:
    table, fig, axes = [], *figure(2, 3.6, 3.0)
    keys = groups(found, "cell", "space", "method")
    names = []
    for place, ((cell, space, method), rows) in enumerate(keys.items()):
        values, colour = [row["accuracy_test"] for row in rows], COLOURS.get(method, "#777777")
        names.append(f"{label_of(method)}\n{space}" if space else cell.replace("_", "\n"))
        row = dict(cell=names[-1].replace("\n", " "), seeds=len(rows), Num=show([r["free"] for r in rows], 1))
        row |= {"parameters, thousands": show([r["parameters_k"] for r in rows], 1)}
        row |= {"test accuracy %": show(values), "training accuracy %": show([r["accuracy_train"] for r in rows])}
        if space:
            gaps = [r["accuracy_test"] - r["supernet_accuracy"] for r in rows]
            row |= {"supernet accuracy %": show([r["supernet_accuracy"] for r in rows]), "gap": show(gaps)}
            axes[1].plot(
                [r["supernet_accuracy"] for r in rows], values, "o" if space == "s2" else "^", color=colour, ms=5,
                label=names[-1].replace("\n", ", "),
            )  # fmt: skip
        table.append(row)
        axes[0].plot([place] * len(values), values, "o", color=colour, ms=4, alpha=0.7)
        axes[0].plot([place - 0.3, place + 0.3], [mean_std(values)[0]] * 2, color=colour, lw=2)
    print(train.tabulate(table, "markdown"))
    axes[0].set_xticks(range(len(names)), names, fontsize=6)
    axes[0].set_ylabel("test accuracy after retraining, %")
    axes[1].set(xlabel="supernet accuracy of the derived cell, %", ylabel="test accuracy after retraining, %")
    axes[1].legend(fontsize=7)
    save(fig, "cells", options)


ANALYSES = dict(
    collapse=(collect_collapse, draw_collapse),
    rows=(lambda options: collect_cells_found("rows", options), draw_rows),
    truth=(collect_truth, draw_truth),
    tuning=(lambda options: collect_cells_found("tuning", options), draw_tuning),
    curves=(collect_curves, draw_curves),
    ranking=(collect_ranking, draw_ranking),
    variance=(collect_variance, draw_variance),
    cells=(collect_cells, draw_cells),
)  # fmt: skip


def analyse(options: argparse.Namespace) -> int:
    for name in STUDIES if "all" in options.studies else options.studies:
        collect, draw = ANALYSES[name]
        path = Path(options.results) / f"{name}.csv"
        started = any(finished(run, options) for run in STUDIES[name](TINY if options.tiny else FULL))
        found = collect(options) if started else []
        if found:
            write(path, found)
        if path.exists():
            print(f"{name}: {path}{'' if found else ', as it is'}")
            try:
                draw(read(path), options)
            except ModuleNotFoundError as error:
                print(f"no figure: {error.name} is not installed")
        else:
            print(f"{name}: no finished runs in {options.runs}")
    return 0


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("list", "run", "analyse"))
    parser.add_argument("studies", nargs="*", default=["all"], metavar="STUDY", help=", ".join([*STUDIES, "all"]))
    parser.add_argument("--data", default="data/cifar10", metavar="DIR", help="DIR/train/CLASS/*, DIR/test/CLASS/*")
    parser.add_argument("--runs", metavar="DIR", help="folder of the runs' folders (runs/evidence)")
    parser.add_argument("--table", default="nasbench201.csv.gz", metavar="FILE", help="table of NAS-Bench-201")
    parser.add_argument("--results", metavar="DIR", help="of the CSV files (bench/results/evidence)")
    parser.add_argument("--figures", metavar="DIR", help="(docs)")
    parser.add_argument("--format", default="svg", choices=("svg", "png"), help="of the figures")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch in each (1)")
    parser.add_argument("--only", default="", metavar="REGEX", help="only the runs whose names it is found in")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes on drawn shapes, a made-up table")
    options = parser.parse_args(words)
    unknown = set(options.studies) - {*STUDIES, "all"}
    if unknown:
        parser.error(f"no study is called {', '.join(sorted(unknown))}; there are {', '.join([*STUDIES, 'all'])}")
    try:
        re.compile(options.only)
    except re.error as error:
        parser.error(f"--only {options.only} is no regular expression: {error}")
    torch.set_num_threads(options.threads)
    options.runs = options.runs or f"runs/evidence{'-tiny' * options.tiny}"
    options.results = options.results or (Path(options.runs) if options.tiny else HERE / "results" / "evidence")
    options.figures = options.figures or (options.runs if options.tiny else HERE.parent / "docs")
    if options.what == "list":
        for run in planned(options):
            print(
                shlex.join(["python", "train.py", *command(run, options)])
                if run.flags
                else f"{run.kind} of {run.needs}"
            )
        return 0
    if options.what == "analyse":
        return analyse(options)
    script = [sys.executable, __file__, *(sys.argv[1:] if words is None else words), "--jobs", "1"]
    others = [subprocess.Popen(script) for _ in range(options.jobs - 1)]
    status = work(options)
    return max([status, *(other.wait() for other in others)])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"evidence.py: error: {train.first_line(error)}", file=sys.stderr)
        sys.exit(2)
