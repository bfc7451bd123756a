"""The paper's data sets from small files in each of the forms in which they are to be had."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.tasks.retrieval import RetrievalTask, evaluate_retrieval
from uniadapter_edu.worlds import benchmarks
from uniadapter_edu.worlds.benchmarks import BENCHMARKS, clean_caption, load_benchmark

SPLITS = {"train": 4, "val": 2, "test": 3}  # pictures of each
SAID = ["A red cat.", "a cat, big", "cat!", "The (small) cat", "a blue cat"]


def grey(split, i):
    """A picture's own grey, by which it is known again."""
    return 10 * (1 + i) + 100 * list(SPLITS).index(split) % 150


def picture(split, i):
    return PILImage.new("RGB", (12, 10), (grey(split, i),) * 3)


def said(split, i):
    return [f"{text} {split} {i}" for text in SAID]


def png(split, i):
    buffer = io.BytesIO()
    picture(split, i).save(buffer, format="PNG")
    return buffer.getvalue()


def rows(split):
    return [
        {"image": picture(split, i), "caption": said(split, i), "filename": f"{i}.jpg"} for i in range(SPLITS[split])
    ]


def hub_folder(root, names=("train", "validation", "test")):
    """As Flickr30k lies on the hub: a row a picture, files named after the splits."""
    features = Features({"image": Image(), "caption": List(Value("string")), "filename": Value("string")})
    (root / "data").mkdir(parents=True)
    for name, split in zip(names, SPLITS):
        file = root / "data" / f"{name}-00000-of-00001.parquet"
        Dataset.from_list(rows(split), features=features).to_parquet(file)
    return root


def one_caption_a_row(root):
    """As COCO lies on the hub: a row a caption, and a picture's rows in one place; Karpathy's restval among train."""
    (root / "data").mkdir(parents=True)
    for name, split in zip(("train", "validation", "test"), SPLITS):
        table = [
            {
                "image": picture(split, i),
                "sentences": {"raw": text, "imgid": i},
                "cocoid": 7 * i,
                "split": "restval" if split == "train" and i % 2 else split,
            }
            for i in range(SPLITS[split])
            for text in said(split, i)
        ]
        Dataset.from_list(table).to_parquet(root / "data" / f"{name}-00000-of-00001.parquet")
    return root


def all_in_one(root):
    """A single file whose column tells the splits, made without `datasets`: pictures are plain bytes."""
    root.mkdir(parents=True)
    table = [
        {"image": {"bytes": png(split, i), "path": None}, "caption": said(split, i), "split": split}
        for split in ("test", "train", "val")
        for i in range(SPLITS[split])
    ]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", struct), ("caption", pa.list_(pa.string())), ("split", pa.string())])
    pq.write_table(pa.Table.from_pylist(table, schema=schema), root / "everything.parquet")
    return root


def picture_folder(root, folder=""):
    for split, n in SPLITS.items():
        for i in range(n):
            path = root / "pictures" / folder / f"{split}_{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(split, i).save(path)
    return root / "pictures"


def karpathy_json(root, folder=""):
    """The form of dataset_flickr30k.json and, with a folder, of dataset_coco.json."""
    entries = [
        {
            "filename": f"{split}_{i}.png",
            "imgid": i,
            "split": split,
            "sentences": [{"raw": text, "tokens": text.split()} for text in said(split, i)],
        }
        | ({"filepath": folder} if folder else {})
        for split, n in SPLITS.items()
        for i in range(n)
    ]
    (root / "dataset.json").write_text(json.dumps({"images": entries, "dataset": "made up"}))
    return root / "dataset.json"


def blip_json(root, split):
    """BLIP's annotations: a row a caption for training, a row a picture for evaluation."""
    names = [f"some-images/{split}_{i}.png" for i in range(SPLITS[split])]
    if split == "train":
        entries = [
            {"image": name, "caption": text, "image_id": f"id_{i}"}
            for i, name in enumerate(names)
            for text in said(split, i)
        ]
    else:
        entries = [{"image": name, "caption": said(split, i)} for i, name in enumerate(names)]
    (root / f"{split}.json").write_text(json.dumps(entries))
    return root / f"{split}.json"


FORMS = {
    "a folder as on the hub": lambda root, split: {"source": hub_folder(root / "hub")},
    "a row a caption": lambda root, split: {"source": one_caption_a_row(root / "hub")},
    "a column of splits": lambda root, split: {"source": all_in_one(root / "all")},
    "one file": lambda root, split: {"source": all_in_one(root / "all") / "everything.parquet"},
    "Karpathy's JSON": lambda root, split: {"source": karpathy_json(root), "pictures": picture_folder(root)},
    "Karpathy's JSON with folders": lambda root, split: {
        "source": karpathy_json(root, "val2014"),
        "pictures": picture_folder(root, "val2014"),
    },
    "BLIP's JSON": lambda root, split: {"source": blip_json(root, split), "pictures": picture_folder(root)},
}


def seen(data):
    return [row["image"].convert("RGB").getpixel((0, 0))[0] for row in data]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` keeps of files that it has read goes away with the test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_each_picture_once_with_all_of_its_captions(form, split, tmp_path):
    data = load_benchmark("coco", split, clean=False, **FORMS[form](tmp_path, split))
    assert data.features == benchmarks.FEATURES
    assert seen(data) == [grey(split, i) for i in range(SPLITS[split])]
    assert list(data["captions"]) == [said(split, i) for i in range(SPLITS[split])]


@pytest.mark.parametrize("form", FORMS)
def test_a_small_subset_is_the_first_pictures_with_all_their_captions(form, tmp_path):
    where = FORMS[form](tmp_path, "train")
    data = load_benchmark("flickr30k", "train", size=2, **where)
    assert seen(data) == [grey("train", 0), grey("train", 1)]
    assert data[1]["captions"] == [clean_caption(text) for text in said("train", 1)]
    assert len(load_benchmark("flickr30k", "train", size=99, **where)) == 4


@pytest.fixture
def damaged_second_file(tmp_path):
    folder = hub_folder(tmp_path / "hub")
    (folder / "data" / "test-00000-of-00001.parquet").rename(folder / "data" / "test-00000-of-00002.parquet")
    (folder / "data" / "test-00001-of-00002.parquet").write_bytes(b"PAR1 damaged")
    return folder


def test_a_small_subset_reads_no_more_files_than_it_needs(damaged_second_file):
    assert len(load_benchmark("flickr30k", "test", size=2, source=damaged_second_file)) == 2


@pytest.mark.parametrize("size", [None, 4])
def test_a_damaged_file_is_an_error_that_says_where(damaged_second_file, size):
    with pytest.raises(UniAdapterError, match="hub cannot be read: "):
        load_benchmark("flickr30k", "test", size=size, source=damaged_second_file)


def test_captions_are_made_as_blip_reads_them():
    assert clean_caption('  A man (left)\n says: "Don\'t!" to a well-known, OLD dog... ') == (
        "a man left says don't to a well-known, old dog"
    )
    assert clean_caption("word " * 40).split() == ["word"] * 30
    assert clean_caption("...") == ""


def test_a_caption_of_nothing_but_punctuation_is_left_as_it_is(tmp_path):
    entries = [{"image": "test_0.png", "caption": ["...", "a cat"]}]
    (tmp_path / "test.json").write_text(json.dumps(entries))
    data = load_benchmark("coco", source=tmp_path / "test.json", pictures=picture_folder(tmp_path))
    assert data[0]["captions"] == ["...", "a cat"]


def test_a_benchmark_can_be_trained_on_and_scored(tmp_path, tiny_blip, processor):
    data = load_benchmark("flickr30k", "test", source=hub_folder(tmp_path / "hub"))
    task = RetrievalTask(tiny_blip, processor)
    loss = task(task.collate([data[i] for i in range(3)]))["loss"]
    assert torch.isfinite(loss)
    metrics = evaluate_retrieval(tiny_blip, processor, data, top_k=2, progress=False)
    assert (metrics.images, metrics.captions) == (3, 15)


def test_the_registry_says_what_it_must():
    for name, benchmark in BENCHMARKS.items():
        text = str(benchmark)
        assert "Karpathy" in text and "Flickr's terms" in text and benchmark.hub in text and "https://" in text
        assert benchmark.captions == 5 and set(benchmark.images) == set(SPLITS), name
    assert BENCHMARKS["flickr30k"].images["test"] == 1_000 and BENCHMARKS["coco"].images["test"] == 5_000


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "flickr8k"}, "no benchmark 'flickr8k'"),
        ({"split": "dev"}, "no split 'dev'"),
        ({"size": 0}, "size is 0"),
        ({"source": "./nowhere"}, "no folder and no file ./nowhere"),
        ({"source": "nowhere.json"}, "no file nowhere.json"),
        ({"source": "nobody/nothing"}, "nobody/nothing cannot be read"),
    ],
)
def test_a_mistake_in_the_arguments_is_named(arguments, message):
    with pytest.raises(UniAdapterError, match=message):
        load_benchmark(**{"name": "flickr30k"} | arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('{"annotations": []}', "no list of pictures"),
        ("[1, 2]", "no list of pictures"),
        ("[]", "no rows of the split test"),
        (
            '{"images": [{"filename": "a.png", "split": "train", "sentences": [{"raw": "a cat"}]}]}',
            "no rows of the split",
        ),
        ('[{"image": "test_0.png", "words": "a cat"}]', "has no captions, only the columns image"),
        ('[{"image": "test_0.png", "caption": []}]', "Row 0 of .* has no caption"),
        ('[{"image": "a.png", "caption": ["a cat"]}, {"image": "b.png", "caption": "a dog"}]', "not all of one form"),
        ('[{"image": "test_7.png", "caption": ["a cat"]}]', "1 of 1 pictures are not in .*: test_7.png"),
    ],
)
def test_a_mistake_in_annotations_is_named(content, message, tmp_path):
    (tmp_path / "test.json").write_text(content)
    with pytest.raises(UniAdapterError, match=message):
        load_benchmark("coco", source=tmp_path / "test.json", pictures=picture_folder(tmp_path))


def test_annotations_alone_ask_for_their_pictures(tmp_path):
    with pytest.raises(UniAdapterError, match="pictures is None"):
        load_benchmark("coco", source=blip_json(tmp_path, "test"))


def test_files_that_do_not_tell_the_split_are_refused(tmp_path):
    folder = hub_folder(tmp_path / "hub", names=("a", "b", "c"))
    with pytest.raises(UniAdapterError, match="no column that says which rows are test"):
        load_benchmark("flickr30k", "test", source=folder)
