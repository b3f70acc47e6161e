"""SBOM of an environment: every installed distribution, in CycloneDX's JSON, byte for byte the same.

A promotion record names it by its sha256, so that it can be said years later what a champion was made and checked with.
"""

import functools
import importlib.metadata
import json
import platform
import re
import uuid

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

__all__ = ["SBOM_FILE", "bill_of_materials", "components_of"]

SBOM_FILE = "sbom.cdx.json"
_SPACE = uuid.UUID("6f8a3a52-5f0b-5d0e-9a51-0d0d3b1f2c11")
"""Name space of the serial numbers, which are drawn from the content instead of at random."""


@functools.cache
def bill_of_materials() -> bytes:
    """CycloneDX 1.6, JSON, of the distributions that this process can import.

    Returns:
        The file's content; the same environment gives the same bytes, for it holds no time and nothing random.
    """
    listed = components_of()
    bom = Bom(
        components=[
            Component(
                name=name,
                version=version,
                type=ComponentType.LIBRARY,
                purl=PackageURL(type="pypi", name=name, version=version),
                bom_ref=f"{name}=={version}",
            )
            for name, version in listed
        ]
        + [
            Component(name="CPython", version=platform.python_version(), type=ComponentType.PLATFORM, bom_ref="CPython")
        ],
        serial_number=uuid.uuid5(_SPACE, "\n".join(f"{name}=={version}" for name, version in listed)),
    )
    content = json.loads(JsonV1Dot6(bom).output_as_string())
    content["metadata"].pop("timestamp", None)
    return json.dumps(content, indent=1, sort_keys=True).encode()


def components_of() -> list[tuple[str, str]]:
    """Name and version of every distribution, sorted; each once, as imports see it."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        found.setdefault(name, distribution.version)
    return sorted(found.items())
