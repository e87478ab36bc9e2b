"Description of files: every form that people send is read as it is meant, and a file that changed is refused, never misread."
import gzip
import numpy as np, pandas as pd, pytest
from churn_nb.data.encoding import entity_key
from churn_nb.core.errors import DataError
from churn_nb.data.dataset_toml import read_description, write_description
from churn_nb.data.description import normalise_names
from churn_nb.data.schema_inference import DescribeOptions, infer_description
from churn_nb.data.typed_table import prepare, prepare_events

N = 300

def customers(**more):
    "A table of customers; further columns by name."
    rng = np.random.default_rng(0)
    left = rng.random(N) < .3
    return pd.DataFrame({"id": [f"k{i}" for i in range(N)], "x": rng.normal(size=N).round(3), "plan": rng.choice(["a", "b", "c"], N),
                         "churn": np.where(left, "yes", "no"), **more})

def purchases():
    rng = np.random.default_rng(0)
    return pd.DataFrame({"customer": rng.integers(0, 30, 500), "at": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.sort(rng.integers(0, 9_000_000, 500)), unit="s"),
                         "amount": rng.lognormal(2, 1, 500).round(2)})

@pytest.fixture
def read(tmp_path):
    "Write a table, describe and prepare it: the description and what came out."
    def of(df, name="f.csv", write=None, **how):
        file = tmp_path/name
        if name.endswith(".parquet"): df.to_parquet(file)
        else: df.to_csv(file, index=False, **(write or {}))
        d = infer_description(file, DescribeOptions(**how))
        made = (prepare_events if how.get("kind") == "events" else prepare)(d, tmp_path/"out.parquet")
        return d, pd.read_parquet(tmp_path/"out.parquet"), made
    return of

# forms

@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimiters_and_ends_of_lines(read, delimiter, end):
    df = customers()
    d, out, _ = read(df, write={"sep": delimiter, "lineterminator": end})
    assert (d.dialect.delimiter, d.names, d.categories, d.positive) == (delimiter, ["x", "plan"], ["plan"], "yes")
    np.testing.assert_array_equal(out.x, df.x.astype("float32"))
    assert out.plan.tolist() == df.plan.tolist() and out.churn.tolist() == (df.churn == "yes").astype(int).tolist()
    assert out.row.tolist() == list(range(1, N + 1)) and out.entity.tolist() == df.id.tolist()
    assert out.customer_id.tolist() == [entity_key(i) for i in df.id]

@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings(read, encoding):
    towns = np.resize(["Köln", "Zürich", "Bern"], N)
    d, out, _ = read(customers(Größe=np.arange(N) % 90, Ort=towns), write={"encoding": encoding})
    assert d.names == ["x", "plan", "Größe", "Ort"] and out.Ort.tolist() == towns.tolist()

def test_gzip_and_names_of_files_that_are_patterns(read, tmp_path):
    whole = read(customers(), "a[1]*?'.csv")[1]
    with gzip.open(tmp_path/"g.csv.gz", "wt") as f: customers().to_csv(f, index=False)
    d = infer_description(tmp_path/"g.csv.gz")
    prepare(d, tmp_path/"g.parquet")
    pd.testing.assert_frame_equal(whole, pd.read_parquet(tmp_path/"g.parquet"))

@pytest.mark.parametrize("thousands, decimal", [(",", "."), (".", ","), (" ", ","), ("\u00a0", ","), ("\u202f", ",")])
def test_separators_of_thousands(read, thousands, decimal):
    v = np.random.default_rng(1).lognormal(8, 1, N).round(2)
    d, out, _ = read(customers(v=[f"{a:,.2f}".translate({44: thousands, 46: decimal}) for a in v]).drop(columns="x"), write={"sep": ";"})
    assert d.dialect.decimal == decimal and any((f.rule, f.column) == ("thousands", "v") for f in d.findings)
    np.testing.assert_allclose(out.v, v, rtol=1e-6)

def test_newlines_in_quotes(read):
    df = customers().rename(columns={"x": "two\nlines"})
    df["plan"] += "\nz"
    d, out, made = read(df)
    assert made["rows"] == N and d.names[0] == "twolines" and set(out.plan) == {"a\nz", "b\nz", "c\nz"}

# parquet: what isn't a number is text

@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_parquet_logs_have_real_times(read, zone):
    df = purchases()
    if zone: df["at"] = df["at"].dt.tz_localize("UTC").dt.tz_convert(zone)
    _, out, made = read(df, "f.parquet", kind="events")
    assert made == {"rows": 500, "customers": df.customer.nunique()}
    expected = df["at"].dt.tz_convert(None) if zone else df["at"]
    assert (out.event_timestamp.to_numpy("datetime64[s]") == expected.to_numpy("datetime64[s]")).all()

def test_parquet_columns_of_any_type(read):
    n = np.arange(N)
    df = customers(flag=n % 3 == 0, day=pd.Timestamp("2024-05-01").date(), since=pd.Timestamp("2023-01-01"), cents=(n % 7).astype("uint8"), lists=[[1]]*N)
    df["plan"] = df.plan.astype("category")
    d, out, _ = read(df, "f.parquet")
    assert (d.names, d.categories) == (["x", "plan", "flag", "cents"], ["plan", "flag"]) and set(out.flag) == {"true", "false"}

def test_a_parquet_log_with_amounts_as_text(read):
    _, out, _ = read(purchases().astype({"amount": str}), "f.parquet", kind="events")
    np.testing.assert_allclose(out.amount, purchases().amount)

def test_rows_that_are_not_purchases_are_dropped_and_counted(read):
    df = purchases().astype({"customer": "Int64"})
    df.loc[:9, "amount"], df.loc[10:14, "at"], df.loc[15:17, "customer"] = -1, pd.NaT, pd.NA
    d, _, made = read(df, kind="events")
    assert made["rows"] == 500 - 18
    assert [(f.column, f.sentence.split(" of ")[0].split(": ")[1]) for f in d.findings if f.rule == "rows"] == [("customer", "3"), ("at", "5"), ("amount", "10")]

# names

def test_names_are_normalised_and_every_change_is_reported():
    names, found = normalise_names(["a", "a", "A", "", 'b"c\\', " d ", "e\u200b", "Gro\u0308ße"])
    assert names == ["a", "a_", "A__", "column_4", "bc", "d", "e", "Größe"] and len(found) == 7

@pytest.mark.parametrize("name", ["row", "Row", "twin", "entity", "customer_id", "Plan"])
def test_features_named_like_ours_or_like_another(read, name):
    values = np.random.default_rng(2).normal(size=N).round(2)
    d, out, _ = read(customers(**{name: values}), entity="id")
    assert d.names == ["x", "plan", name + "_"] and out.row.tolist() == list(range(1, N + 1))
    np.testing.assert_allclose(out[name + "_"], values, rtol=1e-6)
    assert any(f.rule == "names" and f.column == name + "_" for f in d.findings)

def test_a_feature_named_churn_is_not_the_label(read):
    df = customers().rename(columns={"churn": "exited"}).assign(churn=np.random.default_rng(2).normal(size=N))
    d, out, _ = read(df, label="exited")
    assert d.names == ["x", "plan", "churn_"] and out.churn.sum() == (df.exited == "yes").sum()

# roles and missing values

@pytest.mark.parametrize("values, positive", [(("yes", "no"), "yes"), (("True", "False"), "True"), (("1", "0"), "1"), (("rare", "usual"), "rare")])
def test_the_positive_class(read, values, positive):
    d, out, _ = read(customers().assign(churn=lambda df: np.where(df.churn == "yes", *values)))
    assert d.positive == positive and out.churn.sum() == (customers().churn == "yes").sum()

def test_whole_numbers_stay_keys_and_codes_with_zeros_stay_texts(read):
    d, out, _ = read(customers(zip=[f"0{1000 + i % 9}" for i in range(N)]).assign(id=np.arange(N) + 2**61))
    assert out.customer_id.tolist() == (np.arange(N) + 2**61).tolist() and "zip" in d.categories and out.zip[0] == "01000"

def test_spellings_of_missing_are_counted(read):
    x = customers().x.astype(str)
    x[:3], x[3:5], x[5:6] = "?", "N/A", " "
    d, out, _ = read(customers().assign(x=x))
    assert out.x.isna().sum() == 6
    assert [f.sentence for f in d.findings if f.rule == "missing"] == ["x: '?' (3), 'N/A' (2), ' ' (1) counts as missing"]

# what can't be read is refused in one line

def test_customers_without_an_id_or_twice_are_refused(read):
    df = customers()
    df.loc[3, "id"] = None
    with pytest.raises(DataError, match="row 4, column id: no id"): read(df)
    df.loc[3, "id"] = "k7"
    with pytest.raises(DataError, match="rows 4 and 8, column id"): read(df)

@pytest.mark.parametrize("changed, said", [
    (lambda df: df[["plan", "churn", "x", "id"]], "in another order"),
    (lambda df: df.drop(columns="x"), "column x is missing"),
    (lambda df: df.assign(x=df.x.astype(str).where(df.index != 9, "abc")), "row 10, column x: 'abc' is no number"),
    (lambda df: df.assign(churn=np.where(df.churn == "yes", "ja", "nein")), "label churn is never 'yes'"),
    (lambda df: df.assign(churn=df.churn.where(df.index > 2, "maybe")), "more than two values")])
def test_a_file_that_changed_after_it_was_described(tmp_path, changed, said):
    customers().to_csv(f := tmp_path/"f.csv", index=False)
    d = infer_description(f)
    changed(customers()).to_csv(f, index=False)
    with pytest.raises(DataError, match=said) as e: prepare(d, tmp_path/"out.parquet")
    assert "\n" not in str(e.value) and not (tmp_path/"out.parquet").exists()

def test_more_rows_with_more_gaps_are_no_change(tmp_path):
    customers().to_csv(f := tmp_path/"f.csv", index=False)
    d = infer_description(f)
    customers().assign(x=lambda df: df.x.where(df.index > 30)).to_csv(f, index=False)
    assert prepare(d, tmp_path/"out.parquet")["rows"] == N

@pytest.mark.parametrize("toml, said", [
    ('labell = "a"', "unknown key labell"), ("[csv]\nfoo = 1", "unknown key csv.foo"), ('rows = "x"', "rows = 'x'; expected a whole number"),
    ('horizon = "x"', "horizon"), ('drop = "x"', "expected a list"), ("[columns]\nx = 3", "columns.x = 3"), ('[columns.x]\nuse = "nonsense"', "columns.x.use"),
    ('[columns.nope]\nuse = "number"', "no column nope"), ('[columns.x]\nfoo = 1', "unknown key columns.x.foo"), ("kind = 'table'", "kind = 'table'"), ("=", "Invalid")])
def test_mistakes_in_a_description(tmp_path, toml, said):
    customers().to_csv(tmp_path/"f.csv", index=False)
    (tmp_path/"d.toml").write_text('file = "f.csv"\n' + toml)
    with pytest.raises(DataError, match=said) as e: read_description(tmp_path/"d.toml")
    assert "\n" not in str(e.value)

def test_round_trip_and_settings_are_kept(tmp_path):
    customers(ort=np.resize(["Köln", "?"], N)).to_csv(tmp_path/"f.csv", index=False, sep=";")
    d = infer_description(tmp_path/"f.csv")
    write_description(d, tmp_path/"d.toml")
    again = read_description(tmp_path/"d.toml")
    assert (again.columns, again.findings, again.dialect, again.positive, again.rows) == (d.columns, d.findings, d.dialect, d.positive, d.rows)
    with open(tmp_path/"d.toml", "a") as f: f.write("\n[gate]\naccuracy = 0.7\n")
    assert read_description(tmp_path/"d.toml").settings == {"gate": {"accuracy": .7}}
