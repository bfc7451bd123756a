"""Choose quickstart's learning rates and UniAdapter's scale: on the validation split, one seed, the steps of quickstart.

    python data/tune_quickstart.py [--output runs/tuning]      # goes on where it was interrupted

Writes data/quickstart/tuning.json and prints it as a table. Scale and learning rate are looked at together: Adam moves every
weight by about the learning rate a step, whatever the gradient's size, so what the up-projections add to the residual
stream grows as scale x learning rate x steps. The paper's 0.1 is for width 768 and r = 512, where a sum over sixteen times as
many units, and far longer training, make up for it. How large the branches have become is the table's last two columns:
the norm of A(h) over the norm of h, averaged over layers and tokens.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from uniadapter_edu._atomic import write_json
from uniadapter_edu.backbones import load_processor
from uniadapter_edu.quickstart import Settings, slug, train_method
from uniadapter_edu.tasks.retrieval import (
    encode_images,
    encode_texts,
    evaluate_retrieval,
    normalize,
    preprocess,
    tokenize,
)
from uniadapter_edu.worlds import emoji

OUT = Path(__file__).parent / "quickstart" / "tuning.json"
VALIDATION_SCENES = 200


@dataclass(frozen=True)
class Trial:
    method: str
    learning_rate: float
    scale: float | None = None  # says something to UniAdapter alone


TRIALS = [
    *[Trial("UniAdapter", 3e-3, scale) for scale in (0.1, 1.0, 4.0, 10.0)],
    *[Trial("UniAdapter", rate, 4.0) for rate in (1e-3, 1e-2)],
    *[Trial("UniAdapter", 1e-2, scale) for scale in (0.1, 1.0, 10.0)],
    Trial("UniAdapter", 3e-2, 1.0),
    *[Trial("LoRA", rate) for rate in (1e-3, 3e-3, 1e-2, 3e-2)],
    *[Trial("linear probe", rate) for rate in (3e-3, 1e-2, 3e-2)],
    *[Trial("full fine-tuning", rate) for rate in (3e-4, 6e-4, 1e-3, 2e-3, 4e-3)],
]


def run(trial: Trial, train, val, folder: Path) -> dict:
    """Train and score one trial: a row of the table."""
    settings = replace(Settings(), scale=trial.scale) if trial.scale else Settings()
    name = f"{slug(trial.method)}-{trial.learning_rate}-{trial.scale}"
    model, history = train_method(trial.method, settings, train, folder / name, trial.learning_rate)
    metrics = evaluate_retrieval(model, load_processor(), val, top_k=settings.top_k, progress=False)
    row = vars(trial) | {"t2i_r1": metrics.t2i_r1, "i2t_r1": metrics.i2t_r1, "loss": history.rows[-1]["loss"]}
    return row | (shares_of_the_stream(model, val) if trial.method == "UniAdapter" else {})


@torch.no_grad()
def shares_of_the_stream(model: nn.Module, scenes) -> dict[str, float]:
    """|A(h)| / |h| of the vision and of the text branch after training, averaged over layers and tokens of 64 scenes."""
    norms = {"vision": ([], []), "text": ([], [])}

    def listen(layer, branch):
        h, added = norms[branch]
        return [
            layer.norm_in.register_forward_pre_hook(lambda norm, args: h.append(args[0].norm(dim=-1).mean())),
            layer.up[branch].register_forward_hook(
                lambda up, args, out: added.append((layer.scale * out).norm(dim=-1).mean())
            ),
        ]

    processor, layers = load_processor(), model.uniadapter.layers
    passes = {
        "vision": lambda: encode_images(model, normalize(processor, preprocess(processor, scenes[:64]["image"]))),
        "text": lambda: encode_texts(model, *tokenize(processor, [texts[0] for texts in scenes[:64]["captions"]])),
    }
    for branch, run_pass in passes.items():
        handles = [handle for layer in layers if branch in layer.branches for handle in listen(layer, branch)]
        run_pass()
        for handle in handles:
            handle.remove()
    return {
        f"share_{branch}": sum(a / h for h, a in zip(*pair)).item() / len(pair[0]) for branch, pair in norms.items()
    }


def table(rows: list[dict]) -> str:
    lines = [
        f"{'method':17} {'lr':>6} {'scale':>5}  {'R@1 t2i':>7} {'i2t':>5}  {'loss':>5}  {'|A|/|h| vision':>14} {'text':>5}"
    ]
    for row in rows:
        shares = (f"{row['share_vision']:14.3f} {row['share_text']:5.3f}") if "share_vision" in row else ""
        lines.append(
            f"{row['method']:17} {row['learning_rate']:6g} {row['scale'] or '':>5}  {100 * row['t2i_r1']:7.1f} "
            f"{100 * row['i2t_r1']:5.1f}  {row['loss']:5.2f}  {shares}".rstrip()
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/tuning"), help="folder for checkpoints")
    options = parser.parse_args()
    train = emoji.load_split("target", "train", Settings().scenes)
    val = emoji.load_split("target", "val", VALIDATION_SCENES)
    rows = json.loads(OUT.read_text()) if OUT.exists() else []
    done = {(row["method"], row["learning_rate"], row["scale"]) for row in rows}
    for trial in tqdm([t for t in TRIALS if (t.method, t.learning_rate, t.scale) not in done], unit="run"):
        rows.append(run(trial, train, val, options.output))
        write_json(OUT, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
