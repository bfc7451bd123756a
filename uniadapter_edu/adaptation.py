"""From your own pictures and words to trained adapters, in one call:

    model = ua.adapt("holiday", "holiday.csv", "my-adapters")
    model = ua.adapt("holiday", "questions.csv", "my-adapters", backbone="Salesforce/blip-vqa-base")

or without a script: `python -m uniadapter_edu adapt holiday holiday.csv --output my-adapters`.

The same for the paper's data sets: `adapt_benchmark("flickr30k", "my-adapters", size=300)`, or
`python -m uniadapter_edu paper flickr30k --size 300 --output my-adapters`.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from uniadapter_edu import together
from uniadapter_edu._atomic import write_json
from uniadapter_edu.backbones import TASKS, load_backbone, load_processor
from uniadapter_edu.checkpoint import save_adapters
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import insert_adapters
from uniadapter_edu.jobs import JOBS, Metrics
from uniadapter_edu.tasks.answering import AnsweringTask, evaluate_answering
from uniadapter_edu.tasks.captioning import CaptioningTask, evaluate_captioning
from uniadapter_edu.tasks.retrieval import IMAGES, RetrievalTask, evaluate_retrieval
from uniadapter_edu.tasks.video_retrieval import Clips
from uniadapter_edu.training import TrainConfig, train
from uniadapter_edu.worlds.benchmarks import BENCHMARKS, FRAMES, Benchmark, load_benchmark
from uniadapter_edu.worlds.own import own_folder

_KINDS = {"retrieval": RetrievalTask, "answering": AnsweringTask, "captioning": CaptioningTask}


def adapt(
    folder: str | os.PathLike,
    table: str | os.PathLike,
    output: str | os.PathLike,
    *,
    task: str | None = None,
    backbone: str | os.PathLike | None = None,
    config: UniAdapterConfig | None = None,
    train_config: TrainConfig | None = None,
    progress: bool = True,
) -> nn.Module:
    """Train adapters on a folder of pictures and a CSV file about them, save them to ``output``, and return the model.

    folder, table: as `own_folder` reads them. task: "answering" where the table has questions, else "retrieval" (the
    default) or "captioning". backbone: as `load_backbone` takes it, and it must have been made for the task.
    config, train_config: of the adapters and of the training; the defaults suit the backbone, embedded or not.

    An interrupted call goes on from ``output/training`` when it is repeated. ``output/history.json`` holds the losses.
    Raises `UniAdapterError` if the table does not fit the task, and whatever the parts of it raise.
    """
    data = own_folder(folder, table)
    task = _fitting(task, "question" in data.column_names)
    return _adapted(data, _KINDS[task], task, output, backbone, config, train_config, progress)[0]


def adapt_benchmark(
    name: str,
    output: str | os.PathLike,
    *,
    source: str | os.PathLike | None = None,
    pictures: str | os.PathLike | None = None,
    size: int | None = None,
    frames: int = FRAMES,
    missing: str = "stop",
    backbone: str | os.PathLike | None = None,
    config: UniAdapterConfig | None = None,
    train_config: TrainConfig | None = None,
    progress: bool = True,
) -> Metrics:
    """Train adapters on one of the paper's data sets, score them by its own protocol, and save them to ``output``.

    name, source, pictures, size, frames, missing: as `load_benchmark` takes them; ``size`` is of the training split and of
    the one that is scored. The rest is as in `adapt`, and so is going on after an interruption. ``output/metrics.json``
    holds the scores, which are returned.
    """
    read = partial(load_benchmark, name, size=size, source=source, pictures=pictures, frames=frames, missing=missing)
    data = read(split="train")
    benchmark, scored = BENCHMARKS[name], read(split=BENCHMARKS[name].scored_on)  # before training, should it be wrong
    job = JOBS[benchmark.job]
    trained = _adapted(data, job.task, job.backbone, output, backbone, config, train_config, progress)
    metrics = _score(benchmark, *trained, scored, progress)
    if together.rank() == 0:
        write_json(Path(output) / "metrics.json", {"benchmark": name, "split": benchmark.scored_on} | metrics.to_dict())
    return metrics


def _adapted(data, kind: Callable, task: str, output, backbone, config, train_config, progress: bool) -> tuple:
    """The model with adapters trained on ``data``, which are saved, and its processor."""
    config = config or default_config(backbone)
    train_config = train_config or TrainConfig()
    torch.manual_seed(train_config.seed)
    model, processor = insert_adapters(load_backbone(backbone, task=task), config), load_processor(backbone)
    trainer = kind(model, processor, seed=train_config.seed)
    history = train(
        model, trainer, data, train_config, folder=Path(output) / "training", resume=True, progress=progress
    )
    if together.rank() == 0:
        save_adapters(model, output)
        history.save(Path(output) / "history.json")
    return model, processor


def _score(benchmark: Benchmark, model: nn.Module, processor, data, progress: bool) -> Metrics:
    """By the benchmark's own metric: R@k, right answers or VQA accuracy, CIDEr-D and BLEU."""
    medium = Clips() if benchmark.moves else IMAGES
    if benchmark.asks:
        return evaluate_answering(model, processor, data, progress=progress, medium=medium)
    if benchmark.job == "captions":
        return evaluate_captioning(model, processor, data, with_cider=True)
    return evaluate_retrieval(model, processor, data, progress=progress, medium=medium)


def default_config(backbone: str | os.PathLike | None = None) -> UniAdapterConfig:
    """What suits a backbone: the paper's choice is for width 768, the embedded one has 192 and wants a larger scale."""
    return UniAdapterConfig(bottleneck=32, scale=4.0) if backbone is None else UniAdapterConfig()


def _fitting(task: str | None, asks: bool) -> str:
    """The task that a table with or without questions is for."""
    if task is None:
        return "answering" if asks else "retrieval"
    if task not in TASKS or (task == "answering") != asks:
        raise UniAdapterError(
            f"task is {task!r}, and the table holds {'questions' if asks else 'captions'}.",
            "Questions are for answering; captions for retrieval or captioning.",
        )
    return task
