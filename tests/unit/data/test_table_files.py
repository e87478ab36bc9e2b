"What is not a table says so in one sentence, whichever command reads it; what is one is read whatever its name is."
import codecs, gzip, zipfile
import numpy as np, pandas as pd, pyarrow as pa, pyarrow.feather, pytest
from churn_nb.core.errors import ChurnError, DataError
from churn_nb.data.csv_dialect import open_table_bytes
from churn_nb.data.schema_inference import infer_description
from churn_nb.data.tabular_reader import open_table, read_typed
from churn_nb.data.typed_table import prepare
from churn_nb.monitoring.drift_report import read_table
from churn_nb.ops.event_worker import read_event_rows
from customer_tables import customers

READERS = {"describe": infer_description, "score": lambda p: read_typed(open_table(p)), "drift": read_table, "push": read_event_rows}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))*20

def archive(path):
    with zipfile.ZipFile(path, "w") as z: z.writestr("a.csv", "id,x\n1,2\n")

NO_TABLES = { # name -> how it is written, and what is said
    "a.zip": (archive, "zip archive; unpack it"), "a.csv": (archive, "zip archive; unpack it"),
    "old.csv": (lambda p: p.write_bytes(b"\xd0\xcf\x11\xe0" + bytes(500)), "old Excel workbook; save it as"),
    "new.xlsx": (lambda p: (archive(p), zipfile.ZipFile(p, "a").writestr("xl/workbook.xml", "<a"))[0], "cut off or damaged"),
    "lines.csv": (lambda p: customers().to_json(p, orient="records", lines=True), "JSON; write it as CSV"),
    "list.csv": (lambda p: customers().to_json(p, orient="records"), "JSON; write it as CSV"),
    "page.csv": (lambda p: p.write_text("\n<!DOCTYPE html>\n<html>"), "HTML or XML"),
    "picture.csv": (lambda p: p.write_bytes(PNG), "no text"), "table.csv": (lambda p: pa.feather.write_feather(pa.table({"x": [1]}), p), "Arrow file"),
    "packed.csv.gz": (lambda p: p.write_bytes(gzip.compress(PNG)), "no text"),
    "cut.csv.GZ": (lambda p: p.write_bytes(gzip.compress(np.random.default_rng(0).bytes(9000).hex().encode())[:-900]), "cut off or damaged"),
    "torn.parquet": (lambda p: p.write_bytes(b"PAR1" + bytes(900)), "cut off or damaged"), "z.csv": (lambda p: p.write_bytes(b"\x28\xb5\x2f\xfdabc"), "zstd; unpack it"),
    "folder.csv": (lambda p: p.mkdir(), "folder"), "none.csv": (lambda p: None, "no such file"), "empty.csv": (lambda p: p.touch(), "empty"),
}

@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", NO_TABLES)
def test_what_is_no_table_says_what_to_do(tmp_path, name, reader):
    write, says = NO_TABLES[name]
    write(tmp_path/name)
    with pytest.raises(ChurnError, match=says) as e: READERS[reader](tmp_path/name)
    assert str(tmp_path/name) in str(e.value) and str(e.value).isprintable() and len(str(e.value)) < 400

def written(folder):
    "One table in each form that is read."
    df = customers()
    csv = df.to_csv(index=False)
    df.to_parquet(folder/"A.PARQUET")
    df.to_parquet(folder/"parquet.csv")
    df.to_excel(folder/"a.xlsx", index=False)
    for name, data in {"plain.csv": csv.encode(), "B.CSV.GZ": gzip.compress(csv.encode()), "gzip.csv": gzip.compress(csv.encode()), "text.csv.gz": csv.encode(),
                       "sep.csv": b"sep=,\r\n" + csv.encode(), "marked.csv": codecs.BOM_UTF8 + b"sep=;\n" + csv.replace(",", ";").encode()}.items():
        (folder/name).write_bytes(data)
    return [f for f in sorted(folder.iterdir()) if f.name != "plain.csv"]

def test_a_table_is_known_by_its_content(tmp_path):
    files, out = written(tmp_path), tmp_path.with_name("out.parquet")
    prepare(infer_description(tmp_path/"plain.csv"), out)
    trained, compared, pushed = pd.read_parquet(out), read_table(tmp_path/"plain.csv"), read_event_rows(tmp_path/"plain.csv")
    for f in files:
        prepare(infer_description(f), out)
        pd.testing.assert_frame_equal(pd.read_parquet(out), trained)
        pd.testing.assert_frame_equal(read_table(f), compared)
        if f.suffix not in (".PARQUET", ".xlsx") and f.name != "parquet.csv": assert read_event_rows(f) == pushed, f

def test_a_workbook_is_read_as_its_one_sheet(tmp_path):
    df = pd.DataFrame({"id": [1., 2.5, None], "at": pd.to_datetime(["1998-07-01", "1998-07-02 10:30", None], format="mixed"), "on": [True, False, True], "t": ["a,b", 'c"d', None]})
    df.to_excel(tmp_path/"a.xlsx", index=False)
    with open_table_bytes(tmp_path/"a.xlsx") as f:
        assert f.read().decode() == 'id,at,on,t\n1,1998-07-01,True,"a,b"\n2.5,1998-07-02 10:30:00,False,"c""d"\n,,True,\n'
    with pd.ExcelWriter(tmp_path/"b.xlsx") as book:
        for sheet in ("May", "June"): df.to_excel(book, sheet_name=sheet, index=False)
    with pytest.raises(DataError, match="sheets May, June have rows; save the sheet that is meant"): infer_description(tmp_path/"b.xlsx")

@pytest.mark.parametrize("value", ["1e300", "-4e38", "3.5e38"])
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_number_that_is_too_large_is_named(tmp_path, value, form):
    df = customers()
    path, out = tmp_path/f"a.{form}", tmp_path/"out.parquet"
    write = (lambda: df.to_csv(path, index=False)) if form == "csv" else (lambda: df.to_parquet(path))
    write()
    d = infer_description(path)
    df.loc[7, "x"] = float(value)
    write()
    for read in (lambda: infer_description(path), lambda: prepare(d, out)):
        with pytest.raises(DataError, match="row 8, column x: .*correct the cell or empty it"): read()
    assert not out.exists()
