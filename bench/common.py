"""What the scripts of bench/ share: options, seeded inputs, interleaved timing, and the report."""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # torch.profiler's own messages

import torch  # noqa: E402

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import rome  # noqa: E402

MIB = 2**20


def arguments(text: str, **extra) -> argparse.Namespace:
    """The options of a script, from its docstring; extra: name -> keywords of add_argument.

    Sets the number of threads, and seeds torch's default generator.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, about ten seconds: shows that it runs")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    parser.add_argument("--out", metavar="FILE", help="where the results go (bench/results/NAME.json)")
    for name, keywords in extra.items():
        parser.add_argument("--" + name.replace("_", "-"), **keywords)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return options


def load(spec: str):
    """The callable of PATH:CALLABLE."""
    path, _, name = spec.rpartition(":")
    module_spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return getattr(module, name)


# ----------------------------------------------------------------------------------------------------------------------
# The passes that are measured


def batch(count: int, size: int = 32, classes: int = 10, device="cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Seeded noise images (count, 3, size, size), channels-last as train.Stream makes them, and labels (count,)."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
    return images.to(device), torch.randint(classes, (count,), generator=generator).to(device)


def supernet(topology: str = "v2", recompute: bool = False, quick: bool = False, device="cpu") -> rome.Supernet:
    """The paper's supernet of S0 (8 cells, 16 channels; quick: 3 and 8) with exactly uniform alpha and beta."""
    torch.manual_seed(0)
    channels, cells = (8, 3) if quick else (16, 8)
    net = rome.Supernet("darts", channels, cells, 10, topology, recompute).to(device)
    for p in net.architecture_parameters():
        p.data.zero_()
    return net


def seeded(*place: int) -> torch.Generator:
    number = 0
    for value in place:
        number = number * 1000003 + value
    return torch.Generator().manual_seed(number)


def optimizers(net: rome.Supernet) -> dict:
    """The paper's two optimizers, by the name of their step."""
    return dict(
        architecture=torch.optim.Adam(net.architecture_parameters(), 3e-4, (0.5, 0.999), weight_decay=1e-3),
        weights=torch.optim.SGD(net.weights(), 0.05, 0.9, weight_decay=3e-4),
    )


def stepper(net: rome.Supernet, role: str, images, labels):
    """A function (count, first): a step of the role over `count` sub-networks, drawn from the seeds `first`, ..."""
    optimizer = optimizers(net)[role]

    def step(count: int, first: int) -> None:
        architect = rome.Architect(net, count, generator=lambda _, k: seeded(first + k))
        one_step = architect.weight_step if role == "weights" else architect.architecture_step
        one_step(images, labels, 1.0, optimizer)

    return step


# ----------------------------------------------------------------------------------------------------------------------
# Timing


CLOCK = dict(help="what is timed (cpu: CPU time of the process, which a busy machine disturbs less)")
CLOCK |= dict(choices=("cpu", "wall"), default="cpu")


def seconds(function, clock: str = "cpu") -> float:
    """Time that one call takes."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    start = now()
    function()
    return now() - start


def interleaved(variants: dict, rounds: int, clock: str, warm: bool = True) -> dict:
    """Runs every variant once a round, in turn, so that a change of the machine's speed meets them all.

    variants: name -> function of the round's number. Returns name -> list of seconds, one a round; one round to warm up
    comes first.
    """
    times = {name: [] for name in variants}
    for number in range(-1 if warm else 0, rounds):
        for name, function in variants.items():
            taken = seconds(lambda f=function, n=number: f(max(n, 0)), clock)
            if number >= 0:
                times[name].append(taken)
    return times


def ratios(above: list, below: list, factor: float = 1.0) -> list:
    """Ratio per round."""
    return [factor * a / b for a, b in zip(above, below, strict=True)]


# ----------------------------------------------------------------------------------------------------------------------
# The report


def row(what: str, values, unit: str = "", target: float | None = None, of: str = "median", note: str = "") -> dict:
    """One line of a report: the median, mean or maximum of the values, beside its target (an upper bound)."""
    values = [float(v) for v in values] if hasattr(values, "__iter__") else [float(values)]
    measured = dict(median=statistics.median, mean=statistics.fmean, max=max)[of](values)
    passed = None if target is None else measured <= target
    spread = [min(values), max(values)] if len(values) > 1 else None
    return dict(what=what, measured=measured, unit=unit, of=of, spread=spread, count=len(values)) | dict(
        target=target, passed=passed, note=note
    )


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def report(name: str, options: argparse.Namespace, rows: list[dict], **settings) -> int:
    """Prints the table, writes it as JSON, and returns the exit status: 1 where a target is missed, 0 in --quick."""
    machine = dict(
        torch=torch.__version__,
        python=platform.python_version(),
        system=platform.system(),
        cpu=cpu_model(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        capability=torch.backends.cpu.get_cpu_capability(),
        load=round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        date=datetime.date.today().isoformat(),
    )
    width = max(len(r["what"]) for r in rows)
    print(f"{'':{width}}  {'measured':>10} {'':8} {'target':>9}  {'':4}  {'least to most':>19}")
    for r in rows:
        target = f"<= {r['target']:g}" if r["target"] is not None else ""
        passed = {None: "", True: "ok", False: "MISS"}[r["passed"]]
        spread = f"{r['spread'][0]:9.4g} {r['spread'][1]:9.4g}" if r["spread"] else ""
        line = f"{r['what']:{width}}  {r['measured']:10.4g} {r['unit']:8} {target:>9}  {passed:4}  {spread:>19}"
        print(f"{line}  {r['note']}".rstrip())
    print("; ".join(f"{key} {value}" for key, value in (settings | machine).items() if value is not None))
    path = Path(options.out) if options.out else HERE / "results" / f"{name}{'-quick' if options.quick else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    command = " ".join(["python", f"bench/{Path(sys.argv[0]).name}", *words])
    content = dict(name=name, command=command, machine=machine, settings=settings, rows=rows)
    path.write_text(json.dumps(content, indent=1) + "\n")
    missed = [r["what"] for r in rows if r["passed"] is False]
    if options.quick:
        print("--quick: the sizes are not those of the targets")
    return 1 if missed and not options.quick else 0
