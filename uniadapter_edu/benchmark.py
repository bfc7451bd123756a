"""What UniAdapter costs: its step beside those of other ways to train, and matching beside the plain way.

    python -m uniadapter_edu.benchmark                            # the embedded BLIP: a minute or two
    python -m uniadapter_edu.benchmark --size base --json b.json  # BLIP-base with random weights: a quarter of an hour
    python -m uniadapter_edu.benchmark --part rerank --device cuda --precision bf16

Every table is of ratios, measured as `side_by_side` says, and `plain` is what the plain way is. How near a way comes to what
is possible is its share of the limit: its multiply-adds, counted while it runs, at the rate of the fastest of some matrix
products on the same machine.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import BlipConfig, BlipForImageTextRetrieval

from uniadapter_edu._atomic import write_json
from uniadapter_edu._files import data_path
from uniadapter_edu.accounting import trainable_parameters
from uniadapter_edu.attention import frame_weights
from uniadapter_edu.backbones import load_processor
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import fused_attention, insert_adapters, unwrapped
from uniadapter_edu.methods import full_fine_tuning, linear_probe, lora, lora_rank_for
from uniadapter_edu.metrics import RetrievalMetrics
from uniadapter_edu.plain import PlainRetrievalTask, evaluate_plainly, match_plainly
from uniadapter_edu.side_by_side import Growth, Line, Machine, Way, bytes_of, machine, side_by_side, table
from uniadapter_edu.tasks.retrieval import RetrievalTask, encode_images, encode_texts, evaluate_retrieval, match

PARTS = ("step", "rerank", "evaluation", "growth")
OURS, PLAIN = "UniAdapter", "UniAdapter, the plain way"
Tables = Iterator[tuple[str, list[Line] | list[Growth]]]  # titles and what stands below them

# ---------------------------------------------------------------------------------------------------------------- sizes


def blip_base(pixels: int = 384, layers: int = 12) -> BlipConfig:
    """The sizes of BLIP's base checkpoints. transformers' defaults differ in heads, eps and vision's start."""
    shared = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": layers, "num_attention_heads": 12}
    vision = shared | {"image_size": pixels, "patch_size": 16, "layer_norm_eps": 1e-6, "initializer_range": 0.02}
    return BlipConfig(vision_config=vision, text_config=shared | {"encoder_hidden_size": 768, "vocab_size": 30524})


def blip_tiny(pixels: int = 96, layers: int | None = None) -> BlipConfig:
    """The sizes of the embedded backbone."""
    config = BlipConfig.from_pretrained(data_path("backbone"))
    config.vision_config.image_size = pixels
    for tower in (config.vision_config, config.text_config):
        tower.num_hidden_layers = layers or tower.num_hidden_layers
    return config


@dataclass(frozen=True)
class Size:
    """What is measured. ``growth`` has the values of each axis; ``growth_layers``: of how many layers, None for all."""

    config: Callable[..., BlipConfig]
    bottleneck: int
    batch: int
    words: int  # T of a step
    longest: int  # T where texts are matched: what retrieval cuts them to
    ks: tuple[int, ...]
    gallery: int
    candidates: int
    growth: dict[str, tuple[int, ...]]
    growth_layers: int | None = None


SIZES = {
    "tiny": Size(
        blip_tiny,
        bottleneck=32,
        batch=32,
        words=12,
        longest=35,
        ks=(16, 128),
        gallery=64,
        candidates=16,
        growth={
            "batch": (8, 16, 32),
            "pixels": (48, 96, 192),
            "frames": (1, 2, 4),
            "gallery": (16, 32, 64),
            "k": (1, 4, 16, 64),
        },
    ),
    "base": Size(
        blip_base,
        bottleneck=128,
        batch=2,
        words=20,
        longest=35,
        ks=(16, 128),
        gallery=4,
        candidates=4,
        growth={
            "batch": (1, 2, 4),
            "pixels": (192, 288, 384),
            "frames": (1, 2, 4),
            "gallery": (4, 8, 16),
            "k": (1, 4, 16, 64),
        },
        growth_layers=1,
    ),
}
# For tests, and to see all tables in seconds.
SIZES["toy"] = replace(
    SIZES["tiny"],
    config=lambda pixels=48, layers=1: blip_tiny(pixels, layers),
    batch=2,
    words=4,
    longest=6,
    ks=(2, 3),
    gallery=3,
    candidates=2,
    growth={"batch": (1, 2), "pixels": (32, 48), "frames": (1, 2), "gallery": (2, 3), "k": (1, 2)},
)


# ---------------------------------------------------------------------------------------------------------- what is read


def noise(size: Size, batch: int, device: str, pixels: int) -> dict[str, Tensor]:
    """A batch of `RetrievalTask` that holds nothing; costs are the same."""
    generator = torch.Generator().manual_seed(0)
    return {
        "pixels": torch.randint(0, 256, (batch, 3, pixels, pixels), generator=generator, dtype=torch.uint8).to(device),
        **texts(batch, size.words, device),
        "same": torch.eye(batch, dtype=torch.bool, device=device),
    }


def texts(rows: int, words: int, device: str) -> dict[str, Tensor]:
    """As many texts without padding."""
    ids = torch.randint(10, 2000, (rows, words), generator=torch.Generator().manual_seed(1)).to(device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def pictures(number: int, pixels: int) -> list[dict]:
    """Rows of noise, each with a caption of its own."""
    random = np.random.default_rng(0)
    shape = (pixels, pixels, 3)
    return [
        {"image": Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)), "captions": [f"number {i} of all"]}
        for i in range(number)
    ]


def adapted(size: Size, machine: Machine, pixels: int | None = None, layers: int | None = None) -> nn.Module:
    """A random BLIP with random adapters, to be evaluated."""
    given = {"pixels": pixels, "layers": layers}
    torch.manual_seed(0)
    model = BlipForImageTextRetrieval(size.config(**{name: value for name, value in given.items() if value}))
    insert_adapters(model, UniAdapterConfig(bottleneck=size.bottleneck))
    with torch.no_grad():
        for p in model.uniadapter.layers.parameters():
            p.add_(0.01 * torch.randn_like(p))  # ups start at zero, and would hide a mistake of the others
    return model.to(machine.device).eval()


def pixels_of(model: nn.Module) -> int:
    return unwrapped(model).config.vision_config.image_size


# ------------------------------------------------------------------------------------------------------------- the parts


def step(size: Size, machine: Machine, repetitions: int, bar: tqdm) -> Tables:
    """A training step: forward, backward and AdamW, on a batch of noise."""
    torch.manual_seed(0)
    plain = BlipForImageTextRetrieval(size.config()).to(machine.device)
    config = UniAdapterConfig(bottleneck=size.bottleneck)
    ours = insert_adapters(like(plain), config)
    budget = trainable_parameters(ours).trainable
    rank = lora_rank_for(plain, budget)
    others = {
        "LoRA": lora(like(plain), rank),
        "linear probe": linear_probe(like(plain)),
        "full fine-tuning": full_fine_tuning(copy.deepcopy(plain)),
    }
    ways = [a_step(OURS, RetrievalTask(ours, processor_for()), size, machine)]
    ways += [a_step(PLAIN, PlainRetrievalTask(ours, processor_for()), size, machine)]
    ways += [a_step(name, RetrievalTask(model, processor_for()), size, machine) for name, model in others.items()]
    title = (
        f"A training step, batch {size.batch}, {pixels_of(plain)} px, {size.words} words a text; LoRA's rank is {rank}"
    )
    yield title, side_by_side(ways, machine, repetitions, bar)


def like(model: nn.Module) -> nn.Module:
    """A copy that has the same tensors for frozen weights: five models in the memory of two. Heads are its own."""
    shared = {
        id(p): p for name, p in model.named_parameters() if not name.startswith(("vision_proj", "text_proj", "itm"))
    }
    return copy.deepcopy(model, shared)


def a_step(name: str, task: RetrievalTask, size: Size, machine: Machine, batch: int | None = None) -> Way:
    given = noise(size, batch or size.batch, machine.device, pixels_of(task.model))
    optimizer = torch.optim.AdamW(task.to(machine.device).train().trainable().values(), lr=1e-5)

    def work():
        torch.manual_seed(0)  # the same mismatched texts in all ways
        with machine.autocast():
            loss = task(given)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    trained = trainable_parameters(task.model)
    note = f"{trained.trainable:,} trained, {trained.percent:.2f} % of the backbone"
    return Way(name, work, len(given["pixels"]), bytes_of(task), note, keeps_state=True)


def rerank(size: Size, machine: Machine, repetitions: int, bar: tqdm) -> Tables:
    """One image and k texts, all of which look at it."""
    model = adapted(size, machine)
    for k in size.ks:
        title = f"Matching one image with k = {k} texts of {size.longest} tokens"
        yield title, side_by_side(matching(model, size, machine, k), machine, repetitions, bar, compare_logits)


def matching(model: nn.Module, size: Size, machine: Machine, k: int, frames: int = 1) -> list[Way]:
    """Ours and the plain way, for an image, or a clip whose frames each text weighs."""
    with torch.no_grad():
        shape = (frames, 3, pixels_of(model), pixels_of(model))
        tokens, cls = encode_images(model, torch.randn(shape, device=machine.device))
        ids, mask = (x[None] for x in texts(k, size.longest, machine.device).values())  # (1, k, T)
        w = frame_weights(encode_texts(model, ids[0], mask[0])[None], cls[None, None]) if frames > 1 else None
    tokens = tokens.flatten(0, 1)[None]  # (F, n, D) -> (1, F·n, D)

    @torch.no_grad()
    def ours():
        with machine.autocast(), fused_attention(model):
            return match(model, tokens, ids, mask, w)[0, :, 1]

    @torch.no_grad()
    def plainly():
        with machine.autocast():
            return match_plainly(model, tokens, ids, mask, w)[0, :, 1]

    held = bytes_of(model)
    return [Way("ours", ours, k, held), Way("the plain way", plainly, k, held)]


def compare_logits(found: Tensor, expected: Tensor) -> str:
    same = "the same ranking" if torch.equal(found.argsort(), expected.argsort()) else "ANOTHER ranking"
    error, spread = (found - expected).abs().max(), expected.std(correction=0)
    return f"{same}, logits differ by {error:.0e} at most and spread over {spread:.0e}"


def evaluation(size: Size, machine: Machine, repetitions: int, bar: tqdm) -> Tables:
    """A whole gallery in both directions and both stages, pictures and words included."""
    model = adapted(size, machine)
    title = f"Evaluating {size.gallery} images with a caption each, the best {size.candidates} matched both ways"
    ways = evaluating(model, size, machine, size.gallery)
    yield title, side_by_side(ways, machine, repetitions, bar, compare_recalls)


def evaluating(model: nn.Module, size: Size, machine: Machine, gallery: int) -> list[Way]:
    processor, rows, k = (
        processor_for(pixels_of(model)),
        pictures(gallery, pixels_of(model)),
        min(size.candidates, gallery),
    )

    def ours():
        with machine.autocast():
            return evaluate_retrieval(model, processor, rows, k, batch_size=16, progress=False)

    def plainly():
        with machine.autocast():
            return evaluate_plainly(model, processor, rows, k)

    held = bytes_of(model)
    return [Way("ours", ours, gallery, held), Way("the plain way", plainly, gallery, held)]


def compare_recalls(found: RetrievalMetrics, expected: tuple[Tensor, Tensor]) -> str:
    firsts = [(ranked[:, 0].cpu() == torch.arange(len(ranked))).double().mean().item() for ranked in expected]
    return "the same R@1" if [found.t2i_r1, found.i2t_r1] == firsts else f"OTHER R@1: {firsts}, ours {found}"


def growth(size: Size, machine: Machine, repetitions: int, bar: tqdm) -> Tables:
    """Each axis of ``size.growth`` alone, ours and the plain way."""
    for axis, values in size.growth.items():
        pairs = [side_by_side(WAYS[axis](size, machine, value), machine, repetitions, bar) for value in values]
        rows, (ours, plain) = [], pairs[0]
        for value, (mine, theirs) in zip(values, pairs, strict=True):
            own = mine.seconds / ours.seconds, mine.peak_mb / ours.peak_mb
            others = theirs.seconds / plain.seconds, theirs.peak_mb / plain.peak_mb
            rows.append(Growth(value, *own, *others, theirs.time, theirs.memory))
        layers = f", {size.growth_layers} layer(s)" if size.growth_layers else ""
        yield f"Growth with {AXES[axis]}{layers}", rows


def _grow_step(size: Size, machine: Machine, batch: int, pixels: int | None = None) -> list[Way]:
    model = adapted(size, machine, pixels, size.growth_layers)
    tasks = (OURS, RetrievalTask), (PLAIN, PlainRetrievalTask)
    return [a_step(name, task(model, processor_for()), size, machine, batch) for name, task in tasks]


def _grow_matching(size: Size, machine: Machine, k: int, frames: int = 1) -> list[Way]:
    return matching(adapted(size, machine, layers=size.growth_layers), size, machine, k, frames)


AXES = {
    "batch": "the batch of a training step",
    "pixels": "the image's side in pixels: tokens of a training step",
    "frames": "the frames of a clip, which its 16 texts weigh each in its own way",
    "gallery": "the gallery's images, to be evaluated",
    "k": "k, the texts that one image is matched with",
}
WAYS = {
    "batch": _grow_step,
    "pixels": lambda size, machine, pixels: _grow_step(size, machine, size.batch, pixels),
    "frames": lambda size, machine, frames: _grow_matching(size, machine, 16, frames),
    "gallery": lambda size, machine, n: evaluating(adapted(size, machine, layers=size.growth_layers), size, machine, n),
    "k": _grow_matching,
}


def processor_for(pixels: int | None = None):
    """The embedded backbone's, for images of that side."""
    processor = load_processor()
    if pixels:
        processor.image_processor.size = {"height": pixels, "width": pixels}
    return processor


# --------------------------------------------------------------------------------------------------------------- command

MEASURE = {"step": step, "rerank": rerank, "evaluation": evaluation, "growth": growth}


def turns(size: Size, part: str, repetitions: int) -> int:
    """How often something is done in a part: what the progress bar counts."""
    ways = {"step": 5, "rerank": 2 * len(size.ks), "evaluation": 2, "growth": 2 * sum(map(len, size.growth.values()))}
    return ways[part] * (1 + repetitions)


def benchmark(
    size: str = "tiny",
    parts: tuple[str, ...] = PARTS,
    repetitions: int = 5,
    device: str = "cpu",
    precision: str = "fp32",
    ks: tuple[int, ...] | None = None,
    layers: int | None = None,
) -> dict:
    """Measure and print; returns what was measured, for JSON. The arguments are those of the command line."""
    here, tables = machine(device, precision), {}
    measured = (
        SIZES[size] if layers is None else replace(SIZES[size], config=partial(SIZES[size].config, layers=layers))
    )
    measured = replace(measured, ks=ks or measured.ks)
    print(
        f"BLIP {size}, {precision}, on {here.name}: {here.rate / 1e9:.4g} billion multiply-adds a second in matrix products."
    )
    if device == "cpu":
        print("No GPU is used: rates, seconds and shares are this processor's. --device cuda measures a card.")
    if layers:
        print(f"Of each tower {layers} layer(s).")
    print(f"Medians of {repetitions} turns; x is in relation to the first line. GMAC: billions of multiply-adds.")
    total = sum(turns(measured, part, repetitions) for part in parts)
    with tqdm(total=total, desc="measuring", disable=None) as bar:
        for part in parts:
            for title, lines in MEASURE[part](measured, here, repetitions, bar):
                tqdm.write(f"\n{title}\n\n{table(lines, here)}", file=sys.stdout)
                tables[title] = [asdict(line) for line in lines]
    return {
        "size": size,
        "layers": layers,
        "repetitions": repetitions,
        "machine": asdict(here),
        "torch": torch.__version__,
        "tables": tables,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m uniadapter_edu.benchmark",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--size", choices=SIZES, default="tiny", help="the embedded BLIP's, or the base checkpoints'")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--k", type=int, nargs="+", help="texts that an image is matched with in the part rerank")
    parser.add_argument(
        "--layers", type=int, help="of each tower, fewer than it has: quicker, and about the same ratios"
    )
    parser.add_argument("--repetitions", type=int, default=5, help="turns, of which the median counts")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 by autocast, as in training"
    )
    parser.add_argument("--json", type=Path, help="a file for the results")
    options = parser.parse_args(arguments)
    try:
        for name in ("repetitions", "layers", "k"):
            given = getattr(options, name)
            if given is not None and min(given if isinstance(given, list) else [given]) < 1:
                raise UniAdapterError(f"{name} is {given}, expected at least 1.", f"Give --{name} 3, say.")
        given = options.size, tuple(options.part), options.repetitions, options.device, options.precision
        results = benchmark(*given, options.k, options.layers)
    except UniAdapterError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    if options.json:
        write_json(options.json, results)
        print(f"\nResults: {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
