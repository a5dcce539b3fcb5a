"""`taciturn admin`: what whoever runs a gateway has done there."""

from __future__ import annotations

from taciturn.cli.gateway import Json, connected, group, say, show_value

admin = group("A gateway's upkeep, for administrators.")


@admin.command("prune")
def prune(as_json: Json = False) -> None:
    """Remove now what the gateway's settings say is over: incidents, exported audit log rows."""
    with connected() as client:
        terms, result = client.admin.retention(), client.admin.prune()
        if as_json:
            show_value(result, as_json=True)
            return
        for export in result.exports:
            say(
                f"audit log {export.first_entry}-{export.last_entry}: exported, then removed "
                f"({export.entries} entries, sha256 {export.sha256})"
            )
        if terms.audit_log_days is None:
            say("audit log: kept for ever; TACITURN_AUDIT_LOG_DAYS says otherwise")
        elif not result.exports:
            say(f"audit log: nothing is older than {terms.audit_log_days} days")
        say(f"incidents older than {terms.incident_days} days: {result.incidents} removed")
