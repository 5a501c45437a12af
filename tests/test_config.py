"""Settings: checked at birth, one meaning in Python, TOML, JSON and on the command line, typos named."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlbert_data.errors import ConfigError
from vlbert_train import config, settings
from vlbert_train.config import PretrainConfig


@pytest.mark.parametrize("name", ["tiny", "vlbert-base", "vlbert-large"])
def test_every_preset_survives_a_round_trip_through_toml_and_json(name: str, tmp_path: Path) -> None:
    preset = config.preset(name)
    (tmp_path / "again.toml").write_text(config.to_toml(preset))
    assert config.load_toml(tmp_path / "again.toml") == preset
    assert config.from_json(preset.as_json()) == preset


def test_each_preset_states_its_source_and_what_it_gives() -> None:
    assert {"tiny", "vlbert-base", "vlbert-large"} <= set(config.preset_names())
    for name in config.preset_names():
        text = (config.RECIPES / f"{name}.toml").read_text()
        assert "Source:" in text
        assert "Expected:" in text


def test_the_published_recipe_is_what_the_paper_s_released_configuration_says() -> None:
    base = config.preset("vlbert-base")
    assert base.optim.peak_lr == pytest.approx(1e-7 * (base.data.caption_batch + base.data.text_batch))
    assert (base.optim.warmup_steps, base.optim.weight_decay, base.optim.clip_norm) == (16000, 1e-4, 10.0)
    assert base.run.steps == 3_300_000 * 10 // base.data.caption_batch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("run.stepz=3", "there is no setting run.stepz. Did you mean run.steps?"),
        ("steps=3", "there is no setting steps. Did you mean run.steps?"),
        ("data.peak_lr=3", "there is no setting data.peak_lr. Did you mean optim.peak_lr?"),
        ("zzz.qqq=3", "there is no setting zzz.qqq. There are: run, data, masking, model, optim."),
        ("run=3", "run is a section; name one of run.steps,"),
        ("run.steps", "not of the form SECTION.NAME=VALUE"),
        ("run.steps=many", "run.steps is 'many'; it must be a whole number."),
        ("run.steps=1.5", "run.steps is '1.5'; it must be a whole number."),
        ("run.steps=0", "run.steps is 0; it must be from 1 to"),
        ("run.tensorboard=yes", "run.tensorboard is 'yes'; it must be true or false."),
        ("optim.peak_lr=nan", "optim.peak_lr is nan; it must be from 0.0 to 1000"),
        ("masking.leakage=overlaps", "must be one of overlap, pixels, published. Did you mean overlap?"),
        ("data.caption_batch=none", "data.caption_batch is 'none'; it must be a whole number."),
        ("model.num_attention_heads=7", "the width must be a multiple of the number of heads"),
        ("data.max_length=511", "allow sequences that need 513"),
        ("masking.word_mask_share=0.95", "together they must be at most 1"),
        ("optim.decay_steps=5", "must reach its peak before it reaches 0"),
    ],
)
def test_an_unknown_or_impossible_setting_is_refused_by_name_with_the_reason(change: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PretrainConfig().assigned([change])
    assert message in str(caught.value)


def test_changes_are_checked_together_after_the_last_of_them() -> None:
    # 6 heads do not divide 128, nor 192 the default 12... only both together fit.
    changed = config.preset("tiny").assigned(["model.num_attention_heads=6", "model.hidden_size=192"])
    assert (changed.model.num_attention_heads, changed.model.hidden_size) == (6, 192)


def test_lists_and_absent_values_are_written_on_the_command_line_as_they_are_shown() -> None:
    changed = PretrainConfig().assigned(["data.shards=a, b/c", "optim.clip_norm=none", "data.corpus=books"])
    assert changed.data.shards == ("a", "b/c")
    assert changed.optim.clip_norm is None
    assert changed.data.corpus == "books"


def test_every_default_is_read_back_from_how_it_is_shown() -> None:
    for name, default, about in settings.describe(PretrainConfig):
        assert about, name
        assert PretrainConfig().assigned([f"{name}={default}"]) == PretrainConfig(), name


@given(st.floats(min_value=0, max_value=1000), st.integers(1, 2**40))
def test_numbers_keep_every_bit_through_toml(peak_lr: float, steps: int) -> None:
    made = PretrainConfig().assigned([f"optim.peak_lr={peak_lr!r}", f"run.steps={steps}"])
    assert (made.optim.peak_lr, made.run.steps) == (peak_lr, steps)
    assert config.from_json(tomllib.loads(config.to_toml(made))) == made


def test_a_toml_file_with_a_typo_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[optim]\npeak_lrr = 1e-4\n")
    with pytest.raises(
        ConfigError, match=r"mine\.toml: there is no setting optim\.peak_lrr\. Did you mean optim\.peak"
    ):
        config.load_toml(path)
    path.write_text("[optim\n")
    with pytest.raises(ConfigError, match="not TOML"):
        config.load_toml(path)
    path.write_text("run = 3\n")
    with pytest.raises(ConfigError, match="run is a section, not a value"):
        config.load_toml(path)
    path.write_text("[run]\nsteps = true\n")
    with pytest.raises(ConfigError, match=r"run\.steps is True; it must be a whole number"):
        config.load_toml(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        config.load_toml(tmp_path / "absent.toml")


def test_an_unknown_preset_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match="there are tiny, tour, vlbert-base, vlbert-large"):
        config.preset("huge")


def test_identity_changes_with_what_is_learned_and_not_with_how_fast() -> None:
    tiny = config.preset("tiny")
    assert tiny.assigned(["run.steps=7", "data.loader_threads=3", "data.shards=x"]).identity() == tiny.identity()
    for change in ("run.seed=1", "data.caption_batch=31", "masking.leakage=published", "data.val_fraction=0.5"):
        assert tiny.assigned([change]).identity() != tiny.identity(), change
