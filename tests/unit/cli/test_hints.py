"Every hint that the project can print is a command that exists and takes what the hint gives it, or a setting that exists. They are run in tests/integration/test_hints.py."
import importlib, re, shlex
import pytest, tomllib
from typer.main import get_group
from churn_nb.cli.app import COMMANDS, WITHOUT_WORKSPACE, app, at_work, with_workspace
from churn_nb.core.settings import Settings
from hints import hints
from paths import ROOT

EXTRAS = tomllib.loads((ROOT/"pyproject.toml").read_text())["project"]["optional-dependencies"]
IN_PLACE = {"N": "9000", "{option}": "data", "{extra}": "serve"}  # what stands for a value: a name in capitals, or in braces

def filled(command):
    "A hint with a value in each place."
    for place, value in IN_PLACE.items(): command = re.sub(rf"(?<![A-Z]){re.escape(place)}(?![A-Z])", value, command)
    return shlex.split(re.sub(r"\{[^}]*\}", "any", command))

def parser(words):
    "The command of some words, as `churn` finds it, and the words after it."
    for module in {c.module for c in COMMANDS.values()}: importlib.import_module(module)
    command = get_group(app)
    while hasattr(command, "commands"): command, words = command.commands[words[0]], words[1:]
    return command, words

CHURN = hints(r"(?:`|<code>)(churn [a-z][^`<]*)(?:`|</code>)")

def test_hints_are_found():
    assert len(CHURN) > 30 and {"churn run", "churn drift", "churn materialize"} <= set(CHURN)

@pytest.mark.parametrize("hint", CHURN)
def test_a_command_of_a_hint_takes_what_the_hint_gives(hint):
    if hint.split()[-1] in ("score", "describe", "step", "triton", "deploy-hook", "install"): return  # the command's name, no line to type: said in prose alone, below
    command, words = parser(filled(hint)[1:])
    command.make_context(command.name, words)

def test_a_command_that_needs_more_is_named_alone_only_in_prose():
    "An error that sends the reader to `churn describe` without its file sends them to another error."
    bare = r"((?:with|to|by|run|look at|again|;) `churn (?:describe|score|step|triton|deploy-hook)`)"
    assert hints(bare) == []

@pytest.mark.parametrize("hint", CHURN)
def test_a_hint_works_in_the_workspace_of_its_command(hint):
    words = filled(hint)
    token = at_work.set("team's runs")
    try: placed = with_workspace(f"no such file; `{hint}`, or choose another")
    finally: at_work.reset(token)
    if words[1] in WITHOUT_WORKSPACE: assert "--workspace" not in placed
    elif "--workspace" not in hint: assert shlex.split(re.search("`(.*)`", placed)[1].replace("{file}", "any"))[-2:] == ["--workspace", "team's runs"]

def test_the_commands_without_a_workspace_are_those_that_are_named():
    takes = lambda name: any("--workspace" in p.opts for p in parser([name])[0].params)
    assert {n for n in COMMANDS if n != "deploy-hook" and not takes(n)} == set(WITHOUT_WORKSPACE) - {"deploy-hook"}

def test_a_target_of_make_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT/"Makefile").read_text(), re.M))
    assert (named := set(hints(r"`make ([a-z-]+)`"))) and named <= targets

def test_an_extra_that_is_to_be_installed_exists():
    named = set(hints(r"churn-nb\[([a-z{}]+)\]"))
    assert named and named - {"{extra}"} <= set(EXTRAS)

def test_a_setting_of_a_hint_exists():
    fields = {s: set(t.annotation.model_fields) for s, t in Settings.model_fields.items() if hasattr(t.annotation, "model_fields")}
    known = {(s, k) for s, ks in fields.items() for k in ks}
    named = {tuple(h.split("] ")) for h in hints(r"\\?\[([a-z]+\] [a-z_]+)") if h.split("] ")[0] in fields}
    assert len(named) > 5 and named <= known
    variables = {(s, k) for s, k in (h.lower().split("_", 1) for h in hints(r"CHURN_((?:PATHS|DATA|FEATURES|TRAIN|DRIFT|SERVE|TRITON|STORES)_[A-Z_]+)"))}
    assert len(variables) > 5 and variables - {("serve", "api_keys")} <= known # keys have no place in a file
