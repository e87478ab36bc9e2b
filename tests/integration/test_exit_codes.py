"Every command driven into the failures of its surroundings: the right exit code and one line, never the gate's 1."
import contextlib, http.server, subprocess, threading
import pytest
from churn_nb.registry.deployment import decision_history
from online_store import churn

# A server in MLflow's place

ANSWERS = {"401": (401, b"no token", 2), "403": (403, b"not yours", 2), "a page to log in": (200, b"<html>Log in</html>", 2), "an unknown path": (404, b"<html>nginx</html>", 2),
           "a loop of redirects": (302, b"", 2), "500": (500, b"oops", 4), "502": (502, b"bad gateway", 4)}

class Elsewhere(http.server.BaseHTTPRequestHandler):
    code, body = 200, b""
    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.code)
        if self.code == 302: self.send_header("Location", "/login")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)
    do_POST = do_PATCH = do_PUT = do_DELETE = do_GET
    def log_message(self, *_): pass

@pytest.fixture(params=ANSWERS)
def answers(request, monkeypatch):
    "`[stores] tracking_uri` is a server that answers everything so; the exit code to expect."
    code, body, expected = ANSWERS[request.param]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Answer", (Elsewhere,), {"code": code, "body": body}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("CHURN_STORES_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    yield expected
    server.shutdown()
    server.server_close()

def test_a_strange_registry_is_named_in_one_line(answers, tiny_bundle, capsys):
    code, _, said = churn(capsys, "history", "--workspace", tiny_bundle)
    assert code == answers and len(said.strip().splitlines()) == 1 and "127.0.0.1" in said and ("tracking_uri" in said or "MLFLOW_TRACKING_TOKEN" in said), said

@pytest.mark.parametrize("answers", ["a page to log in"], indirect=True)
@pytest.mark.parametrize("command", ["rollback", "drift", "doctor"])
def test_every_command_that_asks_the_registry_ends_alike(answers, command, tiny_bundle, capsys):
    code, out, said = churn(capsys, command, "--workspace", tiny_bundle)
    assert code == answers and "answers, but not as MLflow does" in (out if command == "doctor" else said)

# A workspace that can't be written

@contextlib.contextmanager
def read_only(folder):
    "The folder, mounted read-only over itself; where mounting is not allowed, the skip says so."
    if subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode: pytest.skip("NOT TESTED: a read-only workspace (mounting needs root)")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally: subprocess.run(["umount", folder], check=True)

@pytest.fixture
def workspace(copied, tmp_path):
    "A store and an event to push, and a table to score."
    s = copied("few")
    (tmp_path/"new.csv").write_text("event_id,customer_id,event_timestamp,amount,quantity\n900001,3,1998-06-30T18:20:00Z,20.5,1\n")
    return s

WRITERS = {"push": ["new.csv"], "materialize": [], "promote": [], "rollback": [], "retrain": [], "run": [], "step": ["00_features"], "drift": []}

def test_a_read_only_workspace_is_one_line_and_2(workspace, tmp_path, capsys):
    "For every command that writes there; what needs no write access goes on."
    ws, ends = workspace.paths.workspace, {}
    with read_only(ws):
        for command, arguments in WRITERS.items():
            code, _, said = churn(capsys, command, *[tmp_path/a if a.endswith(".csv") else a for a in arguments], "--workspace", ws)
            ends[command] = code, len(said.strip().splitlines())
        assert churn(capsys, "history", "--workspace", ws)[0] == 0
    assert ends == dict.fromkeys(WRITERS, (2, 1))

def test_the_history_is_read_where_nothing_can_be_written(registries):
    "Also by a workspace that has no copy of it yet."
    registry = registries("sqlite")
    with registry.use(): s = registry.world("only-read", 2)
    written = decision_history(s)
    elsewhere = registry.elsewhere(s)
    elsewhere.paths.workspace.mkdir()
    with read_only(elsewhere.paths.workspace): read = decision_history(elsewhere)
    assert read == written and len(read) == 2
