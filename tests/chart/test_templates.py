"""What the chart makes of its values."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from pydantic import JsonValue
from tests.chart.rendering import Manifest, at, helm, is_hook, manifests, only, template

from chart_files import generated
from devcluster.failure import ClusterError
from devcluster.installation import CHART, NAMESPACE
from finetune_api.crd import crd
from finetune_api.manifest import GROUP, read_spec
from finetune_operator.settings.configuration import FILE, load_configuration

pytestmark = pytest.mark.usefixtures("helm_program")

ROOT = CHART.parents[1]
NAME = "finetune-operator"


@pytest.fixture(scope="module")
def default() -> list[Manifest]:
    return manifests()


def configuration(rendered: list[Manifest], directory: Path) -> object:
    """The configuration as the operator reads it."""
    file = directory / "config.yaml"
    file.write_text(str(at(only("ConfigMap", rendered), "data").get("config.yaml")))  # type: ignore[union-attr]
    return load_configuration({FILE: str(file)}).model_dump(mode="json", exclude_unset=True)


def test_what_is_generated_is_fresh() -> None:
    assert {path: (CHART / path).read_text() for path in generated()} == generated(), (
        "run: python charts/chart_files.py"
    )


def test_the_charts_version_is_the_projects() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_helm_finds_nothing_to_object_to() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", CHART)


def test_every_value_has_a_comment_and_a_schema() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    schema = json.loads((CHART / "values.schema.json").read_text())
    tops = [line.partition(":")[0] for line in lines if re.match(r"[a-zA-Z]", line)]
    assert set(tops) == set(schema["properties"]) - {"global", "enabled"}
    commented_together = {
        "tolerations",
        "affinity",
        "priorityClassName",
        "podLabels",
        "podAnnotations",
    }  # with nodeSelector
    for name in set(tops) - commented_together:
        number = next(number for number, line in enumerate(lines) if line.startswith(f"{name}:"))
        assert lines[number - 1].startswith("#") or lines[number + 1].lstrip().startswith("#"), name


def test_all_but_tests_and_cluster_wide_objects_is_in_the_releases_namespace(default: list[Manifest]) -> None:
    cluster_wide = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
    assert {at(each, "metadata.namespace") for each in default if each["kind"] not in cluster_wide} == {
        NAMESPACE
    }


def test_the_definition_is_the_models_own_and_stays_when_the_release_goes(default: list[Manifest]) -> None:
    definition = only("CustomResourceDefinition", default)
    assert definition["spec"] == crd()["spec"]
    assert at(definition, "metadata.annotations") == {"helm.sh/resource-policy": "keep"}


def test_the_definition_can_go_with_the_release_or_be_left_to_another() -> None:
    assert (
        at(
            only("CustomResourceDefinition", manifests(values={"crds": {"keep": False}})),
            "metadata.annotations",
        )
        is None
    )
    assert "CustomResourceDefinition" not in {
        each["kind"] for each in manifests(values={"crds": {"install": False}})
    }


def test_one_operator_is_at_work(default: list[Manifest]) -> None:
    spec = only("Deployment", default)["spec"]
    assert (at(spec, "replicas"), at(spec, "strategy.type")) == (1, "Recreate")


def test_the_configuration_is_a_file_that_the_operator_reads(tmp_path: Path) -> None:
    values: Manifest = {
        "trainerImage": {
            "repository": "registry.test/trainer",
            "digest": f"sha256:{'0' * 64}",
            "pullPolicy": "Always",
        },
        "watchNamespaces": ["a", "b"],
        "config": {
            "storage": "s3://runs",
            "network_policies": False,
            "accelerators": {"V100": None},
            "accelerator_names": {"g5.*": None, "my-*": "A10G"},
            "head": {"cpu": 2, "memory": "6Gi"},
        },
    }
    assert configuration(manifests(values=values), tmp_path) == {
        "trainer_image": f"registry.test/trainer@sha256:{'0' * 64}",
        "image_pull_policy": "Always",
        "watch_namespaces": ["a", "b"],
        "listen_port": 8080,
        "storage": "s3://runs",
        "network_policies": False,
        "accelerators": {"V100": None},
        "accelerator_names": {"g5.*": None, "my-*": "A10G"},
        "head": {"cpu": 2, "memory": "6Gi"},
    }


def test_images_are_of_the_charts_version_unless_said_otherwise(
    default: list[Manifest], tmp_path: Path
) -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    image = at(only("Deployment", default), "spec.template.spec.containers.0.image")
    assert str(image).endswith(f"/finetune-operator:{version}")
    assert str(configuration(default, tmp_path)).count(f"/finetune-trainer:{version}") == 1


def test_a_new_configuration_is_a_new_pod(default: list[Manifest]) -> None:
    path = ["spec.template.metadata.annotations", "/config"][0]
    other = manifests(values={"config": {"log_level": "DEBUG"}})
    assert at(only("Deployment", default), path) != at(only("Deployment", other), path)


def pods(rendered: list[Manifest]) -> list[Manifest]:
    """The specs of all pods, that of `helm test` included."""
    specs = [at(each, "spec.template.spec") for each in rendered if each["kind"] == "Deployment"]
    specs += [each["spec"] for each in rendered if each["kind"] == "Pod"]
    return [spec for spec in specs if isinstance(spec, dict)]


def test_every_pod_fits_restricted_and_has_a_read_only_root(default: list[Manifest]) -> None:
    assert len(pods(default)) == 2
    for spec in pods(default):
        context, container = at(spec, "securityContext"), at(spec, "containers.0.securityContext")
        assert isinstance(context, dict)
        assert context["runAsNonRoot"] is True
        assert isinstance(context["runAsUser"], int)
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "hostPath" not in json.dumps(spec)


def test_a_pod_says_what_it_needs_and_is_not_told_of_services(default: list[Manifest]) -> None:
    for spec in pods(default):
        assert at(spec, "containers.0.resources.requests.cpu")
        assert at(spec, "containers.0.resources.limits.memory")
        assert at(spec, "enableServiceLinks") is False


def rules(rendered: list[Manifest], kind: str = "ClusterRole") -> set[tuple[str, str, str]]:
    """What the operator may do: group, resource, verb."""
    [role] = [each for each in rendered if each["kind"] == kind and at(each, "metadata.name") == NAME]
    assert isinstance(role["rules"], list)
    found: set[tuple[str, str, str]] = set()
    for rule in role["rules"]:
        assert isinstance(rule, dict)
        assert set(rule) == {"apiGroups", "resources", "verbs"}
        found |= {
            (str(group), str(resource), str(verb))
            for group in _list(rule["apiGroups"])
            for resource in _list(rule["resources"])
            for verb in _list(rule["verbs"])
        }
    return found


def _list(value: JsonValue) -> list[JsonValue]:
    assert isinstance(value, list)
    return value


def test_the_operator_has_no_wildcard_no_secret_and_no_way_to_more_rights(default: list[Manifest]) -> None:
    granted = rules(default)
    assert not [each for each in granted if "*" in each]
    assert {
        resource
        for _, resource, _ in granted
        if "secret" in resource or "exec" in resource or "proxy" in resource
    } == set()
    assert not {verb for _, _, verb in granted} & {"escalate", "bind", "impersonate", "deletecollection"}
    assert {
        verb for _, resource, verb in granted if resource in ("roles", "rolebindings", "serviceaccounts")
    } == {"create"}


def test_of_kubernetes_jobs_the_operator_may_do_what_preparing_needs(default: list[Manifest]) -> None:
    assert {(group, verb) for group, resource, verb in rules(default) if resource == "jobs"} == {
        ("batch", "get"),
        ("batch", "create"),
        ("batch", "delete"),
    }


def test_without_network_policies_of_jobs_the_operator_may_not_make_any(default: list[Manifest]) -> None:
    without = rules(manifests(values={"config": {"network_policies": False}}))
    assert rules(default) - without == {("networking.k8s.io", "networkpolicies", "create")}


def test_in_namespaces_of_its_own_the_operator_has_the_same_rights_there_and_none_elsewhere(
    default: list[Manifest],
) -> None:
    rendered = manifests(values={"watchNamespaces": ["a", "b"]})
    roles = [each for each in rendered if each["kind"] == "Role" and not is_hook(each)]
    bindings = [each for each in rendered if each["kind"] == "RoleBinding" and not is_hook(each)]
    assert (
        [at(each, "metadata.namespace") for each in roles]
        == ["a", "b"]
        == [at(each, "metadata.namespace") for each in bindings]
    )
    assert {json.dumps(each["subjects"]) for each in bindings} == {
        json.dumps([{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}])
    }
    assert rules([roles[0]], "Role") == rules(default)
    assert not [each for each in rendered if each["kind"] == "ClusterRoleBinding"]
    assert NAME not in {at(each, "metadata.name") for each in rendered if each["kind"] == "ClusterRole"}


def test_who_may_edit_a_namespace_may_write_jobs_and_who_may_view_it_may_read_them(
    default: list[Manifest],
) -> None:
    edit, view = only("ClusterRole", default, "-edit"), only("ClusterRole", default, "-view")
    assert {key for key in _labels(edit) if key.startswith("rbac.")} == {
        f"rbac.authorization.k8s.io/aggregate-to-{role}" for role in ("admin", "edit")
    }
    assert {key for key in _labels(view) if key.startswith("rbac.")} == {
        f"rbac.authorization.k8s.io/aggregate-to-{role}" for role in ("admin", "edit", "view")
    }
    for role, verbs in (
        (edit, {"create", "update", "patch", "delete", "deletecollection"}),
        (view, {"get", "list", "watch"}),
    ):
        [rule] = _list(role["rules"])
        assert at(rule, "apiGroups") == [GROUP]
        assert at(rule, "resources") == ["finetunejobs"]
        assert set(map(str, _list(at(rule, "verbs")))) == verbs


def _labels(manifest: Manifest) -> dict[str, JsonValue]:
    labels = at(manifest, "metadata.labels")
    assert isinstance(labels, dict)
    return labels


def test_roles_can_be_left_to_others() -> None:
    rendered = manifests(values={"rbac": {"create": False, "aggregate": False}})
    assert not [each for each in rendered if "Role" in str(each["kind"]) and not is_hook(each)]


def test_an_account_of_somebody_elses_is_bound_and_not_made() -> None:
    rendered = manifests(values={"serviceAccount": {"create": False, "name": "mine"}})
    assert not [each for each in rendered if each["kind"] == "ServiceAccount" and not is_hook(each)]
    assert at(only("Deployment", rendered), "spec.template.spec.serviceAccountName") == "mine"
    assert at(only("ClusterRoleBinding", rendered), "subjects.0.name") == "mine"
    with pytest.raises(
        ClusterError,
        match=r"serviceAccount\.name: name the service account to use, or set serviceAccount\.create",
    ):
        manifests(values={"serviceAccount": {"create": False}})


def test_the_operators_pod_is_closed_and_calls_nothing_but_names_and_the_api(default: list[Manifest]) -> None:
    spec = only("NetworkPolicy", default)["spec"]
    assert at(spec, "policyTypes") == ["Ingress", "Egress"]
    assert at(spec, "ingress") is None, "the API server keeps no empty list: it would be drift"
    ports = [(at(each, "protocol"), at(each, "port")) for each in _list(at(spec, "egress.0.ports"))]
    assert ports == [("UDP", 53), ("TCP", 53), ("TCP", 443), ("TCP", 6443)]
    assert not [
        each
        for each in manifests(values={"networkPolicy": {"enabled": False}})
        if each["kind"] == "NetworkPolicy"
    ]


def test_metrics_are_for_whoever_is_to_ask_for_them() -> None:
    prometheus: Manifest = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    }
    scraped = only("NetworkPolicy", manifests(values={"metrics": {"serviceMonitor": {"enabled": True}}}))
    named = only("NetworkPolicy", manifests(values={"networkPolicy": {"metricsFrom": [prometheus]}}))
    assert at(scraped, "spec.ingress") == [{"ports": [{"protocol": "TCP", "port": "http"}]}]
    assert at(named, "spec.ingress.0.from") == [prometheus]


def test_monitoring_is_found_by_the_labels_that_are_asked_for() -> None:
    values: Manifest = {
        "metrics": {
            "serviceMonitor": {"enabled": True, "interval": "15s", "labels": {"release": "prom"}},
            "alerts": {"enabled": True, "labels": {"release": "prom"}},
            "dashboard": {"enabled": True, "annotations": {"grafana_folder": "ML"}},
        }
    }
    rendered = manifests(values=values)
    monitor, rule = only("ServiceMonitor", rendered), only("PrometheusRule", rendered)
    dashboard, service = only("ConfigMap", rendered, "-dashboard"), only("Service", rendered)
    assert _labels(monitor)["release"] == _labels(rule)["release"] == "prom"
    assert at(monitor, "spec.endpoints") == [
        {"port": at(service, "spec.ports.0.name"), "interval": "15s", "honorLabels": True}
    ]
    selected = at(monitor, "spec.selector.matchLabels")
    assert isinstance(selected, dict)
    assert selected.items() <= _labels(service).items()
    assert rule["spec"] == yaml.safe_load((CHART / "files/alerts.yaml").read_text())
    assert _labels(dashboard)["grafana_dashboard"] == "1"
    assert at(dashboard, "metadata.annotations") == {"grafana_folder": "ML"}
    data = at(dashboard, "data")
    assert isinstance(data, dict)
    assert json.loads(str(data["finetune-operator.json"])) == json.loads(
        (CHART / "files/dashboard.json").read_text()
    )


def test_the_services_port_is_the_pods(default: list[Manifest]) -> None:
    service, deployment = only("Service", default), only("Deployment", default)
    selector, labels = at(service, "spec.selector"), at(deployment, "spec.template.metadata.labels")
    assert isinstance(selector, dict)
    assert isinstance(labels, dict)
    assert selector.items() <= labels.items()
    assert at(service, "spec.ports.0.targetPort") == at(
        deployment, "spec.template.spec.containers.0.ports.0.name"
    )


def test_two_releases_share_no_name_in_the_cluster() -> None:
    def names(release: str) -> set[tuple[JsonValue, JsonValue]]:
        rendered = manifests(values={"crds": {"install": False}}, release=release)
        return {(each["kind"], at(each, "metadata.name")) for each in rendered}

    assert names("one") & names("two") == set()


def test_a_releases_name_may_be_long() -> None:
    for each in manifests(release="r" * 53):
        if each["kind"] != "CustomResourceDefinition":
            assert len(str(at(each, "metadata.name"))) <= 63


def helm_test_job(rendered: list[Manifest]) -> Manifest:
    """The job that `helm test` tries."""
    [held] = [each for each in rendered if each["kind"] == "ConfigMap" and is_hook(each)]
    return dict(yaml.safe_load(str(at(held, "data").get("job.yaml"))))  # type: ignore[union-attr]


def test_the_tried_job_is_one_and_trains_on_a_cpu(default: list[Manifest]) -> None:
    spec = read_spec(dict(at(helm_test_job(default), "spec")))  # type: ignore[arg-type]
    assert spec.worker_resources == {"accelerator_type:CPU": 0.001}
    assert [
        each["kind"] for each in default if is_hook(each) and each["kind"] == "PersistentVolumeClaim"
    ] == ["PersistentVolumeClaim"]


@pytest.mark.parametrize(
    "values",
    [{"config": {"storage": "s3://runs"}}, {"test": {"storage": "s3://runs"}}],
    ids=["config", "test"],
)
def test_the_tried_job_uses_storage_that_is_there(values: Manifest) -> None:
    rendered = manifests(values=values)
    assert at(helm_test_job(rendered), "spec.storage.path") == "s3://runs"
    assert not [each for each in rendered if each["kind"] == "PersistentVolumeClaim"]


def test_a_job_is_tried_where_the_operator_looks_with_what_is_laid_over_it() -> None:
    values: Manifest = {
        "watchNamespaces": ["a", "b"],
        "test": {"spec": {"num_epochs": 1, "cluster": {"node_selector": {"pool": "cpu"}}}},
    }
    rendered = manifests(values=values)
    assert {at(each, "metadata.namespace") for each in rendered if is_hook(each)} == {"a"}
    job = helm_test_job(rendered)
    assert at(job, "metadata.namespace") == "a"
    assert at(job, "spec.num_epochs") == 1
    assert at(job, "spec.cluster.node_selector") == {"pool": "cpu"}
    assert at(job, "spec.cluster.head.resources.requests.memory") == "4Gi"
    with pytest.raises(ClusterError, match=r"test\.namespace: must be one of watchNamespaces \(a, b\), is c"):
        manifests(values={"watchNamespaces": ["a", "b"], "test": {"namespace": "c"}})


def test_what_a_test_makes_goes_when_it_has_passed(default: list[Manifest]) -> None:
    policies = [at(each, "metadata.annotations") for each in default if is_hook(each)]
    assert {str(each.get("helm.sh/hook-delete-policy")) for each in policies if isinstance(each, dict)} == {
        "before-hook-creation,hook-succeeded"
    }


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image": {"pullPolicy": "Often"}}, r"/image/pullPolicy"),
        ({"trainerImage": {"digest": "sha256:1"}}, r"/trainerImage/digest"),
        ({"watchNamespaces": "team"}, r"/watchNamespaces"),
        ({"watchNamespaces": ["Team"]}, r"/watchNamespaces/0"),
        ({"crd": {"install": False}}, r"additional properties 'crd' not allowed"),
        ({"crds": {"instal": False}}, r"/crds.*additional properties 'instal' not allowed"),
        ({"config": {"log_level": "LOUD"}}, r"/config/log_level.*'DEBUG', 'INFO', 'WARNING', 'ERROR'"),
        ({"config": {"log_levle": "INFO"}}, r"/config.*additional properties 'log_levle' not allowed"),
        ({"config": {"trainer_image": "a"}}, r"/config.*additional properties 'trainer_image' not allowed"),
        (
            {"config": {"accelerators": {"L4": {"cpu": 1, "memry": "1Gi"}}}},
            r"/config/accelerators/L4.*(?s:.*)'memry' not allowed",
        ),
        ({"config": {"workers": 0}}, r"/config/workers.*minimum: got 0, want 1"),
        (
            {"metrics": {"serviceMonitor": {"interval": 30}}},
            r"/metrics/serviceMonitor/interval.*got number, want string",
        ),
        ({"enabled": "no"}, r"/enabled"),
        ({"podSecurityContext": {"runAsRoot": True}}, r"/podSecurityContext.*'runAsRoot' not allowed"),
        ({"config": {"pod_security_context": {"runAsUser": 0}}}, r"/config/pod_security_context/runAsUser"),
        ({"config": {"head": {"cpu": 0.5}}}, r"/config/head/cpu"),
        ({"networkPolicy": {"apiServerPorts": []}}, r"/networkPolicy/apiServerPorts"),
        ({"test": {"timeoutSeconds": "15m"}}, r"/test/timeoutSeconds"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_by_its_name(values: Manifest, said: str) -> None:
    with pytest.raises(ClusterError, match=said):
        template(values=values)


def test_an_old_kubernetes_is_refused() -> None:
    with pytest.raises(
        ClusterError,
        match=r"chart requires kubeVersion: >=1\.30\.0-0 which is incompatible with Kubernetes v1\.29",
    ):
        template("--kube-version=1.29.9")
    assert template("--kube-version=1.30.0-gke.100")


def test_a_cluster_without_kuberay_is_refused_and_says_what_to_install() -> None:
    connected = "--api-versions=apiregistration.k8s.io/v1"
    with pytest.raises(
        ClusterError,
        match=r"does not serve ray\.io/v1 RayJobs: install KubeRay 1\.6 or newer.*kuberay\.check=false",
    ):
        template(connected)
    assert template(connected, "--api-versions=ray.io/v1/RayJob")
    assert template(connected, values={"kuberay": {"check": False}})
    assert template(), "without a cluster nothing is known of it"
