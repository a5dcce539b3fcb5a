"""`pip install taciturn` has no engine: client, facade and commands must not need one, nor the
accountant; and a command that shows a line does not wait for what makes tables."""

from __future__ import annotations

import os
import re
from pathlib import Path

from support.program import run_python

SCRIPT = """
import sys

FORBIDDEN = {"torch", "transformers", "peft", "pyarrow", "duckdb", "sqlglot", "jinja2"}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())

import taciturn
from support.fake_gateway import TOKEN, URL, FakeApi

fake = FakeApi()
with taciturn.Client(URL, TOKEN, http=fake.http(), environment={}) as client:
    data = client.dataset("phee").select("text")
    data._repr_html_()
    train, test = data.split()
    model = taciturn.LLM("taciturn/tiny-medical")
    print(model.plan(train, target_epsilon=3).steps)
    model.fit(train, target_epsilon=3)
    print(model.sample(["The patient"]))
    print(model.evaluate(["text"]))
    print(model.privacy, model.save(sys.argv[1]))
    print(taciturn.LLM(sys.argv[1]).policy)
    try:
        model.certificate()
    except (taciturn.MissingDependencyError, taciturn.CertificateError) as error:
        print(error)
try:
    taciturn.LLM("taciturn/tiny-medical").sample(["x"])
except taciturn.MissingDependencyError as error:
    print(error)

from taciturn.sdk import client as clients

class Transport(clients.Transport):
    def __init__(self, url, token, **_):
        super().__init__(url, token, http=fake.http())

clients.Transport = Transport
from taciturn.cli.main import app

for line in (
    "dataset show phee",
    "fit --data gateway:phee --model m --target-epsilon 3",
    "plan --data gateway:phee --model m --target-epsilon 3",
    "sample gateway:mod_1 --prompt x",
):
    app(line.split(), standalone_mode=False)
assert not FORBIDDEN & sys.modules.keys(), FORBIDDEN & sys.modules.keys()
"""


def _variables(root: Path) -> dict[str, str]:
    paths = os.pathsep.join([str(root / "src"), str(root / "tests")])
    shown = {"TACITURN_URL": "http://testserver", "TACITURN_TOKEN": "tac_test"}
    return {"PYTHONPATH": paths, **shown}


def test_remote_work_needs_no_engine(root: Path, tmp_path: Path) -> None:
    result = run_python("-c", SCRIPT, tmp_path / "out", **_variables(root))
    assert result.returncode == 0, result.stderr
    assert re.search(r"needs (torch|peft); install taciturn\[engine\]", result.stdout)
    assert result.stdout.count("DP (epsilon=3") >= 4


WHO = """
import sys
from support.fake_gateway import FakeApi
from taciturn.sdk import client as clients

class Transport(clients.Transport):
    def __init__(self, url, token, **_):
        super().__init__(url, token, http=FakeApi().http())

clients.Transport = Transport
from taciturn.cli.main import app

app(["whoami"], standalone_mode=False)
assert not {"pandas", "numpy", "scipy", "dp_accounting"} & sys.modules.keys() - LOADED
"""


def test_whoami_loads_neither_pandas_nor_an_accountant(root: Path) -> None:
    """What the fake gateway itself loads apart."""
    script = "import sys\nimport support.fake_gateway\nLOADED = set(sys.modules)\n" + WHO
    lean = "import sys\nimport taciturn.cli.main, taciturn.cli.session, taciturn.sdk.client\n"
    lean += "assert not {'pandas', 'numpy', 'scipy', 'dp_accounting'} & sys.modules.keys()"
    for each in (script, lean):
        done = run_python("-c", each, **_variables(root))
        assert done.returncode == 0, done.stderr
