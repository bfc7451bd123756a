"""The paper's retrieval data sets, Flickr30k and COCO, from the hub or from files of yours, through `datasets`.

    benchmarks.load_benchmark("flickr30k", "test", size=300)                                   # streamed from the hub
    benchmarks.load_benchmark("coco", "val", source="dataset_coco.json", pictures="coco/images")      # your own copy

What comes back is what every task here reads: a `datasets.Dataset` with the columns ``image`` and ``captions``, a row a
picture. `BENCHMARKS` says what each data set is, how its scores are computed, and under which licence it comes. Nothing
of them ships with this package.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, Features, Image, List, Value, concatenate_datasets, get_dataset_split_names, load_dataset
from datasets.exceptions import DatasetGenerationError
from pyarrow import ArrowException

from uniadapter_edu.backbones import abridged
from uniadapter_edu.errors import UniAdapterError

SPLITS = ("train", "val", "test")
ALIASES = {"train": ("train", "restval"), "val": ("val", "validation", "dev"), "test": ("test",)}
CAPTIONS = ("captions", "caption", "sentences", "sentences_raw", "alt_text", "text")  # what their column is called
KEYS = ("image_id", "cocoid", "imgid", "img_id", "filename", "image")  # what tells pictures apart
WORDS = 30  # of a caption that BLIP reads
FEATURES = Features({"image": Image(), "captions": List(Value("string"))})


@dataclass(frozen=True)
class Benchmark:
    """One data set: what it is, how it is scored, where it comes from."""

    title: str
    images: dict[str, int]  # pictures in each split
    captions: int  # of a picture; a few have more
    protocol: str
    licence: str
    home: str  # where its makers tell of it
    hub: str  # a copy on the hub, its pictures included; its owners, not ours, decide what is there

    def __str__(self) -> str:
        sizes = ", ".join(f"{split} {n:,}" for split, n in self.images.items())
        facts = {"pictures": sizes, "protocol": self.protocol, "licence": self.licence, "home": self.home}
        facts |= {"on the hub": self.hub}
        return "\n".join([self.title, *(f"  {name:<11} {fact}" for name, fact in facts.items())])


BENCHMARKS = {
    "flickr30k": Benchmark(
        title="Flickr30k (Young et al., 2014), Karpathy's split",
        images={"train": 29_000, "val": 1_014, "test": 1_000},
        captions=5,
        protocol="all captions of the split against all its pictures, both ways; five captions a picture",
        licence="non-commercial research and teaching only; the pictures under Flickr's terms of use",
        home="https://shannon.cs.illinois.edu/DenotationGraph/",
        hub="umaru97/flickr30k_train_val_test",
    ),
    "coco": Benchmark(
        title="COCO captions (Lin et al., 2014), Karpathy's split",
        images={"train": 113_287, "val": 5_000, "test": 5_000},
        captions=5,
        protocol="all captions of the split against all its 5,000 pictures, both ways; five captions a picture",
        licence="captions CC BY 4.0; the pictures under Flickr's terms of use",
        home="https://cocodataset.org",
        hub="bitmind/MS-COCO",
    ),
}


def load_benchmark(
    name: str,
    split: str = "test",
    size: int | None = None,
    source: str | os.PathLike | None = None,
    pictures: str | os.PathLike | None = None,
    clean: bool = True,
) -> Dataset:
    """A split of one of `BENCHMARKS`, as a data set with the columns ``image`` and ``captions`` (list of str).

    split     "train" (for COCO with "restval", as is usual), "val" or "test"
    size      the first so many pictures, all if None; the hub is read no further than they take
    source    None or a hub id; a folder of parquet files named after their splits, as on the hub; one parquet file; or
              the annotations as JSON, in the form that Karpathy published or in BLIP's
    pictures  the folder that holds the pictures, where ``source`` has only their names
    clean     whether captions are made as BLIP reads them, see `clean_caption`

    Raises `UniAdapterError` if something of that is not there, or if no captions or pictures are found in it.
    """
    _check(name, split, size)
    place = os.fspath(source or BENCHMARKS[name].hub)
    rows = _from_json(Path(place), split) if place.endswith(".json") else _from_datasets(place, split, size)
    if not len(rows):
        raise UniAdapterError(f"{place} has no rows of the split {split}.", "Choose another split, or another source.")
    places, captions = _by_picture(rows, place)
    places, captions = places[:size], [_cleaned(own, clean) for own in captions[:size]]
    rows = rows.select(places)
    if "image" not in rows.column_names or isinstance(rows.features["image"], Value):
        files = _picture_files(rows, pictures)
        return Dataset.from_dict({"image": files, "captions": captions}, features=FEATURES)
    # The captions become a new column, so that the pictures need not be copied.
    rows = rows.select_columns(["image"]).cast_column("image", Image())
    return rows.add_column("captions", captions, feature=FEATURES["captions"])


def clean_caption(text: str, words: int = WORDS) -> str:
    """A caption as BLIP was trained on it: lower case, no punctuation, one space between words, at most 30 of them.

    Apostrophes, hyphens and commas stay, as they do in BLIP's published code.
    """
    kept = re.sub(r'[.!"()*#:;~]', " ", text.lower())
    return " ".join(kept.split()[:words])


# ---- rows, in whatever form they come


def _from_json(path: Path, split: str) -> Dataset:
    """The rows of one split of annotations in Karpathy's form (an object with "images") or in BLIP's (a list)."""
    if not path.is_file():
        raise UniAdapterError(f"There is no file {path}.", "Check the path.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UniAdapterError(f"{path} is not valid JSON: {error}.", "Copy or download it again.") from error
    rows = content.get("images") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UniAdapterError(
            f"{path} holds no list of pictures: neither an object with images, as Karpathy's files do, nor a list.",
            "Give dataset_flickr30k.json, dataset_coco.json, or an annotation file of BLIP's.",
        )
    known = (*CAPTIONS, *KEYS, "filepath")
    try:
        return Dataset.from_list([{name: row[name] for name in known if name in row} for row in _of_split(rows, split)])
    except (ArrowException, TypeError) as error:
        raise UniAdapterError(
            f"The rows of {path} are not all of one form: {error}.",
            "Write every caption, and every name, the same way.",
        ) from error


def _from_datasets(place: str, split: str, size: int | None) -> Dataset:
    """The rows of one split from parquet files or from the hub; with a ``size`` no more are read than that takes."""
    try:
        parts = [load_dataset(**part, streaming=size is not None) for part in _parts(place, split)]
        rows = concatenate_datasets(parts)
        if size is None:
            names = rows["split"] if "split" in rows.column_names else [split] * len(rows)
            return rows.select([i for i, name in enumerate(names) if name in ALIASES[split]])
        if "image" in rows.column_names and not isinstance(rows.features["image"], Value):
            rows = rows.cast_column("image", Image(decode=False))
        return Dataset.from_list(list(_first(rows, split, size)), features=rows.features)
    except (OSError, RuntimeError, ArrowException, DatasetGenerationError) as error:
        raise UniAdapterError(
            f"{place} cannot be read: {str(error).strip().splitlines()[0]}",
            "Give a hub id, with a connection to the hub; a folder of parquet files; one such file; or a JSON file.",
        ) from error


def _parts(place: str, split: str) -> list[dict]:
    """What `load_dataset` has to be asked for: the parts that are named after the split, or else all there are."""
    if os.path.isfile(place):
        return [{"path": "parquet", "data_files": place, "split": "train"}]
    if place.startswith((".", "/", "~")) and not os.path.isdir(place):
        raise UniAdapterError(f"There is no folder and no file {place}.", "Check the path, or give a hub id.")
    names = get_dataset_split_names(place)
    own = [name for name in names if name in ALIASES[split]]
    if not own and not _says_splits(place, names[0]):
        raise UniAdapterError(
            f"{place} has the splits {', '.join(names)}, and no column that says which rows are {split}.",
            f"Name its files after their splits, such as {split}.parquet, or give one of them.",
        )
    return [{"path": place, "split": name} for name in own or names]


def _says_splits(place: str, name: str) -> bool:
    return "split" in (load_dataset(place, split=name, streaming=True).column_names or [])


def _of_split(rows: Iterable[dict], split: str) -> Iterator[dict]:
    """The rows whose "split" is this one; all where there is no such thing."""
    return (row for row in rows if row.get("split", split) in ALIASES[split])


def _first(rows: Iterable[dict], split: str, size: int) -> Iterator[dict]:
    """The rows of a split up to the one with which a picture too many would begin."""
    seen = set()
    for i, row in enumerate(_of_split(rows, split)):
        seen.add(_picture(row, i))
        if len(seen) > size:
            return
        yield row


# ---- captions and pictures


def _by_picture(rows: Dataset, place: str) -> tuple[list[int], list[list[str]]]:
    """For each picture the first of its rows and its captions, whether these stand in one row or in several."""
    column = next((name for name in CAPTIONS if name in rows.column_names), None)
    if column is None:
        raise UniAdapterError(
            f"{place} has no captions, only the columns {', '.join(rows.column_names)}.",
            f"Rename the column that holds them to one of {', '.join(CAPTIONS)}.",
        )
    # Without what would have to be decoded.
    told = [name for name in (column, *KEYS) if isinstance(rows.features.get(name), Value) or name == column]
    firsts, captions = {}, {}
    for i, row in enumerate(rows.select_columns(told)):
        key = _picture(row, i)
        firsts.setdefault(key, i)
        captions.setdefault(key, []).extend(_texts(row[column]))
    for key, own in captions.items():
        if not own:
            raise UniAdapterError(f"Row {firsts[key]} of {place} has no caption.", "Leave it out, or give it one.")
    return list(firsts.values()), list(captions.values())


def _picture(row: dict, i: int):
    """What the rows of one picture have in common: its name where a row holds one caption; else each row is one."""
    captions = next((row[name] for name in CAPTIONS if name in row), [])
    names = [] if isinstance(captions, list) else [row.get(name) for name in KEYS]
    return next((name for name in names if isinstance(name, (str, int))), i)


def _texts(value) -> list[str]:
    """A caption or several, as str, or as the objects with "raw" in which Karpathy keeps them."""
    values = value if isinstance(value, list) else [value]
    texts = [each.get("raw") if isinstance(each, dict) else each for each in values]
    return [text for text in texts if isinstance(text, str) and text.strip()]


def _picture_files(rows: Dataset, pictures: str | os.PathLike | None) -> list[str]:
    """The path of each row's picture, below ``pictures`` with the folder that the row names, or without it."""
    if pictures is None or not Path(pictures).is_dir():
        raise UniAdapterError(
            f"The rows hold the names of pictures but not the pictures, and pictures is {pictures!r}.",
            "Give pictures=, the folder in which they lie.",
        )
    root, files, missing = Path(pictures), [], []
    for row in rows.select_columns([n for n in ("image", "filepath", "filename") if n in rows.column_names]):
        name = row.get("image") or os.path.join(row.get("filepath") or "", row.get("filename") or "")
        found = next((p for p in (root / name, root / Path(name).name) if p.is_file()), None)
        files.append(str(found))
        missing += [] if found else [name]
    if missing:
        raise UniAdapterError(
            f"{len(missing)} of {len(files)} pictures are not in {root}: {abridged(missing)}.",
            "Check the folder, and that all archives of the pictures are unpacked in it.",
        )
    return files


def _cleaned(texts: list[str], clean: bool) -> list[str]:
    """Captions as they are to be read; different ones that are the same when cleaned stay two."""
    return [clean_caption(text) or text for text in texts] if clean else texts


def _check(name: str, split: str, size: int | None) -> None:
    if name not in BENCHMARKS:
        raise UniAdapterError(f"There is no benchmark {name!r}.", f"Choose one of {', '.join(BENCHMARKS)}.")
    if split not in SPLITS:
        raise UniAdapterError(f"There is no split {split!r}.", f"Choose one of {', '.join(SPLITS)}.")
    if size is not None and (not isinstance(size, int) or size < 1):
        raise UniAdapterError(f"size is {size!r}, expected None or a whole number of at least 1.", "Try size=100.")
