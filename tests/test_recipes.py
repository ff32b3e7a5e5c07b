"""Every recipe makes a valid configuration, of a model that can be built and whose costs are what its file says."""

from __future__ import annotations

import re

import pytest
import torch

from tinygpt.looking import bill, with_vocabulary
from tinygpt.machine import memory_needed
from tinygpt.model import GPT, profile
from tinygpt.runs import config_to_yaml, read_config, recipes

NAMES = (
    "tales", "smoke", "shakespeare-char", "nanogpt-char", "tinystories", "wikitext", "wikipedia", "openwebtext", "gpt2-124m",
)


def test_all_of_them_are_there():
    assert set(NAMES) <= set(recipes())


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_makes_a_model(name, tmp_path):
    config = with_vocabulary(read_config(name))
    with torch.device("meta"):
        model = GPT(config.model)
    costs = profile(config.model)
    assert costs.n_params == sum(p.numel() for p in model.parameters())
    assert sum(memory_needed(config).values()) < 24e9, "more than a consumer GPU has"
    assert str(config.model.d_model) in bill(config)
    (tmp_path / "again.yaml").write_text(config_to_yaml(config))
    assert read_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize("name", recipes())
def test_it_begins_with_a_sentence(name):
    "Lists of recipes show the first line, so it must say something by itself."
    first = recipes()[name].read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(r"# \S.{20,}[^:,;]", first), first


@pytest.mark.parametrize("name", recipes())
def test_every_field_can_be_changed(name):
    config = read_config(name, {"model.n_layers": "7", "optim.lr": "1e-5", "optim.min_lr": "0", "data.source": "elsewhere", "run.seed": "9"})
    assert (config.model.n_layers, config.optim.lr, config.data.source, config.run.seed) == (7, 1e-5, "elsewhere", 9)


@pytest.mark.parametrize("name", recipes())
def test_what_its_comment_says_of_size_and_cost(name):
    "The operations and the parameters that a comment names are those of the configuration."
    text = recipes()[name].read_text(encoding="utf-8")
    config = with_vocabulary(read_config(name))
    n_tokens = config.optim.steps * config.data.batch_size * config.model.context_length
    for said in re.findall(r"(\d\.\d+e\d+) operations", text):
        assert float(said) == pytest.approx(3 * profile(config.model).flops_forward * n_tokens, rel=0.02)
        assert "not yet run" in text, "an estimate is called one"
    for said in re.findall(r"(\d+) million parameters", text):
        assert int(said) == round(profile(config.model).n_params / 1e6)
    for hours, rate in re.findall(r"(\d+(?:\.\d)?) hours on a GPU that sustains (\d+) TFLOP/s", text):
        assert float(hours) == pytest.approx(3 * profile(config.model).flops_forward * n_tokens / (float(rate) * 1e12) / 3600, rel=0.05)
