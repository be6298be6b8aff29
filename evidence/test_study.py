"""python -m pytest evidence"""

from collections import defaultdict
from pathlib import Path

import pytest
import study

SURROGATE = Path(__file__).parents[2] / "shared/data/s0/nb301_v2.onnx"
PAIRS = list(zip("abcdefgh", (0, 1, 0, 2, 1, 3, 3, 4)))
CELL = study.rome.Genotype(PAIRS, [2], PAIRS, [2])


def test_the_page_has_the_numbers_of_the_csv_files():
    assert study.PAGE.read_text() == study.page()


def test_seeds_and_epochs_are_averaged():
    assert study.show(["1", "2", "6"], 1) == "3.0 ± 2.6"
    rows = [dict(percentile=p, free=free) for p, free in ((10, 2), (40, 4), (20, 9))]
    found = study.means(rows, "free")
    assert (found["mean_free"], found["swing"]) == ("5.0", "25.0")


def test_edges_differ_in_operation_or_input_and_not_in_order():
    other = [*zip("baxd", (1, 0, 0, 1)), *PAIRS[4:]]
    before, after = map(study.edges_of, (CELL, CELL._replace(normal=other)))
    assert len(after - before) == 2


def test_the_encoding_has_the_edges_in_the_order_of_alpha():
    words = "a b c #na# d #na# e #na# f #na# #na# #na# g h".split()
    inputs = "0_2 1_3 3_4".split()
    same = {word: word for word in words + inputs}
    assert study.encode(CELL, defaultdict(lambda: same)) == words * 2 + inputs * 2


def test_spearman_gives_ties_their_mean_rank():
    assert study.ranks([5, 1, 5, 2]) == [3.5, 1, 3.5, 2]
    assert study.spearman([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)


@pytest.mark.parametrize("name", study.ARMS)
def test_every_arm_is_a_search(name):
    config = study.train.configure("search", study.words_of(name, 0, "images", "run"))
    assert config["epochs"] in (10, 70)


@pytest.mark.skipif(not SURROGATE.exists(), reason=f"there is no {SURROGATE}")
def test_the_surrogate_reads_cells_as_published():
    pytest.importorskip("onnxruntime")
    judge = study.judge_of("darts", str(SURROGATE))
    cells = [study.genotypes.load("DARTS_V2"), study.all_of("sep_conv_5x5")]
    assert judge.score(cells) == pytest.approx([92.910, 93.358], abs=2e-3)
