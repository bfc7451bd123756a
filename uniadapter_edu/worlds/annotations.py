"""The forms in which the annotations of the paper's data sets are published, all read as plain rows.

A row is a dict with what a form says under the names that `benchmarks` knows: the picture or video, and its captions or
its question and answers. JSON, JSON lines and CSV are read as text; nothing here can run code.
"""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

from uniadapter_edu.errors import UniAdapterError

SUFFIXES = (".json", ".jsonl", ".csv")
ALIASES = {"train": ("train", "restval"), "val": ("val", "validation", "validate", "dev"), "test": ("test",)}


def is_annotations(place: str) -> bool:
    """Whether a place is a file of annotations, or a folder that holds some."""
    path = Path(place)
    return path.suffix in SUFFIXES or (path.is_dir() and any(p.suffix in SUFFIXES for p in path.iterdir()))


def read_annotations(place: str, split: str) -> list[dict]:
    """The rows of one split of a file, or of a folder with one file for each split.

    Raises `UniAdapterError` if there is no such file, if it is damaged, or if its form is unknown.
    """
    path = Path(place)
    if path.is_dir():
        if whole := [p for p in path.glob("*.json") if p.stem.lower() in ("msrvtt_data", "msrvtt_v2")]:
            return _msrvtt(read_json(whole[0]), path, split)
        path = _file_of_split(path, split)
    if not path.is_file():
        raise UniAdapterError(f"There is no file {path}.", "Check the path.")
    content = read_csv(path)[1] if path.suffix == ".csv" else read_json(path)
    if isinstance(content, dict) and {"videos", "sentences"} <= content.keys():
        return _msrvtt(content, path.parent, split)
    if isinstance(content, dict) and content.get("annotations"):
        return _vqa(content, path)
    rows = content.get("images") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UniAdapterError(
            f"{path} holds no list of pictures: neither an object with images, as Karpathy's files do, nor a list.",
            "Give one of the files that load_benchmark names, as they are published.",
        )
    return [row for row in rows if row.get("split", split) in ALIASES[split]]


def read_json(path: Path):
    """A JSON file, or the list of the objects of a file of JSON lines."""
    try:
        text = path.read_text(encoding="utf-8")
        return (
            [json.loads(line) for line in text.splitlines() if line.strip()]
            if path.suffix == ".jsonl"
            else json.loads(text)
        )
    except (ValueError, RecursionError) as error:
        raise UniAdapterError(f"{path} is not valid JSON: {error}.", "Copy or download it again.") from error


def read_csv(path: Path) -> tuple[list[str], list[dict]]:
    """The header of a CSV file, and its lines."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            return list(reader.fieldnames or []), list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UniAdapterError(f"{path} is not a readable CSV file: {error}.", "Save it as CSV in UTF-8.") from error


def _file_of_split(folder: Path, split: str) -> Path:
    """The one file of a folder that is named after the split; of the two files of VQAv2, the annotations."""
    word = re.compile(rf"(?<![a-z])({'|'.join(ALIASES[split])})(?![a-z])")
    found = [p for p in sorted(folder.iterdir()) if p.suffix in SUFFIXES and word.search(p.stem.lower())]
    found = [p for p in found if "annotations" in p.name] or found
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise UniAdapterError(
            f"{folder} should have one file of annotations that is named after the split {split}; it has {names}.",
            f"Name it so, such as {split}.json, or give the file itself.",
        )
    return found[0]


# ---- forms of their own


def _vqa(content: dict, path: Path) -> list[dict]:
    """VQAv2's annotations, whose questions are in a second file beside them, as rows of questions."""
    year = re.search(r"(train|val|test)\d{4}", path.name)
    year = year.group() if year else str(content.get("data_subtype", ""))
    beside = [p for p in path.parent.glob("*questions*.json") if year in p.name]
    if len(beside) != 1:
        raise UniAdapterError(
            f"The questions to {path} should be one file beside it, with questions and {year} in its name.",
            "Put v2_OpenEnded_mscoco_..._questions.json there, as it is published.",
        )
    rows = []
    try:
        asked = {row["question_id"]: row["question"] for row in read_json(beside[0])["questions"]}
        for row in content["annotations"]:
            image = f"{year}/COCO_{year}_{int(row['image_id']):012d}.jpg"
            known = {"answers": row["answers"], "multiple_choice_answer": row["multiple_choice_answer"]}
            rows.append({"image": image, "question": asked[row["question_id"]], **known})
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise UniAdapterError(
            f"{path} and {beside[0].name} do not fit together: {error!r} is missing or wrong.", "Download both again."
        ) from error
    return rows


def _msrvtt(content: dict, folder: Path, split: str) -> list[dict]:
    """MSR-VTT's one file of all videos and sentences, split 1k-A by the CSV files beside it."""
    lists = {p.stem.lower(): p for p in folder.glob("*.csv")}
    test = next((p for name, p in lists.items() if "test" in name), None)
    if test is None or split == "val":
        raise UniAdapterError(
            f"{folder} lacks the list of the 1,000 test videos of the 1k-A split, or val was asked for, which it has not.",
            "Put MSRVTT_JSFUSION_test.csv beside MSRVTT_data.json, and ask for train or test.",
        )
    try:
        tested = [{"video_id": row["video_id"], "caption": row["sentence"]} for row in read_csv(test)[1]]
        if split == "test":
            return tested
        train = next((p for name, p in lists.items() if "train" in name), None)
        ours = {row["video_id"] for row in read_csv(train)[1]} if train else None
        theirs = {row["video_id"] for row in tested}
        return list(_sentences(content, ours, theirs))
    except (KeyError, TypeError) as error:
        raise UniAdapterError(
            f"The files of {folder} are not MSR-VTT's: {error!r} is missing.", "Download them again."
        ) from error


def _sentences(content: dict, ours: set[str] | None, theirs: set[str]) -> Iterator[dict]:
    """The sentences about videos that are not tested on, a video's all in one place."""
    of_video: dict[str, list[str]] = {}
    for row in content["sentences"]:
        if row["video_id"] not in theirs and (ours is None or row["video_id"] in ours):
            of_video.setdefault(row["video_id"], []).append(row["caption"])
    return ({"video_id": name, "caption": texts} for name, texts in of_video.items())
