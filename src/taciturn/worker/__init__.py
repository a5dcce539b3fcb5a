"""Runs one job of a gateway, where the data is.

    python -m taciturn.worker        told what to do by TACITURN_* variables (`settings.py`)

A worker reads private rows, and is the only process of a gateway that does. What it says goes
through one object, the `Egress`, which knows the types of `taciturn.wire` and nothing else: an
event without room for free text, a file whose name and content are on a list, a code from a fixed
list.
The full log of a failure goes out as an incident, which the data's owner alone can read.
"""
