"The domain classifier: what it sees, its interval, and its traps."
import numpy as np, pandas as pd, pytest
from churn_nb.monitoring import domain_classifier as c
from churn_nb.monitoring.permutation_tests import permutation_pvalues
from lessons import of_lesson

two_windows = of_lesson("monitoring/30_permutation_tests", "two_windows").two_windows

def slack(rate, worlds): return rate + 3.3*np.sqrt(rate*(1 - rate)/worlds) # a chance of 1 in 2,000 to be above

def frames(*parts): return [pd.DataFrame({f"x{k}": p[w] for k, p in enumerate(parts)}) for w in (0, 1)]

def correlated(rng, n, r):
    a = rng.normal(size=n)
    return pd.DataFrame({"a": a, "b": r*a + np.sqrt(1 - r**2)*rng.normal(size=n), "c": rng.normal(size=n)})

def test_a_flipped_correlation_is_seen_by_the_classifier_alone():
    rng = np.random.default_rng(4)
    then, now = correlated(rng, 1000, .6), correlated(rng, 1000, -.6)
    d = c.domain_auc(then, now, ["a", "b", "c"])
    assert d["low"] > .6 and d["pvalue"] < .001 and list(d["top"])[2] == "c" and list(d["top"].values()) == sorted(d["top"].values())[::-1]
    assert permutation_pvalues(then, now, rounds=199)[1].min() > .05
    assert d == c.domain_auc(then, now, ["a", "b", "c"]) # to the last digit

@pytest.mark.parametrize("world", [{"rows": (3, 3)}, {"same": True, "rows": (3, 1)}])
def test_the_interval_covers_one_half_without_drift(world, monkeypatch):
    monkeypatch.setattr(c, "_auc_lost", lambda model, X, y, rng: np.zeros(2)) # not asked for here, and most of the time
    rng, hit, alarm = np.random.default_rng(1), [], []
    for _ in range(15):
        parts = [two_windows(rng, customers=(120, 120), **world) for _ in range(2)]
        d = c.domain_auc(*frames(*parts), ["x0", "x1"], parts[0][2:])
        hit.append(d["low"] <= .5 <= d["high"])
        alarm.append(d["pvalue"] <= .05)
    assert np.mean(hit) >= 1 - slack(.05, 15) and np.mean(alarm) <= slack(.05, 15)

def test_split_by_rows_it_knows_the_customers():
    rng = np.random.default_rng(5)
    crowd = lambda: pd.DataFrame(np.repeat(rng.normal(size=(60, 3)), 20, axis=0) + .02*rng.normal(size=(1200, 3)), columns=[*"abc"])
    then, now, ids = crowd(), crowd(), np.repeat(np.arange(60), 20)
    assert c.domain_auc(then, now, [*"abc"])["auc"] > .95
    assert c.domain_auc(then, now, [*"abc"], (ids, ids + 60))["pvalue"] > .05

def test_customers_are_never_on_both_sides_of_a_split(monkeypatch):
    rng, seen = np.random.default_rng(0), []
    i, j = rng.integers(0, 80, 300), rng.integers(40, 120, 300)
    then, now = (pd.DataFrame({"who": ids, "x": rng.normal(size=300)}) for ids in (i, j)) # the id as a column, to look at
    class Spy:
        def fit(self, X, y): self.known = set(X[:, 0]); return self
        def predict_proba(self, X):
            seen.append(self.known.isdisjoint(X[:, 0]))
            return np.c_[-X[:, 1], X[:, 1]]
    monkeypatch.setattr(c, "_small_trees", lambda seed: Spy())
    monkeypatch.setattr(c, "_auc_lost", lambda model, X, y, rng: np.zeros(2))
    c.domain_auc(then, now, ["who", "x"], (i, j))
    assert seen == [True]*5

def test_missing_values_and_a_cap(monkeypatch):
    monkeypatch.setattr(c, "MAX_CLASSIFIED_ROWS", 700)
    rng = np.random.default_rng(0)
    then, now = correlated(rng, 600, .5), correlated(rng, 600, .5)
    now.loc[rng.random(600) < .5, "c"] = np.nan # what went missing is seen as well
    d = c.domain_auc(then, now, ["a", "b", "c"])
    assert d["auc"] > .6 and next(iter(d["top"])) == "c"

def test_too_few_rows_for_the_classifier():
    f = pd.DataFrame({"a": [1., 2]})
    with pytest.raises(ValueError, match="2 reference and 2 current rows are too few for 5 folds"): c.domain_auc(f, f, ["a"])
