"""Tests of tools/, against sums by hand, published numbers, and tables made here."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import genotypes
import train
from tools import baseline, benchmarks, common, nasbench201, predict, report

CLONE = Path(train.__file__).parent
V2 = genotypes.PUBLISHED["DARTS_V2"]
FORM = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|"
SKIPS, CONVS = (FORM.format(*[op] * 6) for op in ("skip_connect", "nor_conv_3x3"))


def fake(folder, words, error=3, epochs=None, images=""):
    """The folder of a search or a retrain, whose epochs all have the same row."""
    stage, *flags = words.split()
    flags += ["--genotype", "DARTS_V2"] if stage == "retrain" else []
    config, folder = train.configure(stage, flags), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(settings=config)))
    torch.save(dict(settings=config | dict(images=images)), folder / "last.pt")
    row = dict(epoch=1, seconds=6, loss_theta=1.5, accuracy_test=100 - error, genotype=f'"{V2}"')
    lines = [",".join(row), *[",".join(map(str, row.values()))] * (epochs or config["epochs"])]
    (folder / "metrics.csv").write_text("\n".join(lines))
    return str(folder)


def test_commands_are_searches_of_the_benchmarks_and_ablations(capsys):
    for method, count in (("rome-v2", 15 + 5), ("gdas", 15 + 5), ("rome-v1", 15)):
        assert benchmarks.main(["--commands", "--seeds", "2", "--method", method]) == 0
        commands = re.findall("^python train.py search (.*)", capsys.readouterr().out, re.MULTILINE)
        configs = [train.configure("search", flags.split()) for flags in commands]
        assert len({config["out"] for config in configs}) == len(configs) == 2 * count
        assert all(config["resume"] and config["method"] == method for config in configs)


def test_the_paper_has_the_numbers_of_the_page_of_examples(capsys):
    page = (CLONE / "docs/examples.md").read_text("utf-8")
    rows = re.findall(r"`(--.+)` \| ([\d.±]+) \|", page)
    for flags, error in rows:
        title = common.title_of(train.configure("search", flags.split()))
        assert benchmarks.searches()[title]["error %"] == error
    assert len(rows) == 13 and benchmarks.main([]) == 0
    text = capsys.readouterr().out
    assert re.search(r"\ns2 +cifar10 +gdas +3.89±0.17 +6.0±0.7\n", text)
    assert max(map(len, text.splitlines())) <= 80


def test_report_averages_seeds_beside_random_cells_and_the_paper(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, error in enumerate((3.0, 3.2, 3.4)):
        fake(f"{seed}", f"search --space s2 --seed {seed} --data {seed}")
        fake(f"{seed}/retrain", "retrain --space s2", error)
        fake(f"0/random-{seed}", "retrain --space s2", 5 + seed)
    fake("0/random-4", "retrain --space s2 --channels 8", 1)  # another retrain
    assert report.main(["0", "1", "2", "0"]) == 0
    text = capsys.readouterr().out
    # The squares of the deviations 0.2, 0, 0.2 over n - 1 = 2: 0.04.
    random = r"6.00±1.00 \(n=3\)"
    assert re.search(rf"\n0 +3.00 +2 +{random}\n1 +3.20 +2\n2 +3.40 +2\nmean +3.20±0.20 ", text)
    assert re.search(rf" {random}\npaper +3.14±0.14 +2.0±0.0\n", text)
    assert "\n0, seed 0, 1.08 h; 1, seed 1, 1.08 h; 2, seed 2, " in text  # of 650 epochs, 6 s each
    assert max(map(len, text.splitlines())) <= 80 and text.count("normal_concat") == 1


def test_report_keeps_other_settings_images_and_unfinished_runs_apart(tmp_path, capsys):
    words = ["", "--clip 1", "--method gdas", "--samples 4 --epochs 87"]
    runs = [fake(tmp_path / str(k), f"search {flags}") for k, flags in enumerate(words)]
    for name, more in dict(a={}, b=dict(epochs=3), c=dict(images="others")).items():
        runs.append(fake(tmp_path / name, "search"))
        fake(tmp_path / name / "retrain", "retrain", **more)
    assert report.main(runs) == 0
    text = capsys.readouterr().out
    assert "\nmean" not in text and text.count("epoch 3/600") == 1
    assert "clip 1.0 (benchmark: 5.0)" in " ".join(text.split())
    numbers = re.findall(r"\npaper +(\d.\d\d)", text)
    assert numbers == ["2.58", "3.48", "2.72", "2.58", "2.58", "2.58"]


@pytest.mark.parametrize("content", ["{}", "[" * 9999, '{"settings": {"stage": "search"}}'])
def test_a_broken_run_is_one_line_and_the_others_are_reported(tmp_path, capsys, content):
    runs = [fake(tmp_path / name, "search") for name in ("broken", "good")]
    (tmp_path / "broken/config.json").write_text(content)
    assert report.main(runs) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(r"error: \S+broken holds no readable run: .+\n", printed.err)
    assert "epoch 50/50" in printed.out


def test_plot_draws_a_panel_for_each_column_whatever_the_backend(tmp_path):
    pytest.importorskip("matplotlib", reason="curves need matplotlib")
    words = [sys.executable, "-m", "tools.plot", fake(tmp_path / "a", "search")]
    words += [fake(tmp_path / "b", "retrain"), "--out", str(tmp_path / "curves.svg")]
    subprocess.run(words, cwd=CLONE, env=os.environ | dict(MPLBACKEND="inline"), check=True)
    texts = re.findall("<!-- (.*) -->", (tmp_path / "curves.svg").read_text("utf-8"))
    assert {*words[3:5], "Retrain: test accuracy (%)"} < {*texts} and texts.count("epoch") == 2


def test_predict_classifies_the_good_images(tmp_path, monkeypatch, capsys):
    def network(images):
        assert images[0, :, 3, 5].tolist() == [2, -1, -0.5]
        return torch.tensor([[0.0, 99.0]]), None

    monkeypatch.chdir(tmp_path)
    settings = dict(image_size=8, imagenet=False, epochs=9)
    state = dict(settings=settings, classes=["cat", "dog"], rows=[0] * 5)
    state["statistics"] = [0.5, 0.5, 0.5], [0.25, 0.5, 1.0]  # mean, deviation
    monkeypatch.setattr(predict, "load_network", lambda run: (network, state))
    Image.new("RGB", (8, 8), "red").save("good.png")
    assert predict.main(["run", "bad.png", "good.png"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "good.png  dog  1.0000\n"
    assert "after epoch 5 of 9" in printed.err and "bad.png" in printed.err


def test_baseline_retrains_random_cells_as_the_found_one(tmp_path, capsys, monkeypatch):
    run, calls = fake(tmp_path, "search --space s2 --dataset shapes"), []
    fake(tmp_path / "retrain", "retrain --space s2 --dataset shapes --channels 4")
    (tmp_path / "random-2").mkdir()  # of an interrupted call
    accuracies = iter([70.0, 50.0, 60.0])
    monkeypatch.setattr(train, "retrain", lambda c: calls.append(dict(c)) or next(accuracies))
    assert baseline.main([run, "--cells", "2"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"\nfound +70.00\nrandom +55.00±7.07 \(n=2\)\n", text)
    assert 11 < float(re.search(r"linear model +(\S+)", text)[1]) < 25  # of shapes; chance is 10
    assert [config["out"] for config in calls] == [
        f"{run}/{name}" for name in ("retrain", "random-1", "random-2")
    ]
    assert len({config["genotype"] for config in calls}) == 3
    assert all(config["channels"] == 4 for config in calls)
    assert [config["resume"] for config in calls] == [True, False, True]


def test_methods_find_as_many_cells_of_nas_bench_201_as_they_have_choices():
    cells = ["".join(digits) for digits in itertools.product("01234", repeat=6)]
    for method, count in (("gdas", 4**6), ("rome-v2", 3 * 4**5)):
        assert sum(nasbench201.found_by(method, cell) for cell in cells) == count


REACHABLE = SKIPS.replace("skip_connect~2", "none~2")  # by ROME
TABLES = [
    "ops,c10_test\n111111,54.3\n111110,57\n333333,60\n",
    f"arch,c10_test\n{SKIPS},54.3\n{REACHABLE},57\n{CONVS},60\n",
]


@pytest.mark.parametrize("content", TABLES)
def test_nasbench201_ranks_the_cells_of_every_epoch(tmp_path, capsys, content):
    table, rows = tmp_path / "table.csv", [dict(epoch=epoch, genotype=SKIPS) for epoch in (1, 2)]
    state = dict(settings=dict(stage="search", method="rome-v2"), classes=[""] * 10, rows=rows)
    torch.save(state, tmp_path / "last.pt")
    table.write_text(content)
    assert nasbench201.main([str(tmp_path), "--table", str(table)]) == 0
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
