"""Costs are those of the real model."""

from __future__ import annotations

import pytest
import torch

from tinygpt.looking import bill, configuration_of, measure_speed, with_vocabulary

@pytest.mark.parametrize("changes", [{}, {"optim.optimizer": "muon"}, {"run.dtype": "bfloat16"}, {"run.gradient_checkpointing": "true"}, {"optim.accumulate": "4"}])
def test_the_bill_says_what_it_is_for(changes):
    _, config = configuration_of("smoke", overrides=changes)
    text = bill(with_vocabulary(config))
    for part in (config.optim.optimizer, config.run.dtype):
        assert part in text
    assert ("blocks computed twice" in text) == config.run.gradient_checkpointing
    assert ("4 pieces a step" in text) == (config.optim.accumulate == 4)


def test_measuring_leaves_threads_as_they_were():
    before = torch.get_num_threads()
    rate, how = measure_speed(with_vocabulary(configuration_of("smoke")[1]), torch.device("cpu"), seconds=0.2)
    assert rate > 0 and "cpu" in how and torch.get_num_threads() == before
