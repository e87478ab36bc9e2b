"The exact whole numbers behind K-S and PSI: `tally` against two plain sorts, to the last digit."
import itertools, math, subprocess, sys
import numpy as np, pytest
from hypothesis import given, strategies as st
from scipy import stats
from churn_nb.monitoring import empirical_cdf as d
from churn_nb.monitoring import statistical_tests as distances
from churn_nb.core.errors import DriftInputError
from importers import bench
from samples import anything, few_examples, quick, with_missing

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
    X, Y, _ = d.empirical_cdfs(x, y, np.arange(0, 100_000, 10_000))
    assert len(X.values) < 3000 and len(Y.values) < 3000
    heavy = d.empirical_cdfs(np.exp(5*x), np.exp(5*y), np.arange(10))
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
    assert t.psi == distances.psi_of_shares(*distances.shares(t.counts_ref, t.counts_cur)) > 0

@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_bench_times_all_columns_in_their_order(threads):
    "What bench/drift.py times as ours: D, p and PSI of each column, however many threads there are."
    rng = np.random.default_rng(5)
    ref, cur = ({k: f(rng, 0, 6000) for k, f in draws.items()} for _ in range(2))
    got = bench("drift").ours(ref, cur, threads)()
    for k, row in zip(draws, got, strict=True):
        t = d.tally(ref[k], cur[k], 10)
        assert (*t[:5], t.counts_ref.tolist(), t.counts_cur.tolist()) == by_sorting(ref[k], cur[k], 10)
        assert row == [t.statistic, t.pvalue, t.psi]
    with pytest.raises(DriftInputError): bench("drift").ours({"a": ["x"]}, {"a": [1]}, threads)()

@pytest.mark.parametrize("bad", [[], ["a"], [[1, 2], [3, 4]], np.array([1+2j]), np.array(["2026-01-01"], dtype="M8[D]")])
def test_a_bad_sample_is_refused(bad):
    for f in (lambda v: d.tally([1], v, 10), lambda v: d.tally(v, [1], 10)): pytest.raises(DriftInputError, f, bad)

def test_importing_needs_numpy_alone():
    code = "import sys, churn_nb.monitoring.empirical_cdf as d; t = d.tally([1, 2], [3], 2); t.pvalue, t.psi; print([m for m in ('pandas', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
