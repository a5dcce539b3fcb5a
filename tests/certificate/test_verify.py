"""A certificate holds or is refused with the reason: 10,000 mutations, and the clever ones."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from support.program import run_python
from taciturn.certificate.canonical import canonical_json
from taciturn.certificate.commitment import committed
from taciturn.certificate.envelope import Envelope, pae
from taciturn.certificate.keys import TrustedKey, TrustStore, keyid
from taciturn.certificate.sign import issue
from taciturn.certificate.signers import KeySigner
from taciturn.certificate.verify import Folders, check_signature, verify, verify_file
from taciturn.errors import CertificateError
from taciturn.reports.privacy import CERTIFICATE, PrivacyReport

# Order of the Ed25519 group: S + L is the classic second signature of the same message.
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
N_MUTATIONS = 10_000


def resealed(
    certificate: bytes, change: Callable[[dict[str, Any]], None], signer: KeySigner
) -> bytes:
    """The certificate with a changed statement, honestly signed."""
    fields = json.loads(Envelope.from_bytes(certificate).payload)
    change(fields)
    payload = canonical_json(fields)
    return Envelope(payload, keyid(signer.public_key), signer.sign(pae(payload))).to_bytes()


def test_the_certificate_itself_holds(
    certificate: bytes, trust: TrustStore, moment: datetime
) -> None:
    assert verify(certificate, trust, moment=moment).key is trust.keys[0]


def test_a_guarantee_that_its_own_audit_refutes(
    certificate: bytes, trust: TrustStore, signer: KeySigner, moment: datetime
) -> None:
    def audited(bound: float) -> bytes:
        found = {"epsilon_lower_bound": bound, "confidence": 0.95, "threat_model": "black box"}
        found |= {"canaries": 100, "method": "one run"}
        return resealed(certificate, lambda f: f["predicate"].update(audit=found), signer)

    assert verify(audited(0.1), trust, moment=moment).statement.predicate.audit is not None
    with pytest.raises(CertificateError, match="the guarantee is broken"):
        verify(audited(40.0), trust, moment=moment)


def _byte(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _replace(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.choice(b'AZaz09+/=-_ \n\t"{}[],:\\')


def _insert(data: bytearray, rng: random.Random) -> None:
    data.insert(rng.randrange(len(data) + 1), rng.choice(b' \n\t\r=A"\0\xef,'))


def _delete(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 1, 1, 2, 4, 100))]


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _append(data: bytearray, rng: random.Random) -> None:
    data += rng.choice((b" ", b"\n", b"\0", b"{}", b"=", bytes(data)))


def _swap(data: bytearray, rng: random.Random) -> None:
    first, second = rng.randrange(len(data)), rng.randrange(len(data))
    data[first], data[second] = data[second], data[first]


def _repeat(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    data[start:start] = data[start : start + rng.randrange(1, 50)]


def _pretty(data: bytearray, rng: random.Random) -> None:
    data[:] = json.dumps(json.loads(data), indent=rng.choice((None, 0, 1, 2))).encode()


def _duplicate_key(data: bytearray, rng: random.Random) -> None:
    key = rng.choice(("payload", "payloadType", "signatures"))
    extra = json.dumps({key: json.loads(data)[key]}, separators=(",", ":"))[1:-1]
    data[1:1] = extra.encode() + b","


def _padding(data: bytearray, rng: random.Random) -> None:
    fields = json.loads(data)
    name = rng.choice(("payload", "sig"))
    holder = fields if name == "payload" else fields["signatures"][0]
    raw = base64.b64decode(holder[name])
    spelling = holder[name].rstrip("=")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = alphabet[alphabet.index(spelling[-1]) ^ rng.choice((1, 2, 3))]  # the unused bits
    options = [spelling, spelling + "====", spelling[:-1] + last + "=" * (-len(spelling) % 4)]
    options += [base64.urlsafe_b64encode(raw).decode() + "\n", base64.encodebytes(raw).decode()]
    holder[name] = rng.choice(options)
    data[:] = canonical_json(fields) + b"\n"


def _payload(data: bytearray, rng: random.Random) -> None:
    fields = json.loads(data)
    payload = bytearray(base64.b64decode(fields["payload"]))
    rng.choice((_byte, _replace, _insert, _delete, _truncate, _append, _swap))(payload, rng)
    fields["payload"] = base64.b64encode(payload).decode()
    data[:] = canonical_json(fields) + b"\n"


def _signature(data: bytearray, rng: random.Random) -> None:
    fields = json.loads(data)
    raw = bytearray(base64.b64decode(fields["signatures"][0]["sig"]))
    if rng.random() < 0.2:
        scalar = int.from_bytes(raw[32:], "little") + GROUP_ORDER * rng.randrange(1, 8)
        raw[32:] = scalar.to_bytes(33, "little")[:32]
    else:
        _byte(raw, rng)
    fields["signatures"][0]["sig"] = base64.b64encode(raw).decode()
    data[:] = canonical_json(fields) + b"\n"


def _keyid(data: bytearray, rng: random.Random) -> None:
    fields = json.loads(data)
    own = fields["signatures"][0]["keyid"]
    fields["signatures"][0]["keyid"] = rng.choice((own.upper(), own[:-1], own + " ", "", "0" * 64))
    data[:] = canonical_json(fields) + b"\n"


def _more_signatures(data: bytearray, rng: random.Random) -> None:
    fields = json.loads(data)
    fields["signatures"] *= rng.choice((0, 2, 3))
    data[:] = canonical_json(fields) + b"\n"


def _fields(data: bytearray, rng: random.Random) -> None:
    fields = json.loads(data)
    fields[rng.choice(("extra", "payloadtype", "Payload"))] = rng.choice((1, None, "x"))
    data[:] = canonical_json(fields) + b"\n"


def _escape(data: bytearray, rng: random.Random) -> None:
    where = data.index(b"in-toto") + rng.randrange(7)
    data[where : where + 1] = b"\\u%04x" % data[where]


MUTATIONS = (
    *(_byte, _byte, _replace, _insert, _delete, _truncate, _append, _swap, _repeat),
    *(_pretty, _duplicate_key, _padding, _payload, _signature, _keyid, _more_signatures),
    *(_fields, _escape),
)


def test_ten_thousand_mutations_are_refused(
    certificate: bytes, trust: TrustStore, moment: datetime
) -> None:
    rng = random.Random(20260601)
    accepted, tried = [], 0
    while tried < N_MUTATIONS:
        data = bytearray(certificate)
        mutate = rng.choice(MUTATIONS)
        mutate(data, rng)
        if data == certificate:
            continue
        tried += 1
        try:
            verify(bytes(data), trust, moment=moment)
        except CertificateError:
            continue
        accepted.append((mutate.__name__, bytes(data)))
    assert accepted == []


def test_every_single_byte_counts(certificate: bytes, trust: TrustStore) -> None:
    for index in range(len(certificate)):
        data = bytearray(certificate)
        data[index] ^= 1
        with pytest.raises(CertificateError):
            check_signature(bytes(data), trust)


def test_one_payload_has_one_file(certificate: bytes) -> None:
    assert Envelope.from_bytes(certificate).to_bytes() == certificate


def _weaker_epsilon(fields: dict[str, Any]) -> None:
    fields["predicate"]["guarantee"]["epsilon"] /= 2


def _fewer_steps(fields: dict[str, Any]) -> None:
    fields["predicate"]["guarantee"]["steps"][0]["dp_event"]["count"] *= 2


def _other_unit(fields: dict[str, Any]) -> None:
    fields["predicate"]["guarantee"]["steps"][0]["privacy_unit"] = "one record"


def _higher_bound(fields: dict[str, Any]) -> None:
    fields["predicate"]["guarantee"]["steps"][0]["max_records_per_unit"] = 99


def _issued_later(fields: dict[str, Any]) -> None:
    fields["predicate"]["issued_at"] = "2026-06-02T00:00:00Z"


def _issued_before_the_key(fields: dict[str, Any]) -> None:
    fields["predicate"]["issued_at"] = "2020-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_weaker_epsilon, "promises too much"),
        (_fewer_steps, "promises too much"),
        (_other_unit, "different privacy units"),
        (_higher_bound, "contribution bound"),
        (_issued_later, "is the clock right"),
        (_issued_before_the_key, "when the certificate was issued"),
    ],
)
def test_even_the_signer_cannot_say_what_is_not_so(
    certificate: bytes,
    signer: KeySigner,
    trust: TrustStore,
    moment: datetime,
    change: Callable[[dict[str, Any]], None],
    reason: str,
) -> None:
    with pytest.raises(CertificateError, match=reason):
        verify(resealed(certificate, change, signer), trust, moment=moment)


def test_a_changed_event_breaks_the_signature(
    certificate: bytes, trust: TrustStore, moment: datetime
) -> None:
    envelope = Envelope.from_bytes(certificate)
    payload = envelope.payload.replace(b'"noise_multiplier":1.1', b'"noise_multiplier":1.2')
    assert payload != envelope.payload
    changed = Envelope(payload, envelope.keyid, envelope.signature).to_bytes()
    with pytest.raises(CertificateError, match="changed after it was signed"):
        verify(changed, trust, moment=moment)


def test_another_key_under_the_trusted_name(
    certificate: bytes, trust: TrustStore, moment: datetime
) -> None:
    stranger = KeySigner(Ed25519PrivateKey.generate())
    own = resealed(certificate, lambda fields: None, stranger)
    with pytest.raises(CertificateError, match="not among the 1 trusted"):
        verify(own, trust, moment=moment)
    envelope = Envelope.from_bytes(own)
    posing = Envelope(envelope.payload, trust.keys[0].keyid, envelope.signature).to_bytes()
    with pytest.raises(CertificateError, match="not that of key"):
        verify(posing, trust, moment=moment)


def test_an_expired_key(certificate: bytes, trust: TrustStore, moment: datetime) -> None:
    with pytest.raises(CertificateError, match=r"is valid from .* the time of this check"):
        verify(certificate, trust, moment=moment + timedelta(days=31))
    with pytest.raises(CertificateError, match="is valid from"):
        verify(certificate, trust, moment=moment - timedelta(days=31))


def test_files_base_model_and_data(
    folder: Path, report: PrivacyReport, signer: KeySigner, tmp_path: Path
) -> None:
    private, base = tmp_path / "private", tmp_path / "base"
    private.mkdir()
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"base")
    (step,) = report.private_steps
    step = step.model_copy(update={"dataset_commitment": committed(private, "rows")})
    digest = hashlib.sha256(b"base").hexdigest()
    changed = report.model_copy(
        update={"private_steps": (step,), "base_model_sha256": {"model.safetensors": digest}}
    )
    (folder / "privacy_report.json").write_text(changed.model_dump_json())
    issue(folder, signer)
    trust = TrustStore((TrustedKey(signer.public_key, "me"),))
    path, folders = folder / CERTIFICATE, Folders(folder, base, private)
    verify_file(path, trust, folders)
    (private / "dataset_opening.json").unlink()
    committed(private, "rows")
    with pytest.raises(CertificateError, match="are not those that the certificate names"):
        verify_file(path, trust, folders)
    (base / "model.safetensors").write_bytes(b"another base")
    with pytest.raises(CertificateError, match="the base model was changed"):
        verify_file(path, trust, folders)
    (folder / "adapter_model.safetensors").write_bytes(b"another adapter")
    with pytest.raises(CertificateError, match="the model was changed or swapped"):
        verify_file(path, trust, folders)


def test_files_that_cannot_be_read(trust: TrustStore, tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="cannot be read"):
        verify_file(tmp_path / "none.json", trust, Folders())


def test_without_torch_and_in_time(folder: Path, signer: KeySigner, tmp_path: Path) -> None:
    """A fresh process, in which neither torch nor the engine can be imported, and no network."""
    issue(folder, signer)
    store = tmp_path / "keys.json"
    store.write_bytes(TrustStore((TrustedKey(signer.public_key, "me"),)).to_bytes())
    script = (
        "import sys, socket\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'transformers', 'peft', 'pandas', 'pyarrow')"
        " or name in ('taciturn.engine', 'taciturn.accounting.compose'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "socket.socket.connect = None\n"
        "from taciturn.cli.main import main\nmain()\n"
    )
    start = time.monotonic()
    done = run_python("-c", script, "cert", "verify", folder, "--trust", store, NO_COLOR="1")
    assert done.returncode == 0, done.stderr
    assert "VALID" in done.stdout
    assert time.monotonic() - start < 10
