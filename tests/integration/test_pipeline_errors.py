"The `churn` command without a finished run: kernels, wrong calls, wrong settings, full disks."
import os, subprocess
import pytest
from churn_nb.ops.pipeline_runner import STEPS
from churn_nb.ops.step_runner import Kernels
from churn_nb.core.settings import load_settings
from commands import FEW, churn
from paths import REAL_CHURN, own_environment

pytestmark = pytest.mark.usefixtures("measured")

def test_kernels_start_ahead_and_all_end_on_close():
    kernels = Kernels(load_settings(), STEPS)
    first = kernels.of(STEPS[0])
    pids = [km.provisioner.pid for km in kernels.started.values()]
    assert list(kernels.started) == STEPS[:3] and first is kernels.started[STEPS[0]] and all(os.path.exists(f"/proc/{p}") for p in pids)
    kernels.stop(STEPS[0])
    kernels.stop(STEPS[0]) # again: nothing happens
    assert list(kernels.started) == STEPS[1:3]
    kernels.close()
    assert not any(os.path.exists(f"/proc/{p}") for p in pids)

@pytest.mark.parametrize("args, says", [
    (["step", "05_dance"], "unknown step 05_dance"), (["run", "-p", "custommers=3"], "unknown parameter custommers"), (["run", "-p", "customers=many"], "expected int"),
    (["run", "--dataset", "cdnov"], "[data] dataset"), (["run", "--workspace", "/proc/nowhere"], "workspace /proc/nowhere"), (["score", "no.csv", "out.csv"], "no.csv: no such file"), (["score", "/", "out.csv"], "/: it is a folder; name one file in it"), (["describe", "/"], "/: it is a folder; name one file in it"),
    (["promote", "--workspace", "EMPTY"], "no features in"), (["serve", "--host", "0.0.0.0"], "--insecure")])
def test_wrong_calls_are_one_line_and_exit_2(args, says, tmp_path):
    r = churn(*[str(tmp_path) if a == "EMPTY" else a for a in args])
    assert r.returncode == 2, r.stdout + r.stderr
    assert says in r.stderr and len(r.stderr.strip().splitlines()) == 1

def test_settings_errors_name_section_and_key():
    r = churn("doctor", env={"CHURN_SERVE_PORT": "eighty"})
    assert r.returncode == 2 and "[serve] port" in r.stderr
    r = churn("doctor", env={"CHURN_SERVE_PROT": "80"})
    assert r.returncode == 2 and "CHURN_SERVE_PROT" in r.stderr

def test_a_full_disk_is_one_clear_error(tmp_path):
    "A tmpfs of 1 MB; where mounting is not allowed, the skip says so."
    disk = tmp_path/"disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode: pytest.skip("NOT TESTED: a full disk (mounting a tmpfs needs root)")
    try:
        r = churn("run", *FEW, "--workspace", disk/"work")
        assert r.returncode == 2 and "MB free" in r.stderr and len(r.stderr.strip().splitlines()) == 1
    finally: subprocess.run(["umount", "--lazy", disk], check=True)

@pytest.mark.parametrize(("blocks", "said"), [(60, "File too large"), (200, "disk I/O error")], ids=["notebook", "online store"]) # what is too large first
def test_a_disk_that_fills_up_during_a_step(tmp_path, blocks, said):
    "Room for the first check but not for the step's files: the step fails with the system's word for it, nothing counts as written."
    ws = tmp_path/"work"
    limited = ["bash", "-c", f"ulimit -f {blocks}; exec {REAL_CHURN} step 00_features -p customers=500 --workspace {ws}"]
    r = subprocess.run(limited, capture_output=True, text=True, env=own_environment())
    assert r.returncode == 70 and "FAILED" in r.stdout and said in r.stdout, r.stdout + r.stderr
    assert not (ws/"feast"/"made_from.json").exists() and not (ws/"results"/"00_features.json").exists()
    assert churn("step", "00_features", *FEW, "--workspace", ws).returncode == 0
