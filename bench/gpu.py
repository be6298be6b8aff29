"""What one GPU shows, in about six minutes.

    python bench/gpu.py         on the CUDA device
    python bench/gpu.py cpu     a rehearsal at tiny sizes

1. Gradients of every operation and space, K = 4, in float32 and in bfloat16 autocast, against
   float64: relative errors, of alpha and beta together and of the weights together. In float32
   they should be below 1e-3. One input of a ReLU that rounding moves across 0 can cost as much. So
   a network with a larger error is measured again with other images and weights, up to three
   times: a wrong kernel is always wrong.
2. Search of S0, K = 7, batch 64, TF32, by 1, 2, 4 and 7 processes on the one card: an iteration
   (both steps), the hours of a search, the peak of each process, and what all use of the card.
3. Retrain of DARTS_V2, batch 96: eager, as a graph of forward and backward alone (the floor),
   compiled with graphs, compiled; each in TF32 and in bfloat16. loss: the mean of steps 41 to 50,
   on drawn shapes; it should be near eager's.

The result is written after every line, so a run that is cut keeps what it has. No compilation
starts after 280 seconds. This program has not run on a card since rome.py was written anew.
"""

import math
import statistics
import sys
import time
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from common import ROLES, batch, in_processes, make_parser, make_search, step, write

import genotypes
import rome
import train
from extra import nasbench
from extra.shapes import draw_shapes

ITERATIONS = 19_550  # of the paper's search on CIFAR-10: 50 epochs of 391
COMPILED = ("reduce-overhead", "default")  # modes of torch.compile; the first uses CUDA graphs
LAST_START = 280  # seconds
TOLERANCE = 1e-3  # of float32
# Without the noise of S4, which draws something else in each precision.
OPS = [op for op in rome.PRIMITIVES if op != "noise"]
SPACES = [space for space in (*rome.SPACES, *nasbench.SPACES) if space != "s4"]
gumbel_noise = rome.gumbel_noise


def precision(tf32: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = tf32


def clock(device: str) -> float:
    """Seconds, after the device has ended its work."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# --------------------------------------------------------------------------------------------------
# 1. Gradients


def float32_noise(logits, generator=None):
    """So that networks of all precisions draw the same sub-networks."""
    return gumbel_noise(logits.float(), generator).to(logits.dtype)


def gradients(space, device, seed, dtype, bfloat16=False, sizes=(4, 3, 4, 16)) -> tuple:
    """The gradients of a step of the architecture, then those of a step of the weights.

    sizes: channels, cells, images, and their side.
    """
    channels, cells, count, size = sizes
    torch.manual_seed(seed)
    net = train.make_supernet(space, channels, cells, 10)
    for p in net.architecture_parameters():
        p.data += 0.3 * torch.randn_like(p)
    net.to(device, dtype)
    images, labels = batch(count, device, size, seed)
    inputs = images.to(dtype), labels, 1.0
    architect = rome.Architect(net, 4, math.inf, torch.Generator().manual_seed(seed))
    adam, sgd = (torch.optim.SGD(p, 0.0) for p in (net.architecture_parameters(), net.weights()))
    with (
        mock.patch.object(rome, "gumbel_noise", float32_noise),
        mock.patch.object(nasbench, "gumbel_noise", float32_noise),
        torch.autocast(device, torch.bfloat16, enabled=bfloat16),
    ):
        architect.architecture_step(*inputs, adam)
        architect.weight_step(*inputs, sgd)
    found = [p.grad.double() for p in net.weights() if p.grad is not None]
    return [p.grad.double() for p in net.architecture_parameters()], found


def error(exact: list, other: list) -> float:
    """The norm of the difference by the norm of what is exact."""
    difference = sum((p - q).square().sum() for p, q in zip(exact, other))
    relative = difference / sum(p.square().sum() for p in exact)
    return float(f"{relative.sqrt().item():.1e}")


def compare(name: str, space, device: str, **sizes) -> dict:
    for seed in range(3):
        arguments, row = (space, device, seed), dict(gradients=name, seed=seed)
        exact = gradients(*arguments, torch.float64, **sizes)
        for title, bfloat16 in (("float32", False), ("bfloat16", True)):
            found = gradients(*arguments, torch.float32, bfloat16, **sizes)
            row[title] = [error(p, q) for p, q in zip(exact, found)]
        if max(row["float32"]) < TOLERANCE:
            break
    return row


def all_gradients(device: str):
    precision(tf32=False)
    for op in OPS:
        edges = ((op,),) * 14
        yield compare(op, dict(normal=edges, reduce=edges), device)
    for space in SPACES:
        yield compare(space, space, device)
    if device == "cuda":
        yield compare("darts, full size", "darts", device, sizes=(16, 8, 64, 32))


# --------------------------------------------------------------------------------------------------
# 2. Search


def search(rank: int, device: str, recompute: bool, steps: int) -> dict:
    """Iterations of the process `rank` among those that share them."""
    precision(tf32=True)
    built = make_search(small=device == "cpu", device=device, recompute=recompute)
    inputs, seconds = batch(4 if device == "cpu" else 64, device), []
    for number in range(4 + steps):
        start = clock(device)
        for role in reversed(ROLES):
            step(built, role, 7, number, *inputs)
        seconds.append(clock(device) - start)
    dist.barrier()  # all processes hold their memory
    row = dict(iteration_ms=round(1e3 * statistics.median(seconds[4:])))
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        row["peak_mib"] = torch.cuda.max_memory_allocated() // 2**20
        row["card_mib"] = (total - free) // 2**20
    return row


def searches(device: str):
    counts = (2,) if device == "cpu" else (1, 2, 4, 7)
    for processes, recompute in [(1, True)] + [(count, False) for count in counts]:
        steps = 2 if device == "cpu" else 12
        row = in_processes(processes, search, device, recompute, steps)[0]
        hours = round(row["iteration_ms"] * ITERATIONS / 3.6e6, 2)
        yield dict(search_processes=processes, recompute=recompute, hours=hours) | row


# --------------------------------------------------------------------------------------------------
# 3. Retrain


def retrain(way: str, bfloat16: bool, device: str, steps: int = 50) -> dict:
    """Steps of DARTS_V2. way: "eager", "floor", or one of COMPILED."""
    begin = time.perf_counter()
    torch.manual_seed(0)
    channels, cells, count = (4, 3, 8) if device == "cpu" else (36, 20, 96)
    net = rome.Network(genotypes.load("DARTS_V2"), channels, cells, 10).to(device)
    sgd = torch.optim.SGD(net.parameters(), 0.025, 0.9, weight_decay=3e-4)
    model = net
    if way in COMPILED:
        torch.compiler.reset()
        model = torch.compile(net, dynamic=False, mode=way)
    pixels, labels = draw_shapes(10 * count, 0)
    images = (pixels.to(device).permute(0, 3, 1, 2) / 127.5 - 1).split(count)
    labels = labels.to(device).split(count)

    def passes(number):
        # A captured graph must not use the casts of an earlier pass.
        cache = way != "floor"
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16, cache_enabled=cache):
            logits, auxiliary = model(images[number])
            loss = F.cross_entropy(logits, labels[number])
            loss = loss + 0.4 * F.cross_entropy(auxiliary, labels[number])
        loss.backward()
        return loss.detach()

    def train_step(number):
        sgd.zero_grad()
        loss = passes(number % 10)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        sgd.step()
        return loss

    losses = [train_step(number) for number in range(4)]
    run = capture(passes, sgd) if way == "floor" else train_step
    start = clock(device)
    losses += [run(number) for number in range(4, steps)]
    speed = round(count * (steps - 4) / (clock(device) - start))
    row = dict(retrain=way, bfloat16=bfloat16, images_per_second=speed)
    row["warm_up_s"] = round(start - begin)
    if way != "floor":
        row["loss"] = round(torch.stack(losses[-10:]).mean().item(), 4)
    return row


def capture(passes, sgd):
    """A function that replays forward and backward on one batch, as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            sgd.zero_grad()
            passes(0)
    torch.cuda.current_stream().wait_stream(stream)
    sgd.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        passes(0)
    return lambda number: graph.replay()


def retrains(device: str, begin: float):
    precision(tf32=True)
    for way in ("eager", "floor", *COMPILED):
        for bfloat16 in (False, True):
            slow = way in COMPILED and time.perf_counter() - begin > LAST_START
            if not slow and (device == "cuda" or way != "floor"):
                yield retrain(way, bfloat16, device)


# --------------------------------------------------------------------------------------------------


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("device", nargs="?", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    device, begin, rows = options.device, time.perf_counter(), []
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("bench/gpu.py: this PyTorch finds no CUDA device; `cpu` rehearses without one")
    torch.set_num_threads(1)
    for part in (all_gradients(device), searches(device), retrains(device, begin)):
        for row in part:
            rows.append(row | dict(at_second=round(time.perf_counter() - begin)))
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            write("gpu", options, rows)
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
