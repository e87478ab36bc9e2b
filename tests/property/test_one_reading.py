"""For any messy file, every command reads the same names and values: describe and run (the typed table), score,
drift, push, and the API. No model is trained here; what scoring reads is compared with what training reads."""
import csv, io
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, given, settings as rules, strategies as st
from churn_nb.batch.readers import open_model_input
from churn_nb.batch.scorer import feature_matrix
from churn_nb.core.manifest import Feature
from churn_nb.data.dataset_toml import read_description, write_description
from churn_nb.data.encoding import Dictionary, usable_names
from churn_nb.data.schema_inference import DescribeOptions, infer_description
from churn_nb.data.tabular_reader import read_chunks
from churn_nb.data.typed_table import prepare
from churn_nb.data.value_parsing import read_format
from churn_nb.drift import read_table
from churn_nb.ops.event_worker import read_event_rows

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
