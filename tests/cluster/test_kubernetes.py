"""cluster/kubernetes against the published schemas, and what its objects say of each other.

`kuberay_fields.json` has the fields that are used here as the CRDs of KubeRay 1.5.1 and 1.7.0 define them alike; pods
are left to Kubernetes' own schema.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import requests
import yaml
from helpers.kustomize import rendered
from helpers.ports import free_ports
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "cluster" / "kubernetes"
FIELDS = json.loads((Path(__file__).parent / "kuberay_fields.json").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OLDEST = "1.29"
"""Kubernetes that knows init containers which go on beside the others."""

Object = dict[str, Any]


def by_kind(folder: str) -> dict[str, list[Object]]:
    found: dict[str, list[Object]] = {}
    for one in rendered(KUBERNETES / folder):
        found.setdefault(one["kind"], []).append(one)
    return found


def cluster(folder: str) -> Object:
    """Specification of the cluster in a folder: a RayCluster's own, or a RayJob's."""
    found = by_kind(folder)
    return found["RayCluster"][0]["spec"] if "RayCluster" in found else found["RayJob"][0]["spec"]["rayClusterSpec"]


def ray_pods(folder: str) -> dict[str, Object]:
    """Pod templates of a cluster by group."""
    spec = cluster(folder)
    return {g["groupName"]: g["template"] for g in spec["workerGroupSpecs"]} | {
        "head": spec["headGroupSpec"]["template"]
    }


def all_pods(folder: str) -> dict[str, Object]:
    others = [one for kind in ("Deployment", "StatefulSet") for one in by_kind(folder)[kind]]
    return ray_pods(folder) | {one["metadata"]["name"]: one["spec"]["template"] for one in others}


def check(one: Object) -> None:
    """Raise where a schema does not know a field, or wants another value."""
    if one["kind"] not in FIELDS:
        kubernetes_validate.validate(one, OLDEST, strict=True)
        return
    jsonschema.validate(one, {"$defs": FIELDS["$defs"], **FIELDS[one["kind"]]})
    spec = one["spec"].get("rayClusterSpec", one["spec"])
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"} | group["template"]["metadata"]}
        kubernetes_validate.validate(pod | {"spec": group["template"]["spec"]}, OLDEST, strict=True)


@pytest.mark.parametrize("folder", ["base", "example"])
def test_every_field_is_one_that_kubernetes_and_kuberay_know(folder: str) -> None:
    for one in rendered(KUBERNETES / folder):
        check(one)


def test_a_misspelled_field_is_found_at_any_depth() -> None:
    (misspelled,) = by_kind("base")["RayCluster"]
    for place in (misspelled["spec"], misspelled["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]):
        place["replica"] = 1
        with pytest.raises(Exception, match="replica"):
            check(misspelled)
        del place["replica"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is what the other tests here stand in for")
@pytest.mark.parametrize("folder", ["base", "example"])
def test_kubectl_makes_the_same_of_the_folders(folder: str) -> None:
    made = subprocess.run(["kubectl", "kustomize", KUBERNETES / folder], capture_output=True, text=True, check=True)
    found, expected = list(yaml.safe_load_all(made.stdout)), rendered(KUBERNETES / folder)
    assert sorted(map(repr, map(_sorted, found))) == sorted(map(repr, map(_sorted, expected)))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("folder", ["base", "example"])
def test_no_container_is_root_or_may_become_it(folder: str) -> None:
    for name, pod in all_pods(folder).items():
        assert pod["spec"]["securityContext"]["runAsNonRoot"] and pod["spec"]["securityContext"]["runAsUser"] > 0, name
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]:
            own = container["securityContext"]
            assert (own["allowPrivilegeEscalation"], own["capabilities"]) == (False, {"drop": ["ALL"]}), name


def test_ray_cluster_has_the_projects_ray_a_token_and_a_head_that_remembers() -> None:
    spec, services = cluster("base"), {one["metadata"]["name"]: one for one in by_kind("base")["Service"]}
    ray = next(Requirement(r) for r in PROJECT["project"]["dependencies"] if r.startswith("ray["))
    assert spec["rayVersion"] in ray.specifier
    assert spec["authOptions"] == {"mode": "token"}
    host, port = spec["gcsFaultToleranceOptions"]["redisAddress"].split(":")
    assert services[host]["spec"]["ports"] == [{"port": int(port)}]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "the head runs drivers only"


def test_gpu_nodes_are_whole_and_of_80_gb() -> None:
    gpu = ray_pods("base")["a100"]["spec"]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    (term,) = gpu["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert all(product.endswith("80GB") for product in term["matchExpressions"][0]["values"])
    limits = {name: pod["spec"]["containers"][0]["resources"]["limits"] for name, pod in ray_pods("base").items()}
    assert [name for name, limit in limits.items() if "nvidia.com/gpu" in limit] == ["a100"]


@pytest.mark.parametrize("folder", ["base", "example"])
def test_every_pod_has_equal_requests_and_limits_and_memory_for_the_object_store(folder: str) -> None:
    for name, pod in ray_pods(folder).items():
        container = pod["spec"]["containers"][0]
        assert container["resources"]["requests"] == container["resources"]["limits"], name
        mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
        volume = next(v for v in pod["spec"]["volumes"] if v["name"] == mounts["/dev/shm"])
        assert volume["emptyDir"]["medium"] == "Memory", name
        memory, shm = (
            int(s.removesuffix("Gi"))
            for s in (container["resources"]["limits"]["memory"], volume["emptyDir"]["sizeLimit"])
        )
        assert shm <= 0.4 * memory, f"{name}: /dev/shm counts as memory of the pod"


def test_what_is_taken_away_has_time_to_save_and_its_logs_are_kept() -> None:
    pods = ray_pods("base")
    stop = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text())["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]
    for name in ("head", "a100"):
        assert pods[name]["spec"]["terminationGracePeriodSeconds"] > int(stop)
        assert pods[name]["spec"]["containers"][0]["lifecycle"]["preStop"]
        assert pods[name]["spec"]["priorityClassName"] == by_kind("base")["PriorityClass"][0]["metadata"]["name"]
    settings = {one["metadata"]["name"]: one["data"] for one in by_kind("base")["ConfigMap"]}
    for name, pod in pods.items():
        ray, logs = pod["spec"]["containers"][0], pod["spec"]["initContainers"][0]
        assert logs["restartPolicy"] == "Always", name
        folder = next(m for m in logs["volumeMounts"] if m["name"] == "ray")
        assert {"name": "ray", "mountPath": folder["mountPath"]} in ray["volumeMounts"]
        file = next(m for m in logs["volumeMounts"] if m["name"] == "logs")["subPath"]
        assert f"Path {folder['mountPath']}/session_latest/logs/" in settings["llip-logs"][file]


def test_a_head_that_is_taken_away_lets_its_jobs_save_first() -> None:
    """As Ray starts a job: a shell, below it the program, both with a variable that is another one here."""
    command = ray_pods("base")["head"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:2] == ["python", "-c"] and "RAY_JOB_CONFIG_JSON_ENV_VAR" in command[2]
    mark = f"JOB_OF_{os.getpid()}"
    saves = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved') or 143)); "
    saves += "print('runs', flush=True); time.sleep(60)"
    shell = f'"{sys.executable}" -c "{saves}"; exit $?'
    job = subprocess.Popen(shell, shell=True, env=os.environ | {mark: ""}, stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None and job.stdout.readline() == "runs\n"
    stopping = command[2].replace("RAY_JOB_CONFIG_JSON_ENV_VAR", mark)
    subprocess.run([sys.executable, "-c", stopping], check=True, timeout=60)
    assert (job.stdout.read(), job.wait(60)) == ("saved\n", 143)


def test_policies_and_budgets_are_about_pods_that_exist() -> None:
    found = by_kind("base")
    labels = [pod["metadata"]["labels"] for pod in all_pods("base").values()]
    labels.append({"app": "llip", "ray.io/node-type": "head"})  # the second is KubeRay's own
    for policy in found["NetworkPolicy"]:
        assert policy["spec"]["podSelector"]["matchLabels"] in labels, policy["metadata"]["name"]
    for budget in found["PodDisruptionBudget"]:
        assert budget["spec"]["selector"]["matchLabels"] in labels, budget["metadata"]["name"]
    covered = [policy["spec"]["podSelector"]["matchLabels"]["app"] for policy in found["NetworkPolicy"]]
    assert sorted(covered) == sorted({label["app"] for label in labels})


def test_every_pod_knows_the_tracking_server_and_secrets_are_made_as_the_page_says() -> None:
    (settings,) = [one["data"] for one in by_kind("base")["ConfigMap"] if one["metadata"]["name"] == "llip"]
    assert settings["MLFLOW_TRACKING_URI"] == "http://mlflow:5000" and "AWS_REGION" in settings
    named: set[str] = set()
    for name, pod in all_pods("base").items():
        container = pod["spec"]["containers"][0]
        sources = [next(iter(s.values())) for s in container.get("envFrom", []) if "secretRef" in s]
        keys = [v["valueFrom"]["secretKeyRef"] for v in container.get("env", []) if "valueFrom" in v]
        named |= {source["name"] for source in [*sources, *keys]}
        if name in ("head", "a100", "cpu"):
            assert [s["name"] for s in sources] == ["llip-s3", "llip-mlflow-client"], name
            assert {"configMapRef": {"name": "llip"}} in container["envFrom"], name
        assert pod["spec"].get("serviceAccountName", "llip") == "llip", name
    page = (ROOT / "cluster" / "README.md").read_text()
    assert set(re.findall(r"kubectl create secret generic (\S+)", page)) == named
    assert "Secret" not in by_kind("base")


def test_a_job_has_the_cluster_with_its_components_and_is_submitted_again() -> None:
    (job,) = by_kind("example")["RayJob"]
    spec = job["spec"]
    assert spec["backoffLimit"] > 0 and spec["shutdownAfterJobFinishes"]
    assert job["metadata"]["labels"] == {"app": "llip", "kueue.x-k8s.io/queue-name": "llip"}
    workers = spec["rayClusterSpec"]["workerGroupSpecs"][0]
    assert f"--workers {8 * workers['replicas']}" in spec["entrypoint"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]
    assert "enableInTreeAutoscaling" not in spec["rayClusterSpec"], "Kueue counts what is there from the start"
    container = workers["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["vpc.amazonaws.com/efa"] == "4"
    assert {"name": "FI_PROVIDER", "value": "efa"} in container["env"]
    environment = yaml.safe_load(spec["runtimeEnvYAML"])
    assert environment["working_dir"].endswith(".zip"), "Ray unpacks zips only"
    assert environment["env_vars"] == yaml.safe_load((ROOT / "cluster/runtime_env.yaml").read_text())["env_vars"]


def test_infiniband_adds_its_cards_and_settings(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(KUBERNETES, folder)
    example = yaml.safe_load((folder / "example/kustomization.yaml").read_text())
    (folder / "example/kustomization.yaml").write_text(yaml.safe_dump(example | {"components": ["../infiniband"]}))
    objects = rendered(folder / "example")
    for one in objects:
        check(one)
    (ray,) = [one for one in objects if one["kind"] == "RayCluster"]
    container = ray["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["resources"]["limits"]["rdma/hca_shared_devices_a"] == "1"
    assert "NCCL_IB_HCA" in [variable["name"] for variable in container["env"]]


@pytest.mark.slow
def test_the_tracking_server_starts_as_its_container_does_and_asks_for_a_password(tmp_path: Path) -> None:
    """With SQLite, whose path has what the file of passwords has to quote."""
    (container,) = next(one for one in by_kind("base")["Deployment"])["spec"]["template"]["spec"]["containers"]
    port = free_ports(1)[0]
    settings = {variable["name"]: variable["value"] for variable in container["env"]}
    settings |= {"ARTIFACTS": str(tmp_path / "artifacts"), "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini")}
    settings |= {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/100%41.db", "MLFLOW_FLASK_SERVER_SECRET_KEY": "key"}
    settings |= {"MLFLOW_AUTH_ADMIN_USERNAME": "llip", "MLFLOW_AUTH_ADMIN_PASSWORD": "a long password"}
    command = [*container["command"], *(text.replace("5000", str(port)) for text in container["args"])]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log, start_new_session=True)
    address = f"http://localhost:{port}"
    probe = container["startupProbe"]["httpGet"]
    try:
        deadline = time.monotonic() + 240
        while not _answers(f"{address}{probe['path']}"):
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.5)
        search = "/api/2.0/mlflow/experiments/search?max_results=1"
        refused, answered = (requests.get(address + search, auth=auth) for auth in (None, ("llip", "a long password")))
        assert (refused.status_code, answered.status_code) == (401, 200)
        assert [one["name"] for one in answered.json()["experiments"]] == ["Default"]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=10).status_code == 200
    except requests.ConnectionError:
        return False
