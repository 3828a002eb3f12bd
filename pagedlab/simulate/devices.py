"""The two numbers of a device that a roofline needs, arithmetic and bandwidth: published ones, and this CPU's measured.

Where the slanted roof (bandwidth) meets the flat one (arithmetic) is the ridge point (Williams, Waterman & Patterson
2009, "Roofline", section 3): work that does fewer operations per byte than the ridge waits for memory.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pagedlab.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Device:
    """What a device can do at best.

    Attributes:
        name: as people call it
        flops_per_second: dense matrix products; one multiply-add is 2 operations
        bytes_per_second: between the chip and its memory
        memory_bytes: size of that memory; vendors' "80 GB" is 80 GiB
        source: where the numbers stand
    """

    name: str
    flops_per_second: float
    bytes_per_second: float
    memory_bytes: int
    source: str

    def __post_init__(self) -> None:
        if not (self.flops_per_second > 0 and self.bytes_per_second > 0):
            raise ConfigError(f"{self.name}: give rates above 0 (operations a second, bytes a second).")

    @property
    def ridge(self) -> float:
        """FLOP per byte from which on arithmetic, not memory, sets the time."""
        return self.flops_per_second / self.bytes_per_second

    def attainable(self, intensity: float) -> float:
        """FLOP/s at best, for work that does `intensity` FLOP for every byte that it moves."""
        return min(self.flops_per_second, intensity * self.bytes_per_second)

    def seconds(self, flops: float, num_bytes: float) -> float:
        """The floor: arithmetic and traffic overlap perfectly, and the longer of the two is the time."""
        return max(flops / self.flops_per_second, num_bytes / self.bytes_per_second)


GIB = 1 << 30
A100_SHEET = "NVIDIA A100 data sheet, https://www.nvidia.com/en-us/data-center/a100/"

DEVICES = {
    device.name: device
    for device in (
        # 16-bit tensor-core rates without sparsity; with accumulation in float32.
        Device(
            "RTX 4090",
            165.2e12,
            1008e9,
            24 * GIB,
            "NVIDIA Ada GPU architecture white paper, appendix A, table 2 (FP16 Tensor TFLOPS with FP32 accumulate)",
        ),
        Device("A100 40GB", 312e12, 1555e9, 40 * GIB, A100_SHEET),
        Device("A100 80GB", 312e12, 2039e9, 80 * GIB, A100_SHEET + " (SXM)"),
        Device(
            "H100",
            989e12,
            3350e9,
            80 * GIB,
            "NVIDIA H100 data sheet (SXM), https://www.nvidia.com/en-us/data-center/h100/",
        ),
        Device(
            "H200", 989e12, 4800e9, 141 * GIB, "NVIDIA H200 data sheet, https://www.nvidia.com/en-us/data-center/h200/"
        ),
    )
}


def device(name: str) -> Device:
    """A published device by name.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in DEVICES:
        raise ConfigError(
            f"The device must be one of {', '.join(DEVICES)}, got {name!r}: or make a Device of your own."
        )
    return DEVICES[name]


@torch.inference_mode()
def measure_this_cpu(dtype: torch.dtype = torch.float32, repeats: int = 5) -> Device:
    """This machine's processor, with as many threads as torch may use now.

    Arithmetic: the product of two square matrices of 1,024 rows. Bandwidth: a matrix of 192 MiB times one vector, which
    reads every number once and reuses none. Of `repeats` runs the fastest counts: a roof is what is possible. A machine
    that is busy with something else measures lower roofs. Takes about a second, and 192 MiB.
    """
    import psutil

    side = 1024
    a, b = torch.randn(side, side, dtype=dtype), torch.randn(side, side, dtype=dtype)
    matrix = torch.ones(192 * (1 << 20) // (dtype.itemsize * 4096), 4096, dtype=dtype)
    vector = torch.ones(4096, dtype=dtype)
    arithmetic = fastest(lambda: a @ b, repeats)
    reading = fastest(lambda: matrix @ vector, repeats)
    return Device(
        name="this CPU",
        flops_per_second=2 * side**3 / arithmetic,
        bytes_per_second=matrix.numel() * dtype.itemsize / reading,
        memory_bytes=psutil.virtual_memory().total,
        source=f"measured, {str(dtype).removeprefix('torch.')}, torch threads: {torch.get_num_threads()}",
    )


def fastest(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of several runs, after one that warms up."""
    clock = busy_clock()
    run()
    best = float("inf")
    for _ in range(repeats):
        start = clock()
        run()
        best = min(best, clock() - start)
    return best


def busy_clock() -> Callable[[], float]:
    """The clock that disturbs a measurement least: a function that returns seconds.

    With one thread it is time of the processor, which stands still while another program has the core. With several
    that would add up, and on Windows it ticks only every 16 ms: there it is the wall clock.
    """
    alone = torch.get_num_threads() == 1 and sys.platform != "win32"
    return time.process_time if alone else time.perf_counter
