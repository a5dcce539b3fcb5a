"""The comparison of models of one base: which are offered, and to whom."""

from __future__ import annotations

import re

from support.console import look
from support.gateway import MODEL, GatewayWorld
from taciturn.server.console.rendering import FOLDER
from taciturn.wire.values import PolicyLine

NONE = PolicyLine(kind="no guarantee", text="no guarantee (approved by bea, otto)")


def make(world: GatewayWorld, who: str = "paul", **columns: str) -> str:
    job = world.add_job("fit", state="succeeded", requester=who)
    return world.add_model(job, owner_id=world.users[who], **columns)


def offered(world: GatewayWorld, who: str, model: str) -> dict[str, bool]:
    """The models of the page, and whether each is chosen at first."""
    text = look(world, who, f"/models/{model}/comparison").text
    boxes = re.findall(r'<input type="checkbox"([^>]*?) data-model="([^"]*)"', text)
    return {name: "checked" in flags for flags, name in boxes}


def test_models_of_the_same_base_are_offered(console: GatewayWorld) -> None:
    private = make(console)
    open_one = make(console, policy=NONE.model_dump_json())
    older = make(console)
    other_base = make(console, base_model="other/base")
    chosen = offered(console, "paul", private)
    assert chosen == {f"{private}:base": True, open_one: True, private: True, older: False}
    assert other_base not in chosen
    order = list(chosen)
    assert order.index(open_one) < order.index(private), "base, without privacy, with it"


def test_nobody_is_offered_a_model_that_is_not_theirs(console: GatewayWorld) -> None:
    """Also where it has no guarantee: what its words are coloured by is theirs who have its
    files."""
    hers = make(console, "petra", policy=NONE.model_dump_json())
    his = make(console, "paul")
    assert hers not in offered(console, "paul", his)
    assert set(offered(console, "olga", his)) == {f"{his}:base", hers, his}, "she owns the data"
    assert look(console, "paul", f"/models/{hers}/comparison").status_code == 404
    for who in ("paul", "petra"):
        model = hers if who == "paul" else his
        for name in (model, f"{model}:base"):
            body = {"model": name, "prompt": "A", "max_tokens": 0, "echo": True, "logprobs": 0}
            answer = console.client.post(
                "/openai/v1/completions", json=body, headers=console.headers(who)
            )
            assert answer.status_code == 404, name


def test_a_base_costs_nothing_and_says_what_it_is(console: GatewayWorld) -> None:
    model = make(console)
    body = {"kind": "sample", "model": model, "prompts": ["A"], "base": True}
    answer = console.ask("paul", "POST", "/plans", body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["policy"] == {
        "kind": "public",
        "text": "public (base model, no private data)",
    }
    assert answer.json()["share_of_budget"] is None


def test_the_script_writes_text_and_no_markup() -> None:
    """Prompts and answers of models reach the page as text nodes."""
    script = (FOLDER / "static" / "models.js").read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|\.style\b", script
    )
    assert not re.search(r"localStorage|sessionStorage", script)
    assert MODEL not in script
