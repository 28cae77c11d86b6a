"""The manifest for Kubernetes holds together; no schema of the operator is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

_FILE = Path(__file__).parents[2] / "examples/deploy/kubernetes/cluster.yaml"


@pytest.mark.parametrize("role", ["scheduler", "worker"])
def test_each_role_has_its_own_keys_and_finds_them(role: str) -> None:
    yaml = pytest.importorskip("yaml")
    manifest: dict[str, Any] = yaml.safe_load(_FILE.read_text())
    assert manifest["kind"] == "DaskCluster"
    pod = manifest["spec"][role]["spec"]
    (container,) = pod["containers"]
    arguments = container["args"]
    assert all(isinstance(argument, str) for argument in arguments)
    assert arguments[:2] == ["dask", role]
    assert arguments[arguments.index("--tls-key") + 1] == f"/certs/{role}-key.pem"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert volumes["certs"]["secret"]["secretName"] == f"loader-{role}-tls"


def test_workers_have_shared_memory_and_the_schedulers_address() -> None:
    yaml = pytest.importorskip("yaml")
    manifest: dict[str, Any] = yaml.safe_load(_FILE.read_text())
    spec, name = manifest["spec"], manifest["metadata"]["name"]
    pod = spec["worker"]["spec"]
    assert pod["volumes"][1]["emptyDir"]["medium"] == "Memory"
    assert (
        f"tls://{name}-scheduler.default.svc.cluster.local:8786"
        in (pod["containers"][0]["args"])
    )
    ports = {
        port["name"] for port in spec["scheduler"]["spec"]["containers"][0]["ports"]
    }
    assert {p["targetPort"] for p in spec["scheduler"]["service"]["ports"]} == ports
