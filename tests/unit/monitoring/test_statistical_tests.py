"Distances: each against SciPy on anything hypothesis thinks of; the fast way against two plain sorts, to the last digit."
import itertools, math, subprocess, sys, warnings
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special, stats
from scipy.spatial import distance
from churn_nb.monitoring import statistical_tests as d

quick = settings(max_examples=150, deadline=None, derandomize=True)
few_examples = settings(max_examples=40, deadline=None, derandomize=True)
sizes = st.integers(1, 60)

def samples(dtype, elements): return sizes.flatmap(lambda n: hnp.arrays(dtype, n, elements=elements))

few = samples(np.int64, st.integers(0, 4))                          # ties everywhere, constants now and then
whole = samples(np.int64, st.integers(-2**62, 2**62))               # more digits than a float64 holds
unsigned = samples(np.uint64, st.integers(0, 2**64 - 1))
small = samples(np.int8, st.integers(-128, 127))
wide = samples(np.float64, st.floats(-1e300, 1e300))
tiny = samples(np.float64, st.floats(-1e-310, 1e-310))
huge = samples(np.float64, st.floats(allow_nan=False))
single = samples(np.float32, st.floats(-100, 100, width=32))
infinite = samples(np.float64, st.sampled_from([-np.inf, -1., 0., 1., np.inf]))
flags = samples(np.bool_, st.booleans())
with_missing = samples(np.float64, st.sampled_from([np.nan, 0., 1., 2., 3.5]))
anything = st.one_of(few, whole, unsigned, small, wide, tiny, huge, single, infinite, flags)

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
    t = d.tally(x, y, 10)
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
        pytest.raises(d.DriftInputError, d.wasserstein, x, y)
        return
    assert d.wasserstein(x, y) == pytest.approx(stats.wasserstein_distance(a, b), rel=1e-12, abs=1e-12) == d.wasserstein(y, x)

@quick
@given(infinite, infinite)
def test_wasserstein_of_infinite_values(x, y):
    same = all((x == v).mean() == pytest.approx((y == v).mean(), abs=1e-12) for v in (-np.inf, np.inf))
    W = d.wasserstein(x, y)
    assert not math.isnan(W) and math.isfinite(W) == same
    if same: assert pytest.approx(W, abs=1e-12) == d.wasserstein(np.clip(x, -1, 1), np.clip(y, -1, 1)) # what is infinite doesn't move

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

# The fast way

def by_sorting(x, y, bins):
    "H and the bin counts from two sorted samples; shares nothing with the module."
    (x, y), missing = ([v[~np.isnan(v)] for v in (x, y)], [int(np.isnan(v).sum()) for v in (x, y)])
    x, y = np.sort(x), np.sort(y)
    upto = lambda v, z, side="right": np.searchsorted(v, z, side=side)
    z = np.concatenate([x, y])
    H = int(np.abs(upto(x, z)*len(y) - upto(y, z)*len(x)).max()) if len(x) and len(y) else 0
    at = [max(math.ceil(k*len(x)/bins) - 1, 0) for k in range(bins + 1)]
    q = x[at] if len(x) else x
    tied, cut = np.unique(q[1:][q[1:] == q[:-1]]), np.unique(q[1:-1])
    def count(v, gone): return np.diff([0, *np.sort([*upto(v, tied, "left"), *upto(v, cut)]), len(v), len(v) + gone]).tolist()
    return (H, len(x), len(y), *missing, count(x, missing[0]), count(y, missing[1]))

def same(x, y, bins=10):
    t = d.tally(x, y, bins)
    assert (*t[:5], t.counts_ref.tolist(), t.counts_cur.tolist()) == by_sorting(x, y, bins)
    assert all(type(v) is int for v in t[:5])

@quick
@given(st.one_of(anything, with_missing), st.one_of(anything, with_missing), st.sampled_from([2, 3, 10, 32]))
def test_small_samples_are_tallied_as_by_sorting(x, y, bins): same(x, y, bins)

@quick
@given(st.one_of(anything, with_missing), st.one_of(anything, with_missing), st.integers(0, 9), st.sampled_from([2, 10, 20]))
def test_large_samples_are_tallied_as_by_sorting(x, y, seed, bins):
    "Anything, drawn again and again, among thousands of values: buckets, their borders and their ends are all in use."
    rng = np.random.default_rng(seed)
    def large(v, n):
        drawn = rng.choice(v, n)
        if v.dtype.kind != "f" or seed % 2: return drawn
        with np.errstate(all="ignore"): return np.where(rng.random(n) < .9, rng.normal(seed/100, 1, n)*(rng.choice([1e-320, 1e-3, 1, 1e200])), drawn).astype(v.dtype)
    same(large(x, 5000), large(y, 5000 + 97*seed), bins)

draws = {"normal": lambda r, s, n: r.normal(s, 1, n), "cauchy": lambda r, s, n: r.standard_cauchy(n) + s, "pareto": lambda r, s, n: r.pareto(.3, n)*(1 + s),
         "poisson": lambda r, s, n: r.poisson(3 + s, n), "zeros": lambda r, s, n: np.maximum(r.normal(s, 1, n), 0), "rounded": lambda r, s, n: r.normal(s, 1, n).round(1),
         "float32": lambda r, s, n: r.normal(s, 1, n).astype(np.float32), "float16": lambda r, s, n: r.normal(s, 1, n).astype(np.float16), "two lumps": lambda r, s, n: r.normal(s, 1, n) + 1e9*(r.random(n) < .5),
         "big integers": lambda r, s, n: r.integers(2**60, 2**62, n), "close big integers": lambda r, s, n: 2**62 + r.integers(0, 9000, n), "uint64": lambda r, s, n: r.integers(0, 2**64 - 1, n, np.uint64),
         "uint64, narrow": lambda r, s, n: r.integers(2**64 - 50, 2**64 - 1, n, np.uint64), "int8": lambda r, s, n: r.integers(-128, 127, n, np.int8), "bool": lambda r, s, n: r.random(n) < .4 + s,
         "missing": lambda r, s, n: np.where(r.random(n) < .1, np.nan, r.normal(s, 1, n)), "infinite": lambda r, s, n: r.choice([-np.inf, np.inf, 0, 1, 2], n), "some infinite": lambda r, s, n: np.where(r.random(n) < .02, -np.inf, r.normal(s, 1, n)),
         "whole range": lambda r, s, n: r.uniform(-1, 1, n)*1.7e308, "subnormal": lambda r, s, n: r.integers(-10**6, 10**6, n)*5e-324, "constant": lambda r, s, n: np.full(n, 7. + s), "tiny steps": lambda r, s, n: 1 + r.integers(0, 10**4, n)*2.**-52}

@pytest.mark.parametrize("shift", [0, .02, 5])
@pytest.mark.parametrize("kind", draws)
def test_columns_are_tallied_as_by_sorting(kind, shift):
    rng = np.random.default_rng(len(kind))
    x, y = draws[kind](rng, 0, 20_000), draws[kind](rng, shift, 17_001)
    same(x, y)
    same(y, x, 7)
    same(x, x[::-1])

@pytest.mark.parametrize("a, b", [*itertools.combinations(["normal", "poisson", "float32", "big integers", "uint64", "int8", "bool", "some infinite", "missing"], 2)])
def test_columns_of_two_kinds_are_tallied_as_by_sorting(a, b):
    rng = np.random.default_rng(1)
    same(draws[a](rng, 0, 6000), draws[b](rng, 0, 9000))

@few_examples
@given(st.lists(st.floats(allow_nan=False), min_size=2, max_size=50), st.floats(allow_nan=False, allow_infinity=False), st.floats(1e-308, 1e304))
def test_the_map_never_puts_a_larger_value_lower(values, c, w):
    "Its steps one by one at any c and w, and at neighbours, where rounding could turn the order."
    near = np.array([c, *values])
    with np.errstate(all="ignore"):
        v = np.sort(np.concatenate([near, np.nextafter(near, np.inf), np.nextafter(near, -np.inf), c + w*np.arange(-20, 20)/3]))
        off, half = v[~np.isnan(v)] - c, 16384
        maps = np.copysign(half - half*w/(np.abs(off) + w), off), np.clip(off*(half/max(w, 1e-303)), -half, half)
    for b in maps: assert (np.diff((b + half).astype(np.int32)) >= 0).all() and b.min() >= -half and b.max() <= half

def test_most_values_are_never_sorted():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, 100_000), rng.normal(.02, 1, 100_000)
    X, Y, _ = d.staircases(x, y, np.arange(0, 100_000, 10_000))
    assert len(X.values) < 3000 and len(Y.values) < 3000
    heavy = d.staircases(np.exp(5*x), np.exp(5*y), np.arange(10))
    assert heavy[0].place is d.one_bucket or len(heavy[0].values) < 50_000

def test_all_missing_sides():
    gone, some = np.full(5, np.nan), np.array([1., 2])
    for x, y in ((gone, some), (some, gone), (gone, gone)):
        same(x, y)
        t = d.tally(x, y, 10)
        assert (t.statistic, t.pvalue) == (None, None)
    assert d.tally(gone, gone, 10).psi == 0

def test_tally_has_the_numbers_of_scipy():
    rng = np.random.default_rng(4)
    x, y = rng.normal(0, 1, 30_000), rng.normal(.02, 1, 25_000)
    t, theirs = d.tally(x, y, 10), stats.ks_2samp(x, y)
    assert t.statistic == pytest.approx(theirs.statistic, abs=1e-15) and t.pvalue == pytest.approx(theirs.pvalue, abs=1e-5)
    assert t.psi == d.psi_of_shares(*d.shares(t.counts_ref, t.counts_cur)) > 0

@pytest.mark.parametrize("threads", [1, 2, 4])
def test_all_columns_in_their_order(threads):
    rng = np.random.default_rng(5)
    ref, cur = ({k: f(rng, 0, 6000) for k, f in draws.items()} for _ in range(2))
    names = [*draws][::-1]
    for k, t in zip(names, d.tally_all(ref, cur, names, 10, threads), strict=True):
        assert (*t[:5], t.counts_ref.tolist(), t.counts_cur.tolist()) == by_sorting(ref[k], cur[k], 10)
    with pytest.raises(d.DriftInputError): d.tally_all({"a": ["x"]}, {"a": [1]}, ["a"], 10, threads)

@pytest.mark.parametrize("bad", [[], ["a"], [[1, 2], [3, 4]], np.array([1+2j]), np.array(["2026-01-01"], dtype="M8[D]")])
def test_a_bad_sample_is_refused(bad):
    for f in (d.sample, lambda v: d.tally([1], v, 10), lambda v: d.tally(v, [1], 10), lambda v: d.wasserstein([1], v)): pytest.raises(d.DriftInputError, f, bad)

def test_importing_needs_numpy_alone():
    code = "import sys, churn_nb.monitoring.statistical_tests as d; t = d.tally([1, 2], [3], 2); t.pvalue, t.psi; print([m for m in ('pandas', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
