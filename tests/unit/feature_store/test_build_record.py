"The record of a build: what reads the features of a workspace makes none, and refuses what differs from the record."
import datetime as dt
import io
import json
import os
import shutil

import pandas as pd
import pytest

from churn_nb import features as f
from churn_nb.cli.features import materialize_command, push_command
from churn_nb.cli.registry import promote_command
from churn_nb.core.clock import advance_clock
from churn_nb.core.errors import ChurnError, DataError
from churn_nb.core.settings import load_settings
from churn_nb.data.datasets import file_md5
from churn_nb.feature_store.build_record import build_began, built_dates, changes_since_build, require_built, would_be_same_rows
from churn_nb.feature_store.sources import source_of
from churn_nb.ops.event_worker import answer_batches
from churn_nb.ops.monitor import monitor
from churn_nb.ops.store_checks import check_features, check_stores
from churn_nb.serving.event_endpoint import encode_frame
from paths import ROOT

CUSTOMERS = 60

def made_with(ws, **over):
    given = {"paths.workspace": str(ws), "paths.data": str(ROOT/"data"), **{k.replace("__", "."): v for k, v in over.items()}}
    return load_settings(given, environ={})

@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("built")/"ws"
    f.build(made_with(root), CUSTOMERS)
    return root

@pytest.fixture
def ws(built, tmp_path): return shutil.copytree(built, tmp_path/"ws")

def stores(ws):
    "Every file of offline store, online store and record, with its bytes."
    return {p.relative_to(ws): p.read_bytes() for p in sorted((ws/"feast").rglob("*")) if p.is_file() and p.suffix != ".lock"}

READERS = {
    "training_rows": f.training_rows, "latest_rows": f.latest_rows, "require_built": require_built, "feature_names": f.feature_names,
    "doctor: features": check_features, "doctor: stores": check_stores, "changes": changes_since_build, "drift": monitor,
    "promote": lambda s: promote_command(workspace=str(s.paths.workspace))}

@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_reader_leaves_the_stores_as_they_are(ws, read):
    before = stores(ws)
    try: read(made_with(ws))
    except ChurnError as e: assert "features" not in str(e) # no champion, no challenger
    assert stores(ws) == before

def a_customer(ws): return int(f.latest_rows(made_with(ws)).customer_id[0])

def asked(ws, customer=None, **over):
    "One batch of one event, as the API's process gets it; what it answers."
    event = {"event_id": 10**7, "customer_id": customer or a_customer(ws), "event_timestamp": "1998-06-15", "amount": 1}
    out, sent = [], io.BytesIO(encode_frame(json.dumps([event]).encode()))
    answer_batches(sent.read, out.append, made_with(ws, **over))
    return json.loads(out[0][8:])

DIFFER = {
    "customers": ({}, 7, f"customers = {CUSTOMERS}, not 7"), "all customers": ({}, 0, f"customers = {CUSTOMERS}, not 0"),
    "windows": ({"features__windows_hours": "24, 48"}, -1, "windows_hours = 24, 168, 720, 2160, not 24, 48"), "ttl": ({"features__ttl_days": 3}, -1, "ttl_days = 2, not 3"),
    "label": ({"features__label_days": 60}, -1, "label_days = 90, not 60"), "test date": ({"features__test_as_of": "1998-03-31", "features__label_days": 60}, -1, "test_as_of = 1998-04-01, not 1998-03-31"),
    "training dates": ({"features__train_as_of": "1997-04-01"}, -1, "train_as_of = 1997-04-01, 1997-05-01"), "present": ({"features__serve_as_of": "1998-07-02"}, -1, "serve_as_of = 1998-07-01, not 1998-07-02"),
    "data set": ({"data__dataset": "telecom"}, -1, "dataset = cdnow, not telecom")}

@pytest.mark.parametrize("over, customers, says", DIFFER.values(), ids=DIFFER)
@pytest.mark.parametrize("read", [f.training_rows, f.latest_rows, require_built])
def test_what_differs_is_refused_with_both_values(ws, over, customers, says, read):
    before = stores(ws)
    with pytest.raises(DataError) as e: read(made_with(ws, **over), customers)
    assert says in str(e.value) and "`churn step 00_features" in str(e.value) and "\n" not in str(e.value)
    assert stores(ws) == before

@pytest.mark.parametrize("over", [{"features__memory_limit": "1GB"}, {"features__new_customers": "accept"}, {"train__seed": 5}, {"stores__online": "redis://127.0.0.1:1"}])
def test_what_changes_no_row_is_not_compared(ws, over):
    assert require_built(made_with(ws, **over)) == CUSTOMERS

REFUSED = {
    "push": lambda ws: push_command(ws/"none.csv", str(ws)), "materialize": lambda ws: materialize_command(workspace=str(ws)),
    "promote": lambda ws: promote_command(workspace=str(ws)), "doctor": lambda ws: check_features(load_settings({"paths.workspace": str(ws)}))}

@pytest.mark.parametrize("command", REFUSED.values(), ids=REFUSED)
def test_a_command_refuses_other_windows(ws, command, monkeypatch):
    monkeypatch.setenv("CHURN_FEATURES_WINDOWS_HOURS", "24, 48")
    before = stores(ws)
    with pytest.raises(DataError, match="windows_hours = 24, 168, 720, 2160, not 24, 48"): command(ws)
    assert stores(ws) == before

@pytest.mark.parametrize("command", REFUSED.values(), ids=REFUSED)
def test_a_command_makes_no_features_where_there_are_none(tmp_path, command):
    if command is REFUSED["doctor"]: return # an empty workspace is healthy
    with pytest.raises(DataError, match="no features in .*; make them with `churn step 00_features`"): command(tmp_path)
    assert not (tmp_path/"feast").exists() or not stores(tmp_path)

def test_an_event_puts_no_other_windows_online(ws):
    before = stores(ws)
    (outcome, why) = asked(ws, features__windows_hours="24, 48")
    assert outcome == ["new"] and "DataError" in why
    assert stores(ws) == before

def test_pushed_events_and_a_moved_clock_are_said(ws, caplog):
    s = made_with(ws)
    rows = f.training_rows(s)
    assert not caplog.messages
    assert asked(ws)[0] == ["new"]
    advance_clock(s, "1998-07-03")
    pd.testing.assert_frame_equal(f.training_rows(s), rows)
    assert len(caplog.messages) == 1 and "the data have changed and the clock moved from 1998-07-01" in caplog.messages[0]

def test_changed_data_are_said(ws, tmp_path):
    (data := tmp_path/"data").mkdir()
    (data/"cdnow.csv").write_text((ROOT/"data/cdnow.csv").read_text() + "69660,1,1998-06-30,1,1.00\n")
    (data/"cdnow.csv.dvc").write_text(f"outs:\n- md5: {file_md5(data/'cdnow.csv')}\n  path: cdnow.csv\n")
    assert "the data have changed; the rows of then are read" in changes_since_build(made_with(ws, paths__data=str(data)))

def test_a_record_of_an_earlier_release_is_read(ws):
    "It knew no data set, and the kinds of stores."
    record = json.loads((ws/"feast/made_from.json").read_text())
    record.pop("dataset")
    record |= {"stores": {"online": "sqlite", "offline": "duckdb"}, "memory_limit": "4GB", "new_customers": "refuse"}
    (ws/"feast/made_from.json").write_text(json.dumps(record))
    assert require_built(made_with(ws)) == CUSTOMERS and changes_since_build(made_with(ws)) == ""

def test_an_edited_description_is_refused(tmp_path):
    rows = pd.DataFrame({"id": range(300), "spend": [i % 7 for i in range(300)], "plan": ["ab"[i % 2] for i in range(300)], "churn": [i % 3 == 0 for i in range(300)]})
    rows.to_csv(tmp_path/"customers.csv", index=False)
    toml = tmp_path/"dataset.toml"
    toml.write_text('name = "own_customers"\nkind = "snapshot"\nfile = "customers.csv"\nentity = "id"\nlabel = "churn"\npositive = "True"\n[columns.plan]\nuse = "category"\n')
    s = made_with(tmp_path/"ws", data__dataset=str(toml))
    f.build(s)
    assert require_built(s) == 0 and source_of(s).names() == ["spend", "plan"]
    assert require_built(made_with(tmp_path/"ws", data__dataset=str(toml), features__windows_hours="24")) == 0, "a table has no windows"
    toml.write_text(toml.read_text().replace('use = "category"', 'use = "drop"'))
    with pytest.raises(DataError, match="description columns.plan.use = category, not drop"): require_built(s)

REFUSED_FILES = {"ids twice": (lambda rows: rows.assign(id=7), "7"), "too few who churn": (lambda rows: rows.assign(churn=rows.id < 6), "bring more rows")}

@pytest.mark.parametrize("spoil, says", REFUSED_FILES.values(), ids=REFUSED_FILES)
def test_a_refused_file_leaves_the_build_before(tmp_path, spoil, says):
    rows = pd.DataFrame({"id": range(300), "spend": [i % 7 for i in range(300)], "churn": [i % 3 == 0 for i in range(300)]})
    rows.to_csv(tmp_path/"customers.csv", index=False)
    (toml := tmp_path/"dataset.toml").write_text('name = "own_customers"\nkind = "snapshot"\nfile = "customers.csv"\nentity = "id"\nlabel = "churn"\npositive = "True"\n')
    s = made_with(tmp_path/"ws", data__dataset=str(toml))
    f.build(s)
    before = f.training_rows(s)
    spoil(rows).to_csv(tmp_path/"customers.csv", index=False)
    files = stores(tmp_path/"ws")
    with pytest.raises(DataError, match=says): f.build(s)
    assert stores(tmp_path/"ws") == files
    pd.testing.assert_frame_equal(f.training_rows(s), before)
    assert build_began(s) and require_built(s) == 0

def test_a_label_window_that_does_not_fit_leaves_the_build_before(ws):
    before = stores(ws)
    with pytest.raises(DataError, match="choose an earlier date"): f.build(made_with(ws, features__test_as_of="1998-05-01"), CUSTOMERS)
    assert stores(ws) == before and require_built(made_with(ws)) == CUSTOMERS

def test_an_event_meets_an_interrupted_build(ws):
    "It is logged; the half written store is left as it is."
    customer = a_customer(ws)
    os.replace(ws/"feast/made_from.json", ws/"feast/made_from.before.json") # as a killed build leaves it
    before = stores(ws)
    (outcome, why) = asked(ws, customer)
    assert outcome == ["new"] and "DataError" in why
    assert stores(ws) == before

def test_dates_that_follow_the_present_are_fixed_by_the_build(tmp_path):
    "The clock moves on between the steps of a run; they use the dates of the build. Another rule, or dates that are given, are refused."
    rule = {"features__train_dates": 2, "features__serve_as_of": "end"}
    s = made_with(tmp_path/"ws", **rule)
    made, rows = f.build(s, CUSTOMERS), f.training_rows(s)
    assert made["as_of"] == {"train": ["1997-09-04", "1997-10-04"], "validation": ["1998-01-02"], "test": ["1998-04-02"]} and not made["missing_dates"]
    assert would_be_same_rows(s) and changes_since_build(s) == ""
    advance_clock(s, "1998-09-01")
    assert built_dates(s)["test"] == [dt.date(1998, 4, 2)] and require_built(s) == CUSTOMERS and "the clock moved from 1998-07-01" in changes_since_build(s)
    assert would_be_same_rows(s), "no label is known later than the log ends"
    assert f.build(s, CUSTOMERS)["as_of"] == made["as_of"]
    pd.testing.assert_frame_equal(f.training_rows(s), rows)
    for other, says in ({"features__train_dates": 3}, "train_dates = 2, not 3"), ({"features__step_days": 14, "features__train_dates": 2}, "step_days = 30, not 14"):
        with pytest.raises(DataError, match=says): require_built(made_with(tmp_path/"ws", **rule | other))
    with pytest.raises(DataError, match="train_as_of = by the rule, not 1997-04-01"): require_built(made_with(tmp_path/"ws", features__serve_as_of="end"))

def test_another_day_or_another_event_makes_other_rows(tmp_path):
    "Known before a build, where the present is a date that moves."
    rule = {"features__train_dates": 2, "features__serve_as_of": "1998-06-01"}
    s = made_with(tmp_path/"ws", **rule)
    assert f.build(s, CUSTOMERS)["as_of"]["test"] == ["1998-03-03"] and would_be_same_rows(s)
    advance_clock(s, "1998-06-01T23:00:00")
    assert would_be_same_rows(s), "the day is not over"
    advance_clock(s, "1998-06-02")
    assert not would_be_same_rows(s) and f.build(s, CUSTOMERS)["as_of"]["test"] == ["1998-03-04"] and would_be_same_rows(s)
    assert not would_be_same_rows(made_with(tmp_path/"ws", **rule | {"features__label_days": 60}))

def test_a_log_that_is_too_short_for_its_rule_leaves_the_build_before(ws):
    before = stores(ws)
    with pytest.raises(DataError, match="a horizon of 200 days needs 700"): f.build(made_with(ws, features__train_dates=2, features__label_days=200), CUSTOMERS)
    assert stores(ws) == before and require_built(made_with(ws)) == CUSTOMERS
