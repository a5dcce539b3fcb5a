"""Values between SDK, gateway and worker: plain, and the source of the OpenAPI document.

Nothing here opens a file, a socket or a database. Of a worker's messages, `events` and `artifacts`
are the allow-list: what they do not name does not leave the place where the data is.
"""
