"""A long run whose memory and open files stay flat: many epochs of tiny data through `train.py search`.

Claims, of the resident memory and the open file descriptors of the process and its workers, read every few seconds: the
slope after the warm-up (the first fifth) is at most 16 MiB an hour of memory, most of it the rows of metrics.csv that a
run keeps, and no descriptor more is open at the end than after the warm-up.

    python bench/soak.py                       half an hour, images in memory
    python bench/soak.py --workers 1           the same, images read by a worker
    python bench/soak.py --quick
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import HERE, arguments, report, row
from PIL import Image


def make_images(folder: Path, train: int = 8, test: int = 4, classes: int = 2, size: int = 8) -> Path:
    """Noise images around a colour of their class, in FOLDER/{train,test}/CLASS/; the numbers are per class."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", train), ("test", test)):
        for label in range(classes):
            path = folder / split / f"class{label}"
            path.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 256, (size, size, 3), generator=generator, dtype=torch.uint8)
                pixels[..., label % 3] = 200
                Image.fromarray(pixels.numpy()).save(path / f"{number}.png")
    return folder


def family(pid: int) -> list[int]:
    """The process and its descendants."""
    pids = [pid]
    for parent in pids:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            pids += [int(word) for word in task.read_text().split()]
    return pids


def reading(pid: int) -> tuple[float, int]:
    """Resident MiB and open file descriptors of the process and its workers."""
    pages, descriptors = 0, 0
    for member in family(pid):
        pages += int(Path(f"/proc/{member}/statm").read_text().split()[1])
        descriptors += len(os.listdir(f"/proc/{member}/fd"))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, descriptors


def slope(times: list[float], values: list[float]) -> float:
    """Least-squares slope, per hour."""
    t, v = torch.tensor(times, dtype=torch.float64) / 3600, torch.tensor(values, dtype=torch.float64)
    t = t - t.mean()
    return (t @ v / (t @ t)).item()


def main() -> int:
    options = arguments(
        __doc__,
        minutes=dict(type=float, help="how long (30; 0.1 with --quick)"),
        workers=dict(type=int, default=0, help="processes that read the images; 0: they are in memory"),
    )
    minutes = options.minutes or (0.1 if options.quick else 30.0)
    every, folder = minutes * 60 / 300, Path(tempfile.mkdtemp())
    make_images(folder / "data")
    words = f"search --dataset folder --data {folder / 'data'} --image-size 8 --cells 1 --channels 2 --batch-size 4"
    words += f" --samples 1 --epochs 1000000 --steps-per-epoch {4 if options.quick else 20} --save-minutes 0.01"
    words += f" --device cpu --quiet --out {folder / 'run'}"
    words += f" --cache-gib 0 --workers {options.workers}" if options.workers else ""
    process = subprocess.Popen(
        [sys.executable, HERE.parent / "train.py", *words.split()], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    metrics = folder / "run" / "metrics.csv"
    while not metrics.exists() and process.poll() is None:
        time.sleep(0.1)
    times, memory, files, start = [], [], [], time.monotonic()
    while time.monotonic() - start < 60 * minutes and process.poll() is None:
        times.append(time.monotonic() - start)
        resident, descriptors = reading(process.pid)
        memory.append(resident)
        files.append(descriptors)
        time.sleep(every)
    process.send_signal(signal.SIGTERM)
    status, epochs = process.wait(60), len(metrics.read_text().splitlines()) - 1
    left = [path.name for path in (folder / "run").glob(".*")]
    shutil.rmtree(folder)
    # A file is open for a moment while it is written or read: the least of a stretch is what stays open.
    warm, stretch = len(times) // 5, max(1, len(times) // 10)
    opened = min(files[-stretch:]) - min(files[warm : warm + stretch])
    rows = [
        row("resident memory, slope after the warm-up", slope(times[warm:], memory[warm:]), "MiB/hour",
            None if options.quick else 16.0),
        row("resident memory, last tenth less the tenth after the warm-up",
            sum(memory[-stretch:]) / stretch - sum(memory[warm : warm + stretch]) / stretch, "MiB", 16.0),
        row("resident memory", memory[warm:], "MiB"),
        row("open file descriptors, more at the end than after the warm-up", opened, "", 0),
        row("open file descriptors", files[warm:], ""),
        row("temporary files left", len(left), "", 0),
        row("exit status after SIGTERM, less 143", abs(status - 143), "", 0),
        row("epochs", epochs, ""),
    ]  # fmt: skip
    name = f"soak-workers{options.workers}" if options.workers else "soak"
    settings = dict(minutes=minutes, readings=len(times), workers=options.workers)
    report(name, options, rows, **settings, memory=[round(m, 1) for m in memory[:: max(1, len(memory) // 60)]])
    return int(any(r["passed"] is False for r in rows))


if __name__ == "__main__":
    sys.exit(main())
