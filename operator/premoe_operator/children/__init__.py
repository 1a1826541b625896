"""The child objects of a PrunedModel as pure values: one builder a child."""

from premoe_operator.children.accounts import service_accounts
from premoe_operator.children.deployment import template_revision, template_revision_name, worker_deployment
from premoe_operator.children.hashes import spec_hash
from premoe_operator.children.inputs import Inputs, Owner, default_image, selector_text, worker_selector
from premoe_operator.children.jobs import JOB_CONTAINER, job_changes, pack_job, patterns_job, profile_job
from premoe_operator.children.network_policy import jobs_network_policy, network_policy
from premoe_operator.children.pod_template import pod_template_refusals
from premoe_operator.children.pods import worker_device
from premoe_operator.children.quantity import parse_bytes, parse_quantity
from premoe_operator.children.services import grpc_endpoint
from premoe_operator.children.surroundings import (
    disruption_budget,
    residency_config,
    surroundings,
    tasks_config,
    worker_service,
)
from premoe_operator.children.transport import certificate
from premoe_operator.children.worker_pods import image_of, model_of, startup_of, worker_template

__all__ = [
    "JOB_CONTAINER",
    "Inputs",
    "Owner",
    "certificate",
    "default_image",
    "disruption_budget",
    "grpc_endpoint",
    "image_of",
    "job_changes",
    "jobs_network_policy",
    "model_of",
    "network_policy",
    "pack_job",
    "parse_bytes",
    "parse_quantity",
    "patterns_job",
    "pod_template_refusals",
    "profile_job",
    "residency_config",
    "selector_text",
    "service_accounts",
    "spec_hash",
    "startup_of",
    "surroundings",
    "tasks_config",
    "template_revision",
    "template_revision_name",
    "worker_deployment",
    "worker_device",
    "worker_selector",
    "worker_service",
    "worker_template",
]
