"""Lists every benchmark: its flags, the settings of its search and retrain, the paper's numbers.

    python -m tools.benchmarks
    python -m tools.benchmarks --commands [--seeds N] [--method METHOD]

The second form prints a command for each search of the paper by one method, ablations included.
"""

import csv
import functools
import itertools
import re
import sys
from pathlib import Path

import genotypes
import train
from tools import common

ABOUT = """\
python train.py search --space SPACE --dataset DATASET --method METHOD --retrain

rome-v2, gdas: the paper's test error in %, and Num, the parameter-free
operations of the normal cell (mean±population deviation). search, retrain:
cells/channels (nb201: cells of a stage), epochs, batch size, learning rate, K.
GDAS has K = 1. nb201 folder: ImageNet16-120, with --image-size 16.
"""


def read(name):
    with genotypes.open_text(Path(__file__).with_name(name)) as file:
        return list(csv.DictReader(file))


@functools.cache
def searches():
    """The paper's searches: settings -> flags, method, test error in % and Num ("" if unknown).

    paper.csv has the benchmarks, ablations.csv the others.
    """
    rows, found = [], {}
    for row in read("paper.csv"):
        for method in train.TOPOLOGY if row["rome-v2"] else ():
            flags = "--space {space} --dataset {dataset} --method ".format(**row) + method
            rows.append((flags, row.get(method, ""), row.get(f"{method} Num", "")))
    rows += [(row["flags"], row["error"], "") for row in read("ablations.csv")]
    for flags, *numbers in rows:
        config = train.configure("search", flags.split())
        known = found.setdefault(common.decisive(config), [flags, config["method"], "", ""])
        known[2:] = numbers if numbers[0] else known[2:]
    return found


def command(flags, seed):
    name = re.sub("--(space |dataset |method )?", "", flags).replace(" ", "-")
    rest = f"--retrain --seed {seed} --out runs/{name}-s{seed} --resume"
    return f"python train.py search {flags} {rest}"


def show(commands, seeds, method):
    """Lists every benchmark, its settings, and the paper's numbers."""
    if commands:
        for seed, search in itertools.product(range(seeds), searches().values()):
            if search[1] == method:
                train.say(command(search[0], seed))
        return
    table, form = [], "{cells}/{channels}, {epochs}, {batch_size}, {lr}"
    for numbers in read("paper.csv"):
        place = numbers.pop("space"), numbers.pop("dataset")
        row = {"benchmark": " ".join(place), **numbers}
        search = train.settings_of(train.SEARCH, *place)
        row["search"] = (form + ", {samples[0]}").format(**search)
        row["retrain"] = form.format(**train.settings_of(train.RETRAIN, *place))
        table.append(row)
    train.say(f"{ABOUT}\n{common.tabulate(table)}")


COMMANDS = dict(action="store_true", help="print the paper's searches as commands, one a line")
SEEDS = dict(type=train.number(int, 1), default=1, metavar="N", help="seeds 0 to N - 1")
METHOD = dict(choices=train.TOPOLOGY, default="rome-v2", help="whose commands")
FLAGS = {"--commands": COMMANDS, "--seeds": SEEDS, "--method": METHOD}
main = common.program("benchmarks", show, FLAGS)

if __name__ == "__main__":
    sys.exit(main())
