"The clock of the data: every moment in UTC, and a finished log's clock that only moves forward."
import datetime as dt

import pytest

from churn_nb.core.clock import advance_clock, current_time, utc
from churn_nb.core.errors import ClockError

@pytest.mark.parametrize("given,want", [("1998-07-01", "1998-07-01T00:00:00+00:00"), ("1998-07-01T02:00:00+02:00", "1998-07-01T00:00:00+00:00"),
    (dt.date(1998, 7, 1), "1998-07-01T00:00:00+00:00"), (dt.datetime(1998, 7, 1, 1), "1998-07-01T01:00:00+00:00"), ("19980701T010203.5Z", "1998-07-01T01:02:03.500000+00:00")])
def test_a_moment_is_in_utc(given, want): assert utc(given).isoformat() == want

@pytest.mark.parametrize("given", ["", "soon", "1998-13-01", "1998-07-01T25:00", "01.07.1998"])
def test_what_is_not_a_time_is_refused_in_one_line(given):
    with pytest.raises(ClockError) as e: utc(given)
    assert repr(given) in str(e.value) and "\n" not in str(e.value)

def test_the_clock_only_moves_forward(tmp_path, configured):
    s = configured(tmp_path)
    assert current_time(s) == utc("1998-07-01")
    for t in ("1998-07-01", "1998-07-02T12:00:00Z", "1998-07-02T12:00:00.000001Z"): assert advance_clock(s, t) == current_time(configured(tmp_path)) == utc(t)
    for t in ("1998-07-02T12:00:00Z", "1998-06-30", "1998-07-02"):
        with pytest.raises(ClockError, match="1998-07-02T12:00:00Z"): advance_clock(s, t)
    assert current_time(s) == utc("1998-07-02T12:00:00.000001Z")
    assert current_time(configured(tmp_path, features__serve_as_of="1999-01-01")) == utc("1999-01-01") # the settings' start lies after the clock
    living = configured(tmp_path, features__serve_as_of="now")
    assert abs((current_time(living) - dt.datetime.now(dt.UTC)).total_seconds()) < 10
    with pytest.raises(ClockError, match="wall clock"): advance_clock(living, "2999-01-01")
