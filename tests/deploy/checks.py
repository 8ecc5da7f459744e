"""What must be true of the manifests and no schema knows. Each check yields the faults that it finds, in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from skyward_etcd.cluster.binary import Etcd, Verdict, Version, grade, spell
from skyward_etcd.cluster.member import _by_release
from tests.deploy.manifests import ROOT, Document, Manifests, Pod, expand, matches

PROBES_SINCE: Version = (3, 5, 11)
URL = re.compile(r"(https?)://([^:/,]+):(\d+)")
LOCAL = ("0.0.0.0", "127.0.0.1")  # the pod itself
BY_HAND = (ROOT / "docs" / "kubernetes.md").read_text()


def faults(manifests: Manifests) -> list[str]:
    """Return what is wrong with these manifests. While something refers to nothing, there is no telling the rest."""
    loose = [fault for check in REFERENCES for fault in check(manifests)]
    return loose or [fault for check in CHECKS for fault in check(manifests)]


# --- what refers to something finds it


def selectors(manifests: Manifests) -> Iterator[str]:
    pods = list(manifests.every_pod())
    for document in manifests.of("Service", "PodDisruptionBudget"):
        chosen = document["spec"]["selector"]
        selector = chosen if "matchLabels" in chosen else {"matchLabels": chosen}
        if not any(matches(selector, pod.labels) for pod in pods):
            yield f"{_name(document)} selects no pod"
    for document in manifests.of("StatefulSet", "Deployment"):
        if not matches(document["spec"]["selector"], document["spec"]["template"]["metadata"]["labels"]):
            yield f"{_name(document)} does not select its own pods"


def ports(manifests: Manifests) -> Iterator[str]:
    for service in manifests.of("Service"):
        for pod in manifests.every_pod():
            if not matches({"matchLabels": service["spec"]["selector"]}, pod.labels):
                continue
            offered = {port["name"] for each in pod.containers for port in each.get("ports", [])}
            for port in service["spec"].get("ports", []):
                if port["targetPort"] not in offered:
                    yield f"{_name(service)} leads to port {port['targetPort']}, which {pod} does not offer"
    for pod in manifests.every_pod():
        for container in pod.containers:
            offered = {port["name"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                asked = container.get(probe, {}).get("httpGet", {}).get("port")
                if asked and asked not in offered:
                    yield f"{pod}: its {probe} asks port {asked}, which it does not offer"


def volumes(manifests: Manifests) -> Iterator[str]:
    for pod in manifests.every_pod():
        there = {volume["name"] for volume in pod.spec.get("volumes", [])} | set(pod.claims)
        mounted = {mount["name"] for each in pod.every_container for mount in each.get("volumeMounts", [])}
        yield from (f"{pod} mounts volume {name}, which it does not have" for name in mounted - there)
        yield from (f"{pod} has volume {name}, which nothing mounts" for name in there - mounted)
        for volume in pod.spec.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and claim not in _claims(manifests):
                yield f"{pod}: there is no claim {claim}"


def objects(manifests: Manifests) -> Iterator[str]:
    """ConfigMaps, Secrets and accounts that are referred to are rendered, issued, or made by hand in the docs."""
    for pod in manifests.every_pod():
        account = pod.spec.get("serviceAccountName", "default")
        if manifests.find("ServiceAccount", account) is None:
            yield f"{pod}: there is no ServiceAccount {account}"
        for kind, name, key in _references(pod):
            document = manifests.find(kind, name)
            if document is None:
                if not _is_issued(manifests, kind, name) and not _is_made_by_hand(kind, name, key):
                    yield f"{pod}: there is no {kind} {name}, and nothing makes it"
            elif key and key not in {**document.get("data", {}), **document.get("stringData", {})}:
                yield f"{pod}: {kind} {name} has no key {key}"


def variables(manifests: Manifests) -> Iterator[str]:
    """``$(NAME)`` stands for something that was said before; else it stays as it is."""
    for pod in manifests.every_pod():
        for container in pod.every_container:
            known: dict[str, str] = {}
            for source in container.get("envFrom", []):
                document = manifests.find("ConfigMap", source["configMapRef"]["name"])
                known |= dict.fromkeys(document.get("data", {}) if document else {}, "?")
            for variable in container.get("env", []):
                for name in re.findall(r"\$\((\w+)\)", expand(variable.get("value", ""), known)):
                    yield f"{pod}: {variable['name']} uses $({name}) before it is known"
                known[variable["name"]] = "?"
            for word in (*container["command"], *container.get("args", [])):
                for name in re.findall(r"\$\((\w+)\)", expand(word, known)):
                    yield f"{pod}: its command uses $({name}), which is not known"


def names(manifests: Manifests) -> Iterator[str]:
    """Every address in a variable is one that the cluster's DNS has, at a port that is offered there."""
    known = _addresses(manifests)
    for pod in manifests.every_pod():
        for name, value in _texts(manifests, pod):
            for _, host, port in URL.findall(value):
                if host not in LOCAL and port not in known.get(host, ()):
                    yield f"{pod}: {name} leads to {host}:{port}, which is nowhere"


# --- etcd


def founders(manifests: Manifests) -> Iterator[str]:
    """The list of the members is the pods that there are, at the addresses that they say of themselves."""
    said = {name: _environment(manifests, name) for name in (pod.name for pod in manifests.members)}
    if len(said) % 2 == 0:
        yield f"{len(said)} members: an even number"
    for name, values in said.items():
        listed = dict(part.split("=", 1) for part in values["ETCD_INITIAL_CLUSTER"].split(","))
        is_so = {each: its["ETCD_INITIAL_ADVERTISE_PEER_URLS"] for each, its in said.items()}
        if listed != is_so:
            yield f"{name}: --initial-cluster says {listed}, but the members say {is_so}"
        if values["ETCD_NAME"] != name:
            yield f"{name} calls itself {values['ETCD_NAME']}"


def endpoints(manifests: Manifests) -> Iterator[str]:
    """Who uses the cluster is told all members."""
    all_members = [_environment(manifests, pod.name)["ETCD_ADVERTISE_CLIENT_URLS"] for pod in manifests.members]
    for pod in manifests.every_pod():
        for name, value in _texts(manifests, pod):
            if name in ("ETCDCTL_ENDPOINTS", "SKYWARD_ETCD_ENDPOINTS") and value.split(",") != all_members:
                yield f"{pod}: {name} is {value}, but the members are at {','.join(all_members)}"


def quorum(manifests: Manifests) -> Iterator[str]:
    members = manifests.members
    budgets = [
        document
        for document in manifests.of("PodDisruptionBudget")
        if matches(document["spec"]["selector"], members[0].labels)
    ]
    if len(members) >= 3 and len(budgets) != 1:
        yield f"{len(members)} members and {len(budgets)} disruption budgets: there must be one"
    for budget in budgets:
        spec, count = budget["spec"], len(members)
        away = spec["maxUnavailable"] if "maxUnavailable" in spec else count - spec.get("minAvailable", 0)
        if not isinstance(away, int):
            yield f"{_name(budget)}: a percentage is rounded up"
        elif not 1 <= away <= (count - 1) // 2:
            yield f"{_name(budget)} lets {away} of {count} members go"


def members(manifests: Manifests) -> Iterator[str]:
    """What a member's pod must have, and what it must not."""
    document = manifests.get("StatefulSet", "etcd")
    spec, pod = document["spec"], manifests.members[0]
    headless = manifests.find("Service", spec["serviceName"])
    if headless is None or headless["spec"].get("clusterIP") != "None":
        yield "the members' service is not headless"
    elif not headless["spec"].get("publishNotReadyAddresses"):
        yield "the members' names are there only when they are ready, and that needs their names"
    if spec.get("podManagementPolicy") != "Parallel":
        yield "the first member waits to be ready before the second starts, and is not without it"
    rules = pod.spec["affinity"]["podAntiAffinity"].get("requiredDuringSchedulingIgnoredDuringExecution", [])
    if not any(
        rule["topologyKey"] == "kubernetes.io/hostname" and matches(rule["labelSelector"], pod.labels) for rule in rules
    ):
        yield "two members may share a machine"
    if spec["persistentVolumeClaimRetentionPolicy"] != {"whenDeleted": "Retain", "whenScaled": "Retain"}:
        yield "members' disks go with them"
    if "lifecycle" in _etcd(pod) or "member remove" in str(document):
        yield "a member does something at its stop"
    if pod.spec.get("enableServiceLinks", True):
        yield "a service called etcd makes ETCD_... variables"
    values = _environment(manifests, pod.name)
    mounts = {mount["name"]: mount["mountPath"] for mount in _etcd(pod)["volumeMounts"]}
    if not any(name in pod.claims and values["ETCD_DATA_DIR"].startswith(path) for name, path in mounts.items()):
        yield "the data directory is on no claimed disk"


def probes(manifests: Manifests) -> Iterator[str]:
    container = _etcd(manifests.members[0])
    asks = {
        name: container.get(name, {}).get("httpGet", {}).get("path") for name in ("livenessProbe", "readinessProbe")
    }
    if asks["livenessProbe"] != "/livez":
        yield f"the liveness probe asks {asks['livenessProbe']}: it would kill the members that are left"
    if asks["readinessProbe"] != "/readyz":
        yield f"the readiness probe asks {asks['readinessProbe']}"
    values = _environment(manifests, manifests.members[0].name)
    if not values["ETCD_LISTEN_METRICS_URLS"].startswith("http:"):
        yield "a kubelet has no client certificate: the probes need a plain port"
    patience = container["livenessProbe"]["periodSeconds"] * container["livenessProbe"]["failureThreshold"]
    if patience < 60:
        yield f"a member that is slow for {patience} s is killed"


def release(manifests: Manifests) -> Iterator[str]:
    """The release keeps its promises over a restart, has the probes, knows its options, and is that of the tools."""
    version = _version(manifests)
    verdict = grade(version, durable=True, members=len(manifests.members))
    if verdict.verdict is not Verdict.ACCEPTED:
        yield f"etcd {spell(version)}: {verdict.reason}"
    if version < PROBES_SINCE:
        yield f"etcd {spell(version)} has no /livez"
    values = _environment(manifests, manifests.members[0].name)
    wanted = {
        f"ETCD_{name.upper().replace('-', '_')}": value
        for name, value in _by_release(Etcd(Path("etcd"), version, "")).items()
    }
    other = {name for name in values if "EXPERIMENTAL" in name} - set(wanted)
    yield from (f"etcd {spell(version)} has no option {name}" for name in other)
    yield from (
        f"{name} is {values.get(name)}, not {value}" for name, value in wanted.items() if values.get(name) != value
    )
    for pod in manifests.every_pod():
        for container in pod.every_container:
            if "tools" in container["image"] and not container["image"].endswith(f"etcd{spell(version)}"):
                yield f"{pod}: the tools {container['image']} are not those of etcd {spell(version)}"


def tls(manifests: Manifests) -> Iterator[str]:
    """Where there is TLS it is everywhere and both ways, and no client's certificate is good for the peer port."""
    values = _environment(manifests, manifests.members[0].name)
    schemes = {
        scheme
        for pod in manifests.every_pod()
        for name, value in _texts(manifests, pod)
        for scheme, host, _ in URL.findall(value)
        if name != "ETCD_LISTEN_METRICS_URLS" and host != "127.0.0.1"
    }
    if len(schemes) != 1:
        yield f"some addresses are {' and some '.join(sorted(schemes))}"
    if values["SCHEME"] != "https":
        return
    for side in ("", "PEER_"):
        if values.get(f"ETCD_{side}CLIENT_CERT_AUTH") != "true":
            yield f"ETCD_{side}CLIENT_CERT_AUTH is not set: anybody may connect"
    secrets = {volume["name"]: volume.get("secret", {}).get("secretName") for volume in _etcd_volumes(manifests)}
    mounts = {mount["mountPath"]: secrets.get(mount["name"]) for mount in _etcd(manifests.members[0])["volumeMounts"]}
    used: dict[str, str | None] = {}
    for side in ("", "PEER_"):
        files = [values.get(f"ETCD_{side}{what}", "") for what in ("TRUSTED_CA_FILE", "CERT_FILE", "KEY_FILE")]
        if [file.rpartition("/")[2] for file in files] != ["ca.crt", "tls.crt", "tls.key"]:
            yield f"the {side or 'CLIENT_'}files are {files}"
        used[side] = mounts.get(files[0].rpartition("/")[0])
    certificates = {each["spec"]["secretName"]: each["spec"] for each in manifests.of("Certificate")}
    if certificates and not all(used.values()):
        yield f"a member's certificates are in no Secret: {used}"
    elif certificates:
        yield from _certificates(manifests, certificates[used[""] or ""], certificates[used["PEER_"] or ""])


def _certificates(manifests: Manifests, server: Document, peer: Document) -> Iterator[str]:
    if server["issuerRef"] == peer["issuerRef"]:
        yield "peers and clients have one authority: a worker's certificate is good for the peer port"
    for issuer in (server["issuerRef"]["name"], peer["issuerRef"]["name"]):
        authority = manifests.find("Issuer", issuer)
        if authority is None or "ca" not in authority["spec"]:
            yield f"Issuer {issuer} is no authority"
    hosts = {host for host in _addresses(manifests) if ".etcd-peers" in host}
    for what, missing in (
        ("server", {"etcd", *hosts} - set(server["dnsNames"])),
        ("peer", hosts - set(peer["dnsNames"])),
    ):
        if missing:
            yield f"the {what} certificate lacks {sorted(missing)}"
    if "client auth" not in peer["usages"] or "server auth" not in peer["usages"]:
        yield "a peer is client and server to the others"


# --- workers


def workers(manifests: Manifests) -> Iterator[str]:
    for owner in manifests.workloads():
        if "skyward-etcd/worker" not in owner["metadata"].get("labels", {}):
            continue
        pods = manifests.pods(owner)
        values = manifests.environment(pods[0], pods[0].containers[0]) if _has_secret(manifests) else {}
        size = next(each["value"] for each in pods[0].containers[0]["env"] if each["name"] == "SKYWARD_ETCD_SIZE")
        if size != str(len(pods)):
            yield f"{_name(owner)}: {len(pods)} workers are told that they are {size}"
        if owner["kind"] == "Job":
            yield from _job(owner)
        elif values.get("POD_NAME") not in (None, pods[0].name):
            yield f"{_name(owner)}: a worker does not know its ordinal"


def _job(owner: Document) -> Iterator[str]:
    spec = owner["spec"]
    if spec.get("completionMode") != "Indexed":
        yield f"{_name(owner)}: its workers have no rank"
    wanted = {0: None, 1: None, 2: "FailJob", 75: "Ignore", 143: "Ignore"}
    found = {code: _action(spec, code) for code in wanted}
    if found != wanted:
        yield f"{_name(owner)}: exit codes are taken as {found}, not {wanted}"
    if not any("onPodConditions" in rule for rule in spec["podFailurePolicy"]["rules"]):
        yield f"{_name(owner)}: to be moved counts as a failure"
    if spec["template"]["spec"].get("restartPolicy") != "Never":
        yield f"{_name(owner)}: a failure policy needs restartPolicy Never"


def _action(spec: Document, code: int) -> str | None:
    for rule in spec["podFailurePolicy"]["rules"]:
        if code in rule.get("onExitCodes", {}).get("values", []):
            return str(rule["action"])
    return None


# --- nobody gets in, and nobody gets far


def confinement(manifests: Manifests) -> Iterator[str]:
    for pod in manifests.every_pod():
        if pod.spec.get("automountServiceAccountToken", True):
            yield f"{pod} is given a token of the API"
        whole = pod.spec.get("securityContext", {})
        if not whole.get("runAsNonRoot") or not whole.get("runAsUser"):
            yield f"{pod} may run as root"
        if whole.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{pod} has no seccomp profile"
        for container in pod.every_container:
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation", True) or own.get("capabilities", {}).get("drop") != ["ALL"]:
                yield f"{pod}: container {container['name']} may become more than it is"
            if not own.get("readOnlyRootFilesystem"):
                yield f"{pod}: container {container['name']} can write to its image"
            if not re.search(r":[\w.-]*\d[\w.-]*$|@sha256:[0-9a-f]{64}$", container["image"]):
                yield f"{pod}: image {container['image']} is any version"


def network(manifests: Manifests) -> Iterator[str]:
    """What has to be reached can be, by the policies alone, and what must not be cannot."""
    member = manifests.members[0]
    stranger: Mapping[str, str] = {"app": "stranger"}
    for pod in manifests.every_pod():
        reaches = {(host, port) for _, value in _texts(manifests, pod) for _, host, port in URL.findall(value)}
        is_member = pod.owner is member.owner
        for port in {port for host, port in reaches if host not in LOCAL}:
            needed = not is_member or port == "2380"
            if needed and not _may(manifests, pod.labels, member.labels, int(port)):
                yield f"{pod} is cut off from the members' port {port}"
        if any(host not in LOCAL for host, _ in reaches) and not _may_look_up(manifests, pod.labels):
            yield f"{pod} can look no name up"
        if not is_member and _may(manifests, pod.labels, member.labels, 2380):
            yield f"{pod} reaches the members' peer port"
        if not is_member and not reaches - {("127.0.0.1", "2380")} and _may_look_up(manifests, pod.labels):
            yield f"{pod} needs no network, and has it"
    for port in (2379, 2380, 2381):
        if _admits(manifests, stranger, member.labels, port):
            yield f"anybody in the namespace reaches the members' port {port}"


def _may(manifests: Manifests, source: Mapping[str, str], target: Mapping[str, str], port: int) -> bool:
    return _admits(manifests, source, target, port) and any(
        _opens(rule, "to", target, port) for rule in _rules(manifests, source, "Egress")
    )


def _admits(manifests: Manifests, source: Mapping[str, str], target: Mapping[str, str], port: int) -> bool:
    return any(_opens(rule, "from", source, port) for rule in _rules(manifests, target, "Ingress"))


def _may_look_up(manifests: Manifests, source: Mapping[str, str]) -> bool:
    return any(
        {"protocol": "UDP", "port": 53} in rule.get("ports", [{"protocol": "UDP", "port": 53}])
        and any("namespaceSelector" in peer for peer in rule.get("to", [{"namespaceSelector": {}}]))
        for rule in _rules(manifests, source, "Egress")
    )


def _rules(manifests: Manifests, labels: Mapping[str, str], direction: str) -> Iterator[Document]:
    """Yield what is open to these pods; all is, if no policy of this direction selects them."""
    policies = [
        document["spec"]
        for document in manifests.of("NetworkPolicy")
        if matches(document["spec"]["podSelector"], labels) and direction in document["spec"]["policyTypes"]
    ]
    if not policies:
        yield {}
    for policy in policies:
        yield from policy.get(direction.lower(), [])


def _opens(rule: Document, side: str, labels: Mapping[str, str], port: int) -> bool:
    peers, opened = rule.get(side), rule.get("ports")
    is_peer = peers is None or any(
        "podSelector" in peer and "namespaceSelector" not in peer and matches(peer["podSelector"], labels)
        for peer in peers
    )
    return is_peer and (opened is None or any(each.get("port") in (None, port) for each in opened))


# --- upkeep


def upkeep(manifests: Manifests) -> Iterator[str]:
    for document in manifests.of("CronJob"):
        if document["spec"].get("concurrencyPolicy") != "Forbid":
            yield f"{_name(document)} may run twice at a time"
        if "activeDeadlineSeconds" not in document["spec"]["jobTemplate"]["spec"]:
            yield f"{_name(document)} may run for ever"
    for name in ("etcd-defrag", "etcd-snapshot", "etcd-drill"):
        if manifests.get("CronJob", name)["spec"].get("suspend"):
            yield f"CronJob {name} is suspended"
    if not manifests.get("CronJob", "etcd-replace")["spec"].get("suspend"):
        yield "a member is replaced by the clock"


REFERENCES: tuple[Callable[[Manifests], Iterator[str]], ...] = (selectors, ports, volumes, objects, variables)
CHECKS: tuple[Callable[[Manifests], Iterator[str]], ...] = (
    names,
    founders,
    endpoints,
    quorum,
    members,
    probes,
    release,
    tls,
    workers,
    confinement,
    network,
    upkeep,
)


def mismatches(restoration: Manifests, manifests: Manifests) -> Iterator[str]:
    """What the jobs of a restoration must have in common with the members whose disks they write."""
    jobs = [restoration.pods(job)[0] for job in restoration.of("Job")]
    claims = [_volume(pod, "data")["persistentVolumeClaim"]["claimName"] for pod in jobs]
    wanted = [claim for pod in manifests.members for claim in pod.claims.values()]
    if claims != wanted:
        yield f"the restoration writes {claims}, and the members have {wanted}"
    for pod, member in zip(jobs, manifests.members, strict=False):
        values = dict(_texts(restoration, pod))
        theirs = _environment(manifests, member.name)
        if values["MEMBER"] != member.name or values["INITIAL_CLUSTER"] != theirs["ETCD_INITIAL_CLUSTER"]:
            yield f"{pod} makes {values['MEMBER']} of {values['INITIAL_CLUSTER']}"
        mount = next(each["mountPath"] for each in _etcd(member)["volumeMounts"] if each["name"] in member.claims)
        if values["DATA"] != theirs["ETCD_DATA_DIR"] or not values["DATA"].startswith(mount):
            yield f"{pod} writes to {values['DATA']}"
        if (
            manifests.find("PersistentVolumeClaim", _volume(pod, "snapshots")["persistentVolumeClaim"]["claimName"])
            is None
        ):
            yield f"{pod} finds no snapshots"
        if _may_look_up(manifests, pod.labels):
            yield f"{pod} needs no network, and has it"
        for kind, name, _ in _references(pod):
            if restoration.find(kind, name) is None and not _is_made_by_hand(kind, name, None):
                yield f"{pod}: there is no {kind} {name}, and nothing makes it"
        if manifests.find("ServiceAccount", pod.spec["serviceAccountName"]) is None:
            yield f"{pod}: there is no ServiceAccount {pod.spec['serviceAccountName']}"


# --- looking at them


def _name(document: Document) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def _etcd(pod: Pod) -> Document:
    return next(each for each in pod.containers if each["name"] == "etcd")


def _etcd_volumes(manifests: Manifests) -> list[Document]:
    volumes: list[Document] = manifests.members[0].spec["volumes"]
    return volumes


def _volume(pod: Pod, name: str) -> Document:
    return next(each for each in pod.spec["volumes"] if each["name"] == name)


def _version(manifests: Manifests) -> Version:
    found = re.search(r":v(\d+)\.(\d+)\.(\d+)", _etcd(manifests.members[0])["image"])
    assert found, "the members' image has no version"
    return int(found[1]), int(found[2]), int(found[3])


def _environment(manifests: Manifests, member: str) -> dict[str, str]:
    pod = next(pod for pod in manifests.members if pod.name == member)
    return manifests.environment(pod, _etcd(pod))


def _texts(manifests: Manifests, pod: Pod) -> Iterator[tuple[str, str]]:
    """Yield the variables whose values stand in the pod itself, as they will be."""
    for container in pod.every_container:
        known: dict[str, str] = {}
        for variable in container.get("env", []):
            if "value" in variable:
                known[variable["name"]] = expand(variable["value"], known)
            elif "fieldRef" in variable["valueFrom"]:
                known[variable["name"]] = manifests.environment(pod, {"env": [variable]})[variable["name"]]
        yield from known.items()


def _addresses(manifests: Manifests) -> dict[str, set[str]]:
    """Return the ports behind every short name that the DNS has for the namespace."""
    found: dict[str, set[str]] = {}
    for service in manifests.of("Service"):
        name = service["metadata"]["name"]
        offered = {str(port["port"]) for port in service["spec"].get("ports", [])}
        found[name] = offered
        for pod in manifests.every_pod():
            if pod.owner["spec"].get("serviceName") == name:
                found[f"{pod.name}.{name}"] = offered
    return found


def _claims(manifests: Manifests) -> set[str]:
    made = {document["metadata"]["name"] for document in manifests.of("PersistentVolumeClaim")}
    return made | {claim for pod in manifests.every_pod() for claim in pod.claims.values()}


def _references(pod: Pod) -> Iterator[tuple[str, str, str | None]]:
    """Yield kind, name and key of everything that the pod takes from elsewhere."""
    for volume in pod.spec.get("volumes", []):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"], None
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"], None
    for container in pod.every_container:
        for source in container.get("envFrom", []):
            yield "ConfigMap", source["configMapRef"]["name"], None
        for variable in container.get("env", []):
            for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                if chosen := variable.get("valueFrom", {}).get(field):
                    yield kind, chosen["name"], chosen["key"]


def _is_issued(manifests: Manifests, kind: str, name: str) -> bool:
    return kind == "Secret" and any(each["spec"]["secretName"] == name for each in manifests.of("Certificate"))


def _is_made_by_hand(kind: str, name: str, key: str | None) -> bool:
    made = re.search(rf"^\$ k.* create {kind.lower()}( generic)? {name}\b.*", BY_HAND, re.MULTILINE)
    return made is not None and (key is None or f"{key}=" in made[0])


def _has_secret(manifests: Manifests) -> bool:
    return manifests.find("Secret", "skyward-etcd") is not None
