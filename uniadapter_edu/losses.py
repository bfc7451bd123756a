"""What BLIP trains on: contrast images with texts, then tell matching pairs from hard mismatches (section 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # the label that cross-entropy leaves out


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, temperature: Tensor | float, same: Tensor | None = None
) -> Tensor:
    """Image-text contrastive loss: InfoNCE in both directions, over the batch (BLIP, section 3.2).

    ``image_features`` and ``text_features`` (B, P), normalised. ``same`` (B, B) bool says which text j fits image i
    besides its own (two captions of one image, equal captions): the target is spread evenly over them, or the
    loss would push apart what belongs together. Without it, only the diagonal fits. Returns a scalar.
    """
    with torch.autocast(image_features.device.type, enabled=False):  # bf16 keeps 3 digits of s, and s/τ needs more
        # s_ij = <image_i, text_j> / τ
        logits = at_least_float32(image_features) @ at_least_float32(text_features).T / temperature  # (B, B)
        fits = torch.eye(len(logits), device=logits.device, dtype=logits.dtype) if same is None else same.to(logits)
        # L = ½ [ CE(softmax_j s_ij, y_ij) + CE(softmax_i s_ij, y_ij) ]
        image_to_text = F.cross_entropy(logits, fits / fits.sum(1, keepdim=True))
        text_to_image = F.cross_entropy(logits.T, (fits / fits.sum(0)).T)
        return (image_to_text + text_to_image) / 2


def matching_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Image-text matching loss: does this text describe this image? (BLIP, section 3.2)

    ``logits`` (B, K, 2) of K texts per image, ``labels`` (B, K): 1 match, 0 mismatch, -100 leave this pair out.
    Returns a scalar, the mean over the pairs that count.
    """
    return F.cross_entropy(at_least_float32(logits).flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def language_loss(logits: Tensor, input_ids: Tensor, attention_mask: Tensor, smoothing: float = 0.0) -> Tensor:
    """Language-modelling loss of each next token, given those before it (BLIP, section 3.2).

    ``logits`` (B, T, V) of a decoder that read ``input_ids`` (B, T), mask 1 where there is a token. Returns (B, T - 1),
    0 where the next token is padding: summed over T it is the negative log-likelihood of a text, as long as
    ``smoothing`` (of labels) is 0.
    """
    # L_t = -log softmax(logits_t)[ id_t+1 ]: logits and ids are shifted against each other HERE, and nowhere else.
    # Whoever shifts the ids once more trains the token after the next, and the loss falls all the same.
    following = input_ids[:, 1:].masked_fill(attention_mask[:, 1:] == 0, IGNORED)
    losses = F.cross_entropy(
        at_least_float32(logits[:, :-1]).flatten(0, 1),
        following.flatten(),
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=smoothing,
    )
    return losses.view_as(following)


@torch.no_grad()
def hard_negatives(
    similarity: Tensor, same: Tensor, hardness: float = 1.0, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Two mismatched texts for each image, drawn where the contrastive similarity is high.

    ``similarity`` (B, B) of images (rows) and texts (columns), divided by the temperature. ``same`` (B, B) bool
    excludes pairs that belong together. A draw has probability proportional to ``exp(hardness · similarity)``:
    0 draws evenly, 1 is BLIP's softmax, more is harder. Reproducible with a ``generator`` (on the CPU).

    Returns ``negatives`` (B, 2) of text indices and ``labels`` (B, 2): 0, or -100 where there was nothing left to
    draw. Column 0 is the text drawn by the image; column 1 is the text that drew this image as its hard image.

    BLIP draws a hard image for every text independently, so one image may be drawn by many texts and others by
    none. Here each image is drawn by ONE text: the texts choose in random order among the images still left. Every
    image then meets exactly three texts (its own and these two), so that its pairs fold into one pass that projects
    its keys and values once and pads nothing. Nor can one confusing image fill a whole batch with negatives.
    The price: the last text in the order may find only an image that fits it, in about one batch of every B. That
    pair is left out; so is everything in a batch where all belongs together, such as a batch of one.
    """
    # argmax(x + Gumbel noise) is a draw from softmax(x)
    logits = (hardness * at_least_float32(similarity)).cpu().masked_fill(same.cpu(), float("-inf"))  # (B, B)
    of_image = logits + _gumbel(logits.shape, generator)
    of_text = (logits + _gumbel(logits.shape, generator)).T.contiguous()  # (B texts, B images)
    text_of_image = torch.full((len(logits),), -1)
    for text in torch.randperm(len(logits), generator=generator).tolist():
        best, image = of_text[text].max(0)
        if best > float("-inf"):
            text_of_image[image] = text
            of_text[:, image] = float("-inf")
    found = torch.stack([~same.cpu().all(1), text_of_image >= 0], dim=1)  # (B, 2)
    negatives = torch.stack([of_image.argmax(1), text_of_image.clamp_min(0)], dim=1)
    labels = torch.where(found, 0, IGNORED)
    return negatives.to(similarity.device), labels.to(similarity.device)


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` itself, unless it is half precision: losses and similarities are computed in float32 or better."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _gumbel(shape: torch.Size, generator: torch.Generator | None) -> Tensor:
    # -log E with E ~ Exp(1)
    return -torch.empty(shape).exponential_(generator=generator).log()
