"A log's own ids, copies, returns and prices: what they are taken for, what is said of it, and what flags change."
import pandas as pd, pytest
from churn_nb.core.errors import DataError
from churn_nb.data.dataset_toml import read_description, write_description
from churn_nb.data.encoding import event_key
from churn_nb.data.schema_inference import DescribeOptions, infer_description as describe
from churn_nb.data.typed_table import prepare_events

def log(n=40, **columns):
    "Purchases of seven customers on different days."
    return pd.DataFrame({"customer_id": [i % 7 for i in range(n)], "at": pd.date_range("2025-01-01", periods=n), "amount": [i + .5 for i in range(n)], **columns})

def retail(*more):
    rows = [("A1", "S1", 6, "2010-12-01T08:26", 2.55, 17850), ("A1", "S2", 6, "2010-12-01T08:27", 3.39, 17850), ("A2", "S1", 2, "2010-12-02T08:00", 1.85, 13047), *more]
    return pd.DataFrame(rows, columns="InvoiceNo StockCode Quantity InvoiceDate UnitPrice CustomerID".split())

def said(d, rule): return [f.sentence for f in d.findings if f.rule == rule]

@pytest.mark.parametrize("name, ids", [("event_id", range(100, 140)), ("transaction_id", [f"T-{i}" for i in range(40)]), ("id", range(40))])
def test_a_column_of_event_ids_gives_the_keys(read, name, ids):
    d, out, _ = read(log(**{name: [*ids]}), kind="events")
    assert d.role("event_id") == name and set(out.event_id) == {event_key(str(i)) for i in ids} and "names one event" in said(d, "event_id")[0]

def test_a_given_column_names_the_event(read):
    d, out, _ = read(log(voucher=[f"V{i}" for i in range(40)], event_id=range(40)), kind="events", event_id="voucher")
    assert d.role("event_id") == "voucher" and set(out.event_id) == {event_key(f"V{i}") for i in range(40)}

def test_a_dropped_id_column_is_not_used(read):
    d, out, _ = read(log(event_id=range(40)), kind="events", drop=("event_id",))
    assert d.role("event_id") is None and out.event_id.min() > 10**6

def test_an_event_that_stands_there_twice_counts_once(read):
    df = log(event_id=range(40), exported=1)
    d, out, made = read(pd.concat([df, df, df.head(5).assign(exported=2)]), kind="events")
    assert made["rows"] == 40 and "40 of 85 rows (47.1%) are equal" in said(d, "duplicates")[0] and "5 of 45 rows repeat" in said(d, "event_id")[0]

def test_ids_of_two_contents_name_no_events(read):
    ids = [i % 20 for i in range(40)]
    d, out, made = read(log(event_id=ids), kind="events")
    assert made["rows"] == 40 and d.role("event_id") is None and "20 ids have rows that differ, so it names no events" in said(d, "role")[0]
    with pytest.raises(DataError, match="rows 1 and 21, column event_id: event '0' is there with two contents; .* --order event_id"):
        read(log(event_id=ids), kind="events", event_id="event_id")

def test_a_transaction_id_of_several_lines_names_orders(read):
    ids = [i // 2 for i in range(40)]
    d, out, made = read(log(transaction_id=ids, customer_id=ids, at="2025-01-01"), kind="events")
    assert d.role("order") == "transaction_id" and made["rows"] == 20 and "20 ids have rows that differ, so it names orders" in said(d, "role")[0]

def test_lines_of_one_order_are_one_transaction(read):
    d, out, _ = read(retail(), kind="events")
    assert said(d, "order")[0].startswith("InvoiceNo: 3 lines are 2 orders; ")
    first = out.iloc[0]
    assert (first.event_id, first.amount, first.quantity, f"{first.event_timestamp:%H:%M}") == (event_key("A1"), 35.64, 12, "08:26")

def test_ids_of_several_customers_name_no_orders_unless_given(read):
    df = log(order_number=[i // 7 for i in range(40)])
    d, out, made = read(df, kind="events")
    assert made["rows"] == 40 and d.role("order") is None and "6 ids have several customers or days" in said(d, "role")[0]
    d, out, made = read(df, kind="events", order="order_number")
    assert made["rows"] == 40 and event_key("0/3") in {*out.event_id} and "6 orders have several customers" in said(d, "order")[1]

def test_rows_without_an_id_are_events_of_their_own(read):
    df = retail(*[(None, "S9", 1, "2010-12-05T08:00", 1.0, 13047 + i) for i in range(3)])
    d, out, made = read(df, kind="events")
    assert made["rows"] == 5 and out.event_id.is_unique and said(d, "missing") == ["InvoiceNo: 3 rows have no id; each is an event of its own"]

@pytest.mark.parametrize("how, rows, words", [({}, 80, "are they purchases of their own?"), ({"duplicates": "drop"}, 40, "--duplicates keep counts each")])
def test_copies_without_an_id_are_asked_about(read, how, rows, words):
    d, _, made = read(pd.concat([log(), log()]), kind="events", **how)
    assert made["rows"] == rows and "40 of 80 rows (50.0%)" in (it := said(d, "duplicates")[0]) and words in it

@pytest.mark.parametrize("duplicates, amount", [("", 35.64), ("keep", 71.28)])
def test_copied_lines_of_an_order_count_once_unless_kept(read, duplicates, amount):
    _, out, _ = read(pd.concat([retail()]*2), kind="events", duplicates=duplicates)
    assert out.amount[0] == amount

def test_returns_are_counted_and_left_out(read):
    d, out, _ = read(retail(("C3", "S1", -6, "2010-12-03", 2.55, 17850), ("C4", "S1", 1, "2010-12-03", -2.55, 17850)), kind="events")
    assert len(out) == 2 and said(d, "returns") == ["UnitPrice: 2 of 5 rows are returns (a negative amount or quantity); left out; --returns keep takes their amount off what was spent"]

def test_kept_returns_are_events_with_a_negative_amount(read):
    more = [("C3", "S1", -6, "2010-12-03", 2.55, 17850), ("A2", "S1", -1, "2010-12-02T09:00", 1.85, 13047)]
    d, out, _ = read(retail(*more), kind="events", returns="keep")
    assert out.set_index("event_id").amount.to_dict() == {event_key("A1"): 35.64, event_key("A2"): 1.85, event_key("C3"): -15.3}
    assert out.quantity.tolist() == [12, 1, -6] and said(d, "returns")[0].endswith("kept as events whose negative amount is taken off what was spent")

def test_kept_returns_with_positive_amounts_lower_what_was_spent(read):
    df = log(quantity=[-1 if i % 4 == 0 else 1 for i in range(40)])
    assert read(df, kind="events")[1].amount.min() == 1.5
    out = read(df, kind="events", returns="keep")[1]
    assert len(out) == 40 and (out.amount < 0).sum() == 10

def test_a_price_beside_pieces_is_offered_as_unit_price(read):
    df = retail().rename(columns={"UnitPrice": "Price"})
    d, out, _ = read(df, kind="events")
    assert out.amount[0] == 5.94 and "say --unit-price Price" in said(d, "amount")[0]
    d, out, _ = read(df, kind="events", unit_price="Price")
    assert out.amount[0] == 35.64 and said(d, "amount") == ["Price: the amount is Quantity x Price; say --amount where a column has it"]

@pytest.mark.parametrize("how, words", [({"amount": "UnitPrice", "unit_price": "UnitPrice"}, "a purchase has one amount"), ({"unit_price": "UnitPrice", "drop": ("Quantity",)}, "name its column with --quantity"),
    ({"event_id": "no"}, "no column no for --event-id"), ({"returns": "burn"}, "returns = 'burn'; expected drop or keep"), ({"duplicates": "x"}, "expected drop or keep")])
def test_statements_that_do_not_fit_are_errors(read, how, words):
    with pytest.raises(DataError, match=words): read(retail(), kind="events", **how)

@pytest.mark.parametrize("amounts", [0.0, None, "remove"])
def test_a_log_without_amounts_says_what_is_empty(read, amounts):
    df = log().drop(columns="amount") if amounts == "remove" else log().assign(amount=amounts)
    d, out, made = read(df, kind="events")
    assert made["rows"] == 40 and (out.amount == 0).all() and "spend_total" in said(d, "empty")[0]
    assert not said(read(log(), kind="events")[0], "empty")

def test_a_description_keeps_what_was_said_of_a_log(tmp_path):
    df = retail(("C3", "S1", -6, "2010-12-03", 2.55, 17850))
    pd.concat([df, df]).to_csv(tmp_path/"log.csv", index=False)
    d = describe(tmp_path/"log.csv", DescribeOptions(kind="events", duplicates="keep", returns="drop"))
    write_description(d, tmp_path/"log.toml")
    r = read_description(tmp_path/"log.toml")
    assert (r.columns, r.duplicates, r.returns) == (d.columns, "keep", "drop")
    (tmp_path/"short.toml").write_text('file = "log.csv"\nkind = "events"\norder = "InvoiceNo"\nunit_price = "UnitPrice"\nduplicates = "keep"\nreturns = "drop"\n')
    tables = []
    for toml in ("log.toml", "short.toml"):
        prepare_events(read_description(tmp_path/toml), tmp_path/"out.parquet")
        tables.append(pd.read_parquet(tmp_path/"out.parquet"))
    pd.testing.assert_frame_equal(*tables)
    (tmp_path/"bad.toml").write_text('file = "log.csv"\nkind = "events"\nduplicates = "both"\n')
    with pytest.raises(DataError, match="bad.toml: duplicates = 'both'; expected drop or keep"): read_description(tmp_path/"bad.toml")
