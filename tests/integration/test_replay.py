"`churn replay` as it is typed: a table with a row for each policy, from a simulated world and through a log."
import pytest
from churn_nb.replay.policies import POLICIES
from online_store import churn

def table(out):
    names, *rows = [line.split() for line in out.strip().splitlines()]
    return {row[0] if len(row) == len(names) else " ".join(row[:3]): dict(zip(names[1:], row[1 - len(names):])) for row in rows}

@pytest.mark.parametrize("args", [("--change", "slow", "--customers", "120"), ("--dataset", "cdnow", "--horizon", "28d", "--customers", "300")], ids=["simulated", "log"])
def test_a_year_is_replayed_under_each_policy(args, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CHURN_DRIFT_PERMUTATIONS", "99") # as few as there may be: whether alarms are right is test_policies.py's
    monkeypatch.setenv("CHURN_TRAIN_N_JOBS", "1") # filters of warnings are the process's: another thread may put its own back
    code, out, said = churn(capsys, "replay", *args, "--workspace", tmp_path)
    assert code == 0, said
    found = table(out)
    assert code == 0 and [*found] == [*POLICIES], (out, said)
    assert found["never"]["trainings"] == "0" and found["oracle"]["trainings"] == found["calendar"]["promotions"] != "0"
    assert float(found["oracle"]["money"]) >= float(found["never"]["money"])
    assert [line.split(",")[0] for line in said.splitlines() if line.startswith("replay: ")] == [f"replay: {name}" for name in POLICIES]
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and f.stat().st_size], "a replay leaves nothing behind but the log's lock"
