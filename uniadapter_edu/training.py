"""One plain training loop, which stops and goes on without a trace.

The loop knows nothing of BLIP. A task is an ``nn.Module`` around the model with ``trainable()`` (name -> Parameter),
``prepare(dataset)`` (rows), ``collate(rows)`` (a batch) and ``forward(batch)`` (a dict of scalars with ``"loss"``).
If more than that changes in training, as a momentum encoder does, ``extra_state()`` gives it (name -> Tensor; parameters
by their names in ``named_parameters()``), and checkpoints hold it.

Every random choice of a step (its rows, their captions, mismatched texts, dropout) follows from ``seed`` and the step's
number alone. A run that is stopped and resumed therefore needs no saved random state to end, on the same machine, with
the same bits as one that never stopped.
"""

import functools
import json
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from uniadapter_edu import together
from uniadapter_edu._atomic import write_json
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.reading import Rows
from uniadapter_edu.resuming import Checkpoints

BEGINNING = 10  # steps whose losses say what is usual


# ---- settings


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults suit adapters on a small BLIP; contradictions raise :class:`UniAdapterError`."""

    epochs: int = 10  # passes over the data; each draws another caption of every image
    steps: int | None = None  # number of optimizer steps, instead of epochs
    batch_size: int = 64  # contrast needs company: each image is told apart from the 63 others
    learning_rate: float = 1e-3  # the peak; adapters start at zero and bear far more than the 1e-5 of full fine-tuning
    weight_decay: float = 0.05  # BLIP's; only on matrices: shrinking biases, norms or τ regularises nothing
    warmup_fraction: float = 0.1  # of all steps: Adam's first estimates are noise, so first steps are small
    clip_norm: float = 1.0  # an odd batch may not throw the weights far; healthy gradients are mostly below it
    seed: int = 0  # of the order of rows, the captions, the mismatches and dropout
    precision: str = "auto"  # "fp32", "bf16", or whichever a measurement on this device finds faster
    checkpoint_every: int = 100  # steps; loses a minute at most, and writes little where little trains
    keep_checkpoints: int = 2  # the newest, and one before it, should somebody need to look further back
    accumulate: int = 1  # pieces in which a batch goes through the model: less memory, the same losses
    gradient_checkpointing: bool = False  # compute layers again instead of keeping what they computed
    workers: int = 0  # processes that load data: none, as the rows are in memory and the cores are busy
    unreadable: str = "stop"  # at a row whose picture is lost or damaged, or "skip": another takes its place
    explosion: float = 10.0  # stop at so many times the largest loss of the first ten steps; inf goes on

    def __post_init__(self):
        wrong = [
            ("epochs", self.epochs < 1, "at least 1"),
            ("steps", self.steps is not None and self.steps < 1, "None or at least 1"),
            ("batch_size", self.batch_size < 1, "at least 1"),
            ("learning_rate", not 0 < self.learning_rate < math.inf, "a positive number"),
            ("weight_decay", not 0 <= self.weight_decay < math.inf, "0 or more"),
            ("warmup_fraction", not 0 <= self.warmup_fraction < 1, "from 0 to below 1"),
            ("clip_norm", not self.clip_norm > 0, "a positive number (inf clips nothing)"),
            ("precision", self.precision not in ("auto", "fp32", "bf16"), '"auto", "fp32" or "bf16"'),
            ("checkpoint_every", self.checkpoint_every < 1, "at least 1"),
            ("keep_checkpoints", self.keep_checkpoints < 1, "at least 1"),
            ("accumulate", not 1 <= self.accumulate <= self.batch_size, "from 1 to batch_size"),
            ("workers", self.workers < 0, "0 or more"),
            ("unreadable", self.unreadable not in ("stop", "skip"), '"stop" or "skip"'),
            ("explosion", not self.explosion > 1, "more than 1 (inf never stops)"),
        ]
        for name, is_wrong, expected in wrong:
            if is_wrong:
                raise UniAdapterError(f"{name} is {getattr(self, name)!r}, expected {expected}", f"set {name} to that.")


def learning_rate_at(step: int, steps: int, config: TrainConfig) -> float:
    """The learning rate of a step (from 0) out of ``steps``: linear warm-up, then half a cosine down towards 0."""
    warmup = int(config.warmup_fraction * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    # lr = peak · ½ (1 + cos π p), p from 0 to 1 over the rest
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


@functools.cache
def best_precision(device: str = "cpu") -> str:
    """Return "bf16" where multiplying in it on ``device`` is clearly faster than in float32, else "fp32".

    Measured once per process: some CPUs are eight times faster in bf16, others a hundred times slower.
    """

    def fastest(dtype: torch.dtype) -> float:
        a, b = torch.ones(512, 192, dtype=dtype, device=device), torch.ones(192, 768, dtype=dtype, device=device)
        times = []
        for _ in range(4):  # the first also pays for set-up
            start = time.perf_counter()
            (a @ b)[0, 0].item()  # item() waits for the result
            times.append(time.perf_counter() - start)
        return min(times)

    try:  # autocast pays for conversions, so "a little faster" would be slower in the end
        return "bf16" if 1.5 * fastest(torch.bfloat16) < fastest(torch.float32) else "fp32"
    except RuntimeError:  # this device has no bf16
        return "fp32"


# ---- what a run leaves behind


@dataclass
class History:
    """What happened: ``rows``, one dict a step (step, epoch, loss and its parts, lr, seconds), and ``evaluations``, one
    dict each (step, and what ``evaluate`` returned). ``finished`` is False if the run was stopped before its end.
    ``skipped`` are the rows of the data set that could not be read, ``waited`` the seconds spent waiting for rows."""

    rows: list[dict] = field(default_factory=list)
    evaluations: list[dict] = field(default_factory=list)
    precision: str = "fp32"
    finished: bool = False
    skipped: list[int] = field(default_factory=list)
    waited: float = 0.0

    def column(self, name: str) -> list:
        """One quantity over all steps, for plotting: ``history.column("loss")``."""
        return [row[name] for row in self.rows]

    @property
    def seconds_per_step(self) -> float:
        """The median duration of a step, evaluation and checkpoints left out."""
        return float(torch.tensor(self.column("seconds")).quantile(0.5)) if self.rows else float("nan")

    def to_dict(self) -> dict:
        """A plain dict for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "History":
        """The inverse of :meth:`to_dict`."""
        return cls(**values)

    def save(self, path: str | os.PathLike) -> None:
        """Write as JSON, whole or not at all."""
        try:
            write_json(path, self.to_dict())
        except OSError as error:
            raise UniAdapterError(
                f"{path} could not be written: {error}", "free some space; the old one is intact."
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike) -> "History":
        """Read what :meth:`save` wrote. Raises `UniAdapterError` if it is something else."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UniAdapterError(
                f"{path} is no history of training: {error}", "give what History.save wrote."
            ) from error


# ---- the loop


def train(
    model: nn.Module,
    task: nn.Module,
    dataset,
    config: TrainConfig | None = None,
    *,
    folder: str | os.PathLike | None = None,
    resume: bool = False,
    evaluate: Callable[[nn.Module], object] | None = None,
    evaluate_every: int | None = None,
    stop: Callable[[History], bool] | None = None,
    progress: bool = True,
) -> History:
    """Train whatever in ``model`` requires a gradient, in place. Returns the :class:`History`.

    In a script that `accelerate launch` starts in several processes, each takes its part of every batch (of
    ``config.batch_size`` rows in all), on its own device, and the losses are those of the whole batch: negatives come
    from all processes, and the numbers are those of one process, but for rounding and for dropout.

    ``evaluate(model)`` is called every ``evaluate_every`` steps and at the end; it returns a dict, or metrics with
    ``to_dict()``. ``stop(history)`` is asked after every step and ends the run by returning True.

    With a ``folder``, what trains, the optimizer's state and the history are saved there every
    ``config.checkpoint_every`` steps, when stopped, at Ctrl-C (which lets the step in progress finish) and at the end.
    ``resume=True`` goes on from the newest of these checkpoints if there is one, and else begins; without it old ones
    are replaced. The model must be in the state that it had when the run began, what trains excepted. Killed at any
    moment, a run that is resumed ends on the same machine with the same bits.

    Raises :class:`UniAdapterError` if nothing trains; if the loss or its gradient is not finite, or explodes (naming the
    step, the rows of its batch and the last good checkpoint); if a row cannot be read, unless those are to be skipped; if
    the disk refuses a checkpoint; and if a checkpoint belongs to another run.
    """
    config = config or TrainConfig()
    if getattr(task, "model", model) is not model:
        raise UniAdapterError("the task was made for another model", "make the task from the model that trains.")
    if not task.trainable():
        raise UniAdapterError(
            "nothing trains: no parameter requires a gradient",
            "insert_adapters(model), or choose linear_probe(model), lora(model, rank) or full_fine_tuning(model).",
        )
    run = _Run(task, task.prepare(dataset), config)
    if folder is not None:
        run.checkpoints = Checkpoints(folder, run)
        if resume:
            run.checkpoints.load()
    if run.history.finished:
        return run.history

    was_training = task.training
    task.train()
    try:
        with _interruptible() as interrupted, torch.random.fork_rng(run.cuda_devices()), _lean(model, config):
            for outcome in _steps(run, progress):
                run.history.rows.append(outcome)
                done = len(run.history.rows)
                last = done == run.steps
                if evaluate and (last or evaluate_every and done % evaluate_every == 0):
                    run.history.evaluations.append({"step": done, **_as_dict(evaluate(model))})
                    task.train()
                run.history.finished = last
                stopped = together.anyone(stop is not None and stop(run.history), run.device)
                pressed = together.anyone(interrupted, run.device)
                if run.checkpoints and (last or stopped or pressed or done % config.checkpoint_every == 0):
                    if together.rank() == 0:  # should the disk refuse, the launcher stops the others
                        run.checkpoints.save()
                    together.wait()
                if pressed:
                    raise KeyboardInterrupt(f"stopped after step {done} of {run.steps}")
                if stopped:
                    break
    finally:
        task.train(was_training)
    if run.history.skipped and together.rank() == 0:
        lost = ", ".join(map(str, run.history.skipped[:10])) + (", …" if len(run.history.skipped) > 10 else "")
        warnings.warn(f"{len(run.history.skipped)} rows could not be read and were skipped: {lost}", stacklevel=2)
    return run.history


def _steps(run: "_Run", progress: bool) -> Iterator[dict]:
    """Train step by step, from where the history ends; yields each step's row of the history."""
    first = len(run.history.rows)
    with tqdm(total=run.steps, initial=first, unit="step", disable=not progress or together.rank() > 0) as bar:
        started = time.perf_counter()
        for step, batch in enumerate(run.batches(first), start=first):
            run.history.waited += time.perf_counter() - started
            lr = learning_rate_at(step, run.steps, run.config)
            values = _one_step(run, step, batch, lr)
            seconds = time.perf_counter() - started
            bar.update()
            bar.set_postfix(loss=f"{values['loss']:.3f}")
            yield {"step": step + 1, "epoch": run.epoch_of(step), **values, "lr": lr, "seconds": seconds}
            started = time.perf_counter()  # what the caller did meanwhile is not part of a step


def _one_step(run: "_Run", step: int, batch, lr: float) -> dict[str, float]:
    torch.manual_seed(run.config.seed * 1_000_003 + step)  # whatever the forward pass draws follows from the step
    for group in run.optimizer.param_groups:
        group["lr"] = lr * group.get("pace", 1.0)
    values: dict[str, Tensor] = {}
    for outputs in run.parts(batch):
        values = {name: values.get(name, 0) + value.detach() for name, value in outputs.items()}
        run.accelerator.backward(outputs["loss"])
    values = {name: together.mean(value).item() for name, value in values.items()}
    run.check("loss", values["loss"], step, run.usual_loss() * run.config.explosion)
    run.average_gradients()
    norm = run.accelerator.clip_grad_norm_(list(run.trainable.values()), run.config.clip_norm)
    run.check("norm of the gradient", float(norm), step)  # a step along NaN would leave nothing to save
    run.optimizer.step()
    run.optimizer.zero_grad()
    return values


class _Run:
    """What the loop needs, made from its settings: device, optimizer, and which rows each step sees."""

    def __init__(self, task: nn.Module, rows, config: TrainConfig):
        self.config, self.rows = config, rows
        self.checkpoints: Checkpoints | None = None
        # Precision is not accelerate's to know here: it is fixed once a process there, and runs with different
        # precisions are compared here in one process.
        self.accelerator = Accelerator()
        self.device = self.accelerator.device
        self.task = task.to(self.device)
        self.trainable = task.trainable()
        together.agree_on(self.trainable | self.extra_state())
        optimizer = torch.optim.AdamW(_parameter_groups(self.trainable, config.weight_decay), lr=config.learning_rate)
        # Gradients are averaged here and not by DistributedDataParallel: it would rename the parameters, and waits for
        # gradients of all of them, which not every batch gives.
        self.optimizer = self.accelerator.prepare(optimizer)
        precision = best_precision(self.device.type) if config.precision == "auto" else config.precision
        self.history = History(precision=precision)
        # Whole batches only: the contrastive loss of a small one is another loss. Each epoch leaves other rows over.
        self.batch_size = min(config.batch_size, len(rows))
        if self.batch_size % together.processes():
            raise UniAdapterError(
                f"{together.processes()} processes cannot share a batch of {self.batch_size} rows evenly",
                "choose a batch_size that is a multiple of their number, and have as many rows.",
            )
        if config.unreadable == "stop":  # what is known to be lost is said at once, not when it comes up
            for error in getattr(rows, "lost", {}).values():
                raise error
        if config.accumulate > 1 and not hasattr(task, "in_pieces"):
            raise UniAdapterError(
                f"{type(task).__name__} cannot take a batch in {config.accumulate} pieces: it has no in_pieces",
                "set accumulate=1, or use one of the tasks here.",
            )
        self.steps_per_epoch = len(rows) // self.batch_size
        self.steps = config.steps or config.epochs * self.steps_per_epoch

    def epoch_of(self, step: int) -> int:
        return step // self.steps_per_epoch

    def rows_of(self, step: int) -> list[int]:
        """The rows of the data set in this step's batch: a function of seed and step, so nothing needs to be saved."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.epoch_of(step))
        order = torch.randperm(len(self.rows), generator=generator)
        start = step % self.steps_per_epoch * self.batch_size
        return order[start : start + self.batch_size].tolist()

    def parts(self, batch) -> Iterator[dict[str, Tensor]]:
        """What the task makes of a batch, in as many parts as are to be accumulated; their losses add up."""
        if self.config.accumulate > 1:
            outputs = self.task.in_pieces(batch, self.config.accumulate)
        else:
            outputs = (self.task(each) for each in [batch])
        while True:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.history.precision == "bf16"):
                part = next(outputs, None)
            if part is None:
                return
            yield part

    def average_gradients(self) -> None:
        """Over all processes: each has the gradient through its own part of the batch (see `together`)."""
        if together.processes() > 1:
            for _, p in sorted(self.trainable.items()):
                p.grad = together.mean(torch.zeros_like(p) if p.grad is None else p.grad)

    def usual_loss(self) -> float:
        """The largest loss of the first steps; as large as can be while there are too few."""
        first = self.history.rows[:BEGINNING]
        return max(abs(row["loss"]) for row in first) if len(first) == BEGINNING else math.inf

    def check(self, what: str, value: float, step: int, limit: float = math.inf) -> None:
        """Raise `UniAdapterError` unless ``value`` is finite and at most ``limit``."""
        if math.isfinite(value) and value <= limit:
            return
        self.optimizer.zero_grad()
        usual = f" (stopped above {limit:.4g})" if math.isfinite(value) else ""
        last_good = self.checkpoints.last_good() if self.checkpoints else "; no folder for checkpoints was given"
        raise UniAdapterError(
            f"the {what} is {value:.4g} at step {step + 1}{usual}, with rows {self.rows_of(step)} of the data set{last_good}",
            "look at these rows; if they are sound, lower learning_rate or set precision='fp32', "
            "and go on from the checkpoint with load_trained(task, checkpoint) in a new folder.",
        )

    def batches(self, first: int) -> Iterator:
        """The collated batch of each step from ``first`` on, on the device."""
        read = getattr(self.task, "read", lambda row: row)
        rows = Rows(self.rows, read, self.config.unreadable == "skip", self.config.seed)
        loader = DataLoader(
            rows,
            batch_sampler=_Keys(self, first),
            collate_fn=self._collate,
            num_workers=self.config.workers,
            pin_memory=self.device.type == "cuda",
        )
        for batch, lost in loader:
            if isinstance(lost, UniAdapterError):
                raise lost
            if self.config.unreadable == "skip":
                ours = torch.tensor([[*lost, -1]], device=self.device)
                lost = set(together.gather_padded(ours, fill=-1).flatten().tolist()) - {-1}
                self.history.skipped = sorted({*self.history.skipped, *lost})
            yield send_to_device(batch, self.device)

    def _collate(self, found: tuple[list[dict], list[int] | UniAdapterError]) -> tuple:
        rows, lost = found
        return self.task.collate(rows) if rows else None, lost

    def extra_state(self) -> dict[str, Tensor]:
        return self.task.extra_state() if hasattr(self.task, "extra_state") else {}

    def cuda_devices(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []


class _Keys:
    """A batch sampler: the (epoch, row) keys of each step's batch, from step ``first`` on."""

    def __init__(self, run: _Run, first: int):
        self.run, self.first, self.batch_size, self.drop_last = run, first, run.batch_size, True

    def __len__(self) -> int:
        return self.run.steps - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first, self.run.steps):
            own = len(rows := self.run.rows_of(step)) // together.processes()  # this process's part
            yield [(self.run.epoch_of(step), row) for row in rows[together.rank() * own :][:own]]


def _parameter_groups(trainable: dict[str, nn.Parameter], weight_decay: float) -> list[dict]:
    """Matrices decay; biases, LayerNorms and scalars, which have fewer than two axes, do not.

    Adam moves a number by about the learning rate, however small it is: at 3e-3, a temperature of 0.07 would fall to
    its lower bound within 23 steps. A single number therefore moves in proportion to where it starts.
    """
    parameters = list(trainable.values())
    matrices, vectors = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups += [{"params": [p], "weight_decay": 0.0, "pace": abs(p.item()) or 1.0} for p in parameters if p.ndim == 0]
    return [group for group in groups if group["params"]]


@contextmanager
def _lean(model: nn.Module, config: TrainConfig) -> Iterator[None]:
    """The layers of a transformers model keep nothing for backward, if so wanted: they are computed again."""
    if not config.gradient_checkpointing:
        yield
        return
    if not hasattr(model, "gradient_checkpointing_enable"):
        raise UniAdapterError(
            f"{type(model).__name__} cannot compute its layers again for the gradients",
            "set gradient_checkpointing=False, or use a model of transformers'.",
        )
    with _old_names():
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if getattr(model, "_require_grads_hook", None) is not None:
        model.disable_input_require_grads()  # BLIP changes its embeddings in place, which must not require gradients
    try:
        yield
    finally:
        with _old_names():
            model.gradient_checkpointing_disable()


@contextmanager
def _old_names() -> Iterator[None]:
    """The names of methods that every tested version of transformers knows, and the newest only with a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _as_dict(result) -> dict:
    return dict(result.to_dict() if hasattr(result, "to_dict") else result)


@contextmanager
def _interruptible() -> Iterator[list]:
    """Ctrl-C is noted in the list instead of tearing a step apart; a second one stops at once."""
    pressed = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield pressed
        return
    previous = signal.getsignal(signal.SIGINT)

    def note(number, frame):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, previous if previous is not None else signal.SIG_DFL)
