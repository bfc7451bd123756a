"""Clips from video files: of each a few frames, spread evenly, decoded by PyAV when they are asked for.

    clips = Videos(["a.mp4", "b.webm"], {"captions": [["a cat"], ["a dog"]]}, frames=8)
    clips[0]["frames"]        # 8 PIL images

A data set for every task of clips. The frames are the middles of as many equal parts, the same at every time.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from uniadapter_edu.errors import UniAdapterError, UnreadableError

SUFFIXES = {".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp"}
# What may be opened. Others, such as playlists, could name further files, or addresses, which would be opened, too.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,asf"
_LIMITS = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS}


class Videos(Sequence):
    """Rows with ``frames`` (list of PIL images), of one file each, and whatever else is known of it, by column."""

    def __init__(self, files: Sequence[str | os.PathLike], columns: Mapping[str, Sequence], frames: int):
        self.files, self.texts, self.frames = list(files), {n: list(values) for n, values in columns.items()}, frames
        self._last = None, []  # several questions about one clip follow each other

    @property
    def column_names(self) -> list[str]:
        """As a `datasets.Dataset` has them."""
        return ["frames", *self.texts]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: int | str) -> dict | list:
        """A row; or, by its name, a column, for which nothing is decoded. Raises `UnreadableError` for damaged files."""
        if isinstance(key, str):
            return self.texts[key]
        file = self.files[key]
        if self._last[0] != file:
            self._last = file, sample_frames(file, self.frames)
        return {"frames": list(self._last[1]), **{name: values[key] for name, values in self.texts.items()}}

    def select(self, rows: Sequence[int]) -> "Videos":
        """Some of the rows."""
        texts = {name: [values[i] for i in rows] for name, values in self.texts.items()}
        return Videos([self.files[i] for i in rows], texts, self.frames)


def sample_frames(path: str | os.PathLike, count: int) -> list[Image.Image]:
    """``count`` frames of a video file, spread evenly; some come twice if it has fewer.

    Raises `UnreadableError` if the file is lost, damaged, or no video.
    """
    declared, decoded = _decode(path, None, count)
    if not declared or len(decoded) < len(set(_middles(declared, count))):  # it does not say, or there are fewer
        seen = declared = _decode(path, set(), count)[0]
        if not seen:
            raise UnreadableError(f"{path} has no frame", "leave it out, or get it again.")
        decoded = _decode(path, set(_middles(seen, count)), count)[1]
    return [decoded[i] for i in _middles(declared, count)]


def _middles(total: int, count: int) -> list[int]:
    """The frames in the middle of ``count`` equal parts of ``total`` frames."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def _decode(path: str | os.PathLike, wanted: set[int] | None, count: int) -> tuple[int, dict[int, Image.Image]]:
    """The number of frames, and those that are wanted: the middles of as many as the file says that it has, if None.

    With nothing to want, all frames are counted; else it ends with the last one wanted, and the number is what was said.
    """
    av = _pyav()
    try:
        with av.open(os.fspath(path), options=_LIMITS) as container:
            if not container.streams.video:
                raise UnreadableError(f"{path} has no video in it", "leave it out, or get it again.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            declared = stream.frames
            wanted = set(_middles(declared, count)) if wanted is None else wanted
            images, seen = {}, 0
            for seen, frame in enumerate(container.decode(stream), start=1):
                if seen - 1 in wanted:
                    images[seen - 1] = frame.to_image()
                if wanted and len(images) == len(wanted):
                    return declared, images
            return seen if not wanted else declared, images
    except UniAdapterError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UnreadableError(f"{path} cannot be read: {error}", "get it again, or leave it out.") from error


def find_videos(names: Sequence[str], folder: str | os.PathLike) -> list[Path | None]:
    """The file of each name, with or without a suffix, anywhere below ``folder``; None where there is none."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            found.setdefault(path.name, path)
            found.setdefault(path.stem, path)
    return [found.get(Path(name).name) or found.get(_stem(name)) for name in names]


def _stem(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def _pyav():
    """PyAV, which only videos need."""
    try:
        import av
    except ImportError as error:
        raise UniAdapterError(
            "videos are read by PyAV, which is not here", 'pip install "uniadapter_edu[video]".'
        ) from error
    return av
