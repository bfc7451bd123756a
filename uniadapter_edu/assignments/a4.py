"""Assignment 4, the cross-modal branch and the query residual."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import relu

from uniadapter_edu.assignments._examine import examine, filled, numbers


def cross_branch(function: Callable) -> None:
    """``function(h, norm, down, up_cross, up_text, s, norm_cross=None)``: s · LN_x( W_cross z + b_cross + W_text z + b_text )."""
    parts = (
        filled(nn.LayerNorm(6), 0.5),
        filled(nn.Linear(6, 4)),
        filled(nn.Linear(4, 6), 0.3),
        filled(nn.Linear(4, 6), -0.2),
    )
    norm_cross = filled(nn.LayerNorm(6), 1.2)

    def last(norm_cross):
        return norm_cross or nn.Identity()

    def expected(h, norm, down, cross, text, s, norm_cross):
        z = relu(down(norm(h)))
        return s * last(norm_cross)(cross(z) + text(z))

    def variant(formula):
        """`formula(z, cross, text, s, LN)` as a function of what the exercise is called with."""
        return lambda h, norm, down, cross, text, s, x: formula(relu(down(norm(h))), cross, text, s, last(x))

    mistakes = {
        "the text up-projection is missing": variant(lambda z, c, t, s, n: s * n(c(z))),
        "the cross branch's own up-projection is missing": variant(lambda z, c, t, s, n: s * n(t(z))),
        "the own up-projection is added twice, the text's not at all": variant(
            lambda z, c, t, s, n: s * n(c(z) + c(z))
        ),
        "the bias of the text up-projection is missing": variant(lambda z, c, t, s, n: s * n(c(z) + z @ t.weight.T)),
        "the bias of the own up-projection is missing": variant(lambda z, c, t, s, n: s * n(t(z) + z @ c.weight.T)),
        "LN_x is skipped": variant(lambda z, c, t, s, n: s * (c(z) + t(z))),
        "LN_x normalises each part by itself; it belongs around the sum": variant(
            lambda z, c, t, s, n: s * (n(c(z)) + n(t(z)))
        ),
        "LN_x normalises only the own part": variant(lambda z, c, t, s, n: s * (n(c(z)) + t(z))),
        "LN_x normalises only the text's part": variant(lambda z, c, t, s, n: s * (c(z) + n(t(z)))),
        "the scale is inside of LN_x, which undoes it": variant(lambda z, c, t, s, n: n(s * (c(z) + t(z)))),
        "the scale is missing": variant(lambda z, c, t, s, n: n(c(z) + t(z))),
        "the scale multiplies only the own part": variant(lambda z, c, t, s, n: s * c(z) + t(z)),
        "there is a ReLU behind the sum": variant(lambda z, c, t, s, n: s * n(relu(c(z) + t(z)))),
        "the ReLU between down and up is missing": lambda h, norm, down, c, t, s, x: (
            s * last(x)(c(down(norm(h))) + t(down(norm(h))))
        ),
        "the LayerNorm before the down-projection is skipped": lambda h, norm, down, c, t, s, x: (
            s * last(x)(c(relu(down(h))) + t(relu(down(h))))
        ),
        "the input is added: A(h) is only what is added": lambda *a: a[0] + expected(*a),
        "the ups share nothing: the mean is taken, expected the sum": variant(
            lambda z, c, t, s, n: s * n((c(z) + t(z)) / 2)
        ),
    }
    for x, praise in ((None, "without LN_x."), (norm_cross, "and with it.")):
        examine(function, (numbers(2, 3, 6), *parts, 0.4, x), expected, mistakes, praise)


class Parts:
    """What a multimodal layer is made of, as the assignment describes it: five functions."""

    def __init__(self, D: int):
        self.attend, self.look, self.feed, self.text, self.cross = (filled(nn.Linear(D, D), 0.2 * i) for i in range(5))

    def arguments(self, x: torch.Tensor, e: torch.Tensor | None) -> tuple:
        return x, e, self.self_attention, self.cross_attention, self.feed_forward, self.A_text, self.A_cross

    def self_attention(self, x):
        return torch.tanh(x + self.attend(x))

    def cross_attention(self, a, e):
        return torch.tanh(a + self.look(e).mean(-2, keepdim=True))

    def feed_forward(self, c):
        return torch.tanh(c + self.feed(c))

    def A_text(self, h):
        return torch.relu(self.text(h))

    def A_cross(self, h):
        return torch.relu(self.cross(h)) * 0.7


def multimodal_layer(function: Callable) -> None:
    """``function(x, e, self_attention, cross_attention, feed_forward, A_text, A_cross)``: FFN(c) + A_text(a) + A_cross(c)."""

    def variant(formula):
        def layer(x, e, attend, look, feed, text, cross):
            a = attend(x)
            return formula(x, a, look(a, e), feed, text, cross)

        return layer

    mistakes = {
        "the query residual reads c; it has to read a, from before cross-attention": lambda x, a, c, f, t, k: (
            f(c) + t(c) + k(c)
        ),
        "the query residual is missing": lambda x, a, c, f, t, k: f(c) + k(c),
        "the cross branch is missing": lambda x, a, c, f, t, k: f(c) + t(a),
        "the cross branch reads a; it has to read c, what was found in the picture": lambda x, a, c, f, t, k: (
            f(c) + t(a) + k(a)
        ),
        "A_text and A_cross are exchanged": lambda x, a, c, f, t, k: f(c) + t(c) + k(a),
        "A_text reads x, from before self-attention": lambda x, a, c, f, t, k: f(c) + t(x) + k(c),
        "the adapters are added before the feed-forward part; they go behind it": lambda x, a, c, f, t, k: f(
            c + t(a) + k(c)
        ),
        "A_text is added before the feed-forward part": lambda x, a, c, f, t, k: f(c + t(a)) + k(c),
        "A_cross is added before the feed-forward part": lambda x, a, c, f, t, k: f(c + k(c)) + t(a),
        "the adapters read what the feed-forward part gives": lambda x, a, c, f, t, k: f(c) + t(a) + k(f(c)),
        "the residual is added twice: feed_forward has its own": lambda x, a, c, f, t, k: c + f(c) + t(a) + k(c),
        "the feed-forward part reads a": lambda x, a, c, f, t, k: f(a) + t(a) + k(c),
        "the feed-forward part is missing": lambda x, a, c, f, t, k: c + t(a) + k(c),
        "the query residual is added twice": lambda x, a, c, f, t, k: f(c) + 2 * t(a) + k(c),
    }
    right = variant(lambda x, a, c, f, t, k: f(c) + t(a) + k(c))
    arguments = Parts(6).arguments(numbers(2, 3, 6), numbers(2, 5, 6).roll(2))
    known = {why: variant(formula) for why, formula in mistakes.items()}
    examine(
        _float_again(function),
        arguments,
        right,
        known,
        "The words ask, the picture answers, and both adapters are heard.",
    )


def text_only(function: Callable) -> None:
    """The same function with ``e = None``: FFN(a) + A_text(a)."""

    def right(x, e, attend, look, feed, text, cross):
        a = attend(x)
        return feed(a) + text(a)

    def variant(formula):
        return lambda x, e, attend, look, feed, text, cross: formula(x, attend(x), feed, text, cross)

    mistakes = {
        "the cross branch is there; without a picture it is not": variant(lambda x, a, f, t, k: f(a) + t(a) + k(a)),
        "the text adapter is missing": variant(lambda x, a, f, t, k: f(a)),
        "the text adapter reads x, from before self-attention": variant(lambda x, a, f, t, k: f(a) + t(x)),
        "the text adapter is added before the feed-forward part": variant(lambda x, a, f, t, k: f(a + t(a))),
        "the cross adapter is used in place of the text adapter": variant(lambda x, a, f, t, k: f(a) + k(a)),
        "self-attention is skipped": lambda x, e, attend, look, feed, text, cross: feed(x) + text(x),
        "the residual is added twice: feed_forward has its own": variant(lambda x, a, f, t, k: a + f(a) + t(a)),
        "the feed-forward part is missing": variant(lambda x, a, f, t, k: a + t(a)),
    }
    arguments = Parts(6).arguments(numbers(2, 3, 6), None)
    examine(_float_again(function), arguments, right, mistakes, "Without a picture, only the text adapter speaks.")


def _float_again(function: Callable) -> Callable:
    """The layer's parts are functions with float32 weights of their own, whatever dtype comes in."""

    def layer(x, e, *parts):
        given = function(x.float(), None if e is None else e.float(), *parts)
        return given.to(x.dtype) if isinstance(given, torch.Tensor) else given

    return layer
