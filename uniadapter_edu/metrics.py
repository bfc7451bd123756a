"""How retrieval is scored: R@1, R@5, R@10 and the median rank, both ways, with several captions per image.

The protocol is the one used on COCO and Flickr30k. Text to image: every caption is a query, and its own image is the
only right answer. Image to text: every image is a query, all of its captions are right answers, and the best-placed
one counts.

Two rules decide what a score matrix alone leaves open:

- **Ties count against the model.** Whatever scores as high as the right answer is ranked before it, so a model that
  gives every pair the same score gets the last rank and not the first. NaN ranks last for the same reason.
- **Equal captions of different images stay different answers**, as in the published protocol: the twin's image is
  scored as wrong, and cannot be beaten. Data in which that is frequent has a ceiling below 1.
"""

import re
import unicodedata
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from uniadapter_edu.errors import UniAdapterError


def text_to_image_ranks(scores: Tensor, image_of_caption: Tensor) -> Tensor:
    """The rank (1 is best) of each caption's own image among all images.

    ``scores`` (M, N) of M captions against N images, ``image_of_caption`` (M,) the index of each caption's image.
    Returns (M,) integers. Ties and NaN rank the right image behind its rivals.
    """
    _check_shapes(scores, image_of_caption)
    own = scores.gather(1, image_of_caption[:, None])  # (M, 1)
    # rank = 1 + #{rivals not below own}; the right image itself is not below itself, which supplies the 1
    return (~(scores < own)).sum(1)


def image_to_text_ranks(scores: Tensor, image_of_caption: Tensor) -> Tensor:
    """The rank (1 is best) of each image's best-placed own caption among all captions.

    ``scores`` (N, M) of N images against M captions, ``image_of_caption`` (M,) the index of each caption's image.
    Returns (N,) integers. An image's own captions never count as each other's rivals.
    """
    _check_shapes(scores.T, image_of_caption)
    own = image_of_caption[None, :] == torch.arange(len(scores), device=scores.device)[:, None]  # (N, M)
    if not own.any(1).all():
        raise UniAdapterError(
            f"image {int((~own.any(1)).nonzero()[0])} has no caption, so it has no right answer",
            "give every image at least one caption, or leave the image out of the gallery.",
        )
    return ranks_of_right(scores, own)


def ranks_of_right(scores: Tensor, right: Tensor) -> Tensor:
    """The rank (1 is best) of each query's best-placed right answer, which right answers never take from each other.

    ``scores`` and ``right`` (bool, at least one a query) are (Q, G), of Q queries against G answers. Returns (Q,). Ties
    and NaN rank right answers behind their rivals. Needs no other query, so that a long evaluation can go block by block.
    """
    best = scores.masked_fill(~right, float("-inf")).amax(1, keepdim=True)  # (Q, 1); NaN stays NaN and ranks last
    return 1 + (~(scores < best) & ~right).sum(1)


def recall_at_k(ranks: Tensor, k: int) -> float:
    """R@k: the fraction (0 to 1) of queries whose right answer is among the first ``k``. ``ranks`` starts at 1."""
    return (ranks <= k).double().mean().item()


def median_rank(ranks: Tensor) -> float:
    """The median of ``ranks``; the mean of the middle two where their number is even."""
    return ranks.double().quantile(0.5).item()


def plain(text: str) -> str:
    """A text as texts are compared: lower case, no accents and no punctuation, single spaces between words."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    return " ".join(re.findall(r"\w+", bare))


@dataclass(frozen=True)
class RetrievalMetrics:
    """Retrieval scores in both directions: recalls as fractions of 1, median ranks counted from 1.

    ``t2i`` is text to image (``captions`` queries in a gallery of ``images``), ``i2t`` image to text. In a gallery of
    ten or fewer R@10 is 1 whatever the model does. ``stage_one`` holds the scores of the contrastive ranking alone
    where these are the scores after matching.
    """

    t2i_r1: float
    t2i_r5: float
    t2i_r10: float
    t2i_median_rank: float
    i2t_r1: float
    i2t_r5: float
    i2t_r10: float
    i2t_median_rank: float
    images: int
    captions: int
    stage_one: "RetrievalMetrics | None" = None

    @classmethod
    def from_scores(
        cls,
        t2i_scores: Tensor,
        i2t_scores: Tensor,
        image_of_caption: Tensor,
        stage_one: "RetrievalMetrics | None" = None,
    ) -> "RetrievalMetrics":
        """Score ``t2i_scores`` (M, N) and ``i2t_scores`` (N, M); ``image_of_caption`` (M,) names the right answers.

        The two are transposes of each other for a contrastive ranking, but not after matching, where each
        direction has candidates of its own.
        """
        t2i = text_to_image_ranks(t2i_scores, image_of_caption)
        return cls.from_ranks(t2i, image_to_text_ranks(i2t_scores, image_of_caption), stage_one)

    @classmethod
    def from_ranks(cls, t2i: Tensor, i2t: Tensor, stage_one: "RetrievalMetrics | None" = None) -> "RetrievalMetrics":
        """Score the ranks, counted from 1, of M captions' images (M,) and of N images' captions (N,)."""
        return cls(
            *(recall_at_k(t2i, k) for k in (1, 5, 10)),
            median_rank(t2i),
            *(recall_at_k(i2t, k) for k in (1, 5, 10)),
            median_rank(i2t),
            images=len(i2t),
            captions=len(t2i),
            stage_one=stage_one,
        )

    def to_dict(self) -> dict:
        """A plain dict for JSON; ``stage_one`` is nested, or None."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "RetrievalMetrics":
        """The inverse of :meth:`to_dict`."""
        stage_one = values.get("stage_one")
        known = {field.name: values[field.name] for field in fields(cls) if field.name != "stage_one"}
        return cls(**known, stage_one=None if stage_one is None else cls.from_dict(stage_one))

    def __str__(self) -> str:
        lines = [f"{f'{self.captions} captions, {self.images} images':<28}   R@1    R@5   R@10  median rank"]
        stages = [(self, "")] if self.stage_one is None else [(self.stage_one, ", contrastive"), (self, ", matching")]
        for metrics, stage in stages:
            lines += [metrics._row("t2i", f"text to image{stage}"), metrics._row("i2t", f"image to text{stage}")]
        return "\n".join(lines)

    def _row(self, direction: str, label: str) -> str:
        r1, r5, r10, median = (getattr(self, f"{direction}_{name}") for name in ("r1", "r5", "r10", "median_rank"))
        return f"{label:<28} {100 * r1:5.1f}  {100 * r5:5.1f}  {100 * r10:5.1f}  {median:11.1f}"


def _check_shapes(scores: Tensor, image_of_caption: Tensor) -> None:
    captions, images = scores.shape
    if not captions or not images:
        raise UniAdapterError("there is nothing to rank: no captions or no images", "pass at least one of each.")
    fits = image_of_caption.shape == (captions,)
    if not fits or image_of_caption.min() < 0 or image_of_caption.max() >= images:
        raise UniAdapterError(
            f"scores are for {captions} captions and {images} images, but image_of_caption of shape "
            f"{tuple(image_of_caption.shape)} does not name one of these images for each caption",
            "pass one image index per caption.",
        )
