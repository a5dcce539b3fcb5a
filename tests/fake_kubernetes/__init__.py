"""Fake Kubernetes cluster: API server, controllers, scheduler, kubelet, autoscaler.

It is worth what it copies. What it serves is plain HTTP for the official client; what it refuses,
and with which status, is as Kubernetes 1.36 does. Pods run their command as a process of this
machine. Time is `speed` times faster than on the wall, so that a back-off of ten seconds passes in
half a second. `tests/contracts/kubernetes` runs against it and against real clusters.
"""
