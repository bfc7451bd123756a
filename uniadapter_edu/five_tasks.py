"""One adapter, five tasks: the same adapters on retrieval, questions and captions, beside what they are compared with.

    python -m uniadapter_edu tasks                      # hours; the same command goes on where it was interrupted
    python -m uniadapter_edu tasks --show               # the tables and the figure of what is there

Every task gets the same adapter, of one size, at most 5 % of the smallest of the three backbones, heads included. For each
task and method the learning rate is chosen on validation scenes with the first seed; the table is of test scenes. Tasks
come one after another, so that an interrupted run leaves whole rows of the table.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from uniadapter_edu import viz
from uniadapter_edu._atomic import write_json
from uniadapter_edu._files import data_path
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.grid import Row, Run, aligned, best_rates, mean_and_std, percent, recovered, renew_tables, run_grid
from uniadapter_edu.jobs import JOBS
from uniadapter_edu.quickstart import Settings

TASKS = ("pictures", "picture questions", "captions", "clip questions", "clips")  # worlds; the quickest come first
SHIPPED, FIGURE = "five_tasks", "five_tasks.png"  # the folder below data/, and the figure in it
METHODS = ("frozen", "linear probe", "UniAdapter", "full fine-tuning")
SEEDS = (0, 1, 2)
BOTTLENECK = 56
DEFAULTS = Settings(steps=240, gallery=200)
CLIPS = {"scenes": 500, "batch_size": 16}  # and half of the steps: a clip costs as much as its frames
RATES = {
    "linear probe": (1e-2, 3e-2),
    "UniAdapter": (2e-3, 5e-3, 1e-2),
    "full fine-tuning": (5e-4, 1e-3, 2e-3),
}


def base_run(world: str, method: str, settings: Settings) -> Run:
    """A method on a task; learning rate, seed and split are open."""
    if world.startswith("clip"):
        settings = replace(settings, steps=settings.steps // 2, **CLIPS)
    config = UniAdapterConfig.paper(bottleneck=BOTTLENECK, scale=settings.scale) if method == "UniAdapter" else None
    return Run(method, method, config, settings=settings, world=world)


def rate_runs(world: str, settings: Settings, seed: int) -> list[Run]:
    """Every trained method at several learning rates, scored on validation scenes."""
    seeded = replace(settings, seed=seed)
    return [
        replace(base_run(world, method, seeded), learning_rate=rate, split="val")
        for method, rates in RATES.items()
        for rate in rates
    ]


def choose_rates(rows: Sequence[Row]) -> dict[str, float]:
    """The learning rate of each method that scored best. Raises `UniAdapterError` if every run of one failed."""
    return best_rates(rows, lambda row: row.score)


def table_runs(world: str, settings: Settings, seeds: Sequence[int], rates: dict[str, float]) -> list[Run]:
    """What the table holds of one task: the frozen model, which no seed changes, and each method with every seed."""
    runs = [base_run(world, "frozen", replace(settings, seed=seeds[0]))]
    for method in METHODS[1:]:
        one = replace(base_run(world, method, settings), learning_rate=rates[method])
        runs += [replace(one, settings=replace(one.settings, seed=seed)) for seed in seeds]
    return runs


def five_tasks(
    folder: str | Path,
    worlds: Sequence[str] = TASKS,
    seeds: Sequence[int] = SEEDS,
    settings: Settings = DEFAULTS,
    progress: bool = True,
) -> list[Row]:
    """Run the tasks, print the table after each, and leave each one's rows in a file; returns the table's rows."""
    rows = []
    for world in worlds:
        tried = run_grid(rate_runs(world, settings, seeds[0]), folder, progress=progress)
        rates = choose_rates(tried)
        own = run_grid(table_runs(world, settings, seeds, rates), folder, progress=progress)
        content = {"rows": [row.to_dict() for row in own], "tried": [row.to_dict() for row in tried]}
        write_json(Path(folder) / _file(world), content)
        rows += own
        print(f"\n{table(rows)}\n{_at_the_end(JOBS[world].name, rates)}", flush=True)
    return rows


def read(folder: str | Path, rows: str = "rows") -> list[Row]:
    """The rows of every task that `five_tasks` has finished in ``folder``; with ``rows="tried"`` those on validation
    scenes, by which learning rates were chosen. Raises `UniAdapterError` if there is none."""
    paths = [Path(folder) / _file(world) for world in TASKS]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    if not found:
        raise UniAdapterError(f"{folder} holds no finished task.", "Run `python -m uniadapter_edu tasks` first.")
    return [Row.from_dict(row) for content in found for row in content[rows]]


def tables(folder: str | Path) -> dict[str, str]:
    """The table of the tasks that are there and that of the learning rates tried for them, by their names in a card."""
    return {"tasks": table(read(folder)), "rates": rates_table(read(folder, "tried"))}


def draw(folder: str | Path) -> Path:
    """Draw the tasks that are there into ``folder``; returns the figure's path."""
    path = Path(folder) / FIGURE
    viz.tasks_chart(cells(read(folder))).savefig(path, dpi=150)
    return path


def record(folder: str | Path) -> Path:
    """Make the tasks in ``folder`` those that ship with the package: rows, figure, and the tables in their card.

    Returns the card, whose text between the tables is written by hand.
    """
    shipped = data_path() / SHIPPED
    shipped.mkdir(exist_ok=True)
    for path in (draw(folder), *(Path(folder) / _file(row.run.world) for row in read(folder))):
        shutil.copy(path, shipped)
    card = shipped / "README.md"
    renew_tables(card, tables(shipped))
    return card


def cells(rows: Sequence[Row]) -> list[dict]:
    """One dict for each task and method: task, method, unit, n seeds, failed ones, trainable, percent, learning_rate, and
    mean and ``…_std`` over seeds of score, recovered, seconds_per_step and peak_mb, None where there is no such number."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.run.world, row.run.method), []).append(row)
    return [_cell(own, rows) for own in groups.values()]


def _cell(own: list[Row], rows: Sequence[Row]) -> dict:
    good, job = [row for row in own if not row.error], JOBS[own[0].run.world]
    cell = {"task": job.name, "method": own[0].run.method, "unit": job.unit, "n": len(good)}
    cell |= {"failed": len(own) - len(good), "learning_rate": own[0].run.learning_rate}
    cell |= {name: getattr(good[0], name) if good else None for name in ("trainable", "percent")}
    cell |= mean_and_std("score", [row.score for row in good])
    cell |= mean_and_std("recovered", [recovered(row, rows, job.score) for row in good])
    for name in ("seconds_per_step", "peak_mb"):
        cell |= mean_and_std(name, [getattr(row, name) for row in good])
    return cell


def table(rows: Sequence[Row]) -> str:
    """The cells as aligned text: scores in percent, mean ± standard deviation over n seeds."""
    head = ["", "", "", "", "gain", "trained", "% of", "s per", "peak", ""]
    unit = ["task", "method", "score", "%", "recovered %", "parameters", "backbone", "step", "MB", "n"]
    return aligned([head, unit] + [_line(cell) for cell in cells(rows)], left=3)


def rates_table(rows: Sequence[Row]) -> str:
    """Rows on validation scenes as aligned text: a line for each task and method, its scores at each learning rate tried."""
    lines: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        score = "failed" if row.error else f"{100 * row.score:.1f}"
        lines.setdefault((JOBS[row.run.world].name, row.run.method), []).append(f"{row.run.learning_rate:g}: {score}")
    head = ["task", "method"] + ["rate: score %"] * max(map(len, lines.values()))
    return aligned(
        [head] + [[*names, *scores, *[""] * (len(head) - 2 - len(scores))] for names, scores in lines.items()], 2
    )


def _line(cell: dict) -> list[str]:
    scores = [percent(cell[name], cell[f"{name}_std"]) for name in ("score", "recovered")]
    seconds, peak = cell["seconds_per_step"], cell["peak_mb"]
    return [
        cell["task"],
        cell["method"],
        cell["unit"],
        *scores,
        *(["", ""] if cell["n"] == 0 else [f"{cell['trainable']:,}", f"{cell['percent']:.2f}"]),
        "" if seconds is None else f"{seconds:.2f}",
        "" if peak is None else f"{peak:.0f}",
        str(cell["n"]) + (f", {cell['failed']} failed" if cell["failed"] else ""),
    ]


def _at_the_end(task: str, rates: dict[str, float]) -> str:
    """Which learning rates were chosen, and which of them are the largest or smallest that were tried."""
    said = [
        f"{method} {rate:g}{' (the end of those tried)' if rate in (RATES[method][0], RATES[method][-1]) else ''}"
        for method, rate in rates.items()
    ]
    return f"{task}, learning rates chosen on validation scenes: {', '.join(said)}"


def _file(world: str) -> str:
    return f"{world.replace(' ', '_')}.json"
