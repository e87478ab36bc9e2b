"Worlds to replay: what is known when, and a truth that is one."
import numpy as np, pandas as pd, pytest
from hypothesis import given, strategies as st
from churn_nb.core.errors import DataError
from churn_nb.core.settings import load_settings
from churn_nb.replay.worlds import WORLD_KINDS, MONTH, MONTHS, log_world, simulated_world, splits_of

DAY = pd.Timedelta(1, "D")

@given(st.lists(st.integers(1, 60), min_size=1, max_size=25), st.integers(1, 200), st.data())
def test_a_label_is_known_before_the_next_split_begins(steps, label_days, data):
    months = [*(pd.Timestamp("2024-01-01", tz="UTC") + np.cumsum([0, *steps])*DAY)]
    month = data.draw(st.integers(0, len(months) - 1))
    found, L = splits_of(months, label_days, month), label_days*DAY
    if not found: return
    (test,), (validation,), train = found["test"], found["validation"], found["train"]
    assert months[test] + L <= months[month] and months[validation] + L <= months[test]
    assert all(months[k] + L <= months[validation] for k in train) and 2 <= len(train) <= 7 and train == sorted(train)
    assert test + 1 == month or months[test + 1] + L > months[month] # the newest that is known

@pytest.fixture(scope="module")
def worlds(): return {kind: simulated_world(kind, customers=600, seed=3) for kind in WORLD_KINDS}

@pytest.mark.parametrize("kind", WORLD_KINDS)
def test_the_probability_is_the_truth(worlds, kind):
    "Of all rows, and of each third of the year by itself: a wrong hazard after the change would show in one. z < 4 errs in one of 16,000."
    rows = worlds[kind].rows
    rows = rows[rows.asked | rows.event_timestamp.isin(worlds[kind].months)]
    for part in np.array_split(np.array(worlds[kind].months), 3):
        some = rows[rows.event_timestamp.isin(part)] # a month apart: outcomes of a customer are of other days
        z = (some.churn - some.probability).sum()/np.sqrt((some.probability*(1 - some.probability)).sum())
        assert len(some) > 2000 and abs(z) < 4, (kind, part[0], z)

@pytest.mark.parametrize("kind", WORLD_KINDS[1:3])
def test_before_the_change_worlds_are_the_same(worlds, kind):
    "Lives are; the amounts of their events are drawn after all lives, so they differ."
    a, b, of_lives = worlds["none"], worlds[kind], ["customer_id", "event_timestamp", "age", "plan", "tenure_days", "churn", "probability"]
    part = [w.rows.loc[w.rows.event_timestamp + w.label_days*DAY <= b.changed, of_lives].reset_index(drop=True) for w in (a, b)]
    pd.testing.assert_frame_equal(*part)
    after = [w.rows[w.rows.event_timestamp > b.changed].churn.mean() for w in (a, b)]
    assert len(part[0]) > 5000 and after[0] != after[1]

def test_without_a_change_customers_stay_as_many(worlds):
    w = worlds["none"]
    n = np.array([len(w.customers(k)) for k in range(len(w.months))])
    age = w.rows.groupby("event_timestamp").tenure_days.median()[w.months]
    assert len(n) - 1 - w.first == MONTHS and np.ptp(n) < .2*n.mean() and abs(np.polyfit(range(len(n)), age, 1)[0]) < 3 # days a month

@pytest.mark.parametrize("kind", WORLD_KINDS)
def test_a_customer_is_asked_about_once_a_month(worlds, kind):
    w = worlds[kind]
    for month in range(w.first, len(w.months) - 1):
        seen = w.requests(month)
        assert seen.customer_id.is_unique and seen.event_timestamp.nunique() == 4 and seen.event_timestamp.min() == w.months[month]

def test_the_same_seed_is_the_same_world():
    a, b, c = (simulated_world("slow", 50, seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(a.rows, b.rows)
    assert not a.rows.equals(c.rows)

def test_a_log_is_walked_forward_as_it_was_known(tmp_path):
    settings = load_settings({"paths.workspace": tmp_path, "features.label_days": 28}, environ={})
    w = log_world(settings, 200)
    assert w.rows.probability.isna().all() and set(w.names) <= set(w.rows) and w.changed is None
    assert (w.rows.recency_days >= 0).all() and w.months[-1] + w.label_days*DAY <= pd.Timestamp("1998-07-01", tz="UTC")
    assert splits_of(w.months, 28, w.first) and not splits_of(w.months, 28, w.first - 1) and np.diff(w.months).max() == MONTH*DAY

@pytest.mark.parametrize("overrides, said", [({"features.label_days": 200}, "hold no month"), ({"data.dataset": "telecom"}, "a table has no months")])
def test_what_can_not_be_walked_through_is_refused(overrides, said, tmp_path):
    with pytest.raises(DataError, match=said): log_world(load_settings({"paths.workspace": tmp_path, **overrides}, environ={}), 50)
