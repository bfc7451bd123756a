"""The trained adapters that ship with the package, to be looked at without training anything first."""

import torch
from torch import nn

from uniadapter_edu._files import data_path
from uniadapter_edu.backbones import abridged, load_backbone
from uniadapter_edu.checkpoint import load_adapters
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import insert_adapters

# Quickstart's bottleneck and scale. The two differ in nothing but the downs: one a layer, or one a branch.
SPECIMENS = {
    "shared": UniAdapterConfig.paper(bottleneck=32, scale=4.0),
    "unshared": UniAdapterConfig.paper(bottleneck=32, scale=4.0, share="none"),
}


def load_specimen(name: str = "shared", trained: bool = True) -> nn.Module:
    """The embedded backbone with the adapters of that name, in eval mode: trained for quickstart's task, or as they
    were before training (ups at zero, random downs; the model answers as the frozen one, bit for bit).

    `data/train_specimens.py` made them, with one seed; `data_path("microscope", "scores.json")` says what they reach.
    Raises `UniAdapterError` for another name.
    """
    if name not in SPECIMENS:
        raise UniAdapterError(f"There is no specimen {name!r}.", f"Choose one of {abridged(list(SPECIMENS))}.")
    model = load_backbone()
    if trained:
        return load_adapters(model, data_path("microscope", name)).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the seed that training began with
        return insert_adapters(model, SPECIMENS[name]).eval()
