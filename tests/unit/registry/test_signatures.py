"Keys and signatures: any byte that changes is noticed, what is no key is refused, and no message shows a private one."
import shutil, subprocess
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings, strategies as st
from churn_nb.core.errors import BundleError
from churn_nb.core.settings import load_settings
from churn_nb.registry.bundle import verify_bundle, write_bundle
from churn_nb.registry.signatures import check_signature, public_keys, signing_key
from serving import manifest, onnx_model
from signing import pem, public

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()

@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tmp_path_factory.mktemp("signatures")

def signed(folder, data, key=KEY):
    (folder/"manifest.sig").write_bytes(key.sign(data))
    return folder/"manifest.sig"

@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.binary(min_size=1, max_size=200), st.data())
def test_a_changed_byte_of_data_or_signature_is_refused(folder, data, draw):
    file = signed(folder, data)
    check_signature(file, data, [OTHER.public_key(), KEY.public_key()]) # one of the keys is enough
    def changed(b):
        at, by = draw.draw(st.integers(0, len(b) - 1)), draw.draw(st.integers(1, 255))
        return b[:at] + bytes([b[at] ^ by]) + b[at + 1:]
    with pytest.raises(BundleError, match="not a signature of this manifest"): check_signature(file, changed(data), [KEY.public_key()])
    file.write_bytes(changed(file.read_bytes()))
    with pytest.raises(BundleError, match="not a signature of this manifest"): check_signature(file, data, [KEY.public_key()])

@pytest.mark.parametrize("keys", [[], [OTHER.public_key()]], ids=["no key", "another key"])
def test_a_signature_needs_its_own_key(folder, keys):
    with pytest.raises(BundleError, match="churn step 04_serve"): check_signature(signed(folder, b"m"), b"m", keys)

@pytest.mark.parametrize("size", [0, 63, 65])
def test_a_signature_of_another_length_is_refused(folder, size):
    (folder/"manifest.sig").write_bytes(b"s"*size)
    with pytest.raises(BundleError) as e: check_signature(folder/"manifest.sig", b"m", [KEY.public_key()])
    assert str(folder/"manifest.sig") in str(e.value) and "\n" not in str(e.value)

def test_a_missing_signature_is_named(tmp_path):
    with pytest.raises(BundleError, match="manifest.sig: missing, and .* asks for it"): check_signature(tmp_path/"manifest.sig", b"m", [KEY.public_key()])

# The keys

def test_public_keys_may_be_texts_and_files_in_one_list(tmp_path):
    (tmp_path/"a.pem").write_text(public(KEY) + public(OTHER))
    found = public_keys(f"{tmp_path}/a.pem, {public(KEY)}")
    assert [k.public_bytes_raw() for k in found] == [k.public_key().public_bytes_raw() for k in (KEY, OTHER, KEY)]

def test_without_any_key_bundles_are_not_signed(): assert signing_key(environ={}) is None and public_keys("") == []

def test_a_server_that_asks_for_signatures_needs_the_private_key():
    with pytest.raises(BundleError, match="CHURN_SIGNING_KEY: not set, but .* public_key is"): signing_key(public(KEY), {})

def test_a_private_key_without_its_public_half_is_refused():
    assert signing_key(public(OTHER) + "," + public(KEY), {"CHURN_SIGNING_KEY": pem(KEY)}).sign(b"m") == KEY.sign(b"m")
    with pytest.raises(BundleError, match="its public key is not in"): signing_key(public(OTHER), {"CHURN_SIGNING_KEY": pem(KEY)})

@pytest.mark.parametrize("wrong", [pem(KEY), "no key at all"], ids=["a private key", "text"])
def test_what_is_no_public_key_is_refused(wrong):
    with pytest.raises(BundleError, match="public_key: ") as e: public_keys(wrong)
    assert wrong[40:60] not in str(e.value) or wrong == "no key at all"

def test_keys_made_by_openssl_work_and_others_are_refused(tmp_path):
    if not shutil.which("openssl"): pytest.skip("no openssl")
    ssl = lambda *a: subprocess.run(["openssl", *map(str, a)], check=True, capture_output=True)
    ssl("genpkey", "-algorithm", "ed25519", "-out", tmp_path/"signing.pem"); ssl("pkey", "-in", tmp_path/"signing.pem", "-pubout", "-out", tmp_path/"public.pem")
    key = signing_key(str(tmp_path/"public.pem"), {"CHURN_SIGNING_KEY": str(tmp_path/"signing.pem")})
    write_bundle(tmp_path/"b", onnx_model(), manifest("1"), key=key)
    assert verify_bundle(tmp_path/"b"/"1", str(tmp_path/"public.pem")).version == "1"
    assert signing_key((tmp_path/"public.pem").read_text(), {"CHURN_SIGNING_KEY": (tmp_path/"signing.pem").read_text().replace("\n", "\\n")}).public_key() == key.public_key()
    ssl("genpkey", "-algorithm", "rsa", "-out", tmp_path/"rsa.pem"); ssl("pkey", "-in", tmp_path/"rsa.pem", "-pubout", "-out", tmp_path/"rsa-public.pem")
    with pytest.raises(BundleError, match="not an Ed25519 key"): public_keys(str(tmp_path/"rsa-public.pem"))
    with pytest.raises(BundleError, match="not an Ed25519 key"): signing_key(environ={"CHURN_SIGNING_KEY": str(tmp_path/"rsa.pem")})
    ssl("genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:x", "-out", tmp_path/"locked.pem")
    with pytest.raises(BundleError): signing_key(environ={"CHURN_SIGNING_KEY": str(tmp_path/"locked.pem")})

@pytest.mark.parametrize("text", ["/no/such/file", "hunter2-hunter2", "-----BEGIN PRIVATE KEY-----\nhunter2-hunter2\n-----END PRIVATE KEY-----", "-----BEGIN hunter2-hunter2", "hunter2\0", "/dev/zero", "/"])
def test_private_key_errors_do_not_reveal_the_key(text):
    with pytest.raises(BundleError, match="^CHURN_SIGNING_KEY: ") as e: signing_key(environ={"CHURN_SIGNING_KEY": text})
    assert "hunter2" not in str(e.value) and "\n" not in str(e.value) and e.value.__cause__ is None and e.value.__suppress_context__ | (e.value.__context__ is None)

def test_the_settings_know_public_keys_and_not_the_private_one(tmp_path):
    key = Ed25519PrivateKey.generate()
    (tmp_path/"settings.ini").write_text("[serve]\npublic_key = keys/a.pem, keys/b.pem\n")
    s = load_settings(path=tmp_path/"settings.ini", environ={"CHURN_SIGNING_KEY": pem(key)})
    assert s.serve.public_key == f"{tmp_path}/keys/a.pem,{tmp_path}/keys/b.pem" and pem(key)[40:60] not in repr(s)
    s = load_settings(path=tmp_path/"settings.ini", environ={"CHURN_SERVE_PUBLIC_KEY": public(key)})
    assert [k.public_bytes_raw() for k in public_keys(s.serve.public_key)] == [key.public_key().public_bytes_raw()]
