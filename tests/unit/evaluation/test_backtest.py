"Influences against numerical derivatives, pooled intervals against cases known otherwise and against simulated worlds."
import numpy as np, pytest
from hypothesis import given, settings as hyp, strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score
from churn_nb.evaluation import backtest as b
from churn_nb.evaluation.comparison import delong, mean_se
from churn_nb.evaluation.metrics import evaluate, row_terms

quick = hyp(max_examples=100, deadline=None, derandomize=True)

@st.composite
def scored(draw):
    "Labels of both classes and scores with many ties."
    n = draw(st.integers(2, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    y = rng.integers(0, 2, n)
    y[:2] = 0, 1
    return y, rng.integers(1, draw(st.integers(3, 40)), n)/41

def weighted(metric, y, p, w, **costs):
    if metric == "auc": return roc_auc_score(y, p, sample_weight=w)
    if metric == "average_precision": return average_precision_score(y, p, sample_weight=w)
    if metric == "average_precision_stayers": return average_precision_score(1 - y, 1 - p, sample_weight=w)
    return np.average(row_terms(y, p, **costs)[metric], weights=w)

@quick
@given(scored(), st.integers(0, 10**6))
def test_influence_is_the_derivative_by_the_weight_of_a_row(case, i):
    y, p = case
    costs, h = {"threshold": .4, "offer_cost": 2., "saved_margin": 5.}, 1e-5
    i, e = i % len(y), np.ones(len(y))
    for metric, psi in b.influence(y, p, **costs).items():
        up, down = e.copy(), e.copy()
        up[i] += h; down[i] -= h
        slope = (weighted(metric, y, p, up, **costs) - weighted(metric, y, p, down, **costs))/(2*h)
        assert psi[i] == pytest.approx(slope, abs=1e-6), metric
        assert psi.sum() == pytest.approx(0, abs=1e-9), metric

@quick
@given(scored())
def test_every_metric_has_an_influence(case):
    y, p = case
    assert {*b.influence(y, p)} == {*evaluate(y, p)}
    costs = {"offer_cost": 1., "saved_margin": 3.}
    assert {*b.influence(y, p, **costs)} == {*evaluate(y, p, **costs)}

def test_one_part_has_the_cluster_robust_standard_errors():
    rng = np.random.default_rng(0)
    y, who = rng.integers(0, 2, 900), np.repeat(np.arange(300), 3)
    p = np.clip(.2 + .5*y + .3*rng.normal(size=900) + .2*rng.normal(size=300)[who], .01, .99)
    psi = b.influence(y, p)
    se = {m: np.sqrt(b.sampling_covariance([v], [who])[0, 0]) for m, v in psi.items()}
    for m in ("log_loss", "accuracy", "brier"): assert se[m] == pytest.approx(mean_se(row_terms(y, p)[m], who)[1], rel=1e-9)
    assert se["auc"] == pytest.approx(delong(y, p, 1 - p, who).se/2, rel=.01)

@quick
@given(st.integers(2, 12), st.floats(.001, 10), st.integers(0, 2**32 - 1))
def test_equally_sure_independent_parts_give_students_t(k, scale, seed):
    values = scale*np.random.default_rng(seed).normal(size=k)
    found = b.pool(values, np.zeros((k, k)))
    low, high = stats.t.interval(.95, k - 1, values.mean(), values.std(ddof=1)/np.sqrt(k))
    assert (found.low, found.high, found.df) == pytest.approx((low, high, k - 1), rel=1e-6)
    assert found.between == pytest.approx(values.std(ddof=1), rel=1e-6)

@quick
@given(st.integers(2, 9), st.integers(0, 2**32 - 1), st.floats(-5, 5), st.floats(.1, 10))
def test_intervals_move_and_stretch_with_the_numbers(k, seed, shift, factor):
    rng = np.random.default_rng(seed)
    values, G = rng.normal(size=k), rng.normal(size=(50, k))/20
    R = b.window_overlap(np.datetime64("2024-01-01") + np.sort(rng.integers(0, 400, k)).astype("timedelta64[D]"), 90)
    if np.trace((np.eye(k) - 1/k)@R) < 1e-9: return
    one, other = b.pool(values, G.T@G, R), b.pool(factor*values + shift, factor**2*G.T@G, R)
    fields = ("mean", "low", "high", "new_low", "new_high")
    assert [getattr(other, f) for f in fields] == pytest.approx([factor*getattr(one, f) + shift for f in fields], rel=1e-6, abs=1e-6)
    assert (other.se, other.between, other.df) == pytest.approx((factor*one.se, factor*one.between, one.df), rel=1e-6, abs=1e-9)
    assert one.new_low <= one.low <= one.mean <= one.high <= one.new_high

def test_an_error_that_all_parts_share_stays_in_the_mean():
    alone, shared = np.diag([.01]*5), np.full((5, 5), .01)
    assert b.pool(np.full(5, .3), shared).se == pytest.approx(.1)
    assert b.pool(np.full(5, .3), alone).se == pytest.approx(.1/np.sqrt(5))

def test_overlap_of_windows_is_a_correlation():
    dates = np.array(["2024-01-01", "2024-01-31", "2024-06-01"], "datetime64[D]")
    R = b.window_overlap(dates, 90)
    assert R == pytest.approx(np.array([[1, 2/3, 0], [2/3, 1, 0], [0, 0, 1]]))
    many = b.window_overlap(dates[0] + np.random.default_rng(0).integers(0, 900, 40).astype("timedelta64[D]"), 90)
    assert np.linalg.eigvalsh(many).min() > -1e-9

def test_dealt_twice_is_not_twice_as_sure():
    "Two deals of one table have the same rows: the error of the mean is that of the table."
    rng = np.random.default_rng(1)
    p = rng.random(3000)
    y, who = (rng.random(3000) < p).astype(int), np.arange(3000)
    deals = [rng.permutation(3000).reshape(5, 600) for _ in range(2)]
    parts = [b.JudgedPart(f"{i}.{j}", y[f], p[f], who[f]) for i, deal in enumerate(deals) for j, f in enumerate(deal)]
    found, one = b.pool_metrics(parts), mean_se(row_terms(y, p)["log_loss"], who)
    assert found.loc["log_loss", "mean"] == pytest.approx(one[0], rel=1e-9)
    assert found.loc["log_loss", "se"] == pytest.approx(one[1], rel=.15)

def covered(k, tau, worlds, seed, overlap=False, customers=200, level=.95):
    "Shares of worlds whose interval of the mean holds it, and whose prediction interval holds one more date."
    rng, hits = np.random.default_rng(seed), []
    days = np.datetime64("2024-01-01") + (30 if overlap else 90)*np.arange(k + 1).astype("timedelta64[D]")
    R = b.window_overlap(days, 90)
    C = np.linalg.cholesky(R + 1e-9*np.eye(k + 1))
    for _ in range(worlds):
        x = tau*C@rng.normal(size=k + 1) + .2*rng.normal(size=(customers, 1)) + .4*rng.normal(size=(customers, k + 1))
        m, psi = x.mean(axis=0), (x - x.mean(axis=0))/customers
        S = customers/(customers - 1)*psi.T@psi
        f = b.pool(m[:k], S[:k, :k], R[:k, :k], level)
        hits.append((f.low < 0 < f.high, f.new_low < m[k] < f.new_high))
    return np.mean(hits, axis=0)

@pytest.mark.parametrize("k, tau, overlap", [(2, .05, False), (6, 0, False), (6, .02, False), (6, .1, False), (9, .1, False), (9, 0, True), (9, .03, True)])
def test_intervals_cover(k, tau, overlap):
    "2,000 worlds: a coverage of .95 is seen within .0049 (one standard error), so .93 would be seen four errors off."
    assert (covered(k, tau, 2000, k) > .95 - 2*np.sqrt(.95*.05/2000)).all()

def test_intervals_are_not_wide_for_nothing():
    "Where dates differ much, the sampling error matters little and the level is met from both sides."
    for level in (.8, .95):
        mean, new = covered(8, 1., 2000, 7, level=level)
        off = 3*np.sqrt(level*(1 - level)/2000)
        assert abs(mean - level) < off and abs(new - level) < off

def test_intervals_end_where_the_metric_does():
    y, p = np.array([0, 1, 1, 1]), np.array([.1, .8, .9, .9])
    parts = [b.JudgedPart(n, y, q, np.arange(4)) for n, q in (("a", p), ("b", 1 - p))]
    found = b.pool_metrics(parts, offer_cost=1., saved_margin=3.)
    assert found.drop("profit").filter(regex="low").min(axis=None) >= 0
    assert found.drop(["profit", "log_loss"]).filter(regex="high").max(axis=None) <= 1
    assert found.loc["profit", "new_low"] < -1

def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="two classes are needed"): b.influence(np.ones(3), np.full(3, .5))
    with pytest.raises(ValueError, match="1 judged part"): b.pool(np.array([.3]), np.eye(1))
