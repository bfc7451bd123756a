"""The main job, end to end: a frozen BLIP meets a new world, and a few percent of its weights adapt it.

    python -m uniadapter_edu quickstart

Every method gets the same scenes, steps, batches, losses and trained heads; only what else trains differs, and the
learning rate. `data/tune_quickstart.py` chose learning rates, and UniAdapter's scale, on the validation split.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from uniadapter_edu import viz
from uniadapter_edu._atomic import write_json, write_whole
from uniadapter_edu._files import data_path
from uniadapter_edu.accounting import PeakMemory, size_on_disk, trainable_parameters
from uniadapter_edu.backbones import load_backbone, load_processor
from uniadapter_edu.checkpoint import load_adapters, save_adapters
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import insert_adapters
from uniadapter_edu.methods import full_fine_tuning, linear_probe, lora, lora_rank_for
from uniadapter_edu.metrics import RetrievalMetrics
from uniadapter_edu.tasks.retrieval import RetrievalTask, evaluate_retrieval, search
from uniadapter_edu.training import History, TrainConfig, train
from uniadapter_edu.worlds import emoji

METHODS = ("frozen", "linear probe", "LoRA", "UniAdapter", "full fine-tuning")
# Full fine-tuning takes longest and is the same for everybody: its saved run is printed beside yours, unless you ask.
RUN_BY_DEFAULT = METHODS[:-1]
# The best of those that `data/tune_quickstart.py` tried, by R@1 in both directions on validation scenes, one seed; with the
# backbone as it was before the words that it never read got embeddings of their own.
LEARNING_RATES = {"linear probe": 3e-2, "LoRA": 1e-2, "UniAdapter": 3e-3, "full fine-tuning": 2e-3}
SAVED_RUNS = ("quickstart", "saved_runs.json")


@dataclass(frozen=True)
class Settings:
    """What all methods have in common. Two results can be compared only if these are equal."""

    style: str = "twemoji"
    scenes: int = 1000  # to train on
    gallery: int = 300  # to be scored on: never trained on, three captions each
    steps: int = 120
    batch_size: int = 64
    bottleneck: int = 32
    # s. The paper's 0.1 belongs to width 768 and r = 512. With it, 120 steps at the same learning rate leave the vision
    # branch at 0.5 % of the residual stream, and 11 points lower (`data/quickstart/tuning.json`).
    scale: float = 4.0
    top_k: int = 8  # candidates that the second stage matches
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    method: str
    metrics: RetrievalMetrics
    trainable: int
    percent: float  # of the backbone's parameters
    seconds_per_step: float | None
    peak_memory_mb: float | None  # resident memory of the whole process, Python and PyTorch included
    disk_bytes: int  # of what has to be kept to have this model again, the backbone aside
    saved_run: bool = False

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Result":
        return cls(**{**values, "metrics": RetrievalMetrics.from_dict(values["metrics"])})


# --------------------------------------------------------------------------- one method


def prepare(method: str, settings: Settings, task: str = "retrieval") -> nn.Module:
    """A fresh backbone for a task in which exactly what `method` trains requires a gradient."""
    torch.manual_seed(settings.seed)
    model = load_backbone(task=task)
    config = UniAdapterConfig.paper(bottleneck=settings.bottleneck, scale=settings.scale)
    ways: dict[str, Callable[[nn.Module], nn.Module]] = {
        "frozen": lambda m: m.requires_grad_(False),
        "linear probe": linear_probe,
        "LoRA": lambda m: lora(m, lora_rank_for(m, uniadapter_budget(settings, task))),
        "UniAdapter": lambda m: insert_adapters(m, config),
        "full fine-tuning": full_fine_tuning,
    }
    return ways[method](model)


def uniadapter_budget(settings: Settings, task: str = "retrieval") -> int:
    """How many parameters UniAdapter trains, heads included: LoRA is given about as many."""
    return trainable_parameters(prepare("UniAdapter", settings, task)).trainable


def train_method(
    method: str, settings: Settings, dataset, folder: Path, learning_rate: float | None = None
) -> tuple[nn.Module, History | None]:
    """Train one method, from where it was interrupted if it was; the frozen model needs no training and no history."""
    model = prepare(method, settings)
    if method == "frozen":
        return model, None
    config = TrainConfig(
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=settings.seed,
        learning_rate=learning_rate or LEARNING_RATES[method],
    )
    task = RetrievalTask(model, load_processor(), seed=settings.seed)
    return model, train(model, task, dataset, config, folder=folder / slug(method), resume=True)


def run_method(method: str, settings: Settings, data: dict, folder: Path) -> tuple[Result, History | None, nn.Module]:
    """Train one method, score it on the gallery, save it, and note what all that took."""
    with PeakMemory() as memory:
        model, history = train_method(method, settings, data["train"], folder)
        metrics = evaluate_retrieval(model, load_processor(), data["test"], top_k=settings.top_k)
    ledger, seconds = trainable_parameters(model), history.seconds_per_step if history else None
    size, peak = keep(method, model, folder), peak_with_earlier_parts(folder / slug(method), memory.peak_mb)
    return Result(method, metrics, ledger.trainable, ledger.percent, seconds, peak, size), history, model


def peak_with_earlier_parts(folder: Path, peak_mb: float) -> float:
    """The peak of the whole run: if it was interrupted, that of its parts before counts too."""
    path = folder / "peak_memory.json"
    if path.exists():
        peak_mb = max(peak_mb, json.loads(path.read_text())["peak_mb"])
    write_json(path, {"peak_mb": peak_mb})
    return peak_mb


def keep(method: str, model: nn.Module, folder: Path) -> int:
    """Save what `method` trained and return its size in bytes; nothing for the frozen model."""
    if method == "frozen":
        return 0
    if method == "UniAdapter":
        save_adapters(model, folder / "adapters")
        return size_on_disk(folder / "adapters")
    trained = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    write_whole(folder / slug(method) / "trained.safetensors", safetensors.torch.save(trained))
    return size_on_disk(folder / slug(method) / "trained.safetensors")


# --------------------------------------------------------------------------- the table


def table(results: list[Result]) -> str:
    """The results as aligned text."""
    head = ["", "text to image", "", "", "image to text", "", "", "trained", "% of", "s per", "peak", "on disk"]
    unit = ["method", "R@1", "R@5", "R@10", "R@1", "R@5", "R@10", "parameters", "backbone", "step", "MB", "MB"]
    rows = [head, unit] + [_cells(result) for result in results]
    widths = [max(len(row[i]) for row in rows[1:]) for i in range(len(unit))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("  ".join(cells) if row is not head else _header(head, widths))
    if any(result.saved_run for result in results):
        lines.append("* a saved run, whose times and memory are of another machine; --methods all runs it here")
    return "\n".join(lines)


def _cells(result: Result) -> list[str]:
    m = result.metrics
    scores = (m.t2i_r1, m.t2i_r5, m.t2i_r10, m.i2t_r1, m.i2t_r5, m.i2t_r10)
    return [
        result.method + ("*" if result.saved_run else ""),
        *(f"{100 * score:.1f}" for score in scores),
        f"{result.trainable:,}",
        f"{result.percent:.2f}",
        "" if result.seconds_per_step is None else f"{result.seconds_per_step:.2f}",
        "" if result.peak_memory_mb is None else f"{result.peak_memory_mb:.0f}",
        f"{result.disk_bytes / 1e6:.2f}",
    ]


def _header(head: list[str], widths: list[int]) -> str:
    """The upper header line, in which the two directions stretch over three columns each."""
    cells, i = [], 0
    while i < len(head):
        span = 3 if head[i] in ("text to image", "image to text") else 1
        cells.append(head[i].rjust(sum(widths[i : i + span]) + 2 * (span - 1)) if i else head[i].ljust(widths[i]))
        i += span
    return "  ".join(cells)


# --------------------------------------------------------------------------- the command


def quickstart(
    folder: Path,
    methods: tuple[str, ...] = RUN_BY_DEFAULT,
    settings: Settings = Settings(),
    fresh: bool = False,
    record: bool = False,
) -> list[Result]:
    """Run `methods`, print the table, and leave figures, results and adapters in `folder`. Returns the table's rows."""
    for method in methods if fresh else ():
        shutil.rmtree(folder / slug(method), ignore_errors=True)  # what training would resume from, and nothing else
    folder.mkdir(parents=True, exist_ok=True)
    backbone = sum(p.numel() for p in load_backbone().parameters())
    print(
        f"A BLIP of {backbone:,} parameters knows {len(emoji.known_concepts())} things in {len(emoji.SOURCE_STYLES)} art "
        f"styles.\nIt now meets {len(emoji.target_concepts())} things, 30 of them new to it, in the style of "
        f"{settings.style} and in other words.\nEach method trains on {settings.scenes} scenes for {settings.steps} steps "
        f"and then searches {settings.gallery} unseen scenes.\nEverything is written to {folder}/\n"
    )
    data = {
        "train": emoji.load_split("target", "train", settings.scenes, settings.style),
        "test": emoji.load_split("target", "test", settings.gallery, settings.style),
    }

    results, histories, models = [], {}, {}
    for method in METHODS:
        if method in methods:
            print(f"- {method}", flush=True)
            result, history, model = run_method(method, settings, data, folder)
            if method in ("frozen", "UniAdapter"):  # whose rankings are drawn; others would only take memory
                models[method] = model
            del model
            if history:
                histories[method] = history
        else:
            result, history = saved_run(method, settings)
            if result is None:
                print(f"- {method}: no saved run with these settings; run it with --methods all")
                continue
            histories |= {method: history} if history else {}
        results.append(result)

    print("\n" + table(results) + "\n")
    write_json(folder / "results.json", {"settings": asdict(settings), "results": [r.to_dict() for r in results]})
    draw(folder, results, histories, models, data["test"], settings)
    if "UniAdapter" in models:
        load_back(folder, results, data["test"], settings)
    if record:
        record_runs(folder, results, histories, settings)
    return results


def draw(folder: Path, results: list[Result], histories: dict, models: dict, gallery, settings: Settings) -> None:
    """The figures, as PNG files."""
    figures = {
        "gallery": viz.contact_sheet(gallery, title="The new world: some scenes to be found, and how they are told")
    }
    if histories:
        figures["learning_curves"] = viz.learning_curves({name: history.rows for name, history in histories.items()})
    figures["methods"] = viz.methods_chart(
        [{"method": r.method, "percent": r.percent, "r1": r.metrics.t2i_r1} for r in results]
    )
    if {"frozen", "UniAdapter"} <= models.keys():
        right = list(range(0, len(gallery), len(gallery) // 6))[:6]  # evenly spaced, not picked
        queries = [gallery[i]["captions"][0] for i in right]
        found = [
            search(models[name], load_processor(), gallery, queries, top_k=settings.top_k)[0][:, :4].tolist()
            for name in ("frozen", "UniAdapter")
        ]
        figures["before_after"] = viz.before_after(gallery, queries, *found, right, labels=("frozen", "UniAdapter"))
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png")
    print("Figures:", ", ".join(f"{folder}/{name}.png" for name in figures))


def load_back(folder: Path, results: list[Result], gallery, settings: Settings) -> None:
    """Load the saved adapters into a fresh backbone and score them again: the numbers must be the same."""
    model = load_adapters(load_backbone(), folder / "adapters")
    again = evaluate_retrieval(model, load_processor(), gallery, top_k=settings.top_k, progress=False)
    before = next(r.metrics for r in results if r.method == "UniAdapter")
    print(
        f"Adapters: {folder}/adapters, {size_on_disk(folder / 'adapters') / 1e6:.2f} MB. Loaded into a fresh backbone, they "
        f"give R@1 {100 * again.t2i_r1:.1f} and {100 * again.i2t_r1:.1f}: "
        f"{'the same numbers' if again == before else 'OTHER numbers'}."
    )
    if again != before:
        raise UniAdapterError(
            f"The adapters that were saved score otherwise than those that were trained: {again} instead of {before}.",
            "This is a bug; please report it.",
        )


# --------------------------------------------------------------------------- saved runs


def saved_run(method: str, settings: Settings) -> tuple[Result | None, History | None]:
    """The run of a method that ships with the package, if it was made with these very settings."""
    saved = json.loads(data_path(*SAVED_RUNS).read_text())
    if saved["settings"] != asdict(settings) or method not in saved["results"]:
        return None, None
    history = saved["histories"].get(method)
    result = replace(Result.from_dict(saved["results"][method]), saved_run=True)
    return result, History.from_dict(history) if history else None


def record_runs(folder: Path, results: list[Result], histories: dict, settings: Settings) -> None:
    """Make these results, and the two figures of the README, the ones that ship with the package."""
    path = data_path().joinpath(*SAVED_RUNS)
    record = {
        "settings": asdict(settings),
        "results": {r.method: r.to_dict() for r in results if not r.saved_run},
        "histories": {name: history.to_dict() for name, history in histories.items()},
    }
    write_json(path, record)
    viz.method_diagram().savefig(path.parent / "method.png")
    shutil.copy(folder / "before_after.png", path.parent)
    print(f"Recorded in {path.parent}; run `python -m uniadapter_edu._files data` before committing it.")


def slug(method: str) -> str:
    """'full fine-tuning' -> 'full_fine_tuning': a method's name in files and on the command line."""
    return method.lower().replace(" ", "_").replace("-", "_")
