"The simulated world of the lessons: the truth is what it says, and the rules' error rates follow from it."
import numpy as np, pytest
from churn_nb.teaching.two_models import error_rates, simulate_two_models

@pytest.mark.parametrize("per_customer", [1, 4])
def test_a_model_without_noise_is_calibrated(per_customer):
    y, p, _, _ = simulate_two_models(200_000, np.random.default_rng(0), (0, 0), per_customer)
    low, high = p < np.median(p), p >= np.median(p)
    for part in (low, high): assert y[part].mean() == pytest.approx(p[part].mean(), abs=.01)

def test_rows_of_a_customer_share_what_the_models_see():
    y, a, b, who = simulate_two_models(400, np.random.default_rng(1), (.7, .3), per_customer=4)
    assert [len(set(v)) for v in (a, b, who)] == [100, 100, 100] and (np.bincount(who) == 4).all()
    assert 100 < len({*zip(y.tolist(), who.tolist())}) < 200 # most labels of a customer agree, not all

def test_equal_noise_makes_equally_good_models():
    y, a, b, _ = simulate_two_models(300_000, np.random.default_rng(2))
    loss = [-np.log(np.where(y == 1, p, 1 - p)).mean() for p in (a, b)]
    assert loss[0] == pytest.approx(loss[1], abs=.005) and not np.array_equal(a, b)

def test_the_same_seed_gives_the_same_error_rates():
    assert error_rates(200, 5, seed=3) == error_rates(200, 5, seed=3)

def test_error_rates_show_high_power_for_a_large_effect():
    r = error_rates(2000, 40, effect=.6, seed=1)
    assert r["compare, log-loss"]["share"] > .9 and 0 <= r["higher AUC"]["se"] < .1
