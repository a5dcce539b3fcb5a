"""What a browser is shown, and where it is never sent."""

from __future__ import annotations

import pytest

from support.gateway import GatewayWorld
from taciturn.wire.identity import Role


@pytest.mark.parametrize("path", ["/v1/self/", "/v1/users/", "/openai/v1/models/", "/v1//self"])
def test_no_answer_leads_where_the_requests_host_says(lite: GatewayWorld, path: str) -> None:
    root = lite.person("root", Role.ADMIN)
    headers = {**root, "Host": "evil.example"}
    answer = lite.client.get(path, headers=headers, follow_redirects=False)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "evil" not in str(answer.headers)


def test_a_form_of_too_many_fields_is_no_failure(lite: GatewayWorld) -> None:
    for form in ("&".join(f"a{n}=1" for n in range(50)), "link=%ff", "", "link=a&password=b"):
        answer = lite.client.post("/v1/password", content=form.encode())
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
