"""What a hostile page, network, store or neighbour tries on the running service."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from azaion_devkit.fault_proxy import FaultProxy, Rule
from azaion_devkit.mutant import mutant
from azaion_devkit.resource_rig import EMAIL, PASSWORD, ResourceRig, pattern

pytestmark = [pytest.mark.store, pytest.mark.family("attacks")]

BODY = {"email": EMAIL, "password": PASSWORD}
LOCKED_S = 30


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ResourceRig]:
    with ResourceRig(tmp_path, separate=True, environment={"ALLOWED_HOSTS": "127.0.0.1, localhost"}) as rig:
        yield rig


def code(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("code", "")


def load(rig: ResourceRig, name: str = "m.bin") -> requests.Response:
    return requests.post(f"{rig.url}/load/{name}", json={"filename": name, "folder": "models"}, timeout=60)


def publish(rig: ResourceRig, plain: bytes) -> None:
    assert requests.post(f"{rig.url}/upload/m.bin", files={"data": ("m.bin", plain)}, timeout=60).ok


def check_sites(rig: ResourceRig) -> int:
    """Drive every call that changes state from another site; nothing may reach the Resource API."""
    calls = len(rig.api.calls)
    hostile = [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://localhost.evil.example:{rig.url.rpartition(':')[2]}"},
        {"Origin": rig.url.rpartition(":")[0]},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ]
    tried = 0
    for path in ("/login", "/unlock", "/load/m.bin", "/upload/m.bin"):
        for headers in hostile:
            answer = requests.post(rig.url + path, json=BODY, headers=headers, timeout=10)
            assert code(answer) == (403, "cross_site"), (path, headers)
            tried += 1
        for host in ("evil.example", "127.0.0.1.evil.example", "[::1]"):
            answer = requests.post(rig.url + path, json=BODY, headers={"Host": host}, timeout=10)
            assert code(answer) == (403, "host_not_allowed"), (path, host)
            tried += 1
    assert len(rig.api.calls) == calls
    return tried


def test_other_sites_and_hosts_change_nothing(rig: ResourceRig, tally: Callable[[int], None]) -> None:
    tally(check_sites(rig))


def check_mixes(rig: ResourceRig) -> int:
    """Join every small part with every big part that there ever was; only those of one upload may be given out."""
    versions = [b"".join(pattern(40_000, seed)) for seed in (1, 2, 3)]
    kept = []
    for plain in versions:
        publish(rig, plain)
        assert load(rig).content == plain
        kept.append((rig.small_path("m.bin").read_bytes(), rig.cached_path("m.bin").read_bytes()))
    tried = 0
    for i, (small, _) in enumerate(kept):
        for j, (_, big) in enumerate(kept):
            rig.small_path("m.bin").write_bytes(small)
            rig.cached_path("m.bin").write_bytes(big)
            answer = load(rig)
            if answer.ok:
                assert answer.content == versions[i], (i, j)
            else:
                assert code(answer) == (502, "integrity_error")
            tried += 1
    return tried


@pytest.mark.slow
def test_parts_are_never_mixed(rig: ResourceRig, tally: Callable[[int], None]) -> None:
    tally(check_mixes(rig))


@pytest.mark.slow
def test_a_lock_is_waited_for(rig: ResourceRig) -> None:
    """After a 423 with a time the loader's own log-ins keep away; a person's goes through."""
    publish(rig, b"x" * 5000)
    rig.api.expire_tokens()
    rig.api.fail_next("/login", status=423, headers={"Retry-After": str(LOCKED_S)})
    answer = load(rig)
    assert code(answer) == (423, "account_locked")
    assert int(answer.headers["Retry-After"]) <= LOCKED_S
    log_ins = rig.api.count("/login")
    for _ in range(5):
        assert code(load(rig)) == (423, "account_locked")
    assert rig.api.count("/login") == log_ins
    assert requests.post(f"{rig.url}/login", json=BODY, timeout=10).ok
    assert load(rig).content == b"x" * 5000


@pytest.mark.slow
def test_a_token_that_ends_in_the_middle_of_a_transfer(rig: ResourceRig) -> None:
    """The store stops in the middle of a big part; meanwhile the token ends, and is renewed once."""
    plain = b"".join(pattern(3_000_000))
    with FaultProxy(rig.store.url) as proxy:
        rig.point_store_at(proxy.url)
        publish(rig, plain)
        rig.cached_path("m.bin").unlink()
        proxy.add(Rule(method="GET", cut_after_bytes=1_000_000, times=1))
        rig.api.expire_tokens()
        log_ins = rig.api.count("/login")
        assert load(rig).content == plain
        assert rig.api.count("/login") == log_ins + 1


@pytest.mark.slow
@pytest.mark.parametrize("location", ["http://127.0.0.1:1/", "https://evil.example/", "//evil.example/"])
def test_redirects_are_not_followed(rig: ResourceRig, location: str) -> None:
    rig.api.fail_next("/login", status=307, headers={"Location": location + "login"})
    assert code(requests.post(f"{rig.url}/login", json=BODY, timeout=20)) == (502, "upstream_error")


@pytest.mark.slow
def test_slow_clients_hold_nobody_up(rig: ResourceRig, tally: Callable[[int], None]) -> None:
    """Two hundred connections that drip their headers, and as many that drip a body; others are answered meanwhile."""
    port = int(rig.url.rpartition(":")[2])
    head = b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
    open_now = [socket.create_connection(("127.0.0.1", port), timeout=40) for _ in range(400)]
    try:
        for number, connection in enumerate(open_now):
            connection.sendall(head if number % 2 else head + b"\r\n{")
        started = time.monotonic()
        for _ in range(20):
            assert requests.get(f"{rig.url}/health", timeout=5).ok
        assert requests.post(f"{rig.url}/login", json=BODY, timeout=10).ok
        assert time.monotonic() - started < 10
        # The service ends each of them by itself.
        with ThreadPoolExecutor(32) as pool:
            assert all(pool.map(lambda connection: _ends(connection), open_now))  # noqa: PLW0108
    finally:
        for connection in open_now:
            connection.close()
    tally(400)


def _ends(connection: socket.socket) -> bool:
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        return True
    return True


@pytest.mark.slow
@pytest.mark.parametrize(
    "yaml", ["host: [1, 2]", "host: http://a\nuploader_access_key: {}", "a" * 1_200_000, "\0", "&a [*a]"]
)
def test_a_tampered_cdn_yaml_is_refused(rig: ResourceRig, yaml: str) -> None:
    publish(rig, b"x" * 5000)
    rig.cached_path("m.bin").unlink()
    rig.stop_loader()
    (rig.api.root / "cdn.yaml").write_text(yaml)
    rig.start_loader()
    status, word = code(load(rig))
    assert (status, word) == (502, "upstream_error")


MUTATIONS = {
    "other sites are let in": ("middleware", "            self._check_origin(scope)\n", "", check_sites),
    "notes are believed": ("part_proof", "return found == sha256\n\n\ndef _identity", "return True\n\n\ndef _identity", check_mixes),  # noqa: E501
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.proof
@pytest.mark.parametrize("name", MUTATIONS)
def test_the_family_sees(tmp_path: Path, name: str) -> None:
    module, text, replacement, check = MUTATIONS[name]
    environment = mutant(tmp_path, module, text, replacement)
    with (
        ResourceRig(tmp_path, separate=True, environment={"ALLOWED_HOSTS": "127.0.0.1", **environment}) as rig,
        pytest.raises(AssertionError),
    ):
        check(rig)
