"""Search and retrain with ROME: settings, the two loops, the run's folder, the command line.

    python train.py search  --space darts --dataset cifar10 --retrain
    python train.py retrain --genotype GDAS_V1 --dataset cifar10

A run saves a checkpoint after every epoch; the same command with --resume goes on from it. Every
draw follows from the seed and the epoch. So a resumed run repeats the uninterrupted one: on a CPU
with as many threads to the bit, on CUDA with --deterministic.

1 Settings   2 Search   3 Retrain   4 What both loops need   5 The folder of a run
6 What a person sees   7 Command line
"""

import argparse
import csv
import functools
import io
import json
import math
import os
import shlex
import sys
import textwrap
import time
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

import genotypes
import rome
from extra import images
from extra.images import barrier, fingerprint, halves, load_data, seed_of, shuffle, stream

# --------------------------------------------------------------------------------------------------
# 1. Settings. Of SEARCH or RETRAIN the rows apply that `settings_of` lists. A row has what differs
# from "default". Most settings have a flag, which wins over the rows.

COMMON = dict(
    space="darts", dataset="cifar10", data="data", seed=0, device="auto", amp=False,
    deterministic=False, workers=2, resume=False,
)  # fmt: skip
OWN = dict(
    search=dict(method="rome-v2", recompute=False, retrain=False), retrain=dict(compile=False)
)
SEARCH = {
    # The paper's Section 4; what it leaves open is from DARTS's code, the temperature from GDAS's.
    "default": dict(
        cells=8, channels=16, epochs=50, batch_size=64, samples=[7], lr=0.05, lr_min=0.001,
        weight_decay=3e-4, clip=5.0, alpha_lr=3e-4, alpha_weight_decay=1e-3, tau=[10.0, 0.1],
        fraction=0.5, cutout=0, image_size=32,
    ),
    # The paper's search on ImageNet, on 10% + 10% of its images. A folder keeps both halves.
    "imagenet stem": dict(epochs=30, batch_size=256, samples=[3], image_size=224),
    "imagenet": dict(fraction=0.1),
    # nasbench-1shot1's code for what the paper leaves open; it has 100 epochs, lr 0.025 for GDAS.
    "1shot1": dict(cells=9, batch_size=96, tau=[10.0, 1.0]),
    # Beyond the paper: NAS-Bench-201's network, five cells a stage.
    "nb201": dict(cells=5),
    # Drawn images, to try the program: minutes on a CPU. 700 steps are few for alpha. So its
    # rate is high, and no decay makes it forget.
    "shapes": dict(
        cells=3, channels=8, epochs=7, batch_size=16, samples=[2], alpha_lr=2e-2,
        alpha_weight_decay=0.0, image_size=16,
    ),
}  # fmt: skip
RETRAIN = {
    # The paper's Section 4: "as DARTS".
    "default": dict(
        cells=20, channels=36, epochs=600, batch_size=96, lr=0.025, lr_min=0.0, schedule="cosine",
        lr_warmup=0, nesterov=False, weight_decay=3e-4, clip=5.0, drop_path=0.2, cutout=16,
        auxiliary=0.4, label_smoothing=0.0, image_size=32,
    ),
    # 250 epochs, batch 1024, lr 0.5 are the paper's; the rest is PC-DARTS's code.
    "imagenet stem": dict(
        cells=14, channels=48, epochs=250, batch_size=1024, lr=0.5, schedule="linear", lr_warmup=5,
        weight_decay=3e-5, drop_path=0.0, cutout=0, label_smoothing=0.1, image_size=224,
    ),
    # S1 to S4 "strictly follow R-DARTS": later papers restate its appendix as 16 channels for S2
    # and S4 on CIFAR-10. Its code has 8 cells and 16 channels everywhere, which we take for
    # CIFAR-100 and SVHN. DARTS-PT has 36 channels for S2 and S4 too.
    "s2/cifar10": dict(channels=16),
    "s4/cifar10": dict(channels=16),
    "s1-s4/cifar100": dict(cells=8, channels=16),
    "s1-s4/svhn": dict(cells=8, channels=16),
    # NAS-Bench-201's own training, which does not clip; the paper retrains no 1Shot1 cells.
    "nb201": dict(
        cells=5, channels=16, epochs=200, batch_size=256, lr=0.1, nesterov=True, weight_decay=5e-4,
        clip=0.0, drop_path=0.0, cutout=0, auxiliary=0.0,
    ),
    "1shot1": dict(cells=9, channels=16, drop_path=0.0, auxiliary=0.0),
    # Small batches, because larger ones give too few steps for cells of many convolutions.
    "shapes": dict(
        cells=3, channels=8, epochs=4, batch_size=16, lr=0.05, drop_path=0.0, cutout=0,
        auxiliary=0.0, image_size=16,
    ),
}  # fmt: skip
TOPOLOGY = {"rome-v2": "v2", "rome-v1": "v1", "gdas": "none"}
# Of the retrain that is proposed for a folder of a few hundred images.
SMALL = "--cells 5 --channels 16 --epochs 60 --batch-size 32".split()
NASBENCH = ("nb201", "1shot1-1", "1shot1-2", "1shot1-3")  # spaces of extra/nasbench.py
DATASETS = (*images.STATISTICS, "folder", "shapes")


def settings_of(table: dict, space: str, dataset: str, imagenet: bool = False) -> dict:
    """The rows that apply, the special after the general. imagenet: with the stem of stride 8."""
    stem = "imagenet stem" if imagenet or dataset == "imagenet" else ""
    group = "s1-s4" if space in ("s1", "s2", "s3", "s4") else space.partition("-")[0]
    row = {}
    for name in ("default", stem, group, f"{group}/{dataset}", f"{space}/{dataset}", dataset):
        row |= table.get(name, {})
    return row


# --------------------------------------------------------------------------------------------------
# 2. Search


def search(config: dict):
    """Algorithm 1 over the epochs of a configuration. Returns the genotype, argmax p(z)."""
    device = set_up(config)  # it joins the processes of torchrun, too
    epochs, seed = config["epochs"], functools.partial(seed_of, config)
    samples = config["samples"][0], config["samples"][-1]  # K of alpha, K of the weights
    rank, processes = rome.rank_and_world()
    if processes > max(samples):
        raise ValueError(f"{processes} processes share K = {max(samples)} sub-networks: use fewer")
    if config["retrain"]:
        later = settings_of(RETRAIN, config["space"], config["dataset"], config["imagenet"])
        check_shares(later, processes)
    with claimed(config):
        tell = functools.partial(log, config)
        # The search never looks at the test images. But what the retrain needs is checked first.
        train = load_data(config, "train", device, tell)
        if config["retrain"]:
            load_data(config, "test", "cpu", tell)
        elif config["dataset"] == "folder":
            from extra import folders

            folders.look_at_test(config["data"], tell)
        config = config | dict(images=fingerprint(config, train))
        weight_half, architecture_half = halves(
            train.labels, config["fraction"], seed("halves"), train.classes
        )
        generator = torch.Generator().manual_seed(seed("evaluation"))
        order = torch.randperm(len(architecture_half), generator=generator)
        evaluated = architecture_half[order[:2000]]
        steps = len(shuffle(weight_half, config["batch_size"]))

        torch.manual_seed(seed("first weights"))
        net = make_supernet(
            config["space"], config["channels"], config["cells"], len(train.classes),
            TOPOLOGY[config["method"]], config["recompute"], config["imagenet"],
        ).to(device)  # fmt: skip
        draws = torch.Generator()
        architect = rome.Architect(net, samples, config["clip"], draws)
        sgd = make_sgd(net.weights(), config)
        decay = config["alpha_weight_decay"]
        adam = torch.optim.Adam(
            net.architecture_parameters(), config["alpha_lr"], (0.5, 0.999), weight_decay=decay
        )
        parts = dict(net=net, sgd=sgd, adam=adam)
        rows = restore(config, parts)
        log(
            config,
            f"search of {config['space']} on {config['dataset']} by {config['method']}: "
            f"{len(train.classes)} classes,\n"
            f"  {len(weight_half):,} images for the weights, {len(architecture_half):,} for alpha "
            f"and beta,\n"
            f"  K = {samples[0]} for alpha and {samples[1]} for the weights, "
            f"{sum(p.numel() for p in net.weights()):,} weights,\n"
            f"  epochs: {epochs}, steps of each: {steps}, on {device}, processes: {processes}\n"
            f"  The supernet accuracy below is the derived cell's, not a result.",
        )
        if steps == 1:
            log(config, f"  --batch-size {config['batch_size']} is all of a half: a smaller one?")
        watch = watcher(config, device, (epochs - len(rows)) * steps)

        for epoch in range(len(rows), epochs):
            start, lr = time.perf_counter(), learning_rate(config, epoch)
            passed = epoch / max(1, epochs - 1)
            tau = (1 - passed) * config["tau"][0] + passed * config["tau"][1]  # linear
            sgd.param_groups[0]["lr"] = lr
            draws.manual_seed(seed("sub-networks", epoch))
            torch.manual_seed(seed(f"operations {rank}", epoch))
            D_s = stream(train, config, architecture_half, "architecture", epoch, augment=True)
            D_t = stream(train, config, weight_half, "weights", epoch, augment=True)
            # Sums: of the steps of alpha and beta, and of those of the weights.
            losses, norms = torch.zeros(2, device=device), torch.zeros(2, device=device)
            for (x_s, y_s), (x_t, y_t) in zip(D_s, D_t):
                # Algorithm 1: alpha and beta on D_s first, then the weights on D_t.
                with torch.autocast(device.type, torch.bfloat16, enabled=config["amp"]):
                    loss_alpha = architect.architecture_step(x_s, y_s, tau, adam)
                    norm_alpha = architect.gradient_norm  # of the step just taken
                    loss_theta = architect.weight_step(x_t, y_t, tau, sgd)
                    norm_theta = architect.gradient_norm
                losses += torch.stack([len(y_s) * loss_alpha, len(y_t) * loss_theta])
                norms += torch.stack([norm_alpha, norm_theta])
                watch(losses)

            seconds, seen = time.perf_counter() - start, len(weight_half) + len(architecture_half)
            loss_alpha, loss_theta = (losses / len(weight_half)).tolist()  # both halves' size
            norm_alpha, norm_theta = (norms / steps).tolist()
            row = dict(
                epoch=epoch + 1, tau=tau, lr=lr, loss_alpha=loss_alpha, loss_theta=loss_theta,
                gradient_norm_alpha=norm_alpha, gradient_norm=norm_theta,
                **derived_cell(net, stream(train, config, evaluated, "evaluation")),
                **certainty(net), alpha_memory=memory_of(adam, (epoch + 1) * steps),
                images_per_second=seen / seconds, seconds=seconds, peak_mib=peak_mib(device),
            )  # fmt: skip
            rows.append(row)
            end_epoch(config, rows, parts, train)
            log(config, text_of_epoch(row, epochs, steps))

        folder, genotype = Path(config["out"]), net.genotype()
        if is_first():
            about = dict(space=config["space"], dataset=config["dataset"], epoch=epochs)
            for name, table in probabilities(net).items():
                about[name] = {kind: p.round(decimals=4).tolist() for kind, p in table.items()}
            genotypes.save(genotype, folder / "genotype.json", **about)
            genotypes.draw(genotype, folder / "cells.svg")
        text = textwrap.fill(f"found {genotype}", 80, break_long_words=False)
        log(config, f"{text}\n{genotypes.describe(genotype)}")
        if rows[-1]["times_uniform"] < 1.1:
            log(config, "alpha is near uniform: the cell is close to a random draw; search longer")
        log(config, f"files in {folder}: genotype.json, cells.svg, metrics.csv, last.pt")
    return genotype


def derived_cell(net, batches):
    """The derived cell, and how it does in the supernet, as columns of metrics.csv."""
    genotype = net.genotype()
    predict = functools.partial(net, z=net.architecture(genotype))
    loss, accuracy = evaluate(predict, batches)
    free = genotypes.parameter_free(genotype)
    columns = {f"parameter_free_{kind}": count for kind, count in free.items()}
    return dict(genotype=str(genotype), supernet_loss=loss, supernet_accuracy=accuracy, **columns)


def text_of_epoch(row, epochs, steps):
    """What a person sees of an epoch."""
    start = "parameter_free_"
    counts = [f"{row[key]} {key.removeprefix(start)}" for key in row if key.startswith(start)]
    text = (
        f"epoch {row['epoch']}/{epochs}: tau {row['tau']:.2f}, loss {row['loss_theta']:.3f} (alpha "
        f"{row['loss_alpha']:.3f}), supernet accuracy {row['supernet_accuracy']:.1f}%,\n"
        f"  parameter-free ops {', '.join(counts)}, alpha {row['times_uniform']:.2f} x uniform, "
        f"{row['images_per_second']:,.0f} images/s"
    )
    memory = row["alpha_memory"]
    if memory < 0.99 * steps:
        text += f"\n  alpha's decay makes it forget in {memory:.0f} steps, under an epoch"
    return text


@torch.no_grad()
def probabilities(net):
    """The probabilities of alpha and beta: name -> cell type -> (rows, choices)."""
    tables = dict(alpha={}, beta={})
    for kind, alpha in net.alpha.items():
        tables["alpha"][kind] = alpha.cpu().double().softmax(-1)
    for kind in net.beta:
        tables["beta"][kind] = net.logits_of_inputs(kind).double().softmax(-1)
    return tables


def certainty(net):
    """How sure alpha and beta are, as columns of metrics.csv.

    They are means over the rows that have a choice: the entropy in nats and the largest
    probability. times_uniform: the largest probability of alpha times the number of operations.
    """
    columns, times = {}, []
    for name, table in probabilities(net).items():
        for kind, p in table.items():
            # How many each row draws: a number, or in extra/nasbench.py one for each node.
            drawn = torch.as_tensor(net.picks if name == "beta" else 1)
            chosen = p[(p > 0).sum(-1) > drawn]
            if len(chosen) > 0:
                columns[f"entropy_{name}_{kind}"] = -chosen.xlogy(chosen).sum(-1).mean().item()
                columns[f"top_{name}_{kind}"] = chosen.max(-1).values.mean().item()
            if name == "alpha":
                times.append(p.max(-1).values.mean().item() * p.shape[1])
    return columns | dict(times_uniform=sum(times) / len(times))


def memory_of(adam, done):
    """How many of the `done` steps alpha and beta remember, in the mean over their entries.

    Adam adds its decay to the gradient before it divides by the root v of the second moment. So a
    step takes the share lr x decay / v from an entry, which forgets in v / (lr x decay) steps.
    """
    group = adam.param_groups[0]
    share, roots = group["lr"] * group["weight_decay"], []
    for state in adam.state.values():
        moment = state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"].item())
        roots.append(moment.sqrt().flatten())
    return min(done, torch.cat(roots).mean().item() / share) if share else done


# --------------------------------------------------------------------------------------------------
# 3. Retrain


def retrain(config: dict) -> float:
    """Trains the network of a genotype from scratch. Returns its last test accuracy in percent."""
    device = set_up(config)  # it joins the processes of torchrun, too
    epochs, seed = config["epochs"], functools.partial(seed_of, config)
    genotype = genotypes.load(config["genotype"])
    rank, processes = rome.rank_and_world()
    check_shares(config, processes)
    # A resumed run needs as many, because each has batch norms of its own.
    config = config | dict(processes=processes)
    with claimed(config):
        tell = functools.partial(log, config)
        train = load_data(config, "train", device, tell)
        test = load_data(config, "test", device, tell)._replace(statistics=train.statistics)
        config = config | dict(images=fingerprint(config, train, test))
        train_index, test_index = torch.arange(len(train.labels)), torch.arange(len(test.labels))
        steps = len(shuffle(train_index, config["batch_size"], share=True))

        torch.manual_seed(seed("first weights"))
        network = make_network(genotype, config, len(train.classes)).to(device)
        model = torch.compile(network, dynamic=False) if config["compile"] else network
        parameters = list(network.parameters())
        sgd = make_sgd(parameters, config)
        own = [p.numel() for name, p in network.named_parameters() if "auxiliary" not in name]
        criterion = nn.CrossEntropyLoss(label_smoothing=config["label_smoothing"])
        parts = dict(network=network, sgd=sgd)
        rows = restore(config, parts)
        log(
            config,
            f"retrain on {config['dataset']}: {len(train.classes)} classes, "
            f"{len(train.labels):,} training and {len(test.labels):,} test images,\n"
            f"  {config['cells']} cells, {config['channels']} channels, {sum(own) / 1e6:.3f} M "
            f"parameters,\n"
            f"  epochs: {epochs}, steps of each: {steps}, on {device}, processes: {processes}",
        )
        if config["dataset"] == "folder" and epochs >= 250:
            text = (
                "these are the paper's epochs, for 50,000 images (with ImageNet's stem 1.3 million)"
            )
            log(config, f"  {text};\n  --epochs, --cells and --channels change the settings")
        watch = watcher(config, device, (epochs - len(rows)) * steps)

        for epoch in range(len(rows), epochs):
            start, lr = time.perf_counter(), learning_rate(config, epoch)
            drop_path = config["drop_path"] * epoch / epochs
            sgd.param_groups[0]["lr"] = lr
            if drop_path:  # the networks of extra/nasbench.py have none
                network.set_drop_path(drop_path)
            torch.manual_seed(seed(f"drop path {rank}", epoch))
            sums, seen = torch.zeros(3, device=device), 0
            model.train()
            for x, y in stream(train, config, train_index, "retrain", epoch, True, share=True):
                with torch.autocast(device.type, torch.bfloat16, enabled=config["amp"]):
                    logits, logits_auxiliary = model(x)
                    loss = criterion(logits, y)
                    if logits_auxiliary is not None:
                        loss = loss + config["auxiliary"] * criterion(logits_auxiliary, y)
                sgd.zero_grad(set_to_none=True)
                (loss / processes).backward()
                accuracy = 100 * (logits.argmax(1) == y).float().mean()
                means = torch.stack([loss.detach(), accuracy]) / processes
                rome.sum_over_processes(parameters, means)
                norm = nn.utils.clip_grad_norm_(parameters, config["clip"] or math.inf)
                sgd.step()
                count = len(y) * processes
                sums += torch.cat([count * means, norm[None]])
                seen += count
                watch(sums)

            seconds, norm_train = time.perf_counter() - start, sums[2].item() / steps
            loss_train, accuracy_train = (sums[:2] / seen).tolist()
            network.eval()
            batches = stream(test, config, test_index, "evaluation")
            loss_test, accuracy_test = evaluate(lambda x: network(x)[0], batches)
            row = dict(
                epoch=epoch + 1, lr=lr, drop_path=drop_path, loss_train=loss_train,
                accuracy_train=accuracy_train, gradient_norm=norm_train, loss_test=loss_test,
                accuracy_test=accuracy_test, images_per_second=seen / seconds, seconds=seconds,
                peak_mib=peak_mib(device),
            )  # fmt: skip
            rows.append(row)
            end_epoch(config, rows, parts, train)
            log(
                config,
                f"epoch {epoch + 1}/{epochs}: loss {loss_train:.3f}, accuracy "
                f"{accuracy_train:.1f}% training, {accuracy_test:.2f}% test, "
                f"{row['images_per_second']:,.0f} images/s",
            )

        accuracy = rows[-1]["accuracy_test"]
        log(
            config,
            f"test accuracy {accuracy:.2f}% (error {100 - accuracy:.2f}%) at the last epoch, "
            f"{epochs}\nfiles in {config['out']}: metrics.csv, last.pt",
        )
    return accuracy


def check_shares(config, processes):
    if config["batch_size"] % processes:
        text = f"{config['batch_size']} images among {processes} processes"
        raise ValueError(f"a retrain's batch is shared: {text} are no equal shares")


# --------------------------------------------------------------------------------------------------
# 4. What both loops need


def set_up(config):
    """The device, the process group of torchrun, and the numerical switches of the process."""
    found = dict(cuda=torch.cuda.is_available(), mps=torch.backends.mps.is_available(), cpu=True)
    name = config["device"]
    if name == "auto":
        name = next(kind for kind in found if found[kind])
    if not found[name]:
        raise ValueError(f"--device {name}: this PyTorch finds no such device; use --device cpu")
    gpus = torch.cuda.device_count() if name == "cuda" else 0
    join_processes(gpus)
    if config["deterministic"]:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config["deterministic"])
    if name != "cuda":
        return torch.device(name)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % gpus)
    torch.cuda.set_device(device)
    torch.cuda.reset_peak_memory_stats(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = not config["deterministic"]
    return device


def join_processes(gpus):
    """Joins the processes that torchrun, or a cluster, has started; their number is WORLD_SIZE."""
    world = os.environ.get("WORLD_SIZE") or "1"
    if not world.isdigit():
        raise ValueError(f"the variable WORLD_SIZE of the shell is {world!r}: unset it")
    if int(world) == 1 or dist.is_initialized():
        return
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # not torchrun: they may be left over in the shell
        address = ":".join(os.environ.get(f"MASTER_{name}", "?") for name in ("ADDR", "PORT"))
        say(f"waiting for {world} processes at {address}; to run alone unset WORLD_SIZE")
    own_gpu = gpus >= int(os.environ.get("LOCAL_WORLD_SIZE") or world)
    dist.init_process_group("nccl" if own_gpu else "gloo")


def make_supernet(
    space, channels, cells, classes, topology="v2", recompute=False, imagenet=False
) -> nn.Module:
    """The supernet of any space, of rome.py or extra/nasbench.py."""
    if space not in NASBENCH:
        sizes = channels, cells, classes
        return rome.Supernet(space, *sizes, topology, recompute, imagenet=imagenet)
    from extra import nasbench

    return nasbench.Supernet(space, channels, cells, classes, topology)


def make_network(genotype, config, classes):
    """The network of a genotype of any space, by the settings of a retrain."""
    sizes = config["channels"], config["cells"], classes
    if isinstance(genotype, rome.Genotype):
        return rome.Network(genotype, *sizes, config["auxiliary"] > 0, config["imagenet"])
    from extra import nasbench

    return nasbench.Network(genotype, *sizes)


def make_sgd(parameters, config):
    decay, nesterov = config["weight_decay"], config.get("nesterov", False)
    return torch.optim.SGD(parameters, config["lr"], 0.9, weight_decay=decay, nesterov=nesterov)


def learning_rate(config, epoch):
    """Cosine from lr to lr_min, or PC-DARTS's linear decay; after a linear warm-up.

    Of fewer than 50 epochs the warm-up and the flat tail of the linear decay take a tenth each.
    """
    lr, epochs = config["lr"], config["epochs"]
    low = min(lr, config["lr_min"])
    warmup, left = min(config.get("lr_warmup", 0), epochs // 10), epochs - epoch
    if epoch < warmup:
        return lr * (epoch + 1) / warmup
    if config.get("schedule") != "linear":
        return low + 0.5 * (lr - low) * (1 + math.cos(math.pi * epoch / epochs))
    tail = min(5, epochs // 10)  # a flatter line at the end: PC-DARTS, train_imagenet.py
    if left > tail:
        return lr * (left - tail) / (epochs - tail)
    return lr * left / ((epochs - tail) * tail)


@torch.no_grad()
def evaluate(predict, batches):
    """Mean cross-entropy, and accuracy in percent."""
    loss, correct, count = 0, 0, 0
    for x, labels in batches:
        logits = predict(x).float()
        loss += F.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
        count += len(labels)
    return loss.item() / count, 100 * correct.item() / count


def check_finite(numbers):
    if not numbers.isfinite().all():
        raise FloatingPointError("a loss or a gradient is not finite")


# --------------------------------------------------------------------------------------------------
# 5. The folder of a run

# Settings that change no result: a resumed run may have others.
MAY_DIFFER = {"out", "data", "device", "workers", "resume", "retrain"}


@contextmanager
def claimed(config):
    """Inside, the run's folder is its own. ValueError for a folder whose run is not resumed."""
    compare_processes(**{name: config[name] for name in config.keys() - MAY_DIFFER})
    folder, first = Path(config["out"]), is_first()
    used = (folder / "config.json").exists() or (folder / "last.pt").exists()
    if used and not config["resume"]:
        other = "--resume goes on with it, --out names another folder"
        raise ValueError(f"{folder} holds a run already; {other}")
    folder.mkdir(parents=True, exist_ok=True)
    barrier()  # all have looked before the first one writes
    with locked(folder) if first else nullcontext():
        if first:
            versions = dict(torch=torch.__version__, python=sys.version.split()[0])
            about = dict(command=shlex.join(sys.argv), versions=versions, settings=config)
            about["threads"] = torch.get_num_threads()
            genotypes.write(folder / "config.json", json.dumps(about, indent=1).encode())
        try:
            yield
        finally:
            if first and not (folder / "last.pt").exists():  # no epoch has ended: it is free again
                (folder / "config.json").unlink(missing_ok=True)


@contextmanager
def locked(folder):
    """Inside, no other run can lock the folder. ValueError if another one has."""
    with genotypes.open_text(folder / "log.txt", "a") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = "another run writes into it; --out names another folder"
            raise ValueError(f"{folder}: {other}") from None
        except (ImportError, OSError):  # Windows, or a file system without locks
            pass
        try:
            yield
        finally:
            with suppress(OSError):
                if os.path.getsize(folder / "log.txt") == 0:  # a failed start leaves nothing
                    os.unlink(folder / "log.txt")
                    folder.rmdir()


def load_checkpoint(path, stage):
    """The checkpoint of a search or a retrain. ValueError if it is broken."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["settings"]["stage"] == stage:
            return state
    except Exception:  # whatever a broken file leads to; torch's own message advises to trust it
        pass
    raise ValueError(f"{path} is no checkpoint of a {stage}, or broken; has the {stage} begun?")


def restore(config, parts):
    """Loads the folder's checkpoint, if it has one, into `parts`. Returns the rows of metrics.csv.

    ValueError if it has other settings or images, and if the processes differ.
    """
    path, rows, threads = Path(config["out"], "last.pt"), [], torch.get_num_threads()
    if path.exists():
        state = load_checkpoint(path, config["stage"])
        for name in sorted(config.keys() - MAY_DIFFER):
            old, new = state["settings"].get(name), config[name]
            if old != new:
                text = f"{name} {old!s:.40} (now {new!s:.40}); use the same, or another --out"
                raise ValueError(f"{config['out']} was made with {text}")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        rows = state["rows"]
        log(config, f"resumed after epoch {len(rows)}")
        if state["threads"] != threads:
            text = f"with {threads} threads in place of {state['threads']}"
            log(config, f"{text} the numbers may differ in their last digits")
    elif config["resume"]:
        log(config, "there is no checkpoint yet: the run begins at its first epoch")
    network = parts.get("net") or parts["network"]
    total = sum(p.detach().cpu().double().sum().item() for p in network.parameters())
    compare_processes(images=config["images"], epoch=len(rows), weights=total)
    return rows


def compare_processes(**facts):
    """ValueError on every process if one of them has other facts than process 0."""
    if not dist.is_initialized():
        return
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, facts)
    for name, expected in everyone[0].items():
        for rank, other in enumerate(everyone):
            if other.get(name) != expected:
                text = f"{name}: {other.get(name)!s:.40} (process 0: {expected!s:.40})"
                advice = "all need the same flags, images and checkpoint (a shared disk, or copies)"
                raise ValueError(f"process {rank} has another {text}; {advice}")


def end_epoch(config, rows, parts, train):
    """Writes metrics.csv and the checkpoint. FloatingPointError if the last row is not finite."""
    check_finite(torch.tensor([value for value in rows[-1].values() if isinstance(value, float)]))
    if is_first():
        folder, text, content = Path(config["out"]), io.StringIO(), io.BytesIO()
        writer = csv.DictWriter(text, rows[-1], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        genotypes.write(folder / "metrics.csv", text.getvalue().encode())
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= dict(classes=train.classes, statistics=train.statistics, rows=rows)
        state |= dict(settings=config, threads=torch.get_num_threads())
        torch.save(state, content)
        genotypes.write(folder / "last.pt", content.getvalue())


def is_first():
    """Whether this is the only process, or the first of torchrun's."""
    return rome.rank_and_world()[0] == 0


# --------------------------------------------------------------------------------------------------
# 6. What a person sees


def log(config, text):
    """Prints and keeps a line. Of several processes the first one speaks."""
    if is_first():
        with genotypes.open_text(Path(config["out"]) / "log.txt", "a") as file:
            file.write(text + "\n")
        say(("\r\033[K" if is_terminal() else "") + text)


def say(text, end="\n", error=False):
    """Prints. A stream that nobody reads (`| head`), or that is closed, does not stop a run."""
    try:
        print(text, end=end, file=sys.stderr if error else sys.stdout, flush=True)
    except (OSError, ValueError):
        sys.stdout = None


def is_terminal():
    return sys.stdout is not None and sys.stdout.isatty()


def watcher(config, device, steps):
    """A function to call after each of so many steps, with the sums of the losses.

    It says how long the run will take, from the second step on, because the first one warms up. It
    shows the step on a terminal, and looks every 50 steps whether the losses are finite.
    """
    done, begin, due = 0, 0.0, 0.0

    def watch(sums):
        nonlocal done, begin, due
        done += 1
        if done < 3 or done % 50 == 0:
            check_finite(sums)  # which waits for the device
        now = time.perf_counter()
        if done == 1:
            begin = due = now
            return
        left = (now - begin) / (done - 1) * (steps - done)
        if now >= due:
            due = now + 300 if done == 2 else math.inf  # once more after five minutes
            text = f"about {duration(left)} left; peak memory {peak_mib(device):.0f} MiB"
            if left > 24 * 3600:
                fewer = "--samples 1" if config["stage"] == "search" else "fewer --epochs"
                text += f"\n  faster: a GPU, {fewer}, or the README's commands for a laptop"
            log(config, text)
        elif is_terminal() and is_first():
            say(f"\r\033[Kstep {done}/{steps}, {duration(left)} left", end="")

    return watch


def duration(seconds):
    """In the unit that a person would use."""
    for unit, size, most in (("min", 60, 100), ("h", 3600, 48)):
        if seconds < most * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


def peak_mib(device):
    """Peak memory so far: allocated on a CUDA device, resident in the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


# --------------------------------------------------------------------------------------------------
# 7. Command line


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit status, see `guarded`."""
    if argv is None:  # of train.py, or of a user's own program that adds operations and spaces
        return guarded("train.py", run, sys.argv[1:], sys.argv[0])
    return guarded("train.py", run, list(argv), os.path.relpath(__file__))


def run(words, program):
    """What the command line asks for: a search, a retrain, or one after the other."""
    stage = words[0] if words else ""
    if stage in ("-h", "--help"):
        say(f"{program} search --help     finds a cell: its flags")
        say(f"{program} retrain --help    trains a cell from scratch: its flags")
        return
    if stage not in ("search", "retrain"):
        raise ValueError(f"{program} search or {program} retrain, with flags; --help lists them")
    config = configure(stage, words[1:])
    if stage == "retrain":
        retrain(config)
        return
    genotype, then = search(config), words_of_retrain(config)
    if config["retrain"]:
        # Other nodes need not see the file of the genotype.
        then += ["--genotype", str(genotype), "--out", str(Path(config["out"], "retrain"))]
        retrain(configure("retrain", then + ["--resume"] * config["resume"]))
        log(config, f"next: python -m tools.baseline {shlex.quote(config['out'])}")
        return
    later = settings_of(RETRAIN, config["space"], config["dataset"], config["imagenet"])
    size = "{cells} cells, {channels} channels, {epochs} epochs".format(**later)
    if config["dataset"] == "folder" and not config["imagenet"]:
        then += SMALL
        size = f"for a few hundred images as below; the paper's, for 50,000: {size}"
    log(config, f"the retrain: {size}")
    log(config, f"next: {shlex.join(['python', program, 'retrain', *then])}")


def configure(stage: str, words: list[str]) -> dict:
    """All settings of a stage: the flags, over the rows of its table. ValueError if they clash."""
    parser = make_parser(stage)
    given = vars(parser.parse_args(words))
    wants_help = given.pop("help", False)
    config = COMMON | OWN[stage] | given | dict(stage=stage)
    dataset, size = config["dataset"], given.get("image_size", 0)
    # ImageNet's stem, crops and reading of files; a folder of large images has them, too.
    config["imagenet"] = dataset == "imagenet" or (dataset == "folder" and size >= 128)
    if stage == "retrain" and not wants_help:
        config |= cell_of(given)
    table = SEARCH if stage == "search" else RETRAIN
    row = settings_of(table, config["space"], dataset, config["imagenet"])
    if stage == "search":
        row["out"] = "runs/{space}-{dataset}-{method}-s{seed}".format(**config)
        row["samples"] = [1] if config["method"] == "gdas" else row["samples"]
    config = row | config  # what is given wins
    if "cutout" not in given:
        config["cutout"] = min(config["cutout"], config["image_size"] // 2)
    if wants_help:
        parser.set_defaults(**config)
        parser.print_help()
        raise SystemExit
    refuse(config)
    return config


def cell_of(given):
    """The genotype of a retrain, as text, and its space: the flag's, the file's, or the usual."""
    if "genotype" not in given:
        known = ", ".join(genotypes.PUBLISHED)
        raise ValueError(f"retrain needs --genotype: a file, text, or a name: {known}")
    source = given["genotype"]
    genotype = genotypes.load(source)
    kind = genotypes.KINDS[type(genotype).__name__]  # darts, nb201 or 1shot1
    usual = "1shot1-1" if kind == "1shot1" else kind
    space = given.get("space") or genotypes.space_of(source) or usual
    if kind != (space.partition("-")[0] if space in NASBENCH else "darts"):
        raise ValueError(f"--space {space}: the genotype is not of this space")
    name = source if source in genotypes.PUBLISHED else "cell"
    out = f"runs/retrain-{name}-{given.get('dataset', 'cifar10')}-s{given.get('seed', 0)}"
    if os.path.isfile(source):
        out = str(Path(source).parent / "retrain")
    return dict(genotype=str(genotype), space=space, out=given.get("out", out))


def refuse(config):
    """ValueError for a flag that would change the result and cannot be honoured."""
    size, multiple = config["image_size"], 32 if config["imagenet"] else 4
    if config["dataset"] in ("cifar10", "cifar100", "svhn") and size != 32:
        raise ValueError(f"--image-size: the images of {config['dataset']} have 32 pixels")
    if size % multiple or size > 4096:
        raise ValueError(f"--image-size must be a multiple of {multiple}, at most 4096")
    if config["cutout"] >= size:
        raise ValueError(f"--cutout {config['cutout']} can erase a whole image of {size} pixels")
    if len(config.get("samples", [])) > 2:
        raise ValueError("--samples takes one or two numbers")
    if config["space"] in NASBENCH:
        only = dict(imagenet="ImageNet's stem", recompute="--recompute", auxiliary="--auxiliary")
        only |= dict(drop_path="--drop-path")
        for name, flag in only.items():
            if config.get(name):
                raise ValueError(f"{flag} is for the spaces darts and s1 to s4")
        if "method" in config:  # it is made for its ValueError: a method that the space has not
            make_supernet(config["space"], 2, 1, 2, TOPOLOGY[config["method"]])


def words_of_retrain(config):
    """The flags that retrain what a search found."""
    words = ["--genotype", str(Path(config["out"]) / "genotype.json")]
    for name in ("space", "dataset", "data", "image_size", "seed", "device", "workers"):
        words += [f"--{name.replace('_', '-')}", str(config[name])]
    return words + [f"--{name}" for name in ("amp", "deterministic") if config[name]]


def make_parser(stage):
    """The flags of "search" or "retrain". Their defaults are in the tables at the top."""
    form = argparse.ArgumentDefaultsHelpFormatter
    parser = Parser(
        f"train.py {stage}", add_help=False, allow_abbrev=False, formatter_class=form,
        argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    path, whole = os.path.expanduser, number(int, 1)
    rate, amount = number(float, 1e-9), number(float, 0)

    def flag(name, kind, text, **more):
        parser.add_argument(name, type=kind, help=text, **more)

    def switch(name, text):
        parser.add_argument(name, action=argparse.BooleanOptionalAction, help=text)

    parser.add_argument("-h", "--help", action="store_true", help="show this and stop")
    flag("--space", str, "search space", choices=[*rome.SPACES, *NASBENCH])
    if stage == "search":
        flag("--method", str, "gdas: without beta, K = 1", choices=TOPOLOGY)
        flag("--samples", whole, "sub-networks; or two: alpha's, weights'", nargs="+", metavar="K")
        flag("--alpha-lr", rate, "learning rate of alpha and beta")
        flag("--alpha-weight-decay", amount, "of alpha and beta")
        flag("--tau", rate, "temperature, falls evenly", nargs=2, metavar=("FIRST", "LAST"))
        switch("--recompute", "recompute cells, to save memory")
        switch("--retrain", "then retrain the found cell")
    else:
        flag("--genotype", path, "published name, JSON file, or printed genotype")
        flag("--drop-path", number(float, 0, 0.99), "its rate after the last epoch")
        flag("--auxiliary", amount, "weight of the auxiliary loss; 0: no such head")
        switch("--compile", "torch.compile the network")
    flag("--dataset", str, "folder: DIR/train/CLASS/*, DIR/test (or val)/CLASS/*", choices=DATASETS)
    flag("--data", path, "where images are, or are downloaded to")
    flag("--image-size", whole, "pixels; folder: with ImageNet's stem from 128 on")
    flag("--epochs", whole, "epochs")
    flag("--batch-size", number(int, 2), "images of a step")
    flag("--channels", number(int, 2), "initial channels")
    flag("--cells", whole, "cells (nb201: of a stage)")
    flag("--lr", rate, "initial learning rate of the weights")
    flag("--weight-decay", amount, "of the weights")
    flag("--clip", amount, "bound on the norm of the weights' gradient; 0: none")
    flag("--cutout", number(int, 0), "side of the erased square; 0: none")
    flag("--seed", number(int, 0), "of everything random")
    flag("--device", str, "where to compute", choices=("auto", "cpu", "cuda", "mps"))
    switch("--amp", "mixed precision in bfloat16")
    switch("--deterministic", "deterministic kernels")
    flag("--workers", number(int, 0), "processes that read images")
    flag("--out", path, "the run's folder; of a retrain: beside the genotype's file")
    switch("--resume", "go on from the folder's last checkpoint")
    return parser


class Parser(argparse.ArgumentParser):
    """argparse whose errors are a ValueError of one line."""

    def error(self, message):
        raise ValueError(f"{message.removeprefix('argument '):.500} (see {self.prog} --help)")


def number(kind, least, most=1e9):
    """An argparse type: a number from least to most."""

    def parse(text):
        with suppress(ValueError):
            if least <= kind(text) <= most:
                return kind(text)
        whole = "whole " if kind is int else ""
        text = f"must be a {whole}number from {least:g} to {most:g}, not {text!r:.60}"
        raise argparse.ArgumentTypeError(text)

    return parse


def guarded(name: str, function, *arguments) -> int:
    """Calls a program's function. What goes wrong is one line, which begins with the name.

    Exit status: 0 done; 2 bad input; 3 a loss is not finite; 130 Ctrl-C; 1 another process is lost.
    """
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="backslashreplace")  # for names in another alphabet
    try:
        status = function(*arguments) or 0
    except SystemExit:  # --help
        status = 0
    except (Exception, KeyboardInterrupt) as error:
        found = explain(error)
        if found is None:
            raise
        status, text = found
        say(("\n" if is_terminal() else "") + f"{name}: error: {text}", error=True)
    if dist.is_initialized():
        # torch 2.6 joins gloo's threads while it holds the GIL, which they need to end.
        time.sleep(0.2)
        dist.destroy_process_group()
    return status


def explain(error):
    """The exit status and the line of an error; None for one of the program's own."""
    line, text = last_line(error), str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted; the same command with --resume goes on"
    if isinstance(error, FloatingPointError):
        other = "begin again with another --out and a lower --lr, or without --amp"
        return 3, f"{line}; {other}; the last checkpoint is kept"
    if isinstance(error, ModuleNotFoundError):
        return 2, f"the module {error.name} is missing: pip install {error.name}"
    if "torchvision::" in text:
        return 2, "torch and torchvision do not fit each other: install both anew, from one index"
    if "shared memory" in text or "</torch_" in text:
        return 2, "/dev/shm is full, through which workers send images: --workers 0 needs none"
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in text:
        return 2, "the memory is full; lower --batch-size, or add --amp"
    if isinstance(error, (OSError, ValueError)):
        return 2, line
    if dist.is_initialized() or "DataLoader" in line:
        return 1, f"a process was lost: {line}"
    return None


def last_line(error):
    """In the text of an error in a worker process the last line is the error's own."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


if __name__ == "__main__":
    sys.exit(main())
