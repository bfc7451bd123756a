"""Do the units of a layer say the same of a picture and of its caption?

A layer's bottleneck answers r questions about every patch and about every token. Averaged over these, a picture and a
sentence have r numbers each, and two measures compare them:

- the cosine of the two, unit by unit, each unit's mean over the examples taken off. It means something only where unit
j is
  the same question to both, as with a shared down-projection;
- CKA, which compares how examples lie to each other and does not care which unit is which (Kornblith et al., 2019).

Either is given for pictures with their own captions and for pictures with those of others. Where the two are alike,
the units do not tell a matching pair from any other.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.microscope.activations import Recording


@dataclass(frozen=True)
class Agreement:
    """One layer's. matched (B,): the cosine of each pair; mismatched (B·(B - 1),): of each picture with others'
    captions. cka, cka_mismatched: of the pairs as they are, and with each caption moved on by one picture."""

    matched: Tensor
    mismatched: Tensor
    cka: float
    cka_mismatched: float

    @property
    def auc(self) -> float:
        """How often a matching pair has the larger cosine of a matching and a mismatched one; 0.5 is chance."""
        differences = self.matched[:, None] - self.mismatched[None, :]
        return ((differences > 0).double() + 0.5 * (differences == 0).double()).mean().item()


def agreement(recording: Recording) -> dict[int, Agreement]:
    """Layer -> `Agreement` of the units that pictures and sentences alone excite, for each layer that has both
    branches.

    Raises `UniAdapterError` for fewer than three pairs: means over the examples are taken off.
    """
    if len(recording.mask) < 3:
        raise UniAdapterError(
            f"{len(recording.mask)} pairs were recorded, expected at least 3.", "Record more pictures with captions."
        )
    both = [layer for layer in recording.layers("vision") if layer in recording.layers("text")]
    return {layer: _compare(*(_profile(recording, place, layer) for place in ("vision", "text"))) for layer in both}


def _profile(recording: Recording, place: str, layer: int) -> Tensor:
    """The units of each example, averaged over its patches or tokens, their mean over the examples taken off: (B,
    r)."""
    z = recording.readings[place, layer].z
    weights = torch.ones(z.shape[:2]) if place == "vision" else recording.mask.cpu().float()
    means = (z.cpu() * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
    return means - means.mean(0)


def _compare(pictures: Tensor, sentences: Tensor) -> Agreement:
    cosines = normalize(pictures, dim=1) @ normalize(sentences, dim=1).T  # (B pictures, B sentences)
    others = ~torch.eye(len(cosines), dtype=torch.bool)
    moved = cka(pictures, sentences.roll(1, dims=0))
    return Agreement(cosines.diagonal(), cosines[others], cka(pictures, sentences), moved)


def cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of two centred matrices (B, r): 1 if examples lie to each other in x as they do in y; 0 for no
    relation."""
    # CKA = |Yᵀ X|² / ( |Xᵀ X| |Yᵀ Y| ), Frobenius norms
    return ((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())).item()
