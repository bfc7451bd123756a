"""The study: what each choice of the method does, at equal budgets, with the spread over seeds.

    python -m uniadapter_edu study                         # hours; the same command goes on where it was interrupted
    python -m uniadapter_edu study --part curve --draw     # tables and figures of what is there

Every part is a list of runs for `grid.run_grid`. They train on the same scenes for the same steps with the same losses
and heads. Learning rates are chosen in part "lr", on the validation split with one seed at the middle budget, and used
ever after; everything else is scored on the test split.
"""

import json
import math
import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from uniadapter_edu import viz
from uniadapter_edu._atomic import write_json
from uniadapter_edu._files import data_path
from uniadapter_edu.accounting import bottleneck_for
from uniadapter_edu.backbones import load_backbone
from uniadapter_edu.checkpoint import fingerprint
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.grid import SCORES, Row, Run, best_rates, put_row, recovered, renew_tables, run_grid, summary, table
from uniadapter_edu.methods import lora_rank_for
from uniadapter_edu.momentum import MomentumConfig
from uniadapter_edu.quickstart import Settings
from uniadapter_edu.worlds import emoji

SHIPPED = "study"  # the folder below data/
SEEDS = (0, 1, 2)
REFERENCES = ("frozen", "linear probe", "full fine-tuning")  # quickstart's methods that have no size to choose
BUDGETS = (2, 5, 15)  # trainable parameters, heads included, in percent of the backbone's
MIDDLE = 5
VALIDATION_SCENES = 200
# Twice quickstart's steps: adapters start at zero and need them more than full fine-tuning does.
DEFAULTS = Settings(steps=240)
# Ablations take half of the curve's steps: all their runs do, references included.
SHORT = {"steps": 120}

# --------------------------------------------------------------------------- the parts of the study

# A line is a method of any size. All adapters have the places, scale and start of the paper's preset.
ADAPTERS: dict[str, Callable[..., UniAdapterConfig]] = {
    "UniAdapter": UniAdapterConfig.paper,
    "unshared adapters": lambda **given: UniAdapterConfig.paper(share="none", **given),
    "adapter per modality": UniAdapterConfig.per_modality,
}
LINES = ("UniAdapter", "LoRA", "unshared adapters", "adapter per modality")
MAIN = LINES[:2]  # these in both styles
EXTENSIONS = 2  # how often a rate beyond is tried where the best one lies at the end of those that were
RATES = {
    **{line: (1e-3, 2e-3, 4e-3) for line in ADAPTERS},
    "LoRA": (3e-3, 6e-3, 1.2e-2),
    "linear probe": (1e-2, 3e-2),
    "full fine-tuning": (5e-4, 1e-3, 2e-3),
}

# One choice changed at a time, at the bottleneck of UniAdapter's middle budget; the first is compared with.
ABLATIONS: dict[str, dict] = {
    "as in the paper": {},
    "share: nothing": {"share": "none"},
    "share: up": {"share": "up", "cross_reuses_text_up": False},  # with one up, there is nothing to reuse
    "share: down and up": {"share": "all", "cross_reuses_text_up": False},
    "no query residual": {"query_residual": False},
    "text up not reused": {"cross_reuses_text_up": False},
    "no vision branch": {"modalities": ("text", "cross")},
    "no text branch": {"modalities": ("vision", "cross")},
    "no cross branch": {"modalities": ("vision", "text")},
    "published start": {"init": "published"},
    "published start, LN_x": {"init": "published", "cross_norm": True},
    "key/value adapters": {"kv_bottleneck": 8},
    "s = 0.1": {"scale": 0.1},
    "s learned, from 0.1": {"scale": "learned"},
}

# The published decay remembers 200 steps, more than a run of the study has; 0.95 remembers 20.
MOMENTA = {"no momentum": None, "μ = 0.995": MomentumConfig(), "μ = 0.95": MomentumConfig(decay=0.95)}
MOMENTUM_BATCHES = (32, 8)
STEPS = (0.5, 1, 2)
WIDE_RATE = 0.5  # of the rate chosen at the middle budget
CLIPS = {"scenes": 500, "batch_size": 16, "steps": 120}  # a clip costs as much as its frames


def sized(line: str, percent: float, settings: Settings) -> Run:
    """A line at a budget, heads included, in percent of the backbone's parameters; learning rate and seed are open."""
    model = load_backbone()
    parameters = round(percent / 100 * sum(p.numel() for p in model.parameters()))
    if line == "LoRA":
        return Run(line, "LoRA", rank=lora_rank_for(model, parameters), settings=settings, budget=percent)
    config = ADAPTERS[line](scale=settings.scale)
    config = replace(config, bottleneck=bottleneck_for(model, parameters, config))
    return Run(line, config=config, settings=settings, budget=percent)


def lr_runs(settings: Settings) -> list[Run]:
    """Every line at the middle budget, and the references, at several learning rates, on validation scenes."""
    settings = replace(settings, gallery=VALIDATION_SCENES)
    lines = [sized(line, MIDDLE, settings) for line in LINES]
    lines += [Run(method, method, settings=settings) for method in REFERENCES if method in RATES]
    return [replace(run, learning_rate=rate, split="val") for run in lines for rate in RATES[run.line]]


def choose_rates(rows: Sequence[Row]) -> dict[str, float]:
    """The learning rate of each line: the one with the best R@1, averaged over both directions.

    Raises `UniAdapterError` if every run of a line failed.
    """
    return best_rates(rows, _both_ways)


def beyond(rows: Sequence[Row]) -> list[Run]:
    """For each line whose best learning rate is the largest or smallest tried, a run with three times it, or a third."""
    more = []
    for line, rate in choose_rates(rows).items():
        own = [row.run for row in rows if row.run.line == line]
        tried = [run.learning_rate for run in own]
        if rate in (min(tried), max(tried)):
            further = 3 * rate if rate == max(tried) else rate / 3
            more.append(replace(own[0], learning_rate=float(f"{further:.1g}")))
    return more


def _both_ways(row: Row) -> float:
    return sum(getattr(row.metrics, name) for name in SCORES) / len(SCORES)


def curve_runs(settings: Settings, seeds: Sequence[int], rates: Mapping[str, float]) -> list[Run]:
    """Every line at every budget, and the references, in one style."""
    lines = [
        replace(sized(line, percent, settings), learning_rate=rates[line]) for line in LINES for percent in BUDGETS
    ]
    return reference_runs(settings, seeds, rates) + _seeded(lines, seeds)


def main_runs(settings: Settings, seeds: Sequence[int], rates: Mapping[str, float]) -> list[Run]:
    """UniAdapter and LoRA at the middle budget, and the references, in both target styles; the first is the curve's."""
    runs = []
    for style in emoji.TARGET_STYLES:
        here = replace(settings, style=style)
        lines = [replace(sized(line, MIDDLE, here), learning_rate=rates[line], budget=None) for line in MAIN]
        runs += reference_runs(here, seeds, rates) + _seeded(lines, seeds)
    return runs


def ablation_runs(settings: Settings, seeds: Sequence[int], rates: Mapping[str, float]) -> list[Run]:
    """`ABLATIONS` and the references, in one style."""
    settings = replace(settings, **SHORT)
    default = replace(sized("UniAdapter", MIDDLE, settings), learning_rate=rates["UniAdapter"], budget=None)
    changed = [replace(default, line=n, config=replace(default.config, **change)) for n, change in ABLATIONS.items()]
    references = [run for run in reference_runs(settings, seeds, rates) if run.method != "linear probe"]
    return references + _seeded(changed, seeds)


def momentum_runs(settings: Settings, seeds: Sequence[int], rates: Mapping[str, float]) -> list[Run]:
    """UniAdapter at the middle budget with and without momentum encoders, in large and in small batches."""
    settings = replace(settings, **SHORT)
    default = replace(sized("UniAdapter", MIDDLE, settings), learning_rate=rates["UniAdapter"], budget=None)
    runs = [
        replace(default, line=name, momentum=momentum, settings=replace(settings, batch_size=batch))
        for batch in MOMENTUM_BATCHES
        for name, momentum in MOMENTA.items()
    ]
    return _seeded([for_its_batch(run) for run in runs], seeds)


def video_runs(settings: Settings, seeds: Sequence[int], rates: Mapping[str, float]) -> list[Run]:
    """Clips with and without distractor frames: references, UniAdapter, and UniAdapter with frame-aware attention."""
    settings = replace(settings, **CLIPS)
    default = replace(sized("UniAdapter", MIDDLE, settings), learning_rate=rates["UniAdapter"], budget=None)
    aware = replace(default, line="UniAdapter, frame-aware", config=replace(default.config, frame_aware=True))
    runs = reference_runs(settings, seeds, rates) + _seeded([default, aware], seeds)
    runs = [for_its_batch(run) for run in runs]
    return [replace(run, world=world) for world in ("clips", "clips with distractors") for run in runs]


def for_its_batch(run: Run) -> Run:
    """The run with its learning rate, which was chosen at the default batch size, scaled by the root of its own over that.

    The noise in a gradient of B examples shrinks like 1/sqrt(B), and Adam's steps are as long however noisy they are.
    """
    factor = math.sqrt(run.settings.batch_size / DEFAULTS.batch_size)
    return replace(run, learning_rate=run.learning_rate and float(f"{factor * run.learning_rate:.2g}"))


def steps_runs(settings: Settings, seeds: Sequence[int], rates: Mapping[str, float]) -> list[Run]:
    """UniAdapter at the middle budget and the references, for half the steps to twice as many.

    The frozen model is scored once more for each, as it is what the gain of runs with as many steps starts from.
    """
    runs = []
    for factor in STEPS:
        here = replace(settings, steps=round(factor * settings.steps))
        ours = replace(sized("UniAdapter", MIDDLE, here), learning_rate=rates["UniAdapter"], budget=None)
        runs += [run for run in reference_runs(here, seeds, rates) if run.method != "linear probe"]
        runs += _seeded([ours], seeds)
    return runs


def wide_runs(settings: Settings, seeds: Sequence[int], rates: Mapping[str, float]) -> list[Run]:
    """Every line at the largest budget with a smaller rate, and the references: is it the size that costs, or the rate?"""
    smaller = {line: WIDE_RATE * rates[line] for line in LINES}
    lines = [replace(sized(line, BUDGETS[-1], settings), learning_rate=smaller[line]) for line in LINES]
    return reference_runs(settings, seeds, rates) + _seeded(lines, seeds)


def reference_runs(settings: Settings, seeds: Sequence[int], rates: Mapping[str, float]) -> list[Run]:
    """The frozen model, which no seed changes, and the trained references."""
    runs = [Run(method, method, learning_rate=rates.get(method), settings=settings) for method in REFERENCES]
    return _seeded(runs[:1], seeds[:1]) + _seeded(runs[1:], seeds)


def _seeded(runs: Iterable[Run], seeds: Sequence[int]) -> list[Run]:
    return [replace(run, settings=replace(run.settings, seed=seed)) for run in runs for seed in seeds]


PARTS = {
    "curve": curve_runs,
    "wide": wide_runs,
    "main": main_runs,
    "ablation": ablation_runs,
    "momentum": momentum_runs,
    "video": video_runs,
    "steps": steps_runs,
}
ALL_PARTS = ("lr", *PARTS)


# --------------------------------------------------------------------------- the command


def study(
    folder: str | Path,
    parts: Sequence[str] = ALL_PARTS,
    seeds: Sequence[int] = SEEDS,
    settings: Settings = DEFAULTS,
    progress: bool = True,
) -> dict[str, list[Row]]:
    """Run parts of the study, print their tables, and leave each part's rows in ``folder/<part>.json``; returns them.

    Part "lr" comes first whatever is asked for, with the first of the seeds; finished runs are only read.
    """
    runs, more = [], lr_runs(replace(settings, seed=seeds[0]))
    for _ in range(1 + EXTENSIONS):
        runs += more
        rows = run_grid(runs, folder, progress=progress)
        more = beyond(rows)
    rates = choose_rates(rows)
    tables = {"lr": _finish("lr", rows, rates, folder)}
    for part in (part for part in PARTS if part in parts):
        rows = run_grid(PARTS[part](settings, seeds, rates), folder, progress=progress)
        tables[part] = _finish(part, rows, rates, folder)
    return tables


def _finish(part: str, rows: list[Row], rates: dict[str, float], folder: str | Path) -> list[Row]:
    content = {
        "backbone": fingerprint(load_backbone()),
        "learning_rates": rates,
        "rows": [row.to_dict() for row in rows],
    }
    write_json(Path(folder) / f"{part}.json", content)
    report(part, rows)
    return rows


def read_study(folder: str | Path) -> dict[str, list[Row]]:
    """The rows of every part that `study` has left in ``folder``. Raises `UniAdapterError` if there is none."""
    return {part: [Row.from_dict(row) for row in content["rows"]] for part, content in _contents(folder).items()}


def begin_from_shipped(folder: str | Path) -> int:
    """Put the finished runs of the study that ships with the package into ``folder``; returns how many are new there.

    They count for the backbone that they were made with and for no other, as all rows do.
    """
    shipped = _contents(data_path(SHIPPED)).values()
    return sum(put_row(Row.from_dict(row), folder, part["backbone"]) for part in shipped for row in part["rows"])


def _contents(folder: str | Path) -> dict[str, dict]:
    """What the files of the parts hold that are there. Raises `UniAdapterError` if there is none."""
    paths = {part: Path(folder) / f"{part}.json" for part in ALL_PARTS}
    found = {part: json.loads(path.read_text(encoding="utf-8")) for part, path in paths.items() if path.exists()}
    if not found:
        raise UniAdapterError(f"{folder} holds no part of a study.", "Run `python -m uniadapter_edu study` first.")
    return found


def report(part: str, rows: Sequence[Row]) -> None:
    """Print a part's table and its failures; of part lr the choice, and where it lies at the end of what was tried."""
    print(f"\n{part}\n{table(rows)}")
    for row in rows:
        if row.error:
            print(f"failed: {row.run.name}: {row.error.splitlines()[0]}")
    if part == "lr":
        ends = {run.line for run in beyond(rows)}
        for line, rate in choose_rates(rows).items():
            print(f"chosen for {line}: {rate:g}{', the end of the rates that were tried' if line in ends else ''}")


def draw(folder: str | Path, parts: Sequence[str] = ALL_PARTS) -> list[Path]:
    """Print the tables of the parts that are there, and draw figures into ``folder``; returns the figures' paths."""
    folder, tables = Path(folder), read_study(folder)
    drawn = {}
    for part, rows in tables.items():
        if part in parts:
            report(part, rows)
            drawn |= {f"{part}.png": figure} if (figure := figure_of(part, rows)) else {}
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=150)
    return [folder / name for name in drawn]


def figure_of(part: str, rows: Sequence[Row]) -> Figure | None:
    """A part of the study as a figure; None where its rows give nothing to draw, as those of part "lr"."""
    return FIGURES[part]([row for row in rows if not row.error]) if part in FIGURES else None


def record(folder: str | Path, figures: Iterable[Path]) -> Path:
    """Make the study in ``folder`` the one that ships with the package: its rows, its figures, and the tables in its card.

    Returns the card, whose text between the tables is written by hand.
    """
    shipped, tables = data_path() / SHIPPED, read_study(folder)
    shipped.mkdir(exist_ok=True)
    for path in (*(Path(folder) / f"{part}.json" for part in tables), *figures):
        shutil.copy(path, shipped)
    card = shipped / "README.md"
    renew_tables(card, {part: table(rows) for part, rows in tables.items()})
    return card


def _curve_figure(rows: Sequence[Row]) -> Figure | None:
    points = [_point(row, rows) | {"line": row.run.line} for row in rows if row.run.method != "frozen"]
    points = [point for point in points if point["recovered"] is not None]
    probe = [point["recovered"] for point in points if point["line"] == "linear probe"]
    lines = [point for point in points if point["budget"]]
    return viz.recovery_curve(lines, statistics.mean(probe) if probe else None) if lines else None


def _ablation_figure(rows: Sequence[Row]) -> Figure | None:
    rows = [row for row in rows if row.run.line in ABLATIONS]
    return _chart(rows, lambda run: run.line, next(iter(ABLATIONS)))


def _chart(
    rows: Sequence[Row], called: Callable[[Run], str], reference: str | None = None, found: str = "picture"
) -> Figure | None:
    points = [_point(row, rows) | {"choice": called(row.run)} for row in rows]
    return viz.ablation_chart(points, reference, found=found) if points else None


def _steps_figure(rows: Sequence[Row]) -> Figure | None:
    lines = {}
    for cell in (cell for cell in summary(rows) if cell["line"] != "frozen"):
        steps, scores = lines.setdefault(cell["line"], ([], []))
        steps.append(cell["steps"])
        scores.append(100 * cell["t2i_r1"])
    return viz.curves(lines, "steps", "right picture first, % of queries") if lines else None


FIGURES: dict[str, Callable[[Sequence[Row]], Figure | None]] = {
    "curve": _curve_figure,
    "main": lambda rows: _chart(rows, lambda run: f"{run.settings.style}: {run.line}"),
    "ablation": _ablation_figure,
    "momentum": lambda rows: _chart(rows, lambda run: f"batch {run.settings.batch_size}, {run.line}"),
    "video": lambda rows: _chart(rows, lambda run: f"{run.world}: {run.line}", found="clip"),
    "steps": _steps_figure,
}


def _point(row: Row, rows: Sequence[Row]) -> dict:
    score = row.metrics and row.metrics.t2i_r1
    return {"budget": row.run.budget, "percent": row.percent, "r1": score, "recovered": recovered(row, rows)}
