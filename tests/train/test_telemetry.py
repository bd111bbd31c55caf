"""What a step tells about itself."""

import random

from dft_mm.train.telemetry import Spikes


def test_a_jump_of_the_loss_is_noticed_and_noise_is_not():
    draw, spikes = random.Random(0), Spikes()
    for step in range(1, 300):
        assert spikes.look(step, 2.0 - step / 300 + draw.gauss(0, 0.05)) is None
    assert "step 300: the loss jumped: cross-entropy 4" in spikes.look(300, 4.0)
    assert spikes.look(301, float("1.1")) is None
    assert Spikes().look(1, 100.0) is None


def test_the_scatter_of_a_loss_near_zero_is_no_jump_and_a_loss_that_comes_back_from_there_is():
    draw, spikes = random.Random(0), Spikes()
    for step in range(1, 300):
        assert spikes.look(step, 10 ** draw.uniform(-4, -2)) is None
    assert spikes.look(300, 0.05) is None
    assert "step 301: the loss jumped: cross-entropy 0.5" in spikes.look(301, 0.5)
