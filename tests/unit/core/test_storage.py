"A log of batches in parquet files: all of a batch or nothing, whenever the writer is killed and however many write at once."
import errno
import json
import os
import subprocess
import sys
import threading

import duckdb
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hyp
from hypothesis import strategies as st

from churn_nb.core.storage import ParquetLog, compact, connection, copy_parquet, write_parquet
from deadlines import allow


def batch(*values): return pd.DataFrame({"value": values})
def values(log): return log.read(lambda files: [v for f in files for v in pd.read_parquet(f).value])

# Any order of appends and compactions is the list of all that was appended

@hyp(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.sampled_from(["compact", "compact big", "open again"])), max_size=14))
def test_any_order_of_appends_and_compactions(tmp_path_factory, todo):
    folder = tmp_path_factory.mktemp("log")
    log, want, n = ParquetLog(folder), [], 0
    for what in todo:
        if what == "open again": log = ParquetLog(folder)
        elif isinstance(what, list):
            want += what
            assert log.append(batch(*what)) == (n := n + 1)
        else: compact(log, small=1 if what == "compact big" else 4_000_000)
        assert values(log) == want and log.last == n
    if n > 1 and not any(w == "compact big" for w in todo):
        compact(log)
        assert len(log.files()) == 1 and compact(log) == 0 and values(log) == want

def test_big_segments_stay_as_they_are(tmp_path):
    log = ParquetLog(tmp_path)
    for n in (1, 50_000, 1, 1): log.append(pd.DataFrame({"value": np.random.default_rng(0).random(n)}))
    big = log.files()[1]
    assert compact(log, small=100_000) == 2
    assert [s[:2] for s in log.segments()] == [(1, 1), (2, 2), (3, 4)] and big in log.files()

def test_other_files_are_not_batches(tmp_path):
    log = ParquetLog(tmp_path)
    log.append(batch(1))
    for name in (".abc", "notes.txt", "1-1.parquet.tmp", "x-1.parquet", "2.parquet", ".2-2.parquet", "as-of-19980701T000000.parquet"): (tmp_path/name).write_text("no")
    assert values(log) == [1] and log.last == 1 and log.append(batch(2)) == 2 and values(log) == [1, 2]

FAILING = "SELECT CASE i WHEN {} THEN error('no') ELSE i END FROM range(1000000) t(i)"
@pytest.mark.parametrize("write", [lambda p: copy_parquet(connection(), FAILING.format(999_999), p), lambda p: write_parquet(pd.DataFrame({"value": [object()]}), p)],
                         ids=["copy", "write"])
def test_what_fails_leaves_the_old_file_and_no_other(tmp_path, write):
    write_parquet(batch(1), tmp_path/"x.parquet")
    with pytest.raises(Exception): write(tmp_path/"x.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"] and pd.read_parquet(tmp_path/"x.parquet").value.tolist() == [1]

def test_a_full_disk_is_told_of_the_file_that_was_asked_for(tmp_path, monkeypatch):
    "The error itself is a stand-in: as of a write, it names no file."
    def full(fd): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as e: write_parquet(batch(1), tmp_path/"x.parquet")
    assert (e.value.errno, e.value.filename) == (errno.ENOSPC, str(tmp_path/"x.parquet"))
    with pytest.raises(FileNotFoundError) as e: write_parquet(batch(1), tmp_path/"none/x.parquet")
    assert e.value.filename == str(tmp_path/"none/x.parquet") and not [*tmp_path.iterdir()]

def test_a_copy_that_fails_at_any_row_raises(tmp_path):
    "DuckDB 2.0 with its own threads for output waits for ever in about one of 25 (TaskExecutor::DrainTasks), so 150 miss it in one of 450 runs."
    for row in np.random.default_rng(0).integers(300_000, 1_000_000, 150): # some row groups are written by then
        with pytest.raises(duckdb.Error, match="no"): copy_parquet(connection(), FAILING.format(row), tmp_path/"x.parquet")
        assert list(tmp_path.iterdir()) == []

# Killed at every step

KILLED = '''
import json, os, signal, sys
import pyarrow.parquet as pq, pandas as pd
from churn_nb.core.storage import ParquetLog, compact
calls = 0
def dying(owner, name, at):
    real = getattr(owner, name)
    def f(*a, **k):
        global calls
        calls += 1
        if at == 2*calls - 1: os.kill(os.getpid(), signal.SIGKILL)
        if name == "write_table" and at == 2*calls: # half of the file is written
            real(*a, **k)
            a[1].truncate(a[1].tell()//2); a[1].flush(); os.kill(os.getpid(), signal.SIGKILL)
        try: return real(*a, **k)
        finally:
            if at == 2*calls: os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, f)
def child(folder, what, at):
    for owner, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (pq, "write_table")): dying(owner, name, at)
    log = ParquetLog(folder)
    if what == "append": log.append(pd.DataFrame({"value": [6, 7]}))
    else: compact(log); compact(log) # the second one deletes what the first one merged
for folder, what, at in json.loads(sys.argv[1]):
    if (pid := os.fork()) == 0:
        child(folder, what, at)
        os._exit(0)
    print(os.waitpid(pid, 0)[1])
'''

def run_killed(root, what, moments):
    "Folders with the batches [0], [1], [2, 3], [4, 5], in each of which a process died at one moment; how each ended."
    todo = []
    for at in moments:
        log = ParquetLog(root/f"{what}{at}")
        for rows in ([0], [1], [2, 3], [4, 5]): log.append(batch(*rows))
        todo.append((str(log.folder), what, at))
    r = subprocess.run([sys.executable, "-c", KILLED, json.dumps(todo)], capture_output=True, text=True)
    return [int(x) for x in r.stdout.split()], r.stderr

@pytest.mark.parametrize("what", ["append", "compact"])
def test_killed_at_every_step(tmp_path, what):
    ended, err = run_killed(tmp_path, what, range(1, 31))
    n = ended.index(0)
    assert ended[:n] == [9]*n and set(ended[n:]) == {0}, err # every moment up to the last one of the operation, and not one more
    assert n >= (8 if what == "append" else 16)
    outcomes = set()
    for at in range(1, n + 1):
        log = ParquetLog(tmp_path/f"{what}{at}")
        assert values(log) in ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7][:8 if what == "append" else 6])
        outcomes.add((log.last, len(log._all()), len(log.files())))
        if log.last == 4: log.append(batch(6, 7)) # who was not answered sends again
        compact(log); compact(log)
        assert values(log) == [0, 1, 2, 3, 4, 5, 6, 7] and len(log._all()) == len(log.files()) == 1
        assert log.append(batch(8)) == log.last == 6 or what == "append" and log.last == 6
    assert len(outcomes) >= (2 if what == "append" else 3) # the moments differ in what they leave behind

# Many at once

WRITER = '''
import sys, pandas as pd
from churn_nb.core.storage import ParquetLog, compact
folder, me = sys.argv[1], int(sys.argv[2])
log = ParquetLog(folder)
for i in range(25):
    print(log.append(pd.DataFrame({"value": [1000*me + i, 1000*me + i + 500]})), flush=True)
    if i % 6 == me: compact(log)
'''

def test_several_processes_write_compact_and_read(tmp_path):
    log, done, seen, trouble = ParquetLog(tmp_path), threading.Event(), [], []
    def read():
        while not done.is_set():
            try: seen.append(values(log))
            except Exception as e: trouble.append(repr(e)[:200])
    reader = threading.Thread(target=read)
    reader.start()
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(me)], stdout=subprocess.PIPE, text=True) for me in range(4)]
    numbers = [int(x) for w in writers for x in w.communicate(timeout=allow(300))[0].split()]
    done.set(); reader.join()
    assert sorted(numbers) == [*range(1, 101)]
    want = {1000*me + i + half for me in range(4) for i in range(25) for half in (0, 500)}
    assert sorted(values(log)) == sorted(want)
    assert all({*a} <= {*b} for a, b in zip(seen, seen[1:])) # what was once read stays there
    assert len(seen) > 3 and all(len(v) == len({*v}) and {x + 500 for x in v if x % 1000 < 500} == {x for x in v if x % 1000 >= 500} for v in seen)
    assert not trouble, f"{len(trouble)} of {len(trouble) + len(seen)} reads failed: {trouble[0]}" # readers need no lock
