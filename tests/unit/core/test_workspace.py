"Files of a workspace: replaced whole or not at all, read only where they are plain, refused in one line."
import errno, json, os, subprocess, sys, threading
from pathlib import Path
import pytest
from hypothesis import given, settings, strategies as st
from churn_nb.core import workspace as w
from churn_nb.core.errors import WorkspaceError

# atomic_write

@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_a_failed_write_leaves_the_old_content_alone(tmp_path, monkeypatch, step):
    file = tmp_path/"f"
    w.atomic_write(file, "old")
    def fails(*a, **k): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(w.os, step, fails)
    with pytest.raises(OSError, match="No space left") as e: w.atomic_write(file, "new"*1000)
    assert file.read_text() == "old" and [*tmp_path.iterdir()] == [file]
    assert (e.value.errno, e.value.filename) == (errno.ENOSPC, str(file)) # the system's error names no file where a write fails

@pytest.mark.parametrize(("file", "number"), [("none/f", errno.ENOENT), ("a folder", errno.EISDIR), ("n"*300, errno.ENAMETOOLONG)])
def test_a_failed_write_names_the_file_not_the_hidden_one(tmp_path, file, number):
    (tmp_path/"a folder").mkdir()
    with pytest.raises(OSError) as e: w.atomic_write(tmp_path/file, "x")
    assert (e.value.errno, e.value.filename, e.value.filename2) == (number, str(tmp_path/file), None) and [f.name for f in tmp_path.iterdir()] == ["a folder"]

@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.one_of(st.binary(max_size=2000), st.text(st.characters(codec="utf-8"), max_size=500)))
def test_what_is_written_is_read(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("w")/"f"
    w.atomic_write(file, data)
    assert file.read_bytes() == (data if isinstance(data, bytes) else data.encode()) and file.stat().st_mode & 0o777 == 0o644

def test_readers_see_the_old_content_or_the_new(tmp_path):
    file, stop, seen = tmp_path/"f", threading.Event(), set()
    w.atomic_write(file, "a"*100_000)
    def read():
        while not stop.is_set(): seen.add(file.read_text())
    reader = threading.Thread(target=read)
    reader.start()
    for i in range(100): w.atomic_write(file, "ab"[i % 2]*100_000)
    stop.set()
    reader.join()
    assert seen <= {"a"*100_000, "b"*100_000}

def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path):
    (tmp_path/"foreign").write_text("theirs")
    (tmp_path/"f").symlink_to("foreign")
    w.atomic_write(tmp_path/"f", "ours")
    assert (tmp_path/"foreign").read_text() == "theirs" and not (tmp_path/"f").is_symlink() and (tmp_path/"f").read_text() == "ours"

# read_plain_file

def test_a_file_is_read_up_to_its_limit(tmp_path):
    (tmp_path/"f").write_bytes(b"12345")
    assert w.read_plain_file(tmp_path/"f", 5) == b"12345"
    with pytest.raises(WorkspaceError, match="f: 5 bytes, at most 4 are read"): w.read_plain_file(tmp_path/"f", 4)

@pytest.mark.parametrize("make, says", [
    (lambda p: p.symlink_to("/etc/hostname"), "not a plain file"), (lambda p: p.symlink_to("nowhere"), "not a plain file"), (os.mkfifo, "not a plain file"),
    (Path.mkdir, "not a plain file"), (lambda p: None, "No such file")], ids=["link", "dangling link", "pipe", "folder", "nothing"])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path, make, says):
    make(tmp_path/"f")
    with pytest.raises(WorkspaceError, match=f"f: .*{says}") as e: w.read_plain_file(tmp_path/"f", 100)
    assert "\n" not in str(e.value)

# Workspace

def test_opening_twice_makes_the_same_folders_and_leaves_no_probe(tmp_path):
    ws = w.Workspace(tmp_path/"a"/"ws").open().open()
    assert {p.name for p in ws.root.iterdir()} - {".churn-workspace"} == {p.name for p in (ws.artifacts, ws.feast, ws.runs, ws.reports, ws.results, ws.bundles)}

@pytest.mark.parametrize("name", ["w?", "w\\x", "w\n"])
def test_a_name_that_a_database_cannot_take_is_refused(tmp_path, name):
    with pytest.raises(WorkspaceError, match="choose another with --workspace") as e: w.Workspace(tmp_path/name).open()
    assert "\n" not in str(e.value) and [*tmp_path.iterdir()] == []

def test_a_file_in_the_place_of_the_workspace_is_kept(tmp_path):
    (tmp_path/"ws").write_text("mine")
    with pytest.raises(WorkspaceError, match="CHURN_PATHS_WORKSPACE"): w.Workspace(tmp_path/"ws").open()
    assert (tmp_path/"ws").read_text() == "mine"

def test_too_little_room_is_said_with_both_numbers(tmp_path):
    with pytest.raises(WorkspaceError, match=r"\d+ MB free, 1000000000000 MB needed"): w.Workspace(tmp_path).open(need_mb=10**12)

def test_a_result_is_read_as_it_was_written(tmp_path):
    ws, result = w.Workspace(tmp_path).open(), {"rows": 3, "names": ["ä", "b"], "none": None}
    assert ws.read_result("01_train") is None and ws.write_result("01_train", result) == result and ws.read_result("01_train") == result

def test_a_result_with_nan_is_refused_and_the_old_one_stays(tmp_path):
    ws = w.Workspace(tmp_path).open()
    ws.write_result("01_train", {"auc": .7})
    with pytest.raises(ValueError): ws.write_result("01_train", {"auc": float("nan")})
    assert json.loads((ws.results/"01_train.json").read_text()) == {"auc": .7}

def test_a_temporary_workspace_goes_with_its_process():
    code = "from churn_nb.core.workspace import temporary_workspace as t; d = t(); (d/'f').write_text('x'); print(d); assert d.is_dir() and t() != d"
    made = Path(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    assert made.name.startswith("churn-") and not made.exists()
