"""How fast ROME is on a CPU. A word chooses the table:

    python bench/speed.py steps [--against PATH/rome.py]
        CPU time of a step of S0, K = 7, batch 16: against the own GDAS (topology "none"), K = 1,
        recomputed cells, and another version of rome.py
    python bench/speed.py processes
        a step of S0, batch 16: one process with one thread against two of them, on two idle cores.
        On a busy machine read the CPU time: that of one process, by that of the slower of the two

All variants run in turn, round by round. In a round of `steps` all of them run one sub-network, K
times. A ratio is that of the means; its range is that of the rounds. In `processes` a step has
different sub-networks; while one process runs alone, the other waits.
"""

import itertools
import time
from unittest import mock

import torch
import torch.distributed as dist
from common import (
    ROLES,
    batch,
    fix,
    in_processes,
    load,
    make_parser,
    make_search,
    quantity,
    ratio,
    report,
    step,
)

import rome

SAMPLES = {7: "at least 1.5", 8: "at least 1.7"}  # K of `processes`, and the target of wall time


def interleaved(variants: dict, rounds: int) -> dict:
    """name -> CPU seconds of each round. variants: name -> function of the round's number."""
    times = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, function in variants.items():
            start = time.process_time()
            function(number)
            times[name].append(time.process_time() - start)
    return {name: seconds[1:] for name, seconds in times.items()}  # the first round warms up


def steps(options) -> list:
    inputs = batch(2 if options.small else 16)
    own = make_search(small=options.small)
    gdas = make_search(small=options.small, topology="none")
    recomputed = make_search(small=options.small, recompute=True)
    variants = {  # name -> search, K, target of the ratio
        "K = 7": (own, 7, ""),
        "K = 1": (own, 1, "no target"),
        "recomputed": (recomputed, 7, "no target"),
        "GDAS": (gdas, 7, "at most 0.70"),
    }
    if options.against:
        other = make_search(load(options.against), options.small)
        variants["other version"] = other, 7, "at most 1.02"

    def runner(role, search, samples):
        def run(number):
            fix(search.net, number)
            step(search, role, samples, number, *inputs)

        return run

    rows = []
    for role in ROLES:
        runners = {name: runner(role, *variant[:2]) for name, variant in variants.items()}
        times = interleaved(runners, options.rounds)
        for name, seconds in times.items():
            rows.append(quantity(f"step of the {role}, {name}", seconds, "s"))
        for name, (_, _, target) in variants.items():
            what = f"step of the {role}, K = 7 / {name}"
            if target:
                rows.append(ratio(what, times["K = 7"], times[name], target))
    return rows


def processes(options) -> list:
    first, second = in_processes(2, shared_steps, options.rounds, options.small)
    rows = []
    for role in ROLES:
        for samples, target in SAMPLES.items():
            what = f"step of the {role}, K = {samples}"
            alone, shared = first[f"{what}, alone"], first[f"{what}, shared"]
            slower = [max(pair) for pair in zip(shared["cpu"], second[f"{what}, shared"]["cpu"])]
            rows.append(quantity(f"{what}, one process", alone["wall"], "s"))
            rows.append(ratio(f"{what}, wall: one / two", alone["wall"], shared["wall"], target))
            rows.append(ratio(f"{what}, CPU: one / slower of two", alone["cpu"], slower))
    return rows


def shared_steps(rank: int, rounds: int, small: bool) -> dict:
    """Seconds of steps that both processes share, and of those that the first one runs alone."""
    search, inputs, times = make_search(small=small), batch(2 if small else 16), {}
    for number, role, samples, way in itertools.product(
        range(rounds + 1), ROLES, SAMPLES, ("shared", "alone")
    ):
        dist.barrier()
        wall, cpu = time.perf_counter(), time.process_time()
        if way == "shared":
            step(search, role, samples, number, *inputs)
        elif rank == 0:
            with mock.patch.object(rome, "rank_and_world", lambda: (0, 1)):
                step(search, role, samples, number, *inputs)
        if number > 0:  # the first round warms up
            name = f"step of the {role}, K = {samples}, {way}"
            seconds = times.setdefault(name, dict(wall=[], cpu=[]))
            seconds["wall"].append(time.perf_counter() - wall)
            seconds["cpu"].append(time.process_time() - cpu)
    return times


TABLES = dict(steps=steps, processes=processes)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--rounds", type=int, default=8, help="rounds (8)")
    parser.add_argument("--against", metavar="FILE", help="of steps: another version of rome.py")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report(options.table, options, TABLES[options.table](options))


if __name__ == "__main__":
    main()
