"""Shows what runs found, beside random cells and the paper's numbers.

python -m tools.report RUN...
"""

import sys
import textwrap
from contextlib import suppress

import genotypes
import train
from tools import benchmarks, common

ABOUT = """\
Runs that differ in their seeds only share a table. error %: on the test images,
after the last epoch. Num: parameter-free operations of the normal cell, or of
the only one. random %: the error of the random cells that are trained so far.
Our ± is the sample deviation (n - 1), the paper's the population deviation.
"""


def read(folder):
    """A run: its stages; what it shares with the runs of its table; its row; its cell; its name.

    Results are lists. An unfinished run shares nothing.
    """
    stages = common.read_run(folder)
    settings, rows = stages[0].settings, stages[0].rows
    cell = settings.get("genotype") or (rows[-1]["genotype"] if rows else "")
    counts = genotypes.parameter_free(genotypes.load(cell)) if cell else {}
    keys = [key_of(stage) for stage in stages]
    others = [common.read_stage(path.parent) for path in folder.glob("random-*/config.json")]
    random = [errors(other) for other in others if key_of(other) == keys[-1]]
    name = str(folder)
    row = {
        "run": name if len(name) < 27 else f"...{name[-23:]}",
        "error %": errors(stages[-1]),
        "Num": list(counts.values())[:1],
        "random %": sum(random, []),
    }
    hours = sum(float(row["seconds"]) for stage in stages for row in stage.rows) / 3600
    name = f"{name}, seed {settings['seed']}, {hours:.2f} h"
    return stages, (settings.get("genotype"), *keys), row, cell or "no epoch has ended", name


def key_of(stage):
    """What a retrain of another cell, or a search of another seed, has to share.

    The settings that change results, and a digest of the images, which the checkpoint has.
    """
    images = str(stage.folder)
    if stage.finished:
        with suppress(ValueError):  # deleted: nobody knows the images
            state = train.load_checkpoint(stage.folder / "last.pt", stage.settings["stage"])
            images = state["settings"]["images"]
    return stage.title, images


def errors(stage):
    """The test error in % as a list, empty for what is no finished retrain."""
    known = stage.finished and stage.settings["stage"] == "retrain"
    return [100 - float(stage.rows[-1]["accuracy_test"])] if known else []


def report(runs):
    """Shows what runs found, and the mean over the finished runs of the same settings."""
    found, status = common.each(read, dict.fromkeys(runs))
    groups, cells = {}, {}
    for stages, key, row, cell, name in found:
        groups.setdefault(key, (stages, []))[1].append(row)
        cells.setdefault(cell, []).append(name)
    if found:
        train.say(ABOUT)
    for stages, rows in groups.values():
        if len(rows) > 1:
            mean = {"run": "mean"}
            for name in ("error %", "Num", "random %"):
                mean[name] = sum([row[name] for row in rows], [])
            rows.append(mean)
        paper = benchmarks.searches().get(stages[0].title)
        if paper and (len(stages) == 1 or len(stages[1].title) == 1):  # the benchmark's retrain
            rows.append(paper | {"run": "paper"})
        for stage in stages:
            epoch = f"epoch {len(stage.rows)}/{stage.settings['epochs']}"
            train.say(wrapped(", ".join([*stage.title, epoch])))
        train.say(f"{common.tabulate(rows)}\n")
    for cell, names in cells.items():
        train.say(wrapped(f"{'; '.join(names)}: {cell}"))
    return status


def wrapped(text):
    return textwrap.fill(
        text, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


main = common.program("report", report, {"runs": common.RUNS})

if __name__ == "__main__":
    sys.exit(main())
