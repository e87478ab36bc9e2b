"Guessed roles that do not fit are plain columns; given ones are errors."
import pytest
from churn_nb.core.errors import DataError
from churn_nb.data.schema_inference import DescribeOptions, infer_description as describe

@pytest.fixture
def table(tmp_path):
    "A table whose column `time` holds minutes."
    rows = [f"K-{i},{5 + i * 7 % 40},{i % 11},{'yes' if i % 3 else 'no'}" for i in range(200)]
    (file := tmp_path/"calls.csv").write_text("customer,time,calls,churn\n" + "\n".join(rows) + "\n")
    return file

def test_a_guessed_time_that_holds_none_is_a_feature(table):
    d = describe(table)
    assert d.timestamp is None and d.names == ["time", "calls"] and any(f.rule == "role" and f.column == "time" for f in d.findings)

def test_a_given_time_that_holds_none_is_an_error(table):
    with pytest.raises(DataError, match="column time .* holds no times"): describe(table, DescribeOptions(timestamp="time"))

@pytest.mark.parametrize("column", ["time", "customer"])
def test_a_dropped_column_is_no_guessed_role(table, column):
    d = describe(table, DescribeOptions(drop=(column,)))
    assert column not in [c.name for c in d.columns if c.use != "drop"] and (d.timestamp, d.entity) == (None, None if column == "customer" else "customer")
