"""True accuracies of NAS-Bench-201's cells, read from a CSV file; docs/nasbench201.md describes it."""

import csv
import gzip
import io
import math
import re
import zlib
from pathlib import Path

import genotypes

TABLE_DATA = {"cifar10": "c10", "cifar100": "c100", "folder": "in16"}  # data set -> how the table's columns begin
TABLE_BYTES = 20_000_000  # the most that is read; the whole table has 0.9 MB
OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")  # the table's digits


def table_key(arch: str) -> str:
    """The six digits of an arch string in the table: the ops on the edges 0>1, 0>2, 1>2, 0>3, 1>3, 2>3."""
    ops = re.findall(r"([^|~+]+)~", genotypes.check(arch, "nb201"))
    return "".join(str(OPS.index(op)) for op in ops)


def read_table(path: str | Path) -> dict:
    """NAS-Bench-201's accuracies in %: column -> six digits -> accuracy.

    path: a CSV file, or one packed by gzip whose name ends in .gz. Its columns: ops (six digits) or arch, and c10_test,
    c10_val, c100_test, ..., in16_val, of which one test column at least. Other columns are ignored, and cells may be
    missing. A ValueError says what is wrong and in which row.
    """
    where = ""
    try:
        with gzip.open(path) if str(path).endswith(".gz") else open(path, "rb") as file:
            data = file.read(TABLE_BYTES + 1)
        if len(data) > TABLE_BYTES:
            raise ValueError(f"it has more than {TABLE_BYTES} bytes")
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), restval="", strict=True)
        names = reader.fieldnames or []
        table = {name: {} for name in names if re.fullmatch("(c10|c100|in16)_(test|val)", name)}
        key = "ops" if "ops" in names else "arch"
        if key not in names or not any(name.endswith("_test") for name in table):
            raise ValueError("it needs a column ops or arch, and one of c10_test, c100_test, in16_test")
        for number, row in enumerate(reader, 1):
            where = f"row {number}: "
            cell = row[key] if re.fullmatch("[0-4]{6}", row[key]) else table_key(row[key])
            for name, column in table.items():
                if cell in column or not 0 <= float(row[name]) <= 100:
                    raise ValueError(f"{name} {row[name]!r:.60} is no accuracy in %, or the cell is there twice")
                column[cell] = float(row[name])
        if not where:
            raise ValueError("it has no rows")
    except (OSError, EOFError, zlib.error, csv.Error, ValueError) as error:
        raise ValueError(f"{path} is no table of NAS-Bench-201: {where}{error}") from None
    return table


def found_by(method: str, cell: str) -> bool:
    """Whether the method can find the cell of six digits: neither keeps `none`, and ROME drops one input of node 3."""
    before, node_3 = cell[:3], cell[3:]
    return "0" not in before and node_3.count("0") == (0 if method == "gdas" else 1)


def table_row(table: dict, arch: str, dataset: str, method: str = "rome-v2") -> dict:
    """What the table knows of a cell: test and validation accuracy, its rank by test accuracy (1: best), its regrets.

    A regret is the best test accuracy minus the cell's: the best of the table, or (`own`) of what the method can find.
    NaN where the table lacks the cell; ValueError where it lacks the data set.
    """
    name, cell = TABLE_DATA[dataset], table_key(arch)
    test, validation = table.get(f"{name}_test"), table.get(f"{name}_val", {})
    if not test:
        raise ValueError(f"the table has no {name}_test")
    mine = test.get(cell, math.nan)
    rank = 1 + sum(accuracy > mine for accuracy in test.values()) if cell in test else math.nan
    row = dict(table_test=mine, table_val=validation.get(cell, math.nan), table_rank=rank)
    best = max((accuracy for other, accuracy in test.items() if found_by(method, other)), default=math.nan)
    return row | dict(table_regret=max(test.values()) - mine, table_regret_own=best - mine)


def look_up(path: str, classes: int, method: str):
    """A function from a genotype to its row of the table at `path`, for the data set with so many classes."""
    table, dataset = read_table(path), {10: "cifar10", 100: "cifar100", 120: "folder"}.get(classes)
    if dataset is None or not table.get(f"{TABLE_DATA[dataset]}_test"):
        raise ValueError(f"{path} has no test accuracies for these {classes} classes")
    return lambda genotype: table_row(table, genotype, dataset, method)
