"""Train the adapters that the microscope looks at: quickstart's task and settings, twice its steps, one seed.

    python data/train_specimens.py [--output runs/specimens]      # a few minutes; goes on where it was interrupted

Writes data/microscope/NAME/, a folder as `save_adapters` writes it, for each of `specimens.SPECIMENS`, and
data/microscope/scores.json: what each reaches on the test gallery. Adapters belong to one backbone: after a new one, run
this again. Then `python -m uniadapter_edu._files data`.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import torch

from uniadapter_edu._atomic import write_json
from uniadapter_edu.accounting import trainable_parameters
from uniadapter_edu.backbones import load_backbone, load_processor
from uniadapter_edu.checkpoint import save_adapters
from uniadapter_edu.insertion import adapters_disabled, insert_adapters
from uniadapter_edu.microscope.specimens import SPECIMENS
from uniadapter_edu.quickstart import LEARNING_RATES, Settings
from uniadapter_edu.tasks.retrieval import RetrievalTask, evaluate_retrieval
from uniadapter_edu.training import TrainConfig, train
from uniadapter_edu.worlds import emoji

OUT = Path(__file__).parent / "microscope"
SETTINGS = replace(Settings(), steps=240)


def train_specimen(name: str, scenes, folder: Path) -> torch.nn.Module:
    """A fresh backbone with the trained adapters of that name."""
    torch.manual_seed(SETTINGS.seed)
    model, processor = insert_adapters(load_backbone(), SPECIMENS[name]), load_processor()
    config = TrainConfig(
        steps=SETTINGS.steps,
        batch_size=SETTINGS.batch_size,
        seed=SETTINGS.seed,
        learning_rate=LEARNING_RATES["UniAdapter"],
    )
    task = RetrievalTask(model, processor, seed=SETTINGS.seed)
    train(model, task, scenes, config, folder=folder / name, resume=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/specimens"), help="folder for checkpoints")
    options = parser.parse_args()
    scenes = emoji.load_split("target", "train", SETTINGS.scenes, SETTINGS.style)
    gallery = emoji.load_split("target", "test", SETTINGS.gallery, SETTINGS.style)
    scores = {}
    for name in SPECIMENS:
        model = train_specimen(name, scenes, options.output)
        save_adapters(model, OUT / name)
        scores[name] = score(model, gallery) | {"trainable": trainable_parameters(model).trainable}
        with adapters_disabled(model):
            scores["frozen"] = score(model, gallery)
        print(name, scores[name])
    record = {"settings": asdict(SETTINGS), "scores": scores}
    write_json(OUT / "scores.json", record)


def score(model: torch.nn.Module, gallery) -> dict:
    """R@k in both directions, after matching and of the contrastive stage alone."""
    return evaluate_retrieval(model, load_processor(), gallery, top_k=SETTINGS.top_k, progress=False).to_dict()


if __name__ == "__main__":
    main()
