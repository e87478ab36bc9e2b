"`churn_nb.cli`: the table of commands says of each what its module says, and only the module of the called command is imported."
import errno, importlib, inspect, os, signal, subprocess, sys
import pytest, sources, typer
from typer.main import get_group
from churn_nb.cli import app as module
from churn_nb.cli.app import COMMANDS, ListedCommand, app, main
from churn_nb.core.errors import error_classes
from paths import REAL_CHURN, ROOT

HEAVY = ("pandas", "sklearn", "mlflow", "feast", "papermill", "jupyter_client", "duckdb", "onnxruntime")
MODULES = sorted({c.module for c in COMMANDS.values()})

def registered():
    for m in MODULES: importlib.import_module(m)
    return get_group(app).commands

def modules_after(text):
    "What of the package, and of what is heavy, a new interpreter has imported after a program."
    code = f"import sys\n{text}\nprint(*[m for m in sys.modules if m in {HEAVY} or m.startswith('churn_nb.')])"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())

def test_the_table_names_every_command_and_its_help():
    found = registered()
    assert list(found) == list(COMMANDS) and not [n for n, c in found.items() if isinstance(c, ListedCommand)]
    paragraph = lambda text: " ".join(inspect.cleandoc(text).partition("\n\n")[0].split())
    assert {n: paragraph(c.help) for n, c in found.items()} == {n: c.help for n, c in COMMANDS.items()}

def test_every_module_of_the_room_that_has_commands_is_in_the_table():
    having = {f"churn_nb.{m}" for m, f in sources.modules(ROOT).items() if m.startswith("cli.") and "@app.command" in sources.read(ROOT, f) or "app.add_typer" in sources.read(ROOT, f)}
    assert having == set(MODULES)

@pytest.mark.parametrize("name", [*COMMANDS, "deploy-hook install", "deploy-hook run"])
def test_a_commands_functions_are_called_by_its_name(name):
    command = registered()
    for part in name.split(): command = getattr(command, "commands", command)[part]
    if callback := command.callback: assert callback.__name__ in (f"{name.split()[-1].replace('-', '_')}_command", "deploy_command")

def test_help_imports_no_command():
    seen = modules_after("import churn_nb.cli.app as a\ntry: a.main(['--help'])\nexcept SystemExit as e: assert e.code == 0")
    assert not seen & {*HEAVY, *MODULES}

def test_a_command_imports_its_own_module_alone():
    seen = modules_after("import churn_nb.cli.app as a\ntry: a.main(['serve', '--help'])\nexcept SystemExit as e: assert e.code == 0")
    assert seen & set(MODULES) == {"churn_nb.cli.serve"} and not seen & {"pandas", "sklearn", "mlflow", "feast", "papermill"}

def test_an_unknown_command_gets_a_suggestion():
    done = subprocess.run([REAL_CHURN, "promot"], capture_output=True, text=True)
    assert done.returncode == 2 and "No such command 'promot'" in done.stderr and "'promote'" in done.stderr

def of_system(number, name=None): return OSError(number, os.strerror(number), name)

ENDS = {2: [of_system(errno.EROFS, "w/runs"), of_system(errno.EACCES, "w"), of_system(errno.ENOSPC), of_system(errno.ENOSPC, "out.csv"), SystemExit(2)], 3: [typer.Exit(3)], 0: [typer.Exit(0)],
        70: [KeyError("x"), MemoryError(), RecursionError("deep"), GeneratorExit(), SystemExit(1), SystemExit("a text"), typer.Exit(1), typer.Abort(), EOFError(), OSError("without a number"), of_system(errno.EACCES),
             ImportError("no module"), UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), typer.BadParameter("x").__class__.__mro__[2]("a plain ClickException")],
        130: [KeyboardInterrupt()], 141: [BrokenPipeError(errno.EPIPE, "Broken pipe")]}

@pytest.mark.parametrize(("code", "error"), [pytest.param(c, e, id=f"{c}-{type(e).__name__}") for c, errors in ENDS.items() for e in errors])
def test_only_the_gate_ends_with_1(code, error, monkeypatch, capsys, tmp_path):
    "Whatever a command or a package raises; a crash leaves its traceback in a file."
    broken = typer.Typer(add_completion=False)
    @broken.command()
    def go(): raise error
    monkeypatch.setattr(module, "app", broken)
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as ended: main([])
    said = capsys.readouterr().err
    assert ended.value.code == code
    assert len([*tmp_path.glob("churn-crash-*")]) == (code == 70) and ("the traceback is in" in said) == (code == 70)

def test_one_class_of_errors_has_exit_code_1():
    assert [c.__name__ for c in error_classes() if c.exit_code == 1] == ["GateRefused"]

@pytest.mark.parametrize("error", ["KeyError('x')", "module.UsageError('x')", "PermissionError(13, 'denied', 'w')"])
def test_an_error_that_no_stream_takes_keeps_its_code(error, tmp_path):
    code = f"""import typer, churn_nb.cli.app as module, churn_nb.core.errors as errors
module.UsageError, module.app = errors.UsageError, typer.Typer()
@module.app.command()
def go(): raise {error}
module.main([])"""
    with open("/dev/full", "w") as full: done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=full, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.returncode in ((70,) if "KeyError" in error else (2,))

HALF_READ = """import io, sys, time
import pyarrow as pa, pyarrow.csv as pa_csv
import churn_nb.cli.app as app
class Slow(io.RawIOBase):
    rows = b"12,34567\\n"*200_000
    def readable(self): return True
    def readinto(self, b):
        n = min(len(b), len(self.rows))
        b[:n], self.rows = self.rows[:n], self.rows[n:]
        for _ in range(3000*(n == 0)): time.sleep(.001)
        return n
reader = pa_csv.open_csv(pa.PythonFile(Slow(), "r"))
app.main = lambda: sys.exit(2)
"""

def test_a_failed_command_ends_while_arrow_reads_ahead():
    "Arrow's thread comes back to Python when Python has ended: without `entry_point` that aborts the process."
    codes = [subprocess.run([sys.executable, "-Ic", HALF_READ + end], capture_output=True).returncode for end in ("app.entry_point()", "app.main()")]
    assert codes == [2, -signal.SIGABRT]
