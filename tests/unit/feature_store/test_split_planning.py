"`churn_nb.feature_store.split_planning`: what `plan` chooses is what `split_dates` and `labels` accept, for any log; a log that won't do is told why."
from datetime import date, timedelta
import numpy as np, pandas as pd, pytest
from hypothesis import HealthCheck, given, settings as how, strategies as st
from churn_nb.core.errors import DataError
from churn_nb.data.datasets import load_events
from churn_nb.features import labels, split_dates
from churn_nb.core.storage import write_parquet
from churn_nb.core.settings import load_settings
from churn_nb.feature_store.split_planning import dates_for, fix_dates, plan, read_horizon, step_for, windows_for

DAY = timedelta(days=1)

def settings_of(features): return load_settings({f"features.{k}": v for k, v in features.items()}, environ={})
def of_plan(p, events):
    "The settings of a plan, with the dates that follow from it."
    first, last = (t.normalize() for t in (events.event_timestamp.min(), events.event_timestamp.max()))
    return fix_dates(settings_of(p.features), first, last + pd.Timedelta(days=1))
def written(events, path):
    "As `describe.prepare` writes a log: times without a zone, in UTC."
    write_parquet(events.assign(event_timestamp=events.event_timestamp.dt.tz_localize(None)), path)
    return path
def shop(days, customers, gap, seed=0, start="2024-03-01"):
    "Customers who come at any time, buy about every `gap` days, and leave at some time or never."
    rng, rows = np.random.default_rng(seed), []
    for c in range(customers):
        t, end = rng.uniform(0, days*.8), rng.uniform(0, days*1.6)
        while t < min(end, days): rows.append((c, t)); t += rng.exponential(gap)
    df = pd.DataFrame(rows, columns=["customer_id", "t"])
    return df.assign(event_timestamp=pd.Timestamp(start, tz="UTC") + pd.to_timedelta(df.t, unit="D").dt.floor("s"), amount=1.).drop(columns="t")

@pytest.mark.parametrize("text, days", [("60d", 60), ("8w", 56), ("2m", 60), (45, 45), ("45", 45), (" 7 D ", 7), ("90 days", 90), ("1 month", 30), ("1y", 365), ("3 weeks", 21)])
def test_horizons(text, days): assert read_horizon(text) == days

@pytest.mark.parametrize("text", ["", "soon", "0", "0d", -5, "-5d", "1.5m", "60x", "99999d", "d", None, "6 0d", "5 minutes", "2 dw"])
def test_nonsense_horizons_are_one_line(text):
    with pytest.raises(DataError, match="such as 60d") as e: read_horizon(text)
    assert "\n" not in str(e.value)

@how(max_examples=300, deadline=None)
@given(st.dates(date(1971, 1, 1), date(2035, 1, 1)), st.integers(1, 2500), st.integers(1, 400))
def test_dates_leave_every_label_known_before_the_next_split(first, span, L):
    ends = first + span*DAY
    try: d = dates_for(first, ends, L)
    except DataError as e:
        assert f"{span} days" in str(e) and span < 3*L + max(L//2, 7) and "\n" not in str(e)
        return
    train = d["train_as_of"]
    assert 1 <= len(train) <= 7 and train == sorted(set(train))
    assert train[0] - first >= max(L//2, 7)*DAY
    assert train[-1] + L*DAY <= d["validation_as_of"] and d["validation_as_of"] + L*DAY <= d["test_as_of"] and d["test_as_of"] + L*DAY <= ends == d["serve_as_of"]
    w = windows_for((train[-1] - first).days)
    assert w and w == sorted(set(w)) and all(h % 24 == 0 and h/24 <= max((train[-1] - first).days, 7) for h in w)
    got = split_dates(settings_of({"windows_hours": w, "label_days": L, **{k: [str(x) for x in v] if isinstance(v, list) else str(v) for k, v in d.items()}}))
    assert got == {"train": train, "validation": [d["validation_as_of"]], "test": [d["test_as_of"]]}

@how(max_examples=300, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 400))
def test_the_step_is_round_where_seven_dates_fit_and_gives_as_many_as_any(span, L):
    first, ends = date(2020, 1, 1), date(2020, 1, 1) + span*DAY
    step, room = step_for(first, ends, L), span - 3*L - max(L//2, 7)
    assert step >= max(L//3, 7) and (step == max(L//3, 7) or step in (7, 14, 30, 60, 90, 180, 365) and 6*step <= room)
    if room >= 0: assert len(dates_for(first, ends, L)["train_as_of"]) == min(7, 1 + room//max(L//3, 7))

@how(max_examples=300, deadline=None)
@given(st.integers(1, 2500), st.integers(1, 400))
def test_the_suggested_horizon_is_accepted(span, L):
    import re
    try: dates_for(date(2020, 1, 1), date(2020, 1, 1) + span*DAY, L)
    except DataError as e:
        fits = re.search(r"(\d+) days would fit", str(e))
        if fits: dates_for(date(2020, 1, 1), date(2020, 1, 1) + span*DAY, int(fits[1])) # raises nothing

@how(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(20, 500), st.sampled_from([3., 12., 40.]), st.none()|st.integers(1, 120), st.integers(0, 5))
def test_what_plan_accepts_the_pipeline_accepts(tmp_path, days, gap, horizon, seed):
    events = shop(days, 300, gap, seed)
    try: p = plan(written(events, tmp_path/"log.parquet"), horizon)
    except DataError as e:
        assert "\n" not in str(e) and ("needs" in str(e) or "at least 20" in str(e))
        return
    s = of_plan(p, events)
    assert s.features.train_as_of == p.dates["train_as_of"] and s.features.test_as_of == p.dates["test_as_of"]
    if horizon: assert s.features.label_days == horizon
    for name, dates in split_dates(s).items():
        y = labels(events, dates, s.features.label_days)
        assert y.churn.sum() >= 20 and (y.churn == 0).sum() >= 20, name
        assert f"{y.churn.mean():.0%}" in " ".join(p.sentences), name # the share that is said is the share that is trained on
    assert str(s.features.serve_as_of) == str((events.event_timestamp.max().normalize() + pd.Timedelta(days=1)).date())

def test_some_logs_are_accepted_at_all(tmp_path):
    p = plan(written(shop(365, 300, 12.), tmp_path/"log.parquet"), 60)
    assert p.features["label_days"] == 60 and len(p.dates["train_as_of"]) >= 2

def test_cdnow_is_planned_as_it_was_by_hand(tmp_path, configured):
    s = configured(tmp_path)
    events = load_events(s)
    p = plan(written(events[["customer_id", "event_timestamp"]], tmp_path/"log.parquet"), 90)
    mine, hand = of_plan(p, events).features, s.features
    assert mine.serve_as_of == hand.serve_as_of and mine.label_days == hand.label_days
    for key in ("validation_as_of", "test_as_of"): assert abs((getattr(mine, key) - getattr(hand, key)).days) <= 1
    assert abs((max(mine.train_as_of) - max(hand.train_as_of)).days) <= 3 and len(mine.train_as_of) == len(hand.train_as_of)
    assert set(hand.windows_hours) <= set(mine.windows_hours)
    said = " ".join(p.sentences)
    for word in ("69,659", "23,570", "1997-01-01", "1998-06-30"): assert word in said

def test_too_short_and_too_few(tmp_path):
    short = written(shop(100, 300, 12.), tmp_path/"short.parquet")
    with pytest.raises(DataError, match=r"the log covers \d+ days .* a horizon of 60 days needs 210.* would fit"): plan(short, 60)
    with pytest.raises(DataError, match="^(train|validation|test), asked on .* at least 20 of each"): plan(written(shop(400, 15, 12.), tmp_path/"few.parquet"), 60)
    days = pd.date_range("2024-03-01", periods=400, freq="3D", tz="UTC")
    nobody_leaves = pd.DataFrame([(c, t, 1.) for c in range(100) for t in days], columns=["customer_id", "event_timestamp", "amount"])
    with pytest.raises(DataError, match="0 customers left and"): plan(written(nobody_leaves, tmp_path/"loyal.parquet"), 60)

@pytest.mark.parametrize("rows", [0, 1])
def test_hardly_any_log(tmp_path, rows):
    with pytest.raises(DataError): plan(written(shop(300, 20, 12.).head(rows), tmp_path/"log.parquet"), 30)
