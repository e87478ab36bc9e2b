"""Kills a fresh `churn run` at random moments and runs it again: each rerun must end in order, with the model and the answers of a run that nothing disturbed.
`make soak`, or `python tests/soak/killed_runs.py --help`. What is done is kept in a file of rows, one per kill: the next call goes on behind the last one."""
import argparse, hashlib, json, os, random, re, signal, sqlite3, subprocess, sys, time
from contextlib import closing
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/"support"))
import filelock, httpx, psutil, pyarrow.parquet as pq
from paths import REAL_CHURN, ROOT
from serving import serving

LOCKS = re.compile(r"\.[a-z.-]*lock|\.churn-workspace") # hidden files that belong to a whole workspace

def start(workspace, customers):
    "A run in a process group of its own; what it prints goes to a file."
    with open(f"{workspace}.log", "w") as log:
        return subprocess.Popen([REAL_CHURN, "run", "-p", f"customers={customers}", "--workspace", str(workspace)], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

def steps(workspace): return re.findall(r"^  (\d\d_\w+) .*", Path(f"{workspace}.log").read_text(), re.M)

def outcome(workspace):
    "The champion's file and what the API answers: what a kill must not change."
    ids = sorted(pq.read_table(workspace/"feast/training_rows.parquet", columns=["customer_id"])["customer_id"].unique().to_pylist())[::20]
    with serving(workspace) as api:
        answers = httpx.post(f"{api.url}/predict/batch", json=[{"customer_id": i} for i in ids], timeout=60).raise_for_status().json()
    model = (Path(workspace)/"bundle/current/model.onnx").read_bytes()
    return {"model": hashlib.sha256(model).hexdigest(), "answers": [{k: v for k, v in a.items() if k != "model_version"} for a in answers]}

def reference(folder, customers):
    "The outcome of an undisturbed run, and the seconds that it took; made once."
    kept = folder/f"reference-{customers}.json"
    if not kept.exists():
        workspace, began = folder/f"reference-{customers}", time.monotonic()
        assert start(workspace, customers).wait() == 0, Path(f"{workspace}.log").read_text()
        seconds = time.monotonic() - began
        kept.write_text(json.dumps({"seconds": seconds, **outcome(workspace)}))
    return json.loads(kept.read_text())

def wait_free(workspace, seconds=60):
    "Seconds until no run holds the workspace."
    began = time.monotonic()
    with filelock.FileLock(workspace/".run.lock", timeout=seconds, poll_interval=.01): return time.monotonic() - began

def left_behind(workspace):
    "What a kill left and a whole workspace does not have."
    left = [str(f.relative_to(workspace)) for f in workspace.rglob("*") if f.is_file() and (f.name.startswith(".") and not LOCKS.fullmatch(f.name) or f.name.endswith(("-journal", "-wal")) or f.parent.name == ".mlflow-new")]
    if (db := workspace/"mlflow.db").exists():
        with closing(sqlite3.connect(f"file:{db}?mode=ro", uri=True)) as mlflow: open_runs = mlflow.execute("SELECT count(*) FROM runs WHERE status = 'RUNNING'").fetchone()[0]
        left += [f"{open_runs} open MLflow run(s)"]*bool(open_runs)
    return left

def kill_once(folder, i, seed, customers, undisturbed):
    "One kill and the run after it, as a row."
    workspace, moment = folder/f"kill-{i}", random.Random(f"{seed}-{i}").uniform(.5, undisturbed["seconds"])
    run = start(workspace, customers)
    try: run.wait(moment)
    except subprocess.TimeoutExpired: pass
    children = psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []
    try: os.killpg(run.pid, signal.SIGKILL)
    except ProcessLookupError: pass # it had ended
    code = run.wait()
    row = {"kill": i, "customers": customers, "second": round(moment, 1), "killed": code == -signal.SIGKILL, "step": f"after {done[-1]}" if (done := steps(workspace)) else "first step"}
    if (workspace/".run.lock").exists(): row["lock free after"] = round(wait_free(workspace), 2)
    row["processes then"] = sum(c.is_running() and c.status() != psutil.STATUS_ZOMBIE for c in children)
    row["left"] = left_behind(workspace) if workspace.exists() else ["no folder"]
    began = time.monotonic()
    row["exit code"] = start(workspace, customers).wait()
    row["seconds"] = round(time.monotonic() - began, 1)
    if row["exit code"] in (0, 1):
        found = outcome(workspace)
        row |= {"same model": found["model"] == undisturbed["model"], "same answers": found["answers"] == undisturbed["answers"]}
    row["good"] = row["exit code"] in (0, 1) and row["same model"] and row["same answers"] and not row["processes then"]
    if row["good"]: subprocess.run(["rm", "-rf", str(workspace), f"{workspace}.log"], check=True)
    return row

def table(rows):
    "The rows as Markdown."
    columns = ["kill", "customers", "second", "step", "lock free after", "processes then", "left", "exit code", "same model", "same answers", "good"]
    say = lambda v: ("yes" if v else "NO") if isinstance(v, bool) else ", ".join(v) if isinstance(v, list) else str(v)
    lines = [columns, ["---"]*len(columns), *([say(r.get(c, "")) for c in columns] for r in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

def main():
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--kills", type=int, default=40)
    ask.add_argument("--customers", type=int, default=2000)
    ask.add_argument("--seed", type=int, default=21)
    ask.add_argument("--seconds", type=float, default=float("inf"), help="begin no kill that would end later than this")
    ask.add_argument("--folder", type=Path, default=ROOT/"build/soak", help="receives the workspaces; those of good rows are deleted")
    given, began = ask.parse_args(), time.monotonic()
    given.folder.mkdir(parents=True, exist_ok=True)
    done, longest = given.folder/"kills.jsonl", 0.
    undisturbed = reference(given.folder, given.customers)
    first = len(done.read_text().splitlines()) + 1 if done.exists() else 1
    for i in range(first, given.kills + 1):
        at = time.monotonic()
        if at - began + max(longest, 2*undisturbed["seconds"]) > given.seconds: break
        row = kill_once(given.folder, i, given.seed, given.customers, undisturbed)
        with done.open("a") as f: f.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        longest = max(longest, time.monotonic() - at)
    rows = [json.loads(line) for line in done.read_text().splitlines()] if done.exists() else []
    print(table(rows), flush=True)
    return 0 if all(r["good"] for r in rows) else 1

if __name__ == "__main__": sys.exit(main())
