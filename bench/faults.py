"""Kills runs at random moments, resumes them, and compares their end with a run that nothing happened to.

A search and a retrain are killed again and again: by SIGKILL, SIGTERM or SIGINT at a random time, or by SIGKILL in the
middle of a write. Each time the same command goes on with --resume, and the last one of a round ends by itself. Claims:
genotype.json, metrics.csv without times, and every number of last.pt are those of the undisturbed run; SIGTERM and
SIGINT end a run with their status and one line; no temporary file remains.

A run is a fork of this process, in which torch is loaded already. The suite tests single faults: a full disk, broken
checkpoints, NaN.

    python bench/faults.py                     about 20 minutes
    python bench/faults.py --quick
"""

import collections
import csv
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import parser, report, row
from PIL import Image

import train

TINY = "--dataset folder --image-size 8 --cells 3 --channels 2 --batch-size 4 --device cpu --save-minutes 0"
STAGES = {  # name -> command
    "search": f"search {TINY} --samples 2 --epochs 3",
    "search, images read by a worker": f"search {TINY} --samples 2 --epochs 3 --cache-gib 0 --workers 1",
    "retrain": f"retrain {TINY} --genotype GDAS_V1 --epochs 3",
}
TIMES = ("images_per_second", "seconds", "peak_mib")


def make_images(folder: Path) -> Path:
    """Noise images of two classes in FOLDER/{train,test}/CLASS/."""
    generator = torch.Generator().manual_seed(0)
    for split, label, number in ((s, c, n) for s in ("train", "test") for c in (0, 1) for n in range(12)):
        pixels = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        pixels[..., label] = 200
        path = folder / split / f"class{label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(path)
    return folder


# ----------------------------------------------------------------------------------------------------------------------
# Runs


def launch(words: list[str], errors: Path, die_at: int | None = None):
    """Starts the command in a fork of this process."""
    process = multiprocessing.get_context("fork").Process(target=main_of_fork, args=(words, errors, die_at))
    process.start()
    return process


def main_of_fork(words: list[str], errors: Path, die_at: int | None) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    if die_at is not None:
        os.fsync, os.replace = deadly(os.fsync, die_at), deadly(os.replace, die_at)
    status = train.main(words)
    sys.stderr.flush()
    os._exit(status)


def deadly(function, number: int):
    """The function, before whose number-th call this process kills itself: a file is written, but not in its place."""
    calls = []

    def call(*args):
        calls.append(args)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)

    return call


def contents(out: Path) -> list:
    """What must not depend on what happened to the run."""

    def timeless(rows) -> list[dict]:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]

    with open(out / "metrics.csv") as file:
        metrics = timeless(csv.DictReader(file))
    state = train.load_checkpoint(out / "last.pt")
    state["rows"] = timeless(state["rows"])
    state["settings"] = {name: value for name, value in state["settings"].items() if name not in train.FREE}
    return [(out / "genotype.json").read_bytes(), metrics, state]


def same(a, b) -> bool:
    """Equal in type, order and every bit of every tensor."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


# ----------------------------------------------------------------------------------------------------------------------
# Attacks


def attack(kind: str, words: list[str], errors: Path, dice: random.Random, seconds: float) -> tuple[bool, str]:
    """One launch that ends badly. Returns whether it was hit before its end, and what was wrong, or ""."""
    process = launch(words, errors, dice.randint(1, 12) if kind == "SIGKILL in a write" else None)
    if kind != "SIGKILL in a write":
        process.join(dice.uniform(0.02, 0.4 * seconds))
        process.is_alive() and os.kill(process.pid, signal.Signals[kind])
    process.join(120)
    status, lines = process.exitcode, errors.read_text()
    if status == 0:
        return False, ""
    number = signal.Signals[kind.split()[0]]
    good = status == -number or (status == 128 + number and lines.count("\n") == 1)
    return True, "" if good else f"{kind}: status {status}: {lines[-1500:]}"


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=10, help="runs that are attacked, per stage (10)")
    options = made.parse_args()
    torch.set_num_threads(1)
    dice, place, rows, wrong = random.Random(0), Path(tempfile.mkdtemp()), [], []
    kinds, rounds = ("SIGKILL", "SIGKILL in a write", "SIGTERM", "SIGINT"), 1 if options.quick else options.rounds
    data, errors = make_images(place / "data"), place / "errors"
    for name, flags in list(STAGES.items())[: 1 if options.quick else None]:
        whole, out = place / f"{name} whole", place / name
        words = [*flags.split(), "--data", str(data), "--resume", "--out"]
        begin = time.monotonic()
        launch([*words, str(whole)], errors).join()
        seconds, hits, differ = time.monotonic() - begin, collections.Counter(), 0
        expected = contents(whole)
        for _ in range(rounds):
            for kind in dice.sample(kinds, 4) + dice.choices(kinds, k=2):
                hit, text = attack(kind, [*words, str(out)], errors, dice, seconds)
                hits[kind] += hit
                wrong += [f"{name}: {text}"] if text else []
            process = launch([*words, str(out)], errors)
            process.join()
            ended = process.exitcode == 0 and not list(out.glob(".*"))
            differ += not (ended and same(expected, contents(out)))
            shutil.rmtree(out)
        rows += [row(f"{name}: {kind}", hits[kind]) for kind in kinds]
        rows.append(row(f"{name}: of {rounds} attacked runs, ended otherwise", differ, target=0))
    shutil.rmtree(place)
    rows.append(row("attacks that ended otherwise than promised", len(wrong), target=0))
    print("\n".join(wrong))
    return report("faults", options, rows)


if __name__ == "__main__":
    sys.exit(main())
