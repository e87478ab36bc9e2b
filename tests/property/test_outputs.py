"No command writes over what it reads, nor over a file that it did not write: every command that takes an output path, every way to name a file."
import os
import pytest, typer
from hypothesis import HealthCheck, given, settings as rules, strategies as st
from churn_nb.cli.data import describe_command
from churn_nb.cli.monitoring import drift_command
from churn_nb.cli.score import score_command
from churn_nb.core.errors import ChurnError
from serving import put_live, settings_for

# command -> call with a path to write; each reads customers.csv, and drift others.csv too
COMMANDS = {
    "describe --out": lambda at, path, overwrite: describe_command(at/"customers.csv", label="left", out=path, overwrite=overwrite),
    "score OUT": lambda at, path, overwrite: score_command(at/"customers.csv", path, 0, overwrite=overwrite, workspace=str(at/"ws")),
    "score --rejects": lambda at, path, overwrite: score_command(at/"customers.csv", at/"new.csv", 0, path, overwrite, str(at/"ws")),
    "drift --json": lambda at, path, overwrite: drift_command(at/"customers.csv", at/"others.csv", json_file=str(path), overwrite=overwrite, workspace=str(at/"ws")),
    "drift --html": lambda at, path, overwrite: drift_command(at/"customers.csv", at/"others.csv", html_file=str(path), overwrite=overwrite, workspace=str(at/"ws")),
}

@pytest.fixture(scope="module")
def home(tmp_path_factory):
    settings_for((at := tmp_path_factory.mktemp("outputs"))/"ws")
    put_live(at/"ws")
    rows = [f"{18 + 7*i % 60},{3.5*(i % 11)},{'' if i % 3 else 1},{'yes' if i % 5 < 2 else 'no'}" for i in range(120)]
    for name in ("customers.csv", "others.csv"): (at/name).write_text("\n".join(["age,usage_minutes,gap,left", *rows]) + "\n")
    (at/"sub").mkdir()
    return at

def contents(at):
    return {f.relative_to(at): f.read_bytes() for f in at.rglob("*") if f.is_file() and "ws" not in f.relative_to(at).parts}

@pytest.mark.parametrize("command", COMMANDS)
@rules(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["customers.csv", "others.csv", "mine"]), st.binary(min_size=1, max_size=40), st.sampled_from(["itself", "..", "symlink", "hardlink"]), st.booleans())
def test_what_is_read_or_foreign_stays_as_it_is(home, command, target, mine, how, overwrite):
    reads = ["customers.csv", "others.csv"] if command.startswith("drift") else ["customers.csv"]
    if target == "others.csv" and target not in reads: target = "customers.csv"
    suffix = ".csv" if command == "score OUT" else ".txt"
    if target == "mine": (home/(target := f"mine{suffix}")).write_bytes(mine)
    path = {"itself": home/target, "..": home/"sub"/".."/target}.get(how, home/f"link{suffix}")
    if how == "symlink": path.symlink_to(home/target)
    if how == "hardlink": os.link(home/target, path)
    before = contents(home)
    try:
        if target in reads or not overwrite:
            with pytest.raises(ChurnError) as e: COMMANDS[command](home, path, overwrite)
            assert str(path) in str(e.value).replace(str(path.resolve()), str(path)) and "\n" not in str(e.value)
            assert contents(home) == before
    finally:
        for f in {*home.glob("link*"), *home.glob("mine*")}: f.unlink()

@pytest.mark.parametrize("command", ["describe --out", "score OUT", "score --rejects", "drift --json"])
def test_a_command_replaces_what_it_wrote_itself(home, command, tmp_path):
    "And with --overwrite what it did not."
    def run(overwrite=False):
        try: COMMANDS[command](home, path, overwrite)
        except typer.Exit: pass
    path = tmp_path/"out.csv"
    if command == "score --rejects": (home/"new.csv").unlink(missing_ok=True)
    run()
    if command != "score --rejects": assert path.stat().st_size # nothing is rejected here
    run()
    path.write_text("mine\n")
    with pytest.raises(ChurnError, match="or replace it with --overwrite"): run()
    run(overwrite=True)
    assert not path.exists() or path.read_text() != "mine\n"

def test_an_edited_description_is_no_longer_ours(home, tmp_path):
    COMMANDS["describe --out"](home, path := tmp_path/"own.toml", False)
    path.write_text(path.read_text().replace("use = \"number\"", "use = \"drop\"", 1))
    with pytest.raises(ChurnError, match="or replace it with --overwrite"): COMMANDS["describe --out"](home, path, False)
