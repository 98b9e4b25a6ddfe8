"""Every name that the operator, the stages and the user share, spelled once."""

from __future__ import annotations

from enum import IntEnum, StrEnum

GROUP = "itrain.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "ITrainRun"
PLURAL = "itrainruns"
SINGULAR = "itrainrun"
SHORT_NAME = "itr"

RUN_NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
RUN_NAME_MAX_LENGTH = 40

LABEL_RUN = f"{GROUP}/run"
LABEL_RUN_UID = f"{GROUP}/run-uid"
LABEL_ITERATION = f"{GROUP}/iteration"
LABEL_STAGE = f"{GROUP}/stage"
LABEL_ATTEMPT = f"{GROUP}/attempt"
ANNOTATION_DIGEST = f"{GROUP}/input-digest"
ANNOTATION_TEMPLATE_HASH = f"{GROUP}/template-hash"
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
LABEL_QUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"
LABEL_WORKLOAD_JOB = "kueue.x-k8s.io/job-uid"
ANNOTATION_MIN_PARALLELISM = "kueue.x-k8s.io/job-min-parallelism"

# Environment of a stage process.
ENV_STAGE_INPUT = "ITRAIN_STAGE_INPUT"  # path of the StageInput JSON
ENV_ATTEMPT = "ITRAIN_ATTEMPT"
ENV_SHARD = "JOB_COMPLETION_INDEX"  # set by Kubernetes for Indexed Jobs
ENV_PROGRESS_FILE = "ITRAIN_PROGRESS_FILE"
ENV_TERMINATION_LOG = "ITRAIN_TERMINATION_LOG"
ENV_CACHE_DIR = "ITRAIN_CACHE_DIR"
ENV_SECRETS_DIR = "ITRAIN_SECRETS_DIR"  # a folder per Secret, a file per key
ENV_POD_UID = "ITRAIN_POD_UID"
ENV_THREADS = "ITRAIN_THREADS"
ENV_PRECISION_DEFAULT = "ITRAIN_PRECISION_DEFAULT"  # what `precision: auto` stands for
ENV_MASTER_ADDR = "ITRAIN_MASTER_ADDR"  # of node 0, where the ranks of several nodes meet
ENV_MASTER_PORT = "ITRAIN_MASTER_PORT"
THREAD_VARIABLES = (ENV_THREADS, "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
DEFAULT_TERMINATION_LOG = "/dev/termination-log"
TERMINATION_MESSAGE_LIMIT_BYTES = 4096


class ExitCode(IntEnum):
    """Exit codes of a stage process (API document, "Storage rules")."""

    DONE = 0
    CONFIG = 64
    DATA = 65
    PERMANENT = 70
    RETRYABLE = 75
    KILLED = 137
    INTERRUPTED = 143


class Phase(StrEnum):
    PENDING = "Pending"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"

    @property
    def terminal(self) -> bool:
        return self in (Phase.SUCCEEDED, Phase.FAILED)


class ConditionType(StrEnum):
    """At most eight; no `Ready`: a False one would read as in progress for ever."""

    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    QUOTA_RESERVED = "QuotaReserved"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Reason(StrEnum):
    """Why a run is in its phase; the reason of a condition."""

    RUN_PENDING = "RunPending"
    STAGE_STARTING = "StageStarting"
    STAGE_RUNNING = "StageRunning"
    STAGE_RETRYING = "StageRetrying"
    WAITING_FOR_QUOTA = "WaitingForQuota"
    WAITING_FOR_NODES = "WaitingForNodes"
    WAITING_FOR_CLEANUP = "WaitingForCleanup"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    SUSPENDED_BY_USER = "SuspendedByUser"
    RUN_COMPLETED = "RunCompleted"
    STOPPED_EARLY = "StoppedEarly"
    INVALID_SPEC = "InvalidSpec"
    CREATE_FORBIDDEN = "CreateForbidden"
    CREATE_REJECTED = "CreateRejected"
    FOREIGN_OBJECT = "ForeignObject"
    CONFIG_ERROR = "ConfigError"
    DATA_ERROR = "DataError"
    PERMANENT_ERROR = "PermanentError"
    OUT_OF_MEMORY = "OutOfMemory"
    RETRIES_EXHAUSTED = "RetriesExhausted"
    QUORUM_NOT_MET = "QuorumNotMet"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    PENDING_DEADLINE_EXCEEDED = "PendingDeadlineExceeded"
    GPU_HOURS_EXCEEDED = "GpuHoursExceeded"
