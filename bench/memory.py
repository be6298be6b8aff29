"""What a step of S0 keeps for its backward pass, in MiB per image of 32 x 32 pixels.

    python bench/memory.py [--against PATH/rome.py]

Kept are the distinct storages that autograd saves, without parameters, buffers and the images. A
line gives the most at any time of a step with K = 1: the mean, least and most of random
sub-networks, the same for all variants. K = 7 is compared with K = 1 on one and the same
sub-network. (Of seven different ones a step keeps as much as the largest needs, not the mean one.)
Of recomputed cells the one that is just computed again is not counted.
"""

from collections import Counter

import torch
from common import ROLES, batch, fix, load, make_parser, make_search, quantity, ratio, report, step


class Kept:
    """Inside, counts the bytes that autograd keeps: `now`, and the `most` so far."""

    def __init__(self, ignored: list):
        self.ignored = {x.untyped_storage().data_ptr() for x in ignored}
        self.uses, self.now, self.most = Counter(), 0, 0  # uses: of an address, by saved tensors

    def __enter__(self):
        pack, unpack = lambda x: Saved(self, x), lambda saved: saved.tensor
        self.hooks = torch.autograd.graph.saved_tensors_hooks(pack, unpack)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    def add(self, tensor, change: int) -> None:
        storage = tensor.untyped_storage()
        address, before = storage.data_ptr(), self.uses[storage.data_ptr()]
        if address not in self.ignored:
            self.uses[address] = before + change
            if 0 in (before, before + change):  # the first that keeps it, or the last
                self.now += change * storage.nbytes()
                self.most = max(self.most, self.now)


class Saved:
    """A saved tensor, counted until autograd lets go of it."""

    def __init__(self, kept: Kept, tensor: torch.Tensor):
        self.kept, self.tensor = kept, tensor.detach()  # the tensor itself holds its graph
        kept.add(self.tensor, 1)

    def __del__(self):
        self.kept.add(self.tensor, -1)


def kept_by_step(search, role: str, samples: int, seed: int, images, labels) -> float:
    """The most MiB per image at any time of a step."""
    ignored = [images, labels, *search.net.parameters(), *search.net.buffers()]
    with Kept(ignored) as kept:
        step(search, role, samples, seed, images, labels)
    return kept.most / 2**20 / len(images)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--draws", type=int, default=100, help="random sub-networks (100)")
    parser.add_argument("--against", metavar="FILE", help="another version of rome.py")
    options = parser.parse_args()
    torch.set_num_threads(1)
    inputs, small = batch(2 if options.small else 4), options.small
    variants = {
        "ROME": make_search(small=small),
        "recomputed": make_search(small=small, recompute=True),
        "GDAS": make_search(small=small, topology="none"),
    }
    targets = {"GDAS": "at most 0.70"}
    if options.against:
        variants["other version"] = make_search(load(options.against), small)
        targets["other version"] = "at most 1.02"
    rows = []
    for role in ROLES:
        kept = {name: [] for name in variants}
        for seed in range(options.draws):
            for name, search in variants.items():
                fix(search.net, seed)
                kept[name].append(kept_by_step(search, role, 1, seed, *inputs))
        for name, values in kept.items():
            rows.append(quantity(f"step of the {role}, {name}", values, "MiB per image"))
        for name in list(kept)[1:]:
            what, target = f"step of the {role}, ROME / {name}", targets.get(name, "no target")
            rows.append(ratio(what, kept["ROME"], kept[name], target))

        own, seven = variants["ROME"], []
        for seed in range(max(1, options.draws // 20)):
            fix(own.net, seed)
            seven.append(kept_by_step(own, role, 7, seed, *inputs))
        what = f"step of the {role}, K = 7 / K = 1, the same sub-network"
        rows.append(ratio(what, seven, kept["ROME"][: len(seven)], "at most 1"))
    report("memory", options, rows)


if __name__ == "__main__":
    main()
