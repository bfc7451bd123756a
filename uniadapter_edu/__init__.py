"""uniadapter_edu: learn, use and teach UniAdapter (Lu et al., ICLR 2024), one adapter for all layers of a frozen BLIP.

    import uniadapter_edu as ua

    model = ua.load_backbone()                                         # a BLIP: embedded, from a folder, or from the hub
    ua.insert_adapters(model, ua.UniAdapterConfig(bottleneck=32))      # freezes it, inserts adapters in place
    print(ua.trainable_parameters(model))                              # the ledger: what trains, in percent of the backbone
    ua.save_adapters(model, "my-adapters")                             # some percent of the model's size on disk

The names below stand in the order in which the course meets them.
"""

from uniadapter_edu._versions import check_versions

check_versions()  # before anything imports transformers: a wrong version should say so, not fail somewhere inside

from uniadapter_edu._files import data_path, verify_checksums
from uniadapter_edu.accounting import PeakMemory, bottleneck_for, size_on_disk, trainable_parameters
from uniadapter_edu.adaptation import adapt, adapt_benchmark
from uniadapter_edu.adapter import UniAdapter
from uniadapter_edu.backbones import load_backbone, load_processor
from uniadapter_edu.checkpoint import load_adapters, save_adapters
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.grid import Row, Run, differences, recovered, run_grid, summary
from uniadapter_edu.insertion import (
    adapters_disabled,
    encode_video,
    folded_texts,
    frame_weights,
    freeze,
    fused_attention,
    insert_adapters,
    merge_adapters,
    remove_adapters,
    set_adapter,
)
from uniadapter_edu.methods import full_fine_tuning, linear_probe, lora, lora_rank_for
from uniadapter_edu.metrics import RetrievalMetrics
from uniadapter_edu.momentum import MomentumConfig, MomentumRetrievalTask
from uniadapter_edu.resuming import load_trained
from uniadapter_edu.sharing import SavedAdapters, list_adapters, pull_adapters, push_adapters
from uniadapter_edu.tasks.answering import AnsweringMetrics, AnsweringTask, answer, evaluate_answering, rank_answers
from uniadapter_edu.tasks.captioning import CaptioningMetrics, CaptioningTask, caption, evaluate_captioning
from uniadapter_edu.tasks.retrieval import RetrievalTask, evaluate_retrieval, search
from uniadapter_edu.tasks.video_retrieval import Clips, VideoRetrievalTask, evaluate_video_retrieval, search_clips
from uniadapter_edu.training import History, TrainConfig, train
from uniadapter_edu.worlds import benchmarks, clips, emoji, facts, questions
from uniadapter_edu.worlds.own import own_folder, own_pictures

__version__ = "0.1.0"

# fmt: off
__all__ = [  # noqa: RUF022 (in the order in which the course meets them)
    "load_backbone", "load_processor", "emoji", "own_pictures", "RetrievalTask", "evaluate_retrieval", "search", "RetrievalMetrics",
    "freeze", "trainable_parameters", "linear_probe", "full_fine_tuning",
    "UniAdapterConfig", "UniAdapter", "insert_adapters", "adapters_disabled", "remove_adapters",
    "train", "TrainConfig", "History", "lora", "lora_rank_for", "PeakMemory", "size_on_disk",
    "save_adapters", "load_adapters", "set_adapter",
    "bottleneck_for", "MomentumConfig", "MomentumRetrievalTask", "Run", "Row", "run_grid", "summary", "recovered", "differences",
    "clips", "VideoRetrievalTask", "evaluate_video_retrieval", "search_clips",
    "encode_video", "frame_weights", "folded_texts", "fused_attention", "Clips", "benchmarks",
    "questions", "AnsweringTask", "answer", "rank_answers", "evaluate_answering", "AnsweringMetrics",
    "CaptioningTask", "caption", "evaluate_captioning", "CaptioningMetrics", "facts",
    "own_folder", "adapt", "adapt_benchmark", "load_trained", "list_adapters", "SavedAdapters", "push_adapters", "pull_adapters", "merge_adapters",
    "data_path", "verify_checksums", "UniAdapterError",
]
# fmt: on
