"The DVC remote of the repository."
from churn_nb.data.datasets import pointer_md5
from paths import ROOT

def remote_object(root):
    "The bytes of cdnow.csv in the remote of a clone."
    md5 = pointer_md5(ROOT/"data/cdnow.csv.dvc")
    f = root/"data/remote/files/md5"/md5[:2]/md5[2:]
    assert f.is_file()
    return f
