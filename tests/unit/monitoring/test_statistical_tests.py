"Distances: each against SciPy on anything hypothesis thinks of; the fast way against two plain sorts, to the last digit."
import itertools, math, subprocess, sys, warnings
import numpy as np, pandas as pd, pytest
from hypothesis import given, strategies as st
from scipy import special, stats
from scipy.spatial import distance
from churn_nb.monitoring import statistical_tests as d
from churn_nb.monitoring.empirical_cdf import tally
from lessons import of_lesson
from samples import few, flags, infinite, quick, single, small, with_missing

wasserstein = of_lesson("monitoring/20_statistical_tests", "wasserstein").wasserstein

# p-values of K-S

@pytest.mark.parametrize("n, m", [(1, 1), (1, 6), (2, 5), (4, 4), (3, 7), (5, 6), (6, 6)])
def test_exact_pvalue_is_the_share_of_all_orders(n, m):
    row = np.arange(n + m)
    def gap(x):
        i = np.cumsum(np.isin(row, x))
        return np.abs(i*m - (row + 1 - i)*n).max()
    gaps = np.array([gap(x) for x in itertools.combinations(range(n + m), n)])
    for H in sorted({*gaps}): assert d.ks_pvalue(int(H), n, m) == pytest.approx(np.mean(gaps >= H), abs=1e-14)

@quick
@given(few, few)
def test_pvalue_is_scipys_exact_one(x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning) # its sum may go a hair above 1; then it takes another formula
        theirs = stats.ks_2samp(x, y, method="exact")
    t = tally(x, y, 10)
    assert (t.statistic, t.pvalue) == pytest.approx((theirs.statistic, theirs.pvalue), rel=0, abs=1e-12)

@pytest.mark.parametrize("n, m, D", [(10_000, 10_000, .02), (10_000, 10_000, .0005), (10_000, 10_000, 1), (2000, 1999, .03), (10_000, 40, .2), (700, 350, .1)])
def test_pvalue_of_larger_samples_is_scipys_exact_one(n, m, D):
    step = math.gcd(n, m)
    H = max(round(D*n*m/step), 1)*step
    from scipy.stats._stats_py import _attempt_exact_2kssamp
    ok, _, p = _attempt_exact_2kssamp(n, m, step, H/(n*m), "two-sided")
    assert ok and d.ks_pvalue(H, n, m) == pytest.approx(p, rel=1e-9, abs=1e-12)

@quick
@given(st.floats(0, 40))
def test_kolmogorov_is_scipys(t): assert d._kolmogorov(t) == pytest.approx(special.kolmogorov(t), rel=1e-12, abs=2e-15)

def test_both_forms_of_the_series_meet_where_they_are_switched():
    for t in (.1, 1): assert d._kolmogorov(t - 1e-12) == pytest.approx(d._kolmogorov(t + 1e-12), abs=1e-11)

@pytest.mark.parametrize("n, m", [(10_001, 10_001), (10_001, 1200), (200_000, 200_000), (10**6, 5000)])
def test_above_10_000_the_error_is_bounded_as_stated(n, m):
    e = n*m/(n + m)
    for t in np.linspace(.45, 3, 12):
        H = round(t/math.sqrt(e)*n*m)
        assert abs(d.ks_pvalue(H, n, m) - stats.kstwo.sf(H/(n*m), round(e))) < .025/e

@pytest.mark.parametrize("m", [1, 3, 50, 900])
def test_ks_against_a_large_sample_equals_the_one_sample_test(m):
    n = 30_000
    for D in (.3, .6):
        e = round(n*m/(n + m))
        assert d.ks_pvalue(round(D*n*m), n, m) == pytest.approx(stats.kstwo.sf(round(D*n*m)/(n*m), e), abs=1e-12)
    assert d.ks_pvalue(n*m, n, m) < 1e-4 or m < 3

@quick
@given(st.integers(1, 300_000), st.integers(1, 300_000), st.floats(0, 1))
def test_a_pvalue_is_a_probability_and_falls_with_the_gap(n, m, D):
    if max(n, m) <= 10_000 and n*m > 10**6: n = m # the grid is slow, and tested elsewhere
    H = round(D*n*m)
    p, q = d.ks_pvalue(H, n, m), d.ks_pvalue(min(H + max(n, m), n*m), n, m)
    assert 0 <= q <= p + 1e-12 and p <= 1 and d.ks_pvalue(0, n, m) == 1

# Chi-square and categories

rows = st.integers(1, 12).flatmap(lambda k: st.tuples(*[st.lists(st.integers(0, 40), min_size=k, max_size=k)]*2))

@quick
@given(rows)
def test_chi_square_is_scipys(both):
    r, c = (np.array(v) for v in both)
    if not (r.sum() and c.sum()):
        pytest.raises(d.DriftInputError, d.chi_square, r, c)
        return
    theirs = stats.chi2_contingency(np.stack([r, c])[:, r + c > 0], correction=False)
    assert d.chi_square(r, c) == pytest.approx((theirs.statistic, theirs.dof, theirs.pvalue), rel=1e-12, abs=1e-12)

@quick
@given(rows)
def test_pooling_keeps_all_rows_and_leaves_nothing_rare(both):
    r, c = (np.array(v) for v in both)
    if not (r.sum() and c.sum()): return
    a, b = d.pool_rare(r, c)
    assert (a.sum(), b.sum()) == (r.sum(), c.sum()) and len(a) == len(b) <= (r + c > 0).sum()
    least = (a + b).min()*min(a.sum(), b.sum())/(a.sum() + b.sum())
    assert least >= 5 - 1e-9 or len(a) == 1
    need = 5*(r + c).sum()/min(r.sum(), c.sum())
    if (r + c)[r + c > 0].min() >= need: assert (a.tolist(), b.tolist()) == (r[r + c > 0].tolist(), c[r + c > 0].tolist())

@pytest.mark.parametrize("r, c", [([1, 2], [1]), ([[1]], [[1]]), ([-1, 2], [1, 1]), ([0], [1]), ([], [])])
def test_bad_counts_are_refused(r, c):
    with pytest.raises(d.DriftInputError) as e: d.chi_square(r, c)
    assert "\n" not in str(e.value)

names_ = st.lists(st.one_of(st.none(), st.just(float("nan")), st.text(max_size=3), st.sampled_from(["Zürich", "東京", "None", "nan", ""])), min_size=1, max_size=30)

@quick
@given(names_, names_)
def test_categories_are_counted_by_their_text(a, b):
    names, r, c = d.category_counts(a, b)
    text = lambda v: None if v is None or v != v else v
    assert [dict(zip(names, v)) for v in (r, c)] == [{k: [*map(text, s)].count(k) for k in names} for s in (a, b)]
    assert (r.sum(), c.sum(), (r + c).min() > 0) == (len(a), len(b), True)
    known = [k for k in names if k is not None]
    assert known == sorted({*map(text, a + b)} - {None}) and names[len(known):] in ([], [None])
    unseen, vanished = d.unseen_and_vanished(names, r, c)
    assert (unseen, vanished) == (sorted({*map(text, b)} - {*map(text, a), None}), sorted({*map(text, a)} - {*map(text, b), None}))
    again = d.category_counts(np.array(a[::-1], object), pd.Series(b, dtype=object))
    assert again[0] == names and (again[1] == r).all() and (again[2] == c).all()

def test_categories_of_every_dtype():
    counts = lambda a, b: (lambda n, r, c: (n, r.tolist(), c.tolist()))(*d.category_counts(a, b))
    assert counts(pd.Series(["a", pd.NA], dtype="string"), pd.Series(["b", None], dtype="string[pyarrow]")) == (["a", "b", None], [1, 0, 1], [0, 1, 1])
    assert counts(pd.Categorical(["x", None]), np.array(["x", "y"])) == (["x", "y", None], [1, 0, 1], [1, 1, 0])
    assert counts([1, True, 1.0, "1"], [1]) == (["1", "1.0", "True"], [2, 1, 1], [1, 0, 0]) == counts(["1", 1.0, True, 1], [1])
    assert counts(np.array([True, False]), [True]) == (["False", "True"], [1, 1], [0, 1])
    assert counts(np.array(["2026-01-01", "NaT"], "M8[D]"), [None])[0] == ["2026-01-01", None]

@pytest.mark.parametrize("bad", [[], [["a"], ["b"]], np.array([["a"]]), "text", pd.Series([[1], [2]])])
def test_bad_categories_are_refused(bad):
    for pair in ((bad, ["a"]), (["a"], bad)):
        with pytest.raises(d.DriftInputError) as e: d.category_counts(*pair)
        assert str(e.value).startswith(("reference: ", "current: "))

def test_psi_of_an_unseen_category_is_finite():
    _, r, c = d.category_counts(["a"]*50 + ["b"]*50, ["a"]*50 + ["c"]*50)
    p, q = d.shares(r, c)
    assert d.psi_of_shares(p, q) == pytest.approx(stats.entropy(p, q) + stats.entropy(q, p), rel=1e-12) and d.psi_of_shares(p, q) > 1

# Distances

@quick
@given(st.one_of(few, single, small, flags, with_missing), st.one_of(few, single, small, flags, with_missing))
def test_wasserstein_is_scipys(x, y):
    a, b = (v.astype(float)[~np.isnan(v)] for v in (x, y))
    if not (len(a) and len(b)):
        pytest.raises(d.DriftInputError, wasserstein, x, y)
        return
    assert wasserstein(x, y) == pytest.approx(stats.wasserstein_distance(a, b), rel=1e-12, abs=1e-12) == wasserstein(y, x)

@quick
@given(infinite, infinite)
def test_wasserstein_of_infinite_values(x, y):
    same = all((x == v).mean() == pytest.approx((y == v).mean(), abs=1e-12) for v in (-np.inf, np.inf))
    W = wasserstein(x, y)
    assert not math.isnan(W) and math.isfinite(W) == same
    if same: assert pytest.approx(W, abs=1e-12) == wasserstein(np.clip(x, -1, 1), np.clip(y, -1, 1)) # what is infinite doesn't move

@quick
@given(rows)
def test_jensen_shannon_is_scipys(both):
    p, q = both
    if not (sum(p) and sum(q)): return
    ours, theirs = d.jensen_shannon(p, q), distance.jensenshannon(p, q, base=2)
    assert ours**2 == pytest.approx(theirs**2, rel=0, abs=1e-14) and 0 <= ours <= 1 # near 0 the root shows rounding
    if ours > .001: assert ours == pytest.approx(theirs, rel=0, abs=1e-12)

@quick
@given(st.integers(1, 5000), st.integers(1, 5000), st.data())
def test_missing_change_is_fishers_test(n, m, data):
    a, b = data.draw(st.one_of(st.integers(0, n), st.integers(0, min(n, 5)))), data.draw(st.one_of(st.integers(0, m), st.integers(0, min(m, 5))))
    change, p = d.missing_change(a, n, b, m)
    assert change == b/m - a/n and p == pytest.approx(stats.fisher_exact([[a, n - a], [b, m - b]]).pvalue, rel=1e-8, abs=1e-12)
    assert p == pytest.approx(d.missing_change(b, m, a, n)[1], rel=1e-9)

@pytest.mark.parametrize("a, n, b, m", [(0, 200_000, 7, 200_000), (1000, 200_000, 1100, 150_000), (100_000, 200_000, 100_300, 200_000), (10**6, 10**6, 0, 10**6)])
def test_missing_change_of_large_tables(a, n, b, m):
    assert d.missing_change(a, n, b, m)[1] == pytest.approx(stats.fisher_exact([[a, n - a], [b, m - b]]).pvalue, rel=1e-7, abs=1e-12)

@pytest.mark.parametrize("bad", [(1, 0, 0, 1), (-1, 3, 0, 3), (4, 3, 0, 3), (0, 0, 0, 0)])
def test_bad_missing_counts_are_refused(bad): pytest.raises(d.DriftInputError, d.missing_change, *bad)

@pytest.mark.parametrize("bad", [[], ["a"], [[1, 2], [3, 4]], np.array([1+2j]), np.array(["2026-01-01"], dtype="M8[D]")])
def test_a_bad_sample_is_refused(bad):
    for f in (d.sample, lambda v: wasserstein([1], v)): pytest.raises(d.DriftInputError, f, bad)

def test_importing_needs_numpy_alone():
    code = "import sys, churn_nb.monitoring.statistical_tests as d; d.ks_pvalue(2, 2, 1), d.psi_of_shares(*d.shares(*d.np.array([[1, 2], [3, 4]]))); print([m for m in ('pandas', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"

@quick
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_adjusted_pvalues_are_scipys(p):
    assert d.benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p), abs=1e-15)
