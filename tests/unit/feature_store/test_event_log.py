"The event log of a workspace: the data set and the batches that were pushed since."
import duckdb
import pandas as pd

from churn_nb.core.storage import compact
from churn_nb.data.datasets import load_events
from churn_nb.feature_store.event_log import event_batches, load_log, log_hash

def event(i, **kw):
    at = pd.Timestamp("1998-06-01T10:00:00", tz="UTC")
    e = {"event_id": i, "customer_id": 3, "event_timestamp": at, "quantity": 2, "amount": 20.5, "created_timestamp": at, "batch": 1} | kw
    return pd.DataFrame([e]).astype({"event_timestamp": "datetime64[us, UTC]", "created_timestamp": "datetime64[us, UTC]", "quantity": "int32"})

def test_load_log_is_the_data_set_and_what_was_pushed(tmp_path, configured):
    s = configured(tmp_path)
    base, few = load_events(s), load_events(s, 40)
    pd.testing.assert_frame_equal(load_log(s), base)
    pd.testing.assert_frame_equal(load_log(s, 40), few)
    for i, c in enumerate((int(few.customer_id[0]), int(base.customer_id[0]), 10**12)): event_batches(s).append(event(10**6 + i, customer_id=c))
    both = load_log(s)
    pd.testing.assert_frame_equal(both.iloc[:len(base)], base)
    assert both.dtypes.equals(base.dtypes) and both.event_id.tolist()[-3:] == [10**6, 10**6 + 1, 10**6 + 2] and both.amount.tolist()[-3:] == [20.5]*3
    assert set(load_log(s, 40).event_id) - set(few.event_id) >= {10**6} and 10**6 + 2 in set(both.event_id)
    event_batches(s).append(pd.concat([event(2*10**6 + i, customer_id=10**9 + i) for i in range(1000)])) # new customers make no other sample of the old ones
    assert {c for c in load_log(s, 40).customer_id if c < 10**9} == set(few.customer_id)

def test_the_hash_names_the_events_not_the_files(tmp_path, configured):
    one, two = configured(tmp_path/"one"), configured(tmp_path/"two")
    assert (base := log_hash(one)) == log_hash(two) and base.startswith("md5:")
    for i in (1, 2, 3): event_batches(one).append(event(i))
    for i in (3, 1, 2): event_batches(two).append(event(i, batch=i))
    assert log_hash(one) == log_hash(two) != base
    compact(event_batches(one))
    assert log_hash(one) == log_hash(two)
    seen = {base, log_hash(one)}
    for kw in ({"amount": 20.51}, {"customer_id": 4}, {"quantity": 3}, {"event_timestamp": pd.Timestamp("1998-06-01T10:00:01", tz="UTC")}, {}):
        seen.add(log_hash(configured_with(configured, tmp_path/f"{len(seen)}", kw)))
    assert len(seen) == 7

def configured_with(configured, ws, kw):
    s = configured(ws)
    event_batches(s).append(event(4, **kw))
    return s

def test_a_pushed_batch_has_one_schema(tmp_path, configured):
    s = configured(tmp_path)
    for i in range(3): event_batches(s).append(event(i))
    kinds = lambda: duckdb.execute("SELECT DISTINCT name, type FROM parquet_schema(?) ORDER BY ALL", [event_batches(s).files()]).fetchall()
    before = kinds()
    compact(event_batches(s))
    assert kinds() == before
