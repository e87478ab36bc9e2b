"Customers in two windows: the exchange against all arrangements and SciPy, its level and power."
import itertools, subprocess, sys
import numpy as np, pandas as pd, pytest
from scipy import stats
from churn_nb.monitoring import permutation_tests as c
from lessons import of_lesson

lesson = of_lesson("monitoring/30_permutation_tests", "two_windows", "permutation_pvalue")
two_windows, permutation_pvalue = lesson.two_windows, lesson.permutation_pvalue

def slack(rate, worlds): return rate + 3.3*np.sqrt(rate*(1 - rate)/worlds) # a chance of 1 in 2,000 to be above

def share_below(pvalue, worlds, seed=0, **world):
    rng = np.random.default_rng(seed)
    return np.mean([pvalue(*two_windows(rng, **world)) <= .05 for _ in range(worlds)])

def by_customer(x, y, i, j): return permutation_pvalue(x, y, (i, j), rounds=99)[1]
@pytest.fixture
def all_rounds(monkeypatch): monkeypatch.setattr(c, "_ENOUGH", 10**9)

def naive(x, y, i, j): return stats.ks_2samp(x, y, method="asymp").pvalue

# The distance

def weighted_D(x, y, i, j):
    "D from its definition: a customer weighs 1 in a window, his rows share it."
    def F(v, ids, z):
        return np.mean([np.mean(v[ids == k] <= z) for k in np.unique(ids)])
    return max(abs(F(x, i, z) - F(y, j, z)) for z in np.r_[x, y])

@pytest.mark.parametrize("seed", range(20))
def test_D_is_the_definition(seed):
    rng = np.random.default_rng(seed)
    n, m = rng.integers(1, 30, 2)
    x, y = rng.integers(0, 6, n).astype(float), rng.integers(0, 6, m).astype(float)
    i, j = rng.integers(0, 8, n), rng.integers(4, 12, m)
    clusters = c.Clusters.of(n, m, (i, j))
    column = c._Weighted(c.Column(np.r_[x, y]), clusters.customer, clusters.current)
    assert column.at(~clusters.current) == pytest.approx(weighted_D(x, y, i, j), abs=1e-12)
    kept = clusters.equal_rows(np.random.default_rng([0, 2]))
    drawn = [v[k] for v, k in zip((x, y, i, j), (kept[:n], kept[n:])*2)]
    assert permutation_pvalue(x, y, (i, j), rounds=1)[0] == pytest.approx(weighted_D(*drawn), abs=1e-12)

@pytest.mark.parametrize("seed", range(10))
def test_chi_square_of_categories_is_scipys(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 4, 50), rng.integers(0, 5, 30)
    statistic, _ = c.exchange_test([c.Column(np.r_[x, y].astype(float), c.chi_square_distance)], c.Clusters.of(50, 30, None), 1)
    table = [np.bincount(v, minlength=5) for v in (x, y)]
    assert statistic == pytest.approx(stats.chi2_contingency(np.array(table)[:, np.sum(table, 0) > 0], correction=False).statistic)

@pytest.mark.parametrize("seed", range(10))
def test_D_equals_ks_with_one_row_per_customer(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.poisson(2, 40), rng.poisson(2.5, 30)
    want = stats.ks_2samp(x, y, method="asymp").statistic
    for ids in ((None, None), (np.arange(40), np.arange(30)), (np.arange(40), np.arange(20, 50))):
        assert permutation_pvalue(x, y, ids, rounds=1)[0] == pytest.approx(want, abs=1e-12)

# The p-value

def all_arrangements(x, y, i, j):
    "Exact p by listing every arrangement, from the words of the rule."
    ids = np.unique(np.r_[i, j])
    both = [k for k in ids if k in i and k in j]
    alone, start = [k for k in ids if k not in both], [k for k in ids if k in i and k not in j]
    v, who, side = np.r_[x, y], np.r_[i, j], np.r_[np.zeros(len(x), bool), np.ones(len(y), bool)]
    def D(swapped):
        s = side ^ np.isin(who, list(swapped))
        return weighted_D(v[~s], v[s], who[~s], who[s]) if 0 < s.sum() < len(s) else 1.
    found = [D({k for k, b in zip(both, coin) if b} | {k for k in alone if (k in start) != (k in chosen)})
             for coin in itertools.product([0, 1], repeat=len(both)) for chosen in itertools.combinations(alone, len(start))]
    observed = D(())
    return observed, np.mean([d >= observed - 1e-9 for d in found])

CASES = {"three paired": ([1, 2, 3], [4, 5, 6], [0, 1, 2], [0, 1, 2]), "one row each": ([1, 2, 5, 7], [3, 8, 9], [0, 1, 2, 3], [4, 5, 6]),
         "mixed": ([1, 2, 2.5, 5, 6], [3, 4, 8, 9], [0, 0, 1, 2, 3], [2, 3, 4, 5]),
         "ties": ([0, 0, 1, 1, 0], [1, 1, 1, 0], [0, 1, 2, 3, 3], [3, 4, 5, 6]),
         "unequal": ([1, 2, 3, 1, 4, 1], [5, 3, 6, 2], [0, 0, 0, 1, 1, 2], [0, 1, 2, 3])}

@pytest.mark.parametrize("case", CASES)
def test_p_against_all_arrangements(case, all_rounds):
    x, y, i, j = map(np.asarray, CASES[case])
    kept = c.Clusters.of(len(x), len(y), (i, j)).equal_rows(np.random.default_rng([0, 2]))
    x, y, i, j = x[kept[:len(x)]], y[kept[len(x):]], i[kept[:len(x)]], j[kept[len(x):]]
    D, p = all_arrangements(x, y, i, j)
    got = permutation_pvalue(x, y, (i, j), rounds=5000)
    assert got == (pytest.approx(D, abs=1e-12), pytest.approx(p, abs=4*np.sqrt(p*(1 - p)/5000) + 1e-3))

def test_hand_case(): # worked in the lesson: 2 of 8
    assert all_arrangements(*map(np.asarray, CASES["three paired"])) == (1, .25)

@pytest.mark.parametrize("kind", ["independent", "samples"])
@pytest.mark.parametrize("shift", [0, .6])
def test_p_against_scipy(kind, shift, all_rounds):
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=25), rng.normal(shift, size=25)
    want = stats.permutation_test((x, y), lambda x, y: stats.ks_2samp(x, y, method="asymp").statistic, permutation_type=kind,
                                  alternative="greater", n_resamples=1000, rng=np.random.default_rng(1)).pvalue
    ids = np.arange(25)
    got = permutation_pvalue(x, y, (ids, ids if kind == "samples" else ids + 25), rounds=3000)[1]
    assert got == pytest.approx(want, abs=4*np.sqrt(want*(1 - want)*(1/1000 + 1/3000)) + 2e-3)

def test_many_columns_are_each_alone_and_share_the_exchanges():
    rng = np.random.default_rng(0)
    i, j = rng.integers(0, 40, 90), rng.integers(20, 60, 70)
    X, Y = rng.normal(size=(90, 3)), rng.normal(.3, size=(70, 3))
    X[rng.random(X.shape) < .2] = np.nan
    D, p = c.permutation_pvalues(X, Y, (i, j), rounds=99)
    alone = np.array([permutation_pvalue(a, b, (i, j), rounds=99) for a, b in zip(X.T, Y.T)])
    assert np.array_equal(alone, np.c_[D, p])
    again = c.permutation_pvalues(pd.DataFrame(X), pd.DataFrame(Y), ([f"c{k}" for k in i], [f"c{k}" for k in j]), rounds=99)
    assert again[0] == pytest.approx(D) and again[1] == pytest.approx(p, abs=.15) # ids sort otherwise: other coins
    assert np.array_equal(c.permutation_pvalues(X, Y, (i, j), rounds=99, seed=0)[1], p)

def test_missing_values_are_ignored_and_an_empty_side_gives_nan():
    x, y = np.array([1., np.nan, 3, 2]), np.array([np.nan, 2., 5])
    assert permutation_pvalue(x, y, rounds=1)[0] == permutation_pvalue([1, 3, 2], [2, 5], rounds=1)[0]
    D, p = c.permutation_pvalues(np.c_[x, [np.nan]*4], np.c_[y, y], rounds=19)
    assert np.isnan([D[1], p[1]]).all() and np.isfinite([D[0], p[0]]).all()

def test_extreme_values():
    x, y = np.array([-np.inf, 1e300, 0, 1]), np.array([np.inf, np.inf, 2, 1e-300])
    assert permutation_pvalue(x, y, rounds=9)[0] == pytest.approx(.5)
    assert permutation_pvalue(np.ones(5), np.ones(9), rounds=99) == (0, 1)

def test_swaps_keep_who_is_alone_in_number():
    home = np.array([0]*5 + [1]*3 + [2]*4)
    s = np.array([*c.swaps(home, 4000, np.random.default_rng(0))])
    now = np.where(home < 2, home ^ s, 2)
    assert ((now == 1).sum(1) == 3).all() and ((now == 0).sum(1) == 5).all()
    assert np.abs((now == 1).mean(0)[:8] - 3/8).max() < .04 and np.abs(s.mean(0)[8:] - .5).max() < .04

def test_a_cap_draws_whole_customers_reproducibly(monkeypatch):
    rng = np.random.default_rng(0)
    i, j = np.repeat(np.arange(300), 4), np.arange(300)
    x, y = rng.normal(size=(1200, 2)), rng.normal(.5, size=(300, 2))
    kept = c.Clusters.of(1200, 300, (i, j)).drawn(500, np.random.default_rng(0))
    assert kept.sum() == 500 and set(np.bincount(np.r_[i, j][kept])) <= {0, 5}
    whole = c.permutation_pvalues(x, y, (i, j), rounds=19)[0]
    monkeypatch.setattr(c, "MAX_PERMUTED_ROWS", 500)
    got = [c.permutation_pvalues(x, y, (i, j), rounds=19) for _ in range(2)]
    assert np.array_equal(got[0], got[1]) and not np.array_equal(got[0][0], whole)

def test_a_small_window_is_kept_whole_beside_a_large_reference():
    clusters = c.Clusters.of(30_000, 60, (np.arange(30_000), 29_990 + np.arange(60)))
    kept = clusters.drawn(3000, np.random.default_rng(0))
    assert kept[30_000:].all() and kept.sum() <= 3000

@pytest.mark.parametrize("seed", range(20))
def test_every_customer_has_equally_many_rows_in_either_window(seed):
    rng = np.random.default_rng(seed)
    i, j = (np.repeat(rng.integers(0, 30, 25), rng.integers(2, 9)) for _ in range(2))
    clusters = c.Clusters.of(len(i), len(j), (i, j))
    kept = clusters.equal_rows(rng)
    rows = [np.unique(ids[k], return_counts=True)[1] for ids, k in ((i, kept[:len(i)]), (j, kept[len(i):]))]
    most = max(r.max() for r in rows)
    assert [len(np.unique(ids)) for ids in (i, j)] == [len(r) for r in rows] # no customer is lost
    assert all(np.mean(r == most) >= .95 for r in rows)

def test_few_exchanges_decide_where_nothing_has_changed():
    "Besag and Clifford's p-value is uniform under no change, and calls the statistic seldom."
    rng, found, calls = np.random.default_rng(2), [], 0
    def counted(inside, total):
        nonlocal calls
        calls += 1
        return c.ks_distance(inside, total)
    for _ in range(200):
        found.append(c.exchange_test([c.Column(rng.normal(size=90), counted)], c.Clusters.of(60, 30, None), 999, int(rng.integers(1e9)))[1][0])
    assert stats.kstest(found, "uniform").pvalue > .001 and calls < 200*300

# Level and power

SHAPES = {"equal": ((60, 60), (1, 1)), "five and five": ((60, 60), (5, 5)), "seven and one": ((300, 60), (7, 1)),
          "seven and one, 200": ((300, 200), (7, 1)), "seven and one, 2,000": ((1000, 2000), (7, 1)), "one and seven": ((300, 60), (1, 7))}
WHOSE = {"others": 0., "half of the reference": .5, "of the reference": 1.}
def counts(v): return np.where(v > 2.05, np.round(10*v), 0.) # 2 % of the rows are not 0
VALUES = {"normal": lambda v: v, "sparse counts": counts}

def shared_windows(rng, shape, shared, rho):
    "As `two_windows`, with a share of the current customers in the reference as well."
    (n, m), rows = SHAPES[shape]
    known = min(round(shared*m), n)
    current = np.r_[rng.permutation(n)[:known], n + np.arange(m - known)]
    ids = np.repeat(np.arange(n), rows[0]), np.repeat(current, rows[1])
    habit = rng.normal(size=n + m)
    return *(np.sqrt(rho)*habit[i] + np.sqrt(1 - rho)*rng.normal(size=len(i)) for i in ids), *ids

@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("whose", WHOSE)
@pytest.mark.parametrize("shape", SHAPES)
def test_level_in_the_shapes_that_the_product_meets(shape, whose, values):
    rng, worlds, alarms = np.random.default_rng(5), 40 if "2,000" in shape else 120, 0
    for k in range(worlds):
        x, y, i, j = shared_windows(rng, shape, WHOSE[whose], rho=(.1, .3, .8)[k % 3])
        alarms += permutation_pvalue(VALUES[values](x), VALUES[values](y), (i, j), 59, k)[1] <= .05
    assert alarms/worlds <= slack(.05, worlds)

def test_more_buyers_are_seen_in_a_window_of_100():
    "2 % of customers buy, then 10 %: the Kolmogorov-Smirnov distribution without ties sees none of it."
    rng, worlds, seen = np.random.default_rng(6), 60, np.zeros(2)
    for _ in range(worlds):
        x, y = (rng.random(2000) < .02)*rng.integers(1, 9, 2000), (rng.random(100) < .1)*rng.integers(1, 9, 100)
        seen += [permutation_pvalue(x, y, rounds=199)[1] <= .01, stats.ks_2samp(x, y, method="asymp").pvalue <= .01]
    assert seen[0] >= .8*worlds and seen[1] <= .1*worlds

ALIKE = {"others, one row": {}, "others, five rows": {"rows": (5, 5)}, "the same, one row": {"same": True},
         "the same, five rows": {"same": True, "rows": (5, 5)}, "the same, seven and one": {"same": True, "rows": (7, 1)},
         "independent rows, seven and one": {"same": True, "rows": (7, 1), "rho": 0}}

@pytest.mark.parametrize("world", ALIKE)
def test_level(world):
    assert share_below(by_customer, 150, seed=11, customers=(60, 60), **ALIKE[world]) <= slack(.05, 150)

def test_the_naive_test_errs_both_ways():
    assert share_below(naive, 150, rows=(5, 5)) > .25
    assert share_below(naive, 150, same=True) < .02

def test_power_where_the_naive_test_is_blind():
    world = dict(same=True, rho=.9, shift=.15, customers=(300, 300))
    assert share_below(by_customer, 40, **world) > share_below(naive, 40, **world) + .4

# Refusals

@pytest.mark.parametrize("args, words", [
    (([], [1.]), "rows in both windows"), (([1.], [2.], ([1], None)), "one window only"), (([1.], [2.], ([1, 2], [1])), "2 and 1 ids"),
    (([1.], [2.], None, 0), "0 rounds")])
def test_refusals_are_one_line(args, words):
    with pytest.raises(ValueError, match=words) as e: permutation_pvalue(*args)
    assert "\n" not in str(e.value)

def test_numpy_alone_at_import():
    code = "import sys, churn_nb.monitoring.permutation_tests; print([m for m in ('pandas', 'sklearn', 'scipy', 'churn_nb.drift') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"

def test_whole_customers_are_chosen_whole_and_again():
    t = pd.DataFrame({"customer_id": np.repeat(np.arange(100), 7), "x": range(700)})
    some = c.whole_customers(t, 350, seed=1)
    assert len(some) <= 350 and len(some) > 300 and set(some.groupby("customer_id").size()) == {7} and some.x.is_monotonic_increasing
    assert some.equals(c.whole_customers(t, 350, seed=1)) and not some.equals(c.whole_customers(t, 350, seed=2))
    assert c.whole_customers(t, 700).equals(t)
