"""The devices that train: one, all GPUs of the host or of several, or logical CPU devices that stand in for them.

Import this module before any other that needs TensorFlow: it imports TensorFlow without its start-up noise, which is
written to the standard-error descriptor before any log level counts.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tf_finetune import versions
from tf_finetune.errors import UsageError
from tf_finetune.hosts import Cluster

log = logging.getLogger(__name__)


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Holds back what is written to the standard-error descriptor, and gives it out only if the body fails.

    What Python itself writes comes through: other threads may log meanwhile.
    """
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_FINETUNE_TF_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    try:
        descriptor = sys.__stderr__.fileno()  # type: ignore[union-attr]
        kept = os.dup(descriptor)
    except (OSError, ValueError, AttributeError):  # No such descriptor: nothing to hold back.
        yield
        return
    with tempfile.TemporaryFile() as held:
        sys.__stderr__.flush()  # type: ignore[union-attr]
        os.dup2(held.fileno(), descriptor)
        python, failed = sys.stderr, False
        if python is sys.__stderr__:
            sys.stderr = os.fdopen(os.dup(kept), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        try:
            yield
        except Exception:
            failed = True
            raise
        finally:
            if python is sys.__stderr__:
                sys.stderr.close()
                sys.stderr = python
            os.dup2(kept, descriptor)
            os.close(kept)
            if failed:
                held.seek(0)
                os.write(descriptor, held.read())


versions.check("keras")  # Before TensorFlow, which an older Keras may make fail in words of its own.
with without_noise():
    import tensorflow as tf

    versions.check("tensorflow", tf.__version__)
    tf.get_logger().setLevel(logging.ERROR)
    tf.config.list_physical_devices()
    logging.getLogger("absl").setLevel(logging.ERROR)


def strategy(replicas: int | None = None) -> tf.distribute.Strategy:
    """Returns how the training is spread over devices.

    Args:
        replicas: Number of devices; None takes all GPUs, or one CPU device. Where there are fewer GPUs than replicas
            and no GPU at all, the CPU is divided into as many logical devices.

    Raises:
        UsageError: There are GPUs, but fewer than replicas, or TensorFlow already runs with fewer CPU devices.
    """
    gpus = tf.config.list_logical_devices("GPU") if tf.config.list_physical_devices("GPU") else []
    if replicas is None:
        replicas = max(1, len(gpus))
    if replicas == 1 and not gpus:
        return tf.distribute.get_strategy()
    if gpus and replicas > len(gpus):
        raise UsageError(f"--replicas {replicas} needs as many GPUs; this machine has {len(gpus)}. Give at most that.")
    devices = [gpu.name for gpu in gpus[:replicas]] if gpus else _logical_cpus(replicas)
    if len(devices) == 1:
        return tf.distribute.OneDeviceStrategy(devices[0])
    log.info("training on %d devices: %s", replicas, ", ".join(devices))
    return _mirrored(tuple(devices))


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    """Returns the same strategy each time: two in one process number their collective operations alike, and clash."""
    with without_noise():
        return tf.distribute.MirroredStrategy(devices)


def over_hosts(cluster: Cluster, replicas: int | None = None) -> tf.distribute.Strategy:
    """Returns how a training is spread over the devices of several hosts; all must ask for it, and at the same time.

    Nothing may have run in TensorFlow before: its server is started with its runtime.

    Args:
        cluster: The hosts.
        replicas: Number of devices of each; None takes all GPUs, or the CPU.

    Raises:
        UsageError: There are fewer GPUs than replicas, TensorFlow's port is taken, or TensorFlow runs already.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if replicas is not None and replicas > max(1, len(gpus)):
        raise UsageError(
            f"--replicas {replicas} needs as many GPUs on each of {len(cluster.addresses)} hosts; this one has "
            f"{len(gpus)}. Give at most that, or leave it out."
        )
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
        task_type="worker",
        task_id=cluster.index,
        rpc_layer="grpc",
    )
    try:
        with without_noise():
            tf.config.set_visible_devices(gpus[:replicas], "GPU")
            spread = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except tf.errors.OpError as error:
        place = cluster.addresses[cluster.index]
        raise UsageError(
            f"TensorFlow cannot work with the other hosts from {place}: {str(error).splitlines()[0][:300]}. Free that "
            "port, or give another in TF_CONFIG."
        ) from None
    except RuntimeError as error:
        raise UsageError(
            f"TensorFlow already runs in this process, without the other hosts: {error}. Call tf_finetune.train before "
            "anything else of TensorFlow runs, or start a new process."
        ) from None
    devices = spread.num_replicas_in_sync
    log.info("training on %d devices of %d hosts: %s", devices, len(cluster.addresses), ", ".join(cluster.names))
    return spread


def local_replicas(strategy: tf.distribute.Strategy) -> int:
    """Returns how many of a strategy's replicas are on this host."""
    return len(strategy.extended.worker_devices) if spans_hosts(strategy) else int(strategy.num_replicas_in_sync)


def spans_hosts(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether a strategy has replicas on several hosts."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def is_one_cpu(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether a strategy computes on the first CPU alone."""
    return strategy.num_replicas_in_sync == 1 and not tf.config.list_physical_devices("GPU")


REWRITERS = {"bfloat16": "auto_mixed_precision_onednn_bfloat16", "float16": "auto_mixed_precision"}
# Off is what they are anyway; but a function that was compiled while they were not set is compiled anew when they are.
tf.config.optimizer.set_experimental_options(dict.fromkeys(REWRITERS.values(), False))


def sixteen_bit(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Returns the 16-bit type that this machine computes in faster than in float32, or None.

    It is float16 on GPUs, and bfloat16 on CPUs that multiply it in hardware (AVX512-BF16 or AMX).
    """
    if tf.config.list_physical_devices("GPU"):
        return "float16"
    flags: set[str] = set()
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("flags"):
                flags.update(line.split())
                break
    return "bfloat16" if flags & {"avx512_bf16", "amx_bf16"} else None


@contextlib.contextmanager
def rewriting(precision: str) -> Iterator[None]:
    """Has TensorFlow compute in a precision inside of the functions that the body calls; weights stay float32.

    The graph rewriter does it, as Keras's policies do not reach inside a SavedModel. It casts what gains by it
    (convolutions, products of matrices) and leaves what would suffer.

    Args:
        precision: "float32", which changes nothing, "bfloat16" or "float16".
    """
    if precision == "float32":
        yield
        return
    option = REWRITERS[precision]
    before = bool(tf.config.optimizer.get_experimental_options().get(option, False))
    tf.config.optimizer.set_experimental_options({option: True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({option: before})


def _logical_cpus(count: int) -> list[str]:
    cpu = tf.config.list_physical_devices("CPU")[0]
    with contextlib.suppress(RuntimeError):  # TensorFlow runs already: what it has must do.
        if len(tf.config.get_logical_device_configuration(cpu) or [None]) < count:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    devices = [device.name for device in tf.config.list_logical_devices("CPU")]
    if len(devices) < count:
        raise UsageError(
            f"--replicas {count} needs as many logical CPU devices, but TensorFlow already runs with {len(devices)} "
            "in this process. Start a new process, or ask for replicas first."
        )
    return devices[:count]


def make_deterministic(seed: int, strictly: bool = True) -> None:
    """Makes TensorFlow's operations give the same bits each time, and seeds what is left to chance.

    Args:
        seed: The seed.
        strictly: False for graphs with operations that draw at random without a seed, which would be refused.
    """
    from tensorflow.python.framework import config  # The public module can enable, and not take it back.

    tf.random.set_seed(seed % 2**31)
    if strictly:
        tf.config.experimental.enable_op_determinism()
        return
    log.warning("the backbone draws random numbers of its own when it is trained: two runs will differ")
    config.disable_op_determinism()
