"""A policy of the cluster that lets no pod choose its user, for tests with a real API server.

OpenShift's restricted-v2 does so with users that are not of the namespace's own range."""

from __future__ import annotations

from pydantic import JsonValue

POLICY = "admissionregistration.k8s.io/v1"
CHOSEN = "a user or group is chosen: leave it to the cluster"
NOBODY_CHOOSES: list[dict[str, JsonValue]] = [
    {
        "apiVersion": POLICY,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "nobody-chooses-a-user"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "resources": ["pods"],
                        "operations": ["CREATE"],
                    }
                ]
            },
            "variables": [
                {
                    "name": "contexts",
                    "expression": (
                        "object.spec.containers.filter(c, has(c.securityContext)).map(c, c.securityContext)"
                    ),
                }
            ],
            "validations": [
                {
                    "expression": (
                        "!has(object.spec.securityContext.runAsUser)"
                        " && !has(object.spec.securityContext.runAsGroup)"
                        " && !has(object.spec.securityContext.fsGroup)"
                        " && variables.contexts.all(c, !has(c.runAsUser) && !has(c.runAsGroup))"
                    ),
                    "message": CHOSEN,
                }
            ],
        },
    },
    {
        "apiVersion": POLICY,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "nobody-chooses-a-user"},
        "spec": {"policyName": "nobody-chooses-a-user", "validationActions": ["Deny"]},
    },
]
