"""Captioning with BLIP: a decoder looks at the picture's tokens and says what it sees.

Adapters sit in the vision encoder and in the decoder. Training is language modelling on captions, one of a picture's
drawn for each epoch. Captions are generated greedily or with beams, and scored against all of a picture's captions.

Data is a ``datasets.Dataset`` (or a list of dicts) with the columns ``image`` (PIL) and ``captions`` (list of str), as for
retrieval. With ``medium=Clips()``, ``frames`` stands for ``image``.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor, nn

from uniadapter_edu.losses import language_loss
from uniadapter_edu.metrics import cider, plain
from uniadapter_edu.tasks.language import LanguageTask, blocks, check_class, decode, say, to_say
from uniadapter_edu.tasks.retrieval import (
    IMAGES,
    MAX_TOKENS,
    Images,
    _column,
    _device,
    _scoring,
    check_dataset,
    normalize,
)


class CaptioningTask(LanguageTask):
    """Trains a BLIP to describe pictures: the same data and loss whatever part of the model trains.

    ``model`` is a ``BlipForConditionalGeneration``: with adapters inserted, wrapped by peft, or plain. ``seed``: of the
    draw of captions. ``medium``: what is described, if not images.
    """

    backbone = "captioning"

    def collate(self, examples: Sequence[dict]) -> dict[str, Tensor]:
        """Rows of a data set -> a batch: ``pixels`` uint8, ``input_ids`` and ``attention_mask`` (B, T) of one caption each."""
        input_ids, attention_mask = to_say(self.model, self.processor, self.draw_captions(examples))
        return {"pixels": self.pixels(examples), "input_ids": input_ids, "attention_mask": attention_mask}

    def summed(self, batch: dict[str, Tensor]) -> Tensor:
        """-log p(token), summed over the tokens of all captions."""
        tokens = self.medium.tokens(self.model, normalize(self.processor, batch["pixels"]))
        ids, mask = batch["input_ids"], batch["attention_mask"]
        return language_loss(decode(self.model, tokens, None, ids, mask), ids, mask, self.smoothing).sum()

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        """The tokens that are to be said."""
        return batch["attention_mask"][:, 1:].sum()


def caption(
    model: nn.Module,
    processor,
    pictures,
    beams: int = 1,
    batch_size: int = 64,
    longest: int = MAX_TOKENS,
    use_cache: bool = True,
    medium: Images = IMAGES,
) -> list[str]:
    """A caption for each picture of a data set, or of a list of PIL images (of clips with ``medium=Clips()``).

    ``beams``: 1 is greedy. ``longest``: tokens at most. ``use_cache=False`` computes all words again for every next one,
    and gives the same.
    """
    check_class(model, CaptioningTask.backbone)
    texts = []
    with _scoring(model):
        for _, block in blocks(pictures, batch_size):
            pixels = medium.pixels(processor, block).to(_device(model))
            tokens = medium.tokens(model, normalize(processor, pixels))
            texts += say(model, processor, tokens, None, beams, longest, use_cache)
    return texts


@dataclass(frozen=True)
class CaptioningMetrics:
    """Scores of captions from 0 to 1.

    ``exact``: the share that are one of the picture's captions, word for word but for capitals, accents and punctuation.
    ``bleu``: corpus BLEU (sacrebleu) against all of them. ``facts``: for each fact that a judge knows, the share of
    pictures having it whose caption has it right; empty without a judge. ``cider``: CIDEr-D (`metrics.cider`), from 0 to
    10, where it was asked for.
    """

    exact: float
    bleu: float
    pictures: int
    facts: dict[str, float]
    cider: float | None = None

    def to_dict(self) -> dict:
        """A plain dict for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "CaptioningMetrics":
        """The inverse of :meth:`to_dict`."""
        return cls(**values)

    def __str__(self) -> str:
        rows = {"exact match": self.exact, "BLEU": self.bleu} | {f"right {k}": v for k, v in self.facts.items()}
        lines = [f"{f'{self.pictures} pictures':<28}      %"]
        rows |= {} if self.cider is None else {"CIDEr-D": self.cider}
        return "\n".join(lines + [f"{name:<28}  {100 * value:5.1f}" for name, value in rows.items()])


def evaluate_captioning(
    model: nn.Module,
    processor,
    dataset,
    judge: Callable[[str, dict], dict[str, bool]] | None = None,
    beams: int = 1,
    batch_size: int = 64,
    medium: Images = IMAGES,
    with_cider: bool = False,
) -> CaptioningMetrics:
    """Caption every picture of ``dataset`` and compare with its captions.

    ``judge(caption, row)`` says of a row, its picture aside, which facts the caption has right, as `worlds.facts.right`
    does of the emoji world's. ``with_cider``: score by CIDEr-D, too, which is for captions that people wrote.
    """
    check_dataset(dataset, medium)
    said = caption(model, processor, dataset, beams, batch_size, medium=medium)
    references = [[plain(text) for text in own] for own in _column(dataset, "captions")]
    exact = [plain(text) in own for text, own in zip(said, references)]
    facts = {} if judge is None else _judged(judge, said, dataset, medium)
    consensus = cider(said, references) if with_cider else None
    return CaptioningMetrics(sum(exact) / len(exact), bleu(said, references), len(said), facts, consensus)


def bleu(said: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU from 0 to 1 by sacrebleu, over plain words; every text may have another number of references."""
    from sacrebleu.metrics import BLEU  # only needed here

    longest = max(map(len, references))
    # sacrebleu wants streams: the first reference of every text, then the second; None where there is none.
    streams = [[plain(own[i]) if i < len(own) else None for own in references] for i in range(longest)]
    return BLEU(tokenize="none", force=True).corpus_score([plain(text) for text in said], streams).score / 100


def _judged(judge: Callable, said: Sequence[str], dataset, medium: Images) -> dict[str, float]:
    names = [name for name in getattr(dataset, "column_names", None) or dataset[0] if name != medium.column]
    columns = {name: _column(dataset, name) for name in names}
    facts = defaultdict(list)
    for i, text in enumerate(said):
        for fact, holds in judge(text, {name: values[i] for name, values in columns.items()}).items():
            facts[fact].append(holds)
    return {fact: sum(own) / len(own) for fact, own in facts.items()}
