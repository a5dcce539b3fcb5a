"""The console: pages for people with a browser, over the same services as the REST API.

A page asks the services as its reader, and shows what they answer; nothing is decided here. Pages
work without network access: scripts and styles are served from this folder.
"""
