"""A client of a gateway in memory."""

from __future__ import annotations

import pytest

from support.fake_gateway import TOKEN, URL, FakeApi
from taciturn.sdk.client import Client
from taciturn.sdk.transport import Patience

HASTE = Patience(attempts=3, first_wait_s=0.0, longest_wait_s=0.0)


@pytest.fixture
def fake() -> FakeApi:
    """The gateway."""
    return FakeApi()


@pytest.fixture
def client(fake: FakeApi) -> Client:
    """A client that does not wait between attempts."""
    return Client(URL, TOKEN, patience=HASTE, http=fake.http(), environment={})
