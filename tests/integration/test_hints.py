"""Every hint of the package that names a command is run where its message stands: the message is there before it and gone after it, or what the hint promises is made.
A command that another test runs is named here with that test. A hint in the source without an entry here fails: add a row to EMPTY or SPOILED, or a test and its (module, hint) to HERE, or
a row to ELSEWHERE. tests/unit/cli/test_hints.py holds the hints' words."""
import ast, hashlib, json, os, re, shlex, shutil, socket, sqlite3, subprocess
from datetime import date
from pathlib import Path
import pandas as pd, pytest
from fastapi.testclient import TestClient
from churn_nb.cli.app import main
from churn_nb.core.clock import advance_clock, current_time
from churn_nb.core.errors import ClockError, DataError
from churn_nb.core.settings import load_settings
from churn_nb.data.dataset_toml import read_description
from churn_nb.data.typed_table import prepare_events
from churn_nb.data.value_parsing import read_format
from churn_nb.feature_store.build_record import changes_since_build, require_built
from churn_nb.feature_store.snapshots import names_of
from churn_nb.feature_store.split_planning import plan
from churn_nb.feature_store.sources import source_of
from churn_nb.features import offline_folder
from churn_nb.ops.retraining import retrain_history
from churn_nb.registry.model_registry import ModelRegistry
from churn_nb.serve import create_app
from checks import line
from commands import GATE, PLAIN
from deadlines import allow
from hints import found
from paths import CHURN, ROOT
from serving import free_port, put_live, serving, wait_for

pytestmark = pytest.mark.usefixtures("measured")

COMMANDS = r"(?:`|<code>)((?:churn|make|git|pip|dvc|feast|tritonserver) [a-z-][^`<]*)(?:`|</code>)"
SETTINGS = {**GATE, **PLAIN, "CHURN_PATHS_NOTEBOOKS": str(ROOT/"nbs"), "CHURN_PATHS_DATA": str(ROOT/"data"), "CHURN_DRIFT_COOLDOWN_HOURS": "0"}
ORDERS = "churn run --events orders.parquet --entity customer --timestamp at --amount total --horizon 60d" # a hint itself, of `churn run --help`

# A folder to work in

def files(folder:Path):
    "What the examples of the commands' help name."
    folder.mkdir(exist_ok=True)
    d = pd.read_csv(ROOT/"data"/"cdnow.csv").query("customer_id % 40 == 0")
    orders = pd.DataFrame({"event_id": d.event_id, "customer": d.customer_id, "at": d.event_timestamp, "total": d.amount})
    orders.to_parquet(folder/"orders.parquet", index=False)
    orders.to_csv(folder/"orders.csv", index=False)
    rows = [f"K{i:03},{18 + 7*i % 60},{'ab'[i % 3 > 1]},{'yes' if 37*i % 101 < 20 + 7*i % 60 else 'no'}" for i in range(300)]
    (folder/"customers.csv").write_text("\n".join(["id,age,plan,churned", *rows]) + "\n")
    (folder/"purchases.csv").write_text("event_id,customer_id,event_timestamp,amount\n7000001,40,1998-06-30T12:00:00Z,10.5\n")
    pd.read_csv(folder/"customers.csv").to_parquet(folder/"last_month.parquet", index=False)
    shutil.copy(folder/"customers.csv", folder/"today.csv")

class Place:
    "A folder with files and a workspace, and what is asked there."
    def __init__(self, folder:Path): self.folder, self.ws = folder, folder/"work"
    def settings(self, **more): return load_settings({"paths.workspace": str(self.ws), **more}, environ=SETTINGS)
    def run(self, *words, env=()):
        given = {**os.environ, **SETTINGS, "CHURN_PATHS_WORKSPACE": str(self.ws), **dict(env)}
        done = subprocess.run([CHURN if words[0] == "churn" else words[0], *map(str, words[1:])], cwd=self.folder, env=given, capture_output=True, text=True, timeout=allow(300))
        return done.returncode, done.stdout + done.stderr
    def says(self, *words, env=()): return self.run("churn", *words, "--workspace", self.ws, env=env)[1]
    def api(self, method, path, body=None):
        with TestClient(create_app(self.settings())) as client: return client.request(method, path, json=body).text
    def customer(self): return int(pd.read_parquet(self.ws/"feast"/"base.parquet").customer_id.iloc[0])

def hint_in(text:str, start:str, fill=()):
    "The words of the command between backticks or in <code> that starts so."
    (command,) = {h for h in re.findall(r"(?:`|<code>)([^`<]*)(?:`|</code>)", text) if h.startswith(start)}
    for name, value in dict(fill).items(): command = command.replace(name, str(value))
    return shlex.split(command)

# What an empty workspace says, and the finished one of `churn run` does not

def event(place):
    customer = place.customer() if place.ws.exists() else 1
    return place.api("POST", "/events", [{"event_id": "1", "customer_id": customer, "event_timestamp": "1998-06-30T12:00:00Z", "amount": 1}])

def asked_by_id(place):
    if not place.ws.exists():
        place = Place(place.folder/"served")
        put_live(place.ws)
    return place.api("POST", "/predict", {"customer_id": 1})

EMPTY = { # place -> what asks, and what it says before the run
    ("ops/serving_checks", "churn run"): (lambda p: str(line("registry", p.settings())) + str(line("bundle", p.settings())), "empty; `churn run` fills it"),
    ("cli/options", "churn run"): (lambda p: p.says("score", "purchases.csv", "out.csv"), "no bundle in"),
    ("ops/monitor", "churn run"): (lambda p: p.says("drift"), "so nothing to compare with"),
    ("ops/store_checks", "churn run"): (lambda p: str(line("features", p.settings())), "empty; `churn run` fills it"),
    ("registry/deployment", "churn run"): (lambda p: p.says("step", "04_serve"), "train and promote one"),
    ("serving/model_reloader", "churn run"): (lambda p: p.api("GET", "/readyz"), "no bundle at"),
    ("serving/event_endpoint", "churn run"): (event, "no event log at"),
    ("feature_store/online", "churn run"): (asked_by_id, "no feature store at"),
}

@pytest.fixture(scope="module")
def ran(first_run, tmp_path_factory):
    "A copy of the workspace that `churn run` made."
    place = Place(tmp_path_factory.mktemp("hints"))
    files(place.folder)
    shutil.copytree(first_run[0], place.ws, symlinks=True)
    return place

@pytest.fixture
def finished(first_run, tmp_path):
    "As `ran`, to be spoiled."
    place = Place(tmp_path)
    files(place.folder)
    shutil.copytree(first_run[0], place.ws, symlinks=True)
    return place

@pytest.mark.parametrize("at", EMPTY, ids=lambda at: at[0])
def test_after_a_run_the_message_is_gone(ran, tmp_path, at):
    ask, says = EMPTY[at]
    files((empty := Place(tmp_path)).folder)
    before = ask(empty)
    assert says in before and hint_in(before, at[1])[:2] == ["churn", "run"], before
    assert says not in ask(ran), before

# What went wrong in a finished workspace: a message, the command that it names, no message

def put_back(place):
    registry = ModelRegistry(place.settings())
    registry.client.delete_registered_model_alias(registry.name, "champion")

def unlike_the_log(place):
    (file,) = (place.ws/"feast").glob("online.db")
    with sqlite3.connect(file) as db:
        (table,) = [t for (t,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'") if t.endswith("customer_history") or "customer" in t][:1]
        db.execute(f'DELETE FROM "{table}" WHERE rowid % 2')
    db.close()

def of_an_earlier_release(place):
    file = place.ws/"feast"/"feature_store.yaml"
    file.write_text(file.read_text().replace("feature_store.feast_offline.DuckDBFilesOfflineStore", "offline_store.FilesOfflineStore"))

def junk_that_is_signed_for(place):
    folder = (place.ws/"bundle"/"current").resolve()
    shutil.copytree(folder, there := folder.with_name("9"))
    shutil.rmtree(folder)
    (there/"model.onnx").write_bytes(junk := b"no graph")
    m = json.loads((there/"manifest.json").read_text())
    m["files"]["model.onnx"] = hashlib.sha256(junk).hexdigest()
    (there/"manifest.json").write_text(json.dumps(m))
    there.rename(folder)

def checks(name): return lambda p: str(line(name, p.settings()))

SPOILED = { # place -> what spoils it, what asks, what it says
    ("ops/serving_checks", "churn history"): (put_back, checks("registry"), "the log of decisions says 1"),
    ("ops/serving_checks", "churn step 04_serve"): (lambda p: put_live(p.ws, "77"), checks("bundle"), "version 77 is served, champion is 1"),
    ("core/manifest", "churn step 04_serve"): (lambda p: (p.ws/"bundle"/"current"/"manifest.json").write_text("{"), lambda p: p.says("score", "purchases.csv", "out.csv"), "write it again with"),
    ("serving/predictor", "churn step 04_serve"): (junk_that_is_signed_for, checks("bundle"), "write it again with"),
    ("ops/store_checks", "churn materialize"): (unlike_the_log, checks("features"), "differ from the log"),
    ("feature_store/feast_store", "churn materialize"): (of_an_earlier_release, checks("features"), "configured by an earlier release"),
    ("serving/status_page", "churn drift"): (lambda p: p.api("POST", "/predict", {"customer_id": p.customer()}), lambda p: p.api("GET", "/"), "no report yet"),
}

@pytest.mark.parametrize("at", SPOILED, ids=lambda at: f"{at[0]}, {at[1]}")
def test_the_command_of_a_message_ends_it(finished, at):
    spoil, ask, says = SPOILED[at]
    spoil(finished)
    before = ask(finished)
    assert says in before, before
    code, said = finished.run(*hint_in(before, at[1]))
    assert code in ((0, 3) if at[1] == "churn drift" else (0,)), said
    after = ask(finished)
    assert says not in after and "!! " not in after, after

def refused(place, customers):
    with pytest.raises(DataError) as e: require_built(place.settings(), customers)
    return str(e.value)

def test_features_are_made_anew_where_four_messages_ask_for_it(finished):
    file, record = min(offline_folder(finished.settings()).glob("*.parquet")), finished.ws/"feast"/"made_from.json"
    file.write_bytes(file.read_bytes()[:200])
    advance_clock(finished.settings(), date(1998, 7, 2))
    moved = lambda: changes_since_build(finished.settings())
    record.rename(away := finished.folder/"away.json")
    before = [refused(finished, 500), str(line("stores", finished.settings()))]
    away.rename(record)
    before += [moved(), refused(finished, 60)]
    for said, says in zip(before, ("no features in", "can't be read", "the clock moved", "made with customers = 500, not 60")): assert says in said
    same, *others = [hint_in(said, "churn step 00_features") for said in before]
    assert others == [same, same, [*same, "-p", "customers=60"]]
    for command, customers in ((same, 500), (others[-1], 60)):
        code, said = finished.run(*command)
        assert code == 0, said
        assert require_built(finished.settings(), customers) == customers and moved() == "" and line("stores", finished.settings()).ok

# Files and descriptions that can't be used

@pytest.fixture
def place(tmp_path):
    "Files, and no workspace."
    files(tmp_path/"there")
    return Place(tmp_path/"there")

@pytest.fixture
def planned(monkeypatch):
    "Runs the command of a hint in this process up to the first step of the pipeline; what it would have run on. The pipeline itself runs above."
    from churn_nb.cli import pipeline
    from churn_nb.ops.pipeline_runner import PipelineRun
    def plan(place, *words, code=0):
        asked = []
        def recorded(settings, given, *_, **__):
            asked.append((settings, given))
            return PipelineRun(place.ws/"runs"/"now", [type("Step", (), {"exit_code": 0, "error": "", "step": "00_features", "result": {}})()])
        monkeypatch.setattr(pipeline, "run_pipeline", recorded)
        monkeypatch.chdir(place.folder)
        for name, value in (SETTINGS | {"CHURN_PATHS_WORKSPACE": str(place.folder/"work")}).items(): monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended: main([*words[1:]])
        assert (ended.value.code or 0) == code and len(asked) == 1
        return asked[0]
    return plan

def test_a_description_names_the_run_that_reads_it(place, planned):
    said = place.run("churn", "describe", "customers.csv")[1]
    settings, _ = planned(place, *hint_in(said, "churn run"))
    assert settings.data.description.name == "dataset.toml"

def test_a_file_that_is_not_described_names_both_ways(place, planned):
    _, said = place.run("churn", "run", "--dataset", "customers.csv")
    assert planned(place, *hint_in(said, "churn run --data"))[0].data.description.parent.name == "work-customers"
    assert place.run(*hint_in(said, "churn describe"))[0] == 0
    assert planned(place, "churn", "run", "--dataset", "customers.csv")[0].data.description.parent.name == "work-customers"

def test_an_edited_description_is_run_on_as_it_is(place, planned):
    settings, _ = planned(place, "churn", "run", "--data", "customers.csv")
    with open(settings.data.description, "a") as f: f.write("\n# edited\n")
    _, said = place.run("churn", "run", "--data", "customers.csv", env={"CHURN_PATHS_WORKSPACE": place.folder/"work"})
    assert "was edited" in said
    again, _ = planned(place, *hint_in(said, "churn run --dataset"))
    assert again.paths.workspace == settings.paths.workspace and settings.data.description.read_text().endswith("# edited\n")

def test_a_table_is_prepared_by_the_first_step_and_learned_anew_by_a_run(place, planned):
    settings, _ = planned(place, "churn", "run", "--data", "customers.csv")
    here = {"CHURN_PATHS_WORKSPACE": settings.paths.workspace}
    with pytest.raises(DataError) as e: names_of(settings)
    code, said = place.run(*hint_in(str(e.value), "churn step"), env=here)
    assert code == 0 and names_of(settings) == ["age", "plan"], said
    _, said = place.run("churn", "push", "purchases.csv", env=here)
    assert "is a table, not a log" in said
    with open(place.folder/"customers.csv", "a") as f: f.write("K300,50,a,no\n")
    again, _ = planned(place, *hint_in(said, "churn run"), "--workspace", str(settings.paths.workspace))
    assert source_of(again).build()["customers"] == 301

def test_a_description_whose_file_is_gone_names_how_to_make_another(place, planned):
    settings, _ = planned(place, "churn", "run", "--data", "customers.csv")
    (place.folder/"customers.csv").unlink()
    said = str(line("data", settings))
    assert "no such file" in said, said
    assert place.run(*hint_in(said, "churn describe", {"FILE": "today.csv"}))[0] == 0 and (place.folder/"today.toml").exists()

def test_a_broken_description_is_moved_away_and_made_anew(place):
    (broken := place.folder/"customers.toml").write_text("[csv\n")
    asks = [("run", "--data", "customers.csv"), ("run", "--dataset", "customers.toml")]
    said = [place.run("churn", *a)[1] for a in asks]
    with pytest.raises(DataError) as e: read_format(broken)
    for text in (*said, str(e.value)):
        broken.rename(place.folder/"away.toml")
        assert place.run(*hint_in(text, "churn describe", {"FILE": "customers.csv"}))[0] == 0
        assert read_format(broken).delimiter == ","
        (place.folder/"away.toml").rename(broken)

def test_a_file_without_a_usable_row_is_shown(place):
    place.run("churn", "describe", "orders.csv", "--kind", "events")
    head, *rows = (place.folder/"orders.csv").read_text().splitlines()
    (place.folder/"orders.csv").write_text("\n".join([head, *(re.sub(r"^(\d+),\d+,", r"\1,,", r) for r in rows)])) # nobody's
    with pytest.raises(DataError, match="no row of it can be used") as e: prepare_events(read_description(place.folder/"orders.toml"), place.folder/"made.parquet")
    code, said = place.run(*hint_in(str(e.value), "churn describe"))
    assert code == 0 and re.search("^customer +entity", said, re.M) and "`churn run --events " in said # as the description says

def test_a_log_without_purchases_is_shown_as_it_was_read(place):
    pd.DataFrame({"customer_id": pd.Series(dtype="int64"), "event_timestamp": pd.Series(dtype="datetime64[us, UTC]")}).to_parquet(place.folder/"none.parquet")
    with pytest.raises(DataError, match="no purchases") as e: plan(place.folder/"none.parquet")
    code, said = place.run(*hint_in(str(e.value), "churn describe", {"FILE": "orders.csv"}))
    assert code == 0 and "timestamp" in said

def test_a_folder_that_is_no_repository_is_made_one(place):
    install = ("churn", "deploy-hook", "install", "churn.git", "--home", place.folder/"srv")
    _, said = place.run(*install)
    assert place.run(*hint_in(said, "git init"))[0] == 0
    code, said = place.run(*install)
    assert code == 0, said

def test_where_a_log_ends_is_known_once_features_are_made(tmp_path):
    place, end = Place(tmp_path), {"features.serve_as_of": "end"}
    with pytest.raises(ClockError, match="serve_as_of = end") as e: current_time(place.settings(**end))
    code, said = place.run(*hint_in(str(e.value), "churn step 00_features"), "-p", "customers=60", env={"CHURN_FEATURES_SERVE_AS_OF": "end"})
    assert code == 0 and f"{current_time(place.settings(**end)):%F}" == "1998-07-01", said

# Decisions, servers, and what needs the signing key

def test_a_challenger_is_trained_and_judged(finished):
    said = finished.says("promote")
    assert "no challenger in the registry" in said
    code, said = finished.run(*hint_in(said, "churn step 01_train"))
    assert code == 0, said
    code, said = finished.run("churn", "promote")
    assert code == 0 and "version 1: nothing new" in said # the same rows, so the champion again

def test_a_bundle_without_signature_is_signed(finished):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    s = finished.settings(**{"serve.public_key": public})
    assert "[serve] public_key asks for it" in (said := str(line("bundle", s)))
    env = {"CHURN_SERVE_PUBLIC_KEY": public, "CHURN_SIGNING_KEY": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()}
    code, made = finished.run(*hint_in(said, "churn step 04_serve"), env=env)
    assert code == 0 and "signature and self test hold" in str(line("bundle", s)), made

def answers(place, words, port, env=()):
    "Whether the API of a command answers, on its port, with the served version."
    given = {**os.environ, **SETTINGS, "CHURN_PATHS_WORKSPACE": str(place.ws), **dict(env)}
    with open(place.folder/"log", "w") as log: process = subprocess.Popen([CHURN, *words[1:]], cwd=place.folder, env=given, stdout=log, stderr=log)
    try: return wait_for(lambda: "answers with version" in str(line("port", place.settings(**{"serve.port": str(port)}))))
    finally:
        process.terminate()
        process.wait(allow(60))

def test_a_server_is_started_on_its_port_and_on_another(tmp_path):
    place = Place(tmp_path)
    put_live(place.ws)
    port, other = free_port(), free_port()
    with socket.create_server(("127.0.0.1", port)): said = str(line("port", place.settings(**{"serve.port": str(port)})))
    assert "in use by another program" in said
    assert answers(place, hint_in(said, "churn serve --port", {"N": other}), other)
    assert answers(place, shlex.split("churn serve"), port, {"CHURN_SERVE_PORT": str(port)})

def test_a_server_of_another_workspace_names_how_ours_is_started(tmp_path):
    place = Place(tmp_path)
    put_live(place.ws, "7")
    put_live(tmp_path/"other")
    with serving(tmp_path/"other") as server:
        port = int(server.url.rpartition(":")[2])
        said = str(line("port", place.settings(**{"serve.port": str(port)})))
    assert "it is another workspace's" in said
    assert answers(place, hint_in(said, "churn serve"), port, {"CHURN_SERVE_PORT": str(port)})

# The examples of the commands' help

def test_files_are_described_as_in_the_help(place):
    assert place.run(*shlex.split("churn describe customers.csv"))[0] == 0 and (place.folder/"customers.toml").exists()
    code, said = place.run(*shlex.split("churn describe orders.csv --kind events --amount total"))
    assert code == 0 and (place.folder/"orders.toml").exists() and re.search(r"^total +amount", said, re.M)

def test_runs_start_as_in_the_help(place, planned):
    own, _ = planned(place, *shlex.split("churn run --data customers.csv --label churned"))
    log, _ = planned(place, *shlex.split(ORDERS))
    assert (own.data.kind, log.data.kind, log.features.label_days) == ("snapshot", "events", 60)
    telco, _ = planned(place, *shlex.split("churn run --dataset telco"), *("--workspace", "telco"))
    plain, _ = planned(place, *shlex.split("churn run"))
    assert (telco.data.dataset, plain.data.dataset) == ("telco", "cdnow")

def test_trainings_start_as_in_the_help(place, planned):
    (place.folder/"work").mkdir()
    assert planned(place, *shlex.split("churn step 01_train -p seed=7"))[1] == {"seed": "7"}
    assert planned(place, *shlex.split("churn retrain --force -p seed=7"))[1]["seed"] == "7"
    assert [r["why"] for r in retrain_history(load_settings({"paths.workspace": str(place.folder/"work")})) if r["action"] == "started"] == ["asked for"]

def test_a_model_repository_is_written_as_in_the_help(tmp_path):
    place = Place(tmp_path)
    put_live(place.ws)
    process = subprocess.Popen([CHURN, *shlex.split("triton models --watch 1")], cwd=place.folder, env={**os.environ, "CHURN_PATHS_WORKSPACE": str(place.ws)}, stdout=subprocess.DEVNULL)
    try: assert wait_for(lambda: [*place.folder.glob("models/*/*/model.onnx")])
    finally:
        process.terminate()
        process.wait(allow(60))

# None is forgotten

HERE = { # module -> hints that a test above runs
    "cli/data": ["churn describe customers.csv", "churn describe orders.csv --kind events --amount total", "churn run --{option} {shlex.quote(str(file))}"],
    "cli/features": ["churn run"], "cli/hooks": ["git init --bare churn.git", "churn deploy-hook install churn.git --home /srv/churn"],
    "cli/pipeline": ["churn retrain --force -p seed=7", "churn run", "churn run --data customers.csv --label churned", "churn run --dataset telco", ORDERS, "churn step 01_train -p seed=7",
                     "churn run --dataset {shlex.quote(short_path(there))}"],
    "cli/serve": ["churn serve", "churn serve --port 9000", "churn triton models --watch 1"], "core/clock": ["churn step 00_features"],
    "core/data_settings": ["churn describe {shlex.quote(name)}", "churn run --data {shlex.quote(name)}", "churn describe FILE"], "data/datasets": ["churn describe FILE"],
    "data/typed_table": ["churn describe {shlex.quote(str(file))}"], "feature_store/snapshots": ["churn step 00_features"], "feature_store/split_planning": ["churn describe FILE --kind events"],
    "feature_store/build_record": ["churn step 00_features", "churn step 00_features -p customers={wanted['customers']}"], "ops/store_checks": ["churn step 00_features"],
    "ops/git_deploy": ["git init --bare {shlex.quote(str(repo))}"], "ops/serving_checks": ["churn serve", "churn serve --port N"], "promote": ["churn step 01_train"],
    "registry/signatures": ["churn step 04_serve"], "registry/model_registry": ["churn history"]}
PIPELINE, EVENTS = "tests/integration/test_pipeline.py", "tests/integration/test_events.py"
ELSEWHERE = { # (module, hint) -> the test that runs the command
    ("cli/doctor", "churn doctor"): f"{PIPELINE}::test_a_step_or_command_leaves_the_stores_of_the_run",
    ("cli/features", "churn materialize"): f"{EVENTS}::test_push_and_materialize_need_features",
    ("cli/features", "churn materialize --as-of 1998-07-02"): f"{EVENTS}::test_materialize_moves_the_clock_and_windows_shrink",
    ("cli/features", "churn push purchases.csv"): f"{EVENTS}::test_push_a_file",
    ("cli/hooks", "churn deploy-hook run /srv/churn COMMIT"): "tests/unit/ops/test_git_deploy.py::test_a_push_deploys_and_an_older_commit_rolls_back",
    ("cli/monitoring", "churn drift"): f"{PIPELINE}::test_the_service_is_monitored_and_retrained",
    ("cli/monitoring", "churn drift last_month.parquet today.csv --json drift.json"): f"{PIPELINE}::test_drift_exit_codes",
    ("cli/uplift", "churn uplift"): "tests/integration/test_uplift.py::test_requests_become_outcomes_and_outcomes_an_uplift",
    ("cli/uplift", "churn uplift --kept-margin 25 --json uplift.json"): "tests/integration/test_uplift.py::test_requests_become_outcomes_and_outcomes_an_uplift",
    **{("cli/replay", hint): "tests/integration/test_replay.py::test_a_year_is_replayed_under_each_policy"
       for hint in ("churn replay", "churn replay --change slow --customers 400", "churn replay --dataset cdnow --horizon 28d --customers 2000")},
    ("cli/pipeline", "churn retrain --why drift"): f"{PIPELINE}::test_the_service_is_monitored_and_retrained",
    ("cli/pipeline", "churn step 03_drift"): f"{PIPELINE}::test_a_step_or_command_leaves_the_stores_of_the_run",
    ("cli/registry", "churn history"): f"{PIPELINE}::test_history_shows_both_decisions_with_their_numbers",
    ("cli/registry", "churn promote"): f"{PIPELINE}::test_rollback_from_the_command_line",
    ("cli/registry", "churn rollback"): f"{PIPELINE}::test_rollback_from_the_command_line",
    ("cli/registry", "churn rollback --to 3 --why 'complaints from the shop'"): f"{PIPELINE}::test_rollback_from_the_command_line",
    ("cli/score", "churn score customers.csv scored.parquet"): f"{PIPELINE}::test_score_keeps_rows_and_agrees_with_the_manifest",
    ("cli/score", "churn score customers.parquet scored.csv --reasons 0"): f"{PIPELINE}::test_score_keeps_rows_and_agrees_with_the_manifest",
    ("serving/scoring", "churn run"): f"{PIPELINE}::test_the_first_is_promoted_the_same_is_nothing_new_and_another_is_refused",
    ("data/datasets", "dvc add"): "tests/e2e/test_push.py::test_a_good_push_deploys_the_new_version_without_failed_requests"}
NOT_RUN = { # (module, hint) -> why no test runs it
    ("cli/serve", "tritonserver --model-repository=models --model-control-mode=poll"): "a real Triton polls the folder: tests/unit/serving/test_triton.py, with options of the test's own",
    ("ops/environment_checks", "make setup"): "installs the environment: `make run` does it first in tests/e2e/test_fresh_clone.py",
    ("ops/environment_checks", 'pip install "churn-nb[{extra}]"'): "needs a package index; that the extra exists: tests/unit/cli/test_hints.py",
    ("serving/http/docs_page", "pip install fastapi-swagger"): "needs a package index; the page with it: tests/unit/serving/test_status_page.py"}
NAMED_ONLY = {("batch/job", "churn score"), ("batch/readers", "churn describe"), ("cli/app", "churn --help"), ("cli/app", "git push"), ("cli/hooks", "git push"), ("cli/score", "churn score"), ("core/errors", "churn doctor"),
              ("feature_store/feast_definitions", "feast apply"), ("feature_store/feast_definitions", "feast plan"), ("feature_store/feast_store", "feast apply"), ("feature_store/feast_store", "feast plan"),
              ("monitoring/drift_report", "churn describe"), ("ops/diagnostics", "churn doctor"), ("ops/post-receive", "churn deploy-hook install"), ("serving/triton", "churn triton")} # said about a command, no line to type

def test_every_hint_is_run_or_its_reason_is_said():
    here = {*EMPTY, *SPOILED, *((m, h) for m, hints in HERE.items() for h in hints)}
    assert {*found(COMMANDS)} == here | NAMED_ONLY | {*ELSEWHERE} | {*NOT_RUN}

def source_for(test):
    "The source of a test, and what its file holds beside other tests."
    file, _, name = test.partition("::")
    text = (ROOT/file).read_text()
    return "\n".join("\n".join(text.splitlines()[min([n.lineno, *(d.lineno for d in getattr(n, "decorator_list", []))]) - 1:n.end_lineno])
                     for n in ast.parse(text).body if not getattr(n, "name", "").startswith("test_") or n.name == name)

@pytest.mark.parametrize("hint, test", [(hint, test) for (_, hint), test in ELSEWHERE.items()])
def test_the_test_that_is_named_for_a_hint_has_its_words(hint, test):
    source = source_for(test)
    assert f"def {test.partition('::')[2]}(" in source
    words = [w.partition("=")[0] for w in shlex.split(hint)[1:] if not re.search(r"[/. ]|^[A-Z0-9]+$", w)]
    assert words == [w for w in words if re.search(rf"(?<![\w-]){re.escape(w)}(?![\w-])", source)]
