"""What each task trains on, and how it is scored."""

from uniadapter_edu.tasks.retrieval import RetrievalTask, evaluate_retrieval, search
from uniadapter_edu.tasks.video_retrieval import VideoRetrievalTask, evaluate_video_retrieval, search_clips

__all__ = [
    "RetrievalTask",
    "VideoRetrievalTask",
    "evaluate_retrieval",
    "evaluate_video_retrieval",
    "search",
    "search_clips",
]
