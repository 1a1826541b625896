"""Types and reasons of conditions: fixed words, each with a section in docs/troubleshooting.md."""

from __future__ import annotations

from enum import StrEnum


class ConditionType(StrEnum):
    """What a condition speaks about."""

    READY = "Ready"
    AVAILABLE = "Available"
    SPEC_ACCEPTED = "SpecAccepted"
    CHILDREN_APPLIED = "ChildrenApplied"
    ARTIFACTS_READY = "ArtifactsReady"
    PATTERNS_READY = "PatternsReady"
    CERTIFICATE_READY = "CertificateReady"
    WORKERS_AVAILABLE = "WorkersAvailable"
    PROGRESSING = "Progressing"
    TEMPLATE_OUTDATED = "TemplateOutdated"
    RELEASE_CONFLICT = "ReleaseConflict"


class Reason(StrEnum):
    """Why a condition is as it is."""

    # All is well.
    ACCEPTED = "Accepted"
    APPLIED = "Applied"
    PACKED = "Packed"
    BUILT = "Built"
    ISSUED = "Issued"
    ALL_READY = "AllReady"
    ROLLED_OUT = "RolledOut"
    UP_TO_DATE = "UpToDate"
    # It takes time.
    PACKING = "Packing"
    PROFILING = "Profiling"
    BUILDING = "BuildingPatterns"
    WAITING = "WaitingForArtifacts"
    ISSUING = "Issuing"
    LOADING = "Loading"
    ROLLING_OUT = "RollingOut"
    WAITING_FOR_DELETION = "WaitingForDeletion"
    # Somebody wants it so.
    SUSPENDED = "Suspended"
    SCALED_TO_ZERO = "ScaledToZero"
    HANDED_OVER = "HandedOver"
    TEMPLATE_OUTDATED = "TemplateOutdated"
    # The spec must change.
    SPEC_INVALID = "SpecInvalid"
    SERVED_NAME_CONFLICT = "ServedNameConflict"
    PATTERN_SET_CONFLICT = "PatternSetConflict"
    BUDGET_IMPOSSIBLE = "BudgetImpossible"
    MEMORY_TOO_SMALL = "MemoryTooSmall"
    POD_TEMPLATE_REFUSED = "PodTemplateRefused"
    METRIC_UNSUPPORTED = "MetricUnsupported"
    ENGINE_REFUSED = "EngineRefused"
    # Something in the cluster must change.
    HELD_BY_OTHER_RELEASE = "HeldByOtherRelease"
    FOREIGN_OBJECT = "ForeignObject"
    REFUSED_BY_API = "RefusedByApi"
    WRITE_FAILED = "WriteFailed"
    QUOTA_EXCEEDED = "QuotaExceeded"
    PODS_REFUSED = "PodsRefused"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    SECRET_NOT_FOUND = "SecretNotFound"
    CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound"
    VOLUME_NOT_READY = "VolumeNotReady"
    OOM_KILLED = "OOMKilled"
    WORKER_FAILED = "WorkerFailed"
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
    CERTIFICATE_NOT_ISSUED = "CertificateNotIssued"
    # The preparation failed.
    PACK_FAILED = "PackFailed"
    MODEL_ID_MISMATCH = "ModelIdMismatch"
    PROFILE_FAILED = "ProfileFailed"
    CALIBRATION_INVALID = "CalibrationInvalid"
    PATTERNS_FAILED = "PatternsFailed"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    MANIFEST_NOT_FOUND = "ManifestNotFound"
    STORE_UNREACHABLE = "StoreUnreachable"
