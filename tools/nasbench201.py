"""Looks up the true accuracy of the cells that a search derived, in a table of NAS-Bench-201.

    python -m tools.nasbench201 RUN --table CSV

docs/nasbench201.md describes the table.
"""

import csv
import gzip
import re
import sys

import genotypes
import train
from tools import common

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")  # the table's digits
COLUMNS = {10: "c10_test", 100: "c100_test", 120: "in16_test"}  # by the number of classes


ABOUT = """\
The cell that each epoch derived, in {1} cells of {0}.
regret: what the best cell of the table has more. own: what the best cell has
more that the method can find. cell: a digit for each edge, 0>1, 0>2, 1>2, 0>3,
1>3, 2>3: 1 skip_connect, 2 nor_conv_1x1, 3 nor_conv_3x3, 4 avg_pool_3x3.
"""


def table_key(arch):
    """The six digits of a genotype: the operations on the edges 0>1, 0>2, 1>2, 0>3, 1>3, 2>3."""
    ops = re.findall(r"(\w+)~", genotypes.check(arch, "nb201"))
    return "".join(str(OPS.index(op)) for op in ops)


def read_table(path, column: str) -> dict:
    """Accuracies in % of a column such as "c10_test": six digits -> accuracy.

    path: a CSV file, or one packed as .gz, with the column, and with a column ops (six digits) or
    arch. ValueError says which line is wrong.
    """
    table = {}
    opener = gzip.open if str(path).endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8-sig", errors="backslashreplace") as file:
        reader = csv.DictReader(file, restval="")
        try:
            names = reader.fieldnames or []
            key = "ops" if "ops" in names else "arch"
            if not {key, column} <= {*names}:
                raise ValueError(f"the header needs {column}, and ops or arch")
            for row in reader:
                cell = row[key] if re.fullmatch("[0-4]{6}", row[key]) else table_key(row[key])
                if cell in table:
                    raise ValueError(f"the cell {cell} is there twice")
                table[cell] = float(row[column])
                if not 0 <= table[cell] <= 100:
                    raise ValueError(f"{row[column]} is no accuracy in %")
        except (csv.Error, EOFError, ValueError) as error:
            raise ValueError(f"{path} is no such table: line {reader.line_num}, {error}") from None
    if table and max(table.values()) <= 1:
        raise ValueError(f"{path}: {column} is at most 1; it has to be in %, 91.55 for 0.9155")
    return table


def found_by(method, cell):
    """Whether a method can find a cell, six digits.

    No method keeps `none`. GDAS keeps all edges. ROME drops one input of node 3.
    """
    return "0" not in cell[:3] and cell[3:].count("0") == (0 if method == "gdas" else 1)


def show(run, table):
    """Looks up the true accuracy of the cell that was derived after each epoch of a search."""
    state, rows = train.load_checkpoint(run / "last.pt", "search"), []
    classes, method = len(state["classes"]), state["settings"]["method"]
    if classes not in COLUMNS:
        raise ValueError(f"{run} has {classes} classes; the table is for 10, 100, 120")
    accuracies = read_table(table, COLUMNS[classes])
    for row in state["rows"]:
        cell = table_key(row["genotype"])
        if cell not in accuracies:
            raise ValueError(f"the table has no cell {cell}, {row['genotype']}")
        accuracy = accuracies[cell]
        own = [number for other, number in accuracies.items() if found_by(method, other)]
        better = [number - accuracy for number in accuracies.values()]
        rows.append(
            {
                "epoch": row["epoch"],
                "test %": [accuracy],
                "rank": 1 + sum(more > 0 for more in better),
                "regret": [max(better)],
                "own": [max(own) - accuracy],
                "cell": cell,
            }
        )
    train.say(f"{ABOUT.format(table, len(accuracies))}\n{common.tabulate(rows)}")


TABLE = dict(type=common.path, required=True, metavar="CSV", help="see docs/nasbench201.md")
main = common.program("nasbench201", show, {"run": common.RUN, "--table": TABLE})

if __name__ == "__main__":
    sys.exit(main())
