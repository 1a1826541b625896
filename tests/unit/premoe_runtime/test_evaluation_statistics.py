import numpy as np
import pytest

from premoe_runtime.formats.arrays import F64
from premoe_runtime.offline.evaluation.statistics import Ratio, estimate


def ratio(top: F64) -> Ratio:
    """Of one model where ``top`` is f64[S, N], of several where it is f64[M, S, N]; over one a prompt."""
    whole = top if top.ndim == 3 else top[None]
    return Ratio(whole, np.ones((len(whole), 1, whole.shape[2])))


def test_the_value_is_the_mean_over_tasks_of_ratios_of_sums() -> None:
    first = Ratio(np.array([[[1.0, 1.0], [0.0, 1.0]]]), np.array([[[1.0, 1.0]]]))
    second = Ratio(np.array([[[3.0], [3.0]]]), np.array([[[4.0]]]))
    assert estimate([first, second]).value == pytest.approx((0.75 + 0.75) / 2)
    assert estimate([second], of=np.exp).value == pytest.approx(np.exp(0.75))


def test_without_any_spread_an_interval_has_no_width() -> None:
    found = estimate([ratio(np.ones((3, 40)))])
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))
    assert estimate([ratio(np.full((1, 1), 0.5))]).high == 0.5


def test_the_seeds_share_of_the_variance_is_not_understated() -> None:
    of_seeds = np.array([0.2, 0.5, 0.8])
    found = estimate([ratio(np.repeat(of_seeds[:, None], 30, axis=1))], resamples=20_000)
    # 27 draws of three seeds, all alike in three of them: the widest 2.5 % on either side are such.
    wide = np.sqrt(3 / 2) * 0.3
    assert (found.low, found.high) == pytest.approx((0.5 - wide, 0.5 + wide))


def test_models_spread_an_interval_as_they_differ_and_calibration_seeds_as_they_do() -> None:
    of_models, of_seeds = np.array([0.2, 0.5, 0.8])[:, None, None], np.array([0.4, 0.5, 0.6])[None, :, None]
    alike = np.ones((3, 3, 30))
    wide = np.sqrt(3 / 2) * 0.3
    models = estimate([ratio(of_models * alike)], resamples=20_000)
    assert (models.value, models.low, models.high) == pytest.approx((0.5, 0.5 - wide, 0.5 + wide))
    seeds = estimate([ratio(of_seeds * alike)], resamples=20_000)
    assert (seeds.low, seeds.high) == pytest.approx((0.5 - wide / 3, 0.5 + wide / 3))
    # Both at once, drawn apart: the extremes of one seldom meet those of the other.
    both = estimate([ratio((of_models + of_models.transpose(1, 0, 2) - 0.5) * alike)], resamples=20_000)
    assert wide + 0.01 < both.high - 0.5 < 2 * wide - 0.01


def test_each_model_has_a_ratio_of_its_own() -> None:
    top = np.array([[[1.0, 1.0]], [[1.0, 0.0]]])
    bottom = np.array([[[2.0, 2.0]], [[1.0, 0.0]]])
    assert estimate([Ratio(top, bottom)]).value == pytest.approx((0.5 + 1) / 2)
    assert Ratio(top, bottom).value == pytest.approx(0.75)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        seeds, prompts = draw.normal(0, 0.03, (3, 1)), draw.random((1, 60))
        right = (prompts + seeds + draw.normal(0, 0.1, (3, 60)) < 0.7).astype(np.float64)
        found = estimate([ratio(right)], resamples=400)
        held += found.low <= 0.7 <= found.high
    assert 170 <= held <= 200


def test_intervals_over_models_hold_the_truth_about_as_often_as_they_say() -> None:
    draw = np.random.default_rng(3)
    held = 0
    for _ in range(200):
        models, seeds, prompts = (
            draw.normal(0, 0.04, (3, 1, 1)),
            draw.normal(0, 0.02, (1, 2, 1)),
            draw.random((1, 1, 60)),
        )
        right = (prompts + models + seeds + draw.normal(0, 0.1, (3, 2, 60)) < 0.7).astype(np.float64)
        found = estimate([ratio(right)], resamples=400)
        held += found.low <= 0.7 <= found.high
    assert 165 <= held <= 200


def test_what_is_compared_is_resampled_alike() -> None:
    draw = np.random.default_rng(1)
    ours = [ratio(draw.random((3, 50))) for _ in range(2)]
    theirs = [ratio(one.top - 0.25) for one in ours]
    found = estimate(ours, theirs)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_resamples_without_a_right_answer_of_the_full_model_do_not_count() -> None:
    few = np.zeros((1, 1, 8))
    few[0, 0, 0] = 1
    found = estimate([Ratio(few, few)])
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


def test_the_same_answers_give_the_same_interval() -> None:
    right = np.random.default_rng(2).random((3, 50))
    assert estimate([ratio(right)]) == estimate([ratio(right)])
