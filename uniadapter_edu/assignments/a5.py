"""Assignment 5, frame-aware attention."""

from collections.abc import Callable

import torch
from torch.nn.functional import normalize, softmax

from uniadapter_edu.assignments._examine import examine, numbers


def frame_weights(function: Callable) -> None:
    """``function(text, frames)``: the cosine of each clip's text with each of its frames, no gradient."""
    text, frames = numbers(3, 4) * 2, numbers(3, 5, 4).flip(0) * 3 + 0.5

    def cosines(t, v):
        return (t[:, None] * v).sum(-1)

    def right(text, frames):
        return cosines(normalize(text, dim=-1), normalize(frames, dim=-1)).detach()

    mistakes = {
        "neither text nor frames are normalised": cosines,
        "the frames are not normalised": lambda t, v: cosines(normalize(t, dim=-1), v),
        "the text is not normalised": lambda t, v: cosines(t, normalize(v, dim=-1)),
        "the softmax belongs to the next exercise": lambda t, v: softmax(right(t, v), dim=-1),
        "the frames are normalised over the frames; a frame's P features are one vector": lambda t, v: cosines(
            normalize(t, dim=-1), normalize(v, dim=1)
        ),
        "the text is normalised over the clips": lambda t, v: cosines(normalize(t, dim=0), normalize(v, dim=-1)),
        "a cosine is not divided by the contrastive temperature": lambda t, v: right(t, v) / 0.07,
        "the cosines are made positive": lambda t, v: right(t, v).abs(),
        "the cosines are cut off at zero": lambda t, v: right(t, v).relu(),
        "all clips have the first clip's text": lambda t, v: right(t[:1].expand_as(t), v),
        "the mean is taken over the features, expected the sum": lambda t, v: right(t, v) / t.shape[-1],
        "the squared length is divided by, expected the length": lambda t, v: (
            cosines(t, v) / (t.square().sum(-1)[:, None] * v.square().sum(-1))
        ),
    }
    examine(function, (text, frames), right, mistakes, "How much each frame looks like what the text says.")


def multipliers(function: Callable) -> None:
    """``function(w, temperature)``: F · softmax over the frames of w / temperature, no gradient."""
    w = numbers(3, 4) * 3

    def right(w, temperature):
        return w.shape[-1] * softmax(w.detach() / temperature, dim=-1)

    mistakes = {
        "the factor F is missing": lambda w, t: softmax(w / t, dim=-1),
        "softmax is taken over the clips, expected over the frames": lambda w, t: w.shape[-1] * softmax(w / t, dim=0),
        "softmax is taken over all frames of all clips": lambda w, t: (
            w.shape[-1] * softmax((w / t).flatten(), dim=0).view_as(w)
        ),
        "the factor is the number of clips, expected that of the frames": lambda w, t: (
            w.shape[0] * softmax(w / t, dim=-1)
        ),
        "w is multiplied by the temperature, expected divided": lambda w, t: w.shape[-1] * softmax(w * t, dim=-1),
        "the temperature is not used": lambda w, t: w.shape[-1] * softmax(w, dim=-1),
        "the temperature is always 4": lambda w, t: w.shape[-1] * softmax(w / 4, dim=-1),
        "the softmax is missing": lambda w, t: w.shape[-1] * w / t,
        "F stands inside of the softmax": lambda w, t: softmax(w.shape[-1] * w / t, dim=-1),
        "it is a sigmoid, expected a softmax over the frames": lambda w, t: w.shape[-1] * torch.sigmoid(w / t),
        "the weights are divided by their sum without exp": lambda w, t: w.shape[-1] * w / w.sum(-1, keepdim=True),
        "these are logarithms: expected softmax": lambda w, t: w.shape[-1] * torch.log_softmax(w / t, dim=-1),
    }
    examine(function, (w, 2.5), right, mistakes, "Their mean over a clip is 1.")


def weigh_keys(function: Callable) -> None:
    """``function(keys, m)``: each frame's patch keys, not its CLS's, times the frame's m; tokens are frame-major."""
    B, F, n, D = 2, 3, 4, 5
    keys, m = numbers(B, F * n, D), numbers(B, F).abs() + 0.5

    def by_frame(keys, m, cls=False, patches=True):
        """Every token times the m of its frame, for CLS tokens and patches as asked."""
        frames = keys.reshape(B, F, n, D)
        factor = m[:, :, None, None]
        parts = [frames[:, :, :1] * (factor if cls else 1), frames[:, :, 1:] * (factor if patches else 1)]
        return torch.cat(parts, dim=2).reshape(B, F * n, D)

    def only_first_cls(keys, m):
        return torch.cat([keys[:, :1], by_frame(keys, m, cls=True)[:, 1:]], dim=1)

    def token_major(keys, m):
        swapped = keys.reshape(B, n, F, D).transpose(1, 2).reshape(B, F * n, D)
        return by_frame(swapped, m).reshape(B, F, n, D).transpose(1, 2).reshape(B, F * n, D)

    def repeated(keys, m):
        """m, m, m … beside the tokens, as `repeat` gives it: frame-major tokens need `repeat_interleave`."""
        out = keys * m.repeat(1, n)[:, :, None]
        out[:, ::n] = keys[:, ::n]
        return out

    mistakes = {
        "the CLS tokens are weighed, too": lambda k, m: by_frame(k, m, cls=True),
        "only the CLS tokens are weighed": lambda k, m: by_frame(k, m, cls=True, patches=False),
        "each frame has a CLS token; only the first of the clip was left alone": only_first_cls,
        "the tokens are taken as token-major: all first tokens, then all second ones": token_major,
        "the multipliers are repeated token by token, 1 2 3 1 2 3; tokens lie frame by frame, 1 1 1 2 2 2": repeated,
        "m is added, expected multiplied": lambda k, m: (
            k + by_frame(torch.ones_like(k), m) - by_frame(torch.ones_like(k), m * 0)
        ),
        "all clips have the first clip's multipliers": lambda k, m: by_frame(k, m[:1].expand_as(m)),
        "it divides by m": lambda k, m: by_frame(k, 1 / m),
        "m is applied twice": lambda k, m: by_frame(k, m * m),
        "the root of m is applied": lambda k, m: by_frame(k, m.sqrt()),
        "the CLS tokens are lost: they are 0": lambda k, m: by_frame(k, m) - _cls_only(k, n),
        "the last token of each frame was left alone; CLS is the first": lambda k, m: by_frame(
            k.flip(1), m.flip(1)
        ).flip(1),
        "nothing was weighed": lambda k, m: k.clone(),
    }
    examine(function, (keys, m), by_frame, mistakes, "What a patch says counts as much as its frame matters.")


def _cls_only(keys: torch.Tensor, n: int) -> torch.Tensor:
    out = torch.zeros_like(keys)
    out[:, ::n] = keys[:, ::n]
    return out
