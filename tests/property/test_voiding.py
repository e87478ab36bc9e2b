"An event that is voided counts nowhere from the moment at which that became known, and everywhere as before for every moment before it."
import random
import shutil
from datetime import timedelta

import pandas as pd
from hypothesis import HealthCheck, given, Phase, settings as rules, strategies as st

from churn_nb import features as f
from churn_nb.core.clock import advance_clock, current_time, utc
from churn_nb.core.storage import compact
from churn_nb.core.workspace import Workspace
from churn_nb.feature_store.event_log import event_batches, log_hash, write_base
from churn_nb.feature_store.event_source import open_log, stored_rows_sql
from churn_nb.feature_store.feature_sql import labels, point_in_time
from churn_nb.ops.event_worker import log_events, parse_event, push_rows

slow = rules(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
START = utc("1998-06-20")
purchases = st.tuples(st.just("buy"), st.integers(0, 9), st.integers(0, 2), st.integers(0, 3), st.integers(0, 500)) # id, customer, hours before, cents
voidings = st.tuples(st.just("void"), st.integers(0, 9), st.integers(0, 2), st.integers(0, 3), st.integers(0, 12)) # own id, customer, hours before, the id it voids
days = st.lists(st.lists(purchases | voidings, min_size=1, max_size=8), min_size=1, max_size=4)

def rows_of(batch, day, ids):
    "A batch as it is sent on a day; purchases of equal id are equal, so that only voidings are refused."
    at = lambda hours: (START + timedelta(days=day, hours=-1 - 8*hours)).isoformat()
    out = {}
    for kind, i, c, hours, x in batch:
        if kind == "buy": out.setdefault(f"P{day}{i}", {"event_id": f"P{day}{i}", "customer_id": int(ids[c]), "event_timestamp": at(hours), "amount": x/100})
        else: out.setdefault(f"V{day}{i}", {"event_id": f"V{day}{i}", "customer_id": int(ids[c]), "event_timestamp": at(hours), "voids": x + 1 if x > 9 else f"P{day - x % 2}{x}"})
    return [*out.values()]

def base(ids):
    at = pd.to_datetime([START - timedelta(days=40 - 9*i) for i in range(4)], utc=True).astype("datetime64[us, UTC]")
    return pd.DataFrame({"event_id": range(10, 14), "customer_id": [ids[0], ids[0], ids[1], ids[2]], "event_timestamp": at, "quantity": 1, "amount": 10.5, "created_timestamp": at})

class Expected:
    "What counts, by a plain loop over what was taken."
    def __init__(self, events): self.events = {r["event_id"]: r for r in events.to_dict("records")}; self.voided = {}
    def add(self, rows, said, now):
        for r, v in zip(rows, said):
            if v != "new": continue
            if "voids" in r: self.voided[r["voids"]] = now
            else: self.events[r["event_id"]] = {**r, "event_timestamp": pd.Timestamp(r["event_timestamp"]), "created_timestamp": now}
    def known(self, a):
        keep = [e for i, e in self.events.items() if not (i in self.voided and self.voided[i] <= a) and e["created_timestamp"] <= a and e["event_timestamp"] < a]
        df = pd.DataFrame(keep, columns=["customer_id", "event_timestamp", "created_timestamp", "amount"])
        return df.assign(**{c: pd.to_datetime(df[c], utc=True).astype("datetime64[us, UTC]") for c in ("event_timestamp", "created_timestamp")}).astype({"customer_id": "int64", "amount": float})

def refused(rows, said): return {r["event_id"]: v["field"] for r, v in zip(rows, said) if isinstance(v, dict)}

def opened(configured, ws, ids):
    s = configured(ws, features__serve_as_of=str(START.date()))
    Workspace(s.paths.workspace).open()
    write_base(s, base(ids))
    return s

@slow
@given(days, st.integers(0, 99))
def test_what_was_known_at_each_moment_is_recomputed(configured, tmp_path_factory, days, seed):
    home, ids = tmp_path_factory.mktemp("voided"), (3, 7, 11)
    one, two = opened(configured, home/"one", ids), opened(configured, home/"two", ids)
    want, sent, shuffle = Expected(base(ids)), [], random.Random(seed).shuffle
    untouched = log_hash(one)
    for day, batch in enumerate(days):
        rows = rows_of(batch, day, ids)
        said = log_events(one, [parse_event(r) for r in rows])
        want.add(rows, said, current_time(one))
        shuffle(other := [*rows])
        again = log_events(two, [parse_event(r) for r in other])
        assert refused(rows, said) == refused(other, again) # whatever the order
        sent += [r for r, v in zip(rows, said) if v == "new"]
        for s in (one, two): advance_clock(s, START + timedelta(days=day + 1))
    shuffle(sent)
    assert log_hash(one) == log_hash(two) and (log_hash(one) == untouched) == (not sent)
    assert log_events(one, [parse_event(r) for r in sent]) == ["known"]*len(sent) and log_hash(one) == log_hash(two)
    compact(event_batches(one))
    for day in range(len(days) + 1):
        for a in (START + timedelta(days=day), START + timedelta(days=day, microseconds=-1)):
            got = open_log(one, a).execute(stored_rows_sql(one, a)).df()
            counted = want.known(a)
            assert got.set_index("customer_id").transactions_total.to_dict() == counted.customer_id.value_counts().to_dict()
            moments = counted.groupby("customer_id").event_timestamp.nunique().to_dict()
            assert got.set_index("customer_id").transaction_moments.to_dict() == moments

@rules(parent=slow, max_examples=3, phases=[Phase.generate])
@given(days)
def test_online_values_are_those_of_a_log_without_the_voided(stores, configured, tmp_path_factory, days):
    shutil.copytree(stores("few"), ws := tmp_path_factory.mktemp("online")/"ws")
    s = configured(ws)
    frame = pd.read_parquet(Workspace(ws).base)
    few = frame.customer_id.value_counts(ascending=True).index[:3].tolist()
    mine = frame[frame.customer_id.isin(few)]
    want, store, moved = Expected(mine), f.apply_store(s), timedelta(days=11)
    totals = [n for n in f.feature_names(s) if n not in f.expiring_features(s)] # of windows only those of customers with news are fresh
    def compare(names):
        now = current_time(s)
        offline = point_in_time(want.known(now), [now], s.features.windows_hours).set_index("customer_id").reindex(few)
        pd.testing.assert_frame_equal(f.online(store, few, s)[names], offline[names], check_names=False)
    first = [{"event_id": f"F{i}", "customer_id": int(c), "event_timestamp": "1998-06-30T01:00:00Z", "voids": int(e)} for i, (e, c) in enumerate(zip(mine.event_id, mine.customer_id))]
    for day, batch in enumerate([days[0], *days]):
        rows = [r | {"event_timestamp": (utc(r["event_timestamp"]) + moved).isoformat()} for r in rows_of(batch, day, few)] if day else first[:len(batch)]
        said, why = push_rows(s, store, rows)
        assert why == ""
        want.add(rows, said, current_time(s))
        compare(totals)
        advance_clock(s, utc("1998-07-01") + timedelta(days=day))
    f.materialize(s, store)
    compare(f.feature_names(s))
    checked = f.parity(s, store)
    assert (checked.differing, checked.behind) == ([], 0) and checked.compared == 40

def test_a_label_forgets_a_voided_purchase_and_keeps_its_customer():
    at = pd.to_datetime(["1998-01-01", "1998-02-10", "1998-01-05"], utc=True)
    void = pd.to_datetime([None, "1998-02-20", "1998-02-01"], utc=True)
    events = pd.DataFrame({"customer_id": [1, 1, 2], "event_timestamp": at, "voided_at": void})
    got = lambda e, a: labels(e, [utc(a).date()], 30, utc("1998-06-01")).set_index("customer_id").churn.to_dict()
    assert got(events, "1998-01-20") == {1: 1, 2: 1} # customer 2 was one, by what was known then
    assert got(events, "1998-02-01") == {1: 1}
    assert got(events.drop(columns="voided_at"), "1998-02-01") == {1: 0, 2: 1}
