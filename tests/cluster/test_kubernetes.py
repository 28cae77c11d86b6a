"""The files for Kubernetes fit the operator's schema and the chart, and start a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import cluster
from tests.asking import workers_of
from tests.cluster.conftest import WaitUntil

yaml = pytest.importorskip("yaml")

_ROOT = Path(__file__).parents[2]
_FOLDER = _ROOT / "examples/deploy/kubernetes"
_DATA = _ROOT / "tests/data/kubernetes"
_MANIFEST: dict[str, Any] = yaml.safe_load((_FOLDER / "cluster.yaml").read_text())
_VALUES: dict[str, Any] = yaml.safe_load((_FOLDER / "helm-values.yaml").read_text())
_CRD: dict[str, Any] = json.loads((_DATA / "daskcluster.json").read_text())
_CHART: dict[str, Any] = json.loads((_DATA / "helm_chart.json").read_text())
_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "boolean": bool,
}


def _misfits(value: Any, schema: dict[str, Any], place: str) -> list[str]:
    """Name what a Kubernetes server would refuse, or silently leave out."""
    if "ref" in schema:
        schema = _CRD[schema["ref"]]
    if schema.get("format") == "int-or-string" and isinstance(value, int):
        return []
    wanted = _TYPES[schema["type"]]
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        return [f"{place}: {value!r} is no {schema['type']}"]
    if wanted is list:
        places = ((f"{place}[{i}]", item) for i, item in enumerate(value))
        return [m for where, v in places for m in _misfits(v, schema["items"], where)]
    if wanted is not dict:
        return []
    known = schema.get("properties", {})
    others = schema.get("additionalProperties")
    found = [
        f"{place}.{k} is missing" for k in schema.get("required", ()) if k not in value
    ]
    for key, item in value.items():
        below = known.get(key, others)
        if below is not None:
            found += _misfits(item, below, f"{place}.{key}")
        elif known:
            found.append(f"{place}.{key} is unknown")
    return found


def _misfits_of_values(value: Any, keys: Any, place: str = "") -> list[str]:
    if isinstance(keys, str):
        return _misfits(value, {"type": keys}, place)
    pod = _CRD["pod"]["properties"]
    if "pod" in keys:
        return _misfits(value, pod[keys["pod"]], place)
    if "container" in keys:
        container = pod["containers"]["items"]["properties"]
        return _misfits(value, container[keys["container"]], place)
    found = [f"{place}.{k} is unknown" for k in value if k not in keys]
    for key in set(value) & set(keys):
        found += _misfits_of_values(value[key], keys[key], f"{place}.{key}")
    return found


# ---- schemas --------------------------------------------------------------------------


def test_the_manifest_fits_the_operators_schema() -> None:
    assert (_MANIFEST["apiVersion"], _MANIFEST["kind"]) == (
        "kubernetes.dask.org/v1",
        "DaskCluster",
    )
    spec = {"spec": _MANIFEST["spec"]}
    assert _misfits(spec, _CRD["cluster"], "") == []


def test_the_values_fit_the_chart() -> None:
    assert _misfits_of_values(_VALUES, _CHART["keys"]) == []


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        ({"idleTimeout": "3600"}, ".idleTimeout: '3600' is no integer"),
        ({"idleTimeout": True}, ".idleTimeout: True is no integer"),
        ({"idletimeout": 1}, ".idletimeout is unknown"),
        ({"worker": {}}, ".worker.spec is missing"),
        (
            {"worker": {"spec": {"containers": [{"name": "w", "args": ["--x", 1]}]}}},
            ".worker.spec.containers[0].args[1]: 1 is no string",
        ),
    ],
)
def test_the_check_finds_what_is_wrong(harm: dict[str, Any], found: str) -> None:
    schema = _CRD["cluster"]["properties"]["spec"]
    assert _misfits(_MANIFEST["spec"] | harm, schema, "") == [found]


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (
            {"worker": {"extraArgs": ["--death-timeout", 60]}},
            ".worker.extraArgs[1]: 60 is",
        ),
        ({"scheduler": {"mounts": {}}}, ".scheduler.mounts is unknown"),
        (
            {"worker": {"mounts": {"volumes": [{}]}}},
            ".worker.mounts.volumes[0].name is m",
        ),
    ],
)
def test_the_check_of_values_finds_what_is_wrong(
    harm: dict[str, Any], found: str
) -> None:
    (only,) = _misfits_of_values(harm, _CHART["keys"])
    assert only.startswith(found)


# ---- what the schemas do not say ------------------------------------------------------


@pytest.mark.parametrize("role", ["scheduler", "worker"])
def test_each_role_has_its_own_keys_and_finds_them(role: str) -> None:
    pod = _MANIFEST["spec"][role]["spec"]
    (container,) = pod["containers"]
    arguments = container["args"]
    assert arguments[:2] == ["dask", role]
    assert arguments[arguments.index("--tls-key") + 1] == f"/certs/{role}-key.pem"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert volumes["certs"]["secret"]["secretName"] == f"loader-{role}-tls"


def test_workers_have_shared_memory_and_the_schedulers_address() -> None:
    spec, name = _MANIFEST["spec"], _MANIFEST["metadata"]["name"]
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


def test_the_charts_workers_have_what_the_operators_have() -> None:
    theirs = _MANIFEST["spec"]["worker"]["spec"]
    (container,) = theirs["containers"]
    ours = _VALUES["worker"]
    assert ours["mounts"]["volumes"] == theirs["volumes"]
    assert ours["mounts"]["volumeMounts"] == container["volumeMounts"]
    assert ours["resources"] == container["resources"]
    assert ours["securityContext"] == theirs["securityContext"]
    name = _VALUES["fullnameOverride"]
    assert ours["custom_scheduler_url"] == f"tls://{name}-scheduler:8786"
    assert _VALUES["jupyter"] == {"enabled": False}


# ---- what they start ------------------------------------------------------------------


@pytest.mark.cluster
@pytest.mark.parametrize(
    "by", ["chart", pytest.param("operator", marks=pytest.mark.slow)]
)
def test_their_commands_start_a_cluster_with_tls(
    by: str, tmp_path: Path, wait_until: WaitUntil
) -> None:
    certs = cluster.create_certificates(tmp_path / "certs")
    file = tmp_path / "scheduler.json"
    if by == "operator":
        scheduler, worker = (
            _MANIFEST["spec"][role]["spec"]["containers"][0]["args"][1:]
            for role in ("scheduler", "worker")
        )
        environ = {}
    else:  # as its templates put them together
        values = _VALUES["worker"]
        scheduler = ["scheduler", "--port=8786", "--dashboard-address=:8787"]
        scheduler += _VALUES["scheduler"]["extraArgs"]
        worker = ["worker", values["custom_scheduler_url"], "--nthreads", "1"]
        worker += ["--memory-limit", values["resources"]["limits"]["memory"]]
        worker += [
            "--no-dashboard",
            "--dashboard-address",
            "8790",
            *values["extraArgs"],
        ]
        environ = {
            entry["name"]: entry["value"]
            if "value" in entry
            else (certs / entry["valueFrom"]["secretKeyRef"]["key"]).read_text()
            for entry in _VALUES["scheduler"]["env"]
        }
    # Of one kind of option the last holds; these are for a machine that others use too.
    here = ["--host", "127.0.0.1"]
    scheduler += [*here, "--port", "0", "--dashboard-address", "127.0.0.1:0"]
    scheduler += ["--scheduler-file", str(file)]
    with ExitStack() as stack:

        def start(role: str, arguments: list[str], **variables: str) -> None:
            placed = [text.replace("/certs/", f"{certs}/") for text in arguments]
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{role}", *placed],
                env=os.environ | variables,
                cwd=tmp_path,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait, 60)
            stack.callback(process.terminate)

        start("scheduler", scheduler[1:], **environ)
        wait_until(lambda: file.exists() and file.read_text(), "a scheduler file")
        address = json.loads(file.read_text())["address"]
        assert address.startswith("tls://127.0.0.1:")
        worker = [address if text.startswith("tls://") else text for text in worker[1:]]
        start("worker", [*worker, *here], DASK_WORKER_NAME="w")
        with cluster.connect(address, cluster.load_certificates(certs)) as connected:
            connected.wait_for_workers(1)
            (info,) = workers_of(connected.client()).values()
            assert (info["nthreads"], info["memory_limit"]) == (1, 4 << 30)
