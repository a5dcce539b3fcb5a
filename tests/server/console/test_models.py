"""Pages of models: the report, the files, the certificate that is checked, the playground."""

from __future__ import annotations

import base64
import dataclasses
import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from support import released_files
from support.console import look, send
from support.gateway import DP_LINE, MODEL, GatewayWorld
from support.statements import count_statements
from taciturn.accounting.compose import epsilon as epsilon_of
from taciturn.accounting.events import dpsgd_event, event_to_dict
from taciturn.certificate.clock import now, time_text
from taciturn.certificate.envelope import Envelope, pae
from taciturn.certificate.keygen import write_key
from taciturn.certificate.keys import keyid
from taciturn.certificate.signers import find_signer
from taciturn.certificate.statement import (
    BaseModelFiles,
    CertifiedStep,
    Digest,
    File,
    Guarantee,
    Predicate,
    Software,
    Statement,
)
from taciturn.reports.privacy import CERTIFICATE
from taciturn.server.identity.principal import WorkerPrincipal
from taciturn.server.models import certificates
from taciturn.server.models.certificates import Certificates
from taciturn.server.schema.tables import artifacts
from taciturn.wire.values import PolicyLine

HOSTILE = '</script><img src=x onerror="alert(1)">{{ 7 * 7 }}'
EVENT = dpsgd_event(sampling_probability=0.1, noise_multiplier=2.0, steps=10)
DELTA = 1e-6
EPSILON = epsilon_of(EVENT, DELTA)
UNIT = "patient_id"
PROMISE = {
    "guarantee": "differential privacy",
    "epsilon": EPSILON,
    "delta": DELTA,
    "privacy_unit": UNIT,
    "n_units": 1100,
    "steps": 10,
    "base_model": MODEL,
    "dp_event": event_to_dict(EVENT),
}


@dataclass
class Certified:
    """A model with files and a certificate, whose parts a test can damage."""

    world: GatewayWorld
    job: str
    model: str

    def release(self, name: str, data: bytes) -> None:
        """Have the fit's worker send a file, unchecked: the store is what it is."""
        artifacts = self.world.services.artifacts
        worker = self.world.services.directory.authenticate(
            self.world.worker_headers(self.job)["Authorization"].removeprefix("Bearer ")
        )
        assert isinstance(worker, WorkerPrincipal)
        self.world.set_job_state(self.job, "running")
        artifacts._take(worker, 1, name, lambda: [data])
        self.world.set_job_state(self.job, "succeeded")

    def certify(self, *, epsilon: float = EPSILON, key: Path, names: tuple[str, ...]) -> None:
        """Sign a statement about the files as they are."""
        files = {file.name: file for file in self.world.services.artifacts.files(self.job)}
        subject = tuple(File(name=name, digest=Digest(sha256=files[name].sha256)) for name in names)
        step = CertifiedStep(
            purpose="fit",
            dp_event=event_to_dict(EVENT),
            privacy_unit=UNIT,
            max_records_per_unit=1,
            n_units=1100,
            dataset_commitment="0" * 64,
        )
        guarantee = Guarantee(
            epsilon=epsilon,
            delta=DELTA,
            privacy_unit=UNIT,
            neighbouring_relation="add or remove one unit",
            max_records_per_unit=1,
            accountant="test",
            steps=(step,),
        )
        statement = Statement.of(
            subject,
            Predicate(
                guarantee=guarantee,
                base_model=BaseModelFiles(name=MODEL, files=subject[:1]),
                software=Software(engine="taciturn test", libraries={}),
                issued_at=time_text(now()),
            ),
        )
        signer = find_signer(str(key))
        assert signer is not None
        payload = statement.to_bytes()
        envelope = Envelope(payload, keyid(signer.public_key), signer.sign(pae(payload)))
        self.release(CERTIFICATE, envelope.to_bytes())

    def verdict(self, who: str = "paul") -> str:
        answer = send(self.world, who, f"/models/{self.model}/verifications")
        assert answer.status_code == 200, answer.text
        return answer.text


@pytest.fixture
def signing_key(console: GatewayWorld) -> Path:
    """The gateway's own key, in its data folder."""
    folder = console.gateway.settings.data_dir
    write_key(
        folder / "signing",
        name="the gateway <b>",
        valid_from=now() - timedelta(days=1),
        days=30,
        password=None,
    )
    return folder / "signing.pem"


@pytest.fixture
def certified(console: GatewayWorld, signing_key: Path) -> Certified:
    model = make_model(console, report=json.dumps(PROMISE))
    for name, data in released_files.fit_files().items():
        model.release(name, data)
    model.certify(key=signing_key, names=tuple(released_files.fit_files()))
    return model


def make_model(world: GatewayWorld, who: str = "paul", **columns: str) -> Certified:
    job = world.add_job("fit", state="succeeded", requester=who)
    model = world.add_model(job, owner_id=world.users[who], **columns)
    return Certified(world, job, model)


def test_who_sees_a_model(certified: Certified) -> None:
    world, path = certified.world, f"/models/{certified.model}"
    for who, status in (("paul", 200), ("olga", 200), ("ann", 200), ("petra", 404), ("oscar", 404)):
        assert look(world, who, path).status_code == status, who
        assert look(world, who, f"{path}/evidence").status_code == status, who
    assert look(world, "adam", path).status_code == 403
    for page in ("playground", "comparison"):
        for who, status in (("paul", 200), ("olga", 200), ("ann", 403), ("petra", 404)):
            assert look(world, who, f"{path}/{page}").status_code == status, (who, page)
    auditors = look(world, "ann", path).text
    assert "/files/certificate.json" in auditors
    assert "/files/adapter_model.safetensors" not in auditors
    assert "Use it" not in auditors
    assert "Remove this model" not in auditors


def test_a_models_page_is_its_report(certified: Certified) -> None:
    text = look(certified.world, "paul", f"/models/{certified.model}").text
    assert "differs by a factor of" in text
    assert "the gateway &lt;b&gt;" in text
    for file in certified.world.services.artifacts.files(certified.job):
        assert file.sha256 in text
    for word in (
        "from openai import OpenAI",
        "curl http",
        "taciturn sample gateway:",
        "taciturn export model --merged",
    ):
        assert word in text
    evidence = look(certified.world, "paul", f"/models/{certified.model}/evidence").text
    assert "the attacker is right at most" in evidence
    assert "no evaluation or audit" in evidence


def test_an_audit_and_evaluations_stand_next_to_the_promise(certified: Certified) -> None:
    world = certified.world
    judged = world.add_job("evaluate", state="running", model_id=certified.model)
    Certified(world, judged, certified.model).release(
        "evaluation.json", released_files.evaluation()
    )
    text = look(world, "paul", f"/models/{certified.model}/evidence").text
    assert "Public, 3 records; 75% of pairs ranked as people did" in text
    assert f'href="/jobs/{judged}"' in text
    # Results of a job are its requester's and the data's owner's, not an auditor's.
    assert judged not in look(world, "ann", f"/models/{certified.model}/evidence").text


def test_a_model_without_a_guarantee_says_so(console: GatewayWorld) -> None:
    line = PolicyLine(kind="no guarantee", text="no guarantee (approved by bea, otto)")
    model = make_model(console, report='{"guarantee": "none"}', policy=line.model_dump_json())
    text = look(console, "paul", f"/models/{model.model}").text
    assert "Nothing bounds what this model tells" in text
    assert "There is nothing to certify" in text
    assert send(console, "paul", f"/models/{model.model}/verifications").status_code == 404
    assert "unbounded" in look(console, "paul", "/models").text


def test_a_certificate_that_holds(certified: Certified) -> None:
    for who in ("paul", "olga", "ann"):
        text = certified.verdict(who)
        assert "Verified: the certificate holds" in text
        assert text.count(">holds<") == 4
    assert "computes" in text
    path = f"/models/{certified.model}/verifications"
    assert send(certified.world, "petra", path).status_code == 404
    assert send(certified.world, "adam", path).status_code == 403


def test_a_page_of_certificates_opens_none_of_them(certified: Certified, signing_key: Path) -> None:
    world = certified.world
    look(world, "ann", "/certificates")
    with count_statements(world.gateway.engine) as one:
        look(world, "ann", "/certificates")
    for _ in range(3):
        model = make_model(world, report=json.dumps(PROMISE))
        model.release("adapter_config.json", b"{}")
        model.certify(key=signing_key, names=("adapter_config.json",))
    for path in world.gateway.settings.data_dir.rglob(CERTIFICATE):
        path.unlink()
    with count_statements(world.gateway.engine) as four:
        page = look(world, "ann", "/certificates").text
    signer = find_signer(str(signing_key))
    assert signer is not None
    assert page.count(f">{keyid(signer.public_key)[:16]}<") == 4
    assert four.statements == one.statements
    # An earlier version has noted no signer, so that the certificate itself is looked for.
    nothing = update(artifacts).where(artifacts.c.job_id == model.job).values(content=None)
    world.gateway.write(lambda connection: connection.execute(nothing))
    page = look(world, "ann", "/certificates").text
    assert page.count("cannot be read") == 1
    assert look(world, "ann", f"/models/{model.model}").status_code == 200


def test_a_damaged_file_is_named(certified: Certified) -> None:
    """The bytes in the store count, not what the table says of them."""
    store = certified.world.gateway.settings.data_dir
    (path,) = [p for p in store.rglob("adapter_model.safetensors") if certified.job in str(p)]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    text = certified.verdict()
    assert "Refused" in text
    assert "adapter_model.safetensors is not the file that was certified" in text
    path.unlink()
    assert "adapter_model.safetensors cannot be read from the store" in certified.verdict()


def test_a_swapped_file_and_one_too_many_are_named(certified: Certified) -> None:
    certified.release("adapter_config.json", b'{"r": 5}')
    assert "adapter_config.json is not the file that was certified" in certified.verdict()
    certified.release("adapter_config.json", released_files.fit_files()["adapter_config.json"])
    certified.release("model.safetensors", released_files.safetensors())
    assert "model.safetensors is a file of the model and is not certified" in certified.verdict()


def test_a_changed_certificate_is_refused(certified: Certified, signing_key: Path) -> None:
    artifacts = certified.world.services.artifacts
    data = artifacts.read(certified.job, CERTIFICATE)
    assert data is not None
    fields = json.loads(data)
    signature = bytearray(base64.b64decode(fields["signatures"][0]["sig"]))
    signature[0] ^= 1
    envelope = Envelope.from_bytes(data)
    certified.release(
        CERTIFICATE, Envelope(envelope.payload, envelope.keyid, bytes(signature)).to_bytes()
    )
    assert "it was changed after it was signed" in certified.verdict()
    certified.release(CERTIFICATE, b"{}")
    assert "It cannot be read" in certified.verdict()
    assert "cannot be read" in look(certified.world, "paul", f"/models/{certified.model}").text


def test_a_certificate_that_promises_too_much_is_refused(
    certified: Certified, signing_key: Path
) -> None:
    names = tuple(released_files.fit_files())
    certified.certify(epsilon=EPSILON / 2, key=signing_key, names=names)
    text = certified.verdict()
    assert "the certificate promises too much" in text.replace("The ", "the ")
    assert f"Epsilon is {EPSILON / 2:.10g} in the certificate and {EPSILON:.10g} here." in text


def test_a_key_that_is_not_known_is_said(certified: Certified) -> None:
    (certified.world.gateway.settings.data_dir / "signing.trust.json").unlink()
    text = certified.verdict()
    assert "Not verified" in text
    assert "which this gateway does not know" in text
    assert text.count(">holds<") == 3


def test_the_key_that_workers_are_given_is_known(certified: Certified, signing_key: Path) -> None:
    gateway = certified.world.gateway
    (gateway.settings.data_dir / "signing.trust.json").unlink()
    settings = gateway.settings.model_copy(update={"signing_key": str(signing_key)})
    checks = Certificates(
        dataclasses.replace(gateway, settings=settings),
        certified.world.services.models,
        certified.world.services.artifacts,
    )
    steps = checks.check(certified.world.principal("paul"), certified.model)
    assert {step.outcome for step in steps} == {"passed"}
    assert "this gateway's workers" in steps[0].text


def test_large_files_are_not_read_again(
    certified: Certified, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "_READ_BYTES", 10)
    text = certified.verdict()
    assert "Too large to be read again: adapter_config.json, adapter_model.safetensors" in text
    assert "Verified" in text


def test_a_model_is_removed_by_who_has_it(certified: Certified) -> None:
    path = f"/models/{certified.model}/removals"
    for who, status in (("petra", 404), ("ann", 403), ("adam", 403)):
        assert send(certified.world, who, path).status_code == status, who
    answer = send(certified.world, "paul", path)
    assert answer.headers["hx-redirect"] == "/models"
    assert look(certified.world, "paul", f"/models/{certified.model}").status_code == 404


def test_models_are_listed_page_by_page(console: GatewayWorld) -> None:
    assert "No model has been fitted yet" in look(console, "paul", "/models").text
    for number in range(3):
        make_model(console, report=json.dumps(PROMISE), name=f"model {number}")
    text = look(console, "paul", "/models?limit=2").text
    assert text.count('<th scope="row">') == 2
    assert "?cursor=" in text
    assert 'href="/datasets/phee"' in text
    assert "model 0" in look(console, "olga", "/models").text
    assert "model 0" not in look(console, "petra", "/models").text


def test_what_people_name_is_text(console: GatewayWorld) -> None:
    report = json.dumps({**PROMISE, "privacy_unit": HOSTILE, "base_model": HOSTILE})
    line = DP_LINE.model_copy(update={"text": HOSTILE})
    model = make_model(console, report=report, name=HOSTILE, policy=line.model_dump_json())
    path = f"/models/{model.model}"
    for page in ("", "/playground", "/comparison", "/evidence"):
        text = look(console, "paul", path + page).text
        assert HOSTILE not in text, page
    assert HOSTILE not in look(console, "paul", "/models").text


def test_the_playground_asks_the_api_as_its_reader(console: GatewayWorld) -> None:
    model = make_model(console, report=json.dumps(PROMISE))
    text = look(console, "paul", f"/models/{model.model}/playground").text
    assert f'value="{model.model}:base"' in text
    assert 'name="kind"' not in text, "it knows no form of conversations"
    assert 'max="510"' in text
    model.release("chat_template.jinja", b"{{ messages }}")
    assert 'name="kind"' in look(console, "paul", f"/models/{model.model}/playground").text
