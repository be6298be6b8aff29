"""python -m pytest evidence"""

from pathlib import Path
from statistics import fmean

import pytest
import study

SURROGATE = Path(__file__).parents[2] / "shared/data/s0/nb301_v2.onnx"
OLD, NEW, EPOCHS = map(study.kept_rows, ("nb201-8000/runs", "runs", "epochs"))
ROME_1, GDAS_1, ROME_7, GDAS_7 = (
    f"s0-{name}" for name in ("rome-k1-steps", "gdas-k1-steps", "rome-k7", "gdas-k7")
)


def of(arm, rows):
    return [row for row in rows if row["run"].rpartition("-s")[0] == arm]


def numbers(arm, *columns):
    return [float(row[column]) for row in of(arm, OLD + NEW) for column in columns]


def mean(arm, column, digits=1):
    return f"{fmean(numbers(arm, column)):.{digits}f}"


def each(arm, column, digits=0):
    return " and ".join(f"{value:.{digits}f}" for value in numbers(arm, column))


def span(values, digits):
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def late(arm):
    """Percentiles from the sixth epoch on."""
    rows = of(arm, EPOCHS)
    return span([float(row["percentile"]) for row in rows if int(row["epoch"]) > 5], 1)


def fit(runs):
    losses = [float(row["loss_theta"]) for row in runs]
    shares = [float(row["free"]) / float(row["ops"]) for row in runs]
    return f"{study.spearman(losses, shares):.2f}"


def test_the_pages_have_the_numbers_of_the_csv_files():
    for path, text in study.pages().items():
        assert path.read_text() == text
    page, results = (" ".join(path.read_text().split()) for path in study.pages())
    full = [row for row in OLD if "-50" not in row["run"]]
    free = [mean(name, "free") for name in ("rome-k1", "gdas-k1", "rome-k7")]
    ranks = [mean(name, "spearman", 2) for name in ("rome-k1", "rome-k7", "gdas-k1", "gdas-k7")]
    both = "two_inputs_low", "two_inputs_high"
    by_chance = study.kept_rows("baselines")[-1]["accuracy"]
    gaps = [abs(float(row["loss_alpha"]) - float(row["loss_theta"])) for row in NEW]
    tops = [7 * float(row["top_alpha_normal"]) for row in EPOCHS if row["epoch"] == "10"]
    for phrase in (
        f"{len(OLD)} searches in NAS-Bench-201",
        f"Spearman {fit(full)}** between",
        f"over {len(full)} full-length runs of {len({row['run'][:-3] for row in full})} arms",
        f"ROME {mean('rome-k1', 'accuracy')}% with K = 1 and {mean('rome-k7', 'accuracy')}% with",
        f"{span(numbers('gdas-k1', 'accuracy'), 1)}% with K = 1 and "
        f"{mean('gdas-k7', 'accuracy')}% with K = 7",
        f"{span(numbers('gdas-k7', *both), 1)}% (K = 7) and "
        f"{span(numbers('gdas-k1', *both), 1)}% (K = 1)",
        f"A random cell of ROME's space has {float(by_chance):.1f}%",
        f"K = 1: ROME {free[0]} of 5, GDAS {free[1]} of 6. K = 7: ROME {free[2]} of 5,",
        f"counting parameters has ({mean('rome-k7', 'spearman_size', 2)})",
        f"ROME {ranks[0]} with K = 1 and {ranks[1]} with K = 7, GDAS {ranks[2]} and {ranks[3]}",
        f"ROME {mean('rome-k1-rate7', 'accuracy')}% (n = 3)",
        f"rate: ROME {mean('rome-k1-rate7', 'spearman', 2)} (n = 3)",
        f"GDAS {mean('gdas-k1-rate7', 'accuracy')}% (n = 1)",
        f"GDAS has {each(GDAS_1, 'free')} free, ROME {each(ROME_1, 'free')}** (seeds 0 and 1)",
        f"GDAS has {each(GDAS_7, 'free')} free, ROME {each(ROME_7, 'free')}** (seed 0)",
        f"GDAS {each(GDAS_1, 'percentile', 1)}, ROME {each(ROME_1, 'percentile', 1)}.",
        f"GDAS {each(GDAS_7, 'percentile', 1)}, ROME {each(ROME_7, 'percentile', 1)}.",
        f"{each(ROME_1, 'drawn_percentile')} (ROME) and {each(GDAS_1, 'drawn_percentile')} (GDAS) "
        f"at K = 1, {each(ROME_7, 'drawn_percentile')} and {each(GDAS_7, 'drawn_percentile')} at",
        f"Spearman {span([float(row['spearman']) for row in NEW], 2)}** (standard error 0.07). "
        f"Counting parameters has {mean(ROME_7, 'spearman_size', 2)}.",
        f"K = 7: ROME {each(ROME_7, 'spearman', 2)}, GDAS {each(GDAS_7, 'spearman', 2)};",
        f"steps: ROME {each(ROME_1, 'spearman', 2)}, GDAS {each(GDAS_1, 'spearman', 2)}.",
        f"probability is {span(tops, 2)} times a uniform",
        f"differ by at most {max(gaps):.3f},",
        f"{late(ROME_1)} (ROME, K = 1), {late(ROME_7)} (ROME, K = 7)",
        f"{late(GDAS_1)} (GDAS, K = 1), {late(GDAS_7)} (GDAS, K = 7)",
    ):
        assert phrase in page
    front = " ".join((study.HERE.parent / "README.md").read_text().split())
    few = f"K = 1 GDAS's cells have {each(GDAS_1, 'free')} parameter-free ops of 8, ROME's "
    assert few + f"{each(ROME_1, 'free')}; with K = 7 both have {each(ROME_7, 'free')}" in front
    assert numbers(ROME_7, "free") == numbers(GDAS_7, "free")
    for k in "17":
        assert f"K = {k}: {fit([row for row in full if row['samples'] == k])}, n" in results
    assert f"{fit(OLD)} over all {len(OLD)}" in results


def test_spearman_gives_ties_their_mean_rank():
    assert study.ranks([5, 1, 5, 2]) == [3.5, 1, 3.5, 2]
    assert study.spearman([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)


def test_a_cell_of_nas_bench_201_loses_each_input_of_its_last_node():
    cell = study.nasbench.FORM.format(*"abcdef")
    ends = [other.rpartition("+")[2] for other in study.with_two_inputs(cell)]
    assert ends == ["|none~0|e~1|f~2|", "|d~0|none~1|f~2|", "|d~0|e~1|none~2|"]


@pytest.mark.parametrize("name", study.ARMS)
def test_every_arm_is_a_search(name):
    config = study.train.configure("search", study.words_of(name, 0, "images", "run"))
    assert config["epochs"] * config["samples"][0] in (10, 70, 175)


@pytest.mark.skipif(not SURROGATE.exists(), reason=f"there is no {SURROGATE}")
def test_the_surrogate_reads_cells_as_published():
    pytest.importorskip("onnxruntime")
    predict = study.surrogate(str(SURROGATE))
    cells = [study.genotypes.load("DARTS_V2")]
    cells += [study.all_of(op) for op in ("sep_conv_5x5", "skip_connect", "max_pool_3x3")]
    assert predict(cells) == pytest.approx([92.910, 93.358, 89.920, 88.074], abs=2e-3)
    rows = study.read(SURROGATE.with_name("random_cells.csv"))
    found = predict([study.genotypes.load(row["genotype"]) for row in rows])
    true = [float(row["test_accuracy_last"]) for row in rows]
    assert study.spearman(found, true) == pytest.approx(0.404, abs=5e-4)
