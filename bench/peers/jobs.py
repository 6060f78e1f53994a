"""The job that every peer does, as the bench sees it: the kind it is for, and what is to be there.

A ``Job`` has a text. Its operator ensures one ConfigMap of its name in its namespace that holds the
text under ``text`` and has the Job as controlling owner, and says so in the status:
``{observedGeneration, ready: true}``, by a patch of the subresource. With all in place it writes
nothing. Each peer is written as its own framework would have it, without a line from here.
"""

from __future__ import annotations

from typing import Any, Final

from bench.peers.ours import JOBS, Child, Job

NAMESPACE: Final = "default"

CRD: Final[dict[str, Any]] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": JOBS.resource},
    "spec": {
        "group": JOBS.group,
        "scope": "Namespaced",
        "names": {"plural": JOBS.plural, "singular": "job", "kind": JOBS.kind},
        "versions": [
            {
                "name": JOBS.version,
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "required": ["text"],
                                "properties": {"text": {"type": "string"}},
                            },
                            "status": {
                                "type": "object",
                                "properties": {
                                    "observedGeneration": {"type": "integer"},
                                    "ready": {"type": "boolean"},
                                },
                            },
                        },
                    }
                },
            }
        ],
    },
}


def manifest(number: int) -> dict[str, Any]:
    """The Job of that number, as a user would write it."""
    return {
        "apiVersion": JOBS.api_version,
        "kind": JOBS.kind,
        "metadata": {"namespace": NAMESPACE, "name": f"job-{number:05}"},
        "spec": {"text": f"text of job {number} " + "x" * 200},
    }


def is_done(job: Job, child: Child) -> bool:
    """The child is what the Job asks for, and the status says so for the spec as it is."""
    return (
        child.metadata.controller_uid() == job.metadata.uid
        and child.data == {"text": job.spec.text}
        and job.status.ready
        and job.status.observed_generation == job.metadata.generation
    )
