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
    return [row for row in rows if study.arm_of(row["run"]) == arm]


def numbers(arm, *columns):
    return [float(row[column]) for row in of(arm, OLD + NEW) for column in columns]


def mean(arm, column, digits=1):
    return f"{fmean(numbers(arm, column)):.{digits}f}"


def joined(values, digits):
    *first, last = [f"{value:.{digits}f}" for value in values]
    return f"{', '.join(first)} and {last}" if first else last


def listed(arm, column, digits):
    """The values of an arm, seed by seed."""
    return joined(numbers(arm, column), digits)


def methods(space, k, column="free", digits=0):
    gdas, rome = (listed(f"{space}-{method}-{k}", column, digits) for method in ("gdas", "rome"))
    return f"GDAS {gdas}, ROME {rome}"


def both_k(space, column="free", digits=0):
    return ". ".join(f"K = {k}: {methods(space, f'k{k}', column, digits)}" for k in "17")


def leads(runs, column, method="rome"):
    """How much more a method has than the other in each pair of searches, from least to most."""
    values = {row["run"]: float(row[column]) for row in runs}
    other = "rome" if method == "gdas" else "gdas"
    pairs = [(run, run.replace(method, other)) for run in values if method in run]
    return sorted(values[one] - values[two] for one, two in pairs if two in values)


def won(runs, column, method="rome"):
    """In how many of the pairs a method has more than the other."""
    differences = leads(runs, column, method)
    return f"{sum(difference > 0 for difference in differences)} of {len(differences)}"


def span(values, digits):
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


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
    few = of("rome-k1", OLD) + of("gdas-k1", OLD)
    gdas, rome = "nb201-gdas-k1", "nb201-rome-k1"  # with all images
    places = [float(row["percentile"]) for row in EPOCHS if row["run"] == "s0-rome-k1-s0"]
    steps = [row for row in S0 if "steps" in row["run"]]
    passes = [row for row in S0 if "steps" not in row["run"]]
    more, more_s2 = (leads(runs, "mean_free", "gdas") for runs in (steps, S2))
    better, better_s2 = (leads(runs, "mean_percentile") for runs in (steps, S2))
    drawn, drawn_passes, drawn_s2 = (
        leads(runs, "drawn_percentile") for runs in (steps, passes, S2)
    )
    for phrase in (
        f"{len(OLD)} there with 4,000 + 4,000 images",
        f"steps: GDAS has {listed('s0-gdas-k1-steps', 'free', 0)} free, ROME "
        f"{listed('s0-rome-k1-steps', 'free', 0)}**",
        f"S0, equal passes. {both_k('s0')}**",
        f"S2, equal passes. {both_k('s2')}**",
        f"ROME has {mean('rome-k1', 'accuracy')}% with K = 1 and {mean('rome-k7', 'accuracy')}% "
        f"with K = 7**, GDAS {span(numbers('gdas-k1', 'accuracy'), 1)}% and "
        f"{mean('gdas-k7', 'accuracy')}% (3 seeds each)",
        f"GDAS has {mean(gdas, 'free', 0)} free of 6, ROME {mean(rome, 'free', 0)} of 5**",
        f"as many steps they have {mean('gdas-k1', 'free')} and {mean('rome-k1', 'free')}.",
        f"differ by at most {max(gaps(of(gdas, NEW) + of(rome, NEW))):.2f} with all images, by "
        f"{span(gaps(few), 2)} with few.",
        f"Over the {len(full)} full-length runs with few images loss and share have Spearman "
        f"{fit(full)}:",
        f"| S0, equal steps, K = 1, {len(more)} pairs | GDAS's mean free is higher in "
        f"{won(steps, 'mean_free', 'gdas')}, by {span(more, 1)}; its last cell has more in "
        f"{won(steps, 'free', 'gdas')} |",
        f"| S0, equal passes, {len(drawn_passes)} pairs | mean free. "
        f"{both_k('s0', 'mean_free', 1)}. GDAS's last cell has more in "
        f"{won(passes, 'free', 'gdas')} |",
        f"| S2, {len(more_s2)} pairs | the mean is higher in {won(S2, 'mean_free', 'gdas')}, by "
        f"{joined(more_s2, 1)} (",
        f"K = 1: GDAS {mean('gdas-k1', 'free')} of 6, ROME {mean('rome-k1', 'free')} of 5. "
        f"K = 7: GDAS {mean('gdas-k7', 'free')} of 6, ROME {mean('rome-k7', 'free')} of 5 |",
        f"K = 1: GDAS {mean(gdas, 'free', 0)} of 6, ROME {mean(rome, 'free', 0)} of 5 |",
        f"mean percentile. {both_k('s0', 'mean_percentile', 1)} |",
        f"| {both_k('s2', 'mean_percentile', 1)} |",
        f"rate has ROME {mean('rome-k1-rate7', 'accuracy')}% (n = 3), GDAS "
        f"{mean('gdas-k1-rate7', 'accuracy')}% (n = 1)",
        f"K = 1 has GDAS {mean(gdas, 'accuracy')}%, ROME {mean(rome, 'accuracy')}%:",
        f"higher in {won(steps, 'mean_percentile')}, by {joined(better, 0)} points; its last cell "
        f"is better in {won(steps, 'percentile')}, cells drawn from p(z) in "
        f"{won(steps, 'drawn_percentile')}, by {span(drawn, 0)} |",
        f"the mean in {won(passes, 'mean_percentile')} (values: see Table 5 above), the last cell "
        f"in {won(passes, 'percentile')}; drawn cells in {won(passes, 'drawn_percentile')}, by "
        f"{span(drawn_passes, 0)} |",
        f"the mean in {won(S2, 'mean_percentile')}, by {joined(better_s2, 0)}; drawn cells by "
        f"{joined(drawn_s2, 0)}; the last cell in {won(S2, 'percentile')} |",
        f"equal passes. {both_k('s0', 'spearman', 2)}. Counting parameters has "
        f"{mean('s0-rome-k7', 'spearman_size', 2)} |",
        f"GDAS {mean('gdas-k1', 'spearman', 2)} and {mean('gdas-k7', 'spearman', 2)}, ROME "
        f"{mean('rome-k1', 'spearman', 2)} and {mean('rome-k7', 'spearman', 2)}. K = 1 at seven "
        f"times the rate: GDAS {mean('gdas-k1-rate7', 'spearman', 2)} (n = 1), ROME "
        f"{mean('rome-k1-rate7', 'spearman', 2)}. Counting parameters has "
        f"{mean('rome-k7', 'spearman_size', 2)} |",
        f"K = 1: GDAS {mean(gdas, 'spearman', 2)}, ROME {mean(rome, 'spearman', 2)} |",
        f"percentile goes from {span(places[-10:], 1)}.",
        f"probability is {times_uniform('s0', 7)} times a uniform one in S0, "
        f"{times_uniform('s2', 2)} in S2",
        f"differ by at most {max(gaps(S0)):.3f} in S0 and {max(gaps(S2)):.3f} in S2,",
    ):
        assert phrase in page
    front = " ".join((study.HERE.parent / "README.md").read_text().split())
    s0 = f"equal steps, K = 1: {methods('s0', 'k1-steps')}. Equal passes. {both_k('s0')}."
    assert f"S0, {s0} S2. {both_k('s2')}." in front
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
