"`churn_nb.cli`: the table of commands says of each what its module says, and only the module of the called command is imported."
import importlib, inspect, subprocess, sys
import pytest, sources
from typer.main import get_group
from churn_nb.cli.app import COMMANDS, ListedCommand, app
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
