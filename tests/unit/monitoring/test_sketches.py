"Sketches: stated errors hold on hostile columns, merging is adding, bytes survive, memory doesn't grow. The coin has no seed: allow for it."
import json, math, pickle, subprocess, sys, time, zlib
import numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet as pq, pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from churn_nb import drift as d
from churn_nb.monitoring import sketches as k
from churn_nb.monitoring.sketches import ColumnSketch, FrameSketch

quick = settings(max_examples=100, deadline=None, derandomize=True)

columns = {"normal": lambda rng, n: rng.normal(size=n), "counts": lambda rng, n: rng.poisson(1.5, n).astype(float),
           "mostly zero": lambda rng, n: np.where(rng.random(n) < .9, 0, rng.lognormal(size=n)), "cauchy": lambda rng, n: rng.standard_cauchy(n),
           "tail": lambda rng, n: rng.lognormal(0, 6, n), "rising": lambda rng, n: np.arange(n)*1., "falling": lambda rng, n: -np.arange(n)*1.,
           "constant": lambda rng, n: np.full(n, 3.), "infinite": lambda rng, n: np.where(rng.random(n) < .2, np.inf, rng.normal(size=n))}

def worst(s, x):
    "Largest error of F at any value."
    x = np.sort(x)
    u = np.unique(np.concatenate([x, s.points()[0]]))
    return np.abs(k._at_or_below(s, u)/s.n - np.searchsorted(x, u, side="right")/len(x)).max()

# the promise

@pytest.mark.parametrize("name", columns)
@pytest.mark.parametrize("size, n, trials", [(200, 20_000, 60), (2000, 100_000, 8)])
def test_the_stated_error_holds(name, size, n, trials):
    rng, over = np.random.default_rng(0), 0
    for _ in range(trials):
        x = columns[name](rng, n)
        s = ColumnSketch(size).update(x)
        over += worst(s, x) > s.error
    assert s.error > 0 and over <= trials*.01 + 3*math.sqrt(trials*.01) # 99 % confidence

@pytest.mark.parametrize("name", columns)
def test_merged_days_keep_the_stated_error(name):
    rng, over = np.random.default_rng(1), 0
    for days, rows in ((2, 1000), (5, 1000), (30, 1000), (30, 700), (60, 3000)): # where the library's iterator is wrong, too
        parts = [columns[name](rng, rows) for _ in range(days)]
        merged, x = ColumnSketch(200), np.concatenate(parts)
        for p in parts: merged.merge(ColumnSketch(200).update(p))
        one = ColumnSketch(200).update(x)
        assert merged.n == one.n == len(x) == merged.points()[1][-1]
        D, bound = k.sketch_ks(merged, one)
        over += worst(merged, x) > merged.error or D > bound
    assert over <= 1

def pair(name, rng, n=60_000):
    x, y = columns[name](rng, n), columns[name](rng, n//2)
    return x, y*1.1 + .05*(name == "normal")

@pytest.mark.parametrize("name", columns)
def test_ks_is_within_its_bound(name):
    rng, over = np.random.default_rng(2), 0
    for size in (200, 500, 2000):
        x, y = pair(name, rng)
        D, bound = k.sketch_ks(ColumnSketch(size).update(x), ColumnSketch(size).update(y))
        over += abs(D - d.ks(x, y)[0]) > bound
        assert bound > 0
    assert over <= 1

def counted(v, cuts):
    "Exact rows in the bins of a sketch."
    v, lost = np.sort(v[~np.isnan(v)]), int(np.isnan(v).sum())
    at = [np.searchsorted(v, c, side) for c, side in zip(cuts, ("left", "right"))]
    return np.diff(np.r_[0, np.sort(np.concatenate(at)), len(v), len(v) + lost])

@pytest.mark.parametrize("name", columns)
def test_psi_is_within_its_bound_over_its_cuts(name):
    rng, over = np.random.default_rng(3), 0
    for size in (200, 500, 2000):
        x, y = pair(name, rng)
        x[rng.random(len(x)) < .1] = np.nan
        a, b = ColumnSketch(size).update(x), ColumnSketch(size).update(y)
        value, bound = k.sketch_psi(a, b, 10)
        exact = d.psi_of_shares(*d.shares(*(counted(v, k._cuts(a, 10)) for v in (x, y))))
        over += abs(value - exact) > bound + 1e-9
        assert value >= 0 and math.isfinite(bound)
    assert over <= 1

few = st.integers(1, 80).flatmap(lambda n: hnp.arrays(np.float64, n, elements=st.sampled_from([-np.inf, -1., 0., .5, 1., 2., np.inf])))
some = st.integers(1, 80).flatmap(lambda n: hnp.arrays(np.float64, n, elements=st.floats(-1e300, 1e300)))

@quick
@given(st.one_of(few, some), st.one_of(few, some), st.integers(2, 12))
def test_small_samples_are_exact(x, y, bins):
    a, b = ColumnSketch(200).update(x), ColumnSketch(200).update(y)
    assert k.sketch_ks(a, b) == pytest.approx((d.ks(x, y)[0], 0), abs=1e-12)
    assert k.sketch_psi(a, b, bins) == pytest.approx((d.psi(x, y, bins), 0), abs=1e-9)

@pytest.mark.parametrize("x, y", [([np.nan, 1, 2], [1, np.nan, np.nan]), ([np.nan]*3, [1, 2, 3]), ([1, 2, 3], [np.nan]*3), ([np.nan], [np.nan])])
def test_missing_values_are_a_bin(x, y):
    x, y = np.array(x), np.array(y)
    assert k.sketch_psi(ColumnSketch().update(x), ColumnSketch().update(y), 4) == pytest.approx((d.psi(x, y, 4), 0), abs=1e-12)

def test_the_pvalue_is_conservative_and_finds_what_is_large():
    rng, wrong = np.random.default_rng(4), 0
    for _ in range(25):
        x, y = rng.normal(size=(2, 6_000))
        wrong += k.sketch_pvalue(ColumnSketch(200).update(x), ColumnSketch(200).update(y)) < .05
    assert wrong <= 25*.07 + 3*math.sqrt(25*.07*.93)
    assert k.sketch_pvalue(ColumnSketch().update(x), ColumnSketch().update(y + .3)) < 1e-6
    small = [ColumnSketch().update(v) for v in (x[:300], y[:200] + .3)]
    assert k.sketch_pvalue(*small) == pytest.approx(d.ks(x[:300], y[:200] + .3)[1], rel=.1)

# what goes in

def test_infinities_nan_and_types():
    s = ColumnSketch().update([np.inf, -np.inf, np.nan, 1]).update(np.array([True, False])).update(np.array([2, 3], np.int8)).update([])
    assert (s.n, s.missing) == (7, 1) and s.points()[0].tolist() == [-np.inf, 0, 1, 2, 3, np.inf] and s.points()[1][-1] == 7
    for v in (pd.Series([1, None], dtype="Int64"), pd.Series([True, None], dtype="boolean"), pd.Series([None, None], dtype=object),
              pa.array([1, None]), pa.array([True, None]), pa.chunked_array([[1.5], [None]]), pa.nulls(2)):
        s = ColumnSketch().update(v)
        assert s.n + s.missing == 2 and s.missing >= 1

@pytest.mark.parametrize("bad", [["a"], [[1.]], 5, np.array(["2026-01-01"], "datetime64[D]"), [1j], pa.array(["1"]), pd.Series(["x"], dtype="category"), [None, "a"]])
def test_what_is_no_number_is_refused_and_adds_nothing(bad):
    s = ColumnSketch().update([1., np.nan])
    with pytest.raises(d.DriftInputError, match="column spend: ") as e: s.update(bad, "spend")
    assert "\n" not in str(e.value) and (s.n, s.missing) == (1, 1)

@pytest.mark.parametrize("size", [7, 65_536, 2.5, True, None])
def test_sizes(size):
    with pytest.raises(d.DriftInputError, match="k="): ColumnSketch(size)

def test_a_side_without_values():
    full, void, gone = ColumnSketch().update([1.]), ColumnSketch(), ColumnSketch().update([np.nan])
    for a, b in ((full, void), (gone, full)):
        with pytest.raises(d.DriftInputError, match="both sides"): k.sketch_ks(a, b)
    with pytest.raises(d.DriftInputError, match="without rows"): k.sketch_psi(full, void, 10)

def test_merging():
    a, b = ColumnSketch().update([1., np.nan]), ColumnSketch().update([2.])
    a.merge(b).merge(ColumnSketch())
    assert (a.n, a.missing, b.n) == (2, 1, 1)
    a.merge(a)
    assert (a.n, a.missing) == (4, 2) and a.points()[1].tolist() == [2, 4]
    rough = ColumnSketch(100).update(np.arange(50_000))
    fine = ColumnSketch(2000).update(np.arange(50_000)).merge(rough)
    assert fine.error == rough.error # the larger of the two
    with pytest.raises(d.DriftInputError, match="no sketch"): a.merge([1])

# bytes

def test_bytes_and_pickle_round_trip():
    for s in (ColumnSketch(), ColumnSketch().update([np.nan]), ColumnSketch().update([1.]), ColumnSketch(50).update(np.arange(99_999.))):
        for t in (ColumnSketch.from_bytes(s.to_bytes()), pickle.loads(pickle.dumps(s))):
            assert t.to_bytes() == s.to_bytes() and (t.n, t.missing, t.k, t.error) == (s.n, s.missing, s.k, s.error)
            t.update([1., np.nan])
            assert (t.n, t.missing) == (s.n + 1, s.missing + 1)

def sealed(header, body): return json.dumps({**header, "bytes": len(body), "crc32": zlib.crc32(body)}).encode() + b"\n" + body

def test_damaged_bytes_are_refused_in_one_line():
    s = ColumnSketch(50).update(np.arange(5000.))
    good, head, body = s.to_bytes(), {"kind": "churn_nb column sketch", "n": 5000, "missing": 0, "k": 50}, s.kll.serialize()
    rng, bad = np.random.default_rng(5), [b"", b"\n", b"PAR1", b"{}", b"[]\n", b"\xff"*50, good + b"x", FrameSketch(["a"]).to_bytes()]
    bad += [good[:i] for i in range(0, len(good), 97)]
    for i in rng.integers(0, len(good), 100): bad.append(good[:i] + bytes([good[i] ^ 255]) + good[i + 1:])
    bad += [sealed(head, body[:-8]), sealed(head, b""), sealed(head, b"\0"*64), sealed(head | {"n": 4}, body), sealed({"kind": head["kind"]}, body),
            sealed(head | {"missing": -1}, body), sealed(head | {"missing": None}, body)]
    for b in bad:
        with pytest.raises(d.DriftInputError) as e: ColumnSketch.from_bytes(b)
        assert "\n" not in str(e.value)

def test_frame_bytes():
    f = FrameSketch().update(pd.DataFrame({"a": [1., np.nan], "b": [1, 2], "c": ["x", "y"]}))
    g = FrameSketch.from_bytes(f.to_bytes())
    assert list(g.columns) == ["a", "b"] and g.to_bytes() == f.to_bytes() and g["a"].missing == 1
    for b in (b"", f.to_bytes()[:-1], f["a"].to_bytes(), sealed({"kind": "churn_nb frame sketch"}, b""),
              sealed({"kind": "churn_nb frame sketch", "k": 200, "columns": [["a", 9]]}, b"123456789")):
        with pytest.raises(d.DriftInputError) as e: FrameSketch.from_bytes(b)
        assert "\n" not in str(e.value)

def test_memory_is_constant_and_throughput_is_printed(capsys):
    x, size = np.random.default_rng(6).normal(size=1_000_000), {}
    start, s = time.perf_counter(), ColumnSketch()
    for i in range(10):
        s.update(x)
        if i == 0: size[10**6] = len(s.to_bytes())
    seconds, size[10**7] = time.perf_counter() - start, len(s.to_bytes())
    size[10**5] = len(ColumnSketch().update(x[:10**5]).to_bytes())
    with capsys.disabled(): print(f"\nKLL, k=2000: {1e7/seconds/1e6:.1f} million values a second; bytes by rows {size}")
    assert s.n == 10**7 and max(size.values()) < 1.2*min(size.values()) < 60_000

# tables

def frame(n=1000, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"spend": rng.lognormal(size=n), "orders": rng.poisson(2, n), "active": rng.random(n) < .5, "name": "x"})

def test_pandas_and_arrow_batches_are_the_same():
    t = frame()
    batches = [t, pa.Table.from_pandas(t), pa.RecordBatch.from_pandas(t)]
    for f in (FrameSketch().update(b) for b in batches):
        assert list(f.columns) == ["spend", "orders", "active"]
        for c in f.columns: assert k.sketch_ks(f[c], ColumnSketch().update(t[c].astype(float)))[0] == 0

@pytest.mark.parametrize("change, says", [(lambda t: t.drop(columns="orders"), "column orders: not in"), (lambda t: t.assign(orders="x"), "column orders: a sketch"),
                                          (lambda t: t.assign(active=pd.Timestamp(0)), "column active")])
def test_a_bad_batch_adds_nothing(change, says):
    f = FrameSketch().update(frame())
    before = f.to_bytes()
    for b in (change(frame()), pa.Table.from_pandas(change(frame()))):
        with pytest.raises(d.DriftInputError, match=says): f.update(b)
    assert f.to_bytes() == before

def test_frames_without_numbers_and_with_other_columns():
    with pytest.raises(d.DriftInputError, match="without numeric"): FrameSketch().update(frame()[["name"]])
    with pytest.raises(d.DriftInputError, match="column name"): FrameSketch(["name"]).update(frame())
    a, b = FrameSketch(["spend"]).update(frame()), FrameSketch(["orders"]).update(frame())
    for call in (a.merge, lambda o: k.sketch_table(a, o)):
        with pytest.raises(d.DriftInputError, match="column orders: in only one"): call(b)
    assert FrameSketch().merge(a)["spend"].n == 1000

def test_parquet_file_and_folder(tmp_path):
    t = [frame(5000, i) for i in range(3)]
    for i, x in enumerate(t): x.to_parquet(tmp_path/f"{i}.parquet", row_group_size=1700)
    f, whole = k.sketch_file(tmp_path, batch_rows=999), pd.concat(t)
    assert f["spend"].n == 15_000 and list(f.columns) == ["spend", "orders", "active"]
    D, bound = k.sketch_ks(f["orders"], ColumnSketch().update(whole.orders))
    assert D <= bound
    assert list(k.sketch_file(tmp_path/"0.parquet", ["orders"]).columns) == ["orders"]
    (tmp_path/"3.parquet").write_bytes(b"PAR1 no")
    for path, columns, says in ((tmp_path, None, "3.parquet: can't be read"), (tmp_path/"no.parquet", None, "no such file"),
                                (tmp_path/"0.parquet", ["visits"], "column visits"), (tmp_path/"0.parquet", ["name"], "column name")):
        with pytest.raises(d.DriftInputError, match=says) as e: k.sketch_file(path, columns)
        assert "\n" not in str(e.value)
    (tmp_path/"void").mkdir()
    with pytest.raises(d.DriftInputError, match="without .parquet"): k.sketch_file(tmp_path/"void")

def test_parquet_memory_does_not_follow_the_file(tmp_path):
    x, paths = np.random.default_rng(7).normal(size=200_000), []
    for times, group in ((1, 200_000), (15, 200_000), (15, 10_000_000)): # many row groups, and a single one
        paths.append(str(tmp_path/f"{times}-{group}.parquet"))
        pq.write_table(pa.table({"x": np.tile(x, times)}), paths[-1], row_group_size=group, use_dictionary=False)
    code = ("import sys, pyarrow as pa; from churn_nb.monitoring.sketches import sketch_file as s\n"
            "for p in sys.argv[1:]: print(s(p, batch_rows=20_000)['x'].n, pa.default_memory_pool().max_memory())")
    out = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True).stdout
    rows, most = zip(*(map(int, line.split()) for line in out.splitlines()))
    assert rows == (200_000, 3_000_000, 3_000_000) and most[2] < 1.5*most[0] # bytes of Arrow's pool, at most so far

def test_the_table_of_all_columns():
    a = FrameSketch().update(frame(3000))
    b = FrameSketch().update(frame(2000, 1).assign(spend=lambda t: t.spend*3))
    t = k.sketch_table(a, b)
    assert t.index[0] == "spend" and t.psi["spend"] > .25 and t.pvalue["spend"] < 1e-9 and t.pvalue["orders"] > 1e-4
    void = FrameSketch(["spend"]).update(frame(100).assign(spend=np.nan))
    t = k.sketch_table(FrameSketch(["spend"]).update(frame(100)), void)
    assert math.isnan(t.D["spend"]) and t.missing_current["spend"] == 100 and t.psi["spend"] > 1
