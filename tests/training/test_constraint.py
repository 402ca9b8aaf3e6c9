"""The multiplier: its dynamics on problems whose saddle point is known, its state, and its sums over processes."""

import json
import logging
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from ugap.errors import InputError
from ugap.training import constraint as module
from ugap.training.constraint import STATE_FILE, LagrangianConstraint


def make(limit=1.0, **settings) -> LagrangianConstraint:
    """A constraint without warm-up and window, where a test does not say otherwise."""
    return LagrangianConstraint("factuality", limit, **{"window": 1, "warmup": 0, **settings})


def feed(constraint, *costs):
    """One update for each cost; the multipliers after them."""
    values = []
    for cost in costs:
        constraint.observe(cost, 1)
        values.append(constraint.update())
    return values


def solve(constraint, gradient, cost, *, rate, steps=1000):
    """Gradient ascent on `x` of `R(x) - lambda * cost(x)`, from 0, in turns with the dual: all `(x, lambda)`."""
    x, path = 0.0, []
    for _ in range(steps):
        x += rate * gradient(x, constraint.value)
        constraint.observe(cost(x), 1)
        path.append((x, constraint.update()))
    return np.array(path)


def parabola(**settings):
    """Maximise x subject to x² <= 4: the saddle point is x = 2, lambda = 1 / (2 x) = 1/4."""
    return solve(make(4.0, **settings), lambda x, value: 1 - 2 * x * value, lambda x: x * x, rate=0.05)


def line(**settings):
    """Maximise x subject to x <= 2: x = 2, lambda = 1. Nothing in it damps: an oscillator (arXiv 2007.03964)."""
    bounds = {"minimum": 1e-6, "maximum": 1e6}
    return solve(make(2.0, **bounds, **settings), lambda x, value: 1 - value, lambda x: x, rate=0.1)


@pytest.mark.parametrize(
    "settings", [{"learning_rate": 0.02}, {"learning_rate": 0.1, "damping": 0.5, "window": 5}], ids=["plain", "damped"]
)
def test_it_converges_to_the_saddle_point(settings):
    path = parabola(**settings)
    np.testing.assert_allclose(path[-50:], np.broadcast_to([2.0, 0.25], (50, 2)), rtol=1e-3)


def test_damping_stills_an_oscillator():
    plain, damped = line(learning_rate=0.02), line(learning_rate=0.02, damping=0.5)
    assert np.abs(damped[-100:] - [2.0, 1.0]).max() < 1e-3
    first, last = np.abs(plain[:100, 1] - 1).max(), np.abs(plain[-200:, 1] - 1).max()
    assert last > 0.9 * first  # without it the swing does not shrink
    assert damped[:, 0].max() - 2 < (plain[:, 0].max() - 2) / 2  # and x goes further beyond its limit


def test_damping_also_makes_up_for_the_lag_of_a_window():
    settings = {"learning_rate": 0.1, "window": 5}
    plain, damped = parabola(**settings), parabola(**settings, damping=0.5)
    assert np.abs(plain[-100:, 1] - 0.25).max() > 0.5
    assert np.abs(damped[-100:, 1] - 0.25).max() < 1e-3


def test_it_rises_above_the_limit_and_falls_below_it():
    constraint = make(1.0, learning_rate=0.5)
    values = feed(constraint, 3.0, 3.0, 1.0, 0.0)
    # log lambda moves by learning_rate * (cost - limit): +1, +1, 0, -0.5.
    np.testing.assert_allclose(np.log(values), [1.0, 2.0, 2.0, 1.5], rtol=1e-12)


def test_a_limit_of_zero_and_costs_below_zero_are_fine():
    assert feed(make(0.0, learning_rate=1.0), 0.5, -1.0) == pytest.approx([math.exp(0.5), math.exp(-0.5)])


def test_it_is_projected_at_both_ends_and_does_not_wind_up():
    constraint = make(1.0, initial=1.0, minimum=0.5, maximum=4.0, damping=0.25)
    assert feed(constraint, *[50.0] * 5) == [4.0] * 5
    # One update brings it back, however long it stood at the end.
    (value,) = feed(constraint, 0.0)
    assert math.log(value) == pytest.approx(math.log(4.0) - 1 - 0.25)
    assert feed(constraint, *[-50.0] * 5) == [0.5] * 5
    (value,) = feed(constraint, 1.5)
    assert math.log(value) == pytest.approx(math.log(0.5) + 0.5 + 0.125)


def test_the_proportional_term_is_not_summed():
    constraint = make(1.0, learning_rate=0.1, damping=2.0)
    logs = np.log(feed(constraint, 1.5, 1.5, 1.0))
    np.testing.assert_allclose(logs, [0.05 + 1.0, 0.1 + 1.0, 0.1], rtol=1e-12)


def test_warm_up_gathers_costs_and_leaves_the_multiplier():
    constraint = make(1.0, initial=2.0, warmup=3, window=4, learning_rate=0.5)
    assert feed(constraint, 5.0, 6.0, 7.0) == pytest.approx([2.0] * 3)
    assert constraint.cost == 6.0
    (value,) = feed(constraint, 2.0)  # the window holds the warm-up's costs
    assert math.log(value / 2.0) == pytest.approx(0.5 * ((5.0 + 6.0 + 7.0 + 2.0) / 4 - 1.0))


def test_the_windowed_mean_weighs_rows_alike_and_forgets():
    constraint = make(1.0, window=2)
    assert math.isnan(constraint.cost)
    for total, count in ((8.0, 1), (3.0, 3), (1.0, 5)):
        constraint.observe(total, count)
        constraint.update()
    assert constraint.cost == (3.0 + 1.0) / (3 + 5)


def test_micro_batches_of_a_step_are_one_sum():
    constraint = make(1.0)
    constraint.observe(torch.tensor(2.0, requires_grad=True), torch.tensor(1))
    constraint.observe(np.float64(4.0), 3)
    constraint.observe(math.nan, 0)  # the mean of no rows: nothing
    constraint.update()
    assert (constraint.cost, constraint.updates, constraint.skipped) == (1.5, 1, 0)


def test_a_step_without_rows_changes_nothing():
    constraint = make(1.0, warmup=1, damping=0.3)
    assert constraint.update() == 1.0
    assert constraint.updates == 0  # it does not use up the warm-up
    feed(constraint, 3.0, 3.0)
    before = constraint.state_dict()
    constraint.observe(0.0, 0)
    assert constraint.update() == constraint.value
    assert constraint.state_dict() == before


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_costs_that_are_not_finite_are_skipped_counted_and_warned_of_once(bad, caplog):
    constraint = make(1.0)
    constraint.observe(2.0, 2)
    constraint.observe(torch.tensor(bad), 3)
    with caplog.at_level(logging.WARNING):
        constraint.update()
        constraint.observe(bad, 1)
        assert constraint.update() == 1.0
    assert (constraint.cost, constraint.skipped, constraint.updates) == (1.0, 4, 1)
    (record,) = caplog.records
    assert record.getMessage() == "factuality: the cost of 3 rows is not finite; such rows are skipped"


def test_metrics():
    constraint = make(None, window=2)
    names = {f"constraint/factuality/{name}" for name in ("cost", "limit", "lambda")}
    assert constraint.metrics().keys() == names
    assert math.isnan(constraint.metrics()["constraint/factuality/limit"])
    constraint.set_limit(0.5)
    feed(constraint, 1.0, 2.0)
    assert constraint.metrics() == {
        "constraint/factuality/cost": 1.5,
        "constraint/factuality/limit": 0.5,
        "constraint/factuality/lambda": constraint.value,
    }


def test_a_limit_must_be_set_before_the_first_update():
    constraint = make(None)
    constraint.observe(1.0, 1)  # such as the base model's cost
    with pytest.raises(ValueError, match="limit: not set; call set_limit"):
        constraint.update()
    constraint.set_limit(0.25)
    assert math.log(constraint.update()) == pytest.approx(0.75)


SETTINGS = {"learning_rate": 0.3, "window": 4, "warmup": 3, "damping": 0.7, "maximum": 3.0}


@pytest.mark.parametrize("stop", [0, 2, 3, 9, 17])
def test_a_run_that_was_saved_goes_on_like_an_unbroken_one(stop, tmp_path):
    """Stopped before the first update, within the warm-up, at its end, and after the window has moved on."""
    rng = np.random.default_rng(0)
    totals, counts = rng.normal(1, 2, 30), rng.integers(0, 4, 30)
    rows = list(zip(totals.tolist(), counts.tolist(), strict=True))

    def run(constraint, rows):
        out = []
        for total, count in rows:
            constraint.observe(total, count)
            out.append((constraint.update(), constraint.cost))
        return out

    unbroken = make(0.4, **SETTINGS)
    expected = run(unbroken, rows)
    assert len({value for value, _ in expected}) > 15
    first = make(None, **SETTINGS)
    first.set_limit(0.4)
    run(first, rows[:stop])
    first.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]
    second = make(None, **SETTINGS)
    second.set_limit(0.9)  # what a new measurement said; the checkpoint knows what the run was held to
    second.load(tmp_path)
    assert second.state_dict() == first.state_dict()
    assert second.value == first.value
    np.testing.assert_equal(run(second, rows[stop:]), expected[stop:])
    assert second.state_dict() == unbroken.state_dict()


def test_settings_of_a_resumed_run_are_its_own():
    old = make(1.0, maximum=50.0, window=3)
    feed(old, 2.0, 3.0, 4.0)
    new = make(0.5, maximum=2.0, window=1)
    new.load_state_dict(old.state_dict())
    assert (new.limit, new.value, new.cost) == (0.5, 2.0, 4.0)


def test_states_that_do_not_fit_are_refused(tmp_path):
    constraint = make(1.0)
    feed(constraint, 2.0)
    state = constraint.state_dict()
    with pytest.raises(InputError, match="on 'factuality' is not one on 'kl'"):
        LagrangianConstraint("kl", 1.0).load_state_dict(state)
    with pytest.raises(InputError, match="damaged state of the constraint on 'factuality': 'window' is missing"):
        constraint.load_state_dict({key: value for key, value in state.items() if key != "window"})
    for change in ({"window": [[1.0]]}, {"window": [[1.0, 0]]}, {"log_lambda": math.nan}, {"updates": -1}):
        with pytest.raises(InputError, match="a damaged state"):
            constraint.load_state_dict({**state, **change})
    assert constraint.state_dict() == state
    with pytest.raises(InputError, match=rf"{tmp_path}: it was saved without a constraint: there is no {STATE_FILE}"):
        constraint.load(tmp_path)
    for text, cause in (("{", "not the state of a constraint: "), ("[]", "no JSON object"), ("{}", "None is not one")):
        (tmp_path / STATE_FILE).write_text(text)
        with pytest.raises(InputError, match=cause) as caught:
            constraint.load(tmp_path)
        assert str(caught.value).startswith(str(tmp_path / STATE_FILE))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("metric", ""),
        ("metric", None),
        ("limit", math.nan),
        ("limit", "0.1"),
        ("limit", math.inf),
        ("learning_rate", 0.0),
        ("learning_rate", -1.0),
        ("learning_rate", True),
        ("minimum", 0.0),
        ("maximum", 0.01),
        ("maximum", math.inf),
        ("initial", 0.0),
        ("initial", 0.001),
        ("initial", 1000.0),
        ("window", 0),
        ("window", 2.5),
        ("warmup", -1),
        ("warmup", None),
        ("damping", -0.1),
        ("damping", math.nan),
    ],
)
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        LagrangianConstraint(**{"metric": "factuality", "limit": 0.1, name: value})


def test_bad_observations_are_named():
    constraint = make(1.0)
    bad: list[Any] = [-1, math.nan, math.inf, "3"]
    for count in bad:
        with pytest.raises(ValueError, match=r"^count: expected a number"):
            constraint.observe(1.0, count)
    with pytest.raises(ValueError, match=r"^total: expected one number, got a tensor of shape \(2,\)"):
        constraint.observe(torch.zeros(2), 2)
    with pytest.raises(ValueError, match=r"^limit: expected a finite number"):
        constraint.set_limit(math.nan)


# Micro-batches (total, rows) by step and process. Sums of these are exact in any order. One step has no row in one
# process, one has none in both, and in one a process has a cost that is NaN.
STEPS = [
    [[(6.0, 1), (4.5, 2)], [(0.25, 7)]],
    [[], [(3.0, 4)]],
    [[(0.0, 0)], []],
    [[(math.nan, 2), (2.0, 1)], [(1.5, 5)]],
    [[(8.0, 2)], [(0.5, 6), (0.25, 3)]],
]
RUN: dict[str, Any] = {"learning_rate": 0.5, "window": 2, "warmup": 1, "damping": 0.25}

# The module is loaded by its path: the package would bring TRL, which takes seconds.
WORKER = """
import importlib.util, json, math, sys
import torch.distributed as dist

path, store, rank, steps, settings = sys.argv[1:]
spec = importlib.util.spec_from_file_location("constraint", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)

def reduce(sums):
    dist.all_reduce(sums)
    return sums

constraint = module.LagrangianConstraint("factuality", 0.5, **json.loads(settings))
values = []
for processes in json.loads(steps):
    for total, count in processes[int(rank)]:
        constraint.observe(total, count)
    values.append(constraint.update(reduce))
dist.destroy_process_group()
print(json.dumps([values, constraint.state_dict()]))
"""


@pytest.mark.slow
def test_two_processes_have_the_multiplier_of_one(tmp_path):
    command = [sys.executable, "-c", WORKER, module.__file__, str(tmp_path / "store")]
    rest = [json.dumps(STEPS), json.dumps(RUN)]
    processes = [
        subprocess.Popen([*command, str(rank), *rest], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        ended = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], ended
    (values, state), other = (json.loads(out) for out, _ in ended)
    assert [values, state] == other
    one, means = (LagrangianConstraint("factuality", 0.5, **RUN) for _ in range(2))
    expected, of_means = [], []
    for step in STEPS:
        for rows in step:
            for total, count in rows:
                one.observe(total, count)
            seen = [(total, count) for total, count in rows if count and math.isfinite(total)]
            if seen:
                means.observe(sum(total for total, _ in seen) / sum(count for _, count in seen), 1)
        expected.append(one.update())
        of_means.append(means.update())
    assert values == expected
    assert state == one.state_dict()
    assert state["skipped"] == 2
    assert expected[1] == expected[2]  # no row in either process
    assert max(abs(a - b) for a, b in zip(expected, of_means, strict=True)) > 0.1
