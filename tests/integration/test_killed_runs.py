"A run that is ended, by whatever signal, takes its kernels with it before its lock is free: real processes, whose cell holds Python's lock in C, so that no thread of theirs could look for the parent."
import os, signal, subprocess, time
import filelock, nbformat, psutil, pytest
from nbformat.v4 import new_code_cell, new_notebook
from churn_nb.ops.pipeline_runner import STEPS
from deadlines import allow
from paths import REAL_CHURN, ROOT, own_environment

BUSY = "from pathlib import Path; Path(workspace, 'busy').touch(); sum(range(10**12))"

@pytest.fixture
def notebooks(tmp_path):
    (folder := tmp_path/"nbs").mkdir()
    cells = [new_code_cell("workspace = ''\ndataset = ''\ncustomers = 0", metadata={"tags": ["parameters"]}), new_code_cell(BUSY)]
    for step in STEPS: nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}), folder/f"{step}.ipynb")
    return folder

def busy_run(workspace, notebooks):
    "A run whose first step computes, and its kernels: the step's, and those that were started ahead."
    with open(f"{workspace}.log", "wb") as log:
        run = subprocess.Popen([REAL_CHURN, "run", "--workspace", workspace], cwd=ROOT, env=own_environment(CHURN_PATHS_NOTEBOOKS=str(notebooks)), stdout=log, stderr=log, start_new_session=True)
    end = time.monotonic() + allow(120)
    while not (workspace/"busy").exists() and time.monotonic() < end and run.poll() is None: time.sleep(.02)
    kernels = [p for p in psutil.Process(run.pid).children(recursive=True) if "ipykernel_launcher" in " ".join(p.cmdline())]
    return run, kernels

def alive(processes): return [p.pid for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

@pytest.mark.parametrize("number, whom", [(signal.SIGKILL, "run"), (signal.SIGKILL, "group"), (signal.SIGTERM, "run"), (signal.SIGINT, "group")], ids=["kill", "kill group", "terminate", "Ctrl-C"])
def test_an_ended_run_takes_its_kernels_before_its_lock(tmp_path, notebooks, number, whom):
    run, kernels = busy_run(tmp_path/"w", notebooks)
    try:
        assert len(kernels) == 3 and not alive(kernels[3:]), (tmp_path/"w.log").read_text()
        (os.kill if whom == "run" else os.killpg)(run.pid, number)
        with filelock.FileLock(tmp_path/"w/.run.lock", timeout=allow(60), poll_interval=.001): left = alive(kernels)
        assert left == [] and run.wait(allow(60)) != 0
    finally:
        for p in (run, *kernels):
            if p.poll() is None if isinstance(p, subprocess.Popen) else p.is_running(): p.kill()
        run.wait()
