"""Adapters on disk: bit-exact, whole or not at all, and refused with every reason when they do not fit."""

import copy
import errno
import json
import os
import resource

import pytest
import torch
from safetensors.torch import load_file
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering

from uniadapter_edu import _atomic, checkpoint
from uniadapter_edu.checkpoint import CONFIG_FILE, WEIGHTS_FILE, fingerprint, load_adapters, save_adapters
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import insert_adapters, named_adapters, remove_adapters, set_adapter

SMALL = UniAdapterConfig(bottleneck=4)


def disturb(model, seed=0):
    """Moves every adapter weight, as training would."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.uniadapter.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


@pytest.fixture
def trained(make_blip):
    return disturb(insert_adapters(make_blip(), SMALL))


@pytest.fixture
def saved(trained, tmp_path):
    return save_adapters(trained, tmp_path / "adapters")


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def edit_config(folder, **changes):
    about = json.loads((folder / CONFIG_FILE).read_text()) | changes
    (folder / CONFIG_FILE).write_text(json.dumps(about))


# ------------------------------------------------------------------------------------------------------ what is kept


@pytest.mark.parametrize(
    "config",
    [
        UniAdapterConfig.official(bottleneck=4, kv_bottleneck=2),
        UniAdapterConfig(bottleneck=4, share="none", scale="learned", modalities=("vision", "cross")),
        UniAdapterConfig(bottleneck=4, share="all", cross_reuses_text_up=False, train_heads=False),
    ],
)
@pytest.mark.parametrize(
    "cls", [BlipForImageTextRetrieval, BlipForQuestionAnswering, BlipForConditionalGeneration], ids=lambda c: c.__name__
)
def test_round_trip_is_bit_exact(make_blip, tmp_path, cls, config):
    model = disturb(insert_adapters(make_blip(cls), config))
    save_adapters(model, tmp_path / "new" / "folder")
    fresh = load_adapters(make_blip(cls), tmp_path / "new" / "folder")
    assert fresh.uniadapter.config == config
    assert_same(state(model), state(fresh))


def test_outputs_return_with_heads_and_temperature(trained, saved, make_blip, batch):
    with torch.no_grad():
        before, after = trained(**batch).itm_score, load_adapters(make_blip(), saved)(**batch).itm_score
        assert torch.equal(before, after)
        assert not torch.equal(before, make_blip()(**batch).itm_score)
    heads = {name for name in load_file(saved / WEIGHTS_FILE) if name.startswith("heads.")}
    linears = {
        f"heads.{name}.{part}" for name in ("vision_proj", "text_proj", "itm_head") for part in ("weight", "bias")
    }
    assert heads == linears | {"heads.temperature"}


def test_names_on_disk_are_those_of_the_format(saved):
    layer_0 = {name for name in load_file(saved / WEIGHTS_FILE) if name.startswith("layers.0.")}
    linears = ("norm_in", "down", "up.vision", "up.text", "up.cross")
    assert layer_0 == {f"layers.0.{linear}.{part}" for linear in linears for part in ("weight", "bias")}


def test_config_says_what_the_folder_holds(trained, saved):
    about = json.loads((saved / CONFIG_FILE).read_text())
    assert about["format_version"] == 1
    assert UniAdapterConfig.from_dict(about["config"]) == SMALL
    assert about["heads"] == ["vision_proj", "text_proj", "itm_head"]
    assert about["backbone"]["fingerprint"] == fingerprint(trained)
    assert {path.name for path in saved.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}


def test_config_keeps_no_path_of_this_machine(trained, tmp_path):
    trained.name_or_path = str(tmp_path)
    text = (save_adapters(trained, tmp_path / "adapters") / CONFIG_FILE).read_text()
    assert json.loads(text)["backbone"]["name"] == tmp_path.name and str(tmp_path) not in text


def test_loading_leaves_the_backbone_frozen_and_the_adapters_trainable(saved, make_blip):
    model = load_adapters(make_blip(), saved)
    own = {id(parameter) for parameter in model.uniadapter.parameters()}
    assert all(parameter.requires_grad == (id(parameter) in own) for parameter in model.parameters())


def test_loading_under_the_same_name_replaces_the_weights(trained, saved):
    expected = state(trained)
    load_adapters(disturb(trained, seed=1), saved)
    assert_same(expected, state(trained))


def test_a_second_name_is_added_and_waits_to_be_set(trained, saved, tmp_path):
    expected = state(trained)
    disturb(trained, seed=1)
    changed = state(trained)
    load_adapters(trained, saved, name="questions")
    assert_same(changed, state(trained))
    assert_same(expected, state(set_adapter(trained, "questions")))
    save_adapters(trained, tmp_path / "questions")  # the active one
    assert (tmp_path / "questions" / WEIGHTS_FILE).read_bytes() == (saved / WEIGHTS_FILE).read_bytes()
    assert_same(changed, state(set_adapter(trained, "default")))


def test_a_first_adapter_may_have_a_name_of_its_own(saved, make_blip):
    model = load_adapters(make_blip(), saved, name="questions")
    assert list(named_adapters(model)) == ["questions"] and model.uniadapter.active == "questions"


def test_other_files_of_the_folder_are_left_alone(trained, tmp_path):
    (tmp_path / "curve.png").write_bytes(b"a figure")
    save_adapters(trained, tmp_path)
    save_adapters(trained, tmp_path)
    assert (tmp_path / "curve.png").read_bytes() == b"a figure"
    assert len(list(tmp_path.iterdir())) == 3


# ------------------------------------------------------------------------------------------------------- fingerprint


def test_fingerprint_does_not_see_adapters_dtype_or_freezing(tiny_blip):
    tiny_blip.half().float()  # as if read from float16 on disk
    before = fingerprint(tiny_blip)
    assert fingerprint(disturb(insert_adapters(tiny_blip, SMALL))) == before
    assert fingerprint(remove_adapters(tiny_blip)) == before
    for dtype in (torch.float16, torch.float64, torch.bfloat16):
        assert fingerprint(copy.deepcopy(tiny_blip).to(dtype)) == before


def test_fingerprint_sees_one_changed_weight(tiny_blip):
    before = fingerprint(tiny_blip)
    with torch.no_grad():
        tiny_blip.vision_model.embeddings.class_embedding[0, 0, 0] *= 1.01
    assert fingerprint(tiny_blip) != before


# ------------------------------------------------------------------------------------------------- whole or not at all


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def failing_at(real, n):
    """The function ``real``, that finds the disk full at its n-th call only (undoing must still work)."""
    calls = iter(range(1_000_000))
    return lambda *args, **kwargs: no_space() if next(calls) == n else real(*args, **kwargs)


POINTS = [("Path.write_bytes", 0), ("os.fsync", 0), ("os.replace", 0)]  # the new weights, beside the old ones
POINTS += [("Path.write_bytes", 1), ("os.fsync", 2), ("os.replace", 1)]  # the new config


def find_full_disk(patch, point, n):
    owner, _, function = point.partition(".")
    owner = getattr(_atomic, owner)
    patch.setattr(owner, function, failing_at(getattr(owner, function), n))


@pytest.mark.parametrize("point, n", POINTS)
def test_full_disk_leaves_the_old_adapters_whole(trained, saved, make_blip, monkeypatch, point, n):
    expected = state(trained)
    disturb(trained, seed=1)
    with monkeypatch.context() as patch:
        find_full_disk(patch, point, n)
        with pytest.raises(UniAdapterError, match="No space left on device"):
            save_adapters(trained, saved)
    assert {path.name for path in saved.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}
    assert_same(expected, state(load_adapters(make_blip(), saved)))


@pytest.mark.parametrize("point, n", [("Path.write_bytes", 1), ("os.replace", 1)])
def test_full_disk_leaves_no_new_folder(trained, tmp_path, monkeypatch, point, n):
    with monkeypatch.context() as patch:
        find_full_disk(patch, point, n)
        with pytest.raises(UniAdapterError):
            save_adapters(trained, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_adapters_are_saved_although_their_weights_have_not_got_their_name_yet(trained, saved, make_blip, monkeypatch):
    """What a process leaves that is killed after the config and before the last renaming."""
    disturb(trained, seed=1)
    with monkeypatch.context() as patch:
        find_full_disk(patch, "os.replace", 2)
        save_adapters(trained, saved)
    assert len(list(saved.iterdir())) == 3
    assert_same(state(trained), state(load_adapters(make_blip(), saved)))
    save_adapters(disturb(trained, seed=2), saved)
    assert {path.name for path in saved.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}
    assert_same(state(trained), state(load_adapters(make_blip(), saved)))


def test_adapters_saved_while_they_are_read_are_read_whole(trained, saved, make_blip, monkeypatch):
    """Between the config and the weights of a reader, another process saves."""
    read, saves = checkpoint._read_config, iter(range(2))

    def and_save(path):
        about = read(path)
        if next(saves, None) is not None:
            save_adapters(disturb(trained), saved)
        return about

    monkeypatch.setattr(checkpoint, "_read_config", and_save)
    assert_same(state(load_adapters(make_blip(), saved)), state(trained))


def test_a_write_that_really_breaks_off_leaves_the_old_adapters_whole(trained, saved, make_blip):
    expected = state(trained)
    disturb(trained, seed=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # bytes a file: the operating system stops the write
    try:
        with pytest.raises(UniAdapterError, match="could not be saved"):
            save_adapters(trained, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name for path in saved.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}
    assert_same(expected, state(load_adapters(make_blip(), saved)))


def test_a_file_in_the_folders_place_is_a_clear_error(trained, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UniAdapterError, match="could not be saved"):
        save_adapters(trained, tmp_path / "taken")


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.fixture
def refused(make_blip):
    """``refused(folder, *words)``: loading raises, all words are in the cause, and the model stays as it was."""

    def check(folder, *words, model=None, name="default"):
        model = make_blip() if model is None else model
        before = state(model), {n: p.requires_grad for n, p in model.named_parameters()}, list(named_adapters(model))
        with pytest.raises(UniAdapterError) as error:
            load_adapters(model, folder, name=name)
        assert all(word in error.value.cause for word in words), error.value.cause
        assert error.value.cure and len(str(error.value).splitlines()) == 2
        assert_same(before[0], state(model))
        assert before[1] == {n: p.requires_grad for n, p in model.named_parameters()}
        assert before[2] == list(named_adapters(model))

    return check


def test_nothing_inserted_to_save(tiny_blip, tmp_path):
    with pytest.raises(UniAdapterError, match="no adapters are inserted"):
        save_adapters(tiny_blip, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_missing_files_are_named(saved, tmp_path, refused):
    refused(tmp_path / "nowhere", CONFIG_FILE, WEIGHTS_FILE)
    (saved / WEIGHTS_FILE).unlink()
    refused(saved, WEIGHTS_FILE)


@pytest.mark.parametrize("kept", [0, 7, 100, 5000, -1])
def test_truncated_weights(saved, refused, kept):
    content = (saved / WEIGHTS_FILE).read_bytes()
    (saved / WEIGHTS_FILE).write_bytes(content[:kept])
    refused(saved, "truncated")


def test_one_altered_byte_is_noticed(saved, refused):
    content = bytearray((saved / WEIGHTS_FILE).read_bytes())
    content[-1] ^= 1
    (saved / WEIGHTS_FILE).write_bytes(content)
    refused(saved, "is not the file")


def test_files_of_two_saves_are_not_mixed(trained, saved, tmp_path, refused):
    other = save_adapters(disturb(trained, seed=1), tmp_path / "other")
    (other / WEIGHTS_FILE).replace(saved / WEIGHTS_FILE)
    refused(saved, "is not the file")


def test_newer_format(saved, refused):
    edit_config(saved, format_version=2, novelty=True)
    refused(saved, "format version 2", "up to 1")


def test_unknown_fields(saved, refused):
    edit_config(saved, novelty=True)
    refused(saved, "novelty")


def test_unknown_fields_of_the_adapters_config(saved, refused):
    edit_config(saved, config=SMALL.to_dict() | {"momentum": 0.9})
    refused(saved, "momentum")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"peft_type": "LORA"}', '{"format_version": 1}'])
def test_a_config_that_is_not_ours(saved, refused, text):
    (saved / CONFIG_FILE).write_text(text)
    refused(saved, CONFIG_FILE)


def test_fields_of_the_wrong_type(saved, refused):
    edit_config(saved, config=[], backbone="BLIP")
    refused(saved, "config", "backbone")


def test_pickles_are_never_opened(saved, tmp_path, refused):
    torch.save({"layers.0.down.weight": torch.zeros(1)}, tmp_path / "adapter.bin")
    refused(tmp_path / "adapter.bin", "pickle", "never opened")
    (saved / WEIGHTS_FILE).unlink()
    (tmp_path / "adapter.bin").rename(saved / "adapter_model.bin")
    refused(saved, "adapter_model.bin is a pickle", WEIGHTS_FILE)
    (saved / "adapter_model.bin").rename(saved / WEIGHTS_FILE)
    refused(saved, "no safetensors file")


def test_another_backbone_lists_all_that_differs(saved, make_blip, refused):
    other = make_blip(vision_layers=3, text_layers=1, vision_width=16, text_width=16)
    refused(
        saved,
        "width 32, here 16",
        "vision layers 2, here 3",
        "text layers 2, here 1",
        "missing: layers.2",
        "unexpected: layers.1.up.cross",
        "of another shape: heads",
        "fingerprint",
        model=other,
    )


def test_the_same_shape_with_other_weights_is_another_backbone(saved, make_blip, refused):
    refused(saved, "fingerprint", model=make_blip(seed=1))


def test_another_class_is_named(saved, make_blip, refused):
    captioning = make_blip(BlipForConditionalGeneration)
    refused(saved, "class BlipForImageTextRetrieval, here BlipForConditionalGeneration", model=captioning)


def test_another_config_under_the_same_name(saved, make_blip, refused):
    model = insert_adapters(make_blip(), UniAdapterConfig(bottleneck=8))
    refused(saved, "bottleneck is 4, inserted is 8", model=model)
    load_adapters(model, saved, name="other")


def test_a_failed_second_adapter_leaves_the_first(saved, make_blip, refused):
    model = insert_adapters(make_blip(seed=1), SMALL)
    refused(saved, "fingerprint", model=model, name="other")
