"""Train a tiny BLIP in processes that are killed, again and again, and once in one that is left alone.

`test_surviving.py` runs this in a process that has done nothing else: its children come by fork, so that they need not
import anything, and a process that has trained must not be forked.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from small_world import blip_config, noise_rows, tiny_processor
from transformers import BlipForImageTextRetrieval

from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.insertion import insert_adapters
from uniadapter_edu.tasks.retrieval import RetrievalTask
from uniadapter_edu.training import TrainConfig, train

KILLS, STEPS = 25, 80
CONFIG = TrainConfig(steps=STEPS, batch_size=4, learning_rate=1e-2, precision="fp32", checkpoint_every=1)


def life(folder: Path, end: Path, steps: int) -> None:
    """Train to the end if nothing comes between; a byte goes into the pipe ``steps`` after each step."""
    torch.manual_seed(0)
    config = blip_config()
    config.text_config.hidden_dropout_prob = 0.1  # random numbers in every step
    model = insert_adapters(BlipForImageTextRetrieval(config), UniAdapterConfig(bottleneck=4))
    task = RetrievalTask(model, tiny_processor())
    report = {"stop": lambda history: os.write(steps, b".") and False}
    history = train(model, task, noise_rows(10), CONFIG, folder=folder, resume=True, progress=False, **report)
    tensors = {name: p.detach().contiguous() for name, p in task.trainable().items()}
    losses = torch.tensor(history.column("loss"), dtype=torch.float64)
    save_file(tensors | {"losses": losses}, end)


def born(folder: Path, end: Path) -> tuple[int, int]:
    """A process that lives, and the pipe into which it tells of its steps."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            life(folder, end, writer)
        finally:
            os._exit(0)
    os.close(writer)
    return child, reader


def check(folder: Path) -> int:
    """Read whatever lies in the folder under a final name; returns the last step that was saved."""
    paths = sorted(path for path in folder.glob("*") if not path.name.endswith(".draft"))
    for path in paths:
        load_file(path)
    assert len(paths) <= CONFIG.keep_checkpoints + 1, paths  # killed between a new one and the removal of an old one
    return int(paths[-1].stem.split("-")[1]) if paths else 0


def main(root: Path) -> None:
    chance = random.Random(0)
    child, reader = born(root / "alone", root / "alone.safetensors")
    started = time.perf_counter()
    while os.read(reader, 1):
        duration = (time.perf_counter() - started) / STEPS  # of a step; at the end, of all
    os.waitpid(child, 0)
    reached = []
    for _ in range(KILLS):
        child, reader = born(root / "killed", root / "killed.safetensors")
        for _ in range(chance.randrange(4)):
            os.read(reader, 1)
        time.sleep(chance.uniform(0, 2 * duration))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it had ended by itself"
        os.close(reader)
        reached.append(check(root / "killed"))
    child, _ = born(root / "killed", root / "killed.safetensors")
    assert os.waitpid(child, 0)[1] == 0
    check(root / "killed")
    (root / "reached.json").write_text(json.dumps(reached))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
