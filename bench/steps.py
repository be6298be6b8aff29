"""Time of the two steps against K, against our own GDAS, with recomputation, and against someone else's supernet.

Claims (S0, 8 cells, 16 channels, 32x32): a step over K=7 sub-networks takes at most 7.2 times as long as one over a
single sub-network; one v2 sub-network at most 0.74 of our own GDAS's; a weight pass at most 0.36 of published GDAS's
(0.55 with recomputation), an architecture pass at most 0.18 (0.32). A pass is a seventh of a whole step with K=7, with
sampling, reduction, clip and optimizer; of the other supernet, forward and backward alone. Every variant runs once a
round, on the same seeded architectures; a ratio is taken within a round, and its median is reported.

    python bench/steps.py                      some ten minutes on one core
    python bench/steps.py --quick
    python bench/steps.py --peer FILE:MAKE     MAKE() returns an object with weight_pass(images, labels) and
                                               architecture_pass(images, labels), one pass on NCHW images;
                                               --peer-is-gdas holds it to the targets of published GDAS
"""

import sys

import torch
from common import (
    CLOCK,
    arguments,
    batch,
    interleaved,
    load,
    ratios,
    report,
    row,
    seconds,
    stepper,
    supernet,
)

ROLES = dict(weights="weight", architecture="architecture")
TARGETS = dict(weights=(0.36, 0.55), architecture=(0.18, 0.32))  # plain, recomputed; of published GDAS


def against_k(role: str, quick: bool, rounds: int, size: int, clock: str) -> list[dict]:
    """Rows of time(K) / time(1). One step of K sub-networks is compared with steps of one, over the same K of them."""
    step = stepper(supernet(quick=quick), role, *batch(size))
    counts = (1, 2, 7) if quick else (1, 2, 3, 4, 5, 6, 7)
    found = {count: [] for count in counts}
    for number in range(-1, rounds):
        first = 100 * (number + 1)
        single = [seconds(lambda k=k, f=first: step(1, f + k), clock) for k in range(max(counts))]
        for count in counts[1:]:
            taken = seconds(lambda c=count, f=first: step(c, f), clock)
            if number >= 0:
                found[count].append(count * taken / sum(single[:count]))
        if number >= 0:
            found[1].append(sum(single) / len(single))
    rows = [row(f"step of the {role}, K=1", found.pop(1), "s")]
    for count, values in found.items():
        rows.append(row(f"step of the {role}, time(K={count}) / time(K=1)", values, "", 7.2 if count == 7 else None))
    return rows


def main() -> int:
    options = arguments(
        __doc__,
        rounds=dict(type=int, default=5, help="rounds (5)"),
        samples=dict(type=int, default=7, help="K of the passes: sub-networks per variant and round (7)"),
        batch=dict(type=int, default=64, help="batch of the steps (64)"),
        batch_of_passes=dict(type=int, default=16, help="batch of the passes (16)"),
        skip_k=dict(action="store_true", help="leave out the steps against K"),
        clock=CLOCK,
        peer=dict(metavar="PATH:CALLABLE", help="another supernet to run in turn"),
        peer_is_gdas=dict(action="store_true", help="hold the ratios to the targets of published GDAS"),
    )
    quick, clock = options.quick, options.clock
    rounds, each = (2, 2) if quick else (options.rounds, options.samples)
    images, labels = batch(4 if quick else options.batch_of_passes)
    plain_images = images.contiguous()  # NCHW, as other people's data loaders make them
    rows = []

    nets = {
        "v2": supernet("v2", quick=quick),
        "v2, recompute": supernet("v2", True, quick=quick),
        "v1": supernet("v1", quick=quick),
        "our gdas": supernet("none", quick=quick),
        "our gdas, recompute": supernet("none", True, quick=quick),
    }
    peer = load(options.peer)() if options.peer else None
    for role, what in ROLES.items():

        def ours(net, role=role):
            step = stepper(net, role, images, labels)
            return lambda number: step(each, each * number)

        def theirs(number, what=what):
            torch.manual_seed(number)
            for _ in range(each):
                getattr(peer, f"{what}_pass")(plain_images, labels)

        variants = {name: ours(net) for name, net in nets.items()} | ({"peer": theirs} if peer else {})
        times = interleaved(variants, rounds, clock)
        for name, values in times.items():
            per_image = [1e3 * value / each / len(labels) for value in values]
            rows.append(row(f"one {what} pass, {name}", per_image, "ms/img"))
        rows.append(row(f"{what} pass, v2 / our gdas", ratios(times["v2"], times["our gdas"]), "", 0.74))
        both = ratios(times["v2, recompute"], times["our gdas, recompute"])
        rows.append(row(f"{what} pass, v2 / our gdas, both recomputed", both))
        rows.append(row(f"{what} pass, v2, recomputed / plain", ratios(times["v2, recompute"], times["v2"])))
        if peer:
            for name, target in zip(("v2", "v2, recompute"), TARGETS[role], strict=True):
                target = target if options.peer_is_gdas else None
                rows.append(row(f"{what} pass, {name} / peer", ratios(times[name], times["peer"]), "", target))
    if not options.skip_k:
        for role in ROLES:
            rows += against_k(role, quick, rounds, 4 if quick else options.batch, clock)
    settings = dict(rounds=rounds, samples=each, batch=4 if quick else options.batch, batch_of_passes=len(labels))
    return report("steps", options, rows, clock=clock, peer=bool(peer), **settings)


if __name__ == "__main__":
    sys.exit(main())
