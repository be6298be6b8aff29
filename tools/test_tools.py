"""Tests of what reads finished runs and tables, against the paper, sums by hand, and published accuracies."""

import csv
import gzip
import io
import json
import shlex
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import genotypes
import train
from tools import nasbench201, report
from tools.linear import linear_accuracy
from tools.shapes import SHAPES, draw_shapes

TABLE = Path(train.__file__).resolve().parent / "../shared/data/nasbench201.csv.gz"
SKIPS = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"


def write_stage(place, stage, config, rows):
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(dict(stage=stage, settings=config)))
    with open(place / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def fake_run(folder, seed=0, error=None, cell="DARTS_V2", epochs=None, retrain=(), random=(), **settings):
    """A run's folder as `search --retrain --baseline N` leaves it; error, random: test errors of the retrains in %."""
    config = train.configure("search", dict(settings, seed=seed, out=str(folder)))
    genotype = str(genotypes.load(cell))
    row = dict(epoch=epochs or config["epochs"], loss_theta=1, loss_alpha=2, genotype=genotype, seconds=3600)
    row |= dict(parameter_free_normal=2, parameter_free_reduce=8, entropy_alpha_normal=1.5, entropy_alpha_reduce=1.2)
    write_stage(folder, "search", config, [row])
    for number, value in enumerate([error, *random] if error is not None else []):
        place = folder / (f"random-{number}" if number else "retrain")
        given = dict(genotype=genotype, seed=seed, out=str(place), space=config["space"], dataset=config["dataset"])
        config_2 = train.configure("retrain", given | dict(retrain))
        row = dict(epoch=config_2["epochs"], accuracy_test=100 - value, accuracy_train=99, seconds=1800)
        write_stage(place, "retrain", config_2, [row])
    return str(folder)


def means(folders):
    rows = csv.DictReader(io.StringIO(report.report(folders, "csv")))
    return [row for row in rows if row["row"] == "mean"]


@pytest.mark.parametrize(
    ("benchmark", "rome", "gdas"),
    [
        ("s2/cifar10", "3.14±0.14 2.0±0.0", "3.89±0.17 6.0±0.7"),
        ("s3/cifar10", "2.61±0.00 2.0±0.0", "3.04±0.10 6.5±0.5"),
        ("s1/cifar100", "22.71±0.71 2.3±0.4", "24.49±0.08 4.0±0.0"),
        ("s4/cifar100", "20.95±0.45 0.0±0.0", "24.14±0.89 2.3±1.1"),
        ("s2/svhn", "2.41±0.07 1.0±0.0", "3.05±0.02 7.8±0.4"),
        ("s4/svhn", "2.34±0.00 0.0±0.0", "2.51±0.06 1.5±1.5"),
        ("darts/cifar10", "2.58±0.07 ", "3.48±0.07 "),
    ],
)
def test_published_numbers_are_the_papers(benchmark, rome, gdas):
    assert len(report.PAPER) == 15
    for text, numbers in ((rome, report.PAPER[benchmark]["rome-v2"]), (gdas, report.PAPER[benchmark]["gdas"])):
        assert f"{report.spread(numbers[:2])} {report.spread(numbers[2:], 1)}" == text


def test_variants_keep_the_papers_epochs():
    found = {name: train.configure("search", settings) for name, settings, *_ in report.VARIANTS}
    epochs = {config["samples"]: config["epochs"] for name, config in found.items() if "Table 5, K" in name}
    assert epochs == {4: 87, 10: 35}
    assert found["Table 4, GDAS"]["epochs"] == 90
    alone = found["Table 6, TD, GA of alpha"]
    assert (alone["samples_alpha"], alone["samples_theta"], alone["epochs"]) == (7, 1, 350)


def test_listed_commands_are_valid():
    lines = report.list_benchmarks(commands=True, seeds=(0, 3)).split("\n")
    assert len(lines) == len(set(lines)) == 2 * 21
    for line in lines:
        python, script, stage, *words = shlex.split(line)
        assert train.configure(stage, {}, words)["seed"] in (0, 3)
    text = report.list_benchmarks()
    assert max(map(len, text.split("\n"))) <= 120 and "22.71±0.71" in text


def test_report_gives_the_sample_deviation_beside_the_paper(tmp_path):
    runs = [fake_run(tmp_path / str(s), s, e, space="s2") for s, e in enumerate((3.0, 3.2, 3.4))]
    (row,) = means(runs)  # squares of 0.2, 0, 0.2 over n - 1 = 2: 0.04
    assert (row["n of error"], row["ours: error"], row["paper: error"]) == ("3", "3.20±0.20", "3.14±0.14")
    assert row["ours - paper: error"] == "+0.06" and row["ours: Num"] == "2.0±0.0" and "remarks" not in row
    text = report.report(runs)
    assert "1.50" in text and "search finished, retrain finished" in text and "n - 1" in text


def test_report_shows_random_cells_of_the_same_protocol(tmp_path):
    run = fake_run(tmp_path / "run", 0, 4.0, random=(5.0, 6.0, 7.0))
    other = train.configure("retrain", dict(genotype="DARTS_V2", channels=8, out=str(tmp_path / "other")))
    write_stage(tmp_path / "run/random-4", "retrain", other, [dict(epoch=600, accuracy_test=1, seconds=1)])
    assert means([run])[0]["random cells: error"] == "6.00±1.00 (n=3)"
    assert "6.00±1.00 (n=3)" in report.report([run]).split("\n\n")[1]


def test_runs_of_different_protocols_are_not_averaged(tmp_path):
    runs = [fake_run(tmp_path / "a", 0, 2.5), fake_run(tmp_path / "b", 1, 2.7, clip=1.0)]
    runs += [fake_run(tmp_path / "c", 2, 2.9, retrain=dict(channels=16)), fake_run(tmp_path / "d", 3, quick=True)]
    rows = means(runs)
    assert [row["n of error"] for row in rows] == ["1", "1", "1", "0"]
    assert rows[0]["remarks"] == "" and rows[1]["remarks"] == "not the paper's protocol: clip 1.0 (5.0)"
    assert rows[2]["remarks"] == "not the paper's protocol: retrain channels 16 (36)"
    assert "no number in the paper" in rows[3]["remarks"] and rows[3]["paper: error"] == ""
    same = fake_run(tmp_path / "e", 4, 2.7, device="cpu", workers=5)
    assert means([runs[0], same])[0]["ours: error"] == "2.60±0.14"  # 0.1 * sqrt(2)


def test_report_names_the_ablation_and_leaves_out_what_is_not_final(tmp_path):
    runs = [fake_run(tmp_path / "a", samples=1, equal_passes=True), fake_run(tmp_path / "b", 1, epochs=3)]
    ablation, running = means(runs)
    assert "K = 1" in ablation["remarks"] and ablation["paper: error"] == "2.88±0.06"
    assert running["n of Num"] == "0" and "search epoch 3 of 50" in report.report(runs)


@pytest.mark.parametrize("name, content", [("config.json", "{}"), ("metrics.csv", "epoch,genotype\nx,y\n"), ("", "")])
def test_a_broken_run_is_one_line(tmp_path, name, content):
    folder = tmp_path / "run"
    if name:
        fake_run(folder)
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match="run holds no readable run: ") as error:
        report.report([str(folder)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_plot_draws_curves_and_cells(tmp_path, suffix):
    pytest.importorskip("matplotlib", reason="curves need matplotlib")
    runs = [fake_run(tmp_path / "rome", 0, 3.0, space="s2"), fake_run(tmp_path / "gdas", space="s2", method="gdas")]
    written = report.plot(runs, str(tmp_path / f"curves{suffix}"))
    assert (tmp_path / "gdas/cells.svg").read_text().count("sep_conv_3x3") == 5  # of DARTS_V2
    for name in ("curves", "curves-retrain"):
        assert str(tmp_path / f"{name}{suffix}") in written
    if suffix == ".png":
        assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
        return
    text = (tmp_path / "curves.svg").read_text()
    assert ElementTree.fromstring(text.encode()).tag.endswith("svg")
    for words in ("Search, s2 on cifar10", "Entropy of alpha", "uniform", "cross-entropy (nats)", *runs):
        assert words in text  # matplotlib notes every text
    assert "training solid, test dashed" not in text and "Entropy" not in (tmp_path / "curves-retrain.svg").read_text()


def test_uniform_entropies_by_hand():
    values = {}
    for method in ("rome-v2", "rome-v1"):
        config = train.configure("search", dict(space="darts", method=method))
        values[method] = [report.uniform_entropy(config, f"entropy_{name}_") for name in ("alpha", "beta")]
    assert values["rome-v2"] == pytest.approx([1.945910, (0.693147 + 1.098612 + 1.386294 + 1.609438) / 4], abs=1e-5)
    assert values["rome-v1"][1] == pytest.approx((1.098612 + 1.791759 + 2.302585) / 3, abs=1e-5)  # of 3, 6, 10 pairs


def test_plot_says_what_it_lacks(tmp_path, monkeypatch):
    run, other = fake_run(tmp_path / "run"), fake_run(tmp_path / "other", dataset="svhn")
    with pytest.raises(ValueError, match=r"ends in \.svg or \.png"):
        report.plot([run], "curves.txt")
    with pytest.raises(ValueError, match="one space and data set at a time; these are darts on cifar10, darts on svhn"):
        report.plot([run, other])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        report.plot([run])
    assert (tmp_path / "run" / "cells.svg").exists()  # needs nothing
    (tmp_path / "run" / "metrics.csv").unlink()
    with pytest.raises(ValueError, match="no epoch has ended"):
        report.plot([run])


def test_table_accepts_either_key_and_ranks(tmp_path):
    plain, packed = tmp_path / "a.csv", tmp_path / "b.csv.gz"
    plain.write_text(f"arch,c10_test,more\n{SKIPS},54.3,x\n{SKIPS.replace('skip_connect~0', 'none~0', 1)},60,\n")
    packed.write_bytes(gzip.compress(b"ops,c10_test,c10_val\n111111,54.3,50\n011111,60,60\n111011,57,55\n"))
    assert nasbench201.read_table(plain)["c10_test"] == {"111111": 54.3, "011111": 60}
    row = nasbench201.table_row(nasbench201.read_table(packed), SKIPS, "cifar10")
    assert (row["table_test"], row["table_val"], row["table_rank"]) == (54.3, 50, 3)
    assert row["table_regret"] == pytest.approx(5.7) and row["table_regret_own"] == pytest.approx(2.7)
    with pytest.raises(ValueError, match="no c100_test"):
        nasbench201.table_row(nasbench201.read_table(packed), SKIPS, "cifar100")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "it needs a column"),
        ("ops,c10_val\n111111,50\n", "it needs a column"),
        ("ops,c10_test\n111111,50\n11111,50\n", "row 2: "),
        ("ops,c10_test\n111111,50\n111112,x\n", "row 2: "),
        ("ops,c10_test\n111111,150\n", "row 1: c10_test '150' is no accuracy"),
        ("ops,c10_test\n111111,nan\n", "row 1: "),
        ("ops,c10_test\n111111\n", "row 1: "),
        ("ops,c10_test\n111111,50\n111111,50\n", "row 2: .*twice"),
        ("ops,c10_test\n", "it has no rows"),
        ("\x1f\x8bbroken", "no table"),
        ("\xff\xfeops", "no table"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path, content, message):
    path = tmp_path / "table.csv"
    path.write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError, match=message) as error:
        nasbench201.read_table(path)
    assert "\n" not in str(error.value)


def test_a_table_that_unpacks_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(nasbench201, "TABLE_BYTES", 1000)
    (tmp_path / "t.gz").write_bytes(gzip.compress(b"ops,c10_test\n" + b" " * 100_000))
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        nasbench201.read_table(tmp_path / "t.gz")


@pytest.mark.skipif(not TABLE.exists(), reason="the table of NAS-Bench-201 is not beside the repository")
def test_table_has_the_published_values():
    table = nasbench201.read_table(TABLE)
    ops = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    published = [("c10", "cifar10", "333132", 94.37), ("c100", "cifar100", "333133", 73.51)]
    for name, dataset, cell, best in [*published, ("in16", "folder", "223133", 47.31)]:
        a, b, c, d, e, f = (ops[int(digit)] for digit in cell)
        row = nasbench201.table_row(table, f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|", dataset, "gdas")
        assert len(table[f"{name}_test"]) == 15625 and row["table_test"] == pytest.approx(best, abs=0.005)
        assert (row["table_rank"], row["table_regret"], row["table_regret_own"]) == (1, 0, 0)
    own = [a for k, a in table["c10_test"].items() if nasbench201.found_by("rome-v2", k)]
    assert len(own) == 3072 and sum(own) / 3072 == pytest.approx(89.4, abs=0.05) and max(own) == 94.09
    assert sum(nasbench201.found_by("gdas", k) for k in table["c10_test"]) == 4**6
    row = nasbench201.table_row(table, SKIPS, "cifar10")
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
