import pytest

from ugap.study.compare.matched import matched_setting


@pytest.mark.parametrize(
    ("people", "level_at", "temperature"),
    [
        (4.24, lambda t: 4 * t**2 + 1, 0.9),
        (3.0, lambda t: 2.5 * t, 1.2),
        (2.9, lambda t: 3 * t - 0.1, 1.0),
        (0.1, lambda t: 2 * t, 0.5),  # out of reach
        (9.0, lambda t: 2 * t, 2.0),
        # Hardly rises at first, and then steeply: what a model does that was trained on its own samples.
        (3.1, lambda t: 1.4 + 0.9 * t**3 if t > 1 else 1.3 + t, 1.236),
        (3.1, lambda t: 0.5 + t**4, 1.2698),
    ],
)
def test_it_is_where_the_levels_cross(people, level_at, temperature):
    tried = []

    def level(t):
        tried.append(t)
        return level_at(t)

    assert matched_setting(people, level) == pytest.approx(temperature, abs=0.01)
    assert tried[:3] == [0.9, 1.0, 1.1]
    assert len(tried) == len(set(tried)) <= 9


def test_a_level_that_does_not_rise_with_the_temperature_is_left_alone():
    assert matched_setting(3.0, lambda t: 4 - t) in (0.9, 1.0, 1.1)
