"""What the scripts of bench/ share: options, seeded inputs, and the report."""

import argparse
import datetime
import functools
import importlib.util
import json
import os
import platform
import re
import statistics
import sys
from pathlib import Path
from unittest import mock

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # no messages of torch.profiler about missing devices

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import rome  # noqa: E402
import train  # noqa: E402


def parser(text: str) -> argparse.ArgumentParser:
    """The options of all scripts; text is the script's docstring."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="tiny sizes: shows that the script runs")
    made.add_argument("--out", metavar="FILE", help="where the results go (bench/results/NAME.json)")
    return made


def load(path: str, name: str = "") -> object:
    """The module of a Python file, or what it calls `name`. It is imported apart from a module of the same name."""
    spec = importlib.util.spec_from_file_location(f"other_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name) if name else module


def batch(count: int, size: int = 32, device="cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Seeded noise images (count, 3, size, size) and labels (count,) of ten classes."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, size, size, generator=generator)
    labels = torch.randint(10, (count,), generator=generator)
    return images.to(device, memory_format=rome.MEMORY_FORMAT), labels.to(device)


def build(version=rome, device="cpu", quick=False, **settings) -> tuple:
    """Supernet, Adam and SGD as train.py makes them for the paper's search on CIFAR-10, with uniform alpha and beta.

    settings: of train.py, such as method="gdas". quick: a tiny supernet. version: the module rome, or another version.
    """
    sizes = dict(channels=4, cells=3) if quick else {}
    config = train.configure("search", sizes | settings)
    with mock.patch.object(train, "rome", version):
        net, _, sgd, adam = train.build_search(config, 10, torch.device(device), [0, 0])
    for p in net.architecture_parameters():
        p.data.zero_()
    return net, adam, sgd


def steps(built: tuple, images, labels, version=rome, autocast=None) -> dict:
    """Role -> function (count, first): a step over `count` sub-networks, drawn from the seeds first, first + 1, ..."""
    net, adam, sgd = built

    def step(role: str, count: int, first: int) -> None:
        def generator(_, k):
            return torch.Generator().manual_seed(first + k)

        architect = version.Architect(net, count, generator=generator, autocast=autocast)
        if role == "weights":
            architect.weight_step(images, labels, 1.0, sgd)
        else:
            architect.architecture_step(images, labels, 1.0, adam)

    return {role: functools.partial(step, role) for role in ("weights", "architecture")}


# ----------------------------------------------------------------------------------------------------------------------
# The report


def row(what: str, values, unit: str = "", target: float | None = None, of: str = "median", note: str = "") -> dict:
    """One line of a report: the median, mean or maximum of the values, beside its target (an upper bound)."""
    values = [float(value) for value in (values if isinstance(values, list) else [values])]
    measured = dict(median=statistics.median, mean=statistics.fmean, max=max)[of](values)
    result = dict(what=what, measured=measured, unit=unit, of=of, least=min(values), most=max(values))
    return result | dict(count=len(values), target=target, note=note)


def ratios(above: list, below: list) -> list:
    """Ratio round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def report(name: str, options: argparse.Namespace, rows: list[dict], **settings) -> int:
    """Prints the table and writes it as JSON. Returns the exit status: 1 where a target is missed; --quick has none."""
    width = max(len(r["what"]) for r in rows)
    print(f"{'':{width}} {'measured':>10} {'':8} {'least':>9} {'most':>9}  target")
    missed = False
    for r in rows:
        line = f"{r['what']:{width}} {r['measured']:10.4g} {r['unit']:8} {r['least']:9.4g} {r['most']:9.4g}"
        if r["target"] is not None and not options.quick:
            good = r["measured"] <= r["target"]
            missed = missed or not good
            line += f"  <= {r['target']:g} {'' if good else 'MISSED'}"
        print(f"{line}  {r['note']}".rstrip())
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = re.search("model name.*: (.*)", info)
    machine = dict(torch=torch.__version__, cpu=cpu.group(1) if cpu else platform.machine(), cores=os.cpu_count())
    machine |= dict(threads=torch.get_num_threads(), load=round(os.getloadavg()[0], 1))
    machine |= dict(gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else "none")
    machine |= dict(date=datetime.date.today().isoformat())
    print("; ".join(f"{key} {value}" for key, value in (settings | machine).items()))
    words = [Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:]]
    command = " ".join(["python", f"bench/{Path(sys.argv[0]).name}", *words])
    path = Path(options.out) if options.out else HERE / "results" / f"{name}{'-quick' if options.quick else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(command=command, machine=machine, settings=settings, rows=rows), indent=1) + "\n")
    return int(missed)
