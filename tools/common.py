"""What the programs of tools/ share: the command line, a run's folder, tables of text."""

import csv
import json
import os
import statistics
from pathlib import Path
from typing import NamedTuple

import genotypes
import train

# --------------------------------------------------------------------------------------------------
# 1. The command line


def program(name: str, function, flags: dict):
    """The main(argv=None) of tools/NAME.py, which returns an exit status.

    It calls the function with the values of the command line. flags: "run" or "--out" -> keywords
    of argparse's add_argument. The function returns the status, or None: 0.
    """

    def main(argv=None) -> int:
        prog = f"python -m tools.{name}"
        parser = train.Parser(prog, description=function.__doc__, allow_abbrev=False)
        for flag, keywords in flags.items():
            parser.add_argument(flag, **keywords)
        return train.guarded(prog, lambda: function(**vars(parser.parse_args(argv))))

    return main


def each(function, items):
    """What the function returns for the good items, and the status.

    A bad item is one line on stderr, and status 2.
    """
    results, status = [], 0
    for item in items:
        try:
            results.append(function(item))
        except (OSError, ValueError) as error:
            text = train.last_line(error)
            place = "" if str(item) in text else f"{item}: "
            train.say(f"error: {place}{text}", error=True)
            status = 2
    return results, status


def path(text):
    """An argparse type: a path, in which ~ is the home folder."""
    return Path(os.path.expanduser(text))


RUN = dict(type=path, metavar="RUN", help="folder of a search or a retrain")
RUNS = RUN | dict(nargs="+")

# --------------------------------------------------------------------------------------------------
# 2. A run's folder


class Stage(NamedTuple):
    """A search or a retrain."""

    folder: Path
    settings: dict  # their "stage" is "search" or "retrain"
    title: tuple  # see title_of
    rows: list  # of metrics.csv: column -> text
    finished: bool


def read_stage(folder):
    """The stage that a folder holds. ValueError if there is none, or a broken one."""
    try:
        settings = json.loads((folder / "config.json").read_bytes())["settings"]
        rows = []
        if (folder / "metrics.csv").exists():
            with genotypes.open_text(folder / "metrics.csv") as file:
                rows = list(csv.DictReader(file))
        finished = len(rows) >= settings["epochs"]
        return Stage(folder, settings, title_of(settings), rows, finished)
    except Exception as error:  # whatever a broken folder leads to
        reason = f"{type(error).__name__}: {train.last_line(error):.200}"
        raise ValueError(f"{folder} holds no readable run: {reason}") from None


def title_of(settings):
    """The settings that change results, but for the seed and the cell: a text, and more texts.

    The second and others say what differs from the rows of train.SEARCH or train.RETRAIN.
    """
    title, table = "{stage} of {space} on {dataset}, {image_size} pixels", train.RETRAIN
    if settings["stage"] == "search":
        title, table = title + ", {method}, samples {samples}", train.SEARCH
    place = [settings[key] for key in ("space", "dataset", "imagenet")]
    usual = train.settings_of(table, *place) | dict(amp=False)
    if settings.get("method") == "gdas":
        usual["samples"] = [1]
    changed = [
        key for key, value in usual.items() if settings[key] != value and f"{{{key}}}" not in title
    ]
    texts = [f"{key} {settings[key]} (benchmark: {usual[key]})" for key in changed]
    return title.format(**settings), *texts


def read_run(folder):
    """The stages of a run: a search and, if it has begun, its retrain; or a retrain alone."""
    stages = [read_stage(folder)]
    if (folder / "retrain" / "config.json").exists():
        stages.append(read_stage(folder / "retrain"))
    return stages


# --------------------------------------------------------------------------------------------------
# 3. Tables


def text_of(value):
    """Of a list of numbers the mean and, from two on, the sample deviation (n - 1) and n."""
    if not isinstance(value, list):
        return str(value)
    if len(value) < 2:
        return "".join(str(x) if isinstance(x, int) else f"{x:.2f}" for x in value)
    return f"{statistics.fmean(value):.2f}±{statistics.stdev(value):.2f} (n={len(value)})"


def tabulate(rows):
    """Rows, column -> value, as text. The first row has all columns. Empty ones are left out."""
    columns = []
    for name in rows[0]:
        cells = [text_of(row.get(name, "")) for row in rows]
        width = max(map(len, [name, *cells]))
        if any(cells):
            columns.append([cell.ljust(width) for cell in [name, *cells]])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns))
