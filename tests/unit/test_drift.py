"Drift: the statistics against SciPy on anything hypothesis thinks of, the report on tables that are wrong."
import itertools, math, subprocess, sys, warnings
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from churn_nb import drift as d
from churn_nb.monitoring import statistical_tests as distances
from churn_nb.core.settings import load_settings

RULES = load_settings(environ={}).drift.model_copy(update={"bins": 10, "alpha": .05, "psi_warn": .1, "psi_retrain": .25, "permutations": 199})
P_ERROR = 2e-5 # of the asymptotic p-value above 10,000 rows a side (20_statistical_tests); SciPy rounds the effective size besides
quick = settings(max_examples=150, deadline=None, derandomize=True)
sizes = st.integers(1, 60)

def samples(dtype, elements): return sizes.flatmap(lambda n: hnp.arrays(dtype, n, elements=elements))

few = samples(np.int64, st.integers(0, 4))                          # ties everywhere, constants now and then
whole = samples(np.int64, st.integers(-2**62, 2**62))               # more digits than a float64 holds
wide = samples(np.float64, st.floats(-1e300, 1e300))
single = samples(np.float32, st.floats(-100, 100, width=32))
infinite = samples(np.float64, st.sampled_from([-np.inf, -1., 0., 1., np.inf]))
flags = samples(np.bool_, st.booleans())
anything = st.one_of(few, whole, wide, single, infinite)
with_missing = samples(np.float64, st.sampled_from([np.nan, 0., 1., 2., 3.5]))

def scipy_ks(x, y):
    "SciPy's default answer; None where it warns that its exact sum failed and takes another formula."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        r = stats.ks_2samp(x, y)
    return None if said else (float(r.statistic), float(r.pvalue))

# K-S

@quick
@given(anything, anything)
def test_ks_equals_scipy(x, y):
    theirs = scipy_ks(x, y)
    if theirs is None: assert d.ks(x, y)[1] == pytest.approx(1, abs=1e-12) # its sum went a hair above 1
    else: assert d.ks(x, y) == pytest.approx(theirs, rel=0, abs=1e-12)

@pytest.mark.parametrize("n, m, shift", [(10_000, 10_000, 0), (10_000, 9_999, .03), (10_000, 1, 2), (10_001, 10_001, .02), (10_001, 1, 2), (30_000, 400, .1), (50_000, 70_000, 0)])
@pytest.mark.parametrize("dtype", [float, int, np.float32])
def test_ks_equals_scipy_on_both_sides_of_10_000(n, m, shift, dtype):
    rng = np.random.default_rng(n + m)
    x, y = (rng.normal(5*mean, 5, size).astype(dtype) for mean, size in ((0, n), (shift, m)))
    (D, p), (D_too, p_too) = d.ks(x, y), scipy_ks(x, y)
    assert D == pytest.approx(D_too, rel=0, abs=1e-12)
    assert p == pytest.approx(p_too, rel=0, abs=1e-12 if max(n, m) <= 10_000 else P_ERROR)

def test_tiny_pvalues_are_right_relatively():
    x, y = np.arange(400.), np.arange(350.) + 200
    assert d.ks(x, y)[1] == pytest.approx(scipy_ks(x, y)[1], rel=1e-9) and 0 < d.ks(x, y)[1] < 1e-20

@pytest.mark.parametrize("n, m", [(1, 1), (1, 6), (2, 5), (4, 4), (3, 7), (5, 6)])
def test_exact_pvalue_is_the_share_of_all_orders(n, m):
    gaps = [d._widest_gap(np.array(x), np.setdiff1d(range(n + m), x)) for x in itertools.combinations(range(n + m), n)]
    for H in sorted(set(gaps)): assert distances.ks_pvalue(H, n, m) == pytest.approx(np.mean(np.array(gaps) >= H), abs=1e-14)

@quick
@given(anything, anything)
def test_ks_is_symmetric_and_ignores_order(x, y):
    assert d.ks(x, y) == pytest.approx(d.ks(y[::-1], x[::-1]), rel=0, abs=1e-12)

@quick
@given(with_missing, with_missing)
def test_ks_leaves_missing_values_out(x, y):
    a, b = x[~np.isnan(x)], y[~np.isnan(y)]
    if len(a) and len(b): assert d.ks(x, y) == d.ks(a, b)
    else: pytest.raises(d.DriftInputError, d.ks, x, y)

def test_ks_of_integers_beyond_float64():
    big = 2**62
    assert d.ks([big, big + 1], [big + 2, big + 3])[0] == 1

# PSI

def psi_again(x, y, bins):
    "Another way to the same number: value by value into named bins, SciPy's relative entropy both ways."
    s = sorted(v for v in x.tolist() if not math.isnan(v))
    q = [s[max(math.ceil(k*len(s)/bins) - 1, 0)] for k in range(bins + 1)] if s else []
    tied, edges = {a for a, b in itertools.pairwise(q) if a == b}, sorted(set(q[1:-1]))
    def place(v):
        if math.isnan(v): return "missing"
        return sum(v > e for e in edges), sum(v >= t for t in tied)
    counts = [[place(v) for v in side.tolist()] for side in (x, y)]
    both = [[max(c.count(b), .5) for b in sorted({*counts[0], *counts[1]}, key=str)] for c in counts]
    return stats.entropy(*both) + stats.entropy(*both[::-1])

@quick
@given(st.one_of(anything, with_missing, flags), st.one_of(anything, with_missing, flags), st.sampled_from([2, 4, 5, 10, 32]))
def test_psi_equals_relative_entropy_both_ways(x, y, bins):
    if {x.dtype.kind, y.dtype.kind} == {"i", "f"}: x, y = x.astype(float), y.astype(float) # Python compares int and float exactly, numpy as floats
    assert d.psi(x, y, bins) == pytest.approx(psi_again(x, y, bins), rel=1e-12, abs=1e-12)

@quick
@given(st.lists(st.integers(0, 50), min_size=2, max_size=12), st.data())
def test_psi_of_shares_is_symmetric_and_not_negative(a, data):
    a = np.array(a)
    b = np.array(data.draw(st.lists(st.integers(0, 50), min_size=len(a), max_size=len(a))))
    if not (a.sum() and b.sum()): return
    p, q = d.shares(a, b)
    assert p.sum() == pytest.approx(1) and q.sum() == pytest.approx(1) and (p > 0).all() and (q > 0).all()
    assert d.psi_of_shares(p, q) == pytest.approx(d.psi_of_shares(q, p), rel=1e-12, abs=1e-15)
    assert d.psi_of_shares(p, q) >= 0 == d.psi_of_shares(p, p)

@quick
@given(st.one_of(anything, with_missing))
def test_psi_of_a_sample_with_itself_is_0(x): assert d.psi(x, x[::-1], 10) == 0

@quick
@given(st.one_of(anything, with_missing), st.one_of(anything, with_missing), st.integers(2, 20))
def test_every_row_is_counted_once(x, y, bins):
    a, b = d.bin_counts(x, y, bins)
    assert (a.sum(), b.sum(), len(a)) == (len(x), len(y), len(b)) and min(a.min(), b.min()) >= 0

def test_bins_hold_a_tenth_each():
    assert d.bin_counts(np.random.default_rng(0).permutation(1000), [5], 10)[0].tolist() == [100]*10 + [0]

@pytest.mark.parametrize("value", [6, 8])
@pytest.mark.parametrize("bins", [2, 10])
def test_a_constant_that_moves_is_seen(value, bins):
    assert d.band(d.psi([7]*50, [value]*50, bins)) == "retrain" and d.psi([7]*50, [7]*20, bins) == 0

@pytest.mark.parametrize("bad", [[], ["a"], [[1, 2], [3, 4]], np.array([1+2j]), np.array(["2026-01-01"], dtype="M8[D]")])
def test_a_bad_sample_is_refused(bad):
    for f in (lambda: d.ks([1], bad), lambda: d.ks(bad, [1]), lambda: d.psi([1], bad, 10), lambda: d.psi(bad, [1], 10)): pytest.raises(d.DriftInputError, f)

def test_importing_the_statistics_needs_numpy_alone():
    code = "import sys, churn_nb.drift as d; d.ks([1, 2], [3]); d.psi([1, 2], [3], 2); print([m for m in ('pandas', 'scipy', 'evidently', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
