"""Workers as Jobs of a Kubernetes cluster, each on a machine that is made for it and goes after it.

settings.py   what the cluster's owner configures: namespace, image, pools of machines, prices
sizing.py     machine that a job needs, from public facts
manifests.py  objects of one worker: Job, Service, Secret, NetworkPolicy
pods.py       its pods
names.py      names of a worker's objects
client.py     calls to the API server, each of which may be repeated
launcher.py   launch, status, stop, alive, leftover_jobs, forget
informer.py   changes, from watches that resume
status.py     their meaning, in words for people, with a remedy
machines.py   nodes of each worker, kept where a restart finds them
release.py    proof that they are gone, and what they cost
garbage.py    removal of what belongs to no job any more
monitor.py    all of that, running beside the gateway
events.py     status of workers as events of their jobs
preflight.py  checks before the first job, for `taciturn doctor --kubernetes`
factory.py    launcher and monitor, from the gateway's settings
"""
