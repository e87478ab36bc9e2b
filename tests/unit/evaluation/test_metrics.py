"Metrics against scikit-learn, and profit at every threshold."
import matplotlib.pyplot as plt, numpy as np, pytest
from hypothesis import given, strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score
from churn_nb.evaluation import metrics as e
from lessons import of_lesson
from scores import COSTS, METRICS, bad_input, few, quick, refused, scored, world

@quick
@given(scored())
def test_metrics_are_scikit_learns(case):
    y, p, _, _ = case
    m, q = e.evaluate(y, p, .5, **COSTS), np.clip(p, 1e-7, 1 - 1e-7)
    assert list(m) == METRICS and list(e.evaluate(y, p)) == METRICS[:-1]
    assert m["auc"] == roc_auc_score(y, p) and m["average_precision"] == average_precision_score(y, p)
    assert m["average_precision_stayers"] == average_precision_score(1 - y, 1 - p)
    assert np.isclose(m["log_loss"], log_loss(y, q)) and np.isclose(m["brier"], brier_score_loss(y, p))
    assert np.isclose(m["profit"], sum(2.5*a - 2 for a, b in zip(y, p) if b >= .5)/len(y))

@quick
@given(scored(), st.sampled_from([0., .5, 2.]), st.sampled_from([0., 1., 5.]))
def test_the_curve_is_profit_at_every_threshold(case, cost, saved):
    y, p, _, _ = case
    t, gain = e.profit_curve(y, p, cost, saved)
    assert (np.diff(t) > 0).all() and len(t) == len(set(p)) + 1 and gain[-1] == 0
    np.testing.assert_allclose(gain, [e.profit(y, p, v, cost, saved) for v in t], atol=1e-12)

@few
@given(scored(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(case, random):
    y, a, _, _ = case
    mixed = np.array(random.sample(range(len(y)), len(y)))
    one, two = (np.concatenate(e.profit_curve(y[f], a[f], 2, 2.5)) for f in (np.arange(len(y)), mixed))
    np.testing.assert_allclose(one, two, atol=1e-12)

# The lesson's plot

plot_profit = of_lesson("evaluation/10_metrics", "plot_profit").plot_profit

@few
@given(scored(), st.sampled_from([(2, 2.5), (0, 0), (1, 0)]))
def test_a_plot_of_profit_has_named_axes(case, costs):
    y, p, _, _ = case
    fig = plot_profit(y, p, *costs)
    assert all(ax.get_xlabel() and ax.get_ylabel() and ax.get_title() for ax in fig.axes)
    plt.close(fig)

# What can't be measured is an error, in one line

def calls(y, p):
    "Every function that takes labels and predictions."
    return {"evaluate": lambda: e.evaluate(y, p), "profit": lambda: e.profit(y, p, .5, 1, 2), "profit_curve": lambda: e.profit_curve(y, p, 1, 2),
            "plot_profit": lambda: plot_profit(y, p, 1, 2)}

@bad_input
def test_bad_input_is_a_value_error_of_one_line(y, p, says):
    for call in calls(y, p).values(): refused(call, says)

@pytest.mark.parametrize("call,says", [
    (lambda y, p, q, c: e.evaluate(y, p, saved_margin=1), "offer_cost is None"),
    (lambda y, p, q, c: e.profit(y, p, .5, -1, 1), "offer_cost is -1")])
def test_bad_arguments_are_value_errors_of_one_line(call, says):
    refused(lambda: call(*world()), says)
