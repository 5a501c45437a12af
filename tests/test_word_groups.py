"""Named words, against going caption by caption and word by word."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_text import write_vocabulary
from tiny_run import Data, make_data

from cli.main import main
from vlbert_data import runs
from vlbert_data.errors import ConfigError
from vlbert_data.token_file import TokenRuns
from vlbert_data.tokenizer import load_tokenizer
from vlbert_train import trainer
from vlbert_train.distributed import World
from vlbert_train.evaluate import EvaluationData, evaluate
from vlbert_train.examples import open_evaluation
from vlbert_train.masking import NamedWords, hide_named
from vlbert_train.supply import Supply
from vlbert_train.word_groups import Guesses, WordGroup, group_results, named_tokens, read_groups

MASK = 4
GROUPS = "colours: red green blue\n\n# shapes are the rest\nshapes: circle square\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    trainer.start(out, data.config("run.steps=2"), World(), trainer.Watch())
    return out


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(GROUPS)
    return path


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 12), max_size=6), st.integers(0, 1000), st.integers(0, 4))
def test_the_word_hidden_is_the_nth_wanted_one_of_each_sequence(lengths: list[int], seed: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    tokens = TokenRuns(
        ids=rng.integers(5, 100, total),
        starts_word=np.ones(total, np.bool_),
        cu_lengths=runs.borders(np.array(lengths, np.int64)),
    )
    named = rng.random(100) < 0.4
    wanted = named[tokens.ids]
    found = hide_named(tokens, NamedWords(tokens=named, number=number), mask_id=MASK)
    asked = []
    for begin, end in zip(tokens.cu_lengths[:-1].tolist(), tokens.cu_lengths[1:].tolist(), strict=True):
        asked += [place for place in range(begin, end) if wanted[place]][number : number + 1]
    assert found.asked.tolist() == asked
    assert found.shown.tolist() == [MASK if place in asked else int(token) for place, token in enumerate(tokens.ids)]


def open_words(data: Data, words: Path) -> tuple[Supply, tuple[WordGroup, ...]]:
    supply = open_evaluation([data.shards], None, data.config())
    return supply, read_groups(words, supply.tokenizer)


@pytest.mark.parametrize("other_image", [False, True])
def test_every_named_word_of_every_caption_is_hidden_once_and_nothing_else_is(
    data: Data, words: Path, other_image: bool
) -> None:
    supply, groups = open_words(data, words)
    named = named_tokens(groups, supply.vocab_size)
    shown = {}
    for batch in supply.validation_batches(text=False):
        for sequence, example in enumerate(batch.example_ids.tolist()):
            own = batch.token_ids[batch.token_sequence == sequence].clone()
            asked = (batch.word_target_slots[:, None] == batch.token_slots[batch.token_sequence == sequence]).int()
            rows, places = asked.nonzero().unbind(1)
            own[places] = batch.word_targets[rows]
            shown[example] = own
    expected = sorted((example, int(t)) for example, own in shown.items() for t in own if named[t])
    found = []
    for batch in supply.named_word_batches(named, other_image=other_image):
        assert not batch.roi_hidden.any()
        assert not len(batch.roi_target_ids)
        for target, slot in zip(batch.word_targets, batch.word_target_slots, strict=True):
            sequence = int(torch.searchsorted(batch.cu_seqlens.long(), slot, right=True)) - 1
            example = int(batch.example_ids[sequence])
            found.append((example, int(target)))
            own = batch.token_ids[batch.token_sequence == sequence]
            different = (own != shown[example]).nonzero().flatten()
            assert own[different].tolist() == [supply.mask_id]
            assert shown[example][different].tolist() == [int(target)]
    assert sorted(found) == expected
    assert expected


def test_results_are_shares_of_what_was_asked_and_chance_the_most_frequent_word() -> None:
    groups = [WordGroup(name=n, words=w, ids=i) for n, w, i in (("a", ("x", "y"), (5, 6)), ("b", ("z",), (7,)))]
    own = Guesses(asked=np.array([0, 0, 0, 0, 0, 6, 2, 2]), right=np.array([0, 0, 0, 0, 0, 5, 1, 2]))
    other = Guesses(asked=own.asked, right=np.array([0, 0, 0, 0, 0, 3, 1, 0]))
    first, second, every = group_results(groups, own, other)
    assert (first.with_image, first.with_other_image, first.chance, first.asked) == (6 / 8, 4 / 8, 6 / 8, 8)
    assert (second.with_image, second.with_other_image, second.chance, second.asked) == (1.0, 0.0, 1.0, 2)
    assert (every.name, every.with_image, every.with_other_image, every.chance) == ("all", 8 / 10, 4 / 10, 8 / 10)
    nothing = Guesses(asked=np.zeros(8, np.int64), right=np.zeros(8, np.int64))
    assert group_results(groups, nothing, nothing) == ()


def test_counts_are_those_of_the_model_asked_about_one_word_at_a_time(data: Data, run: Path, words: Path) -> None:
    report = evaluate(run, EvaluationData(shards=(str(data.shards),), words=words), changes=["run.device=cpu"])
    from vlbert_train.model import VLBertForPreTraining

    model = VLBertForPreTraining.from_pretrained(next((run / "checkpoints").glob("step-*"))).eval()
    supply, groups = open_words(data, words)
    colours = set(groups[0].ids)
    asked = right = 0
    with torch.no_grad():
        for batch in supply.named_word_batches(named_tokens(groups, supply.vocab_size)):
            for guess, target in zip(
                model(batch).word_logits.argmax(1).tolist(), batch.word_targets.tolist(), strict=True
            ):
                asked += target in colours
                right += target in colours and guess == target
    assert report.named_words[0].name == "colours"
    assert report.named_words[0].asked == asked > 0
    assert report.named_words[0].with_image == right / asked
    assert report.named_words[-1].asked == sum(result.asked for result in report.named_words[:-1])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no words"),
        ("red green\n", "not of the form"),
        ("colours: red qwertzu\n", "is 7 tokens"),
        ("colours: red \u4e16\n", "does not know"),
        ("colours: red\nmore: red\n", "stands in colours and in more"),
    ],
)
def test_a_file_that_names_no_measurable_words_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "words.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_groups(path, load_tokenizer(write_vocabulary(tmp_path / "vocab.txt")))


def test_the_command_prints_a_line_for_each_group_and_json(
    data: Data, run: Path, words: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["evaluate", str(run), "--shards", str(data.shards), "--words", str(words), "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        main(options)
    assert not stop.value.code
    out = capsys.readouterr().out
    assert "right image" in out and "colours" in out and "shapes" in out
    with pytest.raises(SystemExit):
        main([*options, "--json"])
    found = json.loads(capsys.readouterr().out)["named_words"]
    report = evaluate(run, EvaluationData(shards=(str(data.shards),), words=words), changes=["run.device=cpu"])
    assert found == [asdict(result) for result in report.named_words]
