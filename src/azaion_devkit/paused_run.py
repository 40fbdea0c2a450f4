"""Holds an unlock run in a chosen stage, so that a test can kill something exactly there.

The holds are in the servers that the loader talks to, the Resource API and a proxy in front of the engine's socket:
the loader itself is the real one, and nothing in it knows.
"""

from azaion_devkit.device import EMAIL, PASSWORD, Device
from azaion_devkit.engine_pid import within
from azaion_devkit.engine_proxy import EngineProxy
from azaion_devkit.hold import Hold
from azaion_devkit.loader_process import LoaderProcess

REACHED_TIMEOUT_S = 60.0

# Each stage with the state that clients see in it. Tag calls of a run that replaces seven images: 1 to 7 set the
# rollback tags, 8 to 14 move the seven names, then comes the commit, and 15 to 21 take the rollback tags away.
STAGES: dict[str, str] = {
    "authenticating": "authenticating",
    "downloading_key": "downloading_key",
    "decrypting": "decrypting",
    "loading_images": "loading_images",
    "first-rollback-tag": "loading_images",
    "last-rollback-tag": "loading_images",
    "first-move": "loading_images",
    "fourth-move": "loading_images",
    "last-move": "loading_images",
    "after-the-commit": "loading_images",
}
_TAG_CALLS = {
    "first-rollback-tag": 1,
    "last-rollback-tag": 7,
    "first-move": 8,
    "fourth-move": 11,
    "last-move": 14,
    "after-the-commit": 17,
}
# From here on the new images are the device's.
COMMITTED = frozenset({"after-the-commit"})
# In these stages the run still needs the Resource API.
NEEDS_API = frozenset({"authenticating", "downloading_key"})


def pause(stage: str, device: Device, proxy: EngineProxy, loader: LoaderProcess) -> Hold:
    """Start a run that replaces the images and return once it is held in `stage`; `release` lets it go on."""
    if stage == "authenticating":
        hold = device.api.hold_next("/login")
    elif stage == "downloading_key":
        hold = device.api.hold_next("/binary-split")
    elif stage == "decrypting":
        # What the engine holds is asked early and needed here.
        hold = proxy.hold("/info")
    elif stage == "loading_images":
        hold = proxy.hold("/images/load", after_bytes=20_000)
    else:
        hold = proxy.hold("/tag?", nth=_TAG_CALLS[stage])
    loader.unlock(EMAIL, PASSWORD, refresh=True).raise_for_status()
    if not hold.reached.wait(REACHED_TIMEOUT_S) or not within(
        REACHED_TIMEOUT_S, lambda: loader.get("/unlock/status")["state"] == STAGES[stage]
    ):
        raise TimeoutError(f"the run did not come to the stage {stage}")
    return hold
