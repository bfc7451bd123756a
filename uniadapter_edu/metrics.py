"""How tasks are scored. Retrieval by R@1, R@5, R@10 and the median rank, both ways, with several captions per image.

The protocol is the one used on COCO and Flickr30k. Text to image: every caption is a query, and its own image is the
only right answer. Image to text: every image is a query, all of its captions are right answers, and the best-placed
one counts.

Two rules decide what a score matrix alone leaves open:

- **Ties count against the model.** Whatever scores as high as the right answer is ranked before it, so a model that
  gives every pair the same score gets the last rank and not the first. NaN ranks last for the same reason.
- **Equal captions of different images stay different answers**, as in the published protocol: the twin's image is
  scored as wrong, and cannot be beaten. Data in which that is frequent has a ceiling below 1.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
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


# ---- what people said


_NUMBERS = dict(
    zip("none zero one two three four five six seven eight nine ten".split(), "0 0 1 2 3 4 5 6 7 8 9 10".split())
)


def vqa_accuracy(said: str, answers: Sequence[str]) -> float:
    """VQA accuracy of an answer, from 0 to 1, given what several people (mostly ten) answered (Antol et al., 2015).

    An answer is right if three people gave it. Of ten people, any nine are asked, and the mean is taken::

        accuracy = mean over people p of  min( 1, #{ others than p who said so } / 3 )

    Answers are compared as the published evaluation does: without capitals, punctuation and articles, number words as
    digits. It has a list that puts missing apostrophes in; here they are taken out, so that "dont" is "don't", too.
    """
    said, answers = plain_answer(said), [plain_answer(text) for text in answers]
    if len(answers) == 1:
        return float(said == answers[0])
    agree = answers.count(said)
    return sum(min(1.0, (agree - (text == said)) / 3) for text in answers) / len(answers)


def plain_answer(text: str) -> str:
    """A short answer as VQA's evaluation compares it: see `vqa_accuracy`."""
    words = plain(re.sub("['’`]", "", text)).split()
    return " ".join(_NUMBERS.get(word, word) for word in words if word not in ("a", "an", "the"))


def cider(said: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D of captions against several references each (Vedantam et al., 2015); about 1 is as people agree, 10 the most.

    For n-grams of 1 to 4 words, a text is a vector of g(n-gram) = its count · log(pictures / pictures whose references
    have it). With h the caption's vector, r a reference's, and l their lengths in words::

        CIDEr-D = 10 · mean over n, references of  exp( -(l_h - l_r)² / 2·6² ) · < min(h, r), r > / |h| |r|

    Words are those of `plain`. Of a single picture it is 0, for then no n-gram is rare.
    """
    references = [[plain(text).split() for text in own] for own in references]
    total = 0.0
    for n in range(1, 5):
        counted = [[_ngrams(words, n) for words in own] for own in references]
        pictures_with = Counter(gram for own in counted for gram in set().union(*own))
        for text, own, grams_of_own in zip(said, references, counted):
            words = plain(text).split()
            h = _weighed(_ngrams(words, n), pictures_with, len(said))
            for reference, grams in zip(own, grams_of_own):
                r = _weighed(grams, pictures_with, len(said))
                overlap = sum(min(value, r[gram]) * r[gram] for gram, value in h.items() if gram in r)
                norms = math.hypot(*h.values()) * math.hypot(*r.values())
                length = math.exp(-((len(words) - len(reference)) ** 2) / (2 * 6.0**2))
                total += length * overlap / norms / len(own) if norms else 0.0
    return 10 * total / 4 / len(said)


def _ngrams(words: Sequence[str], n: int) -> Counter:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _weighed(grams: Counter, pictures_with: Counter, pictures: int) -> dict[tuple, float]:
    return {gram: count * math.log(pictures / max(1, pictures_with[gram])) for gram, count in grams.items()}


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
