"""What a list of operations costs on a machine.

A model this small gives times to about 20 %; what the plan needs is their order. Beside its matmuls and passes each
method has numbers of calls: what autograd and Python do around them, in units of `seconds_per_call`. These CALLS were
fitted by hand to the times of `python benchmarks/plan.py --every 1` (one thread, float32, AMD Zen 4;
benchmarks/results/plan-1-thread.md).
"""

from dataclasses import dataclass, replace

from nplex.ops.machine import Accelerator, Machine


@dataclass(frozen=True)
class Cost:
    """What one method does for one call of the layer, or for one training step.

    Attributes:
        method: its name.
        flops: floating-point operations; a multiply-add counts 2.
        bytes: what its operations read and write.
        calls: torch operations, and what costs as much.
        seconds: the estimate, see Work.
    """

    method: str
    flops: int
    bytes: int
    calls: int
    seconds: float


class Work:
    """Adds up what operations cost on a machine.

    Each takes `seconds_per_call + flops / flops_per_second + min(bytes, cache_bytes) / bytes_per_second + beyond`,
    with `beyond = max(0, far - cache_bytes) / memory_bytes_per_second`, where far are the bytes read, twice for a
    matmul, and twice the bytes written: new pages, and lines that are read before they are written.
    """

    def __init__(self, machine: Machine, element_size: int) -> None:
        self.machine, self.element_size, self.flops_per_second = machine, element_size, machine.flops_per_second
        self.flops = self.bytes = self.seconds = 0.0
        self.calls, self.fused = 0, False

    def matmul(
        self, rows: int | float, inner: int | float, columns: int | float, *, count: int = 1, packed: bool = False
    ) -> None:
        """`count` matmuls, rows x inner by inner x columns, which read twice: once to rearrange for the processor.

        With one row or column there is nothing to rearrange, nor with weights packed before; those are also read
        while others are multiplied.
        """
        flops, read, written = (
            2 * count * rows * inner * columns,
            count * (rows + columns) * inner,
            count * rows * columns,
        )
        self.add(flops, read, written, again=0 if packed or 1 in (rows, columns) else read)
        if packed:
            self.seconds -= min(self._compute(flops), self._beyond(read + 2 * written))

    def mix(self, rows: int | float, inner: int | float, columns: int | float) -> None:
        """A matmul where two of the sizes are about the algebra's: one pass over the long side."""
        self.add(2 * rows * inner * columns, rows * inner + inner * columns, rows * columns)

    def move(self, read: int | float, written: int | float) -> None:
        """So many numbers read and written, by copies and sums."""
        self.add(0, read, written)

    def stream(self, written: int | float) -> None:
        """So many numbers that were written in pieces go to memory all the same."""
        self.seconds += self._beyond(2 * written)

    def call(self, times: int) -> None:
        """Operations that move next to nothing; what autograd and Python do around others counts as some."""
        self.calls += times
        self.seconds += times * self.machine.seconds_per_call

    def start(self, times: int) -> None:
        """Kernels of an accelerator that move next to nothing."""

    def copy(self, numbers: int | float) -> None:
        """So many numbers put in the order of a mix or out of it, which kernels of nplex.ops.fused do without."""
        self.move(numbers, numbers)

    def sums(self, rows: int | float, inner: int | float, columns: int | float) -> None:
        """The gradient of the weights of a mix, which those kernels add up while they mix `inner` to `columns`."""
        self.mix(rows, inner, columns)

    def repeat(self, times: int, other: "Work") -> None:
        """All of `other`, so many times."""
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        self.calls += times * other.calls
        self.seconds += times * other.seconds

    def total(self, method: str) -> Cost:
        """The sums, under the name of a method."""
        return Cost(method, round(self.flops), round(self.bytes), self.calls, self.seconds)

    def add(self, flops: int | float, read: int | float, written: int | float, again: int | float = 0) -> None:
        """One operation and its pass over memory."""
        size = self.element_size * (read + written)
        self.flops += flops
        self.bytes += size
        self.seconds += self._compute(flops)
        self.seconds += min(size, self.machine.cache_bytes) / self.machine.bytes_per_second
        self.seconds += self._beyond(read + again + 2 * written)
        self.call(1)

    def _compute(self, flops: int | float) -> float:
        """Seconds for the arithmetic; 8-byte numbers take twice as long."""
        return flops / self.flops_per_second * max(1.0, self.element_size / 4)

    def _beyond(self, numbers: int | float) -> float:
        far = self.element_size * numbers - self.machine.cache_bytes
        return max(0.0, far) / self.machine.memory_bytes_per_second


# A matmul with as few rows as the algebra has dimensions moves its numbers at this share of the speed of a copy, and
# one with short sums is this much slower for each term that is missing. An operator of nplex.ops.fused takes as long
# to start as so many of torch's: torch calls it in Python (19 us on an AMD Zen 4), and so does Triton.
FEW_ROWS, FILL, FUSED_CALLS = 0.5, 64, 4


class AcceleratorWork(Work):
    """Adds up what operations cost on an accelerator.

    Each takes `max(flops / rate, bytes / bytes_per_second) + seconds_per_kernel` there, and `seconds_per_call` of
    Python, which starts operations ahead of it: the larger sum counts. torch.compile needs no Python. Calls beside
    the operations take no time.
    """

    def __init__(self, machine: Accelerator, element_size: int, compiled: bool, fused: bool = False) -> None:
        super().__init__(machine, element_size)
        self.machine: Accelerator = machine
        self.fused = fused
        self._started, self._start = 0, 0.0 if compiled else machine.seconds_per_call
        rates = {2: machine.half_flops_per_second, 8: machine.double_flops_per_second}
        self.flops_per_second = rates.get(element_size, machine.flops_per_second)

    def matmul(
        self, rows: int | float, inner: int | float, columns: int | float, *, count: int = 1, packed: bool = False
    ) -> None:
        """`count` matmuls in one kernel."""
        read, fill = count * (rows + columns) * inner, 1 + FILL / max(inner, 1)
        self._kernel(2 * count * rows * inner * columns, read, count * rows * columns, fill=fill)

    def mix(self, rows: int | float, inner: int | float, columns: int | float) -> None:
        """A matmul where two of the sizes are about the algebra's."""
        read = rows * inner + inner * columns
        self._kernel(2 * rows * inner * columns, read, rows * columns, speed=1.0 if self.fused else FEW_ROWS)
        self._started += FUSED_CALLS - 1 if self.fused else 0

    def stream(self, written: int | float) -> None:
        """Nothing: traffic counts where it is caused."""

    def call(self, times: int) -> None:
        """What Python does around operations, while they run."""
        self.calls += times

    def start(self, times: int) -> None:
        """Kernels that move next to nothing."""
        for _ in range(times):
            self._kernel(0, 0, 0)

    def copy(self, numbers: int | float) -> None:
        """As in Work, or nothing."""
        if not self.fused:
            self.move(numbers, numbers)

    def sums(self, rows: int | float, inner: int | float, columns: int | float) -> None:
        """As in Work; by the kernels the mixed parts are read too, and sums of tiles are added."""
        if self.fused:
            self.move(inner * columns, 0)
        else:
            self.mix(rows, inner, columns)

    def repeat(self, times: int, other: Work) -> None:
        """All of `other`, so many times."""
        super().repeat(times, other)
        self._started += times * other._started if isinstance(other, AcceleratorWork) else 0

    def total(self, method: str) -> Cost:
        """The sums, under the name of a method."""
        return replace(super().total(method), seconds=max(self.seconds, self._started * self._start))

    def add(self, flops: int | float, read: int | float, written: int | float, again: int | float = 0) -> None:
        """One operation and its pass over memory."""
        self._kernel(flops, read, written)

    def _kernel(
        self, flops: int | float, read: int | float, written: int | float, speed: float = 1.0, fill: float = 1.0
    ) -> None:
        """One operation: traffic at `speed` of a copy's, arithmetic `fill` times as long."""
        size = self.element_size * (read + written)
        self.flops += flops
        self.bytes += size
        self.calls += 1
        self._started += 1
        traffic = size / self.machine.bytes_per_second / speed
        self.seconds += max(fill * flops / self.flops_per_second, traffic) + self.machine.seconds_per_kernel
