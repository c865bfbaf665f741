"""What people read after `helm install`."""

from __future__ import annotations

import pytest

from rendered import CHART, SIMULATED, run


def notes(values: str, *settings: str) -> str:
    file = SIMULATED.with_name(f"{values}.yaml")
    given = [word for setting in settings for word in ("--set", setting)]
    done = run("install", "bridge", str(CHART), "-n", "calls", "--dry-run=client", "-f", str(file), *given)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:")[2]


@pytest.mark.parametrize(
    ("values", "settings", "url"),
    [
        ("ingress", (), "wss://calls.example.com/"),
        ("ingress", ("ingress.tlsSecret=",), "ws://calls.example.com/"),
        ("gateway", (), "wss://calls.example.com/"),
        ("gateway", ("gateway.hostnames={*.example.com}",), "a name of yours for the star"),
        ("simulated", ("edge.service.type=LoadBalancer",), "get service bridge-edge"),
        ("simulated", ("edge.service.type=NodePort",), ".spec.ports[0].nodePort"),
        ("simulated", (), "not reachable from outside yet"),
    ],
)
def test_they_say_what_to_put_into_live_hub(values: str, settings: tuple[str, ...], url: str) -> None:
    [line] = [line for line in notes(values, *settings).splitlines() if line.strip().startswith("Bot URL")]
    assert url in notes(values, *settings)
    assert url in line or "service.type" in settings[0]
    assert ("not reachable" in line) == ("not reachable" in url)


@pytest.mark.parametrize(
    ("values", "secret"),
    [("simulated", "bridge-access"), ("existing-secrets", "their-tokens"), ("hpa", "bridge-access")],
)
def test_they_say_how_to_read_the_token_and_do_not_show_it(values: str, secret: str) -> None:
    assert f"kubectl -n calls get secret {secret} -o jsonpath='{{.data.ac-token}}'" in notes(values)


def test_they_name_the_issuer_of_tokens_and_offer_no_test_call_without_a_token_of_ours() -> None:
    told = notes("oidc")
    assert "OAuth 2.0 tokens of https://login.example.com/tenant/v2.0 for api://bridge" in told
    assert "ac-token" not in told
    assert "helm -n calls test" not in told
    assert "helm -n calls test" in notes("oidc", "access.tokens={one}")


def test_they_shout_when_everybody_can_call_or_the_agent_only_pretends() -> None:
    assert "EVERYBODY WHO REACHES THE PORT CAN PLACE CALLS" in notes("old-cluster")
    assert "A SIMULATED AGENT ANSWERS THE CALLS" in notes("simulated")
    quiet = notes("existing-secrets")
    assert "EVERYBODY" not in quiet
    assert "SIMULATED" not in quiet


def test_they_offer_scaling_by_hand_only_where_nothing_scales_by_itself() -> None:
    assert "scale deployment bridge-worker --replicas=5" in notes("simulated")
    assert "--replicas" not in notes("hpa")


@pytest.mark.parametrize(
    ("values", "settings", "secret"),
    [("simulated", ("access.adminToken=op",), "bridge-access"), ("existing-secrets", (), "their-tokens")],
)
def test_they_say_how_to_reach_the_page_and_the_api_and_where_their_token_is(
    values: str, settings: tuple[str, ...], secret: str
) -> None:
    told = notes(values, *settings)
    assert "kubectl -n calls port-forward service/bridge-admin 9090" in told
    assert f"get secret {secret} -o jsonpath='{{.data.admin-token}}'" in told
    assert "set access.adminToken" not in told


def test_without_an_admin_token_they_say_that_one_must_be_set_first() -> None:
    told = notes("simulated")
    assert "set access.adminToken and upgrade" in told
    assert ".data.admin-token" not in told
