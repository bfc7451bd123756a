"""Many adapters, one backbone: they are listed, switched and shared; and own pictures become adapters in one call."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import HFValidationError
from PIL import Image as PILImage
from small_world import random_adapters, wide_awake
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering

from uniadapter_edu import sharing
from uniadapter_edu.__main__ import main
from uniadapter_edu.adaptation import adapt, default_config
from uniadapter_edu.backbones import load_backbone
from uniadapter_edu.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_adapters, save_adapters
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import insert_adapters, set_adapter
from uniadapter_edu.sharing import list_adapters, model_card, pull_adapters, push_adapters
from uniadapter_edu.tasks.answering import answer, evaluate_answering
from uniadapter_edu.tasks.retrieval import evaluate_retrieval
from uniadapter_edu.training import History, TrainConfig
from uniadapter_edu.worlds.own import own_folder


def refused(match, call):
    with pytest.raises(UniAdapterError, match=match) as caught:
        call()
    assert caught.value.cure


@pytest.fixture
def saved(make_blip, tmp_path):
    return save_adapters(random_adapters(make_blip(BlipForQuestionAnswering)), tmp_path / "questions")


# ---- many of them


def test_adapters_are_listed_by_what_their_configs_say(make_blip, saved, tmp_path):
    for i, cls in enumerate((BlipForImageTextRetrieval, BlipForConditionalGeneration)):
        save_adapters(insert_adapters(make_blip(cls), UniAdapterConfig(bottleneck=4 + i)), tmp_path / f"a{i}")
    (tmp_path / "something else").mkdir()
    listed = list_adapters(tmp_path)
    assert [one.name for one in listed] == ["a0", "a1", "questions"]
    assert [one.task for one in listed] == ["retrieval", "captioning", "answering"]
    assert [one.config.bottleneck for one in listed] == [4, 5, 16]
    assert listed[2].size == (saved / WEIGHTS_FILE).stat().st_size and listed[2].folder == saved
    about = json.loads((saved / CONFIG_FILE).read_text())["backbone"]
    assert listed[2].fingerprint == about["fingerprint"] and listed[2].backbone == about["name"]


def test_no_weights_are_opened_to_list_two_hundred(saved, tmp_path, monkeypatch):
    many = tmp_path / "many"
    for i in range(200):
        (many / f"{i:03}").mkdir(parents=True)
        shutil.copy(saved / CONFIG_FILE, many / f"{i:03}")
        (many / f"{i:03}" / WEIGHTS_FILE).write_bytes(b"never read")
    listed = list_adapters(many)
    assert [one.name for one in listed] == [f"{i:03}" for i in range(200)] and listed[7].size == 10


def test_a_folder_that_is_not_there_or_holds_nothing(tmp_path):
    assert list_adapters(tmp_path) == []
    refused("There is no folder", lambda: list_adapters(tmp_path / "nowhere"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / CONFIG_FILE).write_text("{")
    refused("not valid JSON", lambda: list_adapters(tmp_path))


def test_switching_and_back_is_bit_exact_for_answers(make_blip, processor, tmp_path):
    image = PILImage.new("RGB", (32, 32), "red")
    model = random_adapters(wide_awake(make_blip(BlipForQuestionAnswering)))
    words = {"first": answer(model, processor, image, "cat left dog")}
    weights = {"first": {name: t.clone() for name, t in model.uniadapter.state_dict().items()}}
    save_adapters(model, tmp_path / "first")
    with torch.no_grad():
        for p in model.uniadapter.parameters():
            p.mul_(-1)
    save_adapters(model, tmp_path / "second")
    model = wide_awake(make_blip(BlipForQuestionAnswering))
    for name in ("first", "second"):
        load_adapters(model, tmp_path / name, name=name)
    set_adapter(model, "second")
    words["second"] = answer(model, processor, image, "cat left dog")
    assert words["first"] != words["second"]
    for name in ("first", "second", "first"):
        set_adapter(model, name)
        assert answer(model, processor, image, "cat left dog") == words[name]
    now = model.uniadapter.state_dict()
    assert all(torch.equal(now[name], t) for name, t in weights["first"].items())


# ---- the Hub


class LocalHub:
    """What `HfApi` does, in a folder."""

    root: Path
    calls: list

    def create_repo(self, repo, private, exist_ok):
        if "/" not in repo:
            raise HFValidationError(f"Repo id must be owner/name: {repo}")
        (self.root / repo).mkdir(parents=True, exist_ok=exist_ok)
        self.calls.append(private)

    def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
        for name in allow_patterns:
            shutil.copy(Path(folder_path) / name, self.root / repo_id / name)
        return f"hub://{repo_id}/commit/1"

    def snapshot_download(self, repo, revision, allow_patterns):
        if not (self.root / repo).is_dir():
            raise OSError(f"404 {repo}")
        return str(self.root / repo)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(LocalHub, "root", tmp_path / "hub", raising=False)
    monkeypatch.setattr(LocalHub, "calls", [], raising=False)
    monkeypatch.setattr(sharing, "HfApi", LocalHub)
    return LocalHub


def test_what_is_pushed_can_be_pulled_and_loaded(saved, hub, make_blip):
    (saved / "notes.txt").write_text("not to be shared")
    about = {"task": "answering", "data": "noise", "figures": {"accuracy": 0.123456, "seeds": 3}}
    assert push_adapters(saved, "me/answers", private=True, **about) == "hub://me/answers/commit/1"
    assert hub.calls == [True]
    folder = pull_adapters("me/answers")
    assert {path.name for path in folder.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE, "README.md"}
    model = load_adapters(make_blip(BlipForQuestionAnswering), folder)
    expected = random_adapters(make_blip(BlipForQuestionAnswering)).uniadapter.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in model.uniadapter.state_dict().items())


def test_the_card_says_backbone_task_data_and_figures(saved, hub):
    push_adapters(saved, "me/answers", task="counting", data="noise", figures={"accuracy": 0.123456, "seeds": 3})
    card = (saved / "README.md").read_text()
    about = json.loads((saved / CONFIG_FILE).read_text())
    parameters = sum(t.numel() for t in random_parameters(saved).values())
    for part in ("| task | counting |", "| data | noise |", "| accuracy | 0.1235 |", "| seeds | 3 |"):
        assert part in card
    assert about["backbone"]["fingerprint"][:16] in card and f"| parameters | {parameters:,} |" in card
    assert 'task="answering"' in card and 'pull_adapters("me/answers")' in card
    assert "base_model" not in card  # a folder on somebody's disk is no model of the Hub
    assert "None were given." in model_card(saved, "me/answers", task="t", data="d")


def random_parameters(folder):
    from safetensors.torch import load_file

    return load_file(folder / WEIGHTS_FILE)


def test_a_backbone_of_the_hub_is_the_cards_base_model(make_blip, tmp_path):
    model = insert_adapters(make_blip(BlipForQuestionAnswering), UniAdapterConfig(bottleneck=4))
    model.name_or_path = "Salesforce/blip-vqa-base"
    card = model_card(save_adapters(model, tmp_path / "a"), "me/a", task="t", data="d")
    assert 'base_model: "Salesforce/blip-vqa-base"\n' in card
    assert 'load_backbone("Salesforce/blip-vqa-base", task="answering")' in card


def test_what_cannot_be_shared(saved, hub, tmp_path):
    about = {"task": "t", "data": "d"}
    refused("could not serve nobody: Repo id must be", lambda: push_adapters(saved, "nobody", **about))
    refused("could not serve me/nothing: 404", lambda: pull_adapters("me/nothing"))
    (saved / WEIGHTS_FILE).write_bytes((saved / WEIGHTS_FILE).read_bytes()[:-4])
    refused("truncated", lambda: push_adapters(saved, "me/broken", **about))
    assert not (tmp_path / "hub" / "me" / "broken").exists()


# ---- own pictures and words

COLOURS = {"red": "cat", "blue": "dog", "white": "owl", "black": "fox"}


@pytest.fixture
def own(tmp_path):
    """``own(header, *lines)``: a CSV file beside a folder of pictures, one of each colour."""
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    for i, colour in enumerate(COLOURS):
        place = "more/" if i == 3 else ""
        PILImage.new("RGB", (40, 30), colour).save(tmp_path / "pictures" / f"{place}{colour}.png")

    def write(*lines):
        with open(tmp_path / "table.csv", "w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows(lines)
        return tmp_path / "pictures", tmp_path / "table.csv"

    return write


FILES = ["red.png", "blue.png", "white.png", "more/black.png"]


@pytest.fixture
def backbone(make_blip, processor, tmp_path):
    """``backbone(cls)``: a folder with a tiny BLIP and its processor."""

    def save(cls):
        wide_awake(make_blip(cls)).save_pretrained(tmp_path / "blip")
        processor.save_pretrained(tmp_path / "blip")
        return tmp_path / "blip"

    return save


FAST = TrainConfig(steps=120, batch_size=4, learning_rate=5e-3, precision="fp32")
CONFIG = UniAdapterConfig(bottleneck=16, scale=1.0)


def test_questions_become_adapters_in_one_call(own, backbone, processor, tmp_path, make_blip):
    lines = [[file, "big", animal] for file, animal in zip(FILES, COLOURS.values())]
    given = own(["file", "question", "answer"], *lines)
    options = {
        "backbone": backbone(BlipForQuestionAnswering),
        "config": CONFIG,
        "train_config": FAST,
        "progress": False,
    }
    model = adapt(*given, tmp_path / "out", **options)
    assert evaluate_answering(model, processor, own_folder(*given)).accuracy == 1
    again = load_adapters(wide_awake(make_blip(BlipForQuestionAnswering)), tmp_path / "out")
    assert evaluate_answering(again, processor, own_folder(*given)).accuracy == 1
    assert len(History.load(tmp_path / "out" / "history.json").rows) == 120


def test_captions_become_adapters_by_one_command(own, backbone, processor, tmp_path):
    lines = [[f"small {animal}", "x", file] for file, animal in zip(FILES, COLOURS.values())]
    lines.append(["big cat", "x", "red.png"])  # a second caption of the first picture
    given = own(["caption", "source", "file"], *lines)
    data = own_folder(*given)
    assert len(data) == 4 and data[0]["captions"] == ["small cat", "big cat"] and data[3]["image"].size == (40, 30)
    blip, out = str(backbone(BlipForImageTextRetrieval)), str(tmp_path / "out")
    options = ["--bottleneck", "16", "--scale", "1", "--epochs", "100", "--learning-rate", "5e-3"]
    assert main(["adapt", *map(str, given), "--output", out, "--backbone", blip, *options]) == 0
    model = load_adapters(load_backbone(blip), out)
    assert model.uniadapter.config == CONFIG and evaluate_retrieval(model, processor, data, progress=False).i2t_r1 == 1


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ([["file", "text"], ["red.png", "cat"]], "no column question and no column answer, only file, text"),
        ([["picture", "caption"], ["red.png", "cat"]], "no column file, only picture, caption"),
        ([[]], "only nothing"),
        ([["file", "caption"]], "a header and no lines"),
        ([["file", "caption"], ["red.png", "cat"], ["blue.png", " "]], "1 lines of .* lack something: 3 "),
        ([["file", "question", "answer"], ["red.png", "big"]], "lack something: 2 "),
        ([["file", "caption"], ["green.png", "cat"], ["green.png", "dog"]], "1 pictures of .*: green.png"),
    ],
)
def test_tables_that_cannot_be_read(own, lines, cause):
    refused(cause, lambda: own_folder(*own(*lines)))


def test_tables_that_do_not_fit_the_task(own, tmp_path):
    captions = own(["file", "caption"], ["red.png", "cat"])
    for task in ("answering", "sorting"):
        refused(f"task is '{task}', and the table holds captions", lambda t=task: adapt(*captions, tmp_path, task=t))
    assert default_config().scale > default_config("a folder").scale == UniAdapterConfig().scale
    refused("no table at", lambda: own_folder(tmp_path, tmp_path / "nothing.csv"))
