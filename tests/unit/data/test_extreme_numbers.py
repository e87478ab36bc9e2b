"A number that is too large is named with its row and column by every command; no row vanishes because of it."
import random
import pytest
from churn_nb.core.errors import DataError
from churn_nb.data.schema_inference import DescribeOptions, infer_description
from churn_nb.data.typed_table import prepare, prepare_events
from churn_nb.monitoring.drift_report import read_table

INFINITE = ["1e400", "-1e400", "1" + "0"*400, "-9e999"] # as float64

def customers(path, odd, at=7):
    rng = random.Random(1)
    rows = [f"{i},{rng.random()*100:.2f},{rng.choice('ab')},{rng.choice(['yes', 'no'])}" for i in range(1, 61)]
    if odd: rows[at - 1] = f"{at},{odd},a,yes"
    path.write_text("\n".join(["id,spend,plan,left", *rows]) + "\n")
    return path

def orders(path, column, odd):
    rows = [f"{i % 9},2024-01-{i % 28 + 1:02},3.5,2" for i in range(60)]
    if odd: rows[6] = f"1,2024-01-02,{odd},2" if column == "amount" else f"1,2024-01-02,3.5,{odd}"
    path.write_text("\n".join(["customer_id,ordered_at,amount,quantity", *rows]) + "\n")
    return path

AS_LOG = DescribeOptions(kind="events")

@pytest.mark.parametrize("odd", [*INFINITE, "1e39", "-1e39"])
def test_describe_and_run_name_a_features_extreme_number(tmp_path, odd):
    says = rf"a.csv: row 7, column spend: {odd[:40]} is beyond 3.4e\+38, which a number can't hold"
    with pytest.raises(DataError, match=says): infer_description(customers(tmp_path/"a.csv", odd))
    described = infer_description(customers(tmp_path/"a.csv", ""))
    with pytest.raises(DataError, match=says): prepare(described, customers(tmp_path/"a.csv", odd) and tmp_path/"out.parquet")
    assert not (tmp_path/"out.parquet").exists()

@pytest.mark.parametrize("odd, column", [*((odd, "amount") for odd in [*INFINITE, "1e39", "100000000000000"]), *((odd, "quantity") for odd in [*INFINITE, "2147483648"])])
def test_a_logs_extreme_amount_and_quantity_are_named(tmp_path, odd, column):
    says = rf"a.csv: row 7, column {column}: {odd[:40]} is beyond .*, which an? {column} can't hold"
    with pytest.raises(DataError, match=says): infer_description(orders(tmp_path/"a.csv", column, odd), AS_LOG)
    described = infer_description(orders(tmp_path/"a.csv", column, ""), AS_LOG)
    with pytest.raises(DataError, match=says): prepare_events(described, orders(tmp_path/"a.csv", column, odd) and tmp_path/"out.parquet")

def test_the_largest_numbers_that_fit_are_read(tmp_path):
    assert infer_description(customers(tmp_path/"a.csv", "3.4028234e38")).rows == 60
    assert prepare_events(infer_description(orders(tmp_path/"b.csv", "amount", "99999999999999"), AS_LOG), tmp_path/"b.parquet")["rows"] == 60
    assert prepare_events(infer_description(orders(tmp_path/"c.csv", "quantity", "2147483647"), AS_LOG), tmp_path/"c.parquet")["rows"] == 60

@pytest.mark.parametrize("odd", INFINITE)
def test_drift_names_an_infinite_number(tmp_path, odd):
    with pytest.raises(DataError, match=rf"a.csv: .*row 7, column spend: {odd[:40]} is beyond 1.8e\+308"): read_table(customers(tmp_path/"a.csv", odd))

def test_drift_compares_large_numbers_that_are_finite(tmp_path): assert read_table(customers(tmp_path/"a.csv", "1e300")).spend.max() == 1e300
