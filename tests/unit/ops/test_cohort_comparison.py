"Ageing: equal ages on both sides, calm where only age moves, loud where something was planted."
import subprocess, sys
from datetime import date
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings as rules, strategies as st
from churn_nb.ops import cohort_comparison as g
from churn_nb.monitoring.permutation_tests import permutation_pvalues
from churn_nb.drift import psi
from churn_nb.features import point_in_time
from lessons import of_lesson

one_cohort = of_lesson("ops/40_cohort_comparison", "one_cohort").one_cohort
HOURS = [24, 168, 720, 2160]
THEN, NOW = "1998-05-01", "1998-07-01"

def known_at(log, *dates): return point_in_time(log, [date.fromisoformat(d) for d in dates], HOURS)

def rows_of(then, now):
    return pd.DataFrame({"customer_id": range(len(then) + len(now)), "tenure_days": [*then, *now],
                         "event_timestamp": pd.to_datetime([THEN]*len(then) + [NOW]*len(now), utc=True)})

ages = st.lists(st.integers(0, 60), min_size=1, max_size=40)

@rules(max_examples=80, deadline=None, derandomize=True)
@given(ages, ages, st.sampled_from([1, 7, 30]), st.integers(0, 3))
def test_both_sides_have_the_same_ages(then, now, days, seed):
    rows = rows_of(then, now)
    low, high = max(min(then), min(now)), min(max(then), max(now))
    if low > high:
        with pytest.raises(ValueError, match="do not overlap"): g.same_age(rows, THEN, NOW, g.AgeMatching(band_days=days))
        return
    a, b = g.same_age(rows, THEN, NOW, g.AgeMatching(band_days=days, seed=seed))
    band = lambda s: ((s.tenure_days - low)//days).value_counts().to_dict()
    assert band(a) == band(b) and pd.concat([a, b]).tenure_days.between(low, high).all()
    want = sum(min(sum(low <= t <= high and (t - low)//days == k for t in side) for side in (then, now)) for k in range(61))
    assert len(a) == len(b) == want                       # and nothing more is thrown away
    again = g.same_age(rows.sample(frac=1, random_state=1), THEN, NOW, g.AgeMatching(band_days=days, seed=seed))
    assert set(again[0].customer_id) == set(a.customer_id) and set(again[1].customer_id) == set(b.customer_id)

def test_several_dates_missing_ages_and_other_names():
    rows = rows_of([5, 6, np.nan], [6, np.nan, 5]).rename(columns={"tenure_days": "age", "event_timestamp": "t", "customer_id": "who"})
    a, b = g.same_age(rows, [THEN], date(1998, 7, 1), g.AgeMatching("age", "t", "who"))
    assert sorted(a.age) == sorted(b.age) == [5, 6]

@pytest.mark.parametrize("call, words", [
    (lambda r: g.same_age(r, "1990-01-01", NOW), "no rows with event_timestamp 1990-01-01; the rows hold 1998-05-01"),
    (lambda r: g.same_age(r, THEN, NOW), "1 to 2 and 8 to 9 do not overlap")])
def test_refusals_are_one_line(call, words):
    with pytest.raises(ValueError, match=words) as e: call(rows_of([1, 2], [8, 9]))
    assert "\n" not in str(e.value)

# A simulated cohort

COLUMNS = ["transactions_90d", "spend_90d", "transactions_total", "spend_total", "recency_days", "mean_gap_days"]

def pvalues(a, b, columns=COLUMNS, rounds=99):
    return permutation_pvalues(a[columns], b[columns], (a.customer_id, b.customer_id), rounds)[1]

def test_age_alone_raises_no_alarm_in_the_cohort_comparison():
    "The raw comparison does raise one."
    alarms, raw = [], []
    for seed in range(40):
        rows = known_at(one_cohort(np.random.default_rng(seed), 1000), "1997-07-01", THEN, NOW)
        alarms.append(pvalues(*g.same_age(rows, THEN, NOW)) <= .05)
        first, last = (rows[rows.event_timestamp == pd.Timestamp(d, tz="UTC")] for d in ("1997-07-01", NOW))
        raw.append(psi(first.spend_90d.to_numpy(), last.spend_90d.to_numpy(), 10))
    share = np.mean(alarms, axis=0) # 3.3 standard errors of a true .05 in 40 worlds
    assert (share <= .05 + 3.3*np.sqrt(.05*.95/40)).all(), dict(zip(COLUMNS, share))
    assert min(raw) > .25

def test_a_planted_change_is_found():
    found = []
    for seed in range(6):
        log = one_cohort(np.random.default_rng(seed), 15_000)
        log["amount"] *= np.where(log.event_timestamp >= pd.Timestamp(THEN, tz="UTC"), 1.5, 1.)
        rows = known_at(log, THEN, NOW)
        rows["per_purchase"] = rows.spend_90d/rows.transactions_90d.where(rows.transactions_90d > 0)
        found.append(pvalues(*g.same_age(rows, THEN, NOW), ["per_purchase", "transactions_90d"]) <= .05)
    assert np.mean(found, axis=0)[0] > .7 and np.mean(found, axis=0)[1] < .5

# CDNOW

@pytest.fixture(scope="module")
def cdnow(configured, tmp_path_factory): return configured(tmp_path_factory.mktemp("ageing"))

def test_training_rows_and_today_share_no_age(cdnow):
    from churn_nb.data.datasets import load_events
    rows = known_at(load_events(cdnow, 500), *(str(d) for d in cdnow.features.train_as_of), NOW)
    with pytest.raises(ValueError, match="do not overlap"): g.same_age(rows, cdnow.features.train_as_of, NOW)

def test_same_age_today(cdnow):
    from churn_nb.features import feature_names
    (a, b), why = g.same_age_today(cdnow)
    assert len(a) == len(b) > 5000 and a.event_timestamp.max() < b.event_timestamp.min() == pd.Timestamp(NOW, tz="UTC")
    assert str(len(a)) in why and "1998-07-01" in why
    assert max(psi(a[n].to_numpy(), b[n].to_numpy(), 10) for n in feature_names(cdnow)) < .1

def test_same_age_today_gives_the_reason_for_no_result(cdnow, configured, tmp_path):
    assert g.same_age_today(cdnow, 40)[0] is None and "customers a side" in g.same_age_today(cdnow, 40)[1]
    at_once = configured(tmp_path, **{"features__serve_as_of": "1997-10-01"})
    assert g.same_age_today(at_once) == (None, "all customers are of one age on 1997-10-01, or training is of today: nothing to compare")

def test_the_rows_are_those_of_the_offline_store(cdnow):
    from churn_nb import features as f
    from churn_nb.feature_store.event_log import write_base
    from churn_nb.core.workspace import Workspace
    from churn_nb.data.datasets import load_events
    Workspace(cdnow.paths.workspace).open()
    write_base(cdnow, load_events(cdnow, 500))
    store = f.with_request_time(pd.read_parquet(max(f.write_windows(cdnow), key=lambda p: p.name)), f.feature_names(cdnow))
    (_, b), _ = g.same_age_today(cdnow, 500, fewest=1)
    got = b.set_index("customer_id")[f.feature_names(cdnow)]
    pd.testing.assert_frame_equal(got, store.set_index("customer_id").loc[got.index, f.feature_names(cdnow)])

def test_no_training_package_at_import():
    code = "import sys, churn_nb.ops.cohort_comparison; print([m for m in ('sklearn', 'mlflow', 'onnxruntime', 'churn_nb.drift', 'churn_nb.train') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
