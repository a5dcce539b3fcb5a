"""The proof that a worker's nodes are gone, with what they cost; or the reason why they are not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import ceil
from typing import Literal

from taciturn.server.launchers.kubernetes.client import (
    Cluster,
    ClusterError,
    Kind,
    Object,
    parse_time,
)
from taciturn.server.launchers.kubernetes.machines import Machines, Use
from taciturn.server.launchers.kubernetes.names import Worker
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings, Pool
from taciturn.server.launchers.kubernetes.status import WorkerStatus
from taciturn.wire.machines import MachineUse

log = logging.getLogger("taciturn.server.launchers.kubernetes")

_GIVE_UP_S = 7 * 86_400.0
_TERMINAL = ("Succeeded", "Failed")
_PINS = {
    "cluster-autoscaler.kubernetes.io/scale-down-disabled": "true",
    "karpenter.sh/do-not-disrupt": "true",
}
_KEEPS = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}

Tell = Callable[[Worker, WorkerStatus], None]


@dataclass(frozen=True, slots=True)
class MachineCharge:
    """Use of a node by a worker, and its cost.

    Attributes:
        seconds: whole minutes: how long a worker took to the second is not for everybody.
        at_most: nobody was there to see when it ended.
    """

    seconds: int
    price_per_hour: float
    currency: str
    at_most: bool

    @property
    def cost(self) -> float:
        """Cost by the pool's price."""
        return round(self.seconds * self.price_per_hour / 3600, 4)

    def use(self, node: str, outcome: Literal["released", "kept", "reused"]) -> MachineUse:
        """Use of the machine, as it is shown with the job."""
        priced = self.price_per_hour > 0
        return MachineUse(
            node=node,
            ended=outcome,
            node_seconds=self.seconds,
            at_most=self.at_most,
            cost=self.cost if priced else None,
            currency=self.currency if priced else None,
        )

    def __str__(self) -> str:
        limit = "at most " if self.at_most else ""
        cost = f", {self.cost:.2f} {self.currency}" if self.price_per_hour else ""
        return f"{limit}{self.seconds} node-seconds{cost}"


@dataclass
class MachineRelease:
    """Watches nodes go."""

    cluster: Cluster
    settings: KubernetesSettings
    machines: Machines
    tell: Tell
    _present: set[str] = field(default_factory=set)
    _running: set[Worker] = field(default_factory=set)

    def check(
        self, worker: Worker, over: bool, nodes: Mapping[str, Object] | None, now: datetime
    ) -> None:
        """Look at each node that a worker had.

        Args:
            over: nothing of the worker runs any more, and nothing will.
            nodes: by name; None where the gateway may not see nodes.
        """
        if not over:
            self._running.add(worker)
        for use in list(self.machines.uses.get(worker, {}).values()):
            if not use.settled:
                self._check(worker, use, over, nodes, now)
        uses = self.machines.uses.get(worker)
        if over and uses is not None and all(use.settled for use in uses.values()):
            self.machines.finish(worker)
            self._running.discard(worker)

    def _check(
        self,
        worker: Worker,
        use: Use,
        over: bool,
        nodes: Mapping[str, Object] | None,
        now: datetime,
    ) -> None:
        pool = next((item for item in self.settings.pools if item.name == use.pool), None)
        node = None if nodes is None else nodes.get(use.node)
        # Of a node that was not seen when it was there, nobody can say that it is gone.
        is_watched = nodes is not None and use.uid != ""
        if is_watched and (node is None or node["metadata"]["uid"] != use.uid):
            # One that went while no gateway looked may have gone long ago.
            bill = self._bill(use, pool, now, at_most=use.uid not in self._present)
            text = f"machine {use.node} is gone: {bill}"
            self._settle(worker, use, "node.released", text, bill.use(use.node, "released"))
            return
        if node is not None:
            self._present.add(use.uid)
        if not over:
            return
        if not is_watched:
            self._settle(
                worker, use, "node.unseen",
                f"whether machine {use.node} is gone cannot be seen: allow the gateway to get, "
                "list and watch nodes",
            )  # fmt: skip
        elif pool is None or not pool.scales:
            bill = self._bill(use, pool, now, at_most=worker not in self._running)
            text = f"machine {use.node} is free again: {bill}"
            self._settle(worker, use, "node.kept", text, bill.use(use.node, "kept"))
        elif self._reused(worker, use):
            bill = self._bill(use, pool, now, at_most=worker not in self._running)
            text = f"machine {use.node} serves another job now: {bill}"
            self._settle(worker, use, "node.reused", text, bill.use(use.node, "reused"))
        elif not use.over:
            self.machines.change(worker, use, over=now.isoformat(timespec="seconds"))
        else:
            assert node is not None
            self._late(worker, use, pool, node, now)

    def _late(self, worker: Worker, use: Use, pool: Pool, node: Object, now: datetime) -> None:
        waited_s = (now - parse_time(use.over)).total_seconds()
        if waited_s > _GIVE_UP_S:
            self._settle(
                worker,
                use,
                "node.forgotten",
                f"machine {use.node} stays; it is not watched any longer",
            )
        elif waited_s > pool.release_s and not use.warned:
            why = self.obstacle(node)
            self.tell(
                worker, WorkerStatus("node.stays", f"machine {use.node} is still there: {why}")
            )
            self.machines.change(worker, use, warned=True)

    def _settle(
        self, worker: Worker, use: Use, code: str, text: str, bill: MachineUse | None = None
    ) -> None:
        """First say it, then write that down: a crash in between makes it said twice, never not."""
        log.info("%s of %s: %s", code, worker.handle, text)
        self.tell(worker, WorkerStatus(code, text, bill))
        self.machines.change(worker, use, settled=True)

    def _bill(self, use: Use, pool: Pool | None, now: datetime, *, at_most: bool) -> MachineCharge:
        seconds = 60 * ceil(max(0.0, (now - parse_time(use.since)).total_seconds()) / 60)
        price, currency = (pool.price_per_hour, pool.currency) if pool else (0.0, "")
        return MachineCharge(seconds, price, currency, at_most)

    def _reused(self, worker: Worker, use: Use) -> bool:
        other_uses = (
            uses[use.node]
            for other, uses in self.machines.uses.items()
            if other != worker and use.node in uses
        )
        return any(
            other_use.uid == use.uid
            and other_use.since >= use.since
            and not other_use.over
            and not other_use.settled
            for other_use in other_uses
        )

    def obstacle(self, node: Object) -> str:
        """Reason why a node does not go, as far as can be seen, and what would help."""
        metadata = node["metadata"]
        finalizers = metadata.get("finalizers") or ()
        if "deletionTimestamp" in metadata and finalizers:
            return (
                f"it is being deleted and held by {', '.join(finalizers)}; look at that controller"
            )
        for key, value in (metadata.get("annotations") or {}).items():
            if _PINS.get(key) == value:
                return f"it is annotated {key}={value}; remove the annotation"
        blocking = self._blocking(metadata["name"])
        if blocking:
            return f"pods keep it: {', '.join(blocking[:3])}; move them to another pool"
        return (
            "the autoscaler has not removed it; check that its node group may shrink to 0 and its "
            "scale-down delay"
        )

    def _blocking(self, node: str) -> list[str]:
        """Pods that an autoscaler does not move; those of our own namespace, if no more is seen."""
        fields = f"spec.nodeName={node}"
        try:
            pods, _ = self.cluster.list(Kind.PODS, fields=fields, everywhere=True)
        except ClusterError:
            try:
                pods, _ = self.cluster.list(Kind.PODS, fields=fields)
            except ClusterError:
                return []
        return [
            f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            for pod in pods
            if _keeps_node(pod)
        ]


def _keeps_node(pod: Object) -> bool:
    metadata = pod["metadata"]
    if pod["status"].get("phase") in _TERMINAL:
        return False
    owners = metadata.get("ownerReferences") or ()
    if any(owner["kind"] in ("DaemonSet", "Node") for owner in owners):
        return False
    annotations = metadata.get("annotations") or {}
    pinned = any(annotations.get(key) == value for key, value in _KEEPS.items())
    return pinned or not owners
