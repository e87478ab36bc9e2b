"One key of an id: training, requests, events and files of events agree, however the id is spelled."
import json
import duckdb, msgspec, pandas as pd, pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings as rules, strategies as st
from churn_nb.core.manifest import Feature
from churn_nb.data.encoding import event_key, key_text, key_text_sql
from churn_nb.data.schema_inference import DescribeOptions, infer_description as describe
from churn_nb.data.typed_table import prepare_events
from churn_nb.feature_store.event_log import customer_key_type
from churn_nb.ops.event_worker import parse_event, read_event_rows
from churn_nb.serving.request_schema import RequestSchema

slow = rules(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
numbers = st.lists(st.integers(0, 2**53), min_size=2, max_size=8, unique=True)
texts = st.lists(st.text("AZaz09-._é@", min_size=1, max_size=8).map(lambda t: f"C{t}"), min_size=2, max_size=8, unique_by=key_text)
ways = {"as numbers": lambda v: v, "as floats": float, "as texts": str, "as texts of floats": lambda v: f"{v}.0", "between blanks": lambda v: f" {v} "}

def written(home, kind, ids):
    "A log in which each customer has one purchase; one row more has no customer."
    frame = pd.DataFrame({"customer": [*ids, None], "at": "2025-01-01", "amount": range(1, len(ids) + 2)})
    if all(isinstance(i, int) for i in ids): frame["customer"] = frame.customer.astype("Int64")
    file = home/f"log.{kind}"
    frame.to_parquet(file, index=False) if kind == "parquet" else frame.to_csv(file, index=False)
    return file

def trained(file):
    "The key of each purchase by its amount, and how customers are named."
    prepare_events(describe(file, DescribeOptions(kind="events")), out := file.with_name("out.parquet"))
    return {int(r["amount"]) - 1: r["customer_id"] for r in pq.read_table(out).to_pylist()}, customer_key_type(out)

def asked(kind, value):
    ((key, *_),) = RequestSchema([Feature(name="x")], kind).decode(json.dumps({"customer_id": value}).encode())
    return int(key)

def agree(home, file, ids):
    "The key of each spelling, wherever it is sent, is the one that training gave."
    keys, kind = trained(file)
    assert [*keys] == [*range(len(ids))] and len({*keys.values()}) == len(ids)
    for i, value in enumerate(ids):
        spellings = [value, str(value), f" {value} "] + ([float(value), f"{value}.0"] if isinstance(value, int) else [])
        for spelled in spellings:
            event = {"event_id": "E-1", "customer_id": spelled, "event_timestamp": "2025-01-01", "amount": 1}
            assert asked(kind, spelled) == keys[i]
            assert parse_event(msgspec.Raw(json.dumps(event).encode()), kind)["customer_id"] == keys[i]
        pd.DataFrame([{**event, "customer_id": s} for s in map(str, spellings)]).to_csv(home/"push.csv", index=False)
        assert {parse_event(r, kind)["customer_id"] for r in read_event_rows(home/"push.csv")} == {keys[i]}

@slow
@given(numbers, st.sampled_from([*ways]), st.sampled_from(["csv", "parquet"]))
def test_a_number_has_one_key_however_spelled(tmp_path_factory, ids, way, kind):
    home = tmp_path_factory.mktemp("keys")
    file = written(home, kind, [ways[way](i) for i in ids])
    assert trained(file)[1] == "int"
    agree(home, file, ids)

@slow
@given(texts, st.sampled_from(["as texts", "between blanks"]), st.sampled_from(["csv", "parquet"]))
def test_a_text_has_one_key_however_spelled(tmp_path_factory, ids, way, kind):
    home = tmp_path_factory.mktemp("keys")
    file = written(home, kind, [ways[way](i) for i in ids])
    assert trained(file)[1] == "text"
    agree(home, file, ids)

@rules(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12) | st.from_regex(r" ?[0-9]{1,20}(\.0*)? ?", fullmatch=True))
def test_sql_and_python_spell_alike(text):
    assert duckdb.execute(f"SELECT {key_text_sql('v', False)} FROM (SELECT ? AS v)", [text]).fetchone()[0] == key_text(text)

@given(st.integers(0, 2**63 - 1))
def test_a_whole_event_id_is_its_own_key(i):
    assert event_key(key_text(i)) == event_key(f"{i}") == i
