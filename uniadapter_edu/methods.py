"""The ways to train that UniAdapter is compared with: full fine-tuning, a linear probe, and LoRA through peft.

Each takes a plain BLIP and decides what in it requires a gradient; `training.train` does the rest, the same for all.
"""

import warnings

from torch import nn

from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import HEADS, _towers

LORA_TARGETS = ("qkv", "query", "value")  # of all attentions: BLIP's vision has one matrix for query, key and value


def full_fine_tuning(model: nn.Module) -> nn.Module:
    """Everything trains. Returns the model."""
    _check_plain(model)
    return model.requires_grad_(True)


def linear_probe(model: nn.Module) -> nn.Module:
    """Only the heads train: the two projections and the matching head, or a decoder's word head. Returns the model.

    The word head is what stands between the decoder's last state and its words: a linear layer, a LayerNorm and one bias
    a word. The matrix that makes words of states is no part of it, as it is that of the embeddings, which lie at the
    other end of the model. No graph is built below a head, so that a step costs a forward pass and little more.
    """
    _check_plain(model)
    model.requires_grad_(False)
    for parameter in _head_parameters(model):
        parameter.requires_grad_(True)
    return model


def lora(model: nn.Module, rank: int) -> nn.Module:
    """LoRA (Hu et al., 2021) through peft: low-rank updates of the attentions' queries and values, and the heads.

    Returns peft's wrapper; the layers of ``model`` itself are changed until the wrapper's ``unload()``. In the vision
    encoder, where one matrix makes queries, keys and values, its update reaches the keys too. ``alpha`` is twice the
    rank, so that one learning rate serves every rank.
    """
    from peft import LoraConfig, get_peft_model  # seconds to import, and only needed here

    _check_plain(model)
    if rank < 1:
        raise UniAdapterError(f"rank is {rank}, expected at least 1", "choose one, or let lora_rank_for do it.")
    settings = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(_lora_targets(model)),
        modules_to_save=_heads(model),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for something by its old name
        return get_peft_model(model, settings)


def lora_rank_for(model: nn.Module, parameters: int) -> int:
    """The rank whose trainable parameters, heads included, come closest to ``parameters``; at least 1."""
    heads = sum(p.numel() for head in _heads(model) for p in getattr(model, head).parameters())
    # a rank adds (in + out) numbers to every target
    per_rank = sum(layer.in_features + layer.out_features for layer in _lora_targets(model).values())
    return max(1, round((parameters - heads) / per_rank))


def _heads(model: nn.Module) -> list[str]:
    return [name for name in HEADS if hasattr(model, name)]


def _head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What of the heads that `Heads` copies for adapters trains, in the model itself."""
    heads = _towers(model).heads
    return [p for name, head in heads.items() for p in ([head.bias] if name == "word_bias" else head.parameters())]


def _lora_targets(model: nn.Module) -> dict[str, nn.Linear]:
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in LORA_TARGETS
    }


def _check_plain(model: nn.Module) -> None:
    if hasattr(model, "uniadapter") or hasattr(model, "peft_config"):
        raise UniAdapterError(
            "the model already has adapters, expected the plain backbone",
            "remove_adapters(model) (or peft's unload()) first, or load a fresh backbone.",
        )
