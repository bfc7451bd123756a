"""Image-text retrieval with BLIP: what it trains on (contrast and match), and how it is scored (in two stages).

Three passes do everything: images alone, texts alone, and texts that look at images. The third is the expensive
one, and wherever an image meets several texts these are folded into the query axis, so that the image's keys and
values are projected once. Evaluation goes through galleries of any size block by block: what it holds of all of them at
once are features, candidates and, where they fit, image tokens.

Data is a ``datasets.Dataset`` (or a list of dicts) with the columns ``image`` (PIL) and ``captions`` (list of str).
What an image is, only `Images` knows; `video_retrieval` puts clips in its place, and all else is the same.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from uniadapter_edu import together
from uniadapter_edu.attention import fusing_pays
from uniadapter_edu.errors import UniAdapterError, UnreadableError
from uniadapter_edu.insertion import folded_texts, frame_weights, fused_attention, unwrapped
from uniadapter_edu.losses import IGNORED, at_least_float32, contrastive_loss, hard_negatives, matching_loss
from uniadapter_edu.metrics import RetrievalMetrics, ranks_of_right
from uniadapter_edu.reading import is_text, readable

MAX_TOKENS = 35  # what BLIP's retrieval cuts captions to
TEMPERATURE = 0.07, 0.001, 0.5  # BLIP's start, lower and upper bound
NOT_A_CANDIDATE = -100.0  # what BLIP's evaluation gives to pairs that were not matched
CACHE_BYTES = 256 * 2**20  # pixels or tokens beyond this are computed again instead of kept
TEXTS_PER_PASS = 256  # bounds the memory of matching: pairs of an image and a text in one pass
TOKEN_BYTES_PER_PASS = 64 * 2**20  # likewise, of the images' tokens; more would not make a pass faster
SCORES_PER_BLOCK = 2**22  # of queries and all of a gallery, which are ranked and forgotten


# ---- the three passes


def encode_images(model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) -> tokens (B, N, D), [CLS] first, and contrastive features (B, P) of length 1."""
    model = blip_of(model)
    tokens = model.vision_model(pixel_values=pixel_values).last_hidden_state  # (B, N, D)
    return tokens, F.normalize(at_least_float32(model.vision_proj(tokens[:, 0])), dim=-1)


def encode_texts(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Texts (B, T), mask 1 where there is a token -> contrastive features (B, P) of length 1."""
    model = blip_of(model)
    hidden = model.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, T, D)
    return F.normalize(at_least_float32(model.text_proj(hidden[:, 0])), dim=-1)


def match(
    model: nn.Module, image_tokens: Tensor, input_ids: Tensor, attention_mask: Tensor, w: Tensor | None = None
) -> Tensor:
    """Does each of an image's K texts describe it? Logits (B, K, 2): no, yes.

    ``image_tokens`` (B, N, D) from :func:`encode_images`; ``input_ids`` and ``attention_mask`` (B, K, T), the K texts
    of each image. Equal to K separate passes, but each image's keys and values are projected once. As in transformers'
    own forward, the first token stays [CLS]; BLIP's published code puts [ENC] there for this pass.

    ``w`` (B, K, F): what each text gives to each frame of a clip, whose tokens are frame-major, (B, F·n, D).
    """
    model, (B, K, T) = blip_of(model), input_ids.shape
    if w is not None and w.shape[:-1] != (B, K):
        raise UniAdapterError(
            f"frame weights have the shape {tuple(w.shape)}, expected ({B}, {K}, F) for {K} texts of each of {B} clips",
            "give one weight per clip, text and frame.",
        )
    with folded_texts(model, K), nullcontext() if w is None else frame_weights(model, w.flatten(0, 1)):
        hidden = model.text_encoder(
            input_ids=input_ids.reshape(B * K, T),  # image-major: the K texts of image 0 first
            attention_mask=attention_mask.reshape(B * K, T),
            encoder_hidden_states=image_tokens,
        ).last_hidden_state  # (B·K, T, D)
    return model.itm_head(hidden[:, 0]).view(B, K, 2)


# ---- what is looked at


class Images:
    """What texts look at, here images: how rows become pixels, and pixels tokens. `video_retrieval.Clips` are others."""

    column, content = "image", "a PIL image"

    def pixels(self, processor, rows: Sequence) -> Tensor:
        """B rows of a data set, or bare images -> uint8 pixels (B, 3, H, W)."""
        return preprocess(processor, [self.of(row) for row in rows])

    def encode(self, model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Pixels -> tokens (B, N, D), features (B, P), and those of each frame (B, F, P) or None, all of length 1."""
        return *encode_images(model, pixel_values), None

    def tokens(self, model: nn.Module, pixel_values: Tensor) -> Tensor:
        """Pixels -> tokens (B, N, D) alone, by any of transformers' BLIPs: not all give features."""
        return unwrapped(model).vision_model(pixel_values=pixel_values).last_hidden_state

    def weights(self, model: nn.Module, text_features: Tensor, frame_features: Tensor | None) -> Tensor | None:
        """K texts of each clip (B, K, P) and its frames (B, F, P) -> w (B, K, F), or None where frames count alike."""
        return None

    def of(self, row):
        """What a row of a data set shows; a row may be just that."""
        if isinstance(row, dict) and self.column not in row:
            raise UniAdapterError(
                f"a row has no {self.column}, only {', '.join(row)}",
                f"rename_column() to {self.column} ({self.content}).",
            )
        return row[self.column] if isinstance(row, dict) else row


IMAGES = Images()


# ---- training


class Task(nn.Module):
    """What tasks have in common: what trains, and how rows of a data set become pixels in memory.

    ``medium``: what is looked at. ``columns``: what else `collate` needs of each row.
    """

    medium: Images = IMAGES
    columns: tuple[str, ...] = ("captions",)

    def __init__(self, model: nn.Module, processor, seed: int = 0):
        super().__init__()
        self.model, self.processor, self.seed = model, processor, seed

    def trainable(self) -> dict[str, nn.Parameter]:
        """What trains, by name: the parameters that require a gradient, the model's and the task's own if it has any."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def check(self, dataset) -> None:
        """Raise `UniAdapterError` if this is no data set for the task."""
        check_dataset(dataset, self.medium)

    def prepare(self, dataset) -> Sequence[dict]:
        """``dataset`` itself, or its rows with all pixels resized and held in memory if they take at most 256 MB."""
        self.check(dataset)
        size = _first_pixels(self.processor, dataset, self.medium).numel()
        fits = size * len(dataset) <= CACHE_BYTES
        return CachedRows(self.processor, dataset, self.medium, self.columns) if fits else dataset

    def read(self, row: dict) -> dict:
        """A row with ``pixels`` in place of its picture: a damaged one fails here, by itself, and not in a batch."""
        if "pixels" in row:
            return row
        pixels = self.medium.pixels(self.processor, [row])[0]
        return {name: value for name, value in row.items() if name != self.medium.column} | {"pixels": pixels}

    def pixels(self, examples: Sequence[dict]) -> Tensor:
        """The pixels of B rows, uint8, as they were read or kept, or as the rows' pictures give them."""
        if "pixels" not in examples[0]:
            return self.medium.pixels(self.processor, examples)
        for row in examples:
            _check_shape(row["pixels"], examples[0]["pixels"], f"row {row.get('index')}")
        return torch.stack([row["pixels"] for row in examples])

    def draw_captions(self, examples: Sequence[dict]) -> list[str]:
        """One caption for each row, the same whenever the row comes up in the same epoch."""
        return [
            random.Random(f"{self.seed} {row.get('index', i)} {row.get('epoch', 0)}").choice(row["captions"])
            for i, row in enumerate(examples)
        ]

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same as the task's ``loss``, by attention that never holds all of its scores where that is faster."""
        with fused_attention(self.model):
            return self.loss(batch)


class RetrievalTask(Task):
    """Trains a BLIP on contrast + matching: the same data, losses and heads whatever part of the model trains.

    ``model`` is a ``BlipForImageTextRetrieval``: with adapters inserted, wrapped by peft, or plain. ``hardness`` bends
    the draw of mismatched texts (:func:`~uniadapter_edu.losses.hard_negatives`), ``seed`` the draw of captions.
    Insert adapters before making the task: then the temperature is the adapters' own, else it is the task's.
    """

    def __init__(self, model: nn.Module, processor, hardness: float = 1.0, seed: int = 0):
        super().__init__(model, processor, seed)
        self.hardness = hardness
        if not hasattr(blip_of(model), "uniadapter"):
            self.own_temperature = nn.Parameter(torch.tensor(TEMPERATURE[0]))

    @property
    def temperature(self) -> nn.Parameter:
        """τ of the contrastive loss, a trained scalar kept between 0.001 and 0.5 as in BLIP."""
        if hasattr(self, "own_temperature"):
            return self.own_temperature
        return blip_of(self.model).uniadapter.heads.temperature

    def collate(self, examples: Sequence[dict]) -> dict[str, Tensor]:
        """Rows of a data set -> a batch: ``pixels`` (B, 3, H, W) uint8, ``input_ids`` and ``attention_mask`` (B, T),
        ``same`` (B, B) bool; and by which that is known, ``row`` and ``text`` (B,), ``texts`` (B, most of a row).

        One caption is drawn per image, by ``seed`` and the row's ``index`` and ``epoch`` (0 where missing). ``same``
        marks text j as fitting image i where it is one of image i's captions, word for word, or i and j are one row.
        """
        texts = self.draw_captions(examples)
        input_ids, attention_mask = tokenize(self.processor, texts)
        known = {
            "row": torch.tensor([row.get("index", i) for i, row in enumerate(examples)]),
            "text": torch.tensor([_number(text) for text in texts]),
            "texts": nn.utils.rnn.pad_sequence(
                [torch.tensor([_number(text) for text in row["captions"]]) for row in examples], batch_first=True
            ),
        }
        return {
            "pixels": self.pixels(examples),
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "same": _same(**known),
            **known,
        }

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch of :meth:`collate` -> scalars: ``loss`` = ``itc`` + ``itm``, and the ``temperature`` used.

        Where several processes train together (`together`), the losses are those of all their batches as one.
        """
        self.bound_temperature()
        tokens, images, frames, texts = self.encode(batch)
        itc, pairs = self.contrast_and_draw(batch, images, texts)
        itm = self.matching(tokens, frames, pairs, range(len(tokens)))
        return {"loss": itc + itm, "itc": itc, "itm": itm, "temperature": self.temperature.detach().clone()}

    def in_pieces(self, batch: dict[str, Tensor], pieces: int) -> Iterator[dict[str, Tensor]]:
        """The same loss in the memory of a piece of the batch: yields parts of :meth:`loss`, which add up to it.

        The contrastive loss needs the features of the whole batch, but not what they were computed from. So all pieces
        are encoded without gradients; the gradient of the loss by each feature is found; and then each piece is encoded
        again, and its features pulled along theirs (Gao et al., 2021). Matching needs of other pieces only token ids.
        This is exact but for dropout: each piece draws its own, the same in both passes, and not what a whole batch would.
        """
        self.bound_temperature()
        seed, rows = torch.initial_seed(), torch.arange(len(batch["pixels"])).chunk(pieces)
        parts = [{name: batch[name][own] for name in ("pixels", "input_ids", "attention_mask")} for own in rows]
        with torch.no_grad():
            features = [self._encode_again(part, seed + i)[1::2] for i, part in enumerate(parts)]
        images, texts = (torch.cat(kind).requires_grad_() for kind in zip(*features))
        torch.manual_seed(seed)  # and the draw of mismatches, the same as without pieces
        itc, pairs = self.contrast_and_draw(batch, images, texts)
        itc, pull = itc.detach(), _gradients(itc, (images, texts, self.temperature))
        for i, (part, own) in enumerate(zip(parts, rows)):
            tokens, image, frames, text = self._encode_again(part, seed + i)
            itm = self.matching(tokens, frames, pairs, own.tolist())
            along = (
                (image * pull[0][own]).sum()
                + (text * pull[1][own]).sum()
                + (self.temperature * pull[2] if i == 0 else 0)
            )
            share = len(own) / len(images)
            # Worth nothing, but with the gradient of the contrastive loss.
            loss = itm + along - along.detach() + itc * share
            yield {"loss": loss, "itc": itc * share, "itm": itm, "temperature": self.temperature.detach() * share}

    def _encode_again(self, part: dict[str, Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        torch.manual_seed(seed)  # dropout, the same at both times
        return self.encode(part)

    def bound_temperature(self) -> None:
        """τ, back between its bounds."""
        with torch.no_grad():
            self.temperature.clamp_(*TEMPERATURE[1:])

    def encode(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Images' tokens (B, N, D), features (B, P) and those of each frame, if they are clips; texts' features (B, P)."""
        images = self.medium.encode(self.model, normalize(self.processor, batch["pixels"]))
        return *images, encode_texts(self.model, batch["input_ids"], batch["attention_mask"])

    def contrast_and_draw(self, batch: dict[str, Tensor], images: Tensor, texts: Tensor) -> tuple[Tensor, "_Pairs"]:
        """From features (B, P) of a batch: its contrastive loss, and with which texts each image is to be matched."""
        images, texts = together.gather(images), together.gather(texts)  # (G, P): those of all processes
        same, generator = batch["same"], None
        if together.processes() > 1:
            known = {name: together.gather(batch[name]) for name in ("row", "text")}
            same = _same(**known, texts=together.gather_padded(batch["texts"]))
            generator = torch.Generator().manual_seed(torch.initial_seed())  # the same draws everywhere
        itc = self.contrast(batch, images, texts, same)
        similarity = (images @ texts.T / self.temperature).detach()  # (G images, G texts)
        negatives, mismatch = hard_negatives(similarity, same, self.hardness, generator)  # (G, 2) each
        own = torch.arange(len(images), device=images.device)[:, None]  # (G, 1)
        return itc, _Pairs(
            texts=torch.cat([own, negatives], dim=1),  # (G, 3): its own, the text it draws, the text that drew it
            labels=torch.cat([torch.ones_like(own), mismatch], dim=1),
            features=texts.detach(),
            input_ids=together.gather_padded(batch["input_ids"]),
            attention_mask=together.gather_padded(batch["attention_mask"]),
        )

    def matching(self, tokens: Tensor, frames: Tensor | None, pairs: "_Pairs", rows: Sequence[int]) -> Tensor:
        """The share of some rows of this process in the matching loss of the whole batch; of all rows, all of it."""
        start = together.rank() * (len(pairs.texts) // together.processes())
        rows = torch.tensor([start + row for row in rows], device=tokens.device)
        texts, labels = pairs.texts[rows], pairs.labels[rows]  # (B, 3) each
        w = self.medium.weights(self.model, pairs.features[texts], frames)  # (B, 3, F) or None
        logits = self.match(tokens, pairs.input_ids[texts], pairs.attention_mask[texts], w)  # (B, 3, 2)
        loss = matching_loss(logits, labels)
        if len(rows) == len(pairs.texts):
            return loss
        # The mean over processes of what their rows sum up to must be the mean over the pairs of all.
        counted = (labels != IGNORED).sum() / (pairs.labels != IGNORED).sum()
        return loss * counted * together.processes()

    def match(self, tokens: Tensor, input_ids: Tensor, attention_mask: Tensor, w: Tensor | None) -> Tensor:
        """Logits (B, K, 2) of the K texts that each image meets, as :func:`match` computes them."""
        return match(self.model, tokens, input_ids, attention_mask, w)

    def contrast(self, batch: dict[str, Tensor], images: Tensor, texts: Tensor, same: Tensor | None = None) -> Tensor:
        """The contrastive loss of images and texts (B, P) against each other: a scalar. ``same`` (B, B): which of them
        fit each other; the batch's own, unless told."""
        return contrastive_loss(images, texts, self.temperature, batch["same"] if same is None else same)


@dataclass
class _Pairs:
    """Which texts each image of a batch is matched with, (B, 3) of ``texts`` and ``labels``, and what is known of texts."""

    texts: Tensor
    labels: Tensor
    features: Tensor
    input_ids: Tensor
    attention_mask: Tensor


def _number(text: str) -> int:
    """A number for a text, the same in every process, and another one for every other text; never 0."""
    return 1 + int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:7], "big")


def _same(row: Tensor, text: Tensor, texts: Tensor) -> Tensor:
    """(B, B) bool: whether text j is one of the texts of image i, or is of the same row."""
    return (texts[:, :, None] == text).any(1) | (row[:, None] == row)


def _gradients(value: Tensor, of: Sequence[Tensor]) -> list[Tensor]:
    """By each; 0 where it does not require one."""
    wanted = [x for x in of if x.requires_grad]
    found = dict(zip(map(id, wanted), torch.autograd.grad(value, wanted)))
    return [found.get(id(x), torch.zeros_like(x)) for x in of]


class CachedRows:
    """The rows of a data set with their pixels resized once: training reads them again in every epoch."""

    def __init__(self, processor, dataset, medium: Images, columns: Sequence[str] = ("captions",)):
        self.columns = {name: _column(dataset, name) for name in columns}
        self.lost: dict[int, UnreadableError] = {}  # what is wrong with the rows that cannot be read
        self.pixels = torch.stack(list(self._each(processor, dataset, medium)))  # (N, 3, H, W) uint8

    def _each(self, processor, dataset, medium: Images) -> Iterator[Tensor]:
        first = _first_pixels(processor, dataset, medium)
        for i in range(len(dataset)):
            try:
                with readable(i):
                    pixels = medium.pixels(processor, [dataset[i]])[0]
            except UnreadableError as error:
                self.lost[i], pixels = error, torch.zeros_like(first)
            _check_shape(pixels, first, f"row {i}")
            yield pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> dict:
        if i in self.lost:
            raise self.lost[i]
        return {"pixels": self.pixels[i], **{name: values[i] for name, values in self.columns.items()}}


# ---- evaluation


@dataclass
class Gallery:
    """Encoded images to search in: ``features`` (N, P); ``tokens`` (N, n, D), or None where they are too many to keep,
    and each block of ``images`` is then encoded again when it is matched. ``frames`` (N, F, P) are features of each
    frame where the images are clips."""

    images: Sequence
    features: Tensor
    tokens: Tensor | None
    frames: Tensor | None
    batch_size: int
    medium: Images


def encode_gallery(
    model: nn.Module,
    processor,
    images,
    batch_size: int = 64,
    medium: Images = IMAGES,
    keep_bytes: int = CACHE_BYTES,
) -> Gallery:
    """Encode ``images`` (a data set with an ``image`` column, or a list of PIL images) in blocks of ``batch_size``.

    Their tokens are kept if they take at most ``keep_bytes``. ``medium``: what is looked at, if it is not images.
    """
    if not len(images):
        raise UniAdapterError("the gallery is empty, expected at least one row", "pass a data set that has rows.")
    features, tokens, frames, kept = [], [], [], True
    with _scoring(model):
        for pixels in _pixel_blocks(processor, images, batch_size, medium):
            block, feature, frame = medium.encode(model, normalize(processor, pixels.to(_device(model))))
            kept = kept and block[0].nbytes * len(images) <= keep_bytes
            features.append(feature)
            tokens += [block] if kept else []
            frames += [] if frame is None else [frame]
    tokens, frames = torch.cat(tokens) if kept else None, torch.cat(frames) if frames else None
    return Gallery(images, torch.cat(features), tokens, frames, batch_size, medium)


def evaluate_retrieval(
    model: nn.Module,
    processor,
    dataset,
    top_k: int = 16,
    batch_size: int = 64,
    progress: bool = True,
    medium: Images = IMAGES,
) -> RetrievalMetrics:
    """Score retrieval on ``dataset`` as BLIP's published evaluation does, in two stages.

    1. All images and captions are ranked by their contrastive similarity s (a cosine, not divided by τ).
    2. Each query's ``top_k`` best candidates are matched. They are ranked by ``s + logit(yes)``, and all others, which
       BLIP gives -100, by ``s - 100``: far behind, but in their contrastive order instead of tied.

    A pair that is a candidate in both directions is matched once. ``top_k=0`` leaves out the second stage. ``medium``:
    what is looked at, if it is not images. Returns the scores after matching; those of the contrastive ranking are in
    ``.stage_one``.
    """
    check_dataset(dataset, medium)
    captions = _column(dataset, "captions")
    with _scoring(model):
        gallery = encode_gallery(model, processor, dataset, batch_size, medium)
        texts = _Texts(model, processor, [text for own in captions for text in own], batch_size)
        image_of_caption = [image for image, own in enumerate(captions) for _ in own]
        of_texts = _Ranked(texts.features, torch.tensor(image_of_caption, device=texts.features.device))
        of_images = _Ranked(gallery.features, torch.arange(len(dataset), device=texts.features.device))
        stage_one = RetrievalMetrics.from_ranks(of_texts.ranks(of_images), of_images.ranks(of_texts))
        if top_k < 1:
            return stage_one
        by_text, by_image = of_texts.best(of_images, top_k), of_images.best(of_texts, top_k)  # (M, k) and (N, k)
        t2i, i2t = _match_both_ways(model, processor, gallery, texts, by_text, by_image, progress)
        ranks = of_texts.ranks(of_images, by_text, t2i), of_images.ranks(of_texts, by_image, i2t)
    return RetrievalMetrics.from_ranks(*ranks, stage_one)


def search(
    model: nn.Module,
    processor,
    gallery,
    queries: Sequence[str],
    top_k: int = 16,
    matching: bool = True,
    medium: Images = IMAGES,
) -> tuple[Tensor, Tensor]:
    """The ``top_k`` images for each query, best first: indices and scores, both (Q, top_k).

    ``gallery`` is a data set, a list of PIL images, or what :func:`encode_gallery` made of either with this model in
    this state. The contrastive top k are reordered by matching, scored as in :func:`evaluate_retrieval`; with
    ``matching=False`` they stay in contrastive order. ``medium``: what an unencoded gallery holds, if not images.
    """
    queries = [queries] if isinstance(queries, str) else list(queries)
    with _scoring(model):
        gallery = gallery if isinstance(gallery, Gallery) else encode_gallery(model, processor, gallery, medium=medium)
        texts = _Texts(model, processor, queries, gallery.batch_size)
        best = _Ranked(texts.features).best(_Ranked(gallery.features), top_k)  # (Q, k)
        scores = torch.einsum("qp,qkp->qk", texts.features, gallery.features[best])
        if matching:
            nothing = best.new_empty(len(gallery.images), 0)
            scores = scores + _match_both_ways(model, processor, gallery, texts, best, nothing, progress=False)[0]
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return best.gather(1, order).cpu(), scores.cpu()


class _Texts:
    """All texts of an evaluation: their tokens, and their contrastive features (M, P)."""

    def __init__(self, model: nn.Module, processor, texts: Sequence[str], batch_size: int):
        self.input_ids, self.attention_mask = (x.to(_device(model)) for x in tokenize(processor, texts))  # (M, T)
        rows = torch.arange(len(texts), device=self.input_ids.device)
        self.features = torch.cat([encode_texts(model, *self.tokens(block)) for block in rows.split(batch_size)])

    def tokens(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens (..., T) of some texts, cut to the longest of them: padding is never computed with."""
        mask = self.attention_mask[rows]
        longest = int(mask.sum(-1).max())
        return self.input_ids[rows, :longest], mask[..., :longest]


@dataclass
class _Ranked:
    """All texts, or all images, by the features (M, P) that they are ranked by, and the image (M,) that each belongs to.

    The table of all cosines between texts and images exists a block at a time.
    """

    features: Tensor
    image: Tensor | None = None

    def best(self, others: "_Ranked", top_k: int) -> Tensor:
        """The ``top_k`` others that are most similar to each of these, the most similar first: indices (M, k)."""
        k = min(top_k, len(others.features))
        return torch.cat([cosines.topk(k, dim=1).indices for _, cosines in self._blocks(others)])

    def ranks(self, others: "_Ranked", candidates: Tensor | None = None, logits: Tensor | None = None) -> Tensor:
        """The rank (M,) of the best of the others that are each one's right answers, after matching if there was one:
        of each one's ``candidates`` (M, k) with these ``logits`` (M, k)."""
        ranks = []
        for rows, scores in self._blocks(others):
            if candidates is not None:
                chosen = candidates[rows]
                matched = scores.gather(1, chosen) + logits[rows]
                scores = (scores + NOT_A_CANDIDATE).scatter(1, chosen, matched)
            ranks.append(ranks_of_right(scores, self.image[rows, None] == others.image))
        return torch.cat(ranks).cpu()

    def _blocks(self, others: "_Ranked") -> Iterator[tuple[slice, Tensor]]:
        """Some rows of these, and their cosines (b, N) with all others."""
        at_once = max(1, SCORES_PER_BLOCK // len(others.features))
        for start in range(0, len(self.features), at_once):
            rows = slice(start, start + at_once)
            yield rows, self.features[rows] @ others.features.T


def _match_both_ways(
    model: nn.Module, processor, gallery: Gallery, texts: _Texts, by_text: Tensor, by_image: Tensor, progress: bool
) -> tuple[Tensor, Tensor]:
    """The logits of "yes" of each text's candidate images (M, k) and of each image's candidate texts (N, k), alike.

    A pair that is wanted both ways is matched once.
    """
    M, N = len(by_text), len(by_image)
    texts_of, images_of = (torch.arange(n, device=by_text.device)[:, None] for n in (M, N))
    numbers = torch.cat([(by_text * M + texts_of).flatten(), (images_of * M + by_image).flatten()])  # image-major
    numbers, places = numbers.unique(return_inverse=True)
    yes = _match_pairs(model, processor, gallery, texts, numbers.cpu() // M, numbers.cpu() % M, progress)[places]
    return yes[: by_text.numel()].view_as(by_text), yes[by_text.numel() :].view_as(by_image)


def _match_pairs(
    model: nn.Module, processor, gallery: Gallery, texts: _Texts, images: Tensor, rows: Tensor, progress: bool
) -> Tensor:
    """The logit of "yes" (P,) of every pair of ``images`` (P,), in ascending order, and texts, ``rows`` (P,).

    An image's keys and values are projected once for all of its texts, or once for every `TEXTS_PER_PASS` of them.
    """
    logits = texts.features.new_zeros(len(images))
    with tqdm(total=len(images), desc="matching", unit="pair", disable=not progress) as bar:
        for start in range(0, len(gallery.images), gallery.batch_size):
            first, last = torch.searchsorted(images, torch.tensor([start, start + gallery.batch_size])).tolist()
            if first == last:
                continue
            tokens = _tokens_of_block(model, processor, gallery, start)  # (b, N, D)
            for pairs in _passes(images[first:last], _texts_at_once(gallery, tokens), _images_at_once(tokens)):
                pairs = pairs + first
                image, text = images[pairs[:, 0]], rows[pairs]  # (B,) and (B, K)
                frames = None if gallery.frames is None else gallery.frames[image]  # (B, F, P)
                w = gallery.medium.weights(model, texts.features[text], frames)  # (B, K, F) or None
                yes = match(model, tokens[image - start], *texts.tokens(text), w)[..., 1]  # (B, K)
                logits[pairs] = at_least_float32(yes)
                bar.update(pairs.unique().numel())
    return logits


def _tokens_of_block(model, processor, gallery: Gallery, start: int) -> Tensor:
    """Tokens (b, N, D) of the block of images that begins at ``start``, as they were kept, or encoded again."""
    if gallery.tokens is not None:
        return gallery.tokens[start : start + gallery.batch_size]
    block = range(start, min(start + gallery.batch_size, len(gallery.images)))
    pixels = gallery.medium.pixels(processor, [gallery.images[i] for i in block])
    return gallery.medium.encode(model, normalize(processor, pixels.to(_device(model))))[0]


def _texts_at_once(gallery: Gallery, tokens: Tensor) -> int:
    """Pairs in a pass. Texts that weigh a clip's frames have keys of their own each, for all F frames: where attention
    is not fused, which makes them bit by bit, there are fewer."""
    whole = gallery.frames is None or fusing_pays(tokens, tokens.shape[1])
    return TEXTS_PER_PASS if whole else max(1, TEXTS_PER_PASS // gallery.frames.shape[1])


def _images_at_once(tokens: Tensor) -> int:
    return max(1, TOKEN_BYTES_PER_PASS // tokens[0].nbytes)


def _passes(images: Tensor, pairs_at_once: int, images_at_once: int) -> Iterator[Tensor]:
    """Which pairs are matched in one pass: places (B, K) in ``images`` (P,), which names each pair's image, in order.

    Images go together that have about as many texts, K. Where one has fewer, by an eighth at most, its last is matched
    again, which costs less than a pass of its own.
    """
    counts = images.unique_consecutive(return_counts=True)[1].tolist()
    runs = [part for run in torch.arange(len(images)).split(counts) for part in run.split(pairs_at_once)]
    together: list[Tensor] = []
    for run in sorted(runs, key=len):
        fits = len(together) < images_at_once and len(run) * (len(together) + 1) <= pairs_at_once
        if together and not (fits and 8 * len(run) <= 9 * len(together[0])):
            yield _rectangle(together)
            together = []
        together.append(run)
    yield _rectangle(together)


def _rectangle(runs: list[Tensor]) -> Tensor:
    """Runs of places, the longest last, as (B, K)."""
    K = len(runs[-1])
    return torch.stack([torch.cat([run, run[-1:].expand(K - len(run))]) for run in runs])


# ---- pictures and words


def preprocess(processor, images: Sequence) -> Tensor:
    """PIL images -> pixels (B, 3, H, W) uint8, resized as the processor does. A quarter of the memory of floats."""
    return processor.image_processor(images, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]


def normalize(processor, pixels: Tensor) -> Tensor:
    """uint8 pixels (..., 3, H, W) -> the float values that the processor would give."""
    settings = processor.image_processor
    values = pixels.float() * settings.rescale_factor
    mean, std = (values.new_tensor(x)[:, None, None] for x in (settings.image_mean, settings.image_std))
    return (values - mean) / std


def tokenize(processor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Texts -> ``input_ids`` and ``attention_mask``, both (B, T); cut after 35 tokens, as BLIP's retrieval does."""
    longest = min(MAX_TOKENS, processor.tokenizer.model_max_length)
    out = processor.tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
    return out["input_ids"], out["attention_mask"]


def check_dataset(dataset, medium: Images = IMAGES) -> None:
    """Raise :class:`UniAdapterError` unless ``dataset`` has rows with an ``image`` and one or more ``captions``.

    ``medium``: what is there instead of images.
    """
    check_columns(dataset, medium, {"captions": "a list of str"})
    for i, texts in enumerate(_column(dataset, "captions")):
        if not isinstance(texts, (list, tuple)) or not texts or not all(map(is_text, texts)):
            raise UniAdapterError(
                f"captions of row {i} is {texts!r}, expected a list of at least one str",
                "put single captions into a list, and leave out images without any.",
            )


def check_columns(dataset, medium: Images, contents: dict[str, str]) -> None:
    """Raise `UniAdapterError` unless ``dataset`` has rows, with the medium's column and these (name -> what is in it)."""
    if not len(dataset):
        raise UniAdapterError("the data set is empty, expected at least one row", "check the split or the filter.")
    columns = getattr(dataset, "column_names", None) or list(dataset[0])
    contents = {medium.column: medium.content} | contents
    if missing := [name for name in contents if name not in columns]:
        needed = " and ".join(f"{name} ({content})" for name, content in contents.items())
        raise UniAdapterError(
            f"the data set has no column {' and no column '.join(missing)}, only {', '.join(columns)}",
            f"rename_column() to {needed}.",
        )


def _column(dataset, name: str) -> list:
    # a Dataset reads one column without decoding the images of the others
    return list(dataset[name]) if hasattr(dataset, "column_names") else [row[name] for row in dataset]


def _first_pixels(processor, dataset, medium: Images) -> Tensor:
    """The pixels of the first row that can be read."""
    for i in range(len(dataset)):
        try:
            with readable(i):
                return medium.pixels(processor, [dataset[i]])[0]
        except UnreadableError as error:
            lost = error
    raise lost


def _check_shape(pixels: Tensor, first: Tensor, which: str) -> None:
    if pixels.shape != first.shape:
        raise UniAdapterError(
            f"{which} has pixels of shape {tuple(pixels.shape)}, others have {tuple(first.shape)}",
            "give every clip as many frames.",
        )


def _pixel_blocks(processor, images, batch_size: int, medium: Images) -> Iterator[Tensor]:
    first = None
    for start in range(0, len(images), batch_size):
        pixels = medium.pixels(processor, [images[i] for i in range(start, min(start + batch_size, len(images)))])
        first = pixels[0] if first is None else first
        _check_shape(pixels[0], first, f"row {start}")
        yield pixels


def blip_of(model: nn.Module) -> nn.Module:
    """As `unwrapped`, and certainly one that gives texts and images features to be compared by."""
    blip = unwrapped(model)
    if not hasattr(blip, "text_proj"):
        raise UniAdapterError(
            f"{type(blip).__name__} gives texts no feature (it has no text_proj): nothing to rank by, nor to weigh frames",
            'use a BlipForImageTextRetrieval, such as load_backbone(task="retrieval").',
        )
    return blip


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def _evaluating(model: nn.Module):
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextmanager
def _scoring(model: nn.Module):
    """As `_evaluating`, for those who want no attention maps."""
    with _evaluating(model), fused_attention(model):
        yield
