"""Workers as Jobs of a Kubernetes cluster, each on a machine that is made for it and goes after it.

settings.py   what the cluster's owner tells: namespace, image, pools of machines, prices
sizing.py     which machine a job needs
manifests.py  the objects of one worker: Job, Service, Secret, NetworkPolicy
pods.py       its pods
cluster.py    the few calls to the API server, each of which may be repeated
launcher.py   the port: launch, status, stop, alive, left, forget
watching.py   what changes, from watches that resume
story.py      what that means, in words for people, with a remedy
machines.py   which nodes a worker had, kept where a restart finds it
release.py    the proof that they are gone, and what they cost
reaper.py     what belongs to no job any more
monitor.py    all of that, running beside the gateway
needs.py      what a job needs, from the gateway's database
news.py       what the monitor tells, into the gateway's database
opening.py    all of it, from the gateway's settings
"""
