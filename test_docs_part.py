"""Tests of the documents: what they quote, name, link and run is there and works."""

import re
import runpy
import shlex
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch
from PIL import Image

import genotypes
import rome
import train
from tools import nasbench201

HERE = Path(__file__).resolve().parent
PAGES = {path.stem: path.read_text("utf-8") for path in (HERE / "README.md", *(HERE / "docs").glob("*.md"))}
SCRIPTS = {name: code for code, name in re.findall(r"```python\n(# (\w+\.py)\n.+?)```", PAGES["examples"], re.DOTALL)}


def commands(page):
    """The command lines of a page as (program, words)."""
    found = re.findall(r"^ *(?:python|torchrun --nproc_per_node 4) (\S+\.py)([^\n]*)", PAGES[page], re.MULTILINE)
    return [(program, shlex.split(text.split("   ")[0])) for program, text in found]  # what follows explains


def test_companion_quotes_rome_py_to_the_letter():
    lines, quotes = Path(rome.__file__).read_text("utf-8").splitlines(), []
    for quote in re.findall(r"```python\n(.+?)\n```", PAGES["companion"], re.DOTALL):
        parts = [textwrap.dedent("\n".join(lines[n : n + 1 + quote.count("\n")])) for n in range(len(lines))]
        assert quote in parts, f"docs/companion.md quotes what is not in rome.py: {quote}"
        quotes.append(quote)
    assert len(quotes) >= 6
    assert re.findall(r"\\tag\{(\d+)\}", PAGES["companion"]) == [str(number) for number in range(1, 13)]


def test_flags_and_commands_of_the_documents_exist(monkeypatch):
    parser, parsers = train.make_parser()
    known = {flag for each in parsers.values() for flag in re.findall(r"--[a-z-]+", each.format_help())}
    for page in ("README", "companion", "examples"):
        named = {flag.replace("--retrain-", "--") for flag in re.findall(r"`(--[a-z-]+)", PAGES[page])}
        assert named <= known, page
    monkeypatch.setattr(train.genotypes, "load", lambda source, space=None: genotypes.PUBLISHED["GDAS_V1"])
    stages = [["search", *words] if program == "rome.py" else words for program, words in commands("README")]
    stages = [words for words in stages if words[0] in ("search", "retrain") and "--help" not in words]
    assert len(stages) >= 6
    for words in stages:
        assert train.configure(words[0], {}, words[1:])["epochs"] > 0
    for words in commands("README"):
        if words[0] == "train.py" and words[1][0] in ("list", "report", "plot", "predict"):
            parser.parse_args(words[1])


def test_links_of_the_documents_lead_somewhere():
    for page in (HERE / "README.md", *HERE.glob("docs/*.md"), *HERE.glob("evidence/*.md")):
        text = re.sub(r"```.+?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\((?!https?:)([^)]*)\)", text):
            name, _, part = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), f"{page.name}: {link}"
            titles = re.findall(r"^#+ (.+)", target.read_text("utf-8"), re.MULTILINE) if part else []
            assert not part or part in [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles], link


def test_checks_of_the_companion_hold(capsys):
    checks = runpy.run_path(str(HERE / "docs" / "checks.py"))
    assert checks["draw_pairs"](40_000) < 0.01  # four standard deviations
    rows = checks["compare_gradients"](40)
    assert min(rows[0]) > 0.999 and rows[0] > rows[1] > rows[2] > rows[3]
    assert rows[3][1] > rows[3][0] + 0.03  # the successive softmax is nearer


def test_figure_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    figures = runpy.run_path(str(HERE / "docs" / "figures.py"))
    figures["subnetwork"].__globals__["HERE"] = tmp_path
    figures["subnetwork"]()
    text = (tmp_path / "subnetwork.svg").read_text()
    assert len(re.findall(r">(?:sep|dil|max|avg|skip)[ \dx]*<", text)) == 14 + 8


def test_examples_run(tmp_path, monkeypatch, capsys):
    """All commands and programs of docs/examples.md, at small sizes, in the order of the page."""
    monkeypatch.chdir(tmp_path)
    for place in ("train/cat", "train/dog", "test/cat", "test/dog"):
        Path("photos", place).mkdir(parents=True)
        for number in range(1, 13):
            Image.new("RGB", (40, 24), (16 * number, 100 * place.endswith("dog"), 0)).save(
                f"photos/{place}/{number}.jpg"
            )
    for name, code in SCRIPTS.items():
        Path(name).write_text(code)
    runpy.run_path("loop.py")
    losses = re.findall(r"loss ([\d.]+)", capsys.readouterr().out)
    assert float(losses[-1]) < float(losses[0]) / 2
    small = "--channels 2 --cells 3 --epochs 1 --batch-size 6 --samples 1 --quiet".split()
    shrink = " --retrain-channels 2 --retrain-cells 3 --retrain-epochs 4 --retrain-batch-size 6".split()
    for program, words in commands("examples"):
        if program == "train.py" and "shapes" not in words:
            more = small + shrink * ("--retrain" in words) if words[0] == "search" else []
            assert train.main(words + more) == 0, words
    shown = capsys.readouterr().out
    assert len(re.findall(r"^photos/test/\S+  (?:cat|dog)  [01]\.\d{4}$", shown, re.MULTILINE)) == 2
    assert rome.PRIMITIVES.pop("grouped") and Path("runs/own/retrain/last.pt").exists()
    runpy.run_path("export.py")
    images = torch.randn(5, 3, 32, 32)
    exported, _ = torch.export.load("photos.pt2").module()(images)
    assert torch.allclose(exported, train.load_network("runs/photos/retrain/last.pt")[0](images)[0], atol=1e-5)


def test_the_table_of_nasbench201_is_made_as_the_page_says(tmp_path, monkeypatch):
    """With a stand-in for the API, which the tests do not install."""
    cells = [f"|{op}~0|+|{op}~0|{op}~1|+|{op}~0|{op}~1|{op}~2|" for op in ("none", "skip_connect")]
    api = types.SimpleNamespace(meta_archs=cells, arch2infos_dict={0: {}, 1: {}})
    api.get_more_info = lambda index, dataset, hp, is_random: {"test-accuracy": 10.0 * index + len(dataset)}
    monkeypatch.setitem(sys.modules, "nats_bench", types.SimpleNamespace(create=lambda *a, **k: api))
    monkeypatch.setattr(sys, "argv", ["script", "folder"])
    monkeypatch.chdir(tmp_path)
    Path("make.py").write_text(re.search(r"```python\n(.+?)```", PAGES["nasbench201"], re.DOTALL)[1])
    runpy.run_path("make.py")
    table = nasbench201.read_table("nasbench201.csv")
    assert table["c100_test"] == {"000000": 8.0, "111111": 18.0} and api.arch2infos_dict == {}
