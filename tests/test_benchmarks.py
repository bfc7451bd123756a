"""The paper's data sets from small files in each of the forms in which they are to be had."""

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from small_world import write_video

from uniadapter_edu.__main__ import main
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.jobs import JOBS
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
        assert all(word in text for word in ("protocol", "licence", "your files", "https://", "on the hub")), name
        assert benchmark.job in JOBS and {"train", benchmark.scored_on} <= set(benchmark.sizes), name
    assert len(BENCHMARKS) == 7 and BENCHMARKS["flickr30k"].sizes["test"] == 1_000
    assert BENCHMARKS["coco"].sizes["test"] == 5_000 and BENCHMARKS["msrvtt"].sizes == {"train": 9_000, "test": 1_000}


# ------------------------------------------------------------------------------------------------- questions and clips

ASKED = ["what colour is the cat?", "how many dogs?", "is it big?", "what is this?"]


def vqa_files(root):
    """VQAv2 as it is published: for each split the annotations, and the questions beside them."""
    root.mkdir()
    for split in ("train2014", "val2014"):
        questions = [{"question_id": 10 * i, "image_id": i, "question": text} for i, text in enumerate(ASKED)]
        said = [["red"] * 6 + ["dark red"] * 3 + ["2"]] * len(ASKED)
        notes = [
            {
                "question_id": 10 * i,
                "image_id": i,
                "answers": [{"answer": text, "answer_confidence": "yes", "answer_id": n} for n, text in enumerate(own)],
                "multiple_choice_answer": "red",
                "answer_type": "other",
                "question_type": "what",
            }
            for i, own in enumerate(said)
        ]
        (root / f"v2_OpenEnded_mscoco_{split}_questions.json").write_text(json.dumps({"questions": questions}))
        about = {"annotations": notes[::-1], "data_subtype": split}
        (root / f"v2_mscoco_{split}_annotations.json").write_text(json.dumps(about))
        for i in range(len(ASKED)):
            path = root / "pictures" / split / f"COCO_{split}_{i:012d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture("train", i).save(path)
    return {"source": root, "pictures": root / "pictures"}


def vqa_blip(root):
    """BLIP's annotations of VQA: a row a question, with all ten answers."""
    where = vqa_files(root)
    for split, name in (("train", "train2014"), ("val", "val2014")):
        rows = [
            {"question_id": i, "question": text, "answer": ["red"] * 6 + ["dark red"] * 3 + ["2"], "dataset": "vqa"}
            | {"image": f"{name}/COCO_{name}_{i:012d}.jpg"}
            for i, text in list(enumerate(ASKED))[::-1]
        ]
        (root / "blip").mkdir(exist_ok=True)
        (root / "blip" / f"vqa_{split}.json").write_text(json.dumps(rows))
    return where | {"source": root / "blip"}


def vqa_parquet(root):
    """VQAv2 as it lies on the hub."""
    root.mkdir()
    said = [{"answer": text, "answer_id": 0} for text in ["red"] * 6 + ["dark red"] * 3 + ["2"]]
    known = {"answers": said, "multiple_choice_answer": "red", "answer_type": "other"}
    rows = [{"image": picture("train", i), "question": text} | known for i, text in list(enumerate(ASKED))[::-1]]
    for name in ("train", "validation"):
        Dataset.from_list(rows).to_parquet(root / f"{name}-00000-of-00001.parquet")
    return {"source": root}


VQA = {"published": vqa_files, "BLIP's": vqa_blip, "parquet": vqa_parquet}


@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize("form", VQA)
def test_questions_come_with_their_picture_all_answers_and_the_most_frequent_one(form, size, tmp_path):
    data = load_benchmark("vqav2", "val", size=size, **VQA[form](tmp_path / "vqa"))
    assert list(data["question"]) == ASKED[::-1][:size] and set(data["answer"]) == {"red"}
    assert data[0]["answers"] == ["red"] * 6 + ["dark red"] * 3 + ["2"]
    assert seen(data) == pytest.approx([grey("train", i) for i in (3, 2, 1, 0)][:size], abs=2)  # JPEG


def clips(root, names):
    """A video file for each name, known by its grey."""
    folder = root / "videos"
    folder.mkdir(parents=True)
    for i, name in enumerate(names):
        write_video(folder / f"{name}.mp4", [40 + 30 * i] * 6)
    return folder


NAMES = [f"video{i}" for i in range(6)]


def msrvtt_files(root):
    """MSR-VTT's one JSON file, and the CSV file that makes the 1k-A split of it: videos 4 and 5 are test."""
    folder = clips(root, NAMES)
    videos = [{"video_id": name, "category": 0, "split": "train"} for name in NAMES]
    sentences = [{"video_id": name, "sen_id": k, "caption": f"a cat {k} in {name}"} for k in range(3) for name in NAMES]
    (root / "MSRVTT_data.json").write_text(json.dumps({"info": {}, "videos": videos, "sentences": sentences}))
    with open(root / "MSRVTT_JSFUSION_test.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["key", "vid_key", "video_id", "sentence"])
        writer.writeheader()
        writer.writerows(
            {"key": f"ret{i}", "vid_key": f"msr{i}", "video_id": NAMES[i], "sentence": f"a cat 1 in video{i}"}
            for i in (4, 5)
        )
    return {"source": root, "pictures": folder}


def msrvtt_lines(root):
    """A file for each split: a row a clip with all captions for training, JSON lines with one for test."""
    folder = clips(root, NAMES)
    train = [
        {"video_id": n, "video": f"{n}.mp4", "caption": [f"a cat {k} in {n}" for k in range(3)]} for n in NAMES[:4]
    ]
    (root / "msrvtt_train_9k.json").write_text(json.dumps(train))
    lines = [json.dumps({"clip_name": n, "caption": f"a cat 1 in {n}", "retrieval": 1}) for n in NAMES[4:]]
    (root / "msrvtt_test.jsonl").write_text("\n".join(lines) + "\n")
    return {"source": root, "pictures": folder}


@pytest.mark.parametrize("form", [msrvtt_files, msrvtt_lines])
def test_clips_come_with_all_captions_for_training_and_one_in_the_test_split(form, tmp_path):
    where = form(tmp_path / "msrvtt")
    train, test = (load_benchmark("msrvtt", split, frames=2, **where) for split in ("train", "test"))
    assert train["captions"] == [[f"a cat {k} in {name}" for k in range(3)] for name in NAMES[:4]]
    assert test["captions"] == [["a cat 1 in video4"], ["a cat 1 in video5"]]
    frames = [row["frames"] for row in test]
    assert [[f.getpixel((0, 0))[0] for f in own] for own in frames] == [
        pytest.approx([40 + 30 * i] * 2, abs=4) for i in (4, 5)
    ]
    assert len(load_benchmark("msrvtt", "train", size=2, **where)) == 2


def msrvtt_qa(root):
    folder = clips(root, NAMES)
    for split, videos in (("train", range(4)), ("val", [4]), ("test", [4, 5])):
        rows = [
            {"answer": "cat", "category_id": 1, "id": 7 * i, "question": f"what is in clip {i}?", "video_id": i}
            for i in videos
            for _ in range(2)
        ]
        (root / f"{split}_qa.json").write_text(json.dumps(rows))
    return {"source": root, "pictures": folder}


def test_questions_about_clips_are_rows_with_the_clip_that_their_number_means(tmp_path):
    data = load_benchmark("msrvtt-qa", "test", frames=3, **msrvtt_qa(tmp_path / "qa"))
    assert (
        data["question"] == ["what is in clip 4?"] * 2 + ["what is in clip 5?"] * 2
        and "answers" not in data.column_names
    )
    assert [row["frames"][0].getpixel((0, 0))[0] for row in data] == pytest.approx([160, 160, 190, 190], abs=4)


def didemo(root):
    """Names of clips with the suffix under which they were uploaded, where the files have another one, or none."""
    folder = clips(root, ["1@N0_a", "2@N0_b", "3@N0_c"])
    for split, names in (("train", ["1@N0_a.mov", "2@N0_b.avi"]), ("val", []), ("test", ["3@N0_c.mov", "1@N0_a.mov"])):
        rows = [
            {"video": name, "description": text, "times": [[0, 0]], "num_segments": 6, "annotation_id": k}
            for k, text in enumerate(["A cat comes.", "it goes"])
            for name in names
        ]
        (root / f"{split}_data.json").write_text(json.dumps(rows))
    return {"source": root, "pictures": folder}


def test_all_that_is_said_of_a_clip_becomes_one_paragraph(tmp_path):
    data = load_benchmark("didemo", "test", **didemo(tmp_path / "didemo"))
    assert data["captions"] == [["a cat comes it goes"]] * 2 and len(data[0]["frames"]) == 8
    assert [row["frames"][0].getpixel((0, 0))[0] for row in data] == pytest.approx([100, 40], abs=4)


def test_clips_that_are_not_there_stop_or_are_skipped_and_counted(tmp_path):
    where = didemo(tmp_path / "didemo")
    (where["pictures"] / "3@N0_c.mp4").unlink()
    with pytest.raises(UniAdapterError, match="1 of 2 clips are not in .*: 3@N0_c.mov"):
        load_benchmark("didemo", "test", **where)
    with pytest.warns(UserWarning, match="1 of 2 clips are not in .* skipped"):
        data = load_benchmark("didemo", "test", missing="skip", **where)
    assert len(data) == 1 and data[0]["frames"][0].getpixel((0, 0))[0] == pytest.approx(40, abs=4)


# ------------------------------------------------------------------------------------------------------ the same command

KARPATHY = lambda root: {"source": karpathy_json(root), "pictures": picture_folder(root)}
EACH = {
    "flickr30k": (KARPATHY, {"images": 2, "captions": 10}, "t2i_r1"),
    "coco": (KARPATHY, {"images": 2, "captions": 10}, "i2t_r10"),
    "coco-captions": (KARPATHY, {"pictures": 2}, "cider"),
    "vqav2": (lambda root: vqa_files(root / "vqa"), {"questions": 2}, "vqa"),
    "msrvtt": (lambda root: msrvtt_files(root / "msrvtt"), {"images": 2, "captions": 2}, "t2i_r5"),
    "msrvtt-qa": (lambda root: msrvtt_qa(root / "qa"), {"questions": 2}, "accuracy"),
    "didemo": (lambda root: didemo(root / "didemo"), {"images": 2, "captions": 2}, "t2i_median_rank"),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_of_the_seven_trains_one_epoch_by_the_same_command_and_is_scored_by_its_own_metric(name, tmp_path, capsys):
    make, sizes, score = EACH[name]
    where = {"--source": None, "--pictures": None} | {f"--{key}": value for key, value in make(tmp_path).items()}
    options = where | {"--output": tmp_path / "out", "--size": 2, "--epochs": 1, "--batch-size": 2, "--frames": 2}
    options["--precision"] = "fp32"
    words = [str(word) for pair in options.items() if pair[1] is not None for word in pair]
    assert main(["paper", name, *words]) == 0, capsys.readouterr().err
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert scores["benchmark"] == name and scores["split"] == BENCHMARKS[name].scored_on
    assert {key: scores[key] for key in sizes} == sizes and 0 <= scores[score] <= 10
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert history["finished"] and len(history["rows"]) == 1 and (tmp_path / "out" / "adapter_config.json").exists()


def test_without_a_name_all_seven_are_described(capsys):
    assert main(["paper"]) == 0
    text = capsys.readouterr().out
    assert all(benchmark.title in text for benchmark in BENCHMARKS.values())


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
