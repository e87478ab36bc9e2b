"What scoring keeps of a file is kept as it was: byte for byte in CSV, exactly in parquet."
import gzip
from decimal import Decimal
from types import SimpleNamespace
from unittest.mock import patch
import numpy as np, pyarrow as pa, pyarrow.parquet as pq, pytest
from hypothesis import HealthCheck, given, settings as rules, strategies as st
from churn_nb.batch import writers
from churn_nb.batch.job import ScoreOptions, score_file
from churn_nb.core.errors import DataError
from churn_nb.core.settings import load_settings

slow = rules(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
manifest = SimpleNamespace(features=[SimpleNamespace(name="x", nullable=False, values=None, missing=None, type="float32")], reference=None, threshold=.5, version="1", run_id="r", dataset="demo", files={})
model = SimpleNamespace(manifest=manifest, predict=lambda X: np.full(len(X), .25, np.float32))
OURS = ["probability", "churn_risk", "model_version"]

def score(source, out, **options):
    settings = load_settings({"paths.workspace": source.parent}, environ={})
    return score_file(settings, model, source, out, ScoreOptions(threads=1, **options))

# --- CSV to CSV ---

SPELLINGS = ["", "007", "1.10", "-", "-0", "1e400", "12345678901234567890", "2024-03-01", "01.02.2023", "TRUE", "NULL", "=1+1", "5 \"", 'a"b""']
quoted = st.tuples(st.text("ab ,;\t|é\"\n\r", max_size=6), st.sampled_from(["", "b", 'b"'])).map(lambda t: '"' + t[0].replace('"', '""') + '"' + t[1])
cells = st.one_of(quoted, st.sampled_from(SPELLINGS), st.text("ab 0é'-.", max_size=5))
lines = st.lists(st.tuples(st.sampled_from(["7", '"7"', "7", " 7", "old", "too many", "empty"]), cells, cells), min_size=1, max_size=12)
ends = st.sampled_from([["\n"], ["\r\n"], ["\r"], ["\n", "\r\n"]])
encodings = st.sampled_from([("utf-8", ""), ("utf-8", "\ufeff"), ("utf-16-le", "\ufeff"), ("utf-16-be", "\ufeff"), ("cp1252", ""), ("gb18030", "")])

@slow
@given(lines, ends, encodings, st.sampled_from(",;\t|"), st.booleans(), st.booleans(), st.booleans(), st.sampled_from([(1, 4), (2, 7), (3, 31), (5, 1 << 20)]))
def test_csv_keeps_every_byte_of_scored_lines(tmp_path_factory, rows, ends, encoding, by, cut, replaced, packed, sizes):
    "cut: the last line has no end. replaced: the file has a column of scoring's own. sizes: rows of a chunk, bytes of a block."
    home, (charset, mark) = tmp_path_factory.mktemp("kept"), encoding
    rows = [*rows, ("7", "a", 'b"' if cut else "")]
    there, expected = mark, mark
    for i, (x, a, b) in enumerate([("x", '"id"', "no te"), *rows]):
        end = "" if cut and i == len(rows) else ends[i % len(ends)]
        old = [OURS[0] if i == 0 else '"o,;\tld"']*replaced
        there += end if x == "empty" else by.join([a, *old, x, b, *["more"]*(x == "too many")]) + end
        if x.strip(' "') in ("x", "7"): expected += by.join([a, x, b, *(OURS if i == 0 else ["0.25", "0", "1"])]) + end
    source = home/("in.csv.gz" if packed else "in.csv")
    source.write_bytes(gzip.compress(there.encode(charset)) if packed else there.encode(charset))
    (home/"dataset.toml").write_text(f'[csv]\ndelimiter = "{by}"\nencoding = "{charset.removesuffix("-le").removesuffix("-be")}"\n')
    with patch.object(writers, "_BLOCK_BYTES", sizes[1]): done = score(source, home/"out.csv", description=home/"dataset.toml", overwrite=replaced, chunk_rows=sizes[0])
    assert (home/"out.csv").read_bytes() == expected.encode(charset)
    assert done.rows == sum(x != "empty" for x, *_ in rows)
    assert score(source, home/"out.csv", description=home/"dataset.toml", overwrite=replaced).scored == done.scored # it is known as ours

# --- to parquet ---

texts = st.lists(st.one_of(st.integers(-10**6, 10**6).map(str), st.floats(-1e6, 1e6).map(lambda x: f"{x:.3f}"), st.sampled_from([t for t in SPELLINGS if '"' not in t]), st.text("0123456789.-+e ", max_size=18)), min_size=1, max_size=6)

@slow
@given(st.one_of(texts, st.lists(st.integers(-20, 20).map(str), min_size=1, max_size=4).flatmap(lambda some: st.sampled_from([[*some, "-"], [*some, ""], [*some, "0.5"]]))))
def test_csv_to_parquet_loses_no_character(tmp_path_factory, column):
    "A number is kept as the number that is written like this."
    home = tmp_path_factory.mktemp("texts")
    (home/"in.csv").write_text("kept,x\n" + "".join(f"{t},7\n" for t in column))
    score(home/"in.csv", home/"out.parquet", chunk_rows=2)
    kept = pq.read_table(home/"out.parquet")["kept"].to_pylist()
    written = lambda v: "" if v is None else v if isinstance(v, str) else format(Decimal(repr(v)), "f").removesuffix(".0")
    assert [written(v) for v in kept] == column

@pytest.mark.parametrize("column, kind", [(["1", "-20"], pa.int64()), (["1", "", "2.5"], pa.float64()), (["1", "-"], pa.string()), (["1.10"], pa.string()), (["-0"], pa.string()), (["007"], pa.string()), (["0.12345678901234567"], pa.string()), (["2024-03-01"], pa.string()), (["", ""], pa.string())])
def test_a_kept_column_is_a_number_where_that_loses_nothing(tmp_path, column, kind):
    (tmp_path/"in.csv").write_text("kept,x\n" + "".join(f"{t},7\n" for t in column))
    score(tmp_path/"in.csv", tmp_path/"out.parquet")
    assert pq.read_schema(tmp_path/"out.parquet").field("kept").type == kind

typed = [pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.decimal128(30, 12), pa.date32(), pa.time64("us"), pa.timestamp("ns"), pa.timestamp("ms", "Europe/Berlin"), pa.duration("us"),
         pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view(), pa.binary(3), pa.uuid(), pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.string()), pa.struct([("a", pa.int16())]), pa.map_(pa.string(), pa.int8()), pa.null()]
SAMPLES = {pa.binary(3): b"abc", pa.uuid(): b"0123456789abcdef", pa.list_(pa.string()): ["a", None], pa.struct([("a", pa.int16())]): {"a": None}, pa.map_(pa.string(), pa.int8()): [("a", 1)], pa.decimal128(30, 12): Decimal("1.100000000001"), pa.float16(): np.float16(1.5), pa.bool_(): True}

def column_of(t, holes):
    value = None if t == pa.null() else SAMPLES.get(t, "007" if pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t) or pa.types.is_dictionary(t) else b"\xff\0" if pa.types.is_binary(t) or pa.types.is_binary_view(t) else 1)
    return pa.array([None if h else value for h in holes], t)

@slow
@given(st.lists(st.sampled_from(typed), min_size=1, max_size=5), st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=6), st.integers(1, 4))
def test_parquet_to_parquet_keeps_types_and_values(tmp_path_factory, types, drawn, chunk_rows):
    "Fields and metadata, too. Every row whose x is missing is rejected."
    home = tmp_path_factory.mktemp("types")
    holes, scored = [h for h, _ in drawn], [s for _, s in drawn]
    fields = [pa.field(f"c{i}", t, metadata={"unit": "€"}) for i, t in enumerate(types)] + [pa.field("x", pa.int16())]
    table = pa.table([*(column_of(t, holes) for t in types), pa.array([7 if s else None for s in scored], pa.int16())], schema=pa.schema(fields, {"made": "by hand"}))
    pq.write_table(table, home/"in.parquet")
    source = pq.read_table(home/"in.parquet")
    score(home/"in.parquet", home/"out.parquet", chunk_rows=chunk_rows)
    out = pq.read_table(home/"out.parquet").select(source.column_names)
    assert out.schema.equals(source.schema, check_metadata=True)
    assert out.to_pylist() == [r for r, s in zip(source.to_pylist(), scored) if s]

@pytest.mark.parametrize("t", typed, ids=str)
def test_parquet_to_csv_writes_every_value_or_refuses_the_column(tmp_path, t):
    pq.write_table(pa.table({"kept": column_of(t, [False, True, False]), "x": [7, 7, None]}), tmp_path/"in.parquet")
    held = pa.types.is_nested(t) or isinstance(t, pa.BaseExtensionType) or "binary" in str(t)
    if held:
        with pytest.raises(DataError, match="CSV can't hold column kept, .*; write .parquet"): score(tmp_path/"in.parquet", tmp_path/"out.csv")
        return
    score(tmp_path/"in.parquet", tmp_path/"out.csv")
    first, second = (tmp_path/"out.csv").read_text().splitlines()[1:]
    assert second.startswith(",7,") and first.startswith(",7," if t == pa.null() else tuple("0127t\"1"))
