"""A small gallery that two models search: the frozen backbone, and the adapted one at whatever its dials say.

Pictures and captions become pixels and tokens once. Moving a dial encodes anew what it is heard in, pictures, sentences or
both; typing another query does not.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import adapters_disabled
from uniadapter_edu.metrics import recall_at_k, text_to_image_ranks
from uniadapter_edu.microscope.dials import Dials, dialled
from uniadapter_edu.tasks.retrieval import (
    IMAGES,
    Gallery,
    _evaluating,
    check_dataset,
    encode_images,
    encode_texts,
    match,
    normalize,
    preprocess,
    search,
    tokenize,
)

FROZEN = None  # in the place of dials: the frozen backbone
AS_TRAINED = Dials()


@dataclass(frozen=True)
class Answer:
    """What one model finds for a query. found: the first pictures, best first; scores: theirs, s + logit(yes).

    Of the right picture: its cosine with the query, the probability that matching gives it, and its place in the
    contrastive order, 1 for the first."""

    found: list[int]
    scores: list[float]
    cosine: float
    probability: float
    place: int


class TwoModels:
    """The frozen and the adapted model in front of one gallery. ``scenes``: a data set with ``image`` and ``captions``.

    ``top_k``: pictures that are matched and ranked. The model is left as it was; it must have adapters inserted.
    """

    def __init__(self, model: nn.Module, processor, scenes, top_k: int = 6):
        check_dataset(scenes)
        if not hasattr(model, "uniadapter"):
            raise UniAdapterError("No adapters are inserted in this model.", "load_adapters or insert_adapters first.")
        self.model, self.processor, self.top_k = model, processor, top_k
        self.images, self.captions = list(scenes["image"]), list(scenes["captions"])
        self.texts = [text for own in self.captions for text in own]
        self.image_of_text = torch.tensor([i for i, own in enumerate(self.captions) for _ in own])  # (M,)
        self._pixels = normalize(processor, preprocess(processor, self.images))  # (N, 3, H, W)
        self._tokens = tokenize(processor, self.texts)  # (M, T) twice
        self._pictures_of: Callable[[Dials | None], Gallery] = lru_cache(8)(self._encode_pictures)
        self._sentences_of: Callable[[Dials | None], Tensor] = lru_cache(8)(self._encode_sentences)
        self.find = lru_cache(64)(self._find)
        self.ask = lru_cache(64)(self._ask)

    def _find(self, query: str, dials: Dials | None = AS_TRAINED) -> tuple[list[int], list[float]]:
        """``find``: the first pictures for ``query``, best first, in two stages, and their scores. dials: `FROZEN` for
        the backbone. Raises `UniAdapterError` for an empty query."""
        self._check(query, 0)
        gallery = self._pictures(dials)
        with self._state(dials):
            found, scores = search(self.model, self.processor, gallery, [query], self.top_k)
        return found[0].tolist(), scores[0].tolist()

    def _ask(self, query: str, right: int, dials: Dials | None = AS_TRAINED) -> Answer:
        """``ask``: what is found for ``query``, and how picture number ``right``, the right one, is scored. Raises
        `UniAdapterError` for an empty query, or if there is no such picture."""
        self._check(query, right)
        gallery = self._pictures(dials)
        input_ids, mask = tokenize(self.processor, [query])
        with self._state(dials):
            cosines = encode_texts(self.model, input_ids, mask) @ gallery.features.T  # (1, N)
            logits = match(self.model, gallery.tokens[right][None], input_ids[None], mask[None])  # (1, 1, 2)
        place = text_to_image_ranks(cosines, torch.tensor([right])).item()
        probability = logits.float().softmax(-1)[0, 0, 1].item()
        return Answer(*self.find(query, dials), cosines[0, right].item(), probability, place)

    def recall(self, dials: Dials | None = AS_TRAINED) -> float:
        """R@1 of all captions as queries, by the contrastive stage alone, from 0 to 1."""
        scores = self._sentences(dials) @ self._pictures(dials).features.T  # (M, N)
        return recall_at_k(text_to_image_ranks(scores, self.image_of_text), 1)

    def best_captions(self, picture: int, n: int = 5, dials: Dials | None = AS_TRAINED) -> list[tuple[int, float]]:
        """The ``n`` captions of the gallery closest to a picture: (number in ``texts``, cosine), the closest first."""
        self._check("a picture", picture)
        cosines = self._sentences(dials) @ self._pictures(dials).features[picture]  # (M,)
        best = cosines.topk(min(n, len(cosines)))
        return list(zip(best.indices.tolist(), best.values.tolist()))

    @contextmanager
    def _state(self, dials: Dials | None):
        """Inside, the model's dials are set, and it is in eval mode and without gradients."""
        state = adapters_disabled(self.model) if dials is FROZEN else dialled(self.model, dials)
        with state, _evaluating(self.model):
            yield

    def _pictures(self, dials: Dials | None) -> Gallery:
        return self._pictures_of(_for_tower(dials, "vision"))

    def _sentences(self, dials: Dials | None) -> Tensor:
        return self._sentences_of(_for_tower(dials, "text"))

    def _encode_pictures(self, dials: Dials | None) -> Gallery:
        with self._state(dials):
            tokens, features = encode_images(self.model, self._pixels)
        return Gallery(self.images, features, tokens, None, 64, IMAGES)

    def _encode_sentences(self, dials: Dials | None) -> Tensor:
        with self._state(dials):
            return encode_texts(self.model, *self._tokens)

    def _check(self, query: str, right: int):
        if not query.strip():
            raise UniAdapterError("The query is empty.", "Type some words.")
        if not 0 <= right < len(self.images):
            raise UniAdapterError(
                f"There is no picture {right}.", f"Pictures are numbered from 0 to {len(self.images) - 1}."
            )


def _for_tower(dials: Dials | None, branch: str) -> Dials | None:
    """The dials as one encoder alone hears them: of the branches, no other than its own."""
    if dials is FROZEN:
        return FROZEN
    return replace(dials, branches=tuple(b for b in dials.branches if b == branch), query_residual=True)
