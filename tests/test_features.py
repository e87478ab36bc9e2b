"Features: point-in-time SQL against a loop in plain Python, planted leaks, and a store that answers the same for history and for now."
import datetime as dt, json, math, shutil, subprocess, sys
from decimal import Decimal
from pathlib import Path
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings as hyp, strategies as st
from churn_nb import features as f
from churn_nb.data import DataError, load_events, md5
from churn_nb.settings import Workspace, load_settings

ROOT = Path(__file__).resolve().parents[1]
UTC, WINDOWS = dt.timezone.utc, [24, 168, 720, 2160]
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

@quick(50)
@given(events, events)
def test_what_comes_later_never_moves_a_feature(log, more):
    a = AS_OF[1]
    planted = [e for e in more if e[1] >= a or e[2] > a]
    leaky = [*log, *planted, *((c, t, a + dt.timedelta(seconds=1), usd + 1) for c, t, _, usd in log), *((c, a, a, usd) for c, *_, usd in log)]
    pd.testing.assert_frame_equal(f.point_in_time(table(log), [a], WINDOWS), f.point_in_time(table(leaky), [a], WINDOWS))

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
def test_a_date_means_its_midnight_in_utc_in_any_time_zone():
    subprocess.run([sys.executable, "-c", IN_LOS_ANGELES], check=True, env={"TZ": "America/Los_Angeles", "PATH": "", "PYTHONPATH": f"{ROOT}:{ROOT/'tests'}"})

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
    return s, f.training_rows(s, N), load_events(s, N)

def copy_of(small, to, **over):
    "The small store, in a folder that a test may spoil."
    shutil.copytree(small[0].paths.workspace, to/"ws")
    return configured(to/"ws", **over)

files = lambda s: {n: (Workspace(s.paths.workspace).feast/n).stat().st_mtime_ns for n in ("customer_windows.parquet", "training_rows.parquet", "made_from.json")}

def test_history_equals_the_direct_values(small):
    s, rows, log = small
    names, splits = f.feature_names(s), f.split_dates(s)
    direct = f.point_in_time(log, [d for dates in splits.values() for d in dates], s.features.windows_hours)
    want = pd.concat([f.labels(log, dates, 90).assign(split=n) for n, dates in splits.items()]).merge(direct.drop(columns="created_timestamp"), on=["customer_id", "event_timestamp"])
    got = rows.sort_values(["event_timestamp", "customer_id"], ignore_index=True)
    want["event_timestamp"] = want.event_timestamp.astype(got.event_timestamp.dtype)
    pd.testing.assert_frame_equal(got, want[got.columns]) # exact: float32 is compared bit by bit below
    assert (got[names].to_numpy().view("uint32") == want[names].to_numpy().view("uint32"))[~want[names].isna().to_numpy()].all() and len(got) > 2000
    few = log[log.customer_id.isin(log.customer_id.unique()[:40])] # and equals the loop, on real purchases
    real = [*zip(few.customer_id, *(map(pd.Timestamp.to_pydatetime, few[c]) for c in ("event_timestamp", "created_timestamp")), (few.amount*100).round().astype(int).tolist())]
    same(as_dict(got[(got.split == "test") & got.customer_id.isin(few.customer_id)][["customer_id", "event_timestamp", *names]]), brute(real, [dt.datetime(1998, 4, 1, tzinfo=UTC)]))

def test_online_equals_history_at_serve_as_of(small):
    s, _, log = small
    latest = f.latest_rows(s, N)
    assert len(latest) == log.customer_id.nunique() and (latest.event_timestamp == pd.Timestamp(s.features.serve_as_of, tz="UTC")).all()
    store = f.apply_store(s)
    online = f.online(store, [*latest.customer_id, 10**9])
    names = f.feature_names(s)
    np.testing.assert_array_equal(online[names].iloc[:-1].to_numpy("float32"), latest[names].to_numpy())
    assert online.index[-1] == 10**9 and online.iloc[-1].isna().all()
    asked = f.history(store, latest[["customer_id", "event_timestamp"]], s)
    np.testing.assert_array_equal(asked.sort_values("customer_id")[names].to_numpy(), latest.sort_values("customer_id")[names].to_numpy())

def test_a_value_written_later_is_not_used_for_the_past(small, tmp_path):
    s = copy_of(small, tmp_path)
    path = f.windows_file(Workspace(s.paths.workspace))
    df = pd.read_parquet(path)
    last = df[df.event_timestamp == df.event_timestamp.max()]
    written = last.created_timestamp.max() + pd.Timedelta(days=3)
    changed = last.assign(spend_total=np.float32(-999), created_timestamp=written)
    pd.concat([df, changed]).to_parquet(path, index=False)
    store = f.apply_store(s)
    ask = lambda t: f.history(store, last[["customer_id"]].assign(event_timestamp=t), s).spend_total
    at = last.event_timestamp.max()
    assert ask(at).tolist() == last.spend_total.tolist() and ask(written - pd.Timedelta(seconds=1)).tolist() == last.spend_total.tolist()
    assert (ask(written) == -999).any() # from then on it may be
    changed.to_parquet(path, index=False)
    assert ask(written - pd.Timedelta(seconds=1)).isna().all() and (ask(written) == -999).all()

def test_an_old_value_is_missing(small):
    s, _, _ = small
    store, last = f.apply_store(s), f.latest_rows(s, N)
    ask = lambda after: f.history(store, last[["customer_id"]].assign(event_timestamp=last.event_timestamp + after), s)[f.feature_names(s)]
    ttl = pd.Timedelta(days=s.features.ttl_days)
    np.testing.assert_array_equal(ask(ttl).to_numpy(), last[f.feature_names(s)].to_numpy())
    assert ask(ttl + pd.Timedelta(seconds=1)).isna().all(axis=None) and len(ask(ttl + pd.Timedelta(seconds=1))) == len(last)

def test_rows_are_built_again_only_where_something_changed(small, tmp_path):
    s = copy_of(small, tmp_path)
    before = files(s)
    pd.testing.assert_frame_equal(f.training_rows(s, N), small[1])
    f.latest_rows(s, N)
    assert files(s) == before
    fewer = f.training_rows(s, 60)
    assert 50 < fewer.customer_id.nunique() < 80 and all(files(s)[n] != t for n, t in before.items())
    before, other = files(s), configured(s.paths.workspace, features__label_days=60)
    assert f.training_rows(other, 60).churn.mean() > fewer.churn.mean() and all(files(s)[n] != t for n, t in before.items())
    (data := tmp_path/"data").mkdir()
    lines = (ROOT/"data/cdnow.csv").read_text().splitlines()
    (data/"cdnow.csv").write_text("\n".join([*lines, "69660,1,1998-06-30,1,1.00", ""])) # one purchase more
    (data/"cdnow.csv.dvc").write_text(f"outs:\n- md5: {md5(data/'cdnow.csv')}\n  path: cdnow.csv\n")
    before = files(s)
    f.training_rows(configured(s.paths.workspace, features__label_days=60, paths__data=str(data)), 60)
    assert all(files(s)[n] != t for n, t in before.items())

def test_the_online_store_answers_while_it_is_filled_again(small, tmp_path, monkeypatch):
    import feast, feast.infra.online_stores.sqlite as sqlite
    s, real, seen = copy_of(small, tmp_path), sqlite.SqliteOnlineStore.online_write_batch, []
    def look(*a, **k): # an API that starts, or refreshes its registry, in the middle of a build
        seen.append(f.online(feast.FeatureStore(repo_path=str(tmp_path/"ws/feast")), [int(small[1].customer_id[0])]).transactions_total)
        return real(*a, **k)
    monkeypatch.setattr(sqlite.SqliteOnlineStore, "online_write_batch", look)
    f.build(s, N)
    assert seen and not any(row.isna().any() for row in seen)

KILLED = '''
import contextlib, json, os, signal, sys
import feast.infra.online_stores.sqlite as sqlite, churn_nb.features as f, churn_nb.settings as settings
from churn_nb.settings import load_settings
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
owners = {"f": f, "os": os, "online": sqlite.SqliteOnlineStore}
for over, (owner, *moment), n in json.loads(sys.argv[1]):
    if (pid := os.fork()) == 0:
        die_at(owners[owner], *moment)
        with contextlib.redirect_stderr(None): f.build(load_settings(over, environ={}), n)
        os._exit(0)
    print(os.waitpid(pid, 0)[1])
'''
MOMENTS = [("f", "write_windows", 1, False), ("os", "replace", 1, True), ("f", "apply_store", 1, True), ("os", "replace", 3, False), ("os", "replace", 3, True),
           ("online", "online_write_batch", 1, False), ("online", "online_write_batch", 1, True), ("f", "materialize", 1, True)]

@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    "Workspaces with an older build (60 customers), each left by a build of N that died at one of MOMENTS."
    root = tmp_path_factory.mktemp("killed")
    f.training_rows(configured(root/"old"), 60)
    for i in range(len(MOMENTS)): shutil.copytree(root/"old", root/f"{i}")
    todo = [({"paths.workspace": str(root/f"{i}"), "paths.data": str(ROOT/"data")}, moment, N) for i, moment in enumerate(MOMENTS)]
    r = subprocess.run([sys.executable, "-c", KILLED, json.dumps(todo)], capture_output=True, text=True, cwd=ROOT)
    assert r.stdout.split() == ["9"]*len(MOMENTS), r.stderr # each one died by SIGKILL
    return root

@pytest.mark.parametrize("i", range(len(MOMENTS)), ids=["-".join(map(str, m[1:3])) + ("-after" if m[3] else "-before") for m in MOMENTS])
def test_a_build_that_was_killed_is_made_again(small, killed, i):
    s = configured(killed/f"{i}")
    assert not (Workspace(s.paths.workspace).feast/"made_from.json").exists() # neither build is taken for whole
    pd.testing.assert_frame_equal(f.training_rows(s, N), small[1])
    latest = f.latest_rows(s, N)
    np.testing.assert_array_equal(f.online(f.apply_store(s), latest.customer_id.tolist())[f.feature_names(s)].to_numpy("float32"), latest[f.feature_names(s)].to_numpy())
