"""The paper's data sets, from the hub or from files of yours, read by `datasets` and, where they are clips, by PyAV.

    benchmarks.load_benchmark("flickr30k", "test", size=300)                                   # streamed from the hub
    benchmarks.load_benchmark("coco", "val", source="dataset_coco.json", pictures="coco/images")      # your own copy
    benchmarks.load_benchmark("msrvtt-qa", "test", source="annotations", pictures="videos", frames=8)

What comes back is what the tasks here read: rows with ``image`` or ``frames``, and ``captions`` or ``question`` and
``answer``. `BENCHMARKS` says what each data set is, which forms of it are read, how its scores are computed, and under
which licence it comes. Nothing of them ships with this package. Files are read as data (JSON, CSV, parquet, pictures,
videos): no pickle is opened, and no script of a data set is run.
"""

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, Features, Image, List, Value, concatenate_datasets, get_dataset_split_names, load_dataset
from datasets.exceptions import DatasetGenerationError
from pyarrow import ArrowException

from uniadapter_edu.backbones import abridged
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.worlds.annotations import ALIASES, is_annotations, read_annotations
from uniadapter_edu.worlds.videos import Videos, find_videos

SPLITS = ("train", "val", "test")
# What the column of captions is called.
CAPTIONS = ("captions", "caption", "sentences", "sentences_raw", "alt_text", "text", "description")
ANSWERS = ("answers", "answer", "multiple_choice_answer")
VIDEOS = ("video", "video_id", "clip_name", "video_name")  # what a clip is called by
KEYS = ("image_id", "cocoid", "imgid", "img_id", "filename", "image", *VIDEOS)  # what tells pictures apart
WORDS = 30  # of a caption that BLIP reads
FEATURES = Features({"image": Image(), "captions": List(Value("string"))})
FRAMES = 8  # of a clip


@dataclass(frozen=True)
class Benchmark:
    """One data set: what it is, what is done with it, how that is scored, where it comes from."""

    title: str
    job: str  # what is done with it: one of `jobs.JOBS`
    sizes: dict[str, int]  # pictures, clips or, where there are questions, questions in each split
    texts: str  # what is said of each
    forms: str  # in which it is read from your own files; ``pictures`` is the folder of the pictures or clips
    protocol: str
    licence: str
    home: str  # where its makers tell of it
    hub: str | None = None  # a copy on the hub, its pictures included; its owners, not ours, decide what is there
    scored_on: str = "test"  # the split
    joined: bool = False  # whether all that is said of one clip becomes one text

    @property
    def asks(self) -> bool:
        """Whether it holds questions; captions else."""
        return "questions" in self.job

    @property
    def moves(self) -> bool:
        """Whether it is of clips; of pictures else."""
        return "clip" in self.job

    def __str__(self) -> str:
        sizes = ", ".join(f"{split} {n:,}" for split, n in self.sizes.items())
        facts = {"task": self.job, "sizes": sizes, "texts": self.texts, "your files": self.forms}
        facts |= {"protocol": self.protocol, "licence": self.licence, "home": self.home}
        facts |= {"on the hub": self.hub or "no copy that can be read without unpacking archives"}
        return "\n".join([self.title, *(f"  {name:<11} {fact}" for name, fact in facts.items())])


_KARPATHY = "Karpathy's JSON, BLIP's JSON (a file for each split), or parquet files named after the splits"
_FLICKR = "the pictures under Flickr's terms of use"
_COCO = {"sizes": {"train": 113_287, "val": 5_000, "test": 5_000}, "texts": "five captions, a few have more"}
_COCO |= {"forms": _KARPATHY, "licence": f"captions CC BY 4.0; {_FLICKR}", "home": "https://cocodataset.org"}
_COCO |= {"hub": "bitmind/MS-COCO"}
_MSRVTT = {"licence": "for research; the clips are YouTube's, under its terms"}
_MSRVTT |= {"home": "https://www.microsoft.com/en-us/research/publication/msr-vtt-a-large-video-description-dataset"}

BENCHMARKS = {
    "flickr30k": Benchmark(
        title="Flickr30k (Young et al., 2014), Karpathy's split",
        job="pictures",
        sizes={"train": 29_000, "val": 1_014, "test": 1_000},
        texts="five captions",
        forms=_KARPATHY,
        protocol="R@k: all captions of the split against all its pictures, both ways; five captions a picture",
        licence=f"non-commercial research and teaching only; {_FLICKR}",
        home="https://shannon.cs.illinois.edu/DenotationGraph/",
        hub="umaru97/flickr30k_train_val_test",
    ),
    "coco": Benchmark(
        title="COCO captions (Lin et al., 2014), Karpathy's split, for retrieval",
        job="pictures",
        protocol="R@k: all captions of the split against all its 5,000 pictures, both ways; five captions a picture",
        **_COCO,
    ),
    "coco-captions": Benchmark(
        title="COCO captions (Lin et al., 2014), Karpathy's split, for captioning",
        job="captions",
        protocol="CIDEr-D and BLEU against all captions of a picture; words are split at spaces and punctuation, where "
        "the published scores come from the tokenizer of the Penn treebank",
        **_COCO,
    ),
    "vqav2": Benchmark(
        title="VQA v2.0 (Goyal et al., 2017)",
        job="picture questions",
        sizes={"train": 443_757, "val": 214_354},
        texts="a question with ten human answers; the most frequent one is trained",
        forms="the published annotations, the questions beside them; BLIP's JSON; or parquet files",
        protocol="VQA accuracy: min(1, people who said so / 3), averaged over all nine of ten people; scored on val, for "
        "the answers of test are its makers' secret",
        licence=f"annotations CC BY 4.0; {_FLICKR}",
        home="https://visualqa.org",
        hub="lmms-lab/VQAv2",
        scored_on="val",
    ),
    "msrvtt": Benchmark(
        title="MSR-VTT (Xu et al., 2016), split 1k-A (Yu et al., 2018)",
        job="clips",
        sizes={"train": 9_000, "test": 1_000},
        texts="20 captions for training, one in test",
        forms="MSRVTT_data.json with MSRVTT_JSFUSION_test.csv (and MSRVTT_train.9k.csv or .7k.csv) beside it; or JSON "
        "(lines) with video or video_id and caption, a file for each split",
        protocol="R@k: 1,000 captions against 1,000 clips, one for each, both ways",
        **_MSRVTT,
    ),
    "msrvtt-qa": Benchmark(
        title="MSRVTT-QA (Xu et al., 2017)",
        job="clip questions",
        sizes={"train": 158_581, "val": 12_278, "test": 72_821},
        texts="a question with one answer, made of a caption",
        forms="train_qa.json, val_qa.json and test_qa.json; or JSON (lines) with video or video_id, question and answer",
        protocol="the share of answers that are exactly the right one",
        **_MSRVTT,
    ),
    "didemo": Benchmark(
        title="DiDeMo (Hendricks et al., 2017)",
        job="clips",
        sizes={"train": 8_395, "val": 1_065, "test": 1_004},
        texts="all descriptions of a clip, joined to one paragraph",
        forms="train_data.json, val_data.json and test_data.json; or JSON (lines) with video and caption",
        protocol="R@k: paragraphs against clips, one for each, both ways",
        licence="annotations BSD 2-clause; the clips are Flickr's, Creative Commons each",
        home="https://github.com/LisaAnne/LocalizingMoments",
        joined=True,
    ),
}


def load_benchmark(
    name: str,
    split: str = "test",
    size: int | None = None,
    source: str | os.PathLike | None = None,
    pictures: str | os.PathLike | None = None,
    clean: bool = True,
    frames: int = FRAMES,
    missing: str = "stop",
) -> Dataset | Videos:
    """A split of one of `BENCHMARKS`: rows with ``image`` or ``frames``, and ``captions``, or ``question`` and ``answer``.

    split     "train" (for COCO with "restval", as is usual), "val" or "test"
    size      the first so many pictures, clips or questions, all if None; the hub is read no further than they take
    source    None or a hub id; a folder of parquet files named after their splits, as on the hub; one parquet file; the
              annotations in one of the benchmark's ``forms``, or a folder of these with a file for each split
    pictures  the folder that holds the pictures or clips, where ``source`` has only their names
    clean     whether captions and questions are made as BLIP reads them, see `clean_caption`
    frames    of each clip, spread evenly
    missing   "stop" where a picture or clip is not in the folder, or "skip" it, with a warning that counts them

    VQAv2's rows also have ``answers``, what all people said. Raises `UniAdapterError` if something of that is not there,
    or if no texts or pictures are found in it.
    """
    _check(name, split, size, frames, missing)
    benchmark = BENCHMARKS[name]
    if source is None and benchmark.hub is None:
        raise UniAdapterError(
            f"There is no copy of {name} on the hub that could be read.", "Give source= and pictures=."
        )
    place = os.fspath(source or benchmark.hub)
    rows = _annotated(place, split) if is_annotations(place) else _from_datasets(place, split, size)
    if not len(rows):
        raise UniAdapterError(f"{place} has no rows of the split {split}.", "Choose another split, or another source.")
    chosen, texts = (
        _questions(rows, place, clean) if benchmark.asks else _captions(rows, place, clean, benchmark.joined)
    )
    chosen, texts = chosen[:size], {column: values[:size] for column, values in texts.items()}
    return _shown(rows.select(chosen), texts, pictures, frames if benchmark.moves else None, missing == "skip")


def _shown(rows: Dataset, texts: dict[str, list], pictures, frames: int | None, skip: bool) -> Dataset | Videos:
    """Rows with their pictures, or with ``frames`` of their clips, beside the texts that belong to them."""
    features = Features({"image": Image(), **{name: _feature(values) for name, values in texts.items()}})
    if frames is None and "image" in rows.column_names and not isinstance(rows.features["image"], Value):
        # The texts become new columns, so that the pictures need not be copied.
        try:
            rows = rows.select_columns(["image"]).cast_column("image", Image())
        except (ArrowException, TypeError, ValueError, LookupError) as error:
            raise UniAdapterError(
                f"The column image holds no pictures: {error}.", "Write names of files, or pictures as `datasets` does."
            ) from error
        for name, values in texts.items():
            rows = rows.add_column(name, values, feature=features[name])
        return rows
    files = _files(rows, pictures, frames is not None, skip)
    there = [i for i, file in enumerate(files) if file]
    files, texts = [files[i] for i in there], {name: [values[i] for i in there] for name, values in texts.items()}
    return (
        Dataset.from_dict({"image": files, **texts}, features=features)
        if frames is None
        else Videos(files, texts, frames)
    )


def _feature(values: list):
    return List(Value("string")) if isinstance(values[0], list) else Value("string")


def clean_caption(text: str, words: int = WORDS) -> str:
    """A caption as BLIP was trained on it: lower case, no punctuation, one space between words, at most 30 of them.

    Apostrophes, hyphens and commas stay, as they do in BLIP's published code.
    """
    kept = re.sub(r'[.!"()*#:;~]', " ", text.lower())
    return " ".join(kept.split()[:words])


# ---- rows, in whatever form they come


def _annotated(place: str, split: str) -> Dataset:
    """The rows of one split of annotations, with what is known by name in them."""
    known = (*CAPTIONS, *KEYS, *ANSWERS, "question", "filepath")
    rows = [{name: row[name] for name in known if name in row} for row in read_annotations(place, split)]
    try:
        return Dataset.from_list(rows)
    except (ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UniAdapterError(
            f"The rows of {place} are not all of one form: {error}.",
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
    except UniAdapterError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, ArrowException, DatasetGenerationError) as error:
        raise UniAdapterError(
            f"{place} cannot be read: {(str(error).strip().splitlines() or [type(error).__name__])[0]}",
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


# ---- texts


def _captions(rows: Dataset, place: str, clean: bool, joined: bool) -> tuple[list[int], dict[str, list]]:
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
    texts = [[" ".join(own)] if joined else own for own in captions.values()]
    return list(firsts.values()), {"captions": [_cleaned(own, clean) for own in texts]}


def _questions(rows: Dataset, place: str, clean: bool) -> tuple[list[int], dict[str, list]]:
    """All rows, and their questions and answers; all that people answered, too, where that is more than one thing."""
    columns = [name for name in ANSWERS if name in rows.column_names]
    if "question" not in rows.column_names or not columns:
        raise UniAdapterError(
            f"{place} has no questions with answers, only the columns {', '.join(rows.column_names)}.",
            "Choose a split with answers, and name the columns question and answer.",
        )
    several = not isinstance(rows.features[columns[0]], Value)
    texts = {"question": [], "answer": []} | ({"answers": []} if several else {})
    for i, row in enumerate(rows.select_columns(["question", *columns])):
        said = _texts(row[columns[0]], "answer")
        if not said or not isinstance(row["question"], str) or not row["question"].strip():
            raise UniAdapterError(f"Row {i} of {place} has no question, or no answer.", "Leave it out.")
        texts["question"] += _cleaned([row["question"]], clean)
        chosen = _texts(row.get("multiple_choice_answer"))
        texts["answer"].append(chosen[0] if chosen else Counter(said).most_common(1)[0][0])
        if several:
            texts["answers"].append(said)
    return list(range(len(rows))), texts


def _picture(row: dict, i: int):
    """What the rows of one picture have in common: its name where a row holds one caption; else each row is one."""
    captions = next((row[name] for name in CAPTIONS if name in row), [])
    names = [] if isinstance(captions, list) else [row.get(name) for name in KEYS]
    return next((name for name in names if isinstance(name, (str, int))), i)


def _texts(value, key: str = "raw") -> list[str]:
    """A caption or several, as str, or as the objects with "raw" in which Karpathy keeps them (VQAv2: "answer")."""
    values = value if isinstance(value, list) else [value]
    texts = [each.get(key) if isinstance(each, dict) else each for each in values]
    return [text for text in texts if isinstance(text, str) and text.strip()]


def _cleaned(texts: list[str], clean: bool) -> list[str]:
    """Captions as they are to be read; different ones that are the same when cleaned stay two."""
    return [clean_caption(text) or text for text in texts] if clean else texts


# ---- pictures and clips


def _files(rows: Dataset, pictures: str | os.PathLike | None, clips: bool, skip: bool) -> list[str | None]:
    """The path of each row's picture or clip below ``pictures``; with ``skip`` None where there is none."""
    what = "clips" if clips else "pictures"
    if pictures is None or not Path(pictures).is_dir():
        raise UniAdapterError(
            f"The rows hold the names of {what} but not the {what}, and pictures is {pictures!r}.",
            "Give pictures=, the folder in which they lie.",
        )
    names = _clip_names(rows) if clips else _picture_names(rows)
    files = find_videos(names, pictures) if clips else [_picture_file(Path(pictures), name) for name in names]
    missing = [name for name, file in zip(names, files) if file is None]
    if missing and not (skip and len(missing) < len(files)):
        raise UniAdapterError(
            f"{len(missing)} of {len(files)} {what} are not in {pictures}: {abridged(missing)}.",
            "Check the folder, and that all archives are unpacked in it; missing='skip' does without them.",
        )
    if missing:
        warnings.warn(f"{len(missing)} of {len(files)} {what} are not in {pictures} and are skipped.", stacklevel=4)
    return [file and str(file) for file in files]


def _picture_names(rows: Dataset) -> list[str]:
    names = []
    for row in rows.select_columns([n for n in ("image", "filepath", "filename") if n in rows.column_names]):
        below = os.path.join(str(row.get("filepath") or ""), str(row.get("filename") or ""))
        names.append(str(row.get("image") or below))
    return names


def _picture_file(root: Path, name: str) -> Path | None:
    """With the folder that the row names, or without it; nothing outside of ``root``."""
    inside = [] if os.path.isabs(name) or ".." in Path(name).parts else [root / name]
    return next((p for p in (*inside, root / Path(name).name) if os.path.isfile(p)), None)


def _clip_names(rows: Dataset) -> list[str]:
    """The names of clips; MSRVTT-QA has numbers instead."""
    column = next((name for name in VIDEOS if name in rows.column_names), None)
    if column is None:
        raise UniAdapterError(
            f"The rows do not say of which clip they are, they have only {', '.join(rows.column_names)}.",
            f"Name the column that says it one of {', '.join(VIDEOS)}.",
        )
    return [f"video{name}" if isinstance(name, int) else str(name) for name in rows[column]]


def _check(name: str, split: str, size: int | None, frames: int, missing: str) -> None:
    if name not in BENCHMARKS:
        raise UniAdapterError(f"There is no benchmark {name!r}.", f"Choose one of {', '.join(BENCHMARKS)}.")
    if split not in SPLITS:
        raise UniAdapterError(f"There is no split {split!r}.", f"Choose one of {', '.join(SPLITS)}.")
    if size is not None and (not isinstance(size, int) or size < 1):
        raise UniAdapterError(f"size is {size!r}, expected None or a whole number of at least 1.", "Try size=100.")
    if not isinstance(frames, int) or frames < 1:
        raise UniAdapterError(f"frames is {frames!r}, expected a whole number of at least 1.", "Try frames=8.")
    if missing not in ("stop", "skip"):
        raise UniAdapterError(f"missing is {missing!r}, expected 'stop' or 'skip'.", "Choose one of these.")
