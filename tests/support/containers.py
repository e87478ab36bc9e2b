"""Containers without a Docker daemon: Podman as root, base images made here because no image registry can be reached.

Stand-ins, each named as such: `stand-in/python` is Debian's minimal system with its own Python, in place of python:slim;
`stand-in/tritonserver` is that with Triton's core from PyPI and a Python ONNX backend, in place of NVIDIA's image."""
import json, os, re, shutil, subprocess, sys, tempfile, time
from pathlib import Path
import filelock, httpx
from deadlines import allow
from paths import ROOT

TOOLS = {"podman": "podman", "runc": "runc", "debootstrap": "debootstrap", "buildah": "buildah", "docker-registry": "docker-registry", "skopeo": "skopeo", "s6-svscan": "s6"}
PYTHON, BUILD, TRITON, TRITON_BUILD = (f"localhost/stand-in/{n}:1" for n in ("python", "python-build", "tritonserver", "tritonserver-build"))

def can_not() -> str:
    "Why containers can't be had here; empty where they can. Installs what Debian has."
    if os.geteuid(): return "root is needed"
    if not shutil.which("apt-get"): return "the base images are made with Debian's tools"
    with filelock.FileLock("/tmp/churn-apt.lock"): # two test runs side by side
        if missing := [p for t, p in TOOLS.items() if not shutil.which(t)]:
            env, wait = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "-oDPkg::Lock::Timeout=600"
            subprocess.run(["apt-get", wait, "update", "-qq"], env=env, stdout=subprocess.DEVNULL)
            done = subprocess.run(["apt-get", wait, "install", "-y", "-qq", "--no-install-recommends", *missing], env=env, capture_output=True, text=True)
            if done.returncode: return f"{', '.join(missing)} can't be installed: {done.stderr.strip()[-300:]}"
    return ""

def run(*command, ok=True, **kw):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **{"timeout": allow(900), **kw})
    assert done.returncode == 0 or not ok, f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done

def podman(*args, **kw): return run("podman", "--runtime", shutil.which("runc"), "--cgroup-manager", "cgroupfs", "--events-backend", "file", *args, **kw)

def there(image) -> bool: return podman("image", "exists", image, ok=False).returncode == 0

def mirror() -> str:
    "Where this machine gets Debian's packages from."
    text = "\n".join(f.read_text() for f in sorted([*Path("/etc/apt").glob("sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]))
    return re.search(r"^(?:URIs:|deb(?: \[.*?\])?)\s+(\S+)", text, re.M)[1]

SLIM = "rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/log/* /usr/share/doc/* /usr/share/man/* /usr/share/locale/* /usr/share/info/*"

def _import(folder, image): run("sh", "-c", f"tar -C {folder} -c . | podman import -q - {image}")

def base_images():
    "Make the stand-ins, once a machine."
    with filelock.FileLock("/tmp/churn-stand-ins.lock"):
        if not there(BUILD):
            with tempfile.TemporaryDirectory(prefix="churn-base-") as tmp:
                run("debootstrap", "--variant=minbase", "--include=python3,ca-certificates,s6", "bookworm", tmp, mirror())
                run("chroot", tmp, "sh", "-c", SLIM)
                _import(tmp, PYTHON)
                run("chroot", tmp, "sh", "-c", "apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv libpython3.11 libgomp1 && " + SLIM,
                    env={"PATH": os.environ["PATH"], "DEBIAN_FRONTEND": "noninteractive"}) # of the build stages only
                _import(tmp, BUILD)
        if not there(TRITON_BUILD): _triton_image()

def _triton_image():
    with tempfile.TemporaryDirectory(prefix="churn-triton-") as tmp:
        for f in ("requirements-triton.lock", "tests/support/triton_backend"):
            (shutil.copytree if (ROOT/f).is_dir() else shutil.copy)(ROOT/f, Path(tmp)/Path(f).name)
        (Path(tmp)/"tritonserver").write_text(f"""#!/bin/sh
# Stand-in: Triton's core from PyPI with a Python ONNX backend.
export LD_LIBRARY_PATH={HOME}/nvidia_pytriton.libs PATH=/opt/triton-python/bin:$PATH
exec {HOME}/pytriton/tritonserver/bin/tritonserver --backend-directory=/opt/tritonserver/backends "$@"
""")
        (Path(tmp)/"Dockerfile").write_text(f"""FROM {BUILD}
COPY requirements-triton.lock triton_backend /tmp/t/
RUN python3 -m venv /opt/triton-python && /opt/triton-python/bin/pip install --no-cache-dir --quiet --no-deps --require-hashes -r /tmp/t/requirements-triton.lock
RUN mkdir -p /opt/tritonserver/backends/python /opt/tritonserver/bin && cp {HOME}/pytriton/tritonserver/backends/python/*.* {HOME}/pytriton/tritonserver/python_backend_stubs/3.11/triton_python_backend_stub /opt/tritonserver/backends/python/ && cp -r /tmp/t/onnxruntime /opt/tritonserver/backends/onnxruntime
COPY --chmod=755 tritonserver /opt/tritonserver/bin/tritonserver
""")
        build(tmp, TRITON)
        podman("tag", TRITON, TRITON_BUILD)

HOME = "/opt/triton-python/lib/python3.11/site-packages"

def build(folder, tag, *args, timeout=900):
    "Build with what this machine needs to reach its package mirror, mounted for the build only."
    with tempfile.TemporaryDirectory(prefix="churn-pip-") as tmp:
        conf = Path(tmp)/"pip.conf"
        index = run(sys.executable, "-m", "pip", "config", "get", "global.index-url", ok=False).stdout.strip() or os.environ.get("PIP_INDEX_URL", "")
        conf.write_text("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n" + (f"index-url = {index}\n" if index else ""))
        return run("buildah", "bud", "--format", "docker", "--isolation", "chroot", "--network", "host", "--pull-never", "--layers", "-q", "-t", tag,
                   "-v", "/etc/ssl/certs:/etc/ssl/certs:ro", "-v", f"{conf}:/etc/pip.conf:ro", *args, folder, timeout=timeout)

def build_target(target, tag, *args, folder=ROOT, timeout=900):
    "One of the Dockerfile's images, on the stand-ins."
    base_images()
    return build(folder, tag, "--target", target, *BASES, *args, timeout=timeout)

BASES = [x for k, v in {"BASE_IMAGE": PYTHON, "BUILD_IMAGE": BUILD, "TRITON_IMAGE": TRITON, "TRITON_BUILD_IMAGE": TRITON_BUILD}.items() for x in ("--build-arg", f"{k}={v}")]

LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024") # Podman's own are above what may be set here

def image(tag) -> dict: return json.loads(podman("image", "inspect", tag).stdout)[0]

class Container:
    "A container in the background, on this machine's network; removed at the end."
    def __init__(self, tag, *command, port, options=()):
        self.url, self.name = f"http://127.0.0.1:{port}", f"churn-{port}"
        podman("run", "-d", "--name", self.name, "--network", "host", *LIMITS,
               "-e", f"CHURN_SERVE_PORT={port}", "-e", "CHURN_SERVE_HOST=127.0.0.1", *options, tag, *command)
    def state(self): return json.loads(podman("container", "inspect", self.name).stdout)[0]["State"]
    def log(self): return (d := podman("logs", self.name)).stdout + d.stderr
    def ready(self, seconds=120):
        end = time.monotonic() + allow(seconds)
        while time.monotonic() < end:
            try:
                if (r := httpx.get(f"{self.url}/readyz", timeout=allow(5))).status_code == 200: return r.json()
            except httpx.TransportError: pass
            assert self.state()["Running"], self.log()
            time.sleep(.1)
        raise TimeoutError(self.log())
    def stop(self, seconds=20): podman("stop", "-t", seconds, self.name); return self.state()["ExitCode"]
    def __enter__(self): return self
    def __exit__(self, *error): podman("rm", "-f", self.name, ok=False)
