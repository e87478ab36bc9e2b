"Bundles: a writer killed at any line, on a full disk, or beside another writer leaves no half of one."
import fcntl, json, os, subprocess, sys, textwrap, threading
import msgspec, numpy as np, pytest
from hypothesis import given, settings as hyp, strategies as st
from manifests import manifest
from deadlines import allow
from paths import SUPPORT
from churn_nb.core.errors import BundleError
from churn_nb.core.manifest import Feature, SelfTest, manifest_json, parse_manifest
from churn_nb.registry.bundle import current_bundle, read_bundle, switch_current, switch_shadow, verify_bundle, write_bundle

# The killer counts the lines of the manifest and the bundle that a deployment executes, then repeats it in forked children, each of which gets SIGKILL at one of them.
KILLER = textwrap.dedent("""
    import json, os, shutil, signal, sys, churn_nb.core.manifest as m_, churn_nb.core.workspace as w_, churn_nb.registry.bundle as b, churn_nb.registry.signatures as s_
    sys.path.insert(0, sys.argv[2])
    from pathlib import Path
    from manifests import manifest
    traced = {m.__file__ for m in (m_, w_, b, s_)}
    root, old, new = Path(sys.argv[1]), b"x" * 5000, b"y" * 70000
    def deploy():
        b.write_bundle(root, new, manifest("2")); b.switch_current(root, "2")
    def trace(last):
        seen = [0]
        def line(frame, event, arg):
            if event == "line":
                seen[0] += 1
                if seen[0] == last: os.kill(os.getpid(), signal.SIGKILL)
            return line
        sys.settrace(lambda frame, event, arg: line if frame.f_code.co_filename in traced else None)
        return seen
    def fresh(broken_two):
        shutil.rmtree(root, ignore_errors=True)
        b.write_bundle(root, old, manifest("1")); b.switch_current(root, "1")
        if broken_two: (root/"2").mkdir(); (root/"2"/"model.onnx").write_bytes(new[:10])
    out = {"killed": 0, "halfway": 0, "current": set()}
    for broken_two in (False, True):
        fresh(broken_two); seen = trace(-1); deploy(); sys.settrace(None)
        for n in range(1, seen[0] + 1):
            fresh(broken_two)
            if not (pid := os.fork()):
                trace(n); deploy(); os._exit(0)
            status = os.waitpid(pid, 0)[1]
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (n, status)
            out["killed"] += 1
            m, files = b.read_bundle(root/"current")          # the old or the new, whole
            assert files["model.onnx"] == {"1": old, "2": new}[m.version], n
            out["current"].add(m.version)
            if (root/"2").exists() and not broken_two: assert b.verify_bundle(root/"2").version == "2", n
            out["halfway"] += bool(list(root.glob(".tmp-*")))
            deploy()                                            # the next one just works and sweeps up
            assert b.verify_bundle(root/"current").version == "2"
            assert sorted(p.name for p in root.iterdir()) == [".lock", "1", "2", "current"], n
    print(json.dumps(out | {"current": sorted(out["current"])}))
""")

def test_a_killed_writer_leaves_the_old_or_the_new_bundle(tmp_path):
    "The writer is killed at each line of the module in turn."
    p = subprocess.run([sys.executable, "-c", KILLER, str(tmp_path/"bundle"), str(SUPPORT)],
                       check=False, capture_output=True, text=True, timeout=allow(300))
    assert p.returncode == 0, p.stderr
    out = msgspec.json.decode(p.stdout)
    assert out["killed"] > 100 and out["halfway"] > 10, out # many kills, and kills that did leave something half-written
    assert out["current"] == ["1", "2"]                     # before and after the switch

def test_switching_under_readers_never_shows_a_gap(tmp_path):
    for v, model in (("1", b"one"), ("2", b"two")): write_bundle(tmp_path, model, manifest(v))
    switch_current(tmp_path, "1")
    code = "import sys\nfrom churn_nb.registry.bundle import switch_current\nfor i in range(150): switch_current(sys.argv[1], str(1 + i % 2))"
    writer, seen = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]), set()
    try:
        while writer.poll() is None:
            m, files = read_bundle(tmp_path/"current")
            assert files["model.onnx"] == {"1": b"one", "2": b"two"}[m.version]
            seen.add(m.version)
    finally: writer.kill(); writer.wait()
    assert writer.returncode == 0 and seen == {"1", "2"}

def test_two_writers_of_one_version_agree(tmp_path):
    code = ("import sys; sys.path.insert(0, sys.argv[2])\nfrom manifests import manifest\nfrom churn_nb.registry.bundle import write_bundle\n"
            "write_bundle(sys.argv[1], b'z'*10**6, manifest('3'))")
    procs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(SUPPORT)]) for _ in range(3)]
    assert [p.wait(allow(60)) for p in procs] == [0, 0, 0]
    assert verify_bundle(tmp_path/"3").version == "3" and not list(tmp_path.glob(".tmp-*"))

def test_a_writer_waits_and_keeps_another_writers_files(tmp_path):
    write_bundle(tmp_path, b"one", manifest("1"))
    with open(tmp_path/".lock", "w") as lock: # what a writer holds
        fcntl.flock(lock, fcntl.LOCK_EX)
        (mine := tmp_path/".tmp-mine").mkdir()
        second = threading.Thread(target=write_bundle, args=(tmp_path, b"two", manifest("2")))
        second.start()
        second.join(.3)
        assert second.is_alive() and mine.exists() and not (tmp_path/"2").exists()
    second.join(allow(10))
    assert verify_bundle(tmp_path/"2").version == "2" and not mine.exists() # its writer is gone by now

def test_a_full_disk_leaves_the_old_version_live(tmp_path, monkeypatch):
    "The error is one line."
    write_bundle(tmp_path, b"one", manifest("1")); switch_current(tmp_path, "1")
    real = os.fsync
    def full(fd): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match="No space left on device; make room"): write_bundle(tmp_path, b"two", manifest("2"))
    monkeypatch.setattr(os, "fsync", real)
    assert verify_bundle(current_bundle(tmp_path)).version == "1" and not (tmp_path/"2").exists()
    assert verify_bundle(write_bundle(tmp_path, b"two", manifest("2"))).version == "2"

@given(st.data())
@hyp(max_examples=60, deadline=None)
def test_no_changed_byte_goes_unnoticed(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("b")
    folder = write_bundle(root, bytes(range(256)), manifest())
    f = folder/"model.onnx"
    blob = bytearray(f.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "grow"]))
    at = data.draw(st.integers(0, len(blob) - 1))
    if kind == "flip": blob[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut": blob = blob[:at]
    else: blob += b"\0" * (at + 1)
    f.write_bytes(blob)
    with pytest.raises(BundleError, match="model.onnx"): verify_bundle(folder)

any_json = st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s))

@given(st.binary(max_size=200) | any_json.map(lambda x: json.dumps(x).encode()))
def test_any_manifest_is_read_or_refused_with_its_name(data):
    with pytest.raises(BundleError, match="here/manifest.json"): parse_manifest(data, "here/manifest.json")

@pytest.mark.parametrize("change,says", [
    ({"features": [Feature(name="age"), Feature(name="age")]}, "twice"),
    ({"features": [Feature(name="customer_id")]}, "customer_id"),
    *[({"features": [Feature(name=n)]}, "rename the column") for n in ('a"b', "a\\b", "a\nb")],
    ({"example": {"age": None, "gap": 1.0}}, "age is null but not nullable"),
    ({"self_test": SelfTest(rows=[], probability=[])}, "self_test"),
    ({"self_test": SelfTest(rows=[[1.0]], probability=[.5])}, "needs 2 values"),
    ({"threshold": 1.5}, "threshold"), ({"version": "../1"}, "version"), ({"version": ".hidden"}, "version"), ({"features": []}, "features")])
def test_a_manifest_that_makes_no_sense_is_not_written(tmp_path, change, says):
    with pytest.raises(BundleError, match=says): write_bundle(tmp_path/"b", b"m", manifest(**change))
    assert not (tmp_path/"b").exists()

@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/file", "..", ""])
def test_no_file_outside_the_folder_is_opened(tmp_path, name):
    folder = write_bundle(tmp_path, b"m", manifest())
    m = msgspec.json.decode((folder/"manifest.json").read_bytes())
    m["files"][name] = m["files"]["model.onnx"]
    (folder/"manifest.json").write_bytes(msgspec.json.encode(m))
    with pytest.raises(BundleError, match="not a plain file"): verify_bundle(folder)

def test_a_link_in_the_folder_is_not_followed(tmp_path):
    folder = write_bundle(tmp_path, b"m", manifest())
    (tmp_path/"elsewhere").write_bytes(b"m")
    (folder/"model.onnx").unlink(); (folder/"model.onnx").symlink_to(tmp_path/"elsewhere")
    with pytest.raises(BundleError, match="not a plain file"): verify_bundle(folder)

def test_nan_becomes_null_and_writing_again_is_equal(tmp_path):
    m = manifest(metrics={"auc": float("nan"), "ap": np.float64(.5)}, self_test=SelfTest(rows=[[1.0, float("nan")]], probability=[.25]))
    folder = write_bundle(tmp_path, b"m", m)
    assert write_bundle(tmp_path, b"m", m) == folder
    back = verify_bundle(folder)
    assert back.metrics == {"auc": None, "ap": .5} and np.isnan(np.array(back.self_test.rows, np.float32)[0, 1])
    assert parse_manifest(manifest_json(back)) == back

def test_a_file_in_the_place_of_a_version_is_replaced(tmp_path):
    (tmp_path/"1").write_text("not a folder")
    for _ in range(2): assert verify_bundle(write_bundle(tmp_path, b"m", manifest())).version == "1"
    write_bundle(tmp_path, b"n", manifest("2"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "1", "2"]

# --- what came later ---

def test_an_older_manifest_is_read_and_later_fields_survive():
    m = manifest(reference=[3.0, float("nan")], calibration="sigmoid", decision={"offer_cost": 2.0, "saved_margin": 30.0})
    back = parse_manifest(manifest_json(m))
    assert back.reference == [3.0, None] and back.calibration == "sigmoid" and back.decision == {"offer_cost": 2.0, "saved_margin": 30.0}
    older = {k: v for k, v in json.loads(manifest_json(m)).items() if k not in ("reference", "calibration", "decision")}
    assert parse_manifest(json.dumps(older).encode()) == manifest()

@pytest.mark.parametrize("reference,says", [([1.0], "needs 2 values"), ([1.0, 2.0, 3.0], "needs 2 values"), ([], "needs 2 values"),
                                            ([None, 1.0], "age is null but not nullable"), (["1", 2], "age needs a number"), ({"age": 1}, "array")])
def test_an_invalid_reference_row_is_refused(reference, says):
    data = json.dumps(json.loads(manifest_json(manifest())) | {"reference": reference}).encode()
    with pytest.raises(BundleError, match=f"x.json: .*{says}"): parse_manifest(data, "x.json")

def test_the_shadow_is_a_link_of_its_own(tmp_path):
    for v, model in (("1", b"one"), ("2", b"two")): write_bundle(tmp_path, model, manifest(v))
    switch_current(tmp_path, "1")
    assert switch_shadow(tmp_path, "2") == tmp_path/"2" and os.readlink(tmp_path/"shadow") == "2"
    assert os.readlink(tmp_path/"current") == "1" and verify_bundle(tmp_path/"shadow").version == "2"
    switch_current(tmp_path, "2")
    switch_shadow(tmp_path, "1")
    assert [os.readlink(tmp_path/n) for n in ("current", "shadow")] == ["2", "1"]
    for _ in range(2): assert switch_shadow(tmp_path, None) is None and not (tmp_path/"shadow").is_symlink()
    assert os.readlink(tmp_path/"current") == "2" and sorted(p.name for p in tmp_path.iterdir()) == [".lock", "1", "2", "current"]

def test_what_cannot_be_verified_does_not_get_into_the_shadow(tmp_path):
    write_bundle(tmp_path, b"one", manifest("1")); switch_shadow(tmp_path, "1")
    (write_bundle(tmp_path, b"two", manifest("2"))/"model.onnx").write_bytes(b"2")
    for v in ("2", "3"):
        with pytest.raises(BundleError): switch_shadow(tmp_path, v)
    assert os.readlink(tmp_path/"shadow") == "1"
