"Performance: the promise of the sequential test by simulation, the watch against its formula, restarts, and bad input."
import json, math
import numpy as np, pandas as pd, pytest, statsmodels.api as sm
from hypothesis import given, settings, strategies as st
from scipy import stats
from statsmodels.stats.proportion import proportions_ztest
from churn_nb.monitoring import sequential_test as f

LINE = math.log(20)
quick = settings(max_examples=60, deadline=None, derandomize=True)

def rows(rng, shape, worse=0.):
    "Labels and probabilities of a model that is calibrated for worse=0; about four in five are 1."
    z = 2 + 1.8*rng.normal(size=shape)
    return (rng.random(shape) < 1/(1 + np.exp(-(z - worse)))).astype(int), 1/(1 + np.exp(-z))

def slack(alpha, n): return alpha + 3*math.sqrt(alpha*(1 - alpha)/n)

def capped(rng, shape, worse=0.):
    y, p = rows(rng, shape, worse)
    return -np.log(np.maximum(np.where(y == 1, p, 1 - p), 1e-4))

# losses

@quick
@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=1, max_size=40), st.sampled_from([1e-7, 1e-4, .01]))
def test_losses_are_log_loss_up_to_the_cap(pairs, eps):
    y, p = map(np.array, zip(*pairs))
    x = f.losses(y, p, eps)
    with np.errstate(divide="ignore"): raw = -np.log(np.where(y == 1, p, 1 - p))
    assert x == pytest.approx(np.minimum(raw, -math.log(eps)), abs=1e-12) and (x >= 0).all() and (x <= raw).all()

BAD = [([1, math.nan], [.5, .5], "row 1"), ([1, 2], [.5, .5], "row 1"), ([1, -1], [.5, .5], "row 1"), ([0, 1], [.5, 1.01], "row 1"),
       ([0, 1], [-.1, .5], "row 0"), ([0, 1], [.5, math.nan], "row 1"), ([0, 1], [.5, math.inf], "row 1"), ([], [], "shape"),
       ([0], [.5, .5], "1 labels, 2"), ([[0]], [[.5]], "shape"), (["a"], [.5], "not numbers"), ([None, 1], [.5, .5], "row 0"),
       (pd.array([1, None], dtype="Int64"), [.5, .5], "label")]

@pytest.mark.parametrize("y, p, says", BAD)
def test_bad_rows_are_named_in_one_line_and_change_nothing(y, p, says):
    with pytest.raises(ValueError, match=says) as e: f.losses(y, p)
    assert "\n" not in str(e.value)
    watch = f.LossWatch(.36).update([1, 0], [.7, .2], "2026-01-01")
    before = json.dumps(watch.to_dict())
    with pytest.raises(ValueError, match=says): watch.update(y, p, "2026-01-02")
    assert json.dumps(watch.to_dict()) == before

# the promise

def base(): return float(capped(np.random.default_rng(1), 4_000_000).mean())

def uneven(rng):
    "More spread after a bad day, but always mean 1 given the past."
    X = rng.exponential(size=(365, 1000, 1))
    return 1 + (X - 1)*np.where(np.roll(X, 1, 0) > 1, 1, .2)

worlds = { # streams (days, streams, bets) whose mean given the past is mu0 = 1
    "calibrated model, days": lambda rng: capped(rng, (365, 800, 30)).mean(-1, keepdims=True)/base(),
    "calibrated model, customers": lambda rng: capped(rng, (365, 250, 60))/base(),
    "exponential": lambda rng: rng.exponential(size=(365, 1000, 1)),
    "one large loss in twenty": lambda rng: 20.*(rng.random((365, 1000, 1)) < .05),
    "days that share a shock":
        lambda rng: (capped(rng, (365, 400, 30))*rng.gamma(25, 1/25, (365, 400, 1))).mean(-1, keepdims=True)/base(),
    "uneven": uneven}

@pytest.mark.parametrize("name", worlds)
def test_a_year_of_daily_looks_alarms_no_oftener_than_alpha(name):
    X = worlds[name](np.random.default_rng(0))
    ever = (f.log_wealth(X, 1.) >= LINE).any(0).mean()
    assert ever <= slack(.05, X.shape[1])

@pytest.mark.parametrize("alpha", [.01, .2])
def test_other_levels_hold_too(alpha):
    X = np.random.default_rng(2).exponential(size=(365, 2000, 1))
    assert (f.log_wealth(X, 1.) >= -math.log(alpha)).any(0).mean() <= slack(alpha, 2000)

def test_a_daily_t_test_would_not_hold():
    X = capped(np.random.default_rng(3), (90, 300, 50))
    z = (X.mean(-1) - base())/(X.std(-1, ddof=1)/math.sqrt(50))
    assert (z > stats.norm.isf(.05)).any(0).mean() > .8 # against .05 that were agreed to

@pytest.mark.parametrize("unit, worse, most", [("day", .7, 45), ("customer", .7, 40), ("day", 3., 15), ("customer", 3., 5)])
def test_a_break_is_found_in_days(unit, worse, most):
    rng = np.random.default_rng(4)
    X = np.concatenate([capped(rng, (120, 100, 60)), capped(rng, (100, 100, 60), worse)])
    hit = f.log_wealth(X.mean(-1, keepdims=True) if unit == "day" else X, base() + .01) >= LINE
    assert hit[:120].any(0).mean() <= .05 and np.quantile(np.where(hit.any(0), hit.argmax(0) - 119, 999), .9) <= most

def test_wealth_never_dies_and_stakes_stay_inside():
    X = np.concatenate([np.full((50, 1, 1), 5.), np.zeros((300, 1, 1))])
    assert np.isfinite(f.log_wealth(X, 1.)).all()
    m, v = np.meshgrid(np.linspace(0, 10, 50), np.r_[0., np.logspace(-6, 3, 20)])
    with np.errstate(all="raise"): s = f.stake(m[v > 0], v[v > 0], 1.)
    assert (s >= 0).all() and (s <= .9).all() and (s[m[v > 0] <= 1] == 0).all()

# the watch

@pytest.mark.parametrize("unit", ["day", "customer"])
def test_the_monitor_equals_the_formula_across_restarts(unit):
    rng, watch, X = np.random.default_rng(5), f.LossWatch(.36, .01, unit=unit), []
    for d in pd.date_range("2026-01-01", periods=150):
        y, p = rows(rng, 40, .7*(d.month > 3))
        X.append(f.losses(y, p))
        watch = f.LossWatch.from_dict(json.loads(json.dumps(watch.update(y, p, d).to_dict(), allow_nan=False)))
    X = np.array(X) if unit == "customer" else np.mean(X, axis=1, keepdims=True)
    assert [h["log_wealth"] for h in watch.history] == pytest.approx(f.log_wealth(X, .37), abs=1e-9)
    first = next(h["at"] for h in watch.history if h["log_wealth"] >= LINE)
    assert watch.alarm and watch.alarm_at == first and watch.days == 150
    assert watch.wealth == pytest.approx(math.exp(watch.log_wealth))

def test_an_alarm_stays_and_huge_wealth_is_a_number():
    watch = f.LossWatch(.1, unit="customer")
    for _ in range(5): watch.update(np.ones(500), np.zeros(500))
    at = watch.alarm_at
    assert at == "2" and 0 < watch.wealth < math.inf
    for _ in range(400): watch.update(np.ones(500), np.ones(500))
    assert watch.alarm and watch.alarm_at == at
    json.dumps(watch.to_dict(), allow_nan=False)

@pytest.mark.parametrize("day", ["2026-01-02", "2026-01-01", "2025-12-31", "soon", "", ["2026-02-01"]])
def test_days_count_once_and_move_forward(day):
    watch = f.LossWatch(.36).update([1], [.7], "2026-01-02")
    before = watch.to_dict()
    with pytest.raises(ValueError, match="LossWatch") as e: watch.update([1], [.7], day)
    assert watch.to_dict() == before and "\n" not in str(e.value)

def test_times_of_any_zone_are_compared_as_moments():
    watch = f.LossWatch(.36).update([1], [.7], "2026-01-02T00:00:00+02:00")
    assert watch.history[0]["at"] == "2026-01-01T22:00:00+00:00"
    watch.update([1], [.7], pd.Timestamp("2026-01-02"))

def test_a_customer_who_is_asked_often_is_one_customer():
    y, p = np.r_[np.ones(100), 0], np.r_[np.full(100, .1), .5]
    watch = f.LossWatch(.36, unit="customer").update(y, p, customers=["a"]*100 + ["b"])
    assert watch.history[0]["loss"] == pytest.approx((math.log(10) + math.log(2))/2) and watch.history[0]["rows"] == 101
    for ids, says in (["a"], "101 rows, 1 customers"), ([None] + ["b"]*100, "row 0"):
        with pytest.raises(ValueError, match=says): watch.update(y, p, customers=ids)

@pytest.mark.parametrize("how", [{"baseline": 0}, {"baseline": math.nan}, {"baseline": None}, {"margin": -.1}, {"alpha": 0}, {"alpha": 1},
                                 {"cap": .3}, {"memory": .5}, {"unit": "row"}])
def test_settings_that_make_no_sense(how):
    with pytest.raises(ValueError, match="LossWatch") as e: f.LossWatch(**{"baseline": .36} | how)
    assert "\n" not in str(e.value)

def test_numpy_settings_become_json():
    watch = f.LossWatch(np.float32(.5), np.float64(.01))
    assert f.LossWatch.from_dict(json.loads(json.dumps(watch.to_dict()))).to_dict() == watch.to_dict()

@pytest.mark.parametrize("change", [{"alfa": 1}, {"log_wealth": None}, {"log_wealth": math.nan}, {"spread": -1.}, {"mean": "x"},
                                    {"history": None}, {"history": [1]}, {"baseline": "x"}, {"days": 1.5}])
def test_a_damaged_state_is_refused(change):
    with pytest.raises(ValueError, match="LossWatch") as e: f.LossWatch.from_dict(f.LossWatch(.36).to_dict() | change)
    assert "\n" not in str(e.value)
    for other in (None, [], {}):
        with pytest.raises(ValueError, match="not a saved watch"): f.LossWatch.from_dict(other)

# tables

def table(days=30, n=20, seed=6, **columns):
    rng = np.random.default_rng(seed)
    y, p = rows(rng, days*n)
    at = pd.date_range("2026-01-01", periods=days, tz="UTC").repeat(n) + pd.to_timedelta(rng.integers(0, 86_400, days*n), unit="s")
    return pd.DataFrame({"at": at, "churn": y, "probability": p} | columns)

def test_a_table_is_read_by_days_in_any_order():
    t, by_hand = table(), f.LossWatch(.36, .02, .1)
    for day, part in t.sort_values("at").groupby(t["at"].dt.floor("D")): by_hand.update(part.churn, part.probability, day)
    for order in (t, t.sample(frac=1, random_state=0), t.rename(columns={"at": "as_of"}), t.assign(at=t["at"].astype(str))):
        assert [h["log_wealth"] for h in f.watch_losses(order, .36, .02, .1).history] == pytest.approx([h["log_wealth"] for h in by_hand.history])

def test_a_table_counts_a_customer_once_a_window():
    t = table(200, 10, customer_id=np.tile(np.arange(10), 200))
    watch = f.watch_losses(t, .36)
    assert watch.days <= 3*10 and sum(h["rows"] for h in watch.history) == 30
    assert sum(h["rows"] for h in f.watch_losses(t, .36, label_days=0).history) == 2000

@quick
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 100)), max_size=30), st.integers(0, 40))
def test_once_per_window_is_greedy(asked, gap):
    asked = sorted(asked, key=lambda a: a[1])
    keep = f.once_per_window([c for c, _ in asked], [pd.Timestamp("2026-01-01") + pd.Timedelta(days=d) for _, d in asked], gap)
    kept = [a for a, k in zip(asked, keep) if k]
    for c in range(4):
        days = [d for i, d in kept if i == c]
        assert all(b - a >= gap for a, b in zip(days, days[1:]))
    for (c, d), k in zip(asked, keep):
        assert k or any(i == c and 0 <= d - e < gap for i, e in kept)

@pytest.mark.parametrize("change, says", [({"churn": 3}, "row 0"), ({"probability": math.nan}, "row 0"), ({"at": pd.NaT}, "row 0 has no at"),
                                          ({"at": "soon"}, "row 0 has no at"), ({"customer_id": None}, "row 0 has no customer_id")])
def test_a_bad_table_is_refused(change, says):
    with pytest.raises(ValueError, match=says): f.watch_losses(table().assign(**change), .36)

def test_a_table_without_columns_or_rows():
    with pytest.raises(ValueError, match="no column probability"): f.watch_losses(table().drop(columns="probability"), .36)
    with pytest.raises(ValueError, match="no rows"): f.watch_losses(table()[:0], .36)

# label rate

@pytest.mark.parametrize("a, n, b, m", [(80, 100, 70, 100), (1, 50, 9, 70), (500, 1000, 510, 900), (0, 10, 5, 10)])
def test_label_rate_equals_statsmodels(a, n, b, m):
    r, c = np.repeat([1, 0], [a, n - a]), np.repeat([1, 0], [b, m - b])
    found = f.label_rate_change(r, c)
    assert found["pvalue"] == pytest.approx(proportions_ztest([a, b], [n, m])[1], abs=1e-12)
    chi2 = stats.chi2_contingency([[a, n - a], [b, m - b]], correction=False).pvalue
    assert found["pvalue"] == pytest.approx(chi2, abs=1e-12) and found["difference"] == pytest.approx(b/m - a/n)

def test_label_rate_by_customer_equals_statsmodels():
    rng = np.random.default_rng(7)
    ids = rng.integers(0, 80, 500)
    y, side = (rng.random(500) < np.random.default_rng(8).random(80)[ids]).astype(int), np.repeat([0, 1], [300, 200])
    found = f.label_rate_change(y[:300], y[300:], (ids[:300], ids[300:]))
    t = sm.OLS(y, sm.add_constant(side)).fit(cov_type="cluster", cov_kwds={"groups": ids}).tvalues[1]*math.sqrt(499/498)
    assert found["pvalue"] == pytest.approx(2*stats.t.sf(abs(t), len(np.unique(ids)) - 1), rel=1e-9)

def test_label_rate_by_customer_keeps_its_level():
    rng, wrong = np.random.default_rng(9), np.zeros(2)
    for _ in range(500):
        y, ids = (rng.random(200) < .8).repeat(5), np.arange(200).repeat(5)
        wrong += [f.label_rate_change(y[:500], y[500:], c)["pvalue"] < .05 for c in (None, (ids[:500], ids[500:]))]
    assert wrong[0]/500 > .2 and wrong[1]/500 <= slack(.05, 500)

def test_label_rate_at_the_edges():
    ones, zeros = np.ones(5), np.zeros(5)
    assert f.label_rate_change(ones, ones)["pvalue"] == 1 and f.label_rate_change(ones, zeros)["pvalue"] < .01
    assert f.label_rate_change(ones, ones, (range(5), range(5)))["pvalue"] == 1
    for y, says in ([], "current: labels of shape"), ([1, math.nan], "current: the label of row 1"), ([1, 2], "row 1"):
        with pytest.raises(ValueError, match=says): f.label_rate_change(ones, y)
    for clusters, says in ((range(4), range(5)), "5 labels, 4 customers"), (([1]*5, [1]*5), "two customers"):
        with pytest.raises(ValueError, match=says): f.label_rate_change(ones, zeros, clusters)
