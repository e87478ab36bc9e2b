"Files in, scored files out: every row is somewhere, kills cost a chunk, memory stays where it is."
import csv, gzip, io, json, os, resource, signal, subprocess, sys, termios
from types import SimpleNamespace
import numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet as pq, pytest
from hypothesis import HealthCheck, given, settings as rules, strategies as st
import churn_nb # noqa: F401 # before onnxruntime: its telemetry
import onnxruntime as ort
from churn_nb.data.encoding import Dictionary
from churn_nb.core.errors import DataError
from churn_nb.batch.job import ScoreOptions, score_file
from churn_nb.batch.writers import csv_lines
from churn_nb.serving.predictor import Model
from deadlines import allow
from tables import csv_records, csv_rows
from serving import probability, put_live, settings_for, wait_for

def card(features, **kw): return SimpleNamespace(**{**dict(features=features, reference=None, threshold=.5, version="1", run_id="r", dataset="demo", files={}), **kw})
def feature(name, nullable=False, values=None): return SimpleNamespace(name=name, nullable=nullable, values=values, missing=None, type="string" if values else "float32")

@pytest.fixture
def live(tmp_path):
    "A model under the API's checks, and its settings: age, usage_minutes, and gap, which may be missing."
    settings = settings_for(tmp_path/"ws")
    return settings, Model.load(put_live(tmp_path/"ws"))

def table(n, seed=0):
    rng = np.random.default_rng(seed)
    return pa.table({"id": pa.array([f"c{i:07}" for i in range(n)]), "age": pa.array(rng.integers(18, 80, n), pa.int16()), "joined": pa.array(rng.integers(0, 2**40, n), pa.timestamp("us", "UTC")),
                     "usage_minutes": rng.gamma(2, 100, n), "gap": pa.array(rng.normal(size=n), mask=rng.random(n) < .3), "tags": [["a"], []]*(n//2) + [["b"]]*(n % 2)})

def X_of(t): return np.column_stack([t[c].to_numpy(zero_copy_only=False).astype(np.float32) for c in ("age", "usage_minutes", "gap")])

def test_parquet_keeps_order_and_types_and_scores_like_the_api(live, tmp_path):
    settings, model = live
    pq.write_table(t := table(1234), tmp_path/"in.parquet", row_group_size=100)
    done = score_file(settings, model, tmp_path/"in.parquet", tmp_path/"out.parquet", ScoreOptions(chunk_rows=500))
    out = pq.read_table(tmp_path/"out.parquet")
    assert out.select(t.column_names).equals(t) and out.schema.field("joined").type == pa.timestamp("us", "UTC")
    assert out.column_names[6:] == ["probability", "churn_risk", "model_version", "reasons"]
    np.testing.assert_allclose(out["probability"].to_numpy(), probability(X_of(t)), atol=1e-6)
    answers = model.respond(X_of(t))
    assert out["churn_risk"].to_pylist() == [a.churn_risk for a in answers] and out["probability"].to_pylist() == [a.probability for a in answers]
    assert (done.rows, done.scored, done.rejected, done.at_risk) == (1234, 1234, 0, sum(a.churn_risk for a in answers)) and 0 < done.at_risk < 1234
    assert done.unused == ["id", "joined", "tags"] and not list(tmp_path.glob("*.parts")) and not list(tmp_path.glob("*rejects*"))

def test_reasons_of_rows_at_risk_equal_scoring_them_again(live, tmp_path):
    "Rows that are not at risk have no reasons."
    settings, model = live
    pq.write_table(t := table(300), tmp_path/"in.parquet")
    score_file(settings, model, tmp_path/"in.parquet", tmp_path/"out.parquet", ScoreOptions(reasons=2))
    X, r = X_of(t), np.array([40, 200, 0], np.float32) # the manifest's reference
    for x, row in zip(X, pq.read_table(tmp_path/"out.parquet").to_pylist()):
        if not row["churn_risk"]:
            assert row["reasons"] is None
            continue
        without = [np.where(np.arange(3) == j, r, x) for j in range(3)]
        lost = model.predict(x[None])[0] - model.predict(np.array(without, np.float32))
        lost[np.isnan(x) & np.isnan(r)] = 0
        expected = [(j, lost[j]) for j in np.argsort(-np.abs(lost), kind="stable")[:2] if abs(lost[j]) >= .005]
        assert [(c.split("=")[0], c.split()[1]) for c in row["reasons"].split("; ") if c] == [(["age", "usage_minutes", "gap"][j], f"{v:+.2f}") for j, v in expected]

def write_rows(path, rows, delimiter=",", encoding="utf-8"):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    data = out.getvalue().encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)

@pytest.mark.parametrize("name, delimiter, encoding", [("a.csv", ",", "utf-8"), ("a.csv", ";", "utf-8-sig"), ("a.tsv", "\t", "utf-16"), ("a.csv.gz", "|", "utf-8")])
def test_any_sane_csv(live, tmp_path, name, delimiter, encoding):
    settings, model = live
    rows = [["usage_minutes", "note, free", "gap", "age", "id"], ["310.5", 'say "no",\nor; yes|', "", "42", "007"], ["1e2", "Łódź", "?", "70", "10"]]
    write_rows(tmp_path/name, rows, delimiter, encoding)
    for out in (tmp_path/"out.csv", tmp_path/"out.parquet"):
        done = score_file(settings, model, tmp_path/name, out, ScoreOptions(reasons=0))
        assert (done.scored, done.rejected) == (2, 0)
    back = list(csv.reader(io.StringIO((tmp_path/"out.csv").read_text(encoding)), delimiter=delimiter))
    assert [r[:5] for r in back] == rows and back[0][5:] == ["probability", "churn_risk", "model_version"] # every text as it was
    np.testing.assert_allclose([float(r[5]) for r in back[1:]], probability([[42, 310.5, np.nan], [70, 100, np.nan]]), atol=1e-6)
    out = pd.read_parquet(tmp_path/"out.parquet")
    assert out.id.tolist() == ["007", "10"] and out.age.tolist() == [42, 70] and out.age.dtype == "int64" and out.usage_minutes.tolist() == [310.5, 100]
    assert out["note, free"].tolist() == [r[1] for r in rows[1:]] and out.gap.isna().all()

# --- nothing is lost ---

cell = st.one_of(st.sampled_from(["", "?", "NA", "nan", "-", "7", "1.5", "-3e2", "1e60", "inf", "twelve", "0x10", " 4 ", "basic", "pro", "gold", 'a"b', "two\nlines", "é", "1,5"]), st.text("ab,;\"\n 1", max_size=4))

@rules(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(cell, min_size=1, max_size=5), max_size=12), st.integers(1, 5), st.integers(1, 3))
def test_every_row_is_scored_or_rejected_with_its_number(tmp_path_factory, rows, chunk_rows, threads):
    "Against Python's own csv reader and float()."
    home = tmp_path_factory.mktemp("any")
    features = [feature("tenure"), feature("spend", nullable=True), feature("plan", values=["basic", "pro"])]
    model = SimpleNamespace(manifest=card(features), predict=lambda X: np.where(X[:, 0] == 7, np.nan, .25).astype(np.float32))
    rows = [r for r in rows if r != [""]] # an empty line is no row
    write_rows(home/"in.csv", [["tenure", "spend", "plan"], *rows])
    (home/"dataset.toml").write_text('[csv]\ndelimiter = ","\nencoding = "utf-8"\ndecimal = "."\n') # of so few cells the sign would be a guess
    done = score_file(settings_for(home), model, home/"in.csv", home/"out.csv", ScoreOptions(chunk_rows=chunk_rows, threads=threads, description=home/"dataset.toml"))
    def value(text):
        text = text.strip().lower()
        if text in ("", "?", "na", "n/a", "nan", "null", "none", "-"): return np.nan
        try: return float(np.float32(float(text))) if "_" not in text else None
        except ValueError: return None
    def fine(r):
        if len(r) != 3: return False
        a, b = value(r[0]), value(r[1])
        gap = r[2].strip().lower() in ("", "?", "na", "nan", "-")
        return a is not None and b is not None and np.isfinite(a) and not np.isinf(b) and not gap and a != 7
    with np.errstate(over="ignore"): good = [fine(r) for r in rows]
    out = csv_rows(home/"out.csv")[1:]
    assert [r[:3] for r in out] == [r for r, ok in zip(rows, good) if ok]
    assert done.rows == len(rows) == done.scored + done.rejected and done.scored == len(out)
    numbers_ = [int(r["row"]) for r in csv_records(done.rejects)] if done.rejects else []
    assert numbers_ == [i + 1 for i, ok in enumerate(good) if not ok]
    assert done.exit_code == (2 if rows and not any(good) else 0)

def test_rejects_hold_the_row_its_place_and_the_reason(live, tmp_path):
    settings, model = live
    (tmp_path/"in.csv").write_text("id,age,usage_minutes,gap\na,42,1,\nb,old,1,\nc,42,,\nd,42,1e39,\ne,42\nf,42,1,2,3\ng,42,1,2\n")
    done = score_file(settings, model, tmp_path/"in.csv", tmp_path/"out.csv", ScoreOptions(tmp_path/"bad.csv"))
    bad = pd.read_csv(tmp_path/"bad.csv", keep_default_na=False)
    assert bad.row.tolist() == [2, 3, 4, 5, 6] and bad.column.tolist() == ["age", "usage_minutes", "usage_minutes", "", ""] and bad.value.tolist() == ["old", "", "1e39", "", ""]
    assert [w.split(",")[0] for w in bad.reason] == ["not a number", "missing", "beyond what float32 holds", "2 fields", "5 fields"]
    assert json.loads(bad.original[0]) == {"id": "b", "age": "old", "usage_minutes": "1", "gap": ""} and bad.original[3:].tolist() == ["e,42", "f,42,1,2,3"]
    assert pd.read_csv(tmp_path/"out.csv").id.tolist() == ["a", "g"] and done.exit_code == 0
    assert f"5 of 7 rows rejected; {tmp_path/'bad.csv'} says why" in done.summary()

def test_a_file_without_a_valid_row_ends_with_code_2(live, tmp_path):
    "A later run without rejected rows removes the old rejects file."
    settings, model = live
    (tmp_path/"in.csv").write_text("age,usage_minutes,gap\nx,1,\n")
    done = score_file(settings, model, tmp_path/"in.csv", tmp_path/"out.csv")
    assert done.exit_code == 2 and f"every row was rejected, see {tmp_path/'out.rejects.csv'}" in done.summary()[1]
    (tmp_path/"in.csv").write_text("age,usage_minutes,gap\n4,1,\n")
    assert score_file(settings, model, tmp_path/"in.csv", tmp_path/"out.csv").exit_code == 0 and not (tmp_path/"out.rejects.csv").exists()
    (tmp_path/"in.csv").write_text("age,usage_minutes,gap\n")
    none = score_file(settings, model, tmp_path/"in.csv", tmp_path/"out.parquet")
    assert (none.rows, none.exit_code, len(pd.read_parquet(tmp_path/"out.parquet"))) == (0, 0, 0)

def files_in(folder): return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file() and "ws" not in f.parts}

@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("how", ["as it is", "through ..", "symlink", "hardlink"])
@pytest.mark.parametrize("what", ["the source", "the output", "the description"])
def test_rejects_never_replace_a_file_of_the_run(live, tmp_path, what, how, good):
    settings, model = live
    used = {"the source": tmp_path/"base.csv", "the output": tmp_path/"scored.csv", "the description": tmp_path/"dataset.toml"}
    used["the source"].write_text(f"age,usage_minutes,gap\n42,1,\n{'43' if good else 'old'},2,\n")
    used["the description"].write_text('[csv]\ndelimiter = ","\n')
    used["the output"].write_text("age,probability,churn_risk,model_version\n42,.5,1,1\n") # of an earlier run
    (tmp_path/"sub").mkdir()
    rejects = used[what] if how == "as it is" else tmp_path/"sub"/".."/used[what].name if how == "through .." else tmp_path/"link.csv"
    if how == "symlink": rejects.symlink_to(used[what])
    if how == "hardlink": os.link(used[what], rejects)
    before = files_in(tmp_path)
    with pytest.raises(DataError, match=f"is {what} of this run"):
        score_file(settings, model, used["the source"], used["the output"], ScoreOptions(rejects, description=used["the description"]))
    assert files_in(tmp_path) == before and not list(tmp_path.glob("*.parts"))

def test_the_default_path_of_rejects_is_checked_as_any_other(live, tmp_path):
    settings, model = live
    (tmp_path/"scored.rejects.csv").write_text("age,usage_minutes,gap\n42,1,\n")
    with pytest.raises(DataError, match="is the source of this run"): score_file(settings, model, tmp_path/"scored.rejects.csv", tmp_path/"scored.csv")
    (tmp_path/"in.csv").write_text("age,usage_minutes,gap\n42,1,\n")
    with pytest.raises(DataError, match="is not a rejects file"): score_file(settings, model, tmp_path/"in.csv", tmp_path/"scored.csv")
    assert (tmp_path/"scored.rejects.csv").read_text() == "age,usage_minutes,gap\n42,1,\n"

def test_a_parts_folder_with_foreign_files_is_refused_and_kept(live, tmp_path):
    settings, model = live
    (tmp_path/"in.csv").write_text("age,usage_minutes,gap\n42,1,\n")
    (tmp_path/"out.csv.parts").mkdir()
    (tmp_path/"out.csv.parts"/"000000.parquet").write_text("mine")
    with pytest.raises(DataError, match="holds files that `churn score` did not write"): score_file(settings, model, tmp_path/"in.csv", tmp_path/"out.csv")
    assert (tmp_path/"out.csv.parts"/"000000.parquet").read_text() == "mine" and not (tmp_path/"out.csv").exists()

def test_parquet_columns_of_other_types_are_read_as_numbers(live, tmp_path):
    "Texts are read as numbers too; a row whose text is not a number is rejected."
    settings, model = live
    pq.write_table(pa.table({"age": pa.array(["42", "?", "70"]).dictionary_encode(), "usage_minutes": pa.array([310, 1, 100], pa.decimal128(9, 2)), "gap": [True, None, False]}), tmp_path/"in.parquet")
    done = score_file(settings, model, tmp_path/"in.parquet", tmp_path/"out.parquet", ScoreOptions(reasons=0))
    out = pq.read_table(tmp_path/"out.parquet")
    assert (done.scored, done.rejected) == (2, 1) and pa.types.is_dictionary(out.schema.field("age").type)
    np.testing.assert_allclose(out["probability"].to_numpy(), probability([[42, 310, 1], [70, 100, 0]]), atol=1e-6)

def test_another_encoding_is_guessed_and_said_or_given(live, tmp_path):
    "The encoding is given by the description of the data set; a wrong byte in UTF-8 is a rejected row."
    settings, model = live
    (tmp_path/"in.csv").write_bytes("age,usage_minutes,gap,city\n42,1.5,,Köln\n43,2,,Bonn\n".encode("cp1252"))
    guessed = score_file(settings, model, tmp_path/"in.csv", tmp_path/"out.csv")
    assert guessed.scored == 2 and any("read as cp1252, such as Köln" in line for line in guessed.summary())
    (tmp_path/"dataset.toml").write_text('[csv]\nencoding = "cp1252"\n[columns.age]\nuse = "number"\nmissing = ["42"]\n')
    described = score_file(settings, model, tmp_path/"in.csv", tmp_path/"out.csv", ScoreOptions(description=tmp_path/"dataset.toml"))
    assert (described.scored, described.rejected) == (1, 1) and "missing" in (tmp_path/"out.rejects.csv").read_text() and not [n for n in described.notes if "cp1252" in n]
    of = lambda name: SimpleNamespace(data=SimpleNamespace(dataset=name, description=tmp_path/"dataset.toml"))
    found = [score_file(of(name), model, tmp_path/"in.csv", tmp_path/"out.csv") and (tmp_path/"out.csv").read_text("cp1252").splitlines()[1].split(",")[3] for name in ("demo", "other")]
    assert found == ["Bonn", "Köln"] # the model's own description, and none
    (tmp_path/"in.csv").write_bytes("age,usage_minutes,gap,city\n42,1,,Köln\n43,2,,Düsseldorf\n44,2,,Lübeck\n".encode() + b"45,1,,K\xf6ln\n")
    assert [score_file(settings, model, tmp_path/"in.csv", tmp_path/"out.csv").scored, "not UTF-8" in (tmp_path/"out.rejects.csv").read_text()] == [3, True]

# --- categories, through a real graph ---

@pytest.fixture(scope="module")
def plans():
    "A pipeline on two numbers and a category, its graph, and a model around it."
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from churn_nb.modeling.onnx_export import OneHot, to_onnx
    rng, d = np.random.default_rng(0), Dictionary(["tenure", "plan", "spend"], [None, ["basic", "pro", "408"], None])
    X = np.column_stack([rng.integers(0, 60, 3000), rng.integers(0, 3, 3000), rng.normal(size=3000)]).astype(np.float32)
    fitted = make_pipeline(OneHot(d), HistGradientBoostingClassifier(max_iter=20, random_state=0)).fit(X, (X[:, 0] < 20) ^ (X[:, 1] == 1))
    session = ort.InferenceSession(to_onnx(fitted, 3), providers=["CPUExecutionProvider"])
    features = [feature("tenure"), feature("plan", nullable=True, values=d.values[1]), feature("spend")]
    return d, fitted, SimpleNamespace(manifest=card(features, reference=[30, "pro", 0]), predict=lambda X: session.run(["probability"], d.feed(X))[0])

def test_unseen_categories_are_scored_and_counted(plans, tmp_path):
    "Categories are read by their text, also from a column of integers."
    d, fitted, model = plans
    frame = pd.DataFrame({"plan": ["basic", "pro", "gold", None, "408", "silver"], "spend": [.5]*6, "tenure": [3, 50, 10, 20, 30, 5]})
    frame.to_csv(tmp_path/"in.csv", index=False)
    frame.to_parquet(tmp_path/"in.parquet")
    p = fitted.predict_proba(d.encode(frame))[:, 1]
    for name in ("in.csv", "in.parquet"):
        done = score_file(settings_for(tmp_path), model, tmp_path/name, tmp_path/"out.parquet", ScoreOptions(chunk_rows=2))
        out = pd.read_parquet(tmp_path/"out.parquet")
        np.testing.assert_allclose(out.probability, p, atol=1e-6)
        assert done.unseen == {"plan": [2, "gold"]} and done.rejected == 0 and "plan: 2 rows scored with a text that training never saw, such as 'gold'" in done.summary()
    assert out.reasons[2].count("=") and any("plan=gold" in (r or "") or "tenure=" in (r or "") for r in out.reasons)
    pq.write_table(pa.table({"plan": pa.array([408, 1]), "spend": [.5, .5], "tenure": [30, 30]}), tmp_path/"numbers.parquet")
    done = score_file(settings_for(tmp_path), model, tmp_path/"numbers.parquet", tmp_path/"out.parquet")
    assert abs(pd.read_parquet(tmp_path/"out.parquet").probability[0] - p[4]) < 1e-6 and done.unseen == {"plan": [1, "1"]}

def test_a_description_can_make_none_a_category(plans, tmp_path):
    d, _, model = plans
    pd.DataFrame({"plan": ["none", "NA", ""], "spend": [.5]*3, "tenure": [30]*3}).to_csv(tmp_path/"in.csv", index=False)
    score = lambda **kw: (score_file(settings_for(tmp_path), model, tmp_path/"in.csv", tmp_path/"out.parquet", ScoreOptions(**kw)).unseen, pd.read_parquet(tmp_path/"out.parquet").probability.tolist())
    unseen, p = score()
    assert unseen == {} and p[0] == p[1] == p[2] # all of them are missing
    unseen, q = score(description=toml(tmp_path, '[columns.plan]\nuse = "category"\nmissing = ["NA"]\n'))
    assert unseen == {"plan": [1, "none"]} and q[1:] == p[1:]

def test_a_column_that_occurs_twice_is_said_and_kept(live, tmp_path):
    settings, model = live
    (tmp_path/"in.csv").write_text("age, age ,usage_minutes,gap\n30,2,300,4\n")
    done = score_file(settings, model, tmp_path/"in.csv", tmp_path/"out.csv")
    assert done.scored == 1 and "column age occurs more than once; the first was taken" in done.summary()
    assert (tmp_path/"out.csv").read_text().startswith("age, age ,usage_minutes,gap,probability")

# --- what is refused ---

def test_errors_before_anything_is_written(live, tmp_path):
    settings, model = live
    def says(text, name="in.csv", out="never.csv", **kw):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(DataError) as e: score_file(settings, model, tmp_path/name, tmp_path/out, ScoreOptions(**kw))
        assert text in str(e.value) and "\n" not in str(e.value) and sorted(tmp_path.iterdir()) == before
    says("no such file")
    (tmp_path/"in.csv").write_text("")
    says("it is empty; expected a line of column names")
    (tmp_path/"in.csv").write_text("age,x\n1,2\n")
    says("columns usage_minutes, gap are missing; the model needs age, usage_minutes, gap")
    (tmp_path/"in.csv").write_text("age,usage_minutes,gap,reasons\n1,2,3,4\n")
    says("has a column reasons already; rename it, or have it replaced with --overwrite")
    says("neither .csv nor .parquet", out="out.json")
    says("is the source of this run", out="in.csv")
    says("nowhere: no such folder; make it first", out="nowhere/out.csv")
    says("no encoding is called klingon", description=toml(tmp_path, '[csv]\nencoding = "klingon"\n'))
    says("dataset.toml", description=toml(tmp_path, "[csv\n"))
    (tmp_path/"in.csv").write_text("age,usage_minutes,gap\n")
    (tmp_path/"in.csv.gz").write_bytes(gzip.compress((tmp_path/"in.csv").read_bytes()*99)[:40])
    says("in.csv.gz", "in.csv.gz")
    pq.write_table(table(3).append_column("when", pa.array([[1]]*3)), tmp_path/"in.parquet")
    says("CSV can't hold column tags", "in.parquet")
    pq.write_table(table(3).drop_columns("age").append_column("age", pa.array([1, 2, 3], pa.date32())), tmp_path/"date.parquet")
    says("column age is date32[day], the model takes a number", "date.parquet", "never.parquet")
    (tmp_path/"torn.parquet").write_bytes((tmp_path/"in.parquet").read_bytes()[:500])
    says("torn.parquet", "torn.parquet")

def toml(home, text):
    (home/"dataset.toml").write_text(text)
    return home/"dataset.toml"

def test_overwrite_replaces_our_columns_and_nothing_else(live, tmp_path):
    settings, model = live
    (tmp_path/"in.csv").write_text("age,probability,usage_minutes,gap\n42,old,310.5,\n")
    score_file(settings, model, tmp_path/"in.csv", tmp_path/"out.parquet", ScoreOptions(overwrite=True, reasons=0))
    out = pd.read_parquet(tmp_path/"out.parquet")
    assert list(out) == ["age", "usage_minutes", "gap", "probability", "churn_risk", "model_version"] and abs(out.probability[0] - probability([[42, 310.5, np.nan]])[0]) < 1e-6

def test_a_source_that_changes_meanwhile_gives_no_output(live, tmp_path):
    settings, model = live
    (tmp_path/"in.csv").write_text("age,usage_minutes,gap\n42,310.5,\n")
    def predict(X):
        (tmp_path/"in.csv").write_text("age,usage_minutes,gap\n43,310.5,\n1,2,3\n")
        return model.predict(X)
    with pytest.raises(DataError, match="changed while it was read"): score_file(settings, SimpleNamespace(manifest=model.manifest, predict=predict), tmp_path/"in.csv", tmp_path/"out.csv")
    assert not (tmp_path/"out.csv").exists()
    assert score_file(settings, model, tmp_path/"in.csv", tmp_path/"out.csv").scored == 2

def test_a_full_disk_keeps_the_scored_chunks(live, tmp_path):
    "The error is one line."
    settings, model = live
    dirty_csv(tmp_path/"in.csv", 20_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1])) # bytes in one file: enough for a part, not for the output
    try:
        with pytest.raises(DataError, match=r"out.csv: .*; what was scored is kept: fix it and run the same again$"): score_file(settings, model, tmp_path/"in.csv", tmp_path/"out.csv", ScoreOptions(chunk_rows=500))
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path/"out.csv").exists() and not list(tmp_path.glob(".out*"))
    done = score_file(settings, model, tmp_path/"in.csv", tmp_path/"out.csv", ScoreOptions(chunk_rows=500))
    assert done.resumed > 3 and done.rows == 20_000

# --- kills ---

SLOW = """import sys, time
from pathlib import Path
from types import SimpleNamespace
from churn_nb.batch.job import ScoreOptions, score_file
from churn_nb.serving.predictor import Model
from churn_nb.core.settings import load_settings
home, source, out, wait = Path(sys.argv[1]), *sys.argv[2:5]
model = Model.load(home/"ws"/"bundle"/"current")
def predict(X): time.sleep(float(wait)); return model.predict(X)
done = score_file(load_settings({"paths.workspace": home/"ws"}, environ={}), SimpleNamespace(manifest=model.manifest, predict=predict), home/source, home/out, ScoreOptions(chunk_rows=500, reasons=2))
print(done.scored, done.rejected, done.resumed)"""

def slow(home, source, out, wait, **kw): return subprocess.Popen([sys.executable, "-c", SLOW, str(home), source, out, str(wait)], stdout=subprocess.PIPE, stderr=kw.pop("stderr", subprocess.PIPE), text=True, **kw)

def dirty_csv(path, n=10_000):
    rows = [[f"c{i}", i % 80 if i % 97 else "old", i % 500, "" if i % 3 else "1"] + ["x"]*(i % 1001 == 0) for i in range(1, n + 1)]
    write_rows(path, [["id", "age", "usage_minutes", "gap"], *rows])

@pytest.mark.parametrize("out", ["out.parquet", "out.csv"])
def test_a_killed_run_resumes_and_gives_identical_bytes(live, tmp_path, out):
    "Only the chunk that was in work is scored again."
    settings, model = live
    dirty_csv(tmp_path/"in.csv")
    process, parts = slow(tmp_path, "in.csv", out, .2), tmp_path/f"{out}.parts"
    try:
        assert wait_for(lambda: len(list(parts.glob("[0-9]*.parquet"))) >= 4)
        with pytest.raises(DataError, match="another process is writing it"): score_file(settings, model, tmp_path/"in.csv", tmp_path/out, ScoreOptions(chunk_rows=500, reasons=2))
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL and not (tmp_path/out).exists() and not (tmp_path/"out.rejects.csv").exists()
    there, rows = len(list(parts.glob("[0-9]*.parquet"))), []
    def predict(X):
        rows.append(len(X))
        return model.predict(X)
    counted = SimpleNamespace(manifest=model.manifest, predict=predict)
    done = score_file(settings, counted, tmp_path/"in.csv", tmp_path/out, ScoreOptions(chunk_rows=500, reasons=2))
    resumed = len(rows)
    assert 4 <= done.resumed == there < 20 and done.rows == 10_000 and f"{there} chunks of 500 rows were there" in done.notes[0]
    rows.clear()
    (tmp_path/"whole").mkdir()
    whole = score_file(settings, counted, tmp_path/"in.csv", tmp_path/"whole"/out, ScoreOptions(chunk_rows=500, reasons=2))
    assert whole.resumed == 0 and len(rows) > resumed and (whole.scored, whole.rejected, whole.at_risk) == (done.scored, done.rejected, done.at_risk)
    for name in (out, "out.rejects.csv"): assert (tmp_path/name).read_bytes() == (tmp_path/"whole"/name).read_bytes()
    assert whole.rejected == 10_000//97 + 10_000//1001 and not parts.exists()

@pytest.mark.parametrize("what", ["source", "model", "options"])
def test_parts_of_another_run_are_not_used(live, tmp_path, what):
    settings, model = live
    dirty_csv(tmp_path/"in.csv", 2000)
    calls = []
    def dies(X):
        calls.append(len(X))
        if len(calls) > 2: raise RuntimeError("the machine went away")
        return model.predict(X)
    with pytest.raises(RuntimeError): score_file(settings, SimpleNamespace(manifest=model.manifest, predict=dies), tmp_path/"in.csv", tmp_path/"out.parquet", ScoreOptions(chunk_rows=500, threads=1, reasons=0))
    assert list((tmp_path/"out.parquet.parts").glob("[0-9]*.parquet"))
    if what == "source": os.utime(tmp_path/"in.csv", ns=(1, 1))
    if what == "model": model = Model.load(put_live(tmp_path/"ws", "2", bias=1.))
    heard, kw = [], {"chunk_rows": 500, "reasons": 1 if what == "options" else 0}
    done = score_file(settings, model, tmp_path/"in.csv", tmp_path/"out.parquet", ScoreOptions(progress=heard.append, **kw))
    assert done.resumed == 0 and heard == [f"{tmp_path/'out.parquet'}: starts afresh; since the run that was stopped the {what} changed"]
    other = score_file(settings, model, tmp_path/"in.csv", tmp_path/"other.parquet", ScoreOptions(**kw))
    assert other.scored == done.scored and (tmp_path/"out.parquet").read_bytes() == (tmp_path/"other.parquet").read_bytes()

def test_a_torn_part_is_scored_again(live, tmp_path):
    settings, model = live
    dirty_csv(tmp_path/"in.csv", 2000)
    process, parts = slow(tmp_path, "in.csv", "out.csv", .3), tmp_path/"out.csv.parts"
    assert wait_for(lambda: (parts/"000001.parquet").exists())
    process.kill(); process.communicate()
    (parts/"000000.parquet").write_bytes(b"PAR1")
    done = score_file(settings, model, tmp_path/"in.csv", tmp_path/"out.csv", ScoreOptions(chunk_rows=500, reasons=2))
    assert done.rows == 2000 and 1 <= done.resumed < 4

@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_chunks_and_threads_change_no_value(live, tmp_path, kind):
    settings, model = live
    dirty_csv(tmp_path/"in.csv", 3000)
    if kind == "parquet": pq.write_table(table(3000), tmp_path/"in.parquet", row_group_size=700)
    found = []
    for chunk_rows, threads in ((3000, 1), (999, 2), (250, 4)):
        score_file(settings, model, tmp_path/f"in.{kind}", tmp_path/"out.parquet", ScoreOptions(chunk_rows=chunk_rows, threads=threads))
        found.append(pq.read_table(tmp_path/"out.parquet"))
    assert found[0].equals(found[1]) and found[0].equals(found[2])

def test_the_bar_is_for_terminals(live, tmp_path):
    dirty_csv(tmp_path/"in.csv", 3000)
    quiet = slow(tmp_path, "in.csv", "quiet.csv", 0)
    assert quiet.communicate(timeout=allow(300))[1] == "" and quiet.returncode == 0
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    shown = slow(tmp_path, "in.csv", "shown.csv", .02, stderr=theirs)
    os.close(theirs)
    text = b""
    while True:
        try: more = os.read(ours, 1 << 16)
        except OSError: break # the other end is closed
        if not more: break
        text += more
    os.close(ours)
    assert shown.communicate(timeout=allow(300)) and shown.returncode == 0 and b"rows/s" in text and b"shown.csv" in text

# --- memory ---

PEAK = """import sys
from pathlib import Path
from churn_nb.batch.job import ScoreOptions, score_file
from churn_nb.serving.predictor import Model
from churn_nb.core.settings import load_settings
home, source, out = Path(sys.argv[1]), *sys.argv[2:4]
done = score_file(load_settings({"paths.workspace": home/"ws"}, environ={}), Model.load(home/"ws"/"bundle"/"current"), home/source, home/out, ScoreOptions(reasons=0, chunk_rows=20_000))
print(done.scored, next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))""" # kB; getrusage counts the parent too

@pytest.mark.parametrize("source, out", [("csv", "parquet"), ("parquet", "csv")])
def test_memory_does_not_grow_with_the_file(live, tmp_path, source, out):
    "20 columns of float64: 600,000 rows more are 96 MB in one table, and twice that with a copy; the allocators keep 30 MB more or less from run to run."
    peaks = []
    for n in (300_000, 900_000):
        rng = np.random.default_rng(0)
        t = pa.table({**{c: rng.gamma(2, 20, n).round(3) for c in ("age", "usage_minutes", "gap")}, **{f"x{j}": rng.random(n).round(6) for j in range(17)}})
        if source == "parquet": pq.write_table(t, tmp_path/f"{n}.parquet") # one row group
        else: (tmp_path/f"{n}.csv").write_text(",".join(t.column_names) + "\n" + csv_lines(t))
        del t
        made = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path), f"{n}.{source}", f"out.{out}"], capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        scored, peak = map(int, made.stdout.split())
        assert scored == n
        peaks.append(peak//1024)
    assert peaks[1] - peaks[0] < 65 and peaks[1] < 1000, peaks
