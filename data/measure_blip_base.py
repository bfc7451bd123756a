"""What a training step of BLIP-base costs: two pictures of 384 px, fp32, random weights, on all three kinds of model.

    python data/measure_blip_base.py                     # some minutes; up to 7 GB of memory

Every line is measured in a process of its own, because memory that was freed is not always given back. A step is
forward, backward and AdamW; the second one is timed. CPU seconds do not mind what else the machine does, real ones do.
"""

import argparse
import json
import subprocess
import sys
import time

import torch

from uniadapter_edu import PeakMemory, UniAdapterConfig, full_fine_tuning, insert_adapters, load_processor
from uniadapter_edu.accounting import trainable_parameters
from uniadapter_edu.backbones import TASKS
from uniadapter_edu.benchmark import blip_base
from uniadapter_edu.tasks.answering import AnsweringTask
from uniadapter_edu.tasks.captioning import CaptioningTask
from uniadapter_edu.tasks.retrieval import RetrievalTask

KINDS = {"retrieval": RetrievalTask, "answering": AnsweringTask, "captioning": CaptioningTask}
METHODS = {
    "UniAdapter": lambda model: insert_adapters(model, UniAdapterConfig(bottleneck=128)),
    "full": full_fine_tuning,
}
BATCH, PIXELS, WORDS, ANSWER = 2, 384, 20, 4


def batch() -> dict[str, torch.Tensor]:
    """Noise of the shapes that all three tasks read."""
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> torch.Tensor:
        return torch.randint(1000, 30000, (BATCH, length), generator=generator)

    return {
        "pixels": torch.randint(0, 256, (BATCH, 3, PIXELS, PIXELS), generator=generator, dtype=torch.uint8),
        "input_ids": ids(WORDS),
        "attention_mask": torch.ones(BATCH, WORDS, dtype=torch.long),
        "answer_ids": ids(ANSWER),
        "answer_mask": torch.ones(BATCH, ANSWER, dtype=torch.long),
        "same": torch.eye(BATCH, dtype=torch.bool),
    }


def measure(task: str, method: str) -> dict:
    """Two steps of one method on one kind of model."""
    torch.manual_seed(0)
    with PeakMemory(interval=0.1) as memory:
        model = METHODS[method](TASKS[task](blip_base(PIXELS)))
        trainer, given = KINDS[task](model, load_processor()).train(), batch()
        optimizer = torch.optim.AdamW(trainer.trainable().values(), lr=1e-5)
        for _ in range(2):
            cpu, real = time.process_time(), time.perf_counter()
            trainer(given)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
    ledger = trainable_parameters(model)
    return {
        "task": task,
        "method": method,
        "trainable": ledger.trainable,
        "percent": ledger.percent,
        "backbone": ledger.backbone,
        "cpu_seconds": time.process_time() - cpu,
        "seconds": time.perf_counter() - real,
        "peak_mb": memory.peak_mb,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument(
        "--here", action="store_true", help="one line in this process, as JSON: what the others are made of"
    )
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.tasks[0], options.methods[0])))
        return
    print(
        f"{torch.get_num_threads()} threads\n\n| task | method | trained | % of backbone | CPU s a step | s a step | peak MB |"
    )
    print("|---|---|---|---|---|---|---|")
    for task in options.tasks:
        for method in options.methods:
            command = [sys.executable, __file__, "--here", "--tasks", task, "--methods", method]
            line = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"| {task} | {method} | {line['trainable']:,} | {line['percent']:.2f} | {line['cpu_seconds']:.1f} "
                f"| {line['seconds']:.1f} | {line['peak_mb']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
