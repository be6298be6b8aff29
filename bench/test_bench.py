"""Tests of the programs of bench/, at small sizes."""

import json
import sys
from pathlib import Path

import pytest
import torch

import rome

BENCH = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH))


@pytest.fixture
def values(tmp_path, monkeypatch):
    """A function that runs a program's main, and returns the values of its report."""

    def run(program, *words):
        out, threads = tmp_path / "result.json", torch.get_num_threads()
        words = [*words, "--against", rome.__file__, "--small", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["program", *words])
        try:
            program.main()
        finally:
            torch.set_num_threads(threads)
        rows = json.loads(out.read_text())["rows"]
        return {row["what"]: row["value"] for row in rows}

    return run


def test_fixed_logits_give_every_topology_the_same_sub_network():
    import common

    nets = [common.make_search(small=True, topology=name).net for name in ("v2", "none")]
    for net in nets:
        common.fix(net, 1)
    kept, again, every = [net.sample(1.0)["normal"].nodes for net in (nets[0], *nets)]
    assert kept == again
    for few, all_inputs in zip(kept, every, strict=True):
        assert len(few) == 2 and set(few) <= set(all_inputs)


@pytest.mark.parametrize("table", ["steps", "processes"])
def test_speed_measures_every_table(table, values):
    import speed

    found = values(speed, table, "--rounds", "1")
    assert found and all(value > 0 for value in found.values())


def test_memory_is_that_of_one_sub_network(values):
    import memory

    found = values(memory, "--draws", "3")
    for role in ("architecture", "weights"):
        same = found[f"step of the {role}, K = 7 / K = 1, the same sub-network"]
        assert same == pytest.approx(1, abs=0.02)  # beside the draws of seven
        assert found[f"step of the {role}, ROME / other version"] == 1
        assert found[f"step of the {role}, ROME / recomputed"] > 2


def test_gpu_is_rehearsed_on_a_cpu(tmp_path, monkeypatch):
    import gpu

    monkeypatch.setattr(gpu, "OPS", ["sep_conv_3x3"])
    monkeypatch.setattr(gpu, "SPACES", ["s2", "nb201"])
    monkeypatch.setattr(gpu, "COMPILED", ())
    monkeypatch.setattr(sys, "argv", ["gpu.py", "cpu", "--out", str(tmp_path / "gpu.json")])
    gpu.main()
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    parts = ["gradients"] * 3 + ["search_processes"] * 2 + ["retrain"] * 2
    assert [next(iter(row)) for row in rows] == parts
    for row in rows[:3]:
        assert max(row["float32"]) < gpu.TOLERANCE < max(row["bfloat16"])
