"""What the notebooks' exercises call: each check is an assertion whose message names the mistake.

An answer that is still `...` is left open: the check says so and passes, so that a notebook runs from top to bottom before
its exercises are done. Any other answer is right, or raises AssertionError.
"""

from collections.abc import Callable

import torch

from uniadapter_edu.adapter import UniAdapter
from uniadapter_edu.config import UniAdapterConfig

# ------------------------------------------------------------------------------------------- 03, one bottleneck adapter


def bottleneck_count(count: Callable[[int, int], int]) -> None:
    """``count(D, r)``: the parameters of one bottleneck with its LayerNorm: 2Dr + r + 3D."""
    if _open(count(192, 8)):
        return
    D, r = 100, 7  # sizes at which no two mistakes give the same number
    given, right = count(D, r), 2 * D * r + r + 3 * D
    mistakes = {
        right - 2 * D: "the LayerNorm has a weight and a bias too, D numbers each",
        right - r: "the down-projection has a bias of r numbers",
        right - D: "the up-projection has a bias of D numbers",
        right - r - D: "both linear maps have a bias: r numbers after the down, D after the up",
        2 * D * r: "that is the two matrices alone, without biases and LayerNorm",
        D * D + D: "that is one full D x D map; a bottleneck has two thin ones",
    }
    assert given == right, f"count({D}, {r}) is {given}: {mistakes.get(given, f'expected {right}')}."
    _right("So the count grows with D · r, not with D · D.")


def identity_start(start: Callable[[UniAdapter], object]) -> None:
    """``start(adapter)`` sets an adapter so that it adds nothing at first, and can learn all the same."""
    adapter, h = (
        UniAdapter(6, UniAdapterConfig(bottleneck=3, modalities=("vision",), cross_reuses_text_up=False)),
        _h(6),
    )
    for p in adapter.parameters():
        torch.nn.init.uniform_(p, 0.5, 1.0)
    if _open(start(adapter)):
        return
    out = adapter.vision(h)
    assert (adapter.up["vision"].weight == 0).all(), "the weight of the up-projection is not zero at the start."
    assert (adapter.up["vision"].bias == 0).all(), "the bias of the up-projection is not zero: it is added as it is."
    assert (out == 0).all(), "the adapter still adds something."
    out.sum().backward()
    learns = adapter.up["vision"].weight.grad.abs().sum() > 0
    assert learns, (
        "z is zero as well, so the up-projection gets no gradient and would stay at zero: leave the down alone."
    )
    _right("It adds nothing, and the first step can already move the up-projection.")


def same_first_step(learning_rate: float, scale: float, other_rate: float, other_scale: float) -> None:
    """The learning rate with which ``scale`` makes as large a first step as ``other_scale`` does with ``other_rate``."""
    if _open(learning_rate):
        return
    effect, wanted = scale * learning_rate, other_scale * other_rate
    assert effect < 1.001 * wanted, f"scale x learning rate is {effect:.4g}, more than {wanted:.4g}: too large a step."
    assert effect > 0.999 * wanted, f"scale x learning rate is {effect:.4g}, less than {wanted:.4g}: too small a step."
    _right(f"Both products are {wanted:.4g}.")


# ------------------------------------------------------------------------------------------------- 06, weight sharing


def sharing_count(count: Callable[[int, int, int, int], int]) -> None:
    """``count(D, r, downs, ups)``: the parameters of one layer: 2D + downs · (Dr + r) + ups · (Dr + D)."""
    if _open(count(192, 8, 1, 3)):
        return
    D, r = 100, 7
    for downs, ups in ((1, 3), (3, 1), (3, 3)):
        right = 2 * D + downs * (D * r + r) + ups * (r * D + D)
        mistakes = {
            right - 2 * D: "the LayerNorm is missing, 2D numbers",
            right + 4 * D: "there is one LayerNorm for all branches, not three",
            right - downs * r: "each down-projection has a bias of r numbers",
            right - ups * D: "each up-projection has a bias of D numbers",
            right - downs * r - ups * D: "linear maps have biases: r numbers after a down, D after an up",
            right + (ups - downs) * (r - D): "the biases are exchanged: a down has r, an up D",
        }
        given = count(D, r, downs, ups)
        why = mistakes.get(given, f"expected {right}")
        assert given == right, f"count({D}, {r}, downs={downs}, ups={ups}) is {given}: {why}."
    _right("Each map that is shared by three saves two of it.")


def tied_downs(tie: Callable[[torch.nn.ModuleDict], object]) -> None:
    """``tie(branches)`` makes vision, text and cross use vision's down-projection, as one object."""
    names = ("vision", "text", "cross")
    parts = {name: {"down": torch.nn.Linear(4, 2), "up": torch.nn.Linear(2, 4)} for name in names}
    branches = torch.nn.ModuleDict({name: torch.nn.ModuleDict(part) for name, part in parts.items()})
    if _open(tie(branches)):
        return
    kept, shared = parts["vision"]["down"], branches["vision"].down
    assert shared is kept, "vision's down-projection was replaced; the others should take it over as it is."
    for name in ("text", "cross"):
        down = branches[name].down
        equal = torch.equal(down.weight, shared.weight)
        assert down is shared or not equal, f"{name}'s numbers are equal, but it is a copy: train one, and they part."
        assert down is shared, f"{name} still has a down-projection of its own."
        assert branches[name].up is parts[name]["up"], f"{name}'s up-projection was changed; only the down is shared."
    _right("vision.down is text.down is cross.down.")


def shared_gradient(gradient) -> None:
    """The gradient of the shared down-projection in the notebook's table, with c = (0, -3)."""
    if _open(gradient):
        return
    given = torch.as_tensor(gradient, dtype=torch.float).flatten().tolist()
    mistakes = {
        (4.0, 6.0): "for c, z is negative, so ReLU passes nothing on, and no gradient back",
        (4.0, 0.0): "for c, z is negative, so ReLU passes nothing on, and no gradient back",
        (4.0, 2.0): "that is the table's, with c = (0, 1)",
        (0.0, 0.0): "the cross branch gives nothing, but vision and text still do",
    }
    why = mistakes.get(tuple(given), "add the rows of vision and text to what is left of cross")
    assert given == [4.0, 3.0], f"{given} is not the gradient: {why}."
    _right("The cross branch is silent for this token, and leaves the gradient to the other two.")


# --------------------------------------------------------------------------------------------------- shared by all checks


def _open(answer) -> bool:
    """Whether an exercise has not been tried yet; says so."""
    if answer is ...:
        print("Not answered yet: put your answer in place of the dots and run this cell again.")
    return answer is ...


def _right(why: str) -> None:
    print(f"Right. {why}")


def _h(D: int) -> torch.Tensor:
    """Hidden states (B, T, D) without two equal numbers."""
    return torch.linspace(-1, 2, 2 * 3 * D).view(2, 3, D).sin()
