"""Tests of the averaging over processes, and of the scripts of bench/ in tiny sizes. Part of the suite."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn  # noqa: F401  as in train.set_up
import torch.multiprocessing

import genotypes
import rome

BENCH = Path(rome.__file__).resolve().parent / "bench"
sys.path.insert(0, str(BENCH))
ROLES = ("architecture", "weights")
CASES = [(topology, role) for topology in ("v2", "v1", "none") for role in ROLES]


def step_of_rank(topology, role, rank):
    """Loss, gradients before a clip, and strides of the parameters, of one step on a rank's own images and samples."""
    torch.manual_seed(0)
    net = rome.Supernet("darts", 4, 3, topology=topology).double()
    data = torch.Generator().manual_seed(rank)
    images, labels = torch.randn(4, 3, 8, 8, generator=data).double(), torch.randint(10, (4,), generator=data)
    architect = rome.Architect(net, 2, None, lambda role, k: torch.Generator().manual_seed(10 * rank + k))
    parameters = net.weights() if role == "weights" else net.architecture_parameters()
    step = architect.weight_step if role == "weights" else architect.architecture_step
    loss = step(images, labels, 1.0, torch.optim.SGD(parameters, 0.0))
    return loss, [p.grad for p in parameters], [p.stride() for p in parameters]


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save({case: step_of_rank(*case, rank) for case in CASES}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_mean_gradients_in_the_strides_of_the_parameters(tmp_path):
    torch.multiprocessing.spawn(worker, (str(tmp_path),), 2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for case in CASES:
        (loss_0, grads_0, _), (loss_1, grads_1, _) = (step_of_rank(*case, rank) for rank in (0, 1))
        kinds = set()
        for loss, grads, strides in (rank[case] for rank in ranks):
            torch.testing.assert_close(loss, (loss_0 + loss_1) / 2, rtol=1e-6, atol=0)
            for grad, stride, *alone in zip(grads, strides, grads_0, grads_1):
                present = [g for g in alone if g is not None]
                kinds |= {len(present), "other strides" if present and not grad.is_contiguous() else "plain"}
                assert (grad is None) == (not present)
                if present:
                    torch.testing.assert_close(grad, sum(present) / 2, rtol=1e-6, atol=1e-12)
                    assert grad.stride() == stride
        if case[1] == "weights":  # operations of both processes, of one and of none; channels-last weights
            assert kinds == {0, 1, 2, "other strides", "plain"}


# ----------------------------------------------------------------------------------------------------------------------
# The scripts of bench/


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
    for role in ROLES:
        assert rows[f"kept in a step of the {role}, K = 7 / largest of K = 1"] < 1.05
        assert rows[f"kept, pass of the {role}, v2, recompute"] < 0.5 * rows[f"kept, pass of the {role}, v2"]


@pytest.mark.skipif(not torch.__version__.startswith("2.14."), reason="it uses private parts of torch 2.14")
def test_a_step_on_cuda_waits_once_and_uses_cudnn(tmp_path, monkeypatch, capsys):
    import launches

    rows = rows_of(launches, [], tmp_path, monkeypatch)
    assert rows["waits, step of the weights"] == rows["waits, step of the architecture"] == 1
    assert "cudnn_batch_norm" in (text := capsys.readouterr().out) and "native_batch_norm" not in text


@pytest.mark.parametrize("script", ["faults", "fuzz"])
def test_no_attack_breaks_a_run(script, tmp_path):
    words = [sys.executable, BENCH / f"{script}.py", "--quick", "--out", tmp_path / "result.json"]
    subprocess.run(words, check=True, cwd=tmp_path, capture_output=True)  # they change the process that they run in
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert rows[-1]["what"].startswith(("attacks that ended otherwise", "inputs that are neither"))
    assert rows[-1]["measured"] == 0
