"""What an account may do, as the API server says, and what it has done, as the audit log says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from devcluster.kubectl import Kubectl
from devcluster.objects import at


class Right(NamedTuple):
    """One verb on one resource; `names` are the only objects that it is for, if there are any."""

    group: str
    resource: str
    verb: str
    names: tuple[str, ...] = ()


def granted(kubectl: Kubectl, user: str, namespace: str) -> set[Right]:
    """What somebody may do in a namespace: `kubectl auth can-i --list`, to be read by programs."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    answer = json.loads(
        kubectl(
            "create", f"--as={user}", "--validate=false", "--output=json", "-f", "-", stdin=json.dumps(review)
        )
    )
    return {
        Right(group, resource, verb, tuple(rule.get("resourceNames", ())))
        for rule in answer["status"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def may(kubectl: Kubectl, user: str, right: Right, namespace: str) -> bool:
    """Whether somebody may do that to an object of a namespace."""
    resource, _, subresource = right.resource.partition("/")
    attributes: dict[str, JsonValue] = {
        "namespace": namespace,
        "group": right.group,
        "resource": resource,
        "verb": right.verb,
    }
    attributes |= {"subresource": subresource} if subresource else {}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = json.loads(
        kubectl(
            "create", f"--as={user}", "--validate=false", "--output=json", "-f", "-", stdin=json.dumps(review)
        )
    )
    return bool(answer["status"]["allowed"])


def used(audit_log: Path, user: str) -> set[Right]:
    """What somebody has asked an API server for and was let do; discovery, which everybody may, left out."""
    found: set[Right] = set()
    with audit_log.open() as lines:
        for line in lines:
            if user not in line:
                continue
            event = json.loads(line)
            of = event.get("objectRef") or {}
            allowed = at(event, "annotations", "authorization.k8s.io/decision") == "allow"
            if event["user"]["username"] == user and of.get("resource") and allowed:
                subresource = f"/{of['subresource']}" if of.get("subresource") else ""
                found.add(Right(of.get("apiGroup", ""), f"{of['resource']}{subresource}", event["verb"]))
    return found
