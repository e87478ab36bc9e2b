"The typed table: what is parquet keeps its types, and a file that changed is refused, never misread."
import numpy as np, pandas as pd, pytest
from churn_nb.core.errors import DataError
from churn_nb.data.schema_inference import infer_description
from churn_nb.data.typed_table import prepare
from customer_tables import N, customers, purchases

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
    assert [(f.column, f.sentence.split(" of ")[0].split(": ")[1]) for f in d.findings if f.rule in ("rows", "returns")] == [("customer", "3"), ("at", "5"), ("amount", "10")]

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
