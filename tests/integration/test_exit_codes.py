"Every command driven into the failures of its surroundings: the right exit code and one line, never the gate's 1."
import contextlib, http.server, socket, subprocess, threading
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
    finally: subprocess.run(["umount", "--lazy", folder], check=True) # a process that was asked to end may still be at it

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

# A table of commands and failures

@pytest.fixture
def command_line(tiny_bundle, tmp_path):
    "A command's arguments, by its name: it reads `rows` and writes into `folder`."
    rows = tmp_path/"rows.csv"
    rows.write_text("age,usage_minutes,gap,churn\n" + "".join(f"{20 + i % 50},{i},{i % 7},{'yes' if i % 3 else 'no'}\n" for i in range(60)))
    subprocess.run(["git", "init", "-q", "--bare", tmp_path/"bare.git"], check=True)
    def arguments(command, folder=tmp_path, rows=rows, workspace=tiny_bundle, bare=tmp_path/"bare.git"):
        return {"describe": ["describe", rows, "--label", "churn", "--out", folder/"dataset.toml"],
                "score": ["score", rows, folder/"scored.csv", "--reasons", 0, "--workspace", workspace],
                "triton": ["triton", folder/"models", "--workspace", workspace],
                "serve": ["serve", "--workspace", workspace],
                "deploy-hook": ["deploy-hook", "install", bare, "--home", folder/"home"]}[command]
    return arguments

@contextlib.contextmanager
def full(folder):
    "A file system of one page without room on the folder; where mounting is not allowed, the skip says so."
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", folder], capture_output=True).returncode: pytest.skip("NOT TESTED: a full disk (mounting a tmpfs needs root)")
    try:
        (folder/"filler").write_bytes(bytes(4096))
        yield
    finally: subprocess.run(["umount", "--lazy", folder], check=True) # a process that was asked to end may still be at it

@pytest.mark.root
@pytest.mark.parametrize("state, says", [(read_only, "Read-only file system"), (full, "No space left on device")], ids=["read-only", "full"])
@pytest.mark.parametrize("command", ["describe", "score", "triton", "deploy-hook"])
def test_a_folder_without_room_is_named_in_one_line(command_line, tmp_path, capsys, command, state, says):
    (folder := tmp_path/"folder").mkdir()
    with state(folder): code, _, said = churn(capsys, *command_line(command, folder))
    assert (code, len(said.strip().splitlines())) == (2, 1) and str(folder) in said and says in said, said

@pytest.mark.parametrize("command, lacks", [("describe", "rows"), ("score", "rows"), ("score", "workspace"), ("triton", "workspace"), ("deploy-hook", "bare")])
def test_what_is_missing_is_named_in_one_line(command_line, tmp_path, capsys, command, lacks):
    code, _, said = churn(capsys, *command_line(command, **{lacks: tmp_path/"none.csv"}))
    assert (code, len(said.strip().splitlines())) == (2, 1) and "none.csv" in said, said

@pytest.mark.parametrize("command", ["score", "triton", "serve"])
def test_a_bad_setting_is_named_in_one_line(command_line, monkeypatch, capsys, command):
    monkeypatch.setenv("CHURN_SERVE_PORT", "eighty")
    code, _, said = churn(capsys, *command_line(command))
    assert (code, len(said.strip().splitlines())) == (2, 1) and "[serve] port" in said, said

@pytest.mark.parametrize("command", ["serve", "deploy-hook"])
def test_a_port_that_does_not_exist_is_wrong_usage(command_line, capsys, command):
    code, _, said = churn(capsys, *command_line(command), "--port", 99999)
    assert code == 2 and "--port" in said and "65535" in said and "Traceback" not in said, said

def test_a_port_in_use_is_named_in_one_line(command_line, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, said = churn(capsys, *command_line("serve"), "--port", port)
    assert (code, len(said.strip().splitlines())) == (2, 1) and str(port) in said, said
