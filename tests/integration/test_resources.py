"""Resources over real sockets: the loader under uvicorn, the development Resource API, a real S3 server."""

import hashlib
import http.client
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from azaion_devkit.fault_proxy import FaultProxy, Rule
from azaion_devkit.resource_rig import ResourceRig, pattern
from azaion_loader.cdn_manager import CdnManager, parse_cdn_yaml
from azaion_loader.store_client import make_client, new_session

pytestmark = pytest.mark.store

EDGES = [0, 1, 15, 16, 17, 31, 32, 10207, 10208, 10223, 10224, 999_999, 1_000_000, 1_000_001]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ResourceRig]:
    with ResourceRig(tmp_path, environment={"UPLOAD_MAX_BYTES": "50000000"}) as running:
        yield running


def loaded(rig: ResourceRig, name: str, folder: str = "models") -> bytes:
    answer = rig.load(name, folder)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["content-type"] == "application/octet-stream"
    return answer.content


def published(rig: ResourceRig, name: str, plain: bytes, folder: str = "models") -> None:
    answer = rig.upload(name, plain, folder)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def refused(answer: requests.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text


def store_as(rig: ResourceRig, name: str, data: bytes, metadata: dict[str, str]) -> None:
    """Put an object as another device would."""
    source = rig.root / "object"
    source.write_bytes(data)
    CdnManager(parse_cdn_yaml(rig.store.cdn_yaml())).upload("models", f"{name}.big", source, metadata)


def test_round_trips(rig: ResourceRig) -> None:
    for size in EDGES:
        plain = b"".join(pattern(size, size))
        name = f"m{size}.bin"
        published(rig, name, plain)
        total = 16 + (size // 16 + 1) * 16
        assert rig.big_path(name).stat().st_size == total - min(3072, total * 30 // 100)
        assert loaded(rig, name) == plain
        rig.cached_path(name).unlink()
        assert loaded(rig, name) == plain
        assert rig.cached_path(name).read_bytes() == rig.big_path(name).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", [100_000_000, (2 << 30) - 1, (2 << 30) + 1, (4 << 30) - 1, (4 << 30) + 1])
def test_big_round_trip(tmp_path: Path, size: int) -> None:
    with ResourceRig(tmp_path, separate=True) as rig:
        form = b'--b\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\n'
        sent = hashlib.sha256()

        def body() -> Iterator[bytes]:
            yield form
            for piece in pattern(size):
                sent.update(piece)
                yield piece
            yield b"\r\n--b--\r\n"

        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = requests.post(f"{rig.url}/upload/m.bin", data=body(), headers=headers, timeout=600)
        assert answer.status_code == 200, answer.text
        for _ in range(2):
            got, count = hashlib.sha256(), 0
            url = f"{rig.url}/load/m.bin"
            with requests.post(url, json={"filename": "m.bin", "folder": "models"}, stream=True, timeout=600) as stream:
                assert stream.headers["content-length"] == str(size)
                for chunk in stream.iter_content(1 << 20):
                    got.update(chunk)
                    count += len(chunk)
            assert (count, got.hexdigest()) == (size, sent.hexdigest())
            rig.cached_path("m.bin").unlink()
        # Kept folders of tests must not hold gigabytes.
        rig.big_path("m.bin").unlink()


def test_folder_may_come_after_the_file(rig: ResourceRig) -> None:
    plain = b"".join(pattern(700_000))
    rig.store.make_bucket("other")
    (rig.api.root / "other").mkdir()
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\n', plain,
        b'\r\n--b\r\nContent-Disposition: form-data; name="folder"\r\n\r\nother\r\n--b--\r\n',
    ]  # fmt: skip
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = requests.post(f"{rig.url}/upload/m.bin", data=b"".join(parts), headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    rig.cached_path("m.bin", "other").unlink()
    assert loaded(rig, "m.bin", "other") == plain


def test_missing_resource_is_quick_and_touches_no_store(rig: ResourceRig) -> None:
    rig.store.stop()
    started = time.monotonic()
    refused(rig.load("nothing.bin"), 404, "resource_not_found")
    assert time.monotonic() - started < 2
    assert rig.api.count("/resources/get") == 1
    assert rig.own_files() == []


def test_offline_with_a_cached_part_is_503(rig: ResourceRig) -> None:
    published(rig, "m.bin", b"x" * 50_000)
    rig.api.stop()
    refused(rig.load("m.bin"), 503, "upstream_unavailable")
    rig.api.start()
    rig.store.stop()
    assert loaded(rig, "m.bin") == b"x" * 50_000


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("m.bin", {"filename": "n.bin", "folder": "models"}, 422, "invalid_request"),
        ("m.bin", {"filename": "m.bin"}, 422, "invalid_request"),
        ("m.bin", {"filename": "m.bin", "folder": 7}, 422, "invalid_request"),
        ("m.bin", {"filename": "m.bin", "folder": "get"}, 422, "invalid_name"),
        ("m.bin", {"filename": "m.bin", "folder": "GET-all"}, 422, "invalid_name"),
        ("m.bin", {"filename": "m.bin", "folder": "../models"}, 422, "invalid_name"),
        ("m.bin", {"filename": "m.bin", "folder": "a\u0000"}, 422, "invalid_name"),
        ("%2e%2e", {"filename": "..", "folder": "models"}, 422, "invalid_name"),
        ("a..b", {"filename": "a..b", "folder": "models"}, 422, "invalid_name"),
        ("a%00", {"filename": "a\u0000", "folder": "models"}, 422, "invalid_name"),
        ("m%D0%BE", {"filename": "mо", "folder": "models"}, 422, "invalid_name"),  # noqa: RUF001 - a look-alike
        ("a" * 300, {"filename": "a" * 300, "folder": "models"}, 422, "invalid_name"),
        ("a%2fb", {"filename": "a/b", "folder": "models"}, 404, "not_found"),
    ],
)
def test_names_and_bodies_of_load(rig: ResourceRig, path: str, body: dict[str, object], status: int, code: str) -> None:
    refused(requests.post(f"{rig.url}/load/{path}", json=body, timeout=10), status, code)
    assert rig.api.calls == []
    assert rig.own_files() == []


def test_bad_uploads_leave_nothing(rig: ResourceRig) -> None:
    data = ("data", ("x", b"y" * 200_000))
    url = f"{rig.url}/upload/m.bin"
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    head = b'--b\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\n'
    for answer, code in (
        (requests.post(url, data=b"", timeout=10), "invalid_request"),
        (requests.post(url, json={"folder": "models"}, timeout=10), "invalid_request"),
        (requests.post(url, data={"folder": "models"}, timeout=10), "invalid_request"),
        (requests.post(url, data=b"x", headers={"Content-Type": "multipart/form-data"}, timeout=10), "invalid_request"),
        (requests.post(url, data=head + b"y" * 100_000, headers=form, timeout=10), "invalid_request"),
        (requests.post(url, files=[data, data], timeout=10), "invalid_request"),
        (requests.post(url, files=[data], data={"folder": "list"}, timeout=10), "invalid_name"),
        (requests.post(url, files=[data], data={"folder": "a/b"}, timeout=10), "invalid_name"),
        (requests.post(f"{rig.url}/upload/a..b", files=[data], timeout=10), "invalid_name"),
        (requests.post(f"{rig.url}/upload/{'a' * 300}", files=[data], timeout=10), "invalid_name"),
    ):
        refused(answer, 422, code)
    assert rig.own_files() == []
    assert rig.api.count("/resources/models") == 0
    refused(rig.upload("m.bin", b"x", folder="no-bucket"), 502, "upstream_error")
    assert rig.own_files() == []


def test_upload_over_the_limit_is_413_whether_announced_or_not(rig: ResourceRig) -> None:
    refused(rig.upload("m.bin", bytes(60_000_000)), 413, "too_large")

    def body() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\n'
        for _ in range(52):
            yield bytes(1_000_000)
        yield b"\r\n--b--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    refused(requests.post(f"{rig.url}/upload/m.bin", data=body(), headers=headers, timeout=30), 413, "too_large")
    assert rig.own_files() == []


def integrity(rig: ResourceRig, name: str) -> None:
    answer = rig.load(name)
    refused(answer, 502, "integrity_error")
    assert answer.json()["detail"] == "The parts of this resource don't fit together or are damaged."
    assert rig.own_files() == []


def test_parts_that_do_not_fit(rig: ResourceRig) -> None:
    first, second = b"".join(pattern(50_000, 1)), b"".join(pattern(50_000, 2))
    published(rig, "m.bin", first)
    old_small, old_big = rig.small_path("m.bin").read_bytes(), rig.big_path("m.bin").read_bytes()
    published(rig, "other.bin", second)
    published(rig, "m.bin", second)
    new_small, new_big = rig.small_path("m.bin").read_bytes(), rig.big_path("m.bin").read_bytes()
    for name in ("m.bin", "other.bin"):
        rig.cached_path(name).unlink()
    metadata = dict(CdnManager(parse_cdn_yaml(rig.store.cdn_yaml())).head("models", "m.bin.big").metadata)
    small = rig.small_path("m.bin")
    for wrong in (old_small, b"", new_small[:-1], new_small + b"x", new_small + new_big,
                  rig.small_path("other.bin").read_bytes()):  # fmt: skip
        small.write_bytes(wrong)
        integrity(rig, "m.bin")
    small.write_bytes(new_small)
    for wrong in (old_big, new_big[:-16], new_big[:-1] + b"\0", rig.big_path("other.bin").read_bytes()):
        store_as(rig, "m.bin", wrong, metadata)
        integrity(rig, "m.bin")
    store_as(rig, "m.bin", new_big, {})
    integrity(rig, "m.bin")
    keys = rig.store.uploader
    client = make_client(new_session(), rig.store.url, *keys, connect_timeout_s=4, read_timeout_s=10, connections=1)
    client.delete_object(Bucket="models", Key="m.bin.big")
    client.close()
    integrity(rig, "m.bin")


def test_object_of_an_older_client_is_accepted_on_a_device_that_does_not_know_better(tmp_path: Path) -> None:
    plain = b"".join(pattern(50_000))
    with ResourceRig(tmp_path) as rig:
        published(rig, "m.bin", plain)
        store_as(rig, "m.bin", rig.big_path("m.bin").read_bytes(), {})
        assert loaded(rig, "m.bin") == plain
        rig.stop_loader()
        for path in sorted(rig.data_dir.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        rig.start_loader()
        assert loaded(rig, "m.bin") == plain
        assert loaded(rig, "m.bin") == plain


def test_byte_flipped_while_the_service_was_down_is_noticed(rig: ResourceRig) -> None:
    plain = b"".join(pattern(300_000))
    published(rig, "m.bin", plain)
    rig.stop_loader()
    cached = rig.cached_path("m.bin")
    data = bytearray(cached.read_bytes())
    data[150_000] ^= 4
    cached.write_bytes(data)
    rig.start_loader()
    assert loaded(rig, "m.bin") == plain
    assert cached.read_bytes() == rig.big_path("m.bin").read_bytes()


def test_part_from_the_factory_is_not_fetched(rig: ResourceRig) -> None:
    plain = b"".join(pattern(300_000))
    published(rig, "m.bin", plain)
    rig.stop_loader()
    for note in rig.data_dir.rglob("m.bin.json"):
        note.unlink()
    before = rig.cached_path("m.bin").stat()
    rig.start_loader()
    assert loaded(rig, "m.bin") == plain
    after = rig.cached_path("m.bin").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_refused_keys_are_read_again_once(rig: ResourceRig) -> None:
    plain = b"".join(pattern(50_000))
    published(rig, "m.bin", plain)
    rig.cached_path("m.bin").unlink()
    with FaultProxy(rig.store.url) as proxy:
        rig.point_store_at(proxy.url)
        rig.stop_loader()
        rig.start_loader()
        before = rig.api.count("/resources/get")
        proxy.add(Rule(method="HEAD", times=1, answer_status=403))
        assert loaded(rig, "m.bin") == plain
        # cdn.yaml twice, the small part once.
        assert rig.api.count("/resources/get") - before == 3
        rig.cached_path("m.bin").unlink()
        proxy.add(Rule(method="HEAD", times=2, answer_status=403))
        refused(rig.load("m.bin"), 502, "upstream_error")


def test_unusable_cdn_yaml_is_an_upstream_error(rig: ResourceRig) -> None:
    published(rig, "m.bin", b"x" * 20_000)
    rig.cached_path("m.bin").unlink()
    bomb = b"a: &a [x,x]\n" + b"".join(b"b%d: &b%d [*a,*a]\n" % (n, n) for n in range(20))
    for content in (b"", b"\x00\xff", b"just text", b"host: x\n", bomb, None):
        rig.stop_loader()
        path = rig.api.root / "cdn.yaml"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        rig.start_loader()
        refused(rig.load("m.bin"), 502, "upstream_error")
        assert rig.own_files() == []


def wait_for(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def open_files(rig: ResourceRig) -> list[str]:
    """Return the files below the rig that this process (which the loader runs in) holds open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return [path for path in found if str(rig.data_dir) in path and not path.endswith(".lock")]


def test_client_gone_in_the_middle_of_an_upload_leaves_nothing(rig: ResourceRig) -> None:
    host = urlsplit(rig.url)
    client = socket.create_connection((str(host.hostname), host.port or 0))
    client.sendall(
        b"POST /upload/m.bin HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Content-Length: 30000000\r\n\r\n"
        b'--b\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\n' + bytes(3_000_000)
    )
    wait_for(lambda: bool(rig.own_files()))
    client.close()
    wait_for(lambda: not rig.own_files())
    assert open_files(rig) == []
    assert rig.api.count("/resources/models") == 0
    assert not rig.big_path("m.bin").exists()


def test_client_gone_in_the_middle_of_a_load_lets_everything_go(rig: ResourceRig) -> None:
    published(rig, "m.bin", bytes(40_000_000))
    host = urlsplit(rig.url)
    client = http.client.HTTPConnection(str(host.hostname), host.port)
    body = '{"filename": "m.bin", "folder": "models"}'
    client.request("POST", "/load/m.bin", body, {"Content-Type": "application/json"})
    answer = client.getresponse()
    assert answer.read(100) == bytes(100)
    assert open_files(rig)
    answer.close()
    client.close()
    wait_for(lambda: not open_files(rig))


def test_load_and_upload_of_a_killed_loader_start_clean(tmp_path: Path) -> None:
    with ResourceRig(tmp_path, separate=True) as rig:
        host = urlsplit(rig.url)
        client = socket.create_connection((str(host.hostname), host.port or 0))
        client.sendall(
            b"POST /upload/m.bin HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 30000000\r\n\r\n"
            b'--b\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\n' + bytes(3_000_000)
        )
        wait_for(lambda: bool(rig.own_files()))
        rig.stop_loader(kill=True)
        client.close()
        assert rig.own_files()
        rig.start_loader()
        published(rig, "m.bin", b"again")
        assert rig.own_files() == [os.fspath(Path("models") / "m.bin.big")]
        assert loaded(rig, "m.bin") == b"again"
