"Outcomes after an offer: which rows of the request log they are, and what the report says of them."
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hyp
from hypothesis import strategies as st

import churn_nb.ops.monitor as m
from churn_nb.cli.monitoring import _about_offers
from churn_nb.core.control_group import offer_group
from churn_nb.evaluation.loss_estimation import entropy
from churn_nb.monitoring.request_log import AnsweredRows, add_file, columns_of

quick = hyp(max_examples=60, deadline=None, derandomize=True)
requests = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 300), st.integers(0, 1)), min_size=1, max_size=30, unique_by=lambda r: r[:2])
START = pd.Timestamp("2026-01-01", tz="UTC")

@quick
@given(requests)
def test_an_offer_is_due_where_one_answer_in_the_label_window_was_at_risk(drawn):
    drawn = sorted(drawn, key=lambda r: r[1])
    seen = pd.DataFrame({"at": [START + pd.Timedelta(days=d) for _, d, _ in drawn], "customer_id": pd.array([c for c, *_ in drawn], "Int64"), "churn_risk": [float(r) for *_, r in drawn]})
    found = m._offer_due(asked := seen[["at", "customer_id"]].astype({"customer_id": "int64"}), seen, 90)
    assert found.tolist() == [any(c == e and d <= day <= d + 90 and risk for e, day, risk in drawn) for c, d, _ in drawn] and len(asked) == len(found)

def served(p): return SimpleNamespace(version="1", names=["x"], threshold=.5, features=[])

@pytest.fixture
def service(tmp_path, monkeypatch):
    "A request log of 2,000 customers: the first month without a group, then with one; and who bought afterwards."
    rng, folder = np.random.default_rng(0), tmp_path/"requests"
    p, bought = rng.uniform(.05, .95, 2000), []
    for month, share in ((0, 0.), (1, .4)):
        ids = [*range(1000*month, 1000*month + 1000)]
        at = int((START + pd.Timedelta(days=30*month)).timestamp()*1000)
        add_file(folder, columns_of([AnsweredRows(at, served(p), np.zeros((1000, 1), np.float32), p[ids].tolist(), ids)], share))
        for i in ids:
            offered = p[i] >= .5 and share and offer_group(i, share) == "treated"
            if rng.random() > p[i] or (offered and rng.random() < .5): bought.append((i, START + pd.Timedelta(days=60)))
    log = pd.DataFrame(bought, columns=["customer_id", "event_timestamp"])
    log.assign(event_timestamp=log.event_timestamp.astype("datetime64[us, UTC]")).to_parquet(tmp_path/"log.parquet", index=False)
    monkeypatch.setattr(m, "log_sql", lambda s: f"(SELECT * FROM '{tmp_path}/log.parquet')")
    monkeypatch.setattr(m, "require_built", lambda *a, **kw: 0)
    monkeypatch.setattr(m, "source_of", lambda s: SimpleNamespace(accepts_events=s.data.kind == "events"))
    return SimpleNamespace(paths=SimpleNamespace(workspace=tmp_path), data=SimpleNamespace(dataset="telco", kind="events"), features=SimpleNamespace(label_days=90)), p

def test_a_share_that_began_later_leaves_the_older_outcomes_as_they_are(service):
    settings, p = service
    known = m.known_outcomes(settings, START + pd.Timedelta(days=150))
    older, newer = known[known.customer_id < 1000], known[known.customer_id >= 1000]
    assert (older.weight == 1).all() and set(newer.weight) == {0., 1., 2.5} and len(known) == 2000
    assert (newer.weight == 1).equals(newer.probability < .5) and newer.weight.mean() == pytest.approx(1, abs=5*(.5*1.5/1000)**.5)
    said = m._offers(known)
    assert said["left_out"] == (newer.weight == 0).sum() and said["control"] == (newer.weight == 2.5).sum() and said["mixed_in"] == 1000
    assert "are left out" in _about_offers(said) and "1,000 older ones" in _about_offers(said)
    assert "are mixed in" in _about_offers(m._offers(older.drop(columns=["weight"])))
    excess = lambda rows, w: (w*(-np.log(np.where(rows.churn == 1, rows.probability, 1 - rows.probability)) - entropy(rows.probability))).mean()
    assert excess(newer, 1) > .1 and abs(excess(newer, newer.weight)) < .08

def test_the_estimate_before_outcomes_leaves_treated_outcomes_out(service):
    settings, p = service
    known = m.known_outcomes(settings, START + pd.Timedelta(days=150))
    periods, _ = m._labelled_periods(known[known.customer_id >= 1000], 90)
    assert [set(b.weights) for b in periods] == [{0., 1., 2.5}]

def test_offered_customers_are_those_at_risk_with_a_group(service):
    settings, p = service
    rows = m.offered_customers(settings, START + pd.Timedelta(days=150))
    assert set(rows.known.customer_id) == {i for i in range(1000, 2000) if p[i] >= .5} and rows.asked == len(rows.known) and rows.share == .4
    early = m.offered_customers(settings, START + pd.Timedelta(days=100))
    assert (len(early.known), early.asked) == (0, rows.asked)
    for file in sorted((settings.paths.workspace/"requests").glob("*/*.parquet"))[1:]: file.unlink() # the month with groups
    with pytest.raises(m.UsageError, match="set \\[serve\\] control_share"): m.offered_customers(settings, START + pd.Timedelta(days=150))

def test_a_table_has_no_outcomes_and_says_so(service):
    settings, _ = service
    settings.data.kind = "snapshot"
    with pytest.raises(m.UsageError, match="telco is a table, not a log"): m.offered_customers(settings, START)
