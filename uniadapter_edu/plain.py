"""The plain way of doing what `tasks.retrieval` does: what it is compared with, and equal to.

It is everybody's: transformers' own forward for each pair of an image and a text, with its eager attention.
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from uniadapter_edu.insertion import frame_weights, unwrapped
from uniadapter_edu.tasks.retrieval import RetrievalTask, encode_images, encode_texts, normalize, preprocess, tokenize

PAIRS_PER_PASS = 32  # with more, a CPU only takes more memory


def match_plainly(
    model: nn.Module, image_tokens: Tensor, input_ids: Tensor, attention_mask: Tensor, w: Tensor | None = None
) -> Tensor:
    """As `match`, but each text is given its own copy of its image's tokens, and transformers does the rest."""
    B, K, T = input_ids.shape
    logits = []
    for pairs in torch.arange(B * K, device=input_ids.device).split(PAIRS_PER_PASS):
        with nullcontext() if w is None else frame_weights(model, w.flatten(0, 1)[pairs]):
            hidden = unwrapped(model).text_encoder(
                input_ids=input_ids.view(-1, T)[pairs],
                attention_mask=attention_mask.view(-1, T)[pairs],
                encoder_hidden_states=image_tokens[pairs // K],
            )
        logits.append(model.itm_head(hidden.last_hidden_state[:, 0]))
    return torch.cat(logits).view(B, K, 2)


class PlainRetrievalTask(RetrievalTask):
    """The same loss, computed the plain way."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.loss(batch)

    def match(self, tokens, input_ids, attention_mask, w) -> Tensor:
        return match_plainly(self.model, tokens, input_ids, attention_mask, w)


@torch.no_grad()
def evaluate_plainly(model: nn.Module, processor, dataset, top_k: int) -> tuple[Tensor, Tensor]:
    """BLIP's published evaluation of one caption an image: each query's candidates are matched, query by query.

    Returns the candidates of texts and of images, (N, k) each, ranked by cosine plus logit.
    """
    device = next(model.parameters()).device
    pixels = preprocess(processor, [row["image"] for row in dataset]).to(device)
    tokens, images = encode_images(model, normalize(processor, pixels))
    ids, mask = (x.to(device) for x in tokenize(processor, [row["captions"][0] for row in dataset]))
    texts = encode_texts(model, ids, mask)
    ranked = []
    for queries, gallery, of_text in ((texts, images, True), (images, texts, False)):
        best = (queries @ gallery.T).topk(top_k, dim=1)
        for query, (cosines, found) in enumerate(zip(*best)):
            text, image = (torch.full_like(found, query), found) if of_text else (found, torch.full_like(found, query))
            yes = match_plainly(model, tokens[image], ids[text][:, None], mask[text][:, None])[:, 0, 1]
            ranked.append(found[(cosines + yes).argsort(descending=True)])
    ranked = torch.stack(ranked)
    return ranked[: len(dataset)], ranked[len(dataset) :]
