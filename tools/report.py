"""Shows what runs found, beside random cells and the paper's numbers.

python -m tools.report RUN...
"""

import sys
import textwrap

import genotypes
import train
from tools import benchmarks, common

ABOUT = """\
error %: on the test images, after the last epoch. Num: parameter-free
operations of the normal cell, or of the only one. random %: the error of random
cells, by the same retrain. supernet %: accuracy of the derived cell in the
supernet, not a result. Our ± is the sample deviation (n - 1), the paper's the
population deviation. The paper's numbers stand beside its own settings only.
"""


def read(folder):
    """A run: its row of the table, its cell, how it differs, and what a mean needs to have equal.

    Results are lists. The last is None for an unfinished run.
    """
    stages = common.read_run(folder)
    first, last = stages[0], stages[-1]
    settings, end = first.settings, first.rows[-1] if first.rows else {}
    cell = settings.get("genotype") or end.get("genotype")
    counts = genotypes.parameter_free(genotypes.load(cell)) if cell else {}
    keys = [key_of(stage) for stage in stages]
    others = [common.read_stage(path.parent) for path in folder.glob("random-*/config.json")]
    random = [errors(other) for other in others if key_of(other) == keys[-1]]
    error = number = ""
    if first is last or not last.changes:  # the retrain is the benchmark's
        *_, error, number = benchmarks.searches().get(common.decisive(settings), ("", ""))
    epochs = [f"{len(stage.rows)}/{stage.settings['epochs']}" for stage in stages]
    name = str(folder)
    row = {
        "run": name if len(name) < 33 else f"...{name[-29:]}",
        "space": settings["space"],
        "dataset": settings["dataset"],
        "method": settings.get("method", ""),
        "seed": settings["seed"],
        "K": str(settings.get("samples", "")).strip("[]"),
        "epochs": ", ".join(epochs),
        "hours": [sum(epoch["seconds"] for stage in stages for epoch in stage.rows) / 3600],
        "error %": errors(last),
        "paper %": error,
        "Num": list(counts.values())[:1],
        "paper Num": number,
        "random %": sum(random, []),
        "supernet %": [end[name] for name in end if name == "supernet_accuracy"],
    }
    changes = [text for stage in stages for text in stage.changes]
    same = None if None in keys else str([settings.get("genotype"), *keys])
    return row, cell or "no epoch has ended", changes, same


def key_of(stage):
    """What a retrain of another cell, or a search of another seed, has to share; None: unfinished.

    The settings that change results, and a digest of the images, which the checkpoint has.
    """
    if not stage.finished:
        return None
    try:
        state = train.load_checkpoint(stage.folder / "last.pt", stage.settings["stage"])
    except ValueError:  # deleted: nobody knows the images
        state = dict(settings=dict(images=str(stage.folder)))
    return common.decisive(stage.settings), state["settings"]["images"]


def errors(stage):
    """The test error in % as a list, empty for what is no finished retrain."""
    known = stage.finished and stage.settings["stage"] == "retrain"
    return [100 - stage.rows[-1]["accuracy_test"]] if known else []


def mean_of(rows):
    """The row of several runs: lists of their results, of which the table shows the mean."""
    mean = dict(rows[0], run=f"mean of {len(rows)}", seed="")
    for name, value in rows[0].items():
        if isinstance(value, list):
            mean[name] = [number for row in rows for number in row[name]]
    return mean


def report(runs):
    """Shows what runs found, and the mean over the finished runs of the same settings."""
    found, status = common.each(lambda run: (run, *read(run)), dict.fromkeys(runs))
    table, lines, groups, cells = [], [], {}, {}
    for run, row, cell, changes, same in found:
        table.append(row)
        cells.setdefault(cell, []).append(f"{run}:")
        lines += [f"{run} differs from the benchmark: {text}" for text in changes]
        if same:
            groups.setdefault(same, []).append(row)
    table += [mean_of(rows) for rows in groups.values() if len(rows) > 1]
    lines += [" ".join([*names, cell]) for cell, names in cells.items()]
    lines = [textwrap.fill(line, 80, subsequent_indent="  ", **WHOLE) for line in lines]
    if table:
        train.say("\n".join([ABOUT, common.tabulate(table), "", *lines]))
    return status


WHOLE = dict(break_long_words=False, break_on_hyphens=False)
main = common.program("report", report, {"runs": common.RUNS})

if __name__ == "__main__":
    sys.exit(main())
