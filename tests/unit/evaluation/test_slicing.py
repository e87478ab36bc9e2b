"Slices and gains: every row once, and nothing that the order of equal scores decides."
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest
from hypothesis import given, strategies as st
from sklearn.metrics import roc_auc_score
from churn_nb.evaluation import metrics as e, slicing
from lessons import of_lesson
from scores import bad_input, few, quick, refused, scored, world

lesson = of_lesson("evaluation/30_slicing", "tenure_bands", "plot_gain")

def test_slices_cover_all_rows_and_name_what_is_missing():
    y, p, _, who = world()
    frame = pd.DataFrame({"country": ["DE", "FR", None, "DE"]*100, "days": np.arange(400.)})
    by = {"country": "country", "tenure": lesson.tenure_bands(frame.days), "d": slicing.deciles(frame.days, 4)}
    t = slicing.slices(frame, y, p, by, who)
    assert t.groupby("slice").n.sum().eq(400).all() and t.value.tolist()[:3] == ["DE", "FR", "missing"]
    assert t.value[t.slice == "tenure"].tolist() == ["under 90 days", "90-179 days", "180-364 days", "1 year or more"]
    assert ((t.low < t.log_loss) & (t.log_loss < t.high)).all()
    whole = slicing.slices(frame, y, p, {"all": np.zeros(400)}, who).iloc[0]
    assert np.isclose(whole.auc, roc_auc_score(y, p)) and np.isclose(whole.log_loss, e.evaluate(y, p)["log_loss"])

def test_too_small_slices_have_no_auc_or_interval(recwarn):
    "A slice of one class has no AUC, and a slice of one customer has no interval."
    t = slicing.slices(pd.DataFrame({"g": list("aabb")}), [1, 1, 0, 1], [.9, .8, .1, .7], {"g": "g"}, [1, 1, 2, 3])
    assert np.isnan(t.auc[0]) and t.auc[1] == 1 and np.isnan(t.low[0]) and np.isfinite(t.low[1])
    assert not recwarn

@quick
@given(scored(), st.integers(1, 12))
def test_gain_reaches_one_with_all_customers(case, groups):
    y, p, _, _ = case
    t = slicing.gain_table(y, p, groups)
    assert t.n.sum() == len(y) and np.isclose(t.gain.iloc[-1], 1) and np.isclose((t.lift*t.n).sum(), len(y))
    assert (t.gain >= t.targeted - 1e-12).all() or roc_auc_score(y, p) < 1

def test_equal_scores_have_no_order():
    assert slicing.gain_table([1, 1, 0, 0], [.3]*4, 2).lift.tolist() == [1, 1]

def test_tenure_bands_are_in_order_and_keep_what_is_missing():
    bands = lesson.tenure_bands([0, 89, 90, 365, np.nan])
    assert list(bands)[:4] == ["under 90 days", "under 90 days", "90-179 days", "1 year or more"] and pd.isna(bands[4])

@few
@given(scored(), st.integers(1, 12))
def test_a_plot_of_gain_has_named_axes(case, groups):
    y, p, _, _ = case
    fig = lesson.plot_gain(y, p, groups)
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in fig.axes)
    plt.close(fig)

def test_deciles_are_of_equal_size_and_keep_ties_together():
    assert np.bincount(slicing.deciles(np.arange(100)))[1:].tolist() == [10]*10
    assert len(set(slicing.deciles([5]*9))) == 1 and slicing.deciles([]).tolist() == []

@few
@given(scored(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(case, random):
    y, a, _, _ = case
    mixed = np.array(random.sample(range(len(y)), len(y)))
    pd.testing.assert_frame_equal(slicing.gain_table(y, a, 3), slicing.gain_table(y[mixed], a[mixed], 3))

# What can't be measured is an error, in one line

def calls(y, p):
    "Every function that takes labels and predictions."
    frame = pd.DataFrame({"g": [0]*len(p)})
    return {"gain_table": lambda: slicing.gain_table(y, p), "plot_gain": lambda: lesson.plot_gain(y, p), "slices": lambda: slicing.slices(frame, y, p, {"g": "g"})}

@bad_input
def test_bad_input_is_a_value_error_of_one_line(y, p, says):
    for call in calls(y, p).values(): refused(call, says)

@pytest.mark.parametrize("call,says", [
    (lambda y, p, q, c: slicing.deciles([1, np.nan]), "row 1 is nan"), (lambda y, p, q, c: lesson.tenure_bands([5, -3]), "row 1 has -3 days"),
    (lambda y, p, q, c: slicing.slices(pd.DataFrame(index=range(3)), y, p, {}), "3 rows, 400 labels"),
    (lambda y, p, q, c: slicing.slices(pd.DataFrame(index=range(400)), y, p, {"g": [1, 2]}), "g has 2 labels for 400 rows")])
def test_bad_arguments_are_value_errors_of_one_line(call, says):
    refused(lambda: call(*world()), says)
