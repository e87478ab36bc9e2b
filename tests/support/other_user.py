"The `churn` command as a user who owns no more than a folder: what a backup that another account restored looks like."
import os, shutil, subprocess
from pathlib import Path
import pytest
from commands import GATE, PLAIN
from paths import REAL_CHURN, ROOT, own_environment

needs_another_user = pytest.mark.skipif(bool(os.geteuid()) or not shutil.which("setpriv"), reason="NOT TESTED: another user; run as root, with setpriv of util-linux")

class OtherUser:
    """An account without a name, and a home below `folder`. It may read every file, as the interpreter and the clone may lie in a
    folder of root's (CAP_DAC_READ_SEARCH), and write its own files alone.
    `no_setuid_fixup`: access(2) must answer what open(2) does."""
    uid = 64321

    def __init__(self, folder):
        self.home = Path(folder)/"home"
        (self.home/"tmp").mkdir(parents=True)
        (self.home/".gitconfig").write_text(f"[safe]\n\tdirectory = {ROOT}\n") # what `churn doctor` asks for
        self.own(self.home)

    def own(self, folder):
        "Make all of a folder this user's."
        for path in (Path(folder), *Path(folder).rglob("*")): os.chown(path, self.uid, self.uid, follow_symlinks=False)

    def start(self, *args, **env):
        "The process of a command."
        plain = {k: v for k, v in own_environment().items() if not k.startswith(("COVERAGE_", "XDG_"))} # they name files of the test run's user
        user = ["setpriv", "--securebits=+no_setuid_fixup", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        return subprocess.Popen([*user, REAL_CHURN, *map(str, args)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env={**plain, **GATE, **PLAIN, "HOME": str(self.home), "TMPDIR": str(self.home/"tmp"), **env})

    def run(self, *args, **env):
        "The exit code of a command, and all that it prints."
        with self.start(*args, **env) as process: printed = "".join(process.communicate())
        return process.returncode, printed
