"""Your own pictures and your own words, in the form in which every task here reads them."""

import os
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from uniadapter_edu.backbones import abridged
from uniadapter_edu.errors import UniAdapterError, UnreadableError
from uniadapter_edu.reading import DAMAGED, is_text
from uniadapter_edu.worlds.annotations import read_csv

FEATURES = Features({"image": Image(), "captions": List(Value("string"))})
QUESTIONS = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})


def own_pictures(pictures: Sequence[str | Path | PILImage.Image], captions: Sequence[str | Sequence[str]]) -> Dataset:
    """A `datasets.Dataset` with the columns `image` and `captions` from files or PIL pictures and their captions.

    pictures  paths or PIL pictures of any size and mode; the processor resizes them
    captions  for each picture a caption, or a list of differently worded ones
    """
    if len(pictures) != len(captions) or not pictures:
        raise UniAdapterError(
            f"{len(pictures)} pictures and {len(captions)} captions were given; as many of each were expected, at least one.",
            "Give one caption, or one list of captions, for each picture.",
        )
    rows = []
    for picture, words in zip(pictures, captions):
        words = [words] if isinstance(words, str) else list(words)
        if not words or not all(is_text(w) and w.strip() for w in words):
            raise UniAdapterError(f"the captions of {picture!r} are {words!r}.", "Give at least one non-empty caption.")
        rows.append({"image": _picture(picture), "captions": words})
    return Dataset.from_list(rows, features=FEATURES)


def _picture(picture: str | Path | PILImage.Image) -> PILImage.Image:
    """A picture, or the file of one, in RGB."""
    if not isinstance(picture, PILImage.Image) and not Path(picture).is_file():
        raise UniAdapterError(f"there is no picture at {picture}.", "Check the path.")
    try:
        return (picture if isinstance(picture, PILImage.Image) else PILImage.open(picture)).convert("RGB")
    except DAMAGED as error:
        raise UnreadableError(f"{picture} cannot be read: {error}", "Get it again, or leave it out.") from error


def own_folder(folder: str | os.PathLike, table: str | os.PathLike) -> Dataset:
    """A data set from a folder of pictures and a CSV file about them, for retrieval and captioning or for answering.

    table  with a header: `file`, relative to the folder, and `caption`, or `question` and `answer`. A picture with several
           captions, or several questions, has several lines. Other columns are ignored.

    Returns the columns `image` and `captions`, one row a picture; or `image`, `question` and `answer`, one row a question.
    Raises `UniAdapterError` that names missing columns, the lines that say nothing, and pictures that are not there.
    """
    lines = _lines(Path(table))
    missing = dict.fromkeys(line["file"] for line in lines if not os.path.isfile(Path(folder) / line["file"]))
    if missing:
        raise UniAdapterError(
            f"{len(missing)} pictures of {table} are not in {folder}: {abridged(list(missing))}.",
            "Check the names, which are relative to the folder.",
        )
    if "caption" in lines[0]:
        captions: dict[str, list[str]] = {}
        for line in lines:
            captions.setdefault(line["file"], []).append(line["caption"])
        return own_pictures([Path(folder) / file for file in captions], list(captions.values()))
    rows = [{"question": line["question"], "answer": line["answer"]} for line in lines]
    for row, line in zip(rows, lines):
        row["image"] = str(Path(folder) / line["file"])  # read when it is asked for
    return Dataset.from_list(rows, features=QUESTIONS)


def _lines(table: Path) -> list[dict[str, str]]:
    """The lines of a CSV file, with the columns that matter, none of them empty."""
    if not table.is_file():
        raise UniAdapterError(f"there is no table at {table}.", "Check the path.")
    known, lines = read_csv(table)
    words = ["caption"] if "caption" in known else ["question", "answer"]
    if missing := [name for name in ("file", *words) if name not in known]:
        raise UniAdapterError(
            f"{table} has no column {' and no column '.join(missing)}, only {', '.join(known) or 'nothing'}.",
            "Its first line must name file and caption, or file, question and answer.",
        )
    lines = [{name: (line[name] or "").strip() for name in ("file", *words)} for line in lines]
    if empty := [str(i) for i, line in enumerate(lines, start=2) if not all(line.values())]:
        raise UniAdapterError(
            f"{len(empty)} lines of {table} lack something: {abridged(empty)} (the header is line 1).",
            "Fill them in or leave them out.",
        )
    if not lines:
        raise UniAdapterError(f"{table} has a header and no lines.", "Write one line for each caption or question.")
    return lines
