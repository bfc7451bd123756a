"""What frame-aware attention does to one clip and one sentence: the weights, the attention, and the answer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from uniadapter_edu import attention
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import _towers
from uniadapter_edu.tasks.retrieval import _evaluating, encode_texts, match, normalize, tokenize
from uniadapter_edu.tasks.video_retrieval import Clips


@dataclass(frozen=True)
class Look:
    """A sentence looks at a clip. attention (L, F): what each layer's cross-attention gives to each frame, the mean
    over heads and tokens of the sentence; a row sums to 1. probability: that matching says yes."""

    attention: Tensor
    probability: float


@dataclass(frozen=True)
class FrameReport:
    """w (F,): cosines of the sentence with each frame. multipliers (F,): what the patch keys of each frame are
    multiplied by. plain: the look with all frames alike; aware: with the multipliers."""

    w: Tensor
    multipliers: Tensor
    plain: Look
    aware: Look


def look_at_frames(
    model: nn.Module, processor, frames: Sequence, sentence: str, temperature: float = attention.TEMPERATURE
) -> FrameReport:
    """``frames``: the F pictures (PIL) of one clip. ``temperature``: of the softmax over the frames' weights; the
    method's is 4.

    The model is looked at as it is: inside `adapters_disabled`, it is the frozen backbone. Raises `UniAdapterError` for
    an empty sentence, a clip without frames, or a temperature that is not above 0.
    """
    if not sentence.strip():
        raise UniAdapterError("The sentence is empty.", "Type some words.")
    if not temperature > 0:
        raise UniAdapterError(f"temperature is {temperature}, expected more than 0.", "The method's is 4.")
    clips = Clips()
    with _evaluating(model):
        pixels = normalize(processor, clips.pixels(processor, [list(frames)]))
        tokens, _, frame_features = clips.encode(model, pixels)  # (1, F·n, D), (1, F, P)
        input_ids, mask = tokenize(processor, [sentence])
        w = attention.frame_weights(encode_texts(model, input_ids, mask), frame_features)  # (1, F)
        # softmax(w / t) = softmax((w · 4 / t) / 4): the model divides by 4 whatever it is given
        given = w * attention.TEMPERATURE / temperature
        plain, aware = (_look(model, tokens, input_ids, mask, len(frames), weights) for weights in (None, given))
    return FrameReport(w[0], attention.frame_multipliers(w, temperature)[0], plain, aware)


def _look(model: nn.Module, tokens: Tensor, input_ids: Tensor, mask: Tensor, F: int, w: Tensor | None) -> Look:
    frames = None if w is None else w[:, None]  # (B, F) -> (B, K, F): one text a clip
    with _attention_heard(model) as heard:
        logits = match(model, tokens, input_ids[:, None], mask[:, None], frames)  # (1, 1, 2)
    layers = torch.stack(heard)[:, 0]  # (L, H, T, F·n)
    per_frame = layers.unflatten(-1, (F, -1)).sum(-1).mean(dim=(1, 2))  # (L, H, T, F, n) -> (L, F)
    return Look(per_frame, logits.softmax(-1)[0, 0, 1].item())


@contextmanager
def _attention_heard(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, the cross-attention of each layer is noted, (B, H, T, N).

    By hooks of our own: asked by ``output_attentions``, transformers leaves its hooks in the model for good.
    """
    heard = []
    handles = [
        layer.crossattention.self.register_forward_hook(lambda attention, args, output: heard.append(output[1]))
        for layer in _towers(model).texts["kv"].layer
    ]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()
