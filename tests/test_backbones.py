"""Backbones from folders, shipped data verified when it is opened, versions refused outside the tested range."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    BlipProcessor,
)
from transformers.utils import logging

from uniadapter_edu import _files, _versions
from uniadapter_edu.backbones import TASKS, data_path, load_backbone, load_processor
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.tasks.retrieval import evaluate_retrieval
from uniadapter_edu.worlds import emoji

CLASSES = [BlipForImageTextRetrieval, BlipForQuestionAnswering, BlipForConditionalGeneration]


@pytest.fixture
def folder(make_blip, tmp_path):
    """One folder with the weights of all three tasks, as the embedded backbone has, in float16."""
    weights = {}
    for cls in CLASSES:
        weights |= make_blip(cls).half().state_dict()
    make_blip().half().save_pretrained(tmp_path / "blip")
    save_file({k: v.clone() for k, v in weights.items()}, tmp_path / "blip" / "model.safetensors", {"format": "pt"})
    return tmp_path / "blip"


@pytest.fixture
def processor():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat"]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    return BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def refused(*words):
    return pytest.raises(UniAdapterError, match="(?s)" + ".*".join(words))


# ------------------------------------------------------------------------------------------------------ what is loaded


@pytest.mark.parametrize("task, cls", list(zip(TASKS, CLASSES)))
def test_one_folder_serves_all_three_tasks(folder, task, cls):
    model = load_backbone(folder, task=task)
    assert type(model) is cls and not model.training
    disk = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, disk[name].float()) for name, value in model.state_dict().items())


def test_halves_on_disk_are_floats_in_memory_unless_said_otherwise(folder):
    assert {p.dtype for p in load_backbone(folder).parameters()} == {torch.float32}
    assert {p.dtype for p in load_backbone(folder, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_shapes_heads_and_eps_come_from_the_folders_config(folder):
    model = load_backbone(folder)
    assert model.vision_model.post_layernorm.eps == 1e-6
    assert model.text_encoder.encoder.layer[0].attention.self.num_attention_heads == 4


def test_loading_says_nothing_and_leaves_logging_as_it_was(folder, capfd):
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    for task in TASKS:
        load_backbone(str(folder), task=task)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (verbosity, bars)


def test_processor_from_a_folder_without_a_model(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = load_processor(tmp_path)
    assert isinstance(loaded.image_processor, BlipImageProcessorPil)
    inputs = {"images": Image.new("RGB", (50, 40), "red"), "text": "a cat", "return_tensors": "np"}
    ours, theirs = loaded(**inputs), processor(**inputs)
    assert ours["input_ids"].tolist() == [[2, 5, 6, 3]]
    assert np.array_equal(ours["pixel_values"], theirs["pixel_values"]) and ours["pixel_values"].shape == (1, 3, 32, 32)


# ---------------------------------------------------------------------------------------------------------- bad input


def test_unknown_task_and_dtype(folder):
    with refused("'ranking'", "retrieval, answering, captioning"):
        load_backbone(folder, task="ranking")
    for dtype in ("float33", torch.int8):
        with refused("dtype"):
            load_backbone(folder, dtype=dtype)


def test_unknown_hub_id_while_offline():
    with refused("nobody/has-this", "hub", "network"):
        load_backbone("nobody/has-this")
    with refused("nobody/has-this"):
        load_processor("nobody/has-this")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "a/b/c"])
def test_a_folder_that_is_not_there(name):
    with refused(f"no folder {name}"):
        load_backbone(name)


def test_a_folder_without_config_or_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with refused("no model.safetensors", "pickle and is not opened"):
        load_backbone(folder)
    (folder / "config.json").unlink()
    with refused("no config.json and no model.safetensors"):
        load_backbone(folder)


def test_a_model_that_is_no_blip(tmp_path):
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    BertModel(config).save_pretrained(tmp_path)
    with refused("'bert'", "expected 'blip'"):
        load_backbone(tmp_path)


def test_missing_weights_are_named(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["itm_head.bias"], weights["vision_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with refused("2 weights", "itm_head.bias, vision_proj.weight"):
        load_backbone(folder)
    load_backbone(folder, task="captioning")  # which has no such heads


def test_a_checkpoint_of_another_task(make_blip, tmp_path):
    make_blip().save_pretrained(tmp_path)
    with refused("BlipForQuestionAnswering needs: text_decoder", "more", "retrieval"):
        load_backbone(tmp_path, task="answering")


@pytest.mark.parametrize("kept", [0, 1000, -1])
def test_truncated_weights(folder, kept):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:kept])
    with refused("cannot be read"):
        load_backbone(folder)


def test_weights_that_do_not_fit_the_config(folder):
    edit_config(folder, image_text_hidden_size=8)
    with refused("cannot be read"):
        load_backbone(folder)
    (folder / "config.json").write_text("{")
    with refused("config.json"):
        load_backbone(folder)


# -------------------------------------------------------------------------------------------------------- shipped data


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A package folder with data beside it, as in a checkout."""
    data = tmp_path / "data"
    for name in ("backbone/config.json", "sprites/noto.parquet", "build.py", "README.md", ".cache/x", "cache/y"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(name)
    monkeypatch.setattr(_files, "_PACKAGE", tmp_path / "package")
    _files.write_checksums(data)
    return data


def test_what_counts_as_data(shipped):
    assert list(json.loads((shipped / "checksums.json").read_text())) == [
        "backbone/config.json",
        "sprites/noto.parquet",
    ]


def test_data_is_found_in_a_checkout_and_in_a_wheel(shipped, tmp_path):
    assert data_path("sprites", "noto.parquet") == shipped / "sprites" / "noto.parquet"
    (tmp_path / "package").mkdir()
    shipped.rename(tmp_path / "package" / "_data")
    assert data_path("backbone") == tmp_path / "package" / "_data" / "backbone"


def test_altered_and_missing_data_is_named(shipped):
    (shipped / "backbone" / "config.json").write_text("backbone/CONFIG.json")  # as long as before
    with refused("backbone/config.json was altered", "reinstall"):
        data_path("backbone", "config.json")
    with refused("backbone/config.json was altered"):
        data_path("backbone")
    data_path("sprites", "noto.parquet")  # the rest still works
    (shipped / "sprites" / "noto.parquet").unlink()
    with refused("sprites/noto.parquet is missing"):
        data_path("sprites", "noto.parquet")
    with refused("config.json was altered; sprites/noto.parquet is missing"):
        _files.verify_checksums()


def test_load_backbone_refuses_altered_data(shipped):
    (shipped / "backbone" / "config.json").write_text("{}")
    for load in (load_backbone, load_processor):
        with refused("backbone/config.json was altered"):
            load()


def test_a_file_is_hashed_once_and_again_when_it_changes(shipped, monkeypatch):
    hashed, real = [], _files.sha256
    monkeypatch.setattr(_files, "sha256", lambda path: hashed.append(path) or real(path))
    data_path("sprites", "noto.parquet")
    data_path("sprites")
    assert len(hashed) == 1
    (shipped / "sprites" / "noto.parquet").write_text("changed")
    with refused("was altered"):
        data_path("sprites")


def test_no_data_at_all(shipped, tmp_path):
    (shipped / "checksums.json").unlink()
    with refused("list of data files"):
        data_path("sprites")
    shipped.rename(tmp_path / "elsewhere")
    with refused("data folder is missing"):
        data_path()


def test_the_embedded_backbone_knows_its_own_world_as_well_as_its_card_says():
    gallery = emoji.load_split("source", "test", 500)
    metrics = evaluate_retrieval(load_backbone(), load_processor(), gallery, top_k=8, progress=False)
    assert metrics.t2i_r1 >= 0.85
    said = re.search(r"\| source styles .*? \| ([\d.]+) \| ([\d.]+) \|", data_path("backbone", "README.md").read_text())
    # machines round differently, and a query or two may tip over
    assert [100 * metrics.stage_one.t2i_r1, 100 * metrics.t2i_r1] == pytest.approx(
        [float(x) for x in said.groups()], abs=0.3
    )


def test_words_that_were_never_read_can_be_told_apart():
    """Left as pre-training makes them, they are one word to a frozen model: cosine 0.98, and no adapter can part them."""
    tokenizer, model = load_processor().tokenizer, load_backbone(task="captioning")
    unread = tokenizer.convert_tokens_to_ids([*emoji.NEW_WORDS.values(), "canvas", "upon", "leftmost", "sideways"])
    read = tokenizer.convert_tokens_to_ids([*emoji.COLOURS, *emoji.SIZES])
    table = model.text_decoder.get_input_embeddings().weight.detach()
    new, known = ((table[ids] - table[read].mean(0)).norm(dim=1).mean().item() for ids in (unread, read))
    assert new == pytest.approx(known, rel=0.4)
    words = torch.nn.functional.normalize(table[unread], dim=1)
    assert (words @ words.T).fill_diagonal_(0).max() < 0.6


def test_the_golden_numbers_that_ship_are_a_part_of_the_authors():
    part, whole = load_file(data_path("golden", "modules.safetensors")), load_file(GOLDEN / "golden_public.safetensors")
    wanted = {name for name in whole if name == "input.x" or name.startswith(("adapter.layers.", "out.a."))}
    assert part.keys() == wanted and all(torch.equal(part[name], whole[name]) for name in wanted)


def test_the_checkouts_data_is_as_listed():
    root = data_path()
    _files.verify_checksums()
    listed = set(json.loads((root / _files.CHECKSUMS).read_text()))
    assert {path.relative_to(root).as_posix() for path in _files.data_files(root)} == listed


def test_checksums_are_written_by_a_command(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    subprocess.run([sys.executable, "-m", "uniadapter_edu._files", tmp_path], check=True, capture_output=True)
    _files.verify_checksums(tmp_path)


# ------------------------------------------------------------------------------------------------------------ versions


@pytest.mark.parametrize("found, fits", [("5.3.9", False), ("5.4.0", True), ("5.23.7", True), ("5.24.0", False)])
def test_versions_outside_the_range_are_refused(monkeypatch, found, fits):
    monkeypatch.setattr(_versions, "version", lambda name: found)
    if fits:
        return _versions.check_versions()
    with pytest.raises(ImportError, match=f"transformers {found}") as error:
        _versions.check_versions()
    assert isinstance(error.value, UniAdapterError) and "pip install" in error.value.cure


def test_transformers_not_installed(monkeypatch):
    def nothing(name):
        raise _versions.PackageNotFoundError(name)

    monkeypatch.setattr(_versions, "version", nothing)
    with pytest.raises(ImportError, match="not installed"):
        _versions.check_versions()
