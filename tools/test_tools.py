"""Tests of tools/, against sums by hand, published numbers, and tables made here."""

import csv
import io
import itertools
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import genotypes
import rome
import train
from tools import baseline, benchmarks, nasbench201, plot, predict, report, size

FORM = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|"
SKIPS, CONVS = (FORM.format(*[op] * 6) for op in ("skip_connect", "nor_conv_3x3"))


def fake_stage(words, row, epochs=None):
    """The folder --out of a search or a retrain, whose epochs have the same row."""
    stage, *flags = words.split()
    config = train.configure(stage, flags)
    rows = [[epoch + 1, *row.values()] for epoch in range(epochs or config["epochs"])]
    folder = Path(config["out"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(settings=config)))
    with open(folder / "metrics.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["epoch", *row], *rows])


def fake_search(folder, words="", cell="DARTS_V2"):
    genotype = genotypes.load(cell)
    row = dict(loss_theta=1.5, supernet_accuracy=50, genotype=genotype, seconds=72)
    fake_stage(f"search {words} --out {folder}", row)
    return str(folder)


def fake_retrain(folder, error, words="", epochs=None):
    """error: in % of the test images."""
    row = dict(accuracy_test=100 - error, seconds=6)
    fake_stage(f"retrain --genotype DARTS_V2 {words} --out {folder}", row, epochs)


def lines_of(text, runs):
    """The lines of a printed table that begin with a run."""
    return [re.search(f"^{run} .*", text, re.MULTILINE)[0] for run in runs]


def test_benchmarks_lists_the_papers_numbers_and_the_settings(capsys):
    assert benchmarks.main([]) == 0
    line = (
        "s2 +cifar10 +3.14±0.14 +2.0±0.0 +3.89±0.17 +6.0±0.7 "  # the paper's Table 1
        "+8/16, 50, 64, 0.05, 7 +20/16, 600, 96, 0.025\n"
    )
    assert re.search(line, capsys.readouterr().out)


def test_report_averages_seeds_beside_random_cells_and_the_papers_numbers(tmp_path, capsys):
    runs = []
    for seed, error in enumerate((3.0, 3.2, 3.4)):
        runs.append(fake_search(tmp_path / f"{seed}", f"--space s2 --seed {seed}"))
        fake_retrain(tmp_path / f"{seed}/retrain", error, "--space s2")
        fake_retrain(tmp_path / f"0/random-{seed}", 5 + seed, "--space s2")
    fake_retrain(tmp_path / "0/random-4", 1, "--space s2 --channels 8")  # another retrain
    assert report.main([*runs, runs[0]]) == 0
    text = capsys.readouterr().out
    first, mean = lines_of(text, [runs[0], "mean"])
    assert re.search(" 50 of 50, 600 of 600 +2.00 +2.00 +50.00 +3.00 ", first)
    assert re.search(r" 6.00±1.00 \(n=3\) +2.0±0.0 +3.14±0.14$", first)
    assert " 3.20±0.20 (n=3) " in mean  # squares of 0.2, 0, 0.2 over n - 1 = 2: 0.04
    assert str(genotypes.load("DARTS_V2")) in text and "differs" not in text


def test_report_keeps_other_settings_and_unfinished_runs_apart(tmp_path, capsys):
    runs = [
        fake_search(tmp_path / "a"),
        fake_search(tmp_path / "b", "--clip 1"),
        fake_search(tmp_path / "c", "--method gdas"),
        fake_search(tmp_path / "d"),
        fake_search(tmp_path / "e"),
    ]
    fake_retrain(tmp_path / "d/retrain", 2.5, "--channels 16")
    fake_retrain(tmp_path / "e/retrain", 2.5, epochs=3)
    report.main(runs)
    text = capsys.readouterr().out
    assert "\nmean" not in text
    for line, end in zip(lines_of(text, runs), ("2.58±0.07", "50.00", "3.48±0.07", "2.50")):
        assert line.endswith(f" {end}")
    assert re.search("50 of 50, 3 of 600 .* 50.00 +2.58±0.07\n", text)
    notes = ["search clip 1.0 (5.0)", "retrain channels 16 (36)"]
    assert re.findall("differs from the benchmark: (.+)", text) == notes


@pytest.mark.parametrize("content", ["{}", "[" * 9999, '{"settings": {"stage": "search"}}'])
def test_a_broken_run_is_one_line_and_the_others_are_reported(tmp_path, capsys, content):
    runs = [fake_search(tmp_path / name) for name in ("broken", "good")]
    (tmp_path / "broken/config.json").write_text(content)
    assert report.main(runs) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(r"error: \S+broken holds no readable run: .+\n", printed.err)
    assert lines_of(printed.out, runs[1:])


def test_own_operations_and_the_home_folder_are_known(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(rome.PRIMITIVES, "own", lambda c, stride, derived: nn.AvgPool2d(stride))
    rows, pairs = [["own"]] * 2, [("own", 0), ("own", 1)]
    monkeypatch.setitem(rome.SPACES, "small", dict(normal=rows, reduce=rows))
    cell = str(rome.Genotype(pairs, [2], pairs, [2]))
    fake_search(tmp_path / "run", "--space small", cell)
    assert report.main(["~/run"]) == 0 and cell in capsys.readouterr().out


def test_plot_draws_the_columns_of_every_run(tmp_path, capsys, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure", reason="curves need matplotlib")
    runs, seen = [fake_search(tmp_path / "a"), fake_search(tmp_path / "b")], []
    fake_retrain(tmp_path / "a/retrain", 3)
    assert plot.main(runs) == 0 and (tmp_path / "a/curves.svg").stat().st_size
    monkeypatch.setattr(figure.Figure, "savefig", lambda canvas, out, dpi: seen.append(canvas))
    plot.main(runs)
    lines = {axes.get_title(): axes.lines for axes in seen[0].axes}
    assert len(lines["Loss of the weights' half (nats)"]) == 2
    (line,) = lines["Retrain: test accuracy (%)"]
    assert list(line.get_ydata()) == [97] * 600
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert plot.main(runs) == 2 and "pip install matplotlib" in capsys.readouterr().err


class Probe(nn.Module):
    """A network that keeps the images that it sees."""

    def forward(self, images):
        self.images = images
        return torch.tensor([[0.0, 99.0]]), None


def test_predict_classifies_the_good_images_on_any_stream(tmp_path, monkeypatch, capsys):
    network, stream = Probe(), io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(train, "make_network", lambda *_: network)
    monkeypatch.setattr(sys, "stdout", stream)
    settings = dict(stage="retrain", genotype=SKIPS, image_size=8, imagenet=False)
    state = dict(stage="retrain", settings=settings, network={}, classes=["c", "猫"])
    state["statistics"] = ([0.4, 0.5, 0.6], [0.1, 0.2, 0.3])
    torch.save(state, tmp_path / "last.pt")
    image, exif = Image.new("RGB", (8, 8)), Image.Exif()
    image.putpixel((0, 0), (255, 0, 0))
    exif[0x0112] = 6  # a viewer turns it by a quarter, clockwise
    image.save(tmp_path / "good.png", exif=exif)
    images = [f"{tmp_path}/{name}.png" for name in ("bad", "none", "good")]
    Path(images[0]).touch()
    assert predict.main([str(tmp_path), *images]) == 2
    assert stream.buffer.getvalue().decode() == f"{images[2]}  \\u732b  1.0000\n"
    expected = torch.zeros(8, 8, 3)
    expected[0, 7, 0] = 1
    mean, deviation = torch.tensor(state["statistics"])
    assert torch.equal(network.images[0].permute(1, 2, 0), (expected - mean) / deviation)
    bad, none = capsys.readouterr().err.splitlines()
    assert images[0] in bad and images[1] in none


def test_baseline_retrains_random_cells_by_the_settings_of_the_found_one(
    tmp_path, capsys, monkeypatch
):
    run, calls = fake_search(tmp_path, "--space s2 --dataset shapes"), []
    fake_retrain(tmp_path / "retrain", 30, "--space s2 --dataset shapes --channels 4")
    accuracies = iter([70.0, 50.0, 60.0] * 2)
    monkeypatch.setattr(train, "retrain", lambda c: calls.append(dict(c)) or next(accuracies))
    for _ in range(2):
        assert baseline.main([run, "--cells", "2"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"found cell +70.00\nrandom cells, 50.00 to 60.00 +55.00±7.07 \(n=2\)", text)
    assert 20 < float(re.search(r"linear model +(\S+)", text)[1]) < 40  # of shapes; chance is 10
    names = [Path(config["out"]).name for config in calls]
    cells = [config["genotype"] for config in calls]
    assert names == ["retrain", "random-1", "random-2"] * 2
    assert cells[:3] == cells[3:] and len(set(cells)) == 3 and genotypes.load(cells[1], "s2")
    assert all(config["resume"] and config["channels"] == 4 for config in calls)


def test_a_linear_model_learns_the_brightness_of_a_pixel():
    pixels = torch.randint(256, (2000, 4, 4, 3), dtype=torch.uint8)
    images = train.Images(pixels, (pixels[:, 2, 1, 0] > 150).long(), ["dark", "bright"], [])
    assert baseline.linear_accuracy(images, images) > 90


def test_methods_find_as_many_cells_of_nas_bench_201_as_they_have_choices():
    cells = ["".join(digits) for digits in itertools.product("01234", repeat=6)]
    for method, count in (("gdas", 4**6), ("rome-v2", 3 * 4**5)):
        assert sum(nasbench201.found_by(method, cell) for cell in cells) == count


def test_nasbench201_ranks_the_cells_of_every_epoch(tmp_path, capsys):
    run, table = str(tmp_path), tmp_path / "table.csv"
    rows = [dict(epoch=epoch, genotype=SKIPS) for epoch in (1, 2)]
    state = dict(settings=dict(stage="search", method="rome-v2"), classes=[""] * 10, rows=rows)
    torch.save(state, tmp_path / "last.pt")
    reachable = SKIPS.replace("skip_connect~2", "none~2")  # by ROME
    by_digits = "ops,c10_test\n111111,54.3\n111110,57\n333333,60\n"
    by_name = f"arch,c10_test\n{SKIPS},54.3\n{reachable},57\n{CONVS},60\n"
    for text in (by_digits, by_name):
        table.write_text(text)
        assert nasbench201.main([run, "--table", str(table)]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
        assert rows == [[epoch, "54.30", "3", "5.70", "2.70", SKIPS] for epoch in "12"]


WRONG_TABLES = [
    ("a,b\n1,2\n", "line 1, the header"),
    ("ops,c10_test\n111111,50\n11111,50\n", "line 3, "),
    ("ops,c10_test\n111111,nan\n", "line 2, nan is no accuracy"),
    ("ops,c10_test\n111111\n", "line 2, "),
    ("ops,c10_test\n111111,50\n111111,50\n", "line 3, .* twice"),
    ("\xff\xfeops", "line 1, "),
]


@pytest.mark.parametrize(("content", "message"), WRONG_TABLES)
def test_a_wrong_table_is_one_line(tmp_path, content, message):
    (tmp_path / "table.csv").write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError, match=f"^[^\n]+{message}[^\n]*$"):
        nasbench201.read_table(tmp_path / "table.csv", "c10_test")


# NAS-Bench-201's extremes as its API has them; DARTS's and PC-DARTS's papers.
PUBLISHED = [
    (SKIPS, "--space nb201", "0.073", "7.8"),
    (CONVS, "--space nb201 --dataset cifar100", "1.537", "220.1"),
    ("DARTS_V2", "--dataset cifar10", "3.3", ""),
    ("PC_DARTS_image", "--dataset imagenet", "5.3", ""),
]


@pytest.mark.parametrize(("genotype", "flags", "millions", "products"), PUBLISHED)
def test_size_has_the_published_numbers(capsys, genotype, flags, millions, products):
    assert size.main([genotype, *flags.split()]) == 0
    assert re.match(rf"{millions}\S* M parameters, {products}\S* M", capsys.readouterr().out)
