"""From your own pictures and words to trained adapters, in one call:

    model = ua.adapt("holiday", "holiday.csv", "my-adapters")
    model = ua.adapt("holiday", "questions.csv", "my-adapters", backbone="Salesforce/blip-vqa-base")

or without a script: `python -m uniadapter_edu adapt holiday holiday.csv --output my-adapters`.
"""

import os
from pathlib import Path

import torch
from torch import nn

from uniadapter_edu.backbones import TASKS, load_backbone, load_processor
from uniadapter_edu.checkpoint import save_adapters
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import insert_adapters
from uniadapter_edu.tasks.answering import AnsweringTask
from uniadapter_edu.tasks.captioning import CaptioningTask
from uniadapter_edu.tasks.retrieval import RetrievalTask
from uniadapter_edu.training import TrainConfig, train
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
    config = config or default_config(backbone)
    train_config = train_config or TrainConfig()
    torch.manual_seed(train_config.seed)
    model = insert_adapters(load_backbone(backbone, task=task), config)
    trainer = _KINDS[task](model, load_processor(backbone), seed=train_config.seed)
    history = train(
        model, trainer, data, train_config, folder=Path(output) / "training", resume=True, progress=progress
    )
    save_adapters(model, output)
    history.save(Path(output) / "history.json")
    return model


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
