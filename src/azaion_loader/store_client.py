"""Makes botocore clients that listen to nothing but their arguments.

The environment of a device may hold AWS settings of other programs; a profile, an endpoint or a retry mode found
there must neither redirect nor break the loader. Only what the contract names stays: AWS_CA_BUNDLE,
REQUESTS_CA_BUNDLE and the proxy variables, which botocore reads itself.
"""

import os
from typing import Any

import botocore.configprovider
import botocore.session
from botocore.config import Config
from botocore.configprovider import ConstantProvider
from botocore.loaders import Loader

from azaion_loader import metrics
from azaion_loader.store_answers import translate

REGION = "us-east-1"
_UPSTREAM = "object store"
_KEPT_VARIABLES = frozenset({"ca_bundle"})
_FORCED = {"config_file": os.devnull, "credentials_file": os.devnull, "ignore_configured_endpoint_urls": True}


def make_client(
    session: botocore.session.Session,
    endpoint: str,
    access_key: str,
    access_secret: str,
    *,
    connect_timeout_s: float,
    read_timeout_s: float,
    connections: int,
) -> Any:
    """Return an S3 client with exactly one try for each call; it follows no redirect and looks up no credentials.

    `session` is one of `new_session`; the clients made with it share what they know of S3 (13 MB), and nothing else.
    The time-outs are seconds; `read_timeout_s` is the longest silence in an answer, not its length.
    Raises botocore's errors: callers translate them.
    """
    config = Config(
        region_name=REGION,
        signature_version="s3v4",
        s3={"addressing_style": "path", "us_east_1_regional_endpoint": "regional"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=connect_timeout_s,
        read_timeout=read_timeout_s,
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=connections,
        tcp_keepalive=True,
        inject_host_prefix=False,
    )
    client = session.create_client(
        "s3",
        region_name=REGION,
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=access_secret,
        config=config,
    )
    client.meta.events.register_last("before-call.s3", _forbid_region_redirect)
    client.meta.events.register_last("after-call.s3", _count_answer)
    client.meta.events.register_last("after-call-error.s3", _count_failure)
    return client


def _count_answer(http_response: Any, **_: object) -> None:
    metrics.count("upstream_answers", upstream=_UPSTREAM, answer=str(http_response.status_code))


def _count_failure(exception: Exception, **_: object) -> None:
    metrics.count("upstream_answers", upstream=_UPSTREAM, answer=translate(exception).code)


def new_session() -> botocore.session.Session:
    """Return a session that sees no profile, no endpoint and no keys of the environment. Of one thread at a time."""
    session = botocore.session.Session()
    store = session.get_component("config_store")
    variables = botocore.configprovider.BOTOCORE_DEFAUT_SESSION_VARIABLES
    for name, (_, _, default, _) in variables.items():
        if name not in _KEPT_VARIABLES:
            store.set_config_provider(name, ConstantProvider(value=_FORCED.get(name, default)))
    for name in ("s3", "proxies_config"):
        store.set_config_provider(name, ConstantProvider(value=None))
    # AWS_DATA_PATH and ~/.aws/models could replace the description of S3 itself.
    session.register_component(
        "data_loader", Loader(extra_search_paths=[Loader.BUILTIN_DATA_PATH], include_default_search_paths=False)
    )
    return session


def _forbid_region_redirect(params: dict[str, Any], **_: object) -> None:
    """Make botocore believe that it has followed a redirect already, so that it doesn't (with our keys) again."""
    params.setdefault("context", {}).setdefault("s3_redirect", {})["redirected"] = True
