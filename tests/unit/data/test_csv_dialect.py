"Files of every form that people send are read as they are meant."
import gzip
import numpy as np, pandas as pd, pytest
from churn_nb.data.encoding import entity_key
from churn_nb.data.schema_inference import infer_description
from churn_nb.data.typed_table import prepare
from customer_tables import N, customers

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

def test_newlines_in_quotes(read):
    df = customers().rename(columns={"x": "two\nlines"})
    df["plan"] += "\nz"
    d, out, made = read(df)
    assert made["rows"] == N and d.names[0] == "twolines" and set(out.plan) == {"a\nz", "b\nz", "c\nz"}
