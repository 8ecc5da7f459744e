"""The manifests render, and every Kubernetes release that is looked after would take them, to the last field."""

from __future__ import annotations

import copy

import pytest

from tests.deploy.manifests import KUBERNETES, OVERLAYS, Document, Manifests, dig, overlay, restoration

validate = pytest.importorskip("kubernetes_validate", reason="NO SCHEMAS: `make test-deploy` installs them")

RELEASES = ("1.29", "1.33", "1.37")
BETWEEN = [
    pytest.param(release, marks=pytest.mark.slow) for release in ("1.30", "1.31", "1.32", "1.34", "1.35", "1.36")
]
OF_CERT_MANAGER = ("Certificate", "Issuer")
"""Kinds that Kubernetes' own schemas do not know."""


@pytest.mark.parametrize("release", [*RELEASES, *BETWEEN])
@pytest.mark.parametrize("name", OVERLAYS)
def test_every_field_is_one_that_the_release_knows(name: str, release: str) -> None:
    for document in [*overlay(name).documents, *restoration(name).documents]:
        if document["kind"] not in OF_CERT_MANAGER:
            validate.validate(document, release, strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "replica"), 3),
        (("spec", "replicas"), "three"),
        (("spec", "template", "spec", "containers", 0, "livenessProb"), {}),
    ],
)
def test_a_wrong_field_is_found(path: tuple[str | int, ...], value: object) -> None:
    document = copy.deepcopy(overlay("production").get("StatefulSet", "etcd"))
    validate.validate(document, RELEASES[-1], strict=True)
    dig(document, path[:-1])[path[-1]] = value
    with pytest.raises(validate.ValidationError):
        validate.validate(document, RELEASES[-1], strict=True)


@pytest.mark.parametrize("name", OVERLAYS)
def test_nothing_is_named_twice_and_all_is_in_one_namespace(name: str) -> None:
    for manifests in (overlay(name), restoration(name)):
        identities = [(each["kind"], each["metadata"]["name"]) for each in manifests.documents]
        assert len(set(identities)) == len(identities)
        namespaced = [each for each in manifests.documents if each["kind"] != "Namespace"]
        assert {each["metadata"]["namespace"] for each in namespaced} == {"skyward-etcd"}


def test_every_directory_with_manifests_is_used() -> None:
    """A component or a file that no overlay uses is one that nothing here checks; etcd 3.6 has a test of its own."""
    texts = "\n".join(path.read_text() for path in KUBERNETES.rglob("kustomization.yaml"))
    unused = [
        str(path.relative_to(KUBERNETES))
        for path in KUBERNETES.rglob("*")
        if path.suffix in (".yaml", ".sh") and path.name != "kustomization.yaml" and path.name not in texts
    ]
    assert unused == []
    components = [path.name for path in (KUBERNETES / "components").iterdir()]
    assert [
        name for name in components if f"components/{name}\n" not in texts and f"components/{name} " not in texts
    ] == [*(name for name in components if name in ("etcd-3.6", "own-certificates"))]


def test_the_same_scripts_are_in_the_restoration() -> None:
    def scripts(manifests: Manifests) -> Document:
        return next(each for each in manifests.of("ConfigMap") if "etcd-scripts" in each["metadata"]["name"])

    for name in OVERLAYS:
        assert scripts(overlay(name))["data"] == scripts(restoration(name))["data"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_to_delete_a_restoration_deletes_nothing_else(name: str) -> None:
    mine, theirs = (
        {(each["kind"], each["metadata"]["name"]) for each in manifests.documents}
        for manifests in (restoration(name), overlay(name))
    )
    assert mine
    assert mine & theirs == set()
