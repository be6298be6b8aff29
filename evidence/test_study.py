"""python -m pytest evidence"""

import itertools
import statistics

import pytest
import study

TABLE = {
    "c10_test": {"111111": 60.0, "333333": 90.0, "333033": 93.0, "222022": 70.0},
    "c10_val": {"111111": 50.0, "333333": 80.0, "333033": 70.0, "222022": 60.0},
}


def test_best_of_n_is_the_mean_over_all_draws():
    test, validation = TABLE["c10_test"], TABLE["c10_val"]
    cells = list(test)
    for n in (1, 2, 3):
        draws = itertools.product(cells, repeat=n)
        chosen = [max(draw, key=validation.get) for draw in draws]
        assert study.best_of(n, cells, TABLE) == pytest.approx(statistics.fmean(test[cell] for cell in chosen))


def test_each_method_is_compared_with_the_cells_that_it_can_find():
    best = {row["space"]: (row["cells"], row["accuracy"]) for row in study.chance(TABLE) if row["n"] == "all"}
    assert best == {"rome": (2, 93.0), "gdas": (2, 90.0)}


def test_digits_and_arch_string_name_the_same_cell():
    arch = "|nor_conv_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_3x3~2|"
    assert study.digits_of(arch) == "321403" and study.arch_of("321403") == arch


def test_spearman_gives_ties_their_mean_rank():
    assert study.ranks([5, 1, 5, 2]) == [3.5, 1, 3.5, 2]
    assert study.spearman([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)


def rows_of(name: str, epoch: int, accuracy: float) -> dict:
    row = dict.fromkeys([name.replace("_{kind}", "") for name in study.COLUMNS], "1")
    return row | dict(run=name, epoch=str(epoch), epochs="50", table_test=str(accuracy))


def test_only_finished_runs_are_averaged():
    epochs = [rows_of("rome-k7-s0", 50, 92), rows_of("rome-k7-s1", 50, 94), rows_of("rome-k7-s2", 20, 10)]
    done, going = study.tables("length", epochs, [], []).split("\n\n")
    assert "| rome-k7 | 2 | 93.00 ± 1.41 |" in done
    assert "| rome-k7-s2 | 20 of 50 | 10.00 |" in going
