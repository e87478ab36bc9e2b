"One tabular reader: what `describe` reads of a file is what `score`, `drift` and `push` read of it, in any dialect."
import csv, gzip, io, math
from datetime import timezone
import numpy as np, pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings as rules, strategies as st
from churn_nb.batch.readers import open_model_input
from churn_nb.batch.scorer import feature_matrix
from churn_nb.core.manifest import Feature
from churn_nb.data.dataset_toml import read_description, write_description
from churn_nb.data.encoding import Dictionary
from churn_nb.data.schema_inference import DescribeOptions, infer_description as describe
from churn_nb.data.tabular_reader import read_chunks
from churn_nb.data.typed_table import prepare, prepare_events
from churn_nb.data.value_parsing import read_format
from churn_nb.drift import read_table
from churn_nb.ops.event_worker import parse_event, read_event_rows

class Dialect:
    "How a file is written."
    def __init__(self, delimiter, encoding, decimal, missing, newline, quoting, thousands, packed, blanks):
        self.delimiter, self.encoding, self.decimal, self.missing, self.newline = delimiter, encoding, decimal, missing, newline
        self.quoting, self.thousands, self.packed, self.blanks = quoting, thousands, packed, blanks
    def number(self, x):
        if x is None: return self.missing
        text = f"{x:,.2f}" if self.thousands else f"{x:.2f}"
        return text.translate(str.maketrans(",.", ".,")) if self.decimal == "," else text
    def text(self, t): return self.missing if t is None else f" {t} " if self.blanks else t
    def write(self, folder, rows):
        out = io.StringIO()
        csv.writer(out, delimiter=self.delimiter, lineterminator=self.newline, quoting=self.quoting).writerows(rows)
        data = out.getvalue().encode(self.encoding)
        path = folder/("a.csv.gz" if self.packed else "a.csv")
        path.write_bytes(gzip.compress(data) if self.packed else data)
        return path
    def __repr__(self): return f"Dialect({vars(self)})"

dialects = st.builds(Dialect, st.sampled_from(",;\t|"), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]), st.sampled_from(".,"), st.sampled_from(["", "?", "NA", "n/a", "-", "NULL"]),
                     st.sampled_from(["\n", "\r\n"]), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), st.booleans(), st.booleans(), st.booleans())
amounts = st.one_of(st.none(), st.integers(0, 10**7).map(lambda n: n/100), st.integers(0, 10**9).map(lambda n: n/100))
plans = st.sampled_from([None, "basic", "Größe M", "a;b", "a,b", 'say "x"', "two\nlines", "x|y"])
slow = rules(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

@slow
@given(dialects, st.lists(st.tuples(amounts, plans, st.booleans()), min_size=12, max_size=40), st.integers(1, 7))
def test_describe_score_and_drift_read_the_same_values(tmp_path_factory, dialect, drawn, chunk_rows):
    home = tmp_path_factory.mktemp("dialect")
    # an unambiguous number and two plans, so that the sign and the column's kind can be inferred from so few rows
    drawn = [(0.25, "basic", False), (1234.75, "pro", True), *drawn, *[(i/4, "basic", i % 2 == 0) for i in range(40)]]
    header = [" spend " if dialect.blanks else "spend", "plan", "left"]
    file = dialect.write(home, [header, *([dialect.number(x), dialect.text(p), "yes" if y else "no"] for x, p, y in drawn)])
    d = describe(file, DescribeOptions(label="left", categories=("plan",), numbers=("spend",), keep=("spend", "plan")))
    write_description(d, home/"dataset.toml")
    prepare(read_description(home/"dataset.toml"), home/"typed.parquet")
    trained = pq.read_table(home/"typed.parquet")
    as_float32 = lambda some: np.array([math.nan if v is None else v for v in some], np.float32)
    np.testing.assert_array_equal(as_float32(x for x, *_ in drawn), as_float32(trained["spend"].to_pylist()))
    # scoring, by the description
    values = sorted({p for p in trained["plan"].to_pylist() if p is not None})
    features = [Feature("spend", nullable=True), Feature("plan", type="string", nullable=True, values=values)]
    table = open_model_input(file, read_format(home/"dataset.toml"), features)
    matrices = []
    for chunk in read_chunks(table.reader, chunk_rows):
        named = chunk.table.select([table.columns[f.name] for f in features]).rename_columns([f.name for f in features])
        X, invalid = feature_matrix(named, features, Dictionary.of(features), table.form)
        assert not invalid and not chunk.invalid
        matrices.append(X)
    X = np.concatenate(matrices)
    assert table.reader.malformed == []
    np.testing.assert_array_equal(X, Dictionary.of(features).encode({n: trained[n].to_pandas() for n in ("spend", "plan")}))
    # drift, without a description but for the encoding
    frame = read_table(file, read_format(home/"dataset.toml"))
    assert list(frame) == ["spend", "plan", "left"] and len(frame) == len(drawn)
    spend, plan = frame.spend, frame.plan
    np.testing.assert_array_equal(as_float32(spend), as_float32(trained["spend"].to_pylist()))
    assert [None if v is None or v != v else v for v in plan] == trained["plan"].to_pylist()

@slow
@given(dialects, st.lists(st.integers(1, 10**8).map(lambda n: n/100), min_size=3, max_size=20))
def test_push_reads_the_amounts_that_describe_reads(tmp_path_factory, dialect, drawn):
    home = tmp_path_factory.mktemp("events")
    drawn = [0.25, 1234.75, *drawn]
    header = ["event_id", "customer_id", "event_timestamp", "amount", "quantity"]
    rows = [[i, 47 + i % 3, f"1998-07-{i % 28 + 1:02}", dialect.number(x), dialect.missing if i % 2 else 2] for i, x in enumerate(drawn, 1)]
    file = dialect.write(home, [header, *rows])
    d = describe(file, DescribeOptions(kind="events", quantity="quantity"))
    prepare_events(d, home/"log.parquet")
    logged = pq.read_table(home/"log.parquet").sort_by("event_id").to_pylist()
    pushed = [parse_event(row) for row in read_event_rows(file if not dialect.packed else unpacked(file))]
    assert [(e["customer_id"], e["amount"], e["quantity"]) for e in pushed] == [(e["customer_id"], e["amount"], e["quantity"]) for e in logged]
    assert [e["event_timestamp"].astimezone(timezone.utc).replace(tzinfo=None) for e in pushed] == [e["event_timestamp"].replace(tzinfo=None) for e in logged]

def unpacked(file):
    plain = file.with_name("plain.csv")
    plain.write_bytes(gzip.decompress(file.read_bytes()))
    return plain
