"What a bundle gets from the registry: its precision, the gate's rows; and what changes nothing. The whole way is in test_promote and test_model_swap."
import logging
from types import SimpleNamespace
import numpy as np, pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from churn_nb.core.errors import BundleError, RegistryError
from churn_nb.core.settings import load_settings
from churn_nb.modeling.quantization import INT8_FILE, INT8_ROW
from churn_nb.registry import deployment as d
from serving import manifest, onnx_model, probability
from signing import public

INT8 = onnx_model(.25) # any graph of the model's form; its answers differ from float32's

def decided(version, verdict, action="promoted", at="2026-01-01"):
    return {"version": version, "action": action, "at": at,
            "checks": [{"criterion": c, "required": "", "measured": "", "verdict": v} for c, v in (("auc", "pass"), (INT8_ROW, verdict))]}

def registry(int8=INT8):
    def load_int8(version):
        if isinstance(int8, Exception): raise int8
        return int8
    return SimpleNamespace(load_int8=load_int8)

def serve(precision): return load_settings({"serve.precision": precision}, environ={}).serve

def test_int8_serves_with_its_own_self_test():
    m, more = d.with_precision(registry(), manifest(), [decided("1", "pass")], serve("int8"))
    assert (m.serves, more) == (INT8_FILE, {INT8_FILE: INT8})
    assert m.self_test.probability == pytest.approx(probability(np.array(m.self_test.rows, np.float32), .25), abs=1e-6)

def test_float32_serves_and_int8_lies_beside_it():
    m, more = d.with_precision(registry(), manifest(), [decided("1", "pass")], serve("float32"))
    assert m == manifest() and more == {INT8_FILE: INT8}

@pytest.mark.parametrize("history, int8, why", [
    ([], INT8, "no int8 file that passed"), ([decided("2", "pass")], INT8, "no int8 file that passed"),
    ([decided("1", "pass"), decided("1", "note")], INT8, "no int8 file that passed"), ([decided("1", "pass"), decided("1", "fail")], INT8, "no int8 file that passed"),
    ([decided("1", "pass")], RegistryError("not the file that was registered"), "not the file that was registered"), ([decided("1", "pass")], b"no graph", INT8_FILE)],
    ids=["no decision", "another version's", "later a note", "later a failure", "changed", "no graph"])
@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_without_an_int8_file_that_passed_float32_serves(caplog, history, int8, why, precision):
    with caplog.at_level(logging.WARNING): m, more = d.with_precision(registry(int8), manifest(), history, serve(precision))
    assert (m, more) == (manifest(), {})
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == (precision == "int8") and all("version 1 serves float32, not int8" in t and why in t for t in said)

def test_a_decision_without_checks_leaves_the_last_judgement():
    rolled_back = {"version": "1", "action": "rolled back", "at": "2026-01-02", "checks": []}
    assert d.with_precision(registry(), manifest(), [decided("1", "pass"), rolled_back], serve("int8"))[1] == {INT8_FILE: INT8}

def test_the_card_has_the_rows_of_the_first_promotion():
    history = [decided("1", "fail", "refused", "2026-01-01"), decided("1", "pass", at="2026-01-02"), decided("1", "note", at="2026-01-03"), decided("2", "fail", at="2026-01-04")]
    card = d.with_gate_rows(manifest(), history).card
    assert (card.decided, [r.verdict for r in card.gate]) == ("2026-01-02", ["pass", "pass"])

def test_a_version_that_was_never_promoted_keeps_its_card():
    assert d.with_gate_rows(manifest(), [decided("1", "pass", "refused"), decided("2", "pass")]) == manifest()

def test_a_workspace_without_a_model_has_no_history_and_gets_no_database(tmp_path):
    s = load_settings({"paths.workspace": str(tmp_path)}, environ={})
    assert d.decision_history(s) == [] and [*tmp_path.rglob("*.db")] == []

@pytest.mark.parametrize("command", [d.deploy_champion, d.rollback])
def test_what_cannot_be_signed_is_not_decided(tmp_path, monkeypatch, command):
    monkeypatch.delenv("CHURN_SIGNING_KEY", raising=False)
    s = load_settings({"paths.workspace": str(tmp_path/"ws"), "serve.public_key": public(Ed25519PrivateKey.generate())}, environ={})
    with pytest.raises(BundleError, match="CHURN_SIGNING_KEY: not set"): command(s)
    assert not (tmp_path/"ws").exists()
