"""What UniAdapter, LoRA and full fine-tuning cost on a backbone of any size, without building or training any of them.

Parameters are `accounting`'s closed forms, bytes follow from them. New here are multiply-adds: those of the forward
pass for one picture and one sentence, each alone and then together, as retrieval computes them.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from transformers import BlipConfig, BlipForImageTextRetrieval

from uniadapter_edu._files import data_path
from uniadapter_edu.accounting import count_adapter_parameters
from uniadapter_edu.adapter import Heads
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import _Towers, _towers
from uniadapter_edu.methods import _lora_targets, lora_rank_for

FLOAT_BYTES = 4  # float32
SENTENCE = 16  # T, tokens

# The shape of the published base checkpoints, such as Salesforce/blip-itm-base-coco: 223,744,258 parameters.
_LAYERS = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_BASE = {
    "vision_config": _LAYERS | {"image_size": 384, "patch_size": 16},
    "text_config": _LAYERS | {"encoder_hidden_size": 768, "vocab_size": 30524},
    "image_text_hidden_size": 256,
}
BACKBONES = ("embedded", "BLIP-base, 384 px")


@dataclass(frozen=True)
class Cost:
    """One method's. trainable: parameters, heads included. disk_bytes: of what has to be kept beside the backbone, but
    for the files' headers. adam_bytes: the optimizer's two moments. multiply_adds: of the forward pass. rank:
    LoRA's."""

    method: str
    trainable: int
    multiply_adds: int
    rank: int | None = None

    @property
    def disk_bytes(self) -> int:
        return FLOAT_BYTES * self.trainable

    @property
    def adam_bytes(self) -> int:
        return 2 * FLOAT_BYTES * self.trainable


@cache
def blueprint(backbone: str) -> BlipForImageTextRetrieval:
    """A retrieval BLIP of that size whose weights have shapes and no memory. Raises `UniAdapterError` for an unknown
    name."""
    if backbone not in BACKBONES:
        raise UniAdapterError(f"There is no backbone {backbone!r}.", f"Choose one of {', '.join(BACKBONES)}.")
    embedded = backbone == BACKBONES[0]
    config = BlipConfig.from_pretrained(data_path("backbone")) if embedded else BlipConfig(**_BASE)
    with torch.device("meta"):
        return BlipForImageTextRetrieval(config)


def costs(model: nn.Module, config: UniAdapterConfig) -> list[Cost]:
    """UniAdapter with ``config``, LoRA with the rank that comes closest to as many parameters, and full fine-tuning.

    model: a plain retrieval BLIP, such as a `blueprint`; it is only looked at. Raises `UniAdapterError` if its towers
    differ in width, or if the config has key/value adapters, whose multiply-adds are not counted here.
    """
    towers = _towers(model)
    if len(set(towers.widths.values())) > 1 or config.kv_bottleneck:
        raise UniAdapterError(
            f"Widths are {towers.widths} and kv_bottleneck is {config.kv_bottleneck}, expected one width, and None.",
            "Take a base checkpoint and a config without key/value adapters.",
        )
    heads = sum(p.numel() for p in Heads(towers.heads).parameters())
    depths = towers.depths["vision"], towers.depths["text"]
    adapters = heads * config.train_heads + count_adapter_parameters(config, towers.widths["vision"], *depths)
    forward, rank = multiply_adds(model), lora_rank_for(model, adapters)
    targets = _lora_targets(model)
    per_rank = {name: linear.in_features + linear.out_features for name, linear in targets.items()}
    low_rank = rank * sum(_rows(name, towers.tokens) * n for name, n in per_rank.items())
    head_copies = heads - 1  # LoRA's bring no temperature along
    return [
        Cost("UniAdapter", adapters, forward + adapter_multiply_adds(towers, config)),
        Cost("LoRA", head_copies + rank * sum(per_rank.values()), forward + low_rank, rank),
        Cost("full fine-tuning", sum(p.numel() for p in model.parameters()), forward),
    ]


def multiply_adds(model: nn.Module, sentence: int = SENTENCE) -> int:
    """Of a plain retrieval BLIP: a picture alone, a sentence of ``sentence`` tokens alone, and the two together."""
    towers, T = _towers(model), sentence
    N, D = towers.tokens, towers.widths["vision"]
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    total = sum(_rows(name, N, T) * m.in_features * m.out_features for name, m in linears.items())
    # the patches: a convolution without overlap, 3 p² numbers -> D
    total += (N - 1) * model.vision_model.embeddings.patch_embedding.weight.numel()
    # Q Kᵀ and P V, D multiply-adds each for every query and key
    pairs = N * N * towers.depths["vision"] + (2 * T * T + T * N) * towers.depths["text"]
    return total + 2 * D * pairs


def adapter_multiply_adds(towers: _Towers, config: UniAdapterConfig, sentence: int = SENTENCE) -> int:
    """What the adapters add to `multiply_adds`: a down and an up, D·r each, for every token that a branch reads; and
    the trained heads, which answer in the originals' place after these have been computed."""
    N, T = towers.tokens, sentence
    ups = 2 if config.cross_reuses_text_up else 1
    maps = {
        "vision": 2 * N * towers.depths["vision"],
        "text": 2 * T * (1 + config.query_residual) * towers.depths["text"],
        "cross": (1 + ups) * T * towers.depths["text"],
    }
    heads = sum(head.weight.numel() for head in towers.heads.values()) if config.train_heads else 0
    return heads + towers.widths["vision"] * config.bottleneck * sum(maps[name] for name in config.modalities)


def _rows(name: str, N: int, T: int = SENTENCE) -> int:
    """How many rows go through a linear layer: N tokens of a picture, T of a sentence that is read alone and
    together."""
    if name.startswith("vision_model"):
        return N
    if "crossattention" in name:
        return N if name.endswith(("key", "value")) else T
    return 2 * T if name.startswith("text_encoder") else 1  # heads see [CLS]
