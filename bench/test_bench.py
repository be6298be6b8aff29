"""Tests of the programs of bench/, at small sizes."""

import json
import sys
from pathlib import Path

import pytest
import torch

import genotypes
import rome

BENCH = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH))


@pytest.fixture
def values(tmp_path, monkeypatch):
    """A function that runs a program's main, and returns the values of its report."""

    def run(program, *words):
        out, threads = tmp_path / "result.json", torch.get_num_threads()
        monkeypatch.setattr(sys, "argv", ["program", *words, "--small", "--out", str(out)])
        try:
            program.main()
        finally:
            torch.set_num_threads(threads)
        rows = json.loads(out.read_text())["rows"]
        return {row["what"]: row["value"] for row in rows}

    return run


def test_fixed_logits_give_every_version_and_topology_the_same_sub_network():
    import common

    nets = [common.make_search(small=True, topology=name).net for name in ("v2", "none")]
    for seed in range(5):
        for net in nets:
            common.fix(net, seed)
        drawn = [[net.sample(1.0)["normal"].nodes for _ in range(3)] for net in nets]
        assert drawn[0][0] == drawn[0][1] == drawn[0][2]
        assert [len(node) for node in drawn[0][0]] == [2, 2, 2, 2]
        for kept, every in zip(drawn[0][0], drawn[1][0]):
            assert set(kept) <= set(every)


@pytest.mark.parametrize("table", ["steps", "network", "processes"])
def test_speed_measures_every_table(table, values):
    import speed

    found = values(speed, table, "--rounds", "1", "--against", rome.__file__)
    assert found and all(value > 0 for value in found.values())


def test_the_plain_network_is_the_same_function_as_ours():
    import plain
    import speed

    cell = genotypes.load("DARTS_V2")
    own = rome.Network(cell, 8, 6, auxiliary=False).double()
    other = plain.Network(cell, 8, 6, 10).double()
    for p, q in zip(own.parameters(), other.parameters(), strict=True):
        q.data.copy_(p.data)
    for model in (own, other):
        torch.manual_seed(0)
        speed.train_pass(model, torch.randn(4, 3, 32, 32).double(), torch.tensor([1, 2, 3, 4]))
    for p, q in zip(own.parameters(), other.parameters()):
        assert (p.grad - q.grad).abs().max() <= 1e-8 * q.grad.abs().max()


def test_memory_is_that_of_one_sub_network(values):
    import memory

    found = values(memory, "--draws", "3", "--against", rome.__file__)
    for role in ("architecture", "weights"):
        same = found[f"step of the {role}, K = 7 / K = 1, the same sub-network"]
        assert same == pytest.approx(1, abs=0.02)  # beside the draws of seven
        assert found[f"step of the {role}, ROME / other version"] == 1
        assert found[f"step of the {role}, ROME / recomputed"] > 2


def test_the_parts_of_gpu_run_on_a_cpu():
    import gpu

    row = gpu.compare("s2", "s2", "cpu", sizes=(4, 2, 4, 8))
    assert max(row["float32"]) < gpu.TOLERANCE < max(row["bfloat16"]) < 1
    assert gpu.retrain("eager", False, "cpu", 14)["loss"] > 0
    assert gpu.in_processes(2, gpu.search, "cpu", True, 1)[1]["iteration_ms"] > 0
