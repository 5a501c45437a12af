"""What a model guesses of single examples, and the page of `vlb evaluate --html`."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from browser import Browser, open_browser
from pages_world import faint_texts, unnamed_controls
from test_shard_page import data_of
from tiny_run import Data, make_data
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from cli.main import main
from vlbert_data.synthetic import write_shards
from vlbert_data.tokenizer import load_tokenizer
from vlbert_train import distributed, trainer
from vlbert_train.evaluate import EvaluationData, OpenedRun, open_run, report
from vlbert_train.guesses import GuessedExample, guess_examples


class World(NamedTuple):
    """A run and the shards that it is measured on."""

    run: Path
    shards: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("guesses")
    torch.manual_seed(0)
    data: Data = make_data(folder)
    trainer.start(folder / "run", data.config("run.steps=6"), distributed.World(), trainer.Watch())
    return World(run=folder / "run", shards=str(data.shards))


@pytest.fixture(scope="module")
def opened(world: World) -> OpenedRun:
    return open_run(world.run, EvaluationData(shards=(world.shards,)), changes=["masking.roi_share=0.5"])


@pytest.fixture(scope="module")
def guessed(opened: OpenedRun) -> list[GuessedExample]:
    return list(guess_examples(opened, np.arange(opened.supply.num_validation_examples)))


def test_guesses_add_up_to_the_figures_of_the_whole(opened: OpenedRun, guessed: list[GuessedExample]) -> None:
    figures = report(opened)
    words = [word for example in guessed for word in example.words]
    rois = [roi for example in guessed for roi in example.rois]
    assert len(words) == figures.words_with_image.count > 50
    assert len(rois) == figures.rois.count > 20
    for result, right, shares in (
        (figures.words_with_image, [w.is_right for w in words], [w.probability for w in words]),
        (figures.words_with_other_image, [w.is_other_right for w in words], [w.other_probability for w in words]),
    ):
        assert result.accuracy == pytest.approx(sum(right) / len(words))
        assert result.loss == pytest.approx(-sum(math.log(share or 0) for share in shares) / len(words), rel=1e-4)
    assert figures.rois.accuracy == pytest.approx(sum(roi.is_right for roi in rois) / len(rois))


def test_an_example_shows_its_own_caption_and_image(opened: OpenedRun, guessed: list[GuessedExample]) -> None:
    captions = opened.supply.measured.captions
    assert captions is not None
    for number, example in enumerate(guessed):
        assert example.image.image_id in example.name == captions.name(number)
        text = example.image.captions[number % 2]
        said = "".join((" " if begins else "") + piece for piece, begins in example.pieces).strip()
        tokens = opened.supply.tokenizer.encode([text]).ids
        expected = [opened.supply.tokenizer.piece(int(token)) for token in tokens]
        assert [piece for piece, _ in example.pieces] == expected[: len(example.pieces)]
        assert said
        for word in example.words:
            assert word.truth == example.pieces[word.place][0]
            assert word.guesses[0].probability >= word.probability
            assert (word.guesses[0].name == word.truth) >= word.is_right
        for roi in example.rois:
            assert 0 <= roi.roi < example.num_rois
            names = opened.supply.label_space
            assert names is not None
            assert roi.truth[0].name == names.class_names[example.image.rois.label_ids[roi.roi, 0]]
        assert example.other is not None
        assert example.other.image_id != example.image.image_id


def test_examples_one_by_one_are_as_in_batches(opened: OpenedRun, guessed: list[GuessedExample]) -> None:
    for number in (0, 17, 40):
        (alone,) = guess_examples(opened, np.array([number]))
        together = guessed[number]
        assert (alone.name, alone.pieces, alone.hidden) == (together.name, together.pieces, together.hidden)
        for one, other in zip(alone.words, together.words, strict=True):
            assert (one.place, one.shown) == (other.place, other.shown)
            assert one.probability == pytest.approx(other.probability, abs=1e-5)
            assert one.other_probability == pytest.approx(other.other_probability, abs=1e-5)


def test_guesses_belong_to_their_examples_in_two_folders(world: World, tmp_path: Path) -> None:
    second = write_shards(tmp_path / "second", num_images=9, feature_dim=12, num_classes=6, seed=3)
    both = open_run(world.run, EvaluationData(shards=(world.shards, str(second))))
    numbers = np.array([50, 3, 64, 0])
    for number, example in zip(numbers.tolist(), guess_examples(both, numbers), strict=True):
        assert example.name.startswith(str(second if number >= 48 else world.shards))
        for word in example.words:
            assert word.truth == example.pieces[word.place][0]


def test_where_there_is_one_image_there_is_no_other(world: World, tmp_path: Path) -> None:
    alone = write_shards(tmp_path / "alone", num_images=1, feature_dim=12, num_classes=6)
    (first, _) = guess_examples(open_run(world.run, EvaluationData(shards=(str(alone),))), np.arange(2))
    assert first.other is None
    assert all(not word.other_guesses and word.other_probability is None for word in first.words)


def test_pieces_are_what_a_person_reads(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nrun\n##ning\n")
    words = load_tokenizer(tmp_path / "vocab.txt")
    assert [words.piece(token) for token in (4, 5, 6)] == ["[MASK]", "run", "ning"]
    vocabulary = {name: i for i, name in enumerate(("<s>", "</s>", "<pad>", "<unk>", "<mask>", "Ġcat", "Ã©"))}
    bytes_ = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_.pre_tokenizer, bytes_.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    bytes_.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(tmp_path / "tokenizer.json")
    assert [found.piece(token) for token in (4, 5, 6)] == ["<mask>", "cat", "é"]


@pytest.fixture(scope="module")
def page(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "guesses.html"
    (path.parent / "words.txt").write_text("colours: red green\nshapes: circle\n")
    options = ["--shards", world.shards, "--html", str(path), "--html-examples", "20"]
    options += ["--words", str(path.parent / "words.txt")]
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(world.run), *options, "--set", "masking.roi_share=0.5"])
    assert not stop.value.code
    return path


def test_the_page_holds_examples_spread_evenly_and_the_figures(page: Path, guessed: list[GuessedExample]) -> None:
    data = data_of(page.read_text())
    expected = [guessed[number].name for number in np.linspace(0, len(guessed) - 1, 20).round().astype(int)]
    assert [example["name"] for example in data["examples"]] == expected
    assert data["report"]["caption_examples"] == len(guessed)
    chosen = {example.name: example for example in guessed}
    for example in data["examples"]:
        known = chosen[example["name"]]
        assert [word["truth"] for word in example["words"]] == [word.truth for word in known.words]
        assert [roi["roi"] for roi in example["masked"]] == [roi.roi for roi in known.rois]
        assert len(example["rois"]) == known.num_rois


def test_pictures_that_cannot_be_had_are_told(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for options, code, words in (
        (["--images", str(tmp_path)], 2, "give --html FILE too"),
        (["--html", str(tmp_path / "x.html"), "--images", "/none"], 1, "/none: there is no such folder"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", str(world.run), "--shards", world.shards, *options])
        assert stop.value.code == code
        assert words in capfd.readouterr().err


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, page: Path) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as found:
        found.size(1400, 1000)
        found.open(page)
        found.script("document.getElementById('gallery').scrollIntoView()")
        found.wait_for("return document.querySelector('.card .row')")
        yield found


def examples_of(page: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = data_of(page.read_text())["examples"]
    return found


def test_pointing_at_a_row_lights_its_word_or_its_roi(browser: Browser, page: Path) -> None:
    number, example = next((i, e) for i, e in enumerate(examples_of(page)) if e["words"] and e["masked"])
    card = f".card[data-number='{number}']"
    browser.script("document.querySelector(arguments[0]).scrollIntoView({ block: 'center' })", card)
    browser.wait_for("return document.querySelector(arguments[0])", f"{card} .row")
    texts = browser.script(
        "return [...document.querySelectorAll(arguments[0])].map((m) => m.textContent)", f"{card} mark"
    )
    assert texts == [word["truth"] for word in sorted(example["words"], key=lambda word: word["place"])]
    browser.point_at(f"{card} .rows .row:nth-child(1)")
    marks = browser.script(
        "return [...document.querySelectorAll(arguments[0])].map((m) => m.className)", f"{card} mark"
    )
    assert [" lit" in mark for mark in marks] == [True] + [False] * (len(marks) - 1)
    assert browser.script("return document.querySelectorAll(arguments[0]).length", f"{card} .roi.lit") == 0
    browser.script("const rows = document.querySelector(arguments[0]); rows.scrollTop = 1e6", f"{card} .rows")
    browser.point_at(f"{card} .rows .row:nth-child({len(example['words']) + 1})")
    masked = example["masked"][0]
    left = browser.script("return document.querySelector(arguments[0]).getAttribute('x')", f"{card} .roi.lit .line")
    assert float(left) == example["rois"][masked["roi"]][0]
    tag = browser.script("return document.querySelector(arguments[0]).textContent", f"{card} .tag:not(.stay)")
    assert tag.startswith(f"guessed: {masked['guesses'][0][0]}")
    assert browser.script("return document.querySelectorAll(arguments[0]).length", f"{card} .roi.covered") == len(
        example["hidden"]
    )


def test_kinds_of_examples_are_those_that_a_loop_finds(browser: Browser, page: Path) -> None:
    tests: dict[str, Callable[[dict[str, Any]], bool]] = {
        "seen": lambda e: any(w["is_right"] and not w["is_other_right"] for w in e["words"]),
        "wrong": lambda e: any(not w["is_right"] for w in e["words"]),
        "roi": lambda e: any(r["is_right"] for r in e["masked"]),
        "noroi": lambda e: any(not r["is_right"] for r in e["masked"]),
        "all": lambda e: True,
    }
    for kind, test in tests.items():
        choose = (
            "const k = document.getElementById('kind'); k.value = arguments[0]; k.dispatchEvent(new Event('change'))"
        )
        browser.script(choose, kind)
        shown = browser.script(
            "return [...document.querySelectorAll('.card')].filter((c) => !c.hidden).map((c) => +c.dataset.number)"
        )
        assert shown == [i for i, example in enumerate(examples_of(page)) if test(example)], kind


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_asks_no_network_logs_nothing_and_can_be_read(browser: Browser, page: Path, *, dark: bool) -> None:
    browser.size(1400, 1000, dark=dark)
    browser.open(page)
    browser.wait_for("return document.querySelector('.card .row')")
    figures = data_of(page.read_text())["report"]
    tiles = browser.script(
        "return [...document.querySelectorAll('.tile dd')].map((tile) => tile.firstChild.textContent)"
    )
    assert tiles[0] == f"{100 * figures['words_with_image']['accuracy']:.1f}\u202f%"
    groups = browser.script("return [...document.querySelectorAll('.groups .chart')].map((group) => group.ariaLabel)")
    assert [label.split(":")[0] for label in groups] == [group["name"] for group in figures["named_words"]] != []
    assert faint_texts(browser) == []
    browser.click(".card .open")
    assert faint_texts(browser) == []
    assert unnamed_controls(browser) == []
    assert browser.log() == []
    assert browser.requests() == [page.as_uri()]
