"""What is done in each world of the grid: which BLIP does it, what it trains on, and how it is scored.

job = JOBS["clip questions"]
model = load_backbone(task=job.backbone)
train(model, job.task(model, processor, seed=0), clip_questions)
job.evaluate(model, processor, clip_questions, top_k=8)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from uniadapter_edu.metrics import RetrievalMetrics
from uniadapter_edu.tasks.answering import AnsweringMetrics, AnsweringTask, evaluate_answering
from uniadapter_edu.tasks.captioning import CaptioningMetrics, CaptioningTask, evaluate_captioning
from uniadapter_edu.tasks.retrieval import RetrievalTask, evaluate_retrieval
from uniadapter_edu.tasks.video_retrieval import Clips, VideoRetrievalTask, evaluate_video_retrieval
from uniadapter_edu.worlds import facts

Metrics = RetrievalMetrics | AnsweringMetrics | CaptioningMetrics


@dataclass(frozen=True)
class Job:
    """How one of the five tasks is trained and scored.

    name       what a table calls it
    backbone   what `load_backbone` calls its model
    task       (model, processor, seed=...) -> the task that `train` takes
    metrics    what it is scored by
    score      the field of the metrics by which methods are compared, and ``unit``, what a table calls that
    """

    name: str
    backbone: str
    task: Callable[..., nn.Module]
    metrics: type
    score: str
    unit: str

    def evaluate(self, model: nn.Module, processor, dataset, top_k: int) -> Metrics:
        """Score a model; ``top_k`` is of retrieval's second stage."""
        if self.backbone == "captioning":
            return evaluate_captioning(model, processor, dataset, facts.right)
        if self.backbone == "answering":
            medium = self.task(model, processor).medium
            return evaluate_answering(model, processor, dataset, progress=False, medium=medium)
        evaluate = evaluate_retrieval if self.task is RetrievalTask else evaluate_video_retrieval
        return evaluate(model, processor, dataset, top_k=top_k, progress=False)


_SEARCH = {"backbone": "retrieval", "metrics": RetrievalMetrics, "score": "t2i_r1", "unit": "R@1 t2i"}
_ANSWER = {"backbone": "answering", "metrics": AnsweringMetrics, "score": "accuracy", "unit": "right answers"}

# By the names of the grid's worlds. Answers are generated, not ranked: nothing helps to find them.
JOBS = {
    "pictures": Job("image retrieval", task=RetrievalTask, **_SEARCH),
    "clips": Job("video retrieval", task=VideoRetrievalTask, **_SEARCH),
    "clips with distractors": Job("video retrieval", task=VideoRetrievalTask, **_SEARCH),
    "picture questions": Job("image questions", task=AnsweringTask, **_ANSWER),
    "clip questions": Job("video questions", task=partial(AnsweringTask, medium=Clips()), **_ANSWER),
    "captions": Job("captioning", "captioning", CaptioningTask, CaptioningMetrics, "exact", "exact captions"),
}
