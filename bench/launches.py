"""Kernel launches and waits of a search step on a CUDA device, counted on a simulated one.

Tensors on the simulated device have a shape, strides and a type, but no values (PyTorch's FakeTensor). So any machine
finds tensors on two devices, and gradients that a fused optimizer refuses. It needs private parts of torch 2.14.

An operation is one launch; a view or an allocation is none; KERNELS lists those that launch several. The host waits
where it reads a value of the device, and in a copy that is not non_blocking. Without a CUDA driver autocast does
nothing here.

    python bench/launches.py                            steps of S0, batch 64, K = 7
    python bench/launches.py --against PATH/rome.py     and the ratio to another version, on the same sub-networks
    python bench/launches.py --all                      small steps of every space, topology, precision, stem
"""

import collections
import contextlib
import itertools
import sys
import traceback
from unittest import mock

import torch
from common import batch, build, load, parser, report, row, steps
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn.utils import clip_grad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rome
import train

CUDA = torch.device("cuda", 0)
KERNELS = {  # read in PyTorch's source, for tensors in channels-last
    "native_batch_norm": 4,  # semaphores, statistics, inverse deviation, output; cuDNN's is one kernel
    "native_batch_norm_backward": 3,
    "max_pool2d_with_indices_backward": 2,  # zeros, then the gradient; likewise:
    "slice_backward": 2,
    "select_backward": 2,
    "diagonal_backward": 2,
}
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty_strided", "_unsafe_view", "lift_fresh", "device"}

# ----------------------------------------------------------------------------------------------------------------------
# The simulated device


def is_on_cuda(x) -> bool:
    return isinstance(x, FakeTensor) or (isinstance(x, torch.device) and x.type == "cuda")


def on_cuda(kwargs: dict) -> dict:
    """C++ takes the simulated device for "meta", and asks for new tensors there."""
    return {name: CUDA if str(value) == "meta" else value for name, value in kwargs.items()}


class FakeMode(FakeTensorMode):
    avoid_device_init = True

    def dispatch(self, func, types, args=(), kwargs=None):
        return super().dispatch(func, types, args, on_cuda(kwargs or {}))


class Counter(TorchDispatchMode):
    """Counts launches by operation and waits by line of code. Operations on the CPU are computed as ever."""

    def __init__(self):
        super().__init__()
        self.launches, self.waits = collections.Counter(), collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = on_cuda(kwargs or {}), func.overloadpacket.__name__
        if not any(is_on_cuda(x) for x in tree_leaves((args, kwargs))):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if name == "_local_scalar_dense":  # item(), float(), `if tensor`
            self.wait()
            return args[0].dtype.is_floating_point or 1
        if name == "_to_copy":
            return self.copy(func, args[0], kwargs)
        if not func.is_view and name not in NO_KERNEL:
            self.launches[name] += sum(args[-1]) if name == "convolution_backward" else KERNELS.get(name, 1)
        if name.startswith("_fused_"):
            return check_strides(name, [group for group in args if isinstance(group, list)])
        out = func(*args, **kwargs)
        if name == "convolution" and args[0].stride(1) == 1:  # cuDNN keeps channels-last, FakeTensor not always
            return out.contiguous(memory_format=torch.channels_last)
        if name == "convolution_backward":
            return *(None if grad is None else torch.empty_like(x) for grad, x in zip(out, args[1:3])), out[2]
        return out

    def copy(self, func, x, kwargs):
        device, dtype = torch.device(kwargs.get("device") or x.device), kwargs.get("dtype") or x.dtype
        if device.type == x.device.type and dtype == x.dtype and "memory_format" not in kwargs:
            return x
        self.launches["_to_copy"] += 1
        if device.type != x.device.type and not kwargs.get("non_blocking"):
            self.wait()
        if device.type == "cpu":
            with unset_fake_temporarily():
                return torch.ones(x.shape, dtype=dtype)
        return func(x, **kwargs)

    def wait(self) -> None:
        stack = traceback.extract_stack()
        own = [frame for frame in stack if "/torch/" not in frame.filename and frame.filename != __file__] or stack
        self.waits[f"{own[-1].name}: {own[-1].line}"] += 1


def check_strides(name: str, groups: list) -> None:
    """A fused optimizer on CUDA takes a parameter, its gradient and its buffers in one memory format only."""
    for tensors in zip(*(group for group in groups if len(group) == len(groups[0]))):
        strides = {tuple(s for s, n in zip(t.stride(), t.shape) if n > 1) for t in tensors if t.dim()}
        if len(strides) > 1:
            raise RuntimeError(f"{name}: strides of a parameter {tuple(tensors[0].shape)} and its gradient: {strides}")


def batch_norm(x, weight, bias, mean, variance, training, momentum, eps, cudnn):
    """PyTorch's choice on CUDA: cuDNN's batch norm where there are a scale and a shift, else its own."""
    chosen = torch.native_batch_norm if weight is None or bias is None else torch.ops.aten.cudnn_batch_norm
    return chosen(x, weight, bias, mean, variance, training, momentum, eps)[0]


@contextlib.contextmanager
def simulated_cuda():
    """Inside, torch has a CUDA device. Yields its Counter."""
    counter, make = Counter(), torch.Tensor._make_subclass
    answers = dict(is_available=True, is_initialized=True, is_bf16_supported=True, current_device=0)
    answers |= dict(set_device=None, _lazy_init=None, manual_seed_all=None)
    patches = [(torch.cuda, name, lambda *_, value=value, **__: value) for name, value in answers.items()]
    patches.append((FakeTensor, "tolist", lambda x: x.cpu().tolist()))
    patches.append((clip_grad, "_has_foreach_support", lambda *_: True))
    if torch.cuda.device_count() == 0:
        patches.append((torch.Tensor, "_make_subclass", lambda *a, **k: make(*a, **k | dict(dispatch_device=False))))
        patches += [(FakeTensor, "is_cuda", property(is_on_cuda)), (torch, "batch_norm", batch_norm)]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(mock.patch.object(*patch))
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # .to("cuda") makes new parameters
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))  # the counter sees its own thread only
        stack.enter_context(FakeMode(allow_non_fake_inputs=True))
        yield stack.enter_context(counter)


# ----------------------------------------------------------------------------------------------------------------------
# Steps


def count(version, samples: int, images, labels, rounds: int, dtype=None, **settings) -> list:
    """(role, launches by operation, waits by line) of `rounds` steps of each role, on seeded sub-networks."""
    twin, _, _ = build(**settings)
    found = []
    with simulated_cuda() as counter:
        built = build(version, "cuda", **settings)
        net, sample_many = built[0], built[0].sample_many
        net.sample_many = lambda tau, generators: [
            take_over(version, sample, real)
            for sample, real in zip(sample_many(tau, generators), twin.sample_many(tau, generators))
        ]
        functions = steps(built, images.to("cuda"), labels.to("cuda"), version, dtype)
        for role, number in itertools.product(functions, range(rounds)):
            counter.launches.clear()
            counter.waits.clear()
            functions[role](samples, 1000 * number)
            found.append((role, counter.launches.copy(), counter.waits.copy()))
    return found


def take_over(version, sample, real: dict):
    """The sample, with the inputs and operations of `real`, which were drawn on the CPU."""
    if hasattr(version, "Choice"):
        return {kind: z._replace(inputs=real[kind].inputs, ops=real[kind].ops) for kind, z in sample.items()}
    picks = {}  # of the version before, in S0: per node (input, row of alpha, operation)
    for kind, z in real.items():
        first, picks[kind] = 0, []
        for j, inputs in enumerate(z.inputs):
            picks[kind].append([(i, first + i, z.ops[first + i]) for i in inputs])
            first += 2 + j
    return sample._replace(picks=picks)


def run_all() -> int:
    """Two small steps of both roles in every combination. Prints those that fail. Takes about 20 minutes."""
    ran, failed, dtypes, stems = 0, 0, (None, torch.bfloat16), ("small", "imagenet")
    combinations = itertools.product(rome.SPACES, train.METHODS, (False, True), dtypes, stems)
    for space, method, recompute, dtype, stem in combinations:
        family = rome.SPACES[space].family
        if (family == "1shot1" and method == "gdas") or (family != "darts" and stem == "imagenet"):
            continue
        settings = dict(space=space, method=method, recompute=recompute, stem=stem, channels=4, cells=3)
        settings |= dict(dataset="folder", image_size=64)  # takes every stem
        ran += 1
        try:
            count(rome, 1, *batch(2, 64), rounds=2, dtype=dtype, **settings)
        except Exception as error:
            failed += 1
            print(f"{settings}, {dtype}: {type(error).__name__}: {error}", flush=True)
    print(f"{ran} combinations ran, {failed} failed")
    return int(failed > 0)


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--against", metavar="FILE", help="another version of rome.py")
    made.add_argument("--all", action="store_true", help="every combination in place of the count")
    options = made.parse_args()
    if not torch.__version__.startswith("2.14."):
        print(f"bench/launches.py needs torch 2.14, whose private parts it uses; this is {torch.__version__}")
        return 2
    if options.all:
        return run_all()
    versions = {"": rome} | ({", the other version": load(options.against)} if options.against else {})
    size, samples, rounds = (2, 2, 1) if options.quick else (64, 7, 3)
    rows, totals = [], {}
    for name, version in versions.items():
        found = count(version, samples, *batch(size), rounds, quick=options.quick)
        for role in ("weights", "architecture"):
            launches = [kernels for its_role, kernels, _ in found if its_role == role]
            waits = [sum(lines.values()) for its_role, _, lines in found if its_role == role]
            totals[name, role] = [sum(kernels.values()) for kernels in launches]
            rows.append(row(f"launches, step of the {role}{name}", totals[name, role]))
            rows.append(row(f"waits, step of the {role}{name}", waits, target=1 if version is rome else None))
            print(f"{role}{name}: " + ", ".join(f"{op} {n}" for op, n in launches[0].most_common(12)))
        for line, n in sum((lines for *_, lines in found), collections.Counter()).items():
            print(f"it waits {n / rounds / 2:g} times a step{name} in {line}")
    for role in ("weights", "architecture") if options.against else ():
        ratio = sum(totals["", role]) / sum(totals[", the other version", role])
        rows.append(row(f"launches, step of the {role}, ratio", ratio, target=0.75))
    return report("launches", options, rows, batch=size, samples=samples, driver=torch.cuda.device_count() > 0)


if __name__ == "__main__":
    sys.exit(main())
