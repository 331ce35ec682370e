"""The files of Docker and Kubernetes, against the commands, the settings and the routes that they name."""

import re
from pathlib import Path
from typing import Any, Final

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]
from click.testing import CliRunner

from api import health
from infra.cli.main import COMMANDS, main
from infra.heartbeat import BEAT_SECONDS
from infra.settings import PREFIX, SECRETS, Settings
from workers.training import process

DEPLOY: Final = Path(__file__).parents[2] / "infra" / "deploy"
KUBERNETES: Final = DEPLOY / "kubernetes"
KNOWN: Final = {PREFIX + name.upper() for name in Settings.__struct_fields__} | {
    f"{PREFIX}{name.upper()}_FILE" for name in SECRETS
}
# A trainer's last checkpoint comes first, and the rest of the time is for what all roles do.
STOP_SECONDS: Final = {"learn": process.STOP_SECONDS + 10}
FILES: Final = sorted(file for file in KUBERNETES.glob("*.yaml") if file.name != "kustomization.yaml")
MANIFESTS: Final[list[Any]] = [each for file in FILES for each in yaml.safe_load_all(file.read_text())]
DEPLOYMENTS: Final = {each["metadata"]["name"]: each for each in MANIFESTS if each["kind"] == "Deployment"}
COMPOSE: Final[Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
DOCKERFILE: Final = (DEPLOY / "Dockerfile").read_text()
TARGETS: Final = {
    name: re.findall(r'^CMD \["(.*)"\]$', stage, re.MULTILINE)
    for name, stage in re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
}


def pod(deployment: Any) -> Any:
    return deployment["spec"]["template"]["spec"]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_kubernetes_takes_every_manifest(manifest: Any) -> None:
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_the_kustomization_has_every_file_and_the_image_of_every_role() -> None:
    listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    assert {*listed["resources"], "secret.example.yaml"} == {file.name for file in FILES}
    images = {f"text2song-{target}" for target in TARGETS}
    assert {pod(each)["containers"][0]["image"] for each in DEPLOYMENTS.values()} == {
        image["name"] for image in listed["images"]
    }
    overlay = yaml.safe_load((KUBERNETES / "gpu" / "kustomization.yaml").read_text())
    assert {image["name"] for image in listed["images"]} | {image["newName"] for image in overlay["images"]} <= images
    assert set(overlay["patches"][0]["target"]["name"].split("|")) <= set(DEPLOYMENTS)


def test_every_variable_is_a_setting() -> None:
    [config] = (each["data"] for each in MANIFESTS if each["kind"] == "ConfigMap")
    named = set(config)
    for deployment in DEPLOYMENTS.values():
        named |= {each["name"] for each in pod(deployment)["containers"][0].get("env", ())}
    for service in COMPOSE["services"].values():
        named |= {name for name in service.get("environment", ()) if name.startswith(PREFIX)}
    named |= set(re.findall(rf"\b({PREFIX}\w+)=", DOCKERFILE))
    assert named <= KNOWN
    [secret] = (each["stringData"] for each in MANIFESTS if each["kind"] == "Secret")
    places = {value for value in config.values() if value.startswith("/run/secrets/text2song/")}
    assert {Path(place).name for place in places} == set(secret)


def test_every_command_is_one() -> None:
    commands = {command for found in TARGETS.values() for command in found if "," not in command}
    commands |= {argument for each in DEPLOYMENTS.values() for argument in pod(each)["containers"][0]["args"]}
    assert {"api", "project", "react", "work", "learn"} == commands <= set(COMMANDS)
    for command in commands:
        assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0


def test_services_of_compose_are_built_from_targets_and_stop_in_time() -> None:
    built = {name: each for name, each in COMPOSE["services"].items() if "build" in each}
    assert {each["build"]["target"] for each in built.values()} <= set(TARGETS)
    for name, each in built.items():
        assert int(each["stop_grace_period"].removesuffix("s")) > STOP_SECONDS.get(name, 30), name
        assert each["read_only"] is True
        mounted = {volume.rpartition(":")[2] for volume in each["volumes"]} | set(each["tmpfs"])
        assert {"/data", "/tmp"} <= mounted, name  # noqa: S108


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_role_stops_in_time_is_probed_and_may_do_little(name: str) -> None:
    spec = pod(DEPLOYMENTS[name])
    [container] = spec["containers"]
    assert spec["terminationGracePeriodSeconds"] > STOP_SECONDS.get(name, 30)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert f"USER {spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" in DOCKERFILE
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"requests", "limits"} == set(container["resources"])
    routes = {path for route in health.ROUTES for path in route.paths}
    for probe in ("startupProbe", "livenessProbe", *(["readinessProbe"] if name == "api" else [])):
        if name == "api":
            assert container[probe]["httpGet"]["path"] in routes
        else:
            seconds = re.findall(r"> (\d+)\)", container[probe]["exec"]["command"][2])
            assert int(seconds[0]) >= 3 * BEAT_SECONDS
