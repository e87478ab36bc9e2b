"Simulator: the same bytes for the same seed, rows that keep the contract, a truth that is exact, memory that does not grow."
import hashlib, itertools, subprocess, sys
from dataclasses import replace
from datetime import date, datetime, timedelta
import duckdb, numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet as pq, pytest
from refusals import refused

from churn_nb.data import simulator as d
from churn_nb.data.datasets import EVENTS, check_csv
from paths import ROOT

SMALL = d.Simulation(customers=2500, days=100, label_days=40, seed=7)
DAILY = d.Simulation(customers=3000, days=60, label_days=10, late=.1, as_of=tuple(date(2025, 1, 1) + timedelta(t) for t in range(1, 61)))

def sha(out): return {f.relative_to(out).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(out.rglob("*")) if f.is_file()}
def made(out, sim, **k): return d.write_simulation(out, sim, **k) and out
def read(out): return [pd.read_parquet(out/f) for f in ("customers.parquet", "events", "truth.parquet")]
def blocks(sim, *tables): return [pa.concat_tables(ts).to_pandas() for ts in zip(*([b[x] for x in tables] for b in d.simulated_blocks(sim)))]

@pytest.fixture(scope="module")
def small(tmp_path_factory): return made(tmp_path_factory.mktemp("sim")/"small", SMALL, chunk=1000)

@pytest.fixture(scope="module")
def daily(tmp_path_factory):
    "A log with the truth of every day of it, so that everybody who ever cancelled is seen before."
    return read(made(tmp_path_factory.mktemp("sim")/"daily", DAILY))

# The same bytes

def test_two_processes_write_the_same_bytes(small, tmp_path):
    code = "import sys; from churn_nb.data.simulator import *; write_simulation(sys.argv[1], Simulation(customers=2500, days=100, label_days=40, seed=7), chunk=1000)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path/"again")], cwd=ROOT, env={"PYTHONHASHSEED": "5", "TZ": "Asia/Tokyo", "PATH": ""}, check=True)
    assert sha(tmp_path/"again") == sha(small)
    assert [*sha(small)] == ["customers.parquet", *(f"events/part-{k:05}.parquet" for k in range(3)), "truth.parquet"]

def test_another_seed_changes_every_file(small, tmp_path):
    one, other = sha(small), sha(made(tmp_path/"b", replace(SMALL, seed=8), chunk=1000))
    assert one.keys() == other.keys() and not any(one[f] == other[f] for f in one)
    big = [blocks(d.Simulation(customers=5, days=5, label_days=2, seed=s), "events")[0] for s in (5, 2**32 + 5, 2**63 - 1)]
    assert not big[0].equals(big[1]) and not big[1].equals(big[2])

def test_the_cut_into_parts_changes_no_row(small, tmp_path):
    whole = made(tmp_path/"whole", SMALL)
    assert len([*(whole/"events").iterdir()]) == 1 and len([*(small/"events").iterdir()]) == 3
    for a, b in zip(read(small), read(whole)): pd.testing.assert_frame_equal(a, b)
    for f in ("customers.parquet", "truth.parquet"): assert sha(small)[f] == sha(whole)[f]

def test_a_larger_simulation_begins_with_the_smaller_one(small):
    more = blocks(replace(SMALL, customers=4000), "customers", "events", "truth")
    for a, b in zip(read(small), more): pd.testing.assert_frame_equal(a[a.customer_id <= 2000], b[b.customer_id <= 2000], check_categorical=False)

@pytest.mark.parametrize("change", [{"as_of": (date(2025, 2, 3),)}, {"label_days": 90}])
def test_asking_for_another_truth_changes_no_event(small, change):
    people, events = blocks(replace(SMALL, **change), "customers", "events")
    for a, b in zip(read(small), (people, events)): pd.testing.assert_frame_equal(a, b)

def test_customer_lives_do_not_depend_on_the_event_rate(small):
    (truth,) = blocks(replace(SMALL, events_per_day=5., late=.5), "truth")
    pd.testing.assert_frame_equal(read(small)[2], truth)

# The rows

def test_columns_and_their_types(small):
    for x, f in (("customers", "customers.parquet"), ("events", "events/part-00000.parquet"), ("truth", "truth.parquet")):
        assert pq.read_schema(small/f).remove_metadata() == d.SIMULATED[x]
    got = duckdb.sql(f"DESCRIBE SELECT * FROM '{small}/events/*.parquet'").df()
    assert dict(zip(got.column_name, got.column_type)) == {"event_id": "BIGINT", "customer_id": "BIGINT", "event_timestamp": "TIMESTAMP WITH TIME ZONE", "quantity": "INTEGER", "amount": "DOUBLE",
                                                           "created_timestamp": "TIMESTAMP WITH TIME ZONE", "kind": "VARCHAR", "usage_minutes": "DOUBLE"}
    assert duckdb.sql(f"SELECT count(DISTINCT event_id) AS n FROM '{small}/events/*.parquet'").df().n[0] == len(read(small)[1])

def test_the_log_keeps_the_contract(small, tmp_path):
    people, log, _ = read(small)
    names = [c.name for c in EVENTS]
    log[names].assign(event_timestamp=log.event_timestamp.dt.strftime("%F %T")).to_csv(tmp_path/"log.csv", index=False)
    again = check_csv(tmp_path/"log.csv", EVENTS, now="2026-01-01")
    assert again.event_id.tolist() == [*range(1, len(log) + 1)] and set(log.columns) >= {*names, "created_timestamp"}
    assert (again.event_timestamp == log.event_timestamp.dt.tz_localize(None)).all() and (again.amount == log.amount).all()
    assert people.customer_id.tolist() == [*range(1, 2501)] and log.customer_id.isin(people.customer_id).all()
    assert people.age.between(18, 79).all() and people["plan"].value_counts().index.tolist() == ["basic", "plus", "premium"]

def test_each_kind_has_its_own_numbers(small):
    _, log, _ = read(small)
    pays, uses = log.kind == "transaction", log.kind == "usage"
    assert ((log.amount > 0) == pays).all() and ((log.quantity > 0) == pays).all() and ((log.usage_minutes > 0) == uses).all()
    assert (log.kind.value_counts() > 500).all() and (log.amount == log.amount.round(2)).all()

def test_event_times_lie_within_the_log_and_customer_life(daily):
    people, log, truth = daily
    start, end = pd.Timestamp("2025-01-01", tz="UTC"), pd.Timestamp("2025-03-02", tz="UTC")
    day = log.event_timestamp.dt.normalize()
    assert log.event_timestamp.between(start, end, inclusive="left").all() and people.signed_up.between(start, end, inclusive="left").all()
    joined = log.customer_id.map(people.set_index("customer_id").signed_up)
    gone = truth.dropna(subset="churned_at").drop_duplicates("customer_id").set_index("customer_id").churned_at
    assert len(gone) > 200 and (gone > people.set_index("customer_id").signed_up[gone.index]).all()
    assert (day >= joined).all() and not (log.event_timestamp >= log.customer_id.map(gone)).any()
    assert set(log.customer_id[day == joined]) == set(people.customer_id) # sign-up is seen on its day
    fee = log[(log.kind == "transaction") & ((day - joined).dt.days % 30 == 0)]
    there = people.merge(gone, "left", on="customer_id")
    expected = np.ceil((there.churned_at.fillna(end) - there.signed_up).dt.days / 30).sum()
    assert expected <= len(fee) < 1.1*expected # each month paid; some purchases fall on such a day

def test_blocks_come_in_the_order_of_time(small):
    part = pq.ParquetFile(small/"events/part-00001.parquet").read().to_pandas()
    assert part.event_timestamp.is_monotonic_increasing and part.customer_id.between(1001, 2000).all()

@pytest.mark.parametrize("late", [0, .1, 1])
def test_a_share_of_the_events_arrives_late(late):
    (log,) = blocks(replace(SMALL, late=late), "events")
    delay = log.created_timestamp - log.event_timestamp
    assert delay.between(pd.Timedelta(0), pd.Timedelta(days=5)).all()
    assert abs((delay > pd.Timedelta(0)).mean() - late) < 4*(late*(1 - late)/len(log))**.5 + 1e-12
    assert not late or (delay > pd.Timedelta(days=1)).sum() > .2*late*len(log)

def test_rhythm_of_the_day_and_of_the_week(tmp_path):
    (log,) = blocks(d.Simulation(customers=4000, days=182, events_per_day=3., start=date(2025, 1, 6)), "events")
    weekend = log.event_timestamp.dt.dayofweek > 4
    for kind, tolerance in (("usage", .01), ("support_call", .25)):
        for w, weights in zip((False, True), d.HOURS[kind]):
            hours = log[(log.kind == kind) & (weekend == w)].event_timestamp.dt.hour.value_counts(normalize=True).sort_index()
            expected = np.array([*map(int, weights)])/sum(map(int, weights))
            assert len(hours) == 24 and abs(hours - expected).sum() < tolerance
    calls = weekend[log.kind == "support_call"].mean()
    assert calls < .17 and weekend[log.kind == "usage"].mean() > .36 # 2/7 = .286 without rhythm

def test_sizes_scale():
    n = [sum(len(b["events"]) for b in d.simulated_blocks(replace(SMALL, customers=k))) for k in (1, 1000, 4000)]
    assert 3.8 < n[2]/n[1] < 4.2 and n[0] >= 1
    (more,) = blocks(replace(SMALL, customers=1000, events_per_day=6.), "events")
    uses = more[more.kind == "usage"]
    assert 5.5 < len(uses)/uses.groupby(["customer_id", uses.event_timestamp.dt.date]).ngroups < 6.5

# The truth

def test_recursion_equals_the_sum_over_all_paths():
    rng, days = np.random.default_rng(0), 4
    h, u, v = rng.random((1, 1, 3, 3, 2))*.3, rng.random((7, 1, 3)), rng.random((7, 2))
    def stays(n, q, c, weekday): # every sequence of used/called, one after the other
        total = 0
        for path in itertools.product((0, 1), repeat=2*days):
            p, s = 1., (n, q, c)
            for t, (used, called) in enumerate(zip(path[::2], path[1::2])):
                w, (n_, q_, c_) = (weekday + t) % 7, s
                p *= (1 - h[0, 0, n_, q_, c_])*(u[w, 0, q_] if used else 1 - u[w, 0, q_])*(v[w, c_] if called else 1 - v[w, c_])
                s = (max(n_ - 1, 0), 0 if used else min(q_ + 1, 2), 0 if called else min(c_ + 1, 1))
            total += p
        return total
    for weekday in (0, 5):
        P = d.churn_probability(h, u, v, days, weekday)
        for s in np.ndindex(3, 3, 2): assert P[0, 0][s] == pytest.approx(1 - stays(*s, weekday), abs=1e-12)

def states(people, log, rows, as_of):
    "What the log says of customers at midnight: the state, in the order of the tables."
    last = log[log.event_timestamp < as_of].groupby(["customer_id", "kind"], observed=True).event_timestamp.max().dt.normalize()
    days = ((as_of - last).dt.days - 1).unstack("kind").reindex(index=rows.customer_id, columns=d.KINDS).fillna(14).clip(upper=14).astype(int)
    who = people.set_index("customer_id").loc[rows.customer_id]
    return who["plan"].cat.codes, who.age//10 - 1, (d.NEW - (as_of - who.signed_up).dt.days).clip(lower=0), days.usage, days.support_call

def test_the_truth_can_be_read_in_the_log(daily):
    people, log, truth = daily
    for as_of in truth.as_of.unique()[[0, 1, 9, 30, 58, 59]]:
        rows = truth[truth.as_of == as_of]
        P = d.churn_probability(d.hazard_table(d.HAZARD), *d.habit_tables(), 10, as_of.dayofweek)
        assert (P[tuple(np.asarray(s) for s in states(people, log, rows, as_of))] == rows.probability).all()

def test_who_is_in_the_truth_and_what_came_of_them(daily):
    people, _, truth = daily
    gone = truth.dropna(subset="churned_at").drop_duplicates("customer_id").set_index("customer_id").churned_at.reindex(people.customer_id)
    for as_of, rows in truth.groupby("as_of"):
        there = (people.signed_up < as_of) & ~(gone < as_of).to_numpy()
        assert rows.customer_id.tolist() == people.customer_id[there].tolist()
        open_end = as_of + pd.Timedelta(days=10) > pd.Timestamp("2025-03-02", tz="UTC")
        assert rows.churned.isna().all() if open_end else (rows.churned == (rows.churned_at < as_of + pd.Timedelta(days=10))).all()
    assert truth.as_of.nunique() == 60 and truth.probability.between(0, 1).all()

def chi2(p, y, groups):
    "Squared deviations of observed from expected churn, in units of the binomial scatter, summed over groups."
    t = pd.DataFrame({"d": y - p, "var": p*(1 - p)}).groupby(np.asarray(groups)).sum()
    return (t.d**2/t["var"]).sum(), len(t)

def test_the_truth_is_calibrated_and_a_wrong_one_is_not():
    from scipy.stats import chi2 as law
    sim = d.Simulation(customers=45_000, days=210, as_of=(date(2025, 4, 30),), events_per_day=1., seed=3)
    people, truth = blocks(sim, "customers", "truth")
    t = truth.merge(people, on="customer_id")
    assert len(t) > 20_000
    p, y = t.probability, t.churned.astype(float)
    decile = lambda p: pd.qcut(p.rank(method="first"), 10, labels=False)
    tenure = (t.as_of - t.signed_up).dt.days
    for groups in (decile(p), t["plan"].cat.codes, t.age//10, pd.cut(tenure, [0, 5, 10, 20, 30, 60, 120], labels=False), pd.qcut(p.rank(method="first"), 200, labels=False)):
        x, k = chi2(p, y, groups)
        assert law.sf(x, k) > .001, (x, k)
    for wrong in (p**1.1, p*.95, p.mean() + 0*p): # the test has teeth
        assert law.sf(*chi2(wrong, y, decile(p))) < 1e-4

@pytest.mark.parametrize("base, probability", [(-30, 0), (30, 1)])
def test_extremes_of_the_hazard(base, probability):
    people, log, truth = blocks(replace(SMALL, hazard={"base": base}), "customers", "events", "truth")
    if probability: # all leave on the day after sign-up, and only who signed up yesterday is there to be asked
        assert (truth.probability > 1 - 1e-9).all() and (log.event_timestamp.dt.normalize() == log.customer_id.map(people.set_index("customer_id").signed_up)).all()
    else: assert (truth.probability < 1e-8).all() and truth.churned_at.isna().all()

def test_an_effect_acts_in_its_direction():
    P = lambda **effects: d.churn_probability(d.hazard_table(d.HAZARD | effects), *d.habit_tables(), 90, 0)
    p = P()
    assert (np.diff(p, axis=3) > 0).all() and (np.diff(p, axis=4) < 0).all() and (np.diff(p, axis=0) < 0).all() and (np.diff(p, axis=1) < 0).all()
    assert (P(base=-8) > p).all() and (P(call=5.) > p).all() and (np.diff(p, axis=2) >= 0).all()

# Memory, faults, parameters

def test_memory_does_not_grow_with_the_number_of_customers(tmp_path):
    code = ("import resource, sys; from churn_nb.data.simulator import *; n = int(sys.argv[1])\n"
            "r = write_simulation(sys.argv[2], Simulation(customers=n, days=180)); print(r['events'], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024)")
    got = [subprocess.run([sys.executable, "-c", code, str(n), str(tmp_path/str(n))], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split() for n in (5000, 20_000)]
    (n1, mb1), (n4, mb4) = [(int(n), float(mb)) for n, mb in got]
    assert n4 > 3.9*n1 and mb4 < mb1 + 40, got # 1.5 million more events, 90 MB as arrays

BAD = {"customers": [0, -1, 1.5, "9", True, None], "days": [1, 10**6, 1e2], "label_days": [0, 100, 10**6], "events_per_day": [.5, float("nan"), float("inf"), "2"], "late": [-.1, 1.1, float("nan")],
       "seed": [-1, 2**63, 1.], "start": ["2025-01-01", None, datetime(2025, 1, 1), date(9999, 12, 1)],
       "as_of": [None, "2025-02-01", ("2025-02-01",), (date(2025, 1, 1),), (date(2025, 4, 12),), (datetime(2025, 2, 1),), date(2025, 2, 1)],
       "hazard": [None, {"mood": 1.}, {"base": "x"}, {"base": float("nan")}, {"quiet": 31}]}

@pytest.mark.parametrize("name, value", [(n, v) for n, values in BAD.items() for v in values])
def test_a_bad_parameter_is_named(name, value): refused(lambda: replace(SMALL, **{name: value}), "simulation: ", name, "expected")

@pytest.mark.parametrize("chunk", [0, 999, 1500, 2e4, "1000", None])
def test_a_bad_chunk_is_named_and_nothing_is_written(tmp_path, chunk):
    refused(lambda: d.write_simulation(tmp_path/"out", SMALL, chunk), "chunk", "expected")
    assert not [*tmp_path.iterdir()]

def test_numbers_of_numpy_are_numbers(): assert replace(SMALL, customers=np.int64(3), late=np.float32(.5), days=np.int32(50)).as_of_days == [10]

def test_the_default_dates_have_a_full_horizon(): assert d.Simulation().as_of_days == [*range(23, 276, 28)] and d.Simulation(as_of=(date(2026, 1, 1), date(2025, 1, 2))).as_of_days == [1, 365]

def test_what_is_there_is_not_written_over(tmp_path):
    tiny = d.Simulation(customers=3, days=5, label_days=2)
    (there := tmp_path/"out").mkdir()
    assert d.write_simulation(str(there), tiny)["customers"] == 3 # an empty folder will do
    before = sha(there)
    refused(lambda: d.write_simulation(there, tiny), str(there), "not empty")
    (tmp_path/"file").write_text("x")
    refused(lambda: d.write_simulation(tmp_path/"file", tiny), "file")
    refused(lambda: d.write_simulation(tmp_path/"file/out", tiny), "file/out")
    assert sha(there) == before and sorted(f.name for f in tmp_path.iterdir()) == ["file", "out"]
    assert d.write_simulation(tmp_path/"new/deep/er", tiny) and (tmp_path/"new/deep/er").stat().st_mode & 0o777 == 0o755

@pytest.mark.parametrize("fault, seen", [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left on device"), d.DataError)])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, fault, seen):
    def blocks(sim):
        yield from itertools.islice(real(sim), 2)
        raise fault
    real = d.simulated_blocks
    monkeypatch.setattr(d, "simulated_blocks", blocks)
    with pytest.raises(seen): d.write_simulation(tmp_path/"out", SMALL, chunk=1000)
    assert not [*tmp_path.iterdir()]

def test_one_who_comes_first_keeps_the_name(tmp_path, monkeypatch):
    real, tiny = d.simulated_blocks, d.Simulation(customers=3, days=5, label_days=2)
    def blocks(sim):
        (tmp_path/"out").mkdir()
        (tmp_path/"out/mine").write_text("x")
        yield from real(sim)
    monkeypatch.setattr(d, "simulated_blocks", blocks)
    refused(lambda: d.write_simulation(tmp_path/"out", tiny), "out")
    assert sorted(f.relative_to(tmp_path).as_posix() for f in tmp_path.rglob("*")) == ["out", "out/mine"]

# The contract's upper end

def test_the_largest_amount_fits_the_feature_sql(tmp_path):
    row = lambda amount: (tmp_path/"x.csv").write_text(f"event_id,customer_id,event_timestamp,quantity,amount\n1,1,2024-01-01,1,{amount}\n") and check_csv(tmp_path/"x.csv", EVENTS)
    largest = float(np.nextafter(1e14, 0))
    assert row(repr(largest)).amount[0] == largest
    assert duckdb.execute("SELECT CAST(? AS DECIMAL(18, 4))", [largest]).fetchone()[0] > 0
    for amount in ("1e14", "100000000000000", "1e300"): refused(lambda: row(amount), f"row 1, column amount: '{amount}' is 100 trillion or more")
