"""For any messy file, every command reads the same names and values: describe and run (the typed table), score,
drift, push, and the API. No model is trained here; what scoring reads is compared with what training reads."""
import csv, io, math
from types import SimpleNamespace
import msgspec, numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet as pq, pytest
from hypothesis import HealthCheck, Phase, given, settings as rules, strategies as st
from churn_nb.batch.readers import open_model_input
from churn_nb.batch.scorer import feature_matrix
from churn_nb.core.errors import DataError
from churn_nb.core.manifest import Feature
from churn_nb.data.dataset_toml import read_description, write_description
from churn_nb.data.encoding import Dictionary, usable_names
from churn_nb.data.schema_inference import DescribeOptions, infer_description
from churn_nb.data.tabular_reader import read_chunks
from churn_nb.data.typed_table import prepare
from churn_nb.data.value_parsing import read_format
from churn_nb.drift import read_table
from churn_nb.ops.event_worker import read_event_rows
from churn_nb.serving.open_inference import InferenceModel, infer
from churn_nb.serving.request_schema import RequestSchema

quick = rules(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], phases=[Phase.generate])
NAMES = ["age", " age", "AGE", "age ", '"age"', "age_", "AGE_", "\xa0age", "m²", "m2", "", "\\", "plan", "Größe", "Gro\u0308ße", "row", "ROW", "at"]
headers = st.lists(st.sampled_from(NAMES), min_size=4, max_size=4)

def csv_bytes(rows, delimiter=",", encoding="utf-8"):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return out.getvalue().encode(encoding)

def trained(file, home, **options):
    "The typed table of a file, and its description as training reads it."
    d = infer_description(file, DescribeOptions(label="left", **options))
    write_description(d, home/"dataset.toml")
    prepare(d := read_description(home/"dataset.toml"), home/"typed.parquet")
    return pq.read_table(home/"typed.parquet").to_pandas().sort_values("row"), d

def features_of(d, frame):
    return [Feature(name=n, nullable=True, **(dict(type="string", values=sorted({*frame[n].dropna()})) if n in d.categories else {})) for n in d.names]

def scored(file, form, features, chunk_rows=50):
    "What scoring reads of a file, its rows that are named, and how many rows it has."
    source, dictionary, parts, named = open_model_input(file, form, features), Dictionary.of(features), [], set()
    for chunk in read_chunks(source.reader, chunk_rows):
        table = chunk.table.select([source.columns[f.name] for f in features]).rename_columns([f.name for f in features])
        X, invalid = feature_matrix(table, features, dictionary, source.form)
        parts.append(X)
        named |= {int(chunk.row_numbers[i]) for i in {*invalid, *chunk.invalid}}
    return np.concatenate(parts), named | {line.row for line in source.reader.malformed}

@quick
@given(headers, st.sampled_from(["csv", "parquet"]))
def test_every_header_that_trains_is_scored(tmp_path_factory, names, kind):
    "Duplicates, case variants, quotes and blanks in names: one function makes them distinct for every command."
    home = tmp_path_factory.mktemp("headers")
    columns = [[i, 2*i + .5, 1000 - i, (7*i) % 13] for i in range(60)]
    rows = [[*values, ["no", "yes"][i % 3 == 0]] for i, values in enumerate(columns)]
    file, header = home/f"a.{kind}", [*names, "left"]
    if kind == "csv": file.write_bytes(csv_bytes([header, *rows]))
    else: pq.write_table(pa.table(list(map(list, zip(*rows))), names=header), file)
    frame, d = trained(file, home, keep=tuple(usable_names(header)[:4]), numbers=tuple(usable_names(header)[:4]))
    features = features_of(d, frame)
    X, named = scored(file, read_format(home/"dataset.toml"), features)
    assert not named and len(d.names) == 4
    np.testing.assert_array_equal(X, np.array(columns, np.float32))
    np.testing.assert_array_equal(X, frame[d.names].to_numpy(np.float32))
    np.testing.assert_array_equal(read_table(file).iloc[:, :4].to_numpy(np.float32), X)
    assert list(read_table(file)) == usable_names(header) == [*read_event_rows(file)[0]]

BLANK = ["", "", " ", "\t", "\xa0", "\u2007", "\u3000", "\u200b", " \u202f"]
MISSING = ["", "?", "NA", "n/a", "-", "NULL", " None "]
STRAY = ["unknown", "inf", "-inf", "Infinity", "12 apples", "1.2.3", "k.A."]
BREAKS = {"few": lambda row: row[:-1], "many": lambda row: [*row, "9"]}
rows_of = st.lists(st.tuples(st.integers(-10**6, 10**6), st.integers(0, 999), st.sampled_from(["basic", "pro", "Größe M", "none", "NA", "a;b,c", 'say "x"']),
                             *[st.sampled_from(BLANK)]*2, st.sampled_from([None]*9 + MISSING), st.sampled_from([None]*20 + STRAY)), min_size=30, max_size=60)
styles = st.tuples(st.sampled_from(",;\t|"), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]), st.sampled_from(".,"), st.sampled_from(["", *BREAKS]))

def encodable(text, encoding):
    try: text.encode(encoding)
    except UnicodeEncodeError: return False
    return True

def messy(rows, style):
    "Rows of texts: spend, age and plan as people write them, a gap or a stray text in any of them."
    delimiter, encoding, decimal, _ = style
    out = []
    for i, (n, age, plan, left, right, gap, stray) in enumerate(rows):
        spend = f"{n/100:,.2f}".translate(str.maketrans(",.", ".,")) if decimal == "," else f"{n/100:,.2f}"
        cells = [spend if gap is None else gap, str(age) if stray is None else stray, plan if gap is None or i % 2 else gap]
        cells = [f"{left}{c}{right}" if encodable(left + right, encoding) else c for c in cells]
        out.append([*cells, ["no", "yes"][i % 3 == 0]])
    return out

def api_matrix(features, frame_rows):
    "What /predict/batch, /predict and the tensors of /v2 make of rows as a client has them: numbers, and texts as they are in the file."
    schema = RequestSchema(features)
    body = msgspec.json.encode(frame_rows)
    batch = schema.encoder.encode([t[1:] for t in schema.decode(body, many=True)])
    singles = np.concatenate([schema.encoder.encode([schema.decode(msgspec.json.encode(r))[0][1:]]) for r in frame_rows[:5]])
    np.testing.assert_array_equal(singles, batch[:5])
    return batch

@quick
@given(rows_of, styles)
def test_every_row_that_trains_is_scored_with_the_value_training_saw(tmp_path_factory, drawn, style):
    "By file, in drift, and by the API; a line that is no row stops training and is named by scoring."
    home = tmp_path_factory.mktemp("messy")
    drawn += [(25 + i, i % 70, ["basic", "pro"][i % 2], "", "", None, None) for i in range(400)] # so that nine of ten agree
    rows, (delimiter, encoding, _, broken) = messy(drawn, style), style
    header, file = [" spend", "age\t", '"plan"', "left"], home/"a.csv"
    file.write_bytes(csv_bytes([header, *rows], delimiter, encoding))
    frame, d = trained(file, home, keep=("spend", "age", "plan"))
    assert len(frame) == len(rows) and d.categories == ["plan"]
    features = with_missing(features_of(d, frame), home)
    expected = Dictionary.of(features).encode(frame)
    for form in (read_format(home/"dataset.toml"), None): # without the description the manifest tells
        X, named = scored(file, form, features)
        assert not named
        np.testing.assert_array_equal(X, expected)
    window = read_table(file, read_format(home/"dataset.toml"))
    np.testing.assert_array_equal(window.age.to_numpy(np.float32), expected[:, 1])
    np.testing.assert_array_equal(window.spend.to_numpy(np.float32), expected[:, 0])
    assert [None if v is None or v != v else v for v in window.plan] == [None if v is None or v != v else v for v in frame.plan]
    sent = [{"spend": none(x), "age": none(a), "plan": row[2]} for (x, a, _), row in zip(expected.tolist(), rows)]
    np.testing.assert_array_equal(api_matrix(features, sent), expected)
    tensor = {"name": "categories", "datatype": "BYTES", "shape": [len(rows), 1], "data": [row[2] for row in rows]}
    numbers = {"name": "features", "datatype": "FP32", "shape": [len(rows), 2], "data": [none(v) for v in expected[:, :2].ravel().tolist()]}
    np.testing.assert_array_equal(tensors(features, [numbers, tensor]), expected)
    if broken:
        file.write_bytes(csv_bytes([header, *rows[:7], BREAKS[broken](rows[7]), *rows[8:]], delimiter, encoding))
        X, named = scored(file, read_format(home/"dataset.toml"), features)
        assert named == {8} and len(X) == len(rows) - 1
        with pytest.raises(DataError, match="row 8"): prepare(d, home/"broken.parquet")

def none(v): return None if v != v else v

def with_missing(features, home):
    "The features as the manifest has them after training: with what meant missing there."
    form = read_format(home/"dataset.toml")
    return [msgspec.structs.replace(f, missing=form.missing.get(f.name, [] if f.name in form.exact else None)) for f in features]

def tensors(features, inputs):
    "The matrix that /v2 scores."
    seen = []
    model = InferenceModel(SimpleNamespace(features=features, input="features", output="probability", version="1"), lambda X: seen.append(X) or np.zeros(len(X), np.float32), 10_000)
    infer(model, msgspec.json.encode({"inputs": inputs}))
    return seen[0]

def test_a_new_stray_text_is_named_in_scoring(tmp_path):
    (tmp_path/"a.csv").write_text("age,left\n" + "".join(f"{'unknown' if i == 3 else i},{'yes' if i % 3 else 'no'}\n" for i in range(60)))
    frame, d = trained(tmp_path/"a.csv", tmp_path, keep=("age",))
    assert d.columns[0].stray == ("unknown",) and any("unknown" in f.sentence for f in d.findings)
    (tmp_path/"b.csv").write_text("age\n1\nUnknown \nlots\ninf\n1e400\n")
    X, named = scored(tmp_path/"b.csv", read_format(tmp_path/"dataset.toml"), features_of(d, frame))
    assert named == {3, 4, 5} and np.isnan(X[1, 0])

@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_number_listed_as_missing_is_missing_everywhere(tmp_path, kind):
    "In training, in scoring, and in the API; written as 999, 999.0 or a text."
    ages = [999 if i % 7 == 0 else i for i in range(60)]
    frame = pd.DataFrame({"age": ages, "x": range(60), "left": ["yes" if i % 3 else "no" for i in range(60)]})
    file = tmp_path/f"a.{kind}"
    frame.to_csv(file, index=False) if kind == "csv" else frame.to_parquet(file)
    (tmp_path/"dataset.toml").write_text(f'file = "{file.name}"\nlabel = "left"\nkeep = ["age", "x"]\n[columns.age]\nmissing = ["999"]\n')
    prepare(d := read_description(tmp_path/"dataset.toml"), tmp_path/"typed.parquet")
    typed = pq.read_table(tmp_path/"typed.parquet").to_pandas()
    features = with_missing(features_of(d, typed), tmp_path)
    X, named = scored(file, read_format(tmp_path/"dataset.toml"), features)
    assert not named and np.isnan(X[:, 0]).sum() == 9
    np.testing.assert_array_equal(X, typed[d.names].to_numpy(np.float32))
    np.testing.assert_array_equal(api_matrix(features, [{"age": float(a), "x": i} for i, a in enumerate(ages)]), X)

def test_parquet_s_own_infinity_is_missing_in_both(tmp_path):
    frame = pd.DataFrame({"age": [math.inf if i == 3 else float(i) for i in range(60)], "left": ["yes" if i % 3 else "no" for i in range(60)]})
    frame.to_parquet(tmp_path/"a.parquet")
    typed, d = trained(tmp_path/"a.parquet", tmp_path, keep=("age",))
    X, named = scored(tmp_path/"a.parquet", read_format(tmp_path/"dataset.toml"), features_of(d, typed))
    assert not named and np.isnan(X[3, 0]) and np.isnan(typed.age[3])

LETTERS = {"cp1252": ["Compañía", "São João", "Informações", "Très élevé", "Größe", "Müller", "Città", "perché", "Rødovre", "Malmö", "Noël", "Álvarez Muñoz", "Ação", "Österreich"],
           "cp1250": ["Łódź", "Plzeň Žďár", "Győr", "Kraków Wrzeszcz Gdańsk", "Škoda Dvořák", "Košice Prešov Ľubovňa", "Iaşi Timişoara"]}

@pytest.mark.parametrize("text, encoding", [(t, e) for e, texts in LETTERS.items() for t in texts])
def test_letters_are_read_as_they_were_written(tmp_path, text, encoding):
    "And it is said which encoding was taken and why, with a word; the header, too, is read in it."
    (tmp_path/"a.csv").write_bytes((f"id;{text};plan;left\n" + "".join(f"{i};{i % 7};{[text, 'pro'][i % 2]};{['yes', 'no'][i % 3 > 0]}\n" for i in range(60))).encode(encoding))
    d = infer_description(tmp_path/"a.csv", DescribeOptions(label="left"))
    (said,) = [f.sentence for f in d.findings if f.rule == "encoding"]
    assert d.dialect.encoding == encoding and d.columns[1].name == text and encoding in said and max(text.split(), key=lambda w: not w.isascii()) in said
    assert read_table(tmp_path/"a.csv").plan[0] == text == read_event_rows(tmp_path/"a.csv")[0]["plan"]

def test_an_encoding_that_is_given_is_taken(tmp_path):
    "By flag and by a short description; one that does not exist is an error."
    (tmp_path/"a.csv").write_bytes(("plan;x;left\n" + "".join(f"{['a£b', 'pro'][i % 2]};{i};{['yes', 'no'][i % 3 > 0]}\n" for i in range(60))).encode("cp850"))
    d = infer_description(tmp_path/"a.csv", DescribeOptions(label="left", csv={"encoding": "cp850"}))
    assert d.dialect.encoding == "cp850" and "a£b" in d.columns[0].shown and not [f for f in d.findings if f.rule == "encoding"]
    (tmp_path/"dataset.toml").write_text('file = "a.csv"\nlabel = "left"\n[csv]\nencoding = "cp850"\n')
    assert read_description(tmp_path/"dataset.toml").dialect.encoding == "cp850"
    with pytest.raises(DataError, match="no encoding is called klingon"): infer_description(tmp_path/"a.csv", DescribeOptions(label="left", csv={"encoding": "klingon"}))

def test_a_wrong_byte_in_utf8_is_named(tmp_path):
    (tmp_path/"a.csv").write_bytes(("plan,left\n" + "".join(f"Größe {i % 3},{'yes' if i % 3 else 'no'}\n" for i in range(60))).encode() + b"Gr\xf6sse,yes\n")
    with pytest.raises(DataError, match="row 61, column plan: not UTF-8"): infer_description(tmp_path/"a.csv", DescribeOptions(label="left"))
