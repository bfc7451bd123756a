"""What each branch of the adapters reads, which of its units fire, and what it adds, in a model's own passes.

One listener a layer, on LN_in, which every branch calls first, hears the states h that are read. All else follows from
these by the adapter's own functions: the units z(h), and A(h) with its parts. Listeners are gone when a pass is over.

B examples, T tokens (patches with CLS, or words), D width, r units.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from uniadapter_edu.adapter import UniAdapter
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import active_config
from uniadapter_edu.tasks.retrieval import (
    _evaluating,
    blip_of,
    encode_images,
    encode_texts,
    match,
    normalize,
    preprocess,
    tokenize,
)

# Where branches speak: a picture alone, a sentence alone, and two in the pass in which a sentence looks at a picture.
PLACES = ("vision", "text", "query residual", "cross")
_BRANCH = {"query residual": "text"}  # the branch that speaks at a place, where their names differ


@dataclass(frozen=True)
class Reading:
    """What one branch did in one layer. h (B, T, D): what it read. z (B, T, r): its units, after ReLU. parts: name ->
    (B, T, D), what it added; the parts sum to A(h). Only the place "cross" has two, what its own up-projection and what
    the reused text up add."""

    h: Tensor
    z: Tensor
    parts: dict[str, Tensor]

    @property
    def added(self) -> Tensor:
        """A(h), (B, T, D)."""
        return sum(self.parts.values())

    def share(self, part: str | None = None) -> Tensor:
        """How large what is added is beside the stream: |A(h)| / |h|, (B, T); of one part if it is named."""
        return (self.added if part is None else self.parts[part]).norm(dim=-1) / self.h.norm(dim=-1)


@dataclass(frozen=True)
class Recording:
    """All that the adapters did with some pictures and sentences. readings: (place, layer) -> `Reading`; places are
    those of `PLACES`. mask (B, T): where sentences have tokens; tokens: these, in words, [CLS] first."""

    readings: dict[tuple[str, int], Reading]
    mask: Tensor
    tokens: list[list[str]]

    def layers(self, place: str) -> list[int]:
        return [layer for name, layer in self.readings if name == place]

    def valid(self, place: str, layer: int, values: Tensor) -> Tensor:
        """The entries of ``values`` (B, T, ...) that stand for patches or for tokens and not for padding: (M, ...)."""
        return values.flatten(0, 1) if place == "vision" else values[self.mask.bool()]


def record(model: nn.Module, processor, images: Sequence, texts: Sequence[str]) -> Recording:
    """Run B pictures and B sentences through ``model``, each alone and then picture i with sentence i, and note what
    the adapters did. The model is left as it was, in train mode or eval.

    Raises `UniAdapterError` if no adapters are at work in it, or if pictures and sentences are not as many.
    """
    if active_config(model) is None:
        raise UniAdapterError(
            "No adapters are at work in this model: there is nothing to record.",
            "insert_adapters or load_adapters first, and record outside of adapters_disabled.",
        )
    if len(images) != len(texts) or not len(images):
        raise UniAdapterError(
            f"{len(images)} pictures and {len(texts)} sentences were given, expected as many of each, at least one.",
            "Give each picture the sentence that it is to be looked at with.",
        )
    device = next(model.parameters()).device
    pixels = normalize(processor, preprocess(processor, list(images))).to(device)
    input_ids, mask = (x.to(device) for x in tokenize(processor, texts))
    readings = {}
    with _evaluating(model):
        with _listening(model) as heard:
            image_tokens, _ = encode_images(model, pixels)
        readings |= _readings(model, heard, ("vision",))
        with _listening(model) as heard:
            encode_texts(model, input_ids, mask)
        readings |= _readings(model, heard, ("text",))
        with _listening(model) as heard:
            match(model, image_tokens, input_ids[:, None], mask[:, None])
        readings |= _readings(model, heard, ("query residual", "cross"))
    words = [
        processor.tokenizer.convert_ids_to_tokens(row[: int(n)]) for row, n in zip(input_ids.tolist(), mask.sum(1))
    ]
    return Recording(readings, mask, words)


@contextmanager
def _listening(model: nn.Module) -> Iterator[list[tuple[int, Tensor]]]:
    """Inside, (layer, h) is noted whenever an adapter reads a state, in that order."""
    heard = []
    handles = [
        layer.norm_in.register_forward_pre_hook(lambda norm, args, index=index: heard.append((index, args[0])))
        for index, layer in enumerate(blip_of(model).uniadapter.layers)
    ]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _readings(
    model: nn.Module, heard: list[tuple[int, Tensor]], places: tuple[str, ...]
) -> dict[tuple[str, int], Reading]:
    """What was heard in a pass in which branches are called at these places, in this order in each layer."""
    layers, states = blip_of(model).uniadapter.layers, {}
    for index, h in heard:
        states.setdefault(index, []).append(h)
    return {
        (place, index): _reading(layers[index], place, h)
        for index, own in states.items()
        for place, h in zip([p for p in places if _speaks(layers[index], p)], own, strict=True)
    }


def _speaks(layer: UniAdapter, place: str) -> bool:
    """Whether this layer's adapter is called at a place of its tower."""
    if place == "query residual" and not layer.config.query_residual:
        return False
    return _BRANCH.get(place, place) in layer.branches


def _reading(layer: UniAdapter, place: str, h: Tensor) -> Reading:
    branch = _BRANCH.get(place, place)
    added, z = getattr(layer, branch)(h), layer.bottleneck(h, branch)
    if branch != "cross" or not layer.config.cross_reuses_text_up:
        return Reading(h, z, {place: added})
    text = _text_part(layer, z)
    return Reading(h, z, {"cross part": added - text, "text part": text})


def _text_part(layer: UniAdapter, z: Tensor) -> Tensor:
    """What the text up adds to A_cross: s · (W_text z + b_text); behind LN_x, what LN_x makes of it.

    LN_x(v) = g · (v - mean v) / sqrt(var v + eps) + b is a sum over the parts of v once the root is known; b counts as
    the cross branch's own.
    """
    text = layer.up["text"](z)
    if layer.config.cross_norm:
        v, norm = text + layer.up["cross"](z), layer.norm_cross
        root = (v.var(dim=-1, keepdim=True, unbiased=False) + norm.eps).sqrt()
        text = norm.weight * (text - text.mean(dim=-1, keepdim=True)) / root
    return layer.scale * text


# ------------------------------------------------------------------------------------------------------------- units


def sparsity(recording: Recording) -> dict[str, list[float]]:
    """For each place, the part of units that fire for a token, layer by layer: 1 is all of them for every token."""
    return {
        place: [
            (recording.valid(place, layer, recording.readings[place, layer].z) > 0).double().mean().item()
            for layer in recording.layers(place)
        ]
        for place in PLACES
        if recording.layers(place)
    }


def silent_units(recording: Recording, layer: int) -> int:
    """How many units of a layer never fire, for no patch and no token, in none of the passes."""
    fires = [
        (recording.valid(place, layer, reading.z) > 0).any(0)
        for (place, index), reading in recording.readings.items()
        if index == layer
    ]
    return int((~torch.stack(fires).any(0)).sum())


def exciting_patches(recording: Recording, layer: int, unit: int, n: int = 6) -> list[tuple[int, int, float]]:
    """The ``n`` pictures that excite a unit most: (example, patch, z), the strongest first. Patches count from 0; CLS,
    which is no place in the picture, is left out."""
    z = _units(recording, "vision", layer, unit)[:, 1:, unit]  # (B, N - 1)
    strongest, patches = z.max(dim=1)
    order = strongest.argsort(descending=True)[:n].tolist()
    return [(i, int(patches[i]), float(strongest[i])) for i in order]


def exciting_words(recording: Recording, layer: int, unit: int, n: int = 8) -> list[tuple[str, float]]:
    """The ``n`` tokens that excite a unit most in the text pass: (token, mean z over where it stands), strongest
    first."""
    z, found = _units(recording, "text", layer, unit), {}
    for row, tokens in enumerate(recording.tokens):
        for place, token in enumerate(tokens):
            found.setdefault(token, []).append(float(z[row, place, unit]))
    means = {token: sum(values) / len(values) for token, values in found.items() if not token.startswith("[")}
    return sorted(means.items(), key=lambda item: -item[1])[:n]


def _units(recording: Recording, place: str, layer: int, unit: int) -> Tensor:
    reading = recording.readings.get((place, layer))
    if reading is None:
        raise UniAdapterError(
            f"Layer {layer} has no {place} branch.", f"Layers that have one: {recording.layers(place) or 'none'}."
        )
    if not 0 <= unit < reading.z.shape[-1]:
        raise UniAdapterError(f"There is no unit {unit}.", f"Units count from 0 to {reading.z.shape[-1] - 1}.")
    return reading.z
