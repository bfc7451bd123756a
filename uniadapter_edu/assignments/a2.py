"""Assignment 2: freeze, insert, and count."""

from collections.abc import Callable

import torch
from torch import nn

from uniadapter_edu._answers import is_open, right
from uniadapter_edu.assignments._examine import filled, numbers


class _Stack(nn.Module):
    """A model as the assignment describes it: ``blocks``, called one after the other."""

    def __init__(self, *blocks: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def freeze(function: Callable) -> None:
    """``function(model)`` freezes every parameter, changes nothing else, and returns the model."""
    # Names that tell nothing: a LayerNorm called `head_m`, a parameter of the model's own, one layer inside another.
    inner = nn.Sequential(filled(nn.Linear(4, 4)), nn.BatchNorm1d(4))
    model = nn.Sequential()
    for name, module in {
        "first": filled(nn.Linear(4, 4)),
        "head_m": filled(nn.LayerNorm(4), 1),
        "inner": inner,
    }.items():
        model.add_module(name, module)
    model.gate = nn.Parameter(numbers(1))
    before = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    modes = [m.training for m in model.modules()]
    given = function(model)
    if is_open(given):
        return
    kept = dict(model.named_parameters())
    assert set(kept) == set(before) and all(kept[n] is p for n, (p, _) in before.items()), (
        "parameters were replaced or taken out; freeze those that are there."
    )
    trains = [name for name, p in kept.items() if p.requires_grad]
    assert len(trains) < len(kept), "nothing is frozen."
    why = {
        "gate": "`gate` still trains: it belongs to the model itself, and to none of its children",
        "head_m.weight": "a LayerNorm still trains: choose by what it is, not by its name",
        "inner.0.weight": "a layer inside another one still trains",
    }
    assert not trains, f"{next((w for n, w in why.items() if n in trains), f'{trains[0]} still trains')}."
    assert all(torch.equal(kept[n], old) for n, (_, old) in before.items()), "the numbers changed; freezing keeps them."
    assert [m.training for m in model.modules()] == modes, (
        "train() or eval() was called: that is about dropout, not gradients."
    )
    assert given is model, "it does not return the model that it was given."
    x = numbers(3, 4).requires_grad_()
    assert model(x).requires_grad, "no gradient passes through the model any more: frozen is not detached."
    right("Frozen, and gradients pass through.")


def insert(function: Callable) -> None:
    """``function(model, adapters)``: block k gives block(x) + adapter(x); returns a function that takes it back."""
    blocks, adapters = [[filled(nn.Linear(3, 3), i + shift) for i in range(3)] for shift in (0, 5)]
    x, model = numbers(2, 3), _Stack(*blocks)
    frozen = model(x)
    remove = function(model, adapters)
    if is_open(remove):
        return

    def run(step):
        h = x
        for k in range(3):
            h = step(k, h)
        return h

    mistakes = {
        "every block has the last adapter: a function made in a loop looks up `k` when it is called": lambda k, h: (
            blocks[k](h) + adapters[-1](h)
        ),
        "every block has the first adapter": lambda k, h: blocks[k](h) + adapters[0](h),
        "the adapter reads what the block gives out; it has to read what goes in": lambda k, h: (
            blocks[k](h) + adapters[k](blocks[k](h))
        ),
        "the block's own output is lost: add to it": lambda k, h: adapters[k](h),
        "the input is added as well: the residual is the block's own business": lambda k, h: (
            blocks[k](h) + h + adapters[k](h)
        ),
        "only the first block has its adapter": lambda k, h: blocks[k](h) + (adapters[k](h) if k == 0 else 0),
        "nothing was inserted": lambda k, h: blocks[k](h),
    }
    plain = [nn.Linear(3, 3) for _ in blocks]  # blocks may be wrapped now: compute with their numbers
    for layer, block in zip(plain, _linears(model, adapters)):
        layer.load_state_dict(block)
    blocks = plain
    given, expected = model(x), run(lambda k, h: blocks[k](h) + adapters[k](h))
    close = [why for why, step in mistakes.items() if torch.allclose(given, run(step), atol=1e-5)]
    assert torch.allclose(given, expected, atol=1e-5), f"{close[0] if close else 'the model gives other numbers'}."
    given.sum().backward()
    assert all(a.weight.grad is not None for a in adapters), (
        "no gradient reaches the adapters: what they add is detached."
    )
    _keeps_its_input(function)
    assert callable(remove), "it has to return a function that takes the adapters out again."
    remove()
    assert torch.equal(model(x), frozen), "after remove() the model is not the old one."
    right("In, and out again without a trace.")


def _linears(model: nn.Module, adapters: list) -> list[dict]:
    """The numbers of the blocks' own layers, however they were wrapped."""
    strangers = {id(p) for a in adapters for p in a.parameters()}
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) not in strangers]
    return [layer.state_dict() for layer in layers]


def _keeps_its_input(function: Callable) -> None:
    model, x = _Stack(nn.Identity()), numbers(2, 3)
    before = x.clone()
    function(model, [filled(nn.Linear(3, 3))])
    model(x)
    assert torch.equal(x, before), (
        "the block's output is changed in place, and where a block gives back its input, that is the input."
    )


def count(function: Callable) -> None:
    """``function(backbone, adapters)``: how many parameters train, and that in percent of the backbone's."""
    backbone = nn.Sequential(nn.Linear(7, 7), nn.BatchNorm1d(7)).requires_grad_(False)  # 56 + 14, and 15 in buffers
    down, unused = nn.Linear(7, 2), nn.Linear(2, 11).requires_grad_(False)  # 16; 33
    branches = [nn.ModuleDict({"down": down, "up": nn.Linear(2, 7)}) for _ in range(3)]  # 3 x 21
    adapters = nn.ModuleList([*branches, unused])
    given = function(backbone, adapters)
    if is_open(given):
        return
    assert isinstance(given, tuple) and len(given) == 2, "return two things: a number of parameters, and a percentage."
    trainable, percent = given
    mistakes = {
        16 * 3 + 63: "the shared down-projection is counted three times",
        16 + 63 + 33: "frozen parameters of the adapters are counted",
        16 * 3 + 63 + 33: "frozen parameters are counted, and shared ones several times",
        16 + 63 + 33 + 70: "all parameters are counted; only those that train are asked for",
        8: "these are tensors; each holds many parameters",
        14 + 3 * 14: "biases are parameters, too",
        70: "these are the backbone's",
        0: "those that train are in the adapters",
    }
    why = mistakes.get(int(trainable), "expected 79: 16 in the shared down-projection and 21 in each of three ups")
    assert int(trainable) == 79, f"it counts {trainable}: {why}."
    wrong = {
        79 / 70: "that is a part; times 100 it is percent",
        100 * 79 / (70 + 79): "that is of all parameters; expected of the backbone's",
        100 * 79 / (70 + 79 + 33): "that is of all parameters; expected of the backbone's",
        100 * 79 / (70 + 15): "buffers are no parameters",
        100 * 70 / 79: "that is upside down",
        112.0: "it was rounded off",
        113.0: "it was rounded off",
    }
    why = next((w for value, w in wrong.items() if abs(percent - value) < 1e-6), "expected 100 · 79 / 70")
    assert abs(percent - 100 * 79 / 70) < 1e-6, f"it gives {percent:.4g} percent: {why}."
    right("Each parameter once, in percent of the backbone's.")
