"The loss before the labels: what holds for any rows, and a stream like a service's."
import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import integrate

from churn_nb.evaluation.loss_estimation import LEAST_BATCHES, Batch, Mixture, entropy, estimate_loss, loss_variance, predict_level, rectifier
from churn_nb.evaluation.metrics import row_terms

probability = st.floats(0, 1)

@given(probability)
def test_entropy_and_variance_are_those_of_the_two_outcomes(p):
    terms = np.array([row_terms(np.array([y]), np.array([p]))["log_loss"][0] for y in (0, 1)])
    q = np.clip(p, 1e-7, 1 - 1e-7)
    mean = (1 - q) * terms[0] + q * terms[1]
    assert entropy(p) == pytest.approx(mean, abs=1e-9)
    assert loss_variance(p) == pytest.approx((1 - q) * (terms[0] - mean) ** 2 + q * (terms[1] - mean) ** 2, abs=1e-9)

@given(st.lists(st.floats(-1, 1), min_size=1, max_size=4), st.floats(0.01, 0.99))
def test_quantile_of_a_mixture_has_that_share_below(means, q):
    from scipy.stats import norm
    m = Mixture(np.array(means), np.linspace(0.1, 1, len(means)), np.full(len(means), 1 / len(means)))
    assert m.weight @ norm.cdf((m.quantile(q) - m.mean) / np.sqrt(m.variance)) == pytest.approx(q, abs=1e-6)

def test_one_step_of_the_filter_is_the_posterior_by_integration():
    r, s2, tau = np.array([0.1, 0.3]), np.array([0.04, 0.01]), 0.2
    found = predict_level(r, s2, 0, np.array([tau]))
    def density(b): return np.exp(-(b - r[0]) ** 2 / 2 / (s2[0] + tau**2) - (b - r[1]) ** 2 / 2 / s2[1])
    whole = integrate.quad(density, -3, 3)[0]
    mean = integrate.quad(lambda b: b * density(b), -3, 3)[0] / whole
    assert found.mean[0] == pytest.approx(mean, abs=1e-6)
    assert found.variance[0] == pytest.approx(integrate.quad(lambda b: (b - mean) ** 2 * density(b), -3, 3)[0] / whole, abs=1e-6)

def months(rng, n=400, count=9, offset=0.0):
    z = rng.normal(-1, 1.2, (count, n))
    return [Batch(rng.random(n) < 1 / (1 + np.exp(-row - offset)), 1 / (1 + np.exp(-row))) for row in z]

def test_older_labels_never_make_the_interval_narrower():
    stream = months(np.random.default_rng(0))
    widths = [(e := estimate_loss(stream[:8], stream[8].p, ahead)).high - e.low for ahead in (0, 1, 3, 6)]
    assert widths == sorted(widths) and widths[0] < widths[-1]

def test_a_steady_miscalibration_is_corrected():
    stream = months(np.random.default_rng(1), n=4000, offset=1.0)
    found, shown = estimate_loss(stream[:8], stream[8].p, 3), row_terms(*stream[8][:2])["log_loss"].mean()
    assert abs(found.cbpe - shown) > 0.1 > 5 * abs(found.estimate - shown) and found.low < shown < found.high

@pytest.mark.parametrize("count", range(LEAST_BATCHES + 1))
def test_few_labelled_periods_give_no_interval(count):
    stream = months(np.random.default_rng(2))
    found = estimate_loss(stream[:count], stream[8].p, 3)
    assert (found.low is None) == (count < LEAST_BATCHES) and found.batches == count
    assert count >= LEAST_BATCHES or found.verdict(1e9) == "unknown"

def test_rows_of_one_customer_share_their_noise():
    p = np.repeat(np.random.default_rng(3).uniform(0.1, 0.6, 100), 4)
    stream = months(np.random.default_rng(3))[:6]
    def width(customers): return (e := estimate_loss(stream, p, 1, customers)).high - e.low
    assert width(np.repeat(np.arange(100), 4)) > width(None)

@pytest.mark.parametrize("p", [[], [0.5, np.nan], [1.5]])
def test_rows_without_a_probability_are_refused(p):
    with pytest.raises(ValueError, match="probabilities in"): estimate_loss([], np.array(p), 1)

def test_a_calibrated_extreme_probability_has_a_finite_rectifier():
    assert np.isfinite(rectifier(Batch(np.array([0, 1, 1]), np.array([0.0, 1.0, 0.0])))).all()
