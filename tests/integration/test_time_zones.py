"The time zone of a process changes nothing: the chain from files to answers, in three zones and on days when clocks change, bit by bit."
import json, os, subprocess, sys
import pytest
from deadlines import allow
from paths import PYTHON, ROOT

SUPPORT = ROOT/"tests/support"
ZONES = ["UTC", "America/Los_Angeles", "Pacific/Kiritimati"]

def started(zone, *arguments, program=(sys.executable, SUPPORT/"zone_chain.py")):
    "zone_chain.py in a process of that zone."
    env = os.environ | {"TZ": zone, "PYTHONPATH": f"{ROOT}:{SUPPORT}", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen([*map(str, program), *map(str, arguments)], env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True)

def ended(process):
    out = process.communicate(timeout=allow(300))[0]
    assert process.returncode == 0
    return json.loads(out)

@pytest.fixture(scope="module")
def chains(tmp_path_factory):
    "By zone: the folder, and the digests of what a process there stored and read."
    folders = {z: tmp_path_factory.mktemp(z.replace("/", "-"))/"w" for z in ZONES}
    running = {z: started(z, folders[z]) for z in ZONES}
    return {z: (folders[z], ended(running[z])) for z in ZONES}

@pytest.mark.parametrize("zone", ZONES[1:])
def test_every_value_is_that_of_a_process_in_utc(chains, zone):
    assert len(chains["UTC"][1]) > 12 and chains[zone][1] == chains["UTC"][1]

@pytest.mark.parametrize(("written", "read"), [("America/Los_Angeles", "UTC"), ("UTC", "America/New_York")])
def test_a_store_is_read_in_another_zone(chains, written, read):
    folder, digests = chains[written]
    assert ended(started(read, folder.with_name("to read"), "read"))["asked"] == digests["asked"]

TRAINED = ["UTC", "America/New_York", "Pacific/Kiritimati"] # forked, as most commands of tests: the chains above are started anew

@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    "By zone: digests of rows, metrics, drift report, decision, ONNX file and answers."
    running = {z: started(z, tmp_path_factory.mktemp(z.replace("/", "-"))/"w", "train", program=(PYTHON, "-m", "zone_chain")) for z in TRAINED}
    return {z: ended(p) for z, p in running.items()}

@pytest.mark.parametrize("zone", TRAINED[1:])
def test_a_model_is_that_of_a_process_in_utc(trainings, zone):
    assert {"rows", "metrics", "drift", "decision", "model", "answers"} <= trainings["UTC"].keys() and trainings[zone] == trainings["UTC"]
