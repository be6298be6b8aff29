"""Kills and breaks runs at random moments, resumes them, and compares the end with an uninterrupted run, bit for bit.

A run (a search, a retrain, one after the other, two gloo processes) is attacked again and again with a checkpoint at
every step, resumed each time by the same command and --resume, and at last left to end. Claims: `genotype.json`,
`metrics.csv` without the columns of time, speed and memory, and all of `last.pt` are those of the run that nothing
happened to; every attack ends as README.md says (status, one line); no temporary file remains.

To make a kill cheap, a run is a fork of this process, in which torch is loaded already; `--real` adds runs that are
processes of their own, and torchrun.

    python bench/faults.py --real              three times those of --rounds 3, which takes ten minutes
    python bench/faults.py --quick
"""

import contextlib
import csv
import errno
import itertools
import math
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes of their own, as of this one: other bits otherwise

import torch
import torchvision  # noqa: F401  loaded here for the forks
from common import HERE, arguments, report, row
from soak import family, make_images

import genotypes
import rome
import train

TIMES = ("images_per_second", "seconds", "peak_mib")
TINY = "--dataset folder --image-size 8 --cells 3 --channels 2 --batch-size 4 --device cpu --save-minutes 0"
SEARCH, RETRAIN = f"search {TINY} --samples 2 --epochs 3", f"retrain {TINY} --genotype GDAS_V1 --epochs 3"
STAGES = {  # name -> flags, processes
    "search": (SEARCH, 1),
    "search, images read by a worker": (f"{SEARCH} --space s4 --cache-gib 0 --workers 1", 1),
    "retrain": (RETRAIN, 1),
    "search and retrain": (
        f"{SEARCH} --epochs 2 --retrain --retrain-epochs 2 --retrain-cells 3 --retrain-channels 2",
        1,
    ),
    "search, two processes": (SEARCH, 2),
    "retrain, two processes": (RETRAIN, 2),
}
MOMENTS = ("half written", "before its sync", "before a rename", "after a rename")


# ----------------------------------------------------------------------------------------------------------------------
# Runs


class Run:
    """A running command: forks of this process, one a rank, or a process of its own, under torchrun for two ranks."""

    def __init__(self, words: list[str], folder: Path, ranks: int, arm=None, real: bool = False):
        self.hung, self.spent = False, 0.0  # spent: seconds of the last wait
        self.stderr, self.status, self.pids = [folder / f"stderr{rank}" for rank in range(1 if real else ranks)], {}, []
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        for rank, path in enumerate(self.stderr):
            if real:
                torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", str(port)]
                command = [sys.executable, *(torchrun if ranks > 1 else []), str(HERE.parent / "train.py"), *words]
                with open(path, "w") as file:
                    self.pids.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file).pid)
                continue
            self.pids.append(os.fork())
            if self.pids[-1]:
                continue
            status = 99
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
                if ranks > 1:
                    place = dict(
                        RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=ranks, MASTER_ADDR="localhost", MASTER_PORT=port
                    )
                    os.environ |= {name: str(value) for name, value in place.items()}
                if arm:
                    arm()
                status = train.main(words)
            except KeyboardInterrupt:
                status = 130
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)

    def everyone(self) -> list[int]:
        return [member for pid in self.pids if pid not in self.status for member in family(pid)]

    def send(self, number: int, pids: list[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self, seconds: float) -> bool:
        """Whether all have ended within the time; that in which this process was stopped itself does not count."""
        spent, last = 0.0, time.monotonic()
        while True:
            now = time.monotonic()
            spent, last = spent + min(now - last, 0.1), now
            self.spent = spent
            for pid in self.pids:
                if pid not in self.status:
                    found, status = os.waitpid(pid, os.WNOHANG)
                    if found:
                        self.status[pid] = os.waitstatus_to_exitcode(status)
            if len(self.status) == len(self.pids):
                return True
            if spent > seconds:
                return False
            time.sleep(0.002)

    def finish(self, seconds: float) -> list[int]:
        """The exit statuses; whoever has not ended by then is killed."""
        if not self.wait(seconds):
            self.hung = True
            self.send(signal.SIGKILL, self.everyone())
            self.wait(60)
        return [self.status[pid] for pid in self.pids]

    def errors(self) -> list[str]:
        return [path.read_text() for path in self.stderr]


# ----------------------------------------------------------------------------------------------------------------------
# Traps: what happens inside the run's own process


def trap(moment: str, number: int, action, forever: bool = False):
    """Arms a fork: `action` at the number-th time that a write comes to the moment."""
    count = itertools.count(1)

    def due() -> bool:
        turn = next(count)
        return turn >= number if forever else turn == number

    class File:
        def __init__(self, *arguments):
            self.file = open(*arguments)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if due():
                self.file.write(data[: len(data) // 2])
                self.file.flush()
                action()
            self.file.write(data)

    def arm():
        fsync, replace = os.fsync, os.replace

        def before(function):
            def patched(*arguments):
                if due():
                    action()
                return function(*arguments)

            return patched

        def after(*arguments):
            replace(*arguments)
            if due():
                action()

        if moment == "half written":
            genotypes.open = lambda path, mode: File(path, mode) if mode == "wb" else open(path, mode)
        elif moment == "at its opening":
            genotypes.open = train.open = before(open)
        elif moment == "before its sync":
            os.fsync = before(fsync)
        else:
            os.replace = before(replace) if moment == "before a rename" else after

    return arm


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def failing(number: int):
    def action():
        raise OSError(number, os.strerror(number))

    return action


def largest_file(size: int):
    """The kernel refuses to write past the size: a disk that is full in the middle of a file."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def not_a_number(step: int):
    """The step-th loss of the weights is NaN."""

    def arm():
        count, accumulate, clip = itertools.count(1), rome.Architect._accumulate, train.nn.utils.clip_grad_norm_

        def patched(self, role, stem, labels, archs):
            if role == "weights" and next(count) == step:
                for s in stem:
                    s.data.fill_(math.nan)
            return accumulate(self, role, stem, labels, archs)

        def clipped(parameters, *rest):
            norm = clip(parameters, *rest)
            return norm * math.nan if next(count) == step else norm

        rome.Architect._accumulate = patched
        train.nn.utils.clip_grad_norm_ = clipped

    return arm


# ----------------------------------------------------------------------------------------------------------------------
# What a run leaves


def contents(out: Path) -> list:
    """All that must not depend on what happened to the run: of the search and of the retrain in it."""
    found = []
    for folder in (out, out / "retrain"):
        if not folder.exists():
            continue
        with open(folder / "metrics.csv") as file:
            rows = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
        state = train.load_checkpoint(folder / "last.pt")
        state["rows"] = [{k: v for k, v in row.items() if k not in TIMES} for row in state["rows"]]
        state["settings"] = {k: v for k, v in state["settings"].items() if k not in train.FREE}
        found += [rows, state, (folder / "genotype.json").read_bytes()]
    return found


def difference(a, b, where: str = "") -> str:
    """The first place where two values differ, in type, order or a bit; empty where there is none."""
    if type(a) is not type(b):
        return f"{where}: {type(a).__name__}, {type(b).__name__}"
    if isinstance(a, torch.Tensor):
        return "" if a.dtype == b.dtype and torch.equal(a, b) else f"{where}: a tensor"
    if isinstance(a, dict):
        a, b = list(a.items()), list(b.items())
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return f"{where}: {len(a)} and {len(b)} entries"
        return next(filter(None, (difference(x, y, f"{where}.{n}") for n, (x, y) in enumerate(zip(a, b)))), "")
    return "" if a == b or (a != a and b != b) else f"{where}: {a!r:.60}, {b!r:.60}"


def left_over(out: Path) -> list[Path]:
    return [path for path in out.rglob(".*") if path.is_file()]


def whole(out: Path) -> set[str]:
    """The checkpoints that are there and whole."""
    found = set()
    for path in (*out.rglob("last.pt"), *out.rglob("previous.pt")):
        with contextlib.suppress(Exception):
            train.load_checkpoint(path)
            found.add(str(path))
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Attacks


class Case:
    """A stage under attack: its command, the run that nothing happened to, and what has been seen."""

    def __init__(self, name: str, words: str, ranks: int, place: Path, dice: random.Random):
        self.name, self.ranks, self.place, self.dice = name, ranks, place, dice
        self.data, self.out, self.words = place / "data", place / "run", [*words.split(), "--data", str(place / "data")]
        place.mkdir()
        make_images(self.data, train=12)
        start = time.monotonic()
        run = self.launch(out=place / "whole")
        assert run.finish(300) == [0] * ranks, run.errors()
        self.seconds, self.expected = time.monotonic() - start, contents(place / "whole")
        self.seen, self.inside, self.wrong, self.slowest, self.differ = Counter(), Counter(), [], Counter(), 0

    def launch(self, arm=None, real: bool = False, out: Path | None = None, more=()) -> Run:
        words = [*self.words, "--out", str(out or self.out), "--resume", *more]
        return Run(words, self.place, self.ranks, arm, real)

    def begin(self, run: Run, real: bool) -> None:
        """Of a process of its own: waits until it has loaded torch and begun, which takes most of the time."""
        log, begun = self.out / "log.txt", time.time()
        while real and not run.wait(0.01) and not (log.exists() and log.stat().st_mtime > begun):
            pass

    def expect(self, kind: str, right: bool, run: Run, note: str = "") -> None:
        if not right or run.hung:
            statuses = [run.status[pid] for pid in run.pids]
            self.wrong.append(f"{self.name}, {kind}: status {statuses} {'hung ' * run.hung}{note} {run.errors()}")

    def one_line(self, run: Run, *statuses: int, text: str = "") -> bool:
        lines = [line for error in run.errors() for line in error.splitlines() if "going on from" not in line]
        return tuple(run.status[pid] for pid in run.pids) == statuses and len(lines) == 1 and text in lines[0]

    def attack(self, kind: str, real: bool = False) -> None:
        """One launch of the run that ends badly; counted unless the run ends before."""
        before, inside = whole(self.out), False
        delay = self.dice.uniform(0.02, 0.45 * self.seconds)
        number, moment = self.dice.randint(1, 12), self.dice.choice(MOMENTS)
        if kind == "SIGKILL inside a write":
            run = self.launch(trap(moment, number, die))
            statuses = run.finish(120)
            if self.ranks > 1 and -9 in statuses:
                right = set(statuses) <= {0, 1, -9}
            else:
                right = statuses[0] in (-9, 0)
            self.expect(kind, right, run, moment)
            inside = True
        elif kind == "SIGKILL":
            run = self.launch(real=real)
            self.begin(run, real)
            run.wait(delay)
            run.send(signal.SIGKILL, run.everyone())
            run.finish(60)
            inside = bool(left_over(self.out))
        elif kind in ("SIGTERM", "SIGINT", "SIGTERM to all"):
            sent = signal.SIGINT if kind == "SIGINT" else signal.SIGTERM
            run = self.launch(real=real)
            self.begin(run, real)
            run.wait(delay)
            run.send(sent, run.everyone() if kind == "SIGTERM to all" else [p for p in run.pids if p not in run.status])
            statuses = run.finish(60)
            self.slowest[kind] = max(self.slowest[kind], run.spent)
            lines = "".join(run.errors())
            if real and self.ranks > 1:  # torchrun has a status and lines of its own
                done = (self.out / "log.txt").read_text().splitlines()[-1].startswith("files:")
                right = "the state is saved" in lines or done  # torchrun alone was still there
            else:  # 1: the other process had heard of the signal before the two met
                right = set(statuses) <= {128 + sent, -sent, 0} | ({1} if "lost the others" in lines else set())
                # Where torch's own handler of a worker's end raises inside a lock, Python notes it and goes on.
                right = right and ("Traceback" not in lines or "Exception ignored in" in lines)
            self.expect(kind, right, run)
        elif kind == "SIGKILL of one process":
            run = self.launch(real=real)
            self.begin(run, True)  # the processes have met
            run.wait(self.dice.uniform(0, 0.3 * self.seconds))
            killed = [p for p in run.everyone() if p not in run.pids][-1:] if real else [self.dice.choice(run.pids)]
            run.send(signal.SIGKILL, killed)
            statuses = run.finish(60)
            self.slowest[kind] = max(self.slowest[kind], run.spent)
            lines, others = "".join(run.errors()), {s for s in statuses if s != -9}
            right = others == {0} or "lost the others" in lines or (real and "the state is saved" in lines)
            right = right and (real or (others <= {0, 1} and "Traceback" not in lines))
            self.expect(kind, right, run)
        elif kind == "disk full":
            arms = [trap(m, number, failing(errno.ENOSPC), True) for m in MOMENTS[:3]]
            if "worker" not in self.name:  # whose shared memory it would bound too
                arms.append(largest_file(self.dice.randrange(100, 60000)))
            run = self.launch(self.dice.choice(arms))
            run.finish(60)
            self.expect(kind, run.status[run.pids[0]] == 0 or self.one_line(run, 2), run)
        elif kind == "folder read-only":
            run = self.launch(trap("at its opening", number, failing(errno.EROFS), True))
            run.finish(60)
            self.expect(kind, run.status[run.pids[0]] == 0 or self.one_line(run, 2, text="Read-only"), run)
        elif kind == "data vanished":
            run, away = self.launch(), self.place / "away"
            run.wait(delay)
            self.data.rename(away)
            statuses = run.finish(60)
            away.rename(self.data)
            self.expect(kind, statuses == [0] or self.one_line(run, 2, text=str(self.data)), run)
        elif kind == "worker killed":
            run = self.launch()
            run.wait(delay)
            run.send(signal.SIGKILL, [pid for pid in run.everyone() if pid not in run.pids][:1])
            statuses = run.finish(60)
            self.expect(kind, statuses == [0] or self.one_line(run, 2, text="images was lost"), run)
        elif kind == "loss not a number":
            run = self.launch(not_a_number(number))
            statuses = run.finish(60)
            self.expect(kind, statuses == [0] or self.one_line(run, 3, text="not finite"), run)
        else:
            run = self.broken(kind)
            if run is None:
                return
        if all(status == 0 for status in run.status.values()):
            return
        kept = whole(self.out)  # a kill between two renames leaves one
        self.expect(kind, before <= kept or (kept and ("SIGKILL" in kind or "broken" in kind)), run, f"{before} {kept}")
        self.seen[kind + (", real processes" if real else "")] += 1
        self.inside[kind] += inside

    def broken(self, kind: str) -> Run | None:
        """A checkpoint that must not be used: broken, of another space, of another version."""
        last, previous = self.out / "last.pt", self.out / "previous.pt"
        if not (last.exists() and previous.exists()):
            return None
        good = {path: path.read_bytes() for path in (last, previous)}

        def break_it(path: Path) -> None:
            data = bytearray(good[path])
            if self.dice.random() < 0.5:
                data = data[: self.dice.randrange(len(data))]
            else:  # in the middle of the weights
                place = self.dice.randrange(len(data) // 4, len(data) // 2)
                data[place : place + 64] = bytes(byte ^ 255 for byte in data[place : place + 64])
            path.write_bytes(data)

        if kind == "last.pt broken":
            break_it(last)
            run = self.launch()
            run.wait(self.dice.uniform(0.2, 0.6 * self.seconds))
            run.send(signal.SIGKILL, run.everyone())
            run.finish(60)
            if "cannot be used" in run.errors()[0]:
                return run
            return None if not run.errors()[0] else run
        if kind == "both checkpoints broken":
            break_it(last)
            break_it(previous)
            run, text = self.launch(), "cannot be used"
        elif kind == "checkpoint of another space":
            run, text = self.launch(more=["--space", "s2"]), "was made with --space"
        else:
            for path in good:
                torch.save(train.load_checkpoint(path) | dict(format=99), path)
            run, text = self.launch(), "format 99"
        run.finish(60)
        left = {path: path.read_bytes() for path in good}
        for path, data in good.items():
            path.write_bytes(data)
        untouched = left == good or kind != "checkpoint of another space"
        self.expect(kind, self.one_line(run, 2, text=text) and untouched, run)
        return run

    def round(self, kinds: list[str], real: bool = False) -> None:
        """A fresh folder; the attacks in turn; then to the end, and the comparison."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        for kind in kinds:
            self.attack(kind, real)
        run = self.launch(real=real)
        statuses = run.finish(300)
        self.expect(
            "the end", statuses == [0] * len(statuses) and not left_over(self.out), run, str(left_over(self.out))
        )
        where = "it did not end" if any(statuses) else difference(self.expected, contents(self.out))
        self.differ += bool(where)
        self.expect("the end", not where, run, where)
        log = self.out / "log.txt"
        before = len(log.read_text())
        run = self.launch()
        run.finish(300)
        said = "already finished" in log.read_text()[before:] and not difference(self.expected, contents(self.out))
        self.expect("a finished run", bool(where) or said, run)


def main() -> int:
    options = arguments(
        __doc__,
        rounds=dict(type=int, help="runs that are attacked, per stage (9; 1 with --quick)"),
        seed=dict(type=int, default=0, help="of the attacks (0)"),
        real=dict(action="store_true", help="also processes of their own, and torchrun"),
        stage=dict(action="append", choices=list(STAGES), help="only this one (may be repeated)"),
    )
    dice, place = random.Random(options.seed), Path(tempfile.mkdtemp())
    kills = ["SIGKILL", "SIGKILL inside a write", "SIGTERM", "SIGINT", "SIGKILL", "SIGKILL inside a write"]
    faults = ["disk full", "folder read-only", "last.pt broken", "both checkpoints broken", "loss not a number"]
    faults += ["checkpoint of another space", "checkpoint of another version"]
    names = options.stage or (
        ["search, images read by a worker", "retrain, two processes"] if options.quick else list(STAGES)
    )
    rows, wrong, total, finished, slowest = [], [], Counter(), 0, Counter()
    for name in names:
        words, ranks = STAGES[name]
        case = Case(name, words, ranks, place / name.replace(" ", "-").replace(",", ""), dice)
        each = list(kills)
        if ranks == 1 and "and" not in name:
            each += faults if name != "retrain" else [kind for kind in faults if "space" not in kind]
        each += ["data vanished", "worker killed", "SIGTERM to all"] if "worker" in name else []
        each += ["SIGTERM to all", "SIGKILL of one process", "SIGKILL of one process"] if ranks > 1 else []
        rounds = options.rounds or (1 if options.quick else 9)
        for _ in range(rounds):
            each = list(dict.fromkeys(each)) if options.quick else each
            dice.shuffle(each)
            for start in range(0, len(each), 8):
                case.round(each[start : start + 8])
                finished += 1
        if options.real and ranks > 1:
            case.round(["SIGKILL", "SIGKILL of one process", "SIGTERM to all"], real=True)
            finished += 1
        elif options.real:
            case.round(["SIGKILL", "SIGTERM", "SIGINT", "SIGTERM to all"], real=True)
            finished += 1
        for kind, count in case.seen.items():
            inside = f"{case.inside[kind]} inside a write" if "SIGKILL" in kind and "real" not in kind else ""
            rows.append(row(f"{name}; {kind}", count, note=inside))
        rows.append(row(f"{name}: runs that ended with other bits", case.differ, target=0))
        total += case.seen
        wrong += case.wrong
        slowest |= case.slowest
    shutil.rmtree(place)
    signals = sum(count for kind, count in total.items() if "SIG" in kind)
    rows += [row(f"seconds to the end, {kind}", value, "s", 20.0) for kind, value in slowest.items()]
    rows += [row("kills in all", signals), row("other faults in all", sum(total.values()) - signals)]
    rows += [row("runs that were resumed to their end and compared", finished)]
    rows += [row("attacks that ended otherwise than promised", len(wrong), target=0)]
    report("faults", options, rows, seed=options.seed)
    print("\n".join(wrong))
    return int(any(r["passed"] is False for r in rows))


if __name__ == "__main__":
    sys.exit(main())
