"""A CUDA device that is not there: tensors on it have shapes, types and gradients, and no numbers.

To be imported before torch, in a process of its own: a library is loaded that answers for the device (cuda_guard.cpp,
compiled by g++ into the folder that NPLEX_FAKE_CUDA names), and torch.cuda then says that there is one.
"""

import collections
import ctypes
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace


def compile_guard(folder):
    """The compiled library's path, made where it is not there; raises CalledProcessError with g++'s words."""
    library = Path(folder) / "cuda_guard.so"
    if not library.exists():
        torch = Path(importlib.util.find_spec("torch").origin).parent
        includes = [f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include"]
        links = [f"-L{torch}/lib", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch}/lib"]
        source = Path(__file__).with_name("cuda_guard.cpp")
        beside = library.with_suffix(f".{os.getpid()}")
        command = ["g++", "-O0", "-shared", "-fPIC", "-std=c++20", source, "-o", beside, *includes, *links]
        subprocess.run(command, check=True, capture_output=True, text=True)
        beside.replace(library)
    return library


if "NPLEX_FAKE_CUDA" in os.environ:
    ctypes.CDLL(compile_guard(os.environ["NPLEX_FAKE_CUDA"]), ctypes.RTLD_GLOBAL)

    import torch
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.cuda.amp import common
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    HOPPER = SimpleNamespace(
        major=9, minor=0, name="NVIDIA H100 80GB HBM3", multi_processor_count=132, total_memory=80 * 2**30,
        warp_size=32, L2_cache_size=50 * 2**20, regs_per_multiprocessor=65536, gcnArchName="",
        max_threads_per_multi_processor=2048, shared_memory_per_block_optin=232448,
    )  # fmt: skip
    torch.cuda.is_available = torch.amp.autocast_mode.is_available = lambda: True
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    torch.cuda.current_device, torch.cuda.device_count = lambda: 0, lambda: 1
    torch.cuda.get_device_properties = lambda *_: HOPPER
    torch.cuda.get_device_capability = lambda *_: (HOPPER.major, HOPPER.minor)
    torch.cuda.get_device_name = lambda *_: HOPPER.name
    torch.cuda.is_current_stream_capturing = lambda: False
    common.amp_definitely_not_available = lambda: False
    FakeTensorMode.__deepcopy__ = lambda self, memo: self  # copies of layers stand on the same device

    from nplex.nn import computed
    from nplex.ops import tracing

    def look_ordinary():
        """Fake tensors take nplex's path for ordinary tensors, not the one for those that torch.compile looks at."""

        def is_eager(*tensors):
            known = (torch.Tensor, torch.nn.Parameter, FakeTensor)
            return not torch.compiler.is_compiling() and all(t is None or type(t) in known for t in tensors)

        def read_only(weight):  # a fake tensor cannot be of another class
            return weight

        now = {tracing.is_eager: is_eager, computed.read_only: read_only}
        for module in [module for name, module in sys.modules.items() if name.startswith("nplex")]:
            for name in ("is_eager", "read_only"):
                if (function := getattr(module, name, None)) in now:
                    setattr(module, name, now[function])

    VIEWS = {
        "view", "t", "transpose", "empty", "detach", "expand", "slice", "select", "permute", "as_strided",
        "unsqueeze", "squeeze", "_unsafe_view", "alias", "split", "unbind", "new_empty", "reshape", "empty_like",
        "_reshape_alias", "unfold", "new_empty_strided", "empty_strided", "device",
    }  # fmt: skip

    def seconds(name, args, tensors):
        """What an H100 would take by arithmetic: operations and bytes of operands and results, and a kernel's end.

        790 TFLOP/s in bfloat16, 50 in float32, 3 TB/s, half of that for matmuls with 32 rows or less, 2 us a kernel.
        """
        size = sum(t.numel() * t.element_size() for t in tensors)
        arithmetic, speed = 0.0, 1.0
        if name in ("mm", "bmm", "addmm", "baddbmm", "baddbmm_", "addmm_"):
            left, right = args[:2] if name in ("mm", "bmm") else args[1:3]
            rows, inner, columns = left.shape[-2], left.shape[-1], right.shape[-1]
            batch = left.shape[0] if left.ndim == 3 else 1
            rate = 50e12 if left.element_size() == 4 else 790e12
            arithmetic = 2 * batch * rows * inner * columns / rate * (1 + 64 / inner)
            speed = 0.5 if min(rows, inner, columns) <= 32 and max(rows, columns) > 1 else 1.0
        return max(arithmetic, size / 3e12 / speed) + 2e-6

    class Watch(TorchDispatchMode):
        """Counts operators; `waits` names those that wait for the device, `strays` those that meet CPU tensors."""

        WAITING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "item")

        def __init__(self):
            super().__init__()
            self.operators, self.waits, self.strays = collections.Counter(), set(), set()
            self.on_device = self.in_python = 0.0

        @property
        def seconds(self):
            """Python starts operations ahead of the device: 5 us each, 20 of nplex.ops.fused; the longer sum."""
            return max(self.on_device, self.in_python)

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            name = func.overloadpacket.__name__
            self.operators[name] += 1
            if name in self.WAITING:
                self.waits.add(name)
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
            if any(t.device.type == "cpu" and t.ndim for t in tensors):
                self.strays.add(name)
            if name not in VIEWS:
                moved = tree_leaves((args, kwargs)) if name == "copy_" or "out" in (kwargs or {}) else tensors
                self.on_device += seconds(name, args, [t for t in moved if isinstance(t, torch.Tensor)])
                self.in_python += 20e-6 if func.namespace == "nplex" else 5e-6
            return out

    class Saved(torch.autograd.graph.saved_tensors_hooks):
        """Counts the bytes that are kept for backward, beside parameters and the tensors given."""

        def __init__(self, *others):
            self.storages, self.others = {}, {t.untyped_storage()._cdata for t in others}

            def pack(tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.others:
                    self.storages[storage._cdata] = storage
                return tensor

            super().__init__(pack, lambda tensor: tensor)

        @property
        def bytes(self):
            return sum(storage.nbytes() for storage in self.storages.values())
