"""How much memory a sub-network keeps for its backward pass, and that this does not grow with K.

Kept bytes are those of the distinct storages that autograd saves, without the parameters, per image. A pass is one
sub-network of S0 (8 cells, 16 channels, 32x32) at uniform alpha and beta, drawn from a seed. The peak of a step is of
everything that is allocated during it, beyond what was there before.

    python bench/memory.py                              about five minutes on one core
    python bench/memory.py --against PATH/rome.py       and the ratio to another version
"""

import functools
import itertools
import sys

import torch
import torch.nn.functional as F
from common import batch, build, load, parser, report, row, steps

MIB = 2**20


class Kept:
    """Context: bytes that autograd keeps for backward passes; `now`, and `peak` since the start."""

    def __init__(self, parameters):
        self.parameters = {p.untyped_storage().data_ptr() for p in parameters}
        self.counts, self.now, self.peak = ({}, 0, 0)  # counts: address -> how many saved tensors share the storage

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: Saved(self, x), lambda saved: saved.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    def add(self, storage, sign: int) -> None:
        address = storage.data_ptr()
        if address in self.parameters or storage.nbytes() == 0:
            return
        before = self.counts.get(address, 0)
        self.counts[address] = before + sign
        if before == 0 or before + sign == 0:  # the first that keeps it, or the last
            self.now += sign * storage.nbytes()
            self.peak = max(self.peak, self.now)


class Saved:
    """A saved tensor, counted until autograd lets go of it. Detached: the tensor itself would keep its graph alive."""

    def __init__(self, kept: Kept, tensor: torch.Tensor):
        self.kept, self.tensor = kept, tensor.detach()
        kept.add(self.tensor.untyped_storage(), 1)

    def __del__(self):
        self.kept.add(self.tensor.untyped_storage(), -1)


def kept_by_pass(net, role: str, seed: int, images, labels) -> float:
    """MiB per image that the loss of one sub-network keeps."""
    arch = net.sample(1.0, torch.Generator().manual_seed(seed))
    if role == "weights" and isinstance(arch, dict):
        arch = {kind: z._replace(A=None, B=None) for kind, z in arch.items()}
    elif role == "weights":
        arch = arch._replace(gates=None)  # the versions before Choice
    for p in net.weights():
        p.requires_grad_(role == "weights")
    with Kept(net.parameters()) as kept:
        loss = F.cross_entropy(net(images, arch), labels)
    for p in net.weights():
        p.requires_grad_(True)
    return kept.now / MIB / len(images) if loss.requires_grad else 0.0


def kept_in_step(built: tuple, role: str, count: int, first: int, images, labels) -> int:
    """Most bytes that are kept at any time during a step."""
    with Kept(built[0].parameters()) as kept:
        steps(built, images, labels)[role](count, first)
    return kept.peak


def peak_of_step(step) -> int:
    """Most bytes that are allocated at any time during the call, beyond those before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--against", metavar="FILE", help="another version of rome.py")
    options = made.parse_args()
    draws, quick = 5 if options.quick else 200, options.quick
    images, labels = batch(2 if quick else 4)
    nets = {
        "v2": build(quick=quick)[0],
        "v1": build(quick=quick, method="rome-v1")[0],
        "gdas": build(quick=quick, method="gdas")[0],
        "v2, recompute": build(quick=quick, recompute=True)[0],
    }
    if options.against:
        nets["v2, other version"] = build(load(options.against), quick=quick)[0]
    rows, roles = [], ("weights", "architecture")
    for role in roles:
        kept = {}
        for name, net in nets.items():
            kept[name] = [kept_by_pass(net, role, seed, images, labels) for seed in range(draws)]
            target = {"v2": 9.9, "v2, recompute": 1.25}.get(name)
            rows.append(row(f"kept, pass of the {role}, {name}", kept[name], "MiB/img", target, "mean"))
        rows.append(row(f"kept, pass of the {role}, v2 / gdas", sum(kept["v2"]) / sum(kept["gdas"]), "", 0.76))
        if options.against:
            other = sum(kept["v2, other version"])
            rows.append(row(f"kept, pass of the {role}, v2 / other version", sum(kept["v2"]) / other, "", 1.0))
    for role in roles:
        found = []
        for first in range(0, 100 if quick else 500, 100):
            built = build(quick=quick)
            single = [kept_in_step(built, role, 1, first + k, images, labels) for k in range(7)]
            found.append(kept_in_step(built, role, 7, first, images, labels) / max(single))
        rows.append(row(f"kept in a step of the {role}, K = 7 / largest of K = 1", found, "", 1.05, "max"))
    images, labels = batch(2 if quick else 16)
    for role, recompute, count in itertools.product(roles, (False, True), (1, 7)):
        found = []
        for first in range(0, 100 if quick else 300, 100):
            step = steps(build(quick=quick, recompute=recompute), images, labels)[role]
            peak = peak_of_step(functools.partial(step, count, first))
            found.append(peak / MIB / len(images))
        title = f"peak of a step of the {role}, K = {count}{', recompute' if recompute else ''}"
        rows.append(row(title, found, "MiB/img", of="max"))
    return report("memory", options, rows, draws=draws, batch_of_passes=2 if quick else 4, batch_of_peaks=len(images))


if __name__ == "__main__":
    sys.exit(main())
