"""What can be known of the cluster's files without a cluster: Ray's check of the launcher file, structure, syntax."""

import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def documents(name: str) -> dict[str, dict[str, Any]]:
    """The documents of a manifest, by kind."""
    return {d["kind"]: d for d in yaml.safe_load_all((CLUSTER / name).read_text())}


@pytest.fixture(scope="module")
def ray_cluster() -> dict[str, Any]:
    return documents("kuberay.yaml")["RayCluster"]


def pods(ray_cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Pod specifications of a RayCluster by group."""
    spec = ray_cluster["spec"]
    groups = {g["groupName"]: g for g in spec["workerGroupSpecs"]} | {"head": spec["headGroupSpec"]}
    return {name: g["template"]["spec"] for name, g in groups.items()}


def requirement(name: str) -> SpecifierSet:
    found = [r for r in map(Requirement, PROJECT["project"]["dependencies"]) if r.name == name]
    return found[0].specifier


def images() -> set[str]:
    ray_pods = pods(documents("kuberay.yaml")["RayCluster"]).values()
    mlflow = documents("mlflow.yaml")["Deployment"]["spec"]["template"]["spec"]
    launcher = yaml.safe_load((CLUSTER / "aws.yaml").read_text())["docker"]["image"]
    return {c["image"] for pod in [*ray_pods, mlflow] for c in pod["containers"]} | {launcher}


def test_ray_accepts_the_launcher_file() -> None:
    config = prepare_config(yaml.safe_load((CLUSTER / "aws.yaml").read_text()))
    validate_config(config)
    assert config["setup_commands"] == [], "the image holds everything; Ray's default would install a nightly wheel"
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert "/root/.ray/auth_token" in config["file_mounts"]
    assert config["available_node_types"]["a100"]["node_config"]["InstanceType"] == "p4d.24xlarge"


def test_ray_refuses_a_misspelled_launcher_file() -> None:
    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text()) | {"max_worker": 3}
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(config))


def test_ray_cluster_has_token_authentication_and_the_projects_ray(ray_cluster: dict[str, Any]) -> None:
    assert ray_cluster["apiVersion"] == "ray.io/v1"
    assert ray_cluster["spec"]["authOptions"] == {"mode": "token"}
    assert ray_cluster["spec"]["rayVersion"] in requirement("ray")


def test_gpu_nodes_are_whole_and_head_runs_no_work(ray_cluster: dict[str, Any]) -> None:
    gpu = pods(ray_cluster)["a100"]["containers"][0]["resources"]
    assert gpu["limits"]["nvidia.com/gpu"] == "8"
    assert ray_cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    without = [
        n for n, p in pods(ray_cluster).items() if "nvidia.com/gpu" not in p["containers"][0]["resources"]["limits"]
    ]
    assert sorted(without) == ["cpu", "head"]


def test_every_pod_has_equal_requests_and_limits_and_memory_for_the_object_store(ray_cluster: dict[str, Any]) -> None:
    for name, pod in pods(ray_cluster).items():
        container = pod["containers"][0]
        assert container["resources"]["requests"] == container["resources"]["limits"], name
        mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
        volume = next(v for v in pod["volumes"] if v["name"] == mounts["/dev/shm"])
        assert volume["emptyDir"]["medium"] == "Memory", name
        memory, shm = (
            int(s.removesuffix("Gi"))
            for s in (container["resources"]["limits"]["memory"], volume["emptyDir"]["sizeLimit"])
        )
        assert shm <= 0.4 * memory, f"{name}: /dev/shm counts as memory of the pod"


def test_every_pod_knows_the_tracking_server_and_the_bucket(ray_cluster: dict[str, Any]) -> None:
    variables = documents("kuberay.yaml")["ConfigMap"]["data"]
    service = documents("mlflow.yaml")["Service"]
    assert (
        variables["MLFLOW_TRACKING_URI"]
        == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    )
    assert "AWS_REGION" in variables
    for name, pod in pods(ray_cluster).items():
        sources = [next(iter(s.values()))["name"] for s in pod["containers"][0]["envFrom"]]
        assert sources == ["llip", "llip-s3"], name


def test_ray_job_runs_on_the_cluster(ray_cluster: dict[str, Any]) -> None:
    job = documents("rayjob.yaml")["RayJob"]
    assert job["apiVersion"] == "ray.io/v1"
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": ray_cluster["metadata"]["name"]}
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["working_dir"].endswith(".zip"), "Ray unpacks zips only"


def test_tracking_server_admits_the_name_that_clients_use() -> None:
    deployment = documents("mlflow.yaml")["Deployment"]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    flags = dict(a.removeprefix("--").split("=", 1) for a in container["args"])
    assert {"mlflow", "mlflow:5000"} <= set(flags["allowed-hosts"].split(","))
    assert {"name": "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "value": "false"} in container["env"]
    assert deployment["spec"]["strategy"]["type"] == "Recreate"


def test_all_files_name_one_image() -> None:
    assert images() == {f"llip:{PROJECT['project']['version']}"}


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
