"""The model: what the published implementation computes, and what Hugging Face expects of a model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden_vlbert import GOLDEN, HEADS, asking_everywhere, golden, golden_batch, gradients
from torch import Tensor

from vlbert_train.batch import Batch
from vlbert_train.config import ModelConfig
from vlbert_train.loss import asked_counts, loss_sums
from vlbert_train.model import VLBertConfig, VLBertForPreTraining, VLBertModel, config_of, embed_geometry
from vlbert_train.pretrained import PUBLISHED, convert_published

SMALL = VLBertConfig(
    vocab_size=120,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=64,
    num_roi_classes=13,
    visual_gain_init=1.0,
    initializer_range=0.2,
)


@pytest.fixture(scope="module")
def published() -> VLBertForPreTraining:
    """The published weights, converted, without dropout."""
    return convert_published(GOLDEN / "model.safetensors", num_heads=HEADS)[0].eval()


@pytest.fixture(scope="module")
def batch() -> Batch:
    return golden_batch()


def means(model: VLBertForPreTraining, batch: Batch) -> Tensor:
    return loss_sums(model(batch), batch).sums / torch.tensor(asked_counts(batch))


# Parity with the published implementation


def test_logits_of_every_word_and_every_roi_are_the_published_ones(
    published: VLBertForPreTraining, batch: Batch
) -> None:
    expected, given = golden("outputs"), golden("inputs")
    with torch.no_grad():
        found = published(asking_everywhere(batch))
    rows = [expected["mlm_logits_wvc"][i, : int((text != 0).sum())] for i, text in enumerate(given["text"])]
    rows += [expected["mlm_logits_aux"][i, : int((text != 0).sum())] for i, text in enumerate(given["aux_text"])]
    torch.testing.assert_close(found.word_logits, torch.cat(rows), rtol=0, atol=1e-4)
    real = given["boxes"][:, :, 0] > -1.5
    real[:, 0] = False
    rois = torch.cat([expected["mvrc_logits"][real], expected["mvrc_logits"][:, 0]])  # whole images come last here
    torch.testing.assert_close(found.roi_logits, rois, rtol=0, atol=1e-4)


def test_each_loss_is_the_published_one(published: VLBertForPreTraining, batch: Batch) -> None:
    expected = golden("outputs")
    with torch.no_grad():
        found = means(published, batch)
    losses = torch.stack([expected[name] for name in ("mlm_loss_wvc", "mlm_loss_aux", "mvrc_loss")])
    torch.testing.assert_close(found, losses, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.sum(), expected["loss"], rtol=1e-5, atol=0)


def test_the_gradient_of_every_parameter_is_the_published_one(published: VLBertForPreTraining, batch: Batch) -> None:
    expected = golden("grads")
    found = gradients(published, lambda: means(published, batch).sum())
    seen = set()
    for theirs, gradient in expected.items():
        prefix = max((prefix for prefix in PUBLISHED if theirs.startswith(prefix)), key=len)
        ours = PUBLISHED[prefix] + theirs.removeprefix(prefix)
        # Adding the same to every key changes no attention: that gradient is 0 but for rounding, here and there.
        of_keys = theirs.endswith("key.bias")
        largest = float(expected[theirs.replace("key.bias", "key.weight") if of_keys else theirs].abs().max())
        assert of_keys or largest == float(gradient.abs().max()) > 0, theirs
        torch.testing.assert_close(found[ours].view_as(gradient), gradient, rtol=0, atol=1e-4 * largest, msg=theirs)
        seen.add(ours)
    assert seen == found.keys() == dict(published.named_parameters()).keys()


# Packing


def test_a_sequence_sees_nothing_of_the_others(batch: Batch) -> None:
    torch.manual_seed(0)
    model = VLBertModel(SMALL).eval()
    sequence = 1
    tokens, rois = batch.token_sequence == sequence, batch.roi_sequence == sequence
    others = replace(
        batch,
        token_ids=torch.where(tokens, batch.token_ids, (batch.token_ids + 7) % 120),
        roi_features=torch.where(rois[:, None], batch.roi_features, -batch.roi_features),
        image_features=torch.where(
            (torch.arange(len(batch.image_features)) == sequence)[:, None], batch.image_features, 1.0
        ),
    )
    own = slice(int(batch.cu_seqlens[sequence]), int(batch.cu_seqlens[sequence + 1]))
    with torch.no_grad():
        before, after = model(batch), model(others)
    torch.testing.assert_close(after[own], before[own], rtol=0, atol=1e-6)
    assert (after - before).abs().amax(dim=1).gt(1e-3).sum() == batch.num_slots - (own.stop - own.start)


def test_the_order_of_rows_does_not_matter(batch: Batch) -> None:
    torch.manual_seed(0)
    model = VLBertModel(SMALL).eval()
    words, rois = torch.randperm(len(batch.token_ids)), torch.randperm(len(batch.roi_slots))
    shuffled = replace(
        batch,
        **{name: getattr(batch, name)[words] for name in ("token_ids", "token_slots", "token_sequence")},
        **{
            name: getattr(batch, name)[rois]
            for name in ("roi_features", "roi_geometry", "roi_slots", "roi_sequence", "roi_hidden")
        },
    )
    with torch.no_grad():
        torch.testing.assert_close(model(shuffled), model(batch), rtol=0, atol=1e-6)


def test_the_feature_of_a_hidden_roi_is_never_looked_at(batch: Batch) -> None:
    torch.manual_seed(0)
    model = VLBertModel(SMALL).eval()
    blind = torch.where(batch.roi_hidden[:, None], torch.nan, batch.roi_features)
    assert batch.roi_hidden.any()
    with torch.no_grad():
        assert torch.equal(model(replace(batch, roi_features=blind)), model(batch))


@pytest.mark.parametrize("waves", [256, 8])
def test_geometry_is_written_out_as_sines_and_cosines_of_centre_and_size(waves: int) -> None:
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.9], [0.0, 0.0, 1.0, 1.0]])
    found = embed_geometry(boxes, waves).view(2, 4, 2, waves)
    for row, (x0, y0, x1, y1) in enumerate(boxes.double().tolist()):
        for coordinate, share in enumerate(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)):
            for wave in (0, 1, waves // 2, waves - 1):
                angle = torch.tensor(100 * share / 1000 ** (wave / waves))
                assert float(found[row, coordinate, 0, wave]) == pytest.approx(float(angle.sin()), abs=2e-5)
                assert float(found[row, coordinate, 1, wave]) == pytest.approx(float(angle.cos()), abs=2e-5)


def test_fewer_waves_make_the_projection_narrower_and_nothing_else_and_are_published_unless_asked(batch: Batch) -> None:
    published, narrow = VLBertModel(SMALL), VLBertModel(VLBertConfig(**{**SMALL.to_dict(), "geometry_waves": 8}))
    shapes = {name: tuple(tensor.shape) for name, tensor in narrow.state_dict().items()}
    differing = {name for name, tensor in published.state_dict().items() if shapes[name] != tuple(tensor.shape)}
    assert differing == {"embeddings.roi_projection.weight"}
    assert published.embeddings.roi_projection.in_features == 2048 + SMALL.feature_dim
    assert narrow.embeddings.roi_projection.in_features == 64 + SMALL.feature_dim
    with torch.no_grad():
        assert narrow.eval()(batch).isfinite().all()


# A Hugging Face model


def test_a_saved_model_loads_again_bit_equal(batch: Batch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VLBertForPreTraining(SMALL).eval()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    again = VLBertForPreTraining.from_pretrained(tmp_path).eval()
    own, loaded = model.state_dict(), again.state_dict()
    assert own.keys() == loaded.keys()
    assert all(torch.equal(own[name], loaded[name]) for name in own)
    with torch.no_grad():
        assert torch.equal(VLBertModel.from_pretrained(tmp_path).eval()(batch), model.vlbert(batch))
    where = {"_name_or_path": str(tmp_path)}
    assert again.config.to_dict() == model.config.to_dict() | where


def test_words_asked_are_compared_with_the_word_embeddings_themselves(batch: Batch) -> None:
    model = VLBertForPreTraining(SMALL).eval()
    with torch.no_grad():
        before = model(batch).word_logits
        model.vlbert.embeddings.words.weight[119] += 1.0  # a token that the batch does not show
        changed = (model(batch).word_logits != before).any(dim=0)
    assert not (batch.token_ids == 119).any()
    assert changed.nonzero().flatten().tolist() == [119]


def test_a_new_model_is_blind_as_published_until_it_learns(batch: Batch) -> None:
    model = VLBertModel(config_of(ModelConfig(), vocab_size=120, feature_dim=2048, num_labels=13, pad_id=0)).eval()
    assert not model.embeddings.text_visual_norm.weight.any()
    assert not model.embeddings.hidden_roi_feature.any()
    assert model.embeddings.words.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_the_relation_head_answers_once_for_each_caption(batch: Batch) -> None:
    config = VLBertConfig(**{**SMALL.to_dict(), "has_relation_head": True})
    model = VLBertForPreTraining(config).eval()
    with torch.no_grad():
        found = model(batch).relation_logits
        first = model.vlbert(batch)[batch.cu_seqlens[:3].long()]
        head = model.relation_head
        assert head is not None
        expected = head.classes(head.pooler.dense(first).tanh())
    torch.testing.assert_close(found, expected)
    assert VLBertForPreTraining(SMALL)(batch).relation_logits is None


def test_a_model_without_roi_classes_learns_words_only(batch: Batch) -> None:
    config = VLBertConfig(**{**SMALL.to_dict(), "num_roi_classes": 0})
    model = VLBertForPreTraining(config).eval()
    nothing = torch.zeros(0, dtype=torch.int64)
    words = replace(
        batch, roi_target_slots=nothing, roi_target_ids=nothing[:, None], roi_target_probs=torch.zeros(0, 1)
    )
    sums = loss_sums(model(words), words).sums
    assert (sums[:2] > 0).all()
    assert sums[2] == 0


def test_one_graph_computes_batches_of_all_lengths(batch: Batch) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, graphs = VLBertForPreTraining(SMALL).eval(), []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    # As `learner.Forward` compiles it; fullgraph: any break in the graph would be an error.
    compiled = torch.compile(model, backend=count, dynamic=True, fullgraph=True)
    # Every second position, since a first batch in which two lengths happen to be equal costs a second graph.
    whole = asking_everywhere(batch)
    words = {name: getattr(whole, name)[::2].clone() for name in BY_SLOTS["word_target_slots"]}
    rois = {name: getattr(whole, name)[::2].clone() for name in BY_SLOTS["roi_target_slots"]}
    sparse = replace(whole, **words, **rois)
    with torch.no_grad():
        for asked in (first_sequences(sparse, num) for num in (5, 4, 3)):
            found, expected = compiled(asked), model(asked)
            torch.testing.assert_close(found.word_logits, expected.word_logits, rtol=0, atol=1e-5)
            torch.testing.assert_close(found.roi_logits, expected.roi_logits, rtol=0, atol=1e-5)
    assert len(graphs) == 1
    torch._dynamo.reset()


# Which fields of a batch have a row for each of these slots.
BY_SLOTS = {
    "token_slots": ("token_ids", "token_slots", "token_sequence"),
    "roi_slots": ("roi_features", "roi_geometry", "roi_slots", "roi_sequence", "roi_hidden"),
    "word_target_slots": ("word_targets", "word_target_slots", "word_target_with_image"),
    "roi_target_slots": ("roi_target_ids", "roi_target_probs", "roi_target_slots"),
}


def first_sequences(batch: Batch, num: int) -> Batch:
    """Return a batch of the first `num` sequences."""
    end = int(batch.cu_seqlens[num])
    kept = {
        name: getattr(batch, name)[getattr(batch, slots) < end] for slots, names in BY_SLOTS.items() for name in names
    }
    kept |= {
        name: getattr(batch, name)[:num].clone() for name in ("image_features", "has_image", "end_slots", "example_ids")
    }
    kept |= {name: getattr(batch, name)[:end].clone() for name in ("position_ids", "segment_ids")}
    longest = int(batch.cu_seqlens.diff()[:num].max())
    return replace(batch, **kept, cu_seqlens=batch.cu_seqlens[: num + 1].clone(), max_seqlen=longest)
