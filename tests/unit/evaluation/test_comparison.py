"Intervals over customers, DeLong against its definition and R's pROC, and the comparison of two models."
import numpy as np, pandas as pd, pytest
from hypothesis import assume, given, strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from churn_nb.evaluation import comparison as c, metrics as e
from churn_nb.teaching.two_models import simulate_two_models
from lessons import of_lesson
from scores import COSTS, METRICS, bad_input, few, quick, refused, scored, two_of_each, world

# The aSAH data of R's pROC (Turck et al., 2010; Robin et al., 2011): outcome, two markers, a grade of 5 levels.
POOR = np.array(list(
    "0000110100101100101110100000000010011011000000000110001000101001110110111100011010000001000000000000"
    "1111110001000")).astype(int)
S100B = np.fromstring("""
    0.13 0.14 0.1 0.04 0.13 0.1 0.47 0.16 0.18 0.1 0.12 0.1 0.44 0.71 0.04 0.08 0.49 0.04 0.07 0.33 0.09 0.09 0.07
    0.11 0.07 0.17 0.07 0.11 0.13 0.19 0.05 0.16 0.41 0.14 0.34 0.35 0.48 0.09 0.96 0.25 0.5 0.46 0.16 0.07 0.43
    0.45 0.11 0.08 0.09 0.86 0.52 0.08 0.06 0.13 2.07 0.1 0.14 0.15 0.07 0.06 0.77 0.05 0.09 0.3 0.03 0.09 0.04 0.23
    0.7 0.09 0.27 0.71 0.08 0.26 0.08 0.16 0.09 0.13 0.1 0.08 0.11 0.33 0.11 0.28 0.07 0.1 0.32 0.22 0.07 0.05 0.24
    0.38 0.1 0.15 0.08 0.14 0.1 0.07 0.04 0.19 0.56 0.14 0.58 0.32 0.82 0.74 0.15 0.47 0.17 0.44 0.15 0.5 0.48
    """, sep=" ")
NDKA = np.fromstring("""
    3.01 8.54 8.09 10.42 17.4 12.75 6 13.2 15.54 6.01 15.96 17.86 5.18 8.9 13.41 20.75 11.6 16.11 32.37 54.82 32.41
    49.94 40.34 9.47 6.29 12.53 6.54 6.3 80.3 12.8 9.8 9.81 9.85 18.21 5.03 14.04 21.93 8.02 7.42 8.38 6.59 9.63
    13.12 7.96 14.34 41.43 7.63 7.06 12.59 13.56 3.87 9.44 7.66 12.98 419.19 27.19 22.27 9.95 21.22 11.73 10.4 58.83
    6.39 11.09 12.22 13.67 17.21 22.63 12.9 9.7 21.57 8.23 72.57 15.54 10.51 10.6 14.57 5.19 9.63 4.61 21.48 17.3
    12.71 9.44 11.07 19.46 10.83 5.37 11.97 7.75 9.83 10.55 28.49 8.53 12.57 12.9 46.83 11.68 12.67 9.01 9.57 34.06
    11.72 14.26 47.61 11.67 24.58 10.33 13.87 15.89 22.43 6.79 13.45""", sep=" ")
WFNS = np.array(list(
    "1111325412525512522521111212113421454142551124112552125122215112521452441412142123242145115422111312"
    "5225552445111")).astype(float)

def compare(y, ours, theirs, clusters=None, metric="log_loss", *thresholds, **options): return c.compare(y, ours, theirs, clusters, c.ComparisonOptions(metric, *thresholds, **options))
def resampled(y, p, clusters=None, **options): return c.resampled(y, p, clusters, c.BootstrapOptions(**options))
def intervals(y, p, clusters=None, **options): return c.intervals(y, p, clusters, c.BootstrapOptions(**options))
cluster_weights = of_lesson("evaluation/20_comparison", "cluster_weights").cluster_weights

@quick
@given(scored(), st.integers(0, 2**32 - 1))
def test_weighted_ranking_is_scikit_learns_sample_weight(case, seed):
    y, p, _, _ = case
    w = np.random.default_rng(seed).integers(0, 3, (4, len(y)))
    w[:, y.argmax()] += 1
    w[:, y.argmin()] += 1 # a class without weight has no AUC
    for labels, scores in ((y, p), (1 - y, 1 - p)):
        r = c.Ranking(labels, scores)
        ones, zeros = r.groups(w[:, r.order])
        np.testing.assert_allclose(r.auc(ones, zeros), [roc_auc_score(labels, scores, sample_weight=v) for v in w])
        np.testing.assert_allclose(r.average_precision(ones, zeros),
                                   [average_precision_score(labels, scores, sample_weight=v) for v in w])

def test_ranking_a_class_without_weight_gives_nan_silently(recwarn):
    r = c.Ranking(np.array([1, 0]), np.array([.9, .1]))
    assert np.isnan(r.auc(*r.groups(np.array([[1, 0]])))).all()
    assert np.isnan(r.average_precision(*r.groups(np.array([[0, 1]])))).all()
    assert not recwarn

@quick
@given(scored(), st.integers(0, 1000))
def test_a_resample_is_the_metric_of_the_copied_rows(case, seed):
    y, p, _, who = case
    drawn = resampled(y, p, who, rounds=5, seed=seed, **COSTS)
    for i, w in enumerate(np.concatenate(list(cluster_weights(who, 5, seed)))):
        rows = np.repeat(np.arange(len(y)), w)
        if len(set(y[rows])) == 2:
            m = e.evaluate(y[rows], p[rows], .5, **COSTS)
            np.testing.assert_allclose([drawn[k][i] for k in m], list(m.values()), atol=1e-12)

def test_cluster_weights_resample_whole_customers():
    "Each draw has as many customers as there are."
    who = np.repeat(["c", "a", "b"], [3, 1, 2])
    w = np.concatenate(list(cluster_weights(who, 400, 1)))
    assert w.shape == (400, 6) and w.dtype.kind == "i"
    assert (w[:, [0, 3, 4]].sum(axis=1) == 3).all() and (w[:, :3] == w[:, :1]).all() and (w[:, 4] == w[:, 5]).all()
    assert abs(w.mean() - 1) < .1

def test_blocks_add_up_to_the_rounds():
    sizes = [len(b) for b in c.draws(3000, 700, 5)]
    assert sum(sizes) == 700 and len(sizes) > 1

@few
@given(scored(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(case, random):
    y, a, b, who = case
    order = np.array(random.sample(range(len(y)), len(y)))
    args = lambda f: (y[f], a[f], b[f])
    keep, mixed = np.arange(len(y)), order
    one, two = (intervals(y[f], a[f], who[f], rounds=20, **COSTS) for f in (keep, mixed))
    np.testing.assert_allclose(one, two, atol=1e-12)
    for m in METRICS:
        if m == "auc" and not two_of_each(y, who): continue
        one, two = (compare(*args(f), who[f], m, rounds=20, **COSTS) for f in (keep, mixed))
        np.testing.assert_allclose([one.difference, one.se], [two.difference, two.se], atol=1e-12)

def test_the_same_seed_gives_the_same_numbers():
    y, a, b, who = world()
    pd.testing.assert_frame_equal(intervals(y, a, who, rounds=50), intervals(y, a, who, rounds=50))
    first, again, other = (compare(y, a, b, who, "average_precision", rounds=50, seed=s) for s in (0, 0, 1))
    assert first == again and first.se != other.se

@pytest.mark.parametrize("metric", METRICS)
def test_customers_of_one_row_are_no_customers_at_all(metric):
    y, a, b, _ = world(300, per_customer=1)
    with_ids, without = (compare(y, a, b, ids, metric, rounds=100, **COSTS) for ids in (np.arange(300), None))
    np.testing.assert_allclose(*([r.difference, r.se, r.p_value] for r in (with_ids, without)))

@pytest.mark.parametrize("metric", METRICS)
def test_copies_of_a_row_are_no_news(metric):
    y, a, b, _ = world(300, per_customer=1)
    once = compare(y, a, b, None, metric, rounds=100, **COSTS)
    copied = compare(*(v.repeat(3) for v in (y, a, b)), np.arange(300).repeat(3), metric, rounds=100, **COSTS)
    np.testing.assert_allclose(*([r.difference, r.se, r.p_value] for r in (copied, once)))

def test_comparing_on_a_single_customer_is_refused():
    y, a, b, _ = world()
    with pytest.raises(ValueError, match="^clusters: 1 customer, .*$"): compare(y, a, b, ["x"]*len(y))

# DeLong

def pairs(y, p):
    "V10 and V01 by their definition, all pairs of them."
    d = p[y == 1][:, None] - p[y == 0][None]
    psi = np.where(d > 0, 1., np.where(d == 0, .5, 0))
    return psi.mean(axis=1), psi.mean(axis=0)

@quick
@given(scored())
def test_delong_is_its_definition(case):
    y, a, b, _ = case
    assume(2 <= y.sum() <= len(y) - 2)
    (a10, a01), (b10, b01) = pairs(y, a), pairs(y, b)
    np.testing.assert_allclose(c.components(y, a)[y == 1], a10)
    np.testing.assert_allclose(c.components(y, a)[y == 0], a01)
    var = lambda u, v: np.cov(np.stack([u, v]))/len(u)
    S = var(a10, b10) + var(a01, b01)
    r = c.delong(y, a, b)
    np.testing.assert_allclose([r.auc_a, r.auc_b], [roc_auc_score(y, a), roc_auc_score(y, b)])
    np.testing.assert_allclose(r.se, np.sqrt(max(S[0, 0] + S[1, 1] - 2*S[0, 1], 0)), atol=1e-7)

@quick
@given(scored())
def test_delong_with_customers_is_obuchowskis_sum(case):
    y, a, b, who = case
    assume(two_of_each(y, who))
    (a10, a01), (b10, b01) = pairs(y, a), pairs(y, b)
    M, N, e_ = y.sum(), (1 - y).sum(), (a10 - b10).mean()
    total = lambda d, rows, k: sum(v - e_ for v, w in zip(d, who[rows]) if w == k)
    S10 = {k: total(a10 - b10, y == 1, k) for k in set(who)}
    S01 = {k: total(a01 - b01, y == 0, k) for k in set(who)}
    i, j, k = len(set(who[y == 1])), len(set(who[y == 0])), len(set(who))
    var = (i/(i - 1)*sum(v**2 for v in S10.values())/M**2 + j/(j - 1)*sum(v**2 for v in S01.values())/N**2
           + 2*k/(k - 1)*sum(S10[k_]*S01[k_] for k_ in S10)/(M*N))
    np.testing.assert_allclose(c.delong(y, a, b, who).se**2, max(var, 0), atol=1e-12)

def test_delong_gives_procs_numbers():
    "roc.test of pROC on aSAH: s100b against ndka, against wfns, which has ties; its first placements."
    r = c.delong(POOR, S100B, NDKA)
    assert [round(v, 7) for v in (r.auc_a, r.auc_b)] == [.7313686, .6119580]
    assert (round(r.z, 4), round(2*r.p, 4)) == (1.3908, .1643)
    r = c.delong(POOR, S100B, WFNS)
    assert (round(r.auc_b, 7), round(r.z, 3), round(2*(1 - r.p), 5)) == (.8236789, -2.209, .02718)
    v = c.components(POOR, S100B) # tests/testthat/helper-deLongPlacementsCpp-expected.R
    np.testing.assert_allclose(v[POOR == 1][:3], [.5625, .4375, .715277777777778])
    np.testing.assert_allclose(v[POOR == 0][:3], [.707317073170732, .670731707317073, .804878048780488])

def test_delong_and_the_bootstrap_agree():
    y, a, b, who = world(2000, 3)
    drawn = [resampled(y, q, who, rounds=600)["auc"] for q in (a, b)]
    assert abs(c.delong(y, a, b, who).se/(drawn[0] - drawn[1]).std() - 1) < .1

def test_one_customer_with_a_label_is_too_few():
    with pytest.raises(ValueError, match="^delong: 1 customers with label 1, 2 with label 0; two of each are needed$"):
        c.delong([1, 0, 0], [.9, .1, .2], [.9, .1, .2])

@few
@given(scored())
def test_the_same_predictions_are_never_better_and_never_worse(case):
    y, p, _, who = case
    for m in METRICS:
        if m == "auc" and not two_of_each(y, who): continue
        same = compare(y, p, p.copy(), who, m, rounds=10, **COSTS)
        assert (same.difference, same.p_value, same.better) == (0, 1, False) and same.se == 0 == same.low == same.high
        assert compare(y, p, p.copy(), who, m, margin=.01, rounds=10, **COSTS).better

@pytest.mark.parametrize("metric", METRICS)
def test_turning_the_models_round_turns_the_answer_round(metric):
    y, a, b, who = world()
    there, back = (compare(y, *pair, who, metric, rounds=50, **COSTS) for pair in ((a, b), (b, a)))
    np.testing.assert_allclose([there.difference, there.low, there.high], [-back.difference, -back.high, -back.low])
    assert np.isclose(there.p_value, 1 - back.p_value)

@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("margin", [0, .01, .2])
def test_better_is_a_lower_bound_above_minus_the_margin(metric, margin):
    y, a, b, who = world()
    for pair in ((a, b), (b, a), (b, y*.98 + .01)):
        r = compare(y, *pair, who, metric, margin=margin, rounds=50, **COSTS)
        assert r.better == (r.low > -margin)

@pytest.mark.parametrize("metric", METRICS)
def test_the_truth_beats_noise_in_every_metric(metric):
    y, a, b, who = simulate_two_models(4000, np.random.default_rng(1), (0, 3), 2)
    r = compare(y, a, b, who, metric, .8, .8, rounds=100, **COSTS)
    assert r.better and r.difference > 0 and not compare(y, b, a, who, metric, .8, .8, rounds=100, **COSTS).better
    assert r.ours == pytest.approx(e.evaluate(y, a, .8, **COSTS)[metric]) and metric in str(r)

def test_rounding_noise_is_no_difference():
    y, a, _, who = world()
    assert compare(y, a, a*(1 + 1e-15), who).p_value == 1

# What can't be measured is an error, in one line

def calls(y, p):
    "Every function that takes labels and predictions."
    return {"resampled": lambda: resampled(y, p), "intervals": lambda: intervals(y, p, rounds=5),
            "delong": lambda: c.delong(y, p, p), "compare": lambda: compare(y, p, p)}

@bad_input
def test_bad_input_is_a_value_error_of_one_line(y, p, says):
    for call in calls(y, p).values(): refused(call, says)

@pytest.mark.parametrize("call,says", [
    (lambda y, p, q, who: compare(y, p, q, who, "f1"), "metric f1 is not known"),
    (lambda y, p, q, who: compare(y, p, q, who, "profit"), "metric profit is not known, or needs costs"),
    (lambda y, p, q, who: compare(y, p, q, who[:-1]), "399 customer ids for 400 rows"),
    (lambda y, p, q, who: intervals(y, p, [None, *who[1:]]), "row 0 has no customer id"),
    (lambda y, p, q, who: intervals(y, p, who, rounds=1), "1 rounds")])
def test_bad_arguments_are_value_errors_of_one_line(call, says):
    refused(lambda: call(*world()), says)
