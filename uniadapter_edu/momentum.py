"""Momentum encoders and a queue for the contrastive loss, as MoCo, ALBEF and BLIP train: an optional task.

Contrast needs company: in a batch of B, an image is told apart from B - 1 texts. A queue keeps the features of the last
Q pairs as further company. They come from a copy of the encoders that follows the trained ones slowly, because features
of encoders that had meanwhile learned something else would be told apart by their age::

    m <- μ m + (1 - μ) θ        once a step, m: the copy's weights, θ: those that train

The copy also softens the targets, for some "mismatches" in so large a company do fit. With f_m its features, over the
B + Q pairs of batch and queue, y as in `losses.contrastive_loss`, and α growing from 0 during the first epoch::

    target = α softmax( <f_m, k_j> / τ ) + (1 - α) y        loss = CE( softmax( <f, k_j> / τ ), target )

Of a model with adapters the copy holds only what trains: the frozen weights are the same objects in both.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniadapter_edu import together
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.losses import at_least_float32
from uniadapter_edu.tasks.retrieval import RetrievalTask, _column, encode_texts, normalize

NO_CAPTION = -1  # fills up the rows of a table


@dataclass(frozen=True)
class MomentumConfig:
    """Its three numbers, at their published values but for the queue's. Raises `UniAdapterError` if out of range."""

    decay: float = 0.995  # μ. The copy remembers about 1 / (1 - μ) = 200 steps: choose less where a run is short
    queue: int = 512  # Q, pairs. BLIP's 57,600 are half of its data; so are these of a thousand scenes
    alpha: float = 0.4  # α, the share of the soft targets once the first epoch is over

    def __post_init__(self):
        wrong = [
            ("decay", not 0 <= self.decay <= 1, "from 0 (the trained encoders themselves) to 1 (the first ones)"),
            ("queue", not isinstance(self.queue, int) or self.queue < 0, "a whole number of at least 0"),
            ("alpha", not 0 <= self.alpha <= 1, "from 0 to 1"),
        ]
        for name, is_wrong, expected in wrong:
            if is_wrong:
                raise UniAdapterError(f"{name} is {getattr(self, name)!r}, expected {expected}", f"set {name} to that.")


# ---- the copy that follows


def momentum_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for the momentum side: of all that trains its own, of all that is frozen the SAME objects.

    Nothing in it requires a gradient, and it is in eval mode: what others are measured by should not be noisy.
    """
    shared = [p for p in model.parameters() if not p.requires_grad] + list(model.buffers())
    # deepcopy's memo says what has been copied already, and to what: these, to themselves.
    slow = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    return slow.requires_grad_(False).eval()


@torch.no_grad()
def follow(slow: nn.Module, model: nn.Module, decay: float) -> None:
    """One step of the copy towards the trained model: m <- μ m + (1 - μ) θ for every weight that it does not share.

    The authors' code does this twice a step for the adapters: it goes through the vision encoder and then through the
    text encoder, and the adapters are within both. Their decay is then μ², and a memory of 200 steps is one of 100.
    Here the parameters of the whole model are gone through, each object once.
    """
    trained = dict(model.named_parameters())
    for name, m in own_parameters(slow, model).items():
        # m + (1 - μ) (θ - m)
        m.lerp_(trained[name], 1 - decay)


def own_parameters(slow: nn.Module, model: nn.Module) -> dict[str, nn.Parameter]:
    """What the copy does not share with ``model``, by name."""
    trained = dict(model.named_parameters())
    return {name: m for name, m in slow.named_parameters() if m is not trained[name]}


# ---- the queue


class FeatureQueue(nn.Module):
    """The last ``length`` pairs that training has seen: features (P) of image and text, and which row and caption.

    Buffers, so that it moves with the task it is part of. It starts empty and not, as in MoCo, with random features.
    """

    def __init__(self, length: int, features: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.register_buffer("images", torch.zeros(length, features, dtype=dtype))  # (Q, P)
        self.register_buffer("texts", torch.zeros(length, features, dtype=dtype))  # (Q, P)
        self.register_buffer("rows", torch.zeros(length, dtype=torch.long))  # (Q,)
        self.register_buffer("captions", torch.zeros(length, dtype=torch.long))  # (Q,)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))  # pairs, since training began

    def __len__(self) -> int:
        return min(int(self.seen), len(self.rows))

    def entries(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images (q, P), texts (q, P), rows (q,) and captions (q,) of the q pairs there are, in no special order."""
        return tuple(kept[: len(self)] for kept in (self.images, self.texts, self.rows, self.captions))

    def push(self, images: Tensor, texts: Tensor, rows: Tensor, captions: Tensor) -> None:
        """Put B pairs in the places of the oldest. Raises `UniAdapterError` if the queue is shorter than a batch."""
        B, length = len(rows), len(self.rows)
        if length == 0:
            self.seen += B
            return
        if B > length:
            raise UniAdapterError(
                f"a queue of {length} cannot hold a batch of {B}", "make it several batches long, or 0 to have none."
            )
        places = (self.seen + torch.arange(B, device=self.rows.device)) % length
        for kept, new in zip((self.images, self.texts, self.rows, self.captions), (images, texts, rows, captions)):
            kept[places] = new.detach().to(kept)
        self.seen += B


# ---- the loss


def momentum_contrast(
    features: Tensor, slow: Tensor, keys: Tensor, fits: Tensor, temperature: Tensor | float, alpha: float
) -> Tensor:
    """One direction of the contrastive loss: B images against K texts, or B texts against K images (BLIP, section 3.2).

    ``features`` (B, P) of the encoders that train, ``slow`` (B, P) of their copy for the same B. ``keys`` (K, P): the
    copy's features of the batch's other side, and the queue's. ``fits`` (B, K) bool: which keys fit, one at least.
    Returns a scalar. Gradients flow through ``features`` and the temperature of the prediction, through no target.
    """
    with torch.autocast(features.device.type, enabled=False):
        features, slow, keys = (at_least_float32(x) for x in (features, slow.detach(), keys.detach()))
        y = fits.to(features)
        with torch.no_grad():
            # target = α softmax( <f_m, k_j> / τ ) + (1 - α) y
            target = alpha * (slow @ keys.T / temperature).softmax(1) + (1 - alpha) * y / y.sum(1, keepdim=True)
        return F.cross_entropy(features @ keys.T / temperature, target)


class MomentumRetrievalTask(RetrievalTask):
    """`RetrievalTask` with momentum encoders and a queue for its contrastive loss; matching is the same.

    Make it when the model trains what it is going to train. In training mode each call takes one step of the copy, and
    then fills the queue; in eval mode neither changes. Both are in `extra_state`, so that a resumed run goes on with
    them. ``momentum``: see `MomentumConfig`; the rest as in `RetrievalTask`.
    """

    def __init__(
        self, model: nn.Module, processor, hardness: float = 1.0, seed: int = 0, momentum: MomentumConfig | None = None
    ):
        super().__init__(model, processor, hardness, seed)
        self.momentum = momentum or MomentumConfig()
        self.slow = momentum_copy(model)
        dtype = torch.promote_types(model.dtype, torch.float32)
        self.queue = FeatureQueue(self.momentum.queue, model.config.image_text_hidden_size, dtype)
        self.register_buffer("captions", None, persistent=False)  # (N, most captions of a row), set by `prepare`

    def train(self, mode: bool = True):
        """As ever, but the copy stays in eval mode."""
        super().train(mode)
        self.slow.eval()
        return self

    def extra_state(self) -> dict[str, Tensor]:
        """What changes in training beside the parameters that train, by name: the copy's weights and the queue."""
        copied = {f"slow.{name}": m for name, m in own_parameters(self.slow, self.model).items()}
        return copied | {f"queue.{name}": kept for name, kept in self.queue.named_buffers()}

    def prepare(self, dataset) -> Sequence[dict]:
        """As in `RetrievalTask`; and every different caption gets a number, by which the queue knows it again."""
        rows = super().prepare(dataset)
        captions = _column(dataset, "captions")
        self.number = {text: n for n, text in enumerate(dict.fromkeys(text for own in captions for text in own))}
        numbers = [torch.tensor([self.number[text] for text in own]) for own in captions]
        self.captions = nn.utils.rnn.pad_sequence(numbers, batch_first=True, padding_value=NO_CAPTION)
        return rows

    def collate(self, examples: Sequence[dict]) -> dict[str, Tensor]:
        """As in `RetrievalTask`, and which ``rows`` (B,) and ``captions`` (B,) of the prepared data set it drew."""
        if self.captions is None:
            raise UniAdapterError("the task does not know its data set yet", "call task.prepare(dataset) first.")
        rows = torch.tensor([row.get("index", i) for i, row in enumerate(examples)])
        known = {"rows": rows, "captions": torch.tensor([self.number[text] for text in self.draw_captions(examples)])}
        return super().collate(examples) | known

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """As in `RetrievalTask`, with ``itc`` against batch and queue, and ``alpha``, the share of the soft targets."""
        alpha = self.alpha(len(batch["rows"]) * together.processes())
        outputs = super().loss(batch)
        return outputs | {"alpha": outputs["loss"].new_tensor(alpha)}

    def contrast(self, batch: dict[str, Tensor], images: Tensor, texts: Tensor, same: Tensor | None = None) -> Tensor:
        """The contrastive loss of B images and texts (B, P) against the copy's of the batch and the queue: a scalar."""
        same = batch["same"] if same is None else same
        if self.training:
            follow(self.slow, self.model, self.momentum.decay)
        slow_images, slow_texts = map(together.gather, self.slow_features(batch))  # (B, P) each
        old_images, old_texts, old_rows, old_captions = self.queue.entries()  # q of each
        rows, captions = together.gather(batch["rows"]), together.gather(batch["captions"])
        # Which of the B + q texts fit each image, and which of the B + q images each text.
        fits_image = torch.cat([same, self.fits(rows, old_captions)], dim=1)  # (B, B + q)
        fits_text = torch.cat([same, self.fits(old_rows, captions)]).T  # (B, B + q)

        rest = self.temperature, self.alpha(len(rows))
        text_keys, image_keys = torch.cat([slow_texts, old_texts]), torch.cat([slow_images, old_images])  # (B + q, P)
        image_to_text = momentum_contrast(images, slow_images, text_keys, fits_image, *rest)
        text_to_image = momentum_contrast(texts, slow_texts, image_keys, fits_text, *rest)
        if self.training:
            self.queue.push(slow_images, slow_texts, rows, captions)
        return (image_to_text + text_to_image) / 2

    def fits(self, image_rows: Tensor, captions: Tensor) -> Tensor:
        """Images of the rows (A,), texts of the numbers (C,) -> (A, C) bool: is it one of the image's captions?

        So an image's own old entries fit it, which a queue as long as an epoch is full of: to push an image away from
        its own caption because that was read earlier would be absurd.
        """
        return (self.captions[image_rows][:, :, None] == captions).any(1)  # (A, K, 1) == (C,) -> (A, C)

    @torch.no_grad()
    def slow_features(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The copy's features of a batch's images and texts, (B, P) each."""
        images = self.medium.encode(self.slow, normalize(self.processor, batch["pixels"]))[1]
        return images, encode_texts(self.slow, batch["input_ids"], batch["attention_mask"])

    def alpha(self, batch_size: int) -> float:
        """The share of the soft targets now: from 0 up to α during the first epoch, when the copy knows nothing yet."""
        first_epoch = len(self.captions) // batch_size * batch_size  # rows, in whole batches
        return self.momentum.alpha * min(1.0, int(self.queue.seen) / max(first_epoch, 1))
