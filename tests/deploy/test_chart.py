"""The chart as Helm renders it, against Kubernetes' own schemas and what it promises.

Custom resources (routes, monitors, KEDA, KServe) have no schema in Kubernetes: definitions.json has
those of their projects, and which; definitions.py writes it.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest

from service.bundle import SCHEMA_VERSION

helm = pytest.importorskip("helm_python")
kubernetes_validate = pytest.importorskip("kubernetes_validate")
yaml = pytest.importorskip("yaml")
jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "chart"
EXAMPLES = {"defaults": {}} | {
    file.stem: yaml.safe_load(file.read_text()) for file in (CHART / "ci").glob("*.yaml")
}
BUILT_IN = {"v1", "apps/v1", "networking.k8s.io/v1", "policy/v1", "autoscaling/v2"}
KUBERNETES = "1.34"

every_example = pytest.mark.parametrize("example", EXAMPLES)


@pytest.fixture(scope="module")
def chart():
    with helm.Chart.load(CHART) as chart:
        yield chart


def documents(chart, values=None, name="iafvae"):
    """What is rendered, by kind; the pod of `helm test` is "Test"."""
    found = {}
    for text in chart.render(values or {}, name=name, namespace="vision").values():
        for one in filter(None, yaml.safe_load_all(text) if "kind:" in text else ()):
            hook = one["metadata"].get("annotations", {}).get("helm.sh/hook")
            kind = "Test" if hook == "test" else one["kind"]
            assert kind not in found
            found[kind] = one
    return found


def container(found):
    return found["Deployment"]["spec"]["template"]["spec"]["containers"][0]


def variables(found):
    return {each["name"]: each["value"] for each in container(found)["env"]}


def misfits(one):
    """What the definition of its kind says against a custom resource."""
    file = json.loads(Path(__file__).with_name("definitions.json").read_text())
    schema = file["schemas"][f"{one['apiVersion']} {one['kind']}"] | {"$defs": file["$defs"]}
    found = jsonschema.Draft202012Validator(schema).iter_errors(one)
    return [f"{e.json_path}: {e.message[:200]}" for e in found]


def customs(chart, values):
    """Custom resources that are rendered, and those of KServe."""
    found = list(documents(chart, values).values())
    found += yaml.safe_load_all((ROOT / "deploy" / "kserve.yaml").read_text())
    return [one for one in found if one["apiVersion"] not in BUILT_IN]


@every_example
def test_lint_finds_nothing(example):
    found = helm.lint(CHART, EXAMPLES[example], strict=True)
    messages = [m for m in found.get("messages", []) if "icon is recommended" not in str(m)]
    assert not messages, messages


@every_example
def test_kubernetes_takes_what_is_rendered(chart, example):
    found = documents(chart, EXAMPLES[example])
    assert {"Deployment", "Service", "Test"} <= set(found)
    for one in found.values():
        if one["apiVersion"] in BUILT_IN:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)


@every_example
def test_custom_resources_fit_their_definitions(chart, example):
    for one in customs(chart, EXAMPLES[example]):
        assert not misfits(one)


def test_a_definition_refuses_what_it_does_not_know(chart):
    kinds = {one["kind"]: one for values in EXAMPLES.values() for one in customs(chart, values)}
    assert set(kinds) == {
        *("HTTPRoute", "InferenceService", "PrometheusRule", "ScaledObject"),
        *("ServiceMonitor", "ServingRuntime"),
    }
    for one in kinds.values():
        wrong = copy.deepcopy(one)
        wrong["spec"]["misspelt"] = 1
        assert "misspelt" in str(misfits(wrong))
    wrong = copy.deepcopy(kinds["InferenceService"])
    wrong["spec"]["predictor"]["model"]["resources"] = {"limits": ["4"]}
    assert "resources.limits" in str(misfits(wrong))


@every_example
def test_every_container_is_locked_up(chart, example):
    found = documents(chart, EXAMPLES[example])
    for pod in (found["Deployment"]["spec"]["template"]["spec"], found["Test"]["spec"]):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod["enableServiceLinks"]
        assert not pod["automountServiceAccountToken"]
        for each in (*pod["containers"], *pod.get("initContainers", ())):
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert each["resources"]["limits"]


@every_example
def test_a_pod_is_killed_only_after_its_drain(chart, example):
    pod = documents(chart, EXAMPLES[example])["Deployment"]["spec"]["template"]["spec"]
    each = pod["containers"][0]
    drain = next(int(e["value"]) for e in each["env"] if e["name"] == "IAFVAE_DRAIN_SECONDS")
    delay = each["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > delay + drain


def test_every_variable_is_a_setting(chart):
    from service.settings import Settings

    known = {f"IAFVAE_{name.upper()}" for name in Settings.model_fields}
    for values in EXAMPLES.values():
        names = {n for n in variables(documents(chart, values)) if n.startswith("IAFVAE_")}
        assert names <= known
    for file in ("compose.yaml", "kserve.yaml"):
        text = (ROOT / "deploy" / file).read_text()
        assert set(re.findall(r"IAFVAE_\w+", text)) <= known, file


def test_pods_with_ipv6_addresses_alone_can_be_asked(chart):
    found = documents(chart, {"env": {"IAFVAE_HOST": "::"}})
    assert variables(found)["IAFVAE_HOST"] == "::"


def test_a_gpu_is_asked_for_where_it_is_demanded(chart):
    found = documents(chart, EXAMPLES["cuda"])
    assert container(found)["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert variables(found)["IAFVAE_PROVIDER"] == "cuda"
    assert "nvidia.com/gpu" not in container(documents(chart))["resources"]["limits"]


def test_models_come_at_their_hash_or_from_a_volume_or_the_image(chart):
    found = documents(chart, EXAMPLES["cuda"])
    pod = found["Deployment"]["spec"]["template"]["spec"]
    pull = EXAMPLES["cuda"]["models"]["pull"][0]
    assert pod["initContainers"][0]["args"][:5] == [
        *("bundle", "pull", pull["url"], "--sha256", pull["sha256"])
    ]
    assert pod["containers"][0]["image"].endswith(EXAMPLES["cuda"]["image"]["digest"])
    assert variables(found)["IAFVAE_MODELS"] == "/models"
    mounted = documents(chart, EXAMPLES["full"])
    assert "initContainers" not in mounted["Deployment"]["spec"]["template"]["spec"]
    assert variables(mounted)["IAFVAE_MODELS"] == "/models"
    assert "IAFVAE_MODELS" not in variables(documents(chart))


def test_images_and_formats_are_those_that_exist(chart):
    program = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for provider in ("cpu", "cuda"):
        image = container(documents(chart, {"provider": provider}))["image"]
        assert image == f"iafvae:v{program}-{provider}", "as the release pushes it"
    runtime, *_ = yaml.safe_load_all((ROOT / "deploy" / "kserve.yaml").read_text())
    assert runtime["spec"]["containers"][0]["image"] == f"iafvae:v{program}-cpu"
    assert runtime["spec"]["supportedModelFormats"][0]["version"] == str(SCHEMA_VERSION)


def test_nothing_goes_out_unless_it_may(chart):
    policy = documents(chart)["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []


def test_who_may_call_is_said_and_the_chart_tests_itself(chart):
    found = documents(chart, EXAMPLES["full"])
    own, *peers = found["NetworkPolicy"]["spec"]["ingress"][0]["from"]
    assert peers == EXAMPLES["full"]["networkPolicy"]["from"]
    assert own["podSelector"]["matchLabels"] == found["Test"]["metadata"]["labels"]
    chosen = found["Service"]["spec"]["selector"]
    assert not chosen.items() <= found["Test"]["metadata"]["labels"].items(), "no traffic for it"


def test_settings_are_each_said_once_and_the_values_win(chart):
    values = {"env": {"IAFVAE_LOG_FORMAT": "text", "IAFVAE_MAX_N": "5"}}
    names = [each["name"] for each in container(documents(chart, values))["env"]]
    assert len(names) == len(set(names))
    assert variables(documents(chart, values))["IAFVAE_LOG_FORMAT"] == "text"
    assert {"IAFVAE_PROVIDER", "IAFVAE_MAX_N"} <= set(names)


def test_autoscaling_leaves_replicas_alone(chart):
    for example, kind in (("full", "HorizontalPodAutoscaler"), ("keda", "ScaledObject")):
        found = documents(chart, EXAMPLES[example])
        assert "replicas" not in found["Deployment"]["spec"]
        target = found[kind]["spec"]["scaleTargetRef"]["name"]
        assert target == found["Deployment"]["metadata"]["name"]


@pytest.mark.parametrize("release", ["iafvae", "admin"])  # a key called admin changes models
def test_a_new_key_opens_the_service_it_was_made_for(chart, tmp_path, release):
    from service.api.security.keys import KeyFile

    found = documents(chart, EXAMPLES["full"], release)
    secret = found["Secret"]
    assert secret["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    file = tmp_path / "keys.txt"
    file.write_text(secret["stringData"]["keys.txt"])
    authorization = f"Bearer {secret['stringData']['key']}".encode()
    holder = KeyFile(file).holder(authorization)
    assert holder == found["Service"]["metadata"]["name"] != "admin"


def test_an_upgrade_keeps_the_key_that_is_there(tmp_path):
    """Without a cluster `lookup` finds nothing: here it finds a Secret."""
    shutil.copytree(CHART, tmp_path / "iafvae")
    template = tmp_path / "iafvae" / "templates" / "access.yaml"
    asked = 'lookup "v1" "Secret" .Release.Namespace $name'
    there = 'dict "data" (dict "key" "a2V5" "keys.txt" "bGluZQ==")'
    assert asked in template.read_text()
    template.write_text(template.read_text().replace(asked, there))
    with helm.Chart.load(tmp_path / "iafvae") as chart:
        secret = documents(chart, {"keys": {"create": True}})["Secret"]
    assert secret["data"] == {"key": "a2V5", "keys.txt": "bGluZQ=="}
    assert "stringData" not in secret
    kubernetes_validate.validate(secret, KUBERNETES, strict=True)


def test_monitoring_is_the_files_that_are_tested(chart):
    found = documents(chart, EXAMPLES["full"])
    rules = yaml.safe_load((CHART / "files" / "rules.yml").read_text())
    assert found["PrometheusRule"]["spec"] == rules
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text())
    assert json.loads(found["ConfigMap"]["data"]["iafvae.json"]) == dashboard
    for kind in ("ServiceMonitor", "PrometheusRule", "ConfigMap"):
        assert found[kind]["metadata"]["labels"]["release"] == "prometheus"


@pytest.mark.parametrize(
    "values",
    [
        {"replica": 2},
        {"image": {"digest": "latest"}},
        {"models": {"pull": [{"name": "m", "url": "s3://models/m"}]}},
        {
            "models": {
                "pull": [{"name": "m", "url": "s3://b/m", "sha256": "0" * 64}],
                "volume": {"x": 1},
            }
        },
        {"ingress": {"enabled": True}},
        {"env": {"IAFVAE_MAX_N": 2000}},
        {"env": {"IAFVAE_PORT": "9000"}},  # which the probes and the Service would not ask
        {"env": {"IAFVAE_DRAIN_DELAY_SECONDS": "60"}},  # longer than the pod would live
        {"env": {"IAFVAE_PROVIDER": "cuda"}},  # without a GPU asked for
        {"provider": "gpu"},
        {"ingress": {"enabled": True, "host": "https://iafvae.example.com"}},
        {"route": {"hostnames": ["iafvae.example.com:443"]}},
        {"budget": {"maxUnavailable": ""}},
        {"replicas": 1_000_000},  # which Helm writes as 1e+06
        {"resources": {"limits": {"cpu": "two"}}},
        {"resources": {"requests": {"memory": "2 GB"}}},
        {"models": {"emptyDirSize": "much"}},
        {"user": {"runAsUser": 0}},
        {"env": {"IAFVAE_LOAD_SECONDS": "long"}},
        {"env": {"IAFVAE_LOAD_SECONDS": "0.0"}},
        {"env": {"IAFVAE_ROOT_PATH": "iafvae"}},
        {"env": {"IAFVAE_ROOT_PATH": "/a/.."}},
        {"env": {"IAFVAE_MAXN": "3"}},
        {"envSecrets": ["Not A Name"]},
    ],
)
def test_wrong_values_are_refused(chart, values):
    with pytest.raises(helm.HelmError):
        chart.validate_schema(chart.merge_values(values))


@pytest.mark.parametrize("section", ["env", "models", "image", "route", "keys", "resources"])
def test_a_section_that_is_taken_away_is_said_to_be_missing(chart, section):
    with pytest.raises(helm.HelmError, match=f"missing property '{section}'"):
        documents(chart, {section: None})


@pytest.mark.parametrize(
    ("section", "name"),
    [
        *(("drain", name) for name in ("delaySeconds", "seconds")),
        *(("service", name) for name in ("port", "type")),
        *(("autoscaling", name) for name in ("kind", "min", "max", "queueRows")),
        *(("budget", "maxUnavailable"), ("models", "emptyDirSize")),
    ],
)
def test_a_value_that_is_taken_away_is_said_to_be_missing(chart, section, name):
    with pytest.raises(helm.HelmError, match=f"missing property '{name}'"):
        documents(chart, {section: {name: None}})


def test_a_start_may_take_as_long_as_a_bundle_may(chart):
    from service.settings import Settings

    serving = next(yaml.safe_load_all((ROOT / "deploy" / "kserve.yaml").read_text()))
    for each in (container(documents(chart)), serving["spec"]["containers"][0]):
        probe = each["startupProbe"]
        seconds = probe["periodSeconds"] * probe["failureThreshold"]
        assert seconds > Settings.model_fields["load_seconds"].default


def test_a_start_that_may_take_longer_is_given_longer(chart):
    found = documents(chart, {"env": {"IAFVAE_LOAD_SECONDS": "3600.5"}})
    probe = container(found)["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > 3601


def test_the_limit_of_a_start_is_of_each_bundle(chart):
    pulled = [{"name": f"m{i}", "url": f"s3://b/m{i}", "sha256": "0" * 64} for i in range(5)]
    found = documents(chart, {"models": {"pull": pulled}})
    probe = container(found)["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > 5 * 600


def test_the_limit_of_a_start_is_of_as_many_as_a_volume_may_hold(chart):
    from service.settings import Settings

    volume = {"models": {"volume": {"emptyDir": {}}}}
    for env, most in (
        ({}, Settings.model_fields["max_models"].default),
        ({"MAX_MODELS": "40"}, 40),
    ):
        named = {f"IAFVAE_{name}": value for name, value in env.items()}
        probe = container(documents(chart, volume | {"env": named}))["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] > most * 600


def test_the_settings_that_may_be_given_are_those_that_there_are(chart):
    from service.settings import Settings

    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["env"]
    (known,) = [each["enum"] for each in schema["propertyNames"]["anyOf"] if "enum" in each]
    assert known == sorted(f"IAFVAE_{name.upper()}" for name in Settings.model_fields)
    chart.validate_schema(chart.merge_values({"env": {"OTEL_SERVICE_NAME": "x"}}))


def test_metrics_want_a_key_where_there_are_keys(chart):
    """The route and the Ingress lead to /metrics as well."""
    given = {"keys": {"existingSecret": "callers"}, "monitoring": {"serviceMonitor": True}}
    for values, secret in ((given, "callers"), (EXAMPLES["full"], None)):
        found = documents(chart, values)
        assert "IAFVAE_OPEN_METRICS" not in {v["name"] for v in container(found)["env"]}
        (endpoint,) = found["ServiceMonitor"]["spec"]["endpoints"]
        credentials = endpoint["authorization"]["credentials"]
        assert credentials["key"] == "key"
        assert credentials["name"] == (secret or found["Secret"]["metadata"]["name"])
        assert not misfits(found["ServiceMonitor"])
    plain = documents(chart, {"monitoring": {"serviceMonitor": True}})["ServiceMonitor"]
    assert "authorization" not in plain["spec"]["endpoints"][0]


def test_a_gpu_may_need_a_runtime_class(chart):
    found = documents(chart, EXAMPLES["cuda"] | {"runtimeClassName": "nvidia"})
    assert found["Deployment"]["spec"]["template"]["spec"]["runtimeClassName"] == "nvidia"


def test_what_comes_from_outside_is_looked_for_below_the_prefix(chart):
    """A rule for / would take the host's whole traffic, of which the rest is others'."""
    values = {
        "env": {"IAFVAE_ROOT_PATH": "/iafvae"},
        "ingress": {"enabled": True, "host": "apps.example.com"},
        "route": {"parentRefs": [{"name": "public"}]},
    }
    for given, path in ((values, "/iafvae"), ({**values, "env": {}}, "/")):
        found = documents(chart, given)
        assert [rule["path"] for rule in found["Ingress"]["spec"]["rules"][0]["http"]["paths"]] == [
            path
        ]
        (rule,) = found["HTTPRoute"]["spec"]["rules"]
        assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": path}}]
        assert not misfits(found["HTTPRoute"])
        assert container(found)["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_a_cluster_that_chooses_users_itself_may(chart):
    """OpenShift's default constraints refuse a pod that names its user or group."""
    names = ("runAsUser", "runAsGroup", "fsGroup")
    found = documents(chart, {"user": dict.fromkeys(names)})
    chosen = documents(chart, {"user": {"runAsUser": 1000660000}})  # not 1.00066e+09
    for kind in ("Deployment", "Test"):
        spec = found[kind]["spec"]
        spec = spec["template"]["spec"] if kind == "Deployment" else spec
        assert not set(names) & spec["securityContext"].keys()
        assert spec["securityContext"]["runAsNonRoot"]
    pod = chosen["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == 1000660000


def test_a_cloud_may_know_the_pod_by_its_account_and_labels(chart):
    """IRSA, GKE's and Azure's workload identity: how buckets are read without a Secret."""
    pull = {"name": "m", "url": "az://models/m", "sha256": "0" * 64}
    labels = {"azure.workload.identity/use": "true", "app.kubernetes.io/name": "other"}
    values = {"serviceAccountName": "puller", "podLabels": labels, "models": {"pull": [pull]}}
    found = documents(chart, values)["Deployment"]["spec"]
    pod = found["template"]
    assert pod["spec"]["serviceAccountName"] == "puller"
    assert not pod["spec"]["automountServiceAccountToken"]
    assert pod["metadata"]["labels"]["azure.workload.identity/use"] == "true"
    assert found["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


def test_variables_that_are_secret_come_from_secrets(chart):
    found = documents(chart, {"envSecrets": ["otel"]})
    assert container(found)["envFrom"] == [{"secretRef": {"name": "otel"}}]
    kubernetes_validate.validate(found["Deployment"], KUBERNETES, strict=True)


def test_quantities_are_numbers_or_texts(chart):
    values = {"resources": {"requests": {"cpu": 0.5}, "limits": {"cpu": 2, "memory": "1.5Gi"}}}
    found = documents(chart, values)
    kubernetes_validate.validate(found["Deployment"], KUBERNETES, strict=True)
    assert container(found)["resources"]["limits"]["cpu"] == 2


def test_a_bundle_does_not_replace_another_unsaid(chart):
    pull = [{"name": "m", "url": "s3://b/m", "sha256": digit * 64} for digit in "01"]
    with pytest.raises(helm.HelmError, match="two bundles of one name"):
        documents(chart, {"models": {"pull": pull}})


def test_fewer_replicas_at_most_than_at_least_are_refused(chart):
    with pytest.raises(helm.HelmError, match=r"autoscaling.min is above"):
        documents(chart, {"autoscaling": {"kind": "hpa", "min": 5, "max": 2}})


@pytest.mark.parametrize("name", ["true", "1e5"])
def test_names_that_yaml_takes_for_something_else_stay_names(chart, name):
    pull = {"name": "mnist-1.4.0", "url": "https://host/m?token=a#: b", "sha256": "1" * 64}
    values = {
        "models": {"pull": [pull, {**pull, "name": "x" * 63}], "pullSecrets": [name]},
        "keys": {"existingSecret": name},
        "ingress": {"enabled": True, "host": "*.example.com", "tlsSecret": name, "className": name},
        "provider": "cuda",
        "resources": {"limits": {"cpu": None, "memory": None}},
        "spread": {"topologyKeys": [name]},
    }
    for given in (values, {"keys": {"create": True}}):
        for one in documents(chart, given, name).values():
            kubernetes_validate.validate(one, KUBERNETES, strict=True)
            assert one["metadata"]["labels"]["app.kubernetes.io/instance"] == name
            assert one["metadata"]["labels"].get("app.kubernetes.io/name") in {"iafvae", None}


def test_a_container_has_a_name_that_kubernetes_takes(chart):
    """No dots, no more than 63 letters, and none twice: no schema says so."""
    pull = {"url": "s3://models/m", "sha256": "0" * 64}
    names = ["mnist-1.4.0", "mnist-1-4-0", "m" * 63]
    found = documents(chart, {"models": {"pull": [{"name": n, **pull} for n in names]}})
    pod = found["Deployment"]["spec"]["template"]["spec"]
    containers = [one["name"] for one in (*pod["initContainers"], *pod["containers"])]
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name) for name in containers)
    assert len(set(containers)) == 4
    assert [one["args"][-1] for one in pod["initContainers"]] == [f"/models/{n}" for n in names]


def test_the_secret_of_a_new_key_is_labelled_as_all_else(chart):
    found = documents(chart, EXAMPLES["full"])
    assert found["Secret"]["metadata"]["labels"] == found["Service"]["metadata"]["labels"]
    volumes = found["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert found["Secret"]["metadata"]["name"] in {
        v.get("secret", {}).get("secretName") for v in volumes
    }


@pytest.mark.parametrize("release", ["1-vision", "vision.1", "iafvae.vision", "v" * 53, "1" * 53])
def test_a_release_may_have_a_name_that_no_service_may(chart, release):
    """A Service's begins with a letter and has no dots (RFC 1035); no schema says so."""
    name = documents(chart, name=release)["Service"]["metadata"]["name"]
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name)
    assert release.replace(".", "-") in name


def test_names_of_releases_do_not_collide(chart):
    one, two = documents(chart, name="a"), documents(chart, name="b")
    for kind in one:
        assert one[kind]["metadata"]["name"] != two[kind]["metadata"]["name"]
    assert one["Service"]["spec"]["selector"] != two["Service"]["spec"]["selector"]


@pytest.mark.parametrize(
    ("values", "needs"),
    [
        ({}, None),
        ({"env": {"IAFVAE_TRACING": "true"}}, "IAFVAE_TRACING"),
        ({"env": {"IAFVAE_TRACING": "off"}}, None),
        ({"env": {"IAFVAE_TRACING": "true"}, "networkPolicy": {"egress": [{}]}}, None),
        ({"models": {"pull": [{"name": "a", "url": "https://b/c", "sha256": "0" * 64}]}}, "pull"),
    ],
)
def test_the_notes_warn_where_what_is_wanted_cannot_go_out(chart, values, needs):
    notes = chart.render(values, name="iafvae", namespace="vision")["iafvae/templates/NOTES.txt"]
    warnings = [line for line in notes.splitlines() if "WARNING" in line]
    assert len(warnings) == (needs is not None)
    assert needs is None or needs in warnings[0]
