"""Train each task a few steps, in as many processes as started this, and write what came of it.

`test_together.py` starts it in two processes, and once alone. `accelerate launch` does by itself what is done there, but
only for accelerators: of processes on a CPU, it starts one.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from small_world import blip_config, noise_rows, random_adapters, tiny_processor, wide_awake

from uniadapter_edu import together
from uniadapter_edu.backbones import TASKS
from uniadapter_edu.momentum import MomentumConfig, MomentumRetrievalTask
from uniadapter_edu.tasks.answering import AnsweringTask
from uniadapter_edu.tasks.captioning import CaptioningTask
from uniadapter_edu.tasks.retrieval import RetrievalTask
from uniadapter_edu.tasks.video_retrieval import VideoRetrievalTask
from uniadapter_edu.training import TrainConfig, train

STEPS = 4
RUNS = {  # name -> (backbone, task, settings)
    "retrieval": ("retrieval", RetrievalTask, {}),
    "retrieval in pieces": ("retrieval", RetrievalTask, {"accumulate": 2}),
    "retrieval computed again": ("retrieval", RetrievalTask, {"gradient_checkpointing": True}),
    "momentum": ("retrieval", lambda *a: MomentumRetrievalTask(*a, momentum=MomentumConfig(queue=16)), {}),
    "clips": ("retrieval", lambda *a: VideoRetrievalTask(*a, frame_aware=True), {}),
    "clips in pieces": ("retrieval", lambda *a: VideoRetrievalTask(*a, frame_aware=True), {"accumulate": 2}),
    "captions": ("captioning", CaptioningTask, {}),
    "captions in pieces": ("captioning", CaptioningTask, {"accumulate": 2}),
    "answers in pieces": ("answering", AnsweringTask, {"accumulate": 4}),
}


def one(name, out):
    """Train, and write the losses and what was trained."""
    backbone, task, settings = RUNS[name]
    torch.manual_seed(0)
    config = blip_config()
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
    model = random_adapters(wide_awake(TASKS[backbone](config)))
    if together.rank():
        for p in model.uniadapter.parameters():
            p.data.add_(1)  # they begin with what the first process has, whatever this is
    rows = noise_rows(24)
    if name.startswith("clips"):
        rows = [row | {"frames": [row["image"], other["image"]]} for row, other in zip(rows, rows[1:] + rows[:1])]
    task = task(model, tiny_processor())
    settings = {
        "steps": STEPS,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "precision": "fp32",
        "clip_norm": 1.0,
    } | settings
    history = train(model, task, rows, TrainConfig(**settings), folder=out / name, progress=False)
    losses = {"losses": torch.tensor([history.column(key) for key in history.rows[0] if key in ("loss", "itc", "itm")])}
    trained = {key: p.detach().contiguous() for key, p in task.trainable().items()}
    save_file(trained | losses, out / f"{name} {together.rank()}.safetensors")
    together.wait()


if __name__ == "__main__":
    Accelerator()  # so that each process knows which one it is, before it trains
    for each in RUNS:
        one(each, Path(sys.argv[1]))
