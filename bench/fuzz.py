"""Generated and mutated inputs, thousands of every kind: each is accepted or refused in one line, and no more happens.

Claims, for genotypes (text, JSON, files), config.json, tables, checkpoints, command lines, folders of runs and images:
no input runs code (an audit hook watches for programs, and the payloads leave a file behind), ends in a traceback,
takes more than 10 seconds, or asks for more than 2 GiB: functions raise ValueError of one line, commands end with
status 2 and one line, or the input is valid. A case is the same in every run, by its kind and number.

    python bench/fuzz.py                       about five minutes
    python bench/fuzz.py --genotypes FILE      with the lines of FILE as further cells to mutate
    python bench/fuzz.py --quick
"""

import contextlib
import copy
import gzip
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import torch
from common import arguments, report, row
from PIL import Image
from soak import make_images

import genotypes
import rome
import train

PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pty.spawn")
PROGRAMS += ("socket.connect", "webbrowser.open", "os.startfile", "ctypes.dlopen")
SECONDS, MEMORY = 10, 2 << 30
TINY = (
    "search --dataset folder --image-size 8 --cells 1 --channels 2 --batch-size 4 --samples 1 --epochs 2 --device cpu"
)
watched = []  # the audit hook's catch


def watch(event: str, details: tuple) -> None:
    if event in PROGRAMS:
        watched.append(f"{event} {details!r:.200}")


class TooLong(BaseException):
    """Out of time; no `except Exception` catches it."""


ticks = []  # seconds of the current case: not one long alarm, as a process that is stopped for a while is not slow


def tick(number, frame) -> None:
    ticks.append(number)
    if len(ticks) >= SECONDS:
        raise TooLong


# ----------------------------------------------------------------------------------------------------------------------
# Mutations

PIECES = [*"()[]{}|~+'\",=:;0129-#% \n\\\0\ud800é", "None", "True", "null", "1e999", "NaN", "-1", "9" * 5000]
PIECES += [
    "range(2, 6)",
    "Genotype(",
    "OneShotGenotype(",
    "__import__('os').system('touch ran')",
    "[" * 500,
    "../..",
    "/",
]


def mutate_text(dice: random.Random, text: str, pieces=PIECES) -> str:
    for _ in range(dice.choice((0, 1, 1, 2, 3, 8))):
        start = dice.randrange(len(text) + 1)
        stop = start + dice.choice((0, 1, 1, 5, 50))
        text = text[:start] + dice.choice([*pieces, text[start:stop] * 2, ""]) + text[stop:]
    return text


def mutate_bytes(dice: random.Random, data: bytes) -> bytes:
    data = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 5, 40))):
        if not data:
            break
        place, kind = dice.randrange(len(data)), dice.randrange(5)
        if kind == 0:
            data[place] ^= 1 << dice.randrange(8)
        elif kind == 1:
            data[place : place + 4] = dice.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"))
        elif kind == 2:
            del data[place : place + dice.choice((1, 10, 1000))]
        elif kind == 3:
            data[place:place] = data[place : place + dice.choice((1, 10, 1000))]
        else:
            del data[place:]
    return bytes(data)


def values(dice: random.Random):
    """A value that is most likely wrong at its place."""
    tensors = [torch.zeros(()), torch.zeros(0), torch.full((3, 3), float("nan")), torch.zeros(2, dtype=torch.int64)]
    plain = [
        None,
        True,
        0,
        -1,
        7,
        10**30,
        0.5,
        float("inf"),
        float("nan"),
        "",
        "x",
        "a\nb",
        "../../x",
        "\ud800",
        "y" * 9999,
    ]
    return dice.choice([*plain, [], {}, [[]], {"a": 1}, (1, 2), [None] * 3, *tensors])


def mutate_tree(dice: random.Random, tree, value=values):
    """A copy of nested lists and dicts in which some entries are replaced, left out, added or renamed."""
    tree = copy.deepcopy(tree)
    for _ in range(dice.choice((1, 1, 2, 4))):
        node = tree
        while True:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            inner = [k for k in keys if isinstance(node[k], (dict, list)) and node[k]]
            if not inner or dice.random() < 0.35:
                break
            node = node[dice.choice(inner)]
        key, kind = dice.choice(list(keys)) if len(keys) else None, dice.randrange(4)
        if key is None or kind == 0:
            if isinstance(node, dict):
                node[dice.choice(("x", 3, None, "format", "../x", "\n"))] = value(dice)
            else:
                node.append(value(dice))
        elif kind == 1:
            del node[key]
        else:
            node[key] = value(dice)
    return tree


class Payload:
    """Runs code where it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


PAYLOADS = [
    Payload(os.system, "touch ran"), Payload(exec, "open('ran', 'w')"), Payload(eval, "open('ran', 'w')"),
    Payload(shutil.rmtree, "."), Payload(open, "ran", "w"), Payload(bytearray, 1 << 40), Payload(torch.load, "file"),
    Payload(__import__, "this"), Payload(getattr, "os", "system"),
]  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# The kinds of input. A kind is a function of the dice that writes what it needs into the current folder and returns a
# function without arguments: the use of the input, as a user's command or call would make it.


def command(*words: str):
    """A command line; ValueError with its line where it ends with status 2."""

    def use():
        error = io.StringIO()
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
            try:
                status = train.main(list(words))
            except SystemExit as exit_:  # --help
                status = exit_.code
        lines = error.getvalue()
        if "Traceback" in lines or status not in (0, 2, 3) or (status and lines.count("\n") != 1):
            raise AssertionError(f"status {status}: {lines}")
        if status:
            raise ValueError(lines.strip())

    return use


def only_resolved(use):
    """The use with the two loops left out: the settings alone are looked at."""

    def used():
        kept = train.search, train.retrain
        train.search, train.retrain = lambda *_: genotypes.PUBLISHED["GDAS_V1"], lambda *_: 0.0
        try:
            use()
        finally:
            train.search, train.retrain = kept

    return used


def genotype(dice: random.Random):
    cell = dice.choice(SEEDS["genotypes"])
    text = str(cell) if dice.random() < 0.5 else cell
    if not isinstance(text, str) or text.startswith("|") and dice.random() < 0.5:
        genotypes.save(cell, "cell.json", epoch=50, space="darts")
        text = Path("cell.json").read_text()
        if dice.random() < 0.5:
            text = json.dumps(
                mutate_tree(dice, json.loads(text), lambda d: d.choice((None, 1, -1, [], {}, "x", 1e9, True)))
            )
    text = mutate_text(dice, text)
    if dice.random() < 0.3:
        Path("cell.json").write_bytes(text.encode(errors="surrogatepass"))
        if dice.random() < 0.3:
            return only_resolved(command("retrain", "--genotype", "cell.json", "--quick"))
        text = "cell.json"

    def use():
        found = genotypes.load(text)
        if genotypes.load(str(found)) != found:
            raise AssertionError("it does not load as it was printed")

    return use


def configuration(dice: random.Random):
    stage = dice.choice(("search", "retrain"))
    text = SEEDS[f"{stage} config"]
    if dice.random() < 0.5:
        tree = mutate_tree(
            dice, json.loads(text), lambda d: d.choice((None, 1, -1, [], {}, "x", "a\nb", 1e9, 1e400, True))
        )
        text = json.dumps(tree)
    else:
        text = mutate_text(dice, text)
    Path("config.json").write_bytes(text.encode(errors="surrogatepass"))
    return only_resolved(command(stage, "--config", "config.json", *dice.choice(([], [], ["--quick"], ["--resume"]))))


def table(dice: random.Random):
    text = dice.choice(
        ("ops,c10_test\n421211,85.8\n334131,93.6\n", "arch,in16_test,c10_val\n" + ARCH + ",1,2\n", "ops,c100_test")
    )
    data = mutate_text(dice, text, [*PIECES, ",", "\r", '"', "ops", "arch", "c10_test"]).encode(errors="surrogatepass")
    if dice.random() < 0.3:
        data = gzip.compress(data if dice.random() < 0.5 else data + b"\n" * dice.choice((10,) * 19 + (30_000_000,)), 1)
        data = mutate_bytes(dice, data) if dice.random() < 0.6 else data
    Path("table").write_bytes(data)
    return lambda: train.read_table("table")


def command_line(dice: random.Random):
    flags = ["--" + name.replace("_", "-") for name in train.FLAGS] + ["--nonsense", "-x", "--", "--retrain-epochs"]
    words = [dice.choice(("search", "retrain", "list", "report", dice.choice(VALUES)))]
    for _ in range(dice.randrange(7)):
        words.append(dice.choice(dice.choice((flags, VALUES))))
    return only_resolved(command(*words))


VALUES = (
    "0 -1 1e999 nan 7 0.5 [1] GDAS_V1 ../.. s1 nb201 shapes folder imagenet . /dev/null /dev/zero fifo 1e-320".split()
)
VALUES += ["", " ", "\0", "é", "x" * 5000, "\n", "9" * 11, "--out", "Genotype(", "٣", "1_000", "0x10", "\ud800"]


def run_folder(dice: random.Random):
    shutil.copytree(SEEDS["run"], "run")
    name = dice.choice(("config.json", "metrics.csv", "log.txt"))
    path = Path("run") / dice.choice(("", "retrain")) / name
    if dice.random() < 0.5 and name == "config.json":
        path.write_text(
            json.dumps(mutate_tree(dice, json.loads(path.read_text()), lambda d: d.choice((None, [], {}, "x", 3))))
        )
    else:
        path.write_bytes(mutate_text(dice, path.read_text()).encode(errors="surrogatepass"))
    return command("report", "run")


def checkpoint(dice: random.Random):
    """A resumed search whose last.pt is not what it wrote; where it is accepted, the search goes on to its end."""
    Path("run").mkdir()
    path, kind = Path("run") / "last.pt", dice.randrange(5)
    data = SEEDS["checkpoint"]
    if kind <= 1:
        path.write_bytes(mutate_bytes(dice, data))
    elif kind == 2:  # a pickle of its own, bare or in the archive, in place of the state or inside it
        payload = dice.choice(PAYLOADS)
        state = dice.choice([payload, [payload], {"format": 1, "stage": "search", "settings": payload}])
        text = pickle.dumps(state, dice.choice((2, 4)))
        text = mutate_bytes(dice, text) if dice.random() < 0.2 else text
        if dice.random() < 0.3:
            path.write_bytes(text)
        else:
            with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(path, "w", dice.choice((0, 8))) as new:
                for entry in old.infolist():
                    new.writestr(entry.filename, text if entry.filename.endswith("data.pkl") else old.read(entry))
                if dice.random() < 0.2:
                    new.writestr("archive/bomb", b"\0" * 5_000_000)
    else:
        torch.save(mutate_tree(dice, torch.load(io.BytesIO(data), weights_only=True)), path)
    return command(*TINY.split(), "--data", SEEDS["data"], "--out", "run", "--resume", "--quiet")


def picture(dice: random.Random):
    name, data = dice.choice(SEEDS["pictures"])
    Path(name).write_bytes(mutate_bytes(dice, data) if dice.random() < 0.85 else data)
    transform = None

    def use():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about metadata
            image = train.read_image(name, 224, transform)
        if image.shape != (224, 224, 3) or image.dtype != torch.uint8:
            raise AssertionError(f"{image.shape}")

    return use


KINDS = {  # kind -> how many, with --quick
    genotype: (10000, 800), configuration: (3000, 150), table: (2000, 150), command_line: (4000, 200),
    run_folder: (1000, 60), checkpoint: (500, 25), picture: (2000, 150),
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# What is mutated

ARCH = "|nor_conv_3x3~0|+|skip_connect~0|none~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|"
ONE_SHOT = rome.OneShotGenotype(
    ("maxpool3x3", "conv3x3-bn-relu", "skip-connect", "conv3x3-bn-relu"), ((0,), (0, 1), (0, 2), (1, 3), (2, 4))
)
SEEDS = {}


def png(width: int, height: int, *chunks: tuple) -> bytes:
    """A PNG file that claims a size and has other chunks than one would expect."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), *chunks, (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def pictures() -> list[tuple[str, bytes]]:
    """(name, bytes) of images of every mode and format that is read, of odd sizes, and of what only looks like one."""
    found, noise = [], os.urandom(40 * 30 * 4)
    for mode, formats in {
        "RGB": ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP", "GIF"), "L": ("PNG", "JPEG", "TIFF", "PPM"),
        "RGBA": ("PNG", "WEBP", "TIFF"), "CMYK": ("JPEG", "TIFF"), "P": ("PNG", "GIF", "BMP"), "1": ("PNG", "TIFF"),
        "LA": ("PNG",), "I;16": ("PNG", "TIFF"), "F": ("TIFF",), "YCbCr": ("JPEG",),
    }.items():  # fmt: skip
        size = {"RGB": 3, "RGBA": 4, "CMYK": 4, "LA": 2, "I;16": 2, "F": 4, "YCbCr": 3}.get(mode, 1)
        image = Image.frombytes(mode, (40, 30), noise[: 150 if mode == "1" else 40 * 30 * size])
        for name in formats:
            file = io.BytesIO()
            image.save(file, name)
            found.append((f"image.{name.lower()}", file.getvalue()))
    file = io.BytesIO()
    frames = [Image.new("P", (20, 20), shade) for shade in range(9)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    found.append(("animated.gif", file.getvalue()))
    for size in ((1, 1), (1, 4000), (4000, 1), (4000, 4000), (65000, 1), (3, 60000)):
        file = io.BytesIO()
        Image.new("L", size, 7).save(file, "PNG")
        found.append(("size.png", file.getvalue()))
    bomb = zlib.compress(b"\0" * 30_000_000, 9)
    found += [("bomb.png", png(w, w, (b"IDAT", bomb))) for w in (9400, 12000, 30000, 2**31 - 1)]
    found += [("text.png", png(4, 4, (b"zTXt", b"a\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb), (b"IDAT", bomb)))]
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ran) (w) file closefile\nshowpage\n%%EOF\n"
    return [*found, ("script.png", script), ("empty.png", b""), ("text.jpg", b"x" * 5000)]


def prepare(folder: Path, more: str | None) -> None:
    SEEDS["genotypes"] = [*genotypes.PUBLISHED.values(), ARCH, ONE_SHOT]
    for line in Path(more).read_text().splitlines() if more else ():
        with contextlib.suppress(ValueError):
            SEEDS["genotypes"].append(genotypes.load(line.partition("#")[0]))
    SEEDS["data"] = str(make_images(folder / "data"))
    words = [*TINY.split(), "--data", SEEDS["data"], "--out", str(folder / "run"), "--quiet"]
    retrain = "--retrain --retrain-cells 1 --retrain-channels 2 --retrain-epochs 1 --retrain-auxiliary 0"
    if train.main([*words, *retrain.split()]):
        raise SystemExit(2)
    SEEDS["run"] = folder / "run"
    for stage, path in (("search", folder / "run"), ("retrain", folder / "run" / "retrain")):
        SEEDS[f"{stage} config"] = (path / "config.json").read_text()
    SEEDS["checkpoint"] = (folder / "run" / "previous.pt").read_bytes()  # after the first of two epochs
    SEEDS["pictures"] = pictures()


def try_one(kind, number: int, seed: int, folder: Path) -> tuple[str, str, float]:
    """What became of a case ("accepted", "refused" or what went wrong), its message, and its seconds."""
    place = folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    os.chdir(place)
    os.mkfifo("fifo")
    use = kind(random.Random(f"{seed}/{kind.__name__}/{number}"))
    watched.clear()
    ticks.clear()
    start = time.process_time()
    signal.setitimer(signal.ITIMER_REAL, 1, 1)
    try:
        use()
        outcome, text = "accepted", ""
    except ValueError as error:
        text = str(error)
        outcome = (
            "refused" if type(error) is ValueError and "\n" not in text and len(text) < 1000 else "not in one line"
        )
    except TooLong:
        outcome, text = "too long", ""
    except BaseException:
        outcome, text = "wrong", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if watched or (place / "ran").exists():
        outcome, text = "code ran", "; ".join(watched)
    os.chdir(folder)
    return outcome, text, time.process_time() - start


def main() -> int:
    options = arguments(
        __doc__,
        seed=dict(type=int, default=0, help="of the cases (0)"),
        genotypes=dict(metavar="FILE", help="further genotypes to mutate, one a line"),
        kind=dict(action="append", choices=[kind.__name__ for kind in KINDS], help="only this one (may be repeated)"),
        number=dict(type=int, help="only the case of this number, with its message"),
    )
    options.out = options.out and str(Path(options.out).absolute())
    more = options.genotypes and str(Path(options.genotypes).absolute())
    folder = Path(tempfile.mkdtemp())
    prepare(folder, more)
    train.versions = lambda: {}  # it asks git, a program
    sys.addaudithook(watch)
    signal.signal(signal.SIGALRM, tick)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    rows, wrong, total, slowest = [], [], Counter(), (0.0, "")
    for kind, counts in KINDS.items():
        if options.kind and kind.__name__ not in options.kind:
            continue
        found = Counter()
        numbers = [options.number] if options.number is not None else range(counts[options.quick])
        for number in numbers:
            outcome, text, seconds = try_one(kind, number, options.seed, folder)
            found[outcome] += 1
            slowest = max(slowest, (seconds, f"{kind.__name__} {number}"))
            if outcome not in ("accepted", "refused"):
                wrong.append(f"{kind.__name__} {number}: {outcome}: {text[-1500:]}")
            if options.number is not None:
                print(outcome, text)
        note = f"{found['accepted']} accepted, {found['refused']} refused"
        rows.append(row(f"{kind.__name__.replace('_', ' ')}: inputs", sum(found.values()), note=note))
        total += found
    os.chdir("/")
    shutil.rmtree(folder)
    rows += [row("inputs in all", sum(total.values()))]
    rows += [
        row(f"inputs: {outcome}", total[outcome], target=0)
        for outcome in ("code ran", "wrong", "not in one line", "too long")
    ]
    rows += [row("longest, CPU time", slowest[0], "s", SECONDS, note=slowest[1])]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    rows += [row("peak resident memory", peak, "MiB")]
    report("fuzz", options, rows, seed=options.seed)
    print("\n".join(wrong[:20]))
    return int(any(r["passed"] is False for r in rows))


if __name__ == "__main__":
    sys.exit(main())
