"""Two processes against one: the Architect averages gradients over the ranks of torch.distributed.

Claims: the gradients of two gloo processes equal, to 1e-6 in float64, those of one process that runs the same
(shard, architecture) pairs in turn and averages; after steps of both phases, weights, alpha and beta are the same bit
for bit on both ranks.

    python bench/processes.py                  about a minute
    python bench/processes.py --quick
"""

import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn  # noqa: F401, imported later, by an optimizer, it would hold the process group: train.set_up
import torch.multiprocessing
from common import arguments, batch, optimizers, report, row, seeded

import rome

RANKS = 2
ROLES = ("architecture", "weights")


def make(settings: dict, rank: int, clip: float | None):
    """The same supernet everywhere, the Architect of a rank, whose samples are its own, and the step it is at."""
    torch.manual_seed(0)
    net = rome.Supernet("darts", settings["channels"], settings["cells"], topology=settings["topology"]).double()
    place = [0]

    def generator(role: str, k: int) -> torch.Generator:
        return seeded(ROLES.index(role), place[0], rank, k)

    return net, rome.Architect(net, settings["samples"], clip, generator), place


def shard(settings: dict, rank: int):
    images, labels = batch(RANKS * settings["batch"], settings["size"])
    part = slice(rank * settings["batch"], (rank + 1) * settings["batch"])
    return images[part].double(), labels[part]


def gradients(settings: dict, rank: int) -> dict:
    """Role -> loss and gradients (None where there is none) of one step that moves nothing: the rates are zero."""
    found = {}
    for role in ROLES:
        net, architect, _ = make(settings, rank, None)
        step = architect.architecture_step if role == "architecture" else architect.weight_step
        parameters = net.architecture_parameters() if role == "architecture" else net.weights()
        loss = step(*shard(settings, rank), 1.0, torch.optim.SGD(parameters, 0.0))
        found[role] = loss, [p.grad for p in parameters]
    return found


def steps(settings: dict, rank: int) -> list:
    """The parameters after some steps of both phases with the paper's optimizers and clip."""
    net, architect, place = make(settings, rank, 5.0)
    chosen = optimizers(net)
    for number in range(settings["steps"]):
        place[0] = number
        architect.architecture_step(*shard(settings, rank), 1.0, chosen["architecture"])
        architect.weight_step(*shard(settings, rank), 1.0, chosen["weights"])
    return [p.detach() for p in net.parameters()]


def worker(rank: int, folder: str, settings: dict) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    torch.save(dict(gradients=gradients(settings, rank), parameters=steps(settings, rank)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def difference(pairs) -> float:
    """Largest difference of two lists of gradients, relative to the largest gradient; infinite if one lacks one."""
    pairs = list(pairs)
    if any((a is None) != (b is None) for a, b in pairs):
        return float("inf")
    pairs = [(a, b) for a, b in pairs if a is not None]
    return (max((a - b).abs().max() for a, b in pairs) / max(b.abs().max() for _, b in pairs)).item()


def mean(grads: tuple):
    """Mean over the ranks; a rank without a gradient counts as zero, and None is the mean where no rank has one."""
    present = [grad for grad in grads if grad is not None]
    return sum(present) / len(grads) if present else None


def main() -> int:
    options = arguments(__doc__)
    settings = dict(channels=4, cells=3, batch=4, size=8, samples=2, steps=2)
    if not options.quick:
        settings = dict(channels=8, cells=8, batch=8, size=16, samples=3, steps=4)
    rows = []
    for topology in ("v2",) if options.quick else ("v2", "v1", "none"):
        settings["topology"] = topology
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(worker, (folder, settings), RANKS)
            ranks = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]
        alone = [gradients(settings, rank) for rank in range(RANKS)]
        for role in ROLES:
            want = [mean(grads) for grads in zip(*(found[role][1] for found in alone), strict=True)]
            worst = max(difference(zip(rank["gradients"][role][1], want, strict=True)) for rank in ranks)
            rows.append(row(f"{topology}: gradient of the {role}, two processes against one", worst, "", 1e-6))
            loss = sum(found[role][0] for found in alone) / RANKS
            worst = max((rank["gradients"][role][0] - loss).abs().item() for rank in ranks)
            rows.append(row(f"{topology}: loss of the {role}, likewise", worst, "", 1e-6))
        odd = sum(not torch.equal(a, b) for a, b in zip(*(rank["parameters"] for rank in ranks), strict=True))
        rows.append(row(f"{topology}: parameters that differ between ranks, {settings['steps']} steps on", odd, "", 0))
    settings.pop("topology")
    return report("processes", options, rows, **settings, ranks=RANKS, dtype="float64")


if __name__ == "__main__":
    sys.exit(main())
