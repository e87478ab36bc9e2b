"A column that is named like a role and whose values do not fit is a plain one; a role that was given and does not fit is an error."
import pytest
from churn_nb.core.errors import DataError
from churn_nb.data.description import ROLES
from churn_nb.data.schema_inference import DescribeOptions, infer_description as describe
from churn_nb.data.typed_table import prepare, prepare_events

N = 200
VALUES = {"text": [f"w{i % 3}" for i in range(N)], "one value": ["same"]*N, "empty": [""]*N, "five": [i % 5 for i in range(N)], "fractions": [f"{i*1.37:.2f}" for i in range(N)],
          "numbers": [*range(1, N + 1)], "repeated": [i % 50 for i in range(N)]}
PLAIN = {"snapshot": {"calls": [i % 11 for i in range(N)], "spend": [i*37 % 83 for i in range(N)], "exited": ["yes" if i*i % 7 > 1 else "no" for i in range(N)]},
         "events": {"client": [f"c{i % 31}" for i in range(N)], "purchase_date": [f"2025-{1 + i % 9:02}-{1 + i % 27:02}" for i in range(N)], "revenue": [f"{i % 17}.5" for i in range(N)],
                    "qty": [1 + i % 3 for i in range(N)]}}
ODD = {  # kind, role -> name that is guessed, values that do not fit, the column that is taken instead
    ("snapshot", "label"): ("churn", ("text", "one value", "empty", "five", "fractions"), "exited"),
    ("snapshot", "entity"): ("customer_id", ("text", "one value", "empty", "fractions", "repeated"), None),
    ("snapshot", "timestamp"): ("date", ("text", "empty", "fractions", "numbers"), None),
    ("events", "entity"): ("customer_id", ("one value", "empty", "fractions"), "client"),
    ("events", "timestamp"): ("at", ("text", "empty", "fractions", "numbers"), "purchase_date"),
    ("events", "amount"): ("amount", ("text", "empty"), "revenue"),
    ("events", "quantity"): ("quantity", ("text", "empty"), "qty"),
    ("events", "unit_price"): ("unit_price", ("text", "empty"), None),
    ("events", "event_id"): ("event_id", ("text", "one value", "empty", "fractions", "repeated"), None),
    ("events", "order"): ("order_id", ("one value", "empty", "fractions"), None),
}
CASES = [(kind, role, name, values, other) for (kind, role), (name, odd, other) in ODD.items() for values in odd]

@pytest.fixture
def read(tmp_path):
    "The description of a file with these columns, and how many rows of it are used."
    def of(columns, **how):
        rows = [",".join(map(str, r)) for r in zip(*columns.values())]
        (file := tmp_path/"f.csv").write_text("\n".join([",".join(columns), *rows]) + "\n")
        d = describe(file, DescribeOptions(**how))
        return d, (prepare_events if d.kind == "events" else prepare)(d, tmp_path/"out.parquet")["rows"]
    return of

def columns_with(kind, name, values):
    without = "revenue" if name == "unit_price" else ""  # where an amount is known, no price is needed
    return {name: VALUES[values]} | {n: v for n, v in PLAIN[kind].items() if n != without}

def test_every_role_is_tried(): assert {role for _, role in ODD} == {*ROLES}

@pytest.mark.parametrize("kind, role, name, values, other", CASES)
def test_a_guess_that_does_not_fit_is_a_plain_column(read, kind, role, name, values, other):
    d, used = read(columns_with(kind, name, values), kind=kind)
    assert used == N and d.role(role) == other
    assert any(f.rule == "role" and f.sentence.startswith(f"{name}: ") for f in d.findings)

@pytest.mark.parametrize("kind, role, name, values, other", CASES)
def test_a_given_role_that_does_not_fit_is_an_error(read, kind, role, name, values, other):
    with pytest.raises(DataError, match=f"(column|label) {name}"): read(columns_with(kind, name, values), **{"kind": kind, role: name})

@pytest.mark.parametrize("kind, role", ODD)
def test_a_dropped_column_has_no_role(read, kind, role):
    name, odd, other = ODD[kind, role]
    d, used = read(columns_with(kind, name, odd[-1]), kind=kind, drop=(name,))
    assert used == N and d.role(role) == other and not any(f.rule == "role" for f in d.findings)

def test_a_column_is_not_given_and_dropped(read):
    with pytest.raises(DataError, match="column exited: --label names it and --drop leaves it out"): read(PLAIN["snapshot"], label="exited", drop=("exited",))

def test_a_guessed_time_that_holds_none_is_a_feature(read):
    assert read({"time": [5 + i*7 % 40 for i in range(N)]} | PLAIN["snapshot"])[0].names == ["time", "calls", "spend"]

def test_repeated_ids_of_a_table_are_no_feature(read):
    d, _ = read(columns_with("snapshot", "customer_id", "repeated"))
    assert d.names == ["calls", "spend"] and any("150 of 200 rows repeat one; left out; where a customer has several rows, say --entity" in f.sentence for f in d.findings)
    assert "customer_id_" in read(columns_with("snapshot", "customer_id", "text"))[0].categories

def test_a_few_repeated_ids_are_still_ids(read):
    with pytest.raises(DataError, match="rows 1 and 200, column customer_id: '1' is there twice"): read({"customer_id": [*range(1, N), 1]} | PLAIN["snapshot"])

def test_the_number_of_a_row_names_no_customer_of_a_log(read):
    d, _ = read({"id": [*range(N)], "user_id": [i % 31 for i in range(N)], "date": PLAIN["events"]["purchase_date"]}, kind="events")
    assert (d.entity, d.role("event_id")) == ("user_id", "id")
    with pytest.raises(DataError, match="column id .* every row has another; name another column with --entity"):
        read({"id": [*range(N)], "date": PLAIN["events"]["purchase_date"]}, kind="events")
