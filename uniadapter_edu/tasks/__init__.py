"""What each task trains on, and how it is scored."""

from uniadapter_edu.tasks.answering import AnsweringTask, answer, evaluate_answering, rank_answers
from uniadapter_edu.tasks.captioning import CaptioningTask, caption, evaluate_captioning
from uniadapter_edu.tasks.retrieval import RetrievalTask, evaluate_retrieval, search
from uniadapter_edu.tasks.video_retrieval import VideoRetrievalTask, evaluate_video_retrieval, search_clips

__all__ = [
    "AnsweringTask",
    "CaptioningTask",
    "RetrievalTask",
    "VideoRetrievalTask",
    "answer",
    "caption",
    "evaluate_answering",
    "evaluate_captioning",
    "evaluate_retrieval",
    "evaluate_video_retrieval",
    "rank_answers",
    "search",
    "search_clips",
]
