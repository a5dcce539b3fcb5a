"""Notifications of people, by e-mail and webhook.

`outbox` keeps what happened, in the transaction in which it happens. `watch` finds what time and
budgets bring. `messages` says who may know of it, and in which words. `delivery`, in the leader
alone, addresses and sends it, through `mail` and `webhooks`. `preferences` is what people choose.
"""
