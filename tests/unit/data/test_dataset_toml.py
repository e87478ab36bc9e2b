"dataset.toml: a mistake is one line that names the key, and what is written is read back."
import numpy as np, pytest
from churn_nb.core.errors import DataError
from churn_nb.data.schema_inference import infer_description
from churn_nb.data.dataset_toml import read_description, write_description
from customer_tables import N, customers

@pytest.mark.parametrize("toml, said", [
    ('labell = "a"', "unknown key labell"), ("[csv]\nfoo = 1", "unknown key csv.foo"), ('rows = "x"', "rows = 'x'; expected a whole number"),
    ('horizon = "x"', "horizon"), ('drop = "x"', "expected a list"), ("[columns]\nx = 3", "columns.x = 3"), ('[columns.x]\nuse = "nonsense"', "columns.x.use"),
    ('[columns.nope]\nuse = "number"', "no column nope"), ('[columns.x]\nfoo = 1', "unknown key columns.x.foo"), ("kind = 'table'", "kind = 'table'"), ("=", "Invalid")])
def test_mistakes_in_a_description(tmp_path, toml, said):
    customers().to_csv(tmp_path/"f.csv", index=False)
    (tmp_path/"d.toml").write_text('file = "f.csv"\n' + toml)
    with pytest.raises(DataError, match=said) as e: read_description(tmp_path/"d.toml")
    assert "\n" not in str(e.value)

def test_round_trip_and_settings_are_kept(tmp_path):
    customers(ort=np.resize(["Köln", "?"], N)).to_csv(tmp_path/"f.csv", index=False, sep=";")
    d = infer_description(tmp_path/"f.csv")
    write_description(d, tmp_path/"d.toml")
    again = read_description(tmp_path/"d.toml")
    assert (again.columns, again.findings, again.dialect, again.positive, again.rows) == (d.columns, d.findings, d.dialect, d.positive, d.rows)
    with open(tmp_path/"d.toml", "a") as f: f.write("\n[gate]\naccuracy = 0.7\n")
    assert read_description(tmp_path/"d.toml").settings == {"gate": {"accuracy": .7}}
