"""Ways to do the same thing, measured side by side: time, memory, and how near each is to what arithmetic allows.

Seconds differ from machine to machine and from minute to minute. So all ways take turns, again and again, in one process,
and a ratio is the median of what a way took in relation to the first one in the same turn. On a CPU, times are those of the
processor, which do not mind what else the machine does.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from tqdm.auto import tqdm

from uniadapter_edu.accounting import TensorMemory
from uniadapter_edu.errors import UniAdapterError

# ---- the machine


@dataclass(frozen=True)
class Machine:
    """Where it runs. ``rate``: multiply-adds a second of the fastest matrix product, in processor seconds on a CPU."""

    device: str
    name: str
    precision: str
    threads: int
    rate: float

    def autocast(self):
        """As training does it."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")


def machine(device: str, precision: str) -> Machine:
    """The machine, its matrix rate measured. Raises `UniAdapterError` for a GPU that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UniAdapterError("There is no GPU that PyTorch can use here.", "Leave out --device, or give --device cpu.")
    name = torch.cuda.get_device_name() if device == "cuda" else f"a CPU, {torch.get_num_threads()} thread(s)"
    rate = matrix_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    return Machine(device, name, precision, torch.get_num_threads(), rate)


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Multiply-adds a second of the fastest of some square matrix products; of several, as no one size suits all."""
    sizes, rates = (512, 1024) if device == "cpu" else (2048, 4096, 8192), []
    for n in sizes:
        a = torch.ones(n, n, dtype=dtype, device=device)
        for _ in range(5):
            seconds, _ = timed(lambda a=a: a @ a, device)
            rates.append(n**3 / seconds if seconds else 0.0)
    return max(rates)


def timed(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Seconds that ``work`` takes: the processor's on a CPU, else real ones; and real ones anyway."""
    if device == "cuda":
        torch.cuda.synchronize()
    cpu, real = time.process_time(), time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()  # a GPU works on while Python has gone ahead
    cpu, real = time.process_time() - cpu, time.perf_counter() - real
    return (cpu if device == "cpu" else real), real


# ---- ways


@dataclass(frozen=True)
class Line:
    """One way to do a thing. Ratios are to the first line of its table: ``time`` above 1 is slower, ``memory`` above 1 more.

    seconds: the median, see `timed`. multiply_adds: counted; what fused attention computes again in the backward pass is
    among them. arithmetic: their ratio, which is what ``time`` would be if nothing else took any. share: of the limit,
    that is of the time that these multiply-adds take at the machine's matrix rate.
    peak_mb: of weights, gradients, the optimizer's state and what is computed. per_second: images, pairs or queries.
    """

    name: str
    seconds: float
    real_seconds: float
    time: float
    multiply_adds: int
    arithmetic: float
    share: float
    peak_mb: float
    memory: float
    per_second: float
    note: str = ""


@dataclass
class Way:
    """``work`` is measured; ``held`` are the bytes that it needs before it begins, ``items`` what it does at once.

    keeps_state: whether something stays after the first time, as an optimizer's state does, and is to be counted.
    """

    name: str
    work: Callable[[], object]
    items: int
    held: int
    note: str = ""
    keeps_state: bool = False


def side_by_side(
    ways: list[Way], machine: Machine, repetitions: int, bar: tqdm, judge: Callable[..., str] | None = None
) -> list[Line]:
    """Warm all ways up, counting, then let them take turns, every other time in the opposite order.

    ``judge`` is given what each way's work returned, and says how that differs: the first line's note.
    """
    counts, results = [], []
    for way in ways:
        with TensorMemory() as memory:
            if way.keeps_state:
                way.work()
            with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as flops:
                results.append(way.work())
        counts.append((flops.get_total_flops() // 2, way.held + memory.peak_bytes))
        bar.update()
    if judge:
        ways = [replace(ways[0], note=judge(*results)), *ways[1:]]
    turns: dict[str, list[tuple[float, float]]] = {way.name: [] for way in ways}
    for turn in range(repetitions):
        for way in ways if turn % 2 == 0 else ways[::-1]:
            turns[way.name].append(timed(way.work, machine.device))
            bar.update()
    first, lines = turns[ways[0].name], []
    for way, (multiply_adds, peak) in zip(ways, counts, strict=True):
        seconds, real = (statistics.median(values) for values in zip(*turns[way.name]))
        ratio = statistics.median(own[0] / other[0] for own, other in zip(turns[way.name], first, strict=True))
        work = multiply_adds, multiply_adds / counts[0][0], multiply_adds / machine.rate / seconds
        memory = peak / 1e6, peak / counts[0][1]
        lines.append(Line(way.name, seconds, real, ratio, *work, *memory, way.items / seconds, way.note))
    return lines


def _attention_flops(q, k, v, *args, out_shape=None, **options) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward_flops(grad, q, k, v, *args, out_shape=None, **options) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


# PyTorch knows how to count those of a GPU.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


def bytes_of(*modules: nn.Module) -> int:
    """Of weights and buffers, shared ones counted once."""
    tensors = {x.data_ptr(): x.nbytes for module in modules for x in (*module.parameters(), *module.buffers())}
    return sum(tensors.values())


@dataclass(frozen=True)
class Growth:
    """How time and memory grow with one number: both ways at each of its values. Ratios are to the first value."""

    value: int
    time: float  # ours
    memory: float
    plain_time: float
    plain_memory: float
    advantage: float  # the plain way's time over ours
    memory_advantage: float


# ---- tables


def table(lines: list[Line] | list[Growth], machine: Machine) -> str:
    """Aligned text."""
    growing = isinstance(lines[0], Growth)
    head = GROWTH_HEAD if growing else [*LINE_HEAD[:1], f"{'CPU ' if machine.device == 'cpu' else ''}s", *LINE_HEAD[1:]]
    cells = [head, *([_growth_cells(row) if growing else _line_cells(row) for row in lines])]
    widths = [max(map(len, column)) for column in zip(*cells)]
    text = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
    notes = [] if growing else [f"  {line.name}: {line.note}" for line in lines if line.note]
    return "\n".join(text + notes)


LINE_HEAD = ["", "real s", "x time", "GMAC", "x GMAC", "% of limit", "peak MB", "x memory", "a second"]
GROWTH_HEAD = ["", "ours: x time", "x memory", "plain: x time", "x memory", "plain/ours: time", "memory"]


def _line_cells(line: Line) -> list[str]:
    return [
        line.name,
        f"{line.seconds:.3g}",
        f"{line.real_seconds:.3g}",
        f"{line.time:.2f}",
        f"{line.multiply_adds / 1e9:.3g}",
        f"{line.arithmetic:.2f}",
        f"{100 * line.share:.0f}",
        f"{line.peak_mb:.0f}",
        f"{line.memory:.2f}",
        f"{line.per_second:.3g}",
    ]


def _growth_cells(row: Growth) -> list[str]:
    return [str(row.value), *(f"{value:.2f}" for value in list(asdict(row).values())[1:])]
