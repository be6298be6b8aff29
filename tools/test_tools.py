"""Tests of tools/, against sums by hand, published numbers, and tables made here."""

import csv
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import genotypes
import train
from extra.images import Images
from tools import baseline, benchmarks, nasbench201, plot, predict, report

V2 = genotypes.PUBLISHED["DARTS_V2"]
FORM = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|"
SKIPS, CONVS = (FORM.format(*[op] * 6) for op in ("skip_connect", "nor_conv_3x3"))


def fake_stage(words, row, epochs=None, images=""):
    """The folder --out of a search or a retrain, whose epochs have the same row."""
    stage, *flags = words.split()
    config = train.configure(stage, flags)
    folder = Path(config["out"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(settings=config)))
    torch.save(dict(settings=config | dict(images=images)), folder / "last.pt")
    with open(folder / "metrics.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["epoch", *row])
        writer.writeheader()
        writer.writerows(row | dict(epoch=epoch + 1) for epoch in range(epochs or config["epochs"]))


def fake_search(folder, words=""):
    row = dict(loss_theta=1.5, supernet_accuracy=50, genotype=V2, seconds=72)
    fake_stage(f"search {words} --out {folder}", row)
    return str(folder)


def fake_retrain(folder, error, words="", epochs=None, images=""):
    """error: in % of the test images."""
    row = dict(accuracy_test=100 - error, seconds=6)
    fake_stage(f"retrain --genotype DARTS_V2 {words} --out {folder}", row, epochs, images)


def test_commands_are_searches_of_the_benchmarks_and_ablations(capsys):
    for method, count in (("rome-v2", 15 + 5), ("gdas", 15 + 5), ("rome-v1", 15)):
        assert benchmarks.main(["--commands", "--seeds", "2", "--method", method]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        configs = [train.configure("search", words[3:]) for words in lines]
        assert all(words[:3] == ["python", "train.py", "search"] for words in lines)
        assert len({config["out"] for config in configs}) == len(configs) == 2 * count
        assert all(config["resume"] and config["method"] == method for config in configs)
    page = (Path(train.__file__).parent / "docs/examples.md").read_text("utf-8")
    for row in benchmarks.read("ablations.csv"):
        assert "| {row} | `{flags}` | {error} |".format(**row) in page


def test_report_averages_seeds_beside_random_cells_and_the_paper(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, error in enumerate((3.0, 3.2, 3.4)):
        fake_search(f"{seed}", f"--space s2 --seed {seed}")
        fake_retrain(f"{seed}/retrain", error, "--space s2")
        fake_retrain(f"0/random-{seed}", 5 + seed, "--space s2")
    fake_retrain("0/random-4", 1, "--space s2 --channels 8")  # another retrain
    assert report.main(["0", "1", "2", "0"]) == 0
    text = capsys.readouterr().out
    assert "\n0          s2     cifar10  rome-v2  0     7  50/50, 600/600  2.00\n" in text
    # The squares of the deviations 0.2, 0, 0.2 over n - 1 = 2: 0.04.
    assert re.search(r"\n0 +3.00 +3.14±0.14 +2 +2.0±0.0\n", text)
    assert re.search(r"\n0 +6.00±1.00 \(n=3\) +50.00\n", text)
    assert "\nmean of 3  3.20±0.20 (n=3)  " in text
    assert max(map(len, text.splitlines())) <= 80 and text.count("normal_concat") == 1
    assert "differs" not in text


OTHERS = ["--clip 1", "--method gdas", "--samples 4 --epochs 87", "--data here"]


@pytest.mark.parametrize(("words", "paper"), [*zip(OTHERS, ("2 ", "3.48", "2.72", "2.58"))])
def test_report_keeps_other_settings_apart(tmp_path, capsys, monkeypatch, words, paper):
    monkeypatch.chdir(tmp_path)
    report.main([fake_search("a"), fake_search("b", words)])
    text = capsys.readouterr().out
    assert ("\nmean" in text) == (words == OTHERS[-1])
    assert re.search(rf"^b .*/\d+ +[\d.]+ +{paper}", text, re.MULTILINE)
    assert ("b differs from the benchmark: search" in text) == (words in OTHERS[::2])


def test_report_averages_no_unfinished_runs_and_no_other_images(tmp_path, capsys):
    runs = [fake_search(tmp_path / name) for name in "abc"]
    fake_retrain(tmp_path / "a/retrain", 2.5)
    fake_retrain(tmp_path / "b/retrain", 2.5, epochs=3)
    fake_retrain(tmp_path / "c/retrain", 2.5, images="others")
    report.main(runs)
    text = capsys.readouterr().out
    assert "50/50, 3/600" in text and "mean of" not in text


@pytest.mark.parametrize("content", ["{}", "[" * 9999, '{"settings": {"stage": "search"}}'])
def test_a_broken_run_is_one_line_and_the_others_are_reported(tmp_path, capsys, content):
    runs = [fake_search(tmp_path / name) for name in ("broken", "good")]
    (tmp_path / "broken/config.json").write_text(content)
    assert report.main(runs) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(r"error: \S+broken holds no readable run: .+\n", printed.err)
    assert "50/50" in printed.out


def test_plot_draws_the_columns_of_every_run(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure", reason="curves need matplotlib")
    runs, seen = [fake_search(tmp_path / "a"), fake_search(tmp_path / "b")], []
    fake_retrain(tmp_path / "a/retrain", 3)
    monkeypatch.setattr(figure.Figure, "savefig", lambda canvas, out, dpi: seen.append(canvas))
    assert plot.main(runs) == 0
    lines = {axes.get_title(): axes.lines for axes in seen[0].axes}
    assert len(lines["Loss of the weights' half (nats)"]) == 2
    (line,) = lines["Retrain: test accuracy (%)"]
    assert list(line.get_ydata()) == [97] * 600


class Probe(nn.Module):
    """A network that keeps the images that it sees."""

    def forward(self, images):
        self.images = images
        return torch.tensor([[0.0, 99.0]]), None


def test_predict_classifies_the_good_images(tmp_path, monkeypatch, capsys):
    network, images = Probe(), [f"{tmp_path}/{name}.png" for name in ("bad", "good")]
    monkeypatch.setattr(train, "make_network", lambda *_: network)
    settings = dict(stage="retrain", genotype=SKIPS, image_size=8, imagenet=False)
    settings["epochs"] = 9
    state = dict(settings=settings, network={}, classes=["cat", "dog"], rows=[0] * 5)
    state["statistics"] = mean, deviation = [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]
    torch.save(state, tmp_path / "last.pt")
    Image.new("RGB", (8, 8), "red").save(images[1])
    assert predict.main([str(tmp_path), *images]) == 2
    printed = capsys.readouterr()
    assert printed.out == f"{images[1]}  dog  1.0000\n" and images[0] in printed.err
    assert "after epoch 5 of 9" in printed.err
    expected = (torch.tensor([1.0, 0, 0]) - torch.tensor(mean)) / torch.tensor(deviation)
    assert torch.equal(network.images[0, :, 3, 5], expected)


def test_baseline_retrains_random_cells_as_the_found_one(tmp_path, capsys, monkeypatch):
    run, calls = fake_search(tmp_path, "--space s2 --dataset shapes"), []
    fake_retrain(tmp_path / "retrain", 30, "--space s2 --dataset shapes --channels 4")
    accuracies = iter([70.0, 50.0, 60.0])
    monkeypatch.setattr(train, "retrain", lambda c: calls.append(dict(c)) or next(accuracies))
    assert baseline.main([run, "--cells", "2"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"found cell +70.00\nrandom cells +55.00±7.07 \(n=2\)", text)
    assert 20 < float(re.search(r"linear model +(\S+)", text)[1]) < 40  # of shapes; chance is 10
    names = [Path(config["out"]).name for config in calls]
    assert names == ["retrain", "random-1", "random-2"]
    assert len({config["genotype"] for config in calls}) == 3
    assert all(config["resume"] and config["channels"] == 4 for config in calls)


def test_a_linear_model_learns_the_brightness_of_a_pixel():
    pixels = torch.randint(256, (2000, 4, 4, 3), dtype=torch.uint8)
    images = Images(pixels, (pixels[:, 2, 1, 0] > 150).long(), ["dark", "bright"], [])
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
        assert rows == [[epoch, "54.30", "3", "5.70", "2.70", "111111"] for epoch in "12"]


WRONG_TABLES = [
    ("a,b\n1,2\n", "line 1, the header"),
    ("ops,c10_test\n111111,50\n11111,50\n", "line 3, "),
    ("ops,c10_test\n111111,nan\n", "line 2, nan is no accuracy"),
    ("ops,c10_test\n111111\n", "line 2, "),
    ("ops,c10_test\n111111,0.9155\n", "in %"),
    ("ops,c10_test\n111111,50\n111111,50\n", "line 3, .* twice"),
    ("\xff\xfeops", "line 1, "),
]


@pytest.mark.parametrize(("content", "message"), WRONG_TABLES)
def test_a_wrong_table_is_one_line(tmp_path, content, message):
    (tmp_path / "table.csv").write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError, match=f"^[^\n]+{message}[^\n]*$"):
        nasbench201.read_table(tmp_path / "table.csv", "c10_test")
