"""What each task trains on, and how it is scored."""

from uniadapter_edu.tasks.retrieval import RetrievalTask, evaluate_retrieval, search

__all__ = ["RetrievalTask", "evaluate_retrieval", "search"]
