"""Frames of video files: evenly spread, the same at every time, and clear errors for what is no video."""

import pytest
from small_world import write_video

from uniadapter_edu.errors import UnreadableError
from uniadapter_edu.worlds.videos import Videos, find_videos, sample_frames


def greys(frames):
    return [frame.getpixel((8, 8))[0] for frame in frames]


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        (12, 1, [6]),
        (12, 3, [2, 6, 10]),
        (12, 12, list(range(12))),
        (7, 2, [1, 5]),
        (2, 4, [0, 0, 1, 1]),
        (1, 3, [0] * 3),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_frames_are_the_middles_of_equal_parts(tmp_path, total, count, expected, suffix):
    """The i-th frame of a clip has the grey 20 + 15 i; matroska does not say how many frames there are."""
    path = write_video(tmp_path / f"clip{suffix}", [20 + 15 * i for i in range(total)])
    frames = sample_frames(path, count)
    assert greys(frames) == pytest.approx([20 + 15 * i for i in expected], abs=4)
    assert {frame.mode for frame in frames} == {"RGB"} and {frame.size for frame in frames} == {(32, 16)}


def test_rows_are_decoded_when_asked_for_and_columns_without(tmp_path):
    a, b = (write_video(tmp_path / name, [grey] * 4) for name, grey in (("a.mp4", 50), ("b.mp4", 200)))
    rows = Videos([a, b, tmp_path / "lost.mp4"], {"captions": [["a"], ["b"], ["c"]]}, frames=2)
    assert rows["captions"] == [["a"], ["b"], ["c"]] and rows.column_names == ["frames", "captions"] and len(rows) == 3
    assert greys(rows[1]["frames"]) == pytest.approx([200, 200], abs=4) and rows[1]["captions"] == ["b"]
    assert greys(rows.select([0])[0]["frames"]) == pytest.approx([50, 50], abs=4)
    with pytest.raises(UnreadableError, match=r"lost.mp4 cannot be read: .*No such file"):
        rows[2]


def playlist(path, video):
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{video}\n#EXT-X-ENDLIST\n")


def half(path, video):
    path.write_bytes(video.read_bytes()[: video.stat().st_size // 2])


@pytest.mark.parametrize(
    "spoil",
    [
        half,
        playlist,  # would make the decoder open other files
        lambda path, video: path.write_bytes(b""),
        lambda path, video: path.write_bytes(b"\x80\x04\x95no video, but the beginning of a pickle"),
        lambda path, video: path.mkdir(),
    ],
)
def test_what_is_no_video_is_a_clear_error(tmp_path, spoil):
    spoil(tmp_path / "clip.mp4", write_video(tmp_path / "whole.mp4", [100] * 8))
    with pytest.raises(UnreadableError, match="clip.mp4"):
        sample_frames(tmp_path / "clip.mp4", 2)


def test_clips_are_found_by_name_with_or_without_suffix_below_a_folder(tmp_path):
    for name in ("a/video7.mp4", "b/12@N0_3_4ac.avi", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_videos(["video7", "video7.mp4", "x/video7.webm", "12@N0_3_4ac.mov", "12@N0_3_4ac", "notes"], tmp_path)
    a, b = tmp_path / "a" / "video7.mp4", tmp_path / "b" / "12@N0_3_4ac.avi"
    assert found == [a, a, a, b, b, None]
