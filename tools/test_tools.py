"""Tests of what reads finished runs and tables, against the paper, sums by hand, and published accuracies."""

import csv
import gzip
import json
import math
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import genotypes
import train
from tools import nasbench201, report
from tools.baseline import linear_accuracy
from tools.shapes import SHAPES, draw_shapes

TABLE = os.environ.get("NASBENCH201", "")  # the path of the whole table, as docs/nasbench201.md makes it
SKIPS = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"


def write_stage(place, stage, config, rows):
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(dict(stage=stage, settings=config)))
    with open(place / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def fake_run(folder, seed=0, error=None, cell="DARTS_V2", retrain=(), random=(), **settings):
    """A run's folder as `search --retrain --baseline N` leaves it; error, random: test errors of the retrains in %."""
    config = train.configure("search", dict(settings, seed=seed, out=str(folder)))
    genotype = str(genotypes.load(cell))
    row = dict(epoch=config["epochs"], loss_theta=1, loss_alpha=2, genotype=genotype, seconds=3600)
    row |= dict(parameter_free_normal=2, parameter_free_reduce=8, entropy_alpha_normal=1.5, entropy_alpha_reduce=1.2)
    row |= dict(entropy_beta_normal=1) if config["method"] != "gdas" else {}
    write_stage(folder, "search", config, [row])
    for number, value in enumerate([error, *random] if error is not None else []):
        place = folder / (f"random-{number}" if number else "retrain")
        given = dict(genotype=genotype, seed=seed, out=str(place), space=config["space"], dataset=config["dataset"])
        config_2 = train.configure("retrain", given | dict(retrain))
        row = dict(epoch=config_2["epochs"], accuracy_test=100 - value, accuracy_train=99, seconds=1800)
        write_stage(place, "retrain", config_2, [row])
    return str(folder)


def lines_of(folders):
    """The rows of the report's table: name of the column -> text."""
    head, *lines = re.search(r"\n\n(run .+?)\n\n", report.report(folders), re.DOTALL)[1].split("\n")
    names = list(re.finditer(r"\S+(?: \S+)*", head))  # two spaces or more stand between columns
    ends = [name.start() for name in names[1:]] + [None]
    return [{name[0]: line[name.start() : end].strip() for name, end in zip(names, ends)} for line in lines]


def test_published_numbers_are_the_papers():
    known = report.benchmarks()
    assert sum(bool(row["rome-v2"]) for row in known.values()) == 15
    for space, dataset, numbers in (
        ("s2", "cifar10", ("3.14±0.14", "2.0±0.0", "3.89±0.17", "6.0±0.7")),
        ("s1", "cifar100", ("22.71±0.71", "2.3±0.4", "24.49±0.08", "4.0±0.0")),
        ("s4", "svhn", ("2.34±0.00", "0.0±0.0", "2.51±0.06", "1.5±1.5")),
        ("darts", "cifar10", ("2.58±0.07", "", "3.48±0.07", "")),
    ):
        row = known[space, dataset]
        assert (row["rome-v2"], row["rome-v2 Num"], row["gdas"], row["gdas Num"]) == numbers


def test_listed_benchmarks_can_be_run():
    for space, dataset in report.benchmarks():
        assert train.configure("search", dict(space=space, dataset=dataset))["epochs"] > 0
    text = report.list_benchmarks()
    assert max(map(len, text.split("\n"))) <= 120
    assert re.search(r"s1 +cifar100 +22.71±0.71 +2.3±0.4 .* 8/16, 50, 64, 0.05, 7 +8/16, 600, 96, 0.025\n", text)


def test_ablations_of_the_examples_keep_the_papers_epochs():
    page = Path(train.__file__).with_name("docs") / "examples.md"
    rows = dict(re.findall(r"^\| (Tables? [^|]+) \| `([^`]+)` \|", page.read_text("utf-8"), re.MULTILINE))
    found = {name: train.configure("search", {}, flags.split()) for name, flags in rows.items()}
    epochs = {config["samples"]: config["epochs"] for name, config in found.items() if "Table 5, K" in name}
    assert epochs == {4: 87, 10: 35} and found["Table 4, GDAS"]["epochs"] == 90 and len(found) == 13
    alone = found["Table 6, TD, GA of alpha"]
    assert (alone["samples_alpha"], alone["samples_theta"], alone["epochs"]) == (7, 1, 350)


def test_report_gives_the_sample_deviation_beside_the_paper(tmp_path):
    runs = [fake_run(tmp_path / str(s), s, e, space="s2") for s, e in enumerate((3.0, 3.2, 3.4))]
    *rows, mean = lines_of(runs)  # squares of 0.2, 0, 0.2 over n - 1 = 2: 0.04
    assert [row["error %"] for row in rows] == ["3.00", "3.20", "3.40"] and rows[0]["epochs"] == "50 of 50, 600 of 600"
    assert (mean["run"], mean["seed"], mean["error %"]) == ("mean", "0, 1, 2", "3.20±0.20 (n=3)")
    assert (mean["Num"], mean["paper: error %"], mean["paper: Num"]) == ("2.00±0.00 (n=3)", "3.14±0.14", "2.0±0.0")
    assert "n - 1" in report.report(runs) and "differs" not in report.report(runs)


def test_report_shows_random_cells_of_the_same_protocol(tmp_path):
    run = fake_run(tmp_path / "run", 0, 4.0, random=(5.0, 6.0, 7.0))
    other = train.configure("retrain", dict(genotype="DARTS_V2", channels=8, out=str(tmp_path / "other")))
    write_stage(tmp_path / "run/random-4", "retrain", other, [dict(epoch=600, accuracy_test=1, seconds=1)])
    assert lines_of([run])[0]["random %"] == "6.00±1.00 (n=3)"


def test_runs_of_different_protocols_are_not_averaged(tmp_path):
    runs = [fake_run(tmp_path / "a", 0, 2.5), fake_run(tmp_path / "b", 1, 2.7, clip=1.0)]
    runs += [fake_run(tmp_path / "c", 2, 2.9, retrain=dict(channels=16)), fake_run(tmp_path / "d", 3, epochs=3)]
    assert [row["run"] for row in lines_of(runs)] == runs
    notes = re.findall("differs from the protocol: (.+)", report.report(runs))
    assert notes == ["search clip 1.0 (5.0)", "retrain channels 16 (36)", "search epochs 3 (50)"]
    same = fake_run(tmp_path / "e", 4, 2.7, device="cpu", workers=5)
    assert lines_of([*runs, same])[-1]["error %"] == "2.60±0.14 (n=2)"  # 0.1 * sqrt(2)
    folders = [fake_run(tmp_path / name, dataset="folder", data=name) for name in ("cats", "dogs")]
    assert len(lines_of(folders)) == 2


def test_report_takes_the_papers_number_for_the_same_settings_alone(tmp_path):
    runs = [fake_run(tmp_path / "a"), fake_run(tmp_path / "b", clip=1.0), fake_run(tmp_path / "c", method="gdas")]
    runs += [fake_run(tmp_path / "d", samples=1, equal_passes=True), fake_run(tmp_path / "e", epochs=3)]
    runs += [fake_run(tmp_path / "f", method="rome-v1"), fake_run(tmp_path / "g", space="nb201", cell=SKIPS)]
    numbers = ["2.58±0.07", "2.58±0.07", "3.48±0.07"] + 4 * ["no number for these settings"]
    assert [row["paper: error %"] for row in lines_of(runs)] == numbers


def test_report_leaves_out_what_is_not_final(tmp_path):
    runs = [fake_run(tmp_path / str(seed), seed, 2.5) for seed in range(3)]
    path = tmp_path / "2/retrain/metrics.csv"
    path.write_text(path.read_text().replace("600,", "3,", 1))
    *_, going, mean = lines_of(runs)
    assert (going["epochs"], going["error %"]) == ("50 of 50, 3 of 600", "") and mean["seed"] == "0, 1"


def test_a_broken_run_is_one_line(tmp_path):
    for name, content in (("config.json", "{}"), ("metrics.csv", "epoch,genotype\nx,y\n"), ("config.json", "[" * 9999)):
        folder = tmp_path / content[:2] / "run"
        fake_run(folder)
        (folder / name).write_text(content)
        with pytest.raises(ValueError, match="run holds no readable run: .") as error:
            report.report([str(folder)])
        assert "\n" not in str(error.value)
    config = dict(train.configure("search", {}), space="a space of somebody else's")
    write_stage(tmp_path / "other", "search", config, [dict(epoch=1)])
    with pytest.raises(ValueError, match="invalid choice: .a space of somebody else's"):
        report.report([str(tmp_path / "other")])
    with pytest.raises(ValueError, match="No such file.*config.json"):
        report.report([str(tmp_path)])


def test_plot_draws_curves(tmp_path):
    pytest.importorskip("matplotlib", reason="curves need matplotlib")
    runs = [fake_run(tmp_path / "rome", 0, 3.0), fake_run(tmp_path / "gdas", method="gdas")]
    report.plot(runs, str(tmp_path / "curves.PNG"))
    assert (tmp_path / "curves.PNG").read_bytes().startswith(b"\x89PNG")
    assert report.plot(runs) == f"drawn: {runs[0]}/curves.svg"
    picture = ElementTree.parse(f"{runs[0]}/curves.svg") and Path(runs[0], "curves.svg").read_text()
    panels = ("Loss of the weights' half (nats)", "Mean entropy: alpha normal (nats)", "Retrain: test accuracy (%)")
    for words in (*panels, "Parameter-free operations: reduce", "uniform probabilities", *runs):
        assert f"<!-- {words} -->" in picture  # matplotlib notes every text
    with pytest.raises(ValueError, match="Format .txt. is not supported"):
        report.plot(runs, "curves.txt")
    Path(runs[1], "metrics.csv").unlink()
    with pytest.raises(ValueError, match="no epoch has ended"):
        report.plot(runs[1:])


@pytest.mark.parametrize("method", ["rome-v2", "rome-v1", "gdas"])
def test_uniform_line_is_the_logarithm_of_the_number_of_choices(tmp_path, method, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure", reason="curves need matplotlib")
    seen = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda canvas, *a, **k: seen.extend(canvas.axes))
    report.plot([fake_run(tmp_path / "run", method=method)])
    lines = {axes.get_title(): axes.lines[-1].get_ydata()[0] for axes in seen}
    assert lines["Mean entropy: alpha normal (nats)"] == pytest.approx(math.log(7), abs=1e-5)
    counts = [3, 6, 10] if method == "rome-v1" else [2, 3, 4, 5]  # pairs of 3, 4, 5 inputs; or inputs
    if method != "gdas":
        beta = sum(map(math.log, counts)) / len(counts)
        assert lines["Mean entropy: beta normal (nats)"] == pytest.approx(beta, abs=1e-5)


def test_table_accepts_either_key_and_ranks(tmp_path):
    plain, packed = tmp_path / "a.csv", tmp_path / "b.csv.gz"
    plain.write_text(f"arch,c10_test,more\n{SKIPS},54.3,x\n{SKIPS.replace('skip_connect~0', 'none~0', 1)},60,\n")
    packed.write_bytes(gzip.compress(b"ops,c10_test,c10_val\n111111,54.3,50\n011111,60,60\n111011,57,55\n"))
    assert nasbench201.read_table(plain)["c10_test"] == {"111111": 54.3, "011111": 60}
    row = nasbench201.look_up(packed, 10, "rome-v2")(SKIPS)
    assert (row["table_test"], row["table_val"], row["table_rank"]) == (54.3, 50, 3)
    assert row["table_regret"] == pytest.approx(5.7) and row["table_regret_own"] == pytest.approx(2.7)
    unknown = nasbench201.look_up(packed, 10, "rome-v2")(SKIPS.replace("skip_connect~2", "none~2"))
    assert all(map(math.isnan, unknown.values()))
    with pytest.raises(ValueError, match="no test accuracies for these 100 classes"):
        nasbench201.look_up(packed, 100, "rome-v2")


WRONG_TABLES = [
    ("a,b\n1,2\n", "it needs a column"),
    ("ops,c10_test\n111111,50\n11111,50\n", "row 2: "),
    ("ops,c10_test\n111111,50\n111112,x\n", "row 2: "),
    ("ops,c10_test\n111111,150\n", "row 1: c10_test '150' is no accuracy"),
    ("ops,c10_test\n111111,nan\n", "row 1: "),
    ("ops,c10_test\n111111\n", "row 1: "),
    ("ops,c10_test\n111111,50\n111111,50\n", "row 2: .*twice"),
    ("\xff\xfeops", "no table"),
]


@pytest.mark.parametrize(("content", "message"), WRONG_TABLES)
def test_a_wrong_table_is_one_line(tmp_path, content, message):
    (tmp_path / "table.csv").write_bytes(content.encode("latin1"))
    (tmp_path / "table.csv.gz").write_bytes(gzip.compress(content.encode("latin1"))[:-1])  # its last byte is lost
    for name, text in (("table.csv", message), ("table.csv.gz", "no table")):
        with pytest.raises(ValueError, match=text) as error:
            nasbench201.read_table(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.skipif(not TABLE, reason="NASBENCH201 names no table of NAS-Bench-201")
def test_table_has_the_published_values():
    table = nasbench201.read_table(TABLE)
    ops = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    published = [("c10", 10, "333132", 94.37), ("c100", 100, "333133", 73.51), ("in16", 120, "223133", 47.31)]
    for name, classes, cell, best in published:
        a, b, c, d, e, f = (ops[int(digit)] for digit in cell)
        row = nasbench201.look_up(TABLE, classes, "gdas")(f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|")
        assert len(table[f"{name}_test"]) == 15625 and row["table_test"] == pytest.approx(best, abs=0.005)
        assert (row["table_rank"], row["table_regret"], row["table_regret_own"]) == (1, 0, 0)
    own = [a for k, a in table["c10_test"].items() if nasbench201.found_by("rome-v2", k)]
    assert len(own) == 3072 and sum(own) / 3072 == pytest.approx(89.4, abs=0.05) and max(own) == 94.09
    assert sum(nasbench201.found_by("gdas", k) for k in table["c10_test"]) == 4**6
    row = nasbench201.look_up(TABLE, 10, "rome-v2")(SKIPS)
    assert row["table_test"] == pytest.approx(54.30, abs=0.005)
    assert row["table_regret_own"] == pytest.approx(94.09 - row["table_test"])


def test_shapes_are_even_and_determined_by_their_seed():
    images, labels = draw_shapes(1050, 3, 16)
    assert images.shape == (1050, 16, 16, 3) and images.dtype == torch.uint8
    assert labels.bincount().tolist() == [105] * len(SHAPES)
    again, other = draw_shapes(1050, 3, 16)[0], draw_shapes(1050, 4, 16)[0]
    assert torch.equal(images, again) and not torch.equal(images, other)


def test_linear_accuracy_is_ridge_regression_in_closed_form():
    images, labels = draw_shapes(1200, 0, 8)
    test_images, test_labels = draw_shapes(300, 1, 8)
    x, y = images.flatten(1).double(), torch.eye(10, dtype=torch.float64)[labels]
    mean, scale = x.mean(0), x.std(0, correction=0)
    x = (x - mean) / scale
    # The same minimum as least squares with rows sqrt(N) I below X.
    rows, zeros = torch.cat([x, len(x) ** 0.5 * torch.eye(192)]), torch.zeros(192, 10)
    weight = torch.linalg.lstsq(rows, torch.cat([y - y.mean(0), zeros])).solution
    scores = (test_images.flatten(1) - mean) / scale @ weight + y.mean(0)
    expected = 100 * (scores.argmax(1) == test_labels).double().mean().item()
    assert linear_accuracy(images, labels, test_images, test_labels, 10) == pytest.approx(expected)
    assert 10 < expected < 60


def test_a_linear_model_fails_on_shapes():
    accuracy = linear_accuracy(*draw_shapes(8000, 0, 16), *draw_shapes(2000, 1, 16), 10)
    assert accuracy == pytest.approx(29.6, abs=0.5)  # chance: 10; at 32 pixels 30.15
