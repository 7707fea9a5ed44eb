"""Learned forward kinematics: what a row holds, gradients through time, that it learns; plants."""

from __future__ import annotations

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.embed.forward_model import (
    draw,
    fit_forward_model,
    folds,
    huber,
    rows,
    run_free,
    through_time,
)
from haversack.embed.plants import (
    PLANTS,
    Log,
    bend_for,
    constant_curvature,
    dead_zone,
    excite,
    plant,
    play,
)
from haversack.models.series.recurrent import arrays


def drawn_log(ticks: int, seed: int = 0) -> Log:
    rng = np.random.default_rng(seed)
    return Log(rng.normal(size=(ticks, 2)), rng.normal(size=(ticks, 3)), rng.normal(size=(ticks, 4)), 0.01)


def test_no_row_holds_anything_of_its_label_s_time() -> None:
    """Changing all samples from tick n + 1 on changes no input of rows up to tick n."""
    log, changed = drawn_log(30), drawn_log(30)
    changed.inputs[20:], changed.positions[20:], changed.sensors[20:] = 0, 0, 0
    x, label = rows(log, 2, 3)
    other, moved = rows(changed, 2, 3)
    at = 19 - 2  # the row of tick 19, whose label is of tick 20
    np.testing.assert_array_equal(x[: at + 1], other[: at + 1])
    assert not np.array_equal(label[at], moved[at])
    assert x.shape[1] == 2 * 2 + 3 * 3 + 4
    np.testing.assert_array_equal(x[at, :4], np.concatenate([log.inputs[19], log.inputs[18]]))
    np.testing.assert_array_equal(x[at, 4:7], log.positions[19])


def test_folds_test_only_on_what_comes_after() -> None:
    parts = list(folds(1100))
    assert len(parts) == 10
    assert all(train.stop == test.start and train.start == 0 for train, test in parts)


@pytest.mark.parametrize("kind", ["gru5-dense5", "dense"])
def test_gradients_through_time_are_those_of_the_loss(kind: str) -> None:
    rng = np.random.default_rng(0)
    layers = draw(kind, 6, 2, rng)
    x, label = rng.normal(size=(3, 4, 6)), rng.normal(size=(3, 4, 2))
    _, found = through_time(layers, x, label, huber)
    for layer, gradients in zip(layers, found, strict=True):
        for name, values in arrays(layer).items():
            at = tuple(int(rng.integers(size)) for size in values.shape)
            middle = values[at]
            sides = []
            for shift in (1e-6, -1e-6):
                values[at] = middle + shift
                sides.append(through_time(layers, x, label, huber)[0])
            values[at] = middle
            assert gradients[name][at] == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-4, abs=1e-9)


def test_a_fitted_model_beats_standing_still_and_takes_physical_units() -> None:
    which = plant("spring-cubic")
    log = excite(which, 30, 1)
    fit = fit_forward_model(log, kind="dense", measured=True, epochs=60)
    x, label = rows(log, 2, 2)
    assert fit.error < 0.2 * float(np.abs(np.diff(log.positions, axis=0)).mean())
    y, _ = fit.model.predict(x[-50:], fit.model.start(50))
    assert float(np.abs(y - label[-50:]).mean()) < 2 * fit.error + 1e-3
    again = fit_forward_model(log, kind="dense", measured=True, epochs=60)
    assert again.error == fit.error


def test_running_free_feeds_back_what_was_predicted() -> None:
    rng = np.random.default_rng(0)
    layers = draw("dense", 5, 1, rng)
    outs, seen = run_free(layers, rng.normal(size=(6, 5)), slice(2, 4), lambda y: np.tile(y, 2), 1)
    np.testing.assert_array_equal(seen[2:, 2], outs[1:-1, 0])
    np.testing.assert_array_equal(seen[3:, 3], outs[1:-2, 0])


def test_short_logs_and_unknown_networks_are_refused() -> None:
    with pytest.raises(UserError, match="the log has 50 ticks"):
        fit_forward_model(drawn_log(50))
    with pytest.raises(UserError, match="gru50"):
        fit_forward_model(drawn_log(2000), kind="gru50")


@pytest.mark.parametrize("name", PLANTS)
def test_a_plant_stays_at_rest_and_is_repeatable(name: str) -> None:
    which = plant(name)
    state = which.rest()
    for _ in range(50):
        state = which.advance(state, np.zeros(which.inputs))
    np.testing.assert_allclose(which.position(state), 0, atol=1e-12)
    one, other = excite(which, 2.0, 3), excite(which, 2.0, 3)
    np.testing.assert_array_equal(one.sensors, other.sensors)
    low, high = which.limits
    assert one.inputs.min() >= low and one.inputs.max() <= high
    assert one.positions.shape == (round(2.0 / which.tick_s), which.outputs)


def test_an_undamped_spring_swings_with_its_own_period() -> None:
    from haversack.embed.plants import Spring

    which = Spring(damping=0.0, tick_s=0.01)
    period = 2 * np.pi / np.sqrt(10)
    state = np.array([1.0, 0.0])
    for _ in range(round(period / 0.01)):
        state = which.advance(state, np.zeros(1))
    left = period - round(period / 0.01) * 0.01
    assert state[0] == pytest.approx(np.cos(np.sqrt(10) * left), abs=1e-4)


def test_curvature_and_its_inverse() -> None:
    bends = np.array([[0.0, 0.0], [0.5, 0.0], [-0.3, 0.4], [1e-6, 0.0]])
    tips = constant_curvature(bends, 0.1)
    assert tips[1] == pytest.approx([0.1 * (1 - np.cos(0.5)) / 0.5, 0, 0.1 * (np.sin(0.5) / 0.5 - 1)])
    np.testing.assert_allclose(bend_for(tips[1:3, :2], 0.1), bends[1:3], atol=1e-9)
    assert dead_zone(np.array([0.3, -2.0]), 0.5) == pytest.approx([0, -1.5])
    assert play(np.array([0.0]), np.array([1.0]), 0.2) == pytest.approx([0.8])


def test_an_unknown_plant_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="tendon"):
        plant("tenon")
