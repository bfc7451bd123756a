"""Assignment 3, weight sharing."""

from collections.abc import Callable

import torch
from torch import nn

from uniadapter_edu._answers import is_open, right
from uniadapter_edu.assignments._examine import CLOSE, numbers

BRANCHES = ("vision", "text", "cross")


def build(function: Callable) -> None:
    """``function(D, r, share)``: three branches with `down` and `up`, of which `share` says what they have in common."""
    for share in ("none", "down", "up", "all"):
        branches = function(5, 3, share)
        if is_open(branches):
            return
        _structure(branches, share)
        for part in ("down", "up"):
            _sharing([branches[name][part] for name in BRANCHES], share, part, share in (part, "all"))
        _counted(branches, share)
    right("Shared is one object, and counted once.")


def _structure(branches, share: str) -> None:
    assert isinstance(branches, nn.Module), (
        "it is no module: an optimizer would not find its parameters. Use nn.ModuleDict."
    )
    for name in BRANCHES:
        assert name in branches, f"the branch {name!r} is missing."
        for part, (rows, columns) in {"down": (3, 5), "up": (5, 3)}.items():
            assert part in branches[name], f"{name} has no {part!r}."
            shape = tuple(branches[name][part].weight.shape)
            exchanged = "D and r are exchanged: " if shape == (columns, rows) else ""
            assert shape == (rows, columns), (
                f"{exchanged}{name}'s {part} has a weight of {shape}, expected {(rows, columns)}."
            )


def _sharing(maps: list[nn.Module], share: str, part: str, wanted: bool) -> None:
    for kind in ("weight", "bias"):
        parameters = [getattr(m, kind) for m in maps]
        assert all(isinstance(p, nn.Parameter) for p in parameters), f"the {kind} of a {part} is no parameter any more."
        assert all(p.requires_grad for p in parameters), f"the {kind} of a {part} does not train."
        different = len({id(p) for p in parameters})
        equal = all(torch.equal(p, parameters[0]) for p in parameters)
        found = f'share="{share}": the {kind} of {part} is'
        if wanted:
            copied = ", with equal numbers: copies, which part at the first step" if equal else ""
            assert different == 1, f"{found} not shared: {different} parameters where one is expected{copied}."
        else:
            assert different == 3, f"{found} shared: {different} parameter(s) where three are expected."
            zero = equal and not parameters[0].any()
            assert zero or not equal, f"{found} the same numbers three times: each branch should start with its own."


def _counted(branches: nn.Module, share: str) -> None:
    downs, ups = (1 if share in (part, "all") else 3 for part in ("down", "up"))
    expected, given = downs * 18 + ups * 20, sum(p.numel() for p in branches.parameters())
    assert given == expected, (
        f'share="{share}": it has {given} parameters, expected {expected}: some are not registered.'
    )


def shared_gradient(function: Callable) -> None:
    """``function(hidden, W, ups, grads)``: dL/dW of a down-projection that three branches share."""
    hidden = [numbers(n, 4) + 0.1 * n for n in (2, 3, 5)]
    W, ups = numbers(3, 4).roll(1), [numbers(4, 3) * k for k in (1.0, -0.5, 2.0)]
    grads = [numbers(n, 4).flip(0) for n in (2, 3, 5)]
    given = function([h.clone() for h in hidden], W.clone(), list(ups), list(grads))
    if is_open(given):
        return

    def one(h, U, g, mask=True):
        z = h @ W.T
        dz = g @ U
        return (dz * (z > 0) if mask else dz).T @ h

    each = [one(*parts) for parts in zip(hidden, ups, grads)]
    expected = sum(each)
    mistakes = {
        "the gradients of the branches are averaged; they add up": expected / 3,
        "where ReLU gave zero, nothing comes back: the mask is missing": sum(
            one(*parts, mask=False) for parts in zip(hidden, ups, grads)
        ),
        "only the last branch is there: it replaces the sum": each[2],
        "only the first branch is there": each[0],
        "one branch is missing": each[0] + each[1],
        "all branches use the up-projection of the first": sum(one(h, ups[0], g) for h, g in zip(hidden, grads)),
        "the sign is wrong": -expected,
        "the gradient is divided by the number of tokens": sum(e / len(h) for e, h in zip(each, hidden)),
        "ReLU is applied to the gradient; its mask is where z > 0": sum(
            (g @ U).relu().T @ h for h, U, g in zip(hidden, ups, grads)
        ),
        "the value of z is used in place of its mask": sum(
            ((g @ U) * (h @ W.T).relu()).T @ h for h, U, g in zip(hidden, ups, grads)
        ),
    }
    assert isinstance(given, torch.Tensor), "it returns no tensor."
    assert given.shape != (4, 3), "it is transposed: the gradient of W has the shape of W, (r, D)."
    assert given.shape == (3, 4), (
        f"its shape is {tuple(given.shape)}; the gradient of W has the shape of W, (r, D) = (3, 4)."
    )
    why = next((w for w, wrong in mistakes.items() if torch.allclose(given, wrong, **CLOSE)), "these are other numbers")
    assert torch.allclose(given, expected, **CLOSE), f"{why}."
    kept = [h.clone() for h in hidden], W.clone()
    function(hidden, W, ups, grads)
    same = torch.equal(W, kept[1]) and all(torch.equal(a, b) for a, b in zip(hidden, kept[0]))
    assert same, "an input was changed in place."
    right("One weight, three users, and the sum of what they say.")


def widest(function: Callable) -> None:
    """``function(D, budget, downs, ups)``: the largest r with 2D + downs · (Dr + r) + ups · (rD + D) <= budget."""

    def right_width(D, budget, downs, ups):
        return max(0, (budget - 2 * D - ups * D) // (downs * (D + 1) + ups * D))

    mistakes = {
        "the biases of the ups are not counted, D numbers each": lambda D, b, d, u: (
            (b - 2 * D) // (d * (D + 1) + u * D)
        ),
        "the LayerNorm is not counted, 2D numbers": lambda D, b, d, u: (b - u * D) // (d * (D + 1) + u * D),
        "LayerNorm and the biases of the ups are not counted": lambda D, b, d, u: b // (d * (D + 1) + u * D),
        "there is one LayerNorm for all branches": lambda D, b, d, u: (b - 6 * D - u * D) // (d * (D + 1) + u * D),
        "the bias of a down is not counted, r numbers": lambda D, b, d, u: (b - 2 * D - u * D) // (d * D + u * D),
        "downs and ups are exchanged": lambda D, b, d, u: (b - 2 * D - d * D) // (u * (D + 1) + d * D),
        "the numbers of downs and ups are not used": lambda D, b, d, u: (b - 3 * D) // (2 * D + 1),
    }
    # From a budget that is just used up to one that just does not allow one more: no two mistakes agree on all of them.
    sizes = [(10, 1, 3, 20), (10, 3, 3, 12), (16, 3, 1, 27), (5, 1, 3, 31), (4, 3, 1, 40)]
    calls = []
    for D, downs, ups, r in sizes:
        size, step = 2 * D + downs * (D * r + r) + ups * (r * D + D), downs * (D + 1) + ups * D
        calls += [(D, size + k * (step - 1) // 7, downs, ups) for k in range(8)]
    given = [function(*call) for call in calls]
    if is_open(given[0]):
        return
    for call, width in zip(calls, given):
        expected = right_width(*call)
        assert type(width) is int, f"a width is a whole number, and not {type(width).__name__}."
        if width == expected:
            continue
        why = next((w for w, wrong in mistakes.items() if given == [wrong(*c) for c in calls]), None)
        bounds = "that is wider than the budget allows" if width > expected else "more fits: the budget may be used up"
        raise AssertionError(f"widest{call} is {width}: {why or bounds}.")
    assert function(10, 0, 1, 3) == 0, "where not even r = 1 fits, the answer is 0."
    right("At one budget, sharing affords a wider bottleneck.")
