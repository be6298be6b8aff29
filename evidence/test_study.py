"""python -m pytest evidence"""

from pathlib import Path
from statistics import fmean

import pytest
import study

SURROGATE = Path(__file__).parents[2] / "shared/data/s0/nb301_v2.onnx"
OLD, EPOCHS = study.kept_rows("nb201-8000/runs"), study.kept_rows("epochs")
NEW = study.with_means(study.kept_rows("runs"))
S0, S2 = ([row for row in NEW if row["space"] == space] for space in ("darts", "s2"))


def of(arm, rows):
    return [row for row in rows if row["run"].rpartition("-s")[0] == arm]


def numbers(arm, *columns):
    return [float(row[column]) for row in of(arm, OLD + NEW) for column in columns]


def mean(arm, column, digits=1):
    return f"{fmean(numbers(arm, column)):.{digits}f}"


def pair(k, column, digits=1, space="s0"):
    """The values of both methods, seed by seed."""
    texts = []
    for method in ("gdas", "rome"):
        values = [f"{value:.{digits}f}" for value in numbers(f"{space}-{method}-{k}", column)]
        texts.append(f"{method.upper()} {' and '.join(values)}")
    return ", ".join(texts)


def span(values, digits):
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def both_k(space, column, digits=1):
    return ". ".join(f"K = {k}: {pair(f'k{k}', column, digits, space)}" for k in "17")


def gaps(runs):
    """Between the losses of the two halves."""
    return [abs(float(row["loss_alpha"]) - float(row["loss_theta"])) for row in runs]


def times_uniform(space, ops):
    """The largest probability of alpha in the last epoch of the runs of a space."""
    last = {row["run"]: row for row in EPOCHS if row["run"].startswith(space)}
    return span([ops * float(row["top_alpha_normal"]) for row in last.values()], 2)


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
    few = of("rome-k1", OLD) + of("gdas-k1", OLD)
    gdas, rome = "nb201-gdas-k1", "nb201-rome-k1"  # with all images
    places = [float(row["percentile"]) for row in of("s0-rome-k1", EPOCHS)]
    for phrase in (
        f"{len(OLD)} there with 4,000 + 4,000 images",
        f"Over the {len(full)} full-length runs with few images loss and share have Spearman "
        f"{fit(full)}:",
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
        f"free: {pair('k1-steps', 'free', 0)}** (seeds 0 and 1). Mean free: "
        f"{pair('k1-steps', 'mean_free')}. Mean percentile: {pair('k1-steps', 'mean_percentile')}.",
        *[
            f"{space.upper()}, equal passes, free. {both_k(space, 'free', 0)}** (seed 0). "
            f"Mean free. {both_k(space, 'mean_free')}. "
            f"Mean percentile. {both_k(space, 'mean_percentile')}."
            for space in ("s0", "s2")
        ],
        f"K = 1, equal steps: {pair('k1-steps', 'drawn_percentile', 0)}; equal passes: "
        f"{pair('k1', 'drawn_percentile', 0)}. K = 7: {pair('k7', 'drawn_percentile', 0)}.",
        f"K = 7: {pair('k7', 'spearman', 2)}. K = 1, equal passes: {pair('k1', 'spearman', 2)}; "
        f"equal steps: {pair('k1-steps', 'spearman', 2)}. "
        f"Counting parameters has {mean('s0-rome-k7', 'spearman_size', 2)}.",
        f"percentile, K = 1: {pair('k1', 'percentile')}; K = 7: {pair('k7', 'percentile')})",
        f"probability is {times_uniform('s0', 7)} times a uniform one in S0, "
        f"{times_uniform('s2', 2)} in S2",
        f"percentile goes from {span(places[-10:], 1)}",
        f"differ by at most {max(gaps(S0)):.3f} in S0 and {max(gaps(S2)):.3f} in S2,",
        f"free: GDAS {mean(gdas, 'free', 0)} of 6, ROME {mean(rome, 'free', 0)} of 5** (seed 0); "
        f"{mean(gdas, 'accuracy')} and {mean(rome, 'accuracy')}%. With 4,000 + 4,000, as many "
        f"steps: {free[1]} and {free[0]} (n = 3 each).",
        f"by at most {max(gaps(of(gdas, NEW) + of(rome, NEW))):.2f} with all images, by "
        f"{span(gaps(few), 2)} with few.",
        f"(n = 1): ROME {mean(rome, 'free', 0)} of 5, GDAS {mean(gdas, 'free', 0)} of 6",
        f"ROME {mean(rome, 'accuracy')}%, GDAS {mean(gdas, 'accuracy')}% (n = 1)",
        f"ROME {mean(rome, 'spearman', 2)}, GDAS {mean(gdas, 'spearman', 2)} (n = 1)",
        f"S0. {both_k('s0', 'loss_theta', 2)}. S2. {both_k('s2', 'loss_theta', 2)}.",
        f"percentile, K = 1: {pair('k1', 'percentile', 1, 's2')}; "
        f"K = 7: {pair('k7', 'percentile', 1, 's2')})",
        f"drawn cells, K = 1: {pair('k1', 'drawn_percentile', 0, 's2')}; "
        f"K = 7: {pair('k7', 'drawn_percentile', 0, 's2')}.",
    ):
        assert phrase in page
    front = " ".join((study.HERE.parent / "README.md").read_text().split())
    s0 = f"K = 1, K = 7's steps: {pair('k1-steps', 'free', 0)}; its passes: "
    s0 += f"{pair('k1', 'free', 0)}; K = 7: {pair('k7', 'free', 0)}."
    s2 = f"K = 1: {pair('k1', 'free', 0, 's2')}; K = 7: {pair('k7', 'free', 0, 's2')}."
    assert f"S0, {s0} S2, {s2}" in front
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
