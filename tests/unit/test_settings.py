"""Settings: defaults of the contract's table, every variable read, nonsense refused by name."""

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azaion_loader.settings import GIB, InvalidSetting, Settings, host_name

# The README's table of settings.
VARIABLES = {
    "RESOURCE_API_URL": ("resource_api_url", "http://10.0.0.1:8000/api/", "http://10.0.0.1:8000/api"),
    "IMAGES_PATH": ("images_path", "/data/images.enc", Path("/data/images.enc")),
    "API_VERSION": ("api_version", "2.1", "2.1"),
    "LOADER_DATA_DIR": ("data_dir", "/data", Path("/data")),
    "LOG_DIR": ("log_dir", "/logs", Path("/logs")),
    "DOCKER_CLI": ("docker_cli", "podman", "podman"),
    "DEVICE_CONF": ("device_conf", "/run/device.conf", Path("/run/device.conf")),
    "HARDWARE_STRING_FILE": ("hardware_string_file", "/etc/hw", Path("/etc/hw")),
    "JWT_PUBLIC_KEY_FILE": ("jwt_public_key_file", "/etc/jwt.pem", Path("/etc/jwt.pem")),
    "ARCHIVE_PUBLIC_KEY_FILE": ("archive_public_key_file", "/etc/a.pem", Path("/etc/a.pem")),
    "LOADER_API_TOKEN_FILE": ("loader_api_token_file", "/etc/token", Path("/etc/token")),
    "REQUIRE_PART_MAC": ("require_part_mac", "1", True),
    "ALLOW_DOWNGRADE": ("allow_downgrade", "true", True),
    "REMOVE_SUPERSEDED_IMAGES": ("remove_superseded_images", "no", False),
    "ALLOWED_HOSTS": ("allowed_hosts", "Device.local:8080, 10.0.0.7 [::1]:80", ("device.local", "10.0.0.7", "::1")),
    "CACHE_MAX_BYTES": ("cache_max_bytes", "5", 5),
    "UPLOAD_MAX_BYTES": ("upload_max_bytes", "6", 6),
    "ARCHIVE_MAX_BYTES": ("archive_max_bytes", "7", 7),
    "CONNECT_TIMEOUT_S": ("connect_timeout_s", "1.5", 1.5),
    "LOGIN_TIMEOUT_S": ("login_timeout_s", "2", 2.0),
    "REQUEST_TIMEOUT_S": ("request_timeout_s", "3", 3.0),
    "STALL_TIMEOUT_S": ("stall_timeout_s", "4", 4.0),
    "TRANSFER_WAIT_S": ("transfer_wait_s", "7", 7.0),
    "DOCKER_TIMEOUT_S": ("docker_timeout_s", "5", 5.0),
    "DOCKER_STALL_TIMEOUT_S": ("docker_stall_timeout_s", "6", 6.0),
    "UNLOCK_PARALLEL": ("unlock_parallel", "3", 3),
}


def test_every_setting_has_a_variable() -> None:
    assert {field.name for field in fields(Settings)} == {name for name, _, _ in VARIABLES.values()}


@pytest.mark.parametrize("variable", VARIABLES)
def test_each_variable_sets_its_field_and_no_other(variable: str) -> None:
    name, text, value = VARIABLES[variable]
    settings, default = Settings.from_environment({variable: text}), Settings()
    assert getattr(settings, name) == value
    # The log's default place is below the data directory.
    moved = {name, "log_dir"} if name == "data_dir" else {name}
    for field in fields(Settings):
        if field.name not in moved:
            assert getattr(settings, field.name) == getattr(default, field.name)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_variable_counts_as_unset(variable: str, empty: str) -> None:
    assert Settings.from_environment({variable: empty}) == Settings()


def test_defaults_of_the_contract() -> None:
    settings = Settings.from_environment({})
    assert settings.resource_api_url == "https://api.azaion.com"
    assert settings.images_path == Path("/opt/azaion/images.enc")
    assert settings.api_version == "latest"
    assert settings.log_dir == Path("Logs")
    assert settings.docker_cli == "docker"
    assert settings.device_conf == Path("/etc/azaion/device.conf")
    assert (settings.storage_dir, settings.model_cache_dir) == (Path(), "models")
    assert settings.state_dir == Path(".azaion-loader")
    assert (settings.require_part_mac, settings.allow_downgrade) == (False, False)
    assert settings.allowed_hosts == ()
    assert settings.archive_max_bytes == 64 * GIB


def test_below_the_data_directory() -> None:
    settings = Settings.from_environment({"LOADER_DATA_DIR": "/data"})
    assert settings.log_dir == Path("/data/Logs")
    assert settings.model_cache_dir == "/data/models"
    assert settings.state_dir == Path("/data/.azaion-loader")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RESOURCE_API_URL", "api.azaion.com"),
        ("RESOURCE_API_URL", "ftp://api.azaion.com"),
        ("RESOURCE_API_URL", "https://"),
        ("RESOURCE_API_URL", "https:///path"),
        ("RESOURCE_API_URL", "https://host:port"),
        ("RESOURCE_API_URL", "https://host:70000"),
        ("RESOURCE_API_URL", "https://[::1"),
        ("RESOURCE_API_URL", "https://ho st"),
        ("RESOURCE_API_URL", "https://host/?query=1"),
        ("RESOURCE_API_URL", "https://host/#part"),
        ("RESOURCE_API_URL", "https://user:password@host"),
        ("API_VERSION", "a b"),
        ("API_VERSION", "a:b"),
        ("API_VERSION", "a/b"),
        ("API_VERSION", "-flag"),
        ("API_VERSION", ".dot"),
        ("API_VERSION", "x" * 129),
        ("API_VERSION", "ä"),
        ("REQUIRE_PART_MAC", "maybe"),
        ("ALLOW_DOWNGRADE", "2"),
        ("CACHE_MAX_BYTES", "-1"),
        ("CACHE_MAX_BYTES", "1.5"),
        ("CACHE_MAX_BYTES", "1G"),
        ("CACHE_MAX_BYTES", "\u0661"),
        ("CACHE_MAX_BYTES", "9" * 5000),
        ("STALL_TIMEOUT_S", "0"),
        ("STALL_TIMEOUT_S", "-1"),
        ("STALL_TIMEOUT_S", "nan"),
        ("STALL_TIMEOUT_S", "inf"),
        ("STALL_TIMEOUT_S", "soon"),
        ("ALLOWED_HOSTS", "http://device"),
        ("ALLOWED_HOSTS", "device/path"),
        ("ALLOWED_HOSTS", "*.example.com"),
        ("ALLOWED_HOSTS", "device:port"),
        ("ALLOWED_HOSTS", "good,[::1"),
    ],
)
def test_nonsense_is_refused_by_name(variable: str, value: str) -> None:
    with pytest.raises(InvalidSetting, match=variable) as refusal:
        Settings.from_environment({variable: value})
    assert "password" not in str(refusal.value)


@pytest.mark.parametrize("value", ["*", "*, device", "device *", "device,*"])
def test_a_star_among_hosts_means_any(value: str) -> None:
    assert Settings.from_environment({"ALLOWED_HOSTS": value}).allowed_hosts == ()


def test_hosts_are_kept_once() -> None:
    assert Settings.from_environment({"ALLOWED_HOSTS": "a,A:80,,a."}).allowed_hosts == ("a",)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("device", "device"),
        ("Device.Local:8080", "device.local"),
        ("device.:80", "device"),
        ("my_device", "my_device"),
        ("10.0.0.7", "10.0.0.7"),
        ("[::1]:8080", "::1"),
        ("::1", "::1"),
        ("[0:0::1]", "::1"),
        ("a:", "a"),
        ("", None),
        (":80", None),
        (".", None),
        ("-a", None),
        ("a..", None),
        ("[device]", None),
        ("[::1]x", None),
        ("a:1:2", None),
        ("a:123456", None),
        ("a@b", None),
        ("a\nb", None),
        ("ä", None),
        ("x" * 255, None),
    ],
)
def test_host_names(value: str, name: str | None) -> None:
    assert host_name(value) == name


@given(st.text())
def test_a_host_name_is_its_own_host_name(value: str) -> None:
    name = host_name(value)
    assert name is None or host_name(name) == name


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), st.sampled_from(sorted(VARIABLES)))
def test_any_text_gives_settings_or_a_refusal(value: str, variable: str) -> None:
    refusal = None
    try:
        Settings.from_environment({variable: value})
    except InvalidSetting as err:
        refusal = err
    assert refusal is None or str(refusal).startswith(variable)
