"""Lists every benchmark: its flags, the settings of its search and retrain, the paper's numbers.

python -m tools.benchmarks
"""

import csv
import sys
from pathlib import Path

import genotypes
import train
from tools import common

ABOUT = """\
python train.py search --space SPACE --dataset DATASET --method METHOD --retrain

rome-v2, gdas: the paper's test error in %, and Num, the parameter-free operations of the normal
cell (mean±population deviation). search, retrain: cells/channels (nb201: cells of a stage), epochs,
batch size, learning rate, K. GDAS has K = 1. nb201 on folder: ImageNet16-120, with --image-size 16.
"""


def paper() -> dict:
    """paper.csv, the paper's numbers as text: (space, data set) -> column -> text."""
    with genotypes.open_text(Path(__file__).with_name("paper.csv")) as file:
        return {(row["space"], row["dataset"]): row for row in csv.DictReader(file)}


def show():
    """Lists every benchmark, its settings, and the paper's numbers."""
    rows, form = paper(), "{cells}/{channels}, {epochs}, {batch_size}, {lr}"
    for place, row in rows.items():
        search = train.settings_of(train.SEARCH, *place)
        row["search"] = (form + ", {samples[0]}").format(**search)
        row["retrain"] = form.format(**train.settings_of(train.RETRAIN, *place))
    train.say(f"{ABOUT}\n{common.tabulate(list(rows.values()))}")


main = common.program("benchmarks", show, {})

if __name__ == "__main__":
    sys.exit(main())
