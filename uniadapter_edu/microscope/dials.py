"""Dials of inserted adapters: turn the scale, switch branches, layers and heads off, for a while."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from uniadapter_edu.adapter import Heads, UniAdapter
from uniadapter_edu.config import MODALITIES
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.tasks.retrieval import blip_of


@dataclass(frozen=True)
class Dials:
    """How the adapters of a model are set; the defaults leave them as they were trained.

    scale: a factor of the trained scale s. branches: those that may speak; the text up goes on serving A_cross where
    that reuses it. layers: those whose adapters may speak, None for all. query_residual: A_text(a) in the multimodal
    layers. heads: whether the trained copies of the heads answer, or the originals.
    """

    scale: float = 1.0
    branches: tuple[str, ...] = MODALITIES
    layers: tuple[int, ...] | None = None
    query_residual: bool = True
    heads: bool = True

    def __post_init__(self):
        if not (isinstance(self.scale, (int, float)) and 0 <= self.scale < math.inf):
            raise UniAdapterError(f"scale is {self.scale!r}, expected a factor of 0 or more.", "1 is as trained.")
        if unknown := sorted(set(self.branches) - set(MODALITIES)):
            raise UniAdapterError(
                f"branches names {', '.join(unknown)}.", f"Choose among {', '.join(MODALITIES)}, or none of them."
            )


@contextmanager
def dialled(model: nn.Module, dials: Dials) -> Iterator[nn.Module]:
    """Inside, the active adapters of ``model`` are set as ``dials`` says; afterwards they are as before, bit for bit.

    A branch or a residual that the config leaves out stays out; key/value adapters, where there are some, stay in. With
    scale 0 and heads off the model answers as its frozen backbone. Raises `UniAdapterError` if nothing is inserted, or
    for a layer that there is not.
    """
    blip = blip_of(model)
    if not hasattr(blip, "uniadapter"):
        raise UniAdapterError("No adapters are inserted in this model.", "Call insert_adapters(model) first.")
    adapters = blip.uniadapter
    speaking = range(len(adapters.layers)) if dials.layers is None else dials.layers
    if unknown := sorted(set(speaking) - set(range(len(adapters.layers)))):
        raise UniAdapterError(f"There is no layer {unknown[0]}.", f"Layers are 0 to {len(adapters.layers) - 1}.")
    with ExitStack() as stack:
        for index, layer in enumerate(adapters.layers):
            branches = tuple(name for name in layer.branches if name in dials.branches and index in speaking)
            residual = layer.config.query_residual and dials.query_residual
            stack.enter_context(
                _setting(layer, branches=branches, config=replace(layer.config, query_residual=residual))
            )
            stack.enter_context(_scaled(layer, dials.scale))
        if not dials.heads:
            stack.enter_context(_setting(adapters, heads=Heads({})))
        yield model


@contextmanager
def _setting(module: nn.Module, **values):
    """Set attributes of a module, submodules among them, for a while."""
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


@contextmanager
def _scaled(layer: UniAdapter, factor: float):
    if not isinstance(layer.scale, nn.Parameter):
        with _setting(layer, scale=factor * layer.scale):
            yield
        return
    trained = layer.scale.detach().clone()  # a quotient would not give the same bits
    with torch.no_grad():
        layer.scale.mul_(factor)
    try:
        yield
    finally:
        with torch.no_grad():
            layer.scale.copy_(trained)
