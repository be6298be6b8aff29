"""Lists the paper's searches, with their flags and the paper's numbers.

    python -m tools.benchmarks
    python -m tools.benchmarks --commands [--seeds N] [--method METHOD]

The second form prints a command for each search by one method, ablations included.
"""

import csv
import functools
import sys
from pathlib import Path

import genotypes
import train
from tools import common

ABOUT = """\
python train.py search --space SPACE --dataset DATASET --method METHOD --retrain

error %: the paper's test error; Num: the parameter-free operations of the
normal cell (mean±population deviation). With --help the command shows the
search's settings in place of running, and so does, for its retrain,
python train.py retrain --space SPACE --dataset DATASET --help

The paper has no such numbers for nb201 (cifar10, cifar100, and ImageNet16-120:
folder with --image-size 16) and 1shot1-1 to 1shot1-3 (cifar10).
"""


@functools.cache
def searches():
    """The paper's searches: common.title_of(settings) -> row of paper.csv."""
    with genotypes.open_text(Path(__file__).with_name("paper.csv")) as file:
        rows = list(csv.DictReader(file))
    return {common.title_of(train.configure("search", flags_of(row).split())): row for row in rows}


def flags_of(row):
    return "--space {space} --dataset {dataset} --method {method} {flags}".format(**row).strip()


def command(row, seed):
    name = "{space} {dataset} {method} {flags}".format(**row).replace("--", "").split()
    out = f"runs/{'-'.join(name)}-s{seed}"
    return f"python train.py search {flags_of(row)} --retrain --seed {seed} --out {out} --resume"


def show(commands, seeds, method):
    """Lists the paper's searches and numbers, or prints the searches by one method as commands."""
    rows = list(searches().values())
    if not commands:
        train.say(f"{ABOUT}\n{common.tabulate(rows)}")
        return
    for seed in range(seeds):
        for row in rows:
            if row["method"] == method:
                train.say(command(row, seed))


FLAGS = {
    "--commands": dict(action="store_true", help="print the searches as commands, one a line"),
    "--seeds": dict(type=train.number(int, 1), default=1, metavar="N", help="seeds 0 to N - 1"),
    "--method": dict(choices=train.TOPOLOGY, default="rome-v2", help="whose commands"),
}
main = common.program("benchmarks", show, FLAGS)

if __name__ == "__main__":
    sys.exit(main())
