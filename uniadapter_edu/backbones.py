"""Loads the frozen part: transformers' own BLIP, from the package, from a folder, or from the hub.

    model = load_backbone()                                                # the embedded tiny BLIP
    model = load_backbone("Salesforce/blip-itm-base-coco")                 # a hub id
    model = load_backbone("my-blip", task="captioning")                    # a folder written by save_pretrained

Weights are read from safetensors only: a pickle can run code while it is opened.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoTokenizer,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    BlipProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from uniadapter_edu._files import data_path, verify_checksums, write_checksums
from uniadapter_edu.errors import UniAdapterError

__all__ = ["TASKS", "data_path", "load_backbone", "load_processor", "verify_checksums", "write_checksums"]

TASKS = {
    "retrieval": BlipForImageTextRetrieval,
    "answering": BlipForQuestionAnswering,
    "captioning": BlipForConditionalGeneration,
}
EMBEDDED = "uniadapter_edu/embedded-blip"  # the name that the embedded backbone goes by in saved adapters
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def load_backbone(
    source: str | os.PathLike | None = None, task: str = "retrieval", dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Loads a BLIP for one of three tasks, in eval mode, everything still trainable (see `freeze`).

    ``source``: None for the embedded backbone, a folder written by ``save_pretrained``, or a hub id.
    ``task``: "retrieval", "answering" or "captioning", which picks the class (`TASKS`).
    ``dtype``: of the parameters, float32 unless said otherwise, also when the file holds float16: halves save
    space on disk, but CPUs are slow with them and small updates drown in their rounding.

    Raises `UniAdapterError` for an unknown task, a source that cannot be found or is not a BLIP, and weights
    that the task needs but the source lacks (all are named). Weights of the other tasks' heads are ignored.
    """
    model_class = _model_class(task)
    place = data_path("backbone") if source is None else _checked_source(source)
    with _quiet():
        model, report = _read(place, model_class, _checked_dtype(dtype))
    if missing := sorted(report["missing_keys"]):
        raise UniAdapterError(
            f"{place} lacks {len(missing)} weights that {model_class.__name__} needs: {abridged(missing)}.",
            f"Load it for the task that it was trained for ({_tasks()}), or take a checkpoint made for {task}.",
        )
    if source is None:
        model.name_or_path = model.config.name_or_path = EMBEDDED
    return model


def load_processor(source: str | os.PathLike | None = None) -> BlipProcessor:
    """The BLIP processor that belongs to a backbone: images by PIL (no torchvision needed), texts by its tokenizer.

    ``source`` as in `load_backbone`. Raises `UniAdapterError` if the files are not there.
    """
    place = data_path("backbone") if source is None else os.fspath(source)
    try:
        with _quiet():
            images = BlipImageProcessorPil.from_pretrained(place)
            return BlipProcessor(images, AutoTokenizer.from_pretrained(place))
    except (OSError, ValueError) as error:
        raise UniAdapterError(
            f"{place} has no processor that can be read: {_first_line(error)}",
            "It needs processor_config.json, tokenizer.json and tokenizer_config.json: save one with "
            "`processor.save_pretrained(folder)`.",
        ) from error


def _model_class(task: str) -> type[PreTrainedModel]:
    if task not in TASKS:
        raise UniAdapterError(f"There is no task {task!r}.", f"Choose one of {_tasks()}.")
    return TASKS[task]


def _checked_dtype(dtype: torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UniAdapterError(f"dtype is {dtype!r}, expected a floating point torch.dtype.", "Try torch.bfloat16.")
    return dtype


def _checked_source(source: str | os.PathLike) -> str:
    """A folder with a BLIP in it, or a hub id of one; the weights are not opened yet."""
    place = os.fspath(source)
    if os.path.isdir(place):
        _check_folder(Path(place))
    elif os.path.exists(place) or place.startswith((".", "/", "~")) or place.count("/") > 1:
        raise UniAdapterError(f"There is no folder {place}.", "Give a folder written by save_pretrained, or a hub id.")
    try:
        with _quiet():
            config, _ = PreTrainedConfig.get_config_dict(place)
    except OSError as error:
        raise UniAdapterError(
            f"{place} is neither a folder nor a model that can be fetched from the hub now: {_first_line(error)}",
            "Check the spelling and the connection. Without a network, use the embedded load_backbone().",
        ) from error
    if config.get("model_type") != "blip":
        raise UniAdapterError(
            f"{place} is a {config.get('model_type')!r} model, expected 'blip'.",
            "Take a BLIP (not BLIP-2), such as Salesforce/blip-itm-base-coco.",
        )
    return place


def _check_folder(folder: Path) -> None:
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any((folder / name).is_file() for name in WEIGHTS):
        missing.append(WEIGHTS[0])
    if missing:
        pickled = " pytorch_model.bin is a pickle and is not opened." if (folder / "pytorch_model.bin").exists() else ""
        raise UniAdapterError(
            f"The folder {folder} has no {' and no '.join(missing)}.{pickled}",
            "Write one with `model.save_pretrained(folder)`, which makes both files.",
        )


def _read(place: str | Path, model_class: type[PreTrainedModel], dtype: torch.dtype) -> tuple[PreTrainedModel, dict]:
    try:
        return model_class.from_pretrained(place, dtype=dtype, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UniAdapterError(
            f"The weights of {place} cannot be read: {_first_line(error)}",
            "The file is damaged, or does not fit its config.json: fetch or save it again.",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no report on keys of other tasks' heads; what matters is checked and raised instead."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _tasks() -> str:
    return ", ".join(TASKS)


def abridged(names: list[str], n: int = 5) -> str:
    """The first ``n`` names, and how many more there are: what an error message has room for."""
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
