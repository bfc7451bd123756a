"""Pre-train the embedded backbone: a tiny BLIP on the emoji world's source styles, with BLIP's three losses.

    python data/pretrain_backbone.py          # resumes by itself where it was interrupted (Ctrl-C is fine)
    python data/pretrain_backbone.py --export              # writes data/backbone/ from the last state

What it takes care of, each learned the hard way:
  - the vision encoder's `initializer_range` is 1e-10 by default in transformers, from which nothing trains: 0.02 here;
  - single objects come first, two-object scenes fade in; otherwise the contrastive loss sits at chance for long;
  - negatives of the matching loss are random at first and harden gradually; hard from the start, it never leaves chance;
  - a quarter of the scenes are `twin`s (same objects, other relation, number, size or colour), for these are the pairs that
    a bag of words cannot tell apart;
  - the language-modelling decoder shares all but its self-attention with the text encoder, as BLIP's does;
  - words that no caption held are given fresh embeddings at the end: see `renew_unread_words`.
Batches are a function of the step number alone, so a resumed run sees what an uninterrupted one would have seen.
"""

import argparse
import json
import math
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from uniadapter_edu._atomic import whole
from uniadapter_edu.backbones import TASKS, load_backbone, load_processor, write_checksums
from uniadapter_edu.losses import contrastive_loss, hard_negatives, matching_loss
from uniadapter_edu.tasks.retrieval import encode_images, encode_texts, evaluate_retrieval, match, normalize
from uniadapter_edu.training import best_precision
from uniadapter_edu.worlds import emoji

HERE = Path(__file__).parent
STATE, BACKBONE = HERE / ".pretraining", HERE / "backbone"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's, as BLIP uses
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
HIDDEN, VISION_LAYERS, TEXT_LAYERS, HEADS, PROJECTION, LENGTH = 192, 4, 3, 6, 128, 40
BATCH = 96  # scenes a step


@dataclass(frozen=True)
class Leg:
    """A stretch of training with a schedule of its own: linear warm-up, constant, then half a cosine down to 2 %."""

    steps: int
    peak: float  # learning rate
    warm_up: int
    decay_from: int


# The losses were still falling at the end of the first two, so each was followed by another. The first two were computed in
# float32; the third in bfloat16, from the float16 weights that the second had left (`--from-shipped`), with a new optimizer.
LEGS = (Leg(3400, 1.2e-3, 200, 1700), Leg(1350, 9e-4, 50, 0), Leg(6000, 1.2e-3, 200, 2000))

# --------------------------------------------------------------------------- tokenizer and model


def vocabulary() -> dict[str, int]:
    """Whole words of both wordings, of every concept's name and keywords, then letters, so that any text can be spelt.

    Words of the target world get an entry here, but no caption of pre-training holds them: see `renew_unread_words`.
    """
    texts = [template for wording, _ in emoji.WORDINGS.values() for kind in wording.values() for template in kind]
    texts = [re.sub(r"{\w+}", " ", text) for text in texts] + list(emoji.NEW_WORDS.values())
    texts += [*emoji.COLOURS, *emoji.SIZES, *emoji.COUNTS.values(), *emoji.concepts()]
    texts += [word for row in emoji.sprite_table("twemoji")["keywords"] for word in row]
    texts += ["what which how many is are the where colour number object yes no"]  # questions of the answering task
    words = sorted({word for text in texts for word in re.findall(r"[a-z]+|[0-9]", text.lower())})
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789")
    marks = list(".,;:!?'-&()/")
    tokens = dict.fromkeys(SPECIAL + marks + letters + ["##" + c for c in letters] + words)
    return {token: i for i, token in enumerate(tokens)}


def build_processor() -> BlipProcessor:
    tokenizer = BertTokenizer(vocab=vocabulary(), do_lower_case=True, model_max_length=LENGTH)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    images = BlipImageProcessorPil(size={"height": emoji.CANVAS, "width": emoji.CANVAS}, image_mean=MEAN, image_std=STD)
    return BlipProcessor(images, tokenizer)


def build_config(tokenizer) -> BlipConfig:
    token = tokenizer.convert_tokens_to_ids
    shared = {
        "hidden_size": HIDDEN,
        "intermediate_size": 4 * HIDDEN,
        "num_attention_heads": HEADS,
        "initializer_range": 0.02,
    }
    vision = shared | {
        "num_hidden_layers": VISION_LAYERS,
        "image_size": emoji.CANVAS,
        "patch_size": 16,
        "layer_norm_eps": 1e-6,
    }
    text = shared | {
        "num_hidden_layers": TEXT_LAYERS,
        "encoder_hidden_size": HIDDEN,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 64,
        "pad_token_id": token("[PAD]"),
        "bos_token_id": token("[DEC]"),
        "eos_token_id": token("[SEP]"),
        "sep_token_id": token("[SEP]"),
    }
    return BlipConfig(
        vision_config=vision, text_config=text, projection_dim=PROJECTION, image_text_hidden_size=PROJECTION
    )


class Pretrained(torch.nn.Module):
    """transformers' retrieval BLIP, and a decoder that shares all but its self-attention with the text encoder."""

    def __init__(self, config: BlipConfig):
        super().__init__()
        self.blip = BlipForImageTextRetrieval(config)
        self.decoder = BlipTextLMHeadModel(config.text_config)
        self.decoder.bert.embeddings = self.blip.text_encoder.embeddings
        for own, shared in zip(self.decoder.bert.encoder.layer, self.blip.text_encoder.encoder.layer):
            own.crossattention, own.intermediate, own.output = shared.crossattention, shared.intermediate, shared.output
        self.decoder.cls.predictions.decoder.weight = self.blip.text_encoder.embeddings.word_embeddings.weight
        self.log_temperature = torch.nn.Parameter(torch.tensor(math.log(0.07)))


# --------------------------------------------------------------------------- batches


def distort(sprite: Image.Image, draw: random.Random) -> Image.Image:
    """Mild augmentation of one drawing: mirrored, turned, paler or gaudier. Never of the scene, whose left is left."""
    if draw.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if draw.random() < 0.5:
        sprite = sprite.rotate(draw.uniform(-15, 15), Image.Resampling.BILINEAR, expand=False)
    if draw.random() < 0.5:
        alpha = sprite.getchannel("A")
        sprite = ImageEnhance.Color(sprite).enhance(draw.uniform(0.0, 1.5))
        sprite.putalpha(alpha)
    return sprite


def ramp(step: int, start: int, end: int) -> float:
    return min(1.0, max(0.0, (step - start) / (end - start)))


def make_batch(step: int, size: int, tokenizer) -> dict:
    """Scenes of the train split, each drawn in a random source style and told in a random caption."""
    draw, names, scenes = random.Random(f"pretrain/{step}"), emoji.known_concepts(), []
    pairs, counts = 0.5 * ramp(step, 300, 1500), 0.15 * ramp(step, 0, 600)
    while len(scenes) < size:
        twin = scenes and draw.random() < 0.25
        scene = emoji.twin(draw, scenes[-1][0]) if twin else emoji.sample_scene(draw, names, pairs, counts)
        styles = [s for s in emoji.SOURCE_STYLES if all(c in emoji.sprites(s) for c in scene.concepts)]
        if scene.split == "train" and styles and scene.key not in {s.key for s, _ in scenes[-4:]}:
            scenes.append((scene, draw.choice(styles)))
    pictures = np.stack([np.asarray(emoji.render(scene, style, seed=step, distort=distort)) for scene, style in scenes])
    texts = tokenizer(
        [draw.choice(emoji.captions(scene)) for scene, _ in scenes],
        padding=True,
        truncation=True,
        max_length=LENGTH,
        return_tensors="pt",
    )
    return {
        "pixels": torch.from_numpy(pictures).permute(0, 3, 1, 2),  # (B, 3, H, W) uint8
        "input_ids": texts.input_ids,
        "attention_mask": texts.attention_mask,
        "keys": [scene.key for scene, _ in scenes],
    }


class Batches(torch.utils.data.Dataset):
    """Batch `step` of the endless stream, for a DataLoader that draws the next one while this one trains."""

    def __init__(self, steps: int, size: int, tokenizer):
        self.steps, self.size, self.tokenizer = steps, size, tokenizer

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict:
        return make_batch(step, self.size, self.tokenizer)


# --------------------------------------------------------------------------- the three losses


def by_length(mask: torch.Tensor, parts: int = 3):
    """Rows in order of length, in `parts` groups, each with its own longest length: less padding to compute on."""
    for rows in mask.sum(1).argsort().chunk(parts):
        yield rows, int(mask[rows].sum(1).max())


def encode_by_length(blip: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, T) -> contrastive features (B, P)."""
    groups = list(by_length(mask))
    features = torch.cat([encode_texts(blip, ids[rows, :T], mask[rows, :T]) for rows, T in groups])
    return features[torch.cat([rows for rows, _ in groups]).argsort()]


def captioning_loss(model: Pretrained, ids: torch.Tensor, mask: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each next token, given the picture and the tokens before it."""
    prompt, total = ids.clone(), 0.0
    prompt[:, 0] = model.blip.config.text_config.bos_token_id
    for rows, T in by_length(mask):
        labels = prompt[rows, :T].masked_fill(mask[rows, :T] == 0, -100)
        loss = model.decoder(prompt[rows, :T], mask[rows, :T], encoder_hidden_states=images[rows], labels=labels).loss
        total = total + loss * (labels[:, 1:] != -100).sum()
    return total / mask[:, 1:].sum()


def losses(
    model: Pretrained, processor, batch: dict, hardness: float, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Contrastive (ITC), matching (ITM) and language-modelling (LM) loss; BLIP, section 3.2.

    ITC sees the whole batch; a random half goes to ITM and the other half to LM, which costs a third less and hurts little.
    """
    blip, ids, mask, B = model.blip, batch["input_ids"], batch["attention_mask"], len(batch["keys"])
    temperature = model.log_temperature.exp()
    tokens, image_features = encode_images(blip, normalize(processor, batch["pixels"]))  # (B, N, D), (B, P)
    text_features = encode_by_length(blip, ids, mask)  # (B, P)
    same = torch.tensor([[a == b for b in batch["keys"]] for a in batch["keys"]])
    itc = contrastive_loss(image_features, text_features, temperature, same)

    with torch.no_grad():
        similarity = image_features @ text_features.T / temperature
    order = torch.randperm(B, generator=generator)
    matched, told = order[: B // 2, None], order[B // 2 :]
    negatives, mismatch = hard_negatives(similarity, same, hardness, generator)
    texts = torch.cat([matched, negatives[matched[:, 0]]], dim=1)  # (B/2, 3): its own and two that are not
    labels = torch.cat([torch.ones_like(matched), mismatch[matched[:, 0]]], dim=1)
    logits = match(blip, tokens[matched[:, 0]], ids[texts], mask[texts])  # (B/2, 3, 2)
    itm = matching_loss(logits, labels)

    lm = captioning_loss(model, ids[told], mask[told], tokens[told])
    return {
        "loss": itc + itm + lm,
        "itc": itc,
        "itm": itm,
        "lm": lm,
        "itc_accuracy": (similarity.argmax(1) == torch.arange(B)).float().mean(),
        "itm_accuracy": (logits.argmax(2) == labels)[labels >= 0].float().mean(),
    }


# --------------------------------------------------------------------------- the loop, interruptible


def learning_rate(step: int) -> float:
    """The schedules of all legs, one after the other; step counts from the beginning of the first."""
    for leg in LEGS:
        if step < leg.steps:
            decayed = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * ramp(step, leg.decay_from, leg.steps)))
            return leg.peak * min(ramp(step + 1, 0, leg.warm_up), decayed)
        step -= leg.steps
    return 0.02 * LEGS[-1].peak


def save_state(model: Pretrained, optimizer: torch.optim.Optimizer, step: int, log: list) -> None:
    """Model, optimizer and log in one safetensors file, renamed into place when whole. No pickle."""
    tensors = {f"model.{name}": p.detach().contiguous() for name, p in model.named_parameters()}
    for i, p in enumerate(model.parameters()):
        tensors |= {f"optimizer.{i}.{key}": value for key, value in optimizer.state[p].items()}
    with whole(STATE / "state.safetensors") as draft:
        save_file(tensors, draft, metadata={"step": str(step), "log": json.dumps(log)})


def load_state(model: Pretrained, optimizer: torch.optim.Optimizer) -> tuple[int, list]:
    path = STATE / "state.safetensors"
    if not path.exists():
        return 0, []
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(tensors[f"model.{name}"])
    for i, p in enumerate(model.parameters()):
        optimizer.state[p] = {key: tensors[f"optimizer.{i}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
    return int(metadata["step"]), json.loads(metadata["log"])


def build(seed: int = 0) -> tuple[Pretrained, torch.optim.Optimizer, BlipProcessor]:
    torch.manual_seed(seed)
    processor = build_processor()
    model = Pretrained(build_config(processor.tokenizer)).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    return model, torch.optim.AdamW(groups, betas=(0.9, 0.98)), processor


def load_shipped(model: Pretrained) -> tuple[int, list]:
    """Go on from data/backbone/, without its optimizer, which is not shipped."""
    tensors, log = load_file(BACKBONE / "model.safetensors"), json.loads((BACKBONE / "training_log.json").read_text())
    decoder = {name.removeprefix("text_decoder."): t for name, t in tensors.items() if name.startswith("text_decoder.")}
    model.blip.load_state_dict({name: t for name, t in tensors.items() if not name.startswith("text_decoder.")})
    model.decoder.load_state_dict(decoder)
    temperature = re.search(r"temperature ended at (\d+\.\d+)", (BACKBONE / "README.md").read_text()).group(1)
    model.log_temperature.data.fill_(math.log(float(temperature)))
    return log[-1]["step"] // 50 * 50 + 50, log  # legs are multiples of 50 steps, logged every 20


def pretrain(steps: int, from_shipped: bool) -> None:
    model, optimizer, processor = build()
    step, log = load_state(model, optimizer)
    if from_shipped and step == 0:
        step, log = load_shipped(model)
    precision = best_precision()
    loader = torch.utils.data.DataLoader(
        Batches(steps, BATCH, processor.tokenizer), batch_size=None, sampler=range(step, steps), num_workers=1
    )
    bar = tqdm(zip(range(step, steps), loader), initial=step, total=steps, mininterval=10)
    start = time.time()
    for step, batch in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        hardness = ramp(step, 600, 1800)  # 0: random negatives; 1: drawn by contrastive similarity
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            parts = losses(model, processor, batch, hardness, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        parts["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            row = {key: round(value.item(), 4) for key, value in parts.items()}
            log.append({"step": step, **row, "seconds": round(time.time() - start, 1)})
            start = time.time()
            bar.set_postfix({key: row[key] for key in ("itc", "itm", "lm", "itc_accuracy", "itm_accuracy")})
        if (step + 1) % 200 == 0 or step + 1 == steps:
            save_state(model, optimizer, step + 1, log)


# --------------------------------------------------------------------------- words that were never read


def read_tokens(tokenizer) -> set[int]:
    """The tokens that captions of pre-training can hold."""
    texts = [re.sub(r"{\w+}", " ", template) for kind in emoji.SOURCE_WORDING.values() for template in kind]
    texts += [*emoji.COLOURS, *emoji.SIZES, *emoji.COUNTS.values(), *emoji.known_concepts()]
    return {token for ids in tokenizer(texts).input_ids for token in ids}


@torch.no_grad()
def renew_unread_words(model: Pretrained, processor) -> None:
    """Give every word that was never read an embedding like a word's that was: another random one each.

    The output layer of the decoder is the embedding table (tied weights), and at every position the language-modelling
    loss pushes all words that are not the next one away from the hidden state. A word that never comes is pushed and
    nothing else, in the same direction as all others like it (Gao et al., 2019, "Representation degeneration"). After
    10,750 steps the 1,400 of them had norm 2.5 and a mean cosine of 0.98: to a frozen model, one and the same word. A
    published BLIP has no such words, for its word pieces have all been read.

    e = mean + std · noise, of the words that were read, axis by axis. The output bias takes up the difference, so that
    each word keeps the logit that it had on average over a few batches of captions.
    """
    table = model.blip.text_encoder.embeddings.word_embeddings.weight  # (V, D), the decoder's output layer too
    tokenizer, kept = processor.tokenizer, read_tokens(processor.tokenizer) | set(processor.tokenizer.all_special_ids)
    read = table[sorted(kept - set(tokenizer.all_special_ids))]  # (R, D)
    unread = [token for token in range(len(table)) if token not in kept]
    noise = torch.randn(len(unread), table.shape[1], generator=torch.Generator().manual_seed(0))
    fresh = read.mean(0) + read.std(0) * noise  # (U, D)
    predictions = model.decoder.cls.predictions
    predictions.bias[unread] += (table[unread] - fresh) @ output_states(model, processor).mean(0)
    table[unread] = fresh


def output_states(model: Pretrained, processor, batches: int = 4) -> torch.Tensor:
    """What the decoder's output layer multiplies its words with, at every token of a few batches of captions, (n, D)."""
    states = []
    for step in range(10_000, 10_000 + batches):  # late enough for scenes of all kinds
        batch = make_batch(step, BATCH, processor.tokenizer)
        images = encode_images(model.blip, normalize(processor, batch["pixels"]))[0]
        prompt, mask = batch["input_ids"].clone(), batch["attention_mask"]
        prompt[:, 0] = model.blip.config.text_config.bos_token_id
        hidden = model.decoder.bert(prompt, mask, encoder_hidden_states=images, is_decoder=True).last_hidden_state
        states.append(model.decoder.cls.predictions.transform(hidden)[mask.bool()])
    return torch.cat(states)


# --------------------------------------------------------------------------- what is shipped


def weights_for_all_tasks(model: Pretrained) -> dict[str, torch.Tensor]:
    """One state dict from which each of transformers' three BLIP classes finds what it needs; halves, to save space.

    Weights that encoder and decoder share here are written under both names, as the classes do not know of the sharing.
    """
    tensors = dict(model.blip.state_dict())
    tensors |= {f"text_decoder.{name}": tensor for name, tensor in model.decoder.state_dict().items()}
    return {name: t.half().contiguous().clone() if t.is_floating_point() else t.clone() for name, t in tensors.items()}


def export(from_shipped: bool) -> None:
    """Write data/backbone/: weights, config, processor, training log, and the model card with measured figures.

    Of the last state, or of the weights that are shipped already: what is done to them at the end, twice changes nothing.
    """
    model, optimizer, processor = build()
    steps, log = load_shipped(model) if from_shipped else load_state(model, optimizer)
    renew_unread_words(model.eval(), processor)
    with whole(BACKBONE / "model.safetensors") as draft:
        save_file(weights_for_all_tasks(model), draft, metadata={"format": "pt"})
    model.blip.config.save_pretrained(BACKBONE)
    build_processor().save_pretrained(BACKBONE)  # a used one would keep how it padded
    (BACKBONE / "training_log.json").write_text(json.dumps(log, indent=0) + "\n")
    write_checksums(HERE)
    write_card(steps, log, model.log_temperature.exp().item())


def write_card(steps: int, log: list, temperature: float) -> None:
    """Score the exported backbone, as a user would load it, and write the figures into its model card."""
    model, processor = load_backbone(), load_processor()
    galleries = {"source styles and wording, 500 scenes": emoji.load_split("source", "test", 500)}
    for style in emoji.TARGET_STYLES:
        gallery = f"{style}, target wording, 300 scenes of 150 concepts, 30 of them new"
        galleries[gallery] = emoji.load_split("target", "test", 300, style)
    rows = [(name, evaluate_retrieval(model, processor, gallery, top_k=8)) for name, gallery in galleries.items()]
    counts = {task: sum(p.numel() for p in load_backbone(task=task).parameters()) for task in TASKS}
    scores = "\n".join(
        f"| {name} | {100 * m.stage_one.t2i_r1:.1f} | {100 * m.t2i_r1:.1f} | {100 * m.t2i_r5:.1f} | {100 * m.i2t_r1:.1f} |"
        for name, m in rows
    )
    last = log[-1]
    (BACKBONE / "README.md").write_text(f"""---
license: cc-by-4.0
library_name: transformers
tags: [blip, image-text-retrieval, education]
---
# The embedded backbone of uniadapter_edu

A BLIP small enough for two CPU cores: vision {VISION_LAYERS} layers, text {TEXT_LAYERS} layers, width {HIDDEN}, {HEADS} heads,
pictures of {emoji.CANVAS} x {emoji.CANVAS} pixels in patches of 16 (36 tokens and CLS), {len(vocabulary())} word pieces. Parameters:
{", ".join(f"{n:,} for {task}" for task, n in counts.items())}. Weights are stored as float16 and loaded as float32.

Pre-trained by `data/pretrain_backbone.py` on scenes of the emoji world's five source styles ({len(emoji.known_concepts())} of
{len(emoji.concepts())} concepts; the other {len(emoji.held_out_concepts())} were never shown or named) with BLIP's three losses:
contrastive, matching and language modelling. {steps:,} steps of {BATCH} scenes in {len(LEGS)} legs, the last of {LEGS[-1].steps:,}
steps in bfloat16; `training_log.json` holds every twentieth step. Words that no caption held (those of the target world
among them) were given fresh random embeddings at the end; `renew_unread_words` says why.
Losses at the end: contrastive {last["itc"]}, matching {last["itm"]}, language modelling {last["lm"]}; the contrastive
temperature ended at {temperature:.4f}.

Two-stage retrieval (contrastive ranking, then matching over the top 8), in percent, every caption a query, test scenes that
no training step saw. Text to image, but for the last column:

| gallery | R@1, contrastive only | R@1 | R@5 | image to text R@1 |
|---|---|---|---|---|
{scores}

The pictures it learned from are by the artists named in `data/README.md`, under Apache-2.0, CC-BY-4.0 and MIT. It knows
nothing but emoji: do not use it for anything but learning. The figures above are written by
`python data/pretrain_backbone.py --export`.
""")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=sum(leg.steps for leg in LEGS))
    parser.add_argument("--threads", type=int, default=None, help="of the CPU; all unless told")
    parser.add_argument(
        "--from-shipped", action="store_true", help="go on from data/backbone/ if there is no state yet"
    )
    parser.add_argument(
        "--export", action="store_true", help="write data/backbone/ from the last state (or what is shipped) and stop"
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.export:
        export(options.from_shipped)
    else:
        pretrain(options.steps, options.from_shipped)
