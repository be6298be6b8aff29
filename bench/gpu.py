"""A full-size search step on a CUDA device: its speed, the time of a whole search, peak memory, where the time goes.

Reported beside the paper's values (S0 on CIFAR-10, K=7: 0.3 GPU-days on a V100, 2.3 GB): images per second of both
phases, days for 50 epochs of 391 steps, peak allocated memory, the kernels' share of the step's time (the rest is
launching and waiting), with and without mixed precision. Without a CUDA device it says so and ends.

    python bench/gpu.py
    python bench/gpu.py --quick
"""

import sys
import time

import torch
from common import arguments, batch, optimizers, report, row, seeded, supernet

import rome

EPOCHS, STEPS = 50, 391


def timed(function, rounds: int) -> list[float]:
    """Seconds of every call, the device waited for."""
    taken = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return taken


def busy(function) -> float:
    """Share of the wall time in which a kernel ran, in percent; kernels of one stream do not overlap."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    seconds = timed(function, 3)
    with torch.profiler.profile(activities=activities) as profile:
        function()
        torch.cuda.synchronize()
    kernels = sum(event.self_device_time_total for event in profile.key_averages())
    return 100 * kernels / 1e6 / min(seconds)


def main() -> int:
    options = arguments(
        __doc__,
        rounds=dict(type=int, default=10, help="steps that are measured (10)"),
        batch=dict(type=int, default=64, help="batch (64)"),
    )
    if not torch.cuda.is_available():
        print("bench/gpu.py: this PyTorch finds no CUDA device; nothing is measured")
        return 0
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as train.py sets them
    torch.backends.cudnn.benchmark = True
    rounds, samples = (2, 2) if options.quick else (options.rounds, 7)
    images, labels = batch(options.batch, device="cuda")
    rows = []
    variants = [("", None, False), (", amp", torch.bfloat16, False), (", recompute", None, True)]
    for title, dtype, recompute in variants:
        net = supernet("v2", recompute, options.quick, "cuda")
        count = [0]
        architect = rome.Architect(net, samples, generator=lambda _, k, c=count: seeded(c[0], k), autocast=dtype)
        chosen = optimizers(net)

        def phase(role: str, architect=architect, chosen=chosen, count=count):
            count[0] += 1
            step = architect.weight_step if role == "weights" else architect.architecture_step
            return step(images, labels, 1.0, chosen[role])

        for role in chosen:
            timed(lambda r=role: phase(r), 3)  # warm up: cuDNN tries its algorithms
        torch.cuda.reset_peak_memory_stats()
        times = {role: timed(lambda r=role: phase(r), rounds) for role in chosen}
        peak = torch.cuda.max_memory_allocated() / 1e9
        for role, values in times.items():
            rows.append(row(f"{role} step{title}", [options.batch / v for v in values], "img/s"))
        both = [sum(pair) for pair in zip(*times.values(), strict=True)]
        days = [EPOCHS * STEPS * seconds / 86400 for seconds in both]
        rows.append(row(f"search of {EPOCHS} epochs of {STEPS} steps{title}", days, "days", note="paper: 0.3, V100"))
        rows.append(row(f"peak allocated memory{title}", peak, "GB", note="paper: 2.3"))
        for role in chosen:
            share = busy(lambda r=role: phase(r))
            rows.append(row(f"share of the {role} step with a kernel running{title}", share, "%"))
    return report("gpu", options, rows, batch=options.batch, samples=samples, rounds=rounds)


if __name__ == "__main__":
    sys.exit(main())
