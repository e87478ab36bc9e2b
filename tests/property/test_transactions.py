"A log's transactions are the same however its lines are written: in any order, twice, or pushed again in pieces."
import pandas as pd
from hypothesis import HealthCheck, given, settings as rules, strategies as st
from churn_nb.core.settings import load_settings
from churn_nb.core.workspace import Workspace
from churn_nb.data.dataset_toml import write_description
from churn_nb.data.datasets import load_events
from churn_nb.data.encoding import event_key, key_text
from churn_nb.data.schema_inference import DescribeOptions, infer_description as describe
from churn_nb.feature_store.event_log import event_batches, write_base
from churn_nb.ops.event_worker import log_events, parse_event

slow = rules(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ids = st.integers(1, 10**6) | st.from_regex(r"[A-Z]{1,2}-[0-9]{1,4}", fullmatch=True)
cents = st.integers(0, 10**6).map(lambda n: n / 100)
lines = st.lists(st.tuples(st.integers(1, 9), cents, st.integers(0, 50)), min_size=1, max_size=4) # pieces, price, minutes later
orders = st.dictionaries(ids, st.tuples(st.integers(1, 5), st.integers(0, 300), lines), min_size=3, max_size=8)

def table(orders, by_line=False):
    "Every line of every order; its own id, or the order's."
    rows = []
    for order, (customer, day, its) in orders.items():
        at = pd.Timestamp("2025-01-01") + pd.Timedelta(days=day)
        for k, (pieces, price, later) in enumerate(its):
            row = {"order_id": order, "sku": f"S{k}", "customer_id": customer, "order_date": at + pd.Timedelta(minutes=later), "quantity": pieces, "unit_price": price}
            rows.append({"line_id": f"{order}-{k}", **row} if by_line else row)
    return pd.DataFrame(rows)

def transactions(orders):
    "What the lines mean, computed apart: key -> customer, earliest time, pieces, amount."
    out = {}
    for order, (customer, day, its) in orders.items():
        at = pd.Timestamp("2025-01-01", tz="UTC") + pd.Timedelta(days=day, minutes=min(later for *_, later in its))
        out[event_key(key_text(order))] = (customer, at, sum(n for n, *_ in its), round(sum(round(n*price, 2) for n, price, _ in its), 2))
    return out

def opened(home, df, **how):
    "A workspace with the log of a file, and its description."
    df.to_csv(home/"log.csv", index=False)
    d = describe(home/"log.csv", DescribeOptions(kind="events", **how))
    write_description(d, home/"log.toml")
    s = load_settings({"data.dataset": str(home/"log.toml"), "paths.workspace": home/"work", "features.serve_as_of": "now"}, environ={})
    Workspace(s.paths.workspace).open()
    write_base(s, events := load_events(s))
    return s, d, events

def read(events): return {i: (c, t, q, a) for i, c, t, q, a in events[["event_id", "customer_id", "event_timestamp", "quantity", "amount"]].itertuples(index=False)}

def sent(orders):
    "The orders as a shop sends them, one event each."
    return [{"event_id": order, "customer_id": c, "event_timestamp": t.isoformat(), "amount": a, "quantity": q} for order, (c, t, q, a) in zip(orders, transactions(orders).values())]

@slow
@given(orders, st.randoms(use_true_random=False), st.booleans())
def test_shuffled_and_doubled_lines_are_the_same_transactions(tmp_path_factory, orders, random, by_line):
    clean = table(orders, by_line)
    rows = [*range(len(clean)), *random.choices(range(len(clean)), k=random.randint(0, 9))]
    random.shuffle(rows)
    s, d, events = opened(tmp_path_factory.mktemp("log"), clean.iloc[rows])
    assert read(events) == transactions(orders) and len(events) == len(orders)
    assert any(f.rule == "duplicates" for f in d.findings) == (len(rows) > len(clean)) and d.role("order") == "order_id"
    again = sent(orders)
    random.shuffle(again)
    cut = random.randint(0, len(again))
    for piece in (again[:cut], again[cut:], again[:1]):
        assert log_events(s, [parse_event(e) for e in piece]) == ["known"]*len(piece)
    assert not event_batches(s).files()

@slow
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 300), cents), min_size=2, max_size=8), st.integers(1, 9))
def test_an_event_pushed_to_a_log_without_ids_is_new(tmp_path_factory, bought, number):
    df = pd.DataFrame([(c, f"2025-01-01 {d // 60:02}:{d % 60:02}:00", a) for c, d, a in bought], columns=["customer_id", "at", "amount"])
    s, _, events = opened(tmp_path_factory.mktemp("log"), df)
    assert len(events) == len(df) and events.event_id.is_unique
    e = {"event_id": number, "customer_id": bought[0][0], "event_timestamp": "2025-01-01T00:00:30", "amount": 5}
    assert log_events(s, [parse_event(e)]*2) == ["new", "known"]
