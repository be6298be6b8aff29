"""How much memory a sub-network keeps, and that it does not grow with K.

Claims: one pass of a ROME-v2 sub-network (S0, 8 cells, 16 channels, 32x32) keeps at most 9.9 MiB per image for
backward, at most 0.76 of what our own GDAS keeps, and at most 1.25 MiB with recomputation; a step over K=7 sub-networks
holds at no time more than 1.05 of what the largest of them alone does. Counted are distinct storages that autograd
keeps, parameters left out, as a mean over seeded samples at uniform alpha and beta. The peak is of everything allocated
during a step, beyond what was there before it (gradients included), read from torch's profiler, or from the allocator
on a GPU.

    python bench/memory.py                     about five minutes on one core
    python bench/memory.py --quick
    python bench/memory.py --peer FILE:MAKE    beside someone else's supernet: MAKE() returns an object with
                                               loss(images, labels) and parameters()
"""

import functools
import json
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from common import MIB, arguments, batch, load, report, row, seeded, stepper, supernet

import rome


class Kept:
    """Context: bytes of the storages that autograd keeps for backward; `now`, and `peak` since the start."""

    def __init__(self, parameters):
        self.parameters = {p.untyped_storage().data_ptr() for p in parameters}
        self.counts, self.now, self.peak = {}, 0, 0

    def __enter__(self):
        pack, unpack = (lambda tensor: Held(self, tensor)), (lambda held: held.tensor)
        self.hooks = torch.autograd.graph.saved_tensors_hooks(pack, unpack)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    def add(self, storage, sign: int) -> None:
        key = storage.data_ptr()
        if key in self.parameters or not key:
            return
        before = self.counts.get(key, 0)
        self.counts[key] = before + sign
        if not before or not self.counts[key]:  # the first, or the last, that keeps it
            self.now += sign * storage.nbytes()
            self.peak = max(self.peak, self.now)


class Held:
    """One saved tensor, counted until autograd lets go of it; detached, as the tensor itself would hold its graph."""

    def __init__(self, kept: Kept, tensor: torch.Tensor):
        self.kept, self.tensor = kept, tensor.detach()
        kept.add(self.tensor.untyped_storage(), 1)

    def __del__(self):
        self.kept.add(self.tensor.untyped_storage(), -1)


def loss_for_weights(net: rome.Supernet, seed: int, images, labels):
    """The loss of one sub-network for the weights: no gates, so neither alpha nor beta is in the graph."""
    with torch.no_grad():
        arch = rome.Architecture(net.sample(1.0, seeded(seed)).picks)
    return F.cross_entropy(net(images, arch), labels)


def loss_for_architecture(net: rome.Supernet, seed: int, images, labels):
    """The loss of one sub-network for alpha and beta; its graph ends at the gates.

    The weights are frozen; the stem needs no graph then, as in rome.Architect.
    """
    arch = net.sample(1.0, seeded(seed))
    gates = {kind: gate.detach().requires_grad_() for kind, gate in arch.gates.items()}
    with torch.no_grad():
        stem = net.stem(images)
    return F.cross_entropy(net.from_stem(stem, rome.Architecture(arch.picks, gates)), labels)


def kept_by_weights(net, seed: int, images, labels) -> int:
    with Kept(net.parameters()) as kept:
        loss = loss_for_weights(net, seed, images, labels)
    return kept.now if loss.requires_grad else 0


def kept_by_architecture(net, seed: int, images, labels) -> int:
    with rome._frozen(net.weights()), Kept(net.parameters()) as kept:
        loss = loss_for_architecture(net, seed, images, labels)
    return kept.now if loss.requires_grad else 0


def live_over_step(role: str, samples: int, first: int, quick: bool, images, labels) -> int:
    net = supernet(quick=quick)
    step = stepper(net, role, images, labels)
    with Kept(net.parameters()) as kept:
        step(samples, first)
    return kept.peak


def peak_of_step(function, device: str) -> int:
    """Most bytes allocated at any time during the call, beyond those at its start."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return peak


def main() -> int:
    options = arguments(
        __doc__,
        samples=dict(type=int, default=200, help="sampled architectures (200)"),
        device=dict(default="cpu", help="of the peak of a step: cpu or cuda"),
        peer=dict(metavar="PATH:CALLABLE", help="another supernet to count beside"),
    )
    quick = options.quick
    samples, images_kept, images_step = (5, 2, 4) if quick else (options.samples, 4, 16)
    images, labels = batch(images_kept)
    rows, kept = [], {}
    for topology, recompute in (("v2", False), ("v1", False), ("none", False), ("v2", True), ("none", True)):
        net = supernet(topology, recompute, quick)
        for what, count in (("weight", kept_by_weights), ("architecture", kept_by_architecture)):
            numbers = [count(net, seed, images, labels) / MIB / images_kept for seed in range(samples)]
            kept[topology, recompute, what] = numbers
            target = {("v2", False): 9.9, ("v2", True): 1.25}.get((topology, recompute))
            title = {"v2": "v2", "v1": "v1", "none": "our gdas"}[topology] + (", recompute" if recompute else "")
            rows.append(row(f"kept by one {what} pass, {title}", numbers, "MiB/img", target, "mean"))
    for what in ("weight", "architecture"):
        ratio = sum(kept["v2", False, what]) / sum(kept["none", False, what])
        rows.append(row(f"kept, {what} pass, v2 / our gdas", ratio, "", 0.76))
    if options.peer:
        peer = load(options.peer)()
        numbers = []
        for seed in range(samples):
            torch.manual_seed(seed)
            with Kept(peer.parameters()) as count:
                loss = peer.loss(images, labels)
            numbers.append(count.now / MIB / images_kept)
            del loss
        rows.append(row("kept by one pass, peer", numbers, "MiB/img", of="mean"))
        for what in ("weight", "architecture"):
            ratio = sum(kept["v2", False, what]) / sum(numbers)
            rows.append(row(f"kept, {what} pass, v2 / peer", ratio, ""))

    for role in ("weights", "architecture"):
        ratios = []
        for start in range(1 if quick else 5):
            single = [live_over_step(role, 1, 100 * start + k, quick, images, labels) for k in range(7)]
            ratios.append(live_over_step(role, 7, 100 * start, quick, images, labels) / max(single))
        rows.append(row(f"live over a step of the {role}, K=7 / largest K=1", ratios, "", 1.05, "max"))

    images, labels = batch(images_step, device=options.device)
    for role in ("weights", "architecture"):
        for recompute in (False, True):
            for count in (1, 7):
                net, peaks = supernet("v2", recompute, quick, options.device), []
                for start in range(1 if quick else 3):
                    step = functools.partial(stepper(net, role, images, labels), count, 100 * start)
                    peaks.append(peak_of_step(step, options.device) / MIB / images_step)
                title = f"peak of a step of the {role}, K={count}{', recompute' if recompute else ''}"
                rows.append(row(title, peaks, "MiB/img", of="max"))
    return report("memory", options, rows, samples=samples, batch=images_kept, batch_of_peak=images_step, tau=1.0)


if __name__ == "__main__":
    sys.exit(main())
