"""Labels, annotations and the field manager: the words by which our objects are found."""

from __future__ import annotations

from premoe_operator.api.resources import GROUP

FIELD_MANAGER = "premoe-operator"
CONFLICT_MANAGER = "premoe-operator-conflict"
"""Manager of the one condition that a release writes on what another release serves."""

LABEL_NAME = "app.kubernetes.io/name"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_MODEL = f"{GROUP}/model"
LABEL_SPEC_HASH = f"{GROUP}/spec-hash"
LABEL_JOB_INPUTS = f"{GROUP}/inputs-hash"
RESERVED_LABEL_PREFIXES = (f"{GROUP}/", "app.kubernetes.io/")
"""Labels that children are found by: nobody else may set one."""

ANNOTATION_OWNER = f"{GROUP}/owner-uid"
ANNOTATION_APPLIED = f"{GROUP}/applied"
"""Digest of what was wanted when a child was last sent."""
ANNOTATION_RESULT = f"{GROUP}/result"
"""What a finished Job's pods said last."""
ANNOTATION_RETRY = f"{GROUP}/retry"
ANNOTATION_SUSPENDED = f"{GROUP}/suspended"
"""On Jobs that spec.suspend suspended."""
