"Alarms that race, die, stutter and lie about the time: at most one retrain runs, and the file tells what happened."
import json, os, signal, subprocess, threading, time
from datetime import datetime, timedelta, timezone
from pathlib import Path
import pytest
from hypothesis import given, settings as hyp, strategies as st
from churn_nb.ops import retraining as r
from churn_nb.core.settings import load_settings
from churn_nb.core.workspace import temporary_workspace
from deadlines import allow
from paths import PYTHON

T0 = datetime(2026, 3, 1, 6, tzinfo=timezone.utc)
hours = lambda h: T0 + timedelta(hours=h)

def world(root=None, cooldown=72): return load_settings({"paths.workspace": str(root or temporary_workspace()), "drift.cooldown_hours": cooldown}, environ={})

@pytest.fixture
def s(tmp_path): return world(tmp_path/"ws")

def actions(s): return [(x["action"], x["exit_code"]) for x in r.retrain_history(s)]
def file(s): return Path(s.paths.workspace)/"retrains.jsonl"

# Real processes

ASK = '''
import os, sys, time
from datetime import datetime, timezone
from pathlib import Path
from churn_nb.ops.retraining import retrain
from churn_nb.core.settings import load_settings
ws, cooldown, seconds, code = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
s = load_settings({"paths.workspace": ws, "drift.cooldown_hours": cooldown}, environ={})
def run():
    with open(Path(ws)/"ran", "a") as f: f.write(f"{os.getpid()}\\n")
    print("running", flush=True)
    time.sleep(seconds)
    return code
print("here", flush=True)
sys.stdin.readline() # all start at once
out = retrain(s, f"alarm of {os.getpid()}", run)
print(out.action, out.exit_code, out.reason, sep="|", flush=True)
'''

def ask(s, seconds=0., code=0):
    p = subprocess.Popen([PYTHON, "-c", ASK, str(s.paths.workspace), str(s.drift.cooldown_hours), str(seconds), str(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline() == "here\n"
    return p

def go(p): p.stdin.write("\n"); p.stdin.flush()

def ended(p):
    lines = p.communicate(timeout=allow(300))[0].splitlines()
    assert p.returncode == 0
    return lines[-1].split("|")

@pytest.mark.parametrize("cooldown", [0, 72])
def test_of_eight_processes_that_ask_at_once_exactly_one_runs(tmp_path, cooldown):
    s = world(tmp_path/"ws", cooldown)
    s.paths.workspace.mkdir()
    crew = [ask(s, 6.) for _ in range(8)]
    for p in crew: go(p)
    said = sorted(ended(p)[0] for p in crew)
    assert said == ["done"] + ["in flight"]*7
    assert len((s.paths.workspace/"ran").read_text().splitlines()) == 1
    records = [json.loads(line) for line in file(s).read_text().splitlines()] # every line is whole
    assert sorted(x["action"] for x in records) == ["declined"]*7 + ["finished", "started"]
    assert len({x["id"] for x in records}) == 8 and len({x["why"] for x in records}) == 8

def test_concurrent_retrains_never_overlap_and_lose_no_record(tmp_path):
    s, at_work, worst, outcomes = world(tmp_path/"ws", 0), [], [], []
    def run():
        at_work.append(1); worst.append(len(at_work)); time.sleep(.003); at_work.pop()
        return 1
    def many():
        for _ in range(25): outcomes.append(r.retrain(s, "drift", run).action)
    threads = [threading.Thread(target=many) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert max(worst) == 1 and len(outcomes) == 100 and set(outcomes) <= {"done", "in flight"}
    found = [x["action"] for x in r.retrain_history(s)]
    assert found.count("started") == found.count("finished") == outcomes.count("done") == len(worst)
    assert found.count("declined") == outcomes.count("in flight")

@pytest.mark.parametrize("cooldown, then", [(0, "done"), (72, "cooling down")])
def test_a_killed_retrain_is_marked_lost_and_blocks_nothing(tmp_path, cooldown, then):
    s = world(tmp_path/"ws", cooldown)
    s.paths.workspace.mkdir()
    p = ask(s, 60.)
    go(p)
    assert p.stdout.readline() == "running\n" # so `started` is on the disk
    assert actions(s) == [("started", None)] and r.can_retrain(s) == (False, r.IN_FLIGHT)
    assert r.retrain(s, "drift", lambda: pytest.fail("two at once"), force=True).action == "in flight"
    p.send_signal(signal.SIGKILL)
    assert p.wait() == -signal.SIGKILL
    p.stdout.close(); p.stdin.close()
    out = r.retrain(s, "drift", lambda: 0)
    assert out.action == then
    found = r.retrain_history(s)
    assert [x["action"] for x in found][:3] == ["started", "declined", "lost"] and found[2]["id"] == found[0]["id"]
    if then == "cooling down":
        assert "was lost: its process died" in out.reason and r.retrain(s, "by hand", lambda: 0, force=True).action == "done"
    r.retrain(s, "drift", lambda: 0)
    assert [x["action"] for x in r.retrain_history(s)].count("lost") == 1 # marked once

@pytest.mark.parametrize("die_at", ["before run", "after run"])
def test_killed_between_run_and_the_lines_around_it(tmp_path, die_at):
    s = world(tmp_path/"ws")
    pid = os.fork()
    if pid == 0:
        real, seen = r._append, []
        def append(f, record):
            if die_at == "after run" and seen: os.kill(os.getpid(), signal.SIGKILL)
            seen.append(real(f, record))
            if die_at == "before run": os.kill(os.getpid(), signal.SIGKILL)
        r._append = append
        r.retrain(s, "drift", lambda: 0, T0)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert r.retrain(s, "drift", lambda: 0, hours(71)).action == "cooling down"
    assert r.retrain(s, "drift", lambda: 0, hours(72)).exit_code == 0
    assert [x["action"] for x in r.retrain_history(s)] == ["started", "lost", "declined", "started", "finished"]

def test_a_run_by_hand_comes_first_and_starts_no_cooldown(s):
    from churn_nb.ops.pipeline_runner import exclusive_run
    with exclusive_run(s):
        assert r.can_retrain(s, T0) == (False, r.IN_FLIGHT)
        assert r.retrain(s, "drift", lambda: pytest.fail("two at once"), T0, force=True).action == "in flight"
    def run():
        with exclusive_run(s): return 0 # what is run in production takes that lock itself
    assert r.retrain(s, "drift", run, hours(1)).exit_code == 0 and [x["action"] for x in r.retrain_history(s)] == ["declined", "started", "finished"]

# The file

@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_last_line_is_skipped_with_a_warning(s, caplog, cut):
    "The next record starts on a line of its own."
    r.retrain(s, "drift", lambda: 1, T0)
    before = file(s).read_bytes()
    file(s).write_bytes(before + before[:cut])
    assert [x["action"] for x in r.retrain_history(s)] == ["started", "finished"]
    assert "retrains.jsonl: line 3 can't be read and is left out" in caplog.text
    assert r.retrain(s, "drift", lambda: 0, hours(100)).exit_code == 0
    assert file(s).read_bytes().startswith(before + before[:cut] + b"\n") # nothing is taken away
    assert [x["action"] for x in r.retrain_history(s)] == ["started", "finished", "started", "finished"]

def test_a_torn_finished_is_a_lost_one(s):
    r.retrain(s, "drift", lambda: 0, T0)
    file(s).write_bytes(file(s).read_bytes()[:-30])
    assert r.retrain(s, "drift", lambda: 0, hours(80)).action == "done"
    assert [x["action"] for x in r.retrain_history(s)] == ["started", "lost", "started", "finished"]

@pytest.mark.parametrize("line", [b"null", b"[]", b"7", b"{}", b'{"id": "a", "action": "started"}', b'{"id": "a", "action": "started", "at": "2026-03-01T06:00:00"}', b'{"id": "a", "action": "started", "at": "soon"}', b"\xff\xfe", b'"x"'])
def test_a_line_that_is_no_record_stops_nothing(s, caplog, line):
    s.paths.workspace.mkdir()
    file(s).write_bytes(line + b"\n")
    assert r.retrain_history(s) == [] and "line 1" in caplog.text
    assert r.retrain(s, "drift", lambda: 0, T0).action == "done"

def test_lines_only_grow_and_one_line_stays_one_line(s):
    seen = b""
    for i, why in enumerate(["drift", "prices\nnew", "ä" * 10, ""]):
        r.retrain(s, why, lambda: 1, hours(100*i))
        now = file(s).read_bytes()
        assert now.startswith(seen) and now.endswith(b"\n") and now.count(b"\n") == 2*(i + 1)
        seen = now
    assert [x["why"] for x in r.retrain_history(s)][::2] == ["drift", "prices new", "ä" * 10, ""]

def test_a_full_disk_is_not_hidden(s, monkeypatch):
    def full(fd): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"): r.retrain(s, "drift", lambda: pytest.fail("ran without a line"), T0)
    monkeypatch.undo()
    assert r.can_retrain(s, hours(100))[0] # the lock is free again

# The cool-down

@pytest.mark.parametrize("after, may", [(0, False), (1/3600, False), (71.9999, False), (72, True), (72.0001, True), (1e4, True), (-1e-6, False), (-71.99, False), (-72, True), (-1e5, True)])
@pytest.mark.parametrize("code", [0, 1, 70])
def test_boundaries_also_where_the_clock_goes_backwards(s, after, may, code):
    r.retrain(s, "drift", lambda: code, T0)
    said = r.can_retrain(s, hours(after))
    out = r.retrain(s, "drift", lambda: 0, hours(after))
    assert said[0] is may and (out.action == "done") is may
    if not may:
        assert out.reason == said[1] and "2026-03-01 06:00" in out.reason and "2026-03-04 06:00" in out.reason and "\n" not in out.reason
        assert ("set back" in out.reason) == (after < 0)
        assert {0: "promoted", 1: "the same data would be", 70: "failed"}[code] in out.reason

def test_a_wrong_clock_costs_at_most_one_retrain(s):
    r.retrain(s, "drift", lambda: 0, T0.replace(year=2099))
    said = [r.retrain(s, "drift", lambda: 0, hours(24*d)).action for d in range(6)]
    assert said == ["done", "cooling down", "cooling down", "done", "cooling down", "cooling down"]

def test_other_time_zones_and_none(s):
    r.retrain(s, "drift", lambda: 0, datetime(2026, 3, 1, 8, tzinfo=timezone(timedelta(hours=2))))
    assert r.retrain_history(s)[0]["at"] == "2026-03-01T06:00:00+00:00" and not r.can_retrain(s, hours(71.9))[0] and r.can_retrain(s, hours(72))[0]
    for f in (lambda: r.can_retrain(s, datetime(2026, 3, 9)), lambda: r.retrain(s, "x", lambda: 0, datetime(2026, 3, 9))):
        with pytest.raises(ValueError, match="no time zone"): f()

def test_the_real_clock_is_the_default(s):
    before = datetime.now(timezone.utc)
    assert r.retrain(s, "drift", lambda: 0).action == "done" and r.retrain(s, "drift", lambda: 0).action == "cooling down"
    assert before <= datetime.fromisoformat(r.retrain_history(s)[0]["at"]) <= datetime.fromisoformat(r.retrain_history(s)[1]["at"]) <= datetime.now(timezone.utc)

def test_only_started_retrains_move_the_cooldown(s):
    r.retrain(s, "drift", lambda: 1, T0)
    for h in range(1, 71): assert r.retrain(s, "drift", lambda: 0, hours(h)).action == "cooling down"
    assert r.can_retrain(s, hours(72))[0]
    assert r.retrain(s, "by hand", lambda: 0, hours(71), force=True).action == "done"
    assert not r.can_retrain(s, hours(72))[0] and r.can_retrain(s, hours(71 + 72))[0]

@hyp(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.floats(.5, 60), min_size=1, max_size=25), st.sampled_from([0., 5., 24., 72.]))
def test_no_two_starts_are_nearer_than_the_cooldown(gaps, cooldown):
    s, t, starts = world(cooldown=cooldown), 0., []
    for g in gaps:
        t += g
        if r.retrain(s, "drift", lambda: 1, hours(t)).action == "done": starts.append(t)
    assert all(b - a >= cooldown - 1e-6 for a, b in zip(starts, starts[1:]))
    expect, last = [], -1e6 # each alarm that finds the rest over starts one: nothing is held up longer
    t = 0.
    for g in gaps:
        t += g
        if hours(t) - hours(last) >= timedelta(hours=cooldown): expect.append(t); last = t
    assert starts == expect

# What run() does

@pytest.mark.parametrize("code, says", [(0, "promoted"), (1, "refused: the champion stays"), (2, "failed with exit code 2"), (70, "failed with exit code 70"), (-9, "failed with exit code -9"), (10**6, "failed with exit code 1000000")])
def test_exit_codes(s, code, says):
    out = r.retrain(s, "drift", lambda: code, T0)
    assert (out.action, out.exit_code) == ("done", code) and out.reason.startswith(says)
    assert actions(s) == [("started", None), ("finished", code)]

@pytest.mark.parametrize("e", [ValueError("two\nlines"), KeyboardInterrupt(), SystemExit(1), MemoryError(), OSError(28, "No space left on device")], ids=lambda e: type(e).__name__)
def test_what_run_raises_is_recorded_and_raised(s, e):
    def run(): raise e
    with pytest.raises(type(e)) as got: r.retrain(s, "drift", run, T0)
    assert got.value is e
    last = r.retrain_history(s)[-1]
    assert (last["action"], last["exit_code"]) == ("finished", None) and last["said"].startswith(type(e).__name__) and "\n" not in last["said"]
    assert r.retrain(s, "drift", lambda: 0, hours(1)).action == "cooling down" and r.retrain(s, "drift", lambda: 0, hours(72)).action == "done"

@pytest.mark.parametrize("given", [None, True, "0", 1.0])
def test_no_exit_code_is_an_error(s, given):
    with pytest.raises(TypeError, match="must give an exit code"): r.retrain(s, "drift", lambda: given, T0)
    assert actions(s) == [("started", None), ("finished", None)]

def test_started_is_recorded_before_the_run_begins(s):
    "Asking whether a retrain may start writes nothing."
    seen = []
    def run(): seen.append(file(s).read_bytes()); seen.append(r.can_retrain(s, hours(500))); return 0
    r.retrain(s, "drift", run, T0)
    assert json.loads(seen[0])["action"] == "started" and seen[1] == (False, r.IN_FLIGHT)
    before = file(s).read_bytes()
    for h in (0, 71, 72, 1000): r.can_retrain(s, hours(h))
    assert file(s).read_bytes() == before
    empty = world()
    assert r.can_retrain(empty, T0) == (True, "no retrain is in flight, and the last one is long enough ago") and r.retrain_history(empty) == [] and not file(empty).exists()

def test_readiness_checks_block_no_retrain(tmp_path):
    s, stop, said = world(tmp_path/"ws", 0), threading.Event(), []
    def look():
        while not stop.is_set(): r.can_retrain(s)
    lookers = [threading.Thread(target=look) for _ in range(2)]
    for t in lookers: t.start()
    try: said = [r.retrain(s, "drift", lambda: 0).action for _ in range(50)]
    finally:
        stop.set()
        for t in lookers: t.join()
    assert said == ["done"]*50

# Nothing new

def test_what_is_known_beforehand_is_not_trained_and_begins_no_cooldown(s):
    out = r.retrain(s, "drift", lambda: pytest.fail("trained the same again"), T0, same="the same data")
    assert (out.action, out.exit_code, out.reason) == ("nothing new", None, "the same data")
    assert actions(s) == [("declined", None)] and "nothing new: the same data" in r.retrain_history(s)[0]["said"] and r.can_retrain(s, T0)[0]
    assert r.retrain(s, "by hand", lambda: 0, T0, force=True, same="the same data").action == "done"

def test_a_model_that_was_judged_before_begins_no_cooldown(s):
    "The one refused before it does."
    out = r.retrain(s, "drift", lambda: r.NOTHING_NEW, T0)
    assert (out.action, out.exit_code, out.reason) == ("done", 0, "nothing new") and r.can_retrain(s, T0)[0]
    assert r.retrain(s, "drift", lambda: 1, hours(1)).exit_code == 1
    assert r.retrain(s, "drift", lambda: r.NOTHING_NEW, hours(2), force=True).exit_code == 0
    assert "started 2026-03-01 07:00 and was refused" in r.can_retrain(s, hours(3))[1]
    with pytest.raises(TypeError, match="must give an exit code"): r.retrain(s, "drift", lambda: "fine", hours(100))
