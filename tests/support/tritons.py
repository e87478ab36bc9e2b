"""A real Triton for tests: Triton core with a Python ONNX backend, from packages in an environment of its own."""
import os, platform, shutil, subprocess, sys, time
from pathlib import Path

import filelock
import httpx

from deadlines import allow
from serving import free_ports
from paths import ROOT

def triton_python() -> Path:
    "Python of the environment with Triton; made once, whatever number of workers ask for it."
    sys.path.insert(0, str(ROOT/"bench"))
    try: from peers import environment
    finally: sys.path.pop(0)
    (ROOT/".bench").mkdir(exist_ok=True)
    with filelock.FileLock(ROOT/".bench"/".triton.lock"): return environment("triton", "requirements-triton.lock")

def no_triton() -> str:
    "Why Triton can't run here; empty where it can."
    if sys.platform != "linux" or platform.machine() != "x86_64": return f"the package with Triton is for Linux on x86_64, this is {sys.platform} on {platform.machine()}"
    try: python = triton_python()
    except (subprocess.CalledProcessError, OSError) as e: return f"the environment of requirements-triton.lock can't be made: {e}"
    return "" if stub(python).exists() else f"the package with Triton has no stub for Python {sys.version_info[0]}.{sys.version_info[1]}"

def site(python): return next((python.parents[1]/"lib").glob("python3*/site-packages"))
def stub(python): return site(python)/f"pytriton/tritonserver/python_backend_stubs/{sys.version_info[0]}.{sys.version_info[1]}/triton_python_backend_stub"

class Triton:
    "A tritonserver on free loopback ports, over one model repository; stopped by its own pid."
    def __init__(self, repository, scratch, *options, ports=None):
        self.repository, self.scratch, self.options = Path(repository), Path(scratch), options
        self.http, self.grpc, self.metrics = ports or free_ports(3)
        self.url, self.log, self.process = f"http://127.0.0.1:{self.http}", self.scratch/"triton.log", None
        self.python = triton_python()
        self.backends()

    def backends(self):
        "A folder with the Python backend and ours; copies, as a link would lead out of it."
        to, home = self.scratch/"backends", site(self.python)/"pytriton/tritonserver"
        (to/"python").mkdir(parents=True, exist_ok=True)
        for f in (home/"backends/python").glob("*.*"): shutil.copy(f, to/"python"/f.name)
        shutil.copy(stub(self.python), to/"python")
        shutil.copytree(ROOT/"tests/support/triton_backend/onnxruntime", to/"onnxruntime", dirs_exist_ok=True)

    def launch(self):
        "Start the process, without waiting."
        import sysconfig
        home = site(self.python)
        libraries = [str(home/"nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH", "")]
        env = os.environ | {"PATH": f"{self.python.parent}:{os.environ.get('PATH', '')}", "LD_LIBRARY_PATH": ":".join(x for x in libraries if x)}
        options = [f"--model-repository={self.repository.resolve()}", f"--backend-directory={(self.scratch/'backends').resolve()}", "--allow-gpu-metrics=false",
                   *(f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")), f"--http-port={self.http}", f"--grpc-port={self.grpc}",
                   f"--metrics-port={self.metrics}", *self.options]
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen([home/"pytriton/tritonserver/bin/tritonserver", *options], env=env, stdout=out, stderr=subprocess.STDOUT)
        return self

    def start(self, seconds=90):
        "Start and wait until its models are ready."
        self.launch()
        end = time.monotonic() + allow(seconds)
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/v2/health/ready", timeout=2).status_code == 200: return self
            except httpx.HTTPError: pass
            time.sleep(.05)
        self.stop()
        raise RuntimeError(f"Triton did not start:\n{self.log.read_text(errors='replace')[-4000:]}")

    def stop(self, how="terminate"):
        if self.process and self.process.poll() is None:
            getattr(self.process, how)()
            try: self.process.wait(allow(40))
            except subprocess.TimeoutExpired: self.process.kill(); self.process.wait()
    def __enter__(self): return self if self.process else self.start()
    def __exit__(self, *error): self.stop()

    def post(self, path, body=None): return httpx.post(f"{self.url}/v2/{path}", json=body or {}, timeout=allow(60))
    def counts(self, model="churn"):
        "(inferences, executions) of a model, over its versions."
        stats = httpx.get(f"{self.url}/v2/models/{model}/stats", timeout=allow(90)).json()["model_stats"]
        return sum(s["inference_count"] for s in stats), sum(s["execution_count"] for s in stats)
