"""Assignment 1, the bottleneck adapter."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import layer_norm as torch_layer_norm
from torch.nn.functional import relu

from uniadapter_edu._answers import is_open, right
from uniadapter_edu.assignments._examine import examine, filled, numbers


def layer_norm(function: Callable) -> None:
    """``function(h, weight, bias, eps)``: LN over the last axis of h."""
    h, weight, bias, eps = numbers(2, 3, 5) * 2 + 1, numbers(5) + 2, numbers(5) - 1, 0.5

    def normalised(h, axis=-1, correction=0, centre=True):
        mean = h.mean(axis, keepdim=True) if centre else 0
        return (h - mean) / (h.var(axis, keepdim=True, correction=correction) + eps).sqrt()

    mistakes = {
        "the variance is divided by D - 1; LayerNorm divides by D": lambda h, w, b, e: (
            normalised(h, correction=1) * w + b
        ),
        "eps stands outside of the root": lambda h, w, b, e: (
            (h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True, correction=0) + e) * w + b
        ),
        "eps is missing, or is not the one that is given": lambda h, w, b, e: torch_layer_norm(h, (5,), w, b, 0.0),
        "the root is missing: it divides by the variance": lambda h, w, b, e: (
            (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, correction=0) + e) * w + b
        ),
        "mean and variance are taken over the tokens, not over the D numbers of each": lambda h, w, b, e: (
            normalised(h, 1) * w + b
        ),
        "mean and variance are taken over all numbers together": lambda h, w, b, e: (
            (h - h.mean()) / (h.var(correction=0) + e).sqrt() * w + b
        ),
        "the mean is not subtracted": lambda h, w, b, e: normalised(h, centre=False) * w + b,
        "the weight is missing": lambda h, w, b, e: normalised(h) + b,
        "the bias is missing": lambda h, w, b, e: normalised(h) * w,
        "the bias is multiplied by the weight": lambda h, w, b, e: (normalised(h) + b) * w,
    }
    expected = lambda h, weight, bias, eps: torch_layer_norm(h, h.shape[-1:], weight, bias, eps)
    examine(function, (h, weight, bias, eps), expected, mistakes, "Every token is brought to one size by itself.")


def adapter(function: Callable) -> None:
    """``function(h, norm, down, up, s)``: s · ( W_up ReLU( W_down LN(h) + b_down ) + b_up )."""
    norm, down, up = filled(nn.LayerNorm(6), 0.5), filled(nn.Linear(6, 4)), filled(nn.Linear(4, 6), 0.3)

    def expected(h, norm, down, up, s):
        return s * up(relu(down(norm(h))))

    mistakes = {
        "the ReLU is missing": lambda h, norm, down, up, s: s * up(down(norm(h))),
        "the ReLU stands behind the up-projection; it belongs between the two": lambda h, norm, down, up, s: (
            s * relu(up(down(norm(h))))
        ),
        "there is a second ReLU behind the up-projection": lambda h, norm, down, up, s: (
            s * relu(up(relu(down(norm(h)))))
        ),
        "the ReLU stands before the down-projection": lambda h, norm, down, up, s: s * up(down(relu(norm(h)))),
        "the activation is another one: expected ReLU": lambda h, norm, down, up, s: (
            s * up(nn.functional.gelu(down(norm(h))))
        ),
        "the LayerNorm is skipped": lambda h, norm, down, up, s: s * up(relu(down(h))),
        "the LayerNorm's own weight and bias are not used": lambda h, norm, down, up, s: (
            s * up(relu(down(torch_layer_norm(h, (6,)))))
        ),
        "the scale is missing": lambda h, norm, down, up, s: up(relu(down(norm(h)))),
        "the scale is applied twice": lambda h, norm, down, up, s: s * s * up(relu(down(norm(h)))),
        "the scale must multiply the bias of the up-projection, too": lambda h, norm, down, up, s: up(
            s * relu(down(norm(h)))
        ),
        "the bias of the up-projection is missing": lambda h, norm, down, up, s: (
            s * (relu(down(norm(h))) @ up.weight.T)
        ),
        "the bias of the down-projection is missing": lambda h, norm, down, up, s: (
            s * up(relu(norm(h) @ down.weight.T))
        ),
        "the residual is added: A(h) is only what is added to the layer": lambda h, norm, down, up, s: (
            h + expected(h, norm, down, up, s)
        ),
        "the residual is added, and twice": lambda h, norm, down, up, s: 2 * h + expected(h, norm, down, up, s),
    }
    praise = "Ten lines would have been enough; so are three."
    examine(function, (numbers(2, 3, 6), norm, down, up, 0.4), expected, mistakes, praise)


def start(function: Callable) -> None:
    """``function(norm, down, up)`` sets the adapter so that it adds nothing at first, and can learn all the same."""
    norm, down, up = filled(nn.LayerNorm(6), 2), filled(nn.Linear(6, 4), 0.2), filled(nn.Linear(4, 6), 0.3)
    parts = {"norm": norm, "down": down, "up": up}
    before = {name: [(p, p.detach().clone()) for p in part.parameters()] for name, part in parts.items()}
    if is_open(function(norm, down, up)):
        return
    h, after = numbers(2, 3, 6), {name: list(part.parameters()) for name, part in parts.items()}
    for name in parts:
        assert all(p.requires_grad for p in after[name]), f"`{name}` is frozen now, and could not learn."
        same = [p is q for p, (q, _) in zip(after[name], before[name])]
        assert all(same), f"`{name}` got new parameters: an optimizer that knows the old ones would train those."
    assert (up.weight == 0).all(), "the weight of `up` is not zero."
    assert (up.bias == 0).all(), "the bias of `up` is not zero: it is added whatever z is."
    for name, why in (("down", "z would be another, or zero"), ("norm", "what `down` reads would be another, or zero")):
        same = [torch.equal(p, old) for p, (_, old) in zip(after[name], before[name])]
        assert all(same), f"`{name}` was changed: {why}. To add nothing, `up` is enough."
    up(relu(down(norm(h)))).sum().backward()
    assert up.weight.grad.abs().sum() > 0, "no gradient reaches `up`: it would stay at zero."
    right("It adds nothing, and its first step can already move `up`.")
