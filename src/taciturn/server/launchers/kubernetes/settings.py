"""Settings of the launcher, by the cluster's owner: one JSON file, which the Helm chart writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from taciturn.errors import SpecError

Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|k|[MGT]|[KMGT]i)?$")]
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]

_UNITS = {
    "": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40,
}  # fmt: skip


class _Setting(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pool(_Setting):
    """Machines of one kind.

    Attributes:
        gpus, gpu_memory: of one machine, and of one GPU.
        cpu, memory, ephemeral_storage: what one worker asks for; less than the machine has, since
            the cluster's own pods need some.
        node_selector, tolerations: what leads to these machines and no others.
        max_nodes: how many of them one job may have.
        whole_node: no other worker beside it. Always so where one takes all GPUs.
        scales: machines come for a job and go after it; if not, none is expected to go.
        release_s: how long after a job its machine may stay before that is worth a warning.
        price_per_hour: of one machine, in the `currency`.
    """

    name: str
    gpus: Annotated[int, Field(ge=0, le=16)] = 0
    gpu_memory: Quantity | Annotated[str, Field(max_length=0)] = ""
    cpu: Quantity = "2"
    memory: Quantity = "8Gi"
    ephemeral_storage: Quantity = "20Gi"
    node_selector: dict[str, str] = {}
    tolerations: tuple[dict[str, Any], ...] = ()
    max_nodes: Annotated[int, Field(ge=1, le=64)] = 1
    whole_node: bool = True
    scales: bool = True
    release_s: Annotated[float, Field(gt=0)] = 1200.0
    price_per_hour: Annotated[float, Field(ge=0)] = 0.0
    currency: str = "USD"

    @property
    def gpu_memory_bytes(self) -> float:
        """Memory of one GPU in bytes; 0 where there are none."""
        return amount(self.gpu_memory) if self.gpu_memory else 0.0

    @property
    def memory_bytes(self) -> float:
        """Memory of a worker outside of GPUs, in bytes."""
        return amount(self.memory)


class EgressRule(_Setting):
    """Rule of where workers may go besides the gateway: a store of data, models or results."""

    cidr: str
    ports: tuple[int, ...] = ()


class KubernetesSettings(_Setting):
    """One gateway's part of one namespace.

    Attributes:
        namespace: of the gateway and of all its workers.
        instance: tells this gateway's objects from those of others in the namespace.
        gateway_url: where workers find the gateway; empty: where everybody does. From outside it
            may be an ingress, which the workers' policy does not let them reach.
        image: of workers, with its tag.
        image_pull_secrets: names of Secrets by which the image is pulled.
        image_pull_policy: Always, IfNotPresent or Never.
        command: that starts a worker in the image.
        data_secret: a Secret of the data's owner whose keys become the worker's environment; only
            its name is known here.
        data_secrets: other such Secrets, by privacy namespace.
        signing_secret: a Secret with `key.pem`, which signs certificates.
        own_signing_key: without a signing_secret, make one at the first launch, named in `signing`,
            with `trust.json` in it for those who check certificates. It stays when all else goes.
        service_account: with the cloud's workload identity, if it has any. Its token for the API
            server is not mounted.
        workspace_claim: a volume (ReadWriteMany) for workspaces: checkpoints outlive a node, and a
            fit may have several machines.
        checkpoint_url: an object store for sealed copies of checkpoints, which outlive a node, too.
        checkpoint_secret: a Secret of the data's owner with TACITURN_CHECKPOINT_KEY, 64 hexadecimal
            digits, and maybe credentials of that store; only its name is known here.
        run_as: user and group, by number, that a worker's processes run as.
        grace_period_s: seconds that a pod has to end by itself.
        deadline_s: seconds after which a Job is ended, whatever it does.
        ttl_s: seconds that a finished Job stays at most.
        network_policy: let a worker reach names, the gateway, its own job's other workers and
            `egress`, and nothing else.
        retries: pods that may fail before the Job does; those that the cluster takes away do not
            count.
        shared_memory: room for exchange between the processes of a pod.
        start_s: how long the machines of a job may take; then it is given up as a whole.
        several: fits that ask for it (sharding="full", or several GPUs) are spread over the GPUs of
            a machine, and over machines, by torchrun.
        peer_limit_s: how long one of a fit's processes may give no sign of life.
        queue: of Kueue, which then decides when the job starts.
        egress: networks, each with ports, that workers may reach, such as those of the data.
        gateway_labels: of the gateway's pods, which workers may reach.
        gateway_port: at which they listen.
        rendezvous_port: at which the processes of one job meet.
        labels, annotations: for every pod, such as a cost centre.
        pools: machines that a worker may ask for, each with what it has and costs.
    """

    namespace: ObjectName = "default"
    instance: ObjectName = "taciturn"
    gateway_url: str = ""
    image: str = "taciturn/worker"
    image_pull_secrets: tuple[str, ...] = ()
    image_pull_policy: Annotated[str, Field(pattern="^(Always|IfNotPresent|Never)$")] = (
        "IfNotPresent"
    )
    command: tuple[str, ...] = ("python", "-m", "taciturn.worker")
    service_account: str = ""
    data_secret: str = ""
    data_secrets: dict[str, str] = {}
    signing_secret: str = ""
    own_signing_key: bool = True
    workspace_claim: str = ""
    checkpoint_url: str = ""
    checkpoint_secret: str = ""
    run_as: Annotated[int, Field(ge=1)] = 10001
    grace_period_s: Annotated[int, Field(ge=1)] = 120
    deadline_s: Annotated[int, Field(ge=1)] = 86_400
    ttl_s: Annotated[int, Field(ge=0)] = 600
    start_s: Annotated[int, Field(ge=1)] = 1800
    retries: Annotated[int, Field(ge=0, le=20)] = 3
    shared_memory: Quantity = "8Gi"
    several: bool = True
    peer_limit_s: Annotated[float, Field(ge=1, le=86_400)] = 120.0
    queue: str = ""
    network_policy: bool = True
    egress: tuple[EgressRule, ...] = ()
    gateway_labels: dict[str, str] = {}
    gateway_port: Annotated[int, Field(ge=1, le=65_535)] = 8321
    rendezvous_port: Annotated[int, Field(ge=1, le=65_535)] = 29_500
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    pools: Annotated[tuple[Pool, ...], Field(min_length=1)] = (Pool(name="cpu", whole_node=False),)

    @property
    def signing(self) -> str:
        """Name of the Secret with the signing key; empty for none."""
        own = f"{self.instance}-signing" if self.own_signing_key else ""
        return self.signing_secret or own

    @model_validator(mode="after")
    def _store_and_key(self) -> Self:
        if bool(self.checkpoint_url) != bool(self.checkpoint_secret):
            name = "checkpoint_url" if self.checkpoint_url else "checkpoint_secret"
            raise ValueError(
                f"{name} alone: copies of checkpoints need checkpoint_url, where they go, and "
                "checkpoint_secret, under whose key; give both or neither"
            )
        return self

    @classmethod
    def read(cls, path: Path) -> KubernetesSettings:
        """Read the file that TACITURN_KUBERNETES_CONFIG names; raises SpecError."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise SpecError(f"{path} cannot be read: {error.strerror}") from None
        except ValidationError as error:
            where = "; ".join(
                f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
                for problem in error.errors()
            )
            raise SpecError(f"{path} does not describe a launcher: {where}") from None

    @property
    def keeps(self) -> bool:
        """True if anything of a worker is left when its node is gone: a store, or a volume."""
        return bool(self.checkpoint_url or self.workspace_claim)

    def gateway_pods(self) -> dict[str, str]:
        """Labels of the gateway's own pods."""
        return self.gateway_labels or {
            "app.kubernetes.io/instance": self.instance,
            "app.kubernetes.io/component": "gateway",
        }


def amount(quantity: str) -> float:
    """The number that a quantity such as `80Gi` is."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]*)", quantity)
    if match is None or match[2] not in _UNITS:
        raise SpecError(f"{quantity!r} is no quantity; write for example 80Gi")
    return float(match[1]) * _UNITS[match[2]]
