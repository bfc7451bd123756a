"""Choose quickstart's learning rates and UniAdapter's scale: on the validation split, one seed, the steps of quickstart.

    python data/tune_quickstart.py [--output runs/tuning]      # goes on where it was interrupted

Writes data/quickstart/tuning.json and prints it as a table. Scale and learning rate are looked at together: Adam moves every
weight by about the learning rate a step, whatever the gradient's size, so what the up-projections add to the residual
stream grows as scale x learning rate x steps. The paper's 0.1 is for width 768 and r = 512, where a sum over sixteen times as
many units, and far longer training, make up for it.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from uniadapter_edu.backbones import load_processor
from uniadapter_edu.quickstart import Settings, slug, train_method
from uniadapter_edu.tasks.retrieval import evaluate_retrieval
from uniadapter_edu.worlds import emoji

OUT = Path(__file__).parent / "quickstart" / "tuning.json"
# (method, learning rate, scale); the scale says something to UniAdapter alone
GRID = [
    *[("UniAdapter", rate, scale) for rate, scale in ((3e-3, 0.1), (3e-3, 1.0), (3e-3, 4.0), (3e-3, 10.0))],
    *[("UniAdapter", rate, 4.0) for rate in (1e-3, 1e-2)],
    *[("LoRA", rate, None) for rate in (1e-3, 3e-3, 1e-2)],
    *[("linear probe", rate, None) for rate in (1e-3, 3e-3, 1e-2)],
    *[("full fine-tuning", rate, None) for rate in (3e-4, 1e-3, 2e-3)],
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/tuning"), help="folder for checkpoints")
    options = parser.parse_args()
    train, val = emoji.load_split("target", "train", Settings().scenes), emoji.load_split("target", "val", 200)
    rows = json.loads(OUT.read_text()) if OUT.exists() else []
    done = {(row["method"], row["learning_rate"], row["scale"]) for row in rows}
    for method, rate, scale in GRID:
        if (method, rate, scale) in done:
            continue
        settings = replace(Settings(), scale=scale) if scale else Settings()
        folder = options.output / f"{slug(method)}-{rate}-{scale}"
        model, history = train_method(method, settings, train, folder, rate)
        metrics = evaluate_retrieval(model, load_processor(), val, top_k=settings.top_k, progress=False)
        rows.append(
            {
                "method": method,
                "learning_rate": rate,
                "scale": scale,
                "t2i_r1": metrics.t2i_r1,
                "i2t_r1": metrics.i2t_r1,
                "loss": sum(history.column("loss")[-10:]) / 10,
            }
        )
        print(
            f"{method:17} lr {rate:<6} scale {scale or '':<4} "
            f"R@1 {100 * metrics.t2i_r1:.1f} / {100 * metrics.i2t_r1:.1f}  loss {rows[-1]['loss']:.3f}",
            flush=True,
        )
        OUT.parent.mkdir(exist_ok=True)
        draft = OUT.with_suffix(".draft")
        draft.write_text(json.dumps(rows, indent=1) + "\n")
        draft.replace(OUT)


if __name__ == "__main__":
    main()
