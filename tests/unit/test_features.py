"Features: point-in-time SQL against a loop in plain Python, planted leaks, and a store that answers the same for history and for now."
import datetime as dt
import json
import math
import shutil
import subprocess
import sys
from decimal import Decimal

import filelock
import numpy as np
import pandas as pd
import pytest
from online_store import bits
from hypothesis import given
from hypothesis import settings as hyp
from hypothesis import strategies as st

from churn_nb import features as f
from churn_nb.feature_store import event_source
from churn_nb.core.errors import DataError
from churn_nb.core.manifest import Store
from churn_nb.data.datasets import load_events
from churn_nb.core.storage import ParquetLog, connection
from churn_nb.core.settings import load_settings
from churn_nb.core.workspace import Workspace
from churn_nb.feature_store.online import STORED_FACTS, REQUEST_TIME_FEATURES, FeastOnline, request_time
from churn_nb.core.clock import utc
from paths import PYTHON, ROOT, SUPPORT

UTC, WINDOWS = dt.UTC, [24, 168, 720, 2160]
AS_OF = [dt.datetime(1997, 4, 1, tzinfo=UTC), dt.datetime(1997, 4, 2, 12, 30, 1, tzinfo=UTC), dt.datetime(1998, 3, 1, tzinfo=UTC)]
quick = lambda n: hyp(max_examples=n, deadline=None, derandomize=True)
N = 300 # customers of the small store

def configured(ws, **over): return load_settings({"paths.workspace": str(ws), "paths.data": str(ROOT/"data"), **{k.replace("__", "."): v for k, v in over.items()}}, environ={})

# Brute force. An event: customer, event_timestamp, created_timestamp, cents
edges = st.builds(lambda a, h, s: a - dt.timedelta(hours=h, seconds=s), st.sampled_from(AS_OF), st.sampled_from([0, 0, *WINDOWS]), st.sampled_from([-1, 0, 0, 1]))
anywhere = st.integers(-500*86400, 100*86400).map(lambda s: AS_OF[-1] + dt.timedelta(seconds=s))
same_days = st.integers(-40, 40).map(lambda d: AS_OF[0] + dt.timedelta(days=d))
when = st.one_of(edges, same_days, anywhere)
late = st.sampled_from([dt.timedelta(0)]*4 + [dt.timedelta(seconds=1), dt.timedelta(days=1), dt.timedelta(days=400)])
created = st.one_of(late, st.sampled_from(AS_OF))
cents = st.one_of(st.just(0), st.integers(1, 999_999), st.just(33))
events = st.lists(st.tuples(st.integers(0, 3), when, created, cents).map(lambda e: (e[0], e[1], e[1] + e[2] if isinstance(e[2], dt.timedelta) else max(e[1], e[2]), e[3])), min_size=1, max_size=25)

def table(log):
    df = pd.DataFrame(log, columns=["customer_id", "event_timestamp", "created_timestamp", "cents"])
    for c in ("event_timestamp", "created_timestamp"): df[c] = pd.to_datetime(df[c], utc=True)
    return df.assign(amount=df.pop("cents")/100)

def brute_row(log, customer, a, windows):
    "One customer as of `a`, as {feature: float}, or None where nothing was known of them."
    known = [(t, Decimal(usd)/100) for c, t, made, usd in log if c == customer and t < a and made <= a]
    if not known: return None
    last = {f.window_name(h): [usd for t, usd in known if t >= a - dt.timedelta(hours=h)] for h in windows}
    times = sorted({t for t, _ in known})
    recency, tenure = ((a - t).total_seconds()/86400 for t in (times[-1], times[0]))
    gap = (tenure - recency)/(len(times) - 1) if len(times) > 1 else math.nan
    return ({f"transactions_{w}": len(v) for w, v in last.items()} | {f"spend_{w}": float(sum(v)) for w, v in last.items()} |
            {"transactions_total": len(known), "spend_total": float(sum(usd for _, usd in known)), "recency_days": recency, "tenure_days": tenure, "mean_gap_days": gap, "gap_ratio": recency/gap})

def brute(log, as_of, windows=WINDOWS):
    rows = [{"customer_id": c, "event_timestamp": a, **r} for a in sorted(as_of) for c in sorted({e[0] for e in log}) if (r := brute_row(log, c, a, windows))]
    return {(r.pop("customer_id"), r.pop("event_timestamp")): {k: np.float32(v) for k, v in r.items()} for r in rows}

def as_dict(df):
    names = [c for c in df.columns if c not in ("customer_id", "event_timestamp", "created_timestamp")]
    return {(c, t.to_pydatetime()): dict(zip(names, row)) for c, t, row in zip(df.customer_id, df.event_timestamp, df[names].to_numpy())}

def same(got, want): # nan equals nan, and nothing else does
    assert got.keys() == want.keys()
    for key in want: np.testing.assert_equal({k: float(v) for k, v in got[key].items()}, {k: float(v) for k, v in want[key].items()}, err_msg=str(key))

@quick(120)
@given(events, st.lists(st.sampled_from(AS_OF), min_size=1, max_size=3, unique=True), st.sampled_from([WINDOWS, [1], [48, 6]]))
def test_features_equal_the_loop_to_the_last_bit(log, as_of, windows):
    got = f.point_in_time(table(log), as_of, windows)
    same(as_dict(got), brute(log, as_of, windows))
    assert (got.dtypes.iloc[3:] == "float32").all() and got.event_timestamp.equals(got.created_timestamp)
    assert [*zip(got.event_timestamp, got.customer_id)] == sorted(zip(got.event_timestamp, got.customer_id))

@quick(30)
@given(events, events)
def test_what_comes_later_never_moves_a_feature(log, more):
    a = AS_OF[1]
    planted = [e for e in more if e[1] >= a or e[2] > a]
    leaky = [*log, *planted, *((c, t, a + dt.timedelta(seconds=1), usd + 1) for c, t, _, usd in log), *((c, a, a, usd) for c, *_, usd in log)]
    pd.testing.assert_frame_equal(f.point_in_time(table(log), [a], WINDOWS), f.point_in_time(table(leaky), [a], WINDOWS))

leaks = st.tuples(st.sampled_from(["future", "late", "again"]), st.integers(0, 24), st.integers(0, 3), anywhere, st.sampled_from([0, 1, 3600, 86400, 400*86400]), cents)

@quick(50)
@given(events, st.lists(leaks, min_size=1, max_size=15), st.randoms(use_true_random=False))
def test_planted_leaks_never_move_a_feature(log, leaks, random):
    "Future events, events that became known too late, and second deliveries with any content, at random places of a log with ids."
    second, a = dt.timedelta(seconds=1), AS_OF[1]
    rows = [(*e, i) for i, e in enumerate(log)]
    for n, (kind, of, c, t, after, usd) in enumerate(leaks):
        source, after = rows[of % len(log)], dt.timedelta(seconds=after)
        rows.append({"future": (c, a + after, a + after, usd, 100 + n), "late": (c, min(t, a - second), a + second + after, usd, 100 + n),
                     "again": (c, t, source[2] + second + after, usd, source[4])}[kind])
    random.shuffle(rows)
    ids = lambda rows: table([r[:4] for r in rows]).assign(event_id=[r[4] for r in rows])
    pd.testing.assert_frame_equal(f.point_in_time(ids(rows), [a], WINDOWS), f.point_in_time(table(log), [a], WINDOWS))

@quick(30)
@given(events, st.randoms(use_true_random=False))
def test_row_order_and_index_do_not_matter(log, random):
    mixed = random.sample(log, len(log))
    for make in (lambda df: f.point_in_time(df, AS_OF, WINDOWS), lambda df: f.labels(df, [AS_OF[0] - dt.timedelta(days=700)], 1)):
        pd.testing.assert_frame_equal(make(table(log)), make(table(mixed).set_index(pd.Index(range(len(log), 0, -1)))))

def test_a_moment_asked_twice_is_answered_once():
    log = [(1, AS_OF[0] - dt.timedelta(days=d), AS_OF[0] - dt.timedelta(days=d), 500) for d in (3, 10)]
    same(as_dict(f.point_in_time(table(log), [AS_OF[0]]*2, WINDOWS)), brute(log, AS_OF[:1]))

def test_sums_of_money_are_exact():
    "In cents; as floats these six sum to a hair over 5,000,000.25, which lies between two float32."
    a = AS_OF[0]
    log = [(1, a - dt.timedelta(hours=1), a - dt.timedelta(hours=1), c) for c in (113744289, 77550307, 47415656, 61623618, 122105252, 77560903)]
    assert f.point_in_time(table(log), [a], WINDOWS).spend_24h.tolist() == [5_000_000] and sum(c/100 for *_, c in log) > 5_000_000.25

IN_LOS_ANGELES = '''
import datetime as dt, test_features as t # there, summer time begins on 1997-04-06
log = [(1, t.AS_OF[0] - dt.timedelta(seconds=s), t.AS_OF[0], 100) for s in (1, 86400, 86401)] + [(1, t.AS_OF[0] + dt.timedelta(days=90, seconds=-1), t.AS_OF[0], 100)]
got = t.f.point_in_time(t.table(log), [dt.date(1997, 4, 1)], [24])
t.same(t.as_dict(got), t.brute(log, t.AS_OF[:1], [24]))
assert str(got.event_timestamp.dt.tz) == "UTC" and t.f.labels(t.table(log), [dt.date(1997, 4, 1)], 90).churn.tolist() == [0]
'''
def test_a_date_means_midnight_utc_in_any_time_zone():
    subprocess.run([sys.executable, "-c", IN_LOS_ANGELES], check=True, env={"TZ": "America/Los_Angeles", "PATH": "", "PYTHONPATH": f"{ROOT}:{ROOT/'tests/unit'}:{SUPPORT}"})

@quick(60)
@given(events, st.integers(1, 120))
def test_labels_equal_the_loop(log, days):
    width, end = dt.timedelta(days=days), max(e[1] for e in log).replace(hour=0, minute=0, second=0) + dt.timedelta(days=1)
    as_of = [a for a in (*AS_OF, end - width, *(e[1] - width for e in log[:4])) if a + width <= end] # some windows end at an event
    for a in AS_OF:
        if a + width > end:
            with pytest.raises(DataError, match=f"{a:%F}.*log ends {end:%F}"): f.labels(table(log), [a], days)
    times = {c: [t for cc, t, *_ in log if cc == c] for c in {e[0] for e in log}}
    want = [(c, a, int(not any(a <= t < a + width for t in times[c]))) for a in sorted(set(as_of)) for c in sorted(times) if min(times[c]) < a]
    got = f.labels(table(log), sorted(set(as_of)), days)
    assert [*zip(got.customer_id, got.event_timestamp, got.churn)] == want

# Splits

@pytest.mark.parametrize("over, says", [
    ({"features__validation_as_of": "1997-12-29"}, "train as-of date 1997-10-01 are known on 1997-12-30, after validation starts on 1997-12-29"),
    ({"features__test_as_of": "1998-03-31"}, "validation as-of date 1998-01-01 are known on 1998-04-01, after test starts on 1998-03-31"),
    ({"features__label_days": 93}, "train as-of date 1997-10-01"), ({"features__label_days": 91}, "validation as-of date 1998-01-01"),
    ({"features__train_as_of": "1997-10-04, 1997-04-01"}, "train as-of date 1997-10-04"), ({"features__test_as_of": "1997-01-01"}, "after test starts on 1997-01-01")])
def test_overlapping_label_windows_are_refused(tmp_path, over, says):
    with pytest.raises(DataError) as e: f.split_dates(configured(tmp_path, **over))
    assert says in str(e.value) and "[features]" in str(e.value) and "\n" not in str(e.value)

def test_adjoining_label_windows_are_not():
    assert [len(v) for v in f.split_dates(configured("x", features__validation_as_of="1997-12-30", features__test_as_of="1998-03-30")).values()] == [7, 1, 1]
    assert f.split_dates(configured("x", features__train_as_of="1997-09-01, 1997-05-01"))["train"] == [dt.date(1997, 5, 1), dt.date(1997, 9, 1)]

# The store

@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A built workspace; its settings, and the event log it was built from."
    s = configured(tmp_path_factory.mktemp("built")/"ws")
    f.build(s, N)
    return s, f.training_rows(s), load_events(s, N)

def copy_of(small, to, **over):
    "The small store, in a folder that a test may spoil."
    shutil.copytree(small[0].paths.workspace, to/"ws")
    return configured(to/"ws", **over)

def test_history_equals_the_direct_values(small):
    s, rows, log = small
    names, splits = f.feature_names(s), f.split_dates(s)
    direct = f.point_in_time(log, [d for dates in splits.values() for d in dates], s.features.windows_hours)
    want = pd.concat([f.labels(log, dates, 90).assign(split=n) for n, dates in splits.items()]).merge(direct.drop(columns="created_timestamp"), on=["customer_id", "event_timestamp"])
    got = rows.sort_values(["event_timestamp", "customer_id"], ignore_index=True)
    want["event_timestamp"] = want.event_timestamp.astype(got.event_timestamp.dtype)
    pd.testing.assert_frame_equal(got, want[got.columns], check_exact=True)
    assert (bits(got, names) == bits(want, names)).all() and len(got) > 2000
    few = log[log.customer_id.isin(log.customer_id.unique()[:40])] # and equals the loop, on real purchases
    real = [*zip(few.customer_id, *(map(pd.Timestamp.to_pydatetime, few[c]) for c in ("event_timestamp", "created_timestamp")), (few.amount*100).round().astype(int).tolist())]
    same(as_dict(got[(got.split == "test") & got.customer_id.isin(few.customer_id)][["customer_id", "event_timestamp", *names]]), brute(real, [dt.datetime(1998, 4, 1, tzinfo=UTC)]))

def test_online_equals_history_at_serve_as_of(small):
    s, _, log = small
    latest = f.latest_rows(s, N)
    assert len(latest) == log.customer_id.nunique() and (latest.event_timestamp == pd.Timestamp(s.features.serve_as_of, tz="UTC")).all()
    store = f.apply_store(s)
    online = f.online(store, [*latest.customer_id, 10**9], s)
    names = f.feature_names(s)
    assert (bits(online.iloc[:-1], names) == bits(latest, names)).all() and [*online.columns] == names
    assert online.index[-1] == 10**9 and online.iloc[-1].isna().all()
    asked = f.historical_features(store, latest[["customer_id", "event_timestamp"]], s)
    assert (bits(asked.sort_values("customer_id"), names) == bits(latest.sort_values("customer_id"), names)).all()

def stored(s, a):
    "The rows of the offline store as of one moment."
    return pd.read_parquet(f.offline_folder(s)/f"as-of-{a:%Y%m%dT%H%M%S}.parquet")

def test_a_value_written_later_is_not_used_for_the_past(small, tmp_path):
    s = copy_of(small, tmp_path)
    last = stored(s, dt.date(1998, 7, 1))
    at, written = last.event_timestamp.max(), last.created_timestamp.max() + pd.Timedelta(days=3)
    ParquetLog(f.offline_folder(s)).append(last.assign(spend_total=np.float32(-999), created_timestamp=written))
    store = f.apply_store(s)
    ask = lambda t: f.historical_features(store, last[["customer_id"]].assign(event_timestamp=t), s).spend_total
    assert ask(at).tolist() == last.spend_total.tolist() == ask(written - pd.Timedelta(seconds=1)).tolist()
    assert (ask(written) == -999).all() # from then on it may be
    for file in f.offline_folder(s).glob("as-of-*.parquet"): file.unlink()
    assert ask(written - pd.Timedelta(seconds=1)).isna().all() and (ask(written) == -999).all()

def test_feasts_history_is_not_moved_by_planted_rows(small, tmp_path):
    "Rows of the future, rows that became known too late, and rows that are there twice, in the folder that Feast joins."
    s, rng = copy_of(small, tmp_path), np.random.default_rng(7)
    asked = small[1].sample(700, random_state=7)[["customer_id", "event_timestamp", "churn"]] # of all splits
    clean = f.historical_features(store := f.apply_store(s), asked, s)
    pd.testing.assert_frame_equal(clean, small[1].merge(asked, on=[*asked]).sort_values(["event_timestamp", "customer_id"], ignore_index=True)[clean.columns])
    moments, folder = sorted(asked.event_timestamp.unique()), ParquetLog(f.offline_folder(s))
    names = [*f.expiring_features(s), *f.LIFETIME]
    for a, b in zip(moments, [*moments[1:], pd.Timestamp("2000-01-01", tz="UTC")]):
        rows = stored(s, a)
        spoilt = lambda df: df.assign(**{n: np.float32(-7) for n in names}, **{n: -7 for n in STORED_FACTS})
        seconds = lambda most, rows=rows: pd.to_timedelta(rng.integers(1, most, len(rows)), unit="s")
        after = spoilt(rows).assign(event_timestamp=rows.event_timestamp + seconds((b - a)//pd.Timedelta(seconds=1)))
        folder.append(after.assign(created_timestamp=after.event_timestamp.where(rng.random(len(rows)) < .5, rows.created_timestamp)).sample(frac=.6, random_state=1))
        late = spoilt(rows).assign(created_timestamp=rows.created_timestamp + seconds(400*86400)) # the very moment, or shortly before
        folder.append(late.assign(event_timestamp=late.event_timestamp - seconds(86400).where(rng.random(len(rows)) < .5, pd.Timedelta(0))))
        folder.append(rows.sample(frac=.5, random_state=2))
        folder.append(rows.sample(frac=.5, random_state=3))
    # what was planted after one moment was known before the next: there, the row of that very moment wins
    pd.testing.assert_frame_equal(f.historical_features(store, asked, s), clean, check_exact=True)
    assert (f.historical_features(store, asked.assign(event_timestamp=pd.Timestamp("2000-01-01", tz="UTC")).drop_duplicates("customer_id"), s).spend_total == -7).any()

def test_old_windows_are_missing_and_nothing_else(small):
    s, _, log = small
    store, last = f.apply_store(s), f.latest_rows(s, N).sort_values("customer_id")
    ask = lambda after: f.historical_features(store, last[["customer_id"]].assign(event_timestamp=last.event_timestamp + after), s)
    ttl, second = pd.Timedelta(days=s.features.ttl_days), pd.Timedelta(seconds=1)
    assert (bits(ask(ttl), f.expiring_features(s)) == bits(last, f.expiring_features(s))).all()
    for after in (ttl + second, pd.Timedelta(days=1000)):
        got = ask(after)
        assert got[f.expiring_features(s)].isna().all(axis=None) and len(got) == len(last)
        want = f.point_in_time(log, [got.event_timestamp[0].to_pydatetime()], s.features.windows_hours)
        keep = [*f.LIFETIME, *REQUEST_TIME_FEATURES]
        assert (bits(got, keep) == bits(want.sort_values("customer_id"), keep)).all() and got[f.LIFETIME].notna().all(axis=None)

def test_request_time_features_are_equal_in_all_places(small):
    "On-demand view, function and SQL at random moments, to the microsecond, for customers who did not buy since the stored row."
    s, _, log = small
    store, rng, parts, names = f.apply_store(s), np.random.default_rng(3), [], ["customer_id", "event_timestamp"]
    dates = [utc(d) for d in [*s.features.train_as_of, s.features.validation_as_of, s.features.test_as_of, s.features.serve_as_of]]
    for a, b in [*zip(dates[-4:], dates[-3:]), (dates[-1], utc("2003-01-01"))]:
        bought = log[(log.event_timestamp >= a) & (log.event_timestamp < b)].customer_id
        rows = (rows := stored(s, a))[~rows.customer_id.isin(bought)].iloc[:25]
        moments = [a + dt.timedelta(microseconds=int(us)) for us in rng.integers(0, int((b - a).total_seconds()*1e6), 4)]
        parts += [rows.assign(event_timestamp=pd.Timestamp(t)) for t in moments]
    rows = pd.concat(parts).sort_values(names[::-1], ignore_index=True)
    direct = rows[names].merge(f.point_in_time(log, sorted(rows.event_timestamp.unique()), s.features.windows_hours), on=names)
    made = pd.DataFrame(request_time(*(rows[n] for n in STORED_FACTS), [t.timestamp() for t in rows.event_timestamp]))
    asked = f.historical_features(store, rows[names], s)
    assert (bits(direct, REQUEST_TIME_FEATURES) == bits(made)).all() and (bits(asked, REQUEST_TIME_FEATURES) == bits(made)).all() and len(made) == 400
    assert made.recency_days.nunique() > 100 and made.gap_ratio.isna().any() and made.gap_ratio.notna().any()

def test_feasts_join_equals_a_bare_asof_join(small, tmp_path):
    "The same rows, also of what was pushed since and with both kinds of rows in the folder."
    s = copy_of(small, tmp_path)
    store, ids = f.apply_store(s), f.latest_rows(small[0], N).customer_id.tolist()
    assert f.refresh(s, store, ids[:50]) == 50 and f.refresh(s, store, ids[:20]) == 20
    assert len(ParquetLog(f.offline_folder(s)).files()) == 2
    asked = pd.concat([small[1][["customer_id", "event_timestamp"]].sample(500, random_state=1),
                       pd.DataFrame({"customer_id": ids[:60], "event_timestamp": pd.Timestamp("1998-07-01 06:00", tz="UTC")})])
    names = [*f.expiring_features(s), *f.LIFETIME]
    bare = connection().execute(f"""SELECT asked.customer_id, asked.event_timestamp, {", ".join(names)} FROM asked
        ASOF JOIN '{f.offline_folder(s)}/*.parquet' AS h ON asked.customer_id = h.customer_id AND asked.event_timestamp >= h.event_timestamp""").df()
    bare = bare.sort_values(["event_timestamp", "customer_id"], ignore_index=True)
    got = f.historical_features(store, asked, s)
    assert got.customer_id.tolist() == bare.customer_id.tolist() and got.transactions_total.notna().all()
    pd.testing.assert_frame_equal(got[names], bare[names], check_exact=True)
    assert f.online(store, ids[:60], s).notna().any(axis=1).all()

def test_a_step_keeps_the_customers_of_the_workspace(small, tmp_path):
    "What a step is not told it must not decide anew: `papermill nbs/02_promote.ipynb` on a workspace of all customers would keep 2,000 of them."
    s = copy_of(small, tmp_path)
    for lesson in (True, False): assert [f.customers_to_use(s, n, lesson) for n in (0, 7, 2000)] == [0, 7, 2000]
    assert f.customers_to_use(s, -1, lesson=True) == 2000 and f.customers_to_use(s, -1, lesson=False) == N
    assert f.customers_to_use(configured(tmp_path/"new"), -1, lesson=False) == 0, "all, as in a run"

def test_a_build_is_recorded_under_the_data_it_read(small, tmp_path):
    "A run that trains on these rows later names this hash, whatever was pushed since."
    from churn_nb.feature_store.build_record import built_hash
    from churn_nb.feature_store.event_log import event_batches, log_hash
    s = copy_of(small, tmp_path)
    before = built_hash(s)
    event_batches(s).append(small[2].tail(1).assign(event_id=9_000_001, batch=1))
    assert before == built_hash(s) != log_hash(s)

def test_a_pushed_event_is_in_the_next_rows(small, tmp_path):
    "It moves a label whose window it lies in, and no feature of before."
    from churn_nb.ops.event_worker import push_rows
    s, (_, rows, _) = copy_of(small, tmp_path), small
    gone = rows[(rows.split == "test") & (rows.churn == 1)].customer_id.iloc[0]
    event = {"event_id": 9_000_001, "customer_id": int(gone), "event_timestamp": "1998-06-15T10:00:00Z", "amount": 12.5}
    assert push_rows(s, lambda: f.apply_store(s), [event]) == (["new"], "")
    pd.testing.assert_frame_equal(f.training_rows(s), rows) # nobody builds but the build
    f.build(s, N)
    again = f.training_rows(s)
    moved = again.churn != rows.churn
    assert moved.sum() == 1 and again[moved].customer_id.tolist() == [gone] and again[moved].split.tolist() == ["test"] and again[moved].churn.tolist() == [0]
    pd.testing.assert_frame_equal(again.drop(columns="churn"), rows.drop(columns="churn"), check_exact=True)
    now = f.online(f.apply_store(s), [gone], s).iloc[0]
    assert now.transactions_total == rows[(rows.customer_id == gone) & (rows.split == "test")].transactions_total.iloc[0] + 1 and now.transactions_30d == 1
    assert f.latest_rows(s, N).set_index("customer_id").loc[gone, "transactions_30d"] == 1

def test_the_online_store_answers_while_it_is_filled_again(small, tmp_path, monkeypatch):
    import feast
    from feast.infra.online_stores import sqlite
    s, real, seen = copy_of(small, tmp_path), sqlite.SqliteOnlineStore.online_write_batch, []
    def look(*a, **k): # an API that starts, or refreshes its registry, in the middle of a build
        seen.append(f.online(feast.FeatureStore(repo_path=str(tmp_path/"ws/feast")), [int(small[1].customer_id[0])], s).transactions_total)
        return real(*a, **k)
    monkeypatch.setattr(sqlite.SqliteOnlineStore, "online_write_batch", look)
    f.build(s, N)
    assert seen and not any(row.isna().any() for row in seen)

def test_a_living_clock_is_compared_without_windows(tmp_path, monkeypatch):
    "Build, online and parity by the wall clock; a day later the stored windows are old, which is no fault, and a spoilt total is one."
    from feast.data_source import PushMode

    from churn_nb.ops.event_worker import push_rows
    s, now = configured(tmp_path/"ws", features__serve_as_of="now"), dt.datetime.now(UTC)
    f.build(s, 60)
    assert f.training_rows(s, 60).split.value_counts().to_dict() == {"train": 420, "validation": 60, "test": 60}
    latest, store = f.latest_rows(s, 60), f.apply_store(s)
    assert len(latest) == 60 and (latest.event_timestamp > now).all() and f.parity(s, store) == (60, [], 0)
    c = int(latest.customer_id[7])
    assert push_rows(s, store, [{"event_id": 10**7, "customer_id": c, "event_timestamp": now.isoformat(), "amount": 5.}]) == (["new"], "")
    assert f.parity(s, store) == (60, [], 0)
    monkeypatch.setattr(event_source, "current_time", lambda s: now + dt.timedelta(hours=25))
    seen = f.online(store, [c], s).iloc[0]
    assert seen.transactions_24h == 1 and seen.recency_days == np.float32(25/24)
    assert f.parity(s, store) == f.parity(s, f.open_store(s)) == (60, [], 0)
    row = pd.read_parquet(max(f.offline_folder(s).glob("as-of-*.parquet"))).iloc[[9]]
    store.push("customer_push", row.assign(spend_total=row.spend_total + 1), to=PushMode.ONLINE)
    assert f.parity(s, store) == (60, [int(row.customer_id.iloc[0])], 0)

def test_a_build_holds_the_lock_of_the_log(tmp_path, monkeypatch):
    "While the log is read and the notes beside the features are changed, nobody adds to it."
    s, real, seen = configured(tmp_path/"ws"), event_source.write_windows, []
    def look(*a):
        with pytest.raises(filelock.Timeout): filelock.FileLock(Workspace(s.paths.workspace).events/".lock").acquire(timeout=0)
        seen.append(1)
        return real(*a)
    monkeypatch.setattr(event_source, "write_windows", look)
    f.build(s, 60)
    assert seen and "tracking_uri" not in (Workspace(s.paths.workspace).feast/"made_from.json").read_text()

KILLED = '''
import contextlib, json, os, signal, sys
import feast.infra.online_stores.sqlite as sqlite, churn_nb.features as f
from churn_nb.feature_store import event_source
from churn_nb.core.settings import load_settings
def die_at(owner, name, nth, after):
    "Make the nth call of owner.name end the process: before it does anything, or right after."
    real, calls = getattr(owner, name), []
    def dying(*a, **k):
        calls.append(1)
        if len(calls) == nth and not after: os.kill(os.getpid(), signal.SIGKILL)
        out = real(*a, **k)
        if len(calls) == nth: os.kill(os.getpid(), signal.SIGKILL)
        return out
    setattr(owner, name, dying)
owners = {"module": event_source, "source": event_source.EventLogSource, "os": os, "online": sqlite.SqliteOnlineStore}
for over, (owner, *moment), n in json.loads(sys.argv[1]):
    if (pid := os.fork()) == 0:
        die_at(owners[owner], *moment)
        with contextlib.redirect_stderr(None): f.build(load_settings(over, environ={}), n)
        os._exit(0)
    print(os.waitpid(pid, 0)[1])
'''
MOMENTS = [("module", "write_windows", 1, False), ("os", "replace", 2, True), ("os", "replace", 6, False), ("os", "replace", 6, True), ("source", "apply_store", 1, True),
           ("module", "write_parquet", 1, False), ("module", "write_parquet", 1, True), ("online", "online_write_batch", 1, False),
           ("online", "online_write_batch", 1, True), ("source", "materialize", 1, True)]

@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    "Workspaces with an older build (60 customers), each left by a build of N that died at one of MOMENTS."
    root = tmp_path_factory.mktemp("killed")
    f.build(configured(root/"old"), 60)
    for i in range(len(MOMENTS)): shutil.copytree(root/"old", root/f"{i}")
    todo = [({"paths.workspace": str(root/f"{i}"), "paths.data": str(ROOT/"data")}, moment, N) for i, moment in enumerate(MOMENTS)]
    r = subprocess.run([PYTHON, "-c", KILLED, json.dumps(todo)], capture_output=True, text=True, cwd=ROOT)
    assert r.stdout.split() == ["9"]*len(MOMENTS), r.stderr # each one died by SIGKILL
    return root

@pytest.mark.parametrize("i", range(len(MOMENTS)), ids=["-".join(map(str, m[1:3])) + ("-after" if m[3] else "-before") for m in MOMENTS])
def test_a_build_that_was_killed_is_made_again(small, killed, i):
    s = configured(killed/f"{i}")
    assert not (Workspace(s.paths.workspace).feast/"made_from.json").exists() # neither build is taken for whole
    with pytest.raises(DataError, match="no features in .*; make them with `churn step 00_features`"): f.training_rows(s)
    f.build(s, N)
    pd.testing.assert_frame_equal(f.training_rows(s), small[1])
    latest = f.latest_rows(s, N)
    assert (bits(f.online(f.apply_store(s), latest.customer_id.tolist(), s)) == bits(latest, f.feature_names(s))).all()

# A workspace of an earlier release

@pytest.fixture
def earlier(tmp_path, configured):
    "The feature store of 40 customers as commit fd9a54d, whose modules had other names, wrote it."
    (tmp_path/"ws").mkdir()
    subprocess.run(["tar", "-xzf", SUPPORT/"workspaces"/"fd9a54d.tgz", "-C", tmp_path/"ws"], check=True) # tarfile's filter is not in every Python 3.11
    return configured(tmp_path/"ws")

def test_an_earlier_store_is_refused_in_one_sentence(earlier):
    with pytest.raises(DataError, match="feature_store.yaml: configured by an earlier release .*churn materialize") as e: f.open_store(earlier)
    assert "\n" not in str(e.value)

def test_materialize_brings_an_earlier_store_up_to_date(earlier):
    f.materialize(earlier, f.apply_store(earlier), keep=False)
    assert f.parity(earlier, f.open_store(earlier)) == (40, [], 0)

def test_the_api_reads_an_earlier_store(earlier):
    names, ids = f.feature_names(earlier), sorted(set(pd.read_parquet(Workspace(earlier.paths.workspace).base).customer_id))
    before = FeastOnline(earlier).read(Store(entity="customer_id", feature_service="churn_v1_stored"), names, ids)
    f.materialize(earlier, f.apply_store(earlier), keep=False)
    assert None not in before and before == FeastOnline(earlier).read(Store(entity="customer_id", feature_service="churn_v1_stored"), names, ids)
