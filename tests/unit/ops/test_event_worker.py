"Events that void others: what is taken, what is refused, and that a retry changes nothing."
import json

import msgspec
import pandas as pd
import pyarrow.parquet as pq
import pytest

from churn_nb.core.clock import advance_clock, current_time, utc
from churn_nb.core.storage import compact
from churn_nb.core.workspace import Workspace
from churn_nb.data.encoding import event_key
from churn_nb.feature_store.event_log import customers_of, event_batches, load_log, log_hash, log_sql, voidings, write_base
from churn_nb.core.storage import connection
from churn_nb.ops.event_worker import log_events, parse_event, read_event_rows, stale_customers

BIG = "an order of 2^53 and more keys" # its key is a hash, which a float would round

def buy(i, c=3, at="1998-06-30T10:00:00", **kw): return {"event_id": i, "customer_id": c, "event_timestamp": at, "amount": 20.5, **kw}
def void(i, what, c=3, at="1998-06-30T12:00:00", **kw): return {"event_id": i, "customer_id": c, "event_timestamp": at, "voids": what, **kw}

@pytest.fixture
def s(tmp_path, configured):
    s = configured(tmp_path/"ws", features__serve_as_of="1998-07-01")
    Workspace(s.paths.workspace).open()
    at = pd.to_datetime(["1998-01-05", "1998-02-05", "1998-02-06"], utc=True).astype("datetime64[us, UTC]")
    write_base(s, pd.DataFrame({"event_id": [1, 2, 5], "customer_id": [3, 3, 4], "event_timestamp": at, "quantity": 1, "amount": 5., "created_timestamp": at}))
    return s

@pytest.fixture
def growing(s, configured):
    "The same log, with its end for the present."
    s = configured(s.paths.workspace, features__serve_as_of="end")
    advance_clock(s, "1998-02-07")
    return s

def push(s, *rows): return log_events(s, [parse_event(r) for r in rows])
def counting(s, as_of=None): return sorted(i for (i,) in connection().execute(f"SELECT event_id FROM {log_sql(s, as_of)}").fetchall())

def test_the_log_leaves_a_voided_event_out_from_then_on(s):
    assert push(s, buy(10), void("V", 10), void("W", 2), buy(BIG, 4), void("X", BIG, 4)) == ["new"]*5
    assert counting(s) == [1, 5] and counting(s, utc("1998-06-30")) == sorted([1, 2, 5, 10, event_key(BIG)]) # known at the clock's moment
    assert stale_customers(s) == [3, 4] and customers_of(s) == [3, 4]
    assert len(voidings(s)) == 3 and voidings(s, utc("1998-06-30")).empty
    compact(event_batches(s))
    assert counting(s) == [1, 5]

def test_a_voiding_sent_again_is_known(s):
    first = [buy(10), void("V", 10)]
    assert push(s, *first) == ["new", "new"]
    before = log_hash(s)
    assert push(s, *first[::-1]) == ["known", "known"] and log_hash(s) == before
    advance_clock(s, "1998-07-03")
    assert push(s, *first, buy(11, at="1998-07-02")) == ["known", "known", "new"] and counting(s) == [1, 2, 5, 11]

REFUSED = {
    "unknown event": (void("V2", 999), "voids", "no event 999 in the log, nor sent with this one"),
    "another customer's": (void("V2", 5), "voids", "event 5 is of another customer"),
    "voided already": (void("V2", 10), "voids", "event 10 is voided already"),
    "other content": (void("V", 1), "event_id", "V is logged with other content"),
    "a voiding": (void("V2", "V"), "voids", "event V voids one itself"),
    "earlier than what it voids": (void("V2", 1, at="1998-01-04"), "event_timestamp", "lies before the time of event 1"),
    "itself": (void("V2", "V2"), "voids", "no event V2"),
    "in the future": (void("V2", 1, at="1998-07-02"), "event_timestamp", "future"),
    "unknown customer": (void("V2", 1, c=9), "customer_id", "no customer 9"),
    "a voided one with other content": (buy(10, amount=1), "event_id", "other content")}

@pytest.mark.parametrize("row, field, says", REFUSED.values(), ids=REFUSED)
def test_a_voiding_that_cannot_be_is_refused(s, row, field, says):
    assert push(s, buy(10), void("V", 10)) == ["new", "new"]
    before, (said,) = log_hash(s), push(s, row)
    assert said["field"] == field and says in said["message"] and "\n" not in said["message"]
    assert log_hash(s) == before

@pytest.mark.parametrize("change, field", [({"amount": 1}, "amount"), ({"quantity": 0}, "quantity"), ({"voids": ""}, "voids"), ({"voids": True}, "voids"), ({"voids": -1}, "voids")])
def test_a_voiding_has_no_amount(change, field):
    row = void("V", 10) | change
    assert parse_event(row)["field"] == parse_event(msgspec.Raw(json.dumps(row).encode()))["field"] == field
    assert parse_event({k: v for k, v in buy(1).items() if k != "amount"} | {"voids": None}) == {"field": "amount", "message": "missing"}

@pytest.mark.parametrize("name", ["event_id", "customer_id", "event_timestamp", "amount"])
def test_a_field_that_stands_twice_is_refused(name):
    row = json.dumps(buy(10))
    twice = row[:-1] + f", {json.dumps(name)}: {json.dumps(buy(10)[name])}}}"
    assert "event_id" in parse_event(msgspec.Raw(row.encode())) and parse_event(msgspec.Raw(twice.encode())) == {"field": name, "message": "stands twice"}

@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_file_voids_in_its_column(s, tmp_path, kind):
    df, file = pd.DataFrame([buy("A-1"), void("A-2", "A-1"), buy("A-3")]), tmp_path/f"events.{kind}"
    if kind == "csv": df.to_csv(file, index=False)
    elif kind == "jsonl": file.write_text("".join(json.dumps(r) + "\n" for r in (buy("A-1"), void("A-2", "A-1"), buy("A-3"))))
    else: df.to_parquet(file, index=False)
    assert push(s, *read_event_rows(file)) == ["new"]*3
    assert counting(s) == sorted([1, 2, 5, event_key("A-3")])

def test_batches_without_the_column_stay_readable_with_their_hash(s):
    push(s, buy(10), buy(11))
    (file,) = event_batches(s).files()
    new = log_hash(s)
    pq.write_table(pq.read_table(file).drop_columns("voids"), file)
    assert log_hash(s) == new and counting(s) == [1, 2, 5, 10, 11]
    assert push(s, void("V", 10), void("W", 1)) == ["new", "new"] and counting(s) == [2, 5, 11] and log_hash(s) != new
    compact(event_batches(s))
    assert counting(s) == [2, 5, 11] and push(s, buy(10)) == ["known"]

def test_the_table_of_the_log_is_without_the_voided(tmp_path, configured):
    s = configured(tmp_path/"ws")
    Workspace(s.paths.workspace).open()
    whole = load_log(s)
    write_base(s, whole)
    e = whole.iloc[100]
    assert push(s, void("V", int(e.event_id), int(e.customer_id), "1998-06-30T12:00:00")) == ["new"]
    pd.testing.assert_frame_equal(load_log(s), whole.drop(index=100).reset_index(drop=True))
    pd.testing.assert_frame_equal(load_log(s, as_of=utc("1998-06-01")), whole)
    assert push(s, buy(10**7, int(e.customer_id))) == ["new"] and load_log(s).event_id.iloc[-1] == 10**7 and load_log(s).dtypes.equals(whole.dtypes)
    assert {*whole.event_id} == {*counting(s, utc("1998-06-01"))} - {10**7}

def created(s): return {i: str(t) for i, t in connection().execute(f"SELECT event_id, CAST(created_timestamp AS TIMESTAMP) FROM read_parquet({event_batches(s).files()})").fetchall()}

def test_pushed_purchases_move_the_clock_of_a_log_whose_end_is_the_present(growing):
    "Each is known when it happened, as in a file; one that comes late is known at the clock's moment."
    s = growing
    assert push(s, buy(10, at="1998-03-01T23:59:59Z"), buy(11, at="1998-02-20T08:00:00+02:00"), buy(12, at="1998-01-06T10:00:00")) == ["new"]*3
    assert current_time(s) == utc("1998-03-02")
    assert created(s) == {10: "1998-03-01 23:59:59", 11: "1998-02-20 06:00:00", 12: "1998-02-07 00:00:00"}
    assert counting(s, utc("1998-03-02")) == [1, 2, 5, 10, 11, 12]
    assert push(s, buy(13, at="1998-02-25T10:00:00")) == ["new"] and current_time(s) == utc("1998-03-02") and created(s)[13] == "1998-03-02 00:00:00"

def test_the_clock_of_such_a_log_stops_at_the_wall_clock_and_follows_no_voiding(growing):
    s, year = growing, pd.Timestamp.now("UTC").year + 2
    assert push(s, buy(10, at=f"{year}-01-01T00:00:00"))[0]["message"].startswith("lies in the future")
    assert push(s, buy(11, at="1998-02-08T10:00:00"), void("V", 11, at="1998-05-01T00:00:00")) == ["new"]*2
    assert current_time(s) == utc("1998-02-09") and counting(s) == [1, 2, 5]

def test_a_store_without_a_clock_takes_events_too(s, configured):
    s = configured(s.paths.workspace, features__serve_as_of="end")
    assert push(s, buy(10, at="1998-03-01T10:00:00")) == ["new"] and current_time(s) == utc("1998-03-02")
