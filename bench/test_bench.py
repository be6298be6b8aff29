"""Tests of the scripts of bench/, at small sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import genotypes
import rome

BENCH = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH))


def rows_of(script, words, tmp_path, monkeypatch):
    """Runs a script's main; the rows that it reports, by what they are of."""
    monkeypatch.setattr(sys, "argv", ["bench", *words, "--quick", "--out", str(tmp_path / "result.json")])
    threads = torch.get_num_threads()
    try:
        assert script.main() == 0
    finally:
        torch.set_num_threads(threads)
    return {row["what"]: row["measured"] for row in json.loads((tmp_path / "result.json").read_text())["rows"]}


@pytest.mark.parametrize("table", ["passes", "linearity", "input", "network"])
def test_speed_measures_every_table(table, tmp_path, monkeypatch):
    import speed

    rows = rows_of(speed, [table, *(["--against", rome.__file__] if table == "passes" else [])], tmp_path, monkeypatch)
    assert rows and all(value > 0 for value in rows.values())


def test_speed_measures_a_gpu_table_on_any_device(tmp_path, monkeypatch, capsys):
    import speed

    names = ("NCHW, float32", "channels-last, bfloat16", "channels-last, TF32, recompute")
    monkeypatch.setattr(speed, "VARIANTS", {name: speed.VARIANTS[name] for name in names})
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    rows = rows_of(speed, ["gpu", "--device", "cpu"], tmp_path, monkeypatch)
    assert rows["NCHW, float32: passes of the weights"] > 0 and rows["retrain, compiled"] > 0
    assert rome.MEMORY_FORMAT is torch.channels_last
    if not torch.cuda.is_available():
        monkeypatch.setattr(sys, "argv", ["speed.py", "gpu"])
        assert speed.main() == 2
        assert capsys.readouterr().out.splitlines()[-1] == "bench/speed.py gpu: this PyTorch finds no CUDA device"


def test_the_plain_network_is_the_same_function_as_ours():
    import plain
    import speed

    cell = genotypes.load("DARTS_V2")
    own, other = rome.Network(cell, 8, 6, 10, True, 0.0).double(), plain.Network(cell, 8, 6, 10).double()
    for p, q in zip(own.parameters(), other.parameters(), strict=True):
        q.data.copy_(p.data)
    images, labels = torch.randn(4, 3, 32, 32).double(), torch.tensor([1, 2, 3, 4])
    for model in (own, other):
        speed.network_pass(model, images, labels)
    for p, q in zip(own.parameters(), other.parameters()):
        assert (p.grad - q.grad).abs().max() <= 1e-8 * q.grad.abs().max()


def test_memory_is_that_of_one_sub_network(tmp_path, monkeypatch):
    import memory

    rows = rows_of(memory, ["--against", rome.__file__], tmp_path, monkeypatch)
    assert rows["kept, pass of the weights, v2 / other version"] == 1
    for role in ("architecture", "weights"):
        assert rows[f"kept in a step of the {role}, K = 7 / largest of K = 1"] < 1.05
        assert rows[f"kept, pass of the {role}, v2, recompute"] < 0.5 * rows[f"kept, pass of the {role}, v2"]


@pytest.mark.skipif(not torch.__version__.startswith("2.14."), reason="it uses private parts of torch 2.14")
def test_a_step_on_cuda_waits_once_and_uses_cudnn(tmp_path, monkeypatch, capsys):
    import launches

    rows = rows_of(launches, [], tmp_path, monkeypatch)
    assert rows["waits, step of the weights"] == rows["waits, step of the architecture"] == 1
    assert "cudnn_batch_norm" in (text := capsys.readouterr().out) and "native_batch_norm" not in text


def test_no_attack_breaks_a_run(tmp_path):
    words = [sys.executable, BENCH / "faults.py", "--quick", "--out", tmp_path / "result.json"]
    subprocess.run(words, check=True, cwd=tmp_path, capture_output=True)  # it changes the process that it runs in
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert rows[-1]["what"].startswith("attacks that ended otherwise")
    assert rows[-1]["measured"] == 0
