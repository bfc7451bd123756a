"""Question answering with BLIP: the question looks at the picture, and a decoder looks at the question and answers.

Adapters sit in all three: in the vision encoder, in the question encoder (a multimodal one), and in the decoder, whose
layers have the same text and cross branches. Training is language modelling on answers. An answer is either generated,
word by word, or found by ranking a list of candidates by their likelihood.

Data is a ``datasets.Dataset`` (or a list of dicts) with the columns ``image`` (PIL), ``question`` and ``answer`` (str), such
as `worlds.questions.load_questions` makes. With ``medium=Clips()``, ``frames`` stands for ``image``.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.losses import at_least_float32, language_loss
from uniadapter_edu.metrics import plain, vqa_accuracy
from uniadapter_edu.reading import is_text
from uniadapter_edu.tasks.language import LanguageTask, blocks, check_class, decode, log_likelihood, say, to_say
from uniadapter_edu.tasks.retrieval import (
    IMAGES,
    TEXTS_PER_PASS,
    Images,
    _column,
    _device,
    _scoring,
    check_columns,
    normalize,
    tokenize,
    unwrapped,
)

COLUMNS = {"question": "a str", "answer": "a str"}
LONGEST = 12  # tokens of a generated answer
TOP_K = 16  # candidates that are ranked by all of their words


class AnsweringTask(LanguageTask):
    """Trains a BLIP to answer: the same data and loss whatever part of the model trains.

    ``model`` is a ``BlipForQuestionAnswering``: with adapters inserted, wrapped by peft, or plain. ``medium``: what the
    questions are about, if not images. ``seed`` changes nothing here, where nothing is drawn.
    """

    backbone, columns = "answering", tuple(COLUMNS)

    def check(self, dataset) -> None:
        """Raise `UniAdapterError` unless there are rows with a picture, a question and an answer each."""
        check_questions(dataset, self.medium)

    def collate(self, examples: Sequence[dict]) -> dict[str, Tensor]:
        """Rows -> a batch: ``pixels`` uint8, ``input_ids`` and ``attention_mask`` (B, T) of the questions, ``answer_ids``
        and ``answer_mask`` (B, A)."""
        input_ids, attention_mask = tokenize(self.processor, [row["question"] for row in examples])
        answer_ids, answer_mask = to_say(self.model, self.processor, [row["answer"] for row in examples])
        return {
            "pixels": self.pixels(examples),
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "answer_ids": answer_ids,
            "answer_mask": answer_mask,
        }

    def summed(self, batch: dict[str, Tensor]) -> Tensor:
        """-log p(answer), summed over answers."""
        tokens = self.medium.tokens(self.model, normalize(self.processor, batch["pixels"]))
        mask, ids, answer_mask = batch["attention_mask"], batch["answer_ids"], batch["answer_mask"]
        states = encode_questions(self.model, tokens, batch["input_ids"], mask)
        logits = decode(self.model, states, mask, ids, answer_mask)
        return language_loss(logits, ids, answer_mask, self.smoothing).sum()

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        """The answers."""
        return torch.tensor(len(batch["answer_ids"]), device=batch["answer_ids"].device)


def encode_questions(model: nn.Module, tokens: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Questions (B, T) that look at image tokens (B, N, D) -> their states (B, T, D)."""
    encoder = unwrapped(model).text_encoder
    return encoder(input_ids, attention_mask, encoder_hidden_states=tokens).last_hidden_state


# ---- answers


def answer(
    model: nn.Module,
    processor,
    pictures,
    questions: str | Sequence[str],
    beams: int = 1,
    batch_size: int = 64,
    medium: Images = IMAGES,
) -> list[str]:
    """An answer in the model's own words to each question about each picture.

    ``pictures``: a data set, a list of PIL images (of clips with ``medium=Clips()``), or one for all questions.
    ``questions``: as many, or one for all pictures. ``beams``: 1 is greedy.
    """
    rows = _rows(pictures, questions, medium)
    with _scoring(model):
        return [
            text
            for states, mask in _looked(model, processor, rows, batch_size, medium)
            for text in say(model, processor, states, mask, beams, LONGEST)
        ]


def rank_answers(
    model: nn.Module,
    processor,
    pictures,
    questions: str | Sequence[str],
    candidates: Sequence[str],
    top_k: int | None = TOP_K,
    batch_size: int = 64,
    medium: Images = IMAGES,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """The best of ``candidates`` for each question: indices and log p(candidate), both (Q, top_k), best first.

    As BLIP does it, in two stages: all candidates are ranked by the likelihood of their first word, for which one pass a
    question is enough; the ``top_k`` best by that of all their words. ``top_k=None`` ranks all by all their words.
    The other arguments are those of `answer`. Raises `UniAdapterError` if there is no candidate.
    """
    rows, ranked = _rows(pictures, questions, medium), []
    if not len(candidates):
        raise UniAdapterError("there are no candidates to rank", "give at least one answer.")
    with _scoring(model), tqdm(total=len(rows), desc="ranking", unit="question", disable=not progress) as bar:
        ids, mask = (x.to(_device(model)) for x in to_say(model, processor, candidates))  # (C, A)
        for states, states_mask in _looked(model, processor, rows, batch_size, medium):
            ranked.append(_rank(model, states, states_mask, ids, mask, min(top_k or len(ids), len(ids))))
            bar.update(len(states))
    indices, scores = (torch.cat(parts).cpu() for parts in zip(*ranked))
    return indices, scores


def _rank(model, states: Tensor, states_mask: Tensor, ids: Tensor, mask: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """States (B, T, D) of questions and ids (C, A) of candidates -> the k best and their log p, both (B, k)."""
    B = len(states)
    start = ids[:1, :1].expand(B, 1)  # [DEC]
    first = at_least_float32(decode(model, states, states_mask, start, torch.ones_like(start)))[:, 0].log_softmax(-1)
    chosen = first[:, ids[:, 1]].topk(k, dim=1).indices  # (B, V) -> (B, C) -> (B, k)
    pairs = torch.arange(B, device=states.device).repeat_interleave(k)  # (B·k,) which question
    scores = torch.cat(
        [
            log_likelihood(model, states[of], states_mask[of], ids[which], mask[which])
            for of, which in zip(pairs.split(TEXTS_PER_PASS), chosen.flatten().split(TEXTS_PER_PASS))
        ]
    ).view(B, k)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return chosen.gather(1, order), scores


def _looked(model: nn.Module, processor, rows: Sequence[dict], batch_size: int, medium: Images):
    """The states (B, T, D) of questions that have looked at their pictures, and the mask (B, T), block by block."""
    check_class(model, AnsweringTask.backbone)
    device = _device(model)
    for _, block in blocks(rows, batch_size):
        tokens = medium.tokens(model, normalize(processor, medium.pixels(processor, block).to(device)))
        ids, mask = (x.to(device) for x in tokenize(processor, [row["question"] for row in block]))
        yield encode_questions(model, tokens, ids, mask), mask


class _Asked(Sequence):
    """Pictures with their questions, read one at a time."""

    def __init__(self, pictures, questions: Sequence[str], medium: Images):
        self.pictures, self.questions, self.medium = pictures, questions, medium

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, i: int) -> dict:
        picture = self.pictures[0 if len(self.pictures) == 1 else i]
        return {self.medium.column: self.medium.of(picture), "question": self.questions[i]}


def _rows(pictures, questions: str | Sequence[str], medium: Images) -> _Asked:
    pictures = pictures if hasattr(pictures, "__len__") and not isinstance(pictures, dict) else [pictures]
    questions = [questions] * len(pictures) if isinstance(questions, str) else list(questions)
    if len(pictures) not in (1, len(questions)) or not questions:
        raise UniAdapterError(
            f"{len(questions)} questions were asked about {len(pictures)} pictures, expected as many, at least one",
            "give one question for each picture, or one picture for all questions.",
        )
    return _Asked(pictures, questions, medium)


# ---- evaluation


@dataclass(frozen=True)
class AnsweringMetrics:
    """Shares of right answers, from 0 to 1: of ``questions`` in all, and by kind of question.

    ``accuracy``: generated answers that are the right one word for word, but for capitals, accents and punctuation.
    ``ranked``: the same of the best candidate, or None where there were no candidates. ``by_kind`` and ``ranked_by_kind``
    hold both for each value of the column ``kind``, and are empty where there is none. ``vqa`` is the VQA accuracy of the
    generated answers (`metrics.vqa_accuracy`) where the column ``answers`` holds what several people said.
    """

    accuracy: float
    questions: int
    by_kind: dict[str, float]
    ranked: float | None = None
    ranked_by_kind: dict[str, float] | None = None
    vqa: float | None = None

    def to_dict(self) -> dict:
        """A plain dict for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "AnsweringMetrics":
        """The inverse of :meth:`to_dict`."""
        return cls(**values)

    def __str__(self) -> str:
        lines = [f"{f'{self.questions} questions, % right':<28}  generated  ranked"]
        lines.append(self._row("all", self.accuracy, self.ranked))
        lines += [self._row(kind, value, (self.ranked_by_kind or {}).get(kind)) for kind, value in self.by_kind.items()]
        lines += [] if self.vqa is None else [self._row("VQA accuracy", self.vqa, None)]
        return "\n".join(lines)

    @staticmethod
    def _row(label: str, generated: float, ranked: float | None) -> str:
        return f"{label:<28}  {100 * generated:9.1f}" + ("" if ranked is None else f"  {100 * ranked:6.1f}")


def evaluate_answering(
    model: nn.Module,
    processor,
    dataset,
    candidates: Sequence[str] | None = None,
    beams: int = 1,
    top_k: int | None = TOP_K,
    batch_size: int = 64,
    progress: bool = True,
    medium: Images = IMAGES,
) -> AnsweringMetrics:
    """Score answers on ``dataset``: generated, and with ``candidates`` also ranked (`rank_answers`).

    Raises `UniAdapterError` if right answers are missing among the candidates: such questions could not be answered.
    """
    check_questions(dataset, medium)
    questions, truths = _column(dataset, "question"), [plain(text) for text in _column(dataset, "answer")]
    if candidates is not None:
        check_candidates(candidates, truths)
    kinds = _column(dataset, "kind") if "kind" in _columns(dataset) else None
    said = answer(model, processor, dataset, questions, beams, batch_size, medium)
    scores = [_share([plain(text) == truth for text, truth in zip(said, truths)], kinds)]
    if candidates is not None:
        best = rank_answers(
            model, processor, dataset, questions, candidates, top_k, batch_size, medium, progress=progress
        )[0][:, 0]
        scores.append(_share([plain(candidates[i]) == truth for i, truth in zip(best.tolist(), truths)], kinds))
    (accuracy, by_kind), (ranked, ranked_by_kind) = scores[0], scores[1] if len(scores) > 1 else (None, None)
    vqa = None
    if "answers" in _columns(dataset):
        vqa = sum(map(vqa_accuracy, said, _column(dataset, "answers"))) / len(said)
    return AnsweringMetrics(accuracy, len(truths), by_kind, ranked, ranked_by_kind, vqa)


def _share(right: list[bool], kinds: list[str] | None) -> tuple[float, dict[str, float]]:
    groups = defaultdict(list)
    for kind, value in zip(kinds or [], right):
        groups[kind].append(value)
    return sum(right) / len(right), {kind: sum(own) / len(own) for kind, own in sorted(groups.items())}


def check_candidates(candidates: Sequence[str], truths: Sequence[str]) -> None:
    """Raise `UniAdapterError` if a right answer is not among the candidates; all that are missing are counted."""
    if isinstance(candidates, str):
        raise UniAdapterError(f"candidates is {candidates!r}, expected a list of str", "put the answers into a list.")
    if missing := sorted(set(truths) - {plain(text) for text in candidates}):
        raise UniAdapterError(
            f"the {len(candidates)} candidates lack {len(missing)} of the right answers, such as {missing[0]!r}",
            "add them to the list, or leave out the questions whose answer it lacks.",
        )


def check_questions(dataset, medium: Images = IMAGES) -> None:
    """Raise `UniAdapterError` unless ``dataset`` has rows with a picture, a question and an answer, which say something."""
    check_columns(dataset, medium, COLUMNS)
    for name in COLUMNS:
        for i, text in enumerate(_column(dataset, name)):
            if not is_text(text) or not plain(text):
                raise UniAdapterError(
                    f"{name} of row {i} is {text!r}, expected a str with at least one word",
                    "leave out rows without a question or an answer.",
                )


def _columns(dataset) -> Sequence[str]:
    return getattr(dataset, "column_names", None) or list(dataset[0])
