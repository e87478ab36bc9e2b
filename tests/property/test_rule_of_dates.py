"As-of dates that follow the present, for any log and any present: no label reaches past what is known, splits never overlap, time only moves them on, and no time zone moves them."
import os
import time
from datetime import UTC, date, datetime, timedelta

import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings as how, strategies as st

from churn_nb.core.clock import advance_clock, current_time
from churn_nb.core.errors import DataError
from churn_nb.core.settings import load_settings
from churn_nb.core.workspace import temporary_workspace
from churn_nb.feature_store.split_planning import fix_dates, missing_dates, split_dates

DAY = timedelta(days=1)
FIRST = pd.Timestamp("2021-03-05", tz="UTC")
LOG = st.fixed_dictionaries({"span": st.integers(40, 1500), "L": st.integers(1, 200), "dates": st.integers(1, 12), "step": st.integers(1, 120)})

def living(L, dates, step, present, root="nowhere"):
    given = {"label_days": L, "train_dates": dates, "step_days": step, "serve_as_of": present}
    return load_settings({"paths.workspace": str(root)} | {f"features.{k}": v for k, v in given.items()}, environ={})

def ends_of(span): return FIRST.normalize() + span*DAY
def day(t): return str(t.date())
def fixed(log, present="end", span=None, first=FIRST, root="nowhere"):
    "The settings with their dates; None where the log is too short."
    try: return fix_dates(living(log["L"], log["dates"], log["step"], present, root), first, ends_of(span or log["span"]))
    except DataError as e:
        assert "\n" not in str(e) and "the log covers" in str(e)

@how(max_examples=400, deadline=None)
@given(LOG, st.integers(-400, 400))
def test_no_label_window_reaches_past_what_is_known_and_splits_never_overlap(log, ahead):
    "The present is a date, up to a year before the log's end or after it."
    L, known = log["L"]*DAY, ends_of(log["span"]) + min(ahead, 0)*DAY
    s = fixed(log, day(ends_of(log["span"]) + ahead*DAY))
    if s is None:
        assert (known - FIRST).days < 3*log["L"] + max(log["L"]//2, 7)
        return
    splits = split_dates(s)
    train, validation, test = splits.values()
    assert test == [(known - L).date()] and validation == [(known - 2*L).date()] and train[-1] == (known - 3*L).date()
    assert all(d + L <= known.date() for part in splits.values() for d in part)
    assert train[-1] + L <= validation[0] and validation[0] + L <= test[0]
    assert {b - a for a, b in zip(train, train[1:])} <= {log["step"]*DAY} and train[0] >= (FIRST + max(log["L"]//2, 7)*DAY).date()
    one_more = (FIRST + max(log["L"]//2, 7)*DAY).date() <= train[0] - log["step"]*DAY
    assert len(train) == log["dates"] or not one_more, "as many as the log reaches back to"

@how(max_examples=200, deadline=None)
@given(LOG, st.integers(1, 90))
def test_a_later_present_moves_every_date_by_as_much_and_loses_none(log, later):
    before, after = fixed(log), fixed(log, span=log["span"] + later)
    assume(before is not None)
    a, b = split_dates(before), split_dates(after)
    assert (b["test"][0] - a["test"][0], b["validation"][0] - a["validation"][0]) == (later*DAY, later*DAY)
    assert [y - x for x, y in zip(reversed(a["train"]), reversed(b["train"]))] == [later*DAY]*len(a["train"]) and len(b["train"]) >= len(a["train"])
    assert after.features.serve_as_of - before.features.serve_as_of == later*DAY

@how(max_examples=100, deadline=None)
@given(LOG)
def test_fewer_dates_than_asked_are_said(log):
    s = fixed(log)
    assume(s is not None)
    said, n = missing_dates(living(log["L"], log["dates"], log["step"], "end"), s, FIRST), len(s.features.train_as_of)
    assert bool(said) == (n < log["dates"]) and (not said or said.startswith(f"{n} of {log['dates']} training dates: the log begins on 2021-03-05"))

def test_a_wall_clock_stops_where_the_log_does(tmp_path):
    "What was not loaded yet is no silence of the customers; and the day that is not over has no labels."
    log = {"L": 30, "dates": 3, "step": 10}
    ended = fix_dates(living(**log, present="now"), FIRST, ends_of(400))
    assert split_dates(ended)["test"] == [(ends_of(400) - 30*DAY).date()]
    today = datetime.now(UTC).date()
    goes_on = fix_dates(living(**log, present="now"), pd.Timestamp(today, tz="UTC") - 400*DAY, pd.Timestamp(today, tz="UTC") + DAY)
    assert split_dates(goes_on)["test"][0] in (today - 30*DAY, datetime.now(UTC).date() - 30*DAY) and goes_on.features.serve_as_of == "now"

@pytest.fixture
def zones():
    "Sets the time zone of the process, and puts it back."
    before = os.environ.get("TZ")
    def go(zone):
        os.environ["TZ"] = zone
        time.tzset()
    yield go
    os.environ.pop("TZ")
    if before is not None: os.environ["TZ"] = before
    time.tzset()

@how(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LOG, st.sampled_from(["end", "2024-03-31", "2021-10-31"]), st.integers(0, 86_399))
def test_every_time_zone_has_the_same_dates(zones, log, present, second):
    "Also where the log begins in an hour that a zone lacks."
    found = []
    for zone in ("UTC", "Pacific/Kiritimati", "America/Los_Angeles", "Europe/Berlin", "Asia/Kathmandu"):
        zones(zone)
        s = fixed(log, present, first=FIRST + timedelta(seconds=second))
        found.append(s and (split_dates(s), str(s.features.serve_as_of)))
    assert all(f == found[0] for f in found)

def test_the_present_of_a_growing_log_never_goes_back(tmp_path):
    "A shorter file has earlier dates, for its labels are known no later; what was served stays served."
    log = {"L": 30, "dates": 3, "step": 10, "span": 400}
    s = living(30, 3, 10, "end", tmp_path)
    advance_clock(s, ends_of(400))
    assert current_time(s) == current_time(s, ends_of(300)) == ends_of(400) and current_time(s, ends_of(401)) == ends_of(401)
    shorter = fixed(log, span=300, root=tmp_path)
    assert split_dates(shorter)["test"] == [(ends_of(300) - 30*DAY).date()] and shorter.features.serve_as_of == ends_of(400).date()

def test_dates_that_are_given_stay(tmp_path):
    s = load_settings({"paths.workspace": temporary_workspace(), "features.serve_as_of": "end"}, environ={})
    assert split_dates(fix_dates(s, FIRST, ends_of(2000))) == split_dates(s) and split_dates(s)["test"] == [date(1998, 4, 1)]
