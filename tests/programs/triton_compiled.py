"""The kernels of nplex.ops.kernels compiled for sm_80 and sm_90, from a machine without a GPU; a line of JSON each.

Launches are caught, with the arguments that they would have, and compiled by Triton and NVIDIA's assembler.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nplex.ops import kernels

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


class Caught:
    """A kernel whose launches are noted."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return lambda *args, num_warps=4, **sizes: self.launches.append((self.kernel, args, sizes, num_warps))


def launches(function, *args):
    """What an operator would launch."""
    found, kept = [], kernels._kernel
    kernels._kernel = lambda kernel: Caught(kernel, found)
    try:
        function._init_fn(*args)
    finally:
        kernels._kernel = kept
    return found


def compiled(kernel, args, sizes, warps, target):
    """Counts of the machine's instructions, with arguments as Triton specializes them."""
    kinds, constants, attributes = {}, {}, {}
    for i, (name, value) in enumerate(zip(kernel.arg_names, (*args, *sizes.values()), strict=True)):
        if isinstance(value, torch.Tensor):
            kinds[name], attributes[i,] = f"*{TYPES[value.dtype]}", [["tt.divisibility", 16]]
        elif value is None or value == 1 or i >= len(args):
            kinds[name], constants[name] = "constexpr", value
        else:
            kinds[name] = "i32"
            attributes |= {(i,): [["tt.divisibility", 16]]} if value % 16 == 0 else {}
    source = ASTSource(kernel, signature=kinds, constexprs=constants, attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", target, 32), options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        code = subprocess.run([TOOL, "--dump-sass", file.name], capture_output=True, text=True, check=True).stdout
        usage = subprocess.run([TOOL, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    (registers,) = re.findall(r"REG:(\d+)", usage)
    return {
        "registers": int(registers),
        "spilled": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "wide": len(re.findall(r"\b(?:LDG|LDGSTS|STG)\.[\w.]*128", code)),
    }


def cases(n, rank, dtype):
    """Operators with a layer's operands, and how many 16-byte loads and stores they need at least."""
    tokens, c = 64, 2048 // n

    def t(*shape):
        return torch.empty(shape, dtype=dtype)

    x, z, encode, decode, components = (
        t(tokens, n, c).transpose(0, 1),
        t(rank, tokens, c),
        t(rank, n),
        t(n, rank),
        t(n, c, c),
    )
    places, table = t(n * c, n * c).unflatten(1, (n, c)).unflatten(0, (n, c)).transpose(1, 2), t(n, n, n)
    weights = table.permute(1, 2, 0)
    yield "mix the input", n + 1, kernels.mix, (encode, x, None, z)
    yield "mix the output", n + 1, kernels.mix, (decode, z, t(n * c), x)
    yield "gradients of the input", 2 * n + 1, kernels.mix_back, (z, x, encode, x)
    yield "gradients of the output", n + 2, kernels.mix_back, (x, z, decode, z)
    yield "weight", n + 1, kernels.mix, (weights, components, None, places)
    yield "gradients of the weight", 2 * n + 1, kernels.mix_back, (places, components, weights, components)
    if dtype != torch.float32:  # as under autocast
        wide, of_rule = components.float(), weights.float()
        yield "weight from float32", n, kernels.mix, (of_rule, wide, None, places)
        yield "gradients of the weight in float32", n + 1, kernels.mix_back, (places, wide, of_rule, wide)
        yield "gradients of blocks in float32", n + 1, kernels.mix_back, (t(rank, c, c), wide, encode.float(), wide)
    yield "one token", 1, kernels.decode, (t(1, n, c), table, components, t(n * c))
    yield "table", 0, kernels.table, 3 * (decode,)
    yield "gradients of the table", 0, kernels.table_back, (table, *3 * (decode,))


def main():
    for dtype, n, rank in ((torch.bfloat16, 4, 7), (torch.bfloat16, 8, 24), (torch.float32, 8, 24)):
        for name, expected, function, args in cases(n, rank, dtype):
            for target in (80, 90):
                about = {"case": f"{name}, n={n}", "dtype": TYPES[dtype], "target": target, "expected": expected}
                kernel, *how = launches(function, *args)[0]
                print(json.dumps({"kernel": kernel.__name__} | about | compiled(kernel, *how, target)), flush=True)


if __name__ == "__main__":
    main()
