"""Thousands of mutated genotypes and checkpoints: each is accepted, or refused in one line, and nothing else happens.

They are what people take from others. Claims, for genotypes (text, JSON, files) and checkpoints (changed, or with a
pickle that runs code): a function raises a ValueError of one line, a command ends with status 2 or 3 and one line, or
the input is valid; no input runs code (a payload leaves a file behind, an audit hook watches for programs), and none
takes more than 10 seconds. A case depends on its kind and number alone.

    python bench/fuzz.py                       about ten minutes
    python bench/fuzz.py --quick
"""

import collections
import contextlib
import copy
import io
import json
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import traceback
import zipfile
from pathlib import Path

import torch
from common import parser, report, row
from faults import make_images

import genotypes
import rome
import train

PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "ctypes.dlopen")
TINY = "search --dataset folder --image-size 8 --cells 1 --channels 2 --batch-size 4 --samples 1 --epochs 2"
ARCH = "|nor_conv_3x3~0|+|skip_connect~0|none~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|"
PIECES = [*"()[]{}|~+'\",=:;0129-# \n\\\0\ud800é", "None", "true", "1e999", "NaN", "-1", "9" * 5000, "[" * 500, "../.."]
PIECES += ["range(2, 6)", "Genotype(", "OneShotGenotype(", "__import__('os').system('touch ran')"]
VALUES = [None, True, 0, -1, 7, 10**30, 0.5, float("nan"), "", "x", "a\nb", "../x", [], {}, {"a": 1}, [None] * 3]


def mutate_text(dice: random.Random, text: str) -> str:
    for _ in range(dice.choice((0, 1, 1, 2, 3, 8))):
        start = dice.randrange(len(text) + 1)
        stop = start + dice.choice((0, 1, 1, 5, 50))
        text = text[:start] + dice.choice([*PIECES, text[start:stop] * 2, ""]) + text[stop:]
    return text


def mutate_tree(dice: random.Random, tree):
    """A copy of nested lists and dicts in which some entries are replaced, left out or added."""
    tree = copy.deepcopy(tree)
    for _ in range(dice.choice((1, 1, 2, 4))):
        node = tree
        while dice.random() < 0.7:
            children = node.values() if isinstance(node, dict) else node
            node = dice.choice([child for child in children if isinstance(child, dict | list)] or [node])
        keys, value = (list(node) if isinstance(node, dict) else list(range(len(node))), dice.choice(VALUES))
        if keys and dice.random() < 0.25:
            del node[dice.choice(keys)]
        elif keys and dice.random() < 0.7:
            node[dice.choice(keys)] = value
        elif isinstance(node, dict):
            node["../x"] = value
        else:
            node.append(value)
    return tree


class Payload:
    """Runs code where it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


PAYLOADS = [Payload(os.system, "touch ran"), Payload(exec, "open('ran', 'w')"), Payload(eval, "open('ran', 'w')")]
PAYLOADS += [Payload(open, "ran", "w"), Payload(bytearray, 1 << 40), Payload(getattr, "os", "system")]

# ----------------------------------------------------------------------------------------------------------------------
# A kind of input is a function of the dice and of the valid inputs. It writes into the current folder, and uses it.


def command(*words: str) -> None:
    """Runs a command line. ValueError with its line if it ends with a status of its own."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        status, text = train.main(list(words)), errors.getvalue()
    if status not in (0, 2, 3) or (status and text.count("\n") != 1):
        raise AssertionError(f"status {status}: {text}")
    if status:
        raise ValueError(text.strip())


def genotype(dice: random.Random, valid: dict) -> None:
    cell = dice.choice(valid["genotypes"])
    text = str(cell)
    if dice.random() < 0.5:
        genotypes.save(cell, "cell.json", space="darts")
        text = Path("cell.json").read_text()
        text = json.dumps(mutate_tree(dice, json.loads(text))) if dice.random() < 0.5 else text
    text = mutate_text(dice, text)
    if dice.random() < 0.3:
        Path("cell.json").write_bytes(text.encode(errors="surrogatepass"))
        text = "cell.json"
    found = genotypes.load(text)
    assert genotypes.load(str(found)) == found, "it does not load as it was printed"


def checkpoint(dice: random.Random, valid: dict) -> None:
    """A search that is resumed from a last.pt which is not what it wrote. If it is accepted, it runs to its end."""
    Path("run").mkdir()
    path, data = Path("run/last.pt"), valid["checkpoint"]
    if dice.random() < 0.5:
        torch.save(mutate_tree(dice, torch.load(io.BytesIO(data), weights_only=True)), path)
    else:  # in place of the state, or inside it
        payload = dice.choice(PAYLOADS)
        text = pickle.dumps(dice.choice([payload, {"format": 2, "settings": payload}]), dice.choice((2, 4)))
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(path, "w") as new:
            for entry in old.infolist():
                new.writestr(entry.filename, text if entry.filename.endswith("data.pkl") else old.read(entry))
    command(*TINY.split(), "--device=cpu", "--data", valid["data"], "--out", "run", "--resume", "--quiet")


KINDS = {genotype: 20000, checkpoint: 1000}  # how many cases


def valid_inputs(folder: Path) -> dict:
    data, one_shot = str(make_images(folder / "data")), ((0,), (0, 1), (0, 2), (1, 3), (2, 4))
    command(*TINY.split(), "--device=cpu", "--data", data, "--out", str(folder / "run"), "--quiet")
    cells = [*genotypes.PUBLISHED.values(), ARCH, rome.OneShotGenotype(("maxpool3x3",) * 4, one_shot)]
    return dict(data=data, genotypes=cells, checkpoint=(folder / "run/previous.pt").read_bytes())


def outcome_of(kind, number: int, valid: dict) -> tuple[str, str]:
    """Tries a case in a folder of its own. Returns "accepted", "refused" or what went wrong, and the traceback."""
    signal.alarm(10)
    try:
        kind(random.Random(f"{kind.__name__} {number}"), valid)
        return "accepted", ""
    except BaseException as error:
        one_line = type(error) is ValueError and "\n" not in str(error) and len(str(error)) < 1000
        return "refused" if one_line else "failed", traceback.format_exc()
    finally:
        signal.alarm(0)


def main() -> int:
    options = parser(__doc__).parse_args()
    options.out = options.out and str(Path(options.out).absolute())
    folder, rows, wrong, programs = Path(tempfile.mkdtemp()), [], [], []
    valid = valid_inputs(folder)
    train.versions = dict  # it asks git, a program
    sys.addaudithook(lambda event, details: programs.append(event) if event in PROGRAMS else None)
    signal.signal(signal.SIGALRM, signal.default_int_handler)  # KeyboardInterrupt: no `except Exception` catches it
    for kind, count in KINDS.items():
        outcomes = collections.Counter()
        for number in range(count // 50 if options.quick else count):
            with tempfile.TemporaryDirectory(dir=folder) as place:
                os.chdir(place)
                outcome, text = outcome_of(kind, number, valid)
                outcome = "ran code" if programs or Path("ran").exists() else outcome
                os.chdir(folder)
            outcomes[outcome] += 1
            if outcome not in ("accepted", "refused"):
                wrong.append(f"{kind.__name__} {number} {outcome}: {programs} {text[-1500:]}")
            programs.clear()
        note = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
        rows.append(row(f"{kind.__name__.replace('_', ' ')}: inputs", sum(outcomes.values()), note=note))
    os.chdir("/")
    shutil.rmtree(folder)
    rows.append(row("inputs that are neither accepted nor refused in one line", len(wrong), target=0))
    print("\n".join(wrong[:20]))
    return report("fuzz", options, rows)


if __name__ == "__main__":
    sys.exit(main())
