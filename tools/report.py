"""Shows what runs found, beside random cells and the paper's numbers.

python -m tools.report RUN...
"""

import sys

import genotypes
import train
from tools import benchmarks, common

ABOUT = """\
Num: parameter-free operations of the normal cell, or of the only one. supernet %: accuracy of the
derived cell in the supernet, not a result. error %: on the test images, after the last epoch.
random %: the same of random cells, by the same retrain. Our ± is the sample deviation (n - 1), the
paper's the population deviation. The paper's numbers stand beside its own settings only.
"""


def read(folder):
    """A run: its row of the table, the lines below, and what runs of other seeds share with it.

    Results are lists. The last is None for an unfinished run.
    """
    stages = common.read_run(folder)
    first, last = stages[0], stages[-1]
    settings, end = first.settings, first.rows[-1] if first.rows else {}
    changes = [text for stage in stages for text in stage.changes]
    space, dataset, method = settings["space"], settings["dataset"], settings.get("method", "")
    paper = {} if changes else benchmarks.paper().get((space, dataset), {})
    cell = settings.get("genotype") or end.get("genotype")
    counts = genotypes.parameter_free(genotypes.load(cell)) if cell else {}
    others = [common.read_stage(path.parent) for path in folder.glob("random-*/config.json")]
    random = [errors(other) for other in others if other.changes == last.changes]
    row = {
        "run": folder,
        "space": space,
        "dataset": dataset,
        "method": method,
        "seed": settings["seed"],
        "K": str(settings.get("samples", "")).strip("[]"),
        "epochs": ", ".join(f"{len(stage.rows)} of {stage.settings['epochs']}" for stage in stages),
        "hours": [sum(epoch["seconds"] for stage in stages for epoch in stage.rows) / 3600],
        "Num": list(counts.values())[:1],
        "supernet % (not a result)": [end[name] for name in end if name == "supernet_accuracy"],
        "error %": errors(last),
        "random %": sum(random, []),
        "paper: Num": paper.get(f"{method} Num", ""),
        "paper: error %": paper.get(method, ""),
    }
    notes = [f"{folder}: {cell or 'no epoch has ended'}"]
    if changes:
        notes.append(f"    differs from the benchmark: {', '.join(changes)}")
    images = settings["data"] if dataset == "folder" else ""
    shared = [space, dataset, images, method, settings.get("genotype"), changes, len(stages)]
    return row, notes, str(shared) if last.finished else None


def errors(stage):
    """The test error in % as a list, empty for what is no finished retrain."""
    known = stage.finished and stage.settings["stage"] == "retrain"
    return [100 - stage.rows[-1]["accuracy_test"]] if known else []


def mean_of(rows):
    """The row of several runs: lists of their results, of which the table shows the mean."""
    mean = dict(rows[0], run="mean", seed="")
    for name, value in rows[0].items():
        if isinstance(value, list):
            mean[name] = [number for row in rows for number in row[name]]
    return mean


def report(runs):
    """Shows what runs found, and the mean over the finished runs of the same settings."""
    found, status = common.each(read, dict.fromkeys(runs))
    table, lines, groups = [], [], {}
    for row, notes, shared in found:
        table.append(row)
        lines += notes
        groups.setdefault(shared, []).append(row)
    groups.pop(None, None)
    table += [mean_of(rows) for rows in groups.values() if len(rows) > 1]
    if table:
        train.say("\n".join([ABOUT, common.tabulate(table), "", *lines]))
    return status


main = common.program("report", report, {"runs": common.RUNS})

if __name__ == "__main__":
    sys.exit(main())
