"The definitions in a workspace: Feast's own commands find nothing to change, wherever the workspace lies."
import shutil, subprocess
import pandas as pd, pytest
from churn_nb import features as f
from churn_nb.core.workspace import Workspace
from churn_nb.feature_store.sources import source_of
from paths import BIN

def feast_command(ws, name): # In the folder, as a user types it
    found = subprocess.run([BIN/"feast", name], cwd=ws/"feast", capture_output=True, text=True, timeout=300)
    assert not found.returncode, found.stderr[-2000:]
    return found.stdout

def stored(s, ids): return f.online(f.open_store(s), ids, s)

@pytest.mark.parametrize("name", ["restored", "restored [prod]"])
def test_feast_changes_nothing_in_a_moved_workspace(copied, configured, tmp_path, name):
    s = copied()
    f.apply_store(s)
    ids = source_of(s).latest_rows().customer_id.tolist()
    asked = source_of(s).latest_rows()[["customer_id", "event_timestamp"]]
    before, history = stored(s, ids), f.historical_features(f.open_store(s), asked, s)
    assert not [p for p in (tmp_path/"ws").rglob("*") if p.is_file() and str(tmp_path).encode() in p.read_bytes()]
    (tmp_path/"ws").rename(tmp_path/name)
    registry = tmp_path/name/"feast/registry.db"
    for command in ("plan", "apply"):
        said = feast_command(tmp_path/name, command)
        assert "No changes to registry" in said and "No changes to infrastructure" in said
        assert str(tmp_path).encode() not in registry.read_bytes()
    s = configured(tmp_path/name)
    assert stored(s, ids).equals(before) and before.notna().any(axis=None)
    assert f.historical_features(f.open_store(s), asked, s).equals(history)

def test_a_copy_reads_and_writes_its_own_files(copied, configured, tmp_path):
    s = copied()
    shutil.copytree(tmp_path/"ws", tmp_path/"copy")
    before = {p: p.read_bytes() for p in (tmp_path/"ws").rglob("*") if p.is_file()}
    c = configured(tmp_path/"copy")
    ids = source_of(s).latest_rows().customer_id.tolist()[:5]
    assert f.refresh(c, f.open_store(c), ids) == 5
    assert {p: p.read_bytes() for p in (tmp_path/"ws").rglob("*") if p.is_file()} == before
    assert len([*f.offline_folder(c).glob("*.parquet")]) == len([*f.offline_folder(s).glob("*.parquet")]) + 1

def test_an_old_registry_is_read_at_its_place_and_repaired(copied, configured, tmp_path):
    "As earlier releases wrote it: full paths."
    from feast.infra.registry.file import FileRegistryStore
    from feast.repo_config import RegistryConfig
    s = copied()
    path = Workspace(s.paths.workspace).feast/"registry.db"
    store = f.apply_store(s)
    FileRegistryStore(RegistryConfig(path=str(path)), path.parent).update_registry_proto(store.registry.proto())
    assert str(tmp_path/"ws").encode() in path.read_bytes()
    (tmp_path/"ws").rename(tmp_path/"moved")
    s, path = configured(tmp_path/"moved"), tmp_path/"moved/feast/registry.db"
    rows = source_of(s).latest_rows()
    read = f.historical_features(f.open_store(s), rows[["customer_id", "event_timestamp"]], s)
    assert read.transactions_total.notna().all() and str(tmp_path/"ws").encode() in path.read_bytes()
    f.apply_store(s)
    assert str(tmp_path).encode() not in path.read_bytes()

@pytest.fixture(params=["one row each", "dates"])
def table(request, tmp_path, configured):
    "A built workspace of a table with texts, gaps, and names that are none of Python's."
    rows = pd.DataFrame({"id": range(240), "spend, EUR": [i % 7 + .5 for i in range(240)], "plan tier": [["a", "b", None][i % 3] for i in range(240)], "churn": [i // 3 % 2 for i in range(240)]})
    roles = ""
    if request.param == "dates": rows["at"], roles = [f"2025-{1 + i // 24:02}-01" for i in range(240)], 'timestamp = "at"\nhorizon = 30\n'
    rows.to_csv(tmp_path/"own.csv", index=False)
    (tmp_path/"own.toml").write_text(f'name = "own"\nkind = "snapshot"\nfile = "own.csv"\nentity = "id"\nlabel = "churn"\npositive = "1"\n{roles}')
    s = configured(tmp_path/"ws", data__dataset=str(tmp_path/"own.toml"))
    f.build(s)
    return s

def test_feast_changes_nothing_in_a_workspace_of_a_table(table, tmp_path):
    before = stored(table, ids := source_of(table).latest_rows().customer_id.tolist())
    shutil.copytree(tmp_path/"ws", tmp_path/"copy")
    for ws in ("ws", "copy"):
        for command in ("plan", "apply"):
            said = feast_command(tmp_path/ws, command)
            assert "No changes to registry" in said and "No changes to infrastructure" in said, said
    assert stored(table, ids).equals(before) and before.notna().any(axis=None)
