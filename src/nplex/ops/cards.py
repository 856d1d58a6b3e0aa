"""What GPUs can do, by class of card: defaults until `nplex measure --device cuda` has measured this one.

Sources: NVIDIA's data sheets (H100, H200, A100, V100, T4, RTX 3090, RTX 4090). Of their peaks without sparsity a
large matmul is taken to reach 80 %, a copy 90 %. On an H100, 790 TFLOP/s were measured in bfloat16; nothing else was.
"""

import torch

from nplex.ops.tracing import constant_when_compiled

GPU = "cuda"  # the type of device that is planned as a GPU
# TFLOP/s in bfloat16 or float16, in float32 (without TF32, as torch does by default) and in float64; TB/s of a copy.
CARDS = {
    "H200": (790.0, 50.0, 50.0, 4.3),
    "H100": (790.0, 50.0, 50.0, 3.0),
    "A100": (250.0, 16.0, 16.0, 1.8),
    "V100": (100.0, 12.0, 6.0, 0.8),
    "T4": (50.0, 6.5, 0.2, 0.28),
    "RTX 4090": (130.0, 65.0, 1.0, 0.9),  # and other cards of compute capability 8.9 and later
    "RTX 3090": (57.0, 28.0, 0.45, 0.84),  # and other small cards of 8
}


@constant_when_compiled
def card() -> str:
    """The class of the current CUDA device; H100 where torch finds none."""
    if not torch.cuda.is_available():
        return "H100"
    return class_of(torch.cuda.get_device_name(), torch.cuda.get_device_capability())


def class_of(name: str, capability: tuple[int, int]) -> str:
    """The one of CARDS that a device is named as, else the one of its compute capability.

    Examples:
        >>> class_of("NVIDIA A100-SXM4-80GB", (8, 0)), class_of("NVIDIA L40", (8, 9))
        ('A100', 'RTX 4090')
    """
    for known in CARDS:
        if known in name:
            return known
    major, minor = capability
    if major < 7 or capability == (7, 5):
        return "T4"
    by_major = {7: "V100", 8: "RTX 3090" if minor else "A100", 9: "H100", 10: "H200"}
    return "RTX 4090" if capability == (8, 9) else by_major.get(major, "RTX 4090")
