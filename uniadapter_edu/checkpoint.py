"""Saves adapters as a folder of two files, and loads them into any model with the same backbone.

    adapter_config.json          the config, the format's version, the backbone's name and fingerprint, which heads
    adapter_model.safetensors    the weights of the active adapter, 2 % of the model's

Safetensors holds numbers and nothing else: unlike a pickle it cannot run code when a stranger's file is opened.
"""

import hashlib
import json
import os
import re
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from uniadapter_edu._atomic import companion, write_together
from uniadapter_edu.adapter import AdapterSet
from uniadapter_edu.backbones import abridged
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import _towers, add_adapter, insert_adapters, named_adapters

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
FORMAT_VERSION = 1
_FIELDS = {"format_version", "config", "backbone", "heads", "weights_sha256"}
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


def save_adapters(model: nn.Module, folder: str | os.PathLike) -> Path:
    """Writes the active adapter, with its heads and temperature, to ``folder`` and returns the folder's path.

    The folder is made if need be; adapters that it held are replaced, whole or not at all. Raises `UniAdapterError` if
    nothing is inserted, or if the disk refuses; what was saved there before is then still there and whole.
    """
    if not hasattr(model, "uniadapter"):
        raise UniAdapterError(
            "There is nothing to save: no adapters are inserted in this model.", "Call insert_adapters(model) first."
        )
    adapter, folder = model.uniadapter, Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.state_dict().items()}
    weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
    about = {
        "format_version": FORMAT_VERSION,
        "config": adapter.config.to_dict(),
        "backbone": _describe(model),
        "heads": [name for name, _ in adapter.heads.named_children()],
        "weights_sha256": hashlib.sha256(weights).hexdigest(),  # by which the config finds its weights
    }
    text = json.dumps(about, indent=2) + "\n"
    try:
        write_together(folder, WEIGHTS_FILE, weights, CONFIG_FILE, text.encode("utf-8"))
    except OSError as error:
        raise UniAdapterError(
            f"The adapters could not be saved to {folder}: {error.strerror or error}.",
            "Make room or choose another folder. What was saved there before is untouched.",
        ) from error
    return folder


def load_adapters(model: nn.Module, folder: str | os.PathLike, name: str = "default") -> nn.Module:
    """Loads saved adapters into ``model`` under ``name`` and returns the model.

    If nothing is inserted yet, what the folder's config says is inserted and active. If adapters of that name are
    there, their weights are replaced. If adapters of other names are there, these are added beside them, and
    `set_adapter` switches to them.

    Raises `UniAdapterError` if files are missing, damaged, of a newer format or not ours, and if the adapters were made
    for another backbone; then all that does not fit is listed at once. The model is unchanged after any error.
    """
    about, tensors = _read(Path(folder))
    config = UniAdapterConfig.from_dict(about["config"])
    _check_fits(model, about, config, tensors, name)
    adapters = named_adapters(model)
    if not adapters:
        insert_adapters(model, config, name=name)
    elif name not in adapters:
        add_adapter(model, config, name=name)
    named_adapters(model)[name].load_state_dict(tensors)
    return model


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the backbone's weights: of every name, shape and value but those of inserted adapters.

    The values are rounded to bfloat16 first, so that a backbone keeps its fingerprint whether it is held in float64,
    float32 or bfloat16, on whatever device, and in float16 if it is stored so. All weights are hashed, one tensor at a
    time: half a second for BLIP-base. Adapters of any kind but ours change the names, and thereby the fingerprint.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.split(".")[0] == "uniadapter":
            continue
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        values = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        digest.update(values.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _describe(model: nn.Module) -> dict:
    towers = _towers(model)
    return {
        "name": _portable_name(model.name_or_path),
        "class": type(model).__name__,
        "hidden_size": towers.widths["vision"],
        "vision_layers": towers.depths["vision"],
        "text_layers": towers.depths["text"],
        "fingerprint": fingerprint(model),
    }


def _portable_name(name: str) -> str:
    """A hub id as it is; of a folder only the last part, for where it lies on this machine is nobody's business."""
    return Path(name).name if os.path.isdir(name) or os.path.isabs(name) else name


def _read(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """The two files, each checked for itself and against the other; no model is needed for that."""
    _check_files(folder)
    about, content = _read_pair(folder)
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, ValueError) as error:
        raise UniAdapterError(
            f"{folder / WEIGHTS_FILE} is truncated, or no safetensors file: {error}.", "Copy or save it again."
        ) from error
    if hashlib.sha256(content).hexdigest() != about["weights_sha256"]:
        raise UniAdapterError(
            f"{WEIGHTS_FILE} is not the file that {CONFIG_FILE} was saved with (in {folder}).",
            "One of the two was altered or comes from another folder: copy or save both again.",
        )
    return about, tensors


def _read_pair(folder: Path) -> tuple[dict, bytes]:
    """The config and its weights; read again if another process saved new ones between the two."""
    about = _read_config(folder / CONFIG_FILE)
    while True:
        try:
            content = companion(folder, WEIGHTS_FILE, about["weights_sha256"]).read_bytes()
        except FileNotFoundError:  # they were waiting for their name, and have just got it
            content = (folder / WEIGHTS_FILE).read_bytes()
        before, about = about, _read_config(folder / CONFIG_FILE)
        if about == before:
            return about, content


def _check_files(folder: Path) -> None:
    if folder.is_file():
        is_pickle = folder.suffix in _PICKLES
        raise UniAdapterError(
            f"{folder} is a {'pickle, which can run code and is never opened' if is_pickle else 'file'}, "
            f"expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}.",
            "Give the folder that save_adapters wrote.",
        )
    if missing := [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]:
        pickles = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLES)
        also = f" {', '.join(pickles)} is a pickle, which can run code, and is never opened." if pickles else ""
        raise UniAdapterError(
            f"{folder} has no {' and no '.join(missing)}.{also}", "Give the folder that save_adapters wrote."
        )


def _read_config(path: Path) -> dict:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UniAdapterError(f"{path} is not valid JSON: {error}.", "Copy or save it again.") from error
    version = about.get("format_version") if isinstance(about, dict) else None
    if not isinstance(version, int):
        raise UniAdapterError(
            f"{path} was not written by save_adapters: it has no format_version.",
            "Give a folder that save_adapters wrote (peft's adapters are loaded by peft).",
        )
    if version > FORMAT_VERSION:
        raise UniAdapterError(
            f"{path} has format version {version}, and this package reads up to {FORMAT_VERSION}.",
            "Install a newer uniadapter_edu.",
        )
    wrong = sorted(about.keys() ^ _FIELDS)
    wrong += [key for key in ("config", "backbone") if not isinstance(about.get(key, {}), dict)]
    wrong += [] if re.fullmatch("[0-9a-f]{64}", str(about.get("weights_sha256"))) else ["weights_sha256"]
    if wrong:
        raise UniAdapterError(
            f"{path} has unknown, missing or unreadable fields: {', '.join(wrong)}.",
            f"Save the adapters again; a config has {', '.join(sorted(_FIELDS))} and is not meant to be edited.",
        )
    return about


def _check_fits(model, about: dict, config: UniAdapterConfig, tensors: dict, name: str) -> None:
    here = named_adapters(model).get(name)
    wrong = _backbone_mismatches(about["backbone"], _describe(model))
    wrong += _key_mismatches(tensors, _blueprint(model, config))
    if here is not None and here.config != config:
        theirs, ours = config.to_dict(), here.config.to_dict()
        wrong += [f"{key} is {theirs[key]!r}, inserted is {ours[key]!r}" for key in ours if theirs[key] != ours[key]]
    if wrong:
        raise UniAdapterError(
            f"The saved adapters do not fit this model: {'; '.join(wrong)}.",
            "Load the backbone that they were made for; for another config, take another name or remove_adapters.",
        )


def _backbone_mismatches(theirs: dict, ours: dict) -> list[str]:
    words = {"class": "class", "hidden_size": "width", "vision_layers": "vision layers", "text_layers": "text layers"}
    differ = [key for key in words if theirs.get(key) != ours[key]]
    wrong = [f"{words[key]} {theirs.get(key)}, here {ours[key]}" for key in differ]
    if theirs.get("fingerprint") != ours["fingerprint"]:
        wrong.append(f"backbone {theirs.get('name')!r} with other weights (the fingerprint) than {ours['name']!r} here")
    return wrong


def _key_mismatches(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Size]) -> list[str]:
    shapes = {
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(expected[key])}"
        for key in tensors.keys() & expected.keys()
        if tensors[key].shape != expected[key]
    }
    groups = {
        "missing": expected.keys() - tensors.keys(),
        "unexpected": tensors.keys() - expected.keys(),
        "of another shape": shapes,
    }
    return [f"{len(keys)} weights {what}: {abridged(sorted(keys))}" for what, keys in groups.items() if keys]


def _blueprint(model: nn.Module, config: UniAdapterConfig) -> dict[str, torch.Size]:
    """The names and shapes that `insert_adapters` would give, from modules without memory: the model is not touched."""
    towers = _towers(model)
    try:
        with torch.device("meta"):
            adapter = AdapterSet(config, towers.widths["vision"], towers.depths, tuple(towers.texts), towers.heads)
    except (RuntimeError, OverflowError, TypeError) as error:  # a size beyond what a tensor can have
        raise UniAdapterError(
            f"No adapters can be made of {config}: {error}.", "Save the adapters again; their config was altered."
        ) from error
    return {name: tensor.shape for name, tensor in adapter.state_dict().items()}
