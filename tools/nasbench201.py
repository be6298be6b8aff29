"""True accuracies of NAS-Bench-201's cells, read from a CSV file; docs/nasbench201.md describes it."""

import csv
import gzip
import math
import re
import zlib
from pathlib import Path

import genotypes

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")  # the table's digits


def table_key(arch: str) -> str:
    """The six digits of an arch string in the table: the ops on the edges 0>1, 0>2, 1>2, 0>3, 1>3, 2>3."""
    ops = re.findall(r"([^|~+]+)~", genotypes.check(arch, "nb201"))
    return "".join(str(OPS.index(op)) for op in ops)


def read_table(path: str | Path) -> dict:
    """NAS-Bench-201's accuracies in %: column -> six digits -> accuracy.

    path: a CSV file, or one packed by gzip whose name ends in .gz, with a column ops (six digits) or arch, and some of
    c10_test, c10_val, c100_test, ..., in16_val. A ValueError says what is wrong, and in which row.
    """
    open_file, at = gzip.open if str(path).endswith(".gz") else open, "header"
    try:
        with open_file(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            names = reader.fieldnames or []
            key = "ops" if "ops" in names else "arch"
            table = {name: {} for name in names if re.fullmatch("(c10|c100|in16)_(test|val)", name)}
            if key not in names or not table:
                raise ValueError("it needs a column ops or arch, and one such as c10_test")
            for number, row in enumerate(reader, 1):
                at = f"row {number}"
                cell = row[key] if re.fullmatch("[0-4]{6}", row[key]) else table_key(row[key])
                for name, column in table.items():
                    if cell in column or not 0 <= float(row[name]) <= 100:
                        raise ValueError(f"{name} {row[name]!r:.60} is no accuracy in %, or the cell is there twice")
                    column[cell] = float(row[name])
    except (OSError, EOFError, zlib.error, csv.Error, ValueError) as error:
        raise ValueError(f"{path} is no table of NAS-Bench-201, {at}: {error}") from None
    return table


def found_by(method: str, cell: str) -> bool:
    """Whether the method can find the cell of six digits: neither keeps `none`, and ROME drops one input of node 3."""
    return "0" not in cell[:3] and cell[3:].count("0") == (0 if method == "gdas" else 1)


def look_up(path: str | Path, classes: int, method: str):
    """A function from a genotype to its numbers in the table, NaN where it has none; docs/nasbench201.md explains them.

    The number of classes tells the data set. ValueError if the table lacks it.
    """
    table, name = read_table(path), {10: "c10", 100: "c100", 120: "in16"}.get(classes)
    test, validation = table.get(f"{name}_test"), table.get(f"{name}_val", {})
    if not test:
        raise ValueError(f"{path} has no test accuracies for these {classes} classes")
    own = [accuracy for cell, accuracy in test.items() if found_by(method, cell)]

    def row_of(genotype: str) -> dict:
        cell = table_key(genotype)
        mine = test.get(cell, math.nan)
        rank = 1 + sum(accuracy > mine for accuracy in test.values()) if cell in test else math.nan
        row = dict(table_test=mine, table_val=validation.get(cell, math.nan), table_rank=rank)
        return row | dict(table_regret=max(test.values()) - mine, table_regret_own=max(own, default=math.nan) - mine)

    return row_of
