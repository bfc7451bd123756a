"""A grid of runs: any list of methods, configs, worlds, seeds and learning rates, trained, scored and put into a table.

    runs = [Run("UniAdapter", config=UniAdapterConfig(bottleneck=r), learning_rate=3e-3) for r in (8, 32)]
    rows = run_grid(runs, "runs/mine")                     # can be interrupted; the same call goes on
    print(table(rows))

`study` is such lists; this is how they are run, and what their rows say.
"""

import hashlib
import json
import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from uniadapter_edu import quickstart
from uniadapter_edu._atomic import write_json, write_whole
from uniadapter_edu.accounting import PeakMemory, trainable_parameters
from uniadapter_edu.backbones import load_backbone, load_processor
from uniadapter_edu.checkpoint import fingerprint
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import insert_adapters
from uniadapter_edu.jobs import JOBS, Metrics
from uniadapter_edu.methods import lora
from uniadapter_edu.momentum import MomentumConfig, MomentumRetrievalTask
from uniadapter_edu.quickstart import Settings
from uniadapter_edu.training import History, TrainConfig, train
from uniadapter_edu.worlds import clips, emoji, questions

DEFAULTS = Settings()
SCORES = "t2i_r1", "i2t_r1"
FRAMES = 6
_remembered = lru_cache(maxsize=3)  # the same data sets serve many runs
_pictures = _remembered(emoji.load_split)
# What is searched, asked about or described, by name: (world, split, size, style) -> data set. `jobs.JOBS` says how.
WORLDS = {
    "pictures": _pictures,
    "captions": _pictures,
    "clips": _remembered(partial(clips.load_clips, frames=FRAMES)),
    "clips with distractors": _remembered(partial(clips.load_clips, frames=FRAMES, distractors=2)),
    "picture questions": _remembered(questions.load_questions),
    "clip questions": _remembered(partial(questions.load_clip_questions, frames=FRAMES)),
}


# --------------------------------------------------------------------------- one run


@dataclass(frozen=True)
class Run:
    """One method trained with one seed, and scored. ``line`` and ``budget`` are only what it is called."""

    line: str
    method: str = "UniAdapter"  # one of quickstart.METHODS; adapters of every config are "UniAdapter"
    config: UniAdapterConfig | None = None  # of adapters
    rank: int | None = None  # of LoRA
    learning_rate: float | None = None  # the frozen model has none
    momentum: MomentumConfig | None = None
    settings: Settings = DEFAULTS  # style, sizes, steps, batch and seed; config stands for its bottleneck and scale
    world: str = "pictures"  # one of WORLDS
    split: str = "test"  # to be scored on
    budget: float | None = None  # percent of the backbone that the run was to train

    @property
    def name(self) -> str:
        at = f" at {self.budget} %" if self.budget else ""
        return f"{self.line}{at}, {self.settings.style} {self.world}, seed {self.settings.seed}"

    def to_dict(self) -> dict:
        """The fields as plain values that JSON can hold."""
        return asdict(self) | {"config": self.config and self.config.to_dict()}

    @classmethod
    def from_dict(cls, values: dict) -> "Run":
        """The inverse of :meth:`to_dict`."""
        kinds = {"config": UniAdapterConfig.from_dict, "momentum": _from(MomentumConfig), "settings": _from(Settings)}
        return cls(**values | {name: kind(values[name]) for name, kind in kinds.items() if values[name]})

    def key(self, backbone: str) -> str:
        """A name for its files, shared by runs that compute the same on a backbone of this fingerprint."""
        computed = self.to_dict() | {"line": None, "budget": None, "backbone": backbone}
        return hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Row:
    """What a run gave: one row of the table. A run that failed has an ``error`` and no metrics."""

    run: Run
    metrics: Metrics | None = None  # of the kind that the world's job gives
    trainable: int | None = None
    percent: float | None = None  # of the backbone's parameters
    loss: float | None = None  # the mean of the last ten steps'
    seconds_per_step: float | None = None
    precision: str | None = None  # in which it was trained: "fp32" or "bf16"
    error: str | None = None
    peak_mb: float | None = None  # resident memory of the whole process while it trained

    @property
    def score(self) -> float:
        """The one number by which runs on this world are compared: what its job says."""
        return getattr(self.metrics, JOBS[self.run.world].score)

    def to_dict(self) -> dict:
        """The fields as plain values that JSON can hold."""
        return asdict(self) | {"run": self.run.to_dict()}

    @classmethod
    def from_dict(cls, values: dict) -> "Row":
        """The inverse of :meth:`to_dict`."""
        run = Run.from_dict(values["run"])
        metrics = values["metrics"] and JOBS[run.world].metrics.from_dict(values["metrics"])
        return cls(**values | {"run": run, "metrics": metrics})


def execute(run: Run, folder: Path) -> Row:
    """Train and score one run, from where it was interrupted if it was; ``folder`` is for its checkpoint."""
    settings, model = run.settings, prepare(run)
    with PeakMemory() as memory:
        history = None if run.method == "frozen" else _train(run, model, folder)
    gallery = WORLDS[run.world]("target", run.split, settings.gallery, settings.style)
    metrics = JOBS[run.world].evaluate(model, load_processor(), gallery, settings.top_k)
    ledger = trainable_parameters(model)
    row = Row(run, metrics, ledger.trainable, ledger.percent)
    if history is None:
        return row
    last, speed = history.column("loss")[-10:], history.seconds_per_step
    took = {"seconds_per_step": speed, "peak_mb": memory.peak_mb}
    return replace(row, loss=sum(last) / len(last), precision=history.precision, **took)


def prepare(run: Run) -> nn.Module:
    """A fresh backbone in which exactly what the run trains requires a gradient."""
    backbone = JOBS[run.world].backbone
    if run.config is None and run.rank is None:
        return quickstart.prepare(run.method, run.settings, backbone)
    torch.manual_seed(run.settings.seed)
    model = load_backbone(task=backbone)
    return insert_adapters(model, run.config) if run.config else lora(model, run.rank)


def _train(run: Run, model: nn.Module, folder: Path) -> History:
    settings = run.settings
    config = TrainConfig(
        steps=settings.steps, batch_size=settings.batch_size, seed=settings.seed, learning_rate=run.learning_rate
    )
    kind = JOBS[run.world].task
    if run.momentum:
        _check_pictures(run)
        kind = partial(MomentumRetrievalTask, momentum=run.momentum)
    task = kind(model, load_processor(), seed=settings.seed)
    scenes = WORLDS[run.world]("target", "train", settings.scenes, settings.style)
    return train(model, task, scenes, config, folder=folder, resume=True, progress=False)


def _check_pictures(run: Run) -> None:
    if run.world != "pictures":
        raise UniAdapterError(
            f"{run.name}: momentum encoders are for pictures, and this run is on {run.world}",
            "leave out momentum, or set world='pictures'.",
        )


# --------------------------------------------------------------------------- many runs


def run_grid(
    runs: Sequence[Run], folder: str | Path, *, progress: bool = True, stop_on_error: bool = False
) -> list[Row]:
    """Run every run that has no row in ``folder`` yet, and return the rows of all, in the order of ``runs``.

    A finished run is one small file in ``folder/rows``, written whole or not at all; a row counts only for the backbone
    that it was made with. An interrupted run goes on from its checkpoint in ``folder/checkpoints``, which is deleted
    once the row is there. A run that fails has its error in its row and is tried again by the next call; the others
    go on, unless ``stop_on_error``.
    """
    folder, rows = Path(folder), []
    kinds = {JOBS[run.world].backbone for run in runs}
    backbones = {kind: fingerprint(load_backbone(task=kind)) for kind in kinds}
    with tqdm(runs, unit="run", disable=not progress) as bar:
        for run in bar:
            bar.set_postfix_str(run.name)
            rows.append(_row(run, folder, run.key(backbones[JOBS[run.world].backbone]), stop_on_error))
    return rows


def _row(run: Run, folder: Path, key: str, stop_on_error: bool) -> Row:
    path, checkpoint = folder / "rows" / f"{key}.json", folder / "checkpoints" / key
    if path.exists() and not (row := _read_row(path)).error:
        return replace(row, run=run)
    try:
        row = execute(run, checkpoint)
    except Exception as error:  # any, for it is one of many runs, and the row says which error
        if stop_on_error:
            raise
        row = Row(run, error=f"{type(error).__name__}: {error}")
    write_json(path, row.to_dict())
    shutil.rmtree(checkpoint, ignore_errors=True)
    return row


def put_row(row: Row, folder: str | Path, backbone: str) -> bool:
    """Put a finished run, made with the backbone of this fingerprint, among those of ``folder``; False if it is there."""
    path = Path(folder) / "rows" / f"{row.run.key(backbone)}.json"
    if path.exists() or row.error:
        return False
    write_json(path, row.to_dict())
    return True


def _read_row(path: Path) -> Row:
    try:
        return Row.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise UniAdapterError(
            f"{path} is not a row of a study: {error}", "delete it, and the run is repeated."
        ) from error


def _from(kind: type) -> Callable[[dict], object]:
    return lambda values: kind(**values)


# --------------------------------------------------------------------------- what the table says


def recovered(row: Row, rows: Iterable[Row], score: str = "t2i_r1") -> float | None:
    """The share of full fine-tuning's gain over the frozen model that a row recovers: 0 is frozen, 1 is all of it.

    ``rows`` hold the two references with the same settings, seeds aside (their means count); None if they do not, or
    if full fine-tuning gains nothing. ``score``: of which metric.
    """
    ends = [_mean_of(line, row, rows, score) for line in ("frozen", "full fine-tuning")]
    if row.error or None in ends or ends[0] == ends[1]:
        return None
    # (score - frozen) / (full - frozen)
    return (getattr(row.metrics, score) - ends[0]) / (ends[1] - ends[0])


def _mean_of(method: str, row: Row, rows: Iterable[Row], score: str) -> float | None:
    same = [r for r in rows if r.run.method == method and _circumstances(r) == _circumstances(row) and not r.error]
    return statistics.mean(getattr(r.metrics, score) for r in same) if same else None


def _circumstances(row: Row) -> tuple:
    """What two runs must have in common to be compared."""
    return replace(row.run.settings, seed=0), row.run.world, row.run.split


def summary(rows: Sequence[Row]) -> list[dict]:
    """One dict a cell, which is the runs that differ in the seed alone: line, style, world, budget, learning_rate,
    batch_size, steps, ``n`` seeds, ``failed`` ones, trainable, percent, and of t2i_r1, i2t_r1 and recovered (of t2i_r1) the
    mean and, as ``…_std``, the standard deviation over seeds. Deviations of one seed, and means of none, are None.
    """
    cells: dict[Run, list[Row]] = {}
    for row in rows:
        run = replace(row.run, settings=replace(row.run.settings, seed=0))
        cells.setdefault(run, []).append(row)
    return [_cell(run, own, rows) for run, own in cells.items()]


def _cell(run: Run, own: list[Row], rows: Sequence[Row]) -> dict:
    good = [row for row in own if not row.error]
    named = {"line": run.line, "style": run.settings.style, "world": run.world, "budget": run.budget}
    cell = named | {"learning_rate": run.learning_rate}
    cell |= {"batch_size": run.settings.batch_size, "steps": run.settings.steps}
    cell |= {"n": len(good), "failed": len(own) - len(good)}
    cell |= {name: getattr(good[0], name) if good else None for name in ("trainable", "percent")}
    for name in SCORES:
        cell |= mean_and_std(name, [getattr(row.metrics, name) for row in good])
    return cell | mean_and_std("recovered", [recovered(row, rows) for row in good])


def mean_and_std(name: str, values: list[float | None]) -> dict:
    known = [value for value in values if value is not None]
    spread = statistics.stdev(known) if len(known) > 1 else None
    return {name: statistics.mean(known) if known else None, f"{name}_std": spread}


def differences(rows: Sequence[Row], reference: str, score: str = "t2i_r1") -> dict[str, list[float]]:
    """line -> how much higher its score is than the reference line's, one number for each seed that both have.

    Runs of one seed see the same scenes, batches and captions, and good and bad luck with these is common to both. So
    their difference varies less than either, and says more with three seeds than two means and two deviations do.
    ``rows``: one part of a study, in which a line has one run a seed. Failed runs are left out.
    """
    scores: dict[str, dict[int, float]] = {}
    for row in rows:
        if not row.error:
            scores.setdefault(row.run.line, {})[row.run.settings.seed] = getattr(row.metrics, score)
    base = scores.pop(reference)
    return {line: [own[seed] - base[seed] for seed in own if seed in base] for line, own in scores.items()}


def best_rates(rows: Sequence[Row], score: Callable[[Row], float]) -> dict[str, float]:
    """line -> the learning rate of its run with the best score, of those that did not fail; of equal ones, the first.

    Raises `UniAdapterError` if every run of a line failed.
    """
    best: dict[str, Row] = {}
    for row in (row for row in rows if not row.error):
        if row.run.line not in best or score(row) > score(best[row.run.line]):
            best[row.run.line] = row
    if failed := {row.run.line: row.error for row in rows if row.run.line not in best}:
        raise UniAdapterError(
            f"no learning rate can be chosen for {', '.join(failed)}: {[*failed.values()][-1]}",
            "repair what failed and run it again.",
        )
    return {line: row.run.learning_rate for line, row in best.items()}


def table(rows: Sequence[Row]) -> str:
    """The summary as aligned text: recalls in percent, mean ± standard deviation over n seeds."""
    head = ["", "style", "world", "batch", "steps", "trained", "% of", "R@1 t2i", "R@1 i2t", "gain", "n"]
    unit = ["line", "", "", "", "", "parameters", "backbone", "%", "%", "recovered %", ""]
    lines = [head, unit] + [_cells(cell) for cell in summary(rows)]
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of cells as text in columns, the first ``left`` of them flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip()
        for line in lines
    )


def renew_tables(card: Path, tables: Mapping[str, str]) -> None:
    """Write tables into a card, whose text around them is written by hand."""
    write_whole(card, with_tables(card.read_text(encoding="utf-8"), tables).encode("utf-8"))


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """``text`` with the block behind each ``<!-- table NAME -->`` replaced by the table of that name."""
    for name, lines in tables.items():
        before, mark, after = text.partition(f"<!-- table {name} -->\n```\n")
        text = before + mark + (f"{lines}\n```" + after.partition("```")[2] if mark else "")
    return text


def _cells(cell: dict) -> list[str]:
    seeds = str(cell["n"]) + (f", {cell['failed']} failed" if cell["failed"] else "")
    size = ["" if cell["n"] == 0 else text for text in (f"{cell['trainable'] or 0:,}", f"{cell['percent'] or 0:.2f}")]
    scores = [percent(cell[name], cell[f"{name}_std"]) for name in (*SCORES, "recovered")]
    sizes = str(cell["batch_size"]), str(cell["steps"])
    return [cell["line"], cell["style"], cell["world"], *sizes, *size, *scores, seeds]


def percent(mean: float | None, spread: float | None) -> str:
    return "" if mean is None else f"{100 * mean:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")
