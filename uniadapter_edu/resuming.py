"""Checkpoints of training: what a run needs to go on as if it had never stopped, each in one file.

accelerate's own ``save_state`` pickles the optimizer and the random states, and a pickle can run code while it is opened.
Here a file holds numbers (what trains, the optimizer's moments) and, as JSON in its header, the settings and the history,
whose length is the step. The schedule, the order of the rows and all random numbers follow from the seed and that step.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from uniadapter_edu import together
from uniadapter_edu._atomic import clear_drafts, whole
from uniadapter_edu.errors import UniAdapterError

# Settings on which no number of a run depends: how often it is saved, how it is read, and when it gives up.
FREE = {"checkpoint_every", "keep_checkpoints", "workers", "unreadable", "explosion"}


def path_of(folder: Path, step: int) -> Path:
    """The checkpoint after this step."""
    return folder / f"training-{step:08d}.safetensors"


def saved_in(folder: str | os.PathLike) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(Path(folder).glob("training-????????.safetensors"))


class Checkpoints:
    """The checkpoints of a run (of `training.train`) in its folder; of these it keeps the newest ``keep_checkpoints``."""

    def __init__(self, folder: str | os.PathLike, run):
        self.folder, self.run = Path(folder), run
        self.kept: list[Path] = []  # by this run, oldest first
        self.changing = run.trainable | run.extra_state()
        self.identity = {
            "config": {name: value for name, value in asdict(run.config).items() if name not in FREE},
            "rows": len(run.rows),
            "trainable": {name: list(t.shape) for name, t in self.changing.items()},
            "frozen weights": _digest({n: p for n, p in run.task.named_parameters() if n not in self.changing}),
        }
        if together.rank() == 0:
            clear_drafts(self.folder)  # of a run that was killed

    def save(self) -> None:
        """Write the state after the last step of the history, whole or not at all, and then let the oldest go."""
        tensors = {f"parameter.{name}": t for name, t in self.changing.items()}
        for name, p in self.run.trainable.items():
            tensors |= {f"optimizer.{key}.{name}": value for key, value in self._state()[p].items()}
        tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        about = json.loads(json.dumps({"identity": self.identity, "history": self.run.history.to_dict()}))
        header = json.dumps(about | {"sha256": _digest(tensors | {"": _bytes(about)})})
        path = path_of(self.folder, len(self.run.history.rows))
        try:
            with whole(path) as draft:
                save_file(tensors, draft, metadata={"training": header})
        except (OSError, SafetensorError) as error:
            raise UniAdapterError(
                f"{path} could not be written: {error}{self.last_good()}",
                "free some space, or choose another folder; what was saved before is intact, and resume=True goes on.",
            ) from error
        self.kept = [*(p for p in self.kept if p != path), path][-self.run.config.keep_checkpoints :]
        for other in saved_in(self.folder):
            if other not in self.kept:
                other.unlink(missing_ok=True)

    @torch.no_grad()
    def load(self) -> None:
        """Bring the run to its newest checkpoint, if there is one. Raises `UniAdapterError` if it cannot be read, or
        belongs to another run."""
        found = saved_in(self.folder)
        if not found:
            return
        tensors, header = read(found[-1])
        self._check(found[-1], header["identity"])
        for name, t in self.changing.items():
            t.copy_(tensors[f"parameter.{name}"])
        keys = "step", "exp_avg", "exp_avg_sq"  # AdamW counts steps on the CPU and keeps its moments by the weights
        for name, p in self.run.trainable.items():
            saved = {key: tensors.get(f"optimizer.{key}.{name}") for key in keys}
            self._state()[p] = {
                key: value if key == "step" else value.to(p.device) for key, value in saved.items() if value is not None
            }
        self.run.history = type(self.run.history).from_dict(header["history"])
        self.kept = found

    def last_good(self) -> str:
        """A clause that names the newest checkpoint: one that was written is good, for training stops before bad ones."""
        return f"; the last good checkpoint is {self.kept[-1]}" if self.kept else "; no checkpoint was written before"

    def _state(self) -> dict:
        return self.run.optimizer.optimizer.state  # inside accelerate's wrapper

    def _check(self, path: Path, saved: dict) -> None:
        differences = list(_differences(saved, self.identity))
        if differences:
            raise UniAdapterError(
                f"{path} belongs to another run: {'; '.join(differences)}",
                "use the settings, data and model that it began with, or another folder.",
            )


def read(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict]:
    """The tensors and the header of a checkpoint. Raises `UniAdapterError` if the file is damaged or another one."""
    path = Path(path)
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["training"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        if header.pop("sha256") != _digest(tensors | {"": _bytes(header)}):
            raise ValueError("it was altered after it was written")
        return tensors, header
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        before = [p.name for p in saved_in(path.parent) if p < path]
        then = f"training goes on from {before[-1]}" if before else "train from the start"
        raise UniAdapterError(f"{path} is not a readable checkpoint: {error}", f"delete it; then {then}.") from error


@torch.no_grad()
def load_trained(task: nn.Module, checkpoint: str | os.PathLike) -> nn.Module:
    """Put what a checkpoint of ``task``'s training holds of what trains into its model; returns the task.

    So a run goes on from a good checkpoint with other settings or other data, as a new run in another folder. Raises
    `UniAdapterError` if the checkpoint is damaged, or if something else trains here.
    """
    tensors, header = read(checkpoint)
    changing = task.trainable() | (task.extra_state() if hasattr(task, "extra_state") else {})
    shapes = {name: list(t.shape) for name, t in changing.items()}
    saved = header["identity"].get("trainable", {})
    if saved != shapes:
        raise UniAdapterError(
            f"{checkpoint} belongs to another model: {_other_shapes(saved, shapes)}",
            "make the model, its adapters and the task as they were when it was written.",
        )
    for name, t in changing.items():
        t.copy_(tensors[f"parameter.{name}"])
    return task


def _differences(saved: dict, now: dict) -> Iterator[str]:
    for name, value in now["config"].items():
        if saved["config"].get(name) != value:
            yield f"{name} was {saved['config'].get(name)!r} and is {value!r}"
    if saved["rows"] != now["rows"]:
        yield f"the data set had {saved['rows']} rows and has {now['rows']}"
    if saved["trainable"] != now["trainable"]:
        yield _other_shapes(saved["trainable"], now["trainable"])
    elif saved["frozen weights"] != now["frozen weights"]:
        yield "the frozen weights are others"


def _other_shapes(saved: dict, now: dict) -> str:
    changed = [name for name in saved.keys() | now.keys() if saved.get(name) != now.get(name)]
    return f"different parameters train or have other shapes ({len(changed)}, one is {min(changed)})"


def _bytes(content: dict) -> Tensor:
    """JSON as a tensor, to be digested with others."""
    return torch.frombuffer(bytearray(json.dumps(content, sort_keys=True).encode()), dtype=torch.uint8)


def _digest(parameters: dict[str, Tensor]) -> str:
    """SHA-256 of names and bytes."""
    sha = hashlib.sha256()
    for name, p in sorted(parameters.items()):
        sha.update(name.encode())
        sha.update(p.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return sha.hexdigest()
