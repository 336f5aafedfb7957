"""The operator's configuration: what may be said, by whom, and what is said about mistakes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from finetune_api.cluster import Reference
from finetune_api.failure import FailureClass, FineTuneError
from finetune_operator.settings.accelerator_profiles import AcceleratorProfile, effective_profiles
from finetune_operator.settings.configuration import (
    FILE,
    PREFIX,
    Configuration,
    NetworkPolicyPeer,
    PodResources,
    PodSecurityContext,
    load_configuration,
)

ROOT = Path(__file__).parents[3]
IMAGE = {f"{PREFIX}TRAINER_IMAGE": "trainer:1"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def from_file(file: Path, text: str, **variables: str) -> Configuration:
    file.write_text(text)
    return load_configuration({FILE: str(file), **from_variables(**variables)})


def from_variables(**variables: str) -> dict[str, str]:
    return {f"{PREFIX}{name}": value for name, value in variables.items()}


def problems(environ: Mapping[str, str]) -> list[str]:
    with pytest.raises(FineTuneError) as caught:
        load_configuration(environ)
    assert caught.value.failure_class is FailureClass.INVALID_SPEC
    return list(caught.value.problems)


def problems_in(file: Path, text: str, **variables: str) -> list[str]:
    """The problems, with the file's name instead of its path."""
    file.write_text(text)
    return [
        line.replace(str(file), file.name)
        for line in problems({FILE: str(file), **from_variables(**variables)})
    ]


def test_an_image_is_enough() -> None:
    configuration = load_configuration(IMAGE)
    assert configuration == Configuration(trainer_image="trainer:1")
    assert configuration.model_dump(exclude={"ray_version", "ray_job_labels"}) == {
        "trainer_image": "trainer:1",
        "image_pull_policy": "IfNotPresent",
        "image_pull_secrets": [],
        "storage": None,
        "accelerators": {},
        "accelerator_names": {},
        "default_accelerator": "CPU",
        "head": {"cpu": 1, "memory": "8Gi"},
        "prepare": None,
        "submitter": {"cpu": "100m", "memory": "1Gi"},
        "pod_security_context": {
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "supplementalGroups": None,
        },
        "ray_job_annotations": ["provreq.kueue.x-k8s.io/maxRunDurationSeconds"],
        "watch_namespaces": [],
        "network_policies": True,
        "dashboard_clients": [],
        "workers": 32,
        "resync_seconds": 60,
        "listen_port": 8080,
        "log_level": "INFO",
        "log_format": "json",
    }


def test_the_default_version_of_ray_is_that_of_the_trainers_image() -> None:
    pinned = re.search(r"^ray==(\S+)", (ROOT / "locks" / "image.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert Configuration(trainer_image="x").ray_version == pinned[1]


def test_every_field_can_be_set_in_the_file(file: Path) -> None:
    configuration = from_file(
        file,
        """
        trainer_image: registry.example.com/trainer:2
        image_pull_policy: Always
        image_pull_secrets: [{name: registry}]
        ray_version: 2.55.1
        storage: s3://bucket/runs
        accelerators:
          MINE: {resource: example.com/gpu, node_labels: [{gpu: [a, b]}], cpu: 4, memory: 16Gi}
          T4: null
        accelerator_names: {my-*: MINE, g5.*: null}
        default_accelerator: MINE
        head: {cpu: 2, memory: 16Gi}
        prepare: {cpu: 4, memory: 32Gi}
        submitter: {cpu: 500m, memory: 2Gi}
        pod_security_context: {fsGroup: 2000, supplementalGroups: [3000]}
        ray_job_labels: [example.com/queue]
        ray_job_annotations: []
        watch_namespaces: [one, two]
        network_policies: false
        dashboard_clients:
          - {namespaceSelector: {}, podSelector: {matchLabels: {app: kuberay}}}
          - {ipBlock: {cidr: 10.0.0.0/8}}
        workers: 2
        resync_seconds: 30
        listen_port: 9090
        log_level: DEBUG
        log_format: text
        """,
    )
    assert configuration.model_fields_set == set(Configuration.model_fields)
    mine = AcceleratorProfile(
        resource="example.com/gpu", node_labels=[{"gpu": ["a", "b"]}], cpu=4, memory="16Gi"
    )
    assert configuration == Configuration(
        trainer_image="registry.example.com/trainer:2",
        image_pull_policy="Always",
        image_pull_secrets=[Reference(name="registry")],
        ray_version="2.55.1",
        storage="s3://bucket/runs",
        accelerators={"MINE": mine, "T4": None},
        accelerator_names={"my-*": "MINE", "g5.*": None},
        default_accelerator="MINE",
        head=PodResources(cpu=2, memory="16Gi"),
        prepare=PodResources(cpu=4, memory="32Gi"),
        submitter=PodResources(cpu="500m", memory="2Gi"),
        pod_security_context=PodSecurityContext(fsGroup=2000, supplementalGroups=[3000]),
        ray_job_labels=["example.com/queue"],
        ray_job_annotations=[],
        watch_namespaces=["one", "two"],
        network_policies=False,
        dashboard_clients=[
            NetworkPolicyPeer(namespaceSelector={}, podSelector={"matchLabels": {"app": "kuberay"}}),
            NetworkPolicyPeer(ipBlock={"cidr": "10.0.0.0/8"}),
        ],
        workers=2,
        resync_seconds=30,
        listen_port=9090,
        log_level="DEBUG",
        log_format="text",
    )


def test_every_field_can_be_set_in_the_environment() -> None:
    configuration = load_configuration(
        from_variables(
            TRAINER_IMAGE="trainer:2",
            IMAGE_PULL_POLICY="Never",
            IMAGE_PULL_SECRETS='[{"name": "registry"}]',
            POD_SECURITY_CONTEXT="{}",
            RAY_JOB_LABELS='["example.com/queue"]',
            RAY_JOB_ANNOTATIONS='["example.com/note"]',
            RAY_VERSION="2.55.1",
            STORAGE="pvc://claim/runs",
            ACCELERATORS='{"A100-40G": null, "MINE": {"cpu": 1, "memory": "1Gi"}}',
            ACCELERATOR_NAMES='{"my-*": "MINE"}',
            DEFAULT_ACCELERATOR="MINE",
            HEAD='{"cpu": 3, "memory": "9Gi"}',
            PREPARE='{"cpu": 4, "memory": "10Gi"}',
            SUBMITTER__CPU="200m",
            WATCH_NAMESPACES="one, two",
            NETWORK_POLICIES="false",
            DASHBOARD_CLIENTS='[{"namespaceSelector": {}}]',
            WORKERS="2",
            RESYNC_SECONDS="30",
            LISTEN_PORT="9090",
            LOG_LEVEL="ERROR",
            LOG_FORMAT="text",
        )
    )
    assert configuration.model_fields_set == set(Configuration.model_fields)
    assert configuration.watch_namespaces == ["one", "two"]
    assert configuration.network_policies is False
    assert configuration.dashboard_clients == [NetworkPolicyPeer(namespaceSelector={})]
    assert configuration.listen_port == 9090
    assert configuration.head == PodResources(cpu=3, memory="9Gi")
    assert configuration.prepare == PodResources(cpu=4, memory="10Gi")
    assert configuration.submitter == PodResources(cpu="200m", memory="1Gi")
    assert configuration.pod_security_context == PodSecurityContext()
    assert (configuration.ray_job_labels, configuration.ray_job_annotations) == (
        ["example.com/queue"],
        ["example.com/note"],
    )
    assert "A100-40G" not in configuration.profiles
    assert configuration.profiles["MINE"] == AcceleratorProfile(cpu=1, memory="1Gi")


def test_the_environment_wins_over_the_file(file: Path) -> None:
    configuration = from_file(file, "trainer_image: a\nworkers: 2\n", TRAINER_IMAGE="b")
    assert (configuration.trainer_image, configuration.workers) == ("b", 2)


def test_cpu_and_memory_of_a_pod_are_set_one_by_one(file: Path) -> None:
    configuration = from_file(
        file,
        "trainer_image: a\nhead: {memory: 20Gi}\nsubmitter: {cpu: 1}\n",
        HEAD__CPU="3",
        SUBMITTER__CPU="2",
    )
    assert configuration.head == PodResources(cpu="3", memory="20Gi")
    assert configuration.submitter == PodResources(cpu="2", memory="1Gi")


def test_accelerators_of_the_environment_replace_those_of_the_file(file: Path) -> None:
    configuration = from_file(
        file, "trainer_image: a\naccelerators: {T4: null}\n", ACCELERATORS='{"L4": null}'
    )
    assert set(effective_profiles({})) - set(configuration.profiles) == {"L4"}


def test_without_an_argument_the_processs_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}TRAINER_IMAGE", "from-the-process")
    assert load_configuration().trainer_image == "from-the-process"


def test_a_given_environment_counts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}WORKERS", "3")
    assert load_configuration(IMAGE).workers == 32
    assert Configuration(trainer_image="x").workers == 32


def test_variables_of_others_do_not_matter() -> None:
    assert (
        load_configuration({**IMAGE, "WORKERS": "3", "FINETUNE_WORKERS": "4", "PATH": "/bin"}).workers == 32
    )


@pytest.mark.parametrize("service", ["FINETUNE_OPERATOR", "FINETUNE_OPERATOR_METRICS"])
def test_variables_that_kubernetes_sets_for_a_service_do_not_matter(service: str) -> None:
    links = {
        f"{service}_SERVICE_HOST": "10.0.0.1",
        f"{service}_SERVICE_PORT": "8080",
        f"{service}_SERVICE_PORT_METRICS": "8080",
        f"{service}_PORT": "tcp://10.0.0.1:8080",
        f"{service}_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        f"{service}_PORT_8080_TCP_PROTO": "tcp",
        f"{service}_PORT_8080_TCP_PORT": "8080",
        f"{service}_PORT_8080_TCP_ADDR": "10.0.0.1",
    }
    assert load_configuration({**IMAGE, **links}) == load_configuration(IMAGE)


def test_an_image_is_required(file: Path) -> None:
    assert problems({}) == [f"{PREFIX}TRAINER_IMAGE: trainer_image: is required"]
    assert problems_in(file, "workers: 3\n") == ["config.yaml: trainer_image: is required"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "TRAINER_IMAGE",
            "my image",
            (
                "trainer_image: must be the name of an image, such as registry.example.com/trainer:1.0, is"
                " 'my image'"
            ),
        ),
        (
            "IMAGE_PULL_POLICY",
            "Often",
            "image_pull_policy: must be 'Always', 'IfNotPresent' or 'Never', is 'Often'",
        ),
        ("RAY_VERSION", "new", "ray_version: must be a version, such as 2.60.0, is 'new'"),
        ("STORAGE", "http://x", "storage: must be a plain path, s3://BUCKET/path, gs://BUCKET/path"),
        ("ACCELERATORS", "{no JSON", "accelerators: must be a map of fields, is '{no JSON'"),
        ("ACCELERATORS", '{"X": {"cpu": 1}}', "accelerators.X.memory: is required"),
        (
            "ACCELERATORS",
            '{"a b": null}',
            "accelerators[a b]: must be a type's name, letters, digits and `-`, such as A100-80G, is 'a b'",
        ),
        ("DEFAULT_ACCELERATOR", "A1000", "default_accelerator: must be one of CPU, T4, "),
        ("HEAD", "[]", "head: must be a map of fields, is a list"),
        ("HEAD__CPU", "much", "head.cpu: must be a quantity such as 2, 500m or 16Gi, is 'much'"),
        (
            "SUBMITTER__MEMORY",
            "1 GB",
            "submitter.memory: must be a quantity such as 2, 500m or 16Gi, is '1 GB'",
        ),
        (
            "WATCH_NAMESPACES",
            "ok,No_Good",
            (
                "watch_namespaces: must be a namespace: at most 63 lower-case letters, digits and `-`, is"
                " 'No_Good'"
            ),
        ),
        ("NETWORK_POLICIES", "maybe", "network_policies: must be true or false, is 'maybe'"),
        (
            "DASHBOARD_CLIENTS",
            "[{}]",
            "dashboard_clients[0]: must have a podSelector, a namespaceSelector or an ipBlock",
        ),
        (
            "DASHBOARD_CLIENTS",
            '[{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]',
            "dashboard_clients[0]: must have an ipBlock, or else selectors, not both",
        ),
        ("WORKERS", "0", "workers: must be at least 1, is '0'"),
        ("RESYNC_SECONDS", "1m", "resync_seconds: must be a whole number, is '1m'"),
        ("LISTEN_PORT", "70000", "listen_port: must be at most 65535, is '70000'"),
        ("LOG_LEVEL", "LOUD", "log_level: must be 'DEBUG', 'INFO', 'WARNING' or 'ERROR', is 'LOUD'"),
        ("LOG_FORMAT", "xml", "log_format: must be 'json' or 'text', is 'xml'"),
    ],
)
def test_a_wrong_variable_is_named_with_what_would_be_right(name: str, value: str, said: str) -> None:
    [problem] = problems({**IMAGE, f"{PREFIX}{name}": value})
    assert problem.startswith(f"{PREFIX}{name}: {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workers: true", "workers: must be a number, is true"),
        ("trainer_image: 5", "trainer_image: must be a text, is 5; put it in quotes"),
        ("head: {cpus: 1}", "head.cpus: is not a known field; did you mean cpu?"),
        ("head: {cpu: [1]}", "head.cpu: must be a quantity such as 2, 500m or 16Gi, is a list"),
        ("watch_namespaces: [fine, -no]", "watch_namespaces[1]: must be a namespace"),
        (
            "pod_security_context: {runAsUser: 0}",
            "pod_security_context.runAsUser: must be at least 1, is 0",
        ),
        (
            "pod_security_context: {run_as_user: 1}",
            "pod_security_context.run_as_user: is not a known field; did you mean runAsUser?",
        ),
        ("image_pull_secrets: [registry]", "image_pull_secrets[0]: must be a map of fields, is 'registry'"),
        (
            "ray_job_labels: [kueue.x-k8s.io/*]",
            "ray_job_labels[0]: must be a label's name, such as cloud.google.com/gke-accelerator, is",
        ),
        (
            "accelerators: {X: {cpu: 1, memory: 1Gi, resource: a.b/c, resource_claim_template: d}}",
            "accelerators.X: must have a resource or a resource_claim_template, not both: either is the",
        ),
        (
            "accelerators: {X: {cpu: 1, memory: 1Gi, resource_claim_template: One GPU}}",
            "accelerators.X.resource_claim_template: must be lower-case letters, digits, `-` and `.`, with a",
        ),
        ("log_levle: INFO", "log_levle: is not a known field; did you mean log_level?"),
        ("accelerators: {CPU: null}", "default_accelerator: must be one of T4, "),
        (
            "accelerators: {X: {cpu: 1, memory: 1Gi, node_labels: [{gpu: [16]}]}}",
            "accelerators.X.node_labels[0].gpu[0]: must be a text, is 16; put it in quotes",
        ),
        (
            "accelerators: {A100-40G: {cpu: 1, memory: 1Gi, node_label: []}}",
            "accelerators[A100-40G].node_label: is not a known field; did you mean node_labels?",
        ),
        (
            "accelerators: {X: {cpu: 1, memory: 1Gi, tolerations: [{key: gpu, operator: Is}]}}",
            "accelerators.X.tolerations[0].operator: must be 'Exists' or 'Equal', is 'Is'",
        ),
    ],
)
def test_a_wrong_field_of_the_file_is_named_with_what_would_be_right(
    file: Path, text: str, said: str
) -> None:
    image = "" if text.startswith("trainer_image") else "trainer_image: x\n"
    [problem] = problems_in(file, f"{image}{text}\n")
    assert problem.startswith(f"config.yaml: {said}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("TRAINER_IMGAE", f"; did you mean {PREFIX}TRAINER_IMAGE?"),
        ("HEAD__CPUS", f"; did you mean {PREFIX}HEAD__CPU?"),
        ("HEAD_CPU", f"; did you mean {PREFIX}HEAD__CPU?"),
        ("LISTEN_PORT__X", f"; did you mean {PREFIX}LISTEN_PORT?"),
        ("CONFIGS", f"; did you mean {PREFIX}CONFIG?"),
        ("ACCELERATORS__T4__CPU", f"; give all profiles as JSON in {PREFIX}ACCELERATORS, or in the file"),
        ("XYZ", ""),
    ],
)
def test_an_unknown_variable_is_an_error_with_the_nearest_known_one(name: str, said: str) -> None:
    assert problems({**IMAGE, f"{PREFIX}{name}": "1"}) == [
        f"{PREFIX}{name}: is not a variable of the operator{said}"
    ]


def test_all_mistakes_are_told_at_once_each_with_its_source(file: Path) -> None:
    text = "head: {memory: 16 GB, cpu: much}\nworkers: none\nlog_format: xml\n"
    assert sorted(
        problems_in(file, text, HEAD__CPU="more", LOG_FORMAT="json", LISTEN_PORT="no", TYPO="1")
    ) == [
        f"{PREFIX}HEAD__CPU: head.cpu: must be a quantity such as 2, 500m or 16Gi, is 'more'",
        f"{PREFIX}LISTEN_PORT: listen_port: must be a whole number, is 'no'",
        f"{PREFIX}TYPO: is not a variable of the operator",
        "config.yaml: head.memory: must be a quantity such as 2, 500m or 16Gi, is '16 GB'",
        "config.yaml: trainer_image: is required",
        "config.yaml: workers: must be a whole number, is 'none'",
    ]


def test_a_file_that_is_not_there_is_an_error_besides_others(tmp_path: Path) -> None:
    path = tmp_path / "absent.yaml"
    assert problems(
        {FILE: str(path), **from_variables(WORKERS="0", DEFAULT_ACCELERATOR="FROM-THE-FILE")}
    ) == [
        f"{FILE}: {path}: No such file or directory",
        f"{PREFIX}WORKERS: workers: must be at least 1, is '0'",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"workers: [1\n", "config.yaml:2:1: "),
        (b"- a\n", "config.yaml: must be a map of fields, is a list"),
        (b"\xff\xfe\xfa", "config.yaml: is not UTF-8 text"),
        (
            b"workers: 1\nworkers: 2\n",
            "config.yaml:2: workers is given twice with different values; keep one",
        ),
    ],
)
def test_a_file_that_is_no_map_is_an_error(file: Path, content: bytes, said: str) -> None:
    file.write_bytes(content)
    [problem] = problems({FILE: str(file)})
    assert problem.replace(str(file), file.name).startswith(said)


def test_the_profiles_are_the_defaults_with_the_configurations_own_over_them() -> None:
    mine = AcceleratorProfile(cpu=1, memory="1Gi")
    configuration = Configuration(trainer_image="x", accelerators={"MINE": mine, "T4": None})
    assert configuration.profiles == effective_profiles({"MINE": mine, "T4": None})


def test_a_name_must_be_of_a_type_that_has_a_profile(file: Path) -> None:
    with pytest.raises(FineTuneError) as caught:
        from_file(file, "trainer_image: a\naccelerator_names: {my-*: MINE, g5.*: L4}\n")

    [problem] = caught.value.problems
    assert problem.startswith(f"{file}: accelerator_names: must be names of CPU, T4, ")
    assert "; my-* is of MINE" in problem


def test_names_are_laid_over_those_that_are_known() -> None:
    devices = Configuration(
        trainer_image="x",
        accelerators={"T4": None},
        accelerator_names={"my-*": "L4", "g5.*": None, "g6.*": "L40S"},
    ).devices

    assert "T4" not in devices.types
    assert [devices.type_of(name) for name in ("my-machine", "g5.xlarge", "g6.xlarge", "p4d.24xlarge")] == [
        "L4",
        None,
        "L40S",
        "A100-40G",
    ]
    assert devices.type_of("g4dn.xlarge") is None
