"""Tests of genotypes.py."""

import itertools
import json
import os
import re
import sys
import time
from collections import Counter
from xml.etree import ElementTree

import pytest
import torch

import genotypes
import rome

ARCH = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|nor_conv_3x3~2|"
ONE_SHOT = rome.OneShotGenotype(
    ops=("conv3x3-bn-relu", "maxpool3x3", "skip-connect", "conv3x3-bn-relu"),
    inputs=((0,), (0, 1), (0, 2), (1, 3), (0, 4)),
)
KINDS = {"darts": genotypes.PUBLISHED["PDARTS"], "1shot1": ONE_SHOT, "nb201": ARCH}
PRINTED = str(genotypes.PUBLISHED["DARTS_V2"])


def test_published_cells_equal_the_published_code():
    v2 = (  # from quark0/darts
        "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
        "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], "
        "normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), "
        "('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], "
        "reduce_concat=[2, 3, 4, 5])"
    )
    assert str(genotypes.load("DARTS_V2")) == v2
    assert " ".join(genotypes.PUBLISHED) == "DARTS_V1 DARTS_V2 PC_DARTS_cifar PC_DARTS_image PDARTS GDAS_V1"
    assert all(genotypes.check(cell) == cell for cell in genotypes.PUBLISHED.values())


def test_parameter_free_counts_of_published_cells():
    counts = {name: genotypes.parameter_free(cell) for name, cell in genotypes.PUBLISHED.items()}
    assert {name: count["normal"] for name, count in counts.items()} == {
        "DARTS_V1": 3, "DARTS_V2": 2, "PC_DARTS_cifar": 2, "PC_DARTS_image": 2, "PDARTS": 2, "GDAS_V1": 4,
    }  # fmt: skip
    assert counts["DARTS_V2"]["reduce"] == 8
    assert genotypes.parameter_free(ARCH) == {"cell": 3}
    assert genotypes.parameter_free(ONE_SHOT) == {"cell": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_printed_genotypes_load_as_they_were(kind, tmp_path):
    genotype = KINDS[kind]
    genotypes.save(genotype, tmp_path / "cell.json", space="s1", note='"[a,   b], "', nested={"epoch": [1, None]})
    data = json.loads((tmp_path / "cell.json").read_text())
    assert (data["schema"], data["kind"], data["note"]) == (1, kind, '"[a,   b], "')
    text = (tmp_path / "cell.json").read_text()
    for source in (tmp_path / "cell.json", str(tmp_path / "cell.json"), text, str(genotype), f" {genotype}\n"):
        assert genotypes.load(source) == genotype
        assert type(genotypes.load(source)) is type(genotype)


def test_text_printed_by_other_code_loads():
    genotype = genotypes.PUBLISHED["DARTS_V2"]
    assert genotypes.load(f"FOUND = {PRINTED}  # epoch 50") == genotype
    assert genotypes.load(PRINTED.replace("[2, 3, 4, 5]", "range(2, 6)")) == genotype
    assert genotypes.load(PRINTED.replace("'", '"').replace(", ", ",\n")) == genotype
    assert genotypes.load(f"rome.Genotype{tuple(genotype)}") == genotype
    assert genotypes.check(genotype._replace(normal_concat=range(5, 1, -1), reduce=tuple(genotype.reduce))) == genotype


CODE = "__import__('os').system('touch ran')"  # leaves a file behind if anything runs it
SAVED = json.dumps({"schema": 1, "kind": "darts", "genotype": genotypes.PUBLISHED["DARTS_V2"]._asdict()})
HOSTILE_TEXTS = {
    "empty": "", "wrong case": "darts_v2", "no text": 3, "bytes": b"DARTS_V2", "long": "x" * 1_000_000,
    "NUL": PRINTED + "\0", "NUL in a path": "cell\0.json", "surrogate": "\ud800", "code": CODE,
    "code before": f"{CODE} or {PRINTED}", "code after": f"{PRINTED}; {CODE}",
    "code for an op": PRINTED.replace("'dil_conv_3x3'", CODE), "code in JSON": SAVED.replace("[2,", f"[{CODE},"),
    "called twice": PRINTED.replace("Genotype(", "Genotype()("), "deep JSON": '{"a":' * 100_000,
    "deep brackets": "Genotype(" + "[" * 9_000 + "]" * 9_000 + ")", "huge number": f"Genotype({'9' * 15_000})",
    "huge range": PRINTED.replace("[2, 3, 4, 5]", "range(2, 10**9)"), "fields missing": "Genotype([], [], [])",
    "none": PRINTED.replace("dil_conv_3x3", "none"), "op named concat": str(ONE_SHOT).replace("maxpool3x3", "concat"),
    "later input": PRINTED.replace("'dil_conv_3x3', 2", "'dil_conv_3x3', 5"),
    "same input twice": PRINTED.replace("'dil_conv_3x3', 2", "'dil_conv_3x3', 0"),
    "seven pairs": PRINTED.replace(", ('dil_conv_3x3', 2)", ""), "empty concat": PRINTED.replace("[2, 3, 4, 5]", "[]"),
    "many nodes": PRINTED.replace("normal=[", "normal=[" + "('skip_connect', 0), ('skip_connect', 1), " * 99),
    "cells of two sizes": PRINTED.replace(", ('skip_connect', 0), ('dil_conv_3x3', 2)]", "]").replace(", 5]", "]", 1),
    "arch in another order": ARCH.replace("none~0|avg_pool_3x3~1", "none~1|avg_pool_3x3~0"),
    "arch without a bar": ARCH.replace("+|", "+"), "short arch": ARCH[:60], "arch op": ARCH.replace("none", "zero"),
    "schema 2": SAVED.replace("1", "2", 1), "schema missing": "{}", "wrong kind": SAVED.replace("darts", "nb201"),
    "unhashable kind": SAVED.replace('"darts"', "[{}]"), "odd field": SAVED.replace("normal_concat", "a\\nb\\ud800"),
    "no genotype": '{"schema": 1, "kind": "darts"}', "inputs of no space": str(ONE_SHOT).replace("(0, 4)", "(4,)"),
}  # fmt: skip


def assert_refused(source):
    start = time.process_time()
    with pytest.raises(ValueError) as caught:
        genotypes.load(source)
    message = str(caught.value)
    assert type(caught.value) is ValueError
    assert message.isprintable() and 10 < len(message) < 400, message  # isprintable: no line break
    assert time.process_time() - start < 1


@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_hostile_text_is_refused_in_one_line_and_never_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(HOSTILE_TEXTS[name])
    assert os.listdir(tmp_path) == []


def test_hostile_files_are_refused_in_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    contents = dict(binary=bytes(range(256)), huge=b"{" * (3 << 20), code=CODE.encode(), empty=b"")
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in ("pipe", "folder", *contents, "missing"):
        assert_refused(tmp_path / name)
        assert_refused(str(tmp_path / name))


def test_errors_name_the_place_and_the_choices(tmp_path):
    def error(source, space=None):
        with pytest.raises(ValueError) as caught:
            genotypes.load(source, space)
        return str(caught.value)

    text = error(PRINTED.replace("dil_conv_3x3", "dil_conv_7x7"))
    assert re.search(r"normal, x_5: unknown operation 'dil_conv_7x7'; known: .*dil_conv_5x5", text)
    assert "normal, x_2: unknown operation 'sep_conv_3x3'; known: skip_connect, dil_conv_3x3" in error(PRINTED, "s1")
    assert re.search("no published cell .DARTS_V1, .*GDAS_V1. and no file", error("darts_v2"))
    assert error(SAVED.replace("darts", "nasnet")) == "kind 'nasnet' is unknown; known: darts, 1shot1, nb201"
    (tmp_path / "cell.json").write_text(SAVED[:60])
    assert "cell.json': not complete JSON" in error(tmp_path / "cell.json")


def test_a_space_admits_its_own_nodes_and_ops_alone(monkeypatch):
    v2, rows = genotypes.PUBLISHED["DARTS_V2"], (("skip_connect", "mine"),) * 5
    monkeypatch.setitem(rome.PRIMITIVES, "mine", rome.PRIMITIVES["skip_connect"])
    monkeypatch.setitem(rome.SPACES, "mine", rome.Space("darts", (2, 3), (2, 2), dict(normal=rows, reduce=rows)))
    cell = rome.Genotype(pairs := [("mine", 0), ("mine", 1), ("mine", 2), ("skip_connect", 0)], [2, 3], pairs, [3])
    assert genotypes.load(str(cell), "mine") == genotypes.check(cell) == cell
    assert genotypes.load("DARTS_V2", rome.SPACES["darts"]) == v2
    assert genotypes.parameter_free(cell)["normal"] == 1
    for genotype, space in ((v2, "mine"), (cell, "darts"), (v2, "s2"), (ARCH, "darts"), (ONE_SHOT, "1shot1-2")):
        with pytest.raises(ValueError):
            genotypes.check(genotype, space)
    with pytest.raises(ValueError, match="no space 'moon'; known: darts, s1"):
        genotypes.check(v2, "moon")


@pytest.mark.parametrize("space", rome.SPACES)
def test_random_cells_lie_in_their_space_and_follow_the_generator(space):
    first, again = (torch.Generator().manual_seed(7) for _ in range(2))
    cells = [genotypes.random_cell(space, first) for _ in range(20)]
    assert cells == [genotypes.random_cell(rome.SPACES[space], again) for _ in range(20)]
    assert all(genotypes.check(cell, space) == cell for cell in cells) and len(set(map(str, cells))) > 10
    assert genotypes.random_cell(space) != genotypes.random_cell(space)
    if "1shot1" not in space:
        net = rome.Supernet(space, channels=2, cells=1, classes=2)
        assert all(net.cell(net.architecture(cell)) == cell for cell in cells)


def test_random_cells_are_uniform():
    rows = (("skip_connect", "sep_conv_3x3"),) * 5
    space = rome.Space("darts", (2, 3), (2, 2), {"normal": rows, "reduce": rows})
    generator, counts = torch.Generator().manual_seed(0), Counter()
    for _ in range(4800):
        counts[str(genotypes.random_cell(space, generator).normal)] += 1
    # One pair of inputs for the first node, three for the second, two operations on each of the four edges.
    expected = 4800 / (3 * 2**4)
    assert len(counts) == 48
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 82.7  # chi-square, 47 degrees, p = 0.001


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "cell.json"
    genotypes.save(KINDS["darts"], path)
    for attribute in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, attribute, lambda *_: (_ for _ in ()).throw(OSError("disk full")))
            with pytest.raises(OSError, match="disk full"):
                genotypes.save(ARCH, path)
    for extra in ({"value": float("nan")}, {"value": object()}, {"kind": "mine"}):
        with pytest.raises((TypeError, ValueError)):
            genotypes.save(ARCH, path, **extra)
    assert genotypes.load(path) == KINDS["darts"]
    assert os.listdir(tmp_path) == ["cell.json"]


@pytest.mark.parametrize("kind", KINDS)
def test_picture_is_xml_and_shows_every_op(kind, tmp_path):
    genotypes.draw(KINDS[kind], tmp_path / "cell.svg")
    root = ElementTree.parse(tmp_path / "cell.svg").getroot()
    shown = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    cells = {"darts": KINDS["darts"].normal + KINDS["darts"].reduce, "1shot1": [(op, 0) for op in ONE_SHOT.ops]}
    ops = [op for op, _ in cells.get(kind, ())] or re.findall(r"([^|~+]+)~", ARCH)
    assert all(shown.count(op) == ops.count(op) for op in ops)
    assert all(genotypes.describe(KINDS[kind]).count(op) >= ops.count(op) for op in ops)


def test_pictures_have_no_overlapping_labels_and_no_line_through_a_label():
    generator = torch.Generator().manual_seed(0)
    cells = [genotypes.random_cell(space, generator) for space in rome.SPACES for _ in range(3)]
    for genotype in (*genotypes.PUBLISHED.values(), ARCH, ONE_SHOT, *cells):
        width, height, lines, boxes = genotypes._layout(genotype)
        boxes = [(x, y, w, h) for x, y, w, h, *_, text in boxes if w and text]
        for (x, y, w, h), (x1, y1, w1, h1) in itertools.combinations(boxes, 2):
            assert 2 * abs(x - x1) > w + w1 or 2 * abs(y - y1) > h + h1
        assert all(w / 2 <= x <= width - w / 2 and h / 2 <= y <= height - h / 2 for x, y, w, h in boxes)
        segments = [(*a, *b) for _, points in lines for a, b in itertools.pairwise(points)]
        for (x0, y0, x1, y1), (x, y, w, h) in itertools.product(segments, boxes):
            assert x0 == x1 or y0 == y1  # a line may end in a box or pass through its middle, along it
            if x0 == x1 and h == 24:
                assert not (abs(x0 - x) < w / 2 and min(y0, y1) < y + h / 2 and max(y0, y1) > y - h / 2)
            if y0 == y1 and y0 != y:
                assert not (abs(y0 - y) < h / 2 + 1 and min(x0, x1) < x - w / 2 and max(x0, x1) > x + w / 2)


def test_a_dot_marks_where_an_edge_leaves_its_input():
    genotype, boxes = KINDS["darts"], genotypes._layout(KINDS["darts"])[3]
    names, x_of = ["c_k-2", "c_k-1", "x_2", "x_3", "x_4", "x_5"], {text: x for x, *_, text in boxes}
    inputs = [i for _, i in genotype.normal] + genotype.normal_concat
    inputs += [i for _, i in genotype.reduce] + genotype.reduce_concat
    assert [x for x, _, w, *_, text in boxes if w and not text] == [x_of[names[i]] for i in inputs]


def test_png_needs_matplotlib_and_other_suffixes_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"\.svg or \.png"):
        genotypes.draw(ONE_SHOT, tmp_path / "cell.pdf")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ValueError, match="pip install matplotlib"):
            genotypes.draw(ARCH, tmp_path / "cell.png")
    pytest.importorskip("matplotlib")
    genotypes.draw(ONE_SHOT, tmp_path / "cell.PNG")
    assert (tmp_path / "cell.PNG").read_bytes().startswith(b"\x89PNG")
