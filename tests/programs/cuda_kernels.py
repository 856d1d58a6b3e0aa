"""What Inductor makes of compiled layers on a CUDA device that is not there; a line of JSON each.

Graphs are lowered and fused as for a real device, and not written as code, which would need Triton. Of LayerNorm,
Linear, GELU, Linear and a residual, forward and backward: kernels of libraries, Inductor's own, and saved bytes.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import fake_cuda
import torch
from functorch.compile import aot_function, min_cut_rematerialization_partition
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import scheduler
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.post_grad import post_grad_passes
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import hints
from torch._inductor.virtualized import V
from torch.nn import functional as F
from torch.utils import _triton

from nplex.algebra import BilinearAlgorithm
from nplex.ops import tiles, token_major

TOKENS = 16384


def pretend():
    """What Inductor asks of a device and of Triton before it plans kernels."""
    properties = hints.DeviceProperties(
        type="cuda", index=0, multi_processor_count=132, cc=90, major=9, regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048, warp_size=32,
    )  # fmt: skip
    hints.DeviceProperties.create = classmethod(lambda cls, device: properties)
    for name, answer in (("has_triton", True), ("has_triton_package", True), ("triton_backend", None)):
        setattr(_triton, name, lambda answer=answer: answer)
    _triton.triton_hash_with_backend = lambda: "none"
    scheduler.has_triton = lambda: True
    CudaInterface.get_compute_capability = staticmethod(lambda device=None: 90)
    CudaInterface.Worker.get_device_properties = staticmethod(lambda device=None: fake_cuda.HOPPER)
    CudaInterface.is_triton_capable = staticmethod(lambda device=None: True)
    CudaInterface.raise_if_triton_unavailable = staticmethod(lambda device=None: None)
    torch.cuda.get_rng_state = lambda *_: torch.zeros(16, dtype=torch.uint8)
    torch.cuda.set_rng_state = lambda *_: None


def kernels(graph, inputs, mode):
    """Kernels of libraries, kernels of Inductor's own, and matmuls in the graph."""
    with V.set_fake_mode(mode), mode:
        post_grad_passes(graph, True)
    lowering = GraphLowering(graph, shape_env=mode.shape_env)
    with V.set_graph_handler(lowering), V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
        lowering.run(*inputs)
        lowering._update_scheduler()
        nodes = lowering.scheduler.nodes
        calls = [node for node in nodes if isinstance(node, scheduler.ExternKernelSchedulerNode)]
        own = [node for node in nodes if isinstance(node, scheduler.SchedulerNode | scheduler.FusedSchedulerNode)]
        return {"calls": len(calls), "own": len(own), "seconds": sum(map(seconds, calls + own))}


def seconds(node):
    """On an H100 by arithmetic: operations at 790 TFLOP/s, bytes at 3 TB/s, and 2 us to the next kernel."""
    return max((node.estimate_flops() or 0) / 790e12, node.get_read_write_buffers_sizes() / 3e12) + 2e-6


def count(function, inputs, mode, **about):
    """One line: the function's kernels forward and backward, and what it keeps between."""
    found = {}

    def forward(graph, tensors):
        (results,) = next(node for node in graph.graph.nodes if node.op == "output").args
        kept = [r.meta["val"] for r in results[1:] if isinstance(r, torch.fx.Node) and r.op != "placeholder"]
        found["saved"] = sum(t.numel() * t.element_size() for t in kept if isinstance(t, torch.Tensor))
        found["forward"] = kernels(graph, tensors, mode)
        return graph

    def backward(graph, tensors):
        found["backward"] = kernels(graph, tensors, mode)
        return graph

    compiled = aot_function(
        function, forward, backward, partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )  # fmt: skip
    y = compiled(*inputs)
    y.backward(torch.empty_like(y))
    print(json.dumps(about | found), flush=True)


def as_matmuls(x, rule, components, bias):
    return tiles.formula(x, rule, tiles.blocks(rule, components), bias)


def block(linear, width, n):
    """LayerNorm, Linear, GELU, Linear, and the residual."""

    def run(h, scale, *layers):
        half = len(layers) // 2
        hidden = F.gelu(linear(F.layer_norm(h, (width,), scale), *layers[:half]))
        return h + linear(hidden, *layers[half:])

    return run


def hypercomplex(formula, width, n):
    def linear(x, u, v, w, components, bias):
        return formula(x.view(TOKENS, n, -1), BilinearAlgorithm(u, v, w), components, bias).reshape(TOKENS, width)

    return linear


def main():
    pretend()
    with fake_cuda.FakeTensorMode() as mode:

        def tensors(*shapes):
            kind = {"device": "cuda", "dtype": torch.bfloat16, "requires_grad": True}
            return [torch.randn(*shape, **kind) for shape in shapes]

        for width, n, rank in ((4096, 4, 7), (4096, 4, 4), (4096, 8, 8)):
            start = [(TOKENS, width), (width,)]
            dense = tensors(*start, *2 * [(width, width), (width,)])
            count(block(F.linear, width, n), dense, mode, form="dense", n=n, rank=rank)
            layer = [*3 * [(n, rank)], (n, width // n, width // n), (width,)]
            for name, formula in (("matmuls", as_matmuls), ("token_major", token_major.formula)):
                inputs = tensors(*start, *2 * layer)
                count(block(hypercomplex(formula, width, n), width, n), inputs, mode, form=name, n=n, rank=rank)


if __name__ == "__main__":
    main()
