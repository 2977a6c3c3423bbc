"""What can be known of the cluster's files without a cluster: Ray's check of the launcher file, structure, syntax."""

import re
import subprocess
import tomllib
from pathlib import Path

import botocore.session
import pytest
import torch
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.aws.config import _configure_from_network_interfaces
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_ray_accepts_the_launcher_file() -> None:
    config = prepare_config(yaml.safe_load((CLUSTER / "aws.yaml").read_text()))
    validate_config(config)
    assert config["setup_commands"] == [], "the image holds everything; Ray's default would install a nightly wheel"
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert "/root/.ray/auth_token" in config["file_mounts"]


def test_aws_takes_the_nodes_of_the_launcher_file() -> None:
    """As Ray calls it: EC2's own model of the call refuses what it does not know."""
    config = _configure_from_network_interfaces(prepare_config(yaml.safe_load((CLUSTER / "aws.yaml").read_text())))
    call = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    nodes = {name: kind["node_config"] for name, kind in config["available_node_types"].items()}
    for name, node in nodes.items():
        own = {key: value for key, value in node.items() if key != "SubnetIds"} | {"MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(own, call)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
    gpu = nodes["a100"]
    assert gpu["InstanceType"] == "p4de.24xlarge" and gpu["Placement"]["GroupName"]
    cards = [(card["NetworkCardIndex"], card["DeviceIndex"]) for card in gpu["NetworkInterfaces"]]
    assert cards == [(0, 0), (1, 1), (2, 1), (3, 1)]
    assert {card["InterfaceType"] for card in gpu["NetworkInterfaces"]} == {"efa"}
    most = {name: kind["max_workers"] for name, kind in config["available_node_types"].items()}
    assert config["max_workers"] >= most["a100"] + most["cpu"]


def test_ray_refuses_a_misspelled_launcher_file() -> None:
    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text()) | {"max_worker": 3}
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(config))


def test_all_files_name_one_image() -> None:
    found = {image for file in CLUSTER.rglob("*.yaml") for image in re.findall(r"image: (llip\S*)", file.read_text())}
    assert found == {f"llip:{PROJECT['project']['version']}"}


def test_image_takes_its_dependencies_from_pyproject() -> None:
    lines = (CLUSTER / "Dockerfile").read_text()
    command = next(line for line in lines.splitlines() if "uv sync" in line).split()
    assert {"--no-install-project", "--no-default-groups"} <= set(command), (
        "dependencies, without the project and its tests"
    )
    groups = [command[i + 1] for i, word in enumerate(command) if word == "--group"]
    assert sorted(groups) == ["cluster", "demo"] and set(groups) <= set(PROJECT["dependency-groups"])
    assert "COPY pyproject.toml ." in lines


@pytest.mark.skipif(torch.version.cuda is None, reason="this platform's torch is built without CUDA")
def test_image_has_the_cuda_that_torch_is_built_with() -> None:
    assert f"FROM nvidia/cuda:{torch.version.cuda}." in (CLUSTER / "Dockerfile").read_text()


@pytest.mark.parametrize("script", sorted(CLUSTER.glob("*.sh")), ids=lambda p: p.name)
def test_shell_scripts_parse(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert script.stat().st_mode & 0o100, f"{script.name} is not executable"
