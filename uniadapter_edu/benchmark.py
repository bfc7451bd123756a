"""What it costs, measured side by side: UniAdapter's step against other ways to train, and matching against the plain way.

    python -m uniadapter_edu.benchmark                            # the embedded BLIP: a minute or two
    python -m uniadapter_edu.benchmark --size base --json b.json  # BLIP-base with random weights: a quarter of an hour
    python -m uniadapter_edu.benchmark --part rerank --device cuda --precision bf16

Every table is of ratios. Seconds differ from machine to machine and from minute to minute; so all ways to do a thing take
turns, again and again, in one process, and what is printed is the median of what each took in relation to the first line
of its table in the same turn. On a CPU, times are those of the processor, which do not mind what else the machine does.

"The plain way" is everybody's: transformers' own forward for each pair of an image and a text, with its eager attention.
How near a way comes to what is possible is its share of the limit: its multiply-adds, counted while it runs, at the rate of
the fastest of some matrix products on the same machine.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from tqdm.auto import tqdm
from transformers import BlipConfig, BlipForImageTextRetrieval

from uniadapter_edu._atomic import write_together
from uniadapter_edu._files import data_path
from uniadapter_edu.accounting import TensorMemory, trainable_parameters
from uniadapter_edu.attention import frame_weights
from uniadapter_edu.backbones import load_processor
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import frame_weights as weighing_frames
from uniadapter_edu.insertion import fused_attention, insert_adapters
from uniadapter_edu.methods import full_fine_tuning, linear_probe, lora, lora_rank_for
from uniadapter_edu.tasks import retrieval
from uniadapter_edu.tasks.retrieval import RetrievalTask, evaluate_retrieval, match

PARTS = ("step", "rerank", "evaluation", "growth")
OURS, PLAIN = "UniAdapter", "UniAdapter, the plain way"
PLAIN_PAIRS = 32  # pairs in one pass of the plain way: with more, a CPU only takes more memory

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


@dataclass(frozen=True)
class Machine:
    """Where it runs. ``rate``: multiply-adds a second of the fastest matrix product, in processor seconds on a CPU."""

    device: str
    name: str
    precision: str
    threads: int
    rate: float

    def autocast(self):
        """As training does it."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")


def machine(device: str, precision: str) -> Machine:
    """The machine, its matrix rate measured. Raises `UniAdapterError` for a GPU that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UniAdapterError("There is no GPU that PyTorch can use here.", "Leave out --device, or give --device cpu.")
    name = torch.cuda.get_device_name() if device == "cuda" else f"a CPU, {torch.get_num_threads()} thread(s)"
    rate = matrix_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    return Machine(device, name, precision, torch.get_num_threads(), rate)


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Multiply-adds a second of the fastest of some square matrix products; of several, as no one size suits all."""
    sizes, rates = (512, 1024) if device == "cpu" else (2048, 4096, 8192), []
    for n in sizes:
        a = torch.ones(n, n, dtype=dtype, device=device)
        for _ in range(5):
            seconds, _ = timed(lambda a=a: a @ a, device)
            rates.append(n**3 / seconds if seconds else 0.0)
    return max(rates)


def timed(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Seconds that ``work`` takes: the processor's on a CPU, else real ones; and real ones anyway."""
    if device == "cuda":
        torch.cuda.synchronize()
    cpu, real = time.process_time(), time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()  # a GPU works on while Python has gone ahead
    cpu, real = time.process_time() - cpu, time.perf_counter() - real
    return (cpu if device == "cpu" else real), real


# -------------------------------------------------------------------------------------------------------- side by side


@dataclass(frozen=True)
class Line:
    """One way to do a thing. Ratios are to the first line of its table: ``time`` above 1 is slower, ``memory`` above 1 more.

    seconds: the median, see `timed`. multiply_adds: counted; what fused attention computes again in the backward pass is
    among them. arithmetic: their ratio, which is what ``time`` would be if nothing else took any. share: of the limit,
    that is of the time that these multiply-adds take at the machine's matrix rate.
    peak_mb: of weights, gradients, the optimizer's state and what is computed. per_second: images, pairs or queries.
    """

    name: str
    seconds: float
    real_seconds: float
    time: float
    multiply_adds: int
    arithmetic: float
    share: float
    peak_mb: float
    memory: float
    per_second: float
    note: str = ""


@dataclass
class Way:
    """``work`` is measured; ``held()`` are the bytes that it needs before it begins, ``items`` what it does at once."""

    name: str
    work: Callable[[], object]
    items: int
    held: Callable[[], int]
    note: str = ""


def side_by_side(ways: list[Way], machine: Machine, repetitions: int, bar: tqdm) -> list[Line]:
    """Warm all ways up, counting, then let them take turns, every other time in the opposite order."""
    counts = []
    for way in ways:
        with TensorMemory() as memory:
            way.work()  # an optimizer makes its state in the first step
            with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as flops:
                way.work()
        counts.append((flops.get_total_flops() // 2, way.held() + memory.peak_bytes))
        bar.update()
    turns: dict[str, list[tuple[float, float]]] = {way.name: [] for way in ways}
    for turn in range(repetitions):
        for way in ways if turn % 2 == 0 else ways[::-1]:
            turns[way.name].append(timed(way.work, machine.device))
            bar.update()
    first, lines = turns[ways[0].name], []
    for way, (multiply_adds, peak) in zip(ways, counts, strict=True):
        seconds, real = (statistics.median(values) for values in zip(*turns[way.name]))
        ratio = statistics.median(own[0] / other[0] for own, other in zip(turns[way.name], first, strict=True))
        work = multiply_adds, multiply_adds / counts[0][0], multiply_adds / machine.rate / seconds
        memory = peak / 1e6, peak / counts[0][1]
        lines.append(Line(way.name, seconds, real, ratio, *work, *memory, way.items / seconds, way.note))
    return lines


def _attention_flops(q, k, v, *args, out_shape=None, **options) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward_flops(grad, q, k, v, *args, out_shape=None, **options) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


# PyTorch knows how to count those of a GPU.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


def bytes_of(*modules: nn.Module) -> int:
    """Of weights and buffers, shared ones counted once."""
    tensors = {x.data_ptr(): x.nbytes for module in modules for x in (*module.parameters(), *module.buffers())}
    return sum(tensors.values())


# ------------------------------------------------------------------------------------------------------- the plain way


def match_plainly(
    model: nn.Module, image_tokens: Tensor, input_ids: Tensor, attention_mask: Tensor, w: Tensor | None = None
) -> Tensor:
    """As `match`, but each text is given its own copy of its image's tokens, and transformers does the rest."""
    B, K, T = input_ids.shape
    logits = []
    for pairs in torch.arange(B * K, device=input_ids.device).split(PLAIN_PAIRS):
        with nullcontext() if w is None else weighing_frames(model, w.flatten(0, 1)[pairs]):
            hidden = retrieval.unwrapped(model).text_encoder(
                input_ids=input_ids.view(-1, T)[pairs],
                attention_mask=attention_mask.view(-1, T)[pairs],
                encoder_hidden_states=image_tokens[pairs // K],
            )
        logits.append(model.itm_head(hidden.last_hidden_state[:, 0]))
    return torch.cat(logits).view(B, K, 2)


class PlainRetrievalTask(RetrievalTask):
    """The same loss, computed the plain way."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.loss(batch)

    def match(self, tokens, input_ids, attention_mask, w) -> Tensor:
        return match_plainly(self.model, tokens, input_ids, attention_mask, w)


@torch.no_grad()
def evaluate_plainly(model: nn.Module, processor, dataset, top_k: int) -> tuple[Tensor, Tensor]:
    """BLIP's published evaluation of one caption an image: each query's candidates are matched, query by query.

    Returns the candidates of texts and of images, (N, k) each, ranked by cosine plus logit.
    """
    device = next(model.parameters()).device
    pixels = retrieval.preprocess(processor, [row["image"] for row in dataset]).to(device)
    tokens, images = retrieval.encode_images(model, retrieval.normalize(processor, pixels))
    ids, mask = (x.to(device) for x in retrieval.tokenize(processor, [row["captions"][0] for row in dataset]))
    texts = retrieval.encode_texts(model, ids, mask)
    ranked = []
    for queries, gallery, of_text in ((texts, images, True), (images, texts, False)):
        best = (queries @ gallery.T).topk(top_k, dim=1)
        for query, (cosines, found) in enumerate(zip(*best)):
            text, image = (torch.full_like(found, query), found) if of_text else (found, torch.full_like(found, query))
            yes = match_plainly(model, tokens[image], ids[text][:, None], mask[text][:, None])[:, 0, 1]
            ranked.append(found[(cosines + yes).argsort(descending=True)])
    ranked = torch.stack(ranked)
    return ranked[: len(dataset)], ranked[len(dataset) :]


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
    return retrieval.unwrapped(model).config.vision_config.image_size


# ------------------------------------------------------------------------------------------------------------- the parts


def step(size: Size, machine: Machine, repetitions: int, bar: tqdm) -> dict[str, list[Line]]:
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
    return {title: side_by_side(ways, machine, repetitions, bar)}


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
    # the optimizer's state is made inside, in the first step
    return Way(name, work, len(given["pixels"]), lambda: bytes_of(task), note)


def rerank(size: Size, machine: Machine, repetitions: int, bar: tqdm) -> dict[str, list[Line]]:
    """One image and k texts, all of which look at it."""
    model = adapted(size, machine)
    tables = {}
    for k in size.ks:
        title = f"Matching one image with k = {k} texts of {size.longest} tokens"
        tables[title] = side_by_side(matching(model, size, machine, k), machine, repetitions, bar)
    return tables


def matching(model: nn.Module, size: Size, machine: Machine, k: int, frames: int = 1) -> list[Way]:
    """Ours and the plain way, for an image, or a clip whose frames each text weighs."""
    with torch.no_grad():
        shape = (frames, 3, pixels_of(model), pixels_of(model))
        tokens, cls = retrieval.encode_images(model, torch.randn(shape, device=machine.device))
        given = [x[None] for x in texts(k, size.longest, machine.device).values()]  # (1, k, T)
        w = (
            frame_weights(retrieval.encode_texts(model, *(x[0] for x in given))[None], cls[None, None])
            if frames > 1
            else None
        )
    tokens = tokens.flatten(0, 1)[None]  # (F, n, D) -> (1, F·n, D)

    @torch.no_grad()
    def ours():
        with machine.autocast(), fused_attention(model):
            return match(model, tokens, *given, w)[0, :, 1]

    @torch.no_grad()
    def plainly():
        with machine.autocast():
            return match_plainly(model, tokens, *given, w)[0, :, 1]

    found, expected = ours().float(), plainly().float()
    same = "the same ranking" if torch.equal(found.argsort(), expected.argsort()) else "ANOTHER ranking"
    note = f"{same}, logits differ by {(found - expected).abs().max():.0e} at most and spread over {expected.std(correction=0):.0e}"
    return [
        Way("ours", ours, k, lambda: bytes_of(model), note),
        Way("the plain way", plainly, k, lambda: bytes_of(model)),
    ]


def evaluation(size: Size, machine: Machine, repetitions: int, bar: tqdm) -> dict[str, list[Line]]:
    """A whole gallery in both directions and both stages, pictures and words included."""
    model = adapted(size, machine)
    title = f"Evaluating {size.gallery} images with a caption each, the best {size.candidates} matched both ways"
    return {title: side_by_side(evaluating(model, size, machine, size.gallery), machine, repetitions, bar)}


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

    own = torch.arange(gallery, device=machine.device)[:, None]
    found, firsts = ours(), [(ranked[:, :1] == own).double().mean().item() for ranked in plainly()]
    note = "the same R@1" if [found.t2i_r1, found.i2t_r1] == firsts else f"OTHER R@1: {firsts}, ours {found}"
    return [
        Way("ours", ours, gallery, lambda: bytes_of(model), note),
        Way("the plain way", plainly, gallery, lambda: bytes_of(model)),
    ]


@dataclass(frozen=True)
class Growth:
    """How time and memory grow with one number: both ways at each of its values. Ratios are to the first value."""

    value: int
    time: float  # ours
    memory: float
    plain_time: float
    plain_memory: float
    advantage: float  # the plain way's time over ours
    memory_advantage: float


def growth(size: Size, machine: Machine, repetitions: int, bar: tqdm) -> dict[str, list[Growth]]:
    """Each axis of ``size.growth`` alone, ours and the plain way."""
    tables = {}
    for axis, values in size.growth.items():
        pairs = [side_by_side(WAYS[axis](size, machine, value), machine, repetitions, bar) for value in values]
        rows, (ours, plain) = [], pairs[0]
        for value, (mine, theirs) in zip(values, pairs, strict=True):
            own = mine.seconds / ours.seconds, mine.peak_mb / ours.peak_mb
            others = theirs.seconds / plain.seconds, theirs.peak_mb / plain.peak_mb
            rows.append(Growth(value, *own, *others, theirs.time, theirs.memory))
        layers = f", {size.growth_layers} layer(s)" if size.growth_layers else ""
        tables[f"Growth with {AXES[axis]}{layers}"] = rows
    return tables


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


# ---------------------------------------------------------------------------------------------------------------- tables


def table(lines: list[Line] | list[Growth], machine: Machine) -> str:
    """Aligned text."""
    growing = isinstance(lines[0], Growth)
    head = GROWTH_HEAD if growing else [*LINE_HEAD[:1], f"{'CPU ' if machine.device == 'cpu' else ''}s", *LINE_HEAD[1:]]
    cells = [head, *([_growth_cells(row) if growing else _line_cells(row) for row in lines])]
    widths = [max(map(len, column)) for column in zip(*cells)]
    text = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
    notes = [] if growing else [f"  {line.name}: {line.note}" for line in lines if line.note]
    return "\n".join(text + notes)


LINE_HEAD = ["", "real s", "x time", "GMAC", "x GMAC", "% of limit", "peak MB", "x memory", "a second"]
GROWTH_HEAD = ["", "ours: x time", "x memory", "plain: x time", "x memory", "plain/ours: time", "memory"]


def _line_cells(line: Line) -> list[str]:
    return [
        line.name,
        f"{line.seconds:.3g}",
        f"{line.real_seconds:.3g}",
        f"{line.time:.2f}",
        f"{line.multiply_adds / 1e9:.3g}",
        f"{line.arithmetic:.2f}",
        f"{100 * line.share:.0f}",
        f"{line.peak_mb:.0f}",
        f"{line.memory:.2f}",
        f"{line.per_second:.3g}",
    ]


def _growth_cells(row: Growth) -> list[str]:
    return [str(row.value), *(f"{value:.2f}" for value in list(asdict(row).values())[1:])]


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
) -> dict:
    """Measure and print; returns what was measured, for JSON. The arguments are those of the command line."""
    here, tables = machine(device, precision), {}
    print(
        f"BLIP {size}, {precision}, on {here.name}: {here.rate / 1e9:.4g} billion multiply-adds a second in matrix products."
    )
    if device == "cpu":
        print("No GPU is used: rates, seconds and shares are this processor's. --device cuda measures a card.")
    print(f"Medians of {repetitions} turns; x is in relation to the first line. GMAC: billions of multiply-adds.")
    total = sum(turns(SIZES[size], part, repetitions) for part in parts)
    with tqdm(total=total, desc="measuring", disable=None) as bar:
        for part in parts:
            for title, lines in MEASURE[part](SIZES[size], here, repetitions, bar).items():
                tqdm.write(f"\n{title}\n\n{table(lines, here)}", file=sys.stdout)
                tables[title] = [asdict(line) for line in lines]
    return {
        "size": size,
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
    parser.add_argument("--repetitions", type=int, default=5, help="turns, of which the median counts")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 by autocast, as in training"
    )
    parser.add_argument("--json", type=Path, help="a file for the results")
    options = parser.parse_args(arguments)
    try:
        if options.repetitions < 1:
            raise UniAdapterError(
                f"repetitions is {options.repetitions}, expected at least 1.", "Give --repetitions 3."
            )
        given = options.size, tuple(options.part), options.repetitions, options.device, options.precision
        results = benchmark(*given)
    except UniAdapterError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    if options.json:
        content = (json.dumps(results, indent=1) + "\n").encode("utf-8")
        write_together(options.json.parent, {options.json.name: content})
        print(f"\nResults: {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
