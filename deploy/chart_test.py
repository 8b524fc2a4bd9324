"""The chart as rendered: run by deploy/test, which finds the programs.

Each `test_*` renders the chart in one of its modes and looks at the objects. Nothing here talks to a cluster, except the
last test, which has a real API server check every object when SERVER names a kubeconfig.
"""

import copy
import gzip
import hashlib
import io
import json
import os
import pathlib
import plistlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import traceback

import yaml

DEPLOY = pathlib.Path(__file__).resolve().parent
CHART = DEPLOY / "chart" / "parbake"
WORK = pathlib.Path(os.environ["WORK"])
NAMESPACE = "parbake-system"

# Metrics that alerts or panels use and docs/METRICS.md doesn't describe yet. A name that gets described has to leave
# this list.
UNDOCUMENTED: set[str] = set()

POOL = {
    "name": "runners",
    "namespace": "ci",
    "image": "ghcr.io/org/runner:v2",
    "nodeSelector": {"matchLabels": {"kubernetes.io/os": "darwin"}},
    "podSelector": {"matchLabels": {"app": "runner"}},
    "replicas": 40,
    "mode": "Own",
}

EVERYTHING = {
    "image": {"digest": "sha256:" + "a" * 64, "pullSecrets": ["regcred"]},
    "gate": {"modes": ["own", "guard"], "default": "guard"},
    "pools": [
        POOL,
        {**POOL, "name": "guarded", "mode": "Guard", "rollout": {"maxConcurrentPercent": 20}, "drainLabel": "example.com/drain"},
        {
            "name": "staged-only",
            "image": "ghcr.io/org/base@sha256:" + "b" * 64,
            "nodeSelector": {"matchExpressions": [{"key": "rack", "operator": "In", "values": ["1", "2"]}]},
            "completionPolicy": "Once",
            "originStreams": 2,
            "paused": True,
            "deadline": "2h30m",
            "ttlAfterStaged": "24h",
            "bandwidth": {"upload": "100M", "download": "1Gi"},
            "onDeadline": "Proceed",
            "pullSecretRef": {"name": "ghcr"},
        },
    ],
    "rbac": {"pullSecrets": [{"namespace": NAMESPACE, "name": "ghcr"}]},
    "fleet": {
        "advertise": "parbake.example.com:7470",
        "hosts": [{"id": "mini-1", "zone": 'rack "1" \\ left'}, {"id": "mini-2", "upload_bytes_per_second": 117000000}],
    },
    "origin": {
        "caConfigMap": "registry-ca",
        "plainHttp": ["127.0.0.1:5000"],
        "credentials": [
            {"registry": "ghcr.io", "username": "robot", "secretName": "ghcr", "secretKey": "password"},
            {"registry": "r.example.com:5000", "username": "o'robot", "secretName": "other", "secretKey": "pass.word"},
        ],
    },
    "service": {"type": "LoadBalancer", "split": True, "nodePort": 30470, "names": ["parbake.example.com"], "loadBalancerSourceRanges": ["10.0.0.0/8"]},
    "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "alertLabels": {"team": "mac"}, "runbookBase": "https://example.com/OPERATING.html"},
        "dashboard": {"enabled": True},
    },
    "priorityClassName": "system-cluster-critical",
    "podAnnotations": {"example.com/a": "b"},
    "podLabels": {"example.com/c": "d"},
    "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "tolerations": [{"key": "infra", "operator": "Exists"}],
}

MODES = {
    "defaults": {},
    "own": {"gate": {"modes": ["own"], "default": "own"}},
    "guard": {"gate": {"modes": ["guard"], "default": "guard"}},
    "namespaced": {"gate": {"modes": ["own"]}, "watchNamespaces": ["ci", "tuist-runners"]},
    "namespaced guard": {"gate": {"modes": ["guard"]}, "watchNamespaces": ["ci"]},
    "everything": EVERYTHING,
    "one, open to nodes": {"replicas": 1, "fleet": {"advertise": "node.example.com:30470"}, "service": {"type": "NodePort", "nodePort": 30470}, "podDisruptionBudget": {"enabled": False}},
}


class Skipped(Exception):
    """What it needs isn't here."""


def merged(base, over):
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}


def helm(*arguments, values=None, chart=CHART):
    command = [os.environ["HELM"], arguments[0], *arguments[1:]]
    if values is not None:
        path = WORK / "values.yaml"
        path.write_text(yaml.safe_dump(values))
        command += ["--values", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def render(values, *flags, release="parbake", chart=CHART):
    values = merged({"image": {"repository": "registry.example.com/parbake"}}, values)
    run = helm("template", release, str(chart), "--namespace", NAMESPACE, *flags, values=values)
    assert run.returncode == 0, run.stderr
    return [document for document in yaml.safe_load_all(run.stdout) if document]


def refused(values, *words):
    values = merged({"image": {"repository": "registry.example.com/parbake"}}, values)
    run = helm("template", "parbake", str(CHART), "--namespace", NAMESPACE, values=values)
    assert run.returncode != 0, f"accepted: {values}"
    for word in words:
        assert word in run.stderr, f"{word!r} isn't in: {run.stderr}"


def of(objects, kind, name=None, namespace=None):
    return [
        o
        for o in objects
        if o["kind"] == kind
        and name in (None, o["metadata"]["name"])
        and namespace in (None, o["metadata"].get("namespace"))
    ]


def only(objects, kind, name=None):
    found = of(objects, kind, name)
    assert len(found) == 1, f"{len(found)} × {kind} {name}"
    return found[0]


def rights(objects, namespace=None):
    """(group, resource, verb, resource name or None) of the ClusterRole, or of the Roles in a namespace."""
    roles = of(objects, "Role", namespace=namespace) if namespace else of(objects, "ClusterRole")
    return {
        (group, resource, verb, name)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [None])
    }


def test_every_mode_lints_and_renders_objects_that_are_named_once():
    for mode, values in MODES.items():
        values = merged({"image": {"repository": "registry.example.com/parbake"}}, values)
        run = helm("lint", "--strict", str(CHART), values=values)
        assert run.returncode == 0, f"{mode}: {run.stdout}{run.stderr}"
        objects = render(values)
        keys = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
        assert len(keys) == len(set(keys)), f"{mode}: {sorted(map(str, keys))}"
        for o in objects:
            assert o["metadata"]["labels"]["app.kubernetes.io/instance"] == "parbake", (mode, o)


def test_defaults_alone_name_what_is_missing():
    run = helm("template", "parbake", str(CHART))
    assert run.returncode != 0 and "image.repository is required" in run.stderr, run.stderr


def test_the_deployment_is_hardened_and_gets_what_it_needs():
    deployment = only(render(MODES["defaults"]), "Deployment")
    assert deployment["spec"]["replicas"] == 2
    template = deployment["spec"]["template"]
    pod = template["spec"]
    assert "parbake.dev/role" not in template["metadata"]["labels"], "the leader's label is the leader's to set"
    assert "parbake.dev/role" not in deployment["spec"]["selector"]["matchLabels"]
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["requests"] and container["resources"]["limits"]["memory"]
    for probe, path in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz"), ("startupProbe", "/healthz")]:
        assert container[probe]["httpGet"] == {"path": path, "port": "admin"}
    ports = {(p["name"], p["containerPort"], p["protocol"]) for p in container["ports"]}
    assert ports == {("quic", 7470, "UDP"), ("api", 7470, "TCP"), ("admin", 7473, "TCP")}
    fields = {e["name"]: e["valueFrom"]["fieldRef"]["fieldPath"] for e in container["env"]}
    assert fields == {"PARBAKE_NAMESPACE": "metadata.namespace", "PARBAKE_POD_NAME": "metadata.name"}
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert volumes["state"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Mi"}
    mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
    assert not mounts["/var/lib/parbake"].get("readOnly")
    assert {m["name"] for m in mounts.values()} == set(volumes)
    assert pod["automountServiceAccountToken"] is True
    assert pod["affinity"]["podAntiAffinity"]


def test_flags_are_those_that_the_coordinator_has():
    def flags(values):
        (container,) = only(render(values), "Deployment")["spec"]["template"]["spec"]["containers"]
        assert container["args"][0] == "run"
        pairs = [a.removeprefix("--").partition("=") for a in container["args"][1:]]
        return {name: value for name, _, value in pairs}

    default = flags({})
    assert "kubernetes" in default and default["default-gate"] == "none" and default["lease-seconds"] == "15"
    assert "webhook" not in default and "watch-namespaces" not in default and "token-audiences" not in default
    names = default["service-names"].split(",")
    assert f"parbake.{NAMESPACE}.svc" in names and f"parbake-webhook.{NAMESPACE}.svc" in names
    full = flags({**EVERYTHING, "watchNamespaces": ["ci", NAMESPACE], "tokenAudiences": ["parbake.dev", "https://runners.example.com"]})
    assert full["token-audiences"] == "parbake.dev,https://runners.example.com"
    refused({"tokenAudiences": "parbake.dev"}, "tokenAudiences")
    refused({"tokenAudiences": [""]}, "tokenAudiences")
    assert full["webhook"] == only(render(EVERYTHING), "ValidatingWebhookConfiguration")["metadata"]["name"]
    assert full["watch-namespaces"] == f"ci,{NAMESPACE}"
    assert full["service-names"].split(",")[-1] == "parbake.example.com"
    sources = "".join((DEPLOY.parent / "coordinator" / "src" / f).read_text() for f in ("cli.rs",))
    known = {name.replace("_", "-") for name in re.findall(r"pub (\w+):", sources)}
    pending = {"kubernetes", "lease-seconds", "default-gate", "service-names", "webhook", "watch-namespaces"} - known
    assert set(full) - known - pending == set(), set(full) - known
    if pending:
        print(f"  not yet in coordinator/src/cli.rs: {', '.join(sorted(pending))}")


def test_the_fleet_file_is_toml_and_says_what_the_values_say():
    text = only(render(EVERYTHING), "ConfigMap", "parbake")["data"]["fleet.toml"]
    fleet = tomllib.loads(text)
    assert fleet["coordinator"]["open"] is True and fleet["coordinator"]["advertise"] == "parbake.example.com:7470"
    assert fleet["hosts"] == [
        {"id": "mini-1", "zone": 'rack "1" \\ left'},
        {"id": "mini-2", "upload_bytes_per_second": 117000000},
    ]
    pod = only(render(EVERYTHING), "Deployment")["spec"]["template"]["spec"]
    mounts = {m["mountPath"]: m["name"] for m in pod["containers"][0]["volumeMounts"]}
    volumes = {v["name"]: v for v in pod["volumes"]}
    for given in EVERYTHING["origin"]["credentials"]:
        kept = fleet["origin"]["credentials"][given["registry"]]
        assert kept["username"] == given["username"]
        directory, _, file = kept["password_file"].rpartition("/")
        assert volumes[mounts[directory]]["secret"] == {
            "secretName": given["secretName"],
            "items": [{"key": given["secretKey"], "path": file}],
        }
    assert fleet["origin"]["ca_bundle"] == "/etc/parbake/ca/ca.pem" and "/etc/parbake/ca" in mounts
    source = (DEPLOY.parent / "coordinator" / "src" / "config.rs").read_text()
    for table, struct in [("coordinator", "CoordinatorFile"), ("origin", "OriginFile"), ("rates", "RatesFile")]:
        keys = set(re.findall(r"^    (\w+):", source.split(f"struct {struct} {{")[1].split("}")[0], re.M))
        assert set(fleet[table]) <= keys, (table, set(fleet[table]) - keys)


def test_the_notes_have_the_next_lines_to_type():
    def notes(values):
        # `helm template` leaves the notes out, and a dry run asks a cluster: so they are rendered as an object of a
        # copy of the chart
        copied = WORK / "noted"
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(CHART, copied)
        template = copied / "templates" / "NOTES.txt"
        template.rename(copied / "templates" / "_notes.tpl")
        text = (copied / "templates" / "_notes.tpl").read_text()
        (copied / "templates" / "_notes.tpl").write_text('{{- define "noted" }}' + text + "{{- end }}")
        (copied / "templates" / "noted.yaml").write_text('kind: Noted\nmetadata: {name: noted}\ntext: {{ include "noted" . | toJson }}\n')
        return only(render(values, chart=copied), "Noted")["text"]

    bare, full = notes({}), notes(EVERYTHING)
    sources = "".join((DEPLOY.parent / f).read_text() for f in ("agent/src/cli.rs", "coordinator/src/cli.rs"))
    for text in (bare, full):
        for words in ("parbake-coordinator pin", "api\\.token", "token --host mini-1", "parbake-agent enroll", "launchctl kickstart", "parbake stage"):
            assert words in text, words
        for flag in re.findall(r"parbake-(?:agent|coordinator) .*", text):
            for name in re.findall(r"--([a-z-]+)", flag.split("#")[0]):
                assert re.search(rf"\b{name.replace('-', '_')}: ", sources), f"no program has --{name}"
    assert "set service.type" in bare and "Alerts are off" in bare and "The dashboard is off" in bare
    assert "https://parbake.example.com:7470" in full and "are off" not in full and "is off" not in full, full


def test_only_settings_that_want_a_restart_restart():
    def checksum(values):
        return only(render(values), "Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/fleet-settings"]

    base = checksum({})
    assert checksum({"fleet": {"hosts": [{"id": "m"}]}}) == base
    assert checksum({"fleet": {"open": False}}) == base
    assert checksum({"fleet": {"originStreams": 5}}) != base


def test_roles_grant_what_a_mode_needs_and_no_more():
    pods = lambda granted: {verb for group, resource, verb, _ in granted if (group, resource) == ("", "pods")}
    accounts = lambda granted: {verb for _, resource, verb, _ in granted if resource == "serviceaccounts"}
    hooks = lambda granted: {(verb, name) for _, resource, verb, name in granted if resource == "validatingwebhookconfigurations"}
    looks = {"get", "list", "watch"}
    none, own, guard = (rights(render(MODES[mode])) for mode in ("defaults", "own", "guard"))
    assert pods(none) == pods(guard) == looks and pods(own) == looks | {"patch", "delete"}
    assert accounts(none) == accounts(guard) == set() and accounts(own) == {"get", "list", "delete"}
    webhook = only(render(MODES["guard"]), "ValidatingWebhookConfiguration")["metadata"]["name"]
    assert hooks(none) == hooks(own) == set() and hooks(guard) == {("get", webhook), ("patch", webhook)}
    for granted in (none, own, guard):
        assert {v for _, r, v, _ in granted if r == "nodes"} == looks | {"patch"}
        assert {v for _, r, v, _ in granted if r == "tokenreviews"} == {"create"}
        assert {v for _, r, v, _ in granted if r == "runnerpools"} == looks
        assert {v for _, r, v, _ in granted if r == "imageprepulls"} == looks | {"create", "patch", "delete"}
        assert {v for _, r, v, _ in granted if r == "imageprepulls/status"} == {"get", "patch"}
        assert not [r for r in granted if r[1] in ("secrets", "leases")], "only in its own namespace"
    for mode, values in MODES.items():
        for role in of(render(values), "ClusterRole") + of(render(values), "Role"):
            for rule in role["rules"]:
                assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"], mode


def test_secrets_and_leases_are_bound_to_their_names():
    for values in MODES.values():
        objects = render(values)
        for role in of(objects, "Role"):
            for rule in role["rules"]:
                if {"secrets", "leases"} & set(rule["resources"]):
                    assert rule["verbs"] == ["create"] or rule.get("resourceNames"), rule
    own = rights(render({}), NAMESPACE)
    assert {(r, v, n) for _, r, v, n in own if n} == {
        ("leases", "get", "parbake-coordinator"),
        ("leases", "update", "parbake-coordinator"),
        ("secrets", "get", "parbake-state"),
        ("secrets", "update", "parbake-state"),
    }
    assert {(g, r, v) for g, r, v, n in own if n is None} == {
        ("coordination.k8s.io", "leases", "create"),
        ("", "secrets", "create"),
        ("", "pods", "get"),
        ("", "pods", "list"),
        ("", "pods", "patch"),
    }
    assert ("", "secrets", "get", "ghcr") in rights(render(EVERYTHING), NAMESPACE)


def test_watching_some_namespaces_needs_no_rights_in_others():
    objects = render(MODES["namespaced"])
    assert {r[1] for r in rights(objects)} == {"nodes", "tokenreviews"}
    for namespace in ("ci", "tuist-runners"):
        granted = rights(objects, namespace)
        assert ("", "pods", "patch", None) in granted and ("parbake.dev", "imageprepulls/status", "patch", None) in granted
        assert ("", "events", "create", None) in granted
    assert {r[1] for r in rights(objects, "default")} == {"events"}


def test_every_role_is_bound_to_the_service_account():
    for mode, values in MODES.items():
        objects = render(values)
        account = only(objects, "ServiceAccount")
        assert only(objects, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == account["metadata"]["name"]
        roles = {(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects if o["kind"] in ("Role", "ClusterRole")}
        bound = set()
        for binding in of(objects, "RoleBinding") + of(objects, "ClusterRoleBinding"):
            assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": NAMESPACE}], mode
            bound.add((binding["roleRef"]["kind"], binding["metadata"].get("namespace"), binding["roleRef"]["name"]))
        assert roles == bound, mode


def selects(selector, labels):
    return all(labels.get(key) == value for key, value in selector.items())


def test_hosts_reach_the_leader_and_the_webhook_any_replica():
    objects = render(MODES["guard"])
    follower = only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    leader = {**follower, "parbake.dev/role": "leader"}
    api = only(objects, "Service", "parbake")["spec"]
    assert selects(api["selector"], leader) and not selects(api["selector"], follower)
    assert {(p["protocol"], p["port"], p["targetPort"]) for p in api["ports"]} == {("TCP", 7470, "api"), ("UDP", 7470, "quic")}
    for name in ("parbake-webhook", "parbake-metrics"):
        spec = only(objects, "Service", name)["spec"]
        assert selects(spec["selector"], leader) and selects(spec["selector"], follower)
    split = render(EVERYTHING)
    assert [p["protocol"] for p in only(split, "Service", "parbake")["spec"]["ports"]] == ["TCP"]
    quic = only(split, "Service", "parbake-quic")["spec"]
    assert [p["protocol"] for p in quic["ports"]] == ["UDP"] and quic["externalTrafficPolicy"] == "Local"


def test_the_webhook_exists_in_guard_mode_only_and_holds_up_nobody():
    for mode in ("defaults", "own", "namespaced"):
        assert not of(render(MODES[mode]), "ValidatingWebhookConfiguration")
        assert not of(render(MODES[mode]), "Service", "parbake-webhook")
    objects = render(MODES["guard"])
    (hook,) = only(objects, "ValidatingWebhookConfiguration")["webhooks"]
    assert hook["failurePolicy"] == "Ignore" and hook["timeoutSeconds"] == 2 and hook["sideEffects"] == "None"
    (rule,) = hook["rules"]
    assert rule["operations"] == ["UPDATE"] and rule["resources"] == ["pods"] and rule["apiGroups"] == [""]
    assert hook["objectSelector"] == {"matchExpressions": [{"key": "tuist.dev/drain-eligible", "operator": "Exists"}]}
    assert "caBundle" not in hook["clientConfig"]
    # pools with a label of their own are guarded too, each label once
    pools = [{**POOL, "name": name, "mode": mode, "drainLabel": label} for name, mode, label in
             (("a", "Guard", "example.com/a"), ("b", "Guard", "example.com/a"), ("c", "Own", "example.com/c"), ("d", "Guard", "example.com/d"))]
    more = only(render({"gate": {"modes": ["own", "guard"]}, "pools": pools}), "ValidatingWebhookConfiguration")["webhooks"]
    keys = [hook["objectSelector"]["matchExpressions"][0]["key"] for hook in more]
    assert keys == ["tuist.dev/drain-eligible", "example.com/a", "example.com/d"]
    assert len({hook["name"] for hook in more}) == 3 and {hook["failurePolicy"] for hook in more} == {"Ignore"}
    own = {"gate": {"modes": ["guard"]}, "pools": pools[:1], "webhook": {"objectSelector": {"matchLabels": {"guarded": "yes"}}}}
    assert [hook["objectSelector"] for hook in only(render(own), "ValidatingWebhookConfiguration")["webhooks"]] == [{"matchLabels": {"guarded": "yes"}}]
    service = hook["clientConfig"]["service"]
    assert service["path"] == "/v1/webhook/pods" and service["namespace"] == NAMESPACE
    ports = only(objects, "Service", service["name"])["spec"]["ports"]
    assert [p["port"] for p in ports] == [service["port"]]
    # 1.20 doesn't label namespaces with their name: a selector on it would match nothing, silently
    scoped = {"gate": {"modes": ["guard"]}, "watchNamespaces": ["ci"]}
    selector = lambda version: only(render(scoped, "--kube-version", version), "ValidatingWebhookConfiguration")["webhooks"][0].get("namespaceSelector")
    assert selector("1.20.2") is None
    assert selector("1.21.0") == {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["ci"]}]}


def test_the_disruption_budget_is_of_the_version_that_the_server_has():
    # rendered without a cluster, helm assumes what its own version was built with
    assert only(render({}), "PodDisruptionBudget")["apiVersion"] in ("policy/v1", "policy/v1beta1")
    assert only(render({}, "--api-versions", "policy/v1"), "PodDisruptionBudget")["apiVersion"] == "policy/v1"
    assert only(render({}), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    template = (CHART / "templates" / "deployment.yaml").read_text()
    assert "policy/v1beta1" in template


def test_the_rollout_knob_reaches_every_pool():
    pools = [{**POOL, "name": f"p{i}"} for i in range(3)] + [{**POOL, "name": "own", "rollout": {"maxConcurrentPercent": 20}}]
    for knob in (1, 7, 100):
        objects = render({"gate": {"modes": ["own"]}, "rollout": {"maxConcurrentPercent": knob}, "pools": pools})
        percents = {o["metadata"]["name"]: o["spec"]["gate"]["maxConcurrentPercent"] for o in of(objects, "ImagePrePull")}
        assert percents == {"p0": knob, "p1": knob, "p2": knob, "own": 20}


def crd_schema():
    crd = yaml.safe_load((DEPLOY / "crd.yaml").read_text())
    (version,) = crd["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]["properties"]["spec"]


def misfits(value, schema, path="spec"):
    """What structural validation and pruning would say, as far as the chart's pools go."""
    if schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-int-or-string"):
        return
    if isinstance(value, dict):
        for key in schema.get("required", []):
            if key not in value:
                yield f"{path}.{key} is missing"
        for key, inner in value.items():
            known = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if known is None:
                yield f"{path}.{key} is unknown"
            elif isinstance(known, dict):
                yield from misfits(inner, known, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from misfits(inner, schema.get("items", {}), f"{path}[{index}]")
    else:
        kinds = {"string": str, "integer": int, "boolean": bool}
        kind = kinds.get(schema.get("type"))
        if kind and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)):
            yield f"{path} is {value!r}, not a {schema['type']}"
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{path} is {value!r}, which {schema['pattern']} doesn't match"
        if "enum" in schema and value not in schema["enum"]:
            yield f"{path} is {value!r}, not of {schema['enum']}"


def test_pools_fit_the_custom_resource():
    for pool in of(render(EVERYTHING), "ImagePrePull"):
        problems = list(misfits(pool["spec"], crd_schema()))
        assert not problems, (pool["metadata"]["name"], problems)


def test_the_packaged_crd_is_the_generated_one_byte_for_byte():
    ours = CHART / "crds" / "imageprepulls.yaml"
    # a link out of the chart is broken where a file system or an archive has none, and helm warns of it at each call
    assert not ours.is_symlink() and not [p for p in CHART.rglob("*") if p.is_symlink()]
    assert ours.read_bytes() == (DEPLOY / "crd.yaml").read_bytes(), "cp deploy/crd.yaml deploy/chart/parbake/crds/imageprepulls.yaml"
    run = helm("package", str(CHART), "--destination", str(WORK))
    assert run.returncode == 0, run.stderr
    with tarfile.open(next(WORK.glob("parbake-*.tgz"))) as package:
        member = package.extractfile("parbake/crds/imageprepulls.yaml")
        assert member.read() == (DEPLOY / "crd.yaml").read_bytes()
    # what is packaged renders as what lies here
    assert render(EVERYTHING, chart=next(WORK.glob("parbake-*.tgz"))) == render(EVERYTHING)
    crd = only(render({}, "--include-crds"), "CustomResourceDefinition")
    assert crd["metadata"]["name"] == "imageprepulls.parbake.dev"


def test_every_value_is_documented_and_in_the_schema():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def walk(value, schema, path):
        if schema.get("type") == "object" and "properties" in schema:
            assert schema["additionalProperties"] is False, path
            for key, inner in (value or {}).items():
                assert key in schema["properties"], f"{path}.{key}"
                walk(inner, schema["properties"][key], f"{path}.{key}")
            if path != ".pools[]":
                optional = {"global"} if path == "" else set()
                if value is not None and path in ("", ".gate", ".fleet", ".origin", ".service", ".metrics", ".webhook"):
                    assert set(schema["properties"]) - optional == set(value), path
        if schema.get("type") == "array" and isinstance(schema.get("items"), dict):
            walk(None, schema["items"], path + "[]")

    walk(values, schema, "")
    lines = (CHART / "values.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"^[a-z]\w*:", line):
            assert lines[number - 1].startswith("#"), f"values.yaml: {line} has no word of explanation"


def test_wrong_values_are_refused_by_name():
    refused({"gate": {"modes": ["both"]}}, "gate.modes")
    refused({"gate": {"moed": "own"}}, "moed")
    refused({"gate": {"default": "Own"}}, "gate.default")
    refused({"replicas": 0}, "replicas")
    refused({"replicas": "2"}, "replicas")
    refused({"leaseSeconds": 2}, "leaseSeconds")
    refused({"leaseSeconds": 121}, "leaseSeconds")
    refused({"rollout": {"maxConcurrentPercent": 0}}, "maxConcurrentPercent")
    refused({"rollout": {"maxConcurrentPercent": 101}}, "maxConcurrentPercent")
    refused({"pools": [{**POOL, "rollout": {"maxConcurrentPercent": 101}}], "gate": {"modes": ["own"]}}, "maxConcurrentPercent")
    refused({"pools": [{**POOL, "nodeSelector": {}}], "gate": {"modes": ["own"]}}, "nodeSelector")
    refused({"pools": [{"name": "x"}]}, "image")
    refused({"pools": [{**POOL, "deadline": "tomorrow"}], "gate": {"modes": ["own"]}}, "deadline")
    refused({"pools": [{**POOL, "bandwidth": {"upload": "0"}}], "gate": {"modes": ["own"]}}, "upload")
    refused({"fleet": {"advertise": "parbake.example.com"}}, "advertise")
    refused({"fleet": {"originStreams": 257}}, "originStreams")
    refused({"fleet": {"hosts": [{"id": "A"}]}}, "hosts")
    refused({"service": {"type": "ExternalName"}}, "service.type")
    refused({"image": {"digest": "sha256:short"}}, "digest")
    refused({"metrics": {"prometheusRule": {"rollStuckMinutes": 1}}}, "rollStuckMinutes")
    refused({"unknown": 1}, "unknown")
    # the last values that pass
    for values in ({"leaseSeconds": 3}, {"leaseSeconds": 120}, {"rollout": {"maxConcurrentPercent": 100}}, {"fleet": {"originStreams": 256}}):
        render(values)


def test_what_the_roles_would_not_allow_is_refused():
    refused({"gate": {"default": "own"}}, "gate.default is own", "gate.modes")
    refused({"pools": [POOL]}, "pool runners has mode Own", "gate.modes")
    refused({"pools": [POOL], "gate": {"modes": ["own"]}, "watchNamespaces": ["other"]}, "namespace ci", "watchNamespaces")
    for key in ("replicas", "podSelector"):
        short = copy.deepcopy(POOL)
        del short[key]
        refused({"pools": [short], "gate": {"modes": ["own"]}}, "needs replicas and podSelector")


def test_the_launchd_templates_are_whole():
    text = (DEPLOY / "launchd" / "dev.parbake.agent.plist").read_text()
    plist = plistlib.loads(text.encode())
    assert plist["Label"] == "dev.parbake.agent" and plist["UserName"] == "@USER@"
    assert plist["ProgramArguments"][:2] == ["@BINARY@", "run"]
    assert plist["EnvironmentVariables"]["HOME"] == "@HOME@" and plist["EnvironmentVariables"]["TART_HOME"] == "@TART_HOME@"
    assert plist["RunAtLoad"] is True and plist["KeepAlive"] is True and plist["LowPriorityIO"] is True
    assert plist["ThrottleInterval"] == 10 and plist["Nice"] > 0
    for limits in ("SoftResourceLimits", "HardResourceLimits"):
        assert plist[limits]["NumberOfFiles"] >= 4096
    rotated = {line.split()[0] for line in (DEPLOY / "launchd" / "newsyslog.conf").read_text().splitlines() if line.startswith("@")}
    log_file = plist["ProgramArguments"][plist["ProgramArguments"].index("--log-file") + 1]
    assert rotated == {log_file, plist["StandardErrorPath"], plist["StandardOutPath"]}
    source = (DEPLOY.parent / "agent" / "src" / "install.rs").read_text()
    for template in (DEPLOY / "launchd").iterdir():
        for name in re.findall(r"@([A-Z_]+)@", template.read_text()):
            assert f'"{name}" =>' in source, f"{template.name}: nothing fills in @{name}@"


def packed(work, *words, **environment):
    """Runs deploy/dist with programs that only seem to be built; what it said."""
    stubs, target = work / "stubs", work / "target"
    if not stubs.exists():
        stubs.mkdir(parents=True)
        cargo = (
            "#!/bin/sh\nfor folder in release x86_64-unknown-linux-musl/release aarch64-unknown-linux-musl/release; do\n"
            f"  mkdir -p {target}/$folder\n  for program in parbake parbake-agent parbake-coordinator; do\n"
            f"    printf '#!/bin/sh\\necho %s 0\\n' $program >{target}/$folder/$program; chmod 755 {target}/$folder/$program\n  done\ndone\n"
        )
        pkgbuild = f"#!/bin/sh\necho \"$@\" >{work}/pkgbuild\ncp \"$4/postinstall\" {work}/\n"
        pkgbuild += 'while [ $# -gt 1 ]; do shift; done\necho package >"$1"\n'
        for name, text in [("cargo", cargo), ("rustup", "#!/bin/sh\n"), ("musl-gcc", "#!/bin/sh\n"), ("pkgbuild", pkgbuild)]:
            (stubs / name).write_text(text)
            (stubs / name).chmod(0o755)
    environment = {"CARGO_TARGET_DIR": str(target), "SOURCE_DATE_EPOCH": "1700000000", **environment}
    environment["PATH"] = f"{environment.pop('FIRST', stubs)}:{stubs}:{os.environ['PATH']}"
    return subprocess.run([DEPLOY / "dist", *words], capture_output=True, text=True, check=False, env={**os.environ, **environment})


def sums_of(folder):
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split() for line in lines)}
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    return sums


def test_a_release_is_packed_and_the_same_each_time():
    work, folders = WORK / "dist", [WORK / "dist" / name for name in ("one", "two")]
    for folder in folders:
        run = packed(work, DIST=str(folder))
        assert run.returncode == 0, run.stdout + run.stderr
        assert "is built on a Mac" in run.stderr
    sums, again = map(sums_of, folders)
    (chart,) = [name for name in sums if name.endswith(".tgz")]
    (linux,) = [name for name in sums if name.endswith(".tar.gz")]
    (image,) = [name for name in sums if name.endswith(".oci.tar")]
    assert (sums[linux], sums[image]) == (again[linux], again[image])
    assert render({}, chart=folders[0] / chart) == render({})
    with tarfile.open(folders[0] / linux) as tar:
        top = {name.split("/")[0] for name in tar.getnames()}
        assert len(top) == 1 and all(m.uid == 0 and m.mtime == 1700000000 for m in tar.getmembers())
        (top,) = top
        for name in ("bin/parbake-coordinator", "bin/parbake", "deploy/systemd/parbake-coordinator.service", "docs/FIRST_DAY.md", "README.md"):
            member = tar.getmember(f"{top}/{name}")
            assert bool(member.mode & 0o100) == name.startswith("bin/"), name
    with tarfile.open(folders[0] / image) as tar:
        def blob(entry):
            data = tar.extractfile("blobs/" + entry["digest"].replace(":", "/")).read()
            assert len(data) == entry["size"] and "sha256:" + hashlib.sha256(data).hexdigest() == entry["digest"]
            return data

        (entry,) = json.loads(tar.extractfile("index.json").read())["manifests"]
        manifest = json.loads(blob(entry))
        config, (layer,) = json.loads(blob(manifest["config"])), manifest["layers"]
        raw = gzip.decompress(blob(layer))
        assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(raw).hexdigest()]
        user = config["config"]["User"]
        pod = only(render({}), "Deployment")["spec"]["template"]["spec"]
        assert user == f"{pod['securityContext']['runAsUser']}:{pod['securityContext'].get('runAsGroup', 65532)}"
        assert f"USER {user}" in (DEPLOY / "Containerfile").read_text()
        with tarfile.open(fileobj=io.BytesIO(raw)) as files:
            programs = {m.name for m in files.getmembers() if m.isfile() and m.mode & 0o100}
            assert programs == {"usr/local/bin/parbake", "usr/local/bin/parbake-coordinator"}
    if shutil.which("skopeo"):
        run = subprocess.run(["skopeo", "inspect", f"oci-archive:{folders[0] / image}"], capture_output=True, text=True, check=False)
        assert run.returncode == 0 and json.loads(run.stdout)["Os"] == "linux", run.stderr


def test_what_a_mac_gets_is_packed_on_a_mac():
    work, mac = WORK / "dist-macos", WORK / "dist-macos" / "mac"
    assert "is built on a Mac" in packed(work, "macos", DIST=str(work / "none")).stderr
    mac.mkdir(parents=True)
    (mac / "uname").write_text("#!/bin/sh\ncase $1 in -s) echo Darwin ;; *) echo arm64 ;; esac\n")
    (mac / "uname").chmod(0o755)
    run = packed(work, "macos", DIST=str(work / "out"), FIRST=str(mac), PARBAKE_USER="m1")
    assert run.returncode == 0, run.stdout + run.stderr
    assert {name.split("-macos")[1] for name in sums_of(work / "out")} == {"-arm64.tar.gz", "-arm64.pkg"}
    script = (work / "postinstall").read_text()
    assert "/usr/local/bin/parbake-agent install --user m1 --tart-binary /opt/homebrew/bin/tart\n" in script
    source = (DEPLOY.parent / "agent" / "src" / "cli.rs").read_text()
    for flag in re.findall(r"install.* --([a-z-]+)", script):
        assert f"pub {flag.replace('-', '_')}:" in source, flag
    assert "--identifier dev.parbake.agent" in (work / "pkgbuild").read_text()
    run = packed(work, "macos", DIST=str(work / "odd"), FIRST=str(mac), PARBAKE_USER="m1; reboot")
    assert run.returncode == 2, run.stdout


def test_the_service_of_systemd_is_whole():
    path = DEPLOY / "systemd" / "parbake-coordinator.service"
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    settings = dict(line.split("=", 1) for line in lines if "=" in line)
    program, command, *flags = settings["ExecStart"].split()
    assert (program, command) == ("/usr/local/bin/parbake-coordinator", "run")
    source = (DEPLOY.parent / "coordinator" / "src" / "cli.rs").read_text()
    for flag in flags:
        assert not flag.startswith("--") or f"pub {flag[2:].replace('-', '_')}:" in source, flag
    # the state holds the fleet's authority; its default place is the directory that systemd makes
    assert (settings["StateDirectory"], settings["StateDirectoryMode"], settings["User"]) == ("parbake", "0700", "parbake")
    assert '"/var/lib/parbake"' in (DEPLOY.parent / "coordinator" / "src" / "config.rs").read_text()
    # everybody who makes tokens there is told to be that user
    for page in ("docs/FIRST_DAY.md", "deploy/enroll-macs.sh"):
        assert "sudo -u parbake parbake-coordinator" in (DEPLOY.parent / page).read_text(), page
    if shutil.which("systemd-analyze"):
        here = WORK / path.name
        here.write_text(path.read_text().replace(program, "/bin/true"))
        run = subprocess.run(["systemd-analyze", "verify", str(here)], capture_output=True, text=True, check=False)
        assert run.returncode == 0 and not run.stderr.strip(), run.stdout + run.stderr


def test_hosts_are_never_sent_to_a_port_where_nobody_listens():
    for service in ({"type": "NodePort"}, {"port": 443}, {"type": "LoadBalancer", "split": True}):
        refused({"service": service}, "fleet.advertise is needed")
        render({"service": service, "fleet": {"advertise": "parbake.example.com:30470"}})
    render({"service": {"type": "LoadBalancer"}})


def documented():
    text = (DEPLOY.parent / "docs" / "METRICS.md").read_text()
    return set(re.findall(r"^\| `(parbake_\w+)", text, re.M))


def used(expression):
    names = re.findall(r"\bparbake_(?:coordinator|agent|pool|prepull|pod)_\w+", expression)
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in names}


def alerts():
    rule = only(render(EVERYTHING), "PrometheusRule")
    return [r for group in rule["spec"]["groups"] for r in group["rules"]]


def plain_rules():
    """The alerts of plain racks, without a chart."""
    text = (DEPLOY / "prometheus" / "rules.yaml").read_text()
    return [r for group in yaml.safe_load(text)["groups"] for r in group["rules"]]


def panels():
    """(title, expression) of every query of the dashboard."""
    dashboard = json.loads((CHART / "dashboards" / "parbake.json").read_text())
    return [(p["title"], t["expr"]) for p in dashboard["panels"] for t in p.get("targets", [])]


def expressions():
    dashboard = json.loads((CHART / "dashboards" / "parbake.json").read_text())
    found = [r["expr"] for r in alerts() + plain_rules()]
    found += [expression for _, expression in panels()]
    return found + [v["query"]["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]


def documented_labels():
    """Of each metric its labels, each with its values where docs/METRICS.md lists them; `source` is said once."""
    text = (DEPLOY.parent / "docs" / "METRICS.md").read_text()
    found, sets = {}, {}
    for name, column in re.findall(r"^\| `(parbake_\w+)` \| \w+ \|([^|]*)\|", text, re.M):
        found[name] = {}
        # labels stand before a colon or a comma, their values behind the colon; other values end at the semicolon
        for part in re.split(r";|,(?=[^:;]*:)", column):
            label, _, rest = part.partition(":")
            words = re.findall(r"`([^`]+)`", label)
            for word in words:
                found[name][word] = None
            if words and "names of" not in rest:
                values = set(re.findall(r"`([^`]+)`", rest))
                if values:
                    sets.setdefault(words[-1], values)
                    found[name][words[-1]] = values
        for label in found[name]:
            if found[name][label] is None and label == "source":
                found[name][label] = sets["source"]
    return found


def test_alerts_and_panels_use_labels_that_exist():
    known = documented_labels()
    assert known["parbake_agent_chunk_verify_failures_total"]["source"] == {"origin", "peers", "local"}
    assert known["parbake_pod_writes_total"]["outcome"] == {"done", "refused", "unknown"}
    assert set(known["parbake_pool_held_pods"]) == {"namespace", "pool", "reason"}
    # what a scrape adds
    added = {"job", "instance", "namespace", "pod", "le"}
    seen = 0
    for expression in expressions():
        for name, _, inner in re.findall(r"\b(parbake_\w+?)(_bucket|_count|_sum)?\{([^}]*)\}", expression):
            for label, values in re.findall(r'(\w+)\s*=~?\s*"([^"]*)"', inner):
                seen += 1
                assert label in added | set(known[name]), f"{name} has no label {label}: {expression}"
                listed = known[name].get(label)
                if listed and "$" not in values:
                    assert set(values.split("|")) <= listed, f"{label} of {name} is never {values}"
        # a sum by a label that nothing has would be one line without a name
        metrics = [known[name] for name in used(expression)]
        for by in re.findall(r"\bby \(([^)]*)\)", expression):
            for label in by.replace(" ", "").split(","):
                assert label in added or any(label in labels for labels in metrics), f"{label}: {expression}"
    assert seen > 60, seen


def test_alerts_and_panels_use_metrics_that_exist():
    known = documented()
    late = UNDOCUMENTED & known
    if late:
        print(f"  documented by now, take them off UNDOCUMENTED: {', '.join(sorted(late))}")
    everything = set().union(*map(used, expressions()))
    assert len(everything) > 10
    # everything that is measured is on the dashboard, or an alert goes by it
    unseen = known - everything
    assert not unseen, f"neither a panel nor an alert: {unseen}"
    unknown = everything - known - UNDOCUMENTED
    assert not unknown, unknown
    pending = everything & (UNDOCUMENTED - known)
    if pending:
        print(f"  not yet in docs/METRICS.md: {', '.join(sorted(pending))}")


def test_every_trouble_has_its_alert_and_every_alert_its_night_instruction():
    names = {r["alert"] for r in alerts()}
    assert names >= {
        "ParbakeRollingAboveCap",
        "ParbakeRollStuck",
        "ParbakeRollHeld",
        "ParbakeDeadlinePassed",
        "ParbakeStagingStalled",
        "ParbakeOriginBytesAbovePlan",
        "ParbakeHostSilent",
        "ParbakeVerifyFailures",
        "ParbakeNoLeader",
    }
    text = (DEPLOY.parent / "docs" / "OPERATING.md").read_text()
    for rule in alerts():
        assert rule["labels"]["severity"] in ("warning", "critical") and rule["labels"]["team"] == "mac"
        assert rule["annotations"]["summary"] and rule["annotations"]["description"]
        assert rule["annotations"]["runbook_url"].endswith("#" + rule["alert"].lower())
        assert rule["annotations"]["runbook"] == "docs/OPERATING.md#" + rule["alert"].lower()
        assert f"### {rule['alert']}\n" in text, f"docs/OPERATING.md doesn't say what to do for {rule['alert']}"
    charts = {r["alert"]: r for r in alerts()}
    for rule in plain_rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["runbook"] == "docs/OPERATING.md#" + rule["alert"].lower()
        assert f"### {rule['alert']}\n" in text, f"docs/OPERATING.md doesn't say what to do for {rule['alert']}"
        same = charts.get(rule["alert"])
        if same:
            assert same["annotations"]["summary"] == rule["annotations"]["summary"], rule["alert"]
            assert same["labels"]["severity"] == rule["labels"]["severity"] and same["for"] == rule["for"], rule["alert"]


def test_the_dashboard_is_whole():
    configmap = only(render(EVERYTHING), "ConfigMap", "parbake-dashboard")
    dashboard = json.loads(configmap["data"]["parbake.json"])
    assert dashboard == json.loads((CHART / "dashboards" / "parbake.json").read_text())
    ids = [p["id"] for p in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    assert {"Roll", "Stage", "Fleet", "Agents", "Mirror"} == {p["title"] for p in dashboard["panels"] if p["type"] == "row"}
    for panel in dashboard["panels"]:
        assert panel["type"] == "row" or panel["description"], f"{panel['title']} has no description"
    cells = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24 and (x, y) not in cells, panel["title"]
                cells.add((x, y))
    assert configmap["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert len(json.dumps(configmap)) < 900_000


def test_the_monitor_finds_the_metrics_service():
    objects = render(EVERYTHING)
    monitor = only(objects, "ServiceMonitor")["spec"]
    found = [s["metadata"]["name"] for s in of(objects, "Service") if selects(monitor["selector"]["matchLabels"], s["metadata"]["labels"])]
    assert found == ["parbake-metrics"]
    (endpoint,) = monitor["endpoints"]
    assert endpoint["honorLabels"] is True, "a pool's namespace would be overwritten by the coordinator's"
    assert endpoint["port"] in [p["name"] for p in only(objects, "Service", "parbake-metrics")["spec"]["ports"]]


def promtool(*arguments):
    return subprocess.run([os.environ["PROMTOOL"], *arguments], capture_output=True, text=True, check=False)


def rules_file():
    path = WORK / "rules.yaml"
    path.write_text(yaml.safe_dump(only(render(EVERYTHING), "PrometheusRule")["spec"]))
    return path


def test_prometheus_understands_every_alert():
    if not os.environ["PROMTOOL"]:
        raise Skipped("no promtool")
    run = promtool("check", "rules", str(rules_file()))
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{len(alerts())} rules found" in run.stdout, run.stdout


def filled(expression):
    """A panel's query with what Grafana fills in."""
    for variable in ("namespace", "pool", "host"):
        expression = expression.replace(f"${variable}", ".*")
    return expression.replace("$__rate_interval", "5m")


def test_prometheus_understands_every_panel():
    if not os.environ["PROMTOOL"]:
        raise Skipped("no promtool")
    rules = [{"record": f"panel:{number}", "expr": filled(expression)} for number, (_, expression) in enumerate(panels())]
    path = WORK / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    run = promtool("check", "rules", str(path))
    assert run.returncode == 0, run.stdout + run.stderr


def series(name, values, pod="parbake-1", namespace=NAMESPACE, **labels):
    labels = {"job": "parbake-metrics", "instance": f"{pod}:7473", "pod": pod, "namespace": namespace, **labels}
    inner = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return {"series": f"{name}{{{inner}}}", "values": values}


def fires(alert, at, inputs, *labels, rules=None):
    """Whether promtool sees exactly the alerts with these labels."""
    path = WORK / "alert.yaml"
    case = {
        "rule_files": [str(rules or rules_file())],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": inputs, "alert_rule_test": [{"alertname": alert, "eval_time": at}]}],
    }
    path.write_text(yaml.safe_dump(case))
    run = promtool("test", "rules", str(path))
    got = run.stdout + run.stderr
    wanted = bool(labels)
    assert (run.returncode != 0) == wanted, f"{alert} at {at}: {got}"
    for label in labels:
        assert label in got, f"{label} isn't in {got}"
    assert "parse error" not in got and "unmarshal" not in got, got


def test_plain_racks_have_their_own_alerts():
    if not os.environ["PROMTOOL"]:
        raise Skipped("no promtool")
    path = DEPLOY / "prometheus" / "rules.yaml"
    # the file by itself, and as the configuration beside it names it; that one knows the jobs of the rules
    for check, file in (("rules", path), ("config", path.with_name("prometheus.yaml"))):
        run = promtool("check", check, str(file))
        assert run.returncode == 0, run.stdout + run.stderr
    jobs = {c["job_name"] for c in yaml.safe_load(path.with_name("prometheus.yaml").read_text())["scrape_configs"]}
    assert jobs == set(re.findall(r'job="([^"]+)"', path.read_text())) == {"parbake-coordinator", "parbake-agent"}
    for word in ("parbake_coordinator_leader", "parbake_pool_", "parbake_prepull_", "namespace", "pod="):
        assert word not in path.read_text(), word

    def of_coordinator(name, values, **labels):
        return plain(name, values, "parbake-coordinator", "coordinator:7473", **labels)

    def of_agent(name, values, **labels):
        return plain(name, values, "parbake-agent", "mini-1:7472", **labels)

    def plain(name, values, job, instance, **labels):
        inner = ",".join(f'{key}="{value}"' for key, value in {"job": job, "instance": instance, **labels}.items())
        return {"series": f"{name}{{{inner}}}", "values": values}

    def rings(alert, at, inputs, *labels):
        fires(alert, at, inputs, *labels, rules=path)
        rung.add(alert)

    rung = set()
    up = of_coordinator("up", "1x200")
    # as a coordinator without a cluster says
    base = [up, of_coordinator("parbake_coordinator_leader", "0x200")]
    rings("ParbakeCoordinatorDown", "10m", base)
    rings("ParbakeCoordinatorDown", "10m", [of_coordinator("up", "1x7 0x100")], 'instance="coordinator:7473"')
    rings("ParbakeCoordinatorDown", "9m", [of_coordinator("up", "1x7 0x100")])
    rings("ParbakeCoordinatorDown", "10m", [of_agent("up", "1x200")], 'job="parbake-coordinator"')
    rings("ParbakeAgentDown", "9m", [up, of_agent("up", "0x200")])
    rings("ParbakeAgentDown", "10m", [up, of_agent("up", "0x200")], 'instance="mini-1:7472"')
    rings("ParbakeAgentDown", "60m", [up, of_agent("up", "1x200")])

    def volume(free):
        return [up, of_agent("parbake_agent_volume_bytes", free, part="free"), of_agent("parbake_agent_volume_bytes", "1024x200", part="floor")]

    rings("ParbakeVolumeBelowFloor", "60m", volume("1024x200"))
    rings("ParbakeVolumeBelowFloor", "14m", volume("1023x200"))
    rings("ParbakeVolumeBelowFloor", "15m", volume("1023x200"), "mini-1:7472 has 1023B free")

    staging = [*base, of_coordinator("parbake_coordinator_placements", "5x200", state="staging")]
    flat = [of_coordinator("parbake_coordinator_received_bytes", "7x200", source=source) for source in ("origin", "peers", "local")]
    moving = [of_coordinator("parbake_coordinator_received_bytes", "7+1000000x200", source="peers"), *flat[:1]]
    rings("ParbakeStagingStalled", "14m", staging + flat)
    rings("ParbakeStagingStalled", "30m", staging + flat, "5 images on hosts")
    rings("ParbakeStagingStalled", "30m", staging + moving)
    rings("ParbakeStagingStalled", "30m", [*base, *flat, of_coordinator("parbake_coordinator_placements", "0x200", state="staging")])
    rings("ParbakeStageFailed", "14m", [*base, of_coordinator("parbake_coordinator_placements", "2x200", state="failed")])
    rings("ParbakeStageFailed", "20m", [*base, of_coordinator("parbake_coordinator_placements", "2x200", state="failed")], "each host: 2")
    wanted = [*base, of_coordinator("parbake_coordinator_wanted_bytes", "1000x200")]
    rings("ParbakeOriginBytesAbovePlan", "10m", wanted + [of_coordinator("parbake_coordinator_received_bytes", "1100x200", source="origin")])
    rings("ParbakeOriginBytesAbovePlan", "10m", wanted + [of_coordinator("parbake_coordinator_received_bytes", "1101x200", source="origin")], "gave 1.075kiB")
    rings("ParbakeHostSilent", "9m", [*base, of_coordinator("parbake_coordinator_hosts", "1x200", state="disconnected")])
    rings("ParbakeHostSilent", "10m", [*base, of_coordinator("parbake_coordinator_hosts", "1x200", state="disconnected")], "coordinator: 1")
    rings("ParbakeVerifyFailures", "20m", [*base, of_coordinator("parbake_coordinator_blames_total", "3x200", kind="bytes")])
    rings("ParbakeVerifyFailures", "20m", [*base, of_coordinator("parbake_coordinator_blames_total", "0x10 3x200", kind="bytes")], 'kind="bytes"')
    rings("ParbakeVerifyFailures", "12m", [*base, of_coordinator("parbake_coordinator_blames_total", "_x10 1x200", kind="link")], 'kind="link"')
    rings("ParbakeVerifyFailures", "20m", [*base, of_coordinator("parbake_coordinator_blames_total", "0x10 3x200", kind="silence")])
    rings("ParbakeHostQuarantined", "5m", [*base, of_coordinator("parbake_coordinator_hosts", "1x200", state="quarantined")], "quarantined")
    rings("ParbakeHostQuarantined", "5m", [*base, of_coordinator("parbake_coordinator_hosts", "0x200", state="quarantined")])
    assert rung == {r["alert"] for r in plain_rules()}, "each alert is rung once"


def test_panels_show_who_leads_and_a_coordinator_that_nobody_elected():
    if not os.environ["PROMTOOL"]:
        raise Skipped("no promtool")

    def shown(inputs, *values):
        """What the queries that choose among replicas answer, as values in any order."""
        chosen = [e for _, e in panels() if "parbake_coordinator_hosts" in e and "parbake_coordinator_leader" in e]
        assert len(chosen) == 1, chosen
        samples = [{"labels": labels, "value": value} for labels, value in values]
        case = {
            "evaluation_interval": "1m",
            "tests": [{"interval": "1m", "input_series": inputs, "promql_expr_test": [{"expr": chosen[0], "eval_time": "5m", "exp_samples": samples}]}],
        }
        path = WORK / "panels_test.yaml"
        path.write_text(yaml.safe_dump(case))
        run = promtool("test", "rules", str(path))
        assert run.returncode == 0, run.stdout + run.stderr

    def hosts(count, pod, job="parbake-metrics"):
        return {"series": f'parbake_coordinator_hosts{{job="{job}",instance="{pod}",state="connected"}}', "values": f"{count}x10"}

    def leads(value, pod, job="parbake-metrics"):
        return {"series": f'parbake_coordinator_leader{{job="{job}",instance="{pod}"}}', "values": f"{value}x10"}

    def sample(count, pod, job="parbake-metrics"):
        return f'parbake_coordinator_hosts{{job="{job}",instance="{pod}",state="connected"}}', count

    shown([leads(1, "a"), leads(0, "b"), hosts(40, "a"), hosts(0, "b")], sample(40, "a"))
    shown([leads(0, "a", "parbake-coordinator"), hosts(3, "a", "parbake-coordinator")], sample(3, "a", "parbake-coordinator"))
    # a cluster and a rack that are watched by one Prometheus
    both = [leads(1, "a"), leads(0, "b"), hosts(40, "a"), hosts(0, "b"), leads(0, "c", "rack"), hosts(3, "c", "rack")]
    shown(both, sample(40, "a"), sample(3, "c", "rack"))


def test_alerts_fire_when_they_should_and_not_before():
    if not os.environ["PROMTOOL"]:
        raise Skipped("no promtool")
    leader = [series("parbake_coordinator_leader", "1x200"), series("parbake_coordinator_leader", "0x200", pod="parbake-2")]
    pool = {"namespace": "ci", "pool": "runners"}

    fires("ParbakeNoLeader", "10m", leader)
    fires("ParbakeNoLeader", "10m", [series("parbake_coordinator_leader", "0x200")], "ParbakeNoLeader")
    fires("ParbakeTwoLeaders", "10m", leader)
    fires("ParbakeTwoLeaders", "10m", [leader[0], series("parbake_coordinator_leader", "1x200", pod="parbake-2")], "ParbakeTwoLeaders")

    def roll(rolling, stale, pod="parbake-1"):
        return [
            series("parbake_pool_rolling_pods", rolling, pod=pod, **pool),
            series("parbake_pool_roll_concurrency_cap", "2x200", pod=pod, **pool),
            series("parbake_pool_stale_pods", stale, pod=pod, **pool),
        ]

    fires("ParbakeRollingAboveCap", "20m", leader + roll("2x200", "30x200"))
    fires("ParbakeRollingAboveCap", "20m", leader + roll("3x200", "30x200"), 'namespace="ci"', 'pool="runners"')
    fires("ParbakeRollingAboveCap", "20m", leader + roll("3x200", "30x200", pod="parbake-2"))

    def short(warm, replicas="12x200"):
        # the cap of roll() is 2
        own = [series("parbake_pool_warm_pods", warm, **pool), series("parbake_pool_replicas", replicas, **pool)]
        return leader + roll("0x200", "12x200") + own

    fires("ParbakePoolShort", "20m", short("10x200"))
    fires("ParbakePoolShort", "9m", short("9x200"))
    fires("ParbakePoolShort", "10m", short("9x200"), 'pool="runners"', "has 9 warm Pods")
    # a pool that is emptied by a roll whose Pods come back stale, as far as rolling_pods can tell that nothing rolls
    fires("ParbakePoolShort", "20m", short("12 6 1 0x200"), 'pool="runners"', "has 0 warm Pods")
    fires("ParbakePoolShort", "20m", short("0x200", replicas="0x200"))
    fires("ParbakeRollStuck", "60m", leader + roll("2x200", "30x200"), 'pool="runners"')
    fires("ParbakeRollStuck", "60m", leader + roll("2x200", "200-1x200"))
    fires("ParbakeRollStuck", "60m", leader + roll("1x200", "30x200"))
    fires("ParbakeRollStuck", "60m", leader + roll("2x200", "0x200"))
    # a leader that took over 20 minutes ago has seen no 30 minutes of standstill
    fires("ParbakeRollStuck", "60m", leader + roll("_x40 2x160", "_x40 30x160"))

    def held(count, rolling="0x200", moving="0x200"):
        return leader + [
            series("parbake_pool_held_pods", count, reason="paused", **pool),
            series("parbake_pool_held_pods", "0x200", reason="image_missing", **pool),
            series("parbake_pool_rolling_pods", rolling, **pool),
            series("parbake_prepull_hosts", moving, namespace="ci", prepull="runners", state="staging"),
            series("parbake_prepull_hosts", "9x200", namespace="ci", prepull="other", state="staging"),
        ]

    fires("ParbakeRollHeld", "29m", held("4x200"))
    fires("ParbakeRollHeld", "30m", held("4x200"), 'pool="runners"', "4 idle stale Pods")
    # busy Pods aren't held; in flight, or being staged, it moves
    fires("ParbakeRollHeld", "60m", held("0x200"))
    fires("ParbakeRollHeld", "60m", held("4x200", rolling="1x200"))
    fires("ParbakeRollHeld", "60m", held("4x200", moving="3x200"))
    late = {"namespace": "ci", "prepull": "runners"}
    fires("ParbakeDeadlinePassed", "5m", leader + [series("parbake_prepull_deadline_passed", "1x200", **late)], 'prepull="runners"')
    fires("ParbakeDeadlinePassed", "5m", leader + [series("parbake_prepull_deadline_passed", "0x200", **late)])

    staging = [series("parbake_coordinator_placements", "5x200", state="staging")]
    flat = [series("parbake_coordinator_received_bytes", "7x200", source=source) for source in ("origin", "peers", "local")]
    moving = [series("parbake_coordinator_received_bytes", "7+1000000x200", source="peers"), *flat[:1]]
    fires("ParbakeStagingStalled", "30m", leader + staging + flat, "ParbakeStagingStalled")
    fires("ParbakeStagingStalled", "30m", leader + staging + moving)
    fires("ParbakeStagingStalled", "30m", leader + flat + [series("parbake_coordinator_placements", "0x200", state="staging")])

    wanted = [series("parbake_coordinator_wanted_bytes", "1000x200")]
    fires("ParbakeOriginBytesAbovePlan", "10m", leader + wanted + [series("parbake_coordinator_received_bytes", "1100x200", source="origin")])
    fires("ParbakeOriginBytesAbovePlan", "10m", leader + wanted + [series("parbake_coordinator_received_bytes", "1101x200", source="origin")], "gave 1.075kiB")

    fires("ParbakeHostSilent", "9m", leader + [series("parbake_coordinator_hosts", "1x200", state="disconnected")])
    fires("ParbakeHostSilent", "10m", leader + [series("parbake_coordinator_hosts", "1x200", state="disconnected")], "coordinator: 1")
    fires("ParbakeVerifyFailures", "20m", leader + [series("parbake_coordinator_blames_total", "3x200", kind="bytes")])
    fires("ParbakeVerifyFailures", "20m", leader + [series("parbake_coordinator_blames_total", "0x10 3x200", kind="bytes")], 'kind="bytes"')
    fires("ParbakeVerifyFailures", "12m", leader + [series("parbake_coordinator_blames_total", "_x10 1x200", kind="link")], 'kind="link"')
    fires("ParbakeVerifyFailures", "20m", leader + [series("parbake_coordinator_blames_total", "0x10 3x200", kind="silence")])
    fires("ParbakeHostQuarantined", "5m", leader + [series("parbake_coordinator_hosts", "1x200", state="quarantined")], "quarantined")
    fires("ParbakeStageFailed", "20m", leader + [series("parbake_coordinator_placements", "1x200", state="failed")], "each host: 1")
    fires("ParbakePodPending", "60m", leader + [series("parbake_pool_oldest_pending_pod_age_seconds", "1801x200", **pool)], "30m 1s")
    fires("ParbakePodPending", "60m", leader + [series("parbake_pool_oldest_pending_pod_age_seconds", "1800x200", **pool)])


def kubectl(*arguments, **options):
    command = [os.environ["KUBECTL"], "--kubeconfig", os.environ["SERVER"], *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)


def test_a_real_api_server_takes_every_object():
    if not os.environ["SERVER"]:
        raise Skipped("no --server")
    version = kubectl("get", "--raw", "/version")
    assert version.returncode == 0, version.stderr
    release = json.loads(version.stdout)["gitVersion"]
    resources = kubectl("api-versions").stdout.split()
    print(f"  server {release}")
    for namespace in (NAMESPACE, "ci", "tuist-runners", "default"):
        made = kubectl("create", "namespace", namespace)
        assert made.returncode == 0 or "AlreadyExists" in made.stderr, made.stderr
    crd = DEPLOY / "crd.yaml"
    applied = kubectl("apply", "--server-side", "--force-conflicts", "-f", str(crd))
    assert applied.returncode == 0, applied.stderr
    waited = kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd/imageprepulls.parbake.dev")
    assert waited.returncode == 0, waited.stderr
    flags = ["--kube-version", release.lstrip("v").split("-")[0].split("+")[0]]
    for api in resources:
        flags += ["--api-versions", api]
    for mode, values in MODES.items():
        shown = 0
        for o in render(values, *flags):
            if o["apiVersion"].startswith("monitoring.coreos.com"):
                continue
            # helm 3.6 knows policy/v1 of itself and takes --api-versions as more of them
            if o["kind"] == "PodDisruptionBudget" and "policy/v1" not in resources:
                o["apiVersion"] = "policy/v1beta1"
            run = kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", input=yaml.safe_dump(o))
            assert run.returncode == 0, f"{mode}: {o['kind']} {o['metadata']['name']}: {run.stderr}"
            shown += 1
        print(f"  {mode}: {shown} objects taken")


def can(verb, what, *flags, namespace=None, name=""):
    """Whether the API server lets the release's ServiceAccount do this."""
    account = f"system:serviceaccount:{NAMESPACE}:parbake"
    where = ["--namespace", namespace] if namespace else ["--all-namespaces"]
    resource = f"{what}/{name}" if name else what
    run = kubectl("auth", "can-i", verb, resource, *where, *flags, "--as", account)
    assert run.stdout.strip() in ("yes", "no"), run.stdout + run.stderr
    return run.stdout.strip() == "yes"


def applies(text):
    """The commands of this text that renew the CRD."""
    return [found.group() for found in re.finditer(r"(tar -xOf CHART\.tgz [^|\n]*\| )?kubectl apply [^`\n]*-f [^`\n ]+", text)]


def crd_commands(notes):
    """Every command that operators are told to renew the CRD with: by deploy/README.md, and by the chart's notes."""
    readme = (DEPLOY / "README.md").read_text()
    (upgrade,) = re.findall(r"^### Upgrade\n(.*?)^### ", readme, re.DOTALL | re.MULTILINE)
    return applies(upgrade) + applies(notes)


def test_the_documented_upgrade_renews_a_crd_that_helm_installed():
    if not os.environ["SERVER"]:
        raise Skipped("no --server")
    name = "imageprepulls.parbake.dev"
    description = lambda crd: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    wanted = description(yaml.safe_load((DEPLOY / "crd.yaml").read_text()))["description"]
    path = os.pathsep.join([str(pathlib.Path(os.environ["KUBECTL"]).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "KUBECONFIG": os.environ["SERVER"]}
    assert helm("package", str(CHART), "--destination", str(WORK)).returncode == 0
    (package,) = WORK.glob("parbake-*.tgz")

    def said():
        return kubectl("get", "crd", name, "-o", "jsonpath={.spec.versions[0].schema.openAPIV3Schema.description}").stdout

    def shell(line):
        command = ["bash", "-o", "pipefail", "-c", line.replace("CHART.tgz", str(package))]
        return subprocess.run(command, cwd=DEPLOY.parent, capture_output=True, text=True, check=False, timeout=120, env=environment)

    # an older chart, whose CRD says something else
    older = WORK / "older"
    shutil.copytree(CHART, older)
    (member,) = (older / "crds").iterdir()
    crd = yaml.safe_load(member.read_text())
    description(crd)["description"] = "an older text"
    member.write_text(yaml.safe_dump(crd))
    removed = kubectl("delete", "crd", name, "--ignore-not-found")
    assert removed.returncode == 0, removed.stderr
    kubectl("create", "namespace", NAMESPACE)
    at = ["--kubeconfig", os.environ["SERVER"], "--namespace", NAMESPACE]
    run = helm("install", "parbake", str(older), *at, values={"image": {"repository": "registry.example.com/parbake"}})
    try:
        assert run.returncode == 0, run.stderr
        refused = shell("kubectl apply --server-side -f deploy/crd.yaml")
        assert refused.returncode != 0 and "conflict" in refused.stderr, "helm doesn't manage the CRD: nothing is tried here"
        commands = crd_commands(run.stdout)
        assert len(commands) == 4, commands
        for command in commands:
            if said() != "an older text":
                # again as an install leaves it
                assert kubectl("delete", "crd", name).returncode == 0
                run = kubectl("create", "--field-manager=helm", "-f", str(member))
                assert run.returncode == 0, run.stderr
            for _ in ("the first time", "and the next"):
                run = shell(command)
                assert run.returncode == 0, f"{command}: {run.stderr}"
                assert said() == wanted, command
    finally:
        run = helm("uninstall", "parbake", *at)
    assert run.returncode == 0, run.stderr


def test_a_release_lives_on_a_real_api_server():
    if not os.environ["SERVER"]:
        raise Skipped("no --server")
    base = {"image": {"repository": "registry.example.com/parbake"}}
    at = ["--kubeconfig", os.environ["SERVER"], "--namespace", NAMESPACE]
    found = helm("list", "--short", *at)
    assert found.returncode == 0 and not found.stdout.strip(), f"there is a release already: {found.stdout}{found.stderr}"
    try:
        # with pools at once: the CRD comes before them
        run = helm("install", "parbake", str(CHART), *at, values=merged(base, {"gate": {"modes": ["own"]}, "pools": [POOL]}))
        assert run.returncode == 0, run.stderr
        assert kubectl("get", "ipp", "runners", "--namespace", "ci").returncode == 0
        assert can("patch", "pods", namespace="ci") and can("delete", "serviceaccounts", namespace="ci")
        assert can("patch", "imageprepulls.parbake.dev", "--subresource=status", namespace="ci")
        assert can("update", "secrets", namespace=NAMESPACE, name="parbake-state")
        for verb, what, namespace, name in [
            ("get", "secrets", "ci", ""),
            ("get", "secrets", NAMESPACE, "other"),
            ("list", "secrets", NAMESPACE, ""),
            ("delete", "secrets", NAMESPACE, "parbake-state"),
            ("create", "pods", "ci", ""),
            ("delete", "nodes", None, ""),
            ("patch", "runnerpools.tuist.dev", "ci", ""),
            ("update", "validatingwebhookconfigurations", None, ""),
        ]:
            assert not can(verb, what, namespace=namespace, name=name), f"{verb} {what}/{name} in {namespace}"

        # guard instead of own: the rights on Pods go, and the webhook comes
        guard = merged(base, {"gate": {"modes": ["guard"]}, "pools": [{**POOL, "mode": "Guard"}]})
        run = helm("upgrade", "parbake", str(CHART), *at, values=guard)
        assert run.returncode == 0, run.stderr
        assert can("watch", "pods", namespace="ci")
        assert not can("patch", "pods", namespace="ci") and not can("delete", "serviceaccounts", namespace="ci")
        hook = f"parbake.{NAMESPACE}.parbake.dev"
        assert can("patch", "validatingwebhookconfigurations", name=hook)

        # what the coordinator writes there survives an upgrade that changes the rest
        # a real certificate, since the server looks: its own authority's
        cluster = json.loads(kubectl("config", "view", "--raw", "--flatten", "-o", "json").stdout)["clusters"][0]["cluster"]
        bundle = cluster["certificate-authority-data"]
        patch = json.dumps([{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle}])
        run = kubectl("patch", "validatingwebhookconfiguration", hook, "--type=json", "--patch", patch)
        assert run.returncode == 0, run.stderr
        run = helm("upgrade", "parbake", str(CHART), *at, values=merged(guard, {"webhook": {"timeoutSeconds": 3}}))
        assert run.returncode == 0, run.stderr
        kept = json.loads(kubectl("get", "validatingwebhookconfiguration", hook, "-o", "json").stdout)["webhooks"][0]
        assert kept["timeoutSeconds"] == 3 and kept["clientConfig"]["caBundle"] == bundle
        pool = json.loads(kubectl("get", "ipp", "runners", "--namespace", "ci", "-o", "json").stdout)
        assert pool["spec"]["gate"]["mode"] == "Guard" and pool["spec"]["gate"]["maxConcurrentPercent"] == 5
    finally:
        run = helm("uninstall", "parbake", *at)
    assert run.returncode == 0, run.stderr
    assert kubectl("get", "crd", "imageprepulls.parbake.dev").returncode == 0, "the CRD, and the pools of others, stay"


def main():
    if sys.argv[1:2] == ["--render"]:
        # for suites that need the roles as they are shipped
        namespace, mode = sys.argv[2:4]
        run = helm("template", "parbake", str(CHART), "--namespace", namespace, values=merged({"image": {"repository": "none"}}, MODES[mode]))
        sys.stdout.write(run.stdout)
        sys.stderr.write(run.stderr)
        return run.returncode
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
    wanted = sys.argv[1:]
    failed, skipped = 0, 0
    for name, test in tests:
        if wanted and not any(word in name for word in wanted):
            continue
        try:
            test()
            print(f"ok   {name[5:].replace('_', ' ')}")
        except Skipped as reason:
            skipped += 1
            print(f"skip {name[5:].replace('_', ' ')}: {reason}")
        except Exception:
            failed += 1
            print(f"FAIL {name[5:].replace('_', ' ')}")
            traceback.print_exc(file=sys.stdout)
    print(f"deploy: {len(tests)} tests, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
