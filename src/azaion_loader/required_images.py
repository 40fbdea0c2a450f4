"""The images that every device runs, and how their names are written."""

API_SERVICES = (
    "azaion/annotations",
    "azaion/flights",
    "azaion/detections",
    "azaion/gps-denied-onboard",
    "azaion/gps-denied-desktop",
    "azaion/autopilot",
    "azaion/ai-training",
)

# Prefixes that clients write in front of a name without a registry: Docker's long form, and podman's two.
_IMPLIED_PREFIXES = ("docker.io/library/", "docker.io/", "localhost/")


def required_tags(version: str) -> tuple[str, ...]:
    """Return the required images' names with their tag, in their fixed order."""
    return tuple(f"{service}:{version}" for service in API_SERVICES)


def short_tag(reference: str) -> str:
    """Return an image's name as Docker shows it: without the registry that it implies."""
    for prefix in _IMPLIED_PREFIXES:
        if reference.startswith(prefix):
            return reference.removeprefix(prefix)
    return reference
