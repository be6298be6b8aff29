"""Tests of train.py."""

import csv
import errno
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

import genotypes
import rome
import train

HERE = Path(__file__).resolve().parent
TIMES = ("images_per_second", "seconds", "peak_mib")
CPU = torch.device("cpu")
DEAD_NODES = "|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|+|skip_connect~0|none~1|none~2|"
ONE_SHOT = "OneShotGenotype(ops=('conv3x3-bn-relu', 'maxpool3x3', 'skip-connect', 'conv3x3-bn-relu'), "
ONE_SHOT += "inputs=((0,), (0, 1), (1, 2), (0, 2), (0, 4)))"
RETRAIN = ["--retrain", *"--retrain-epochs 2 --retrain-cells 3 --retrain-channels 2 --retrain-batch-size 6".split()]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Twelve training and four test images in each of three classes: noise around a colour of the class."""
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 12), ("test", 4)):
        for label in range(3):
            path = root / split / f"class{label}"
            path.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 256, (16, 16, 3), generator=generator, dtype=torch.uint8)
                pixels[..., label] = 200
                Image.fromarray(pixels.numpy()).save(path / f"{number}.png")
    return root


def flags(folder, out, *more, stage="search"):
    words = f"{stage} --dataset folder --data {folder} --image-size 16 --cells 3 --channels 2 --batch-size 6 --epochs 2"
    words += " --samples 2" if stage == "search" else " --genotype GDAS_V1"
    return [*words.split(), "--out", str(out), *map(str, more)]


def process(*words, **kwargs):
    """A command in a process of its own: (status, stdout, stderr)."""
    words = [sys.executable, *map(str, words)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, **kwargs)
    return done.returncode, done.stdout, done.stderr


def rows_of(out):
    with open(out / "metrics.csv") as file:
        return list(csv.DictReader(file))


def result(out):
    """All of a run that must not depend on time: rows without the time columns, checkpoint tensors, genotype."""
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in rows_of(out)]
    state, tensors = torch.load(out / "last.pt", weights_only=True), {}

    def collect(value, name):
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif isinstance(value, dict):
            for key in value:
                collect(value[key], f"{name}.{key}")

    for part in ("net", "network", "sgd", "adam", "totals", "rng"):
        collect(state.get(part), part)
    return rows, tensors, (out / "genotype.json").read_bytes()


def assert_equal_runs(one, other):
    (rows, tensors, genotype), (rows_2, tensors_2, genotype_2) = result(one), result(other)
    assert rows == rows_2
    assert tensors.keys() == tensors_2.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], tensors_2[name])] == []
    assert genotype == genotype_2


def one_line_error(capsys, words, status=2):
    code = train.main([str(word) for word in words])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (status, 1), error
    assert "Traceback" not in error
    return error


@pytest.fixture(scope="session")
def searched(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train.main(flags(folder, out, *RETRAIN)) == 0
    return out


# --- runs -------------------------------------------------------------------------------------------------------------


def test_search_and_retrain_write_what_they_promise(searched):
    for name in ("config.json", "metrics.csv", "genotype.json", "cells.svg", "last.pt", "log.txt"):
        assert (searched / name).stat().st_size > 0
        assert (searched / "retrain" / name).stat().st_size > 0
    columns = "loss_alpha loss_theta supernet_accuracy tau parameter_free_normal entropy_alpha_normal top_alpha_reduce"
    columns += " entropy_beta_normal top_beta_normal images_per_second peak_mib gradient_norm clipped"
    rows = rows_of(searched)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(row[column] != "" for row in rows for column in columns.split())
    assert [float(row["tau"]) for row in rows] == [10.0, 0.1]


def test_how_sure_the_choice_is_stands_in_the_files_and_the_log(searched):
    state = torch.load(searched / "last.pt", weights_only=True)["net"]
    saved = json.loads((searched / "genotype.json").read_text())
    p = state["alpha.normal"].softmax(1)
    assert torch.tensor(saved["alpha"]["normal"]) == pytest.approx(p.numpy(), abs=1e-4)
    assert float(rows_of(searched)[-1]["top_alpha_normal"]) == pytest.approx(p.amax(1).mean().item(), rel=1e-5)
    assert [len(node) for node in saved["beta"]["reduce"]] == [2, 3, 4, 5]
    log = (searched / "log.txt").read_text()
    assert log.count("alpha 1.00 x uniform") == 2
    assert "alpha is near uniform (largest probability 0.143, uniform 0.143)" in log


def test_a_seed_gives_one_run_and_another_seed_another(folder, searched, tmp_path):
    assert train.main(flags(folder, tmp_path / "again")) == 0
    assert_equal_runs(searched, tmp_path / "again")
    assert train.main(flags(folder, tmp_path / "other", "--seed", 1)) == 0
    assert result(searched)[0] != result(tmp_path / "other")[0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_stopped_in_mid_epoch_goes_on_to_the_same_bits(number, folder, searched, tmp_path):
    """In the fifth step of the search, then in the eighth of the retrain. SIGKILL leaves the checkpoint before it."""
    out, script = tmp_path / "run", tmp_path / "train.py"
    script.write_text(
        f"import os, sys; sys.path.insert(0, {str(HERE)!r}); import train\n"
        "at, number, add, calls = int(sys.argv.pop()), int(sys.argv.pop()), train.Run.add, []\n"
        "def stopped(*arguments, **numbers):\n"
        "    calls.append(1)\n"
        "    if len(calls) == at:\n"
        "        os.kill(os.getpid(), number)\n"
        "    add(*arguments, **numbers)\n"
        "train.Run.add = stopped\n"
        "sys.exit(train.main())\n"
    )
    words = flags(folder, out, *RETRAIN, "--save-minutes", 0)
    for at, more in ((5, ()), (10 if number == signal.SIGKILL else 9, ("--resume",))):
        status, _, error = process(script, *words, *more, int(number), at)
        assert status == (-9 if number == signal.SIGKILL else 143), error
        assert number == signal.SIGKILL or "SIGTERM: the state is saved" in error
    state = torch.load(out / "retrain" / "last.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 1 if number == signal.SIGKILL else 2)
    assert train.main([*flags(folder, out, *RETRAIN), "--resume"]) == 0
    assert_equal_runs(searched, out)
    assert_equal_runs(searched / "retrain", out / "retrain")


def test_a_run_killed_between_two_renames_goes_on(folder, searched, tmp_path, monkeypatch):
    """last.pt is already previous.pt, and the new one still has its temporary name."""
    out, replace, calls = tmp_path / "run", os.replace, []

    def killed(source, target):
        if Path(target).name == "previous.pt":
            calls.append(target)
        if len(calls) == 3 and Path(source).name == ".last.pt.tmp":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        train.main(flags(folder, out, "--save-minutes", 0))
    monkeypatch.undo()
    assert not (out / "last.pt").exists() and (out / "previous.pt").exists()
    assert train.main([*flags(folder, out), "--resume"]) == 0
    assert_equal_runs(searched, out)


def test_a_full_disk_ends_in_one_line_and_keeps_the_checkpoint(folder, searched, tmp_path, capsys, monkeypatch):
    out, write, calls = tmp_path / "run", genotypes.write, []

    def full(path, data):
        calls.append(path)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(genotypes, "write", full)
    error = one_line_error(capsys, flags(folder, out, "--save-minutes", 0))
    assert "No space left" in error and "keeps its last checkpoint" in error
    monkeypatch.undo()
    assert train.main([*flags(folder, out), "--resume"]) == 0
    assert_equal_runs(searched, out)


@pytest.mark.parametrize("damage", ["half", "byte", "format", "code"])
def test_a_broken_checkpoint_falls_back_to_the_one_before(damage, folder, searched, tmp_path, capsys):
    out = tmp_path / "broken"
    shutil.copytree(searched, out)
    data = (out / "last.pt").read_bytes()
    middle = len(data) // 2
    if damage == "half":
        (out / "last.pt").write_bytes(data[:middle])
    elif damage == "byte":  # inside a tensor: torch.load alone does not see it
        (out / "last.pt").write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    elif damage == "format":
        torch.save(torch.load(out / "last.pt", weights_only=True) | {"format": 1}, out / "last.pt")
    else:
        torch.save({"format": 2, "stage": Path}, out / "last.pt")
    assert train.main([*flags(folder, out), "--resume"]) == 0
    assert "last.pt cannot be used" in capsys.readouterr().err
    assert_equal_runs(searched, out)


def test_checkpoints_that_fit_nothing_are_refused(folder, searched, tmp_path, capsys):
    out = tmp_path / "broken"
    shutil.copytree(searched, out)
    state = torch.load(out / "last.pt", weights_only=True)
    for name in ("last.pt", "previous.pt"):
        torch.save(state | {"net": dict(list(state["net"].items())[1:])}, out / name)
    assert "another network" in one_line_error(capsys, [*flags(folder, out), "--resume"])
    for name in ("last.pt", "previous.pt"):
        (out / name).write_bytes(b"nothing")
    assert "cannot be used" in one_line_error(capsys, [*flags(folder, out), "--resume"])


def test_resume_of_a_finished_run_takes_its_settings_and_says_so(searched, capsys):
    assert train.main(["search", "--out", str(searched), "--resume", "--no-retrain"]) == 0
    assert "already finished" in capsys.readouterr().out


def test_a_config_file_is_enough_to_run_again(searched, tmp_path):
    words = ["search", "--config", str(searched / "config.json"), "--no-retrain", "--out", str(tmp_path / "again")]
    assert train.main(words) == 0
    assert_equal_runs(searched, tmp_path / "again")


def test_other_settings_and_an_occupied_folder_are_refused(folder, searched, capsys):
    before = {path: path.read_bytes() for path in searched.glob("*.*")}
    assert "--lr 0.05 (now 0.1)" in one_line_error(capsys, [*flags(folder, searched), "--resume", "--lr", "0.1"])
    assert "holds a run already" in one_line_error(capsys, flags(folder, searched))
    assert before == {path: path.read_bytes() for path in searched.glob("*.*")}


def test_two_processes_share_the_work_and_resume(folder, tmp_path):
    """torchrun on the CPU: search and retrain end, a resumed run ends with the same bits, one process is refused."""
    whole, out = tmp_path / "whole", tmp_path / "resumed"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = flags(folder, whole, "--device", "cpu", "--save-minutes", 0, *RETRAIN)
    status, text, error = process(*torchrun, HERE / "train.py", *words)
    assert status == 0, error
    assert "in 2 processes, 12 images a step in all" in text and "test accuracy" in text
    shutil.copytree(whole, out)
    for part in (out, out / "retrain"):
        (part / "last.pt").unlink()  # previous.pt: after the last step, before the evaluation
    script = tmp_path / "train.py"  # what is left of the process group's threads may abort while Python exits
    script.write_text(
        f"import pathlib, sys; sys.path.insert(0, {str(HERE)!r}); import train; status = train.main()\n"
        "print([path.read_text() for path in pathlib.Path('/proc/self/task').glob('*/comm')]); sys.exit(status)"
    )
    status, text, error = process(*torchrun, script, *flags(folder, out, "--device", "cpu", "--resume"))
    assert status == 0, error
    assert "gloo" not in text
    assert_equal_runs(whole, out)
    assert_equal_runs(whole / "retrain", out / "retrain")
    status, _, error = process(HERE / "train.py", *flags(folder, out, "--resume"))
    assert status == 2 and "--processes 2 (now 1)" in error


@pytest.mark.parametrize("genotype", [DEAD_NODES, ONE_SHOT])
def test_two_processes_retrain_a_cell_with_nodes_that_lead_nowhere(genotype, folder, tmp_path):
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", HERE / "train.py", "retrain"]
    words += f"--dataset folder --data {folder} --image-size 16 --cells 1 --channels 2 --batch-size 6".split()
    words += ["--epochs", 1, "--device", "cpu", "--genotype", genotype, "--out", tmp_path / "run"]
    status, text, error = process(*words)
    assert status == 0, error
    assert "test accuracy" in text


# --- devices ----------------------------------------------------------------------------------------------------------


def test_device_settings_of_cuda_and_of_a_cpu():
    assert train.device_settings(torch.device("cuda")) == dict(fused=True, pin_memory=True, non_blocking=True)
    assert not any(train.device_settings(CPU).values())


@pytest.mark.parametrize("stage", ["search", "retrain"])
def test_fused_optimizers_as_on_cuda_take_the_same_steps(stage, folder, tmp_path, monkeypatch):
    words = ("--steps-per-epoch", 6, "--epochs", 1)
    assert train.main(flags(folder, tmp_path / "plain", *words, stage=stage)) == 0
    monkeypatch.setattr(train, "device_settings", lambda device: dict(fused=True, pin_memory=False, non_blocking=True))
    assert train.main(flags(folder, tmp_path / "fused", *words, stage=stage)) == 0
    plain, fused = result(tmp_path / "plain")[1], result(tmp_path / "fused")[1]
    assert plain.keys() == fused.keys() and all(value.isfinite().all() for value in fused.values())
    for name in (name for name in plain if name.startswith("net")):
        assert torch.allclose(plain[name], fused[name], rtol=1e-3, atol=1e-4), name


def test_a_first_step_that_loss_scaling_skips_leaves_no_uninitialised_momentum():
    weight = torch.nn.Parameter(torch.ones(4))
    sgd = train.make_sgd([weight], dict(lr=0.1, momentum=0.9, weight_decay=0.0), fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor in (math.inf, 1.0):
        sgd.zero_grad()
        scaler.scale(weight.sum() * factor).backward()
        scaler.step(sgd)
        scaler.update()
    assert torch.equal(sgd.state[weight]["momentum_buffer"], torch.ones(4))
    assert torch.allclose(weight, torch.full((4,), 0.9))


def test_amp_takes_bfloat16_only_where_the_hardware_has_it(monkeypatch):
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, has=has: (
            has or including_emulation
        ))  # fmt: skip
        dtype = train.precision(dict(amp=True), torch.device("cuda"))
        assert dtype is (torch.bfloat16 if has else torch.float16)


def test_compile_keeps_the_static_graph(folder, tmp_path, monkeypatch):
    """A smaller last batch must not move the full ones to a graph of any size."""
    calls = []
    monkeypatch.setattr(torch, "compile", lambda model, **settings: calls.append(settings) or model)
    assert train.main(flags(folder, tmp_path / "run", "--compile", "--epochs", 1, stage="retrain")) == 0
    assert calls == [dict(dynamic=False)]


@pytest.mark.parametrize("stage", ["search", "retrain"])
def test_a_nan_ends_in_status_3_and_no_checkpoint_holds_it(stage, folder, tmp_path, capsys, monkeypatch):
    out, calls, cross_entropy = tmp_path / "run", [], torch.nn.functional.cross_entropy

    def sometimes_nan(logits, *rest, **more):
        calls.append(1)
        bad = logits.requires_grad and len(calls) == (21 if stage == "search" else 11)
        return cross_entropy(logits, *rest, **more) * (math.nan if bad else 1)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", sometimes_nan)
    words = flags(folder, out, "--save-minutes", 0, *([] if stage == "search" else ["--auxiliary", 0]), stage=stage)
    error = one_line_error(capsys, words, status=3)
    assert "is not finite" in error and "epoch 2/2, step " in error and "loss" in error
    state = torch.load(out / "last.pt", weights_only=True)
    place = int(re.search(r"step (\d+)", error)[1])
    assert (state["epoch"], state["step"]) == (1, place - 1)  # the step before, although the check comes a step later
    assert all(value.isfinite().all() for value in state["net" if stage == "search" else "network"].values())


def test_an_infinite_gradient_is_named(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rome.Architect, "gradient_norm", property(lambda self: torch.tensor(math.inf), lambda *_: None),
                        raising=False)  # fmt: skip
    error = one_line_error(capsys, flags(folder, tmp_path / "run"), status=3)
    assert "epoch 1/2, step 1/3: gradient norm" in error and "--lr" in error


@pytest.mark.parametrize("stage", ["search", "retrain"])
def test_steps_skipped_by_loss_scaling_are_counted_and_shown(stage, folder, tmp_path, capsys, monkeypatch):
    """float16 on a CPU, whose first scale, 65536, is too large for the gradients."""
    monkeypatch.setattr(train, "precision", lambda config, device: torch.float16)
    assert train.main(flags(folder, tmp_path / "run", "--amp", "--steps-per-epoch", 4, stage=stage)) == 0
    share = float(rows_of(tmp_path / "run")[0]["skipped"])
    assert share in (0.25, 0.5, 0.75, 1.0)
    assert f"{round(4 * share)} of 4 steps skipped by loss scaling" in capsys.readouterr().out


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, says",
    [
        ("search --nonsense", "--nonsense"),
        ("search --space s9", "must be one of darts, s1"),
        ("search --dataset cifr10", "did you mean cifar10?"),
        ("search --epochs 0", "--epochs must be a whole number of at least 1, not '0'"),
        ("search --lr nan", "--lr must be a number above 0"),
        ("search --quick --retrain-epochs 3", "without --retrain"),
        ("search --quick --retrain --retrain-epochs x", "whole number"),
        ("search --quick --baseline 2", "without --retrain"),
        ("search --quick --samples 5 --samples-alpha 3 --samples-theta 4", "--samples has no effect"),
        ("search --equal-passes --epochs 3", "--equal-passes"),
        ("search --quick --data x", "--data"),
        ("search --quick --image-size 30", "multiple of 4"),
        ("search --dataset cifar10 --image-size 64", "32 pixels"),
        ("search --quick --method gdas --derive exact", "--derive"),
        ("search --quick --space nb201 --retrain --retrain-auxiliary 0.4", "auxiliary"),
        ("search --quick --space 1shot1-1 --method gdas", "1shot1"),
        ("search --space nb201 --dataset svhn", "no data set of NAS-Bench-201"),
        ("search --quick --stem imagenet", "--stem"),
        ("search --quick --config /nowhere/config.json", "no such file"),
        ("search --quick --space nowhere.py:NAME", "nowhere.py"),
        ("retrain --quick", "retrain needs --genotype"),
        ("retrain --quick --genotype DARTS_V3", "DARTS_V2"),
        ("retrain --quick --genotype __import__('os').system('true')", "no file"),
        ("retrain --quick --genotype GDAS_V1 --space nb201", "family"),
        ("predict nowhere image.png", "no checkpoint"),
    ],
)
def test_bad_flags_end_in_one_line_and_status_2(words, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in one_line_error(capsys, words.split(" "))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [{"help": True}, {"epochs": "x"}, {"epochs": True}, {"a\nb": 1}, [1], None, 3])
def test_a_hostile_config_is_refused(settings, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(dict(stage="search", settings=settings)))
    words = ["search", "--config", tmp_path / "config.json", "--out", tmp_path / "run"]
    assert "is no configuration of a search" in one_line_error(capsys, words)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(kind, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    path = "/dev/zero" if kind == "device" else tmp_path / kind
    one_line_error(capsys, ["search", "--config", path, "--out", tmp_path / "run"])
    one_line_error(capsys, ["retrain", "--quick", "--genotype", path, "--out", tmp_path / "run"])


def test_bad_data_folders_end_in_one_line(folder, tmp_path, capsys):
    assert "no folder" in one_line_error(capsys, flags(tmp_path / "missing", tmp_path / "run"))
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    image = data / "train" / "class1" / "3.png"
    image.write_bytes(image.read_bytes()[:60])
    assert str(image) in one_line_error(capsys, flags(data, tmp_path / "run"))
    (data / "train" / "empty").mkdir()
    assert "empty" in one_line_error(capsys, flags(data, tmp_path / "run"))
    for name in ("class1", "class2", "empty"):
        shutil.rmtree(data / "train" / name)
    assert "one class" in one_line_error(capsys, flags(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_what_the_retrain_lacks_is_said_before_the_search(folder, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    (data / "test" / "class0").rename(data / "test" / "other")
    assert "other" in one_line_error(capsys, flags(data, tmp_path / "run", "--retrain"))
    shutil.rmtree(data / "test")
    assert "no folder" in one_line_error(capsys, flags(data, tmp_path / "run", "--retrain"))
    assert not (tmp_path / "run").exists()


def test_search_never_reads_the_test_images(folder, searched, tmp_path):
    shutil.copytree(folder / "train", tmp_path / "data" / "train")
    assert train.main(flags(tmp_path / "data", tmp_path / "run")) == 0
    assert_equal_runs(searched, tmp_path / "run")


def test_without_torchvision_one_line_says_so(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    assert "torchvision" in one_line_error(capsys, flags(folder, tmp_path / "run"))


def test_errors_carry_the_name_of_the_program_that_was_started():
    for name, words in (("rome.py", ()), ("train.py", ("search",))):
        status, _, error = process(HERE / name, *words, "--epochs", "x")
        assert status == 2 and error.startswith(f"{name}: error: --epochs must be")


# --- the way in -------------------------------------------------------------------------------------------------------


def test_random_cells_and_a_linear_model_stand_beside_the_found_cell(folder, searched, tmp_path, capsys):
    out, words = tmp_path / "run", ["--baseline", 2, *RETRAIN]
    shutil.copytree(searched, out)  # only the random cells are left to train
    assert train.main([*flags(folder, out, *words), "--resume"]) == 0
    found, random, linear = re.findall(r"^  (\w+) .*?([\d.]+\.\d\d)", capsys.readouterr().out, re.MULTILINE)[-3:]
    accuracies = [float(rows_of(out / f"random-{number}")[-1]["accuracy_test"]) for number in (1, 2)]
    assert (found[0], random[0], linear[0]) == ("found", "random", "linear")
    assert float(random[1]) == pytest.approx(sum(accuracies) / 2, abs=0.01)
    cells = [genotypes.load(out / f"random-{number}" / "genotype.json", "darts") for number in (1, 2)]
    assert cells[0] != cells[1]
    before = (out / "random-1" / "last.pt").read_bytes()
    assert train.main([*flags(folder, out, *words), "--resume"]) == 0
    assert (out / "random-1" / "last.pt").read_bytes() == before


def test_the_printed_command_does_the_retrain_that_retrain_would_have_done(folder, tmp_path):
    out = tmp_path / "a run"
    assert train.main(flags(folder, out, "--workers", 0, "--epochs", 1)) == 0
    log = (out / "log.txt").read_text()
    assert re.search(r"20 cells, 36 channels, 600 epochs, [\d.]+ M parameters and .* about [\d.]+ (h|min) at the", log)
    python, script, stage, *words = shlex.split(re.search(r"next: (.*)", log)[1])
    assert (python, Path(script).resolve(), stage) == ("python", HERE / "train.py", "retrain")
    settings = json.loads((out / "config.json").read_text())["settings"]
    wanted = train.configure("retrain", train.retrain_settings(settings, out / "genotype.json"))
    assert train.configure("retrain", {}, words) == wanted


def test_a_users_own_space_and_operation_go_all_the_way(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import rome\nfrom torch import nn\n"
        "def grouped(c, stride, affine):\n"
        "    conv = nn.Conv2d(c, c, 3, stride, 1, groups=2, bias=False)\n"
        "    return rome.Op(conv, rome.Norm(c, affine), rectified=True)\n"
        "rome.PRIMITIVES['grouped'] = grouped\n"
        "rows = (('grouped', 'skip_connect'),) * 5\n"
        "SMALL = rome.Space('darts', (2, 3), (2, 2), {'normal': rows, 'reduce': rows})\n"
    )
    monkeypatch.setattr(rome, "SPACES", dict(rome.SPACES))
    monkeypatch.delitem(rome.PRIMITIVES, "grouped", raising=False)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    try:
        assert train.main(flags(folder, out, "--space", "mine.py:SMALL", *RETRAIN)) == 0
        cell = genotypes.load(out / "genotype.json")
        assert len(cell.normal) == 4 and (out / "cells.svg").exists()
        assert train.main(["search", "--out", str(out), "--resume"]) == 0
        capsys.readouterr()
        assert train.main(["predict", str(out), str(folder / "test" / "class1" / "0.png")]) == 0
        assert re.fullmatch(r".*0\.png  class\d  [01]\.\d{4}\n", capsys.readouterr().out)
    finally:
        rome.PRIMITIVES.pop("grouped", None)


def test_predict_uses_the_statistics_of_the_checkpoint(folder, searched, capsys):
    files = sorted((folder / "test").glob("*/*.png"))
    assert train.main(["predict", str(searched), *map(str, files)]) == 0
    predicted = [line.split() for line in capsys.readouterr().out.splitlines()]
    network, state = train.load_network(searched / "retrain" / "last.pt")
    mean, std = torch.tensor(state["statistics"])
    pixels = torch.stack([train.read_image(str(file), 16) for file in files]).float() / 255
    p, labels = network(((pixels - mean) / std).permute(0, 3, 1, 2))[0].softmax(1).max(1)
    assert [name for _, name, _ in predicted] == [state["classes"][label] for label in labels]
    assert [float(probability) for *_, probability in predicted] == pytest.approx(p.tolist(), abs=1e-4)
    right = sum(file.parent.name == name for file, (_, name, _) in zip(files, predicted))
    assert 100 * right / len(files) == pytest.approx(state["rows"][-1]["accuracy_test"])


def test_progress_is_a_line_on_a_terminal_and_quiet_prints_nothing(folder, tmp_path, capsys, monkeypatch):
    texts = {}
    for name, terminal, more in (("piped", False, ()), ("terminal", True, ()), ("quiet", True, ("--quiet",))):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        assert train.main(flags(folder, tmp_path / name, *more)) == 0
        texts[name] = capsys.readouterr()
    assert texts["quiet"] == ("", "")
    assert "\r" not in texts["piped"].out
    assert len(re.findall(r"^epoch \d/2: .* left$", texts["piped"].out, re.MULTILINE)) == 2
    assert re.search(r"\r\033\[Kepoch 1/2, step 2/3, \d+ s left\r\033\[K", texts["terminal"].out)


@pytest.mark.parametrize("stage", ["search", "retrain"])
def test_help_says_the_defaults(stage, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert train.main([stage, "--help"]) == 0
    text = capsys.readouterr().out
    for name, value in train.protocol(train.SEARCH if stage == "search" else train.RETRAIN, "darts", "cifar10").items():
        shown = re.search(rf"^  --{name.replace('_', '-')}\b.*\n?(?:    .*\n)*", text, re.MULTILINE)[0]
        assert f"[{value}]" in shown or value is False


@pytest.mark.parametrize("space", list(rome.SPACES))
def test_every_space_searches_derives_and_retrains(space, folder, tmp_path):
    cells, out = 1 if space == "nb201" else 3, tmp_path / "run"
    more = ["--space", space, *RETRAIN, "--retrain-epochs", 1, "--epochs", 1, "--cells", cells, "--quiet"]
    assert train.main(flags(folder, out, *more, "--retrain-cells", cells)) == 0
    rome.Supernet(space, 2, cells, 3).architecture(genotypes.load(out / "genotype.json", space))
    assert (out / "retrain" / "metrics.csv").exists()


@pytest.mark.parametrize(
    "more", ["--method gdas", "--method rome-v1", "--amp", "--recompute", "--warmup 1", "--derive exact"]
)
def test_variants_of_the_search_run(more, folder, tmp_path):
    assert train.main(flags(folder, tmp_path / "run", "--epochs", 1, "--steps-per-epoch", 2, *more.split())) == 0


# --- data -------------------------------------------------------------------------------------------------------------


def stream_of(pixels, role="weights", **config):
    labels = torch.arange(len(pixels)) % 3
    config = dict(seed=0, batch_size=4, stem="small", cutout=0, workers=0, image_size=pixels.shape[1]) | config
    images = train.Images(pixels, labels, [], ["a", "b", "c"])
    return train.Stream(images, torch.arange(len(pixels)), config, role, CPU, ((0.0,) * 3, (1.0,) * 3))


@pytest.mark.parametrize("size, pad", [(16, 2), (32, 4)])
def test_augmentation_is_crop_flip_and_cutout(size, pad):
    """Every augmented image is a crop or flipped crop of its zero-padded original, outside the erased square."""
    pixels = torch.randint(1, 256, (4, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shifts = set()
    for epoch in range(6):
        for images, labels in stream_of(pixels, cutout=4).epoch(epoch):
            for image, label in zip(images, labels, strict=True):
                erased, found = (image == 0).all(0), []
                for number, y, x in itertools.product(range(4), range(2 * pad + 1), range(2 * pad + 1)):
                    padded = torch.nn.functional.pad(pixels[number].permute(2, 0, 1) / 255, (pad,) * 4)
                    crop = padded[:, y : y + size, x : x + size]
                    for candidate in (crop, crop.flip(2)):
                        difference = (candidate != image).any(0)
                        if not (difference & ~erased).any() and difference.sum() <= 16:
                            found.append(number % 3 == label)
                            shifts |= {y, x}
                assert any(found)
    assert min(shifts) == 0 and max(shifts) == 2 * pad


def test_a_stream_repeats_itself_and_can_start_anywhere():
    pixels = torch.randint(0, 256, (10, 8, 8, 3), dtype=torch.uint8)
    whole, rest = list(stream_of(pixels).epoch(3)), list(stream_of(pixels).epoch(3, start=1))
    assert [len(labels) for _, labels in whole] == [4, 4, 2]
    for (images, labels), (images_2, labels_2) in zip(whole[1:], rest, strict=True):
        assert torch.equal(images, images_2) and torch.equal(labels, labels_2)
    assert not torch.equal(whole[0][0], next(iter(stream_of(pixels).epoch(4)))[0])


def test_evaluation_sees_every_image_once_in_mixed_batches():
    pixels = torch.arange(25, dtype=torch.uint8).view(25, 1, 1, 1).expand(25, 4, 4, 3).contiguous()
    stream = stream_of(pixels, role="test", batch_size=8)
    stream.labels = torch.arange(25) // 10  # class by class, as folders are read
    batches = list(stream.epoch(0))
    assert [len(labels) for _, labels in batches] == [8, 8, 9]  # a single image is too few for batch norm
    assert all(len(labels.unique()) > 1 for _, labels in batches)
    seen = torch.cat([(images[:, 0, 0, 0] * 255).round() for images, _ in batches])
    assert sorted(seen.tolist()) == list(range(25))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_data_of_torchvision_becomes_pixels_and_labels(name, monkeypatch):
    """In place of the archives, which need a download: objects with torchvision's documented attributes."""
    import numpy
    import torchvision

    pixels = numpy.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=numpy.uint8)

    class Stub:
        classes = [str(label) for label in range(10)]
        data, targets, labels = pixels, [0, 1, 2, 3, 4, 5], numpy.arange(6)

        def __init__(self, *arguments, download):
            assert arguments == ("data", "test" if name == "svhn" else False)

    if name == "svhn":
        Stub.data = pixels.transpose(0, 3, 1, 2)
    monkeypatch.setattr(torchvision.datasets, name.upper(), Stub)
    images = train.load_data(dict(dataset=name, data="data", image_size=32), "test")
    assert torch.equal(images.pixels, torch.from_numpy(pixels)) and images.labels.tolist() == list(range(6))
    config = dict(seed=0, batch_size=4, stem="small", cutout=0, workers=0, image_size=32)
    statistics = train.statistics_of(images, dict(dataset=name))
    batch, _ = next(train.Stream(images, torch.arange(6), config, "test", CPU, statistics).epoch(0))
    assert batch.shape == (4, 3, 32, 32) and batch.is_contiguous(memory_format=torch.channels_last)


def test_halves_are_disjoint_and_stratified():
    labels = torch.randint(0, 5, (1001,), generator=torch.Generator().manual_seed(0))
    weights, architecture = train.halves(labels, 0.5, seed=3)
    assert not set(weights.tolist()) & set(architecture.tolist())
    for label in range(5):
        count = (labels == label).sum()
        assert abs((labels[weights] == label).sum() - count / 2) <= 1
        assert abs((labels[architecture] == label).sum() - count / 2) <= 1
    assert torch.equal(weights, train.halves(labels, 0.5, seed=3)[0])
    assert not torch.equal(weights, train.halves(labels, 0.5, seed=4)[0])
    assert all(95 <= len(part) <= 105 for part in train.halves(labels, 0.1, seed=0))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_neither_the_cache_nor_the_number_of_workers_changes_a_bit(folder, tmp_path):
    """In S4, whose noise op draws from torch's default generator."""
    for name, workers, cache in (("cached", 0, 4), ("0", 0, 0), ("3", 3, 0)):
        more = ("--space", "s4", "--workers", workers, "--cache-gib", cache, "--quiet")
        assert train.main(flags(folder, tmp_path / name, *more)) == 0
    assert_equal_runs(tmp_path / "cached", tmp_path / "0")
    assert_equal_runs(tmp_path / "cached", tmp_path / "3")


def test_statistics_are_those_of_the_training_images_and_stay(folder, searched, tmp_path):
    config = train.configure("search", dict(dataset="folder", data=folder, image_size=16))
    values = train.load_data(config, "train").pixels.double().view(-1, 3) / 255
    mean, std = torch.load(searched / "last.pt", weights_only=True)["statistics"]
    assert mean == pytest.approx(values.mean(0).tolist()) and std == pytest.approx(values.std(0, correction=0).tolist())
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(folder, data)
    shutil.copytree(searched, out)
    (out / "last.pt").unlink()  # previous.pt is of the first epoch
    for file in (data / "train").glob("*/*.png"):
        Image.new("RGB", (16, 16)).save(file)
    assert train.main(flags(data, out, "--resume", "--no-retrain")) == 0
    assert tuple(torch.load(out / "last.pt", weights_only=True)["statistics"]) == (mean, std)


@pytest.mark.parametrize("mode, size, name", [
    ("L", (5, 9), "a.png"), ("RGBA", (40, 16), "a.png"), ("CMYK", (16, 16), "a.tif"), ("P", (1, 1), "a.gif"),
    ("RGB", (400, 30), "a.png"),
])  # fmt: skip
def test_images_of_any_kind_and_size_are_read(mode, size, name, tmp_path):
    Image.new(mode, size, 0).save(tmp_path / name)
    image = train.read_image(str(tmp_path / name), 16)
    assert image.shape == (16, 16, 3) and image.dtype == torch.uint8


def test_gif_files_of_a_folder_are_read(folder, tmp_path):
    for file in folder.glob("*/*/*.png"):
        place = tmp_path / file.relative_to(folder).with_suffix(".GIF" if file.stem == "1" else ".gif")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).save(place, format="GIF")
    config = train.configure("search", dict(dataset="folder", data=tmp_path, image_size=16))
    assert len(train.load_data(config, "train").labels) == 36


def test_images_of_16_bits_keep_their_shades(tmp_path):
    Image.frombytes("I;16", (16, 16), b"".join(bytes((0, shade)) for shade in range(256))).save(tmp_path / "a.png")
    assert train.read_image(str(tmp_path / "a.png"), 16)[..., 0].flatten().tolist() == list(range(256))


def test_an_image_that_would_run_a_program_or_fill_the_memory_is_refused(tmp_path):
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    Image.new("1", (10000, 9000)).save(tmp_path / "large.png")
    for name in ("script.png", "large.png"):
        with warnings.catch_warnings(), pytest.raises(ValueError, match=f"{name} is no readable image"):
            warnings.simplefilter("ignore")
            train.read_image(str(tmp_path / name), 16)


def test_imagenet_searches_a_tenth_twice_and_retrains(tmp_path, capsys):
    for label, number in itertools.product(range(20), range(11)):
        path = tmp_path / "data" / ("train" if number else "val") / f"n{label:08d}"
        path.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + number, 50), (12 * label, 255 - 12 * label, 100)).save(path / f"{number}.JPEG")
    words = f"search --dataset imagenet --data {tmp_path / 'data'} --image-size 64 --channels 2 --cells 3 --epochs 1"
    words += " --batch-size 10 --samples 1 --workers 1 --retrain --retrain-channels 2 --retrain-cells 3"
    assert train.main([*words.split(), "--retrain-epochs", "1", "--out", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert "(20 classes, 20 images for the weights, 20 for alpha and beta)" in text
    assert "(20 classes, 200 training and 20 test images)" in text


# --- protocols --------------------------------------------------------------------------------------------------------


def test_protocols_follow_the_published_code():
    assert train.protocol(train.RETRAIN, "nb201", "cifar10")["clip"] == 0  # NAS-Bench-201 does not clip
    folder = dict(dataset="folder", stem="imagenet")
    retrain, imagenet = (train.configure("retrain", dict(genotype="GDAS_V1") | more)
                         for more in (folder, dict(dataset="imagenet")))  # fmt: skip
    for name in train.RETRAIN["default"]:
        assert retrain[name] == imagenet[name]
    search, imagenet = train.configure("search", folder), train.configure("search", dict(dataset="imagenet"))
    assert (search["batch_size"], search["samples"], search["fraction"]) == (256, 3, 0.5)
    assert (imagenet["batch_size"], imagenet["samples"], imagenet["fraction"]) == (256, 3, 0.1)
    assert search["image_size"] == imagenet["image_size"] == 224


def test_schedules_follow_the_published_code():
    config = dict(lr=0.025, lr_min=0.001, epochs=50)
    rates = [train.learning_rate(config, epoch) for epoch in range(50)]
    assert rates[0] == 0.025 and rates[1] == pytest.approx(2.4976e-2, abs=1e-6)  # as an R-DARTS log prints them
    linear = dict(lr=0.5, lr_min=0.0, epochs=250, schedule="linear", lr_warmup=5)
    rates = [train.learning_rate(linear, epoch) for epoch in range(250)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert rates[5] == pytest.approx(0.5 * (245 - 5) / 245)
    assert rates[245:] == pytest.approx([0.5 * left / (245 * 5) for left in (5, 4, 3, 2, 1)])
    assert [train.ramp(10.0, 0.1, epoch, 3) for epoch in range(3)] == pytest.approx([10, 5.05, 0.1])
    assert train.ramp(10.0, 0.1, 0, 1) == 10.0


@pytest.mark.parametrize("name, dataset, parameters, operations", [
    ("DARTS_V2", "cifar10", 3_349_342, 528.36e6), ("DARTS_V2", "imagenet", 4_718_752, 529.91e6),
    ("PC_DARTS_image", "imagenet", 5_342_464, 581.63e6),
])  # fmt: skip
def test_parameters_and_multiply_adds_are_the_published_ones(name, dataset, parameters, operations):
    config = train.configure("retrain", dict(genotype=name, dataset=dataset))
    network = train.build_network(genotypes.load(name), config, 1000 if dataset == "imagenet" else 10)
    counted = train.size_of(network, config["image_size"])
    assert counted[0] == parameters
    assert counted[1] == pytest.approx(operations, abs=0.01e6)


def test_default_folders_tell_apart_what_differs_from_the_protocol():
    def out(**given):
        return train.configure("search", given)["out"]

    assert out() == "runs/darts-cifar10-rome-v2-s0"
    assert out(space="s2", dataset="svhn", method="gdas", seed=3) == "runs/s2-svhn-gdas-s3"
    assert out(samples=4, equal_passes=True) == "runs/darts-cifar10-rome-v2-k4-e87-s0"
    assert out(method="gdas", samples_theta=7) == "runs/darts-cifar10-gdas-k1.7-s0"
    retrain = train.configure("retrain", dict(genotype="GDAS_V1", dataset="cifar100", seed=2))
    assert retrain["out"] == "runs/retrain-GDAS_V1-cifar100-s2"


def test_flags_come_before_stored_settings_before_quick_before_the_protocol():
    assert train.configure("search", {})["epochs"] == 50
    assert train.configure("search", dict(quick=True))["epochs"] == train.QUICK["search"]["epochs"]
    assert train.configure("search", dict(quick=True, epochs=7))["epochs"] == 7
    config = train.configure("search", dict(quick=True, epochs=7, amp=True), ["--epochs", "8", "--no-amp"])
    assert (config["epochs"], config["amp"], config["dataset"]) == (8, False, "shapes")
    whole = train.configure("search", dict(samples=4))
    assert train.configure("search", whole) == whole


def test_equal_passes_keeps_k_times_epochs():
    epochs = {k: train.configure("search", dict(samples=k, equal_passes=True))["epochs"] for k in (1, 4, 7, 10)}
    assert epochs == {1: 350, 4: 87, 7: 50, 10: 35}  # the paper's Table 5


def test_a_retrain_follows_the_space_that_the_genotype_file_names(tmp_path):
    path = tmp_path / "genotype.json"
    genotypes.save(genotypes.PUBLISHED["GDAS_V1"], path, space="s2")
    assert train.configure("retrain", dict(genotype=str(path)))["channels"] == 16
    assert train.configure("retrain", dict(genotype=str(path), space="darts"))["channels"] == 36
    assert train.configure("retrain", dict(genotype=DEAD_NODES))["space"] == "nb201"
    assert train.configure("retrain", dict(genotype=ONE_SHOT))["space"] == "1shot1-1"
