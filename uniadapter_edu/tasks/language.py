"""What answers and captions have in common: a decoder that says one word after another, looking at states.

The states are an image's tokens for captions, and the states of a question that looked at the image for answers. Their
mask counts: transformers drops it, so that an answer would depend on how long the other questions of its batch are, and
its own `generate` makes a mask of ones for questions in any case. Hence the decoder is called here by itself, inside
`masks_obeyed`, the same for every way to train.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from uniadapter_edu import together
from uniadapter_edu.backbones import TASKS
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import masks_obeyed
from uniadapter_edu.losses import language_loss
from uniadapter_edu.tasks.retrieval import IMAGES, Images, Task, tokenize, unwrapped


class LanguageTask(Task):
    """A task that trains by language modelling. ``seed``: of drawn captions; ``medium``: what is looked at, if not images.

    ``backbone``: what `load_backbone` calls the models that can do it; `UniAdapterError` is raised for others.
    """

    backbone: str

    def __init__(self, model: nn.Module, processor, seed: int = 0, medium: Images = IMAGES):
        super().__init__(model, processor, seed)
        check_class(model, self.backbone)
        self.medium = medium

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch of the task's ``collate`` -> ``loss``, a scalar: the mean of -log p over tokens (captions) or texts
        (answers), as BLIP has it; over those of all processes, where several train together."""
        return next(self.in_pieces(batch, 1))

    def in_pieces(self, batch: dict[str, Tensor], pieces: int) -> Iterator[dict[str, Tensor]]:
        """The same loss in the memory of a piece of the batch: yields its parts, which add up to it."""
        count = together.mean(self.count(batch).float())
        for own in torch.arange(len(batch["pixels"])).chunk(pieces):
            yield {"loss": self.summed({name: values[own] for name, values in batch.items()}) / count}

    def summed(self, batch: dict[str, Tensor]) -> Tensor:
        """The sum of -log p over all that the loss is a mean of."""
        raise NotImplementedError

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        """Of how many the loss is a mean."""
        raise NotImplementedError

    @property
    def smoothing(self) -> float:
        """How far the labels are smoothed: what the model's config says."""
        return unwrapped(self.model).text_decoder.label_smoothing


def check_class(model: nn.Module, backbone: str) -> None:
    """Raise `UniAdapterError` unless the model is of the class that `load_backbone` gives for this task."""
    found, expected = type(unwrapped(model)), TASKS[backbone]
    if not issubclass(found, expected):
        raise UniAdapterError(
            f"The model is a {found.__name__}, expected a {expected.__name__}: {backbone} needs its decoder.",
            f'Load it with load_backbone(task="{backbone}").',
        )


def to_say(model: nn.Module, processor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Texts -> what the decoder learns to say: ids and mask (B, T), [DEC] first and [SEP] last, as BLIP has them."""
    input_ids, attention_mask = tokenize(processor, texts)
    input_ids[:, 0] = start_token(model)
    return input_ids, attention_mask


def start_token(model: nn.Module) -> int:
    """The id of [DEC]. It is the model's to say: the tokenizers of BLIP's checkpoints do not know it."""
    return unwrapped(model).config.text_config.bos_token_id


def decode(model: nn.Module, states: Tensor, states_mask: Tensor | None, ids: Tensor, mask: Tensor) -> Tensor:
    """What the decoder expects after each token: ids and mask (B, T), states (B, N, D), mask (B, N) -> logits (B, T, V)."""
    decoder = unwrapped(model).text_decoder
    looks = {"encoder_hidden_states": states, "encoder_attention_mask": states_mask}
    with masks_obeyed(model):
        return decoder(input_ids=ids, attention_mask=mask, use_cache=False, **looks).logits


def log_likelihood(model: nn.Module, states: Tensor, states_mask: Tensor | None, ids: Tensor, mask: Tensor) -> Tensor:
    """log p of each whole text, [SEP] included: (B,)."""
    # log p(text) = sum_t log p( token_t | tokens before it, states )
    return -language_loss(decode(model, states, states_mask, ids, mask), ids, mask).sum(1)


def say(
    model: nn.Module,
    processor,
    states: Tensor,
    states_mask: Tensor | None = None,
    beams: int = 1,
    longest: int = 20,
    use_cache: bool = True,
) -> list[str]:
    """The text that the decoder says about each of the states (B, N, D): greedy, or the best of a search with ``beams``.

    longest: tokens at most, as far as the decoder can count. use_cache: keep keys and values of earlier words; without
    it the same comes out, later.
    """
    decoder, config = unwrapped(model).text_decoder, unwrapped(model).config.text_config
    start = torch.full((len(states), 1), config.bos_token_id, device=states.device)
    if states_mask is None:
        states_mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
    with masks_obeyed(model):
        ids = decoder.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            encoder_hidden_states=states,
            encoder_attention_mask=states_mask,
            eos_token_id=config.sep_token_id,
            pad_token_id=config.pad_token_id,
            max_new_tokens=min(longest, config.max_position_embeddings - 1),
            num_beams=beams,
            do_sample=False,
            use_cache=use_cache,
        )
    return processor.tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)


def blocks(rows: Sequence, size: int) -> Iterator[tuple[int, list]]:
    """(index of the first, rows) of every ``size`` rows, read one block at a time."""
    for start in range(0, len(rows), size):
        yield start, [rows[i] for i in range(start, min(start + size, len(rows)))]
