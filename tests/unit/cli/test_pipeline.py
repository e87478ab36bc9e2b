"`churn run` on a file of the user's: which data set, gate and workspace it gets."
import itertools
import pandas as pd, pytest
from churn_nb.cli.data import OwnDataFlags
from churn_nb.cli.pipeline import keep_description, own_data_settings
from churn_nb.core.errors import UsageError
from churn_nb.core.data_settings import BUILT_IN
from churn_nb.core.settings import load_settings
from customer_tables import customers, purchases

@pytest.fixture(autouse=True)
def workspaces(tmp_path, monkeypatch):
    monkeypatch.setenv("CHURN_PATHS_WORKSPACE", str(tmp_path/"work"))

def own(file, kind="snapshot", workspace=""):
    return keep_description(own_data_settings(file, kind, OwnDataFlags(), workspace))

@pytest.mark.parametrize("name, kind", [*itertools.product(BUILT_IN, ["snapshot"]), ("cdnow", "events"), ("Telecom", "snapshot")])
def test_a_file_named_like_a_project_data_set_is_the_users(tmp_path, capsys, name, kind):
    file = tmp_path/f"{name}.csv"
    (customers() if kind == "snapshot" else pd.concat([purchases().assign(customer=lambda df: df.customer + 30*i, at=lambda df: df['at'] + pd.Timedelta(days=9*i)) for i in range(20)])).to_csv(file, index=False)
    s = own(file, kind)
    assert f"called own_{name} here" in capsys.readouterr().out and s.data.dataset == f"own_{name}"
    theirs = load_settings({"data.dataset": name.lower()})
    assert s.paths.workspace not in (theirs.paths.workspace, theirs.paths.workspace.with_name(f"work-{name.lower()}"))
    gate = s.gate_for(s.data.dataset)
    assert [str(c) for c in gate.floors] == ["latency_ms < 200"] and gate.beat_baseline == ["log_loss"]
    later = load_settings({"paths.workspace": str(s.paths.workspace)})  # what every later command reads
    assert later.data == s.data and later.gate_for(later.data.dataset) == gate

def test_a_description_cannot_take_a_project_data_sets_name(tmp_path, capsys):
    customers().to_csv(tmp_path/"people.csv", index=False)
    (toml := tmp_path/"people.toml").write_text('name = "telecom"\nfile = "people.csv"\n')
    for s in (own(tmp_path/"people.csv"), keep_description(load_settings({"data.dataset": str(toml), "paths.workspace": str(tmp_path/"w")}))):
        assert s.data.dataset == "own_telecom" and [str(c) for c in s.gate_for(s.data.dataset).floors] == ["latency_ms < 200"]

def test_a_project_data_set_keeps_its_gate_in_its_workspace(tmp_path):
    kept = keep_description(load_settings({"data.dataset": "telecom", "paths.workspace": str(tmp_path/"w")}))
    assert kept.data.dataset == "telecom" and [str(c) for c in kept.gate_for("telecom").floors][0] == "accuracy > 0.95"
    assert load_settings({"paths.workspace": str(tmp_path/"w")}).data.dataset == "telecom"

def test_another_file_of_the_same_name_is_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path/folder).mkdir()
        customers().to_csv(tmp_path/folder/"people.csv", index=False)
    first = own(tmp_path/"a/people.csv")
    before = first.data.description.read_bytes()
    with pytest.raises(UsageError, match="holds .*a/people.csv, not .*b/people.csv; --workspace .*work-people goes on"): own(tmp_path/"b/people.csv")
    assert first.data.description.read_bytes() == before
    assert own(tmp_path/"a/people.csv").paths == first.paths == own(tmp_path/"b/people.csv", workspace=str(first.paths.workspace)).paths
