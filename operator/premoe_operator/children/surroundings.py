"""Every child that stands around the workers and Jobs."""

from __future__ import annotations

from premoe_operator.children.configs import residency_config, tasks_config
from premoe_operator.children.disruption_budget import disruption_budget
from premoe_operator.children.inputs import Inputs, Obj
from premoe_operator.children.network_policy import jobs_network_policy, network_policy
from premoe_operator.children.service_account import service_account
from premoe_operator.children.services import worker_service
from premoe_operator.children.transport import certificate


def surroundings(inputs: Inputs) -> tuple[Obj, ...]:
    """All children but Jobs, ControllerRevisions and the Deployment, in the order in which to create them.

    Policies come first: no pod may run without its own.
    """
    wanted = (
        network_policy(inputs),
        jobs_network_policy(inputs),
        service_account(inputs),
        certificate(inputs),
        residency_config(inputs),
        tasks_config(inputs),
        worker_service(inputs),
        disruption_budget(inputs),
    )
    return tuple(child for child in wanted if child is not None)
