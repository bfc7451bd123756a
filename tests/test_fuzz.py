"""Whatever a file or a text holds, reading it ends in a sound result or in an error that says what is wrong.

Never in an error of some library's, nor in a crash or a hang, and no code that a file holds is run. Hypothesis makes the
files and texts; it is told to make the same ones every time.
"""

import csv
import io
import json
import os
import pickle
import shutil
import zlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_world import noise_rows, tiny_processor, write_video
from test_benchmarks import all_in_one, hub_folder, picture_folder, vqa_files
from test_training import CONFIG, ToyTask, numbers, run

from uniadapter_edu.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_adapters, save_adapters
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import insert_adapters
from uniadapter_edu.reading import readable
from uniadapter_edu.resuming import saved_in
from uniadapter_edu.tasks.captioning import CaptioningTask
from uniadapter_edu.tasks.retrieval import RetrievalTask, check_dataset
from uniadapter_edu.training import History
from uniadapter_edu.worlds.benchmarks import clean_caption, load_benchmark
from uniadapter_edu.worlds.own import own_folder, own_pictures
from uniadapter_edu.worlds.videos import sample_frames


def fuzz(examples):
    fixtures = HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=fixtures
    )


def outcome(read):
    """What ``read`` returns, or the error that it raises if it is one of ours, which has a cause and a cure."""
    try:
        return read()
    except UniAdapterError as error:
        assert error.cause.strip() and error.cure.strip()
        return error


# Damage to a file: cut, overwritten, with bytes put in, or altogether another one.
DAMAGE = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("flip"), st.floats(0, 1), st.integers(1, 255)),
    st.tuples(st.just("put in"), st.floats(0, 1), st.binary(min_size=1, max_size=20)),
    st.tuples(st.just("replace"), st.binary(max_size=200)),
)


def damaged(content, damage):
    kind, *rest = damage
    if kind == "replace":
        return rest[0]
    at = min(int(rest[0] * len(content)), len(content) - 1)
    if kind == "cut":
        return content[:at]
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ rest[1]]) + content[at + 1 :]
    return content[:at] + rest[1] + content[at:]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
# Words of all scripts, control characters, half of a pair of surrogates, and texts that are long or nothing.
TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zs"]), max_size=10),
    st.sampled_from(
        ["", " ", "\x00", "\ud800", "\u202e right to left", "猫と犬", "قطة", "🦊" * 50, "a" * 200_000, "cat " * 50_000]
    ),
)


# ---- adapters and configs


@pytest.fixture(scope="module")
def adapters(make_blip, tmp_path_factory):
    """A folder of saved adapters, the content of its two files, and the weights in them."""
    model = insert_adapters(make_blip(), UniAdapterConfig(bottleneck=4))
    folder = save_adapters(model, tmp_path_factory.mktemp("adapters") / "saved")
    files = {name: (folder / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)}
    return folder, files, {name: t.clone() for name, t in model.uniadapter.state_dict().items()}


def loaded(folder, files, model):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return outcome(lambda: load_adapters(model, folder))


@fuzz(60)
@given(name=st.sampled_from([CONFIG_FILE, WEIGHTS_FILE]), damage=DAMAGE)
def test_damaged_adapters_load_as_they_were_or_not_at_all(adapters, make_blip, name, damage):
    folder, files, weights = adapters
    model = make_blip()
    found = loaded(folder, files | {name: damaged(files[name], damage)}, model)
    if isinstance(found, UniAdapterError):
        assert not hasattr(model, "uniadapter")
    else:
        assert all(torch.equal(t, weights[name]) for name, t in model.uniadapter.state_dict().items())


@fuzz(60)
@given(
    changes=st.dictionaries(st.sampled_from(["config", "backbone", "heads", "weights_sha256", "format_version"]), JSON)
)
def test_a_config_of_adapters_with_anything_in_it(adapters, make_blip, changes):
    folder, files, _ = adapters
    about = json.loads(files[CONFIG_FILE]) | changes
    loaded(folder, files | {CONFIG_FILE: json.dumps(about).encode()}, make_blip())


FIELDS = list(UniAdapterConfig().to_dict())


@fuzz(100)
@given(values=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
def test_settings_of_adapters_are_right_or_refused_also_where_they_were_saved(adapters, make_blip, values):
    found = outcome(lambda: UniAdapterConfig.from_dict(values))
    assert isinstance(found, UniAdapterError) or UniAdapterConfig.from_dict(found.to_dict()) == found
    folder, files, _ = adapters
    about = json.loads(files[CONFIG_FILE])
    about["config"] |= values
    loaded(folder, files | {CONFIG_FILE: json.dumps(about).encode()}, make_blip())


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "NaN", '"' + "a" * 1_000_000 + '"'])
def test_json_that_is_deep_or_long(adapters, make_blip, tmp_path, text):
    folder, files, _ = adapters
    assert isinstance(loaded(folder, files | {CONFIG_FILE: text.encode()}, make_blip()), UniAdapterError)
    (tmp_path / "file.json").write_text(text)
    assert isinstance(outcome(lambda: History.load(tmp_path / "file.json")), UniAdapterError)
    read = lambda: load_benchmark("coco", source=tmp_path / "file.json", pictures=tmp_path)
    assert isinstance(outcome(read), UniAdapterError)


# ---- checkpoints of training


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The folder of a run that was stopped after five steps, its newest checkpoint, and how the run would have ended."""
    folder = tmp_path_factory.mktemp("run")
    run(ToyTask(), folder=folder, stop=lambda history: len(history.rows) == 5)
    return folder, saved_in(folder)[-1].read_bytes(), numbers(run(ToyTask()))


@fuzz(60)
@given(damage=DAMAGE)
def test_a_damaged_checkpoint_is_refused_or_goes_on_as_if_it_were_whole(checkpoint, damage):
    folder, content, end = checkpoint
    for path in saved_in(folder):
        path.unlink()
    (folder / "training-00000005.safetensors").write_bytes(damaged(content, damage))
    history = outcome(lambda: run(ToyTask(), CONFIG, folder=folder, resume=True))
    assert isinstance(history, UniAdapterError) or numbers(history) == end


@fuzz(60)
@given(content=JSON | st.fixed_dictionaries({"rows": JSON, "evaluations": JSON, "finished": JSON}))
def test_a_history_of_anything(tmp_path, content):
    (tmp_path / "history.json").write_text(json.dumps(content))
    outcome(lambda: History.load(tmp_path / "history.json"))


# ---- data sets


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    return (all_in_one(tmp_path_factory.mktemp("parquet") / "all") / "everything.parquet").read_bytes()


@fuzz(12)
@given(damage=DAMAGE, size=st.sampled_from([None, 2]))
def test_damaged_parquet_files(parquet, tmp_path, damage, size):
    (tmp_path / "file.parquet").write_bytes(damaged(parquet, damage))
    data = outcome(lambda: load_benchmark("coco", "test", size=size, source=tmp_path / "file.parquet"))
    for i in range(0 if isinstance(data, UniAdapterError) else len(data)):
        outcome(lambda i=i: read_row(data, i))
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def read_row(data, i):
    with readable(i):
        return data[i]


# A row of annotations in which something is not what it should be.
ROWS = st.lists(
    st.fixed_dictionaries(
        {"image": JSON | st.just("test_0.png")},
        optional={
            "caption": JSON | TEXTS,
            "sentences": JSON,
            "split": JSON,
            "image_id": JSON,
            "question": JSON,
            "answer": JSON,
        }
        | {"video": JSON, "video_id": JSON, "filename": JSON, "filepath": JSON},
    ),
    max_size=3,
)


@fuzz(80)
@given(rows=ROWS | JSON, name=st.sampled_from(["coco", "vqav2", "msrvtt", "didemo"]))
def test_annotations_of_anything(tmp_path, rows, name):
    if not (tmp_path / "pictures").exists():
        picture_folder(tmp_path)
    (tmp_path / "file.json").write_text(json.dumps(rows))
    data = outcome(lambda: load_benchmark(name, "val", source=tmp_path / "file.json", pictures=tmp_path / "pictures"))
    assert isinstance(data, UniAdapterError) or len(data)


@fuzz(40)
@given(
    part=st.sampled_from(["annotations", "questions"]),
    damage=DAMAGE,
    changes=st.dictionaries(st.text(max_size=5), JSON),
)
def test_annotations_in_two_files_that_do_not_fit(tmp_path, part, damage, changes):
    shutil.rmtree(tmp_path / "vqa", ignore_errors=True)
    where = vqa_files(tmp_path / "vqa")
    file = next((tmp_path / "vqa").glob(f"*val2014_{part}.json"))
    content = damaged(file.read_bytes(), damage)
    file.write_bytes(content if not changes else json.dumps({part: changes}).encode())
    outcome(lambda: load_benchmark("vqav2", "val", **where))


# ---- pictures and clips


def encoded(kind):
    buffer = io.BytesIO()
    noise_rows(1)[0]["image"].save(buffer, format=kind)
    return buffer.getvalue()


PICTURES = {kind: encoded(kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP")}


def bomb():
    """A PNG of 60,000 × 60,000 pixels in some hundred bytes."""
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    data = b"IDAT" + zlib.compress(b"\x00" * 1000)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") for chunk in (header, data)
    )


@fuzz(100)
@given(kind=st.sampled_from(list(PICTURES)), damage=DAMAGE | st.just(("replace", bomb())))
def test_damaged_pictures(tmp_path, kind, damage):
    (tmp_path / "a.png").write_bytes(damaged(PICTURES[kind], damage))
    data = outcome(lambda: own_pictures([tmp_path / "a.png"], ["a cat"]))
    assert isinstance(data, UniAdapterError) or data[0]["image"].mode == "RGB"
    (tmp_path / "table.csv").write_text("file,question,answer\na.png,what?,cat\n")
    asked = own_folder(tmp_path, tmp_path / "table.csv")
    row = outcome(lambda: read_row(asked, 0))
    assert isinstance(row, UniAdapterError) or row["image"].size


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (2000, 3)])
def test_pictures_of_every_mode_and_shape(mode, size):
    task = RetrievalTask.__new__(RetrievalTask)  # to read a row, it needs a processor and nothing else
    object.__setattr__(task, "processor", tiny_processor())
    with readable(0):
        pixels = task.read({"image": Image.new(mode, size), "captions": ["cat"]})["pixels"]
    assert pixels.shape == (3, 32, 32)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", range(50, 150, 10)).read_bytes()


@fuzz(60)
@given(damage=DAMAGE, count=st.integers(1, 20))
def test_damaged_clips(tmp_path, video, damage, count):
    (tmp_path / "clip.mp4").write_bytes(damaged(video, damage))
    frames = outcome(lambda: sample_frames(tmp_path / "clip.mp4", count))
    assert isinstance(frames, UniAdapterError) or len(frames) == count


# ---- texts


@fuzz(60)
@given(captions=st.lists(TEXTS | st.none() | st.integers() | st.lists(TEXTS, max_size=2), min_size=1, max_size=3))
def test_captions_of_anything_train_or_are_refused(captions, make_blip):
    rows = [{"image": Image.new("RGB", (8, 8)), "captions": own} for own in (captions, ["a cat"])]
    given_away = outcome(lambda: own_pictures([row["image"] for row in rows], [row["captions"] for row in rows]))
    for data in (rows, given_away):
        if isinstance(data, UniAdapterError) or isinstance(
            outcome(lambda data=data: check_dataset(data)), UniAdapterError
        ):
            continue
        for task, kind in ((RetrievalTask, "retrieval"), (CaptioningTask, "captioning")):
            task = task(make_blip(task=kind), tiny_processor())
            batch = task.collate([{**data[i], "index": i} for i in range(2)])
            assert batch["input_ids"].shape[0] == 2 and batch["input_ids"].shape[1] <= 35
            assert torch.isfinite(task(batch)["loss"])


@fuzz(200)
@given(text=TEXTS)
def test_a_clean_caption_is_clean_and_stays_so(text):
    words = clean_caption(text)
    assert clean_caption(words) == words and len(words.split()) <= 30 and not set(words) & set('.!"()*#:;~\n\t')


@fuzz(60)
@given(content=st.binary(max_size=200) | st.lists(st.lists(TEXTS, max_size=4), max_size=4))
def test_tables_of_anything(tmp_path, content):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    if isinstance(content, bytes):
        content = b"file,caption\n" + content
    else:
        text = io.StringIO()
        rows = [[cell.encode("utf-8", "replace").decode() for cell in row] for row in content]
        csv.writer(text).writerows([["file", "caption"], *(["a.png", *row] for row in rows)])
        content = text.getvalue().encode()
    (tmp_path / "table.csv").write_bytes(content)
    data = outcome(lambda: own_folder(tmp_path, tmp_path / "table.csv"))
    assert isinstance(data, UniAdapterError) or data[0]["captions"]


# ---- code


class Trap:
    """A pickle of this makes a file when it is opened."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_no_code_that_a_file_holds_is_run(adapters, make_blip, tmp_path):
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung))
    places = {
        name: tmp_path / name for name in ("a.png", "a.mp4", "a.json", "a.parquet", "training-00000001.safetensors")
    }
    for path in places.values():
        path.write_bytes(trap)
    folder, files, _ = adapters
    script = hub_folder(tmp_path / "hub")
    (script / "hub.py").write_text(f"import os\nos.mkdir({str(sprung)!r})\n")
    readers = [
        lambda: loaded(folder, files | {WEIGHTS_FILE: trap}, make_blip()),
        lambda: loaded(folder, files | {CONFIG_FILE: trap}, make_blip()),
        lambda: run(ToyTask(), folder=tmp_path, resume=True),
        lambda: History.load(places["a.json"]),
        lambda: own_pictures([places["a.png"]], ["a cat"]),
        lambda: sample_frames(places["a.mp4"], 1),
        lambda: load_benchmark("coco", source=places["a.parquet"]),
        lambda: load_benchmark("coco", source=places["a.json"], pictures=tmp_path),
    ]
    for reader in readers:
        assert isinstance(outcome(reader), UniAdapterError)
    outcome(lambda: load_benchmark("flickr30k", source=script))  # it may read the data, and not the script
    assert not sprung.exists()
    pickle.loads(trap)
    assert sprung.exists()  # as it would have been
