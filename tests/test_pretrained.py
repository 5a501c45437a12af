"""Weights to start from: every name accounted for, whatever the layout, and nothing executed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_vlbert import GOLDEN, HEADS, golden, golden_batch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cli.main import main
from vlbert_data.errors import ConfigError
from vlbert_train.model import VLBertConfig, VLBertForPreTraining
from vlbert_train.pretrained import Account, convert_published, describe, init_from, read_tensors

SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def new_model(**changes: Any) -> VLBertForPreTraining:
    torch.manual_seed(1)
    return VLBertForPreTraining(VLBertConfig(**{**SIZES, "num_roi_classes": 13, **changes}))


def save_bert(folder: Path, *, with_heads: bool = True, **changes: Any) -> dict[str, Tensor]:
    """Save a BERT as transformers does, and return its state dict."""
    from transformers import BertConfig, BertForPreTraining, BertModel

    torch.manual_seed(2)
    config = BertConfig(**{**SIZES, **changes})
    bert = BertForPreTraining(config) if with_heads else BertModel(config)
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.normal_()
    bert.save_pretrained(folder)
    return {str(name): tensor for name, tensor in bert.state_dict().items()}


def published(**changes: Tensor | None) -> dict[str, Tensor]:
    """Return the golden state dict, tensors changed or (None) left out."""
    tensors = {**golden("model"), **changes}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def saved(tensors: Any, path: Path) -> Path:
    torch.save(tensors, path)
    return path


# BERT


@pytest.mark.parametrize("with_heads", [True, False])
def test_bert_fills_the_encoder_and_what_is_new_begins_fresh(with_heads: bool, tmp_path: Path) -> None:
    bert = save_bert(tmp_path, with_heads=with_heads)
    model, untouched = new_model(), new_model().state_dict()
    account = init_from(model, str(tmp_path))
    own, prefix = model.state_dict(), "bert." if with_heads else ""
    pairs = {
        "vlbert.embeddings.words.weight": "embeddings.word_embeddings.weight",
        "vlbert.embeddings.positions.weight": "embeddings.position_embeddings.weight",
        "vlbert.embeddings.norm.bias": "embeddings.LayerNorm.bias",
        "vlbert.encoder.layer.1.attention.self.query.weight": "encoder.layer.1.attention.self.query.weight",
        "vlbert.encoder.layer.0.output.LayerNorm.weight": "encoder.layer.0.output.LayerNorm.weight",
    }
    for ours, theirs in pairs.items():
        assert torch.equal(own[ours], bert[prefix + theirs]), ours
    segments = own["vlbert.embeddings.segments.weight"]
    assert torch.equal(segments[:2], bert[f"{prefix}embeddings.token_type_embeddings.weight"])
    assert torch.equal(segments[2], untouched["vlbert.embeddings.segments.weight"][2])
    if with_heads:
        assert torch.equal(own["word_head.transform.dense.weight"], bert["cls.predictions.transform.dense.weight"])
        assert torch.equal(own["word_head.bias"], bert["cls.predictions.bias"])
    assert set(account.taken) | set(account.fresh) == own.keys()
    assert all(torch.equal(own[name], untouched[name]) for name in account.fresh)
    assert {name.split(".")[0] for name in account.fresh} >= {"vlbert", "roi_head"}
    assert_every_name_is_accounted_for(account, tmp_path / "model.safetensors")


def assert_every_name_is_accounted_for(account: Account, path: Path) -> None:
    assert len(account.taken) + len(account.left_out) == len(load_file(path))


def test_old_names_and_pickled_bert_weights_are_read_too(tmp_path: Path) -> None:
    bert = save_bert(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in bert.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(64)[None]
    torch.save(old, tmp_path / "pytorch_model.bin")
    model = new_model()
    account = init_from(model, str(tmp_path))
    assert torch.equal(model.vlbert.embeddings.norm.weight, bert["bert.embeddings.LayerNorm.weight"])
    assert account.left_out["bert.embeddings.position_ids"] == "numbers that are counted, not learned"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 119}, r"words\.weight has the shape \(119, 32\).*Give the tokenizer"),
        ({"intermediate_size": 48}, "model.intermediate_size"),
        ({"max_position_embeddings": 32}, "Set model.max_position_embeddings"),
    ],
)
def test_bert_of_another_size_is_refused_with_the_setting(changes: dict[str, int], words: str, tmp_path: Path) -> None:
    save_bert(tmp_path, **changes)
    with pytest.raises(ConfigError, match=words):
        init_from(new_model(), str(tmp_path))


def test_bert_of_another_depth_is_refused(tmp_path: Path) -> None:
    for layers in (3, 1):
        save_bert(tmp_path, num_hidden_layers=layers)
        with pytest.raises(ConfigError, match=rf"has {layers} layers, this model 2\. Set model.num_hidden_layers"):
            init_from(new_model(), str(tmp_path))


# Ours


def test_a_checkpoint_of_ours_starts_another_run(tmp_path: Path) -> None:
    first = new_model(initializer_range=0.5)
    first.save_pretrained(tmp_path)
    model = new_model()
    account = init_from(model, str(tmp_path))
    assert all(torch.equal(tensor, first.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert (account.left_out, account.fresh) == ({}, ())


def test_other_classes_and_features_begin_fresh_and_are_told(tmp_path: Path) -> None:
    new_model(num_roi_classes=5, feature_dim=64).save_pretrained(tmp_path)
    account = init_from(new_model(), str(tmp_path))
    assert set(account.fresh) == {
        "roi_head.classes.weight",
        "roi_head.classes.bias",
        "vlbert.embeddings.roi_projection.weight",
        "vlbert.embeddings.hidden_roi_feature",
    }
    assert account.fresh == tuple(sorted(account.left_out))
    assert any("made for other classes or features" in line for line in describe(account))


# Published VL-BERT


def test_every_published_name_has_its_place_and_every_parameter_its_value() -> None:
    model, account = convert_published(GOLDEN / "model.safetensors", num_heads=HEADS)
    assert set(account.taken) == dict(model.named_parameters()).keys()
    assert account.left_out == {"vlbert.mlm_head.predictions.decoder.weight": "the word embeddings once more"}
    assert account.fresh == ()
    given = sorted(float(tensor.double().sum()) for name, tensor in golden("model").items() if "decoder" not in name)
    assert sorted(float(p.detach().double().sum()) for p in model.parameters()) == given


def test_a_checkpoint_of_a_parallel_run_with_a_detector_and_a_relation_head_is_read(tmp_path: Path) -> None:
    extra = {
        "image_feature_extractor.backbone.conv1.weight": torch.ones(3),
        "vlbert.pooler.dense.weight": torch.ones(32, 32),
        "vlbert.pooler.dense.bias": torch.ones(32),
        "vlbert.relationsip_head.caption_image_relationship.weight": torch.ones(2, 32),
        "vlbert.relationsip_head.caption_image_relationship.bias": torch.ones(2),
    }
    state = {f"module.{name}": tensor for name, tensor in published(**extra).items()}
    path = saved({"state_dict": state, "epoch": 9, "optimizer": {"state": {}}}, tmp_path / "vl.model")
    model, account = convert_published(path, num_heads=HEADS)
    assert model.config.has_relation_head
    assert model(golden_batch()).relation_logits is not None
    assert account.left_out["image_feature_extractor.backbone.conv1.weight"].startswith("layers of the detector")


def test_what_a_checkpoint_without_text_and_rois_lacks_begins_fresh(tmp_path: Path) -> None:
    lacking = [name for name in golden("model") if "mvrc" in name or "object_mask" in name or "aux_text" in name]
    path = saved(published(**dict.fromkeys(lacking)), tmp_path / "vl.model")
    model, account = convert_published(path, num_heads=HEADS)
    assert model.config.num_roi_classes == 0
    assert {name.rsplit(".", 1)[1] for name in account.fresh} == {
        "text_visual",
        "hidden_roi_word",
        "hidden_roi_feature",
    }


REFUSED = (
    (lambda: published(**{"final_mlp.1.weight": torch.ones(2)}), "1 tensors of unknown names: final_mlp.1.weight"),
    (lambda: published(**{"vlbert.end_embedding.weight": None}), "lacks what becomes vlbert.embeddings.end_word"),
    (lambda: published(**{"vlbert.visual_ln_object.weight": None}), "no VL-BERT: it holds no vlbert.visual_ln_object"),
    (lambda: published(**{"vlbert.mlm_head.predictions.decoder.weight": torch.ones(120, 32)}), "not tied"),
    (lambda: {"state_dict": {}}, "holds no state dict"),
    (lambda: [1, 2], "holds no state dict"),
)


@pytest.mark.parametrize(("make", "words"), REFUSED)
def test_what_is_no_published_checkpoint_is_refused(make: Callable[[], Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        convert_published(saved(make(), tmp_path / "vl.model"), num_heads=HEADS)


def test_heads_that_do_not_fit_are_refused() -> None:
    for heads in (None, 5):
        with pytest.raises(ConfigError, match="--heads"):
            convert_published(GOLDEN / "model.safetensors", num_heads=heads)


# Files


class Trap:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_weights_file_is_refused_and_never_run(tmp_path: Path) -> None:
    path = saved({"state_dict": {"a": torch.ones(1)}, "more": Trap(tmp_path / "sprung")}, tmp_path / "vl.model")
    with pytest.raises(ConfigError, match="nothing else in such a file is ever run"):
        read_tensors(path)
    assert not (tmp_path / "sprung").exists()


def test_broken_files_are_one_sentence(tmp_path: Path) -> None:
    whole = saved(golden("model"), tmp_path / "whole.model").read_bytes()
    (tmp_path / "cut.model").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.safetensors").write_bytes((GOLDEN / "model.safetensors").read_bytes()[:1000])
    (tmp_path / "empty.model").write_bytes(b"")
    (tmp_path / "text.model").write_text("no weights")
    for name in ("cut.model", "cut.safetensors", "empty.model", "text.model"):
        with pytest.raises(ConfigError, match=rf"{name}: not a file of weights, or damaged") as caught:
            read_tensors(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"gone\.model: cannot be read"):
        read_tensors(tmp_path / "gone.model")


def test_a_folder_without_weights_is_refused_and_a_run_points_to_its_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no model\.safetensors and no pytorch_model\.bin"):
        init_from(new_model(), str(tmp_path))
    (tmp_path / "checkpoints" / "step-00000004").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"It is a run; give one of its checkpoints, such as .*step-00000004"):
        init_from(new_model(), str(tmp_path))


# The command


def test_the_command_converts_and_tells_what_became_of_every_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "converted"
    with pytest.raises(SystemExit) as stop:
        main(["convert-checkpoint", str(GOLDEN / "model.safetensors"), "--out", str(out), "--heads", "4"])
    shown = capsys.readouterr()
    assert stop.value.code == 0
    assert shown.out == f"{out}: 2 layers of 32, 4 heads, 120 words, 13 RoI classes, features of 2048\n"
    assert "57 tensors taken" in shown.err
    assert "1 left out (the word embeddings once more): vlbert.mlm_head.predictions.decoder.weight" in shown.err
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((out / "config.json").read_text())["model_type"] == "vlbert"
    with torch.no_grad():
        found = VLBertForPreTraining.from_pretrained(out).eval()(golden_batch()).word_logits
        expected = convert_published(GOLDEN / "model.safetensors", num_heads=4)[0].eval()(golden_batch()).word_logits
    assert torch.equal(found, expected)


def test_the_command_refuses_with_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(SystemExit) as stop:
        main(["convert-checkpoint", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "out")])
    assert stop.value.code == 1
    assert "no VL-BERT" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
