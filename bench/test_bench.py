"""The programs of bench/, at small sizes."""

import importlib
import json
import sys

import pytest
import torch

import rome

AGAINST = f"--small --against {rome.__file__}"
PROGRAMS = [
    ("speed", f"steps --rounds 1 {AGAINST}"),
    ("speed", f"processes --rounds 1 {AGAINST}"),
    ("memory", f"--draws 3 {AGAINST}"),
    ("gpu", "cpu"),
]


@pytest.mark.parametrize("name, words", PROGRAMS)
def test_a_program_writes_its_report(name, words, tmp_path, monkeypatch):
    program, out = importlib.import_module(name), tmp_path / "result.json"
    monkeypatch.setattr("gpu.OPS", ["sep_conv_3x3"])
    monkeypatch.setattr("gpu.SPACES", ["nb201"])
    monkeypatch.setattr("gpu.COMPILED", ())
    monkeypatch.setattr(sys, "argv", [name, *words.split(), "--out", str(out)])
    program.main()
    for row in json.loads(out.read_text())["rows"]:
        assert row.get("value", 1) > 0
        if "the same sub-network" in row.get("what", ""):  # K = 7 / K = 1
            assert row["value"] == pytest.approx(1, abs=0.02)  # beside the draws of seven
        if "float32" in row:
            assert max(row["float32"]) < program.TOLERANCE < max(row["bfloat16"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="it needs a GPU")
def test_every_operation_and_space_is_right_on_a_gpu():
    import gpu

    for row in gpu.all_gradients("cuda"):
        assert max(row["float32"]) < gpu.TOLERANCE
