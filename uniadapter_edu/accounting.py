"""What a method costs: parameters, bytes, memory and time.

A hundred times fewer trainable parameters are a hundred times less to store, and as much less gradient and optimizer
state. They are not a hundred times less time or memory: every activation is still computed, and most are still kept,
for the gradient has to pass through the frozen layers. Hence four measures and not one.
"""

import contextlib
import ctypes
import gc
import html
import statistics
import sys
import threading
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import psutil
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from uniadapter_edu.adapter import Heads
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import _towers, unwrapped

# --------------------------------------------------------------------------------------------------------- parameters


@dataclass(frozen=True)
class Row:
    """One part of a model. ``group``: "backbone", "UniAdapter" or "LoRA"; ``trainable_bytes``: one gradient of it."""

    part: str
    group: str
    trainable: int
    total: int
    trainable_bytes: int


@dataclass(frozen=True)
class Ledger:
    """The parameters of a model, part by part. ``print`` it, or leave it at the end of a notebook's cell."""

    rows: tuple[Row, ...]

    @property
    def backbone(self) -> int:
        """Parameters of the backbone alone: what percentages are of."""
        return sum(row.total for row in self.rows if row.group == "backbone")

    @property
    def total(self) -> int:
        return sum(row.total for row in self.rows)

    @property
    def trainable(self) -> int:
        return sum(row.trainable for row in self.rows)

    @property
    def percent(self) -> float:
        """Trainable parameters in percent of the backbone's, so that it says the same of every method."""
        return self.percent_of_backbone(self.trainable)

    @property
    def gradient_bytes(self) -> int:
        """What the gradients of a step occupy."""
        return sum(row.trainable_bytes for row in self.rows)

    @property
    def adam_bytes(self) -> int:
        """What Adam's two moments occupy; `optimizer_bytes` measures it."""
        return 2 * self.gradient_bytes

    def percent_of_backbone(self, parameters: int) -> float:
        return 100 * parameters / self.backbone

    def __getitem__(self, part: str) -> Row:
        """The row of a part, such as ``ledger["up.vision"]``. KeyError if there is none."""
        return {row.part: row for row in self.rows}[part]

    def __str__(self) -> str:
        table = self._table()
        widths = [max(len(line[i]) for line in table) for i in range(4)]
        lines = [
            "  ".join([line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])])
            for line in table
        ]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], self._note()])

    def _repr_html_(self) -> str:
        def tr(cells, tag):
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        head, *body = self._table()
        rows = tr(head, "th") + "".join(tr(line, "td") for line in body)
        return f"<table>{rows}</table><p>{html.escape(self._note())}</p>"

    def _table(self) -> list[list[str]]:
        cells = [(_label(row), row.trainable, row.total) for row in self.rows]
        cells.append(("sum", self.trainable, self.total))
        lines = [[part, f"{n:,}", f"{of:,}", f"{self.percent_of_backbone(n):.2f}"] for part, n, of in cells]
        return [["part", "trainable", "parameters", "% trainable"], *lines]

    def _note(self) -> str:
        return f"%: of the backbone's {self.backbone:,} parameters. Shared weights are counted once."


def trainable_parameters(model: nn.Module) -> Ledger:
    """Counts a model's parameters by part: a plain BLIP, one with (active) adapters, or peft's wrapper around one.

    A weight that several places share is one object, and counted once, where it is met first.
    """
    model = unwrapped(model)
    counts: dict[tuple[str, str], list[int]] = {}
    for name, parameter in model.named_parameters():  # yields each object once
        count = counts.setdefault(_place(name.split(".")), [0, 0, 0])
        n = parameter.numel()
        trains = n if parameter.requires_grad else 0
        for i, amount in enumerate((trains, n, trains * parameter.element_size())):
            count[i] += amount
    rows = [Row(part, group, *count) for (group, part), count in counts.items()]
    return Ledger(tuple(sorted(rows, key=lambda row: row.group != "backbone")))


_PARTS = {
    "vision_model": "vision encoder",
    "text_encoder": "text encoder",
    "text_decoder": "text decoder",
    "vision_proj": "projections",
    "text_proj": "projections",
    "itm_head": "matching head",
}


def _label(row: Row) -> str:
    return row.part if row.group == "backbone" else f"{row.group}: {row.part}"


def _place(path: list[str]) -> tuple[str, str]:
    """(group, part) of a parameter, from the modules on the way to it."""
    if path[0] == "uniadapter":
        return "UniAdapter", _adapter_part(path[1:])
    if any(module in ("lora_A", "lora_B") for module in path):
        return "LoRA", "low-rank updates"
    if "modules_to_save" in path:
        return "LoRA", "head copies"
    part = _PARTS.get(path[0], path[0])
    return "backbone", f"{part}: cross-attention" if "crossattention" in path else part


def _adapter_part(path: list[str]) -> str:
    """``layers.3.up.vision.weight`` -> "up.vision": the same part of all layers together."""
    if path[0] == "heads":
        return "temperature" if path[1] == "temperature" else "head copies"
    if path[0] != "layers":
        return path[0]  # kv, kv_decoder
    module = [name for name in path[2:] if name not in ("weight", "bias")]
    return ".".join(module)


def count_adapter_parameters(
    config: UniAdapterConfig, hidden_size: int, vision_layers: int, text_layers: int, updates: int = 1
) -> int:
    """How many parameters adapters have, heads aside, without building them: the sum of `adapter_parts`.

    With the paper's sharing a layer has 4Dr + r + 5D, and 2D more with LN_x; arguments as in `adapter_parts`.
    """
    return sum(adapter_parts(config, hidden_size, vision_layers, text_layers, updates).values())


def adapter_parts(
    config: UniAdapterConfig, hidden_size: int, vision_layers: int, text_layers: int, updates: int = 1
) -> dict[str, int]:
    """The closed form of the count (section 3.3 of the paper): parameters of all layers together, by kind.

    hidden_size: D. vision_layers, text_layers: layer i has the branches of the towers that have a layer i.
    updates: key/value adapters, one for each text tower with cross-attention (question answering has two).
    """
    D, r, rank = hidden_size, config.bottleneck, config.kv_bottleneck
    one_down, one_up = config.share in ("down", "all"), config.share in ("up", "all")
    count = dict.fromkeys(("norm_in", "down", "up", "norm_cross", "scale", "kv"), 0)
    for branches in _layers(config.modalities, vision_layers, text_layers):
        reuses = "cross" in branches and config.cross_reuses_text_up
        ups = branches | ({"text"} if reuses else set())
        count["norm_in"] += 2 * D
        count["down"] += (D * r + r) * (1 if one_down else len(branches))
        count["up"] += (r * D + D) * (1 if one_up else len(ups))
        count["norm_cross"] += 2 * D * ("cross" in branches and config.cross_norm)
        count["scale"] += config.scale == "learned"
    if rank:
        # U (D_k e + d_k) + u and its g, for keys and for values
        count["kv"] = updates * 2 * (2 * D * rank + rank + D + 1)
    return {kind: n for kind, n in count.items() if n}


def bottleneck_for(model: nn.Module, parameters: int, config: UniAdapterConfig | None = None) -> int:
    """The bottleneck with which ``config`` trains as close to ``parameters`` as can be, heads included; at least 1.

    The counterpart of `methods.lora_rank_for`, for any sharing: methods can be compared at one budget. ``model``: the
    BLIP that the adapters are for, with or without adapters. Raises `UniAdapterError` if it is no BLIP.
    """
    towers, config = _towers(model), config or UniAdapterConfig()
    depths = towers.depths["vision"], towers.depths["text"], len(towers.texts)

    def count(r: int) -> int:
        return count_adapter_parameters(replace(config, bottleneck=r), towers.widths["vision"], *depths)

    # count(r) = fixed + r · per_unit, whatever is shared
    per_unit = count(2) - count(1)
    heads = sum(p.numel() for p in Heads(towers.heads, config.train_heads).parameters() if p.requires_grad)
    fixed = count(1) - per_unit + heads
    return max(1, round((parameters - fixed) / per_unit))


def _layers(modalities: Iterable[str], vision_layers: int, text_layers: int) -> list[set[str]]:
    depth = {name: vision_layers if name == "vision" else text_layers for name in modalities}
    return [{name for name in depth if i < depth[name]} for i in range(max(depth.values()))]


# -------------------------------------------------------------------------------------------------------------- bytes


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What an optimizer's state occupies now; 0 before its first step."""
    states = optimizer.state.values()
    return sum(v.numel() * v.element_size() for state in states for v in state.values() if torch.is_tensor(v))


def size_on_disk(path: str | Path) -> int:
    """Bytes of a file, or of all files below a folder. Raises `UniAdapterError` if there is neither."""
    path = Path(path)
    if not path.exists():
        raise UniAdapterError(f"There is no {path} to measure.", "Give a file or a folder that was saved.")
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


class PeakMemory:
    """The largest resident memory of this process while a block runs, in MB (10^6 bytes).

        with PeakMemory() as memory:
            train(...)
        memory.peak_mb

    It is the whole process: Python, PyTorch and all that was there before (``before_mb``). A thread looks every
    ``interval`` seconds; if the operating system's own record of the peak rose meanwhile, it counts too, so that no
    short peak is missed. First, what earlier work freed is given back, so that methods can be compared one after the other.
    """

    def __init__(self, interval: float = 0.01):
        self.interval, self.before_mb, self.peak_mb = interval, 0.0, 0.0

    def __enter__(self) -> Self:
        _give_back_freed_memory()
        self._process, self._done = psutil.Process(), threading.Event()
        self._record = _record_mb()
        self.before_mb = self.peak_mb = self._resident_mb()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info) -> None:
        self._done.set()
        self._thread.join()
        self._look()
        if (record := _record_mb()) > self._record:
            self.peak_mb = max(self.peak_mb, record)

    def _watch(self) -> None:
        while not self._done.wait(self.interval):
            self._look()

    def _look(self) -> None:
        self.peak_mb = max(self.peak_mb, self._resident_mb())

    def _resident_mb(self) -> float:
        return self._process.memory_info().rss / 1e6


class TensorMemory(TorchDispatchMode):
    """The most bytes that tensors made while a block runs occupy at one time, and the largest of them, on any device.

        with TensorMemory() as memory:
            train(...)
        memory.peak_bytes, memory.largest_bytes

    Tensors that were there before, such as a model's weights, do not count, nor does what an operation needs inside.
    It is the same number in every run, unlike `PeakMemory`'s, and says nothing of the rest of the process.
    """

    def __init__(self):
        super().__init__()
        self.bytes = self.peak_bytes = self.largest_bytes = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in (*args, *(kwargs or {}).values()) if torch.is_tensor(x)}
        tree_map_only(torch.Tensor, lambda x: self._note(x.untyped_storage(), given), made)
        return made

    def _note(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        if key in self._alive or key in given:  # a view, or written in place
            return
        self._alive.add(key)
        weakref.finalize(storage, self._forget, key, storage.nbytes())
        self.bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        self.largest_bytes = max(self.largest_bytes, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.bytes -= size


def _give_back_freed_memory() -> None:
    """To the operating system. glibc keeps most of what is freed, and the next peak would stand on it; others do not."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)


def _record_mb() -> float:
    """The process' largest resident memory ever, as the operating system noted it; 0 where it does not (Windows)."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes, but bytes on a Mac
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


# --------------------------------------------------------------------------------------------------------------- time


class StepTimer:
    """Times what is done again and again; the median does not mind a slow first step or a busy machine.

    timer = StepTimer()
    for batch in batches:
        with timer:
            step(batch)
    timer.median
    """

    def __init__(self):
        self.seconds: list[float] = []

    def __enter__(self) -> Self:
        self._start = _now()
        return self

    def __exit__(self, *exc_info) -> None:
        self.seconds.append(_now() - self._start)

    @property
    def median(self) -> float:
        """Seconds a step. Raises `UniAdapterError` before the first."""
        if not self.seconds:
            raise UniAdapterError("The timer has timed nothing yet.", "Put `with timer:` around each step.")
        return statistics.median(self.seconds)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # a GPU works on while Python has gone ahead
    return time.perf_counter()
