"One tree of errors: exit codes, HTTP statuses and names follow from the class, and a crash is 70."
import ast, os, subprocess
import pytest, sources
from fastapi import FastAPI
from fastapi.testclient import TestClient
from churn_nb.core import errors
from churn_nb.core.errors import CRASHED, ChurnError, error_class, error_classes
from churn_nb.cli import app as cli, registry as registry_commands
from churn_nb.serving.http.problem_details import ProblemDetails, install_problem_handlers
from paths import CHURN, ROOT

TREE = [c for c in error_classes() if c.__module__ == errors.__name__]

def example(cls):
    "An error of a class, with a text over two lines, which no message should have."
    return cls([{"field": "age", "message": "too\nold"}]) if issubclass(cls, errors.InvalidRequest) else cls("the file is\nbroken")

def ended(monkeypatch, capsys, error):
    "Exit code of `churn` where a command raises an error, and what it said."
    def command(*args, **kw): raise error
    monkeypatch.setattr(cli, "app", command)
    with pytest.raises(SystemExit) as e: cli.main([])
    return e.value.code, capsys.readouterr().err

@pytest.mark.parametrize("cls", TREE, ids=lambda c: c.__name__)
def test_a_command_ends_with_the_exit_code_of_the_class(cls, monkeypatch, capsys):
    code, said = ended(monkeypatch, capsys, example(cls))
    assert code == cls.exit_code and said.count("\n") == (cls is not errors.GateRefused)

def test_only_the_gate_has_exit_code_1():
    assert [c.__name__ for c in TREE if c.exit_code == 1] == ["GateRefused"] and {c.exit_code for c in TREE} == {1, 2, 4}

@pytest.mark.parametrize("error", [OSError(5, "Input/output error", "x.parquet"), PermissionError(30, "Read-only file system"), ValueError("a\nb"), KeyError("k"), ConnectionError("gone")], ids=lambda e: type(e).__name__)
def test_a_crash_is_70_and_names_the_file_with_its_traceback(error, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    code, said = ended(monkeypatch, capsys, error)
    (file,) = tmp_path.iterdir()
    assert code == CRASHED == 70 and said.count("\n") == 1 and str(file) in said and type(error).__name__ in said
    assert "Traceback" in file.read_text() and file.stat().st_mode & 0o77 == 0

def test_a_crash_without_a_writable_folder_shows_its_traceback(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path/"none"))
    code, said = ended(monkeypatch, capsys, ZeroDivisionError("division by zero"))
    assert code == 70 and "Traceback" in said and said.endswith("churn: ZeroDivisionError: division by zero\n")

def test_a_broken_pipe_is_not_a_refusal():
    read, write = os.pipe()
    os.close(read)
    try: done = subprocess.run([CHURN, "score", "--help"], stdout=write, stderr=subprocess.PIPE, text=True)
    finally: os.close(write)
    assert (done.returncode, done.stderr) == (141, "")

def test_an_end_of_file_in_a_command_is_a_crash(monkeypatch, capsys, tmp_path):
    "typer would say `Aborted!` and end with 1."
    def cut(*args): raise EOFError("Compressed file ended before the end-of-stream marker was reached")
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(registry_commands, "command_settings", cut)
    with pytest.raises(SystemExit) as e: cli.main(["history"])
    assert e.value.code == CRASHED and "EOFError: Compressed file ended" in capsys.readouterr().err

def api_that_raises(error):
    app = FastAPI()
    install_problem_handlers(app)
    @app.get("/")
    def raises(): raise error
    return app

@pytest.mark.parametrize("cls", [c for c in TREE if c.status != 500], ids=lambda c: c.__name__)
def test_the_api_answers_with_the_status_of_the_class(cls):
    got = TestClient(api_that_raises(example(cls))).get("/")
    assert got.status_code == got.json()["status"] == cls.status and got.headers["content-type"] == "application/problem+json"
    assert got.headers.get("retry-after") == (str(cls.retry_after) if cls.retry_after else None)
    assert got.json()["detail"] == str(example(cls)) and got.json().get("errors", []) == getattr(example(cls), "errors", [])

@pytest.mark.parametrize("cls", [c for c in TREE if c.status == 500], ids=lambda c: c.__name__)
def test_the_text_of_a_500_is_for_the_log_only(cls):
    app = api_that_raises(cls("/srv/secret/settings.ini is broken"))
    got = TestClient(app, raise_server_exceptions=False).get("/")
    assert got.status_code == 500 and "secret" not in got.text and "X-Request-Id" in got.json()["detail"]
    with pytest.raises(cls, match="secret"): TestClient(app).get("/") # the server logs what is raised

def test_names_are_unique_and_lead_back_to_the_class():
    assert len({c.__name__ for c in error_classes()}) == len(error_classes()) and all(error_class(c.__name__) is c for c in TREE)
    assert error_class("ZeroDivisionError") is None

def test_every_exception_of_the_package_is_in_the_tree():
    "One that is defined elsewhere would be a crash in a step, whose kernel leaves a name only."
    known = {c.__name__ for c in error_classes()}
    for file in sources.files(ROOT, "churn_nb", "*.py"):
        for n in ast.walk(ast.parse((ROOT/file).read_text())):
            bases = {ast.unparse(b).split(".")[-1] for b in getattr(n, "bases", [])}
            if isinstance(n, ast.ClassDef) and any(b.endswith(("Error", "Exception")) or b in known for b in bases): assert n.name in known, (file, n.name)

def test_problem_details_has_a_status_of_its_own():
    assert ProblemDetails.of(ProblemDetails(404, "no customer 7")).status == 404 and issubclass(ProblemDetails, ChurnError)

def test_a_port_out_of_range_is_bad_usage():
    done = subprocess.run([CHURN, "serve", "--port", "99999"], capture_output=True, text=True)
    assert done.returncode == 2 and "65535" in done.stderr
