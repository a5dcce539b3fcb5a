"""`taciturn cert keygen | issue | show | verify`: signed guarantees, without torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taciturn.cli import ExitCode
from taciturn.cli.gateway import answering, group, json_option, say

if TYPE_CHECKING:
    from datetime import datetime

    from taciturn.certificate.derivation import DerivationStatement, Derived
    from taciturn.certificate.keys import TrustStore
    from taciturn.certificate.verify import Folders, Verified

app = group("Certificates: make a key, sign, show and verify.")
TRUST_VARIABLE = "TACITURN_TRUST"

CertificateFile = Annotated[
    Path, typer.Argument(help="certificate.json, or the folder it is in: a fit's or an export's.")
]
SigningKey = Annotated[
    str | None,
    typer.Option(
        "--signing-key", help="PEM file, env:NAME or command:PROGRAM [TACITURN_SIGNING_KEY]."
    ),
]


@app.command()
def keygen(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Prefix of the three files.")
    ] = Path("taciturn-key"),
    name: Annotated[
        str, typer.Option(help="Name of the key's holder, shown to those who verify.")
    ] = "taciturn",
    days: Annotated[int, typer.Option(help="Number of days for which the key may sign.")] = 730,
) -> None:
    """Make an Ed25519 key; TACITURN_SIGNING_KEY_PASSWORD, if set, encrypts it."""
    from taciturn.certificate.clock import now
    from taciturn.certificate.keygen import write_key
    from taciturn.certificate.signers import PASSWORD_VARIABLE

    password = os.environ.get(PASSWORD_VARIABLE)
    files = write_key(output, name=name, valid_from=now(), days=days, password=password)
    say(f"key id {files.keyid}")
    say(f"{files.private}: secret, signs; keep it, and back it up")
    say(f"{files.public}: public, for cosign, OpenSSL and `cert verify --public-key`")
    say(f"{files.trust}: public, with its period; for `cert verify --trust`")


@app.command()
def issue(
    folder: Annotated[Path, typer.Argument(help="Output folder of a fit.")],
    signing_key: SigningKey = None,
    audit: Annotated[Path | None, typer.Option(help="JSON file with an audit's result.")] = None,
) -> None:
    """Sign a certificate for a fitted model, into its folder."""
    from taciturn.certificate.sign import issue as issue_certificate
    from taciturn.certificate.sign import read_audit
    from taciturn.certificate.signers import need_signer

    result = None if audit is None else read_audit(audit)
    statement = issue_certificate(folder, need_signer(signing_key), audit=result)
    guarantee = statement.predicate.guarantee
    say(f"certified: epsilon={guarantee.epsilon:.6g}, delta={guarantee.delta:.3g}")
    say(f"{folder / 'certificate.json'}")


app.command("sign", hidden=True)(issue)


@app.command()
def show(file: CertificateFile) -> None:
    """Print what a certificate says, as JSON; nothing is checked."""
    import json

    from taciturn.certificate.derivation import unverified_derivation
    from taciturn.certificate.envelope import Envelope
    from taciturn.certificate.statement import Statement
    from taciturn.certificate.verify import read_certificate

    say("not verified: this is only what the file says", style="yellow", error=True)
    export = _export(file)
    statements: list[Statement | DerivationStatement] = [
        Statement.from_bytes(Envelope.from_bytes(read_certificate(_file(file))).payload)
    ]
    if export is not None:
        statements.insert(0, unverified_derivation(export))
    for statement in statements:
        typer.echo(json.dumps(statement.model_dump(mode="json", by_alias=True), indent=2))


@app.command()
def verify(
    file: CertificateFile,
    trust: Annotated[
        list[Path] | None, typer.Option(help="Trust store in JSON; repeatable [TACITURN_TRUST].")
    ] = None,
    public_key: Annotated[
        list[Path] | None, typer.Option(help="Public key in PEM, trusted without end; repeatable.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Folder of the model; default: the certificate's.")
    ] = None,
    base_model: Annotated[
        Path | None, typer.Option(help="Folder of the base model, to check its files too.")
    ] = None,
    private: Annotated[
        Path | None, typer.Option(help="Owner's private folder, to check the data's commitment.")
    ] = None,
    certificate_only: Annotated[
        bool, typer.Option("--certificate-only", help="Leave the model's files unchecked.")
    ] = False,
    at: Annotated[
        str | None, typer.Option(help="Check as of this time, as in 2026-01-31T12:00:00Z.")
    ] = None,
    as_json: Annotated[
        bool,
        json_option("signed, recomputed_epsilon, key, statement; of an export its derivation, too"),
    ] = False,
) -> None:
    """Recompute epsilon, check signature, key and files; exit code 1 and the reason if refused.

    Of an export it also checks the statement of what it was made of. Exit code 3 if nobody signed
    that: then the certificate holds, and the files are only said to come from the certified model.
    """
    from taciturn.certificate.derivation import verify_derived
    from taciturn.certificate.verify import Folders, verify_file

    path, trusted = _file(file), _trusted(trust or [], public_key or [])
    moment = None if at is None else _moment(at)
    export = None if certificate_only else _export(model or file)
    if export is not None:
        derived = verify_derived(
            export, trusted, moment=moment, base_model=base_model, private=private
        )
        _answer(derived.verified, Folders(None, base_model, private), derived, as_json=as_json)
        if derived.key is None:
            raise typer.Exit(ExitCode.VERDICT)
        return
    folder = None if certificate_only else model or path.absolute().parent
    folders = Folders(folder, base_model, private)
    _answer(verify_file(path, trusted, folders, moment=moment), folders, as_json=as_json)


def _answer(
    verified: Verified, folders: Folders, derived: Derived | None = None, *, as_json: bool
) -> None:
    """Print what holds, for people or for programs."""
    derivation = None if derived is None else derived.statement
    signed = derived is None or derived.key is not None
    with answering(as_json=as_json) as answer:
        answer(
            {
                "signed": signed,
                "recomputed_epsilon": verified.recomputed_epsilon,
                "key": {"name": verified.key.name, "keyid": verified.key.keyid},
                "statement": verified.statement.model_dump(mode="json", by_alias=True),
                "derivation": derivation and derivation.model_dump(mode="json", by_alias=True),
            }
        )
        _report(verified, folders, derived)


def _report(verified: Verified, folders: Folders, derived: Derived | None = None) -> None:
    predicate, key = verified.statement.predicate, verified.key
    guarantee = predicate.guarantee
    if derived is not None and derived.key is None:
        say("CERTIFICATE VALID, EXPORT NOT SIGNED", style="bold yellow")
    else:
        say("VALID", style="bold green")
    say(f"promise     epsilon={guarantee.epsilon:.6g}, delta={guarantee.delta:.3g}")
    say(
        f"unit        {guarantee.privacy_unit}; {guarantee.neighbouring_relation}; "
        f"at most {guarantee.max_records_per_unit} records of a unit"
    )
    say(
        f"recomputed  epsilon={verified.recomputed_epsilon:.6g} from the events of "
        f"{', '.join(step.purpose for step in guarantee.steps)}"
    )
    say(f"signed by   {key.name} (key {key.keyid[:16]}), {predicate.issued_at}")
    say(f"base model  {predicate.base_model.name}: {_checked(folders.base_model)}")
    if derived is None:
        say(f"model files {len(verified.statement.subject)}: {_checked(folders.model)}")
    else:
        _report_export(derived)
    if folders.private is not None:
        say("data        those of the commitment")
    for text in predicate.public_data:
        name = "" if text.name is None else f"{text.name}: "
        say(
            f"public data {name}{text.records} records {text.sha256[:16]}, not covered by the "
            "promise"
        )
    audit = predicate.audit
    if audit is not None:
        say(
            f"audit       epsilon at least {audit.epsilon_lower_bound:.3g} with confidence "
            f"{audit.confidence:.0%} ({audit.threat_model}, {audit.canaries} canaries)"
        )


def _report_export(derived: Derived) -> None:
    origin, key = derived.statement.predicate, derived.key
    signer = "nobody: that they were made of the certified model is only said"
    if key is not None:
        signer = f"{key.name} (key {key.keyid[:16]}), {origin.issued_at}"
    say(f"export      {origin.form}, weights in {origin.weights}, by {origin.software.engine}")
    say(
        f"its logits  deviate by {origin.comparison.deviation:.2g} from the model's, "
        f"at most {origin.comparison.bound:g}"
    )
    say(f"its files   {len(derived.statement.subject)}: as the statement names them")
    say(f"signed by   {signer}")


def _checked(folder: Path | None) -> str:
    return "NOT checked" if folder is None else "unchanged"


def _trusted(stores: list[Path], public_keys: list[Path]) -> TrustStore:
    from taciturn.certificate.keys import TrustStore, merged, read_public_key, read_trust
    from taciturn.errors import SigningKeyError

    configured = os.environ.get(TRUST_VARIABLE)
    if configured and not stores and not public_keys:
        stores = [Path(configured)]
    if not stores and not public_keys:
        raise SigningKeyError(
            "no key is trusted; give --trust keys.json or --public-key key.pub, which you got from "
            "whoever signs, and not from where the certificate came"
        )
    keys = TrustStore(tuple(read_public_key(path) for path in public_keys))
    return merged([*(read_trust(path) for path in stores), keys])


def _moment(text: str) -> datetime:
    from taciturn.certificate.clock import parse_time
    from taciturn.errors import SpecError

    try:
        return parse_time(text)
    except ValueError:
        raise SpecError(f"at={text!r} must be written as 2026-01-31T12:00:00Z") from None


def _export(path: Path) -> Path | None:
    """Return the folder, if an exported model is in it."""
    from taciturn.reports.privacy import DERIVATION

    folder = path if path.is_dir() else path.absolute().parent
    return folder if (folder / DERIVATION).is_file() else None


def _file(path: Path) -> Path:
    return path / "certificate.json" if path.is_dir() else path
