"""Resources over real sockets: the loader under uvicorn, the development Resource API, a real S3 server."""

import hashlib
import http.client
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from azaion_devkit.fault_proxy import FaultProxy, Rule
from azaion_devkit.resource_rig import ResourceRig, pattern
from azaion_loader.cdn_manager import CdnManager, parse_cdn_yaml
from azaion_loader.store_client import make_client

pytestmark = pytest.mark.store

EDGES = [0, 1, 15, 16, 17, 31, 32, 10207, 10208, 10223, 10224, 999_999, 1_000_000, 1_000_001]
CANARY = b"canary-7f3a91-in-the-plaintext"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ResourceRig]:
    with ResourceRig(tmp_path, environment={"UPLOAD_MAX_BYTES": "50000000"}) as running:
        yield running


def upload(rig: ResourceRig, name: str, plain: bytes, folder: str = "models") -> requests.Response:
    return requests.post(
        f"{rig.url}/upload/{name}", files={"data": ("any", plain)}, data={"folder": folder}, timeout=60
    )


def load(rig: ResourceRig, name: str, folder: str = "models") -> requests.Response:
    return requests.post(f"{rig.url}/load/{name}", json={"filename": name, "folder": folder}, timeout=60)


def loaded(rig: ResourceRig, name: str, folder: str = "models") -> bytes:
    answer = load(rig, name, folder)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["content-type"] == "application/octet-stream"
    return answer.content


def published(rig: ResourceRig, name: str, plain: bytes, folder: str = "models") -> None:
    answer = upload(rig, name, plain, folder)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def refused(answer: requests.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text


def own_files(rig: ResourceRig) -> list[str]:
    """Return what lies in the data directory besides notes and locks."""
    found = (path for path in rig.data_dir.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(rig.data_dir)) for path in found if path.suffix not in {".json", ".lock"})


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
    refused(load(rig, "nothing.bin"), 404, "resource_not_found")
    assert time.monotonic() - started < 2
    assert rig.api.count("/resources/get") == 1
    assert own_files(rig) == []


def test_offline_with_a_cached_part_is_503(rig: ResourceRig) -> None:
    published(rig, "m.bin", b"x" * 50_000)
    rig.api.stop()
    refused(load(rig, "m.bin"), 503, "upstream_unavailable")
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
    assert own_files(rig) == []


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
    assert own_files(rig) == []
    assert rig.api.count("/resources/models") == 0
    refused(upload(rig, "m.bin", b"x", folder="no-bucket"), 502, "upstream_error")
    assert own_files(rig) == []


def test_upload_over_the_limit_is_413_whether_announced_or_not(rig: ResourceRig) -> None:
    refused(upload(rig, "m.bin", bytes(60_000_000)), 413, "too_large")

    def body() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\n'
        for _ in range(52):
            yield bytes(1_000_000)
        yield b"\r\n--b--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    refused(requests.post(f"{rig.url}/upload/m.bin", data=body(), headers=headers, timeout=30), 413, "too_large")
    assert own_files(rig) == []


def integrity(rig: ResourceRig, name: str) -> None:
    answer = load(rig, name)
    refused(answer, 502, "integrity_error")
    assert answer.json()["detail"] == "The parts of this resource don't fit together or are damaged."
    assert own_files(rig) == []


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
    client = make_client(rig.store.url, *keys, connect_timeout_s=4, read_timeout_s=10, connections=1)
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


def test_fifty_loads_are_one_transfer(rig: ResourceRig) -> None:
    plain = b"".join(pattern(3_000_000))
    published(rig, "m.bin", plain)
    rig.cached_path("m.bin").unlink()
    with FaultProxy(rig.store.url) as proxy:
        rig.point_store_at(proxy.url)
        rig.stop_loader()
        rig.start_loader()
        calls = rig.api.count("/resources/get/models")
        with ThreadPoolExecutor(50) as clients:
            assert all(clients.map(lambda _: loaded(rig, "m.bin") == plain, range(50)))
        assert proxy.count("HEAD") == 1
        assert proxy.count("GET") == 1
        assert rig.api.count("/resources/get/models") - calls <= 10


def test_loads_of_different_resources_run_together(rig: ResourceRig) -> None:
    contents = {f"m{n}.bin": b"".join(pattern(400_000, n)) for n in range(8)}
    for name, plain in contents.items():
        published(rig, name, plain)
        rig.cached_path(name).unlink()
    with ThreadPoolExecutor(8) as clients:
        assert all(clients.map(lambda name: loaded(rig, name) == contents[name], contents))


def test_uploads_during_loads_never_mix(rig: ResourceRig) -> None:
    versions = [b"".join(pattern(400_000, n)) for n in range(6)]
    published(rig, "m.bin", versions[0])
    done = threading.Event()

    def read(_: int) -> int:
        count = 0
        while not done.is_set():
            assert loaded(rig, "m.bin") in versions
            count += 1
        return count

    with ThreadPoolExecutor(4) as clients:
        readers = [clients.submit(read, n) for n in range(4)]
        for plain in versions[1:]:
            published(rig, "m.bin", plain)
            assert loaded(rig, "m.bin") == plain
        done.set()
        assert sum(reader.result() for reader in readers) >= 4


def test_two_devices_uploading_at_once_never_mix(rig: ResourceRig, tmp_path: Path) -> None:
    with ResourceRig(tmp_path / "second", environment={"RESOURCE_API_URL": rig.api.url}) as second:
        versions = [b"".join(pattern(200_000, n)) for n in range(2)]
        with ThreadPoolExecutor(2) as clients:
            list(clients.map(lambda pair: upload(pair[0], "m.bin", pair[1]), zip((rig, second), versions, strict=True)))
        for device in (rig, second):
            answer = load(device, "m.bin")
            assert answer.content in versions or answer.json()["code"] == "integrity_error"
        published(rig, "m.bin", versions[0])
        assert [loaded(device, "m.bin") for device in (rig, second)] == [versions[0]] * 2


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
        refused(load(rig, "m.bin"), 502, "upstream_error")


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
        refused(load(rig, "m.bin"), 502, "upstream_error")
        assert own_files(rig) == []


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
    wait_for(lambda: bool(own_files(rig)))
    client.close()
    wait_for(lambda: not own_files(rig))
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


def find_canary(paths: list[Path]) -> list[Path]:
    found = []
    for path in paths:
        try:
            if CANARY in path.read_bytes():
                found.append(path)
        except (OSError, ValueError):
            continue
    return found


def test_no_plaintext_on_disk_or_in_an_open_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = tmp_path / "tmp"
    places.mkdir()
    with ResourceRig(tmp_path / "rig", environment={"TMPDIR": str(places)}, separate=True) as rig:
        plain = (CANARY + random.Random(1).randbytes(970)) * 20_000
        seen: list[Path] = []
        done = threading.Event()
        scans = 0

        def scan() -> None:
            nonlocal scans
            descriptors = Path(f"/proc/{rig.pid}/fd")
            while not done.is_set():
                kept = [path for path in tmp_path.rglob("*") if path.is_file()]
                opened = [entry for entry in descriptors.iterdir() if entry.is_file()]
                seen.extend(find_canary(kept + opened))
                scans += 1

        scanner = threading.Thread(target=scan)
        scanner.start()
        try:
            published(rig, "m.bin", plain)
            assert loaded(rig, "m.bin") == plain
            rig.cached_path("m.bin").unlink()
            assert loaded(rig, "m.bin") == plain
        finally:
            done.set()
            scanner.join()
        assert scans > 1
        assert seen == []
        # The scan can see one.
        (places / "canary").write_bytes(plain)
        assert find_canary([places / "canary"]) == [places / "canary"]


def test_load_and_upload_of_a_killed_loader_start_clean(tmp_path: Path) -> None:
    with ResourceRig(tmp_path, separate=True) as rig:
        host = urlsplit(rig.url)
        client = socket.create_connection((str(host.hostname), host.port or 0))
        client.sendall(
            b"POST /upload/m.bin HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 30000000\r\n\r\n"
            b'--b\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\n' + bytes(3_000_000)
        )
        wait_for(lambda: bool(own_files(rig)))
        rig.stop_loader(kill=True)
        client.close()
        assert own_files(rig)
        rig.start_loader()
        published(rig, "m.bin", b"again")
        assert own_files(rig) == [os.fspath(Path("models") / "m.bin.big")]
        assert loaded(rig, "m.bin") == b"again"
