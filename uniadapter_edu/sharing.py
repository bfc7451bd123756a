"""Many adapters for one backbone: list what is saved, and share it on the Hugging Face Hub with a card that says what it is.

    for saved in list_adapters("adapters"):
        print(saved.name, saved.task, saved.config.bottleneck)
    push_adapters("adapters/questions", "me/blip-questions", task="answering", data="emoji questions")
    load_adapters(model, pull_adapters("me/blip-questions"), name="questions")

All that needs a network is in `_hub`.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open

from uniadapter_edu._atomic import companion, settle, write_whole
from uniadapter_edu.backbones import EMBEDDED, TASKS
from uniadapter_edu.checkpoint import CONFIG_FILE, WEIGHTS_FILE, _read, _read_config
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError

CARD = "README.md"


@dataclass(frozen=True)
class SavedAdapters:
    """Adapters on disk, as their config describes them; the weights are not opened.

    ``name``: of the folder. ``task``: what `load_backbone` calls the kind of model that they fit. ``backbone``: its name,
    and ``fingerprint`` that of its weights. ``size``: bytes of the weights.
    """

    name: str
    folder: Path
    task: str
    backbone: str
    fingerprint: str
    config: UniAdapterConfig
    size: int


def list_adapters(folder: str | os.PathLike) -> list[SavedAdapters]:
    """All adapters saved in folders directly inside ``folder``, by name. A fraction of a millisecond each.

    Raises `UniAdapterError` if there is no such folder, or if a config in it cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UniAdapterError(
            f"There is no folder {folder}.", "Give the folder in which adapters were saved, each in its own."
        )
    return [describe(path.parent) for path in sorted(folder.glob(f"*/{CONFIG_FILE}"))]


def describe(folder: str | os.PathLike) -> SavedAdapters:
    """What the config of saved adapters says of them. Raises `UniAdapterError` if it cannot be read."""
    folder = Path(folder)
    about = _read_config(folder / CONFIG_FILE)
    weights, backbone = companion(folder, WEIGHTS_FILE, about["weights_sha256"]), about["backbone"]
    tasks = {kind.__name__: task for task, kind in TASKS.items()}
    return SavedAdapters(
        name=folder.name,
        folder=folder,
        task=tasks.get(backbone.get("class"), "unknown"),
        backbone=backbone.get("name", "unknown"),
        fingerprint=backbone.get("fingerprint", ""),
        config=UniAdapterConfig.from_dict(about["config"]),
        size=weights.stat().st_size if weights.exists() else 0,
    )


# ---- the Hub


def push_adapters(
    folder: str | os.PathLike,
    repo: str,
    *,
    task: str,
    data: str,
    figures: Mapping[str, float | str] | None = None,
    private: bool = False,
) -> str:
    """Upload adapters that `save_adapters` wrote, with a card; returns the commit's address.

    folder: theirs; the card is left there as README.md. repo: "owner/name", made if need be. task, data, figures: what the
    card says they do, were trained on and reach. Nothing is uploaded if the files are damaged.

    Raises `UniAdapterError` for such files, for a name that the Hub does not take, and if it refuses or cannot be reached.
    """
    folder = Path(folder)
    about, _ = _read(folder)
    settle(folder, WEIGHTS_FILE, about["weights_sha256"])
    card = model_card(folder, repo, task=task, data=data, figures=figures)
    write_whole(folder / CARD, card.encode("utf-8"))

    def upload(api: HfApi) -> str:
        api.create_repo(repo, private=private, exist_ok=True)
        files = [CONFIG_FILE, WEIGHTS_FILE, CARD]
        return str(api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=files, commit_message="Adapters"))

    return _hub(repo, upload)


def pull_adapters(repo: str, revision: str | None = None) -> Path:
    """Download shared adapters, once, and return their folder, for `load_adapters`. Raises `UniAdapterError` if it fails."""
    files = [CONFIG_FILE, WEIGHTS_FILE, CARD]
    return Path(_hub(repo, lambda api: api.snapshot_download(repo, revision=revision, allow_patterns=files)))


def _hub(repo: str, action: Callable[[HfApi], str]) -> str:
    """Do something on the Hub: the one function here that needs a network."""
    try:
        return action(HfApi())
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UniAdapterError(
            f"The Hugging Face Hub could not serve {repo}: {reason}",
            'Check the name ("owner/name"), the connection, and `hf auth login`; the adapters on disk are whole.',
        ) from error


# ---- the card


def model_card(
    folder: str | os.PathLike,
    repo: str,
    *,
    task: str,
    data: str,
    figures: Mapping[str, float | str] | None = None,
) -> str:
    """A model card in Markdown: backbone, task, data, figures, sizes, and how to load them."""
    saved = describe(folder)
    config = saved.config
    numbers = "\n".join(f"| {name} | {_number(value)} |" for name, value in (figures or {}).items())
    return f"""---
{_header(saved)}
---
# {repo}

Adapters (UniAdapter, Lu et al., [arXiv 2302.06605](https://arxiv.org/abs/2302.06605)) for a frozen BLIP.

| | |
|---|---|
| backbone | `{saved.backbone}`, a {saved.task} model |
| fingerprint of its weights | `{saved.fingerprint[:16]}…` |
| task | {task} |
| data | {data} |
| bottleneck, sharing, scale | {config.bottleneck}, {config.share}, {config.scale} |
| parameters | {_parameters(saved.folder):,} |
| size | {saved.size / 1e6:.2f} MB |

## Figures

{f"| | |{chr(10)}|---|---|{chr(10)}{numbers}" if figures else "None were given."}

## How to load them

```python
import uniadapter_edu as ua

model = ua.load_backbone({_source(saved)}task="{saved.task}")
ua.load_adapters(model, ua.pull_adapters("{repo}"))
```

They fit the backbone whose fingerprint is above and no other: `load_adapters` checks it.
"""


def _header(saved: SavedAdapters) -> str:
    """The card's metadata, as JSON values, which are YAML too."""
    tags = ["uniadapter", "adapters", "blip", saved.task]
    lines = {"library_name": "uniadapter_edu", "tags": tags}
    if "/" in saved.backbone and saved.backbone != EMBEDDED:
        lines |= {"base_model": saved.backbone, "base_model_relation": "adapter"}
    return "\n".join(f"{name}: {json.dumps(value)}" for name, value in lines.items())


def _source(saved: SavedAdapters) -> str:
    return "" if saved.backbone == EMBEDDED else f'"{saved.backbone}", '


def _number(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _parameters(folder: Path) -> int:
    """How many numbers the weights hold, from the file's header alone."""
    with safe_open(folder / WEIGHTS_FILE, "pt") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]
    return sum(math.prod(shape) for shape in shapes)
