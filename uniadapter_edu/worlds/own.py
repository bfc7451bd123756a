"""Your own pictures and your own words, in the form in which every task here reads them."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from uniadapter_edu.errors import UniAdapterError

FEATURES = Features({"image": Image(), "captions": List(Value("string"))})


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
        if not words or not all(isinstance(w, str) and w.strip() for w in words):
            raise UniAdapterError(f"the captions of {picture!r} are {words!r}.", "Give at least one non-empty caption.")
        if not isinstance(picture, PILImage.Image):
            if not Path(picture).is_file():
                raise UniAdapterError(f"there is no picture at {picture}.", "Check the path.")
            picture = PILImage.open(picture)
        rows.append({"image": picture.convert("RGB"), "captions": words})
    return Dataset.from_list(rows, features=FEATURES)
