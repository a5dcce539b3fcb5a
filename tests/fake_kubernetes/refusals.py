"""422: an object whose fields are of the right type and make no sense; 1.36's words in short."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fake_kubernetes.quantities import amount

_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
_SUBDOMAIN = re.compile(
    r"^(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
)
_VALUE = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?$")
_KEY = re.compile(
    r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
_VARIABLE = re.compile(r"^[^=\x00-\x1f\x7f]+$")
_DNS_LABELLED = ("services", "namespaces")
_NATIVE = ("cpu", "memory", "ephemeral-storage")


def of_new(resource: str, made: dict[str, Any]) -> list[str]:
    """Return the faults of a new object."""
    return list(_metadata(resource, made["metadata"])) + list(_spec(resource, made))


def of_change(resource: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the faults of a change, apart from those of a new object."""
    found = list(_metadata(resource, new["metadata"]))
    if resource == "jobs":
        found += _job_change(old, new)
    if resource == "pods":
        found += _pod_change(old["spec"], new["spec"])
    if resource == "services" and old["spec"].get("clusterIP") != new["spec"].get("clusterIP"):
        found.append("spec.clusterIP: Invalid value: field is immutable")
    if resource == "secrets" and old.get("type") != new.get("type"):
        found.append("type: Invalid value: field is immutable")
    fixed = resource in ("secrets", "configmaps") and old.get("immutable")
    if fixed and (old.get("data") != new.get("data") or not new.get("immutable")):
        found.append("data: Forbidden: field is immutable when `immutable` is set")
    return found


def _metadata(resource: str, metadata: dict[str, Any]) -> Iterator[str]:
    name = metadata.get("name", "")
    rule = _LABEL if resource in _DNS_LABELLED else _SUBDOMAIN
    if not rule.match(name):
        yield f'metadata.name: Invalid value: "{name}": a lowercase RFC 1123 name is needed'
    yield from _labels("metadata.labels", metadata.get("labels"))
    for key in metadata.get("annotations") or {}:
        if not _KEY.match(key.lower()):
            yield f'metadata.annotations: Invalid value: "{key}"'
    for each in metadata.get("finalizers") or ():
        if not _KEY.match(each):
            yield f'metadata.finalizers: Invalid value: "{each}": name is not qualified'
    owners = metadata.get("ownerReferences") or ()
    for index, owner in enumerate(owners):
        for field in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(field):
                yield f"metadata.ownerReferences[{index}].{field}: must not be empty"
    if sum(bool(owner.get("controller")) for owner in owners) > 1:
        yield "metadata.ownerReferences: Only one reference can have Controller set to true"


def _labels(path: str, labels: dict[str, str] | None) -> Iterator[str]:
    for key, value in (labels or {}).items():
        if not _KEY.match(key):
            yield f'{path}: Invalid value: "{key}": name part must be alphanumeric'
        if not _VALUE.match(value):
            yield f'{path}: Invalid value: "{value}": not a valid label'


def _spec(resource: str, made: dict[str, Any]) -> Iterator[str]:
    if resource == "jobs":
        yield from _job(made)
    elif resource == "pods":
        yield from _pod("spec", made["spec"])
    elif resource == "services":
        yield from _service(made["spec"])
    elif resource == "networkpolicies":
        kinds = (made.get("spec") or {}).get("policyTypes") or ()
        if not set(kinds) <= {"Ingress", "Egress"}:
            yield "spec.policyTypes: Unsupported value"


def _service(spec: dict[str, Any]) -> Iterator[str]:
    headless = spec.get("clusterIP") == "None"
    if not spec.get("ports") and not headless:
        yield "spec.ports: Required value"
    names = [port.get("name") for port in spec.get("ports") or ()]
    if len(names) > 1 and not all(names):
        yield "spec.ports[0].name: Required value"
    for port in spec.get("ports") or ():
        if not 1 <= port["port"] <= 65535:
            yield f"spec.ports[0].port: Invalid value: {port['port']}: must be between 1 and 65535"


def _job(made: dict[str, Any]) -> Iterator[str]:
    spec = made["spec"]
    for field in (
        "parallelism", "completions", "backoffLimit", "activeDeadlineSeconds",
        "ttlSecondsAfterFinished",
    ):  # fmt: skip
        if (spec.get(field) or 0) < 0:
            yield f"spec.{field}: Invalid value: {spec[field]}: must be greater than or equal to 0"
    mode = spec.get("completionMode", "NonIndexed")
    if mode not in ("NonIndexed", "Indexed"):
        yield f'spec.completionMode: Unsupported value: "{mode}"'
    unset = spec.get("completions") is None and spec.get("parallelism") is None
    if mode == "Indexed" and spec.get("completions") is None and not unset:  # both are 1 by default
        yield "spec.completions: Required value: when completion mode is Indexed"
    if mode == "Indexed":
        longest = f"{made['metadata'].get('name', '')}-{(spec.get('completions') or 1) - 1}"
        if not _LABEL.match(longest):
            yield f'metadata.name: Invalid value: "{longest}": not a valid pod hostname'
    if spec.get("selector") and not spec.get("manualSelector"):
        yield "spec.selector: Invalid value: `selector` not auto-generated"
    pod = spec["template"].get("spec") or {}
    policy = pod.get("restartPolicy", "Always")
    if policy not in ("Never", "OnFailure"):
        yield f'spec.template.spec.restartPolicy: Required value: valid: "Never"; got "{policy}"'
    if "podFailurePolicy" in spec:
        yield from _failure_policy(spec, pod)
    yield from _labels(
        "spec.template.labels", (spec["template"].get("metadata") or {}).get("labels")
    )
    yield from _pod("spec.template.spec", pod)


def _failure_policy(spec: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    path = "spec.podFailurePolicy.rules"
    if pod.get("restartPolicy") != "Never":
        yield 'spec.podFailurePolicy: Invalid value: only "Never" is supported for restartPolicy'
    if spec.get("podReplacementPolicy", "Failed") != "Failed":
        yield 'spec.podReplacementPolicy: Unsupported value: supported values: "Failed"'
    rules = spec["podFailurePolicy"].get("rules") or ()
    if len(rules) > 20:
        yield f"{path}: Too many: {len(rules)}: must have at most 20 items"
    names = [container["name"] for container in pod.get("containers") or ()]
    for index, rule in enumerate(rules):
        where = f"{path}[{index}]"
        if rule.get("action") not in ("FailJob", "Ignore", "Count", "FailIndex"):
            yield f"{where}.action: Unsupported value"
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
        if bool(codes) == bool(conditions):
            yield f"{where}: Invalid value: one of OnExitCodes and OnPodConditions is required"
        if codes:
            yield from _exit_codes(f"{where}.onExitCodes", codes, names)
        for condition in conditions or ():
            if condition.get("status") not in ("True", "False", "Unknown"):
                yield f"{where}.onPodConditions.status: Required value"


def _exit_codes(path: str, codes: dict[str, Any], containers: list[str]) -> Iterator[str]:
    values = codes.get("values") or []
    if codes.get("operator") not in ("In", "NotIn"):
        yield f"{path}.operator: Unsupported value"
    if not 1 <= len(values) <= 255:
        yield f"{path}.values: Invalid value: at least one value is required"
    if values != sorted(values):
        yield f"{path}.values: Invalid value: must be ordered"
    if len(set(values)) != len(values):
        yield f"{path}.values: Duplicate value"
    if codes.get("operator") == "In" and 0 in values:
        yield f"{path}.values: Invalid value: must not be 0 for the In operator"
    name = codes.get("containerName")
    if name is not None and name not in containers:
        yield f'{path}.containerName: Invalid value: "{name}": must be one of the container names'


def _pod(path: str, spec: dict[str, Any]) -> Iterator[str]:
    containers = spec.get("containers") or []
    if not containers:
        yield f"{path}.containers: Required value"
    volumes = {volume["name"] for volume in spec.get("volumes") or ()}
    seen: set[str] = set()
    for index, container in enumerate(containers):
        where = f"{path}.containers[{index}]"
        name = container.get("name", "")
        if not _LABEL.match(name):
            yield f'{where}.name: Invalid value: "{name}"'
        if name in seen:
            yield f'{where}.name: Duplicate value: "{name}"'
        seen.add(name)
        if not container.get("image"):
            yield f"{where}.image: Required value"
        yield from _resources(f"{where}.resources", container.get("resources") or {})
        for variable in container.get("env") or ():
            if not _VARIABLE.match(variable["name"]):
                yield f'{where}.env[].name: Invalid value: "{variable["name"]}"'
            if variable.get("value") and variable.get("valueFrom"):
                yield f"{where}.env[].valueFrom: Invalid value: `value` is not empty"
        for mount in container.get("volumeMounts") or ():
            if mount["name"] not in volumes:
                yield f'{where}.volumeMounts[].name: Not found: "{mount["name"]}"'
    for field in ("hostname", "subdomain"):
        if spec.get(field) and not _LABEL.match(spec[field]):
            yield f'{path}.{field}: Invalid value: "{spec[field]}"'
    if (spec.get("terminationGracePeriodSeconds") or 0) < 0:
        yield f"{path}.terminationGracePeriodSeconds: Invalid value: must be >= 0"
    if (spec.get("activeDeadlineSeconds") or 1) < 1:
        yield f"{path}.activeDeadlineSeconds: Invalid value: must be between 1 and 2147483647"
    yield from _tolerations(path, spec.get("tolerations") or ())


def _tolerations(path: str, tolerations: Any) -> Iterator[str]:
    for each in tolerations:
        if each.get("operator", "Equal") not in ("Equal", "Exists"):
            yield f"{path}.tolerations[].operator: Unsupported value"
        if each.get("operator") == "Exists" and each.get("value"):
            yield f"{path}.tolerations[].operator: Invalid value: value must be empty"
        if not each.get("key") and each.get("operator", "Equal") != "Exists":
            yield f"{path}.tolerations[].operator: Invalid value: must be Exists"


def _resources(path: str, resources: dict[str, Any]) -> Iterator[str]:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for name, text in {**limits, **requests}.items():
        try:
            amount(text)
        except ValueError as error:
            yield f'{path}.limits[{name}]: Invalid value: "{text}": {error}'
            return
    for name in requests:
        if name in limits and amount(requests[name]) > amount(limits[name]):
            yield f'{path}.requests: Invalid value: "{requests[name]}": above the {name} limit'
    for name in {*limits, *requests} - set(_NATIVE):
        if name not in limits:
            # The server's own words, which do not say of what.
            words = "Limit must be set for non overcommitable resources"
            yield f"{path}.limits: Required value: {words}"
        elif requests.get(name, limits[name]) != limits[name]:
            yield f"{path}.requests: Invalid value: must be equal to {name} limit"
        elif amount(limits[name]) % 1:
            yield f"{path}.limits[{name}]: Invalid value: must be an integer"


_FIXED = ("selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy")
_SCHEDULING = ("nodeSelector", "tolerations", "affinity", "schedulingGates")


def _job_change(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    before, after = old["spec"], new["spec"]
    for field in _FIXED:
        if before.get(field) != after.get(field):
            yield f"spec.{field}: Invalid value: field is immutable"
    indexed = before.get("completionMode") == "Indexed"
    elastic = indexed and after.get("completions") == after.get("parallelism")
    if before.get("completions") != after.get("completions") and not elastic:
        yield "spec.completions: Invalid value: field is immutable"
    never_started = before.get("suspend") and "startTime" not in (old.get("status") or {})
    if _frozen(before["template"], never_started) != _frozen(after["template"], never_started):
        yield "spec.template: Invalid value: field is immutable"
    for field in ("parallelism", "backoffLimit", "activeDeadlineSeconds"):
        if (after.get(field) or 0) < 0:
            yield f"spec.{field}: Invalid value: must be greater than or equal to 0"


def _frozen(template: dict[str, Any], never_started: bool) -> Any:
    if not never_started:
        return template
    spec = {key: value for key, value in template["spec"].items() if key not in _SCHEDULING}
    return {"spec": spec}


def _pod_change(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    free = ("activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations")
    before = {key: value for key, value in old.items() if key not in free}
    after = {key: value for key, value in new.items() if key not in free}
    for spec in (before, after):
        spec["containers"] = [{**each, "image": ""} for each in spec["containers"]]
    if before != after:
        yield "spec: Forbidden: pod updates may not change this field"
