"""What the launcher takes for granted of an API server."""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest
from kubernetes import client
from kubernetes.client import ApiException

from support.kubernetes_namespace import IMAGE, ClusterWorld

GPU = "nvidia.com/gpu"


def a_name() -> str:
    return f"a-{secrets.token_hex(4)}"


def config_map(name: str | None, **metadata: Any) -> client.V1ConfigMap:
    return client.V1ConfigMap(
        metadata=client.V1ObjectMeta(name=name, **metadata), data={"key": "value"}
    )


def job(name: str, code: str = "pass", **spec: Any) -> dict[str, Any]:
    """A Job as plain JSON, so that wrong ones can be sent."""
    pod = {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 5,
        "containers": [{
            "name": "worker", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
            "command": ["python", "-c", code],
        }],
    }  # fmt: skip
    return {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"template": {"spec": pod}, **spec},
    }  # fmt: skip


def send(world: ClusterWorld, body: dict[str, Any], **query: str) -> tuple[int, str]:
    """What the client's own models would refuse before it is sent."""
    request = world.api.param_serialize(
        method="POST",
        resource_path=f"/apis/batch/v1/namespaces/{world.namespace}/jobs",
        query_params=list(query.items()),
        header_params={"Content-Type": "application/json", "Accept": "application/json"},
        body=body,
        auth_settings=["BearerToken"],
    )
    response = world.api.call_api(*request)
    return response.status, response.read().decode()


def refusal(world: ClusterWorld, body: dict[str, Any], **more: Any) -> ApiException:
    with pytest.raises(ApiException) as caught:
        world.batch.create_namespaced_job(world.namespace, body, **more)
    return caught.value


def test_the_server_writes_what_only_it_knows(world: ClusterWorld) -> None:
    made = world.core.create_namespaced_config_map(world.namespace, config_map(a_name()))
    assert made.metadata.uid
    assert int(made.metadata.resource_version) > 0
    assert abs((made.metadata.creation_timestamp - world.now()).total_seconds()) < 60


def test_generated_names_differ(world: ClusterWorld) -> None:
    made = [
        world.core.create_namespaced_config_map(
            world.namespace, config_map(None, generate_name="gen-")
        ).metadata.name
        for _ in range(3)
    ]
    assert len(set(made)) == 3
    assert all(name.startswith("gen-") for name in made)


def test_a_name_is_taken_once(world: ClusterWorld) -> None:
    name = a_name()
    world.core.create_namespaced_config_map(world.namespace, config_map(name))
    with pytest.raises(ApiException) as caught:
        world.core.create_namespaced_config_map(world.namespace, config_map(name))
    assert (caught.value.status, "AlreadyExists" in caught.value.body) == (409, True)


def test_an_old_version_cannot_be_written(world: ClusterWorld) -> None:
    found = world.core.create_namespaced_config_map(world.namespace, config_map(a_name()))
    name = found.metadata.name
    found.data = {"key": "second"}
    world.core.replace_namespaced_config_map(name, world.namespace, found)
    with pytest.raises(ApiException) as caught:
        world.core.replace_namespaced_config_map(name, world.namespace, found)
    assert (caught.value.status, "Conflict" in caught.value.body) == (409, True)


def test_what_is_not_there(world: ClusterWorld) -> None:
    with pytest.raises(ApiException) as caught:
        world.core.read_namespaced_config_map("nothing", world.namespace)
    assert caught.value.status == 404
    with pytest.raises(ApiException) as caught:
        world.core.create_namespaced_config_map("no-such-namespace", config_map(a_name()))
    assert caught.value.status == 404


def test_selectors(world: ClusterWorld) -> None:
    mark = a_name()
    for name, colour in (("one", "red"), ("two", "blue"), ("three", "red")):
        labels = {"mark": mark, "colour": colour}
        world.core.create_namespaced_config_map(
            world.namespace, config_map(f"{mark}-{name}", labels=labels)
        )

    def names(**query: str) -> set[str]:
        found = world.core.list_namespaced_config_map(world.namespace, **query).items
        return {each.metadata.name.removeprefix(f"{mark}-") for each in found}

    assert names(label_selector=f"mark={mark},colour=red") == {"one", "three"}
    assert names(label_selector=f"mark={mark},colour!=red") == {"two"}
    assert names(label_selector=f"mark in ({mark}),colour notin (blue)") == {"one", "three"}
    assert names(label_selector=f"mark={mark},!size") == {"one", "two", "three"}
    assert names(field_selector=f"metadata.name={mark}-two") == {"two"}
    with pytest.raises(ApiException) as caught:
        world.core.list_namespaced_config_map(world.namespace, field_selector="data.key=value")
    assert caught.value.status == 400


def test_pages(world: ClusterWorld) -> None:
    mark = a_name()
    for number in range(5):
        world.core.create_namespaced_config_map(
            world.namespace, config_map(f"{mark}-{number}", labels={"mark": mark})
        )
    query = {"label_selector": f"mark={mark}", "limit": 2}
    page = world.core.list_namespaced_config_map(world.namespace, **query)
    names = [each.metadata.name for each in page.items]
    world.core.delete_namespaced_config_map(f"{mark}-4", world.namespace)
    while page.metadata._continue:
        page = world.core.list_namespaced_config_map(
            world.namespace, **query, _continue=page.metadata._continue
        )
        names += [each.metadata.name for each in page.items]
    # One list is of one moment: what was deleted meanwhile is still in it.
    assert names == [f"{mark}-{number}" for number in range(5)]


def test_a_merge_patch_changes_what_it_names(world: ClusterWorld) -> None:
    found = world.core.create_namespaced_config_map(world.namespace, config_map(a_name()))
    change = {"data": {"other": "x", "key": None}, "metadata": {"annotations": {"note": "a"}}}
    patched = world.core.patch_namespaced_config_map(
        found.metadata.name, world.namespace, change, _content_type="application/merge-patch+json"
    )
    assert patched.data == {"other": "x"}
    assert patched.metadata.annotations == {"note": "a"}
    assert patched.metadata.uid == found.metadata.uid


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spec": {"backoffLimits": 1}}, "backoffLimits"),
        ({"spec": {"template": {"spec": {"contaners": []}}}}, "contaners"),
        ({"spec": {"backoffLimit": "three"}}, "backoffLimit"),
        ({"spec": {"suspend": "yes"}}, "suspend"),
        ({"spec": {"template": {"spec": {"containers": {}}}}}, "containers"),
    ],
)
def test_unknown_and_mistyped_fields(
    world: ClusterWorld, change: dict[str, Any], words: str
) -> None:
    body = merged(job(a_name()), change)
    status, said = send(world, body, fieldValidation="Strict")
    assert status == 400
    assert words in said


def test_an_indexed_job_without_numbers_has_one_of_each(world: ClusterWorld) -> None:
    made = world.batch.create_namespaced_job(
        world.namespace, job(a_name(), suspend=True, completionMode="Indexed")
    )
    assert (made.spec.completions, made.spec.parallelism) == (1, 1)


def test_an_unknown_field_is_dropped_without_strict(world: ClusterWorld) -> None:
    body = merged(job(a_name(), suspend=True), {"spec": {"backoffLimits": 1}})
    status, said = send(world, body)
    assert status == 201
    assert json.loads(said)["spec"]["backoffLimit"] == 6
    assert "backoffLimits" not in said


CODES = {"containerName": "worker", "operator": "In", "values": [3]}


def policy(**rule: Any) -> dict[str, Any]:
    return {"spec": {"podFailurePolicy": {"rules": [{"action": "FailJob", **rule}]}}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metadata": {"name": "Capital"}}, "metadata.name"),
        ({"metadata": {"labels": {"a": "not a label"}}}, "metadata.labels"),
        ({"spec": {"backoffLimit": -1}}, "backoffLimit"),
        ({"spec": {"completionMode": "Indexed", "parallelism": 1}}, "completions"),
        ({"spec": {"completionMode": "Sorted"}}, "completionMode"),
        ({"spec": {"template": {"spec": {"restartPolicy": "Always"}}}}, "restartPolicy"),
        ({"spec": {"selector": {"matchLabels": {"a": "b"}}}}, "selector"),
        ({"spec": {"template": {"spec": {"containers": []}}}}, "containers"),
        ({"spec": {"template": {"spec": {"containers": [{"name": "a b", "image": "i"}]}}}}, "name"),
        ({"spec": {"template": {"spec": {"containers": [{"name": "a"}]}}}}, "image"),
        (policy(onExitCodes={**CODES, "values": [0]}), "values"),
        (policy(onExitCodes={**CODES, "values": [4, 3]}), "values"),
        (policy(onExitCodes={**CODES, "containerName": "other"}), "containerName"),
        (policy(), "podFailurePolicy"),
        ({"spec": {**policy(onExitCodes=CODES)["spec"],
                                    "podReplacementPolicy": "TerminatingOrFailed"}},
         "podReplacementPolicy"),
    ],
)  # fmt: skip
def test_what_makes_no_sense(world: ClusterWorld, change: dict[str, Any], words: str) -> None:
    error = refusal(world, merged(job(a_name()), change))
    assert error.status == 422
    assert words in error.body


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"requests": {GPU: "1"}}, "resources.limits"),
        ({"limits": {GPU: "1"}, "requests": {GPU: "2"}}, GPU),
        ({"limits": {GPU: "500m"}}, GPU),
        ({"limits": {"memory": "1Gi"}, "requests": {"memory": "2Gi"}}, "memory"),
    ],
)  # fmt: skip
def test_resources_that_make_no_sense(world: ClusterWorld, resources: Any, words: str) -> None:
    body = job(a_name())
    body["spec"]["template"]["spec"]["containers"][0]["resources"] = resources
    error = refusal(world, body)
    assert error.status == 422
    assert words in error.body


def test_a_template_does_not_change(world: ClusterWorld) -> None:
    name = a_name()
    world.batch.create_namespaced_job(world.namespace, job(name, suspend=True))
    image = [{"name": "worker", "image": "other"}]
    for change in (
        {"spec": {"template": {"spec": {"containers": image}}}},
        {"spec": {"completions": 2}},
        {"spec": {"completionMode": "Indexed"}},
    ):
        with pytest.raises(ApiException) as caught:
            merge(world, name, change)
        assert (caught.value.status, "immutable" in caught.value.body) == (422, True)
    assert (
        merge(world, name, {"spec": {"activeDeadlineSeconds": 9}}).spec.active_deadline_seconds == 9
    )


def test_an_owner_takes_its_own_along(world: ClusterWorld) -> None:
    owner = world.batch.create_namespaced_job(world.namespace, job(a_name(), suspend=True))
    name = owner.metadata.name
    reference = client.V1OwnerReference(
        api_version="batch/v1", kind="Job", name=name, uid=owner.metadata.uid,
        block_owner_deletion=True,
    )  # fmt: skip
    world.core.create_namespaced_config_map(
        world.namespace, config_map(name, owner_references=[reference])
    )
    world.batch.delete_namespaced_job(name, world.namespace, propagation_policy="Foreground")
    world.until(lambda: gone(world.core.read_namespaced_config_map, name, world.namespace))
    world.until(lambda: gone(world.batch.read_namespaced_job, name, world.namespace))


def test_whose_owner_never_was_goes(world: ClusterWorld) -> None:
    name = a_name()
    reference = client.V1OwnerReference(
        api_version="batch/v1", kind="Job", name=name, uid="00000000-0000-4000-8000-000000000000"
    )
    world.core.create_namespaced_config_map(
        world.namespace, config_map(name, owner_references=[reference])
    )
    world.until(lambda: gone(world.core.read_namespaced_config_map, name, world.namespace))


def test_a_finalizer_holds(world: ClusterWorld) -> None:
    name = a_name()
    made = config_map(name, finalizers=["taciturn.dev/test"])
    world.core.create_namespaced_config_map(world.namespace, made)
    world.core.delete_namespaced_config_map(name, world.namespace)
    held = world.core.read_namespaced_config_map(name, world.namespace)
    assert held.metadata.deletion_timestamp
    world.core.patch_namespaced_config_map(
        name, world.namespace, {"metadata": {"finalizers": None}},
        _content_type="application/merge-patch+json",
    )  # fmt: skip
    world.until(lambda: gone(world.core.read_namespaced_config_map, name, world.namespace))


def test_a_uid_keeps_a_namesake_safe(world: ClusterWorld) -> None:
    name = a_name()
    world.core.create_namespaced_config_map(world.namespace, config_map(name))
    wrong = client.V1Preconditions(uid="00000000-0000-4000-8000-000000000000")
    with pytest.raises(ApiException) as caught:
        world.core.delete_namespaced_config_map(
            name, world.namespace, body=client.V1DeleteOptions(preconditions=wrong)
        )
    assert caught.value.status == 409


def test_secrets_are_base64_and_immutable_if_they_say_so(world: ClusterWorld) -> None:
    name = a_name()
    made = client.V1Secret(
        metadata=client.V1ObjectMeta(name=name), string_data={"key": "words"}, immutable=True
    )
    stored = world.core.create_namespaced_secret(world.namespace, made)
    assert stored.data == {"key": "d29yZHM="}
    with pytest.raises(ApiException) as caught:
        world.core.patch_namespaced_secret(
            name, world.namespace, {"data": {"key": "eA=="}},
            _content_type="application/merge-patch+json",
        )  # fmt: skip
    assert caught.value.status == 422


def merged(body: Any, change: Any) -> Any:
    """RFC 7396, but a null stays."""
    if not isinstance(change, dict) or not isinstance(body, dict):
        return change
    return {**body, **{name: merged(body.get(name), value) for name, value in change.items()}}


def merge(world: ClusterWorld, name: str, change: Any) -> client.V1Job:
    return world.batch.patch_namespaced_job(
        name, world.namespace, change, _content_type="application/merge-patch+json"
    )


def gone(read: Any, *args: Any) -> bool:
    try:
        read(*args)
    except ApiException as error:
        return bool(error.status == 404)
    return False
