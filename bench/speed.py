"""How fast ROME is. One word chooses the table:

    python bench/speed.py passes        a pass of one sub-network of S0, against the own --method gdas
        --peer FILE.py:MAKE             and against GDAS's published code: MAKE() returns an object with
                                        weight_pass(images, labels) and architecture_pass(images, labels)
        --against PATH/rome.py          and against another version of rome.py
    python bench/speed.py linearity     a step with K = 7 against one with K = 1
    python bench/speed.py input         shares of a step: reading images; sampling and bookkeeping
    python bench/speed.py network       rome.Network against a plain NCHW implementation
    python bench/speed.py gpu           passes a second, memory and launches of a search and a retrain on a CUDA device

All but `gpu` take CPU time, which a busy machine disturbs less. Every variant runs once a round, on sub-networks from
the same seeds, and a ratio is taken within a round. A pass is a seventh of a step with K = 7.
"""

import contextlib
import functools
import sys
import time
from unittest import mock

import plain
import torch
import torch.nn.functional as F
from common import batch, build, load, parser, ratios, report, row, steps

import genotypes
import rome
import train

ROLES = ("weights", "architecture")


def cpu_time(function) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def interleaved(variants: dict, rounds: int, clock=cpu_time) -> dict:
    """name -> seconds, one per round. variants: name -> function of the round's number; one more round warms up."""
    times = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, function in variants.items():
            times[name].append(clock(functools.partial(function, number)))
    return {name: values[1:] for name, values in times.items()}


# ----------------------------------------------------------------------------------------------------------------------
# passes, linearity


def passes(options) -> list[dict]:
    quick, rounds, samples = (options.quick, 1 if options.quick else options.rounds, 2 if options.quick else 7)
    images, labels = batch(4 if quick else 16)
    functions = {
        "v2": steps(build(quick=quick), images, labels),
        "v2, recompute": steps(build(quick=quick, recompute=True), images, labels),
        "v1": steps(build(quick=quick, method="rome-v1"), images, labels),
        "gdas": steps(build(quick=quick, method="gdas"), images, labels),
    }
    if options.against:
        other = load(options.against)
        functions["v2, other version"] = steps(build(other, quick=quick), images, labels, other)
    peer = load(*options.peer.rsplit(":", 1))() if options.peer else None
    compared = {  # title -> the two variants, targets of the weights and of the architecture
        "v2 / gdas": ("v2", "gdas", 0.74, 0.74),
        "v2 / other version": ("v2", "v2, other version", 1.12, 1.15),
        "v2 / peer": ("v2", "peer", None, None),
        "v2 recomputed / peer": ("v2, recompute", "peer", None, None),
    }
    rows = []
    for role in ROLES:
        variants = {}
        for name, of_role in functions.items():
            variants[name] = lambda number, step=of_role[role]: step(samples, samples * number)
        if peer:
            variants["peer"] = lambda number, role=role: peer_passes(peer, role, samples, number, images, labels)
        times = interleaved(variants, rounds)
        for name, seconds in times.items():
            per_image = [1e3 * s / samples / len(labels) for s in seconds]
            rows.append(row(f"pass of the {role}, {name}", per_image, "ms/img"))
        for title, (above, below, *targets) in compared.items():
            if below in times:
                target = targets[ROLES.index(role)]
                rows.append(row(f"pass of the {role}, {title}", ratios(times[above], times[below]), "", target))
    return rows


def peer_passes(peer, role: str, samples: int, seed: int, images, labels) -> None:
    torch.manual_seed(seed)
    one_pass = peer.weight_pass if role == "weights" else peer.architecture_pass
    for _ in range(samples):
        one_pass(images.contiguous(), labels)  # NCHW, as other people's data loaders make them


def linearity(options) -> list[dict]:
    images, labels = batch(4 if options.quick else 64)
    functions, rows = steps(build(quick=options.quick), images, labels), []
    for role in ROLES:
        variants = {  # the step of seven, and seven steps of one over the same sub-networks
            "seven": lambda number, step=functions[role]: step(7, 7 * number),
            "one": lambda number, step=functions[role]: [step(1, 7 * number + k) for k in range(7)],
        }
        times = interleaved(variants, 1 if options.quick else options.rounds)
        one = [seconds / 7 for seconds in times["one"]]
        rows.append(row(f"step of the {role}, K = 1", one, "s"))
        rows.append(row(f"step of the {role}, time(K = 7) / time(K = 1)", ratios(times["seven"], one), "", 7.2))
    return rows


# ----------------------------------------------------------------------------------------------------------------------
# input


def timed(function, spent: list):
    """The function, whose calls add their CPU time to `spent`."""

    def call(*args, **kwargs):
        start = time.process_time()
        result = function(*args, **kwargs)
        spent.append(time.process_time() - start)
        return result

    return call


def batches(size: int):
    """Pairs of batches of a search on 5,000 images, as train.py makes them, with cutout."""
    pixels = torch.randint(0, 256, (5000, 32, 32, 3), dtype=torch.uint8)
    images = train.Images(pixels, torch.randint(10, (5000,)), [], [str(i) for i in range(10)])
    config, streams = train.configure("search", dict(batch_size=size, cutout=16)), []
    for role, index in zip(ROLES, torch.arange(5000).split(2500)):
        statistics = train.statistics_of(images, config)
        streams.append(train.Stream(images, index, config, role, torch.device("cpu"), statistics).epoch(0))
    return zip(*streams)


def input_shares(options) -> list[dict]:
    """Bookkeeping is what is neither a forward or backward pass nor an optimizer's step."""
    size, samples, rounds = (8, 2, 2) if options.quick else (64, 7, options.rounds)
    built = build(quick=options.quick)
    net, adam, sgd = built
    places = [(net, "forward"), (F, "cross_entropy"), (torch.Tensor, "backward"), (torch.autograd, "grad")]
    places += [(adam, "step"), (sgd, "step")]
    shares, source = {"input": [], "bookkeeping, weights": [], "bookkeeping, architecture": []}, batches(size)
    for number in range(rounds):
        start = time.process_time()
        (images, labels), _ = next(source)
        read, whole = time.process_time() - start, 0.0
        for role in ROLES:
            step, spent = functools.partial(steps(built, images, labels)[role], samples, samples * number), []
            with contextlib.ExitStack() as stack:
                for owner, name in places:
                    stack.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name), spent)))
                seconds = cpu_time(step)
            shares[f"bookkeeping, {role}"].append(100 * (1 - sum(spent) / seconds))
            whole += seconds
        shares["input"].append(100 * read / whole)
    return [row(f"share of a step: {name}", values, "%", 3.0) for name, values in shares.items()]


# ----------------------------------------------------------------------------------------------------------------------
# network


def network_pass(model, images, labels) -> None:
    for p in model.parameters():
        p.grad = None
    logits, auxiliary = model(images)
    (F.cross_entropy(logits, labels) + 0.4 * F.cross_entropy(auxiliary, labels)).backward()


def network(options) -> list[dict]:
    genotype = genotypes.load("DARTS_V2")
    channels, cells, size, rounds = (8, 6, 4, 1) if options.quick else (36, 20, 96, options.rounds)
    images, labels = batch(size)
    own = rome.Network(genotype, channels, cells, 10, True, 0.0)
    other = plain.Network(genotype, channels, cells, 10)
    variants = {
        "rome.Network": lambda _: network_pass(own, images, labels),
        "plain": lambda _: network_pass(other, images.contiguous(), labels),
    }
    times = interleaved(variants, rounds)
    rows = [row(f"forward and backward, {name}", seconds, "s") for name, seconds in times.items()]
    return [*rows, row("rome.Network / plain", ratios(times["rome.Network"], times["plain"]), "", 0.7)]


# ----------------------------------------------------------------------------------------------------------------------
# gpu

VARIANTS = {  # name -> memory format, TF32, precision, recompute, K
    "channels-last, float32": (torch.channels_last, False, None, False, 7),
    "channels-last, TF32": (torch.channels_last, True, None, False, 7),
    "NCHW, float32": (torch.contiguous_format, False, None, False, 7),
    "NCHW, TF32": (torch.contiguous_format, True, None, False, 7),
    "channels-last, bfloat16": (torch.channels_last, True, torch.bfloat16, False, 7),
    "NCHW, bfloat16": (torch.contiguous_format, True, torch.bfloat16, False, 7),
    "channels-last, TF32, recompute": (torch.channels_last, True, None, True, 7),
    "channels-last, TF32, K = 1": (torch.channels_last, True, None, False, 1),
}


def wall_time(device: torch.device, function) -> float:
    """Seconds until the device is done."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def kernels(function) -> tuple[int, float]:
    """How many kernels a call launches, and their seconds. Events of the CPU repeat those seconds."""
    activities = torch.profiler.supported_activities()
    with torch.profiler.profile(activities=activities) as profile:
        function()
    on_device = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    events = [event for event in on_device if not event.is_user_annotation]
    return len(events), sum(event.self_device_time_total for event in events) / 1e6


def gpu(options) -> list[dict]:
    """Beside the paper's whole search of S0 on CIFAR-10, K = 7: 0.3 GPU-days on a V100, and 2.3 GB."""
    device = train.set_up(train.configure("search", dict(device=options.device)))
    clock, quick = functools.partial(wall_time, device), options.quick
    rounds, rows = 2 if quick else 10, []
    for name, (layout, tf32, dtype, recompute, samples) in VARIANTS.items():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        rome.MEMORY_FORMAT = layout
        rows += search_rows(name, device, clock, quick, rounds, 2 if quick else samples, dtype, recompute)
    rome.MEMORY_FORMAT = torch.channels_last
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    sizes = dict(channels=8, cells=3, batch_size=4) if quick else {}
    config = train.configure("retrain", dict(genotype="DARTS_V2", device=options.device) | sizes)
    for name in ("eager", "compiled"):
        rows += retrain_rows(name, config, device, clock, rounds)
    return rows


def search_rows(name, device, clock, quick, rounds, samples, dtype, recompute) -> list[dict]:
    images, labels = batch(4 if quick else 64, device=device)
    functions = steps(build(device=device, quick=quick, recompute=recompute), images, labels, autocast=dtype)
    variants = {role: lambda number, step=functions[role]: step(samples, samples * number) for role in ROLES}
    interleaved(variants, 2, clock)  # cuDNN tries its algorithms
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times, rows = interleaved(variants, rounds, clock), []
    days = [391 * 50 * (a + b) / 86400 for a, b in zip(*times.values())]
    rows.append(row(f"{name}: search of 50 epochs", days, "days", note="paper: 0.3 on a V100"))
    if device.type == "cuda":
        rows.append(row(f"{name}: peak memory", torch.cuda.max_memory_allocated() / 1e9, "GB", note="paper: 2.3"))
    for role, seconds in times.items():
        rows.append(row(f"{name}: passes of the {role}", [samples / s for s in seconds], "1/s"))
        launched, busy = kernels(functools.partial(clock, functools.partial(variants[role], 0)))
        rows.append(row(f"{name}: launches, step of the {role}", launched))
        rows.append(row(f"{name}: share with a kernel, {role}", [100 * busy / s for s in seconds], "%"))
    return rows


def retrain_rows(name, config, device, clock, rounds) -> list[dict]:
    images, labels = batch(config["batch_size"], device=device)
    model = train.build_network(genotypes.load(config["genotype"]), config, 10).to(device)
    sgd = train.make_sgd(model.parameters(), config, train.on_cuda(device))
    run = torch.compile(model, dynamic=False) if name == "compiled" else model

    def step(_):
        network_pass(run, images, labels)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config["clip"])
        sgd.step()

    seconds = interleaved({name: step}, rounds, clock)[name]
    return [row(f"retrain, {name}", [len(images) / s for s in seconds], "img/s")]


TABLES = dict(passes=passes, linearity=linearity, input=input_shares, network=network, gpu=gpu)


def main() -> int:
    made = parser(__doc__)
    made.add_argument("table", choices=TABLES)
    made.add_argument("--rounds", type=int, default=5, help="rounds (5)")
    made.add_argument("--peer", metavar="FILE:MAKE", help="of passes: a supernet of others")
    made.add_argument("--against", metavar="FILE", help="of passes: another version of rome.py")
    made.add_argument("--device", default="cuda", help="of gpu (cuda); cpu shows that the code runs")
    options = made.parse_args()
    if options.table == "gpu" and options.device != "cpu" and not torch.cuda.is_available():
        print("bench/speed.py gpu: this PyTorch finds no CUDA device")
        return 2
    torch.set_num_threads(1)
    return report(options.table, options, TABLES[options.table](options))


if __name__ == "__main__":
    sys.exit(main())
