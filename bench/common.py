"""What the programs of bench/ share: a search, inputs, processes, and the report."""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import rome  # noqa: E402

ROLES = ("weights", "architecture")  # of a step
FIXED = 40.0  # a logit so large that its entry is always drawn


class Search(NamedTuple):
    """What a step needs. version: the module rome, or another version of it."""

    version: object
    net: torch.nn.Module
    adam: torch.optim.Optimizer
    sgd: torch.optim.Optimizer


def make_search(version=rome, small=False, device="cpu", **settings) -> Search:
    """The paper's search of S0 on CIFAR-10, with nearly uniform alpha and beta.

    settings: of the supernet. small: a tiny one.
    """
    torch.manual_seed(0)
    sizes = (4, 3) if small else (16, 8)  # channels, cells
    net = version.Supernet("darts", *sizes, 10, **settings).to(device)
    adam = torch.optim.Adam(net.architecture_parameters(), 1e-6, (0.5, 0.999), weight_decay=1e-3)
    sgd = torch.optim.SGD(net.weights(), 1e-3, 0.9, weight_decay=3e-4)
    return Search(version, net, adam, sgd)


def step(search: Search, role: str, samples: int, seed: int, images, labels) -> None:
    """A step of the weights or of the architecture, over K = `samples` sub-networks."""
    generator = torch.Generator().manual_seed(seed)
    architect = search.version.Architect(search.net, samples, generator=generator)
    if role == "weights":
        architect.weight_step(images, labels, 1.0, search.sgd)
    else:
        architect.architecture_step(images, labels, 1.0, search.adam)


@torch.no_grad()
def fix(net, seed: int) -> None:
    """From now on every draw is one random sub-network: the seed's, in every version of rome.py.

    Topologies draw the same operations: "none" runs them on all edges, "v2" on those it keeps.
    """
    generator = torch.Generator().manual_seed(seed)
    for alpha in net.alpha.values():
        edges, ops = alpha.shape
        drawn = torch.randint(ops, (edges,), generator=generator)
        alpha.copy_(FIXED * F.one_hot(drawn, ops))
    for beta in net.beta.values():
        kept = torch.zeros(4, 5)  # (nodes, inputs)
        for j, row in enumerate(kept):
            row[torch.randperm(j + 2, generator=generator)[:2]] = FIXED
        beta.copy_(kept)


def batch(count: int, device="cpu", size=32, seed=1) -> tuple:
    """Noise images (count, 3, size, size) and labels (count,) of ten classes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, size, size, generator=generator)
    labels = torch.randint(10, (count,), generator=generator)
    return images.to(device), labels.to(device)


def load(path: str):
    """The module of a Python file, apart from modules of the same name."""
    spec = importlib.util.spec_from_file_location("other_version", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --------------------------------------------------------------------------------------------------
# Processes, as torchrun starts them


def in_processes(count: int, function, *arguments) -> list:
    """The results of function(rank, *arguments) in `count` new processes of one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(member, (count, folder, function, arguments), count)
        return [json.loads(Path(folder, str(rank)).read_text()) for rank in range(count)]


def member(rank, count, folder, function, arguments):
    torch.set_num_threads(1)
    store = Path(folder, "store").as_uri()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    Path(folder, str(rank)).write_text(json.dumps(function(rank, *arguments)))
    dist.barrier()
    time.sleep(0.2)  # as in train.py: torch 2.6 joins gloo's threads while it holds the GIL
    dist.destroy_process_group()


# --------------------------------------------------------------------------------------------------
# Command line and report


def make_parser(text: str) -> argparse.ArgumentParser:
    """The flags of all programs. text: the program's docstring."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=text, formatter_class=form)
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--out", metavar="FILE", help="default: bench/results/NAME.json")
    return parser


def quantity(what: str, values: list, unit: str) -> dict:
    """A line of a report: the mean of the values, and their range."""
    value = sum(values) / len(values)
    return dict(what=what, value=value, least=min(values), most=max(values), unit=unit)


def ratio(what: str, above: list, below: list, target: str = "no target") -> dict:
    """A line of a report: the ratio of the means, and the range of the ratios round by round."""
    rounds = [a / b for a, b in zip(above, below)]
    return quantity(what, rounds, target) | dict(value=sum(above) / sum(below))


def report(name: str, options, rows: list) -> None:
    """Prints the lines and writes them as JSON."""
    print("    value     least      most")
    for row in rows:
        numbers = f"{row['value']:9.4g} {row['least']:9.4g} {row['most']:9.4g}"
        print(f"{numbers}  {row['what']}, {row['unit']}")
    write(name, options, rows)


def write(name: str, options, rows: list) -> None:
    """Writes the result of a program, with its command and machine."""
    path = Path(options.out or HERE / "results" / f"{name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    content = dict(command=command, machine=machine(), rows=rows)
    path.write_text(json.dumps(content, indent=1) + "\n")


def machine() -> dict:
    """What the numbers depend on."""
    cpus = Path("/proc/cpuinfo")
    names = re.findall("model name.*: (.*)", cpus.read_text() if cpus.exists() else "")
    return dict(
        date=datetime.date.today().isoformat(),
        torch=torch.__version__,
        cpu=names[0] if names else platform.machine(),
        cores=os.cpu_count(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    )
